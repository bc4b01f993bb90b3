"""Who is let into the queue before an engine. What could not be answered in time is refused while it is still cheap.

A request counts as one sample from the start, and as more, up to a batch's worth, as far as it has them and half of the
queue has room; the rest waits in its own hands, for the other half is for those who still come. So do the files of one
request beside its first. So the queue is bounded, only a first sample can be refused, and a few long sounds keep nobody
out. How many samples the queue may hold is for the operator to say; else it is for the pace: what a fast model does in
a second and a half is more than a slow one may keep waiting. A burst may fill the queue; once it was full, it is kept
short until nothing has had to be refused for a while, so that those who are let in under overload are answered soon,
and the service is itself again soon after.
"""

import math
import time
from collections.abc import Callable

from prometheus_client import Gauge

from service.errors import DeadlineUnmeetable, NotReady, QueueFull
from service.scheduling.latency import Pace

# Of waiting, while requests have to be refused: what lies longer has left the caches, and is not done the sooner. The
# engine needs a batch beside the one that it runs, but nobody has to wait for slow media for longer than the second.
_SHORT_SECONDS, _LONG_SECONDS = 0.25, 2.0
_SAMPLES = 256  # may wait however slow the model, and however little is known of it
# Of a fast model's queue without a bound. Longer, and impatient clients' deadlines would keep it as long as they allow.
_BURST_SECONDS = 1.5
_CALM_SECONDS = 2.0  # without a refusal; then a burst may fill the queue again
_CAUTION = 1.2  # what is let in and comes too late has cost others their answer: paces may drop by so much


class Admission:
    """``waiting`` samples are in the queue, of so many ``requests``, of which ``undecoded`` are but bytes yet, ``slow``
    of them decoded in threads; ``running`` samples are in the engine already, which takes ``max_batch`` at a time.
    ``queue_samples`` may wait, or what the pace allows where that is None. ``pace`` is learned by whoever decodes and
    runs; ``depth`` shows ``waiting``."""

    def __init__(
        self,
        queue_samples: int | None,
        pace: Pace,
        depth: Gauge,
        *,
        max_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting = self.requests = self.undecoded = self.slow = self.running = 0
        self.pace = pace
        self._bound, self._samples, self._max_batch = queue_samples, queue_samples or _SAMPLES, max_batch
        self._depth, self._clock = depth, clock
        self._overloaded_until = -math.inf
        self.closed: NotReady | None = None  # why nobody is let in any more

    def enter(self, deadline: float, *, slow: bool, behind: int = 0) -> None:
        """Counts a request that must be answered by ``deadline`` (monotonic seconds) and is not decoded yet: at once,
        or if it is ``slow``, in a thread, ``behind`` so many.

        Raises what ``refuse`` returns; ``DeadlineUnmeetable`` when what is ahead and its own batch take longer, by
        the pace measured so far.
        """
        patience = deadline - self._clock()
        if not self.has_room():
            raise self.refuse(patience)  # which no variable keeps: it keeps this frame, and both would be garbage
        ahead = self._seconds_ahead(behind) if slow else self._seconds_ahead(0, self._others_in_batch())
        same = self.slow if slow else self.undecoded - self.slow  # are decoded: else that pace may be out of date
        own = self.pace.seconds_of_one(slow=slow) if same else self.pace.inference.value
        if self._is_too_long(ahead + own, patience):
            raise self._unmeetable(ahead + own, patience)
        self.undecoded += 1
        self.slow += slow
        self.recount(0, 1)

    def takes(self, patience: float) -> bool:
        """Whether a request may be let in that will wait for so many seconds: more is known once its body is here."""
        return self.has_room() and not self._is_too_long(self._seconds_ahead(0), patience)

    def has_room(self) -> bool:
        """Whether a request would be let in, if only its deadline were far enough."""
        if self.closed or self._is_full():
            return False
        if self._clock() >= self._overloaded_until:
            return True
        return self._seconds_ahead() <= (_SHORT_SECONDS if self.waiting >= self._max_batch else _LONG_SECONDS)

    def has_room_for_more(self) -> bool:
        """Whether who has a place already may take another one."""
        return self._spare > 0 and self.has_room()

    def refuse(self, patience: float) -> DeadlineUnmeetable | NotReady | QueueFull:
        """What a request is told that is not taken. Where there is no room, the queue is kept short for a while."""
        if self.closed:
            return self.closed
        if self.has_room():
            return self._unmeetable(self._seconds_ahead(0), patience)
        self._overloaded_until, ahead = self._clock() + _CALM_SECONDS, self._seconds_ahead()
        return QueueFull(
            f"{self.waiting} samples are waiting, for about {ahead:.1f} s; "
            f"after the queue was full (QUEUE_SAMPLES, {self._bound or 'auto'}), fewer may wait for a while",
            retry_after_seconds=_retry_after_seconds(ahead),
        )

    def slows(self) -> None:
        """One of the requests was not to be slow, but is."""
        self.slow += 1

    def decoded(self, *, slow: bool) -> None:
        """One of the requests is no longer but bytes, or never will be."""
        self.undecoded -= 1
        self.slow -= slow

    def recount(self, before: int, wanted: int) -> int:
        """A request that counted as ``before`` samples would count as ``wanted``: as how many it does from now on."""
        counted = min(wanted, max(1, self._spare + before))
        if counted != before:
            self.requests += (counted > 0) - (before > 0)
            self.waiting += counted - before
            self._depth.set(self.waiting)
        return counted

    def close(self, reason: NotReady) -> None:
        self.closed = self.closed or reason

    def _is_too_long(self, seconds: float, patience: float) -> bool:
        """While nothing is here, the pace may be out of date: try."""
        return self.waiting + self.running > 0 and _CAUTION * seconds > patience

    def _unmeetable(self, seconds: float, patience: float) -> DeadlineUnmeetable:
        return DeadlineUnmeetable(
            f"with what is waiting it may take {_CAUTION * seconds * 1000:.0f} ms; "
            f"the request may wait {patience * 1000:.0f} ms",
            retry_after_seconds=_retry_after_seconds(self._seconds_ahead()),
        )

    def _is_full(self) -> bool:
        if self._bound is not None or self.waiting < self._samples:
            return self.waiting >= self._samples
        ahead = self._seconds_ahead()
        return ahead == 0 or ahead > _BURST_SECONDS  # 0: nothing is known yet

    @property
    def _spare(self) -> int:
        """Samples for which there is room in the half of the queue that is not kept for those who still come."""
        return self._samples // 2 - self.waiting

    def _others_in_batch(self) -> int:
        """Quick ones that come after the next one and share its batch: where a batch's worth waits, all are full."""
        quick = self.requests - self.slow
        return -(quick + 1) % self._max_batch if quick >= self._max_batch else 0

    def _seconds_ahead(self, behind: int | None = None, more: int = 0) -> float:
        """Of a request that comes now and goes ``behind`` so many of the slow ones, or all, and whose batch so many
        ``more`` share. Of each of those that are here, one sample goes before it."""
        slow, quick = self.slow if behind is None else behind, self.undecoded - self.slow + more
        ready = self.requests - self.undecoded
        return self.pace.seconds_ahead(self.running + ready + quick + slow, quick=quick, slow=slow)


def _retry_after_seconds(ahead: float) -> int:
    return max(1, math.ceil(ahead))
