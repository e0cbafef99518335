"""Networks that a run trains by a recipe, and backbones that they begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgekit.base.errors import InvalidModelError, reason
from edgekit.models import deeplab, mobilenet_v2, ssdlite
from edgekit.records.decoding import Decoding
from edgekit.sources import float_model
from edgekit.sources import keras as keras_format
from edgekit.training import finetune
from edgekit.training.recipes import Preset


@dataclass(frozen=True)
class Network:
    """A network with its first weights.

    Attributes:
        model: tf_keras model.
        decoding: How the outputs of a detector become boxes; None for any other.
    """

    model: Any
    decoding: Decoding | None = None


def build(preset: Preset, shape: tuple[int, int, int], classes: int) -> Network:
    """The network of a recipe.

    Args:
        preset: Says which.
        shape: ``(H, W, C)`` of an image.
        classes: Of the data; of masks the background is one.

    Raises:
        InvalidOptionError: If an option is out of range.
    """
    common: dict[str, Any] = {
        "width": preset.network.width,
        "input_shape": shape,
        "classes": classes,
        "bn_momentum": preset.network.bn_momentum,
        "seed": preset.recipe.seed,
    }
    if preset.detector:
        return Network(*ssdlite.ssdlite(detector=preset.detector, **common))
    common["dropout"] = preset.network.dropout
    if preset.segmenter:
        return Network(deeplab.deeplab(segmenter=preset.segmenter, **common))
    lowered = preset.network.lowered_strides
    return Network(mobilenet_v2.mobilenet_v2(lowered_strides=lowered, **common))


def architecture(preset: Preset) -> str:
    """What the manifest calls it."""
    return {"detection": "ssdlite_mobilenet_v2", "segmentation": "deeplab_mobilenet_v2"}.get(
        preset.task, "mobilenet_v2"
    )


@dataclass(frozen=True)
class Backbone:
    """A trained MobileNetV2, whose layers up to the last bottleneck another network begins with.

    Attributes:
        original: The model, and where it came from.
        width: Multiplier of its channels.
        weights: Of these layers, in order.
    """

    original: float_model.FloatModel
    width: float
    weights: tuple[tuple[npt.NDArray[Any], ...], ...]

    def give(self, model: Any) -> None:
        """Set these weights in a network of :func:`build` of the same width.

        Raises:
            InvalidModelError: If its images have other channels; one becomes three, as grey is made
                of red, green and blue.
        """
        for layer, weights in zip(_backbone(model), self.weights, strict=True):
            own = [tuple(each.shape) for each in layer.get_weights()]
            try:
                layer.set_weights(
                    [finetune.shared(*pair) for pair in zip(weights, own, strict=True)]
                )
            except ValueError as exc:
                raise InvalidModelError(
                    f"{self.original.model_id} takes images of {self.weights[0][0].shape[2]} "
                    f"channels, expected those of the data: {layer.name}: {reason(exc)}"
                ) from None


def backbone(path: Path, preprocessing: str | None) -> Backbone:
    """Read the backbone of a trained classifier.

    Args:
        path: A float Keras artifact, or a ``.keras`` file with ``preprocessing``.
        preprocessing: For a ``.keras`` file.

    Raises:
        EdgekitError: If it cannot be read, or is no MobileNetV2.
    """
    original = float_model.load(path, preprocessing=preprocessing, free=True)
    if original.encodings is not None:
        raise InvalidModelError(f"{path} was trained with fake quantization; pass the float model")
    layers = _backbone(original.model)
    depthwise = keras_format.tf_keras().layers.DepthwiseConv2D
    stem, first, *rest = (
        layer.filters for layer in layers[::2] if not isinstance(layer, depthwise)
    )
    # the first bottleneck has a projection, each other one an expansion and a projection
    width = mobilenet_v2.width_of([stem, first, *rest[1::2]])
    if width is None:
        raise InvalidModelError(
            f"{path}: no width multiplier gives its channels; expected a MobileNetV2 of edgekit or "
            f"of keras.applications"
        )
    return Backbone(original, width, tuple(tuple(layer.get_weights()) for layer in layers))


#: Convolutions of the stem and of all bottlenecks, of which the first has no expansion.
_CONVOLUTIONS = 1 + sum(n * (3 if t > 1 else 2) for t, _, n, _ in mobilenet_v2.BOTTLENECKS)


def _backbone(model: Any) -> list[Any]:
    """Convolutions up to the last bottleneck, each with its batch normalisation behind it.

    Raises:
        InvalidModelError: If there are other layers.
    """
    layers = keras_format.tf_keras().layers
    weighted = [layer for layer in model.layers if layer.weights][: 2 * _CONVOLUTIONS]
    kinds = (layers.Conv2D | layers.DepthwiseConv2D, layers.BatchNormalization)
    if len(weighted) < 2 * _CONVOLUTIONS or not all(
        isinstance(layer, kinds[number % 2]) for number, layer in enumerate(weighted)
    ):
        raise InvalidModelError(
            f"{model.name}: expected a MobileNetV2, {_CONVOLUTIONS} convolutions with batch "
            f"normalisation behind each up to the last bottleneck"
        )
    return weighted
