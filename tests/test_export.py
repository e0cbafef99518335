from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Done
from exported import export, export_all

from edgekit import data
from edgekit.base.errors import (
    EdgekitError,
    ExecutionError,
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
)
from edgekit.calibrate import calibrate
from edgekit.data import fashion_mnist
from edgekit.export import main as export_main
from edgekit.graph import litert, onnx
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.pipeline.calibration import observe
from edgekit.pipeline.exporting import DEFAULT_MODEL
from edgekit.quantization.quantize import predict
from edgekit.quantization.saturation import pairs_products
from edgekit.records import environment, signature
from edgekit.records.artifact import Artifact
from edgekit.sources import convert
from edgekit.sources.keras import tensorflow, tf_keras
from edgekit.writers import tflite_integers

WAYS = [(t, p) for t in ("tflite", "onnx") for p in ("float32", "float16", "int8")]


def _pixels(count: int, shape: tuple[int, ...] = (28, 28, 1)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.keras: the shipped net as a user's own file; set.npz: calibration images for it."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "net.keras").write_bytes((DEFAULT_MODEL / "model.keras").read_bytes())
    np.savez(folder / "set.npz", x=fashion_mnist.load("calibration").images[:200])
    return folder


@pytest.fixture(scope="module")
def exported(place: Path) -> dict[tuple[str, str], Artifact]:
    written = export_all(
        place / "net.keras",
        targets=["tflite", "onnx"],
        precisions=["float32", "float16", "int8"],
        calibration=str(place / "set.npz"),
        preprocessing="unit",
        out=place / "all",
    )
    return dict(zip(WAYS, written, strict=True))


def _run(written: Artifact, pixels: np.ndarray) -> np.ndarray:
    """Probabilities of an artifact, through its own signature."""
    manifest = written.manifest
    spec = manifest.signature.single_input()
    feed = spec.quantize(manifest.preprocessing.apply(pixels))
    if manifest.format == "onnx":
        answer = onnx.session(written.model_path).run(None, {spec.name: feed})[0]
    else:
        opened = litert.interpreter(written.model_path)
        runner = opened.get_signature_runner(litert.SIGNATURE_KEY)
        name = manifest.signature.outputs[0].name
        answer = np.concatenate([runner(**{spec.name: f[None]})[name] for f in feed])
    return manifest.signature.outputs[0].dequantize(answer)


@pytest.mark.parametrize("target, precision", WAYS)
def test_an_artifact_answers_as_keras_does(
    exported: dict[tuple[str, str], Artifact], place: Path, target: str, precision: str
) -> None:
    pixels = fashion_mnist.load("test").images[:200]
    model = tf_keras().models.load_model(place / "net.keras")
    expected = np.asarray(model(pixels / np.float32(255)))
    found = _run(exported[target, precision], pixels)
    bound = {"float32": 1e-5, "float16": 5e-3, "int8": 2e-2}[precision]
    assert np.abs(found - expected).mean() < bound
    agreed = float((found.argmax(1) == expected.argmax(1)).mean())
    assert agreed >= (0.97 if precision == "int8" else 0.995)


def test_both_int8_files_agree(exported: dict[tuple[str, str], Artifact]) -> None:
    pixels = fashion_mnist.load("test").images[:500]
    ours, theirs = (_run(exported[target, "int8"], pixels) for target in ("tflite", "onnx"))
    assert float((ours.argmax(1) == theirs.argmax(1)).mean()) >= 0.99
    assert np.abs(ours - theirs).mean() * 256 < 0.44  # the trial's distance, in LSB of the output


@pytest.mark.parametrize("target, precision", WAYS)
def test_the_manifest_describes_the_file(
    exported: dict[tuple[str, str], Artifact], target: str, precision: str
) -> None:
    written = Artifact.load(exported[target, precision].path)
    manifest = written.manifest
    spec, answer = manifest.signature.inputs[0], manifest.signature.outputs[0]
    assert (spec.name, answer.name) == ("image", "probabilities")
    integer = (target, precision) == ("tflite", "int8")
    assert spec.dtype == answer.dtype == ("int8" if integer else "float32")
    assert spec.shape == (-1 if target == "onnx" else 1, 28, 28, 1)
    assert (spec.scale is not None) == integer
    assert manifest.model_id == "net"
    assert manifest.preprocessing.name == "unit"
    assert len(manifest.class_names) == 10
    assert manifest.source is not None and manifest.source.path.endswith("net.keras")
    assert (manifest.calibration is not None) == (precision == "int8")
    if manifest.calibration is not None:
        assert (manifest.calibration.count, manifest.calibration.method) == (200, "minmax")
        assert "encodings.json" in manifest.files


def test_sizes_shrink_with_the_precision(exported: dict[tuple[str, str], Artifact]) -> None:
    for target in ("tflite", "onnx"):
        sizes = [exported[target, p].size for p in ("float32", "float16", "int8")]
        assert sizes[1] < 0.6 * sizes[0]
        assert sizes[2] < 0.45 * sizes[0]


def test_int8_onnx_runs_on_integer_kernels(
    exported: dict[tuple[str, str], Artifact], tmp_path: Path
) -> None:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(exported["onnx", "int8"].model_path), settings, providers=["CPUExecutionProvider"]
    )
    kinds = [node.op_type for node in _graph(tmp_path / "optimized.onnx").node]
    assert kinds.count("QLinearConv") == 52
    assert kinds.count("QLinearAdd") == 11  # shortcuts: stride 1 and as many channels
    assert not {"Conv", "Add", "Gemm", "MatMul", "Softmax", "GlobalAveragePool"} & set(kinds)
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 1)


def test_both_int8_files_hold_the_same_integers(
    exported: dict[tuple[str, str], Artifact],
) -> None:
    """Weights, activation scales and zero points, layer by layer in order of execution."""
    from onnx import numpy_helper

    graph = _graph(exported["onnx", "int8"].model_path)
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    user = {name: node for node in graph.node for name in node.input}
    opened = litert.interpreter(
        exported["tflite", "int8"].model_path, experimental_op_resolver_type=_plain()
    )
    details = {d["index"]: d for d in opened.get_tensor_details()}
    layers = [o for o in opened._get_ops_details() if o["op_name"].endswith("CONV_2D")]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(layers) == len(convolutions) == 52
    for layer, node in zip(layers, convolutions, strict=True):
        weights = stored[maker[node.input[1]].input[0]]
        there = opened.get_tensor(layer["inputs"][1])
        depthwise = layer["op_name"].startswith("DEPTHWISE")
        there = there.transpose(3, 0, 1, 2) if depthwise else there.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(weights, there)
        assert weights.min() >= -127
        assert len(stored[maker[node.input[1]].input[1]]) == len(weights)  # one scale a channel
        bias = stored[maker[node.input[2]].input[0]]
        biases = opened.get_tensor(layer["inputs"][2])  # 1 apart where two roundings meet a half
        assert np.abs(bias.astype(np.int64) - biases).max() <= 1
        scale, zero_point = details[int(layer["outputs"][0])]["quantization"]
        quantize = user[node.output[0]]
        assert quantize.op_type == "QuantizeLinear"
        assert stored[quantize.input[1]] == np.float32(scale)
        assert stored[quantize.input[2]] == zero_point + 128


@pytest.mark.slow
def test_a_table_replaces_images_and_fits_one_graph_only(
    place: Path, exported: dict[tuple[str, str], Artifact], edgekit: Callable[..., Done]
) -> None:
    table = place / "table.json"
    done = edgekit(
        "calibrate", place / "net.keras", "--preprocessing", "unit", "--data", place / "set.npz",
        "--out", table,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    again = export(
        place / "net.keras",
        target="tflite",
        precision="int8",
        calibration=str(table),
        preprocessing="unit",
        out=place / "from-table",
    )
    assert again.sha256 == exported["tflite", "int8"].sha256
    table.write_text(table.read_text().replace(done.document["graph_sha256"], "0" * 64))
    options: dict[str, Any] = {"target": "tflite", "precision": "int8", "preprocessing": "unit"}
    with pytest.raises(InvalidDataError, match="another graph"):
        export(place / "net.keras", calibration=str(table), out=place / "no", **options)
    assert not (place / "no").exists()


def _head(keras: Any, x: Any) -> Any:
    return keras.layers.Dense(3, activation="softmax", name="answers")(keras.layers.Flatten()(x))


def _plain_net(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(4, activation="relu"),
            layers.Dense(3, name="answers"),
        ]
    )


def _branched_net(keras: Any) -> Any:
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    a = layers.Conv2D(8, 3, padding="same", activation="swish")(image)
    b = layers.Conv2D(8, 5, padding="same", strides=1, activation="sigmoid")(image)
    x = layers.AveragePooling2D()(layers.Concatenate()([a, layers.Multiply()([a, b])]))
    return keras.Model(image, _head(keras, layers.Conv2D(8, 1)(x)))


@pytest.mark.parametrize("build", [_plain_net, _branched_net])
def test_other_nets_than_ours(build: Callable[[Any], Any], tmp_path: Path) -> None:
    keras = tf_keras()
    keras.utils.set_random_seed(0)
    model = build(keras)
    model.save(tmp_path / "mine.keras")
    pixels = _pixels(32, (8, 8, 3))
    np.savez(tmp_path / "set.npz", x=pixels)
    expected = np.asarray(model(pixels / np.float32(127.5) - 1))
    for target in ("tflite", "onnx"):
        written = export(
            tmp_path / "mine.keras",
            target=target,
            precision="int8",
            calibration=str(tmp_path / "set.npz"),
            preprocessing="symmetric",
            out=tmp_path / target,
        )
        assert np.abs(_run(written, pixels) - expected).max() < 0.05 * np.ptp(expected) + 0.02


def test_a_dead_branch_is_refused_by_name(tmp_path: Path) -> None:
    keras = tf_keras()
    image = keras.Input((8, 8, 3), name="image")
    dead = keras.layers.Conv2D(
        4, 3, kernel_initializer="zeros", activation="relu", name="dead_branch"
    )(image)
    keras.Model(image, _head(keras, dead)).save(tmp_path / "dead.keras")
    np.savez(tmp_path / "set.npz", x=_pixels(8, (8, 8, 3)))
    with pytest.raises(InvalidDataError, match="dead_branch.* is 0 for every calibration image"):
        export(
            tmp_path / "dead.keras",
            target="tflite",
            precision="int8",
            calibration=str(tmp_path / "set.npz"),
            preprocessing="unit",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_an_operator_without_int8_form_stays_float_and_is_named(tmp_path: Path) -> None:
    keras = tf_keras()
    image = keras.Input((8, 8, 3), name="image")
    divided = keras.layers.Conv2D(4, 3, activation="softsign")(image)
    wave = tensorflow().sin(divided)
    keras.Model(image, _head(keras, wave)).save(tmp_path / "softsign.keras")
    np.savez(tmp_path / "set.npz", x=_pixels(8, (8, 8, 3)))
    options: dict[str, Any] = {
        "precision": "int8",
        "calibration": str(tmp_path / "set.npz"),
        "preprocessing": "unit",
    }
    for target, names in (("tflite", ("DIV", "SIN")), ("onnx", ("Div", "Sin"))):
        written = export(
            tmp_path / "softsign.keras", target=target, out=tmp_path / target, **options
        )
        (said,) = (note for note in written.manifest.notes if "compute in float: " in note)
        assert all(name in said for name in names)
        with pytest.raises(ExecutionError, match="--strict"):
            export(
                tmp_path / "softsign.keras",
                target=target,
                strict=True,
                out=tmp_path / "strict",
                **options,
            )


UNIT = ("--preprocessing", "unit")
BAD: dict[str, tuple[list[str], str]] = {
    "missing model": (["none.keras"], "none.keras not found"),
    "not a model": (["text.keras", *UNIT], "is not a .keras file"),
    "truncated model": (["short.keras", *UNIT], "is not a .keras file"),
    "no preprocessing": (["net.keras"], "pass --preprocessing"),
    "unknown preprocessing": (["net.keras", "--preprocessing", "odd"], "expected --preprocessing"),
    "unknown target": (["net.keras", "--target", "tvm"], "got 'tvm'"),
    "unknown precision": (["net.keras", "--precision", "int3"], "got 'int3'"),
    "unknown option": (["net.keras", "--speed", "9"], "unknown option --speed"),
    "no calibration": (["net.keras", *UNIT], "expected --calibration IMAGES for your own model"),
    "calibration of float": (
        ["net.keras", *UNIT, *"--precision float16 --calibration set.npz".split()],
        "--calibration is for int8",
    ),
    **{
        name: (["net.keras", *UNIT, "--calibration", file], message)
        for name, file, message in [
            ("missing calibration", "none.npz", "none.npz not found"),
            ("no such word", "cifar", "samples as fashion_mnist, scenes, "),
            ("empty calibration", "empty.npz", "the set is empty"),
            ("wrong shape", "shape.npz", "expected images [28, 28, 1]"),
            ("NaN", "nan.npz", "image 1 holds NaN or Inf"),
            ("Inf", "inf.npz", "image 0 holds NaN or Inf"),
            ("pickle", "pickle.npz", "pickled objects, which are refused"),
            ("truncated", "short.npz", "not a usable .npz"),
            ("not a table", "text.json", "is not valid JSON"),
            ("single image", "one.npz", "expected at least 2 images to calibrate with, got 1"),
            ("dead tensor", "dead.json", "block4_add/add has no range in the calibration table"),
            ("width 0", "flat.json", "block4_add/add is 0 for every calibration image"),
            ("infinite range", "infinite.json", "expected a finite range"),
            ("NaN range", "nan.json", "expected a number"),
            ("range in the wrong order", "order.json", "expected a finite range min <= max"),
            ("table of other data", "other.json", "was made from other images than set.npz"),
            ("table of another graph", "graph.json", "was made from another graph"),
            ("table of another preprocessing", "symmetric.json", "made with preprocessing"),
            ("old table", "old.json", "has schema_version 1"),
        ]
    },
    "data without a table": (
        ["net.keras", *UNIT, *"--calibration set.npz --data set.npz".split()],
        "--data names the images of a calibration table",
    ),
    "unknown device": (["net.keras", *UNIT, "--device", "tpu"], "got 'tpu'"),
    "device without int8": (
        ["net.keras", *UNIT, *"--device cuda --target onnx --calibration set.npz".split()],
        "device cuda takes onnx in float32, float16, got onnx in int8",
    ),
    "device without TFLite": (
        ["net.keras", *UNIT, *"--device tensorrt --calibration set.npz".split()],
        "device tensorrt takes onnx",
    ),
    "unknown method": (["net.keras", *UNIT, "--method", "max"], "got 'max'"),
    "unknown correction": (["net.keras", *UNIT, "--correction", "all"], "got 'all'"),
    "method of float": (
        ["net.keras", *UNIT, *"--precision float32 --method mse".split()],
        "--method is for int8",
    ),
    "strict float": (
        ["net.keras", *UNIT, *"--precision float32 --strict".split()],
        "--strict is for int8",
    ),
}


@pytest.fixture(scope="module")
def bad_place(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    whole = (place / "net.keras").read_bytes()
    (folder / "net.keras").write_bytes(whole)
    (folder / "short.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "text.keras").write_text("not a model")
    (folder / "text.json").write_text("not a table")
    floats = np.zeros((2, 28, 28, 1), np.float32)
    nan, inf = floats.copy(), floats.copy()
    nan[1, 0, 0, 0], inf[0, 5, 5, 0] = np.nan, np.inf
    np.savez(folder / "set.npz", x=_pixels(4))
    np.savez(folder / "empty.npz", x=floats[:0])
    np.savez(folder / "shape.npz", x=_pixels(2, (32, 32, 3)))
    np.savez(folder / "nan.npz", x=nan)
    np.savez(folder / "inf.npz", x=inf)
    np.savez(folder / "pickle.npz", x=np.array([{}], object))
    np.savez(folder / "one.npz", x=_pixels(1))
    _write_tables(folder)
    (folder / "short.npz").write_bytes((folder / "set.npz").read_bytes()[:900])
    return folder


def _write_tables(folder: Path) -> None:
    """A table of net.keras and set.npz, and one for each way to break it."""
    canonical = convert.from_keras(tf_keras().models.load_model(folder / "net.keras"))
    images = data.load(str(folder / "set.npz"), "calibration")
    prepare = signature.preprocessing("unit")
    table = json.loads(observe(canonical, images, prepare=prepare, word="set.npz").dumps())
    name = next(name for name in table["ranges"] if name.endswith("block4_add/add"))

    def write(file: str, change: Callable[[Any], None]) -> None:
        changed = json.loads(json.dumps(table))
        change(changed)
        (folder / file).write_text(json.dumps(changed))

    def put(low: Any, high: Any) -> Callable[[Any], None]:
        return lambda found: found["ranges"][name].update(min=low, max=high)

    def without(found: Any) -> None:
        del found["ranges"][name], found["statistics"][name]

    write("dead.json", without)
    write("flat.json", put(0.0, 0.0))
    write("infinite.json", put(0.0, "Infinity"))
    write("nan.json", put("NaN", 1.0))
    write("order.json", put(1.0, -1.0))
    write("other.json", lambda found: found.update(data_sha256="0" * 64))
    write("graph.json", lambda found: found.update(graph_sha256="0" * 64))
    write(
        "symmetric.json",
        lambda found: found["preprocessing"].update(name="symmetric", offset=[-1.0]),
    )
    write("old.json", lambda found: found.update(schema_version=1))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    name: str,
    bad_place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments, message = BAD[name]
    monkeypatch.chdir(bad_place)
    before = sorted(bad_place.iterdir())
    defaults = ["--target", "tflite", "--precision", "int8", "--out", "out"]
    assert export_main([*defaults, *arguments]) == 2
    streams = capfd.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1, streams.err
    assert streams.err.startswith("edgekit export: error: ")
    assert message in streams.err
    assert sorted(bad_place.iterdir()) == before


def test_an_output_that_exists_is_kept(
    exported: dict[tuple[str, str], Artifact], place: Path, edgekit: Callable[..., Done]
) -> None:
    command = [
        "export", place / "net.keras", "--preprocessing", "unit", "--target", "tflite",
        "--precision", "float32", "--out", place / "all" / "net-tflite-float32",
    ]  # fmt: skip
    before = (place / "all" / "net-tflite-float32" / "manifest.json").read_bytes()
    refused = edgekit(*command)
    assert refused.status == 2
    assert "exists already" in refused.error
    assert (place / "all" / "net-tflite-float32" / "manifest.json").read_bytes() == before
    replaced = edgekit(*command, "--force")
    assert replaced.status == 0, replaced.stderr
    assert replaced.document["sha256"] == exported["tflite", "float32"].sha256
    assert replaced.stdout.count("\n") == 1
    manifest = json.loads((place / "all" / "net-tflite-float32" / "manifest.json").read_text())
    assert manifest["command"].startswith("python -m edgekit.export ")


def test_ctrl_c_writes_nothing(place: Path, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [
            sys.executable, "-m", "edgekit.export", str(place / "net.keras"),
            "--preprocessing", "unit", "--target", "onnx", "--precision", "float32",
            "--out", str(tmp_path / "out"),
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    maps, until = Path(f"/proc/{running.pid}/maps"), time.monotonic() + 120
    while "libtensorflow" not in maps.read_text() and time.monotonic() < until:
        time.sleep(0.05)  # the verb has begun when TensorFlow is there
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    # Where the signal came while exec() ran a string, Python ends by it; a shell says 130 of both.
    assert running.returncode in (130, -signal.SIGINT), errors
    assert errors == "edgekit export: error: interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [0, 6, 100, 0.5, 0.99])
def test_truncated_files_do_not_load(
    exported: dict[tuple[str, str], Artifact], tmp_path: Path, part: float
) -> None:
    for target, read in (("tflite", litert.signature), ("onnx", onnx.session)):
        whole = exported[target, "int8"].model_path.read_bytes()
        cut = tmp_path / f"cut.{target}"
        cut.write_bytes(whole[: int(part if part >= 1 else part * len(whole))])
        with pytest.raises(InvalidModelError):
            read(cut)
    with pytest.raises(InvalidModelError):
        onnx.signature(tmp_path / "cut.onnx")


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    keras = tf_keras()
    image = keras.Input((4, 4, 1), name="image")
    huge = keras.initializers.Constant(1e5)
    x = keras.layers.Conv2D(2, 3, kernel_initializer=huge)(image)
    keras.Model(image, _head(keras, x)).save(tmp_path / "huge.keras")
    for target in ("onnx", "tflite"):
        with pytest.raises(EdgekitError, match="float32"):
            export(
                tmp_path / "huge.keras",
                target=target,
                precision="float16",
                preprocessing="unit",
                out=tmp_path / "out",
            )
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_fixed_size_is_refused(tmp_path: Path) -> None:
    keras = tf_keras()
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    keras.Model(image, keras.layers.Dense(2)(x)).save(tmp_path / "any.keras")
    with pytest.raises(
        InvalidOptionError, match=r"fixed sizes of input image.*--shape image=1,SIZE"
    ):
        export(
            tmp_path / "any.keras", target="onnx", precision="float32", preprocessing="unit",
            out=tmp_path / "out",
        )  # fmt: skip


def test_the_api_names_what_it_expects(place: Path) -> None:
    with pytest.raises(
        InvalidOptionError, match="expected target tflite, onnx, tflite-micro, got 'tvm'"
    ):
        export(place / "net.keras", target="tvm", precision="int8", preprocessing="unit")
    with pytest.raises(InvalidOptionError, match="expected precision .*got 'int3'"):
        export(place / "net.keras", target="onnx", precision="int3", preprocessing="unit")


def test_help_has_examples(edgekit: Callable[..., Done]) -> None:
    done = edgekit("export", "--help")
    assert done.status == 0
    assert "examples:" in done.stdout


def _graph(path: Path) -> Any:
    import onnx as library

    return library.load(path).graph


def _plain() -> Any:
    from ai_edge_litert.interpreter import OpResolverType

    return OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def test_strict_refuses_what_stays_float(tmp_path: Path) -> None:
    keras = tf_keras()
    image = keras.Input((8, 8, 3), name="image")
    divided = keras.layers.Conv2D(4, 3, activation="softsign")(image)
    keras.Model(image, _head(keras, divided)).save(tmp_path / "softsign.keras")
    np.savez(tmp_path / "set.npz", x=_pixels(8, (8, 8, 3)))
    options: dict[str, Any] = {
        "target": "onnx",
        "precision": "int8",
        "calibration": str(tmp_path / "set.npz"),
        "preprocessing": "unit",
    }
    with pytest.raises(ExecutionError, match="compute in float: .*Div"):
        export(tmp_path / "softsign.keras", strict=True, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    written = export(tmp_path / "softsign.keras", out=tmp_path / "out", **options)
    assert written.manifest.execution is not None
    assert any(name.startswith("Div") for name in written.manifest.execution.floats)


def test_strict_takes_an_integer_model(small: Path, tmp_path: Path) -> None:
    for target in ("tflite", "onnx"):
        written = export(
            small / "small.keras",
            target=target,
            precision="int8",
            calibration=str(small / "set.npz"),
            preprocessing="unit",
            strict=True,
            out=tmp_path / target,
        )
        execution = written.manifest.execution
        assert execution is not None
        assert execution.floats == ()
        assert execution.isa == environment.describe().isa
        assert execution.provider == ("XNNPACK" if target == "tflite" else "CPUExecutionProvider")
        left = {kind.split()[0] for kind in execution.own_kernels}
        assert left == ({"SOFTMAX"} if target == "tflite" else set())  # XNNPACK has float ones only


def test_a_table_without_its_images_corrects_biases_and_says_so(
    small: Path, tmp_path: Path
) -> None:
    (tmp_path / "set.npz").write_bytes((small / "set.npz").read_bytes())
    table = calibrate(
        small / "small.keras", dataset=str(tmp_path / "set.npz"), preprocessing="unit"
    )
    (tmp_path / "table.json").write_text(table.dumps())
    (tmp_path / "set.npz").unlink()
    options: dict[str, Any] = {
        "target": "tflite",
        "precision": "int8",
        "calibration": str(tmp_path / "table.json"),
        "preprocessing": "unit",
    }
    alone = export(small / "small.keras", out=tmp_path / "alone", **options)
    assert alone.manifest.quantization is not None
    assert "without images to judge by" in alone.manifest.quantization.way
    assert alone.manifest.quantization.tried == {}
    judged = export(
        small / "small.keras", dataset=str(small / "set.npz"), out=tmp_path / "judged", **options
    )
    assert judged.manifest.quantization is not None
    assert "nearest rounding" in judged.manifest.quantization.tried


def test_correction_none_rounds_to_nearest(small: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "target": "tflite",
        "precision": "int8",
        "calibration": str(small / "set.npz"),
        "preprocessing": "unit",
        "device": "x86-vnni",
    }
    written = export(small / "small.keras", correction="none", out=tmp_path / "nearest", **options)
    assert written.manifest.quantization is not None
    assert written.manifest.quantization.way == "nearest rounding"
    canonical = Graph(convert.from_keras(tf_keras().models.load_model(small / "small.keras")))
    stored = tflite_integers.read_file(written.model_path.read_bytes())
    for layer in canonical.layers:
        found = stored.layers[layer.output]
        shape = [1] * found.weights.ndim
        shape[layer.axis] = -1
        exact = canonical.constant(layer.weights) / found.weight_scale.reshape(shape)
        assert np.abs(exact - found.weights).max() <= 0.5 + 1e-4


def test_weights_of_the_default_device_cannot_saturate(
    exported: dict[tuple[str, str], Artifact], place: Path
) -> None:
    for target in ("tflite", "onnx"):
        written = exported[target, "int8"]
        assert written.manifest.device == "generic"
        assert any("would saturate" in note for note in written.manifest.notes)
    content = exported["tflite", "int8"].model_path.read_bytes()
    stored = tflite_integers.read_file(content)
    graph = Graph(content)
    for layer in graph.layers:
        if pairs_products(graph, layer):
            assert predict(layer, stored.layers[layer.output]).pairs == 0


@pytest.mark.slow
def test_export_for_avx2_names_the_layers_that_would_saturate(
    place: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    done = edgekit(
        "export", place / "net.keras", "--preprocessing", "unit", "--target", "onnx",
        "--precision", "int8", "--calibration", place / "set.npz", "--device", "x86-avx2",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    found = done.document["quantization"]["saturating"]
    assert len(found) > 20 and all(pairs > 0 for pairs in found.values())
    for layer, pairs in found.items():
        short = short_name(layer)
        assert any(short in line and f"{pairs:,}" in line for line in done.stderr.splitlines())
    assert not any("depthwise" in layer for layer in found)
    assert "so that no pair of products can" in " ".join(done.stderr.split())
