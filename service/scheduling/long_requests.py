"""How many samples of long requests a batch may have: who comes while it runs waits for it, so it may run the longer
because of them by a moment only."""

_MOMENT_SECONDS = 0.02


class Quota:
    """``samples``, at first and at most ``max_batch``, and never none."""

    def __init__(self, max_batch: int) -> None:
        self.samples = self._most = max_batch

    def ran(self, samples: int, *, of: int, seconds: float) -> None:
        """So many of them were in a batch ``of`` so many, which took so long. Half of the quota where their share of
        that was more than a moment; twice the quota where it was used up, and twice as many would take no more."""
        theirs = seconds * samples / of
        if theirs > _MOMENT_SECONDS:
            self.samples = max(1, self.samples // 2)
        elif samples == self.samples and 2 * theirs <= _MOMENT_SECONDS:
            self.samples = min(2 * self.samples, self._most)
