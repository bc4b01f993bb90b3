"""Metrics of classification, segmentation and calibration, from arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.datasets import DatasetError
from service.repository.card import Metric

CALIBRATION_ERROR = "expected calibration error"
SHARES = ("accuracy", "mIoU", "pixel accuracy")  # metrics that are shares of correct answers


def classification_metrics(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer], split: str
) -> list[Metric]:
    """(n, C), (n,) -> accuracy, negative log likelihood of the truth, and expected calibration error."""
    correct = probabilities.argmax(axis=1) == targets
    likelihood = probabilities[np.arange(len(targets)), targets].clip(1e-12)
    values = {
        "accuracy": float(correct.mean()),
        "negative log likelihood": abs(float(np.log(likelihood).mean())),  # never -0.0
        CALIBRATION_ERROR: expected_calibration_error(probabilities.max(axis=1), correct),
    }
    return [
        Metric(name=name, value=round(value, 4), samples=len(targets), split=split) for name, value in values.items()
    ]


def intersection_over_union(confusion: NDArray[np.int64], pictures: int, split: str) -> list[Metric]:
    """Pixel counts (C, C) of a whole split, truth by row -> mean intersection over union, and pixel accuracy.

    A category that neither truth nor answer holds has no part in the mean. Raises ``DatasetError`` where all is void.
    """
    if not confusion.any():
        raise DatasetError(f"the masks of {split} are void everywhere; there is nothing to compare with")
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    present = union > 0
    values = {
        "mIoU": float((hits[present] / union[present]).mean()),
        "pixel accuracy": float(hits.sum() / confusion.sum()),
    }
    return [Metric(name=name, value=round(value, 4), samples=pictures, split=split) for name, value in values.items()]


def expected_calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """(n,) in 0 to 1, (n,) -> the mean over answers of |mean confidence - share correct| of the answer's bin.

    Bins have equal width (Guo et al. 2017, section 2). Raises ``ValueError`` where there is no answer.
    """
    if not len(confidence):
        raise ValueError("there is no answer whose confidence could be compared")
    index = bin_index(confidence, bins)
    gaps = np.bincount(index, weights=np.asarray(confidence, np.float64) - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def bin_index(confidence: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    """(n,) in 0 to 1 -> each value's bin of ``bins`` of equal width."""
    return np.clip((np.asarray(confidence) * bins).astype(np.int64), 0, bins - 1)


def show(metrics: Sequence[Metric]) -> str:
    return ", ".join(f"{metric.name} {metric.value:.4f} on {metric.samples} of {metric.split}" for metric in metrics)
