"""Trains one recipe on a folder of data, a checkpoint each epoch, and goes on from the checkpoint after a stop.

python -m models.train RECIPE --data FOLDER [--run runs/RECIPE]

A run is a function of its recipe, its data and its seed: one that was stopped and gone on with ends with the weights of
one that was not (on the same hardware).
"""

import argparse
import colorsys
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.architectures import ARCHITECTURES
from models.architectures.fcn import FCN
from models.datasets import VOID, DatasetError, category_folders, read_categories
from models.evaluate import evaluate, show, torch_predict
from models.graph import SERVED
from models.recipes import RECIPES, Recipe, Source
from models.runs import CHECKPOINT, RECORDED, Run, build_network, load_examples
from models.trainer import Trainer
from service.cards import AudioPreprocess, ImagePreprocess, VideoPreprocess

_VALIDATED = 500  # files of the training split that watch an epoch's progress where there is no validation split
_FEW_STEPS = 100  # with fewer, a network that starts from nothing has hardly begun


class TrainingError(Exception):
    """Options that do not suit the task, the data or the run that is to be gone on with; the message says which."""


def train(recipe: Recipe, data: Path, folder: Path, ignore_index: int = VOID) -> Run:
    """Trains ``recipe`` on ``data`` until its last epoch, from the checkpoint in ``folder`` if there is one.

    Raises ``DatasetError`` for the data, and ``TrainingError`` where recipe, data and checkpoint do not go together.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    categories = _categories(recipe, data)
    begun = Run.load(folder) if (folder / CHECKPOINT).is_file() else None
    if begun:
        _require_same(begun, recipe, categories, folder)
    splits = {split: _count(data / split) for split in ("train", "val", "test") if (data / split).is_dir()}
    _require_fit(recipe, len(categories), splits.get("train", 0))
    examples = load_examples(data, "train", recipe.task, categories, recipe.preprocess, ignore_index)
    watched_split = "val" if (data / "val").is_dir() else "train"
    watched = (
        load_examples(data, "val", recipe.task, categories, recipe.preprocess, ignore_index)
        if watched_split == "val"
        else examples[:: max(1, len(examples) // _VALIDATED)]
    )
    trainer = Trainer(recipe, categories, examples, device)
    if begun:
        if begun.splits["train"] != splits["train"]:
            raise TrainingError(
                f"{folder} was begun with {begun.splits['train']} files in {data}/train, which now holds "
                f"{splits['train']}; begin another run (--run)"
            )
        trainer.resume(begun)
        done = "is complete" if trainer.epochs_done >= recipe.epochs else "goes on"
        print(f"{folder} {done} after epoch {trainer.epochs_done} of {recipe.epochs}")
    elif (steps := trainer.schedule.total_steps) < _FEW_STEPS:
        print(
            f"{len(examples)} files make {steps} steps in all, which is few: state more --epochs or less --batch-size"
        )
    run = trainer.run(splits)
    while trainer.epochs_done < recipe.epochs:
        trainer.epoch()
        served = trainer.run(splits).served().to(device)
        run = trainer.run(splits)  # after served(), which draws weights: dropout goes on from torch's generator
        run.save(folder)
        metrics = evaluate(torch_predict(served, device), watched, recipe.task, len(categories), watched_split)
        print(f"epoch {run.epochs_done}/{recipe.epochs}: {show(metrics)}; {_time_left(run)}", flush=True)
    return run


def _categories(recipe: Recipe, data: Path) -> tuple[str, ...]:
    if recipe.task == "segment":
        return read_categories(data)
    found = category_folders(data / "train")
    if len(found) < 2:
        raise DatasetError(f"{data}/train holds one category, {found[0]!r}; there is nothing to tell it from")
    return recipe.categories if recipe.categories and set(found) <= set(recipe.categories) else found


def _require_same(begun: Run, recipe: Recipe, categories: tuple[str, ...], folder: Path) -> None:
    """A run goes on as it was begun: its schedule, its network and its data are laid out for that."""
    fields = ("name", *RECORDED, "options", "preprocess", "source")
    before = {field: getattr(begun.recipe, field) for field in fields} | {"categories": begun.categories}
    now = {field: getattr(recipe, field) for field in fields} | {"categories": categories}
    for field in before:
        if before[field] != now[field]:
            raise TrainingError(
                f"{folder} was begun with {field} {_plain(before[field])}, now it is {_plain(now[field])}; "
                "state what it was begun with to go on, or begin another run (--run)"
            )


def _plain(value: Any) -> str:
    return value.name if isinstance(value, Source) else repr(value)


def _require_fit(recipe: Recipe, categories: int, files: int) -> None:
    """Runs the network on the smallest batch that will come, on torch's meta device, which computes shapes only."""
    spec, size = recipe.preprocess, recipe.crop
    batch = files % recipe.batch_size or recipe.batch_size
    if isinstance(spec, AudioPreprocess):
        shape: tuple[int, ...] = (1, spec.window_samples)
    elif isinstance(spec, VideoPreprocess):
        shape = (spec.frames, *spec.size, 3)
    else:
        shape = (*(size or spec.sizes[0]), 3)
    expected = (batch, categories, *shape[:2]) if recipe.task == "segment" else (batch, categories)
    complaint = (
        f"the network {recipe.architecture!r} cannot be trained to {recipe.task} on batches of {(batch, *shape)}"
    )
    try:
        with torch.device("meta"), torch.no_grad():
            served = SERVED[recipe.task](build_network(recipe, categories))
            logits = served.network(served.prepare(torch.empty(batch, *shape)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise TrainingError(f"{complaint}: {error}") from error
    if logits.shape != expected or (recipe.task == "segment" and not isinstance(served.network, FCN)):
        raise TrainingError(f"{complaint}: it answers {tuple(logits.shape)} where {expected} belongs")


def _count(split: Path) -> int:
    """How many samples' files there are; a picture and its mask count once."""
    if (split / "images").is_dir() and (split / "masks").is_dir():
        split = split / "images"
    return sum(1 for path in split.rglob("*") if path.is_file() and not path.name.startswith("."))


def _time_left(run: Run) -> str:
    seconds = run.seconds / run.epochs_done * (run.recipe.epochs - run.epochs_done)
    return f"about {seconds / 60:.0f} minutes left" if seconds else "done"


def adapted(recipe: Recipe, data: Path, arguments: argparse.Namespace) -> Recipe:
    """The recipe for this data and these options. One's own data is not called by the name of the bundled data set."""
    changed: dict[str, Any] = {field: value for field in RECORDED if (value := getattr(arguments, field)) is not None}
    name = data.name if data.name not in ("", "..") else data.resolve().name
    own = name != recipe.source.folder
    if own:
        source = Source(name, name, "a folder of one's own", "not stated")
        changed |= {"source": source, "categories": None, "turns_motion": False}
    if "architecture" in changed and changed["architecture"] != recipe.architecture:
        changed["options"] = {}
    if arguments.size is not None:
        if recipe.task != "classify":
            raise TrainingError("--size is for classify; the other recipes state their own")
        side = (arguments.size, arguments.size)
        changed["preprocess"] = ImagePreprocess(resize="crop", sizes=(side,), shorter_side=arguments.size)
    if recipe.task == "segment":
        count = len(read_categories(data))
        if own or count != len(recipe.palette or ()):
            changed["palette"] = _spread_colours(count)
    return replace(recipe, **changed)


def _spread_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that differ from their neighbours: hues a golden angle apart."""
    hues = [index * 0.618 % 1 for index in range(count)]
    channels = [colorsys.hsv_to_rgb(hue, 0.75, 0.85) for hue in hues]
    return tuple((round(red * 255), round(green * 255), round(blue * 255)) for red, green, blue in channels)


def within(low: int, high: int) -> Callable[[str], int]:
    """An option's type: a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a model; after a stop, the same command goes on.")
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument(
        "--data", type=Path, required=True, help="the data set's folder, holding train/ and perhaps val/ and test/"
    )
    parser.add_argument("--run", type=Path, help="where the checkpoint is kept (default: runs/RECIPE)")
    parser.add_argument("--epochs", type=within(1, 100_000))
    parser.add_argument("--batch-size", type=within(1, 100_000))
    parser.add_argument("--peak-rate", type=_rate, help="the highest learning rate of the cycle")
    parser.add_argument("--seed", type=within(0, 2**32 - 1))
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="another network for the task")
    parser.add_argument(
        "--size", type=within(8, 4096), help="classify: side of the square that the network sees, in pixels"
    )
    parser.add_argument(
        "--ignore-index", type=within(0, VOID), default=VOID, help="segment: the mask value that means void"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    folder = arguments.run or Path("runs") / arguments.recipe
    try:
        recipe = adapted(RECIPES[arguments.recipe], arguments.data, arguments)
        run = train(recipe, arguments.data, folder, arguments.ignore_index)
    except DatasetError as error:
        raise SystemExit(f"the data cannot be used: {error}") from error
    except TrainingError as error:
        raise SystemExit(f"cannot train: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit(f"\nstopped; the same command goes on after the last whole epoch in {folder}") from stop
    hours = run.seconds / 3600
    print(f"trained {run.recipe.name}: {run.epochs_done} epochs in {hours:.2f} hours, in {folder}")
    print(f"next: python -m models.evaluate {folder} --data {arguments.data}")
    print(f"      python -m models.export {folder} --data {arguments.data} --repository FOLDER")


if __name__ == "__main__":
    main()
