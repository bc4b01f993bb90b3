"""Training of one recipe on a folder of data. It writes a checkpoint each epoch, and continues from it after a stop.

python -m models.train RECIPE --data FOLDER [--run runs/RECIPE]

A run is a function of its recipe, its data and its seed: one that was stopped and continued ends with the weights of
one that was not, on the same hardware.

A run can be given more epochs, finished or not: the same command with a larger ``--epochs``. The one cycle of the
learning rate (Smith 2018) is then stretched over all epochs and entered at the epoch that the run has reached. A
finished run of 10 epochs that is given 20 continues in the middle of the longer cycle: its rate rises again before it
falls (a warm restart, Loshchilov & Hutter 2017). One that is given 11 continues near the lowest rate.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.architectures import ARCHITECTURES
from models.commands import command, warn
from models.datasets import VOID, DatasetError, Example
from models.evaluate import torch_predict
from models.metrics import show
from models.options import rate, within
from models.recipes import RECIPES, Recipe, Source
from models.report import of_run, write_report
from models.runs import (
    CHECKPOINT,
    LEAST_TO_HOLD_OUT,
    RECORDED,
    Run,
    build_network,
    held_out_indices,
    require_same,
    split_examples,
)
from models.tasks import TASKS, load_or_exit
from models.tasks.task import TrainingError
from models.trainer import Trainer

_FEW_STEPS = 100  # with fewer, a network that starts from random weights has hardly begun


def train(recipe: Recipe, data: Path, folder: Path, report: Path | None = None) -> Run:
    """Trains ``recipe`` on ``data`` until its last epoch, from the checkpoint in ``folder`` if there is one; then
    writes a report into the folder ``report``, on the files that the epochs were evaluated on.

    Raises ``DatasetError`` for the data, and ``TrainingError`` where recipe, data and checkpoint do not go together.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = TASKS[recipe.task]
    task.check_recipe(recipe)
    categories = task.categories(data, recipe.categories)
    begun = Run.load(folder) if (folder / CHECKPOINT).is_file() else None
    if begun:
        require_same(begun, recipe, categories, folder, more_epochs=True)
    examples, held_out, splits = _checked_examples(recipe, data, categories)
    trainer = Trainer(recipe, categories, examples, device)
    if begun:
        _resume(trainer, begun, splits, data, folder)
    elif (steps := trainer.schedule.total_steps) < _FEW_STEPS:
        warn(f"{len(examples)} files make {steps} steps in all, which is few: state more --epochs or less --batch-size")
    run = trainer.run(splits, data.resolve())
    evaluated, split = (held_out, "val") if held_out else (examples, "train")
    while trainer.epochs_done < recipe.epochs:
        trainer.epoch()
        served = trainer.run(splits).served().to(device)
        run = trainer.run(splits, data.resolve())  # after served(), which draws weights from torch's generator
        run.save(folder)
        metrics = task.evaluate(torch_predict(served, device), evaluated, len(categories), split).metrics
        run.history[-1] |= {metric.name: metric.value for metric in metrics}
        run.save(folder)
        loss = f"training loss {run.history[-1]['training loss']:.3f}"
        print(f"epoch {run.epochs_done}/{recipe.epochs}: {loss}, {show(metrics)}; {_time_left(run)}", flush=True)
    if report:
        write_report(of_run(run), torch_predict(run.served().to(device), device), evaluated, split, report)
    return run


def _checked_examples(
    recipe: Recipe, data: Path, categories: tuple[str, ...]
) -> tuple[list[Example], list[Example], dict[str, int]]:
    """Examples to learn from, held-out examples, and the number of files in each split.

    Warns of data that may train silently wrong. Raises ``DatasetError``, and ``TrainingError`` for a network that does
    not suit the data, before anything is decoded.
    """
    task = TASKS[recipe.task]
    for message in task.check_data(data, categories):
        warn(message)
    files = len(task.files(data / "train", categories))
    _require_fit(recipe, len(categories), files if (data / "val").is_dir() else files - len(held_out_indices(files)))
    examples, held_out = split_examples(data, recipe, categories)
    if missing := task.missing_categories(examples, categories):
        warn(f"no file of {data}/train shows {', '.join(map(repr, missing))}: no model can learn it from this data")
    if not held_out:
        warn(
            f"{data} has no val, and train holds {files} files, too few to hold any out ({LEAST_TO_HOLD_OUT}): "
            "each epoch is evaluated on its training files, and scores will not be calibrated"
        )
    splits = {"train": len(examples)} | ({"val": len(held_out)} if held_out else {})
    if (data / "test").is_dir():
        splits["test"] = len(task.files(data / "test", categories))
    return examples, held_out, splits


def _resume(trainer: Trainer, begun: Run, splits: dict[str, int], data: Path, folder: Path) -> None:
    if begun.splits["train"] != splits["train"]:
        raise TrainingError(
            f"{folder} was begun with {begun.splits['train']} files in {data}/train, which now holds "
            f"{splits['train']}; begin another run (--run)"
        )
    trainer.resume(begun)
    epochs = trainer.recipe.epochs
    done = "is complete" if trainer.epochs_done >= epochs else "continues"
    longer = "" if epochs == begun.recipe.epochs else f", begun with {begun.recipe.epochs}"
    print(f"{folder} {done} after epoch {trainer.epochs_done} of {epochs}{longer}")


def _require_fit(recipe: Recipe, categories: int, files: int) -> None:
    """Raises ``TrainingError`` for a network that does not suit the task.

    The network runs on the smallest batch that will come, on torch's meta device, which computes shapes only.
    """
    task = TASKS[recipe.task]
    batch = (files % recipe.batch_size or recipe.batch_size, *task.training_shape(recipe))
    try:
        with torch.device("meta"), torch.no_grad():
            served = task.wrap(build_network(recipe, categories), recipe)
            logits = served.network(served.prepare(torch.empty(*batch)))
        problem = task.fits(served.network, tuple(logits.shape), batch, categories)
    except (RuntimeError, ValueError, TypeError) as error:
        problem = str(error)
    if problem:
        raise TrainingError(
            f"the network {recipe.architecture!r} cannot be trained to {recipe.task} on batches of {batch}: {problem}"
        )


def _time_left(run: Run) -> str:
    seconds = run.seconds / run.epochs_done * (run.recipe.epochs - run.epochs_done)
    return f"about {seconds / 60:.0f} minutes left" if seconds else "done"


def adapted(recipe: Recipe, data: Path, arguments: argparse.Namespace) -> Recipe:
    """The recipe for this data and these options. One's own data does not take the name of the bundled data set."""
    task = TASKS[recipe.task]
    changed: dict[str, Any] = {field: value for field in RECORDED if (value := getattr(arguments, field)) is not None}
    name = data.name if data.name not in ("", "..") else data.resolve().name
    own = name != recipe.source.folder
    if own:
        source = Source(name, name, "a folder of one's own", "not stated")
        changed |= {"source": source, "categories": None, "flips_motion": False}
        changed.setdefault("views", 1)
    if "architecture" in changed and changed["architecture"] != recipe.architecture:
        changed["options"] = {}
    if arguments.size is not None:
        changed["preprocess"] = task.resized(arguments.size)
    return replace(recipe, **changed, **task.adapted(recipe, data, own))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a model. The same command continues after a stop; with a larger --epochs, it continues a "
        "finished run."
    )
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument(
        "--data", type=Path, required=True, help="the data set's folder, holding train/ and perhaps val/ and test/"
    )
    parser.add_argument("--run", type=Path, help="the checkpoint's folder (default: runs/RECIPE)")
    parser.add_argument(
        "--epochs",
        type=within(1, 100_000),
        help="passes over the data; a larger number than a run was begun with stretches its learning rate cycle over "
        "all epochs and enters it at the epoch that was reached",
    )
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
        "--ignore-index",
        type=within(0, VOID),
        help=f"segment: the mask value that means void, kept with the run (default: {VOID})",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    load_or_exit()
    arguments = _parser().parse_args(argv)
    folder = arguments.run or Path("runs") / arguments.recipe
    try:
        recipe = adapted(RECIPES[arguments.recipe], arguments.data, arguments)
        run = train(recipe, arguments.data, folder, report=folder / "report")
    except DatasetError as error:
        raise SystemExit(f"the data cannot be used: {error}") from error
    except TrainingError as error:
        raise SystemExit(f"cannot train: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit(f"\nstopped; the same command continues after the last whole epoch in {folder}") from stop
    hours = run.seconds / 3600
    print(f"trained {run.recipe.name}: {run.epochs_done} epochs in {hours:.2f} hours, in {folder}; see {folder}/report")
    print(f"next: {command('models.evaluate', folder)}")
    print(f"      {command('models.export', folder, '--repository', 'FOLDER')}")


if __name__ == "__main__":
    main()
