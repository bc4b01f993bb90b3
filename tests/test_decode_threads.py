"""Parallelism is between requests: FFmpeg, left to itself, would start threads for each."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.decode import Limits
from service.decode.audio import decode_audio
from service.decode.video import decode_video

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
CLIP, SOUND = (SAMPLES / "pan-left.mp4").read_bytes(), (SAMPLES / "seven.wav").read_bytes()
DECODING: dict[str, Callable[[], object]] = {
    "video": lambda: decode_video(CLIP, Limits(), frame_rate_hz=8, shorter_side=64),
    "audio": lambda: decode_audio(SOUND, Limits(), sample_rate_hz=8_000),
}


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc knows the threads that are not Python's")
@pytest.mark.parametrize("decode", DECODING.values(), ids=DECODING)
def test_media_are_decoded_in_the_callers_thread(decode: Callable[[], object]) -> None:
    decode()  # what is started once may stay
    over = threading.Event()

    def work() -> None:
        for _ in range(100):
            decode()
        over.set()

    worker = threading.Thread(target=work)
    worker.start()
    before, most = _threads(), 0
    while not over.is_set():
        most = max(most, _threads())
    worker.join()
    assert most <= before
