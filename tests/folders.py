"""Data sets of a few small files in the layouts that training reads, and recipes small enough to train on them at once.

Each can be learnt by anything that learns: pictures and clips by their colour, sounds by their pitch.
"""

import dataclasses
import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.recipes import RECIPES, Recipe
from service.repository.card import AudioPreprocess, ImagePreprocess, VideoPreprocess

RATE_HZ = 8000
COLOURS = {"green": (20, 200, 40), "red": (220, 30, 30)}
PITCHES_HZ = {"high": 1900, "low": 300}
SCENE = ("ground", "sky")  # masks 0 and 1

# What makes the bundled recipes small. The average is short, as a few steps have to show in it.
_SMALL: dict[str, dict[str, Any]] = {
    "classify": {
        "architecture": "resnet_cifar",
        "options": {"depth": 8, "width": 4},
        "preprocess": ImagePreprocess(resize="crop", sizes=((16, 16),), shorter_side=16),
        "peak_rate": 0.1,
    },
    "segment": {
        "options": {"widths": (8, 8, 16), "dilations": (1, 2)},
        "preprocess": ImagePreprocess(resize="pad", sizes=((48, 64), (64, 48))),
        "crop": (32, 40),
        "peak_rate": 2e-2,
        "palette": ((0, 0, 0), (255, 255, 255)),
    },
    "audio": {
        "options": {"widths": (8, 8, 8, 8), "layers": (1, 1, 1, 1)},
        "preprocess": AudioPreprocess(sample_rate_hz=RATE_HZ, window_seconds=0.2, hop_seconds=0.1),
        "peak_rate": 2e-2,
    },
    "video": {
        "options": {"widths": (4, 4, 8, 8)},
        "preprocess": VideoPreprocess(frame_rate_hz=8, frames=8, hop_seconds=0.5, shorter_side=32, size=(32, 32)),
        "peak_rate": 2e-2,
        "flips_motion": False,
    },
}


def small_recipe(task: str, **changed: Any) -> Recipe:
    fixed: dict[str, Any] = {"epochs": 2, "batch_size": 4, "average_decay": 0.5, "categories": None}
    return dataclasses.replace(RECIPES[task], **(fixed | _SMALL[task] | changed))


def write_pictures(split: Path, each: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for category, colour in COLOURS.items():
        for number in range(each):
            write(split / category / f"{number}.png", picture_png(noisy(colour, (20, 24), random)))


def write_scenes(data: Path, split: str, count: int, seed: int = 0) -> None:
    """Blue sky over brown ground, upright and lying; a void line between them."""
    random = np.random.default_rng(seed)
    write(data / "categories.txt", "\n".join(SCENE).encode())
    for number in range(count):
        height, width = (60, 45) if number % 3 == 2 else (45, 60)
        horizon = int(random.integers(15, height - 15))
        pixels = noisy((120, 80, 20), (height, width), random)
        pixels[:horizon] = noisy((90, 140, 230), (horizon, width), random)
        mask = np.zeros((height, width), np.uint8)
        mask[:horizon] = 1
        mask[horizon] = 255
        write(data / split / "images" / f"{number}.png", picture_png(pixels))
        write(data / split / "masks" / f"{number}.png", picture_png(mask))


def write_sounds(split: Path, each: int, seed: int = 0) -> None:
    """Tones of 0.15 to 0.5 s: one window and several."""
    random = np.random.default_rng(seed)
    for category, pitch_hz in PITCHES_HZ.items():
        for number in range(each):
            seconds = 0.15 if number % 2 else 0.5
            times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
            tone = np.sin(2 * np.pi * pitch_hz * times) * np.linspace(0.2, 0.6, len(times))
            write(split / category / f"{number}.wav", sound_wav(tone + 0.02 * random.standard_normal(len(times))))


def write_clips(split: Path, each: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for category, colour in COLOURS.items():
        for number in range(each):
            frames = np.stack([noisy(colour, (32, 40), random) for _ in range(8 + 8 * (number % 2))])
            write(split / category / f"{number}.mp4", clip_mp4(frames))


def write_data(data: Path, task: str, train: int = 6, test: int = 3) -> Path:
    """``train`` and ``test`` files of each category (of scenes, twice as many pictures); ``data`` itself."""
    writers: dict[str, Callable[[Path, int, int], None]] = {
        "classify": write_pictures,
        "audio": write_sounds,
        "video": write_clips,
    }
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        if task == "segment":
            write_scenes(data, split, 2 * count, seed)
        else:
            writers[task](data / split, count, seed)
    return data


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def noisy(colour: tuple[int, int, int], size: tuple[int, int], random: np.random.Generator) -> NDArray[np.uint8]:
    pixels = np.array(colour) + random.normal(0, 12, (*size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def picture_png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sound_wav(samples: NDArray[np.floating]) -> bytes:
    """(T,) in -1 to 1 at 8 kHz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def clip_mp4(frames: NDArray[np.uint8], rate_hz: int = 8) -> bytes:
    """(T, H, W, 3), even sizes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate_hz)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
