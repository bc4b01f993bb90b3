"""Formats of media: recognised by their first bytes, never by content type or file name; costs read from headers."""

import math
import struct

from service.errors import CorruptMedia, UnsupportedMedia

IMAGES = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3", "AAC", "MP4", "Matroska")
CLIPS = ("MP4", "Matroska", "AVI", "GIF")
ACCEPTED = {
    "image": "JPEG, PNG, WebP, GIF, BMP or TIFF",
    "audio": "WAV, FLAC, OGG (Vorbis, Opus), MP3, M4A/AAC or WebM",
    "video": "MP4, MOV, WebM, MKV, AVI or GIF",
}
_FORMATS = {"image": IMAGES, "audio": SOUNDS, "video": CLIPS}
_PICTURE_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")

REDUCED_TO = 2  # decoders may reduce a picture to this many times the size that is wanted: the last resampling needs it
_BMP_HEADER_BYTES, _BMP_CORE_HEADER_BYTES = slice(14, 18), 12  # OS/2's header ends before a compression
_BMP_COMPRESSION, _BMP_RUN_LENGTHS = slice(30, 34), (1, 2)  # BI_RLE8, BI_RLE4

_SECONDS = 1e-4
# Seconds of a JPEG: per byte, per pixel, and per pixel that is left once blocks were reduced to fewer.
_JPEG_BYTE, _JPEG_PIXEL, _JPEG_PIXEL_LEFT = 8e-9, 0.4e-9, 6e-9
# Seconds of a PNG: per byte, per byte that it is inflated to, per pixel, which becomes RGB over white; and for a colour
# profile, of which Pillow inflates a megabyte at most.
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


def recognise(head: bytes) -> str | None:
    """Returns the name of the format that the first 64 bytes belong to, or None."""
    if head.startswith((b"RIFF", b"RF64")):
        return {b"WAVE": "WAV", b"WEBP": "WebP", b"AVI ": "AVI"}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return "HEIF" if head[8:12] in _PICTURE_BRANDS else "MP4"
    if head[4:8] in _QUICKTIME_ATOMS:
        return "MP4"
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"fLaC", "FLAC"),
        (b"OggS", "OGG"),
        (b"ID3", "MP3"),
        (b"\x1a\x45\xdf\xa3", "Matroska"),
        (b"%PDF", "PDF"),
    ):
        if head.startswith(magic):
            return name
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # an MPEG audio frame; layer 0 is ADTS, so AAC
        return "AAC" if head[1] & 0x06 == 0 else "MP3"
    return None


def accepted_format(data: bytes, media: str) -> str:
    """Returns the format of ``data`` if ``media`` (image, audio, video) accepts it. Raises ``UnsupportedMedia``."""
    found = recognise(data[:64])
    if found in _FORMATS[media]:
        return found
    what = f"this is {found}" if found else "the bytes are of no known format"
    raise UnsupportedMedia(f"{what}; {media} is accepted as {ACCEPTED[media]}")


def uses_run_lengths(data: bytes) -> bool:
    """Returns whether a BMP is run-length coded: Pillow unpacks those in Python, for 23 seconds a kilobyte."""
    if data[:2] != b"BM" or int.from_bytes(data[_BMP_HEADER_BYTES], "little") == _BMP_CORE_HEADER_BYTES:
        return False
    return int.from_bytes(data[_BMP_COMPRESSION], "little") in _BMP_RUN_LENGTHS


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height as a WebP's first chunk declares them (RFC 9649, section 2). Raises ``CorruptMedia``."""
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


def smallest_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Returns the (width, height) that decoders may reduce a picture of ``size`` to, by ``shorter_side``."""
    scale = min(1.0, REDUCED_TO * shorter_side / min(size))
    return math.ceil(size[0] * scale), math.ceil(size[1] * scale)


def picture_seconds(data: bytes, shorter_side: int | None = None) -> float:
    """Estimates how long a picture takes to decode at most; infinite where the header does not tell.

    Estimates exist for a JPEG whose short header states one scan of all components, after which decoders stop; a PNG
    that is not interlaced and is little but pixels; a WebP that is nothing else.
    """
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
        wanted = smallest_size(size, shorter_side)
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
