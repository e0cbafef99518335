"""Operators of a foreign ONNX graph in forms that onnxruntime has integer kernels for.

Each form computes the same numbers, up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgekit.graph import onnx as onnx_file
from edgekit.graph import relative as small_numbers
from edgekit.graph.flatbuffer import GATE, Operator

#: Operator, inputs, output, attributes.
_Step = tuple[str, list[str], str, dict[str, Any]]
#: Operators whose output is never negative.
_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")

#: Operators that need numbers near 0 as exact as large ones, and the inputs that they are of.
_RELATIVE = {"Sqrt": (0,), "Reciprocal": (0,), "Log": (0,), "Pow": (0,), "Div": (1,)}

#: Operators whose first input is handed on.
_MOVING = onnx_file.MOVED | {"Expand"}

#: Ends the name of a mean over height and width before it is flattened.
POOLED = "__pooled"
#: Ends the name of a product to which something computed is added behind it.
LINEAR = "__linear"


class _Graph:
    """A model's graph, with who makes and who reads each tensor; changed in place."""

    def __init__(self, model: Any) -> None:
        self.nodes = model.graph.node
        self.stored = model.graph.initializer
        self.constants = onnx_file.stored_constants(model)
        self.makers = {name: node for node in self.nodes for name in node.output}
        bodies = (inner for node in self.nodes for inner in onnx_file.bodies(node))
        self.outputs = {
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
        readers = self.readers(name)
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def rank(self, name: str) -> int | None:
        kind = self.shapes.get(name)
        return len(kind.shape.dim) if kind is not None and kind.HasField("shape") else None

    def store(self, name: str, values: Any) -> str:
        array = np.asarray(values, order="C")  # a bound of Clip has no axis, and keeps none
        while name in self.constants:
            name += "_"
        self.stored.append(onnx_file.package().numpy_helper.from_array(array, name))
        self.constants[name] = array
        return name

    def take_out(self, node: Any, layer: Any) -> None:
        """Let the layer before a node write what the node wrote."""
        del self.makers[layer.output[0]]
        layer.output[0] = node.output[0]
        self.makers[node.output[0]] = layer
        self.nodes.remove(node)

    def replace(self, node: Any, added: Sequence[_Step]) -> None:
        """Put nodes (operator, inputs, output, attributes) in place of one."""
        place, own_name = list(self.nodes).index(node), node.name
        self.nodes.remove(node)
        for kind, inputs, output, form in reversed(added):
            name = own_name if output == added[-1][2] else output
            added_node = onnx_file.package().helper.make_node(kind, inputs, [output], name, **form)
            self.nodes.insert(place, added_node)
        self.makers = {name: each for each in self.nodes for name in each.output}


def for_integers(model: Any) -> None:
    """Put every operator of a float model into the form that quantizes best, in place.

    Args:
        model: ``onnx.ModelProto`` with inferred shapes; those of new tensors are inferred by the
            caller.
    """
    gemm_instead_of_matmul(model)
    graph = _Graph(model)
    rounds: tuple[dict[str, Callable[[_Graph, Any], None]], ...] = (
        {"ReduceMean": _pool, "Pad": _pad_by_reader, "Div": _by_a_constant, "Sub": _by_a_constant},
        {"BatchNormalization": _normalization, "Mul": _into_layer, "Add": _into_layer},
        {"HardSigmoid": _hard_sigmoid},
        {"ConvTranspose": _whole},
    )
    for forms in rounds:
        for node in list(graph.nodes):
            if node.op_type in forms:
                forms[node.op_type](graph, node)
    for node in list(graph.nodes):
        _bias(graph, node)
    onnx_file.drop_unused(model)


def without_sizes(model: Any) -> tuple[str, ...]:
    """Products with constant matrices that stayed as they are, since the sizes of what they read
    are unknown; by what they write. With a sum behind it such a product computes in float.

    Args:
        model: As :func:`for_integers` leaves it.
    """
    constants, known = onnx_file.stored_constants(model), sizes(model)
    return tuple(
        node.output[0]
        for node in model.graph.node
        if node.op_type == "MatMul"
        and constants.get(node.input[1], np.empty(0)).ndim == 2
        and node.input[0] not in known
    )


def spell_hard_swishes(model: Any) -> None:
    """Write HardSwish as x HardSigmoid(x), in place; onnxruntime does so by names of its own."""
    graph = _Graph(model)
    for node in [node for node in graph.nodes if node.op_type == "HardSwish"]:
        x, y = node.input[0], node.output[0]
        form = {"alpha": 1 / 6, "beta": 0.5}
        graph.replace(node, [("HardSigmoid", [x], y + GATE, form), ("Mul", [x, y + GATE], y, {})])


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
    """ReLU6(6 alpha x + 6 beta) / 6."""
    alpha = float(onnx_file.attribute(node, "alpha", 0.2))
    beta = float(onnx_file.attribute(node, "beta", 0.5))
    x, y = node.input[0], node.output[0]
    steps: list[_Step] = []
    if abs(6 * alpha - 1) > 1e-6:
        factor = graph.store(f"{y}__alpha", np.array(6 * alpha, np.float32))
        steps.append(("Mul", [x, factor], f"{y}__line", {}))
    line, raised, cut = steps[-1][2] if steps else x, f"{y}__raised", f"{y}__cut"
    numbers = [
        graph.store(f"{y}__{name}", np.array(value, np.float32))
        for name, value in (("beta", 6 * beta), ("zero", 0), ("six", 6), ("sixth", 1 / 6))
    ]
    steps += [
        ("Add", [line, numbers[0]], raised, {}),
        ("Clip", [raised, *numbers[1:3]], cut, {}),
        ("Mul", [cut, numbers[3]], y, {}),
    ]
    graph.replace(node, steps)


def _by_a_constant(graph: _Graph, node: Any) -> None:
    """A quotient by a constant is a product, a difference to one is a sum: those have kernels."""
    number = graph.constants.get(node.input[1])
    if number is None or number.dtype != np.float32 or not number.all() and node.op_type == "Div":
        return
    with np.errstate(over="ignore"):
        other = -number if node.op_type == "Sub" else (1 / number).astype(np.float32)
    if not np.isfinite(other).all():
        return
    name, kind = node.output[0], "Add" if node.op_type == "Sub" else "Mul"
    inputs = [node.input[0], graph.store(f"{name}__{kind.lower()}", other)]
    graph.replace(node, [(kind, inputs, name, {})])


def _into_layer(graph: _Graph, node: Any) -> None:
    """A factor or summand, of all channels or one for each, behind a convolution: part of it."""
    fed = [name for name in node.input if name not in graph.constants]
    number = next((graph.constants[name] for name in node.input if name in graph.constants), None)
    if len(fed) != 1 or len(node.input) != 2 or number is None or number.dtype != np.float32:
        return
    layer = graph.makers.get(fed[0])
    if layer is None or layer.op_type not in ("Conv", "ConvTranspose"):
        return
    rank = graph.constants[layer.input[1]].ndim if layer.input[1] in graph.constants else 0
    channels_only = number.size == number.shape[1 - rank] if number.ndim >= rank - 1 > 0 else False
    if number.ndim > rank or not (number.size == 1 or channels_only):
        return
    row = number.reshape(-1).astype(np.float64)
    factor, summand = (row, 0.0) if node.op_type == "Mul" else (1.0, row)
    if graph.only_reader(fed[0]) is node and _take_in(graph, layer, factor, summand):
        graph.take_out(node, layer)


def _take_in(graph: _Graph, layer: Any, factor: Any, summand: Any) -> bool:
    """Let a layer with constant weights write ``factor * x + summand``, one number of both or one
    for each output channel; False if it cannot."""
    if layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    weights = graph.constants.get(layer.input[1])
    stored = [name for name in layer.input[2:] if name]
    bias = graph.constants.get(stored[0]) if stored else np.zeros(1, np.float32)
    if weights is None or bias is None:
        return False
    axis = 0
    if layer.op_type == "ConvTranspose":
        if onnx_file.attribute(layer, "group", 1) != 1:
            return False
        axis = 1
    elif layer.op_type == "Gemm":
        if any(onnx_file.attribute(layer, key, 1.0) != 1.0 for key in ("alpha", "beta")):
            return False
        axis = 0 if onnx_file.attribute(layer, "transB", 0) else 1
    channels = weights.shape[axis]
    if any(np.size(each) not in (1, channels) for each in (factor, summand, bias)):
        return False
    shape = [1] * weights.ndim
    shape[axis] = -1
    whole = weights * np.broadcast_to(factor, channels).reshape(shape)
    row = np.broadcast_to(bias.reshape(-1), channels) * factor + summand
    if not (np.isfinite(whole).all() and np.isfinite(row).all()):
        return False
    name = layer.output[0]
    layer.input[1] = graph.store(f"{name}__weights", whole.astype(np.float32))
    del layer.input[2:]
    layer.input.append(graph.store(f"{name}__bias", row.astype(np.float32)))
    return True


def _normalization(graph: _Graph, node: Any) -> None:
    """A batch normalisation that no layer took in: part of the transposed convolution or product
    before, or a factor and a summand."""
    numbers = [graph.constants.get(name) for name in node.input[1:5]]
    if any(each is None for each in numbers) or len(node.output) > 1:
        return
    scale, offset, mean, variance = (np.asarray(each, np.float64) for each in numbers)
    factor = scale / np.sqrt(variance + onnx_file.attribute(node, "epsilon", 1e-5))
    summand, name, layer = offset - mean * factor, node.output[0], graph.makers.get(node.input[0])
    if graph.only_reader(node.input[0]) is node and _take_in(graph, layer, factor, summand):
        graph.take_out(node, layer)
        return
    rank = graph.rank(node.input[0])
    if rank is None:
        return
    sizes = (-1, *[1] * (rank - 2))
    stored = [
        graph.store(f"{name}__{label}", each.astype(np.float32).reshape(sizes))
        for label, each in (("factor", factor), ("summand", summand))
    ]
    steps: list[_Step] = [
        ("Mul", [node.input[0], stored[0]], f"{name}__scaled", {}),
        ("Add", [f"{name}__scaled", stored[1]], name, {}),
    ]
    graph.replace(node, steps)


def _whole(graph: _Graph, node: Any) -> None:
    """A transposed convolution in groups, or whose borders are cut off: one convolution for each
    group, whose whole outputs are put side by side, and a Slice."""
    weights = graph.constants.get(node.input[1])
    bias = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if weights is None or weights.ndim < 3 or (len(node.input) > 2 and bias is None):
        return
    groups, spatial = onnx_file.attribute(node, "group", 1), weights.ndim - 2
    pads = list(onnx_file.attribute(node, "pads", [0] * (2 * spatial)))
    more = onnx_file.attribute(node, "output_padding", [0] * spatial)
    behind = [end - extra for end, extra in zip(pads[spatial:], more, strict=True)]
    automatic = onnx_file.attribute(node, "auto_pad", b"NOTSET") != b"NOTSET"
    if automatic or onnx_file.attribute(node, "output_shape", []) or min(behind) < 0:
        return
    name, cut = node.output[0], any(pads) or any(more)
    if not cut and groups == 1:
        return
    whole = f"{name}__whole" if cut else name
    form = {key: onnx_file.attribute(node, key, [1] * spatial) for key in ("strides", "dilations")}
    steps: list[_Step] = []
    parts = [whole] if groups == 1 else [f"{name}__part_{i}" for i in range(groups)]
    own = len(weights) // groups
    for i, part in enumerate(parts):
        source = node.input[0]
        if groups > 1:
            source = f"{name}__group_{i}"
            limits = [
                graph.store(f"{source}__{key}", np.array([value], np.int64))
                for key, value in (("from", i * own), ("to", (i + 1) * own), ("axes", 1))
            ]
            steps.append(("Slice", [node.input[0], *limits], source, {}))
        operands = [source, graph.store(f"{part}__weights", weights[i * own : (i + 1) * own])]
        if bias is not None:
            operands.append(graph.store(f"{part}__bias", bias.reshape(groups, -1)[i]))
        steps.append(("ConvTranspose", operands, part, form))
    if groups > 1:
        steps.append(("Concat", parts, whole, {"axis": 1}))
    if cut:
        stops = [-size if size else np.iinfo(np.int64).max for size in behind]
        limits = [
            graph.store(f"{name}__{key}", np.array(value, np.int64))
            for key, value in (
                ("from", pads[:spatial]), ("to", stops), ("axes", list(range(2, 2 + spatial))),
            )
        ]  # fmt: skip
        steps.append(("Slice", [whole, *limits], name, {}))
    graph.replace(node, steps)


def _bias(graph: _Graph, node: Any) -> None:
    """A bias of one number for each output channel, and of zeros where a layer has none: it can
    take up the mean error of the weights."""
    if node.op_type not in ("Conv", "Gemm"):
        return
    weights = graph.constants.get(node.input[1])
    if weights is None:
        return
    if len(node.input) > 2 and not node.input[2]:
        del node.input[2]
    name = node.output[0]
    turned = node.op_type == "Conv" or onnx_file.attribute(node, "transB", 0)
    zeros = np.zeros(weights.shape[0 if turned else 1], weights.dtype)
    bias = graph.constants.get(node.input[2]) if len(node.input) > 2 else zeros
    if bias is None:
        _computed_summand(graph, node, zeros)
        return
    if node.op_type == "Gemm":
        alpha, beta = (float(onnx_file.attribute(node, key, 1.0)) for key in ("alpha", "beta"))
        if alpha != 1.0:
            scaled = (weights * alpha).astype(weights.dtype)
            node.input[1] = graph.store(f"{name}__weights", scaled)
        bias = (bias * beta).astype(weights.dtype)
        for key in ("alpha", "beta"):
            _set(node, key, 1.0)
    if bias.ndim > 1 and bias.shape[0] != 1:  # one number for each row as well: no bias
        product = name + LINEAR
        add = onnx_file.package().helper.make_node(
            "Add", [product, graph.store(f"{name}__summand", bias)], [name], f"{name}__add"
        )
        graph.nodes.insert(list(graph.nodes).index(node) + 1, add)
        node.output[0], bias = product, zeros
    row = np.broadcast_to(bias.reshape(-1), zeros.shape)
    same = len(node.input) > 2 and graph.constants.get(node.input[2]) is not None
    if same and np.array_equal(graph.constants[node.input[2]], row):
        return
    del node.input[2:]
    node.input.append(graph.store(f"{node.output[0]}__bias", row))


def _computed_summand(graph: _Graph, node: Any, zeros: Any) -> None:
    """Let an Add behind a Gemm with constant weights add what the Gemm adds."""
    if node.op_type != "Gemm" or onnx_file.attribute(node, "beta", 1.0) != 1.0:
        return
    name, alpha = node.output[0], float(onnx_file.attribute(node, "alpha", 1.0))
    weights = node.input[1]
    if alpha != 1.0:
        scaled = (graph.constants[weights] * alpha).astype(np.float32)
        weights = graph.store(f"{name}__weights", scaled)
    form = {key: onnx_file.attribute(node, key, 0) for key in ("transA", "transB")}
    inputs = [node.input[0], weights, graph.store(f"{name}__bias", zeros)]
    steps: list[_Step] = [
        ("Gemm", inputs, name + LINEAR, form),
        ("Add", [name + LINEAR, node.input[2]], name, {}),
    ]
    graph.replace(node, steps)


def gemm_instead_of_matmul(model: Any) -> None:
    """A product with a constant matrix, then a constant summand: one Gemm with a bias, in place.

    Gemm takes matrices only: what has more axes is brought to two for it, and back.
    """
    onnx = onnx_file.package()
    constants = onnx_file.stored_constants(model)
    shapes = sizes(model)
    outputs = {value.name for value in model.graph.output}

    def store(name: str, array: Any) -> str:
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    for node in list(model.graph.node):
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        shape = shapes.get(node.input[0])
        if constants[node.input[1]].ndim != 2 or shape is None or len(shape) < 2:
            continue
        width, channels = constants[node.input[1]].shape
        users = [other for other in model.graph.node if node.output[0] in other.input]
        inputs, output, add = list(node.input), node.output[0], None
        if len(users) == 1 and users[0].op_type == "Add" and output not in outputs:
            summand = next((name for name in users[0].input if name != output), "")
            bias = constants.get(summand, np.empty(0))
            if bias.size == channels and bias.shape[-1:] == (channels,):
                if bias.ndim > 1:
                    summand = store(f"{summand}__of_{users[0].output[0]}", bias.reshape(-1))
                add, inputs, output = users[0], [*inputs, summand], users[0].output[0]
        make = onnx.helper.make_node
        nodes = [make("Gemm", inputs, [output], name=node.name)]
        if len(shape) != 2:
            flat = [f"{output}__flat_input", f"{output}__flat"]
            flattened = store(f"{flat[0]}_shape", np.array([-1, width], np.int64))
            leading = shape[:-1] if -1 in shape[:-1] else (-1, *shape[1:-1])
            whole = store(f"{flat[1]}_shape", np.array([*leading, channels], np.int64))
            nodes = [
                make("Reshape", [inputs[0], flattened], [flat[0]], name=flat[0]),
                make("Gemm", [flat[0], *inputs[1:]], [flat[1]], name=node.name),
                make("Reshape", [flat[1], whole], [output], name=f"{output}__whole"),
            ]
        position = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        for each in reversed(nodes):
            model.graph.node.insert(position, each)
        if add is not None:
            model.graph.node.remove(add)


def sizes(model: Any) -> dict[str, tuple[int, ...]]:
    """Sizes of the tensors that ONNX can tell them of; one free axis is -1."""
    inferred = onnx_file.package().shape_inference.infer_shapes(model).graph
    shapes = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        axes = value.type.tensor_type.shape.dim
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in axes)
        if value.type.tensor_type.HasField("shape") and shape.count(-1) < 2:
            shapes[value.name] = shape
    return shapes


def relative(model: Any) -> frozenset[str]:
    """Names of nodes whose numbers neither 8 bits nor float16 hold: variances, spectra, and the
    factors that are computed from them.

    That is what only roots, logarithms, powers and divisors read, through whatever lies between,
    and what reads a root or a reciprocal.
    """
    graph = _Graph(model)
    wired = [Operator(n.op_type, tuple(n.input), tuple(n.output)) for n in graph.nodes]
    small = small_numbers.operators(wired, frozenset(graph.outputs), _RELATIVE)
    names = {graph.nodes[position].name for position in small}
    factors: set[str] = set()
    for node in graph.nodes:
        known = [name in factors or name in graph.constants for name in node.input if name]
        if node.op_type in ("Sqrt", "Reciprocal"):
            factors.update(node.output)
        elif not factors.isdisjoint(node.input):
            names.add(node.name)
            first = node.op_type in _MOVING and node.input[0] in factors
            if first or (all(known) and node.op_type in ("Mul", "Add", "Div", "Reciprocal")):
                factors.update(node.output)
    return frozenset(names)


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
            padding = graph.constants.get(inputs[2] if value is None else value.input[0])
            zero = 0.0 if value is None else numbers(value)[1]
            if padding is None or float(padding) != zero:
                continue
        inputs[2] = before.input[2]  # its type has to be that of the numbers, used or not
        del node.input[:]
        node.input.extend(inputs if inputs[3] else inputs[:3])
        node.input[0], node.output[0] = before.input[0], behind.output[0]
        graph.nodes.remove(behind)


def transpose_behind_products(model: Any) -> None:
    """Where a product with a constant matrix reads a transposition of the other axes, turn its
    output instead, in place.

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
        if not graph.readers(turn.output[0]) and turn.output[0] not in graph.outputs:
            graph.nodes.remove(turn)
