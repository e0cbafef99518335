"""SSDLite on MobileNetV2: a detector whose predictions are separable convolutions.

Source: Sandler et al. 2018, "MobileNetV2", section 6.2, as the authors' object detection API builds
it; Liu et al. 2016, "SSD: Single Shot MultiBox Detector". Feature maps are the expansion of layer
15 (stride 16), the last layer (stride 32), and further layers, each of half the resolution: 1x1
convolution to half the channels, 3x3 depthwise convolution, 1x1 convolution. From each map two
separable convolutions predict boxes and scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.base.errors import InvalidOptionError
from edgekit.models.mobilenet_v2 import (
    HEAD_CHANNELS,
    Blocks,
    check,
    check_strides,
    make_divisible,
)
from edgekit.records.decoding import AnchorGrid, Anchors, Decoding
from edgekit.sources.keras import tf_keras

BOXES, SCORES = "boxes", "scores"
#: Score that every anchor has for every class before training (Lin et al. 2017, section 4.1).
PRIOR = 0.01


@dataclass(frozen=True)
class Detector:
    """What makes a detector of MobileNetV2; the defaults are the paper's at 320 x 320.

    Attributes:
        strides: Of the five layers that halve the resolution, 1 or 2 each: on small pictures a 1
            keeps the maps large enough.
        head_channels: Channels of the last layer; not multiplied by a width below 1.
        extra_channels: Channels of each further map, multiplied by the width.
        scales: Side of an anchor as part of the input's, one a feature map, then that of a map that
            would follow.
        ratios: Width of an anchor by its height; one more anchor a position lies between this
            scale and the next.
        fewer: Whether the first map has three anchors a position only: a small square one, and
            those of the first two ratios that are not 1.
    """

    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    head_channels: int = HEAD_CHANNELS
    extra_channels: tuple[int, ...] = (512, 256, 256, 128)
    scales: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
    ratios: tuple[float, ...] = (1.0, 2.0, 0.5, 3.0, 1 / 3)
    fewer: bool = True

    def __post_init__(self) -> None:
        check_strides(self.strides)
        maps = 2 + len(self.extra_channels)
        if len(self.scales) != maps + 1:
            raise InvalidOptionError(
                f"expected {maps + 1} scales of {maps} feature maps, got {len(self.scales)}"
            )
        if not all(0 < each <= 2 for each in self.scales):
            raise InvalidOptionError(f"expected 0 < scales <= 2, got {self.scales}")
        if not self.ratios or not all(0.05 <= each <= 20 for each in self.ratios):
            raise InvalidOptionError(f"expected ratios from 0.05 to 20, got {self.ratios}")
        if min((self.head_channels, *self.extra_channels)) < 1:
            raise InvalidOptionError("expected channels >= 1")

    def anchors(self, maps: Sequence[tuple[int, int]]) -> Anchors:
        """Anchors of feature maps of these heights and widths (Liu et al., section 2.2)."""
        grids = []
        for number, (rows, columns) in enumerate(maps):
            scale, following = self.scales[number], self.scales[number + 1]
            sizes = [(scale / math.sqrt(r), scale * math.sqrt(r)) for r in self.ratios]
            sizes.append((math.sqrt(scale * following),) * 2)
            if number == 0 and self.fewer:
                narrow = [r for r in self.ratios if r != 1][:2]
                sizes = [(scale / 2, scale / 2)]
                sizes += [(scale / math.sqrt(r), scale * math.sqrt(r)) for r in narrow]
            grids.append(AnchorGrid(rows, columns, tuple(sizes)))
        return Anchors(tuple(grids))


def ssdlite(
    *,
    width: float = 1.0,
    input_shape: tuple[int, int, int] = (320, 320, 3),
    classes: int = 80,
    detector: Detector = Detector(),
    bn_momentum: float = 0.99,
    seed: int = 0,
) -> tuple[Any, Decoding]:
    """Build SSDLite on MobileNetV2.

    Args:
        width: Multiplier of the channels of the backbone and of further maps.
        input_shape: (height, width, channels) of one image.
        classes: Number of classes, without a background.
        detector: What makes it a detector.
        bn_momentum: Moving-average decay of the batch statistics.
        seed: Seed of the weight initialisers.

    Returns:
        A model from float32 ``[N, height, width, channels]`` to float32 ``boxes`` ``[N, A, 4]``,
        coded against anchors, and ``scores`` ``[N, A, classes]`` before a sigmoid; and how these
        are read.

    Raises:
        InvalidOptionError: If an argument is out of range.
    """
    check(width, input_shape, max(classes, 2), bn_momentum)
    if classes < 1:
        raise InvalidOptionError(f"expected classes >= 1, got {classes}")
    keras = tf_keras()
    layers = keras.layers
    blocks = Blocks(bn_momentum=bn_momentum, seed=seed)
    inputs = layers.Input(shape=input_shape, name="image")
    features = blocks.bottlenecks(inputs, width=width, strides=detector.strides)
    head = make_divisible(detector.head_channels * max(1.0, width))
    maps = [features.expansion, blocks.pointwise(features.last, "head", head)]
    for number, channels in enumerate(detector.extra_channels):
        name, channels = f"extra{number}", make_divisible(channels * width)
        x = blocks.pointwise(maps[-1], f"{name}_reduce", make_divisible(channels / 2))
        x = blocks.depthwise(x, f"{name}_depthwise", stride=2)
        maps.append(blocks.pointwise(x, f"{name}_expand", channels))
    anchors = detector.anchors([(each.shape[1], each.shape[2]) for each in maps])

    def predicted(what: str, numbers: int, bias: Any) -> Any:
        parts = []
        for number, (x, grid) in enumerate(zip(maps, anchors.grids, strict=True)):
            name = f"{what}{number}"
            x = blocks.depthwise(x, f"{name}_depthwise")
            x = layers.Conv2D(
                len(grid.sizes) * numbers,
                1,
                kernel_initializer=keras.initializers.RandomNormal(
                    stddev=0.01, seed=blocks.next_seed()
                ),
                bias_initializer=bias,
                name=name,
            )(x)
            shape = (grid.rows * grid.columns * len(grid.sizes), numbers)
            parts.append(layers.Reshape(shape, name=f"{name}_rows")(x))
        return layers.Concatenate(axis=1, name=what)(parts)

    outputs = [
        predicted(BOXES, 4, "zeros"),
        predicted(SCORES, classes, keras.initializers.Constant(-math.log((1 - PRIOR) / PRIOR))),
    ]
    model = keras.Model(inputs, outputs, name="ssdlite_mobilenet_v2")
    decoding = Decoding((BOXES,), (SCORES,), anchors=anchors, activation="sigmoid")
    return model, decoding
