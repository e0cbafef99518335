"""Operators that LiteRT has integer kernels for, though ai-edge-quantizer leaves them in float.

What it leaves stands between a DEQUANTIZE and a QUANTIZE. Here such an operator reads and writes
the integers themselves, with the encodings that were decided for its tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from edgekit.formats.flatbuffer import Graph, Operator

#: Kinds with an int8 kernel in LiteRT that ai-edge-quantizer's static recipe does not have.
KINDS = frozenset(
    "ABS BATCH_TO_SPACE_ND DEPTH_TO_SPACE ELU EXP EXPAND_DIMS GATHER HARD_SWISH L2_NORMALIZATION "
    "LEAKY_RELU LOG LOG_SOFTMAX MINIMUM PRELU REDUCE_MAX RELU6 RELU_N1_TO_1 REVERSE_V2 "
    "SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT_V SQUEEZE TILE".split()
)


#: Operators whose inputs have the scale of their answer, brought to it by a QUANTIZE where another
#: scale is fixed for them.
JOINING = frozenset(("CONCATENATION", "PACK", "MAXIMUM", "SELECT", "SELECT_V2"))
_COMPARING = frozenset(("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"))
#: Operators that give their values on as they are: a constant has the scale of the answer.
_KEEPING = frozenset(("GATHER", "MINIMUM"))


def keep_real(graph: Graph, floats: Collection[str]) -> None:
    """Let inputs and outputs that stay float be float ones of the file, in place.

    Args:
        graph: As ai-edge-quantizer wrote it, with integers at all inputs and outputs.
        floats: Tensors that stay float.
    """
    copies = {
        operator.outputs[0]: operator.inputs[0]
        for operator in graph.operators
        if operator.kind in ("QUANTIZE", "DEQUANTIZE") and operator.inputs[0] in floats
    }
    for name in set(graph.inputs) & set(copies.values()):
        graph.make_real(name)
    for position, operator in enumerate(graph.operators):
        graph.set_inputs(position, [copies.get(name, name) for name in operator.inputs])
    graph.set_outputs([copies.get(name, name) for name in graph.outputs])
    graph.remove([place for place, each in enumerate(graph.operators) if each.outputs[0] in copies])


def complete(
    graph: Graph,
    activations: Mapping[str, tuple[float, int]],
    canonical: Graph,
    floats: Collection[str] = (),
) -> None:
    """Let these operators compute on integers, in place.

    Args:
        graph: As ai-edge-quantizer wrote it.
        activations: (scale, zero_point) by tensor name.
        canonical: The float graph that it was written from.
        floats: Tensors that stay float; an operator that reads or writes one is left as it is.
    """
    integer = {}
    for operator in graph.operators:  # real tensor: the integers that it is made from
        if operator.kind == "DEQUANTIZE" and graph.dtype(operator.inputs[0]) == np.int8:
            integer[operator.outputs[0]] = operator.inputs[0]
    for name, source in quantized(graph).items():  # whole numbers on their way to int8
        if source:
            integer[source] = name
    for operator in graph.operators:  # e.g. a part of SPLIT that nothing reads
        kinds = [graph.dtype(name) for name in operator.outputs]
        for name, kind in zip(operator.outputs, kinds, strict=True):
            if kind == np.float32 and np.dtype(np.int8) in kinds and name in activations:
                graph.make_integer(name, *activations[name])
    for position, operator in enumerate(graph.operators):
        if operator.kind in _COMPARING:
            _compare_integers(graph, position, integer)
        if operator.kind not in KINDS or operator.touches(floats):
            continue
        if operator.kind == "GATHER" and _embeds(operator, canonical, activations):
            table, (scale, zero_point) = operator.inputs[0], activations[operator.outputs[0]]
            graph.make_integer(
                table, scale, zero_point, _steps(canonical.constant(table), scale, zero_point)
            )
        inputs = [integer.get(name, name) for name in operator.inputs]
        floats = [name for name in inputs if name and graph.dtype(name) == np.float32]
        constants = [name for name in floats if graph.is_constant(name)]
        written = [name for name in operator.outputs if name in activations]
        if len(constants) < len(floats) or not written or not activations.keys() >= set(written):
            continue
        for name in constants:
            values = graph.constant(name)
            scale, zero_point = float(np.abs(values).max(initial=0)) / 127 or 1.0, 0
            if operator.kind in _KEEPING:
                scale, zero_point = activations[written[0]]
            graph.make_integer(name, scale, zero_point, _steps(values, scale, zero_point))
        for name in written:
            graph.make_integer(name, *activations[name])
            integer[name] = name
        for name in operator.outputs:
            if name not in activations and 0 in graph.shape(name):  # nothing, but of a dtype
                graph.make_integer(name, *activations[written[0]])
        graph.set_inputs(position, inputs)
    # ai-edge-quantizer answers the real copy of an inner tensor, its signature the integers
    graph.set_outputs([integer.get(name, name) for name in graph.outputs])
    _drop_requantizing(graph, activations)


def _compare_integers(graph: Graph, position: int, integer: Mapping[str, str]) -> None:
    """Let a comparison with a constant read integers; its kernel takes scales below 1."""
    one, other = graph.operators[position].inputs
    source = integer.get(one, "")
    found = graph.quantization(source) if source else None
    if found is None or float(found.scale[0]) >= 1 or not graph.is_constant(other):
        return
    values = graph.constant(other)
    scale = float(np.abs(values).max(initial=0)) / 127 or 1 / 127
    if values.dtype == np.float32 and scale < 1:
        graph.make_integer(other, scale, 0, _steps(values, scale, 0))
        graph.set_inputs(position, (source, other))


def quantized(graph: Graph) -> dict[str, str]:
    """What each QUANTIZE of an int8 graph writes, with the real tensor that it rounds.

    Of one that brings int8 to another scale the tensor is ``""``: the float graph has none for it.
    """
    return {
        operator.outputs[0]: operator.inputs[0]
        if graph.dtype(operator.inputs[0]) == np.float32
        else ""
        for operator in graph.operators
        if operator.kind == "QUANTIZE"
    }


def added(
    graph: Graph, activations: Mapping[str, tuple[float, int]]
) -> dict[str, tuple[float, int]]:
    """Encodings of the tensors that a QUANTIZE writes.

    Args:
        graph: As ai-edge-quantizer wrote it.
        activations: (scale, zero_point) by tensor name of the float graph.
    """
    found = {}
    for name, source in quantized(graph).items():
        readers = [each for each in graph.operators if name in each.inputs]
        joined = [each.outputs[0] for each in readers if each.kind in JOINING]
        source = source or next(iter(joined), "")
        if source in activations:
            found[name] = activations[source]
    return found


def _drop_requantizing(graph: Graph, activations: Mapping[str, tuple[float, int]]) -> None:
    """Take out each QUANTIZE that brings int8 to the scale that it has, in place.

    ai-edge-quantizer puts one where it decided two scales for a tensor, e.g. behind a GATHER that
    has its table's; here every tensor has one. Where tensors of several scales are joined, it
    stays.
    """
    renamed: dict[str, str] = {}
    wanted = added(graph, activations)
    for name, real in quantized(graph).items():
        source = next(each.inputs[0] for each in graph.operators if each.outputs[0] == name)
        kept = name in wanted and wanted[name] != activations.get(source)
        if not real and not kept:
            renamed[name] = renamed.get(source, source)
    for position, operator in enumerate(graph.operators):
        if operator.outputs[0] not in renamed:
            inputs = [renamed.get(name, name) for name in operator.inputs]
            graph.set_inputs(position, inputs)
    read = {name for operator in graph.operators for name in operator.inputs} | set(graph.outputs)
    graph.set_outputs([renamed.get(name, name) for name in graph.outputs])
    graph.remove(
        [
            position
            for position, operator in enumerate(graph.operators)
            if operator.outputs[0] in renamed
            or (operator.kind == "DEQUANTIZE" and operator.outputs[0] not in read)
        ]
    )


def _embeds(
    operator: Operator, canonical: Graph, activations: Mapping[str, tuple[float, int]]
) -> bool:
    """Whether it picks rows of a stored table of real numbers."""
    return canonical.is_constant(operator.inputs[0]) and operator.outputs[0] in activations


def _steps(values: npt.NDArray[np.float32], scale: float, zero_point: int) -> npt.NDArray[np.int8]:
    found = np.rint(values / np.float32(scale)) + zero_point
    return np.asarray(np.clip(found, -128, 127), np.int8)
