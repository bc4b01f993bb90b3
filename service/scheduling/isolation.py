"""One sample's failure is nobody else's: if a batch fails, its samples run again one by one, and only those that fail
alone are failed. If even a blank sample fails then, the engine is broken, and the worker has to be started afresh."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engines.onnxruntime import Outputs
from service.scheduling.latency import Mean
from service.scheduling.threads import workers
from service.telemetry.metrics import ModelSeries
from service.telemetry.stages import Run, now

logger = logging.getLogger("convserve.isolation")

Sample = NDArray[np.generic]


class Runner(Protocol):
    """What is needed of an engine: it is called from any thread, one batch at a time."""

    def run(self, samples: Sequence[Sample]) -> list[Outputs]: ...

    def padded_size(self, count: int) -> int: ...  # samples that it computes when it is given so many

    def blank(self) -> Sample: ...


class EngineBroken(Exception):
    """It answers not even a blank sample any more."""


class Ran(NamedTuple):
    outputs: Outputs  # of one sample
    run: Run  # the batch it was in


class Isolated:
    """An engine in a thread of its own; a batch that by its pace takes no more than ``at_once_seconds`` runs on the
    event loop. Its series and its pace, in seconds a sample, say what it did for clients."""

    def __init__(self, engine: Runner, series: ModelSeries, pace: Mean, at_once_seconds: float) -> None:
        self._engine, self._series, self._pace, self._at_once_seconds = engine, series, pace, at_once_seconds
        self._thread = workers(1, "engine")

    async def run(self, samples: Sequence[Sample]) -> AsyncIterator[tuple[int, Ran | None]]:
        """Each sample's number and what became of it, as soon as it is known: None of one that fails alone. Raises
        ``EngineBroken``, having answered nobody."""
        try:
            batch = await self._batch(samples)
        except Exception:  # an engine may fail in any way; none of them may stop the others' answers
            logger.exception("a batch of %d failed; its samples run alone", len(samples))
        else:
            for answer in enumerate(batch):
                yield answer
            return
        failed: list[int] = []
        for number, sample in enumerate(samples):
            try:
                (ran,) = await self._batch([sample])
            except Exception:  # as above
                failed.append(number)
            else:
                yield number, ran
        if len(failed) == len(samples) and not await self._answers_blank():
            raise EngineBroken
        for number in failed:
            yield number, None

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def _batch(self, samples: Sequence[Sample]) -> list[Ran]:
        outputs, run = await self._timed(samples)
        self._pace.add(run.seconds / run.size)
        self._series.batch_size.observe(run.size)
        self._series.samples.inc(run.size)
        return [Ran(output, run) for output in outputs]

    async def _answers_blank(self) -> bool:
        try:
            await self._timed([self._engine.blank()])
        except Exception:  # as above
            return False
        return True

    async def _timed(self, samples: Sequence[Sample]) -> tuple[list[Outputs], Run]:
        began = now()
        try:
            if 0 < self._pace.value * len(samples) <= self._at_once_seconds:
                outputs = self._engine.run(samples)
            else:
                outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.run, samples)
            if len(outputs) != len(samples):
                raise RuntimeError(f"the engine answered {len(outputs)} of {len(samples)} samples")
        except Exception:
            self._series.failures.inc()
            raise
        run = Run(began, now() - began, len(samples), self._engine.padded_size(len(samples)))
        self._series.engine_seconds.inc(run.seconds)
        return outputs, run
