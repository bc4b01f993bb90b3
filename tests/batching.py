"""A batcher over an engine that doubles, and requests for it."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from service.engines.onnxruntime import Outputs
from service.scheduling.batcher import Batcher
from service.scheduling.isolation import Sample
from service.telemetry.metrics import ModelSeries

POISON = 255.0
LAST = 99.0


class Doubler:
    """An engine that doubles, remembers its batches, and fails on poison. ``gate`` closed, it waits; before it answers
    LAST alone, for ``last``."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.last = asyncio.Event()
        self.broken = False
        self.seconds = 0.0
        self._loop = asyncio.get_running_loop()

    def run(self, samples: Sequence[Sample]) -> list[Outputs]:
        asyncio.run_coroutine_threadsafe(_wait(self.gate), self._loop).result(timeout=20)
        time.sleep(self.seconds)
        values = [float(sample.flat[0]) for sample in samples]
        if values == [LAST]:
            asyncio.run_coroutine_threadsafe(_wait(self.last), self._loop).result(timeout=20)
        assert len({sample.shape for sample in samples}) == 1
        self.batches.append(values)
        if self.broken or POISON in values:
            raise RuntimeError("poison")
        return [(sample * 2,) for sample in samples]

    def padded_size(self, count: int) -> int:
        return 4 * math.ceil(count / 4)

    def blank(self) -> Sample:
        return np.zeros(1)


async def _wait(gate: asyncio.Event) -> None:
    await gate.wait()


class Bench:
    """A batcher over a Doubler, with short calls for what tests do."""

    def __init__(
        self, max_batch: int = 4, queue_samples: int = 64, on_cpu: bool = False, at_once_seconds: float = 0.0
    ) -> None:
        self.engine = Doubler()
        self.given_up = 0
        self.batcher = Batcher(
            self.engine,
            ModelSeries("test:1"),
            max_batch=max_batch,
            queue_samples=queue_samples,
            on_cpu=on_cpu,
            decoders=2,
            at_once_seconds=at_once_seconds,
            broken=self._give_up,
        )

    def _give_up(self) -> None:
        self.given_up += 1

    async def ask(self, *values: float, seconds: float = 20.0, shape: tuple[int, ...] = (1,)) -> list[float]:
        async with self.batcher.reserve(time.monotonic() + seconds) as place:
            result = await place.run([np.full(shape, value) for value in values])
            return [float(outputs[0].flat[0]) for outputs in result.outputs]


Make = Callable[..., Awaitable[Bench]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Media:
    """Requests that count how many are decoded, one at a time or beside each other in threads."""

    def __init__(self, bench: Bench, *, quick: bool) -> None:
        self.decoded: list[float] = []
        self.may_decode = asyncio.Event()
        self._bench, self._quick = bench, quick

    async def ask(self, value: float, samples: int = 1, seconds: float = 20.0, size: int = 0) -> list[float]:
        at_once_seconds = 0.001 * samples if self._quick else 0.0
        deadline, size = time.monotonic() + seconds, size or samples
        async with self._bench.batcher.reserve(deadline, size=size, at_once_seconds=at_once_seconds) as place:
            await place.turn()
            if not self._quick:
                await self.may_decode.wait()
            self.decoded.append(value)
            result = await place.run([np.full(1, value)] * samples)
            return [float(outputs[0].flat[0]) for outputs in result.outputs]


def held(bench: Bench, *, quick: bool) -> Media:
    """For an engine that does not come back from its first batch."""
    bench.engine.gate.clear()
    requests = Media(bench, quick=quick)
    requests.may_decode.set()
    return requests


async def kept_waiting(bench: Bench, count: int, *, quick: bool) -> tuple[Media, "list[asyncio.Task[list[float]]]"]:
    """So many requests, and an engine that does not come back from its first batch."""
    requests = held(bench, quick=quick)
    asking = [asyncio.create_task(requests.ask(float(number))) for number in range(count)]
    await many_turns()
    return requests, asking


async def many_turns() -> None:
    for _ in range(200):
        await asyncio.sleep(0)
