"""The service itself on the GPU, JPEG in, labels out, beside what this machine's decoders could bring at most."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_networks import Network
from benchmarks.load import LoadError, measure
from benchmarks.networks import ROOT, photograph
from service.media import NO_DEADLINE, Limits
from service.repository.card import ModelCard
from service.repository.folder import publish
from service.settings import usable_cores
from service.tasks import TASKS

_CONNECTIONS = (16, 64, 256)
_SECONDS = 8
_READY_SECONDS = 240


def serve(network: Network, *, budget_seconds: float) -> dict[str, Any]:
    """Figures by name; ``problem`` is one of them where something stood in the way."""
    card = network.card("float16" if torch.cuda.is_available() else "float32")
    picture = photograph()
    seconds = max(1, min(_SECONDS, int(budget_seconds / 8)))  # whole ones, as wrk counts them
    found: dict[str, Any] = {"network": card.architecture, "precision": card.precision}
    found["decoders, pictures/s"] = round(decoders_limit(card, picture, seconds=seconds))
    with tempfile.TemporaryDirectory() as folder:
        publish(card, network.graph(card.precision), Path(folder))
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "PORT": str(port), "CONVSERVE_REPOSITORY": folder, "CONVSERVE_ACCESS_LOG": "false"}
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "service"], cwd=ROOT, env=environment, stdout=output, stderr=output
            )
        try:
            found["ready after, s"] = round(_wait(f"http://127.0.0.1:{port}/readyz", process), 1)
            for connections in _CONNECTIONS:
                load = measure(
                    f"http://127.0.0.1:{port}/classify",
                    picture,
                    {"Content-Type": "image/jpeg"},
                    connections=connections,
                    seconds=seconds,
                )
                found[f"{connections} connections, requests/s"] = round(load.requests_per_second)
                found[f"{connections} connections, p50 and p99, ms"] = f"{load.p50_ms:.1f}, {load.p99_ms:.1f}"
        except (LoadError, TimeoutError) as error:
            said = log.read_text(errors="replace").strip().splitlines()[-1:]
            found["problem"] = "; ".join([str(error), *said])
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
    return found


def decoders_limit(card: ModelCard, picture: bytes, *, seconds: float) -> float:
    """Pictures per second that as many processes as there are cores decode and preprocess, and do nothing else."""
    cores = usable_cores()
    with ProcessPoolExecutor(cores) as processes:
        counts = processes.map(_decode_for, [card] * cores, [picture] * cores, [seconds] * cores)
        return sum(counts)


def _decode_for(card: ModelCard, picture: bytes, seconds: float) -> float:
    task = TASKS[card.task]
    spec = task.decode_spec(card.preprocess, task.parameters())
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        task.prepare(task.decode(picture, spec, Limits(), NO_DEADLINE), card.preprocess)
        count += 1
    return count / taken


def _wait(url: str, process: subprocess.Popen[bytes]) -> float:
    """Seconds until the service is ready. Raises ``TimeoutError``, also where it ended."""
    began = time.monotonic()
    while time.monotonic() - began < _READY_SECONDS and process.poll() is None:
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=2)
            return time.monotonic() - began
        time.sleep(0.2)
    raise TimeoutError("the service did not start" if process.poll() is not None else "the service did not get ready")
