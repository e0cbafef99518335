"""Files whose weights are integers and whose activations are not, or not in the file."""

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

from edgekit.base.errors import EdgekitError, FidelityError
from edgekit.compare import Options, compare
from edgekit.evaluation import parity, subjects
from edgekit.graph import litert, onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.quantization import saturation
from edgekit.records import encodings, environment
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import Encodings
from edgekit.records.schemes import SCHEMES
from edgekit.runtimes import model_file
from edgekit.sources import keras
from edgekit.writers import onnx_integers, tflite_integers

TARGETS = ("tflite", "onnx")
WEIGHTS = ("int8-weights", "int8-dynamic")
#: dB of the float outputs that int8 weights leave at least: a scale that is wrong leaves none.
LEFT = 30.0


@pytest.fixture(scope="module")
def written(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """small.keras by ``TARGET-PRECISION``."""
    precisions = ("float32", "int8", *WEIGHTS)
    files = export_all(
        small / "small.keras",
        targets=TARGETS,
        precisions=precisions,
        preprocessing="unit",
        calibration=str(small / "set.npz"),
        out=tmp_path_factory.mktemp("precisions"),
    )
    names = [f"{target}-{precision}" for target in TARGETS for precision in precisions]
    return dict(zip(names, files, strict=True))


@pytest.fixture(scope="module")
def wide(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """small.keras in int16x8, which is TFLite only."""
    return export(
        small / "small.keras",
        target="tflite",
        precision="int16x8",
        preprocessing="unit",
        calibration=str(small / "set.npz"),
        out=tmp_path_factory.mktemp("wide") / "tflite-int16x8",
    )


@pytest.fixture(scope="module")
def values(small: Path) -> np.ndarray:
    pixels = np.load(small / "set.npz")["x"]
    return np.asarray(pixels / np.float32(255), np.float32)


def _drawn(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def _foreign(path: Path) -> Path:
    """A net of another exporter: channels first, a convolution for each group, a dense layer."""
    constants = {
        "w": _drawn(1, 8, 3, 3, 3, scale=0.3),
        "b": _drawn(2, 8),
        "d": _drawn(3, 8, 1, 3, 3, scale=0.3),
        "p": _drawn(4, 12, 8, 1, 1, scale=0.3),
        "v": _drawn(5, 12, 5),
        "u": _drawn(6, 5),
    }
    group = {"group": 8, "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "first", strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "d"], ["e"], "depthwise", **group),
        helper.make_node("Conv", ["e", "p"], ["f"], "pointwise"),
        helper.make_node("GlobalAveragePool", ["f"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["h"], "flat"),
        helper.make_node("Gemm", ["h", "v", "u"], ["y"], "dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 13, 13])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    package.save(model, path)
    return path


@pytest.mark.parametrize("precision", WEIGHTS)
def test_both_formats_hold_the_same_integers(written: dict[str, Artifact], precision: str) -> None:
    compared = parity.numbers(*(written[f"{target}-{precision}"] for target in TARGETS))
    assert compared.differences == ()
    graph = Graph(written["tflite-float32"].model_path.read_bytes())
    sizes = [graph.constant(layer.weights).size for layer in graph.layers]
    channels = [graph.shape(layer.weights)[layer.axis] for layer in graph.layers]
    assert compared.compared == sum(sizes) + sum(channels)  # every layer, a scale for each channel


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", WEIGHTS)
def test_predictions_are_near_the_float_models(
    written: dict[str, Artifact], small: Path, values: np.ndarray, target: str, precision: str
) -> None:
    exact = np.asarray(keras.call(keras.load(small / "small.keras"), [values])[0])
    ((name, found),) = answers(written[f"{target}-{precision}"], {"image": values}).items()
    assert decibels(exact, found) > LEFT, name
    (judged,) = written[f"{target}-{precision}"].manifest.quantization.judged
    assert judged.level in ("exact", "close") and judged.count == 8


@pytest.mark.parametrize("target", TARGETS)
def test_int8_weights_are_real_numbers_for_their_layers(
    written: dict[str, Artifact], target: str
) -> None:
    manifest = written[f"{target}-int8-weights"].manifest
    assert {spec.dtype for spec in (*manifest.signature.inputs, *manifest.signature.outputs)} == {
        "float32"
    }
    assert manifest.calibration.count == 40 and manifest.execution.floats == ()
    assert manifest.execution.numbers > 0
    kinds = manifest.execution.kernels
    if target == "tflite":
        layers = ("CONV_2D float32", "DEPTHWISE_CONV_2D float32", "FULLY_CONNECTED float32")
        assert kinds["DEQUANTIZE float32"] == sum(kinds[layer] for layer in layers)
        assert manifest.execution.provider == "XNNPACK" and not manifest.execution.own_kernels
    else:  # real numbers are made once, at the start
        assert "DequantizeLinear" not in kinds
        assert manifest.runtime_options == {"session.disable_quant_qdq": "1"}
        assert any("session.disable_quant_qdq=1" in note for note in manifest.notes)


def test_int8_weights_compute_in_float_whatever_the_session_is(tmp_path: Path) -> None:
    """By default onnxruntime makes a kernel that rounds activations of some products of matrices;
    an answer of this session differs from the other format's by what float sums do."""
    files = export_all(
        _wide(tmp_path / "wide.keras"),
        targets=TARGETS,
        precisions=("int8-weights",),
        preprocessing="none",
        out=tmp_path,
    )
    (spec,) = files[0].manifest.signature.inputs
    fed = {spec.name: _drawn(5, 4, *spec.shape[1:])}
    tflite, onnx_file = (next(iter(answers(each, fed).values())) for each in files)
    assert decibels(tflite, onnx_file) > 100


def test_a_file_is_about_a_quarter(tmp_path: Path) -> None:
    """No calibration samples are needed, and none judge it then."""
    files = export_all(
        _wide(tmp_path / "wide.keras"),
        targets=TARGETS,
        precisions=("float32", *WEIGHTS),
        preprocessing="none",
        out=tmp_path,
    )
    whole = {each.manifest.format: each.size for each in files if "float32" in each.name}
    for each in files:
        if SCHEMES[each.manifest.precision].integers:
            assert each.size < 0.3 * whole[each.manifest.format]
            assert any("nothing could be judged" in note for note in each.manifest.notes)
            assert each.manifest.quantization.judged == ()


def _wide(path: Path) -> Path:
    tf_keras = keras.tf_keras()
    tf_keras.utils.set_random_seed(4)
    image = tf_keras.Input((8, 8, 3), name="image")
    x = tf_keras.layers.Conv2D(64, 3, activation="relu")(image)
    x = tf_keras.layers.Conv2D(128, 3, activation="relu")(x)
    x = tf_keras.layers.Dense(64)(tf_keras.layers.Flatten()(x))
    tf_keras.Model(image, x).save(path)
    return path


@pytest.mark.parametrize("precision", WEIGHTS)
def test_a_file_of_onnx_keeps_its_graph(tmp_path: Path, precision: str) -> None:
    path = _foreign(tmp_path / "net.onnx")
    files = export_all(
        path,
        targets=TARGETS,
        precisions=(precision,),
        preprocessing="none",
        out=tmp_path / "out",
    )
    assert parity.numbers(*files).differences == ()
    own, (ours, theirs) = onnx.load(path), files
    assert [v.name for v in onnx.load(theirs.model_path).graph.input] == ["x"]
    if precision == "int8-weights":
        nodes = [node.op_type for node in onnx.load(theirs.model_path).graph.node]
        kinds = [node.op_type for node in own.graph.node]
        assert [kind for kind in nodes if kind != "DequantizeLinear"] == kinds
        assert nodes.count("DequantizeLinear") == 4
    x = _drawn(7, 16, 3, 13, 13)
    (exact,) = onnx.session(path).run(None, {"x": x})
    assert decibels(exact, answers(theirs, {"x": x})["y"]) > LEFT
    turned = {"x": np.moveaxis(x, 1, -1)}
    assert decibels(exact, answers(ours, turned)["y"]) > LEFT


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"method": "mse"}, "--method is for int8"),
        ({"strict": True}, "--strict is for int8"),
        ({"correction": "none"}, "--correction is for int8"),
        ({"calibration": "table.json"}, "layers are fitted to images"),
        ({"device": "cuda"}, "int8-weights was not tried there"),
        ({"device": "tensorrt"}, "int8-weights was not tried there"),
    ],
)
def test_what_has_no_ranges_takes_no_options_of_them(
    small: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EdgekitError, match=reason):
        export(
            small / "small.keras",
            target="onnx",
            precision="int8-weights",
            preprocessing="unit",
            out=tmp_path / "out",
            **options,
        )
    assert not (tmp_path / "out").exists()


def test_a_poor_file_is_not_written(tmp_path: Path) -> None:
    """Outputs that are differences of large numbers: rounded weights leave nothing of them."""
    weights = np.repeat(_drawn(1, 64, 1), 4, axis=1)
    weights[0] += np.arange(4, dtype=np.float32) * 1e-4
    constants = {"w": 100 * weights, "v": np.array([[-1, 1, 0, 0], [0, -1, 1, 0]], np.float32).T}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "wide"),
        helper.make_node("MatMul", ["a", "v"], ["y"], "difference"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    package.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "set.npz", x=_drawn(3, 40, 64))
    given: dict[str, Any] = {
        "target": "onnx",
        "precision": "int8-weights",
        "preprocessing": "none",
        "calibration": str(tmp_path / "set.npz"),
        "out": tmp_path / "out",
    }
    with pytest.raises(FidelityError, match="int8-weights onnx file.*export in float16"):
        export(tmp_path / "net.onnx", **given)
    assert not (tmp_path / "out").exists()
    poor = export(tmp_path / "net.onnx", allow_poor=True, allow_dead=True, **given)
    assert any("int8-weights onnx file" in note for note in poor.manifest.notes)


@pytest.mark.slow
def test_compare_report_and_gate_take_them(
    written: dict[str, Artifact],
    wide: Artifact,
    small: Path,
    tmp_path: Path,
    edgekit: Callable[..., Done],
) -> None:
    folders = [each.path for each in (*written.values(), wide)]
    found = compare(folders, Options(dataset=str(small / "set.npz"), rounds=1))
    dB = {each.name: each.metrics["sqnr"].value for each in found.artifacts}
    for name, value in dB.items():
        assert value > LEFT or name.endswith("-int8"), dB
    report = tmp_path / "report.json"
    report.write_text(found.dumps())
    done = edgekit("report", report, "--out", tmp_path / "page.html")
    assert done.status == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert all(f'class="{each}"' in page for each in (*WEIGHTS, "int16x8"))
    done = edgekit("gate", report, "--min", "sqnr=10")
    assert done.status == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["float32", "int8", *WEIGHTS])
def test_a_file_alone_tells_its_precision(
    written: dict[str, Artifact], target: str, precision: str
) -> None:
    assert model_file.precision_of(written[f"{target}-{precision}"].model_path) == precision


@pytest.mark.parametrize("precision", WEIGHTS)
def test_verbs_that_cannot_judge_them_say_so(
    written: dict[str, Artifact], small: Path, precision: str, edgekit: Callable[..., Done]
) -> None:
    artifact = written[f"tflite-{precision}"].path
    done = edgekit(
        "compare", small / "small.keras", artifact, "--layers", "--data", small / "set.npz"
    )
    assert done.status == 2 and f"in {precision}" in done.error
    done = edgekit("parity", artifact, written["onnx-int8"].path)
    assert done.status == 2 and "of one precision" in done.error


@pytest.mark.slow
def test_benchmark_takes_them(written: dict[str, Artifact], edgekit: Callable[..., Done]) -> None:
    for precision in WEIGHTS:
        for target in TARGETS:
            done = edgekit("benchmark", written[f"{target}-{precision}"].path, "--seconds", "0.2")
            assert done.status == 0, done.stderr
            assert done.document["float_islands"] is None


def test_layers_of_tflite_round_what_they_read_when_they_run(
    written: dict[str, Artifact], values: np.ndarray
) -> None:
    """Convolutions and dense layers do; a depthwise one has no fast kernel, and is named."""
    artifact = written["tflite-int8-dynamic"]
    graph, execution = Graph(artifact.model_path.read_bytes()), artifact.manifest.execution
    for operator in graph.operators:
        if operator.kind in ("CONV_2D", "FULLY_CONNECTED"):
            assert graph.dtype(operator.inputs[0]) == np.float32
            assert graph.dtype(operator.inputs[1]) == np.int8
    assert execution.provider == "XNNPACK" and not execution.own_kernels
    (name,) = execution.floats
    assert name.startswith("DEPTHWISE_CONV_2D ")
    assert any(name in note for note in artifact.manifest.notes)
    plain = answers(written["tflite-int8-weights"], {"image": values})
    found = answers(artifact, {"image": values})
    assert decibels(*(next(iter(each.values())) for each in (plain, found))) < 100


def test_kernels_of_litert_itself_take_them(
    written: dict[str, Artifact], values: np.ndarray
) -> None:
    content = written["tflite-int8-dynamic"].model_path.read_bytes()
    opened = litert.interpreter(content, exact=True)
    assert not litert.delegated(opened)
    runner = opened.get_signature_runner(litert.SIGNATURE_KEY)
    found = np.concatenate([next(iter(runner(image=x[None]).values())) for x in values])
    exact = next(iter(answers(written["tflite-float32"], {"image": values}).values()))
    assert decibels(exact, found) > LEFT


def test_dense_layers_of_onnx_round_what_they_read_when_they_run(
    written: dict[str, Artifact],
) -> None:
    artifact = written["onnx-int8-dynamic"]
    manifest = artifact.manifest
    assert manifest.execution.kernels["DynamicQuantizeMatMul"] == 1
    kinds = [node.op_type for node in onnx.load(artifact.model_path).graph.node]
    convolutions = [each for each in manifest.execution.floats if each.startswith("Conv ")]
    assert len(convolutions) == kinds.count("Conv") == len(manifest.execution.floats)
    assert any("ConvInteger" in note for note in manifest.notes)
    assert "DequantizeLinear" not in manifest.execution.kernels


def _dense(path: Path) -> Path:
    """Layers that read one tensor, one without a bias, and products of more than two axes."""
    constants = {
        "q": _drawn(1, 32, 32),
        "k": _drawn(2, 32, 32),
        "b": _drawn(3, 32),
        "o": _drawn(4, 16, 32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["q_out"], "q"),
        helper.make_node("MatMul", ["x", "k"], ["k_product"], "k"),
        helper.make_node("Add", ["k_product", "b"], ["k_out"], "k_bias"),
        helper.make_node("Mul", ["q_out", "k_out"], ["m"], "mul"),
        helper.make_node("Flatten", ["m"], ["f"], "flat", axis=1),
        helper.make_node("Reshape", ["f", "shape"], ["r"], "rows"),
        helper.make_node("Gemm", ["r", "o"], ["y"], "out", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 7, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 16])],
        [
            *(numpy_helper.from_array(value, name) for name, value in constants.items()),
            numpy_helper.from_array(np.array([7, 32]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    package.save(model, path)
    return path


@pytest.mark.parametrize(
    "device, bound", [("generic", True), ("x86-vnni", False), ("arm64", False)]
)
def test_products_of_integers_cannot_saturate_where_the_device_could(
    tmp_path: Path, device: str, bound: bool
) -> None:
    path = _dense(tmp_path / "net.onnx")
    files = export_all(
        path,
        targets=TARGETS,
        precisions=("int8-dynamic",),
        preprocessing="none",
        device=device,
        out=tmp_path / "out",
    )
    assert parity.numbers(*files).differences == ()
    model = onnx.load(files[1].model_path)
    found = list(onnx_integers.products(model))
    assert len(found) == 3
    largest = max(saturation.predict(each.name, each.rows).largest for each in found)
    assert (largest <= saturation.LIMIT) == bound
    assert (files[1].manifest.quantization.saturating == {}) is False
    assert files[1].manifest.execution.floats == ()
    assert subjects.cannot_saturate(files[1]) == bound
    x = _drawn(7, 1, 7, 32)
    (exact,) = onnx.session(path).run(None, {"x": x})
    # a file for VNNI may saturate where there is none
    here = bound or not environment.saturates(environment.describe())
    for each in files if here else files[:1]:
        assert decibels(exact, answers(each, {"x": x})["y"]) > LEFT


def test_a_device_whose_kernels_were_not_tried_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="int8-dynamic was not tried there"):
        export(
            small / "small.keras",
            target="onnx",
            precision="int8-dynamic",
            preprocessing="unit",
            device="tensorrt",
            out=tmp_path / "out",
        )


def test_a_file_of_onnxruntimes_own_quantizer_is_told(tmp_path: Path) -> None:
    path = _dense(tmp_path / "net.onnx")
    own = tmp_path / "own.onnx"
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, own, weight_type=QuantType.QInt8, per_channel=True)
    assert model_file.precision_of(own) == "int8-dynamic"


def test_activations_of_16_bits_lose_next_to_nothing(
    written: dict[str, Artifact], wide: Artifact, values: np.ndarray
) -> None:
    exact = next(iter(answers(written["tflite-float32"], {"image": values}).values()))
    left = {
        each.name: decibels(exact, next(iter(answers(each, {"image": values}).values())))
        for each in (written["tflite-int8"], wide)
    }
    assert left[wide.name] > LEFT
    assert left[wide.name] > left[written["tflite-int8"].name]


def test_16_bits_hold_values_larger_than_those_of_calibration(
    written: dict[str, Artifact], wide: Artifact, values: np.ndarray
) -> None:
    brighter = {"image": values * np.float32(1.8)}
    exact = next(iter(answers(written["tflite-float32"], brighter).values()))
    assert decibels(exact, next(iter(answers(wide, brighter).values()))) > LEFT


def test_integers_of_16_bits_are_those_that_were_decided(wide: Artifact) -> None:
    graph = Graph(wide.model_path.read_bytes())
    stored = tflite_integers.read(graph)
    decided = Encodings.load(wide.path / encodings.FILE)
    assert stored.dtype == "int16"
    for name, (scale, zero_point) in stored.activations.items():
        assert (graph.dtype(name), zero_point) == (np.int16, 0)
        found = decided.tensors[name]
        assert (found.dtype, np.float32(found.scale[0])) == ("int16", np.float32(scale))
    assert {layer.weights.dtype for layer in stored.layers.values()} == {np.dtype(np.int8)}
    biases = [layer.bias for layer in stored.layers.values() if layer.bias is not None]
    assert biases and {bias.dtype for bias in biases} == {np.dtype(np.int64)}
    fixed = [name for o in graph.operators if o.kind == "SOFTMAX" for name in o.outputs]
    assert [stored.activations[name][0] for name in fixed] == [1 / 32768]
    spec = wide.manifest.signature.single_input()
    assert (spec.dtype, spec.zero_point) == ("int16", 0)
    assert wide.manifest.execution.floats == () and wide.manifest.execution.numbers > 0
    assert wide.manifest.calibration.count == 40
    assert model_file.precision_of(wide.model_path) == "int16x8"


def test_an_operator_without_a_16_bit_kernel_computes_in_float(tmp_path: Path) -> None:
    tf_keras = keras.tf_keras()
    tf_keras.utils.set_random_seed(4)
    image = tf_keras.Input((6, 6, 3), name="image")
    x = tf_keras.layers.Conv2D(4, 3)(image)
    x = tf_keras.layers.Conv2D(4, 3)(tf_keras.layers.Activation("elu")(x))
    cropped = tf_keras.layers.Cropping2D(2)(tf_keras.layers.Conv2D(4, 1)(image))
    x = tf_keras.layers.Add()([x, cropped])
    tf_keras.Model(image, x).save(tmp_path / "net.keras")
    np.savez(tmp_path / "set.npz", x=_drawn(1, 40, 6, 6, 3))
    given: dict[str, Any] = {
        "target": "tflite",
        "precision": "int16x8",
        "preprocessing": "none",
        "calibration": str(tmp_path / "set.npz"),
    }
    found = export(tmp_path / "net.keras", out=tmp_path / "out", **given)
    assert [each.split()[0] for each in found.manifest.execution.floats] == ["ELU"]
    (judged,) = found.manifest.quantization.judged
    assert judged.sqnr_centred > LEFT
    with pytest.raises(EdgekitError, match="--strict: 1 operators of the tflite int16x8 model"):
        export(tmp_path / "net.keras", out=tmp_path / "strict", strict=True, **given)


def test_16_bits_of_a_file_of_onnx(tmp_path: Path) -> None:
    path = _foreign(tmp_path / "net.onnx")
    x = _drawn(7, 40, 3, 13, 13)
    np.savez(tmp_path / "set.npz", x=x)
    found = export(
        path,
        target="tflite",
        precision="int16x8",
        preprocessing="none",
        calibration=str(tmp_path / "set.npz"),
        out=tmp_path / "out",
    )
    (exact,) = onnx.session(path).run(None, {"x": x})
    assert decibels(exact, answers(found, {"x": np.moveaxis(x, 1, -1)})["y"]) > LEFT


@pytest.mark.parametrize(
    "target, options, reason",
    [
        ("onnx", {}, "no integer kernels of 16-bit activations"),
        ("tflite", {"device": "cuda"}, "device cuda takes onnx"),
        ("tflite", {}, "--calibration"),
    ],
)
def test_16_bits_are_refused(
    small: Path, tmp_path: Path, target: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EdgekitError, match=reason):
        export(
            small / "small.keras",
            target=target,
            precision="int16x8",
            preprocessing="unit",
            out=tmp_path / "out",
            **options,
        )


def test_samples_fit_what_is_rounded_to_the_nearest_without_them(
    written: dict[str, Artifact], small: Path, tmp_path: Path, values: np.ndarray
) -> None:
    record = written["tflite-int8-weights"].manifest.quantization
    even = "equalized channels, corrected biases"
    assert list(record.tried) == ["nearest rounding", "corrected biases", even, "fitted layers"]
    assert record.tried["fitted layers"] > record.tried["nearest rounding"] + 3
    assert record.weights == "fitted"
    plain = export(
        small / "small.keras",
        target="tflite",
        precision="int8-weights",
        preprocessing="unit",
        out=tmp_path / "plain",
    )
    assert (plain.manifest.quantization.weights, plain.manifest.calibration) == ("nearest", None)
    exact, rounded, fitted = (
        next(iter(answers(each, {"image": values}).values()))
        for each in (written["tflite-float32"], plain, written["tflite-int8-weights"])
    )
    assert decibels(exact, fitted) > decibels(exact, rounded) + 1


def test_16_bits_of_weights_far_smaller_than_their_bias(tmp_path: Path) -> None:
    """A batch normalisation with a gamma of nearly nothing leaves a channel its bias alone: a step
    of the weights' own scale would be taken for 0 by the kernel."""
    weights = _drawn(1, 9, 3, 3, 3, scale=0.3)
    weights[::3] *= np.float32(1e-10)
    bias = _drawn(2, 9, scale=0.3)
    bias[::3] = 1.5
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "tiny"),
        helper.make_node("Conv", ["a", "v"], ["y"], "next"),
    ]
    constants = {"w": weights, "b": bias, "v": _drawn(3, 4, 9, 1, 1)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    package.save(model, tmp_path / "net.onnx")
    x = _drawn(7, 40, 3, 8, 8)
    np.savez(tmp_path / "set.npz", x=x)
    found = export(
        tmp_path / "net.onnx",
        target="tflite",
        precision="int16x8",
        preprocessing="none",
        calibration=str(tmp_path / "set.npz"),
        out=tmp_path / "out",
    )
    (exact,) = onnx.session(tmp_path / "net.onnx").run(None, {"x": x})
    got = answers(found, {"x": np.moveaxis(x, 1, -1)})["y"]
    assert got.shape == exact.shape and decibels(exact, got) > LEFT


def test_channels_of_a_file_of_onnx_are_equalized_in_both_formats(tmp_path: Path) -> None:
    """The source's own graph gets the factors too."""
    path = _foreign(tmp_path / "net.onnx")
    model = package.load(path)
    uneven = np.array([1, 40, 0.1, 3, 9, 0.3, 20, 0.05], np.float32)
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        if constant.name in "dp":
            across = (
                uneven[:, None, None, None] if constant.name == "d" else 1 / uneven[:, None, None]
            )
            constant.CopyFrom(numpy_helper.from_array(values * across, constant.name))
    package.save(model, path)
    x = _drawn(7, 40, 3, 13, 13)
    np.savez(tmp_path / "set.npz", x=x)
    files = export_all(
        path,
        targets=TARGETS,
        precisions=("int8-weights",),
        preprocessing="none",
        calibration=str(tmp_path / "set.npz"),
        out=tmp_path / "out",
    )
    assert parity.numbers(*files).differences == ()
    (exact,) = onnx.session(path).run(None, {"x": x})
    for found, given in zip(files, (np.moveaxis(x, 1, -1), x), strict=True):
        record = found.manifest.quantization
        assert record is not None and record.way.startswith("equalized channels")
        plain = record.tried["corrected biases"]
        assert record.tried["equalized channels, corrected biases"] > plain + 6
        assert decibels(exact, answers(found, {"x": given})["y"]) > plain + 6
