"""How long a picture takes to decode, as far as its header tells."""

import math
import struct

from service.media.formats import recognise
from service.media.image import at_least, webp_size

_SECONDS = 1e-4
# What a JPEG takes: for each byte, each pixel, and each of the pixels that are left once blocks were reduced to fewer.
_JPEG_BYTE, _JPEG_PIXEL, _JPEG_PIXEL_LEFT = 8e-9, 0.4e-9, 6e-9
# What a PNG takes: for each byte, each byte that it is inflated to, and each pixel, to become RGB over white; and for a
# colour profile, of which Pillow inflates a megabyte at most.
_PNG_BYTE, _PNG_BYTE_INFLATED, _PNG_PIXEL, _PNG_PROFILE = 4e-9, 6e-9, 10e-9, 1e-3
_WEBP_BYTE, _WEBP_PIXEL = 60e-9, 12e-9
_HEADER_BYTES = 16 * 1024  # more comments and EXIF than this take longer than the picture: they are read in Python

_SEGMENT = struct.Struct(">BBHBHHB")  # 0xFF, marker, length; of a frame its precision, height, width and components
# Markers of a JPEG's header (ITU-T T.81, table B.1)
_FRAMES = {0xC0, 0xC1}  # sequential
_SCAN = 0xDA
_PASSED_OVER = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}  # tables, restart interval, applications' own, comment

_PNG_HEADER = struct.Struct(">8xI4sIIBB2xB4x")  # length, name, width, height, depth, colour type, interlacing
_CHUNK = struct.Struct(">I4s")  # length, name; a checksum follows the content
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types (PNG 3rd edition, table 8)
# Not text that is compressed, EXIF, or what animates
_PLAIN = {b"IDAT", b"iCCP", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"tEXt"}
_MAX_CHUNKS = 64  # each takes Python some 10 microseconds

_WEBP_PICTURES = {b"VP8 ", b"VP8L"}  # first chunks that nothing else follows (RFC 9649, section 2)
_WEBP_HEADER_BYTES = 30  # as far as where the size is


def decoding_seconds(data: bytes, shorter_side: int | None = None) -> float:
    """About how long ``decode_image`` takes at most, of a JPEG that by its short header has one scan of all components,
    after which decoders stop; of a PNG that is not interlaced and is little but pixels; of a WebP that is nothing else.
    Infinite of everything else: there is no telling before it is decoded."""
    format = recognise(data[:64])
    if format == "JPEG":
        return _jpeg_seconds(data, shorter_side)
    if format == "PNG":
        return _png_seconds(data)
    if format == "WebP" and data[12:16] in _WEBP_PICTURES and len(data) >= _WEBP_HEADER_BYTES:
        width, height = webp_size(data)
        return _SECONDS + len(data) * _WEBP_BYTE + width * height * _WEBP_PIXEL
    return math.inf


def _jpeg_seconds(data: bytes, shorter_side: int | None) -> float:
    size, components, at, end = (0, 0), 0, 2, min(len(data), _HEADER_BYTES) - _SEGMENT.size
    while at <= end:
        prefix, marker, length, first, height, width, count = _SEGMENT.unpack_from(data, at)
        if prefix != 0xFF:
            break
        if marker in _FRAMES:
            size, components = (width, height), count
        elif marker == _SCAN:
            alone = 0 not in size and first == components
            return _jpeg_pixels_seconds(len(data), size, shorter_side) if alone else math.inf
        elif marker not in _PASSED_OVER:
            break
        at += 2 + length
    return math.inf


def _jpeg_pixels_seconds(length: int, size: tuple[int, int], shorter_side: int | None) -> float:
    pixels = size[0] * size[1]
    left = float(pixels)
    if shorter_side is not None:
        wanted = at_least(size, shorter_side)
        times = min(size[0] // wanted[0], size[1] // wanted[1])
        left = pixels / next(fewer**2 for fewer in (8, 4, 2, 1) if fewer <= times)
    return _SECONDS + length * _JPEG_BYTE + pixels * _JPEG_PIXEL + left * _JPEG_PIXEL_LEFT


def _png_seconds(data: bytes) -> float:
    if len(data) < _PNG_HEADER.size:
        return math.inf
    length, name, width, height, depth, colour, interlaced = _PNG_HEADER.unpack_from(data)
    if (length, name) != (13, b"IHDR") or interlaced or colour not in _CHANNELS:
        return math.inf
    at, others, profiles = _PNG_HEADER.size, 0, 0
    for _ in range(_MAX_CHUNKS):
        if at + _CHUNK.size > len(data):
            break
        length, name = _CHUNK.unpack_from(data, at)
        if name == b"IEND":
            inflated: int = height * (1 + math.ceil(width * _CHANNELS[colour] * depth / 8))
            pixels: int = width * height
            whole = len(data) * _PNG_BYTE + inflated * _PNG_BYTE_INFLATED + pixels * _PNG_PIXEL
            return _SECONDS + whole + profiles * _PNG_PROFILE
        others += 0 if name == b"IDAT" else length
        profiles += name == b"iCCP"
        if name not in _PLAIN or others > _HEADER_BYTES:
            break
        at += _CHUNK.size + length + 4
    return math.inf
