"""Files whose layers have weights of 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as package
import pytest
from conftest import Done
from exported import answers, decibels, export, export_all
from onnx import TensorProto, helper, numpy_helper

from edgekit.base.errors import EdgekitError, FidelityError, InvalidModelError
from edgekit.compare import Options, compare
from edgekit.evaluation import parity
from edgekit.graph import litert, nibbles, onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.quantization import reconstruct, rounding
from edgekit.records import encodings, signature
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import Encoding, Encodings
from edgekit.runtimes import model_file
from edgekit.sources import keras
from edgekit.writers import onnx_integers, tflite_integers

TARGETS = ("tflite", "onnx")
#: dB of the float outputs that 4 bits leave at least: a scale or a half of a byte that is wrong
#: leaves none.
LEFT = 6.0


def _drawn(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@pytest.fixture(scope="module")
def written(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """small.keras by ``TARGET-PRECISION``."""
    precisions = ("float32", "int8-weights", "int4-weights")
    files = export_all(
        small / "small.keras",
        targets=TARGETS,
        precisions=precisions,
        preprocessing="unit",
        calibration=str(small / "set.npz"),
        allow_poor=True,  # a net of random numbers
        out=tmp_path_factory.mktemp("four"),
    )
    names = [f"{target}-{precision}" for target in TARGETS for precision in precisions]
    return dict(zip(names, files, strict=True))


@pytest.fixture(scope="module")
def values(small: Path) -> np.ndarray:
    pixels = np.load(small / "set.npz")["x"]
    return np.asarray(pixels / np.float32(255), np.float32)


def _model(path: Path, nodes: list[Any], constants: dict[str, Any], x: Any, y: Any) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    package.save(model, path)
    return path


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (3, 5), (1, 3, 3, 7), (16, 16)])
def test_two_numbers_lie_in_a_byte(shape: tuple[int, ...]) -> None:
    found = np.random.default_rng(1).integers(-8, 8, shape, dtype=np.int8)
    content = nibbles.packed(found)
    assert content.dtype == np.uint8 and len(content) == (found.size + 1) // 2
    back = nibbles.unpacked(content, shape)
    assert back.dtype == np.int8 and np.array_equal(back, found)
    if found.size:  # as the package onnx reads them
        tensor = helper.make_tensor("t", TensorProto.INT4, shape, content.tobytes(), raw=True)
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), found)


def test_numbers_beyond_four_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="expected integers from -8 to 7, got -3 to 8"):
        nibbles.packed(np.array([8, -3], np.int8))
    with pytest.raises(ValueError, match="expected 2 bytes of 3 int4, got 1"):
        nibbles.unpacked(np.zeros(1, np.uint8), (3,))
    with pytest.raises(InvalidModelError, match="zero_point 0 of int4"):
        Encoding("int4", (1.0,), 3)


def test_both_formats_hold_the_same_integers(written: dict[str, Artifact]) -> None:
    files = [written[f"{target}-int4-weights"] for target in TARGETS]
    compared = parity.numbers(*files)
    assert compared.differences == () and compared.compared > 500
    graph = Graph(files[0].model_path.read_bytes())
    stored = tflite_integers.read(graph)
    four = {name: layer for name, layer in stored.layers.items() if layer.bits == 4}
    assert four and all(np.abs(layer.weights).max() <= 7 for layer in four.values())
    assert any(np.abs(layer.weights).max() == 7 for layer in four.values())
    assert stored.layers.keys() == {layer.output for layer in graph.layers}
    decided = Encodings.load(files[0].path / encodings.FILE)
    for layer in graph.layers:
        bits = stored.layers[layer.output].bits
        assert decided.tensors[layer.weights].dtype == f"int{bits}"
        assert graph.bits(layer.weights) == bits


def test_layers_of_eight_bits_are_named(written: dict[str, Artifact]) -> None:
    for target in TARGETS:
        artifact = written[f"{target}-int4-weights"]
        named = artifact.manifest.execution.eight_bits
        (note,) = [each for each in artifact.manifest.notes if "stay int8" in each]
        assert named and all(name in note for name in named)
        assert any("depthwise" in name for name in named)
        assert written[f"{target}-int8-weights"].manifest.execution.eight_bits == ()
    graph = Graph(written["tflite-float32"].model_path.read_bytes())
    four = reconstruct.of_four_bits(graph)
    sizes = {layer.output: graph.constant(layer.weights).size for layer in graph.layers}
    dense = {layer.output for layer in graph.layers if layer.kind != "depthwise"}
    small = dense - four
    assert sum(sizes[name] for name in small) <= sum(sizes[name] for name in dense) / 16
    assert max((sizes[name] for name in small), default=0) <= min(sizes[name] for name in four)


@pytest.mark.parametrize("target", TARGETS)
def test_predictions_are_near_the_float_models(
    written: dict[str, Artifact], small: Path, values: np.ndarray, target: str
) -> None:
    exact = np.asarray(keras.call(keras.load(small / "small.keras"), [values])[0])
    artifact = written[f"{target}-int4-weights"]
    ((name, found),) = answers(artifact, {"image": values}).items()
    assert decibels(exact, found) > LEFT, name
    record = artifact.manifest.quantization
    assert record.tried["fitted layers"] > record.tried["nearest rounding"] + 3
    (judged,) = record.judged
    assert judged.count == 8
    assert {spec.dtype for spec in (*artifact.manifest.signature.inputs,)} == {"float32"}
    assert artifact.manifest.execution.numbers > 0


def test_kernels_of_both_runtimes_compute_the_same(
    written: dict[str, Artifact], values: np.ndarray
) -> None:
    """In float: XNNPACK beside LiteRT's own, LiteRT's own alone, and onnxruntime however its
    session is set."""
    tflite, other = (written[f"{target}-int4-weights"] for target in TARGETS)
    exact = next(iter(answers(tflite, {"image": values}).values()))
    opened = litert.interpreter(tflite.model_path, exact=True)
    assert not litert.delegated(opened)
    runner = opened.get_signature_runner(litert.SIGNATURE_KEY)
    own = np.concatenate([next(iter(runner(image=x[None]).values())) for x in values])
    assert decibels(exact, own) > 100
    assert decibels(exact, next(iter(answers(other, {"image": values}).values()))) > 100
    (real_once,) = onnx.session(other.model_path, options=other.manifest.runtime_options).run(
        None, {"image": values}
    )
    assert decibels(exact, real_once) > 100
    assert other.manifest.runtime_options == {"session.disable_quant_qdq": "1"}
    assert "DequantizeLinear" not in other.manifest.execution.kernels
    kinds = tflite.manifest.execution.own_kernels
    assert (
        kinds["DEQUANTIZE float32"] == kinds["CONV_2D float32"] + kinds["FULLY_CONNECTED float32"]
    )
    assert any("int8-weights is the faster file" in note for note in tflite.manifest.notes)


def test_a_file_is_about_half_of_one_of_eight_bits(tmp_path: Path) -> None:
    """No calibration samples are needed, and none judge it then."""
    tf_keras = keras.tf_keras()
    tf_keras.utils.set_random_seed(4)
    image = tf_keras.Input((8, 8, 3), name="image")
    x = tf_keras.layers.Conv2D(64, 3, activation="relu")(image)
    x = tf_keras.layers.Conv2D(128, 3, activation="relu")(x)
    x = tf_keras.layers.Dense(64)(tf_keras.layers.Flatten()(x))
    tf_keras.Model(image, x).save(tmp_path / "wide.keras")
    files = export_all(
        tmp_path / "wide.keras",
        targets=TARGETS,
        precisions=("int8-weights", "int4-weights"),
        preprocessing="none",
        out=tmp_path,
    )
    sizes = {(each.manifest.format, each.manifest.precision): each.size for each in files}
    for target in TARGETS:
        assert sizes[target, "int4-weights"] < 0.55 * sizes[target, "int8-weights"]
    four = [each for each in files if each.manifest.precision == "int4-weights"]
    assert all(each.manifest.quantization.judged == () for each in four)
    fed = {"image": _drawn(5, 4, 8, 8, 3)}
    ours, theirs = (next(iter(answers(each, fed).values())) for each in four)
    assert decibels(ours, theirs) > 100


def _of_every_kind(path: Path) -> Path:
    """Another exporter's net: groups, a convolution for each channel, a transposed one, and dense
    layers, one as a product and a sum."""
    constants = {
        "w": _drawn(1, 8, 3, 3, 3, scale=0.3),
        "b": _drawn(2, 8),
        "d": _drawn(3, 8, 1, 3, 3, scale=0.3),
        "p": _drawn(4, 12, 4, 1, 1, scale=0.3),
        "t": _drawn(5, 12, 7, 2, 2, scale=0.3),
        "v": _drawn(6, 7, 9),
        "u": _drawn(7, 9),
        "m": _drawn(8, 9, 5),
        "s": _drawn(9, 5),
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w", "b"], ["c"], "first", strides=[2, 2]),
        make("Relu", ["c"], ["r"], "relu"),
        make("Conv", ["r", "d"], ["e"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        make("Conv", ["e", "p"], ["f"], "groups", group=2),
        make("ConvTranspose", ["f", "t"], ["g"], "transposed", strides=[2, 2]),
        make("GlobalAveragePool", ["g"], ["h"], "pool"),
        make("Flatten", ["h"], ["i"], "flat"),
        make("Gemm", ["i", "v", "u"], ["j"], "dense"),
        make("MatMul", ["j", "m"], ["k"], "product"),
        make("Add", ["k", "s"], ["y"], "sum"),
    ]
    return _model(path, nodes, constants, ["batch", 3, 13, 13], ["batch", 5])


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_file_of_onnx_keeps_its_graph(tmp_path: Path, calibrated: bool) -> None:
    path = _of_every_kind(tmp_path / "net.onnx")
    x = _drawn(7, 40, 3, 13, 13)
    np.savez(tmp_path / "set.npz", x=x)
    files = export_all(
        path,
        targets=TARGETS,
        precisions=("int4-weights",),
        preprocessing="none",
        calibration=str(tmp_path / "set.npz") if calibrated else None,
        out=tmp_path / "out",
    )
    assert parity.numbers(*files).differences == ()
    ours, theirs = files
    model = onnx.load(theirs.model_path)
    assert [value.name for value in model.graph.input] == ["x"]
    (opset,) = [each.version for each in model.opset_import if not each.domain]
    assert opset >= 21 and model.ir_version >= 10
    nodes = [node.op_type for node in model.graph.node]
    assert nodes.count("DequantizeLinear") == 6
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert {TensorProto.INT4, TensorProto.INT8} <= kinds  # the depthwise one stays int8
    (exact,) = onnx.session(path).run(None, {"x": x})
    there = answers(theirs, {"x": x})["y"] if not nodes.count("MatMul") else None
    options = theirs.manifest.runtime_options
    (real_once,) = onnx.session(theirs.model_path, options=options).run(None, {"x": x})
    here = answers(ours, {"x": np.moveaxis(x, 1, -1)})["y"]
    assert decibels(exact, here) > 10
    assert decibels(here, real_once) > 90
    assert there is None or decibels(here, there) > 90


def test_one_input_and_an_odd_number_of_weights(tmp_path: Path) -> None:
    """Of one weight a channel its scale holds it exactly; 35 weights end in half a byte."""
    constants = {"w": _drawn(1, 1, 7), "b": _drawn(2, 7), "v": _drawn(3, 7, 5)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
        helper.make_node("Gemm", ["h", "v"], ["y"], "odd"),
    ]
    path = _model(tmp_path / "net.onnx", nodes, constants, ["batch", 1], ["batch", 5])
    files = export_all(
        path,
        targets=TARGETS,
        precisions=("int4-weights",),
        preprocessing="none",
        out=tmp_path / "out",
    )
    assert parity.numbers(*files).differences == ()
    graph = Graph(files[0].model_path.read_bytes())
    stored = {layer.weights.size: layer for layer in tflite_integers.read(graph).layers.values()}
    assert stored[35].bits == stored[7].bits == 4
    real = stored[7].weights.reshape(-1) * stored[7].weight_scale
    np.testing.assert_allclose(real, constants["w"].reshape(-1), rtol=1e-6)
    x = _drawn(4, 16, 1)
    ours, theirs = (answers(each, {"x": x})["y"] for each in files)
    assert decibels(ours, theirs) > 100
    (exact,) = onnx.session(path).run(None, {"x": x})
    assert decibels(exact, ours) > LEFT


def test_layers_of_one_kernel_have_it_once(tmp_path: Path) -> None:
    constants = {"w": _drawn(1, 16, 16, scale=0.3)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w"], ["y"], "second"),
    ]
    path = _model(tmp_path / "net.onnx", nodes, constants, ["batch", 16], ["batch", 16])
    np.savez(tmp_path / "set.npz", x=_drawn(3, 40, 16))
    files = export_all(
        path,
        targets=TARGETS,
        precisions=("int4-weights",),
        preprocessing="none",
        calibration=str(tmp_path / "set.npz"),
        out=tmp_path / "out",
    )
    assert parity.numbers(*files).differences == ()
    model = onnx.load(files[1].model_path)
    assert [t.data_type for t in model.graph.initializer].count(TensorProto.INT4) == 1
    graph = Graph(files[0].model_path.read_bytes())
    assert sum(graph.bits(name) == 4 for name in graph.used) == 1


def test_a_number_that_differs_is_found(written: dict[str, Artifact], tmp_path: Path) -> None:
    ours, theirs = (written[f"{target}-int4-weights"].model_path for target in TARGETS)
    graph = Graph(ours.read_bytes())
    layer = next(each for each in graph.layers if graph.bits(each.weights) == 4)
    found = graph.quantization(layer.weights)
    whole = graph.constant(layer.weights)
    changed = whole.copy()
    changed.reshape(-1)[-1] += -1 if changed.reshape(-1)[-1] > 0 else 1
    stored, load, unit = {}, model_file.load, signature.preprocessing("unit")
    for what, given, dtype in (("weights", changed, "int4"), ("bits", whole, "int8")):
        graph.make_integer(layer.weights, found, given, dtype=dtype)
        other = tmp_path / f"{what}.tflite"
        other.write_bytes(graph.serialize())
        stored[what] = parity.numbers(load(other, unit), load(theirs.parent)).differences
    ((difference,), (bits,)) = stored["weights"], stored["bits"]
    assert (difference.tensor, difference.what) == (layer.output, "weights")
    assert (difference.count, difference.largest) == (1, 1.0)
    assert (bits.tensor, bits.what, bits.largest) == (layer.output, "bits", 4.0)


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_alone_tells_its_precision(written: dict[str, Artifact], target: str) -> None:
    for precision in ("int8-weights", "int4-weights"):
        path = written[f"{target}-{precision}"].model_path
        assert model_file.precision_of(path) == precision


@pytest.mark.slow
def test_verbs_take_them_or_say_why_not(
    written: dict[str, Artifact], small: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    ours, theirs = (written[f"{target}-int4-weights"].path for target in TARGETS)
    done = edgekit("parity", ours, theirs)
    assert done.status == 0, done.stderr
    report = tmp_path / "report.json"
    data = str(small / "set.npz")
    folders = [ours, theirs, written["tflite-float32"].path]
    report.write_text(compare(folders, Options(dataset=data, rounds=1)).dumps())
    done = edgekit("gate", report, "--min", "sqnr=6")
    assert done.status == 0, done.stdout
    done = edgekit("report", report, "--out", tmp_path / "page.html")
    assert done.status == 0 and 'class="int4-weights"' in (tmp_path / "page.html").read_text()
    done = edgekit("compare", small / "small.keras", ours, "--layers", "--data", data)
    assert done.status == 2 and "in int4-weights" in done.error
    done = edgekit("parity", ours, written["onnx-int8-weights"].path)
    assert done.status == 2 and "of one precision" in done.error


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"device": "cuda"}, "int4-weights was not tried there"),
        ({"device": "tensorrt"}, "int4-weights was not tried there"),
        ({"strict": True}, "--strict is for int8"),
        ({"precision": "int4"}, "did you mean 'int4-weights'"),
    ],
)
def test_what_cannot_be_is_refused(
    small: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    given = {"target": "onnx", "precision": "int4-weights", "preprocessing": "unit", **options}
    with pytest.raises(EdgekitError, match=reason):
        export(small / "small.keras", out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_model_without_layers_has_nothing_to_store(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    path = _model(tmp_path / "net.onnx", nodes, {}, ["batch", 4], ["batch", 4])
    with pytest.raises(InvalidModelError, match="to store in int4, got one without any"):
        export(
            path, target="onnx", precision="int4-weights", preprocessing="none",
            out=tmp_path / "out",
        )  # fmt: skip


def test_a_poor_file_is_not_written(tmp_path: Path) -> None:
    """Outputs that are differences of large numbers; 8 bits are named, which may do."""
    weights = np.repeat(_drawn(1, 64, 1), 4, axis=1)
    weights[0] += np.arange(4, dtype=np.float32) * 1e-4
    constants = {"w": 100 * weights, "v": np.array([[-1, 1, 0, 0], [0, -1, 1, 0]], np.float32).T}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "wide"),
        helper.make_node("MatMul", ["a", "v"], ["y"], "difference"),
    ]
    path = _model(tmp_path / "net.onnx", nodes, constants, ["batch", 64], ["batch", 2])
    np.savez(tmp_path / "set.npz", x=_drawn(3, 40, 64))
    with pytest.raises(FidelityError, match="int4-weights onnx file.*export in int8-weights"):
        export(
            path,
            target="onnx",
            precision="int4-weights",
            preprocessing="none",
            calibration=str(tmp_path / "set.npz"),
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_scales_of_least_error_cut_off_a_lonely_weight() -> None:
    rows = _drawn(1, 6, 64).astype(np.float64)
    rows[0] = 0.0
    rows[1, 5] = 6 * np.abs(rows[1]).max()
    scale = rounding.scales(rows, bits=4)
    cut = rounding.cut_scales(rows, scale, bits=4)
    assert (cut <= scale).all() and cut[0] == scale[0] == 1.0 and (cut[1:] < scale[1:]).any()

    def left(tried: np.ndarray) -> np.ndarray:
        steps = rounding.nearest(rows, tried, pair_bound=False, largest=7)
        assert np.abs(steps).max() == 7
        return np.asarray(((rows - steps * tried[:, None]) ** 2).sum(axis=1))

    assert (left(cut) <= left(scale)).all() and left(cut).sum() < left(scale).sum()
    # weights that count for nothing may be cut off
    importance = np.ones(64)
    importance[5] = 0.0
    assert rounding.cut_scales(rows, scale, importance, bits=4)[1] < cut[1]


def test_fitted_steps_have_four_bits() -> None:
    rows, inputs = _drawn(1, 5, 24).astype(np.float64), _drawn(2, 200, 25).astype(np.float64)
    inputs[:, -1] = 1
    moments = inputs.T @ inputs / len(inputs)
    scale = rounding.cut_scales(rows, rounding.scales(rows, bits=4), bits=4)
    steps, _ = rounding.round_rows(rows, np.zeros(5), moments, scale, pair_bound=False, largest=7)
    assert np.abs(steps).max() == 7


def test_onnx_reads_what_it_wrote(written: dict[str, Artifact]) -> None:
    graph = Graph(written["tflite-float32"].model_path.read_bytes())
    stored = onnx_integers.read_stored(onnx.load(written["onnx-int4-weights"].model_path), graph)
    assert {layer.bits for layer in stored.layers.values()} == {4, 8}
    assert {layer.weights.dtype for layer in stored.layers.values()} == {np.dtype(np.int8)}
