"""int8 in ONNX: QDQ with given encodings and integers, and what a file stores, read back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.encodings import LayerIntegers, Stored
from edgekit.errors import ExecutionError, InvalidModelError, MissingDependencyError, reason
from edgekit.formats import onnx as onnx_file
from edgekit.formats import onnx_forms
from edgekit.formats.flatbuffer import Graph
from edgekit.formats.quiet import quiet

#: Operators whose output has the values of their input, in order or not.
_MOVING = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_WEIGHTED = ("Conv", "Gemm", "MatMul")
#: What may stand between a layer's node and the tensor that the canonical graph calls its answer.
_BEHIND = ("Clip", "Relu", "QuantizeLinear", "DequantizeLinear", *_MOVING)
_MOVED = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "TRANSPOSE")


def quantize(
    model: Any,
    stored: Stored,
    *,
    activation_dtype: str = "uint8",
    quantize_bias: bool = True,
    floats: Collection[str] = (),
) -> Any:
    """QDQ int8 with given numbers: weights int8 per channel, float32 in and out.

    onnxruntime's quantizer writes the graph; every scale, zero_point, weight and bias in it is the
    one that was given.

    Args:
        model: Float ``onnx.ModelProto`` from :func:`from_tflite`, with the float constants that
            ``stored`` stands for.
        stored: Of all activations and layers of the canonical graph.
        activation_dtype: ``uint8``, which adds 128 to every zero_point and is the same number, or
            ``int8``.
        quantize_bias: Write int32 biases; else they stay float, as TensorRT asks for.
        floats: Tensors of the canonical graph that stay float; what reads or writes one computes
            in float.

    Returns:
        The quantized ``onnx.ModelProto``. What has no integer kernel in onnxruntime, or no tensor
        in the canonical graph (parts of an operator that ONNX lacks), stays float.
    """
    copied = onnx_file.package().ModelProto()
    copied.CopyFrom(model)
    _separate(copied)
    _spell_certain(copied)
    _drop_clips(copied, _activation_encodings(copied, stored.activations, _MOVING))
    activations = _activation_encodings(copied, stored.activations, ("Clip", "Relu", *_MOVING))
    activations = {name: each for name, each in activations.items() if name not in floats}
    ranges = {
        name: ((-128 - zero_point) * scale, (127 - zero_point) * scale)
        for name, (scale, zero_point) in activations.items()
    }
    dtype, shift = (np.uint8, 128) if activation_dtype == "uint8" else (np.int8, 0)
    quantized = _written(
        copied,
        ranges,
        activation_dtype=activation_dtype,
        left=_without_encodings(copied, activations),
        symmetric=all(zero_point == 0 for _, zero_point in activations.values()),
        quantize_bias=quantize_bias,
        encodings={
            name: (np.array(scale, np.float32), np.array(zero_point + shift, dtype))
            for name, (scale, zero_point) in activations.items()
        },
    )
    _put_integers(quantized, stored, quantize_bias=quantize_bias)
    _round_between(quantized, activations, dtype, shift)
    onnx_file.sort(quantized)
    onnx_file.package().checker.check_model(quantized)
    return quantized


def _written(
    model: Any,
    ranges: Mapping[str, tuple[float, float]],
    *,
    activation_dtype: str,
    left: Sequence[Any],
    symmetric: bool,
    quantize_bias: bool,
    encodings: Mapping[str, tuple[Any, Any]] | None = None,
) -> Any:
    """What onnxruntime's quantizer makes of a float model, in place; weights per channel.

    Args:
        ranges: (min, max) by tensor name.
        left: Nodes that stay float.
        encodings: (scale, zero_point as stored) that are taken instead of what ranges give; no
            Clip is taken out then, since the caller knows which the ranges replace.
    """
    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None
    kind = QuantType.QUInt8 if activation_dtype == "uint8" else QuantType.QInt8
    given: dict[str, Any] = {}
    if encodings is not None:
        overrides = {
            name: [{"quant_type": kind, "scale": scale, "zero_point": zero_point}]
            for name, (scale, zero_point) in encodings.items()
        }
        given = {"TensorQuantOverrides": overrides, "QDQKeepRemovableActivations": True}
    found = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    with quiet():
        writer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=kind,
            tensors_range=TensorsData(CalibrationMethod.MinMax, found),
            nodes_to_quantize=[],
            nodes_to_exclude=[node.name for node in left],
            op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": symmetric,
                "QuantizeBias": quantize_bias,
                "QDQDisableWeightAdjustForInt32Bias": True,
                **given,
            },
        )
        writer.quantize_model()
    return writer.model.model


def read_stored(model: Any, graph: Graph) -> Stored:
    """The integers and scales of an int8 file, in the canonical graph's words.

    Args:
        model: Quantized ``onnx.ModelProto``.
        graph: Any flatbuffer of the same model, for its tensors' names.
    """
    constants = onnx_file.stored_constants(model)
    ends = {
        **dict(zip((value.name for value in model.graph.input), graph.inputs, strict=True)),
        **_canonical_ends(model, graph),
    }
    makers = {output: node for node in model.graph.node for output in node.output}

    def origin(name: str) -> str:
        """The tensor behind a pair of QuantizeLinear and DequantizeLinear."""
        while name in makers and makers[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
            name = makers[name].input[0]
        name = name.removesuffix("_QuantizeLinear_Input")
        return str(ends.get(name, name))

    found: dict[str, tuple[float, int]] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero_point = constants[node.input[2]]
            shift = 128 if zero_point.dtype == np.uint8 else 0
            number = float(constants[node.input[1]]), int(zero_point) - shift
            found[origin(node.input[0])] = number
    # what is only moved may be rounded before or behind it
    for node in [*model.graph.node, *reversed(model.graph.node)]:
        if node.op_type in _MOVING:
            one, other = origin(node.input[0]), origin(node.output[0])
            if one in found:
                found.setdefault(other, found[one])
            elif other in found:
                found[one] = found[other]
    there = {*makers, *ends, *ends.values()}
    for operator in graph.operators:  # what the converter took out holds the same numbers
        if operator.kind in _MOVED and operator.outputs[0] not in there:
            if operator.inputs[0] in found:
                found.setdefault(operator.outputs[0], found[operator.inputs[0]])
    for operator in reversed(graph.operators):
        merged = operator.kind in ("RELU", "RELU6")  # by onnxruntime's writer
        if (merged or operator.kind in _MOVED) and operator.inputs[0] not in there:
            if operator.outputs[0] in found:
                found.setdefault(operator.inputs[0], found[operator.outputs[0]])
    names = set(graph.tensors)
    activations = {name: number for name, number in found.items() if name in names}
    layers = {}
    kinds = {layer.output: layer.kind for layer in graph.layers}
    for node, place, _ in layer_nodes(model, kinds, ends):
        weights = _dequantized(model, node.input[1], constants)
        if weights is None:
            continue
        bias = _dequantized(model, node.input[2], constants) if len(node.input) > 2 else None
        layers[place] = LayerIntegers(
            weights=_to_canonical(node, weights[0], depthwise=kinds[place] == "depthwise"),
            weight_scale=np.atleast_1d(weights[1]),
            bias=None if bias is None else bias[0],
            bias_scale=None if bias is None else np.atleast_1d(bias[1]),
        )
    return Stored(activations, layers)


def _canonical_ends(model: Any, graph: Graph) -> dict[str, str]:
    """Canonical names of the outputs."""
    return dict(zip((value.name for value in model.graph.output), graph.outputs, strict=True))


def absent(model: Any, graph: Graph) -> tuple[str, ...]:
    """Activations of the canonical graph that the ONNX graph has no tensor for, nor integers.

    tf2onnx merges operators, and names what it turns around anew.
    """
    there = {
        name.removesuffix("_QuantizeLinear_Input") for n in model.graph.node for name in n.output
    }
    known = read_stored(model, graph).activations
    computed = [name for operator in graph.operators for name in operator.outputs]
    return tuple(
        name
        for name in computed
        if graph.dtype(name) == np.float32
        and name not in (*graph.inputs, *graph.outputs)
        and name not in there
        and name not in known
    )


def merged(model: Any, graph: Graph) -> tuple[str, ...]:
    """Layers that the ONNX graph has no node for, since another holds the same weights.

    TFLite's converter computes a layer twice where its answer is read with and without its
    activation; tf2onnx computes it once.
    """
    ends = _canonical_ends(model, graph)
    layers = {layer.output: layer for layer in graph.layers}
    there = {place for _, place, _ in layer_nodes(model, layers, ends)}
    return tuple(
        name
        for name, layer in layers.items()
        if name not in there
        and any(
            np.array_equal(graph.constant(layer.weights), graph.constant(layers[other].weights))
            for other in there
        )
    )


def read_floats(model: Any, graph: Graph) -> dict[str, tuple[Any, Any]]:
    """(weights or None, bias or None) of each layer that are stored in float, canonical layout.

    Args:
        model: ``onnx.ModelProto``.
        graph: Any flatbuffer of the same model, for its tensors' names.
    """
    constants = onnx_file.stored_constants(model)
    ends = _canonical_ends(model, graph)
    found = {}
    kinds = {layer.output: layer.kind for layer in graph.layers}
    for node, place, _ in layer_nodes(model, kinds, ends):
        weights = constants.get(node.input[1])
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        if weights is not None or bias is not None:
            whole = None
            if weights is not None:
                depthwise = kinds[place] == "depthwise"
                whole = _to_canonical(node, weights, depthwise=depthwise).astype(np.float32)
            found[place] = (
                None if whole is None else np.ascontiguousarray(whole),
                None if bias is None else bias.astype(np.float32),
            )
    return found


def activated(model: Any, graph: Graph) -> frozenset[str]:
    """Layers, by canonical output, whose activation is an operator of the file."""
    ends = _canonical_ends(model, graph)
    layers = {layer.output for layer in graph.layers}
    return frozenset(place for _, place, own in layer_nodes(model, layers, ends) if own)


def _drop_clips(model: Any, encodings: Mapping[str, tuple[float, int]]) -> None:
    """Take out each Clip or Relu that the integer range behind it does by itself, in place.

    A fused activation is one tensor in TFLite and two in ONNX (convolution, Clip). What writes the
    first then writes the second, under the canonical name.
    """
    constants = onnx_file.stored_constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in list(model.graph.node):
        if node.op_type not in ("Clip", "Relu") or node.output[0] not in encodings:
            continue
        source = node.input[0]
        users = [other for other in model.graph.node if source in other.input]
        if len(users) != 1 or source not in makers or source in encodings:
            continue
        scale, zero_point = encodings[node.output[0]]
        low = high = None
        if node.op_type == "Relu":
            low = 0.0
        else:
            ends = [constants.get(name) if name else None for name in node.input[1:3]]
            low, high = (None if end is None else float(end) for end in [*ends, None][:2])
        tolerance = scale / 2
        if low is not None and (-128 - zero_point) * scale < low - tolerance:
            continue
        if high is not None and (127 - zero_point) * scale > high + tolerance:
            continue
        maker = makers[source]
        maker.output[list(maker.output).index(source)] = node.output[0]
        model.graph.node.remove(node)


def _activation_encodings(
    model: Any, encodings: Mapping[str, tuple[float, int]], keeping: Collection[str]
) -> dict[str, tuple[float, int]]:
    """(scale, int8 zero_point) of each activation of the ONNX graph.

    Operators of the kinds in ``keeping`` have one encoding on both of their sides: a tensor that is
    only moved (Transpose, Reshape, Flatten) keeps its numbers, and so does what a Clip that is left
    does not cut.
    """
    in_graph = {value.name for value in model.graph.input}
    in_graph.update(output for node in model.graph.node for output in node.output)
    found = {name: encoding for name, encoding in encodings.items() if name in in_graph}
    nodes = [node for node in model.graph.node if node.op_type in keeping]
    for node in nodes:
        if node.input[0] in found:
            found.setdefault(node.output[0], found[node.input[0]])
    for node in reversed(nodes):
        if node.output[0] in found:
            found.setdefault(node.input[0], found[node.output[0]])
    for node in nodes:
        if node.input[0] in found:
            found.setdefault(node.output[0], found[node.input[0]])
    return found


def _spell_certain(model: Any) -> None:
    """Write a softmax of one entry, which is 1, as x == x, in place.

    onnxruntime's int8 kernel answers 0 there, seen in 1.31; e.g. attention over one step.
    """
    onnx = onnx_file.package()
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
    for node in list(model.graph.node):
        sizes = shapes.get(node.output[0], ())
        if node.op_type != "Softmax" or not sizes:
            continue
        if sizes[onnx_file.attribute(node, "axis", -1)].dim_value != 1:
            continue
        place, equal = list(model.graph.node).index(node), f"{node.output[0]}__equal"
        make = onnx.helper.make_node
        model.graph.node.remove(node)
        cast = make("Cast", [equal], [node.output[0]], node.name, to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(place, cast)
        model.graph.node.insert(place, make("Equal", [node.input[0]] * 2, [equal], equal))


def _separate(model: Any) -> None:
    """Give every convolution and dense layer constants of its own, in place.

    tf2onnx keeps equal ones once; each use gets integers of its own.
    """
    layers = ("Conv", "Gemm", "MatMul")
    seen = {name for n in model.graph.node if n.op_type not in layers for name in n.input}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if node.op_type not in layers or place == 0 or name not in tensors:
                continue
            if name in seen:
                copied = model.graph.initializer.add()
                copied.CopyFrom(tensors[name])
                copied.name = node.input[place] = f"{name}__of__{node.output[0]}"
            seen.add(name)


def _round_between(
    model: Any, activations: Mapping[str, tuple[float, int]], dtype: Any, shift: int
) -> None:
    """Round what operators without an integer kernel read and write as well, in place.

    onnxruntime's writer leaves such a tensor in float, be it between two of them or an end of the
    graph; a pair of QuantizeLinear and DequantizeLinear makes it the same number as in TFLite.
    """
    onnx = onnx_file.package()
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    ends = {value.name for value in model.graph.output}

    def rounds(node: Any) -> bool:
        """Whether a reader rounds what it reads, or moves it there."""
        if node.op_type == "QuantizeLinear":
            return True
        behind = readers.get(node.output[0], []) if node.op_type in _MOVING else []
        return bool(behind) and node.output[0] not in ends and all(map(rounds, behind))

    for name, encoding in activations.items():
        maker = makers.get(name)
        if maker is not None and maker.op_type in ("DequantizeLinear", *_MOVING):
            continue  # what is moved was rounded before
        unrounded = [node for node in readers.get(name, []) if not rounds(node)]
        if name in ends and maker is not None:
            real, raw = name, f"{name}_QuantizeLinear_Input"
            maker.output[list(maker.output).index(name)] = raw
        elif unrounded:
            real, raw = f"{name}__rounded", name
            for reader in unrounded:
                for place, given in enumerate(reader.input):
                    if given == name:
                        reader.input[place] = real
        else:
            continue
        numbers, (scale, zero_point) = [], encoding
        for suffix, value in (
            ("scale", np.float32(scale)),
            ("zero_point", dtype(zero_point + shift)),
        ):
            numbers.append(f"{name}__{suffix}")
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(np.asarray(value), numbers[-1])
            )
        made, make = f"{name}__stored", onnx.helper.make_node
        model.graph.node.append(make("QuantizeLinear", [raw, *numbers], [made], f"{name}__round"))
        model.graph.node.append(make("DequantizeLinear", [made, *numbers], [real], f"{name}__real"))


def layer_nodes(
    model: Any, layers: Collection[str], ends: Mapping[str, str]
) -> Iterator[tuple[Any, str, bool]]:
    """(node, tensor that it writes in the canonical graph) of convolutions and dense layers.

    Third is whether the layer's activation is an operator of the file. An activation that is one,
    and what turns the layer's answer around, are part of the layer: they lie between the node and a
    tensor that the canonical graph knows.

    Args:
        model: Float or quantized.
        layers: What the canonical graph's layers write.
        ends: Canonical name of the graph's inputs and outputs, where it is another.
    """
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)

    def canonical(name: str) -> str:
        name = name.removesuffix("_QuantizeLinear_Input")
        return ends.get(name, name)

    def whole(name: str, activated: bool) -> tuple[str, bool] | None:
        """The canonical tensor behind one, and whether an activation lies between."""
        if canonical(name) in layers:
            return canonical(name), activated
        users = readers.get(name, [])
        for user in users:
            own = user.op_type in ("Clip", "Relu")
            if user.op_type in _BEHIND and (len(users) == 1 or not own):
                if found := whole(user.output[0], activated or own):
                    return found
        return None

    for node in model.graph.node:
        found = whole(node.output[0], False) if node.op_type in _WEIGHTED else None
        if found is not None:
            yield node, *found


def _put_integers(model: Any, stored: Stored, *, quantize_bias: bool) -> None:
    """Write given integers and scales where onnxruntime's quantizer put its own, in place."""
    makers = {node.output[0]: node for node in model.graph.node}
    for number, (node, place, _) in enumerate(layer_nodes(model, stored.layers, {})):
        layer = stored.layers[place]
        if node.input[1] not in makers:
            continue  # stays float
        depthwise = len(layer.weight_scale) != len(layer.weights)
        weights = _from_canonical(node, layer.weights, depthwise=depthwise)
        _replace(model, makers[node.input[1]], f"weights_{number}", weights, layer.weight_scale)
        if layer.bias is not None and quantize_bias and len(node.input) > 2:
            assert layer.bias_scale is not None
            _replace(model, makers[node.input[2]], f"bias_{number}", layer.bias, layer.bias_scale)
    onnx_file.drop_unused(model)


def _replace(model: Any, dequantize: Any, name: str, values: Any, scale: Any) -> None:
    """Give a DequantizeLinear constants of its own."""
    onnx = onnx_file.package()
    old = next(t for t in model.graph.initializer if t.name == dequantize.input[0])
    dtype, shape = onnx.helper.tensor_dtype_to_np_dtype(old.data_type), tuple(old.dims)
    if shape != values.shape or dtype != values.dtype:
        raise ExecutionError(
            f"onnxruntime wrote {name} as {dtype} {shape}, expected {values.dtype} "
            f"{values.shape}; please report the model"
        )
    for place, (suffix, array) in enumerate(
        (
            ("", values),
            ("_scale", scale.astype(np.float32)),
            ("_zero_point", np.zeros(len(scale), values.dtype)),
        )
    ):
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), f"{name}{suffix}")
        model.graph.initializer.append(tensor)
        if place < len(dequantize.input):
            dequantize.input[place] = tensor.name
        else:
            dequantize.input.append(tensor.name)


def _dequantized(model: Any, name: str, constants: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """(integers, scale) of a constant behind a DequantizeLinear, or None."""
    for node in model.graph.node:
        if node.output[0] == name and node.op_type == "DequantizeLinear":
            if node.input[0] in constants:
                return constants[node.input[0]], constants[node.input[1]]
    return None


def _to_canonical(node: Any, weights: Any, *, depthwise: bool) -> Any:
    """Weights of a node in TFLite's layout."""
    if node.op_type == "Conv":
        return weights.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    return weights if onnx_file.attribute(node, "transB", 0) else weights.T


def _from_canonical(node: Any, weights: Any, *, depthwise: bool) -> Any:
    """Weights in TFLite's layout as a node takes them."""
    if node.op_type == "Conv":
        return weights.transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
    return weights if onnx_file.attribute(node, "transB", 0) else weights.T


def _without_encodings(model: Any, activations: Mapping[str, tuple[float, int]]) -> list[Any]:
    """Nodes that read or write a tensor without encodings, constants apart."""
    stored = {tensor.name for tensor in model.graph.initializer} | {""}
    return [
        node
        for node in model.graph.node
        if any(name not in activations for name in node.output)
        or any(name not in activations and name not in stored for name in node.input)
    ]


@dataclass(frozen=True)
class Integers:
    """What a layer of a foreign model is to hold.

    Attributes:
        weights: int8 as the node has them.
        scale: float32, one for each output channel.
        bias: Real, or None; it fits in int32 at ``scale`` times that of the input.
    """

    weights: Any
    scale: Any
    bias: Any


def quantize_own(
    model: Any,
    ranges: Mapping[str, tuple[float, float]],
    *,
    activation_dtype: str,
    symmetric: bool,
    quantize_bias: bool,
    left: Collection[str],
) -> Any:
    """QDQ int8 of a foreign float model with given ranges, weights per channel.

    Args:
        model: Float ``onnx.ModelProto`` of another exporter.
        ranges: (min, max) by tensor name, 0 between them.
        activation_dtype: ``uint8`` or ``int8``.
        symmetric: Whether zero_point has to be 0.
        quantize_bias: Write int32 biases; else they stay float.
        left: Names of nodes that stay float, beside those without ranges.

    Raises:
        InvalidModelError: If onnxruntime's quantizer refuses the model.
    """
    copied = onnx_file.package().ModelProto()
    copied.CopyFrom(model)
    _separate(copied)
    known = set(ranges) | {tensor.name for tensor in copied.graph.initializer} | {""}
    try:
        quantized = _written(
            copied,
            ranges,
            activation_dtype=activation_dtype,
            left=[
                node
                for node in copied.graph.node
                if node.name in left or not known.issuperset([*node.input, *node.output])
            ],
            symmetric=symmetric,
            quantize_bias=quantize_bias,
        )
        onnx_forms.pad_integers(quantized)
        onnx_file.sort(quantized)
        onnx_file.package().checker.check_model(quantized)
    except MissingDependencyError:
        raise
    except Exception as exc:  # onnxruntime's quantizer raises many types
        raise InvalidModelError(
            f"onnxruntime's quantizer refuses the ONNX file: {reason(exc)}"
        ) from None
    return quantized


def put_own(
    model: Any,
    decide: Callable[[str, np.float32 | None], Integers | None],
    *,
    quantize_bias: bool,
) -> tuple[dict[str, tuple[float, int]], int]:
    """Write given weights and biases where :func:`quantize_own` put others, in place.

    Args:
        model: Quantized.
        decide: What a layer is to hold, by the name of its node (what it writes is called
            otherwise where its activation was taken in) and the scale of its input, which is None
            where the bias stays float; None of a node that is no such layer.
        quantize_bias: Whether biases are int32.

    Returns:
        (scale, zero_point as stored) of each activation, and how many weights and biases were
        written.

    Raises:
        ExecutionError: If a layer holds integers that nobody gave.
    """
    makers = {node.output[0]: node for node in model.graph.node if node.output}
    constants = onnx_file.stored_constants(model)
    numbers = 0
    for node in list(model.graph.node):
        if node.op_type not in _WEIGHTED:
            continue
        behind, before = makers.get(node.input[1]), makers.get(node.input[0])
        if behind is None or behind.op_type != "DequantizeLinear":
            continue  # stays float
        if behind.input[0] not in constants:
            continue  # a product of two computed matrices
        end = makers.get(node.input[2]) if len(node.input) > 2 else None
        whole = end is not None and end.op_type == "DequantizeLinear" and quantize_bias
        entry = None
        if whole and before is not None and before.op_type == "DequantizeLinear":
            entry = np.float32(constants[before.input[1]])
        given = decide(node.name, entry)
        if given is None:
            raise ExecutionError(
                f"{node.op_type} {node.name} holds integers that edgekit has not decided; export "
                f"the model in float32"
            )
        _replace(model, behind, f"{node.name}__stored_weights", given.weights, given.scale)
        numbers += given.weights.size
        if given.bias is None or len(node.input) < 3:
            continue
        if end is None or end.op_type != "DequantizeLinear":
            _set_constant(model, node.input[2], given.bias.astype(np.float32))
        elif entry is not None:
            bias_scale = (entry * given.scale).astype(np.float32)
            bias = np.rint(given.bias / bias_scale).astype(np.int32)
            _replace(model, end, f"{node.name}__stored_bias", bias, bias_scale)
        numbers += given.bias.size
    onnx_file.drop_unused(model)
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            name = node.input[0].removesuffix("_QuantizeLinear_Input")
            found[name] = (float(constants[node.input[1]]), int(constants[node.input[2]]))
    onnx_file.store_once(model)
    return found, numbers


def _set_constant(model: Any, name: str, values: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            old = list(tensor.dims)
            array = np.ascontiguousarray(values).reshape(old)
            tensor.CopyFrom(onnx_file.package().numpy_helper.from_array(array, name))
