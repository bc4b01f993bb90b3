"""What ``benchmarks.gpu`` measured: as JSON, as a Markdown table, and as a chart."""

import dataclasses
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.gpu_contenders import CONTENDERS
from benchmarks.roofline import Limits

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Row:
    """One contender with one network and batch size; ``problem`` says why there is nothing, ``batch`` being 0 then.

    Milliseconds are of a batch: the median, tenth and ninetieth percentile of what the device computes, and the median
    from the host's memory and back. ``bound`` is what limits the device, ``arithmetic`` or ``memory``.
    """

    network: str
    contender: str
    batch: int
    milliseconds: float = 0.0
    low: float = 0.0
    high: float = 0.0
    whole_milliseconds: float = 0.0
    limit_samples_per_second: float = 0.0
    bound: str = ""
    problem: str = ""

    @property
    def samples_per_second(self) -> float:
        return self.batch / self.milliseconds * 1000 if self.milliseconds else 0.0

    @property
    def whole_samples_per_second(self) -> float:
        return self.batch / self.whole_milliseconds * 1000 if self.whole_milliseconds else 0.0


@dataclass
class Results:
    """``rates`` are operations and bytes per second by place (``cpu``, ``gpu``, ``datasheet``) and dtype."""

    device: str
    measured: str
    versions: dict[str, str]
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    service: dict[str, Any] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)

    def set_limits(self, place: str, dtype: torch.dtype, limits: Limits) -> None:
        self.rates[_rate_key(place, dtype)] = (limits.operations_per_second, limits.bytes_per_second)

    def limits(self, dtype: torch.dtype, *, on_gpu: bool) -> Limits:
        return Limits(*self.rates[_rate_key("gpu" if on_gpu else "cpu", dtype)])


def _rate_key(place: str, dtype: torch.dtype) -> str:
    return f"{place} {str(dtype).removeprefix('torch.')}"


def slug(device: str) -> str:
    """``NVIDIA H200`` -> ``nvidia-h200``"""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write(results: Results, path: Path) -> None:
    """``path`` with .json, .md and .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    draw(results, path.with_suffix(".png"))


def read(path: Path) -> Results | None:
    """What ``write`` wrote, None where there is nothing."""
    if not path.with_suffix(".json").is_file():
        return None
    held = json.loads(path.with_suffix(".json").read_text())
    known = {item.name for item in dataclasses.fields(Results)}
    rows = [Row(**row) for row in held.pop("rows")]
    return Results(rows=rows, **{name: value for name, value in held.items() if name in known})


def markdown(results: Results) -> str:
    lines = [f"# {results.device}, {results.measured}", ""]
    lines += [", ".join(f"{name} {version}" for name, version in results.versions.items()) + ".", ""]
    for key, (operations, moved) in results.rates.items():
        lines.append(f"- {key}: {operations / 1e12:,.4g} TFLOP/s, {moved / 1e9:,.4g} GB/s")
    for network in dict.fromkeys(row.network for row in results.rows):
        lines += ["", f"## {network}", ""]
        lines += [
            "| | batch | ms (10%, 90%) | samples/s | of the limit | bound by | ms with copies | samples/s with copies |"
        ]
        lines += ["|---|---:|---:|---:|---:|---|---:|---:|"]
        rows = [row for row in results.rows if row.network == network]
        for row in sorted(rows, key=lambda row: (list(CONTENDERS).index(row.contender), row.batch)):
            lines.append(_line(row))
    if results.service:
        lines += ["", "## The service, ResNet-50, JPEG in", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in results.service.items()]
    if results.unreached:
        lines += ["", "Not reached in the time given: " + "; ".join(results.unreached) + "."]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    label = CONTENDERS[row.contender].label
    if row.problem:
        return f"| {label} | | {row.problem.replace('|', '/')} | | | | | |"
    share = row.samples_per_second / row.limit_samples_per_second
    return (
        f"| {label} | {row.batch} | {row.milliseconds:.2f} ({row.low:.2f}, {row.high:.2f}) "
        f"| {row.samples_per_second:,.0f} | {share:.0%} | {row.bound} | {row.whole_milliseconds:.2f} "
        f"| {row.whole_samples_per_second:,.0f} |"
    )


def draw(results: Results, path: Path) -> None:
    """A panel a network: samples per second over the batch, the device's limit dashed."""
    networks = list(dict.fromkeys(row.network for row in results.rows if not row.problem))
    if not networks:
        return
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.8 * rows), layout="constrained", dpi=150)
    figure.suptitle(f"Samples per second on {results.device}, without copies")
    for place, network in enumerate(networks):
        _panel(figure.add_subplot(rows, columns, place + 1), results, network)
    figure.savefig(path)


def _panel(axes: Axes, results: Results, network: str) -> None:
    colours = dict(zip(CONTENDERS, _COLOURS * 2, strict=False))
    for name, contender in CONTENDERS.items():
        rows = [row for row in results.rows if (row.network, row.contender) == (network, name) and not row.problem]
        rows.sort(key=lambda row: row.batch)
        if not rows:
            continue
        sizes = [row.batch for row in rows]
        axes.plot(sizes, [row.samples_per_second for row in rows], "o-", ms=3, label=contender.label, c=colours[name])
        if name in ("cuda-fp16", "cpu"):
            limits = [row.limit_samples_per_second for row in rows]
            dtype = str(contender.dtype).removeprefix("torch.")
            axes.plot(sizes, limits, "--", lw=1, c=colours[name], label=f"limit in {dtype}")
    axes.set(title=network, xlabel="batch", xscale="log", yscale="log")
    sizes = sorted({row.batch for row in results.rows if row.batch})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.legend(fontsize=6)
