"""The registry of training tasks: a mirror of the service's, open to tasks of one's own."""

import dataclasses
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import service.tasks
from models import tasks
from models.recipes import CLASSIFY, Recipe
from models.tasks import TASKS
from models.tasks.classify import ClassifyTraining
from models.train import main
from service.tasks import TASKS as SERVING
from service.tasks import TaskError
from service.tasks.classify import Classify


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers a task called ``own``, whose training side has the given attributes, until the test ends."""
    registries = ("models.tasks.TASKS", "models.tasks.RECIPES", "models.tasks.ARCHITECTURES", "service.tasks.TASKS")
    for registry in registries:
        monkeypatch.setattr(registry, dict(pkgutil.resolve_name(registry)))

    def register(place: str = f"{__name__}:OWN", **attributes: Any) -> None:
        serving = type("Own", (Classify,), {"name": "own", "training": place})()
        service.tasks.TASKS["own"] = serving
        training = type("OwnTraining", (ClassifyTraining,), {"serving": serving} | attributes)()
        monkeypatch.setattr(sys.modules[__name__], "OWN", training, raising=False)
        tasks._register_all()

    return register


def own_recipe(name: str) -> Recipe:
    return dataclasses.replace(CLASSIFY, name=name, task="own")


def own_network(num_classes: int = 2) -> nn.Module:
    return nn.Linear(1, num_classes)


@pytest.mark.parametrize("name", SERVING)
def test_each_serving_task_has_its_mirror(name: str) -> None:
    task = TASKS[name]
    assert task.serving is SERVING[name] and task.name == name
    assert tuple(spec.name for spec in task.output_specs(3)) == SERVING[name].outputs


def test_a_task_brings_its_recipes_and_architectures(own: Callable[..., None]) -> None:
    own(recipes=(own_recipe("mine"),), architectures={"my_network": own_network})
    assert tasks.TASKS["own"].name == "own"
    assert vars(tasks)["RECIPES"]["mine"].task == "own"
    assert vars(tasks)["ARCHITECTURES"]["my_network"] is own_network


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("nowhere:TASK", "its training 'nowhere:TASK' cannot be imported: No module named 'nowhere'"),
        (f"{__name__}:NOTHING", "cannot be imported: .*has no attribute 'NOTHING'"),
        ("models.tasks.classify:CLASSIFY", "is no TrainingTask whose serving is this task"),
        ("models.recipes:CLASSIFY", "is no TrainingTask whose serving is this task"),
    ],
)
def test_a_training_side_that_cannot_be_used_is_named(own: Callable[..., None], place: str, complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint):
        own(place)


@pytest.mark.parametrize(
    ("brought", "complaint"),
    [
        ({"recipes": (own_recipe("classify"),)}, "task 'own': another recipe is called 'classify'"),
        ({"architectures": {"resnet18": own_network}}, "task 'own': another architecture is called 'resnet18'"),
    ],
)
def test_names_that_are_taken_are_refused(own: Callable[..., None], brought: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint):
        own(**brought)


def test_a_command_ends_with_a_line_where_a_task_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSERVE_TASKS", "nowhere:TASK")
    with pytest.raises(SystemExit, match="cannot load a task: CONVSERVE_TASKS: nowhere:TASK cannot be imported"):
        main(["classify", "--data", str(tmp_path)])
