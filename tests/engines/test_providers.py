"""Which provider a session runs on, with which options; what is said where one cannot be used. Without a GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from service.engines import providers
from service.engines.providers import CPU, CUDA, TENSORRT, DeviceUnusable, GpuOptions, Opened, open_session
from service.errors import ModelRefused
from service.repository.card import ModelCard
from tests import graphs

NO_GPU = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU here")
GRAPH = graphs.grey_classifier()


@pytest.fixture(autouse=True)
def warnings_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers.logger.parent, "propagate", True)
    providers.warn_of_cpu.cache_clear()


def card(task: str = "classify", **changed: Any) -> ModelCard:
    return ModelCard.model_validate_json(json.dumps(graphs.card_content(task, GRAPH, **changed)))


def opened(device: Any, graph: bytes = GRAPH, options: GpuOptions | None = None) -> Opened:
    return open_session(card(), graph, device=device, threads=1, largest_batch=8, options=options or GpuOptions())


# Where there is no GPU


def built_for(monkeypatch: pytest.MonkeyPatch, *available: str) -> None:
    """Lets ONNX Runtime say so of itself: either build may be installed."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(available))


@NO_GPU
def test_auto_falls_back_to_the_cpu_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built_for(monkeypatch, TENSORRT, CUDA, CPU)
    assert [opened("auto").provider, opened("auto").provider] == [CPU, CPU]
    assert caplog.text.count("run on the CPU") == 1


@NO_GPU
def test_auto_on_the_cpu_s_build_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built_for(monkeypatch, CPU)
    assert (opened("auto").provider, caplog.text) == (CPU, "")


def test_auto_on_the_cpu_s_build_warns_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built_for(monkeypatch, CPU)
    monkeypatch.setattr(providers, "_missing_gpu", lambda: None)
    assert opened("auto").provider == CPU
    assert "has no CUDAExecutionProvider; convserve[gpu] installs one that has" in caplog.text


@NO_GPU
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
@pytest.mark.parametrize(("available", "reason"), [((TENSORRT, CUDA, CPU), "NVIDIA"), ((CPU,), "this ONNX Runtime")])
def test_a_device_asked_for_by_name_must_work(
    monkeypatch: pytest.MonkeyPatch, available: tuple[str, ...], reason: str, device: str
) -> None:
    built_for(monkeypatch, *available)
    with pytest.raises(DeviceUnusable, match=f"CONVSERVE_DEVICE={device} cannot be used: .*{reason}"):
        opened(device)


def test_the_cpu_is_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    found = opened("cpu")
    assert (found.provider, found.cuda_graphs, caplog.text) == (CPU, False, "")


# Where there is a GPU, or seems to be


class Sessions:
    """Stands for ONNX Runtime: sessions are opened on the CPU, and what was asked for is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[dict[str, dict[str, str]]] = []
        self.loads: Callable[[dict[str, dict[str, str]]], list[str]] = lambda asked: [*asked, CPU]
        self._create = providers._create
        built_for(monkeypatch, TENSORRT, CUDA, CPU)
        monkeypatch.setattr(providers, "_missing_gpu", lambda: None)
        monkeypatch.setattr(providers, "_load_tensorrt", lambda: None)
        monkeypatch.setattr(providers, "_create", self.create)
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)

    def create(self, graph: bytes, asked: dict[str, dict[str, str]], threads: int) -> ort.InferenceSession:
        self.asked.append(asked)
        loaded = self.loads(asked)
        session = self._create(graph, {}, threads)
        session.get_providers = lambda: loaded
        return session


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(monkeypatch)


@pytest.mark.parametrize("device, provider", [("auto", CUDA), ("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_the_provider_that_loads_is_taken(sessions: Sessions, tmp_path: Path, device: str, provider: str) -> None:
    found = opened(device, options=GpuOptions(tensorrt_cache=tmp_path))
    assert found.provider == provider
    assert list(sessions.asked[0]) == ([CUDA] if provider == CUDA else [TENSORRT, CUDA])
    assert found.cuda_graphs == (provider == CUDA)


def test_libraries_that_do_not_load_leave_the_cpu_under_auto(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    sessions.loads = lambda asked: [CPU]  # what ONNX Runtime does where cuDNN is missing
    assert opened("auto").provider == CPU
    assert "CUDA cannot be used, its libraries cannot be loaded; convserve[gpu] installs them" in caplog.text
    with pytest.raises(DeviceUnusable, match=r"CONVSERVE_DEVICE=cuda cannot be used: .*convserve\[gpu\]"):
        opened("cuda")


def test_tensorrt_that_does_not_load_is_not_answered_by_cuda(sessions: Sessions, tmp_path: Path) -> None:
    sessions.loads = lambda asked: [CUDA, CPU]
    with pytest.raises(DeviceUnusable, match=r"CONVSERVE_DEVICE=tensorrt cannot be used: .*convserve\[tensorrt\]"):
        opened("tensorrt", options=GpuOptions(tensorrt_cache=tmp_path))


def failing(asked: dict[str, dict[str, str]]) -> list[str]:
    if asked:
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
    return [CPU]


def test_a_gpu_that_fails_at_the_start_leaves_the_cpu_under_auto(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    sessions.loads = failing
    assert opened("auto").provider == CPU
    assert "CUDA failure 100" in caplog.text
    with pytest.raises(DeviceUnusable, match=r"CONVSERVE_DEVICE=cuda .*CUDA failure 100"):
        opened("cuda")


def test_a_broken_graph_is_the_models_fault_not_the_gpus(sessions: Sessions) -> None:
    for device in ("auto", "cuda"):
        with pytest.raises(ModelRefused, match="ONNX Runtime refuses the graph"):
            opened(device, graph=b"nonsense")


def test_a_graph_that_cuda_graphs_do_not_suit_runs_without(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    def loads(asked: dict[str, dict[str, str]]) -> list[str]:
        if asked[CUDA]["enable_cuda_graph"] == "1":
            raise RuntimeError("This session cannot use the graph capture feature: there are memcpy nodes")
        return [CUDA, CPU]

    sessions.loads = loads
    found = opened("cuda")
    assert (found.provider, found.cuda_graphs) == (CUDA, False)
    assert "tiny-classify:1 runs without CUDA graphs" in caplog.text and "memcpy nodes" in caplog.text
    assert [asked[CUDA]["enable_cuda_graph"] for asked in sessions.asked] == ["1", "0"]


# Options


def test_options_are_strings_that_onnx_runtime_knows() -> None:
    """Its library holds the names of its options."""
    folder = Path(ort.__file__).parent / "capi"
    asked = providers.cuda_options(GpuOptions(), True)
    for library, names in (
        ("libonnxruntime_providers_cuda.so", asked),
        ("libonnxruntime_providers_tensorrt.so", TENSORRT_NAMES),
    ):
        if not (folder / library).is_file():
            pytest.skip("this ONNX Runtime is of the CPU alone")
        held = (folder / library).read_bytes()
        for name in names:
            assert name.encode()[:8] in held, name
    assert all(isinstance(value, str) for value in asked.values())


TENSORRT_NAMES = (
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_fp16_enable",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
)


def test_memory_is_taken_as_needed_and_algorithms_are_not_tried_out() -> None:
    options = providers.cuda_options(GpuOptions(), False)
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["enable_cuda_graph"] == "0"
    changed = providers.cuda_options(GpuOptions(convolution_search="EXHAUSTIVE", channels_last=True), True)
    assert [changed[name] for name in ("cudnn_conv_algo_search", "prefer_nhwc", "enable_cuda_graph")] == [
        "EXHAUSTIVE",
        "1",
        "1",
    ]


@pytest.mark.parametrize(
    "task, smallest, usual, largest",
    [
        ("classify", "images:1x4x4x3", "images:32x4x4x3", "images:32x4x4x3"),
        ("segment", "images:1x32x32x3", "images:32x32x32x3", "images:32x64x64x3"),
        ("audio", "waveforms:1x1x800", "waveforms:32x1x800", "waveforms:32x1x800"),
        ("video", "clips:1x4x8x8x3", "clips:32x4x8x8x3", "clips:32x4x8x8x3"),
    ],
)
def test_tensorrt_prepares_for_every_batch_that_can_come(
    tmp_path: Path, task: str, smallest: str, usual: str, largest: str
) -> None:
    options = providers.tensorrt_options(card(task), GRAPH, 32, GpuOptions(tensorrt_cache=tmp_path))
    assert set(TENSORRT_NAMES) < set(options)
    assert [options[f"trt_profile_{name}_shapes"] for name in ("min", "opt", "max")] == [smallest, usual, largest]


def test_tensorrt_caches_engines_by_the_graphs_bytes_and_timings_for_all(tmp_path: Path) -> None:
    cache = GpuOptions(tensorrt_cache=tmp_path / "new")
    one, same, other, larger, half = (
        providers.tensorrt_options(card(), GRAPH, 32, cache),
        providers.tensorrt_options(card(version=2), GRAPH, 32, cache),
        providers.tensorrt_options(card(), GRAPH + b"\0", 32, cache),
        providers.tensorrt_options(card(), GRAPH, 64, cache),
        providers.tensorrt_options(card(precision="float16"), GRAPH, 32, cache),
    )
    folders = [options["trt_engine_cache_path"] for options in (one, other, larger, half)]
    assert len(set(folders)) == 4 and one["trt_engine_cache_path"] == same["trt_engine_cache_path"]
    assert all(Path(folder).is_dir() for folder in folders)
    assert {options["trt_timing_cache_path"] for options in (one, other, larger, half)} == {str(tmp_path / "new")}


def test_tensorrt_computes_in_float16_for_such_cards_or_where_it_is_asked_to(tmp_path: Path) -> None:
    def float16(precision: str, **asked: bool) -> str:
        options = GpuOptions(tensorrt_cache=tmp_path, **asked)  # type: ignore[arg-type]
        return providers.tensorrt_options(card(precision=precision), GRAPH, 8, options)["trt_fp16_enable"]

    assert float16("float32") == "0"
    assert float16("float16") == float16("float32", tensorrt_float16=True) == "1"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceUnusable, match=r"CONVSERVE_TENSORRT_CACHE=.*file"):
        providers.tensorrt_options(card(), GRAPH, 8, GpuOptions(tensorrt_cache=tmp_path / "file"))


@NO_GPU
def test_where_tensorrt_is_absent_it_is_said_what_installs_it() -> None:
    assert "libnvinfer.so.10 cannot be loaded; convserve[tensorrt] installs TensorRT 10" in str(
        providers._load_tensorrt()
    )
