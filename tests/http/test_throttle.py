import random

import pytest

from service.http import connection as wire
from service.http.throttle import Throttle


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_few_go_at_once_and_the_others_one_after_the_other() -> None:
    clock = Clock()
    throttle = Throttle(10, at_once=3, most_seconds=9, clock=clock)
    assert [round(throttle.seconds(), 6) for _ in range(6)] == [0, 0, 0, 0.1, 0.2, 0.3]
    clock.now += 0.6
    assert [round(throttle.seconds(), 6) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    clock.now += 100
    assert [throttle.seconds() for _ in range(3)] == [0, 0, 0], "no more than at first, however long nobody came"
    assert throttle.seconds() > 0


def test_nobody_waits_for_longer_than_the_most_nor_because_of_those_who_did() -> None:
    clock = Clock()
    throttle = Throttle(10, at_once=1, most_seconds=0.5, clock=clock)
    waits = [throttle.seconds() for _ in range(1000)]
    assert max(waits) == pytest.approx(0.5) == waits[-1]
    clock.now += 0.6
    assert throttle.seconds() == pytest.approx(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clients", [1, 5, 40])
def test_no_more_go_on_than_the_rate_allows_and_no_fewer(seed: int, clients: int) -> None:
    """Clients that come again within a moment, in a simulation: how often do they all together?"""
    generator, clock = random.Random(seed), Clock()
    rate, at_once, seconds = 50.0, 4, 20.0
    throttle = Throttle(rate, at_once=at_once, most_seconds=10, clock=clock)
    free_at = [clock.now] * clients
    came, began = 0, clock.now
    while (next_at := min(free_at)) < began + seconds:
        clock.now = next_at
        came += 1
        free_at[free_at.index(next_at)] = next_at + throttle.seconds() + generator.uniform(0.001, 0.002)
    assert rate * seconds * 0.95 - clients <= came <= rate * seconds + at_once + clients


def test_the_refusals_of_a_burst_are_told_at_once_and_those_of_who_hammers_are_not() -> None:
    clock = Clock()
    throttle = Throttle(wire._REFUSALS_HZ, at_once=wire._REFUSALS_AT_ONCE, most_seconds=9, clock=clock)

    def longest(rate_hz: float, seconds: float) -> float:
        longest = 0.0
        for _ in range(int(rate_hz * seconds)):
            clock.now += 1 / rate_hz
            longest = max(longest, throttle.seconds())
        return longest

    assert longest(1300, 2) == 0, "a fast model's queue is worked off meanwhile"
    assert longest(3000, 2) > 1
