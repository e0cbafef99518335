"""ONNX files as TFLite: the canonical graph of tests/data/torch, against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from exported import answers, decibels, export, export_all
from onnx import TensorProto, helper, numpy_helper
from test_torch_files import CALIBRATION, CASES, FILES, NAMES, _noise

from edgekit.base.errors import InvalidModelError
from edgekit.calibrate import main as calibrate_main
from edgekit.compare import Options, compare
from edgekit.diagnosis.diff import diff
from edgekit.evaluation import parity
from edgekit.export import main as export_main
from edgekit.graph import flatbuffer, litert, onnx
from edgekit.records.signature import Preprocessing, TensorSpec
from edgekit.sources import float_model, onnx_canonical


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FILES / "answers.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def mobile(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all that one command makes of mobile.onnx, with its samples as ``set.npz``."""
    folder = tmp_path_factory.mktemp("mobile")
    np.savez(folder / "set.npz", image=arrays["image"][:CALIBRATION])
    export_all(
        FILES / "mobile.onnx",
        targets=["tflite", "onnx"],
        precisions=["float32", "int8"],
        preprocessing="symmetric",
        calibration=str(folder / "set.npz"),
        out=folder,
    )
    return folder


def _prepared(prepare: Preprocessing, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pictures as the model takes them, other inputs as they are."""
    return {k: prepare.apply(v) if v.dtype == np.uint8 else v for k, v in given.items()}


def _save(
    path: Path,
    nodes: Sequence[Any],
    weights: dict[str, np.ndarray],
    shape: Sequence[int],
    answer: Sequence[int],
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, answer)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    package.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_tflite_answers_as_the_onnx_file_does(
    name: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    inputs, least, _ = CASES[name]
    np.savez(tmp_path / "set.npz", **{key: arrays[key][:CALIBRATION] for key in inputs})
    given = {key: arrays[key][CALIBRATION:] for key in inputs}
    for written in export_all(
        FILES / f"{name}.onnx",
        targets=["tflite"],
        precisions=["float32", "float16", "int8"],
        preprocessing="symmetric",
        calibration=str(tmp_path / "set.npz"),
        allow_poor=True,  # untrained attention on noise hardly varies
        out=tmp_path,
    ):
        found = answers(written, _prepared(written.manifest.preprocessing, given))
        for output, values in found.items():
            exact = arrays[f"{name}.{output}"]
            if written.manifest.precision == "float32":
                assert np.abs(values - exact).max() <= 1e-4 * np.abs(exact).max()
            else:
                bound = 50 if written.manifest.precision == "float16" else least
                assert _noise(exact, values) > bound


def test_pictures_get_their_channels_last_and_outputs_keep_their_axes(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    given = {"target": "tflite", "precision": "float32", "preprocessing": "symmetric"}
    written = export(FILES / "segments.onnx", **given, out=tmp_path / "out")
    signature = written.manifest.signature
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("image", (1, 16, 16, 3))]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("map", (1, 2, 16, 16))]
    notes = "; ".join(written.manifest.notes)
    assert "image takes pictures with their channels last, [1, 16, 16, 3]" in notes
    assert "map keeps its channels where the ONNX file has them" in notes
    words = export(FILES / "words.onnx", **given, out=tmp_path / "words")
    assert "tokens is int32, in the ONNX file int64" in words.manifest.notes


def test_samples_are_taken_with_their_channels_first_or_last() -> None:
    values = np.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3)
    first = np.moveaxis(values, -1, 1)
    for spec in (
        TensorSpec("x", (1, 4, 5, 3), "float32"),
        TensorSpec("x", (1, 3, 4, 5), "float32"),
    ):
        expected = values if spec.shape[-1] == 3 else first
        for each in (values, first):
            assert spec.fits(each.shape[1:])
            assert np.array_equal(spec.arrange(each), expected)
    assert not TensorSpec("x", (1, 4, 5, 8), "float32").fits((8, 4, 5))


def test_the_canonical_graph_is_one_of_the_kind_that_all_sources_have() -> None:
    loaded = float_model.load(FILES / "both.onnx", preprocessing="none")
    content = loaded.canonical()
    graph = flatbuffer.Graph(content)
    assert content == loaded.canonical()
    assert content == flatbuffer.canonical(content, "both", key=litert.SIGNATURE_KEY)
    assert list(graph.named_inputs) == ["image", "facts"] and set(graph.named_outputs) == {
        "kind",
        "price",
    }


def test_several_targets_of_one_command_are_compared(mobile: Path) -> None:
    paths = [mobile / f"mobile-{t}-{p}" for t in ("tflite", "onnx") for p in ("float32", "int8")]
    report = compare(paths, Options(dataset=str(mobile / "set.npz"), rounds=1, processes=1))
    assert report.reference.format == "onnx"
    assert len(report.artifacts) == 4
    for each in report.artifacts:
        floor = 20 if each.name.endswith("int8") else 90
        assert each.metrics["sqnr_centred"].value > floor


def test_layers_of_both_formats_are_compared_by_the_names_of_the_file(mobile: Path) -> None:
    data = str(mobile / "set.npz")
    pairs = [
        (FILES / "mobile.onnx", "tflite-int8"),
        (FILES / "mobile.onnx", "onnx-int8"),
        (mobile / "mobile-tflite-float32", "tflite-int8"),
        (mobile / "mobile-onnx-float32", "tflite-int8"),
        (mobile / "mobile-tflite-float32", "onnx-int8"),
        (mobile / "mobile-onnx-float32", "onnx-int8"),
    ]
    for reference, other in pairs:
        found = diff(reference, mobile / f"mobile-{other}", dataset=data, images=8)
        assert found.verdict is None and len(found.rows) > 5
        errors = {row.name: row.accumulated for row in found.rows}["scores"]
        assert errors is not None and errors.sqnr > 20


@pytest.mark.parametrize("name", ["mobile", "attention", "segments", "unfolded", "both", "sound"])
def test_both_int8_files_of_a_torch_file_hold_the_same_integers(name: str, tmp_path: Path) -> None:
    with np.load(FILES / "answers.npz") as file:
        arrays = {key: file[key][:24] for key in file.files if "." not in key}
    specs = float_model.load(FILES / f"{name}.onnx", preprocessing="symmetric").inputs
    np.savez(tmp_path / "set.npz", **{spec.name: arrays[spec.name] for spec in specs})
    written = export_all(
        FILES / f"{name}.onnx",
        targets=["tflite", "onnx"],
        precisions=["int8"],
        preprocessing="symmetric",
        calibration=str(tmp_path / "set.npz"),
        allow_poor=True,  # untrained attention on noise hardly varies
        out=tmp_path,
    )
    found = parity.numbers(*written)
    assert not found.differences and found.compared > 200
    own = {value.name for value in onnx.load(FILES / f"{name}.onnx").graph.input}
    assert {value.name for value in onnx.load(written[1].model_path).graph.input} == own


def test_one_calibration_table_of_an_onnx_file_is_for_both_formats(
    mobile: Path, tmp_path: Path
) -> None:
    table, data = tmp_path / "table.json", str(mobile / "set.npz")
    model = str(FILES / "mobile.onnx")
    given = [model, "--preprocessing", "symmetric"]
    assert calibrate_main([*given, "--data", data, "--out", str(table)]) == 0
    written = export_all(
        FILES / "mobile.onnx",
        targets=["tflite", "onnx"],
        precisions=["int8"],
        preprocessing="symmetric",
        calibration=str(table),
        out=tmp_path,
    )
    assert not parity.numbers(*written).differences


def test_what_has_no_tflite_form_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Det", ["x"], ["y"], "volume")]
    path = _save(tmp_path / "net.onnx", nodes, {}, [1, 4, 4], [1])
    given = ["--preprocessing", "none", "--precision", "float32"]
    out = ["--out", str(tmp_path / "out")]
    assert export_main([str(path), *given, "--target", "tflite", *out]) == 2
    said = capsys.readouterr()
    text = " ".join((said.out + said.err).split())
    assert f"{path} cannot become TFLite: Det volume has no TFLite form" in text
    advised = text.rpartition(
        "; replace it in the model, or export with --target onnx --precision "
    )[2]
    assert advised.startswith("float32")
    assert "Traceback" not in text and not (tmp_path / "out").exists()
    assert export_main([str(path), *given, "--target", "tflite,onnx", *out]) == 2
    assert not (tmp_path / "out").exists()
    for precision in ("float32", "float16"):  # what is advised works, and what works is advised
        asked = ["--target", "onnx", "--precision", precision, "--out", str(tmp_path / precision)]
        status = export_main([str(path), "--preprocessing", "none", *asked])
        assert (status == 0) == (precision in advised.split(","))


def test_an_int8_onnx_file_is_refused_by_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"w": np.random.default_rng(5).normal(0, 1, (2, 1, 1, 1)).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "before"),
        helper.make_node("GlobalLpPool", ["a"], ["y"], "length", p=3),
    ]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 1, 4, 4], [1, 2, 1, 1])
    np.savez(tmp_path / "x.npz", x=np.ones((24, 1, 4, 4), np.float32))
    given = [str(path), "--preprocessing", "none", "--target", "onnx"]
    calibration = ["--calibration", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")]
    assert export_main([*given, "--precision", "int8", *calibration]) == 2
    said = capsys.readouterr()
    text = " ".join((said.out + said.err).split())
    assert f"{path} cannot become int8 ONNX" in text and "cannot become TFLite" not in text
    assert "GlobalLpPool length has no TFLite form" in text
    advised = text.rpartition("or export with --target onnx --precision ")[2]
    assert advised.startswith("float32")
    assert export_main([*given, "--precision", advised, *calibration[2:]]) == 0


def test_a_graph_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = {"w": np.eye(4, dtype=np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 4], [1, 4])
    loaded = float_model.load(path, preprocessing="none")
    trace = onnx_canonical.onnx_trace.trace

    def other(model: Any, feed: Any) -> Any:
        found = trace(model, feed)
        found.constants["w"] = found.constants["w"] * np.float32(1.001)
        return found

    assert loaded.canonical()
    monkeypatch.setattr(onnx_canonical.onnx_trace, "trace", other)
    with pytest.raises(InvalidModelError, match="y differs by .* from the file's"):
        loaded.canonical()


def test_a_state_keeps_its_sizes_in_int8_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["h", "axes"], ["s"], "sum", keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"], "add"),
        helper.make_node("Relu", ["h"], ["next"], "state"),
    ]
    path = _save(tmp_path / "net.onnx", nodes, {"axes": np.array([0, 1])}, [1, 4], [1, 4])
    model = package.load(path)
    model.graph.input.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 1, 4]))
    model.graph.output.append(helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 1, 4]))
    package.save(model, path)
    drawn = np.random.default_rng(7)
    arrays = {"x": drawn.normal(0, 1, (24, 4)), "h": drawn.normal(0, 1, (24, 2, 1, 4))}
    data = tmp_path / "set.npz"
    np.savez(data, **{name: values.astype(np.float32) for name, values in arrays.items()})
    given: dict[str, Any] = {"target": "tflite", "preprocessing": "none"}
    written = export(path, precision="float32", out=tmp_path / "out", **given)
    found = {spec.name: (spec.shape, spec.batched) for spec in written.manifest.signature.outputs}
    assert found == {"y": ((1, 4), True), "next": ((2, 1, 4), False)}
    report = compare([written.path], Options(dataset=str(data), rounds=1, processes=1))
    assert report.artifacts[0].metrics["sqnr_centred"].value > 100
    rounded = export(path, precision="int8", calibration=str(data), out=tmp_path / "int8", **given)
    report = compare([rounded.path], Options(dataset=str(data), rounds=1, processes=1))
    assert report.artifacts[0].metrics["sqnr_centred"].value > 30


def test_a_branch_that_is_always_taken_takes_its_place(tmp_path: Path) -> None:
    out = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    branches = [
        helper.make_graph([helper.make_node(kind, ["x", "w"], ["inner"], kind)], kind, [], out)
        for kind in ("Mul", "Add")
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "zero"], ["first"]),
        helper.make_node("Equal", ["first", "one"], ["single"]),
        helper.make_node("If", ["single"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    weights = {"w": np.full(4, 3, np.float32), "zero": np.array(0), "one": np.array(1)}
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 4], [1, 4])
    content = float_model.load(path, preprocessing="none").canonical()
    assert [operator.kind for operator in flatbuffer.Graph(content).operators] == ["MUL"]


@pytest.mark.parametrize("last", ["Relu", "Softmax", ""])
def test_an_output_behind_an_identity_holds_the_same_integers(last: str, tmp_path: Path) -> None:
    """As Paddle writes them; the tensor before the Identity has the name in the TFLite graph."""
    drawn = np.random.default_rng(11)
    weights = {
        "w": drawn.normal(0, 1, (6, 4)).astype(np.float32),
        "b": drawn.normal(0, 1, 4).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        *([helper.make_node(last, ["s"], ["p"])] if last else []),
        helper.make_node("Identity", ["p" if last else "s"], ["y"]),
    ]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 6], [1, 4])
    np.savez(tmp_path / "set.npz", x=drawn.normal(0, 1, (24, 6)).astype(np.float32))
    written = export_all(
        path,
        targets=["tflite", "onnx"],
        precisions=["int8"],
        preprocessing="none",
        calibration=str(tmp_path / "set.npz"),
        out=tmp_path,
    )
    assert not parity.numbers(*written).differences
    assert [spec.name for spec in written[1].manifest.signature.outputs] == ["y"]


def _branching(branches: Sequence[Any], folder: Path) -> tuple[Path, Any]:
    """A file whose inputs decide which branch is taken, and what onnxruntime makes of it."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["large"]),
        helper.make_node("If", ["large"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    weights = {"w": np.full(4, 3, np.float32), "zero": np.array(0, np.float32)}
    path = _save(folder / "net.onnx", nodes, weights, [1, 4], [1, 4])
    return path, float_model.load(path, preprocessing="none")


def test_what_the_inputs_decide_is_computed_in_both_ways(tmp_path: Path) -> None:
    """As the verifier of one of openWakeWord's files, which a score above a half calls."""
    out = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    branches = [
        helper.make_graph([helper.make_node(kind, ["x", "w"], ["inner"], kind)], kind, [], out)
        for kind in ("Mul", "Add")
    ]
    path, loaded = _branching(branches, tmp_path)
    content = loaded.canonical()
    kinds = [operator.kind for operator in flatbuffer.Graph(content).operators]
    assert {"MUL", "ADD", "SELECT_V2"} <= set(kinds) and "IF" not in kinds
    runner = litert.interpreter(content).get_signature_runner(litert.SIGNATURE_KEY)
    for x in (np.ones((1, 4), np.float32), -np.ones((1, 4), np.float32)):
        exact = onnx.session(path).run(None, {"x": x})[0]
        assert np.array_equal(runner(x=x)["y"], exact)


def _looping(folder: Path) -> Path:
    """As tf2onnx writes a recurrent layer: the body of a Loop reads the sequence, which is no input
    of the Loop, step by step; ``y = sum of tanh(2 x[step])``."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["steps", "step"], ["row"], "row"),
            helper.make_node("Mul", ["row", "w"], ["scaled"], "scaled"),
            helper.make_node("Tanh", ["scaled"], ["bent"], "bent"),
            helper.make_node("Add", ["state", "bent"], ["next"], "next"),
            helper.make_node("Identity", ["go"], ["go_on"], "go_on"),
        ],
        "body",
        [
            value("step", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, [1, 4]),
        ],
        [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1, 4])],
    )
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], "turn", perm=[1, 0, 2]),
        helper.make_node("Loop", ["count", "always", "zeros"], ["y"], "loop", body=body),
    ]
    weights = {
        "count": np.array(3),
        "always": np.array(True),
        "zeros": np.zeros((1, 4), np.float32),
        "w": np.full(4, 2, np.float32),
    }
    return _save(folder / "net.onnx", nodes, weights, [1, 3, 4], [1, 4])


def test_what_the_body_of_a_loop_reads_is_read(tmp_path: Path) -> None:
    path = _looping(tmp_path)
    with pytest.raises(InvalidModelError, match="Loop loop has no TFLite form"):
        float_model.load(path, preprocessing="none").canonical()
    written = export(
        path, target="onnx", precision="float16", preprocessing="none", out=tmp_path / "half"
    )
    x = np.random.default_rng(2).normal(0, 1, (1, 3, 4)).astype(np.float32)
    (found,) = onnx.session(written.model_path).run(None, {"x": x})
    assert np.abs(found - np.tanh(2 * x).sum(axis=1)).max() < 5e-3
    assert not [t for t in onnx.load(written.model_path).graph.initializer if t.data_type == 1]


def test_nan_is_found_in_tflite(tmp_path: Path) -> None:
    """As torch 2.11 writes attention: what a softmax makes of a row without a number is 0."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["share"], axis=-1),
        helper.make_node("IsNaN", ["share"], ["lost"]),
        helper.make_node("Where", ["lost", "zero", "share"], ["y"]),
    ]
    path = _save(tmp_path / "net.onnx", nodes, {"zero": np.zeros(1, np.float32)}, [1, 4], [1, 4])
    content = float_model.load(path, preprocessing="none").canonical()
    runner = litert.interpreter(content).get_signature_runner(litert.SIGNATURE_KEY)
    for x in (np.arange(4), np.full(4, -np.inf), np.full(4, np.nan)):
        x = x.astype(np.float32)[None]
        exact = onnx.session(path).run(None, {"x": x})[0]
        np.testing.assert_allclose(runner(x=x)["y"], exact, atol=1e-6)
    assert not exact.any()


LEAST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize(("kind", "number"), [("Where", LEAST), ("Where", -np.inf), ("Mul", -1e9)])
@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_mask_is_a_number_that_float16_holds(
    kind: str, number: float, target: str, tmp_path: Path
) -> None:
    """Scores of places that a mask leaves out get the largest negative number of float32."""
    weights = {
        "w": np.random.default_rng(3).normal(0, 1, (4, 4)).astype(np.float32),
        "least": np.array([number], np.float32),
        "zero": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], "scores"),
        helper.make_node("Less", ["x", "zero"], ["out"], "out"),
        helper.make_node("Cast", ["out"], ["ones"], "ones", to=TensorProto.FLOAT),
        helper.make_node("Where", ["out", "least", "zero"], ["mask"], "mask")
        if kind == "Where"
        else helper.make_node("Mul", ["ones", "least"], ["mask"], "mask"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "masked"),
        helper.make_node("Softmax", ["masked"], ["y"], "softmax", axis=-1),
    ]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 2, 4], [1, 2, 4])
    written = export(
        path, target=target, precision="float16", preprocessing="none", out=tmp_path / target
    )
    for rows in ([[1, -1, 2, -2], [-1, -2, 0, -3]], [[1, 2, 3, 4], [9, -9, 0, -1]]):
        x = np.array([rows], np.float32)
        exact = onnx.session(path).run(None, {"x": x})[0]
        np.testing.assert_allclose(answers(written, {"x": x})["y"], exact, atol=3e-3)
    assert np.isfinite(answers(written, {"x": -np.ones((1, 2, 4), np.float32)})["y"]).all()
    if target == "onnx":
        floats = {t.data_type for t in onnx.load(written.model_path).graph.initializer}
        assert TensorProto.FLOAT not in floats
        assert any("all in float16" in note for note in written.manifest.notes)


def test_a_large_number_that_is_no_mask_is_refused_in_float16(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "least"], ["masked"], "masked"),
        helper.make_node("Softmax", ["masked"], ["share"], "softmax", axis=-1),
        helper.make_node("Mul", ["masked", "share"], ["y"], "product"),
    ]
    weights = {"least": np.array([LEAST, 0, 0, 0], np.float32)}
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 4], [1, 4])
    for target in ("tflite", "onnx"):
        with pytest.raises(InvalidModelError, match=r"up to 65504, got 3.4e\+38 in least"):
            export(
                path, target=target, precision="float16", preprocessing="none", out=tmp_path / "no"
            )


def test_layers_in_branches_stay_float_in_onnx(tmp_path: Path) -> None:
    """The ONNX file keeps its If; the layers in it are no difference of the two int8 files."""
    out = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    drawn = np.random.default_rng(3)
    branches = []
    for kind in ("Relu", "Sigmoid"):
        weights = numpy_helper.from_array(drawn.normal(0, 1, (4, 4)).astype(np.float32), "m")
        nodes = [
            helper.make_node("MatMul", ["x", "m"], ["dense"]),
            helper.make_node(kind, ["dense"], ["inner"]),
        ]
        branches.append(helper.make_graph(nodes, kind, [], out, [weights]))
    path, _ = _branching(branches, tmp_path)
    np.savez(tmp_path / "set.npz", x=drawn.normal(0, 1, (32, 4)).astype(np.float32))
    written = export_all(
        path,
        targets=["tflite", "onnx"],
        precisions=["int8"],
        preprocessing="none",
        calibration=str(tmp_path / "set.npz"),
        correction="none",
        out=tmp_path,
    )
    numbers = parity.numbers(*written)
    assert not numbers.differences
    assert any("2 layers of the float graph are no layers" in said for said in numbers.expected)


def test_branches_of_other_sizes_are_refused(tmp_path: Path) -> None:
    out = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    branches = [
        helper.make_graph([helper.make_node("Neg", ["x"], ["inner"])], "all", [], out),
        helper.make_graph([helper.make_node("Neg", ["sum"], ["inner"])], "one", [], out),
    ]
    _, loaded = _branching(branches, tmp_path)
    with pytest.raises(InvalidModelError, match="If .* has no TFLite form"):
        loaded.canonical()


def test_one_turn_takes_the_place_of_two(tmp_path: Path) -> None:
    """As TensorFlow's files turn what a convolution over time reads."""
    drawn = np.random.default_rng(3)
    weights = {"w": drawn.normal(0, 1, (5, 4, 3, 1)).astype(np.float32)}
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Conv", ["turned", "w"], ["y"]),
    ]
    kinds, noise = _kinds(_save(tmp_path / "net.onnx", nodes, weights, [1, 9, 4, 1], [1, 5, 7, 1]))
    assert kinds.count("TRANSPOSE") <= 1 and noise > 100
    nodes.append(helper.make_node("Mul", ["turned", "turned"], ["z"]))
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 9, 4, 1], [1, 5, 7, 1])
    model = package.load(path)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 9, 1]))
    package.save(model, path)
    assert float_model.load(path, preprocessing="none").canonical()


def test_a_product_that_keeps_an_input_is_nothing(tmp_path: Path) -> None:
    """As a rate that Silero VAD multiplies with 0, so that it stays an input."""
    nodes = [
        helper.make_node("Mul", ["rate", "none"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["dense"]),
        helper.make_node("Add", ["dense", "real"], ["y"]),
    ]
    drawn = np.random.default_rng(3)
    weights = {"w": drawn.normal(0, 1, (4, 4)).astype(np.float32), "none": np.array(0)}
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 4], [1, 4])
    model = package.load(path)
    model.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    package.save(model, path)
    x = drawn.normal(0, 1, (24, 4)).astype(np.float32)
    np.savez(tmp_path / "set.npz", x=x, rate=np.full(24, 16000))
    written = export_all(
        path,
        targets=["tflite", "onnx"],
        precisions=["int8"],
        preprocessing="none",
        calibration=str(tmp_path / "set.npz"),
        out=tmp_path,
    )
    assert not parity.numbers(*written).differences
    assert [spec.name for spec in written[0].manifest.signature.inputs] == ["x", "rate"]


def test_bounds_of_a_clip_may_be_computed(tmp_path: Path) -> None:
    """A spectrogram of openWakeWord is cut off below its own peak."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0),
        helper.make_node("Sub", ["peak", "range"], ["least"]),
        helper.make_node("Clip", ["x", "least", "peak"], ["y"]),
    ]
    weights = {"range": np.array(0.4, np.float32)}
    for sizes in ([1, 3, 5, 4], [1, 7]):
        path = _save(tmp_path / "net.onnx", nodes, weights, sizes, sizes)
        kinds, noise = _kinds(path)
        assert {"MAXIMUM", "MINIMUM"} <= set(kinds) and noise > 100
    nodes[2] = helper.make_node("Clip", ["x", "", "least"], ["y"])
    kinds, noise = _kinds(_save(tmp_path / "net.onnx", nodes, weights, [1, 7], [1, 7]))
    assert "MAXIMUM" not in kinds and noise > 100


def test_a_factor_of_another_axis_is_not_taken_into_a_dense_layer(tmp_path: Path) -> None:
    """The channels of a batch norm are the second axis, a dense layer's are the last."""
    drawn = np.random.default_rng(3)
    names = ("gamma", "beta", "mean", "variance")
    weights = {name: drawn.uniform(0.5, 2, 4).astype(np.float32) for name in names}
    weights["w"] = drawn.normal(0, 1, (4, 4)).astype(np.float32)
    weights["b"] = drawn.normal(0, 1, 4).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "dense"),
        helper.make_node("Add", ["m", "b"], ["a"], "bias"),
        helper.make_node("BatchNormalization", ["a", *names], ["y"], "norm"),
    ]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 4, 4], [1, 4, 4])
    content = float_model.load(path, preprocessing="none").canonical()
    values = drawn.normal(0, 1, (1, 4, 4)).astype(np.float32)
    (exact,) = onnx.session(path).run(None, {"x": values})
    runner = litert.interpreter(content).get_signature_runner(litert.SIGNATURE_KEY)
    assert decibels(exact, runner(x=values)["y"]) > 100


def _kinds(path: Path) -> tuple[list[str], float]:
    """Operators of the canonical graph, and its SQNR against the file in dB."""
    loaded = float_model.load(path, preprocessing="none")
    content = loaded.canonical()
    (spec,) = loaded.inputs
    values = np.random.default_rng(4).normal(0, 2, spec.shape).astype(np.float32)
    exact = onnx.session(path).run(None, {"x": values})[0]
    runner = litert.interpreter(content).get_signature_runner(litert.SIGNATURE_KEY)
    (own,) = litert.signature(content).inputs
    kinds = [operator.kind for operator in flatbuffer.Graph(content).operators]
    return kinds, decibels(exact, runner(x=own.arrange(values))["y"])


def test_factors_and_summands_go_into_the_layer_before(tmp_path: Path) -> None:
    drawn = np.random.default_rng(5)
    weights: dict[str, np.ndarray] = {
        "w": drawn.normal(0, 0.3, (4, 3, 1, 1)).astype(np.float32),
        "factor": np.array([1.5], np.float32),
        "summand": drawn.normal(0, 1, (4, 1, 1)).astype(np.float32),
        "divisor": drawn.uniform(1, 2, (1, 4, 1, 1)).astype(np.float32),
        "rows": drawn.normal(0, 1, (5, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["factor", "a"], ["b"]),
        helper.make_node("Sub", ["summand", "b"], ["c"]),
        helper.make_node("Div", ["c", "divisor"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 3, 5, 6], [1, 4, 5, 6])
    kinds, noise = _kinds(path)
    assert set(kinds) - {"TRANSPOSE"} == {"CONV_2D"} and noise > 100
    nodes[3] = helper.make_node("Mul", ["c", "rows"], ["d"])  # one for each row is no channel's
    path = _save(tmp_path / "rows.onnx", nodes, weights, [1, 3, 5, 6], [1, 4, 5, 6])
    kinds, noise = _kinds(path)
    assert "MUL" in kinds and noise > 100
    nodes[1:] = [  # the layer has a second name, which another reads
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Mul", ["factor", "b"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    path = _save(tmp_path / "names.onnx", nodes, weights, [1, 3, 5, 6], [1, 4, 5, 6])
    assert _kinds(path)[1] > 100


def test_a_clip_may_end_at_what_is_computed(tmp_path: Path) -> None:
    """As that of a spectrogram does, at so many dB below its peak."""
    weights = {
        "eighty": np.array(0.8, np.float32),
        "infinity": np.array(np.inf, np.float32),
        "w": np.random.default_rng(6).normal(0, 1, (4, 3, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("ReduceMax", ["a"], ["peak"], keepdims=0),
        helper.make_node("Sub", ["peak", "eighty"], ["floor"]),
        helper.make_node("Clip", ["a", "floor", "infinity"], ["b"]),
        helper.make_node("Clip", ["b", "", "peak"], ["y"]),
    ]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 3, 5, 6], [1, 4, 5, 6])
    kinds, noise = _kinds(path)
    assert (kinds.count("MAXIMUM"), kinds.count("MINIMUM")) == (1, 1) and noise > 100


@pytest.mark.parametrize("early", [False, True])
def test_a_hard_swish_that_is_spelled_out_is_one_operator_of_float_files(
    early: bool, tmp_path: Path
) -> None:
    numbers = {"three": 3, "low": 0, "six": 6}
    weights = {name: np.array(value, np.float32) for name, value in numbers.items()}
    weights["w"] = np.random.default_rng(6).normal(0, 1, (4, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "three"], ["r"]),
        helper.make_node("Clip", ["r", "low", "six"], ["c"]),
        helper.make_node("Div" if early else "Mul", ["c", "six" if early else "a"], ["m"]),
        helper.make_node("Mul" if early else "Div", ["m", "a" if early else "six"], ["y"]),
    ]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 3, 5, 6], [1, 4, 5, 6])
    kinds, noise = _kinds(path)
    assert set(kinds) - {"TRANSPOSE"} == {"CONV_2D", "ADD", "MUL"} and noise > 100
    written = export(
        path, target="tflite", precision="float32", preprocessing="none", out=tmp_path / "float"
    )
    merged = flatbuffer.Graph(written.model_path.read_bytes())
    found = {operator.kind for operator in merged.operators}
    assert found - {"TRANSPOSE"} == {"CONV_2D", "HARD_SWISH"}
    assert len(merged.used) == len(merged.tensors)  # nothing is left of what was spelled out


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_real_numbers_that_are_indices(target: str, tmp_path: Path) -> None:
    """tf2onnx leaves the numbers of words real and casts them; the check feeds none that no row of
    the table has."""
    table = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["words"], ["whole"], "cast", to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "whole"], ["rows"], "gather"),
        helper.make_node("ReduceMean", ["rows"], ["y"], "mean", axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("words", TensorProto.FLOAT, [1, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    package.save(model, tmp_path / "net.onnx")
    written = export(
        tmp_path / "net.onnx", target=target, precision="float32", out=tmp_path / target
    )
    words = np.array([[0, 2, 1, 1, 2]], np.float32)
    (found,) = answers(written, {"words": words}).values()
    np.testing.assert_allclose(found, table[words[0].astype(int)].mean(0)[None], rtol=1e-5)
