from collections.abc import Sequence

import numpy as np
import pytest

from service.engines.engine import Sample
from service.scheduling.isolation import EngineBroken, run_one_by_one
from tests.batching import POISON


class Runs:
    """Doubles samples and remembers them; fails on POISON, and on everything once ``broken``."""

    def __init__(self) -> None:
        self.ran: list[float] = []
        self.broken = False

    async def run(self, samples: Sequence[Sample]) -> list[float]:
        (sample,) = samples
        self.ran.append(float(sample.flat[0]))
        if self.broken or POISON in self.ran[-1:]:
            raise RuntimeError("poison")
        return [2 * self.ran[-1]]

    async def run_blank(self) -> None:
        await self.run([np.zeros(1)])


@pytest.fixture
def runs() -> Runs:
    return Runs()


async def one_by_one(runs: Runs, *values: float) -> list[tuple[int, float | None]]:
    """Numbers and results, in the order in which they are known."""
    samples = [np.full(1, value) for value in values]
    return [found async for found in run_one_by_one(runs.run, samples, runs.run_blank)]


async def test_one_bad_sample_fails_alone_and_last(runs: Runs) -> None:
    assert await one_by_one(runs, 1.0, POISON, 3.0) == [(0, 2.0), (2, 6.0), (1, None)]
    assert runs.ran == [1.0, POISON, 3.0]


async def test_each_result_is_told_as_soon_as_it_is_known(runs: Runs) -> None:
    samples = [np.full(1, value) for value in (1.0, POISON, 3.0)]
    told = {number: len(runs.ran) async for number, _ in run_one_by_one(runs.run, samples, runs.run_blank)}
    assert told == {0: 1, 2: 3, 1: 3}


@pytest.mark.parametrize("count", [1, 2])
async def test_a_batch_of_bad_samples_does_not_count_as_a_broken_engine(runs: Runs, count: int) -> None:
    assert await one_by_one(runs, *[POISON] * count) == [(number, None) for number in range(count)]
    assert runs.ran == [*[POISON] * count, 0.0], "a blank sample tells them from a broken engine"


async def test_an_engine_that_answers_not_even_a_blank_sample_is_broken(runs: Runs) -> None:
    runs.broken = True
    with pytest.raises(EngineBroken):
        await one_by_one(runs, 1.0, 1.0)
    assert runs.ran == [1.0, 1.0, 0.0]
