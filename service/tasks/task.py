"""The interface of a task. One object states all that the service asks of it; whatever needs a list derives it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.engines.engine import Outputs, Sample
from service.media import DecodeCost, Limits
from service.repository.card import ModelCard, Preprocess

__all__ = ["JSON", "Outputs", "Parameters", "Prepared", "Sample", "Task"]

JSON = "application/json"


class Parameters(BaseModel):
    """Parameters of every task, in the query string or in JSON, where null is no value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str | None, Field(description="a model's name, or name:version; else the route's default")] = None
    timeout_ms: Annotated[int | None, Field(ge=1, description="deadline, counted from the last byte of the body")] = (
        None
    )


class Prepared(NamedTuple):
    """One file's samples, at least one, all of one shape, and what ``finish`` needs of the media beside them.

    ``weights`` says how much each sample counts in the answer for the whole, None being all the same; ``padding`` is
    the share of each sample that is filler.
    """

    samples: Sequence[Sample]
    context: Any = None
    weights: NDArray[np.float64] | None = None
    padding: float = 0.0


class Task(ABC):
    """A task: its route, its media and the four steps from bytes to answer, of which inference is not its own.

    Steps are called from any thread, and hold no state between requests.
    """

    name: ClassVar[str]  # the route is ``/<name>``
    summary: ClassVar[str]  # one line of documentation
    accepts: ClassVar[str]  # the media's formats, as a client reads them
    sample: ClassVar[Path | None] = None  # a file to try the route with
    training: ClassVar[str | None] = None  # ``module:object`` of its mirror in training, which may import torch

    parameters: ClassVar[type[Parameters]]
    answer: ClassVar[Any]  # type of the JSON answer
    other_answers: ClassVar[tuple[Any, ...]] = ()  # types of the answers that parameters ask for
    media_types: ClassVar[tuple[str, ...]] = (JSON,)  # what the answer can be encoded as, the default first

    preprocess: ClassVar[type[Preprocess]]  # section of its models' cards
    outputs: ClassVar[tuple[str, ...]]  # names of its graphs' outputs, in this order
    max_batch_gpu: ClassVar[int] = 32  # samples in a batch on a GPU, where nothing else is said
    of_any_length: ClassVar[bool] = False  # media differ in length, so one more decodes at a time
    finishes_in_thread: ClassVar[bool] = False  # ``finish`` takes longer than a moment of the event loop

    def check_card(self, card: ModelCard) -> None:
        """Raises ``ValueError`` for a card that the schema allows and this task does not."""
        if card.palette is not None:
            raise ValueError(f"task {self.name!r} has no palette")

    def check_media_type(self, parameters: Any, media_type: str) -> None:  # noqa: B027 - most tasks know but one
        """Raises ``InvalidParameter`` for parameters that do not go with ``media_type``, where there are several."""

    @abstractmethod
    def decode_spec(self, preprocess: Any, parameters: Any) -> Any:
        """Returns what the decoder is asked for; can be pickled."""

    def decode_cost(self, data: bytes, spec: Any, limits: Limits) -> DecodeCost:
        """Estimates ``decode`` by the file's header. Raises nothing."""
        return DecodeCost(float("inf"), limits)

    @abstractmethod
    def decode(self, data: bytes, spec: Any, limits: Limits, deadline: float) -> Iterator[Any]:
        """Yields blocks that can be pickled; see ``service.media`` for what it raises. ``deadline`` is monotonic."""

    @abstractmethod
    def prepare(self, blocks: Iterable[Any], preprocess: Any) -> Prepared:
        """Blocks -> samples of the shapes and dtype that the card states. Training comes through here, too."""

    @abstractmethod
    def finish(
        self, outputs: Sequence[Outputs], prepared: Prepared, card: ModelCard, parameters: Any, media_type: str
    ) -> Any:
        """Outputs of each sample -> the answer: what pydantic can serialise, or for another media type bytes.

        Raises ``InternalError`` for outputs that are not finite.
        """
