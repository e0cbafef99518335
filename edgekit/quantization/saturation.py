"""Saturation of 16-bit sums: which weights allow it, what avoids it, and the instruction itself.

x86 CPUs with AVX2 and without VNNI multiply uint8 activations by int8 weights with ``vpmaddubsw``:
two products are added into a signed 16-bit integer, and what does not fit is cut off. onnxruntime's
matrix and convolution kernels put weights that are neighbours along the dot product into such a
pair: in the canonical layout ``[O, H, W, I]``, flattened behind O, elements 0 and 1, 2 and 3, …
Its depthwise kernels, for groups of one input and one output channel, widen before they multiply
and cannot saturate; no kernel of TFLite's does it. A depthwise layer of TFLite with a multiplier,
or over one channel, is no such group: its taps are paired.

A pair cannot saturate, whatever the activations, if the magnitudes of two weights of the same sign
sum to 128 at the most: 255 x 128 = 32,640 <= 32,767. Weights of opposite signs are safe by
themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.graph import kernels
from edgekit.graph.flatbuffer import Graph, Layer

LIMIT = 128
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Prediction:
    """What can saturate in one layer.

    Attributes:
        layer: The tensor that it writes.
        pairs: Pairs of weights that can saturate for some activation.
        channels: Output channels with such a pair.
        of_pairs: All pairs.
        of_channels: All output channels.
        largest: The largest sum of two magnitudes; up to :data:`LIMIT` is safe.
    """

    layer: str
    pairs: int
    channels: int
    of_pairs: int
    of_channels: int
    largest: int


def pairs_products(graph: Graph, layer: Layer) -> bool:
    """Whether onnxruntime's int8 kernel for a layer adds products in pairs.

    All do but the depthwise ones, and a transposed convolution that it computes in float.
    """
    if layer.kind == "transposed":
        return kernels.blocks(layer.strides, graph.shape(layer.weights)[-1])
    if layer.kind == "dense":
        return True
    shape, channels = graph.shape(layer.weights), graph.shape(layer.input)[-1]
    own = 1 if layer.kind == "depthwise" else shape[-1]
    return pairs_in_groups(channels // own, own, shape[layer.axis])


def pairs_in_groups(groups: int, inputs: int, outputs: int) -> bool:
    """Whether a convolution adds products in pairs.

    Args:
        groups: Number of groups of channels.
        inputs: Channels that a group reads.
        outputs: Channels of all groups.
    """
    return inputs != 1 or outputs != groups


def pair_sums(rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Sum of magnitudes of each pair of one sign, else the larger magnitude.

    Args:
        rows: Integer weights ``[O, K]`` in the order of the dot product.

    Returns:
        int32 ``[O, ceil(K / 2)]``.
    """
    wide = rows.astype(np.int32)
    if wide.shape[1] % 2:
        wide = np.pad(wide, ((0, 0), (0, 1)))
    first, second = wide[:, 0::2], wide[:, 1::2]
    alike = first * second > 0
    magnitudes = np.abs(first), np.abs(second)
    return np.where(alike, magnitudes[0] + magnitudes[1], np.maximum(*magnitudes))


def predict(layer: str, rows: npt.NDArray[np.integer]) -> Prediction:
    """What can saturate in a layer, from its weights ``[O, K]`` alone."""
    sums = pair_sums(rows)
    over = sums > LIMIT
    return Prediction(
        layer,
        int(over.sum()),
        int(over.any(axis=1).sum()),
        over.size,
        len(rows),
        int(sums.max(initial=0)),
    )


def shrink(
    steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Bring pairs within the limit, each time by the step that moves a value least from its own.

    Args:
        steps: Rounded weights ``[O, K]``.
        values: The same before rounding, in steps.
    """
    shrunk = steps.copy()
    pairs = shrunk.shape[1] // 2 * 2
    first, second = shrunk[:, 0:pairs:2], shrunk[:, 1:pairs:2]
    over = (first * second > 0) & (np.abs(first) + np.abs(second) > LIMIT)
    if not over.any():
        return shrunk
    first_over, second_over = first[over], second[over]
    sizes = np.abs(first_over), np.abs(second_over)
    goals = np.abs(values[:, 0:pairs:2][over]), np.abs(values[:, 1:pairs:2][over])
    excess = sizes[0] + sizes[1] - LIMIT
    # Steps are taken from the weight that lies farther above its value: in a row from the one that
    # is ahead, then in turn.
    ahead = (sizes[0] - goals[0]) - (sizes[1] - goals[1])
    row = np.minimum(excess, np.where(ahead >= 0, np.floor(ahead) + 1, np.ceil(-ahead)))
    remaining = excess - row
    by_first = np.where(ahead >= 0, row + remaining // 2, (remaining + 1) // 2)
    first[over] = np.sign(first_over) * (sizes[0] - by_first)
    second[over] = np.sign(second_over) * (sizes[1] - (excess - by_first))
    return shrunk


def vpmaddubsw(
    activations: npt.NDArray[np.uint8], weights: npt.NDArray[np.int8]
) -> npt.NDArray[np.int16]:
    """The instruction, bit for bit: products of neighbours, summed with saturation to int16.

    Args:
        activations: uint8 ``[..., K]``, K even.
        weights: int8 ``[..., K]``.

    Returns:
        int16 ``[..., K / 2]`` (Intel, "Intrinsics Guide", ``_mm256_maddubs_epi16``).
    """
    products = activations.astype(np.int32) * weights.astype(np.int32)
    sums = products[..., 0::2] + products[..., 1::2]
    return np.asarray(np.clip(sums, _INT16.min, _INT16.max), np.int16)


def dot(activations: npt.NDArray[np.uint8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Matrix product as a CPU with AVX2 and without VNNI computes it.

    Args:
        activations: uint8 ``[N, K]``.
        weights: int8 ``[O, K]``.

    Returns:
        int32 ``[N, O]``.
    """
    if activations.shape[1] % 2:
        activations = np.pad(activations, ((0, 0), (0, 1)))
        weights = np.pad(weights, ((0, 0), (0, 1)))
    products = [vpmaddubsw(activations, row[None]).astype(np.int32).sum(axis=1) for row in weights]
    return np.stack(products, axis=1)
