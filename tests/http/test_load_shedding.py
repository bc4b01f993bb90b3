"""Requests that no model can answer in time are refused before their bodies are read."""

import math
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.errors import DeadlineUnmeetable, NotReady, QueueFull, ServiceError
from service.http.middleware import AccessLog, LoadShedding, RequestId
from service.http.state import State
from service.pipeline import Pipeline
from service.settings import Settings
from service.telemetry import metrics
from service.telemetry.request import RequestContext
from tests.http.asgi import Call
from tests.samples import grey_clip
from tests.serving import Server


class FullPipeline:
    """Admits no picture that must be answered within ``seconds`` or less, and all else."""

    def __init__(self, seconds: float = math.inf, error: ServiceError | None = None) -> None:
        self._seconds = seconds
        self._error = error or QueueFull("256 samples are waiting", retry_after_seconds=7)

    def would_admit(self, task: str, within: float) -> bool:
        return task != "classify" or within > self._seconds

    def refusal(self, task: str, within: float) -> ServiceError:
        assert task == "classify" and within <= self._seconds
        return self._error


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"admitted"})


async def _ask(pipeline: FullPipeline | None, call: Call) -> httpx.Response:
    """Asks the whole chain around ``inner``."""
    state = State(Settings(timeout_ms=30_000), cast(Pipeline | None, pipeline))
    return await call.to(RequestId(AccessLog(LoadShedding(inner, state), log=False), lambda path: path, state))


def _refused() -> float:
    """So many requests to /classify by now, for a full queue."""
    labels = {"endpoint": "/classify", "reason": "queue-full"}
    samples = [sample for family in metrics.REJECTED.collect() for sample in family.samples]
    return sum(sample.value for sample in samples if sample.labels == labels and sample.name.endswith("_total"))


@pytest.mark.parametrize("path", ["/classify", "/classify?top_k=3", "/classify?"])
async def test_the_answer_is_a_problem_with_all_that_refusals_have(path: str) -> None:
    before = _refused()
    call = Call(path, headers=[(b"x-request-id", b"mine")], body=[b"media"])
    response = await _ask(FullPipeline(), call)
    assert response.status_code == 503 and call.received == 0, "nothing is read of the body"
    headers = dict(response.headers)
    assert re.match(r"decode;dur=0.000, preprocess;dur=0.000, queue;dur=0.000", headers.pop("server-timing"))
    assert headers == {
        "content-type": "application/problem+json",
        "content-length": str(len(response.content)),
        "retry-after": "7",
        "x-batch-size": "0",
        "x-request-id": "mine",
    }
    assert response.json() == {
        "type": "/problems/queue-full",
        "title": QueueFull.title,
        "status": 503,
        "detail": "256 samples are waiting",
        "request_id": "mine",
    }
    assert _refused() == before + 1
    context = RequestContext.of(call.scope)
    assert (context.status, context.model) == (503, "") and context.timer and not context.timer.intervals


async def test_a_service_that_stops_says_so() -> None:
    stopping = FullPipeline(error=NotReady("the service is stopping", retry_after_seconds=5))
    response = await _ask(stopping, Call("/classify"))
    assert (response.json()["type"], response.headers["retry-after"]) == ("/problems/not-ready", "5")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/segment"),
        ("GET", "/classify"),
        ("POST", "/classify/"),
        ("POST", "/"),
    ],
)
async def test_all_else_is_admitted(method: str, path: str) -> None:
    assert (await _ask(FullPipeline(), Call(path, method=method))).text == "admitted"


async def test_all_is_admitted_before_models_are_loaded() -> None:
    """The routes say then that the service is not ready."""
    assert (await _ask(None, Call("/classify"))).text == "admitted"


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("timeout_ms=1500", 1.5),
        ("top_k=3&timeout_ms=1500&model=x", 1.5),
        ("", 30),
        ("timeout_ms=30000", 30),
        pytest.param("timeout_ms=31000", 30, id="more than is allowed"),
        pytest.param("timeout_ms=0", 30, id="no number of milliseconds"),
        pytest.param("timeout_ms=%31", 30, id="encoded"),
        pytest.param("timeout_ms=" + "9" * 5000, 30, id="no number of this world"),
        pytest.param("my_timeout_ms=7", 30, id="another parameter"),
    ],
)
async def test_the_deadline_that_the_query_states_decides(query: str, seconds: float) -> None:
    error = DeadlineUnmeetable("it may take 1500 ms", retry_after_seconds=2)
    late, in_time = FullPipeline(seconds, error), FullPipeline(seconds - 0.001, error)
    response = await _ask(late, Call(f"/classify?{query}"))
    assert response.json()["type"] == "/problems/deadline-unmeetable"
    assert (await _ask(in_time, Call(f"/classify?{query}"))).text == "admitted"


def test_a_full_queue_is_told_before_the_body_is_sent_and_is_counted_and_logged(narrow_server: Server) -> None:
    clip = grey_clip(5, frames=16)
    stop = threading.Event()

    def keep_asking(_: int) -> None:
        with httpx.Client(base_url=narrow_server.url, timeout=30) as one:
            while not stop.is_set():
                one.post("/video", content=clip)

    def ask_without_a_body(number: int) -> bytes:
        request_id = f"shed-{number}"
        head = f"POST /video HTTP/1.1\r\nHost: x\r\nX-Request-Id: {request_id}\r\nContent-Length: 1000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", narrow_server.port), timeout=20) as connection:
            connection.sendall(head.encode())
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            return answer

    with ThreadPoolExecutor(12) as pool:
        asking = pool.map(keep_asking, range(12))
        try:
            answers = [ask_without_a_body(0)]
            while b" 503 " not in answers[-1].splitlines()[0] and len(answers) < 50:
                answers.append(ask_without_a_body(len(answers)))
        finally:
            stop.set()
        list(asking)
    assert b"/problems/queue-full" in answers[-1] and b"\r\nretry-after: " in answers[-1]
    assert all(b" 408 " in answer.splitlines()[0] for answer in answers[:-1])
    assert f'"request_id":"shed-{len(answers) - 1}","method":"POST","path":"/video","status":503' in (
        narrow_server.log.read_text()
    )
    series = httpx.get(f"{narrow_server.url}/metrics", timeout=30).text
    counted = re.search(r'convserve_rejected_total\{endpoint="/video",reason="queue-full"\} (\d+)', series)
    assert counted and int(counted[1]) >= 1
