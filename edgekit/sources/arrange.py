"""The same Keras model with its channels first, or computing in half precision.

Weights keep their shapes, order and float32 values, so that they can be copied from one form to the
other. The model file is always NHWC and float32.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from edgekit.base import words
from edgekit.base.errors import ExecutionError, InvalidModelError, reason
from edgekit.base.quiet import quiet
from edgekit.sources.keras import tensor_name, tensorflow, tf_keras

DATA_FORMATS = ("NHWC", "NCHW")
#: Keras' policy by the name of a precision.
POLICIES = {
    "float32": "float32",
    "mixed_float16": "mixed_float16",
    "bfloat16": "mixed_bfloat16",
}
PRECISIONS = tuple(POLICIES)

#: Layers for which the place of the channels is nothing, or a setting.
_SAME = (
    "Activation",
    "Add",
    "Average",
    "Dropout",
    "LeakyReLU",
    "Maximum",
    "Minimum",
    "Multiply",
    "ReLU",
    "Subtract",
)
_SET = (
    "AveragePooling2D",
    "Conv2D",
    "Conv2DTranspose",
    "Cropping2D",
    "DepthwiseConv2D",
    "Flatten",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "MaxPooling2D",
    "SeparableConv2D",
    "UpSampling2D",
    "ZeroPadding2D",
)


def arrange(
    model: Any, *, data_format: str = "NHWC", precision: str = "float32", matmul: bool = False
) -> Any:
    """The same model and weights in another form; ``model`` itself if that is the one asked for.

    In half precision layers compute in it and keep float32 weights, batch normalisation its
    float32 statistics; those of the outputs, and the one before a softmax, stay float32, so that
    logits are not rounded and a softmax does not overflow.

    Args:
        model: Functional, of one input ``[N, H, W, C]``.
        data_format: With ``NCHW`` the input of the result is ``[N, C, H, W]``.
        precision: ``float32``, ``mixed_float16`` or ``bfloat16``.
        matmul: Compute 1x1 convolutions as products of matrices, where channels are last: the
            same sums, and on a CPU gradients of kernels up to 10 times as fast as oneDNN's.

    Raises:
        InvalidOptionError: If ``data_format`` or ``precision`` is unknown.
        InvalidModelError: If a layer has no such form.
    """
    check(data_format, precision)
    matmul = matmul and data_format == "NHWC"
    if (data_format, precision, matmul) == ("NHWC", "float32", False):
        return model
    keras = tf_keras()
    whole = _in_float32(model) if precision != "float32" else set()

    def again(layer: Any) -> Any:
        settings = layer.get_config()
        if data_format == "NCHW":
            settings = _channels_first(layer, settings)
        if precision != "float32":
            settings["dtype"] = "float32" if layer.name in whole else POLICIES[precision]
        kind = type(layer)
        if matmul and kind is keras.layers.Conv2D and _is_pointwise(settings):
            kind = _pointwise()
        return kind.from_config(settings)

    inputs = None
    if data_format == "NCHW":
        _check_shapes(model)
        batch, height, width, channels = model.inputs[0].shape
        name = tensor_name(model.inputs[0])
        inputs = [keras.Input(batch_shape=(batch, channels, height, width), name=name)]
    try:
        rebuilt = keras.models.clone_model(model, input_tensors=inputs, clone_function=again)
        rebuilt.set_weights(model.get_weights())
    except InvalidModelError:
        raise
    except Exception as exc:  # whatever a layer raises
        raise InvalidModelError(
            f"the model cannot be made again in {data_format} {precision}: {reason(exc)}; "
            f"use NHWC float32"
        ) from None
    return rebuilt


def _is_pointwise(settings: dict[str, Any]) -> bool:
    """Whether a Conv2D multiplies each pixel's channels by one matrix."""
    one = all(tuple(settings[key]) == (1, 1) for key in ("kernel_size", "strides", "dilation_rate"))
    return one and settings["groups"] == 1 and settings["data_format"] == "channels_last"


@functools.cache
def _pointwise() -> Any:
    """Conv2D of 1x1 as a product of matrices."""
    tf = tensorflow()

    class Pointwise(tf_keras().layers.Conv2D):  # type: ignore[misc]
        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            shape = tf.shape(inputs)
            rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
            products = tf.matmul(rows, tf.reshape(kernel, kernel.shape[2:]))
            return tf.reshape(products, [shape[0], shape[1], shape[2], kernel.shape[3]])

    return Pointwise


def check(data_format: str, precision: str) -> None:
    """Refuse names that are none.

    Raises:
        InvalidOptionError: If one is unknown.
    """
    for what, word, known in (
        ("data format", data_format, DATA_FORMATS),
        ("precision", precision, PRECISIONS),
    ):
        words.one_of(what, word, known)


def require(data_format: str, precision: str, *, device: str, training: bool) -> None:
    """Try the operators of a convolutional net on a device, forward and, to train, backward.

    Args:
        device: As TensorFlow calls it, such as ``/CPU:0``.

    Raises:
        ExecutionError: If TensorFlow has no kernel for one of them there.
    """
    tf = tensorflow()
    dtype = {"mixed_float16": tf.float16, "bfloat16": tf.bfloat16}.get(precision, tf.float32)
    first = data_format == "NCHW"
    with tf.device(device):
        x = tf.ones([2, 8, 4, 4] if first else [2, 4, 4, 8], dtype)
        kernels = tf.ones([3, 3, 8, 8], dtype), tf.ones([3, 3, 8, 1], dtype)
        scale = tf.ones([8])
        strides = [1, 1, 2, 2] if first else [1, 2, 2, 1]

        def forward(x: Any) -> Any:
            maps = tf.nn.conv2d(x, kernels[0], strides, "SAME", data_format=data_format)
            maps = tf.nn.depthwise_conv2d(
                maps, kernels[1], [1] * 4, "SAME", data_format=data_format
            )
            return tf.compat.v1.nn.fused_batch_norm(maps, scale, scale, data_format=data_format)[0]

        def both(x: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([x, *kernels])
                output = forward(x)
            return tape.gradient(output, [x, *kernels])

        try:
            with quiet():  # oneDNN says on stderr what it leaves to others
                tf.nest.map_structure(np.asarray, tf.function(both if training else forward)(x))
        except (
            tf.errors.InvalidArgumentError,
            tf.errors.UnimplementedError,
            tf.errors.AbortedError,  # oneDNN, where TensorFlow believes it has the kernel
            ValueError,
        ) as exc:
            other = "NHWC" if first else "NHWC and precision float32"
            raise ExecutionError(
                f"TensorFlow has no {data_format} {precision} kernels for {device.strip('/')} here "
                f"({_cause(exc)}); use data format {other}"
            ) from None


def _cause(error: Exception) -> str:
    """The line of TensorFlow's many that says what is missing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = ("only support", "not support", "could not create")
    telling = [line for line in lines if any(word in line for word in words)]
    return (telling or lines or [type(error).__name__])[0][:120]


def _in_float32(model: Any) -> set[str]:
    """Names of the layers of the outputs, and of one whose output goes into a softmax."""
    keras = tf_keras()
    names = {tensor_name(tensor) for tensor in model.outputs}
    for name in tuple(names):
        layer = model.get_layer(name)
        before = layer.inbound_nodes[0].inbound_layers
        softmax = isinstance(layer, keras.layers.Softmax) or (
            isinstance(layer, keras.layers.Activation)
            and layer.get_config()["activation"] == "softmax"
        )
        if softmax and not isinstance(before, list):
            names.add(before.name)
    return names


def _channels_first(layer: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a layer whose 4-d input has its channels first."""
    kind = type(layer).__name__
    inputs = layer.input if isinstance(layer.input, list) else [layer.input]
    if all(len(each.shape) == 2 for each in inputs):
        return settings
    moved = {0: 0, 1: 2, 2: 3, 3: 1}
    if kind in _SET and settings.get("activation") != "softmax":
        return {**settings, "data_format": "channels_first"}
    if kind == "BatchNormalization":
        axes = settings["axis"]
        axes = [axes] if isinstance(axes, int) else list(axes)
        return {**settings, "axis": [moved[axis % 4] for axis in axes]}
    if kind == "Concatenate":
        return {**settings, "axis": moved[settings["axis"] % 4]}
    if kind in _SAME and settings.get("activation") != "softmax":
        return settings
    raise InvalidModelError(f"layer {layer.name} ({kind}) has no NCHW form; use NHWC")


def _check_shapes(model: Any) -> None:
    shapes = [tuple(each.shape) for each in [*model.inputs, *model.outputs]]
    if len(model.inputs) != 1 or len(shapes[0]) != 4 or any(len(s) != 2 for s in shapes[1:]):
        raise InvalidModelError(
            f"NCHW is for models from one [N, H, W, C] to [N, classes], got {shapes}; use NHWC"
        )
