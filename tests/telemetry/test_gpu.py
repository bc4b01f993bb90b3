from collections.abc import Iterator
from types import SimpleNamespace

import pynvml
import pytest

from service.telemetry import gpu
from service.telemetry.gpu import GpuCollector


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """NVML of two GPUs, of which the second does not tell its power."""

    def power(handle: int) -> int:
        if handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 71_500  # milliwatts

    for name, function in {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=25 * (handle + 1)),
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=1000 + handle),
        "nvmlDeviceGetPowerUsage": power,
    }.items():
        monkeypatch.setattr(pynvml, name, function)
    gpu._gpu_count.cache_clear()
    yield
    gpu._gpu_count.cache_clear()


def collected() -> dict[str, dict[str, float]]:
    families = GpuCollector().collect()
    return {family.name: {sample.labels["gpu"]: sample.value for sample in family.samples} for family in families}


def test_each_gpu_has_a_series_of_what_it_tells() -> None:
    assert collected() == {
        "convserve_gpu_utilization_ratio": {"0": 0.25, "1": 0.5},
        "convserve_gpu_memory_used_bytes": {"0": 1000.0, "1": 1001.0},
        "convserve_gpu_power_watts": {"0": 71.5},
    }


def test_without_a_gpu_there_are_no_series(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    gpu._gpu_count.cache_clear()
    assert collected() == {}
