"""bytes -> samples -> outputs -> answer, by the service's own code: what every contestant runs, inside of its own
HTTP and its own batching. The limit runs it without either.

It needs numpy, Pillow, PyAV, zlib-ng, pydantic and ONNX Runtime, so that it runs in the peers' environments as well.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from service.engines.engine import Outputs
from service.engines.onnxruntime import Engine
from service.media import NO_DEADLINE, Limits
from service.repository.card import ModelCard
from service.tasks import TASKS
from service.tasks.task import JSON, Prepared

Answer = list[dict[str, Any]]  # [{"label", "score"}], of a segmenter with "mask"


@dataclass(frozen=True)
class Setup:
    """What a contestant is told: the folder of the model, where to listen on 127.0.0.1, how many processes may compute
    at once, and how many samples may share a batch."""

    model: Path
    port: int
    workers: int
    max_batch: int

    def environment(self) -> dict[str, str]:
        return {f"BENCH_{name.upper()}": str(value) for name, value in vars(self).items()}

    @classmethod
    def read(cls) -> Self:
        """From the environment. Raises ``KeyError`` where there is none."""
        number = {name: int(os.environ[f"BENCH_{name.upper()}"]) for name in ("port", "workers", "max_batch")}
        return cls(model=Path(os.environ["BENCH_MODEL"]), **number)


class Stages:
    """One model on one CPU thread."""

    def __init__(self, folder: Path) -> None:
        self.card = ModelCard.model_validate_json((folder / "card.json").read_bytes())
        self._engine = Engine(self.card, (folder / "model.onnx").read_bytes(), device="cpu", threads=1)
        self._task = TASKS[self.card.task]
        self._parameters = self._task.parameters()
        self._spec = self._task.decode_spec(self.card.preprocess, self._parameters)

    def prepare(self, data: bytes) -> Prepared:
        """Raises the service's refusals for what is not the card's media."""
        return self._task.prepare(self._task.decode(data, self._spec, Limits(), NO_DEADLINE), self.card.preprocess)

    def infer(self, requests: Sequence[Prepared]) -> list[list[Outputs]]:
        """Each request's outputs, one a sample; samples of one shape run together, whomever they belong to."""
        rows: dict[tuple[int, ...], list[tuple[int, NDArray[np.generic]]]] = defaultdict(list)
        for number, request in enumerate(requests):
            for sample in request.samples:
                rows[sample.shape].append((number, sample))
        outputs: list[list[Outputs]] = [[] for _ in requests]
        for batch in rows.values():
            for (number, _), output in zip(batch, self._engine.run([sample for _, sample in batch]), strict=True):
                outputs[number].append(output)
        return outputs

    def answer(self, request: Prepared, outputs: Sequence[Outputs]) -> Answer:
        answer = self._task.finish(outputs, request, self.card, self._parameters, JSON)
        return cast(Answer, [part.model_dump() if isinstance(part, BaseModel) else part for part in answer])

    def answers(self, bodies: Sequence[bytes]) -> list[Answer]:
        """All stages, for a server that hands over a batch of bodies."""
        requests = [self.prepare(body) for body in bodies]
        return [self.answer(*pair) for pair in zip(requests, self.infer(requests), strict=True)]
