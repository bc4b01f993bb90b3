"""Interface of a task's training side. One object states all that training asks of a task; its other half, which
serves, stands in ``service.tasks``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from models.datasets import VOID, Example
from models.graph import Served
from models.recipes import Recipe
from service.repository.card import Colour, Metric, Preprocess, TensorSpec
from service.tasks.task import Outputs, Task

Predict = Callable[[Sequence[NDArray[np.generic]]], list[Outputs]]  # samples of one shape -> each sample's outputs


class TrainingError(Exception):
    """Options that do not suit the task, the data or the run that is to be continued; the message says which."""


class Randomness(NamedTuple):
    """A run's generators of random numbers, and the device that its batches lie on."""

    torch: torch.Generator
    numpy: np.random.Generator
    device: torch.device

    def tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


class Evaluation(NamedTuple):
    """Answers to a split, compared with the truth.

    ``confusion`` (C, C) has the truth by row. ``confidence`` and ``correct`` (n,) have an entry for each answer that is
    counted: each file, or each pixel. ``answers`` is what the task's sample figure is drawn from.
    """

    metrics: list[Metric]
    confusion: NDArray[np.int64]
    confidence: NDArray[np.floating]
    correct: NDArray[np.bool_]
    answers: Any


class CalibrationLogits(NamedTuple):
    """Logits (W, C) of windows, how much each counts (W,), the answer that each belongs to (W,), and each answer's true
    category (A,)."""

    logits: Tensor
    weights: Tensor
    owners: Tensor
    targets: Tensor


class SampleFigure(NamedTuple):
    """A figure of ``models.figures``, a sentence on what it shows, and what it is drawn from."""

    figure: Callable[..., Figure]
    note: str
    arguments: tuple[Any, ...]


class TrainingTask(ABC):
    """A task in training: its data, network, loss, metrics, report and graph."""

    serving: ClassVar[Task]
    served: ClassVar[type[Served]]  # the graph around the network
    unit: ClassVar[str] = "files"  # what confidences and the confusion matrix count

    input_name: ClassVar[str]  # of the graph
    input_dtype: ClassVar[Any] = "uint8"
    input_layout: ClassVar[str]
    free_axes: ClassVar[Mapping[int, str]] = {}  # axes of the input, beside the batch, that may have any size
    smallest_free_axis: ClassVar[int] = 32

    memory_format: ClassVar[torch.memory_format | None] = None  # that networks train fastest in
    bfloat16_on_cpu: ClassVar[bool] = True

    architectures: ClassVar[Mapping[str, Callable[..., nn.Module]]] = {}  # beside those of ``models.architectures``
    recipes: ClassVar[Sequence[Recipe]] = ()  # beside those of ``models.recipes``

    @property
    def name(self) -> str:
        return self.serving.name

    # Data

    @abstractmethod
    def categories(self, data: Path, known: tuple[str, ...] | None) -> tuple[str, ...]:
        """The categories of a data folder; ``known``, in its order, where it has them all. Raises ``DatasetError``."""

    @abstractmethod
    def files(self, split: Path, categories: Sequence[str]) -> list[Path]:
        """The files of examples, in the order in which ``load`` returns these. Raises ``DatasetError``."""

    @abstractmethod
    def load(
        self, data: Path, split: str, categories: tuple[str, ...], preprocess: Any, ignore_index: int = VOID
    ) -> list[Example]:
        """The examples of ``data/split``. ``ignore_index`` is the mask value that means void, where there are masks.

        Raises ``DatasetError``, also where the data has other categories.
        """

    def check_data(self, data: Path, categories: tuple[str, ...]) -> list[str]:
        """Warnings about data that could train silently wrong. Raises ``DatasetError`` for what surely would."""
        return []

    @abstractmethod
    def missing_categories(self, examples: Sequence[Example], categories: tuple[str, ...]) -> list[str]:
        """Categories that no example shows."""

    def adapted(self, recipe: Recipe, data: Path, own: bool) -> dict[str, Any]:
        """Fields of the recipe that depend on the data; ``own`` says that it is not the recipe's own data set."""
        return {}

    def resized(self, side: int) -> Preprocess:
        """Preprocessing to a square of ``side`` pixels. Raises ``TrainingError`` where a task has no such choice."""
        raise TrainingError(f"--size is not for {self.name}: its recipes state their sizes")

    def check_recipe(self, recipe: Recipe) -> None:
        """Raises ``TrainingError`` for options that do not go with the task."""
        if recipe.views != 1:
            raise TrainingError(f"--views is not for {self.name}: its graphs run the network once")

    # Network

    def wrap(self, network: nn.Module, recipe: Recipe) -> Served:
        """The graph around a recipe's network."""
        return self.served(network)

    def training_shape(self, recipe: Recipe) -> tuple[int, ...]:
        """Shape of a sample in a training batch."""
        return recipe.preprocess.sample_shapes()[0]

    def fits(self, network: nn.Module, logits: tuple[int, ...], batch: tuple[int, ...], categories: int) -> str:
        """Says what is wrong with a network that answers ``batch`` with ``logits``; empty where nothing is."""
        expected = (batch[0], categories)
        return "" if logits == expected else f"it answers {logits} where {expected} belongs"

    # Training step

    @abstractmethod
    def batch(
        self, chosen: Sequence[Example], recipe: Recipe, categories: tuple[str, ...], randomness: Randomness
    ) -> tuple[Tensor, Tensor]:
        """An augmented batch: samples (N, …) as the service makes them, and the targets that ``loss`` takes."""

    def category_weights(self, examples: Sequence[Example], categories: int, recipe: Recipe) -> Tensor | None:
        """(C,), the weight of each category in the loss, or None for equal weights."""
        return None

    @abstractmethod
    def loss(
        self, network: nn.Module, inputs: Tensor, targets: Tensor, recipe: Recipe, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The network's input, targets -> the loss, and the logits."""

    @abstractmethod
    def share_correct(self, logits: Tensor, targets: Tensor) -> float:
        """The share of a training batch that is answered correctly."""

    # Evaluation, calibration and report

    @abstractmethod
    def evaluate(
        self, predict: Predict, examples: Sequence[Example], categories: int, split: str, batch_size: int = 64
    ) -> Evaluation:
        """Compares answers with the truth, each file answered as the service answers it."""

    @abstractmethod
    def calibration_logits(
        self, served: Served, examples: Sequence[Example], device: torch.device
    ) -> CalibrationLogits:
        """Logits and truth that the temperature is fitted to."""

    @abstractmethod
    def sample_figure(
        self,
        predict: Predict,
        examples: Sequence[Example],
        evaluation: Evaluation,
        categories: tuple[str, ...],
        preprocess: Any,
        palette: tuple[Colour, ...] | None,
    ) -> SampleFigure:
        """Some of the answers, for the report."""

    # Export

    def input_spec(self, shape: tuple[int, ...]) -> TensorSpec:
        """The graph's input, for samples of ``shape``."""
        sizes = tuple(self.free_axes.get(axis, size) for axis, size in enumerate(shape, start=1))
        return TensorSpec(name=self.input_name, dtype=self.input_dtype, layout=self.input_layout, shape=("N", *sizes))

    def output_specs(self, categories: int) -> tuple[TensorSpec, ...]:
        """The graph's outputs, in the order and under the names that the serving task states."""
        (name,) = self.serving.outputs
        return (TensorSpec(name=name, dtype="float32", layout="NC", shape=("N", categories)),)

    def parity_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of random samples on which a graph is compared with PyTorch: free axes are cut to a quarter."""
        return tuple(size // 4 if axis in self.free_axes else size for axis, size in enumerate(shape, start=1))


def logits_of(served: Served, samples: Sequence[NDArray[np.generic]], device: torch.device) -> Tensor:
    """Logits of samples of one shape, float32, on the CPU."""
    batch = torch.from_numpy(np.stack(samples)).to(device)
    with torch.inference_mode():
        logits: Tensor = served.logits(batch).float().cpu()
    return logits
