"""The bundled models as the README's table shows them, their speed measured here and now.

python -m benchmarks.models
"""

import statistics
import time

from service.engines.onnxruntime import Engine
from service.repository.card import ModelCard
from service.repository.folder import BUNDLED, StoredModel, find_models, read_graph

RUNS = 50


def milliseconds(model: StoredModel) -> float:
    """Median of one sample through ONNX Runtime on one CPU thread."""
    engine = Engine(model.card, read_graph(model), device="cpu", threads=1)
    engine.warm_up(1)
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        engine.run([engine.blank()])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


def row(model: StoredModel) -> str:
    card = model.card
    return " | ".join(
        [
            f"| `{card.key}`",
            f"`/{card.task}`",
            f"{card.architecture}",
            f"{card.dataset.name}",
            _measured(card),
            f"{card.complexity.parameters / 1e6:.2f} M",
            f"{card.complexity.macs * card.complexity.views / 1e6:,.0f} M",
            f"{_megabytes(card):.1f} MB",
            f"{milliseconds(model):.1f}",
            f"{card.training.hours:.2f} h |",
        ]
    )


def _measured(card: ModelCard) -> str:
    """The first metric, on each split."""
    name = card.metrics[0].name
    found = [metric for metric in card.metrics if metric.name == name]
    return f"{name} " + ", ".join(f"{metric.value:.2%} ({metric.samples:,} of {metric.split})" for metric in found)


def _megabytes(card: ModelCard) -> float:
    return sum(file.bytes for file in card.files.values()) / 1e6


def main() -> None:
    print("| model | route | network | data | measured | parameters | MACs | size | CPU ms | training |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in find_models(BUNDLED)[0]:
        print(row(model))


if __name__ == "__main__":
    main()
