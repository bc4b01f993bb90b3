import math

import pytest
from prometheus_client import Gauge

from service.errors import DeadlineUnmeetable, NotReady, QueueFull
from service.scheduling.admission import AdmissionControl
from service.scheduling.admission import LatencyEstimator


class Desk:
    """An admission whose clock stands still, and whose pace, in seconds, was measured before."""

    def __init__(
        self, queue_samples: int | None = 8, *, inference: float = 0.0, decoding: float = 0.0, max_batch: int = 100
    ) -> None:
        pace = LatencyEstimator(decoders=2, on_cpu=True)
        pace.inference.add(inference)
        pace.decoded(decoding, slow=True)
        self.now, self._most = 1000.0, queue_samples or 0
        depth = Gauge("depth", "", registry=None)
        self.admission = AdmissionControl(queue_samples, pace, depth, max_batch=max_batch, clock=lambda: self.now)

    def enter(
        self, requests: int = 1, *, seconds: float = 60.0, decoded: bool = True, slow: bool = False, behind: int = 0
    ) -> None:
        for _ in range(requests):
            self.admission.admit(self.now + seconds, slow=slow, behind=behind)
            if decoded:
                self.admission.decoded(slow=slow)

    def leave(self, requests: int) -> None:
        for _ in range(requests):
            self.admission.recount(1, 0)

    def overflow(self) -> None:
        """The queue was full a moment ago, and somebody refused."""
        more = self._most - self.admission.waiting
        self.admit(more, seconds=1000)
        with pytest.raises(QueueFull):
            self.admit()
        self.leave(more)


def test_a_full_queue_refuses_until_one_leaves() -> None:
    desk = Desk(3)
    desk.admit(3)
    assert not desk.admission.has_room()
    with pytest.raises(QueueFull) as refusal:
        desk.admit()
    assert refusal.value.retry_after_seconds == 1
    assert desk.admission.waiting == 3, "who is refused does not count"
    desk.leave(1)
    desk.admit()


def test_a_queue_that_was_full_is_kept_short_until_nothing_was_refused_for_two_seconds() -> None:
    desk = Desk(8, inference=0.6)
    desk.admit(8)  # a burst may fill it
    with pytest.raises(QueueFull):
        desk.admit()
    desk.leave(4)
    desk.now += 1.9
    with pytest.raises(QueueFull) as refusal:  # there is room, but what waits takes 2.4 seconds
        desk.admit()
    assert refusal.value.retry_after_seconds == 3
    desk.leave(1)
    desk.admit()  # less than two
    desk.now += 1.9
    assert not desk.admission.has_room(), "the second refusal counts like the first"
    desk.now += 0.2
    desk.admit(4)


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
    desk = Desk(None, inference=inference)
    desk.admit(room, seconds=1000)
    with pytest.raises(QueueFull, match="auto"):
        desk.admit()


def test_a_bound_holds_however_fast_the_model() -> None:
    desk = Desk(2, inference=0.0001)
    desk.admit(2)
    with pytest.raises(QueueFull, match="QUEUE_SAMPLES, 2"):
        desk.admit()


def test_what_cannot_be_done_in_time_is_refused_with_a_fifth_to_spare() -> None:
    desk = Desk(64, inference=0.2)
    desk.admit(5)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        desk.admit(seconds=1.43)  # five before it and itself take 1.2 s
    assert refusal.value.retry_after_seconds == 1
    desk.admit(seconds=1.45)


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
def test_under_overload_no_more_waits_than_keeps_the_engine_busy(inference: float, waiting: int, room: bool) -> None:
    desk = Desk(64, inference=inference, max_batch=4)
    desk.admit(waiting)
    assert desk.admission.has_room()
    desk.overflow()
    assert desk.admission.has_room() is room
    desk.now += 2.0
    assert desk.admission.has_room()


@pytest.mark.parametrize("slow", [False, True])
def test_of_a_request_that_has_not_come_yet_only_what_is_before_it_is_known(slow: bool) -> None:
    desk = Desk(64, inference=0.2, decoding=0.1)
    assert desk.admission.would_admit(0.001), "while nothing is here, the pace may be out of date"
    desk.admit(5)
    assert not desk.admission.would_admit(1.19)
    refusal = desk.admission.refuse(1.19)
    assert isinstance(refusal, DeadlineUnmeetable) and refusal.retry_after_seconds == 1
    assert "may take 1200 ms; the request may wait 1190 ms" in refusal.detail
    with pytest.raises(DeadlineUnmeetable):
        desk.admit(seconds=1.19, slow=slow)
    assert desk.admission.would_admit(1.21)
    with pytest.raises(DeadlineUnmeetable):  # its own sample takes longer than that
        desk.admit(seconds=1.21, slow=slow)
    assert desk.admission.has_room(), "it was no overload that would keep the queue short"
    desk.admit(59, seconds=1000)
    assert not desk.admission.would_admit(1000)
    assert isinstance(desk.admission.refuse(1000), QueueFull)


@pytest.mark.parametrize(("waiting", "seconds"), [(2, 0.6), (3, 0.8), (4, 1.6), (5, 1.6), (7, 1.6), (8, 2.4)])
def test_who_joins_a_full_queue_is_answered_with_the_rest_of_its_batch(waiting: int, seconds: float) -> None:
    desk = Desk(64, inference=0.2, max_batch=4)
    desk.admit(waiting)
    with pytest.raises(DeadlineUnmeetable):
        desk.admit(seconds=1.19 * seconds)
    desk.admit(seconds=1.21 * seconds)


def test_what_the_engine_has_already_is_waited_for_too() -> None:
    desk = Desk(64, inference=0.2)
    desk.admission.running = 5
    with pytest.raises(DeadlineUnmeetable):
        desk.admit(seconds=1.43)


def test_where_decoding_is_the_slower_part_its_pace_counts() -> None:
    desk = Desk(64, inference=0.1, decoding=0.5)
    desk.admit(3, decoded=False, slow=True)
    with pytest.raises(DeadlineUnmeetable):  # three halves of a second over two decoders, and its own, and a fifth
        desk.admit(seconds=1.61, slow=True, behind=3)
    desk.admit(seconds=1.63, slow=True, behind=3)


def test_only_those_count_who_are_decoded_before_it() -> None:
    desk = Desk(64, inference=0.1, decoding=0.5)
    desk.admit(30, decoded=False, slow=True)
    with pytest.raises(DeadlineUnmeetable):  # half a second over two decoders, and its own, and a fifth
        desk.admit(seconds=1.01, slow=True, behind=1)
    desk.admit(seconds=1.03, slow=True, behind=1)
    desk.admit(seconds=0.25, decoded=False)  # which is not slow: the one that is decoded, its own, and a fifth
    assert (desk.admission.undecoded, desk.admission.slow) == (31, 30)
    desk.admission.move_to_thread()
    assert (desk.admission.undecoded, desk.admission.slow) == (31, 31)


def test_how_long_threads_took_is_forgotten_where_they_have_nothing_to_do() -> None:
    desk = Desk(64, inference=0.1, decoding=3.0)
    desk.admit(2)  # there is always somebody
    desk.admit(seconds=0.5, slow=True, decoded=False)
    with pytest.raises(DeadlineUnmeetable):
        desk.admit(seconds=0.5, slow=True, behind=1)


def test_how_long_quick_ones_took_is_forgotten_where_there_are_none() -> None:
    desk = Desk(64, inference=0.1)
    desk.admission.pace.decoded(3.0, slow=False)
    desk.admit(2, slow=True, decoded=False)
    desk.admit(seconds=0.5, decoded=False)
    with pytest.raises(DeadlineUnmeetable):
        desk.admit(seconds=0.5)


def test_slow_ones_do_not_fill_the_batch_of_a_quick_one() -> None:
    desk = Desk(64, inference=0.1, max_batch=4)
    desk.admit(5, slow=True, decoded=False)
    desk.admit(seconds=0.13)  # its own, and a fifth: another four would share its batch


def test_of_a_long_request_one_sample_goes_before_a_newcomer() -> None:
    desk = Desk(400, inference=0.1, max_batch=64)
    for _ in range(3):
        desk.admit()
        assert desk.admission.recount(1, 60) == 60
    assert desk.admission.waiting == 180
    with pytest.raises(DeadlineUnmeetable):  # three, and its own, and a fifth
        desk.admit(seconds=0.47)
    desk.admit(seconds=0.49)
    assert desk.admission.recount(60, 0) == 0
    desk.admit(seconds=0.49)


def test_an_idle_engine_takes_any_deadline() -> None:
    Desk(inference=0.2).admit(seconds=0.1)  # the measured pace may be out of date: try


def test_a_long_request_counts_as_far_as_half_of_the_queue_has_room_and_at_least_once() -> None:
    desk = Desk(12)
    desk.admit(2)
    assert desk.admission.recount(1, 9) == 5
    assert desk.admission.waiting == 6
    assert desk.admission.recount(1, 4) == 1, "no room: what it has more waits in its own hands"
    desk.admit(6)  # the other half is for others
    with pytest.raises(QueueFull):
        desk.admit()
    desk.leave(6)
    assert desk.admission.recount(5, 2) == 2
    assert desk.admission.recount(1, 4) == 4
    assert desk.admission.recount(2, 0) == 0
    assert desk.admission.waiting == 4


def test_who_has_a_place_may_take_others_in_half_of_the_queue_unless_it_is_kept_short() -> None:
    desk = Desk(8, inference=0.9)
    desk.admit(3)
    assert desk.admission.has_room_for_more()
    desk.admit()
    assert desk.admission.has_room() and not desk.admission.has_room_for_more()
    desk.overflow()
    desk.leave(1)  # what waits takes 2.7 seconds
    assert not desk.admission.has_room() and not desk.admission.has_room_for_more()
    desk.leave(1)  # less than two
    assert desk.admission.has_room() and desk.admission.has_room_for_more()


def test_after_the_end_nobody_is_let_in_and_the_first_reason_is_told() -> None:
    admission = Desk().admission
    broken = NotReady("broken")
    admission.close(broken)
    admission.close(NotReady("stopping"))
    assert not admission.has_room()
    with pytest.raises(NotReady) as refusal:
        admission.admit(math.inf, slow=False)
    assert refusal.value is broken
