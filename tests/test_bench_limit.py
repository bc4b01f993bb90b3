"""The ceiling, for a handful of samples."""

from pathlib import Path

import pytest

from benchmarks import limit
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
