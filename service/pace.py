"""How fast requests went lately, and so how long those that are here will take."""

import math

_MEMORY = 0.8  # how much of a running mean stays when a value is added to it


class Mean:
    """A running mean that forgets."""

    value = 0.0

    def add(self, value: float) -> None:
        self.value = _MEMORY * (self.value or value) + (1 - _MEMORY) * value


class Pace:
    """A request is decoded first, on the event loop at once or by one of ``decoders``; then its samples stand in the
    engine's line. ``on_cpu`` says that the engine rests while something is decoded at once.

    ``inference`` is the seconds of a sample in a batch; all are 0 until the first is known. It and decoding are what a
    request must take. What it does take is known once requests have waited for one another: with HTTP, with those that
    are refused, and with whatever else these cores do.
    """

    def __init__(self, decoders: int, *, on_cpu: bool) -> None:
        self.inference, self._decoding = Mean(), Mean()
        self._between, self._beside = Mean(), Mean()  # what a request adds to the engine's line, and to the decoders'
        self._in_company = Mean()  # seconds a sample, from one batch's answers to the next's, if those waited then
        self._answered = -math.inf  # when the batch before was
        self._decoders, self._on_cpu = decoders, on_cpu

    def decoded(self, seconds: float, *, at_once: bool) -> None:
        between = at_once and self._on_cpu
        self._decoding.add(seconds)
        self._between.add(seconds if between else 0.0)
        self._beside.add(0.0 if between else seconds if at_once else seconds / self._decoders)

    def answered(self, samples: int, at: float, *, came: float) -> None:
        """A batch of so many came back ``at`` that time, whose first request ``came`` then (seconds by any clock). If
        that was after the batch before, nobody was waited for. What is known of company is forgotten while there is
        none: else one bad moment could keep away for ever who would show that it is over."""
        self._in_company.add((at - self._answered) / samples if came < self._answered else 0.0)
        self._answered = at

    def seconds_ahead(self, undecoded: int, samples: int) -> float:
        """For ``samples``, of which ``undecoded`` are requests that are but bytes yet. What is decoded beside the
        engine moves at the same time: of the two lines the longer one counts."""
        beside, engine = undecoded * self._beside.value, samples * self.inference.value
        at_least = undecoded * self._between.value + max(beside, engine)
        return max(at_least, samples * self._in_company.value)

    def seconds_of_one(self) -> float:
        return self._decoding.value + self.inference.value
