"""FakeQuantized: where it rounds, to what, with which gradient; and what it deploys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.data.images import make
from edgekit.graph import litert
from edgekit.graph.flatbuffer import Graph
from edgekit.pipeline.calibration import observe
from edgekit.quantization import encode, fake, profiles, saturation
from edgekit.quantization.table import Range
from edgekit.records.encodings import differences
from edgekit.records.signature import preprocessing
from edgekit.sources import convert
from edgekit.sources import keras as keras_format
from edgekit.writers import onnx_convert, onnx_integers, tflite_integers

tf = keras_format.tensorflow()
keras = keras_format.tf_keras()
UNIT = preprocessing("unit")
GENERIC = profiles.profile("generic")


class Case:
    """A float model with batch statistics that mean something, its graph, ranges and images."""

    def __init__(self, model: Any, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                size = layer.gamma.shape
                layer.gamma.assign(rng.uniform(-1.5, 1.5, size))  # of both signs
                layer.beta.assign(rng.normal(0, 0.3, size))
                layer.moving_mean.assign(rng.normal(0, 0.3, size))
                layer.moving_variance.assign(rng.uniform(0.2, 2, size))
        self.model = model
        self.canonical = convert.from_keras(model)
        self.pixels = rng.integers(0, 256, (24, *model.input_shape[1:]), dtype=np.uint8)
        self.values = UNIT.apply(self.pixels)
        table = observe(self.canonical, make("pixels", self.pixels, None), prepare=UNIT)
        self.ranges = table.ranges

    def fake(self, device: str = "generic", **settings: Any) -> fake.FakeQuantized:
        return fake.FakeQuantized(
            self.model,
            self.canonical,
            self.ranges,
            self.values,
            profiles.profile(device),
            **settings,
        )


@pytest.fixture(scope="module")
def case(small: Path) -> Case:
    return Case(keras_format.load(small / "small.keras"))


def test_it_rounds_what_the_deployed_graph_stores(case: Case) -> None:
    made = case.fake()
    stored = {name for name in encode.sharing(Graph(case.canonical)).roots}
    assert made.untrained == ()
    assert set(made._key_of) == stored
    rounded = set(made.activations())
    # behind the activation, not before it; nothing between a convolution and what folds into it
    kinds = {layer.name: type(layer).__name__ for layer in case.model.layers}
    for key in rounded:
        kind = kinds[key.split("/")[0]]
        assert kind != "BatchNormalization", key
    relu_behind = [n.name for n in case.model.layers if isinstance(n, keras.layers.ReLU)]
    assert set(relu_behind) <= rounded
    fused = [n.name for n in case.model.layers if getattr(n, "activation", None) is not None]
    split = [name for name in fused if f"{name}/activation" in rounded]
    assert len(split) == 2  # the convolution with relu, the dense layer with softmax


@pytest.mark.parametrize("bits", [8, 4])
def test_training_grid_is_the_deployed_grid_in_every_layer(case: Case, bits: int) -> None:
    made = case.fake(bits=bits)
    _, stored, tensors = made.deployed()
    layers = Graph(case.canonical).layers
    assert len(layers) == 6
    for layer in layers:
        name = made._layer_of[layer.output]
        assert name is not None
        kind = type(case.model.get_layer(name)).__name__
        values, scale = (part.numpy() for part in made._grid(name))
        channels = values.shape[2] * values.shape[3] if kind == "DepthwiseConv2D" else len(scale)
        assert scale.shape == (channels,)  # per channel, depthwise too
        steps = values.reshape(-1, channels) / scale
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        factor, _ = made._fold(name)
        integers = stored.layers[layer.output]
        deployed = integers.weights.reshape(-1, channels)
        if layer.kind != "depthwise":
            deployed = integers.weights.reshape(channels, -1).T
        np.testing.assert_array_equal(np.rint(steps) * np.sign(factor), deployed)
        np.testing.assert_allclose(integers.weight_scale, scale * np.abs(factor), rtol=1e-6)
        assert np.abs(deployed).max() == (127 if bits == 8 else 7) or GENERIC.pair_bound
        assert np.abs(deployed).max() <= 2 ** (bits - 1) - 1
        assert tensors[layer.weights].axis == layer.axis


def test_both_writers_store_what_was_trained(case: Case) -> None:
    graph, stored, _ = case.fake().deployed()
    file = tflite_integers.write(graph, stored)
    assert not differences(tflite_integers.read_file(file), stored)
    model = onnx_integers.quantize(
        onnx_convert.from_tflite(graph),
        stored,
        Graph(graph),
        activation_dtype="uint8",
        quantize_bias=True,
    )
    assert not differences(onnx_integers.read_stored(model, Graph(graph)), stored)


def test_the_deployed_file_answers_as_the_handed_on_keras_model(case: Case) -> None:
    made = case.fake()
    plain = keras.models.clone_model(case.model)
    made.put_into(plain)
    trained = fake.with_activations(plain, made.activations())(case.values).numpy()
    # biases lie on their grid while it trains too
    np.testing.assert_allclose(made.model(case.values).numpy(), trained, atol=1.01 / 256)
    graph, stored, _ = made.deployed()
    file = tflite_integers.write(graph, stored)
    spec = litert.signature(file)
    opened = litert.interpreter(file)
    for i, values in enumerate(case.values):
        feed = spec.inputs[0].quantize(values[None])
        opened.set_tensor(opened.get_input_details()[0]["index"], feed)
        opened.invoke()
        answer = opened.get_tensor(opened.get_output_details()[0]["index"])
        real = spec.outputs[0].dequantize(answer)
        assert np.abs(real[0] - trained[i]).max() <= 1.01 / 256


def test_scales_are_large_enough_for_pairs(case: Case) -> None:
    bound, free = case.fake("generic"), case.fake("x86-vnni")
    largest = []
    for made in (bound, free):
        _, stored, _ = made.deployed()
        sums = [
            saturation.pair_sums(stored.layers[layer.output].weights.reshape(n, -1)).max()
            for layer in Graph(case.canonical).layers
            if layer.kind != "depthwise"
            for n in [len(stored.layers[layer.output].weight_scale)]
        ]
        largest.append(max(sums))
    assert largest[0] <= saturation.LIMIT < largest[1]


def test_a_symmetric_device_gets_zero_points_of_zero(case: Case) -> None:
    made = case.fake("tensorrt")
    assert {zero_point for _, zero_point in made.activations().values()} == {0}
    scales = {e.scale for e in made.deployed()[2].values() if e.axis is None}
    assert len(scales) > 3


def test_a_silent_channel_stays_finite(case: Case) -> None:
    model = keras.models.clone_model(case.model)
    model.set_weights(case.model.get_weights())
    first = next(n for n in model.layers if isinstance(n, keras.layers.Conv2D))
    kernel = first.kernel.numpy()
    kernel[..., 0] = 0
    first.kernel.assign(kernel)
    normal = next(n for n in model.layers if isinstance(n, keras.layers.BatchNormalization))
    gamma = normal.gamma.numpy()
    gamma[1] = 0
    normal.gamma.assign(gamma)
    changed = Case(keras.models.clone_model(model))
    changed.model.set_weights(model.get_weights())
    changed.canonical = convert.from_keras(changed.model)
    made = changed.fake()
    _, stored, _ = made.deployed()
    layer = Graph(changed.canonical).layers[0]
    integers = stored.layers[layer.output]
    assert not integers.weights[:2].any() and integers.weights[2:].any()
    assert np.isfinite(integers.weight_scale).all() and (integers.weight_scale > 0).all()
    assert np.isfinite(made.model(changed.values).numpy()).all()


def test_the_moving_average_forgets_its_start_as_bias_correction_says() -> None:
    def group(prior: float) -> Any:
        return fake._Group(
            -6.0,
            6.0,
            fixed=False,
            positive=False,
            symmetric=False,
            mode="moving-average",
            members=["x"],
            decay=0.9,
            prior=prior,
        )

    seen = [np.array([[-1.0, 2.0]], np.float32), np.array([[-3.0, 4.0]], np.float32)]
    corrected, start = group(0.0), group(float("inf"))
    for values in seen:
        corrected.quantize(tf.constant(values), "x", True)
        start.quantize(tf.constant(values), "x", True)
    # Kingma and Ba's correction of an average that starts from 0
    expected = (0.9 * 0.1 * 2.0 + 0.1 * 4.0) / (1 - 0.9**2)
    assert float(corrected.plain_limits()[1]) == pytest.approx(expected, rel=1e-5)
    assert float(start.plain_limits()[1]) == pytest.approx(0.9 * (0.9 * 6 + 0.1 * 2) + 0.1 * 4)
    before = [float(end) for end in corrected.plain_limits()]
    corrected.quantize(tf.constant(seen[0] * 100), "x", False)  # frozen
    assert [float(end) for end in corrected.plain_limits()] == before


def test_learned_ranges_have_the_gradient_of_the_step_size() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (3, 40)).astype(np.float32)
    weights = rng.normal(0, 1, x.shape).astype(np.float32)
    low, high = tf.Variable(-1.2), tf.Variable(1.35)
    with tf.GradientTape() as tape:
        y = fake._learned(tf.constant(x), low, high)
        loss = tf.reduce_sum(y * weights)
    found = [float(g) for g in tape.gradient(loss, [low, high])]
    step = (1.35 + 1.2) / 255
    answers = y.numpy()
    inside = (x >= answers.min()) & (x <= answers.max())
    by_step = float((weights * (answers - x) * inside).sum()) / step / 255
    scale = 255**2 / np.sqrt(40 * 255)
    above = float((weights * (x > answers.max())).sum())
    below = float((weights * (x < answers.min())).sum())
    assert found[1] == pytest.approx(scale * (above + by_step), rel=1e-3)
    assert found[0] == pytest.approx(scale * (below - by_step), rel=1e-3)


def test_kernels_have_a_straight_gradient(case: Case) -> None:
    quantizer = fake._KernelQuantizer(8, pair_bound=True)
    kernel = tf.Variable(np.random.default_rng(1).normal(0, 1, (3, 3, 4, 5)).astype(np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantizer.grid(kernel, "Conv2D")[0] * 3)
    np.testing.assert_array_equal(tape.gradient(loss, kernel).numpy(), np.full(kernel.shape, 3.0))


def test_a_range_below_nothing_is_brought_back() -> None:
    group = fake._Group(
        0.0,
        1.0,
        fixed=False,
        positive=True,
        symmetric=False,
        mode="learned",
        members=["x"],
        decay=0.9,
        prior=0.0,
    )
    assert len(group.trainable) == 1  # 0 stays where it is behind a ReLU
    group.trainable[0].assign(-2.0)
    group.settle()
    low, high = (float(end) for end in group.plain_limits())
    assert low == 0 and high > 0


def test_a_layer_left_float_is_rounded_in_the_file_only(case: Case) -> None:
    dense = case.model.layers[-1].name
    made = case.fake("x86-vnni", leave_float=[dense], bits=4)
    assert dense not in made._built.kernels
    assert not [key for key in made.activations() if key.startswith(dense)]
    _, stored, _ = made.deployed()
    layer = Graph(case.canonical).layers[-1]
    weights = case.model.layers[-1].kernel.numpy().T
    integers = stored.layers[layer.output]
    off = integers.weights * integers.weight_scale[:, None] - weights
    assert np.abs(off).max() <= integers.weight_scale.max() * 0.51


def _flat(*layers: Any) -> Any:
    x = image = keras.Input((8, 8, 3))
    for layer in layers:
        x = layer(x)
    return keras.Model(image, x)


def test_what_cannot_be_fake_quantized_is_named_with_the_choice() -> None:
    layers = keras.layers
    model = _flat(
        layers.Conv2D(4, 3, activation="swish", name="smooth"),
        layers.BatchNormalization(name="alone"),
        layers.LeakyReLU(name="leaky"),
        layers.Flatten(),
        layers.Dense(3, name="fine"),
    )
    with pytest.raises(InvalidModelError) as caught:
        fake.check(model)
    text = str(caught.value)
    assert "smooth (Conv2D with activation swish)" in text
    assert "alone (BatchNormalization that is not right behind" in text
    assert "leaky (LeakyReLU)" in text and "fine" not in text
    assert "--leave-float smooth --leave-float alone --leave-float leaky" in text
    fake.check(model, ["smooth", "alone", "leaky"])
    with pytest.raises(InvalidOptionError, match="no layer of .*: nothing"):
        fake.check(model, ["smooth", "alone", "leaky", "nothing"])


def test_models_in_models_are_refused_with_the_way_out() -> None:
    inner = _flat(keras.layers.Conv2D(4, 3))
    model = _flat(inner, keras.layers.GlobalAveragePooling2D())
    with pytest.raises(InvalidModelError, match="a model inside the model.*input_tensor=x"):
        fake.check(model)


def test_models_of_code_are_refused() -> None:
    class Own(keras.Model):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(InvalidModelError, match="no functional model"):
        fake.check(Own())


def test_two_inputs_are_refused() -> None:
    left, right = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([left, right], keras.layers.Add()([left, right]))
    with pytest.raises(InvalidModelError, match="one input and one output.*2 and 1"):
        fake.check(model)


def test_a_shared_layer_has_one_kernel_and_a_range_at_each_call() -> None:
    layers = keras.layers
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    image = keras.Input((8, 8, 3), name="image")
    first = layers.ReLU(name="a")(shared(image))
    second = layers.ReLU(name="b")(shared(first))
    out = layers.Softmax(name="p")(layers.GlobalAveragePooling2D(name="g")(second))
    made = Case(keras.Model(image, out)).fake()
    _, stored, _ = made.deployed()
    one, two = stored.layers.values()
    np.testing.assert_array_equal(one.weights, two.weights)
    assert made.activations()["a"] != made.activations()["b"]


def test_a_dropout_behind_the_softmax_leaves_the_logits_to_the_loss() -> None:
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="a")(inputs))
    logits = layers.Dense(3, name="d")(x)
    out = layers.Dropout(0.1)(layers.Dropout(0.1)(layers.Softmax(name="p")(logits)))
    made = Case(keras.Model(inputs, out)).fake()
    assert made.ends_in_softmax
    values = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    read = tf.nn.softmax(made.logits(values, training=False))
    np.testing.assert_allclose(read, made.model(values, training=False), atol=1 / 256)


def test_a_range_is_shared_where_the_file_shares_it(case: Case) -> None:
    made = case.fake()
    shares = encode.sharing(Graph(case.canonical))
    ranges = made.ranges()
    joined = [n for n, root in shares.roots.items() if list(shares.roots.values()).count(root) > 1]
    assert len(joined) >= 3  # what is concatenated, and what is pooled from it
    by_root: dict[str, set[Range]] = {}
    for name in joined:
        by_root.setdefault(shares.roots[name], set()).add(ranges[name])
    assert all(len(found) == 1 for found in by_root.values())
