"""Page-locked memory and copies, by a CUDA runtime that is none: its memory is the host's."""

import ctypes
import gc
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from service.engines.gpu_batches import CudaMemory


class Runtime:
    """The functions of libcudart that are called, as ctypes gives them."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.copies: list[tuple[int, int]] = []  # bytes, direction
        self.status = 0
        runtime = self

        def cuda_host_alloc(pointer: Any, count: int, flags: int) -> int:
            block = ctypes.create_string_buffer(count)
            pointer._obj.value = ctypes.addressof(block)
            runtime.blocks[ctypes.addressof(block)] = block
            return runtime.status

        def cuda_free_host(address: Any) -> int:
            del runtime.blocks[address.value]
            return 0

        def cuda_memcpy(target: int, source: int, count: int, direction: int) -> int:
            ctypes.memmove(target, source, count)
            runtime.copies.append((count, direction))
            return runtime.status

        self.cudaHostAlloc, self.cudaFreeHost, self.cudaMemcpy = cuda_host_alloc, cuda_free_host, cuda_memcpy
        self.cudaGetErrorString = lambda status: b"out of memory"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    found = Runtime()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    return found


def test_the_runtime_is_the_one_that_onnx_runtime_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str) -> Runtime:
        asked.append(name)
        return Runtime()

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(ort, "cuda_version", "13.0")
    CudaMemory()
    assert asked == ["libcudart.so.13"]


def test_locked_memory_is_an_array_and_is_freed_with_its_last_view(runtime: Runtime) -> None:
    array = CudaMemory().locked((3, 4), np.dtype(np.float32))
    assert array.shape == (3, 4) and array.dtype == np.float32 and len(runtime.blocks) == 1
    assert array.flags.c_contiguous and array.flags.writeable
    (address,) = runtime.blocks
    assert array.ctypes.data == address and len(runtime.blocks[address]) == 3 * 4 * 4
    view = array[1:, ::2]
    del array
    gc.collect()
    view[:] = 7
    assert len(runtime.blocks) == 1
    del view
    gc.collect()
    assert not runtime.blocks


def test_copies_go_where_they_should(runtime: Runtime) -> None:
    memory = CudaMemory()
    on_gpu = np.zeros(8, np.uint8)  # stands for the GPU's
    memory.upload(np.arange(6, dtype=np.uint8), on_gpu.ctypes.data)
    assert on_gpu.tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    back = np.zeros(4, np.uint8)
    memory.download(on_gpu.ctypes.data, back)
    assert back.tolist() == [0, 1, 2, 3]
    assert runtime.copies == [(6, 1), (4, 2)]  # cudaMemcpyHostToDevice and DeviceToHost


def test_a_call_that_fails_says_what_cuda_says(runtime: Runtime) -> None:
    memory = CudaMemory()
    runtime.status = 2
    with pytest.raises(RuntimeError, match="cudaHostAlloc: out of memory"):
        memory.locked((2,), np.dtype(np.uint8))
    with pytest.raises(RuntimeError, match="cudaMemcpy: out of memory"):
        memory.upload(np.zeros(1, np.uint8), np.zeros(1, np.uint8).ctypes.data)
