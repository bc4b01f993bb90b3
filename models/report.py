"""What came of a training, to look at: a folder of PNG, and of the figures behind them as JSON.

python -m models.report RUN_OR_MODEL_FOLDER --data FOLDER [--split NAME] [--limit FILES] [--to FOLDER]

    metrics.json      metrics, per-category figures, confusion matrix, calibration, history, recipe, hardware, seconds
    curves.png        each epoch's loss, share right and calibration error (of a run; a published model has no history)
    confusion.png     what is taken for what
    reliability.png   whether an answer given with 90% is right nine times in ten
    samples.png       answers to look at, wrong and right

Training writes it into ``<run>/report``, on the validation files, or on its own where there were too few to spare any.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models import figures
from models.datasets import VOID, DatasetError, Example, judged_splits, placed_mask
from models.evaluate import (
    CALIBRATION_ERROR,
    Predict,
    answered_pixels,
    classification_metrics,
    loaded,
    segmentation_metrics,
    show,
    whole_probabilities,
)
from models.figures import Bin, Group, Heading, Scene, Tile
from models.runs import Run, load_examples
from service.errors import ModelRefused
from service.repository.card import AudioPreprocess, Colour, Metric, ModelCard, Preprocess, Task, VideoPreprocess
from service.repository.folder import CARD

_BINS = 15  # of confidence, as the calibration error has them
_ROWS = 2  # of samples, wrong and right ones each
_SCENES = 4  # pictures with their masks
_PERCENT = ("accuracy", "mIoU", "pixel accuracy", CALIBRATION_ERROR)


class Subject(NamedTuple):
    """What a report is about: a run or a published model. ``facts`` go into the JSON as they are."""

    name: str
    dataset: str
    task: Task
    categories: tuple[str, ...]
    preprocess: Preprocess
    palette: tuple[Colour, ...] | None
    facts: dict[str, Any]
    history: Sequence[dict[str, float]] = ()
    epochs_done: int = 0
    watched: str = ""  # which files the history's metrics are of


class Judged(NamedTuple):
    """The answers on a split: ``confusion`` (C, C), truth by row; ``confidence`` and ``right`` (n,) of the files, or of
    the masks' pixels, whichever ``unit`` says; and the samples to show: a figure, what it says, what it is drawn from.
    """

    metrics: list[Metric]
    confusion: NDArray[np.int64]
    confidence: NDArray[np.floating]
    right: NDArray[np.bool_]
    unit: str
    samples: tuple[Callable[..., Figure], str, tuple[Any, ...]]


def of_run(run: Run) -> Subject:
    recipe = run.recipe
    facts = {
        "recipe": dataclasses.asdict(recipe) | {"preprocess": recipe.preprocess.model_dump(mode="json")},
        "splits": run.splits,
        "epochs": run.epochs_done,
        "seconds": round(run.seconds, 1),
        "hardware": run.hardware,
    }
    described = recipe.name, recipe.source.name, recipe.task, run.categories, recipe.preprocess, recipe.palette
    watched = "validation" if "val" in run.splits else "training files"
    return Subject(*described, facts, run.history, run.epochs_done, watched)


def of_card(card: ModelCard) -> Subject:
    described = card.dataset.name, card.task, card.categories, card.preprocess, card.palette
    return Subject(f"{card.name}:{card.version}", *described, {"card": card.model_dump(mode="json")})


def write_report(
    subject: Subject, predict: Predict, examples: Sequence[Example], split: str, folder: Path
) -> list[Metric]:
    """Judges ``predict`` on ``examples`` and writes what is found into ``folder``; the metrics.

    Raises ``DatasetError`` where there is nothing to compare with: masks that are void everywhere.
    """
    judge = _judged_masks if subject.task == "segment" else _judged_files
    judged = judge(subject, predict, examples, split)
    bins = calibration_bins(judged.confidence, judged.right)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(_json(_content(subject, judged, split, bins)), encoding="utf-8")
    place = f"{subject.dataset}, {len(examples):,} files of {split}"

    def draw(name: str, figure: Callable[..., Figure], title: str, note: str, *drawn: Any) -> None:
        figures.draw(folder / f"{name}.png", figure, Heading(f"{subject.name}: {title}", note), *drawn)

    samples, note, drawn = judged.samples
    draw("samples", samples, "samples", f"{place}; {note}", *drawn)
    said = [_said(metric) for metric in judged.metrics]
    measured = f"{place}: {', '.join(said[:2])}"
    draw("confusion", figures.confusion_matrix, "confusion matrix", measured, judged.confusion, subject.categories)
    draw("reliability", figures.reliability, said[-1], place, bins, judged.unit)
    if subject.history:
        first = subject.epochs_done - len(subject.history) + 1
        draw(
            "curves", figures.curves, "training", f"{place}: {', '.join(said)}", subject.history, first, subject.watched
        )
    return judged.metrics


def _judged_files(subject: Subject, predict: Predict, examples: Sequence[Example], split: str) -> Judged:
    probabilities = whole_probabilities(predict, examples)
    targets = np.array([example.target for example in examples])
    answers, count = probabilities.argmax(axis=1), len(subject.categories)
    confusion = np.bincount(targets * count + answers, minlength=count**2).reshape(count, count)
    confidence, right = probabilities.max(axis=1), answers == targets
    groups, note = _tiles(subject, examples, answers, confidence)
    metrics = classification_metrics(probabilities, targets, split)
    return Judged(metrics, confusion, confidence, right, "files", (figures.tiles, note, (groups,)))


def _judged_masks(subject: Subject, predict: Predict, examples: Sequence[Example], split: str) -> Judged:
    pixels = answered_pixels(predict, examples, len(subject.categories))
    metrics = segmentation_metrics(pixels, split)
    shares = np.array([right.mean() if len(right) else np.nan for right in pixels.rights])
    best_first = np.argsort(-shares)[: np.isfinite(shares).sum()]
    chosen = best_first[np.linspace(0, len(best_first) - 1, min(_SCENES, len(best_first))).round().astype(int)]
    shown = [_scene(predict, examples[index], float(shares[index])) for index in chosen]
    note = "from the one answered best to the one answered worst, in even steps"
    samples = (figures.scenes, note, (shown, subject.categories, subject.palette, VOID))
    confidence, right = np.concatenate(pixels.confidences), np.concatenate(pixels.rights)
    return Judged(metrics, pixels.confusion, confidence, right, "pixels", samples)


def _tiles(
    subject: Subject, examples: Sequence[Example], answers: NDArray[np.integer], confidence: NDArray[np.floating]
) -> tuple[list[Group], str]:
    """The wrong answers that were given most confidently, and some of the right ones, by chance; and what is seen."""
    targets = np.array([example.target for example in examples])
    wrong, right = np.flatnonzero(answers != targets), np.flatnonzero(answers == targets)
    most = _ROWS * figures.tile_columns(_picture(subject, examples[0]))
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    drawn = np.random.default_rng(0).permutation(right)[:most]

    def tile(index: int) -> Tile:
        answer, truth = subject.categories[answers[index]], subject.categories[targets[index]]
        return Tile(_picture(subject, examples[index]), answer, float(confidence[index]), truth)

    of_wrong = f"{len(worst)} of {len(wrong):,}, the most confident first" if len(wrong) else "none"
    of_right = f"{len(drawn)} of {len(right):,}, drawn by chance" if len(right) else "none"
    groups = [
        Group(f"wrong: {of_wrong}", False, [tile(index) for index in worst]),
        Group(f"right: {of_right}", True, [tile(index) for index in drawn]),
    ]
    return groups, _seen(subject.preprocess)


def _picture(subject: Subject, example: Example) -> NDArray[np.uint8]:
    """The window that counts for most, as a picture."""
    sample = np.asarray(example.samples[int(np.argmax(example.weights))])
    if isinstance(subject.preprocess, AudioPreprocess):
        return figures.spectrogram(sample[0], subject.preprocess.sample_rate_hz)
    return figures.film_strip(sample) if isinstance(subject.preprocess, VideoPreprocess) else sample


def _seen(spec: Preprocess) -> str:
    if isinstance(spec, AudioPreprocess):
        highest = spec.sample_rate_hz / 2000
        return f"{spec.window_seconds:g} s rightwards, 0 to {highest:g} kHz upwards, 80 dB of brightness"
    if isinstance(spec, VideoPreprocess):
        return f"first, middle and last frame of {spec.frames / spec.frame_rate_hz:g} s"
    return "as the network sees them, {1}x{0} pixels".format(*spec.sizes[0])


def _scene(predict: Predict, example: Example, share_right: float) -> Scene:
    """What the network sees and says of one picture, without the padding."""
    assert example.region is not None
    sample = np.asarray(example.samples[0])
    top, left, height, width = example.region
    truth, answer = placed_mask(example, sample.shape[:2]), predict([sample])[0][0]
    picture, truth, answer = (
        np.asarray(whole[top : top + height, left : left + width], np.uint8) for whole in (sample, truth, answer)
    )
    return Scene(picture, truth, answer, share_right)


def calibration_bins(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> list[Bin]:
    """``confidence`` (n,) in 0 to 1, ``right`` (n,) -> the bins of equal width that the calibration error is a sum over
    (Guo et al. 2017, section 2)."""
    index = np.clip((confidence * _BINS).astype(int), 0, _BINS - 1)
    answers = np.bincount(index, minlength=_BINS)
    sums = (np.bincount(index, weights=values, minlength=_BINS) for values in (confidence, right))
    confidences, rights = (np.divide(s, answers, out=np.full(_BINS, np.nan), where=answers > 0) for s in sums)
    return [
        Bin(i / _BINS, (i + 1) / _BINS, int(answers[i]), float(confidences[i]), float(rights[i])) for i in range(_BINS)
    ]


def _content(subject: Subject, judged: Judged, split: str, bins: Sequence[Bin]) -> dict[str, Any]:
    return {
        "name": subject.name,
        "task": subject.task,
        "dataset": subject.dataset,
        "split": split,
        "files": judged.metrics[0].samples,
        "metrics": {metric.name: metric.value for metric in judged.metrics},
        "categories": _per_category(judged, subject.categories),
        "confusion": judged.confusion.tolist(),  # truth by row, answer by column
        "calibration": [_finite(each._asdict()) for each in bins],
        "history": list(subject.history),
        **subject.facts,
    }


def _per_category(judged: Judged, categories: Sequence[str]) -> list[dict[str, Any]]:
    """What is right of what is truly in a category (recall), of what is answered so (precision), of both (IoU)."""
    hits, true, answered = np.diag(judged.confusion), judged.confusion.sum(axis=1), judged.confusion.sum(axis=0)
    wholes = {"recall": true, "precision": answered, "IoU": true + answered - hits}
    return [
        {"name": category, judged.unit: int(true[index])}
        | {name: round(hits[index] / whole[index], 4) if whole[index] else None for name, whole in wholes.items()}
        for index, category in enumerate(categories)
    ]


def _finite(row: dict[str, float]) -> dict[str, float | None]:
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in row.items()}


def _said(metric: Metric) -> str:
    return f"{metric.name} {metric.value:.1%}" if metric.name in _PERCENT else f"{metric.name} {metric.value:.3f}"


def _json(content: dict[str, Any]) -> str:
    """A line for each entry and for each row of a table, to be read and compared by people, too."""

    def value(held: Any) -> str:
        if isinstance(held, list) and held:
            return "[\n" + ",\n".join(f"    {_plain(row)}" for row in held) + "\n  ]"
        return _plain(held)

    return "{\n" + ",\n".join(f"  {_plain(name)}: {value(held)}" for name, held in content.items()) + "\n}\n"


def _plain(held: Any) -> str:
    return json.dumps(held, ensure_ascii=False, allow_nan=False, default=dict)


def _evenly(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most ``limit``, from all over the split and so from every category."""
    count = len(examples) if limit is None else min(limit, len(examples))
    return [examples[index] for index in np.linspace(0, len(examples) - 1, count).round().astype(int)]


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Report on a training run (PyTorch) or a published model (ONNX).")
    parser.add_argument("folder", type=Path, help="a run folder, or <repository>/<name>/<version>")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--split", help="default: test, or val or train where there is none")
    parser.add_argument("--limit", type=_number, help="judge so many files of the split at most, evenly spaced")
    parser.add_argument(
        "--to", type=Path, help="default: the run's folder, or runs/NAME-VERSION, and report-SPLIT in it"
    )
    parser.add_argument("--ignore-index", type=int, default=VOID, help="segment: the mask value that means void")
    arguments = parser.parse_args(argv)
    split = arguments.split or judged_splits(arguments.data)[0]
    folder: Path = arguments.folder
    try:
        predict, task, categories, preprocess = loaded(folder)
        if (folder / CARD).is_file():
            subject = of_card(ModelCard.model_validate_json((folder / CARD).read_bytes()))
            home = Path("runs") / subject.name.replace(":", "-")
        else:
            subject, home = of_run(Run.load(folder)), folder
        examples = load_examples(arguments.data, split, task, categories, preprocess, arguments.ignore_index)
        place = arguments.to or home / f"report-{split}"
        metrics = write_report(subject, predict, _evenly(examples, arguments.limit), split, place)
    except (DatasetError, FileNotFoundError, ModelRefused) as error:
        raise SystemExit(f"cannot report: {error}") from error
    print(f"{show(metrics)}; report in {place}")


if __name__ == "__main__":
    main()
