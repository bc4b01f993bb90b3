"""One ONNX Runtime session: which hardware it runs on, warm-up, run."""

import ctypes
import functools
import logging
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.cards import ModelCard, TensorSpec
from service.errors import ModelRefused

logger = logging.getLogger("convserve.engine")

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
Outputs = tuple[NDArray[np.generic], ...]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_DTYPES = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(float16)": "float16", "tensor(float)": "float32"}


class DeviceUnusable(Exception):
    """The device that was asked for by name cannot be used; the message says why."""


class Engine:
    """Runs one model's graph on batches. ``run`` may be called from any thread, one at a time.

    ``device``: ``auto`` takes CUDA if it works, and else the CPU with a warning; a device asked for by name that does
    not work raises ``DeviceUnusable``. ``threads`` is what one ``run`` uses of the CPU, 0 being all. Raises
    ``ModelRefused`` for a graph that ONNX Runtime does not load or run, or that does not fit the card.
    """

    def __init__(self, card: ModelCard, graph: bytes, *, device: Device = "cpu", threads: int = 1) -> None:
        self.card = card
        self._session = _session(card, graph, device, threads)
        self.provider = self._session.get_providers()[0]
        self._input = card.input.name
        self._outputs = [output.name for output in card.outputs]
        self._dtype = np.dtype(card.input.dtype)
        _check_tensors(card.key, "input", self._session.get_inputs(), (card.input,))
        _check_tensors(card.key, "output", self._session.get_outputs(), card.outputs)
        self._check_runs()

    def _check_runs(self) -> None:
        """Runs a blank sample of every shape that will come: the card's preprocessing and categories must fit."""
        for shape in self.card.sample_shapes():
            try:
                outputs = self.run([self.blank(shape)])[0]
            except Exception as error:  # as in _create
                raise ModelRefused(self.card.key, "graph", f"it does not run on samples {shape}: {error}") from error
            expected = shape[:2] if self.card.task == "segment" else (len(self.card.categories),)
            if wrong := [output.shape for output in outputs if output.shape != expected]:
                raise ModelRefused(self.card.key, "graph", f"it answers {wrong[0]} where the card states {expected}")

    def run(self, samples: Sequence[NDArray[np.generic]]) -> list[Outputs]:
        """Samples of one shape -> each sample's outputs, in the card's order."""
        size = self._padded_size(len(samples))
        batch = np.empty((size, *samples[0].shape), self._dtype)
        for row in range(size):
            batch[row] = samples[min(row, len(samples) - 1)]
        outputs = self._session.run(self._outputs, {self._input: batch})
        return [tuple(output[row] for output in outputs) for row in range(len(samples))]

    def batch_sizes(self, max_batch: int) -> list[int]:
        """The batch sizes that will run: on a GPU powers of two, to which batches are padded, as cuDNN and TensorRT
        prepare themselves anew for every shape; on the CPU any, of which the smallest and the largest stand for all.
        """
        if self.provider == CPU:
            return sorted({1, max_batch})
        sizes = [1]
        while sizes[-1] < max_batch:
            sizes.append(sizes[-1] * 2)
        return sizes

    def warm_up(self, max_batch: int) -> float:
        """Runs every batch size that will run on every shape that will come: no client pays for a first time.

        Returns the samples per second of the largest batch, once warm.
        """
        for shape in self.card.sample_shapes():
            for size in self.batch_sizes(max_batch):
                batch = [self.blank(shape)] * size
                self.run(batch)
        began = time.perf_counter()
        self.run(batch)
        return len(batch) / (time.perf_counter() - began)

    def blank(self, shape: tuple[int, ...] | None = None) -> NDArray[np.generic]:
        """A sample that every sound model answers: it tells a bad sample from a broken engine."""
        return np.zeros(shape or self.card.sample_shapes()[0], self._dtype)

    def _padded_size(self, count: int) -> int:
        return count if self.provider == CPU else 1 << (count - 1).bit_length()


def _session(card: ModelCard, graph: bytes, device: Device, threads: int) -> ort.InferenceSession:
    wanted = {"cpu": [], "auto": [CUDA], "cuda": [CUDA], "tensorrt": [TENSORRT, CUDA]}[device]
    problem = _cuda_problem(wanted[0]) if wanted else None
    if problem is None and wanted:
        ort.preload_dlls()  # CUDA and cuDNN from their own wheels, where those are installed
    session = _create(card, graph, [] if problem else wanted, threads)
    if problem is None and wanted and session.get_providers()[0] != wanted[0]:
        problem = "its libraries cannot be loaded; convserve[gpu] installs those of CUDA"
    if problem and device != "auto":
        raise DeviceUnusable(f"CONVSERVE_DEVICE={device} cannot be used: {problem}")
    if problem:
        _warn_once(problem)
    return session


@functools.cache
def _warn_once(problem: str) -> None:
    """Once a process, not once a model."""
    logger.warning("models run on the CPU: CUDA cannot be used, %s", problem)


def _create(card: ModelCard, graph: bytes, providers: list[str], threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves the decoders
    options.log_severity_level = 4  # what goes wrong is raised, and logged by us
    try:
        return ort.InferenceSession(graph, options, providers=[*providers, CPU])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise ModelRefused(card.key, "graph", f"ONNX Runtime refuses the graph: {error}") from error


def _cuda_problem(provider: str) -> str | None:
    """Why an NVIDIA GPU cannot be used at all, or None. Cheap: asks the driver, loads nothing else."""
    if provider not in ort.get_available_providers():
        return f"this ONNX Runtime has no {provider}"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    return None


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
