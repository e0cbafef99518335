"""The canonical graph of a TFLite flatbuffer: operators, constants and quantization.

The module reads and writes the numbers of the file; it runs nothing. It reads the first subgraph
only.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError, MissingDependencyError, reason
from edgekit.graph import nibbles
from edgekit.graph.plain import ACTIVATIONS, free_name


class Weights(NamedTuple):
    """An operator with weights: the kind of layer, and the places of its input and its bias."""

    kind: str
    input: int
    bias: int


#: Operators with weights, by kind.
WEIGHTS = {
    "CONV_2D": Weights("conv", 0, 2),
    "DEPTHWISE_CONV_2D": Weights("depthwise", 0, 2),
    "FULLY_CONNECTED": Weights("dense", 0, 2),
    "TRANSPOSE_CONV": Weights("transposed", 2, 3),
}
#: Versions of operators that take float inputs and int8 weights with a scale for each channel.
HYBRID = {"CONV_2D": 5, "FULLY_CONNECTED": 12}
#: Versions of DEQUANTIZE that read integers with a scale for each channel, by their bits.
REAL = {8: 5, 4: 6}
#: Versions of operators that take int16 activations, where they are not those of int8.
WIDE = {
    "ADD": 3, "AVERAGE_POOL_2D": 3, "CONCATENATION": 3, "CONV_2D": 4, "DEPTHWISE_CONV_2D": 5,
    "FULLY_CONNECTED": 7, "LEAKY_RELU": 2, "LOGISTIC": 3, "MAX_POOL_2D": 3, "MEAN": 3, "MUL": 4,
    "PAD": 3, "RELU": 3, "RELU6": 3, "SOFTMAX": 3, "SUB": 5, "TANH": 3, "TRANSPOSE_CONV": 4,
}  # fmt: skip
#: The least and the largest number that an activation lets through.
BOUNDS = {
    "RELU": (0.0, math.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}
#: A part of a tensor's name that is a number of the process that created it.
_COUNTED = re.compile(r"(^|[/;])\d+(?=$|[/;])")
#: Ends the name of what a hard swish multiplies its input with.
GATE = "__gate"
_ACTIVATIONS = dict(enumerate(ACTIVATIONS))


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        kind: TFLite's name, e.g. ``CONV_2D``.
        inputs: Names of tensors, constants too; an input left out is ``""``.
        outputs: Names of tensors.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def touches(self, names: Collection[str]) -> bool:
        """Whether it reads or writes one of these tensors."""
        return any(name in names for name in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class Layer:
    """An operator with weights.

    Attributes:
        kind: ``conv``, ``depthwise``, ``dense`` or ``transposed``.
        input: Name of the activation that it reads.
        weights: Name of its constant: ``[O, H, W, I]``, ``[1, H, W, O]`` of a depthwise layer or
            ``[O, I]`` of a dense one.
        bias: Name of its constant ``[O]``, or None.
        output: Name of the activation that it writes.
        activation: What is fused behind it: ``none``, ``relu``, ``relu6``, …
        strides: Height and width.
        dilation: Height and width.
        same: Whether borders are padded with zeros.
    """

    kind: str
    input: str
    weights: str
    bias: str | None
    output: str
    activation: str
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    same: bool = False

    @property
    def axis(self) -> int:
        """Axis of the output channels in the weights."""
        return 3 if self.kind == "depthwise" else 0

    @property
    def short(self) -> str:
        """The output's name without what the converter put before the last ``;`` and ``/``."""
        return short_name(self.output)


@dataclass(frozen=True)
class Quantization:
    """scale and zero_point as a file has them.

    Attributes:
        scale: float32 ``[1]``, or one per channel.
        zero_point: int64, as many.
        axis: Channel axis; 0 and without meaning when there is one scale.
    """

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]
    axis: int = 0


class Graph:
    """A flatbuffer that can be read, changed and written again.

    Args:
        content: The flatbuffer.
        distinct: Name a tensor anew whose name another has.

    Raises:
        InvalidModelError: If the bytes are no TFLite model, or two tensors share a name.
        MissingDependencyError: If ai-edge-litert is not installed.
    """

    def __init__(self, content: bytes, *, distinct: bool = False) -> None:
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError:
            raise MissingDependencyError("ai-edge-litert", "convert") from None
        if content[4:8] != b"TFL3":
            raise InvalidModelError("not a TFLite model; expected the flatbuffer id TFL3")
        try:
            self._model = schema.ModelT.InitFromPackedBuf(content, 0)
            self._subgraph = self._model.subgraphs[0]
        except Exception as exc:  # flatbuffers raises struct.error, IndexError, TypeError, ...
            raise InvalidModelError(
                f"the TFLite model cannot be read (cut short?): {reason(exc)}"
            ) from None
        self._schema = schema
        for buffer in self._model.buffers:
            if buffer.offset > 1:  # what is too large for a flatbuffer lies behind it
                data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
                buffer.data, buffer.offset, buffer.size = data, 0, 0
        self._kinds = _names(schema.BuiltinOperator)
        self._dtypes: dict[int, np.dtype[Any]] = {
            schema.TensorType.FLOAT32: np.dtype(np.float32),
            schema.TensorType.FLOAT16: np.dtype(np.float16),
            schema.TensorType.INT8: np.dtype(np.int8),
            schema.TensorType.INT16: np.dtype(np.int16),
            schema.TensorType.INT32: np.dtype(np.int32),
            schema.TensorType.INT64: np.dtype(np.int64),
            schema.TensorType.UINT8: np.dtype(np.uint8),
            schema.TensorType.BOOL: np.dtype(np.bool_),
        }
        self._tensors: dict[str, Any] = {}
        for tensor in self._subgraph.tensors:
            name = tensor.name.decode(errors="replace")
            if distinct and name in self._tensors:
                name = free_name(f"{name}__{len(self._tensors)}", self._tensors)
                tensor.name = name.encode()
            if name in self._tensors:
                raise InvalidModelError(f"expected tensors of different names, got {name!r} twice")
            self._tensors[name] = tensor
        self._order = list(self._tensors)
        self._original = len(self._subgraph.operators)
        self._separate()

    def _separate(self) -> None:
        """Give every operator float constants of its own.

        The converter keeps constants of the same content once, e.g. the zeros of all layers without
        a bias, and a layer that is called twice has one kernel; each use gets integers of its own.
        Their bytes stay shared until they differ.
        """
        seen: set[int] = set()
        for position, operator in enumerate(self._subgraph.operators):
            inputs = [] if operator.inputs is None else [int(index) for index in operator.inputs]
            kind = self._operator(operator).kind
            for place, index in enumerate(inputs):
                name = self._order[index] if index >= 0 else ""
                if not self.is_constant(name):
                    continue
                if kind not in WEIGHTS and self.dtype(name) != np.float32:
                    continue
                # a bias may have as many axes as what it is added to
                bias = kind in WEIGHTS and place == WEIGHTS[kind].bias
                flat = bias and len(self.shape(name)) != 1
                if index in seen or flat:
                    copied = copy.copy(self._tensors[name])
                    if flat:
                        copied.shape = np.array([int(np.prod(self.shape(name)))], np.int32)
                    fresh = free_name(f"{name}__{position}", self._tensors)
                    copied.name = fresh.encode()
                    inputs[place] = len(self._order)
                    self._subgraph.tensors.append(copied)
                    self._tensors[fresh] = copied
                    self._order.append(fresh)
                seen.add(index)
            operator.inputs = inputs

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return tuple(self._order[i] for i in self._subgraph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(self._order[i] for i in self._subgraph.outputs)

    @property
    def named_inputs(self) -> dict[str, str]:
        """Tensor by the name that the signature gives to an input; without one, by its own."""
        return self._signed("inputs") or {name: name for name in self.inputs}

    @property
    def named_outputs(self) -> dict[str, str]:
        """The same of the outputs."""
        return self._signed("outputs") or {name: name for name in self.outputs}

    def _signed(self, side: str) -> dict[str, str]:
        signatures = self._model.signatureDefs or []
        return {
            each.name.decode(): self._order[each.tensorIndex]
            for signature in signatures[:1]
            for each in getattr(signature, side)
        }

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors, constants too."""
        return tuple(self._order)

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the tensors that something reads or writes, constants too."""
        names = {*self.inputs, *self.outputs}
        for operator in self.operators:
            names.update(operator.inputs, operator.outputs)
        return tuple(name for name in self._order if name in names)

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Operators in order of execution."""
        return tuple(self._operator(raw) for raw in self._subgraph.operators)

    @property
    def loops(self) -> tuple[str, ...]:
        """Layers that run other subgraphs (WHILE, IF), by the path of their names."""
        outputs = [o.outputs[0] for o in self.operators if o.kind in ("WHILE", "IF")]
        return tuple(name.split("/while")[0].removesuffix("/PartitionedCall") for name in outputs)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Operators with constant weights, in order of execution.

        Weights are those too that a DEQUANTIZE makes of int8 ones.
        """
        layers = []
        stored = self._dequantized()
        for raw in self._subgraph.operators:
            operator = self._operator(raw)
            if operator.kind not in WEIGHTS:
                continue
            weights = stored.get(operator.inputs[1], operator.inputs[1])
            if not self.is_constant(weights):
                continue
            kind, place, behind = WEIGHTS[operator.kind]
            bias = operator.inputs[behind] if len(operator.inputs) > behind else ""
            if bias and not self.is_constant(bias):
                continue
            options = raw.builtinOptions
            spatial = kind != "dense"
            dilated = kind in ("conv", "depthwise")
            layers.append(
                Layer(
                    kind=kind,
                    input=operator.inputs[place],
                    weights=weights,
                    bias=bias or None,
                    output=operator.outputs[0],
                    activation=_ACTIVATIONS[options.fusedActivationFunction].lower(),
                    strides=(options.strideH, options.strideW) if spatial else (1, 1),
                    dilation=(
                        (options.dilationHFactor, options.dilationWFactor) if dilated else (1, 1)
                    ),
                    same=spatial and options.padding == self._schema.Padding.SAME,
                )
            )
        return tuple(layers)

    def _dequantized(self) -> dict[str, str]:
        """Constant of 8 or 4 bits by the real tensor that a DEQUANTIZE makes of it."""
        return {
            operator.outputs[0]: operator.inputs[0]
            for operator in self.operators
            if operator.kind == "DEQUANTIZE"
            and self.is_constant(operator.inputs[0])
            and (self.dtype(operator.inputs[0]) == np.int8 or self.bits(operator.inputs[0]) == 4)
        }

    def kernel(self, layer: Layer) -> bytes:
        """Kind, size and numbers of a layer's weights: the same of layers that share them."""
        values = self.constant(layer.weights)
        return repr((layer.kind, values.shape)).encode() + values.tobytes()

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Ends that an operator or the activation behind it sets to its values, by tensor name."""
        bounds = {
            operator.outputs[0]: BOUNDS[operator.kind]
            for operator in self.operators
            if operator.kind in BOUNDS
        }
        for raw in self._subgraph.operators:
            activation = getattr(raw.builtinOptions, "fusedActivationFunction", 0)
            kind = _ACTIVATIONS.get(activation, "NONE")
            if kind in BOUNDS:
                bounds[self._order[raw.outputs[0]]] = BOUNDS[kind]
        return bounds

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is stored in the file."""
        if name not in self._tensors:
            return False
        data = self._model.buffers[self._tensors[name].buffer].data
        return data is not None and len(data) > 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; batch is 1."""
        shape = self._tensors[name].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Write another size of a tensor that is computed."""
        tensor = self._tensors[name]
        tensor.shape, tensor.shapeSignature = np.asarray(shape, np.int32), None

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """dtype of a tensor, or None for one that numpy has not."""
        return self._dtypes.get(self._tensors[name].type)

    def bits(self, name: str) -> int:
        """Bits of a number of a tensor: 4 of int4, which numpy has not; 0 of a dtype not known."""
        if self._tensors[name].type == self._schema.TensorType.INT4:
            return 4
        dtype = self.dtype(name)
        return 0 if dtype is None else 8 * dtype.itemsize

    def constant(self, name: str) -> npt.NDArray[Any]:
        """A stored tensor, as a copy; int4 as int8."""
        tensor = self._tensors[name]
        data = np.asarray(self._model.buffers[tensor.buffer].data, np.uint8)
        if self.bits(name) == 4:
            return nibbles.unpacked(data, self.shape(name))
        values = data.view(self._dtypes[tensor.type])
        if tensor.sparsity is not None:
            return _dense(values, self.shape(name), tensor.sparsity)
        return values.reshape(self.shape(name)).copy()

    def quantization(self, name: str) -> Quantization | None:
        """scale and zero_point of a tensor, or None without."""
        stored = self._tensors[name].quantization
        if stored is None or stored.scale is None or not len(stored.scale):
            return None
        zero_point = [0] * len(stored.scale) if stored.zeroPoint is None else stored.zeroPoint
        return Quantization(
            np.asarray(stored.scale, np.float32),
            np.asarray(zero_point, np.int64),
            int(stored.quantizedDimension),
        )

    def set_constant(self, name: str, values: npt.NDArray[Any]) -> None:
        """Replace a stored tensor by one of the same shape and dtype.

        A buffer that several tensors share becomes this tensor's own.
        """
        tensor = self._tensors[name]
        expected = self.constant(name)
        if values.shape != expected.shape or values.dtype != expected.dtype:
            raise ValueError(
                f"{name}: expected {expected.dtype} {expected.shape}, "
                f"got {values.dtype} {values.shape}"
            )
        if sum(other.buffer == tensor.buffer for other in self._subgraph.tensors) > 1:
            tensor.buffer = len(self._model.buffers)
            self._model.buffers.append(self._schema.BufferT())
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._model.buffers[tensor.buffer].data = raw

    def set_quantization(self, name: str, quantization: Quantization) -> None:
        """Replace scale and zero_point of a tensor that has them."""
        parameters = self._tensors[name].quantization
        parameters.scale = np.asarray(quantization.scale, np.float32)
        parameters.zeroPoint = np.asarray(quantization.zero_point, np.int64)
        parameters.quantizedDimension = quantization.axis

    def make_integer(
        self,
        name: str,
        quantization: Quantization,
        values: npt.NDArray[Any] | None = None,
        *,
        dtype: str = "int8",
    ) -> None:
        """Turn a float tensor into an integer one, of this dtype or of that of a constant's
        numbers; int4 are given as int8."""
        tensor = self._tensors[name]
        if values is not None:
            self.store(name, values)
            if dtype == "int4":
                tensor.type = self._schema.TensorType.INT4
                self._model.buffers[tensor.buffer].data = nibbles.packed(values)
        else:
            tensor.type = getattr(self._schema.TensorType, dtype.upper())
        tensor.quantization = self._schema.QuantizationParametersT()
        self.set_quantization(name, quantization)

    def make_hybrid(self, position: int) -> None:
        """Let an operator take float inputs and int8 weights with a scale for each channel.

        Args:
            position: Place of a CONV_2D or FULLY_CONNECTED in :attr:`operators`.
        """
        raw = self._subgraph.operators[position]
        kind = self._operator(raw).kind
        raw.opcodeIndex = self._code(kind, HYBRID[kind])
        if kind == "FULLY_CONNECTED":
            raw.builtinOptions = copy.copy(raw.builtinOptions)
            raw.builtinOptions.asymmetricQuantizeInputs = True

    def make_wide(self, position: int) -> None:
        """Let an operator take int16 activations, of any scale.

        Args:
            position: Place in :attr:`operators`.
        """
        raw = self._subgraph.operators[position]
        kind = self._operator(raw).kind
        if kind in WIDE:
            raw.opcodeIndex = self._code(kind, WIDE[kind])
        if kind in ("ADD", "SUB"):  # by default a scale is taken for a power of two
            raw.builtinOptions = copy.copy(raw.builtinOptions)
            raw.builtinOptions.potScaleInt16 = False

    def add_conversion(self, kind: str, source: str, name: str, *, version: int = 2) -> str:
        """Append QUANTIZE or DEQUANTIZE of a tensor; what it writes is float until
        :meth:`make_integer`.

        Args:
            kind: The operator.
            source: What it reads.
            name: Name of the new tensor; if it is taken, a number is added.
            version: Of the operator; :data:`REAL` has those that read a scale for each channel.
        """
        while name in self._tensors:
            name = f"{name}_"
        tensor = copy.copy(self._tensors[source])
        tensor.name, tensor.type = name.encode(), self._schema.TensorType.FLOAT32
        tensor.quantization, tensor.buffer = None, 0
        self._subgraph.tensors.append(tensor)
        self._tensors[name] = tensor
        self._order.append(name)
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._code(kind, version)
        operator.inputs, operator.outputs = [self._order.index(source)], [len(self._order) - 1]
        self._subgraph.operators.append(operator)
        return name

    def split(self, name: str, before: str) -> str:
        """Append a QUANTIZE that writes a tensor from a new float one; returns that one's name.

        Who writes the tensor has to be told (:meth:`set_outputs_of`).
        """
        fresh = self.add_conversion("QUANTIZE", name, before)
        raw = self._subgraph.operators[-1]
        raw.inputs, raw.outputs = raw.outputs, raw.inputs
        return fresh

    def set_outputs_of(self, position: int, names: Sequence[str]) -> None:
        """Let an operator write other tensors."""
        places = {name: place for place, name in enumerate(self._order)}
        self._subgraph.operators[position].outputs = [places[name] for name in names]

    def reorder(self, positions: Sequence[int]) -> None:
        """Put operators into another order of execution, by their places."""
        operators = self._subgraph.operators
        self._subgraph.operators = [operators[position] for position in positions]
        self._original = len(self._subgraph.operators)

    def set_inputs(self, position: int, names: Sequence[str]) -> None:
        """Let an operator read other tensors."""
        places = {name: place for place, name in enumerate(self._order)}
        indices = [places[name] if name else -1 for name in names]
        self._subgraph.operators[position].inputs = indices

    def spell_products(self) -> bool:
        """Write NEG as a product with -1 and SQUARE as one of two equal factors, in place.

        LiteRT's int8 NEG ignores the scales, and SQUARE has no int8 kernel.

        Returns:
            Whether there was one.
        """
        places = [i for i, each in enumerate(self.operators) if each.kind in ("NEG", "SQUARE")]
        for place in places:
            raw = self._subgraph.operators[place]
            source = factor = int(raw.inputs[0])
            if self._operator(raw).kind == "NEG":
                factor = self._order.index(self._add_constant(np.array(-1, np.float32)))
            raw.opcodeIndex = self._code("MUL", 1)
            raw.inputs = [source, factor]
            raw.builtinOptionsType = self._schema.BuiltinOptions.MulOptions
            raw.builtinOptions = self._schema.MulOptionsT()
        return bool(places)

    def flatten_dense(self) -> bool:
        """Bring what a dense layer flattens by itself to two axes before it, in place.

        Returns:
            Whether there was such a layer.
        """
        flattened = False
        for position in reversed(range(len(self._subgraph.operators))):
            raw = self._subgraph.operators[position]
            operator = self._operator(raw)
            if operator.kind != "FULLY_CONNECTED" or raw.builtinOptions.keepNumDims:
                continue
            source, width = operator.inputs[0], self.shape(operator.inputs[1])[1]
            if len(self.shape(source)) == 2:
                continue
            flat = self.add_reshape(source, (-1, width))
            self.set_inputs(position, (flat, *operator.inputs[1:]))
            self._subgraph.operators.insert(position, self._subgraph.operators.pop())
            flattened = True
        return flattened

    def spell_hard_tanh(self) -> bool:
        """Write an activation from -1 to 1, fused or not, as a minimum and a maximum, in place.

        Returns:
            Whether there was one.
        """
        schema, operators = self._schema, list(self._subgraph.operators)
        number = ACTIVATIONS.index("RELU_N1_TO_1")
        order: list[int] = []
        for position, raw in enumerate(operators):
            alone = self._operator(raw).kind == "RELU_N1_TO_1"
            behind = getattr(raw.builtinOptions, "fusedActivationFunction", 0) == number
            if not alone:
                order.append(position)
            if not alone and not behind:
                continue
            name = self._order[raw.outputs[0]]
            if alone:
                source = self._order[raw.inputs[0]]
            else:
                source = self._add_tensor(self.shape(name), schema.TensorType.FLOAT32)
                raw.builtinOptions = copy.copy(raw.builtinOptions)
                raw.builtinOptions.fusedActivationFunction = 0
                raw.outputs = [self._order.index(source)]
            limits = [self._add_constant(np.array(limit, np.float32)) for limit in (1, -1)]
            for kind, limit in zip(("MINIMUM", "MAXIMUM"), limits, strict=True):
                options = schema.MaximumMinimumOptionsT()
                inputs = (source, limit)
                source = self._add(kind, inputs, self.shape(name), "MaximumMinimumOptions", options)
                order.append(len(self._subgraph.operators) - 1)
            self._subgraph.operators[-1].outputs = [self._order.index(name)]
        spelled = len(order) != len(operators)
        self.reorder(order)
        return spelled

    def spell_hard_swishes(self) -> bool:
        """Write HARD_SWISH as x (ReLU6(x + 3) / 6), in place.

        XNNPACK has no int8 kernel of it, and TFLite's own takes three times as long as the float
        one and is less exact than these three.

        Returns:
            Whether there was one.
        """
        schema, operators = self._schema, list(self._subgraph.operators)
        relu6 = ACTIVATIONS.index("RELU6")
        order: list[int] = []
        for position, raw in enumerate(operators):
            operator = self._operator(raw)
            if operator.kind != "HARD_SWISH":
                order.append(position)
                continue
            x, y = operator.inputs[0], operator.outputs[0]
            three, sixth = (self._add_constant(np.array([n], np.float32)) for n in (3, 1 / 6))
            cut, gate = schema.AddOptionsT(), schema.MulOptionsT()
            cut.fusedActivationFunction = relu6
            added = self._add("ADD", (x, three), self.shape(x), "AddOptions", cut)
            scaled = self._add("MUL", (added, sixth), self.shape(x), "MulOptions", gate)
            self._add("MUL", (x, scaled), self.shape(x), "MulOptions", schema.MulOptionsT())
            self._subgraph.operators[-1].outputs = [self._order.index(y)]
            count = len(self._subgraph.operators)
            order += range(count - 3, count)
            self.rename({added: f"{y}{GATE}__cut", scaled: f"{y}{GATE}"})
        spelled = len(order) != len(operators)
        self.reorder(order)
        if spelled:
            self.compact()
        return spelled

    def merge_hard_swishes(self, kept: Collection[str] = ()) -> bool:
        """Put HARD_SWISH in place of x ReLU6(x + 3) / 6 that is spelled out, in place.

        Args:
            kept: Tensors that stay, constants too.

        Returns:
            Whether there was one.
        """
        operators = self.operators
        raws = {
            each.outputs[0]: raw
            for each, raw in zip(operators, self._subgraph.operators, strict=True)
        }
        makers = {each.outputs[0]: each for each in operators}
        readers = Counter(name for each in operators for name in dict.fromkeys(each.inputs))
        fixed = {*self.outputs, *kept}

        def activation(operator: Operator) -> str:
            options = raws[operator.outputs[0]].builtinOptions
            return _ACTIVATIONS[getattr(options, "fusedActivationFunction", 0)]

        def other(operator: Operator | None, number: float) -> str:
            """The operand beside one number; empty where there is another."""
            pairs = [] if operator is None else [operator.inputs, operator.inputs[::-1]]
            for one, constant in pairs:
                real = self.is_constant(constant) and self.dtype(constant) == np.float32
                if real and self.constant(constant).size == 1 and constant not in kept:
                    value = float(self.constant(constant).reshape(()))
                    return one if abs(value - number) <= 1e-6 * number else ""
            return ""

        def maker(name: str, kind: str, behind: str = "NONE") -> Operator | None:
            """What writes a tensor that only one operator reads."""
            operator = makers.get(name)
            if operator is None or operator.kind != kind or activation(operator) != behind:
                return None
            return operator if readers[name] == 1 and name not in fixed else None

        def raised(cut: str) -> str:
            """x of ReLU6(x + 3)."""
            return other(maker(cut, "ADD", "RELU6"), 3.0)

        def swished(operator: Operator) -> str:
            """x of the whole, where an operator is the last of it."""
            product = maker(other(operator, 1 / 6), "MUL")
            pairs = [] if product is None else [product.inputs, product.inputs[::-1]]
            for source, cut in pairs:  # (x * cut) / 6
                if raised(cut) == source:
                    return source
            for source, share in (operator.inputs, operator.inputs[::-1]):  # x * (cut / 6)
                cut = other(maker(share, "MUL"), 1 / 6)
                if cut and raised(cut) == source:
                    return source
            return ""

        merged = False
        for operator in operators:
            if operator.kind != "MUL" or activation(operator) != "NONE":
                continue
            if not (x := swished(operator)):
                continue
            raw, merged = raws[operator.outputs[0]], True
            raw.opcodeIndex = self._code("HARD_SWISH", 1)
            raw.inputs = [self._order.index(x)]
            raw.builtinOptionsType = self._schema.BuiltinOptions.HardSwishOptions
            raw.builtinOptions = self._schema.HardSwishOptionsT()
        if merged:
            self._drop_unread()
            self.compact()
        return merged

    def _drop_unread(self) -> None:
        """Take out operators whose outputs nothing reads, in place."""
        needed = {int(index) for index in self._subgraph.outputs}
        kept = []
        for raw in reversed(self._subgraph.operators):
            if needed.intersection(map(int, raw.outputs)):
                kept.append(raw)
                needed.update(map(int, () if raw.inputs is None else raw.inputs))
        self._subgraph.operators = kept[::-1]
        self._original = len(kept)

    def fused(self) -> frozenset[str]:
        """Tensors whose operator has an activation behind it."""
        return frozenset(
            self._order[raw.outputs[0]]
            for raw in self._subgraph.operators
            if getattr(raw.builtinOptions, "fusedActivationFunction", 0)
        )

    def fold(self) -> None:
        """Store weights of float16 or sparse ones as the float32 that is computed with, in place.

        A chain of both, DENSIFY and then DEQUANTIZE, is one constant.
        """
        kept = []
        for raw in self._subgraph.operators:
            operator = self._operator(raw)
            source = operator.inputs[0] if operator.inputs else ""
            if operator.kind not in ("DEQUANTIZE", "DENSIFY") or not self.is_constant(source):
                kept.append(raw)
                continue
            values = self.constant(source)
            self.store(
                operator.outputs[0],
                values.astype(np.float32) if operator.kind == "DEQUANTIZE" else values,
            )
        self._subgraph.operators, self._original = kept, len(kept)

    def store(self, name: str, values: npt.NDArray[Any]) -> None:
        """Turn a tensor into a constant, of any size and dtype."""
        tensor = self._tensors[name]
        kinds = {dtype: number for number, dtype in self._dtypes.items()}
        tensor.type, tensor.shape = kinds[values.dtype], np.asarray(values.shape, np.int32)
        tensor.shapeSignature, tensor.sparsity = None, None
        tensor.buffer = len(self._model.buffers)
        self._model.buffers.append(self._schema.BufferT())
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._model.buffers[tensor.buffer].data = raw

    def join_layers(self) -> None:
        """Let layers with equal weights, or biases, and equal scales have one tensor, in place."""
        places = {name: place for place, name in enumerate(self._order)}
        known: dict[tuple[Any, ...], int] = {}
        for layer in self.layers:
            for name in (layer.weights, layer.bias):
                quantization = self.quantization(name) if name else None
                if not name or quantization is None:
                    continue
                values = self.constant(name)
                key = (
                    self.bits(name),
                    values.shape,
                    values.tobytes(),
                    quantization.scale.tobytes(),
                )
                known.setdefault(key, places[name])
                places[name] = known[key]
        for raw in self._subgraph.operators:
            raw.inputs = [
                places[self._order[index]] if index >= 0 else -1
                for index in ([] if raw.inputs is None else map(int, raw.inputs))
            ]

    def compact(self) -> None:
        """Leave out tensors that nothing reads or writes, in place."""
        used = {int(index) for index in (*self._subgraph.inputs, *self._subgraph.outputs)}
        for raw in self._subgraph.operators:
            for indices in (raw.inputs, raw.outputs, raw.intermediates):
                used.update(int(index) for index in (() if indices is None else indices))
        kept = sorted(used - {-1})
        moved = {-1: -1, **{index: place for place, index in enumerate(kept)}}
        subgraph = self._subgraph
        subgraph.tensors = [subgraph.tensors[index] for index in kept]
        subgraph.inputs = [moved[int(index)] for index in subgraph.inputs]
        subgraph.outputs = [moved[int(index)] for index in subgraph.outputs]
        for raw in subgraph.operators:
            for side in ("inputs", "outputs", "intermediates"):
                indices = getattr(raw, side)
                if indices is not None:
                    setattr(raw, side, [moved[int(index)] for index in indices])
        for signed in (self._model.signatureDefs or [])[:1]:
            for each in (*signed.inputs, *signed.outputs):
                each.tensorIndex = moved[int(each.tensorIndex)]
        self._order = [self._order[index] for index in kept]
        self._tensors = {name: self._tensors[name] for name in self._order}

    def halve(self, smaller: Mapping[str, npt.NDArray[np.float32]] = MappingProxyType({})) -> None:
        """Store float32 constants as float16, with a DEQUANTIZE each, in place; as fold() undoes.

        Args:
            smaller: Constants by name in place of those that float16 does not hold.

        Raises:
            InvalidModelError: If a constant does not fit in float16.
        """
        schema, added = self._schema, []
        used = {name for operator in self.operators for name in operator.inputs}
        for name in [n for n in self._order if n in used and self.dtype(n) == np.float32]:
            if not self.is_constant(name):
                continue
            values = smaller.get(name, self.constant(name))
            finite = values[~np.isinf(values)]  # float16 has infinities
            if np.abs(finite).max(initial=0) > float(np.finfo(np.float16).max):
                raise InvalidModelError(f"{short_name(name)} does not fit in float16")
            half = self._add_constant(values.astype(np.float16))
            self._tensors[name].buffer = 0
            operator = schema.OperatorT()
            operator.opcodeIndex = self._code("DEQUANTIZE", 3)
            operator.inputs = [self._order.index(half)]
            operator.outputs = [self._order.index(name)]
            added.append(operator)
        self._subgraph.operators = [*added, *self._subgraph.operators]
        self._original = len(self._subgraph.operators)

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors other names, in place; one that has such a name already gets another."""
        used = {*self._order, *names.values()}
        for name in sorted({*names.values()} - {*names}):
            if name in self._tensors:
                names = {**names, name: free_name(f"{name}__{self._order.index(name)}", used)}
                used.add(names[name])
        self._order = [names.get(name, name) for name in self._order]
        self._tensors = {names.get(name, name): tensor for name, tensor in self._tensors.items()}
        for name, tensor in self._tensors.items():
            tensor.name = name.encode()

    def settle_names(self) -> bool:
        """Name tensors by what they are that TensorFlow named by a count of its own, in place.

        It counts all that a process has made, so that the same model would get other names.

        Returns:
            Whether there was one.
        """
        names: dict[str, str] = {}
        used = set(self._order)
        for place, name in enumerate(self._order):
            settled = _COUNTED.sub(r"\1constant", name)
            if settled == name or name in (*self.inputs, *self.outputs):
                continue
            if settled in used:
                settled = free_name(f"{settled}_{place}", used)
            used.add(settled)
            names[name] = settled
        self.rename(names)
        return bool(names)

    @property
    def name(self) -> str:
        """Name of the subgraph, ``main`` without one."""
        return (self._subgraph.name or b"").decode(errors="replace") or "main"

    def set_activation(self, output: str, kind: str) -> None:
        """Replace what is fused behind the layer that writes a tensor, e.g. by ``none``."""
        number = ACTIVATIONS.index(kind.upper())
        for raw in self._subgraph.operators:
            if self._order[raw.outputs[0]] == output:
                raw.builtinOptions = copy.copy(raw.builtinOptions)
                raw.builtinOptions.fusedActivationFunction = number

    def single(self, position: int, *, activation: bool = True) -> bytes:
        """A flatbuffer of one operator; its constants come along, what it computes on is fed.

        Args:
            position: Place in :attr:`operators`.
            activation: Keep the activation that is fused behind it.
        """
        raw = self._subgraph.operators[position]
        outputs = [self._order[index] for index in raw.outputs]
        return self.part(range(position, position + 1), outputs, activation=activation)

    def part(self, positions: range, outputs: Sequence[str], *, activation: bool = True) -> bytes:
        """A flatbuffer of operators, one behind the other, that is fed what others compute.

        Args:
            positions: Places in :attr:`operators`.
            outputs: Tensors that they write.
            activation: Keep the activations that are fused behind them.
        """
        schema, raws = self._schema, [self._subgraph.operators[i] for i in positions]
        buffers, places = [schema.BufferT()], {-1: -1}
        tensors, operators, codes = list[Any](), list[Any](), list[int]()
        fed, written = dict[int, None](), set[int]()
        for raw in raws:
            operator = copy.copy(raw)
            if not activation:
                operator.builtinOptions = copy.copy(raw.builtinOptions)
                operator.builtinOptions.fusedActivationFunction = 0
            for index in map(int, (*raw.inputs, *raw.outputs)):
                if index in places:
                    continue
                tensor = copy.copy(self._subgraph.tensors[index])
                data = self._model.buffers[tensor.buffer].data
                tensor.buffer = 0
                if data is not None and len(data):
                    tensor.buffer = len(buffers)
                    buffers.append(schema.BufferT())
                    buffers[-1].data = data
                places[index] = len(tensors)
                tensors.append(tensor)
            for index in map(int, raw.inputs):
                if index >= 0 and index not in written and not self.is_constant(self._order[index]):
                    fed[index] = None
            written.update(map(int, raw.outputs))
            if raw.opcodeIndex not in codes:
                codes.append(raw.opcodeIndex)
            operator.intermediates = None
            operator.opcodeIndex = codes.index(raw.opcodeIndex)
            operator.inputs = [places[int(index)] for index in raw.inputs]
            operator.outputs = [places[int(index)] for index in raw.outputs]
            operators.append(operator)
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators = tensors, operators
        subgraph.inputs = [places[index] for index in fed]
        subgraph.outputs = [places[self._order.index(name)] for name in outputs]
        model = schema.ModelT()
        model.version, model.buffers = 3, buffers
        model.operatorCodes = [self._model.operatorCodes[code] for code in codes]
        model.subgraphs = [subgraph]
        return pack(model)

    def add_reduce(self, kind: str, name: str, axes: Sequence[int]) -> str:
        """Append REDUCE_MIN or REDUCE_MAX over axes; the new tensor has no more of them."""
        options = self._schema.ReducerOptionsT()
        options.keepDims = False
        kept = tuple(n for i, n in enumerate(self.shape(name)) if i not in axes)
        over = self._add_constant(np.asarray(axes, np.int32))
        return self._add(f"REDUCE_{kind}", (name, over), kept, "ReducerOptions", options, version=2)

    def add_sum(self, name: str) -> str:
        """Append SUM over all axes but the first, of a tensor ``[1, …]`` of two axes or more."""
        options = self._schema.ReducerOptionsT()
        options.keepDims = False
        over = self._add_constant(np.arange(1, len(self.shape(name)), dtype=np.int32))
        return self._add("SUM", (name, over), self.shape(name)[:1], "ReducerOptions", options)

    def add_scaled(self, kind: str, name: str, number: float) -> str:
        """Append DIV, MUL, MINIMUM or MAXIMUM of a float tensor and one number."""
        word = {"DIV": "Div", "MUL": "Mul"}.get(kind, "MaximumMinimum") + "Options"
        options = getattr(self._schema, f"{word}T")()
        inputs = (name, self._add_constant(np.array(number, np.float32)))
        return self._add(kind, inputs, self.shape(name), word, options)

    def add_round(self, name: str) -> str:
        """Append ROUND, of a half to even."""
        return self._add("ROUND", (name,), self.shape(name), "NONE", None)

    def add_reshape(self, name: str, shape: tuple[int, ...]) -> str:
        """Append RESHAPE; a size of -1 takes what is left."""
        options = self._schema.ReshapeOptionsT()
        options.newShape = np.asarray(shape, np.int32)
        sizes = self._add_constant(options.newShape)
        whole = int(np.prod(self.shape(name)))
        known = int(np.prod([size for size in shape if size != -1]))
        now = tuple(whole // known if size == -1 else size for size in shape)
        return self._add("RESHAPE", (name, sizes), now, "ReshapeOptions", options)

    def add_stride(self, name: str, stride: int) -> str:
        """Append a depthwise convolution with ones: every ``stride``-th row and column."""
        _, height, width, channels = self.shape(name)
        options = self._schema.DepthwiseConv2DOptionsT()
        options.strideH = options.strideW = stride
        options.depthMultiplier = options.dilationHFactor = options.dilationWFactor = 1
        ones = self._add_constant(np.ones((1, 1, 1, channels), np.float32))
        zeros = self._add_constant(np.zeros(channels, np.float32))
        shape = (1, -(-height // stride), -(-width // stride), channels)
        return self._add(
            "DEPTHWISE_CONV_2D", (name, ones, zeros), shape, "DepthwiseConv2DOptions", options
        )

    def add_concatenation(self, names: Sequence[str], size: int) -> str:
        """Append CONCATENATION of tensors ``[1, …]`` to one ``[1, size]``."""
        options = self._schema.ConcatenationOptionsT()
        options.axis = 1
        return self._add("CONCATENATION", names, (1, size), "ConcatenationOptions", options)

    def _add(
        self,
        kind: str,
        inputs: Sequence[str],
        shape: tuple[int, ...],
        options_kind: str,
        options: Any,
        *,
        version: int = 1,
    ) -> str:
        """Append an operator with one float output; returns that tensor's name."""
        schema = self._schema
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(kind, version)
        operator.inputs = [self._order.index(name) for name in inputs]
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, options_kind)
        operator.builtinOptions = options
        name = self._add_tensor(shape, schema.TensorType.FLOAT32)
        operator.outputs = [self._order.index(name)]
        self._subgraph.operators.append(operator)
        return name

    def _code(self, kind: str, version: int) -> int:
        """Number of an operator's code in the file; it is added if it is not there."""
        number = getattr(self._schema.BuiltinOperator, kind)
        codes = self._model.operatorCodes
        known = [(max(c.builtinCode, c.deprecatedBuiltinCode), c.version) for c in codes]
        if (number, version) not in known:
            code = self._schema.OperatorCodeT()
            code.builtinCode, code.version = number, version
            code.deprecatedBuiltinCode = min(number, 127)
            codes.append(code)
            known.append((number, version))
        return known.index((number, version))

    def _add_constant(self, values: npt.NDArray[Any]) -> str:
        kinds = {dtype: number for number, dtype in self._dtypes.items()}
        name = self._add_tensor(values.shape, kinds[values.dtype])
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self._tensors[name].buffer = len(self._model.buffers)
        self._model.buffers.append(buffer)
        return name

    def _add_tensor(self, shape: tuple[int, ...], kind: int) -> str:
        tensor = self._schema.TensorT()
        number = len(self._order)
        while (name := f"added {number}") in self._tensors:
            number += 1
        tensor.name, tensor.type, tensor.buffer = name.encode(), kind, 0
        tensor.shape = np.asarray(shape, np.int32)
        self._subgraph.tensors.append(tensor)
        self._tensors[name] = tensor
        self._order.append(name)
        return name

    def with_outputs(self, names: Sequence[str]) -> bytes:
        """The flatbuffer with other tensors as its outputs and no signature.

        What was added runs right after the operator that makes its input: at the end of the graph
        it would keep that tensor alive until then and read it when it has left the cache.
        """
        model, subgraph = copy.copy(self._model), copy.copy(self._subgraph)
        place_of: dict[int, int] = {}
        places = []
        for i, operator in enumerate(subgraph.operators):
            added = i >= self._original
            place = max(place_of.get(tensor, -1) for tensor in operator.inputs) if added else i
            place_of.update(dict.fromkeys(operator.outputs, place))
            places.append(place)
        order = sorted(range(len(places)), key=places.__getitem__)  # stable
        subgraph.operators = [subgraph.operators[i] for i in order]
        subgraph.outputs = [self._order.index(name) for name in names]
        model.subgraphs, model.signatureDefs = [subgraph], None
        return pack(model)

    def serialize(self) -> bytes:
        """The flatbuffer with all changes."""
        return pack(self._model)

    def _operator(self, raw: Any) -> Operator:
        code = self._model.operatorCodes[raw.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        inputs = [] if raw.inputs is None else raw.inputs
        return Operator(
            self._kinds.get(number, f"operator {number}"),
            tuple(self._order[i] if i >= 0 else "" for i in inputs),
            tuple(self._order[i] for i in raw.outputs),
        )


def canonical(content: bytes, name: str, *, key: str, states: bool = False) -> bytes:
    """A float TFLite file of any converter as a canonical graph, with batch 1 and one signature.

    Args:
        content: The file.
        name: Name of the file, for messages.
        key: Key of the signature; a file without one gets one with its tensors' own names.
        states: Let inputs have another first size than 1: they are known to be no batches.

    Raises:
        InvalidModelError: If it cannot be read, has several subgraphs, variables, a free size
            behind the batch, or constants or inputs that are quantized.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = _distinct(content, name)
    subgraph = model.subgraphs[0]
    for code in model.operatorCodes:  # older converters fill in the older field alone
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    for tensor in subgraph.tensors:
        scales = None if tensor.quantization is None else tensor.quantization.scale
        if scales is not None and len(scales):
            raise InvalidModelError(
                f"{name} is quantized already: its tensor "
                f"{tensor.name.decode(errors='replace')} has a scale; expected a float32 or "
                f"float16 model"
            )
    variable = schema.BuiltinOperator.VAR_HANDLE
    for operator in subgraph.operators:
        if model.operatorCodes[operator.opcodeIndex].builtinCode == variable:
            state = subgraph.tensors[operator.outputs[0]].name.decode(errors="replace")
            raise InvalidModelError(
                f"{name} keeps a state of its own from run to run ({state}); convert it with the "
                f"state as an input and an output"
            )
    if len(model.subgraphs) != 1:
        raise InvalidModelError(
            f"{name}: expected one subgraph, got {len(model.subgraphs)} (control flow: IF, WHILE); "
            f"unroll it, e.g. with unroll=True of a recurrent layer"
        )
    for index in subgraph.inputs:
        tensor = subgraph.tensors[index]
        free = tensor.shapeSignature
        if free is not None and any(size < 0 for size in free[1:]):
            raise InvalidModelError(
                f"{name}: expected a fixed size of input {tensor.name.decode(errors='replace')}, "
                f"got {list(map(int, free))}; convert the model with the size it will run at"
            )
        batch = 1 if tensor.shape is None or not len(tensor.shape) else tensor.shape[0]
        if batch != 1 and not states:
            raise InvalidModelError(
                f"{name}: expected batch 1 of input {tensor.name.decode(errors='replace')}, got "
                f"{list(map(int, tensor.shape))}; convert the model with batch 1"
            )
    for tensor in subgraph.tensors:
        tensor.shapeSignature = None  # the sizes are those of one sample
    _sign(schema, model, key)
    graph = Graph(pack(model))
    graph.fold()
    graph.spell_products()
    graph.spell_hard_swishes()
    graph.compact()
    return graph.serialize()


def signed(content: bytes, name: str, *, key: str) -> bytes:
    """A TFLite file of any converter, quantized or not, with one signature and else as it is.

    Args:
        content: The file.
        name: Name of the file, for messages.
        key: Key of the signature; inputs and outputs get the names that :func:`canonical` gives.

    Raises:
        InvalidModelError: If it cannot be read.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = _distinct(content, name)
    _sign(schema, model, key)
    return pack(model)


def _distinct(content: bytes, name: str) -> Any:
    """The schema's object of a file, in which each tensor has a name of its own."""
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != b"TFL3":
        raise InvalidModelError(f"{name} is not a TFLite model; expected the flatbuffer id TFL3")
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        seen: dict[bytes, int] = {}
        for i, tensor in enumerate(model.subgraphs[0].tensors):
            own = tensor.name or b"tensor"
            if own in seen:
                own = own + b"__%d" % i
            seen[own] = i
            tensor.name = own
    except Exception as exc:  # flatbuffers raises struct.error, IndexError, TypeError, ...
        raise InvalidModelError(f"{name} cannot be read (cut short?): {reason(exc)}") from None
    return model


def _sign(schema: Any, model: Any, key: str) -> None:
    """Leave one signature, of the first subgraph's inputs and outputs where there is none."""
    if not model.signatureDefs:
        model.signatureDefs = [_signature(schema, model.subgraphs[0])]
    model.signatureDefs = model.signatureDefs[:1]
    model.signatureDefs[0].signatureKey = key.encode()


def unsigned(tensors: Sequence[str]) -> list[str]:
    """Names of the inputs, or outputs, of a file without a signature: those of their tensors.

    The number behind them, of an output of an operator of TensorFlow's, is left out where no two
    names become the same.
    """
    parts = [name.partition(":") for name in tensors]
    stems = Counter(stem for stem, _, _ in parts)
    names = [
        stem if stems[stem] == 1 or number in ("", "0") else f"{stem}_{number}"
        for stem, _, number in parts
    ]
    return names if len(set(names)) == len(names) else list(tensors)


def _signature(schema: Any, subgraph: Any) -> Any:
    definition = schema.SignatureDefT()
    definition.subgraphIndex = 0
    for side, indices in (("inputs", subgraph.inputs), ("outputs", subgraph.outputs)):
        tensors = [subgraph.tensors[index].name.decode(errors="replace") for index in indices]
        maps = []
        for index, name in zip(indices, unsigned(tensors), strict=True):
            each = schema.TensorMapT()
            each.name, each.tensorIndex = name.encode(), int(index)
            maps.append(each)
        setattr(definition, side, maps)
    return definition


def _shared(model: Any) -> Any:
    """A shallow copy that stores what tensors need, and equal constants once."""
    model = copy.copy(model)
    buffers, places = [copy.copy(model.buffers[0])], dict[bytes, int]()

    def place(index: int) -> int:
        data = model.buffers[index].data
        if data is None or not len(data):
            return 0
        content = np.asarray(data, np.uint8).tobytes()
        if content not in places:
            places[content] = len(buffers)
            buffers.append(model.buffers[index])
        return places[content]

    subgraphs = []
    for original in model.subgraphs:
        subgraph, tensors = copy.copy(original), []
        for tensor in original.tensors:
            tensor = copy.copy(tensor)
            tensor.buffer = place(tensor.buffer)
            tensors.append(tensor)
        subgraph.tensors = tensors
        subgraphs.append(subgraph)
    metadata = []
    for about in model.metadata or []:
        about = copy.copy(about)
        about.buffer = place(about.buffer)
        metadata.append(about)
    model.subgraphs, model.metadata, model.metadataBuffer = subgraphs, metadata or None, None
    model.buffers = buffers
    return model


def pack(model: Any) -> bytes:
    """Write a model whose constants are aligned to 16 bytes, as the format's schema asks for."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class Aligned:
        def __init__(self, data: Any) -> None:
            self.data = b"" if data is None else np.asarray(data, np.uint8).tobytes()

        def Pack(self, builder: Any) -> int:  # noqa: N802 -- the generated code calls it
            vector = 0
            if self.data:
                builder.StartVector(1, len(self.data), 16)
                builder.head -= len(self.data)
                builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if vector:
                schema.BufferAddData(builder, vector)
            return int(schema.BufferEnd(builder))

    model = _shared(model)
    model.buffers = [Aligned(buffer.data) for buffer in model.buffers]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _dense(values: npt.NDArray[Any], shape: tuple[int, ...], sparsity: Any) -> npt.NDArray[Any]:
    """A sparse constant as a whole array.

    Axes are stored in ``traversalOrder``; those behind the tensor's own are blocks of them, and an
    axis is dense, or compressed to segments of indices.
    """
    order = [int(axis) for axis in sparsity.traversalOrder]
    blocks = [] if sparsity.blockMap is None else [int(axis) for axis in sparsity.blockMap]
    levels = sparsity.dimMetadata
    # sizes of all axes, a blocked one in two parts
    sizes = list(shape)
    inner = [int(levels[order.index(len(shape) + i)].denseSize) for i in range(len(blocks))]
    for axis, size in zip(blocks, inner, strict=True):
        sizes[axis] //= size
    sizes += inner
    places: npt.NDArray[np.int64] = np.zeros(1, np.int64)  # of each value, level by level
    coordinates: list[npt.NDArray[np.int64]] = []
    for level in levels:
        if level.format == 0:  # dense
            size = int(level.denseSize)
            parents = np.repeat(np.arange(len(places)), size)
            own = np.tile(np.arange(size), len(places))
            places = (places[:, None] * size + np.arange(size)).ravel()
        else:
            segments = np.asarray(level.arraySegments.values, np.int64)
            indices = np.asarray(level.arrayIndices.values, np.int64)
            counts = np.diff(segments)[places]
            parents = np.repeat(np.arange(len(places)), counts)
            starts = np.repeat(segments[places] - np.cumsum(counts) + counts, counts)
            places = starts + np.arange(len(parents))
            own = indices[places]
        coordinates = [each[parents] for each in coordinates] + [own]
    whole = np.zeros(sizes, values.dtype)
    at = dict(zip(order, coordinates, strict=True))
    whole[tuple(at[axis] for axis in range(len(sizes)))] = values[places]
    # parts of a blocked axis beside each other
    turned = []
    for axis in range(len(shape)):
        turned.append(axis)
        turned += [len(shape) + i for i, blocked in enumerate(blocks) if blocked == axis]
    return np.ascontiguousarray(whole.transpose(turned)).reshape(shape)


def short_name(name: str) -> str:
    """What a reader needs of a converter's tensor name, e.g. ``block1_expand/Conv2D``.

    A path of modules that PyTorch wrote, ``/blocks.1/act/Clip_output_0``, stays whole: its last two
    parts are those of many layers.
    """
    if name.startswith("/"):
        return name
    return "/".join(path_of(name)[-2:])


def path_of(name: str) -> list[str]:
    """Model, layer and operator that a converter's tensor name speaks of.

    Of an operator that others were fused with, e.g. ``a/relu/Relu;a/bn/batchnorm/add;a/conv/Conv2D;
    a/bn/batchnorm/sub``, that of the layer with the weights.
    """
    pieces = name.split(";")
    for word in ("ReadVariableOp", "/batchnorm/"):
        pieces = [piece for piece in pieces if word not in piece] or pieces
    return pieces[-1].split("/")


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}
