import math

import pytest
from prometheus_client import Gauge

from service.errors import DeadlineUnmeetable, NotReady, QueueFull
from service.scheduling.admission import AdmissionControl, LatencyEstimator, MovingAverage


class Clocked:
    """Admission control whose clock stands still, and whose rates, in seconds, were measured before."""

    def __init__(
        self, queue_samples: int | None = 8, *, inference: float = 0.0, decoding: float = 0.0, max_batch: int = 100
    ) -> None:
        estimator = LatencyEstimator(decoders=2, on_cpu=True)
        estimator.inference.add(inference)
        estimator.decoded(decoding, in_thread=True)
        self.now, self._bound = 1000.0, queue_samples or 0
        depth = Gauge("depth", "", registry=None)
        self.control = AdmissionControl(queue_samples, estimator, depth, max_batch=max_batch, clock=lambda: self.now)

    def admit(
        self,
        requests: int = 1,
        *,
        seconds: float = 60.0,
        decoded: bool = True,
        in_thread: bool = False,
        behind: int = 0,
    ) -> None:
        for _ in range(requests):
            self.control.admit(self.now + seconds, in_thread=in_thread, behind=behind)
            if decoded:
                self.control.leave_undecoded(in_thread=in_thread)

    def release(self, requests: int) -> None:
        for _ in range(requests):
            self.control.recount(1, 0)

    def overflow(self) -> None:
        """The queue was full a moment ago, and a request was refused."""
        more = self._bound - self.control.waiting
        self.admit(more, seconds=1000)
        with pytest.raises(QueueFull):
            self.admit()
        self.release(more)


# Moving averages


def test_an_average_begins_with_the_first_value_and_forgets() -> None:
    mean = MovingAverage()
    assert mean.value == 0
    mean.add(10.0)
    assert mean.value == pytest.approx(10.0)
    mean.add(20.0)
    assert mean.value == pytest.approx((0.8 * 10 + 20) / 1.8)
    for _ in range(100):
        mean.add(5.0)
    assert mean.value == pytest.approx(5.0)


def test_a_value_of_a_larger_count_moves_the_average_further() -> None:
    mean = MovingAverage()
    mean.add(0.0, 64)
    mean.add(64 * 2.0, 64)
    mean.add(50.0)
    assert mean.value == pytest.approx(2.9, abs=0.05), "one slow request beside 64 quick ones"


# Latency


@pytest.mark.parametrize(
    ("in_threads", "samples", "seconds"),
    [(0, 0, 0.0), (0, 10, 1.0), (6, 10, 1.5), (2, 10, 1.0), (0, 1, 0.1)],
    ids=["nothing", "engine", "decoders are longer", "engine is longer", "one"],
)
def test_of_decoding_in_threads_and_inference_the_longer_counts(in_threads: int, samples: int, seconds: float) -> None:
    estimator = LatencyEstimator(decoders=2, on_cpu=True)
    assert estimator.seconds_ahead(samples, in_threads=in_threads) == 0  # nothing is known yet
    estimator.decoded(0.5, in_thread=True)
    estimator.inference.add(0.1)
    assert estimator.seconds_ahead(samples, in_threads=in_threads) == pytest.approx(seconds)
    assert estimator.seconds_of_one(in_thread=True) == pytest.approx(0.6)
    assert estimator.seconds_of_one(in_thread=False) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("on_cpu", "seconds"),
    [
        pytest.param(True, 2.0, id="a CPU's engine rests meanwhile, so both count"),
        pytest.param(False, 1.5, id="a GPU does not, but there is one event loop, however many decoders"),
    ],
)
def test_the_event_loop_decodes_requests_one_by_one(on_cpu: bool, seconds: float) -> None:
    estimator = LatencyEstimator(decoders=2, on_cpu=on_cpu)
    estimator.decoded(0.5, in_thread=False)
    estimator.inference.add(0.1)
    assert estimator.seconds_ahead(5, on_loop=3) == pytest.approx(seconds)
    assert estimator.seconds_of_one(in_thread=False) == pytest.approx(0.6)


@pytest.mark.parametrize(("on_cpu", "seconds"), [(True, 1.0 + 8.0), (False, 8.0)])
def test_decoding_on_the_event_loop_and_in_threads_is_measured_apart(on_cpu: bool, seconds: float) -> None:
    estimator = LatencyEstimator(decoders=2, on_cpu=on_cpu)
    for _ in range(3):
        estimator.decoded(0.5, in_thread=False)
        estimator.decoded(4.0, in_thread=True)
    assert estimator.seconds_ahead(0, on_loop=2, in_threads=4) == pytest.approx(seconds)


@pytest.fixture
def known() -> LatencyEstimator:
    """A tenth of a second a sample, and of decoding nothing."""
    estimator = LatencyEstimator(decoders=2, on_cpu=True)
    estimator.inference.add(0.1)
    return estimator


@pytest.mark.parametrize(
    ("at", "seconds"),
    [pytest.param(10.8, 2.0, id="twice as long"), pytest.param(10.2, 1.0, id="as the engine at least")],
)
def test_the_time_in_company_is_measured_from_one_batch_of_answers_to_the_next(
    known: LatencyEstimator, at: float, seconds: float
) -> None:
    known.answered(4, 10.0, waiting_since=9.0)
    assert known.seconds_ahead(10) == pytest.approx(1.0)
    known.answered(4, at, waiting_since=9.9)
    assert known.seconds_ahead(10) == pytest.approx(seconds)
    assert known.seconds_of_one(in_thread=False) == pytest.approx(0.1)


def test_of_the_time_in_company_the_last_counts_most(known: LatencyEstimator) -> None:
    for samples, at in ((4, 10.0), (4, 10.8), (10, 14.8)):
        known.answered(samples, at, waiting_since=9.0)
    assert known.seconds_ahead(10) == pytest.approx(10 * (0.8 * 0.8 + 4.0) / (0.8 * 4 + 10))


def test_a_bad_moment_is_forgotten_although_nothing_is_admitted_because_of_it(known: LatencyEstimator) -> None:
    known.answered(1, 10.0, waiting_since=9.0)
    known.answered(1, 40.0, waiting_since=9.0)
    assert known.seconds_ahead(1) == pytest.approx(30.0)
    for number in range(1, 27):  # long after one another: none waited for the one before
        known.answered(1, 100.0 * number, waiting_since=100.0 * number - 1)
    assert known.seconds_ahead(1) == pytest.approx(0.1)


# Admission


def test_a_full_queue_refuses_until_a_request_leaves() -> None:
    clocked = Clocked(3)
    clocked.admit(3)
    assert not clocked.control.has_room()
    with pytest.raises(QueueFull) as refusal:
        clocked.admit()
    assert refusal.value.retry_after_seconds == 1
    assert clocked.control.waiting == 3, "a refused request does not count"
    clocked.release(1)
    clocked.admit()


def test_after_an_overflow_the_queue_limit_drops_until_two_seconds_pass_without_shedding() -> None:
    clocked = Clocked(8, inference=0.6)
    clocked.admit(8)  # a burst may fill it
    with pytest.raises(QueueFull):
        clocked.admit()
    clocked.release(4)
    clocked.now += 1.9
    with pytest.raises(QueueFull) as refusal:  # there is room, but what waits takes 2.4 seconds
        clocked.admit()
    assert refusal.value.retry_after_seconds == 3
    clocked.release(1)
    clocked.admit()  # less than two
    clocked.now += 1.9
    assert not clocked.control.has_room(), "the second refusal counts like the first"
    clocked.now += 0.2
    clocked.admit(4)


@pytest.mark.parametrize(
    ("inference", "room"),
    [
        pytest.param(0.0, 256, id="nothing is known of the model"),
        pytest.param(0.5, 256, id="it is slow"),
        pytest.param(0.00585, 257, id="it takes as long for as many"),
        pytest.param(0.0015, 1001, id="it is fast"),
    ],
)
def test_a_queue_without_a_bound_takes_a_second_and_a_half_of_work_or_256_samples(inference: float, room: int) -> None:
    clocked = Clocked(None, inference=inference)
    clocked.admit(room, seconds=1000)
    with pytest.raises(QueueFull, match="auto"):
        clocked.admit()


def test_a_bound_holds_however_fast_the_model() -> None:
    clocked = Clocked(2, inference=0.0001)
    clocked.admit(2)
    with pytest.raises(QueueFull, match="QUEUE_SAMPLES, 2"):
        clocked.admit()


def test_a_request_that_may_miss_its_deadline_is_refused_with_a_fifth_to_spare() -> None:
    clocked = Clocked(64, inference=0.2)
    clocked.admit(5)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        clocked.admit(seconds=1.43)  # five before it and itself take 1.2 s
    assert refusal.value.retry_after_seconds == 1
    clocked.admit(seconds=1.45)


@pytest.mark.parametrize(
    ("inference", "waiting", "room"),
    [
        pytest.param(0.01, 25, True, id="a quarter of a second"),
        pytest.param(0.01, 26, False, id="more"),
        pytest.param(0.1, 3, True, id="less than the batch that the engine takes next"),
        pytest.param(0.1, 4, False, id="a batch"),
        pytest.param(0.9, 2, True, id="less than a batch, and two seconds"),
        pytest.param(0.9, 3, False, id="less than a batch, but more than two seconds"),
    ],
)
def test_under_overload_no_more_may_wait_than_keeps_the_engine_busy(inference: float, waiting: int, room: bool) -> None:
    clocked = Clocked(64, inference=inference, max_batch=4)
    clocked.admit(waiting)
    assert clocked.control.has_room()
    clocked.overflow()
    assert clocked.control.has_room() is room
    clocked.now += 2.0
    assert clocked.control.has_room()


@pytest.mark.parametrize("in_thread", [False, True])
def test_before_a_body_is_read_only_the_work_ahead_of_it_counts(in_thread: bool) -> None:
    clocked = Clocked(64, inference=0.2, decoding=0.1)
    assert clocked.control.would_admit(0.001), "while nothing is here, the rates may be out of date"
    clocked.admit(5)
    assert not clocked.control.would_admit(1.19)
    refusal = clocked.control.refusal(1.19)
    assert isinstance(refusal, DeadlineUnmeetable) and refusal.retry_after_seconds == 1
    assert "may take 1200 ms; the request may wait 1190 ms" in refusal.detail
    with pytest.raises(DeadlineUnmeetable):
        clocked.admit(seconds=1.19, in_thread=in_thread)
    assert clocked.control.would_admit(1.21)
    with pytest.raises(DeadlineUnmeetable):  # its own sample takes longer than that
        clocked.admit(seconds=1.21, in_thread=in_thread)
    assert clocked.control.has_room(), "it was no overload that would keep the queue short"
    clocked.admit(59, seconds=1000)
    assert not clocked.control.would_admit(1000)
    assert isinstance(clocked.control.refusal(1000), QueueFull)


@pytest.mark.parametrize(("waiting", "seconds"), [(2, 0.6), (3, 0.8), (4, 1.6), (5, 1.6), (7, 1.6), (8, 2.4)])
def test_a_request_that_joins_a_full_queue_is_answered_with_the_rest_of_its_batch(waiting: int, seconds: float) -> None:
    clocked = Clocked(64, inference=0.2, max_batch=4)
    clocked.admit(waiting)
    with pytest.raises(DeadlineUnmeetable):
        clocked.admit(seconds=1.19 * seconds)
    clocked.admit(seconds=1.21 * seconds)


def test_samples_in_the_engine_count_as_work_ahead() -> None:
    clocked = Clocked(64, inference=0.2)
    clocked.control.running = 5
    with pytest.raises(DeadlineUnmeetable):
        clocked.admit(seconds=1.43)


def test_where_decoding_is_the_slower_part_its_rate_counts() -> None:
    clocked = Clocked(64, inference=0.1, decoding=0.5)
    clocked.admit(3, decoded=False, in_thread=True)
    with pytest.raises(DeadlineUnmeetable):  # three halves of a second over two decoders, and its own, and a fifth
        clocked.admit(seconds=1.61, in_thread=True, behind=3)
    clocked.admit(seconds=1.63, in_thread=True, behind=3)


def test_only_requests_decoded_before_it_count() -> None:
    clocked = Clocked(64, inference=0.1, decoding=0.5)
    clocked.admit(30, decoded=False, in_thread=True)
    with pytest.raises(DeadlineUnmeetable):  # half a second over two decoders, and its own, and a fifth
        clocked.admit(seconds=1.01, in_thread=True, behind=1)
    clocked.admit(seconds=1.03, in_thread=True, behind=1)
    clocked.admit(seconds=0.25, decoded=False)  # on the event loop: the one that is decoded, its own, and a fifth
    assert (clocked.control.undecoded, clocked.control.in_threads) == (31, 30)
    clocked.control.move_to_thread()
    assert (clocked.control.undecoded, clocked.control.in_threads) == (31, 31)


def test_the_rate_of_threads_is_out_of_date_where_they_have_nothing_to_do() -> None:
    clocked = Clocked(64, inference=0.1, decoding=3.0)
    clocked.admit(2)  # the queue is never empty
    clocked.admit(seconds=0.5, in_thread=True, decoded=False)
    with pytest.raises(DeadlineUnmeetable):
        clocked.admit(seconds=0.5, in_thread=True, behind=1)


def test_the_rate_of_the_event_loop_is_out_of_date_where_it_decodes_nothing() -> None:
    clocked = Clocked(64, inference=0.1)
    clocked.control.estimator.decoded(3.0, in_thread=False)
    clocked.admit(2, in_thread=True, decoded=False)
    clocked.admit(seconds=0.5, decoded=False)
    with pytest.raises(DeadlineUnmeetable):
        clocked.admit(seconds=0.5)


def test_requests_in_threads_do_not_fill_the_batch_of_one_on_the_event_loop() -> None:
    clocked = Clocked(64, inference=0.1, max_batch=4)
    clocked.admit(5, in_thread=True, decoded=False)
    clocked.admit(seconds=0.13)  # its own, and a fifth: another four would share its batch


def test_of_a_long_request_one_sample_counts_as_work_ahead() -> None:
    clocked = Clocked(400, inference=0.1, max_batch=64)
    for _ in range(3):
        clocked.admit()
        assert clocked.control.recount(1, 60) == 60
    assert clocked.control.waiting == 180
    with pytest.raises(DeadlineUnmeetable):  # three, and its own, and a fifth
        clocked.admit(seconds=0.47)
    clocked.admit(seconds=0.49)
    assert clocked.control.recount(60, 0) == 0
    clocked.admit(seconds=0.49)


def test_an_idle_engine_takes_any_deadline() -> None:
    Clocked(inference=0.2).admit(seconds=0.1)  # the measured rate may be out of date: try


def test_a_long_request_counts_as_far_as_half_of_the_queue_has_room_and_at_least_once() -> None:
    clocked = Clocked(12)
    clocked.admit(2)
    assert clocked.control.recount(1, 9) == 5
    assert clocked.control.waiting == 6
    assert clocked.control.recount(1, 4) == 1, "no room: its further samples wait uncounted"
    clocked.admit(6)  # the other half is for others
    with pytest.raises(QueueFull):
        clocked.admit()
    clocked.release(6)
    assert clocked.control.recount(5, 2) == 2
    assert clocked.control.recount(1, 4) == 4
    assert clocked.control.recount(2, 0) == 0
    assert clocked.control.waiting == 4


def test_a_request_may_add_files_in_half_of_the_queue_unless_the_queue_limit_has_dropped() -> None:
    clocked = Clocked(8, inference=0.9)
    clocked.admit(3)
    assert clocked.control.has_room_for_more()
    clocked.admit()
    assert clocked.control.has_room() and not clocked.control.has_room_for_more()
    clocked.overflow()
    clocked.release(1)  # what waits takes 2.7 seconds
    assert not clocked.control.has_room() and not clocked.control.has_room_for_more()
    clocked.release(1)  # less than two
    assert clocked.control.has_room() and clocked.control.has_room_for_more()


def test_after_closing_nothing_is_admitted_and_the_first_reason_is_told() -> None:
    admission = Clocked().control
    broken = NotReady("broken")
    admission.close(broken)
    admission.close(NotReady("stopping"))
    assert not admission.has_room()
    with pytest.raises(NotReady) as refusal:
        admission.admit(math.inf, in_thread=False)
    assert refusal.value is broken
