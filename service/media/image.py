"""A picture: bytes -> RGB, upright, no larger than it has to be."""

import math
import struct
import warnings
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from service.errors import CorruptMedia, MediaTooLarge
from service.media import Check, Limits, never
from service.media.formats import accepted_format

# Pillow's own limit is fixed for the process and lies above ours; the check below comes before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # a log line for each broken EXIF tag

# Everything that Pillow's decoders raise for bytes that are not what their header says.
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
_GAP = 2  # decoders may reduce a picture to twice the size that is wanted: the last, careful step has that much to go
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


class Picture(NamedTuple):
    """``image`` is Pillow's, in RGB, perhaps reduced; ``size`` (height, width) is the upright picture's own.

    Not an array: what is done next to a picture is Pillow's, too, and either way between the two is a copy.
    """

    image: Image.Image
    size: tuple[int, int]


def decode_image(data: bytes, limits: Limits, *, shorter_side: int | None = None, check: Check = never) -> Picture:
    """Decodes the first frame. With ``shorter_side``, a larger picture may come reduced, to no less than twice that.

    Raises ``UnsupportedMedia``, ``MediaTooLarge`` (before a pixel is decoded) or ``CorruptMedia`` (truncated, too).
    """
    format = accepted_format(data, "image")
    if format == "WebP":
        _check_size(webp_size(data), limits)  # Pillow allocates a WebP's canvas when it opens the file
    check()
    try:
        with Image.open(BytesIO(data), formats=[format]) as image:
            _check_size(image.size, limits)
            _check_coding(image, limits)
            own = image.size
            if shorter_side is not None:
                image.draft(None, at_least(own, shorter_side))  # None keeps the mode
            image.load()
            if format == "TIFF":
                own = image.size  # Pillow has turned it upright
            orientation = _orientation(image)
            upright = _rgb(_reduced(image, shorter_side))
            if orientation in _UPRIGHT:
                upright = upright.transpose(_UPRIGHT[orientation])
    except _DECODER_ERRORS as error:
        raise CorruptMedia(f"the {format} picture cannot be decoded; it may be truncated or damaged") from error
    width, height = own[::-1] if orientation in _SWAPPED else own
    return Picture(upright, (height, width))


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise MediaTooLarge(
            f"the picture is {width}x{height}, {width * height} pixels; MAX_PIXELS allows {limits.max_pixels}"
        )
    if width == 0 or height == 0:
        raise CorruptMedia("the picture has no pixels")


def _check_coding(image: Image.Image, limits: Limits) -> None:
    """What a small picture can cost by the way it is stored."""
    tags = getattr(image, "tag_v2", {})
    if 322 in tags and 323 in tags:  # width and length of a TIFF's tiles, each of which is decoded whole
        _check_size((int(tags[322]), int(tags[323])), limits)
    tile = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    if tile is not None and tile.codec_name == "bmp_rle" and image.width * image.height > _MAX_RLE_PIXELS:
        raise MediaTooLarge(f"a run-length coded BMP is decoded up to {_MAX_RLE_PIXELS} pixels")


def _orientation(image: Image.Image) -> int:
    """EXIF's; 1, upright, where EXIF is missing, damaged or states none of the eight."""
    try:
        stated = image.getexif().get(_ORIENTATION)
    except _DECODER_ERRORS:
        return 1
    return stated if stated in _UPRIGHT else 1


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height as a WebP's first chunk declares them (RFC 9649, section 2)."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise CorruptMedia("the WebP picture ends within its header")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk != b"VP8 ":
        raise CorruptMedia("the WebP picture does not begin with its size")
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def at_least(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """What decoders may reduce a picture of ``size`` to, (width, height) as it is stored, by ``shorter_side``."""
    scale = min(1.0, _GAP * shorter_side / min(size))
    return math.ceil(size[0] * scale), math.ceil(size[1] * scale)


def _reduced(image: Image.Image, shorter_side: int | None) -> Image.Image:
    """What draft mode does for JPEG, by box filter, for the modes in which an average means something."""
    factor = 1 if shorter_side is None else min(image.size) // (_GAP * shorter_side)
    if factor < 2 or image.mode not in ("L", "RGB", "CMYK", "YCbCr") or "transparency" in image.info:
        return image
    return image.reduce(factor)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB: 16 bits scaled rather than clipped, what is transparent over white."""
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
