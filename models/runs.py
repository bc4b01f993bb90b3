"""A training run on disk: a folder with a checkpoint, to go on from, to evaluate and to export."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.architectures import ARCHITECTURES
from models.datasets import VOID, DatasetError, Example, load_labelled, load_masked, read_categories
from models.graph import SERVED, Served
from models.recipes import RECIPES, Recipe, Source
from service.cards import ImagePreprocess, Preprocess, Task

CHECKPOINT = "checkpoint.pt"
RECORDED = ("architecture", "epochs", "batch_size", "peak_rate", "seed")  # fields of a recipe that options change


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

    def served(self) -> Served:
        """The model with the averaged weights, between samples and outputs, in evaluation mode."""
        served = SERVED[self.recipe.task](build_network(self.recipe, len(self.categories)))
        served.network.load_state_dict(self.averaged)
        return served.eval()

    def save(self, folder: Path) -> None:
        """Written beside its place, then renamed: a stop at any moment leaves a whole checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{CHECKPOINT}.part"
        changed = {field: getattr(self.recipe, field) for field in RECORDED}
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
        return cls(recipe=recipe, **{field: held[field] for field in kept})


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
