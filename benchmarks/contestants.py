"""Who is measured: how each is installed, started, asked and read."""

import base64
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.networks import ROOT, WORK, Network
from benchmarks.stages import Answer

_BOUNDARY = "convserve-benchmark"


@dataclass(frozen=True)
class Post:
    """What is posted, the same each time."""

    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Contestant:
    """``module`` is started as ``python -m``. ``requires`` are the packages of its own virtual environment; without
    any, it runs in ours."""

    name: str
    module: str
    post: Callable[[Network], Post]
    read: Callable[[bytes], Answer] = json.loads
    requires: tuple[str, ...] = ()
    interpreter: str = sys.executable  # which its environment is made of
    root: Path = ROOT  # of the checkout whose code it runs

    @property
    def environment(self) -> Path:
        return WORK / "venvs" / self.name

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python" if self.requires else Path(sys.executable)

    @property
    def label(self) -> str:
        """Name and version."""
        return self.requires[0].replace("==", " ") if self.requires else self.name


def stages_require() -> tuple[str, ...]:
    """What decodes and computes, in the same versions as here; ONNX Runtime may be installed as either of two."""
    installed = {distribution.name.lower(): distribution.version for distribution in importlib.metadata.distributions()}
    runtime = installed.get("onnxruntime") or installed["onnxruntime-gpu"]
    same = [f"{name}=={installed[name]}" for name in ("pillow", "av", "zlib-ng")]
    return (f"onnxruntime=={runtime}", *same, "pydantic>=2.11")


def _raw(path: str) -> Callable[[Network], Post]:
    return lambda network: Post(path, network.body, {"Content-Type": network.content_type})


def _route(network: Network) -> Post:
    return Post(network.route, network.body, {"Content-Type": network.content_type})


def _multipart(network: Network) -> Post:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n'
    head += f"Content-Type: {network.content_type}\r\n\r\n"
    body = head.encode() + network.body + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Post("/classify", body, {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"})


def _v2_json(network: Network) -> Post:
    """The Open Inference Protocol, bytes in base64."""
    data = base64.b64encode(network.body).decode("ascii")
    form = {"content_type": "base64"}
    tensor = {"name": "files", "shape": [1, 1], "datatype": "BYTES", "parameters": form, "data": [data]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return Post("/v2/models/model/infer", body, {"Content-Type": "application/json"})


def _v2_binary(network: Network) -> Post:
    """The same with Triton's binary tensor extension: JSON, then each element after its length in four bytes."""
    data = len(network.body).to_bytes(4, "little") + network.body
    tensor = {"name": "files", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Post("/v2/models/model/infer", head + data, headers)


def _first_v2_output(answer: bytes) -> Answer:
    found: Answer = json.loads(json.loads(answer)["outputs"][0]["data"][0])
    return found


def _first_of_list(answer: bytes) -> Answer:
    found: list[Answer] = json.loads(answer)
    return found[0]


CONVSERVE = Contestant("convserve", "service", _route)
STARLETTE = Contestant("starlette", "benchmarks.peers.starlette", _raw("/"))
PEERS = (
    Contestant("mosec", "benchmarks.peers.mosec", _raw("/inference"), requires=("mosec==0.9.8", "numpy>=2")),
    Contestant("litserve", "benchmarks.peers.litserve", _raw("/predict"), requires=("litserve==0.2.19", "numpy>=2")),
    Contestant("ray-serve", "benchmarks.peers.ray_serve", _raw("/"), requires=("ray[serve]==2.60.0", "numpy>=2")),
    Contestant(
        "bentoml",
        "benchmarks.peers.bentoml",
        _multipart,
        _first_of_list,
        requires=("bentoml==1.4.39", "numpy>=2"),
    ),
    Contestant(
        "mlserver",
        "benchmarks.peers.mlserver",
        _v2_json,
        _first_v2_output,
        requires=("mlserver==1.7.1", "fastapi<0.116", "uvloop<0.22", "numpy>=2"),  # its workers need an older loop,
    ),
    Contestant(
        "torchserve",
        "benchmarks.peers.torchserve",
        _raw("/predictions/model"),
        # It imports torch and YAML, and names neither among what it depends on.
        requires=("torchserve==0.12.0", "torch-model-archiver==0.12.0", "torch==2.13.0", "pyyaml", "numpy>=2"),
    ),
    Contestant(
        "pytriton",
        "benchmarks.peers.pytriton",
        _v2_binary,
        _first_v2_output,
        requires=("nvidia-pytriton==0.7.0", "numpy<2"),
        # It brings a Python of its own, which fails on the standard library of 3.11.5 and later; Debian 12 has 3.11.2.
        interpreter="/usr/bin/python3",
    ),
)
CONTESTANTS = {contestant.name: contestant for contestant in (CONVSERVE, STARLETTE, *PEERS)}
