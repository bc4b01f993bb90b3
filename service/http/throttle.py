"""So many a second, and a few more at once; whoever comes sooner has to wait."""

import time
from collections.abc import Callable


class Throttle:
    """Says how long each who comes has to wait, so that ``rate_hz`` are done with in a second: the generic cell rate
    algorithm in its form of virtual scheduling (ITU-T I.371). ``at_once`` of them do not wait, and nobody does for more
    than ``most_seconds``: were there too many for that, they would but pile up."""

    def __init__(
        self, rate_hz: float, *, at_once: int, most_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval, self._tolerance, self._most = 1 / rate_hz, at_once / rate_hz, most_seconds
        self._clock = clock
        self._due = 0.0  # when all that have come would be done with, one after the other

    def seconds(self) -> float:
        """For which whoever comes now has to wait."""
        now = self._clock()
        self._due = min(max(self._due, now) + self._interval, now + self._tolerance + self._most)
        return max(0.0, self._due - self._tolerance - now)
