"""The ceiling: the same bytes through decoding, preprocessing and the session, in as many processes as there are cores,
each with one thread and nothing else to do. No HTTP, no queue, no answer.

    python -m benchmarks.limit MODEL_FOLDER FILE --batch 32 --seconds 8        one process, as `measure` starts them
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.networks import ROOT
from benchmarks.stages import Stages

BATCHES = (1, 4, 8, 16, 32, 64)
_START_SECONDS = 60


class LimitError(Exception):
    """A process failed; the message is the last that it said."""


def measure(model: Path, file: Path, *, processes: int, batch: int, seconds: float) -> float:
    """Requests per second of all ``processes`` together, while every one of them is at work. Raises ``LimitError``."""
    command = [sys.executable, "-m", "benchmarks.limit", str(model), str(file)]
    command += [f"--batch={batch}", f"--seconds={seconds}"]
    pipe = subprocess.PIPE
    with ExitStack() as started:
        workers = []
        for _ in range(processes):
            worker = started.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            )
            started.callback(worker.kill)
            workers.append(worker)
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()  # it is warm, or has ended
        rates: list[float] = []
        for worker in workers:  # all begin now: they were waiting for a line
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.write("\n")
                worker.stdin.flush()
        for worker in workers:
            printed, complaint = worker.communicate(timeout=_START_SECONDS + 10 * seconds)
            if worker.returncode:
                raise LimitError(complaint.strip().splitlines()[-1])
            said = json.loads(printed)
            rates.append(said["requests"] / said["seconds"])
    return sum(rates)


def best_batch(model: Path, file: Path, *, processes: int, seconds: float) -> int:
    """The batch size that gives most here: large ones share the cost of a run, small ones stay in the cache."""
    return max(BATCHES, key=lambda batch: measure(model, file, processes=processes, batch=batch, seconds=seconds))


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
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args(argv)
    stages, data = Stages(arguments.model), arguments.file.read_bytes()
    run(stages, data, batch=arguments.batch, seconds=0)
    print("ready", flush=True)
    sys.stdin.readline()
    requests, took = run(stages, data, batch=arguments.batch, seconds=arguments.seconds)
    print(json.dumps({"requests": requests, "seconds": took}))


if __name__ == "__main__":
    main()
