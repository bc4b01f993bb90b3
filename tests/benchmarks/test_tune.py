from pathlib import Path

import pytest
from dotenv import dotenv_values

from benchmarks.tune import Plan, Tuning, best_batch, best_plan, main, plans, tune, written
from service import launch
from service.settings import Settings, usable_cores
from tests import graphs


def test_cores_are_shared_out_from_a_worker_each_to_one_for_all() -> None:
    assert plans(1) == [Plan(1, 1)]
    assert plans(2) == [Plan(2, 1), Plan(1, 2)]
    assert plans(6) == [Plan(6, 1), Plan(3, 2), Plan(1, 6)]


def test_the_plan_that_answers_the_most_is_chosen_over_all_models() -> None:
    many, few = Plan(4, 1), Plan(1, 4)
    assert best_plan({many: {"a": 100, "b": 10}, few: {"a": 50, "b": 40}}) == few  # half as fast, four times as fast
    assert best_plan({few: {"a": 50, "b": 19}, many: {"a": 100, "b": 10}}) == many
    assert best_plan({few: {"a": 102}, many: {"a": 100}}) == many  # hardly faster: not worth the workers


def test_the_smallest_batch_that_is_about_as_fast_as_the_fastest_is_chosen() -> None:
    assert best_batch({1: 50.0, 2: 80.0, 4: 98.0, 8: 100.0, 16: 97.0}) == 4
    assert best_batch({1: 5.0}) == 1


def test_the_result_is_written_as_settings_that_the_service_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = Tuning("SomeProvider", {Plan(3, 2): {"a": 10.0, "b": 7.0}}, {"a": {1: 5.0, 2: 9.0}, "b": {1: 7.0}})
    text = written(tuning)
    assert "SomeProvider" in text and "#   a: 1: 5, 2: 9" in text and "#   b: 3 x 2: 7" in text
    (tmp_path / "tuned.env").write_text(text)
    for name, value in dotenv_values(tmp_path / "tuned.env").items():
        monkeypatch.setenv(name, value or "")
    settings = Settings.read()
    assert settings.workers == 3
    assert settings.max_batch == {"a": 2, "b": 1}


def test_every_model_is_measured_with_every_plan_and_batch(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    tuning = tune(Settings(repository=tmp_path, device="cpu"), seconds=0.5)
    names = {f"tiny-{task}" for task in ("classify", "segment", "audio", "video")}
    assert list(tuning.plans) == plans(usable_cores())
    assert all(set(rates) == names and min(rates.values()) > 0 for rates in tuning.plans.values())
    assert set(tuning.curves) == names
    assert all(next(iter(curve)) == 1 and min(curve.values()) > 0 for curve in tuning.curves.values())


def test_a_repository_without_a_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_REPOSITORY", str(tmp_path))
    with pytest.raises(SystemExit, match="cannot tune: CONVSERVE_REPOSITORY"):
        main(["--output", str(tmp_path / "tuned.env")])
    assert not (tmp_path / "tuned.env").exists()


def test_the_start_reads_the_file_unless_a_variable_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / launch.TUNED).write_text(
        "# a curve\nCONVSERVE_WORKERS=3\nCONVSERVE_MAX_BATCH=a=2\nHOST=not-an-address\n"
    )
    monkeypatch.setenv("CONVSERVE_WORKERS", "1")
    monkeypatch.delenv("HOST", raising=False)
    monkeypatch.setenv("CONVSERVE_MAX_BATCH", "x")  # so that both are restored
    monkeypatch.delenv("CONVSERVE_MAX_BATCH")
    with pytest.raises(SystemExit, match="not-an-address"):
        launch.serve([])
    assert capsys.readouterr().out == "settings of tuned.env: CONVSERVE_MAX_BATCH=a=2, HOST=not-an-address\n"
