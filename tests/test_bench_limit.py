"""The ceiling, for a handful of samples."""

from pathlib import Path

import pytest

from benchmarks import limit, networks, throughput
from benchmarks.measuring import Plan
from benchmarks.stages import Stages
from tests import graphs, samples


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return graphs.write_model(tmp_path, "classify")


def test_whole_batches_are_counted(model: Path) -> None:
    done, seconds = limit.run(Stages(model), samples.grey_png(5), batch=7, seconds=0)
    assert done == 7
    assert seconds > 0


def test_processes_are_added_up(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    file.write_bytes(samples.grey_png(5))
    assert limit.measure(model, file, processes=2, batch=2, seconds=0.01) > 0


def test_a_process_that_fails_is_no_result(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "torn.png"
    file.write_bytes(samples.grey_png(5)[:30])
    with pytest.raises(limit.LimitError, match="CorruptMedia"):
        limit.measure(model, file, processes=1, batch=1, seconds=0.01)


@pytest.mark.parametrize(
    ("done", "took", "seconds"), [(11, 1.0, 19), (500, 1.0, 8), (1, 2.5, 500)], ids=["slow", "fast", "very slow"]
)
def test_a_slow_network_is_measured_until_there_could_be_enough_answers(
    monkeypatch: pytest.MonkeyPatch, done: int, took: float, seconds: int
) -> None:
    lasted: list[float] = []

    def measure(*what: object, processes: int, batch: int, seconds: float) -> float:
        lasted.append(seconds)
        return 1.0

    monkeypatch.setattr(limit, "run", lambda stages, data, batch, seconds: (done, took))
    monkeypatch.setattr(limit, "best_batch", lambda *what, processes, seconds: 4)
    monkeypatch.setattr(limit, "measure", measure)
    plan = Plan(
        contestants=[throughput.LIMIT],
        networks=[networks.network("digits")],
        connections=[16],
        cores=2,
        rounds=2,
        seconds=8,
        answers=400,
        overload_seconds=0,
    )
    assert len(list(throughput.throughput(plan))) == 2
    assert lasted == [seconds, seconds]
