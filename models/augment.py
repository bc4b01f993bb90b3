"""Augmentation of whole batches, on their device: samples as the service makes them -> samples of the same kind."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.datasets import VOID

# Categories that a clip exchanges when it is mirrored left to right, turned upside down, or reversed.
_MIRRORED = {"pan left": "pan right", "roll clockwise": "roll counter-clockwise"}
_UPSIDE_DOWN = {"tilt up": "tilt down", "roll clockwise": "roll counter-clockwise"}
_BACKWARDS = {
    "pan left": "pan right",
    "tilt up": "tilt down",
    "zoom in": "zoom out",
    "roll clockwise": "roll counter-clockwise",
}


def flip_and_shift(pictures: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """(N, H, W, 3), mirrored at random, and shifted by up to ``pad`` pixels (He et al. 2015, section 4.2)."""
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


def cut_out(pictures: Tensor, generator: torch.Generator, side: int) -> Tensor:
    """(N, H, W, 3), each without a square of ``side`` pixels around one of its pixels, filled with its mean colour
    (DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout")."""
    count, height, width, _ = pictures.shape
    device = pictures.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    row = torch.randint(0, height, (count, 1), generator=generator, device=device) - side // 2
    column = torch.randint(0, width, (count, 1), generator=generator, device=device) - side // 2
    cut = ((rows >= row) & (rows < row + side))[:, :, None] & ((columns >= column) & (columns < column + side))[:, None]
    return torch.where(cut[..., None], pictures.mean(dim=(1, 2), keepdim=True), pictures)


def scale_and_crop(
    pictures: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    generator: torch.Generator,
    scales: tuple[float, float] = (0.6, 1.8),
) -> tuple[Tensor, Tensor]:
    """(N, H, W, 3), (N, H, W) -> random crops of ``size`` at a random scale, mirrored at random, with jittered colours.
    Pixels outside of the picture are void in the mask."""
    count, height, width, _ = pictures.shape
    device = pictures.device
    scale = torch.exp(_between(count, torch.log(torch.tensor(scales)).tolist(), generator, device))
    mirror = torch.where(_chance(count, generator, device), -1.0, 1.0)
    half_x, half_y = size[1] / width / scale, size[0] / height / scale  # half the crop's extent, picture = -1..1
    centre_x = (1 - half_x).clamp(min=0) * _between(count, (-1, 1), generator, device)
    centre_y = (1 - half_y).clamp(min=0) * _between(count, (-1, 1), generator, device)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = half_x * mirror, centre_x
    theta[:, 1, 1], theta[:, 1, 2] = half_y, centre_y
    grid = F.affine_grid(theta, [count, 3, *size], align_corners=False)
    cut = F.grid_sample(pictures.permute(0, 3, 1, 2).float(), grid, padding_mode="reflection", align_corners=False)
    # A mask is sampled as value - VOID, so that zero padding means void.
    shifted = (masks.float() - VOID)[:, None]
    cut_masks = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False) + VOID
    return jitter_colours(cut.permute(0, 2, 3, 1), generator), cut_masks[:, 0].round().long()


def jitter_colours(pictures: Tensor, generator: torch.Generator, strength: float = 0.25) -> Tensor:
    """(N, …, 3), 0 to 255, of randomly varied brightness, contrast and colours, by up to ``strength``."""
    count, axes = pictures.shape[0], (1,) * (pictures.dim() - 2)
    gain = 1 + strength * _between(count, (-1, 1), generator, pictures.device).view(-1, *axes, 1)
    offset = 255 * strength * 0.5 * _between(count, (-1, 1), generator, pictures.device).view(-1, *axes, 1)
    tint = 1 + strength * 0.4 * _between(count * 3, (-1, 1), generator, pictures.device).view(count, *axes, 3)
    grey = 114.0
    return ((pictures.float() - grey) * gain * tint + grey + offset).clamp(0, 255)


def augment_sound(sounds: Tensor, generator: torch.Generator, shift: float = 0.2) -> Tensor:
    """(N, 1, T), full scale 1, disturbed as by rooms and microphones.

    Each is shifted by up to ``shift`` of the window, resampled to play up to 20% faster or slower, and scaled. Half are
    filtered by a room and a microphone, half have noise added, a quarter other sounds, and a few are clipped, so that
    most have one or two disturbances and some have none.
    """
    sounds = _replay(sounds, generator, shift)
    sounds = _some(0.5, _microphone(sounds, generator), sounds, generator)
    loudness = sounds.square().mean(dim=2, keepdim=True).sqrt()
    others = _at_loudness(sounds.roll(1, dims=0).flip(2), loudness)  # reversed, so that no word is understood
    noise = _at_loudness(_noise(sounds, generator), loudness)
    sounds = _some(0.25, sounds + _below(others, (5, 40), generator), sounds, generator)
    sounds = _some(0.5, sounds + _below(noise, (0, 40), generator), sounds, generator)
    peak = sounds.abs().amax(dim=2, keepdim=True)
    limit = peak * _each(sounds, (0.3, 8), generator)  # clips one sound in eleven
    return sounds.clamp(-limit, limit) * 10 ** (_each(sounds, (-40, 6), generator) / 20)


def mix_sounds(
    sounds: Tensor, targets: Tensor, categories: int, generator: torch.Generator, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(N, 1, T), (N) -> ``share`` of the sounds mixed with their neighbours, and the share of each category in each,
    (N, categories).

    The mix accounts for loudness, so that both sound equally loud at half of each (Tokozume et al. 2018, "Learning from
    between-class examples for deep sound recognition", equation 2).
    """
    ratio = _each(sounds, (0, 1), generator)
    ratio = torch.where(_each(sounds, (0, 1), generator) < share, ratio, 1).clamp(1e-3, 1)
    one_hot = F.one_hot(targets, categories).float()
    loudness = sounds.square().mean(dim=2, keepdim=True).sqrt().clamp(min=1e-6)
    gain = 1 / (1 + loudness / loudness.roll(1, dims=0) * (1 - ratio) / ratio)
    mixed = gain * sounds + (1 - gain) * sounds.roll(1, dims=0)
    part = ratio[:, :, 0]
    return mixed / (gain.square() + (1 - gain).square()).sqrt(), part * one_hot + (1 - part) * one_hot.roll(1, dims=0)


def _replay(sounds: Tensor, generator: torch.Generator, shift: float) -> Tensor:
    count, _, length = sounds.shape
    speed = _each(sounds, (0.8, 1.2), generator)[:, 0, 0]
    theta = torch.zeros(count, 2, 3, device=sounds.device)
    theta[:, 0, 0], theta[:, 1, 1] = speed, 1
    theta[:, 0, 2] = 2 * shift * _each(sounds, (-1, 1), generator)[:, 0, 0]
    grid = F.affine_grid(theta, [count, 1, 1, length], align_corners=False)
    return F.grid_sample(sounds[:, :, None], grid, padding_mode="zeros", align_corners=False)[:, :, 0]


def _microphone(sounds: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 1, T), each through a random filter: reverberation by decaying noise (Polack 1988), and gains of up to 8 dB
    either way at a few frequencies; some lose low or high frequencies, as by a small speaker or a lower sample rate."""
    count, _, length = sounds.shape
    device = sounds.device
    times = torch.arange(1, length // 4 + 1, device=device) / (length // 4)  # in quarters of the window
    decay = torch.exp(-times / _each(sounds, (0.02, 0.3), generator))
    echo = decay * torch.randn(count, 1, len(times), generator=generator, device=device)
    strength = _each(sounds, (-0.7, 0.7), generator).clamp(min=0)  # half of the rooms have no echo
    echo = echo * strength / echo.square().sum(dim=2, keepdim=True).sqrt()
    size = length + len(times)  # long enough that the convolution does not wrap around
    response = 1 + torch.fft.rfft(F.pad(echo, (1, 0)), size)
    knots = torch.rand(count, 1, 8, generator=generator, device=device) * 16 - 8
    gain_db = F.interpolate(knots, response.shape[2], mode="linear", align_corners=True)
    frequencies = torch.linspace(0, 1, response.shape[2], device=device)  # in units of the Nyquist frequency
    low, high = _each(sounds, (-0.1, 0.1), generator), _each(sounds, (0.45, 1.8), generator)
    kept = torch.sigmoid((frequencies - low) * 200) * torch.sigmoid((high - frequencies) * 40)
    response = response * 10 ** (gain_db / 20) * kept
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(sounds, size) * response, size)[:, :, :length]
    return filtered


def _noise(sounds: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the shape of ``sounds``, of power frequency ** 0.5 (blue) to frequency ** -2 (brown)."""
    spectrum = torch.fft.rfft(torch.randn(sounds.shape, generator=generator, device=sounds.device))
    frequencies = torch.arange(spectrum.shape[2], device=sounds.device).clamp(min=max(1, spectrum.shape[2] // 100))
    colour = frequencies ** _each(sounds, (-1, 0.25), generator)
    noise: Tensor = torch.fft.irfft(spectrum * colour, sounds.shape[2])
    return noise


def _at_loudness(sounds: Tensor, loudness: Tensor) -> Tensor:
    return sounds * loudness / sounds.square().mean(dim=2, keepdim=True).sqrt().clamp(min=1e-9)


def _some(share: float, changed: Tensor, sounds: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 1, T), each replaced by its changed version with probability ``share``."""
    return torch.where(_each(sounds, (0, 1), generator) < share, changed, sounds)


def _below(sounds: Tensor, decibels: tuple[float, float], generator: torch.Generator) -> Tensor:
    return sounds * 10 ** (-_each(sounds, decibels, generator) / 20)


def _each(samples: Tensor, bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Random numbers (N, 1, 1), one for each of the samples (N, 1, T)."""
    return _between(samples.shape[0], bounds, generator, samples.device)[:, None, None]


def flip_motion(
    clips: Tensor, targets: Tensor, categories: tuple[str, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(N, T, H, W, 3), (N), mirrored, turned upside down and reversed at random, with categories changed to match."""
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
