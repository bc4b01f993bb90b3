"""Trains one recipe on a folder of data, a checkpoint each epoch, and goes on from the checkpoint after a stop.

python -m models.train RECIPE --data FOLDER [--run runs/RECIPE]

A run is a function of its recipe, its data and its seed: one that was stopped and gone on with ends with the weights of
one that was not (on the same hardware).
"""

import argparse
import colorsys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.architectures import ARCHITECTURES
from models.architectures.fcn import Segmenter
from models.datasets import VOID, DatasetError, read_categories
from models.evaluate import evaluate, show, torch_predict
from models.graph import SERVED
from models.options import rate, within
from models.recipes import RECIPES, Recipe, Source
from models.report import of_run, write_report
from models.runs import (
    CHECKPOINT,
    RECORDED,
    Run,
    TrainingError,
    build_network,
    categories_of,
    require_same,
    split_examples,
)
from models.trainer import Trainer
from service.repository.card import AudioPreprocess, ImagePreprocess, VideoPreprocess

_FEW_STEPS = 100  # with fewer, a network that starts from nothing has hardly begun


def train(recipe: Recipe, data: Path, folder: Path, ignore_index: int = VOID, report: Path | None = None) -> Run:
    """Trains ``recipe`` on ``data`` until its last epoch, from the checkpoint in ``folder`` if there is one; then
    writes what came of it into the folder ``report``, judged as the epochs are.

    Raises ``DatasetError`` for the data, and ``TrainingError`` where recipe, data and checkpoint do not go together.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    categories = categories_of(recipe, data)
    begun = Run.load(folder) if (folder / CHECKPOINT).is_file() else None
    if begun:
        require_same(begun, recipe, categories, folder)
    _require_fit(recipe, len(categories), _count(data / "train"))
    examples, watched = split_examples(data, recipe.task, categories, recipe.preprocess, ignore_index)
    splits = {"train": len(examples)} | ({"val": len(watched)} if watched else {})
    if (data / "test").is_dir():
        splits["test"] = _count(data / "test")
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
    judged, split = (watched, "val") if watched else (examples, "train")
    while trainer.epochs_done < recipe.epochs:
        trainer.epoch()
        served = trainer.run(splits).served().to(device)
        run = trainer.run(splits)  # after served(), which draws weights: dropout goes on from torch's generator
        run.save(folder)
        metrics = evaluate(torch_predict(served, device), judged, recipe.task, len(categories), split)
        run.history[-1] |= {metric.name: metric.value for metric in metrics}
        run.save(folder)
        print(f"epoch {run.epochs_done}/{recipe.epochs}: {show(metrics)}; {_time_left(run)}", flush=True)
    if report:
        write_report(of_run(run), torch_predict(run.served().to(device), device), judged, split, report)
    return run


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
    if logits.shape != expected or (recipe.task == "segment" and not isinstance(served.network, Segmenter)):
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
        changed.setdefault("views", 1)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a model; after a stop, the same command goes on.")
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument(
        "--data", type=Path, required=True, help="the data set's folder, holding train/ and perhaps val/ and test/"
    )
    parser.add_argument("--run", type=Path, help="where the checkpoint is kept (default: runs/RECIPE)")
    parser.add_argument("--epochs", type=within(1, 100_000))
    parser.add_argument("--batch-size", type=within(1, 100_000))
    parser.add_argument("--peak-rate", type=rate, help="the highest learning rate of the cycle")
    parser.add_argument("--seed", type=within(0, 2**32 - 1))
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="another network for the task")
    parser.add_argument(
        "--size", type=within(8, 4096), help="classify: side of the square that the network sees, in pixels"
    )
    parser.add_argument(
        "--views",
        type=int,
        choices=(1, 6),
        help="classify: 6 answers with the mean over six views of a picture, at six times the cost (one's own data: 1)",
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
        run = train(recipe, arguments.data, folder, arguments.ignore_index, report=folder / "report")
    except DatasetError as error:
        raise SystemExit(f"the data cannot be used: {error}") from error
    except TrainingError as error:
        raise SystemExit(f"cannot train: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit(f"\nstopped; the same command goes on after the last whole epoch in {folder}") from stop
    hours = run.seconds / 3600
    print(f"trained {run.recipe.name}: {run.epochs_done} epochs in {hours:.2f} hours, in {folder}; see {folder}/report")
    print(f"next: python -m models.evaluate {folder} --data {arguments.data}")
    print(f"      python -m models.export {folder} --data {arguments.data} --repository FOLDER")


if __name__ == "__main__":
    main()
