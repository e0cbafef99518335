from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.base.errors import EdgekitError, InvalidDataError, InvalidModelError
from edgekit.data import images as image_sets
from edgekit.graph import litert, walk
from edgekit.graph.flatbuffer import Graph, Layer
from edgekit.pipeline.calibration import observe
from edgekit.quantization import (
    decisions,
    encode,
    equalize,
    quantize,
    reconstruct,
    sampling,
    saturation,
)
from edgekit.quantization.judge import Judge
from edgekit.quantization.profiles import PROFILES
from edgekit.quantization.quantize import Quantized
from edgekit.quantization.table import CalibrationTable, Range
from edgekit.records import environment
from edgekit.records.encodings import Encoding, differences
from edgekit.records.signature import preprocessing
from edgekit.sources import convert
from edgekit.sources.keras import tf_keras
from edgekit.writers import tflite_integers

Floats = npt.NDArray[np.float32]

UNIT = preprocessing("unit")
GENERIC = PROFILES["generic"]


@dataclass(frozen=True)
class Case:
    """A small float model and a calibration set for it."""

    canonical: bytes
    images: image_sets.ImageSet

    @property
    def graph(self) -> Graph:
        return Graph(self.canonical)

    @property
    def feed(self) -> walk.Values:
        return {self.graph.inputs[0]: UNIT.apply(self.images.images)}

    def observe(self, canonical: bytes | None = None, fitting: bool = False) -> CalibrationTable:
        images = self.images
        if fitting:
            images = images.take(quantize.held_out(len(images))[0])
        return observe(canonical or self.canonical, images, prepare=UNIT)

    @property
    def samples(self) -> quantize.CalibrationSamples:
        return quantize.CalibrationSamples.of(self.feed, self.observe)

    def quantize(self, **options: Any) -> Quantized:
        given: dict[str, Any] = {"profile": GENERIC, "samples": self.samples, **options}
        return quantize.quantize(self.canonical, self.observe(), **given)


def converted(build: Callable[[Any, Any], Any], *, size: int = 8) -> bytes:
    """The canonical graph of what ``build(layers, image)`` returns."""
    keras = tf_keras()
    keras.utils.set_random_seed(7)
    image = keras.Input((size, size, 2), name="image")
    return convert.from_keras(keras.Model(image, build(keras.layers, image)))


def case(build: Callable[[Any, Any], Any], *, size: int = 8, count: int = 40) -> Case:
    """The same with random images."""
    values = np.random.default_rng(1).random((count, size, size, 2), np.float32)
    images = image_sets.make("set", values, None)
    return Case(converted(build, size=size), images)


BIAS = {"bias_initializer": "random_normal"}
RELU = {"activation": "relu", **BIAS}


def _zoo(layers: Any, image: Any) -> Any:
    down = layers.Conv2D(4, 3, strides=2, padding="same", name="down", **RELU)(image)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="deep", **BIAS)(down)
    x = layers.Conv2D(4, 1, name="point", **BIAS)(x)
    x = layers.Add(name="sum")([down, x])
    x = layers.Concatenate(name="both")(
        [layers.MaxPooling2D(2, name="most")(x), layers.AveragePooling2D(2, name="mean")(x)]
    )
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(3, name="answers", **BIAS)(x)
    return layers.Softmax(name="soft")(x)


def _chain(layers: Any, image: Any) -> Any:
    """ReLU layers one behind the other, then a tensor that two layers read."""
    x = layers.Conv2D(6, 3, name="first", **RELU)(image)
    x = layers.DepthwiseConv2D(3, name="deep", **RELU)(x)
    x = layers.Conv2D(6, 3, name="wide", **RELU)(x)
    both = layers.Conv2D(6, 1, name="twice", **RELU)(x)
    x = layers.Conv2D(6, 1, name="last", **BIAS)(both)
    x = layers.Add(name="sum")([both, x])
    return layers.GlobalAveragePooling2D(name="pool")(x)


FACTORS = np.array([1, 30, 0.1, 3, 8, 0.4], np.float32)


def planted(found: Case, *names: str) -> Case:
    """The same function with uneven channels in the tensors that layers of these names write."""
    graph = found.graph
    for front in (layer for layer in graph.layers if any(n in layer.output for n in names)):
        behind = next(layer for layer in graph.layers if layer.input == front.output)
        weights = graph.constant(front.weights)
        across = FACTORS if front.kind == "depthwise" else FACTORS[:, None, None, None]
        assert front.bias is not None
        graph.set_constant(front.weights, weights * across)
        graph.set_constant(front.bias, graph.constant(front.bias) * FACTORS)
        graph.set_constant(behind.weights, graph.constant(behind.weights) / FACTORS)
    return replace(found, canonical=graph.serialize())


@pytest.fixture(scope="module")
def zoo() -> Case:
    return case(_zoo)


@pytest.fixture(scope="module")
def uneven() -> Case:
    return planted(case(_chain), "first/", "wide/")


@pytest.fixture(scope="module")
def decided(zoo: Case) -> Quantized:
    return zoo.quantize()


def whole(canonical: bytes, values: Floats) -> dict[str, list[Floats]]:
    """Every tensor of the interpreter that runs the whole graph, image by image."""
    opened = litert.interpreter(canonical, experimental_preserve_all_tensors=True)
    found: dict[str, list[Floats]] = {}
    for image in values:
        opened.set_tensor(opened.get_input_details()[0]["index"], image[None])
        opened.invoke()
        for tensor in litert.activations(opened):
            found.setdefault(tensor.name, []).append(opened.get_tensor(tensor.index))
    return found


def answers(canonical: bytes, values: Floats) -> Floats:
    return np.concatenate(whole(canonical, values)[Graph(canonical).outputs[0]])


def pixels(found: Case) -> Floats:
    return found.feed[found.graph.inputs[0]]


def kinds(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Outputs by kind of operator."""
    return {operator.kind: operator.outputs for operator in graph.operators}


def layer_ending(graph: Graph, name: str) -> Layer:
    return next(layer for layer in graph.layers if f"/{name}/" in layer.output)


def test_the_zoo_has_every_kind_of_operator(zoo: Case) -> None:
    assert set(kinds(zoo.graph)) == set(
        "CONV_2D DEPTHWISE_CONV_2D ADD CONCATENATION MAX_POOL_2D AVERAGE_POOL_2D PAD RESHAPE "
        "FULLY_CONNECTED SOFTMAX".split()
    )
    assert [layer.kind for layer in zoo.graph.layers] == ["conv", "depthwise", "conv", "dense"]
    assert zoo.graph.layers[0].strides == (2, 2)
    assert zoo.graph.layers[0].same


def test_a_layers_short_name_tells_it_from_others(zoo: Case) -> None:
    for name, layer in zip(("down", "deep", "point", "answers"), zoo.graph.layers, strict=True):
        assert name in layer.short


# -- the graph, whole and in pieces


def test_a_walk_answers_as_the_whole_graph_does(zoo: Case) -> None:
    seen: dict[str, Floats] = {}

    def keep(name: str, values: Floats) -> Floats:
        seen[name] = values
        return values

    found = walk.outputs(zoo.graph, zoo.feed, threads=1, change=keep)
    expected = whole(zoo.canonical, pixels(zoo))
    assert list(found) == list(zoo.graph.outputs)
    assert set(seen) == set(expected)
    for name, values in seen.items():
        np.testing.assert_allclose(values, np.concatenate(expected[name]), rtol=1e-5, atol=1e-6)
    assert np.ptp(found[zoo.graph.outputs[0]], axis=0).max() > 1e-3


def test_what_a_walk_changes_later_operators_see(zoo: Case) -> None:
    (logits,) = kinds(zoo.graph)["FULLY_CONNECTED"]
    found = walk.outputs(
        zoo.graph,
        zoo.feed,
        threads=1,
        change=lambda name, values: np.zeros_like(values) if name == logits else values,
    )
    np.testing.assert_allclose(found[zoo.graph.outputs[0]], 1 / 3, rtol=1e-6)


def test_a_reshape_with_its_batch_written_in_is_walked() -> None:
    def build(layers: Any, image: Any) -> Any:
        x = layers.Conv2D(2, 1, name="first", **RELU)(image)
        return layers.Conv2D(3, 1, name="last", **BIAS)(layers.Reshape((4, 4, 8))(x))

    found = case(build, count=5)
    assert "RESHAPE" in kinds(found.graph)
    np.testing.assert_allclose(
        walk.outputs(found.graph, found.feed, threads=1)[found.graph.outputs[0]],
        answers(found.canonical, pixels(found)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_an_operator_alone_keeps_its_answers(zoo: Case) -> None:
    expected = whole(zoo.canonical, pixels(zoo)[:3])
    for position, operator in enumerate(zoo.graph.operators):
        alone = zoo.graph.single(position)
        assert [each.kind for each in Graph(alone).operators] == [operator.kind]
        opened = litert.interpreter(alone)
        fed = walk.fed(zoo.graph, operator)
        for number in range(3):
            for detail, name in zip(opened.get_input_details(), fed, strict=True):
                opened.set_tensor(detail["index"], expected[name][number])
            opened.invoke()
            np.testing.assert_allclose(
                opened.get_tensor(opened.get_output_details()[0]["index"]),
                expected[operator.outputs[0]][number],
                rtol=1e-5,
                atol=1e-6,
            )


def test_an_operator_alone_can_go_without_its_activation(zoo: Case) -> None:
    values = pixels(zoo)[:1]
    bare, whole_one = zoo.graph.single(0, activation=False), zoo.graph.single(0)
    before, after = answers(bare, values), answers(whole_one, values)
    assert before.min() < 0
    np.testing.assert_allclose(np.maximum(before, 0), after, rtol=1e-5, atol=1e-6)
    assert zoo.graph.layers[0].activation == "relu"


def test_a_graph_written_again_has_the_same_constants_and_answers(zoo: Case) -> None:
    again = zoo.graph.serialize()
    graph = Graph(again)
    assert graph.operators == zoo.graph.operators
    assert graph.layers == zoo.graph.layers
    for name in graph.tensors:
        assert graph.is_constant(name) == zoo.graph.is_constant(name)
        if graph.is_constant(name):
            np.testing.assert_array_equal(graph.constant(name), zoo.graph.constant(name))
    values = pixels(zoo)[:4]
    np.testing.assert_array_equal(answers(again, values), answers(zoo.canonical, values))
    assert litert.signature(again) == litert.signature(zoo.canonical)
    assert Graph(again).serialize() == again


def test_constants_are_aligned_to_16_bytes(zoo: Case) -> None:
    from ai_edge_litert import schema_py_generated as schema

    for content in (zoo.graph.serialize(), zoo.graph.single(0)):
        raw = np.frombuffer(content, np.uint8)
        model = schema.Model.GetRootAs(raw, 0)
        base = raw.__array_interface__["data"][0]
        filled = [model.Buffers(i) for i in range(model.BuffersLength())]
        filled = [buffer for buffer in filled if buffer.DataLength()]
        assert len(filled) > 1
        for buffer in filled:
            assert (buffer.DataAsNumpy().__array_interface__["data"][0] - base) % 16 == 0


def test_a_changed_constant_changes_no_other(zoo: Case) -> None:
    graph = zoo.graph
    layer = graph.layers[0]
    before = {
        name: graph.constant(name).copy() for name in graph.tensors if graph.is_constant(name)
    }
    graph.set_constant(layer.weights, before[layer.weights] * 2)
    changed = Graph(graph.serialize())
    for name, values in before.items():
        factor = 2 if name == layer.weights else 1
        np.testing.assert_array_equal(changed.constant(name), values * factor)
    with pytest.raises(ValueError, match="expected float32"):
        graph.set_constant(layer.weights, before[layer.weights][:1])


# -- encodings of activations


def lowest(encoding: Encoding) -> float:
    return (-128 - encoding.zero_point) * encoding.scale[0]


def highest(encoding: Encoding) -> float:
    return (127 - encoding.zero_point) * encoding.scale[0]


def test_operators_that_only_move_values_share_one_scale(zoo: Case) -> None:
    ranges = zoo.observe().ranges
    found = encode.activations(zoo.graph, ranges, GENERIC)
    written = kinds(zoo.graph)
    moved = ("ADD", "MAX_POOL_2D", "AVERAGE_POOL_2D", "CONCATENATION", "PAD", "RESHAPE")
    group = [written[kind][0] for kind in moved]
    assert len({found[name] for name in group}) == 1
    step = found[group[0]].scale[0]
    assert highest(found[group[0]]) >= max(ranges[name].max for name in group) - step
    assert lowest(found[group[0]]) <= min(ranges[name].min for name in group) + step
    others = [name for name in found if name not in group]
    assert found[group[0]] not in [found[name] for name in others]


@pytest.mark.parametrize("kind", ["MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "RESHAPE"])
def test_an_operator_that_moves_values_keeps_their_scale(kind: str) -> None:
    def build(layers: Any, image: Any) -> Any:
        moving = {
            "MAX_POOL_2D": layers.MaxPooling2D(2),
            "AVERAGE_POOL_2D": layers.AveragePooling2D(2),
            "PAD": layers.ZeroPadding2D(1),
            "RESHAPE": layers.Reshape((4, 4, 8)),
        }
        return layers.Activation("softmax")(moving[kind](layers.Softmax(axis=1)(image)))

    graph = Graph(converted(build))
    (operator,) = [each for each in graph.operators if each.kind == kind]
    before, after = operator.inputs[0], operator.outputs[0]
    ranges = dict.fromkeys(graph.tensors, Range(0.0, 1.0))
    ranges[after] = Range(-1.0, 3.0)
    found = encode.activations(graph, ranges, PROFILES["tensorrt"])
    assert found[before] == found[after]
    assert found[graph.outputs[0]] != found[after]


def test_what_softmax_writes_has_the_fixed_scale(zoo: Case) -> None:
    found = encode.activations(zoo.graph, zoo.observe().ranges, GENERIC)
    assert found[kinds(zoo.graph)["SOFTMAX"][0]] == Encoding("int8", (1 / 256,), -128)


@pytest.mark.parametrize(
    "name, kind, scale, zero_point",
    [("sigmoid", "LOGISTIC", 1 / 256, -128), ("tanh", "TANH", 1 / 128, 0)],
)
def test_bounded_functions_have_fixed_scales(
    name: str, kind: str, scale: float, zero_point: int
) -> None:
    graph = Graph(converted(lambda layers, image: layers.Activation(name)(image)))
    ranges = dict.fromkeys(graph.tensors, Range(0.0, 0.1))
    found = encode.activations(graph, ranges, GENERIC)
    assert found[kinds(graph)[kind][0]] == Encoding("int8", (scale,), zero_point)
    symmetric = encode.activations(graph, ranges, PROFILES["tensorrt"])
    assert {each.zero_point for each in symmetric.values()} == {0}


def test_every_computed_tensor_is_covered_by_its_encoding(zoo: Case) -> None:
    ranges = zoo.observe().ranges
    found = encode.activations(zoo.graph, ranges, GENERIC)
    assert set(found) == set(ranges)
    for name, encoding in found.items():
        half = encoding.scale[0]
        assert lowest(encoding) - half <= ranges[name].min, name
        assert highest(encoding) + half >= ranges[name].max, name


@pytest.mark.parametrize("low, high, zero_point", [(1.0, 2.0, -128), (-2.0, -1.0, 127)])
@pytest.mark.parametrize("device", ["generic", "tensorrt"])
def test_zero_lies_on_a_step(
    zoo: Case, low: float, high: float, zero_point: int, device: str
) -> None:
    ranges = dict.fromkeys(zoo.observe().ranges, Range(low, high))
    for name, found in encode.activations(zoo.graph, ranges, PROFILES[device]).items():
        if name in kinds(zoo.graph)["SOFTMAX"] and device == "generic":
            continue
        assert found.zero_point == (zero_point if device == "generic" else 0)
        steps = 255 if device == "generic" else 127
        assert found.scale[0] == pytest.approx(2 / steps, rel=1e-6)
        assert found.fake_quantize(np.zeros(1, np.float32)) == 0


def test_a_symmetric_device_has_no_zero_points(zoo: Case) -> None:
    ranges = zoo.observe().ranges
    found = encode.activations(zoo.graph, ranges, PROFILES["tensorrt"])
    assert {encoding.zero_point for encoding in found.values()} == {0}
    for name, encoding in found.items():
        largest = max(abs(ranges[name].min), abs(ranges[name].max))
        assert 127 * encoding.scale[0] >= largest * (1 - 1e-6)


def test_a_tensor_without_a_range_is_named(zoo: Case) -> None:
    ranges = dict(zoo.observe().ranges)
    (name,) = kinds(zoo.graph)["FULLY_CONNECTED"]
    del ranges[name]
    with pytest.raises(InvalidDataError, match="answers/.* has no range") as caught:
        encode.activations(zoo.graph, ranges, GENERIC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [0.0, 1e-44])
def test_a_range_without_width_is_named(zoo: Case, width: float) -> None:
    (name,) = kinds(zoo.graph)["FULLY_CONNECTED"]
    ranges = {**zoo.observe().ranges, name: Range(0.0, width)}
    with pytest.raises(InvalidDataError, match="answers/.* a range of width 0") as caught:
        encode.activations(zoo.graph, ranges, GENERIC)
    assert "\n" not in str(caught.value)


def test_a_fixed_scale_does_not_cut_off_what_is_joined_to_it() -> None:
    def build(layers: Any, image: Any) -> Any:
        gate = layers.Conv2D(2, 1, activation="sigmoid", name="gate", **BIAS)(image)
        large = layers.Conv2D(2, 1, kernel_initializer="ones", name="large", **RELU)(image)
        return layers.Concatenate(name="both")([gate, layers.AveragePooling2D(1)(large)])

    found = case(build)
    ranges = found.observe().ranges
    (large,) = kinds(found.graph)["AVERAGE_POOL_2D"]
    assert ranges[large].max > 1.5
    try:
        encodings = encode.activations(found.graph, ranges, GENERIC)
    except EdgekitError:
        return  # said, not silent
    assert highest(encodings[large]) >= 0.99 * ranges[large].max


# -- equalization


def unevenness(table: CalibrationTable, name: str) -> float:
    largest = np.maximum(
        np.abs(table.statistics[name].channel_min), np.abs(table.statistics[name].channel_max)
    )
    return float(largest.max() / largest[largest > 0].min())


def test_equalization_keeps_the_function_and_evens_channels_out(uneven: Case) -> None:
    before = uneven.observe()
    changed, factors = equalize.equalize(uneven.canonical, before.statistics)
    after = uneven.observe(changed)
    expected = answers(uneven.canonical, pixels(uneven))
    np.testing.assert_allclose(
        answers(changed, pixels(uneven)), expected, atol=1e-4 * np.abs(expected).max()
    )
    for name in ("first", "wide"):
        output = layer_ending(uneven.graph, name).output
        assert len(factors[output]) == 6
        assert unevenness(before, output) > 20
        assert unevenness(after, output) < 0.3 * unevenness(before, output)
    assert unevenness(after, layer_ending(uneven.graph, "first").output) < 1.1


def test_ranges_of_an_equalized_graph_are_known_before_it_runs(uneven: Case) -> None:
    before = uneven.observe()
    changed, factors = equalize.equalize(uneven.canonical, before.statistics)
    expected = equalize.ranges(Graph(changed), before, factors)
    after = uneven.observe(changed).ranges
    assert expected.keys() == after.keys()
    assert any(abs(after[name].max / before.ranges[name].max - 1) > 0.1 for name in factors)
    for name, ends in expected.items():
        found = after[name]
        assert (ends.min, ends.max) == pytest.approx((found.min, found.max), rel=1e-4, abs=1e-6)


def test_the_factors_are_what_channels_were_multiplied_with(uneven: Case) -> None:
    before = uneven.observe()
    changed, factors = equalize.equalize(uneven.canonical, before.statistics)
    after = uneven.observe(changed)
    for name, factor in factors.items():
        np.testing.assert_allclose(
            np.asarray(before.statistics[name].channel_max) * factor,
            after.statistics[name].channel_max,
            rtol=1e-3,
        )


def test_a_tensor_with_two_readers_is_left_alone(uneven: Case) -> None:
    twice = planted_twice(uneven)
    changed, factors = equalize.equalize(twice.canonical, twice.observe().statistics)
    layer = layer_ending(twice.graph, "twice")
    assert unevenness(twice.observe(), layer.output) > 10
    assert layer.output not in factors
    assert twice.graph.outputs[0] not in factors
    np.testing.assert_array_equal(
        Graph(changed).constant(layer.bias), twice.graph.constant(layer.bias)
    )


def planted_twice(found: Case) -> Case:
    """Uneven channels where two layers read: another function, as uneven as it can get."""
    graph = found.graph
    layer = layer_ending(graph, "twice")
    across = FACTORS[:, None, None, None]
    graph.set_constant(layer.weights, graph.constant(layer.weights) * across)
    graph.set_constant(layer.bias, graph.constant(layer.bias) * FACTORS)
    return replace(found, canonical=graph.serialize())


def test_relu6_is_not_moved_across_its_clip(zoo: Case) -> None:
    table = zoo.observe()
    changed, factors = equalize.equalize(zoo.canonical, table.statistics)
    deep = layer_ending(zoo.graph, "deep")
    assert min(factors[deep.output]) >= 1
    np.testing.assert_allclose(
        answers(changed, pixels(zoo)), answers(zoo.canonical, pixels(zoo)), atol=1e-4
    )


def parts(graph: Graph, layer: Layer) -> np.ndarray:
    """The largest part that each input channel's weights are of the largest of an output's."""
    weights = np.abs(graph.constant(layer.weights)).max(axis=(1, 2))
    return np.asarray((weights / weights.max(axis=1, keepdims=True)).max(axis=0))


def test_weights_are_made_even_where_they_alone_are_integers(uneven: Case) -> None:
    table = uneven.observe()
    changed, factors = equalize.equalize(
        uneven.canonical, table.statistics, evened="weights", clipped=False
    )
    expected = answers(uneven.canonical, pixels(uneven))
    np.testing.assert_allclose(
        answers(changed, pixels(uneven)), expected, atol=1e-4 * np.abs(expected).max()
    )
    twice = layer_ending(uneven.graph, "twice")
    assert parts(uneven.graph, twice).min() < 0.05
    assert parts(Graph(changed), twice).min() > 0.5
    # a depthwise layer has a scale for each channel
    assert layer_ending(uneven.graph, "first").output not in factors


@pytest.mark.parametrize("high", [1.0, 5.0])
def test_weights_behind_a_relu6_are_made_even_within_its_bounds(high: float) -> None:
    """Channels that twice their values would bring to 6 keep them; no channel is raised, since
    values of other images are larger than any that were seen."""

    def build(layers: Any, image: Any) -> Any:
        x = layers.Conv2D(6, 3, activation="relu6", name="first", **BIAS)(image)
        return layers.Conv2D(6, 1, name="last", **BIAS)(x)

    found = case(build)
    graph = found.graph
    first, last = graph.layers
    largest = np.asarray(found.observe().statistics[first.output].channel_max, np.float32)
    wanted = np.array([high, 0.1, 0.3, 2.0, 0.5, 1.0], np.float32) / largest
    graph.set_constant(first.weights, graph.constant(first.weights) * wanted[:, None, None, None])
    graph.set_constant(first.bias, graph.constant(first.bias) * wanted)
    graph.set_constant(last.weights, graph.constant(last.weights) / wanted)
    hard = replace(found, canonical=graph.serialize())
    changed, factors = equalize.equalize(
        hard.canonical, hard.observe().statistics, evened="weights", clipped=False
    )
    expected = answers(hard.canonical, pixels(hard))
    np.testing.assert_allclose(
        answers(changed, pixels(hard)), expected, atol=1e-4 * np.abs(expected).max()
    )
    found_factors = np.asarray(factors[first.output])
    assert found_factors[0] == 1 or high < 3
    assert found_factors.max() == 1
    assert parts(Graph(changed), last).min() > 2 * parts(graph, last).min()


def test_a_depthwise_layer_with_a_multiplier_is_quantized_or_refused() -> None:
    def build(layers: Any, image: Any) -> Any:
        x = layers.Conv2D(4, 3, name="first", **RELU)(image)
        x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep", **RELU)(x)
        return layers.Conv2D(3, 1, name="last", **BIAS)(x)

    quantizes_or_refuses(case(build, count=24))


@pytest.mark.parametrize("kernel", [2, 3])
def test_a_grouped_convolution_is_quantized_or_refused(kernel: int) -> None:
    def build(layers: Any, image: Any) -> Any:
        x = layers.Conv2D(4, 3, name="first", **RELU)(image)
        x = layers.Conv2D(4, kernel, groups=2, name="grouped", **RELU)(x)
        return layers.Conv2D(3, 1, name="last", **BIAS)(x)

    quantizes_or_refuses(case(build, count=24))


def test_a_layer_that_is_used_twice_keeps_its_answers() -> None:
    def build(layers: Any, image: Any) -> Any:
        again = layers.Conv2D(4, 1, name="again", **RELU)
        return layers.Conv2D(3, 1, name="last", **BIAS)(
            again(again(layers.Conv2D(4, 3, name="first", **RELU)(image)))
        )

    found = case(build, count=24)
    assert shared(found, 1)
    keeps_its_answers(found)


def quantizes_or_refuses(found: Case) -> None:
    """Good answers or one line that says why not, and nothing else."""
    try:
        keeps_its_answers(found)
        assert min(trial.sqnr for trial in found.quantize().trials) > 20
    except EdgekitError as exc:
        assert "\n" not in str(exc)


def shared(found: Case, place: int) -> bool:
    """Whether the converter gave two layers one constant as their input at this place."""
    operators = litert.interpreter(found.canonical)._get_ops_details()
    constants = [op["inputs"][place] for op in operators if op["op_name"] == "CONV_2D"]
    return len(set(constants)) < len(constants)


def keeps_its_answers(found: Case) -> None:
    changed, _ = equalize.equalize(found.canonical, found.observe().statistics)
    expected = answers(found.canonical, pixels(found))
    np.testing.assert_allclose(
        answers(changed, pixels(found)), expected, atol=1e-4 * np.abs(expected).max()
    )


# -- integers of layers


def scored(found: Case, layers: reconstruct.Layers, encodings: dict[str, Encoding]) -> float:
    return (
        Judge(found.canonical, (), found.feed, GENERIC, threads=1)
        .score(found.graph, layers, encodings)
        .sqnr
    )


def test_fitted_layers_answer_better_than_nearest(uneven: Case) -> None:
    encodings = encode.activations(uneven.graph, uneven.observe().ranges, GENERIC)
    for pair_bound in (False, True):
        plain = reconstruct.nearest(uneven.graph, encodings, pair_bound=pair_bound)
        fitted = reconstruct.fitted(
            uneven.graph, encodings, uneven.feed, pair_bound=pair_bound, threads=1
        )
        assert set(fitted) == set(plain) == {layer.output for layer in uneven.graph.layers}
        assert scored(uneven, fitted, encodings) > scored(uneven, plain, encodings)
        if pair_bound:
            assert not sum(p.pairs for p in quantize.predictions(uneven.graph, fitted))


@pytest.mark.parametrize("kind", ["depthwise", "conv", "dense"])
def test_a_fitted_layer_makes_up_for_the_layer_before(kind: str) -> None:
    def build(layers: Any, image: Any) -> Any:
        x = layers.Conv2D(6, 3, name="first", **RELU)(image)
        behind = {
            "depthwise": layers.DepthwiseConv2D(3, name="last", **BIAS),
            "conv": layers.Conv2D(4, 3, name="last", **BIAS),
            "dense": layers.Dense(4, name="last", **BIAS),
        }
        return behind[kind](x)

    found = case(build)
    first, last = found.graph.layers
    assert last.kind == kind
    encodings = encode.activations(found.graph, found.observe().ranges, GENERIC)
    (scale,) = encodings[first.output].scale
    # large answers are cut off before the last layer reads them
    encodings[first.output] = replace(encodings[first.output], scale=(0.4 * scale,))
    plain = reconstruct.nearest(found.graph, encodings, pair_bound=True)
    fitted = reconstruct.fitted(found.graph, encodings, found.feed, pair_bound=True, threads=1)
    assert scored(found, fitted, encodings) > scored(found, plain, encodings) + 0.5


def test_a_sample_holds_what_dot_products_read() -> None:
    def build(layers: Any, image: Any) -> Any:
        found = [
            layers.Conv2D(3, 3, strides=2, padding="same", name="even", **BIAS)(image),
            layers.Conv2D(3, (3, 2), strides=(2, 3), name="valid", **BIAS)(image),
            layers.Conv2D(3, 2, padding="same", name="small", **BIAS)(image),
            layers.Conv2D(3, 3, dilation_rate=2, padding="same", name="dilated", **BIAS)(image),
            layers.DepthwiseConv2D(3, strides=2, padding="same", name="deep", **BIAS)(image),
            layers.DepthwiseConv2D(5, padding="same", name="deeper", **BIAS)(image),
        ]
        return layers.Concatenate()([layers.GlobalAveragePooling2D()(x) for x in found])

    for size in (7, 8):
        found = case(build, size=size, count=3)
        graph, values = found.graph, pixels(found)
        seen = {name: np.concatenate(each) for name, each in whole(found.canonical, values).items()}
        assert len(graph.layers) == 6
        for layer in graph.layers:
            rows, bias = reconstruct.rows_of(graph, layer)
            places = sampling.draw(graph, layer, len(values), np.random.default_rng(0))
            sample = np.empty(places.shape(graph, len(values)), np.float32)
            places.read(seen[layer.input], into=sample)
            if layer.kind == "depthwise":
                found_answers = np.einsum("nkc,ck->nc", sample, rows) + bias
            else:
                found_answers = sample @ rows.T + bias
            expected = seen[layer.output].reshape(-1, len(rows))
            np.testing.assert_allclose(found_answers, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1 << 27, 1 << 24), (1 << 14, 1 << 12), (1, 1)])
def test_parts_of_the_float_model_read_what_the_whole_does(
    zoo: Case, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_PART_BYTES", sizes[0])
    monkeypatch.setattr(sampling, "_BLOCK_BYTES", sizes[1])
    graph, count, rng = zoo.graph, len(pixels(zoo)), np.random.default_rng(0)
    places = [sampling.draw(graph, layer, count, rng) for layer in graph.layers]
    inputs = [each.layer.input for each in places]
    whole_ones = walk.outputs(Graph(graph.with_outputs(inputs)), zoo.feed, threads=1)
    walked, seen = [], {}
    for part, found in sampling.parts(graph, zoo.feed, places, threads=2):
        walked += part
        seen |= found
    assert walked == list(range(len(graph.operators)))
    for each in places:
        expected = np.empty(each.shape(graph, count), np.float32)
        each.read(whole_ones[each.layer.input], into=expected)
        np.testing.assert_array_equal(seen[each.layer.output], expected)


def test_integers_do_not_depend_on_how_many_fits_run_at_once(
    zoo: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(environment, "cores", lambda cores=cores: cores)
        found.append(zoo.quantize())
    assert found[0].trials == found[1].trials == found[2].trials
    assert found[0].graph == found[1].graph == found[2].graph


def test_a_score_is_what_varies_before_the_softmax_over_its_error(zoo: Case) -> None:
    encodings = encode.activations(zoo.graph, zoo.observe().ranges, GENERIC)
    layers = reconstruct.nearest(zoo.graph, encodings, pair_bound=True)
    (soft,) = (each for each in zoo.graph.operators if each.kind == "SOFTMAX")
    ending = zoo.graph.with_outputs(soft.inputs)
    changed = Graph(ending)
    for layer in changed.layers:
        reconstruct.put(changed, layer, layers[layer.output])
    found = walk.outputs(
        changed,
        zoo.feed,
        threads=1,
        change=lambda name, values: encodings[name].fake_quantize(values),
    )[soft.inputs[0]].astype(np.float64)
    exact = walk.outputs(Graph(ending), zoo.feed, threads=1)[soft.inputs[0]].astype(np.float64)
    varies = ((exact - exact.mean(axis=0)) ** 2).sum()
    expected = 10 * np.log10(varies / ((exact - found) ** 2).sum())
    assert scored(zoo, layers, encodings) == pytest.approx(expected, abs=0.01)


def of_channels(layer: Layer, values: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
    """One value an output channel, shaped to go with the layer's weights."""
    return values if layer.axis else values.reshape(-1, *[1] * (rank - 1))


def test_integers_stand_for_the_weights_within_half_a_step(zoo: Case) -> None:
    encodings = encode.activations(zoo.graph, zoo.observe().ranges, GENERIC)
    layers = reconstruct.nearest(zoo.graph, encodings, pair_bound=False)
    for layer in zoo.graph.layers:
        found, weights = layers[layer.output], zoo.graph.constant(layer.weights)
        integers = found.integers
        assert (integers.weights.dtype, integers.weights.shape) == (np.int8, weights.shape)
        assert integers.bias is not None
        assert integers.bias_scale is not None
        scale = of_channels(layer, integers.weight_scale, weights.ndim)
        assert (np.abs(found.weights - weights) <= 0.5001 * scale).all()
        np.testing.assert_allclose(found.weights, integers.weights * scale, rtol=1e-6)
        entry = np.float32(encodings[layer.input].scale[0])
        np.testing.assert_array_equal(integers.bias_scale, entry * integers.weight_scale)
        assert layer.bias is not None
        bias = zoo.graph.constant(layer.bias)
        assert (np.abs(found.bias - bias) <= 0.5001 * integers.bias_scale).all()
        assert not found.raised


def test_layers_that_share_a_bias_each_get_their_own() -> None:
    """A converter keeps one constant of zeros for all layers without a bias."""

    def build(layers: Any, image: Any) -> Any:
        x = layers.Conv2D(4, 3, activation="relu", use_bias=False, name="first")(image)
        return layers.Conv2D(4, 3, use_bias=False, name="last")(x)

    found = case(build, count=24)
    assert shared(found, 2)
    table = found.observe()
    encodings = encode.activations(found.graph, table.ranges, GENERIC)
    layers = reconstruct.nearest(
        found.graph, encodings, pair_bound=True, statistics=table.statistics
    )
    changed = found.graph
    for layer in changed.layers:
        reconstruct.put(changed, layer, layers[layer.output])
    again = Graph(changed.serialize())
    for layer in again.layers:
        given = layers[layer.output].bias
        assert np.abs(given).max() > 0
        np.testing.assert_array_equal(again.constant(layer.bias or ""), given)


def test_corrected_biases_take_up_the_mean_error() -> None:
    def build(layers: Any, image: Any) -> Any:
        return layers.Conv2D(6, 1, name="only", **BIAS)(image)

    found = case(build)
    table = found.observe()
    encodings = encode.activations(found.graph, table.ranges, GENERIC)
    (layer,) = found.graph.layers
    graph = found.graph
    graph.set_constant(layer.weights, np.round(graph.constant(layer.weights), 1) + np.float32(0.02))
    inputs = pixels(found)
    expected = answers(graph.serialize(), inputs)
    errors = []
    for statistics in (None, table.statistics):
        given = reconstruct.nearest(graph, encodings, pair_bound=True, statistics=statistics)
        changed = Graph(graph.serialize())
        reconstruct.put(changed, layer, given[layer.output])
        error = answers(changed.serialize(), inputs) - expected
        errors.append(np.abs(error.mean(axis=(0, 1, 2))).max())
    assert errors[1] < 0.3 * errors[0]


def large_bias(found: Case) -> Graph:
    """A layer whose weights are next to nothing beside its bias."""
    graph = found.graph
    layer = layer_ending(graph, "point")
    graph.set_constant(layer.weights, graph.constant(layer.weights) * np.float32(1e-7))
    graph.set_constant(layer.bias, np.array([50, -1000, 0, 3], np.float32))
    return graph


def test_a_bias_too_large_for_int32_raises_the_scale(zoo: Case) -> None:
    graph = large_bias(zoo)
    layer = layer_ending(graph, "point")
    encodings = encode.activations(graph, zoo.observe(graph.serialize()).ranges, GENERIC)
    layers = reconstruct.nearest(graph, encodings, pair_bound=True)
    assert [out for out, found in layers.items() if found.raised] == [layer.output]
    found, bias = layers[layer.output], graph.constant(layer.bias)
    assert found.integers.bias is not None
    assert np.abs(found.integers.bias).max() <= (1 << 30) + 1
    assert np.sign(found.integers.bias).tolist() == [1, -1, 0, 1]
    np.testing.assert_allclose(found.bias, bias, rtol=1e-6)
    scale = of_channels(layer, found.integers.weight_scale, 4)
    assert (np.abs(found.weights - graph.constant(layer.weights)) <= 1.01 * scale).all()
    np.testing.assert_allclose(found.weights, found.integers.weights * scale, rtol=1e-6)
    # the channel without a bias keeps its steps
    assert np.abs(found.integers.weights[2]).max() > 60


def test_a_raised_scale_is_said_once(zoo: Case) -> None:
    changed = replace(zoo, canonical=large_bias(zoo).serialize())
    assert not zoo.quantize(correction="none").notes
    (note,) = changed.quantize(correction="none", integers_only=True).notes
    assert note.startswith(layer_ending(zoo.graph, "point").short)
    assert "raised" in note


@pytest.mark.parametrize("what", ["weights", "bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_constants_that_are_no_numbers_are_refused(zoo: Case, what: str, value: float) -> None:
    encodings = encode.activations(zoo.graph, zoo.observe().ranges, GENERIC)
    graph = zoo.graph
    layer = layer_ending(graph, "point")
    values = graph.constant(getattr(layer, what)).copy()
    values.flat[1] = value
    graph.set_constant(getattr(layer, what), values)
    with pytest.raises(InvalidModelError, match=f"the {what} of .* NaN or infinity") as caught:
        reconstruct.nearest(graph, encodings, pair_bound=True)
    assert "\n" not in str(caught.value)


def test_a_row_of_zeros_has_a_scale(zoo: Case) -> None:
    graph = zoo.graph
    layer = layer_ending(graph, "point")
    weights = graph.constant(layer.weights).copy()
    weights[1] = 0
    graph.set_constant(layer.weights, weights)
    encodings = encode.activations(graph, zoo.observe().ranges, GENERIC)
    found = reconstruct.nearest(graph, encodings, pair_bound=True)[layer.output]
    assert not found.integers.weights[1].any()
    assert np.isfinite(found.integers.weight_scale).all()
    assert (found.integers.weight_scale > 0).all()
    np.testing.assert_allclose(found.bias, graph.constant(layer.bias), atol=0.01)


# -- the decision


def test_what_is_stored_is_what_the_encodings_say(decided: Quantized) -> None:
    tensors = decided.encodings.tensors
    graph = Graph(decided.graph)
    computed = {name: found for name, found in tensors.items() if found.axis is None}
    assert set(computed) == set(decided.stored.activations)
    for name, encoding in computed.items():
        assert decided.stored.activations[name] == (encoding.scale[0], encoding.zero_point)
    assert set(decided.stored.layers) == {layer.output for layer in graph.layers}
    for layer in graph.layers:
        integers = decided.stored.layers[layer.output]
        weights, bias = tensors[layer.weights], tensors[layer.bias or ""]
        assert (weights.dtype, weights.axis) == ("int8", layer.axis)
        assert (bias.dtype, bias.axis) == ("int32", 0)
        np.testing.assert_array_equal(np.float32(weights.scale), integers.weight_scale)
        np.testing.assert_array_equal(np.float32(bias.scale), integers.bias_scale)


def test_the_graph_holds_what_the_integers_stand_for(decided: Quantized) -> None:
    graph = Graph(decided.graph)
    for layer in graph.layers:
        integers, weights = decided.stored.layers[layer.output], graph.constant(layer.weights)
        scale = of_channels(layer, integers.weight_scale, weights.ndim)
        np.testing.assert_allclose(weights, integers.weights * scale, rtol=1e-6)
        assert integers.bias is not None
        assert integers.bias_scale is not None
        np.testing.assert_allclose(
            graph.constant(layer.bias or ""), integers.bias * integers.bias_scale, rtol=1e-6
        )


def test_no_pair_of_a_bound_device_can_saturate(decided: Quantized) -> None:
    checked = 0
    for layer in Graph(decided.graph).layers:
        if layer.kind == "depthwise":
            continue
        weights = decided.stored.layers[layer.output].weights
        rows = weights.reshape(len(weights), -1)
        assert saturation.predict(layer.short, rows).pairs == 0
        checked += len(rows)
    assert checked > 0
    assert decided.saturating  # nearest rounding would have let some


def test_a_way_is_taken_for_a_quarter_decibel_at_least(zoo: Case, uneven: Case) -> None:
    judged = 0
    for found in (zoo.quantize(), uneven.quantize()):
        way, best = found.trials[0].way, found.trials[0].sqnr
        for trial in found.trials[1:]:
            if not trial.exact and trial.sqnr > best + 0.25:
                way, best = trial.way, trial.sqnr
                judged += 1
        assert found.way == way
    assert judged > 0


def test_equalized_channels_are_taken_where_they_help(uneven: Case) -> None:
    found = uneven.quantize()
    trials = {trial.way: trial.sqnr for trial in found.trials}
    exact, even = (trial for trial in found.trials[1:3])
    assert exact.exact and even.exact and even.way == f"{exact.way}, {quantize.EQUALIZED}"
    assert even.sqnr > exact.sqnr + quantize.MARGIN
    assert found.way.startswith(quantize.EQUALIZED)
    assert trials[found.way] > trials[quantize.NEAREST]
    assert set(found.encodings.factors) <= set(found.encodings.tensors)


@pytest.mark.parametrize("precision", ["int8-weights", "int8-dynamic", "int16x8"])
def test_channels_are_equalized_where_activations_keep_more_than_8_bits(
    uneven: Case, precision: str
) -> None:
    """They were for int8 alone: by what activations lose, where weights lose all there is."""
    found = uneven.quantize(profile=GENERIC.deciding(precision))
    trials = {trial.way: trial.sqnr for trial in found.trials}
    even = f"{quantize.EQUALIZED}, {quantize.CORRECTED}"
    assert trials[even] > trials[quantize.CORRECTED] + 6
    assert found.way.startswith(quantize.EQUALIZED) and found.encodings.factors
    assert trials[found.way] > uneven.quantize().trials[-1].sqnr + 6


def test_what_was_judged_is_what_is_written(zoo: Case) -> None:
    """How layers are fitted does not depend on the images that judge, which stay held out."""
    values = np.array(zoo.images.images)
    values[quantize.held_out(len(values))[1]] *= 0.9
    other = replace(zoo, images=image_sets.make("set", values, None))
    weights = GENERIC.deciding("int8-weights")
    found, again = (each.quantize(profile=weights) for each in (zoo, other))
    assert found.way == again.way == quantize.FITTED
    assert found.trials != again.trials
    for name, layer in found.stored.layers.items():
        np.testing.assert_array_equal(layer.weights, again.stored.layers[name].weights)


def test_biases_follow_the_scale_of_what_their_layer_reads(zoo: Case) -> None:
    encodings = encode.activations(zoo.graph, zoo.observe().ranges, GENERIC)
    layers = reconstruct.nearest(zoo.graph, encodings, pair_bound=False)
    wider = {
        name: replace(each, scale=(each.scale[0] * 1.5,)) if name in zoo.graph.inputs else each
        for name, each in encodings.items()
    }
    found = reconstruct.between(zoo.graph, layers, encodings, wider)
    first, *others = zoo.graph.layers
    assert all(found[layer.output] is layers[layer.output] for layer in others)
    before, after = layers[first.output].integers, found[first.output].integers
    np.testing.assert_array_equal(before.weights, after.weights)
    assert before.bias is not None and after.bias is not None
    np.testing.assert_allclose(before.bias, after.bias * 1.5, atol=2)


def test_without_images_biases_are_corrected_unjudged(zoo: Case) -> None:
    found = zoo.quantize(samples=None)
    assert "from channel means" in found.way
    assert found.trials == ()
    plain = zoo.quantize(correction="none")
    assert [trial.way for trial in plain.trials] == [plain.way] == [quantize.NEAREST]
    unjudged = zoo.quantize(correction="none", samples=None)
    assert (unjudged.way, unjudged.trials) == (quantize.NEAREST, ())
    assert differences(unjudged.stored, plain.stored) == ()
    assert {each.what for each in differences(found.stored, plain.stored)} == {"bias"}


def test_the_int8_file_holds_the_decided_numbers(decided: Quantized) -> None:
    content = tflite_integers.write(decided.graph, decided.stored)
    assert differences(tflite_integers.read_file(content), decided.stored) == ()
    assert all(kind.endswith(" int8") for kind in litert.kernels(content))


def test_a_decision_survives_its_file(uneven: Case, decided: Quantized, tmp_path: Path) -> None:
    evened = uneven.quantize()
    assert evened.encodings.factors
    for found in (replace(decided, notes=("a note", "another")), evened):
        decisions.save(tmp_path / "decision.npz", found)
        again = decisions.load(tmp_path / "decision.npz")
        assert again is not None
        assert replace(again, stored=found.stored) == found
        assert dict(again.stored.activations) == dict(found.stored.activations)
        assert differences(again.stored, found.stored) == ()
        for name, layer in found.stored.layers.items():
            kept = again.stored.layers[name]
            assert kept.weights.dtype == layer.weights.dtype
            assert kept.weight_scale.dtype == layer.weight_scale.dtype


def test_a_decision_that_cannot_be_read_is_none(decided: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "decision.npz"
    assert decisions.load(path) is None
    decisions.save(path, decided)
    content = path.read_bytes()
    for broken in (b"", b"text", content[: len(content) // 2]):
        path.write_bytes(broken)
        assert decisions.load(path) is None


def test_a_decision_is_found_by_all_that_it_was_made_from(
    zoo: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = zoo.observe()
    given: dict[str, Any] = {
        "canonical": zoo.canonical,
        "table": table,
        "profile": GENERIC,
        "images": True,
        "correction": "auto",
        "narrow": True,
        "integers_only": False,
        "unequalized": (),
        "left": {},
        "versions": {"numpy": "2"},
    }
    changes: list[dict[str, Any]] = [
        {},
        {"canonical": zoo.canonical + b"0"},
        {"table": replace(table, count=41)},
        {"profile": PROFILES["x86-avx2"]},
        {"profile": PROFILES["x86-vnni"]},
        {"profile": PROFILES["tensorrt"]},
        {"images": False},
        {"correction": "none"},
        {"narrow": False},
        {"integers_only": True},
        {"unequalized": ("y",)},
        {"left": {"dense": "asked for"}},
        {"left": {"conv2d": "asked for"}},
        {"versions": {"numpy": "3"}},
    ]
    keys = [decisions.key(**{**given, **change}) for change in changes]
    assert len(set(keys)) == len(changes)
    assert decisions.key(**given) == keys[0]
    monkeypatch.setattr(decisions, "sources", lambda: "of another day")  # a formula changed
    assert decisions.key(**given) not in keys
