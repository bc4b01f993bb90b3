"""An update as a load balancer makes it: a service under load is told to stop, and no client may lose by it."""

import http.client
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from tests.samples import grey_clip, grey_png, half_red_png, square_wav

DRAIN_SECONDS = 5
GRACE_SECONDS = DRAIN_SECONDS + 30  # as docs/deployment.md tells an operator to give
CLIENTS, IDLERS = 8, 4
PROBE_SECONDS, PROBES = 0.2, 5  # not ready so often in a row, the service gets no new connections
IDLE_SECONDS = 1.5  # well below what a connection may rest, so that only an update can end it
MEDIA = {
    "/classify": grey_png(7),
    "/segment": half_red_png(),
    "/audio": square_wav(0.5),
    "/video": grey_clip(7),
    "/bento/classify": grey_png(7),
}


@dataclass
class Update:
    """What the clients and the load balancer saw of one."""

    before: int = 0  # answers before the signal
    after: int = 0
    told: int = 0  # of those after it, the ones that said ``Connection: close``
    lost: list[str] = field(default_factory=list)
    readiness: list[str] = field(default_factory=list)  # after the signal, probe by probe, until nothing listens
    status: int | None = None  # what the service ended with; None if it did not within its grace period


def update(port: int, stop: Callable[[], None], status: Callable[[], int | None]) -> Update:
    """Puts the tiny models' service under load, tells it to ``stop``, and sees it end with a ``status``."""
    seen = Update()
    lock = threading.Lock()
    signalled, out_of_rotation = threading.Event(), threading.Event()
    deadline = time.monotonic() + 60

    def ask(number: int, pause_seconds: float) -> None:
        """A client that keeps its connection until it is told, and then takes another as long as it is sent here."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GRACE_SECONDS)
        paths = list(MEDIA)
        while time.monotonic() < deadline:
            if connection.sock is None and out_of_rotation.is_set():
                break
            path = paths[number % len(paths)]
            number += 1
            try:
                connection.request("POST", path, MEDIA[path])  # on a new connection where there is none
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with lock:
                    seen.lost.append(f"{path}: {error!r}")
                if signalled.is_set():
                    break
                continue
            with lock:
                if answer.status != 200:
                    seen.lost.append(f"{path}: {answer.status} {content[:200]!r}")
                elif signalled.is_set():
                    seen.after += 1
                    seen.told += answer.will_close
                else:
                    seen.before += 1
            time.sleep(pause_seconds)
        connection.close()

    with ThreadPoolExecutor(CLIENTS + IDLERS) as pool:
        clients = [pool.submit(ask, number, 0.02) for number in range(CLIENTS)]
        clients += [pool.submit(ask, number, IDLE_SECONDS) for number in range(IDLERS)]
        time.sleep(2 * IDLE_SECONDS)
        signalled.set()
        stop()
        killed_at = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < killed_at and status() is None:
            seen.readiness.append(probe(port))
            if len(seen.readiness) >= PROBES and "200" not in seen.readiness[-PROBES:]:
                out_of_rotation.set()
            time.sleep(PROBE_SECONDS)
        out_of_rotation.set()
        seen.status = status()
    for client in clients:
        client.result()
    return seen


def probe(port: int) -> str:
    """What /readyz answers on a connection of its own."""
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/readyz")
            with connection.getresponse() as answer:
                return str(answer.status)
    except (OSError, http.client.HTTPException):
        return "gone"


def assert_nothing_was_lost(seen: Update) -> None:
    assert seen.lost == []
    assert seen.status == 0, "it ends by itself within the grace period"
    assert seen.before > CLIENTS + IDLERS and seen.told >= CLIENTS + IDLERS
    listening = list(itertools.takewhile(lambda answer: answer != "gone", seen.readiness))
    assert set(seen.readiness[len(listening) :]) <= {"gone"}
    assert listening.count("503") >= PROBES and "200" not in listening[-PROBES:], "unready first, and only then gone"
