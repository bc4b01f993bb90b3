"""A trained run -> a graph that the service's own engine answers like PyTorch -> a published model.

python -m models.export runs/NAME --data FOLDER [--precision fp16] [--repository models/repository] [--name NAME]
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.calibrate import LEAST_EXAMPLES, fit_temperature
from models.convert import (
    PARITY_BATCHES,
    ExportError,
    export_graph,
    halve_graph,
    input_spec,
    output_specs,
    parity,
    require_as_good,
)
from models.datasets import VOID, DatasetError, Example, judged_splits
from models.evaluate import CALIBRATION_ERROR, Predict, evaluate, show, torch_predict
from models.graph import Served
from models.inspect import complexity
from models.options import PRECISIONS, add_precision, model_name
from models.recipes import RECIPES, Recipe
from models.runs import Run, hardware, held_out_examples, load_examples
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
    ignore_index: int = VOID,
) -> ModelCard:
    """Calibrates, exports, compares, evaluates the ONNX file on the test splits, publishes the next version.

    Raises ``ExportError`` where the graph does not answer like PyTorch, or in float16 less well than in float32.
    """
    recipe = run.recipe
    judged = {
        split: load_examples(data, split, recipe.task, run.categories, recipe.preprocess, ignore_index)
        for split in judged_splits(data)
    }
    split, examples = next(iter(judged.items()))
    samples = _varied_samples(examples)
    held_out = held_out_examples(data, recipe.task, run.categories, recipe.preprocess, ignore_index)
    served = run.served()
    reference = torch_predict(served, torch.device("cpu"))
    before = _calibration_error(evaluate(reference, examples, recipe.task, len(run.categories), split))
    served.temperature.fill_(fit_temperature(served, held_out, recipe.task, torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        export_graph(served, recipe.task, samples, path)
        draft = _draft_card(run, served, samples, path, repository, name, default)
        predict = Engine(draft, path.read_bytes(), threads=0).run
        agreed = parity(reference, predict, samples)
        metrics = _measured(predict, judged, draft)
        if precision == "float16":
            halve_graph(path)
            draft = draft.model_copy(update={"precision": precision, "files": {GRAPH: file_entry(path)}})
            predict = Engine(draft, path.read_bytes(), threads=0).run
            agreed = parity(reference, predict, samples, precision)
            exact, metrics = metrics, _measured(predict, judged, draft)
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


def _measured(predict: Predict, judged: dict[str, list[Example]], card: ModelCard) -> list[Metric]:
    """The metrics of every split that is judged."""
    return [
        metric
        for split, examples in judged.items()
        for metric in evaluate(predict, examples, card.task, len(card.categories), split)
    ]


def _calibration_error(metrics: Sequence[Metric]) -> float:
    return next(metric.value for metric in metrics if metric.name == CALIBRATION_ERROR)


def _varied_samples(examples: Sequence[Example]) -> list[NDArray[np.generic]]:
    """As many as parity wants, of one shape, from all over the split and so from several categories."""
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
    """The card but for what only the finished file can tell."""
    recipe = run.recipe
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
        input=input_spec(recipe.task, samples[0].shape),
        preprocess=recipe.preprocess,
        outputs=output_specs(recipe.task, len(run.categories)),
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
    """The recipe's speaks of the recipe's data."""
    bundled = recipe.source == RECIPES[recipe.name].source
    return recipe.description if bundled else f"Trained on {recipe.source.name}."


def _architecture(recipe: Recipe) -> str:
    options = ", ".join(f"{key}={value}" for key, value in recipe.options.items())
    return f"{recipe.architecture}({options})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Export a training run and publish it as a servable model.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--repository", type=Path, default=BUNDLED, help=f"default: {BUNDLED}")
    parser.add_argument("--name", type=model_name, help="the model's name (default: the recipe's)")
    parser.add_argument("--default", action="store_true", help="answer the route when no model is named")
    add_precision(parser)
    parser.add_argument("--ignore-index", type=int, default=VOID, help="segment: the mask value that means void")
    arguments = parser.parse_args(argv)
    try:
        run = Run.load(arguments.run)
        card = export(
            run,
            arguments.data,
            arguments.repository,
            name=arguments.name or run.recipe.name,
            default=arguments.default,
            precision=PRECISIONS[arguments.precision],
            ignore_index=arguments.ignore_index,
        )
    except (DatasetError, ExportError, FileNotFoundError, FileExistsError) as error:
        raise SystemExit(f"cannot export: {error}") from error
    place = arguments.repository / card.name / str(card.version)
    print(f"published {card.key} in {place}: {show(card.metrics)}")
    print(f"differs from PyTorch by {card.parity.largest_difference:.1e}; serve it:")
    print(f"  CONVSERVE_REPOSITORY={arguments.repository.resolve()} make serve")


if __name__ == "__main__":
    main()
