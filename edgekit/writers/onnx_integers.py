"""int8 in ONNX: write QDQ with given encodings and integers, and read what a file stores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgekit.base.errors import InvalidModelError, WriterError
from edgekit.graph import kernels, nibbles, onnx_forms, plain
from edgekit.graph import onnx as onnx_file
from edgekit.graph.flatbuffer import Graph, Layer, short_name
from edgekit.records.encodings import ConstantIntegers, LayerIntegers, Stored
from edgekit.writers import onnx_blocks, onnx_dynamic, onnx_tensors, tflite_integers

_CLIPPING = ("Clip", "Relu", "Min", "Max")
#: What may stand between a layer's node and the tensor that the canonical graph calls its output.
_BEHIND = (*_CLIPPING, "QuantizeLinear", "DequantizeLinear", *onnx_file.MOVED)
#: Operators without an integer kernel whose own constants stay real numbers.
_REAL = (
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization",
    "CumSum", "LSTM", "GRU", "RNN",
)  # fmt: skip
#: Those of which TFLite has the same constants, in float.
_NORMS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization")
#: Inputs that are places or truth values, whatever the other inputs are.
_NO_REALS = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "Where": 0}
#: The operator set whose DequantizeLinear takes int4.
_INT4 = 21
#: How far a float bias may lie from whole steps, in steps.
_HALF = 0.501


def quantize(
    model: Any,
    stored: Stored,
    graph: Graph,
    *,
    activation_dtype: str = "uint8",
    quantize_bias: bool = True,
    blocks: bool = True,
    dynamic: bool = False,
) -> Any:
    """QDQ int8 with given numbers: weights int8 or int4 per channel, float32 in and out.

    Every tensor that has an encoding stands behind a pair of QuantizeLinear and DequantizeLinear,
    weights, biases and constants behind a DequantizeLinear; onnxruntime makes integer kernels of
    what lies between them.

    Args:
        model: Float ``onnx.ModelProto``, whose tensors have the names of the canonical graph.
        stored: Numbers of all activations, layers and constants of the canonical graph.
        graph: Float, whose constants the model has.
        activation_dtype: ``uint8``, which adds 128 to every zero_point and is the same number, or
            ``int8``.
        quantize_bias: Write int32 biases; else they stay float, as TensorRT asks for.
        blocks: Write transposed convolutions in the form that onnxruntime has integer kernels for
            (:mod:`edgekit.writers.onnx_blocks`).
        dynamic: Let dense layers round their float inputs when they run
            (:mod:`edgekit.writers.onnx_dynamic`).

    Returns:
        The quantized ``onnx.ModelProto``. What has no integer kernel in onnxruntime, or no tensor
        in the canonical graph (parts of an operator that ONNX lacks), stays float.

    Raises:
        InvalidModelError: If a weight has 4 bits, and the model cannot become one of the operator
            set that has such numbers.
    """
    if any(layer.bits == 4 for layer in stored.layers.values()):
        model = onnx_file.of_set(model, _INT4)
    copied = onnx_file.copied(model)
    _spell_certain(copied)
    whole = {node.output[0] for node, _, _ in layer_nodes(copied, stored.layers, {})}
    real = {  # what a layer in float reads as it was before it is rounded
        node.input[0]
        for node in copied.graph.node
        if node.op_type in onnx_file.WEIGHTED and node.output[0] not in whole
    }
    of_clips = _activation_encodings(copied, stored.activations, onnx_file.MOVED)
    _drop_clips(copied, {name: encoding for name, encoding in of_clips.items() if name not in real})
    activations = _activation_encodings(copied, stored.activations, (*_CLIPPING, *onnx_file.MOVED))
    dtype, shift = (np.uint8, 128) if activation_dtype == "uint8" else (np.int8, 0)
    if not stored.activations and not dynamic:
        _turn_matrices(copied)
    writer = _Writer(copied)
    _put_integers(writer, stored, quantize_bias=quantize_bias)
    _put_constants(writer, stored.constants, graph, activations, dtype, shift)
    floats = onnx_file.stored_constants(copied)
    apart = [
        node
        for node in copied.graph.node
        if node.op_type in onnx_file.WEIGHTED
        and floats.get(node.input[1], dtype(0)).dtype == np.float32
    ]
    for name, (scale, zero_point) in activations.items():
        writer.round(name, scale, dtype(zero_point + shift), apart)
    onnx_forms.pad_integers(copied)
    if blocks:
        onnx_blocks.write(copied)
    if dynamic:
        onnx_dynamic.write(copied)
    onnx_file.drop_unused(copied)
    del copied.graph.value_info[:]
    onnx_file.sort(copied)
    onnx_file.package().checker.check_model(copied)
    return copied


class _Writer:
    """A float model on its way to QDQ, changed in place. Equal numbers are stored once."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph
        self._helper = onnx_file.package().helper
        self._names = {name for node in self.graph.node for name in (*node.input, *node.output)}
        self._names |= {tensor.name for tensor in self.graph.initializer}
        self._stored: dict[tuple[Any, ...], str] = {}
        self._count = 0
        self._inputs = {value.name for value in self.graph.input}
        self._readers = onnx_file.readers(self.graph.node)
        self._makers = {name: node for node in self.graph.node for name in node.output}

    def store(self, values: Any, name: str = "", *, bits: int = 0) -> str:
        """Name of a constant; one that is stored already keeps its own. int8 of 4 ``bits`` become
        int4."""
        array = np.asarray(values, order="C")
        key = (array.dtype.str, bits, array.shape, array.tobytes())
        if key not in self._stored:
            self._stored[key] = self._keep(array, name or "c", bits=bits)
        return self._stored[key]

    def _keep(self, array: Any, word: str, *, bits: int = 0) -> str:
        name, package = self._fresh(word), onnx_file.package()
        if bits == 4:
            int4, content = package.TensorProto.INT4, nibbles.packed(array).tobytes()
            tensor = package.helper.make_tensor(name, int4, array.shape, content, raw=True)
        else:
            tensor = package.numpy_helper.from_array(np.asarray(array), name)
        self.graph.initializer.append(tensor)
        return name

    def real(
        self,
        values: Any,
        scale: Any,
        zero_point: Any,
        axis: int | None = None,
        name: str = "",
        *,
        bits: int = 8,
    ) -> str:
        """Name of the real numbers that a constant's integers stand for; those of 4 bits have the
        zero_point 0."""
        numbers = [self.store(values, name, bits=bits), self.store(np.float32(scale))]
        if bits == 4:
            pass
        elif np.asarray(zero_point).dtype == np.int8:  # see onnx.store_once
            numbers.append(self._keep(zero_point, "z"))
        else:
            numbers.append(self.store(zero_point))
        real = self._fresh("d")
        form = {} if axis is None else {"axis": axis}
        self._append("DequantizeLinear", numbers, real, **form)
        return real

    def round(self, name: str, scale: float, zero_point: Any, apart: Sequence[Any]) -> None:
        """Let a tensor's readers see it rounded.

        Nodes in ``apart`` read it as it was: onnxruntime rounds float weights by itself where their
        layer reads what is rounded.
        """
        numbers = [self.store(np.float32(scale)), self.store(zero_point)]
        steps, readers = self._fresh("q"), self._readers.get(name, [])
        if name in self._inputs:
            raw, rounded = name, self._fresh("r")
            for node in readers:
                if node not in apart:
                    _rename(node.input, name, rounded)
        else:
            raw, rounded = self._fresh("r"), name
            _rename(self._makers[name].output, name, raw)
            for node in readers:
                if node in apart:
                    _rename(node.input, name, raw)
        self._append("QuantizeLinear", [raw, *numbers], steps)
        self._append("DequantizeLinear", [steps, *numbers], rounded)

    def _append(self, kind: str, inputs: Sequence[str], output: str, **form: Any) -> None:
        node = self._helper.make_node(kind, inputs, [output], name=self._fresh("n"), **form)
        self.graph.node.append(node)

    def _fresh(self, word: str) -> str:
        name = word
        while len(name) == 1 or name in self._names:
            self._count += 1
            name = f"{word}{self._count}"
        self._names.add(name)
        return name


def _rename(names: Any, old: str, new: str) -> None:
    for place, name in enumerate(names):
        if name == old:
            names[place] = new


def _put_integers(writer: _Writer, stored: Stored, *, quantize_bias: bool) -> None:
    """Let convolutions and dense layers read given integers."""
    constants = onnx_file.stored_constants(writer.model)
    for node, place, _ in list(layer_nodes(writer.model, stored.layers, {})):
        layer = stored.layers[place]
        if node.input[1] not in constants:
            raise WriterError(f"the ONNX graph computes the weights of {short_name(place)}")
        depthwise = len(layer.weight_scale) != len(layer.weights)
        weights = _from_canonical(
            node, layer.weights, depthwise=depthwise, like=constants[node.input[1]].shape
        )
        if constants[node.input[1]].shape != weights.shape:
            raise WriterError(
                f"the weights of {short_name(place)} are {list(constants[node.input[1]].shape)} in "
                f"the ONNX graph, expected {list(weights.shape)}"
            )
        zeros = np.zeros(len(layer.weight_scale), np.int8)
        name = short_name(place)
        node.input[1] = writer.real(
            weights, layer.weight_scale, zeros, _axis(node), f"{name}/weights", bits=layer.bits
        )
        if layer.bias is not None and quantize_bias and len(node.input) > 2:
            assert layer.bias_scale is not None
            none = np.zeros(len(layer.bias_scale), np.int32)
            node.input[2] = writer.real(layer.bias, layer.bias_scale, none, 0, f"{name}/bias")


def _turn_matrices(model: Any) -> None:
    """Store the weights of each Gemm with their output channels first, in place.

    With inputs first, onnxruntime by default makes a MatMulNBits of a Gemm with int8 weights, which
    rounds what it reads to 8 bits.
    """
    constants = onnx_file.stored_constants(model)
    for node in model.graph.node:
        if node.op_type != "Gemm" or onnx_file.attribute(node, "transB", 0):
            continue
        weights = constants.get(node.input[1])
        if weights is None:
            continue
        package, name = onnx_file.package(), f"{node.output[0]}__matrix"
        turned = np.ascontiguousarray(weights.T)
        model.graph.initializer.append(package.numpy_helper.from_array(turned, name))
        node.input[1] = name
        for old in [attribute for attribute in node.attribute if attribute.name == "transB"]:
            node.attribute.remove(old)
        node.attribute.append(package.helper.make_attribute("transB", 1))


def _axis(node: Any) -> int:
    """Axis of the output channels in a node's weights."""
    if node.op_type == "Conv" or onnx_file.attribute(node, "transB", 0):
        return 0
    return 1


@dataclass(frozen=True)
class Products:
    """Integer weights of a file whose products with uint8 onnxruntime sums.

    Attributes:
        name: Name of the node's output.
        groups: Number of groups of channels; 1 of a product of matrices.
        inputs: Channels that a group reads.
        rows: int8 ``[O, K]`` in the order of the dot product: height, width, input channel.
    """

    name: str
    groups: int
    inputs: int
    rows: Any


def products(model: Any) -> Iterator[Products]:
    """Every convolution and product of integers of a model with constant int8 weights, which is QDQ
    or rounds when it runs."""
    constants = onnx_file.stored_constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    rounds = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    for node in model.graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in constants:
            yield Products(node.output[0], 1, 2, constants[node.input[1]].T)
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not rounds:
            continue
        for place in (0, 1):
            source = makers.get(node.input[place])
            if source is None or source.op_type != "DequantizeLinear":
                continue
            weights = constants.get(source.input[0])
            if weights is None or weights.dtype != np.int8:
                continue
            groups, inputs = 1, 2
            if node.op_type == "Conv":
                groups, inputs = onnx_file.attribute(node, "group", 1), weights.shape[1]
                rows = np.moveaxis(weights, 1, -1).reshape(len(weights), -1)
            else:
                turned = onnx_file.attribute(node, "transB", 0) if place else node.op_type != "Gemm"
                matrices = weights if turned else np.swapaxes(weights, -1, -2)
                rows = matrices.reshape(-1, matrices.shape[-1])
            yield Products(node.output[0], groups, inputs, rows)


def _put_constants(
    writer: _Writer,
    constants: Mapping[str, ConstantIntegers],
    graph: Graph,
    activations: Mapping[str, tuple[float, int]],
    dtype: Any,
    shift: int,
) -> None:
    """Let other nodes read the integers of their constants, which are found by their values."""
    floats = {
        name: values
        for name, values in onnx_file.stored_constants(writer.model).items()
        if values.dtype == np.float32
    }
    names_by_values: dict[tuple[int, bytes], list[str]] = {}
    for name in constants:
        names_by_values.setdefault(_content(graph.constant(name)), []).append(name)
    readers: dict[str, set[str]] = {}
    for operator in graph.operators:
        for name in operator.inputs:
            readers.setdefault(name, set()).update(operator.outputs)
    whole = _canonical_output(
        writer.model, {n for outputs in readers.values() for n in outputs}, {}
    )
    stored = {tensor.name for tensor in writer.graph.initializer}
    for node in writer.graph.node:
        computed = [
            name
            for place, name in enumerate(node.input)
            if name not in stored and place != _NO_REALS.get(node.op_type)
        ]
        if node.op_type in _REAL or computed and not any(name in activations for name in computed):
            continue  # it computes in float, whatever numbers of others its constants are
        for place, name in enumerate(node.input):
            if name not in floats or (node.op_type in onnx_file.WEIGHTED and place > 0):
                continue
            alike = names_by_values.get(_content(floats[name]), [])
            written = whole(node.output[0])
            if written is not None:  # of constants of the same numbers, its operator's own
                alike = [constant for constant in alike if written[0] in readers[constant]]
            encodings = {
                (constants[constant].scale, constants[constant].zero_point) for constant in alike
            }
            if (own := activations.get(node.output[0])) in encodings:
                encodings = {own}
            if len(encodings) != 1:
                continue  # none, or a part of an operator that ONNX lacks: it has none of its own
            ((scale, zero_point),) = encodings
            steps = np.rint(floats[name] / np.float32(scale)) + zero_point
            steps = np.clip(steps, -128, 127) + shift
            node.input[place] = writer.real(steps.astype(dtype), scale, dtype(zero_point + shift))


def _content(values: Any) -> tuple[int, bytes]:
    """The same for arrays of the same numbers, however they are laid out."""
    return values.size, np.sort(values, axis=None).tobytes()


def read_stored(model: Any, graph: Graph) -> Stored:
    """The integers and scales of an int8 file, in the canonical graph's words.

    Args:
        model: Quantized ``onnx.ModelProto``.
        graph: Any flatbuffer of the same model, for its tensors' names.

    Raises:
        InvalidModelError: If weights or a bias have a zero_point, or scales of other channels than
            those of the output; names their layer.
    """
    model = onnx_file.plain_integers(model)
    constants = onnx_file.stored_constants(model)
    outer_names = {
        **dict(zip((value.name for value in model.graph.input), graph.inputs, strict=True)),
        **_canonical_outputs(model, graph),
    }
    makers = {output: node for node in model.graph.node for output in node.output}

    names = set(graph.tensors) - tflite_integers.brought(graph)

    def canonical(name: str) -> str:
        return str(outer_names.get(name, name))

    # the tensor that a pair of QuantizeLinear and DequantizeLinear rounds is named before or behind
    # it; what pads integers has no QuantizeLinear behind it
    behind = {}
    for node in model.graph.node:
        before = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is not None and canonical(node.output[0]) in names:
            own = before.op_type == "QuantizeLinear"
            behind[before.input[0] if own else node.input[0]] = canonical(node.output[0])

    apart: dict[str, str] = {}  # tensor by the integers that it is apart from what they round

    def origin(name: str) -> str:
        """The tensor behind a pair of QuantizeLinear and DequantizeLinear."""
        while name in makers and makers[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
            if name in apart:
                return apart[name]
            name = makers[name].input[0]
        return canonical(name) if canonical(name) in names else behind.get(name, canonical(name))

    for node in model.graph.node:
        before = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is not None and before.op_type == "QuantizeLinear":
            rounded = canonical(node.output[0])
            if rounded in names and origin(before.input[0]) in names - {rounded}:
                apart[before.output[0]] = rounded
    numbers: dict[str, tuple[float, int]] = {}
    for node in model.graph.node:
        of_integers = node.op_type == "DequantizeLinear" and node.input[0] in makers
        rounds = node.op_type == "QuantizeLinear" and node.input[0] not in constants
        behind_integers = of_integers and not set(makers[node.input[0]].input[:1]) & set(constants)
        if rounds or behind_integers:
            integers = node.output[0] if rounds else node.input[0]
            numbers[origin(integers)] = _number(node, constants, makers)
    # what is only moved may be rounded before or behind it
    for node in [*model.graph.node, *reversed(model.graph.node)]:
        if node.op_type in onnx_file.MOVED:
            source, moved = origin(node.input[0]), origin(node.output[0])
            if source in numbers:
                numbers.setdefault(moved, numbers[source])
            elif moved in numbers:
                numbers[source] = numbers[moved]
    there = {*makers, *outer_names, *outer_names.values()}
    for operator in graph.operators:  # what the converter took out holds the same numbers
        if operator.kind in kernels.MOVED and operator.outputs[0] not in there:
            if operator.inputs[0] in numbers:
                numbers.setdefault(operator.outputs[0], numbers[operator.inputs[0]])
    for operator in reversed(graph.operators):
        merged = operator.kind in kernels.RECTIFYING  # by onnxruntime's writer
        if (merged or operator.kind in kernels.MOVED) and operator.inputs[0] not in there:
            if operator.outputs[0] in numbers:
                numbers.setdefault(operator.inputs[0], numbers[operator.outputs[0]])
    activations = {
        name: number
        for name, number in numbers.items()
        if name in names and not graph.is_constant(name)
    }
    layers = {}
    kinds = {layer.output: layer for layer in graph.layers}
    for node, place, _ in layer_nodes(model, kinds, outer_names):
        weights = _dequantized(node, 1, makers, constants)
        if weights is None:
            continue
        bias = _dequantized(node, 2, makers, constants) if len(node.input) > 2 else None
        layer_integers = LayerIntegers(
            weights=weights[0],
            weight_scale=np.atleast_1d(weights[1]),
            bias=None if bias is None else bias[0],
            bias_scale=None if bias is None else np.atleast_1d(bias[1]),
            bits=_bits(node, makers, constants),
        )
        layers[place] = _as_canonical(node, layer_integers, kinds[place], graph)
    return Stored(activations, layers, _read_constants(model, graph, outer_names))


def _as_canonical(node: Any, integers: LayerIntegers, layer: Layer, graph: Graph) -> LayerIntegers:
    """A node's integers as the canonical layer has them: weights in TFLite's layout, and of a
    convolution that writes blocks those of the transposed one."""
    if layer.kind != "transposed" or node.op_type != "Conv":
        weights = _to_canonical(node, integers.weights, depthwise=layer.kind == "depthwise")
        return replace(integers, weights=weights)
    outputs, height, width, _ = graph.shape(layer.weights)
    whole = onnx_blocks.to_transposed(integers.weights, layer.strides[0], (height, width))
    return LayerIntegers(
        weights=whole.transpose((1, 2, 3, 0)),
        weight_scale=integers.weight_scale[:outputs],
        bias=None if integers.bias is None else integers.bias[:outputs],
        bias_scale=None if integers.bias_scale is None else integers.bias_scale[:outputs],
    )


def _read_constants(
    model: Any, graph: Graph, outer_names: Mapping[str, str]
) -> dict[str, ConstantIntegers]:
    """Integers of the constants of other operators, by their names in the canonical graph."""
    constants = onnx_file.stored_constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    constants_of: dict[str, list[str]] = {}
    for operator in graph.operators:
        own = [
            name
            for name in operator.inputs
            if graph.is_constant(name) and graph.dtype(name) in (np.float32, np.int8)
        ]
        if own and operator.kind not in kernels.WEIGHTED:
            constants_of[operator.outputs[0]] = own
    integers: dict[str, ConstantIntegers] = {}
    first = onnx_tensors.channels_first(model)
    whole = _canonical_output(model, constants_of, outer_names)
    floats = {
        _content(graph.constant(name))
        for name in graph.used
        if graph.is_constant(name) and graph.dtype(name) == np.float32
    }
    others = {*onnx_file.WEIGHTED, *onnx_file.MOVED, "QuantizeLinear", "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type in others:
            continue
        if node.op_type in _NORMS:
            for name, real in _reals_of(node, makers, constants).items():
                if _content(real) not in floats:
                    integers[name] = ConstantIntegers(np.zeros(real.shape, np.int8), 1.0, 0)
            continue
        place = whole(node.output[0])
        left = [] if place is None else list(constants_of[place[0]])
        for name in node.input:
            source = makers.get(name)
            if source is None or source.op_type != "DequantizeLinear":
                continue
            values = constants.get(source.input[0])
            if values is None or constants[source.input[1]].size != 1:
                continue
            sized = [n for n in left if int(np.prod(graph.shape(n))) == values.size]
            if not sized:
                continue
            left.remove(sized[0])
            shift = 128 if values.dtype == np.uint8 else 0
            shape = graph.shape(sized[0])
            values = _turned(values, shape, first=node.output[0] in first)
            whole_steps = (values.astype(np.int16) - shift).astype(np.int8).reshape(shape)
            integers[sized[0]] = ConstantIntegers(whole_steps, *_number(source, constants))
    return integers


def _reals_of(node: Any, makers: Mapping[str, Any], constants: Mapping[str, Any]) -> dict[str, Any]:
    """The real numbers of a node's constants behind a DequantizeLinear, by name."""
    reals = {}
    for name in node.input:
        source = makers.get(name)
        if source is None or source.op_type != "DequantizeLinear":
            continue
        values = constants.get(source.input[0])
        if values is not None:
            scale, steps = constants[source.input[1]], values.astype(np.int64)
            if len(source.input) > 2 and source.input[2]:
                steps = steps - constants[source.input[2]].astype(np.int64)
            reals[name] = (steps.astype(np.float32) * scale).astype(np.float32)
    return reals


def _turned(values: Any, shape: tuple[int, ...], *, first: bool) -> Any:
    """A constant with its axes in the order of the canonical one; sizes of 1 do not count.

    Args:
        values: Values of the ONNX file.
        shape: Canonical.
        first: Whether channels come before height and width where sizes do not tell the order.
    """
    own, canonical_sizes = (
        [size for size in sizes if size != 1] for sizes in (values.shape, shape)
    )
    orders = [
        o for o in itertools.permutations(range(len(own))) if [own[i] for i in o] == canonical_sizes
    ]
    if not orders:
        return values
    order = orders[0]  # as it is, where that fits
    if first and values.ndim == len(shape) == 4 and len(own) == 3:
        order = next((axes for axes in orders if axes == (1, 2, 0)), order)
    return values.reshape(own).transpose(order)


def _canonical_outputs(model: Any, graph: Graph) -> dict[str, str]:
    """Canonical names of the outputs that are called otherwise; not of one that the canonical graph
    only moves to where it is an output."""
    makers = {name: operator for operator in graph.operators for name in operator.outputs}

    def moved(name: str) -> Iterator[str]:
        while name in makers and makers[name].kind in kernels.MOVED:
            name = makers[name].inputs[0]
            yield name

    pairs = zip((value.name for value in model.graph.output), graph.outputs, strict=True)
    return {own: name for own, name in pairs if own not in moved(name)}


def without_missing(
    decided: Stored, read: Stored, model: Any, graph: Graph
) -> tuple[Stored, tuple[str, ...]]:
    """What the ONNX graph can hold of what was decided, and what it cannot, in words.

    tf2onnx merges operators, e.g. a maximum of x and 0.2 x to a LeakyRelu, and names what it turns
    around anew. TFLite's converter computes a layer twice where its output is read with and without
    its activation; tf2onnx computes it once.

    Args:
        decided: For the canonical graph, or read from the int8 TFLite file.
        read: From the ONNX model.
        model: int8 ``onnx.ModelProto``.
        graph: Canonical, or of the int8 TFLite file.
    """
    model = onnx_file.plain_integers(model)
    there = {name for node in model.graph.node for name in node.output}
    handed = _handed_on(decided, read, graph)
    tensors = [
        name
        for name in decided.activations
        if name not in (*graph.inputs, *graph.outputs)
        and name not in there
        and name not in {*read.activations, *handed}
    ]
    constants = [name for name in decided.constants if name not in read.constants]
    layers = {layer.output: layer for layer in graph.layers}
    outer_names = _canonical_outputs(model, graph)
    nodes = {place for _, place, _ in layer_nodes(model, layers, outer_names)}
    kernels_there = {graph.kernel(layers[name]) for name in nodes}
    merged = [
        name
        for name in decided.layers
        if name not in nodes and graph.kernel(layers[name]) in kernels_there
    ]
    moving = kernels.MOVED | {"PAD"}
    moved = {name for o in graph.operators if o.kind in moving for name in o.outputs}
    computed = [name for name in tensors if name not in moved]
    sentences = tuple(
        f"{len(names)} {what}: {', '.join(map(short_name, names[:3]))}"
        for what, names in (
            ("tensors of the float graph are no tensors of the ONNX graph, and are not rounded "
             "there", computed),
            ("constants of the float graph are not rounded in the ONNX graph, where they are part "
             "of other operators or are read in float", constants),
        )
        if names
    )  # fmt: skip
    makers = {output: node for node in model.graph.node for output in node.output}
    stored = onnx_file.stored_constants(model)
    norms = [n for n in model.graph.node if n.op_type in _NORMS and _reals_of(n, makers, stored)]
    if norms:
        sentences += (
            f"{len(norms)} normalizations compute in float in TFLite, with the numbers that their "
            f"integers in the ONNX file stand for",
        )
    left = decided.without({*tensors, *handed}, merged, constants)
    float_biases = _float_biases(left, read, model, layers, outer_names)
    if any(left.layers[name].bias.any() for name in float_biases):  # type: ignore[union-attr]
        named = ", ".join(map(short_name, sorted(float_biases)[:3]))
        sentences += (f"the ONNX file keeps {len(float_biases)} biases in float: {named}",)
    return left.without_biases(float_biases), sentences


def _float_biases(
    decided: Stored,
    read: Stored,
    model: Any,
    layers: Collection[str],
    outer_names: Mapping[str, str],
) -> set[str]:
    """Layers whose bias the file has in float, and the nearest steps of it were decided; and those
    that have none, and zeros were."""
    constants, sums = onnx_file.stored_constants(model), _sums(model)
    names = set()
    for node, place, _ in layer_nodes(model, layers, outer_names):
        layer, own = decided.layers.get(place), read.layers.get(place)
        if layer is None or layer.bias is None or layer.bias_scale is None:
            continue
        if own is None or own.bias is not None:
            continue
        real = np.zeros(1)
        bias = node.input[2] if len(node.input) > 2 else sums.get(node.output[0], ("", ""))[1]
        if bias:
            real = constants.get(bias, np.full(1, np.inf)).astype(np.float64)
        off = np.abs(real.reshape(-1) / layer.bias_scale - layer.bias)
        if off.max(initial=0) < _HALF:
            names.add(place)
    return names


def _handed_on(decided: Stored, read: Stored, graph: Graph) -> set[str]:
    """Tensors that the ONNX file does not round since each of their values is one of a tensor that
    it rounds so before, or all of their readers only hand it on to one that it rounds so behind."""
    own, readers = decided.activations, plain.readers(graph.operators)
    handed: set[str] = set()

    def same(name: str, other: str) -> bool:
        number = read.activations.get(other, own.get(other) if other in handed else None)
        return number is not None and number == own.get(name)

    def missing(name: str) -> bool:
        return name in own and name not in read.activations

    for operator in graph.operators:
        if operator.kind in kernels.PICKING:
            handed |= {n for n in operator.outputs if missing(n) and same(n, operator.inputs[0])}
    tensors = [name for operator in graph.operators for name in operator.outputs]
    for name in filter(missing, (*reversed(tensors), *graph.inputs)):
        users = readers.get(name, [])
        if users and all(u.kind in kernels.PICKING and same(name, u.outputs[0]) for u in users):
            handed.add(name)
    return handed


def read_floats(model: Any, graph: Graph) -> dict[str, tuple[Any, Any]]:
    """(weights or None, bias or None) of each layer that are stored in float, canonical layout.

    Args:
        model: ``onnx.ModelProto``.
        graph: Any flatbuffer of the same model, for its tensors' names.
    """
    constants = onnx_file.stored_constants(model)
    outer_names = _canonical_outputs(model, graph)
    parameters = {}
    kinds = {layer.output: layer.kind for layer in graph.layers}
    for node, place, _ in layer_nodes(model, kinds, outer_names):
        weights = constants.get(node.input[1])
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        if weights is not None or bias is not None:
            whole = None
            if weights is not None:
                depthwise = kinds[place] == "depthwise"
                whole = _to_canonical(node, weights, depthwise=depthwise).astype(np.float32)
            parameters[place] = (
                None if whole is None else np.ascontiguousarray(whole),
                None if bias is None else bias.astype(np.float32),
            )
    return parameters


def name_outputs(model: Any, graph: Graph) -> None:
    """Give what an output is called behind an Identity, which is taken out, its own name again, in
    place; the output is an Identity of it.

    Args:
        model: ``onnx.ModelProto`` that is made ready for int8.
        graph: Canonical.
    """
    tensors = {name for node in model.graph.node for name in node.output}
    make = onnx_file.package().helper.make_node
    for own, name in _canonical_outputs(model, graph).items():
        if own not in tensors or name in tensors or own in graph.tensors:
            continue
        for node in model.graph.node:
            for names in (node.input, node.output):
                _rename(names, own, name)
        model.graph.node.append(make("Identity", [name], [own], name=own))


def put_floats(model: Any, graph: Graph, canonical: Graph) -> frozenset[str]:
    """Give convolutions and dense layers the weights and biases of a graph, in place.

    Args:
        model: Float ``onnx.ModelProto`` whose tensors have the names of the canonical graph.
        graph: Float, with other numbers in its layers than the canonical one.
        canonical: Float, with the model's own numbers.

    Returns:
        What the layers write that the model has in another form, or not at all, by canonical name;
        those keep their own numbers.
    """
    writer = _Writer(model)
    constants = onnx_file.stored_constants(model)
    layers = {layer.output: layer for layer in graph.layers}
    absent = set(layers)
    for node, place, _ in list(layer_nodes(model, layers, _canonical_outputs(model, graph))):
        layer, own = layers[place], constants.get(node.input[1])
        if own is None:
            continue
        right, weights = (
            _from_canonical(
                node, source.constant(layer.weights), depthwise=layer.kind == "depthwise",
                like=own.shape,
            )
            for source in (canonical, graph)
        )  # fmt: skip
        if right.shape != own.shape or not np.allclose(own, right, 1e-3, 1e-6 * np.abs(own).max()):
            continue
        absent.discard(place)
        name = short_name(place)
        node.input[1] = writer.store(np.ascontiguousarray(weights), f"{name}/weights")
        del node.input[2:]
        if layer.bias is not None:
            bias = graph.constant(layer.bias).reshape(-1)
            node.input.append(writer.store(bias, f"{name}/bias"))
    onnx_file.drop_unused(model)
    return frozenset(absent)


def absent(model: Any, graph: Graph) -> tuple[str, ...]:
    """Layers of the canonical graph, by what they write, that are no layers of an ONNX file."""
    layers = [layer.output for layer in graph.layers]
    outer_names = _canonical_outputs(model, graph)
    nodes = {place for _, place, _ in layer_nodes(model, layers, outer_names)}
    return tuple(name for name in layers if name not in nodes)


def unknown(model: Any, graph: Graph, names: Collection[str]) -> tuple[str, ...]:
    """Which of the nodes, by what they write, are no layers of the canonical graph."""
    model = onnx_file.plain_integers(model)
    layers = {layer.output for layer in graph.layers}
    nodes = {
        node.output[0]
        for node, _, _ in layer_nodes(model, layers, _canonical_outputs(model, graph))
    }
    return tuple(name for name in names if name not in nodes)


def activated(model: Any, graph: Graph) -> frozenset[str]:
    """Layers, by canonical output, whose activation is an operator of the file."""
    outer_names = _canonical_outputs(model, graph)
    layers = {layer.output for layer in graph.layers}
    return frozenset(place for _, place, own in layer_nodes(model, layers, outer_names) if own)


def _drop_clips(model: Any, encodings: Mapping[str, tuple[float, int]]) -> None:
    """Take out each Clip or Relu that the integer range behind it does by itself, in place.

    A fused activation is one tensor in TFLite and two in ONNX (convolution, Clip). What writes the
    first then writes the second, under the canonical name.
    """
    constants = onnx_file.stored_constants(model)
    for node in reversed(list(model.graph.node)):
        if node.op_type not in _CLIPPING or node.output[0] not in encodings:
            continue
        makers = {output: writer for writer in model.graph.node for output in writer.output}
        source = next((name for name in node.input if name not in constants), "")
        users = [other for other in model.graph.node if source in other.input]
        if len(users) != 1 or source not in makers or source in encodings:
            continue
        scale, zero_point = encodings[node.output[0]]
        limits = _limits(node, constants)
        tolerance = scale * (0.5 + 1e-3)  # what rounding the zero_point moves the range by
        if limits is None:
            continue
        low, high = limits
        if low is not None and (-128 - zero_point) * scale < low - tolerance:
            continue
        if high is not None and (127 - zero_point) * scale > high + tolerance:
            continue
        maker = makers[source]
        maker.output[list(maker.output).index(source)] = node.output[0]
        model.graph.node.remove(node)


def _limits(node: Any, constants: Mapping[str, Any]) -> tuple[float | None, float | None] | None:
    """(least, largest) number that an activation lets through; None of one that has no such."""
    if node.op_type == "Relu":
        return 0.0, None
    values = [constants.get(name) if name else None for name in node.input]
    if node.op_type == "Clip":
        low, high = [*values[1:], None, None][:2]
        return (
            None if low is None else float(low.reshape(())),
            None if high is None else float(high.reshape(())),
        )
    numbers = [value for value in values if value is not None]
    if len(values) != 2 or len(numbers) != 1 or numbers[0].size != 1:
        return None
    limit = float(numbers[0].reshape(()))
    return (limit, None) if node.op_type == "Max" else (None, limit)


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
    all_encodings = {name: encoding for name, encoding in encodings.items() if name in in_graph}
    constants = onnx_file.stored_constants(model)
    # what is only moved first: an activation keeps the numbers behind it, if there are any
    for kinds in (onnx_file.MOVED, keeping):
        pairs = [
            (name, node.output[0])
            for node in model.graph.node
            if node.op_type in kinds
            and (node.op_type not in _CLIPPING or _limits(node, constants) is not None)
            for name in [source for source in node.input if source not in constants][:1]
        ]
        for source, target in reversed(pairs):
            if target in all_encodings:
                all_encodings.setdefault(source, all_encodings[target])
        for source, target in pairs:
            if source in all_encodings:
                all_encodings.setdefault(target, all_encodings[source])
    return all_encodings


def _spell_certain(model: Any) -> None:
    """Write a softmax of one entry, which is 1, as x == x, in place.

    onnxruntime's int8 kernel gives 0 there, seen in 1.31; e.g. attention over one step.
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


def layer_nodes(
    model: Any, layers: Collection[str], outer_names: Mapping[str, str]
) -> Iterator[tuple[Any, str, bool]]:
    """(node, tensor that it writes in the canonical graph) of convolutions and dense layers.

    Third is whether the layer's activation is an operator of the file. An activation that is one,
    and what turns the layer's output around, are part of the layer: they lie between the node and a
    tensor that the canonical graph knows.

    Args:
        model: Float or quantized.
        layers: What the canonical graph's layers write.
        outer_names: Canonical names of inputs and outputs that have another name in the file.
    """
    whole = _canonical_output(model, layers, outer_names)
    laid_out = {node.output[0]: names for node, names in onnx_blocks.convolutions(model)}
    sums = _sums(model)
    for node in model.graph.node:
        if node.op_type not in onnx_file.WEIGHTED:
            continue
        written = (node.output[0], *laid_out.get(node.output[0], ()))
        if node.output[0] in sums:
            written = (*written, sums[node.output[0]][0])
        output = next(filter(None, map(whole, written)), None)
        if output is not None:
            yield node, *output


def _sums(model: Any) -> dict[str, tuple[str, str]]:
    """(sum, stored summand) behind each product with integer weights, by the product: the bias of a
    dense layer that takes more axes than a Gemm, as PyTorch's exporter writes it."""
    readers = onnx_file.readers(model.graph.node)
    outputs = {value.name for value in model.graph.output}
    behind = {}
    for node in model.graph.node:
        users = readers.get(node.output[0], [])
        if node.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
            if node.output[0] not in outputs:
                behind[node.output[0]] = users[0]
    if not behind:
        return {}
    whole = onnx_file.without_constant_nodes(model)
    constants = onnx_file.stored_constants(whole)
    makers = {name: node for node in whole.graph.node for name in node.output}
    sums = {}
    for product, add in behind.items():
        weights = _dequantized(makers[product], 1, makers, constants)
        summand = next((name for name in add.input if name != product), "")
        if weights is None or summand not in constants:
            continue
        if constants[summand].shape[-1:] == (constants[summand].size,) == weights[0].shape[-1:]:
            sums[product] = add.output[0], summand
    return sums


def _canonical_output(
    model: Any, names: Collection[str], outer_names: Mapping[str, str]
) -> Callable[[str], tuple[str, bool] | None]:
    """Tells which of some canonical tensors a tensor of the file becomes, by activations and moves
    alone, and whether an activation lies between."""
    readers = onnx_file.readers(model.graph.node)

    def whole(name: str, activated: bool = False) -> tuple[str, bool] | None:
        if outer_names.get(name, name) in names:
            return outer_names.get(name, name), activated
        users = readers.get(name, [])
        for user in users:
            own = user.op_type in _CLIPPING
            if user.op_type in _BEHIND and (len(users) == 1 or not own):
                if output := whole(user.output[0], activated or own):
                    return output
        return None

    return whole


def _number(
    node: Any, constants: Mapping[str, Any], makers: Mapping[str, Any] | None = None
) -> tuple[float, int]:
    """(scale, int8 zero_point) of a QuantizeLinear or DequantizeLinear of one scale."""
    int8 = onnx_file.package().TensorProto.INT8
    zero_point: Any = np.uint8(0)
    before = (makers or {}).get(node.input[0])
    if len(node.input) > 2 and node.input[2]:
        zero_point = constants[node.input[2]]
    elif node.input[0] in constants:
        zero_point = constants[node.input[0]].dtype.type(0)
    elif node.op_type == "DequantizeLinear" and before is not None and len(before.input) > 2:
        zero_point = np.zeros_like(constants[before.input[2]])
    elif onnx_file.attribute(before or node, "output_dtype", 0) == int8:
        zero_point = np.int8(0)
    shift = 128 if zero_point.dtype == np.uint8 else 0
    return float(constants[node.input[1]].reshape(())), int(zero_point.reshape(())) - shift


def _dequantized(
    node: Any, place: int, makers: Mapping[str, Any], constants: Mapping[str, Any]
) -> tuple[Any, Any] | None:
    """(int8 or int32, scale) of a layer's weights or bias behind a DequantizeLinear, or None."""
    source, perm = makers.get(node.input[place]), None
    if source is not None and source.op_type == "Transpose":
        perm = onnx_file.attribute(source, "perm", None)
        source = makers.get(source.input[0])
        perm = perm or [1, 0]
    if source is None or source.op_type != "DequantizeLinear":
        return None
    scale = constants[source.input[1]]
    zero_point, values = None, constants.get(source.input[0])
    if len(source.input) > 2 and source.input[2]:
        zero_point = constants[source.input[2]]
    axis = onnx_file.attribute(source, "axis", 1)
    if values is None:  # a float constant that the file rounds
        before = makers.get(source.input[0])
        if before is None or before.input[0] not in constants or zero_point is None:
            return None
        real, limits = constants[before.input[0]], np.iinfo(zero_point.dtype)
        sizes = [1] * real.ndim
        sizes[axis if scale.size > 1 else 0] = -1
        steps = np.rint(real / scale.reshape(sizes)) + zero_point.reshape(-1)[0]
        values = np.clip(steps, limits.min, limits.max).astype(zero_point.dtype)
    elif values.dtype.name == "int4":  # of the package ml_dtypes
        values = values.astype(np.int8)
    name = short_name(node.output[0])
    shift = 128 if values.dtype == np.uint8 else 0
    zeros = np.zeros(1) if zero_point is None else np.atleast_1d(zero_point)
    if (zeros != shift).any():
        raise InvalidModelError(
            f"expected the {'weights' if place == 1 else 'bias'} of {node.op_type} {name} with "
            f"zero_point {shift}, as TFLite's have none, got {int(zeros[zeros != shift][0])}; "
            f"quantize them symmetrically"
        )
    if shift:
        values = (values.astype(np.int16) - shift).astype(np.int8)
    if perm is not None:
        values, axis = values.transpose(perm), list(perm).index(axis % values.ndim)
    of_outputs = _axis(node) if place == 1 else 0
    if scale.size > 1 and axis % values.ndim != of_outputs % values.ndim:
        raise InvalidModelError(
            f"expected scales of the output channels of {node.op_type} {name}, axis {of_outputs}, "
            f"got them of axis {axis}; quantize per output channel"
        )
    return values, scale


def _bits(node: Any, makers: Mapping[str, Any], constants: Mapping[str, Any]) -> int:
    """In which each weight behind a DequantizeLinear is stored."""
    source = makers[node.input[1]]
    if source.op_type == "Transpose":
        source = makers[source.input[0]]
    values = constants.get(source.input[0])
    return 4 if values is not None and values.dtype.name == "int4" else 8


def _to_canonical(node: Any, weights: Any, *, depthwise: bool) -> Any:
    """Weights of a node in TFLite's layout, of one spatial axis those of a picture of one row."""
    if node.op_type in ("Conv", "ConvTranspose") and weights.ndim == 3:
        weights = weights[:, :, None]
    if node.op_type == "ConvTranspose":
        return weights.transpose((1, 2, 3, 0))
    if node.op_type == "Conv":
        return weights.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    return weights if onnx_file.attribute(node, "transB", 0) else weights.T


def _from_canonical(node: Any, weights: Any, *, depthwise: bool, like: tuple[int, ...]) -> Any:
    """Weights in TFLite's layout as a node takes them.

    Args:
        like: Shape of the node's own weights.
    """
    if node.op_type in ("Conv", "ConvTranspose"):
        first = node.op_type == "ConvTranspose" or depthwise
        turned = weights.transpose((3, 0, 1, 2) if first else (0, 3, 1, 2))
        row = len(like) == 3 and turned.shape[2] == 1
        return turned[:, :, 0] if row else turned
    return weights if onnx_file.attribute(node, "transB", 0) else weights.T
