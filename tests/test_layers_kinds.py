"""Layers of every kind: a sound file blames none of them, and a planted fault is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from conftest import made_once
from exported import export

from edgekit.base import cli
from edgekit.base.text import shortened
from edgekit.diagnosis import measure
from edgekit.diagnosis.diff import LayerDiff, diff
from edgekit.diagnosis.measure import BLAME, ISOLATED
from edgekit.diagnosis.tensors import OnnxTensors, Tensors, TfLiteTensors
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph, path_of, short_name
from edgekit.records import encodings
from edgekit.records.encodings import Encodings
from edgekit.reporting import layer_table
from edgekit.sources import float_model
from edgekit.writers import onnx_tensors

KINDS = ("tflite", "onnx")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.keras of Keras 3, its int8 artifacts, and the images of both."""
    return made_once(tmp_path_factory, "kinds", _make)


def _make(folder: Path) -> None:
    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")

    def normal(x: Any) -> Any:
        return layers.ReLU(6.0)(layers.BatchNormalization(beta_initializer="normal")(x))

    # as many channels as rows and columns: sizes do not tell one axis from another
    x = normal(layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv2d")(image))
    x = normal(layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="conv2d_1")(x))
    turned = layers.Permute((2, 1, 3))(layers.Conv2D(8, 1, name="conv2d_2")(x))
    turned = layers.Permute((3, 1, 2))(layers.Activation("tanh")(turned))
    pooled = layers.AveragePooling2D(3, strides=1, padding="same")(layers.ZeroPadding2D(1)(x))
    pooled = layers.MaxPooling2D(2)(layers.Cropping2D(1)(pooled))
    larger = layers.UpSampling2D(2, interpolation="bilinear")(pooled)
    x = layers.Concatenate()(
        [layers.Conv2D(8, 1, activation="silu", name="silu")(x), turned, larger]
    )
    x = layers.Conv2D(8, 3, padding="same", bias_initializer="normal", name="conv2d_3")(x)
    x = layers.LayerNormalization()(x)
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid", name="gate")(scale)])
    x = layers.Multiply()(
        [x, layers.Softmax()(layers.Conv2D(8, 1, activation="elu", name="elu")(x))]
    )
    flat = layers.Reshape((64, 8))(x)
    flat = layers.GlobalMaxPooling1D()(layers.Conv1D(8, 3, activation="gelu")(flat))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D(name="pooled")(x), flat])
    x = layers.Dense(8, activation="leaky_relu", name="dense")(x)
    large = keras.initializers.RandomNormal(stddev=20.0, seed=1)
    x = layers.Dense(5, None, True, large, "normal", name="classes")(x)
    x = layers.Softmax()(x)
    keras.Model(image, x).save(folder / "net.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "set.npz", x=pixels)
    for target in KINDS:
        _export(folder, target, "set.npz")


def _export(folder: Path, target: str, dataset: str) -> None:
    export(
        folder / "net.keras",
        target=target,
        precision="int8",
        preprocessing="unit",
        calibration=str(folder / dataset),
        correction="none",
        out=folder / f"net-{target}",
    )


def _diff(folder: Path, target: str, dataset: str, **options: Any) -> LayerDiff:
    suspect = folder / f"net-{target}"
    return diff(folder / "net.keras", suspect, dataset=str(folder / dataset), **options)


@pytest.mark.parametrize("target", KINDS)
def test_no_kind_of_layer_of_a_sound_file_is_to_blame(place: Path, target: str) -> None:
    found = _diff(place, target, "set.npz", images=24)
    assert found.verdict is None
    assert found.unjudged == () and len(found.rows) == found.tensors
    kinds = {row.kind for row in found.rows}
    assert {"MEAN", "SOFTMAX", "TANH", "TRANSPOSE", "RESIZE_BILINEAR", "CONCATENATION"} <= kinds
    assert max(row.fault for row in found.rows if row.fault is not None) < BLAME - 3
    # as one network, no tensor is held against another one, or the wrong way round
    assert min(row.accumulated.sqnr for row in found.rows if row.accumulated) > 20


@pytest.mark.parametrize("target", KINDS)
def test_a_fault_in_such_a_net_is_named_as_the_model_names_the_layer(
    place: Path, target: str
) -> None:
    canonical = float_model.graph_of(place / "net.keras")[0]
    graph = Graph(canonical)
    path = place / f"net-{target}"
    factors = Encodings.load(path / encodings.FILE).factors
    sound = measure.Sound(canonical, factors=factors)
    with np.load(place / "set.npz") as stored:
        images = {graph.inputs[0]: stored["x"][:8].astype(np.float32) / 255}
    reference = TfLiteTensors(canonical, graph, threads=1)
    layers = {short_name(layer.output).split("/")[0]: layer.output for layer in graph.layers}
    for name in ("conv2d", "conv2d_1", "conv2d_3", "classes"):
        for fault in ("weight scale doubled", "channels swapped"):
            if target == "tflite":
                content = faults.in_tflite(
                    (path / "model.tflite").read_bytes(), layers[name], fault
                )
                suspect: Tensors = TfLiteTensors(content, graph, threads=1)
            else:
                model = onnx.load(path / "model.onnx")
                changed = faults.in_onnx(model, graph, layers[name], fault)
                suspect = OnnxTensors(changed, graph, threads=1)
            verdict = measure.blame(measure.measure(reference, suspect, sound, images, images))
            assert verdict is not None and verdict.layer == name, (name, fault, verdict)


def test_layers_have_the_names_of_the_model(place: Path) -> None:
    """Keras 3 traces ``conv2d`` to ``conv2d_1``, which is another layer's name."""
    graph = Graph(float_model.graph_of(place / "net.keras")[0])
    names = {path_of(layer.output)[1]: layer.kind for layer in graph.layers}
    assert names["conv2d"] == names["conv2d_3"] == "conv"
    assert names["conv2d_1"] == "depthwise"
    assert {"dense", "classes"} <= set(names)


def test_names_that_do_not_fit_lose_their_middle(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _diff(place, "tflite", "set.npz", images=2)
    (long,) = (row.layer for row in found.rows if row.kind == "RSQRT")
    assert long == "layer_normalization/Rsqrt"
    monkeypatch.setattr(cli.console, "width", 80)
    layer_table.show(found, None)
    shown = capsys.readouterr().err
    cells = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert len(set(cells)) == len(cells) == len(found.rows)
    assert shortened(long, 18) in cells and shortened(long, 18).endswith("on/Rsqrt")


def test_a_layer_whose_input_the_suspect_lacks_is_not_judged(place: Path) -> None:
    """What came before would be counted as its error."""
    canonical = float_model.graph_of(place / "net.keras")[0]
    graph = Graph(canonical)
    model = onnx.load(place / "net-onnx" / "model.onnx")
    (reader,) = (each for each in graph.operators if "/pooled/" in each.outputs[0])
    lost = reader.inputs[0]
    named = onnx_tensors.places(model, graph)[lost].named
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == named:
                    names[i] = f"lost_{name}"
    images = {graph.inputs[0]: np.random.default_rng(1).random((8, 16, 16, 3), np.float32)}
    suspect = OnnxTensors(model, graph, threads=1)
    assert lost not in suspect.names
    factors = Encodings.load(place / "net-onnx" / encodings.FILE).factors
    rows = measure.measure(
        TfLiteTensors(canonical, graph, threads=1),
        suspect,
        measure.Sound(canonical, factors=factors),
        images,
        images,
    )
    (pooled,) = (row for row in rows if row.name == reader.outputs[0])
    assert pooled.isolated is None and pooled.fault is None
    assert pooled.accumulated is not None
    assert measure.blame(rows) is None


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.keras, calibrated on dim.npz, all pixels bright in bright.npz, one picture in one.npz."""

    def make(folder: Path) -> None:
        import keras

        keras.utils.set_random_seed(1)
        image = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(32, 3, activation="relu", name="first")(image)
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
        keras.Model(image, x).save(folder / "net.keras")
        pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / "dim.npz", x=pixels)
        np.savez(folder / "bright.npz", x=pixels // 4 + 192)
        pixels[32, ..., 0] = pixels[32, ..., 0] // 2 + 128
        np.savez(folder / "one.npz", x=pixels)
        for target in KINDS:
            _export(folder, target, "dim.npz")

    return made_once(tmp_path_factory, "clipped", make)


@pytest.mark.parametrize("target", KINDS)
def test_a_value_that_calibration_did_not_see_is_no_layers_fault(
    clipped: Path, target: str
) -> None:
    """One picture of 64 has a channel whose mean is beyond the range."""
    found = _diff(clipped, target, "one.npz", images=64)
    assert found.verdict is None
    assert max(row.clipped for row in found.rows if row.clipped is not None) > 0


@pytest.mark.parametrize("target", KINDS)
def test_a_range_for_other_pictures_is_named(clipped: Path, target: str) -> None:
    found = _diff(clipped, target, "bright.npz", images=64, modes=[ISOLATED])
    assert found.verdict is not None
    assert "its range cuts off" in found.verdict.reason and "calibrate" in found.verdict.reason
    worst = max(found.rows, key=lambda row: row.fault or 0.0)
    assert worst.name == found.verdict.tensor and worst.cut == worst.fault


def test_a_layer_that_makes_up_for_another_is_not_to_blame() -> None:
    """The first layer's biases are a step too large, which the second one's take back."""
    from edgekit.sources.keras import tf_keras

    keras = tf_keras()
    keras.backend.reset_uids()
    keras.utils.set_random_seed(3)
    image = keras.Input((6, 6, 4), name="image")
    x = keras.layers.Conv2D(64, 1, kernel_initializer="he_normal", name="first")(image)
    ones = keras.initializers.Constant(1.0)
    x = keras.layers.Conv2D(4, 1, kernel_initializer=ones, name="second")(x)
    model = keras.Model(image, x)
    random = np.random.default_rng(0)
    images = random.normal(size=(16, 6, 6, 4)).astype(np.float32)
    content, graph = _quantized(model, images)
    changed = Graph(content)
    first, second = changed.layers
    step = float(changed.quantization(first.output).scale[0])  # type: ignore[union-attr]
    for layer, shift in ((first, step), (second, -64 * step)):
        assert layer.bias is not None
        scale = changed.quantization(layer.bias).scale  # type: ignore[union-attr]
        shifted = changed.constant(layer.bias) + np.rint(shift / scale).astype(np.int32)
        changed.set_constant(layer.bias, shifted)
    reference = TfLiteTensors(graph.serialize(), graph, threads=1)
    suspect = TfLiteTensors(changed.serialize(), graph, threads=1)
    feed = {graph.inputs[0]: images}
    sound = measure.Sound(graph.serialize())
    rows = measure.measure(reference, suspect, sound, feed, feed)
    blamed = measure.blame(rows)
    assert blamed is not None and blamed.layer in ("second", "output")
    rows = measure.measure(reference, suspect, sound, feed, feed, fitted=True)
    assert measure.blame(rows) is None
    # what it does not make up for is its fault, fitted or not
    rounded = dataclasses.replace(changed.quantization(second.weights))  # type: ignore[type-var]
    changed.set_quantization(
        second.weights, dataclasses.replace(rounded, scale=rounded.scale * np.float32(8))
    )
    suspect = TfLiteTensors(changed.serialize(), graph, threads=1)
    verdict = measure.blame(measure.measure(reference, suspect, sound, feed, feed, fitted=True))
    assert verdict is not None and verdict.tensor == blamed.tensor


def _quantized(model: Any, images: np.ndarray) -> tuple[bytes, Graph]:
    """int8 TFLite by nearest rounding, and the float graph of it."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save(folder / "net.keras")
        np.savez(folder / "set.npz", x=images)
        made = export(
            folder / "net.keras",
            target="tflite",
            precision="int8",
            preprocessing="none",
            calibration=str(folder / "set.npz"),
            correction="none",
            out=folder / "made",
        )
        graph = Graph(float_model.graph_of(folder / "net.keras")[0])
        return made.model_path.read_bytes(), graph
