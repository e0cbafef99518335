"""Encodings: how the real numbers of one model are stored as integers, the same in every format.

Tensor names and the layout of weights are those of the canonical float graph, and the integers are
int8. A format that stores uint8 adds 128 to value and zero_point, which is the same number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.base import schema
from edgekit.base.errors import ArtifactError, EdgekitError, InvalidModelError

SCHEMA_VERSION = 1
FILE = "encodings.json"
FAKE_QUANT_FILE = "fake_quant.json"
#: Numbers that are rounded together: they stay in the cache from step to step.
_BLOCK = 1 << 15


def limits(dtype: str) -> tuple[int, int]:
    """The least and the largest integer of a dtype."""
    if dtype == "int4":  # which numpy has not
        return -8, 7
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


@dataclass(frozen=True)
class Encoding:
    """``q = round(x / scale) + zero_point``.

    Attributes:
        dtype: ``int8`` or ``int16``; ``int4`` of weights, ``int32`` of a bias, ``int64`` of one
            beside int16.
        scale: Real value of a step; one value, or one per channel.
        zero_point: Integer that stands for 0.0; 0 where there is a channel axis.
        axis: The channel axis, or None when one scale serves the tensor.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("int4", "int8", "int16", "int32", "int64"):
            raise InvalidModelError(
                f"expected an encoding as int4, int8, int16, int32 or int64, got {self.dtype!r}"
            )
        if not self.scale or not all(np.isfinite(s) and s > 0 for s in self.scale):
            raise InvalidModelError(f"expected finite scales > 0, got {self.scale[:3]}")
        if self.dtype == "int8" and not -128 <= self.zero_point <= 127:
            raise InvalidModelError(f"expected an int8 zero_point, got {self.zero_point}")
        if self.dtype in ("int16", "int4") and self.zero_point:
            raise InvalidModelError(f"expected zero_point 0 of {self.dtype}, got {self.zero_point}")

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        return limits(self.dtype)

    def fake_quantize(
        self, values: npt.NDArray[np.float32], *, inplace: bool = False
    ) -> npt.NDArray[np.float32]:
        """Real values to the nearest that can be stored; one scale only, rounding half to even.

        Args:
            values: float32, of any shape.
            inplace: Write into ``values``, which are contiguous.
        """
        scale, zero_point = np.float32(self.scale[0]), np.float32(self.zero_point)
        low, high = self.limits
        flat = values.reshape(-1)
        rounded = flat if inplace else np.empty(flat.shape, np.float32)
        for start in range(0, flat.size, _BLOCK):
            steps = flat[start : start + _BLOCK] / scale
            np.rint(steps, out=steps)
            steps += zero_point
            np.clip(steps, low, high, out=steps)
            steps -= zero_point
            np.multiply(steps, scale, out=rounded[start : start + _BLOCK], casting="same_kind")
        return rounded.reshape(values.shape)

    def steps(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """How real values are stored, integers of the same shape; one scale only."""
        scale, zero_point = np.float32(self.scale[0]), np.float32(self.zero_point)
        low, high = self.limits
        flat = values.reshape(-1)
        integers = np.empty(flat.shape, self.dtype)
        for start in range(0, flat.size, _BLOCK):
            steps = flat[start : start + _BLOCK] / scale
            np.rint(steps, out=steps)
            steps += zero_point
            np.clip(steps, low, high, out=steps)
            integers[start : start + _BLOCK] = steps
        return integers.reshape(values.shape)

    def real(
        self, steps: npt.NDArray[Any], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """The real values that are stored, float32 of the same shape; one scale only.

        Args:
            steps: Integers, of any shape.
            out: Where they go; default a new array.
        """
        values = np.subtract(steps, np.float32(self.zero_point), out=out, dtype=np.float32)
        values *= np.float32(self.scale[0])
        return np.asarray(values, np.float32)


@dataclass(frozen=True)
class Encodings(schema.Document):
    """Every quantized tensor's encoding, by name in the canonical graph.

    Attributes:
        graph_sha256: Of the canonical float flatbuffer.
        device: Name of the device profile that they were made for.
        tensors: Activations, weights and biases.
        factors: What equalization multiplied the channels of a tensor with, against the canonical
            graph; a tensor that is not named was left as it is.
        constants: Other constants that integer operators read.
    """

    VERSION: ClassVar[int] = SCHEMA_VERSION
    ERROR: ClassVar[type[EdgekitError]] = ArtifactError
    WHAT: ClassVar[str] = (
        "encodings, as `python -m edgekit.export` writes them into an int8 artifact"
    )
    INDENT: ClassVar[int | None] = None

    graph_sha256: str
    device: str
    tensors: dict[str, Encoding]
    factors: dict[str, tuple[float, ...]] = field(default_factory=dict)
    constants: dict[str, Encoding] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class FakeQuantRecipe(schema.Document):
    """How a Keras model with kernels on their grid becomes the fake-quantized one again.

    Attributes:
        activations: (scale, int8 zero_point) by Keras tensor: a layer's name, with ``/activation``
            for the output of an activation that stands in the layer, and ``:N`` for its later
            calls.
        weight_bits: 2 to 8.
        left_float: Layers that were trained in float.
    """

    VERSION: ClassVar[int] = SCHEMA_VERSION
    ERROR: ClassVar[type[EdgekitError]] = ArtifactError
    WHAT: ClassVar[str] = "a recipe of fake quantization, as `python -m edgekit.qat` writes it"

    activations: dict[str, tuple[float, int]]
    weight_bits: int
    left_float: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= 8:
            raise InvalidModelError(f"expected 2 to 8 bits of weights, got {self.weight_bits}")
        for name, (scale, zero_point) in self.activations.items():
            if not (np.isfinite(scale) and scale > 0 and -128 <= zero_point <= 127):
                raise InvalidModelError(
                    f"expected a finite scale > 0 and an int8 zero_point of {name}, got {scale}, "
                    f"{zero_point}"
                )


@dataclass(frozen=True)
class LayerIntegers:
    """What is stored of one layer.

    Attributes:
        weights: int8 in the canonical layout, ``[O, H, W, I]``, ``[1, H, W, O]`` or ``[O, I]``.
            Of 4 bits they are from -7 to 7.
        weight_scale: float32 ``[O]``.
        bias: int32 ``[O]``, int64 beside int16, or None without a bias.
        bias_scale: float32 ``[O]``, or None without a bias.
        bits: In which a file stores each weight, 8 or 4.
    """

    weights: npt.NDArray[np.int8]
    weight_scale: npt.NDArray[np.float32]
    bias: npt.NDArray[Any] | None
    bias_scale: npt.NDArray[np.float32] | None
    bits: int = 8


@dataclass(frozen=True)
class ConstantIntegers:
    """What is stored of a constant that is no weight of a layer, e.g. a summand.

    Attributes:
        values: Integers of the activations' dtype in the canonical layout.
        scale: float32.
        zero_point: Integer that stands for 0.0.
    """

    values: npt.NDArray[np.int8] | npt.NDArray[np.int16]
    scale: float
    zero_point: int

    def real(self) -> npt.NDArray[np.float32]:
        """The numbers that the integers stand for."""
        whole = self.values.astype(np.float32) - np.float32(self.zero_point)
        return np.asarray(whole * np.float32(self.scale), np.float32)


@dataclass(frozen=True)
class Stored:
    """All integers and scales of an int8 model file, in the canonical graph's words.

    Attributes:
        activations: (float32 scale, zero_point) by tensor name.
        layers: By name of the tensor that a layer writes.
        constants: By tensor name.
        in_float: Outputs of operators that compute in float though all their tensors have
            encodings, since their integer kernels need other ones.
        dtype: Of activations and constants, ``int8`` or ``int16``.
    """

    activations: Mapping[str, tuple[float, int]]
    layers: Mapping[str, LayerIntegers]
    constants: Mapping[str, ConstantIntegers] = field(default_factory=dict)
    in_float: frozenset[str] = frozenset()
    dtype: str = "int8"

    def numbers(self) -> int:
        """How many scales, zero points, weights and biases there are."""
        count = 2 * len(self.activations)
        for layer in self.layers.values():
            parts = (layer.weights, layer.weight_scale, layer.bias, layer.bias_scale)
            count += sum(part.size for part in parts if part is not None)
        return count + sum(2 + constant.values.size for constant in self.constants.values())

    def without(
        self,
        names: Collection[str],
        layers: Collection[str] = (),
        constants: Collection[str] = (),
    ) -> Stored:
        """The same without some activations, layers and constants."""
        kept = {name: each for name, each in self.activations.items() if name not in names}
        left = {name: each for name, each in self.layers.items() if name not in layers}
        stay = {name: each for name, each in self.constants.items() if name not in constants}
        return replace(self, activations=kept, layers=left, constants=stay)

    def without_biases(self, names: Collection[str] | None = None) -> Stored:
        """The same without biases, of all layers or of some, which are float elsewhere."""
        layers = {
            name: replace(layer, bias=None, bias_scale=None)
            if names is None or name in names
            else layer
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers)


@dataclass(frozen=True)
class Difference:
    """One place in which two files store different numbers.

    Attributes:
        tensor: Name in the canonical graph.
        what: ``scale``, ``zero_point``, ``weights``, ``weight scale``, ``bits``, ``bias``,
            ``bias scale``, ``constant`` or ``missing``.
        count: How many numbers differ.
        largest: The largest difference between two of them.
    """

    tensor: str
    what: str
    count: int
    largest: float


def differences(left: Stored, right: Stored) -> tuple[Difference, ...]:
    """Every number that two files of one model store differently; empty if they are the same.

    Scales are compared as float32, bit for bit.
    """
    rows: list[Difference] = []
    for name in sorted({*left.activations, *right.activations}):
        one, other = left.activations.get(name), right.activations.get(name)
        if one is None or other is None:
            rows.append(Difference(name, "missing", 1, 0.0))
            continue
        (scale, zero_point), (other_scale, other_zero_point) = one, other
        rows += _compare(name, "scale", np.float32(scale), np.float32(other_scale))
        rows += _compare(name, "zero_point", np.int64(zero_point), np.int64(other_zero_point))
    for name in sorted({*left.layers, *right.layers}):
        ours, theirs = left.layers.get(name), right.layers.get(name)
        if ours is None or theirs is None:
            rows.append(Difference(name, "missing", 1, 0.0))
            continue
        rows += _compare(name, "bits", ours.bits, theirs.bits)
        for what in ("weights", "weight_scale", "bias", "bias_scale"):
            a, b = getattr(ours, what), getattr(theirs, what)
            if (a is None) != (b is None):
                rows.append(Difference(name, "missing", 1, 0.0))
            elif a is not None:
                if what.endswith("scale") and 1 in (a.size, b.size):  # one for all channels
                    a, b = np.broadcast_arrays(a, b)
                rows += _compare(name, what.replace("_", " "), a, b)
    for name in sorted({*left.constants, *right.constants}):
        ours_c, theirs_c = left.constants.get(name), right.constants.get(name)
        if ours_c is None or theirs_c is None:
            rows.append(Difference(name, "missing", 1, 0.0))
            continue
        rows += _compare(name, "scale", np.float32(ours_c.scale), np.float32(theirs_c.scale))
        rows += _compare(
            name, "zero_point", np.int64(ours_c.zero_point), np.int64(theirs_c.zero_point)
        )
        rows += _compare(name, "constant", ours_c.values, theirs_c.values)
    return tuple(rows)


def _compare(name: str, what: str, left: npt.ArrayLike, right: npt.ArrayLike) -> list[Difference]:
    a, b = np.atleast_1d(left), np.atleast_1d(right)
    if a.shape != b.shape:
        return [Difference(name, f"shape of {what}", a.size, 0.0)]
    other = a != b
    if not other.any():
        return []
    largest = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
    return [Difference(name, what, int(other.sum()), float(largest))]
