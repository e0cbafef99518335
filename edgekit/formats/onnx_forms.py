"""Operators of a foreign ONNX graph in forms that onnxruntime has integer kernels for.

Each form computes the same numbers, up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgekit.formats import onnx as onnx_file

#: Operator, inputs, output, attributes.
_Step = tuple[str, list[str], str, dict[str, Any]]
#: Operators whose answer is never negative.
_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")

#: Ends the name of a mean over height and width before it is flattened.
POOLED = "__pooled"


class _Graph:
    """A model's graph, with who makes and who reads each tensor; changed in place."""

    def __init__(self, model: Any) -> None:
        self.nodes = model.graph.node
        self.stored = model.graph.initializer
        self.constants = onnx_file.stored_constants(model)
        self.makers = {name: node for node in self.nodes for name in node.output}
        bodies = (inner for node in self.nodes for inner in onnx_file.bodies(node))
        self.ends = {
            *(value.name for value in model.graph.output),
            *(name for body in bodies for name in onnx_file.read(body)),
        }
        self.shapes = {
            value.name: value.type.tensor_type
            for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        }

    def readers(self, name: str) -> list[Any]:
        return [node for node in self.nodes if name in node.input]

    def only_reader(self, name: str) -> Any:
        """The one node that reads a tensor, or None where there are others or it is an output."""
        found = self.readers(name)
        return found[0] if len(found) == 1 and name not in self.ends else None

    def rank(self, name: str) -> int | None:
        kind = self.shapes.get(name)
        return len(kind.shape.dim) if kind is not None and kind.HasField("shape") else None

    def store(self, name: str, values: Any) -> str:
        array = np.asarray(values, order="C")  # a bound of Clip has no axis, and keeps none
        self.stored.append(onnx_file.package().numpy_helper.from_array(array, name))
        self.constants[name] = array
        return name

    def replace(self, node: Any, added: Sequence[_Step]) -> None:
        """Put nodes (operator, inputs, output, attributes) in place of one."""
        place, given = list(self.nodes).index(node), node.name
        self.nodes.remove(node)
        for kind, inputs, output, form in reversed(added):
            name = given if output == added[-1][2] else output
            made = onnx_file.package().helper.make_node(kind, inputs, [output], name, **form)
            self.nodes.insert(place, made)
        self.makers = {name: made for made in self.nodes for name in made.output}


def for_integers(model: Any) -> None:
    """Put every operator of a float model into the form that quantizes best, in place.

    Args:
        model: ``onnx.ModelProto`` with inferred shapes; those of new tensors are inferred by the
            caller.
    """
    graph = _Graph(model)
    forms: dict[str, Callable[[_Graph, Any], None]] = {
        "ReduceMean": _pool,
        "Pad": _pad_by_reader,
        "HardSigmoid": _hard_sigmoid,
        "ConvTranspose": _convolution,
    }
    for node in list(graph.nodes):
        if node.op_type in forms:
            forms[node.op_type](graph, node)
    for node in graph.nodes:
        _bias(graph, node)
    onnx_file.drop_unused(model)


def _pool(graph: _Graph, node: Any) -> None:
    """The mean over all axes behind the channels: GlobalAveragePool."""
    rank = graph.rank(node.input[0])
    axes = onnx_file.attribute(node, "axes", None)
    if len(node.input) > 1:
        axes = graph.constants.get(node.input[1])
    if axes is None or rank is None or rank < 3:
        return
    if sorted(int(axis) % rank for axis in np.ravel(axes)) != list(range(2, rank)):
        return
    output, pooled = node.output[0], node.output[0] + POOLED
    if onnx_file.attribute(node, "keepdims", 1):
        graph.replace(node, [("GlobalAveragePool", [node.input[0]], output, {})])
        return
    steps: list[_Step] = [
        ("GlobalAveragePool", [node.input[0]], pooled, {}),
        ("Flatten", [pooled], output, {"axis": 1}),
    ]
    graph.replace(node, steps)


def _pad_by_reader(graph: _Graph, node: Any) -> None:
    """Zeros around a picture: padding of the convolution or pool that reads them."""
    pads = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    value = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
    reader = graph.only_reader(node.output[0])
    plain = onnx_file.attribute(node, "mode", b"constant") == b"constant"
    if pads is None or value is None or np.any(value) or reader is None or not plain:
        return
    if len(node.input) > 3 and node.input[3]:
        return
    rank = len(pads) // 2
    begin, end = pads[:rank].tolist(), pads[rank:].tolist()
    if any(begin[:2] + end[:2]) or min(begin + end) < 0 or rank < 3:
        return
    if onnx_file.attribute(reader, "auto_pad", b"NOTSET") != b"NOTSET":
        return
    own = list(onnx_file.attribute(reader, "pads", [0] * (2 * (rank - 2))))
    if reader.op_type == "AveragePool" and not any(own):
        _set(reader, "count_include_pad", 1)
    elif reader.op_type == "MaxPool":
        maker = graph.makers.get(node.input[0])
        kernel = onnx_file.attribute(reader, "kernel_shape", [])
        if maker is None or maker.op_type not in _POSITIVE or any(own):
            return
        if len(reader.output) > 1 or any(p >= k for p, k in zip(begin[2:], kernel, strict=True)):
            return
        if any(p >= k for p, k in zip(end[2:], kernel, strict=True)):
            return
    elif reader.op_type != "Conv" or reader.input[0] != node.output[0]:
        return
    _set(reader, "pads", [a + b for a, b in zip(own, begin[2:] + end[2:], strict=True)])
    reader.input[0] = node.input[0]
    graph.nodes.remove(node)


def _hard_sigmoid(graph: _Graph, node: Any) -> None:
    """max(0, min(1, alpha x + beta)): the line goes into the layer before where it can."""
    alpha = float(onnx_file.attribute(node, "alpha", 0.2))
    beta = float(onnx_file.attribute(node, "beta", 0.5))
    x, y = node.input[0], node.output[0]
    numbers = {
        name: graph.store(f"{y}__{name}", np.array(value, np.float32))
        for name, value in (("alpha", alpha), ("beta", beta), ("zero", 0.0), ("one", 1.0))
    }
    ends = [numbers["zero"], numbers["one"]]
    if graph.only_reader(x) is not None and _scale_layer(graph, graph.makers.get(x), alpha, beta):
        graph.replace(node, [("Clip", [x, *ends], y, {})])
        return
    steps: list[_Step] = [
        ("Mul", [x, numbers["alpha"]], f"{y}__scaled", {}),
        ("Add", [f"{y}__scaled", numbers["beta"]], f"{y}__line", {}),
        ("Clip", [f"{y}__line", *ends], y, {}),
    ]
    graph.replace(node, steps)


def _scale_layer(graph: _Graph, layer: Any, alpha: float, beta: float) -> bool:
    """Let a layer with constant weights and bias answer alpha x + beta; False if it cannot."""
    if layer is None or layer.op_type not in ("Conv", "Gemm") or len(layer.input) < 3:
        return False
    weights, bias = (graph.constants.get(name) for name in layer.input[1:3])
    if weights is None or bias is None or onnx_file.attribute(layer, "beta", 1.0) != 1.0:
        return False
    name = layer.output[0]
    layer.input[1] = graph.store(f"{name}__weights", (weights * alpha).astype(weights.dtype))
    layer.input[2] = graph.store(f"{name}__bias", (bias * alpha + beta).astype(bias.dtype))
    return True


def _convolution(graph: _Graph, node: Any) -> None:
    """A transposed convolution of stride s: a convolution that answers s by s pixels a place, put
    side by side (Shi et al. 2016, arXiv 1609.07009), and cut to size."""
    weights = graph.constants.get(node.input[1])
    if weights is None or weights.ndim != 4 or onnx_file.attribute(node, "group", 1) != 1:
        return
    kernel, strides = weights.shape[2:], onnx_file.attribute(node, "strides", [1, 1])
    pads = onnx_file.attribute(node, "pads", [0, 0, 0, 0])
    more = onnx_file.attribute(node, "output_padding", [0, 0])
    other = any(step != 1 for step in onnx_file.attribute(node, "dilations", [1, 1]))
    other |= onnx_file.attribute(node, "auto_pad", b"NOTSET") != b"NOTSET"
    step = strides[0]
    if other or strides != [step, step] or onnx_file.attribute(node, "output_shape", []):
        return
    taps = [-(-size // step) for size in kernel]
    # of the (n + taps - 1) * step rows there are, pads are cut off in front, and behind
    behind = [taps[i] * step - kernel[i] + pads[2 + i] - more[i] for i in (0, 1)]
    if min(behind) < 0:
        return
    inputs, outputs = weights.shape[:2]
    whole = np.zeros((inputs, outputs, taps[0] * step, taps[1] * step), weights.dtype)
    whole[:, :, : kernel[0], : kernel[1]] = weights
    whole = whole.reshape(inputs, outputs, taps[0], step, taps[1], step)[:, :, ::-1, :, ::-1]
    whole = whole.transpose(1, 3, 5, 0, 2, 4).reshape(-1, inputs, *taps)
    name, form = node.output[0], {"pads": [taps[0] - 1, taps[1] - 1] * 2}
    given = [node.input[0], graph.store(f"{name}__weights", whole)]
    if len(node.input) > 2:
        bias = graph.constants.get(node.input[2])
        if bias is None:
            return
        given.append(graph.store(f"{name}__bias", bias.repeat(step * step)))
    cut = any(pads[:2]) or any(behind)
    wide = f"{name}__wide" if cut else name
    steps: list[_Step] = [("Conv", given, f"{name}__dense" if step > 1 else wide, form)]
    if step > 1:
        steps.append(("DepthToSpace", [f"{name}__dense"], wide, {"blocksize": step, "mode": "CRD"}))
    if cut:
        ends = [-size if size else np.iinfo(np.int64).max for size in behind]
        limits = [
            graph.store(f"{name}__{key}", np.array(value, np.int64))
            for key, value in (("from", pads[:2]), ("to", ends), ("axes", [2, 3]))
        ]
        steps.append(("Slice", [wide, *limits], name, {}))
    graph.replace(node, steps)


def _bias(graph: _Graph, node: Any) -> None:
    """A bias of zeros where a layer has none: it can take up the mean error of the weights."""
    if node.op_type not in ("Conv", "Gemm") or len(node.input) != 2:
        return
    weights = graph.constants.get(node.input[1])
    if weights is None:
        return
    turned = node.op_type == "Conv" or onnx_file.attribute(node, "transB", 0)
    zeros = np.zeros(weights.shape[0 if turned else 1], weights.dtype)
    node.input.append(graph.store(f"{node.output[0]}__bias", zeros))


def _set(node: Any, name: str, value: Any) -> None:
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(onnx_file.package().helper.make_attribute(name, value))


def pad_integers(model: Any) -> None:
    """Let padding between DequantizeLinear and QuantizeLinear of one scale pad the integers, in
    place; onnxruntime has the kernel, but does not take the pair out by itself."""
    graph = _Graph(model)

    def numbers(node: Any) -> list[float]:
        return [float(graph.constants[name]) for name in node.input[1:3]]

    for node in [node for node in graph.nodes if node.op_type == "Pad"]:
        before, behind = graph.makers.get(node.input[0]), graph.only_reader(node.output[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        if behind is None or behind.op_type != "QuantizeLinear":
            continue
        if numbers(before) != numbers(behind):
            continue
        inputs = [*node.input, "", ""][:4]
        if onnx_file.attribute(node, "mode", b"constant") == b"constant" and inputs[2]:
            value = graph.makers.get(inputs[2])
            given = graph.constants.get(inputs[2] if value is None else value.input[0])
            zero = 0.0 if value is None else numbers(value)[1]
            if given is None or float(given) != zero:
                continue
        inputs[2] = before.input[2]  # its type has to be that of the numbers, used or not
        del node.input[:]
        node.input.extend(inputs if inputs[3] else inputs[:3])
        node.input[0], node.output[0] = before.input[0], behind.output[0]
        graph.nodes.remove(behind)


def transpose_behind_products(model: Any) -> None:
    """Where a product with a constant matrix reads a transposition of the other axes, turn its
    answer instead, in place.

    onnxruntime 1.31 crashes when it merges such a transposition into a product in float16.
    """
    graph = _Graph(model)
    for node in list(graph.nodes):
        if node.op_type != "MatMul" or graph.constants.get(node.input[1], np.empty(0)).ndim != 2:
            continue
        turn = graph.makers.get(node.input[0])
        order = list(onnx_file.attribute(turn, "perm", [])) if turn is not None else []
        if turn is None or turn.op_type != "Transpose" or order[-1:] != [len(order) - 1]:
            continue
        plain, output = f"{node.output[0]}__plain", node.output[0]
        steps: list[_Step] = [
            ("MatMul", [turn.input[0], node.input[1]], plain, {}),
            ("Transpose", [plain], output, {"perm": order}),
        ]
        graph.replace(node, steps)
        if not graph.readers(turn.output[0]) and turn.output[0] not in graph.ends:
            graph.nodes.remove(turn)
