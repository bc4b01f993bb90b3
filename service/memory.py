"""Memory of a worker once it has started."""

import ctypes
import gc
import sys
from contextlib import suppress

_GARBAGE = 20_000  # objects between two collections; requests leave few cycles, and Python's 700 is every other one


def settle() -> None:
    """Excludes all that lives for ever from garbage collection, and returns to the system what the start took.

    The start takes more than a model weighs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
