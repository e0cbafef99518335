"""Where small numbers of a graph count as much as large ones: in front of roots, logarithms, powers
and divisors, as variances and spectra lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from edgekit.graph.flatbuffer import Operator


def operators(
    graph: Sequence[Operator],
    outputs: frozenset[str],
    places: Mapping[str, Collection[int]],
    through: Callable[[Operator], bool] = lambda operator: True,
) -> frozenset[int]:
    """Positions of operators of which nothing is read but where small numbers count, there or
    through other such operators.

    Args:
        graph: In order of execution.
        outputs: Tensors that others read too.
        places: By kind of operator, the inputs that need small numbers as exact as large ones.
        through: Whether an operator may be one of them.
    """
    readers: dict[str, list[tuple[int, int]]] = {}
    for position, operator in enumerate(graph):
        for place, name in enumerate(operator.inputs):
            readers.setdefault(name, []).append((position, place))
    positions: set[int] = set()
    for position in reversed(range(len(graph))):
        operator = graph[position]
        read = [each for name in operator.outputs for each in readers.get(name, [])]
        if not read or not through(operator) or not outputs.isdisjoint(operator.outputs):
            continue
        if all(by in positions or place in places.get(graph[by].kind, ()) for by, place in read):
            positions.add(position)
    return frozenset(positions)
