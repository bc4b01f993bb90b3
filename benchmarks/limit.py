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
from contextlib import ExitStack
from pathlib import Path

from benchmarks.networks import ROOT
from benchmarks.stages import Stages

BATCHES = (1, 4, 8, 16, 32)
_START_SECONDS = 60


def measure(model: Path, file: Path, *, processes: int, batch: int, seconds: float) -> float:
    """Requests per second of all ``processes`` together, while every one of them is at work.

    Raises ``subprocess.SubprocessError`` if one fails.
    """
    command = [sys.executable, "-m", "benchmarks.limit", str(model), str(file), f"--batch={batch}"]
    with ExitStack() as started:
        workers = [
            started.enter_context(
                subprocess.Popen(
                    [*command, f"--seconds={seconds}"],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(processes)
        ]
        for worker in workers:
            started.callback(worker.kill)
            assert worker.stdout is not None
            worker.stdout.readline()  # it is warm
        rates: list[float] = []
        for worker in workers:  # all begin now: they were waiting for a line
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        for worker in workers:
            printed, _ = worker.communicate(timeout=_START_SECONDS + 10 * seconds)
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
