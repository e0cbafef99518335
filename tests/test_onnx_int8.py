"""int8 of float ONNX files: what is rounded, what stays float, how methods are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from exported import answers, decibels, export, export_all
from onnx import TensorProto, helper, numpy_helper

from edgekit.diagnosis.diff import diff
from edgekit.evaluation import parity
from edgekit.graph import onnx, onnx_forms
from edgekit.graph.flatbuffer import Graph
from edgekit.records.artifact import Artifact
from edgekit.sources import convert, keras, onnx_source
from edgekit.sources.float_model import load
from edgekit.sources.keras import tf_keras
from edgekit.writers import onnx_convert


def _drawn(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def _model(
    nodes: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    shape: Sequence[Any],
    outputs: Mapping[str, Sequence[Any]],
    opset: int = 17,
) -> Any:
    def value(name: str, sizes: Sequence[Any]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    def stored(name: str, values: np.ndarray) -> Any:
        real = np.asarray(values)
        return numpy_helper.from_array(
            real.astype(np.float32) if real.dtype.kind == "f" else real, name
        )

    graph = helper.make_graph(
        list(nodes),
        "net",
        [value("x", shape)],
        [value(name, sizes) for name, sizes in outputs.items()],
        [stored(name, values) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _int8(
    model: Any, folder: Path, x: np.ndarray, **given: Any
) -> tuple[Artifact, dict[str, float]]:
    """An int8 file, and the SQNR of each output."""
    path = folder / "net.onnx"
    package.save(model, path)
    np.savez(folder / "set.npz", x=x)
    written = export(
        path,
        target="onnx",
        precision="int8",
        preprocessing="none",
        calibration=str(folder / "set.npz"),
        out=folder / "out",
        force=True,
        **given,
    )
    session, names = onnx.session(path), [value.name for value in model.graph.output]
    runs = [session.run(names, {"x": x[i : i + 1]}) for i in range(len(x))]
    exact = dict(zip(names, map(np.concatenate, zip(*runs, strict=True)), strict=True))
    found = answers(written, {"x": x})
    return written, {name: decibels(exact[name], found[name]) for name in names}


def test_weights_far_smaller_than_their_bias(tmp_path: Path) -> None:
    """Batch normalisation with a gamma of nearly nothing: at the weights' own scale the bias would
    need more than 32 bits."""
    weights = _drawn(1, 9, 3, 3, 3, scale=0.3)
    weights[::3] *= np.float32(10.0) ** -np.arange(9, 12).reshape(-1, 1, 1, 1).astype(np.float32)
    bias = _drawn(2, 9, scale=0.3)
    bias[::3] = 1.5
    constants = {"w": weights, "b": bias, "v": _drawn(3, 9, 4), "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "tiny"),
        helper.make_node("Relu", ["a"], ["c"], "relu"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flat"),
        helper.make_node("MatMul", ["e", "v"], ["y"], "dense"),
    ]
    model = _model(nodes, constants, [1, 3, 10, 10], {"y": [1, 4]})
    for correction in ("auto", "none"):
        written, found = _int8(model, tmp_path, _drawn(4, 40, 3, 10, 10), correction=correction)
        assert found["y"] > 30
        said = [note for note in written.manifest.notes if "weight scales were raised" in note]
        assert len(said) == 1 and said[0].startswith("c:")  # with the activation behind it


@pytest.mark.parametrize("group", [1, 2, 4, 6])
def test_transposed_convolutions_in_groups(group: int, tmp_path: Path) -> None:
    own = 12 // group
    constants = {
        "w": _drawn(1, 12, 3, 3, 3, scale=0.3),
        "u": _drawn(2, 12, own, 3, 3, scale=0.3) * np.geomspace(0.05, 5, 12).reshape(-1, 1, 1, 1),
        "b": _drawn(3, 12),
    }
    up = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1], "group": group}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["c"], "relu"),
        helper.make_node("ConvTranspose", ["c", "u", "b"], ["y"], "up", **up),
    ]
    model = _model(nodes, constants, [1, 3, 8, 8], {"y": [1, 12, 8, 8]})
    written, found = _int8(model, tmp_path, _drawn(4, 40, 3, 8, 8))
    assert found["y"] > 30
    weights = [v for v in onnx.stored_constants(onnx.load(written.model_path)).values()
               if v.dtype == np.int8 and v.shape == (12 // group, own, 3, 3)]  # fmt: skip
    assert len(weights) == group


@pytest.mark.parametrize("form", [{"strides": [2, 1]}, {"dilations": [2, 2]}])
def test_a_transposed_convolution_with_a_dilation_stays_float(
    form: dict[str, Any], tmp_path: Path
) -> None:
    constants = {"w": _drawn(1, 6, 3, 3, 3, scale=0.3), "u": _drawn(2, 6, 2, 3, 3, scale=0.3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("ConvTranspose", ["a", "u"], ["y"], "up", **form),
    ]
    model = _model(nodes, constants, [1, 3, 8, 8], {"y": [1, 2, "h", "w"]})
    written, found = _int8(model, tmp_path, _drawn(4, 40, 3, 8, 8))
    assert found["y"] > 30
    constants = onnx.stored_constants(onnx.load(written.model_path))
    stored = {each.shape: each.dtype for each in constants.values()}
    assert stored[6, 2, 3, 3] == (np.float32 if "dilations" in form else np.int8)


def test_bounds_of_a_clip_stay_numbers_without_an_axis(tmp_path: Path) -> None:
    constants = {"w": _drawn(1, 4, 3, 1, 1), "b": _drawn(2, 4)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "conv"),
        helper.make_node("HardSigmoid", ["a"], ["y"], "gate", alpha=0.25),
    ]
    model = _model(nodes, constants, [1, 3, 5, 5], {"y": [1, 4, 5, 5]})
    prepared = onnx_source.prepare(model, integers=True)
    written, found = _int8(model, tmp_path, _drawn(4, 40, 3, 5, 5, scale=2))
    for each in (prepared, onnx.load(written.model_path)):
        constants = onnx.stored_constants(each)
        for node in each.graph.node:
            if node.op_type == "Clip":
                assert [constants[name].shape for name in node.input[1:]] == [(), ()]
    assert found["y"] > 30


@pytest.mark.parametrize("rows", [1, "n"])
def test_a_product_of_what_has_no_known_size_is_told(rows: Any) -> None:
    constants = {"w": _drawn(1, 16, 16), "u": _drawn(2, 4, 3), "b": _drawn(3, 3)}
    whole = {"one": [1], "at": [1], "four": [4], "end": [1, 12]}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Gather", ["s", "at"], ["n"]),
        helper.make_node("Div", ["n", "four"], ["d"]),
        helper.make_node("Concat", ["one", "d", "four"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["a", "sizes"], ["r"]),
        helper.make_node("Squeeze", ["r"], ["q"]),  # of how many axes is not known
        helper.make_node("MatMul", ["q", "u"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["c"]),
        helper.make_node("Reshape", ["c", "end"], ["y"]),
    ]
    stored = {**constants, **{name: np.array(each) for name, each in whole.items()}}
    model = _model(nodes, stored, [rows, 16], {"y": [rows, 12]})
    prepared = onnx_source.prepare(model, integers=True)
    # with two samples the file does not run, so that the sizes are not seen
    assert onnx_forms.without_sizes(prepared) == (("p",) if rows == "n" else ())


@pytest.mark.parametrize("form", ["one operator", "of a hard sigmoid", "of a product"])
def test_a_hard_swish_computes_in_integers(form: str, tmp_path: Path) -> None:
    """TFLite's own int8 kernel is slow and less exact; onnxruntime has none."""
    numbers = {"three": 3, "low": 0, "six": 6}
    constants = {name: np.array(value, np.float32) for name, value in numbers.items()}
    constants |= {"w": _drawn(1, 4, 3, 3, 3), "u": _drawn(2, 2, 4, 1, 1)}
    make = helper.make_node
    swish = {
        "one operator": [make("HardSwish", ["a"], ["s"], "swish")],
        "of a hard sigmoid": [
            make("HardSigmoid", ["a"], ["h"], "gate", alpha=1 / 6),
            make("Mul", ["a", "h"], ["s"], "swish"),
        ],
        "of a product": [
            make("Add", ["a", "three"], ["r"], "raised"),
            make("Clip", ["r", "low", "six"], ["c"], "cut"),
            make("Mul", ["a", "c"], ["m"], "product"),
            make("Div", ["m", "six"], ["s"], "swish"),
        ],
    }
    nodes = [make("Conv", ["x", "w"], ["a"]), *swish[form], make("Conv", ["s", "u"], ["y"])]
    if form != "of a product":
        for name in numbers:
            del constants[name]
    onnx.package().save(
        _model(nodes, constants, [1, 3, 8, 8], {"y": [1, 2, 6, 6]}), tmp_path / "net.onnx"
    )
    x = _drawn(3, 40, 3, 8, 8)
    np.savez(tmp_path / "x.npz", x=x)
    written = export_all(
        tmp_path / "net.onnx", targets=("tflite", "onnx"), precisions=("int8", "float32"),
        preprocessing="none", calibration=str(tmp_path / "x.npz"), out=tmp_path,
    )  # fmt: skip
    tflite, float_tflite, model, _ = written
    kinds = {each.kind for each in Graph(tflite.model_path.read_bytes()).operators}
    assert kinds == {"CONV_2D", "ADD", "MUL", "TRANSPOSE"}
    merged = {each.kind for each in Graph(float_tflite.model_path.read_bytes()).operators}
    assert merged == {"CONV_2D", "HARD_SWISH", "TRANSPOSE"}
    for each in (tflite, model):
        assert each.manifest.execution is not None
        assert each.manifest.execution.floats == ()
        assert each.manifest.quantization is not None
        assert each.manifest.quantization.judged[0].sqnr_centred > 30
    assert parity.numbers(tflite, model).differences == ()


def test_methods_are_judged_before_a_softmax_by_samples_of_their_own(tmp_path: Path) -> None:
    constants = {"w": _drawn(1, 8, 5, scale=0.5), "b": _drawn(2, 5)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "dense"),
        helper.make_node("Softmax", ["h"], ["y"], "classes"),
    ]
    scores = _model(nodes[:1], constants, ["N", 8], {"h": ["N", 5]})
    classes = _model(nodes, constants, ["N", 8], {"y": ["N", 5]})
    x = _drawn(3, 50, 8)
    tried = []
    for model in (scores, classes):
        written, _ = _int8(model, tmp_path, x)
        assert written.manifest.quantization is not None
        tried.append(written.manifest.quantization.tried)
    assert tried[0] == pytest.approx(tried[1], abs=0.5)
    x[4::5] *= 30  # what is judged by, of which no range and no mean may know
    written, found = _int8(scores, tmp_path, x)
    assert written.manifest.quantization is not None
    assert max(written.manifest.quantization.tried.values()) < 5
    assert found["h"] > 25  # the file's own ranges are of all samples


def _normalised(kind: str) -> tuple[list[Any], dict[str, np.ndarray], list[str]]:
    """A layer normalisation spelled as exporters do, between two products; what has to be float."""
    node = helper.make_node
    constants = {"w": _drawn(1, 16, 32, scale=0.4), "b": _drawn(2, 32), "axis": np.array([1]),
                 "two": np.array(2.0), "small": np.array(1e-6), "gamma": _drawn(3, 32) ** 2 + 0.5,
                 "beta": _drawn(4, 32), "u": _drawn(5, 32, 4)}  # fmt: skip
    begin = [
        node("Gemm", ["x", "w", "b"], ["a"], "first"),
        node("Mul", ["a", "a4"], ["a0"], "shrink"),
    ]
    constants["a4"] = np.array(1.0)
    mean = [node("ReduceMean", ["a0"], ["mean"], "mean", axes=[1])]
    if kind == "moments":  # E[x^2] - E[x]^2, and a product with the reciprocal of the root
        spread = [
            node("Mul", ["a0", "a0"], ["square"], "square"),
            node("ReduceMean", ["square"], ["power"], "power", axes=[1]),
            node("Mul", ["mean", "mean"], ["mean2"], "mean2"),
            node("Sub", ["power", "mean2"], ["variance"], "variance"),
            node("Add", ["variance", "small"], ["more"], "more"),
            node("Sqrt", ["more"], ["root"], "root"),
            node("Reciprocal", ["root"], ["one"], "one"),
            node("Mul", ["one", "gamma"], ["factor"], "factor"),
            node("Sub", ["a0", "mean"], ["centred"], "centred"),
            node("Mul", ["centred", "factor"], ["scaled"], "scaled"),
        ]
    else:
        spread = [
            node("Sub", ["a0", "mean"], ["centred"], "centred"),
            node("Mul", ["centred", "centred"], ["square"], "square"),
            node("ReduceMean", ["square"], ["variance"], "variance", axes=[1]),
            node("Add", ["variance", "small"], ["more"], "more"),
            node("Sqrt", ["more"], ["root"], "root"),
            node("Div", ["centred", "root"], ["divided"], "divided"),
            node("Mul", ["divided", "gamma"], ["scaled"], "scaled"),
        ]
    end = [
        node("Add", ["scaled", "beta"], ["normal"], "normal"),
        node("MatMul", ["normal", "u"], ["y"], "last"),
    ]
    floats = {"moments": ["square", "more", "factor", "scaled"], "centred": ["square", "more"]}
    return [*begin, *mean, *spread, *end], constants, floats[kind]


@pytest.mark.parametrize("kind", ["moments", "centred"])
def test_variances_and_what_is_made_of_them_stay_float(kind: str, tmp_path: Path) -> None:
    nodes, constants, floats = _normalised(kind)
    model = _model(nodes, constants, ["N", 16], {"y": ["N", 4]})
    assert set(floats) <= onnx_forms.relative(model)
    sizes = np.geomspace(1e-3, 10, 60).reshape(-1, 1)  # from sample to sample
    _, found = _int8(model, tmp_path, (_drawn(6, 60, 16) * sizes).astype(np.float32))
    assert found["y"] > 20


def test_a_spectrum_stays_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "transform"),
        helper.make_node("Mul", ["a", "a"], ["b"], "square"),
        helper.make_node("Log", ["b"], ["y"], "log"),
    ]
    model = _model(nodes, {"w": _drawn(1, 8, 1, 16)}, [1, 1, 64], {"y": [1, 8, 49]})
    written, found = _int8(model, tmp_path, _drawn(2, 40, 1, 64))
    assert found["y"] > 30
    assert written.manifest.quantization is not None
    assert {"a", "x"} <= set(written.manifest.quantization.floats)


def test_parts_of_very_different_size_keep_their_scales(tmp_path: Path) -> None:
    constants = {
        "w": _drawn(1, 8, 3, 1, 1) * 40, "c": np.full(8, 160.0), "v": _drawn(2, 6, 3, 1, 1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w", "c"], ["boxes"], "boxes"),
        helper.make_node("Conv", ["x", "v"], ["a"], "scores"),
        helper.make_node("Sigmoid", ["a"], ["p"], "sigmoid"),
        helper.make_node("Concat", ["boxes", "p"], ["y"], "both", axis=1),
        helper.make_node("Identity", ["p"], ["z"], "same"),
    ]
    model = _model(nodes, constants, [1, 3, 6, 6], {"y": [1, 14, 6, 6], "z": [1, 6, 6, 6]})
    x = _drawn(3, 40, 3, 6, 6)
    written, _ = _int8(model, tmp_path, x)
    found, session = answers(written, {"x": x})["y"], onnx.session(tmp_path / "net.onnx")
    exact = np.concatenate([session.run(["y"], {"x": x[i : i + 1]})[0] for i in range(40)])
    for part in (slice(0, 8), slice(8, 14)):
        assert decibels(exact[:, part], found[:, part]) > 30


def test_an_infinite_constant_is_no_number_of_a_layer(tmp_path: Path) -> None:
    constants = {"w": _drawn(1, 6, 5), "b": _drawn(2, 5), "low": np.array(-np.inf),
                 "v": _drawn(3, 5, 3)}  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], "dense"),
        helper.make_node("Max", ["a", "low"], ["c"], "max"),
        helper.make_node("MatMul", ["c", "v"], ["y"], "last"),
    ]
    model = _model(nodes, constants, ["N", 6], {"y": ["N", 3]})
    _, found = _int8(model, tmp_path, _drawn(4, 40, 6))
    assert found["y"] > 30
    half = export(
        tmp_path / "net.onnx",
        target="onnx",
        precision="float16",
        preprocessing="none",
        out=tmp_path / "half",
    )
    x = _drawn(5, 8, 6)
    exact = onnx.session(tmp_path / "net.onnx").run(None, {"x": x})[0]
    assert decibels(exact, answers(half, {"x": x})["y"]) > 50


def test_a_batch_normalisation_that_no_layer_took_in(tmp_path: Path) -> None:
    spread = np.geomspace(0.01, 10, 8)
    constants = {
        "w": _drawn(1, 4, 3, 1, 1), "v": _drawn(2, 4, 3, 3, 3), "u": _drawn(3, 8, 5, 2, 2),
        "scale": spread, "offset": _drawn(4, 8), "mean": _drawn(5, 8), "variance": spread**2,
        "scale2": spread[:5], "offset2": _drawn(6, 5), "mean2": _drawn(7, 5),
        "variance2": np.ones(5),
    }  # fmt: skip
    names = ("scale", "offset", "mean", "variance")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "one"),
        helper.make_node("Conv", ["x", "v"], ["b"], "other", pads=[1] * 4),
        helper.make_node("Concat", ["a", "b"], ["c"], "both", axis=1),
        helper.make_node("BatchNormalization", ["c", *names], ["d"], "norm"),
        helper.make_node("ConvTranspose", ["d", "u"], ["e"], "up", strides=[2, 2]),
        helper.make_node(
            "BatchNormalization", ["e", *(f"{name}2" for name in names)], ["y"], "last"
        ),
    ]
    model = _model(nodes, constants, [1, 3, 6, 6], {"y": [1, 5, 12, 12]})
    prepared = onnx_source.prepare(model, integers=True)
    kinds = [node.op_type for node in prepared.graph.node]
    assert "BatchNormalization" not in kinds  # the first of the two is a factor and a summand
    assert kinds.count("Mul") == kinds.count("Add") == 1
    x = _drawn(8, 40, 3, 6, 6)
    one, other = (
        onnx.session(each.SerializeToString()).run(["y"], {"x": x[:1]})[0]
        for each in (model, prepared)
    )
    assert decibels(one, other) > 90
    _, found = _int8(model, tmp_path, x)
    assert found["y"] > 28


def test_weights_that_several_steps_share_are_stored_once(tmp_path: Path) -> None:
    """As in a recurrent network whose steps an exporter unrolled."""
    constants = {"w": _drawn(1, 64, 64, scale=0.15), "b": _drawn(2, 64, scale=0.1)}
    nodes, name = [], "x"
    for i in range(6):
        nodes.append(helper.make_node("Gemm", [name, "w", "b"], [f"a{i}"], f"step{i}"))
        nodes.append(helper.make_node("Tanh", [f"a{i}"], [f"h{i}"], f"tanh{i}"))
        name = f"h{i}"
    model = _model(nodes, constants, ["N", 64], {name: ["N", 64]})
    written, found = _int8(model, tmp_path, _drawn(3, 40, 64), correction="none")
    assert found[name] > 25
    stored = onnx.load(written.model_path)
    matrices = [t for t in stored.graph.initializer if list(t.dims) == [64, 64]]
    assert len(matrices) == 1 and written.size < 4 * constants["w"].size
    x = {"x": _drawn(4, 8, 64)}
    plain, precise = (
        onnx.session(written.model_path, options={"session.x64quantprecision": flag}).run(None, x)
        for flag in ("0", "1")
    )
    assert decibels(plain[0], precise[0]) > 40


def test_a_quotient_by_a_constant_is_a_product() -> None:
    nodes = [
        helper.make_node("Div", ["x", "six"], ["a"], "sixth"),
        helper.make_node("Sub", ["a", "half"], ["b"], "less"),
        helper.make_node("Div", ["b", "none"], ["y"], "by zero"),
    ]
    constants = {"six": np.array(6.0), "half": np.array(0.5), "none": np.array(0.0)}
    model = _model(nodes, constants, ["N", 4], {"y": ["N", 4]})
    onnx_forms.for_integers(model)
    assert [node.op_type for node in model.graph.node] == ["Mul", "Add", "Div"]


def test_layers_of_an_onnx_file_by_its_own_names(
    tmp_path: Path, edgekit: Callable[..., Any]
) -> None:
    constants = {
        "w": _drawn(1, 8, 3, 3, 3, scale=0.3), "b": _drawn(2, 8), "v": _drawn(3, 8, 8, 3, 3),
        "u": _drawn(4, 8, 4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "v"], ["d"], "second"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "u"], ["y"], "dense"),
    ]
    model = _model(nodes, constants, [1, 3, 10, 10], {"y": [1, 4]})
    written, _ = _int8(model, tmp_path, _drawn(5, 40, 3, 10, 10))
    done = edgekit(
        "compare", tmp_path / "net.onnx", written.path, "--layers", "--data", tmp_path / "set.npz",
        "--csv", tmp_path / "layers.csv",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    rows = {row["name"]: row for row in done.document["rows"]}
    assert {"x", "c", "d", "y"} <= set(rows)
    assert done.document["verdict"] is None
    assert rows["d"]["kind"] == "CONV_2D" and rows["d"]["isolated"]["sqnr"] > 30
    wrong = onnx.load(written.model_path)
    makers = {node.output[0]: node for node in wrong.graph.node}
    second = next(node for node in wrong.graph.node if node.name == "second")
    scale = next(t for t in wrong.graph.initializer if t.name == makers[second.input[1]].input[1])
    values = numpy_helper.to_array(scale).copy()
    values[3] *= 2
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))
    package.save(wrong, written.model_path)
    manifest = written.path / "manifest.json"
    text = manifest.read_text().replace(
        written.sha256, __import__("hashlib").sha256(written.model_path.read_bytes()).hexdigest()
    )
    manifest.write_text(text)
    found = diff(tmp_path / "net.onnx", written.path, dataset=str(tmp_path / "set.npz"))
    assert found.verdict is not None and found.verdict.layer == "d"
    assert "channel 3" in found.verdict.reason


def test_layers_of_a_float16_file_of_an_onnx_file(tmp_path: Path) -> None:
    nodes, constants, _ = _normalised("centred")
    package.save(_model(nodes, constants, ["N", 16], {"y": ["N", 4]}), tmp_path / "net.onnx")
    x = _drawn(6, 40, 16)
    np.savez(tmp_path / "set.npz", x=x)
    made = {
        precision: export(
            tmp_path / "net.onnx",
            target="onnx",
            precision=precision,
            preprocessing="none",
            out=tmp_path / precision,
        )
        for precision in ("float32", "float16")
    }
    for reference in (tmp_path / "net.onnx", made["float32"].path):
        found = diff(reference, made["float16"].path, dataset=str(tmp_path / "set.npz"))
        assert found.verdict is None and found.rows[-1].name == "y"
        errors = found.rows[-1].accumulated
        assert errors is not None and errors.sqnr > 50


def test_everything_of_a_file_is_loaded_once(tmp_path: Path) -> None:
    """What the manifest says of the source is what load() reads again."""
    nodes, constants, _ = _normalised("centred")
    model = _model(nodes, constants, ["N", 16], {"y": ["N", 4]})
    written, _ = _int8(model, tmp_path, _drawn(6, 40, 16))
    assert written.manifest.source is not None and written.manifest.source.shapes == {}
    assert load(tmp_path / "net.onnx", preprocessing="none").source.sha256 == (
        written.manifest.source.sha256
    )


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_state_of_zeros_before_the_first_step(target: str, tmp_path: Path) -> None:
    """An unrolled cell multiplies its forget gate by zeros in the first step: nothing is dead."""
    constants = {"w": _drawn(1, 4, 6), "u": _drawn(2, 4, 6), "zeros": np.zeros((1, 6), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "gate"),
        helper.make_node("Sigmoid", ["a"], ["forget"], "forget"),
        helper.make_node("Mul", ["forget", "zeros"], ["kept"], "kept"),
        helper.make_node("MatMul", ["x", "u"], ["new"], "new"),
        helper.make_node("Add", ["kept", "new"], ["y"], "cell"),
    ]
    path = tmp_path / "cell.onnx"
    package.save(_model(nodes, constants, [1, 4], {"y": [1, 6]}), path)
    x = _drawn(3, 40, 4)
    np.savez(tmp_path / "set.npz", x=x)
    given = {"calibration": str(tmp_path / "set.npz"), "out": tmp_path / "out"}
    written = export(path, target=target, precision="int8", **given)
    exact = x @ constants["u"]
    assert decibels(exact, next(iter(answers(written, {"x": x}).values()))) > 30


@pytest.mark.parametrize("kind", ["keras", "onnx"])
def test_the_table_of_an_embedding_is_int8_in_both_formats(kind: str, tmp_path: Path) -> None:
    """Rows are looked up by whole numbers, which have no encoding."""
    drawn, path = np.random.default_rng(6), tmp_path / f"net.{kind}"
    table, w = drawn.normal(0, 1, (500, 8)), drawn.normal(0, 0.5, (8, 4))
    if kind == "keras":
        keras = tf_keras()
        ids = keras.Input((6,), name="ids", dtype="int32")
        rows = keras.layers.Embedding(500, 8, weights=[table])(ids)
        keras.Model(ids, keras.layers.Dense(4, weights=[w, np.zeros(4)])(rows)).save(path)
    else:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [
                helper.make_node("Gather", ["table", "ids"], ["rows"], "look_up"),
                helper.make_node("MatMul", ["rows", "w"], ["y"], "dense"),
            ],
            "net",
            [value("ids", TensorProto.INT64, [1, 6])],
            [value("y", TensorProto.FLOAT, [1, 6, 4])],
            [
                numpy_helper.from_array(each.astype(np.float32), name)
                for name, each in (("table", table), ("w", w))
            ],
        )
        opsets = [helper.make_opsetid("", 18)]
        package.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    dtype = np.int32 if kind == "keras" else np.int64
    np.savez(tmp_path / "set.npz", ids=drawn.integers(0, 500, (60, 6)).astype(dtype))
    written = export_all(
        path,
        targets=["tflite", "onnx"],
        precisions=["int8"],
        preprocessing="none",
        calibration=str(tmp_path / "set.npz"),
        out=tmp_path,
    )
    same = parity.numbers(*written)
    assert same.compared > table.size and not same.differences
    model = onnx.load(written[1].model_path)
    sizes = {t.data_type: int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) > 1}
    assert TensorProto.FLOAT not in sizes and sizes[TensorProto.UINT8] == table.size
    assert not [note for note in written[1].manifest.notes if "constants" in note]
    execution = written[1].manifest.execution
    assert execution is not None and not execution.floats


def test_what_stays_float_is_not_said_to_be_absent(tmp_path: Path) -> None:
    """onnxruntime has no integer kernel of a layer normalization; its factors are in the file."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "gamma", "beta"], ["y"], axis=-1),
    ]
    constants = {"w": _drawn(1, 6, 8), "gamma": 1 + _drawn(2, 8, scale=0.1), "beta": _drawn(3, 8)}
    path = tmp_path / "net.onnx"
    package.save(_model(nodes, constants, [1, 6], {"y": [1, 8]}), path)
    np.savez(tmp_path / "set.npz", x=_drawn(4, 60, 6))
    written = export(
        path, target="onnx", precision="int8", preprocessing="none",
        calibration=str(tmp_path / "set.npz"), out=tmp_path / "int8",
    )  # fmt: skip
    (said,) = [note for note in written.manifest.notes if "constants of the float graph" in note]
    assert "are part of other operators or are read in float" in said and "no constants" not in said


def test_the_same_model_gives_the_same_file(small: Path) -> None:
    """tf2onnx numbers its names on from one conversion to the next, and goes through sets."""
    graph = convert.from_keras(keras.load(small / "small.keras"))
    written = {onnx_convert.from_tflite(graph).SerializeToString() for _ in range(4)}
    assert len(written) == 1
    model = onnx_convert.from_tflite(graph)
    names = [each.name for each in model.graph.initializer]
    assert len(set(names)) == len(names)
    read = [name for node in model.graph.node for name in node.input]
    assert names == sorted(names, key=read.index)
