"""The model repository: a folder of ``<name>/<version>/{model.onnx,card.json}``. Find, verify and publish models."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
from pydantic import ValidationError

from service.errors import ModelRefused
from service.repository.card import File, ModelCard

BUNDLED = Path(__file__).resolve().parents[2] / "models" / "repository"
GRAPH, CARD = "model.onnx", "card.json"
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # the last holds ONNX Runtime's own, such as fused ones


class StoredModel(NamedTuple):
    card: ModelCard
    folder: Path


def find_models(repository: Path) -> tuple[list[StoredModel], list[ModelRefused]]:
    """Returns every model with a valid card, and why the others are refused. ``read_graph`` reads their files.

    Raises ``FileNotFoundError`` where there is no such folder.
    """
    if not repository.is_dir():
        raise FileNotFoundError(f"the model repository {repository} is not a folder")
    models: list[StoredModel] = []
    refused: list[ModelRefused] = []
    for folder in _version_folders(repository):
        try:
            models.append(StoredModel(_read_card(folder), folder))
        except ModelRefused as error:
            refused.append(error)
    return models, refused


def read_graph(model: StoredModel) -> bytes:
    """Returns the bytes of ``model.onnx``.

    Raises ``ModelRefused`` if a file is not the one on the card, or if the graph refers to data outside of it or to
    operators that ONNX Runtime does not bring.
    """
    for name, stated in model.card.files.items():
        if Path(name).name != name:
            raise ModelRefused(model.card.key, "card", f"{name!r} is not the name of a file in its folder")
        try:
            content = (model.folder / name).read_bytes()
        except OSError as error:
            raise ModelRefused(model.card.key, "files", f"{name} cannot be read: {error.strerror}") from error
        if (digest := hashlib.sha256(content).hexdigest()) != stated.sha256:
            raise ModelRefused(model.card.key, "sha256", f"{name} has sha256 {digest}, the card states {stated.sha256}")
        if name == GRAPH:
            graph = content
    _check_graph(model.card.key, graph)
    return graph


def publish(card: ModelCard, graph: Path, repository: Path) -> Path:
    """Puts a model into the repository, whole or not at all: written beside its folder, then renamed into it.

    Raises ``FileExistsError`` if this version stands there already: versions never change.
    """
    folder = repository / card.name / str(card.version)
    if folder.exists():
        raise FileExistsError(f"{card.key} is published already; a new one needs a new version")
    staging = repository / f".{card.name}-{card.version}.{os.getpid()}"
    staging.mkdir(parents=True)
    try:
        shutil.copyfile(graph, staging / GRAPH)
        (staging / CARD).write_text(card.model_dump_json(indent=2) + "\n")
        folder.parent.mkdir(exist_ok=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def file_entry(path: Path) -> File:
    content = path.read_bytes()
    return File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def next_version(repository: Path, name: str) -> int:
    folder = repository / name
    versions = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()] if folder.is_dir() else []
    return max(versions, default=0) + 1


def _version_folders(repository: Path) -> Iterator[Path]:
    """Yields the version folders of all models, but for hidden ones, which are being published."""
    for name in sorted(repository.iterdir()):
        if name.is_dir() and not name.name.startswith("."):
            yield from sorted(entry for entry in name.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _read_card(folder: Path) -> ModelCard:
    label = f"{folder.parent.name}:{folder.name}"
    try:
        card = ModelCard.model_validate_json((folder / CARD).read_bytes())
    except OSError as error:
        raise ModelRefused(label, "card", f"{CARD} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ModelRefused(label, "card", f"{CARD}: {where}: {first['msg']}") from error
    if (card.name, str(card.version)) != (folder.parent.name, folder.name):
        raise ModelRefused(label, "card", f"{CARD} is that of {card.key}")
    return card


def _check_graph(key: str, graph: bytes) -> None:
    try:
        model = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise ModelRefused(key, "graph", f"{GRAPH} is not an ONNX graph") from error
    domains = {entry.domain for entry in model.opset_import} | {function.domain for function in model.functions}
    if foreign := domains - _DOMAINS - {function.domain for function in model.functions}:
        raise ModelRefused(key, "operators", f"the graph uses operators of {', '.join(sorted(foreign))}")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelRefused(key, "external-data", f"the weights of {tensor.name!r} lie outside of {GRAPH}")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the graph, its subgraphs and its functions."""
    for function in model.functions:
        yield from _node_tensors(function.node)
    yield from _graph_tensors(model.graph)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)
