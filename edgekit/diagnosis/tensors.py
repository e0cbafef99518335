"""Every activation of a model by its canonical name, from runs of the whole model or of single
layers.

There is one class per runtime. TFLite files, and ONNX files that were written from the canonical
graph, keep its names. A Keras tensor is found by its values, which are those of the canonical
tensor up to float rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.data import feeds
from edgekit.data.feeds import Feed
from edgekit.graph import litert, onnx, walk
from edgekit.graph.flatbuffer import Graph
from edgekit.records.encodings import Stored
from edgekit.writers import onnx_integers, onnx_tensors, tflite_integers

Values = walk.Values
Numbers = dict[str, "LayerNumbers"]


@dataclass(frozen=True)
class LayerNumbers:
    """What a layer computes with, as real numbers in the canonical layout.

    Attributes:
        weights: float32, or None where the file computes them.
        bias: float32 ``[O]``, or None.
        activation: Whether the activation behind it is an operator or option of the file; in int8
            the ends of the output's range can stand for it.
    """

    weights: npt.NDArray[np.float32] | None
    bias: npt.NDArray[np.float32] | None
    activation: bool


class Tensors(Protocol):
    """One model, open.

    Attributes:
        names: Canonical names of the activations that it has, in order of execution.
        encodings: (scale, int8 zero_point) of those that it stores as integers.
        own: Name in the model's own file, by canonical name.
        graph_id: Name of the file's graph, as Model Explorer shows it.
    """

    names: tuple[str, ...]
    encodings: Mapping[str, tuple[float, int]]
    own: Mapping[str, str]
    graph_id: str

    def run(self, feed: Feed) -> Values:
        """All activations ``[N, ...]`` as real numbers.

        Args:
            feed: ``[N, ...]`` by the input's canonical name; real ones preprocessed.
        """

    def alone(self, values: Values) -> Values:
        """What each operator gives for these inputs, stored as this model stores them."""

    def numbers(self) -> Numbers:
        """Weights and biases by the name of what their layer writes."""


def activations(graph: Graph) -> tuple[str, ...]:
    """Inputs and what operators compute, in order of execution; float or int8 only.

    Others hold places, counts or tokens: they are handed on, and have no error.
    """
    return tuple(
        name
        for name in dict.fromkeys(_computed(graph))
        if graph.dtype(name) in (np.float32, np.int8) and 0 not in graph.shape(name)
    )


def _computed(graph: Graph) -> list[str]:
    """Inputs in order of their names in the signature, then what operators compute."""
    inputs = [tensor for _, tensor in sorted(graph.named_inputs.items())]
    return [*inputs, *(name for operator in graph.operators for name in operator.outputs)]


def _form(graph: Graph) -> list[tuple[Any, ...]]:
    """Sizes of inputs, operators and their sizes, without names."""
    inputs = [(graph.shape(tensor),) for _, tensor in sorted(graph.named_inputs.items())]
    return inputs + [
        (each.kind, *(graph.shape(name) for name in each.outputs)) for each in graph.operators
    ]


class TfLiteTensors(Tensors):
    """A ``.tflite`` file on LiteRT.

    Run whole, all of it is one interpreter with every activation as an output; cut, every operator
    is an interpreter of its own. A float16 file, which comes from a conversion of its own, has
    other names: where operators and sizes are the canonical ones, tensors are aligned by order.
    """

    def __init__(self, content: bytes | Graph, graph: Graph, *, threads: int) -> None:
        self._graph = Graph(content) if isinstance(content, bytes) else content
        self._graph.fold()
        self.own = {name: name for name in _computed(self._graph)}
        if _form(self._graph) == _form(graph):
            aligned = dict(zip(_computed(graph), _computed(self._graph), strict=True))
        else:
            inputs = self._graph.named_inputs
            aligned = {
                at: inputs[name] for name, at in graph.named_inputs.items() if name in inputs
            }
        self.own.update(aligned)
        renamed = {name: canonical for canonical, name in aligned.items() if name != canonical}
        if renamed:
            self._graph.rename(renamed)
        self._threads = threads
        # a tensor that integers are made from, or made real for an operator in float
        self._made_real = {
            operator.outputs[0]: operator.inputs[0]
            for operator in self._graph.operators
            if operator.kind == "DEQUANTIZE"
        }
        own = set(activations(self._graph))
        self.names = tuple(name for name in activations(graph) if name in own)
        self.graph_id = self._graph.name
        stored = tflite_integers.read(self._graph)
        self.encodings = {
            name: encoding for name, encoding in stored.activations.items() if name in own
        }
        self._steps: list[walk.Step] = []

    def run(self, feed: Feed) -> Values:
        inputs = self._graph.inputs
        computed = [name for name in self.names if name not in inputs]
        opened = litert.interpreter(self._graph.with_outputs(computed), threads=self._threads)
        places = [detail["index"] for detail in opened.get_input_details()]
        outputs = [detail["index"] for detail in opened.get_output_details()]
        parts_by_name: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in computed}
        stored = {name: self._stored(name, feed[name]) for name in inputs}
        for i in range(feeds.count(feed)):
            for place, values in zip(places, stored.values(), strict=True):
                opened.set_tensor(place, values[i : i + 1])
            litert.invoke(opened)
            for name, end in zip(computed, outputs, strict=True):
                parts_by_name[name].append(np.atleast_1d(opened.get_tensor(end)))
        whole = {name: np.concatenate(parts) for name, parts in parts_by_name.items()}
        return {name: self._real(name, array) for name, array in {**stored, **whole}.items()}

    def complete(self, values: Values) -> Values:
        """The same values, with those that are missing computed from them; a float model only."""
        completed = dict(values)
        for step in self.steps():
            if any(name not in completed for name in step.operator.outputs):
                for name, array in zip(step.operator.outputs, step.run(completed), strict=True):
                    completed.setdefault(name, array)
        return completed

    def steps(self) -> list[walk.Step]:
        """Every operator as a model of its own, in order of execution."""
        if not self._steps:
            self._steps = [
                walk.Step(self._graph, position, threads=self._threads)
                for position in range(len(self._graph.operators))
            ]
        return self._steps

    def alone(self, values: Values) -> Values:
        graph = self._graph
        stored = {name: self._stored(name, array) for name, array in values.items()}
        real = {name: self._real(name, stored[name]) for name in graph.inputs}
        stored |= {
            name: self._real(source, stored[source])
            for name, source in self._made_real.items()
            if source in stored
        }
        for step in self.steps():
            if step.fed and all(name in stored for name in step.fed):
                for name, array in zip(step.operator.outputs, step.run(stored), strict=True):
                    real[name] = self._real(name, array)
                    stored.setdefault(name, array)  # the file's own, e.g. in another scale
        return real

    def numbers(self) -> Numbers:
        graph, stored, by_layer = self._graph, tflite_integers.read(self._graph), {}
        for layer in graph.layers:
            kept = layer.activation != "none"
            if layer.output in stored.layers:
                by_layer[layer.output] = _real_numbers(stored, layer.output, layer.axis, kept)
            else:
                bias = graph.constant(layer.bias) if layer.bias else None
                by_layer[layer.output] = LayerNumbers(graph.constant(layer.weights), bias, kept)
        return by_layer

    def _stored(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if name not in self.encodings:
            return values
        scale, zero_point = self.encodings[name]
        steps = np.rint(values / np.float32(scale)) + zero_point
        return np.asarray(np.clip(steps, -128, 127), np.int8)

    def _real(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if name not in self.encodings:
            return values
        scale, zero_point = self.encodings[name]
        return (values.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)


class OnnxTensors(Tensors):
    """An ``.onnx`` model on onnxruntime.

    Cut, all operators are one session: each reads inputs of its own, so that integer kernels are
    the ones of the whole model.
    """

    def __init__(
        self,
        model: Any,
        graph: Graph,
        *,
        threads: int,
        options: Mapping[str, str] | None = None,
        orders: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._model, self._graph = model, graph
        self._threads, self._options = threads, options
        self._places = onnx_tensors.places(model, graph, orders)
        self.names = tuple(name for name in activations(graph) if name in self._places)
        self.own = {name: self._places[name].named for name in self.names}
        self.graph_id = str(model.graph.name)
        self.encodings = {
            name: place.encoding
            for name, place in self._places.items()
            if name in self.names and place.encoding is not None
        }
        self._whole: Any = None
        self._cut: Any = None

    def run(self, feed: Feed) -> Values:
        self._whole = self._whole or self._open(onnx_tensors.watched(self._model, self._places))
        return self._outputs(self._whole, self._given(feed), feeds.count(feed))

    def alone(self, values: Values) -> Values:
        self._cut = self._cut or self._open(onnx_tensors.cut(self._model, self._places))
        inputs = {input_spec.name for input_spec in self._cut.get_inputs()}
        cut_feed = self._given(values)
        for name, place in self._places.items():
            if onnx_tensors.fed(place) in inputs:
                if name not in values:
                    raise InvalidModelError(f"the reference has no tensor {name}")
                cut_feed[onnx_tensors.fed(place)] = place.own(values[name])
        samples = len(cut_feed[self._cut.get_inputs()[0].name])
        return self._outputs(self._cut, cut_feed, samples)

    def numbers(self) -> Numbers:
        stored, by_layer = onnx_integers.read_stored(self._model, self._graph), {}
        floats = onnx_integers.read_floats(self._model, self._graph)
        kept = onnx_integers.activated(self._model, self._graph)
        for layer in self._graph.layers:
            if layer.output in stored.layers:
                by_layer[layer.output] = _real_numbers(
                    stored, layer.output, layer.axis, layer.output in kept
                )
                if by_layer[layer.output].bias is None and layer.output in floats:
                    by_layer[layer.output] = LayerNumbers(
                        by_layer[layer.output].weights,
                        floats[layer.output][1],
                        layer.output in kept,
                    )
            elif layer.output in floats:
                by_layer[layer.output] = LayerNumbers(*floats[layer.output], layer.output in kept)
        return by_layer

    def _open(self, content: bytes) -> Any:
        return onnx.session(content, threads=self._threads, options=self._options)

    def _given(self, values: Feed) -> dict[str, npt.NDArray[Any]]:
        """Values of the inputs by their names in the file."""
        names = (value.name for value in self._model.graph.input)
        return {
            name: self._places[tensor].arranged(values[tensor])
            if tensor in self._places
            else values[tensor]
            for name, tensor in zip(names, self._graph.inputs, strict=True)
        }

    def _outputs(self, session: Any, feed: Feed, samples: int) -> Values:
        names = [end.name for end in session.get_outputs()]
        fixed = any(isinstance(each.shape[0], int) for each in session.get_inputs() if each.shape)
        batch = 1 if fixed else samples
        sizes = {name: len(array) // samples for name, array in feed.items()}  # 1, or no batch
        parts = [
            session.run(
                names,
                {
                    name: array[i * sizes[name] : (i + batch) * sizes[name]]
                    for name, array in feed.items()
                },
            )
            for i in range(0, samples, batch)
        ]
        whole = dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))
        fed_values = {
            place.tensor: feed[place.tensor]
            for place in self._places.values()
            if place.tensor in feed
        }
        whole.update(fed_values)
        return {
            name: place.real(whole[place.tensor], self._graph.shape(name))
            for name, place in self._places.items()
            if place.tensor in whole
        }


class KerasTensors(Tensors):
    """A tf_keras model, whose tensors get the names of canonical ones that hold the same values."""

    def __init__(self, model: Any, graph: Graph, feed: Feed) -> None:
        from edgekit.sources.keras import by_values, input_names, tensors_of, tf_keras

        self._keras = tf_keras()
        self._entries = [graph.named_inputs[name] for name in input_names(model)]
        self.encodings: Mapping[str, tuple[float, int]] = {}
        self.graph_id = str(model.name)
        every = tensors_of(model)
        outputs = self._call(self._keras.Model(model.inputs, [at for _, at in every]), feed)
        values = {
            key: np.asarray(output, np.float32)
            for (key, _), output in zip(every, outputs, strict=True)
        }
        lite = TfLiteTensors(graph.serialize(), graph, threads=1)
        expected = {name: each for name, each in lite.run(feed).items() if name in lite.names}
        self.own = {
            name: key
            for name, key in by_values(expected, values).items()
            if values[key].shape == expected[name].shape
        }
        chosen = {name: dict(every)[key] for name, key in self.own.items()}
        self.names = tuple(name for name in activations(graph) if name in chosen)
        if not self.names:
            raise InvalidModelError(f"no tensor of {model.name} has the values of a canonical one")
        self._model = self._keras.Model(model.inputs, [chosen[name] for name in self.names])

    def run(self, feed: Feed) -> Values:
        return {
            name: np.asarray(output, np.float32)
            for name, output in zip(self.names, self._call(self._model, feed), strict=True)
        }

    def _call(self, model: Any, feed: Feed) -> list[Any]:
        inputs = [feed[name] for name in self._entries]
        outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
        return list(outputs) if isinstance(outputs, list | tuple) else [outputs]

    def alone(self, values: Values) -> Values:
        raise InvalidOptionError(
            "a Keras model cannot be cut into operators; give it first, or pass --mode accumulated"
        )

    def numbers(self) -> Numbers:
        raise InvalidOptionError("expected a TFLite or ONNX artifact to bisect, got a Keras model")


def _real_numbers(stored: Stored, name: str, axis: int, activation: bool) -> LayerNumbers:
    layer = stored.layers[name]
    shape = [1] * layer.weights.ndim
    shape[axis] = -1
    weights = layer.weights.astype(np.float32) * layer.weight_scale.reshape(shape)
    bias = None
    if layer.bias is not None and layer.bias_scale is not None:
        bias = (layer.bias * layer.bias_scale.astype(np.float64)).astype(np.float32)
    return LayerNumbers(weights.astype(np.float32), bias, activation)
