"""The ceiling: the same bytes through decoding, preprocessing and the session, in as many processes as there are cores,
each with one thread and nothing else to do. No HTTP, no queue, no answer.

    echo 32 8 | python -m benchmarks.limit MODEL_FOLDER FILE     one process, in batches of 32 for 8 seconds
"""

import argparse
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from benchmarks.networks import ROOT
from benchmarks.stages import Stages

BATCHES = (1, 4, 8, 16, 32, 64)
_PATIENCE_SECONDS = 60


class LimitError(Exception):
    """A process failed; the message is the last that it said."""


class Limit:
    """``processes`` of ``model``, the folder of one, each with its own session. They work when they are asked, all at
    once, and wait in between. Entering it and asking raise ``LimitError``."""

    def __init__(self, model: Path, body: bytes, *, processes: int) -> None:
        self._model, self._body, self._processes = model, body, processes
        self._workers: list[subprocess.Popen[str]] = []
        self._started = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            file = started.enter_context(tempfile.NamedTemporaryFile())
            file.write(self._body)
            file.flush()
            command = [sys.executable, "-m", "benchmarks.limit", str(self._model), file.name]
            pipe = subprocess.PIPE
            for _ in range(self._processes):
                worker = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
                self._workers.append(started.enter_context(worker))
                started.callback(worker.kill)
            for worker in self._workers:
                _told(worker, _PATIENCE_SECONDS)  # it is warm
            self._started = started.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._started.close()

    def requests_per_second(self, *, batch: int, seconds: float) -> float:
        """Of all processes together, while every one of them is at work for so long."""
        for worker in self._workers:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.write(f"{batch} {seconds}\n")
                worker.stdin.flush()
        said = [_told(worker, _PATIENCE_SECONDS + 10 * seconds) for worker in self._workers]
        rates: list[float] = [one["requests"] / one["seconds"] for one in said]
        return sum(rates)

    def best_batch(self, *, seconds: float) -> int:
        """The batch size that gives most here: large ones share the cost of a run, small ones stay in the cache."""
        return max(BATCHES, key=lambda batch: self.requests_per_second(batch=batch, seconds=seconds))


def _told(worker: subprocess.Popen[str], patience_seconds: float) -> Any:
    """The next line. Raises ``LimitError``."""
    assert worker.stdout is not None
    if not select.select([worker.stdout], [], [], patience_seconds)[0]:
        raise LimitError(f"a process said nothing for {patience_seconds:g} s")
    if line := worker.stdout.readline():
        return json.loads(line)
    _, complaint = worker.communicate()
    raise LimitError((complaint.strip().splitlines() or [f"a process ended with {worker.returncode}"])[-1])


def run(stages: Stages, data: bytes, *, batch: int, seconds: float) -> tuple[int, float]:
    """Requests done, at least one batch, and the seconds that they took."""
    done, began = 0, time.perf_counter()
    while True:
        stages.infer([stages.prepare(data) for _ in range(batch)])
        done += batch
        if (took := time.perf_counter() - began) >= seconds:
            return done, took


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Decode, preprocess and run one model as fast as one thread can.")
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args(argv)
    stages, data = Stages(arguments.model), arguments.file.read_bytes()
    run(stages, data, batch=1, seconds=0)
    print(json.dumps("ready"), flush=True)
    warm = 1
    for line in sys.stdin:
        batch, seconds = int(line.split()[0]), float(line.split()[1])
        if batch > warm:
            run(stages, data, batch=batch, seconds=0)
            warm = batch
        requests, took = run(stages, data, batch=batch, seconds=seconds)
        print(json.dumps({"requests": requests, "seconds": took}), flush=True)


if __name__ == "__main__":
    main()
