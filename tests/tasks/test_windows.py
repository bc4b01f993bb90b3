import json
from typing import Any

import numpy as np
import pytest

from service.media import Limits
from service.media.windows import Windows
from service.repository.card import ModelCard
from service.tasks.audio import AUDIO
from service.tasks.task import JSON, Prepared
from service.tasks.video import VIDEO
from service.tasks.windows import Timeline, WindowParameters, WindowTask, prepared_windows, weighted_mean
from tests import graphs
from tests.samples import grey_clip, square_wav

ROWS = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)  # probabilities of two windows


def card(task: str) -> ModelCard:
    return ModelCard.model_validate_json(json.dumps(graphs.card_content(task, b"")))


def windows(weights: list[float]) -> Prepared:
    spans = [(float(at), float(at + 1)) for at in range(len(weights))]
    return prepared_windows(Windows([np.zeros((1, 4), np.float32)] * len(weights), spans, np.array(weights)))


def test_the_whole_is_the_windows_mean_by_their_weights() -> None:
    np.testing.assert_allclose(weighted_mean(ROWS, np.array([3.0, 1.0])), [0.75, 0.25])
    np.testing.assert_allclose(weighted_mean(ROWS, None), [0.5, 0.5])
    np.testing.assert_array_equal(weighted_mean(ROWS[:1], np.array([3.0])), [1, 0])


@pytest.mark.parametrize("task", [AUDIO, VIDEO])
def test_the_answer_is_for_the_whole_and_with_the_timeline_if_that_is_asked_for(task: WindowTask) -> None:
    prepared, tiny, outputs = windows([3, 1]), card(task.name), [(row,) for row in ROWS]
    first, second = tiny.categories
    whole = task.finish(outputs, prepared, tiny, WindowParameters(top_k=1), JSON)
    assert whole == [{"label": first, "score": 0.75}]
    timeline = task.finish(outputs, prepared, tiny, WindowParameters(top_k=1, windows=True), JSON)
    assert isinstance(timeline, Timeline)
    assert timeline.predictions == whole
    assert [(part.start_seconds, part.end_seconds, part.predictions[0]["label"]) for part in timeline.windows] == [
        (0.0, 1.0, first),
        (1.0, 2.0, second),
    ]


@pytest.mark.parametrize(
    ("task", "data", "shapes"),
    [
        pytest.param(AUDIO, square_wav(0.5, seconds=0.2), [(1, 800)] * 3, id="audio"),
        pytest.param(VIDEO, grey_clip(100, frames=8), [(4, 8, 8, 3)] * 3, id="video"),
    ],
)
def test_a_file_becomes_windows_of_the_shape_that_the_card_states(
    task: WindowTask, data: bytes, shapes: list[tuple[int, ...]]
) -> None:
    tiny: Any = card(task.name)
    spec = task.decode_spec(tiny.preprocess, WindowParameters())
    prepared = task.prepare(task.decode(data, spec, Limits(), float("inf")), tiny.preprocess)
    assert [sample.shape for sample in prepared.samples] == shapes
    assert len(prepared.context) == len(shapes) and prepared.weights is not None
    assert set(shapes) == set(tiny.sample_shapes())
