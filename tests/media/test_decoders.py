"""The interface that all decoders share: blocks with back-pressure, a deadline, and calls from another process."""

import gc
import multiprocessing
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import CorruptMedia, DeadlineExceeded, MediaTooLarge
from service.media import NO_DEADLINE, Limits, audio, image, video
from service.media.audio import AudioSpec
from service.media.image import ImageSpec
from service.media.video import VideoSpec
from tests import synthetic as media

RATE_HZ = 16_000


class Case(NamedTuple):
    decode: Callable[..., Iterator[Any]]
    spec: Any
    data: bytes


def clip(count: int = 100) -> bytes:
    return media.clip(media.numbered(count, 32, 48, step=2), rate=25)


CASES = {
    "image": Case(image.decode, ImageSpec(shorter_side=16), media.picture(media.smooth(90, 120), "JPEG")),
    "audio": Case(audio.decode, AudioSpec(RATE_HZ), media.wav(media.sine(440, 3.5, 44_100, (0.5, 0.2)), 44_100)),
    "video": Case(video.decode, VideoSpec(frame_rate_hz=25, shorter_side=16), clip()),
}
each_decoder = pytest.mark.parametrize("name", CASES)


def blocks(name: str, data: bytes, spec: Any, limits: Limits, deadline: float = NO_DEADLINE) -> list[Any]:
    """What another process is asked for."""
    return list(CASES[name].decode(data, spec, limits, deadline))


def arrays(found: list[Any]) -> list[NDArray[Any]]:
    return [np.asarray(block.image if isinstance(block, image.Picture) else block) for block in found]


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@each_decoder
def test_a_call_in_another_process_gives_the_same_blocks(name: str, process: ProcessPoolExecutor) -> None:
    _, spec, data = CASES[name]
    here, there = blocks(name, data, spec, Limits()), process.submit(blocks, name, data, spec, Limits()).result(60)
    assert [block.shape for block in arrays(here)] == [block.shape for block in arrays(there)]
    assert all(map(np.array_equal, arrays(here), arrays(there)))
    assert [type(block) for block in here] == [type(block) for block in there]


@each_decoder
def test_refusals_come_back_from_another_process(name: str, process: ProcessPoolExecutor) -> None:
    _, spec, data = CASES[name]
    narrow = Limits(max_pixels=10, max_seconds=0.1, max_frame_pixels=10)
    with pytest.raises(MediaTooLarge, match="allows"):
        process.submit(blocks, name, data, spec, narrow).result(60)
    with pytest.raises(CorruptMedia):
        process.submit(blocks, name, data[:60], spec, Limits()).result(60)
    with pytest.raises(DeadlineExceeded):
        process.submit(blocks, name, data, spec, Limits(), time.monotonic()).result(60)


@each_decoder
def test_specs_and_limits_survive_pickling(name: str) -> None:
    spec, limits = CASES[name].spec, Limits(max_pixels=7, max_seconds=1.5)
    assert pickle.loads(pickle.dumps((spec, limits))) == (spec, limits)


@each_decoder
def test_a_deadline_that_has_passed_ends_decoding(name: str) -> None:
    decode, spec, data = CASES[name]
    with pytest.raises(DeadlineExceeded, match="decoded"):
        list(decode(data, spec, Limits(), time.monotonic()))


@pytest.mark.parametrize("name", ["audio", "video"])
def test_a_deadline_that_passes_between_two_blocks_ends_decoding(name: str) -> None:
    decode, spec, data = CASES[name]
    deadline = time.monotonic() + 0.5
    found = decode(data, spec, Limits(), deadline)
    next(found)
    time.sleep(max(0.0, deadline - time.monotonic()))
    with pytest.raises(DeadlineExceeded):
        next(found)


@each_decoder
def test_closing_the_iterator_midway_releases_the_file_and_others_decode_fine(name: str) -> None:
    decode, spec, data = CASES[name]
    expected = arrays(blocks(name, data, spec, Limits()))
    gc.collect()
    gc.disable()  # what is released without it needs no search for garbage
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            before = sys.getrefcount(data)
            for _ in range(20):
                found = decode(data, spec, Limits())
                next(found)
                found.close()  # type: ignore[attr-defined]
                assert list(found) == []
                del found
                assert sys.getrefcount(data) == before, "something still holds the file's bytes"
    finally:
        gc.enable()
    assert all(map(np.array_equal, arrays(blocks(name, data, spec, Limits())), expected))


# Blocks


@pytest.mark.parametrize(
    "data",
    [
        media.wav(media.sine(440, 5.3, 44_100, (0.5, 0.5)), 44_100),
        media.wav(media.sine(440, 5.3, 8_000), 8_000),
        media.encoded_sound(media.sine(440, 5.3, 44_100), 44_100, "flac", "flac"),
        media.encoded_sound(media.sine(440, 5.3, 48_000), 48_000, "ogg", "libopus"),
    ],
    ids=["WAV", "WAV at 8 kHz", "FLAC", "Opus"],
)
def test_blocks_of_a_long_sound_last_about_a_second(data: bytes) -> None:
    lengths = [len(block) / RATE_HZ for block in audio.decode(data, AudioSpec(RATE_HZ), Limits())]
    assert len(lengths) in (5, 6)
    assert all(1.0 <= seconds < 1.6 for seconds in lengths[:-1])
    assert 0 < lengths[-1] < 1.6
    assert sum(lengths) == pytest.approx(5.3, abs=0.05)


def test_a_short_sound_is_one_block() -> None:
    (block,) = audio.decode(media.wav(media.sine(440, 0.5, RATE_HZ), RATE_HZ), AudioSpec(RATE_HZ), Limits())
    assert block.shape == (RATE_HZ // 2,)


@pytest.mark.parametrize(("count", "lengths"), [(100, [32, 32, 32, 4]), (64, [32, 32]), (5, [5])])
def test_blocks_of_a_clip_hold_at_most_32_frames(count: int, lengths: list[int]) -> None:
    found = list(video.decode(clip(count), VideoSpec(25, 16), Limits()))
    assert [len(block) for block in found] == lengths
    shown = np.array(media.numbers(np.concatenate(found), step=2))
    assert np.abs(shown - np.arange(count)).max() <= 1  # so little between two frames is lost in coding


def test_a_frame_that_is_shown_for_long_fills_several_blocks() -> None:
    data = media.clip(media.numbered(2), "matroska", seconds=[0, 20])
    found = list(video.decode(data, VideoSpec(8, 16), Limits()))
    assert {len(block) for block in found[:-1]} == {32}
    assert media.numbers(np.concatenate(found))[:161] == [*[0] * 160, 1]


def test_blocks_come_before_the_whole_is_decoded() -> None:
    sound = media.sine(440, 5, RATE_HZ)
    sound[0, -10] = np.nan
    found = audio.decode(media.wav(sound, RATE_HZ, "f32"), AudioSpec(RATE_HZ), Limits())
    assert len(next(found)) >= RATE_HZ
    with pytest.raises(CorruptMedia, match="not finite"):
        list(found)
    frames = video.decode(clip(100), VideoSpec(25, 16), replace(Limits(), max_frames=60))
    assert len(next(frames)) == 32
    with pytest.raises(MediaTooLarge, match="more than 60 frames"):
        list(frames)
