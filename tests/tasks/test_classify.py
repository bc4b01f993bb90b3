import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from service.errors import InternalError
from service.media import Limits
from service.repository.card import ModelCard
from service.tasks.classify import CLASSIFY, ClassifyParameters, predictions
from service.tasks.task import JSON
from tests import graphs
from tests.samples import grey_png


def card(**changed: Any) -> ModelCard:
    return ModelCard.model_validate_json(json.dumps(graphs.card_content("classify", b"", **changed)))


def test_predictions_are_the_likeliest_first_and_ties_keep_the_cards_order() -> None:
    found = predictions(np.array([0.2, 0.5, 0.1, 0.2], np.float32), ("a", "b", "c", "d"), 3)
    assert [(entry["label"], round(entry["score"], 6)) for entry in found] == [("b", 0.5), ("a", 0.2), ("d", 0.2)]


def test_more_labels_than_categories_means_all() -> None:
    assert len(predictions(np.array([0.5, 0.5], np.float32), ("a", "b"), 100)) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_an_internal_error(value: float) -> None:
    with pytest.raises(InternalError):
        predictions(np.array([value, 0.5], np.float32), ("a", "b"), 1)


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "probabilities", "dtype": "float32", "layout": "NC", "shape": ["N", 255]}],
        [{"name": "probabilities", "dtype": "float32", "layout": "NCT", "shape": ["N", 256, 1]}],
        [{"name": "probabilities", "dtype": "float32", "layout": "N", "shape": ["N"]}],
    ],
    ids=["too few", "another axis", "no categories"],
)
def test_a_card_must_state_a_probability_for_each_category(outputs: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match=r"'probabilities' is .*and there are 256 categories"):
        card(outputs=outputs)


def test_the_steps_of_the_task_lead_from_a_file_to_predictions() -> None:
    tiny: Any = card()
    parameters = ClassifyParameters(top_k=2)
    spec = CLASSIFY.decode_spec(tiny.preprocess, parameters)
    assert spec.shorter_side == 4
    assert CLASSIFY.decode_cost(grey_png(7), spec, Limits()).seconds < 0.001
    prepared = CLASSIFY.prepare(CLASSIFY.decode(grey_png(7), spec, Limits(), float("inf")), tiny.preprocess)
    (sample,) = prepared.samples
    assert sample.shape == (4, 4, 3) and (sample == 7).all()
    probabilities = np.zeros(256, np.float32)
    probabilities[7] = 1
    answer = CLASSIFY.finish([(probabilities,)], prepared, tiny, parameters, JSON)
    assert answer == [{"label": "7", "score": 1.0}, {"label": "0", "score": 0.0}]
