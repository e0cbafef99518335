"""ONNX files laid out in ways that exporters do not all have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from exported import answers, decibels, export
from onnx import TensorProto, helper, numpy_helper

from edgekit.base.errors import ExecutionError, InvalidModelError
from edgekit.diagnosis.diff import diff
from edgekit.graph import onnx
from edgekit.records.artifact import Artifact
from edgekit.sources import float_model
from edgekit.sources import keras as keras_format


def _drawn(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape)


def _save(
    path: Path,
    nodes: Sequence[Any],
    weights: dict[str, np.ndarray],
    shape: Sequence[Any],
    answer: Sequence[Any],
    opsets: Sequence[tuple[str, int]] = (("", 18),),
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, answer)],
        [numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in weights.items()],
    )
    imports = [helper.make_opsetid(*each) for each in opsets]
    package.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def _int8(path: Path, shape: tuple[int, ...]) -> tuple[Artifact, float]:
    """An int8 file, and its SQNR."""
    values = np.random.default_rng(6).normal(0, 1, (40, *shape)).astype(np.float32)
    np.savez(path.with_suffix(".npz"), x=values)
    written = export(
        path,
        target="onnx",
        precision="int8",
        preprocessing="none",
        calibration=str(path.with_suffix(".npz")),
        out=path.with_suffix(""),
    )
    session = onnx.session(path)
    exact = np.concatenate([session.run(["y"], {"x": values[i : i + 1]})[0] for i in range(40)])
    return written, decibels(exact, answers(written, {"x": values})["y"])


def test_a_layer_without_a_bias_that_is_called_as_its_answer(tmp_path: Path) -> None:
    weights = {"w": _drawn(1, 4, 3, 3, 3, scale=0.3), "u": _drawn(2, 4, 2, 3, 3, scale=0.3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "a", pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["a", "u"], ["y"], "y", strides=[2, 2]),
    ]
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 3, 8, 8], [1, 2, 17, 17])
    assert _int8(path, (3, 8, 8))[1] > 30


def test_the_opset_of_onnx_need_not_be_named_first(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], "dense", transB=1),
        helper.make_node("Gelu", ["a"], ["y"], "gelu"),
    ]
    weights = {"w": _drawn(3, 4, 6), "b": _drawn(4, 4)}
    opsets = [("ai.onnx.ml", 3), ("", 20)]
    path = _save(tmp_path / "net.onnx", nodes, weights, ["batch", 6], ["batch", 4], opsets)
    assert _int8(path, (6,))[1] > 25


def test_a_weight_that_only_a_branch_reads_stays(tmp_path: Path) -> None:
    out = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    branches = [
        helper.make_graph([helper.make_node(kind, ["a", "outer"], ["inner"])], kind, [], out)
        for kind in ("Add", "Mul")
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], "dense", transB=1),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["y"], then_branch=branches[0], else_branch=branches[1]
        ),
    ]
    weights = {"w": _drawn(3, 4, 6), "b": np.ones(4), "outer": np.full(4, 2), "zero": 0}
    path = _save(tmp_path / "net.onnx", nodes, weights, [1, 6], [1, 4])
    assert _int8(path, (6,))[1] > 10  # a sum near 0 may take the other branch


def test_one_number_for_all_samples_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    path = _save(tmp_path / "net.onnx", nodes, {}, ["batch", 6], [])
    for precision in ("float32", "float16"):
        with pytest.raises(InvalidModelError, match="give the output a batch axis"):
            export(
                path,
                target="onnx",
                precision=precision,
                preprocessing="none",
                out=tmp_path / "out",
            )


def test_channels_first_from_end_to_end(tmp_path: Path) -> None:
    """What TensorFlow turns for its kernels, the ONNX graph has as the model did."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = keras.Input((3, 8, 8), name="image")
    x = layers.Conv2D(4, 3, activation="relu")(layers.Permute((2, 3, 1))(image))
    for last in (None, "relu"):
        y = layers.Permute((3, 1, 2))(layers.Conv2D(5, 3, activation=last)(x))
        name = last or "linear"
        keras.Model(image, y).save(tmp_path / f"{name}.keras")
        given = {"precision": "float32", "preprocessing": "unit"}
        made = [
            export(tmp_path / f"{name}.keras", target=t, out=tmp_path / f"{name}-{t}", **given)
            for t in ("tflite", "onnx")
        ]
        pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "set.npz", x=pixels)
        whole = export(
            tmp_path / f"{name}.keras",
            target="onnx",
            precision="int8",
            preprocessing="unit",
            calibration=str(tmp_path / "set.npz"),
            out=tmp_path / f"{name}-int8",
        )
        fed = {"image": pixels / np.float32(255)}
        (exact,), (own,) = (answers(each, fed).values() for each in (made[0], whole))
        assert decibels(exact, own) > 30
        found = diff(made[0].path, made[1].path, dataset=str(tmp_path / "set.npz"))
        assert found.verdict is None
        assert any(row.name == found.rows[-1].name for row in found.rows)


def test_indices_outside_of_their_table_are_one_line(tmp_path: Path) -> None:
    keras = keras_format.tf_keras()
    words = keras.Input((3,), name="words", dtype="int32")
    x = keras.layers.Flatten()(keras.layers.Embedding(9, 4)(words))
    keras.Model(words, keras.layers.Dense(2)(x)).save(tmp_path / "net.keras")
    made = export(
        tmp_path / "net.keras",
        target="tflite",
        precision="float32",
        preprocessing="none",
        out=tmp_path / "lite",
    )
    np.savez(tmp_path / "set.npz", words=np.full((4, 3), 900, np.int32))
    with pytest.raises(ExecutionError, match="indices have to be inside"):
        diff(made.path, made.path, dataset=str(tmp_path / "set.npz"))


def test_a_low_picture_of_many_channels_is_no_picture_turned(tmp_path: Path) -> None:
    keras = keras_format.tf_keras()
    image = keras.Input((1, 16, 9), name="waves")
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, (1, 3))(image))
    keras.Model(image, keras.layers.Dense(2)(x)).save(tmp_path / "net.keras")
    prepare = tmp_path / "nine.json"
    prepare.write_text(json.dumps({"name": "nine", "scale": [0.01] * 9, "offset": [0.0] * 9}))
    source = float_model.load(tmp_path / "net.keras", preprocessing=str(prepare))
    assert len(source.preprocessing.scale) == 9
    export(
        tmp_path / "net.keras",
        target="tflite",
        precision="float32",
        preprocessing=str(prepare),
        out=tmp_path / "out",
    )


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_an_output_of_truth_values_is_compared(target: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Greater", ["y", "zero"], ["over"]),
    ]
    weights = {"w": _drawn(1, 8, 4), "zero": np.zeros(())}
    path = _save(tmp_path / "net.onnx", nodes, weights, ["n", 8], ["n", 4])
    model = package.load(path)
    model.graph.output.append(helper.make_tensor_value_info("over", TensorProto.BOOL, ["n", 4]))
    package.save(model, path)
    for precision in ("float32", "float16"):
        written = export(
            path,
            target=target,
            precision=precision,
            preprocessing="none",
            out=tmp_path / precision,
        )
        assert [spec.dtype for spec in written.manifest.signature.outputs] == ["float32", "bool"]
