import asyncio

import pytest

from service.scheduling.decode_scheduler import FairGate


class Gate:
    """Room for so many, who keep it; each holds the event loop up for a second, of which a turn has ``seconds``."""

    def __init__(self, places: int, seconds: float = 1.0) -> None:
        self.places, self.here = places, 0
        self.turns: FairGate[int] = FairGate(lambda: True, self._room, seconds)
        self.gone: list[int] = []

    def _room(self, number: int) -> bool:
        return self.here - len(self.turns) < self.places

    async def go(self, number: int, work: float = 1.0) -> None:
        self.here += 1
        try:
            await self.turns.wait(number, work, 1.0)
        except asyncio.CancelledError:
            self.here -= 1
            self.turns.changed()
            raise
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
    for gone in range(1, 11):
        await _pass(10)
        assert len(gate.gone) == gone
        gate.places += 1
        gate.turns.changed()
    await asyncio.gather(*tasks)


async def test_little_work_goes_first_but_not_for_ever() -> None:
    gate = Gate(0)
    tasks = [asyncio.create_task(gate.go(0, work=10.0)), *gate.ask(1, 2)]
    await _pass(3)
    for number in range(3, 50):
        tasks += gate.ask(number)
        await _pass(3)
        gate.places += 1
        gate.turns.changed()
        await _pass(10)
    assert 20 <= gate.gone.index(0) < 45, "of three or four who share, it has its ten after some thirty or forty"
    others = [number for number in gate.gone if number]
    assert others == sorted(others)
    assert gate.turns.before(0.0) == 0 and gate.turns.before(1.0) == len(gate.turns) == 3
    for task in tasks:
        task.cancel()


async def test_where_the_first_has_no_room_whoever_has_least_work_may_go() -> None:
    room = {1}
    turns: FairGate[int] = FairGate(lambda: True, lambda number: number in room, 1.0)
    gone: list[int] = []

    async def go(number: int, work: float) -> None:
        await turns.wait(number, work, 1.0)
        gone.append(number)

    tasks = [asyncio.create_task(go(number, work)) for number, work in enumerate((2.0, 2.0, 50.0))]
    await _pass(10)
    assert not gone, "of two with as much work, the first has none"
    room.add(0)
    turns.changed()
    await _pass(10)
    assert gone == [0, 1]
    tasks += [asyncio.create_task(go(number, 1.0)) for number in (3, 1)]
    await _pass(10)
    assert gone == [0, 1], "neither the first nor the one with least work, which is one and the same"
    room.add(3)
    turns.changed()
    await _pass(10)
    assert gone == [0, 1, 3, 1]
    assert len(turns) == 1
    tasks[2].cancel()


async def test_nobody_goes_while_it_is_closed() -> None:
    opened = False
    turns: FairGate[int] = FairGate(lambda: opened, lambda number: True, 1.0)
    task = asyncio.create_task(turns.wait(1, 1.0, 1.0))
    await _pass(5)
    turns.changed()
    await _pass(5)
    assert not task.done()
    opened = True
    turns.changed()
    await task


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
