"""A training run on disk: a folder with a checkpoint, to go on from, to evaluate and to export."""

import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.architectures import ARCHITECTURES
from models.datasets import VOID, DatasetError, Example, category_folders, load_labelled, load_masked, read_categories
from models.graph import SERVED, Served, ServedClassifier
from models.recipes import RECIPES, Recipe, Source
from service.repository.card import ImagePreprocess, Preprocess, Task

CHECKPOINT = "checkpoint.pt"
_HELD_OUT = 1000  # files are enough to calibrate on
_SPARED = 100  # files; of fewer, each is needed to learn from
# fields of a recipe that options change
RECORDED = ("architecture", "epochs", "batch_size", "peak_rate", "seed", "views")


class TrainingError(Exception):
    """Options that do not suit the task, the data or the run that is to be gone on with; the message says which."""


@dataclass
class Run:
    """What a checkpoint holds. ``averaged`` are the weights that count; ``state`` is what training needs to go on."""

    recipe: Recipe
    categories: tuple[str, ...]
    epochs_done: int
    seconds: float
    averaged: dict[str, torch.Tensor]
    state: dict[str, Any]
    splits: dict[str, int]
    history: list[dict[str, float]] = field(default_factory=list)  # of each epoch: figure by name
    hardware: str = ""  # of the last epoch; older checkpoints do not say

    def served(self) -> Served:
        """The model with the averaged weights, between samples and outputs, in evaluation mode."""
        served = SERVED[self.recipe.task](build_network(self.recipe, len(self.categories)))
        if isinstance(served, ServedClassifier):
            served.views = self.recipe.views
        served.network.load_state_dict(self.averaged)
        return served.eval()

    def save(self, folder: Path) -> None:
        """Written beside its place, then renamed: a stop at any moment leaves a whole checkpoint."""
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
            },
            part,
        )
        part.rename(folder / CHECKPOINT)

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Raises ``FileNotFoundError`` where there is no checkpoint. Only tensors and plain values are unpickled."""
        if not (folder / CHECKPOINT).is_file():
            raise FileNotFoundError(f"{folder} holds no {CHECKPOINT}; expected the folder that training named")
        held = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
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
        return cls(recipe=recipe, **{name: held[name] for name in kept}, **later)


def split_examples(
    data: Path,
    task: Task,
    categories: tuple[str, ...],
    preprocess: Preprocess,
    ignore_index: int = VOID,
) -> tuple[list[Example], list[Example]]:
    """What is learnt from, and what watches and calibrates it: train and val. Where there is no val, a fiftieth to a
    tenth of train is kept from learning instead, about a thousand files; nothing of fewer than a hundred."""
    examples = load_examples(data, "train", task, categories, preprocess, ignore_index)
    if (data / "val").is_dir():
        return examples, held_out_examples(data, task, categories, preprocess, ignore_index)
    if len(examples) < _SPARED:
        return examples, []
    every = min(50, max(10, len(examples) // _HELD_OUT))
    kept = [example for index, example in enumerate(examples) if index % every != every // 2]
    return kept, examples[every // 2 :: every]


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"


def categories_of(recipe: Recipe, data: Path) -> tuple[str, ...]:
    """The recipe's own order of the categories if ``data`` holds no others, else those of its folders."""
    if recipe.task == "segment":
        return read_categories(data)
    found = category_folders(data / "train")
    if len(found) < 2:
        raise DatasetError(f"{data}/train holds one category, {found[0]!r}; there is nothing to tell it from")
    return recipe.categories if recipe.categories and set(found) <= set(recipe.categories) else found


def require_same(begun: Run, recipe: Recipe, categories: tuple[str, ...], folder: Path) -> None:
    """A run goes on as it was begun: its schedule, its network and its data are laid out for that."""
    fields = ("name", *RECORDED, "options", "preprocess", "source")
    before = {name: getattr(begun.recipe, name) for name in fields} | {"categories": begun.categories}
    now = {name: getattr(recipe, name) for name in fields} | {"categories": categories}
    for name in before:
        if before[name] != now[name]:
            raise TrainingError(
                f"{folder} was begun with {name} {_plain(before[name])}, now it is {_plain(now[name])}; "
                "state what it was begun with to go on, or begin another run (--run)"
            )


def _plain(value: Any) -> str:
    return value.name if isinstance(value, Source) else repr(value)


def held_out_examples(
    data: Path, task: Task, categories: tuple[str, ...], preprocess: Preprocess, ignore_index: int = VOID
) -> list[Example]:
    """The second half of ``split_examples`` alone: where there is a val, train need not be read for it."""
    if (data / "val").is_dir():
        return load_examples(data, "val", task, categories, preprocess, ignore_index)
    return split_examples(data, task, categories, preprocess, ignore_index)[1]


def build_network(recipe: Recipe, num_categories: int) -> nn.Module:
    return ARCHITECTURES[recipe.architecture](num_classes=num_categories, **recipe.options)


def load_examples(
    data: Path,
    split: str,
    task: Task,
    categories: tuple[str, ...],
    preprocess: Preprocess,
    ignore_index: int = VOID,
) -> list[Example]:
    """One split of ``data``, whose categories must be ``categories``."""
    if task == "segment":
        assert isinstance(preprocess, ImagePreprocess)
        if (found := read_categories(data)) != categories:
            raise DatasetError(f"{data}/categories.txt names {list(found)}; the model's are {list(categories)}")
        return load_masked(data / split, categories, preprocess, ignore_index)
    return load_labelled(data / split, categories, preprocess)
