import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.repository.card import ModelCard
from tests import graphs

PLANE = {"dtype": "float32", "layout": "NHW", "shape": ["N", "H", "D"]}


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
        ("classify", {"task": "guess"}, "no task is called 'guess'; there are classify, segment, audio, video"),
        ("classify", {"categories": []}, "categories"),
        ("classify", {"categories": ["a", "a"]}, "named twice"),
        ("classify", {"palette": [[0, 0, 0]] * 256}, "palette"),
        ("classify", {"files": {}}, "model.onnx"),
        ("classify", {"outputs": []}, "task 'classify' needs the outputs probabilities, in this order"),
        ("segment", {"outputs": graphs.card_content("segment", b"")["outputs"][::-1]}, "needs the outputs mask, conf"),
        (
            "segment",
            {"outputs": [{"name": name, **PLANE} for name in ("mask", "confidence")]},
            "an output has the axis 'D', which the input has not",
        ),
        (
            "classify",
            {"outputs": [{"name": "probabilities", "dtype": "float32", "layout": "NC", "shape": ["N", 7]}]},
            "'probabilities' is .*, and there are 256 categories",
        ),
        (
            "classify",
            {"input": {"name": "images", "dtype": "uint8", "layout": "NHW", "shape": ["N", 4, 4]}},
            "does not fit samples",
        ),
        ("segment", {"palette": None}, "palette"),
        ("segment", {"palette": [[0, 0, 0]]}, "one colour per category"),
        ("segment", {"palette": [[0, 0, 256], [0, 0, 0]]}, "256"),
        ("audio", {"preprocess": graphs.card_content("video", b"")["preprocess"]}, "preprocess.media\n.*'audio'"),
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


def test_a_preprocessing_section_of_another_task_is_refused_as_an_object_too() -> None:
    content = graphs.card_content("audio", b"") | {"preprocess": _card("video").preprocess}
    with pytest.raises(ValidationError, match="task 'audio' takes no video"):
        ModelCard.model_validate(content)


def test_output_shapes_are_those_of_a_sample() -> None:
    assert _card("segment").output_shapes((32, 64, 3)) == [(32, 64), (32, 64)]
    assert _card("classify").output_shapes((4, 4, 3)) == [(256,)]


def test_the_json_schema_lists_the_preprocessing_sections_of_all_tasks() -> None:
    schema = ModelCard.model_json_schema(mode="serialization")
    found = schema["properties"]["preprocess"]
    sections = [_resolved(section, schema) for section in found["anyOf"]]
    assert [section["title"] for section in sections] == ["ImagePreprocess", "AudioPreprocess", "VideoPreprocess"]
    assert [section["properties"]["media"]["const"] for section in sections] == ["image", "audio", "video"]


def _resolved(section: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in section:
        return section
    found: dict[str, Any] = schema["$defs"][section["$ref"].rpartition("/")[2]]
    return found
