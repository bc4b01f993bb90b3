"""The Prometheus series, all in one table, true across several worker processes.

The series are written to memory-mapped files in a folder that all workers of one server share and no other server does.
``share_folder`` has to run before anything else imports ``prometheus_client``, which reads the environment on import.
"""

import atexit
import functools
import os
import shutil
import struct
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_OURS = "_CONVSERVE_METRICS_FOLDER"  # handed down from the supervising process to its workers


def share_folder() -> Path:
    """Makes this server's folder in the process that supervises the workers; finds it again in the workers."""
    if _OURS not in os.environ:
        folder = tempfile.mkdtemp(prefix="convserve-metrics-")
        os.environ[_OURS] = folder
        atexit.register(_remove, folder, os.getpid())
    os.environ[_FOLDER_VARIABLE] = os.environ[_OURS]
    return Path(os.environ[_OURS])


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)


share_folder()

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.errors import REFUSALS
from service.telemetry.gpu import GpuCollector
from service.telemetry.stages import STAGES

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class _Process:
    """This process's id, kept: prometheus_client would ask the kernel for it at each addition."""

    forked = False  # from one that had series already

    def __init__(self) -> None:
        self._id = os.getpid()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        self._id, self.forked = os.getpid(), True

    def __call__(self) -> int:
        return self._id


_PROCESS = _Process()
_NUMBER = struct.Struct("d")


class _Value(values.MultiProcessValue(_PROCESS)):  # type: ignore[misc]
    """prometheus_client's, which knows where in its file it lies. To look that up, under a lock, takes three times as
    long, and each request adds to some fifteen values. Only the event loop adds: there is nothing to lock."""

    def __init__(self, *about: Any, **more: Any) -> None:
        super().__init__(*about, **more)
        self._place = self._file._positions[self._key]

    def inc(self, amount: float) -> None:
        if _PROCESS.forked:  # it lies elsewhere, in a file of the new process
            super().inc(amount)
        else:
            self._value += amount
            _NUMBER.pack_into(self._file._m, self._place, self._value)

    def set(self, value: float, timestamp: float | None = None) -> None:
        if _PROCESS.forked or timestamp is not None:
            super().set(value, timestamp)
        else:
            self._value = value
            _NUMBER.pack_into(self._file._m, self._place, value)


# Whatever imported prometheus_client before us has made it choose; our series must be the shared ones regardless.
values.ValueClass = _Value


class _Histogram(Histogram):
    """prometheus_client's, which goes through the buckets one by one, in twice the time."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

REQUESTS = Counter("convserve_requests", "Answers sent", ["endpoint", "status"])
DURATION = _Histogram(
    "convserve_request_duration_seconds",
    "From the first byte of a request to its answer",
    ["endpoint"],
    buckets=_SECONDS,
)
STAGE_DURATION = _Histogram(
    "convserve_stage_duration_seconds", "One stage of a request", ["endpoint", "stage"], buckets=_SECONDS
)
REJECTED = Counter("convserve_rejected", "Requests refused, by problem type", ["endpoint", "reason"])
BATCH_SIZE = _Histogram("convserve_batch_size", "Samples that ran together", ["model"], buckets=_SIZES)
QUEUE_DEPTH = Gauge("convserve_queue_depth", "Samples waiting", ["model"], multiprocess_mode="livesum")
SAMPLES = Counter("convserve_samples", "Samples answered", ["model"])
ENGINE_SECONDS = Counter("convserve_engine_seconds", "Time the engine spent on batches", ["model"])
CALIBRATED = Gauge(
    "convserve_calibrated_samples_per_second",
    "What a worker's engine did of the largest batch while it warmed up",
    ["model"],
    multiprocess_mode="livemostrecent",
)
INFERENCE_FAILURES = Counter("convserve_inference_failures", "Engine runs that failed", ["model"])
MODEL_INFO = Gauge(
    "convserve_model_info",
    "1 for every loaded model",
    ["model", "version", "architecture", "provider"],
    multiprocess_mode="livemax",
)
MODEL_LOAD_FAILURES = Gauge(
    "convserve_model_load_failures",
    "Models in the repository that are not served",
    ["model", "reason"],
    multiprocess_mode="livemax",
)
WORKERS = Gauge("convserve_workers", "Live worker processes", multiprocess_mode="livesum")
WORKER_STARTS = Counter("convserve_worker_starts", "Worker processes started so far")


class ModelSeries:
    """One model's series, labels bound once."""

    def __init__(self, key: str) -> None:
        self.batch_size = BATCH_SIZE.labels(key)
        self.queue_depth = QUEUE_DEPTH.labels(key)
        self.samples = SAMPLES.labels(key)
        self.engine_seconds = ENGINE_SECONDS.labels(key)
        self.failures = INFERENCE_FAILURES.labels(key)


def observe_stages(endpoint: str, stages: Mapping[str, float]) -> None:
    """Seconds by stage, the same that the answer's ``Server-Timing`` tells."""
    histograms = _stages(endpoint)
    for stage, seconds in stages.items():
        histograms[stage].observe(seconds)


@functools.cache  # finding a series by its labels takes longer than adding to it
def _stages(endpoint: str) -> dict[str, Histogram]:
    return {stage: STAGE_DURATION.labels(endpoint, stage) for stage in STAGES}


@functools.cache
def _endpoint(endpoint: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(endpoint, str(status)), DURATION.labels(endpoint)


def observe_request(endpoint: str, status: int, seconds: float) -> None:
    requests, duration = _endpoint(endpoint, status)
    requests.inc()
    duration.observe(seconds)


@functools.cache
def _refusals(endpoint: str, reason: str) -> Counter:
    return REJECTED.labels(endpoint, reason)


def count_refusal(endpoint: str, reason: str) -> None:
    _refusals(endpoint, reason).inc()


def expect(endpoints: Iterable[str]) -> None:
    """Starts what alerts count at zero: Prometheus sees no increase in a series whose first value is 1 already."""
    for endpoint in endpoints:
        _endpoint(endpoint, 200)
        for refusal in REFUSALS.values():
            if refusal.status >= 500:
                _endpoint(endpoint, refusal.status)
                _refusals(endpoint, refusal.slug)


def exposition() -> bytes:
    """All workers' series as Prometheus text; gauges of workers that are gone are dropped first."""
    folder = os.environ[_FOLDER_VARIABLE]
    _forget_the_dead(Path(folder))
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    registry.register(GpuCollector())
    return generate_latest(registry)


def _forget_the_dead(folder: Path) -> None:
    """A killed worker cannot take its gauges with it. Counters and histograms stay: what it did, it did."""
    for pid in {int(path.stem.rsplit("_", 1)[1]) for path in folder.glob("gauge_live*_*.db")}:
        if not _alive(pid):
            with suppress(FileNotFoundError):  # another worker, scraped at the same moment, was faster
                mark_process_dead(pid, path=str(folder))  # type: ignore[no-untyped-call]


def _alive(pid: int) -> bool:
    """A killed worker stays a zombie, which takes signals, until its supervisor looks: half a minute and more."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, PermissionError):  # gone; somebody else's by now
        return False
    except OSError:  # there is no /proc here
        return True
