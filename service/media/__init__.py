"""Decoders: bytes from a client -> blocks of arrays.

A file is recognised by its magic bytes, checked against the limits, then decoded. A decoder is called with bytes, a
spec, limits and a deadline, and yields blocks: it decodes as fast as its caller iterates, and stops when the iterator
is closed.
Specs, limits and blocks can be pickled, so a call and each block may cross to another process.

Decoders raise only ``UnsupportedMedia`` (415), ``MediaTooLarge`` (413), ``CorruptMedia`` (400) for bad input, and
``DeadlineExceeded`` once the deadline has passed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

NO_DEADLINE = math.inf


@dataclass(frozen=True)
class Limits:
    """Bounds on what a file may claim before anything of it is decoded. Each is a setting of the service."""

    max_pixels: int = 50_000_000
    max_frame_pixels: int = 4096 * 2160
    max_frames: int = 36_000  # ten minutes at 60 frames/s
    max_seconds: float = 600.0
    max_channels: int = 8


class DecodeCost(NamedTuple):
    """Seconds that decoding takes at most, by the file's header; infinite where the header does not tell.

    The estimate holds under ``limits`` alone: they are lowered to what the header claims, so that a header that lies
    leads to a refusal and not to more work.
    """

    seconds: float
    limits: Limits
