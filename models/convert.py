"""A network -> a graph that the service's own engine answers like PyTorch, in float32 or float16."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from models.evaluate import Predict
from models.graph import Served
from models.half import to_float16
from service.repository.card import OUTPUTS_OF_TASK, Metric, Parity, Precision, Task, TensorSpec

OPSET = 18
PARITY_BATCHES = (1, 3, 8)
PARITY_LIMITS: dict[Precision, float] = {"float32": 1e-4, "float16": 2e-3}
LARGEST_LOSS = 0.002  # of a metric, by float16
_SHARES_RIGHT = ("accuracy", "mIoU", "pixel accuracy")
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


def halve_graph(path: Path) -> None:
    """Rewrites the graph at ``path`` to compute in float16. Raises ``ExportError`` where it cannot."""
    try:
        onnx.save(to_float16(onnx.load(path)), path)
    except (ValueError, OverflowError) as error:
        raise ExportError(f"the graph cannot compute in float16: {error}") from error


def require_as_good(exact: Sequence[Metric], halved: Sequence[Metric]) -> None:
    """Raises ``ExportError`` where float16 costs more than 0.2 points of accuracy, mIoU or pixel accuracy."""
    for ours, theirs in zip(exact, halved, strict=True):
        if ours.name in _SHARES_RIGHT and round(ours.value - theirs.value, 4) > LARGEST_LOSS:
            raise ExportError(
                f"in float16 the {ours.name} on {ours.split} is {theirs.value:.2%} instead of {ours.value:.2%}; "
                f"at most {LARGEST_LOSS * 100:.1f} points less are allowed"
            )


def parity(
    reference: Predict,
    exported: Predict,
    samples: Sequence[NDArray[np.generic]],
    precision: Precision = "float32",
) -> Parity:
    """Compares both on real samples in batches of 1, 3 and 8. Raises ``ExportError`` above 1e-4, in float16 2e-3.

    Of a segmenter the probabilities are compared, and that masks differ only where two categories tie.
    """
    limit = PARITY_LIMITS[precision]
    worst = 0.0
    seen = 0
    for size in PARITY_BATCHES:
        chosen = samples[seen : seen + size]
        for ours, theirs in zip(reference(chosen), exported(chosen), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                if np.issubdtype(a.dtype, np.floating):
                    worst = max(worst, _largest_difference(a, b))
                elif (share := float(np.mean(a != b))) > limit:
                    raise ExportError(f"{share:.2%} of the mask's pixels differ from PyTorch's")
        seen += len(chosen)
    if worst > limit:
        raise ExportError(f"the graph differs from PyTorch by {worst:.1e}; at most {limit} is allowed in {precision}")
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
