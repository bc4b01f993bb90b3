"""How fast a network could be on a device at most: by its arithmetic, or by what it has to read and write.

The roofline of Williams et al. 2009: a batch takes no less than its floating-point operations over the device's rate,
nor than its bytes over the bandwidth of the device's memory. The rates are measured here, by a matrix product and a
copy: what a datasheet promises is shown beside them, and is reached by nothing.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from service.repository.card import Complexity

# Dense, by NVIDIA's datasheets, with float32 sums: TFLOP/s in float16 and in float32 (as TF32 where there is such), and
# GB/s of memory. By a part of the device's name, the more particular first.
_DATASHEETS = {
    "H200": (989, 495, 4800),
    "H100 PCIe": (756, 378, 2000),
    "H100": (989, 495, 3350),
    "A100": (312, 156, 2039),
    "L40S": (362, 183, 864),
    "L4": (121, 60, 300),
    "A10": (125, 62, 600),
    "T4": (65, 8.1, 320),
    "V100": (125, 15.7, 900),
    "RTX 4090": (165, 83, 1008),
    "RTX 3090": (71, 36, 936),
}
_MERGED = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")  # into the convolutions before them: no pass of their own


class Limits(NamedTuple):
    """A device's rates."""

    operations_per_second: float
    bytes_per_second: float


class Work(NamedTuple):
    """What one sample of a network costs: multiply-accumulates, and elements of maps that are written and read again;
    and what a batch costs once, the weights."""

    macs: int
    map_elements: int
    input_bytes: int
    weights: int


class Ceiling(NamedTuple):
    """``bound`` is ``arithmetic`` or ``memory``."""

    samples_per_second: float
    bound: str


def work(complexity: Complexity, input_bytes: int) -> Work:
    """An estimate: every layer writes its map once, and the next one reads it once. Activations and sums that a kernel
    does not merge into the layer before them come on top."""
    written = sum(_elements(layer.output) for layer in complexity.layers if layer.kind not in _MERGED)
    return Work(complexity.macs, written, input_bytes, complexity.parameters)


def ceiling(work: Work, batch: int, limits: Limits, element_bytes: int) -> Ceiling:
    """Of batches of ``batch`` samples whose weights and maps take ``element_bytes`` an element."""
    arithmetic = 2 * work.macs * batch / limits.operations_per_second
    moved = work.weights * element_bytes + batch * (work.input_bytes + 2 * work.map_elements * element_bytes)
    memory = moved / limits.bytes_per_second
    return Ceiling(batch / max(arithmetic, memory), "arithmetic" if arithmetic >= memory else "memory")


def datasheet(name: str, dtype: torch.dtype) -> Limits | None:
    """Of the device called ``name``, None where it is none of the table's."""
    for part, (float16, float32, gigabytes) in _DATASHEETS.items():
        if part in name.replace("-", " "):
            return Limits((float16 if dtype == torch.float16 else float32) * 1e12, gigabytes * 1e9)
    return None


def probe(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> Limits:
    """What a matrix product and a copy reach on ``device``, the best of several; on a CPU with all threads of torch."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else (256 if quick else 2048)
    elements = (1 << 30 if on_gpu else (1 << 22 if quick else 1 << 27)) // dtype.itemsize
    random = torch.Generator(device).manual_seed(0)
    # Numbers that look like a network's: products of zeros take less power, and run faster than any real ones.
    left, right = (torch.randn(side, side, generator=random, device=device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        product = _fastest(lambda: torch.matmul(left, right), device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    source = torch.ones(elements, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device)
    return Limits(2 * side**3 / product, 2 * source.nbytes / copy)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of ten, after three."""
    seconds = []
    for _ in range(13):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[3:])


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
