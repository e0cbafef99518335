"""Rounding inside of a float graph: the same numbers as numpy's, to the last bit."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from edgekit.base.quiet import quiet
from edgekit.graph import litert, rounded, walk
from edgekit.graph.flatbuffer import Graph
from edgekit.records.encodings import Encoding
from edgekit.sources import convert
from edgekit.sources.keras import tensorflow, tf_keras


@pytest.fixture(scope="module")
def net() -> Graph:
    """Two layers, a sum and a softmax."""
    keras = tf_keras()
    keras.utils.set_random_seed(3)
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu6", name="first")(image)
    x = layers.Add(name="sum")([x, layers.DepthwiseConv2D(3, padding="same", name="deep")(x)])
    x = layers.Dense(5, name="scores")(layers.Flatten()(x))
    return Graph(convert.from_keras(keras.Model(image, layers.Softmax(name="soft")(x))))


def encodings(graph: Graph) -> dict[str, Encoding]:
    """Of all tensors but one, of other scales and zero_points."""
    names = [*graph.inputs, *(name for each in graph.operators for name in each.outputs)]
    random = np.random.default_rng(0)
    return {
        name: Encoding(
            "int8", (float(random.uniform(0.01, 0.05)),), int(random.integers(-128, 127))
        )
        for name in names[:3] + names[4:]
    }


def numbers(found: dict[str, Encoding]) -> dict[str, rounded.Number]:
    return {name: (each.scale[0], each.zero_point) for name, each in found.items()}


def feed(graph: Graph, count: int = 7) -> walk.Values:
    shape = graph.shape(graph.inputs[0])[1:]
    values = np.random.default_rng(1).normal(0, 2, (count, *shape)).astype(np.float32)
    scale = np.float32(encodings(graph)[graph.inputs[0]].scale[0])
    values[0] = (np.arange(values[0].size).reshape(shape) % 99 - 49.5) * scale  # between two steps
    values[-1] *= 1e6  # beyond the ends
    return {graph.inputs[0]: values}


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_a_graph_that_rounds_is_the_float_graph_rounded_in_between(
    net: Graph, threads: int
) -> None:
    own, values = encodings(net), feed(net)

    def change(name: str, array: Any) -> Any:
        return own[name].fake_quantize(array) if name in own else array

    expected = walk.outputs(net, values, threads=1, change=change)
    content = rounded.emulated(Graph(net.serialize()), numbers(own), net.outputs)
    found, watched = walk.run(content, net, values, threads=threads)
    np.testing.assert_array_equal(found, expected[net.outputs[0]])
    assert np.isfinite(watched).all()


def test_a_step_between_int8_tensors_is_the_float_step_rounded(net: Graph) -> None:
    own = encodings(net)
    exact, stored = feed(net), {}
    for name, array in exact.items():
        exact[name], stored[name] = own[name].fake_quantize(array), own[name].steps(array)
    for position in range(len(net.operators)):
        plain = walk.Step(net, position, threads=1)
        whole = walk.Step(net, position, threads=1, numbers=numbers(own))
        for name, array, other in zip(
            plain.operator.outputs, plain.run(exact), whole.run(stored), strict=True
        ):
            exact[name], stored[name] = array, other
            if name in own:
                exact[name] = own[name].fake_quantize(array)
                assert other.dtype == np.int8
                np.testing.assert_array_equal(own[name].real(other), exact[name])
            else:
                np.testing.assert_array_equal(other, array)
        assert not whole.doubtful


@pytest.mark.parametrize("sizes", [(), (3,), (2, 2, 3, 2, 4), (2, 2, 3, 2, 2, 2)])
def test_tensors_of_any_number_of_axes_are_rounded(sizes: tuple[int, ...]) -> None:
    tf = tensorflow()

    def forward(x: Any) -> list[Any]:
        if not sizes:
            return [x * tf.reduce_mean(x)]
        if len(sizes) == 1:
            return [x + tf.reduce_max(x, axis=1)]
        turned = tf.transpose(tf.reshape(x, (1, *sizes)), (0, 3, 1, 2, *range(4, len(sizes) + 1)))
        return [tf.reshape(tf.math.exp(turned * 0.1), (1, -1))]

    spec = tf.TensorSpec((1, 96), tf.float32, name="x")
    graph = Graph(convert.from_function(forward, [spec], ["y"]))
    names = [*graph.inputs, *(name for each in graph.operators for name in each.outputs)]
    encoding = Encoding("int8", (0.03,), 5)
    values = np.random.default_rng(0).normal(0, 2, (3, 96)).astype(np.float32)
    given, number = {graph.inputs[0]: values}, dict.fromkeys(names, (0.03, 5))
    expected = walk.outputs(
        graph, given, threads=1, change=lambda _, array: encoding.fake_quantize(array)
    )[graph.outputs[0]]
    content = rounded.emulated(Graph(graph.serialize()), number, graph.outputs)
    np.testing.assert_array_equal(walk.run(content, graph, given, threads=1)[0], expected)
    stored: dict[str, Any] = {graph.inputs[0]: encoding.steps(values)}
    for position, operator in enumerate(graph.operators):
        found = walk.Step(graph, position, threads=1, numbers=number).run(stored)
        stored |= dict(zip(operator.outputs, found, strict=True))
    np.testing.assert_array_equal(encoding.real(stored[graph.outputs[0]]), expected)


@pytest.mark.parametrize("position", [0, 2])
def test_nan_that_rounding_would_hide_is_seen(position: int) -> None:
    tf = tensorflow()
    spec = tf.TensorSpec((1, 2, 2, 3), tf.float32, name="image")
    graph = Graph(convert.from_function(lambda x: [tf.math.log(x) + 1.0], [spec], ["logs"]))
    values = np.full((3, 2, 2, 3), 2, np.float32)
    values[position, 0, 1, 2] = -1
    own = {name: (0.1, 0) for name in (*graph.inputs, graph.operators[0].outputs[0])}
    stored = {name: Encoding("int8", (0.1,)).steps(values) for name in graph.inputs}
    step = walk.Step(graph, 0, threads=1, numbers=own)
    step.run(stored)
    assert step.doubtful
    content = rounded.emulated(Graph(graph.serialize()), own, graph.outputs)
    _, watched = walk.run(content, graph, {graph.inputs[0]: values}, threads=1)
    assert np.isnan(watched).any(axis=1).tolist() == [i == position for i in range(3)]


def test_a_part_of_a_graph_computes_what_the_whole_does(net: Graph) -> None:
    middle = net.operators[2].outputs[0]
    values = feed(net, 2)
    (expected,) = walk.run(net.with_outputs([middle]), net, values, threads=1)
    first = Graph(net.part(range(1), net.operators[0].outputs))
    (between,) = walk.run(first.serialize(), net, values, threads=1)
    rest = net.part(range(1, 3), [middle])
    entries = [detail["name"] for detail in litert.interpreter(rest).get_input_details()]
    assert entries == [net.operators[0].outputs[0]]
    (found,) = walk.run(rest, net, {entries[0]: between}, threads=1)
    np.testing.assert_array_equal(found, expected)


def test_output_is_back_when_the_last_thread_has_left_the_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with quiet():
            inside.set()
            leave.wait()
            print("dropped")

    other = threading.Thread(target=work)
    other.start()
    inside.wait()
    with quiet():
        pass
    leave.set()
    other.join()
    print("shown")
    assert capfd.readouterr().out == "shown\n"
