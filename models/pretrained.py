"""Publication of weights that were trained elsewhere: torchvision's, or a file's.

    python -m models.pretrained NAME                                       downloads, checks the sha256, publishes
    python -m models.pretrained NAME --weights FILE                        the same file, downloaded by hand
    python -m models.pretrained NAME --weights FILE --categories FILE      one's own, for the network NAME

A file is recognised as the published one by its sha256, never by its name. ResNet-50 and ResNet-101 take the newer of
torchvision's two sets of weights, IMAGENET1K_V2, which is torchvision's default.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.commands import command, serve_command
from models.convert import PARITY_BATCHES, ExportError, export_graph, halve_graph, parity
from models.evaluate import torch_predict
from models.graph import Served, ServedOnColours
from models.inspect import complexity
from models.options import PRECISIONS, add_precision, model_name
from models.published import CATEGORIES, PRETRAINED, Pretrained
from models.runs import hardware
from models.tasks import TASKS
from models.weights import WeightsError, build_network, categories_told_apart, download, read_categories, read_weights
from service.engines.onnxruntime import Engine
from service.errors import ModelRefused
from service.repository.card import (
    Dataset,
    ModelCard,
    Parity,
    Precision,
    Training,
)
from service.repository.folder import BUNDLED, GRAPH, file_entry, next_version, publish

MASK_VALUES = 256


def publish_pretrained(
    name: str,
    weights: Path,
    categories: Path | None,
    repository: Path,
    *,
    model: str,
    default: bool,
    precision: Precision = "float32",
) -> ModelCard:
    """Exports network ``name`` with the file ``weights`` and publishes it as the next version of ``model``.

    ``categories`` None takes those of torchvision's weights. Raises ``WeightsError``, and ``ExportError`` or
    ``ModelRefused`` where the graph does not answer like PyTorch.
    """
    pretrained = PRETRAINED[name]
    network, names = _network_and_categories(name, weights, categories)
    task = TASKS[pretrained.task]
    assert issubclass(task.served, ServedOnColours)
    served = task.served(network, pretrained.mean, pretrained.std).eval()
    shape = pretrained.preprocess.sample_shapes()[0]
    samples = random_pictures(task.parity_shape(shape), sum(PARITY_BATCHES))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / GRAPH
        export_graph(served, task, samples, graph)
        if precision == "float16":
            halve_graph(graph)
        said = {"name": model, "version": next_version(repository, model), "default": default, "precision": precision}
        draft = _draft_card(name, served, names, shape, weights, graph, **said)
        agreed = parity(
            torch_predict(served, torch.device("cpu")),
            Engine(draft, graph.read_bytes(), threads=0).run,
            samples,
            precision,
        )
        card = draft.model_copy(update={"parity": agreed})
        publish(card, graph, repository)
    return card


def _network_and_categories(
    name: str, weights: Path, categories: Path | None
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    pretrained = PRETRAINED[name]
    names = read_categories(categories or CATEGORIES / pretrained.categories)
    network = build_network(name, read_weights(weights))
    if (count := categories_told_apart(network)) != len(names):
        hint = "" if categories else "; name its own by --categories FILE"
        raise WeightsError(f"{weights} tells {count} categories apart, {len(names)} are named{hint}")
    if pretrained.palette is not None and count > MASK_VALUES:
        raise WeightsError(f"{weights} tells {count} categories apart, a mask holds at most {MASK_VALUES}")
    return network, names


def _draft_card(
    network: str,
    served: Served,
    categories: tuple[str, ...],
    shape: tuple[int, ...],
    weights: Path,
    graph: Path,
    **said: Any,
) -> ModelCard:
    """The card without parity, which the finished graph is measured for; ``said`` are the publisher's fields."""
    pretrained = PRETRAINED[network]
    task = TASKS[pretrained.task]
    with torch.inference_mode():
        prepared = served.prepare(torch.zeros(1, *shape, dtype=torch.uint8))
    description, dataset, training = _provenance(pretrained, weights)
    return ModelCard(
        **said,
        task=pretrained.task,
        architecture=f"{network}()",
        description=description,
        categories=categories,
        palette=None if pretrained.palette is None else pretrained.palette(len(categories)),
        input=task.input_spec(shape),
        preprocess=pretrained.preprocess,
        outputs=task.output_specs(len(categories)),
        dataset=dataset,
        metrics=(),
        training=training,
        parity=Parity(largest_difference=0.0, samples=0),
        complexity=complexity(served.network, prepared),
        files={GRAPH: file_entry(graph)},
    )


def random_pictures(shape: tuple[int, ...], count: int) -> list[NDArray[np.uint8]]:
    """(…, H, W, 3), uint8: blurred patches of colour with noise, as photographs have no flat areas."""
    random = np.random.default_rng(0)
    height, width = shape[-3:-1]

    def picture() -> NDArray[np.uint8]:
        patches = Image.fromarray(random.integers(0, 256, (7, 7, 3), np.uint8))
        blurred = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        return (blurred + random.normal(0, 8, blurred.shape)).clip(0, 255).astype(np.uint8)

    each = math.prod(shape[:-3])  # the frames of a clip
    return [np.stack([picture() for _ in range(each)]).reshape(shape) for _ in range(count)]


def _provenance(pretrained: Pretrained, path: Path) -> tuple[str, Dataset, Training]:
    """The card's description, data and training: torchvision's for its own weights, what is known for others."""
    if pretrained.is_in(path):
        description = f"{pretrained.description} torchvision states {pretrained.stated}; it was not measured here."
        recipe, dataset = f"torchvision {pretrained.file}: {pretrained.recipe}", pretrained.dataset
    else:
        description = f"Weights from the file {path.name}."
        recipe = f"not stated; {path.name}, sha256 {file_entry(path).sha256}"
        dataset = Dataset(name="not stated", source="not stated", licence="not stated", splits={})
    trained = f"not stated; exported on {hardware()}"
    return description, dataset, Training(recipe=recipe, epochs=0, seed=0, hardware=trained, hours=0.0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Publish a servable model of weights that were trained elsewhere.")
    parser.add_argument("network", choices=PRETRAINED, metavar="NAME", help=", ".join(PRETRAINED))
    parser.add_argument("--weights", type=Path, help="a file at hand: .safetensors, or torch.save's of a state_dict")
    parser.add_argument("--categories", type=Path, help="one category a line, for weights of one's own")
    parser.add_argument("--repository", type=Path, default=BUNDLED, help=f"default: {BUNDLED}")
    parser.add_argument("--name", type=model_name, help="the model's name (default: the network's)")
    parser.add_argument("--default", action="store_true", help="answer the route when no model is named")
    add_precision(parser)
    arguments = parser.parse_args(argv)
    pretrained = PRETRAINED[arguments.network]
    try:
        weights = arguments.weights or download(arguments.network)
    except WeightsError as error:
        given = command("models.pretrained", *(sys.argv[1:] if argv is None else argv), "--weights", pretrained.file)
        raise SystemExit(
            f"cannot publish: {error}\ndownload {pretrained.url} by hand, and give it:\n  {given}"
        ) from error
    try:
        card = publish_pretrained(
            arguments.network,
            weights,
            arguments.categories,
            arguments.repository,
            model=arguments.name or arguments.network,
            default=arguments.default,
            precision=PRECISIONS[arguments.precision],
        )
    except (WeightsError, ExportError, ModelRefused, FileExistsError) as error:
        raise SystemExit(f"cannot publish: {error}") from error
    place = arguments.repository / card.name / str(card.version)
    print(f"published {card.key} in {place}: {card.training.recipe}; {len(card.categories)} categories")
    print(f"differs from PyTorch by {card.parity.largest_difference:.1e}; serve it:")
    print(f"  {serve_command(arguments.repository)}")


if __name__ == "__main__":
    main()
