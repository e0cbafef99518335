"""Comparisons of float models of other makers: any format, logits, numbers, any inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.compare import compare
from edgekit.export import export
from edgekit.formats import keras as keras_format
from edgekit.results import Report
from edgekit.subjects import reference_of

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


def _several(keras: Any) -> Any:
    """Picture and words in, a map and a number out; none of it a class."""
    layers = keras.layers
    keras.utils.set_random_seed(4)
    picture = keras.Input((6, 6, 3), name="picture")
    words = keras.Input((4,), name="words", dtype="int32")
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(picture)
    image = layers.Conv2D(2, 3, name="map", padding="same")(x)
    meant = layers.GlobalAveragePooling1D()(layers.Embedding(9, 3)(words))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), meant])
    price = layers.Dense(1, name="price")(layers.Lambda(lambda v: v * 2, name="twice")(x))
    return keras.Model({"words": words, "picture": picture}, [price, image])


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The net, set.npz with an array an input, int8 artifacts of it, and their report."""
    folder = tmp_path_factory.mktemp("several")
    _several(keras_format.tf_keras()).save(folder / "net.keras")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
    np.savez(folder / "set.npz", picture=pixels, words=random.integers(0, 9, (COUNT, 4), np.int32))
    for target in ("tflite", "onnx"):
        export(
            folder / "net.keras", target=target, precision="int8", preprocessing="unit",
            calibration=str(folder / "set.npz"), trust=True, out=folder / target,
        )  # fmt: skip
    data = str(folder / "set.npz")
    unasked = reference_of([Artifact.load(folder / "onnx")], None, 1)
    assert unasked.job is not None and not unasked.job.trust
    made = compare(
        [folder / "tflite", folder / "onnx"],
        dataset=data, rounds=1, shard=10, processes=1, trust=True,
    )  # fmt: skip
    return folder, made


def test_numbers_of_several_outputs_are_held_against_the_reference(
    several: tuple[Path, Report],
) -> None:
    folder, report = several
    model = keras_format.load(folder / "net.keras", trust=True)
    with np.load(folder / "set.npz") as data:
        values = [data["picture"] / np.float32(255), data["words"]]
    price, image = (np.asarray(v) for v in keras_format.call(model, values))
    assert report.data.count == COUNT
    assert not {"top1", "agreement", "mcnemar_p", "images_needed", "kl"} & set(
        report.artifacts[0].metrics
    )
    assert not report.reference.correct
    for result in report.artifacts:
        metrics = {name: metric.value for name, metric in result.metrics.items()}
        assert metrics["sqnr"] > 25 and metrics["sqnr:map"] > 25 and metrics["sqnr:price"] > 20
        assert np.isinf(report.reference.metrics["sqnr:map"].value)
        power = (price**2).sum() + (image**2).sum()
        noise = metrics["mse"] * COUNT * (1 + image[0].size)
        assert metrics["sqnr"] == pytest.approx(10 * np.log10(power / noise), abs=0.01)
        assert metrics["max_error"] ** 2 >= metrics["mse"]
        assert "latency_p50" in metrics
