"""Who runs a network in ``benchmarks.gpu``, and how: ONNX Runtime as the service does, and PyTorch."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from benchmarks.gpu_networks import Network
from models.architectures.audio_cnn import FilterBank
from service.engines.gpu_batches import BoundBatch, CudaMemory
from service.engines.providers import CPU, Device, GpuOptions, open_session
from service.repository.card import Precision


class Runs(NamedTuple):
    """A batch of one size, ready to run. Both end when the device has.

    ``compute`` runs on what lies on the device already. ``whole`` takes the batch from the host's memory and brings the
    answers there, as serving has to.
    """

    compute: Callable[[], object]
    whole: Callable[[], object]


Prepared = Callable[[int], Runs]  # the size of a batch -> the batch


@dataclass(frozen=True)
class Contender:
    label: str
    dtype: torch.dtype
    on_gpu: bool
    prepare: Callable[[Network, int], Prepared]  # a network, the largest batch that will come
    first_seconds: float = 10  # what it may take until the first batch has run


def _onnx_on_cpu(network: Network, largest: int) -> Prepared:
    card, graph = network.card("float32"), network.graph("float32").read_bytes()
    session = open_session(card, graph, device="cpu", threads=0, largest_batch=largest, options=GpuOptions()).session

    def batch(size: int) -> Runs:
        feed = {card.input.name: np.stack(network.samples(size))}
        return Runs(lambda: session.run(None, feed), lambda: session.run(None, feed))

    return batch


def _onnx_on_gpu(device: Device, precision: Precision, **options: Any) -> Callable[[Network, int], Prepared]:
    """The service's own sessions, buffers and CUDA graphs."""

    def prepare(network: Network, largest: int) -> Prepared:
        card, graph = network.card(precision), network.graph(precision).read_bytes()
        chosen = GpuOptions(**options)
        opened = open_session(card, graph, device=device, threads=1, largest_batch=largest, options=chosen)
        if opened.provider == CPU:
            raise RuntimeError("ONNX Runtime fell back to the CPU")
        memory = CudaMemory()

        def batch(size: int) -> Runs:
            samples = network.samples(size)
            bound = BoundBatch(card, opened.session, memory, (size, *network.shape), size)
            bound.run(samples)
            if opened.cuda_graphs:
                bound.capture()
            return Runs(bound.compute, lambda: bound.run(samples))

        return batch

    return prepare


def _torch(device: str, dtype: torch.dtype, *, compiled: bool = False) -> Callable[[Network, int], Prepared]:
    def prepare(network: Network, largest: int) -> Prepared:
        served = copy.deepcopy(network.served)
        if dtype == torch.float16:
            served.network = _Float16(served.network)
        served = served.to(device)
        _channels_last(served)
        model: Callable[[Tensor], Tensor | tuple[Tensor, ...]] = served
        if compiled:
            torch._dynamo.reset()  # each batch size is compiled for itself, as for ONNX Runtime
            model = torch.compile(served, dynamic=False)

        def batch(size: int) -> Runs:
            host = torch.from_numpy(np.stack(network.samples(size)))
            host = host.pin_memory() if device == "cuda" else host
            there = host.to(device)

            @torch.inference_mode()
            def run(on_device: Tensor) -> list[Tensor]:
                answers = model(on_device)
                return list(answers) if isinstance(answers, tuple) else [answers]

            def compute() -> None:
                run(there)
                if device == "cuda":
                    torch.cuda.synchronize()

            def whole() -> list[Tensor]:
                return [answer.cpu() for answer in run(host.to(device, non_blocking=True))]

            return Runs(compute, whole)

        return batch

    return prepare


class _Float16(nn.Module):
    """A network in float16 between float32 and float32; the bank of an audio network stays as it was, its logarithms
    being too fine for float16. The same division as in the graphs of ``models.half``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()
        for module in network.modules():
            if isinstance(module, FilterBank):
                module.float().register_forward_hook(lambda _module, _inputs, output: output.half())
        self.dtype = next(network.parameters()).dtype

    def forward(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.network(batch.to(self.dtype))
        return logits.float()


def _channels_last(module: nn.Module) -> None:
    """Weights laid out as the tensor cores want them. Of sounds there is no such layout."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        elif parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


_HALF, _SINGLE = torch.float16, torch.float32
CONTENDERS: Mapping[str, Contender] = {
    "cpu": Contender("ONNX Runtime, CPU", _SINGLE, False, _onnx_on_cpu),
    "cuda": Contender("ONNX Runtime, CUDA, TF32", _SINGLE, True, _onnx_on_gpu("cuda", "float32")),
    "cuda-fp16": Contender("ONNX Runtime, CUDA, fp16", _HALF, True, _onnx_on_gpu("cuda", "float16")),
    "tensorrt-fp16": Contender("ONNX Runtime, TensorRT, fp16", _HALF, True, _onnx_on_gpu("tensorrt", "float16"), 120),
    "torch-cpu": Contender("PyTorch, CPU", _SINGLE, False, _torch("cpu", _SINGLE)),
    "torch-fp16": Contender("PyTorch eager, fp16", _HALF, True, _torch("cuda", _HALF)),
    "torch-compile-fp16": Contender("PyTorch compiled, fp16", _HALF, True, _torch("cuda", _HALF, compiled=True), 45),
    # What the service could do otherwise, to be chosen by these figures.
    "cuda-fp16-no-graphs": Contender(
        "ONNX Runtime, CUDA, fp16, no CUDA graphs", _HALF, True, _onnx_on_gpu("cuda", "float16", cuda_graphs=False)
    ),
    "cuda-fp16-channels-last": Contender(
        "ONNX Runtime, CUDA, fp16, channels last", _HALF, True, _onnx_on_gpu("cuda", "float16", channels_last=True)
    ),
    "cuda-fp16-exhaustive": Contender(
        "ONNX Runtime, CUDA, fp16, algorithms tried out",
        _HALF,
        True,
        _onnx_on_gpu("cuda", "float16", convolution_search="EXHAUSTIVE"),
        60,
    ),
}


def missing(contender: Contender) -> str | None:
    """Why a contender cannot run here, or None."""
    if not contender.on_gpu:
        return None
    if not torch.cuda.is_available() and contender.label.startswith("PyTorch"):
        return "this PyTorch sees no GPU"
    if contender.label.startswith("ONNX") and "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this ONNX Runtime is built for the CPU alone"
    return None
