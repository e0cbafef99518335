"""MobileNetV2 as the paper's Table 2 has it, as one flat functional tf_keras graph.

Source: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks" (CVPR 2018), sections 3.2-3.4 and Table 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit.base.errors import InvalidOptionError
from edgekit.sources.keras import tf_keras

if TYPE_CHECKING:
    import tf_keras as keras

#: (expansion t, output channels c, repeats n, stride s of the first) of each bottleneck group.
BOTTLENECKS: tuple[tuple[int, int, int, int], ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
#: How many layers halve the resolution: the stem and four bottleneck groups.
STRIDE_TWO_LAYERS = 1 + sum(s == 2 for _, _, _, s in BOTTLENECKS)


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of ``divisor``, never more than 10 % below ``value``."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor


def mobilenet_v2(
    *,
    width: float = 1.0,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    lowered_strides: int = 0,
    dropout: float = 0.2,
    bn_momentum: float = 0.99,
    seed: int = 0,
) -> keras.Model:
    """Build MobileNetV2 with a softmax at its end.

    Args:
        width: Multiplier of every channel count; the head of 1280 grows with it only above 1.
        input_shape: (height, width, channels) of one image.
        classes: Number of outputs k.
        lowered_strides: How many of the five stride-2 layers, from the input on, run with
            stride 1 instead: for inputs too small to be halved five times.
        dropout: Fraction dropped before the classifier while training.
        bn_momentum: Moving-average decay of the batch statistics.
        seed: Seed of the weight initialisers.

    Returns:
        A model from float32 ``[N, height, width, channels]`` to float32 ``[N, classes]``
        probabilities. Its layer ``logits`` has the values before the softmax.

    Raises:
        InvalidOptionError: If an argument is out of range.
    """
    _check(width, input_shape, classes, lowered_strides, dropout, bn_momentum)
    layers = tf_keras().layers
    strides = _Strides(lowered_strides)
    seeds = iter(range(seed * 1000, (seed + 1) * 1000))

    def initializer() -> Any:
        return tf_keras().initializers.HeNormal(seed=next(seeds))

    def conv(x: Any, name: str, channels: int, kernel: int = 1, stride: int = 1) -> Any:
        return layers.Conv2D(
            channels,
            kernel,
            strides=stride,
            padding="same",
            use_bias=False,
            kernel_initializer=initializer(),
            name=name,
        )(x)

    def normalized(x: Any, name: str) -> Any:
        return layers.BatchNormalization(epsilon=1e-3, momentum=bn_momentum, name=f"{name}_bn")(x)

    def relu6(x: Any, name: str) -> Any:
        return layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x)

    inputs = layers.Input(shape=input_shape, name="image")
    channels = make_divisible(STEM_CHANNELS * width)
    x = conv(inputs, "stem", channels, kernel=3, stride=strides.next(2))
    x = relu6(normalized(x, "stem"), "stem")

    block = 0
    for t, c, n, s in BOTTLENECKS:
        out_channels = make_divisible(c * width)
        for repeat in range(n):
            stride = strides.next(s) if repeat == 0 else 1
            x = _bottleneck(
                x,
                f"block{block}",
                t,
                channels,
                out_channels,
                stride,
                conv,
                normalized,
                relu6,
                initializer,
            )
            channels = out_channels
            block += 1

    x = conv(x, "head", make_divisible(HEAD_CHANNELS * max(1.0, width)))
    x = relu6(normalized(x, "head"), "head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(dropout, seed=seed, name="dropout")(x)
    x = layers.Dense(
        classes,
        kernel_initializer=tf_keras().initializers.RandomNormal(stddev=0.01, seed=next(seeds)),
        name="logits",
    )(x)
    outputs = layers.Softmax(name="probabilities")(x)
    return tf_keras().Model(inputs, outputs, name="mobilenet_v2")


def _bottleneck(
    x: Any,
    name: str,
    expansion: int,
    in_channels: int,
    out_channels: int,
    stride: int,
    conv: Callable[..., Any],
    normalized: Callable[[Any, str], Any],
    relu6: Callable[[Any, str], Any],
    initializer: Callable[[], Any],
) -> Any:
    """Inverted residual with a linear bottleneck (the paper's Table 1 and Figure 4d)."""
    layers = tf_keras().layers
    shortcut = x
    if expansion != 1:
        x = conv(x, f"{name}_expand", in_channels * expansion)
        x = relu6(normalized(x, f"{name}_expand"), f"{name}_expand")
    x = layers.DepthwiseConv2D(
        3,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=initializer(),
        name=f"{name}_depthwise",
    )(x)
    x = relu6(normalized(x, f"{name}_depthwise"), f"{name}_depthwise")
    x = conv(x, f"{name}_project", out_channels)
    x = normalized(x, f"{name}_project")
    if stride == 1 and in_channels == out_channels:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return x


class _Strides:
    """Hands out strides, the first ``lowered`` of the twos as ones."""

    def __init__(self, lowered: int) -> None:
        self._lowered = lowered

    def next(self, stride: int) -> int:
        if stride == 2 and self._lowered > 0:
            self._lowered -= 1
            return 1
        return stride


def _check(
    width: float,
    input_shape: tuple[int, int, int],
    classes: int,
    lowered_strides: int,
    dropout: float,
    bn_momentum: float,
) -> None:
    if not 0 < width <= 10:
        raise InvalidOptionError(
            f"expected 0 < width <= 10, got {width}; MobileNetV2 uses 0.35-1.4"
        )
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InvalidOptionError(
            f"expected input_shape (height, width, channels), all >= 1, got {input_shape}"
        )
    if classes < 2:
        raise InvalidOptionError(f"expected classes >= 2, got {classes}")
    if not 0 <= lowered_strides <= STRIDE_TWO_LAYERS:
        raise InvalidOptionError(
            f"expected 0 <= lowered_strides <= {STRIDE_TWO_LAYERS}, got {lowered_strides}"
        )
    if not 0 <= dropout < 1:
        raise InvalidOptionError(f"expected 0 <= dropout < 1, got {dropout}")
    if not 0 <= bn_momentum < 1:
        raise InvalidOptionError(f"expected 0 <= bn_momentum < 1, got {bn_momentum}")
