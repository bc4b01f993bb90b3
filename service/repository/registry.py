"""The registry: which models are loaded now, by name and version, and which one answers a route by default.

A registry never changes; a new one replaces it as a whole, while requests that found their model in the old one go on.
"""

from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from service.errors import ModelNotFound, TaskNotServed
from service.repository.card import ModelCard
from service.settings import SettingsError


class HasCard(Protocol):
    @property
    def card(self) -> ModelCard: ...


M = TypeVar("M", bound=HasCard)


class Registry(Generic[M]):
    """Models by name and version; the highest version of a name is meant where none is given.

    ``default_models`` names the default of a task, ``name`` or ``name:version``; else it is the one whose card says so,
    else the first. Raises ``SettingsError`` for a default that is not among the models.
    """

    def __init__(self, models: Iterable[M], default_models: Mapping[str, str]) -> None:
        self._models = {
            model.card.key: model for model in sorted(models, key=lambda model: (model.card.name, model.card.version))
        }
        self._latest = {model.card.name: model for model in self._models.values()}
        self._by_task: dict[str, list[M]] = {}  # the default first
        for task in sorted({model.card.task for model in self._models.values()}):
            default = self._default(task, default_models)
            others = (model for model in self._models.values() if model.card.task == task and model is not default)
            self._by_task[task] = [default, *others]
        for task in set(default_models) - set(self._by_task):
            raise SettingsError(f"CONVSERVE_DEFAULT_MODELS: no loaded model serves {task}")

    def models(self) -> list[M]:
        return list(self._models.values())

    def cards(self) -> list[ModelCard]:
        return [model.card for model in self._models.values()]

    def tasks(self) -> list[str]:
        return list(self._by_task)

    def of(self, task: str) -> list[M]:
        """The models of ``task``, its default first; none where it is not served."""
        return self._by_task.get(task, [])

    def find(self, task: str, name: str | None = None) -> M:
        """Returns the model of ``task`` called ``name`` or ``name:version``, or the task's default.

        Raises ``TaskNotServed`` or ``ModelNotFound``; both say what there is.
        """
        models = self._by_task.get(task)
        if models is None:
            raise TaskNotServed(f"no loaded model serves /{task}; these are served: {', '.join(self.tasks())}")
        if name is None:
            return models[0]
        model = self.named(name)
        if model.card.task != task:
            there = ", ".join(model.card.key for model in models)
            raise ModelNotFound(f"the model {name!r} is for /{model.card.task}, not for /{task}; /{task} has {there}")
        return model

    def named(self, name: str) -> M:
        """Raises ``ModelNotFound``."""
        model = self._models.get(name) or self._latest.get(name)
        if model is None:
            raise ModelNotFound(f"no model is called {name[:80]!r}; there are {', '.join(self._models)}")
        return model

    def _default(self, task: str, default_models: Mapping[str, str]) -> M:
        if name := default_models.get(task):
            model = self._models.get(name) or self._latest.get(name)
            if model is None or model.card.task != task:
                raise SettingsError(f"CONVSERVE_DEFAULT_MODELS: {task}={name} is not a loaded model for {task}")
            return model
        latest = [model for model in self._latest.values() if model.card.task == task]
        return next((model for model in latest if model.card.default), latest[0])
