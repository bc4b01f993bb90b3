"""Media whose answer by the tiny models is known: a grey picture, a half red one, a square wave, a grey clip."""

import io
import wave

import av
import numpy as np
from PIL import Image


def grey_png(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """The grey model answers ``str(level)``."""
    return _png(np.full((*size, 3), level, np.uint8))


def half_red_png(height: int = 40, width: int = 60) -> bytes:
    """Red on the left, black on the right half."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    return _png(pixels)


def square_wav(amplitude: float, seconds: float = 0.1, rate_hz: int = 8000, channels: int = 1) -> bytes:
    """The loudness model answers ``loud`` with the score ``amplitude``."""
    signs = np.where(np.arange(round(seconds * rate_hz)) // 40 % 2, -1, 1)
    samples = np.repeat((signs * amplitude * 32767).astype("<i2"), channels)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def grey_clip(level: int, frames: int = 8, rate_hz: int = 8, size: tuple[int, int] = (32, 48)) -> bytes:
    """MP4 of one grey; the brightness model answers ``bright`` with about ``level / 255``."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate_hz)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((*size, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
