"""A network -> a graph that the service's own engine answers like PyTorch."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from models.evaluate import Predict
from models.graph import Served
from service.cards import OUTPUTS_OF_TASK, Parity, Task, TensorSpec

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


def input_spec(task: Task, shape: tuple[int, ...]) -> TensorSpec:
    """Of the graph's input, for samples of ``shape``."""
    return TensorSpec(
        name=_INPUTS[task],
        dtype="float32" if task == "audio" else "uint8",
        layout=_LAYOUTS[task],
        shape=("N", "H", "W", 3) if task == "segment" else ("N", *shape),
    )


def output_specs(task: Task, categories: int) -> tuple[TensorSpec, ...]:
    if task == "segment":
        return (
            TensorSpec(name="mask", dtype="uint8", layout="NHW", shape=("N", "H", "W")),
            TensorSpec(name="confidence", dtype="float32", layout="NHW", shape=("N", "H", "W")),
        )
    return (TensorSpec(name="probabilities", dtype="float32", layout="NC", shape=("N", categories)),)
