"""The modules of service/ that one request passes, with their functions and the crossings between them.

The app runs in this process, without a server. After a warm-up, every call in one more POST /classify is traced, in all
threads. A crossing is a pair of functions in two modules of which one calls the other, directly or through a library.

python -m benchmarks.modules_of_a_request
"""

import asyncio
import io
import os
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import httpx

ROOT = Path(__file__).resolve().parent.parent
SERVICE = f"{ROOT / 'service'}{os.sep}"
SAMPLE = ROOT / "samples" / "cat.jpg"
_BESIDE_REQUESTS = ("Worker._balance_connections",)  # tasks that run all the time
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # Python 3.11 calls them like functions


class Function(NamedTuple):
    module: str
    name: str
    line: int


class Trace:
    """A profile function that notes which functions of service/ are called, and by which, while it is ``on``."""

    def __init__(self) -> None:
        self.on = False
        self.functions: set[Function] = set()
        self.crossings: set[tuple[Function, Function]] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self.on or event != "call" or not (called := _function(frame)):
            return
        callers = list(filter(None, map(_function, _frames_outside(frame))))
        if [called, *callers][-1].name in _BESIDE_REQUESTS:
            return
        self.functions.add(called)
        if callers and callers[0].module != called.module:
            self.crossings.add((callers[0], called))

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.on = True
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
            self.on = False

    def modules(self) -> list[str]:
        return sorted({function.module for function in self.functions})

    def __str__(self) -> str:
        functions, crossings = defaultdict[str, int](int), defaultdict[str, int](int)
        for function in self.functions:
            functions[function.module] += 1
        for _, called in self.crossings:
            crossings[called.module] += 1
        lines = [f"{'module':<36} functions  crossings into it"]
        lines += [f"{module:<36} {functions[module]:9}  {crossings[module]:17}" for module in self.modules()]
        total = f"{len(self.modules())} modules, {len(self.functions)} functions, {len(self.crossings)} crossings"
        return "\n".join([*lines, total])


def _frames_outside(frame: FrameType) -> Iterator[FrameType]:
    while outer := frame.f_back:
        yield (frame := outer)


def _function(frame: FrameType) -> Function | None:
    """The function of service/ that a frame belongs to."""
    code = frame.f_code
    if not code.co_filename.startswith(SERVICE) or code.co_name in _COMPREHENSIONS:
        return None
    module = code.co_filename.removeprefix(SERVICE).removesuffix(".py").replace(os.sep, ".")
    return Function(f"service.{module}", code.co_qualname, code.co_firstlineno)


@asynccontextmanager
async def _started(app: Any) -> AsyncIterator[None]:
    """Starts the app and stops it, as a server does (ASGI's lifespan protocol)."""
    to_app, from_app = asyncio.Queue[dict[str, str]](), asyncio.Queue[dict[str, str]]()
    running = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app.get, from_app.put))

    async def reach(stage: str) -> None:
        await to_app.put({"type": f"lifespan.{stage}"})
        message = await from_app.get()
        assert message["type"] == f"lifespan.{stage}.complete", message

    await reach("startup")
    try:
        yield
    finally:
        await reach("shutdown")
        await running


async def _traced(app: Any) -> Trace:
    trace, picture = Trace(), SAMPLE.read_bytes()
    threading.setprofile(trace)  # in threads that start from now on
    async with _started(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        for recorded in (False, True):
            with trace.recording() if recorded else nullcontext():
                answer = await client.post("/classify", content=picture)
            assert answer.status_code == 200, answer.text
    return trace


def trace_of_a_request() -> Trace:
    os.environ.setdefault("CONVSERVE_DEVICE", "cpu")
    os.environ.setdefault("CONVSERVE_ACCESS_LOG", "false")  # its lines would stand in the table
    os.chdir(ROOT)
    with redirect_stdout(io.TextIOWrapper(io.BytesIO())):  # where the access log goes
        from service import app

        served: Any = app.ConvServe  # a bentoml.Service, whatever its type says
        return asyncio.run(_traced(served.to_asgi()))


if __name__ == "__main__":
    print(trace_of_a_request())
