"""One request among those that wait: for its turn to be decoded, then for batches to take its samples."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

from service.engines.onnxruntime import Outputs
from service.errors import DeadlineExceeded, InternalError, ServiceError
from service.scheduling.admission import Admission
from service.scheduling.decode_scheduler import Decoding
from service.scheduling.isolation import Ran, Sample
from service.telemetry.stages import Run


class Result(NamedTuple):
    outputs: list[Outputs]  # one per sample, in order
    runs: list[Run]  # the batches they were in


class Queue(Protocol):
    """What a place needs of the batcher."""

    admission: Admission
    decoding: Decoding

    def enqueue(self, place: "Place", decode_seconds: float) -> None: ...  # its samples are there

    def release(self, place: "Place") -> None: ...  # it is answered, or gives up


class Place:
    """One request's place in the queue, from before it is decoded until it is answered or gives up.

    It is entered before use: the deadline then ends whatever is awaited inside.
    """

    def __init__(self, queue: Queue, deadline: float, size: int, at_once_seconds: float) -> None:
        self.deadline = deadline
        self.size, self.at_once_seconds = size, at_once_seconds
        self.waits_since = time.monotonic()  # for the event loop and the engine
        self.counted = 1  # samples that it counts as in the queue
        self.decoded = False
        self._doing = "waited to be decoded"
        self._queue = queue
        self._samples: Sequence[Sample] = ()
        self._taken = 0  # by batches
        self._answered = 0
        self._outputs: list[Outputs] = []
        self._runs: list[Run] = []
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timeout = asyncio.timeout(deadline - self.waits_since)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._finished.cancel()
        self._queue.release(self)
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise self._late() from None

    @property
    def over(self) -> bool:
        """Nobody waits for the answer any more, or it is complete."""
        return self._finished.done() or time.monotonic() >= self.deadline

    def check(self) -> None:
        """For decoders, from any thread: raises ``DeadlineExceeded`` when there is no use in going on."""
        if self.over:
            raise self._late()

    @property
    def slow(self) -> bool:
        """It is decoded in a thread."""
        return self.at_once_seconds == 0

    async def turn(self) -> None:
        """Until the media should be decoded."""
        await self._queue.decoding.turn(self)
        self._doing = "was decoded"

    def slows(self) -> None:
        """It is to be decoded in a thread after all."""
        self.at_once_seconds = 0.0
        self._doing = "waited to be decoded"
        self._queue.admission.slows()
        self._queue.decoding.changed()

    async def run(self, samples: Sequence[Sample], *, decode_seconds: float = 0.0) -> Result:
        """Every sample's outputs. There is one at least, and all have one shape; making them took ``decode_seconds``.
        Raises what failed a sample."""
        assert samples
        self._doing = "waited for the model"
        self._samples = samples
        self._outputs = [()] * len(samples)
        self._queue.enqueue(self, decode_seconds)
        await self._finished
        return Result(self._outputs, self._runs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each of its samples."""
        return self._samples[0].shape

    @property
    def long(self) -> bool:
        """It has more than one sample."""
        return len(self._samples) > 1

    @property
    def left(self) -> int:
        """Samples that no batch has taken yet."""
        return len(self._samples) - self._taken

    def take(self) -> "Entry":
        self._taken += 1
        return Entry(self, self._taken - 1, self._samples[self._taken - 1])

    def answer(self, number: int, ran: Ran) -> None:
        self._outputs[number] = ran.outputs
        if self._runs[-1:] != [ran.run]:
            self._runs.append(ran.run)
        self._answered += 1
        if self._answered == len(self._samples) and not self._finished.done():
            self._doing = "was answered"
            self._finished.set_result(None)

    def fail(self, error: ServiceError) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed while the request {self._doing}")


class Entry(NamedTuple):
    place: Place
    number: int  # among its request's samples
    sample: Sample

    def tell(self, ran: Ran | None) -> None:
        if ran:
            self.place.answer(self.number, ran)
        else:
            self.place.fail(InternalError("the model failed on this sample"))
