"""Graphs in float16: what is converted and what is not, on graphs that are checked by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.half import to_float16


def model(nodes: list[onnx.NodeProto], constants: Mapping[str, Any], shape: list[int | str]) -> onnx.ModelProto:
    """A graph from ``x`` to ``y``, both float32."""
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 10
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


def run(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def dtypes(graph: onnx.ModelProto) -> dict[str, str]:
    """The dtype of each node's output, without casts."""
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    names = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    kinds = {v.name: names.get(v.type.tensor_type.elem_type, "other") for v in (*inferred.value_info, *inferred.output)}
    return {node.name: kinds[node.output[0]] for node in graph.graph.node if node.op_type != "Cast"}


def two_layers() -> onnx.ModelProto:
    """Normalise, a layer, ReLU, a layer, softmax."""
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["centred"], "normalise"),
        helper.make_node("Gemm", ["centred", "first", "bias"], ["hidden"], "first layer"),
        helper.make_node("Relu", ["hidden"], ["rectified"], "relu"),
        helper.make_node("Gemm", ["rectified", "last"], ["logits"], "last layer"),
        helper.make_node("Softmax", ["logits"], ["y"], "softmax"),
    ]
    random = np.random.default_rng(0)
    constants = {
        "mean": np.float32(100),
        "first": random.normal(0, 0.1, (8, 16)).astype(np.float32),
        "bias": random.normal(0, 0.1, 16).astype(np.float32),
        "last": random.normal(0, 0.1, (16, 4)).astype(np.float32),
    }
    return model(nodes, constants, ["N", 8])


def test_what_lies_between_the_first_and_the_last_weights_is_float16() -> None:
    half = to_float16(two_layers())
    assert dtypes(half) == {
        "normalise": "float32",
        "first layer": "float16",
        "relu": "float16",
        "last layer": "float32",
        "softmax": "float32",
    }
    held = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert held == {"mean": 1, "last": 1, "first_float16": 10, "bias_float16": 10}
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2  # one in, one out: none between


def test_float16_is_float32_with_rounded_weights_and_maps() -> None:
    single = two_layers()
    x = np.random.default_rng(1).uniform(0, 255, (5, 8)).astype(np.float32)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in single.graph.initializer}
    rounded = {name: weights[name].astype(np.float16).astype(np.float64) for name in ("first", "bias")}
    hidden = (x - 100).astype(np.float16).astype(np.float64) @ rounded["first"] + rounded["bias"]
    logits = hidden.clip(0).astype(np.float16).astype(np.float64) @ weights["last"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(run(to_float16(single), x), expected, atol=1e-3)
    assert np.abs(run(to_float16(single), x) - run(single, x)).max() > 0


def test_the_graph_that_was_given_is_not_changed() -> None:
    single = two_layers()
    before = single.SerializeToString()
    to_float16(single)
    assert single.SerializeToString() == before


def test_what_leads_to_a_logarithm_stays_float32() -> None:
    """Energies of 1e-6 are below what float16 tells apart."""
    nodes = [
        helper.make_node("Conv", ["x", "bank"], ["bands"], "bank"),
        helper.make_node("Mul", ["bands", "bands"], ["energies"], "energies"),
        helper.make_node("Log", ["energies"], ["levels"], "log"),
        helper.make_node("Conv", ["levels", "kernel"], ["features"], "inner"),
        helper.make_node("Conv", ["features", "kernel"], ["logits"], "last"),
        helper.make_node("Log", ["logits"], ["y"], "log of logits"),
    ]
    bank, kernel = (np.full((2, channels, 1), 0.5, np.float32) for channels in (1, 2))
    found = dtypes(to_float16(model(nodes, {"bank": bank, "kernel": kernel}, ["N", 1, "T"])))
    assert {name for name, dtype in found.items() if dtype == "float16"} == {"inner"}


def test_interpolation_in_the_middle_reads_sizes_from_the_float16_map() -> None:
    """A segmenter joins a coarse map to a fine one like this."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["fine"], "fine"),
        helper.make_node("AveragePool", ["fine"], ["coarse"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["fine"], ["size"], "size"),
        helper.make_node("Resize", ["coarse", "", "", "size"], ["wide"], "resize", mode="linear"),
        helper.make_node("Concat", ["fine", "wide"], ["both"], "join", axis=1),
        helper.make_node("Conv", ["both", "classifier"], ["y"], "last"),
    ]
    constants = {"kernel": np.ones((2, 3, 1, 1), np.float32), "classifier": np.ones((2, 4, 1, 1), np.float32)}
    single = model(nodes, constants, ["N", 3, "H", "W"])
    half = to_float16(single)
    assert {name for name, dtype in dtypes(half).items() if dtype == "float16"} == {"fine", "pool", "resize", "join"}
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2
    x = np.random.default_rng(0).normal(0, 1, (2, 3, 6, 8)).astype(np.float32)
    assert np.allclose(run(half, x), run(single, x), atol=0.03)  # sums of 4 maps, each of magnitude 4


def test_a_weight_beyond_float16_is_named() -> None:
    single = two_layers()
    for tensor in single.graph.initializer:
        if tensor.name == "bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(16, 1e5, np.float32), "bias"))
    with pytest.raises(OverflowError, match="bias holds a weight beyond 65,504"):
        to_float16(single)


def test_a_graph_of_one_layer_is_refused() -> None:
    nodes = [helper.make_node("Gemm", ["x", "weight"], ["y"], "only")]
    with pytest.raises(ValueError, match="nothing of the graph"):
        to_float16(model(nodes, {"weight": np.ones((2, 2), np.float32)}, ["N", 2]))
