"""A float graph that rounds its own tensors as a device will store them.

Division, rounding, limits and multiplication are operators of the graph, whose results are those of
:meth:`edgekit.records.encodings.Encoding.fake_quantize`: they run natively, on values that are
still in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.graph.flatbuffer import Graph, Quantization

#: Axes of a tensor at the most that all operators here take.
AXES = 6
#: The least and the largest int8.
INT8 = (-128, 127)
#: (scale, zero_point)
Number = tuple[float, int]


class _Rounding:
    """A graph that gets operators, and the order in which all will run.

    Args:
        graph: Float; it is changed.
        limits: The least and the largest integer.
    """

    def __init__(self, graph: Graph, limits: tuple[int, int]) -> None:
        self.graph, self.limits = graph, limits
        self.operators = self.graph.operators
        self._next = len(self.operators)
        self._order: list[int] = []
        self._now: dict[str, str] = {}

    def now(self, name: str) -> str:
        """What is read in a tensor's place."""
        return self._now.get(name, name)

    def added(self, name: str) -> str:
        """Let the operator that was appended last run next; returns what it writes."""
        self._order.append(self._next)
        self._next += 1
        return name

    def replace(self, name: str, other: str) -> None:
        """Let later operators read another tensor."""
        self._now[name] = other

    def steps(self, name: str, number: Number, *, real: bool = False) -> str:
        """Whole steps of a tensor, without the zero_point, as float.

        Args:
            name: The tensor.
            number: Its scale and zero_point.
            real: Give what the steps stand for instead.
        """
        graph, (scale, zero_point), shape = self.graph, number, self.graph.shape(name)
        flat = len(shape) > AXES
        tensor = self.added(graph.add_reshape(name, (-1, int(np.prod(shape))))) if flat else name
        tensor = self.added(graph.add_scaled("DIV", tensor, scale))
        tensor = self.added(graph.add_round(tensor))
        tensor = self.added(graph.add_scaled("MAXIMUM", tensor, self.limits[0] - zero_point))
        tensor = self.added(graph.add_scaled("MINIMUM", tensor, self.limits[1] - zero_point))
        if real:
            tensor = self.added(graph.add_scaled("MUL", tensor, scale))
        if flat:
            batch = -1 if shape[0] == 1 else shape[0]
            tensor = self.added(graph.add_reshape(tensor, (batch, *shape[1:])))
        return tensor

    def take(self, position: int, inputs: Sequence[str]) -> None:
        """Let one of the graph's own operators run next."""
        self.graph.set_inputs(position, [self.now(name) for name in inputs])
        self._order.append(position)

    def finish(self, outputs: Sequence[str], watched: Sequence[str]) -> bytes:
        """The flatbuffer, whose last output watches over tensors."""
        graph = self.graph
        graph.reorder(self._order)
        sums = []
        for name in watched:
            shape = graph.shape(name)
            if 0 in shape:
                continue
            flat = not 2 <= len(shape) <= AXES or shape[0] != 1
            row = graph.add_reshape(name, (-1, int(np.prod(shape)))) if flat else name
            sums.append(graph.add_reshape(graph.add_sum(row), (-1, 1)))
        tensors = list(outputs)
        if sums:
            tensors.append(graph.add_concatenation(sums, len(sums)))
        return graph.with_outputs(tensors)


def emulated(
    graph: Graph,
    numbers: Mapping[str, Number],
    outputs: Sequence[str],
    *,
    limits: tuple[int, int] = INT8,
) -> bytes:
    """The graph as a device computes it that stores tensors as integers, in float.

    Args:
        graph: Float; it is changed.
        numbers: Of the tensors that are rounded, by name.
        outputs: Tensors to give, rounded where they have numbers.
        limits: The least and the largest integer.

    Returns:
        A flatbuffer with one output more if a tensor is rounded, ``[1, N]``: NaN where one may hold
        NaN before it is rounded, which rounding does not keep.
    """
    rounding = _Rounding(graph, limits)

    def put(name: str) -> None:
        if name in numbers:
            rounding.replace(name, rounding.steps(name, numbers[name], real=True))

    for name in graph.inputs:
        put(name)
    written = dict.fromkeys(graph.inputs)
    for position, operator in enumerate(rounding.operators):
        rounding.take(position, operator.inputs)
        for name in operator.outputs:
            put(name)
        written.update(dict.fromkeys(operator.outputs))
    rounded = [rounding.now(name) for name in outputs]
    return rounding.finish(rounded, [name for name in written if name in numbers])


def on_integers(content: bytes, numbers: Mapping[str, Number]) -> bytes:
    """The same operators between tensors that are stored as int8.

    Args:
        content: Float flatbuffer.
        numbers: Of the inputs and outputs that are stored so, of :data:`AXES` axes at the most.

    Returns:
        A flatbuffer; where an output is stored as int8 it has one output more, as
        :func:`emulated` says.
    """
    graph = Graph(content)
    rounding, outputs = _Rounding(graph, INT8), graph.outputs
    for name in graph.inputs:
        if name in numbers:
            real = rounding.added(graph.add_conversion("DEQUANTIZE", name, f"{name}__real"))
            graph.make_integer(name, _quantization(*numbers[name]))
            rounding.replace(name, real)
    for position, operator in enumerate(rounding.operators):
        rounding.take(position, operator.inputs)
    tensors = []
    for name in outputs:
        if name in numbers:
            steps = rounding.steps(name, numbers[name])
            stored = rounding.added(graph.add_conversion("QUANTIZE", steps, f"{name}__stored"))
            graph.make_integer(stored, _quantization(1.0, numbers[name][1]))
            tensors.append(stored)
        else:
            tensors.append(name)
    return rounding.finish(tensors, [name for name in outputs if name in numbers])


def _quantization(scale: float, zero_point: int) -> Quantization:
    return Quantization(np.array([scale], np.float32), np.array([zero_point], np.int64))
