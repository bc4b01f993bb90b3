"""Renderer of clips of ten kinds of camera motion: a virtual camera moves over a photograph.

The categories name what the *camera* does, as in film making, so the content of the picture does the opposite (pan
left: content moves right; roll clockwise: content turns counter-clockwise).

    category -> poses of the camera at the times of frames -> layers: the part of a photograph that it sees, objects
             cut out of another -> shots -> motion blur, exposure, noise, black bars -> frames (T,H,W,3) uint8

``camera_poses`` plans the motion; ``camera_clips`` makes a data set.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from models.camera_poses import (
    CATEGORIES,
    SCALE,
    SECONDS,
    TREMOR_HERTZ,
    Floats,
    plan_poses,
    projections,
    sample_times,
    similarities,
    wobble,
)

Frames = NDArray[np.uint8]

FRAME_RATE_HZ = 8
SIZES = {
    (96, 128): 0.25,
    (80, 144): 0.35,
    (112, 112): 0.1,
    (128, 96): 0.1,
    (144, 80): 0.2,
}  # (H,W) -> probability
FOOTAGE_RATES_HZ = (24, 25, 30, 50, 60)


@dataclass(frozen=True)
class Layer:
    """A picture, and for each shot a homography (K,3,3) from a frame's pixels to its own."""

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
    # When a camera turns, the sides of the picture move faster than its middle; when it travels, they do not.
    focal_px = max(size) * (math.exp(rng.uniform(0, math.log(3))) if rng.random() < 0.5 else 1e6)
    layers = [place(_as_picture(photo), poses, focal_px, size, rng)]
    if foreground is not None and rng.random() < 0.5:
        layers += cut_objects(_as_picture(foreground), poses, focal_px, size, rng)
    # Averaging hides the difference between the two filters, which is half the time of a blurred clip.
    resample = Image.Resampling.BILINEAR if blurred else Image.Resampling.BICUBIC
    return np.stack(list(develop(shoot(layers, size, resample), times.shape, size, rng)))


def place(photo: Image.Image, poses: Floats, focal_px: float, size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """Chooses the part of the photograph that the camera moves over, and cuts it out, about a pixel per frame pixel.

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
    """One to four objects that together cover up to a third of the frame: fixed to the camera, part of the scene or
    nearer than it, at rest or in motion of their own, entering and leaving the frame."""
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
        path = begin + (end - begin) * progress[:, None]
        if rng.random() < 0.3:
            sway = 0.04 * min(size) * rng.random(2)
            path += sway * np.stack([wobble(progress * SECONDS, TREMOR_HERTZ, rng) for _ in range(2)], axis=1)
        growth = enlargement * np.exp((progress - 0.5) * rng.uniform(-0.4, 0.4) * (rng.random() < 0.3))
        # Travel moves near objects more than far ones; a roll turns both alike.
        seen = projections(poses * [nearness, nearness, nearness, min(nearness, 1)], focal_px, size)
        own = similarities(1 / growth[:, None], object_size / 2) @ similarities(np.ones((len(path), 2)), -path)
        yield Layer(picture, own @ seen)


def soft_ellipse(width: int, height: int, softness: float) -> Image.Image:
    """An elliptic mask: 255 inside, falling to 0 over the share `softness` of the radius."""
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
    """The rows and columns inside of black bars, which one clip in five has.

    The widest bars are those of an upright video in a wide frame, a third of the frame on either side.
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


def draw_size(sizes: Mapping[tuple[int, int], float], rng: np.random.Generator) -> tuple[int, int]:
    return list(sizes)[rng.choice(len(sizes), p=list(sizes.values()))]


def _as_picture(photo: Image.Image | Frames) -> Image.Image:
    return photo.convert("RGB") if isinstance(photo, Image.Image) else Image.fromarray(photo)
