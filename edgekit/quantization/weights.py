"""Integers of weights alone: activations stay float in the file.

Every layer is rounded to the nearest step of its output channels' scales. No samples are needed,
since nothing has a range; with samples, :func:`edgekit.quantization.quantize.quantize` corrects
biases and fits layers. Biases and all other constants stay float.
"""

from __future__ import annotations

import hashlib

from edgekit.base.errors import InvalidModelError
from edgekit.graph.flatbuffer import Graph
from edgekit.quantization import encode, reconstruct
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.quantize import NEAREST, Quantized, predictions
from edgekit.records.encodings import Encoding, Encodings, Stored


def decide(canonical: bytes, *, profile: DeviceProfile) -> Quantized:
    """Round the weights of every layer.

    Args:
        canonical: Float flatbuffer.
        profile: The device.

    Raises:
        InvalidModelError: If the model has no layer, or a weight is NaN or infinite.
    """
    graph = Graph(canonical)
    if not graph.layers:
        raise InvalidModelError(
            f"expected a model with weights of layers to store in {profile.weights}, got one "
            f"without any convolution or dense layer; export it in float32 or float16"
        )
    four = reconstruct.of_four_bits(graph) if profile.weights == "int4" else frozenset[str]()
    layers = plain = reconstruct.nearest(graph, None, pair_bound=False, four=four)
    if profile.pair_bound:
        layers = reconstruct.nearest(graph, None, pair_bound=True, four=four)
    saturating = tuple(
        prediction for prediction in predictions(graph, plain, profile.paired) if prediction.pairs
    )
    rounded_graph, tensors = Graph(canonical), dict[str, Encoding]()
    for layer in graph.layers:
        reconstruct.put(rounded_graph, layer, layers[layer.output])
        tensors |= encode.of_layer(layer, layers[layer.output].integers)
    return Quantized(
        rounded_graph.serialize(),
        Encodings(hashlib.sha256(canonical).hexdigest(), profile.name, tensors),
        Stored({}, {output: rounded.integers for output, rounded in layers.items()}),
        NEAREST,
        "nearest",
        (),
        saturating,
        (),
    )
