"""A float graph that computes statistics of its own tensors while it runs.

Reductions and samples are operators of the graph. So they run natively on values that are still in
the cache, and Python gets a few arrays per run, however many tensors there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.graph.flatbuffer import Graph


@dataclass(frozen=True)
class Place:
    """Where a tensor's numbers lie in the probe's outputs.

    Attributes:
        name: The tensor.
        low: Columns of each channel's smallest value, or None where ``bounds`` says it.
        high: Columns of each channel's largest value.
        samples: Columns of values on grids over the tensor, channels last, one for each size.
        channels: Size of the last axis.
        bounds: What an operator or activation sets as smallest and largest value.
    """

    name: str
    low: slice | None
    high: slice
    samples: tuple[slice, ...]
    channels: int
    bounds: tuple[float, float]


@dataclass(frozen=True)
class Probe:
    """The changed graph.

    Attributes:
        content: Flatbuffer with the outputs low, high and one for each size of a sample, float32
            ``[N, columns]``.
        places: In order of execution, inputs first.
        batches: Whether several images may run at once, as far as shapes tell.
    """

    content: bytes
    places: tuple[Place, ...]
    batches: bool


def probe(canonical: bytes, *, samples: Sequence[int]) -> Probe:
    """Let a float graph report on all tensors that are fed or computed.

    Args:
        canonical: Float flatbuffer of batch 1.
        samples: Values of a tensor to take from an image, about; all channels are in it. One size
            or more.
    """
    graph = Graph(canonical)
    bounds = graph.bounds()
    order = [*graph.inputs, *(name for each in graph.operators for name in each.outputs)]
    floats = [name for name in dict.fromkeys(order) if graph.dtype(name) == np.float32]
    names = [name for name in floats if 0 not in graph.shape(name)]
    columns: dict[str, list[str]] = {"low": [], "high": []}
    columns |= {f"sample {number}": [] for number in range(len(samples))}
    filled = dict.fromkeys(columns, 0)
    places, batches = [], True

    def put(group: str, tensor: str, size: int) -> slice:
        columns[group].append(tensor)
        filled[group] += size
        return slice(filled[group] - size, filled[group])

    for name in names:
        shape = graph.shape(name)
        limits = bounds.get(name, (-math.inf, math.inf))
        if len(shape) < 2 or shape[0] != 1:
            batches = False
            last = shape[-1] if len(shape) > 1 else int(np.prod(shape))
            size = int(np.prod(shape))
            row = graph.add_reshape(name, (1, size) if last == size else (1, size // last, last))
            shape = graph.shape(row)
        else:
            row = name
        channels = shape[-1]
        if len(shape) == 2:
            low = high = row
            grids = [(row, channels)] * len(samples)
        else:
            axes = tuple(range(1, len(shape) - 1))
            low = "" if limits[0] > -math.inf else graph.add_reduce("MIN", row, axes)
            high = graph.add_reduce("MAX", row, axes)
            grids = [_grid(graph, row, shape, sample) for sample in samples]
        places.append(
            Place(
                name,
                put("low", low, channels) if low else None,
                put("high", high, channels),
                tuple(put(f"sample {number}", *grid) for number, grid in enumerate(grids)),
                channels,
                limits,
            )
        )
    outputs = [
        graph.add_concatenation(tensors, filled[group]) for group, tensors in columns.items()
    ]
    return Probe(graph.with_outputs(outputs), tuple(places), batches)


def _grid(graph: Graph, name: str, shape: tuple[int, ...], sample: int) -> tuple[str, int]:
    """(tensor ``[1, size]``, size): all channels of places that lie on a grid."""
    stride = 1
    if len(shape) == 4:
        height, width, channels = shape[1:]

        def size(step: int) -> int:
            return -(-height // step) * -(-width // step) * channels

        while size(stride) > sample and stride < max(height, width):
            stride += 1
        if stride > 1:
            name = graph.add_stride(name, stride)
    count = int(np.prod(graph.shape(name)))
    return graph.add_reshape(name, (-1, count)), count
