"""What a worker holds of memory once it has started."""

import ctypes
import gc
import sys
from contextlib import suppress

_GARBAGE = 20_000  # objects between two looks for cycles, of which requests leave few; Python's 700 is every other one


def settle() -> None:
    """Once all that lives for ever is there: it is not looked through for garbage again, and what making it took is
    given back, which is more than a model weighs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
