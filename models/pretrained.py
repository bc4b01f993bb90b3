"""Weights from elsewhere -> a servable model: those that torchvision publishes, or a file at hand.

    python -m models.pretrained NAME                                       downloads, checks the sha256, publishes
    python -m models.pretrained NAME --weights FILE                        the same file, downloaded by hand
    python -m models.pretrained NAME --weights FILE --categories FILE      one's own, for the network NAME

Whether a file is the published one is told by its sha256, never by its name. Of the two sets of weights that there are
of ResNet-50 and ResNet-101 it is the newer, IMAGENET1K_V2, as torchvision itself brings by default.
"""

import argparse
import math
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.convert import PARITY_BATCHES, ExportError, export_graph, halve_graph, input_spec, output_specs, parity
from models.evaluate import torch_predict
from models.graph import Served, ServedClassifier, ServedSegmenter, ServedWatcher
from models.inspect import complexity
from models.options import PRECISIONS, add_precision, model_name
from models.published import CATEGORIES, PRETRAINED, Pretrained
from models.runs import hardware
from models.weights import WeightsError, build_network, categories_told_apart, download, read_categories, read_weights
from service.engines.onnxruntime import Engine
from service.errors import ModelRefused
from service.repository.card import (
    Colour,
    Dataset,
    ImagePreprocess,
    ModelCard,
    Parity,
    Precision,
    Task,
    Training,
    VideoPreprocess,
)
from service.repository.folder import BUNDLED, GRAPH, file_entry, next_version, publish

MASK_VALUES = 256
_SERVED = {"classify": ServedClassifier, "segment": ServedSegmenter, "video": ServedWatcher}


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
    served = _SERVED[pretrained.task](network, pretrained.mean, pretrained.std).eval()
    shape = _sample_shape(pretrained.preprocess)
    samples = random_pictures(_compared_shape(shape, pretrained.task), sum(PARITY_BATCHES))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / GRAPH
        export_graph(served, pretrained.task, samples, graph)
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
    if pretrained.task == "segment" and count > MASK_VALUES:
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
    """The card but for whether the graph agrees with PyTorch; ``said`` is what the publisher chooses of it."""
    pretrained = PRETRAINED[network]
    with torch.inference_mode():
        prepared = served.prepare(torch.zeros(1, *shape, dtype=torch.uint8))
    description, dataset, training = _provenance(pretrained, weights)
    return ModelCard(
        **said,
        task=pretrained.task,
        architecture=f"{network}()",
        description=description,
        categories=categories,
        palette=voc_colours(len(categories)) if pretrained.task == "segment" else None,
        input=input_spec(pretrained.task, shape),
        preprocess=pretrained.preprocess,
        outputs=output_specs(pretrained.task, len(categories)),
        dataset=dataset,
        metrics=(),
        training=training,
        parity=Parity(largest_difference=0.0, samples=0),
        complexity=complexity(served.network, prepared),
        files={GRAPH: file_entry(graph)},
    )


def random_pictures(shape: tuple[int, ...], count: int) -> list[NDArray[np.uint8]]:
    """(…, H, W, 3), uint8: blurred patches of colour with some grain, as in photographs nothing is flat."""
    random = np.random.default_rng(0)
    height, width = shape[-3:-1]

    def picture() -> NDArray[np.uint8]:
        patches = Image.fromarray(random.integers(0, 256, (7, 7, 3), np.uint8))
        blurred = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        return (blurred + random.normal(0, 8, blurred.shape)).clip(0, 255).astype(np.uint8)

    each = math.prod(shape[:-3])  # the frames of a clip
    return [np.stack([picture() for _ in range(each)]).reshape(shape) for _ in range(count)]


def voc_colours(count: int) -> tuple[Colour, ...]:
    """VOC's own, black first, for up to 256 categories: the bits of a number, lowest first, go to red, green and blue
    in turn, there from the highest down (VOClabelcolormap.m of the development kit, Everingham et al. 2010)."""

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * place + first) & 1) << (7 - place) for place in range(3))

    return tuple((channel(number, 0), channel(number, 1), channel(number, 2)) for number in range(count))


def _sample_shape(preprocess: ImagePreprocess | VideoPreprocess) -> tuple[int, ...]:
    if isinstance(preprocess, VideoPreprocess):
        return (preprocess.frames, *preprocess.size, 3)
    return (*preprocess.sizes[0], 3)


def _compared_shape(shape: tuple[int, ...], task: Task) -> tuple[int, ...]:
    """A segmenter's graph takes pictures of any size: a quarter of its own spares minutes on a CPU."""
    return (shape[0] // 4, shape[1] // 4, 3) if task == "segment" else shape


def _provenance(pretrained: Pretrained, path: Path) -> tuple[str, Dataset, Training]:
    """The card's description, data and training: torchvision's for its own weights, what is known of any other."""
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
        given = shlex.join([*(sys.argv[1:] if argv is None else argv), "--weights", pretrained.file])
        raise SystemExit(
            f"cannot publish: {error}\ndownload {pretrained.url} by hand, and give it:\n"
            f"  python -m models.pretrained {given}"
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
    print(f"  CONVSERVE_REPOSITORY={arguments.repository.resolve()} make serve")


if __name__ == "__main__":
    main()
