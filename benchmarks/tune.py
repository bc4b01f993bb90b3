"""Measures this machine and each model for a minute, and writes down the settings that answered the most.

python -m benchmarks.tune [--seconds 60] [--output tuned.env]

First how the cores are shared out: many workers with one ONNX Runtime thread each, or few with many. Then, with the
best of these, how many samples of each model should run together. The file holds environment variables, as docker's
``--env-file`` and systemd's ``EnvironmentFile`` take them, and what was seen as comments; ``make serve`` reads it.
"""

import argparse
import logging
import math
import multiprocessing
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort

from service.engines.onnxruntime import CPU, DeviceUnusable, Engine
from service.launch import TUNED
from service.repository.loading import LoadedModel, load_models
from service.settings import PREFIX, Settings, SettingsError, usable_cores

_ENOUGH = 0.97  # of the best rate: a smaller batch answers sooner and takes less memory
_WORTH_IT = 1.05  # few workers also decode and answer less at a time, so they have to be this much faster
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_LARGEST_ON_CPU = 32
_LONGEST_BATCH_SECONDS = 0.5  # a longer one keeps everybody else waiting


class Plan(NamedTuple):
    """How the cores are shared out: so many workers, each with so many ONNX Runtime threads."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads}"


class Tuning(NamedTuple):
    provider: str
    plans: Mapping[Plan, Mapping[str, float]]  # each model's samples per second, all workers together
    curves: Mapping[str, Mapping[int, float]]  # each model's samples per second by batch size, with the best plan


def plans(cores: int) -> list[Plan]:
    """From a worker per core to one for all, halving."""
    workers = [max(1, cores >> power) for power in range(cores.bit_length())]
    return [Plan(count, max(1, cores // count)) for count in dict.fromkeys(workers)]


def best_plan(measured: Mapping[Plan, Mapping[str, float]]) -> Plan:
    """The one with the highest geometric mean over the models; fewer workers only where they are worth it."""

    def mean(plan: Plan) -> float:
        return math.exp(sum(math.log(rate) for rate in measured[plan].values()) / len(measured[plan]))

    chosen, *others = sorted(measured, reverse=True)  # the most workers first
    for plan in others:
        if mean(plan) > _WORTH_IT * mean(chosen):
            chosen = plan
    return chosen


def best_batch(curve: Mapping[int, float]) -> int:
    """The smallest that is about as fast as the fastest."""
    return min(size for size, rate in curve.items() if rate >= _ENOUGH * max(curve.values()))


def tune(settings: Settings, seconds: float) -> Tuning:
    """Takes about ``seconds``, and what loading takes. Raises as ``load_models`` does, whose models are measured."""
    models = load_models(settings)
    provider = models[0].engine.provider
    batches = {model.card.name: model.max_batch for model in models}
    sizes = [size for size in _BATCHES if provider != CPU or size <= _LARGEST_ON_CPU]
    candidates = plans(usable_cores())
    each = seconds / (len(models) * (len(candidates) + len(sizes)))
    measured: dict[Plan, dict[str, float]] = {}
    for plan in candidates:
        with _Workers(plan, settings) as workers:
            measured[plan] = {name: workers.rate(name, batch, each) for name, batch in batches.items()}
    curves: dict[str, dict[int, float]] = {}
    chosen = best_plan(measured)
    with _Workers(chosen, settings) as workers:
        for name in batches:
            curve = curves[name] = {}
            for size in sizes:
                curve[size] = workers.rate(name, size, each)
                if 2 * size * chosen.workers / curve[size] > _LONGEST_BATCH_SECONDS:
                    break
    return Tuning(provider, measured, curves)


class _Workers:
    """Processes that run batches at the same time, as the service's workers would."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._count = plan.workers
        arguments = (context.Barrier(plan.workers), plan, settings)
        self._pool = ProcessPoolExecutor(plan.workers, context, initializer=_start, initargs=arguments)

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def rate(self, name: str, batch: int, seconds: float) -> float:
        """Samples per second of all of them together."""
        return sum(self._pool.map(_rate, *zip(*[(name, batch, seconds)] * self._count, strict=True)))


_barrier: Barrier
_engines: dict[str, Engine]


def _start(barrier: Barrier, plan: Plan, settings: Settings) -> None:
    global _barrier, _engines
    logging.disable(logging.ERROR)  # the first process has said it all
    models: list[LoadedModel] = load_models(settings.model_copy(update={"workers": plan.workers}))
    _barrier, _engines = barrier, {model.card.name: model.engine for model in models}


def _rate(name: str, batch: int, seconds: float) -> float:
    engine = _engines[name]
    samples = [engine.blank()] * batch
    _barrier.wait()  # each process takes one of the tasks, and all run at once
    engine.run(samples)
    runs, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or runs == 0:
        engine.run(samples)
        runs += 1
    return runs * batch / passed


def written(tuning: Tuning) -> str:
    """The environment file: what was seen as comments, and the settings."""
    plan = best_plan(tuning.plans)
    batches = {name: best_batch(curve) for name, curve in tuning.curves.items()}
    machine = f"{usable_cores()} cores, {platform.machine()}, {tuning.provider} of ONNX Runtime {ort.__version__}"
    lines = [
        f"# Measured on {date.today()} by `make tune`: {machine}.",
        "#",
        "# Samples per second of all workers together, by workers x ONNX Runtime threads each:",
    ]
    for name in batches:
        row = ", ".join(f"{each}: {rates[name]:.0f}" for each, rates in tuning.plans.items())
        lines.append(f"#   {name}: {row}")
    lines += ["#", f"# The same with {plan}, by the samples in a batch:"]
    for name, curve in tuning.curves.items():
        lines.append(f"#   {name}: " + ", ".join(f"{size}: {rate:.0f}" for size, rate in curve.items()))
    pairs = ",".join(f"{name}={size}" for name, size in batches.items())
    return "\n".join([*lines, "", f"{PREFIX}WORKERS={plan.workers}", f"{PREFIX}MAX_BATCH={pairs}", ""])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring (default: 60)")
    parser.add_argument("--output", type=Path, default=Path(TUNED), help=f"default: {TUNED}, which make serve reads")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.seconds <= 3600:
        parser.error("--seconds must be above 0, and at most 3600")
    try:
        text = written(tune(Settings.read(), arguments.seconds))
        arguments.output.write_text(text)
    except (SettingsError, DeviceUnusable, OSError) as error:
        sys.exit(f"cannot tune: {error}")
    except BrokenProcessPool:
        sys.exit("cannot tune: a process that measured ended; is there enough memory for that many workers?")
    print(text + f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    main()
