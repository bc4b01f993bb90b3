"""The interface of an engine: whatever runs one model's graph on batches of samples."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Sample = NDArray[np.generic]  # without the batch axis
Outputs = tuple[NDArray[np.generic], ...]  # of one sample, in the card's order, without the batch axis


class Engine(Protocol):
    """Called from any thread, one batch at a time."""

    def run(self, samples: Sequence[Sample]) -> list[Outputs]:
        """Samples of one shape -> each sample's outputs. May raise anything."""
        ...

    def padded_size(self, count: int) -> int:
        """How many samples are computed when ``count`` are run."""
        ...

    def blank(self) -> Sample:
        """A sample that every sound model answers: it tells a bad sample from a broken engine."""
        ...
