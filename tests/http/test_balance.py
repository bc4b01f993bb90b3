import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.http.balance import ConnectionBalance
from tests import graphs
from tests.samples import grey_png
from tests.serving import Server, serving


class Workers:
    """Views of so many workers, each with some connections, and the clock of all."""

    def __init__(self, folder: Path, *connections: int) -> None:
        self.now, self.connections = 100.0, list(connections)
        self.file = folder / "connections"
        self.views = [self.view(index) for index in range(len(connections))]

    def view(self, index: int) -> ConnectionBalance:
        return ConnectionBalance(
            self.file, len(self.connections), index, lambda: self.connections[index], clock=lambda: self.now
        )

    def surplus(self) -> list[int]:
        """What each finds that it has too many of, a report later."""
        self.now += 0.1
        for view in self.views:
            view.report()
        return [view.surplus() for view in self.views]


def test_a_worker_with_more_than_its_share_ends_connections_until_they_are_even(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 60, 4)
    while (surplus := workers.surplus()) != [0, 0]:
        assert 0 < surplus[0] <= 2 and surplus[1] == 0, "few at once, which need a moment to arrive elsewhere"
        workers.connections[0] -= surplus[0]
        workers.connections[1] += surplus[0]  # the clients connect again
    assert workers.connections == [40, 24]  # 32 are a fair share, and a quarter more is let be


@pytest.mark.parametrize("connections", [[1, 0], [1, 1], [2, 1], [33, 31], [0, 0], [2, 1, 1], [1, 1, 0], [1000]])
def test_an_even_enough_share_is_let_be(tmp_path: Path, connections: list[int]) -> None:
    assert Workers(tmp_path, *connections).surplus() == [0] * len(connections)


@pytest.mark.parametrize("connections", [[2, 0], [3, 1], [3, 2, 1], [3, 0]])
def test_few_connections_are_balanced_evenly(tmp_path: Path, connections: list[int]) -> None:
    assert Workers(tmp_path, *connections).surplus() == [1] + [0] * (len(connections) - 1)


@pytest.mark.parametrize("connections", [[9, 0], [9, 9, 0], [5, 5, 5, 1], [7, 2]])
def test_a_worker_never_ends_more_than_it_has_too_many(tmp_path: Path, connections: list[int]) -> None:
    fair = sum(connections) / len(connections)
    for mine, surplus in zip(connections, Workers(tmp_path, *connections).surplus(), strict=True):
        assert surplus == 0 or mine - surplus >= fair


def test_a_worker_that_reports_nothing_has_no_share(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 50, 0)
    workers.now += 1.5
    assert workers.views[0].surplus() == 0, "the other is dead, or hangs"
    assert workers.surplus() == [2, 0], "it has come back"


def test_a_worker_that_is_started_afresh_has_no_connections_of_the_one_before(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 10, 10)
    assert workers.surplus() == [0, 0]
    workers.connections[1] = 0
    workers.views[1] = workers.view(1)
    assert workers.views[0].surplus() == 2


def test_a_file_of_another_server_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "connections").write_bytes(b"\xff" * 1000)
    assert Workers(tmp_path, 9, 9).surplus() == [0, 0]


# --- two real workers ---


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pair")
    repository = folder / "repository"
    graphs.write_model(repository, "classify")
    with serving(folder / "log", repository=str(repository), workers="2", access_log="false") as server:
        _until(lambda: len(_connections(server)) == 2)
        yield server


def _until(condition: Callable[[], bool], seconds: float = 40) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.1)


def _connections(server: Server) -> Counter[int]:
    """Established connections by worker's process id."""
    found = Counter[int]()
    for pid in server.workers():
        try:
            connections = psutil.Process(pid).net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        found[pid] = sum(
            connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == server.port
            for connection in connections
        )
    return found


class Clients:
    """Clients that ask again and again, each over one connection as long as it is kept. They count what fails."""

    def __init__(self, server: Server, count: int) -> None:
        self.refused, self.cut_off = list[str](), list[str]()
        self._url, self._stop = f"{server.url}/classify", threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=30) as kept:
            while not self._stop.wait(0.05):
                try:
                    answer = kept.post(self._url, content=grey_png(7))
                except httpx.TransportError as error:
                    self.cut_off.append(repr(error))
                else:
                    if answer.status_code != 200:
                        self.refused.append(answer.text)


def _balanced(server: Server, clients: int) -> bool:
    connections = _connections(server)
    return len(connections) == 2 and sum(connections.values()) == clients and min(connections.values()) >= 6


def test_connections_that_are_opened_at_once_are_balanced_and_no_request_fails(pair: Server) -> None:
    with Clients(pair, 16) as clients:
        _until(lambda: _balanced(pair, 16), seconds=15)
    assert not clients.refused and not clients.cut_off


def test_a_worker_that_could_take_none_gets_its_share_later(pair: Server) -> None:
    first, second = pair.workers()
    os.kill(second, signal.SIGSTOP)
    try:
        with Clients(pair, 16) as clients:
            try:
                _until(lambda: _connections(pair)[first] == 16)
            finally:
                os.kill(second, signal.SIGCONT)
            _until(lambda: _balanced(pair, 16), seconds=15)
    finally:
        os.kill(second, signal.SIGCONT)
    assert not clients.refused and not clients.cut_off


def test_a_worker_that_was_killed_comes_back_and_gets_its_share(pair: Server) -> None:
    killed, other = pair.workers()
    with Clients(pair, 16) as clients:
        _until(lambda: _balanced(pair, 16), seconds=15)
        os.kill(killed, signal.SIGKILL)
        _until(lambda: killed not in pair.workers())
        assert other in pair.workers()
        _until(lambda: _balanced(pair, 16))
    assert not clients.refused and len(clients.cut_off) <= 16, "those that the killed one had"
