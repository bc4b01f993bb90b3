"""Pictures, sounds and clips, made in code, with what they hold known beforehand."""

import io
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Sound = NDArray[np.float32]

BIT_EXACT = {"fflags": "+bitexact"}  # no random identifiers: the same bytes in every run
CORNERS = {"top left": (255, 0, 0), "top right": (0, 255, 0), "bottom left": (0, 0, 255), "bottom right": (255, 255, 0)}


# Pictures


def quarters(height: int, width: int) -> Pixels:
    """Red, green / blue, yellow: every one of the eight orientations looks different."""
    pixels = np.empty((height, width, 3), np.uint8)
    half_height, half_width = height // 2, width // 2
    pixels[:half_height, :half_width] = CORNERS["top left"]
    pixels[:half_height, half_width:] = CORNERS["top right"]
    pixels[half_height:, :half_width] = CORNERS["bottom left"]
    pixels[half_height:, half_width:] = CORNERS["bottom right"]
    return pixels


def positions(height: int, width: int) -> Pixels:
    """Red says how far right a pixel is, green how far down."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.arange(width)
    pixels[:, :, 1] = np.arange(height)[:, None]
    return pixels


def corners(pixels: Pixels) -> dict[str, tuple[int, ...]]:
    """The mean colour in the middle of each quarter, rounded to 0 or 255."""
    height, width = pixels.shape[:2]
    found = {}
    for name in CORNERS:
        top = 0 if name.startswith("top") else height - height // 2
        left = 0 if name.endswith("left") else width - width // 2
        part = pixels[top + height // 8 : top + 3 * height // 8, left + width // 8 : left + 3 * width // 8]
        found[name] = tuple(255 if value > 127 else 0 for value in part.mean(axis=(0, 1)))
    return found


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    """Soft shapes in all colours, as a photograph has them: lossy formats keep them nearly as they are."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def picture(pixels: Pixels | Image.Image, format: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def tiff(entries: Sequence[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A little-endian TIFF of one directory; a value of -1 stands for the offset of ``data``."""
    offset = 8 + 2 + 12 * len(entries) + 4
    packed = b"".join(
        struct.pack("<HHII", tag, kind, count, offset if value == -1 else value)
        for tag, kind, count, value in sorted(entries)
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + data


def rle_bmp(width: int, height: int, body: bytes) -> bytes:
    """An 8-bit BMP, run-length coded, of a grey palette."""
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    offset = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


def riff(kind: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for name, content in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + kind + body


# Sounds


def sine(
    frequency_hz: float, seconds: float, rate_hz: int, amplitudes: Sequence[float] = (0.5,), phase: float = 0.0
) -> Sound:
    """(channels, T), one amplitude a channel."""
    wave = np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz + phase)
    return (np.array(amplitudes)[:, None] * wave).astype(np.float32)


def wav(
    sound: NDArray[np.floating[Any]],
    rate_hz: int,
    kind: str = "s16",
    *,
    channels: int | None = None,
    declared: int | None = None,
) -> bytes:
    """RIFF WAVE, written by hand; ``channels`` and ``declared`` (bytes of samples) may be lies."""
    interleaved = np.asarray(sound).T.reshape(-1)
    if kind == "u8":
        samples = np.rint(interleaved * 127 + 128).astype("u1").tobytes()
    elif kind == "s24":
        scaled = np.rint(interleaved.astype(np.float64) * (2**23 - 1)).astype("<i4")
        samples = scaled.view("u1").reshape(-1, 4)[:, :3].tobytes()
    elif kind in ("f32", "f64"):
        samples = interleaved.astype({"f32": "<f4", "f64": "<f8"}[kind]).tobytes()
    else:
        bits = int(kind[1:])
        scaled = np.rint(interleaved.astype(np.float64) * (2 ** (bits - 1) - 1))
        samples = scaled.astype(f"<i{bits // 8}").tobytes()
    count, bits = channels or len(sound), int(kind[1:])
    block = count * bits // 8 & 0xFFFF
    head = struct.pack("<HHIIHH", 3 if kind[0] == "f" else 1, count, rate_hz, rate_hz * block & 0xFFFFFFFF, block, bits)
    size = len(samples) if declared is None else declared
    body: bytes = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", size) + samples
    return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def encoded_sound(
    sound: Sound, rate_hz: int, container: str, codec: str, *, bit_rate: int = 128_000, **options: str
) -> bytes:
    """(channels, T) in any container and codec that FFmpeg writes."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=BIT_EXACT | options) as file:
        stream = file.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(stream, av.AudioStream)
        if codec not in ("flac", "alac"):
            stream.bit_rate = bit_rate
        formats = stream.codec_context.codec.audio_formats
        assert formats
        names = [format.name for format in formats]
        wanted = next((name for name in ("fltp", "flt", "s16p", "s16") if name in names), names[0])
        if codec == "vorbis":
            stream.codec_context.options = {"strict": "experimental"}
        stream.codec_context.format = av.AudioFormat(wanted)
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        size = stream.codec_context.frame_size or 4096
        resampler = AudioResampler(format=wanted, layout=layout, rate=rate_hz, frame_size=size)
        for piece in resampler.resample(frame) + resampler.resample(None):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return buffer.getvalue()


# Clips


@contextmanager
def _same_priority() -> Iterator[None]:
    """Restores the thread's scheduling: as root, the AV1 encoder leaves its caller with real-time priority."""
    before = os.sched_getscheduler(0) if sys.platform == "linux" else None
    try:
        yield
    finally:
        if before is not None:
            os.sched_setscheduler(0, before, os.sched_param(0))


def clip(
    frames: Sequence[Pixels],
    container: str = "mp4",
    codec: str = "libx264",
    *,
    rate: Fraction | int = 25,
    seconds: Sequence[float] | None = None,
    pixel_format: str | None = None,
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    sound: Sound | None = None,
) -> bytes:
    """The frames at a steady ``rate``, or at the ``seconds`` given, to the millisecond; ``sound`` is mono at 16 kHz."""
    height, width = frames[0].shape[:2]
    if pixel_format is None:
        odd = height % 2 or width % 2
        pixel_format = "rgb8" if codec == "gif" else "yuv444p" if odd and codec == "libx264" else "yuv420p"
    defaults = {
        "libx264": {"crf": "8", "preset": "ultrafast"},
        "libvpx-vp9": {"crf": "8", "b": "0", "deadline": "realtime", "cpu-used": "8"},
        "libsvtav1": {"crf": "10", "preset": "12"},
        "mpeg4": {"q": "2"},
    }
    buffer = io.BytesIO()
    with _same_priority(), av.open(buffer, "w", format=container, options=BIT_EXACT) as file:
        stream = file.add_stream(codec, rate=Fraction(rate), options=options or defaults.get(codec, {}))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        time_base = Fraction(1, 1000) if seconds else 1 / Fraction(rate)
        stream.codec_context.time_base = time_base
        speech = None
        if sound is not None:
            speech = file.add_stream("aac", rate=16_000, layout="mono")
            assert isinstance(speech, av.AudioStream)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = round(seconds[number] * 1000) if seconds else number
            frame.time_base = time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound is not None and speech is not None:
            for start in range(0, sound.shape[1], 1024):
                piece = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound[:, start : start + 1024]), format="fltp", layout="mono"
                )
                piece.sample_rate, piece.pts, piece.time_base = 16_000, start, Fraction(1, 16_000)
                file.mux(speech.encode(piece))
            file.mux(speech.encode(None))
    return buffer.getvalue()


def numbered(count: int, height: int = 32, width: int = 48, step: int = 4) -> list[Pixels]:
    """Grey frames whose brightness is ``8 + step * number``."""
    return [np.full((height, width, 3), 8 + step * number, np.uint8) for number in range(count)]


def numbers(frames: Pixels, step: int = 4) -> list[int]:
    """The numbers that ``numbered`` wrote, read back from decoded frames, up to two levels darker after scaling."""
    return [round((float(frame.mean()) - 7) / step) for frame in frames]


def rotated(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Writes a b / c d of the display matrix into the MP4's track header (ISO/IEC 14496-12, section 8.3.2)."""
    start = mp4.index(b"tkhd") + 4
    at = start + (52 if mp4[start] == 1 else 40)
    a, b, c, d = (value * 65536 for value in matrix)
    packed = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    return mp4[:at] + packed + mp4[at + 36 :]


def said_to_be(mp4: bytes, height: int, width: int) -> bytes:
    """Writes a frame's size into the MP4's description of its H.264 (ISO/IEC 14496-12, section 12.1.3)."""
    at = mp4.index(b"avc1", mp4.index(b"stsd")) + 4 + 24
    return mp4[:at] + struct.pack(">HH", width, height) + mp4[at + 4 :]


# Damage


def mutations(data: bytes, count: int, seed: int = 0) -> list[bytes]:
    """``count`` damaged copies: one to eight bytes changed, more often within the header; some shortened or spliced."""
    generator = np.random.default_rng(seed)
    damaged = []
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(int(generator.integers(1, 9))):
            reach = len(copy) if generator.random() < 0.5 else min(len(copy), 128)
            copy[int(generator.integers(reach))] = int(generator.integers(256))
        kind = generator.random()
        if kind < 0.15:
            del copy[int(generator.integers(4, len(copy))) :]
        elif kind < 0.3:
            start = int(generator.integers(len(copy)))
            del copy[start : start + int(generator.integers(1, 64))]
        damaged.append(bytes(copy))
    return damaged


def cuts(data: bytes, count: int = 40) -> list[bytes]:
    """The file cut short at ``count`` points, from its first quarter of bytes on and right up to the end."""
    return [data[: max(1, len(data) * number // (count + 1))] for number in range(1, count + 1)]
