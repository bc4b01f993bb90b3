"""Threads that decode and compute beside the event loop, and stand back for it."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_NICENESS = 10


def workers(count: int, name: str) -> ThreadPoolExecutor:
    """Who asks must be heard, and refused in time, however much there is to do: the event loop goes first."""
    return ThreadPoolExecutor(count, name, _stand_back)


def _stand_back() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
