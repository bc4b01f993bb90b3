import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from service.engines.onnxruntime import Outputs
from service.errors import DeadlineExceeded, DeadlineUnmeetable, InternalError, NotReady, QueueFull
from service.scheduling.isolation import Sample
from tests.batching import LAST, POISON, Make, many_turns, until


async def test_each_client_gets_its_own_answer(make: Make) -> None:
    bench = await make()
    answers = await asyncio.gather(*(bench.ask(float(number)) for number in range(50)))
    assert answers == [[2.0 * number] for number in range(50)]


async def test_what_has_arrived_is_decoded_before_the_engine_takes_a_batch(make: Make) -> None:
    bench = await make(max_batch=4)

    async def ask(turns: int) -> None:
        async with bench.batcher.reserve(time.monotonic() + 20) as place:
            for _ in range(turns):  # others have theirs, and decode
                await asyncio.sleep(0)
            await place.run([np.ones(1)])

    await asyncio.gather(*(ask(turns) for turns in range(4)))
    assert [len(batch) for batch in bench.engine.batches] == [4]


async def test_a_request_that_decodes_for_long_holds_nobody_up(make: Make) -> None:
    bench = await make(max_batch=4)
    async with bench.batcher.reserve(time.monotonic() + 20):
        assert await bench.ask(1.0) == [2.0]


async def test_what_comes_while_the_engine_is_busy_shares_the_next_batch(make: Make) -> None:
    bench = await make(max_batch=4)
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(float(number))) for number in range(6)]
    await asyncio.sleep(0.05)
    bench.engine.gate.set()
    await asyncio.gather(*asking)
    assert [len(batch) for batch in bench.engine.batches] in ([1, 4, 1], [4, 2])


async def test_between_two_batches_on_the_event_loop_others_come(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await make(max_batch=4, on_cpu=True, at_once_seconds=5.0)
    await bench.ask(1.0)  # from now on the pace is known
    threads = set()

    def run(samples: Sequence[Sample]) -> list[Outputs]:
        threads.add(threading.current_thread())
        bench.engine.batches.append([float(sample[0]) for sample in samples])
        return [(sample * 2,) for sample in samples]

    monkeypatch.setattr(bench.engine, "run", run)
    long = asyncio.create_task(bench.ask(*range(400)))
    while len(bench.engine.batches) < 10:
        await asyncio.sleep(0)
    assert await bench.ask(1000.0) == [2000.0]
    position = next(index for index, batch in enumerate(bench.engine.batches) if 1000.0 in batch)
    assert position < 20 and not long.done(), "it had to wait for few of the hundred batches"
    assert await long == [2.0 * number for number in range(400)]
    assert threads == {threading.main_thread()}


async def test_a_gpu_computes_beside_the_event_loop(make: Make) -> None:
    bench = await make(on_cpu=False, at_once_seconds=5.0)
    await bench.ask(1.0)
    bench.engine.gate.clear()
    asking = asyncio.create_task(bench.ask(2.0))
    await many_turns()
    bench.engine.gate.set()
    assert await asking == [4.0]


async def test_a_lone_request_does_not_wait_for_company(make: Make) -> None:
    bench = await make(max_batch=32)
    assert await bench.ask(3.0, seconds=5) == [6.0]
    assert bench.engine.batches == [[3.0]]


async def test_the_good_samples_of_a_failed_batch_do_not_wait_for_one_another(make: Make) -> None:
    bench = await make(max_batch=8)
    bench.engine.gate.clear()
    first = asyncio.create_task(bench.ask(0.0))
    await until(lambda: bench.batcher.admission.running == 1)
    good, bad, last = (asyncio.create_task(bench.ask(value)) for value in (1.0, POISON, LAST))
    await until(lambda: len(bench.batcher._line) == 3)
    bench.engine.gate.set()
    await first
    assert await good == [2.0]
    assert not last.done()
    bench.engine.last.set()
    with pytest.raises(InternalError):
        await bad
    assert await last == [2 * LAST]


async def test_of_long_requests_the_first_is_done_first(make: Make) -> None:
    bench = await make(max_batch=4)
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(*[float(number)] * 40)) for number in range(5)]
    await asyncio.sleep(0.02)
    bench.engine.gate.set()
    assert await asyncio.gather(*asking) == [[2.0 * number] * 40 for number in range(5)]
    ran = [value for batch in bench.engine.batches for value in batch]
    assert ran == sorted(ran), "they would all be done at the end if they took turns"


async def test_a_long_request_is_done_though_short_ones_fill_every_batch(make: Make) -> None:
    bench = await make(max_batch=4)
    bench.engine.gate.clear()
    answered = 0

    async def again_and_again() -> None:
        nonlocal answered
        while True:
            await bench.ask(1.0)
            answered += 1

    others = [asyncio.create_task(again_and_again()) for _ in range(12)]
    long = asyncio.create_task(bench.ask(*[7.0] * 20))
    await asyncio.sleep(0.02)
    bench.engine.gate.set()
    assert await long == [14.0] * 20
    assert answered < 2 * 20 * 12, "each of the thirteen had as much as the one, or some of it twice"
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_long_request_makes_a_batch_longer_by_a_moment_only(make: Make) -> None:
    bench = await make(max_batch=16)
    bench.engine.seconds = 0.025
    assert await bench.ask(*[1.0] * 40) == [2.0] * 40
    sizes = [len(batch) for batch in bench.engine.batches]
    assert sizes == [16, 8, 4, 2, *[1] * 10]
    bench.engine.seconds = 0.0
    await bench.ask(*[1.0] * 100)
    assert max(len(batch) for batch in bench.engine.batches[len(sizes) :]) > 4, "as many as are quick"


@pytest.mark.parametrize("shape", [(1,), (3,)], ids=["the same shape", "another"])
@pytest.mark.parametrize("max_batch", [1, 4])
async def test_short_requests_do_not_wait_for_the_whole_of_a_long_one_whose_time_has_come(
    make: Make, max_batch: int, shape: tuple[int, ...]
) -> None:
    bench = await make(max_batch=max_batch)
    bench.engine.gate.clear()
    first = asyncio.create_task(bench.ask(0.0))
    await until(lambda: bench.batcher.admission.running == 1)
    long = asyncio.create_task(bench.ask(*[9.0] * 40))
    await until(lambda: len(bench.batcher._line) == 1)
    bench.batcher._line.served(1000)
    short = [asyncio.create_task(bench.ask(1.0, shape=shape)) for _ in range(8)]
    await until(lambda: len(bench.batcher._line) == 9)
    bench.engine.gate.set()
    await asyncio.gather(first, long, *short)
    others = [number for number, batch in enumerate(bench.engine.batches) if 1.0 in batch]
    assert len(others) >= 8 // max_batch
    assert all(after - before <= 2 for before, after in zip([0, *others], others, strict=False))


async def test_a_long_request_takes_turns_with_short_ones(make: Make) -> None:
    bench = await make(max_batch=2)
    bench.engine.gate.clear()
    long = asyncio.create_task(bench.ask(*[1.0] * 20))
    await asyncio.sleep(0.02)
    short = asyncio.create_task(bench.ask(7.0))
    await asyncio.sleep(0.02)
    bench.engine.gate.set()
    assert await short == [14.0]
    assert not long.done()
    assert await long == [2.0] * 20
    position = next(index for index, batch in enumerate(bench.engine.batches) if 7.0 in batch)
    assert position <= 1  # behind at most the batch that was running


async def test_samples_of_different_shapes_never_share_a_batch_and_take_turns(make: Make) -> None:
    bench = await make(max_batch=8)
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(1.0, shape=(1,))) for _ in range(6)]
    asking += [asyncio.create_task(bench.ask(2.0, shape=(3,))) for _ in range(6)]
    await asyncio.sleep(0.05)
    bench.engine.gate.set()
    await asyncio.gather(*asking)
    assert all(len(set(batch)) == 1 for batch in bench.engine.batches)
    assert len(bench.engine.batches) <= 3


async def test_a_long_request_does_not_wait_for_ever_for_short_and_long_ones_of_another_shape(make: Make) -> None:
    bench = await make(max_batch=4)
    bench.engine.gate.clear()

    async def again_and_again(samples: int) -> None:
        while True:
            await bench.ask(*[1.0] * samples)

    others = [asyncio.create_task(again_and_again(samples)) for samples in (1, 1, 8, 8, 8)]
    await until(lambda: bench.batcher.admission.running > 0)
    long = asyncio.create_task(bench.ask(*[7.0] * 8, shape=(3,)))
    await until(lambda: any(place.shape == (3,) for place in bench.batcher._line))
    bench.engine.gate.set()
    assert await asyncio.wait_for(long, 10) == [14.0] * 8
    assert len(bench.engine.batches) < 40, "an even share of six would be eight samples of 48"
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_one_bad_sample_fails_alone(make: Make) -> None:
    bench = await make(max_batch=8)
    bench.engine.gate.clear()
    first = asyncio.create_task(bench.ask(0.0))
    await asyncio.sleep(0.02)
    asking = [asyncio.create_task(bench.ask(value)) for value in (1.0, 2.0, POISON, 3.0)]
    await asyncio.sleep(0.02)
    bench.engine.gate.set()
    await first
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert results[0] == [2.0] and results[1] == [4.0] and results[3] == [6.0]
    assert isinstance(results[2], InternalError)
    assert bench.given_up == 0


async def test_an_engine_that_answers_nothing_any_more_is_given_up(make: Make) -> None:
    bench = await make()
    bench.engine.broken = True
    with pytest.raises(NotReady) as refusal:
        await bench.ask(1.0)
    assert refusal.value.retry_after_seconds
    assert bench.given_up == 1


async def test_a_broken_engine_is_given_up_once_and_refuses_everybody(make: Make) -> None:
    bench = await make(max_batch=1)
    bench.engine.broken = True
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(1.0)) for _ in range(4)]
    await asyncio.sleep(0.02)
    bench.engine.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(answer, NotReady) for answer in answers)
    with pytest.raises(NotReady):
        bench.batcher.reserve(time.monotonic() + 10)
    assert bench.given_up == 1


async def test_closing_refuses_what_waits_and_finishes_what_runs(make: Make) -> None:
    bench = await make(max_batch=1)
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(1.0)) for _ in range(3)]
    await asyncio.sleep(0.02)
    closing = asyncio.create_task(bench.batcher.close())
    answers = await asyncio.gather(*asking[1:], return_exceptions=True)
    assert all(isinstance(answer, NotReady) for answer in answers)
    bench.engine.gate.set()
    await closing
    assert await asking[0] == [2.0]


async def test_no_more_samples_wait_than_the_queue_has_places(make: Make) -> None:
    bench = await make(max_batch=4, queue_samples=8)
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(*[float(number)] * 10)) for number in range(8)]
    await asyncio.sleep(0.05)
    assert bench.batcher.admission.waiting <= 8
    bench.engine.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    answered = [answer for answer in answers if isinstance(answer, list)]
    assert answered and all(len(set(answer)) == 1 and len(answer) == 10 for answer in answered)
    assert all(isinstance(answer, (list, QueueFull)) for answer in answers)
    assert bench.batcher.admission.waiting == 0


async def test_a_request_longer_than_the_queue_is_answered(make: Make) -> None:
    bench = await make(max_batch=2, queue_samples=4)
    assert await bench.ask(*[float(number) for number in range(40)]) == [2.0 * number for number in range(40)]


async def test_a_long_request_leaves_room_in_the_queue(make: Make) -> None:
    bench = await make(max_batch=2, queue_samples=4)
    bench.engine.gate.clear()
    long = asyncio.create_task(bench.ask(*[1.0] * 100))
    await asyncio.sleep(0.02)
    short = asyncio.create_task(bench.ask(5.0))  # would be refused if all of the long one stood in the queue
    await asyncio.sleep(0.02)
    bench.engine.gate.set()
    assert await short == [10.0]
    await long


async def test_long_requests_leave_half_of_the_queue_to_those_who_still_come(make: Make) -> None:
    bench = await make(max_batch=4, queue_samples=16)
    bench.engine.gate.clear()
    long = [asyncio.create_task(bench.ask(*[1.0] * 10)) for _ in range(6)]
    await asyncio.sleep(0.02)
    short = [asyncio.create_task(bench.ask(5.0)) for _ in range(6)]
    await asyncio.sleep(0.02)
    bench.engine.gate.set()
    assert await asyncio.gather(*short) == [[10.0]] * 6
    assert await asyncio.gather(*long) == [[2.0] * 10] * 6


async def test_a_deadline_that_passes_in_the_queue_is_told_in_time_and_the_sample_never_runs(make: Make) -> None:
    bench = await make(max_batch=1)
    bench.engine.gate.clear()
    first = asyncio.create_task(bench.ask(1.0))
    await asyncio.sleep(0.02)
    with pytest.raises(DeadlineExceeded):
        await bench.ask(9.0, seconds=0.05)
    bench.engine.gate.set()
    await first
    assert await bench.ask(2.0) == [4.0]
    assert [9.0] not in bench.engine.batches


async def test_what_a_client_left_behind_never_runs(make: Make) -> None:
    bench = await make(max_batch=1)
    bench.engine.gate.clear()
    first = asyncio.create_task(bench.ask(1.0))
    await asyncio.sleep(0.02)
    left = asyncio.create_task(bench.ask(9.0, 9.0))
    await asyncio.sleep(0.02)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    bench.engine.gate.set()
    await first
    await bench.ask(2.0)
    assert [9.0] not in bench.engine.batches


async def test_work_that_cannot_be_done_in_time_is_refused_before_it_starts(make: Make) -> None:
    bench = await make(max_batch=1)
    bench.engine.seconds = 0.2
    await bench.ask(1.0)  # the pace is now known: five a second
    bench.engine.gate.clear()
    waiting = [asyncio.create_task(bench.ask(2.0)) for _ in range(5)]
    await asyncio.sleep(0.02)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        bench.batcher.reserve(time.monotonic() + 0.3)
    assert refusal.value.retry_after_seconds == 2  # five or six samples, at a fifth of a second each
    async with bench.batcher.reserve(time.monotonic() + 10):
        bench.engine.gate.set()
    await asyncio.gather(*waiting)


async def test_where_decoding_is_the_slower_part_its_pace_counts(make: Make) -> None:
    bench = await make()  # two decoders
    async with bench.batcher.reserve(time.monotonic() + 20) as place:
        await place.run([np.ones(1)], decode_seconds=0.5)
    soon = time.monotonic() + 20
    async with bench.batcher.reserve(soon), bench.batcher.reserve(soon), bench.batcher.reserve(soon):
        with pytest.raises(
            DeadlineUnmeetable
        ) as refusal:  # three halves of a second over two decoders, and its own, and a fifth
            bench.batcher.reserve(time.monotonic() + 1.2)
        assert refusal.value.retry_after_seconds == 1
        async with bench.batcher.reserve(time.monotonic() + 1.7):
            pass


async def test_a_rest_after_somebody_gave_up_is_not_taken_for_the_time_that_a_request_takes(make: Make) -> None:
    bench = await make()
    async with bench.batcher.reserve(time.monotonic() + 20):
        await bench.ask(1.0)  # the other waits meanwhile, and then leaves without ever running
    await asyncio.sleep(0.5)
    await bench.ask(2.0)
    soon = time.monotonic() + 0.3
    async with bench.batcher.reserve(soon), bench.batcher.reserve(soon):
        pass


async def test_a_slow_decode_beside_quick_ones_is_not_taken_for_the_time_that_a_request_takes(make: Make) -> None:
    bench = await make()
    async with bench.batcher.reserve(time.monotonic() + 20) as slow:
        await bench.ask(1.0)
        await asyncio.sleep(0.5)  # a thread decodes it
        await slow.run([np.ones(1)])
    soon = time.monotonic() + 0.3
    async with bench.batcher.reserve(soon), bench.batcher.reserve(soon):
        pass


async def test_the_decoders_check_raises_once_the_client_left_or_the_deadline_passed(make: Make) -> None:
    bench = await make()
    async with bench.batcher.reserve(time.monotonic() + 10) as place:
        place.check()
    with pytest.raises(DeadlineExceeded):
        place.check()
    async with bench.batcher.reserve(time.monotonic() + 0.01) as late:
        time.sleep(0.02)  # as a decoder in its thread, which the loop cannot interrupt
        with pytest.raises(DeadlineExceeded):
            late.check()


async def test_the_result_tells_its_batches(make: Make) -> None:
    bench = await make(max_batch=4)
    bench.engine.seconds = 0.02
    async with bench.batcher.reserve(time.monotonic() + 10) as place:
        result = await place.run([np.full(1, float(value)) for value in range(4)])
    (run,) = result.runs
    assert run.size == 4  # nobody else waited: the batch is all its own
    assert run.seconds >= 0.02
    assert run.padding_seconds == 0  # the engine computes four at a time
    async with bench.batcher.reserve(time.monotonic() + 10) as place:
        result = await place.run([np.ones(1)])
    (run,) = result.runs
    assert run.padding_seconds == pytest.approx(0.75 * run.seconds)
    async with (
        bench.batcher.reserve(time.monotonic() + 10) as place,
        bench.batcher.reserve(time.monotonic() + 10) as other,
    ):
        mine, theirs = await asyncio.gather(place.run([np.ones(1)]), other.run([np.ones(1)]))
    assert mine.runs[-1] is theirs.runs[-1], "one batch is one object, whosever samples are in it"


async def test_the_deadline_ends_whatever_is_awaited_and_says_at_which_stage(make: Make) -> None:
    bench = await make()
    with pytest.raises(DeadlineExceeded, match="waited to be decoded"):
        async with bench.batcher.reserve(time.monotonic() + 0.02):
            await asyncio.sleep(10)
    with pytest.raises(DeadlineExceeded, match="was decoded"):
        async with bench.batcher.reserve(time.monotonic() + 0.1) as place:
            await place.turn()
            await asyncio.sleep(10)
    with pytest.raises(DeadlineExceeded, match="was answered"):
        async with bench.batcher.reserve(time.monotonic() + 0.5) as place:
            await place.run([np.ones(1)])
            await asyncio.sleep(10)
    assert await bench.ask(1.0) == [2.0]


async def test_an_error_inside_the_place_is_not_taken_for_a_deadline(make: Make) -> None:
    bench = await make(queue_samples=1)
    with pytest.raises(ValueError, match="mine"):
        async with bench.batcher.reserve(time.monotonic() + 10):
            raise ValueError("mine")
    assert await bench.ask(1.0) == [2.0]  # and the place is free again
