"""Parameters and multiply-adds of a functional model, counted layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.base.errors import InvalidModelError
from edgekit.sources.keras import tf_keras


@dataclass(frozen=True)
class Counts:
    """Size of a model.

    Attributes:
        parameters: Kernels and biases of convolutions and dense layers. Batch normalisation is
            left out unless it was asked for, as in the published tables of classifiers: deployed,
            it is folded away.
        multiply_adds: Products of one forward pass at batch 1, convolutions and dense layers.
    """

    parameters: int
    multiply_adds: int


def count(model: Any, *, normalisation: bool = False) -> Counts:
    """Count a model made of convolutions, dense layers and layers without products.

    Args:
        model: Functional tf_keras model.
        normalisation: Count batch normalisation's trained scales and offsets as parameters too.

    Raises:
        InvalidModelError: If the model holds another layer with weights.
    """
    layers = tf_keras().layers
    parameters = multiply_adds = 0
    for layer in model.layers:
        if not isinstance(layer, layers.BatchNormalization):
            parameters += layer.count_params()
        elif normalisation:
            parameters += sum(weight.shape.num_elements() for weight in layer.trainable_weights)
        if isinstance(layer, layers.DepthwiseConv2D):
            height, width, channels = layer.output_shape[1:]
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            multiply_adds += height * width * channels * kernel
        elif isinstance(layer, layers.Conv2D):
            height, width, channels = layer.output_shape[1:]
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            multiply_adds += (
                height * width * channels * kernel * layer.input_shape[-1] // layer.groups
            )
        elif isinstance(layer, layers.Dense):
            multiply_adds += layer.input_shape[-1] * layer.units
        elif layer.weights and not isinstance(layer, layers.BatchNormalization):
            raise InvalidModelError(
                f"cannot count layer {layer.name} ({type(layer).__name__}); "
                f"expected convolutions, dense layers and batch normalisation"
            )
    return Counts(parameters, multiply_adds)
