import math
import time

import pytest
from prometheus_client import Gauge

from service.admission import Admission
from service.errors import DeadlineUnmeetable, NotReady, QueueFull
from service.pace import Pace


def _admission(queue_samples: int = 8, *, inference: float = 0.0, decoding: float = 0.0) -> Admission:
    """With a pace, in seconds, that was measured before."""
    pace = Pace(decoders=2)
    pace.inference.add(inference)
    pace.decoding.add(decoding)
    return Admission(queue_samples, pace, Gauge("depth", "", registry=None))


def _in(seconds: float) -> float:
    return time.monotonic() + seconds


def _enter(admission: Admission, requests: int, *, seconds: float = 60.0, decoded: bool = True) -> None:
    for _ in range(requests):
        admission.enter(_in(seconds))
        admission.undecoded -= decoded


def test_a_full_queue_refuses_until_one_leaves() -> None:
    admission = _admission(3)
    _enter(admission, 3)
    assert not admission.has_room()
    with pytest.raises(QueueFull) as refusal:
        admission.enter(_in(60))
    assert refusal.value.retry_after_seconds == 1
    assert admission.waiting == 3, "who is refused does not count"
    admission.recount(1, 0)
    _enter(admission, 1)


def test_a_queue_that_was_full_is_kept_short_while_requests_are_refused() -> None:
    admission = _admission(8, inference=0.6)
    _enter(admission, 8)  # a burst may fill it
    with pytest.raises(QueueFull):
        admission.enter(_in(60))
    admission.recount(4, 0)
    with pytest.raises(QueueFull) as refusal:  # there is room, but what waits takes 2.4 seconds
        admission.check_room()
    assert refusal.value.retry_after_seconds == 3
    admission.recount(1, 0)
    _enter(admission, 1)  # less than two


def test_a_queue_that_never_was_full_may_be_long() -> None:
    admission = _admission(8, inference=0.6)
    _enter(admission, 8)


def test_what_cannot_be_done_in_time_is_refused_with_a_fifth_to_spare() -> None:
    admission = _admission(64, inference=0.2)
    _enter(admission, 5)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        admission.enter(_in(1.3))  # five before it and itself take 1.2 s
    assert refusal.value.retry_after_seconds == 1
    admission.enter(_in(1.5))


def test_what_the_engine_has_already_is_waited_for_too() -> None:
    admission = _admission(64, inference=0.2)
    admission.running = 5
    with pytest.raises(DeadlineUnmeetable):
        admission.enter(_in(1.3))


def test_where_decoding_is_the_slower_part_its_pace_counts() -> None:
    admission = _admission(64, inference=0.001, decoding=0.5)
    _enter(admission, 3, decoded=False)
    with pytest.raises(DeadlineUnmeetable):  # three halves of a second over two decoders, and its own, and a fifth
        admission.enter(_in(1.4))
    admission.enter(_in(1.7))


def test_an_idle_engine_takes_any_deadline() -> None:
    admission = _admission(inference=0.2)
    admission.enter(_in(0.1))  # the measured pace may be out of date: try


def test_a_long_request_counts_as_far_as_there_is_room_and_at_least_once() -> None:
    admission = _admission(8)
    _enter(admission, 6)
    assert admission.recount(1, 5) == 3
    assert admission.waiting == 8
    assert admission.recount(1, 4) == 1, "no room: what it has more waits in its own hands"
    assert admission.recount(3, 2) == 2
    assert admission.recount(2, 0) == 0
    assert admission.waiting == 5


def test_after_the_end_nobody_is_let_in_and_the_first_reason_is_told() -> None:
    admission = _admission()
    broken = NotReady("broken")
    admission.close(broken)
    admission.close(NotReady("stopping"))
    assert not admission.has_room()
    with pytest.raises(NotReady) as refusal:
        admission.enter(math.inf)
    assert refusal.value is broken
