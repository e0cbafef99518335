"""Integers in TFLite: write a float graph with given integers, and read what a file stores.

A tensor that has an encoding is int8, or int16. An operator computes on it if TFLite has a kernel
(:mod:`edgekit.graph.kernels`) and all its tensors have encodings. Other operators compute in float,
between a DEQUANTIZE and a QUANTIZE. If an operator takes tensors of one scale only, a QUANTIZE is
put in front of those that have another.

A layer whose input is float and whose weights are integers reads them through a DEQUANTIZE. Where
its kernel is to round the input when it runs, it reads the integers themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.base.errors import WriterError
from edgekit.graph import kernels
from edgekit.graph.flatbuffer import REAL, Graph, Operator, Quantization, short_name
from edgekit.graph.kernels import Number
from edgekit.records.encodings import ConstantIntegers, LayerIntegers, Stored

#: What the float copy of an int8 tensor is called, and the float tensor that becomes int8.
_REAL, _RAW = "__real", "__raw"
#: Of activations.
_DTYPES = (np.int8, np.int16)


def write(canonical: bytes, stored: Stored, *, dynamic: bool = False) -> bytes:
    """The int8 twin of a float graph, int8 in and out where inputs and outputs have encodings.

    Args:
        canonical: Float flatbuffer, with the float constants that ``stored`` stands for.
        stored: Numbers of activations, layers and constants.
        dynamic: Let layers round their float inputs when they run, of the kinds that have such a
            kernel (:data:`edgekit.graph.kernels.DYNAMIC`).

    Raises:
        WriterError: If an operator computes on integers and a number of it is missing.
    """
    graph = Graph(canonical)
    writer = _Writer(graph, stored, kernels.DYNAMIC["tflite"] if dynamic else frozenset())
    for position, operator in enumerate(graph.operators):
        writer.take(position, operator)
    writer.finish()
    graph.merge_hard_swishes()  # of what computes in float
    graph.join_layers()
    graph.compact()
    return graph.serialize()


class _Writer:
    """One graph on its way to integers; operators are taken in order of execution."""

    def __init__(self, graph: Graph, stored: Stored, dynamic: frozenset[str]) -> None:
        self._graph, self._stored, self._dynamic = graph, stored, dynamic
        self._layers = {layer.output: layer for layer in graph.layers}
        self._order: list[int] = []
        self._copies: dict[str, str] = {}  # float copy by int8 tensor
        self._real_weights: dict[tuple[bytes, ...], str] = {}
        self._brought: dict[tuple[str, Number], str] = {}
        self._requantized: dict[str, Number] = {}  # encodings of what a QUANTIZE writes
        self._empty: dict[str, Number] = {}

    def take(self, position: int, operator: Operator) -> None:
        graph, numbers = self._graph, self._stored.activations
        if operator.outputs[0] in self._stored.in_float:
            self._in_float(position, operator)
        elif kernels.on_integers(graph, operator, numbers, self._stored.dtype):
            self._on_integers(position, operator)
        elif operator.kind in kernels.SIZES:
            self._order.append(position)
        else:
            self._in_float(position, operator)

    def finish(self) -> None:
        graph, numbers = self._graph, self._stored.activations
        there = set(graph.tensors)
        every = {n: number for n, number in numbers.items() if n in there}
        for name, number in {**every, **self._requantized, **self._empty}.items():
            graph.make_integer(name, _quantization(number), dtype=self._stored.dtype)
        graph.reorder(self._order)

    def _on_integers(self, position: int, operator: Operator) -> None:
        graph, numbers = self._graph, self._stored.activations
        inputs = list(operator.inputs)
        if operator.kind in kernels.WEIGHTED:
            self._put_layer(operator.outputs[0])
        for name in kernels.constants(graph, operator):
            self._put_constant(name, operator)
        written = kernels.reals(graph, operator.outputs)
        if operator.kind in kernels.SAME | kernels.JOINED and written:
            number = numbers[written[0]]
            for name in kernels.reals(graph, operator.inputs):
                if numbers[name] != number:
                    brought = self._bring(name, number)
                    inputs = [brought if source == name else source for source in inputs]
        for name in operator.outputs:
            if graph.dtype(name) == np.float32 and name not in numbers:  # nothing, of a dtype
                self._empty[name] = numbers[written[0]]
        graph.set_inputs(position, inputs)
        if self._stored.dtype == "int16":
            graph.make_wide(position)
        self._order.append(position)

    def _in_float(self, position: int, operator: Operator) -> None:
        graph, numbers = self._graph, self._stored.activations
        inputs = [self._real(name) if name in numbers else name for name in operator.inputs]
        if operator.kind in kernels.WEIGHTED and operator.outputs[0] in self._stored.layers:
            layer = self._layers[operator.outputs[0]]
            if layer.kind in self._dynamic:
                self._put_layer(layer.output)
                graph.make_hybrid(position)
            else:
                inputs[1] = self._weights_of(layer.output)
        graph.set_inputs(position, inputs)
        self._order.append(position)
        outputs = list(operator.outputs)
        for place, name in enumerate(outputs):
            if name in numbers:
                outputs[place] = graph.split(name, f"{name}{_RAW}")
                self._order.append(len(graph.operators) - 1)
        graph.set_outputs_of(position, outputs)

    def _real(self, name: str) -> str:
        """The float copy of an int8 tensor."""
        if name not in self._copies:
            self._copies[name] = self._graph.add_conversion("DEQUANTIZE", name, f"{name}{_REAL}")
            self._order.append(len(self._graph.operators) - 1)
        return self._copies[name]

    def _weights_of(self, output: str) -> str:
        """Real weights of a layer that computes in float; layers with the same share them."""
        layer, integers = self._layers[output], self._stored.layers[output]
        parts = (
            integers.weights,
            integers.weight_scale,
            np.array((*integers.weights.shape, integers.bits)),
        )
        key = tuple(part.tobytes() for part in parts)
        if key not in self._real_weights:
            self._put_layer(output)
            self._real_weights[key] = self._graph.add_conversion(
                "DEQUANTIZE", layer.weights, f"{layer.weights}{_REAL}", version=REAL[integers.bits]
            )
            self._order.append(len(self._graph.operators) - 1)
        return self._real_weights[key]

    def _bring(self, name: str, number: Number) -> str:
        """An int8 tensor at another scale."""
        if (name, number) not in self._brought:
            requantized = self._graph.add_conversion("QUANTIZE", name, f"{name}__brought")
            self._order.append(len(self._graph.operators) - 1)
            self._brought[name, number], self._requantized[requantized] = requantized, number
        return self._brought[name, number]

    def _put_layer(self, output: str) -> None:
        layer, integers = self._layers[output], self._stored.layers.get(output)
        if integers is None:
            raise WriterError(f"the quantizer chose no weights for the layer {layer.short}")
        zeros = np.zeros(len(integers.weight_scale), np.int64)
        self._graph.make_integer(
            layer.weights,
            Quantization(integers.weight_scale, zeros, layer.axis),
            integers.weights,
            dtype=f"int{integers.bits}",
        )
        if layer.bias is not None and integers.bias is not None and integers.bias_scale is not None:
            scale = Quantization(integers.bias_scale, zeros)
            self._graph.make_integer(layer.bias, scale, integers.bias)

    def _put_constant(self, name: str, operator: Operator) -> None:
        integers = self._stored.constants.get(name)
        if integers is None:
            raise WriterError(
                f"the quantizer chose no integers for the constant {short_name(name)} of "
                f"{operator.kind} {short_name(operator.outputs[0])}"
            )
        number = (integers.scale, integers.zero_point)
        self._graph.make_integer(name, _quantization(number), integers.values)


def _quantization(number: Number) -> Quantization:
    scale, zero_point = number
    return Quantization(np.array([scale], np.float32), np.array([zero_point], np.int64))


def brought(graph: Graph) -> frozenset[str]:
    """Tensors of a graph of integers that hold another's values at another scale."""
    return frozenset(
        operator.outputs[0]
        for operator in graph.operators
        if operator.kind == "QUANTIZE" and graph.dtype(operator.inputs[0]) in _DTYPES
    )


def read(graph: Graph) -> Stored:
    """The integers and scales of a graph of integers, in the canonical graph's words."""
    activations: dict[str, Number] = {}
    constants: dict[str, ConstantIntegers] = {}
    extra, wide = brought(graph), False
    weights = {name for layer in graph.layers for name in (layer.weights, layer.bias) if name}
    for name in graph.used:
        quantization = graph.quantization(name)
        if quantization is None or graph.dtype(name) not in _DTYPES or 0 in graph.shape(name):
            continue
        number = float(quantization.scale[0]), int(quantization.zero_point[0])
        if not graph.is_constant(name):
            wide |= graph.dtype(name) == np.int16
            if name not in extra:
                activations[name] = number
        elif name not in weights:
            constants[name] = ConstantIntegers(graph.constant(name), *number)
    layers = {}
    for layer in graph.layers:
        scales = graph.quantization(layer.weights)
        if scales is None:
            continue
        bias = graph.quantization(layer.bias) if layer.bias else None
        layers[layer.output] = LayerIntegers(
            weights=graph.constant(layer.weights),
            weight_scale=scales.scale,
            bias=graph.constant(layer.bias) if layer.bias and bias is not None else None,
            bias_scale=None if bias is None else bias.scale,
            bits=graph.bits(layer.weights),
        )
    return Stored(activations, layers, constants, dtype="int16" if wide else "int8")


def read_file(content: bytes) -> Stored:
    """The integers and scales of an int8 file."""
    return read(Graph(content))


def floats(graph: Graph) -> tuple[str, ...]:
    """Operators of an int8 graph that compute in float, as kind and name."""
    return tuple(
        f"{operator.kind} {name}"
        for operator, name in zip(graph.operators, names(graph), strict=True)
        if computes_in_float(graph, operator)
    )


def real_weights(graph: Graph) -> tuple[str, ...]:
    """Layers whose int8 weights a DEQUANTIZE makes real, so that they compute in float, as kind and
    name."""
    dequantized = {o.outputs[0] for o in graph.operators if o.kind == "DEQUANTIZE"}
    return tuple(
        f"{operator.kind} {name}"
        for operator, name in zip(graph.operators, names(graph), strict=True)
        if operator.kind in kernels.WEIGHTED and operator.inputs[1] in dequantized
    )


def computes_in_float(graph: Graph, operator: Operator) -> bool:
    """Whether an operator writes real numbers that it computes; whole numbers on their way to int8
    are no computation."""
    return operator.kind not in ("DEQUANTIZE", "CAST") and any(
        graph.dtype(name) == np.float32 for name in operator.outputs
    )


def converts(graph: Graph, operator: Operator) -> bool:
    """Whether an operator makes real numbers of integers, or integers of real numbers."""
    return operator.kind == "DEQUANTIZE" or (
        operator.kind == "QUANTIZE" and graph.dtype(operator.inputs[0]) == np.float32
    )


def names(graph: Graph) -> tuple[str, ...]:
    """What each operator of an int8 graph writes, as the float graph calls it."""
    stored = copies(graph)
    written = (operator.outputs[0] for operator in graph.operators)
    return tuple(short_name(stored.get(name, name)) for name in written)


def copies(graph: Graph) -> Mapping[str, str]:
    """int8 tensor by the float tensor that is made from it, or that it is made from."""
    integer_copies = {}
    for operator in graph.operators:
        source, target = (operator.inputs or ("",))[0], operator.outputs[0]
        if operator.kind == "DEQUANTIZE" and graph.dtype(source) in _DTYPES:
            integer_copies[target] = source
        elif operator.kind == "QUANTIZE" and graph.dtype(source) == np.float32:
            integer_copies[source] = target
    return integer_copies
