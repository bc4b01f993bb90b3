"""Admission control: what cannot be answered in time is refused while that is still cheap.

A request counts as one sample from the start, and as more, up to a batch's worth, as far as it has them and half of the
queue has room. The other half is kept for requests that are still to come, so a few long sounds lock out no other; the
further files of one request wait likewise. Only a first sample can be refused.

The bound of the queue is the operator's (QUEUE_SAMPLES), or follows the measured rate: what a fast model does in a
second and a half. After an overflow the queue limit drops to 250 ms of work until 2 s pass without shedding, so that
requests admitted under overload are answered soon, and the overload ends soon after the load does.
"""

import math
import time
from collections.abc import Callable

from prometheus_client import Gauge

from service.errors import DeadlineUnmeetable, NotReady, QueueFull

# Work that may wait during overload. Media that wait longer have left the caches. The engine needs a batch beside the
# one that runs; requests that decode slowly wait no longer than the second bound.
_OVERLOAD_SECONDS, _OVERLOAD_SECONDS_SLOW = 0.25, 2.0
_SAMPLES = 256  # may wait however slow the model, and however little is known of it
_BURST_SECONDS = 1.5  # of work in an unbounded queue; with more, impatient clients' deadlines would keep it full
_CALM_SECONDS = 2.0  # without shedding, after which a burst may fill the queue again
_CAUTION = 1.2  # factor on estimates: a request admitted and answered too late has cost others their answer
_MEMORY = 0.8  # weight of the past in a moving average


class MovingAverage:
    """Exponential moving average; a value of larger ``count`` moves it further. 0 before the first."""

    def __init__(self) -> None:
        self._sum = self._count = 0.0

    @property
    def value(self) -> float:
        return self._sum / self._count if self._count else 0.0

    def add(self, sum: float, count: int = 1) -> None:
        kept = _MEMORY if self._sum else 0.0  # there is nothing to remember of zeros
        self._sum = kept * self._sum + sum
        self._count = kept * self._count + count


class LatencyEstimator:
    """Estimates how long queued requests take, from how long earlier ones took.

    A request is decoded first, on the event loop or by one of ``decoders`` threads; then its samples wait for the
    engine. ``on_cpu`` says that the engine rests while something is decoded on the event loop. Decoding and inference
    are what a request takes at least. What it takes in company, with HTTP, refusals and all else that these cores do,
    shows once requests have waited for one another.
    """

    def __init__(self, decoders: int, *, on_cpu: bool) -> None:
        self.inference = MovingAverage()  # seconds of a sample in a batch
        self._on_loop, self._in_thread = MovingAverage(), MovingAverage()  # seconds of decoding a request
        self._in_company = MovingAverage()  # seconds a sample between two batches' answers, while requests waited
        self._answered = -math.inf  # time of the last batch's answers
        self._decoders, self._on_cpu = decoders, on_cpu

    def decoded(self, seconds: float, *, in_thread: bool) -> None:
        self._decoding(in_thread).add(seconds)

    def answered(self, samples: int, at: float, *, waiting_since: float) -> None:
        """Takes note of a batch answered ``at`` that time, whose first request had waited since ``waiting_since``.

        If that was after the batch before, nothing waited, and the time in company is forgotten: else one bad moment
        could refuse for ever the requests that would show it to be over.
        """
        self._in_company.add(at - self._answered if waiting_since < self._answered else 0.0, samples)
        self._answered = at

    def seconds_ahead(self, samples: int, *, on_loop: int = 0, in_threads: int = 0) -> float:
        """Estimates ``samples``, of which so many requests are still to be decoded on the loop and in threads.

        Decoding in threads and inference go on at the same time: the longest counts.
        """
        loop, threads = on_loop * self._on_loop.value, in_threads * self._in_thread.value / self._decoders
        engine = samples * self.inference.value
        at_least = loop + max(threads, engine) if self._on_cpu else max(loop, threads, engine)
        return max(at_least, samples * self._in_company.value)

    def seconds_of_one(self, *, in_thread: bool) -> float:
        return self._decoding(in_thread).value + self.inference.value

    def _decoding(self, in_thread: bool) -> MovingAverage:
        return self._in_thread if in_thread else self._on_loop


class AdmissionControl:
    """Counts what waits before one engine and decides what is admitted.

    ``waiting`` samples are queued, of so many ``requests``; ``undecoded`` requests are still bytes, ``in_threads`` of
    them are decoded in threads; ``running`` samples are in the engine, which takes ``max_batch`` at a time. ``depth``
    shows ``waiting``.
    """

    def __init__(
        self,
        queue_samples: int | None,
        estimator: LatencyEstimator,
        depth: Gauge,
        *,
        max_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting = self.requests = self.undecoded = self.in_threads = self.running = 0
        self.estimator = estimator
        self.closed: NotReady | None = None  # why nothing is admitted any more
        self._bound, self._samples, self._max_batch = queue_samples, queue_samples or _SAMPLES, max_batch
        self._depth, self._clock = depth, clock
        self._overloaded_until = -math.inf

    def admit(self, deadline: float, *, in_thread: bool, behind: int = 0) -> None:
        """Counts a request that is not decoded yet and must be answered by ``deadline`` (monotonic seconds).

        ``behind`` is how many others are decoded in threads before it, if it is. Raises what ``refusal`` returns, and
        ``DeadlineUnmeetable`` when what is ahead and its own batch take longer, by the rates measured so far.
        """
        within = deadline - self._clock()
        if not self.has_room():
            raise self.refusal(within)  # not kept in a variable: it refers to this frame, and both would be garbage
        ahead = self._seconds_ahead(behind) if in_thread else self._seconds_ahead(0, self._others_in_batch())
        alike = self.in_threads if in_thread else self.undecoded - self.in_threads  # else that rate may be out of date
        own = self.estimator.seconds_of_one(in_thread=in_thread) if alike else self.estimator.inference.value
        if self._takes_longer(ahead + own, within):
            raise self._unmeetable(ahead + own, within)
        self.undecoded += 1
        self.in_threads += in_thread
        self.recount(0, 1)

    def would_admit(self, within: float) -> bool:
        """Returns whether a request of so much time may be admitted once its body is here."""
        return self.has_room() and not self._takes_longer(self._seconds_ahead(0), within)

    def has_room(self) -> bool:
        """Returns whether a request would be admitted if its deadline were far enough."""
        if self.closed or self._is_full():
            return False
        if self._clock() >= self._overloaded_until:
            return True
        bound = _OVERLOAD_SECONDS if self.waiting >= self._max_batch else _OVERLOAD_SECONDS_SLOW
        return self._seconds_ahead() <= bound

    def has_room_for_more(self) -> bool:
        """Returns whether a request that has a file in the queue may add another one."""
        return self._spare > 0 and self.has_room()

    def refusal(self, within: float) -> DeadlineUnmeetable | NotReady | QueueFull:
        """Returns why a request is not admitted; for want of room, the queue limit drops for a while."""
        if self.closed:
            return self.closed
        if self.has_room():
            return self._unmeetable(self._seconds_ahead(0), within)
        self._overloaded_until, ahead = self._clock() + _CALM_SECONDS, self._seconds_ahead()
        return QueueFull(
            f"{self.waiting} samples are waiting, for about {ahead:.1f} s; "
            f"after the queue was full (QUEUE_SAMPLES, {self._bound or 'auto'}), fewer may wait for a while",
            retry_after_seconds=_retry_after_seconds(ahead),
        )

    def move_to_thread(self) -> None:
        """Counts one of the undecoded requests as decoded in a thread."""
        self.in_threads += 1

    def leave_undecoded(self, *, in_thread: bool) -> None:
        """Counts one undecoded request less: it is decoded, or gives up."""
        self.undecoded -= 1
        self.in_threads -= in_thread

    def recount(self, before: int, wanted: int) -> int:
        """Returns as how many samples a request counts from now on: ``wanted``, as far as there is room."""
        counted = min(wanted, max(1, self._spare + before))
        if counted != before:
            self.requests += (counted > 0) - (before > 0)
            self.waiting += counted - before
            self._depth.set(self.waiting)
        return counted

    def close(self, reason: NotReady) -> None:
        self.closed = self.closed or reason

    def _takes_longer(self, seconds: float, within: float) -> bool:
        """Never so while nothing is here: the rates may be out of date, and one request shows the present ones."""
        return self.waiting + self.running > 0 and _CAUTION * seconds > within

    def _unmeetable(self, seconds: float, within: float) -> DeadlineUnmeetable:
        return DeadlineUnmeetable(
            f"with what is waiting it may take {_CAUTION * seconds * 1000:.0f} ms; "
            f"the request may wait {within * 1000:.0f} ms",
            retry_after_seconds=_retry_after_seconds(self._seconds_ahead()),
        )

    def _is_full(self) -> bool:
        if self._bound is not None or self.waiting < self._samples:
            return self.waiting >= self._samples
        ahead = self._seconds_ahead()
        return ahead == 0 or ahead > _BURST_SECONDS  # 0: nothing is known yet

    @property
    def _spare(self) -> int:
        """Room for samples in the half of the queue that is not kept for requests still to come."""
        return self._samples // 2 - self.waiting

    def _others_in_batch(self) -> int:
        """Requests that come later and share the batch: where a batch's worth waits, all batches are full."""
        on_loop = self.requests - self.in_threads
        return -(on_loop + 1) % self._max_batch if on_loop >= self._max_batch else 0

    def _seconds_ahead(self, behind: int | None = None, more: int = 0) -> float:
        """Estimates the work ahead of a request that comes now, one sample of each request that is here.

        Of the requests decoded in threads ``behind`` go first, or all; ``more`` others share its batch.
        """
        in_threads, on_loop = self.in_threads if behind is None else behind, self.undecoded - self.in_threads + more
        ready = self.requests - self.undecoded
        samples = self.running + ready + on_loop + in_threads
        return self.estimator.seconds_ahead(samples, on_loop=on_loop, in_threads=in_threads)


def _retry_after_seconds(ahead: float) -> int:
    return max(1, math.ceil(ahead))
