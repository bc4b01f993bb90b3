"""ONNX Runtime's providers: the hardware that a session runs on, and its options."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import io
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnxruntime as ort

from service.errors import ModelRefused
from service.repository.card import ModelCard

logger = logging.getLogger("convserve.engine")

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS = {"cpu": CPU, "auto": CUDA, "cuda": CUDA, "tensorrt": TENSORRT}
_INSTALLED_BY = {CUDA: "convserve[gpu]", TENSORRT: "convserve[tensorrt]"}
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")  # ONNX Runtime is linked to version 10


class DeviceUnusable(Exception):
    """The device that was asked for by name cannot be used; the message says why."""


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convserve" / "tensorrt"


@dataclass(frozen=True)
class GpuOptions:
    """Options on a GPU. The service runs with the defaults; ``make bench-gpu`` compares others.

    ``tensorrt_float16`` lets TensorRT compute models in float16 whose cards say float32: their figures are not those
    of the card then.
    """

    cuda_graphs: bool = True
    convolution_search: Literal["HEURISTIC", "EXHAUSTIVE"] = "HEURISTIC"
    channels_last: bool = False
    tensorrt_float16: bool = False
    tensorrt_cache: Path = field(default_factory=default_cache)


class Opened(NamedTuple):
    """A session, the provider that it runs on, and whether it can capture CUDA graphs."""

    session: ort.InferenceSession
    provider: str
    cuda_graphs: bool


def open_session(
    card: ModelCard, graph: bytes, *, device: Device, threads: int, largest_batch: int, options: GpuOptions
) -> Opened:
    """``auto`` takes CUDA if it works, else the CPU: with a warning, unless GPU and build for GPUs are both absent.

    Raises ``DeviceUnusable`` where a device asked for by name does not work, ``ModelRefused`` for a graph that does not
    load on the CPU either. ``largest_batch`` is what TensorRT prepares for.
    """
    provider = _asked_for(device)
    problem = _problem(provider)
    if problem is None and provider != CPU:
        ort.preload_dlls()  # CUDA and cuDNN from their own wheels, where those are installed
        problem = _load_tensorrt() if provider == TENSORRT else None
    if problem is None and provider != CPU:
        for cuda_graphs in (True, False) if provider == CUDA and options.cuda_graphs else (False,):
            settings = _provider_options(provider, card, graph, largest_batch, options, cuda_graphs)
            try:
                session = _create(graph, settings, threads)
            except Exception as error:  # ONNX Runtime's exceptions have no common base but this
                problem = f"{card.key} does not load there: {error}"
                continue
            if session.get_providers()[0] == provider:
                if options.cuda_graphs and provider == CUDA and not cuda_graphs:
                    logger.warning("%s runs without CUDA graphs: %s", card.key, problem)
                return Opened(session, provider, cuda_graphs)
            # ONNX Runtime went on with the next provider, without raising.
            problem = f"its libraries cannot be loaded; {_INSTALLED_BY[provider]} installs them"
            break
    try:
        session = _create(graph, {}, threads)
    except Exception as error:
        raise ModelRefused(card.key, "graph", f"ONNX Runtime refuses the graph: {error}") from error
    if problem and device != "auto":
        raise DeviceUnusable(f"CONVSERVE_DEVICE={device} cannot be used: {problem}")
    if problem:
        warn_of_cpu(problem)
    return Opened(session, CPU, False)


@functools.cache
def warn_of_cpu(problem: str) -> None:
    """Warns once a process, not once a model."""
    logger.warning("models run on the CPU: CUDA cannot be used, %s", problem)


def _create(graph: bytes, providers: dict[str, dict[str, str]], threads: int) -> ort.InferenceSession:
    """``providers`` by preference, with their options; the CPU is always the last."""
    chosen: list[Any] = [*providers.items(), CPU]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # says why it falls back to another provider, and does
        session = ort.InferenceSession(graph, session_options(threads), providers=chosen)
    if reason := " ".join(printed.getvalue().split()):
        raise RuntimeError(reason)
    session.disable_fallback()  # nor may it go on with another provider when a run fails
    return session


def session_options(threads: int) -> ort.SessionOptions:
    """Returns the options of every session, on any hardware; ``threads`` on the CPU, 0 being all."""
    _share_memory()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Patterns set a block aside for every shape that has come, for nothing that could be measured.
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves the decoders
    options.log_severity_level = 4  # what goes wrong is raised, and logged by us
    return options


@functools.cache
def _share_memory() -> None:
    """Makes one memory pool of the CPU for all sessions of the process, which grows by what is needed.

    A pool each would keep the memory of its largest batch for ever, rounded up to a power of two.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grown_as_requested = ort.OrtArenaCfg({"arena_extend_strategy": 1})
    ort.create_and_register_allocator(memory, grown_as_requested)


def _provider_options(
    provider: str, card: ModelCard, graph: bytes, largest_batch: int, options: GpuOptions, cuda_graphs: bool
) -> dict[str, dict[str, str]]:
    cuda = {CUDA: cuda_options(options, cuda_graphs)}
    if provider == TENSORRT:  # what TensorRT leaves over, CUDA runs
        return {TENSORRT: tensorrt_options(card, graph, largest_batch, options), **cuda}
    return cuda


def cuda_options(options: GpuOptions, cuda_graphs: bool) -> dict[str, str]:
    return {
        "device_id": "0",
        # Several workers share the GPU's memory: take what a batch needs, not twice what was taken before.
        "arena_extend_strategy": "kSameAsRequested",
        # EXHAUSTIVE times every algorithm for every layer, batch size and shape, in every worker: minutes before the
        # first request. cuDNN's own choice is as good or nearly so; bench-gpu has a row for each.
        "cudnn_conv_algo_search": options.convolution_search,
        # The fast algorithms may take their scratch memory, instead of at most 32 MiB.
        "cudnn_conv_use_max_workspace": "1",
        # Sounds as pictures of height 1, not of width 1: the layout that cuDNN's fast algorithms are made for.
        "cudnn_conv1d_pad_to_nc1d": "1",
        # Inputs and outputs are bound on the GPU, so this concerns only what ONNX Runtime copies for itself: in the
        # stream that computes, as another one would have to be waited for.
        "do_copy_in_default_stream": "1",
        # Of float32 models the tensor cores read 10 bits of each factor, and add in float32, as PyTorch lets them: many
        # times as fast, and off by about as much as float16.
        "use_tf32": "1",
        "prefer_nhwc": "1" if options.channels_last else "0",
        "enable_cuda_graph": "1" if cuda_graphs else "0",
    }


def tensorrt_options(card: ModelCard, graph: bytes, largest_batch: int, options: GpuOptions) -> dict[str, str]:
    """Raises ``DeviceUnusable`` where the cache's folder cannot be made."""
    float16 = card.precision == "float16" or options.tensorrt_float16
    # ONNX Runtime names a cached engine after the graph's structure, not its weights: another training of the same
    # network would be answered with the old one's. So each graph has a folder of its own.
    built_from = f"{hashlib.sha256(graph).hexdigest()[:16]}-{'float16' if float16 else 'float32'}-{largest_batch}"
    folder = options.tensorrt_cache / built_from
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceUnusable(f"CONVSERVE_TENSORRT_CACHE={options.tensorrt_cache}: {error.strerror}") from error
    smallest, usual, largest = _shape_profile(card, largest_batch)
    return {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",  # what was measured of a layer serves every model that has the same
        "trt_timing_cache_path": str(options.tensorrt_cache),
        "trt_fp16_enable": "1" if float16 else "0",  # also needed by graphs that are float16 already
        # All that will come is in the profile: the engine is built while the session opens, never for a request.
        "trt_profile_min_shapes": smallest,
        "trt_profile_opt_shapes": usual,
        "trt_profile_max_shapes": largest,
    }


def _shape_profile(card: ModelCard, largest_batch: int) -> tuple[str, str, str]:
    """The smallest input, the one that TensorRT tunes for, and the largest, as ``name:axisxaxis…``.

    It tunes for the largest batch: that is what runs under load, and one engine has to serve all sizes.
    """
    shapes = card.sample_shapes()

    def written(batch: int, shape: tuple[int, ...]) -> str:
        return f"{card.input.name}:{'x'.join(map(str, (batch, *shape)))}"

    axes = list(zip(*shapes, strict=True))
    smallest, largest = tuple(map(min, axes)), tuple(map(max, axes))
    return written(1, smallest), written(largest_batch, shapes[0]), written(largest_batch, largest)


def _asked_for(device: Device) -> str:
    if device == "auto" and CUDA not in ort.get_available_providers() and _missing_gpu():
        return CPU
    return _PROVIDERS[device]


def _problem(provider: str) -> str | None:
    """Why ``provider`` cannot be used at all, or None. Cheap: asks the driver, loads nothing else."""
    if provider == CPU:
        return None
    if provider not in ort.get_available_providers():
        return f"this ONNX Runtime has no {provider}; {_INSTALLED_BY[provider]} installs one that has"
    return _missing_gpu()


def _missing_gpu() -> str | None:
    """Why no NVIDIA GPU can be used, or None."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    return None


def _load_tensorrt() -> str | None:
    """Loads TensorRT from its wheel, or from where the system has it, so that ONNX Runtime finds it loaded.

    Returns what stands in the way.
    """
    wheel = importlib.util.find_spec("tensorrt_libs")
    folders = [*(wheel.submodule_search_locations or ())] if wheel else []
    for name in _TENSORRT_LIBRARIES:
        for path in (*(str(Path(folder) / name) for folder in folders), name):
            try:
                ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
                break
            except OSError:
                continue
        else:
            return f"{name} cannot be loaded; convserve[tensorrt] installs TensorRT 10, which ONNX Runtime is linked to"
    return None
