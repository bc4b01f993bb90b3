"""One line of JSON on standard output for each request that is over."""

import asyncio
import io
import select
from contextlib import suppress
from typing import Any

from pydantic_core import to_json

_STANDARD_OUTPUT = 1
_SECONDS = 0.05  # for which a line is held back


class AccessLog:
    """Lines that come soon after one another are written together: to write each takes as long as to make it, and wakes
    whoever reads them. Never in pieces: a pipe, into which all workers write, keeps whole what has no more than
    PIPE_BUF bytes, and more than those are not held back. In the end there may be something to ``flush``."""

    def __init__(self, descriptor: int = _STANDARD_OUTPUT) -> None:
        raw = io.FileIO(descriptor, "w", closefd=False)
        self._lines = io.BufferedWriter(raw, buffer_size=select.PIPE_BUF)
        self._called = False  # what is held back is about to be written

    def write(self, line: dict[str, Any]) -> None:
        """Of no more than PIPE_BUF bytes; in a running event loop."""
        with suppress(OSError):  # nobody reads it any more
            self._lines.write(to_json(line) + b"\n")
        if not self._called:
            self._called = True
            asyncio.get_running_loop().call_later(_SECONDS, self.flush)

    def flush(self) -> None:
        self._called = False
        with suppress(OSError):
            self._lines.flush()
