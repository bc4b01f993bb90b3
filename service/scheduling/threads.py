"""Priorities of threads: decoding and inference yield to the event loop, which is not preempted for each packet."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

_NICENESS = 10


def background_pool(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads that yield to the event loop, so that requests are read, and refused in time, under load."""
    return ThreadPoolExecutor(count, name, _lower_priority)


def schedule_in_batches() -> None:
    """Puts the calling thread, the event loop's, into Linux's SCHED_BATCH class.

    Packets within one tick of the kernel, 4 ms at most, are then handled together while caches are warm, instead of
    each preempting a batch.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # in a sandbox that forbids it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _lower_priority() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
