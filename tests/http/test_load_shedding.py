import gc
import json
import math
from collections.abc import Iterator
from typing import cast

import pytest

from service.errors import DeadlineUnmeetable, NotReady, QueueFull, ServiceError
from service.http.load_shedding import Door
from service.http.middleware import Access, Scope, Visit
from service.pipeline import Pipeline
from service.telemetry import metrics

ID = [(b"host", b"there"), (b"x-request-id", b"mine")]


class Full:
    """A pipeline that has no room for pictures, or takes too long for those who wait for no more than ``seconds``."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.refusal: ServiceError = QueueFull("256 samples are waiting", retry_after_seconds=7)
        self._seconds = seconds

    def takes(self, task: str, patience: float) -> bool:
        return task != "classify" or patience > self._seconds

    def refuse(self, task: str, patience: float) -> ServiceError:
        assert task == "classify" and patience <= self._seconds
        return self.refusal


class Kept(Access):
    """Keeps what it would record."""

    def __init__(self) -> None:
        self.records: list[tuple[Scope, Visit]] = []
        self.leaving = False
        super().__init__(None, closes=lambda: self.leaving)  # type: ignore[arg-type]

    def record(self, scope: Scope, this: Visit) -> None:
        self.records.append((scope, this))


@pytest.fixture
def access() -> Iterator[Kept]:
    yield Kept()


def _door(access: Access, pipeline: Full | None) -> Door:
    door = Door(access, timeout_ms=30_000)
    door.pipeline = cast(Pipeline | None, pipeline)
    return door


@pytest.mark.parametrize("target", [b"/classify", b"/classify?top_k=3", b"/classify?"])
def test_the_answer_is_a_problem_with_all_that_refusals_have(access: Kept, target: bytes) -> None:
    before = metrics.REJECTED.labels("/classify", "queue-full")._value.get()
    answer = _door(access, Full()).turn_away(b"POST", target, ID)
    assert answer is not None
    status, *lines = answer[0].decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    assert status == "HTTP/1.1 503 Service Unavailable" and answer[0].endswith(b"\r\n")
    assert headers.pop("server-timing").startswith("decode;dur=0.000, preprocess;dur=0.000, queue;dur=0.000")
    assert headers == {
        "content-type": "application/problem+json",
        "content-length": str(len(answer[1])),
        "retry-after": "7",
        "x-batch-size": "0",
        "x-request-id": "mine",
    }
    assert json.loads(answer[1]) == {
        "type": "/problems/queue-full",
        "title": QueueFull.title,
        "status": 503,
        "detail": "256 samples are waiting",
        "request_id": "mine",
    }
    assert metrics.REJECTED.labels("/classify", "queue-full")._value.get() == before + 1
    ((scope, visit),) = access.records
    assert scope == {"method": "POST", "path": "/classify", "headers": ID}
    assert (visit.request_id, visit.endpoint, visit.status, visit.model) == ("mine", "/classify", 503, "")
    assert visit.watch is not None and not visit.watch.intervals


def test_a_refusal_leaves_nothing_to_the_garbage_collector(access: Kept) -> None:
    door = _door(access, Full())
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            assert door.turn_away(b"POST", b"/classify", ID) is not None
            access.records.clear()
        assert gc.collect() < 100
    finally:
        gc.enable()


def test_who_gives_no_id_gets_one(access: Kept) -> None:
    answer = _door(access, Full()).turn_away(b"POST", b"/classify", [])
    assert answer is not None
    given = json.loads(answer[1])["request_id"]
    assert len(given) == 32 and f"x-request-id: {given}\r\n".encode() in answer[0]


def test_a_service_that_stops_says_so(access: Kept) -> None:
    stopping = Full()
    stopping.refusal = NotReady("the service is stopping", retry_after_seconds=5)
    answer = _door(access, stopping).turn_away(b"POST", b"/classify", ID)
    assert answer is not None and json.loads(answer[1])["type"] == "/problems/not-ready"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"POST", b"/segment"),
        (b"GET", b"/classify"),
        (b"POST", b"/bento/classify"),
        (b"POST", b"/classify/"),
        (b"POST", b"/"),
        (b"POST", b"http://there/classify"),
    ],
)
def test_all_else_comes_in(access: Kept, method: bytes, target: bytes) -> None:
    assert _door(access, Full()).turn_away(method, target, ID) is None
    assert not access.records


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        (b"timeout_ms=1500", 1.5),
        (b"top_k=3&timeout_ms=1500&model=x", 1.5),
        (b"", 30),
        (b"timeout_ms=30000", 30),
        pytest.param(b"timeout_ms=31000", 30, id="more than is allowed"),
        pytest.param(b"timeout_ms=0", 30, id="no number of milliseconds"),
        pytest.param(b"timeout_ms=%31", 30, id="encoded"),
        pytest.param(b"timeout_ms=" + b"9" * 5000, 30, id="no number of this world"),
        pytest.param(b"my_timeout_ms=7", 30, id="another parameter"),
    ],
)
def test_who_will_not_wait_for_so_long_is_turned_away(access: Kept, query: bytes, seconds: float) -> None:
    late, in_time = Full(seconds), Full(seconds - 0.001)
    late.refusal = DeadlineUnmeetable("it may take 1500 ms", retry_after_seconds=2)
    target = b"/classify?" + query
    answer = _door(access, late).turn_away(b"POST", target, ID)
    assert answer is not None and json.loads(answer[1])["type"] == "/problems/deadline-unmeetable"
    assert _door(access, in_time).turn_away(b"POST", target, ID) is None


def test_before_there_is_a_pipeline_and_while_clients_are_sent_away_all_come_in(access: Kept) -> None:
    assert _door(access, None).turn_away(b"POST", b"/classify", ID) is None
    access.leaving = True
    assert _door(access, Full()).turn_away(b"POST", b"/classify", ID) is None
    assert not access.records
