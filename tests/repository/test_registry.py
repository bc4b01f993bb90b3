import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import ModelNotFound, TaskNotServed
from service.repository.card import ModelCard
from service.repository.folder import StoredModel, read_graph
from service.repository.registry import Catalogue, check_loadable, load_models
from service.settings import Settings, SettingsError
from tests import graphs


def _card(task: str, **changed: Any) -> ModelCard:
    return ModelCard.model_validate_json(json.dumps(graphs.card_content(task, b"", **changed)))


def test_the_highest_version_is_meant_where_none_is_given() -> None:
    catalogue = Catalogue([_card("classify", version=version) for version in (2, 10, 9)], {})
    assert catalogue.find("classify").version == 10
    assert catalogue.find("classify", "tiny-classify").version == 10
    assert catalogue.find("classify", "tiny-classify:9").version == 9


def test_the_default_is_what_the_settings_name_else_what_its_card_says() -> None:
    cards = [_card("classify", name="a", default=False), _card("classify", name="b"), _card("classify", name="c")]
    assert Catalogue(cards, {}).find("classify").name == "b"
    assert Catalogue(cards, {"classify": "c"}).find("classify").name == "c"
    assert Catalogue(cards, {"classify": "a:1"}).find("classify").name == "a"
    assert Catalogue(cards[:1], {}).find("classify").name == "a"


@pytest.mark.parametrize("named", [{"classify": "nobody"}, {"classify": "tiny-audio"}, {"video": "tiny-audio"}])
def test_a_default_that_is_not_there_is_an_error(named: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="CONVSERVE_DEFAULT_MODELS"):
        Catalogue([_card("classify"), _card("audio")], named)


def test_what_is_not_there_is_refused_with_what_is() -> None:
    catalogue = Catalogue([_card("classify"), _card("audio")], {})
    with pytest.raises(TaskNotServed, match="audio, classify"):
        catalogue.find("video")
    with pytest.raises(ModelNotFound, match="tiny-classify:1"):
        catalogue.find("classify", "tiny-audio")
    with pytest.raises(ModelNotFound, match="tiny-audio:1"):
        catalogue.named("nobody")


def _write_complexity(repository: Path, name: str, **complexity: int) -> None:
    card = repository / name / "1" / "card.json"
    content = json.loads(card.read_text())
    content["complexity"].update(complexity)
    card.write_text(json.dumps(content))


def test_batches_are_as_large_as_a_models_arithmetic_is_small_or_as_the_settings_say(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    _write_complexity(tmp_path, "tiny-video", macs=300_000_000)

    def batches(**settings: Any) -> dict[str, int]:
        models = load_models(Settings(repository=tmp_path, device="cpu", **settings))
        return {model.card.task: model.max_batch for model in models}

    assert batches()["video"] == 13  # four thousand million multiply-accumulates a batch
    assert batches()["classify"] == 64
    assert set(batches(max_batch=5).values()) == {5}
    assert batches(max_batch={"tiny-video": 7, "gone": 2}) == batches() | {"video": 7}


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


def test_whether_the_service_can_start_is_known_from_as_few_models_as_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs.write_all(tmp_path)
    read: list[str] = []

    def remembered(model: StoredModel) -> bytes:
        read.append(model.card.name)
        return read_graph(model)

    monkeypatch.setattr("service.repository.registry.read_graph", remembered)
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
