"""Which tensors stay float in an int8 model, because 8 bits cannot hold what they say.

An operator that reads or writes such a tensor computes in float: a float island between integers.
Four rules find them, and each says why:

* variances, lengths and their roots are float: small ones count as much as large ones;
* the parts of a concatenation at the end of the graph that differ in size by more than
  :data:`SIZES` keep scales of their own, and the joined output is float;
* an output of which rounding kills a channel is float;
* a walk gives every operator inputs that are exact but for their own rounding. Where little is left
  of what the operator computes, e.g. 1 / sqrt of a variance, the inputs to blame stay float.

Errors of two operators never mix in that walk, so that it names causes and not what suffers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.graph import kernels, plain, walk
from edgekit.graph import relative as small
from edgekit.graph.flatbuffer import Graph, Operator, short_name
from edgekit.quantization import encode
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.table import Range
from edgekit.records import fidelity
from edgekit.records.encodings import Encoding

#: Parts of a join that differ in size by more than this do not share a scale at the graph's end.
SIZES = 8.0
#: A part of a join in the middle of the graph that has fewer steps than this is said.
_STEPS = 4
#: What is tried in turn: SQNR in dB, mean removed, that rounded inputs have to leave of what an
#: operator computes, and that of the outputs from which on nothing more has to stay float. Of
#: networks that quantize well all operators keep 27 dB and more.
LIMITS = (
    (fidelity.POOR, 30.0),
    (fidelity.CLOSE, 30.0),
    (25.0, fidelity.POOR),
    (30.0, fidelity.POOR),
    (35.0, fidelity.POOR),
)
#: Numbers of a sample that are looked at together, so that they stay in the cache.
_COLUMNS = 1 << 13
#: Sum of squares below which some of them may be too small for float32.
_LEAST = 1e-25
#: Samples of the walk.
SAMPLES = 32
#: What varies below this part of the power is the rounding of float32.
_SAME = 1e-10
_ROUNDS = 16
#: Inputs of which small values count as much as large ones.
_RELATIVE = {"RSQRT": (0,), "SQRT": (0,), "LOG": (0,), "POW": (0,), "DIV": (1,)}
#: Operators that variances and lengths are made of.
_GATHERING = frozenset(
    "ADD MAXIMUM MEAN MINIMUM MUL RESHAPE SQUARE SQUARED_DIFFERENCE SUB SUM TRANSPOSE".split()
)

#: Why a tensor stays float, by its name.
Floats = dict[str, str]


def joins(graph: Graph, ranges: Mapping[str, Range]) -> Floats:
    """Joined outputs whose parts differ in size by more than :data:`SIZES`.

    Args:
        graph: Float.
        ranges: By tensor name.
    """
    floats: Floats = {}
    for operator in _ending(graph):
        widths = [width for width in _widths(graph, operator, ranges).values() if width > 0]
        if widths and max(widths) > SIZES * min(widths):
            why = f"its parts differ in size, {_number(min(widths))} and {_number(max(widths))}"
            floats[operator.outputs[0]] = why
    return closed(graph, floats)


def relative(graph: Graph) -> Floats:
    """Tensors of which small values count as much as large ones: what only roots, logarithms and
    divisors read, such as the variance of a layer normalization, and the roots themselves."""
    operators = graph.operators
    gathered = small.operators(
        operators,
        frozenset(graph.outputs),
        _RELATIVE,
        lambda operator: operator.kind in _GATHERING,
    )
    names = {operators[position].outputs[0] for position in gathered}
    for operator in operators:
        if operator.kind in ("RSQRT", "SQRT") and operator.inputs[0] in names:
            names.update(name for name in operator.outputs if name not in graph.outputs)
    return closed(graph, dict.fromkeys(names, "its small values count as much as its large ones"))


def judged(graph: Graph, floats: Collection[str]) -> tuple[str, ...]:
    """What methods are judged by: the outputs, but what goes into a last softmax in its place, and
    the computed parts in place of a joined output that stays float."""
    makers = {name: operator for operator in graph.operators for name in operator.outputs}

    def before(name: str) -> Iterator[str]:
        maker = makers.get(name)
        if maker is not None and maker.kind in kernels.SOFTMAX:
            yield maker.inputs[0]
            return
        source = name
        while maker is not None and maker.kind in kernels.MOVED:
            source = maker.inputs[0]
            maker = makers.get(source)
        if maker is not None and maker.kind in kernels.STACKED and source in floats:
            for part in walk.fed(graph, maker):
                yield from before(part)
        else:
            yield name

    return tuple(dict.fromkeys(tensor for name in graph.outputs for tensor in before(name)))


def swallowed(graph: Graph, ranges: Mapping[str, Range], floats: Collection[str]) -> list[str]:
    """A sentence for each join in which a part has less than :data:`_STEPS` steps."""
    sentences = []
    for operator in graph.operators:
        if operator.kind not in kernels.STACKED or operator.touches(floats):
            continue
        widths = _widths(graph, operator, ranges)
        step = max(widths.values(), default=0.0) / 255
        small = [name for name, width in widths.items() if 0 < width < _STEPS * step]
        if small:
            sentences.append(
                f"{short_name(operator.outputs[0])}: its parts share a step of {step:.2g}, and "
                f"{', '.join(f'{short_name(n)} is {_number(widths[n])} wide' for n in small[:3])}: "
                f"nearly nothing of it is left; scale it up in the model where it matters"
            )
    return sentences


@dataclass(frozen=True)
class _Judged:
    """What rounded inputs leave of what an operator computes.

    Attributes:
        left: SQNR in dB with all inputs rounded.
        alone: With one input rounded, by its name; empty where nobody asked.
    """

    left: float
    alone: Mapping[str, float]


class Search:
    """Lets stay float what rounding takes from an operator, until all keep enough.

    What an operator loses depends on the scales of its inputs alone, or on where the float island
    begins that it lies in. It is computed once for each such case: from one round to the next only
    a few operators have other inputs.

    Args:
        graph: Float.
        ranges: By tensor name.
        profile: The device.
        feed: Preprocessed samples ``[N, ...]`` by input name; :data:`SAMPLES` of them are walked.
        threads: Number of threads of the float operators.
        advance: Called with the name of each operator that is walked.
    """

    def __init__(
        self,
        graph: Graph,
        ranges: Mapping[str, Range],
        profile: DeviceProfile,
        feed: walk.Values,
        *,
        threads: int,
        advance: Callable[[str], None] = lambda name: None,
    ) -> None:
        count = walk.samples(graph, feed)
        places = np.unique(np.linspace(0, count - 1, SAMPLES).astype(np.int64))
        self._graph, self._ranges, self._profile = graph, ranges, profile
        self._feed, self._count = walk.picked(graph, feed, places), len(places)
        self._threads, self._advance = threads, advance
        self._operators = graph.operators
        self._steps: dict[int, walk.Step] = {}
        self._makers = {name: i for i, o in enumerate(self._operators) for name in o.outputs}
        self._judged: dict[int, _Judged] = {}
        self._dead: dict[tuple[str, Encoding], bool] = {}

    def find(self, floats: Mapping[str, str], *, least_sqnr: float) -> tuple[Floats, float]:
        """Find all tensors that stay float.

        Args:
            floats: Those that stay float already, and why.
            least_sqnr: SQNR in dB that rounded inputs have to leave of what an operator computes.

        Returns:
            All of them, and what the operator keeps that then keeps least, in dB.
        """
        floating, least = dict(floats), -np.inf
        for _ in range(_ROUNDS):
            encodings = encode.activations(self._graph, self._ranges, self._profile, floating)
            more, least = self._round(encodings, floating, least_sqnr)
            if more.keys() <= floating.keys():
                break
            floating = closed(self._graph, {**more, **floating})
        return floating, least

    def noise(
        self, encodings: Mapping[str, Encoding], floats: Collection[str] = ()
    ) -> dict[str, float]:
        """What rounding each tensor alone adds to what is computed from it, over what varies there.

        Args:
            encodings: Of activations.
            floats: Tensors that stay float.

        Returns:
            By tensor name, the sum over its readers; of an output of the graph also its own.
        """
        graph, cases = self._graph, self._cases(encodings, floats)
        reading = {
            position: case
            for position, case in cases.items()
            if self._operators[position].kind not in kernels.PLACED
        }
        self._walk(reading, (), cases, encodings, floats, np.inf)
        noise = dict.fromkeys(encodings, 0.0)
        for case in reading.values():
            for name, left in self._judged[case].alone.items():
                if name in noise:
                    noise[name] += _ratio(left)
        exact = walk.run(graph.serialize(), graph, self._feed, threads=self._threads)
        for name, values in zip(graph.outputs, exact, strict=True):
            if name in encodings:
                own = encodings[name].fake_quantize(values)
                noise[name] += _ratio(_left(graph, (name,), [values], [own], self._count))
        return noise

    def _round(
        self, encodings: Mapping[str, Encoding], floats: Collection[str], least_sqnr: float
    ) -> tuple[Floats, float]:
        """Tensors whose rounding takes too much, and the least kept."""
        graph, cases = self._graph, self._cases(encodings, floats)
        outputs = [name for name in graph.outputs if name in encodings and name not in floats]
        unknown = {
            position
            for position, case in cases.items()
            # what a part of something loses is for its readers to say
            if self._operators[position].kind not in kernels.PLACED
            and (
                case not in self._judged
                or (self._judged[case].left < least_sqnr and not self._judged[case].alone)
            )
        }
        unasked = [name for name in outputs if (name, encodings[name]) not in self._dead]
        if unknown or unasked:
            self._walk(unknown, unasked, cases, encodings, floats, least_sqnr)
        more: Floats = {}
        least = np.inf
        makers = {name: self._operators[i] for name, i in self._makers.items()}
        for position, case in cases.items():
            operator = self._operators[position]
            if operator.kind in kernels.PLACED:
                continue
            judged = self._judged[case]
            least = min(least, judged.left)
            if judged.left >= least_sqnr:
                continue
            worst = min(judged.alone, key=judged.alone.__getitem__)
            for name, own in judged.alone.items():
                if own < least_sqnr or name == worst:
                    why = _why(graph, operator, judged.left)
                    rounded = _rounded_before(name, floats, makers)
                    more.update(dict.fromkeys((n for n in rounded if n in encodings), why))
        for name in outputs:
            if self._dead[name, encodings[name]]:
                more[name] = "a step of int8 is wider than what varies in one of its channels"
        return more, float(least)

    def _cases(self, encodings: Mapping[str, Encoding], floats: Collection[str]) -> dict[int, int]:
        """By the position of each operator, the same number where its inputs are rounded alike."""
        cases: dict[int, int] = {}
        for position, operator in enumerate(self._operators):
            inputs = tuple(
                (name, cases.get(self._makers.get(name, -1)))
                if name in floats
                else (name, encodings.get(name))
                for name in walk.fed(self._graph, operator)
            )
            cases[position] = hash((position, inputs))
        return cases

    def _walk(
        self,
        unknown: Collection[int],
        outputs: Collection[str],
        cases: Mapping[int, int],
        encodings: Mapping[str, Encoding],
        floats: Collection[str],
        least_sqnr: float,
    ) -> None:
        """Judge some operators and outputs; only what they depend on is computed."""
        graph = self._graph
        noisy, needed = set(unknown), {self._makers[n] for n in outputs if n in self._makers}
        needed |= noisy
        for position in range(len(self._operators) - 1, -1, -1):
            if position not in needed:
                continue
            for name in walk.fed(graph, self._operators[position]):
                if name in self._makers:
                    needed.add(self._makers[name])
                    if position in noisy and name in floats:
                        noisy.add(self._makers[name])
        exact = dict(self._feed)
        island = {name: values for name, values in exact.items() if name in floats}
        last_reader = walk.last_readers(graph)

        def rounded(name: str) -> npt.NDArray[np.float32]:
            if name in island:
                return island[name]
            return encodings[name].fake_quantize(exact[name]) if name in encodings else exact[name]

        for position in sorted(needed):
            operator = self._operators[position]
            if position not in self._steps:
                self._steps[position] = walk.Step(graph, position, threads=self._threads)
            step = self._steps[position]
            self._advance(operator.outputs[0])
            values = step.run(exact)
            noisy_values = values
            if position in noisy:
                noisy_values = step.run({name: rounded(name) for name in step.fed})
            if position in unknown:
                left = _left(graph, operator.outputs, values, noisy_values, self._count)
                alone: dict[str, float] = {}
                if left < least_sqnr:
                    for name in step.fed:
                        if graph.dtype(name) == np.float32:
                            own = step.run({**exact, name: rounded(name)})
                            alone[name] = _left(graph, operator.outputs, values, own, self._count)
                self._judged[cases[position]] = _Judged(left, alone)
            for name, array, other in zip(operator.outputs, values, noisy_values, strict=True):
                exact[name] = array
                if name in floats:
                    island[name] = other
                if name in outputs:
                    rounded_output = encodings[name].fake_quantize(array)
                    self._dead[name, encodings[name]] = _dies(
                        name, array, rounded_output, self._count
                    )
            for name in [name for name in exact if last_reader.get(name, position + 1) <= position]:
                del exact[name]
                island.pop(name, None)
        for name in outputs:  # of an input
            self._dead.setdefault((name, encodings[name]), False)


def closed(graph: Graph, floats: Mapping[str, str]) -> Floats:
    """With the tensors that no operator computes on as integers any more.

    What is only given another shape has the same numbers on both sides, and is one tensor here.
    """
    closed_floats = dict(floats)
    readers = plain.readers(graph.operators)
    makers = {name: operator for operator in graph.operators for name in operator.outputs}
    grew = True
    while grew:
        grew = False
        for name in encode.computed(graph):
            maker, behind = makers.get(name), readers.get(name, [])
            if name in closed_floats:
                continue
            moved = [
                operator
                for operator in (maker, *behind)
                if operator is not None and operator.kind in kernels.MOVED
            ]
            alone = maker is None or maker.touches(closed_floats)
            if (alone and all(operator.touches(closed_floats) for operator in behind)) or any(
                operator.inputs[0] in closed_floats or operator.outputs[0] in closed_floats
                for operator in moved
            ):
                closed_floats[name] = "between operators that compute in float"
                grew = True
    return closed_floats


def operators(graph: Graph, floats: Collection[str]) -> tuple[Operator, ...]:
    """What computes in float."""
    return tuple(operator for operator in graph.operators if operator.touches(floats))


def _rounded_before(
    name: str, floats: Collection[str], makers: Mapping[str, Operator]
) -> Iterator[str]:
    """The tensor itself, or, if it stays float already, what is rounded where its island begins."""
    waiting, reached = [name], {name}
    while waiting:
        tensor = waiting.pop()
        if tensor not in floats:
            yield tensor
        elif tensor in makers:
            inputs = dict.fromkeys(n for n in makers[tensor].inputs if n and n not in reached)
            waiting += inputs
            reached.update(inputs)


def _ratio(decibels: float) -> float:
    """Noise over signal."""
    return float(10 ** (-max(decibels, -300.0) / 10))


def _left(
    graph: Graph,
    names: Sequence[str],
    exact: list[npt.NDArray[np.float32]],
    noisy: list[npt.NDArray[np.float32]],
    count: int,
) -> float:
    """SQNR in dB, mean over samples removed, of the tensor that keeps least."""
    least = np.inf
    for name, values, noisy_values in zip(names, exact, noisy, strict=True):
        if graph.dtype(name) != np.float32 or not values.size:
            continue
        right, wrong = values.reshape(count, -1), noisy_values.reshape(count, -1)
        power, varies, noise = 0.0, 0.0, 0.0
        for start in range(0, right.shape[1], _COLUMNS):
            part, noisy_part = (array[:, start : start + _COLUMNS] for array in (right, wrong))
            mean = part.mean(axis=0, dtype=np.float64).astype(np.float32)
            power, varies, noise = (
                power + _power(part),
                varies + _power(part - mean),
                noise + _power(part - noisy_part),
            )
        if not np.isfinite(noise) and not np.isfinite(wrong).all():
            return -np.inf if np.isfinite(right).all() else np.inf
        signal = varies if varies > _SAME * power else power
        if noise:
            least = min(least, 10 * float(np.log10(max(signal, 1e-300) / noise)))
    return float(least)


def _power(values: npt.NDArray[np.float32]) -> float:
    """Sum of squares."""
    with np.errstate(over="ignore"):
        power = float(np.square(values).sum(dtype=np.float64))
    if _LEAST < power < np.inf:
        return power
    return float(np.square(values, dtype=np.float64).sum())  # float32 cannot hold the squares


def _dies(
    name: str, exact: npt.NDArray[np.float32], rounded: npt.NDArray[np.float32], count: int
) -> bool:
    flat = exact.reshape(count, -1)
    if not np.isfinite(flat).all() or len(exact) != count:
        return False
    (judged,) = fidelity.judge(flat, rounded.reshape(count, -1), {name: exact.shape[1:]})
    return judged.level == "dead"


def _why(graph: Graph, operator: Operator, left: float) -> str:
    what = f"{operator.kind} {short_name(operator.outputs[0])}"
    if not np.isfinite(left):
        return f"rounded to int8, it makes {what} NaN or infinite"
    return f"rounded to int8, it leaves {left:.0f} dB of {what}"


def _ending(graph: Graph) -> Iterator[Operator]:
    """Joins whose output is one of the graph's, as it is or in another shape or order."""
    reached = set(graph.outputs)
    for operator in reversed(graph.operators):
        if reached.isdisjoint(operator.outputs):
            continue
        if operator.kind in kernels.STACKED:
            yield operator
        if operator.kind in kernels.MOVED | kernels.STACKED:
            reached.update(operator.inputs)


def _widths(graph: Graph, operator: Operator, ranges: Mapping[str, Range]) -> dict[str, float]:
    """How wide the range of each part of a join is, 0 included."""
    widths = {}
    for name in dict.fromkeys(operator.inputs):
        if not name or graph.dtype(name) != np.float32:
            continue
        if graph.is_constant(name):
            values = graph.constant(name)
            low, high = float(values.min(initial=0)), float(values.max(initial=0))
        elif name in ranges:
            low, high = min(ranges[name].min, 0.0), max(ranges[name].max, 0.0)
        else:
            continue
        widths[name] = high - low
    return widths


def _number(value: float) -> str:
    return f"{value:.3g}"
