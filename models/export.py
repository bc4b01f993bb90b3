"""Export of a training run: a graph that the service's engine answers like PyTorch, published with its card.

python -m models.export runs/NAME [--data FOLDER] [--precision fp16] [--repository models/repository] [--name NAME]
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.calibrate import LEAST_EXAMPLES, fit_temperature
from models.commands import serve_command
from models.convert import (
    PARITY_BATCHES,
    ExportError,
    export_graph,
    halve_graph,
    parity,
    require_as_good,
)
from models.datasets import Example, evaluated_splits
from models.evaluate import FAILURES, data_folder, torch_predict
from models.graph import Served
from models.inspect import complexity
from models.metrics import CALIBRATION_ERROR, show
from models.options import PRECISIONS, add_data, add_precision, model_name
from models.recipes import RECIPES, Recipe
from models.runs import Run, hardware, held_out_examples
from models.tasks import TASKS, load_or_exit
from models.tasks.task import Predict
from service.engines.onnxruntime import Engine
from service.repository.card import (
    Calibration,
    Metric,
    ModelCard,
    Parity,
    Precision,
    Training,
)
from service.repository.folder import BUNDLED, GRAPH, file_entry, next_version, publish


def export(
    run: Run,
    data: Path,
    repository: Path,
    *,
    name: str,
    default: bool,
    precision: Precision = "float32",
) -> ModelCard:
    """Calibrates, exports, compares, evaluates the ONNX file on the test splits, publishes the next version.

    Raises ``ExportError`` where the graph does not answer like PyTorch, or in float16 less well than in float32.
    """
    recipe = run.recipe
    task = TASKS[recipe.task]
    splits = {
        split: task.load(data, split, run.categories, recipe.preprocess, recipe.ignore_index)
        for split in evaluated_splits(data)
    }
    split, examples = next(iter(splits.items()))
    samples = _varied_samples(examples)
    held_out = held_out_examples(data, recipe, run.categories)
    served = run.served()
    reference = torch_predict(served, torch.device("cpu"))
    before = _calibration_error(task.evaluate(reference, examples, len(run.categories), split).metrics)
    served.temperature.fill_(fit_temperature(served, held_out, task, torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        export_graph(served, task, samples, path)
        draft = _draft_card(run, served, samples, path, repository, name, default)
        predict = Engine(draft, path.read_bytes(), threads=0).run
        agreed = parity(reference, predict, samples)
        metrics = _measured(predict, splits, draft)
        if precision == "float16":
            halve_graph(path)
            draft = draft.model_copy(update={"precision": precision, "files": {GRAPH: file_entry(path)}})
            predict = Engine(draft, path.read_bytes(), threads=0).run
            agreed = parity(reference, predict, samples, precision)
            exact, metrics = metrics, _measured(predict, splits, draft)
            require_as_good(exact, metrics)
        calibration = Calibration(
            temperature=round(float(served.temperature), 4),
            samples=len(held_out) if len(held_out) >= LEAST_EXAMPLES else 0,
            split=split,
            error_before=before,
            error_after=_calibration_error(metrics),
        )
        card = draft.model_copy(update={"parity": agreed, "metrics": tuple(metrics), "calibration": calibration})
        publish(ModelCard.model_validate(card.model_dump()), path, repository)
    return card


def _measured(predict: Predict, splits: dict[str, list[Example]], card: ModelCard) -> list[Metric]:
    """The metrics of every evaluated split."""
    return [
        metric
        for split, examples in splits.items()
        for metric in TASKS[card.task].evaluate(predict, examples, len(card.categories), split).metrics
    ]


def _calibration_error(metrics: Sequence[Metric]) -> float:
    return next(metric.value for metric in metrics if metric.name == CALIBRATION_ERROR)


def _varied_samples(examples: Sequence[Example]) -> list[NDArray[np.generic]]:
    """Samples of one shape for the parity check, from all over the split and so from several categories."""
    count = sum(PARITY_BATCHES)
    chosen = [example.samples[0] for example in examples[:: max(1, len(examples) // (2 * count))]]
    return ([sample for sample in chosen if sample.shape == chosen[0].shape] * count)[:count]


def _draft_card(
    run: Run,
    served: Served,
    samples: Sequence[NDArray[np.generic]],
    path: Path,
    repository: Path,
    name: str,
    default: bool,
) -> ModelCard:
    """The card without parity, metrics and calibration, which the finished graph is measured for."""
    recipe = run.recipe
    task = TASKS[recipe.task]
    with torch.inference_mode():
        prepared = served.prepare(torch.from_numpy(np.stack(samples[:1])))
    return ModelCard(
        name=name,
        version=next_version(repository, name),
        task=recipe.task,
        default=default,
        architecture=_architecture(recipe),
        description=_description(recipe),
        categories=run.categories,
        palette=recipe.palette,
        input=task.input_spec(samples[0].shape),
        preprocess=recipe.preprocess,
        outputs=task.output_specs(len(run.categories)),
        dataset=recipe.source.card(run.splits),
        metrics=(),
        training=Training(
            recipe=recipe.name,
            epochs=run.epochs_done,
            seed=recipe.seed,
            hardware=run.hardware or hardware(),
            hours=round(run.seconds / 3600, 3),
        ),
        parity=Parity(largest_difference=0.0, samples=0),
        complexity=complexity(served.network, prepared).model_copy(update={"views": recipe.views}),
        files={GRAPH: file_entry(path)},
    )


def _description(recipe: Recipe) -> str:
    """The recipe's description, which is of the recipe's own data; else the name of the data."""
    bundled = recipe.source == RECIPES[recipe.name].source
    return recipe.description if bundled else f"Trained on {recipe.source.name}."


def _architecture(recipe: Recipe) -> str:
    options = ", ".join(f"{key}={value}" for key, value in recipe.options.items())
    return f"{recipe.architecture}({options})"


def main(argv: Sequence[str] | None = None) -> None:
    load_or_exit()
    parser = argparse.ArgumentParser(description="Export a training run and publish it as a servable model.")
    parser.add_argument("run", type=Path, help="the run's folder")
    add_data(parser)
    parser.add_argument("--repository", type=Path, default=BUNDLED, help=f"default: {BUNDLED}")
    parser.add_argument("--name", type=model_name, help="the model's name (default: the recipe's)")
    parser.add_argument("--default", action="store_true", help="answer the route when no model is named")
    add_precision(parser)
    arguments = parser.parse_args(argv)
    try:
        run = Run.load(arguments.run)
        if arguments.ignore_index is not None:
            run.recipe = replace(run.recipe, ignore_index=arguments.ignore_index)
        card = export(
            run,
            data_folder(arguments.data, run),
            arguments.repository,
            name=arguments.name or run.recipe.name,
            default=arguments.default,
            precision=PRECISIONS[arguments.precision],
        )
    except (*FAILURES, ExportError, FileExistsError) as error:
        raise SystemExit(f"cannot export: {error}") from error
    place = arguments.repository / card.name / str(card.version)
    print(f"published {card.key} in {place}: {show(card.metrics)}")
    print(f"differs from PyTorch by {card.parity.largest_difference:.1e}; serve it:")
    print(f"  {serve_command(arguments.repository)}")


if __name__ == "__main__":
    main()
