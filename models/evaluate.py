"""How good a model is, by the same code for the PyTorch model and for the ONNX file.

python -m models.evaluate RUN_OR_MODEL_FOLDER --data FOLDER [--split NAME]

Each file is answered as the service does it: a sound's or a clip's windows weighted, a mask at the picture's own size.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from models.calibrate import expected_calibration_error
from models.datasets import VOID, DatasetError, Example, judged_splits, placed_mask
from models.graph import Served
from models.runs import CHECKPOINT, Run, load_examples
from service.engines.onnxruntime import Engine
from service.errors import ModelRefused
from service.repository.card import Metric, ModelCard, Preprocess, Task
from service.repository.folder import CARD, StoredModel, read_graph

CALIBRATION_ERROR = "expected calibration error"
Outputs = tuple[NDArray[np.generic], ...]
Predict = Callable[[Sequence[NDArray[np.generic]]], list[Outputs]]  # samples of one shape -> each one's outputs


def torch_predict(served: Served, device: torch.device) -> Predict:
    """The PyTorch model as the engine is called: samples in, each sample's outputs out."""

    def predict(samples: Sequence[NDArray[np.generic]]) -> list[Outputs]:
        batch = torch.from_numpy(np.stack(samples)).to(device)
        with torch.inference_mode():
            outputs = served.eval()(batch)
        arrays = [output.cpu().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
        return [tuple(array[row] for array in arrays) for row in range(len(samples))]

    return predict


def evaluate(
    predict: Predict, examples: Sequence[Example], task: Task, categories: int, split: str, batch_size: int = 64
) -> list[Metric]:
    """The metrics of a task on ``examples``, each example answered as the service answers a whole file."""
    if task == "segment":
        return segmentation_metrics(answered_pixels(predict, examples, categories), split)
    probabilities = whole_probabilities(predict, examples, batch_size)
    targets = np.array([example.target for example in examples])
    return classification_metrics(probabilities, targets, split)


def classification_metrics(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer], split: str
) -> list[Metric]:
    """(examples, C), (examples,) -> accuracy, the negative log likelihood of the truth, and the calibration error."""
    hits = probabilities.argmax(axis=1) == targets
    likelihood = probabilities[np.arange(len(targets)), targets].clip(1e-12)
    figures = {
        "accuracy": float(hits.mean()),
        "negative log likelihood": float(-np.log(likelihood).mean()),
        CALIBRATION_ERROR: expected_calibration_error(probabilities.max(axis=1), hits),
    }
    return [
        Metric(name=name, value=round(value, 4), samples=len(targets), split=split) for name, value in figures.items()
    ]


def whole_probabilities(predict: Predict, examples: Sequence[Example], batch_size: int = 64) -> NDArray[np.float64]:
    """(examples, C): each file's windows, weighted as in an answer."""
    samples = [sample for example in examples for sample in example.samples]
    rows: list[NDArray[np.generic]] = []
    for start in tqdm(range(0, len(samples), batch_size), desc="evaluate", unit="batch", leave=False):
        rows += [outputs[0] for outputs in predict(samples[start : start + batch_size])]
    wholes, at = [], 0
    for example in examples:
        windows = rows[at : at + len(example.samples)]
        wholes.append(np.average(np.stack(windows), axis=0, weights=example.weights))
        at += len(example.samples)
    return np.stack(wholes)


class Pixels(NamedTuple):
    """What a segmenter answers on a split, void left out: ``confusion`` (C, C), truth by row, counted over the masks at
    their own size; of each picture's pixels that the network sees, the confidence and whether it is right, (n,)."""

    confusion: NDArray[np.int64]
    confidences: list[NDArray[np.float32]]
    rights: list[NDArray[np.bool_]]


def answered_pixels(predict: Predict, examples: Sequence[Example], categories: int) -> Pixels:
    confusion = np.zeros((categories, categories), np.int64)
    confidences: list[NDArray[np.float32]] = []
    rights: list[NDArray[np.bool_]] = []
    for example in tqdm(examples, desc="evaluate", unit="picture", leave=False):
        mask, confidence = predict(example.samples)[0]
        confusion += mask_confusion(mask, example, categories)
        truth = placed_mask(example, (mask.shape[0], mask.shape[1]))
        confidences.append(confidence[truth != VOID].astype(np.float32))
        rights.append(mask[truth != VOID] == truth[truth != VOID])
    return Pixels(confusion, confidences, rights)


def segmentation_metrics(pixels: Pixels, split: str) -> list[Metric]:
    """Those of ``intersection_over_union``, and the calibration error over the pixels that the network sees."""
    count = len(pixels.rights)
    metrics = intersection_over_union(pixels.confusion, count, split)
    error = expected_calibration_error(np.concatenate(pixels.confidences), np.concatenate(pixels.rights))
    return [*metrics, Metric(name=CALIBRATION_ERROR, value=round(error, 4), samples=count, split=split)]


def intersection_over_union(confusion: NDArray[np.int64], pictures: int, split: str) -> list[Metric]:
    """Pixel counts (C, C) over a whole split, truth by row -> mean intersection over union, share of pixels right.

    A category that neither truth nor answer holds has no part in the mean. Raises ``DatasetError`` for all void.
    """
    if not confusion.any():
        raise DatasetError(f"the masks of {split} are void everywhere; there is nothing to compare with")
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    present = union > 0
    figures = {
        "mIoU": float((hits[present] / union[present]).mean()),
        "pixel accuracy": float(hits.sum() / confusion.sum()),
    }
    return [Metric(name=name, value=round(value, 4), samples=pictures, split=split) for name, value in figures.items()]


def mask_confusion(mask: NDArray[np.generic], example: Example, categories: int) -> NDArray[np.int64]:
    """(categories, categories) pixel counts, truth by row, void left out; the mask scaled as an answer is."""
    target, region = example.target, example.region
    assert isinstance(target, np.ndarray) and region is not None
    cut = mask[region.top : region.top + region.height, region.left : region.left + region.width]
    height, width = target.shape
    scaled = np.asarray(Image.fromarray(cut).resize((width, height), Image.Resampling.NEAREST))
    known = target != VOID
    pairs = target[known].astype(np.int64) * categories + scaled[known]
    return np.bincount(pairs, minlength=categories**2).reshape(categories, categories)


def show(metrics: Sequence[Metric]) -> str:
    return ", ".join(f"{metric.name} {metric.value:.4f} on {metric.samples} of {metric.split}" for metric in metrics)


def loaded(folder: Path) -> tuple[Predict, Task, tuple[str, ...], Preprocess]:
    """The model in a run's folder, by PyTorch, or in a published model's, by ONNX Runtime as it is served."""
    if (folder / CARD).is_file():
        card = ModelCard.model_validate_json((folder / CARD).read_bytes())
        engine = Engine(card, read_graph(StoredModel(card, folder)), threads=0)
        return engine.run, card.task, card.categories, card.preprocess
    if not (folder / CHECKPOINT).is_file():
        raise FileNotFoundError(
            f"{folder} holds neither {CHECKPOINT} nor {CARD}; expected a run's folder, or <repository>/<name>/<version>"
        )
    run = Run.load(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch_predict(run.served().to(device), device), run.recipe.task, run.categories, run.recipe.preprocess


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Evaluate a training run (PyTorch) or a published model (ONNX).")
    parser.add_argument("folder", type=Path, help="a run folder, or <repository>/<name>/<version>")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--split", help="default: every folder test and test-…, or val or train where there is none")
    parser.add_argument("--ignore-index", type=int, default=VOID, help="segment: the mask value that means void")
    arguments = parser.parse_args(argv)
    try:
        predict, task, categories, preprocess = loaded(arguments.folder)
        for split in [arguments.split] if arguments.split else judged_splits(arguments.data):
            examples = load_examples(arguments.data, split, task, categories, preprocess, arguments.ignore_index)
            for metric in evaluate(predict, examples, task, len(categories), split):
                print(f"{metric.name} {metric.value:.4f} on {metric.samples} files of {arguments.data}/{metric.split}")
    except (DatasetError, FileNotFoundError, ModelRefused) as error:
        raise SystemExit(f"cannot evaluate: {error}") from error


if __name__ == "__main__":
    main()
