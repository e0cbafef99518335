from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import Done
from exported import export

from edgekit.base import outputs
from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.evaluation.parity import numbers
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.records import encodings
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import Encodings, differences
from edgekit.records.signature import preprocessing
from edgekit.runtimes import model_file
from edgekit.writers import tflite_integers


def _pair(artifacts: dict[str, Path]) -> tuple[Artifact, Artifact]:
    return Artifact.load(artifacts["tflite-int8"]), Artifact.load(artifacts["onnx-int8"])


def _with_model(artifact: Path, out: Path, content: bytes) -> Path:
    """A copy of an artifact whose model file is another one."""
    shutil.copytree(artifact, out)
    manifest = json.loads((out / "manifest.json").read_text())
    model = out / manifest["model_file"]
    model.write_bytes(content)
    manifest["files"][model.name] = outputs.sha256_file(model)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_both_files_hold_the_same_numbers(artifacts: dict[str, Path]) -> None:
    found = numbers(*_pair(artifacts))
    assert found.differences == ()
    assert found.expected == ()
    assert found.compared > 400_000


def test_the_numbers_are_those_of_the_encodings(artifacts: dict[str, Path]) -> None:
    ours, _ = _pair(artifacts)
    given = Encodings.load(ours.path / encodings.FILE)
    graph = Graph(ours.model_path.read_bytes())
    read = tflite_integers.read_file(ours.model_path.read_bytes())
    assert (ours.path / encodings.FILE).read_bytes() == (
        artifacts["onnx-int8"] / encodings.FILE
    ).read_bytes()
    for name, (scale, zero_point) in read.activations.items():
        expected = given.tensors[name]
        assert (np.float32(expected.scale[0]), expected.zero_point) == (scale, zero_point)
    depthwise = [layer for layer in graph.layers if layer.kind == "depthwise"]
    assert len(depthwise) == 17
    for layer in graph.layers:
        stored, weights = read.layers[layer.output], given.tensors[layer.weights]
        assert weights.axis == layer.axis
        np.testing.assert_array_equal(np.float32(weights.scale), stored.weight_scale)
        assert len(weights.scale) == stored.weights.shape[layer.axis]
        assert np.abs(stored.weights.astype(int)).max() <= 127
        assert layer.bias is not None and stored.bias_scale is not None
        entry = np.float32(read.activations[layer.input][0])
        np.testing.assert_array_equal(stored.bias_scale, entry * stored.weight_scale)
        assert given.tensors[layer.bias].dtype == "int32"


@pytest.mark.parametrize("what", ["weights", "weight scale", "bias", "scale", "zero_point"])
def test_one_changed_number_is_found(artifacts: dict[str, Path], tmp_path: Path, what: str) -> None:
    ours, theirs = _pair(artifacts)
    graph = Graph(ours.model_path.read_bytes())
    layer = graph.layers[7]
    if what in ("weights", "bias"):
        name = layer.weights if what == "weights" else layer.bias
        assert name is not None
        values = graph.constant(name)
        values.flat[3] += 1 if values.flat[3] < 100 else -1
        graph.set_constant(name, values)
    else:
        name = layer.weights if what == "weight scale" else layer.output
        found = graph.quantization(name)
        assert found is not None
        scale, zero_point = found.scale.copy(), found.zero_point.copy()
        if what == "zero_point":
            zero_point[0] += 1
        else:
            scale[0] = np.nextafter(scale[0], np.float32(1))
        graph.set_quantization(name, dataclasses.replace(found, scale=scale, zero_point=zero_point))
    changed = _with_model(ours.path, tmp_path / "changed", graph.serialize())
    found_differences = numbers(Artifact.load(changed), theirs).differences
    assert [(each.tensor, each.what, each.count) for each in found_differences] == [
        (layer.output, what, 1)
    ]


def test_a_changed_onnx_weight_is_found(artifacts: dict[str, Path], tmp_path: Path) -> None:
    import onnx as library

    ours, theirs = _pair(artifacts)
    model = onnx.load(theirs.model_path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("/weights"))
    values = library.numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.where(values[0, 0] > 0, values[0, 0] - 1, values[0, 0] + 1)
    tensor.CopyFrom(library.numpy_helper.from_array(values, tensor.name))
    changed = _with_model(theirs.path, tmp_path / "changed", model.SerializeToString())
    (difference,) = numbers(ours, Artifact.load(changed)).differences
    assert difference.what == "weights"
    assert difference.largest == 1


def test_the_command_says_what_differs(
    artifacts: dict[str, Path], tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    ours, theirs = _pair(artifacts)
    good = edgekit("parity", ours.path, theirs.path)
    assert good.status == 0
    assert good.document["differences"] == []
    assert "no difference" in good.stderr
    graph = Graph(ours.model_path.read_bytes())
    layer = graph.layers[0]
    graph.set_constant(layer.weights, np.negative(graph.constant(layer.weights)))
    changed = _with_model(ours.path, tmp_path / "changed", graph.serialize())
    bad = edgekit("parity", changed, theirs.path)
    assert bad.status == 1
    assert "stem/Conv2D1" in bad.stderr
    for arguments, message in (
        ((ours.path, ours.path), "expected a TFLite and an ONNX artifact"),
        ((ours.path, artifacts["onnx-float32"]), "expected artifacts with int8 weights"),
        ((ours.path, tmp_path / "none"), "not found"),
    ):
        failed = edgekit("parity", *arguments)
        assert failed.status == 2
        assert message in failed.error


def test_artifacts_of_other_models_are_refused(
    artifacts: dict[str, Path], small: Path, tmp_path: Path
) -> None:
    other = export(
        small / "small.keras",
        target="onnx",
        precision="int8",
        calibration=str(small / "set.npz"),
        preprocessing="unit",
        out=tmp_path / "other",
    )
    with pytest.raises(InvalidModelError, match="different float models"):
        numbers(Artifact.load(artifacts["tflite-int8"]), other)


@pytest.mark.parametrize("device", ["generic", "x86-avx2", "x86-vnni", "arm64", "tensorrt"])
def test_every_profile_writes_the_numbers_it_decided(
    small: Path, tmp_path: Path, device: str
) -> None:
    options = {
        "precision": "int8",
        "calibration": str(small / "set.npz"),
        "preprocessing": "unit",
        "device": device,
    }
    theirs = export(small / "small.keras", target="onnx", out=tmp_path / "onnx", **options)
    model = onnx.load(theirs.model_path)
    execution = theirs.manifest.execution
    assert execution is not None and execution.numbers > 0
    kinds = {value.name: value.data_type for value in model.graph.initializer}
    activations = {kinds[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    unsigned = device in ("generic", "x86-avx2", "x86-vnni")
    assert activations == {2 if unsigned else 3}
    assert any(name.endswith("/bias") for name in kinds) == (device != "tensorrt")
    if device == "tensorrt":
        given = Encodings.load(theirs.path / encodings.FILE)
        assert {each.zero_point for each in given.tensors.values()} == {0}
        assert "not run" in execution.note
        return
    assert execution.floats == ()
    assert execution.kernels["QLinearConv"] == 5
    ours = export(small / "small.keras", target="tflite", out=tmp_path / "tflite", **options)
    assert numbers(ours, theirs).differences == ()


def test_profiles_that_differ_are_said_to(small: Path, tmp_path: Path) -> None:
    made = [
        export(
            small / "small.keras",
            target=target,
            precision="int8",
            calibration=str(small / "set.npz"),
            preprocessing="unit",
            device=device,
            out=tmp_path / target,
        )
        for target, device in (("tflite", "arm64"), ("onnx", "generic"))
    ]
    found = numbers(*made)
    assert found.expected and "made for arm64" in found.expected[0]


def test_differences_are_by_tensor_and_kind(artifacts: dict[str, Path]) -> None:
    stored = tflite_integers.read_file(
        Artifact.load(artifacts["tflite-int8"]).model_path.read_bytes()
    )
    name = next(iter(stored.layers))
    without = dataclasses.replace(
        stored, layers={k: v for k, v in stored.layers.items() if k != name}
    )
    (difference,) = differences(stored, without)
    assert (difference.tensor, difference.what) == (name, "missing")
    assert differences(stored, stored) == ()


def test_files_beside_artifacts(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """Files that say nothing are matched by the names of their tensors."""
    pair = _pair(artifacts)
    as_is = preprocessing("none")
    loose = [
        model_file.load(
            Path(shutil.copy(each.model_path, tmp_path / f"{each.name}{suffix}")), as_is
        )
        for each, suffix in zip(pair, (".tflite", ".onnx"), strict=True)
    ]
    found = numbers(*loose)
    assert found.differences == () and found.compared == numbers(*pair).compared
    assert "is not known; tensors are matched by name" in found.expected[0]
    assert numbers(pair[0], loose[1]).differences == ()
    (tmp_path / "manifest.json").write_text("{}")  # of something else
    assert model_file.is_file(tmp_path / "onnx-int8.onnx")
    with pytest.raises(InvalidOptionError, match="does not say how its input is made"):
        model_file.load(tmp_path / "onnx-int8.onnx")
    inside = artifacts["onnx-int8"] / "model.onnx"
    assert model_file.load(inside).manifest == pair[1].manifest  # the artifact's
    weights = np.random.default_rng(0).normal(size=(784, 10))
    other = model_file.load(nets.linear(tmp_path / "other.onnx", weights, step=0.1), as_is)
    with pytest.raises(InvalidModelError, match="is float32; expected artifacts with int8"):
        numbers(pair[0], other)
