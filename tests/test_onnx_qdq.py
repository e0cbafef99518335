"""ONNX files that are int8 already, in QDQ format: TFLite with exactly their integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from exported import export, export_all
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node as node
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from test_torch_files import CALIBRATION, FILES

from edgekit.base.errors import EdgekitError, InvalidModelError, InvalidOptionError
from edgekit.calibrate import calibrate
from edgekit.compare import Options, compare
from edgekit.diagnosis.diff import diff
from edgekit.evaluation import parity
from edgekit.graph import litert, onnx
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.records.signature import preprocessing
from edgekit.runtimes import model_file
from edgekit.sources import float_model
from edgekit.writers import tflite_integers

_PICTURE = (3, 16, 16)
_Weights = Mapping[str, np.ndarray]


def _weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, sizes).astype(np.float32) for name, sizes in shapes.items()}


def _save(
    path: Path,
    nodes: Sequence[Any],
    constants: _Weights,
    output: tuple[int, ...],
    inputs: tuple[int, ...] = _PICTURE,
    kind: int = TensorProto.FLOAT,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", kind, ["batch", *inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *output])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    package.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def _classifier(path: Path) -> Path:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"], "relu"),
        node("Conv", ["r1", "dw", "b2"], ["c2"], "depthwise", pads=[1, 1, 1, 1], group=8),
        node("Add", ["c2", "r1"], ["a"], "residual"),
        node("Add", ["a", "c"], ["ac"], "shift"),
        node("MaxPool", ["ac"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["m"], ["g"], "mean"),
        node("Flatten", ["g"], ["f"], "flat"),
        node("Gemm", ["f", "fw", "fb"], ["y"], "dense", transB=1),
    ]
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "dw": (8, 1, 3, 3), "b2": (8,), "c": (1, 8, 1, 1)}
    return _save(path, nodes, _weights(**shapes, fw=(5, 8), fb=(5,)), (5,))


def _decoder(path: Path) -> Path:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["c1"], ["s1"], "gate"),
        node("Mul", ["c1", "s1"], ["m1"], "silu"),
        node("Conv", ["m1", "w2", "b2"], ["c2"], "down", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Clip", ["c2", "low", "high"], ["r6"], "relu6"),
        node("Resize", ["r6", "", "twice"], ["up"], "up", mode="nearest",
             coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Concat", ["up", "m1"], ["both"], "join", axis=1),
        node("ConvTranspose", ["both", "wt", "bt"], ["ct"], "spread", strides=[2, 2]),
        node("AveragePool", ["ct"], ["ap"], "mean", kernel_shape=[2, 2], strides=[2, 2]),
        node("LeakyRelu", ["ap"], ["y"], "leaky", alpha=0.1),
    ]  # fmt: skip
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "bt": (4,)}
    found = _weights(**shapes, wt=(16, 4, 2, 2))
    limits = {"low": np.float32(0), "high": np.float32(6), "twice": np.float32([1, 1, 2, 2])}
    return _save(path, nodes, {**found, **limits}, (4, 16, 16))


def _attention(path: Path) -> Path:
    nodes = [
        node("MatMul", ["x", "wq"], ["q"], "query"),
        node("Add", ["q", "bq"], ["qb"], "query_bias"),
        node("MatMul", ["x", "wk"], ["k"], "key"),
        node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        node("MatMul", ["qb", "kt"], ["s"], "scores"),
        node("Softmax", ["s"], ["p"], "softmax", axis=-1),
        node("MatMul", ["p", "x"], ["o"], "mix"),
        node("Add", ["o", "x"], ["sum"], "residual"),
        node("ReduceMean", ["sum"], ["mean"], "mean", axes=[1], keepdims=0),
        node("Gemm", ["mean", "wf", "bf"], ["y"], "dense", transB=1),
    ]
    found = _weights(wq=(16, 16), bq=(16,), wk=(16, 16), wf=(4, 16), bf=(4,))
    return _save(path, nodes, found, (4,), (6, 16))


_NETS: dict[str, Callable[[Path], Path]] = {
    "classifier": _classifier,
    "decoder": _decoder,
    "attention": _attention,
}


class _Samples(CalibrationDataReader):
    def __init__(self, model: Path) -> None:
        (spec,) = onnx.signature(onnx.load(model)).inputs
        rng = np.random.default_rng(1)
        drawn = [rng.uniform(0, 1, (1, *spec.shape[1:])).astype(np.float32) for _ in range(8)]
        self._left = iter([{"x": each} for each in drawn])

    def get_next(self) -> Any:
        return next(self._left, None)


def _quantized(
    model: Path, *, activations: str = "QInt8", weights: str = "QInt8", **options: Any
) -> Path:
    """What onnxruntime makes of a float file."""
    path = model.with_name(f"{model.stem}_int8.onnx")
    quantize_static(
        str(model),
        str(path),
        _Samples(model),
        quant_format=options.pop("form", QuantFormat.QDQ),
        activation_type=getattr(QuantType, activations),
        weight_type=getattr(QuantType, weights),
        **options,
    )
    return path


def _exported(path: Path, out: Path) -> Artifact:
    return export(path, target="tflite", precision="int8", preprocessing="none", out=out)


def _numbers(written: Artifact, path: Path) -> parity.Numbers:
    return parity.numbers(written, model_file.load(path, preprocessing("none")))


def _steps(written: Artifact, path: Path) -> np.ndarray:
    """How many steps each output of the two files lies apart, on 16 samples."""
    # onnxruntime does not choose weights that cannot saturate without VNNI
    opened = onnx.session(path.read_bytes(), options={environment.PRECISE: "1"})
    (spec,) = onnx.signature(onnx.load(path)).inputs
    values = np.random.default_rng(2).uniform(0, 1, (16, *spec.shape[1:])).astype(np.float32)
    runner = litert.interpreter(written.model_path.read_bytes()).get_signature_runner(
        "serving_default"
    )
    own = written.manifest.signature
    (given,), (end,) = own.inputs, own.outputs
    found = []
    for sample in values:
        right = opened.run(None, {"x": sample[None]})[0]
        fed = given.quantize(given.arrange(sample[None]))
        answer = end.dequantize(litert.invoke(runner, **{given.name: fed})[end.name])
        found.append((answer - right) / (end.scale or 1.0))
    return np.abs(np.concatenate(found))


@pytest.mark.parametrize("activations", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", _NETS)
def test_tflite_has_exactly_the_integers_of_the_file(
    name: str, per_channel: bool, activations: str, tmp_path: Path
) -> None:
    path = _quantized(
        _NETS[name](tmp_path / "net.onnx"), activations=activations, per_channel=per_channel
    )
    written = _exported(path, tmp_path / "out")
    found = _numbers(written, path)
    assert found.differences == ()
    assert found.compared > 400
    off = _steps(written, path)
    assert np.mean(off < 1.01) > (0.9 if name == "decoder" else 0.97)
    assert off.max() < 8
    record, execution = written.manifest.quantization, written.manifest.execution
    assert record is not None and execution is not None
    assert record.way == "taken over from the file"
    floats = {"classifier": set(), "decoder": {"LOGISTIC"}, "attention": {"SOFTMAX"}}[name]
    assert {each.split()[0] for each in execution.floats} == floats
    assert written.manifest.signature.outputs[0].dtype == "int8"


@pytest.mark.parametrize(
    "options",
    [
        {"extra_options": {"ActivationSymmetric": True}},
        {"extra_options": {"AddQDQPairToWeight": True}},
        {"nodes_to_exclude": ["down"]},
        {"op_types_to_quantize": ["Conv", "Mul"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_onnxruntime(options: dict[str, Any], tmp_path: Path) -> None:
    path = _quantized(_decoder(tmp_path / "net.onnx"), **options)
    written = _exported(path, tmp_path / "out")
    assert _numbers(written, path).differences == ()
    assert np.mean(_steps(written, path) < 1.01) > 0.9


_FIRST = node("Conv", ["x", "w", "b"], ["c"], "first", pads=[1, 1, 1, 1])
_OWN = {"w": (8, 3, 3, 3), "b": (8,)}
#: Nodes behind a convolution, shapes of weights, other constants, and the output.
_FORMS: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "groups": ([node("Conv", ["c", "g"], ["y"], group=2)], {"g": (8, 4, 3, 3)}, {}, (8, 14, 14)),
    "dilated": (
        [node("Conv", ["c", "g"], ["y"], dilations=[2, 2], pads=[2, 1, 0, 3])],
        {"g": (4, 8, 3, 3)},
        {},
        (4, 14, 16),
    ),
    "padded before": (
        [node("Pad", ["c", "p"], ["d"]), node("Conv", ["d", "g"], ["y"])],
        {"g": (4, 8, 3, 3)},
        {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        (4, 16, 16),
    ),
    "average with borders": (
        [node("AveragePool", ["c"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
        {},
        (8, 16, 16),
    ),
    "linear resize": (
        [node("Resize", ["c", "", "z"], ["y"], mode="linear")],
        {},
        {"z": np.float32([1, 1, 2, 2])},
        (8, 32, 32),
    ),
    "parts": (
        [node("Split", ["c"], ["u", "v"], axis=1), node("Mul", ["u", "v"], ["y"])],
        {},
        {},
        (4, 16, 16),
    ),
    "moved to another scale": (
        [
            node("Flatten", ["c"], ["f"]),
            node("Unsqueeze", ["f", "a"], ["u"]),
            node("Relu", ["u"], ["r"]),
            node("Squeeze", ["r", "a"], ["y"]),
        ],
        {},
        {"a": np.array([1])},
        (2048,),
    ),
    "turned into a product": (
        [node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]), node("MatMul", ["t", "q"], ["y"])],
        {"q": (8, 4)},
        {},
        (16, 16, 4),
    ),
}


@pytest.mark.parametrize("name", _FORMS)
def test_forms_of_operators(name: str, tmp_path: Path) -> None:
    nodes, shapes, constants, output = _FORMS[name]
    found = {**_weights(**_OWN, **shapes), **constants}
    path = _quantized(_save(tmp_path / "net.onnx", [_FIRST, *nodes], found, output))
    written = _exported(path, tmp_path / "out")
    assert _numbers(written, path).differences == ()
    off = _steps(written, path)
    assert off.max() < 1.01
    assert np.mean(off < 0.5) > 0.9


def test_a_zero_point_that_is_left_out_is_0(tmp_path: Path) -> None:
    bare = [
        node("QuantizeLinear", ["h", "s2"], ["h_q"], "down"),
        node("DequantizeLinear", ["h_q", "s2"], ["y"], "up"),
    ]
    path = _dense(tmp_path / "net.onnx", bare)
    written = _exported(path, tmp_path / "out")
    assert tflite_integers.read_file(written.model_path.read_bytes()).activations["h"][1] == -128
    assert _numbers(written, path).differences == ()
    assert _steps(written, path).max() < 1.01


def test_what_is_computed_once_is_rounded_once(tmp_path: Path) -> None:
    nodes = [
        _FIRST,
        node("Expand", ["k", "sizes"], ["e"], "expand"),
        node("Concat", ["c", "e"], ["y"], "join", axis=1),
    ]
    found = {**_weights(**_OWN, k=(1, 2, 1, 1)), "sizes": np.array([1, 2, 16, 16])}
    path = _quantized(_save(tmp_path / "net.onnx", nodes, found, (10, 16, 16)))
    names = [each.output[0] for each in onnx.load(path).graph.node]
    assert "e_QuantizeLinear_Output" in names  # so that the test says something
    written = _exported(path, tmp_path / "out")
    assert _numbers(written, path).differences == ()
    assert _steps(written, path).max() < 1.01


@pytest.mark.parametrize("kind", ["LayerNormalization", "InstanceNormalization"])
def test_a_norm_computes_with_the_numbers_of_the_file(kind: str, tmp_path: Path) -> None:
    constants = {**_weights(**_OWN), "g": np.linspace(0.5, 2, 8, dtype=np.float32)}
    turn = [node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1])] if kind[0] == "L" else []
    nodes = [_FIRST, *turn, node(kind, ["t" if turn else "c", "g", "b2"], ["y"], "norm")]
    output = (16, 16, 8) if turn else (8, 16, 16)
    path = _quantized(
        _save(tmp_path / "net.onnx", nodes, {**constants, **_weights(b2=(8,))}, output)
    )
    written = _exported(path, tmp_path / "out")
    found = _numbers(written, path)
    assert found.differences == ()
    assert any("1 normalizations compute in float in TFLite" in each for each in found.expected)
    assert np.mean(_steps(written, path) < 1.01) > 0.99
    model = package.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "g_quantized":
            changed = numpy_helper.to_array(tensor).copy()
            changed[0] += 1
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    package.save(model, tmp_path / "other.onnx")
    (difference,) = _numbers(written, tmp_path / "other.onnx").differences
    assert difference.what == "missing"


def test_a_row_of_numbers(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1]), node("Relu", ["c"], ["y"])]
    found = _weights(w=(8, 4, 3), b=(8,))
    path = _quantized(_save(tmp_path / "net.onnx", nodes, found, (8, 20), (4, 20)))
    written = _exported(path, tmp_path / "out")
    assert _numbers(written, path).differences == ()
    assert _steps(written, path).max() < 0.5


def test_what_the_file_leaves_float_computes_in_float(tmp_path: Path) -> None:
    path = _quantized(_decoder(tmp_path / "net.onnx"), nodes_to_exclude=["down"])
    written = _exported(path, tmp_path / "out")
    assert written.manifest.execution is not None
    assert "CONV_2D r6" in written.manifest.execution.floats
    assert "a layer with float weights in the file computes in float: r6" in written.manifest.notes


def test_an_int8_file_of_edgekit_becomes_its_twin(tmp_path: Path) -> None:
    with np.load(FILES / "answers.npz") as arrays:
        np.savez(tmp_path / "set.npz", image=arrays["image"][:CALIBRATION])
    twin, own = export_all(
        FILES / "mobile.onnx",
        targets=["tflite", "onnx"],
        precisions=["int8"],
        preprocessing="symmetric",
        calibration=str(tmp_path / "set.npz"),
        out=tmp_path,
    )
    path = tmp_path / "mobile_int8.onnx"
    path.write_bytes(own.model_path.read_bytes())
    written = _exported(path, tmp_path / "out")
    assert _numbers(written, path).differences == ()
    values = np.random.default_rng(5).integers(-128, 128, (8, 1, 16, 16, 3)).astype(np.int8)
    answers = []
    for each in (twin, written):
        opened = litert.interpreter(each.model_path.read_bytes())
        runner = opened.get_signature_runner(litert.SIGNATURE_KEY)
        answers.append([litert.invoke(runner, image=one)["scores"] for one in values])
    assert np.array_equal(*answers)


def _qdq(name: str, reader: str, scale: str = "s", zero_point: str = "z") -> list[Any]:
    return [
        node("QuantizeLinear", [name, scale, zero_point], [f"{name}_q"], f"{name}_quantize"),
        node("DequantizeLinear", [f"{name}_q", scale, zero_point], [reader], f"{name}_dequantize"),
    ]


_BASE: dict[str, np.ndarray] = {
    "s": np.float32(0.02),
    "s2": np.float32(0.05),
    "z": np.int8(-3),
    "zw": np.int8(0),
    "z32": np.int32(0),
    "sw": np.float32(0.01),
    "w": np.random.default_rng(3).integers(-127, 128, (4, 6)).astype(np.int8),
    "b": np.arange(4, dtype=np.int32) * 700 - 1000,
    "sb": np.float32(0.02) * np.float32(0.01),
}


def _dense(
    path: Path,
    middle: Sequence[Any] | None = None,
    *,
    layer: Sequence[Any] | None = None,
    kind: int = TensorProto.FLOAT,
    alpha: float = 1.0,
    **constants: Any,
) -> Path:
    """A dense layer ``x → h → y`` of which some nodes and constants are replaced."""
    stored = [
        node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], "weights", axis=0),
        node("DequantizeLinear", ["b", "sb", "z32"], ["bd"], "bias", axis=0),
    ]
    first = _qdq("x", "xd") if kind == TensorProto.FLOAT else []
    if kind != TensorProto.FLOAT:
        first = [node("DequantizeLinear", ["x", "s", "z"], ["xd"], "x_dequantize")]
    nodes = [
        *first,
        *(stored if layer is None else layer),
        node("Gemm", ["xd", "wd", "bd"], ["h"], "dense", transB=1, alpha=alpha),
        *(_qdq("h", "y", "s2") if middle is None else middle),
    ]
    return _save(path, nodes, {**_BASE, **constants}, (4,), (6,), kind)


def test_a_float_bias_and_turned_weights_as_of_pytorch(tmp_path: Path) -> None:
    turned = np.ascontiguousarray(_BASE["w"].T)
    layer = [
        node("Constant", [], ["wc"], value=numpy_helper.from_array(turned)),
        node("DequantizeLinear", ["wc", "sws", "zws"], ["wt"], "weights", axis=1),
        node("Transpose", ["wt"], ["wd"], "turn", perm=[1, 0]),
    ]
    scales = np.float32([0.01, 0.02, 0.03, 0.04])
    bias = np.float32([0.5, -0.25, 0.125, 3.0])
    path = _dense(tmp_path / "net.onnx", layer=layer, bd=bias, sws=scales, zws=np.zeros(4, np.int8))
    written = _exported(path, tmp_path / "out")
    found = _numbers(written, path)
    assert found.differences == ()
    assert "the ONNX file keeps 1 biases in float: h" in found.expected
    (layer_found,) = tflite_integers.read_file(written.model_path.read_bytes()).layers.values()
    assert np.array_equal(layer_found.weights, _BASE["w"])
    assert np.array_equal(layer_found.bias, np.rint(bias / (np.float32(0.02) * scales)))
    assert any("biases are float in the file" in note for note in written.manifest.notes)
    assert _steps(written, path).max() < 1.01


def test_uint8_weights_around_128(tmp_path: Path) -> None:
    moved = (_BASE["w"].astype(np.int16) + 128).astype(np.uint8)
    path = _dense(tmp_path / "net.onnx", w=moved, zw=np.uint8(128), z=np.uint8(125))
    written = _exported(path, tmp_path / "out")
    assert _numbers(written, path).differences == ()
    stored = tflite_integers.read_file(written.model_path.read_bytes())
    assert np.array_equal(next(iter(stored.layers.values())).weights, _BASE["w"])
    assert stored.activations["x"] == (pytest.approx(0.02), -3)
    assert _steps(written, path).max() < 1.01


def test_parity_sees_one_integer(tmp_path: Path) -> None:
    path = _dense(tmp_path / "net.onnx")
    written = _exported(path, tmp_path / "out")
    assert _numbers(written, path).differences == ()
    other = _BASE["w"].copy()
    other[2, 3] += -1 if other[2, 3] > 0 else 1
    (difference,) = _numbers(written, _dense(tmp_path / "other.onnx", w=other)).differences
    assert (difference.what, difference.count) == ("weights", 1)
    scales = np.float32([0.01, 0.01, 0.01, 0.0100001])
    changed = _dense(tmp_path / "scales.onnx", sw=scales, zw=np.zeros(4, np.int8))
    (difference,) = _numbers(written, changed).differences
    assert (difference.what, difference.count) == ("weight scale", 1)
    with pytest.raises(InvalidModelError, match="zero_point 0, as TFLite's have none, got 1"):
        _numbers(written, _dense(tmp_path / "zero.onnx", zw=np.int8(1)))


def _norm(path: Path) -> Path:
    behind = [
        node("BatchNormalization", ["h", "one", "none", "none", "one"], ["n"], "norm"),
        *_qdq("n", "y", "s2"),
    ]
    return _dense(path, behind, one=np.full(4, 2, np.float32), none=np.zeros(4, np.float32))


_REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "QOperator": (
        lambda path: _quantized(_classifier(path), form=QuantFormat.QOperator),
        "got QLinearConv conv_quant; export it in QDQ format",
    ),
    "16 bits": (
        lambda path: _dense(path, z=np.int16(0)),
        "expected QuantizeLinear x_quantize in int8 or uint8, got int16",
    ),
    "weights with a zero_point": (
        lambda path: _quantized(_classifier(path), activations="QUInt8", weights="QUInt8"),
        "weights of Conv conv in int8 with zero_point 0, or uint8 with 128",
    ),
    "a zero_point of a channel": (
        lambda path: _dense(path, sw=np.full(4, 0.01, np.float32), zw=np.int8([0, 0, 5, 0])),
        "got int8 with 5 in w",
    ),
    "-128": (
        lambda path: _dense(path, w=np.full((4, 6), -128, np.int8)),
        "weights of Gemm dense from -127 to 127.* got -128 in 24 of w",
    ),
    "scales of input channels": (
        lambda path: _dense(
            path,
            layer=[
                node("DequantizeLinear", ["w", "si", "zi"], ["wd"], "weights", axis=1),
                node("DequantizeLinear", ["b", "sb", "z32"], ["bd"], "bias", axis=0),
            ],
            si=np.full(6, 0.01, np.float32),
            zi=np.zeros(6, np.int8),
        ),
        "scales of the output channels of Gemm dense, axis 0 of wd, got them of axis 1",
    ),
    "another scale of a bias": (
        lambda path: _dense(path, sb=np.float32(0.0005)),
        "the scale of the bias of h as input scale times weight scale, 0.0002, .* got 0.0005",
    ),
    "scales that are too small together": (
        lambda path: _dense(path, s=np.float32(1e-30), sw=np.float32(1e-30)),
        "input scale times weight scale of h as float32 can hold it, got 0 to 0",
    ),
    "a float output": (
        lambda path: _dense(path, [node("Relu", ["h"], ["y"])]),
        "the output of y in int8, since its weights are",
    ),
    "weights alone": (
        lambda path: _save(
            path,
            [
                node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], "weights"),
                node("Gemm", ["x", "wd"], ["y"], "dense", transB=1),
            ],
            _BASE,
            (4,),
            (6,),
        ),
        "the input of y in int8, since its weights are",
    ),
    "a reader of what was not rounded": (
        lambda path: _dense(path, [*_qdq("h", "hd"), node("Add", ["h", "hd"], ["y"], "sum")]),
        "since TFLite's integer kernels give h in int8, got Add sum",
    ),
    "two scales of a tensor": (
        lambda path: _dense(
            path,
            [
                *_qdq("h", "hd"),
                node("QuantizeLinear", ["h", "s2", "z"], ["h2_q"], "again"),
                node("DequantizeLinear", ["h2_q", "s2", "z"], ["h2"], "again_too"),
                node("Add", ["hd", "h2"], ["y"], "sum"),
            ],
        ),
        "one scale and zero_point of h, since TFLite has it once",
    ),
    "a scale that is computed": (
        lambda path: _dense(
            path,
            [
                node("ReduceMax", ["h"], ["top"], keepdims=0),
                *_qdq("h", "y", "top"),
            ],
        ),
        "a stored scale and zero_point of QuantizeLinear h_quantize, got computed ones",
    ),
    "an activation with scales of channels": (
        lambda path: _dense(
            path,
            [
                node("QuantizeLinear", ["h", "sc", "zc"], ["h_q"], "each", axis=1),
                node("DequantizeLinear", ["h_q", "sc", "zc"], ["y"], "each_too", axis=1),
            ],
            sc=np.full(4, 0.05, np.float32),
            zc=np.zeros(4, np.int8),
        ),
        "one scale of the activation at QuantizeLinear each, got 4",
    ),
    "an int8 input": (
        lambda path: _dense(path, kind=TensorProto.INT8),
        "expected float32 inputs and outputs, got x in int8",
    ),
    "a DequantizeLinear without the zero_point": (
        lambda path: _dense(
            path,
            [
                node("QuantizeLinear", ["h", "s2", "low"], ["h_q"], "down"),
                node("DequantizeLinear", ["h_q", "s2"], ["y"], "up"),
            ],
            low=np.int8(-128),
        ),
        "the scale and zero_point of QuantizeLinear down at DequantizeLinear up",
    ),
    "a scale that is infinite": (
        lambda path: _dense(path, s2=np.float32(np.inf)),
        "finite float32 scales above 0 of QuantizeLinear h_quantize",
    ),
    "a factor of a product": (
        lambda path: _dense(path, alpha=2.0),
        "the weights of h as the file has them, got others",
    ),
    "a constant of another scale": (
        lambda path: _quantized(
            _save(
                path,
                [_FIRST, node("Concat", ["c", "k"], ["y"], axis=1)],
                _weights(**_OWN, k=(1, 2, 16, 16)),
                (10, 16, 16),
            )
        ),
        "which TFLite computes in float as CONCATENATION, got integers; leave it out of",
    ),
    "scales of no channels": (
        lambda path: _dense(path, sw=np.full(3, 0.01, np.float32), zw=np.zeros(3, np.int8)),
        "expected one scale of DequantizeLinear weights, or 4 in axis 0, got 3",
    ),
    "a norm that is merged": (
        _norm,
        "Gemm dense as one layer in TFLite, where it is several or merged",
    ),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_tflite_cannot_hold_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write, said = _REFUSED[name]
    path = write(tmp_path / "net.onnx")
    with pytest.raises(EdgekitError, match=said) as caught:
        _exported(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


def _with_constant_nodes(path: Path) -> Path:
    """The file with its initializers in nodes, as Paddle writes them."""
    model = package.load(path)
    nodes = [node("Constant", [], [each.name], value=each) for each in model.graph.initializer]
    nodes += model.graph.node
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    package.save(model, path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"extra_options": {"WeightSymmetric": True}},
        {"activations": "QUInt8", "per_channel": True},
    ],
)
def test_weights_of_constant_nodes_are_advised_to_become_initializers(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """quantize_static takes them for activations, whatever the options of weights say."""
    path = _with_constant_nodes(_classifier(tmp_path / "net.onnx"))
    with pytest.raises(InvalidModelError, match="has w1 in a Constant .* quant_pre_process") as e:
        _exported(_quantized(path, **options), tmp_path / "out")
    assert "WeightSymmetric" not in str(e.value)
    prepared = tmp_path / "prepared.onnx"
    quant_pre_process(str(path), str(prepared))
    written = _exported(_quantized(prepared, **options), tmp_path / "out")
    assert _numbers(written, tmp_path / "prepared_int8.onnx").differences == ()


def test_symmetric_integers_of_constant_nodes_are_taken(tmp_path: Path) -> None:
    path = _with_constant_nodes(_classifier(tmp_path / "net.onnx"))
    path = _quantized(path, extra_options={"ActivationSymmetric": True})
    found = _numbers(_exported(path, tmp_path / "out"), path)
    assert found.differences == ()
    assert any("keeps 3 biases in float" in each for each in found.expected)


def test_a_value_that_is_rounded_again_gets_a_tensor_of_its_own(tmp_path: Path) -> None:
    behind = [*_qdq("h", "hd"), node("Abs", ["hd"], ["a"], "size"), *_qdq("a", "ad", "s2")]
    again = [*_qdq("hd", "h2", "s2"), node("Add", ["h2", "ad"], ["t"], "sum"), *_qdq("t", "y")]
    path = _dense(tmp_path / "net.onnx", [*behind, *again])
    written = _exported(path, tmp_path / "out")
    found = tflite_integers.read_file(written.model_path.read_bytes()).activations
    assert found["h"][0] == pytest.approx(0.02) and found["h2"][0] == pytest.approx(0.05)
    assert _numbers(written, path).differences == ()
    assert _steps(written, path).max() < 3.01  # a step of s2 is 2.5 of s
    path = _dense(tmp_path / "end.onnx", [*_qdq("h", "hd"), *_qdq("hd", "y", "s2")])
    assert _numbers(_exported(path, tmp_path / "end"), path).differences == ()


def test_a_value_that_is_read_as_it_was_too_stays_float(tmp_path: Path) -> None:
    behind = [
        *_qdq("h", "hd"),
        node("Sigmoid", ["hd"], ["g"], "gate"),
        *_qdq("g", "gd", "s2"),
        *[node("DequantizeLinear", ["g_q", "s2", "z"], ["ge"], "once_more")],
        node("Mul", ["g", "gd"], ["m"], "times"),
        node("Add", ["m", "ge"], ["y"], "sum"),
    ]
    path = _dense(tmp_path / "net.onnx", behind)
    written = _exported(path, tmp_path / "out")
    found = tflite_integers.read_file(written.model_path.read_bytes()).activations
    assert "gd" in found and "g" not in found and "ge" not in found
    assert _numbers(written, path).differences == ()
    assert _steps(written, path).max() < 1e-4


def test_a_constant_that_is_float_is_exact_or_computes_in_float(tmp_path: Path) -> None:
    for name, factor, floats in (
        ("one", np.float32(0.3), 0),
        ("each", np.float32([1, 2, 3, 4]), 1),
    ):
        behind = [*_qdq("h", "hd", "s2"), node("Mul", ["hd", "f"], ["m"], "times"), *_qdq("m", "y")]
        path = _dense(tmp_path / f"{name}.onnx", behind, f=factor)
        written = _exported(path, tmp_path / name)
        assert written.manifest.execution is not None
        assert len(written.manifest.execution.floats) == floats
        assert _numbers(written, path).differences == ()
        assert _steps(written, path).max() < 1.01


def test_other_targets_and_verbs_are_refused(tmp_path: Path) -> None:
    path = _dense(tmp_path / "net.onnx")
    for target, precision, said in (
        ("onnx", "int8", "it is int8 ONNX already; pass the file itself"),
        ("tflite", "float32", "it has no float form; export the float model"),
        ("onnx", "float16", "it has no float form"),
    ):
        with pytest.raises(InvalidOptionError, match=said):
            export(path, target=target, precision=precision, preprocessing="none")
    np.savez(tmp_path / "set.npz", x=np.zeros((4, 6), np.float32))
    for option in (
        {"calibration": str(tmp_path / "set.npz")},
        {"correction": "none"},
        {"method": "mse"},
    ):
        with pytest.raises(InvalidOptionError, match="is for float models; .* is int8 already"):
            export(path, target="tflite", precision="int8", preprocessing="none", **option)
    with pytest.raises(InvalidModelError, match="expected a float model to calibrate"):
        calibrate(path, dataset=str(tmp_path / "set.npz"), preprocessing="none")


def test_compare_takes_the_file_as_the_reference(tmp_path: Path) -> None:
    path = _quantized(_classifier(tmp_path / "net.onnx"))
    written = _exported(path, tmp_path / "out")
    values = np.random.default_rng(4).uniform(0, 1, (24, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "set.npz", x=values)
    options = Options(dataset=str(tmp_path / "set.npz"), rounds=1, reference=path)
    report = compare([written.path], options)
    (result,) = report.artifacts
    assert result.name == "out"
    with pytest.raises(InvalidModelError, match="a float model to compare layer by layer"):
        diff(path, written.path, dataset=str(tmp_path / "set.npz"))


def test_the_float_form_is_loaded_with_the_encodings(tmp_path: Path) -> None:
    loaded = float_model.load(_dense(tmp_path / "net.onnx"), preprocessing="none")
    assert loaded.integers is not None
    kinds = [each.op_type for each in loaded.integers.model.graph.node]
    assert kinds == ["Identity", "Gemm", "Identity"]
    small = np.float32(0.02)
    assert loaded.encodings_of(loaded.converted())["x"] == (float(small), -3)
