import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from service import engine
from service.cards import ModelCard
from service.engine import CPU, CUDA, DeviceUnusable, Engine
from service.errors import ModelRefused
from tests import graphs

NO_GPU = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU here")


def _engine(task: str = "classify", graph: bytes | None = None, device: Any = "cpu", **changed: Any) -> Engine:
    graph = graph or graphs._TASKS[task]["graph"]()
    content = graphs.card_content(task, graph, **changed)
    return Engine(ModelCard.model_validate_json(json.dumps(content)), graph, device=device)


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
        ({"input": {"name": "images", "dtype": "uint8", "layout": "NHWC", "shape": ["N", 4, 4]}}, "states"),
        (
            {"outputs": [{"name": "probabilities", "dtype": "float32", "layout": "NC", "shape": ["N", 10]}]},
            "probabilities",
        ),
    ],
)
def test_a_graph_that_is_not_the_cards_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelRefused, match=said) as caught:
        _engine(**changed)
    assert (caught.value.model, caught.value.reason) == ("tiny-classify:1", "graph")


@pytest.mark.parametrize("count", [2, 300])
def test_other_categories_than_the_graph_answers_are_refused(count: int) -> None:
    with pytest.raises(ModelRefused):
        _engine(
            categories=[str(number) for number in range(count)],
            outputs=[{"name": "probabilities", "dtype": "float32", "layout": "NC", "shape": ["N", "C"]}],
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


@NO_GPU
def test_auto_falls_back_to_the_cpu_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    engine.logger.parent.propagate = True  # type: ignore[union-attr]
    engine._warn_once.cache_clear()
    assert [_engine(device="auto").provider, _engine(device="auto").provider] == [CPU, CPU]
    assert caplog.text.count("run on the CPU") == 1


@NO_GPU
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_asked_for_by_name_must_work(device: str) -> None:
    with pytest.raises(DeviceUnusable, match=f"CONVSERVE_DEVICE={device}"):
        _engine(device=device)


def test_the_cpu_warms_the_smallest_and_the_largest_batch_a_gpu_every_one_that_will_run() -> None:
    runner = _engine()
    assert runner.batch_sizes(32) == [1, 32]
    runner.provider = CUDA
    assert runner.batch_sizes(32) == [1, 2, 4, 8, 16, 32]
    assert runner.batch_sizes(20) == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
def test_padding_a_batch_changes_no_answer(count: int) -> None:
    runner = _engine()
    plain = runner.run([_grey(level) for level in range(count)])
    runner.provider = CUDA  # pads to powers of two; the session stays on the CPU
    padded = runner.run([_grey(level) for level in range(count)])
    assert len(padded) == count
    for ours, theirs in zip(plain, padded, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_the_session_has_the_answers_of_plain_onnx_runtime() -> None:
    graph = graphs.loudness_listener()
    sound = np.random.default_rng(0).uniform(-1, 1, (1, 800)).astype(np.float32)
    reference = ort.InferenceSession(graph, providers=[CPU]).run(None, {"waveforms": sound[None]})[0][0]
    ours = np.asarray(_engine("audio").run([sound])[0][0], np.float32)
    np.testing.assert_allclose(ours, reference, atol=1e-6)
    assert reference[0] == pytest.approx(np.abs(sound).mean(), abs=1e-5)
