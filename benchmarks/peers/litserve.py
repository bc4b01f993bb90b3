"""LitServe: batches, a worker per core, as many API servers as workers, and its faster queue (ZeroMQ)."""

from typing import Annotated

import litserve
from fastapi import Body

from benchmarks.stages import Answer, Setup, Stages

SETUP = Setup.read()


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.stages = Stages(SETUP.model)

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[Answer]:
        return self.stages.answers(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> Answer:
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=SETUP.max_batch, batch_timeout=0.001)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=SETUP.workers, timeout=60, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=SETUP.port,
        num_api_servers=SETUP.workers,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
