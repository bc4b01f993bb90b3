"""Report on a run or a published model: a folder of PNG figures, and their values as JSON.

python -m models.report RUN_OR_MODEL_FOLDER [--data FOLDER] [--split NAME] [--limit FILES] [--to FOLDER]

    metrics.json      metrics, figures per category, confusion matrix, calibration, history, recipe, hardware, seconds
    curves.png        each epoch's loss, share correct and calibration error (runs only)
    confusion.png     confusion matrix
    reliability.png   reliability diagram: share correct by confidence
    samples.png       some answers, wrong and correct

Training writes one into ``<run>/report``, on the validation files, or on the training files where none were held out.
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
from models.datasets import Example, evaluated_splits
from models.evaluate import FAILURES, data_folder, read_model
from models.figures import Bin, Heading
from models.metrics import CALIBRATION_ERROR, SHARES, bin_index, show
from models.options import add_data
from models.runs import Run
from models.tasks import TASKS, load_or_exit
from models.tasks.task import Evaluation, Predict, TrainingTask
from service.repository.card import Colour, Metric, ModelCard, Preprocess

_BINS = 15  # of confidence, as for the calibration error
_PERCENT = (*SHARES, CALIBRATION_ERROR)


class Subject(NamedTuple):
    """The run or published model of a report. ``facts`` go into the JSON as they are."""

    name: str
    dataset: str
    task: TrainingTask
    categories: tuple[str, ...]
    preprocess: Preprocess
    palette: tuple[Colour, ...] | None
    facts: dict[str, Any]
    history: Sequence[dict[str, float]] = ()
    epochs_done: int = 0
    evaluated_on: str = ""  # the files that the history's metrics are of


def of_run(run: Run) -> Subject:
    recipe = run.recipe
    facts = {
        "recipe": dataclasses.asdict(recipe) | {"preprocess": recipe.preprocess.model_dump(mode="json")},
        "splits": run.splits,
        "epochs": run.epochs_done,
        "seconds": round(run.seconds, 1),
        "hardware": run.hardware,
    }
    described = recipe.name, recipe.source.name, TASKS[recipe.task], run.categories, recipe.preprocess, recipe.palette
    evaluated_on = "validation" if "val" in run.splits else "training files"
    return Subject(*described, facts, run.history, run.epochs_done, evaluated_on)


def of_card(card: ModelCard) -> Subject:
    described = card.dataset.name, TASKS[card.task], card.categories, card.preprocess, card.palette
    return Subject(f"{card.name}:{card.version}", *described, {"card": card.model_dump(mode="json")})


def write_report(
    subject: Subject, predict: Predict, examples: Sequence[Example], split: str, folder: Path
) -> list[Metric]:
    """Evaluates ``predict`` on ``examples``, writes the report into ``folder``, and returns the metrics.

    Raises ``DatasetError`` where there is nothing to compare with: masks that are void everywhere.
    """
    evaluation = subject.task.evaluate(predict, examples, len(subject.categories), split)
    bins = calibration_bins(evaluation.confidence, evaluation.correct)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(_json(_content(subject, evaluation, split, bins)), encoding="utf-8")
    place = f"{subject.dataset}, {len(examples):,} files of {split}"

    def draw(name: str, figure: Callable[..., Figure], title: str, note: str, *drawn: Any) -> None:
        figures.draw(folder / f"{name}.png", figure, Heading(f"{subject.name}: {title}", note), *drawn)

    samples = subject.task.sample_figure(
        predict, examples, evaluation, subject.categories, subject.preprocess, subject.palette
    )
    draw("samples", samples.figure, "samples", f"{place}; {samples.note}", *samples.arguments)
    said = [_formatted(metric) for metric in evaluation.metrics]
    measured = f"{place}: {', '.join(said[:2])}"
    draw("confusion", figures.confusion_matrix, "confusion matrix", measured, evaluation.confusion, subject.categories)
    draw("reliability", figures.reliability, said[-1], place, bins, subject.task.unit)
    if subject.history:
        first = subject.epochs_done - len(subject.history) + 1
        draw(
            "curves",
            figures.curves,
            "training",
            f"{place}: {', '.join(said)}",
            subject.history,
            first,
            subject.evaluated_on,
        )
    return evaluation.metrics


def calibration_bins(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> list[Bin]:
    """(n,) in 0 to 1, (n,) -> the bins that the calibration error sums over (Guo et al. 2017, section 2)."""
    index = bin_index(confidence, _BINS)
    answers = np.bincount(index, minlength=_BINS)
    sums = (np.bincount(index, weights=values, minlength=_BINS) for values in (confidence, correct))
    confidences, shares = (np.divide(s, answers, out=np.full(_BINS, np.nan), where=answers > 0) for s in sums)
    return [
        Bin(i / _BINS, (i + 1) / _BINS, int(answers[i]), float(confidences[i]), float(shares[i])) for i in range(_BINS)
    ]


def _content(subject: Subject, evaluation: Evaluation, split: str, bins: Sequence[Bin]) -> dict[str, Any]:
    return {
        "name": subject.name,
        "task": subject.task.name,
        "dataset": subject.dataset,
        "split": split,
        "files": evaluation.metrics[0].samples,
        "metrics": {metric.name: metric.value for metric in evaluation.metrics},
        "categories": _per_category(evaluation.confusion, subject.categories, subject.task.unit),
        "confusion": evaluation.confusion.tolist(),  # truth by row, answer by column
        "calibration": [_finite(each._asdict()) for each in bins],
        "history": list(subject.history),
        **subject.facts,
    }


def _per_category(confusion: NDArray[np.int64], categories: Sequence[str], unit: str) -> list[dict[str, Any]]:
    """Recall, precision and intersection over union of each category."""
    hits, true, answered = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    wholes = {"recall": true, "precision": answered, "IoU": true + answered - hits}
    return [
        {"name": category, unit: int(true[index])}
        | {name: round(hits[index] / whole[index], 4) if whole[index] else None for name, whole in wholes.items()}
        for index, category in enumerate(categories)
    ]


def _finite(row: dict[str, float]) -> dict[str, float | None]:
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in row.items()}


def _formatted(metric: Metric) -> str:
    return f"{metric.name} {metric.value:.1%}" if metric.name in _PERCENT else f"{metric.name} {metric.value:.3f}"


def _json(content: dict[str, Any]) -> str:
    """JSON with a line for each entry and for each row of a table, to be read and compared by people, too."""

    def value(held: Any) -> str:
        if isinstance(held, list) and held:
            return "[\n" + ",\n".join(f"    {_plain(row)}" for row in held) + "\n  ]"
        return _plain(held)

    return "{\n" + ",\n".join(f"  {_plain(name)}: {value(held)}" for name, held in content.items()) + "\n}\n"


def _plain(held: Any) -> str:
    return json.dumps(held, ensure_ascii=False, allow_nan=False, default=dict)


def _evenly(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most ``limit`` examples, from all over the split and so from every category."""
    count = len(examples) if limit is None else min(limit, len(examples))
    return [examples[index] for index in np.linspace(0, len(examples) - 1, count).round().astype(int)]


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    load_or_exit()
    parser = argparse.ArgumentParser(description="Report on a training run (PyTorch) or a published model (ONNX).")
    parser.add_argument("folder", type=Path, help="a run folder, or <repository>/<name>/<version>")
    add_data(parser)
    parser.add_argument("--split", help="default: test, or val or train where there is none")
    parser.add_argument("--limit", type=_number, help="evaluate at most so many files of the split, evenly spaced")
    parser.add_argument(
        "--to", type=Path, help="default: the run's folder, or runs/NAME-VERSION, and report-SPLIT in it"
    )
    arguments = parser.parse_args(argv)
    try:
        model = read_model(arguments.folder)
        data = data_folder(arguments.data, model)
        split = arguments.split or evaluated_splits(data)[0]
        if isinstance(model.source, Run):
            subject, home = of_run(model.source), arguments.folder
        else:
            subject = of_card(model.source)
            home = Path("runs") / subject.name.replace(":", "-")
        examples = model.examples(data, split, arguments.ignore_index)
        place = arguments.to or home / f"report-{split}"
        metrics = write_report(subject, model.predict, _evenly(examples, arguments.limit), split, place)
    except FAILURES as error:
        raise SystemExit(f"cannot report: {error}") from error
    print(f"{show(metrics)}; report in {place}")


if __name__ == "__main__":
    main()
