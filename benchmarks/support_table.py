"""What each layer becomes: ``benchmarks/support_table.py --out docs/reference/conversion.md``.

Builds a small net around each layer, exports it to TFLite and ONNX in int8 and float16, and writes
what came of it: whether all of it is integer kernels, which operators compute in float, or the
reason why it is refused. The table replaces the section of that name in the page. Prints one line
for each layer; the last line of stdout is a JSON document. ``--only NAME`` runs some.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base import outputs
from edgekit.base.errors import EdgekitError
from edgekit.base.quiet import quiet
from edgekit.export import Options, export
from edgekit.sources import keras as keras_format

#: Heading of the section in the page.
SECTION = "## Layers"
FORMATS = tuple((t, p) for p in ("int8", "float16") for t in ("tflite", "onnx"))
PICTURE, ROWS, VOLUME = (8, 8, 4), (6, 4), (4, 4, 4, 2)
_SAMPLES = 12


def _nets() -> dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]]:
    """Size of the input, and from the input to the output, by layer."""
    tf, layers = keras_format.tensorflow(), keras_format.tf_keras().layers

    def conv(x: Any) -> Any:
        return layers.Conv2D(4, 3, padding="same")(x)

    def head(x: Any) -> Any:
        return layers.Dense(3)(layers.Flatten()(x))

    def inside(layer: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: conv(layer(conv(x)))

    def of_picture(layer: Callable[[Any], Any]) -> tuple[tuple[int, ...], Callable[[Any], Any]]:
        return PICTURE, inside(layer)

    def split_and_turned(x: Any) -> Any:
        parts = tf.split(x, 2, -1)
        return layers.Concatenate()([layers.Conv2DTranspose(2, 3, 2, "same")(p) for p in parts])

    def heat(x: Any) -> Any:
        flat = tf.reshape(conv(x), [-1, 64, 4])
        places = tf.argmax(flat, axis=1, output_type=tf.int32)
        rows = places // 8
        at = tf.stack([tf.zeros_like(rows), rows, places - rows * 8], -1)
        found = tf.gather_nd(conv(x), at)
        real = tf.cast(tf.stack([rows, places - rows * 8], -1), tf.float32)
        return tf.concat([real * (1 / 8), found], -1)

    activations = (
        "relu elu selu gelu swish mish softplus softsign hard_sigmoid sigmoid tanh exponential"
    ).split()
    found = {
        "Conv2D": of_picture(lambda x: x),
        "Conv2D, groups": of_picture(layers.Conv2D(4, 3, groups=2)),
        "Conv2D, dilated": of_picture(layers.Conv2D(4, 3, dilation_rate=2)),
        "DepthwiseConv2D": of_picture(layers.DepthwiseConv2D(3)),
        "DepthwiseConv2D, multiplier": of_picture(layers.DepthwiseConv2D(3, depth_multiplier=3)),
        "Conv2DTranspose": of_picture(layers.Conv2DTranspose(4, 4, 2, "same")),
        "Conv2DTranspose of two groups": of_picture(split_and_turned),
        "Conv1D": (ROWS, lambda x: head(layers.Conv1D(4, 3)(x))),
        "Conv1DTranspose": (ROWS, lambda x: head(layers.Conv1DTranspose(4, 3, 2)(x))),
        "Conv3D": (VOLUME, lambda x: head(layers.Conv3D(3, 3)(x))),
        "Dense": (ROWS, lambda x: head(layers.Dense(5)(x))),
        "LSTM, GRU": (ROWS, lambda x: head(layers.GRU(4, name="memory")(x))),
        "LSTM, unrolled": (ROWS, lambda x: head(layers.LSTM(4, unroll=True)(x))),
        "GRU, unrolled": (ROWS, lambda x: head(layers.GRU(4, unroll=True)(x))),
        "MultiHeadAttention": (ROWS, lambda x: head(layers.MultiHeadAttention(2, 4)(x, x))),
        "BatchNormalization, folded": of_picture(layers.BatchNormalization()),
        "BatchNormalization of another axis": of_picture(layers.BatchNormalization(axis=1)),
        "LayerNormalization": of_picture(layers.LayerNormalization()),
        "GroupNormalization": of_picture(layers.GroupNormalization(2)),
        "UnitNormalization": of_picture(layers.UnitNormalization()),
        "MaxPooling2D": of_picture(layers.MaxPooling2D()),
        "AveragePooling2D": of_picture(layers.AveragePooling2D()),
        "GlobalAveragePooling2D": (PICTURE, lambda x: layers.GlobalAveragePooling2D()(conv(x))),
        "GlobalMaxPooling2D": (PICTURE, lambda x: layers.GlobalMaxPooling2D()(conv(x))),
        "UpSampling2D, nearest": of_picture(layers.UpSampling2D()),
        "UpSampling2D, bilinear": of_picture(layers.UpSampling2D(interpolation="bilinear")),
        "Resizing": of_picture(layers.Resizing(11, 13)),
        "ZeroPadding2D": of_picture(layers.ZeroPadding2D()),
        "Cropping2D": of_picture(layers.Cropping2D()),
        "Add": of_picture(lambda x: layers.Add()([x, conv(x)])),
        "Subtract": of_picture(lambda x: layers.Subtract()([x, conv(x)])),
        "Multiply": of_picture(lambda x: layers.Multiply()([x, conv(x)])),
        "Concatenate": of_picture(lambda x: layers.Concatenate()([x, conv(x)])),
        "Maximum": of_picture(lambda x: layers.Maximum()([x, conv(x)])),
        "Softmax": (PICTURE, lambda x: layers.Softmax()(head(x))),
        "PReLU": of_picture(layers.PReLU(shared_axes=[1, 2], alpha_initializer="random_uniform")),
        "LeakyReLU": of_picture(layers.LeakyReLU(0.2)),
        "leaky ReLU as a maximum": of_picture(lambda x: tf.maximum(x, 0.2 * x)),
        "ReLU6": of_picture(layers.ReLU(6.0)),
        "hard swish": of_picture(lambda x: x * tf.nn.relu6(x + 3.0) * (1 / 6)),
        **{kind: of_picture(layers.Activation(kind)) for kind in activations},
        "clip to [-1, 1]": of_picture(lambda x: tf.clip_by_value(x, -1.0, 1.0)),
        "clip to [0, 255] at the output": (
            PICTURE,
            lambda x: tf.clip_by_value(conv(x), 0.0, 255.0),
        ),
        "where, with logical operators": of_picture(
            lambda x: tf.where(tf.logical_and(x > 0, tf.logical_not(x > 1)), x, 0.1 * x)
        ),
        "sin, cos": of_picture(lambda x: tf.sin(x) + tf.cos(x)),
        "division by what is computed": of_picture(lambda x: x / (1.0 + tf.nn.relu(conv(x)))),
        "argmax, gather_nd of what lies there": (PICTURE, heat),
    }
    return found


NAMES = tuple(_nets())


def built(name: str, folder: Path) -> tuple[Path, Path]:
    """A net around a layer as a Keras file, and samples for it."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(1)
    shape, net = _nets()[name]
    given = keras.Input(shape, name="given")
    model = keras.Model(given, net(given))
    random = np.random.default_rng(1)
    for layer in model.layers:
        weights = layer.get_weights()
        changed = [w + np.abs(random.normal(0, 0.1, w.shape)).astype(w.dtype) for w in weights]
        layer.set_weights(changed)
    path, samples = folder / "net.keras", folder / "samples.npz"
    model.save(path)
    values = random.normal(0, 1, (_SAMPLES, *shape)).clip(-3, 3).astype(np.float32)
    np.savez(samples, given=values)
    return path, samples


def outcome(path: Path, samples: Path, target: str, precision: str, folder: Path) -> str:
    """What a net becomes: ``integer`` or ``converts``, ``float: …``, ``refused: …``."""
    options = Options(
        calibration=None if (target, precision[:5]) == ("tflite", "float") else str(samples),
        correction="none" if precision == "int8" else "auto",
        preprocessing="symmetric",
    )
    try:
        with quiet():
            written = export(
                path,
                options,
                target=target,
                precision=precision,
                out=folder / f"{target}-{precision}",
                force=True,
            )
    except EdgekitError as exc:
        return f"refused: {exc}"
    if precision != "int8":
        return "converts"
    execution = written.manifest.execution
    assert execution is not None
    kinds = sorted({each.split(" ")[0] for each in execution.floats})
    return f"float: {', '.join(kinds)}" if kinds else "integer"


def row(name: str) -> list[str]:
    """The cells of a layer."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path, samples = built(name, folder)
        return [outcome(path, samples, *each, folder) for each in FORMATS]


def section(found: dict[str, list[str]]) -> str:
    """The table as Markdown."""
    lines = [
        SECTION,
        "",
        "By `python benchmarks/support_table.py --out docs/reference/conversion.md`, a small net",
        "around each layer. *integer*: int8 kernels alone; *float*: these operators compute in",
        "float, between tensors that are rounded to int8 (in TFLite between a DEQUANTIZE and a",
        "QUANTIZE), and `--strict` refuses them. Convolutions, dense layers and pools around them",
        "stay integer.",
        "",
        "| layer | " + " | ".join(f"{target} {precision}" for target, precision in FORMATS) + " |",
        "|" + "---|" * (len(FORMATS) + 1),
    ]
    reasons: list[str] = []
    for name, cells in found.items():
        shown = []
        for cell in cells:
            if cell.startswith("refused: "):
                why = cell.removeprefix("refused: ")
                if why not in reasons:
                    reasons.append(why)
                cell = f"refused [{'abcdefgh'[reasons.index(why)]}]"
            shown.append(cell)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines += [""] * bool(reasons)
    lines += [f"- [{'abcdefgh'[i]}] {why}" for i, why in enumerate(reasons)]
    return "\n".join(lines) + "\n"


def with_section(page: str, text: str) -> str:
    """A page with the section in place of the one that it had, at its end."""
    return page.split(f"\n{SECTION}\n")[0].rstrip() + "\n\n" + text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--out", type=Path, help="Markdown page")
    options = parser.parse_args()
    found = {}
    for name in options.only:
        found[name] = row(name)
        print(f"{name}: {'; '.join(found[name])}", flush=True)
    if options.out:
        page = options.out.read_text(encoding="utf-8") if options.out.is_file() else ""
        outputs.write_text(options.out, with_section(page, section(found)), force=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
