"""bytes -> arrays: what a stranger sent, recognised by its magic bytes, checked against the limits, then decoded.

Every function here is pure, raises only ``UnsupportedMedia`` (415), ``MediaTooLarge`` (413) or ``CorruptMedia`` (400)
for bad input, and calls ``check`` every now and then, which raises when nobody waits for the answer any more.
"""

from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[], None]


def never() -> None:
    """The ``check`` of a caller with all the time in the world."""


@dataclass(frozen=True)
class Limits:
    """What a file may claim to be before anything of it is decoded. Each is a setting of the service."""

    max_pixels: int = 50_000_000
    max_frame_pixels: int = 4096 * 2160
    max_frames: int = 36_000  # ten minutes at 60 frames/s
    max_seconds: float = 600.0
    max_channels: int = 8
