"""What may be decoded on the spot: by its header, a picture takes less than the service lets its event loop be kept."""

import math
import struct
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.media.cost import decoding_seconds
from tests import synthetic as media

QUICK, SLOW = 0.0025, 0.008  # the bounds that the service goes by, with other cores and alone on one

# JPEG


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
def test_what_a_small_sequential_jpeg_takes_is_known_from_its_header(data: bytes) -> None:
    assert 0.0001 < decoding_seconds(data, 32) <= decoding_seconds(data) < QUICK


def test_a_jpeg_that_is_reduced_while_it_is_decoded_takes_less() -> None:
    data = media.picture(media.smooth(1080, 1920), "JPEG")
    for_classes, for_masks, whole = (decoding_seconds(data, side) for side in (32, 224, None))
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
def test_a_jpeg_that_may_take_longer_is_not_taken_for_quick(data: bytes) -> None:
    assert decoding_seconds(data, 32) > SLOW


# PNG


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
def test_what_a_small_png_takes_is_known_from_its_header(mode: str) -> None:
    data = small_png() if mode == "I;16" else small_png(mode)
    if mode == "I;16":
        data = media.picture(Image.fromarray(media.smooth(90, 120)[..., 0].astype("uint16") * 257), "PNG")
    assert 0.0001 < decoding_seconds(data) == decoding_seconds(data, 32) < QUICK


def test_what_other_programs_write_into_a_png_does_not_make_it_slow() -> None:
    dressed = small_png("P", pnginfo=text("a painter"), transparency=0, dpi=(72, 72), icc_profile=bytes(3000))
    assert decoding_seconds(small_png("P")) + 0.001 < decoding_seconds(dressed) < QUICK  # the profile is compressed


def test_a_png_takes_longer_the_more_it_is_inflated_to() -> None:
    modes = ("L", "RGB", "RGBA")
    grey, colour, clear = (decoding_seconds(media.picture(Image.new(mode, (200, 200)), "PNG")) for mode in modes)
    assert grey < colour < clear < QUICK
    assert QUICK < decoding_seconds(media.picture(Image.new("RGB", (400, 400)), "PNG")) < SLOW
    assert SLOW < decoding_seconds(media.picture(Image.new("RGB", (800, 800)), "PNG")) < math.inf


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
def test_a_png_that_may_take_longer_is_not_taken_for_quick(data: bytes) -> None:
    assert decoding_seconds(data) > SLOW


# WebP


@pytest.mark.parametrize("lossless", [False, True])
def test_what_a_small_webp_takes_is_known_from_its_header(lossless: bool) -> None:
    small, larger, large = (
        decoding_seconds(media.picture(media.smooth(side, side), "WEBP", lossless=lossless)) for side in (90, 120, 1000)
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
def test_a_webp_that_may_take_longer_is_not_taken_for_quick(data: bytes) -> None:
    assert decoding_seconds(data) > SLOW
