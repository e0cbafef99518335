"""Float models of other makers: Keras 2 and 3, SavedModel, TFLite, ONNX; any inputs and outputs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, InvalidDataError, InvalidModelError
from edgekit.export import export
from edgekit.export import main as export_main
from edgekit.formats import float_model, onnx, tflite
from edgekit.formats import keras as keras_format
from edgekit.formats.flatbuffer import Graph

WAYS = [(t, p) for t in ("tflite", "onnx") for p in ("float32", "float16", "int8")]
FILES = ("two.keras", "two.h5", "three.keras", "three.h5", "saved", "plain.tflite")


def _net(keras: Any) -> Any:
    layers = keras.layers
    keras.utils.set_random_seed(4)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3, padding="same")(x))
    return keras.Model(image, layers.Dense(5, name="scores")(x))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One net in every format, and set.npz with images for it."""
    folder = tmp_path_factory.mktemp("own")
    tf = keras_format.tensorflow()
    for word, keras in (("two", keras_format.tf_keras()), ("three", keras_format.keras_3())):
        model = _net(keras)
        model.save(folder / f"{word}.keras")
        model.save(folder / f"{word}.h5")
    model.export(str(folder / "saved"), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "plain.tflite").write_bytes(converter.convert())
    np.savez(folder / "set.npz", x=_pixels(24))
    return folder


def _pixels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)


def _answers(written: Artifact, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Real answers by output, for real inputs ``[N, ...]`` by name."""
    found = written.manifest.signature
    feed = {spec.name: spec.quantize(values[spec.name]) for spec in found.inputs}
    if written.manifest.format == "onnx":
        names = [spec.name for spec in found.outputs]
        got = dict(zip(names, onnx.session(written.model_path).run(names, feed), strict=True))
    else:
        runner = tflite.interpreter(written.model_path).get_signature_runner(tflite.SIGNATURE_KEY)
        count = len(next(iter(feed.values())))
        each = [runner(**{n: v[i : i + 1] for n, v in feed.items()}) for i in range(count)]
        got = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    return {spec.name: spec.dequantize(got[spec.name]) for spec in found.outputs}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read(place: Path, name: str, tmp_path: Path) -> None:
    keras = keras_format.tf_keras() if name.startswith("two") else keras_format.keras_3()
    values = _pixels(6) / np.float32(255)
    model = keras_format.load(place / f"{'two' if name.startswith('two') else 'three'}.keras")
    expected = np.asarray(model(values))
    assert isinstance(model, keras.Model)
    for target in ("tflite", "onnx"):
        written = export(
            place / name,
            target=target,
            precision="float32",
            preprocessing="unit",
            out=tmp_path / target,
        )
        (entry,) = written.manifest.signature.inputs
        (found,) = _answers(written, {entry.name: values}).values()
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        source = written.manifest.source
        assert source is not None
        assert source.sha256 == float_model.sha256_of(place / name)


@pytest.mark.parametrize("name", ["three.keras", "saved", "plain.tflite"])
def test_other_formats_become_int8_and_float16(place: Path, name: str, tmp_path: Path) -> None:
    values = _pixels(24) / np.float32(255)
    expected = np.asarray(keras_format.load(place / "three.keras")(values))
    for target, precision in (("tflite", "float16"), ("tflite", "int8"), ("onnx", "int8")):
        written = export(
            place / name,
            target=target,
            precision=precision,
            calibration=str(place / "set.npz") if precision == "int8" else None,
            preprocessing="unit",
            out=tmp_path / f"{target}-{precision}",
        )
        (entry,) = written.manifest.signature.inputs
        (found,) = _answers(written, {entry.name: values}).values()
        noise = 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())
        assert noise > (20 if precision == "int8" else 50)
        floats = Graph(written.model_path.read_bytes()) if target == "tflite" else None
        if floats is not None and precision == "float16":
            kinds = {floats.dtype(n) for n in floats.tensors if floats.is_constant(n)}
            assert np.dtype(np.float16) in kinds and np.dtype(np.float32) not in kinds


def _with_code(keras: Any, what: str) -> Any:
    layers = keras.layers
    image = keras.Input((4,), name="image")
    if what == "lambda":
        return keras.Model(image, layers.Lambda(lambda x: x * 2, name="twice")(image))
    if what == "activation":
        own = layers.Dense(2, activation=lambda x: x * 2, name="twice")
        return keras.Model(image, own(image))

    class Twice(layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, inputs: Any) -> Any:
            return inputs * 2

    return keras.Model(image, Twice(name="twice")(image))


@pytest.mark.parametrize("kind", [2, 3])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("what", ["lambda", "layer"])
def test_code_in_a_file_is_refused_by_layer(
    what: str, suffix: str, kind: int, tmp_path: Path
) -> None:
    keras = keras_format.keras_3() if kind == 3 else keras_format.tf_keras()
    path = tmp_path / f"code{suffix}"
    _with_code(keras, what).save(path)
    with pytest.raises(InvalidModelError, match="twice.*(pass --trust|Twice)"):
        export(path, target="tflite", precision="float32", preprocessing="none", out=tmp_path / "o")
    assert not (tmp_path / "o").exists()
    if what == "lambda":
        written = export(
            path,
            target="tflite",
            precision="float32",
            preprocessing="none",
            trust=True,
            out=tmp_path / "o",
        )
        (found,) = _answers(written, {"image": np.ones((2, 4), np.float32)}).values()
        assert (found == 2).all()


def test_code_never_runs_where_it_is_refused(tmp_path: Path) -> None:
    """A configuration that names a function of another module: loading would import and call it."""
    keras = keras_format.keras_3()
    image = keras.Input((4,), name="image")
    keras.Model(image, keras.layers.Dense(2, name="inner")(image)).save(tmp_path / "good.keras")
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with zipfile.ZipFile(tmp_path / "good.keras") as good:
        config = json.loads(good.read("config.json"))
        config["config"]["layers"][1]["module"] = "evil"
        with zipfile.ZipFile(tmp_path / "bad.keras", "w") as bad:
            for name in good.namelist():
                content = json.dumps(config) if name == "config.json" else good.read(name)
                bad.writestr(name, content)
    with pytest.raises(InvalidModelError, match="inner holds the custom object evil.Dense"):
        keras_format.load(tmp_path / "bad.keras")
    assert not mark.exists()


def test_a_saved_model_that_reaches_beyond_is_refused(tmp_path: Path) -> None:
    tf = keras_format.tensorflow()
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="image")])
    def serve(image: Any) -> Any:
        read = tf.strings.length(tf.io.read_file("/etc/hostname"))
        return {"out": image + tf.cast(read, tf.float32)}

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path / "saved"), {"serving_default": serve})
    with pytest.raises(InvalidModelError, match="operator ReadFile, which reaches beyond"):
        float_model.load(tmp_path / "saved", preprocessing="none")


BAD: dict[str, tuple[str, str]] = {
    "no such kind": ("mine.pb", "expected a Keras artifact, a SavedModel folder or a file .keras"),
    "missing tflite": ("none.tflite", "none.tflite not found"),
    "missing onnx": ("none.onnx", "none.onnx not found"),
    "no tflite": ("text.tflite", "text.tflite is not a TFLite model"),
    "truncated tflite": ("short.tflite", "short.tflite cannot be read (cut short?)"),
    "int8 tflite": ("int8.tflite", "is quantized already"),
    "free size tflite": ("free.tflite", "expected a fixed size of input"),
    "truncated onnx": ("text.onnx", "text.onnx cannot be read as ONNX"),
    "weights only": ("weights.h5", "weights.h5 holds weights only"),
    "truncated hdf5": ("short.h5", "cannot be read as HDF5"),
    "archive without a model": ("empty.keras", "cannot be read as a Keras model"),
    "free size": ("free.keras", "expected a fixed size of input image"),
    "broken SavedModel": ("broken", "saved_model.pb cannot be read"),
    "SavedModel without variables": ("bare", "cannot be read as a SavedModel"),
    "folder of nothing": ("nothing", "no manifest.json"),
}


@pytest.fixture(scope="module")
def bad_place(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    keras = keras_format.keras_3()
    tf = keras_format.tensorflow()
    for name in ("mine.pb", "text.tflite", "text.onnx"):
        (folder / name).write_text("not a model")
    for name, whole in (("short.tflite", "plain.tflite"), ("short.h5", "two.h5")):
        content = (place / whole).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    keras_format.load(place / "two.keras").save_weights(folder / "weights.h5")
    zipfile.ZipFile(folder / "empty.keras", "w").close()
    image = keras.Input((None, None, 3), name="image")
    free = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
    free.save(folder / "free.keras")
    free.export(str(folder / "free"), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "free"))
    (folder / "free.tflite").write_bytes(converter.convert())
    converter = tf.lite.TFLiteConverter.from_saved_model(str(place / "saved"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([p[None]] for p in _pixels(4) / np.float32(255))
    (folder / "int8.tflite").write_bytes(converter.convert())
    for name in ("broken", "bare", "nothing"):
        (folder / name).mkdir()
    (folder / "broken" / "saved_model.pb").write_bytes(b"\x01\x02\x03")
    content = (place / "saved" / "saved_model.pb").read_bytes()
    (folder / "bare" / "saved_model.pb").write_bytes(content)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_writes_nothing(
    name: str, bad_place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file, message = BAD[name]
    monkeypatch.chdir(bad_place)
    before = sorted(bad_place.iterdir())
    given = [] if name == "folder of nothing" else ["--preprocessing", "unit"]
    ways = ["--target", "tflite", "--precision", "float32", "--out", "out"]
    assert export_main([file, *given, *ways]) == 2
    streams = capfd.readouterr()
    assert (streams.out, streams.err.count("\n")) == ("", 1), streams.err
    assert message in streams.err
    assert sorted(bad_place.iterdir()) == before
