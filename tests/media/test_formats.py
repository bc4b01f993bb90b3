import math
import struct
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.errors import UnsupportedMedia
from service.media.formats import ACCEPTED, accepted_format, picture_seconds, recognise, uses_run_lengths
from tests import synthetic as media

PICTURE = media.smooth(16, 16)
SOUND = media.sine(440, 0.1, 48_000, (0.5, 0.5))
CLIP = media.numbered(2, 32, 32)
FILES: dict[str, tuple[str, bytes]] = {
    "JPEG": ("JPEG", media.picture(PICTURE, "JPEG")),
    "JPEG with EXIF": ("JPEG", media.picture(PICTURE, "JPEG", exif=media.orientation(6))),
    "MPO": ("JPEG", media.picture(PICTURE, "MPO")),
    "PNG": ("PNG", media.picture(PICTURE, "PNG")),
    "WebP": ("WebP", media.picture(PICTURE, "WEBP")),
    "GIF": ("GIF", media.picture(PICTURE, "GIF")),
    "GIF87a": ("GIF", b"GIF87a\1\0\1\0"),
    "BMP": ("BMP", media.picture(PICTURE, "BMP")),
    "TIFF": ("TIFF", media.picture(PICTURE, "TIFF")),
    "big-endian TIFF": ("TIFF", b"MM\0*\0\0\0\x08"),
    "BigTIFF": ("TIFF", media.picture(PICTURE, "TIFF", big_tiff=True)),
    "AVIF": ("HEIF", media.picture(PICTURE, "AVIF")),
    "HEIC": ("HEIF", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    "PDF": ("PDF", media.picture(PICTURE, "PDF")),
    "WAV": ("WAV", media.wav(SOUND, 48_000)),
    "RF64": ("WAV", b"RF64\xff\xff\xff\xffWAVEds64"),
    "FLAC": ("FLAC", media.encoded_sound(SOUND, 48_000, "flac", "flac")),
    "Opus": ("OGG", media.encoded_sound(SOUND, 48_000, "ogg", "libopus")),
    "MP3": ("MP3", media.encoded_sound(SOUND, 48_000, "mp3", "libmp3lame")),
    "MP3 without a tag": ("MP3", media.encoded_sound(SOUND, 48_000, "mp3", "libmp3lame", id3v2_version="0")),
    "ADTS": ("AAC", media.encoded_sound(SOUND, 48_000, "adts", "aac")),
    "M4A": ("MP4", media.encoded_sound(SOUND, 48_000, "ipod", "aac")),
    "MP4": ("MP4", media.clip(CLIP)),
    "MOV": ("MP4", media.clip(CLIP, "mov")),
    "old QuickTime": ("MP4", b"\0\0\0\x08wide\0\0\0\x08mdat"),
    "WebM": ("Matroska", media.clip(CLIP, "webm", "libvpx-vp9")),
    "MKV": ("Matroska", media.clip(CLIP, "matroska")),
    "AVI": ("AVI", media.clip(CLIP, "avi", "mpeg4")),
}
ACCEPTED_FORMATS = {
    "image": {"JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"},
    "audio": {"WAV", "FLAC", "OGG", "MP3", "AAC", "MP4", "Matroska"},
    "video": {"MP4", "Matroska", "AVI", "GIF"},
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_real_encoders_are_recognised_by_their_first_bytes(name: str) -> None:
    expected, data = FILES[name]
    assert recognise(data[:64]) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"RIFF",
        b"RIFF\0\0\0\0",
        b"RIFF\0\0\0\0sfbk",
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><MPD/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0\0\1\0\1\0\x10\x10",
        b"PK\3\4",
        b"\x7fELF\2\1\1",
        b"MThd\0\0\0\6",
        b"\x47\x40\0\x10" + bytes(184),
        b"FLV\1",
        b"8BPS\0\1",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"some text that is nothing else",
    ],
)
def test_other_bytes_are_not_recognised(data: bytes) -> None:
    assert recognise(data[:64]) is None


@pytest.mark.parametrize("kind", ACCEPTED_FORMATS)
@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_media_accepts_its_own_formats_and_names_them_in_refusals(name: str, kind: str) -> None:
    format, data = FILES[name]
    if format in ACCEPTED_FORMATS[kind]:
        assert accepted_format(data, kind) == format
    else:
        with pytest.raises(UnsupportedMedia) as refusal:
            accepted_format(data, kind)
        assert refusal.value.detail == f"this is {format}; {kind} is accepted as {ACCEPTED[kind]}"
        assert refusal.value.status == 415


@pytest.mark.parametrize("kind", ACCEPTED_FORMATS)
def test_unknown_bytes_are_refused_with_what_is_accepted(kind: str) -> None:
    with pytest.raises(UnsupportedMedia, match="no known format"):
        accepted_format(b"nothing that is known", kind)


# Run-length coded BMPs

RUN_LENGTHS = media.rle_bmp(5, 2, b"\x05\x40\0\0\x05\xc0\0\1")


def with_compression(data: bytes, compression: int) -> bytes:
    return data[:30] + struct.pack("<I", compression) + data[34:]


@pytest.mark.parametrize("compression", [1, 2], ids=["8 bits", "4 bits"])
def test_a_run_length_coded_bmp_is_known_by_its_header(compression: int) -> None:
    assert uses_run_lengths(with_compression(RUN_LENGTHS, compression))


def core_header_bmp() -> bytes:
    """An OS/2 bitmap, whose header ends before a compression would be stated; a palette of three bytes a colour."""
    palette = bytes(4) + b"\1" + bytes(3 * 256 - 5)  # in the place of a compression stands a 1
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 26 + len(palette)) + struct.pack("<IHHHH", 12, 8, 2, 1, 8) + palette


@pytest.mark.parametrize(
    "data",
    [
        media.picture(PICTURE, "BMP"),
        with_compression(RUN_LENGTHS, 0),
        with_compression(RUN_LENGTHS, 3),
        core_header_bmp(),
        RUN_LENGTHS[:20],
        with_compression(media.picture(PICTURE, "PNG"), 1),
    ],
    ids=["plain", "no compression", "bit fields", "OS/2", "truncated", "PNG"],
)
def test_other_files_are_not_taken_for_run_length_coded(data: bytes) -> None:
    assert not uses_run_lengths(data)


# Estimates from headers

QUICK, SLOW = 0.0025, 0.008  # seconds on the event loop that the service allows with several cores, and with one

# Estimates: JPEG


def small_jpeg(**options: Any) -> bytes:
    return media.picture(media.smooth(90, 120), "JPEG", **options)


def large_frame(data: bytes) -> bytes:
    """The same bytes, said to be 9,000 pixels high and 12,000 wide."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 9_000, 12_000) + data[at + 4 :]


def with_comment(data: bytes, comment: bytes) -> bytes:
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[2:]


def with_partial_scan(data: bytes) -> bytes:
    """Its first scan holds one of its three components, so that more scans follow."""
    at = data.index(b"\xff\xda") + 4
    return data[:at] + b"\1" + data[at + 1 :]


@pytest.mark.parametrize(
    "data",
    [
        small_jpeg(),
        small_jpeg(optimize=True, restart_marker_blocks=4),
        small_jpeg(exif=media.orientation(6)),
        with_comment(small_jpeg(), large_frame(small_jpeg())),
        media.picture(Image.new("L", (40, 40)), "JPEG"),
        media.picture(Image.new("CMYK", (40, 40)), "JPEG"),
    ],
    ids=["plain", "restarts", "exif", "thumbnail", "grey", "CMYK"],
)
def test_a_small_sequential_jpeg_is_estimated_from_its_header(data: bytes) -> None:
    assert 0.0001 < picture_seconds(data, 32) <= picture_seconds(data) < QUICK


def test_a_jpeg_that_is_reduced_while_it_is_decoded_takes_less() -> None:
    data = media.picture(media.smooth(1080, 1920), "JPEG")
    for_classes, for_masks, whole = (picture_seconds(data, side) for side in (32, 224, None))
    assert for_classes < for_masks < SLOW < whole


@pytest.mark.parametrize(
    "data",
    [
        small_jpeg(progressive=True),
        large_frame(small_jpeg()),
        with_comment(large_frame(small_jpeg()), small_jpeg()),
        b"\xff\xd8\xff" + large_frame(small_jpeg())[2:],
        with_partial_scan(small_jpeg()),
        small_jpeg() + bytes(1024 * 1024),
        small_jpeg()[:2] + b"\xff\xfe\0\2" * 5000 + small_jpeg()[2:],
        small_jpeg()[:100],
        b"\xff\xd8\xff",
        media.picture(media.smooth(16, 16), "GIF"),
        b"",
    ],
    ids=[
        "progressive",
        "pixels",
        "hidden",
        "filled",
        "scans",
        "bytes",
        "comments",
        "truncated",
        "start",
        "GIF",
        "nothing",
    ],
)
def test_a_jpeg_that_may_take_longer_is_not_estimated_as_quick(data: bytes) -> None:
    assert picture_seconds(data, 32) > SLOW


# Estimates: PNG


def small_png(mode: str = "RGB", **options: Any) -> bytes:
    return media.picture(Image.fromarray(media.smooth(90, 120)).convert(mode), "PNG", **options)


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """They follow the header."""
    return data[:33] + b"".join(chunks) + data[33:]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def text(value: str) -> PngInfo:
    info = PngInfo()
    info.add_text("Software", value)
    return info


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_small_png_is_estimated_from_its_header(mode: str) -> None:
    data = small_png() if mode == "I;16" else small_png(mode)
    if mode == "I;16":
        data = media.picture(Image.fromarray(media.smooth(90, 120)[..., 0].astype("uint16") * 257), "PNG")
    assert 0.0001 < picture_seconds(data) == picture_seconds(data, 32) < QUICK


def test_usual_chunks_of_other_programs_do_not_make_a_png_slow() -> None:
    dressed = small_png("P", pnginfo=text("a painter"), transparency=0, dpi=(72, 72), icc_profile=bytes(3000))
    assert picture_seconds(small_png("P")) + 0.001 < picture_seconds(dressed) < QUICK  # the profile is compressed


def test_a_png_takes_longer_the_more_it_is_inflated_to() -> None:
    modes = ("L", "RGB", "RGBA")
    grey, colour, clear = (picture_seconds(media.picture(Image.new(mode, (200, 200)), "PNG")) for mode in modes)
    assert grey < colour < clear < QUICK
    assert QUICK < picture_seconds(media.picture(Image.new("RGB", (400, 400)), "PNG")) < SLOW
    assert SLOW < picture_seconds(media.picture(Image.new("RGB", (800, 800)), "PNG")) < math.inf


@pytest.mark.parametrize(
    "data",
    [
        patched(small_png(), 28, b"\1"),
        patched(small_png(), 16, struct.pack(">II", 12_000, 9_000)),
        patched(small_png(), 25, b"\5"),
        patched(small_png(), 12, b"IEND"),
        small_png(exif=media.orientation(6)),
        with_chunks(small_png(), media.png_chunk(b"zTXt", b"name\0\0" + bytes(99))),
        with_chunks(small_png(), *[media.png_chunk(b"tIME", b"")] * 100),
        with_chunks(small_png(), *[media.png_chunk(b"iCCP", b"name\0\0")] * 9),
        with_chunks(small_png(), media.png_chunk(b"IDAT", bytes(2_000_000))),
        small_png(pnginfo=text("x" * 20_000)),
        media.picture(Image.new("L", (9, 9)), "PNG", save_all=True, append_images=[Image.new("L", (9, 9), 9)]),
        small_png()[:-12],
        small_png()[:20],
    ],
    ids=[
        "interlaced",
        "pixels",
        "colours",
        "name",
        "EXIF",
        "text",
        "chunks",
        "profiles",
        "bytes",
        "comments",
        "animated",
        "truncated",
        "start",
    ],
)
def test_a_png_that_may_take_longer_is_not_estimated_as_quick(data: bytes) -> None:
    assert picture_seconds(data) > SLOW


# Estimates: WebP


@pytest.mark.parametrize("lossless", [False, True])
def test_a_small_webp_is_estimated_from_its_header(lossless: bool) -> None:
    small, larger, large = (
        picture_seconds(media.picture(media.smooth(side, side), "WEBP", lossless=lossless)) for side in (90, 120, 1000)
    )
    assert 0.0001 < small < larger < QUICK
    assert SLOW < large < math.inf


@pytest.mark.parametrize(
    "data",
    [
        media.picture(media.smooth(9, 9), "WEBP", exif=media.orientation(6)),
        media.picture(Image.new("RGB", (9, 9)), "WEBP", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")]),
        media.picture(media.smooth(9, 9), "WEBP")[:29],
        media.picture(media.smooth(9, 9), "WEBP") + bytes(1024 * 1024),
    ],
    ids=["EXIF", "animated", "truncated", "bytes"],
)
def test_a_webp_that_may_take_longer_is_not_estimated_as_quick(data: bytes) -> None:
    assert picture_seconds(data) > SLOW
