"""Comparisons of float models of other makers: any format, logits, numbers, any inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.compare import compare
from edgekit.export import export
from edgekit.formats import keras as keras_format

COUNT = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that ends in logits, as a SavedModel, .tflite and .onnx, and set.npz."""
    folder = tmp_path_factory.mktemp("logits")
    tf, keras = keras_format.tensorflow(), keras_format.tf_keras()
    keras.utils.set_random_seed(4)
    image = keras.Input((6, 6, 3), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu")(image)
    model = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    model.export(str(folder / "saved"))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "plain.tflite").write_bytes(converter.convert())
    written = export(
        folder / "saved", target="onnx", precision="float32", preprocessing="unit",
        out=folder / "made",
    )  # fmt: skip
    (folder / "plain.onnx").write_bytes(written.model_path.read_bytes())
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
    np.savez(folder / "set.npz", x=pixels, y=random.integers(0, 4, COUNT))
    return folder


@pytest.mark.parametrize(
    ("name", "target", "runtime"),
    [("saved", "tflite", "tensorflow"), ("plain.tflite", "tflite", "litert"),
     ("plain.onnx", "onnx", "ort")],
)  # fmt: skip
def test_the_reference_runs_in_the_format_it_was_saved_in(
    place: Path, name: str, target: str, runtime: str, tmp_path: Path
) -> None:
    written = export(
        place / name, target=target, precision="int8", preprocessing="unit",
        calibration=str(place / "set.npz"), out=tmp_path / "int8",
    )  # fmt: skip
    found = compare([written.path], dataset=str(place / "set.npz"), rounds=1, processes=1)
    assert found.reference.runtime.name == runtime
    assert np.isinf(found.reference.metrics["sqnr"].value)
    (result,) = found.artifacts
    assert result.metrics["sqnr"].value > 20
    assert {"top1", "agreement", "mcnemar_p", "latency_p50"} <= set(result.metrics)
    assert "kl" not in result.metrics  # logits
    assert any("softmax: the answers are no probabilities" in said for said in found.warnings)
