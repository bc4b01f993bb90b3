"""mosec: batches, a process per core, bytes in and JSON out.

Decoding and inference are one stage: on a CPU two would compete for the same cores, and each sample would be copied
from one process to another. Two stages, as in its ResNet-50 example, answered fewer requests.
"""

import sys

from mosec import Server, Worker

from benchmarks.stages import Answer, Setup, Stages

SETUP = Setup.read()


class Classifier(Worker):
    """Receives a list of bodies, as ``max_batch_size`` is above 1; answers are encoded as JSON by default."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = Stages(SETUP.model)

    def deserialize(self, data: bytes) -> bytes:
        return bytes(data)  # it comes as a bytearray

    def forward(self, data: list[bytes]) -> list[Answer]:
        return self.stages.answers(data)


if __name__ == "__main__":
    # Its defaults are 3 seconds for a batch and 10 ms for it to fill.
    sys.argv[1:] = ["--address=127.0.0.1", f"--port={SETUP.port}", "--timeout=60000", "--log-level=warning"]
    server = Server()
    server.append_worker(Classifier, num=SETUP.workers, max_batch_size=SETUP.max_batch, max_wait_time=1)
    server.run()
