"""Training of ``segment``: pictures with masks."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models import augment, figures
from models.architectures.fcn import Segmenter
from models.datasets import VOID, DatasetError, Example, evaluated_splits, some_names
from models.figures import Scene
from models.graph import Served, ServedSegmenter
from models.masks import (
    load_masked,
    mask_confusion,
    masked_files,
    masks_without_picture,
    placed_mask,
    read_categories,
)
from models.metrics import CALIBRATION_ERROR, expected_calibration_error, intersection_over_union
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
from service.repository.card import Colour, Metric, TensorSpec
from service.tasks import segment

_CALIBRATION_PIXELS = 2000  # of each picture, at random: neighbours say the same
_SCENES = 4  # pictures with their masks in a report


class PixelAnswers(NamedTuple):
    """Each picture's known pixels, as the network sees them: confidence and correctness, (n,) each."""

    confidences: list[NDArray[np.float32]]
    corrects: list[NDArray[np.bool_]]


class SegmentTraining(TrainingTask):
    serving = segment.SEGMENT
    served = ServedSegmenter
    unit = "pixels"
    input_name = "images"
    input_layout = "NHWC"
    free_axes = {1: "H", 2: "W"}
    memory_format = torch.channels_last  # a sixth to a quarter faster, on the CPU too

    # Data

    def categories(self, data: Path, known: tuple[str, ...] | None) -> tuple[str, ...]:
        return read_categories(data)

    def files(self, split: Path, categories: Sequence[str]) -> list[Path]:
        return masked_files(split)

    def load(
        self, data: Path, split: str, categories: tuple[str, ...], preprocess: Any, ignore_index: int = VOID
    ) -> list[Example]:
        if (found := read_categories(data)) != categories:
            raise DatasetError(f"{data}/categories.txt names {list(found)}; the model's are {list(categories)}")
        return load_masked(data / split, categories, preprocess, ignore_index)

    def check_data(self, data: Path, categories: tuple[str, ...]) -> list[str]:
        warnings = []
        for split in dict.fromkeys(("train", "val", *evaluated_splits(data))):
            if (data / split).is_dir():
                masked_files(data / split)
                if alone := masks_without_picture(data / split):
                    warnings.append(
                        f"{data}/{split}/masks holds {len(alone)} masks without a picture, which are not read: "
                        f"{some_names(alone)}"
                    )
        return warnings

    def missing_categories(self, examples: Sequence[Example], categories: tuple[str, ...]) -> list[str]:
        counts = _pixel_counts(examples, len(categories))
        return [category for category, count in zip(categories, counts, strict=True) if not count]

    def adapted(self, recipe: Recipe, data: Path, own: bool) -> dict[str, Any]:
        count = len(read_categories(data))
        return {"palette": spread_colours(count)} if own or count != len(recipe.palette or ()) else {}

    # Network

    def training_shape(self, recipe: Recipe) -> tuple[int, ...]:
        assert recipe.crop is not None
        return (*recipe.crop, 3)

    def fits(self, network: nn.Module, logits: tuple[int, ...], batch: tuple[int, ...], categories: int) -> str:
        expected = (batch[0], categories, *batch[1:3])
        if logits != expected or not isinstance(network, Segmenter):
            return f"it answers {logits} where {expected} belongs"
        return ""

    # Training step

    def batch(
        self, chosen: Sequence[Example], recipe: Recipe, categories: tuple[str, ...], randomness: Randomness
    ) -> tuple[Tensor, Tensor]:
        """Random crops (N, H, W, 3) of pictures of any shapes, and their masks (N, H, W)."""
        assert recipe.crop is not None
        crops = []
        for group in _by_shape(chosen):
            pictures = randomness.tensor(np.stack([example.samples[0] for example in group]))
            size = (pictures.shape[1], pictures.shape[2])
            masks = randomness.tensor(np.stack([placed_mask(example, size) for example in group]))
            crops.append(augment.scale_and_crop(pictures, masks, recipe.crop, randomness.torch))
        return torch.cat([pictures for pictures, _ in crops]), torch.cat([masks for _, masks in crops])

    def category_weights(self, examples: Sequence[Example], categories: int, recipe: Recipe) -> Tensor | None:
        """1 / ln(c + share of the pixels), which raises rare categories, the less the larger c = ``weighting_constant``
        (Paszke et al. 2016, "ENet", section 5.2). The mean over pixels is 1."""
        if recipe.weighting_constant is None:
            return None
        counts = _pixel_counts(examples, categories)
        shares = counts / max(counts.sum(), 1)
        weights = 1 / np.log(recipe.weighting_constant + shares)
        return torch.tensor(weights / max((weights * shares).sum(), 1e-12), dtype=torch.float32)

    def loss(
        self, network: nn.Module, inputs: Tensor, targets: Tensor, recipe: Recipe, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(network, Segmenter)
        logits, auxiliary = (head.float() for head in network.forward_with_auxiliary(inputs))
        if not (targets != VOID).any():  # nothing to learn; the mean over no pixel would be NaN
            return 0.0 * (logits.sum() + auxiliary.sum()), logits
        main, second = (F.cross_entropy(head, targets, weights, ignore_index=VOID) for head in (logits, auxiliary))
        return main + recipe.auxiliary_weight * second, logits

    def share_correct(self, logits: Tensor, targets: Tensor) -> float:
        """The share of the pixels that are not void."""
        correct = (logits.detach().argmax(dim=1) == targets)[targets != VOID]
        return float(correct.float().mean().nan_to_num())

    # Evaluation, calibration and report

    def evaluate(
        self, predict: Predict, examples: Sequence[Example], categories: int, split: str, batch_size: int = 64
    ) -> Evaluation:
        """Confusion is counted over the masks at their own size, calibration over the pixels that the network sees."""
        confusion = np.zeros((categories, categories), np.int64)
        answers = PixelAnswers([], [])
        for example in progress(examples, "evaluate", "picture", leave=False):
            mask, confidence = predict(example.samples)[0]
            confusion += mask_confusion(mask, example, categories)
            truth = placed_mask(example, (mask.shape[0], mask.shape[1]))
            answers.confidences.append(np.asarray(confidence[truth != VOID], np.float32))
            answers.corrects.append(mask[truth != VOID] == truth[truth != VOID])
        metrics = intersection_over_union(confusion, len(examples), split)
        confidences: NDArray[np.float32] = np.concatenate(answers.confidences)
        correct = np.concatenate(answers.corrects)
        error = round(expected_calibration_error(confidences, correct), 4)
        metrics.append(Metric(name=CALIBRATION_ERROR, value=error, samples=len(examples), split=split))
        return Evaluation(metrics, confusion, confidences, correct, answers)

    def calibration_logits(
        self, served: Served, examples: Sequence[Example], device: torch.device
    ) -> CalibrationLogits:
        """Some pixels of each picture, each an answer of its own."""
        random = np.random.default_rng(0)
        logits, targets = [], []
        for example in examples:
            sample = example.samples[0]
            mask = placed_mask(example, (sample.shape[0], sample.shape[1])).ravel()
            chosen = torch.as_tensor(random.permutation(np.flatnonzero(mask != VOID))[:_CALIBRATION_PIXELS])
            logits.append(logits_of(served, [sample], device)[0].flatten(1).T[chosen])
            targets.append(torch.as_tensor(mask)[chosen].long())
        each = torch.arange(sum(map(len, targets)))
        return CalibrationLogits(torch.cat(logits), torch.ones(len(each)), each, torch.cat(targets))

    def sample_figure(
        self,
        predict: Predict,
        examples: Sequence[Example],
        evaluation: Evaluation,
        categories: tuple[str, ...],
        preprocess: Any,
        palette: tuple[Colour, ...] | None,
    ) -> SampleFigure:
        """Pictures from the best answer to the worst, in even steps."""
        answers: PixelAnswers = evaluation.answers
        shares = np.array([correct.mean() if len(correct) else np.nan for correct in answers.corrects])
        best_first = np.argsort(-shares)[: np.isfinite(shares).sum()]
        chosen = best_first[np.linspace(0, len(best_first) - 1, min(_SCENES, len(best_first))).round().astype(int)]
        scenes = [_scene(predict, examples[index], float(shares[index])) for index in chosen]
        note = "from the best answer to the worst, in even steps"
        return SampleFigure(figures.scenes, note, (scenes, categories, palette, VOID))

    # Export

    def output_specs(self, categories: int) -> tuple[TensorSpec, ...]:
        mask, confidence = self.serving.outputs
        return (
            TensorSpec(name=mask, dtype="uint8", layout="NHW", shape=("N", "H", "W")),
            TensorSpec(name=confidence, dtype="float32", layout="NHW", shape=("N", "H", "W")),
        )


def _pixel_counts(examples: Sequence[Example], categories: int) -> NDArray[np.float64]:
    """(C,) pixels of each category in the masks."""
    counts = np.zeros(categories)
    for example in examples:
        counts += np.bincount(np.asarray(example.target).ravel(), minlength=VOID + 1)[:categories]
    return counts


def _by_shape(examples: Sequence[Example]) -> list[list[Example]]:
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.samples[0].shape, []).append(example)
    return list(groups.values())


def _scene(predict: Predict, example: Example, share_correct: float) -> Scene:
    """A picture as the network sees it, its truth and its answer, without the padding."""
    assert example.region is not None
    sample = np.asarray(example.samples[0])
    top, left, height, width = example.region
    truth, answer = placed_mask(example, sample.shape[:2]), predict([sample])[0][0]
    picture, truth, answer = (
        np.asarray(whole[top : top + height, left : left + width], np.uint8) for whole in (sample, truth, answer)
    )
    return Scene(picture, truth, answer, share_correct)


def spread_colours(count: int) -> tuple[Colour, ...]:
    """Colours that differ from their neighbours: hues a golden angle apart."""
    hues = [index * 0.618 % 1 for index in range(count)]
    channels = [colorsys.hsv_to_rgb(hue, 0.75, 0.85) for hue in hues]
    return tuple((round(red * 255), round(green * 255), round(blue * 255)) for red, green, blue in channels)


SEGMENT = SegmentTraining()
