"""From ranges to encodings of activations, with the operators that must share a scale.

This is the only place that knows such rules; every writer takes what is decided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.encodings import Encoding
from edgekit.errors import InvalidDataError, InvalidModelError
from edgekit.formats import tflite_integers
from edgekit.formats.flatbuffer import Graph, short_name
from edgekit.quant.profiles import DeviceProfile
from edgekit.quant.table import Range

#: Operators whose output holds values of their input: one scale for both.
_MOVING = frozenset(
    "RESHAPE SQUEEZE EXPAND_DIMS TRANSPOSE PAD PADV2 MIRROR_PAD MAX_POOL_2D AVERAGE_POOL_2D SLICE "
    "STRIDED_SLICE GATHER GATHER_ND SPLIT SPLIT_V UNPACK TILE REVERSE_V2 RESIZE_BILINEAR "
    "RESIZE_NEAREST_NEIGHBOR SPACE_TO_DEPTH DEPTH_TO_SPACE SPACE_TO_BATCH_ND BATCH_TO_SPACE_ND "
    "BROADCAST_TO REDUCE_MAX REDUCE_MIN".split()
)
#: Operators whose inputs all share the output's scale, but for one that is fixed.
_JOINING = tflite_integers.JOINING | {"MINIMUM"}
#: Outputs whose scale and zero_point TensorFlow's "LiteRT 8-bit quantization specification" fixes.
_FIXED = {
    "SOFTMAX": (1 / 256, -128),
    "LOGISTIC": (1 / 256, -128),
    "TANH": (1 / 128, 0),
    "L2_NORMALIZATION": (1 / 128, 0),
    "LOG_SOFTMAX": (16 / 256, 127),
}


@dataclass(frozen=True)
class Sharing:
    """Which activations have one scale.

    Attributes:
        roots: By tensor name, one tensor that stands for all that share its scale; in order of
            execution.
        fixed: (scale, zero_point) that the specification sets, by root.
        direct: Tensors whose own operator sets them.
    """

    roots: dict[str, str]
    fixed: dict[str, tuple[float, int]]
    direct: frozenset[str]


def sharing(graph: Graph, floats: Collection[str] = ()) -> Sharing:
    """Find the operators that must share a scale, and those whose scale is fixed.

    Args:
        graph: Float.
        floats: Tensors that stay float. An operator that reads or writes one computes in float,
            and asks nothing of the scales of its other tensors.
    """
    groups = _Groups()
    fixed: dict[str, tuple[float, int]] = {}
    for operator in graph.operators:
        if operator.touches(floats):
            continue
        fed = [name for name in operator.inputs if name and not graph.is_constant(name)]
        fed = [name for name in fed if graph.dtype(name) == np.float32]
        written = [name for name in operator.outputs if graph.dtype(name) == np.float32]
        if operator.kind in _MOVING:
            # what is gathered or sliced comes first; other inputs are indices
            for name in written if fed else ():
                groups.join(fed[0], name)
        elif operator.kind in _JOINING:
            set_by = {groups.root(name): value for name, value in fixed.items()}
            scales = {set_by.get(groups.root(name)) for name in fed}
            scales |= {None for name in operator.inputs if graph.is_constant(name)}
            if len(scales) > 1 and operator.kind in tflite_integers.JOINING:
                fed = [name for name in fed if groups.root(name) not in set_by]
            for name in (*fed, *written[1:]):
                groups.join(written[0], name)
        elif operator.kind in _FIXED:
            for name in written:
                fixed[name] = _FIXED[operator.kind]
    return Sharing(
        {name: groups.root(name) for name in computed(graph) if name not in floats},
        {groups.root(name): value for name, value in fixed.items()},
        frozenset(fixed),
    )


def activations(
    graph: Graph,
    ranges: Mapping[str, Range],
    profile: DeviceProfile,
    floats: Collection[str] = (),
) -> dict[str, Encoding]:
    """The encoding of every activation.

    Args:
        graph: Float.
        ranges: By tensor name, of every float tensor that is computed.
        profile: Says whether zero_point has to be 0.
        floats: Tensors that stay float, and so get none.

    Raises:
        InvalidDataError: If a tensor has no range, or one of width 0.
        InvalidModelError: If a fixed scale is joined with values that do not fit it, or indices
            are made from real numbers.
    """
    for operator in graph.operators:
        if operator.touches(floats):
            continue
        if operator.kind == "CAST" and graph.dtype(operator.inputs[0]) == np.float32:
            if np.issubdtype(graph.dtype(operator.outputs[0]) or np.float32, np.integer):
                raise InvalidModelError(
                    f"{short_name(operator.outputs[0])} takes whole numbers from "
                    f"{short_name(operator.inputs[0])}, which is float and would be rounded to one "
                    f"of 256 steps; give the input the dtype int32, e.g. Input(shape, "
                    f"dtype='int32') before an Embedding"
                )
    found = sharing(graph, floats)
    shared: dict[str, Range] = {}
    for name, root in found.roots.items():
        if name not in ranges:
            raise InvalidDataError(
                f"{short_name(name)} has no range in the calibration table; calibrate this model"
            )
        own = ranges[name]
        before = shared.get(root, own)
        shared[root] = Range(min(before.min, own.min), max(before.max, own.max))
    encodings = {}
    for name, root in found.roots.items():
        if root in found.fixed and not profile.symmetric:
            scale, zero_point = found.fixed[root]
            if name not in found.direct:
                _check_fixed(name, scale, zero_point, ranges[name])
        else:
            scale, zero_point = _place(name, shared[root], profile)
        encodings[name] = Encoding("int8", (stored(scale),), zero_point)
    if not profile.symmetric:
        for inner, outer in _clipped(graph, found, floats).items():
            encodings[inner] = encodings[outer]
    return encodings


def _clipped(graph: Graph, found: Sharing, floats: Collection[str]) -> dict[str, str]:
    """What only a ReLU reads, by its answer: the range of the answer clips as the ReLU does."""
    readers: dict[str, int] = {}
    for operator in graph.operators:
        for name in operator.inputs:
            readers[name] = readers.get(name, 0) + 1
    members = Counter(found.roots.values())
    return {
        operator.inputs[0]: operator.outputs[0]
        for operator in graph.operators
        if operator.kind in ("RELU", "RELU6")
        and not operator.touches(floats)
        and readers[operator.inputs[0]] == 1
        and operator.inputs[0] not in (*graph.inputs, *graph.outputs)
        and members[found.roots.get(operator.inputs[0], "")] == 1
        and found.roots[operator.inputs[0]] not in found.fixed
    }


def stored(scale: float) -> float:
    """A scale as float32 holds it, as the shortest decimal that gives it back."""
    return float(str(np.float32(scale)))


def _check_fixed(name: str, scale: float, zero_point: int, found: Range) -> None:
    low, high = (-129 - zero_point) * scale, (128 - zero_point) * scale  # a step of grace
    if found.min < low or found.max > high:
        raise InvalidModelError(
            f"{short_name(name)} shares its scale with a softmax, sigmoid or tanh, whose int8 "
            f"scale is fixed, but its values from {found.min:.3g} to {found.max:.3g} do not fit "
            f"it; join them in another way than {', '.join(sorted(_JOINING))}"
        )


def _place(name: str, found: Range, profile: DeviceProfile) -> tuple[float, int]:
    low, high = min(found.min, 0.0), max(found.max, 0.0)  # 0.0 lies on a step
    if high - low <= 0 or not np.float32((high - low) / 255) > 0:
        raise InvalidDataError(
            f"{short_name(name)} is 0 for every calibration image: a range of width 0 has no "
            f"scale; calibrate with images that use it, or take the dead branch out of the model"
        )
    if profile.symmetric:
        return max(-low, high) / 127, 0
    scale = float(np.float32((high - low) / 255))
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))


def computed(graph: Graph) -> list[str]:
    """Float tensors that are fed or computed, in order of execution."""
    order = [*graph.inputs]
    for operator in graph.operators:
        order += operator.outputs
    floats = [name for name in dict.fromkeys(order) if graph.dtype(name) == np.float32]
    return [name for name in floats if 0 not in graph.shape(name)]  # a part of a split can be empty


class _Groups:
    """Tensors that share a scale."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        while name in self._parent:
            name = self._parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        first, second = self.root(one), self.root(other)
        if first != second:
            self._parent[second] = first
