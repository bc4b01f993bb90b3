"""The loaded models: which answers a route, by name and version or by default."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

from service.engines.onnxruntime import CPU, MAX_BATCH_GPU, Engine
from service.errors import ModelNotFound, ModelRefused, TaskNotServed
from service.repository.card import Complexity, ModelCard
from service.repository.folder import StoredModel, find_models, read_graph
from service.settings import Settings, SettingsError
from service.telemetry.metrics import MODEL_INFO, MODEL_LOAD_FAILURES

logger = logging.getLogger("convserve.catalogue")

# On a CPU a batch spares two things. What every run costs beside its arithmetic, some 0.1 ms: with more than this much
# of it, some 0.1 s, nothing is spared any more, more memory is taken and others are kept waiting; with less, more of
# those who wait are left over for a second batch. And reading the weights from memory, which takes as long as some ten
# MACs with each: where they are many, a batch is larger, until that is below a fiftieth. `make tune` finds the best for
# a machine.
_MACS_CPU, _MOST_MACS_CPU = 4e9, 16e9
_USES_OF_A_WEIGHT_CPU = 640
_MAX_BATCH_CPU = 64


class LoadedModel(NamedTuple):
    card: ModelCard
    engine: Engine
    max_batch: int


def load_models(settings: Settings) -> list[LoadedModel]:
    """Loads every sound model of the repository; the others are logged and counted.

    Raises ``SettingsError`` if no model loads or a default that was named is missing, ``DeviceUnusable`` if the device
    that was named cannot be used.
    """
    stored, refused = _find(settings)
    loaded: list[LoadedModel] = []
    for model in stored:
        try:
            loaded.append(_load(model, settings))
        except ModelRefused as error:
            refused.append(error)
    for refusal in refused:
        logger.error("a model is not served: %s", refusal)
        MODEL_LOAD_FAILURES.labels(refusal.model, refusal.reason).set(1)
    if not loaded:
        raise SettingsError(f"CONVSERVE_REPOSITORY: no model in {settings.repository} can be served")
    for model_ in loaded:
        card = model_.card
        MODEL_INFO.labels(card.name, str(card.version), card.architecture, model_.engine.provider).set(1)
    if isinstance(settings.max_batch, dict):
        for name in set(settings.max_batch) - {model_.card.name for model_ in loaded}:
            logger.warning("CONVSERVE_MAX_BATCH names %r, which is not loaded", name)
    Catalogue((model_.card for model_ in loaded), settings.default_models)  # a default that is missing stops the start
    return loaded


def check_loadable(settings: Settings) -> None:
    """Raises what ``load_models`` would raise, and loads no more than it takes to know."""
    loaded: list[ModelCard] = []
    for model in _find(settings)[0]:
        try:
            loaded.append(_load(model, settings).card)
            Catalogue(loaded, settings.default_models)
        except (ModelRefused, SettingsError):  # the next one may do
            continue
        return
    load_models(settings)


def _find(settings: Settings) -> tuple[list[StoredModel], list[ModelRefused]]:
    try:
        return find_models(settings.repository)
    except OSError as error:
        raise SettingsError(f"CONVSERVE_REPOSITORY: {error}") from error


def _load(model: StoredModel, settings: Settings) -> LoadedModel:
    engine = Engine(
        model.card,
        read_graph(model),
        device=settings.device,
        threads=settings.threads_per_worker(),
        max_batch=settings.stated_batch(model.card.name),
        options=settings.gpu_options(),
    )
    return LoadedModel(model.card, engine, _max_batch(model.card, engine, settings))


def _max_batch(card: ModelCard, engine: Engine, settings: Settings) -> int:
    """What the settings say of this model, or of all; else what suits its arithmetic."""
    if stated := settings.stated_batch(card.name):
        return stated
    if engine.provider == CPU:
        return _max_batch_cpu(card.complexity)
    return MAX_BATCH_GPU


def _max_batch_cpu(complexity: Complexity) -> int:
    macs = max(_MACS_CPU, min(_USES_OF_A_WEIGHT_CPU * complexity.parameters, _MOST_MACS_CPU))
    return min(_MAX_BATCH_CPU, max(1, round(macs / max(1, complexity.macs * complexity.views))))


class Catalogue:
    """Cards by name and version. The highest version of a name is meant where none is given."""

    def __init__(self, cards: Iterable[ModelCard], default_models: dict[str, str]) -> None:
        self._cards = {card.key: card for card in sorted(cards, key=lambda card: (card.name, card.version))}
        self._latest = {card.name: card for card in self._cards.values()}
        self._defaults = {
            task: card for task in _tasks(self._cards.values()) if (card := self._default(task, default_models))
        }
        for task in set(default_models) - set(self._defaults):
            raise SettingsError(f"CONVSERVE_DEFAULT_MODELS: no loaded model serves {task}")

    def cards(self) -> list[ModelCard]:
        return list(self._cards.values())

    def tasks(self) -> list[str]:
        return sorted(self._defaults)

    def of(self, task: str) -> list[ModelCard]:
        """The models of ``task``, its default first."""
        default = self._defaults.get(task)
        return sorted((card for card in self.cards() if card.task == task), key=lambda card: card != default)

    def find(self, task: str, name: str | None = None) -> ModelCard:
        """The model of ``task`` called ``name`` or ``name:version``, or the task's default.

        Raises ``TaskNotServed`` or ``ModelNotFound``; both say what there is.
        """
        if task not in self._defaults:
            raise TaskNotServed(f"no loaded model serves /{task}; these are served: {', '.join(self.tasks())}")
        if name is None:
            return self._defaults[task]
        card = self.named(name)
        if card.task != task:
            raise ModelNotFound(f"the model {name!r} is for /{card.task}, not for /{task}; {self._choices(task)}")
        return card

    def named(self, name: str) -> ModelCard:
        card = self._cards.get(name) or self._latest.get(name)
        if card is None:
            raise ModelNotFound(f"no model is called {name[:80]!r}; there are {', '.join(self._cards)}")
        return card

    def _choices(self, task: str) -> str:
        return f"/{task} has {', '.join(card.key for card in self.of(task))}"

    def _default(self, task: str, default_models: dict[str, str]) -> ModelCard | None:
        """The one named in the settings; else the card that says so; else the only or first one."""
        if name := default_models.get(task):
            card = self._cards.get(name) or self._latest.get(name)
            if card is None or card.task != task:
                raise SettingsError(f"CONVSERVE_DEFAULT_MODELS: {task}={name} is not a loaded model for {task}")
            return card
        latest = [card for card in self._latest.values() if card.task == task]
        return next((card for card in latest if card.default), latest[0] if latest else None)


def _tasks(cards: Iterable[ModelCard]) -> set[str]:
    return {card.task for card in cards}
