"""Training runs on disk: a folder with a checkpoint, which training continues, and evaluation and export read."""

import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.architectures import ARCHITECTURES
from models.datasets import Example
from models.graph import Served
from models.recipes import RECIPES, Recipe, Source
from models.tasks import TASKS
from models.tasks.task import TrainingError

CHECKPOINT = "checkpoint.pt"
# Fields of a recipe that options of the command change.
RECORDED = ("architecture", "epochs", "batch_size", "peak_rate", "seed", "views", "ignore_index")
LEAST_TO_HOLD_OUT = 100  # files; of fewer, each is needed to learn from
_HELD_OUT = 1000  # files are enough to calibrate on


@dataclass
class Run:
    """Content of a checkpoint. ``averaged`` are the weights in use; ``state`` is what training continues from."""

    recipe: Recipe
    categories: tuple[str, ...]
    epochs_done: int
    seconds: float
    averaged: dict[str, torch.Tensor]
    state: dict[str, Any]
    splits: dict[str, int]
    history: list[dict[str, float]] = field(default_factory=list)  # of each epoch: figure by name
    hardware: str = ""  # of the last epoch; older checkpoints do not say
    data: Path | None = None  # the data folder, absolute; older checkpoints do not say

    def served(self) -> Served:
        """The graph with the averaged weights, in evaluation mode."""
        network = build_network(self.recipe, len(self.categories))
        network.load_state_dict(self.averaged)
        return TASKS[self.recipe.task].wrap(network, self.recipe).eval()

    def save(self, folder: Path) -> None:
        """Writes a file beside the checkpoint, then renames it: a stop at any moment leaves a whole checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{CHECKPOINT}.part"
        changed = {name: getattr(self.recipe, name) for name in RECORDED}
        torch.save(
            {
                "recipe": self.recipe.name,
                "changed": changed,
                "options": dict(self.recipe.options),
                "preprocess": self.recipe.preprocess.model_dump(),
                "source": vars(self.recipe.source),
                "palette": self.recipe.palette,
                "categories": self.categories,
                "epochs_done": self.epochs_done,
                "seconds": self.seconds,
                "averaged": self.averaged,
                "state": self.state,
                "splits": self.splits,
                "history": self.history,
                "hardware": self.hardware,
                "data": None if self.data is None else str(self.data),
            },
            part,
        )
        part.rename(folder / CHECKPOINT)

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Raises ``FileNotFoundError`` where there is no checkpoint, ``TrainingError`` where its recipe is unknown.

        Only tensors and plain values are unpickled.
        """
        if not (folder / CHECKPOINT).is_file():
            raise FileNotFoundError(f"{folder} holds no {CHECKPOINT}; expected the folder that training named")
        held = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        if held["recipe"] not in RECIPES:
            raise TrainingError(
                f"{folder} was made by the recipe {held['recipe']!r}, which is unknown; "
                "CONVSERVE_TASKS names a task of one's own"
            )
        recipe = RECIPES[held["recipe"]]
        recipe = replace(
            recipe,
            **held["changed"],
            options=held["options"],
            preprocess=type(recipe.preprocess).model_validate(held["preprocess"]),
            source=Source(**held["source"]),
            palette=held["palette"],
        )
        kept = ("categories", "epochs_done", "seconds", "averaged", "state", "splits")
        later = {"history": held.get("history", []), "hardware": held.get("hardware", "")}
        data = Path(held["data"]) if held.get("data") else None
        return cls(recipe=recipe, data=data, **{name: held[name] for name in kept}, **later)


def split_examples(data: Path, recipe: Recipe, categories: tuple[str, ...]) -> tuple[list[Example], list[Example]]:
    """The examples to learn from, and those held out to watch the progress and to calibrate: train and val.

    Where there is no val, a fiftieth to a tenth of train is held out instead, about a thousand files; none where train
    has fewer than a hundred.
    """
    task = TASKS[recipe.task]
    examples = task.load(data, "train", categories, recipe.preprocess, recipe.ignore_index)
    if (data / "val").is_dir():
        return examples, task.load(data, "val", categories, recipe.preprocess, recipe.ignore_index)
    held_out = set(held_out_indices(len(examples)))
    learnt = [example for index, example in enumerate(examples) if index not in held_out]
    return learnt, [examples[index] for index in sorted(held_out)]


def held_out_indices(files: int) -> range:
    """Indices of the files of train that are held out where there is no val."""
    if files < LEAST_TO_HOLD_OUT:
        return range(0)
    every = min(50, max(10, files // _HELD_OUT))
    return range(every // 2, files, every)


def held_out_examples(data: Path, recipe: Recipe, categories: tuple[str, ...]) -> list[Example]:
    """The second half of ``split_examples``. Where there is a val, train is not read for it."""
    if (data / "val").is_dir():
        return TASKS[recipe.task].load(data, "val", categories, recipe.preprocess, recipe.ignore_index)
    return split_examples(data, recipe, categories)[1]


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"


def require_same(
    begun: Run, recipe: Recipe, categories: tuple[str, ...], folder: Path, *, more_epochs: bool = False
) -> None:
    """Raises ``TrainingError`` unless a run can be continued by ``recipe``: its network, its data and its schedule are
    those that it was begun with. With ``more_epochs`` the schedule may be longer."""
    fields = ("name", *RECORDED, "options", "preprocess", "source")
    before = {name: getattr(begun.recipe, name) for name in fields} | {"categories": begun.categories}
    now = {name: getattr(recipe, name) for name in fields} | {"categories": categories}
    for name in before:
        if before[name] == now[name] or (more_epochs and name == "epochs" and now[name] > before[name]):
            continue
        raise TrainingError(
            f"{folder} was begun with {name} {_plain(before[name])}, now it is {_plain(now[name])}; "
            "state what it was begun with to continue it, or begin another run (--run)"
        )


def _plain(value: Any) -> str:
    return value.name if isinstance(value, Source) else repr(value)


def build_network(recipe: Recipe, num_categories: int) -> nn.Module:
    return ARCHITECTURES[recipe.architecture](num_classes=num_categories, **recipe.options)
