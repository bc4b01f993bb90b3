"""A batcher over an engine that doubles, and requests for it."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from service.engines.engine import Outputs, Sample
from service.scheduling.batcher import Batcher
from service.telemetry.metrics import ModelSeries

POISON = 255.0
LAST = 99.0
_PATIENCE_SECONDS = 20.0


class Doubler:
    """An engine that doubles, remembers its batches and threads, and fails on POISON; on everything once ``broken``.

    It waits while ``gate`` is closed, and for ``last`` before it answers LAST alone. Of a batch it leaves out the
    ``left_out`` last outputs, but never all.
    """

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.threads: set[str] = set()
        self.gate, self.last = threading.Event(), threading.Event()
        self.gate.set()
        self.broken = False
        self.left_out = 0
        self.seconds = 0.0  # that a batch takes

    def run(self, samples: Sequence[Sample]) -> list[Outputs]:
        _wait(self.gate)
        time.sleep(self.seconds)
        values = [float(sample.flat[0]) for sample in samples]
        if values == [LAST]:
            _wait(self.last)
        assert len({sample.shape for sample in samples}) == 1
        self.batches.append(values)
        self.threads.add(threading.current_thread().name)
        if self.broken or POISON in values:
            raise RuntimeError("poison")
        outputs: list[Outputs] = [(sample * 2,) for sample in samples]
        return outputs[: max(1, len(outputs) - self.left_out)]

    def padded_size(self, count: int) -> int:
        return 4 * math.ceil(count / 4)

    def blank(self) -> Sample:
        return np.zeros(1)


def _wait(gate: threading.Event) -> None:
    if not gate.wait(_PATIENCE_SECONDS):
        raise TimeoutError("nothing opened the engine's gate")


class Bench:
    """A batcher over a Doubler, with short calls for what tests do."""

    def __init__(
        self, max_batch: int = 4, queue_samples: int = 64, on_cpu: bool = False, on_loop_seconds: float = 0.0
    ) -> None:
        self.engine = Doubler()
        self.reported_broken = 0
        self.batcher = Batcher(
            self.engine,
            ModelSeries("test:1"),
            max_batch=max_batch,
            queue_samples=queue_samples,
            on_cpu=on_cpu,
            decoders=2,
            on_loop_seconds=on_loop_seconds,
            on_broken=self._report_broken,
        )

    def _report_broken(self) -> None:
        self.reported_broken += 1

    @property
    def queued(self) -> int:
        """Decoded requests with samples that no batch has taken yet."""
        return self.batcher.admission.requests - self.batcher.admission.undecoded

    @property
    def running(self) -> int:
        """Samples in the engine."""
        return self.batcher.admission.running

    @property
    def counts(self) -> tuple[int, ...]:
        """Everything that admission control counts."""
        admission = self.batcher.admission
        return admission.waiting, admission.requests, admission.undecoded, admission.in_threads, admission.running

    async def ask(
        self, *values: float, seconds: float = _PATIENCE_SECONDS, shape: tuple[int, ...] = (1,)
    ) -> list[float]:
        """The answers to samples that come ready."""
        async with self.batcher.reserve(time.monotonic() + seconds) as request:
            result = await request.infer([np.full(shape, value) for value in values])
            return [float(outputs[0].flat[0]) for outputs in result.outputs]

    async def until_queued(self, requests: int) -> None:
        await until(lambda: self.queued == requests)

    async def until_running(self, samples: int) -> None:
        await until(lambda: self.running == samples)

    def batch_of(self, value: float) -> int:
        """Number of the first batch with a sample of this value."""
        return next(number for number, batch in enumerate(self.engine.batches) if value in batch)


Make = Callable[..., Awaitable[Bench]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def pause() -> None:
    """Time for everything that waits for no engine. Several sleeps, as the process may be suspended during one."""
    for _ in range(3):
        await asyncio.sleep(0.01)


class Requests:
    """Requests that record when their decoding starts and ends: ``on_loop``, or else in a thread, which waits for
    ``may_decode``."""

    def __init__(self, bench: Bench, *, on_loop: bool) -> None:
        self.started: list[float] = []
        self.decoded: list[float] = []
        self.may_decode = asyncio.Event()
        self._bench, self._on_loop = bench, on_loop

    async def until_decoded(self, requests: int) -> None:
        await until(lambda: len(self.decoded) == requests)

    async def ask(
        self, value: float, samples: int = 1, seconds: float = _PATIENCE_SECONDS, size: int = 0
    ) -> list[float]:
        on_loop_seconds = 0.001 * samples if self._on_loop else 0.0
        deadline, size = time.monotonic() + seconds, size or samples
        async with self._bench.batcher.reserve(deadline, size=size, on_loop_seconds=on_loop_seconds) as request:
            await request.wait_to_decode()
            self.started.append(value)
            if not self._on_loop:
                await self.may_decode.wait()
            self.decoded.append(value)
            result = await request.infer([np.full(1, value)] * samples)
            return [float(outputs[0].flat[0]) for outputs in result.outputs]


def behind_a_running_batch(bench: Bench, *, on_loop: bool) -> Requests:
    """Requests for an engine that does not come back from its first batch until its gate is opened."""
    bench.engine.gate.clear()
    requests = Requests(bench, on_loop=on_loop)
    requests.may_decode.set()
    return requests


async def many_behind_a_running_batch(
    bench: Bench, count: int, *, on_loop: bool
) -> tuple[Requests, "list[asyncio.Task[list[float]]]"]:
    requests = behind_a_running_batch(bench, on_loop=on_loop)
    asking = [asyncio.create_task(requests.ask(float(number))) for number in range(count)]
    await pause()
    return requests, asking
