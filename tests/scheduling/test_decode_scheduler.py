import asyncio
import itertools
import time

import numpy as np
import pytest

from service.errors import DeadlineExceeded, NotReady
from service.scheduling.decode_scheduler import FairGate
from tests.batching import Make, Requests, behind_a_running_batch, many_behind_a_running_batch, pause, until

# The gate


class Gate:
    """A gate with room for so many waiters, which keep it; each holds the event loop up for a second.

    In one iteration of the event loop as many go through as take ``seconds``.
    """

    def __init__(self, room: int, seconds: float = 1.0) -> None:
        self.room, self.arrived = room, 0
        self.gate: FairGate[int] = FairGate(lambda: True, self._has_room, seconds)
        self.through: list[int] = []

    def _has_room(self, number: int) -> bool:
        return self.arrived - len(self.gate) < self.room

    async def go(self, number: int, work: float = 1.0) -> None:
        self.arrived += 1
        try:
            await self.gate.wait(number, work, 1.0)
        except asyncio.CancelledError:
            self.arrived -= 1
            self.gate.notify()
            raise
        self.through.append(number)

    def start(self, *numbers: int, work: float = 1.0) -> list["asyncio.Task[None]"]:
        return [asyncio.create_task(self.go(number, work)) for number in numbers]

    def widen(self, more: int = 1) -> None:
        self.room += more
        self.gate.notify()


async def test_waiters_go_in_the_order_of_their_arrival_as_far_as_there_is_room() -> None:
    gate = Gate(3)
    tasks = gate.start(*range(5))
    await pause()
    assert gate.through == [0, 1, 2]
    assert len(gate.gate) == 2
    gate.room = 10
    await pause()
    assert gate.through == [0, 1, 2], "the gate was not notified"
    gate.gate.notify()
    await asyncio.gather(*tasks)
    assert gate.through == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("seconds", "together"), [(0.1, 1), (1.0, 1), (2.5, 3), (100.0, 20)])
async def test_in_one_iteration_of_the_event_loop_no_more_go_than_hold_it_up_for_so_long(
    seconds: float, together: int
) -> None:
    gate = Gate(100, seconds)
    waiting = gate.start(*range(20))
    through = [0]
    while through[-1] < 20:
        await asyncio.sleep(0)  # one iteration
        through.append(len(gate.through))
    await asyncio.gather(*waiting)
    assert max(after - before for before, after in itertools.pairwise(through)) == together


@pytest.mark.parametrize("seconds", [1.0, 100.0])
async def test_there_is_never_one_too_many_through(seconds: float) -> None:
    gate = Gate(1, seconds)
    tasks = gate.start(*range(10))
    for through in range(1, 11):
        await pause()
        assert len(gate.through) == through
        gate.widen()
    await asyncio.gather(*tasks)


async def test_waiters_of_little_work_go_first_but_not_for_ever() -> None:
    gate = Gate(0)
    tasks = [*gate.start(0, work=10.0), *gate.start(1, 2)]
    await until(lambda: len(gate.gate) == 3)
    for number in range(3, 50):
        tasks += gate.start(number)
        await until(lambda: len(gate.gate) == 4)
        gate.widen()
        await until(lambda: len(gate.gate) == 3)
    assert 20 <= gate.through.index(0) < 45, "of three or four that share, it has its ten after some thirty or forty"
    others = [number for number in gate.through if number]
    assert others == sorted(others)
    assert gate.gate.ahead_of(0.0) == 0 and gate.gate.ahead_of(1.0) == len(gate.gate) == 3
    for task in tasks:
        task.cancel()


async def test_the_waiter_with_the_least_work_overtakes_a_first_one_that_has_no_room() -> None:
    room: set[str] = {"small"}
    gate: FairGate[str] = FairGate(lambda: True, lambda item: item in room, 1.0)
    long = asyncio.create_task(gate.wait("long", 10.0, 1.0))
    await until(lambda: len(gate) == 1)
    for _ in range(100):  # until its virtual finish time has come, it is not the first; after that it is
        async with asyncio.timeout(5):
            await gate.wait("small", 1.0, 1.0)
    assert gate.ahead_of(1.0) == 1, "the long one is the first now"
    assert not long.done()
    room.clear()
    small = asyncio.create_task(gate.wait("small", 1.0, 1.0))
    await pause()
    assert not small.done(), "neither has room"
    room.update(("small", "long"))
    gate.notify()
    await until(long.done)
    await asyncio.gather(small, long)


async def test_only_the_waiter_with_the_least_work_overtakes() -> None:
    room = {"large"}
    gate: FairGate[str] = FairGate(lambda: True, lambda item: item in room, 1.0)
    tasks = [
        asyncio.create_task(gate.wait(item, work, 1.0))
        for item, work in (("small", 1.0), ("other", 1.0), ("large", 9.0))
    ]
    await pause()
    assert not any(task.done() for task in tasks), "the first is the one with the least work, and has no room"
    room.update(("small", "other"))
    gate.notify()
    await asyncio.gather(*tasks)


async def test_nothing_goes_through_while_the_gate_is_not_open() -> None:
    is_open = False
    gate: FairGate[int] = FairGate(lambda: is_open, lambda number: True, 1.0)
    task = asyncio.create_task(gate.wait(1, 1.0, 1.0))
    await pause()
    gate.notify()
    await pause()
    assert not task.done()
    is_open = True
    gate.notify()
    await task


async def test_cancelled_waiters_are_passed_over() -> None:
    gate = Gate(0)
    tasks = gate.start(*range(5))
    await until(lambda: len(gate.gate) == 5)
    for task in (tasks[0], tasks[2], tasks[4]):
        task.cancel()
    await until(lambda: len(gate.gate) == 2)
    gate.widen(2)
    await asyncio.gather(tasks[1], tasks[3])
    assert gate.through == [1, 3]


async def test_a_waiter_that_is_cancelled_as_it_is_let_through_takes_no_others_room() -> None:
    gate = Gate(0)
    first, second = gate.start(1, 2)
    await until(lambda: len(gate.gate) == 2)
    gate.widen()
    asyncio.get_running_loop().call_soon(first.cancel)  # right behind the gate's own callback
    await asyncio.gather(second)
    assert gate.through == [2]


async def test_closing_raises_the_reason_for_every_waiter() -> None:
    gate = Gate(0)
    tasks = gate.start(1, 2)
    await until(lambda: len(gate.gate) == 2)
    gate.gate.close(RuntimeError("over"))
    for task in tasks:
        with pytest.raises(RuntimeError, match="over"):
            await task
    assert len(gate.gate) == 0


# How far ahead of the engine media are decoded

DECODERS = 2


@pytest.mark.parametrize("on_loop", [True, False])
async def test_no_more_is_decoded_than_the_next_batch_takes_and_one_more_for_each_thread(
    make: Make, on_loop: bool
) -> None:
    bench = await make(max_batch=4)
    requests, asking = await many_behind_a_running_batch(bench, 30, on_loop=on_loop)
    running, waiting = 4, 4
    assert requests.decoded == [float(number) for number in range(running + waiting + (0 if on_loop else DECODERS))]
    bench.engine.gate.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] for number in range(30)]
    assert requests.decoded == [float(number) for number in range(30)], "in the order of their arrival"
    assert len(bench.engine.batches) <= 9


@pytest.mark.parametrize("samples", [2, 3, 7, 100])
async def test_of_long_media_as_many_samples_are_decoded_ahead_as_threads_must_make_for_a_batch(
    make: Make, samples: int
) -> None:
    """A request counts as two samples at most, half of a batch of four; six, and not more, are decoded ahead."""
    bench = await make(max_batch=4)
    requests = behind_a_running_batch(bench, on_loop=False)
    first = asyncio.create_task(requests.ask(0.0, samples=4))
    await bench.until_running(4)
    long = []
    for number in range(1, 21):
        long.append(asyncio.create_task(requests.ask(float(number), samples=samples)))
        if number <= 3:
            await requests.until_decoded(1 + number)
    await pause()
    assert len(requests.decoded) == 1 + 3
    bench.engine.gate.set()
    assert await asyncio.gather(*long) == [[2.0 * number] * samples for number in range(1, 21)]
    await first


async def test_much_larger_media_that_are_decoded_leave_room_for_smaller_ones_but_not_for_similar_ones(
    make: Make,
) -> None:
    """Decoded requests of more than twice the size go behind a smaller one, so they take no room from it."""
    bench = await make(max_batch=4)
    requests = behind_a_running_batch(bench, on_loop=False)
    first = asyncio.create_task(requests.ask(0.0, samples=4))
    await bench.until_running(4)
    large = [asyncio.create_task(requests.ask(1.0, samples=40, size=400)) for _ in range(6)]
    await pause()
    decoded = len(requests.decoded)
    assert decoded < 1 + 6
    similar = asyncio.create_task(requests.ask(2.0, samples=20, size=200))
    await pause()
    assert len(requests.decoded) == decoded, "half the size: it has to wait"
    smaller = asyncio.create_task(requests.ask(3.0, samples=19, size=199))
    await pause()
    assert requests.decoded[decoded:] == [3.0], "less than half the size: it overtakes"
    bench.engine.gate.set()
    await asyncio.gather(first, *large, similar, smaller)


async def test_single_samples_that_are_decoded_take_room_from_others_however_large_they_were(make: Make) -> None:
    bench = await make(max_batch=4)
    requests = behind_a_running_batch(bench, on_loop=False)
    first = asyncio.create_task(requests.ask(0.0, samples=4))
    await bench.until_running(4)
    large = [asyncio.create_task(requests.ask(float(number), size=1000)) for number in range(1, 9)]
    await pause()
    assert len(requests.decoded) == 1 + 4 + DECODERS
    small = asyncio.create_task(requests.ask(50.0, size=1))
    await pause()
    assert 50.0 not in requests.decoded
    bench.engine.gate.set()
    await asyncio.gather(first, *large, small)


async def test_media_decoded_on_the_event_loop_and_in_threads_take_no_room_from_each_other(make: Make) -> None:
    bench = await make(max_batch=4)
    in_threads = behind_a_running_batch(bench, on_loop=False)
    first = asyncio.create_task(in_threads.ask(0.0, samples=4))
    await bench.until_running(4)
    slow = [asyncio.create_task(in_threads.ask(1.0)) for _ in range(20)]
    await pause()
    assert len(in_threads.decoded) == 1 + 4 + DECODERS
    on_loop = Requests(bench, on_loop=True)
    quick = [asyncio.create_task(on_loop.ask(2.0)) for _ in range(20)]
    await pause()
    assert len(on_loop.decoded) == 4, "a batch of their own"
    bench.engine.gate.set()
    await asyncio.gather(first, *slow, *quick)


@pytest.mark.parametrize("on_loop", [True, False])
async def test_of_single_samples_no_more_are_decoded_whatever_their_sizes(make: Make, on_loop: bool) -> None:
    bench = await make(max_batch=4)
    requests = behind_a_running_batch(bench, on_loop=on_loop)
    asking = []
    for number in range(30):
        asking.append(asyncio.create_task(requests.ask(float(number), size=3000 - 100 * number)))
        await asyncio.sleep(0)
    await pause()
    assert len(requests.decoded) <= 4 + 4 + (0 if on_loop else DECODERS)
    bench.engine.gate.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] for number in range(30)]


async def test_media_that_decode_slowly_occupy_every_thread_and_hold_up_none_on_the_event_loop(make: Make) -> None:
    bench = await make(max_batch=1)
    slow, quick = Requests(bench, on_loop=False), Requests(bench, on_loop=True)
    asking = [asyncio.create_task(slow.ask(float(number))) for number in range(9)]
    await pause()
    assert await quick.ask(50.0) == [100.0]
    assert not slow.decoded
    slow.may_decode.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] for number in range(9)]


async def test_one_more_request_than_threads_is_ready_for_each_thread(make: Make) -> None:
    """So that a thread that is done finds its next file though the event loop is busy."""
    bench = await make(max_batch=8)
    requests = Requests(bench, on_loop=False)
    asking = [asyncio.create_task(requests.ask(float(number))) for number in range(9)]
    await pause()
    assert requests.started == [float(number) for number in range(2 * DECODERS)]
    requests.may_decode.set()
    await asyncio.gather(*asking)


async def test_a_request_that_gives_up_before_it_is_decoded_costs_nothing_and_delays_no_other(make: Make) -> None:
    bench = await make(max_batch=2)
    requests, first = await many_behind_a_running_batch(bench, 4, on_loop=True)
    hurried = [asyncio.create_task(requests.ask(100.0 + number, seconds=0.02)) for number in range(5)]
    left = [asyncio.create_task(requests.ask(200.0 + number)) for number in range(5)]
    last = asyncio.create_task(requests.ask(7.0))
    await pause()
    for task in left:
        task.cancel()
    for task in hurried:
        with pytest.raises(DeadlineExceeded, match="waited to be decoded"):
            await task
    bench.engine.gate.set()
    assert await last == [14.0]
    assert requests.decoded == [0.0, 1.0, 2.0, 3.0, 7.0]
    await asyncio.gather(*first)


async def test_media_that_cannot_be_decoded_make_room_for_others(make: Make) -> None:
    bench = await make(max_batch=1)

    async def ask() -> None:
        async with bench.batcher.reserve(time.monotonic() + 20) as request:
            await request.wait_to_decode()
            await asyncio.sleep(0.001)
            raise ValueError("corrupt")

    answers = await asyncio.gather(*(ask() for _ in range(20)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["corrupt"] * 20


async def test_on_a_cpu_quick_media_are_decoded_between_two_batches(make: Make) -> None:
    bench = await make(max_batch=4, on_cpu=True)
    requests, asking = await many_behind_a_running_batch(bench, 7, on_loop=True)
    assert requests.decoded == [0.0, 1.0, 2.0, 3.0], "a batch of those that came together, and nothing beside it"
    bench.engine.gate.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] for number in range(7)]
    assert bench.engine.batches == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


async def test_on_a_cpu_threads_decode_beside_the_engine(make: Make) -> None:
    bench = await make(max_batch=1, on_cpu=True)
    requests, asking = await many_behind_a_running_batch(bench, 3, on_loop=False)
    assert requests.decoded == [0.0, 1.0, 2.0]
    bench.engine.gate.set()
    await asyncio.gather(*asking)


@pytest.mark.parametrize("max_batch", [1, 2, 8])
async def test_on_a_cpu_a_new_request_is_decoded_though_a_long_one_fills_every_batch(
    make: Make, max_batch: int
) -> None:
    bench = await make(max_batch=max_batch, on_cpu=True)
    requests = behind_a_running_batch(bench, on_loop=True)
    long = asyncio.create_task(requests.ask(1.0, samples=100))
    await until(lambda: bench.running > 0)
    short = asyncio.create_task(requests.ask(7.0))
    await pause()
    assert requests.decoded == [1.0], "the engine is at work"
    bench.engine.gate.set()
    assert await short == [14.0]
    assert bench.batch_of(7.0) <= 2, "two batches were before it, and not a hundred samples"
    await long


async def test_many_long_requests_that_are_decoded_do_not_hold_up_a_short_one(make: Make) -> None:
    bench = await make(max_batch=2)
    requests = behind_a_running_batch(bench, on_loop=True)
    long = [asyncio.create_task(requests.ask(1.0, samples=100)) for _ in range(6)]
    await pause()
    short = asyncio.create_task(requests.ask(7.0))
    await pause()
    bench.engine.gate.set()
    assert await short == [14.0]
    assert bench.batch_of(7.0) <= 12, "it alternates with them, and does not wait for hundreds of samples"
    await asyncio.gather(*long)


async def test_closing_refuses_what_waits_to_be_decoded(make: Make) -> None:
    bench = await make(max_batch=1)
    requests, asking = await many_behind_a_running_batch(bench, 5, on_loop=True)
    closing = asyncio.create_task(bench.batcher.close())
    await asyncio.gather(*asking[1:], return_exceptions=True)
    bench.engine.gate.set()
    await closing
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers[0] == [0.0]
    assert [type(answer) for answer in answers[1:]] == [NotReady] * 4
    assert requests.decoded == [0.0, 1.0]


async def test_long_media_are_not_decoded_long_before_they_are_needed_but_short_ones_are(make: Make) -> None:
    bench = await make(max_batch=4)
    requests = behind_a_running_batch(bench, on_loop=False)
    long = [asyncio.create_task(requests.ask(float(number), samples=100)) for number in range(20)]
    await pause()
    decoded = len(requests.decoded)
    assert 2 <= decoded <= 6, "two threads' are enough for the engine"
    short = asyncio.create_task(requests.ask(50.0))
    await pause()
    assert requests.decoded[decoded:] == [50.0]
    bench.engine.gate.set()
    assert await short == [100.0]
    assert len(requests.decoded) <= decoded + 2
    assert await asyncio.gather(*long) == [[2.0 * number] * 100 for number in range(20)]


@pytest.mark.parametrize("on_loop", [True, False])
async def test_long_requests_that_wait_to_be_decoded_do_not_hold_up_a_short_one(make: Make, on_loop: bool) -> None:
    bench = await make(max_batch=2)
    requests = behind_a_running_batch(bench, on_loop=on_loop)
    long = [asyncio.create_task(requests.ask(1.0, samples=300)) for _ in range(8)]
    await pause()
    assert len(requests.decoded) < 8
    bench.engine.gate.set()
    for _ in range(60):  # some of them when the long one that is first has waited for its share
        ran = len(bench.engine.batches)
        assert await requests.ask(7.0) == [14.0]
        assert len(bench.engine.batches) - ran < 20
    assert not any(task.done() for task in long[2:])
    await asyncio.gather(*long)


async def test_on_a_cpu_quick_media_are_decoded_though_those_of_threads_fill_every_batch(make: Make) -> None:
    bench = await make(max_batch=2, on_cpu=True)
    slow, quick = Requests(bench, on_loop=False), Requests(bench, on_loop=True)
    slow.may_decode.set()

    async def repeat() -> None:
        while True:
            await slow.ask(1.0)

    others = [asyncio.create_task(repeat()) for _ in range(12)]
    await until(lambda: len(bench.engine.batches) > 5)
    assert await quick.ask(7.0, size=2, seconds=5.0) == [14.0]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_request_that_leaves_makes_room_for_another_to_be_decoded(make: Make) -> None:
    bench = await make(max_batch=2)
    requests = behind_a_running_batch(bench, on_loop=True)
    asking = [asyncio.create_task(requests.ask(float(number))) for number in range(5)]
    await pause()
    assert requests.decoded == [0.0, 1.0, 2.0, 3.0]
    asking[2].cancel()  # decoded, and in the queue
    await pause()
    assert requests.decoded == [0.0, 1.0, 2.0, 3.0, 4.0]
    bench.engine.gate.set()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_media_that_turn_out_to_be_slow_leave_the_event_loop_to_others(make: Make) -> None:
    bench = await make(max_batch=1)
    slow = asyncio.Event()

    async def lied() -> None:
        async with bench.batcher.reserve(time.monotonic() + 20, on_loop_seconds=0.001) as request:
            await request.wait_to_decode()
            await asyncio.sleep(0.01)
            request.move_to_thread()
            await request.wait_to_decode()
            await slow.wait()
            await request.infer([np.ones(1)])

    liar = asyncio.create_task(lied())
    await asyncio.sleep(0)
    assert await Requests(bench, on_loop=True).ask(7.0, seconds=5.0) == [14.0]
    slow.set()
    await liar
