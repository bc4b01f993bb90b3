"""The benchmark of GPUs where there is none: what it plans, its arithmetic, its files, and that it runs on the CPU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import BATCHES, plan, spread
from benchmarks.gpu_contenders import CONTENDERS, Contender, _channels_last, _Float16
from benchmarks.gpu_networks import SPECS, Network
from benchmarks.gpu_report import Results, Row, markdown, read, slug, write
from benchmarks.roofline import Limits, ceiling, datasheet, work
from service.repository.card import Complexity, Layer

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def layer(kind: str, output: tuple[int, ...]) -> Layer:
    return Layer(name=kind, kind=kind, output=output, parameters=0, macs=0)


def test_a_roof_is_the_slower_of_arithmetic_and_memory() -> None:
    layers = (layer("Conv2d", (8, 10, 10)), layer("BatchNorm2d", (8, 10, 10)), layer("Linear", (4,)))
    costs = work(Complexity(parameters=1000, macs=1_000_000, receptive_field=(3,), layers=layers), input_bytes=300)
    assert costs.map_elements == 804  # a batch norm is part of the convolution before it
    # Batch 10 in float16: 2e7 operations; 2,000 bytes of weights and 10 * (300 + 2 * 804 * 2) = 35,160 of maps.
    for batch, limits, element_bytes, seconds, bound in (
        (10, Limits(1e9, 1e9), 2, 0.02, "arithmetic"),
        (10, Limits(1e15, 1e6), 2, 0.03716, "memory"),
        (1, Limits(1e15, 1e6), 4, 0.010732, "memory"),
    ):
        found = ceiling(costs, batch, limits, element_bytes)
        assert found.samples_per_second == pytest.approx(batch / seconds) and found.bound == bound


def test_datasheets_are_found_by_the_devices_name() -> None:
    assert datasheet("NVIDIA H200", torch.float16) == Limits(989e12, 4.8e12)
    assert datasheet("NVIDIA H100 PCIe", torch.float16) == Limits(756e12, 2e12)
    assert datasheet("NVIDIA A100-SXM4-80GB", torch.float32) == Limits(156e12, 2.039e12)
    assert datasheet("Tesla T4", torch.float16) == Limits(65e12, 0.32e12)
    assert datasheet("some other", torch.float16) is None


def test_the_plan_holds_everything_once_and_begins_with_what_matters() -> None:
    jobs = plan(tuple(SPECS), tuple(CONTENDERS), BATCHES)
    each = [(network, contender, batch) for network, contender, batches in jobs for batch in batches]
    assert len(each) == len(set(each)) == len(SPECS) * len(CONTENDERS) * len(BATCHES)
    assert jobs[0] == ("resnet50", "cuda-fp16", BATCHES)
    places = {(network, contender): place for place, (network, contender, _) in reversed(list(enumerate(jobs)))}
    assert places["resnet50", "torch-compile-fp16"] < places["audio_cnn", "cuda-fp16"]
    assert places["audio_cnn", "cuda-fp16"] < places["fcn_context", "tensorrt-fp16"] < places["resnet50", "cpu"]


def test_a_spread_is_of_its_runs() -> None:
    runs: list[int] = []
    median, low, high = spread(lambda: runs.append(1), 0.0)
    assert len(runs) == 3 + 5 and 0 < low <= median <= high


@pytest.mark.parametrize("name", [name for name in SPECS if name != "fcn_resnet50"])
def test_the_float16_network_of_pytorch_answers_like_the_float32_one(name: str, tmp_path: Path) -> None:
    network = Network(name, tmp_path, quick=True)
    prepared = network.served.prepare(torch.from_numpy(np.stack(network.samples(2))))
    with torch.inference_mode():
        logits = network.served.network(prepared)
        half = _Float16(network.served.network)
        _channels_last(half)
        found = half(prepared)
    assert found.dtype == torch.float32
    dtypes = {parameter.dtype for parameter in half.parameters()}
    assert dtypes == ({torch.float16, torch.float32} if name == "audio_cnn" else {torch.float16})
    # Random networks of 50 layers make much of each rounding.
    assert float(torch.corrcoef(torch.stack((found.flatten(), logits.flatten())))[0, 1]) > 0.99


@pytest.fixture
def cpu_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")


@pytest.mark.usefixtures("cpu_alone")
def test_where_there_is_no_gpu_it_is_said_what_needs_none(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no NVIDIA GPU .* --contenders cpu torch-cpu --quick"):
        gpu.main(["--output", str(tmp_path)])


@pytest.mark.usefixtures("cpu_alone")
def test_without_a_gpu_it_measures_the_cpu_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--quick", "--networks", "audio_cnn", "--output", str(tmp_path / "results")]
    gpu.main([*asked, "--providers", "cpu", "--batches", "1"])
    gpu.main([*asked, "--providers", "cpu", "torch-cpu", "--batches", "1", "2", "--resume"])
    assert "audio_cnn with PyTorch, CPU" in capsys.readouterr().out
    results = read(tmp_path / "results" / "gpu-no-gpu")
    assert results is not None
    found = sorted((row.contender, row.batch) for row in results.rows)
    assert found == [("cpu", 1), ("cpu", 2), ("torch-cpu", 1), ("torch-cpu", 2)]
    assert all(row.milliseconds > 0 and row.limit_samples_per_second > 0 and not row.problem for row in results.rows)
    assert sorted(path.suffix for path in (tmp_path / "results").iterdir()) == [".json", ".md", ".png"]


@pytest.mark.usefixtures("cpu_alone")
def test_time_that_is_up_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--quick", "--providers", "torch-cpu", "--budget", "1", "--output", str(tmp_path)])
    assert "go on with --resume" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu-no-gpu.json").read_text())["unreached"]


def test_a_contender_that_fails_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(network: Network, largest: int) -> Any:
        raise RuntimeError("CUDA out of memory\n  Tried to allocate much")

    monkeypatch.setitem(CONTENDERS, "cpu", Contender("ONNX Runtime, CPU", torch.float32, False, fails))
    benchmark = gpu.Benchmark(Results("no GPU", "today", {}), tmp_path / "gpu", budget_seconds=60, quick=True)
    benchmark.measure(("audio_cnn", "cpu", (1, 2)))
    assert [row.problem for row in benchmark.results.rows] == ["CUDA out of memory Tried to allocate much"]
    assert "| ONNX Runtime, CPU | | CUDA out of memory" in markdown(benchmark.results)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    results = Results("NVIDIA H200", "2026-01-01", {"torch": "2"})
    results.set_limits("gpu", torch.float16, Limits(8e14, 4e12))
    results.rows.append(Row("resnet50", "cuda-fp16", 8, 2.0, 1.9, 2.1, 2.5, 8000.0, "memory"))
    results.service = {"64 connections, requests/s": 5000}
    write(results, tmp_path / "gpu")
    again = read(tmp_path / "gpu")
    assert again is not None and again.rows == results.rows and again.service == results.service
    assert again.limits(torch.float16, on_gpu=True) == Limits(8e14, 4e12)
    assert read(tmp_path / "none") is None
    text = (tmp_path / "gpu.md").read_text()
    assert "| ONNX Runtime, CUDA, fp16 | 8 | 2.00 (1.90, 2.10) | 4,000 | 50% | memory | 2.50 | 3,200 |" in text
    assert "gpu float16: 800 TFLOP/s, 4,000 GB/s" in text and "| 64 connections, requests/s | 5000 |" in text
    assert slug("NVIDIA H200") == "nvidia-h200"
