"""BentoML's own batching, as its guide to adaptive batching shows it: a list in, a list out, files by multipart.

Metrics and tracing are left at their defaults, the access log is off.
"""

import os
import sys
from pathlib import Path

import bentoml

from benchmarks.stages import Answer, Setup, Stages

SETUP = Setup.read()


@bentoml.service(workers=SETUP.workers, threads=2, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self.stages = Stages(SETUP.model)

    @bentoml.api(batchable=True, max_batch_size=SETUP.max_batch, max_latency_ms=60_000)
    def classify(self, files: list[Path]) -> list[Answer]:
        return self.stages.answers([file.read_bytes() for file in files])


if __name__ == "__main__":
    address = ["--host", "127.0.0.1", "--port", str(SETUP.port)]
    os.execv(
        sys.executable, [sys.executable, "-m", "bentoml", "serve", "benchmarks.peers.bentoml:Classifier", *address]
    )
