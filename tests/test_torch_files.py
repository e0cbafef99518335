"""ONNX files that PyTorch wrote (tests/data/torch), against what PyTorch itself answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from exported import answers, export

from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.evaluation import shards
from edgekit.graph import onnx, onnx_forms
from edgekit.quantization import saturation
from edgekit.records.artifact import Artifact
from edgekit.records.signature import preprocessing
from edgekit.runtimes.worker import Job, Worker
from edgekit.sources import float_model, saved_model
from edgekit.writers import half

FILES = Path(__file__).parent / "data" / "torch"
CALIBRATION = 24
#: By file: its inputs, least SQNR in dB in int8, operators that may compute in float.
CASES: dict[str, tuple[list[str], float, set[str]]] = {
    "mobile": (["image"], 32, set()),
    "attention": (["image"], 35, {"Add", "Concat", "Gelu", "Gemm", "LayerNormalization"}),
    "segments": (["image"], 35, {"Relu", "Resize"}),
    "unfolded": (["image"], 28, set()),
    "both": (["image", "facts"], 32, set()),
    "words": (["tokens"], 32, {"GRU"}),
    "sound": (["tone"], 40, set()),
}
#: Unrolled loops take as long as all others.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("words", "attention") else name
    for name in CASES
]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FILES / "answers.npz") as file:
        return dict(file)


def _answers(written: Artifact, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of pictures as uint8, other inputs as they are."""
    prepare = written.manifest.preprocessing
    return answers(
        written, {k: prepare.apply(v) if v.dtype == np.uint8 else v for k, v in given.items()}
    )


def _noise(exact: np.ndarray, found: np.ndarray) -> float:
    """SQNR in dB, the median of the samples: one that was never calibrated for may be cut off."""
    axes = tuple(range(1, exact.ndim))
    error = np.maximum(1e-30, ((found - exact) ** 2).sum(axes))
    return float(np.median(10 * np.log10((exact**2).sum(axes) / error)))


def _export(path: Path, precision: str, arrays: dict[str, np.ndarray], out: Path) -> Artifact:
    np.savez(out.parent / "set.npz", **{key: v[:CALIBRATION] for key, v in arrays.items()})
    return export(
        path,
        target="onnx",
        precision=precision,
        preprocessing="symmetric",
        calibration=str(out.parent / "set.npz") if precision == "int8" else None,
        allow_poor=precision == "int8",  # untrained attention on noise hardly varies
        out=out,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_torch_answers_as_torch_does(
    name: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    inputs, least, floats = CASES[name]
    given = {key: arrays[key] for key in inputs}
    for precision, bound in (("float32", 100), ("float16", 50), ("int8", least)):
        written = _export(FILES / f"{name}.onnx", precision, given, tmp_path / precision)
        found = _answers(written, {key: values[CALIBRATION:] for key, values in given.items()})
        for output, values in found.items():
            assert _noise(arrays[f"{name}.{output}"], values) > bound
    execution = written.manifest.execution
    assert execution is not None
    # which of them stay float, the samples that judge decide
    assert {each.split()[0] for each in execution.floats} <= floats


def test_integers_are_the_decided_ones_where_an_activation_was_taken_in(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """onnxruntime's writer calls what a convolution writes as it called what its ReLU6 wrote."""
    given = {"image": arrays["image"]}
    written = _export(FILES / "unfolded.onnx", "int8", given, tmp_path / "out")
    record = written.manifest.quantization
    assert record is not None and record.saturating  # with weights rounded to nearest
    model = onnx.load(written.model_path)
    constants = onnx.stored_constants(model)
    makers = {node.output[0]: node for node in model.graph.node}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(layers) == 5
    for node in layers:
        stored = constants[makers[node.input[1]].input[0]]
        assert stored.dtype == np.int8
        if onnx.attribute(node, "group", 1) == 1:
            whole = np.moveaxis(stored, 1, -1) if stored.ndim == 4 else stored
            assert not saturation.predict(node.name, whole.reshape(len(whole), -1)).pairs


def test_weights_beside_a_file_belong_to_it(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    for name in ("mobile.onnx", "mobile.onnx.data"):
        shutil.copy(FILES / name, tmp_path)
    path, data = tmp_path / "mobile.onnx", tmp_path / "mobile.onnx.data"
    written = _export(path, "float32", {"image": arrays["image"]}, tmp_path / "out")
    assert float_model.find(written, path) == (path, path, saved_model.sha256_of(path))
    assert saved_model.size_of(path) == path.stat().st_size + data.stat().st_size
    job = Job("mobile", path, "onnx", written.manifest.preprocessing, 1, {})
    assert shards.model_files(job) == [path, data]
    content = bytearray(data.read_bytes())
    content[3] ^= 1
    data.write_bytes(content)
    with pytest.raises(InvalidModelError, match="is not the model that .* was made from"):
        float_model.find(written, path)
    data.unlink()
    with pytest.raises(InvalidModelError, match="keeps weights in mobile.onnx.data, which is not"):
        _export(path, "float32", {"image": arrays["image"]}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_in_another_folder_are_refused(tmp_path: Path) -> None:
    model = package.load(FILES / "mobile.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../mobile.onnx.data"
    (tmp_path / "far.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelError, match="expected a file in its own folder"):
        float_model.load(tmp_path / "far.onnx", preprocessing="none")


def test_a_file_exported_in_training_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="BatchNormalization .* as in training.*eval"):
        float_model.load(FILES / "training.onnx", preprocessing="none")


def test_a_file_that_is_quantized_already_has_no_float_form(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    given = {"image": arrays["image"]}
    written = _export(FILES / "unfolded.onnx", "int8", given, tmp_path / "out")
    path = tmp_path / "int8.onnx"
    path.write_bytes(written.model_path.read_bytes())
    with pytest.raises(InvalidOptionError, match="it has no float form; export the float model"):
        _export(path, "float32", given, tmp_path / "float")


def test_two_float32_readers_of_a_float16_tensor() -> None:
    model = float_model.load(FILES / "mobile.onnx", preprocessing="none").prepared()
    stem = next(node.output[0] for node in model.graph.node if node.op_type == "Conv")
    readers = [node.name for node in model.graph.node if stem in node.input]
    assert len(readers) == 2
    small = half.converted(model, keep=readers)
    image = np.random.default_rng(0).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)
    exact, found = (
        onnx.session(each.SerializeToString()).run(None, {"image": image})[0]
        for each in (model, small)
    )
    assert _noise(exact, found) > 50


def test_pictures_get_their_channels_first(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    pixels = np.ascontiguousarray(arrays["image"].transpose(0, 2, 3, 1))
    prepared = preprocessing("imagenet-rgb").apply(pixels).transpose(0, 3, 1, 2)
    made = []
    for name, values in (("pixels", pixels), ("floats", prepared)):
        np.savez(tmp_path / f"{name}.npz", x=values)
        made.append(
            export(
                FILES / "mobile.onnx",
                target="onnx",
                precision="int8",
                preprocessing="imagenet-rgb",
                calibration=str(tmp_path / f"{name}.npz"),
                out=tmp_path / name,
            )
        )
    assert made[0].sha256 == made[1].sha256
    with Worker(Job.of(made[0], threads=1)) as worker:
        assert worker.loaded.input_shape == (16, 16, 3)
        assert not worker.loaded.misfit("mobile", pixels)
        assert "[16, 16, 3]" in worker.loaded.misfit("mobile", pixels[:, :9])
        found = worker.outputs(pixels)
    exact = onnx.session(made[0].model_path).run(None, {"image": prepared})[0]
    np.testing.assert_array_equal(found, exact)


def _forms() -> Any:
    """Zero padding before pools, means with and without their axes, hard sigmoids."""
    graph, make = package.helper, package.helper.make_node
    stored = {
        "pads": np.array([0, 0, 1, 0, 0, 0, 1, 1]),
        "axes": np.array([-1, 2]),
        "one": np.array([1]),
        "weights": np.random.default_rng(0).normal(0, 1, (4, 3, 1, 1)).astype(np.float32),
        "bias": np.array([0.5, -1, 2, 0], np.float32),
    }
    nodes = [
        make("Relu", ["x"], ["positive"]),
        make("Pad", ["positive", "pads"], ["a"]),
        make("MaxPool", ["a"], ["largest"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Pad", ["x", "pads"], ["b"]),
        make("AveragePool", ["b"], ["mean"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Pad", ["x", "pads"], ["c"]),
        make("MaxPool", ["c"], ["signed"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Sum", ["largest", "mean", "signed"], ["sum"]),
        make("HardSigmoid", ["sum"], ["gate"], alpha=0.3, beta=0.4),
        make("Conv", ["gate", "weights", "bias"], ["line"]),
        make("HardSigmoid", ["line"], ["y"], alpha=1 / 6),
        make("ReduceMean", ["y", "axes"], ["whole"], keepdims=1),
        make("ReduceMean", ["y", "one"], ["part"], keepdims=0),
    ]
    ends = [graph.make_tensor_value_info(name, 1, None) for name in ("whole", "part")]
    constants = [package.numpy_helper.from_array(v, name) for name, v in stored.items()]
    entry = graph.make_tensor_value_info("x", 1, [1, 3, 5, 6])
    whole = graph.make_graph(nodes, "forms", [entry], ends, constants)
    opset = [graph.make_opsetid("", 18)]
    return package.shape_inference.infer_shapes(
        graph.make_model(whole, opset_imports=opset, ir_version=9)
    )


def test_forms_for_integers_compute_the_same() -> None:
    model, changed = _forms(), _forms()
    onnx_forms.for_integers(changed)
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds.count("Pad") == 1  # zeros may be larger than what the last pool reads
    assert "HardSigmoid" not in kinds and kinds.count("ReduceMean") == 1
    assert "GlobalAveragePool" in kinds
    x = np.random.default_rng(1).normal(0, 2, (1, 3, 5, 6)).astype(np.float32)
    exact, found = (
        onnx.session(each.SerializeToString()).run(None, {"x": x}) for each in (model, changed)
    )
    for one, other in zip(exact, found, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize(
    "kernel, stride, pad, more",
    [(2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (3, 1, 1, 0), (5, 3, 2, 0)],
)
def test_a_transposed_convolution_is_a_whole_one_and_a_slice(
    kernel: int, stride: int, pad: int, more: int
) -> None:
    graph, random = package.helper, np.random.default_rng(kernel)
    stored = {
        "weights": random.normal(0, 1, (3, 4, kernel, 3)).astype(np.float32),
        "bias": random.normal(0, 1, 4).astype(np.float32),
    }
    node = graph.make_node(
        "ConvTranspose",
        ["x", *stored],
        ["y"],
        strides=[stride] * 2,
        pads=[pad, 0, pad, 0],
        output_padding=[more, 0],
    )
    whole = graph.make_graph(
        [node],
        "up",
        [graph.make_tensor_value_info("x", 1, [1, 3, 5, 6])],
        [graph.make_tensor_value_info("y", 1, None)],
        [package.numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    opset = [graph.make_opsetid("", 18)]
    model = graph.make_model(whole, opset_imports=opset, ir_version=9)
    changed = package.ModelProto()
    changed.CopyFrom(model)
    onnx_forms.for_integers(changed)
    up = changed.graph.node[0]
    assert up.op_type == "ConvTranspose" and not any(onnx.attribute(up, "pads", [0]))
    x = random.normal(0, 1, (1, 3, 5, 6)).astype(np.float32)
    exact, found = (
        onnx.session(each.SerializeToString()).run(None, {"x": x})[0] for each in (model, changed)
    )
    np.testing.assert_allclose(found, exact, atol=1e-4)


@pytest.mark.parametrize(
    "mode, value, in_float", [("reflect", 0, 0), ("constant", 0, 0), ("constant", 1, 1)]
)
def test_padding_that_several_read_pads_integers(
    mode: str, value: float, in_float: int, tmp_path: Path
) -> None:
    graph, random = package.helper, np.random.default_rng(0)
    stored = {
        "first": random.normal(0, 0.4, (6, 3, 3, 3)).astype(np.float32),
        "second": random.normal(0, 0.4, (6, 6, 3, 3)).astype(np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "value": np.array(value, np.float32),
    }
    nodes = [
        graph.make_node("Conv", ["x", "first"], ["a"]),
        graph.make_node("Relu", ["a"], ["b"]),
        graph.make_node("Pad", ["b", "pads", "value"], ["c"], mode=mode),
        graph.make_node("Conv", ["c", "second"], ["d"]),
        graph.make_node("MaxPool", ["c"], ["e"], kernel_shape=[3, 3]),
        graph.make_node("Add", ["d", "e"], ["y"]),
    ]
    whole = graph.make_graph(
        nodes,
        "padded",
        [graph.make_tensor_value_info("x", 1, ["batch", 3, 8, 8])],
        [graph.make_tensor_value_info("y", 1, ["batch", 6, 6, 6])],
        [package.numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    opset = [graph.make_opsetid("", 13)]
    package.save(graph.make_model(whole, opset_imports=opset, ir_version=8), tmp_path / "net.onnx")
    x = random.normal(0, 1, (30, 3, 8, 8)).astype(np.float32)
    written = _export(tmp_path / "net.onnx", "int8", {"x": x}, tmp_path / "out")
    (found,) = _answers(written, {"x": x}).values()
    (exact,) = onnx.session(tmp_path / "net.onnx").run(None, {"x": x})
    assert _noise(exact, found) > 30
    execution = written.manifest.execution
    assert execution is not None and execution.kernels["Pad"] == 1
    assert len(execution.floats) == in_float
