"""Loading: every sound model of the repository on an engine, with the largest batch that suits it."""

import logging
from dataclasses import dataclass

from service.engines.onnxruntime import CPU, Engine
from service.errors import ModelRefused
from service.repository.card import Complexity, ModelCard
from service.repository.folder import StoredModel, find_models, read_graph
from service.repository.registry import Registry
from service.settings import Settings, SettingsError
from service.tasks import TASKS
from service.telemetry.metrics import MODEL_INFO, MODEL_LOAD_FAILURES

logger = logging.getLogger("convserve.loading")

# On a CPU a batch saves two things. The overhead of a run beside its arithmetic, some 0.1 ms: above this much
# arithmetic, some 0.1 s, nothing is saved any more, memory grows and other requests wait; below, more of the waiting
# requests are left for a second batch. And reading the weights from memory, which takes as long as some ten MACs with
# each: for many weights a batch is larger, until that is below a fiftieth. `make tune` finds the best for a machine.
_MACS_CPU, _MOST_MACS_CPU = 4e9, 16e9
_USES_OF_A_WEIGHT_CPU = 640
_MAX_BATCH_CPU = 64


@dataclass(frozen=True, eq=False)
class LoadedModel:
    card: ModelCard
    engine: Engine
    max_batch: int  # samples


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
    Registry(loaded, settings.default_models)  # a default that is missing stops the start
    return loaded


def check_loadable(settings: Settings) -> None:
    """Raises what ``load_models`` would raise; loads no more than it takes to know."""
    loaded: list[LoadedModel] = []
    for model in _find(settings)[0]:
        try:
            loaded.append(_load(model, settings))
            Registry(loaded, settings.default_models)
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
        max_batch=settings.stated_batch(model.card.name) or TASKS[model.card.task].max_batch_gpu,
        options=settings.gpu_options(),
    )
    return LoadedModel(model.card, engine, _max_batch(model.card, engine, settings))


def _max_batch(card: ModelCard, engine: Engine, settings: Settings) -> int:
    """Returns what the settings say of this model, or of all; else what suits its arithmetic."""
    if stated := settings.stated_batch(card.name):
        return stated
    if engine.provider == CPU:
        return _max_batch_cpu(card.complexity)
    return TASKS[card.task].max_batch_gpu


def _max_batch_cpu(complexity: Complexity) -> int:
    macs = max(_MACS_CPU, min(_USES_OF_A_WEIGHT_CPU * complexity.parameters, _MOST_MACS_CPU))
    return min(_MAX_BATCH_CPU, max(1, round(macs / max(1, complexity.macs * complexity.views))))
