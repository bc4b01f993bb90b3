import ctypes
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from service.engines import gpu_batches
from service.engines import onnxruntime as engine
from service.engines.gpu_batches import BoundBatch, Memory
from service.engines.onnxruntime import CPU, CUDA, Engine
from service.engines.providers import Opened
from service.errors import ModelRefused
from service.repository.card import ModelCard
from tests import graphs


def _engine(
    task: str = "classify",
    graph: bytes | None = None,
    device: Any = "cpu",
    max_batch: int | None = None,
    **changed: Any,
) -> Engine:
    graph = graph or graphs.tiny_graph(task)
    content = graphs.card_content(task, graph, **changed)
    return Engine(ModelCard.model_validate_json(json.dumps(content)), graph, device=device, max_batch=max_batch)


def _grey(level: int) -> np.ndarray:
    return np.full((4, 4, 3), level, np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 33])
def test_a_batch_answers_each_sample_as_it_would_be_answered_alone(count: int) -> None:
    runner = _engine()
    together = runner.run([_grey(level) for level in range(count)])
    assert [int(outputs[0].argmax()) for outputs in together] == list(range(count))
    for level in range(count):
        np.testing.assert_array_equal(runner.run([_grey(level)])[0][0], together[level][0])


def test_outputs_come_in_the_cards_order() -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :10, 0] = 200
    mask, confidence = _engine("segment").run([pixels])[0]
    assert (mask.dtype.name, confidence.dtype.name) == ("uint8", "float32")
    assert mask[:, :10].all() and not mask[:, 10:].any()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"input": {"name": "pixels", "dtype": "uint8", "layout": "NHWC", "shape": ["N", 4, 4, 3]}}, "pixels"),
        ({"input": {"name": "images", "dtype": "float32", "layout": "NHWC", "shape": ["N", 4, 4, 3]}}, "float32"),
        ({"input": {"name": "images", "dtype": "uint8", "layout": "NHWC", "shape": ["N", 5, 4, 3]}}, "5"),
    ],
)
def test_a_graph_that_is_not_the_cards_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelRefused, match=said) as caught:
        _engine(**changed)
    assert (caught.value.model, caught.value.reason) == ("tiny-classify:1", "graph")


@pytest.mark.parametrize("count", [2, 300])
def test_other_categories_than_the_graph_answers_are_refused(count: int) -> None:
    with pytest.raises(ModelRefused, match=f"'probabilities' is .*256.*, the card states .*{count}"):
        _engine(
            categories=[str(number) for number in range(count)],
            outputs=[{"name": "probabilities", "dtype": "float32", "layout": "NC", "shape": ["N", count]}],
        )


def test_preprocessing_that_makes_other_samples_than_the_graph_takes_is_refused() -> None:
    preprocess = {"media": "image", "resize": "crop", "sizes": [[5, 5]], "shorter_side": 5}
    with pytest.raises(ModelRefused, match="does not run on samples"):
        _engine(preprocess=preprocess)


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ModelRefused, match="ONNX Runtime"):
        _engine(graph=b"nonsense")


def test_the_blank_sample_is_one_that_runs() -> None:
    for task in ("classify", "segment", "audio", "video"):
        runner = _engine(task)
        assert len(runner.run([runner.blank()])) == 1
        runner.warm_up(3)


def test_the_cpu_warms_the_smallest_and_the_largest_batch() -> None:
    assert _engine().batch_sizes(32) == [1, 32]
    assert _engine().batch_sizes(1) == [1]


# On a GPU that is none: the session is the CPU's, its memory the host's.


class HostMemory:
    """What is copied to the GPU, and from it, in bytes."""

    device = "cpu"

    def __init__(self) -> None:
        self.copied: list[int] = []

    def locked(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        return np.empty(shape, dtype)

    def upload(self, source: NDArray[np.generic], address: int) -> None:
        self.copied.append(source.nbytes)
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def download(self, address: int, target: NDArray[np.generic]) -> None:
        self.copied.append(target.nbytes)
        ctypes.memmove(target.ctypes.data, address, target.nbytes)


class Gpu:
    """Opens sessions of the CPU and says they were CUDA's; keeps what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[dict[str, Any]] = []
        self.memory = HostMemory()
        self.bound: dict[tuple[int, ...], int] = {}  # CUDA graphs' ids by the shape of their batch
        self.captured: list[int] = []
        self.capture_fails = False
        monkeypatch.setattr(engine, "open_session", self.open_session)
        monkeypatch.setattr(engine, "CudaMemory", lambda: self.memory)
        gpu = self

        class Recorded(BoundBatch):
            def __init__(
                self, card: ModelCard, session: Any, memory: Memory, shape: tuple[int, ...], graph_id: int
            ) -> None:
                super().__init__(card, session, memory, shape, graph_id)
                gpu.bound[shape] = self.id = graph_id

            def capture(self) -> None:
                gpu.capture(self.id)

        monkeypatch.setattr(gpu_batches, "BoundBatch", Recorded)

    def open_session(self, card: ModelCard, graph: bytes, **asked: Any) -> Opened:
        self.opened.append(asked)
        on_gpu = asked["device"] != "cpu"
        session = ort.InferenceSession(graph, providers=[CPU])
        return Opened(session, CUDA if on_gpu else CPU, asked["options"].cuda_graphs and on_gpu)

    def capture(self, graph_id: int) -> None:
        if self.capture_fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured.append(graph_id)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
def test_on_a_gpu_a_batch_is_padded_to_a_power_of_two_and_answers_the_same(gpu: Gpu, count: int) -> None:
    runner = _engine(device="cuda")
    runner.warm_up(16)
    bound = len(gpu.bound)
    for levels in (range(count), range(100, 100 + count)):  # the second finds the first in the buffers
        together = runner.run([_grey(level) for level in levels])
        assert [int(outputs[0].argmax()) for outputs in together] == list(levels)
    assert len(gpu.bound) == bound  # 1, 2, 4, 8, 16: no size of its own


def test_on_a_gpu_only_what_is_asked_is_copied(gpu: Gpu) -> None:
    runner = _engine(device="cuda")
    runner.warm_up(8)
    gpu.memory.copied.clear()
    runner.run([_grey(1)] * 5)
    assert gpu.memory.copied == [5 * 4 * 4 * 3, 5 * 256 * 4]


def test_on_a_gpu_an_answer_outlives_the_next_batch(gpu: Gpu) -> None:
    runner = _engine(device="cuda")
    first = runner.run([_grey(1), _grey(2)])
    runner.run([_grey(3), _grey(4)])
    assert [int(outputs[0].argmax()) for outputs in first] == [1, 2]


@pytest.mark.parametrize("task", ["classify", "segment", "audio", "video"])
def test_on_a_gpu_every_task_answers_as_on_the_cpu(gpu: Gpu, task: str) -> None:
    runner, plain = _engine(task, device="cuda"), _engine(task)
    random = np.random.default_rng(0)
    for shape in plain.card.sample_shapes():
        samples = [random.uniform(0, 1, shape) for _ in range(3)]
        batch = [
            (sample * 255).astype(np.uint8) if task != "audio" else (sample - 0.5).astype(np.float32)
            for sample in samples
        ]
        for ours, theirs in zip(runner.run(batch), plain.run(batch), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_gpu_is_warmed_with_every_size_and_shape_that_will_run(gpu: Gpu) -> None:
    runner = _engine("segment", device="cuda")
    assert runner.batch_sizes(6) == [1, 2, 4, 8]
    assert runner.batch_sizes(8) == [1, 2, 4, 8]
    assert runner.warm_up(6) > 0
    shapes = {(size, *shape) for size in (1, 2, 4, 8) for shape in runner.card.sample_shapes()}
    assert set(gpu.bound) == shapes
    assert (
        sorted(gpu.captured) == sorted(gpu.bound.values()) == list(range(1, len(shapes) + 1))
    )  # each has a CUDA graph, and an id, of its own


def test_a_gpu_prepares_for_the_largest_padded_batch(gpu: Gpu) -> None:
    _engine(device="tensorrt", max_batch=20)
    _engine(device="tensorrt")
    assert [asked["largest_batch"] for asked in gpu.opened] == [32, 32]


def test_where_cuda_graphs_cannot_be_captured_it_goes_on_without(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    engine.logger.parent.propagate = True  # type: ignore[union-attr]
    runner = _engine(device="cuda")
    gpu.capture_fails = True
    runner.warm_up(4)
    assert "runs without CUDA graphs: operation not permitted" in caplog.text
    assert [asked["options"].cuda_graphs for asked in gpu.opened] == [True, False]
    assert int(runner.run([_grey(9)])[0][0].argmax()) == 9
    runner.warm_up(4)  # does not try again
    assert len(gpu.opened) == 2


def test_a_gpu_that_cannot_run_leaves_the_cpu_under_auto(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(batch: object, samples: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    engine.logger.parent.propagate = True  # type: ignore[union-attr]
    monkeypatch.setattr(BoundBatch, "run", fails)
    runner = _engine(device="auto")
    assert runner.provider == CPU
    assert "run on the CPU" in caplog.text and "no kernel image" in caplog.text
    runner.warm_up(2)
    with pytest.raises(ModelRefused, match="no kernel image"):
        _engine(device="cuda")


def test_one_thread_runs_all_batches_as_cuda_graphs_belong_to_threads(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    upload = gpu.memory.upload

    def watched(source: NDArray[np.generic], address: int) -> None:
        seen.add(threading.get_ident())
        upload(source, address)

    monkeypatch.setattr(gpu.memory, "upload", watched)
    runner = _engine(device="cuda")
    runner.warm_up(2)
    with ThreadPoolExecutor(1) as other:
        other.submit(runner.run, [_grey(1)]).result()
    assert len(seen) == 1 and threading.get_ident() not in seen


def test_the_session_has_the_answers_of_plain_onnx_runtime() -> None:
    graph = graphs.loudness_listener()
    sound = np.random.default_rng(0).uniform(-1, 1, (1, 800)).astype(np.float32)
    reference = ort.InferenceSession(graph, providers=[CPU]).run(None, {"waveforms": sound[None]})[0][0]
    ours = np.asarray(_engine("audio").run([sound])[0][0], np.float32)
    np.testing.assert_allclose(ours, reference, atol=1e-6)
    assert reference[0] == pytest.approx(np.abs(sound).mean(), abs=1e-5)
