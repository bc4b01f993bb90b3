"""Renders clips of ten kinds of camera motion: a virtual camera moves over a photograph.

The categories have the film maker's meaning: they name what the *camera* does, so the content of the picture does
the opposite (pan left: content moves right; roll clockwise: content turns counter-clockwise).

    category -> poses of the camera at sub-frame times -> the part of the photograph that it sees -> shots of it
             -> foreground patches -> motion blur, noise, exposure, black bars -> frames (T,H,W,3) uint8 -> MP4
"""

import math
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from tqdm import tqdm

Floats = NDArray[np.float64]
Frames = NDArray[np.uint8]

FRAME_RATE_HZ = 8
N_FRAMES = 16  # 2 seconds
PHOTO_SHORT_SIDE = 288  # pixels; larger photographs are reduced to it
SIZES = {(96, 128): 0.5, (80, 144): 0.2, (112, 112): 0.15, (128, 96): 0.15}  # (H,W) in pixels: how often
SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}  # share of the photographs

# A pose is (x, y, log scale, angle): the centre in pixels of the first frame along the camera's own axes, the natural
# logarithm of photograph pixels per frame pixel (growing = zooming out), and radians (growing = clockwise).
X, Y, SCALE, ANGLE = range(4)

# The axis and the sign of the camera's motion.
CATEGORIES: dict[str, tuple[int, int] | None] = {
    "static": None,
    "pan left": (X, -1),
    "pan right": (X, 1),
    "tilt up": (Y, -1),
    "tilt down": (Y, 1),
    "zoom in": (SCALE, -1),
    "zoom out": (SCALE, 1),
    "roll clockwise": (ANGLE, 1),
    "roll counter-clockwise": (ANGLE, -1),
    "shake": None,
}

# From first to last frame, log-uniform: a share of the frame's width or height, a log scale, radians.
RANGES = {
    X: (0.12, 0.60),
    Y: (0.12, 0.60),
    SCALE: (math.log(1.15), math.log(1.8)),
    ANGLE: (math.radians(8), math.radians(50)),
}
DISTRACTOR = 0.15  # of the main motion at the edge of the frame, at most, for each other axis
STATIC_TREMOR_PX = 0.4  # root mean square, at most
MOVING_TREMOR_PX = 1.2
SHAKE = (0.015, 0.055)  # root mean square as a share of the frame's width


@dataclass(frozen=True)
class Patch:
    """A foreground object: an RGBA picture with a soft elliptic mask, and its centre (K,2) in frame pixels."""

    picture: Image.Image
    centres: Floats


def render(
    photo: Image.Image | Frames,
    category: str,
    rng: np.random.Generator,
    foreground: Image.Image | Frames | None = None,
    size: tuple[int, int] | None = None,
) -> Frames:
    """Returns a clip of `category` as (T,H,W,3) uint8, T = 16 frames at 8 frames/s.

    `photo` is RGB, any size; `foreground` another picture to cut moving objects from, in four clips of ten;
    `size` is (H,W) in pixels, random by default. Raises ValueError for an unknown category.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category is {category!r}, must be one of {', '.join(CATEGORIES)}")
    height, width = size or _draw_size(rng)
    blurred = rng.random() < 0.3
    times = sample_times(sub_frames=4 if blurred else 1, shutter=rng.uniform(0.3, 0.9))
    poses = plan_poses(category, times.ravel(), (height, width), rng)
    source, placed = place(_as_picture(photo), poses, (height, width), rng)
    source = grade(source, rng)
    patches: list[Patch] = []
    if foreground is not None and rng.random() < 0.4:
        patches = list(cut_patches(_as_picture(foreground), poses, (height, width), rng))
    # Averaging hides the difference between the two filters, which is half the time of a blurred clip.
    resample = Image.Resampling.BILINEAR if blurred else Image.Resampling.BICUBIC
    shots = np.stack(list(shoot(source, placed, patches, (height, width), resample)))
    return develop(shots.reshape(*times.shape, height, width, 3), rng)


def sample_times(sub_frames: int, shutter: float) -> Floats:
    """Times in seconds, (T,S): the shutter is open for the share `shutter` of a frame's time."""
    starts = np.arange(N_FRAMES)[:, None]
    return np.asarray((starts + shutter * np.arange(sub_frames) / sub_frames) / FRAME_RATE_HZ)


def plan_poses(category: str, times: Floats, size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Poses (K,4) relative to a camera at rest, for K times in seconds."""
    height, width = size
    poses = np.zeros((len(times), 4))
    # What one unit of each axis moves at the edge of the frame, in pixels.
    edge_px = np.array([1.0, 1.0, max(size) / 2, max(size) / 2])
    main = CATEGORIES[category]
    if main is not None:
        axis, sign = main
        extent = {X: width, Y: height}.get(axis, 1)
        amount = extent * math.exp(rng.uniform(*np.log(RANGES[axis])))
        main_px = amount * edge_px[axis]
        drift = rng.uniform(-DISTRACTOR, DISTRACTOR, 4) * (rng.random(4) < 0.5) * main_px / edge_px
        drift[axis] = 0
        poses += (times / times[-1])[:, None] * drift
        poses[:, axis] += sign * amount * ease(times, rng)
        tremor_px = min(MOVING_TREMOR_PX, 0.08 * main_px) * rng.random() * (rng.random() < 0.6)
    elif category == "shake":
        tremor_px = width * rng.uniform(*SHAKE)
    else:
        tremor_px = STATIC_TREMOR_PX * rng.random() * (rng.random() < 0.6)
    hertz = (0.8, 4.0) if category == "shake" else (0.5, 2.5)
    # Hands move the picture sideways more than they turn it, and never change its scale.
    strengths = tremor_px * np.array([rng.uniform(0.6, 1), rng.uniform(0.6, 1), 0, rng.uniform(0, 0.4)]) / edge_px
    poses += np.stack([wobble(times, hertz, rng) for _ in range(4)], axis=1) * strengths
    return poses


def ease(times: Floats, rng: np.random.Generator) -> Floats:
    """Progress of a motion from 0 to 1 at `times` (K,): steady, accelerating, slowing down, late or stopping early."""
    begin = rng.uniform(0, 0.35) if rng.random() < 0.3 else 0.0
    end = rng.uniform(0.65, 1) if rng.random() < 0.3 else 1.0
    last_frame = (N_FRAMES - 1) / FRAME_RATE_HZ
    progress = np.clip((times / last_frame - begin) / (end - begin), 0, 1)
    power = rng.uniform(1.3, 2.2)
    curves = [progress, progress**2 * (3 - 2 * progress), progress**power, 1 - (1 - progress) ** power]
    return curves[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])]


def wobble(times: Floats, hertz: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Irregular motion about 0 with root mean square 1 at `times` (K,): a sum of waves within the band `hertz`."""
    frequencies, phases = rng.uniform(*hertz, 5), rng.uniform(0, 2 * math.pi, 5)
    waves = np.sin(2 * math.pi * np.outer(times, frequencies) + phases) @ rng.uniform(0.4, 1, 5)
    waves -= waves.mean()
    return np.asarray(waves / np.sqrt(np.mean(waves**2)))


def place(
    photo: Image.Image, poses: Floats, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, Floats]:
    """Chooses where the motion happens, and cuts that part out of the photograph.

    Returns the part, scaled to about one pixel per frame pixel, and affine matrices (K,2,3) from frame to part. The
    motion stays inside the photograph where it fits at a scale of 0.8 or more; beyond its border it is mirrored.
    """
    matrices = affine_matrices(poses, start_angle=math.radians(rng.normal(0, 2)), size=size)
    height, width = size
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], dtype=float)
    reached = np.einsum("kij,cj->kci", matrices, corners).reshape(-1, 2)
    low, high = reached.min(axis=0) - 2, reached.max(axis=0) + 2  # 2: the reach of the bicubic filter
    extent = high - low
    largest = float((np.array(photo.size) / extent).min())
    scale = max(0.8, largest * rng.uniform(0.55, 1))
    room = np.array(photo.size) - scale * extent
    corner = np.where(room > 0, rng.uniform(0, 1, 2) * room, room / 2)

    # The middle of the scales seen becomes 1, so that no frame is far from the pixels that it samples.
    scales = np.exp(poses[:, SCALE])
    middle = float(np.sqrt(scales.min() * scales.max()))
    part = cut(photo, corner, scale * extent, np.ceil(extent / middle).astype(int))
    matrices = matrices - np.array([[0, 0, low[0]], [0, 0, low[1]]])
    return part, matrices * (np.array(part.size) / extent)[:, None]


def affine_matrices(poses: Floats, start_angle: float, size: tuple[int, int]) -> Floats:
    """Matrices (K,2,3) from frame pixels to a plane with one unit per pixel of a frame at rest, its centre at 0."""
    height, width = size
    scale, angle = np.exp(poses[:, SCALE]), poses[:, ANGLE] + start_angle
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    turn = np.array([[math.cos(start_angle), -math.sin(start_angle)], [math.sin(start_angle), math.cos(start_angle)]])
    linear = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
    shift = poses[:, : Y + 1] @ turn.T - linear @ np.array([width / 2, height / 2])
    return np.concatenate([linear, shift[:, :, None]], axis=2)


def cut(photo: Image.Image, corner: Floats, extent: Floats, size: NDArray[np.int64]) -> Image.Image:
    """The rectangle `corner` + `extent` (x,y) of `photo`, resized to `size` (W,H), mirrored beyond its border."""
    beyond = np.maximum(-corner, corner + extent - np.array(photo.size)).max()
    if beyond > 0:
        margin = math.ceil(beyond)
        photo = Image.fromarray(np.pad(np.asarray(photo), ((margin, margin), (margin, margin), (0, 0)), "symmetric"))
        corner = corner + margin
    box = (*np.maximum(corner, 0), *np.minimum(corner + extent, photo.size))
    return photo.resize((int(size[0]), int(size[1])), Image.Resampling.BICUBIC, box)


def grade(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Random brightness, contrast, saturation and sharpness, the same for the whole clip."""
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhancer(picture).enhance(rng.uniform(0.65, 1.35))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return picture


def cut_patches(photo: Image.Image, poses: Floats, size: tuple[int, int], rng: np.random.Generator) -> Iterator[Patch]:
    """One to three moving objects that together cover up to a fifth of the frame."""
    height, width = size
    count = int(rng.integers(1, 4))
    progress = np.linspace(0, 1, len(poses))[:, None]
    for _ in range(count):
        area = height * width * rng.uniform(0.03, 0.2) / count
        aspect = math.exp(rng.uniform(-0.7, 0.7))
        # The area of an ellipse is pi/4 of its box.
        patch_size = np.maximum(4, np.sqrt(area * 4 / math.pi * np.array([aspect, 1 / aspect]))).astype(int)
        room = np.maximum(np.array(photo.size) - patch_size, 1)
        x, y = rng.integers(0, room)
        picture = photo.crop((x, y, x + patch_size[0], y + patch_size[1]))
        picture.putalpha(soft_ellipse(int(patch_size[0]), int(patch_size[1]), softness=rng.uniform(0.05, 0.35)))
        begin, end = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height)
        # 0: the camera follows it; 1: it belongs to the scene; more: it is nearer than the scene.
        nearness = rng.choice([0, 1, 1.3])
        yield Patch(picture, begin + (end - begin) * progress - nearness * poses[:, : Y + 1])


def soft_ellipse(width: int, height: int, softness: float) -> Image.Image:
    """A mask that fills its box: 255 inside, falling to 0 over the share `softness` of the radius."""
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    opacity = np.clip((1 - np.hypot(x, y)) / softness, 0, 1)
    return Image.fromarray((255 * opacity).astype(np.uint8))


def shoot(
    source: Image.Image,
    matrices: Floats,
    patches: Sequence[Patch],
    size: tuple[int, int],
    resample: Image.Resampling,
) -> Iterator[Frames]:
    """Yields a shot (H,W,3) uint8 for each of the matrices (K,2,3)."""
    height, width = size
    for index, matrix in enumerate(matrices):
        shot = source.transform((width, height), Image.Transform.AFFINE, matrix.ravel().tolist(), resample)
        for patch in patches:
            corner = patch.centres[index] - np.array(patch.picture.size) / 2
            whole = np.floor(corner).astype(int)
            moved = _shift(patch.picture, *(corner - whole))
            shot.paste(moved, (int(whole[0]), int(whole[1])), moved)
        yield np.asarray(shot)


def develop(shots: Frames, rng: np.random.Generator) -> Frames:
    """Shots (T,S,H,W,3) uint8 -> frames (T,H,W,3) uint8: motion blur, drifting exposure, noise, black bars."""
    frames = shots.mean(axis=1, dtype=np.float32) if shots.shape[1] > 1 else shots[:, 0].astype(np.float32)
    n_frames, height, width, _ = frames.shape
    if rng.random() < 0.3:
        gain = np.linspace(1, rng.uniform(0.85, 1.15), n_frames, dtype=np.float32)
        frames *= gain[:, None, None, None]
    if rng.random() < 0.6:
        noise = rng.standard_normal((n_frames, height, width, 1), dtype=np.float32)
        frames += noise * np.float32(rng.uniform(0.5, 7))
    result = (frames.clip(0, 255) + np.float32(0.5)).astype(np.uint8)
    if rng.random() < 0.12:
        axis = int(rng.integers(1, 3))
        bar = round(result.shape[axis] * rng.uniform(0.04, 0.14))
        banded = np.swapaxes(result, 1, axis)
        banded[:, :bar] = banded[:, -bar:] = 0
    return result


def write_clip(
    frames: Frames,
    path: Path,
    frame_rate_hz: int = FRAME_RATE_HZ,
    crf: int = 23,
    preset: str = "ultrafast",
) -> None:
    """Writes frames (T,H,W,3) uint8, H and W even, as an H.264 MP4; `crf` is x264's constant rate factor."""
    part = path.with_name(f".{path.name}.part")  # hidden from whoever reads the folder meanwhile
    with av.open(part, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": preset}
        stream = container.add_stream("libx264", rate=Fraction(frame_rate_hz), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # clips are rendered in parallel instead
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    part.replace(path)


def split_photos(photos: Iterable[Path], seed: int) -> dict[str, list[Path]]:
    """Shares the photographs out among train, val and test, none in two; the same for the same names and seed."""
    ordered = sorted(photos)
    shuffled = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    ends = [round(share * len(shuffled)) for share in np.cumsum(list(SPLITS.values()))]
    return {split: shuffled[begin:end] for split, begin, end in zip(SPLITS, [0, *ends[:-1]], ends, strict=True)}


@dataclass(frozen=True)
class Clip:
    """One clip to render; everything random in it follows from `seed`."""

    path: Path
    category: str
    seed: tuple[int, ...]


def plan_clips(destination: Path, counts: Mapping[str, int], seed: int) -> Iterator[tuple[str, Clip]]:
    """Yields (split, clip) for `counts` clips per split, the categories in turn."""
    categories = list(CATEGORIES)
    for split_index, split in enumerate(SPLITS):
        for index in range(counts.get(split, 0)):
            number, category_index = divmod(index, len(categories))
            category = categories[category_index]
            path = destination / split / category / f"{number:05d}.mp4"
            yield split, Clip(path, category, (seed, split_index, category_index, number))


def render_data_set(
    photos: Path, destination: Path, counts: Mapping[str, int], seed: int = 0, processes: int = 1
) -> None:
    """Renders `counts` clips per split to `destination/{train,val,test}/<category>/NNNNN.mp4`.

    The photographs (JPEG or PNG files in `photos`) of the splits are disjoint. Clips that exist are kept, so a
    rendering that was interrupted goes on where it stopped. The frames follow from the names of the photographs, their
    pixels and `seed`; x264 does not always encode them to the same bytes.
    """
    splits = split_photos((path for path in photos.iterdir() if path.suffix.lower() in _PHOTO_SUFFIXES), seed)
    for split, count in counts.items():
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, must be one of {', '.join(SPLITS)}")
        if count and not splits[split]:
            raise ValueError(f"{photos} holds too few photographs to share among {', '.join(SPLITS)}")
    jobs = [(splits[split], clip) for split, clip in plan_clips(destination, counts, seed) if not clip.path.exists()]
    for folder in {clip.path.parent for _, clip in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(jobs), desc=destination.name, unit="clip") as progress:
        if processes == 1:
            for job in jobs:
                _render_job(job)
                progress.update()
            return
        # Spawned, not forked: the caller may hold threads.
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for _ in pool.imap_unordered(_render_job, jobs, chunksize=16):
                progress.update()


_PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}


def _render_job(job: tuple[Sequence[Path], Clip]) -> None:
    photos, clip = job
    rng = np.random.default_rng(clip.seed)
    photo, foreground = (load_photo(photos[index]) for index in rng.integers(0, len(photos), 2))
    frames = render(photo, clip.category, rng, foreground)
    preset = str(rng.choice(["ultrafast", "veryfast"]))
    write_clip(frames, clip.path, crf=int(rng.integers(18, 36)), preset=preset)


def load_photo(path: Path) -> Image.Image:
    """An RGB picture whose shorter side is at most 288 pixels."""
    with Image.open(path) as file:
        photo = file.convert("RGB")
    ratio = PHOTO_SHORT_SIDE / min(photo.size)
    if ratio < 1:
        photo = photo.resize((round(photo.width * ratio), round(photo.height * ratio)), Image.Resampling.BICUBIC)
    return photo


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    return list(SIZES)[rng.choice(len(SIZES), p=list(SIZES.values()))]


def _as_picture(photo: Image.Image | Frames) -> Image.Image:
    return photo.convert("RGB") if isinstance(photo, Image.Image) else Image.fromarray(photo)


def _shift(picture: Image.Image, x: float, y: float) -> Image.Image:
    """Moves a picture right and down by a fraction of a pixel."""
    size = (picture.width + 1, picture.height + 1)
    return picture.transform(size, Image.Transform.AFFINE, (1, 0, -x, 0, 1, -y), Image.Resampling.BILINEAR)
