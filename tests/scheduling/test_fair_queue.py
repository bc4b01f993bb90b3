import random

import pytest

from service.scheduling.fair_queue import FairQueue


def test_items_of_equal_work_go_in_the_order_of_their_arrival() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(20):
        queue.add(number, 3.0)
    assert list(queue) == list(range(20))
    assert queue.first() == 0


def test_items_of_little_work_go_first() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, work in (("long", 100.0), ("short", 1.0), ("other long", 100.0), ("other short", 1.0)):
        queue.add(item, work)
    assert list(queue) == ["short", "other short", "long", "other long"]


def test_a_removed_item_is_gone_and_may_be_removed_twice() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.remove("unknown")
    queue.add("a", 1.0)
    queue.add("b", 1.0)
    queue.remove("a")
    queue.remove("a")
    assert list(queue) == ["b"] and len(queue) == 1 and "a" not in queue and "b" in queue
    queue.clear()
    assert not queue and queue.ahead_of(9.0) == []
    queue.add("b", 1.0)
    assert list(queue) == ["b"]


@pytest.mark.parametrize("work", [10, 100])
@pytest.mark.parametrize("others", [1, 7])
def test_a_long_item_waits_no_longer_than_with_an_even_share(work: int, others: int) -> None:
    queue: FairQueue[int] = FairQueue()
    queue.add(-1, work)
    served = 0
    for number in range(others):
        queue.add(number, 1)
    while (item := queue.first()) != -1:
        queue.advance(1)
        queue.remove(item, served=True)
        queue.add(item, 1)  # it is added again at once
        served += 1
    assert served == pytest.approx(work * (others + 1), abs=others + 1), "all had as much of it as the one would have"


def test_items_that_give_up_do_not_slow_the_clock_down() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.add(-1, 50)
    for number in range(100, 10_000):
        if number % 3 == 0:
            queue.add(number, 20)
        queue.add(number + 10_000, 1)
        queue.remove(number)
        if (item := queue.first()) == -1:
            break
        queue.advance(1)
        queue.remove(item, served=True)
    assert 50 < number - 100 < 300, "with one other at a time its share is about half"


@pytest.mark.parametrize("longs", [2, 8, 50])
def test_a_short_item_goes_first_however_many_long_ones_were_served_before(longs: int) -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(longs):
        queue.add(number, 100)
    for number in range(longs - 1):
        for _ in range(100):
            queue.advance(1)
        queue.remove(number, served=True)
        queue.add(-1, 1)
        assert queue.first() == -1, "what others had before their virtual finish time is no share of those who wait"
        queue.remove(-1)


@pytest.mark.parametrize("seed", range(5))
def test_the_items_ahead_of_a_new_one_are_known_before_it_is_added(seed: int) -> None:
    chance = random.Random(seed)
    queue: FairQueue[int] = FairQueue()
    for number in range(200):
        work = chance.choice([1, 1, 1, 5, 40])
        ahead = queue.ahead_of(work)
        queue.add(number, work)
        assert list(queue)[: len(ahead) + 1] == [*ahead, number]
        for item in list(queue):
            if chance.random() < 0.3:
                queue.advance(chance.choice([1, 3]))
                queue.remove(item)
