"""Conversion of a graph to float16 weights and arithmetic between its first and its last weights.

Parts that lose too much precision, and cost little, stay in float32: normalisation, whose inputs reach 255 and whose
sums are over whole windows; all that leads to a logarithm, which amplifies errors of small numbers; the last layer, and
the temperature, softmax or argmax after it. Inputs and outputs keep their dtypes.

The graph is changed rather than the network, because the graph's batch norms are folded into convolutions: a variance
in float16 could overflow, and each weight is rounded once.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

_WEIGHTED = {"Conv", "Gemm", "MatMul"}
_LOGARITHM = "Log"
_SHAPES = {"Shape", "Size"}  # read the shape of a tensor of any dtype
_SUFFIX = "_float16"


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` that computes in float16.

    Raises ``ValueError`` where no node would compute in float16, ``OverflowError`` naming a weight beyond its range.
    """
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    chosen = _float16_nodes(graph.node)
    if not chosen:
        raise ValueError("nothing of the graph would compute in float16: it has no two layers with weights in a row")
    floats = _float32_tensors(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    twins: dict[str, str] = {}  # a float32 tensor -> its float16 version
    nodes: list[NodeProto] = []
    for index, node in enumerate(graph.node):
        if node.op_type in _SHAPES:
            node.input[0] = twins.get(node.input[0], node.input[0])
        if index in chosen:
            for place in _float_inputs(node, floats):
                name = node.input[place]
                if name not in twins:
                    twins[name] = name + _SUFFIX
                    if name in weights:
                        graph.initializer.append(_rounded(weights[name], twins[name]))
                    else:
                        nodes.append(_cast(name, twins[name], TensorProto.FLOAT16))
                node.input[place] = twins[name]
        nodes.append(node)
        if index in chosen:
            for place, name in enumerate(node.output):
                if name in floats:
                    node.output[place] = twins[name] = name + _SUFFIX
                    nodes.append(_cast(twins[name], name, TensorProto.FLOAT))
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("node")
    result.graph.ClearField("initializer")
    result.graph.ClearField("value_info")
    result.graph.node.extend(node for node in nodes if set(node.output) & read)
    result.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    onnx.checker.check_model(result, full_check=True)
    return result


def _float16_nodes(nodes: Sequence[NodeProto]) -> set[int]:
    """Indices of the nodes from the first layer with weights up to, but without, the last one, that lead to no
    logarithm. ``nodes`` are in topological order, as ONNX requires."""
    makers: dict[str, int] = {}
    needs: list[set[int]] = []  # for each node, all its ancestors
    for index, node in enumerate(nodes):
        direct = {makers[name] for name in node.input if name in makers}
        needs.append(direct.union(*(needs[maker] for maker in direct)))
        makers |= dict.fromkeys(node.output, index)
    weighted = {index for index, node in enumerate(nodes) if node.op_type in _WEIGHTED}
    needed = set[int]().union(*(needs[index] for index in weighted))
    logarithms = {index for index in needed if nodes[index].op_type == _LOGARITHM}
    exact = logarithms.union(*(needs[index] for index in logarithms))
    return {index for index in needed - exact if (needs[index] | {index}) & weighted}


def _float32_tensors(graph: onnx.GraphProto) -> set[str]:
    values = [*graph.input, *graph.value_info, *graph.output]
    made = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return made | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _float_inputs(node: NodeProto, floats: set[str]) -> list[int]:
    """Positions of the inputs that have to be float16 for a node to compute in float16."""
    if node.op_type in _SHAPES:
        return []
    names = node.input[:1] if node.op_type == "Resize" else node.input  # its scales stay float32
    return [place for place, name in enumerate(names) if name in floats]


def _rounded(weight: TensorProto, name: str) -> TensorProto:
    with np.errstate(over="ignore"):
        values = numpy_helper.to_array(weight).astype(np.float16)
    if not np.isfinite(values).all():
        raise OverflowError(f"{weight.name} holds a weight beyond 65,504, which is float16's largest number")
    return numpy_helper.from_array(values, name)


def _cast(source: str, target: str, dtype: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], f"cast_{source}", to=dtype)
