"""Renders clips of ten kinds of camera motion: a virtual camera moves over a photograph.

The categories have the film maker's meaning: they name what the *camera* does, so the content of the picture does
the opposite (pan left: content moves right; roll clockwise: content turns counter-clockwise).

    category -> poses of the camera at the times of frames -> layers: the part of a photograph that it sees, objects
             cut out of another -> shots -> motion blur, exposure, noise, black bars -> frames (T,H,W,3) uint8 -> MP4
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
SECONDS = 2
SIZES = {(96, 128): 0.25, (80, 144): 0.35, (112, 112): 0.1, (128, 96): 0.1, (144, 80): 0.2}  # (H,W) px: how often
FOOTAGE_RATES_HZ = (24, 25, 30, 50, 60)
FOOTAGE_SIZES = {(360, 640): 0.5, (640, 360): 0.3, (360, 480): 0.2}
PHOTO_SHORT_SIDE = 288  # pixels; larger photographs are reduced to it
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}  # of the photographs

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

# Within two seconds, log-uniform: a share of the frame's width or height, a log scale, radians.
RANGES = {
    X: (0.12, 0.90),
    Y: (0.12, 0.90),
    SCALE: (math.log(1.15), math.log(2.0)),
    ANGLE: (math.radians(8), math.radians(60)),
}
DISTRACTOR = 0.2  # of the main motion at the edge of the frame, at most, for each other axis
# Root mean square as a share of the frame's shorter side; of a still and a moving camera, at most.
STATIC_TREMOR = 0.006
MOVING_TREMOR = 0.018
SHAKE = (0.02, 0.075)
TREMOR_HERTZ, SHAKE_HERTZ = (0.4, 4.0), (0.8, 5.0)


@dataclass(frozen=True)
class Layer:
    """A picture, and for each shot the matrix (K,3,3) that takes a frame's pixels to its own, projectively."""

    picture: Image.Image
    matrices: Floats


def render(
    photo: Image.Image | Frames,
    category: str,
    rng: np.random.Generator,
    foreground: Image.Image | Frames | None = None,
    size: tuple[int, int] | None = None,
    filmed_hz: int | None = None,
) -> Frames:
    """Returns two seconds of `category` as (T,H,W,3) uint8: all frames of footage filmed at `filmed_hz` frames/s, or
    by default the 16 that are on the screen at multiples of 1/8 s, of footage at any rate.

    `photo` is RGB, any size; `foreground` another picture to cut objects from, in half of the clips; `size` is (H,W)
    in pixels, random by default. Raises ValueError for an unknown category.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category is {category!r}, must be one of {', '.join(CATEGORIES)}")
    size = size or draw_size(SIZES, rng)
    frame_rate_hz = filmed_hz or FRAME_RATE_HZ
    filmed_hz = filmed_hz or int(rng.choice([FRAME_RATE_HZ, 12, 15, *FOOTAGE_RATES_HZ]))
    blurred = rng.random() < 0.3
    times = sample_times(filmed_hz, frame_rate_hz, sub_frames=4 if blurred else 1, shutter=rng.uniform(0.3, 1))
    poses = plan_poses(category, times.ravel(), size, rng)
    # A camera that turns sees the sides of the picture move faster than its middle; one that travels does not.
    focal_px = max(size) * (math.exp(rng.uniform(0, math.log(3))) if rng.random() < 0.5 else 1e6)
    layers = [place(_as_picture(photo), poses, focal_px, size, rng)]
    if foreground is not None and rng.random() < 0.5:
        layers += cut_objects(_as_picture(foreground), poses, focal_px, size, rng)
    # Averaging hides the difference between the two filters, which is half the time of a blurred clip.
    resample = Image.Resampling.BILINEAR if blurred else Image.Resampling.BICUBIC
    return np.stack(list(develop(shoot(layers, size, resample), times.shape, size, rng)))


def sample_times(filmed_hz: float, frame_rate_hz: float, sub_frames: int, shutter: float) -> Floats:
    """Times in seconds, (T,S), when a camera of `filmed_hz` took the frames that a screen shows at multiples of
    1 / `frame_rate_hz`; its shutter is open for the share `shutter` of a frame's time."""
    shown = np.arange(SECONDS * frame_rate_hz)[:, None] / frame_rate_hz
    taken = np.floor(shown * filmed_hz + 1e-6) / filmed_hz
    return np.asarray(taken + shutter / filmed_hz * np.arange(sub_frames) / sub_frames)


def plan_poses(category: str, times: Floats, size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Poses (K,4) relative to the middle of the camera's way, for K times in seconds."""
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
        tremor_px = min(MOVING_TREMOR * min(size), 0.12 * main_px) * rng.random() * (rng.random() < 0.6)
    elif category == "shake":
        tremor_px = min(size) * rng.uniform(*SHAKE)
    else:
        tremor_px = STATIC_TREMOR * min(size) * rng.random() * (rng.random() < 0.6)
    hertz = SHAKE_HERTZ if category == "shake" else TREMOR_HERTZ
    # Hands move the picture sideways more than they turn it, and never change its scale.
    strengths = tremor_px * np.array([rng.uniform(0.6, 1), rng.uniform(0.6, 1), 0, rng.uniform(0, 0.4)]) / edge_px
    poses += np.stack([wobble(times, hertz, rng) for _ in range(4)], axis=1) * strengths
    centres = poses[:, : Y + 1]  # a view
    centres -= (centres.min(axis=0) + centres.max(axis=0)) / 2
    return poses


def ease(times: Floats, rng: np.random.Generator) -> Floats:
    """Progress of a motion from 0 to 1 at `times` (K,): steady, accelerating, slowing down, late or stopping early."""
    begin = rng.uniform(0, 0.4) if rng.random() < 0.3 else 0.0
    end = rng.uniform(0.6, 1) if rng.random() < 0.3 else 1.0
    progress = np.clip((times / times[-1] - begin) / (end - begin), 0, 1)
    power = rng.uniform(1.3, 2.2)
    curves = [progress, progress**2 * (3 - 2 * progress), progress**power, 1 - (1 - progress) ** power]
    return np.asarray(curves[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])])


def wobble(times: Floats, hertz: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Irregular motion about 0 with root mean square 1 at `times` (K,): a sum of waves within the band `hertz`."""
    frequencies, phases = rng.uniform(*hertz, 5), rng.uniform(0, 2 * math.pi, 5)
    waves = np.sin(2 * math.pi * np.outer(times, frequencies) + phases) @ rng.uniform(0.4, 1, 5)
    waves -= waves.mean()
    return np.asarray(waves / np.sqrt(np.mean(waves**2)))


def place(photo: Image.Image, poses: Floats, focal_px: float, size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """Chooses where in the photograph the motion happens, and cuts that part out, about a pixel per frame pixel.

    The motion stays inside the photograph where it fits with 77 of its pixels to the frame's shorter side; beyond its
    border it is mirrored.
    """
    matrices = projections(poses, focal_px, size, start_angle=math.radians(rng.normal(0, 2)))
    height, width = size
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], dtype=float)
    reached = np.einsum("kij,cj->kci", matrices, corners).reshape(-1, 3)
    reached = reached[:, :2] / reached[:, 2:]
    low, high = reached.min(axis=0) - 2, reached.max(axis=0) + 2  # 2: the reach of the bicubic filter
    extent = high - low
    largest = float((np.array(photo.size) / extent).min())
    scale = max(77 / min(size), largest * rng.uniform(0.55, 1))
    room = np.array(photo.size) - scale * extent
    corner = np.where(room > 0, rng.uniform(0, 1, 2) * room, room / 2)

    # The middle of the scales seen becomes 1, so that no frame is far from the pixels that it samples.
    scales = np.exp(poses[:, SCALE])
    middle = float(np.sqrt(scales.min() * scales.max()))
    part = cut(photo, corner, scale * extent, np.ceil(extent / middle).astype(int))
    return Layer(
        grade(part, rng), similarities(np.array(part.size) / extent) @ similarities(np.ones(2), -low) @ matrices
    )


def projections(poses: Floats, focal_px: float, size: tuple[int, int], start_angle: float = 0.0) -> Floats:
    """Matrices (K,3,3) from frame pixels to a plane with one unit per pixel of a frame at rest, its centre at 0.

    The camera does not travel, it turns to what lies at (x, y); Hartley & Zisserman 2004, section 8.4.2.
    """
    height, width = size
    yaw = np.arctan(poses[:, X] / focal_px)
    pitch = np.arctan(poses[:, Y] / focal_px * np.cos(yaw))
    focal = similarities(np.full(2, focal_px))
    turned = focal @ _rotations(yaw, 2, 0) @ _rotations(pitch, 2, 1) @ np.linalg.inv(focal)
    zoomed = similarities(np.exp(poses[:, SCALE, None]))
    rolled = _rotations(poses[:, ANGLE], 0, 1)
    middle = similarities(np.ones(2), -np.array([width / 2, height / 2]))
    return np.asarray(_rotations(np.array([start_angle]), 0, 1) @ turned @ zoomed @ rolled @ middle)


def similarities(scales: Floats, shifts: Floats | float = 0.0) -> Floats:
    """Matrices (...,3,3) that multiply x and y by `scales` (...,2) or (...,1), then add `shifts` (...,2)."""
    matrices = np.zeros((*scales.shape[:-1], 3, 3)) + np.eye(3)
    matrices[..., [0, 1], [0, 1]] = scales
    matrices[..., :2, 2] = shifts
    return matrices


def _rotations(angles: Floats, from_axis: int, to_axis: int) -> Floats:
    """Matrices (K,3,3) that turn from one axis towards another."""
    matrices = np.zeros((len(angles), 3, 3)) + np.eye(3)
    matrices[:, from_axis, from_axis] = matrices[:, to_axis, to_axis] = np.cos(angles)
    matrices[:, to_axis, from_axis] = np.sin(angles)
    matrices[:, from_axis, to_axis] = -np.sin(angles)
    return matrices


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
        picture = enhancer(picture).enhance(rng.uniform(0.6, 1.35))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return picture


def cut_objects(
    photo: Image.Image, poses: Floats, focal_px: float, size: tuple[int, int], rng: np.random.Generator
) -> Iterator[Layer]:
    """One to four objects that together cover up to a third of the frame: held by the camera, part of the scene or
    nearer than it, at rest or on their own way, coming and going."""
    height, width = size
    count = int(rng.integers(1, 5))
    largest = rng.choice([0.12, 0.33], p=[0.6, 0.4])
    progress = np.linspace(0, 1, len(poses))
    enlargement = max(1.0, min(size) / 144)  # what the photograph lacks in pixels
    for _ in range(count):
        area = height * width * rng.uniform(0.03, largest) / count / enlargement**2
        aspect = math.exp(rng.uniform(-0.7, 0.7))
        # The area of an ellipse is pi/4 of its box.
        box = np.sqrt(area * 4 / math.pi * np.array([aspect, 1 / aspect]))
        object_size = np.clip(box, 4, photo.size).astype(int)
        x, y = rng.integers(0, np.array(photo.size) - object_size + 1)
        picture = photo.crop((x, y, x + object_size[0], y + object_size[1]))
        picture.putalpha(soft_ellipse(int(object_size[0]), int(object_size[1]), softness=rng.uniform(0.05, 0.35)))

        nearness = rng.choice([0, 1, rng.uniform(1, 2)], p=[0.25, 0.45, 0.3])
        begin, end = rng.uniform(-0.6, 0.6, (2, 2)) * (width, height)
        if nearness and rng.random() < 0.3:
            end = begin
        way = begin + (end - begin) * progress[:, None]
        if rng.random() < 0.3:
            sway = 0.04 * min(size) * rng.random(2)
            way += sway * np.stack([wobble(progress * SECONDS, TREMOR_HERTZ, rng) for _ in range(2)], axis=1)
        growth = enlargement * np.exp((progress - 0.5) * rng.uniform(-0.4, 0.4) * (rng.random() < 0.3))
        # Travelling moves what is near more than what is far; rolling turns both the same.
        seen = projections(poses * [nearness, nearness, nearness, min(nearness, 1)], focal_px, size)
        own = similarities(1 / growth[:, None], object_size / 2) @ similarities(np.ones((len(way), 2)), -way)
        yield Layer(picture, own @ seen)


def soft_ellipse(width: int, height: int, softness: float) -> Image.Image:
    """A mask that fills its box: 255 inside, falling to 0 over the share `softness` of the radius."""
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    opacity = np.clip((1 - np.hypot(x, y)) / softness, 0, 1)
    return Image.fromarray((255 * opacity).astype(np.uint8))


def shoot(layers: Sequence[Layer], size: tuple[int, int], resample: Image.Resampling) -> Iterator[Frames]:
    """Yields the shots (H,W,3) uint8, later layers before earlier ones."""
    height, width = size
    for matrices in zip(*(layer.matrices for layer in layers), strict=True):
        shot = Image.new("RGB", (width, height))
        for layer, matrix in zip(layers, matrices, strict=True):
            coefficients = (matrix / matrix[2, 2]).ravel()[:8].tolist()
            seen = layer.picture.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, resample)
            shot.paste(seen, mask=seen if seen.mode == "RGBA" else None)
        yield np.asarray(shot)


def develop(
    shots: Iterator[Frames], shape: tuple[int, ...], size: tuple[int, int], rng: np.random.Generator
) -> Iterator[Frames]:
    """`shape` = (T,S) shots (H,W,3) uint8 -> T frames: motion blur, drifting and flickering exposure, noise, bars."""
    n_frames, sub_frames = shape
    progress = np.linspace(0, 1, n_frames)
    drift = rng.uniform(-0.2, 0.2) if rng.random() < 0.3 else 0.0
    flicker = rng.uniform(0, 0.06) if rng.random() < 0.15 else 0.0
    gains = 1 + drift * progress + flicker * wobble(progress * SECONDS, (1.0, 12.0), rng)
    noise = rng.uniform(0.5, 7) if rng.random() < 0.6 else 0.0
    picture = draw_bars(size, rng)
    black = int(rng.integers(0, 17))
    for gain in gains:
        frame = np.stack([next(shots) for _ in range(sub_frames)]).mean(axis=0, dtype=np.float32) * np.float32(gain)
        if noise:
            frame += rng.standard_normal((*size, 1), dtype=np.float32) * np.float32(noise)
        result = np.full(frame.shape, black, np.uint8)
        result[picture] = (frame[picture].clip(0, 255) + np.float32(0.5)).astype(np.uint8)
        yield result


def draw_bars(size: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
    """The rows and columns that black bars leave of the picture: all in four clips of five.

    An upright video in a wide frame has the widest, a third of the frame on either side.
    """
    height, width = size
    rows, columns = slice(None), slice(None)
    if rng.random() < 0.2:
        if rng.random() < 0.6:
            bar = round(height * rng.uniform(0.04, 0.17))
            rows = slice(bar, height - bar)
        else:
            bar = round(width * rng.uniform(0.04, 0.34 if width > height else 0.17))
            columns = slice(bar, width - bar)
    return rows, columns


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


def list_photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def split_photos(photos: Iterable[Path], seed: int) -> dict[str, list[Path]]:
    """Shares the photographs out among train, val and test, none in two; the same for the same names and seed."""
    ordered = sorted(photos)
    shuffled = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    ends = [round(share * len(shuffled)) for share in np.cumsum(list(SHARES.values()))]
    return {split: shuffled[begin:end] for split, begin, end in zip(SHARES, [0, *ends[:-1]], ends, strict=True)}


@dataclass(frozen=True)
class Split:
    """How many clips to render from which photographs; as filmed: larger, and with all of a camera's frames."""

    photos: Sequence[Path]
    count: int
    as_filmed: bool = False


@dataclass(frozen=True)
class Clip:
    """One clip to render; everything random in it follows from `seed`."""

    path: Path
    category: str
    seed: tuple[int, ...]


def plan_clips(destination: Path, splits: Mapping[str, Split], seed: int) -> Iterator[tuple[Split, Clip]]:
    """Yields each split's clips, the categories in turn."""
    categories = list(CATEGORIES)
    for split_index, (name, split) in enumerate(splits.items()):
        for index in range(split.count):
            number, category_index = divmod(index, len(categories))
            category = categories[category_index]
            path = destination / name / category / f"{number:05d}.mp4"
            yield split, Clip(path, category, (seed, split_index, category_index, number))


def render_data_set(splits: Mapping[str, Split], destination: Path, seed: int = 0, processes: int = 1) -> None:
    """Renders each split's clips to `destination/<split>/<category>/NNNNN.mp4`.

    Clips that exist are kept, so a rendering that was interrupted goes on where it stopped. The frames follow from the
    photographs, the order of the splits and `seed`; x264 does not always encode them to the same bytes. Raises
    ValueError for a split that has clips to render but no photographs.
    """
    for name, split in splits.items():
        if split.count and not split.photos:
            raise ValueError(f"{name} has no photographs to render {split.count} clips from")
    jobs = [(split, clip) for split, clip in plan_clips(destination, splits, seed) if not clip.path.exists()]
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


def _render_job(job: tuple[Split, Clip]) -> None:
    split, clip = job
    rng = np.random.default_rng(clip.seed)
    photo, foreground = (load_photo(split.photos[index]) for index in rng.integers(0, len(split.photos), 2))
    filmed_hz = int(rng.choice(FOOTAGE_RATES_HZ)) if split.as_filmed else None
    size = draw_size(FOOTAGE_SIZES if split.as_filmed else SIZES, rng)
    frames = render(photo, clip.category, rng, foreground, size, filmed_hz)
    preset = str(rng.choice(["ultrafast", "veryfast"]))
    write_clip(frames, clip.path, filmed_hz or FRAME_RATE_HZ, crf=int(rng.integers(18, 37)), preset=preset)


def load_photo(path: Path) -> Image.Image:
    """An RGB picture whose shorter side is at most 288 pixels."""
    with Image.open(path) as file:
        photo = file.convert("RGB")
    ratio = PHOTO_SHORT_SIDE / min(photo.size)
    if ratio < 1:
        photo = photo.resize((round(photo.width * ratio), round(photo.height * ratio)), Image.Resampling.BICUBIC)
    return photo


def draw_size(sizes: Mapping[tuple[int, int], float], rng: np.random.Generator) -> tuple[int, int]:
    return list(sizes)[rng.choice(len(sizes), p=list(sizes.values()))]


def _as_picture(photo: Image.Image | Frames) -> Image.Image:
    return photo.convert("RGB") if isinstance(photo, Image.Image) else Image.fromarray(photo)
