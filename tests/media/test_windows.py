import numpy as np
import pytest

from service.media.windows import audio_windows, video_windows
from service.repository.card import AudioPreprocess, VideoPreprocess
from tests import synthetic as media

# Sounds


def spoken(window_samples: int, hop_samples: float) -> AudioPreprocess:
    return AudioPreprocess(sample_rate_hz=1000, window_seconds=window_samples / 1000, hop_seconds=hop_samples / 1000)


def counted(samples: int) -> media.Sound:
    return np.arange(1, samples + 1, dtype=np.float32)


@pytest.mark.parametrize(
    "samples,starts",
    [
        (100, [0]),
        (101, [0, 1]),  # the last window ends where the sound ends
        (149, [0, 49]),
        (150, [0, 50]),
        (151, [0, 50, 51]),
        (230, [0, 50, 100, 130]),
        (300, [0, 50, 100, 150, 200]),
    ],
)
def test_windows_follow_each_other_by_the_hop_and_the_last_ends_with_the_sound(samples: int, starts: list[int]) -> None:
    windows = audio_windows(counted(samples), spoken(100, 50))
    assert [int(sample[0, 0]) - 1 for sample in windows.samples] == starts
    assert all(sample.shape == (1, 100) for sample in windows.samples)
    assert np.array(windows.spans) == pytest.approx(np.array([(start / 1000, start / 1000 + 0.1) for start in starts]))
    assert len(windows.weights) == len(starts)


def test_a_hop_longer_than_the_window_leaves_gaps_but_not_the_end() -> None:
    windows = audio_windows(counted(350), spoken(100, 200))
    assert [int(sample[0, 0]) - 1 for sample in windows.samples] == [0, 200, 250]


def test_a_hop_of_less_than_a_sample_is_one_sample() -> None:
    assert len(audio_windows(counted(103), spoken(100, 0.1)).samples) == 4


@pytest.mark.parametrize("samples,before", [(1, 49), (40, 30), (41, 29), (99, 0)])
def test_a_short_sound_is_centred_in_silence(samples: int, before: int) -> None:
    (window,) = audio_windows(counted(samples), spoken(100, 50)).samples
    expected = np.zeros((1, 100), np.float32)
    expected[0, before : before + samples] = counted(samples)
    assert np.array_equal(window, expected)
    assert window.dtype == np.float32


def test_windows_weigh_by_their_energy() -> None:
    sound = np.concatenate([np.full(100, level, np.float32) for level in (0.0, 0.5, -1.0)])
    windows = audio_windows(sound, spoken(100, 100))
    assert windows.weights == pytest.approx([0, 0.25, 1])


def test_windows_of_silence_weigh_the_same() -> None:
    assert audio_windows(np.zeros(250, np.float32), spoken(100, 100)).weights.tolist() == [1, 1, 1]


# Clips


def filmed(
    frames: int, hop_seconds: float, shorter_side: int = 16, size: tuple[int, int] = (12, 12)
) -> VideoPreprocess:
    return VideoPreprocess(
        frame_rate_hz=8, frames=frames, hop_seconds=hop_seconds, shorter_side=shorter_side, size=size
    )


def ticking(count: int, height: int = 16, width: int = 24) -> media.Pixels:
    """Frame ``k`` has the level ``k``."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 3)).copy()


@pytest.mark.parametrize("count,starts", [(8, [0]), (9, [0, 1]), (12, [0, 4]), (15, [0, 4, 7]), (16, [0, 4, 8])])
def test_clips_are_cut_into_windows_and_the_last_ends_with_the_clip(count: int, starts: list[int]) -> None:
    windows = video_windows(ticking(count), filmed(8, 0.5))
    assert [sample[:, 0, 0, 0].tolist() for sample in windows.samples] == [[*range(s, s + 8)] for s in starts]
    assert windows.spans == [(start / 8, start / 8 + 1) for start in starts]
    assert windows.weights.tolist() == [1] * len(starts)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_short_clip_holds_its_last_frame(count: int) -> None:
    (window,) = video_windows(ticking(count), filmed(8, 0.5)).samples
    assert window[:, 0, 0, 0].tolist() == [*range(count), *[count - 1] * (8 - count)]


def test_windows_show_the_middle_of_the_picture() -> None:
    frames = media.positions(16, 24)[None].repeat(8, axis=0)
    (window,) = video_windows(frames, filmed(8, 0.5, size=(12, 10))).samples
    assert window.shape == (8, 12, 10, 3)
    assert window[0, 0, :, 0].tolist() == [*range(7, 17)]  # (24 - 10) / 2
    assert window[0, :, 0, 1].tolist() == [*range(2, 14)]  # (16 - 12) / 2


def test_a_hop_of_less_than_a_frame_is_one_frame() -> None:
    assert len(video_windows(ticking(11), filmed(8, 0.01)).samples) == 4


def test_spans_end_where_the_recording_ends() -> None:
    sound = audio_windows(
        np.zeros(400, np.float32), AudioPreprocess(sample_rate_hz=1000, window_seconds=1, hop_seconds=1)
    )
    assert sound.spans == [(0.0, 0.4)]
    spec = VideoPreprocess(frame_rate_hz=8, frames=16, hop_seconds=1, shorter_side=8, size=(8, 8))
    assert video_windows(np.zeros((5, 8, 8, 3), np.uint8), spec).spans == [(0.0, 0.625)]
