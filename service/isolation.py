"""One sample's failure is nobody else's: if a batch fails, its samples run again one by one, and only those that fail
alone are failed. If even a blank sample fails then, the engine is broken, and the worker has to be started afresh."""

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine import Outputs
from service.metrics import ModelSeries
from service.stopwatch import Run, now
from service.threads import workers

logger = logging.getLogger("convserve.isolation")

Sample = NDArray[np.generic]


class Runner(Protocol):
    """What is needed of an engine: it is called from one thread, one batch at a time."""

    def run(self, samples: Sequence[Sample]) -> list[Outputs]: ...

    def padded_size(self, count: int) -> int: ...  # samples that it computes when it is given so many

    def blank(self) -> Sample: ...


class EngineBroken(Exception):
    """It answers not even a blank sample any more."""


class Ran(NamedTuple):
    outputs: Outputs  # of one sample
    run: Run  # the batch it was in


class Isolated:
    """An engine in a thread of its own, whose series say what it did."""

    def __init__(self, engine: Runner, series: ModelSeries) -> None:
        self._engine, self._series = engine, series
        self._thread = workers(1, "engine")

    async def run(self, samples: Sequence[Sample]) -> list[Ran | None]:
        """What became of every sample of one batch, in order; None of one that fails alone. Raises ``EngineBroken``."""
        try:
            return [*await self._batch(samples)]
        except Exception:  # an engine may fail in any way; none of them may stop the others' answers
            logger.exception("a batch of %d failed; its samples run alone", len(samples))
        answers = [await self._alone(sample) for sample in samples]
        if not any(answers) and not await self._alone(self._engine.blank()):
            raise EngineBroken
        return answers

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def _alone(self, sample: Sample) -> Ran | None:
        try:
            return (await self._batch([sample]))[0]
        except Exception:  # as above
            return None

    async def _batch(self, samples: Sequence[Sample]) -> list[Ran]:
        began = now()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.run, samples)
            if len(outputs) != len(samples):
                raise RuntimeError(f"the engine answered {len(outputs)} of {len(samples)} samples")
        except Exception:
            self._series.failures.inc()
            raise
        run = Run(began, now() - began, len(samples), self._engine.padded_size(len(samples)))
        self._series.engine_seconds.inc(run.seconds)
        self._series.batch_size.observe(run.size)
        self._series.samples.inc(run.size)
        return [Ran(output, run) for output in outputs]
