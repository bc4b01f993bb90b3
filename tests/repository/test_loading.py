import json
from pathlib import Path
from typing import Any

import pytest

from service.engines.onnxruntime import CUDA
from service.repository.card import ModelCard
from service.repository.folder import StoredModel, read_graph
from service.repository.loading import check_loadable, load_models
from service.settings import Settings, SettingsError
from tests import graphs


def _write_complexity(repository: Path, name: str, **complexity: int) -> None:
    card = repository / name / "1" / "card.json"
    content = json.loads(card.read_text())
    content["complexity"].update(complexity)
    card.write_text(json.dumps(content))


def test_batches_follow_a_models_arithmetic_or_the_settings(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    _write_complexity(tmp_path, "tiny-video", macs=300_000_000)

    def batches(**settings: Any) -> dict[str, int]:
        models = load_models(Settings(repository=tmp_path, device="cpu", **settings))
        return {model.card.task: model.max_batch for model in models}

    assert batches()["video"] == 13  # four thousand million multiply-accumulates a batch
    assert batches()["classify"] == 64
    assert set(batches(max_batch=5).values()) == {5}
    assert batches(max_batch={"tiny-video": 7}) == batches() | {"video": 7}


def test_a_batch_for_a_model_that_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    settings = Settings(repository=tmp_path, device="cpu", max_batch={"tiny-audio": 3, "nosuch": 2})
    for start in (check_loadable, load_models):
        with pytest.raises(
            SettingsError, match=r"CONVSERVE_MAX_BATCH names 'nosuch', .* has tiny-audio, tiny-classify,"
        ):
            start(settings)


def test_a_batch_for_a_model_that_is_there_but_broken_is_not_refused(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    (tmp_path / "tiny-video" / "1" / "card.json").write_text("{}")
    settings = Settings(repository=tmp_path, device="cpu", max_batch={"tiny-video": 2, "tiny-audio": 3})
    check_loadable(settings)
    assert {model.max_batch for model in load_models(settings) if model.card.task == "audio"} == {3}


@pytest.mark.parametrize(
    ("parameters", "macs", "batch"),
    [
        pytest.param(25_557_032, 4_089_184_256, 4, id="ResNet-50: 640 uses of each weight"),
        pytest.param(61_100_840, 714_188_480, 22, id="AlexNet: sixteen thousand million MACs are the most"),
        pytest.param(1_190_000, 3_836_000_000, 1, id="few weights, each used often already"),
        pytest.param(33_000_000, 40_000_000_000, 1, id="more arithmetic than any batch should have"),
    ],
)
def test_batches_are_larger_where_weights_are_many(tmp_path: Path, parameters: int, macs: int, batch: int) -> None:
    graphs.write_all(tmp_path)
    _write_complexity(tmp_path, "tiny-classify", parameters=parameters, macs=macs)
    models = load_models(Settings(repository=tmp_path, device="cpu"))
    assert {model.max_batch for model in models if model.card.task == "classify"} == {batch}


def test_as_few_models_as_possible_are_loaded_to_know_whether_the_service_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs.write_all(tmp_path)
    read: list[str] = []

    def remembered(model: StoredModel) -> bytes:
        read.append(model.card.name)
        return read_graph(model)

    monkeypatch.setattr("service.repository.loading.read_graph", remembered)
    check_loadable(Settings(repository=tmp_path, device="cpu"))
    assert read == ["tiny-audio"]
    read.clear()
    check_loadable(Settings(repository=tmp_path, device="cpu", default_models={"segment": "tiny-segment"}))
    assert read[-1] == "tiny-segment" and "tiny-video" not in read
    with pytest.raises(SettingsError, match="nobody"):
        check_loadable(Settings(repository=tmp_path, device="cpu", default_models={"segment": "nobody"}))
    for graph in tmp_path.glob("*/1/model.onnx"):
        graph.write_bytes(b"")
    with pytest.raises(SettingsError, match="no model"):
        check_loadable(Settings(repository=tmp_path, device="cpu"))


def test_sound_models_load_beside_broken_ones(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    (tmp_path / "tiny-video" / "1" / "model.onnx").write_bytes(b"")
    loaded = load_models(Settings(repository=tmp_path, device="cpu"))
    assert [model.card.task for model in loaded] == ["audio", "classify", "segment"]


def test_on_a_gpu_the_tasks_state_the_largest_batch_unless_the_settings_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: dict[str, int] = {}

    class OnGpu:
        provider = CUDA

        def __init__(self, card: ModelCard, graph: bytes, *, max_batch: int, **others: Any) -> None:
            prepared[card.task] = max_batch

    monkeypatch.setattr("service.repository.loading.Engine", OnGpu)
    graphs.write_all(tmp_path)

    def batches(**settings: Any) -> dict[str, int]:
        prepared.clear()
        models = load_models(Settings(repository=tmp_path, device="cuda", workers=1, **settings))
        return {model.card.task: model.max_batch for model in models}

    assert batches() == prepared == {"classify": 128, "segment": 32, "audio": 128, "video": 32}
    assert batches(max_batch={"tiny-segment": 7}) == prepared
    assert prepared["segment"] == 7 and prepared["video"] == 32
