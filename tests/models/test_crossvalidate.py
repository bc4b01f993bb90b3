"""Each group is held out once, nothing of it is learnt from, and the mean is that of the groups' figures."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from models import crossvalidate as subject
from models.crossvalidate import Fold, crossvalidate, main, mean, read_folds
from models.datasets import DatasetError
from models.recipes import RECIPES
from models.tasks.task import TrainingError
from models.trainer import Trainer
from tests.folders import PITCHES_HZ, RATE_HZ, small_recipe, sound_wav, write

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CATEGORIES = tuple(PITCHES_HZ)
RECIPE = small_recipe("audio", epochs=2)
SPEAKERS = ("ann", "bob", "cy")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two takes of each speaker and pitch, one in test, and two sounds that nobody spoke; each of its own loudness."""
    loudness = iter(np.linspace(0.1, 0.9, 99))
    times = np.arange(RATE_HZ // 5) / RATE_HZ

    def write_sound(path: str, pitch_hz: float) -> None:
        write(tmp_path / "data" / path, sound_wav(next(loudness) * np.sin(2 * np.pi * pitch_hz * times)))

    for number, (category, pitch_hz) in enumerate(PITCHES_HZ.items()):
        for speaker in SPEAKERS:
            write_sound(f"train/{category}/{number}_{speaker}_7.wav", pitch_hz)
            write_sound(f"test/{category}/{number}_{speaker}_0.wav", pitch_hz)
    write_sound("train/low/hum-1.wav", 200)
    write_sound("train/low/1-17367-A-0.wav", 250)
    return tmp_path / "data"


def fingerprints(fold: Fold) -> tuple[list[float], list[float]]:
    """The files of training and those held out, each by its loudness."""
    learnt, held_out = (
        [round(float(np.abs(example.samples[0]).max()), 3) for example in part] for part in (fold.learnt, fold.held_out)
    )
    return learnt, held_out


def test_each_group_is_held_out_once_and_never_learnt_from(data: Path) -> None:
    folds = read_folds(RECIPE, CATEGORIES, data, "speaker")
    assert [fold.group for fold in folds] == list(SPEAKERS)
    all_held_out = []
    for fold in folds:
        learnt, held_out = fingerprints(fold)
        assert len(held_out) == len(set(held_out)) == 4  # of train and test, of both pitches
        assert len(learnt) == len(set(learnt)) == 2 * 4 + 2  # the other two, and what nobody spoke
        assert not set(learnt) & set(held_out)
        all_held_out += held_out
    assert len(set(all_held_out)) == 12


def test_what_belongs_to_no_group_is_always_learnt_from(data: Path) -> None:
    nobodys = set.intersection(
        *(set(fingerprints(fold)[0]) for fold in read_folds(RECIPE, CATEGORIES, data, "speaker"))
    )
    assert len(nobodys) == 2


@pytest.mark.parametrize(
    ("by", "name", "group"),
    [
        ("speaker", "7_jackson_32", "jackson"),
        ("speaker", "1-17367-A-0", None),
        ("speaker", "white-1-12", None),
        ("fold", "3-155642-B", "3"),
        ("fold", "hum", None),
    ],
)
def test_groups_are_told_from_the_names_of_the_data_sets(by: str, name: str, group: str | None) -> None:
    found = re.fullmatch(subject.GROUPS[by], name)
    assert (found["group"] if found else None) == group


def test_the_figures_are_kept_and_their_mean_is_right(data: Path, tmp_path: Path) -> None:
    accuracies = crossvalidate(RECIPE, data, "speaker", tmp_path / "run")
    assert set(accuracies) == set(SPEAKERS)
    assert all(accuracy in (0, 0.25, 0.5, 0.75, 1) for accuracy in accuracies.values())  # of four files
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["recipe"], result["by"], result["accuracy"]) == ("audio", "speaker", accuracies)
    assert result["mean"] == pytest.approx(sum(accuracies.values()) / 3, abs=1e-4)
    assert mean({"a": 0.9, "b": 0.6, "c": 0.6}) == 0.7


def test_it_goes_on_where_it_was_stopped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = crossvalidate(RECIPE, data, "speaker", tmp_path / "whole")
    epoch = Trainer.epoch
    done: list[int] = []
    room = 3  # epochs until the stop

    def counted(trainer: Trainer) -> None:
        if len(done) == room:
            raise KeyboardInterrupt
        done.append(trainer.epochs_done)
        epoch(trainer)

    monkeypatch.setattr(Trainer, "epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        crossvalidate(RECIPE, data, "speaker", tmp_path / "run")
    done.clear()
    assert crossvalidate(RECIPE, data, "speaker", tmp_path / "run") == whole
    assert done == [1, 0, 1]  # the second fold's last epoch, and the third fold
    done.clear()
    assert crossvalidate(RECIPE, data, "speaker", tmp_path / "run") == whole
    assert done == []


def test_one_group_alone_can_be_asked_for(data: Path, tmp_path: Path) -> None:
    assert set(crossvalidate(RECIPE, data, "speaker", tmp_path / "run", only=["bob"])) == {"bob"}
    with pytest.raises(DatasetError, match="holds no speaker dan"):
        crossvalidate(RECIPE, data, "speaker", tmp_path / "run", only=["ann", "dan"])


def test_a_run_with_other_settings_is_refused(data: Path, tmp_path: Path) -> None:
    crossvalidate(RECIPE, data, "speaker", tmp_path / "run", only=["ann"])
    with pytest.raises(TrainingError, match="was begun with epochs 2, now it is 3"):
        crossvalidate(small_recipe("audio", epochs=3), data, "speaker", tmp_path / "run", only=["ann"])
    (data / "train/low/hum-1.wav").unlink()
    with pytest.raises(TrainingError, match=r"'train': 10, .*now there are .*'train': 9"):
        crossvalidate(RECIPE, data, "speaker", tmp_path / "run", only=["ann"])


def test_files_whose_names_tell_of_no_groups_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "audio", RECIPE)
    with pytest.raises(
        SystemExit, match=r"cannot cross-validate: .* tell of 1 groups by fold; two at least are needed"
    ):
        main(["audio", "--data", str(data), "--by", "fold"])


def test_command_prints_each_figure_and_the_mean(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "audio", RECIPE)
    main(["audio", "--data", str(data), "--run", str(tmp_path / "run"), "--epochs", "1"])
    lines = capsys.readouterr().out.splitlines()
    figures = [float(line.split()[3]) for line in lines if line.startswith("speaker ")]
    assert len(figures) == 3
    assert lines[-1].startswith(f"mean of 3: accuracy {sum(figures) / 3:.4f}")


def test_a_recipe_without_groups_of_its_own_needs_them_stated(data: Path) -> None:
    with pytest.raises(SystemExit, match="state --by speaker or --by fold"):
        main(["classify", "--data", str(data)])
