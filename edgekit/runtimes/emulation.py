"""float16 on a CPU: a float32 model that rounds like a float16 one.

onnxruntime's CPU provider has hardly a float16 kernel: it computes in float32 and optimizes away
most of the casts in between, so that a float16 file there is a float32 model with rounded weights.
:func:`emulate` writes the rounding out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.graph import onnx

_FLOAT, _FLOAT16 = 1, 10
_EXACT, _ROUNDED = "__exact", "__rounded"
#: Integers that float16 holds exactly: uint8, int8 and bool.
_SMALL = (2, 3, 9)


#: Operators that hand on numbers as they are.
MOVING = frozenset(
    ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "Slice")
)


def emulate(half: Any) -> tuple[Any, int]:
    """A float32 model that rounds like a float16 one, whatever the provider has kernels for.

    Weights are those of the float16 file. Each operator computes in float32, sums as well, and its
    output is rounded to the nearest float16, ties to even, before another reads it; operators that
    the file keeps in float32 are not rounded. So does a GPU with float32 accumulators. What a GPU
    may do beyond that is not imitated: rounding the sum before a bias is added, another order of
    summation, or an approximation inside Softmax.

    Args:
        half: float16 ``onnx.ModelProto``; stays as it is.

    Returns:
        The model, and how many casts it must run for its outputs to be those of the emulation.
    """
    helper, numpy_helper = onnx.package().helper, onnx.package().numpy_helper
    result = onnx.copied(half)
    types = types_of(half)
    for tensor in result.graph.initializer:
        if tensor.data_type == _FLOAT16:
            single = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(single, tensor.name))
    nodes: list[Any] = []
    casts = 0
    half_names = {}
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type == _FLOAT16:
            value.type.tensor_type.elem_type = _FLOAT
            if value in result.graph.input:
                half_names[value.name] = f"{value.name}__half"
    for name, half_name in half_names.items():
        nodes += _rounded(name, half_name, name)
        casts += 2
    for node in result.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = half_names.get(name, name)
        to_half = [name for name in node.output if types.get(name) == _FLOAT16]
        back = node.op_type == "Cast" and target_of(node) == _FLOAT
        if back and types.get(node.input[0], _FLOAT16) == _FLOAT16:  # it has no entry's new name
            node = helper.make_node("Identity", node.input, node.output, name=node.name)
        nodes.append(node)
        if node.op_type == "Cast" and to_half and types.get(node.input[0]) in _SMALL:
            nodes[-1] = helper.make_node("Cast", node.input, node.output, node.name, to=_FLOAT)
            to_half = []
        if not to_half or node.op_type in MOVING:
            continue
        for name in to_half:
            exact = name + _EXACT
            if node.op_type == "Cast":
                node.op_type = "Identity"
                del node.attribute[:]
            place = list(node.output).index(name)
            node.output[place] = exact
            nodes += _rounded(exact, name, name)
            casts += 2
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    del result.graph.value_info[:]
    onnx.package().checker.check_model(result, full_check=True)
    return result, casts


def _rounded(source: str, target: str, name: str) -> list[Any]:
    """Two casts that round one tensor into another."""
    make, between = onnx.package().helper.make_node, name + _ROUNDED
    return [
        make("Cast", [source], [between], to=_FLOAT16, name=between),
        make("Cast", [between], [target], to=_FLOAT, name=name + _EXACT),
    ]


def types_of(model: Any) -> dict[str, int]:
    """Element type of every tensor."""
    bare = onnx.copied(model)
    del bare.graph.value_info[:]
    inferred = onnx.package().shape_inference.infer_shapes(bare, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def target_of(cast: Any) -> int:
    """The element type that a Cast makes."""
    return next(int(attribute.i) for attribute in cast.attribute if attribute.name == "to")
