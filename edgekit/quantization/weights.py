"""Integers of weights alone: activations stay float in the file.

Every layer is rounded to the nearest step of its output channels' scales. No samples are needed,
since nothing has a range. Biases and all other constants stay float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from edgekit.base.errors import InvalidModelError
from edgekit.graph.flatbuffer import Graph
from edgekit.quantization import encode, reconstruct
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.quantize import NEAREST, Quantized, predictions
from edgekit.records.encodings import Encoding, Encodings, Stored


def decide(
    canonical: bytes, *, profile: DeviceProfile, multiplied: Collection[str] = ()
) -> Quantized:
    """Round the weights of every layer.

    Args:
        canonical: Float flatbuffer.
        profile: The device.
        multiplied: Kinds of layers whose weights onnxruntime multiplies with integers, so that the
            device's bound on pairs of products holds for them.

    Raises:
        InvalidModelError: If the model has no layer, or a weight is NaN or infinite.
    """
    graph = Graph(canonical)
    if not graph.layers:
        raise InvalidModelError(
            "expected a model with weights of layers to store in int8, got one without any "
            "convolution or dense layer; export it in float32 or float16"
        )
    paired = [layer.output for layer in graph.layers if layer.kind in multiplied]
    layers = reconstruct.nearest(graph, None, pair_bound=False)
    plain = {output: layers[output] for output in paired}
    saturating = tuple(each for each in predictions(graph, plain) if each.pairs)
    if profile.pair_bound:
        layers |= reconstruct.nearest(graph, None, pair_bound=True, only=paired)
    changed, tensors = Graph(canonical), dict[str, Encoding]()
    for layer in graph.layers:
        reconstruct.put(changed, layer, layers[layer.output])
        tensors |= encode.of_layer(layer, layers[layer.output].integers)
    return Quantized(
        changed.serialize(),
        Encodings(hashlib.sha256(canonical).hexdigest(), profile.name, tensors),
        Stored({}, {output: rounded.integers for output, rounded in layers.items()}),
        NEAREST,
        "nearest",
        (),
        saturating,
        (),
    )
