"""Transposed convolutions of an int8 ONNX file as convolutions that write blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from exported import export, export_all
from onnx import helper, numpy_helper

from edgekit import parity
from edgekit.graph import onnx
from edgekit.records import environment
from edgekit.writers import onnx_blocks

#: Powers of two, so that what is rounded is exact: of input, weights (one for each channel) and
#: output.
INPUT, WEIGHTS, OUTPUT = 2.0**-5, 2.0 ** -np.arange(5, 8, dtype=np.float32), 2.0**-1


def _drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


def _model(weights: np.ndarray, bias: np.ndarray | None, size: int, **form: Any) -> Any:
    """Integers in and out: a ConvTranspose between DequantizeLinear and QuantizeLinear."""
    channels = weights.shape[1] * form.get("group", 1)
    scales = np.resize(WEIGHTS, channels)
    stored = {
        "x_scale": np.float32(INPUT), "x_zero": np.uint8(120), "w": weights,
        "w_scale": scales[: weights.shape[1]], "w_zero": np.zeros(weights.shape[1], np.int8),
        "y_scale": np.float32(OUTPUT), "y_zero": np.uint8(130),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("DequantizeLinear", ["q", "x_scale", "x_zero"], ["x"]),
        make("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], axis=1),
        make("ConvTranspose", ["x", "w_real"], ["y"], "up", **form),
        make("QuantizeLinear", ["y", "y_scale", "y_zero"], ["p"]),
        make("DequantizeLinear", ["p", "y_scale", "y_zero"], ["out"]),
    ]
    if bias is not None:
        stored |= {"b": bias, "b_scale": INPUT * scales, "b_zero": np.zeros(channels, np.int32)}
        nodes[2].input.append("b_real")
        nodes.insert(2, make("DequantizeLinear", ["b", "b_scale", "b_zero"], ["b_real"], axis=0))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("q", 2, [1, weights.shape[0], size, size])],
        [helper.make_tensor_value_info("out", 1, [1, channels, "h", "w"])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _expected(
    q: np.ndarray, weights: np.ndarray, bias: np.ndarray | None, stride: int, form: dict[str, Any]
) -> np.ndarray:
    """The sums of products, one by one, and each rounded once."""
    x, (_, channels, rows, columns) = q.astype(np.int64) - 120, weights.shape
    _, inputs, height, width = x.shape
    whole = np.zeros((1, channels, (height - 1) * stride + rows, (width - 1) * stride + columns))
    for i in range(inputs):
        for r in range(height):
            for c in range(width):
                part = x[0, i, r, c] * weights[i].astype(np.int64)
                r0, c0 = r * stride, c * stride
                whole[0, :, r0 : r0 + rows, c0 : c0 + columns] += part
    above, left, below, right = form.get("pads", [0] * 4)
    more = form.get("output_padding", [0, 0])
    whole = np.pad(whole, [(0, 0), (0, 0), (0, more[0]), (0, more[1])])
    whole = whole[:, :, above : whole.shape[2] - below, left : whole.shape[3] - right]
    if bias is not None:
        whole = whole + bias.reshape(1, -1, 1, 1)
    scales = np.resize(WEIGHTS, channels).reshape(1, -1, 1, 1)
    steps = np.rint(whole * INPUT * scales / OUTPUT) + 130
    return (np.clip(steps, 0, 255) - 130) * OUTPUT


FORMS: dict[str, tuple[tuple[int, int], int, dict[str, Any]]] = {
    "2 by 2": ((2, 2), 2, {}),
    "3 by 3, whole": ((3, 3), 2, {}),
    "3 by 3, borders": ((3, 3), 2, {"pads": [1, 1, 1, 1]}),
    "3 by 3, twice the size": ((3, 3), 2, {"pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "3 by 3, TensorFlow's borders": ((3, 3), 2, {"pads": [0, 0, 1, 1]}),
    "4 by 4": ((4, 4), 2, {"pads": [1, 1, 1, 1]}),
    "5 by 5": ((5, 5), 2, {"pads": [2, 2, 2, 2], "output_padding": [1, 1]}),
    "2 by 3": ((2, 3), 2, {"pads": [0, 1, 0, 0]}),
    "gaps": ((2, 2), 3, {}),
    "stride 4": ((8, 8), 4, {"pads": [2, 2, 2, 2]}),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_blocks_are_the_same_integers(name: str, biased: bool) -> None:
    kernel, stride, form = FORMS[name]
    form = {**form, "strides": [stride, stride]}
    weights = _drawn(1, 4, 3, *kernel)
    bias = np.array([900, -20_000, 31_000], np.int32) if biased else None
    model = _model(weights, bias, 5, **form)
    q = np.random.default_rng(2).integers(0, 256, (1, 4, 5, 5)).astype(np.uint8)
    onnx_blocks.write(model)
    onnx.sort(model)
    package.checker.check_model(model)
    assert "ConvTranspose" not in {node.op_type for node in model.graph.node}
    ran = {node.kind for node in onnx.executed(model.SerializeToString(), {"q": q})}
    assert "QLinearConv" in ran and not ran & {"Conv", "ConvTranspose", "FusedConv"}
    # weights of any size: without VNNI only the precise kernels add them exactly
    precise = {environment.PRECISE: "1"}
    (found,) = onnx.session(model.SerializeToString(), options=precise).run(None, {"q": q})
    expected = _expected(q, weights, bias, stride, form)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(found, expected)
    ((node, blocks_of),) = onnx_blocks.convolutions(model)
    stored = onnx.stored_constants(model)
    blocks = stored[next(n for n in model.graph.node if n.output[0] == node.input[1]).input[0]]
    assert {"y", "out"} & set(blocks_of)
    np.testing.assert_array_equal(onnx_blocks.to_transposed(blocks, stride, kernel), weights)


@pytest.mark.parametrize(
    ("channels", "kernel", "form"),
    [
        (4, (2, 2), {"strides": [2, 2], "group": 2}),
        (4, (3, 3), {"strides": [2, 2], "dilations": [2, 2]}),
        (4, (2, 2), {"strides": [2, 1]}),
        (4, (3, 3), {"strides": [1, 1]}),
        (4, (2, 2), {"strides": [2, 2], "output_padding": [1, 1]}),
        (3, (2, 2), {"strides": [2, 2]}),  # pairs of products would be other ones
    ],
)
def test_what_is_not_made_of_blocks_stays_as_it_is(
    channels: int, kernel: tuple[int, int], form: dict[str, Any]
) -> None:
    model = _model(_drawn(1, channels, 2, *kernel), None, 5, **form)
    before = model.SerializeToString()
    onnx_blocks.write(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("form", ["2", "3", "4"])
def test_both_files_hold_the_same_integers(form: str, tmp_path: Path) -> None:
    """A factor and a summand behind the layer are part of it, whatever is cut off of it; the file
    is QDQ like any other, and becomes TFLite."""
    size = int(form)
    random = np.random.default_rng(3)
    constants = {
        "w": random.normal(0, 0.3, (4, 3, 3, 3)), "u": random.normal(0, 0.3, (4, 6, size, size)),
        "bias": random.normal(0, 1, (1, 6, 1, 1)), "scale": random.uniform(1, 2, 6),
        "mean": random.normal(0, 0.1, 6), "variance": random.uniform(1, 2, 6),
        "v": random.normal(0, 0.3, (2, 6, 1, 1)),
    }  # fmt: skip
    make = helper.make_node
    cut = {"2": {}, "3": {"pads": [1] * 4, "output_padding": [1] * 2}, "4": {"pads": [1] * 4}}
    nodes = [
        make("Conv", ["x", "w"], ["a"]),
        make("Relu", ["a"], ["b"]),
        make("ConvTranspose", ["b", "u"], ["c"], "up", strides=[2, 2], **cut[form]),
        make("Add", ["c", "bias"], ["d"]),
        make("BatchNormalization", ["d", "scale", "mean", "mean", "variance"], ["e"]),
        make("Relu", ["e"], ["f"]),
        make("Conv", ["f", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 2, 12, 12])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 13)]
    package.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=random.normal(0, 1, (40, 3, 8, 8)).astype(np.float32))
    written = export_all(
        tmp_path / "net.onnx", targets=("tflite", "onnx"), precisions=("int8",),
        preprocessing="none", calibration=str(tmp_path / "x.npz"), out=tmp_path,
    )  # fmt: skip
    for each in written:
        manifest = each.manifest
        assert manifest.execution is not None and manifest.quantization is not None
        assert manifest.execution.floats == ()
        assert manifest.quantization.judged[0].sqnr_centred > 25
    assert "TRANSPOSE_CONV int8" in written[0].manifest.execution.kernels
    assert not any("MUL" in kind for kind in written[0].manifest.execution.kernels)
    numbers = parity.numbers(*written)
    assert (numbers.differences, numbers.expected) == ((), ())
    twin = export(
        written[1].model_path, target="tflite", precision="int8", preprocessing="none",
        out=tmp_path / "twin",
    )  # fmt: skip
    assert twin.manifest.execution is not None and twin.manifest.execution.floats == ()
    assert "DEPTH_TO_SPACE int8" in twin.manifest.execution.kernels
