"""Networks with random weights -> models, by the project's own export: of known cost, and at hand anywhere."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from models.architectures import ARCHITECTURES
from models.convert import PARITY_BATCHES, export_graph, parity
from models.evaluate import torch_predict
from models.graph import ServedClassifier
from models.inspect import complexity
from models.pretrained import random_pictures
from models.published import CATEGORIES
from models.tasks.classify import CLASSIFY
from models.weights import read_categories
from service.engines.onnxruntime import Engine
from service.repository.card import Dataset, ImagePreprocess, ModelCard, Parity, Training
from service.repository.folder import GRAPH, file_entry, publish

SEED = 0


class _Random(NamedTuple):
    build: Callable[..., nn.Module]
    side: int  # pixels
    shorter_side: int
    categories: tuple[str, ...]


_NETWORKS = {
    "resnet20": _Random(ARCHITECTURES["resnet_cifar"], 32, 32, tuple(f"category {number}" for number in range(10))),
    "resnet50": _Random(ARCHITECTURES["resnet50"], 224, 232, read_categories(CATEGORIES / "imagenet.txt")),
}


def publish_random(name: str, repository: Path) -> None:
    """Makes ``repository`` with this one model in it, whole or not at all."""
    build, side, shorter_side, categories = _NETWORKS[name]
    torch.manual_seed(SEED)
    network = build()
    served = ServedClassifier(network)
    samples = random_pictures((side, side, 3), sum(PARITY_BATCHES))
    _normalise(served, torch.stack([torch.from_numpy(sample) for sample in samples]))
    repository.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository.parent) as folder:
        graph, whole = Path(folder) / GRAPH, Path(folder) / "repository"
        export_graph(served, CLASSIFY, samples, graph)
        draft = ModelCard(
            name=name,
            version=1,
            task="classify",
            default=True,
            architecture=f"{name}()",
            description="Random weights, for measuring speed.",
            categories=categories,
            input=CLASSIFY.input_spec((side, side, 3)),
            preprocess=ImagePreprocess(resize="crop", sizes=((side, side),), shorter_side=shorter_side),
            outputs=CLASSIFY.output_specs(len(categories)),
            dataset=Dataset(name="none", source="none", licence="none", splits={}),
            metrics=(),
            training=Training(recipe="none: random weights", epochs=0, seed=SEED, hardware="none", hours=0.0),
            parity=Parity(largest_difference=0.0, samples=0),
            complexity=complexity(network, torch.zeros(1, 3, side, side)),
            files={GRAPH: file_entry(graph)},
        )
        engine = Engine(draft, graph.read_bytes(), threads=1)
        agreed = parity(torch_predict(served, torch.device("cpu")), engine.run, samples)
        publish(draft.model_copy(update={"parity": agreed}), graph, whole)
        whole.rename(repository)


def _normalise(served: ServedClassifier, batch: torch.Tensor) -> None:
    """Lets the batch norms see pictures once: without, sums grow from layer to layer until one category takes all."""
    for module in served.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what is seen
    with torch.no_grad():
        served.train()(batch)
    served.eval()
