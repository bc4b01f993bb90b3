"""Cross-validation of a recipe by groups of files, such as speakers: each group held out once, and the mean.

python -m models.crossvalidate RECIPE --data FOLDER [--by speaker|fold] [--run runs/crossvalidate-RECIPE]

The files of train/ and test/ are joined and grouped by their names; files of no group, such as the background of the
digits, are always trained on. After a stop, the same command continues.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models.datasets import DatasetError, Example
from models.evaluate import torch_predict
from models.options import within
from models.recipes import RECIPES, Recipe
from models.runs import CHECKPOINT, Run, require_same
from models.tasks import TASKS, load_or_exit
from models.tasks.labelled import LabelledTask
from models.tasks.task import TrainingError
from models.trainer import Trainer

GROUPS = {  # the part of a file's name, without its suffix, that names its group
    "speaker": r"\d_(?P<group>[^_]+)_\d+",  # the Free Spoken Digit Dataset's {digit}_{speaker}_{take}
    "fold": r"(?P<group>\d+)-.+",  # ESC-10's {fold}-{recording}-{take}
}
_OF_RECIPE = {"audio": "speaker", "sounds": "fold"}
RESULT = "result.json"


class Fold(NamedTuple):
    group: str
    learnt: list[Example]
    held_out: list[Example]


def crossvalidate(recipe: Recipe, data: Path, by: str, folder: Path, only: Sequence[str] = ()) -> dict[str, float]:
    """Each group's accuracy by a model that was trained on all others; with ``only``, these groups alone.

    Every fold has a run of its own below ``folder``; results so far are in ``folder/result.json``. Raises
    ``DatasetError`` for the data, and ``TrainingError`` where a run there was begun with other options.
    """
    categories = TASKS[recipe.task].categories(data, recipe.categories)
    folds = [fold for fold in read_folds(recipe, categories, data, by) if not only or fold.group in only]
    if missing := set(only) - {fold.group for fold in folds}:
        raise DatasetError(f"{data} holds no {by} {', '.join(sorted(missing))}")
    accuracies: dict[str, float] = {}
    for fold in folds:
        accuracies[fold.group] = _accuracy(recipe, categories, fold, folder / fold.group)
        print(f"{by} {fold.group}: accuracy {accuracies[fold.group]:.4f} on {len(fold.held_out)} files", flush=True)
    result = {"recipe": recipe.name, "by": by, "accuracy": accuracies, "mean": mean(accuracies)}
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    return accuracies


def mean(accuracies: dict[str, float]) -> float:
    return round(float(np.mean(list(accuracies.values()))), 4)


def read_folds(recipe: Recipe, categories: tuple[str, ...], data: Path, by: str) -> list[Fold]:
    """A fold for each group, by name. Raises ``DatasetError`` where there are fewer than two groups."""
    task = TASKS[recipe.task]
    examples: list[tuple[str | None, Example]] = []
    for split in ("train", "test"):
        if (data / split).is_dir():
            names = [path.stem for path in task.files(data / split, categories)]
            loaded = task.load(data, split, categories, recipe.preprocess, recipe.ignore_index)
            examples += zip((_group(name, by) for name in names), loaded, strict=True)
    groups = sorted({group for group, _ in examples if group is not None})
    if len(groups) < 2:
        raise DatasetError(
            f"the names of the files in {data} tell of {len(groups)} groups by {by}; two at least are needed, "
            f"from names like {GROUPS[by]}"
        )
    return [
        Fold(
            held,
            [example for group, example in examples if group != held],
            [example for group, example in examples if group == held],
        )
        for held in groups
    ]


def _group(name: str, by: str) -> str | None:
    found = re.fullmatch(GROUPS[by], name)
    return found["group"] if found else None


def _accuracy(recipe: Recipe, categories: tuple[str, ...], fold: Fold, folder: Path) -> float:
    """Trains or continues the fold's run, or reads the result of a finished one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = {"train": len(fold.learnt), "held out": len(fold.held_out)}
    begun = Run.load(folder) if (folder / CHECKPOINT).is_file() else None
    if begun:
        require_same(begun, recipe, categories, folder)
        if begun.splits != splits:
            raise TrainingError(f"{folder} was begun with {begun.splits} files, now there are {splits}; remove it")
        if (folder / RESULT).is_file():
            return float(json.loads((folder / RESULT).read_text())["accuracy"])
    trainer = Trainer(recipe, categories, fold.learnt, device)
    if begun:
        trainer.resume(begun)
    run = trainer.run(splits)
    while trainer.epochs_done < recipe.epochs:
        trainer.epoch()
        run = trainer.run(splits)
        run.save(folder)
    predict = torch_predict(run.served().to(device), device)
    accuracy, *_ = TASKS[recipe.task].evaluate(predict, fold.held_out, len(categories), fold.group).metrics
    assert accuracy.name == "accuracy"
    (folder / RESULT).write_text(json.dumps({"accuracy": accuracy.value, "files": splits}, indent=2) + "\n")
    return accuracy.value


def main(argv: Sequence[str] | None = None) -> None:
    load_or_exit()
    parser = argparse.ArgumentParser(description="Cross-validate a recipe; after a stop, the same command continues.")
    labelled = sorted(name for name, recipe in RECIPES.items() if isinstance(TASKS[recipe.task], LabelledTask))
    parser.add_argument("recipe", choices=labelled)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder, holding train/ and test/")
    parser.add_argument("--by", choices=GROUPS, help="the group that names state (audio: speaker, sounds: fold)")
    parser.add_argument("--run", type=Path, help="where the runs are kept (default: runs/crossvalidate-RECIPE)")
    parser.add_argument("--only", nargs="+", default=[], help="these speakers or folds alone")
    parser.add_argument("--epochs", type=within(1, 100_000))
    parser.add_argument("--threads", type=within(1, 1024), help="of the CPU (default: all)")
    arguments = parser.parse_args(argv)
    by = arguments.by or _OF_RECIPE.get(arguments.recipe)
    if by is None:
        raise SystemExit(f"cannot cross-validate: state --by {' or --by '.join(GROUPS)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.recipe]
    recipe = replace(recipe, epochs=arguments.epochs or recipe.epochs)
    folder = arguments.run or Path("runs") / f"crossvalidate-{recipe.name}"
    try:
        accuracies = crossvalidate(recipe, arguments.data, by, folder, arguments.only)
    except (DatasetError, TrainingError) as error:
        raise SystemExit(f"cannot cross-validate: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit(f"\nstopped; the same command continues after the last whole epoch in {folder}") from stop
    print(f"mean of {len(accuracies)}: accuracy {mean(accuracies):.4f} ({folder / RESULT})")


if __name__ == "__main__":
    main()
