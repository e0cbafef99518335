"""Faults to plant in model files, one layer at a time: what goes wrong in exporters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.graph import walk
from edgekit.graph.flatbuffer import Graph, Layer, Quantization
from edgekit.writers import onnx_integers

INT8 = ("weight scale doubled", "channels swapped", "zero point off by 128", "relu6 dropped")
FLOAT = ("weight scale doubled", "channels swapped", "relu6 dropped")


def in_tflite(
    content: bytes, name: str, fault: str, wide: tuple[float, int] | None = None
) -> bytes:
    """A file with one fault in the layer that writes ``name``.

    Args:
        content: float32 or int8.
        name: Canonical.
        fault: Of :data:`INT8`, :data:`FLOAT`, or ``output scale doubled``.
        wide: Encoding that holds what a dropped ReLU6 lets through, for an int8 file.
    """
    graph = Graph(content)
    layer = _layer(graph, name)
    assert layer.bias is not None
    integers = graph.quantization(layer.weights) is not None
    if fault == "weight scale doubled":
        for each in (layer.weights, layer.bias):
            found = graph.quantization(each)
            if found is None:
                graph.set_constant(each, graph.constant(each) * np.float32(2))
            else:
                graph.set_quantization(each, dataclasses.replace(found, scale=found.scale * 2))
    elif fault == "channels swapped":
        weights = graph.constant(layer.weights)
        _swap(np.moveaxis(weights, layer.axis, 0))
        graph.set_constant(layer.weights, weights)
        if integers:
            found = graph.quantization(layer.weights)
            assert found is not None
            scale = found.scale.copy()
            _swap(scale)
            graph.set_quantization(layer.weights, dataclasses.replace(found, scale=scale))
            _put_bias(graph, layer)
    elif fault == "relu6 dropped":
        graph.set_activation(name, "none")
        if integers:
            assert wide is not None
            _put_output(graph, name, np.float32(wide[0]), wide[1])
    else:
        found = graph.quantization(name)
        assert found is not None
        zero_point, scale = int(found.zero_point[0]), found.scale[0]
        if fault == "output scale doubled":
            _put_output(graph, name, scale * 2, zero_point)
        else:
            _put_output(graph, name, scale, zero_point + (128 if zero_point < 0 else -128))
    return graph.serialize()


def in_onnx(
    model: Any, graph: Graph, name: str, fault: str, wide: tuple[float, int] | None = None
) -> Any:
    """The same for an ONNX model, uint8 if int8; ``fault`` may be of one side too: ``written
    scale doubled`` (QuantizeLinear only) and ``read scale doubled`` (DequantizeLinear only).
    """
    import onnx as library

    changed = library.ModelProto()
    changed.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    makers = {output: node for node in changed.graph.node for output in node.output}
    ends = dict(zip((v.name for v in changed.graph.output), graph.outputs, strict=True))
    layers = {layer.output for layer in graph.layers}
    nodes = {place: node for node, place, _ in onnx_integers.layer_nodes(changed, layers, ends)}

    def get(tensor: str) -> npt.NDArray[Any]:
        return library.numpy_helper.to_array(tensors[tensor]).copy()

    def put(tensor: str, values: npt.NDArray[Any]) -> None:
        tensors[tensor].CopyFrom(
            library.numpy_helper.from_array(np.ascontiguousarray(values), tensor)
        )

    def put_bias(node: Any, scale: npt.NDArray[Any]) -> None:
        made = makers[node.input[2]]
        real = get(made.input[0]) * get(made.input[1]).astype(np.float64)
        put(made.input[0], np.rint(real / scale).astype(np.int32))
        put(made.input[1], scale.astype(np.float32))

    node = nodes[name]
    made = makers.get(node.input[1])
    if fault == "weight scale doubled":
        for entry in node.input[1:3]:
            place = entry if made is None else makers[entry].input[1]
            put(place, get(place) * np.float32(2))
        return changed
    if fault == "channels swapped":
        place = node.input[1] if made is None else made.input[0]
        weights = get(place)
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        _swap(weights if node.op_type == "Conv" or transposed else weights.T)
        put(place, weights)
        if made is not None:
            scale = get(made.input[1])
            bias = get(makers[node.input[2]].input[1]) / scale
            _swap(scale)
            put(made.input[1], scale)
            put_bias(node, bias * scale)
        return changed
    back = makers.get(name)
    quantize = makers.get(back.input[0]) if back and back.op_type == "DequantizeLinear" else None
    if quantize is None:
        clip = next(each for each in changed.graph.node if each.output[0] == name)
        makers[clip.input[0]].output[0] = name
        changed.graph.node.remove(clip)
        return changed
    scale, zero_point = get(quantize.input[1]), get(quantize.input[2])
    if fault == "relu6 dropped":
        assert wide is not None
        scale, zero_point = np.float32(wide[0]), np.uint8(wide[1] + 128)
    elif fault.endswith("scale doubled"):
        scale = scale * np.float32(2)
    else:
        shifted = int(zero_point) + (128 if zero_point < 128 else -128)
        zero_point = np.asarray(shifted, np.uint8)
    for label, values in (("scale", scale), ("zero_point", zero_point)):
        tensor = library.numpy_helper.from_array(np.asarray(values), f"planted_{label}")
        changed.graph.initializer.append(tensor)
    readers = [
        each
        for each in changed.graph.node
        if each.op_type == "DequantizeLinear" and each.input[0] == quantize.output[0]
    ]
    for each in (
        *([quantize] if not fault.startswith("read") else []),
        *(readers if not fault.startswith("written") else []),
    ):
        each.input[1], each.input[2] = "planted_scale", "planted_zero_point"
    if fault in ("relu6 dropped", "output scale doubled"):
        for layer in graph.layers:
            if layer.input == name:
                behind = nodes[layer.output]
                put_bias(behind, np.float32(scale) * get(makers[behind.input[1]].input[1]))
    return changed


def without_activation(graph: Graph, name: str, values: walk.Values) -> tuple[float, int]:
    """(scale, zero_point) that hold what a layer answers without its activation."""
    bare = Graph(graph.serialize())
    bare.set_activation(name, "none")
    position = [operator.outputs[0] for operator in bare.operators].index(name)
    (answers,) = walk.Step(bare, position, threads=1).run(values)
    low, high = min(float(answers.min()), 0.0), max(float(answers.max()), 0.0)
    scale = (high - low) / 255
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))


def _layer(graph: Graph, name: str) -> Layer:
    return {layer.output: layer for layer in graph.layers}[name]


def _swap(rows: npt.NDArray[Any]) -> None:
    rows[[0, 1]] = rows[[1, 0]]


def _put_output(graph: Graph, name: str, scale: Any, zero_point: int) -> None:
    """Another encoding, with the biases of the layers behind it as an exporter would write them."""
    found = Quantization(np.array([scale], np.float32), np.array([zero_point], np.int64))
    graph.set_quantization(name, found)
    for layer in graph.layers:
        if layer.input == name:
            _put_bias(graph, layer)


def _put_bias(graph: Graph, layer: Layer) -> None:
    """The same bias in the steps that input and weights now ask for."""
    assert layer.bias is not None
    entry, weights, bias = (
        graph.quantization(name) for name in (layer.input, layer.weights, layer.bias)
    )
    assert entry is not None and weights is not None and bias is not None
    real = graph.constant(layer.bias) * bias.scale.astype(np.float64)
    scale = (entry.scale[0] * weights.scale).astype(np.float32)
    graph.set_constant(layer.bias, np.rint(real / scale).astype(np.int32))
    graph.set_quantization(layer.bias, dataclasses.replace(bias, scale=scale))
