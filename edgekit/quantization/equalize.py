"""Equalization: channels of one tensor brought to one range, without changing the function.

Between two layers a channel can be multiplied by a factor, if the layer behind divides it out
(Nagel et al. 2019, section 4.1; Meller et al. 2019). There it makes weights uneven that were even,
so a convolution's channels are moved part of the way only; a depthwise layer has one scale per
channel and takes all of it. A ReLU lets any positive factor through. ReLU6 does not: there a
channel is raised until its largest calibration value reaches 6, which clips it where any int8 range
from the same calibration set would clip it.

Where values between layers are not rounded to 8 bits, the weights are what has to be even: a
channel is multiplied with the largest part that its weights behind are of their output channel's
scale. No range of 8 bits cuts values off then. A ReLU6 must not do so either: its channels are
lowered only, and those left alone that twice their calibration values bring to 6.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError
from edgekit.graph.flatbuffer import Graph, Layer, short_name
from edgekit.quantization.table import CalibrationTable, Range, TensorStatistics

#: Exponent of the factors in front of a convolution or dense layer.
PART = 0.75
_LARGEST = 64.0
_CLIP = 6.0
#: How much larger than those of the calibration samples values may be that a ReLU6 must not clip.
_HEADROOM = 2.0

#: What channels are equalized for.
Evened = Literal["activations", "weights"]


def equalize(
    canonical: bytes,
    statistics: Mapping[str, TensorStatistics],
    unchanged: Collection[str] = (),
    *,
    evened: Evened = "activations",
    clipped: bool = True,
) -> tuple[bytes, dict[str, tuple[float, ...]]]:
    """Equalize every tensor that one layer writes and one other layer alone reads.

    Args:
        canonical: Float flatbuffer.
        statistics: By tensor name.
        unchanged: Layers, by what they write, that keep their weights.
        evened: What is made even.
        clipped: Whether ranges of 8 bits cut values off, so that a ReLU6 may do so too.

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
        if layer.output in unchanged or behind.output in unchanged:
            continue
        largest = _largest(statistics[layer.output])
        if graph.shape(behind.weights)[-1] != len(largest):
            continue  # groups or a multiplier: no channel of the weights for each of these
        if evened == "weights":
            if behind.kind == "depthwise":
                continue  # a scale for each channel: its weights are even
            multipliers = _by_weights(graph.constant(behind.weights), layer.activation, largest)
        else:
            multipliers = _by_activations(layer.activation, largest, clipped=clipped)
            if multipliers is not None and behind.kind != "depthwise":
                multipliers = multipliers**PART
        if multipliers is None:
            continue
        multipliers = np.clip(multipliers, 1 / _LARGEST, _LARGEST).astype(np.float32)
        if np.allclose(multipliers, 1):
            continue
        _multiply(graph, layer, behind, multipliers)
        factors[layer.output] = tuple(float(str(factor)) for factor in multipliers)
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
    equalized, bounds = dict(table.ranges), graph.bounds()
    for name, own in factors.items():
        statistics = table.statistics[name]
        low, high = (
            np.clip(np.asarray(extremes) * own, *bounds.get(name, (-np.inf, np.inf)))
            for extremes in (statistics.channel_min, statistics.channel_max)
        )
        equalized[name] = Range(float(low.min()), float(high.max()))
    return equalized


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
    for name, multipliers in factors.items():
        if name not in by_output or name not in by_input:
            raise InvalidModelError(
                f"{short_name(name)} is equalized in the encodings, but no tensor between two "
                f"layers of this graph; take the artifact's float source"
            )
        _multiply(graph, by_output[name], by_input[name], np.asarray(multipliers, np.float32))
    return graph


def _multiply(graph: Graph, layer: Layer, behind: Layer, multipliers: npt.NDArray[Any]) -> None:
    """Multiply the channels between two layers, in place."""
    weights = graph.constant(layer.weights)
    across = (
        multipliers
        if layer.kind == "depthwise"
        else multipliers.reshape(-1, *[1] * (weights.ndim - 1))
    )
    graph.set_constant(layer.weights, weights * across)
    if layer.bias:
        graph.set_constant(layer.bias, graph.constant(layer.bias) * multipliers)
    graph.set_constant(behind.weights, graph.constant(behind.weights) / multipliers)


def _largest(statistics: TensorStatistics) -> npt.NDArray[np.float64]:
    """Largest magnitude of each channel."""
    low, high = np.asarray(statistics.channel_min), np.asarray(statistics.channel_max)
    return np.asarray(np.maximum(np.abs(low), np.abs(high)), np.float64)


def _by_activations(
    activation: str, largest: npt.NDArray[np.float64], *, clipped: bool
) -> npt.NDArray[np.float64] | None:
    """Factors that bring channels of these magnitudes to one; None where none may."""
    alive = largest > 1e-6 * largest.max()
    if activation == "relu6" and clipped:
        target = np.maximum(largest, _CLIP)
    elif activation in ("relu", "none") and alive.any():
        target = np.full_like(largest, np.median(largest[alive]))
    else:
        return None
    return np.where(alive, target / np.where(alive, largest, 1.0), 1.0)


def _by_weights(
    weights: npt.NDArray[Any], activation: str, largest: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64] | None:
    """Factors that bring the weights of all input channels to one part of the scales of the output
    channels; None where none may."""
    if activation not in ("relu", "relu6", "none"):
        return None
    size = np.abs(weights.astype(np.float64)).reshape(len(weights), -1, weights.shape[-1])
    magnitudes = size.max(axis=1)
    scale = magnitudes.max(axis=1, keepdims=True)
    part = (magnitudes / np.where(scale > 0, scale, 1.0)).max(axis=0)
    if not (part > 0).any():
        return None
    part = np.where(part > 0, part, np.median(part[part > 0]))
    if activation != "relu6":
        return np.asarray(part / np.median(part))
    return np.where(_HEADROOM * largest < _CLIP, part / part.max(), 1.0)
