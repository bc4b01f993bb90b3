"""The registry of tasks: the four of this project, and tasks of one's own."""

import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points

from service.repository import card
from service.tasks.audio import AUDIO
from service.tasks.classify import CLASSIFY
from service.tasks.segment import SEGMENT
from service.tasks.task import Task
from service.tasks.video import VIDEO

VARIABLE = "CONVSERVE_TASKS"
ENTRY_POINTS = "convserve.tasks"

TASKS: dict[str, Task] = {}


class TaskError(Exception):
    """A task of one's own that cannot be loaded; the message says which and why."""


def register(task: Task) -> None:
    """Raises ``TaskError`` if another task has this name."""
    if TASKS.setdefault(task.name, task) is not task:
        raise TaskError(f"two tasks are called {task.name!r}")
    card.register(task)


def load(named: str = "") -> None:
    """Registers installed tasks (entry points in the group ``convserve.tasks``) and those ``named``.

    ``named`` is the value of CONVSERVE_TASKS, ``module:object,…``. Raises ``TaskError``.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        register(_task(entry.value, f"the entry point {entry.name} in {ENTRY_POINTS}"))
    for address in _listed(named):
        register(_task(address, VARIABLE))


def _listed(named: str) -> Iterator[str]:
    return filter(None, (item.strip() for item in named.split(",")))


def _task(address: str, asked_by: str) -> Task:
    module, colon, name = address.partition(":")
    if not (colon and module and name):
        raise TaskError(f"{asked_by}: {address!r} is not of the form module:object")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a foreign module may raise anything while it is imported
        raise TaskError(f"{asked_by}: {address} cannot be imported: {error}") from error
    if not isinstance(found, Task):
        raise TaskError(f"{asked_by}: {address} is a {type(found).__name__}, not a service.tasks.task.Task")
    if missing := [attribute for attribute in Task.__annotations__ if not hasattr(found, attribute)]:
        raise TaskError(f"{asked_by}: {address} does not state {', '.join(missing)}")
    return found


for _built_in in (CLASSIFY, SEGMENT, AUDIO, VIDEO):
    register(_built_in)
