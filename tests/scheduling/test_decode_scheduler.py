import asyncio
import time

import numpy as np
import pytest

from service.errors import DeadlineExceeded, NotReady
from tests.batching import Make, Media, held, kept_waiting, many_turns, until


@pytest.mark.parametrize("quick", [True, False])
async def test_no_more_is_decoded_than_the_next_batch_takes(make: Make, quick: bool) -> None:
    bench = await make(max_batch=4)
    requests, asking = await kept_waiting(bench, 30, quick=quick)
    running, waiting = 4, 4
    assert requests.decoded == [float(number) for number in range(running + waiting + (0 if quick else 2))]
    bench.engine.gate.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] for number in range(30)]
    assert requests.decoded == [float(number) for number in range(30)], "in the order in which they came"
    assert len(bench.engine.batches) <= 9


async def test_what_decodes_slowly_keeps_every_decoder_busy_and_does_not_hold_up_what_is_quick(make: Make) -> None:
    bench = await make(max_batch=1)
    slow, quick = Media(bench, quick=False), Media(bench, quick=True)
    asking = [asyncio.create_task(slow.ask(float(number))) for number in range(9)]
    await many_turns()
    assert await quick.ask(50.0) == [100.0]
    assert not slow.decoded
    slow.may_decode.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] for number in range(9)]


async def test_who_gives_up_before_it_is_decoded_costs_nothing_and_holds_nobody_up(make: Make) -> None:
    bench = await make(max_batch=2)
    requests, first = await kept_waiting(bench, 4, quick=True)
    hurried = [asyncio.create_task(requests.ask(100.0 + number, seconds=0.02)) for number in range(5)]
    left = [asyncio.create_task(requests.ask(200.0 + number)) for number in range(5)]
    last = asyncio.create_task(requests.ask(7.0))
    await many_turns()
    for task in left:
        task.cancel()
    for task in hurried:
        with pytest.raises(DeadlineExceeded, match="waited to be decoded"):
            await task
    bench.engine.gate.set()
    assert await last == [14.0]
    assert requests.decoded == [0.0, 1.0, 2.0, 3.0, 7.0]
    await asyncio.gather(*first)


async def test_what_cannot_be_decoded_makes_room_for_others(make: Make) -> None:
    bench = await make(max_batch=1)

    async def ask() -> None:
        async with bench.batcher.reserve(time.monotonic() + 20) as place:
            await place.turn()
            await asyncio.sleep(0.001)
            raise ValueError("corrupt")

    answers = await asyncio.gather(*(ask() for _ in range(20)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["corrupt"] * 20


async def test_on_a_cpu_quick_media_are_decoded_between_two_batches(make: Make) -> None:
    bench = await make(max_batch=4, on_cpu=True)
    requests, asking = await kept_waiting(bench, 7, quick=True)
    assert requests.decoded == [0.0, 1.0, 2.0, 3.0], "a batch of those that came at once, and nothing beside it"
    bench.engine.gate.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] for number in range(7)]
    assert bench.engine.batches == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


async def test_on_a_cpu_threads_decode_beside_the_engine(make: Make) -> None:
    bench = await make(max_batch=1, on_cpu=True)
    requests, asking = await kept_waiting(bench, 3, quick=False)
    assert requests.decoded == [0.0, 1.0, 2.0]
    bench.engine.gate.set()
    await asyncio.gather(*asking)


@pytest.mark.parametrize("max_batch", [1, 2, 8])
async def test_on_a_cpu_a_newcomer_is_decoded_though_a_long_request_fills_every_batch(
    make: Make, max_batch: int
) -> None:
    bench = await make(max_batch=max_batch, on_cpu=True)
    requests = held(bench, quick=True)
    long = asyncio.create_task(requests.ask(1.0, samples=100))
    await many_turns()
    short = asyncio.create_task(requests.ask(7.0))
    await many_turns()
    assert requests.decoded == [1.0], "the engine is at work"
    bench.engine.gate.set()
    assert await short == [14.0]
    position = next(index for index, batch in enumerate(bench.engine.batches) if 7.0 in batch)
    assert position <= 2, "two batches were before it, and not a hundred samples"
    await long


async def test_many_long_requests_that_are_decoded_do_not_hold_up_a_short_one(make: Make) -> None:
    bench = await make(max_batch=2)
    requests = held(bench, quick=True)
    long = [asyncio.create_task(requests.ask(1.0, samples=100)) for _ in range(6)]
    await many_turns()
    short = asyncio.create_task(requests.ask(7.0))
    await many_turns()
    bench.engine.gate.set()
    assert await short == [14.0]
    position = next(index for index, batch in enumerate(bench.engine.batches) if 7.0 in batch)
    assert position <= 12, "some turns of the seven, and not hundreds of samples"
    await asyncio.gather(*long)


async def test_closing_refuses_what_waits_to_be_decoded(make: Make) -> None:
    bench = await make(max_batch=1)
    requests, asking = await kept_waiting(bench, 5, quick=True)
    closing = asyncio.create_task(bench.batcher.close())
    await asyncio.sleep(0)
    bench.engine.gate.set()
    await closing
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers[0] == [0.0]
    assert [type(answer) for answer in answers[1:]] == [NotReady] * 4
    assert requests.decoded == [0.0, 1.0]


async def test_long_media_are_not_decoded_long_before_they_are_needed_but_short_ones_are(make: Make) -> None:
    bench = await make(max_batch=4)
    requests = held(bench, quick=False)
    long = [asyncio.create_task(requests.ask(float(number), samples=100)) for number in range(20)]
    await many_turns()
    kept = len(requests.decoded)
    assert 2 <= kept <= 6, "two decoders' are enough for the engine"
    short = asyncio.create_task(requests.ask(50.0))
    await many_turns()
    assert requests.decoded[kept:] == [50.0]
    bench.engine.gate.set()
    assert await short == [100.0]
    assert len(requests.decoded) <= kept + 2
    assert await asyncio.gather(*long) == [[2.0 * number] * 100 for number in range(20)]


@pytest.mark.parametrize("quick", [True, False])
async def test_of_single_samples_no_more_are_decoded_whatever_their_sizes(make: Make, quick: bool) -> None:
    bench = await make(max_batch=4)
    requests = held(bench, quick=quick)
    asking = []
    for number in range(30):
        asking.append(asyncio.create_task(requests.ask(float(number), size=3000 - 100 * number)))
        await asyncio.sleep(0)
    await many_turns()
    assert len(requests.decoded) <= 4 + 4 + (0 if quick else 2)
    bench.engine.gate.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] for number in range(30)]


@pytest.mark.parametrize("quick", [True, False])
async def test_long_requests_that_wait_to_be_decoded_do_not_hold_up_a_short_one(make: Make, quick: bool) -> None:
    bench = await make(max_batch=2)
    requests = held(bench, quick=quick)
    long = [asyncio.create_task(requests.ask(1.0, samples=300)) for _ in range(8)]
    await many_turns()
    assert len(requests.decoded) < 8
    bench.engine.gate.set()
    for _ in range(60):  # some of them when the long one that is first has waited for its share
        ran = len(bench.engine.batches)
        assert await requests.ask(7.0) == [14.0]
        assert len(bench.engine.batches) - ran < 20
    assert not any(task.done() for task in long[2:])
    await asyncio.gather(*long)


async def test_on_a_cpu_what_is_quick_is_decoded_though_threads_fill_every_batch(make: Make) -> None:
    bench = await make(max_batch=2, on_cpu=True)
    slow, quick = Media(bench, quick=False), Media(bench, quick=True)
    slow.may_decode.set()

    async def again_and_again() -> None:
        while True:
            await slow.ask(1.0)

    others = [asyncio.create_task(again_and_again()) for _ in range(12)]
    await until(lambda: len(bench.engine.batches) > 5)
    assert await quick.ask(7.0, size=2, seconds=5.0) == [14.0]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_who_goes_leaves_room_to_be_decoded(make: Make) -> None:
    bench = await make(max_batch=2)
    requests = held(bench, quick=True)
    asking = [asyncio.create_task(requests.ask(float(number))) for number in range(5)]
    await many_turns()
    assert requests.decoded == [0.0, 1.0, 2.0, 3.0]
    asking[2].cancel()  # decoded, and in the line
    await many_turns()
    assert requests.decoded == [0.0, 1.0, 2.0, 3.0, 4.0]
    bench.engine.gate.set()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_who_turns_out_to_be_slow_leaves_its_turn_to_others(make: Make) -> None:
    bench = await make(max_batch=1)
    slow = asyncio.Event()

    async def lied() -> None:
        async with bench.batcher.reserve(time.monotonic() + 20, at_once_seconds=0.001) as place:
            await place.turn()
            await asyncio.sleep(0.01)
            place.move_to_thread()
            await place.turn()
            await slow.wait()
            await place.run([np.ones(1)])

    liar = asyncio.create_task(lied())
    await asyncio.sleep(0)
    assert await Media(bench, quick=True).ask(7.0, seconds=5.0) == [14.0]
    slow.set()
    await liar
