"""Float models of other makers: Keras 2 and 3, SavedModel, TFLite, ONNX; any inputs and outputs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import answers, decibels, export
from onnx import TensorProto, helper

from edgekit import data, parity
from edgekit.base.errors import InvalidDataError, InvalidModelError
from edgekit.data import feeds
from edgekit.export import main as export_main
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.sources import float_model, saved_model
from edgekit.sources import keras as keras_format

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
        (found,) = answers(written, {entry.name: values}).values()
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        source = written.manifest.source
        assert source is not None
        assert source.sha256 == saved_model.sha256_of(place / name)


@pytest.mark.parametrize("name", ["saved", "plain.tflite"])
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
        (found,) = answers(written, {entry.name: values}).values()
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
        (found,) = answers(written, {"image": np.ones((2, 4), np.float32)}).values()
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
    with pytest.raises(InvalidModelError, match="operator ReadFile, which is not known"):
        float_model.load(tmp_path / "saved", preprocessing="none")


def _two_inputs(keras: Any) -> Any:
    """Picture and numbers in, classes and a number out; inputs are not in order of name."""
    layers = keras.layers
    keras.utils.set_random_seed(4)
    picture, facts = keras.Input((8, 8, 3), name="picture"), keras.Input((6,), name="facts")
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(picture))
    x = layers.Concatenate()([x, layers.Dense(8, activation="relu")(facts)])
    heads = [layers.Dense(5, name="kind")(x), layers.Dense(1, name="price")(x)]
    return keras.Model({"picture": picture, "facts": facts}, heads)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    model = _two_inputs(keras_format.keras_3())
    model.save(tmp_path / "two.keras")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    facts = random.normal(0, 1, (40, 6)).astype(np.float32)
    np.savez(tmp_path / "set.npz", picture=pixels, facts=facts)
    values = {"picture": pixels / np.float32(255), "facts": facts}
    exact = dict(zip(("kind", "price"), map(np.asarray, model(values)), strict=True))
    made = {}
    for target, precision in WAYS:
        made[target] = written = export(
            tmp_path / "two.keras",
            target=target,
            precision=precision,
            preprocessing="unit",
            calibration=str(tmp_path / "set.npz") if precision == "int8" else None,
            out=tmp_path / f"{target}-{precision}",
        )
        assert {spec.name for spec in written.manifest.signature.inputs} == {"picture", "facts"}
        assert written.manifest.class_names == ()
        found = answers(written, values)
        for name, bound in (("kind", 25), ("price", 20)):
            assert decibels(exact[name], found[name]) > (bound if precision == "int8" else 50)
    assert parity.main([str(made["tflite"].path), str(made["onnx"].path)]) == 0


def test_samples_have_to_fit_the_inputs(tmp_path: Path) -> None:
    _two_inputs(keras_format.tf_keras()).save(tmp_path / "two.keras")
    pixels, facts = np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 6), np.float32)
    bad = {
        r"an array for each input, picture float32 \[N, 8, 8, 3\], facts float32 \[N, 6\]; got": {
            "picture": pixels
        },
        "got images only": {"x": pixels},
        "expected as many samples in each array, got": {"picture": pixels, "facts": facts[:2]},
        "sample 1 of facts holds NaN": {"picture": pixels, "facts": facts + [[0], [np.nan]] * 2},
        "expected facts as .6. as the model": {"picture": pixels, "facts": facts[:, 1:]},
        "expected facts as uint8 or float, got int64": {
            "picture": pixels,
            "facts": facts.astype(np.int64),
        },
    }
    for message, arrays in bad.items():
        np.savez(tmp_path / "set.npz", **arrays)
        with pytest.raises(InvalidDataError, match=message):
            export(
                tmp_path / "two.keras",
                target="tflite",
                precision="int8",
                preprocessing="unit",
                calibration=str(tmp_path / "set.npz"),
                out=tmp_path / "out",
            )
    assert not (tmp_path / "out").exists()


def _sound(keras: Any) -> Any:
    layers = keras.layers
    sound = keras.Input((64, 2), name="sound")
    x = layers.ReLU()(layers.Conv1D(8, 5, strides=2, padding="same")(sound))
    x = layers.GlobalAveragePooling1D()(layers.MaxPooling1D(2)(layers.SeparableConv1D(8, 3)(x)))
    return keras.Model(sound, layers.Dense(4, name="word")(x))


def _words(keras: Any) -> Any:
    layers = keras.layers
    words = keras.Input((4,), name="words", dtype="int32")
    x = layers.GRU(6, unroll=True, reset_after=False)(layers.Embedding(30, 6)(words))
    return keras.Model(words, layers.Dense(2, name="score")(x))


def _every_operator(keras: Any) -> Any:
    """Operators of which tf2onnx or onnxruntime have another form, or none."""
    layers, tf = keras.layers, keras_format.tensorflow()
    image = keras.Input((8, 8, 3), name="image")
    x = layers.LeakyReLU(0.1)(layers.Conv2D(8, 3, padding="same")(image))
    x = layers.PReLU(shared_axes=[1, 2], alpha_initializer="random_normal")(x)
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = x * tf.nn.relu6(layers.Conv2D(8, 1)(squeezed) + 3.0) * (1 / 6)
    x = layers.ELU()(layers.Conv2DTranspose(4, 3, padding="same", activation="relu")(x))
    x = layers.Dense(6, activation="gelu")(layers.Flatten()(-x))
    return keras.Model(image, layers.Dense(3, name="answer")(layers.LayerNormalization()(x)))


@pytest.mark.parametrize("build, least", [(_sound, 25), (_words, 8), (_every_operator, 20)])
def test_other_nets_have_the_same_integers_in_both_formats(
    build: Callable[[Any], Any], least: float, tmp_path: Path
) -> None:
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(2)
    model = build(keras)
    model.save(tmp_path / "net.keras")
    (entry,) = keras_format.signature(model).inputs
    random = np.random.default_rng(0)
    if entry.dtype == "int32":
        values = random.integers(0, 30, (40, *entry.shape[1:])).astype(np.int32)
    else:
        values = random.normal(0, 1, (40, *entry.shape[1:])).astype(np.float32)
    np.savez(tmp_path / "set.npz", **{entry.name: values})
    exact = np.asarray(model(values))
    made = {}
    for target in ("tflite", "onnx"):
        written = export(
            tmp_path / "net.keras",
            target=target,
            precision="int8",
            preprocessing="none",
            calibration=str(tmp_path / "set.npz"),
            correction="none",
            out=tmp_path / target,
        )
        (made[target],) = answers(written, {entry.name: values}).values()
        assert decibels(exact, made[target]) > least
    assert decibels(made["tflite"], made["onnx"]) > least + 3


def _torch_like(path: Path, *, free: bool = False) -> None:
    """A net as PyTorch's exporter names and lays it out: channels first, batch free."""
    import onnx as package
    from onnx import helper, numpy_helper

    random = np.random.default_rng(3)

    def constant(name: str, *shape: int, positive: bool = False) -> Any:
        values = random.normal(0, 0.4, shape).astype(np.float32)
        return numpy_helper.from_array(np.abs(values) + 0.5 if positive else values, name)

    stored = [
        constant("features.0.weight", 8, 3, 3, 3),
        *(constant(f"features.1.{part}", 8) for part in ("weight", "bias", "running_mean")),
        constant("features.1.running_var", 8, positive=True),
        constant("features.3.weight", 8, 1, 3, 3),
        constant("features.3.bias", 8),
        constant("features.4.weight", 12, 8, 1, 1),
        constant("features.4.bias", 12),
        constant("classifier.weight", 5, 12),
        constant("classifier.bias", 5),
    ]
    norm = [f"features.1.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    third, fourth = (
        ["features.3.weight", "features.3.bias"],
        ["features.4.weight", "features.4.bias"],
    )
    names = ["/features/0/Conv", "/features/1/BatchNormalization", "/features/2/Relu"]
    names += ["/features/3/Conv", "/features/4/Conv", "/features/5/Relu", "/pool", "/Flatten"]
    kinds = ["Conv", "BatchNormalization", "Relu", "Conv", "Conv", "Relu", "GlobalAveragePool"]
    extra = [["features.0.weight"], norm, [], third, fourth, [], [], []]
    forms: list[dict[str, Any]] = [{} for _ in names]
    forms[0] = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    forms[3] = {"group": 8, "pads": [1, 1, 1, 1]}
    before, nodes = "input", []
    for name, kind, inputs, form in zip(names, [*kinds, "Flatten"], extra, forms, strict=True):
        after = f"{name}_output_0"
        nodes.append(helper.make_node(kind, [before, *inputs], [after], name, **form))
        before = after
    dense = [before, "classifier.weight", "classifier.bias"]
    nodes.append(helper.make_node("Gemm", dense, ["output"], "/classifier/Gemm", transB=1))
    size = ["height", "width"] if free else [12, 12]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("input", 1, ["batch", 3, *size])],
        [helper.make_tensor_value_info("output", 1, ["batch", 5])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    package.save(model, path)


def test_an_onnx_file_becomes_onnx_and_tflite(tmp_path: Path) -> None:
    _torch_like(tmp_path / "net.onnx")
    values = np.random.default_rng(0).normal(0, 1, (60, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "set.npz", x=values)
    exact = onnx.session(tmp_path / "net.onnx").run(None, {"input": values})[0]
    options: dict[str, Any] = {"preprocessing": "none"}
    for precision, least in (("float32", 199), ("float16", 50), ("int8", 25)):
        options["calibration"] = str(tmp_path / "set.npz") if precision == "int8" else None
        written = export(
            tmp_path / "net.onnx",
            target="onnx",
            precision=precision,
            out=tmp_path / precision,
            **options,
        )
        (found,) = answers(written, {"input": values}).values()
        assert decibels(exact, found) > least
    record, ran = written.manifest.quantization, written.manifest.execution
    assert record is not None and any("fitted layers" in method for method in record.tried)
    assert ran is not None and ran.floats == () and ran.kernels["QLinearConv"] == 3
    written = export(
        tmp_path / "net.onnx", target="tflite", precision="int8", out=tmp_path / "t", **options
    )
    (found,) = answers(written, {"input": values}).values()
    assert decibels(exact, found) > 25


def test_weights_from_an_onnx_file_keep_the_pair_bound(tmp_path: Path) -> None:
    from onnx import numpy_helper

    _torch_like(tmp_path / "net.onnx")
    values = np.random.default_rng(0).normal(0, 1, (24, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "set.npz", x=values)
    sums = {}
    for device in ("generic", "x86-vnni"):
        written = export(
            tmp_path / "net.onnx",
            target="onnx",
            precision="int8",
            device=device,
            preprocessing="none",
            calibration=str(tmp_path / "set.npz"),
            out=tmp_path / device,
        )
        stored = [numpy_helper.to_array(t) for t in onnx.load(written.model_path).graph.initializer]
        dense = next(v for v in stored if v.shape == (5, 12) and v.dtype == np.int8).astype(int)
        sums[device] = np.abs(dense[:, ::2] + dense[:, 1::2]).max()
    assert sums["generic"] <= 128 < sums["x86-vnni"]


def test_calibrate_takes_an_onnx_file(
    tmp_path: Path, edgekit: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    _torch_like(tmp_path / "net.onnx")
    values = np.random.default_rng(0).normal(0, 1, (24, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "set.npz", x=values)
    done = edgekit(
        "calibrate", tmp_path / "net.onnx", "--preprocessing", "none",
        "--data", tmp_path / "set.npz", "--out", tmp_path / "table.json",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    written = export(
        tmp_path / "net.onnx",
        target="onnx",
        precision="int8",
        preprocessing="none",
        calibration=str(tmp_path / "table.json"),
        out=tmp_path / "out",
    )
    assert written.manifest.calibration is not None
    assert written.manifest.calibration.count == 24


def test_what_is_fed_is_checked() -> None:
    images = data.ImageSet("set", np.zeros((2, 4), np.float32), None, (), "")
    made = feeds.make("set", {"a": np.zeros((3, 2)), "b": np.zeros((3, 4), np.int32)})
    assert len(images) == 2 and len(made) == 3 and len(made.head(2)) == 2
    assert made.head(2).sha256 != made.sha256 == made.head(None).sha256
    with pytest.raises(InvalidDataError, match="the set is empty"):
        feeds.make("set", {})
    with pytest.raises(InvalidDataError, match="expected numbers in a"):
        feeds.make("set", {"a": np.array(["one", "two"])})


def _counter() -> bytes:
    """A TFLite file that adds what it is given to what it was given before."""
    tf = keras_format.tensorflow()
    total = tf.Variable(tf.zeros([1, 4]), trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32)])
    def add(given: Any) -> Any:
        return total.assign_add(given)

    module = tf.Module()
    module.total = total
    functions = [add.get_concrete_function()]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, module)
    converter.experimental_enable_resource_variables = True
    return bytes(converter.convert())


BAD: dict[str, tuple[str, str]] = {
    "no such kind": ("mine.xyz", "expected a Keras artifact, a SavedModel folder or a file .keras"),
    "missing tflite": ("none.tflite", "none.tflite not found"),
    "free size onnx": ("free.onnx", "pass --shape input=1,3,SIZE,SIZE"),
    "missing onnx": ("none.onnx", "none.onnx not found"),
    "no tflite": ("text.tflite", "text.tflite is not a TFLite model"),
    "truncated tflite": ("short.tflite", "short.tflite cannot be read (cut short?)"),
    "int8 tflite": ("int8.tflite", "is quantized already: its tensor "),
    "tflite with a state": ("counter.tflite", "keeps a state of its own from run to run"),
    "text onnx": ("words.onnx", "keep text outside of it"),
    "free size tflite": ("free.tflite", "expected fixed sizes of input"),
    "truncated onnx": ("text.onnx", "text.onnx cannot be read as ONNX"),
    "weights only": ("weights.h5", "weights.h5 holds weights only"),
    "truncated hdf5": ("short.h5", "cannot be read as HDF5"),
    "archive without a model": ("empty.keras", "cannot be read as a Keras model"),
    "free size": ("free.keras", "expected fixed sizes of input image"),
    "broken SavedModel": ("broken", "saved_model.pb cannot be read"),
    "SavedModel without variables": ("bare", "cannot be read as a SavedModel"),
    "folder of nothing": ("nothing", "no manifest.json"),
}


@pytest.fixture(scope="module")
def bad_place(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    keras = keras_format.keras_3()
    tf = keras_format.tensorflow()
    for name in ("mine.xyz", "text.tflite", "text.onnx"):
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
    (folder / "counter.tflite").write_bytes(_counter())
    words = helper.make_tensor_value_info("words", TensorProto.STRING, [1, 4])
    node = helper.make_node("Identity", ["words"], ["same"])
    same = helper.make_tensor_value_info("same", TensorProto.STRING, [1, 4])
    graph = helper.make_graph([node], "net", [words], [same])
    (folder / "words.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    _torch_like(folder / "free.onnx", free=True)
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


def test_layers_whose_short_names_are_equal_are_all_listed(tmp_path: Path) -> None:
    """Shortened names are for screens: in a file each layer has its full one."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 3))
    x = image
    for name in ("left", "right", "top"):
        inner = keras.Input((8, 8, x.shape[-1]))
        y = keras.layers.Conv2D(8, 3, padding="same", name="conv")(inner)
        x = keras.Model(inner, y, name=name)(x)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    keras.Model(image, x).save(tmp_path / "net.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=pixels)
    written = export(
        tmp_path / "net.keras", target="tflite", precision="int8", preprocessing="unit",
        calibration=str(tmp_path / "set.npz"), correction="none", out=tmp_path / "int8",
    )  # fmt: skip
    record = written.manifest.quantization
    assert record is not None
    names = list(record.saturating)
    assert len(names) == 4 and len({name for name in names if "conv" in name}) == 3
