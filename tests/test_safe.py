"""Nothing read from a file runs code unless --trust was typed; ordinary models need no --trust."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus
import hostile
import numpy as np
import pytest
from conftest import Done
from exported import export
from hostile import Case

from edgekit.base import outputs
from edgekit.base.errors import InvalidDataError, InvalidModelError
from edgekit.graph import safe
from edgekit.records import artifact
from edgekit.records.artifact import Artifact
from edgekit.sources import keras as keras_format
from edgekit.sources import keras_file, saved_model

CASES = hostile.cases()
LIVE = [case for case in CASES if case.live]


def refused(words: list[object], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line with which a verb refuses."""
    capfd.readouterr()
    verb = importlib.import_module(f"edgekit.{words[0]}")
    if hasattr(verb, "__path__"):
        verb = importlib.import_module(f"edgekit.{words[0]}.__main__")
    status = verb.main(list(map(str, words[1:])))
    found = capfd.readouterr()
    lines = found.err.splitlines()
    assert status == 2, found.err
    assert len(lines) == 1 and not found.out, found.err
    return lines[0]


def written(mark: Path) -> list[Path]:
    """The marker, and what has its name and more."""
    return list(mark.parent.glob(f"{mark.stem}*"))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_models_are_refused_and_nothing_runs(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = tmp_path / "files", tmp_path / "marks" / "ran.txt"
    folder.mkdir()
    mark.parent.mkdir()
    path = case.make(folder, mark)
    for each in written(mark):
        each.unlink()
    monkeypatch.syspath_prepend(folder)  # where a module of the file's maker might lie
    target = "onnx" if path.suffix == ".onnx" else "tflite"
    common = ["--preprocessing", "none", "--target", target, "--precision", "float32"]
    line = refused(["export", path, *common, "--out", tmp_path / "out"], capfd)
    assert re.search(case.says, line), line
    assert str(path) in line
    assert not written(mark)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", LIVE, ids=[case.name for case in LIVE])
def test_they_are_hostile_indeed(case: Case, tmp_path: Path) -> None:
    """Those that are called live write the marker where they are trusted."""
    folder, mark = tmp_path / "files", tmp_path / "marks" / "ran.txt"
    folder.mkdir()
    mark.parent.mkdir()
    path = case.make(folder, mark)
    for each in written(mark):
        each.unlink()
    hostile.trusted(path, folder)
    assert written(mark)


@pytest.mark.slow
def test_every_verb_that_loads_a_model_refuses(
    tiny: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    edgekit: Callable[..., Done],
) -> None:
    """Also as an artifact whose hashes are right, as the source of one, and in a process."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "marks" / "ran.txt"
    mark.parent.mkdir()
    (case,) = [c for c in CASES if c.name == "TFOpLambda of compat.v1.io.write_file, .keras"]
    path = case.make(tmp_path, mark)
    like = Artifact.load(tiny[0]).manifest
    evil = artifact.write(
        tmp_path / "evil",
        {"model.keras": path.read_bytes()},
        {**vars(like), "format": "keras", "model_file": "model.keras"},
        force=False,
    )
    source = {"path": str(path), "sha256": outputs.sha256_file(path)}
    made = hostile.copy_with(tiny[0], tmp_path / "made", source=source)
    unit = ["--preprocessing", "unit"]
    for words in (
        ["calibrate", path, *unit, "--data", tiny[1], "--out", "t.json"],
        ["export", evil.path, "--target", "onnx", "--precision", "float32", "--out", "o"],
        ["compare", made, "--data", tiny[1], "--out", "r.json"],
        ["compare", path, made, "--layers", "--data", tiny[1]],
        ["benchmark", evil.path, "--seconds", "0.1"],
        ["data", "check", path, *unit, "--data", tiny[1]],
    ):
        line = refused(words, capfd)
        assert "tf.compat.v1.io.write_file, which is not known to compute only" in line, line
        assert not written(mark)
    out = ("--data", tiny[1], "--out", tmp_path / "m")
    for done in (edgekit("train", "--from", path, *unit, *out), edgekit("qat", path, *unit, *out)):
        assert "tf.compat.v1.io.write_file, which is not known" in done.error
        assert done.status == 2 and not written(mark)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(case.live for case in CASES) >= 20


@pytest.mark.parametrize("key", ["class_name", "module", "registered_name", "config"])
@pytest.mark.parametrize("value", [3, None, [], {}, ["Dense"], {"a": 1}, "a>b", "os", "", True])
def test_configurations_of_any_form_are_looked_at(
    key: str, value: Any, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.keras"
    shutil.copy(small / "small.keras", path)

    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][1][key] = value

    hostile.changed(path, change)
    found = keras_file.read(path)
    assert all(isinstance(problem, str) for _, problem in found.code())
    if key == "class_name":
        common = ["--preprocessing", "none", "--target", "tflite", "--precision", "float32"]
        refused(["export", path, *common, "--out", tmp_path / "out"], capfd)


def table(path: Path, word: str) -> Path:
    """A calibration table that says that its images are this."""
    tensor = {"min": 0.0, "max": 1.0}
    statistics = {
        **tensor,
        "average_min": 0.0,
        "average_max": 1.0,
        "histogram": {"width": 0.5, "start": 0, "counts": [1]},
        "channel_min": [0.0],
        "channel_max": [1.0],
        "channel_mean": [0.5],
    }
    document = {
        "graph_sha256": "0" * 64,
        "data": word,
        "data_sha256": "0" * 64,
        "count": 2,
        "preprocessing": {"name": "unit", "scale": [1.0], "offset": [0.0]},
        "method": "minmax",
        "ranges": {"a": tensor},
        "statistics": {"a": statistics},
        "schema_version": 2,
    }
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("word", ["evil:images", "os:getpid", "tfds:evil", "evil:images#samples=2"])
def test_a_word_in_a_file_imports_nothing(
    word: str,
    small: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = tmp_path / "ran.txt"
    hostile.module(tmp_path, mark)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words: list[object] = ["export", small / "small.keras", "--preprocessing", "unit"]
    words += ["--target", "tflite", "--precision", "int8", "--out", tmp_path / "out"]
    path = table(tmp_path / "table.json", word)
    line = refused([*words, "--calibration", path], capfd)
    assert f"names its images as '{word}'" in line and f"--data {word}" in line
    assert not mark.exists()
    if word == "evil:images":  # what is typed runs
        line = refused([*words, "--calibration", path, "--data", word], capfd)
        assert "expected arrays" in line
        assert mark.exists()


def test_pickles_are_refused(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "ran.txt"
    words: list[object] = ["export", small / "small.keras", "--preprocessing", "unit"]
    words += ["--target", "tflite", "--precision", "int8", "--out", tmp_path / "out"]
    for names in (("x",), ("x", "y"), ("image",), ("image", "y")):
        path = hostile.pickled(tmp_path, mark, *names)
        mark.unlink(missing_ok=True)
        assert "npz" in refused([*words, "--calibration", path], capfd)
        assert not mark.exists()


def test_archives_of_named_arrays_are_refused_as_images_are(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words: list[object] = ["export", small / "small.keras", "--preprocessing", "unit"]
    words += ["--target", "tflite", "--precision", "int8", "--out", tmp_path / "out"]
    path = tmp_path / "set.npz"
    np.savez(tmp_path / "good.npz", x=np.zeros((4, 12, 12, 3), np.uint8), y=np.arange(4))
    for name, make in corpus.arrays(tmp_path / "good.npz"):
        if not name.startswith(("member", "header", "shape", "dtype", "version", "a bomb")):
            continue
        make(path)
        with zipfile.ZipFile(path) as archive:
            members = {"image.npy": archive.read("x.npy"), "more.npy": archive.read("y.npy")}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        line = refused([*words, "--calibration", path], capfd)
        assert "not a usable .npz" in line or "expected" in line, (name, line)


def test_weights_of_onnx_behind_a_link_are_refused(tmp_path: Path) -> None:
    import onnx as package
    from onnx import TensorProto, helper, numpy_helper

    from edgekit.graph import onnx

    stored = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in (("x", 4), ("y", 2))
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [stored]))
    path = tmp_path / "m.onnx"
    package.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    onnx.load(path)
    (tmp_path / "w.bin").rename(tmp_path / "other.bin")
    (tmp_path / "w.bin").symlink_to("other.bin")
    with pytest.raises(InvalidModelError, match="keeps weights in w.bin, which is a link"):
        onnx.load(path)


def test_features_of_a_data_set_import_nothing(tmp_path: Path) -> None:
    from edgekit.data.tfds import check_features

    folder = tmp_path / "tiny_set" / "1.0.0"
    folder.mkdir(parents=True)
    features = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
    (folder / "features.json").write_text(json.dumps(features))
    check_features(tmp_path / "tiny_set")
    for key in ("pythonClassName", "type"):
        inside = {"featuresDict": {"features": {"image": {key: "evil.Image"}}}}
        (folder / "features.json").write_text(json.dumps({**features, **inside}))
        with pytest.raises(InvalidDataError, match=r"names the Python class 'evil.Image'"):
            check_features(tmp_path / "tiny_set")


def test_a_manifest_sets_known_options_only(
    tiny: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"session.custom_ops_library": str(tmp_path / "evil.so")}
    good = export(
        Path(tiny[0]) / "model.tflite", target="onnx", precision="float32", preprocessing="unit",
        out=tmp_path / "good",
    )  # fmt: skip
    path = hostile.copy_with(good.path, tmp_path / "a", runtime_options=options)
    line = refused(["benchmark", path, "--seconds", "0.1"], capfd)
    assert "got 'session.custom_ops_library'" in line


# What is ordinary needs no --trust


def _all_of(keras: Any, image: Any, *, functions: bool) -> Any:
    """Functions of TensorFlow and layers in many forms, as people mix them."""
    layers, tf = keras.layers, keras_format.tensorflow()
    x = layers.Conv2D(8, 3, padding="same", activation="swish")(image)
    if functions and keras is keras_format.tf_keras():
        x = tf.nn.relu6(x + 3.0) * (1 / 6) * x
        x = tf.image.resize(x, (8, 8)) - tf.reduce_mean(x, axis=[1, 2], keepdims=True)
        x = tf.concat([x[:, :, :, :4], tf.transpose(x, [0, 2, 1, 3])], axis=-1)
        x = keras.backend.clip(x, -4.0, 4.0) / tf.math.sqrt(2.0 + x * x)
    elif functions:
        ops = keras.ops
        x = ops.relu6(x + 3.0) * (1 / 6) * x
        x = ops.image.resize(x, (8, 8)) - ops.mean(x, axis=[1, 2], keepdims=True)
        x = ops.concatenate([x[:, :, :, :4], ops.transpose(x, [0, 2, 1, 3])], axis=-1)
        x = ops.clip(x, -4.0, 4.0) / ops.sqrt(2.0 + x * x)
    x = layers.LayerNormalization()(layers.PReLU()(x))
    x = layers.Bidirectional(layers.LSTM(4))(layers.Reshape((64, -1))(x))
    inside = keras.Input((8,), name="inside")
    inner = keras.Model(inside, layers.Dense(4, kernel_regularizer="l2")(inside), name="within")
    inner.compile("adam", "mse", metrics=["mae"])
    return layers.Dense(3, activation="softmax", dtype="float32")(inner(x))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_ordinary_layers_and_functions_load(version: int, suffix: str, tmp_path: Path) -> None:
    keras = keras_format.keras_3() if version == 3 else keras_format.tf_keras()
    image = keras.Input((8, 8, 3), name="image")
    functions = (version, suffix) != (3, ".h5")  # which Keras itself cannot read from there
    model = keras.Model(image, _all_of(keras, image, functions=functions))
    model.compile(keras.optimizers.Adam(1e-3), "categorical_crossentropy", metrics=["accuracy"])
    model.save(tmp_path / f"net{suffix}")
    loaded = keras_format.load(tmp_path / f"net{suffix}")
    values = np.random.default_rng(0).normal(0, 1, (2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(loaded(values)), np.asarray(model(values)), atol=1e-5)


#: Of keras.applications, one of each family, its smallest.
FAMILIES = (
    "ConvNeXtTiny DenseNet121 EfficientNetB0 EfficientNetV2B0 InceptionV3 MobileNet MobileNetV2 "
    "MobileNetV3Small NASNetMobile RegNetX002 RegNetY002 ResNet50 ResNet50V2 ResNetRS50 VGG16 "
    "Xception InceptionResNetV2"
).split()
QUICK = ("MobileNetV3Small",)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
@pytest.mark.parametrize("version", [2, 3])
def test_families_of_keras_applications_hold_nothing_unknown(
    name: str, version: int, tmp_path: Path
) -> None:
    keras = keras_format.keras_3() if version == 3 else keras_format.tf_keras()
    make = getattr(keras.applications, name, None)
    if make is None:
        pytest.skip(f"Keras {version} has no {name}")
    model = make(weights=None)
    model.save(tmp_path / "net.keras")
    assert list(keras_file.read(tmp_path / "net.keras").code()) == []


def _one(path: Path) -> Any:
    """The answer of a SavedModel to ones."""
    values = keras_format.tensorflow().ones((1, 6, 4))
    (answer,) = saved_model.SavedModel(path)(values)
    assert np.isfinite(answer.numpy()).all()
    return answer.numpy()


@pytest.mark.slow
def test_saved_models_with_functions_for_training_load(tmp_path: Path) -> None:
    keras = keras_format.tf_keras()
    image = keras.Input((6, 4), name="image")
    x = keras.layers.GRU(4)(keras.layers.Dropout(0.5)(image))
    model = keras.Model(image, keras.layers.Dense(2)(x))
    model.compile("adam", "mse")
    model.fit(np.zeros((8, 6, 4)), np.zeros((8, 2)), verbose=0)
    model.save(tmp_path / "keras", save_format="tf")
    model.export(tmp_path / "exported")
    keras_3 = keras_format.keras_3()
    other = keras_3.Input((6, 4), name="image")
    keras_3.Model(other, keras_3.layers.LSTM(2)(other)).export(tmp_path / "keras3", verbose=False)
    for name in ("keras", "exported", "keras3"):
        _one(tmp_path / name)


def test_a_saved_model_with_a_table_and_a_loop_loads(tmp_path: Path) -> None:
    tf = keras_format.tensorflow()
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer([0, 1], [5.0, 7.0]), -1.0
    )
    module.weight = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec((1, 6, 4), tf.float32, name="image")])  # type: ignore[untyped-decorator]
    def serve(image: Any) -> Any:
        found = module.table.lookup(tf.constant([1]))
        for i in tf.range(3):
            found += tf.cast(i, tf.float32)
        return {"out": image * found * module.weight}

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path / "table"), {"serving_default": serve})
    np.testing.assert_allclose(_one(tmp_path / "table"), np.full((1, 6, 4), 20))


def test_a_saved_model_of_tensorflow_1_loads(tmp_path: Path) -> None:
    tf = keras_format.tensorflow()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        image = tf.compat.v1.placeholder(tf.float32, (None, 4), name="image")
        weight = tf.compat.v1.get_variable("w", (4, 2))
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1], [3.0]), 0.0)
        answer = image @ weight + table.lookup(tf.constant([1]))
        filled = tf.compat.v1.tables_initializer()
        session.run([tf.compat.v1.global_variables_initializer(), filled])
        expected = session.run(answer, {image: np.ones((1, 4))})
        tf.compat.v1.saved_model.simple_save(
            session,
            str(tmp_path / "saved"),
            {"image": image},
            {"out": answer},
            legacy_init_op=filled,
        )
    (found,) = saved_model.SavedModel(tmp_path / "saved")(tf.ones((1, 4)))
    np.testing.assert_allclose(found.numpy(), expected)


def test_what_is_listed_is_there() -> None:
    """Every name in the lists is one of the installed packages', so that none is misspelled."""
    from ai_edge_litert import schema_py_generated as schema

    tf = keras_format.tensorflow()
    from tensorflow.core.framework.op_def_pb2 import OpList
    from tensorflow.python.client import pywrap_tf_session

    there = OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    known = {each.name for each in there.op}
    assert safe.TENSORFLOW_OPERATORS - known == set()
    assert safe.TENSORFLOW_SAVING - known == set()
    assert not safe.TENSORFLOW_SAVING & safe.TENSORFLOW_OPERATORS
    files = ("File", "Dataset", "PyFunc", "Print", "SummaryWriter", "Rpc", "Send", "Recv", "Save")
    reaching = {n for n in safe.TENSORFLOW_OPERATORS if any(part in n for part in files)}
    assert reaching == set()
    assert safe.TFLITE_OPERATORS <= set(vars(schema.BuiltinOperator))
    missing = [
        name
        for name in safe.TENSORFLOW_FUNCTIONS
        if not name.startswith("__operators__")
        and not any(callable(_at(root, name)) for root in (tf, tf.compat.v1))
    ]
    assert missing == []


def _at(root: Any, name: str) -> Any:
    for part in name.split("."):
        root = getattr(root, part, None)
    return root
