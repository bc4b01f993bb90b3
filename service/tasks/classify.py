"""``/classify``: what is in a picture."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes Python's own only from 3.12 on

from service.errors import InternalError
from service.media import image
from service.media.image import ImageSpec, Picture
from service.repository.card import ImagePreprocess, ModelCard
from service.tasks.task import Outputs, Parameters, Prepared, Task

SCORE_DIGITS = 6


class Prediction(TypedDict):  # not a model: making five of those takes longer than all else that follows the network
    label: str
    score: float


class ClassifyParameters(Parameters):
    top_k: Annotated[int, Field(ge=1, description="how many labels; more than there are categories means all")] = 5
    function_to_apply: Annotated[Literal["softmax"], Field(description="for the Hugging Face clients")] = "softmax"


class Classify(Task):
    name = "classify"
    summary = "What is in a picture"
    accepts = "JPEG, PNG, WebP, GIF, BMP or TIFF"
    sample = Path("samples/cat.jpg")
    parameters = ClassifyParameters
    answer = list[Prediction]
    preprocess = ImagePreprocess
    outputs = ("probabilities",)
    max_batch_gpu = 128
    training = "models.tasks.classify:CLASSIFY"
    decode, decode_cost = staticmethod(image.decode), staticmethod(image.decode_cost)

    def check_card(self, card: ModelCard) -> None:
        super().check_card(card)
        check_probabilities(card)

    def decode_spec(self, preprocess: ImagePreprocess, parameters: ClassifyParameters) -> ImageSpec:
        return ImageSpec(image.decoded_shorter_side(preprocess))

    def prepare(self, blocks: Iterable[Picture], preprocess: ImagePreprocess) -> Prepared:
        (picture,) = blocks
        return Prepared([image.image_sample(picture.image, preprocess).sample])

    def finish(
        self,
        outputs: Sequence[Outputs],
        prepared: Prepared,
        card: ModelCard,
        parameters: ClassifyParameters,
        media_type: str,
    ) -> list[Prediction]:
        return predictions(np.asarray(outputs[0][0], np.float32), card.categories, parameters.top_k)


def check_probabilities(card: ModelCard) -> None:
    """Raises ``ValueError`` unless the only output is a probability for each category."""
    output, count = card.outputs[0], len(card.categories)
    if len(output.shape) != 2 or (isinstance(output.shape[1], int) and output.shape[1] != count):
        raise ValueError(f"the output {output.name!r} is {output.shape}, and there are {count} categories")


def predictions(probabilities: NDArray[np.float32], categories: tuple[str, ...], top_k: int) -> list[Prediction]:
    """(C,) -> the ``top_k`` likeliest categories, best first. Raises ``InternalError`` where one is not finite."""
    require_finite(probabilities)
    best = (-probabilities).argsort(kind="stable")[:top_k]
    return [
        {"label": categories[index], "score": round(score, SCORE_DIGITS)}
        for index, score in zip(best.tolist(), probabilities[best].tolist(), strict=True)
    ]


def require_finite(values: NDArray[Any]) -> None:
    if not math.isfinite(float(values.sum())):
        raise InternalError("the model's output is not finite")


CLASSIFY = Classify()
