"""The ceiling, for a handful of samples, and what is compared with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import limit, networks, throughput
from benchmarks.contestants import Contestant, Post
from benchmarks.environments import NotInstalled
from benchmarks.limit import Limit, LimitError
from benchmarks.measuring import Plan
from benchmarks.networks import Network
from benchmarks.stages import Stages
from tests import graphs, samples


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return graphs.write_model(tmp_path, "classify")


def test_whole_batches_are_counted(model: Path) -> None:
    done, seconds = limit.run(Stages(model), samples.grey_png(5), batch=7, seconds=0)
    assert done == 7
    assert seconds > 0


def test_processes_are_added_up_whenever_they_are_asked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Limit(model, samples.grey_png(5), processes=2) as alone:
        assert alone.requests_per_second(batch=2, seconds=0.01) > 0
        assert alone.requests_per_second(batch=3, seconds=0.01) > 0
        said = iter([{"requests": 6, "seconds": 2.0}, {"requests": 10, "seconds": 2.5}])
        monkeypatch.setattr(limit, "_told", lambda worker, patience_seconds: next(said))
        assert alone.requests_per_second(batch=2, seconds=0.01) == pytest.approx(3 + 4)


def test_the_batch_that_gives_most_is_the_best(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Limit(model, b"", processes=2)
    monkeypatch.setattr(alone, "requests_per_second", lambda batch, seconds: {1: 5.0, 4: 9.0, 8: 8.0}.get(batch, 1.0))
    assert alone.best_batch(seconds=1) == 4


def test_a_process_that_fails_is_no_result(model: Path) -> None:
    with pytest.raises(LimitError, match="CorruptMedia"), Limit(model, samples.grey_png(5)[:30], processes=1):
        pass


def test_a_process_that_ends_meanwhile_is_no_result(model: Path) -> None:
    with Limit(model, samples.grey_png(5), processes=2) as alone:
        alone._workers[1].kill()
        with pytest.raises(LimitError, match="ended with -9"):
            alone.requests_per_second(batch=1, seconds=0.01)


class Server:
    """Of which nothing is left to measure."""


@pytest.fixture
def lasted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Who was at work, in order, for how many seconds: contestants serve 30 a second; the limit does 50, then 70, then
    90, and so on."""
    work: list[tuple[str, float]] = []
    speeds = iter(range(50, 1000, 20))

    class Alone:
        def __init__(self, *what: object, processes: int) -> None: ...

        def __enter__(self) -> "Alone":
            return self

        def __exit__(self, *error: object) -> None: ...

        def best_batch(self, *, seconds: float) -> int:
            return 4

        def requests_per_second(self, *, batch: int, seconds: float) -> float:
            work.append((f"limit in {batch}s", seconds))
            return next(speeds)

    @contextmanager
    def started(contestant: Contestant, network: Network, cores: int) -> Iterator[Server]:
        yield Server()

    def loaded(server: Server, post: Post, connections: int, seconds: int) -> dict[str, float]:
        work.append((f"{connections} connections", seconds))
        return {"requests_per_second": 30.0, "p50_ms": 20.0, "p99_ms": 40.0}

    @contextmanager
    def stopped(servers: list[Server]) -> Iterator[None]:
        work.append(("stopped", 0))
        yield

    for name, replacement in {"Limit": Alone, "started": started, "loaded": loaded, "stopped": stopped}.items():
        monkeypatch.setattr(throughput, name, replacement)
    monkeypatch.setattr(throughput, "install", lambda contestant: None)
    monkeypatch.setattr(throughput, "warm", lambda server, post: None)
    monkeypatch.setattr(throughput, "memory", lambda server, workers: {})
    monkeypatch.setattr(limit, "run", lambda stages, data, batch, seconds: (500, 1.0))
    return work


def plan(**changes: object) -> Plan:
    chosen: dict[str, object] = {
        "contestants": ["convserve"],
        "networks": [networks.network("digits")],
        "connections": [16, 64],
        "cores": 2,
        "rounds": 1,
        "seconds": 8,
        "answers": 400,
        "overload_seconds": 0,
    }
    return Plan(**chosen | changes)  # type: ignore[arg-type]


def test_what_is_served_is_a_share_of_what_the_limit_did_before_and_after(lasted: list[tuple[str, float]]) -> None:
    found = list(throughput.throughput(plan()))
    at_rest = [("stopped", 0), ("limit in 4s", 2.0)]
    assert lasted == [*at_rest, ("16 connections", 8), *at_rest, ("64 connections", 8), *at_rest]
    assert [one.connections for one in found] == [16, 64]
    assert [one.values["limit_per_second"] for one in found] == [60, 80]
    assert [one.values["share_of_limit"] for one in found] == [0.5, 0.375]
    assert found[0].values["p50_of_limit"] == pytest.approx(1.2)  # requests in 20 ms, at 60 a second
    assert found[1].values["p99_of_limit"] == pytest.approx(3.2)


def test_a_contestant_that_fails_is_told_once_and_left_out_from_then_on(
    lasted: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(contestant: Contestant) -> None:
        if contestant.name == "mosec":
            raise NotInstalled("no wheel")

    monkeypatch.setattr(throughput, "install", install)
    found = list(throughput.throughput(plan(contestants=["mosec", "convserve"], connections=[16], rounds=2)))
    assert [(one.contestant, one.round, one.problem) for one in found] == [
        ("mosec", 0, "no wheel"),
        ("convserve", 0, ""),
        ("convserve", 1, ""),
    ]


def test_without_a_limit_there_is_a_problem_and_no_figure(
    lasted: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*what: object, processes: int) -> None:
        raise LimitError("no memory")

    monkeypatch.setattr(throughput, "Limit", broken)
    (found,) = throughput.throughput(plan())
    assert (found.contestant, found.network, found.problem, found.values) == ("limit", "digits", "no memory", {})


@pytest.mark.parametrize(
    ("done", "took", "seconds"), [(11, 1.0, 19), (500, 1.0, 8), (1, 2.5, 500)], ids=["slow", "fast", "very slow"]
)
def test_a_slow_network_is_measured_until_there_could_be_enough_answers(
    lasted: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch, done: int, took: float, seconds: int
) -> None:
    monkeypatch.setattr(limit, "run", lambda stages, data, batch, seconds: (done, took))
    assert len(list(throughput.throughput(plan(connections=[16], rounds=2)))) == 2
    assert [of for name, of in lasted if name == "16 connections"] == [seconds, seconds]
