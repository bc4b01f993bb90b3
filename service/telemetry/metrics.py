"""The Prometheus series, all in one table, summed over the worker processes.

Series are written to memory-mapped files in a folder that all workers of one server share and no other server does.
prometheus_client reads the environment when it is imported, so ``share_folder`` runs first.
"""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_OURS = "_CONVSERVE_METRICS_FOLDER"  # handed down from the supervising process to its workers


def share_folder() -> Path:
    """Makes this server's folder in the process that supervises the workers; returns the same folder in each worker."""
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

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.telemetry.gpu import GpuCollector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
STAGES = ("decode", "preprocess", "queue", "inference", "padding", "postprocess")  # padding: inference on mere filler

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

REQUESTS = Counter("convserve_requests", "Answers sent", ["endpoint", "status"])
DURATION = Histogram(
    "convserve_request_duration_seconds",
    "From the first byte of a request to its answer",
    ["endpoint"],
    buckets=_SECONDS,
)
STAGE_DURATION = Histogram(
    "convserve_stage_duration_seconds", "One stage of a request", ["endpoint", "stage"], buckets=_SECONDS
)
REJECTED = Counter("convserve_rejected", "Requests refused, by problem type", ["endpoint", "reason"])
BATCH_SIZE = Histogram("convserve_batch_size", "Samples that ran together", ["model"], buckets=_SIZES)
QUEUE_DEPTH = Gauge("convserve_queue_depth", "Samples waiting", ["model"], multiprocess_mode="livesum")
SAMPLES = Counter("convserve_samples", "Samples answered", ["model"])
ENGINE_SECONDS = Counter("convserve_engine_seconds", "Time the engine spent on batches", ["model"])
CALIBRATED = Gauge(
    "convserve_calibrated_samples_per_second",
    "Rate of a worker's engine with the largest batch while it warmed up",
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


def exposition() -> bytes:
    """All workers' series as Prometheus text; gauges of workers that are gone are dropped first."""
    folder = os.environ[_FOLDER_VARIABLE]
    _drop_dead_gauges(Path(folder))
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    registry.register(GpuCollector())
    return generate_latest(registry)


def _drop_dead_gauges(folder: Path) -> None:
    """Removes the gauges of workers that were killed. Their counters and histograms stay."""
    for pid in {int(path.stem.rsplit("_", 1)[1]) for path in folder.glob("gauge_live*_*.db")}:
        if not _alive(pid):
            with suppress(FileNotFoundError):  # another worker, scraped at the same moment, was faster
                mark_process_dead(pid, path=str(folder))  # type: ignore[no-untyped-call]


def _alive(pid: int) -> bool:
    """Tells a live process from a zombie, which takes signals until its supervisor reaps it, half a minute and more."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, PermissionError):  # gone; another user's by now
        return False
    except OSError:  # there is no /proc here
        return True
