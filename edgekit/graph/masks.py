"""Large numbers that only a softmax reads, as the masks of attention are: float16 holds others in
their place, since a softmax makes 0 of both."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from edgekit.graph import kernels, plain
from edgekit.graph.flatbuffer import Graph, Operator
from edgekit.graph.plain import Array

#: Largest number of float16.
LARGEST = float(np.finfo(np.float16).max)
#: What float16 has in place of a mask beyond it: half of the largest number, so that neither scores
#: nor a second mask that are added make it infinite.
MASK = LARGEST / 2

#: Operators of TFLite and of ONNX, in this order, that hand a mask on, choose it or combine it with
#: scores.
_THROUGH = kernels.PLACED | kernels.CHOOSING | frozenset("ADD SUB MUL NEG".split())
_THROUGH |= frozenset(
    "Add Clip Concat Expand Flatten Gather GatherElements GatherND Identity Max Min Mul Neg Pad "
    "Reshape ScatterND Slice Split Squeeze Sub Sum Tile Transpose Trilu Unsqueeze Where".split()
)
_SOFTMAX = frozenset(("SOFTMAX", "Softmax"))


def read_by_softmax(graph: Sequence[Operator], outputs: Collection[str]) -> frozenset[str]:
    """Tensors that only softmaxes read, at the end of all that reads them.

    Args:
        graph: In order of execution.
        outputs: Tensors that others read too.
    """
    readers = plain.readers(graph)
    tensors: set[str] = set()

    def look_at(names: Collection[str]) -> None:
        for name in names:
            if name in readers and name not in outputs:
                if all(
                    each.kind in _SOFTMAX
                    or (each.kind in _THROUGH and tensors.issuperset(each.outputs))
                    for each in readers[name]
                ):
                    tensors.add(name)

    for operator in reversed(graph):
        look_at(operator.outputs)
    written = {name for operator in graph for name in operator.outputs}
    look_at(readers.keys() - written)
    return frozenset(tensors)


def masked(graph: Sequence[Operator], masks: Collection[str]) -> frozenset[str]:
    """Tensors that masks are handed on to, up to the softmax that reads them.

    Args:
        graph: In order of execution.
        masks: Constants out of :func:`read_by_softmax`.
    """
    tensors = set(masks)
    for operator in graph:
        if operator.kind in _THROUGH and not tensors.isdisjoint(operator.inputs):
            tensors.update(operator.outputs)
    return frozenset(tensors)


def of_tflite(graph: Graph) -> dict[str, Array]:
    """Masks of a float graph that float16 does not hold, as it holds them, by name."""
    read = read_by_softmax(graph.operators, graph.outputs)
    floats = [name for name in read if graph.is_constant(name) and graph.dtype(name) == np.float32]
    constants = {name: graph.constant(name) for name in sorted(floats)}
    return {name: in_float16(each) for name, each in constants.items() if beyond(each)}


def beyond(values: Array) -> bool:
    """Whether one of these numbers is larger than what float16 holds, infinities among them."""
    return bool((np.abs(values) > LARGEST).any())


def in_float16(values: Array) -> Array:
    """A mask as float16 holds it, in its own dtype."""
    return np.where(np.abs(values) > LARGEST, np.copysign(MASK, values), values).astype(
        values.dtype
    )
