"""Equalization: channels of one tensor brought to one range, without changing the function.

Between two layers a channel can be multiplied by a factor, if the layer behind divides it out
(Nagel et al. 2019, section 4.1; Meller et al. 2019). There it makes weights uneven that were even,
so a convolution's channels are moved part of the way only; a depthwise layer has one scale per
channel and takes all of it. A ReLU lets any positive factor through. ReLU6 does not: there a
channel is raised until its largest calibration value reaches 6, which clips it where any int8 range
from the same calibration set would clip it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError
from edgekit.graph.flatbuffer import Graph, Layer, short_name
from edgekit.quantization.table import CalibrationTable, Range, TensorStatistics

#: Exponent of the factors in front of a convolution or dense layer.
PART = 0.75
_LARGEST = 64.0
_CLIP = 6.0


def equalize(
    canonical: bytes, statistics: Mapping[str, TensorStatistics], kept: Collection[str] = ()
) -> tuple[bytes, dict[str, tuple[float, ...]]]:
    """Equalize every tensor that one layer writes and one other layer alone reads.

    Args:
        canonical: Float flatbuffer.
        statistics: By tensor name.
        kept: Layers, by what they write, that keep their weights.

    Returns:
        The changed flatbuffer, and the factors of each changed tensor's channels.
    """
    graph = Graph(canonical)
    readers: dict[str, int] = {}
    for operator in graph.operators:
        for name in operator.inputs:
            readers[name] = readers.get(name, 0) + 1
    by_input = {layer.input: layer for layer in graph.layers}
    factors = {}
    for layer in graph.layers:
        behind = by_input.get(layer.output)
        if behind is None or readers[layer.output] != 1 or layer.output in graph.outputs:
            continue
        if layer.output in kept or behind.output in kept:
            continue
        found = _factors(layer.activation, statistics[layer.output])
        if found is None or graph.shape(behind.weights)[-1] != len(found):
            continue  # groups or a multiplier: no channel of the weights for each of these
        if behind.kind != "depthwise":
            found = found**PART
        found = np.clip(found, 1 / _LARGEST, _LARGEST).astype(np.float32)
        if np.allclose(found, 1):
            continue
        _multiply(graph, layer, behind, found)
        factors[layer.output] = tuple(float(str(factor)) for factor in found)
    return graph.serialize(), factors


def ranges(
    graph: Graph, table: CalibrationTable, factors: Mapping[str, tuple[float, ...]]
) -> dict[str, Range]:
    """Ranges of all tensors of an equalized graph, but for the last digit those that running it
    again would give.

    Args:
        graph: Equalized.
        table: Calibration table of the graph as it was, whose ranges hold all values.
        factors: By tensor name, of its channels.
    """
    found, bounds = dict(table.ranges), graph.bounds()
    for name, own in factors.items():
        statistics = table.statistics[name]
        low, high = (
            np.clip(np.asarray(ends) * own, *bounds.get(name, (-np.inf, np.inf)))
            for ends in (statistics.channel_min, statistics.channel_max)
        )
        found[name] = Range(float(low.min()), float(high.max()))
    return found


def apply(canonical: bytes, factors: Mapping[str, tuple[float, ...]]) -> Graph:
    """The canonical graph with the factors that :func:`equalize` once found.

    Args:
        canonical: Float flatbuffer.
        factors: By tensor name.

    Raises:
        InvalidModelError: If they are another graph's.
    """
    graph = Graph(canonical)
    by_output = {layer.output: layer for layer in graph.layers}
    by_input = {layer.input: layer for layer in graph.layers}
    for name, found in factors.items():
        if name not in by_output or name not in by_input:
            raise InvalidModelError(
                f"{short_name(name)} is equalized in the encodings, but no tensor between two "
                f"layers of this graph; take the artifact's float source"
            )
        _multiply(graph, by_output[name], by_input[name], np.asarray(found, np.float32))
    return graph


def _multiply(graph: Graph, layer: Layer, behind: Layer, found: npt.NDArray[Any]) -> None:
    """Multiply the channels between two layers, in place."""
    weights = graph.constant(layer.weights)
    across = found if layer.kind == "depthwise" else found.reshape(-1, *[1] * (weights.ndim - 1))
    graph.set_constant(layer.weights, weights * across)
    if layer.bias:
        graph.set_constant(layer.bias, graph.constant(layer.bias) * found)
    graph.set_constant(behind.weights, graph.constant(behind.weights) / found)


def _factors(activation: str, found: TensorStatistics) -> npt.NDArray[np.float64] | None:
    low, high = np.asarray(found.channel_min), np.asarray(found.channel_max)
    largest = np.maximum(np.abs(low), np.abs(high))
    alive = largest > 1e-6 * largest.max()
    if activation == "relu6":
        wanted = np.maximum(largest, _CLIP)
    elif activation in ("relu", "none") and alive.any():
        wanted = np.full_like(largest, np.median(largest[alive]))
    else:
        return None
    return np.where(alive, wanted / np.where(alive, largest, 1.0), 1.0)
