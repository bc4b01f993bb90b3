"""``/series``: the shape of a series of numbers. A task of one's own, by public means alone: the half that serves."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.errors import CorruptMedia, MediaTooLarge, UnsupportedMedia
from service.media import Limits
from service.repository.card import ModelCard, Preprocess
from service.tasks.classify import Prediction, check_probabilities, predictions
from service.tasks.task import Outputs, Parameters, Prepared, Task

MAX_NUMBERS = 100_000


class SeriesPreprocess(Preprocess):
    """One sample (1, T) float32 of a series of any length, interpolated to ``length`` numbers."""

    media: Literal["series"] = "series"
    length: Annotated[int, Field(ge=8, le=4096)]

    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((1, self.length),)


class SeriesParameters(Parameters):
    top_k: Annotated[int, Field(ge=1, description="how many labels; more than there are categories means all")] = 5


class SeriesTask(Task):
    name = "series"
    summary = "The shape of a series of numbers"
    accepts = "a JSON list of numbers, or numbers as CSV text"
    parameters = SeriesParameters
    answer = list[Prediction]
    preprocess = SeriesPreprocess
    outputs = ("probabilities",)
    training = "tests.fifth_task.training:SERIES"

    def check_card(self, card: ModelCard) -> None:
        super().check_card(card)
        check_probabilities(card)

    def decode_spec(self, preprocess: SeriesPreprocess, parameters: SeriesParameters) -> None:
        """A series is decoded alike for all models."""

    def decode(self, data: bytes, spec: None, limits: Limits, deadline: float) -> Iterator[NDArray[np.float64]]:
        """Yields the whole series (T,), as it is short. Raises a ``ServiceError`` for what is no series."""
        try:
            text = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UnsupportedMedia(f"the bytes are no text; expected {self.accepts}") from error
        try:
            held = json.loads(text) if text.startswith("[") else text.replace("\n", ",").split(",")
            numbers = np.array(held, np.float64)
        except (ValueError, TypeError) as error:  # json's and numpy's
            raise CorruptMedia(f"the text is not {self.accepts}") from error
        if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
            raise CorruptMedia("the series is empty, nested, or holds numbers that are not finite")
        if len(numbers) > MAX_NUMBERS:
            raise MediaTooLarge(f"the series has {len(numbers)} numbers; {MAX_NUMBERS} are allowed")
        yield numbers

    def prepare(self, blocks: Iterable[NDArray[np.float64]], preprocess: SeriesPreprocess) -> Prepared:
        series = np.concatenate(list(blocks))
        places = np.linspace(0, len(series) - 1, preprocess.length)
        return Prepared([np.interp(places, np.arange(len(series)), series).astype(np.float32)[None]])

    def finish(
        self,
        outputs: Sequence[Outputs],
        prepared: Prepared,
        card: ModelCard,
        parameters: SeriesParameters,
        media_type: str,
    ) -> list[Prediction]:
        return predictions(np.asarray(outputs[0][0], np.float32), card.categories, parameters.top_k)


SERIES = SeriesTask()
