"""State of the process that the HTTP layer needs."""

from dataclasses import dataclass

from service.pipeline import Pipeline
from service.settings import Settings


@dataclass
class State:
    """``pipeline`` is None until models are loaded, and once the service stops.

    While it is ``draining`` every answer ends its connection: only with an answer can HTTP/1.1 tell a client to go.
    So many answers as there are ``surplus_connections`` do so too, for other workers to have those.
    """

    settings: Settings
    pipeline: Pipeline | None = None
    draining: bool = False
    surplus_connections: int = 0
