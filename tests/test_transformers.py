"""A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) trained for a minute on real
images: what its int8 files predict, from Keras and from ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exported import answers, export, export_all

from edgekit.data import fashion_mnist
from edgekit.evaluation import parity
from edgekit.records.artifact import Artifact
from edgekit.sources.keras import tf_keras

pytestmark = pytest.mark.slow
BLOCKS, WIDTH, TRAINED, JUDGED = 4, 48, 9000, 1000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.keras, and set.npz with calibration images."""
    keras, folder = tf_keras(), tmp_path_factory.mktemp("transformer")
    layers, images = keras.layers, fashion_mnist.load("test")
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1), name="image")
    x = layers.Reshape((16, WIDTH))(layers.Conv2D(WIDTH, 7, 7)(image))
    for _ in range(BLOCKS):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, WIDTH // 4)(y, y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(2 * WIDTH, activation="gelu")(y)
        x = layers.Add()([x, layers.Dense(WIDTH)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    model = keras.Model(image, layers.Dense(10, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    pixels, labels = images.images[:TRAINED] / np.float32(255), images.labels[:TRAINED]
    model.fit(pixels, labels, batch_size=64, epochs=8, verbose=0)
    model.save(folder / "net.keras")
    np.savez(folder / "set.npz", x=fashion_mnist.load("calibration").images[:200])
    export(
        folder / "net.keras", target="onnx", precision="float32", preprocessing="unit",
        out=folder / "float",
    )  # fmt: skip
    (folder / "net.onnx").write_bytes((folder / "float" / "model.onnx").read_bytes())
    return folder


def _classes(written: Artifact) -> np.ndarray:
    pixels = fashion_mnist.load("test").images[TRAINED : TRAINED + JUDGED]
    (name,) = (spec.name for spec in written.manifest.signature.inputs)
    (values,) = answers(written, {name: written.manifest.preprocessing.apply(pixels)}).values()
    return np.asarray(values.argmax(axis=1))


@pytest.mark.parametrize("kind", ["keras", "onnx"])
def test_int8_predicts_as_the_float_model_does(kind: str, place: Path, tmp_path: Path) -> None:
    labels = fashion_mnist.load("test").labels[TRAINED : TRAINED + JUDGED]
    written = export_all(
        place / f"net.{kind}",
        targets=["tflite", "onnx"],
        precisions=["float32", "int8"],
        preprocessing="unit",
        calibration=str(place / "set.npz"),
        out=tmp_path,
    )
    by_name = {(each.manifest.format, each.manifest.precision): each for each in written}
    exact = _classes(by_name["tflite", "float32"])
    assert np.mean(exact == labels) > 0.75  # trained: the accuracy means something
    for target in ("tflite", "onnx"):
        found = _classes(by_name[target, "int8"])
        assert np.mean(found == exact) > 0.95
        assert np.mean(found == labels) > np.mean(exact == labels) - 0.02
    same = parity.numbers(by_name["tflite", "int8"], by_name["onnx", "int8"])
    assert not same.differences
