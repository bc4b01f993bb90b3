"""Parallelism is between requests: FFmpeg, left to itself, would start threads for each."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.media import Limits, audio, video
from service.media.audio import AudioSpec
from service.media.video import VideoSpec
from tests import synthetic as media
from tests.serving import ROOT


def _clip(codec: str) -> Callable[[], object]:
    data = media.clip(media.numbered(25, 64, 96, step=8), "mp4", codec)
    return lambda: list(video.decode(data, VideoSpec(8, 32), Limits()))


def _sound(container: str, codec: str) -> Callable[[], object]:
    data = media.encoded_sound(media.sine(1000, 0.8, 44_100, (0.5, 0.5)), 44_100, container, codec)
    return lambda: list(audio.decode(data, AudioSpec(8_000), Limits()))


DECODING: dict[str, Callable[[], Callable[[], object]]] = {
    "H.264": lambda: _clip("libx264"),
    "VP9": lambda: _clip("libvpx-vp9"),
    "AV1": lambda: _clip("libsvtav1"),
    "WAV": lambda: _sound("wav", "pcm_s16le"),
    "FLAC": lambda: _sound("flac", "flac"),
}


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def count(name: str) -> tuple[int, int]:
    """Threads of this process before ``DECODING[name]`` is decoded in one of them, and the most meanwhile."""
    decode = DECODING[name]()
    decode()  # what is started once may stay
    over = threading.Event()

    def work() -> None:
        for _ in range(30):
            decode()
        over.set()

    worker = threading.Thread(target=work)
    worker.start()
    before, most = _threads(), 0
    while not over.is_set():
        most = max(most, _threads())
    worker.join()
    return before, most


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc knows the threads that are not Python's")
@pytest.mark.parametrize("name", DECODING)
def test_media_are_decoded_in_the_callers_thread(name: str) -> None:
    """In a process of its own: what other tests have started may still come and go in this one."""
    program = f"from tests.media.test_threads import count; print(*count({name!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, timeout=120)
    before, most = map(int, done.stdout.split())
    assert 0 < most <= before
