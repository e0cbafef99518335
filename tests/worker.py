"""One process of a training run of a tiny net: ``python tests/worker.py FOLDER JSON-OPTIONS``.

Prints a JSON line with the losses of the epochs and the sha256 of weights and averages.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from edgekit.base import cli
from edgekit.records.signature import preprocessing
from edgekit.sources import arrange
from edgekit.sources.keras import tf_keras
from edgekit.training.loop import fit
from edgekit.training.recipes import Recipe
from edgekit.training.replicas import replicas
from edgekit.training.trainer import Trainer, configure_threads


def net() -> object:
    """Two convolutions, one of them depthwise, with batch normalisation, on 8x8 pixels."""
    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.BatchNormalization(momentum=0.9)(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Concatenate()([x, layers.Conv2D(4, 1)(x)])
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Softmax(name="probabilities")(x))


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Three classes of stripes: along, across, none."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 192)
    x = rng.integers(0, 90, (192, 8, 8, 1))
    x[y == 0, ::2] += 100
    x[y == 1, :, ::2] += 100
    return x.astype(np.uint8), y


def train(folder: Path, options: dict[str, object]) -> dict[str, object]:
    """Train as the options say; the answer is what is printed."""
    towers = int(options.get("towers", 1))
    data_format = str(options.get("data_format", "NHWC"))
    precision = str(options.get("precision", "float32"))
    group = replicas(str(options.get("strategy", "none")), options.get("replicas"))
    with group.scope():
        model = arrange.arrange(net(), data_format=data_format, precision=precision)
    images, labels = pixels()
    trainer = Trainer(
        model,
        Recipe(epochs=int(options.get("epochs", 4)), batch=32, erase=0, learning_rate=0.05),
        images=images,
        labels=labels,
        prepare=preprocessing("unit"),
        towers=towers,
        replicas=group,
        data_format=data_format,
        scaled=precision == "mixed_float16",
    )
    resume = bool(options.get("resume"))
    log = fit(trainer, folder, None, resume, {}, progress=cli.reporter)
    found = {
        "losses": [entry["loss"] for entry in log],
        "averages": sha256(trainer.averaged_weights()),
        "weights": sha256([v.numpy() for v in trainer.variables]),
        "dtypes": sorted({v.dtype.name for v in trainer.variables}),
        "chief": group.chief,
    }
    group.wait()
    return found


def sha256(arrays: list[np.ndarray]) -> str:
    """Of the bytes of all arrays."""
    return hashlib.sha256(b"".join(each.tobytes() for each in arrays)).hexdigest()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    configure_threads(given.get("towers", 1))
    print(json.dumps(train(Path(sys.argv[1]), given)))
