"""float16 with care, its emulation, and the runners that have no device here."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from conftest import lacking
from exported import answers, decibels, export
from onnx import TensorProto, helper, numpy_helper

from edgekit.base.errors import ExecutionError, InvalidModelError, InvalidOptionError
from edgekit.graph import onnx
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.records.signature import preprocessing
from edgekit.runtimes import emulation, open_runner
from edgekit.runtimes.cuda import BoundRunner
from edgekit.runtimes.emulated import EmulatedRunner
from edgekit.runtimes.ort import OrtRunner
from edgekit.runtimes.worker import Job, Worker
from edgekit.sources.keras import tensorflow, tf_keras
from edgekit.writers import half

tf = tensorflow()

without_gpu = pytest.mark.skipif(environment.gpu() is not None, reason="a GPU is here")


def chain(*steps: tuple[str, float | None]) -> Any:
    """A model ``x [N, 3] -> y`` of operators in a row, with a constant each or none."""
    nodes, constants, name = [], [], "x"
    for i, (kind, value) in enumerate(steps):
        inputs, output = [name], "y" if i == len(steps) - 1 else f"t{i}"
        if value is not None:
            constants.append(numpy_helper.from_array(np.full(3, value, np.float32), f"c{i}"))
            inputs.append(f"c{i}")
        nodes.append(helper.make_node(kind, inputs, [output], name=f"n{i}"))
        name = output
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 3]) for end in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return package.shape_inference.infer_shapes(model)


def run(model: Any, x: np.ndarray) -> np.ndarray:
    (found,) = onnx.session(model.SerializeToString()).run(None, {"x": x})
    return np.asarray(found)


X = np.array([[0.5, 1, 2], [0.25, 1, 0.125]], np.float32)


def test_what_would_overflow_stays_float32() -> None:
    model = chain(("Mul", 1e3), ("Mul", 1e3), ("Relu", None), ("Mul", 1e-6), ("Add", 1.0))
    careless = half.converted(model)
    # The CPU provider drops the casts in between and hides what a GPU would answer.
    assert np.isfinite(run(careless, X)).all()
    assert np.isinf(run(emulation.emulate(careless)[0], X)).any()
    found = half.to_float16(model, {"x": X})
    assert found.float32_operators == ("n1", "n2", "n3")
    assert (found.largest, found.where) == (2e6, "t1")
    np.testing.assert_allclose(run(found.model, X), X + 1, rtol=2e-3)
    rounding, _ = emulation.emulate(found.model)
    np.testing.assert_allclose(run(rounding, X), X + 1, rtol=2e-3)
    assert "3 operators stay float32" in found.note(len(X))
    types = {t.data_type for t in found.model.graph.initializer}
    assert types == {TensorProto.FLOAT16, TensorProto.FLOAT}


@pytest.mark.parametrize("ends", [("Mul", 1e5), ("Add", 1e6)])
def test_an_end_beyond_float16_stays_float32(ends: tuple[str, float]) -> None:
    model = chain(("Relu", None), (ends[0], ends[1] / 20), ("Mul", 20.0))
    found = half.to_float16(model, {"x": X})
    assert np.isfinite(run(found.model, X)).all()
    np.testing.assert_allclose(run(found.model, X), run(model, X), rtol=2e-3)


def test_an_index_is_no_activation() -> None:
    """Row 60,000 of a table is beyond half of float16 as a number, and stays a whole number."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["row"], name="n0"),
        helper.make_node("Relu", ["row"], ["y"], name="n1"),
    ]
    table = np.random.default_rng(5).normal(0, 1, (60001, 2)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 2])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    ids = np.array([[60000, 7]])
    found = half.to_float16(package.shape_inference.infer_shapes(model), {"ids": ids})
    assert found.float32_operators == () and found.largest == np.abs(table[ids]).max()
    assert [t.data_type for t in found.model.graph.initializer] == [TensorProto.FLOAT16]
    (y,) = onnx.session(found.model.SerializeToString()).run(None, {"ids": ids})
    np.testing.assert_allclose(y, np.maximum(table[ids], 0), rtol=2e-3)


def test_real_numbers_that_become_indices_stay_float32() -> None:
    """Of 5001 and 5003 float16 makes 5000 and 5004, other rows of a table."""
    nodes = [
        helper.make_node("Floor", ["x"], ["low"], name="n0"),
        helper.make_node("Cast", ["low"], ["ids"], name="n1", to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["y"], name="n2"),
    ]
    table = np.random.default_rng(5).normal(0, 1, 6000).astype(np.float32)
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 2]) for end in ("x", "y")]
    stored = [numpy_helper.from_array(table, "table")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = np.array([[5001, 5003]], np.float32)
    found = half.to_float16(package.shape_inference.infer_shapes(model), {"x": x})
    assert found.float32_operators == ("n0", "n1")
    rounding, _ = emulation.emulate(found.model)
    np.testing.assert_allclose(run(rounding, x), table[[[5001, 5003]]], rtol=2e-3)


def test_integers_become_float32_where_their_reader_stays_float32() -> None:
    """A cast of the model's own is none of those that the converter puts in and takes out."""
    nodes = [
        helper.make_node("Greater", ["x", "c0"], ["over"], name="n0"),
        helper.make_node("Cast", ["over"], ["share"], name="n1", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["share", "c1"], ["wide"], name="n2"),
        helper.make_node("Add", ["share", "x"], ["narrow"], name="n3"),
        helper.make_node("Mul", ["wide", "c2"], ["small"], name="n4"),
        helper.make_node("Add", ["small", "narrow"], ["y"], name="n5"),
    ]
    constants = [
        numpy_helper.from_array(np.full(3, value, np.float32), f"c{i}")
        for i, value in enumerate((0.5, 5e4, 2e-5))
    ]
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 3]) for end in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = half.to_float16(package.shape_inference.infer_shapes(model), {"x": X})
    assert found.float32_operators == ("n2", "n4")
    np.testing.assert_allclose(run(found.model, X), run(model, X), rtol=2e-3)


def test_powers_before_a_logarithm_stay_float32_of_any_source(tmp_path: Path) -> None:
    """float16 rounds powers of a quiet tone to 0, whose logarithm is infinite."""
    keras = tf_keras()
    keras.utils.set_random_seed(0)
    tone = keras.Input((64, 2), name="tone")
    x = keras.layers.Conv1D(8, 8, 4, name="filters")(tone)
    power = keras.layers.Lambda(lambda a: tf.square(a), name="power")
    logs = keras.layers.Lambda(lambda a: tf.math.log(a + 1e-10), name="logs")
    model = keras.Model(tone, keras.layers.Dense(3)(logs(power(x))))
    tf.saved_model.save(model, str(tmp_path / "net"))
    tones = np.random.default_rng(0).normal(0, 1e-3, (24, 64, 2)).astype(np.float32)
    tones[:, :, 1] = 0
    np.savez(tmp_path / "tones.npz", x=tones)
    written = export(
        tmp_path / "net", target="onnx", precision="float16", preprocessing="none",
        calibration=str(tmp_path / "tones.npz"), out=tmp_path / "half",
    )  # fmt: skip
    kinds = written.manifest.execution
    assert kinds is not None and kinds.kernels["Log"] == 1
    exact = model(tones).numpy()
    found = next(iter(answers(written, {"tone": tones}).values()))
    assert decibels(exact, found) > 50


def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(InvalidModelError, match="up to 65504, got 7e.04 in c0"):
        half.to_float16(chain(("Mul", 7e4)), {"x": X})


def test_a_model_that_overflows_in_float32_is_refused() -> None:
    model = chain(("Mul", 6e4), *[("Mul", 6e4)] * 9)
    with pytest.raises(InvalidModelError, match="NaN or infinity in"):
        half.to_float16(model, {"x": X})


def test_an_infinite_border_and_factors_of_a_resize_are_valid_in_float16() -> None:
    constants = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "least": np.array(-np.inf, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32), "w": np.ones((2, 2, 1, 1), np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Pad", ["x", "pads", "least"], ["p"], "pad"),
        helper.make_node("MaxPool", ["p"], ["m"], "pool", kernel_shape=[3, 3]),
        helper.make_node("Conv", ["m", "w"], ["c"], "conv"),
        helper.make_node("Resize", ["c", "", "scales"], ["y"], "up"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, size, size])
        for name, size in (("x", 4), ("y", 8))
    ]
    stored = [numpy_helper.from_array(each, name) for name, each in constants.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model = package.shape_inference.infer_shapes(model)
    found = half.to_float16(model, {"x": np.ones((3, 2, 4, 4), np.float32)})
    package.checker.check_model(found.model, full_check=True)
    assert not found.float32_operators and found.largest == 2


def test_the_emulation_rounds_after_every_operator() -> None:
    """1 + 2^-11 is a tie and goes to 1 in float16, twice; in float32 the two sum up to 2^-10."""
    tie = 2.0**-11
    model = chain(("Add", tie), ("Add", tie), ("Mul", 1.0))
    one = np.ones((1, 3), np.float32)
    found = half.to_float16(model, {"x": one})
    rounding, casts = emulation.emulate(found.model)
    assert casts == 8  # the input and three operators, both ways
    np.testing.assert_array_equal(run(rounding, one), one)
    assert (run(model, one) == 1 + 2 * tie).all()


def test_the_emulation_is_that_of_single_operators(small: Path, tmp_path: Path) -> None:
    """Each operator alone in ONNX's reference implementation, rounded by numpy in between."""
    written = export(
        small / "small.keras",
        target="onnx",
        precision="float16",
        preprocessing="unit",
        out=tmp_path / "half",
    )
    model = onnx.load(written.model_path)
    pixels = np.load(small / "set.npz")["x"][:4]
    values = preprocessing("unit").apply(pixels)
    expected = one_by_one(model, {model.graph.input[0].name: values})
    with EmulatedRunner(written.model_path, threads=1, options={}) as runner:
        entry, end = runner.signature.inputs[0], runner.signature.outputs[0]
        found = runner.run({entry.name: values})[end.name]
        assert runner.describe().emulated
    np.testing.assert_array_equal(found, found.astype(np.float16))
    # another order of summation may tip a rounding over
    np.testing.assert_allclose(found, expected, rtol=4e-3)


def one_by_one(model: Any, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    values: dict[str, Any] = {
        t.name: numpy_helper.to_array(t).astype(np.float32)
        if t.data_type == TensorProto.FLOAT16
        else numpy_helper.to_array(t)
        for t in model.graph.initializer
    }
    values.update(feed)
    for node in model.graph.node:
        if node.op_type == "Cast":
            found = [values[node.input[0]]]
        else:
            used = [name for name in node.input if name]
            inputs = [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None
                )
                for name in used
            ]
            outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in node.output]
            graph = helper.make_graph([node], "one", inputs, outs)
            one = helper.make_model(graph, opset_imports=model.opset_import)
            found = ReferenceEvaluator(one).run(None, {name: values[name] for name in used})
        for name, value in zip(node.output, found, strict=True):
            values[name] = value.astype(np.float16).astype(np.float32)
    return np.asarray(values[model.graph.output[0].name])


def test_images_of_float16(small: Path, tmp_path: Path) -> None:
    def made(**options: Any) -> Artifact:
        options = {"target": "onnx", "precision": "float16", **options}
        return export(small / "small.keras", preprocessing="unit", **options)

    written = made(calibration=str(small / "set.npz"), out=tmp_path / "a")
    assert any("largest activation of 40 images" in note for note in written.manifest.notes)
    with pytest.raises(InvalidOptionError, match="float16 needs images.*got the table"):
        made(calibration="table.json", out=tmp_path / "b")
    with pytest.raises(InvalidOptionError, match="--calibration is for int8"):
        made(calibration=str(small / "set.npz"), target="tflite", out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_float32_file_has_nothing_to_emulate(artifacts: dict[str, Path]) -> None:
    model = Artifact.load(artifacts["onnx-float32"]).model_path
    with pytest.raises(InvalidOptionError, match="holds no float16"):
        EmulatedRunner(model, threads=1, options={})


def test_io_binding_answers_as_a_plain_session(artifacts: dict[str, Path]) -> None:
    """The runner for CUDA on the CPU provider: the same calls, and marked as CPU."""
    model = Artifact.load(artifacts["onnx-float32"]).model_path
    values = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    with (
        OrtRunner(model, threads=1, options={}) as plain,
        BoundRunner(model, threads=1, options={}, provider=onnx.CPU) as bound,
    ):
        assert bound.signature == plain.signature
        feed = {plain.signature.inputs[0].name: values}
        expected, found = plain.run(feed), bound.run(feed)
        bound.prepared(feed)()
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])
        ran = bound.describe()
        assert (ran.device, ran.provider) == ("cpu", onnx.CPU)
        assert "52 Conv" in ran.notes[0]


def test_runners_take_and_give_tensors_of_any_dtype(tmp_path: Path) -> None:
    """Two floats, tokens, bytes and a mask in; half of it computed in float16, two kinds out."""
    kinds = {"x": 1, "h": 10, "tokens": 7, "bytes": 2, "mask": 9}
    table = numpy_helper.from_array(
        np.random.default_rng(0).normal(0, 1, (5, 3)).astype(np.float16), "table"
    )
    half_, single, whole = ({"to": to} for to in (10, 1, 6))
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["x"], "a", half_),
        ("Gather", ["table", "tokens"], "b", {"axis": 0}),
        ("Cast", ["bytes"], "c", half_),
        ("Mul", ["a", "b"], "d", {}),
        ("Add", ["d", "c"], "e", {}),
        ("Add", ["e", "h"], "f", {}),
        ("Where", ["mask", "f", "h"], "half", {}),
        ("Cast", ["half"], "y", single),
        ("Cast", ["half"], "n", whole),
    ]
    nodes = [
        helper.make_node(kind, inputs, [output], name=output, **form)
        for kind, inputs, output, form in steps
    ]
    sizes = {"tokens": ["batch"]}
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info(n, k, sizes.get(n, ["batch", 3])) for n, k in kinds.items()],
        [
            helper.make_tensor_value_info(n, k, ["batch", 3])
            for n, k in (("y", 1), ("n", 6), ("half", 10))
        ],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    package.save(model, tmp_path / "mixed.onnx")
    random = np.random.default_rng(1)
    feed = {
        "x": random.normal(0, 3, (4, 3)).astype(np.float32),
        "h": random.normal(0, 3, (4, 3)).astype(np.float16),
        "tokens": random.integers(0, 5, 4),
        "bytes": random.integers(0, 9, (4, 3)).astype(np.uint8),
        "mask": random.integers(0, 2, (4, 3)).astype(bool),
    }
    a, b = feed["x"].astype(np.float16), numpy_helper.to_array(table)[feed["tokens"]]
    expected = (a * b + feed["bytes"].astype(np.float16)) + feed["h"]
    expected = np.where(feed["mask"], expected, feed["h"])
    with EmulatedRunner(tmp_path / "mixed.onnx", threads=1, options={}) as runner:
        found = runner.run(feed | {"h": feed["h"].astype(np.float32)})
        assert [spec.dtype for spec in runner.signature.outputs] == ["float32", "int32", "float32"]
    np.testing.assert_array_equal(found["y"], expected.astype(np.float32))
    np.testing.assert_array_equal(found["half"], found["y"])
    np.testing.assert_array_equal(found["n"], expected.astype(np.int32))
    with (
        OrtRunner(tmp_path / "mixed.onnx", threads=1, options={}) as plain,
        BoundRunner(tmp_path / "mixed.onnx", threads=1, options={}, provider=onnx.CPU) as bound,
    ):
        assert bound.signature == plain.signature and len(bound.signature.inputs) == 5
        bound.prepared(feed)()
        found, same = bound.run(feed), plain.run(feed)
        assert {n: v.dtype.name for n, v in found.items()} == {
            "y": "float32", "n": "int32", "half": "float16",
        }  # fmt: skip
        for name, values in same.items():
            np.testing.assert_array_equal(found[name], values)


@without_gpu
def test_a_session_that_fell_back_to_the_cpu_is_an_error(artifacts: dict[str, Path]) -> None:
    artifact = Artifact.load(artifacts["onnx-float32"])
    job = Job(
        "it",
        artifact.model_path,
        "onnx",
        artifact.manifest.preprocessing,
        1,
        {},
        device="cuda",
    )
    with pytest.raises(ExecutionError, match="it: expected CUDAExecutionProvider, "):
        Worker(job)


@without_gpu
def test_tensorflow_without_a_gpu_is_an_error(small: Path) -> None:
    model = small / "small.keras"
    job = Job("it", model, "keras", preprocessing("unit"), 1, {}, device="gpu")
    with pytest.raises(ExecutionError, match="it: expected a GPU, TensorFlow sees none"):
        Worker(job)


def event(kind: str, provider: str, dtype: str) -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"{kind}1_kernel_time",
        "dur": 5,
        "args": {
            "op_name": kind,
            "provider": provider,
            "output_type_shape": [{dtype: [1, 2]}],
        },
    }


def test_a_node_on_the_cpu_is_an_error_but_for_arithmetic_of_shapes() -> None:
    conv, shape = event("Conv", onnx.CUDA, "float16"), event("Gather", onnx.CPU, "int64")
    assert [node.kind for node in onnx.ran([conv, shape], onnx.CUDA)] == ["Conv", "Gather"]
    stray = event("Clip", onnx.CPU, "float16")
    with pytest.raises(ExecutionError, match="1 of 3 elsewhere, first Clip Clip1 on CPU"):
        onnx.ran([conv, shape, stray], onnx.CUDA)
    with pytest.raises(ExecutionError, match="expected every node on CPUExecutionProvider"):
        onnx.ran([conv], onnx.CPU)


@pytest.mark.slow
def test_other_layouts_and_precisions_are_the_same_model(small: Path) -> None:
    model = small / "small.keras"
    pixels = np.load(small / "set.npz")["x"][:8]
    found = {}
    for word in ("", "mixed_float16", "NCHW", "NCHW, bfloat16"):
        precision = word.split(", ")[-1] if "float" in word else "float32"
        options = {"data_format": "NCHW"} if "NCHW" in word else {}
        job = Job(word, model, "keras", preprocessing("unit"), 1, options, precision=precision)
        refusal = lacking(options.get("data_format", "NHWC"), precision, training=False)
        if refusal:
            with pytest.raises(ExecutionError, match=re.escape(refusal)):
                Worker(job)
            continue
        with Worker(job) as worker:
            found[word] = worker.outputs(pixels)
            provider = worker.loaded.runtime.provider
        assert provider == "TensorFlow CPU" + (f", {word}" if word else "")
    assert {"", "mixed_float16"} <= set(found)  # every CPU computes these
    for word, most in (("mixed_float16", 5e-3), ("NCHW", 1e-5), ("NCHW, bfloat16", 5e-2)):
        if word not in found:
            continue
        difference = np.abs(found[""] - found[word]).max()
        assert difference < most and (difference > 0 or word == "NCHW")
    with pytest.raises(InvalidOptionError, match="keras takes data_format"):
        open_runner(model, format="keras", threads=1, options={"colour": "red"})
    with pytest.raises(InvalidOptionError, match="keras runs on cpu, gpu, got 'cuda'"):
        open_runner(model, format="keras", threads=1, device="cuda")


class FakeDriver:
    """libcuda with one GPU, as far as edgekit asks."""

    def __init__(self, count: int) -> None:
        self.count = count

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, to: Any) -> int:
        to._obj.value = self.count
        return 0

    def cuDeviceGet(self, to: Any, number: int) -> int:
        return 0

    def cuDeviceGetName(self, to: Any, size: int, device: Any) -> int:
        to.value = b"NVIDIA Imagined"
        return 0

    def cuDeviceTotalMem_v2(self, to: Any, device: Any) -> int:
        to._obj.value = 2**33
        return 0


def test_the_gpu_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(1))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = environment.gpu()
    assert found is not None
    assert (found.kind, found.name, found.driver) == ("gpu", "NVIDIA Imagined", None)
    assert found.memory_bytes == 2**33
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 999.1\necho 999.1\n")
    smi.chmod(0o755)
    assert environment.gpu() is not None and environment.gpu().driver == "999.1"  # type: ignore[union-attr]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(0))
    assert environment.gpu() is None
