import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from benchmarks import beside, measuring
from benchmarks.contestants import CONTESTANTS, Post
from benchmarks.networks import Network
from benchmarks.servers import NotServing, Server, free_ports, serving
from benchmarks.stages import Setup


def test_neighbours_in_time_are_compared_not_medians() -> None:
    first, second, third = beside.table(["a", "b", "c"], [[100, 50, 100], [20, 20, 10], [60, 40, 80]])
    assert first == "a: 60.0 requests/s"
    assert second == "b: 40.0 requests/s; a is at 1.500 of it (1.000 to 2.000)"
    assert third == "c: 80.0 requests/s; a is at 1.000 of it (0.750 to 2.000)"


def test_who_went_last_goes_first_next(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[object, int, int]] = []

    def loaded(server: Any, post: Post, connections: int, seconds: int) -> dict[str, float]:
        asked.append((server.contestant.name, connections, seconds))
        return {"requests_per_second": len(asked), "failed": 2 * (len(asked) == 3)}

    rested, halted = list[object](), list[object]()

    @contextmanager
    def halting(servers: list[Server]) -> Iterator[None]:
        before = len(asked)
        yield
        halted.extend(server.contestant.name for server in servers)
        assert len(asked) == len(rested) == before + 1, "what is asked goes on until it rests"

    monkeypatch.setattr(beside, "loaded", loaded)
    monkeypatch.setattr(beside, "rest", lambda server: rested.append(server.contestant.name))
    monkeypatch.setattr(beside, "stopped", lambda servers: halting(servers))
    names = ["starlette", "mosec"]
    servers = [Server(CONTESTANTS[name], 1, cast(Any, None), 0.0, Path()) for name in names]
    rates = beside.bursts(servers, [Post("/", b"", {})] * 2, connections=16, rounds=3, seconds=2)
    assert asked == [(name, 16, 2) for name in ("starlette", "mosec", "mosec", "starlette", "starlette", "mosec")]
    assert rested == [name for name, _, _ in asked]
    assert halted == ["mosec", "starlette", "starlette", "mosec", "mosec", "starlette"]
    assert rates == [[1, 2], [4, 3], [5, 6]]
    assert capsys.readouterr().err == "mosec: 2 failed\n"


def test_the_next_burst_begins_when_the_last_is_over() -> None:
    """A process that works for a while and then waits."""
    program = "import time\nuntil = time.monotonic() + 1.5\nwhile time.monotonic() < until: pass\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        server = Server(CONTESTANTS["starlette"], 1, psutil.Process(process.pid), 0.0, Path())
        while not server.process.cpu_times().user:
            time.sleep(0.01)
        beside.rest(server)
        spent = server.process.cpu_times().user
        time.sleep(0.3)
        assert server.process.cpu_times().user - spent < 0.1
    finally:
        process.kill()
        process.wait()


def test_who_is_not_asked_does_nothing_and_goes_on_afterwards() -> None:
    """A process that never rests, and has a child that does not."""
    never = "while True: pass"
    # At low priority: both cores may be needed elsewhere.
    program = f"import os, subprocess, sys\nos.nice(19)\nsubprocess.Popen([sys.executable, '-c', {never!r}])\n{never}"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        server = Server(CONTESTANTS["starlette"], 1, psutil.Process(process.pid), 0.0, Path())

        def spent() -> list[float]:
            return [one.cpu_times().user for one in server.processes()]

        def both_ran_since(before: list[float]) -> bool:
            now = spent()
            return len(now) == 2 and all(late > early for late, early in zip(now, before, strict=True))

        until = time.monotonic() + 20
        while not both_ran_since([0.0, 0.0]) and time.monotonic() < until:
            time.sleep(0.01)
        with measuring.stopped([server]):
            time.sleep(0.1)  # until the signals have arrived
            before = spent()
            time.sleep(0.5)
            assert spent() == before
        while not both_ran_since(before) and time.monotonic() < until:
            time.sleep(0.01)
        assert both_ran_since(before)
    finally:
        for one in [*psutil.Process(process.pid).children(), process]:
            one.kill()
        process.wait()


def test_a_folder_stands_for_the_service_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.servers.WORK", tmp_path / "work")
    assert beside.contestant("mosec") is CONTESTANTS["mosec"]
    with pytest.raises(argparse.ArgumentTypeError, match="'mosaic' is none of convserve, starlette, mosec"):
        beside.contestant("mosaic")
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__main__.py").write_text("raise SystemExit('said by the other checkout')")
    other = beside.contestant(str(tmp_path))
    asked = argparse.Namespace(name="any", repository=tmp_path, route="/classify", body=b"", content_type="")
    with (
        pytest.raises(NotServing, match="it ended with 1: said by the other checkout"),
        serving(other, cast(Network, asked), Setup(tmp_path, free_ports(), workers=1, max_batch=1), []),
    ):
        pass
