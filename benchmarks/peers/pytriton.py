"""PyTriton: Triton's dynamic batcher in front of Python, an instance of the model per core.

A body is the V2 protocol's binary form, which its own client sends: no base64.
"""

import json

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.stages import Setup, Stages

SETUP = Setup.read()


class Classifier:
    def __init__(self) -> None:
        self.stages = Stages(SETUP.model)

    @batch
    def __call__(self, files: np.ndarray) -> dict[str, np.ndarray]:
        answers = self.stages.answers(files[:, 0].tolist())
        return {"answers": np.array([[json.dumps(answer).encode()] for answer in answers], dtype=np.bytes_)}


if __name__ == "__main__":
    config = TritonConfig(http_address="127.0.0.1", http_port=SETUP.port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=[Classifier() for _ in range(SETUP.workers)],
            inputs=[Tensor(name="files", dtype=np.bytes_, shape=(1,))],
            outputs=[Tensor(name="answers", dtype=np.bytes_, shape=(1,))],
            config=ModelConfig(max_batch_size=SETUP.max_batch, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
