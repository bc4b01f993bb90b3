"""Masks of a segmentation as answers: one per category in grey, all in one palette picture, or laid over the picture.

Arguments of all: ``mask`` (H, W) uint8 category indices and ``confidence`` (H, W) float32 their probabilities, as the
network sees the picture; ``region`` the part of them that is picture, the rest being filler; ``size`` (height, width)
of the answer.
"""

import base64
import struct
from io import BytesIO
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field
from zlib_ng import zlib_ng

from service.media.image import Region
from service.repository.card import ModelCard
from service.tasks.classify import SCORE_DIGITS, require_finite

_T = TypeVar("_T", bound=np.generic)


class Segment(BaseModel):
    label: str
    score: float
    mask: Annotated[str, Field(description="PNG in base64, at the picture's own size: 255 is this category, 0 is not")]


def segments(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.float32],
    region: Region,
    size: tuple[int, int],
    card: ModelCard,
    threshold: float,
    mask_threshold: float,
) -> list[Segment]:
    """One mask per category present, likeliest first.

    Categories scored below ``threshold`` are left out, as are pixels less certain than ``mask_threshold``.
    """
    mask, confidence = _cut(mask, region), _cut(confidence, region)
    require_finite(confidence)
    areas, sums = np.bincount(mask.ravel()), np.bincount(mask.ravel(), confidence.ravel())
    scores = {int(index): round(float(sums[index] / areas[index]), SCORE_DIGITS) for index in np.flatnonzero(areas)}
    scaled = np.asarray(_scaled(mask, size))
    certain = np.asarray(_scaled(confidence, size)) >= mask_threshold if mask_threshold > 0 else True
    return [
        Segment(
            label=card.categories[index],
            score=score,
            mask=base64.b64encode(_mask_png((scaled == index) & certain)).decode(),
        )
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
    """One PNG in the card's colours, the pixel value being the category's index."""
    require_finite(confidence)
    return _png(_coloured(_cut(mask, region), size, card), zlib_ng.Z_RLE)


def overlay_png(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.float32],
    region: Region,
    picture: Image.Image,
    card: ModelCard,
) -> bytes:
    """A PNG of the RGB ``picture`` with the mask's colours laid over it, half and half."""
    require_finite(confidence)
    coloured = _coloured(_cut(mask, region), (picture.height, picture.width), card).convert("RGB")
    return _png(Image.blend(picture, coloured, 0.5))


def _cut(plane: NDArray[_T], region: Region) -> NDArray[_T]:
    return plane[region.top : region.top + region.height, region.left : region.left + region.width]


def _scaled(mask: NDArray[np.generic], size: tuple[int, ...]) -> Image.Image:
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

    Pillow tries five filters on each row of a grey picture, which takes longer than all the rest. Masks are flat and
    need none: run-length matching alone makes them small, and zlib-ng does it in a quarter of zlib's time.
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
