"""Tiny models whose answers can be worked out by hand, and cards to go with them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.tasks import TASKS  # which registers the tasks that cards state

LEVELS = 256  # categories of the grey model: its label is the brightness of the picture
OPSET = 18


def _graph(name: str, nodes: list[onnx.NodeProto], inputs: Any, outputs: Any, constants: Mapping[str, Any]) -> bytes:
    initializers = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def grey_classifier(size: int = 4) -> bytes:
    """(N, size, size, 3) uint8 -> one-hot (N, 256): the mean brightness, rounded."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Round", ["mean"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["level"], to=TensorProto.INT64),
        helper.make_node("OneHot", ["level", "depth", "values"], ["probabilities"], axis=-1),
    ]
    constants = {
        "axes": np.array([1, 2, 3], np.int64),
        "depth": np.array(LEVELS, np.int64),
        "values": np.array([0, 1], np.float32),
    }
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size, size, 3])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", LEVELS])]
    return _graph("grey", nodes, inputs, outputs, constants)


def threshold_segmenter() -> bytes:
    """(N, H, W, 3) uint8 -> category 1 where the red channel is above 127, else 0; confidence 0.75 everywhere."""
    nodes = [
        helper.make_node("Gather", ["images", "red"], ["plane"], axis=3),
        helper.make_node("Greater", ["plane", "middle"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["bright"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ones", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "sure"], ["confidence"]),
    ]
    constants = {
        "red": np.array(0, np.int64),
        "middle": np.array(127, np.uint8),
        "zero": np.array(0, np.float32),
        "sure": np.array(0.75, np.float32),
    }
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])]
    outputs = [
        helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", "H", "W"]),
        helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["N", "H", "W"]),
    ]
    return _graph("threshold", nodes, inputs, outputs, constants)


def loudness_listener(window: int = 800) -> bytes:
    """(N, 1, window) float32 -> (loud, quiet): loud is the mean magnitude."""
    nodes = [
        helper.make_node("Abs", ["waveforms"], ["magnitude"]),
        helper.make_node("ReduceMean", ["magnitude", "axes"], ["loud"], keepdims=0),
        helper.make_node("Unsqueeze", ["loud", "one"], ["column"]),
        helper.make_node("Sub", ["whole", "column"], ["rest"]),
        helper.make_node("Concat", ["column", "rest"], ["probabilities"], axis=1),
    ]
    constants = {"axes": np.array([1, 2], np.int64), "one": np.array([1], np.int64), "whole": np.array(1, np.float32)}
    inputs = [helper.make_tensor_value_info("waveforms", TensorProto.FLOAT, ["N", 1, window])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])]
    return _graph("loudness", nodes, inputs, outputs, constants)


def brightness_watcher(frames: int = 4, size: int = 8) -> bytes:
    """(N, frames, size, size, 3) uint8 -> (bright, dark): bright is the mean over 255."""
    nodes = [
        helper.make_node("Cast", ["clips"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["bright"]),
        helper.make_node("Unsqueeze", ["bright", "one"], ["column"]),
        helper.make_node("Sub", ["whole", "column"], ["rest"]),
        helper.make_node("Concat", ["column", "rest"], ["probabilities"], axis=1),
    ]
    constants = {
        "axes": np.array([1, 2, 3, 4], np.int64),
        "full": np.array(255, np.float32),
        "one": np.array([1], np.int64),
        "whole": np.array(1, np.float32),
    }
    inputs = [helper.make_tensor_value_info("clips", TensorProto.UINT8, ["N", frames, size, size, 3])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])]
    return _graph("brightness", nodes, inputs, outputs, constants)


def _tensor(name: str, dtype: str, layout: str, shape: list[int | str]) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "layout": layout, "shape": shape}


_TASKS: dict[str, dict[str, Any]] = {
    "classify": {
        "graph": grey_classifier,
        "categories": [str(level) for level in range(LEVELS)],
        "input": _tensor("images", "uint8", "NHWC", ["N", 4, 4, 3]),
        "preprocess": {"media": "image", "resize": "crop", "sizes": [[4, 4]], "shorter_side": 4},
        "outputs": [_tensor("probabilities", "float32", "NC", ["N", LEVELS])],
    },
    "segment": {
        "graph": threshold_segmenter,
        "categories": ["dark", "red"],
        "palette": [[0, 0, 0], [255, 0, 0]],
        "input": _tensor("images", "uint8", "NHWC", ["N", "H", "W", 3]),
        "preprocess": {"media": "image", "resize": "pad", "sizes": [[32, 32], [32, 64], [64, 32]]},
        "outputs": [
            _tensor("mask", "uint8", "NHW", ["N", "H", "W"]),
            _tensor("confidence", "float32", "NHW", ["N", "H", "W"]),
        ],
    },
    "audio": {
        "graph": loudness_listener,
        "categories": ["loud", "quiet"],
        "input": _tensor("waveforms", "float32", "NCT", ["N", 1, 800]),
        "preprocess": {"media": "audio", "sample_rate_hz": 8000, "window_seconds": 0.1, "hop_seconds": 0.05},
        "outputs": [_tensor("probabilities", "float32", "NC", ["N", 2])],
    },
    "video": {
        "graph": brightness_watcher,
        "categories": ["bright", "dark"],
        "input": _tensor("clips", "uint8", "NTHWC", ["N", 4, 8, 8, 3]),
        "preprocess": {
            "media": "video",
            "frame_rate_hz": 8,
            "frames": 4,
            "hop_seconds": 0.25,
            "shorter_side": 8,
            "size": [8, 8],
        },
        "outputs": [_tensor("probabilities", "float32", "NC", ["N", 2])],
    },
}


assert set(_TASKS) <= set(TASKS)


def card_content(task: str, graph: bytes, **changed: Any) -> dict[str, Any]:
    """A valid card for the tiny model of ``task``, with whatever is to be different."""
    known = {key: value for key, value in _TASKS[task].items() if key != "graph"}
    return {
        "name": f"tiny-{task}",
        "version": 1,
        "task": task,
        "default": True,
        "architecture": "by hand",
        "dataset": {"name": "none", "source": "none", "licence": "none", "splits": {}},
        "metrics": [],
        "training": {"recipe": "none", "epochs": 0, "seed": 0, "hardware": "none", "hours": 0.0},
        "parity": {"largest_difference": 0.0, "samples": 0},
        "complexity": {"parameters": 0, "macs": 0, "receptive_field": [1]},
        "files": {"model.onnx": {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}},
        **known,
        **changed,
    }


def tiny_graph(task: str) -> bytes:
    """The graph of the tiny model of ``task``."""
    made: bytes = _TASKS[task]["graph"]()
    return made


def write_model(repository: Path, task: str, graph: bytes | None = None, **changed: Any) -> Path:
    """Puts the tiny model of ``task`` into ``repository``; its folder."""
    graph = tiny_graph(task) if graph is None else graph
    content = card_content(task, graph, **changed)
    folder: Path = repository / content["name"] / str(content["version"])
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "card.json").write_text(json.dumps(content))
    return folder


def write_all(repository: Path) -> Path:
    for task in _TASKS:
        write_model(repository, task)
    return repository
