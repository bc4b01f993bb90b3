import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from service.connections import Connections
from tests import graphs
from tests.samples import grey_png
from tests.serving import Server, serving


@dataclass
class State:
    connections: set[int] = field(default_factory=set)


@dataclass
class FakeServer:
    server_state: State = field(default_factory=State)
    should_exit: bool = False

    def hold(self, count: int) -> None:
        self.server_state.connections = set(range(count))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Workers:
    """Each holds some connections and has said so."""

    def __init__(self, folder: Path, *held: int) -> None:
        self.clock = Clock()
        self.servers = [FakeServer() for _ in held]
        self.views = [Connections(folder / "connections", len(held), self.clock) for _ in held]
        for index, (view, server) in enumerate(zip(self.views, self.servers, strict=True)):
            view.watch(server, index)
        for server, count in zip(self.servers, held, strict=True):
            server.hold(count)
        self.count()

    def count(self) -> None:
        for view in self.views:
            view.count()

    def close(self) -> list[bool]:
        """Whether each closes one, a second after the one before."""
        self.clock.now += 1
        return [view.closes() for view in self.views]


def test_a_worker_with_more_than_its_share_closes_until_they_are_even(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 60, 4)
    closed = 0
    while any(closes := workers.close()):
        assert closes == [True, False]
        closed += 1
        workers.servers[0].hold(60 - closed)
        workers.servers[1].hold(4 + closed)
    assert 60 - closed in (35, 36)  # 32 are a fair share, and a tenth and one more are let be


@pytest.mark.parametrize("held", [[1, 0], [2, 0], [1, 1], [33, 31], [0, 0]])
def test_a_connection_more_or_less_is_let_be(tmp_path: Path, held: list[int]) -> None:
    assert Workers(tmp_path, *held).close() == [False, False]


def test_a_lone_worker_closes_nothing(tmp_path: Path) -> None:
    assert Workers(tmp_path, 1000).close() == [False]


def test_connections_are_closed_one_at_a_time(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 50, 0)
    assert workers.close() == [True, False]
    assert not any(workers.views[0].closes() for _ in range(5))  # the first one's client is still on its way
    assert workers.close() == [True, False]


def test_a_worker_that_starts_afresh_holds_nothing_of_the_one_before(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 10, 10)
    assert workers.close() == [False, False]
    Connections(tmp_path / "connections", 2).watch(FakeServer(), 1)
    assert workers.close()[0]


def test_a_worker_that_everybody_left_has_no_share_in_them(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 40, 40)
    assert workers.close() == [False, False]
    workers.servers[1].hold(0)
    workers.count()
    workers.clock.now += 1
    assert workers.views[0].closes()


def test_a_server_that_stops_sends_everybody_away(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 1)
    workers.servers[0].should_exit = True
    assert [workers.views[0].closes() for _ in range(3)] == [True, True, True]


def test_a_server_that_is_to_stop_sends_everybody_away_while_it_still_answers(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 1, 1)
    workers.views[0].send_away()
    assert not workers.servers[0].should_exit
    assert [workers.views[0].closes() for _ in range(3)] == [True, True, True]
    assert not workers.views[1].closes()


def test_nothing_is_closed_before_there_is_a_server(tmp_path: Path) -> None:
    assert not Connections(tmp_path / "connections", 2).closes()


def _held(server: Server) -> Counter[int]:
    """Open connections by worker."""
    return Counter(
        {
            pid: sum(
                connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == server.port
                for connection in psutil.Process(pid).net_connections("tcp")
            )
            for pid in server.workers()
        }
    )


class Clients:
    """So many that ask again and again over a connection that each keeps. Their failures are told at the end."""

    def __init__(self, server: Server, count: int) -> None:
        self._url, self._stop, self._failures = f"{server.url}/classify", threading.Event(), list[str]()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._failures

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as kept:
            while not self._stop.is_set():
                answer = kept.post(self._url, content=grey_png(7))
                if answer.status_code != 200:
                    self._failures.append(answer.text)
                time.sleep(0.01)


def _until(held: Callable[[Counter[int]], bool], server: Server) -> None:
    until = time.monotonic() + 60
    while len(server.workers()) < 2 or not held(_held(server)):
        assert time.monotonic() < until, str(_held(server))
        time.sleep(0.2)


def test_a_worker_that_came_back_gets_its_share_of_clients_that_keep_their_connections(tmp_path: Path) -> None:
    repository = graphs.write_all(tmp_path / "repository")
    with serving(tmp_path / "log", repository=str(repository), workers="2") as server:
        os.kill(server.workers()[0], signal.SIGKILL)
        with Clients(server, 12):
            _until(lambda held: min(held.values()) >= 4, server)


def test_a_worker_that_everybody_left_at_once_gets_its_share_of_those_who_come_to_the_other(tmp_path: Path) -> None:
    repository = graphs.write_all(tmp_path / "repository")
    with serving(tmp_path / "log", repository=str(repository), workers="2") as server:
        with Clients(server, 40):
            _until(lambda held: min(held.values()) >= 16, server)
        _until(lambda held: max(held.values()) == 0, server)
        idle = server.workers()[0]
        os.kill(idle, signal.SIGSTOP)
        with Clients(server, 12):
            try:
                _until(lambda held: sum(held.values()) == 12, server)
            finally:
                os.kill(idle, signal.SIGCONT)
            _until(lambda held: min(held.values()) >= 4, server)
