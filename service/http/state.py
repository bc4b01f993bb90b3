"""State of the process that the HTTP layer needs."""

from collections.abc import Callable
from dataclasses import dataclass

from service.pipeline import Pipeline
from service.settings import Settings


@dataclass
class State:
    """``pipeline`` is None until models are loaded, and once the service stops.

    While it is ``draining`` every answer ends its connection: only with an answer can HTTP/1.1 tell a client to go.
    ``closes_one`` is asked for each answer whether another worker should rather have its connection.
    """

    settings: Settings
    pipeline: Pipeline | None = None
    draining: bool = False
    closes_one: Callable[[], bool] = lambda: False
