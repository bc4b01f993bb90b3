"""Export of a network to an ONNX graph, in float32 or float16, and the comparison of its outputs with PyTorch's."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from models.graph import Served
from models.half import to_float16
from models.metrics import SHARES
from models.tasks.task import Predict, TrainingTask
from service.repository.card import Metric, Parity, Precision

OPSET = 18
PARITY_BATCHES = (1, 3, 8)
PARITY_LIMITS: dict[Precision, float] = {"float32": 1e-4, "float16": 2e-3}
LARGEST_LOSS = 0.002  # of a metric, by float16
_MOST = 4096  # samples in a batch, and the size of a free axis


class ExportError(Exception):
    """A graph that does not compute what the network computes."""


def export_graph(served: Served, task: TrainingTask, samples: Sequence[NDArray[np.generic]], path: Path) -> None:
    """Writes the graph, its batch axis and the task's free axes of any size, its weights inside the file."""
    batch = torch.from_numpy(np.stack(samples[:2]))
    axes: dict[int, object] = {0: torch.export.Dim("N", min=1, max=_MOST)}
    for axis, name in task.free_axes.items():
        axes[axis] = torch.export.Dim(name, min=task.smallest_free_axis, max=_MOST)
    with _quiet_exporter():
        torch.onnx.export(
            served.eval(),
            (batch,),
            path,
            input_names=[task.input_name],
            output_names=list(task.serving.outputs),
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


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences what the exporter says of itself: that torchvision is absent, and an interface deprecated."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def halve_graph(path: Path) -> None:
    """Rewrites the graph at ``path`` to compute in float16. Raises ``ExportError`` where it cannot."""
    try:
        onnx.save(to_float16(onnx.load(path)), path)
    except (ValueError, OverflowError) as error:
        raise ExportError(f"the graph cannot compute in float16: {error}") from error


def require_as_good(exact: Sequence[Metric], halved: Sequence[Metric]) -> None:
    """Raises ``ExportError`` where float16 costs more than 0.2 points of accuracy, mIoU or pixel accuracy."""
    for ours, theirs in zip(exact, halved, strict=True):
        if ours.name in SHARES and round(ours.value - theirs.value, 4) > LARGEST_LOSS:
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

    Outputs of whole numbers, such as masks, may differ in that share of their elements, where two categories tie.
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
    """Raises ``ExportError`` for values that are not finite: NaN is neither above nor below a limit."""
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    if not np.isfinite(difference).all():
        raise ExportError("the network or its graph answers with values that are not finite")
    return float(difference.max())
