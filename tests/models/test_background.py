"""Sounds that are no digits: well-formed WAV files, and noises of the colour that they are named after."""

import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.background import NOISES, RATE_HZ, write_background
from tests.folders import sound_wav, write

LENGTH = 4 * RATE_HZ


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """5 s, silent but for a tone in the last second."""
    sound = np.zeros(5 * RATE_HZ)
    sound[4 * RATE_HZ :] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    return write(tmp_path / "1-2-A.wav", sound_wav(sound))


def read(path: Path) -> NDArray[np.float64]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768


def make(kind: str, seed: int = 0) -> NDArray[np.float64]:
    return NOISES[kind](LENGTH, np.random.default_rng(seed))


def slope(sound: NDArray[np.float64]) -> float:
    """The exponent with which power goes with frequency, fitted from 100 to 3,000 Hz."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    frequency_hz = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    inside = (frequency_hz > 100) & (frequency_hz < 3000)
    return float(np.polyfit(np.log(frequency_hz[inside]), np.log(power[inside]), 1)[0])


def test_pieces_and_noises_are_written_as_often_as_asked(recording: Path, tmp_path: Path) -> None:
    write_background([recording], tmp_path / "out", pieces=3, noises=2, seed=1)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {name for name in names if name.startswith("1-2-A")} == {f"1-2-A-{number}.wav" for number in range(3)}
    assert names == {f"1-2-A-{number}.wav" for number in range(3)} | {
        f"{kind}-1-{number}.wav" for kind in NOISES for number in range(2)
    }
    sounds = {path.name: read(path) for path in (tmp_path / "out").iterdir()}
    assert all(1.0 <= len(sound) / RATE_HZ <= 1.6 for sound in sounds.values())
    assert not sounds["silence-1-0.wav"].any()
    loudness = [np.sqrt(np.mean(sound**2)) for name, sound in sounds.items() if name.startswith(("white", "pink"))]
    assert all(0.0025 < value < 0.31 for value in loudness)


def test_pieces_are_cut_where_a_recording_is_loud(recording: Path, tmp_path: Path) -> None:
    """The loudest of four places of at least 1 s in 5; chance alone would hit the tone in about two of five."""
    write_background([recording], tmp_path / "out", pieces=40, noises=0, seed=1)
    assert sum(read(path).any() for path in (tmp_path / "out").iterdir()) > 28


def test_another_seed_gives_other_sounds_and_the_same_the_same(recording: Path, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_background([recording], tmp_path / folder, pieces=1, noises=1, seed=seed)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert (tmp_path / "a/white-1-0.wav").read_bytes() != (tmp_path / "c/white-2-0.wav").read_bytes()


@pytest.mark.parametrize(("kind", "exponent"), [("white", 0), ("pink", -1), ("brown", -2)])
def test_noises_have_their_colour(kind: str, exponent: float) -> None:
    assert slope(make(kind)) == pytest.approx(exponent, abs=0.15)


def test_hum_is_of_the_mains_and_its_overtones() -> None:
    for seed in range(4):
        power = np.abs(np.fft.rfft(make("hum", seed))) ** 2
        loudest = np.argsort(power)[-3:] * RATE_HZ / LENGTH
        assert all(min(pitch % 50, pitch % 60) == 0 for pitch in loudest)


def test_clicks_are_short_and_music_is_not() -> None:
    def busy(sound: NDArray[np.float64]) -> float:
        """The share of 10 ms stretches that are louder than a twentieth of the loudest."""
        stretches = np.abs(sound).reshape(-1, RATE_HZ // 100).max(axis=1)
        return float((stretches > stretches.max() / 20).mean())

    assert all(busy(make("clicks", seed)) < 0.4 for seed in range(5))
    assert np.mean([busy(make("music", seed)) for seed in range(5)]) > 0.5
