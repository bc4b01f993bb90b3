"""Ray Serve: a replica per core, `serve.batch`, and the settings of its performance guide (throughput optimised)."""

import os
import time

os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"  # read when Ray is imported

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from benchmarks.stages import Answer, Setup, Stages

SETUP = Setup.read()


@serve.deployment(num_replicas=SETUP.workers, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
class Classifier:
    def __init__(self) -> None:
        self.stages = Stages(SETUP.model)

    @serve.batch(max_batch_size=SETUP.max_batch, batch_wait_timeout_s=0.001)
    async def answers(self, bodies: list[bytes]) -> list[Answer]:
        return self.stages.answers(bodies)

    async def __call__(self, request: Request) -> JSONResponse:
        return JSONResponse(await self.answers(await request.body()))


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": SETUP.port})
    serve.run(Classifier.bind(), route_prefix="/", logging_config={"enable_access_log": False})
    while True:
        time.sleep(1)
