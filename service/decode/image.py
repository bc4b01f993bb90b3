"""A picture: bytes -> uint8 (H, W, 3) in RGB, upright, no larger than it has to be."""

import math
import struct
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.decode import Check, Limits, never
from service.decode.sniff import accepted_format
from service.errors import CorruptMedia, MediaTooLarge

# Pillow's own limit is fixed for the process and lies above ours; the check below comes before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

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


class Picture(NamedTuple):
    """``pixels`` (H, W, 3) uint8 RGB, perhaps reduced; ``size`` (height, width) is the upright picture's own."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


def decode_image(data: bytes, limits: Limits, *, shorter_side: int | None = None, check: Check = never) -> Picture:
    """Decodes the first frame. With ``shorter_side``, a larger picture may come reduced, to no less than twice that.

    Raises ``UnsupportedMedia``, ``MediaTooLarge`` (before a pixel is decoded) or ``CorruptMedia`` (truncated, too).
    """
    format = accepted_format(data, "image")
    if format == "WebP":
        _check_size(_webp_size(data), limits)  # Pillow allocates a WebP's canvas when it opens the file
    try:
        with Image.open(BytesIO(data), formats=[format]) as image:
            _check_size(image.size, limits)
            check()
            own = image.size
            if shorter_side is not None:
                image.draft(None, _at_least(own, shorter_side))  # None keeps the mode
            image.load()
            turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap height and width
            upright = ImageOps.exif_transpose(_rgb(_reduced(image, shorter_side)))
    except _DECODER_ERRORS as error:
        raise CorruptMedia(f"the {format} picture cannot be decoded; it may be truncated or damaged") from error
    width, height = own[::-1] if turned else own
    return Picture(np.asarray(upright), (height, width))


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise MediaTooLarge(
            f"the picture is {width}x{height}, {width * height} pixels; MAX_PIXELS allows {limits.max_pixels}"
        )
    if width == 0 or height == 0:
        raise CorruptMedia("the picture has no pixels")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height as a WebP's first chunk declares them (RFC 9649, section 2)."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise CorruptMedia("the WebP picture ends within its header")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _at_least(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    scale = min(1.0, _GAP * shorter_side / min(size))
    return math.ceil(size[0] * scale), math.ceil(size[1] * scale)


def _reduced(image: Image.Image, shorter_side: int | None) -> Image.Image:
    """What draft mode does for JPEG, by box filter, for the modes in which an average means something."""
    factor = 1 if shorter_side is None else min(image.size) // (_GAP * shorter_side)
    if factor < 2 or image.mode not in ("L", "RGB", "CMYK", "YCbCr") or "transparency" in image.info:
        return image
    reduced = image.reduce(factor)
    reduced.info = image.info  # keeps the EXIF orientation
    return reduced


def _rgb(image: Image.Image) -> Image.Image:
    """RGB with the EXIF kept: 16 bits scaled rather than clipped, what is transparent over white."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, (255, 255, 255))
        rgb.paste(rgba, mask=rgba.getchannel("A"))
    elif image.mode.startswith("I") or image.mode == "F":
        rgb = Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if "exif" in image.info:
        rgb.info["exif"] = image.info["exif"]
    return rgb


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scales grey values of 16 bits, 32 bits or floating point, whichever range they use, to 0 to 255."""
    grey = np.asarray(values, np.float64)
    if not np.isfinite(grey).all():
        raise CorruptMedia("the picture holds values that are not finite")
    peak = float(grey.max(initial=0.0))
    white = next((white for white in (1.0, 255.0, 65535.0) if peak <= white), peak)
    if np.issubdtype(values.dtype, np.integer):
        white = max(white, 65535.0)
    return np.clip(np.rint(grey * (255.0 / white)), 0, 255).astype(np.uint8)
