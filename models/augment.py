"""Training-only transforms, on whole batches and on whatever device they lie: samples as the service makes them in,
samples of the same kind out."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.datasets import VOID

# Which camera motion a clip shows once it is mirrored left to right, turned upside down, or played backwards.
_MIRRORED = {"pan left": "pan right", "roll clockwise": "roll counter-clockwise"}
_UPSIDE_DOWN = {"tilt up": "tilt down", "roll clockwise": "roll counter-clockwise"}
_BACKWARDS = {
    "pan left": "pan right",
    "tilt up": "tilt down",
    "zoom in": "zoom out",
    "roll clockwise": "roll counter-clockwise",
}


def flip_and_shift(pictures: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """(N, H, W, 3): mirrored by chance, and shifted by up to ``pad`` pixels (He et al. 2015, section 4.2)."""
    count, height, width, _ = pictures.shape
    mirrored = _chance(count, generator, pictures.device)
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(2), pictures)
    padded = F.pad(pictures.permute(0, 3, 1, 2).float(), (pad,) * 4, mode="reflect")
    tops = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator, device=pictures.device)
    lefts = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator, device=pictures.device)
    rows = (tops + torch.arange(height, device=pictures.device))[:, :, None]
    columns = (lefts + torch.arange(width, device=pictures.device))[:, None, :]
    each = torch.arange(count, device=pictures.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows, columns]


def scale_and_crop(
    pictures: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    generator: torch.Generator,
    scales: tuple[float, float] = (0.6, 1.8),
) -> tuple[Tensor, Tensor]:
    """(N, H, W, 3) and (N, H, W) -> cut-outs of ``size`` at a random scale, mirrored by chance, brightness and contrast
    varied. What lies outside of the picture is void in the mask."""
    count, height, width, _ = pictures.shape
    device = pictures.device
    scale = torch.exp(_between(count, torch.log(torch.tensor(scales)).tolist(), generator, device))
    mirror = torch.where(_chance(count, generator, device), -1.0, 1.0)
    half_x, half_y = size[1] / width / scale, size[0] / height / scale  # half the cut-out's extent, picture = -1..1
    centre_x = (1 - half_x).clamp(min=0) * _between(count, (-1, 1), generator, device)
    centre_y = (1 - half_y).clamp(min=0) * _between(count, (-1, 1), generator, device)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = half_x * mirror, centre_x
    theta[:, 1, 1], theta[:, 1, 2] = half_y, centre_y
    grid = F.affine_grid(theta, [count, 3, *size], align_corners=False)
    cut = F.grid_sample(pictures.permute(0, 3, 1, 2).float(), grid, padding_mode="reflection", align_corners=False)
    # A mask is sampled as value - VOID, so that the zeros around it stand for void.
    shifted = (masks.float() - VOID)[:, None]
    cut_masks = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False) + VOID
    return vary_light(cut.permute(0, 2, 3, 1), generator), cut_masks[:, 0].round().long()


def vary_light(pictures: Tensor, generator: torch.Generator, strength: float = 0.25) -> Tensor:
    """(N, …, 3), 0 to 255: each picture's brightness, contrast and colours varied by up to ``strength``."""
    count, axes = pictures.shape[0], (1,) * (pictures.dim() - 2)
    gain = 1 + strength * _between(count, (-1, 1), generator, pictures.device).view(-1, *axes, 1)
    offset = 255 * strength * 0.5 * _between(count, (-1, 1), generator, pictures.device).view(-1, *axes, 1)
    tint = 1 + strength * 0.4 * _between(count * 3, (-1, 1), generator, pictures.device).view(count, *axes, 3)
    grey = 114.0
    return ((pictures.float() - grey) * gain * tint + grey + offset).clamp(0, 255)


def disturb_sound(sounds: Tensor, generator: torch.Generator, shift: float = 0.15) -> Tensor:
    """(N, 1, T): shifted in time by up to ``shift`` of the window, played up to 12% faster or slower, at another gain,
    with noise 10 to 50 dB below it, and a first-order tilt of the spectrum, as microphones have."""
    count, _, length = sounds.shape
    device = sounds.device
    speed = 1 + 0.12 * _between(count, (-1, 1), generator, device)
    moved = 2 * shift * _between(count, (-1, 1), generator, device)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1] = speed, moved, 1
    grid = F.affine_grid(theta, [count, 1, 1, length], align_corners=False)
    sounds = F.grid_sample(sounds[:, :, None], grid, padding_mode="zeros", align_corners=False)[:, :, 0]
    tilt = _between(count, (-0.6, 0.6), generator, device)[:, None, None]
    sounds = sounds - tilt * F.pad(sounds, (1, 0))[:, :, :-1]
    loudness = sounds.square().mean(dim=2, keepdim=True).sqrt()
    below = 10 ** (-_between(count, (10, 50), generator, device)[:, None, None] / 20)
    noise = torch.randn(sounds.shape, generator=generator, device=device)
    gain = 10 ** (_between(count, (-20, 6), generator, device)[:, None, None] / 20)
    return (sounds + noise * loudness * below) * gain


def turn_motion(
    clips: Tensor, targets: Tensor, categories: tuple[str, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(N, T, H, W, 3), (N): mirrored, upside down and backwards by chance, the motion's name turned with it."""
    for axis, renamed in ((3, _MIRRORED), (2, _UPSIDE_DOWN), (1, _BACKWARDS)):
        chosen = _chance(clips.shape[0], generator, clips.device)
        clips = torch.where(chosen[:, None, None, None, None], clips.flip(axis), clips)
        targets = torch.where(chosen, _renaming(categories, renamed, targets.device)[targets], targets)
    return clips, targets


def _renaming(categories: tuple[str, ...], pairs: dict[str, str], device: torch.device) -> Tensor:
    both = pairs | {after: before for before, after in pairs.items()}
    return torch.tensor([categories.index(both.get(category, category)) for category in categories], device=device)


def _chance(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(count, generator=generator, device=device) < 0.5


def _between(
    count: int, bounds: tuple[float, float] | list[float], generator: torch.Generator, device: torch.device
) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator, device=device)
