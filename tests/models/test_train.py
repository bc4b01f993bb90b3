"""Training, from a few generated files to a checkpoint: it learns, it stops and goes on, it says what is wrong."""

import argparse
import dataclasses
import re
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from models.architectures import ARCHITECTURES
from models.architectures.fcn import Segmenter
from models.commands import command, serve_command
from models.datasets import VOID, DatasetError, Example, category_folders
from models.recipes import CAMVID_PALETTE, CLASSIFY, RECIPES, SEGMENT, VIDEO, Recipe
from models.runs import CHECKPOINT, Run
from models.tasks import TASKS
from models.tasks.labelled import random_window
from models.tasks.task import TrainingError
from models.train import adapted, main, train
from models.trainer import Trainer
from service.media.image import Region
from service.repository.card import ImagePreprocess
from tests.folders import SCENE, noisy, picture_png, small_recipe, write, write_data, write_pictures

NAMES = tuple(TASKS)
# With which twelve seeds of twelve learn: to round differently, as another kind of processor does, is as another seed.
ENOUGH: dict[str, dict[str, Any]] = {
    "classify": {"epochs": 12, "options": {"depth": 8, "width": 8}, "peak_rate": 0.03},
    "segment": {"epochs": 6},
    "audio": {"epochs": 16, "options": {"widths": (16, 16, 16, 16), "layers": (1, 1, 1, 1)}},
    "video": {"epochs": 8},
}
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small data set for each task, in a folder of one's own."""
    return {task: write_data(tmp_path_factory.mktemp(f"my_{task}"), task) for task in NAMES}


def accuracy(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?:accuracy|mIoU) ([0-9.]+) on", printed)]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], value) for name, value in other.items())


# Learning


@pytest.mark.parametrize("task", NAMES)
def test_what_can_be_learnt_from_a_few_files_is_learnt(
    tmp_path: Path, folders: dict[str, Path], task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(task, **ENOUGH[task])
    run = train(recipe, folders[task], tmp_path)
    assert run.epochs_done == recipe.epochs and run.seconds > 0
    reached = accuracy(capsys.readouterr().out)[-1]
    assert reached >= (0.8 if task == "segment" else 0.9)


def test_what_is_evaluated_is_the_run_on_disk(tmp_path: Path, folders: dict[str, Path]) -> None:
    run = train(small_recipe("classify"), folders["classify"], tmp_path)
    kept = Run.load(tmp_path)
    assert (kept.epochs_done, kept.categories) == (2, ("green", "red"))
    assert equal(kept.averaged, run.averaged)


@pytest.mark.parametrize("steps, decay", [(24, 0.75), (10, 0.5), (3, 0.0)])
def test_the_averaged_weights_lag_behind_but_by_a_fifth_of_the_run_at_most(
    folders: dict[str, Path], steps: int, decay: float
) -> None:
    """After the second step: decay * first + (1 - decay) * second (Polyak & Juditsky 1992)."""
    recipe = small_recipe("classify", epochs=steps, batch_size=100, average_decay=0.75)  # one step an epoch
    trainer, seen = trainer_of(recipe, folders["classify"]), []
    for _ in range(2):
        trainer.epoch()
        seen.append(trainer.network.state_dict()["conv1.weight"].clone())
    expected = decay * seen[0] + (1 - decay) * seen[1]
    assert torch.allclose(trainer.run({}).averaged["conv1.weight"], expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, files", [("classify", 49_000), ("alexnet", 49_000), ("segment", 367), ("audio", 2_430), ("video", 6_000)]
)
def test_the_bundled_recipes_are_long_enough_for_their_averages(name: str, files: int) -> None:
    recipe = RECIPES[name]
    assert recipe.average_decay <= 1 - 5 / (recipe.epochs * -(-files // recipe.batch_size))


def test_a_run_of_few_steps_says_so(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_recipe("classify", epochs=1), folders["classify"], tmp_path)
    assert "warning: 12 files make 3 steps in all, which is few" in capsys.readouterr().err


def trainer_of(recipe: Recipe, data: Path) -> Trainer:
    categories = SCENE if recipe.task == "segment" else category_folders(data / "train")
    examples = TASKS[recipe.task].load(data, "train", categories, recipe.preprocess)
    return Trainer(recipe, categories, examples, CPU)


# Checkpoints


def test_a_checkpoint_is_written_each_epoch(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    save = Run.save

    def saved(run: Run, folder: Path) -> None:
        save(run, folder)
        written.append(Run.load(folder).epochs_done)

    monkeypatch.setattr(Run, "save", saved)
    train(small_recipe("classify", epochs=3), folders["classify"], tmp_path)
    assert sorted(set(written)) == [1, 2, 3]


@pytest.mark.parametrize("task", NAMES)
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, folders: dict[str, Path], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout (segment), windows drawn by chance (audio) and every augmentation included."""
    recipe = small_recipe(task, epochs=3)
    whole = train(recipe, folders[task], tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("models.train.torch_predict", stop)  # what comes after the first checkpoint
        with pytest.raises(KeyboardInterrupt):
            train(recipe, folders[task], tmp_path / "stopped")
    assert Run.load(tmp_path / "stopped").epochs_done == 1
    torch.rand(3)  # another process has another past
    resumed = train(recipe, folders[task], tmp_path / "stopped")
    assert resumed.epochs_done == 3
    assert equal(resumed.state["network"], whole.state["network"])
    assert equal(Run.load(tmp_path / "stopped").averaged, whole.averaged)


def test_a_seed_makes_the_run(tmp_path: Path, folders: dict[str, Path]) -> None:
    runs = [
        train(small_recipe("classify", epochs=1, seed=seed), folders["classify"], tmp_path / str(number))
        for number, seed in enumerate((5, 5, 6))
    ]
    assert equal(runs[0].averaged, runs[1].averaged) and not equal(runs[0].averaged, runs[2].averaged)


def test_older_checkpoints_without_random_states_can_be_gone_on_with(tmp_path: Path, folders: dict[str, Path]) -> None:
    recipe = small_recipe("classify")
    train(recipe, folders["classify"], tmp_path)
    held = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    held["epochs_done"] = 1
    held["state"]["schedule"]["last_epoch"] = 3
    del held["state"]["order"], held["state"]["torch"]
    torch.save(held, tmp_path / CHECKPOINT)
    assert train(recipe, folders["classify"], tmp_path).epochs_done == 2


def test_a_checkpoint_from_another_kind_of_device_can_be_gone_on_with(folders: dict[str, Path]) -> None:
    """A CUDA generator's state is 16 bytes, which no CPU generator takes."""
    trainer = trainer_of(small_recipe("classify"), folders["classify"])
    run = trainer.run({})
    run.state["generator"] = run.state["torch"] = torch.zeros(16, dtype=torch.uint8)
    trainer.resume(run)
    trainer.epoch()


def rates(trained: Trainer, epochs: int) -> list[float]:
    """The learning rate after each of ``epochs``."""
    found = []
    for _ in range(epochs):
        trained.epoch()
        found.append(float(trained.optimizer.param_groups[0]["lr"]))
    return found


@pytest.mark.parametrize("task, begun, done", [("classify", 2, 2), ("classify", 4, 2), ("audio", 3, 1)])
def test_a_run_that_is_given_more_epochs_continues_at_its_place_in_the_longer_cycle(
    tmp_path: Path, folders: dict[str, Path], task: str, begun: int, done: int
) -> None:
    """Finished or not: from then on the learning rate and the momentum are those of a run of so many epochs."""
    data, longer = folders[task], small_recipe(task, epochs=8)
    short = trainer_of(small_recipe(task, epochs=begun), data)
    rates(short, done)
    run = short.run({"train": 12})
    run.save(tmp_path)
    whole, continued = trainer_of(longer, data), trainer_of(longer, data)
    expected = rates(whole, 8)
    continued.resume(Run.load(tmp_path))
    assert equal(continued.network.state_dict(), run.state["network"])
    assert continued.optimizer.param_groups[0]["lr"] == pytest.approx(expected[done - 1])  # of its first step
    assert rates(continued, 8 - done) == pytest.approx(expected[done:], rel=1e-9)
    momentum = "momentum" if longer.optimizer == "sgd" else "betas"
    assert continued.optimizer.param_groups[0][momentum] == pytest.approx(whole.optimizer.param_groups[0][momentum])
    assert len(continued.history) == continued.epochs_done == 8


def test_the_command_continues_a_finished_run_with_more_epochs(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_recipe("segment", epochs=1), folders["segment"], tmp_path)
    run = train(small_recipe("segment", epochs=3), folders["segment"], tmp_path)
    assert f"{tmp_path} continues after epoch 1 of 3, begun with 1" in capsys.readouterr().out
    assert (run.epochs_done, len(run.history)) == (3, 3)
    assert (Run.load(tmp_path).recipe.epochs, Run.load(tmp_path).epochs_done) == (3, 3)


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe("classify", epochs=1)
    train(recipe, folders["classify"], tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    train(recipe, folders["classify"], tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert f"{tmp_path} is complete after epoch 1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed, complaint",
    [
        ({"epochs": 1}, "was begun with epochs 2, now it is 1; .* or begin another run"),
        ({"ignore_index": 0}, "was begun with ignore_index 255, now it is 0"),
        ({"batch_size": 5}, "was begun with batch_size 4, now it is 5"),
        ({"peak_rate": 0.5}, "was begun with peak_rate 0.1, now it is 0.5"),
        ({"seed": 9}, "was begun with seed 1, now it is 9"),
        (
            {"architecture": "resnet18", "options": {}},
            "was begun with architecture 'resnet_cifar', now it is 'resnet18'",
        ),
        (
            {"preprocess": ImagePreprocess(resize="crop", sizes=((24, 24),), shorter_side=24)},
            r"was begun with preprocess .*16.*, now it is .*24",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_is_not_gone_on_with_under_other_options(
    tmp_path: Path, folders: dict[str, Path], changed: dict[str, Any], complaint: str
) -> None:
    recipe = small_recipe("classify")
    trainer_of(recipe, folders["classify"]).run({"train": 12}).save(tmp_path)
    with pytest.raises(TrainingError, match=complaint):
        train(dataclasses.replace(recipe, **changed), folders["classify"], tmp_path)


def test_a_run_is_not_gone_on_with_on_other_files(tmp_path: Path) -> None:
    recipe = small_recipe("classify", epochs=1)
    data = write_data(tmp_path / "data", "classify", train=2, test=1)
    train(recipe, data, tmp_path / "run")
    shutil.copy(data / "train" / "red" / "0.png", data / "train" / "red" / "more.png")
    with pytest.raises(TrainingError, match=r"was begun with 4 files in .*train, which now holds 5"):
        train(recipe, data, tmp_path / "run")
    write(data / "train" / "blue" / "0.png", picture_png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(TrainingError, match=r"was begun with categories \('green', 'red'\), now it is \('blue', "):
        train(recipe, data, tmp_path / "run")


# What a step is made of


def examples_of_two_shapes(count: int) -> list[Example]:
    """Scenes upright and lying, all of category 1 but for void."""
    random = np.random.default_rng(0)
    examples = []
    for number in range(count):
        size = (64, 48) if number % 2 else (48, 64)
        mask = np.ones(size, np.uint8)
        mask[:4] = VOID
        examples.append(Example([noisy((90, 90, 90), size, random)], np.ones(1), mask, Region(0, 0, *size)))
    return examples


def test_pictures_of_two_shapes_make_one_step_together() -> None:
    """The schedule has as many steps as there are batches; a step per shape would outrun it."""
    recipe = small_recipe("segment", epochs=2, batch_size=4)
    trainer = Trainer(recipe, SCENE, examples_of_two_shapes(10), CPU)
    shapes = [(tuple(batch.shape), tuple(targets.shape)) for batch, targets in trainer.batches()]
    assert shapes == [((count, 32, 40, 3), (count, 32, 40)) for count in (4, 4, 2)]
    for _ in range(2):
        trainer.epoch()
    assert trainer.epochs_done == 2


def test_a_batch_that_is_all_void_does_not_spoil_the_weights() -> None:
    recipe = small_recipe("segment", batch_size=2)
    void = [
        example._replace(target=np.full_like(cast(Any, example.target), VOID)) for example in examples_of_two_shapes(4)
    ]
    trainer = Trainer(recipe, SCENE, void, CPU)
    trainer.epoch()
    assert all(bool(value.isfinite().all()) for value in trainer.network.state_dict().values())


def test_void_and_the_auxiliary_head_count_as_stated() -> None:
    """By hand: the mean over known pixels of -log softmax, and 0.4 of the same by the second head."""
    recipe = small_recipe("segment", auxiliary_weight=0.4, weighting_constant=None)
    trainer = Trainer(recipe, SCENE, examples_of_two_shapes(2), CPU)
    trainer.network.eval()  # no dropout
    assert isinstance(trainer.network, Segmenter)
    pictures = torch.randint(0, 256, (2, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 2, (2, 32, 40), generator=torch.Generator().manual_seed(1))
    targets[:, :7] = VOID
    with torch.no_grad():
        inputs = trainer.served.prepare(pictures)
        loss, logits = trainer.task.loss(trainer.network, inputs, targets, recipe, trainer.weights)
        both = trainer.network.forward_with_auxiliary(trainer.served.prepare(pictures))
    expected = 0.0
    for weight, answered in zip((1.0, 0.4), both, strict=True):
        scores = answered.double().numpy()
        likelihood = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        of_truth = np.where(targets.numpy() == 1, likelihood[:, 1], likelihood[:, 0])
        expected += weight * -np.log(of_truth[targets.numpy() != VOID]).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(logits, both[0])


def test_pixels_of_rare_categories_count_for_more() -> None:
    """1 / ln(1.1 + share) for shares of 9/10 and 1/10 is 1 / ln 2 = 1.4427 and 1 / ln 1.2 = 5.4848; their mean over the
    pixels is 1.8469; a void pixel counts for nothing."""
    mask = np.zeros((10, 11), np.uint8)
    mask[:, 0], mask[:, 1] = VOID, 1
    example = Example([np.zeros((10, 10, 3), np.uint8)], np.ones(1), mask, Region(0, 0, 10, 11))
    trainer = Trainer(small_recipe("segment", weighting_constant=1.1), SCENE, [example], CPU)
    assert trainer.weights is not None
    assert trainer.weights.tolist() == pytest.approx([1.4427 / 1.8469, 5.4848 / 1.8469], rel=1e-3)


def test_windows_of_a_long_sound_are_drawn_as_often_as_they_count() -> None:
    windows = [np.full((1, 8), float(number), np.float32) for number in range(3)]
    example = Example(windows, np.array([3.0, 0.0, 1.0]), 0)
    random = np.random.default_rng(0)
    drawn = [float(np.asarray(random_window(example, random))[0, 0]) for _ in range(400)]
    assert set(drawn) == {0.0, 2.0}
    assert 0.7 < drawn.count(0.0) / 400 < 0.8


def test_every_file_is_seen_once_an_epoch_in_another_order(folders: dict[str, Path]) -> None:
    trainer = trainer_of(small_recipe("classify", batch_size=5), folders["classify"])
    orders = [[int(target) for _, targets in trainer.batches() for target in targets] for _ in range(2)]
    assert [sorted(order) for order in orders] == [[0] * 6 + [1] * 6] * 2
    assert orders[0] != orders[1]


def test_motion_is_turned_only_where_the_categories_are_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[int] = []

    def turn(samples: torch.Tensor, targets: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        turned.append(len(samples))
        return samples, targets

    monkeypatch.setattr("models.augment.flip_motion", turn)
    clip = np.zeros((8, 32, 32, 3), np.uint8)
    assert VIDEO.categories is not None
    for categories in (VIDEO.categories, ("pan left", "static")):
        recipe = small_recipe("video", flips_motion=True, categories=VIDEO.categories)
        trainer = Trainer(recipe, categories, [Example([clip], np.ones(1), 0)] * 3, CPU)
        list(trainer.batches())
    assert turned == [3]


def test_on_a_terminal_a_bar_shows_loss_and_share_correct(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(small_recipe("classify", batch_size=1), folders["classify"], tmp_path)
    printed = capsys.readouterr()
    last = [line for line in re.split(r"[\r\n]", printed.err) if line.startswith("epoch 2/2")][-1]
    assert re.search(r"12/12 \[\d+:\d+<\d+:\d+, .*correct=\d+\.\d%, loss=\d\.\d+\]", last)


def test_output_that_is_no_terminal_gets_a_line_an_epoch(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_recipe("classify", batch_size=1), folders["classify"], tmp_path)
    printed = capsys.readouterr()
    assert all(line.startswith("warning: ") for line in printed.err.splitlines()) and "\r" not in printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith("epoch")]
    assert len(lines) == len(printed.out.splitlines()) == 2
    assert re.fullmatch(
        r"epoch 1/2: training loss \d\.\d+, accuracy .* on 12 of train, .*; about 0 minutes left", lines[0]
    )
    assert lines[1].startswith("epoch 2/2: ") and lines[1].endswith("; done")


def test_the_share_that_is_right_leaves_void_out() -> None:
    targets = torch.tensor([[[0, 1, VOID, VOID]]])
    logits = torch.zeros(1, 2, 1, 4)
    logits[:, 0] = 1.0
    assert TASKS["segment"].share_correct(logits, targets) == 0.5
    assert TASKS["segment"].share_correct(logits, torch.full_like(targets, VOID)) == 0.0
    # A classifier has no void: with many categories, 255 is one of them.
    assert TASKS["classify"].share_correct(torch.eye(300)[[255, 3]], torch.tensor([255, 3])) == 1.0


# Recipes for one's own folders


def options(**stated: Any) -> argparse.Namespace:
    fields = ("epochs", "batch_size", "peak_rate", "seed", "architecture", "size", "views", "ignore_index")
    return argparse.Namespace(**(dict.fromkeys(fields) | stated))


def test_the_bundled_data_keeps_its_name_and_categories(tmp_path: Path) -> None:
    assert adapted(VIDEO, tmp_path / "camera_motion", options()) == VIDEO
    assert adapted(CLASSIFY, tmp_path / "cifar10", options()) == CLASSIFY


@pytest.mark.parametrize("place", ["pets", "pets/", "pets/."])
def test_ones_own_folder_gives_its_own_name(tmp_path: Path, place: str) -> None:
    recipe = adapted(VIDEO, Path(f"{tmp_path}/{place}"), options())
    assert (recipe.source.name, recipe.source.folder) == ("pets", "pets")
    assert (recipe.categories, recipe.flips_motion) == (None, False)


def test_the_folder_that_one_stands_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert adapted(CLASSIFY, Path(), options()).source.name == "pets"


def test_options_replace_what_the_recipe_says() -> None:
    recipe = adapted(CLASSIFY, Path("cifar10"), options(epochs=3, batch_size=7, peak_rate=0.01, seed=4, size=64))
    assert (recipe.epochs, recipe.batch_size, recipe.peak_rate, recipe.seed) == (3, 7, 0.01, 4)
    assert recipe.preprocess == ImagePreprocess(resize="crop", sizes=((64, 64),), shorter_side=64)
    assert recipe.options == CLASSIFY.options


def test_another_network_does_not_take_the_recipes_networks_options() -> None:
    recipe = adapted(CLASSIFY, Path("cifar10"), options(architecture="resnet18"))
    assert (recipe.architecture, recipe.options) == ("resnet18", {})


def test_ones_own_scenes_get_a_colour_for_each_category(tmp_path: Path) -> None:
    for count in (2, len(CAMVID_PALETTE), 30):
        write(tmp_path / "categories.txt", "\n".join(f"kind {number}" for number in range(count)).encode())
        palette = adapted(SEGMENT, tmp_path, options()).palette
        assert palette is not None and len(set(palette)) == len(palette) == count


def test_ones_own_categories_are_the_folders(tmp_path: Path, folders: dict[str, Path]) -> None:
    data = tmp_path / "my pictures"
    shutil.copytree(folders["classify"], data)
    recipe = adapted(small_recipe("classify", epochs=1), data, options())
    run = train(recipe, data, tmp_path / "run")
    assert run.categories == ("green", "red")
    assert Run.load(tmp_path / "run").recipe.source.name == "my pictures"
    assert run.splits == {"train": 12, "test": 6}


def test_a_picture_and_its_mask_count_as_one(tmp_path: Path, folders: dict[str, Path]) -> None:
    run = train(small_recipe("segment", epochs=1), folders["segment"], tmp_path)
    assert run.splits == {"train": 12, "test": 6}


def test_a_validation_split_watches_the_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "train", each=2)
    write_pictures(tmp_path / "val", each=5, seed=1)
    train(small_recipe("classify", epochs=1), tmp_path, tmp_path / "run")
    assert "on 10 of val" in capsys.readouterr().out


def test_a_run_keeps_its_data_and_the_value_that_means_void(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "scenes", "segment", train=1, test=1)
    write(data / "categories.txt", b"ground\n")  # so that the sky's 1 is void, or refused
    monkeypatch.chdir(tmp_path)
    recipe = adapted(small_recipe("segment", epochs=1), Path("scenes"), options(ignore_index=1))
    train(recipe, Path("scenes"), tmp_path / "run")
    run = Run.load(tmp_path / "run")
    assert (run.data, run.recipe.ignore_index) == (data, 1)


# Data that would train silently wrong


def test_an_empty_category_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    data = Path(shutil.copytree(folders["classify"], tmp_path / "data"))
    (data / "train" / "blue").mkdir()
    with pytest.raises(DatasetError, match=r"train/blue is empty: add files to it, or remove it"):
        train(small_recipe("classify", epochs=1), data, tmp_path / "run")


@pytest.mark.parametrize("split", ["test", "val", "test-night"])
def test_a_category_that_train_lacks_is_refused_before_training(
    tmp_path: Path, folders: dict[str, Path], split: str
) -> None:
    data = Path(shutil.copytree(folders["classify"], tmp_path / "data"))
    shutil.copytree(data / "test" / "red", data / split / "purple")
    with pytest.raises(
        DatasetError, match=rf"{split} holds \['purple'\], which .*train lacks: no model could learn it"
    ):
        train(small_recipe("classify", epochs=1), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nested_files_of_the_test_split_are_refused_before_training(tmp_path: Path, folders: dict[str, Path]) -> None:
    data = Path(shutil.copytree(folders["audio"], tmp_path / "data"))
    shutil.copytree(data / "test" / "low", data / "test" / "low" / "deeper")
    with pytest.raises(DatasetError, match=r"test/low/deeper is a nested folder"):
        train(small_recipe("audio", epochs=1), data, tmp_path / "run")


def test_files_beside_the_category_folders_are_named(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(folders["classify"], tmp_path / "data"))
    shutil.copy(data / "train" / "red" / "0.png", data / "train" / "lost.png")
    train(small_recipe("classify", epochs=1), data, tmp_path / "run")
    expected = f"warning: {data}/train holds 1 files beside its category folders, which are not read: lost.png"
    assert expected in capsys.readouterr().err


def test_a_recipes_category_without_files_is_named(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe("classify", epochs=1, categories=("green", "red", "blue"))
    train(recipe, folders["classify"], tmp_path)
    assert "train shows 'blue': no model can learn it from this data" in capsys.readouterr().err


def test_a_category_without_a_pixel_is_named(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(folders["segment"], tmp_path / "data"))
    write(data / "categories.txt", "\n".join((*SCENE, "car")).encode())
    palette = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    train(small_recipe("segment", epochs=1, palette=palette), data, tmp_path / "run")
    assert "train shows 'car': no model can learn it" in capsys.readouterr().err


def test_masks_without_a_picture_are_named(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(folders["segment"], tmp_path / "data"))
    shutil.copy(data / "train" / "masks" / "0.png", data / "train" / "masks" / "lost.png")
    train(small_recipe("segment", epochs=1), data, tmp_path / "run")
    assert "train/masks holds 1 masks without a picture, which are not read: lost.png" in capsys.readouterr().err


def test_evaluation_on_the_training_files_is_told(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_recipe("classify", epochs=1), folders["classify"], tmp_path / "few")
    told = capsys.readouterr().err
    assert "train holds 12 files, too few to hold any out (100)" in told
    assert "each epoch is evaluated on its training files" in told
    write_pictures(tmp_path / "data" / "train", each=2)
    write_pictures(tmp_path / "data" / "val", each=2, seed=1)
    train(small_recipe("classify", epochs=1), tmp_path / "data", tmp_path / "with val")
    assert "training files" not in capsys.readouterr().err


# Refusals


def test_six_views_of_anything_but_pictures_are_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(TrainingError, match="--views is not for audio"):
        train(small_recipe("audio", views=6), folders["audio"], tmp_path)


def test_one_category_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "1.png", picture_png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(DatasetError, match="holds one category, 'cat'; there is nothing to tell it from"):
        train(small_recipe("classify"), tmp_path, tmp_path / "run")


@pytest.mark.parametrize(
    "task, architecture",
    [
        (task, name)
        for task in NAMES
        for name in ("alexnet", "resnet18", "fcn_basic", "audio_cnn", "video_cnn")
        if (task, name)
        not in (("classify", "resnet18"), ("segment", "fcn_basic"), ("audio", "audio_cnn"), ("video", "video_cnn"))
    ],
)
def test_a_network_for_another_task_or_size_is_refused_before_the_data_is_read(
    tmp_path: Path, folders: dict[str, Path], task: str, architecture: str
) -> None:
    recipe = small_recipe(task, architecture=architecture, options={})
    with pytest.raises(
        TrainingError, match=rf"the network '{architecture}' cannot be trained to {task} on batches of "
    ):
        train(recipe, folders[task], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_last_batch_too_small_to_normalise_is_refused_at_once(tmp_path: Path, folders: dict[str, Path]) -> None:
    """13 = 12 + 1 in batches of 12: resnet18 has one position per picture at the end, whose deviation is 0."""
    data = tmp_path / "data"
    shutil.copytree(folders["classify"], data)
    shutil.copy(data / "train" / "red" / "0.png", data / "train" / "red" / "more.png")
    recipe = small_recipe("classify", architecture="resnet18", options={}, batch_size=12)
    with pytest.raises(TrainingError, match=r"on batches of \(1, 16, 16, 3\): Expected more than 1 value"):
        train(recipe, data, tmp_path / "run")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that refuses."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code not in (0, None)
    return stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err


@pytest.mark.parametrize(
    "stated, complaint",
    [
        (["--epochs", "0"], "'0' is not a whole number from 1 to 100000"),
        (["--epochs", "many"], "'many' is not a whole number"),
        (["--batch-size", "-4"], "'-4' is not a whole number"),
        (["--peak-rate", "0"], "'0' is not a number above 0"),
        (["--peak-rate", "nan"], "'nan' is not a number above 0"),
        (["--seed", "-1"], "'-1' is not a whole number"),
        (["--size", "5000"], "'5000' is not a whole number from 8 to 4096"),
        (["--ignore-index", "256"], "'256' is not a whole number from 0 to 255"),
        (["--architecture", "vgg"], "invalid choice: 'vgg'"),
    ],
    ids=" ".join,
)
def test_an_option_out_of_range_is_refused(
    folders: dict[str, Path], stated: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint in refusal(capsys, "classify", "--data", str(folders["classify"]), *stated)


def test_an_unknown_recipe_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'speech' (choose from" in refusal(capsys, "speech", "--data", "x")


def test_a_size_for_another_task_than_classify_is_refused(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, "video", "--data", str(folders["video"]), "--size", "64")
    assert text == "cannot train: --size is not for video: its recipes state their sizes"


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, "classify", "--data", str(tmp_path / "nothing"))
    assert text.startswith("the data cannot be used: ") and "nothing/train is not a folder; expected" in text


# The command line


def test_the_command_trains_into_the_named_folder_and_says_what_comes_next(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["classify", "--data", str(folders["classify"]), "--run", str(tmp_path), "--epochs", "1"]
    main([*arguments, "--size", "16", "--architecture", "alexnet_cifar", "--batch-size", "6"])
    run = Run.load(tmp_path)
    assert (run.recipe.architecture, run.epochs_done) == ("alexnet_cifar", 1)
    printed = capsys.readouterr().out
    # The run knows its data.
    assert f"python -m models.evaluate {tmp_path}\n" in printed
    assert f"python -m models.export {tmp_path} --repository FOLDER\n" in printed


def test_printed_commands_work_from_where_the_person_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(executable))
    monkeypatch.delenv("CONVSERVE_TASKS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert command("models.evaluate", "my runs/1") == ".venv/bin/python -m models.evaluate 'my runs/1'"
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert command("models.evaluate", "run") == f"{executable} -m models.evaluate run"
    monkeypatch.setattr("shutil.which", lambda name: str(executable))  # an activated environment
    monkeypatch.setenv("CONVSERVE_TASKS", "mine:TASK")
    assert serve_command(Path("models")) == (
        f"CONVSERVE_TASKS=mine:TASK CONVSERVE_REPOSITORY={tmp_path}/below/models python -m service"
    )


def test_a_stop_says_how_to_go_on(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "epoch", stop)
    text = refusal(capsys, "classify", "--data", str(folders["classify"]), "--run", str(tmp_path))
    assert f"the same command continues after the last whole epoch in {tmp_path}" in text


def test_every_network_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ARCHITECTURES)
