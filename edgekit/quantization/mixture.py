"""Mixtures of int8 and float tensors, made of an int8 model whose integers are decided.

A mixture costs nothing to make: tensors lose their encodings, and the layers that read or write
them compute in float. All other integers stay as they are, so that every mixture can be written
and run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.graph import kernels
from edgekit.graph.flatbuffer import Graph
from edgekit.graph.kernels import Number
from edgekit.quantization import encode, equalize, islands
from edgekit.quantization.quantize import Quantized

#: Part of the cost of all operators that counts as cost of an operator that costs nothing more in
#: float, so that there is something to divide by.
_LEAST = 1e-3


def leave(quantized: Quantized, canonical: bytes, floats: Mapping[str, str]) -> Quantized:
    """The same model with more tensors in float.

    Args:
        quantized: Encodings and integers.
        canonical: The float flatbuffer that they were decided for.
        floats: Tensors, and why each stays float.
    """
    exact = equalize.apply(canonical, quantized.encodings.factors)
    graph, stored = Graph(quantized.graph), quantized.stored
    every = islands.closed(exact, {**floats, **quantized.floats})
    real = encode.left_float(exact, every)
    numbers = {name: number for name, number in stored.activations.items() if name not in real}
    layers = [layer for layer in exact.layers if layer.output in stored.layers]
    rounded_layers = [layer for layer in layers if {layer.input, layer.output} <= numbers.keys()]
    rounded = {name for layer in rounded_layers for name in (layer.weights, layer.bias) if name}
    constants = {
        name
        for operator in exact.operators
        if kernels.on_integers(exact, operator, numbers)
        for name in kernels.constants(exact, operator)
    }
    dropped = {name for layer in layers for name in (layer.weights, layer.bias) if name} - rounded
    for name in sorted(dropped | (stored.constants.keys() - constants)):
        graph.set_constant(name, exact.constant(name))
    outputs = {layer.output for layer in rounded_layers}
    return replace(
        quantized,
        graph=graph.serialize(),
        encodings=replace(
            quantized.encodings,
            tensors={
                name: encoding
                for name, encoding in quantized.encodings.tensors.items()
                if name in numbers or name in rounded
            },
            constants={
                name: encoding
                for name, encoding in quantized.encodings.constants.items()
                if name in constants
            },
        ),
        stored=stored.without(
            stored.activations.keys() - numbers.keys(),
            layers=stored.layers.keys() - outputs,
            constants=stored.constants.keys() - constants,
        ),
        saturating=tuple(
            prediction for prediction in quantized.saturating if prediction.layer in outputs
        ),
        floats=every,
    )


@dataclass(frozen=True)
class Costs:
    """What it costs to compute in float.

    Attributes:
        operators: What an operator costs more in float, in ms or bytes, by the name of its first
            output; where none is known, all operators cost the same.
        conversion: To make a real number of an integer, or an integer of a real number.
        converter: Of the operator that does so for a tensor, whatever the number of its values.
    """

    operators: Mapping[str, float]
    conversion: float = 0.0
    converter: float = 0.0

    def converted(self, numbers: int) -> float:
        """What it costs to convert a tensor of so many numbers."""
        return self.conversion * numbers + self.converter


@dataclass(frozen=True)
class _Unit:
    """Tensors of the same numbers, which stay float together, and what touches them."""

    tensors: tuple[str, ...]
    operators: frozenset[int]


def ranking(
    quantized: Quantized, canonical: bytes, noise: Mapping[str, float], costs: Costs
) -> list[tuple[str, ...]]:
    """The tensors that could stay float, those first that gain most for their cost.

    Each is ranked as an addition to those before it: an operator that computes in float already
    costs nothing more, and beside a float island less is converted. What is gained is the noise of
    rounding the tensor, and that of rounding the weights of layers that then compute in float.

    Args:
        quantized: Encodings and integers.
        canonical: The float flatbuffer that they were decided for.
        noise: Of rounding each tensor, as :meth:`edgekit.quantization.islands.Search.noise` says.
        costs: Of computing in float.

    Returns:
        Tensors that stay float together, because they hold the same numbers.
    """
    exact = equalize.apply(canonical, quantized.encodings.factors)
    operators, numbers = exact.operators, quantized.stored.activations
    islands_of = _Islands(exact, numbers, costs)
    weights = _weight_noise(quantized, exact)
    least = _LEAST * sum(abs(cost) for cost in costs.operators.values()) or 1.0

    def worth(unit: _Unit) -> float:
        new = unit.operators - islands_of.operators
        won = sum(noise.get(name, 0.0) for name in unit.tensors)
        won += sum(weights.get(operators[position].outputs[0], 0.0) for position in new)
        names = [operators[position].outputs[0] for position in new]
        price = sum(max(costs.operators.get(name, 0.0), least) for name in names)
        price += islands_of.converted(unit)
        return won / max(price, least / len(operators))

    left, ranked = _units(exact, list(numbers)), []
    while left:
        best = max(left, key=worth)
        left.remove(best)
        islands_of.join(best)
        ranked.append(best.tensors)
    return ranked


class _Islands:
    """What computes in float, as it grows.

    Args:
        graph: Float.
        numbers: Encodings of the tensors that are integers.
        costs: Of computing in float.
    """

    def __init__(self, graph: Graph, numbers: Mapping[str, Number], costs: Costs) -> None:
        self._readers: dict[str, set[int]] = {name: set() for name in numbers}
        self._makers: dict[str, int] = {}
        self._touched: dict[int, list[str]] = {}
        self._prices = {name: costs.converted(int(np.prod(graph.shape(name)))) for name in numbers}
        self._real: set[str] = set()
        self.operators: set[int] = set()
        for position, operator in enumerate(graph.operators):
            if not kernels.on_integers(graph, operator, numbers):
                self.operators.add(position)
            reads, writes = (
                [name for name in dict.fromkeys(names) if name in numbers]
                for names in (operator.inputs, operator.outputs)
            )
            self._touched[position] = [*reads, *writes]
            for name in reads:
                self._readers[name].add(position)
            self._makers.update(dict.fromkeys(writes, position))

    def converted(self, unit: _Unit) -> float:
        """What more conversions cost once a unit stays float; below 0 if there are fewer."""
        near = {name for position in unit.operators for name in self._touched[position]}
        after = self.operators | unit.operators
        real = self._real.union(unit.tensors)
        return sum(
            self._prices[name] * (self._at(name, after, real) - self._at(name, self.operators))
            for name in near
        )

    def join(self, unit: _Unit) -> None:
        """Let a unit stay float."""
        self.operators |= unit.operators
        self._real.update(unit.tensors)

    def _at(
        self, name: str, operators: Collection[int], real: Collection[str] | None = None
    ) -> int:
        """How often a tensor is converted: once for all that read it, once after it is written."""
        if name in (self._real if real is None else real):
            return 0
        return int(self._makers.get(name, -1) in operators) + int(
            not self._readers[name].isdisjoint(operators)
        )


def _units(graph: Graph, names: Sequence[str]) -> list[_Unit]:
    roots: dict[str, str] = {}
    for operator in graph.operators:
        if operator.kind in kernels.MOVED:
            source = operator.inputs[0]
            roots[operator.outputs[0]] = roots.get(source, source)
    together: dict[str, list[str]] = {}
    for name in names:
        together.setdefault(roots.get(name, name), []).append(name)
    touching: dict[str, set[int]] = {}
    for position, operator in enumerate(graph.operators):
        for name in (*operator.inputs, *operator.outputs):
            touching.setdefault(name, set()).add(position)
    return [
        _Unit(tuple(names), frozenset().union(*(touching.get(name, set()) for name in names)))
        for names in together.values()
    ]


def _weight_noise(quantized: Quantized, exact: Graph) -> dict[str, float]:
    """Power of what rounding changes in the weights of a layer over theirs, by its output."""
    rounded, noise = Graph(quantized.graph), {}
    for layer in exact.layers:
        if layer.output in quantized.stored.layers:
            weights = exact.constant(layer.weights).astype(np.float64)
            off = weights - rounded.constant(layer.weights)
            power = float(np.square(weights).sum())
            noise[layer.output] = float(np.square(off).sum()) / power if power else 0.0
    return noise
