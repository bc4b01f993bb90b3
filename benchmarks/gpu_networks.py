"""The networks that ``benchmarks.gpu`` compares: with random weights, for how well they answer does not matter, as
PyTorch modules and as the graphs that this project's export makes of them, in float32 and float16."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from models.architectures import ARCHITECTURES
from models.convert import export_graph
from models.graph import Served
from models.half import to_float16
from models.inspect import complexity
from models.pretrained import random_pictures
from models.tasks import TASKS
from service.repository.card import (
    AudioPreprocess,
    Complexity,
    Dataset,
    ImagePreprocess,
    ModelCard,
    Parity,
    Precision,
    Preprocess,
    Training,
    VideoPreprocess,
)
from service.repository.folder import GRAPH, file_entry

_SEED = 0
_AUDIO_RATE_HZ = 8000
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Spec:
    """``shape`` is one sample's, as the service makes it; ``small`` one for trying the benchmark out."""

    task: str
    categories: int
    shape: tuple[int, ...]
    small: tuple[int, ...]


SPECS = {
    "resnet50": Spec("classify", 1000, (224, 224, 3), (64, 64, 3)),
    "fcn_context": Spec("segment", 11, (360, 480, 3), (48, 64, 3)),
    "fcn_resnet50": Spec("segment", 21, (520, 520, 3), (64, 64, 3)),
    "audio_cnn": Spec("audio", 11, (1, _AUDIO_RATE_HZ), (1, _AUDIO_RATE_HZ // 5)),
    "video_cnn": Spec("video", 10, (16, 64, 64, 3), (8, 32, 32, 3)),
}


class Network:
    """One of ``SPECS``, made and exported when it is first asked for; graphs are kept in ``folder``."""

    def __init__(self, name: str, folder: Path, *, quick: bool = False) -> None:
        self.name, self.spec = name, SPECS[name]
        self.shape = self.spec.small if quick else self.spec.shape
        self._folder = folder / ("quick" if quick else "full")

    @cached_property
    def served(self) -> Served:
        """Between samples and answers, in evaluation mode, in float32, on the CPU."""
        torch.manual_seed(_SEED)
        served = TASKS[self.spec.task].served(ARCHITECTURES[self.name](num_classes=self.spec.categories))
        _settle(served, torch.from_numpy(np.stack(self.samples(2))))
        return served.eval()

    def samples(self, count: int) -> list[NDArray[np.generic]]:
        """Pictures or clips of blurred patches, or noise: nothing is flat, as nothing is in what is recorded."""
        if self.spec.task == "audio":
            random = np.random.default_rng(_SEED)
            return [random.normal(0, 0.1, self.shape).astype(np.float32) for _ in range(count)]
        few = random_pictures(self.shape, min(count, 4))
        return [few[number % len(few)] for number in range(count)]

    def graph(self, precision: Precision) -> Path:
        """The file, exported if it is not there yet."""
        path = self._folder / f"{self.name}-{precision}.onnx"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            if precision == "float16":
                onnx.save(to_float16(onnx.load(self.graph("float32"))), part)
            else:
                export_graph(self.served, TASKS[self.spec.task], self.samples(2), part)
            part.rename(path)
        return path

    @cached_property
    def complexity(self) -> Complexity:
        return complexity(self.served.network, self.served.prepare(torch.from_numpy(np.stack(self.samples(1)))))

    def card(self, precision: Precision) -> ModelCard:
        return ModelCard(
            name=self.name,
            version=1,
            task=self.spec.task,
            default=True,
            architecture=f"{self.name}()",
            precision=precision,
            description="Random weights, for measuring speed.",
            categories=tuple(f"category {number}" for number in range(self.spec.categories)),
            palette=((0, 0, 0),) * self.spec.categories if self.spec.task == "segment" else None,
            input=TASKS[self.spec.task].input_spec(self.shape),
            preprocess=_preprocess(self.spec.task, self.shape),
            outputs=TASKS[self.spec.task].output_specs(self.spec.categories),
            dataset=Dataset(name="none", source="none", licence="none", splits={}),
            metrics=(),
            training=Training(recipe="none: random weights", epochs=0, seed=_SEED, hardware="none", hours=0.0),
            parity=Parity(largest_difference=0.0, samples=0),
            complexity=self.complexity,
            files={GRAPH: file_entry(self.graph(precision))},
        )


def _preprocess(task: str, shape: Sequence[int]) -> Preprocess:
    if task == "audio":
        seconds = shape[-1] / _AUDIO_RATE_HZ
        return AudioPreprocess(sample_rate_hz=_AUDIO_RATE_HZ, window_seconds=seconds, hop_seconds=seconds)
    size: Any = tuple(shape[-3:-1])
    if task == "video":
        return VideoPreprocess(frame_rate_hz=8, frames=shape[0], hop_seconds=1.0, shorter_side=min(size), size=size)
    if task == "segment":
        return ImagePreprocess(resize="pad", sizes=(size,))
    return ImagePreprocess(resize="crop", sizes=(size,), shorter_side=max(size))


def _settle(served: Served, batch: torch.Tensor) -> None:
    """Lets the batch norms see a batch: without, sums grow from layer to layer, in float16 beyond what it can hold."""
    for module in served.modules():
        if isinstance(module, _BATCH_NORMS):
            module.momentum = None  # the plain mean of what is seen
    with torch.no_grad():
        served.train()(batch)
