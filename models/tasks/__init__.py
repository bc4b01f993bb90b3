"""Training tasks: the mirror of ``service.tasks``, derived from what each serving task names as its ``training``."""

import importlib
import os

from models.architectures import ARCHITECTURES
from models.recipes import RECIPES
from models.tasks.task import TrainingTask
from service import tasks as serving
from service.tasks import VARIABLE, TaskError
from service.tasks.task import Task

TASKS: dict[str, TrainingTask] = {}


def load() -> None:
    """Registers tasks of one's own: installed ones, and those that CONVSERVE_TASKS names. Raises ``TaskError``."""
    serving.load(os.environ.get(VARIABLE, ""))
    _register_all()


def load_or_exit() -> None:
    """``load`` for a command, which ends with a message where a task cannot be loaded."""
    try:
        load()
    except TaskError as error:
        raise SystemExit(f"cannot load a task: {error}") from error


def register(task: TrainingTask) -> None:
    """Adds a task, its architectures and its recipes. Raises ``TaskError`` for a name that is taken."""
    for name, architecture in task.architectures.items():
        if ARCHITECTURES.setdefault(name, architecture) is not architecture:
            raise TaskError(f"task {task.name!r}: another architecture is called {name!r}")
    for recipe in task.recipes:
        if RECIPES.setdefault(recipe.name, recipe) is not recipe:
            raise TaskError(f"task {task.name!r}: another recipe is called {recipe.name!r}")
    TASKS[task.name] = task


def _register_all() -> None:
    for task in serving.TASKS.values():
        if task.name not in TASKS and task.training is not None:
            register(_training(task, task.training))


def _training(task: Task, place: str) -> TrainingTask:
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of somebody else's may raise anything while it is imported
        raise TaskError(f"task {task.name!r}: its training {place!r} cannot be imported: {error}") from error
    if not isinstance(found, TrainingTask) or found.serving is not task:
        raise TaskError(f"task {task.name!r}: its training {place!r} is no TrainingTask whose serving is this task")
    return found


_register_all()
