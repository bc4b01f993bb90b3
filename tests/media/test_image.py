import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from service.errors import CorruptMedia, MediaTooLarge, UnsupportedMedia
from service.media import Limits
from service.media.image import ImageSample, ImageSpec, Picture, decode, decoded_shorter_side, image_sample
from service.repository.card import ImagePreprocess
from tests import synthetic as media

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}}
FORMATS: dict[str, dict[str, Any]] = LOSSLESS | {"JPEG": {"quality": 95, "subsampling": 0}, "GIF": {}}


def rgb(picture: Picture) -> NDArray[np.uint8]:
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image)


def decode_image(data: bytes, limits: Limits, *, shorter_side: int | None = None) -> Picture:
    (picture,) = decode(data, ImageSpec(shorter_side), limits)
    return picture


def decoded(data: bytes, *, shorter_side: int | None = None) -> NDArray[np.uint8]:
    return rgb(decode_image(data, Limits(), shorter_side=shorter_side))


def png(values: NDArray[np.unsignedinteger[Any]], colour: int, bits: int, *extra: bytes) -> bytes:
    """A PNG (ISO 15948) written by hand, as Pillow writes no 16-bit colours."""
    rows = values.astype(f">u{bits // 8}").reshape(len(values), -1)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + media.png_chunk(b"IHDR", head)
        + b"".join(extra)
        + media.png_chunk(b"IDAT", zlib.compress(raw))
        + media.png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format", FORMATS)
def test_every_accepted_format_shows_its_colours_where_they_belong(format: str) -> None:
    pixels = decoded(media.picture(media.quarters(40, 60), format, **FORMATS[format]))
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    assert media.corners(pixels) == media.CORNERS


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_back_every_pixel(format: str) -> None:
    pixels = media.smooth(31, 47)
    assert np.array_equal(decoded(media.picture(pixels, format, **LOSSLESS[format])), pixels)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiff_is_lossless_in_every_usual_compression(compression: str) -> None:
    pixels = media.smooth(31, 47)
    assert np.array_equal(decoded(media.picture(pixels, "TIFF", compression=compression)), pixels)


def test_jpeg_within_a_tiff_decodes() -> None:
    pixels = media.smooth(64, 64)
    shown = decoded(media.picture(pixels, "TIFF", compression="jpeg"))
    assert np.abs(shown.astype(int) - pixels).mean() < 4


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_close_to_what_was_compressed(progressive: bool) -> None:
    pixels = media.smooth(120, 160)
    shown = decoded(media.picture(pixels, "JPEG", quality=95, progressive=progressive))
    assert np.abs(shown.astype(int) - pixels).mean() < 2


@pytest.mark.parametrize("height,width", [(1, 1), (1, 7), (9, 1), (3, 5), (17, 33)])
@pytest.mark.parametrize("shorter_side", [None, 1, 8])
@pytest.mark.parametrize("format", FORMATS)
def test_tiny_and_odd_sizes_keep_their_shape(format: str, shorter_side: int | None, height: int, width: int) -> None:
    pixels = np.full((height, width, 3), (255, 0, 0), np.uint8)
    shown = decode_image(media.picture(pixels, format, **FORMATS[format]), Limits(), shorter_side=shorter_side)
    assert shown.size == (height, width)
    assert np.abs(rgb(shown).astype(int) - (255, 0, 0)).max() <= 2
    if shorter_side != 1:
        assert rgb(shown).shape == (height, width, 3)


def test_only_the_first_frame_of_a_gif_is_shown() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (40, 200)]
    data = media.picture(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(np.unique(decoded(data)), [40])


def test_multi_picture_jpeg_shows_its_first_picture() -> None:
    first, second = (Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (40, 200))
    data = media.picture(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(decoded(data).astype(int) - 40).max() <= 1
    assert np.abs(decoded(data, shorter_side=4).astype(int) - 40).max() <= 1


# Orientation


def stored(upright: media.Pixels, number: int) -> media.Pixels:
    """The rows and columns of a camera held so that the EXIF orientation is ``number`` (EXIF 2.32, section 4.6.4)."""
    turn: dict[int, Callable[[media.Pixels], media.Pixels]] = {
        1: lambda up: up,
        2: lambda up: up[:, ::-1],  # row 0 is the top, column 0 the right
        3: lambda up: up[::-1, ::-1],  # bottom, right
        4: lambda up: up[::-1],  # bottom, left
        5: lambda up: up.swapaxes(0, 1),  # row 0 is the left, column 0 the top
        6: lambda up: up[:, ::-1].swapaxes(0, 1),  # right, top
        7: lambda up: up[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: lambda up: up[::-1].swapaxes(0, 1),  # left, bottom
    }
    return np.ascontiguousarray(turn[number](upright))


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("shorter_side", [None, 20])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_comes_out_upright(format: str, shorter_side: int | None, number: int) -> None:
    turned = stored(media.quarters(160, 240), number)
    data = media.picture(turned, format, exif=media.orientation(number), **FORMATS[format])
    shown = decode_image(data, Limits(), shorter_side=shorter_side)
    assert shown.size == (160, 240)
    assert rgb(shown).shape == ((160, 240, 3) if shorter_side is None else (40, 60, 3))
    assert media.corners(rgb(shown)) == media.CORNERS


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_orientation_holds_in_every_mode(mode: str) -> None:
    upright = np.zeros((24, 40), np.uint8)
    upright[:12, :20] = 255  # the top left quarter is white
    image = Image.fromarray(np.ascontiguousarray(upright[:, ::-1].T))  # stored with orientation 6
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    format = "TIFF" if mode == "CMYK" else "PNG"
    shown = decode_image(media.picture(image, format, exif=media.orientation(6)), Limits())
    assert shown.size == (24, 40)
    assert np.array_equal(rgb(shown), np.repeat(upright[:, :, None], 3, axis=2))


def test_orientation_in_xmp_alone_is_applied() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = media.picture(stored(media.quarters(40, 60), 6), "JPEG", xmp=xmp)
    shown = decode_image(data, Limits())
    assert shown.size == (40, 60)
    assert media.corners(rgb(shown)) == media.CORNERS


def test_orientation_in_the_text_chunk_of_old_png_writers_is_applied() -> None:
    exif = media.orientation(8).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8d}\n{exif.hex()}\n")
    shown = decode_image(media.picture(stored(media.quarters(40, 60), 8), "PNG", pnginfo=text), Limits())
    assert shown.size == (40, 60)
    assert media.corners(rgb(shown)) == media.CORNERS


@pytest.mark.parametrize("number", [0, 9, 77])
def test_an_orientation_that_does_not_exist_changes_nothing(number: int) -> None:
    shown = decode_image(media.picture(media.quarters(40, 60), "JPEG", exif=media.orientation(number)), Limits())
    assert shown.size == (40, 60)
    assert rgb(shown).shape == (40, 60, 3)
    assert media.corners(rgb(shown)) == media.CORNERS


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0", b"Exif\0\0MM\0*\0\0"]
)
def test_damaged_exif_does_not_hide_the_picture(exif: bytes) -> None:
    shown = decode_image(media.picture(media.quarters(40, 60), "JPEG", exif=exif), Limits())
    assert media.corners(rgb(shown)) == media.CORNERS


# Colours


def test_cmyk_jpeg_shows_ink_on_paper() -> None:
    inks = np.array([(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)], np.uint8)
    stripes = np.repeat(np.repeat(inks[None], 16, axis=0), 16, axis=1)
    shown = decoded(media.picture(Image.fromarray(stripes, "CMYK"), "JPEG", quality=100, subsampling=0))
    expected = [(0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255)]
    assert np.abs(shown[8, 8::16].astype(int) - expected).max() <= 3


def test_ycck_jpeg_shows_ink_on_paper() -> None:
    inks = np.array([(200, 30, 60), (10, 180, 90), (0, 0, 0)], np.uint8)  # cyan, magenta, yellow
    black = 51
    cyan, magenta, yellow = inks.astype(float).T
    luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    ycc = np.stack([luma, 128 + 0.564 * (yellow - luma), 128 + 0.713 * (cyan - luma)], axis=1)
    # Pillow writes every component inverted; libjpeg turns YCC into inverted inks, but leaves black alone.
    planes = np.concatenate([255 - np.rint(ycc), np.full((3, 1), black)], axis=1).astype(np.uint8)
    stripes = np.repeat(np.repeat(planes[None], 16, axis=0), 16, axis=1)
    data = media.picture(Image.fromarray(stripes, "CMYK"), "JPEG", quality=100, subsampling=0)
    at = data.index(b"Adobe") + 11  # the colour transform: 0 says CMYK, 2 YCCK
    assert data[at] == 0
    shown = decoded(data[:at] + b"\2" + data[at + 1 :])
    expected = (255 - inks.astype(int)) * (255 - black) / 255
    assert np.abs(shown[8, 8::16] - expected).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP"])
def test_grey_pictures_come_out_grey(format: str) -> None:
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)
    shown = decoded(media.picture(Image.fromarray(ramp), format))
    assert np.abs(shown.astype(int) - ramp[:, :, None]).max() <= (3 if format == "JPEG" else 0)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette_pictures_show_the_colours_of_their_palette(format: str) -> None:
    pixels = media.quarters(20, 30)
    image = Image.fromarray(pixels).quantize(4)
    assert np.array_equal(decoded(media.picture(image, format)), pixels)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit_pictures_are_black_and_white(format: str) -> None:
    board = np.indices((9, 13)).sum(axis=0) % 2 == 0
    shown = decoded(media.picture(Image.fromarray(board), format))
    assert np.array_equal(shown, np.where(board, 255, 0)[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_the_transparent_entry_of_a_palette_shows_white(format: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(0, (0, 0, 4, 8))
    shown = decoded(media.picture(image, format, transparency=0))
    assert (shown[:, :4] == 255).all()
    assert (shown[:, 4:] == (10, 200, 30)).all()


def test_a_palette_with_graded_transparency_is_mixed_with_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 0])
    shown = decoded(media.picture(image, "PNG", transparency=bytes([51, 255])))  # a fifth of red
    assert np.abs(shown.astype(int) - (255, 204, 204)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_show_white(format: str) -> None:
    pixels = np.zeros((4, 3, 4), np.uint8)
    pixels[:, :, :3] = (200, 100, 0)
    pixels[:, :, 3] = (0, 128, 255)  # column by column
    shown = decoded(media.picture(Image.fromarray(pixels), format, **FORMATS[format] | {"exact": True}))
    expected = [[255 + (colour - 255) * alpha / 255 for colour in (200, 100, 0)] for alpha in (0, 128, 255)]
    assert np.abs(shown - np.array(expected)[None]).max() <= 1


def test_grey_with_alpha_shows_over_white() -> None:
    image = Image.merge("LA", (Image.new("L", (4, 4), 100), Image.new("L", (4, 4), 51)))
    assert np.abs(decoded(media.picture(image, "PNG")).astype(int) - 224).max() <= 1  # 255 - 155 / 5


@pytest.mark.parametrize("shorter_side", [None, 2])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(format: str, shorter_side: int | None) -> None:
    levels = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)
    shown = decoded(media.picture(Image.fromarray(levels * 257), format), shorter_side=shorter_side)
    assert np.array_equal(shown, np.repeat(levels.astype(np.uint8)[:, :, None], 3, axis=2))


def test_big_endian_sixteen_bit_tiff_is_scaled() -> None:
    values = np.arange(0, 65536, 257, dtype=">u2").reshape(16, 16)
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    entries += [(273, 4, 1, 8 + 2 + 12 * 9 + 4), (278, 4, 1, 16), (279, 4, 1, 512)]
    packed = b"".join(
        struct.pack(">HHI", tag, kind, count)
        + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, count, value in sorted(entries)
    )
    data = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + packed + bytes(4) + values.tobytes()
    assert np.array_equal(decoded(data)[:, :, 0], np.arange(256).reshape(16, 16))


def test_sixteen_bits_a_colour_are_scaled() -> None:
    levels = np.arange(0, 192, dtype=np.uint16).reshape(8, 8, 3)
    assert np.array_equal(decoded(png(levels * 257, 2, 16)), levels)


def test_sixteen_bits_a_colour_with_alpha_show_over_white() -> None:
    values = np.full((4, 4, 4), 0, np.uint16)
    values[..., 3] = 13107  # a fifth
    assert np.abs(decoded(png(values, 6, 16)).astype(int) - 204).max() <= 1


def test_a_transparent_level_of_sixteen_bit_grey_shows_white_and_the_rest_is_scaled() -> None:
    values = np.array([[0, 128 * 257], [200 * 257, 1000]], np.uint16)
    shown = decoded(png(values, 0, 16, media.png_chunk(b"tRNS", struct.pack(">H", 1000))))
    assert shown[:, :, 0].tolist() == [[0, 128], [200, 255]]


def test_a_transparent_colour_of_sixteen_bits_shows_white() -> None:
    values = np.full((2, 2, 3), 100 * 257, np.uint16)
    values[0, 0] = (257, 514, 771)
    shown = decoded(png(values, 2, 16, media.png_chunk(b"tRNS", struct.pack(">HHH", 257, 514, 771))))
    assert shown[0, 0].tolist() == [255] * 3
    assert (shown.reshape(-1, 3)[1:] == 100).all()


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e6])
def test_floating_point_tiff_is_scaled_to_its_range(white: float) -> None:
    levels = np.arange(256, dtype=np.float64).reshape(16, 16)
    shown = decoded(media.picture(Image.fromarray((levels / 255 * white).astype(np.float32)), "TIFF"))
    assert np.array_equal(shown[:, :, 0], levels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floating_point_tiff_with_values_that_are_not_finite_is_refused(value: float) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = value
    with pytest.raises(CorruptMedia, match="finite"):
        decoded(media.picture(Image.fromarray(values), "TIFF"))


def test_lab_tiff_comes_out_in_rgb() -> None:
    # Lightness 0, 53.6 and 100 without colour: black, sRGB 128, white. Then a red: L 54, a 81, b 70.
    lab = np.array([[(0, 128, 128), (137, 128, 128), (255, 128, 128), (138, 209, 198)]], np.uint8)
    levels = (lab.astype(np.int16) - (0, 128, 128)).astype(np.uint8)  # a TIFF's a and b are signed
    image = Image.frombytes("LAB", (4, 1), levels.tobytes())
    data = media.picture(image, "TIFF")
    with Image.open(io.BytesIO(data)) as again:
        assert again.mode == "LAB"
    shown = decoded(data)[0].astype(int)
    assert np.ptp(shown[:3], axis=1).max() <= 4, shown
    assert np.abs(shown[:3, 0] - (0, 128, 255)).max() <= 4, shown


# Reduction


@pytest.mark.parametrize(
    "format,mode",
    [
        *((format, mode) for format in ("JPEG", "progressive", "TIFF") for mode in ("RGB", "L", "CMYK")),
        *((format, mode) for format in ("PNG", "BMP") for mode in ("RGB", "L")),
        ("WEBP", "RGB"),
    ],
)
def test_the_reduced_picture_is_the_whole_one_made_smaller(format: str, mode: str) -> None:
    options = {"quality": 95, "progressive": True} if format == "progressive" else FORMATS[format]
    image = Image.fromarray(media.smooth(611, 803)).convert(mode)
    data = media.picture(image, "JPEG" if format == "progressive" else format, **options)
    whole, reduced = decode_image(data, Limits()), decode_image(data, Limits(), shorter_side=64)
    assert whole.size == reduced.size == rgb(whole).shape[:2] == (611, 803)
    assert 128 <= min(rgb(reduced).shape[:2]) <= 306
    small = [np.asarray(each.image.resize((84, 64)), int) for each in (whole, reduced)]
    difference = np.abs(small[0] - small[1])
    assert difference.mean() < 1
    assert difference.max() < 12


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_smaller_than_twice_the_wanted_side_is_left_alone(format: str) -> None:
    data = media.picture(media.smooth(127, 160), format, **FORMATS[format])
    assert np.array_equal(decoded(data, shorter_side=64), decoded(data))


# Damage


@cache
def samples() -> dict[str, bytes]:
    pixels = media.smooth(24, 32)
    made = {name: media.picture(pixels, name, **options) for name, options in FORMATS.items()}
    return made | {
        "progressive JPEG": media.picture(pixels, "JPEG", progressive=True, exif=media.orientation(6)),
        "lossy WebP": media.picture(pixels, "WEBP", quality=80),
        "WebP with alpha": media.picture(Image.fromarray(pixels).convert("RGBA"), "WEBP", exif=media.orientation(6)),
        "deflated TIFF": media.picture(pixels, "TIFF", compression="tiff_deflate", exif=media.orientation(5)),
        "LZW TIFF": media.picture(pixels, "TIFF", compression="tiff_lzw"),
        "JPEG TIFF": media.picture(pixels, "TIFF", compression="jpeg"),
        "16-bit PNG": media.picture(Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257), "PNG"),
        "palette PNG": media.picture(Image.fromarray(pixels).quantize(16), "PNG", transparency=0),
        "RLE BMP": media.rle_bmp(32, 24, b"\x20\x77\0\0" * 24),
        "MPO": media.picture(pixels, "MPO", save_all=True, append_images=[Image.fromarray(pixels)]),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", samples())
def test_a_truncated_picture_is_refused_or_has_lost_nothing(name: str) -> None:
    data = samples()[name]
    whole = decoded(data)
    refused = 0
    for cut in [*media.cuts(data, 60), data[:-1], data[:-2], data[:-16]]:
        try:
            shown = decoded(cut)
        except CorruptMedia:
            refused += 1
        except UnsupportedMedia:
            assert len(cut) < 16
        else:
            assert np.array_equal(shown, whole), f"half shown after {len(cut)} of {len(data)} bytes"
    assert refused > 20


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("shorter_side", [None, 4])
@pytest.mark.parametrize("name", samples())
def test_damaged_pictures_raise_nothing_but_refusals(name: str, shorter_side: int | None) -> None:
    for data in media.mutations(samples()[name], 200, seed=shorter_side or 0):
        try:
            shown = decode_image(data, Limits(max_pixels=200_000), shorter_side=shorter_side)
        except (CorruptMedia, MediaTooLarge, UnsupportedMedia):
            continue
        assert rgb(shown).ndim == 3
        assert rgb(shown).shape[2] == 3


# Limits


def patched(data: bytes, at: int, packed: bytes) -> bytes:
    return data[:at] + packed + data[at + len(packed) :]


def huge_headers() -> dict[str, bytes]:
    """Small files that declare 12,000 x 10,000 pixels."""
    pixels = media.smooth(16, 16)
    jpeg, gif, bmp = (media.picture(pixels, format) for format in ("JPEG", "GIF", "BMP"))
    lossy, lossless = media.picture(pixels, "WEBP"), media.picture(pixels, "WEBP", lossless=True)
    extended = media.picture(pixels, "WEBP", exif=media.orientation(1))
    head = struct.pack(">IIBBBBB", 12_000, 10_000, 8, 2, 0, 0, 0)
    entries = [
        (256, 4, 1, 12_000),
        (257, 4, 1, 10_000),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, -1),
        (279, 4, 1, 4),
    ]
    return {
        "JPEG": patched(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", 10_000, 12_000)),
        "PNG": patched(media.picture(pixels, "PNG"), 8, media.png_chunk(b"IHDR", head)),
        "GIF": patched(gif, 6, struct.pack("<HH", 12_000, 10_000)),
        "GIF frame": patched(gif, gif.index(b",\0\0\0\0") + 5, struct.pack("<HH", 12_000, 10_000)),
        "BMP": patched(bmp, 18, struct.pack("<ii", 12_000, 10_000)),
        "BMP upside down": patched(bmp, 18, struct.pack("<ii", 12_000, -10_000)),
        "TIFF": media.tiff(entries, bytes(4)),
        "lossy WebP": patched(lossy, 26, struct.pack("<HH", 12_000, 10_000)),
        "lossless WebP": patched(lossless, 21, struct.pack("<I", 11_999 | 9_999 << 14)),
        "extended WebP": patched(extended, 24, (11_999).to_bytes(3, "little") + (9_999).to_bytes(3, "little")),
    }


@pytest.mark.parametrize("name", huge_headers())
def test_a_picture_that_declares_too_many_pixels_is_refused(name: str) -> None:
    with pytest.raises(MediaTooLarge, match=r"12000x10000.*MAX_PIXELS allows 50000000"):
        decoded(huge_headers()[name])


@pytest.mark.parametrize("format", FORMATS)
def test_max_pixels_itself_is_allowed_and_one_less_is_not(format: str) -> None:
    data = media.picture(media.smooth(20, 30), format)
    assert decode_image(data, Limits(max_pixels=600)).size == (20, 30)
    with pytest.raises(MediaTooLarge):
        decode_image(data, Limits(max_pixels=599))


def test_a_webp_cannot_hide_its_size_behind_another_chunk() -> None:
    lossy = media.picture(media.smooth(16, 16), "WEBP")
    huge = patched(lossy, 26, struct.pack("<HH", 16_383, 16_383))[20:]
    with pytest.raises(CorruptMedia):
        decoded(media.riff(b"WEBP", (b"ALPH", bytes(16)), (b"VP8 ", huge)))


def tile_bomb() -> bytes:
    """16 x 16 pixels, kept in one tile of 25 million."""
    packed = zlib.compress(bytes(25_000_000), 1)
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    entries += [(322, 4, 1, 25_000), (323, 4, 1, 25_000), (324, 4, 1, -1), (325, 4, 1, len(packed))]
    return media.tiff(entries, packed)


def test_a_tiff_with_a_huge_tile_is_refused() -> None:
    with pytest.raises(MediaTooLarge, match="25000x25000"):
        decoded(tile_bomb())


def test_a_small_run_length_coded_bmp_decodes() -> None:
    assert decoded(media.rle_bmp(5, 2, b"\x05\x40\0\0\x05\xc0\0\1"))[:, :, 0].tolist() == [[192] * 5, [64] * 5]


def test_a_large_run_length_coded_bmp_is_refused_as_it_would_take_seconds() -> None:
    with pytest.raises(MediaTooLarge, match="run-length"):
        decoded(media.rle_bmp(40_000_000, 1, b"\1\1\0\0\0\1"))


def test_bombs_cost_no_memory(tmp_path: Any) -> None:
    """In a process of its own, whose peak is known."""
    bit_rows = zlib.compress(bytes(20_000 * 2501), 6)  # 20,000 x 20,000 pixels of one bit
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    flat = media.picture(Image.new("RGB", (64, 64)), "WEBP", lossless=True)
    bombs = {
        "small.png": media.picture(media.smooth(16, 16), "PNG"),
        "small.webp": flat,
        "bomb.png": b"\x89PNG\r\n\x1a\n"
        + media.png_chunk(b"IHDR", head)
        + media.png_chunk(b"IDAT", bit_rows)
        + media.png_chunk(b"IEND", b""),
        "bomb.webp": patched(flat, 21, struct.pack("<I", 16_382 | 16_382 << 14)),  # one colour: nothing else to change
        "bomb.tiff": tile_bomb(),
        "bomb.bmp": media.rle_bmp(40_000_000, 1, b"\1\1\0\0\0\1"),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    program = """
import json, pathlib, resource, sys
from service.media import Limits
from service.media.image import ImageSpec, decode
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
found = []
for path in sys.argv[1:]:
    try:
        list(decode(pathlib.Path(path).read_bytes(), ImageSpec(), Limits()))
        found.append(["decoded", peak()])
    except Exception as error:
        found.append([type(error).__name__, peak()])
print(json.dumps(found))
"""
    paths = [str(tmp_path / name) for name in bombs]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, timeout=60, check=True)
    found = dict(zip(bombs, json.loads(done.stdout), strict=True))
    assert [found[name][0] for name in bombs] == ["decoded"] * 2 + ["MediaTooLarge"] * 4
    assert found["bomb.bmp"][1] - found["small.webp"][1] < 30, found  # MiB


# What is not a picture


@pytest.mark.parametrize(
    "data,named",
    [
        (b"", "no known format"),
        (b"hello, world, this is some text", "no known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known format"),
        (media.picture(media.smooth(16, 16), "ICO"), "no known format"),
        (media.picture(media.smooth(16, 16), "PDF"), "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (media.picture(media.smooth(16, 16), "AVIF"), "HEIF"),
        (media.wav(media.sine(440, 0.1, 8000), 8000), "WAV"),
    ],
    ids=["nothing", "text", "SVG", "EPS", "ICO", "PDF", "HEIC", "AVIF", "WAV"],
)
def test_other_files_are_refused_with_the_accepted_formats(data: bytes, named: str) -> None:
    with pytest.raises(UnsupportedMedia) as refusal:
        decoded(data)
    assert named in refusal.value.detail
    assert "JPEG, PNG, WebP, GIF, BMP or TIFF" in refusal.value.detail
    assert refusal.value.status == 415


# Samples


def crop(shorter_side: int, height: int, width: int) -> ImagePreprocess:
    return ImagePreprocess(resize="crop", sizes=((height, width),), shorter_side=shorter_side)


def pad(*sizes: tuple[int, int]) -> ImagePreprocess:
    return ImagePreprocess(resize="pad", sizes=sizes)


def shown(pixels: media.Pixels, spec: ImagePreprocess) -> ImageSample:
    return image_sample(Image.fromarray(pixels), spec)


# Samples, cropped


def test_crop_of_a_picture_of_the_right_size_is_its_middle() -> None:
    pixels = media.smooth(256, 340)
    sample, region = shown(pixels, crop(256, 224, 224))
    assert np.array_equal(sample, pixels[16:240, 58:282])  # (256 - 224) / 2 and (340 - 224) / 2
    assert region == (0, 0, 224, 224)


def test_crop_of_a_picture_of_the_very_size_is_the_picture() -> None:
    pixels = media.smooth(64, 64)
    assert np.array_equal(shown(pixels, crop(64, 64, 64)).sample, pixels)


@pytest.mark.parametrize(
    "height,width,scale,top,left",
    [(128, 250, 2, 8, 69), (250, 128, 2, 69, 8), (192, 192, 3, 12, 12), (64, 100, 1, 4, 22), (32, 100, 0.5, 2, 36)],
)
def test_crop_takes_its_pixels_from_where_arithmetic_says(
    height: int, width: int, scale: float, top: float, left: float
) -> None:
    """Shorter side 64, size 56: the box begins at (side - 56 * scale) / 2, and its pixels are ``scale`` apart."""
    sample = shown(media.positions(height, width), crop(64, 56, 56)).sample.astype(float)
    centres = (np.arange(56) + 0.5) * scale - 0.5
    inner = slice(2, -2)  # at the margins, the filter meets the end of the picture
    assert np.abs(sample[inner, inner, 0] - (left + centres)[None, inner]).max() <= 0.51
    assert np.abs(sample[inner, inner, 1] - (top + centres)[inner, None]).max() <= 0.51


def test_crop_of_a_size_that_is_not_square() -> None:
    sample, region = shown(media.positions(128, 200), crop(64, 32, 48))
    assert sample.shape == (32, 48, 3)
    assert region == (0, 0, 32, 48)
    assert abs(int(sample[0, 0, 0]) - 52.5) <= 1  # (200 - 96) / 2, and half a step of two
    assert abs(int(sample[0, 0, 1]) - 32.5) <= 1  # (128 - 64) / 2


def test_crop_averages_what_it_makes_smaller() -> None:
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    sample = shown(board, crop(64, 64, 64)).sample
    assert np.abs(sample.astype(int) - 127.5).max() < 3


@pytest.mark.parametrize("size", [28, 100, 112, 176, 224, 299])
def test_crop_takes_pictures_of_every_size(size: int) -> None:
    """The box is as large as the picture: a rounding error of 29 / 28 * 28 must not put it outside."""
    for side in [*range(1, 120), *range(size - 3, size + 40)]:
        for shape in ((side, side, 3), (side, side + 7, 3), (side + 7, side, 3)):
            assert shown(np.full(shape, 9, np.uint8), crop(size, size, size)).sample.max() == 9


@pytest.mark.parametrize("height,width", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("spec", [crop(64, 56, 56), pad((64, 64))], ids=["crop", "pad"])
def test_the_thinnest_pictures_become_samples(spec: ImagePreprocess, height: int, width: int) -> None:
    sample, region = shown(np.full((height, width, 3), 200, np.uint8), spec)
    assert sample.shape == (*spec.sizes[0], 3)
    assert sample.dtype == np.uint8
    inside = sample[region.top : region.top + region.height, region.left : region.left + region.width]
    assert inside.size
    assert (inside == 200).all()


# Samples, padded


@pytest.mark.parametrize(
    "height,width,region",
    [
        (128, 128, (0, 0, 64, 64)),
        (64, 64, (0, 0, 64, 64)),
        (100, 200, (16, 0, 32, 64)),
        (200, 100, (0, 16, 64, 32)),
        (16, 32, (16, 0, 32, 64)),  # a small picture is enlarged
        (90, 160, (14, 0, 36, 64)),
        (100, 300, (21, 0, 21, 64)),  # 64 / 3 rounds to 21; 43 rows are left, 21 of them above
        (1, 1000, (31, 0, 1, 64)),
    ],
)
def test_pad_scales_the_whole_picture_and_centres_it_on_grey(
    height: int, width: int, region: tuple[int, int, int, int]
) -> None:
    sample, found = shown(np.full((height, width, 3), 255, np.uint8), pad((64, 64)))
    assert found == region
    top, left, inner_height, inner_width = region
    expected = np.full((64, 64, 3), 114, np.uint8)
    expected[top : top + inner_height, left : left + inner_width] = 255
    assert np.array_equal(sample, expected)


def test_the_region_of_a_padded_sample_holds_the_whole_picture() -> None:
    sample, region = shown(media.quarters(120, 200), pad((96, 96)))
    inside = sample[region.top : region.top + region.height, region.left : region.left + region.width]
    assert media.corners(inside) == media.CORNERS


@pytest.mark.parametrize(
    "height,width,chosen",
    [
        (300, 300, (256, 256)),
        (300, 400, (192, 320)),  # 1.33: it fills 0.75 of the square and 0.8 of the wide size
        (300, 380, (256, 256)),  # 1.27: 0.79 and 0.76
        (400, 300, (320, 192)),
        (100, 1000, (192, 320)),
        (1000, 100, (320, 192)),
        (192, 320, (192, 320)),
        (48, 80, (192, 320)),
    ],
)
def test_the_size_that_the_picture_fills_best_is_chosen(height: int, width: int, chosen: tuple[int, int]) -> None:
    spec = pad((256, 256), (192, 320), (320, 192))
    assert shown(np.zeros((height, width, 3), np.uint8), spec).sample.shape[:2] == chosen


def test_pictures_are_decoded_no_smaller_than_samples_need() -> None:
    assert decoded_shorter_side(crop(256, 224, 224)) == 256
    assert decoded_shorter_side(pad((256, 256), (192, 320))) == 256
    assert decoded_shorter_side(pad((192, 320))) == 192
