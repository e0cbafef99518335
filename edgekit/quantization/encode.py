"""From ranges to encodings of activations; some operators must share a scale.

This is the only module with such rules. Every writer takes its encodings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, InvalidModelError
from edgekit.graph import kernels, plain
from edgekit.graph.flatbuffer import Graph, Layer, Operator, short_name
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.table import Range
from edgekit.records.encodings import Encoding, LayerIntegers, limits

#: Elementwise operators whose output has no range that 256 steps could stand for on the way to
#: another number.
_STEEP = frozenset(("DIV", "EXP", "LOG", "POW"))
#: Scale of a constant whose numbers are smaller than float32 can divide by 255.
_LEAST = 1e-30
#: Scale of what is always 0, which every scale holds.
_ANY_SCALE = 1 / 256
#: How much larger the range of int16 is than what calibration showed. Steps that are twice as wide
#: cost next to nothing beside int8 weights; a value beyond the range costs all that it exceeds.
_HEADROOM = 2


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


@dataclass(frozen=True)
class Group:
    """Activations that have one encoding.

    Attributes:
        names: Theirs, in order of execution.
        range: Of all together.
        fixed: (scale, zero_point) if the specification sets it.
    """

    names: tuple[str, ...]
    range: Range
    fixed: tuple[float, int] | None = None


def sharing(graph: Graph, floats: Collection[str] = (), dtype: str = "int8") -> Sharing:
    """Find the operators that must share a scale, and those whose scale is fixed.

    Args:
        graph: Float.
        floats: Tensors that stay float. An operator that reads or writes one computes in float,
            and asks nothing of the scales of its other tensors.
        dtype: Of activations, ``int8`` or ``int16``.
    """
    groups = _Groups()
    fixed: dict[str, tuple[float, int]] = {}
    floats, fixing = left_float(graph, floats, dtype), kernels.fixed(dtype)
    for operator in graph.operators:
        if operator.touches(floats):
            continue
        fed = [name for name in operator.inputs if name and not graph.is_constant(name)]
        fed = [name for name in fed if graph.dtype(name) == np.float32]
        written = [name for name in operator.outputs if graph.dtype(name) == np.float32]
        if operator.kind in kernels.SAME:
            # what is gathered or sliced comes first; other inputs are indices
            for name in written if fed else ():
                groups.join(fed[0], name)
        elif operator.kind in kernels.JOINED - kernels.CHOOSING:
            set_by = {groups.root(name): value for name, value in fixed.items()}
            scales = {set_by.get(groups.root(name)) for name in fed}
            scales |= {None for name in operator.inputs if graph.is_constant(name)}
            if len(scales) > 1:
                fed = [name for name in fed if groups.root(name) not in set_by]
            for name in (*fed, *written[1:]):
                groups.join(written[0], name)
        elif operator.kind in fixing:
            for name in written:
                fixed[name] = fixing[operator.kind]
    return Sharing(
        {name: groups.root(name) for name in computed(graph) if name not in floats},
        {groups.root(name): value for name, value in fixed.items()},
        frozenset(fixed),
    )


def groups(
    graph: Graph, ranges: Mapping[str, Range], floats: Collection[str] = ()
) -> dict[str, Group]:
    """What has one encoding with which range, by each of its activations in order of execution.

    Args:
        graph: Float.
        ranges: By tensor name, of every float tensor that is computed.
        floats: Tensors that stay float, and so are in no group.

    Raises:
        InvalidDataError: If a tensor has no range.
    """
    return _groups(graph, ranges, sharing(graph, floats))


def _groups(graph: Graph, ranges: Mapping[str, Range], shared_scales: Sharing) -> dict[str, Group]:
    shared: dict[str, Range] = {}
    names: dict[str, list[str]] = {}
    for name, root in shared_scales.roots.items():
        if name not in ranges:
            raise InvalidDataError(
                f"{short_name(name)} has no range in the calibration table; calibrate this model"
            )
        shared[root] = around([shared.get(root, ranges[name]), ranges[name]])
        names.setdefault(root, []).append(name)
    for together in _of_one_kernel(graph, shared, shared_scales):
        shared.update(dict.fromkeys(together, around([shared[root] for root in together])))
        names.update(dict.fromkeys(together, [name for root in together for name in names[root]]))
    by_root = {
        root: Group(tuple(names[root]), interval, shared_scales.fixed.get(root))
        for root, interval in shared.items()
    }
    return {name: by_root[root] for name, root in shared_scales.roots.items()}


def around(ranges: Collection[Range]) -> Range:
    """The range that holds several."""
    return Range(min(interval.min for interval in ranges), max(interval.max for interval in ranges))


def activations(
    graph: Graph,
    ranges: Mapping[str, Range],
    profile: DeviceProfile,
    floats: Collection[str] = (),
) -> dict[str, Encoding]:
    """The encoding of every activation but those that :func:`left_float` names; of none where the
    profile has float32 activations.

    Args:
        graph: Float.
        ranges: By tensor name, of every float tensor that is computed.
        profile: Says whether zero_point has to be 0, and the dtype.
        floats: Tensors that stay float, and so get none.

    Raises:
        InvalidDataError: If a tensor has no range, or one of width 0.
        InvalidModelError: If a fixed scale is joined with values that do not fit it, or indices
            are made from real numbers.
    """
    dtype = profile.activations
    if dtype == "float32":
        return {}
    floats = left_float(graph, floats, dtype)
    for operator in graph.operators:
        source = operator.inputs[0] if operator.kind == "CAST" else ""
        if source and graph.dtype(source) == np.float32 and source not in floats:
            if np.issubdtype(graph.dtype(operator.outputs[0]) or np.float32, np.integer):
                raise InvalidModelError(
                    f"{short_name(operator.outputs[0])} takes whole numbers from "
                    f"{short_name(source)}, which is float and would be rounded to one "
                    f"of 256 steps; give the input the dtype int32, e.g. Input(shape, "
                    f"dtype='int32') before an Embedding"
                )
    shared_scales = sharing(graph, floats, dtype)
    encodings = {}
    nothing = Range(0.0, 0.0)
    of = _groups(graph, ranges, shared_scales)
    zeros = _always_zero(graph) if nothing in [group.range for group in of.values()] else set()
    for name, group in of.items():
        if name in zeros and group.range == nothing:
            scale, zero_point = _ANY_SCALE, 0
        elif group.fixed is not None and (dtype == "int16" or not profile.symmetric):
            scale, zero_point = group.fixed
            if name not in shared_scales.direct:
                _check_fixed(name, scale, zero_point, ranges[name], dtype)
        else:
            scale, zero_point = place(name, group.range, profile)
            scale *= _HEADROOM if dtype == "int16" else 1
        encodings[name] = Encoding(dtype, (stored(scale),), zero_point)
    if not profile.symmetric:
        for inner, outer in _clipped(graph, shared_scales, floats).items():
            if inner in encodings and outer in encodings:
                encodings[inner] = encodings[outer]
    return encodings


def _always_zero(graph: Graph) -> set[str]:
    """Tensors that are 0 whatever the input is: products with a constant of zeros, as the state
    before the first step of an unrolled recurrent layer is one."""
    zeros: set[str] = set()
    for operator in graph.operators:
        if operator.kind == "MUL":
            zero = any(
                name in zeros or (graph.is_constant(name) and not graph.constant(name).any())
                for name in operator.inputs
            )
        else:
            zero = operator.kind in kernels.SAME and operator.inputs[0] in zeros
        if zero:
            zeros.update(operator.outputs)
    return zeros


def of_layer(layer: Layer, integers: LayerIntegers) -> dict[str, Encoding]:
    """The encodings of a layer's weights, and of its bias where that is rounded."""
    dtype = f"int{integers.bits}"
    encodings = {layer.weights: Encoding(dtype, scales(integers.weight_scale), 0, layer.axis)}
    if layer.bias is not None and integers.bias_scale is not None:
        assert integers.bias is not None
        encodings[layer.bias] = Encoding(
            str(integers.bias.dtype), scales(integers.bias_scale), 0, 0
        )
    return encodings


def scales(values: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """Scales as an encoding has them."""
    return tuple(stored(value) for value in values)


def constants(
    graph: Graph, encodings: Mapping[str, Encoding], profile: DeviceProfile
) -> dict[str, Encoding]:
    """The encoding of every constant that an integer operator reads, but for layers' weights.

    Args:
        graph: Float.
        encodings: Encodings of activations.
        profile: Says whether zero_point has to be 0.
    """
    numbers = {
        name: (encoding.scale[0], encoding.zero_point) for name, encoding in encodings.items()
    }
    of_constants = {}
    for operator in graph.operators:
        if not kernels.on_integers(graph, operator, numbers, profile.activations):
            continue
        for name in kernels.constants(graph, operator):
            if operator.kind in kernels.SAME | kernels.JOINED:
                of_constants[name] = encodings[kernels.reals(graph, operator.outputs)[0]]
                continue
            values = graph.constant(name)
            if not np.isfinite(values).all():
                raise InvalidModelError(
                    f"the constant of {short_name(operator.outputs[0])} holds NaN or infinity; "
                    f"write a large number in its place"
                )
            low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
            if high <= low:
                scale, zero_point = _ANY_SCALE, 0
            elif profile.symmetric or operator.kind in kernels.SYMMETRIC:
                scale, zero_point = max(-low, high) / limits(profile.activations)[1], 0
            else:
                scale, zero_point = place(name, Range(low, high), profile)
            number = (stored(max(scale, _LEAST)),)
            of_constants[name] = Encoding(profile.activations, number, zero_point)
    return of_constants


def left_float(graph: Graph, floats: Collection[str] = (), dtype: str = "int8") -> frozenset[str]:
    """Float tensors that no integer stands for: those that are given, and what follows from the
    graph.

    Those are the steps of an activation that is made of several operators, such as SELU, softplus
    or mish, where one of them has values of any size: only its inputs and outputs are rounded.
    Numbers that places are computed with are exact. And what no integer kernel reads or writes is
    float between its neighbours.
    """
    floats = {*floats, *_steps_of_activations(graph, dtype), *_counts(graph)}
    names = set(computed(graph)) - set(graph.inputs) - set(graph.outputs)
    while True:
        touched = {
            name
            for operator in graph.operators
            for name in kernels.reals(graph, (*operator.inputs, *operator.outputs))
            if kernels.has_kernel(graph, operator, dtype)
            and floats.isdisjoint((*operator.inputs, *operator.outputs))
        }
        more = names - touched - floats
        if not more:
            return frozenset(floats)
        floats |= more


def _steps_of_activations(graph: Graph, dtype: str) -> set[str]:
    """Tensors inside of what computes each number of a tensor from the same number of another."""
    roots: dict[str, str] = {}
    members: dict[str, list[Operator]] = {}
    for operator in graph.operators:
        fed = {n for n in operator.inputs if n and not graph.is_constant(n)}
        origin = {roots.get(name, name) for name in fed}
        if operator.kind not in kernels.ELEMENTWISE or len(origin) != 1:
            continue
        (root,) = origin
        if graph.shape(operator.outputs[0]) == graph.shape(root):
            roots[operator.outputs[0]] = root
            members.setdefault(root, []).append(operator)
    readers = plain.readers(graph.operators)
    names: set[str] = set()
    for operators in members.values():
        inner = {
            operator.outputs[0]
            for operator in operators
            if operator.outputs[0] not in graph.outputs
            and all(reader in operators for reader in readers.get(operator.outputs[0], []))
        }
        parts = _Groups()
        for operator in operators:
            own = [name for name in (*operator.inputs, *operator.outputs) if name in inner]
            for name in own[1:]:
                parts.join(own[0], name)
        steep = {
            parts.root(name)
            for operator in operators
            if operator.kind in _STEEP or _lacks_kernel(graph, operator, dtype)
            for name in (*operator.inputs, *operator.outputs)
            if name in inner
        }
        names |= {name for name in inner if parts.root(name) in steep}
    return {name for name in names if graph.dtype(name) == np.float32}


def _lacks_kernel(graph: Graph, operator: Operator, dtype: str) -> bool:
    """Whether an operator on float tensors alone has no integer kernel."""
    if operator.kind in kernels.integer(dtype) or not kernels.reals(graph, operator.inputs):
        return False
    return bool(kernels.reals(graph, operator.outputs))


def _counts(graph: Graph) -> set[str]:
    """Float tensors that are made from whole numbers and become whole numbers again."""
    counted: set[str] = set()
    for operator in graph.operators:
        fed = kernels.reals(graph, operator.inputs)
        whole = [n for n in operator.inputs if n and not graph.is_constant(n) and n not in fed]
        if (operator.kind == "CAST" and whole) or (fed and counted.issuperset(fed)):
            counted.update(kernels.reals(graph, operator.outputs))
    names: set[str] = set()
    for operator in reversed(graph.operators):
        own = counted.intersection(kernels.reals(graph, operator.inputs))
        becomes_whole = operator.kind == "CAST" and not kernels.reals(graph, operator.outputs)
        kind = graph.dtype(operator.outputs[0])
        if (becomes_whole and np.issubdtype(kind or np.float32, np.integer)) or names & set(
            operator.outputs
        ):
            names |= own
    return names


def _of_one_kernel(
    graph: Graph, ranges: Mapping[str, Range], shared_scales: Sharing
) -> list[list[str]]:
    """Roots of what layers with the same weights read, where their ranges are about the same.

    With one scale the biases of the layers are the same integers, and stored once: a recurrent
    layer that was unrolled is as many layers as it has steps.
    """
    layers: dict[bytes, list[str]] = {}
    for layer in graph.layers:
        root = shared_scales.roots.get(layer.input, "")
        if root in ranges and root not in shared_scales.fixed:
            layers.setdefault(graph.kernel(layer), []).append(root)
    result: list[list[str]] = []
    for roots in layers.values():
        widths = {root: _width(ranges[root]) for root in roots}
        left = sorted(widths, key=widths.__getitem__, reverse=True)
        while left:
            near = [root for root in left if 2 * widths[root] >= widths[left[0]]]
            low = min(min(ranges[root].min, 0.0) for root in near)
            high = max(max(ranges[root].max, 0.0) for root in near)
            if high - low <= 2 * min(widths[root] for root in near):
                result.append(near)
            left = [root for root in left if root not in near]
    return [roots for roots in result if len(roots) > 1]


def _width(interval: Range) -> float:
    return max(interval.max, 0.0) - min(interval.min, 0.0)


def _clipped(graph: Graph, shared_scales: Sharing, floats: Collection[str]) -> dict[str, str]:
    """What only a ReLU reads, by its output: the range of the output clips as the ReLU does."""
    readers: dict[str, int] = {}
    for operator in graph.operators:
        for name in operator.inputs:
            readers[name] = readers.get(name, 0) + 1
    members = Counter(shared_scales.roots.values())
    return {
        operator.inputs[0]: operator.outputs[0]
        for operator in graph.operators
        if operator.kind in kernels.RECTIFYING
        and not operator.touches(floats)
        and readers[operator.inputs[0]] == 1
        and operator.inputs[0] not in (*graph.inputs, *graph.outputs)
        and members[shared_scales.roots.get(operator.inputs[0], "")] == 1
        and shared_scales.roots[operator.inputs[0]] not in shared_scales.fixed
    }


def stored(scale: float) -> float:
    """A scale as float32 holds it, as the shortest decimal that gives it back."""
    return float(str(np.float32(scale)))


def _check_fixed(name: str, scale: float, zero_point: int, interval: Range, dtype: str) -> None:
    least, largest = limits(dtype)
    low, high = (least - 1 - zero_point) * scale, (largest + 1 - zero_point) * scale  # of grace
    if interval.min < low or interval.max > high:
        raise InvalidModelError(
            f"{short_name(name)} shares its scale with a softmax, sigmoid or tanh, whose {dtype} "
            f"scale is fixed, but its values from {interval.min:.3g} to {interval.max:.3g} do not "
            f"fit it; join them by another operator than {', '.join(sorted(kernels.JOINED))}"
        )


def place(name: str, interval: Range, profile: DeviceProfile) -> tuple[float, int]:
    """scale and zero_point of a range.

    Args:
        name: Of the activation, for messages.
        interval: Its range; 0.0 is made a part of it.
        profile: Says whether zero_point has to be 0.

    Raises:
        InvalidDataError: If the range has width 0.
    """
    low, high = min(interval.min, 0.0), max(interval.max, 0.0)  # 0.0 lies on a step
    if high - low <= 0 or not np.float32((high - low) / 255) > 0:
        raise InvalidDataError(
            f"{short_name(name)} is 0 for every calibration image: a range of width 0 has no "
            f"scale; calibrate with images that use it, or take the dead branch out of the model"
        )
    if profile.symmetric:
        return max(-low, high) / limits(profile.activations)[1], 0
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

    def join(self, name: str, other: str) -> None:
        first, second = self.root(name), self.root(other)
        if first != second:
            self._parent[second] = first
