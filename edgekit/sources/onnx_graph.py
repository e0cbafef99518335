"""The canonical graph of a float ONNX model, without TensorFlow.

ONNX has channels first, the canonical graph has them last. A tensor of three or more axes can be
there in either order; what must have channels last asks for them so, what does not care takes what
is there, and a TRANSPOSE stands only where neither is possible. Sizes come from one run of the
model: whatever does not depend on the inputs (sizes that a graph computes, constants behind
constants) is stored as that run gave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from edgekit.base.errors import InvalidModelError, reason
from edgekit.graph import kernels, plain_tflite
from edgekit.graph.flatbuffer import BOUNDS, WEIGHTS
from edgekit.graph.onnx_forms import LINEAR
from edgekit.graph.plain import ACTIVATIONS, Array, Graph, Operator, Tensor

Order = tuple[int, ...]
_FLOAT = np.dtype(np.float32)
_MOST_AXES = 6


@dataclass(frozen=True)
class Node:
    """An operator of the ONNX graph.

    Attributes:
        kind: ONNX's name.
        name: Name of the node; name of its output if it has none.
        inputs: Names of values; ``""`` for one that is left out.
        outputs: Names of values.
        attributes: Plain values by name.
        opset: The operator set that it is of.
        captured: Names of values that the graphs in it read, beside the inputs.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    captured: tuple[str, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def has(self, place: int) -> bool:
        """Whether an input is given."""
        return len(self.inputs) > place and bool(self.inputs[place])

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Traced:
    """An ONNX graph with the values of one run.

    Attributes:
        nodes: In order of execution.
        constants: Stored values by name.
        values: What each value was in the run, by name; inputs too.
        inputs: Names, in the order of the file.
        outputs: The same.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    values: Mapping[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def convert(
    traced: Traced, *, channels_last: Collection[str] = (), kept: Mapping[str, Any] | None = None
) -> tuple[Graph, dict[str, Order], dict[str, tuple[str, ...]]]:
    """Convert a graph.

    Args:
        traced: With the values of a run on one sample.
        channels_last: Inputs and outputs whose channels lie last in the canonical graph.
        kept: Encodings of values that no operator may be merged over.

    Returns:
        The graph; the order in which each tensor that is a value of the file has the axes of
        that value, where both have one name; and all tensors that hold a value.

    Raises:
        InvalidModelError: If an operator has no TFLite form; names it and its node.
    """
    kept = kept or {}
    converter = _Converter(traced, frozenset(channels_last), kept)
    for name in traced.inputs:
        converter.input(name)
    for node in traced.nodes:
        converter.emit(node)
    for name in traced.outputs:
        converter.finish_output(name)
    graph = converter.graph
    plain_tflite.fold(graph)
    held = {
        name: tuple(dict.fromkeys(value.tensors.values()))
        for name, value in converter.computed.items()
    }
    own = {tensor for name in kept for tensor in held.get(name, ())}
    _fuse_activations(graph, own)
    graph.drop_unused()
    orders = {
        name: order or tuple(range(len(graph.shape(name))))
        for name, value in converter.computed.items()
        for order, tensor in value.tensors.items()
        if tensor == name and name in graph.tensors
    }
    there = {name: tuple(n for n in names if n in graph.tensors) for name, names in held.items()}
    return graph, orders, there


#: The operator can have an activation of :data:`flatbuffer.BOUNDS`.
_FUSING = frozenset("CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED ADD SUB MUL".split())


def _fuse_activations(graph: Graph, kept: Collection[str]) -> None:
    """Put each activation into the operator before it, if nothing else reads that and it is not
    kept, in place."""
    readers, makers = graph.readers(), graph.makers()
    outputs = {*graph.outputs.values(), *kept}
    for operator in list(graph.operators):
        if operator.kind not in BOUNDS:
            continue
        source, name = operator.inputs[0], operator.output
        before = makers.get(source)
        if before is None or before.kind not in _FUSING or before.activation != "NONE":
            continue
        if len(readers.get(source, [])) != 1 or source in outputs or len(before.outputs) != 1:
            continue
        fused = replace(before, outputs=(name,)).having(
            fusedActivationFunction=ACTIVATIONS.index(operator.kind)
        )
        graph.operators[graph.operators.index(before)] = fused
        graph.operators.remove(operator)
        makers[name] = fused


def last(rank: int) -> Order:
    """Axes of a tensor with its channels first in the order that puts them last."""
    return (0, *range(2, rank), 1)


@dataclass
class _Value:
    """A value that is computed.

    Attributes:
        tensors: Canonical tensor by the order of the ONNX axes that it has.
    """

    tensors: dict[Order, str] = field(default_factory=dict)


class _Converter:
    def __init__(
        self, traced: Traced, channels_last: frozenset[str], kept: Mapping[str, Any]
    ) -> None:
        self.traced, self.channels_last, self.kept = traced, channels_last, kept
        self.graph = Graph({}, [], {}, {})
        self.static: dict[str, Array] = dict(traced.constants)
        self.computed: dict[str, _Value] = {}
        self.readers: dict[str, list[Node]] = {}
        for node in traced.nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)
        self.done: set[str] = set()

    # --- values

    def shape(self, name: str) -> tuple[int, ...]:
        return self.value(name).shape

    def value(self, name: str) -> Array:
        """A value as the run had it."""
        if name in self.static:
            return self.static[name]
        if name not in self.traced.values:
            raise InvalidModelError(f"the size of {name} is not known")
        return self.traced.values[name]

    def is_static(self, name: str) -> bool:
        return name in self.static

    def constant(self, node: Node, place: int) -> Array:
        """A stored input.

        Raises:
            InvalidModelError: If it is computed from the model's inputs.
        """
        name = node.inputs[place]
        if name not in self.static:
            raise InvalidModelError(
                f"{node} takes {name} from a computation; expected stored numbers"
            )
        return self.static[name]

    def put(self, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> str:
        tensor = Tensor(self.graph.free_name(name), tuple(map(int, shape)), _narrow(dtype))
        return self.graph.put(tensor)

    def store(self, name: str, array: Array) -> str:
        """A stored tensor; int64 becomes int32 where its values fit."""
        whole = np.asarray(array, order="C")
        kind = _narrow(whole.dtype)
        if kind != whole.dtype:
            whole = _narrowed(whole, name)
        return self.graph.add_constant(name, whole)

    def integers(self, name: str, numbers: Sequence[int]) -> str:
        return self.graph.add_constant(name, np.array(list(numbers), np.int32))

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str,
        shape: Sequence[int],
        *,
        dtype: np.dtype[Any] = _FLOAT,
        form: str = "",
        version: int = 1,
        **options: Any,
    ) -> str:
        """Append an operator with one output; returns its name: ``output``, with a number if that
        is not free."""
        name = self.put(output, shape, dtype)
        self.graph.operators.append(
            Operator(kind, tuple(inputs), (name,), MappingProxyType(options), form, version)
        )
        return name

    def input(self, name: str) -> None:
        array = self.traced.values[name]
        rank = array.ndim
        order: Order = last(rank) if name in self.channels_last and rank > 2 else ()
        tensor = self.put(name, _turned(array.shape, order), array.dtype)
        self.graph.inputs[name] = tensor
        self.computed[name] = _Value({order: tensor})

    def finish_output(self, name: str) -> None:
        rank = len(self.shape(name))
        order: Order = last(rank) if name in self.channels_last and rank > 2 else ()
        tensor = self.get(name, order)
        if self.graph.is_constant(tensor):
            raise InvalidModelError(f"the output {name} is the same for every input")
        self.graph.outputs[name] = tensor

    def orders(self, name: str) -> list[Order]:
        return list(self.computed[name].tensors) if name in self.computed else []

    def only_order(self, name: str) -> Order:
        """Channels last where a value is there in that order alone; else the file's."""
        rank = len(self.shape(name))
        return last(rank) if rank > 2 and self.orders(name) == [last(rank)] else ()

    def get(self, name: str, order: Order = ()) -> str:
        """The canonical tensor of a value in an order of axes."""
        if name in self.static:
            array = self.static[name]
            return self.store(name, array.transpose(order) if order else array)
        there = self.computed[name].tensors
        if order not in there:
            before, tensor = next(iter(there.items()))
            rank = len(self.shape(name))
            axes = before or tuple(range(rank))
            target = order or tuple(range(rank))
            perm = [axes.index(axis) for axis in target]
            shape = [self.graph.shape(tensor)[axis] for axis in perm]
            label = f"{name}__{'last' if order else 'first'}"
            maker = next((o for o in reversed(self.graph.operators) if tensor in o.outputs), None)
            if maker is not None and maker.kind == "TRANSPOSE":  # one turn in place of two
                before_it = self.graph.constant(maker.inputs[1])
                tensor, perm = maker.inputs[0], [int(before_it[axis]) for axis in perm]
            if _only_ones_move(self.graph.shape(tensor), perm):
                there[order] = self.reshape(tensor, label, shape)
            else:
                operands = [tensor, self.integers(f"{label}_perm", perm)]
                dtype = self.graph[tensor].dtype
                there[order] = self.add(
                    "TRANSPOSE", operands, label, shape, dtype=dtype, form="TransposeOptions"
                )
        return there[order]

    def reshape(self, tensor: str, name: str, shape: Sequence[int]) -> str:
        sizes = self.integers(f"{name}__shape", shape)
        return self.add(
            "RESHAPE",
            [tensor, sizes],
            name,
            shape,
            dtype=self.graph[tensor].dtype,
            form="ReshapeOptions",
            newShape=np.array(list(shape), np.int32),
        )

    def set(self, node: Node, tensor: str, order: Order = (), place: int = 0) -> None:
        """Say which tensor is a node's output, and call it as the node does."""
        name = node.outputs[place]
        if tensor != name and name not in self.graph.tensors and not self._fed(tensor):
            self.graph.rename({tensor: name})
            for value in self.computed.values():
                value.tensors = {o: name if t == tensor else t for o, t in value.tensors.items()}
            tensor = name
        self.computed[name] = _Value({order: tensor})

    def _fed(self, tensor: str) -> bool:
        return any(tensor in value.tensors.values() for value in self.computed.values())

    # --- orders of axes

    def shared(self, node: Node, places: Sequence[int] | None = None) -> Order:
        """The order to compute in, for an operator that does not care."""
        rank = len(self.shape(node.outputs[0]))
        if rank < 3:
            return ()
        channels_last = last(rank)
        names = node.inputs if places is None else [node.inputs[i] for i in places]
        computed = [name for name in names if name and name in self.computed]
        whole = [name for name in computed if len(self.shape(name)) == rank]
        if any(channels_last in self.orders(n) for n in whole) and any(
            () not in self.orders(n) for n in whole
        ):
            return channels_last
        return ()

    def operand(self, node: Node, place: int, order: Order) -> str:
        """An input of an operator that broadcasts, in the output's number of axes where needed."""
        name, rank = node.inputs[place], len(self.shape(node.outputs[0]))
        shape = self.shape(name)
        if not order:
            return self.get(name)
        if name in self.static:
            array = self.static[name]
            if array.ndim:
                array = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(order)
                while array.ndim > 1 and array.shape[0] == 1:
                    array = array[0]
            return self.store(name, array)
        if len(shape) == rank:
            return self.get(name, order)
        if not shape:
            return self.get(name)
        sizes = (1,) * (rank - len(shape)) + shape
        return self.reshape(
            self._turn(self.get(name), name, sizes, order),
            f"{name}__operand",
            _turned(sizes, order),
        )

    def _turn(self, tensor: str, name: str, sizes: Sequence[int], order: Order) -> str:
        """Values in the order that a tensor of these sizes has in another order of axes."""
        if _only_ones_move(sizes, order):
            return tensor
        whole = self.reshape(tensor, f"{name}__whole", sizes)
        perm = self.integers(f"{name}__perm", order)
        dtype = self.graph[tensor].dtype
        return self.add(
            "TRANSPOSE",
            [whole, perm],
            f"{name}__turned",
            _turned(sizes, order),
            dtype=dtype,
            form="TransposeOptions",
        )

    def out_shape(self, node: Node, order: Order = (), place: int = 0) -> tuple[int, ...]:
        return _turned(self.shape(node.outputs[place]), order)

    def out_dtype(self, node: Node, place: int = 0) -> np.dtype[Any]:
        return self.value(node.outputs[place]).dtype

    # --- operators

    def emit(self, node: Node) -> None:
        if node.outputs[0] in self.done:
            return
        if self._is_static(node):
            for name in node.outputs:
                if name:
                    self.static[name] = self.traced.values[name]
            return
        handler = HANDLERS.get(node.kind)
        if handler is None:
            raise InvalidModelError(f"{node} has no TFLite form")
        rank = max((len(self.shape(name)) for name in node.outputs if name), default=0)
        if rank > _MOST_AXES:
            raise InvalidModelError(f"{node} has {rank} axes; TFLite takes {_MOST_AXES} at most")
        try:
            handler(self, node)
        except InvalidModelError:
            raise
        except Exception as exc:  # a form of the operator that no exporter was seen to write
            raise InvalidModelError(
                f"{node} has a form that is not known here: {type(exc).__name__}: {reason(exc)}"
            ) from exc

    def _is_static(self, node: Node) -> bool:
        if node.kind in ("Shape", "Size"):
            return True
        if any(name and name not in self.static for name in (*node.inputs, *node.captured)):
            return node.kind == "Mul" and self._is_nothing(node)
        return bool(node.inputs) or node.kind in ("Constant", "Range")

    def _is_nothing(self, node: Node) -> bool:
        """Whether it is a product of integers of which one is 0, as one that keeps an input."""
        stored = [self.static[name] for name in node.inputs if name in self.static]
        return any(each.dtype.kind in "iu" and not each.any() for each in stored)


def _turned(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in order) if order else tuple(shape)


def _only_ones_move(shape: Sequence[int], perm: Sequence[int]) -> bool:
    """Whether values stay in their places in memory."""
    moving = [axis for axis in perm if shape[axis] != 1]
    return moving == sorted(moving)


def _narrow(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype == np.int64:
        return np.dtype(np.int32)
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _narrowed(array: Array, name: str) -> Array:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        inside = np.clip(array, limits.min, limits.max)
        if not np.isin(array, (np.iinfo(np.int64).max, np.iinfo(np.int64).min, *inside)).all():
            raise InvalidModelError(
                f"{name} holds whole numbers beyond 32 bits, up to {int(np.abs(array).max())}, "
                f"which TFLite's indices cannot"
            )
        array = inside
    return array.astype(np.int32)


Handler = Callable[[_Converter, Node], None]
HANDLERS: dict[str, Handler] = {}


def _handles(*kinds: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(kinds, handler))
        return handler

    return register


def _ints(array: Array) -> list[int]:
    return [int(number) for number in np.ravel(array)]


# --- elementwise

_UNARY = {
    "Abs": ("ABS", "AbsOptions"),
    "Ceil": ("CEIL", ""),
    "Cos": ("COS", "CosOptions"),
    "Exp": ("EXP", "ExpOptions"),
    "Floor": ("FLOOR", ""),
    "Log": ("LOG", ""),
    "Neg": ("NEG", "NegOptions"),
    "Not": ("LOGICAL_NOT", "LogicalNotOptions"),
    "Relu": ("RELU", ""),
    "Round": ("ROUND", ""),
    "Sigmoid": ("LOGISTIC", ""),
    "Sign": ("SIGN", "SignOptions"),
    "Sin": ("SIN", ""),
    "Sqrt": ("SQRT", ""),
    "Tanh": ("TANH", ""),
    "HardSwish": ("HARD_SWISH", "HardSwishOptions"),
}


@_handles(*_UNARY)
def _unary(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    kind, form = _UNARY[n.kind]
    if kind == "NEG":  # LiteRT's int8 kernel ignores the scales
        _times(c, n, c.operand(n, 0, order), -1.0, order)
        return
    if kind in BOUNDS and c.out_dtype(n) == _FLOAT:
        _bound(c, n, kind, c.operand(n, 0, order), order)
        return
    tensor = c.add(
        kind,
        [c.operand(n, 0, order)],
        n.outputs[0],
        c.out_shape(n, order),
        dtype=c.out_dtype(n),
        form=form,
    )
    c.set(n, tensor, order)


def _bound(c: _Converter, n: Node, kind: str, tensor: str, order: Order) -> None:
    """An activation that a layer can have. That of a layer of one spatial axis, which is a picture
    of one row, stands before what takes the axis of the row away again."""
    name, before = n.outputs[0], n.inputs[0]
    makers = {output: o for o in c.graph.operators for output in o.outputs}
    row = makers.get(tensor)
    layer = makers.get(row.inputs[0]) if row is not None and row.kind == "RESHAPE" else None
    alone = len(c.readers[before]) == 1 and before not in (*c.kept, *c.traced.outputs)
    if row is None or layer is None or layer.kind not in WEIGHTS or not alone:
        c.set(n, c.add(kind, [tensor], name, c.out_shape(n, order)), order)
        return
    c.graph.operators.remove(row)
    picture = c.add(kind, [layer.outputs[0]], name, c.graph.shape(layer.outputs[0]))
    c.computed[name] = _Value({order: c.reshape(picture, f"{name}__row", c.out_shape(n, order))})


@_handles("Identity", "Dropout")
def _identity(c: _Converter, n: Node) -> None:
    source, name = n.inputs[0], n.outputs[0]
    if name in c.kept and c.kept.get(source) != c.kept[name]:  # rounded, and read as it was too
        order = c.shared(n)
        c.set(n, c.reshape(c.get(source, order), name, c.out_shape(n, order)), order)
    else:
        c.computed[name] = _Value(dict(c.computed[source].tensors))


def _with_scalar(
    c: _Converter, kind: str, tensor: str, number: float, name: str, *, left: bool = False
) -> str:
    """A sum, product, … with one number."""
    shape, dtype = c.graph.shape(tensor), c.graph[tensor].dtype
    scalar = c.graph.add_constant(f"{name}__number", np.array(number, dtype))
    pair = [scalar, tensor] if left else [tensor, scalar]
    return c.add(kind, pair, name, shape, dtype=dtype, form=_FORMS.get(kind, ""))


_FORMS = {
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "DIV": "DivOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "POW": "PowOptions",
    "EQUAL": "EqualOptions",
    "GREATER": "GreaterOptions",
    "GREATER_EQUAL": "GreaterEqualOptions",
    "LESS": "LessOptions",
    "LESS_EQUAL": "LessEqualOptions",
    "NOT_EQUAL": "NotEqualOptions",
    "LOGICAL_AND": "LogicalAndOptions",
    "LOGICAL_OR": "LogicalOrOptions",
    "SQUARED_DIFFERENCE": "SquaredDifferenceOptions",
    "FLOOR_MOD": "FloorModOptions",
}
_BINARY = {
    "Add": "ADD",
    "And": "LOGICAL_AND",
    "Div": "DIV",
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "Mul": "MUL",
    "Or": "LOGICAL_OR",
    "Pow": "POW",
    "Sub": "SUB",
}


@_handles(*_BINARY)
def _binary(c: _Converter, n: Node) -> None:
    if n.kind in ("Add", "Sub", "Mul", "Div") and _constant_into_layer(c, n):
        return
    order = c.shared(n)
    kind = _BINARY[n.kind]
    if n.kind == "Pow" and c.is_static(n.inputs[1]) and c.constant(n, 1).size == 1:
        power = float(c.constant(n, 1).reshape(()))
        base = c.operand(n, 0, order)
        shape = c.out_shape(n, order)
        if power == 2:
            tensor = c.add("MUL", [base, base], n.outputs[0], shape, form="MulOptions")
            c.set(n, tensor, order)
            return
        if power == 0.5:
            c.set(n, c.add("SQRT", [base], n.outputs[0], shape), order)
            return
    if n.kind == "Div" and c.is_static(n.inputs[1]) and c.out_dtype(n).kind == "f":
        divisor = c.constant(n, 1)
        if np.isfinite(1 / np.where(divisor == 0, np.inf, divisor)).all() and (divisor != 0).all():
            c.static[f"{n.outputs[0]}__inverse"] = (1 / divisor).astype(divisor.dtype)
            n = Node(
                "Mul",
                n.name,
                (n.inputs[0], f"{n.outputs[0]}__inverse"),
                n.outputs,
                n.attributes,
                n.opset,
            )
            kind = "MUL"
    operands = [c.operand(n, 0, order), c.operand(n, 1, order)]
    if c.out_dtype(n).kind in "iu" and kind == "DIV":
        numbers = [c.value(name) for name in n.inputs]
        if any((array < 0).any() for array in numbers):
            raise InvalidModelError(f"{n} divides whole numbers below 0, which TFLite rounds down")
        kind = "FLOOR_DIV"
    tensor = c.add(
        kind,
        operands,
        n.outputs[0],
        c.out_shape(n, order),
        dtype=c.out_dtype(n),
        form=_FORMS.get(kind, "FloorDivOptions"),
    )
    c.set(n, tensor, order)


@_handles("Min", "Max", "Sum", "Mean")
def _several(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    kind = {"Min": "MINIMUM", "Max": "MAXIMUM"}.get(n.kind, "ADD")
    tensor = c.operand(n, 0, order)
    shape, dtype = c.out_shape(n, order), c.out_dtype(n)
    for place in range(1, len(n.inputs)):
        operands = [tensor, c.operand(n, place, order)]
        label = n.outputs[0] if place == len(n.inputs) - 1 else f"{n.outputs[0]}__{place}"
        tensor = c.add(kind, operands, label, shape, dtype=dtype, form=_FORMS[kind])
    if n.kind == "Mean" and len(n.inputs) > 1:
        tensor = _with_scalar(c, "MUL", tensor, 1 / len(n.inputs), f"{n.outputs[0]}__mean")
    if len(n.inputs) == 1:
        c.computed[n.outputs[0]] = _Value(dict(c.computed[n.inputs[0]].tensors))
        return
    c.set(n, tensor, order)


def _times(c: _Converter, n: Node, tensor: str, factor: float, order: Order) -> None:
    c.set(n, _with_scalar(c, "MUL", tensor, factor, n.outputs[0]), order)


@_handles("Reciprocal")
def _reciprocal(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    c.set(n, _with_scalar(c, "DIV", c.operand(n, 0, order), 1.0, n.outputs[0], left=True), order)


@_handles("Mod")
def _mod(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    if n.get("fmod", 0) and any((c.value(name) < 0).any() for name in n.inputs):
        raise InvalidModelError(f"{n} keeps the sign of what is divided; TFLite has no such form")
    operands = [c.operand(n, 0, order), c.operand(n, 1, order)]
    tensor = c.add(
        "FLOOR_MOD",
        operands,
        n.outputs[0],
        c.out_shape(n, order),
        dtype=c.out_dtype(n),
        form="FloorModOptions",
    )
    c.set(n, tensor, order)


@_handles("LeakyRelu")
def _leaky(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    tensor = c.add(
        "LEAKY_RELU",
        [c.operand(n, 0, order)],
        n.outputs[0],
        c.out_shape(n, order),
        form="LeakyReluOptions",
        alpha=float(n.get("alpha", 0.01)),
    )
    c.set(n, tensor, order)


@_handles("Elu")
def _elu(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    source, shape = c.operand(n, 0, order), c.out_shape(n, order)
    alpha = float(n.get("alpha", 1.0))
    if alpha == 1.0:
        c.set(n, c.add("ELU", [source], n.outputs[0], shape), order)
        return
    c.set(n, _scaled_elu(c, n, source, shape, alpha, 1.0), order)


@_handles("Selu")
def _selu(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    alpha = float(n.get("alpha", 1.6732632423543772))
    gamma = float(n.get("gamma", 1.0507009873554805))
    source, shape = c.operand(n, 0, order), c.out_shape(n, order)
    c.set(n, _scaled_elu(c, n, source, shape, alpha, gamma), order)


@_handles("Celu")
def _celu(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    alpha = float(n.get("alpha", 1.0))
    source, shape = c.operand(n, 0, order), c.out_shape(n, order)
    name = n.outputs[0]
    small = _with_scalar(c, "MUL", source, 1 / alpha, f"{name}__small")
    curve = c.add("ELU", [small], f"{name}__curve", shape)
    below = _with_scalar(c, "MUL", curve, alpha, f"{name}__below")
    below = _with_scalar(c, "MINIMUM", below, 0.0, f"{name}__negative")
    above = c.add("RELU", [source], f"{name}__above", shape)
    c.set(n, c.add("ADD", [above, below], name, shape, form="AddOptions"), order)


def _scaled_elu(
    c: _Converter, n: Node, source: str, shape: Sequence[int], alpha: float, gamma: float
) -> str:
    """gamma (max(x, 0) + alpha min(exp(x) - 1, 0)): ELU has both parts, each takes its factor."""
    name = n.outputs[0]
    curve = c.add("ELU", [source], f"{name}__curve", shape)
    below = _with_scalar(c, "MINIMUM", curve, 0.0, f"{name}__negative")
    below = _with_scalar(c, "MUL", below, alpha * gamma, f"{name}__below")
    above = c.add("RELU", [source], f"{name}__positive", shape)
    if gamma != 1.0:
        above = _with_scalar(c, "MUL", above, gamma, f"{name}__above")
    return c.add("ADD", [above, below], name, shape, form="AddOptions")


@_handles("PRelu")
def _prelu(c: _Converter, n: Node) -> None:
    order = c.shared(n, [0])
    rank = len(c.shape(n.inputs[0]))
    slope = c.constant(n, 1)
    if slope.size == 1:
        tensor = c.add(
            "LEAKY_RELU",
            [c.operand(n, 0, order)],
            n.outputs[0],
            c.out_shape(n, order),
            form="LeakyReluOptions",
            alpha=float(slope.reshape(())),
        )
        c.set(n, tensor, order)
        return
    whole = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    whole = np.broadcast_to(whole, (1, *_slope_sizes(whole, c.shape(n.inputs[0]))))
    if order:
        whole = whole.transpose(order)
    operands = [c.get(n.inputs[0], order), c.graph.add_constant(n.inputs[1], whole[0].copy())]
    c.set(n, c.add("PRELU", operands, n.outputs[0], c.out_shape(n, order)), order)


def _slope_sizes(slope: Array, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(
        size if size == 1 else whole for size, whole in zip(slope.shape[1:], shape[1:], strict=True)
    )


def _clip_at_computed(c: _Converter, n: Node) -> None:
    """A clip with an end that is computed, as that of a spectrogram in dB below its peak."""
    order = c.shared(n, [0])
    shape, name, dtype = c.out_shape(n, order), n.outputs[0], c.out_dtype(n)
    tensor = c.operand(n, 0, order)
    bounds = [
        (i, kind)
        for i, kind in ((1, "MAXIMUM"), (2, "MINIMUM"))
        if n.has(i) and not (c.is_static(n.inputs[i]) and np.isinf(c.constant(n, i)).all())
    ]
    for i, kind in bounds:
        label = name if (i, kind) == bounds[-1] else f"{name}__above"
        operands = [tensor, c.operand(n, i, order)]
        tensor = c.add(kind, operands, label, shape, dtype=dtype, form=_FORMS[kind])
    c.set(n, tensor, order)


@_handles("Clip")
def _clip(c: _Converter, n: Node) -> None:
    if n.opset >= 11 and any(n.has(i) and not c.is_static(n.inputs[i]) for i in (1, 2)):
        _clip_at_computed(c, n)
        return
    order = c.shared(n, [0])
    if n.opset < 11:
        low, high = n.get("min"), n.get("max")
    else:
        bounds = [c.constant(n, i) if n.has(i) else None for i in (1, 2)]
        low, high = (None if bound is None else float(bound.reshape(())) for bound in bounds)
    tensor, shape, name = c.get(n.inputs[0], order), c.out_shape(n, order), n.outputs[0]
    dtype = c.out_dtype(n)
    low = None if low is None or low <= -3.4e38 else low
    high = None if high is None or high >= 3.4e38 else high
    known: dict[tuple[Any, Any], str] = {
        (0.0, 6.0): "RELU6",
        (-1.0, 1.0): "RELU_N1_TO_1",
        (0.0, None): "RELU",
    }
    if dtype == _FLOAT and (low, high) in known:
        _bound(c, n, known[low, high], tensor, order)
        return
    if low is None and high is None:
        c.computed[name] = _Value(dict(c.computed[n.inputs[0]].tensors))
        return
    if low is not None:
        if low == 0 and dtype == _FLOAT:
            label = name if high is None else f"{name}__above"
            tensor = c.add("RELU", [tensor], label, shape)
        else:
            label = name if high is None else f"{name}__above"
            tensor = _with_scalar(c, "MAXIMUM", tensor, low, label)
    if high is not None:
        tensor = _with_scalar(c, "MINIMUM", tensor, high, name)
    c.set(n, tensor, order)


@_handles("HardSigmoid")
def _hard_sigmoid(c: _Converter, n: Node) -> None:
    """max(0, min(1, alpha x + beta)) as ReLU6(6 (alpha x + beta)) / 6."""
    order = c.shared(n)
    alpha, beta, name = float(n.get("alpha", 0.2)), float(n.get("beta", 0.5)), n.outputs[0]
    line = c.operand(n, 0, order)
    if abs(6 * alpha - 1) > 1e-6:
        line = _with_scalar(c, "MUL", line, 6 * alpha, f"{name}__line")
    line = _with_scalar(c, "ADD", line, 6 * beta, f"{name}__raised")
    cut = c.add("RELU6", [line], f"{name}__cut", c.out_shape(n, order))
    c.set(n, _with_scalar(c, "MUL", cut, 1 / 6, name), order)


@_handles("Softplus")
def _softplus(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    c.set(n, _softplus_of(c, c.operand(n, 0, order), n.outputs[0], c.out_shape(n, order)), order)


def _softplus_of(c: _Converter, source: str, name: str, shape: Sequence[int]) -> str:
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    size = c.add("ABS", [source], f"{name}__size", shape, form="AbsOptions")
    below = _with_scalar(c, "MUL", size, -1.0, f"{name}__below")
    curve = c.add("EXP", [below], f"{name}__curve", shape, form="ExpOptions")
    raised = _with_scalar(c, "ADD", curve, 1.0, f"{name}__raised")
    bend = c.add("LOG", [raised], f"{name}__bend", shape)
    above = c.add("RELU", [source], f"{name}__above", shape)
    return c.add("ADD", [above, bend], name, shape, form="AddOptions")


@_handles("Softsign")
def _softsign(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    source, shape, name = c.operand(n, 0, order), c.out_shape(n, order), n.outputs[0]
    size = c.add("ABS", [source], f"{name}__size", shape, form="AbsOptions")
    below = _with_scalar(c, "ADD", size, 1.0, f"{name}__below")
    c.set(n, c.add("DIV", [source, below], name, shape, form="DivOptions"), order)


@_handles("Mish")
def _mish(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    source, shape, name = c.operand(n, 0, order), c.out_shape(n, order), n.outputs[0]
    soft = _softplus_of(c, source, f"{name}__softplus", shape)
    curve = c.add("TANH", [soft], f"{name}__curve", shape)
    c.set(n, c.add("MUL", [source, curve], name, shape, form="MulOptions"), order)


@_handles("Gelu")
def _gelu(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    operands = [c.operand(n, 0, order)]
    _gelu_of(c, n, operands, order, approximate=n.get("approximate", "none") == "tanh")


def _gelu_of(
    c: _Converter, n: Node, operands: Sequence[str], order: Order, *, approximate: bool
) -> None:
    tensor = c.add(
        "GELU",
        operands,
        n.outputs[0],
        c.out_shape(n, order),
        form="GeluOptions",
        approximate=approximate,
    )
    c.set(n, tensor, order)


@_handles("Erf")
def _erf(c: _Converter, n: Node) -> None:
    """Only as a part of GELU, x (1 + erf(x / sqrt(2))) / 2: TFLite has no erf of its own."""
    gelu = _gelu_around(c, n)
    if gelu is None:
        raise InvalidModelError(
            f"{n} is no part of a GELU, x (1 + erf(x / sqrt(2))) / 2, and TFLite has no other erf"
        )
    source, final, passed = gelu
    order = c.shared(Node("Gelu", n.name, (source,), final.outputs, {}, n.opset))
    c.done.update(passed)
    tensor = c.add(
        "GELU",
        [c.get(source, order)],
        final.outputs[0],
        c.out_shape(final, order),
        form="GeluOptions",
        approximate=False,
    )
    c.set(final, tensor, order)


def _gelu_around(c: _Converter, n: Node) -> tuple[str, Node, list[str]] | None:
    """(x, last node, outputs of the nodes that are done with it) of the GELU around an erf."""
    makers = {node.outputs[0]: node for node in c.traced.nodes}

    def scalar(name: str) -> float | None:
        array = c.static.get(name)
        return None if array is None or array.size != 1 else float(array.reshape(()))

    def next_of(name: str, kind: str) -> Node | None:
        users = c.readers.get(name, [])
        return users[0] if len(users) == 1 and users[0].kind == kind else None

    def other(node: Node, name: str) -> str:
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]

    before = makers.get(n.inputs[0])
    if before is None or before.kind not in ("Div", "Mul"):
        return None
    if before.kind == "Div":
        source, number = before.inputs[0], scalar(before.inputs[1])
        root = number
    else:
        statics = [name for name in before.inputs if name in c.static]
        if not statics:
            return None
        source, number = other(before, statics[0]), scalar(statics[0])
        root = None if not number else 1 / number
    if root is None or abs(root - math.sqrt(2)) > 1e-3:
        return None
    one = next_of(n.outputs[0], "Add")
    if one is None or scalar(other(one, n.outputs[0])) != 1.0:
        return None
    passed = [n.outputs[0], one.outputs[0]]
    product = next_of(one.outputs[0], "Mul")
    if product is None:
        return None
    partner = other(product, one.outputs[0])
    if partner == source:  # x (1 + erf) first, then the half
        last_one = next_of(product.outputs[0], "Mul")
        if last_one is None:
            last_one = next_of(product.outputs[0], "Div")
        if last_one is None:
            return None
        half = scalar(other(last_one, product.outputs[0]))
        if half != (0.5 if last_one.kind == "Mul" else 2.0):
            return None
        return source, last_one, [*passed, product.outputs[0], last_one.outputs[0]]
    if scalar(partner) == 0.5:  # the half first, then x
        last_one = next_of(product.outputs[0], "Mul")
        if last_one is None or other(last_one, product.outputs[0]) != source:
            return None
        return source, last_one, [*passed, product.outputs[0], last_one.outputs[0]]
    maker = makers.get(partner)  # x / 2 was computed before
    if maker is not None and maker.kind == "Mul":
        pair = set(maker.inputs)
        if source in pair and any(scalar(name) == 0.5 for name in pair):
            return source, product, [*passed, product.outputs[0]]
    return None


@_handles("Cast")
def _cast(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    source, to = c.value(n.inputs[0]).dtype, c.out_dtype(n)
    if _narrow(source) == _narrow(to):
        c.computed[n.outputs[0]] = _Value(dict(c.computed[n.inputs[0]].tensors))
        return
    tensor = c.add(
        "CAST",
        [c.operand(n, 0, order)],
        n.outputs[0],
        c.out_shape(n, order),
        dtype=to,
        form="CastOptions",
        inDataType=_code(source),
        outDataType=_code(to),
    )
    c.set(n, tensor, order)


def _code(dtype: np.dtype[Any]) -> int:
    names = {np.dtype(kind): name for name, kind in plain_tflite.DTYPES.items()}
    return int(getattr(plain_tflite.schema().TensorType, names[_narrow(dtype)]))


@_handles("IsNaN")
def _is_nan(c: _Converter, n: Node) -> None:
    """NaN is the one number that is other than itself; torch asks for it behind a softmax."""
    order = c.shared(n)
    source = c.operand(n, 0, order)
    tensor = c.add(
        "NOT_EQUAL",
        [source, source],
        n.outputs[0],
        c.out_shape(n, order),
        dtype=c.out_dtype(n),
        form=_FORMS["NOT_EQUAL"],
    )
    c.set(n, tensor, order)


@_handles("Where")
def _where(c: _Converter, n: Node) -> None:
    order = c.shared(n)
    operands = [c.operand(n, place, order) for place in range(3)]
    tensor = c.add(
        "SELECT_V2",
        operands,
        n.outputs[0],
        c.out_shape(n, order),
        dtype=c.out_dtype(n),
        form="SelectV2Options",
    )
    c.set(n, tensor, order)


# --- layers


def _same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    reach = (kernel - 1) * dilation + 1
    total = max(0, (-(-size // stride) - 1) * stride + reach - size)
    return total // 2, total - total // 2


def _pads_of(
    n: Node,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """Zeros in front and behind along each axis, as the node pads."""
    count = len(sizes)
    auto = n.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pairs = [_same_pads(*each) for each in zip(sizes, kernel, strides, dilations, strict=True)]
        return [pair[::-1] for pair in pairs] if auto == "SAME_LOWER" else pairs
    pads = [0] * (2 * count) if auto == "VALID" else list(n.get("pads", [0] * (2 * count)))
    return [(int(pads[i]), int(pads[count + i])) for i in range(count)]


def _without_pad(
    c: _Converter, tensor: str, sizes: list[int], pads: list[tuple[int, int]]
) -> tuple[str, list[int], list[tuple[int, int]]]:
    """What a PAD of zeros before a layer reads, with its zeros counted to the layer's own."""
    operator = next((o for o in c.graph.operators if tensor in o.outputs), None)
    if operator is None or operator.kind != "PAD":
        return tensor, sizes, pads
    if any(tensor in c.computed[n].tensors.values() for n in c.kept.keys() & c.computed.keys()):
        return tensor, sizes, pads
    amounts = c.graph.constant(operator.inputs[1])
    if amounts[0].any() or amounts[-1].any() or any(min(pair) < 0 for pair in pads):
        return tensor, sizes, pads
    added = [(int(a[0]), int(a[1])) for a in amounts[1:-1]]
    before = [size - sum(pair) for size, pair in zip(sizes, added, strict=True)]
    both = [(p[0] + a[0], p[1] + a[1]) for p, a in zip(pads, added, strict=True)]
    return operator.inputs[0], before, both


def _padded(
    c: _Converter,
    tensor: str,
    name: str,
    pads: Sequence[tuple[int, int]],
    *,
    first: int = 1,
    kind: str = "PAD",
) -> str:
    """A tensor with zeros around the axes from ``first`` on; itself where there are none."""
    if not any(any(pair) for pair in pads):
        return tensor
    shape = c.graph.shape(tensor)
    amounts = np.zeros((len(shape), 2), np.int32)
    amounts[first : first + len(pads)] = pads
    after = [int(size + pair.sum()) for size, pair in zip(shape, amounts, strict=True)]
    operands = [tensor, c.graph.add_constant(f"{name}__pads", amounts)]
    form, options = ("PadOptions", {}) if kind == "PAD" else ("MirrorPadOptions", {"mode": 1})
    return c.add(kind, operands, name, after, dtype=c.graph[tensor].dtype, form=form, **options)


def _trimmed(
    c: _Converter, tensor: str, name: str, pads: Sequence[tuple[int, int]]
) -> tuple[str, list[tuple[int, int]]]:
    """What negative pads cut off is sliced; returns the rest of the pads."""
    if not any(min(pair) < 0 for pair in pads):
        return tensor, list(pads)
    shape = list(c.graph.shape(tensor))
    begins, sizes = [0] * len(shape), list(shape)
    for axis, (front, behind) in enumerate(pads, start=1):
        begins[axis] = max(0, -front)
        sizes[axis] = shape[axis] - max(0, -front) - max(0, -behind)
    operands = [tensor, c.integers(f"{name}__begin", begins), c.integers(f"{name}__size", sizes)]
    cut = c.add("SLICE", operands, f"{name}__trimmed", sizes, form="SliceOptions")
    return cut, [(max(0, front), max(0, behind)) for front, behind in pads]


@_handles("Conv")
def _conv(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.inputs[0]))
    if rank not in (3, 4):
        raise InvalidModelError(f"{n} has {rank - 2} spatial axes; TFLite's layers take 1 or 2")
    weights = c.constant(n, 1).astype(np.float32)
    name, spatial = n.outputs[0], rank - 2
    kernel = list(weights.shape[2:])
    strides = list(n.get("strides", [1] * spatial))
    dilations = list(n.get("dilations", [1] * spatial))
    group = int(n.get("group", 1))
    sizes = list(c.shape(n.inputs[0])[2:])
    pads = _pads_of(n, sizes, kernel, strides, dilations)
    source = c.get(n.inputs[0], last(rank))
    source, sizes, pads = _without_pad(c, source, sizes, pads)
    out = c.out_shape(n, last(rank))
    if spatial == 1:  # a picture of one row
        shape = c.graph.shape(source)
        source = c.reshape(source, f"{name}__picture", (shape[0], 1, *shape[1:]))
        weights = weights[:, :, None]
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
        sizes, pads, out = [1, *sizes], [(0, 0), *pads], (out[0], 1, *out[1:])
    same = [_same_pads(*each) for each in zip(sizes, kernel, strides, dilations, strict=True)]
    padding = 0
    if pads != same:
        padding = 1
        source, pads = _trimmed(c, source, name, pads)
        source = _padded(c, source, f"{name}__padded", pads)
    channels = c.graph.shape(source)[3]
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
        "fusedActivationFunction": 0,
    }
    depthwise = group == channels and weights.shape[1] == 1 and group > 1
    order: Order
    if depthwise:
        order = (1, 2, 3, 0)
        kind, form = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        options["depthMultiplier"] = weights.shape[0] // channels
    else:
        order = (0, 2, 3, 1)
        kind, form = "CONV_2D", "Conv2DOptions"
    stored = c.graph.add_constant(n.inputs[1], np.ascontiguousarray(weights.transpose(order)))
    bias = np.zeros(len(weights), np.float32)
    if n.has(2):
        bias = c.constant(n, 2).astype(np.float32).reshape(-1)
    operands = [
        source,
        stored,
        c.graph.add_constant(n.inputs[2] if n.has(2) else f"{name}__bias", bias),
    ]
    tensor = c.add(kind, operands, name, out, form=form, **options)
    if spatial == 1:
        c.computed[name] = _Value({last(3): c.reshape(tensor, f"{name}__row", (out[0], *out[2:]))})
    else:
        c.set(n, tensor, last(4))


@_handles("ConvTranspose")
def _transposed(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.inputs[0]))
    if rank not in (3, 4):
        raise InvalidModelError(f"{n} has {rank - 2} spatial axes; TFLite's layers take 1 or 2")
    weights = c.constant(n, 1).astype(np.float32)  # [I, O / group, H, W]
    name, spatial = n.outputs[0], rank - 2
    group = int(n.get("group", 1))
    kernel = list(weights.shape[2:])
    strides = list(n.get("strides", [1] * spatial))
    dilations = list(n.get("dilations", [1] * spatial))
    extra = list(n.get("output_padding", [0] * spatial))
    sizes = list(c.shape(n.inputs[0])[2:])
    if any(d != 1 for d in dilations):  # spread the kernel: TFLite's has no dilation
        weights = _spread(weights, dilations)
        kernel = list(weights.shape[2:])
    final = list(c.shape(n.outputs[0])[2:])
    whole = [(size - 1) * s + k for size, s, k in zip(sizes, strides, kernel, strict=True)]
    auto = n.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [w - f for w, f in zip(whole, final, strict=True)]
        front = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
    else:
        front = list(n.get("pads", [0] * (2 * spatial)))[:spatial]
    source = c.get(n.inputs[0], last(rank))
    bias = np.zeros(weights.shape[1] * group, np.float32)
    if n.has(2):
        bias = c.constant(n, 2).astype(np.float32).reshape(-1)
    del extra
    if spatial == 1:
        shape = c.graph.shape(source)
        source = c.reshape(source, f"{name}__picture", (shape[0], 1, *shape[1:]))
        weights = weights[:, :, None]
        kernel, strides = [1, *kernel], [1, *strides]
        whole, final, front = [1, *whole], [1, *final], [0, *front]
    # VALID writes all of it, then the borders are cut; what goes beyond it is padded
    parts = []
    inputs = c.graph.shape(source)[3] // group
    for number in range(group):
        own_source = source
        if group > 1:
            begin = [0, 0, 0, number * inputs]
            size = [*c.graph.shape(source)[:3], inputs]
            label = f"{name}__group_{number}"
            pair = [c.integers(f"{label}_begin", begin), c.integers(f"{label}_size", size)]
            own_source = c.add("SLICE", [source, *pair], label, size, form="SliceOptions")
        own = weights[number * inputs : (number + 1) * inputs]  # [I, O, H, W]
        own_bias = bias.reshape(group, -1)[number]
        kernel_name = n.inputs[1] if group == 1 else f"{n.inputs[1]}__group_{number}"
        out = [1, *whole, own.shape[1]]
        stored = c.graph.add_constant(kernel_name, np.ascontiguousarray(own.transpose(1, 2, 3, 0)))
        label = f"{name}__whole" if group == 1 else f"{name}__part_{number}"
        tensor = c.add(
            "TRANSPOSE_CONV",
            [
                c.integers(f"{label}_shape", out),
                stored,
                own_source,
                c.graph.add_constant(f"{label}__bias", own_bias),
            ],
            label,
            out,
            form="TransposeConvOptions",
            version=3,
            padding=1,
            strideH=strides[0],
            strideW=strides[1],
            fusedActivationFunction=0,
        )
        parts.append(tensor)
    tensor = parts[0]
    if group > 1:
        shape_all = [1, *whole, len(bias)]
        tensor = c.add(
            "CONCATENATION", parts, f"{name}__whole", shape_all, form="ConcatenationOptions", axis=3
        )
    behind = [w - f - n_ for w, f, n_ in zip(whole, front, final, strict=True)]
    if any(f or e for f, e in zip(front, behind, strict=True)):
        beyond = [(0, max(0, -end)) for end in behind]
        tensor = _padded_with_bias(c, tensor, name, beyond, bias)
        begin, size = [0, *front, 0], [1, *final, len(bias)]
        pair = [c.integers(f"{name}__begin", begin), c.integers(f"{name}__size", size)]
        tensor = c.add("SLICE", [tensor, *pair], f"{name}__cut", size, form="SliceOptions")
    if spatial == 1:
        tensor = c.reshape(tensor, f"{name}__row", (1, *final[1:], len(bias)))
    c.set(n, tensor, last(rank))


def _padded_with_bias(
    c: _Converter, tensor: str, name: str, beyond: Sequence[tuple[int, int]], bias: Array
) -> str:
    """Rows that no input reaches hold the bias alone."""
    if not any(any(pair) for pair in beyond):
        return tensor
    padded = _padded(c, tensor, f"{name}__beyond", beyond)
    if not bias.any():
        return padded
    shape = c.graph.shape(padded)
    inner = c.graph.shape(tensor)
    rest = np.zeros(shape, np.float32) + bias
    rest[:, : inner[1], : inner[2]] = 0
    return c.add(
        "ADD",
        [padded, c.graph.add_constant(f"{name}__rest", rest)],
        f"{name}__filled",
        shape,
        form="AddOptions",
    )


def _spread(weights: Array, dilations: Sequence[int]) -> Array:
    sizes = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], dilations, strict=True)]
    spread = np.zeros((*weights.shape[:2], *sizes), weights.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weights
    return spread


def _dense(
    c: _Converter, n: Node, source: str, weights: Array, bias: Array | None, name: str
) -> None:
    """A dense layer with weights ``[O, I]`` on the last axis."""
    shape = c.graph.shape(source)
    out = (*shape[:-1], len(weights))
    stored = c.graph.add_constant(n.inputs[1], np.ascontiguousarray(weights, np.float32))
    operands = [source, stored]
    if bias is not None:
        operands.append(c.graph.add_constant(f"{name}__bias", bias.astype(np.float32).reshape(-1)))
    else:
        operands.append("")
    tensor = c.add(
        "FULLY_CONNECTED",
        operands,
        name,
        out,
        form="FullyConnectedOptions",
        version=1 if bias is not None else 6,
        keepNumDims=len(shape) != 2,
        fusedActivationFunction=0,
    )
    c.set(n, tensor)


@_handles("Gemm")
def _gemm(c: _Converter, n: Node) -> None:
    alpha, beta = float(n.get("alpha", 1.0)), float(n.get("beta", 1.0))
    name = n.outputs[0]
    if not c.is_static(n.inputs[1]):
        _gemm_of_computed(c, n, alpha, beta)
        return
    weights = c.constant(n, 1).astype(np.float32)
    turned = bool(n.get("transB", 0))
    rows = (weights if turned else weights.T) * np.float32(alpha)
    source = c.get(n.inputs[0])
    if n.get("transA", 0):
        source = _swap(c, source, f"{name}__turned")
    bias: Array | None = None
    rest = ""
    if n.has(2):
        if c.is_static(n.inputs[2]) and c.constant(n, 2).size in (1, len(rows)):
            scaled = c.constant(n, 2).astype(np.float32) * np.float32(beta)
            bias = np.broadcast_to(scaled.reshape(-1), (len(rows),)).copy()
        else:
            rest = n.inputs[2]
    if rest:
        linear = Node(n.kind, n.name, n.inputs, (name + LINEAR,), n.attributes, n.opset)
        _dense(c, linear, source, rows, None, linear.outputs[0])
        added = c.get(rest)
        if beta != 1.0:
            added = _with_scalar(c, "MUL", added, beta, f"{name}__scaled")
        tensor = c.computed[linear.outputs[0]].tensors[()]
        shape = c.shape(name)
        c.set(n, c.add("ADD", [tensor, added], name, shape, form="AddOptions"))
        return
    _dense(c, n, source, rows, bias, name)


def _swap(c: _Converter, tensor: str, name: str) -> str:
    shape = c.graph.shape(tensor)
    perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    operands = [tensor, c.integers(f"{name}_perm", perm)]
    sizes = [shape[axis] for axis in perm]
    return c.add("TRANSPOSE", operands, name, sizes, form="TransposeOptions")


def _gemm_of_computed(c: _Converter, n: Node, alpha: float, beta: float) -> None:
    name, shape = n.outputs[0], c.shape(n.outputs[0])
    operands = [c.get(n.inputs[0]), c.get(n.inputs[1])]
    tensor = c.add(
        "BATCH_MATMUL",
        operands,
        f"{name}__product",
        shape,
        form="BatchMatMulOptions",
        adjX=bool(n.get("transA", 0)),
        adjY=bool(n.get("transB", 0)),
    )
    if alpha != 1.0:
        tensor = _with_scalar(c, "MUL", tensor, alpha, f"{name}__scaled")
    if n.has(2):
        added = c.get(n.inputs[2])
        if beta != 1.0:
            added = _with_scalar(c, "MUL", added, beta, f"{name}__added")
        tensor = c.add("ADD", [tensor, added], name, shape, form="AddOptions")
    c.set(n, tensor)


@_handles("MatMul")
def _matmul(c: _Converter, n: Node) -> None:
    name = n.outputs[0]
    if c.is_static(n.inputs[1]) and c.constant(n, 1).ndim == 2 and len(c.shape(n.inputs[0])) > 1:
        weights = c.constant(n, 1).astype(np.float32).T
        bias, final = _bias_behind(c, n)
        if final is not n:
            c.done.add(final.outputs[0])
        node = Node(n.kind, n.name, n.inputs, final.outputs, n.attributes, n.opset)
        _dense(c, node, c.get(n.inputs[0]), weights, bias, final.outputs[0])
        return
    shapes = [c.shape(value) for value in n.inputs]
    if min(len(shape) for shape in shapes) < 2:
        raise InvalidModelError(f"{n} multiplies a vector; expected matrices")
    rank = max(len(shape) for shape in shapes)
    operands = []
    for place, shape in enumerate(shapes):
        tensor = c.get(n.inputs[place])
        if len(shape) < rank:
            sizes = (1,) * (rank - len(shape)) + tuple(shape)
            tensor = c.reshape(tensor, f"{name}__operand_{place}", sizes)
        operands.append(tensor)
    tensor = c.add(
        "BATCH_MATMUL",
        operands,
        name,
        c.shape(name),
        form="BatchMatMulOptions",
        adjX=False,
        adjY=False,
    )
    c.set(n, tensor)


def _bias_behind(c: _Converter, n: Node) -> tuple[Array | None, Node]:
    """The stored summand right behind a product, and the node that adds it."""
    users = c.readers.get(n.outputs[0], [])
    width = c.shape(n.outputs[0])[-1]
    if len(users) == 1 and users[0].kind == "Add" and n.outputs[0] not in c.traced.outputs:
        add = users[0]
        other = add.inputs[1] if add.inputs[0] == n.outputs[0] else add.inputs[0]
        array = c.static.get(other)
        if array is not None and array.size == width and array.shape[-1:] == (width,):
            return array.reshape(-1), add
    return None, n


@_handles("Einsum")
def _einsum(c: _Converter, n: Node) -> None:
    """A product of two tensors: axes of both, of one, and summed ones, each brought together."""
    equation = str(n.get("equation")).replace(" ", "")
    name = n.outputs[0]
    left, _, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != 2 or "..." in equation or not result:
        raise InvalidModelError(
            f"{n} computes {equation}; expected two operands and named axes, e.g. bij,bjk->bik"
        )
    sizes: dict[str, int] = {}
    for term, value in zip(terms, n.inputs, strict=True):
        if len(set(term)) != len(term):
            raise InvalidModelError(f"{n} takes a diagonal ({equation}), which has no TFLite form")
        sizes.update(zip(term, c.shape(value), strict=True))
    first, second = terms
    batch = [a for a in result if a in first and a in second]
    summed = [a for a in first if a in second and a not in result]
    own = [[a for a in term if a not in batch and a not in summed] for term in terms]
    if any(a not in result for part in own for a in part):
        raise InvalidModelError(f"{n} sums an axis of one operand ({equation}); sum it before")

    def matrix(place: int, axes: Sequence[str], rows: Sequence[str], columns: Sequence[str]) -> str:
        tensor, label = c.get(n.inputs[place]), f"{name}__operand_{place}"
        perm = [terms[place].index(axis) for axis in axes]
        shape = [sizes[axis] for axis in axes]
        if perm != sorted(perm):
            operands = [tensor, c.integers(f"{label}_perm", perm)]
            tensor = c.add("TRANSPOSE", operands, f"{label}_turned", shape, form="TransposeOptions")
        three = [math.prod(sizes[a] for a in part) for part in (batch, rows, columns)]
        return c.reshape(tensor, label, three)

    one = matrix(0, [*batch, *own[0], *summed], own[0], summed)
    other = matrix(1, [*batch, *summed, *own[1]], summed, own[1])
    flat = [math.prod(sizes[a] for a in part) for part in (batch, own[0], own[1])]
    tensor = c.add(
        "BATCH_MATMUL",
        [one, other],
        f"{name}__product",
        flat,
        form="BatchMatMulOptions",
        adjX=False,
        adjY=False,
    )
    product_axes = [*batch, *own[0], *own[1]]
    tensor = c.reshape(tensor, f"{name}__whole", [sizes[axis] for axis in product_axes])
    perm = [product_axes.index(axis) for axis in result]
    if perm != sorted(perm):
        operands = [tensor, c.integers(f"{name}__perm", perm)]
        tensor = c.add("TRANSPOSE", operands, name, c.shape(name), form="TransposeOptions")
    c.set(n, tensor)


@_handles("Trilu")
def _trilu(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    k = _ints(c.constant(n, 1))[0] if n.has(1) else 0
    part = np.triu if n.get("upper", 1) else np.tril
    mask = part(np.ones(shape[-2:], np.float32), k)
    factor = c.graph.add_constant(f"{n.outputs[0]}__mask", mask)
    operands = [c.get(n.inputs[0]), factor]
    c.set(n, c.add("MUL", operands, n.outputs[0], shape, form="MulOptions"))


# --- normalisation


@_handles("BatchNormalization")
def _batch_norm(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.inputs[0]))
    order = c.only_order(n.inputs[0])
    gamma, beta, mean, variance = (c.constant(n, i).astype(np.float64) for i in range(1, 5))
    factor = gamma / np.sqrt(variance + float(n.get("epsilon", 1e-5)))
    summand = beta - mean * factor
    if _fold_into_layer(c, n, n.inputs[0], factor, summand):
        return
    sizes = (-1,) if order or rank == 2 else (-1, *[1] * (rank - 2))
    name, shape = n.outputs[0], c.out_shape(n, order)
    arrays = [a.astype(np.float32).reshape(sizes) for a in (factor, summand)]
    stored = [
        c.graph.add_constant(f"{name}__{label}", a)
        for label, a in zip(("factor", "summand"), arrays, strict=True)
    ]
    source = c.get(n.inputs[0], order)
    scaled = c.add("MUL", [source, stored[0]], f"{name}__scaled", shape, form="MulOptions")
    c.set(n, c.add("ADD", [scaled, stored[1]], name, shape, form="AddOptions"), order)


def _constant_into_layer(c: _Converter, n: Node) -> bool:
    """Put a stored factor or summand into the layer before, if it is one of each channel."""
    stored = [place for place in (0, 1) if c.is_static(n.inputs[place])]
    if len(stored) != 1 or c.out_dtype(n) != _FLOAT:
        return False
    place, source = stored[0], n.inputs[1 - stored[0]]
    shape, rank = c.shape(source), len(c.shape(source))
    if rank < 2 or c.shape(n.outputs[0]) != shape or (n.kind == "Div" and place == 0):
        return False
    array = c.constant(n, place).astype(np.float64)
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    axis = 1 if c.only_order(source) else rank - 1
    if any(size != 1 for i, size in enumerate(array.shape) if i != axis):
        return False
    each = np.broadcast_to(array.reshape(-1), (shape[axis],))
    if not np.isfinite(each).all() or (n.kind == "Div" and not each.all()):
        return False
    ones, zeros = np.ones(shape[axis]), np.zeros(shape[axis])
    factor, summand = {
        "Add": (ones, each),
        "Sub": (ones, -each) if place == 1 else (-ones, each),
        "Mul": (each, zeros),
        "Div": (1 / np.where(each == 0, 1, each), zeros),
    }[n.kind]
    if array.size == 1 and (factor == 1).all() and not summand.any():  # nothing, as of an exporter
        c.computed[n.outputs[0]] = _Value(dict(c.computed[source].tensors))
        return True
    return _fold_into_layer(c, n, source, factor, summand, axis)


def _fold_into_layer(
    c: _Converter, n: Node, source: str, factor: Array, summand: Array, axis: int = 1
) -> bool:
    """Put a factor and a summand of each channel into the layer before, if only this reads it.

    Args:
        n: The node that multiplies and adds.
        source: What it reads of the layer.
        axis: The ONNX axis that the factors are of.
    """
    if (
        source not in c.computed
        or len(c.readers.get(source, [])) != 1
        or source in c.traced.outputs
    ):
        return False
    tensors = c.computed[source].tensors
    if len(tensors) != 1:
        return False
    order, tensor = next(iter(tensors.items()))
    operator = next((o for o in c.graph.operators if tensor in o.outputs), None)
    row = operator if operator is not None and tensor == f"{source}__row" else None
    if row is not None:  # of a layer of one spatial axis
        operator = next((o for o in c.graph.operators if row.inputs[0] in o.outputs), None)
    cut = None
    if operator is not None and operator.inputs[0] == f"{source}__whole" and row is None:
        cut = operator  # off a transposed convolution
        operator = next((o for o in c.graph.operators if cut.inputs[0] in o.outputs), None)
    if operator is None or operator.kind not in WEIGHTS:
        return False
    place = WEIGHTS[operator.kind].bias
    if operator.activation != "NONE" or len(operator.inputs) <= place or not operator.inputs[place]:
        return False
    rank = len(c.shape(source))
    if axis != (1 if rank > 2 and order == last(rank) else rank - 1):  # channels are another one
        return False
    if sum(tensor in value.tensors.values() for value in c.computed.values()) != 1:
        return False  # it has another name too, which others may read
    weights, bias = operator.inputs[1], operator.inputs[place]
    array = c.graph.constant(weights).astype(np.float64)
    sizes = [1] * array.ndim
    sizes[3 if operator.kind == "DEPTHWISE_CONV_2D" else 0] = -1
    c.graph.set_value(weights, (array * factor.reshape(sizes)).astype(np.float32))
    folded = c.graph.constant(bias).astype(np.float64) * factor + summand
    c.graph.set_value(bias, folded.astype(np.float32))
    c.computed.pop(source)
    name = n.outputs[0]
    if row is not None:
        c.graph.rename({row.inputs[0]: name, tensor: f"{name}__row"})
        c.computed[name] = _Value({order: f"{name}__row"})
        return True
    if cut is not None:
        c.graph.rename({operator.output: f"{name}__whole"})
    c.set(n, tensor, order)
    return True


@_handles("InstanceNormalization", "GroupNormalization")
def _group_norm(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    rank, channels = len(shape), shape[1]
    groups = channels if n.kind == "InstanceNormalization" else int(n.get("num_groups"))
    gamma, beta = (c.constant(n, i).astype(np.float32) for i in (1, 2))
    if n.kind == "GroupNormalization" and len(gamma) == groups:  # opset 18
        gamma, beta = (np.repeat(a, channels // groups) for a in (gamma, beta))
    name, order = n.outputs[0], last(rank)
    source = c.get(n.inputs[0], order)
    whole = c.graph.shape(source)
    middle = math.prod(whole[1:-1])
    split = c.reshape(source, f"{name}__groups", (1, middle, groups, channels // groups))
    normal = _standardized(c, split, name, [1, 3], float(n.get("epsilon", 1e-5)))
    back = c.reshape(normal, f"{name}__normal", whole)
    c.set(n, _affine(c, back, name, gamma, beta), order)


@_handles("LayerNormalization")
def _layer_norm(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.inputs[0]))
    axis = int(n.get("axis", -1)) % rank
    name = n.outputs[0]
    source = c.get(n.inputs[0])
    normal = _standardized(c, source, name, list(range(axis, rank)), float(n.get("epsilon", 1e-5)))
    gamma = c.constant(n, 1).astype(np.float32)
    beta = c.constant(n, 2).astype(np.float32) if n.has(2) else None
    c.set(n, _affine(c, normal, name, gamma, beta))


def _standardized(
    c: _Converter, source: str, name: str, axes: Sequence[int], epsilon: float
) -> str:
    """(x - mean) / sqrt(variance + epsilon) over axes."""
    shape = c.graph.shape(source)
    small = [1 if i in axes else size for i, size in enumerate(shape)]
    over = c.integers(f"{name}__axes", axes)
    keep: dict[str, Any] = {"form": "ReducerOptions", "keepDims": True}
    mean = c.add("MEAN", [source, over], f"{name}__mean", small, **keep)
    apart = c.add("SUB", [source, mean], f"{name}__apart", shape, form="SubOptions")
    square = c.add(
        "SQUARED_DIFFERENCE",
        [source, mean],
        f"{name}__square",
        shape,
        form="SquaredDifferenceOptions",
    )
    variance = c.add("MEAN", [square, over], f"{name}__variance", small, **keep)
    raised = _with_scalar(c, "ADD", variance, epsilon, f"{name}__raised")
    root = c.add("RSQRT", [raised], f"{name}__root", small)
    return c.add("MUL", [apart, root], f"{name}__standardized", shape, form="MulOptions")


def _affine(c: _Converter, source: str, name: str, gamma: Array, beta: Array | None) -> str:
    shape = c.graph.shape(source)
    factor = c.graph.add_constant(f"{name}__gamma", gamma)
    label = name if beta is None else f"{name}__scaled"
    tensor = c.add("MUL", [source, factor], label, shape, form="MulOptions")
    if beta is None:
        return tensor
    summand = c.graph.add_constant(f"{name}__beta", beta)
    return c.add("ADD", [tensor, summand], name, shape, form="AddOptions")


@_handles("LRN")
def _lrn(c: _Converter, n: Node) -> None:
    size = int(n.get("size"))
    if size % 2 == 0:
        raise InvalidModelError(f"{n} sums over {size} channels; TFLite takes an odd number")
    tensor = c.add(
        "LOCAL_RESPONSE_NORMALIZATION",
        [c.get(n.inputs[0], last(4))],
        n.outputs[0],
        c.out_shape(n, last(4)),
        form="LocalResponseNormalizationOptions",
        radius=size // 2,
        bias=float(n.get("bias", 1.0)),
        alpha=float(n.get("alpha", 1e-4)) / size,
        beta=float(n.get("beta", 0.75)),
    )
    c.set(n, tensor, last(4))


@_handles("LpNormalization")
def _lp_norm(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    axis, p, name = int(n.get("axis", -1)) % len(shape), int(n.get("p", 2)), n.outputs[0]
    if p != 2:
        raise InvalidModelError(f"{n} has p = {p}; TFLite takes 2")
    order = last(len(shape)) if axis == 1 and len(shape) > 2 else ()
    place = order.index(axis) if order else axis
    source = c.get(n.inputs[0], order)
    c.set(n, _divided_by_length(c, source, name, place, 1e-12), order)


def _divided_by_length(c: _Converter, source: str, name: str, axis: int, least: float) -> str:
    shape = c.graph.shape(source)
    if axis == len(shape) - 1:
        return c.add("L2_NORMALIZATION", [source], name, shape, form="L2NormOptions")
    small = [1 if i == axis else size for i, size in enumerate(shape)]
    square = c.add("MUL", [source, source], f"{name}__square", shape, form="MulOptions")
    over = c.integers(f"{name}__axes", [axis])
    total = c.add(
        "SUM", [square, over], f"{name}__sum", small, form="ReducerOptions", keepDims=True
    )
    total = _with_scalar(c, "MAXIMUM", total, least, f"{name}__least")
    root = c.add("RSQRT", [total], f"{name}__root", small)
    return c.add("MUL", [source, root], name, shape, form="MulOptions")


@_handles("Softmax", "LogSoftmax")
def _softmax(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    rank, name = len(shape), n.outputs[0]
    kind = "SOFTMAX" if n.kind == "Softmax" else "LOG_SOFTMAX"
    form = "SoftmaxOptions" if kind == "SOFTMAX" else "LogSoftmaxOptions"
    options: dict[str, Any] = {"beta": 1.0} if kind == "SOFTMAX" else {}
    axis = int(n.get("axis", -1 if n.opset >= 13 else 1)) % rank
    if n.opset < 13 and axis != rank - 1:  # everything from that axis on is one
        flat = (math.prod(shape[:axis]), math.prod(shape[axis:]))
        source = c.reshape(c.get(n.inputs[0]), f"{name}__flat", flat)
        tensor = c.add(kind, [source], f"{name}__soft", flat, form=form, **options)
        c.set(n, c.reshape(tensor, name, shape))
        return
    order: Order = ()
    if axis != rank - 1:
        order = (*[i for i in range(rank) if i != axis], axis)
    elif c.only_order(n.inputs[0]):
        order = ()
    source = c.get(n.inputs[0], order)
    c.set(n, c.add(kind, [source], name, c.out_shape(n, order), form=form, **options), order)


# --- pools and reductions


@_handles("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool")
def _pool(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.inputs[0]))
    name, spatial = n.outputs[0], rank - 2
    order = last(rank)
    if n.kind.startswith("Global"):
        over = c.integers(f"{name}__axes", list(range(1, rank - 1)))
        kind = "MEAN" if n.kind == "GlobalAveragePool" else "REDUCE_MAX"
        operands = [c.get(n.inputs[0], order), over]
        tensor = c.add(
            kind, operands, name, c.out_shape(n, order), form="ReducerOptions", keepDims=True
        )
        c.set(n, tensor, order)
        return
    if n.kind == "LpPool" or spatial not in (1, 2):
        raise InvalidModelError(f"{n} of {spatial} spatial axes has no TFLite form")
    if len(n.outputs) > 1 and n.outputs[1] and c.readers.get(n.outputs[1]):
        raise InvalidModelError(f"{n} gives indices too, which TFLite's operator does not")
    kernel = list(n.get("kernel_shape"))
    strides = list(n.get("strides", [1] * spatial))
    dilations = list(n.get("dilations", [1] * spatial))
    if any(d != 1 for d in dilations):
        raise InvalidModelError(f"{n} is dilated, which TFLite's pools are not")
    sizes, final = list(c.shape(n.inputs[0])[2:]), list(c.shape(n.outputs[0])[2:])
    pads = _pads_of(n, sizes, kernel, strides, dilations)
    source = c.get(n.inputs[0], order)
    out = c.out_shape(n, order)
    if spatial == 1:
        shape = c.graph.shape(source)
        source = c.reshape(source, f"{name}__picture", (shape[0], 1, *shape[1:]))
        kernel, strides = [1, *kernel], [1, *strides]
        sizes, final, pads = [1, *sizes], [1, *final], [(0, 0), *pads]
        out = (out[0], 1, *out[1:])
    same = [_same_pads(s, k, t, 1) for s, k, t in zip(sizes, kernel, strides, strict=True)]
    fits = [-(-s // t) == f for s, t, f in zip(sizes, strides, final, strict=True)]
    average = n.kind == "AveragePool"
    inside = average and bool(n.get("count_include_pad", 0))
    correction: Array | None = None
    padding = 1
    if pads == same and all(fits) and not (inside and any(map(any, pads))):
        padding = 0
    else:
        # with ceil_mode the last window may reach beyond the border
        needed = [(f - 1) * t + k for f, t, k in zip(final, strides, kernel, strict=True)]
        behind = [m - s - p[0] for m, s, p in zip(needed, sizes, pads, strict=True)]
        whole = [(p[0], max(0, b)) for p, b in zip(pads, behind, strict=True)]
        if average:
            source = _padded(c, source, f"{name}__padded", whole)
            correction = _share_inside(sizes, pads, whole, kernel, strides, final, inside)
        else:
            # what is doubled at the border lies in the same windows, so that no maximum changes
            positive = _never_negative(c, source)
            kind = "PAD" if positive else "MIRROR_PAD"
            source = _padded(c, source, f"{name}__padded", whole, kind=kind)
    label = name if spatial == 2 and correction is None else f"{name}__pooled"
    tensor = c.add(
        "AVERAGE_POOL_2D" if average else "MAX_POOL_2D",
        [source],
        label,
        out,
        form="Pool2DOptions",
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        filterHeight=kernel[0],
        filterWidth=kernel[1],
        fusedActivationFunction=0,
    )
    if correction is not None:
        factor = c.graph.add_constant(f"{name}__share", correction)
        tensor = c.add("MUL", [tensor, factor], f"{name}__corrected", out, form="MulOptions")
    if spatial == 1:
        tensor = c.reshape(tensor, name, (out[0], *out[2:]))
    c.set(n, tensor, order)


def _share_inside(
    sizes: Sequence[int],
    pads: Sequence[tuple[int, int]],
    whole: Sequence[tuple[int, int]],
    kernel: Sequence[int],
    strides: Sequence[int],
    final: Sequence[int],
    inside: bool,
) -> Array | None:
    """Window size over the number of values that ONNX counts, ``[1, H, W, 1]``; None for 1s."""
    counts = []
    for size, pad, around, k, stride, out in zip(
        sizes, pads, whole, kernel, strides, final, strict=True
    ):
        counted = np.zeros(around[0] + size + around[1])
        first, behind = (around[0] - pad[0], pad[1]) if inside else (around[0], 0)
        counted[first : around[0] + size + behind] = 1
        counts.append(np.array([counted[i * stride : i * stride + k].sum() for i in range(out)]))
    number = counts[0][:, None] * counts[1][None, :]
    share = (kernel[0] * kernel[1] / np.maximum(number, 1)).astype(np.float32)
    return None if (share == 1).all() else share[None, :, :, None]


def _never_negative(c: _Converter, tensor: str) -> bool:
    operator = next((o for o in c.graph.operators if tensor in o.outputs), None)
    return operator is not None and (
        operator.kind in kernels.RECTIFYING | {"LOGISTIC", "SOFTMAX", "ABS"}
        or operator.activation in kernels.RECTIFYING
    )


_REDUCING = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
    "ReduceL2": "SUM",
    "ReduceSumSquare": "SUM",
    "ReduceL1": "SUM",
}


@_handles(*_REDUCING)
def _reduce(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    rank, name = len(shape), n.outputs[0]
    axes = n.get("axes")
    if axes is None and n.has(1):
        axes = _ints(c.constant(n, 1))
    if not axes:
        if n.get("noop_with_empty_axes", 0):
            c.computed[name] = _Value(dict(c.computed[n.inputs[0]].tensors))
            return
        axes = list(range(rank))
    axes = sorted(int(axis) % rank for axis in axes)
    kept = bool(n.get("keepdims", 1))
    order: Order = ()
    if c.only_order(n.inputs[0]):
        remaining = [axis for axis in last(rank) if axis not in axes]
        if kept or remaining == sorted(remaining):
            order = last(rank)
    source = c.get(n.inputs[0], order)
    whole = c.graph.shape(source)
    if n.kind in ("ReduceL2", "ReduceSumSquare"):
        source = c.add("MUL", [source, source], f"{name}__square", whole, form="MulOptions")
    elif n.kind == "ReduceL1":
        source = c.add("ABS", [source], f"{name}__size", whole, form="AbsOptions")
    places = sorted(order.index(axis) for axis in axes) if order else axes
    out_order = order if kept else ()
    label = f"{name}__sum" if n.kind == "ReduceL2" else name
    out = c.out_shape(n, out_order)
    tensor = c.add(
        _REDUCING[n.kind],
        [source, c.integers(f"{name}__axes", places)],
        label,
        out,
        dtype=c.out_dtype(n),
        form="ReducerOptions",
        keepDims=kept,
    )
    if n.kind == "ReduceL2":
        tensor = c.add("SQRT", [tensor], name, out)
    c.set(n, tensor, out_order)


@_handles("ArgMax", "ArgMin")
def _arg(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    rank, name = len(shape), n.outputs[0]
    axis = int(n.get("axis", 0)) % rank
    order: Order = ()
    if c.only_order(n.inputs[0]):
        remaining = [a for a in last(rank) if a != axis]
        if remaining == sorted(remaining):
            order = last(rank)
    place = order.index(axis) if order else axis
    left = tuple(size for i, size in enumerate(shape) if i != axis)
    kind = "ARG_MAX" if n.kind == "ArgMax" else "ARG_MIN"
    operands = [
        c.get(n.inputs[0], order),
        c.graph.add_constant(f"{name}__axis", np.array(place, np.int32)),
    ]
    label = f"{name}__place" if n.get("keepdims", 1) else name
    tensor = c.add(
        kind,
        operands,
        label,
        left,
        dtype=np.dtype(np.int32),
        form="ArgMaxOptions" if kind == "ARG_MAX" else "ArgMinOptions",
        outputType=2,
    )
    if n.get("keepdims", 1):
        tensor = c.reshape(tensor, name, c.shape(name))
    c.set(n, tensor)


@_handles("TopK")
def _topk(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    rank = len(shape)
    axis = int(n.get("axis", -1)) % rank
    if axis != rank - 1 or not n.get("largest", 1):
        raise InvalidModelError(f"{n}: TFLite picks the largest along the last axis only")
    k = int(_ints(c.constant(n, 1))[0]) if n.has(1) else int(n.get("k"))
    operands = [
        c.get(n.inputs[0]),
        c.graph.add_constant(f"{n.outputs[0]}__k", np.array(k, np.int32)),
    ]
    outputs = [
        c.put(n.outputs[0], c.shape(n.outputs[0]), c.out_dtype(n)),
        c.put(n.outputs[1], c.shape(n.outputs[1]), np.dtype(np.int32)),
    ]
    c.graph.operators.append(
        Operator("TOPK_V2", tuple(operands), tuple(outputs), MappingProxyType({}), "TopKV2Options")
    )
    for place, tensor in enumerate(outputs):
        c.set(n, tensor, place=place)


@_handles("CumSum")
def _cumsum(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.inputs[0]))
    axis = np.array(_ints(c.constant(n, 1))[0] % rank, np.int32)
    operands = [c.get(n.inputs[0]), c.graph.add_constant(f"{n.outputs[0]}__axis", axis)]
    flags: dict[str, Any] = {key: bool(n.get(key, 0)) for key in ("exclusive", "reverse")}
    tensor = c.add(
        "CUMSUM", operands, n.outputs[0], c.shape(n.outputs[0]), form="CumsumOptions", **flags
    )
    c.set(n, tensor)


# --- moves


@_handles("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(c: _Converter, n: Node) -> None:
    name, shape = n.outputs[0], c.shape(n.outputs[0])
    source = n.inputs[0]
    before = c.shape(source)
    for order, there in c.computed[source].tensors.items():
        after = _split_order(before, order, shape)
        if after:
            sizes = _turned(shape, after)
            c.set(n, c.reshape(there, name, sizes), after)
            return
    tensor = None
    for order, there in c.computed[source].tensors.items():
        if not order or _only_ones_move(before, order):
            tensor = there
            break
    tensor = tensor or c.get(source)
    if c.graph.shape(tensor) == tuple(shape):
        c.computed[name] = _Value({(): tensor})
        return
    c.set(n, c.reshape(tensor, name, shape))


#: Axes of ``[N, groups, channels, H, W]`` with height and width first, as channels last has them.
_GROUPS_LAST = (0, 3, 4, 1, 2)


def _split_order(before: Sequence[int], order: Order, after: Sequence[int]) -> Order:
    """The order behind a Reshape that splits channels which lie last, or joins them again, or that
    leaves them and joins or splits the axes behind them."""
    if len(before) > 2 and len(after) > 2 and order == last(len(before)):
        if tuple(before[:2]) == tuple(after[:2]) and len(after) != len(before):
            return last(len(after))
    if order == last(4) and len(before) == 4 and len(after) == 5:
        kept = before[0] == after[0] and tuple(before[2:]) == tuple(after[3:])
        return _GROUPS_LAST if kept else ()
    if order == _GROUPS_LAST and len(after) == 4:
        kept = before[0] == after[0] and tuple(before[3:]) == tuple(after[2:])
        return last(4) if kept else ()
    return ()


@_handles("Transpose")
def _transpose(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.inputs[0]))
    perm = tuple(n.get("perm", tuple(range(rank))[::-1]))
    own = tuple(range(rank))
    # an order of the input's axes is one of the output's as well: none is moved where it fits
    there = {}
    for order, tensor in c.computed[n.inputs[0]].tensors.items():
        now = tuple(perm.index(axis) for axis in order or own)
        there[() if now == own else now] = tensor
    if () in there or (rank > 2 and last(rank) in there):
        c.computed[n.outputs[0]] = _Value(there)
        return
    order, tensor = next(iter(c.computed[n.inputs[0]].tensors.items()))
    swaps_groups = order == _GROUPS_LAST and perm == (0, 2, 1, 3, 4)
    after = _GROUPS_LAST if swaps_groups else ()
    axes = order or own
    turned = [axes.index(perm[axis]) for axis in after or own]
    shape = [c.graph.shape(tensor)[axis] for axis in turned]
    if _only_ones_move(c.graph.shape(tensor), turned):
        c.set(n, c.reshape(tensor, n.outputs[0], shape), after)
        return
    operands = [tensor, c.integers(f"{n.outputs[0]}__perm", turned)]
    moved = c.add(
        "TRANSPOSE", operands, n.outputs[0], shape, dtype=c.out_dtype(n), form="TransposeOptions"
    )
    c.set(n, moved, after)


@_handles("Concat")
def _concat(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.outputs[0]))
    axis = int(n.get("axis")) % rank
    order = c.shared(n)
    names = [name for name in n.inputs if 0 not in c.shape(name)]
    operands = [c.get(name, order) for name in names]
    tensor = c.add(
        "CONCATENATION",
        operands,
        n.outputs[0],
        c.out_shape(n, order),
        dtype=c.out_dtype(n),
        form="ConcatenationOptions",
        axis=order.index(axis) if order else axis,
        fusedActivationFunction=0,
    )
    c.set(n, tensor, order)


@_handles("Split")
def _split(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    rank = len(shape)
    axis = int(n.get("axis", 0)) % rank
    order = c.only_order(n.inputs[0])
    place = order.index(axis) if order else axis
    sizes = [c.shape(name)[axis] for name in n.outputs]
    operands = [
        c.get(n.inputs[0], order),
        c.integers(f"{n.outputs[0]}__sizes", sizes),
        c.graph.add_constant(f"{n.outputs[0]}__axis", np.array(place, np.int32)),
    ]
    outputs = [
        c.put(name, c.out_shape(n, order, i), c.out_dtype(n, i)) for i, name in enumerate(n.outputs)
    ]
    c.graph.operators.append(
        Operator(
            "SPLIT_V",
            tuple(operands),
            tuple(outputs),
            MappingProxyType({"numSplits": len(outputs)}),
            "SplitVOptions",
        )
    )
    for i, tensor in enumerate(outputs):
        c.set(n, tensor, order, place=i)


@_handles("Slice")
def _slice(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    rank = len(shape)
    if n.opset < 10:
        starts, ends = list(n.get("starts")), list(n.get("ends"))
        axes, steps = list(n.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = _ints(c.constant(n, 1)), _ints(c.constant(n, 2))
        axes = _ints(c.constant(n, 3)) if n.has(3) else list(range(len(starts)))
        steps = _ints(c.constant(n, 4)) if n.has(4) else [1] * len(starts)
    begins, stops, strides = [0] * rank, list(shape), [1] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, size = axis % rank, shape[axis % rank]
        first, stop, _ = slice(start, end, step).indices(size)
        begins[axis], stops[axis], strides[axis] = first, stop, step
    order = c.only_order(n.inputs[0])
    begins, stops, strides = (list(_turned(each, order)) for each in (begins, stops, strides))
    source = c.get(n.inputs[0], order)
    name, out = n.outputs[0], c.out_shape(n, order)
    if all(step == 1 for step in strides):
        pair = [c.integers(f"{name}__begin", begins), c.integers(f"{name}__size", out)]
        tensor = c.add(
            "SLICE", [source, *pair], name, out, dtype=c.out_dtype(n), form="SliceOptions"
        )
        c.set(n, tensor, order)
        return
    mask = sum(1 << i for i, stop in enumerate(stops) if stop < 0)  # down to the first element
    three = [
        c.integers(f"{name}__{label}", each)
        for label, each in (("begin", begins), ("end", stops), ("strides", strides))
    ]
    tensor = c.add(
        "STRIDED_SLICE",
        [source, *three],
        name,
        out,
        dtype=c.out_dtype(n),
        form="StridedSliceOptions",
        endMask=mask,
    )
    c.set(n, tensor, order)


@_handles("Gather")
def _gather(c: _Converter, n: Node) -> None:
    rank = len(c.shape(n.inputs[0]))
    axis = int(n.get("axis", 0)) % rank
    name = n.outputs[0]
    if c.is_static(n.inputs[1]):
        places = c.constant(n, 1)
        size = c.shape(n.inputs[0])[axis]
        places = np.where(places < 0, places + size, places)
        order = c.only_order(n.inputs[0]) if places.ndim == 1 else ()
        indices = c.store(n.inputs[1], places)
    else:
        order = ()
        indices = c.get(n.inputs[1])
    operands = [c.get(n.inputs[0], order), indices]
    tensor = c.add(
        "GATHER",
        operands,
        name,
        c.out_shape(n, order),
        dtype=c.out_dtype(n),
        form="GatherOptions",
        axis=order.index(axis) if order else axis,
        batchDims=0,
    )
    c.set(n, tensor, order)


@_handles("GatherND")
def _gather_nd(c: _Converter, n: Node) -> None:
    if n.get("batch_dims", 0):
        raise InvalidModelError(f"{n} has batch axes, which TFLite's does not")
    operands = [c.get(n.inputs[0]), c.get(n.inputs[1])]
    tensor = c.add(
        "GATHER_ND",
        operands,
        n.outputs[0],
        c.shape(n.outputs[0]),
        dtype=c.out_dtype(n),
        form="GatherNdOptions",
    )
    c.set(n, tensor)


@_handles("Expand")
def _expand(c: _Converter, n: Node) -> None:
    name, shape = n.outputs[0], c.shape(n.outputs[0])
    if tuple(c.shape(n.inputs[0])) == tuple(shape):
        c.computed[name] = _Value(dict(c.computed[n.inputs[0]].tensors))
        return
    order = c.shared(n, [0])
    out = c.out_shape(n, order)
    operands = [c.operand(n, 0, order), c.integers(f"{name}__shape", out)]
    tensor = c.add(
        "BROADCAST_TO",
        operands,
        name,
        out,
        dtype=c.out_dtype(n),
        form="BroadcastToOptions",
        version=2,
    )
    c.set(n, tensor, order)


@_handles("Tile")
def _tile(c: _Converter, n: Node) -> None:
    order = c.shared(n, [0])
    times = list(_turned(_ints(c.constant(n, 1)), order))
    operands = [c.get(n.inputs[0], order), c.integers(f"{n.outputs[0]}__times", times)]
    tensor = c.add(
        "TILE",
        operands,
        n.outputs[0],
        c.out_shape(n, order),
        dtype=c.out_dtype(n),
        form="TileOptions",
    )
    c.set(n, tensor, order)


@_handles("Pad")
def _pad(c: _Converter, n: Node) -> None:
    shape = c.shape(n.inputs[0])
    rank, name = len(shape), n.outputs[0]
    mode = n.get("mode", "constant")
    if n.opset < 11:
        pads, number = list(n.get("pads")), float(n.get("value", 0.0))
    else:
        pads = _ints(c.constant(n, 1))
        number = float(c.constant(n, 2).reshape(())) if n.has(2) else 0.0
        if n.has(3):
            axes = [axis % rank for axis in _ints(c.constant(n, 3))]
            whole = [0] * (2 * rank)
            for i, axis in enumerate(axes):
                whole[axis], whole[rank + axis] = pads[i], pads[len(axes) + i]
            pads = whole
    order = c.only_order(n.inputs[0])
    pairs = [(pads[i], pads[rank + i]) for i in range(rank)]
    pairs = list(_turned(pairs, order))  # type: ignore[arg-type]
    source = c.get(n.inputs[0], order)
    if any(min(pair) < 0 for pair in pairs):
        source, pairs = _cropped(c, source, name, pairs)
    if not any(any(pair) for pair in pairs):
        c.set(n, source, order)
        return
    amounts = c.graph.add_constant(f"{name}__pads", np.array(pairs, np.int32))
    out, dtype = c.out_shape(n, order), c.out_dtype(n)
    if mode == "constant":
        if number == 0:
            tensor = c.add("PAD", [source, amounts], name, out, dtype=dtype, form="PadOptions")
        else:
            value = c.graph.add_constant(f"{name}__value", np.array(number, np.float32))
            tensor = c.add(
                "PADV2", [source, amounts, value], name, out, dtype=dtype, form="PadV2Options"
            )
    elif mode == "reflect":
        tensor = c.add(
            "MIRROR_PAD", [source, amounts], name, out, dtype=dtype, form="MirrorPadOptions", mode=0
        )
    elif mode in ("edge", "wrap"):
        tensor = _bordered(c, source, name, pairs, mode)
    else:
        raise InvalidModelError(f"{n} pads by {mode}, which TFLite has no form for")
    c.set(n, tensor, order)


def _cropped(
    c: _Converter, tensor: str, name: str, pairs: Sequence[tuple[int, int]]
) -> tuple[str, list[tuple[int, int]]]:
    shape = c.graph.shape(tensor)
    begins = [max(0, -front) for front, _ in pairs]
    sizes = [
        size - max(0, -front) - max(0, -behind)
        for size, (front, behind) in zip(shape, pairs, strict=True)
    ]
    operands = [tensor, c.integers(f"{name}__begin", begins), c.integers(f"{name}__size", sizes)]
    cut = c.add("SLICE", operands, f"{name}__cropped", sizes, form="SliceOptions")
    return cut, [(max(0, front), max(0, behind)) for front, behind in pairs]


def _bordered(
    c: _Converter,
    tensor: str,
    name: str,
    pairs: Sequence[tuple[int, int]],
    mode: Literal["edge", "wrap"],
) -> str:
    """Borders of values that are there already, axis by axis, by gathering them."""
    for axis, (front, behind) in enumerate(pairs):
        if not front and not behind:
            continue
        shape = list(c.graph.shape(tensor))
        places = np.pad(np.arange(shape[axis]), (front, behind), mode=mode)
        shape[axis] = len(places)
        operands = [tensor, c.integers(f"{name}__places_{axis}", places.tolist())]
        tensor = c.add(
            "GATHER", operands, f"{name}__edge_{axis}", shape, form="GatherOptions", axis=axis
        )
    return tensor


@_handles("Resize", "Upsample")
def _resize(c: _Converter, n: Node) -> None:
    before, after = c.shape(n.inputs[0]), c.shape(n.outputs[0])
    rank, name = len(before), n.outputs[0]
    if before[:2] != after[:2] or rank not in (3, 4):
        raise InvalidModelError(
            f"{n} resizes from {list(before)} to {list(after)}; TFLite resizes "
            f"height and width only"
        )
    mode = n.get("mode", "nearest")
    where = n.get(
        "coordinate_transformation_mode", "half_pixel" if n.kind == "Resize" else "asymmetric"
    )
    if n.kind == "Upsample" or n.opset < 11:
        where = "asymmetric"
    order = last(rank)
    tensor = c.get(n.inputs[0], order)
    out = c.out_shape(n, order)
    old, new = list(before[2:]), list(after[2:])
    if rank == 3:
        shape = c.graph.shape(tensor)
        tensor = c.reshape(tensor, f"{name}__picture", (shape[0], 1, *shape[1:]))
        old, new, out = [1, *old], [1, *new], (out[0], 1, *out[1:])
    if mode == "nearest":
        rounding = n.get("nearest_mode", "round_prefer_floor" if n.opset >= 11 else "floor")
        tensor = _nearest(c, n, tensor, name, old, new, where, rounding)
    elif mode in ("linear", "bilinear"):
        if where not in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
            raise InvalidModelError(f"{n} places pixels by {where}, which TFLite has no form for")
        if where == "pytorch_half_pixel" and 1 in new:
            raise InvalidModelError(f"{n} resizes to 1 by {where}, which TFLite has no form for")
        tensor = c.add(
            "RESIZE_BILINEAR",
            [tensor, c.integers(f"{name}__size", new)],
            f"{name}__resized",
            (out[0], *new, out[-1]),
            form="ResizeBilinearOptions",
            version=3,
            alignCorners=where == "align_corners",
            halfPixelCenters="half_pixel" in where,
        )
    else:
        raise InvalidModelError(f"{n} resizes by {mode}, which TFLite has no form for")
    if rank == 3:
        tensor = c.reshape(tensor, name, (out[0], *out[2:]))
    c.set(n, tensor, order)


def _nearest(
    c: _Converter,
    n: Node,
    tensor: str,
    name: str,
    old: Sequence[int],
    new: Sequence[int],
    where: str,
    rounding: str,
) -> str:
    places = [_picked(n, a, b, where, rounding) for a, b in zip(old, new, strict=True)]
    plain = [np.minimum(np.arange(b) * a // b, a - 1) for a, b in zip(old, new, strict=True)]
    out = (1, *new, c.graph.shape(tensor)[3])
    if all(np.array_equal(a, b) for a, b in zip(places, plain, strict=True)):
        return c.add(
            "RESIZE_NEAREST_NEIGHBOR",
            [tensor, c.integers(f"{name}__size", new)],
            f"{name}__resized",
            out,
            form="ResizeNearestNeighborOptions",
            alignCorners=False,
            halfPixelCenters=False,
        )
    for axis, picked in enumerate(places, start=1):
        shape = list(c.graph.shape(tensor))
        shape[axis] = len(picked)
        operands = [tensor, c.integers(f"{name}__places_{axis}", picked.tolist())]
        label = f"{name}__resized_{axis}"
        tensor = c.add("GATHER", operands, label, shape, form="GatherOptions", axis=axis)
    return tensor


def _picked(n: Node, old: int, new: int, where: str, rounding: str) -> Array:
    """Old position that each new one takes its value from (ONNX, Resize)."""
    steps = np.arange(new, dtype=np.float64)
    share = new / old
    if where == "asymmetric":
        place = steps / share
    elif where == "align_corners":
        place = steps * (old - 1) / (new - 1) if new > 1 else steps * 0
    elif where in ("half_pixel", "pytorch_half_pixel"):
        place = (steps + 0.5) / share - 0.5 if where == "half_pixel" or new > 1 else steps * 0
    else:
        raise InvalidModelError(f"{n} places pixels by {where}, which TFLite has no form for")
    if rounding == "floor":
        rounded = np.floor(place)
    elif rounding == "ceil":
        rounded = np.ceil(place)
    elif rounding == "round_prefer_ceil":
        rounded = np.floor(place + 0.5)
    else:
        rounded = np.ceil(place - 0.5)
    return np.clip(rounded, 0, old - 1).astype(np.int64)


@_handles("DepthToSpace")
def _depth_to_space(c: _Converter, n: Node) -> None:
    block, name = int(n.get("blocksize")), n.outputs[0]
    source = c.get(n.inputs[0], last(4))
    out = c.out_shape(n, last(4))
    if (
        n.get("mode", "DCR") == "CRD"
    ):  # channels are ordered by depth first: PyTorch's pixel shuffle
        depth = c.graph.shape(source)[3] // block**2
        order = np.arange(depth * block**2).reshape(depth, block**2).T.ravel()
        places = c.integers(f"{name}__order", order.tolist())
        source = c.add(
            "GATHER",
            [source, places],
            f"{name}__sorted",
            c.graph.shape(source),
            form="GatherOptions",
            axis=3,
        )
    tensor = c.add(
        "DEPTH_TO_SPACE", [source], name, out, form="DepthToSpaceOptions", blockSize=block
    )
    c.set(n, tensor, last(4))


@_handles("SpaceToDepth")
def _space_to_depth(c: _Converter, n: Node) -> None:
    tensor = c.add(
        "SPACE_TO_DEPTH",
        [c.get(n.inputs[0], last(4))],
        n.outputs[0],
        c.out_shape(n, last(4)),
        form="SpaceToDepthOptions",
        blockSize=int(n.get("blocksize")),
    )
    c.set(n, tensor, last(4))


@_handles("OneHot")
def _one_hot(c: _Converter, n: Node) -> None:
    depth = np.array(_ints(c.constant(n, 1))[0], np.int32)
    off, on = np.ravel(c.constant(n, 2))
    name = n.outputs[0]
    operands = [
        c.get(n.inputs[0]),
        c.graph.add_constant(f"{name}__depth", depth),
        c.store(f"{name}__on", np.array(on)),
        c.store(f"{name}__off", np.array(off)),
    ]
    tensor = c.add(
        "ONE_HOT",
        operands,
        name,
        c.shape(name),
        dtype=c.out_dtype(n),
        form="OneHotOptions",
        axis=int(n.get("axis", -1)),
    )
    c.set(n, tensor)


# --- recurrent layers, a step at a time

#: Steps that are written one by one; a longer sequence would be a file of mere repetition.
MOST_STEPS = 256


@_handles("LSTM", "GRU", "RNN")
def _recurrent(c: _Converter, n: Node) -> None:
    """Unrolled: what all steps read of the input is one product, then each step its own operators.

    ONNX orders gates input, output, forget, cell (LSTM) and update, reset, hidden (GRU).
    """
    steps, batch, _ = c.shape(n.inputs[0])
    if n.get("layout", 0):
        raise InvalidModelError(f"{n} has its batch first (layout 1); export it with time first")
    if steps > MOST_STEPS:
        raise InvalidModelError(
            f"{n} has {steps} steps; up to {MOST_STEPS} are written one by one, TFLite has no "
            f"other form: feed it in pieces"
        )
    if n.has(4) or (n.kind == "LSTM" and n.has(7)) or n.get("clip") or n.get("input_forget", 0):
        raise InvalidModelError(
            f"{n} has lengths of sequences, peepholes, a clip or coupled gates, which have no "
            f"TFLite form"
        )
    size = int(n.get("hidden_size"))
    direction = n.get("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    default = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
    curves = list(n.get("activations", default[n.kind] * count))
    if n.kind == "GRU" and n.get("linear_before_reset", 0) not in (0, 1):
        raise InvalidModelError(f"{n}: expected linear_before_reset 0 or 1")
    whole, lasts, cells = [], [], []
    for number in range(count):
        backward = direction == "reverse" or number == 1
        own = curves[number * len(default[n.kind]) :]
        part = _one_direction(c, n, number, backward, own, size, steps, batch)
        whole.append(part[0])
        lasts.append(part[1])
        cells.append(part[2])
    for place, parts, axes in ((0, whole, 4), (1, lasts, 3), (2, cells, 3)):
        if place >= len(n.outputs) or not n.outputs[place]:
            continue
        if not c.readers.get(n.outputs[place]) and n.outputs[place] not in c.traced.outputs:
            continue
        tensor, name = parts[0], n.outputs[place]
        axis = axes - 3
        if count > 1:
            shape = list(c.graph.shape(parts[0]))
            shape[axis] = count
            tensor = c.add(
                "CONCATENATION",
                parts,
                name,
                shape,
                form="ConcatenationOptions",
                axis=axis,
                fusedActivationFunction=0,
            )
        c.set(n, tensor, place=place)


def _one_direction(
    c: _Converter,
    n: Node,
    number: int,
    backward: bool,
    curves: Sequence[str],
    size: int,
    steps: int,
    batch: int,
) -> tuple[str, str, str]:
    """(hidden states ``[T, 1, N, H]``, the last one ``[1, N, H]``, the last cells or "")."""
    label = f"{n.outputs[0] or n.name}__{'backward' if backward else 'forward'}"
    kernel = c.constant(n, 1)[number].astype(np.float32)
    recurrent = c.constant(n, 2)[number].astype(np.float32)
    gates = len(kernel)
    bias = np.zeros(2 * gates, np.float32)
    if n.has(3):
        bias = c.constant(n, 3)[number].astype(np.float32)
    own, inner = bias[:gates], bias[gates:]
    apart = n.kind == "GRU" and n.get("linear_before_reset", 0)
    if not apart:  # the two biases are one, but where the reset gate takes hold of the second
        own, inner = own + inner, np.zeros_like(inner)
    if batch != 1:
        raise InvalidModelError(f"{n} has a batch of {batch}; expected 1")
    source = c.get(n.inputs[0])
    rows = c.reshape(source, f"{label}__rows", (steps, c.shape(n.inputs[0])[2]))
    read = _product(c, rows, kernel, own, f"{label}__read", steps)
    weights = c.graph.add_constant(f"{label}__recurrent", recurrent)
    extra = c.graph.add_constant(f"{label}__inner", inner)
    hidden = _state(c, n, 5, number, f"{label}__hidden", size)
    cell = _state(c, n, 6, number, f"{label}__cell", size) if n.kind == "LSTM" else None
    hiddens: dict[int, str] = {}
    for step in reversed(range(steps)) if backward else range(steps):
        name = f"{label}__{step}"
        pair = [c.integers(f"{name}__b", [step, 0]), c.integers(f"{name}__s", [1, gates])]
        x = c.add("SLICE", [read, *pair], f"{name}__x", (1, gates), form="SliceOptions")
        h = None
        if hidden is not None:
            h = _product_with(c, hidden, weights, extra, f"{name}__h", gates)
        elif apart and inner.any():
            h = c.graph.add_constant(f"{name}__h", inner[None])
        if n.kind == "LSTM":
            hidden, cell = _lstm_step(c, name, x, h, cell, size, curves)
        elif n.kind == "GRU":
            hidden = _gru_step(c, name, x, h, hidden, size, curves, recurrent, inner, bool(apart))
        else:
            total = x if h is None else _plus(c, x, h, f"{name}__sum", gates)
            hidden = _curve(c, curves[0], total, f"{name}__out", size)
        hiddens[step] = hidden
    parts = [
        c.reshape(hiddens[step], f"{label}__{step}__row", (1, 1, 1, size)) for step in range(steps)
    ]
    shape = (steps, 1, 1, size)
    states = parts[0]
    if steps > 1:
        states = c.add(
            "CONCATENATION",
            parts,
            f"{label}__states",
            shape,
            form="ConcatenationOptions",
            axis=0,
            fusedActivationFunction=0,
        )
    assert hidden is not None
    ended = c.reshape(hidden, f"{label}__last", (1, 1, size))
    cells = "" if cell is None else c.reshape(cell, f"{label}__last_cell", (1, 1, size))
    return states, ended, cells


def _state(c: _Converter, n: Node, place: int, number: int, name: str, size: int) -> str | None:
    """A state that the first step reads ``[1, H]``; None for zeros."""
    if not n.has(place):
        return None
    if c.is_static(n.inputs[place]):
        array = c.constant(n, place)[number].astype(np.float32)
        return c.graph.add_constant(name, array) if array.any() else None
    tensor = c.get(n.inputs[place])
    if c.shape(n.inputs[place])[0] > 1:
        pair = [c.integers(f"{name}__b", [number, 0, 0]), c.integers(f"{name}__s", [1, 1, size])]
        tensor = c.add("SLICE", [tensor, *pair], f"{name}__own", (1, 1, size), form="SliceOptions")
    return c.reshape(tensor, name, (1, size))


def _product(c: _Converter, source: str, weights: Array, bias: Array, name: str, rows: int) -> str:
    stored = c.graph.add_constant(f"{name}__weights", weights)
    return _product_with(
        c, source, stored, c.graph.add_constant(f"{name}__bias", bias), name, len(weights), rows
    )


def _product_with(
    c: _Converter, source: str, weights: str, bias: str, name: str, width: int, rows: int = 1
) -> str:
    return c.add(
        "FULLY_CONNECTED",
        [source, weights, bias],
        name,
        (rows, width),
        form="FullyConnectedOptions",
        keepNumDims=False,
        fusedActivationFunction=0,
    )


def _plus(c: _Converter, one: str, other: str, name: str, width: int) -> str:
    return c.add("ADD", [one, other], name, (1, width), form="AddOptions")


def _gate(c: _Converter, total: str, place: int, size: int, name: str) -> str:
    pair = [c.integers(f"{name}__b", [0, place * size]), c.integers(f"{name}__s", [1, size])]
    return c.add("SLICE", [total, *pair], name, (1, size), form="SliceOptions")


_CURVES = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "Relu": "RELU"}


def _curve(c: _Converter, kind: str, source: str, name: str, size: int) -> str:
    if kind not in _CURVES:
        raise InvalidModelError(f"{name}: a recurrent layer with {kind} has no TFLite form")
    return c.add(_CURVES[kind], [source], name, (1, size))


def _lstm_step(
    c: _Converter,
    name: str,
    x: str,
    h: str | None,
    cell: str | None,
    size: int,
    curves: Sequence[str],
) -> tuple[str, str]:
    total = x if h is None else _plus(c, x, h, f"{name}__sum", 4 * size)
    gates = {
        key: _gate(c, total, place, size, f"{name}__{key}")
        for place, key in enumerate(("input", "output", "forget", "new"))
    }
    opened = {
        key: _curve(c, curves[1] if key == "new" else curves[0], gate, f"{name}__{key}_gate", size)
        for key, gate in gates.items()
        if key != "forget" or cell is not None
    }
    new_cell = c.add(
        "MUL", [opened["input"], opened["new"]], f"{name}__taken", (1, size), form="MulOptions"
    )
    if cell is not None:
        kept = c.add("MUL", [opened["forget"], cell], f"{name}__kept", (1, size), form="MulOptions")
        new_cell = _plus(c, kept, new_cell, f"{name}__cell", size)
    shown = _curve(c, curves[2], new_cell, f"{name}__shown", size)
    hidden = c.add("MUL", [opened["output"], shown], f"{name}__out", (1, size), form="MulOptions")
    return hidden, new_cell


def _gru_step(
    c: _Converter,
    name: str,
    x: str,
    h: str | None,
    hidden: str | None,
    size: int,
    curves: Sequence[str],
    recurrent: Array,
    inner: Array,
    apart: bool,
) -> str:
    """h' = (1 - z) n + z h, written as n + z (h - n)."""
    zs, rs, ns = (_gate(c, x, i, size, f"{name}__x{key}") for i, key in enumerate("zrn"))
    hz, hr, hn = (
        (None,) * 3
        if h is None
        else (_gate(c, h, i, size, f"{name}__h{key}") for i, key in enumerate("zrn"))
    )
    z_sum = zs if hz is None else _plus(c, zs, hz, f"{name}__z_sum", size)
    z = _curve(c, curves[0], z_sum, f"{name}__z", size)
    new = ns
    if h is not None:
        assert hr is not None and hn is not None
        r = _curve(c, curves[0], _plus(c, rs, hr, f"{name}__r_sum", size), f"{name}__r", size)
        if apart or hidden is None:
            within = c.add("MUL", [r, hn], f"{name}__within", (1, size), form="MulOptions")
        else:
            reset = c.add("MUL", [r, hidden], f"{name}__reset", (1, size), form="MulOptions")
            within = _product(
                c,
                reset,
                recurrent[2 * size :],
                inner[2 * size :],
                f"{name}__within",
                1,
            )
        new = _plus(c, ns, within, f"{name}__n_sum", size)
    n_curve = _curve(c, curves[1], new, f"{name}__n", size)
    if hidden is None:
        kept = c.add("MUL", [z, n_curve], f"{name}__kept", (1, size), form="MulOptions")
        return c.add("SUB", [n_curve, kept], f"{name}__out", (1, size), form="SubOptions")
    apart_by = c.add("SUB", [hidden, n_curve], f"{name}__apart", (1, size), form="SubOptions")
    kept = c.add("MUL", [z, apart_by], f"{name}__kept", (1, size), form="MulOptions")
    return _plus(c, n_curve, kept, f"{name}__out", size)
