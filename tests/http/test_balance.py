import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.http.balance import Connections
from service.http.handoff import Handover
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
        self.tell()

    def tell(self) -> None:
        for view in self.views:
            view.tell()

    def takers(self, *in_hand: int) -> list[int | None]:
        """Who should have what comes to each, a while after what came before."""
        self.clock.now += 0.1
        return [view.taker(count) for view, count in zip(self.views, in_hand or [0] * len(self.views), strict=True)]

    def work(self, *works: bool) -> None:
        for view, does in zip(self.views, works, strict=True):
            view.working(does)


def test_a_worker_with_more_than_its_share_passes_on_until_they_are_even(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 60, 4)
    passed = 0
    while (takers := workers.takers()) != [None, None]:
        assert takers == [1, None]
        passed += 1
        workers.servers[0].hold(60 - passed)
        workers.servers[1].hold(4 + passed)
        workers.tell()
    assert 60 - passed == 35  # 32 are a fair share, and a tenth more is let be


def test_the_one_with_the_fewest_gets_it(tmp_path: Path) -> None:
    assert Workers(tmp_path, 9, 4, 2, 3).takers() == [2, None, None, None]


@pytest.mark.parametrize("held", [[1, 0], [1, 1], [2, 1], [33, 31], [0, 0], [2, 1, 1], [1, 1, 0]])
def test_a_connection_more_or_less_is_let_be(tmp_path: Path, held: list[int]) -> None:
    assert Workers(tmp_path, *held).takers() == [None] * len(held)


@pytest.mark.parametrize("held", [[2, 0], [3, 1], [2, 2, 0]])
def test_few_connections_are_spread_evenly(tmp_path: Path, held: list[int]) -> None:
    assert Workers(tmp_path, *held).takers()[0] == len(held) - 1


def test_a_lone_worker_keeps_everything(tmp_path: Path) -> None:
    assert Workers(tmp_path, 1000).takers(1000) == [None]


def test_the_shares_are_looked_at_now_and_then(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 33, 31)
    assert workers.takers() == [None, None]
    workers.servers[0].hold(50)
    workers.tell()
    assert [workers.views[0].taker(0) for _ in range(5)] == [None] * 5
    assert workers.takers() == [1, None]


def test_what_comes_to_a_worker_that_works_goes_to_one_that_is_at_rest(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 1, 1, 1)
    workers.work(True, True, False)
    assert workers.takers(1, 3, 0) == [2, 2, None]
    workers.work(True, True, True)
    assert workers.takers(1, 3, 1) == [None] * 3


def test_what_comes_to_a_worker_at_rest_stays(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 1, 1)
    workers.work(False, False)
    assert workers.takers(0, 0) == [None, None]


def test_of_several_the_one_that_has_rested_longest_gets_it(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 1, 1, 1)
    workers.work(True, True, True)
    for index in (2, 1):
        workers.clock.now += 0.1
        workers.views[index].working(False)
    assert workers.takers(1, 0, 0)[0] == 2


def test_a_worker_that_has_just_answered_is_not_at_rest(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 1, 1)
    workers.work(True, False)
    assert workers.views[0].taker(1) is None
    workers.clock.now += 0.0011
    assert workers.views[0].taker(1) == 1


def test_a_worker_that_says_nothing_gets_nothing(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 50, 0)
    workers.work(True, False)
    workers.clock.now += 3
    assert workers.takers(1, 0) == [None, None]
    workers.tell()
    assert workers.takers(1, 0) == [1, None]


@pytest.mark.parametrize("stopping", ["soon", "now"])
def test_a_worker_that_is_to_stop_is_not_at_rest(tmp_path: Path, stopping: str) -> None:
    workers = Workers(tmp_path, 1, 1)
    workers.work(True, False)
    if stopping == "soon":
        workers.views[1].send_away()
    else:
        workers.servers[1].should_exit = True
        workers.views[1].tell()
    assert workers.takers(1, 0) == [None, None]


def test_a_worker_that_starts_afresh_holds_nothing_of_the_one_before(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 10, 10)
    assert workers.takers() == [None, None]
    Connections(tmp_path / "connections", 2, workers.clock).watch(FakeServer(), 1)
    assert workers.takers()[0] == 1


def test_a_worker_that_everybody_left_has_no_share_in_them(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 40, 40)
    assert workers.takers() == [None, None]
    workers.servers[1].hold(0)
    workers.tell()
    assert workers.takers()[0] == 1


def test_a_server_that_stops_sends_everybody_away(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 1)
    assert not workers.views[0].closes()
    workers.servers[0].should_exit = True
    assert workers.views[0].closes()


def test_a_server_that_is_to_stop_sends_everybody_away_while_it_still_answers(tmp_path: Path) -> None:
    workers = Workers(tmp_path, 1, 1)
    workers.views[0].send_away()
    assert not workers.servers[0].should_exit
    assert workers.views[0].closes() and not workers.views[1].closes()


class Sent(asyncio.BaseTransport):
    """A transport with a real socket."""

    def __init__(self) -> None:
        self.client, self.socket = socket.socketpair()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket if name == "socket" else default


@pytest.fixture
def sent() -> Iterator[Sent]:
    made = Sent()
    yield made
    made.client.close()
    made.socket.close()


async def test_a_request_is_passed_on_once_until_the_taker_has_had_its_say(tmp_path: Path, sent: Sent) -> None:
    workers = Workers(tmp_path, 1, 1)
    taken = asyncio.Queue[tuple[socket.socket, bytes]]()
    mailboxes = [Handover(tmp_path, index, lambda *what: taken.put_nowait(what)) for index in range(2)]
    for index in range(2):
        workers.views[index].watch(workers.servers[index], index, mailboxes[index])
    workers.work(True, False)
    workers.clock.now += 0.1
    assert not workers.views[0].pass_on(sent, b"first", 0)
    assert workers.views[0].pass_on(sent, b"second", 1)
    assert not workers.views[0].pass_on(sent, b"third", 1)
    connection, received = await asyncio.wait_for(taken.get(), 5)
    connection.close()
    assert received == b"second" and taken.empty()
    workers.work(True, False)
    workers.clock.now += 0.1
    workers.views[0].send_away()
    assert not workers.views[0].pass_on(sent, b"fourth", 1)
    for mailbox in mailboxes:
        mailbox.close()


async def test_what_comes_together_is_passed_on_until_all_are_even(tmp_path: Path) -> None:
    """As after a batch: nobody has time to say what it has meanwhile."""
    workers, taken = Workers(tmp_path, 20, 1, 3), Counter[int]()

    def mailbox_of(worker: int) -> Handover:
        def take(connection: socket.socket, received: bytes) -> None:
            connection.close()
            taken[worker] += 1

        return Handover(tmp_path, worker, take)

    mailboxes = [mailbox_of(worker) for worker in range(3)]
    for index, mailbox in enumerate(mailboxes):
        workers.views[index].watch(workers.servers[index], index, mailbox)
    workers.clock.now += 0.1
    passed_on = 0
    for _ in range(20):
        sent = Sent()
        passed_on += workers.views[0].pass_on(sent, b"", 5)
        await asyncio.sleep(0)  # the others take it, but are kept from telling
        sent.client.close()
        sent.socket.close()
    async with asyncio.timeout(5):
        while taken.total() < passed_on:
            await asyncio.sleep(0.001)
    assert taken == {1: 7, 2: 5}, "8 each"
    for mailbox in mailboxes:
        mailbox.close()


async def test_what_nobody_takes_stays_and_nobody_is_asked_again(tmp_path: Path, sent: Sent) -> None:
    workers = Workers(tmp_path, 1, 1)
    mailbox = Handover(tmp_path, 0, lambda *what: None)
    workers.views[0].watch(workers.servers[0], 0, mailbox)
    workers.work(True, False)
    workers.clock.now += 0.1
    assert workers.views[0].taker(1) == 1
    assert not workers.views[0].pass_on(sent, b"", 1)
    assert workers.takers(1, 0)[0] is None
    mailbox.close()


def test_nothing_is_passed_on_before_there_is_a_server_or_without_a_mailbox(tmp_path: Path, sent: Sent) -> None:
    assert not Connections(tmp_path / "others", 2).pass_on(sent, b"", 1)
    assert not Connections(tmp_path / "others", 2).closes()
    workers = Workers(tmp_path, 9, 1)
    workers.clock.now += 0.1
    assert not workers.views[0].pass_on(sent, b"", 1)


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


def test_two_clients_that_keep_their_connections_have_a_worker_each(tmp_path: Path) -> None:
    repository = graphs.write_all(tmp_path / "repository")
    with serving(tmp_path / "log", repository=str(repository), workers="2") as server:
        first, second = server.workers()
        os.kill(second, signal.SIGSTOP)
        time.sleep(2)  # until the first knows that it cannot take anything
        with Clients(server, 2):
            try:
                _until(lambda held: held[first] == 2, server)
            finally:
                os.kill(second, signal.SIGCONT)
            _until(lambda held: held[first] == held[second] == 1, server)


def test_a_worker_that_everybody_left_at_once_gets_its_share_of_those_who_come_to_the_other(tmp_path: Path) -> None:
    repository = graphs.write_all(tmp_path / "repository")
    with serving(tmp_path / "log", repository=str(repository), workers="2") as server:
        with Clients(server, 40):
            _until(lambda held: min(held.values()) >= 16, server)
        _until(lambda held: max(held.values()) == 0, server)
        idle = server.workers()[0]
        os.kill(idle, signal.SIGSTOP)
        time.sleep(2)  # until the other knows: what it passed on before would have to wait
        with Clients(server, 12):
            try:
                _until(lambda held: sum(held.values()) == 12, server)
            finally:
                os.kill(idle, signal.SIGCONT)
            _until(lambda held: min(held.values()) >= 4, server)
