import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from prometheus_client import REGISTRY

from service.engines.onnxruntime import Outputs
from service.scheduling.isolation import EngineBroken, Isolated, Ran, Sample
from service.scheduling.admission import MovingAverage
from service.telemetry.metrics import ModelSeries

POISON = 255.0


class Doubler:
    """Doubles, remembers its batches, and fails on poison; on everything once it is ``broken``."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.threads: set[str] = set()
        self.broken = False
        self.forgets = 0  # this many of a batch's outputs, but never all

    def run(self, samples: Sequence[Sample]) -> list[Outputs]:
        values = [float(sample.flat[0]) for sample in samples]
        self.batches.append(values)
        self.threads.add(threading.current_thread().name)
        if self.broken or POISON in values:
            raise RuntimeError("poison")
        outputs: list[Outputs] = [(sample * 2,) for sample in samples]
        return outputs[: max(1, len(samples) - self.forgets)]

    def padded_size(self, count: int) -> int:
        return 4 * math.ceil(count / 4)

    def blank(self) -> Sample:
        return np.zeros(1)


@pytest.fixture
def engine() -> Doubler:
    return Doubler()


@pytest.fixture
def isolated(engine: Doubler) -> Iterator[Isolated]:
    isolated = Isolated(engine, ModelSeries("isolated:1"), MovingAverage(), 0.0)
    yield isolated
    isolated.close()


async def _ran(isolated: Isolated, *values: float) -> dict[int, Ran | None]:
    return {number: ran async for number, ran in isolated.run([np.full(1, value) for value in values])}


async def _answers(isolated: Isolated, *values: float) -> list[float | None]:
    ran = await _ran(isolated, *values)
    return [float(answer.outputs[0].flat[0]) if (answer := ran[number]) else None for number in range(len(values))]


def _series(name: str) -> float:
    return REGISTRY.get_sample_value(f"convserve_{name}", {"model": "isolated:1"}) or 0.0


async def test_a_batch_runs_at_once_in_the_engines_thread(engine: Doubler, isolated: Isolated) -> None:
    ran = await _ran(isolated, 1.0, 2.0, 3.0)
    assert engine.batches == [[1.0, 2.0, 3.0]]
    assert threading.current_thread().name not in engine.threads and len(engine.threads) == 1
    (run,) = {answer.run for answer in ran.values() if answer}
    assert (run.size, run.padded_size) == (3, 4)


async def test_a_batch_that_is_quick_by_its_pace_runs_on_the_event_loop(engine: Doubler) -> None:
    here, pace = threading.current_thread().name, MovingAverage()
    isolated = Isolated(engine, ModelSeries("isolated:1"), pace, 1.0)
    await _ran(isolated, 1.0)
    assert here not in engine.threads, "nothing is known of it yet"
    engine.threads.clear()
    pace.add(30.0, 100)
    await _ran(isolated, 1.0, 2.0, 3.0)
    assert engine.threads == {here}
    pace.add(1e6 * 0.4, 10**6)
    await _ran(isolated, 1.0, 2.0, 3.0)
    assert engine.threads > {here}
    isolated.close()


async def test_one_bad_sample_fails_alone_on_the_event_loop_too(engine: Doubler) -> None:
    pace = MovingAverage()
    pace.add(0.001)
    isolated = Isolated(engine, ModelSeries("isolated:1"), pace, 10.0)
    assert await _answers(isolated, 1.0, POISON, 3.0) == [2.0, None, 6.0]
    assert threading.current_thread().name in engine.threads
    isolated.close()


async def test_one_bad_sample_fails_alone(engine: Doubler, isolated: Isolated) -> None:
    failures, samples = _series("inference_failures_total"), _series("samples_total")
    assert await _answers(isolated, 1.0, POISON, 3.0) == [2.0, None, 6.0]
    assert engine.batches == [[1.0, POISON, 3.0], [1.0], [POISON], [3.0]]
    assert _series("inference_failures_total") - failures == 2, "the batch, and the sample alone"
    assert _series("samples_total") - samples == 2


async def test_each_is_told_as_soon_as_it_is_known(engine: Doubler, isolated: Isolated) -> None:
    told = {
        number: len(engine.batches) async for number, _ in isolated.run([np.full(1, v) for v in (1.0, POISON, 3.0)])
    }
    assert told == {0: 2, 2: 4, 1: 4}


async def test_a_bad_sample_by_itself_does_not_count_as_a_broken_engine(isolated: Isolated) -> None:
    samples = _series("samples_total")
    assert await _answers(isolated, POISON) == [None]
    assert await _answers(isolated, POISON, POISON) == [None, None]
    assert _series("samples_total") == samples, "the blank one is nobody's"
    assert await _answers(isolated, 1.0) == [2.0]


async def test_an_engine_that_answers_not_even_a_blank_sample_is_broken(engine: Doubler, isolated: Isolated) -> None:
    engine.broken = True
    with pytest.raises(EngineBroken):
        await _ran(isolated, 1.0, 1.0)
    assert engine.batches == [[1.0, 1.0], [1.0], [1.0], [0.0]]


async def test_an_engine_that_answers_too_few_samples_strands_nobody(engine: Doubler, isolated: Isolated) -> None:
    engine.forgets = 1
    assert await _answers(isolated, 1.0, 2.0, 3.0) == [2.0, 4.0, 6.0]
