"""Both int8 files hold the integers that were decided, whatever the layers of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import answers, decibels, export

from edgekit import parity
from edgekit.base.errors import InvalidModelError, WriterError
from edgekit.base.progress import SILENT
from edgekit.data.feeds import make
from edgekit.graph import litert, onnx, onnx_forms
from edgekit.graph.flatbuffer import Graph
from edgekit.pipeline import exporting, proof
from edgekit.pipeline.calibration import observe
from edgekit.pipeline.options import Options
from edgekit.quantization import encode, profiles, quantize, saturation
from edgekit.records.artifact import Artifact
from edgekit.records.signature import preprocessing
from edgekit.sources import convert
from edgekit.sources import keras as keras_format
from edgekit.writers import onnx_convert, onnx_integers, onnx_repairs, tflite_integers

COUNT = 32
keras = keras_format.tf_keras()
layers, tf = keras.layers, keras_format.tensorflow()
TARGETS = ("tflite", "onnx")


def _saved(
    net: Callable[[Any], Any], shape: tuple[int, ...], folder: Path, *, scale: float = 1.0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """net.keras with random weights, and set.npz; its samples and its outputs, by name."""
    keras.utils.set_random_seed(8)
    random = np.random.default_rng(8)
    given = keras.Input(shape, name="given")
    model = keras.Model(given, net(given))
    for layer in model.layers:
        weights = layer.get_weights()
        changed = [w + random.normal(0, 0.1, w.shape).astype(np.float32) for w in weights]
        named = zip(changed, layer.weights, strict=True)
        changed = [np.abs(w) if "variance" in v.name else w for w, v in named]
        if layer.name == "uneven":
            changed = [changed[0] * SIZES[:, None], changed[1] * SIZES]
        layer.set_weights(changed)
    model.save(folder / "net.keras")
    values = {"given": scale * random.normal(0, 1, (COUNT, *shape)).clip(-3, 3).astype(np.float32)}
    np.savez(folder / "set.npz", **values)
    found = keras_format.call(model, list(values.values()))
    return values, dict(zip(keras_format.output_names(model), map(np.asarray, found), strict=True))


def _int8(folder: Path, target: str, **options: Any) -> Artifact:
    return export(
        folder / "net.keras",
        target=target,
        precision="int8",
        preprocessing="symmetric",
        calibration=str(folder / "set.npz"),
        out=folder / target,
        **{"correction": "none", **options},
    )


def _worst(exact: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    return min(decibels(values, found[name]) for name, values in exact.items())


def _conv(x: Any, channels: int = 4) -> Any:
    return layers.Conv2D(channels, 3, padding="same")(x)


SIZES = np.geomspace(0.05, 20, 6).astype(np.float32)


def _uneven(x: Any) -> Any:
    """A layer whose channels differ 400 times in size, as in trained decoders."""
    turned = layers.Conv2DTranspose(6, 4, 2, "same", name="uneven")(_conv(x))
    return _conv(layers.ReLU()(turned / tf.reshape(SIZES, [1, 1, 1, 6])), 2)


def _odd_axis(x: Any) -> Any:
    x = layers.BatchNormalization(axis=1)(_conv(x))
    return layers.Dense(3)(layers.Flatten()(layers.BatchNormalization(axis=-2)(layers.ReLU()(x))))


def _turned(x: Any) -> Any:
    parts = tf.split(_conv(x), 2, -1)
    joined = layers.Concatenate()([layers.Conv2DTranspose(3, 3, 2, "same")(p) for p in parts])
    return _conv(joined, 2)


SHAPE = (8, 8, 3)
NETS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "clip to [0, 255]": (lambda x: tf.clip_by_value(40 * _conv(x), 0.0, 255.0), 30),
    "clip to [0, 1]": (lambda x: tf.clip_by_value(_conv(x), 0.0, 1.0), 30),
    "clip to [-1, 1]": (lambda x: tf.clip_by_value(_conv(x), -1.0, 1.0), 30),
    "minimum": (lambda x: tf.minimum(_conv(x), 1.5), 30),
    "ReLU up to 255": (lambda x: layers.ReLU(max_value=255.0)(100 * _conv(x)), 30),
    "clip inside": (lambda x: _conv(layers.ReLU(max_value=2.0)(_conv(x))), 30),
    "uneven transposed": (_uneven, 30),
    "two transposed groups": (_turned, 30),
    "odd axis": (_odd_axis, 30),
    "leaky maximum": (lambda x: _conv(tf.maximum(_conv(x), 0.2 * _conv(x))), 30),
    "multiplier": (lambda x: layers.DepthwiseConv2D(3, depth_multiplier=3)(_conv(x)), 30),
    "volume": (lambda x: layers.Dense(3)(layers.Flatten()(
        layers.Conv3D(3, 3)(tf.reshape(_conv(x), [-1, 4, 4, 4, 4])))), 25),
    "resized": (lambda x: _conv(layers.Resizing(11, 13)(_conv(x))), 30),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_both_files_hold_the_same_integers(name: str, tmp_path: Path) -> None:
    net, least = NETS[name]
    values, exact = _saved(net, SHAPE, tmp_path)
    made = {target: _int8(tmp_path, target) for target in TARGETS}
    found = {target: answers(written, values) for target, written in made.items()}
    for target in TARGETS:
        assert _worst(exact, found[target]) > least, target
    assert _worst(found["tflite"], found["onnx"]) > least + 3
    numbers = parity.numbers(made["tflite"], made["onnx"])
    assert numbers.differences == ()
    # the bias of Conv3D is an operator of its own in TFLite, and a part of Conv in ONNX
    assert any("are no tensors" in each for each in numbers.expected) == (name == "volume")


def _keypoints(pixels: Any) -> Any:
    """Where a heat map is largest, and what lies there, from whole numbers."""
    x = tf.cast(pixels, tf.float32) * (1 / 127.5) - 1.0
    flat = tf.reshape(x, [-1, 64, 3])
    places = tf.argmax(flat, axis=1, output_type=tf.int32)
    rows = places // 8
    columns = places - rows * 8
    at = tf.stack([tf.zeros_like(rows), rows, columns], -1)
    offsets = tf.gather_nd(_conv(x, 2), at)
    real = tf.cast(tf.stack([rows, columns], -1), tf.float32)
    return [(real + offsets) * (1 / 8), tf.nn.sigmoid(_conv(x))]


def test_a_constant_of_an_operator_in_float_stays_float(tmp_path: Path) -> None:
    """Another operator that computes on integers has the same numbers, and they are integers."""
    net = lambda x: _conv(layers.ReLU()(_conv(layers.ReLU()(_conv(x)) + 0.25)) + 0.25)  # noqa: E731
    values, _ = _saved(net, SHAPE, tmp_path)
    canonical = convert.from_keras(keras_format.load(tmp_path / "net.keras"))
    graph = Graph(canonical)
    table = observe(canonical, make("set", values), prepare=preprocessing("symmetric"))
    decided = quantize.quantize(
        canonical, table, profile=profiles.profile("generic"), samples=None, correction="none"
    )
    first, second = [each for each in graph.operators if each.kind == "ADD"]
    layers_of = {layer.input: layer.output for layer in graph.layers}
    (one,) = [name for name in first.inputs if graph.is_constant(name)]
    tensors = [first.inputs[0], first.outputs[0]]
    apart = [layer.output for layer in graph.layers if layer.output == tensors[0]]
    apart.append(layers_of[tensors[1]])
    kept = decided.stored.without(tensors, apart, [one])
    assert len(kept.constants) == 1
    model = onnx_integers.quantize(
        onnx_convert.from_tflite(decided.graph), kept, Graph(decided.graph)
    )
    read = onnx_integers.read_stored(model, Graph(decided.graph))
    assert set(read.constants) == set(kept.constants)
    content = tflite_integers.write(decided.graph, kept)
    assert set(tflite_integers.read_file(content).constants) == set(kept.constants)


def _usual(x: Any) -> Any:
    x = layers.ReLU(6.0)(_conv(x))
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
    x = layers.Concatenate()([x, layers.Conv2DTranspose(4, 2, 1, "same")(x)])
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(_conv(x)))


@pytest.mark.parametrize("zeros", [False, True])
def test_onnx_is_the_same_of_whatever_numbers_were_converted(zeros: bool, tmp_path: Path) -> None:
    """So that the conversion need not wait for the integers, where they are all of layers."""
    _saved(_usual, SHAPE, tmp_path)
    if zeros:  # biases of the same content are stored once
        model = keras_format.load(tmp_path / "net.keras")
        for layer in model.layers:
            layer.set_weights([w * (w.ndim > 1) for w in layer.get_weights()])
        model.save(tmp_path / "net.keras")
    options = Options(calibration=str(tmp_path / "set.npz"), preprocessing="none")
    files = [("onnx", "int8")]
    pipeline = exporting.opened(tmp_path / "net.keras", files, options, SILENT)
    decided = pipeline.quantized
    assert pipeline.layers_onnx is not None
    early, late = (
        exporting._make_int8(
            pipeline.source, *files[0], pipeline.canonical, None, decided, pipeline.profile, each
        )
        for each in (pipeline.layers_onnx, None)
    )
    first, second = (onnx.parse(each.content).graph for each in (early, late))
    # names of nodes count on within a process
    assert [node.op_type for node in first.node] == [node.op_type for node in second.node]
    assert [each.raw_data for each in first.initializer] == [
        each.raw_data for each in second.initializer
    ]
    assert early.notes == late.notes


def test_a_layer_in_float_reads_what_the_activation_before_gives(tmp_path: Path) -> None:
    """The range of integers clips as a ReLU does; who reads them in float needs the ReLU."""
    values, _ = _saved(lambda x: _conv(layers.ReLU()(_conv(x) - 0.5)), SHAPE, tmp_path)
    canonical = tflite_source(tmp_path)
    graph = Graph(canonical)
    table = observe(canonical, make("set", values), prepare=preprocessing("none"))
    decided = quantize.quantize(
        canonical, table, profile=profiles.profile("generic"), samples=None, correction="none"
    )
    last = graph.layers[-1].output
    kept = decided.stored.without([last], [last])
    model = onnx_integers.quantize(
        onnx_convert.from_tflite(decided.graph), kept, Graph(decided.graph)
    )
    session = onnx.session(model.SerializeToString())
    opened = litert.interpreter(tflite_integers.write(decided.graph, kept))
    (given,), (end,) = opened.get_input_details(), opened.get_output_details()
    scale, zero_point = kept.activations[graph.inputs[0]]
    for sample in next(iter(values.values()))[:4]:
        image = np.float32(sample)[None]
        steps = np.clip(np.rint(image / np.float32(scale)) + zero_point, -128, 127)
        opened.set_tensor(given["index"], steps.astype(np.int8))
        litert.invoke(opened)
        (found,) = session.run(None, {session.get_inputs()[0].name: image})
        assert decibels(opened.get_tensor(end["index"]), found) > 35


def tflite_source(folder: Path) -> bytes:
    """The canonical graph of net.keras."""
    return convert.from_keras(keras_format.load(folder / "net.keras"))


def test_keypoints_by_argmax_and_gather(tmp_path: Path) -> None:
    keras.utils.set_random_seed(9)
    random = np.random.default_rng(9)
    pixels = random.integers(0, 150, (COUNT, *SHAPE))
    for sample in pixels:
        for channel in range(3):
            sample[tuple(random.integers(0, 8, 2)), channel] = 255
    values = {"pixels": pixels.astype(np.int32)}
    given = keras.Input(SHAPE, batch_size=1, name="pixels", dtype="int32")
    model = keras.Model(given, _keypoints(given))
    model.save(tmp_path / "net.keras")
    np.savez(tmp_path / "set.npz", **values)
    each = [keras_format.call(model, [pixels[i : i + 1]]) for i in range(COUNT)]
    names = keras_format.output_names(model)
    exact = {name: np.concatenate([one[i] for one in each]) for i, name in enumerate(names)}
    for target in TARGETS:
        for precision, least in (("float32", 80), ("int8", 25)):
            written = export(
                tmp_path / "net.keras",
                target=target,
                precision=precision,
                preprocessing="none",
                calibration=str(tmp_path / "set.npz") if precision == "int8" else None,
                out=tmp_path / f"{target}-{precision}",
            )
            assert _worst(exact, answers(written, values)) > least


def test_names_do_not_depend_on_what_the_process_did_before(tmp_path: Path) -> None:
    """TensorFlow calls a number in a formula by the count of all it has made."""
    _saved(lambda x: 40.0 * _conv(tf.minimum(_conv(x), 1.5)), SHAPE, tmp_path)
    model = keras_format.load(tmp_path / "net.keras")
    assert convert.from_keras(model) == convert.from_keras(model)


def _mish(x: Any) -> Any:
    return x * tf.tanh(tf.math.softplus(x))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "selu": tf.nn.selu,
    "mish": _mish,
    "softplus": tf.math.softplus,
    "softsign": tf.math.softsign,
    "gelu of tanh": lambda x: 0.5 * x * (1 + tf.tanh(0.798 * (x + 0.0447 * x * x * x))),
    "swish": tf.nn.swish,
    "hard swish": lambda x: x * tf.nn.relu6(x + 3.0) * (1 / 6),
    "leaky where": lambda x: tf.where(x > 0, x, 0.2 * x),
    "where of two": lambda x: tf.where(
        tf.logical_and(x > -2, tf.logical_not(x > 2)), x, tf.clip_by_value(x, -2.0, 2.0)
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_several_operators(name: str, tmp_path: Path) -> None:
    """Inputs are large: e^x of them spans many powers of ten."""
    kind = ACTIVATIONS[name]
    values, exact = _saved(lambda x: _conv(kind(4 * _conv(x))), SHAPE, tmp_path)
    for target in TARGETS:
        written = _int8(tmp_path, target)
        assert _worst(exact, answers(written, values)) > 28, target
        execution = written.manifest.execution
        assert execution is not None
        assert bool(execution.floats) == (name in ("selu", "mish", "softplus", "softsign")) or (
            target == "onnx" and name != "hard swish"
        )
        assert not any("Conv" in each or "CONV" in each for each in execution.floats)


def test_what_is_not_chosen_does_not_become_nan(tmp_path: Path) -> None:
    """e^x of the branch that is left out is infinite in float32."""
    values, exact = _saved(lambda x: tf.nn.selu(200 * x), (4,), tmp_path)
    written = export(
        tmp_path / "net.keras",
        target="onnx",
        precision="float32",
        preprocessing="symmetric",
        out=tmp_path / "out",
    )
    assert _worst(exact, answers(written, values)) > 100


def test_taps_of_a_depthwise_layer_over_one_channel_are_paired(tmp_path: Path) -> None:
    """It is an ordinary convolution in ONNX, whose kernel adds products in pairs."""

    def net(x: Any) -> Any:
        ones = layers.DepthwiseConv2D(
            (4, 4), 2, depth_multiplier=8, depthwise_initializer="ones", activation="relu"
        )(x)
        return layers.Dense(3)(layers.Flatten()(ones))

    values, exact = _saved(net, (12, 12, 1), tmp_path, scale=0.3)
    written = {
        device: _int8(tmp_path, "onnx", device=device, force=True) for device in ("generic",)
    }
    unbound = _int8(tmp_path, "onnx", device="x86-vnni", force=True)
    model = onnx.load(unbound.model_path)
    taps = next(each for each in onnx_integers.products(model) if each.rows.shape == (8, 16))
    assert (taps.groups, taps.inputs) == (1, 1)
    assert saturation.predict("taps", taps.rows).pairs > 0
    proof.check_products(model, profiles.profile("x86-vnni"))
    with pytest.raises(WriterError, match="pairs of products of .* can saturate on generic"):
        proof.check_products(model, profiles.profile("generic"))
    bound = _int8(tmp_path, "onnx", force=True)
    for each in onnx_integers.products(onnx.load(bound.model_path)):
        assert saturation.predict(each.name, each.rows).pairs == 0
    record = bound.manifest.quantization
    assert record is not None and any("depthwise" in name for name in record.saturating)
    assert _worst(exact, answers(bound, values)) > 25
    assert written["generic"].manifest.device == "generic"


@pytest.mark.parametrize(
    "groups, inputs, outputs, paired",
    [(1, 3, 8, True), (6, 1, 6, False), (6, 1, 12, True), (1, 1, 8, True), (2, 2, 4, True)],
)
def test_products_are_paired_but_in_depthwise_kernels(
    groups: int, inputs: int, outputs: int, paired: bool
) -> None:
    assert saturation.pairs_in_groups(groups, inputs, outputs) == paired


@pytest.mark.slow
def test_an_unrolled_cell_is_stored_once(tmp_path: Path) -> None:
    values, exact = _saved(
        lambda x: layers.Dense(3)(layers.LSTM(32, unroll=True)(x)), (8, 16), tmp_path
    )
    sizes = {}
    for target in TARGETS:
        for correction in ("none", "auto"):
            written = _int8(tmp_path, target, correction=correction, force=True)
            sizes[target, correction] = written.size
            assert _worst(exact, answers(written, values)) > 15
    for target in TARGETS:
        whole = export(
            tmp_path / "net.keras",
            target=target,
            precision="float32",
            preprocessing="symmetric",
            out=tmp_path / "whole",
            force=True,
        )
        assert max(sizes[target, "none"], sizes[target, "auto"]) < 1.2 * whole.size
    model = schema_of(tmp_path / "tflite" / "model.tflite")
    kernels = [t for t in model.subgraphs[0].tensors if list(t.shape) == [128, 32]]
    assert len(kernels) == 1


def schema_of(path: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def test_a_batch_that_cannot_be_free_is_one(tmp_path: Path) -> None:
    """A constant of one sample beside a batch of any: the sizes do not fit."""

    def net(x: Any) -> Any:
        first = tf.ones_like(x[:1]) * 0.5
        return layers.Dense(3)(layers.Flatten()(tf.concat([first, x[:1]], 1)))

    values, exact = _saved(net, (4, 3), tmp_path)
    for precision in ("float32", "int8"):
        written = export(
            tmp_path / "net.keras",
            target="onnx",
            precision=precision,
            preprocessing="symmetric",
            calibration=str(tmp_path / "set.npz") if precision == "int8" else None,
            out=tmp_path / precision,
        )
        assert written.manifest.signature.inputs[0].shape[0] == 1


def test_the_batch_stays_free_behind_a_resize(tmp_path: Path) -> None:
    values, exact = _saved(NETS["resized"][0], SHAPE, tmp_path)
    written = export(
        tmp_path / "net.keras",
        target="onnx",
        precision="float32",
        preprocessing="symmetric",
        out=tmp_path / "out",
    )
    assert written.manifest.signature.inputs[0].shape[0] == -1
    assert _worst(exact, answers(written, values)) > 80


def test_float_weights_are_not_rounded_by_the_runtime(tmp_path: Path) -> None:
    """onnxruntime rounds float weights between tensors that are rounded, by numbers of its own."""
    _saved(NETS["volume"][0], SHAPE, tmp_path)
    execution = _int8(tmp_path, "onnx").manifest.execution
    assert execution is not None
    assert execution.kernels.get("QLinearConv") == 1  # the picture's; the volume's has none
    assert any(name.startswith("Conv ") for name in execution.floats)


def test_bounds_of_a_clip_have_no_axis() -> None:
    import onnx as package
    from onnx import helper

    node = helper.make_node("HardSigmoid", ["x"], ["y"], "step")
    sizes = [helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy"]
    graph = helper.make_graph([node], "g", sizes[:1], sizes[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx_forms.for_integers(model)
    bounds = next(n for n in model.graph.node if n.op_type == "Clip").input[1:]
    stored = onnx.stored_constants(model)
    assert [stored[name].shape for name in bounds] == [(), ()]
    package.checker.check_model(model, full_check=True)


def test_what_was_written_otherwise_is_a_fault_of_ours(tmp_path: Path) -> None:
    _saved(NETS["odd axis"][0], SHAPE, tmp_path)
    content = _int8(tmp_path, "tflite").model_path.read_bytes()
    stored = tflite_integers.read_file(content)
    graph = Graph(content)
    name, constant = next(iter(stored.constants.items()))
    values = constant.values
    graph.set_constant(name, np.where(values > 0, values - 1, values + 1).astype(np.int8))
    changed = tflite_integers.read(Graph(graph.serialize()))
    with pytest.raises(WriterError, match="by a fault of edgekit's own.*constant of .*by 1"):
        proof.check_stored("tflite", changed, stored)
    proof.check_stored("tflite", stored, stored)


def test_a_tensor_without_an_encoding_stays_float(tmp_path: Path) -> None:
    """Who decides may leave any tensor in float: what reads and writes it computes in float."""
    values, exact = _saved(lambda x: _conv(layers.ReLU()(_conv(_conv(x)))), SHAPE, tmp_path)
    model = keras_format.load(tmp_path / "net.keras")
    canonical = convert.from_keras(model)
    graph = Graph(canonical)
    inner = graph.layers[1].output
    table = observe(canonical, make("set", values), prepare=preprocessing("symmetric"))
    profile = profiles.profile("generic")
    encodings = {
        name: each
        for name, each in encode.activations(graph, table.ranges, profile).items()
        if name != inner
    }
    decided = quantize.quantize(canonical, table, profile=profile, samples=None, correction="none")
    kept = decided.stored.without([inner], [graph.layers[1].output, graph.layers[2].output])
    content = tflite_integers.write(decided.graph, kept)
    read = tflite_integers.read_file(content)
    assert inner not in read.activations and set(read.layers) == set(kept.layers)
    floats = tflite_integers.floats(Graph(content))
    assert len([name for name in floats if name.startswith("CONV_2D")]) == 2
    written = onnx_integers.quantize(
        onnx_convert.from_tflite(decided.graph), kept, Graph(decided.graph)
    )
    again = onnx_integers.read_stored(written, Graph(decided.graph))
    assert set(again.layers) == set(kept.layers) and inner not in again.activations
    assert set(encodings) == set(kept.activations)


def test_a_name_that_two_branches_could_have_is_refused() -> None:
    """What tf2onnx renamed is found by its values, which have to tell it."""
    image = keras.Input((4, 4, 2), name="image")
    x = layers.Conv2D(3, 1, activation="relu", name="first")(image)
    canonical = convert.from_keras(keras.Model(image, layers.Conv2D(2, 1, name="last")(x)))
    model = onnx_convert.from_tflite(canonical)
    (relu,) = [node for node in model.graph.node if node.op_type == "Relu"]
    reader = next(node for node in model.graph.node if relu.output[0] in node.input)
    lost = relu.output[0]
    relu.output[0] = reader.input[list(reader.input).index(lost)] = "renamed"
    onnx_repairs.name_by_values(model, Graph(canonical))
    assert relu.output[0] == lost
    relu.output[0] = reader.input[list(reader.input).index(lost)] = "renamed"
    twin = model.graph.node.add()
    twin.CopyFrom(relu)
    twin.name = twin.output[0] = "twin"
    with pytest.raises(InvalidModelError, match="got renamed and twin of another branch"):
        onnx_repairs.name_by_values(model, Graph(canonical))
