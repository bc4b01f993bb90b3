import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.repository.card import ModelCard
from tests import graphs


def _card(tiny: str, **changed: Any) -> ModelCard:
    return ModelCard.model_validate_json(json.dumps({**graphs.card_content(tiny, b"graph"), **changed}))


@pytest.mark.parametrize("task", ["classify", "segment", "audio", "video"])
def test_a_card_survives_being_written_and_read(task: str) -> None:
    card = _card(task)
    assert ModelCard.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize(
    ("task", "changed", "said"),
    [
        ("classify", {"colour": "red"}, "colour"),
        ("classify", {"name": "Up/Down"}, "name"),
        ("classify", {"version": 0}, "version"),
        ("classify", {"task": "guess"}, "task"),
        ("classify", {"categories": []}, "categories"),
        ("classify", {"categories": ["a", "a"]}, "named twice"),
        ("classify", {"palette": [[0, 0, 0]] * 256}, "palette"),
        ("classify", {"files": {}}, "model.onnx"),
        ("classify", {"outputs": []}, "probabilities"),
        ("segment", {"palette": None}, "palette"),
        ("segment", {"palette": [[0, 0, 0]]}, "one colour per category"),
        ("segment", {"palette": [[0, 0, 256], [0, 0, 0]]}, "256"),
        ("audio", {"preprocess": graphs.card_content("video", b"")["preprocess"]}, "audio"),
        ("classify", {"preprocess": {"media": "image", "resize": "crop", "sizes": [[8, 8]]}}, "shorter_side"),
        (
            "classify",
            {"preprocess": {"media": "image", "resize": "crop", "sizes": [[8, 8]], "shorter_side": 4}},
            "shorter_side",
        ),
        ("classify", {"files": {"model.onnx": {"sha256": "short", "bytes": 1}}}, "sha256"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(task: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _card(task, **changed)


def test_sample_shapes_are_what_preprocessing_makes() -> None:
    assert _card("classify").sample_shapes() == ((4, 4, 3),)
    assert _card("segment").sample_shapes() == ((32, 32, 3), (32, 64, 3), (64, 32, 3))
    assert _card("audio").sample_shapes() == ((1, 800),)
    assert _card("video").sample_shapes() == ((4, 8, 8, 3),)
