"""How fast requests went lately, and so how long those that are here will take."""

_MEMORY = 0.8  # how much of a running mean stays when a value is added to it


class Mean:
    """A running mean that forgets."""

    value = 0.0

    def add(self, value: float) -> None:
        self.value = _MEMORY * (self.value or value) + (1 - _MEMORY) * value


class Pace:
    """A request stands in the decoders' line first, of whom there are ``decoders``, then its samples in the engine's.

    ``decoding`` is the seconds of a request, ``inference`` those of a sample in a batch; 0 until the first is known.
    """

    def __init__(self, decoders: int) -> None:
        self.decoding, self.inference = Mean(), Mean()
        self._decoders = decoders

    def seconds_ahead(self, undecoded: int, samples: int) -> float:
        """Of both lines the longer one counts, as both move at the same time."""
        return max(undecoded * self.decoding.value / self._decoders, samples * self.inference.value)

    def seconds_of_one(self) -> float:
        return self.decoding.value + self.inference.value
