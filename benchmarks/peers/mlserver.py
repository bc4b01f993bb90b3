"""MLServer: a custom runtime behind the V2 protocol, adaptive batching, a parallel worker per core.

A body is the picture in base64 within JSON, for that is the only way in: its custom routes do not batch.
"""

import asyncio
import json

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.stages import Setup, Stages

SETUP = Setup.read()


class Classifier(MLModel):
    async def load(self) -> bool:
        self.stages = Stages(SETUP.model)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answers = self.stages.answers(Base64Codec.decode_input(payload.inputs[0]))
        output = StringCodec.encode_output("answers", [json.dumps(answer) for answer in answers])
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve() -> None:
    server = MLServer(
        Settings(
            host="127.0.0.1",
            http_port=SETUP.port,
            grpc_port=SETUP.port + 1,
            metrics_endpoint=None,
            parallel_workers=SETUP.workers,
            debug=False,
        )
    )
    model = ModelSettings(
        name="model",
        implementation=Classifier,
        parallel_workers=SETUP.workers,
        max_batch_size=SETUP.max_batch,
        max_batch_time=0.001,
        parameters=ModelParameters(version="1"),
    )
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(serve())
