import gc
import io
import json
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from service.errors import CorruptMedia, MediaTooLarge, UnsupportedMedia
from service.media import Limits
from service.media.video import VideoSpec, decode
from tests import synthetic as media

CODECS = {  # container, codec
    "H.264 in MP4": ("mp4", "libx264"),
    "H.264 in MOV": ("mov", "libx264"),
    "H.264 in MKV": ("matroska", "libx264"),
    "H.264 in AVI": ("avi", "libx264"),
    "H.265 in MP4": ("mp4", "libx265"),
    "VP9 in WebM": ("webm", "libvpx-vp9"),
    "VP9 in MP4": ("mp4", "libvpx-vp9"),
    "AV1 in MP4": ("mp4", "libsvtav1"),
    "AV1 in WebM": ("webm", "libsvtav1"),
    "MPEG-4 in AVI": ("avi", "mpeg4"),
    "MPEG-4 in MP4": ("mp4", "mpeg4"),
    "Motion JPEG in AVI": ("avi", "mjpeg"),
    "GIF": ("gif", "gif"),
}
SMALLEST = 64  # the AV1 encoder takes nothing smaller


def decoded(
    data: bytes, *, frame_rate_hz: float = 8, shorter_side: int = 32, limits: Limits | None = None
) -> media.Pixels:
    return np.concatenate(list(decode(data, VideoSpec(frame_rate_hz, shorter_side), limits or Limits())))


def on_screen(starts: list[float], end: float, frame_rate_hz: float = 8) -> list[int]:
    """Which frame each tick shows: the last to have begun, a millisecond's rounding allowed."""
    shown: list[int] = []
    while (tick := len(shown) / frame_rate_hz) < end - 1e-3 or not shown:
        shown.append(sum(start <= tick + 1e-3 for start in starts) - 1)
    return shown


@cache
def encoded(name: str) -> bytes:
    container, codec = CODECS[name]
    options = {"x265-params": "log-level=none", "preset": "ultrafast", "crf": "8"} if codec == "libx265" else None
    frames = media.numbered(25, SMALLEST, 96, step=8)
    pixel_format = "yuvj420p" if codec == "mjpeg" else None
    return media.clip(frames, container, codec, options=options, pixel_format=pixel_format)


# What comes out is what went in


@pytest.mark.parametrize("name", CODECS)
def test_every_format_shows_the_frames_that_went_in(name: str) -> None:
    shown = decoded(encoded(name))
    assert shown.dtype == np.uint8
    assert shown.shape == (8, 32, 48, 3)
    assert media.numbers(shown, step=8) == on_screen([number / 25 for number in range(25)], 1)


@pytest.mark.parametrize("container,codec", [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("gif", "gif")])
def test_colours_are_where_they_belong(container: str, codec: str) -> None:
    data = media.clip([media.quarters(64, 96)] * 3, container, codec)
    for shorter_side in (32, 64):
        assert media.corners(decoded(data, shorter_side=shorter_side)[0]) == media.CORNERS


def test_a_picture_comes_out_as_it_went_in_but_for_the_coding() -> None:
    picture = media.smooth(120, 160)
    options = {"qp": "0", "preset": "ultrafast"}
    shown = decoded(media.clip([picture], pixel_format="yuv444p", options=options), shorter_side=60)
    expected = np.asarray(Image.fromarray(picture).resize((80, 60), Image.Resampling.BOX), int)
    assert np.abs(shown[0] - expected).mean() < 3


@pytest.mark.parametrize("height,width", [(33, 47), (47, 33), (17, 17), (1, 3), (64, 65), (63, 65)])
@pytest.mark.parametrize("codec", ["libx264", "gif"])
def test_odd_sizes_decode_to_the_shorter_side_that_is_asked_for(codec: str, height: int, width: int) -> None:
    frames = media.numbered(3, height, width)
    data = media.clip(frames, "gif" if codec == "gif" else "mp4", codec, rate=10)
    shown = decoded(data, frame_rate_hz=10, shorter_side=32)
    scale = 32 / min(height, width)
    assert shown.shape == (3, round(height * scale), round(width * scale), 3)
    if min(height, width) > 1:  # a GIF's few colours need room to mix
        assert media.numbers(shown) == [0, 1, 2]


# Which frames are shown


@pytest.mark.parametrize(
    "rate", [Fraction(5), Fraction(8), Fraction(24), Fraction(25), Fraction(30_000, 1001), Fraction(50), Fraction(60)]
)
@pytest.mark.parametrize(
    "container,codec", [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")]
)
def test_the_frame_on_the_screen_is_shown_whatever_the_rate(container: str, codec: str, rate: Fraction) -> None:
    count = 58
    shown = decoded(media.clip(media.numbered(count), container, codec, rate=rate))
    assert media.numbers(shown) == on_screen([float(number / rate) for number in range(count)], float(count / rate))


@pytest.mark.parametrize("frame_rate_hz", [1, 4, 7.5, 10, 25, 60])
def test_every_wanted_rate_is_met(frame_rate_hz: float) -> None:
    shown = decoded(media.clip(media.numbered(50), rate=25), frame_rate_hz=frame_rate_hz)
    assert media.numbers(shown) == on_screen([number / 25 for number in range(50)], 2, frame_rate_hz)


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
def test_frames_are_shown_by_their_time_stamps_where_the_rate_varies(container: str) -> None:
    seconds = [0.0, 0.05, 0.3, 0.31, 0.32, 0.7, 1.2, 1.22, 1.9, 2.0]
    shown = media.numbers(decoded(media.clip(media.numbered(10), container, seconds=seconds)))
    expected = on_screen(seconds, 2.0)
    assert shown[: len(expected)] == expected
    assert set(shown[len(expected) :]) <= {9}  # how long the last one stays, the container may not know


def test_a_clip_that_begins_late_begins_with_its_first_frame() -> None:
    seconds = [number / 8 + 5 for number in range(6)]
    for container in ("mp4", "matroska"):
        assert media.numbers(decoded(media.clip(media.numbered(6), container, seconds=seconds)))[:6] == [*range(6)]


def test_gif_frames_stay_as_long_as_they_say() -> None:
    frames = [Image.fromarray(frame) for frame in media.numbered(4)]
    data = media.picture(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=[250, 500, 130, 250])
    assert media.numbers(decoded(data)) == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3]


def test_frames_coded_out_of_order_are_shown_in_order() -> None:
    options = {"crf": "8", "preset": "veryfast", "x264-params": "bframes=3:b-adapt=0:scenecut=0"}
    data = media.clip(media.numbered(32), rate=8, options=options)
    with av.open(io.BytesIO(data), "r") as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stamps != sorted(stamps)
    assert media.numbers(decoded(data)) == [*range(32)]


@pytest.mark.parametrize("name", ["H.264 in MP4", "VP9 in WebM", "AV1 in MP4", "MPEG-4 in AVI", "GIF"])
def test_a_clip_of_one_frame_shows_it_once(name: str) -> None:
    container, codec = CODECS[name]
    shown = decoded(media.clip(media.numbered(8, SMALLEST, SMALLEST)[5:6], container, codec))
    assert media.numbers(shown) == [5]


def test_a_clip_with_sound_shows_its_pictures() -> None:
    data = media.clip(media.numbered(8), rate=8, sound=media.sine(440, 1, 16_000))
    assert media.numbers(decoded(data)) == [*range(8)]


# Upright, with square pixels


@pytest.mark.parametrize(
    "matrix,quarter_turns",  # a, b / c, d; how often the camera turned the picture counter-clockwise
    [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)],
    ids=["none", "90", "180", "270"],
)
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_the_display_matrix_turns_the_clip_upright(
    container: str, matrix: tuple[int, int, int, int], quarter_turns: int
) -> None:
    turned = np.ascontiguousarray(np.rot90(media.quarters(64, 96), quarter_turns))
    shown = decoded(media.rotated(media.clip([turned] * 2, container), matrix))
    assert shown.shape[1:] == (32, 48, 3)
    assert media.corners(shown[0]) == media.CORNERS


@pytest.mark.parametrize(
    "matrix,stored",
    [
        ((-1, 0, 0, 1), media.quarters(64, 96)[:, ::-1]),
        ((1, 0, 0, -1), media.quarters(64, 96)[::-1]),
        ((0, 1, 1, 0), media.quarters(64, 96).swapaxes(0, 1)),
        ((0, -1, -1, 0), media.quarters(64, 96)[::-1, ::-1].swapaxes(0, 1)),
    ],
    ids=["left for right", "top for bottom", "transposed", "transverse"],
)
def test_a_mirroring_display_matrix_is_undone(matrix: tuple[int, int, int, int], stored: media.Pixels) -> None:
    shown = decoded(media.rotated(media.clip([np.ascontiguousarray(stored)] * 2), matrix))
    assert shown.shape[1:] == (32, 48, 3)
    assert media.corners(shown[0]) == media.CORNERS


def test_decoded_frames_are_freed_without_looking_for_garbage() -> None:
    data = media.rotated(media.clip([media.quarters(64, 96)] * 8), (0, 1, -1, 0))
    decoded(data)
    gc.collect()
    gc.disable()
    try:
        decoded(data)
        left = [frame for frame in gc.get_objects() if type(frame) is av.VideoFrame]  # isinstance asks proxies, too
    finally:
        gc.enable()
    assert all(min(frame.width, frame.height) <= 32 for frame in left) and len(left) <= 1


@pytest.mark.parametrize(
    "aspect,expected", [(Fraction(2), (32, 64)), (Fraction(4, 3), (32, 43)), (Fraction(1, 2), (64, 32))]
)
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_pixels_that_are_not_square_are_made_so(container: str, aspect: Fraction, expected: tuple[int, int]) -> None:
    shown = decoded(media.clip([media.quarters(64, 64)] * 2, container, pixel_aspect=aspect))
    assert shown.shape[1:3] == expected
    assert media.corners(shown[0]) == media.CORNERS


def test_a_forged_pixel_aspect_counts_as_square() -> None:
    shown = decoded(media.clip([media.quarters(64, 64)] * 2, "matroska", pixel_aspect=Fraction(1, 200)))
    assert shown.shape[1:3] == (32, 32)


# Limits


def test_frames_with_too_many_pixels_are_refused() -> None:
    data = media.clip(media.numbered(2, 64, 96))
    assert len(decoded(data, limits=Limits(max_frame_pixels=64 * 96 * 2)))
    with pytest.raises(MediaTooLarge, match="MAX_FRAME_PIXELS allows 6000"):
        decoded(data, limits=Limits(max_frame_pixels=6000))


@pytest.mark.parametrize("name", CODECS)
def test_no_codec_passes_the_limit_on_frames(name: str) -> None:
    with pytest.raises(MediaTooLarge, match="MAX_FRAME_PIXELS"):
        decoded(encoded(name), limits=Limits(max_frame_pixels=5000))


def test_too_many_frames_are_refused_and_max_frames_itself_is_not() -> None:
    data = media.clip(media.numbered(12), rate=8)
    assert len(decoded(data, limits=Limits(max_frames=12))) == 12
    with pytest.raises(MediaTooLarge, match="more than 11 frames, which MAX_FRAMES allows"):
        decoded(data, limits=Limits(max_frames=11))


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_too_many_seconds_are_refused_and_max_seconds_itself_is_not(container: str) -> None:
    data = media.clip(media.numbered(16), container, "mpeg4" if container == "avi" else "libx264", rate=8)
    assert len(decoded(data, limits=Limits(max_seconds=2))) == 16
    with pytest.raises(MediaTooLarge, match=r"MAX_SECONDS allows 1"):
        decoded(data, limits=Limits(max_seconds=1))


def test_a_last_frame_far_in_the_future_is_refused_not_held() -> None:
    data = media.clip(media.numbered(2), "matroska", seconds=[0, 100_000])
    with pytest.raises(MediaTooLarge, match="MAX_SECONDS"):
        decoded(data)


@pytest.mark.parametrize("height,width", [(8, 400), (400, 8)])
def test_a_ribbon_is_refused_as_its_frames_would_grow_without_bound(height: int, width: int) -> None:
    with pytest.raises(MediaTooLarge, match="times the other"):
        decoded(media.clip(media.numbered(2, height, width)), shorter_side=128)


def packed(packets: list[bytes], codec: str, container: str = "matroska", size: tuple[int, int] = (64, 64)) -> bytes:
    """A clip of packets that were made elsewhere; the header declares ``size``, whatever they hold."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
        for number, body in enumerate(packets):
            packet = av.Packet(body)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 8), True
            packet.pts = packet.dts = number
            file.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("declared", [64, 8_000])
@pytest.mark.parametrize("container,codec,format", [("matroska", "mjpeg", "JPEG"), ("mov", "png", "PNG")])
def test_a_clip_with_a_huge_frame_costs_no_memory(
    container: str, codec: str, format: str, declared: int, tmp_path: Path
) -> None:
    """Whether its header tells or hides it. In a process of its own, whose peak is known."""
    small, huge = (media.picture(np.zeros((side, side), np.uint8), format) for side in (64, 8_000))
    (tmp_path / "small").write_bytes(packed([small], codec, container))
    (tmp_path / "bomb").write_bytes(packed([huge] * 2, codec, container, size=(declared, declared)))
    program = """
import json, pathlib, resource, sys
from service.media import Limits
from service.media.video import VideoSpec, decode
found = []
for path in sys.argv[1:]:
    try:
        list(decode(pathlib.Path(path).read_bytes(), VideoSpec(8, 32), Limits()))
        found.append("decoded")
    except Exception as error:
        found.append(type(error).__name__)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(json.dumps(found))
"""
    paths = [str(tmp_path / name) for name in ("small", "bomb")]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, timeout=60, check=True)
    first, before, second, after = json.loads(done.stdout)
    assert (first, second) == ("decoded", "MediaTooLarge")
    assert after - before < 40  # MiB; one frame is 61, and more once it is converted


def jpegs(*sizes: tuple[int, int]) -> list[bytes]:
    return [media.picture(np.full((*size, 3), 128, np.uint8), "JPEG") for size in sizes]


def test_a_new_resolution_of_the_same_shape_is_scaled_to_the_same_frames() -> None:
    shown = decoded(packed(jpegs((64, 96), (128, 192), (64, 96)), "mjpeg", size=(64, 96)))
    assert shown.shape == (3, 32, 48, 3)


def test_a_clip_that_changes_its_shape_is_refused() -> None:
    with pytest.raises(CorruptMedia, match="changes its shape"):
        decoded(packed(jpegs((64, 96), (96, 64)), "mjpeg", size=(64, 96)))


def test_a_later_frame_with_too_many_pixels_is_refused() -> None:
    with pytest.raises(MediaTooLarge, match="MAX_FRAME_PIXELS"):
        decoded(
            packed(jpegs(*[(64, 96)] * 20, (640, 960)), "mjpeg", size=(64, 96)), limits=Limits(max_frame_pixels=9000)
        )


# Damage


@pytest.mark.parametrize("name", CODECS)
def test_a_truncated_clip_is_refused_or_shows_what_is_left(name: str) -> None:
    data = encoded(name)
    whole = decoded(data)
    for cut in media.cuts(data, 20):
        try:
            shown = decoded(cut)
        except CorruptMedia:
            continue
        assert 0 < len(shown) <= len(whole) + 8  # the last frame that is left may be held


@pytest.mark.parametrize("name", CODECS)
def test_damaged_clips_raise_nothing_but_refusals(name: str) -> None:
    limits = Limits(max_frame_pixels=100_000, max_seconds=30)
    for data in media.mutations(encoded(name), 60):
        try:
            shown = decoded(data, limits=limits)
        except (CorruptMedia, MediaTooLarge, UnsupportedMedia):
            continue
        assert shown.ndim == 4
        assert min(shown.shape[1:3]) == 32


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_file_with_nothing_but_sound_is_refused(container: str) -> None:
    with pytest.raises(CorruptMedia, match="no video stream"):
        decoded(media.encoded_sound(media.sine(440, 0.2, 48_000), 48_000, container, "aac"))


def test_a_coding_that_no_decoder_knows_is_refused() -> None:
    data = media.clip(media.numbered(2))
    with pytest.raises(CorruptMedia, match="coding"):
        decoded(data.replace(b"avc1", b"zzz9"))


@pytest.mark.parametrize(
    "data,named",
    [
        (b"", "no known format"),
        (b"some text", "no known format"),
        (b"\x47" + bytes(187), "no known format"),
        (media.picture(media.smooth(8, 8), "PNG"), "PNG"),
        (media.wav(media.sine(440, 0.1, 8000), 8000), "WAV"),
    ],
    ids=["nothing", "text", "MPEG-TS", "PNG", "WAV"],
)
def test_other_files_are_refused_with_the_accepted_formats(data: bytes, named: str) -> None:
    with pytest.raises(UnsupportedMedia) as refusal:
        decoded(data)
    assert named in refusal.value.detail
    assert "MP4, MOV, WebM, MKV, AVI or GIF" in refusal.value.detail
    assert refusal.value.status == 415
