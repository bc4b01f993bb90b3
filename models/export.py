"""A trained run -> a graph that the service's own engine answers like PyTorch -> a published model.

python -m models.export runs/NAME --data FOLDER [--repository models/repository] [--name NAME] [--default]
"""

import argparse
import platform
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from models.datasets import VOID, DatasetError, Example, judged_split
from models.evaluate import Predict, evaluate, show, torch_predict
from models.graph import Served
from models.inspect import complexity
from models.recipes import RECIPES, Recipe
from models.runs import Run, load_examples
from service.cards import NAME_PATTERN, OUTPUTS_OF_TASK, ModelCard, Parity, Task, TensorSpec, Training
from service.engine import Engine
from service.repository import BUNDLED, GRAPH, file_entry, next_version, publish

OPSET = 18
PARITY_BATCHES = (1, 3, 8)
PARITY_LIMIT = 1e-4
_INPUTS = {"classify": "images", "segment": "images", "audio": "waveforms", "video": "clips"}
_LAYOUTS = {"classify": "NHWC", "segment": "NHWC", "audio": "NCT", "video": "NTHWC"}


class ExportError(Exception):
    """The graph does not compute what the network computes."""


def export_graph(served: Served, task: Task, samples: Sequence[NDArray[np.generic]], path: Path) -> None:
    """Writes the graph, batch axis free (and height and width, for a segmenter), weights inside the file."""
    batch = torch.from_numpy(np.stack(samples[:2]))
    axes: dict[int, object] = {0: torch.export.Dim("N", min=1, max=4096)}
    if task == "segment":  # whole cells of the stride-8 grid need not fill the picture, so any size goes
        axes |= {1: torch.export.Dim("H", min=32, max=4096), 2: torch.export.Dim("W", min=32, max=4096)}
    with warnings.catch_warnings():  # the exporter's own code, about an interface that torch is leaving
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        torch.onnx.export(
            served.eval(),
            (batch,),
            path,
            input_names=[_INPUTS[task]],
            output_names=list(OUTPUTS_OF_TASK[task]),
            dynamic_shapes=(axes,),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=True,
            verbose=False,
        )
    graph = onnx.load(path)
    graph.ClearField("metadata_props")  # the exporter notes paths of the machine it ran on
    for node in graph.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def parity(reference: Predict, exported: Predict, samples: Sequence[NDArray[np.generic]]) -> Parity:
    """Compares both on real samples in batches of 1, 3 and 8. Raises ``ExportError`` above 1e-4.

    Of a segmenter the probabilities are compared, and that masks differ only where two categories tie.
    """
    worst = 0.0
    seen = 0
    for size in PARITY_BATCHES:
        chosen = samples[seen : seen + size]
        for ours, theirs in zip(reference(chosen), exported(chosen), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                if np.issubdtype(a.dtype, np.floating):
                    worst = max(worst, _largest_difference(a, b))
                elif (share := float(np.mean(a != b))) > PARITY_LIMIT:
                    raise ExportError(f"{share:.2%} of the mask's pixels differ from PyTorch's")
        seen += len(chosen)
    if worst > PARITY_LIMIT:
        raise ExportError(f"the graph differs from PyTorch by {worst:.1e}; at most {PARITY_LIMIT} is allowed")
    return Parity(largest_difference=worst, samples=seen)


def _largest_difference(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> float:
    """Raises ``ExportError`` for what is not finite: NaN is neither above nor below a limit."""
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    if not np.isfinite(difference).all():
        raise ExportError("the network or its graph answers with values that are not finite")
    return float(difference.max())


def export(run: Run, data: Path, repository: Path, *, name: str, default: bool, ignore_index: int = VOID) -> ModelCard:
    """Exports, compares, evaluates the ONNX file on the test split, and publishes the next version of ``name``."""
    recipe = run.recipe
    split = judged_split(data)
    examples = load_examples(data, split, recipe.task, run.categories, recipe.preprocess, ignore_index)
    samples = _varied_samples(examples)
    served = run.served()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        export_graph(served, recipe.task, samples, path)
        draft = _draft_card(run, served, samples, path, repository, name, default)
        predict = Engine(draft, path.read_bytes(), threads=0).run
        agreed = parity(torch_predict(served, torch.device("cpu")), predict, samples)
        metrics = tuple(evaluate(predict, examples, recipe.task, len(run.categories), split))
        card = draft.model_copy(update={"parity": agreed, "metrics": metrics})
        publish(ModelCard.model_validate(card.model_dump()), path, repository)
    return card


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
        input=TensorSpec(
            name=_INPUTS[recipe.task],
            dtype="float32" if recipe.task == "audio" else "uint8",
            layout=_LAYOUTS[recipe.task],
            shape=_input_shape(recipe.task, samples[0].shape),
        ),
        preprocess=recipe.preprocess,
        outputs=_outputs(recipe.task, len(run.categories)),
        dataset=recipe.source.card(run.splits),
        metrics=(),
        training=Training(
            recipe=recipe.name,
            epochs=run.epochs_done,
            seed=recipe.seed,
            hardware=hardware(),
            hours=round(run.seconds / 3600, 3),
        ),
        parity=Parity(largest_difference=0.0, samples=0),
        complexity=complexity(served.network, prepared),
        files={GRAPH: file_entry(path)},
    )


def _description(recipe: Recipe) -> str:
    """The recipe's speaks of the recipe's data."""
    bundled = recipe.source == RECIPES[recipe.name].source
    return recipe.description if bundled else f"Trained on {recipe.source.name}."


def _architecture(recipe: Recipe) -> str:
    options = ", ".join(f"{key}={value}" for key, value in recipe.options.items())
    return f"{recipe.architecture}({options})"


def _input_shape(task: Task, shape: tuple[int, ...]) -> tuple[int | str, ...]:
    return ("N", "H", "W", 3) if task == "segment" else ("N", *shape)


def _outputs(task: Task, categories: int) -> tuple[TensorSpec, ...]:
    if task == "segment":
        return (
            TensorSpec(name="mask", dtype="uint8", layout="NHW", shape=("N", "H", "W")),
            TensorSpec(name="confidence", dtype="float32", layout="NHW", shape=("N", "H", "W")),
        )
    return (TensorSpec(name="probabilities", dtype="float32", layout="NC", shape=("N", categories)),)


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {NAME_PATTERN}")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Export a training run and publish it as a servable model.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--repository", type=Path, default=BUNDLED, help=f"default: {BUNDLED}")
    parser.add_argument("--name", type=_name, help="the model's name (default: the recipe's)")
    parser.add_argument("--default", action="store_true", help="answer the route when no model is named")
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
