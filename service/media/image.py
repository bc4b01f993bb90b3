"""Pictures: bytes -> RGB, upright, no larger than necessary -> a sample of the size that the card states."""

import math
import struct
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import CorruptMedia, DeadlineExceeded, MediaTooLarge
from service.media import NO_DEADLINE, DecodeCost, Limits
from service.media.formats import (
    REDUCED_TO,
    accepted_format,
    picture_seconds,
    smallest_size,
    uses_run_lengths,
    webp_size,
)
from service.repository.card import ImagePreprocess

# Pillow's own limit is fixed for the process and lies above ours; the check below comes before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # a log line for each broken EXIF tag

# Exceptions of Pillow's decoders for bytes that are not what their header says.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
)
_MAX_RLE_PIXELS = 1_000_000  # Pillow unpacks a run-length coded BMP in Python: 1 kB kept it busy for 23 seconds
_BLOCK = 1 << 20
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = {5, 6, 7, 8}  # these exchange height and width


_GREY = 114  # surrounds a padded picture; about the mean of photographs


@dataclass(frozen=True)
class ImageSpec:
    """The shorter side, in pixels, that is wanted of a picture; a larger one may come reduced to twice of it.

    None asks for every pixel.
    """

    shorter_side: int | None = None


class Picture(NamedTuple):
    """A decoded picture. ``image`` is Pillow's, RGB, perhaps reduced; ``size`` (height, width) is the upright file's.

    Pillow's image and not an array, as the next step is Pillow's too and each conversion is a copy.
    """

    image: Image.Image
    size: tuple[int, int]


class Region(NamedTuple):
    """The part of a padded sample that is picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


class ImageSample(NamedTuple):
    sample: NDArray[np.uint8]  # (H, W, 3)
    region: Region


def decode_cost(data: bytes, spec: ImageSpec, limits: Limits) -> DecodeCost:
    return DecodeCost(picture_seconds(data, spec.shorter_side), limits)


def decode(data: bytes, spec: ImageSpec, limits: Limits, deadline: float = NO_DEADLINE) -> Iterator[Picture]:
    """Yields the first frame as one ``Picture``.

    Raises ``UnsupportedMedia``, ``MediaTooLarge`` (before a pixel is decoded) or ``CorruptMedia`` (truncated, too).
    """
    format = accepted_format(data, "image")
    if format == "WebP":
        _check_size(webp_size(data), limits)  # Pillow allocates a WebP's canvas when it opens the file
    if time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline passed before the picture was decoded")
    try:
        with Image.open(BytesIO(data), formats=[format]) as image:
            _check_size(image.size, limits)
            _check_tiles(image, limits)
            if format == "BMP" and uses_run_lengths(data) and image.width * image.height > _MAX_RLE_PIXELS:
                raise MediaTooLarge(f"a run-length coded BMP is decoded up to {_MAX_RLE_PIXELS} pixels")
            own = image.size
            if spec.shorter_side is not None:
                image.draft(None, smallest_size(own, spec.shorter_side))  # None keeps the mode
            image.load()
            if format == "TIFF":
                own = image.size  # Pillow has turned it upright
            orientation = _orientation(image)
            upright = _rgb(_reduced(image, spec.shorter_side))
            if orientation in _UPRIGHT:
                upright = upright.transpose(_UPRIGHT[orientation])
    except _DECODER_ERRORS as error:
        raise CorruptMedia(f"the {format} picture cannot be decoded; it may be truncated or damaged") from error
    width, height = own[::-1] if orientation in _SWAPPED else own
    yield Picture(upright, (height, width))


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise MediaTooLarge(
            f"the picture is {width}x{height}, {width * height} pixels; MAX_PIXELS allows {limits.max_pixels}"
        )
    if width == 0 or height == 0:
        raise CorruptMedia("the picture has no pixels")


def _check_tiles(image: Image.Image, limits: Limits) -> None:
    """Raises ``MediaTooLarge`` for a TIFF whose tiles, each of which is decoded whole, are larger than a picture."""
    tags = getattr(image, "tag_v2", {})
    if 322 in tags and 323 in tags:  # TileWidth, TileLength
        _check_size((int(tags[322]), int(tags[323])), limits)


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation; 1, upright, where EXIF is missing, damaged or states none of the eight."""
    if image.format == "JPEG" and "exif" not in image.info and "xmp" not in image.info:
        return 1
    try:
        stated = image.getexif().get(_ORIENTATION)
    except _DECODER_ERRORS:
        return 1
    return stated if stated in _UPRIGHT else 1


def _reduced(image: Image.Image, shorter_side: int | None) -> Image.Image:
    """Reduces as JPEG's draft mode does, by box filter, in the modes in which an average means something."""
    factor = 1 if shorter_side is None else min(image.size) // (REDUCED_TO * shorter_side)
    if factor < 2 or image.mode not in ("L", "RGB", "CMYK", "YCbCr") or "transparency" in image.info:
        return image
    return image.reduce(factor)


def _rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB: scales 16 bits rather than clipping them, and lays transparency over white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = _eight_bits(values)
        if isinstance(image.info.get("transparency"), int):
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, (255, 255, 255))
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies even then


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scales grey values of 16 bits, 32 bits or floating point, whichever range they use, to 0 to 255."""
    peak = float(values.max(initial=0))
    if not math.isfinite(peak) or not np.isfinite(values).all():
        raise CorruptMedia("the picture holds values that are not finite")
    white = next((white for white in (1.0, 255.0, 65535.0) if peak <= white), peak)
    if np.issubdtype(values.dtype, np.integer):
        white = max(white, 65535.0)
    grey = np.empty(values.size, np.uint8)
    for start in range(0, values.size, _BLOCK):  # in blocks: the whole picture as float64 is eight times its size
        block = values.reshape(-1)[start : start + _BLOCK].astype(np.float64)
        grey[start : start + _BLOCK] = np.clip(np.rint(block * (255.0 / white)), 0, 255)
    return grey.reshape(values.shape)


def image_sample(picture: Image.Image, spec: ImagePreprocess) -> ImageSample:
    """RGB of any size -> one of ``spec.sizes``, antialiased."""
    if spec.resize == "crop":
        assert spec.shorter_side is not None  # the card checked it
        return _cropped(picture, spec.sizes[0], spec.shorter_side)
    return _padded(picture, _size_for(picture, spec.sizes))


def decoded_shorter_side(spec: ImagePreprocess) -> int:
    """The shorter side that a picture must have after decoding, so that none is enlarged for ``image_sample``."""
    return spec.shorter_side or max(min(size) for size in spec.sizes)


def _cropped(picture: Image.Image, size: tuple[int, int], shorter_side: int) -> ImageSample:
    """Scales the shorter side to ``shorter_side`` and cuts out the middle, as one resampling of a box of the source."""
    scale = min(picture.size) / shorter_side
    height, width = size
    # Rounding can put the box a hair outside of the picture, which Pillow refuses.
    left, top = max(0.0, (picture.width - width * scale) / 2), max(0.0, (picture.height - height * scale) / 2)
    box = (left, top, min(left + width * scale, picture.width), min(top + height * scale, picture.height))
    sample = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return ImageSample(np.asarray(sample), Region(0, 0, height, width))


def _size_for(picture: Image.Image, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The size that the picture fills best."""

    def filled(size: tuple[int, int]) -> float:
        height, width = size
        aspect = (picture.width / picture.height) / (width / height)
        return min(aspect, 1 / aspect)

    return max(sizes, key=filled)


def _padded(picture: Image.Image, size: tuple[int, int]) -> ImageSample:
    """Scales the whole picture into ``size`` and centres it on grey."""
    scale = min(size[0] / picture.height, size[1] / picture.width)
    height, width = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
    region = Region((size[0] - height) // 2, (size[1] - width) // 2, height, width)
    sample = np.full((*size, 3), _GREY, np.uint8)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    sample[region.top : region.top + height, region.left : region.left + width] = np.asarray(resized)
    return ImageSample(sample, region)
