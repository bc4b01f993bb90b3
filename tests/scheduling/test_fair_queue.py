import random

import pytest

from service.scheduling.fair_queue import FairQueue


def test_of_equal_work_the_first_comes_first() -> None:
    line: FairQueue[int] = FairQueue()
    for number in range(20):
        line.join(number, 3.0)
    assert list(line) == list(range(20))
    assert line.first() == 0


def test_little_work_goes_first() -> None:
    line: FairQueue[str] = FairQueue()
    for item, work in (("long", 100.0), ("short", 1.0), ("other long", 100.0), ("other short", 1.0)):
        line.join(item, work)
    assert list(line) == ["short", "other short", "long", "other long"]


def test_who_leaves_is_gone_and_may_leave_twice() -> None:
    line: FairQueue[str] = FairQueue()
    line.leave("nobody")
    line.join("a", 1.0)
    line.join("b", 1.0)
    line.leave("a")
    line.leave("a")
    assert list(line) == ["b"] and len(line) == 1
    line.clear()
    assert not line and line.before(9.0) == []
    line.join("b", 1.0)
    assert list(line) == ["b"]


@pytest.mark.parametrize("work", [10, 100])
@pytest.mark.parametrize("others", [1, 7])
def test_a_long_one_waits_no_longer_than_if_all_took_turns(work: int, others: int) -> None:
    line: FairQueue[int] = FairQueue()
    line.join(-1, work)
    served = 0
    for number in range(others):
        line.join(number, 1)
    while (item := line.first()) != -1:
        line.served(1)
        line.leave(item, served=True)
        line.join(item, 1)  # it comes again at once
        served += 1
    assert served == pytest.approx(work * (others + 1), abs=others + 1), "all had as much of it as the one would have"


def test_who_gives_up_does_not_keep_the_others_waiting() -> None:
    line: FairQueue[int] = FairQueue()
    line.join(-1, 50)
    for number in range(100, 10_000):
        if number % 3 == 0:
            line.join(number, 20)
        line.join(number + 10_000, 1)
        line.leave(number)
        if (item := line.first()) == -1:
            break
        line.served(1)
        line.leave(item, served=True)
    assert 50 < number - 100 < 300, "with one other at a time its share is about half"


@pytest.mark.parametrize("longs", [2, 8, 50])
def test_a_short_one_goes_first_however_many_long_ones_were_served_before(longs: int) -> None:
    line: FairQueue[int] = FairQueue()
    for number in range(longs):
        line.join(number, 100)
    for number in range(longs - 1):
        for _ in range(100):
            line.served(1)
        line.leave(number, served=True)
        line.join(-1, 1)
        assert line.first() == -1, "what the others had before their time does not count as share of those who wait"
        line.leave(-1)


@pytest.mark.parametrize("seed", range(5))
def test_who_goes_before_a_newcomer_is_told_before_it_joins(seed: int) -> None:
    chance = random.Random(seed)
    line: FairQueue[int] = FairQueue()
    for number in range(200):
        work = chance.choice([1, 1, 1, 5, 40])
        before = line.before(work)
        line.join(number, work)
        assert list(line)[: len(before) + 1] == [*before, number]
        for item in list(line):
            if chance.random() < 0.3:
                line.served(chance.choice([1, 3]))
                line.leave(item)
