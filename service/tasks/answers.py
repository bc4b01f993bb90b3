"""Model outputs -> answers: labels with scores, masks at the picture's own size, timelines."""

import base64
import math
import struct
from io import BytesIO
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from zlib_ng import zlib_ng

from service.errors import InternalError
from service.media.samples import Region, Windows
from service.repository.card import ModelCard
from service.schemas import Prediction, Segment, Timeline, Window

_SCORE_DIGITS = 6
_T = TypeVar("_T", bound=np.generic)


def predictions(probabilities: NDArray[np.float32], categories: tuple[str, ...], top_k: int) -> list[Prediction]:
    """(C,) -> the ``top_k`` likeliest categories, best first."""
    _require_finite(probabilities)
    best = (-probabilities).argsort(kind="stable")[:top_k]
    return [
        {"label": categories[index], "score": round(score, _SCORE_DIGITS)}
        for index, score in zip(best.tolist(), probabilities[best].tolist(), strict=True)
    ]


def whole(probabilities: NDArray[np.float32], windows: Windows) -> NDArray[np.float32]:
    """(windows, C) -> (C,), the mean by the windows' weights."""
    if len(probabilities) == 1:  # most media are short: it is not worth a mean
        return np.asarray(probabilities[0], np.float32)
    weights = windows.weights / windows.weights.sum()
    mean: NDArray[np.float64] = weights @ probabilities
    return mean.astype(np.float32)


def timeline(probabilities: NDArray[np.float32], windows: Windows, categories: tuple[str, ...], top_k: int) -> Timeline:
    """(windows, C) -> the whole's predictions, and each window's."""
    parts = [
        Window(start_seconds=start, end_seconds=end, predictions=predictions(row, categories, top_k))
        for (start, end), row in zip(windows.spans, probabilities, strict=True)
    ]
    return Timeline(predictions=predictions(whole(probabilities, windows), categories, top_k), windows=parts)


def segments(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.float32],
    region: Region,
    size: tuple[int, int],
    card: ModelCard,
    threshold: float,
) -> list[Segment]:
    """(H, W) category indices with their probabilities -> one mask per category present, likeliest first.

    ``region`` is the part of the sample that is picture, ``size`` the (height, width) to which masks are scaled.
    """
    mask, confidence = _cut(mask, region), _cut(confidence, region)
    _require_finite(confidence)
    areas, sums = np.bincount(mask.ravel()), np.bincount(mask.ravel(), confidence.ravel())
    scores = {int(index): _score(sums[index] / areas[index]) for index in np.flatnonzero(areas)}
    scaled = np.asarray(_scaled(mask, size))
    return [
        Segment(label=card.categories[index], score=score, mask=base64.b64encode(_mask_png(scaled == index)).decode())
        for index, score in sorted(scores.items(), key=lambda item: -item[1])
        if score >= threshold
    ]


def palette_png(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.float32],
    region: Region,
    size: tuple[int, int],
    card: ModelCard,
) -> bytes:
    """(H, W) -> one PNG of ``size`` in the card's colours, the pixel value being the category's index."""
    _require_finite(confidence)
    return _png(_coloured(_cut(mask, region), size, card), zlib_ng.Z_RLE)


def overlay_png(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.float32],
    region: Region,
    picture: Image.Image,
    card: ModelCard,
) -> bytes:
    """(H, W) -> a PNG of the RGB ``picture`` with the mask's colours laid over it, half and half."""
    _require_finite(confidence)
    coloured = _coloured(_cut(mask, region), (picture.height, picture.width), card).convert("RGB")
    return _png(Image.blend(picture, coloured, 0.5))


def _cut(plane: NDArray[_T], region: Region) -> NDArray[_T]:
    return plane[region.top : region.top + region.height, region.left : region.left + region.width]


def _scaled(mask: NDArray[np.uint8], size: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)


def _coloured(mask: NDArray[np.uint8], size: tuple[int, ...], card: ModelCard) -> Image.Image:
    assert card.palette is not None  # the card checked it
    image = _scaled(mask, size)
    image.putpalette([channel for colour in card.palette for channel in colour])
    return image


def _png(image: Image.Image, strategy: int = zlib_ng.Z_DEFAULT_STRATEGY) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=strategy)  # five times as fast as level 6
    return buffer.getvalue()


def _mask_png(present: NDArray[np.bool_]) -> bytes:
    """(H, W) -> a grey PNG (ISO/IEC 15948), 255 where ``present``.

    Pillow tries five filters on each row of a grey picture, which takes longer than all the rest. Masks need none: they
    are flat, and to look for nothing but runs makes them small; zlib-ng does it in a quarter of zlib's time.
    """
    height, width = present.shape
    rows = np.zeros((height, width + 1), np.uint8)  # the first column says: no filter
    np.multiply(present, 255, out=rows[:, 1:], dtype=np.uint8)
    packer = zlib_ng.compressobj(1, strategy=zlib_ng.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # eight bits, grey, not interlaced
    chunks = {b"IHDR": header, b"IDAT": packer.compress(rows.data) + packer.flush(), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib_ng.crc32(name + data))
        for name, data in chunks.items()
    )


def _score(value: np.floating) -> float:
    return round(float(value), _SCORE_DIGITS)


def _require_finite(values: NDArray[np.float32]) -> None:
    if not math.isfinite(float(values.sum())):
        raise InternalError("the model's output is not finite")
