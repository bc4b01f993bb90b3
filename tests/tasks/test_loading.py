"""Tasks of one's own: ``CONVSERVE_TASKS=module:object,…``."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service import tasks
from service.repository import card
from service.settings import Settings, SettingsError

OWN_TASK = """
from service.tasks.classify import Classify

class Own(Classify):
    name = "own"

OWN = Own()
TWIN = Own()
OTHER_CLASSIFY = Classify()
NUMBER = 7
"""

NAMELESS_TASK = """
from service.tasks.task import Task

class Own(Task):
    summary = "Has its steps, and says too little of itself"

    def decode_spec(self, *_): ...
    def decode(self, *_): ...
    def prepare(self, *_): ...
    def finish(self, *_): ...

OWN = Own()
"""

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module that can be imported; tasks that it registers are forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    monkeypatch.setattr(card, "_rules", dict(card._rules))

    def module(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(source)

    return module


def test_a_task_that_is_named_is_registered_beside_the_built_in_ones(write: Write) -> None:
    write("own_task", OWN_TASK)
    tasks.load(" own_task:OWN ,")
    assert list(tasks.TASKS) == ["classify", "segment", "audio", "video", "own"]
    tasks.load("own_task:OWN")  # once more: it is the same object
    assert tasks.TASKS["own"].summary


def test_nothing_named_means_the_built_in_tasks(write: Write) -> None:
    tasks.load("")
    tasks.load(" , ")
    assert list(tasks.TASKS) == ["classify", "segment", "audio", "video"]


@pytest.mark.parametrize("place", ["own_task", "own_task:", ":OWN", "own_task.OWN"])
def test_another_form_than_module_and_object_is_refused(write: Write, place: str) -> None:
    with pytest.raises(tasks.TaskError, match=f"^CONVSERVE_TASKS: '{place}' is not of the form module:object$"):
        tasks.load(place)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("no_such_module:OWN", "no_such_module:OWN cannot be imported: No module named 'no_such_module'"),
        ("broken_task:OWN", "broken_task:OWN cannot be imported: division by zero"),
        ("misspelt_task:OWN", "misspelt_task:OWN cannot be imported: .*misspelt"),
        ("attribute_task:NOBODY", "attribute_task:NOBODY cannot be imported: .*no attribute 'NOBODY'"),
        ("attribute_task:NUMBER", "attribute_task:NUMBER is a int, not a service.tasks.task.Task"),
        ("attribute_task:Own", "attribute_task:Own is a ABCMeta, not a service.tasks.task.Task"),
        ("partial_task:OWN", "partial_task:OWN cannot be imported: .*abstract"),
        (
            "nameless_task:OWN",
            "nameless_task:OWN does not state name, accepts, parameters, answer, preprocess, outputs",
        ),
        ("attribute_task:OTHER_CLASSIFY", "two tasks are called 'classify'"),
        ("attribute_task:OWN,attribute_task:TWIN", "two tasks are called 'own'"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_refused_by_name(write: Write, place: str, said: str) -> None:
    write("broken_task", "1 / 0")
    write("misspelt_task", "import misspelt_library")
    write("attribute_task", OWN_TASK)
    write("partial_task", "from service.tasks.task import Task\nclass Own(Task):\n    name = 'own'\nOWN = Own()")
    write("nameless_task", NAMELESS_TASK)
    with pytest.raises(tasks.TaskError, match=said):
        tasks.load(place)


def test_a_task_that_cannot_be_loaded_stops_the_start_with_a_settings_error(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSERVE_TASKS", "no_such_module:OWN")
    with pytest.raises(SettingsError, match="CONVSERVE_TASKS: no_such_module:OWN cannot be imported"):
        Settings.read()
