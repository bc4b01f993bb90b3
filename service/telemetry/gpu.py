"""Gauges of each NVIDIA GPU, read from its management library when Prometheus scrapes."""

import functools
import logging
from collections.abc import Iterator

import pynvml
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

logger = logging.getLogger("convserve.gpu")


class GpuCollector(Collector):
    """``convserve_gpu_{utilization_ratio,memory_used_bytes,power_watts}{gpu}``."""

    def collect(self) -> Iterator[Metric]:
        utilization = GaugeMetricFamily("convserve_gpu_utilization_ratio", "Time with work on the GPU", labels=["gpu"])
        memory = GaugeMetricFamily("convserve_gpu_memory_used_bytes", "Memory in use, by anybody", labels=["gpu"])
        power = GaugeMetricFamily("convserve_gpu_power_watts", "Power drawn", labels=["gpu"])
        for index in range(_gpu_count()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                utilization.add_metric([str(index)], pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
                memory.add_metric([str(index)], pynvml.nvmlDeviceGetMemoryInfo(handle).used)
                power.add_metric([str(index)], pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
            except pynvml.NVMLError as error:  # some cards do not tell all of it
                logger.debug("GPU %d: %s", index, error)
        yield from (family for family in (utilization, memory, power) if family.samples)


@functools.cache
def _gpu_count() -> int:
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
