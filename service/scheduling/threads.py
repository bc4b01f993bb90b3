"""Who gets the cores: threads that decode and compute beside the event loop stand back for it, and it is patient."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

_NICENESS = 10


def workers(count: int, name: str) -> ThreadPoolExecutor:
    """Who asks must be heard, and refused in time, however much there is to do: the event loop goes first."""
    return ThreadPoolExecutor(count, name, _stand_back)


def wait_for_turns() -> None:
    """For the thread of the event loop: it goes first, but interrupts nobody for each packet that comes. What comes
    within a tick of the kernel, 4 ms at most, is seen to together, in caches that stay warm for it and for them."""
    if sys.platform == "linux":
        with suppress(OSError):  # in a sandbox that forbids it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _stand_back() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
