"""Float ``.tflite`` files as other converters write them, on their way to int8 and to ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from exported import answers, decibels, export

from edgekit import parity
from edgekit.base.errors import InvalidModelError
from edgekit.graph import flatbuffer, litert, onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.sources import keras as keras_format
from edgekit.sources import one_sample, tflite_same

COUNT = 24
SHAPE = (8, 8, 4)


def _net(batch: int | None = None) -> Any:
    """Convolutions and dense layers with biases, and a kernel that is mostly zeros."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(5)
    layers = keras.layers
    image = keras.Input(SHAPE, batch_size=batch, name="image")
    x = layers.Conv2D(32, 1, activation="relu")(image)
    x = layers.Dense(8, activation="relu")(layers.Flatten()(x))
    model = keras.Model(image, layers.Dense(5, activation="softmax")(x))
    random = np.random.default_rng(5)
    for layer in model.layers:
        weights = [w + random.normal(0, 0.1, w.shape) for w in layer.get_weights()]
        layer.set_weights(
            [w * (random.uniform(size=w.shape) > 0.8 * (w.ndim > 1)) for w in weights]
        )
    return model


def _converted(folder: Path, **settings: Any) -> bytes:
    """What TensorFlow's converter makes of the net, with a free batch."""
    tf, model, module = keras_format.tensorflow(), _net(), keras_format.tensorflow().Module()
    given = [tf.TensorSpec([None, *SHAPE], tf.float32, name="image")]
    module.model = model
    module.serve = tf.function(lambda image: {"kind": model(image)}, input_signature=given)
    tf.saved_model.save(module, str(folder), {"serving_default": module.serve})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    for name, value in settings.items():
        setattr(converter, name, value)
    return bytes(converter.convert())


def _half(folder: Path) -> bytes:
    tf = keras_format.tensorflow()
    converter = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    content = _converted(folder, **converter, target_spec=_half_spec())
    assert "DEQUANTIZE" in {operator.kind for operator in Graph(content).operators}
    return content


def _half_spec() -> Any:
    tf = keras_format.tensorflow()
    return tf.lite.TargetSpec(supported_types=[tf.float16])


def _sparse(folder: Path) -> bytes:
    tf = keras_format.tensorflow()
    content = _converted(folder, optimizations=[tf.lite.Optimize.EXPERIMENTAL_SPARSITY])
    assert "DENSIFY" in {operator.kind for operator in Graph(content).operators}
    return content


def _old(folder: Path) -> bytes:
    """As converters wrote it before operators had numbers above 127: the newer field is empty."""
    model = schema.ModelT.InitFromPackedBuf(_converted(folder), 0)
    for code in model.operatorCodes:
        code.builtinCode = 0
    model.signatureDefs = None
    return flatbuffer.pack(model)


FILES: dict[str, Callable[[Path], bytes]] = {
    "free batch": _converted,
    "float16": _half,
    "sparse": _sparse,
    "old": _old,
}


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(6).normal(0, 1, (COUNT, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def exact(samples: np.ndarray) -> np.ndarray:
    return np.asarray(_net()(samples))


@pytest.mark.parametrize(
    "name",
    [
        "float16",
        *(pytest.param(each, marks=pytest.mark.slow) for each in FILES if each != "float16"),
    ],
)
def test_files_of_other_converters_have_the_same_integers_in_both_formats(
    name: str, samples: np.ndarray, exact: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "net.tflite").write_bytes(FILES[name](tmp_path / "saved"))
    np.savez(tmp_path / "set.npz", x=samples)
    made, sizes = {}, {}
    for target, precision in (("tflite", "int8"), ("onnx", "int8"), ("tflite", "float16")):
        made[target, precision] = written = export(
            tmp_path / "net.tflite",
            target=target,
            precision=precision,
            preprocessing="none",
            calibration=str(tmp_path / "set.npz") if precision == "int8" else None,
            out=tmp_path / f"{target}-{precision}",
        )
        (entry,) = written.manifest.signature.inputs
        (found,) = answers(written, {entry.name: samples}).values()
        assert decibels(exact, found) > (25 if precision == "int8" else 50)
        sizes[target, precision] = written.size
    assert parity.numbers(made["tflite", "int8"], made["onnx", "int8"]).differences == ()
    whole = sum(weights.size for weights in _net().get_weights())
    assert sizes["tflite", "float16"] < 2 * whole + 4000  # nothing is stored twice
    assert sizes["onnx", "int8"] < 1.3 * sizes["tflite", "int8"]


def test_sparse_weights_are_read_whole(tmp_path: Path) -> None:
    content = _sparse(tmp_path / "saved")
    graph = Graph(flatbuffer.canonical(content, "net", key=litert.SIGNATURE_KEY))
    kernels = [w for w in _net().get_weights() if w.ndim == 2]
    read = [graph.constant(layer.weights) for layer in graph.layers if layer.kind == "dense"]
    for kernel, found in zip(kernels, read, strict=True):
        np.testing.assert_array_equal(found, kernel.T)


@pytest.mark.parametrize("kind", ["keras", "saved model", "tflite"])
def test_a_batch_of_several_becomes_one_sample(
    kind: str, samples: np.ndarray, exact: np.ndarray, tmp_path: Path
) -> None:
    model = _net(batch=4)
    model.save(tmp_path / "net.keras")
    place = tmp_path / "net.keras"
    if kind != "keras":
        place = tmp_path / "saved"
        model.export(str(place))
    if kind == "tflite":
        converter = keras_format.tensorflow().lite.TFLiteConverter.from_saved_model(str(place))
        place = tmp_path / "net.tflite"
        place.write_bytes(converter.convert())
    for target in ("tflite", "onnx"):
        written = export(
            place,
            target=target,
            precision="float32",
            preprocessing="none",
            out=tmp_path / target,
        )
        (entry,) = written.manifest.signature.inputs
        assert entry.shape[0] in (1, -1)
        (found,) = answers(written, {entry.name: samples}).values()
        assert decibels(exact, found) > 80
        assert "takes batches of 4" in written.manifest.notes[0]


def test_samples_that_are_mixed_are_refused(tmp_path: Path) -> None:
    tf = keras_format.tensorflow()
    module = tf.Module()
    given = [tf.TensorSpec([2, 4], tf.float32, name="rows")]
    module.serve = tf.function(
        lambda rows: {"left": rows - tf.reduce_mean(rows, 0, keepdims=True)}, input_signature=given
    )
    tf.saved_model.save(module, str(tmp_path / "saved"), {"serving_default": module.serve})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
    content = bytes(converter.convert())
    assert one_sample.batch_of(content) == 2
    with pytest.raises(InvalidModelError, match="batches of 2 only, .* others of its batch; save"):
        one_sample.single(content, "net.tflite")
    with pytest.raises(InvalidModelError, match="batches of 2 only"):
        export(
            tmp_path / "saved",
            target="tflite",
            precision="float32",
            preprocessing="none",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_outputs_of_one_operator_without_a_signature_keep_apart(
    target: str, tmp_path: Path
) -> None:
    """As TensorFlow 1 and its detectors name them: what is in front of the colon is the same."""
    model = schema.ModelT.InitFromPackedBuf(_converted(tmp_path / "saved"), 0)
    graph = model.subgraphs[0]
    first = next(op.outputs[0] for op in graph.operators)
    last = graph.outputs[0]
    graph.tensors[first].name, graph.tensors[last].name = b"found:1", b"found:0"
    graph.outputs = [last, first]
    model.signatureDefs = None
    (tmp_path / "unsigned.tflite").write_bytes(flatbuffer.pack(model))
    written = export(
        tmp_path / "unsigned.tflite",
        target=target,
        precision="float32",
        preprocessing="none",
        out=tmp_path / "out",
    )
    named = {spec.name: spec.sample for spec in written.manifest.signature.outputs}
    assert named == {"found": (5,), "found_1": (8, 8, 32)}


def test_outputs_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    keras = keras_format.tf_keras()
    given = keras.Input((4,), name="given")
    names = ("zebra", "ant", "monkey")
    ends = [keras.layers.Dense(i + 2, name=name)(given) for i, name in enumerate(names)]
    keras.Model(given, ends).save(tmp_path / "net.keras")
    for target in ("tflite", "onnx"):
        written = export(
            tmp_path / "net.keras",
            target=target,
            precision="float32",
            preprocessing="none",
            out=tmp_path / target,
        )
        listed = [(spec.name, spec.shape[-1]) for spec in written.manifest.signature.outputs]
        if target == "tflite":
            details = litert.interpreter(written.model_path).get_output_details()
            sizes = [int(detail["shape"][-1]) for detail in details]
        else:
            ends = onnx.load(written.model_path).graph.output
            sizes = [end.type.tensor_type.shape.dim[-1].dim_value for end in ends]
        assert [size for _, size in listed] == sizes
        assert dict(listed) == {"zebra": 2, "ant": 3, "monkey": 4}


def _frames(samples: Any) -> Any:
    """As many whole frames as there are: sizes that the file computes while it runs."""
    tf = keras_format.tensorflow()
    count = tf.shape(samples)[1] // 4
    whole = tf.slice(samples, [0, 0], tf.stack([-1, count * 4]))
    return tf.reduce_sum(tf.reshape(whole, tf.stack([1, count, 4])) ** 2, axis=2)


def test_sizes_that_the_file_computes_while_it_runs(tmp_path: Path) -> None:
    """The input is fixed, and sizes behind it are free: what computes them stays no operator."""
    tf = keras_format.tensorflow()
    free = tf.function(_frames, input_signature=[tf.TensorSpec([1, None], tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([free.get_concrete_function()])
    model = schema.ModelT.InitFromPackedBuf(converter.convert(), 0)
    entry = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    entry.shape, entry.shapeSignature = np.array([1, 14], np.int32), None
    path = tmp_path / "frames.tflite"
    path.write_bytes(flatbuffer.pack(model))
    x = np.random.default_rng(0).normal(size=(6, 14)).astype(np.float32)
    opened = litert.interpreter(path.read_bytes())
    opened.set_tensor(opened.get_input_details()[0]["index"], x[:1])
    opened.invoke()
    (right,) = (opened.get_tensor(each["index"]) for each in opened.get_output_details())
    assert right.shape == (1, 3)
    for target in ("tflite", "onnx"):
        written = export(path, target=target, precision="float32", out=tmp_path / target)
        (found,) = answers(written, {"samples": x[:1]}).values()
        np.testing.assert_allclose(found, right, rtol=1e-5)


def test_a_graph_that_computes_something_else_than_its_file_is_refused(tmp_path: Path) -> None:
    original = _converted(tmp_path / "saved")
    canonical = flatbuffer.canonical(original, "net", key=litert.SIGNATURE_KEY)
    assert tflite_same.check(original, canonical, "net.tflite") == ()
    other = Graph(canonical)
    name = other.layers[-1].bias
    assert name is not None
    other.set_constant(name, other.constant(name) + np.eye(5, dtype=np.float32)[0])
    with pytest.raises(InvalidModelError, match="net.tflite cannot be read .*output 0 differs"):
        tflite_same.check(original, other.serialize(), "net.tflite")
