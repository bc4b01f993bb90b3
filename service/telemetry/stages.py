"""What a request's time went to, measured once: for ``Server-Timing``, the histograms and the traces alike."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

STAGES = ("decode", "preprocess", "queue", "inference", "padding", "postprocess")  # padding: inference on mere filling


@dataclass(eq=False, slots=True)
class Run:
    """One batch through the engine; all requests with samples in it share this very object."""

    began: float  # by the clock of ``now``
    seconds: float
    size: int  # samples
    padded_size: int  # that were computed for them
    span: Any = None  # its place in a trace, once it is in one

    @property
    def padding_seconds(self) -> float:
        return self.seconds * (1 - self.size / self.padded_size)


class Interval(NamedTuple):
    """One stretch of a stage; by the clock of ``now``."""

    stage: str
    began: float
    ended: float
    runs: Sequence[Run] = ()  # the batches it waited for


now = time.perf_counter


class Stopwatch:
    """Seconds by stage, and when each was; what of it is known stays known if the request fails on the way.

    Several files of one request have a watch each, and their ``intervals`` in common.
    """

    def __init__(self, intervals: list[Interval] | None = None) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.intervals: list[Interval] = [] if intervals is None else intervals

    def stage(self, name: str) -> "Stage":
        return Stage(self, name)

    def add(self, stage: str, began: float, ended: float) -> None:
        self.seconds[stage] += ended - began
        self.intervals.append(Interval(stage, began, ended))

    def add_inference(self, asked: float, runs: Sequence[Run], *, filling: float) -> None:
        """What the engine was ``asked`` then has come back now, in ``runs``. The share ``filling`` of each sample is no
        media, but what it was filled up with."""
        ended = now()
        running = padding = 0.0
        for run in runs:
            running += run.seconds
            padding += run.padding_seconds
        padding += filling * (running - padding)
        self.seconds["queue"] += max(0.0, ended - asked - running)
        self.seconds["inference"] += running - padding
        self.seconds["padding"] += padding
        self.intervals.append(Interval("queue", asked, runs[0].began))
        self.intervals.append(Interval("inference", runs[0].began, ended, runs))


class Stage:
    """``with watch.stage(name):`` adds the time that the block took, also of one that fails."""

    __slots__ = ("_began", "_name", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._began = now()

    def __exit__(self, *error: object) -> None:
        self._watch.add(self._name, self._began, now())
