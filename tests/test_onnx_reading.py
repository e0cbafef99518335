"""Float ONNX files as others write them: sizes, types, batches, states, constants among inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from exported import answers, decibels, export
from onnx import TensorProto, helper, numpy_helper

from edgekit.base.errors import (
    EdgekitError,
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
)
from edgekit.benchmark import benchmark
from edgekit.calibrate import calibrate
from edgekit.graph import onnx
from edgekit.records.artifact import Artifact
from edgekit.sources import onnx_source
from edgekit.sources.float_model import load

Sizes = Mapping[str, Sequence[Any]]


def _drawn(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def _save(
    path: Path,
    nodes: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    inputs: Sizes,
    outputs: Sizes,
    *,
    opset: int = 17,
    version: int = 8,
    listed: bool = False,
    kind: int = TensorProto.FLOAT,
    kinds: Mapping[str, int] | None = None,
) -> Path:
    """Write a graph; floating constants get the type ``kind``."""

    def value(name: str, sizes: Sequence[Any]) -> Any:
        return helper.make_tensor_value_info(name, (kinds or {}).get(name, kind), sizes)

    stored = []
    for name, values in constants.items():
        tensor = numpy_helper.from_array(np.asarray(values), name)
        if np.asarray(values).dtype.kind == "f":
            real = np.asarray(values, np.float32)
            tensor = helper.make_tensor(name, kind, real.shape, real.ravel().tolist())
        stored.append(tensor)
    entries = [value(name, sizes) for name, sizes in inputs.items()]
    if listed:
        entries += [
            helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
            for each in stored
        ]
    ends = [value(name, sizes) for name, sizes in outputs.items()]
    graph = helper.make_graph(list(nodes), "net", entries, ends, stored)
    imports = [helper.make_opsetid("", opset)]
    package.save(helper.make_model(graph, opset_imports=imports, ir_version=version), path)
    return path


def _picture_net(path: Path, sizes: Sequence[Any], **given: Any) -> Path:
    """Two convolutions and a dense layer behind a global mean."""
    constants = {
        "w": _drawn(1, 6, 3, 3, 3, scale=0.3),
        "b": _drawn(2, 6, scale=0.2),
        "v": _drawn(3, 8, 6, 3, 3, scale=0.2),
        "u": _drawn(4, 8, 4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "first", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "v"], ["d"], "second", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "u"], ["y"], "dense"),
    ]
    return _save(path, nodes, constants, {"x": sizes}, {"y": [sizes[0], 4]}, **given)


def _made(path: Path, precision: str, arrays: Mapping[str, np.ndarray], **given: Any) -> Artifact:
    out = path.parent / f"{path.stem}-{precision}"
    np.savez(path.with_suffix(".npz"), **arrays)
    return export(
        path,
        target="onnx",
        precision=precision,
        preprocessing="none",
        calibration=str(path.with_suffix(".npz")) if precision == "int8" else None,
        out=out,
        force=True,
        **given,
    )


@pytest.mark.parametrize(
    "form, alpha, beta",
    [((10,), 1.0, 1.0), ((1, 10), 1.0, 1.0), ((), 1.0, 0.5), ((1,), 2.0, 1.0), ((1, 10), 0.5, 3.0)],
)
def test_a_bias_of_any_shape(
    form: tuple[int, ...], alpha: float, beta: float, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense", alpha=alpha, beta=beta),
    ]
    path = _save(
        tmp_path / "net.onnx",
        nodes,
        {"w": _drawn(1, 6, 10), "b": np.full(form, 3.0) + _drawn(2, *form)},
        {"x": ["N", 6]},
        {"y": ["N", 10]},
    )
    x = _drawn(3, 40, 6)
    written = _made(path, "int8", {"x": x})
    exact = onnx.session(path).run(None, {"x": x})[0]
    assert decibels(exact, answers(written, {"x": x})["y"]) > 33
    stored = onnx.stored_constants(onnx.load(written.model_path))
    biases = [
        values.shape for values in stored.values() if values.dtype == np.int32 and values.size
    ]
    assert (10,) in biases


def test_a_summand_for_each_row_is_no_bias(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense")]
    constants = {"w": _drawn(1, 6, 5), "b": _drawn(2, 3, 5)}
    path = _save(tmp_path / "net.onnx", nodes, constants, {"x": [3, 6]}, {"y": [3, 5]})
    model = onnx.load(path)
    from edgekit.graph import onnx_forms

    onnx_forms.for_integers(model)
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Add"]
    x = _drawn(4, 3, 6)
    one, other = (
        onnx.session(each).run(None, {"x": x})[0] for each in (path, model.SerializeToString())
    )
    np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize("opset, version, listed", [(7, 3, True), (9, 4, False), (9, 4, True)])
def test_constants_that_are_listed_among_the_inputs(
    opset: int, version: int, listed: bool, tmp_path: Path
) -> None:
    constants = {
        "w": _drawn(1, 6, 1, 3, 3, scale=0.4),
        "scale": np.abs(_drawn(2, 6)) + 0.5,
        "offset": _drawn(3, 6),
        "mean": _drawn(4, 6),
        "variance": np.abs(_drawn(5, 6)) + 0.5,
        "p": _drawn(6, 6, 1, 1),
        "v": _drawn(7, 96, 10, scale=0.2),
        "b": _drawn(8, 1, 10),
        "sizes": np.array([1, 96]),
    }
    node = helper.make_node
    normal = ["a", "scale", "offset", "mean", "variance"]
    nodes = [
        node("Conv", ["x", "w"], ["a"], "conv", auto_pad="SAME_UPPER", kernel_shape=[3, 3]),
        node("BatchNormalization", normal, ["n"], "norm"),
        node("Clip", ["n"], ["c"], "clip", min=0.0, max=6.0),
        node("Add", ["c", "p"], ["d"], "plus"),
        node("MaxPool", ["d"], ["e"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Dropout", ["e"], ["f", "mask"], "drop", ratio=0.5),
        node("Reshape", ["f", "sizes"], ["g"], "flat"),
        node("Gemm", ["g", "v", "b"], ["h"], "dense"),
        node("Softmax", ["h"], ["y"], "classes", axis=1),
    ]
    path = _save(
        tmp_path / "zoo.onnx",
        nodes,
        constants,
        {"x": [1, 1, 8, 8]},
        {"y": [1, 10]},
        opset=opset,
        version=version,
        listed=listed,
    )
    x = _drawn(9, 40, 1, 8, 8)
    session = onnx.session(path)
    exact = np.concatenate([session.run(["y"], {"x": x[i : i + 1]})[0] for i in range(40)])
    for precision, bound in (("float32", 100), ("float16", 50), ("int8", 25)):
        written = _made(path, precision, {"x": x})
        assert [spec.name for spec in written.manifest.signature.inputs] == ["x"]
        assert decibels(exact, answers(written, {"x": x})["y"]) > bound
        stored = {
            values.dtype for values in onnx.stored_constants(onnx.load(written.model_path)).values()
        }
        assert (np.dtype(np.float16) in stored) == (precision == "float16")


def test_a_float16_file_has_something_in_float16(tmp_path: Path) -> None:
    constants = {"w": _drawn(1, 6, 4, scale=1e4), "u": _drawn(2, 4, 3, scale=1e4)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "u"], ["y"], "second"),
    ]
    path = _save(tmp_path / "net.onnx", nodes, constants, {"x": ["N", 6]}, {"y": ["N", 3]})
    with pytest.raises(InvalidModelError, match="becomes float16: MatMul first would overflow"):
        _made(path, "float16", {"x": _drawn(3, 4, 6)})


@pytest.mark.parametrize(
    "kind, name",
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.BFLOAT16, "bfloat16"),
    ],
)
def test_other_float_types_become_float32(kind: int, name: str, tmp_path: Path) -> None:
    path = _picture_net(tmp_path / "net.onnx", ["N", 3, 12, 12], kind=kind)
    x = np.random.default_rng(5).integers(0, 3, (40, 3, 12, 12), dtype=np.uint8)
    read = onnx_source.read(path)
    assert {values.dtype for values in onnx.stored_constants(read.model).values()} == {
        np.dtype(np.float32)
    }
    assert len(read.notes) == 1 and f"the file's {name} numbers" in read.notes[0]
    exact = onnx.session(read.model.SerializeToString()).run(None, {"x": x.astype(np.float32)})[0]
    for precision, bound in (("float32", 100), ("int8", 25)):
        written = _made(path, precision, {"x": x})
        assert read.notes[0] in written.manifest.notes
        assert decibels(exact, answers(written, {"x": x.astype(np.float32)})["y"]) > bound
    if name != "bfloat16":  # for which onnxruntime has hardly a kernel on the CPU
        from edgekit.compare import Options, compare

        np.savez(tmp_path / "test.npz", x=x, y=exact.argmax(axis=1))
        report = compare([written.path], Options(dataset=str(tmp_path / "test.npz"), rounds=1))
        assert report.artifacts[0].metrics["sqnr"].value > 25


def test_weights_beyond_float32_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")]
    kind = TensorProto.DOUBLE
    path = _save(tmp_path / "net.onnx", nodes, {}, {"x": [1, 2]}, {"y": [1, 2]}, kind=kind)
    model = package.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.full((2, 2), 1e200), "w"))
    package.save(model, path)
    with pytest.raises(InvalidModelError, match="weights that float32 can hold, got 1e\\+200 in w"):
        load(path, preprocessing="none")


def test_sizes_of_free_axes(tmp_path: Path, edgekit: Callable[..., Any]) -> None:
    path = _picture_net(tmp_path / "net.onnx", ["batch", 3, "height", "width"])
    pixels = np.random.default_rng(6).integers(0, 256, (40, 20, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=pixels, y=np.arange(40) % 4)
    given = ["--preprocessing", "unit", "--target", "onnx", "--precision"]
    refused = edgekit("export", path, *given, "float32", "--out", tmp_path / "no")
    assert refused.status == 2 and not (tmp_path / "no").exists()
    assert "free in axis 2, 3; pass --shape x=1,3,SIZE,SIZE" in refused.error
    bad = {
        "x=1,4,20,16": "expected 3 in axis 1, which",
        "x=1,3,20": "expected 4 sizes, as [-1, 3, -1, -1], got 3",
        "z=1,3,20,16": "expected an input of",
        "x=1,3,20,0": "expected NAME=1,3,320,320",
    }
    for word, message in bad.items():
        refused = edgekit(
            "export", path, *given, "float32", "--shape", word, "--out", tmp_path / "n"
        )
        assert refused.status == 2 and message in refused.error, refused.error
    done = edgekit(
        "export", path, *given, "int8", "--shape", "1,3,20,16", "--calibration",
        tmp_path / "set.npz", "--out", tmp_path / "int8",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    made = Artifact.load(tmp_path / "int8")
    assert made.manifest.source is not None
    assert made.manifest.source.shapes == {"x": (1, 3, 20, 16)}
    assert made.manifest.signature.inputs[0].shape == (1, 3, 20, 16)
    assert made.manifest.signature.outputs[0].shape == (1, 4)
    done = edgekit(
        "compare", made.path, "--data", tmp_path / "set.npz", "--rounds", 1,
        "--out", tmp_path / "r.json", "--allow-chance",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert done.document["artifacts"]["int8"]["sqnr"] > 25
    table = calibrate(
        path, dataset=str(tmp_path / "set.npz"), preprocessing="unit", shapes={"": (1, 3, 20, 16)}
    )
    (tmp_path / "table.json").write_text(table.dumps())
    again = export(
        path,
        target="onnx",
        precision="int8",
        preprocessing="unit",
        shapes={"x": (1, 3, 20, 16)},
        calibration=str(tmp_path / "table.json"),
        out=tmp_path / "again",
    )
    assert again.sha256 == made.sha256
    done = edgekit(
        "data", "check", path, "--preprocessing", "unit", "--shape", "x=1,3,20,16", "--data",
        tmp_path / "set.npz",
    )  # fmt: skip
    assert done.status in (0, 1) and done.document["images"] == 40, done.stderr


def test_axes_of_one_name_have_one_size(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "dense"),
        helper.make_node("Add", ["a", "z"], ["y"], "sum"),
    ]
    inputs = {"x": ["rows", 4], "z": ["rows", 3]}
    path = _save(tmp_path / "net.onnx", nodes, {"w": _drawn(1, 4, 3)}, inputs, {"y": ["rows", 3]})
    found = load(path, preprocessing="none", shapes={"x": (1, 4)})
    assert [spec.shape for spec in found.inputs] == [(1, 4), (1, 3)]
    with pytest.raises(InvalidOptionError, match="--shape z: expected 1 in the axis rows, as in x"):
        load(path, preprocessing="none", shapes={"x": (1, 4), "z": (2, 3)})
    with pytest.raises(InvalidOptionError, match="has the inputs x, z; say which"):
        load(path, preprocessing="none", shapes={"": (1, 4)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "saved_model", "tflite"])
def test_sizes_of_free_axes_of_other_files(kind: str, tmp_path: Path) -> None:
    from edgekit.compare import Options, compare
    from edgekit.sources.keras import keras_3, tensorflow

    keras, tf = keras_3(), tensorflow()
    keras.utils.set_random_seed(2)
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(6, 3, 2, "same", activation="relu")(image)
    x = keras.layers.Conv2D(8, 3)(x)
    body = keras.Model(image, x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    dense = keras.layers.Dense(4, activation="softmax", name="classes")
    model, path = keras.Model(image, dense(x)), tmp_path / "net.keras"
    if kind == "keras":
        model.save(path)
    else:
        path, module = tmp_path / "net", tf.Module()
        module.body, module.dense = body, dense

        def forward(image: Any) -> Any:
            found = body(image)
            size = tf.shape(found)
            return dense(tf.reduce_mean(tf.reshape(found, [1, size[1] * size[2], 8]), axis=1))

        spec = tf.TensorSpec([1, None, None, 3], tf.float32, name="image")
        module.forward = tf.function(forward, input_signature=[spec])
        tf.saved_model.save(module, str(path), module.forward)
    if kind == "tflite":
        from tensorflow.python.framework.convert_to_constants import (
            convert_variables_to_constants_v2,
        )

        frozen = convert_variables_to_constants_v2(module.forward.get_concrete_function())
        content = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
        path = tmp_path / "net.tflite"
        path.write_bytes(content)
    with pytest.raises(InvalidOptionError, match=r"=1,SIZE,SIZE,3 with the sizes"):
        load(path, preprocessing="unit")
    name = load(path, preprocessing="unit", shapes={"": (1, 16, 12, 3)}).inputs[0].name
    with pytest.raises(InvalidOptionError, match=f"{name}: expected 3 in axis 3, .* got 1"):
        load(path, preprocessing="unit", shapes={name: (1, 16, 12, 1)})
    pixels = np.random.default_rng(6).integers(0, 256, (24, 16, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=pixels)
    exact = model.predict(pixels / np.float32(255), verbose=0)
    made = [
        export(
            path,
            target=target,
            precision=precision,
            preprocessing="unit",
            shapes={name: (1, 16, 12, 3)},
            calibration=str(tmp_path / "set.npz") if precision == "int8" else None,
            correction="none" if precision == "int8" else "auto",
            out=tmp_path / f"{target}-{precision}",
        )
        for target, precision in (("tflite", "float32"), ("onnx", "float32"), ("tflite", "int8"))
    ]
    for each, bound in zip(made, (90, 90, 30), strict=True):
        (found,) = answers(each, {name: pixels / np.float32(255)}).values()
        assert decibels(exact, found) > bound
    report = compare([made[2].path], Options(dataset=str(tmp_path / "set.npz"), rounds=1))
    assert report.artifacts[0].metrics["sqnr"].value > 30


def _recurrent(path: Path) -> Path:
    """A cell with two layers of state, and a rate that chooses its gain."""
    constants = {"w": _drawn(1, 6, 5, scale=0.4), "v": _drawn(2, 5, 5, scale=0.4),
                 "u": _drawn(3, 10, 2), "high": np.array(100), "two": np.array(2.0)}  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Split", ["state"], ["h", "k"], "parts", axis=0),
        node("Gemm", ["x", "w"], ["a"], "in"),
        node("Squeeze", ["h", "zero"], ["h1"], "one"),
        node("Gemm", ["h1", "v"], ["b"], "back"),
        node("Add", ["a", "b"], ["c"], "sum"),
        node("Relu", ["c"], ["d"], "next"),
        node("Squeeze", ["k", "zero"], ["k1"], "other"),
        node("Concat", ["d", "k1"], ["e"], "both", axis=1),
        node("Gemm", ["e", "u"], ["y"], "out"),
        node("Unsqueeze", ["d", "zero"], ["d3"], "wide"),
        node("Concat", ["d3", "h"], ["stateN"], "states", axis=0),
        node("Greater", ["rate", "high"], ["fast"], "faster"),
        node("Cast", ["fast"], ["gain"], "real", to=TensorProto.FLOAT),
        node("Mul", ["y0", "gain"], ["y"], "scaled"),
    ]
    nodes[8].output[0] = "y0"
    constants["zero"] = np.array([0])
    return _save(
        path,
        nodes,
        constants,
        {"x": ["batch", 6], "state": [2, "batch", 5], "rate": []},
        {"y": ["batch", 2], "stateN": ["n", "batch", 5]},
        kinds={"rate": TensorProto.INT64},
    )


def test_numbers_near_0_differ_by_rounding_alone(tmp_path: Path) -> None:
    """The whole output of a detector on noise may be smaller than the rounding of one sigmoid."""
    models = []
    for offset in (0.0, 2e-7, 1e-4):
        constants = {"w": np.full((1, 1), 1e-6), "b": np.full(1, offset)}
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense")]
        path = _save(tmp_path / "net.onnx", nodes, constants, {"x": ["N", 1]}, {"y": ["N", 1]})
        models.append(onnx.load(path))
    assert onnx_source.differ(models[0], models[1]) is None
    assert onnx_source.differ(models[0], models[2]) == "y"


def test_only_pictures_need_their_preprocessing(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    path = _save(tmp_path / "net.onnx", nodes, {}, {"x": ["N", 6, 40]}, {"y": ["N", 6, 40]})
    loaded = load(path)
    assert loaded.preprocessing.name == "none"
    assert any("preprocessing none" in note for note in loaded.notes)
    for sizes in ([1, 3, 8, 8], [1, 8, 8, 3]):
        path = _save(tmp_path / "net.onnx", nodes, {}, {"x": sizes}, {"y": sizes})
        with pytest.raises(InvalidOptionError, match=r"pixels of a picture; .* symmetric \(-1 to"):
            load(path)


def test_states_and_scalars_are_inputs_without_a_batch(tmp_path: Path) -> None:
    from edgekit.compare import Options, compare

    path = _recurrent(tmp_path / "cell.onnx")
    arrays = {
        "x": _drawn(4, 40, 6),
        "state": np.abs(_drawn(5, 40, 2, 1, 5)),
        "rate": np.full(40, 16000),
    }
    with pytest.raises(InvalidOptionError, match=r"state, got \[2, -1, 5\].*state=2,SIZE,5"):
        load(path, preprocessing="none")
    shapes = {"state": (2, 1, 5)}
    found = load(path, preprocessing="none", shapes=shapes)
    assert [(spec.shape, spec.batched) for spec in found.inputs] == [
        ((1, 6), True), ((2, 1, 5), False), ((), False)
    ]  # fmt: skip
    needed = r"x float32 \[N, 6\], state float32 \[N, 2, 1, 5\], rate int64 \[N\]"
    with pytest.raises(InvalidDataError, match=needed):
        _made(path, "int8", {"x": arrays["x"]}, shapes=shapes)
    session = onnx.session(path)
    runs = [
        session.run(None, {"x": arrays["x"][i : i + 1], "state": arrays["state"][i],
                           "rate": np.array(16000)})
        for i in range(40)
    ]  # fmt: skip
    exact = {
        "y": np.concatenate([one for one, _ in runs]),
        "stateN": np.stack([b for _, b in runs]),
    }
    written = {}
    for precision, bound in (("float32", 100), ("float16", 50), ("int8", 28)):
        written[precision] = _made(path, precision, arrays, shapes=shapes)
        got = answers(written[precision], arrays)
        for name, values in exact.items():
            assert got[name].shape == values.shape
            assert decibels(values, got[name]) > bound
    report = compare(
        [each.path for each in written.values()],
        Options(dataset=str(path.with_suffix(".npz")), rounds=1),
    )
    for result, bound in zip(report.artifacts, (100, 50, 28), strict=True):
        assert result.metrics["sqnr"].value > bound
    assert benchmark(written["int8"], seconds=0.1).metrics["latency_p50"].value > 0


def _flat_net(path: Path, batch: int, *, mixed: bool = False) -> Path:
    """A convolution, a Reshape with its batch in it, a dense layer; samples may be mixed."""
    constants = {"w": _drawn(1, 4, 1, 3, 3), "u": _drawn(2, 144, 3), "s": np.array([batch, 144])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Reshape", ["a", "s"], ["b"], "flat"),
        helper.make_node("MatMul", ["b", "u"], ["c"], "dense"),
    ]
    if mixed:
        nodes.append(helper.make_node("Softmax", ["c"], ["y"], "over", axis=0))
    else:
        nodes.append(helper.make_node("Relu", ["c"], ["y"], "relu"))
    return _save(path, nodes, constants, {"x": [batch, 1, 8, 8]}, {"y": [batch, 3]})


def test_a_fixed_batch_becomes_one_sample(tmp_path: Path) -> None:
    from edgekit.compare import Options, compare

    path = _flat_net(tmp_path / "two.onnx", 2)
    x = _drawn(3, 41, 1, 8, 8)
    made = [_made(path, precision, {"x": x}) for precision in ("float32", "int8")]
    assert all(each.manifest.signature.inputs[0].shape == (1, 1, 8, 8) for each in made)
    assert "the file's batch of 2 became 1" in made[0].manifest.notes
    (exact,) = onnx.session(path).run(None, {"x": x[:2]})
    assert decibels(exact, answers(made[0], {"x": x[:2]})["y"]) > 100
    np.savez(tmp_path / "test.npz", x=x)
    report = compare(
        [each.path for each in made], Options(dataset=str(tmp_path / "test.npz"), rounds=1)
    )
    assert [each.metrics["sqnr"].value > bound for each, bound in
            zip(report.artifacts, (100, 28), strict=True)] == [True, True]  # fmt: skip


def test_a_batch_that_cannot_be_taken_apart_is_refused(tmp_path: Path) -> None:
    path = _flat_net(tmp_path / "mixed.onnx", 2, mixed=True)
    with pytest.raises(
        InvalidModelError, match=r"expected one sample per run, got 2 in x.*x\[:1\]"
    ):
        load(path, preprocessing="none")


@pytest.mark.parametrize(
    "nodes, inputs, message",
    [
        (
            [helper.make_node("ReduceSum", ["x"], ["y"], "sum", keepdims=0)],
            {"x": None},
            "expected sizes of input x, the file has none; pass --shape x=1,SIZE",
        ),
        (
            [helper.make_node("Constant", [], ["y"], "one", value_floats=[1.0, 2.0])],
            {},
            "expected an input, the model has none",
        ),
    ],
)
def test_a_file_that_cannot_be_fed_is_refused(
    nodes: list[Any], inputs: Sizes, message: str, tmp_path: Path
) -> None:
    path = _save(tmp_path / "net.onnx", nodes, {}, inputs, {"y": [1]})
    with pytest.raises(EdgekitError, match=message):
        load(path, preprocessing="none")


def test_outputs_whose_size_depends_on_values_are_refused(tmp_path: Path) -> None:
    constants = {"w": _drawn(1, 6, 5)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "dense"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("NonZero", ["b"], ["places"], "found"),
    ]
    path = _save(
        tmp_path / "net.onnx", nodes, constants, {"x": [1, 6]}, {"places": [2, "many"]},
        kinds={"places": TensorProto.INT64},
    )  # fmt: skip
    with pytest.raises(InvalidModelError, match="size of output places depends on the values"):
        _made(path, "float32", {"x": _drawn(2, 40, 6)})


def test_an_old_operator_set_becomes_a_newer_one(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["a"], "dense", broadcast=1)]
    nodes.append(helper.make_node("Relu", ["a"], ["y"], "relu"))
    constants = {"w": _drawn(1, 6, 4), "b": _drawn(2, 4)}
    given = {"inputs": {"x": [1, 6]}, "outputs": {"y": [1, 4]}, "opset": 6, "version": 3}
    path = _save(tmp_path / "net.onnx", nodes, constants, listed=True, **given)
    x = _drawn(3, 40, 6)
    exact = np.maximum(x @ constants["w"] + constants["b"], 0)
    for precision, bound in (("float32", 100), ("int8", 30)):
        written = _made(path, precision, {"x": x})
        assert "the file's operator set 6 became 13" in written.manifest.notes
        assert decibels(exact, answers(written, {"x": x})["y"]) > bound


def _of_two_rates(path: Path, rate: int | None) -> Path:
    """A filter for each of two rates, whose branches take inputs of one size each; the rate is an
    input, or stored."""
    make, sizes = helper.make_node, {"slow": 4, "fast": 6}
    constants = {"known": np.array(2, np.int64)}
    branches = []
    for name, size in sizes.items():
        weights = numpy_helper.from_array(_drawn(size, size, 3), f"{name}_w")
        nodes = [make("MatMul", ["x", f"{name}_w"], [f"{name}_y"])]
        out = [helper.make_tensor_value_info(f"{name}_y", 1, [1, 3])]
        branches.append(helper.make_graph(nodes, name, [], out, [weights]))
    nodes = [
        make("Equal", ["rate", "known"], ["is_fast"]),
        make("If", ["is_fast"], ["y"], "rates", then_branch=branches[1], else_branch=branches[0]),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["n", "size"])]
    if rate is None:
        inputs.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    else:
        constants["rate"] = np.array(rate, np.int64)
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    package.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), path
    )
    return path


@pytest.mark.parametrize(("rate", "size", "branch"), [(2, 6, "then"), (1, 4, "else")])
def test_an_if_that_the_file_decides_is_its_branch(
    rate: int, size: int, branch: str, tmp_path: Path
) -> None:
    path = _of_two_rates(tmp_path / "net.onnx", rate)
    given = {"shapes": {"x": (1, size)}, "preprocessing": "none"}
    x = _drawn(7, 5, size)
    exact = x @ _drawn(size, size, 3)
    for target in ("onnx", "tflite"):
        written = export(path, target=target, precision="float32", out=tmp_path / target, **given)
        assert any("rates is decided" in n and branch in n for n in written.manifest.notes)
        assert decibels(exact, answers(written, {"x": x})["y"]) > 100
    kinds = [node.op_type for node in onnx.load(tmp_path / "onnx" / "model.onnx").graph.node]
    assert "If" not in kinds


def test_the_input_that_decides_an_if_is_named(tmp_path: Path) -> None:
    path = _of_two_rates(tmp_path / "net.onnx", None)
    with pytest.raises(InvalidModelError, match="store rate, which rates depends on, in the file"):
        load(path, preprocessing="none", shapes={"x": (1, 5)})
