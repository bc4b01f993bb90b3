import asyncio
import logging
import time

import numpy as np
import pytest
from prometheus_client import REGISTRY

from service.errors import DeadlineExceeded, DeadlineUnmeetable, InternalError, NotReady, QueueFull
from service.scheduling.batcher import _LongRequestLimit
from tests.batching import LAST, POISON, Bench, Make, pause, until

HERE = "MainThread"  # the event loop's


def soon(seconds: float = 20.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


async def queue_behind_a_running_batch(
    bench: Bench, *requests: tuple[float, ...], shape: tuple[int, ...] = (1,)
) -> "list[asyncio.Task[list[float]]]":
    """Starts a first request, closes the engine's gate behind it, and queues ``requests`` in this order."""
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(0.0))]
    await bench.until_running(1)
    for number, values in enumerate(requests, start=1):
        asking.append(asyncio.create_task(bench.ask(*values, shape=shape)))
        await bench.until_queued(number)
    return asking


async def test_each_client_gets_its_own_answer(make: Make) -> None:
    bench = await make()
    answers = await asyncio.gather(*(bench.ask(float(number)) for number in range(50)))
    assert answers == [[2.0 * number] for number in range(50)]


# Which samples share a batch


async def test_requests_that_arrive_while_the_engine_is_busy_share_the_next_batch(make: Make) -> None:
    bench = await make(max_batch=4)
    asking = await queue_behind_a_running_batch(bench, *((float(number),) for number in range(1, 6)))
    bench.engine.gate.set()
    await asyncio.gather(*asking)
    assert bench.engine.batches == [[0.0], [1.0, 2.0, 3.0, 4.0], [5.0]]


async def ask_later(bench: Bench, value: float, iterations: int) -> None:
    """A request that arrives after so many iterations of the event loop, as a body that is still read does."""
    for _ in range(iterations):
        await asyncio.sleep(0)
    await bench.ask(value)


async def test_a_lone_request_does_not_wait_for_company(make: Make) -> None:
    bench = await make(max_batch=32)
    assert await bench.ask(3.0, seconds=5) == [6.0]
    await asyncio.gather(ask_later(bench, 4.0, 0), ask_later(bench, 5.0, 4))
    assert bench.engine.batches == [[3.0], [4.0], [5.0]]


@pytest.mark.parametrize(
    "arrivals",
    [(0, 0, 0, 0, 0), (0, 0, 1, 2, 3), (0, 0, 3, 6, 9), (0, 0, 7)],
    ids=["together", "one by one", "a few iterations apart", "one after seven iterations"],
)
async def test_requests_that_arrive_within_a_few_iterations_of_the_event_loop_share_a_batch(
    make: Make, arrivals: tuple[int, ...]
) -> None:
    bench = await make(max_batch=5)
    await asyncio.gather(*(ask_later(bench, float(number), after) for number, after in enumerate(arrivals)))
    assert bench.engine.batches == [[float(number) for number in range(len(arrivals))]]


async def test_a_batch_does_not_wait_for_requests_that_arrive_later(make: Make) -> None:
    bench = await make(max_batch=5)
    bench.engine.seconds = 0.05
    await asyncio.gather(ask_later(bench, 0.0, 0), ask_later(bench, 1.0, 0), ask_later(bench, 2.0, 60))
    assert bench.engine.batches == [[0.0, 1.0], [2.0]]


async def test_requests_that_are_being_decoded_quickly_share_the_batch(make: Make) -> None:
    bench = await make(max_batch=4)

    async def ask(iterations: int) -> None:
        async with bench.batcher.reserve(soon()) as request:
            for _ in range(iterations):
                await asyncio.sleep(0)
            await request.infer([np.ones(1)])

    await asyncio.gather(*(ask(iterations) for iterations in range(4)))
    assert [len(batch) for batch in bench.engine.batches] == [4]


async def test_a_request_that_decodes_for_long_delays_no_other(make: Make) -> None:
    bench = await make(max_batch=4)
    async with bench.batcher.reserve(soon()):
        assert await bench.ask(1.0) == [2.0]


async def test_samples_of_different_shapes_never_share_a_batch(make: Make) -> None:
    bench = await make(max_batch=8)
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(1.0, shape=(1,))) for _ in range(6)]
    asking += [asyncio.create_task(bench.ask(2.0, shape=(3,))) for _ in range(6)]
    await until(lambda: bench.queued + bench.running == 12)
    bench.engine.gate.set()
    await asyncio.gather(*asking)
    assert all(len(set(batch)) == 1 for batch in bench.engine.batches)
    assert len(bench.engine.batches) <= 3


# Where a batch runs


async def test_a_batch_runs_in_the_engines_thread(make: Make) -> None:
    bench = await make(on_cpu=True)
    await bench.ask(1.0)
    await bench.ask(2.0)
    assert len(bench.engine.threads) == 1 and HERE not in bench.engine.threads


async def test_on_a_cpu_a_batch_that_is_estimated_to_be_short_runs_on_the_event_loop(make: Make) -> None:
    bench = await make(on_cpu=True, on_loop_seconds=1.0)
    await bench.ask(1.0)
    assert HERE not in bench.engine.threads, "nothing is known of the model yet"
    bench.engine.threads.clear()
    await bench.ask(1.0, 2.0, 3.0)
    assert bench.engine.threads == {HERE}
    bench.engine.threads.clear()
    bench.batcher.admission.estimator.inference.add(0.4 * 1e6, 10**6)
    await bench.ask(1.0, 2.0, 3.0)
    assert HERE not in bench.engine.threads, "three samples take longer than a second"


async def test_on_a_gpu_every_batch_runs_beside_the_event_loop(make: Make) -> None:
    bench = await make(on_cpu=False, on_loop_seconds=5.0)
    await bench.ask(1.0)
    await bench.ask(2.0)
    assert HERE not in bench.engine.threads


async def test_other_requests_get_in_between_two_batches_on_the_event_loop(make: Make) -> None:
    bench = await make(max_batch=4, on_cpu=True, on_loop_seconds=5.0)
    await bench.ask(1.0)  # from now on the estimate is known
    bench.engine.threads.clear()
    long = asyncio.create_task(bench.ask(*[1.0] * 400))
    await until(lambda: len(bench.engine.batches) > 1)
    assert await bench.ask(1000.0) == [2000.0]
    assert not long.done()
    assert await long == [2.0] * 400
    assert bench.batch_of(1000.0) < len(bench.engine.batches) // 2, "it waited for few of the hundred batches"
    assert bench.engine.threads == {HERE}


# Long requests


def grow(limit: _LongRequestLimit, batches: int, *, seconds_each: float) -> list[int]:
    """The limit, batch by batch, where long requests fill it and nothing else is in the batch."""
    found = []
    for _ in range(batches):
        found.append(limit.samples)
        limit.observe(limit.samples, of=limit.samples, seconds=limit.samples * seconds_each)
    return found


def test_the_limit_falls_until_long_requests_take_20_ms_of_a_batch_and_stays_there() -> None:
    assert grow(_LongRequestLimit(16), 6, seconds_each=0.003) == [16, 8, 4, 4, 4, 4]


def test_the_limit_is_never_zero() -> None:
    assert grow(_LongRequestLimit(8), 6, seconds_each=1.0) == [8, 4, 2, 1, 1, 1]


def test_the_limit_grows_again_where_twice_as_many_samples_take_20_ms() -> None:
    limit = _LongRequestLimit(48)
    grow(limit, 6, seconds_each=1.0)
    assert grow(limit, 6, seconds_each=0.0025) == [1, 2, 4, 8, 8, 8]
    assert grow(limit, 5, seconds_each=0.0) == [8, 16, 32, 48, 48], "up to a batch"


@pytest.mark.parametrize(
    ("samples", "of", "seconds", "left"),
    [(4, 16, 0.04, 16), (4, 16, 0.1, 8), (0, 16, 1.0, 16), (8, 8, 0.04, 8)],
    ids=["their share is short", "their share is long", "none of them", "all of them"],
)
def test_only_the_long_requests_share_of_a_batch_counts(samples: int, of: int, seconds: float, left: int) -> None:
    limit = _LongRequestLimit(16)
    limit.observe(samples, of=of, seconds=seconds)
    assert limit.samples == left


def test_a_limit_that_was_not_used_up_does_not_grow() -> None:
    limit = _LongRequestLimit(16)
    limit.observe(16, of=16, seconds=1.0)
    limit.observe(7, of=16, seconds=0.001)
    assert limit.samples == 8


async def test_a_long_request_adds_at_most_20_ms_to_a_batch(make: Make) -> None:
    bench = await make(max_batch=16)
    bench.engine.seconds = 0.025
    assert await bench.ask(*[1.0] * 40) == [2.0] * 40
    sizes = [len(batch) for batch in bench.engine.batches]
    assert sizes == [16, 8, 4, 2, *[1] * 10]
    bench.engine.seconds = 0.0
    await bench.ask(*[1.0] * 100)
    assert max(len(batch) for batch in bench.engine.batches[len(sizes) :]) > 4, "the engine has become fast"


async def test_long_requests_are_finished_in_the_order_of_their_arrival(make: Make) -> None:
    bench = await make(max_batch=4)
    asking = await queue_behind_a_running_batch(bench, *((float(number),) * 40 for number in range(1, 6)))
    bench.engine.gate.set()
    assert await asyncio.gather(*asking[1:]) == [[2.0 * number] * 40 for number in range(1, 6)]
    ran = [value for batch in bench.engine.batches for value in batch]
    assert ran == sorted(ran), "if they alternated, all would be finished at the end"


async def test_a_long_request_is_finished_though_short_ones_fill_every_batch(make: Make) -> None:
    bench = await make(max_batch=4)
    answered = 0

    async def repeat() -> None:
        nonlocal answered
        while True:
            await bench.ask(1.0)
            answered += 1

    bench.engine.gate.clear()
    others = [asyncio.create_task(repeat()) for _ in range(12)]
    long = asyncio.create_task(bench.ask(*[7.0] * 20))
    await until(lambda: bench.queued + bench.running == 13)
    bench.engine.gate.set()
    assert await long == [14.0] * 20
    assert answered < 2 * 20 * 12, "an even share of thirteen would be 12 samples for each of the long one's"
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.mark.parametrize("shape", [(1,), (3,)], ids=["of the same shape", "of another shape"])
@pytest.mark.parametrize("max_batch", [1, 4])
async def test_short_requests_do_not_wait_for_the_whole_of_a_long_one_whose_virtual_finish_time_has_come(
    make: Make, max_batch: int, shape: tuple[int, ...]
) -> None:
    bench = await make(max_batch=max_batch)

    async def repeat() -> None:
        while True:
            await bench.ask(1.0, shape=shape)

    others = [asyncio.create_task(repeat()) for _ in range(8)]
    await until(lambda: len(bench.engine.batches) > 2)
    long = await asyncio.wait_for(asyncio.create_task(bench.ask(*[9.0] * 40)), 10)
    assert long == [18.0] * 40
    ran = bench.engine.batches[bench.batch_of(9.0) :]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    without_short = [number for number, batch in enumerate(ran) if 1.0 not in batch]
    assert without_short, "the long request led batches: its time had come"
    assert not any(number + 1 in without_short for number in without_short), "short ones wait for one such batch"


async def test_a_long_request_alternates_with_short_ones(make: Make) -> None:
    bench = await make(max_batch=2)
    bench.engine.gate.clear()
    long = asyncio.create_task(bench.ask(*[1.0] * 20))
    await bench.until_running(2)
    short = asyncio.create_task(bench.ask(7.0))
    await bench.until_queued(2)
    bench.engine.gate.set()
    assert await short == [14.0]
    assert not long.done()
    assert await long == [2.0] * 20
    assert bench.batch_of(7.0) <= 1, "behind the batch that was running"


async def test_a_long_request_does_not_starve_behind_others_of_another_shape(make: Make) -> None:
    bench = await make(max_batch=4)

    async def repeat(samples: int) -> None:
        while True:
            await bench.ask(*[1.0] * samples)

    bench.engine.gate.clear()
    others = [asyncio.create_task(repeat(samples)) for samples in (1, 1, 8, 8, 8)]
    await until(lambda: bench.running > 0)
    before = bench.queued
    long = asyncio.create_task(bench.ask(*[7.0] * 8, shape=(3,)))
    await bench.until_queued(before + 1)
    bench.engine.gate.set()
    assert await asyncio.wait_for(long, 10) == [14.0] * 8
    assert len(bench.engine.batches) < 40, "an even share of six would be eight samples of 48"
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


# Failures


async def test_one_bad_sample_fails_alone(make: Make) -> None:
    bench = await make(max_batch=8)
    first, *asking = await queue_behind_a_running_batch(bench, (1.0,), (2.0,), (POISON,), (3.0,))
    bench.engine.gate.set()
    await first
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert results[0] == [2.0] and results[1] == [4.0] and results[3] == [6.0]
    assert isinstance(results[2], InternalError)
    assert bench.reported_broken == 0


async def test_one_bad_sample_fails_alone_on_the_event_loop_too(make: Make) -> None:
    bench = await make(max_batch=8, on_cpu=True, on_loop_seconds=10.0)
    await bench.ask(0.0)  # from now on the estimate is known
    bench.engine.threads.clear()
    results = await asyncio.gather(*(bench.ask(value) for value in (1.0, POISON, 3.0)), return_exceptions=True)
    assert results[0] == [2.0] and results[2] == [6.0]
    assert isinstance(results[1], InternalError)
    assert HERE in bench.engine.threads


def series(name: str) -> float:
    return REGISTRY.get_sample_value(f"convserve_{name}", {"model": "test:1"}) or 0.0


async def test_failed_runs_are_counted_and_only_answered_samples(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "convserve.batcher")
    bench = await make(max_batch=8)
    failures, samples = series("inference_failures_total"), series("samples_total")
    await asyncio.gather(*(bench.ask(value) for value in (1.0, POISON, 3.0)), return_exceptions=True)
    assert sorted(map(len, bench.engine.batches)) == [1, 1, 1, 3]
    assert series("inference_failures_total") - failures == 2, "the batch, and the sample alone"
    assert series("samples_total") - samples == 2
    with pytest.raises(InternalError):
        await bench.ask(POISON)
    assert series("samples_total") - samples == 2, "the blank sample belongs to no request"


async def test_the_good_samples_of_a_failed_batch_do_not_wait_for_one_another(make: Make) -> None:
    bench = await make(max_batch=8)
    first, good, bad, last = await queue_behind_a_running_batch(bench, (1.0,), (POISON,), (LAST,))
    bench.engine.gate.set()
    await first
    assert await good == [2.0]
    assert not last.done()
    bench.engine.last.set()
    with pytest.raises(InternalError):
        await bad
    assert await last == [2 * LAST]


async def test_an_engine_that_answers_too_few_samples_leaves_no_request_without_an_answer(make: Make) -> None:
    bench = await make()
    bench.engine.left_out = 1
    assert await bench.ask(1.0, 2.0, 3.0) == [2.0, 4.0, 6.0]


async def test_an_engine_that_answers_not_even_a_blank_sample_is_reported(make: Make) -> None:
    bench = await make()
    bench.engine.broken = True
    with pytest.raises(NotReady) as refusal:
        await bench.ask(1.0)
    assert refusal.value.retry_after_seconds
    assert bench.reported_broken == 1


async def test_a_broken_engine_is_reported_once_and_every_request_is_refused(make: Make) -> None:
    bench = await make(max_batch=1)
    asking = await queue_behind_a_running_batch(bench, (1.0,), (1.0,), (1.0,))
    bench.engine.broken = True
    bench.engine.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(answer, NotReady) for answer in answers)
    with pytest.raises(NotReady):
        bench.batcher.reserve(soon())
    assert bench.reported_broken == 1


# The end


async def test_closing_refuses_what_waits_and_finishes_what_runs(make: Make) -> None:
    bench = await make(max_batch=1)
    asking = await queue_behind_a_running_batch(bench, (1.0,), (1.0,))
    closing = asyncio.create_task(bench.batcher.close())
    answers = await asyncio.gather(*asking[1:], return_exceptions=True)
    assert all(isinstance(answer, NotReady) for answer in answers)
    bench.engine.gate.set()
    await closing
    assert await asking[0] == [0.0]


async def test_draining_answers_what_waits_and_what_still_comes_before_it_closes(make: Make) -> None:
    bench = await make(max_batch=1)
    asking = await queue_behind_a_running_batch(bench, (1.0,), (2.0,))
    draining = asyncio.create_task(bench.batcher.drain())
    await pause()
    late = asyncio.create_task(bench.ask(3.0))
    await bench.until_queued(3)
    assert not draining.done()
    bench.engine.gate.set()
    assert await asyncio.gather(*asking, late) == [[0.0], [2.0], [4.0], [6.0]]
    await draining
    with pytest.raises(NotReady):
        bench.batcher.reserve(soon())


async def test_draining_answers_a_request_that_comes_right_behind_it(make: Make) -> None:
    bench = await make()
    draining = asyncio.create_task(bench.batcher.drain())
    await asyncio.sleep(0)
    assert await bench.ask(1.0) == [2.0]
    await draining


# Room in the queue


async def test_no_more_samples_wait_than_the_queue_has_room_for(make: Make) -> None:
    bench = await make(max_batch=4, queue_samples=8)
    bench.engine.gate.clear()
    asking = [asyncio.create_task(bench.ask(*[float(number)] * 10)) for number in range(8)]
    await pause()
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
    await bench.until_running(2)
    short = asyncio.create_task(bench.ask(5.0))  # would be refused if all samples of the long one counted
    await bench.until_queued(2)
    bench.engine.gate.set()
    assert await short == [10.0]
    await long


async def test_long_requests_leave_half_of_the_queue_to_requests_still_to_come(make: Make) -> None:
    bench = await make(max_batch=4, queue_samples=16)
    bench.engine.gate.clear()
    long = [asyncio.create_task(bench.ask(*[1.0] * 10)) for _ in range(6)]
    await bench.until_queued(6)
    short = [asyncio.create_task(bench.ask(5.0)) for _ in range(6)]
    await bench.until_queued(12)
    bench.engine.gate.set()
    assert await asyncio.gather(*short) == [[10.0]] * 6
    assert await asyncio.gather(*long) == [[2.0] * 10] * 6


# Deadlines and clients that leave


async def test_a_deadline_that_passes_in_the_queue_is_told_in_time_and_the_sample_never_runs(make: Make) -> None:
    bench = await make(max_batch=1)
    (first,) = await queue_behind_a_running_batch(bench)
    with pytest.raises(DeadlineExceeded):
        await bench.ask(9.0, seconds=0.05)
    bench.engine.gate.set()
    await first
    assert await bench.ask(2.0) == [4.0]
    assert [9.0] not in bench.engine.batches


async def test_samples_of_a_client_that_left_never_run(make: Make) -> None:
    bench = await make(max_batch=1)
    first, left = await queue_behind_a_running_batch(bench, (9.0, 9.0))
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    bench.engine.gate.set()
    await first
    await bench.ask(2.0)
    assert [9.0] not in bench.engine.batches


async def test_a_request_that_cannot_be_answered_in_time_is_refused_before_it_starts(make: Make) -> None:
    bench = await make(max_batch=1)
    bench.batcher.admission.estimator.inference.add(0.2)  # five samples a second
    asking = await queue_behind_a_running_batch(bench, *[(2.0,)] * 4)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        bench.batcher.reserve(soon(0.3))
    assert refusal.value.retry_after_seconds == 1  # five samples, at a fifth of a second each
    async with bench.batcher.reserve(soon()):
        bench.engine.gate.set()
    await asyncio.gather(*asking)


async def test_where_decoding_is_the_slower_part_its_rate_counts(make: Make) -> None:
    bench = await make()  # two decoders
    async with bench.batcher.reserve(soon()) as request:
        await request.infer([np.ones(1)], decode_seconds=0.5)
    async with bench.batcher.reserve(soon()), bench.batcher.reserve(soon()), bench.batcher.reserve(soon()):
        # Three halves of a second over two decoders, and its own, and a fifth.
        with pytest.raises(DeadlineUnmeetable) as refusal:
            bench.batcher.reserve(soon(1.2))
        assert refusal.value.retry_after_seconds == 1
        async with bench.batcher.reserve(soon(1.7)):
            pass


async def test_an_idle_time_after_a_request_gave_up_is_not_taken_for_the_time_that_a_request_takes(make: Make) -> None:
    bench = await make()
    async with bench.batcher.reserve(soon()):
        await bench.ask(1.0)  # the other waits meanwhile, and then leaves without ever running
    await asyncio.sleep(0.5)
    await bench.ask(2.0)
    async with bench.batcher.reserve(soon(0.3)), bench.batcher.reserve(soon(0.3)):
        pass


async def test_a_slow_decode_beside_quick_ones_is_not_taken_for_the_time_that_a_request_takes(make: Make) -> None:
    bench = await make()
    async with bench.batcher.reserve(soon()) as slow:
        await bench.ask(1.0)
        await asyncio.sleep(0.5)  # a thread decodes it
        await slow.infer([np.ones(1)])
    async with bench.batcher.reserve(soon(0.3)), bench.batcher.reserve(soon(0.3)):
        pass


async def test_check_raises_once_the_client_left_or_the_deadline_passed(make: Make) -> None:
    bench = await make()
    async with bench.batcher.reserve(soon()) as request:
        request.check()
    with pytest.raises(DeadlineExceeded):
        request.check()
    async with bench.batcher.reserve(soon(0.01)) as late:
        time.sleep(0.02)  # as a decoder in its thread, which the event loop cannot interrupt
        with pytest.raises(DeadlineExceeded):
            late.check()


async def test_the_deadline_ends_whatever_is_awaited_and_says_at_which_stage(make: Make) -> None:
    bench = await make()
    with pytest.raises(DeadlineExceeded, match="waited to be decoded"):
        async with bench.batcher.reserve(soon(0.02)):
            await asyncio.sleep(10)
    with pytest.raises(DeadlineExceeded, match="was decoded"):
        async with bench.batcher.reserve(soon(0.1)) as request:
            await request.wait_to_decode()
            await asyncio.sleep(10)
    with pytest.raises(DeadlineExceeded, match="was answered"):
        async with bench.batcher.reserve(soon(0.5)) as request:
            await request.infer([np.ones(1)])
            await asyncio.sleep(10)
    assert await bench.ask(1.0) == [2.0]


async def test_an_error_inside_the_request_is_not_taken_for_a_deadline(make: Make) -> None:
    bench = await make(queue_samples=1)
    with pytest.raises(ValueError, match="mine"):
        async with bench.batcher.reserve(soon()):
            raise ValueError("mine")
    assert await bench.ask(1.0) == [2.0]  # and the queue has room again


# Results


async def test_the_result_names_its_batches(make: Make) -> None:
    bench = await make(max_batch=4)
    bench.engine.seconds = 0.02
    async with bench.batcher.reserve(soon()) as request:
        result = await request.infer([np.full(1, float(value)) for value in range(4)])
    (run,) = result.runs
    assert run.size == 4  # nothing else waited: the batch is all its own
    assert run.seconds >= 0.02
    assert run.padding_seconds == 0  # the engine computes four at a time
    async with bench.batcher.reserve(soon()) as request:
        result = await request.infer([np.ones(1)])
    (run,) = result.runs
    assert run.padding_seconds == pytest.approx(0.75 * run.seconds)
    async with bench.batcher.reserve(soon()) as request, bench.batcher.reserve(soon()) as other:
        mine, theirs = await asyncio.gather(request.infer([np.ones(1)]), other.infer([np.ones(1)]))
    assert mine.runs[-1] is theirs.runs[-1], "one batch is one object, whosever samples are in it"
