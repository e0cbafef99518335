"""Find the tensors of the canonical graph in an ONNX model, to read and to feed them.

ONNX keeps images channels first, an int8 file keeps a tensor as integers behind a QuantizeLinear,
and inputs and outputs have the names of the signature. Here all tensors have the names and the
layout of the canonical graph.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph, Operator

#: ONNX operators whose output has its channels first, by specification.
_FIRST = frozenset(
    "Conv ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool BatchNormalization "
    "DepthToSpace SpaceToDepth".split()
)
#: Operators behind which the order of axes is that of the canonical graph.
_OWN = frozenset("Reshape Flatten Unsqueeze Gemm MatMul".split())
#: Operators that leave axes out, or sizes of 1 in their place.
_FEWER = frozenset("Squeeze ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL2".split())
_FED = "__given"
#: What is added to an int8 zero point.
_INTEGERS = {np.int8: 0, np.uint8: 128}
_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 10: np.float16}


@dataclass(frozen=True)
class Place:
    """Where a canonical tensor is.

    Attributes:
        tensor: Name in the ONNX model of what holds its values, real or integer.
        named: Name of the real values, as a viewer shows them.
        dtype: Dtype of the values.
        sizes: Sizes of the axes behind the batch.
        order: Order of the canonical axes, as the model has them: ``(0, 3, 1, 2)`` where channels
            come first; as many as both have. Empty where the number of axes is another one: both
            hold the same values in the same order then.
        encoding: (scale, int8 zero_point), or None of real values that nothing has rounded. It is
            what the first reader takes: if the writer used other numbers, the writer's layer is
            wrong. Real values may be rounded too, as those of an output are.
    """

    tensor: str
    named: str
    dtype: Any
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    encoding: tuple[float, int] | None

    def real(self, values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Real values ``[N, ...]`` in the canonical layout ``shape``, of which N is ignored."""
        if self.encoding is not None and self.dtype in _INTEGERS:
            scale, zero_point = self.encoding
            zero_point += _INTEGERS[self.dtype]
            values = (values.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)
        values = values.astype(np.float32, copy=False)
        if self.order:
            values = values.transpose(_inverse(self.order))
        return np.ascontiguousarray(values).reshape(len(values), *shape[1:])

    def arranged(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values in the canonical layout with the axes as the model has them."""
        return values.transpose(self.order) if self.order else values

    def own(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """What this tensor holds for real values ``[N, ...]`` in the canonical layout."""
        values = self.arranged(values)
        if self.encoding is not None and self.dtype in _INTEGERS:
            scale, zero_point = self.encoding
            zero_point += _INTEGERS[self.dtype]
            limits = np.iinfo(self.dtype)
            values = np.clip(
                np.rint(values / np.float32(scale)) + zero_point, limits.min, limits.max
            )
        whole = np.ascontiguousarray(values).astype(self.dtype)
        return whole.reshape(len(values), *self.sizes)


def places(
    model: Any, graph: Graph, orders: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Place]:
    """Find the canonical tensors of a model.

    Args:
        model: ``onnx.ModelProto``, float or with QuantizeLinear and DequantizeLinear.
        graph: Canonical.
        orders: For the graph of an ONNX source: axes of each value, in the order in which the
            canonical tensor of the same name has them.

    Returns:
        By canonical name; a tensor that the model does not have, or has in another size, is left
        out.
    """
    constants = onnx.stored_constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    outer_names = dict(zip((value.name for value in model.graph.input), graph.inputs, strict=False))
    outer_names.update(
        zip((value.name for value in model.graph.output), graph.outputs, strict=False)
    )
    canonical_tensors, shapes = set(graph.tensors), _shapes(model)

    readers = {
        node.input[0]: node
        for node in reversed(model.graph.node)
        if node.op_type == "DequantizeLinear"
    }
    behind = {  # a tensor that is named once it is rounded
        node.input[0]: readers[node.output[0]].output[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.output[0] in readers
    }

    def canonical(name: str) -> str:
        own = name if orders is not None else str(outer_names.get(name, name))
        if own in (canonical_tensors if orders is None else orders):
            return own
        rounded = behind.get(name, name)
        return rounded if orders is not None else str(outer_names.get(rounded, rounded))

    chosen: dict[str, tuple[str, str, tuple[float, int] | None]] = {}
    moved: dict[str, tuple[str, str, tuple[float, int] | None]] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        source, maker = node.input[0], makers.get(node.input[0])
        encoding = _encoding(readers.get(node.output[0], node), constants)
        if canonical(source) in canonical_tensors:
            named = behind.get(source, source)
            named = named if canonical(named) in canonical_tensors else source
            chosen.setdefault(canonical(source), (node.output[0], named, encoding))
        elif orders is None and maker is not None and maker.op_type in ("Reshape", "Transpose"):
            moved.setdefault(canonical(maker.input[0]), (node.output[0], source, encoding))
    for node in model.graph.node:  # what pads integers, say
        maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if maker is not None and maker.op_type != "QuantizeLinear":
            name, encoding = node.output[0], _encoding(node, constants)
            chosen.setdefault(canonical(name), (node.input[0], name, encoding))
    input_names = [value.name for value in model.graph.input]
    for name in [*input_names, *(output for node in model.graph.node for output in node.output)]:
        maker = makers.get(name)
        if maker is None or maker.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            chosen.setdefault(canonical(name), moved.get(canonical(name), (name, name, None)))
    traced, placed = {} if orders is not None else _orders(model, graph, shapes, canonical), {}
    for name, (tensor, named, stored) in chosen.items():
        if (
            name not in canonical_tensors
            or tensor not in shapes
            or (orders is not None and name not in orders)
        ):
            continue
        (kind, sizes), shape = shapes[tensor], graph.shape(name)
        order: tuple[int, ...] | None = tuple(range(len(shape)))
        if orders is not None:
            order = tuple(_inverse(orders[name]))
        else:
            order = _fitting(traced.get(tensor, order), (1, *sizes), (1, *shape[1:]))
        stored = stored or _rounded(tensor, makers, constants)
        if order is not None:
            placed[name] = Place(tensor, named, kind, sizes, order, stored)
    return placed


def own_places(model: Any) -> dict[str, Place]:
    """Every float tensor that a model computes by its own name, as it is laid out there."""
    shapes = _shapes(model)
    names = [name for node in model.graph.node for name in node.output]
    return {
        name: Place(name, name, *shapes[name], (), None)
        for name in dict.fromkeys(names)
        if name in shapes and shapes[name][0] in (np.float32, np.float16)
    }


def watched(model: Any, placed: Mapping[str, Place]) -> bytes:
    """The model with every place as an output."""
    watched_model = copy.deepcopy(model)
    _put_outputs(watched_model, placed)
    return bytes(watched_model.SerializeToString())


def cut(model: Any, placed: Mapping[str, Place]) -> bytes:
    """The model cut at every place: what reads a tensor is fed, what writes it is an output.

    One run then computes every layer from inputs of its own. What is fed has the name that
    :func:`fed` says.
    """
    helper = onnx.package().helper
    cut_model = copy.deepcopy(model)
    input_names = {value.name for value in cut_model.graph.input}
    inner = {place.tensor: place for place in placed.values() if place.tensor not in input_names}
    for node in cut_model.graph.node:
        for i, name in enumerate(node.input):
            if name in inner:
                node.input[i] = name + _FED
    kinds = {dtype: number for number, dtype in _DTYPES.items()}
    read = {name for node in cut_model.graph.node for name in node.input}
    for name, place in inner.items():
        if name + _FED in read:
            cut_model.graph.input.append(
                helper.make_tensor_value_info(
                    name + _FED, kinds[place.dtype], ["batch", *place.sizes]
                )
            )
    _put_outputs(cut_model, placed)
    return bytes(cut_model.SerializeToString())


def fed(place: Place) -> str:
    """Name under which a cut model takes what this place holds."""
    return place.tensor + _FED


def _put_outputs(model: Any, placed: Mapping[str, Place]) -> None:
    input_names = {value.name for value in model.graph.input}
    del model.graph.output[:], model.graph.value_info[:]
    for name in dict.fromkeys(place.tensor for place in placed.values()):
        if name not in input_names:
            model.graph.output.add().name = name


def channels_first(model: Any) -> set[str]:
    """Tensors whose channels come before height and width."""
    tensors: set[str] = set()
    for node in model.graph.node:
        if node.op_type in _FIRST:
            first = True
        elif node.op_type == "Transpose":
            first = any(list(attribute.ints) == [0, 3, 1, 2] for attribute in node.attribute)
        elif node.op_type in _OWN:
            first = False
        else:
            first = any(name in tensors for name in node.input)
        if first:
            tensors.update(node.output)
    return tensors


def _orders(
    model: Any,
    graph: Graph,
    shapes: Mapping[str, tuple[Any, tuple[int, ...]]],
    canonical: Callable[[str], str],
) -> dict[str, tuple[int, ...] | None]:
    """Order in which each tensor has the axes of its canonical twin, as its operators say.

    A Transpose whose twin is one moves axes as that does, and what it does beyond that is a change
    of layout; so is all that a Transpose without a twin does. None where the canonical graph turns
    axes between the twins of what a node reads and of what it writes, and the node does not.
    """
    constants = onnx.stored_constants(model)
    makers = {name: operator for operator in graph.operators for name in operator.outputs}
    twins = {value.name: {canonical(value.name)} for value in model.graph.input}
    orders: dict[str, tuple[int, ...] | None] = {}
    settled: set[str] = set()  # parts of a canonical operator, whose axes the node itself orders
    for node in model.graph.node:
        read: set[str] = set().union(*(twins.get(name, set()) for name in node.input))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            twins[node.output[0]] = read
            if node.input[0] in orders:
                orders[node.output[0]] = orders[node.input[0]]
            if node.input[0] in settled:
                settled.add(node.output[0])
            continue
        part = not settled.isdisjoint(node.input)
        for output in node.output:
            twin = canonical(output)
            twins[output] = {twin} if twin in makers else read
            if twin not in makers and (part or node.op_type in (*_FIRST, *_OWN)):
                settled.add(output)
            if output not in shapes:
                continue
            rank = 1 + len(shapes[output][1])
            order = _order(node, rank, orders, constants)
            maker = makers.get(twin)
            own = part and maker is not None and maker.kind != "TRANSPOSE"
            if maker and not own and node.op_type not in _OWN and _turns(makers, twin, read):
                meant = _turn(graph, maker)
                if node.op_type != "Transpose" or len(meant) != rank or maker.inputs[0] not in read:
                    order = None
                elif order is not None:
                    order = tuple(meant.index(axis) for axis in order)
            orders[output] = order
    return orders


def _turn(graph: Graph, operator: Operator) -> tuple[int, ...]:
    """How a TRANSPOSE of the canonical graph moves axes; empty for another operator."""
    if operator.kind != "TRANSPOSE" or not graph.is_constant(operator.inputs[1]):
        return ()
    return tuple(graph.constant(operator.inputs[1]).tolist())


def _turns(makers: Mapping[str, Operator], name: str, read: Collection[str]) -> bool:
    """Whether a TRANSPOSE lies between a canonical tensor and those that it is made from."""
    waiting, reached = [name], {name}
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is None:
            continue
        if maker.kind == "TRANSPOSE":
            return True
        waiting += [
            source for source in maker.inputs if source not in read and source not in reached
        ]
        reached.update(maker.inputs)
    return False


def _order(
    node: Any,
    rank: int,
    orders: Mapping[str, tuple[int, ...] | None],
    constants: Mapping[str, npt.NDArray[Any]],
) -> tuple[int, ...] | None:
    """Order of the ``rank`` axes of what a node writes, by those of what it reads."""
    own = tuple(range(rank))
    if node.op_type in _FIRST:
        return (0, rank - 1, *own[1:-1])
    if node.op_type in _OWN:
        return own
    if any(name in orders and orders[name] is None for name in node.input):
        return None
    read_orders = {name: order for name in node.input if (order := orders.get(name)) is not None}
    if node.op_type == "Transpose":
        turned = onnx.attribute(node, "perm", own[::-1])
        before = read_orders.get(node.input[0], own)
        return tuple(before[axis] for axis in turned)
    before = read_orders.get(node.input[0], ())
    if node.op_type in _FEWER and len(before) > rank:
        axes = onnx.attribute(node, "axes", None)
        if axes is None and len(node.input) > 1:
            axes = constants.get(node.input[1])
        left_out = {int(axis) % len(before) for axis in ([] if axes is None else axes)}
        left = [axis for i, axis in enumerate(before) if i not in left_out]
        return tuple(sorted(left).index(axis) for axis in left) if len(left) == rank else own
    return next(
        (order for order in read_orders.values() if order != own and len(order) == rank), own
    )


def _fitting(
    expected: tuple[int, ...] | None, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The order of axes that makes ``sizes`` of ``shape``: the expected one, or the only one.

    Returns:
        Empty where the axes are others, and only all values in order the same, as a Reshape makes
        them; None where it is unknown: such a tensor is not compared.
    """
    if int(np.prod(sizes)) != int(np.prod(shape)):
        return None
    own = tuple(range(len(shape)))
    if len(sizes) != len(shape) or (expected == own and sizes != shape):
        return ()
    orders = ((0, *axes) for axes in itertools.permutations(own[1:]))
    fitting = {order for order in orders if tuple(shape[axis] for axis in order) == sizes}
    if expected in fitting:
        return expected
    return next(iter(fitting)) if len(fitting) == 1 else None


def _rounded(
    name: str, makers: Mapping[str, Any], constants: Mapping[str, Any]
) -> tuple[float, int] | None:
    """(scale, zero_point) of the integers that a tensor of real values is nothing else than."""
    maker = makers.get(name)
    while maker is not None and maker.op_type in onnx.MOVED:
        maker = makers.get(maker.input[0])
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    return _encoding(maker, constants)


def _encoding(node: Any, constants: Mapping[str, Any]) -> tuple[float, int] | None:
    """(scale, int8 zero_point) of a QuantizeLinear or DequantizeLinear; None if it has many, or
    other integers."""
    scale, zero_point = (constants.get(name) for name in node.input[1:3])
    if scale is None or zero_point is None or scale.size != 1:
        return None
    if zero_point.dtype.type not in _INTEGERS:
        return None
    return float(scale), int(zero_point) - _INTEGERS[zero_point.dtype.type]


def _inverse(order: tuple[int, ...]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _shapes(model: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """(dtype, sizes behind the batch) of every tensor whose sizes are known."""
    inferred = onnx.package().shape_inference.infer_shapes(model)
    shapes = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.elem_type in _DTYPES and sizes and -1 not in sizes[1:]:
            shapes[value.name] = (_DTYPES[kind.elem_type], tuple(sizes[1:]))
    return shapes
