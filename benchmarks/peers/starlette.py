"""Bare uvicorn and Starlette with the least that batches: the reference for what an HTTP server in Python costs.

A thread takes whatever waits, as soon as it is free; pictures are decoded in two more. Nothing is checked, bounded,
timed or counted.
"""

import asyncio
import json
import queue
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Thread

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.stages import Outputs, Prepared, Setup, Stages

SETUP = Setup.read()
Waiting = tuple[Prepared, asyncio.Future[list[Outputs]]]


def infer(stages: Stages, waiting: "queue.SimpleQueue[Waiting]", loop: asyncio.AbstractEventLoop) -> None:
    while True:
        batch = [waiting.get()]
        while len(batch) < SETUP.max_batch and not waiting.empty():
            batch.append(waiting.get())
        outputs = stages.infer([request for request, _ in batch])
        loop.call_soon_threadsafe(resolve, [future for _, future in batch], outputs)


def resolve(futures: list[asyncio.Future[list[Outputs]]], outputs: list[list[Outputs]]) -> None:
    for future, result in zip(futures, outputs, strict=True):
        if not future.done():
            future.set_result(result)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.stages, app.state.waiting = Stages(SETUP.model), queue.SimpleQueue()
    app.state.decoders = ThreadPoolExecutor(2)
    loop = asyncio.get_running_loop()
    Thread(target=infer, args=(app.state.stages, app.state.waiting, loop), daemon=True).start()
    yield


async def answer(request: Request) -> Response:
    state, loop = request.app.state, asyncio.get_running_loop()
    prepared = await loop.run_in_executor(state.decoders, state.stages.prepare, await request.body())
    future: asyncio.Future[list[Outputs]] = loop.create_future()
    state.waiting.put((prepared, future))
    body = state.stages.answer(prepared, await future)
    return Response(json.dumps(body), media_type="application/json")


app = Starlette(routes=[Route("/", answer, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.peers.starlette:app",
        port=SETUP.port,
        workers=SETUP.workers,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
