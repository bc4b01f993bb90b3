"""A training run on disk: what is saved is what comes back."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.datasets import DatasetError
from models.recipes import Source
from models.runs import CHECKPOINT, RECORDED, Run, build_network
from models.tasks import TASKS
from service.repository.card import ImagePreprocess
from tests.folders import SCENE, small_recipe, write_data

NAMES = tuple(TASKS)
CATEGORIES = ("one", "two", "three")


def small_run(task: str = "classify", seed: int = 0, **changed: Any) -> Run:
    torch.manual_seed(seed)
    recipe = small_recipe(task, seed=7, source=Source("own", "own", "a folder", "not stated"), **changed)
    network = build_network(recipe, len(CATEGORIES))
    return Run(recipe, CATEGORIES, 3, 12.5, network.state_dict(), {"step": torch.ones(2)}, {"train": 9, "test": 4})


@pytest.mark.parametrize("task", NAMES)
def test_a_saved_run_comes_back(tmp_path: Path, task: str) -> None:
    run = small_run(task)
    run.save(tmp_path / "new" / "folder")
    back = Run.load(tmp_path / "new" / "folder")
    for field in ("name", "options", "preprocess", "source", *RECORDED):
        assert getattr(back.recipe, field) == getattr(run.recipe, field)
    assert back.recipe.palette == run.recipe.palette
    assert (back.categories, back.epochs_done, back.seconds, back.splits) == (CATEGORIES, 3, 12.5, run.splits)
    assert back.averaged.keys() == run.averaged.keys()
    assert all(torch.equal(back.averaged[name], value) for name, value in run.averaged.items())
    assert torch.equal(back.state["step"], torch.ones(2))


def test_the_model_of_a_run_has_the_averaged_weights_and_is_ready_to_answer(tmp_path: Path) -> None:
    run = small_run(views=1)
    run.save(tmp_path)
    served = Run.load(tmp_path).served()
    assert not served.training
    network = build_network(run.recipe, len(CATEGORIES))
    network.load_state_dict(run.averaged)
    picture = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = torch.softmax(network.eval()(served.prepare(picture)), dim=1)
        assert torch.equal(served(picture), expected)


def test_a_stop_while_saving_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run(seed=1).save(tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def stopped(content: object, path: Path) -> None:
        path.write_bytes(b"half a checkpoint")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            small_run(seed=2).save(tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    small_run(seed=2).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} holds no checkpoint.pt"):
        Run.load(tmp_path)


def test_a_checkpoint_runs_no_code_when_it_is_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "sprung"),))

    torch.save({"recipe": Trap()}, tmp_path / CHECKPOINT)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        Run.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_networks_are_built_with_the_recipes_options_and_categories() -> None:
    wide = dataclasses.replace(small_recipe("classify"), options={"depth": 14, "width": 8})
    count = sum(value.numel() for value in build_network(wide, 3).parameters())
    assert count == sum(value.numel() for value in resnet_14())
    assert build_network(wide, 3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def resnet_14() -> list[torch.Tensor]:
    """The weights' shapes by He et al. 2015, section 4.2: n = 2, widths 8, 16, 32; batch norms of two each."""
    widths = [3, 8, *[8] * 4, *[16] * 4, *[32] * 4]
    convolutions = [torch.empty(after, before, 3, 3) for before, after in pairwise(widths)]
    norms = [torch.empty(2, width) for width in widths[1:]]
    return [*convolutions, *norms, torch.empty(3, 32), torch.empty(3)]


@pytest.mark.parametrize("task", NAMES)
def test_examples_of_every_task_are_samples_of_the_stated_shape(tmp_path: Path, task: str) -> None:
    data = write_data(tmp_path, task, train=2, test=1)
    categories = {"segment": SCENE, "audio": ("high", "low")}.get(task, ("green", "red"))
    spec = small_recipe(task).preprocess
    examples = TASKS[task].load(data, "train", categories, spec)
    assert len(examples) == 4
    shapes = {
        "classify": {(16, 16, 3)},
        "segment": {(48, 64, 3), (64, 48, 3)},
        "audio": {(1, 1600)},
        "video": {(8, 32, 32, 3)},
    }
    assert {sample.shape for example in examples for sample in example.samples} == shapes[task]
    assert all(len(example.samples) == len(example.weights) for example in examples)


def test_masks_of_other_categories_than_the_models_are_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path, "segment", train=1, test=1)
    spec = ImagePreprocess(resize="pad", sizes=((48, 64),))
    with pytest.raises(DatasetError, match=r"names \['ground', 'sky'\]; the model's are \['sky', 'ground'\]"):
        TASKS["segment"].load(data, "test", SCENE[::-1], spec)


def test_the_ignore_index_reaches_the_masks(tmp_path: Path) -> None:
    data = write_data(tmp_path, "segment", train=1, test=1)
    spec = ImagePreprocess(resize="pad", sizes=((48, 64),))
    (first, _) = TASKS["segment"].load(data, "test", SCENE, spec, ignore_index=1)
    assert set(np.unique(first.target)) == {0, 255}
