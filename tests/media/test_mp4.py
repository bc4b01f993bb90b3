"""The index of a film, read before it is decoded. PyAV, which asks FFmpeg, is the oracle."""

import io
import math
import struct
from dataclasses import asdict
from typing import Any

import av
import numpy as np
import pytest

from service.errors import MediaTooLarge
from service.media import Limits
from service.media.mp4 import Film, film
from service.media.video import VideoSpec, claimed_limits, decode, decode_cost, film_seconds
from tests import synthetic as media

SLOW = 0.008  # seconds on the event loop that a worker with one core allows
SPEC = VideoSpec(frame_rate_hz=8, shorter_side=32)


def small(container: str = "mp4", **options: Any) -> bytes:
    return media.clip(media.numbered(16), container, rate=8, **options)


def decoded(data: bytes, limits: Limits) -> media.Pixels:
    return np.concatenate(list(decode(data, SPEC, limits)))


CLIPS = {
    "plain": small(),
    "MOV": small("mov"),
    "odd": media.clip(media.numbered(5, 35, 33), rate=8),
    "out of order": small(options={"preset": "veryfast", "x264-params": "bframes=3:b-adapt=0:scenecut=0"}),
    "varying rate": media.clip(media.numbered(5), seconds=[0, 0.05, 0.3, 1.2, 1.22]),
    "late": media.clip(media.numbered(4), seconds=[5, 5.1, 5.2, 5.3]),
    "aspect": small(pixel_aspect=2),
    "one frame": media.clip(media.numbered(1), rate=8),
    "turned": media.rotated(small(), (0, 1, -1, 0)),
}


@pytest.mark.parametrize("name", CLIPS)
def test_the_index_of_a_film_is_read_as_ffmpeg_reads_it(name: str) -> None:
    found = film(CLIPS[name])
    with av.open(io.BytesIO(CLIPS[name]), "r") as container:
        [stream] = container.streams.video
        assert stream.duration is not None and stream.time_base is not None
        sizes = [packet.size for packet in container.demux(stream)]
        seconds = float(stream.duration * stream.time_base)
        expected = Film(stream.width, stream.height, stream.frames, sum(sizes), seconds)
    assert found == expected


@pytest.mark.parametrize("name", CLIPS)
def test_a_film_as_large_as_it_claims_passes_the_limits_that_it_claims(name: str) -> None:
    claims = film(CLIPS[name])
    assert claims is not None
    assert np.array_equal(decoded(CLIPS[name], claimed_limits(claims, Limits())), decoded(CLIPS[name], Limits()))


def test_claims_raise_no_limit() -> None:
    limits = Limits(max_frame_pixels=1000, max_frames=10, max_seconds=1.0)
    assert claimed_limits(Film(1920, 1080, 500, 10_000, 60.0), limits) == limits
    lowered = claimed_limits(Film(16, 16, 4, 1_000, 0.5), Limits())
    changed = {name for name, value in asdict(lowered).items() if value != asdict(Limits())[name]}
    assert changed == {"max_frame_pixels", "max_frames", "max_seconds"}


def hurried(data: bytes) -> bytes:
    """Its header says that it took no time at all; its frames have their time stamps."""
    at = data.index(b"mdhd") + 4 + 16
    return data[:at] + bytes(4) + data[at + 4 :]


def repeated(data: bytes, times: int) -> bytes:
    """An edit list that shows it more than once (ISO/IEC 14496-12, section 8.6.6)."""
    at = data.index(b"edts") - 4
    length = struct.unpack_from(">I", data, at)[0]
    first = data[at + 24 : at + 36]
    edits = struct.pack(">I4sI", 16 + 12 * times, b"elst", 0) + struct.pack(">I", times) + first * times
    longer = 8 + len(edits) - length
    data = data[:at] + struct.pack(">I4s", 8 + len(edits), b"edts") + edits + data[at + length :]
    for name in (b"moov", b"trak"):
        box = data.index(name) - 4
        data = data[:box] + struct.pack(">I", struct.unpack_from(">I", data, box)[0] + longer) + data[box + 4 :]
    return data


LIES = {
    "size": media.said_to_be(media.clip(media.numbered(16, 96, 96), rate=8), 16, 16),
    "duration": hurried(small()),
    "frames": repeated(small(), 3),
}


@pytest.mark.parametrize("name", LIES)
def test_a_film_larger_than_it_claims_is_refused_by_the_limits_that_it_claims(name: str) -> None:
    claims = film(LIES[name])
    assert claims is not None
    assert len(decoded(LIES[name], Limits())) >= 16
    with pytest.raises(MediaTooLarge):
        decoded(LIES[name], claimed_limits(claims, Limits()))


def boxed(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


OTHERS = {
    "sound": media.clip(media.numbered(8), rate=8, sound=media.sine(440, 1, 16_000)),
    "MPEG-4": media.clip(media.numbered(8), "mp4", "mpeg4"),
    "Matroska": media.clip(media.numbered(8), "matroska"),
    "AVI": media.clip(media.numbered(8), "avi", "mpeg4"),
    "GIF": media.clip(media.numbered(8), "gif", "gif"),
    "long": media.clip(media.numbered(1000, 16, 16, step=0), rate=8),
    "many boxes": small() + boxed(b"free", b"") * 16,
    "two indices": small() + small()[small().index(b"moov") - 4 :],
    "fragments": small() + boxed(b"moof", bytes(16)),
    "picture": media.picture(media.smooth(9, 9), "PNG"),
    "nothing": b"",
    "no index": boxed(b"ftyp", b"isom\0\0\0\0isom") + boxed(b"mdat", bytes(100)),
    "cut": small()[:-1],
    "longer than it is": small()[:-4] + struct.pack(">I", 100) + small()[-4:],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_have_no_index_that_is_read(name: str) -> None:
    assert film(OTHERS[name]) is None
    assert decode_cost(OTHERS[name], SPEC, Limits()) == (math.inf, Limits())


def test_a_film_is_estimated_under_the_limits_that_it_claims() -> None:
    claims = film(CLIPS["plain"])
    assert claims is not None
    assert decode_cost(CLIPS["plain"], SPEC, Limits()) == (film_seconds(claims, SPEC), claimed_limits(claims, Limits()))


def test_boxes_may_have_long_lengths_or_reach_to_the_end() -> None:
    data, at = small(), small().index(b"mdat") - 4
    length = struct.unpack_from(">I", data, at)[0]
    content, rest = data[at + 8 : at + length], data[at + length :]
    long = struct.pack(">I4sQ", 1, b"mdat", length + 8) + content
    assert film(data[:at] + long + rest) == film(data)
    assert film(data[:at] + rest + struct.pack(">I4s", 0, b"mdat") + content) == film(data)


def test_damage_never_raises() -> None:
    data = small()
    header = data[data.index(b"moov") - 4 :]
    headers = [data[:32] + damaged for damaged in media.mutations(header, 1000)]
    for damaged in [*media.mutations(data, 300), *media.cuts(data), *headers]:
        found = film(damaged)
        assert found is None or film_seconds(found, SPEC) > 0


def test_more_of_anything_takes_longer() -> None:
    plain = Film(112, 112, 16, 30_000, 2.0)
    takes = film_seconds(plain, VideoSpec(8, 112))
    assert 0.001 < takes < SLOW
    for larger in (
        plain._replace(width=400),
        plain._replace(height=400),
        plain._replace(frames=160),
        plain._replace(frame_bytes=300_000),
        plain._replace(seconds=500.0),
    ):
        assert takes < film_seconds(larger, VideoSpec(8, 112)) < math.inf
    assert film_seconds(plain, VideoSpec(60, 112)) > takes
    assert film_seconds(plain, VideoSpec(8, 448)) > SLOW


@pytest.mark.parametrize("size", [(0, 0), (0, 100), (100, 0), (100, 500), (500, 100)])
def test_a_film_without_a_size_or_a_ribbon_is_not_estimated_as_quick(size: tuple[int, int]) -> None:
    assert film_seconds(Film(*size, 16, 30_000, 2.0), VideoSpec(8, 112)) == math.inf
