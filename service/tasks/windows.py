"""Answers for media of any length: the mean over windows, and the timeline of windows."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.media.windows import Windows
from service.repository.card import ModelCard
from service.tasks.classify import ClassifyParameters, Prediction, check_probabilities, predictions
from service.tasks.task import Outputs, Prepared, Task


class Window(BaseModel):
    start_seconds: float
    end_seconds: float
    predictions: list[Prediction]


class Timeline(BaseModel):
    predictions: list[Prediction]
    windows: list[Window]


class WindowParameters(ClassifyParameters):
    windows: Annotated[bool, Field(description="answer with the timeline as well")] = False


class WindowTask(Task):
    """A task whose graph classifies windows. ``prepare`` leaves the windows' (start, end) seconds as the context."""

    parameters: ClassVar[type[WindowParameters]] = WindowParameters
    answer = list[Prediction]
    other_answers = (Timeline,)
    outputs = ("probabilities",)
    of_any_length = True

    def check_card(self, card: ModelCard) -> None:
        super().check_card(card)
        check_probabilities(card)

    def finish(
        self,
        outputs: Sequence[Outputs],
        prepared: Prepared,
        card: ModelCard,
        parameters: WindowParameters,
        media_type: str,
    ) -> list[Prediction] | Timeline:
        rows = np.array([sample[0] for sample in outputs])
        whole = predictions(weighted_mean(rows, prepared.weights), card.categories, parameters.top_k)
        if not parameters.windows:
            return whole
        windows = [
            Window(
                start_seconds=start,
                end_seconds=end,
                predictions=predictions(row, card.categories, parameters.top_k),
            )
            for (start, end), row in zip(prepared.context, rows, strict=True)
        ]
        return Timeline(predictions=whole, windows=windows)


def prepared_windows(windows: Windows) -> Prepared:
    return Prepared(windows.samples, windows.spans, windows.weights)


def weighted_mean(probabilities: NDArray[Any], weights: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """(windows, C) -> (C,), the mean by the windows' weights."""
    if len(probabilities) == 1:  # most media are short: it is not worth a mean
        return np.asarray(probabilities[0], np.float32)
    return np.average(probabilities, axis=0, weights=weights).astype(np.float32)
