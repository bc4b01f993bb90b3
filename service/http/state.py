"""State of the process that the HTTP layer needs, and the routes of its tasks."""

from dataclasses import dataclass

from service.pipeline import Pipeline
from service.settings import Settings
from service.tasks import TASKS
from service.tasks.task import Task

BENTO_PREFIX = "/bento"  # of the routes for BentoML's clients


def task_routes() -> dict[str, Task]:
    """Maps ``/<name>`` and ``/bento/<name>`` of every task to it."""
    return {f"{prefix}/{name}": task for prefix in ("", BENTO_PREFIX) for name, task in TASKS.items()}


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
