"""Windows of sounds and clips: decoded media + what the card states -> samples. Training and serving share them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.repository.card import AudioPreprocess, VideoPreprocess


class Windows(NamedTuple):
    """Windows of a long sound or clip; all arrays have the same length.

    ``weights`` says how much each window counts in the answer for the whole: a sound's windows by their energy, so that
    the silence around a word does not outvote it; a clip's all the same.
    """

    samples: list[NDArray[np.float32]] | list[NDArray[np.uint8]]
    spans: list[tuple[float, float]]  # seconds
    weights: NDArray[np.float64]


def audio_windows(sound: NDArray[np.float32], spec: AudioPreprocess) -> Windows:
    """(T,) mono at ``spec.sample_rate_hz`` -> windows (1, window_samples); a short sound is centred in silence.

    The last window ends where the sound ends, so that no window holds silence that was not recorded.
    """
    length, seconds = spec.window_samples, len(sound) / spec.sample_rate_hz
    if len(sound) < length:
        before = (length - len(sound)) // 2
        sound = np.pad(sound, (before, length - len(sound) - before))
    starts = _starts(len(sound), length, max(1, round(spec.hop_seconds * spec.sample_rate_hz)))
    samples = [sound[None, start : start + length] for start in starts]
    spans = _spans(starts, length, spec.sample_rate_hz, seconds)
    energies = np.array([float(np.mean(np.square(sample, dtype=np.float64))) for sample in samples])
    return Windows(samples, spans, energies if energies.sum() > 0 else np.ones(len(samples)))


def video_windows(frames: NDArray[np.uint8], spec: VideoPreprocess) -> Windows:
    """(T, H, W, 3) at ``spec.frame_rate_hz``, shorter side ``spec.shorter_side`` -> windows (frames, *size, 3), the
    middle of the picture. A short clip holds its last frame."""
    (height, width), seconds = spec.size, len(frames) / spec.frame_rate_hz
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    frames = frames[:, top : top + height, left : left + width]
    if len(frames) < spec.frames:
        frames = np.concatenate([frames, np.repeat(frames[-1:], spec.frames - len(frames), axis=0)])
    starts = _starts(len(frames), spec.frames, max(1, round(spec.hop_seconds * spec.frame_rate_hz)))
    samples = [frames[start : start + spec.frames] for start in starts]
    spans = _spans(starts, spec.frames, spec.frame_rate_hz, seconds)
    return Windows(samples, spans, np.ones(len(samples)))


def _starts(total: int, length: int, hop: int) -> list[int]:
    """Starts of windows: every ``hop``, and one that ends at the end."""
    starts = list(range(0, total - length + 1, hop))
    if starts[-1] + length < total:
        starts.append(total - length)
    return starts


def _spans(starts: list[int], length: int, rate_hz: float, seconds: float) -> list[tuple[float, float]]:
    """Start and end of each window in seconds, within the ``seconds`` that were recorded."""
    ends = [min((start + length) / rate_hz, seconds) for start in starts]
    return [(round(start / rate_hz, 3), round(end, 3)) for start, end in zip(starts, ends, strict=True)]
