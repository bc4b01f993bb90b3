"""wrk's words, and wrk itself where it is installed, against a server that counts."""

import math
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.load import LoadError, measure, parse

BODY = bytes(range(256)) * 40  # zeros, line ends and all
TOLD = '{"requests": 200, "seconds": 2.0, "p50_ms": 4.5, "p99_ms": 20.25, "refused": 20, "broken": 3}'


class Counting(BaseHTTPRequestHandler):
    """Refuses every fourth request, and whatever is not the body it expects."""

    protocol_version = "HTTP/1.1"
    asked = 0
    wrong = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        type(self).wrong += body != BODY or self.headers["X-Kind"] != "a: b"
        self.send_response(503 if self.asked % 4 == 0 else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Counting.asked = Counting.wrong = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_refusals_do_not_count_as_answers() -> None:
    load = parse(f"Running 2s test\n  1 threads and 16 connections\n\n{TOLD}\n")
    assert load.requests_per_second == 90  # 180 of 200 in two seconds
    assert (load.p50_ms, load.p99_ms, load.failed) == (4.5, 20.25, 23)


def test_no_answer_has_no_latency() -> None:
    load = parse(TOLD.replace('"requests": 200', '"requests": 0').replace('"refused": 20', '"refused": 0'))
    assert load.requests_per_second == 0
    assert math.isnan(load.p50_ms)


@pytest.mark.parametrize("printed", ["", "unable to connect", "{}", "[1]", "3"])
def test_whatever_else_it_prints_is_an_error(printed: str) -> None:
    with pytest.raises(LoadError, match="wrk printed no result"):
        parse(printed)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_every_request_carries_the_whole_body(url: str) -> None:
    load = measure(url, BODY, {"X-Kind": "a: b"}, connections=2, seconds=1)
    assert Counting.wrong == 0
    assert (
        Counting.asked // 4 - 2 <= load.failed <= Counting.asked // 4
    )  # the last ones may come too late to be counted
    assert load.requests_per_second > 0


def test_without_wrk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LoadError, match="apt-get install wrk"):
        measure("http://127.0.0.1:9/", BODY, {}, connections=1, seconds=1)
