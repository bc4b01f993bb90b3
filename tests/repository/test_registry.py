import json
from typing import Any, NamedTuple

import pytest

from service.errors import ModelNotFound, TaskNotServed
from service.repository.card import ModelCard
from service.repository.registry import Registry
from service.settings import SettingsError
from tests import graphs


class Model(NamedTuple):
    card: ModelCard


def _model(task: str, **changed: Any) -> Model:
    return Model(ModelCard.model_validate_json(json.dumps(graphs.card_content(task, b"", **changed))))


def test_the_highest_version_is_meant_where_none_is_given() -> None:
    registry = Registry([_model("classify", version=version) for version in (2, 10, 9)], {})
    assert registry.find("classify").card.version == 10
    assert registry.find("classify", "tiny-classify").card.version == 10
    assert registry.find("classify", "tiny-classify:9").card.version == 9
    assert [model.card.version for model in registry.of("classify")] == [10, 2, 9], "the default first"
    assert [card.version for card in registry.cards()] == [2, 9, 10]


def test_the_default_is_the_model_that_the_settings_name_or_else_the_cards() -> None:
    models = [_model("classify", name="a", default=False), _model("classify", name="b"), _model("classify", name="c")]

    def default(models: list[Model], **named: str) -> str:
        return Registry(models, named).find("classify").card.name

    assert default(models) == "b"
    assert default(models, classify="c") == "c"
    assert default(models, classify="a:1") == "a"
    assert default(models[:1]) == "a"


@pytest.mark.parametrize("named", [{"classify": "nobody"}, {"classify": "tiny-audio"}, {"video": "tiny-audio"}])
def test_a_default_that_is_not_loaded_is_refused(named: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="CONVSERVE_DEFAULT_MODELS"):
        Registry([_model("classify"), _model("audio")], named)


def test_refusals_name_what_is_loaded() -> None:
    registry = Registry([_model("classify"), _model("audio")], {})
    assert registry.tasks() == ["audio", "classify"] and registry.of("video") == []
    with pytest.raises(TaskNotServed, match="audio, classify"):
        registry.find("video")
    with pytest.raises(ModelNotFound, match="tiny-classify:1"):
        registry.find("classify", "tiny-audio")
    with pytest.raises(ModelNotFound, match="tiny-audio:1"):
        registry.named("nobody")
