"""An ONNX file that is int8 already (QuantizeLinear and DequantizeLinear), as a float model and the
encodings of its values.

The float model has the numbers that the file's integers stand for, and an Identity where the file
rounds, so that nothing is folded over what is rounded. What TFLite's int8 cannot hold is refused
with its node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError
from edgekit.graph import onnx
from edgekit.graph.kernels import Number

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
#: Domains of ONNX' own operators, and of onnxruntime's of the same meaning.
_DOMAINS = ("", "ai.onnx", "com.microsoft")
#: Operators whose constants TFLite has no int8 form for.
_REAL = ("LSTM", "GRU", "RNN")
#: Operators that TFLite's layers compute too, behind their own.
_ACTIVATIONS = ("Relu", "Clip")
#: Operators that read sizes alone.
_SIZES = ("Shape", "Size")
_QDQ = (
    "export it in QDQ format, with onnxruntime by quantize_static(..., "
    "quant_format=QuantFormat.QDQ)"
)
_FLOAT, _UINT8, _INT8 = 1, 2, 3
#: Of int8 weights, in TensorFlow's "LiteRT 8-bit quantization specification".
_LEAST_WEIGHT = -127
_SYMMETRIC = (
    "quantize weights as int8 without one, with onnxruntime by weight_type=QuantType.QInt8, "
    "extra_options={'WeightSymmetric': True}"
)
_FROM_127 = (
    "quantize weights to the symmetric range, with PyTorch by XNNPACKQuantizer or "
    "per_channel_weight_observer_range_neg_127_to_127"
)
#: Where weights are no initializers, which onnxruntime's quantizer takes for activations.
_INITIALIZERS = (
    "make it one with onnxruntime's quant_pre_process(FILE, PREPARED) "
    "(onnxruntime.quantization.shape_inference), and quantize PREPARED"
)


@dataclass(frozen=True)
class Dequantized:
    """A quantized file without its integers, and what they said.

    Attributes:
        model: Float ``onnx.ModelProto`` with an Identity for each pair of QuantizeLinear and
            DequantizeLinear.
        activations: (scale, int8 zero_point) of each value that the file rounds, by its names
            before and behind the rounding. A value that is read as it was too, or that was rounded
            to another scale before, has none or the other: its Identity is a tensor of its own.
        layers: What each layer with integer weights writes, by the layer's operator and name.
    """

    model: Any
    activations: Mapping[str, Number]
    layers: Mapping[str, str]


def from_qdq(model: Any, path: Path | str) -> Dequantized | None:
    """Take the integers out of a model; None of one that has none.

    Args:
        model: As :func:`edgekit.sources.onnx_source.read` has read it; stays as it is.
        path: Path of the file, for messages.

    Raises:
        InvalidModelError: If the file has another form of integers, or numbers that TFLite's int8
            cannot hold; names the node.
    """
    if onnx.quantized(model) is None:
        return None
    return _Reader(model, path).read()


def check_format(model: Any, path: Path) -> None:
    """Refuse integers in another form than QuantizeLinear and DequantizeLinear.

    Raises:
        InvalidModelError: With the node.
    """
    for node in model.graph.node:
        named = f"{node.op_type} {node.name or node.output[0]}"
        pair = node.op_type in (_QUANTIZE, _DEQUANTIZE) and node.domain in _DOMAINS
        integer = "QLinear" in node.op_type or node.op_type.endswith("uantizeLinear")
        integer |= node.op_type in ("ConvInteger", "MatMulInteger", "QGemm", "QAttention")
        if integer and not pair:
            raise InvalidModelError(
                f"{path}: expected integers behind QuantizeLinear and DequantizeLinear, got "
                f"{named}; {_QDQ}"
            )
        for body in onnx.bodies(node):
            inner = [each for each in body.node if each.op_type in (_QUANTIZE, _DEQUANTIZE)]
            if inner:
                raise InvalidModelError(
                    f"{path}: expected QuantizeLinear and DequantizeLinear in the graph itself, "
                    f"got {inner[0].op_type} inside of {named}; export it without branches"
                )


@dataclass(frozen=True)
class _Stored:
    """Integers of a constant, as the file has them, and the real numbers."""

    values: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    axis: int

    @property
    def real(self) -> npt.NDArray[np.float32]:
        steps = self.values.astype(np.int64) - _along(self.zero_point, self.values, self.axis)
        reals = steps.astype(np.float32) * _along(self.scale, self.values, self.axis)
        return np.asarray(reals, np.float32)

    def turned(self, perm: list[int]) -> _Stored:
        return _Stored(
            self.values.transpose(perm),
            self.scale,
            self.zero_point,
            perm.index(self.axis % self.values.ndim) if self.scale.size > 1 else 0,
        )


def _along(numbers: npt.NDArray[Any], values: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """One number, or one of each place of an axis, to compute with an array."""
    if numbers.size == 1:
        return numbers.reshape(())
    sizes = [1] * values.ndim
    sizes[axis] = -1
    return numbers.reshape(sizes)


class _Reader:
    """One file on its way to a float model."""

    def __init__(self, model: Any, path: Path | str) -> None:
        self._path = path
        self._nodes_of_constants = {
            node.output[0] for node in model.graph.node if node.op_type == "Constant"
        }
        self._model = onnx.plain_integers(model)
        self._constants = onnx.stored_constants(self._model)
        self._makers = {name: node for node in self._model.graph.node for name in node.output}
        self._readers = onnx.readers(self._model.graph.node)
        self._outputs = {value.name for value in self._model.graph.output}
        self._numbers: dict[str, Number] = {}
        self._apart: dict[str, str] = {}  # what a value is called behind a rounding of its own
        self._stored: dict[str, _Stored] = {}
        self._static = set(self._constants)
        for node in self._model.graph.node:
            read = [name for name in (*node.input, *onnx.captured(node)) if name]
            if node.op_type in _SIZES or (read and self._static.issuperset(read)):
                self._static.update(node.output)

    def read(self) -> Dequantized:
        graph, package = self._model.graph, onnx.package()
        for value in (*graph.input, *graph.output):
            kind = value.type.tensor_type.elem_type
            if kind in (_INT8, _UINT8):
                word = "int8" if kind == _INT8 else "uint8"
                raise self._refused(
                    f"float32 inputs and outputs, got {value.name} in {word}",
                    "export it with QuantizeLinear behind inputs and DequantizeLinear before "
                    "outputs",
                )
        for node in graph.node:
            if node.op_type == _QUANTIZE:
                self._quantize(node)
        nodes = []
        for node in graph.node:
            if node.op_type == _DEQUANTIZE:
                identity = self._dequantize(node)
                if identity is not None:
                    nodes.append(identity)
            elif node.op_type != _QUANTIZE or self._computed_once(node.input[0]):
                nodes.append(node)
                self._turn(node)
        layers = {}
        for node in nodes:
            self._constants_of(node)
            if node.op_type in onnx.WEIGHTED and self._layer(node):
                layers[node.output[0]] = _named(node)
        float_model = onnx.copied(self._model)
        del float_model.graph.node[:]
        float_model.graph.node.extend(nodes)
        written = {name for node in nodes for name in node.output}
        float_model.graph.initializer.extend(
            package.numpy_helper.from_array(each.real, name)
            for name, each in self._stored.items()
            if name not in written
        )
        del float_model.graph.value_info[:]
        onnx.drop_unused(float_model)
        return Dequantized(float_model, self._numbers, layers)

    def _computed_once(self, name: str) -> bool:
        """Whether a value is computed from constants alone; its rounding is, too."""
        return name in self._static and name not in self._constants

    def _refused(self, expected: str, fix: str) -> InvalidModelError:
        return InvalidModelError(f"{self._path}: expected {expected}; {fix}")

    def _scale(self, node: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], int]:
        """(scale, zero_point, axis) of a node, checked to be numbers that integers can have."""
        named = _named(node)
        names = list(node.input[1:]) + [""]
        if any(name and name not in self._constants for name in names[:2]):
            raise self._refused(
                f"a stored scale and zero_point of {named}, got computed ones",
                "quantize it statically, with onnxruntime by quantize_static",
            )
        scale = self._constants[names[0]]
        kinds = {0: np.uint8, _UINT8: np.uint8, _INT8: np.int8}
        if names[1]:
            zero_point = self._constants[names[1]]
        elif node.op_type == _DEQUANTIZE and node.input[0] in self._constants:
            zero_point = np.zeros((), self._constants[node.input[0]].dtype)
        elif node.op_type == _DEQUANTIZE and self._is_quantize(node.input[0]):
            zero_point = np.zeros_like(self._scale(self._makers[node.input[0]])[1])
        else:
            kind = onnx.attribute(node, "output_dtype", 0)
            zero_point = np.zeros((), kinds.get(kind, np.int16))
        if zero_point.dtype not in (np.int8, np.uint8, np.int32):
            raise self._refused(
                f"{named} in int8 or uint8, got {zero_point.dtype.name}",
                "quantize it with QuantType.QInt8 or QUInt8",
            )
        if onnx.attribute(node, "block_size", 0):
            raise self._refused(
                f"one scale, or one of each channel, of {named}, got one of each block",
                "quantize it per tensor or per channel",
            )
        if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
            shown = scale.ravel()[:3].tolist()
            raise self._refused(
                f"finite float32 scales above 0 of {named}, got {scale.dtype.name} {shown}",
                "quantize it again",
            )
        return scale, zero_point, int(onnx.attribute(node, "axis", 1))

    def _is_quantize(self, name: str) -> bool:
        return name in self._makers and self._makers[name].op_type == _QUANTIZE

    def _quantize(self, node: Any) -> None:
        """Note the encoding of what a QuantizeLinear reads; of a constant, its integers."""
        named, source, output = _named(node), node.input[0], node.output[0]
        scale, zero_point, axis = self._scale(node)
        readers = self._readers.get(output, [])
        others = [each for each in readers if each.op_type != _DEQUANTIZE]
        if others or output in self._outputs:
            reader = _named(others[0]) if others else "an output of the model"
            raise self._refused(f"a DequantizeLinear behind {named}, got {reader}", _QDQ)
        if source in self._constants:
            info = np.iinfo(zero_point.dtype)
            values = self._constants[source]
            self._check_sizes(named, values, scale, zero_point, axis)
            steps = np.rint(values / _along(scale, values, axis)) + _along(zero_point, values, axis)
            self._constants[output] = np.clip(steps, info.min, info.max).astype(zero_point.dtype)
            return
        if self._computed_once(source):
            return
        number = self._number(named, scale, zero_point)
        before = self._makers.get(source)
        if before is not None and before.op_type == _DEQUANTIZE:
            if self._number(_named(before), *self._scale(before)[:2]) != number:
                self._apart[output] = ""
            return
        raw = [
            each
            for each in self._readers.get(source, [])
            if each.op_type not in (_QUANTIZE, *_SIZES)
        ]
        if not raw and source not in self._outputs:
            self._note(source, number, named)
            return
        if self._of_layer(before):
            reader = _named(raw[0]) if raw else "the model's output"
            raise self._refused(
                f"what {named} rounds to be read rounded only, since TFLite's integer kernels give "
                f"{source} in int8, got {reader}, which reads it as it was",
                f"let it read what is behind the DequantizeLinear of {source}",
            )
        self._apart[output] = ""

    def _of_layer(self, node: Any) -> bool:
        """Whether a node is a layer with integer weights, or the activation behind one."""
        while node is not None and node.op_type in _ACTIVATIONS:
            node = self._makers.get(node.input[0])
        weights = None if node is None or node.op_type not in onnx.WEIGHTED else node.input[1]
        while weights in self._makers:
            if self._makers[weights].op_type == _DEQUANTIZE:
                return True
            weights = self._makers[weights].input[0]
        return False

    def _check_sizes(
        self,
        named: str,
        values: npt.NDArray[Any],
        scale: npt.NDArray[np.float32],
        zero_point: npt.NDArray[Any],
        axis: int,
    ) -> None:
        """Refuse numbers of scales that are neither one nor one of each channel."""
        channels = values.shape[axis] if -values.ndim <= axis < values.ndim else 0
        sizes = {scale.size, zero_point.size} - {1}
        if sizes - {channels}:
            raise self._refused(
                f"one scale of {named}, or {channels} in axis {axis}, got {max(sizes)}",
                "quantize it again",
            )

    def _number(
        self, named: str, scale: npt.NDArray[np.float32], zero_point: npt.NDArray[Any]
    ) -> Number:
        if scale.size != 1 or zero_point.size != 1:
            raise self._refused(
                f"one scale of the activation at {named}, got {scale.size}",
                "quantize activations per tensor",
            )
        if zero_point.dtype == np.int32:
            raise self._refused(
                f"{named} in int8 or uint8, got int32", "quantize activations in 8 bits"
            )
        shift = 128 if zero_point.dtype == np.uint8 else 0
        return float(scale.reshape(())), int(zero_point.reshape(())) - shift

    def _note(self, name: str, number: Number, named: str) -> None:
        known = self._numbers.setdefault(name, number)
        if known != number:
            raise self._refused(
                f"one scale and zero_point of {name}, since TFLite has it once, got {known} and "
                f"{number} at {named}",
                "quantize it once, for all of its readers",
            )

    def _dequantize(self, node: Any) -> Any:
        """The Identity in place of a DequantizeLinear, or the node where it is computed once; None
        behind a constant, which is stored."""
        named, source, output = _named(node), node.input[0], node.output[0]
        scale, zero_point, axis = self._scale(node)
        if source in self._constants:
            values = self._constants[source]
            if values.dtype != zero_point.dtype:
                raise self._refused(
                    f"a zero_point of {named} as its integers are, {values.dtype.name}, got "
                    f"{zero_point.dtype.name}",
                    "quantize it again",
                )
            self._check_sizes(named, values, scale, zero_point, axis)
            self._stored[output] = _Stored(values, scale, zero_point, axis)
            return None
        before = self._makers.get(source)
        if before is None or not self._is_quantize(source):
            got = "an input" if before is None else _named(before)
            raise self._refused(f"a QuantizeLinear before {named}, got {got}", _QDQ)
        if self._computed_once(source):
            return node
        number = self._number(named, scale, zero_point)
        own = self._number(_named(before), *self._scale(before)[:2])
        if own != number:
            raise self._refused(
                f"the scale and zero_point of {_named(before)} at {named}, {own}, got {number}",
                "quantize it again",
            )
        self._note(output, number, named)
        value = before.input[0]
        if source in self._apart:  # rounded once, for all of its readers
            value = self._apart[source] or value
            self._apart[source] = output
        return onnx.package().helper.make_node("Identity", [value], [output], name=node.name)

    def _turn(self, node: Any) -> None:
        """Note what a Transpose makes of a constant's integers."""
        if node.op_type == "Transpose" and node.input[0] in self._stored:
            stored = self._stored[node.input[0]]
            rank = stored.values.ndim
            perm = list(onnx.attribute(node, "perm", range(rank)[::-1]))
            self._stored[node.output[0]] = stored.turned(perm)

    def _constants_of(self, node: Any) -> None:
        """Refuse integers that the node's TFLite form computes with in float."""
        for name in node.input:
            if name in self._stored and node.op_type in _REAL:
                raise self._refused(
                    f"float weights of {_named(node)}, which TFLite computes in float, got "
                    f"integers in {name}",
                    "leave it out of quantization, with onnxruntime by nodes_to_exclude",
                )

    def _mend(self, name: str, fix: str) -> str:
        """How integers of weights or of a bias become what TFLite can hold."""
        value = name
        while value in self._makers:
            value = self._makers[value].input[0]
        if value not in self._nodes_of_constants or self._constants[value].dtype.kind != "f":
            return fix
        return (
            f"the float file has {value} in a Constant node and not as an initializer, so that it "
            f"was quantized as an activation; {_INITIALIZERS}"
        )

    def _layer(self, node: Any) -> bool:
        """Check a layer's integer weights and bias; whether it has some."""
        named = _named(node)
        weights = self._stored.get(node.input[1])
        bias = self._stored.get(node.input[2]) if len(node.input) > 2 else None
        if weights is None:
            if bias is not None:
                raise self._refused(
                    f"integer weights of {named} beside its integer bias, got float ones",
                    "quantize both, or none",
                )
            return False
        zero = 128 if weights.values.dtype == np.uint8 else 0
        if weights.values.dtype == np.int32 or (weights.zero_point != zero).any():
            got = int(weights.zero_point.ravel()[np.argmax(weights.zero_point.ravel() != zero)])
            raise self._refused(
                f"weights of {named} in int8 with zero_point 0, or uint8 with 128, as TFLite's "
                f"have none, got {weights.values.dtype.name} with {got} in {node.input[1]}",
                self._mend(node.input[1], _SYMMETRIC),
            )
        steps = weights.values.astype(np.int16) - zero
        low = int((steps < _LEAST_WEIGHT).sum())
        if low:
            raise self._refused(
                f"weights of {named} from -127 to 127, as TFLite's specification has them, got "
                f"-128 in {low} of {node.input[1]}",
                self._mend(node.input[1], _FROM_127),
            )
        axis = weights.values.ndim - 1
        if node.op_type == "Conv" or (node.op_type == "Gemm" and onnx.attribute(node, "transB", 0)):
            axis = 0
        elif node.op_type == "ConvTranspose":
            axis = 1
        if weights.scale.size > 1 and weights.axis % weights.values.ndim != axis:
            raise self._refused(
                f"scales of the output channels of {named}, axis {axis} of {node.input[1]}, got "
                f"them of axis {weights.axis}",
                "quantize per output channel, or per tensor",
            )
        if bias is not None and (bias.values.dtype != np.int32 or bias.zero_point.any()):
            raise self._refused(
                f"the bias of {named} in int32 with zero_point 0, got {bias.values.dtype.name} "
                f"with {int(bias.zero_point.ravel()[0])}",
                self._mend(node.input[2], "quantize it so, or leave it float"),
            )
        return True


def _named(node: Any) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def numbers(
    dequantized: Dequantized, tensors: Mapping[str, tuple[str, ...]], path: str
) -> dict[str, Number]:
    """The encodings by the tensors of the canonical graph.

    Args:
        dequantized: The file, from :func:`from_qdq`.
        tensors: The canonical tensors that hold a value of the file
            (:class:`edgekit.sources.onnx_canonical.Converted`).
        path: Path of the file, for messages.

    Raises:
        InvalidModelError: If a value that the file rounds is no tensor, or a tensor is two of them.
    """
    result: dict[str, Number] = {}
    for name, number in dequantized.activations.items():
        if not tensors.get(name):
            raise InvalidModelError(
                f"{path}: expected {name}, which is rounded in the file, as a tensor in TFLite, "
                f"where it is merged with others; leave it out of quantization"
            )
        for tensor in tensors[name]:
            known = result.setdefault(tensor, number)
            if known != number:
                raise InvalidModelError(
                    f"{path}: expected one scale and zero_point of {name}, since TFLite has it "
                    f"once, got {known} and {number}; quantize it once, for all of its readers"
                )
    return result
