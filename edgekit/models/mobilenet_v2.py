"""MobileNetV2 as the paper's Table 2 has it, as one flat functional tf_keras graph.

Source: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks" (CVPR 2018), sections 3.2-3.4 and Table 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


def width_of(channels: Sequence[int], head: int | None = None) -> float | None:
    """The width that gives these channels, of several the roundest; None if there is none.

    Args:
        channels: Of the stem and of each bottleneck.
        head: Of the layer behind them; None for any.
    """
    bottlenecks = [c for _, c, repeats, _ in BOTTLENECKS for _ in range(repeats)]
    steps = sorted(range(5, 501), key=lambda n: (n % 100 != 0, n % 25 != 0, n % 5 != 0, n))
    for width in (step / 100 for step in steps):
        own = [make_divisible(c * width) for c in (STEM_CHANNELS, *bottlenecks)]
        if own == list(channels) and head in (None, make_divisible(HEAD_CHANNELS * max(1, width))):
            return width
    return None


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
    check(width, input_shape, classes, bn_momentum)
    if not 0 <= lowered_strides <= STRIDE_TWO_LAYERS:
        raise InvalidOptionError(
            f"expected 0 <= lowered_strides <= {STRIDE_TWO_LAYERS}, got {lowered_strides}"
        )
    if not 0 <= dropout < 1:
        raise InvalidOptionError(f"expected 0 <= dropout < 1, got {dropout}")
    layers = tf_keras().layers
    blocks = Blocks(bn_momentum=bn_momentum, seed=seed)
    strides = (1,) * lowered_strides + (2,) * (STRIDE_TWO_LAYERS - lowered_strides)
    inputs = layers.Input(shape=input_shape, name="image")
    x = blocks.bottlenecks(inputs, width=width, strides=strides).last
    x = blocks.pointwise(x, "head", make_divisible(HEAD_CHANNELS * max(1.0, width)))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(dropout, seed=seed, name="dropout")(x)
    x = layers.Dense(
        classes,
        kernel_initializer=tf_keras().initializers.RandomNormal(
            stddev=0.01, seed=blocks.next_seed()
        ),
        name="logits",
    )(x)
    outputs = layers.Softmax(name="probabilities")(x)
    return tf_keras().Model(inputs, outputs, name="mobilenet_v2")


@dataclass(frozen=True)
class Features:
    """What other networks read of MobileNetV2's layers.

    Attributes:
        expansion: The expanded channels of the first bottleneck of the group of 160, before its
            stride: 576 channels at stride 16 ("layer 15" of the paper's section 6.2).
        last: The output of the last bottleneck, 320 channels at stride 32.
    """

    expansion: Any
    last: Any


class Blocks:
    """Makes the layers that the networks of this package consist of.

    Args:
        bn_momentum: Moving-average decay of the batch statistics.
        seed: Seed of the weight initialisers; each layer has one of its own.
    """

    def __init__(self, *, bn_momentum: float, seed: int) -> None:
        self._momentum = bn_momentum
        self._seeds = iter(range(seed * 1000, (seed + 1) * 1000))

    def next_seed(self) -> int:
        """The seed of the next layer's weights."""
        return next(self._seeds)

    def pointwise(self, x: Any, name: str, channels: int) -> Any:
        """1x1 convolution, batch normalisation, ReLU6."""
        return self._relu6(self._normalized(self._conv(x, name, channels), name), name)

    def convolution(self, x: Any, name: str, channels: int, *, dilation: int = 1) -> Any:
        """3x3 convolution, batch normalisation, ReLU6."""
        x = self._conv(x, name, channels, kernel=3, dilation=dilation)
        return self._relu6(self._normalized(x, name), name)

    def depthwise(self, x: Any, name: str, *, stride: int = 1, dilation: int = 1) -> Any:
        """3x3 depthwise convolution, batch normalisation, ReLU6."""
        layers = tf_keras().layers
        x = layers.DepthwiseConv2D(
            3,
            strides=stride,
            dilation_rate=dilation,
            padding="same",
            use_bias=False,
            depthwise_initializer=self._initializer(),
            name=name,
        )(x)
        return self._relu6(self._normalized(x, name), name)

    def bottlenecks(
        self, x: Any, *, width: float, strides: Sequence[int], dilated: int = 0
    ) -> Features:
        """The stem and all bottlenecks of Table 2.

        Args:
            x: Images ``[N, height, width, channels]``.
            width: Multiplier of every channel count.
            strides: Of the five layers that halve the resolution, 1 or 2 each.
            dilated: How many of these strides, the last of them, are 1 because the depthwise
                convolutions behind look at pixels twice as far apart instead (Chen et al. 2017,
                "Rethinking Atrous Convolution for Semantic Image Segmentation", section 3.1).
        """
        rest = list(strides)
        channels, dilation = make_divisible(STEM_CHANNELS * width), 1
        x = self._conv(x, "stem", channels, kernel=3, stride=rest.pop(0))
        x = self._relu6(self._normalized(x, "stem"), "stem")
        block, expansion = 0, None
        for t, c, n, s in BOTTLENECKS:
            out_channels = make_divisible(c * width)
            for repeat in range(n):
                halves = s == 2 and repeat == 0
                stride = rest.pop(0) if halves else 1
                x, expanded = self._bottleneck(
                    x, f"block{block}", t, channels, out_channels, stride, dilation
                )
                if c == 160 and repeat == 0:
                    expansion = expanded
                if halves and len(rest) < dilated:
                    dilation *= 2
                channels = out_channels
                block += 1
        return Features(expansion, x)

    def _bottleneck(
        self,
        x: Any,
        name: str,
        expansion: int,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
    ) -> tuple[Any, Any]:
        """Inverted residual with a linear bottleneck (the paper's Table 1 and Figure 4d).

        Returns:
            Its output, and its expanded channels.
        """
        shortcut = x
        if expansion != 1:
            x = self.pointwise(x, f"{name}_expand", in_channels * expansion)
        expanded = x
        x = self.depthwise(x, f"{name}_depthwise", stride=stride, dilation=dilation)
        x = self._conv(x, f"{name}_project", out_channels)
        x = self._normalized(x, f"{name}_project")
        if stride == 1 and in_channels == out_channels:
            x = tf_keras().layers.Add(name=f"{name}_add")([shortcut, x])
        return x, expanded

    def _initializer(self) -> Any:
        return tf_keras().initializers.HeNormal(seed=self.next_seed())

    def _conv(
        self,
        x: Any,
        name: str,
        channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
    ) -> Any:
        return tf_keras().layers.Conv2D(
            channels,
            kernel,
            strides=stride,
            dilation_rate=dilation,
            padding="same",
            use_bias=False,
            kernel_initializer=self._initializer(),
            name=name,
        )(x)

    def _normalized(self, x: Any, name: str) -> Any:
        layers = tf_keras().layers
        return layers.BatchNormalization(epsilon=1e-3, momentum=self._momentum, name=f"{name}_bn")(
            x
        )

    def _relu6(self, x: Any, name: str) -> Any:
        return tf_keras().layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x)


def check(
    width: float, input_shape: tuple[int, int, int], classes: int, bn_momentum: float
) -> None:
    """Refuse what no network of this package can have.

    Raises:
        InvalidOptionError: If an argument is out of range.
    """
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
    if not 0 <= bn_momentum < 1:
        raise InvalidOptionError(f"expected 0 <= bn_momentum < 1, got {bn_momentum}")


def check_strides(strides: Sequence[int]) -> None:
    """Refuse what :meth:`Blocks.bottlenecks` cannot take.

    Raises:
        InvalidOptionError: If they are not five of 1 or 2.
    """
    if len(strides) != STRIDE_TWO_LAYERS or not set(strides) <= {1, 2}:
        raise InvalidOptionError(
            f"expected {STRIDE_TWO_LAYERS} strides of 1 or 2, got {tuple(strides)}"
        )
