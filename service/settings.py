"""Settings of the service: environment variables, read once, refused by name if they make no sense."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

import pynvml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service import tasks
from service.engines.providers import Device, GpuOptions
from service.media import Limits
from service.repository.folder import BUNDLED

PREFIX = "CONVSERVE_"
# What Kubernetes sets in each pod of a namespace that has a Service called convserve, or convserve-….
_SERVICE_LINK = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=|PORT=\w+://).*"
)
_LIMITS = Limits()
_CORES_PER_GPU_WORKER = 2
_GPU_BYTES_PER_WORKER = 4 * 1024**3  # CUDA itself half of one, the bundled models with their largest batches the rest

Count = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]


class SettingsError(Exception):
    """A setting that makes no sense; the message names the variable, its value and what is wrong with it."""


class Settings(BaseSettings):
    """Read from ``CONVSERVE_<NAME>``. ``auto`` is worked out from the machine by the methods below."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    tasks: str = ""
    repository: Path = BUNDLED
    default_models: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict)
    device: Device = "auto"
    workers: Count | Literal["auto"] = "auto"
    max_batch: Annotated[Count | Literal["auto"] | dict[str, Count], NoDecode] = "auto"
    queue_samples: Count | Literal["auto"] = "auto"
    timeout_ms: Milliseconds = 30_000
    body_timeout_ms: Milliseconds = 30_000
    max_body_bytes: Count = 64 * 1024 * 1024
    max_files: Count = 64
    max_pixels: Count = _LIMITS.max_pixels
    max_frame_pixels: Count = _LIMITS.max_frame_pixels
    max_frames: Count = _LIMITS.max_frames
    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = _LIMITS.max_seconds
    max_channels: Count = _LIMITS.max_channels
    keep_alive_seconds: Annotated[int, Field(ge=1, le=86_400)] = 120  # clients keep idle connections for less
    drain_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.0
    access_log: bool = True
    tensorrt_cache: Path = GpuOptions().tensorrt_cache
    tensorrt_fp16: bool = False

    @field_validator("max_batch", mode="before")
    @classmethod
    def _batches(cls, value: object) -> object:
        """``auto``, a number, or ``name=number,…`` -> a dictionary."""
        if not isinstance(value, str) or "=" not in value:
            return value
        pairs = (item.partition("=") for item in value.split(",") if item.strip())
        return {name.strip(): number.strip() for name, _, number in pairs}

    @field_validator("default_models", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        """``classify=name[:version],audio=name`` -> a dictionary."""
        if not isinstance(value, str):
            return value
        pairs: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in value.split(","))):
            task, equals, model = (part.strip() for part in item.partition("="))
            if not equals or not model or task not in tasks.TASKS:
                raise ValueError(f"{item!r} is not TASK=name[:version], TASK being one of {', '.join(tasks.TASKS)}")
            pairs[task] = model
        return pairs

    @classmethod
    def read(cls) -> Self:
        """Reads the environment, and loads the tasks that it names.

        Raises ``SettingsError``, also for a ``CONVSERVE_`` variable that is no setting.
        """
        for variable, value in os.environ.items():
            name = variable.removeprefix(PREFIX).lower()
            if not variable.startswith(PREFIX) or _SERVICE_LINK.fullmatch(f"{variable}={value}"):
                continue
            if name not in cls.model_fields:
                close = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f"; is {PREFIX}{close[0].upper()} meant?" if close else ""
                raise SettingsError(f"{variable} is not a setting{hint}")
        try:
            tasks.load(os.environ.get(tasks.VARIABLE, ""))
        except tasks.TaskError as error:
            raise SettingsError(str(error)) from error
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            variable = f"{PREFIX}{str(first['loc'][0]).upper()}"
            raise SettingsError(f"{variable} has the value {os.environ.get(variable)!r}: {first['msg']}") from error

    def limits(self) -> Limits:
        return Limits(
            max_pixels=self.max_pixels,
            max_frame_pixels=self.max_frame_pixels,
            max_frames=self.max_frames,
            max_seconds=self.max_seconds,
            max_channels=self.max_channels,
        )

    def stated_batch(self, model: str) -> int | None:
        """Returns the value of ``MAX_BATCH`` for the model, None for ``auto``."""
        if isinstance(self.max_batch, dict):
            return self.max_batch.get(model)
        return None if self.max_batch == "auto" else self.max_batch

    def stated_queue(self) -> int | None:
        """Returns the value of ``QUEUE_SAMPLES``, None for ``auto``."""
        return None if self.queue_samples == "auto" else self.queue_samples

    def worker_count(self) -> int:
        """Returns the number of workers; ``auto`` is one per core, each with one ONNX Runtime thread, on a GPU fewer.

        They beat one worker with many threads.
        """
        if self.workers != "auto":
            return self.workers
        memory_bytes = gpu_memory_bytes() if self.device != "cpu" else 0
        return _workers_on_gpu(usable_cores(), memory_bytes) if memory_bytes else usable_cores()

    def gpu_options(self) -> GpuOptions:
        return GpuOptions(tensorrt_cache=self.tensorrt_cache, tensorrt_float16=self.tensorrt_fp16)

    def threads_per_worker(self) -> int:
        return max(1, usable_cores() // self.worker_count())


def _workers_on_gpu(cores: int, memory_bytes: int) -> int:
    """Returns enough workers to decode beside Python's lock, few enough for large batches that fit the GPU.

    About a quarter of a request is Python's, so a process keeps some two cores of decoders busy; and the fewer there
    are, the more requests meet in each one's queue.
    """
    return max(1, min(cores // _CORES_PER_GPU_WORKER, memory_bytes // _GPU_BYTES_PER_WORKER))


def gpu_memory_bytes() -> int:
    """Returns the memory of the GPU that would be used; 0 where there is none.

    It asks NVML: a process that has initialised CUDA cannot fork others that use it.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return 0
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total)
    except pynvml.NVMLError:
        return 0


def usable_cores() -> int:
    """Returns the cores that this process may use, by the scheduler and the container's quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores
