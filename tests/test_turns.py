import asyncio

import pytest

from service.turns import Turns


class Gate:
    """Room for so many; each who goes holds the event loop up for a second, of which a turn has ``seconds``."""

    def __init__(self, places: int, seconds: float = 1.0) -> None:
        self.places = places
        self.turns = Turns(lambda: self.places, seconds)
        self.gone: list[int] = []

    async def go(self, number: int) -> None:
        await self.turns.wait(1.0)
        self.places -= 1
        self.gone.append(number)

    def ask(self, *numbers: int) -> list["asyncio.Task[None]"]:
        return [asyncio.create_task(self.go(number)) for number in numbers]


async def _pass(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_they_go_in_the_order_in_which_they_came_and_no_further_than_it_is_open() -> None:
    gate = Gate(3)
    tasks = gate.ask(*range(5))
    await _pass(30)
    assert gate.gone == [0, 1, 2]
    assert len(gate.turns) == 2
    gate.places = 10
    await _pass(30)
    assert gate.gone == [0, 1, 2], "nobody said that it has changed"
    gate.turns.changed()
    await asyncio.gather(*tasks)
    assert gate.gone == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("seconds", "together"), [(0.1, 1), (1.0, 1), (2.5, 3), (100.0, 20)])
async def test_in_one_turn_of_the_event_loop_no_more_go_than_hold_it_up_for_so_long(
    seconds: float, together: int
) -> None:
    gate = Gate(100, seconds)
    gate.ask(*range(20))
    gone = []
    for _ in range(40):
        await asyncio.sleep(0)
        gone.append(len(gate.gone))
    assert gone[-1] == 20
    assert max(after - before for before, after in zip([0, *gone], gone, strict=False)) == together


@pytest.mark.parametrize("seconds", [1.0, 100.0])
async def test_it_never_lets_one_too_many_in(seconds: float) -> None:
    gate = Gate(1, seconds)
    tasks = gate.ask(*range(10))
    for _ in range(10):
        await _pass(10)
        assert gate.places == 0
        gate.places = 1
        gate.turns.changed()
    await asyncio.gather(*tasks)


async def test_who_was_cancelled_is_passed_over() -> None:
    gate = Gate(0)
    tasks = gate.ask(*range(5))
    await _pass(3)
    for task in (tasks[0], tasks[2], tasks[4]):
        task.cancel()
    await _pass(3)
    assert len(gate.turns) == 2
    gate.places = 2
    gate.turns.changed()
    await asyncio.gather(tasks[1], tasks[3])
    assert gate.gone == [1, 3]


async def test_who_is_cancelled_as_the_turn_comes_takes_nobody_elses() -> None:
    gate = Gate(0)
    first, second = gate.ask(1, 2)
    await _pass(3)
    gate.places = 1
    gate.turns.changed()
    asyncio.get_running_loop().call_soon(first.cancel)  # right behind the turn
    await asyncio.gather(second)
    assert gate.gone == [2]


async def test_at_the_end_everybody_who_waits_is_told_why() -> None:
    gate = Gate(0)
    tasks = gate.ask(1, 2)
    await _pass(3)
    gate.turns.end(RuntimeError("over"))
    for task in tasks:
        with pytest.raises(RuntimeError, match="over"):
            await task
    assert not gate.turns
