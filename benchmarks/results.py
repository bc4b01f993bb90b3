"""What was measured: one JSON file a machine, and the medians of its rounds."""

import json
import math
import platform
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.networks import ROOT
from service.launch import TUNED

FOLDER = Path(__file__).with_name("results")
_NAMED = ("bentoml", "fastapi", "numpy", "onnxruntime", "onnxruntime-gpu", "pillow", "starlette", "uvicorn", "uvloop")


class Key(NamedTuple):
    """What is measured in each round anew."""

    scenario: str
    contestant: str
    network: str
    connections: int


class Spread(NamedTuple):
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """One contestant, once. ``values`` have their units in their names; ``problem`` says why there are none."""

    scenario: str
    contestant: str
    network: str
    connections: int = 0
    round: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    run: str = ""  # when the run began that it is of

    @property
    def key(self) -> Key:
        return Key(self.scenario, self.contestant, self.network, self.connections)


@dataclass(frozen=True)
class Results:
    machine: Mapping[str, Any]
    runs: Mapping[str, Any]  # by when they began: command, commit, versions
    measurements: Sequence[Measurement]

    def spreads(self, name: str) -> dict[Key, Spread]:
        """The median and the extremes of the value ``name`` over the rounds, wherever it was measured."""
        found: dict[Key, list[float]] = defaultdict(list)
        for measurement in self.measurements:
            if name in measurement.values and math.isfinite(measurement.values[name]):
                found[measurement.key].append(measurement.values[name])
        return {key: Spread(statistics.median(of), min(of), max(of)) for key, of in found.items()}

    def merged(self, newer: "Results") -> "Results":
        """With what was measured again replaced; so is a problem, which knows no connections."""
        again = {measurement.key for measurement in newer.measurements}
        again |= {key._replace(connections=0) for key in again}
        kept = [measurement for measurement in self.measurements if measurement.key not in again]
        measurements = [*kept, *newer.measurements]
        runs = {**self.runs, **newer.runs}
        used = {measurement.run for measurement in measurements}
        return Results(newer.machine, {run: runs[run] for run in runs if run in used}, measurements)


def place(folder: Path, machine: Mapping[str, Any]) -> Path:
    """Where in ``folder`` the results of such a machine are."""
    return folder / f"cpu-{machine['cores']}.json"


def write(results: Results, path: Path) -> None:
    """In one step: a run that is killed meanwhile leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(asdict(results), indent=1) + "\n")
    part.replace(path)


def read(path: Path) -> Results:
    """Raises ``FileNotFoundError``."""
    held = json.loads(path.read_text())
    return Results(held["machine"], held["runs"], [Measurement(**one) for one in held["measurements"]])


def machine(cores: int) -> dict[str, Any]:
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = processors[0].partition(":")[2].strip() if processors else platform.machine()
    return {"cores": cores, "processor": processor, "system": platform.system(), "python": platform.python_version()}


def run_facts(command: str) -> dict[str, Any]:
    """What a run's figures rest on."""
    versions = {one.name.lower(): one.version for one in distributions() if one.name.lower() in _NAMED}
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, capture_output=True, check=False).returncode
    commit = git.stdout.strip() + ("+changes" if changed else "")
    settings = f"those of {TUNED}" if (ROOT / TUNED).is_file() else "the defaults"
    return {"command": command, "commit": commit, "settings": settings, "versions": dict(sorted(versions.items()))}
