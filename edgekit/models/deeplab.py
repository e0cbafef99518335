"""Reduced DeepLabV3 on MobileNetV2: a class for each pixel.

Source: Sandler et al. 2018, "MobileNetV2", section 6.3; Chen et al. 2017, "Rethinking Atrous
Convolution for Semantic Image Segmentation". The head reads the last bottleneck (320 channels); the
1280 channels behind it are left out. Behind the output stride, depthwise convolutions are dilated
instead of strided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.base.errors import InvalidOptionError
from edgekit.models.mobilenet_v2 import STRIDE_TWO_LAYERS, Blocks, check
from edgekit.sources.keras import tf_keras

LOGITS = "logits"
OUTPUT_STRIDES = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Segmenter:
    """What makes a segmenter of MobileNetV2; the defaults are the paper's without ASPP.

    Attributes:
        output_stride: Pixels of the input between two positions of the last feature map.
        head_channels: Channels of each branch of the head, and of the layer before the classes.
        pooling: Whether a branch of the head sees the mean over the picture.
        rates: Dilations of the branches of 3x3 convolutions, atrous spatial pyramid pooling (ASPP):
            the paper's are 6, 12, 18 at output stride 16; none for a head without.
        upsample: Whether logits are brought to the size of the input, bilinearly.
    """

    output_stride: int = 16
    head_channels: int = 256
    pooling: bool = True
    rates: tuple[int, ...] = ()
    upsample: bool = True

    def __post_init__(self) -> None:
        if self.output_stride not in OUTPUT_STRIDES:
            raise InvalidOptionError(
                f"expected output_stride {', '.join(map(str, OUTPUT_STRIDES))}, got "
                f"{self.output_stride}"
            )
        if self.head_channels < 1 or any(rate < 1 for rate in self.rates):
            raise InvalidOptionError("expected head_channels and rates >= 1")


def deeplab(
    *,
    width: float = 1.0,
    input_shape: tuple[int, int, int] = (513, 513, 3),
    classes: int = 21,
    segmenter: Segmenter = Segmenter(),
    dropout: float = 0.0,
    bn_momentum: float = 0.99,
    seed: int = 0,
) -> Any:
    """Build DeepLabV3 on MobileNetV2.

    Args:
        width: Multiplier of the channels of the backbone.
        input_shape: (height, width, channels) of one image.
        classes: Number of classes, the background one of them.
        segmenter: What makes it a segmenter.
        dropout: Fraction dropped before the classes while training.
        bn_momentum: Moving-average decay of the batch statistics.
        seed: Seed of the weight initialisers.

    Returns:
        A model from float32 ``[N, height, width, channels]`` to float32 ``logits``
        ``[N, height, width, classes]``; of the output stride if they are not upsampled.

    Raises:
        InvalidOptionError: If an argument is out of range.
    """
    check(width, input_shape, classes, bn_momentum)
    if not 0 <= dropout < 1:
        raise InvalidOptionError(f"expected 0 <= dropout < 1, got {dropout}")
    keras = tf_keras()
    layers = keras.layers
    blocks = Blocks(bn_momentum=bn_momentum, seed=seed)
    kept = OUTPUT_STRIDES.index(segmenter.output_stride) + 1
    lowered = STRIDE_TWO_LAYERS - kept
    inputs = layers.Input(shape=input_shape, name="image")
    last = blocks.bottlenecks(
        inputs, width=width, strides=(2,) * kept + (1,) * lowered, dilated=lowered
    ).last
    channels = segmenter.head_channels
    branches = [blocks.pointwise(last, "head", channels)]
    for rate in segmenter.rates:
        branches.append(blocks.convolution(last, f"head_rate{rate}", channels, dilation=rate))
    if segmenter.pooling:
        x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(last)
        x = blocks.pointwise(x, "head_pool", channels)
        size = (last.shape[1], last.shape[2])
        branches.append(layers.UpSampling2D(size, interpolation="nearest", name="spread")(x))
    x = branches[0]
    if len(branches) > 1:
        x = layers.Concatenate(name="branches")(branches)
        x = blocks.pointwise(x, "head_project", channels)
    if dropout:
        x = layers.Dropout(dropout, seed=seed, name="dropout")(x)
    x = layers.Conv2D(
        classes,
        1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01, seed=blocks.next_seed()),
        name=LOGITS if not segmenter.upsample else "classes",
    )(x)
    if segmenter.upsample:
        height, across, _ = input_shape
        x = layers.Resizing(height, across, interpolation="bilinear", name=LOGITS)(x)
    return keras.Model(inputs, x, name="deeplab_mobilenet_v2")
