"""``python -m edgekit.models import-slim``: a TF-slim MobileNetV2 checkpoint as a Keras artifact.

Slim calls the stem ``MobilenetV2/Conv``, the bottlenecks ``expanded_conv``, ``expanded_conv_1``, …,
the head ``Conv_1`` and the classifier ``Logits/Conv2d_1c_1x1``. Class 0 of its 1,001 classes is the
background. Beside each variable is its moving average, which Slim evaluates; it is used if it is
there. Images are scaled to [-1, 1].
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import cli, outputs, words
from edgekit.base.errors import InvalidModelError
from edgekit.models.mobilenet_v2 import (
    BOTTLENECKS,
    HEAD_CHANNELS,
    mobilenet_v2,
    width_of,
)
from edgekit.records import artifact
from edgekit.records.signature import preprocessing
from edgekit.sources import keras as keras_format

SCOPE = "MobilenetV2"
_AVERAGE = "/ExponentialMovingAverage"
_BLOCKS = sum(repeats for _, _, repeats, _ in BOTTLENECKS)
#: What training leaves in a checkpoint beside the network.
_NOT_NETWORK = re.compile(
    r"(^|/)(global_step|Momentum|RMSProp|RMSProp_1|Adam|Adam_1|beta1_power|beta2_power"
    r"|biased|local_step|loss)($|/)"
)
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Imported:
    """A model with a checkpoint's weights.

    Attributes:
        model: tf_keras model.
        width: Multiplier of its channels.
        averaged: How many variables were taken as their moving average.
        variables: How many variables were taken.
    """

    model: Any
    width: float
    averaged: int
    variables: int


def variable_names() -> dict[str, tuple[str, ...]]:
    """Slim's variables of each Keras layer, in the order of the layer's weights."""
    of_layer: dict[str, tuple[str, ...]] = {}

    def convolution(layer: str, scope: str, kernel: str = "weights") -> None:
        of_layer[layer] = (f"{scope}/{kernel}",)
        norm = f"{scope}/BatchNorm"
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        of_layer[f"{layer}_bn"] = tuple(f"{norm}/{name}" for name in names)

    convolution("stem", f"{SCOPE}/Conv")
    for block in range(_BLOCKS):
        scope = f"{SCOPE}/expanded_conv" + (f"_{block}" if block else "")
        if block:  # the first does not expand
            convolution(f"block{block}_expand", f"{scope}/expand")
        convolution(f"block{block}_depthwise", f"{scope}/depthwise", "depthwise_weights")
        convolution(f"block{block}_project", f"{scope}/project")
    convolution("head", f"{SCOPE}/Conv_1")
    logits = f"{SCOPE}/Logits/Conv2d_1c_1x1"
    of_layer["logits"] = (f"{logits}/weights", f"{logits}/biases")
    return of_layer


def build(
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    resolution: int = 224,
    background: bool = False,
    averages: bool = True,
) -> Imported:
    """Make the Keras model of a checkpoint's variables.

    Args:
        arrays: By slim's names.
        resolution: Height and width of an image.
        background: Keep class 0 of 1,001.
        averages: Take moving averages where they are.

    Raises:
        InvalidModelError: If a variable is missing, is not the network's, or has another shape.
    """
    names = variable_names()
    variables = [name for group in names.values() for name in group]
    missing = [name for name in variables if name not in arrays and name + _AVERAGE not in arrays]
    left = {name.removesuffix(_AVERAGE) for name in arrays} - set(variables)
    extra = sorted(name for name in left if not _NOT_NETWORK.search(name))
    if missing or extra:
        raise InvalidModelError(
            f"the checkpoint is no slim MobileNetV2: {_listed('missing', missing)}; "
            f"{_listed('not known', extra)}"
        )
    averaged = 0

    def value(name: str) -> npt.NDArray[np.float32]:
        nonlocal averaged
        twin = name + _AVERAGE
        if twin in arrays and (averages or name not in arrays):
            averaged += 1
            return np.asarray(arrays[twin], np.float32)
        return np.asarray(arrays[name], np.float32)

    width = _width({name: _shape(arrays, name) for name in variables})
    weights = {layer: [value(name) for name in group] for layer, group in names.items()}
    kernel, bias = weights["logits"]
    kernel = kernel.reshape(kernel.shape[-2:])
    if len(bias) == 1001 and not background:
        kernel, bias = kernel[:, 1:], bias[1:]
    weights["logits"] = [kernel, bias]
    channels = weights["stem"][0].shape[2]
    model = mobilenet_v2(
        width=width, input_shape=(resolution, resolution, channels), classes=len(bias)
    )
    for layer, group in weights.items():
        own = model.get_layer(layer).get_weights()
        for name, expected, array in zip(names[layer], own, group, strict=True):
            if expected.shape != array.shape:
                raise InvalidModelError(
                    f"{name}: expected shape {list(expected.shape)} at width {width:g}, got "
                    f"{list(array.shape)}"
                )
        model.get_layer(layer).set_weights(group)
    return Imported(model, width, averaged, len(variables))


def _listed(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{len(names)} variables {what}" + (f" ({shown})" if names else "")


def _shape(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> tuple[int, ...]:
    variable = arrays[name] if name in arrays else arrays[name + _AVERAGE]
    return tuple(variable.shape)


def _width(shapes: Mapping[str, tuple[int, ...]]) -> float:
    """The width whose channels are the checkpoint's; of several that give the same, the roundest.

    Raises:
        InvalidModelError: If there is none.
    """
    scopes = [f"{SCOPE}/Conv/weights"]
    scopes += [
        f"{SCOPE}/expanded_conv{f'_{block}' if block else ''}/project/weights"
        for block in range(_BLOCKS)
    ]
    scopes.append(f"{SCOPE}/Conv_1/weights")
    seen = [shapes[name][-1] for name in scopes]

    width = width_of(seen[:-1], seen[-1])
    if width is not None:
        return width
    raise InvalidModelError(
        f"no width multiplier gives the checkpoint's channels {seen}; edgekit's MobileNetV2 makes "
        f"them divisible by 8 and does not shrink the head of {HEAD_CHANNELS}"
    )


def read(prefix: Path) -> Arrays:
    """All variables of a TensorFlow checkpoint.

    Args:
        prefix: The path without ``.index`` and ``.data-…``; or either file.

    Raises:
        InvalidModelError: If there is none that can be read.
    """
    tf = keras_format.tensorflow()
    name = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", str(prefix))
    if not Path(f"{name}.index").is_file() and not Path(name).is_file():
        raise InvalidModelError(f"{prefix}: no checkpoint there; expected {name}.index beside it")
    try:
        reader = tf.train.load_checkpoint(name)
        return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    except Exception as exc:  # TensorFlow raises its own types for a broken file
        text = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise InvalidModelError(f"{prefix} cannot be read as a checkpoint: {text[:200]}") from None


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.models import-slim``."""
    result = cli.Parser(
        "models import-slim",
        description="Read a TF-slim MobileNetV2 checkpoint and write it as a float Keras artifact.",
        examples="""
python -m edgekit.models import-slim mobilenet_v2_1.0_224.ckpt \\
    --out exports/imagenet
""",
    )
    add = result.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="the checkpoint's path without .index")
    add("--out", type=Path, required=True, metavar="FOLDER", help="artifact to write")
    add(
        "--resolution",
        type=words.positive_int,
        default=224,
        help="height and width of its input (default: %(default)s)",
    )
    add("--background", action="store_true", help="keep class 0, the background, of 1,001")
    add("--no-averages", action="store_true", help="take the variables, not their moving averages")
    add("--force", action="store_true", help="replace FOLDER if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    outputs.check_free(options.out, force=options.force)
    imported = build(
        read(options.checkpoint),
        resolution=options.resolution,
        background=options.background,
        averages=not options.no_averages,
    )
    classes = int(imported.model.output_shape[-1])
    written = artifact.write(
        options.out,
        {"model.keras": keras_format.to_bytes(imported.model)},
        {
            "model_id": options.out.name,
            "format": "keras",
            "precision": "float32",
            "model_file": "model.keras",
            "signature": keras_format.signature(imported.model),
            "preprocessing": preprocessing("symmetric"),
            "class_names": tuple(str(i) for i in range(classes)),
            "task": "classification",
            "command": cli.command_line(),
            "notes": (
                f"from the slim checkpoint {options.checkpoint.name}: {imported.averaged} of "
                f"{imported.variables} variables are moving averages",
            ),
        },
        force=options.force,
    )
    cli.console.print(
        f"width {imported.width:g}, {classes} classes, {imported.variables} variables "
        f"({imported.averaged} as their moving average): {written.path}"
    )
    return 0, {
        "artifact": str(written.path),
        "width": imported.width,
        "classes": classes,
        "variables": imported.variables,
        "averaged": imported.averaged,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)
