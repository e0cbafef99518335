"""The int8 model of a source that is int8 already: its integers, in the layout of the canonical
graph.

Nothing is quantized again. Encodings that the file does not name follow from those that it names: a
tensor whose values are those of another tensor has the same encoding, and a float bias becomes the
nearest steps of input scale times weight scale. An operator computes in float if its integer kernel
needs other numbers than the file has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError
from edgekit.graph import kernels, plain
from edgekit.graph.flatbuffer import Graph, Layer, Operator, short_name
from edgekit.graph.kernels import Number
from edgekit.quantization import encode, reconstruct
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.quantize import Quantized, predictions
from edgekit.quantization.reconstruct import Layers, Rounded
from edgekit.records.encodings import (
    ConstantIntegers,
    Encoding,
    Encodings,
    LayerIntegers,
    Stored,
)

WAY = "taken over from the file"
#: How far the scale of a bias may lie from input scale times weight scale, as a part of it.
_BIAS_SCALE = 1e-6
#: What a number may differ from its integer times its scale by, as a part of a step.
_EXACT = 1e-2
#: Operators whose constant bounds the output.
_BOUNDING = ("MAXIMUM", "MINIMUM")
_EXCLUDE = "leave it out of quantization, with onnxruntime by nodes_to_exclude"


def take_over(
    canonical: bytes,
    numbers: Mapping[str, Number],
    read: Stored,
    *,
    profile: DeviceProfile,
    name: str,
) -> Quantized:
    """Lay out the integers of a file for the canonical graph.

    Args:
        canonical: Float flatbuffer, whose constants are what the file's integers stand for.
        numbers: Encodings of the activations that the file rounds, by canonical tensor.
        read: What the file stores of layers and constants, by canonical tensor.
        profile: The device.
        name: Name of the file, for messages.

    Raises:
        InvalidModelError: If TFLite cannot hold a number of the file; names the tensor.
    """
    return _Taker(canonical, numbers, read, name).run(canonical, profile)


class _Taker:
    def __init__(
        self, canonical: bytes, numbers: Mapping[str, Number], read: Stored, name: str
    ) -> None:
        self._graph, self._read, self._name = Graph(canonical), read, name
        self._numbers = _handed_on(self._graph, numbers)
        self._layers: Layers = {}
        self._constants: dict[str, ConstantIntegers] = {}
        self._in_float: dict[str, str] = {}
        self._derived: list[str] = []

    def run(self, canonical: bytes, profile: DeviceProfile) -> Quantized:
        graph, numbers = self._graph, self._numbers
        for layer in graph.layers:
            self._layer(layer)
        for operator in graph.operators:
            self._operator(operator)
        left = self._read.constants.keys() - self._constants.keys()
        for constant in sorted(left):
            readers = [operator for operator in graph.operators if constant in operator.inputs]
            where = f"{short_name(readers[0].outputs[0])}, which" if readers else f"{constant}, as"
            kind = f" as {readers[0].kind}" if readers else ""
            raise self._refused(
                f"a float constant of {where} TFLite computes in float{kind}, got integers",
                _EXCLUDE,
            )
        graph_of_integers = Graph(canonical)
        tensors = {n: Encoding("int8", (encode.stored(s),), z) for n, (s, z) in numbers.items()}
        for layer in graph.layers:
            if layer.output not in self._layers:
                continue
            rounded = self._layers[layer.output]
            reconstruct.put(graph_of_integers, layer, rounded)
            tensors |= encode.of_layer(layer, rounded.integers)
        of_constants = {
            name: Encoding("int8", (encode.stored(integers.scale),), integers.zero_point)
            for name, integers in self._constants.items()
        }
        stored = Stored(
            dict(numbers),
            {output: rounded.integers for output, rounded in self._layers.items()},
            self._constants,
            frozenset(self._in_float),
        )
        return Quantized(
            graph_of_integers.serialize(),
            Encodings(
                hashlib.sha256(canonical).hexdigest(), profile.name, tensors, {}, of_constants
            ),
            stored,
            WAY,
            "source",
            (),
            tuple(
                prediction for prediction in predictions(graph, self._layers) if prediction.pairs
            ),
            tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        notes = []
        if self._derived:
            notes.append(
                f"{len(self._derived)} biases are float in the file; they became the nearest "
                f"steps of input scale times weight scale: {_some(self._derived)}"
            )
        for why in dict.fromkeys(self._in_float.values()):
            names = [name for name, reason in self._in_float.items() if reason == why]
            notes.append(f"{why}: {_some(names)}")
        return notes

    def _refused(self, expected: str, fix: str) -> InvalidModelError:
        return InvalidModelError(f"{self._name}: expected {expected}; {fix}")

    def _layer(self, layer: Layer) -> None:
        """Integers of a layer, compared with the canonical graph's own numbers."""
        integers = self._read.layers.get(layer.output)
        encoded = layer.input in self._numbers and layer.output in self._numbers
        if integers is None:
            if encoded:
                self._in_float[layer.output] = (
                    "a layer with float weights in the file computes in float"
                )
            return
        if not encoded:
            which = "input" if layer.input not in self._numbers else "output"
            raise self._refused(
                f"the {which} of {layer.short} in int8, since its weights are, and TFLite's "
                f"integer kernels need both, got a float one",
                f"quantize it too, with PyTorch by XNNPACKQuantizer, or {_EXCLUDE}",
            )
        rows, bias = reconstruct.rows_of(self._graph, layer)
        scale = np.broadcast_to(integers.weight_scale, len(rows)).astype(np.float32)
        real = rows / scale[:, None].astype(np.float64)
        steps = np.rint(real)
        whole = (steps.T if layer.kind == "depthwise" else steps).astype(np.int16)
        shape = self._graph.shape(layer.weights)
        same = np.abs(real - steps).max(initial=0) < _EXACT and integers.weights.shape == shape
        if not same or not np.array_equal(whole.reshape(shape), integers.weights):
            raise self._refused(
                f"the weights of {layer.short} as the file has them, got others, since an "
                f"operator beside it is merged into it in TFLite",
                "merge such operators before quantization, with onnxruntime by "
                "onnxruntime.quantization.preprocess",
            )
        input_scale = np.float32(self._numbers[layer.input][0])
        with np.errstate(over="ignore", under="ignore"):
            product = (input_scale * scale).astype(np.float32)
        if not np.isfinite(product).all() or not (product > 0).all():
            raise self._refused(
                f"input scale times weight scale of {layer.short} as float32 can hold it, got "
                f"{float(product.min()):.3g} to {float(product.max()):.3g}",
                "quantize it again",
            )
        bias_scale, steps_of_bias, real_bias = None, None, None
        if layer.bias is not None:
            bias_scale, steps_of_bias = self._bias(layer, integers, bias, product)
            real_bias = (steps_of_bias * bias_scale.astype(np.float64)).astype(np.float32)
        self._layers[layer.output] = Rounded(
            LayerIntegers(integers.weights, scale, steps_of_bias, bias_scale),
            self._graph.constant(layer.weights),
            real_bias,
            False,
        )

    def _bias(
        self,
        layer: Layer,
        integers: LayerIntegers,
        bias: npt.NDArray[np.float64],
        product: npt.NDArray[np.float32],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """(scale, steps) of a bias, the file's or those that follow from it."""
        with np.errstate(over="ignore"):
            steps = np.rint(bias / product.astype(np.float64))
        if integers.bias is None or integers.bias_scale is None:
            if np.abs(steps).max(initial=0) > np.iinfo(np.int32).max:
                raise self._refused(
                    f"a bias of {layer.short} that int32 can hold in steps of input scale times "
                    f"weight scale, got {float(np.abs(bias).max()):.3g}",
                    "quantize its weights with larger scales",
                )
            if bias.any():
                self._derived.append(layer.output)
            return product, steps.astype(np.int32)
        scale = np.broadcast_to(integers.bias_scale, len(bias)).astype(np.float32)
        off = np.abs(scale / product.astype(np.float64) - 1)
        if off.max(initial=0) > _BIAS_SCALE:
            place = int(np.argmax(off))
            raise self._refused(
                f"the scale of the bias of {layer.short} as input scale times weight scale, "
                f"{float(product[place]):.6g}, as TFLite computes it, got "
                f"{float(scale[place]):.6g}",
                "quantize its bias again, with that scale",
            )
        if np.abs(bias / scale - integers.bias).max(initial=0) > _EXACT * max(
            1.0, float(np.abs(integers.bias).max(initial=0)) * 1e-4
        ):
            raise self._refused(
                f"the bias of {layer.short} as the file has it, got another, since an operator "
                f"beside it is merged into it in TFLite",
                "merge such operators before quantization",
            )
        return scale, integers.bias

    def _operator(self, operator: Operator) -> None:
        """Integers of an operator's constants, and whether its kernel can take the numbers."""
        graph, numbers = self._graph, self._numbers
        if (
            not kernels.on_integers(graph, operator, numbers)
            or operator.outputs[0] in self._in_float
        ):
            return
        name = operator.outputs[0]
        fixed = kernels.FIXED.get(operator.kind)
        if fixed is not None and not _near(numbers[name], fixed):
            self._in_float[name] = (
                f"{operator.kind} computes in float, since TFLite's int8 kernel gives "
                f"{fixed[0]:.6g}, {fixed[1]} only, and the file has another scale or zero_point"
            )
            return
        constants = {}
        for constant in kernels.constants(graph, operator):
            integers = self._constant(constant, operator)
            if integers is None:
                self._in_float[name] = (
                    f"{operator.kind} computes in float, since its constant is float in the file"
                )
                return
            constants[constant] = integers
        self._constants.update(constants)

    def _constant(self, name: str, operator: Operator) -> ConstantIntegers | None:
        real, integers = self._graph.constant(name), self._read.constants.get(name)
        if operator.kind in kernels.SAME | kernels.JOINED:
            scale, zero_point = self._numbers[operator.outputs[0]]
            if integers is not None and (integers.scale, integers.zero_point) != (
                scale,
                zero_point,
            ):
                return None
        elif integers is not None:
            scale, zero_point = integers.scale, integers.zero_point
        elif real.size and (real == real.flat[0]).all() and np.isfinite(real).all():
            # one number is 64 steps of a 64th of it, which is exact
            scale, zero_point = float(abs(real.flat[0]) / np.float32(64)) or 1.0, 0
        else:
            return None
        exact = real / np.float32(scale) + zero_point
        steps = np.clip(np.rint(exact), -128, 127)
        # a bound is cut and rounded as the output is; other numbers have to be whole steps
        if operator.kind not in _BOUNDING and np.abs(exact - steps).max(initial=0) > _EXACT:
            return None
        return ConstantIntegers(steps.astype(np.int8), scale, zero_point)


def _near(number: Number, fixed: Number) -> bool:
    """Whether TFLite's kernel takes an encoding as the fixed one."""
    return number[1] == fixed[1] and abs(number[0] / fixed[0] - 1) < 1e-3


def _handed_on(graph: Graph, numbers: Mapping[str, Number]) -> dict[str, Number]:
    """Encodings of the tensors too whose values are those of an encoded one."""
    encoded = dict(numbers)
    readers = plain.readers(graph.operators)
    for operator in graph.operators:
        if operator.kind in kernels.PICKING and operator.inputs[0] in encoded:
            for name in kernels.reals(graph, operator.outputs):
                encoded.setdefault(name, encoded[operator.inputs[0]])
    for name in reversed(encode.computed(graph)):
        behind = {
            encoded.get(user.outputs[0]) if user.kind in kernels.PICKING else None
            for user in readers.get(name, [])
        }
        number = next(iter(behind), None)
        if name not in (*encoded, *graph.outputs) and len(behind) == 1 and number is not None:
            encoded[name] = number
    return encoded


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(short_name, names[:3])) + more
