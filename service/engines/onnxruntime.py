"""The ONNX Runtime engine: one model on one session, checked against its card, padded, warmed up and run."""

import dataclasses
import functools
import logging
import time
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from service.engines.engine import Outputs, Sample
from service.engines.gpu_batches import CudaMemory, GpuBatches
from service.engines.providers import (
    CPU,
    CUDA,
    TENSORRT,
    Device,
    DeviceUnusable,
    GpuOptions,
    Opened,
    open_session,
    warn_of_cpu,
)
from service.errors import ModelRefused
from service.repository.card import ModelCard, TensorSpec

__all__ = ["CPU", "CUDA", "TENSORRT", "Device", "DeviceUnusable", "Engine", "GpuOptions"]

logger = logging.getLogger("convserve.engine")

_MAX_BATCH = 32  # that a GPU prepares for, where nothing else is said
_DTYPES = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(float16)": "float16", "tensor(float)": "float32"}


class Engine:
    """Runs one model's graph on batches. ``run`` may be called from any thread, one at a time.

    ``device``: ``auto`` takes CUDA if it works, and else the CPU with a warning; a device asked for by name that does
    not work raises ``DeviceUnusable``. ``threads`` is what one ``run`` uses of the CPU, 0 being all. ``max_batch`` is
    what a GPU prepares for; no larger batch should come. Raises ``ModelRefused`` for a graph that ONNX Runtime does not
    load or run, or that does not fit the card.
    """

    def __init__(
        self,
        card: ModelCard,
        graph: bytes,
        *,
        device: Device = "cpu",
        threads: int = 1,
        max_batch: int | None = None,
        options: GpuOptions | None = None,
    ) -> None:
        self.card = card
        self._input = card.input.name
        self._outputs = [output.name for output in card.outputs]
        self._dtype = np.dtype(card.input.dtype)
        options = options or GpuOptions()
        largest_batch = _power_of_two(max_batch or _MAX_BATCH)
        opening = functools.partial(open_session, card, graph, threads=threads, largest_batch=largest_batch)
        opened = opening(device=device, options=options)
        self._use(opened)
        _check_tensors(card.key, "input", self._session.get_inputs(), (card.input,))
        _check_tensors(card.key, "output", self._session.get_outputs(), card.outputs)
        try:
            self._check_runs()
        except ModelRefused as refused:  # by the GPU, perhaps: too old a one says so at its first run
            if device != "auto" or self.provider == CPU:
                raise
            self._use(opening(device="cpu", options=options))
            self._check_runs()
            warn_of_cpu(str(refused))
        # Kept until the warm-up has shown whether they work.
        plain = functools.partial(opening, device=device, options=dataclasses.replace(options, cuda_graphs=False))
        self._open_without_graphs = plain if opened.cuda_graphs and self.provider == CUDA else None

    def _use(self, opened: Opened) -> None:
        self._session, self.provider = opened.session, opened.provider
        self._gpu = None if self.provider == CPU else GpuBatches(self.card, self._session, CudaMemory())
        self._ran: set[tuple[tuple[int, ...], int]] = set()  # shapes and batch sizes, so that each is warmed up once

    def _check_runs(self) -> None:
        """Runs a blank sample of every shape that will come: the card's preprocessing and categories must fit."""
        for shape in self.card.sample_shapes():
            try:
                outputs = self.run([self.blank(shape)])[0]
                self._ran.add((shape, 1))
            except Exception as error:  # ONNX Runtime's have no common base but this
                raise ModelRefused(self.card.key, "graph", f"it does not run on samples {shape}: {error}") from error
            for output, stated in zip(outputs, self.card.output_shapes(shape), strict=True):
                if output.shape != stated:
                    detail = f"it answers {output.shape} where the card states {stated}"
                    raise ModelRefused(self.card.key, "graph", detail)

    def run(self, samples: Sequence[Sample]) -> list[Outputs]:
        """Samples of one shape -> each sample's outputs, in the card's order."""
        if self._gpu is not None:
            outputs = self._gpu.run(samples, self.padded_size(len(samples)))
        else:
            batch = np.empty((len(samples), *samples[0].shape), self._dtype)
            for row, sample in enumerate(samples):
                batch[row] = sample
            outputs = self._session.run(self._outputs, {self._input: batch})
        return [tuple(output[row] for output in outputs) for row in range(len(samples))]

    def padded_size(self, count: int) -> int:
        """Samples that are computed when ``count`` are run."""
        return count if self.provider == CPU else _power_of_two(count)

    def batch_sizes(self, max_batch: int) -> list[int]:
        """The batch sizes that will run: on a GPU powers of two, to which batches are padded, as cuDNN and TensorRT
        prepare themselves anew for every shape; on the CPU any, of which the smallest and the largest stand for all.
        """
        if self.provider == CPU:
            return sorted({1, max_batch})
        return [2**power for power in range(_power_of_two(max_batch).bit_length())]

    def warm_up(self, max_batch: int) -> float:
        """Runs every batch size that will run on every shape that will come: no client pays for a first time.

        Returns the samples per second of the largest batch, once warm. On a GPU nothing else may use it meanwhile.
        """
        self._run_all(max_batch)
        if self._gpu is not None and self._open_without_graphs is not None:
            try:
                self._gpu.capture()
            except Exception as error:  # whatever CUDA or ONNX Runtime finds in the way; without, all goes on
                logger.warning("%s runs without CUDA graphs: %s", self.card.key, error)
                self._use(self._open_without_graphs())
                self._run_all(max_batch)
            self._open_without_graphs = None
        batch = [self.blank(self.card.sample_shapes()[-1])] * self.batch_sizes(max_batch)[-1]
        began = time.perf_counter()
        self.run(batch)
        return len(batch) / (time.perf_counter() - began)

    def _run_all(self, max_batch: int) -> None:
        for shape in self.card.sample_shapes():
            for size in self.batch_sizes(max_batch):
                if (shape, size) not in self._ran:
                    self.run([self.blank(shape)] * size)
                    self._ran.add((shape, size))

    def blank(self, shape: tuple[int, ...] | None = None) -> Sample:
        """A sample that every sound model answers: it tells a bad sample from a broken engine."""
        return np.zeros(shape or self.card.sample_shapes()[0], self._dtype)


def _power_of_two(count: int) -> int:
    """The smallest that is not below ``count``."""
    return 1 << (count - 1).bit_length()


def _check_tensors(key: str, kind: str, found: Sequence[ort.NodeArg], stated: Sequence[TensorSpec]) -> None:
    """The graph's tensors must be the card's: names, dtypes, and sizes wherever both give a number."""
    by_name = {tensor.name: tensor for tensor in found}
    for spec in stated:
        tensor = by_name.get(spec.name)
        if tensor is None:
            raise ModelRefused(key, "graph", f"the card states {kind} {spec.name!r}, the graph has {sorted(by_name)}")
        if _DTYPES.get(tensor.type) != spec.dtype:
            raise ModelRefused(key, "graph", f"{kind} {spec.name!r} is {tensor.type}, the card states {spec.dtype}")
        shape = tuple(tensor.shape)
        same = len(shape) == len(spec.shape) and all(
            a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(shape, spec.shape, strict=True)
        )
        if not same or isinstance(shape[0], int):
            raise ModelRefused(key, "graph", f"{kind} {spec.name!r} is {shape}, the card states {spec.shape}")
    if kind == "input" and len(by_name) != 1:
        raise ModelRefused(key, "graph", f"the graph wants the inputs {sorted(by_name)}; one can be fed")
