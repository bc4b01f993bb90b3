"""Batches on a GPU: samples -> page-locked memory -> the GPU's memory -> a session -> and back.

Every batch size of every shape has buffers of its own, made once. Their addresses never change, so the session is bound
to them once, and what it did can be captured as a CUDA graph and replayed. Page-locked memory is copied by the GPU at
the full speed of its bus; other memory goes through the driver's own buffers first.
"""

import ctypes
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.repository.card import ModelCard

_TO_GPU, _TO_HOST = 1, 2  # cudaMemcpyKind
_NO_GRAPH = -1  # ONNX Runtime's id for a run that neither captures nor replays


class Memory(Protocol):
    """Memory that the host fills, and copies between it and the ``device``'s, which end before the call does."""

    device: str

    def locked(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]: ...

    def upload(self, source: NDArray[np.generic], address: int) -> None: ...

    def download(self, address: int, target: NDArray[np.generic]) -> None: ...


class CudaMemory:
    """By CUDA's runtime, which is loaded with ONNX Runtime's provider: its Python interface locks no pages.

    Other threads run during copies, as ctypes lets go of Python's lock. All methods raise ``RuntimeError`` where CUDA
    fails.
    """

    device = "cuda"

    def __init__(self) -> None:
        major = str(ort.cuda_version).partition(".")[0]
        name = f"cudart64_{major}.dll" if sys.platform == "win32" else f"libcudart.so.{major}"
        self._runtime = ctypes.CDLL(name)
        self._runtime.cudaGetErrorString.restype = ctypes.c_char_p
        self._runtime.cudaHostAlloc.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
        self._runtime.cudaFreeHost.argtypes = (ctypes.c_void_p,)
        self._runtime.cudaMemcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def locked(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """An array in page-locked memory, uninitialised, freed with the last view of it."""
        count = int(np.prod(shape))
        address = ctypes.c_void_p()
        self._check("cudaHostAlloc", self._runtime.cudaHostAlloc(ctypes.byref(address), count * dtype.itemsize, 0))
        assert address.value is not None
        block = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address.value)
        weakref.finalize(block, self._runtime.cudaFreeHost, address).atexit = False
        locked: NDArray[np.generic] = np.ctypeslib.as_array(block).view(dtype).reshape(shape)
        return locked

    def upload(self, source: NDArray[np.generic], address: int) -> None:
        self._copy(address, source.ctypes.data, source.nbytes, _TO_GPU)

    def download(self, address: int, target: NDArray[np.generic]) -> None:
        self._copy(target.ctypes.data, address, target.nbytes, _TO_HOST)

    def _copy(self, target: int, source: int, count: int, kind: int) -> None:
        self._check("cudaMemcpy", self._runtime.cudaMemcpy(target, source, count, kind))

    def _check(self, call: str, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"{call}: {self._runtime.cudaGetErrorString(status).decode()}")


class GpuBatches:
    """Runs a session on the GPU, in one thread: a CUDA graph belongs to the thread that captured it."""

    def __init__(self, card: ModelCard, session: ort.InferenceSession, memory: Memory) -> None:
        self._card, self._session, self._memory = card, session, memory
        self._batches: dict[tuple[int, ...], BoundBatch] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")

    def run(self, samples: Sequence[NDArray[np.generic]], size: int) -> list[NDArray[np.generic]]:
        """Samples of one shape -> each output (samples, …), in the card's order, from a batch of ``size``."""
        return self._thread.submit(self._run, samples, size).result()

    def _run(self, samples: Sequence[NDArray[np.generic]], size: int) -> list[NDArray[np.generic]]:
        shape = (size, *samples[0].shape)
        if shape not in self._batches:
            self._batches[shape] = BoundBatch(self._card, self._session, self._memory, shape, len(self._batches) + 1)
        return self._batches[shape].run(samples)

    def capture(self) -> None:
        """Captures a CUDA graph of every batch that has run. No other thread may use the GPU meanwhile."""
        for batch in self._batches.values():
            self._thread.submit(batch.capture).result()


class BoundBatch:
    """The buffers of batches of one ``shape``, the batch axis first, bound to ``session``. One run at a time.

    ``graph_id``, above 0, is what the session calls this batch's CUDA graph.
    """

    def __init__(
        self, card: ModelCard, session: ort.InferenceSession, memory: Memory, shape: tuple[int, ...], graph_id: int
    ) -> None:
        self._session, self._memory, self._graph_id = session, memory, graph_id
        self._binding = session.io_binding()
        self._input, self._input_on_gpu = self._buffers(card.input.dtype, shape)
        self._input.fill(0)  # of a row that no sample has filled yet: page-locked memory may hold anything
        self._binding.bind_ortvalue_input(card.input.name, self._input_on_gpu)
        self._outputs = []
        for spec, stated in zip(card.outputs, card.output_shapes(shape[1:]), strict=True):
            host, on_gpu = self._buffers(spec.dtype, (shape[0], *stated))
            self._binding.bind_ortvalue_output(spec.name, on_gpu)
            self._outputs.append((host, on_gpu))
        self._options = _run_options(_NO_GRAPH)

    def _buffers(self, dtype: str, shape: tuple[int, ...]) -> tuple[NDArray[np.generic], ort.OrtValue]:
        on_gpu = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, self._memory.device, 0)
        return self._memory.locked(shape, np.dtype(dtype)), on_gpu

    def run(self, samples: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """No more samples than the batch has rows -> each output (samples, …), copied out of the buffers.

        Rows without a sample keep what they held: samples do not see one another, and only answers to these go out.
        """
        count = len(samples)
        for row, sample in enumerate(samples):
            self._input[row] = sample
        self._memory.upload(self._input[:count], self._input_on_gpu.data_ptr())
        self.compute()
        answers = []
        for host, on_gpu in self._outputs:
            self._memory.download(on_gpu.data_ptr(), host[:count])
            answers.append(host[:count].copy())
        return answers

    def compute(self) -> None:
        """Runs the session on what was copied to the GPU last; ends when the GPU has."""
        self._session.run_with_iobinding(self._binding, self._options)

    def capture(self) -> None:
        """Captures what a run does on the GPU as a CUDA graph, which every later run replays, from the same thread.

        Has to follow a plain run, in which cuDNN has chosen its algorithms and memory has been taken.
        """
        self._options = _run_options(self._graph_id)
        self.compute()


def _run_options(graph_id: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
