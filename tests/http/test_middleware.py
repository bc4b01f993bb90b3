import json
import logging

import pytest

from service.http.middleware import Access, Message, Receive, Scope, Send, endpoint_of


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/classify", "/classify"),
        ("/bento/video", "/bento/video"),
        ("/models/any:1", "/models/{name}"),
        ("/problems/x", "/problems/{slug}"),
        ("/classify/", "unknown"),
        ("/.env", "unknown"),
    ],
)
def test_an_endpoint_is_a_template(path: str, endpoint: str) -> None:
    assert endpoint_of(path) == endpoint


async def _call(access: Access, headers: list[tuple[bytes, bytes]] | None = None) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await access({"type": "http", "method": "POST", "path": "/classify", "headers": headers or []}, receive, send)
    return sent


async def test_a_bug_is_answered_with_a_problem_and_no_stack(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret detail")

    logging.getLogger("convserve").propagate = True
    start, body = await _call(Access(broken), [(b"x-request-id", b"abc")])
    assert start["status"] == 500
    problem = json.loads(body["body"])
    assert (problem["type"], problem["request_id"]) == ("/problems/internal-error", "abc")
    assert "secret" not in body["body"].decode()
    assert "secret detail" in caplog.text  # the operator sees what the client does not


async def test_what_broke_after_the_answer_began_sends_nothing_more() -> None:
    async def breaks_late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    sent = await _call(Access(breaks_late))
    assert [message["type"] for message in sent] == ["http.response.start"]
