"""Base of tasks whose files have one category each: a folder for each category, cross-entropy, accuracy."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models import figures
from models.datasets import (
    VOID,
    DatasetError,
    Example,
    category_folders,
    evaluated_splits,
    files_of,
    labelled_files,
    load_labelled,
    some_names,
)
from models.figures import Group, Picture, Tile
from models.graph import Served
from models.metrics import classification_metrics
from models.progress import progress
from models.recipes import Recipe
from models.tasks.task import (
    CalibrationLogits,
    Evaluation,
    Predict,
    Randomness,
    SampleFigure,
    TrainingTask,
    logits_of,
)
from service.repository.card import Colour

_CALIBRATION_BATCH = 64
_ROWS = 2  # of samples in a report, wrong and correct ones each


class LabelledTask(TrainingTask):
    """A task that tells the category of a whole file. Its windows' probabilities are averaged by their weights."""

    unit: ClassVar[str] = "files"

    # What such a task states

    def augment(
        self,
        samples: Tensor,
        targets: Tensor,
        recipe: Recipe,
        categories: tuple[str, ...],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Samples (N, …), targets (N,) -> the same, augmented; targets may become shares of categories (N, C)."""
        return samples, targets

    @abstractmethod
    def picture(self, sample: NDArray[Any], preprocess: Any) -> Picture:
        """A sample as a picture (H, W, 3) uint8, for the report."""

    @abstractmethod
    def picture_note(self, preprocess: Any) -> str:
        """A few words on what such a picture shows."""

    # Data

    def categories(self, data: Path, known: tuple[str, ...] | None) -> tuple[str, ...]:
        found = category_folders(data / "train")
        if len(found) < 2:
            raise DatasetError(f"{data}/train holds one category, {found[0]!r}; there is nothing to tell it from")
        return known if known and set(found) <= set(known) else found

    def files(self, split: Path, categories: Sequence[str]) -> list[Path]:
        return [path for path, _ in labelled_files(split, categories)]

    def load(
        self, data: Path, split: str, categories: tuple[str, ...], preprocess: Any, ignore_index: int = VOID
    ) -> list[Example]:
        return load_labelled(data / split, categories, preprocess, self.serving)

    def check_data(self, data: Path, categories: tuple[str, ...]) -> list[str]:
        learnt = category_folders(data / "train")
        warnings = []
        for split in dict.fromkeys(("train", "val", *evaluated_splits(data))):
            if not (data / split).is_dir():
                continue
            if foreign := sorted(set(category_folders(data / split)) - set(learnt)):
                raise DatasetError(
                    f"{data}/{split} holds {foreign}, which {data}/train lacks: "
                    "no model could learn it; add files to train, or remove it"
                )
            labelled_files(data / split, categories)
            if beside := files_of(data / split):
                warnings.append(
                    f"{data}/{split} holds {len(beside)} files beside its category folders, which are not read: "
                    f"{some_names(beside)}"
                )
        if empty := [name for name in learnt if not files_of(data / "train" / name)]:
            raise DatasetError(f"{data}/train/{empty[0]} is empty: add files to it, or remove it")
        return warnings

    def missing_categories(self, examples: Sequence[Example], categories: tuple[str, ...]) -> list[str]:
        shown = {int(np.asarray(example.target)) for example in examples}
        return [category for index, category in enumerate(categories) if index not in shown]

    # Training step

    def batch(
        self, chosen: Sequence[Example], recipe: Recipe, categories: tuple[str, ...], randomness: Randomness
    ) -> tuple[Tensor, Tensor]:
        samples = randomness.tensor(np.stack([random_window(example, randomness.numpy) for example in chosen]))
        targets = randomness.tensor(np.array([example.target for example in chosen]))
        return self.augment(samples, targets, recipe, categories, randomness.torch)

    def loss(
        self, network: nn.Module, inputs: Tensor, targets: Tensor, recipe: Recipe, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits: Tensor = network(inputs)
        loss = F.cross_entropy(logits.float(), targets, weights, label_smoothing=recipe.label_smoothing)
        return loss, logits

    def share_correct(self, logits: Tensor, targets: Tensor) -> float:
        if targets.is_floating_point():  # shares of the categories that were mixed: the largest is the truth
            targets = targets.argmax(dim=1)
        return float((logits.detach().argmax(dim=1) == targets).float().mean())

    # Evaluation, calibration and report

    def evaluate(
        self, predict: Predict, examples: Sequence[Example], categories: int, split: str, batch_size: int = 64
    ) -> Evaluation:
        probabilities = file_probabilities(predict, examples, batch_size)
        targets = targets_of(examples)
        answers = probabilities.argmax(axis=1)
        confusion = np.bincount(targets * categories + answers, minlength=categories**2)
        return Evaluation(
            metrics=classification_metrics(probabilities, targets, split),
            confusion=confusion.reshape(categories, categories),
            confidence=probabilities.max(axis=1),
            correct=answers == targets,
            answers=answers,
        )

    def calibration_logits(
        self, served: Served, examples: Sequence[Example], device: torch.device
    ) -> CalibrationLogits:
        samples = [sample for example in examples for sample in example.samples]
        starts = range(0, len(samples), _CALIBRATION_BATCH)
        logits = [logits_of(served, samples[start : start + _CALIBRATION_BATCH], device) for start in starts]
        weights = [torch.as_tensor(example.weights / example.weights.sum()) for example in examples]
        counts = torch.tensor([len(example.samples) for example in examples])
        owners = torch.repeat_interleave(torch.arange(len(examples)), counts)
        return CalibrationLogits(
            torch.cat(logits), torch.cat(weights).float(), owners, torch.from_numpy(targets_of(examples))
        )

    def sample_figure(
        self,
        predict: Predict,
        examples: Sequence[Example],
        evaluation: Evaluation,
        categories: tuple[str, ...],
        preprocess: Any,
        palette: tuple[Colour, ...] | None,
    ) -> SampleFigure:
        """The wrong answers of the highest confidence, and a random choice of the correct ones."""
        targets, answers, confidence = targets_of(examples), evaluation.answers, evaluation.confidence
        wrong, correct = np.flatnonzero(~evaluation.correct), np.flatnonzero(evaluation.correct)
        most = _ROWS * figures.tile_columns(self._picture_of(examples[0], preprocess))
        worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
        drawn = np.random.default_rng(0).permutation(correct)[:most]

        def tile(index: int) -> Tile:
            picture = self._picture_of(examples[index], preprocess)
            return Tile(picture, categories[answers[index]], float(confidence[index]), categories[targets[index]])

        of_wrong = f"{len(worst)} of {len(wrong):,}, highest confidence first" if len(wrong) else "none"
        of_correct = f"{len(drawn)} of {len(correct):,}, at random" if len(correct) else "none"
        groups = [
            Group(f"wrong: {of_wrong}", False, [tile(index) for index in worst]),
            Group(f"correct: {of_correct}", True, [tile(index) for index in drawn]),
        ]
        return SampleFigure(figures.tiles, self.picture_note(preprocess), (groups,))

    def _picture_of(self, example: Example, preprocess: Any) -> Picture:
        """The window that counts most."""
        return self.picture(np.asarray(example.samples[int(np.argmax(example.weights))]), preprocess)


def targets_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([example.target for example in examples], np.int64)


def random_window(example: Example, random: np.random.Generator) -> NDArray[np.generic]:
    """A window of the file, drawn as often as it counts in the answer."""
    weights = example.weights / example.weights.sum()
    return example.samples[random.choice(len(weights), p=weights) if len(weights) > 1 else 0]


def file_probabilities(predict: Predict, examples: Sequence[Example], batch_size: int = 64) -> NDArray[np.float64]:
    """(examples, C): the mean over each file's windows, by their weights."""
    samples = [sample for example in examples for sample in example.samples]
    rows: list[NDArray[np.generic]] = []
    for start in progress(range(0, len(samples), batch_size), "evaluate", "batch", leave=False):
        rows += [outputs[0] for outputs in predict(samples[start : start + batch_size])]
    wholes, at = [], 0
    for example in examples:
        windows = rows[at : at + len(example.samples)]
        wholes.append(np.average(np.stack(windows), axis=0, weights=example.weights))
        at += len(example.samples)
    return np.stack(wholes)
