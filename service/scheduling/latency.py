"""How fast requests went lately, and so how long those that are here will take."""

import math

_MEMORY = 0.8  # how much of what a mean is of stays when something is added to it


class Mean:
    """A running mean that forgets; what counts for more moves it by more."""

    def __init__(self) -> None:
        self._sum = self._count = 0.0

    @property
    def value(self) -> float:
        """0 while there is nothing to take the mean of."""
        return self._sum / self._count if self._count else 0.0

    def add(self, sum: float, count: int = 1) -> None:
        kept = _MEMORY if self._sum else 0.0  # where all was nothing, there is nothing to forget
        self._sum = kept * self._sum + sum
        self._count = kept * self._count + count


class Pace:
    """A request is decoded first, on the event loop at once or by one of ``decoders``; then its samples stand in the
    engine's line. ``on_cpu`` says that the engine rests while something is decoded at once.

    ``inference`` is the seconds of a sample in a batch; all are 0 until the first is known. It and decoding are what a
    request must take. What it does take is known once requests have waited for one another: with HTTP, with those that
    are refused, and with whatever else these cores do.
    """

    def __init__(self, decoders: int, *, on_cpu: bool) -> None:
        self.inference = Mean()
        self._at_once, self._in_thread = Mean(), Mean()  # seconds for which a request is decoded
        self._in_company = Mean()  # seconds a sample, from one batch's answers to the next's, if those waited then
        self._answered = -math.inf  # when the batch before was
        self._decoders, self._on_cpu = decoders, on_cpu

    def decoded(self, seconds: float, *, slow: bool) -> None:
        """In a thread, if it was ``slow``."""
        self._decoding(slow).add(seconds)

    def answered(self, samples: int, at: float, *, waits_since: float) -> None:
        """A batch of so many came back ``at`` that time, whose first request had waited since then (seconds by any
        clock). If that was after the batch before, nobody was waited for. What is known of company is forgotten while
        there is none: else one bad moment could keep away for ever who would show that it is over."""
        self._in_company.add(at - self._answered if waits_since < self._answered else 0.0, samples)
        self._answered = at

    def seconds_ahead(self, samples: int, *, quick: int = 0, slow: int = 0) -> float:
        """For ``samples``, some of which have to be decoded yet: of ``quick`` requests at once, of ``slow`` ones in
        threads. What is decoded beside the engine moves at the same time: the longest line counts."""
        at_once, in_threads = quick * self._at_once.value, slow * self._in_thread.value / self._decoders
        engine = samples * self.inference.value
        at_least = at_once + max(in_threads, engine) if self._on_cpu else max(at_once, in_threads, engine)
        return max(at_least, samples * self._in_company.value)

    def seconds_of_one(self, *, slow: bool) -> float:
        return self._decoding(slow).value + self.inference.value

    def _decoding(self, slow: bool) -> Mean:
        return self._in_thread if slow else self._at_once
