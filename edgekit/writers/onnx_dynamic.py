"""Dense layers of ONNX files that round what they read when they run, and multiply integers.

A Gemm or MatMul with int8 weights behind a DequantizeLinear becomes DynamicQuantizeLinear,
MatMulInteger, Cast and a product with both scales, then the bias. onnxruntime merges them to one
operator. It has such kernels for matrices only: its ConvInteger takes int8 weights, and computes
several times slower than its convolution in float. So convolutions keep their DequantizeLinear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.graph import onnx as onnx_file
from edgekit.graph.flatbuffer import short_name

#: End names of what a layer that was taken apart writes on the way: sums of integers, the same as
#: real numbers, both scales, and the product before a bias.
_SUMS, _REAL, _SCALES, _PRODUCT = "__sums", "__sums_real", "__scales", "__product"
#: End names of what rounding writes: integers, their scale and zero_point.
_STEPS, _SCALE, _ZERO = "__steps", "__scale", "__zero"


def write(model: Any) -> None:
    """Take dense layers with int8 weights apart, in place.

    Args:
        model: ``onnx.ModelProto`` with int8 weights behind DequantizeLinear, sorted or not.
    """
    graph, onnx = model.graph, onnx_file.package()
    make = onnx.helper.make_node
    constants = onnx_file.stored_constants(model)
    makers = {name: node for node in graph.node for name in node.output}
    rounded: set[str] = set()

    def store(name: str, values: Any) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    for node in [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]:
        stored = makers.get(node.input[1])
        if stored is None or stored.op_type != "DequantizeLinear" or not _plain(node):
            continue
        weights, scale = (constants.get(name) for name in stored.input[:2])
        if weights is None or scale is None or weights.dtype != np.int8 or weights.ndim != 2:
            continue
        source, output = node.input[0], node.output[0]
        transposed = bool(onnx_file.attribute(node, "transB", 0))
        if scale.ndim != 1 or len(scale) != weights.shape[0 if transposed else 1]:
            continue
        matrix = stored.input[0]
        if transposed:
            matrix = store(f"{output}__matrix", np.ascontiguousarray(weights.T))
        if source not in rounded:
            outputs = [f"{source}{_STEPS}", f"{source}{_SCALE}", f"{source}{_ZERO}"]
            graph.node.append(make("DynamicQuantizeLinear", [source], outputs, outputs[0]))
            rounded.add(source)
        bias = node.input[2] if len(node.input) > 2 else ""
        last = f"{output}{_PRODUCT}" if bias else output
        steps = [
            (
                "MatMulInteger",
                [f"{source}{_STEPS}", matrix, f"{source}{_ZERO}"],
                f"{output}{_SUMS}",
                {},
            ),
            ("Cast", [f"{output}{_SUMS}"], f"{output}{_REAL}", {"to": onnx.TensorProto.FLOAT}),
            ("Mul", [f"{source}{_SCALE}", stored.input[1]], f"{output}{_SCALES}", {}),
            ("Mul", [f"{output}{_REAL}", f"{output}{_SCALES}"], last, {}),
            *([("Add", [last, bias], output, {})] if bias else []),
        ]
        graph.node.remove(node)
        graph.node.extend(make(kind, fed, [to], to, **form) for kind, fed, to, form in steps)
    _drop_unread(model)
    onnx_file.drop_unused(model)
    onnx_file.sort(model)


def _plain(node: Any) -> bool:
    """Whether a Gemm is a product and a sum, as it stands."""
    factors = [onnx_file.attribute(node, name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and not onnx_file.attribute(node, "transA", 0)


def _drop_unread(model: Any) -> None:
    needed = {*onnx_file.read(model.graph), *(value.name for value in model.graph.output)}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        if node.output[0] not in needed:
            model.graph.node.remove(node)


def joined(model: Any) -> Any:
    """The model with its dense layers as they were before :func:`write`; itself where it has none
    that was taken apart."""
    if not any(node.op_type == "MatMulInteger" for node in model.graph.node):
        return model
    joined_model = onnx_file.copied(model)
    graph, make = joined_model.graph, onnx_file.package().helper.make_node
    makers = {name: node for node in graph.node for name in node.output}
    readers = onnx_file.readers(graph.node)
    for sums in [node for node in graph.node if node.op_type == "MatMulInteger"]:
        if not sums.output[0].endswith(_SUMS):
            continue
        # the last of them has the name of the model's output, if it is one
        (real,) = readers[sums.output[0]]
        (product,) = readers[real.output[0]]
        scales, last = makers[product.input[1]], product
        inputs = [makers[sums.input[0]].input[0], f"{sums.output[0]}__weights"]
        weights = [sums.input[1], scales.input[1]]
        if product.output[0].endswith(_PRODUCT):
            (last,) = readers[product.output[0]]
            inputs.append(last.input[1])
        for node in {id(node): node for node in (sums, real, product, scales, last)}.values():
            graph.node.remove(node)
        graph.node.append(make("DequantizeLinear", weights, inputs[1:2], inputs[1], axis=1))
        kind = "Gemm" if len(inputs) > 2 else "MatMul"
        graph.node.append(make(kind, inputs, last.output, last.output[0]))
    used = {*onnx_file.read(graph), *(value.name for value in graph.output)}
    for node in [node for node in graph.node if node.op_type == "DynamicQuantizeLinear"]:
        if used.isdisjoint(node.output):
            graph.node.remove(node)
    onnx_file.sort(joined_model)
    return joined_model


def in_float(model: Any) -> tuple[str, ...]:
    """Layers with int8 weights that compute in float, as kind and name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    real = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    return tuple(
        f"{node.op_type} {short_name(node.output[0])}"
        for node in model.graph.node
        if node.op_type in onnx_file.WEIGHTED and node.input[1] in real
    )
