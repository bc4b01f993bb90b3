"""The chain around the routes: request id, access log. Load shedding has a file of its own."""

import json
import logging
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.http.middleware import AccessLog, RequestId
from service.http.routes import create_app, endpoints_of
from service.http.state import State
from service.settings import Settings
from service.tasks import TASKS
from service.telemetry.request import RequestContext
from tests.http.asgi import Call
from tests.samples import grey_png
from tests.serving import Server


@pytest.fixture
def state() -> State:
    return State(Settings())


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        *((f"/{task}", f"/{task}") for task in TASKS),
        *((f"/bento/{task}", f"/bento/{task}") for task in TASKS),
        ("/", "/"),
        ("/docs", "/docs"),
        ("/openapi.json", "/openapi.json"),
        ("/metrics", "/metrics"),
        ("/models", "/models"),
        ("/models/any:1", "/models/{name}"),
        ("/problems/x", "/problems/{slug}"),
        ("/livez", "/livez"),
        ("/readyz", "/readyz"),
        ("/healthz", "/healthz"),
        ("/classify/", "unknown"),
        ("/bento/nothing", "unknown"),
        ("/.env", "unknown"),
        ("", "unknown"),
    ],
)
def test_an_endpoint_is_the_template_of_a_route(path: str, endpoint: str, state: State) -> None:
    assert endpoints_of(create_app(state))(path) == endpoint


def test_every_route_is_an_endpoint(state: State) -> None:
    app = create_app(state)
    endpoint_of = endpoints_of(app)
    for route in app.routes:
        path = str(getattr(route, "path", ""))
        assert endpoint_of(path) == path


async def answered(scope: Scope, receive: Receive, send: Send) -> None:
    RequestContext.of(scope).model = "tiny:1"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"kept")]})
    await send({"type": "http.response.body", "body": b"done"})


async def _identified(state: State, given: bytes | None = None) -> tuple[httpx.Response, RequestContext]:
    call = Call("/classify", headers=[] if given is None else [(b"x-request-id", given)])
    response = await call.to(RequestId(answered, lambda path: f"<{path}>", state))
    return response, RequestContext.of(call.scope)


async def test_a_request_keeps_the_clients_id_and_gets_a_context(state: State) -> None:
    response, context = await _identified(state, b"order-66.a")
    assert response.headers["x-request-id"] == context.request_id == "order-66.a"
    assert (context.endpoint, context.status, response.headers["x-own"]) == ("</classify>", 200, "kept")


@pytest.mark.parametrize("given", [None, b"", b"a b", b"x" * 129, b'"};DROP', "ü".encode(), b"a\nb"])
async def test_a_request_without_a_sane_id_gets_one(given: bytes | None, state: State) -> None:
    response, context = await _identified(state, given)
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert context.request_id == response.headers["x-request-id"]


async def test_every_answer_ends_its_connection_while_draining(state: State) -> None:
    state.draining = True
    for _ in range(3):
        response, _ = await _identified(state)
        assert response.headers["connection"] == "close"


async def test_so_many_answers_end_their_connections_as_there_is_surplus(state: State) -> None:
    state.surplus_connections = 2
    answers = [(await _identified(state))[0] for _ in range(4)]
    assert [answer.headers.get("connection") for answer in answers] == ["close", "close", None, None]


async def test_other_scopes_than_http_pass_through(state: State) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    scope = {"type": "lifespan"}
    call = Call("/")
    await RequestId(AccessLog(app, log=True), lambda path: path, state)(scope, call.receive, call.send)
    assert seen == [{"type": "lifespan"}]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    ours = logging.getLogger("convserve")
    before, ours.propagate = ours.propagate, True
    yield caplog
    ours.propagate = before


async def test_a_bug_is_answered_with_a_problem_and_no_stack(messages: pytest.LogCaptureFixture, state: State) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret detail")

    app = RequestId(AccessLog(broken, log=False), lambda path: path, state)
    response = await Call("/classify", headers=[(b"x-request-id", b"abc")]).to(app)
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert (response.json()["type"], response.json()["request_id"]) == ("/problems/internal-error", "abc")
    assert "secret" not in response.text
    assert "secret detail" in messages.text  # the operator sees what the client does not


async def test_what_broke_after_the_answer_began_sends_nothing_more(state: State) -> None:
    async def breaks_late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    call = Call("/classify")
    await call.to(RequestId(AccessLog(breaks_late, log=False), lambda path: path, state))
    assert [message["type"] for message in call.sent] == ["http.response.start"]


async def test_each_request_is_logged_and_traced_once_it_is_over(
    capfdbinary: pytest.CaptureFixture[bytes], state: State
) -> None:
    traced: list[tuple[str, int]] = []

    def trace(scope: Scope, context: RequestContext) -> None:
        traced.append((scope["path"], context.status))

    app = RequestId(AccessLog(answered, log=True, trace=trace), lambda path: path, state)
    await Call("/classify?top_k=1", headers=[(b"x-request-id", b"find-me")]).to(app)
    await Call(f"/{'x' * 500}", method="GET").to(app)
    first, second = map(json.loads, capfdbinary.readouterr().out.splitlines())
    assert first.pop("milliseconds") >= 0 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first.pop("time"))
    assert first == {
        "request_id": "find-me",
        "method": "POST",
        "path": "/classify",
        "status": 200,
        "model": "tiny:1",
    }
    assert len(second["path"]) == 200
    assert traced[0] == ("/classify", 200)


async def test_the_log_can_be_turned_off(capfdbinary: pytest.CaptureFixture[bytes], state: State) -> None:
    await Call("/classify").to(RequestId(AccessLog(answered, log=False), lambda path: path, state))
    assert capfdbinary.readouterr().out == b""


# --- what is relied on of BentoML: our chain stands around all of it ---


def test_our_chain_stands_around_bentomls_own_routes(client: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/docs.json", "/schema.json", "/bento/nothing", "/nothing"):
        response = client.get(path, headers={"x-request-id": "mine"})
        assert response.headers["x-request-id"] == "mine", path


@pytest.mark.parametrize("path", ["/livez", "/models", "/bento/classify", "/classify"])
def test_the_running_service_logs_requests(client: httpx.Client, server: Server, path: str) -> None:
    method = "POST" if "classify" in path else "GET"
    request_id = f"logged-{path.replace('/', '-')}"
    response = client.request(method, path, content=grey_png(1), headers={"x-request-id": request_id})
    line: dict[str, object] = {}
    until = time.monotonic() + 10
    while not line and time.monotonic() < until:  # it is written after the answer
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
        line = next((line for line in lines if line["request_id"] == request_id), {})
    assert (line["path"], line["status"]) == (path, response.status_code)
    assert line["model"] == ("tiny-classify:1" if path == "/classify" else None)
