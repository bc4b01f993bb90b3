"""Sounds that are not spoken digits: pieces of environmental sounds, and synthetic silence, noise, hum, clicks, music.

They are the eleventh category of the audio model, which would otherwise hear a digit in every sound.
"""

import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.media import Limits
from service.media.audio import AudioSpec, decode

RATE_HZ = 8000  # of the Free Spoken Digit Dataset
_SECONDS = (1.0, 1.6)  # shortest and longest
_LOUDNESS = (0.003, 0.3)  # root mean square of a noise; full scale is 1
_SOUND = NDArray[np.float64]


def write_background(sounds: list[Path], to: Path, pieces: int, noises: int, seed: int) -> None:
    """Writes WAV files of 8 kHz into ``to``: ``pieces`` cut from each of ``sounds``, and ``noises`` of each kind.

    Another ``seed`` gives other pieces and noises. Raises ``ServiceError`` for a sound that cannot be decoded.
    """
    to.mkdir(parents=True, exist_ok=True)
    for name, sound in _all(sounds, pieces, noises, seed):
        with wave.open(str(to / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes(np.rint(sound.clip(-1, 1) * 32767).astype("<i2").tobytes())


def _all(sounds: list[Path], pieces: int, noises: int, seed: int) -> Iterator[tuple[str, _SOUND]]:
    random = np.random.default_rng(seed)
    for path in sorted(sounds):
        sound = np.concatenate(list(decode(path.read_bytes(), AudioSpec(RATE_HZ), Limits()))).astype(np.float64)
        for number in range(pieces):
            yield f"{path.stem}-{number}", _piece(sound, random)
    for kind, make in NOISES.items():
        for number in range(noises):
            noise = make(_length(random), random)
            loudness = np.sqrt(np.mean(np.square(noise))) or 1.0
            yield f"{kind}-{seed}-{number}", noise / loudness * np.exp(random.uniform(*np.log(_LOUDNESS)))


def _piece(sound: _SOUND, random: np.random.Generator) -> _SOUND:
    """The loudest of four random stretches: recordings of 5 s are often silent but for a moment."""
    length = min(_length(random), len(sound))
    starts = random.integers(0, len(sound) - length + 1, 4)
    return max((sound[start : start + length] for start in starts), key=lambda part: float(np.square(part).sum()))


def _length(random: np.random.Generator) -> int:
    return round(random.uniform(*_SECONDS) * RATE_HZ)


# Noises: a length in samples -> so many samples, of any loudness


def _silence(length: int, random: np.random.Generator) -> _SOUND:
    return np.zeros(length)


def _coloured(exponent: float) -> Callable[[int, np.random.Generator], _SOUND]:
    """Noise whose power is 1 / frequency ** ``exponent``: 0 is white, 1 pink, 2 brown."""

    def make(length: int, random: np.random.Generator) -> _SOUND:
        spectrum = np.fft.rfft(random.standard_normal(length))
        frequency_hz = np.fft.rfftfreq(length, 1 / RATE_HZ).clip(20)
        return np.fft.irfft(spectrum * frequency_hz ** (-exponent / 2), length)

    return make


def _hum(length: int, random: np.random.Generator) -> _SOUND:
    """Mains hum: 50 or 60 Hz and its overtones, and a little noise."""
    return _tone(length, random.choice([50.0, 60.0]), random) + 0.01 * random.standard_normal(length)


def _clicks(length: int, random: np.random.Generator) -> _SOUND:
    """1 to 10 bursts of noise, each decaying within milliseconds."""
    sound = 1e-3 * random.standard_normal(length)
    for _ in range(random.integers(1, 11)):
        at = random.integers(0, length)
        decay = np.exp(-np.arange(length - at) / (RATE_HZ * random.uniform(5e-4, 2e-2)))
        sound[at:] += decay * random.standard_normal(length - at) * random.uniform(0.2, 1)
    return sound


def _music(length: int, random: np.random.Generator) -> _SOUND:
    """1 to 6 chords, each of 1 to 4 tones of the tempered scale."""
    sound = np.zeros(length)
    bounds = np.sort(random.integers(0, length, random.integers(0, 6)))
    for part in np.split(np.arange(length), bounds):
        decay = np.exp(-np.arange(len(part)) / RATE_HZ * random.uniform(0, 6))
        for _ in range(random.integers(1, 5)):
            sound[part] += decay * _tone(len(part), 110 * 2 ** (random.integers(0, 37) / 12), random)
    return sound


def _tone(length: int, pitch_hz: float, random: np.random.Generator) -> _SOUND:
    """``pitch_hz`` and its overtones below the Nyquist frequency, of random loudness."""
    overtones = np.arange(1, 9)[np.arange(1, 9) * pitch_hz < RATE_HZ / 2]
    loudness = random.uniform(0, 1, len(overtones)) / overtones ** random.uniform(0, 2)
    phases = random.uniform(0, 2 * np.pi, len(overtones))[:, None]
    times = np.arange(length) / RATE_HZ
    sound: _SOUND = loudness @ np.sin(2 * np.pi * pitch_hz * overtones[:, None] * times + phases)
    return sound


NOISES: dict[str, Callable[[int, np.random.Generator], _SOUND]] = {
    "silence": _silence,
    "white": _coloured(0),
    "pink": _coloured(1),
    "brown": _coloured(2),
    "hum": _hum,
    "clicks": _clicks,
    "music": _music,
}
