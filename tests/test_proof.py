"""What is seen of a file before it becomes an artifact."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx as package
import pytest
from exported import export

from edgekit.base.errors import ExecutionError, WriterError
from edgekit.graph import litert, onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.pipeline import proof
from edgekit.sources import float_model, keras
from edgekit.sources.float_model import FloatModel
from edgekit.writers import half, onnx_convert

TARGETS = ("tflite", "onnx")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net whose last layer takes twins apart, which float16 rounds to much the same numbers."""
    made = keras.tf_keras()
    made.utils.set_random_seed(4)
    image = made.Input((8, 8, 3), name="image")
    x = image
    for i in range(3):
        x = made.layers.Conv2D(12, 3, padding="same", activation="relu", name=f"conv_{i}")(x)
    x = made.layers.Flatten()(x)
    x = made.layers.Dense(20, name="twins")(x)
    model = made.Model(image, made.layers.Dense(10, name="answer")(x))
    random = np.random.default_rng(4)
    kernel, bias = model.get_layer("twins").get_weights()
    kernel[:, 1::2] = kernel[:, ::2] * random.normal(1, 1e-3, kernel[:, ::2].shape)
    model.get_layer("twins").set_weights([kernel, bias])
    apart = np.kron(np.eye(10), [[1], [-1]]).astype(np.float32)
    model.get_layer("answer").set_weights([apart, np.zeros(10)])
    path = tmp_path_factory.mktemp("twins") / "twins.keras"
    model.save(path)
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_what_rounding_explains_is_said(target: str, twins: Path, tmp_path: Path) -> None:
    written = export(
        twins,
        target=target,
        precision="float16",
        preprocessing="unit",
        out=tmp_path / "half",
    )
    said = written.manifest.notes[-1]
    assert "differs from the float model by" in said
    assert "every layer rounds as float16 does" in said


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("target", TARGETS)
def test_a_fault_is_named(target: str, layer: int, twins: Path, tmp_path: Path) -> None:
    """A file in which two channels of a layer are swapped is not excused by rounding."""
    source = float_model.load(twins, preprocessing="unit")
    canonical = source.canonical()
    changed = keras.load(twins)
    convolution = changed.get_layer(f"conv_{layer}")
    kernel, bias = convolution.get_weights()
    order = [1, 0, *range(2, 12)]
    convolution.set_weights([kernel[..., order], bias])
    changed.save(tmp_path / "changed.keras")
    wrong = float_model.load(tmp_path / "changed.keras", preprocessing="unit")
    content = _halved(wrong, target)
    signature = (
        litert.signature(content) if target == "tflite" else onnx.signature(onnx.parse(content))
    )
    with pytest.raises(ExecutionError, match=f"conv_{layer} is to blame"):
        proof.check_outputs(content, signature, canonical, source, target, "float16")


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_float32_file_is_a_fault_of_ours(target: str, twins: Path, tmp_path: Path) -> None:
    source = float_model.load(twins, preprocessing="unit")
    changed = keras.load(twins)
    kernel, bias = changed.get_layer("conv_1").get_weights()
    changed.get_layer("conv_1").set_weights([kernel[..., [1, 0, *range(2, 12)]], bias])
    changed.save(tmp_path / "changed.keras")
    content = float_model.load(tmp_path / "changed.keras", preprocessing="unit").canonical()
    if target == "onnx":
        graph, model = Graph(content), onnx_convert.from_tflite(content)
        onnx_convert.use_signature_names(model, graph)
        content = model.SerializeToString()
    signature = (
        litert.signature(content) if target == "tflite" else onnx.signature(onnx.parse(content))
    )
    with pytest.raises(WriterError, match="by a fault of edgekit's own: .*conv_1 is to blame"):
        proof.check_outputs(content, signature, source.canonical(), source, target, "float32")


def test_files_of_other_exporters_are_judged_by_their_own_names(
    twins: Path, tmp_path: Path
) -> None:
    given = {"target": "onnx", "preprocessing": "unit"}
    whole = export(twins, precision="float32", out=tmp_path / "whole", **given).model_path
    written = export(whole, precision="float16", out=tmp_path / "half", **given)
    assert "every layer rounds as float16 does" in written.manifest.notes[-1]
    source = float_model.load(whole, preprocessing="unit")
    model = onnx.load(written.model_path)
    node = [node for node in model.graph.node if node.op_type == "Conv"][1]
    kernel = next(each for each in model.graph.initializer if each.name == node.input[1])
    values = package.numpy_helper.to_array(kernel)[[1, 0, *range(2, 12)]]
    kernel.CopyFrom(package.numpy_helper.from_array(values, kernel.name))
    content = model.SerializeToString()
    with pytest.raises(ExecutionError, match=rf"{re.escape(node.output[0])} is to blame"):
        proof.check_outputs(
            content,
            written.manifest.signature,
            source.model.SerializeToString(),
            source,
            "onnx",
            "float16",
        )


def test_a_tensor_that_float16_makes_infinite_is_named(tmp_path: Path) -> None:
    """Of what float16 takes for 0, the logarithm is minus infinity. Where a logarithm alone reads a
    tensor, that stays float32."""
    made = keras.tf_keras()
    tensorflow = keras.tensorflow()
    made.utils.set_random_seed(4)
    given = made.Input((8,), name="given")
    power = tensorflow.square(made.layers.Dense(4, name="small")(given) * 1e-5) + 1e-12
    level = tensorflow.nn.relu(tensorflow.math.log(power) + 30.0) + power
    model = made.Model(given, made.layers.Dense(3, name="answer")(level))
    model.save(tmp_path / "level.keras")
    with pytest.raises(ExecutionError, match=r"log is to blame, it gives NaN or inf") as caught:
        export(
            tmp_path / "level.keras",
            target="onnx",
            precision="float16",
            preprocessing="unit",
            out=tmp_path / "half",
            trust=True,
        )
    assert "export it in float32" in str(caught.value)


def _halved(source: FloatModel, target: str) -> bytes:
    if target == "tflite":
        graph = Graph(source.canonical())
        graph.halve()
        return graph.serialize()
    canonical = source.canonical()
    model = onnx_convert.from_tflite(canonical)
    onnx_convert.use_signature_names(model, Graph(canonical))
    name = onnx.signature(model).inputs[0].name
    return bytes(
        half.to_float16(model, {name: np.ones((1, 8, 8, 3), np.float32)}).model.SerializeToString()
    )


def test_an_output_of_no_range_has_no_share_of_it(tmp_path: Path) -> None:
    keras_2 = keras.tf_keras()
    keras_2.utils.set_random_seed(2)
    row = keras_2.Input((16,), name="row")
    bias = keras_2.initializers.Constant(-19)
    never = keras_2.layers.Dense(1, "sigmoid", bias_initializer=bias, name="never")(0.01 * row)
    keras_2.Model(row, [keras_2.layers.Dense(3, name="scores")(row), never]).save(
        tmp_path / "net.keras"
    )
    written = export(
        tmp_path / "net.keras", target="onnx", precision="float16", out=tmp_path / "out"
    )
    (note,) = [each for each in written.manifest.notes if each.startswith("outputs for 4 random")]
    assert "% of the range of scores; never by " in note
    assert note.endswith("at most, where all values are equal but for rounding")
