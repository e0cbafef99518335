"""Find the layers that have to stay in float so that the outputs come within a bound."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidOptionError
from edgekit.data.feeds import Feed
from edgekit.diagnosis.measure import BLAME, LayerRow, Sound, as_stored
from edgekit.diagnosis.tensors import Tensors, TfLiteTensors, Values
from edgekit.graph import walk
from edgekit.graph.flatbuffer import Graph
from edgekit.records import stats

#: float32 ``[N, ...]``, one an output.
Outputs = list[npt.NDArray[np.float32]]
#: From outputs of the reference and others to predictions that both have, in %.
Agreement = Callable[[Outputs, Outputs], float]


@dataclass(frozen=True)
class Bound:
    """What the suspect's outputs have to reach.

    Attributes:
        value: The least.
        unit: ``dB``, SQNR of each output, or ``%``, the same predictions as the reference's.
    """

    value: float
    unit: Literal["dB", "%"]

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"

    def reached(self, found: float) -> bool:
        """Whether a value of this unit is enough."""
        return found >= self.value

    def of(self, reference: Outputs, outputs: Outputs, agreement: Agreement) -> float:
        """The outputs' value in this unit; in dB, of several outputs that of the worst."""
        if self.unit == "dB":
            pairs = zip(reference, outputs, strict=True)
            return min(stats.sqnr(*pair).value for pair in pairs)
        return agreement(reference, outputs)


def same_classes(reference: Outputs, outputs: Outputs) -> float:
    """Samples with the same class in both, in %, of the one output of a classifier."""
    first, second = (
        values.reshape(len(values), -1).argmax(axis=1) for (values,) in (reference, outputs)
    )
    return 100 * float((first == second).mean())


@dataclass(frozen=True)
class Bisection:
    """The layers that have to stay in float.

    Attributes:
        bound: What was asked for.
        layers: Their names for people, in order of execution; none of them can be left out.
        tensors: Their canonical names.
        before: Value of the emulated suspect with no layer in float.
        after: With these in float.
        actual: Value of the suspect's own outputs; apart from ``before``, its kernels or its
            operators are other than its numbers say.
        reached: Whether the bound is reached; if not, not even with every layer in float.
        evaluations: How often the network was run.
    """

    bound: Bound
    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    before: float
    after: float
    actual: float
    reached: bool
    evaluations: int


def bisect(
    reference: Tensors,
    suspect: Tensors,
    sound: Sound,
    expected: Feed,
    suspect_feed: Feed,
    bound: Bound,
    *,
    rows: Sequence[LayerRow] = (),
    agreement: Agreement = same_classes,
    advance: Callable[[int], None] = lambda count: None,
) -> Bisection:
    """Find the smallest set of layers which, left in float, brings the outputs within a bound.

    The suspect is emulated on the canonical graph: its weights and biases as real numbers, its
    activations rounded to what it stores. First every layer alone is left in float. If none is
    enough, the best of them are put together, as few as suffice, and each of those that can be
    left out again is; so no layer of the set can be spared, and one layer is never missed, but
    another set of two or more that is smaller is not ruled out.

    Args:
        reference: What is right.
        suspect: TFLite or ONNX.
        sound: Made from the float model of both, in the suspect's units.
        expected: As :func:`edgekit.diagnosis.measure.measure` takes it.
        suspect_feed: The same.
        bound: What the outputs have to reach.
        rows: Rows of :func:`measure`; layers to blame are tried first.
        agreement: What a bound in % is of.
        advance: Called after each evaluation.

    Raises:
        InvalidOptionError: If no output is a float, or agreement is asked of several.
    """
    judged = [name for name in sound.graph.outputs if name in sound.kinds]
    several = len(judged) > 1 and bound.unit == "%" and agreement is same_classes
    if not judged or several:
        raise InvalidOptionError(
            f"--bisect {bound}: expected {'one' if judged else 'an'} output of real numbers, got "
            f"{len(judged)} of {len(sound.graph.outputs)}"
            + ("; pass dB, which each of them has to reach" if judged else "")
        )
    network = _Emulated(suspect, sound, expected, suspect_feed)
    right = reference.run(expected)
    right = sound.tensors.complete({**expected, **right})
    right_outputs = [right[name] for name in judged]
    evaluations = 0

    def value(left: Collection[str]) -> float:
        nonlocal evaluations
        evaluations += 1
        outputs = network.outputs(frozenset(left))
        value_now = bound.of(right_outputs, [outputs[name] for name in judged], agreement)
        advance(1)
        return value_now

    own = suspect.run(suspect_feed)
    actual = bound.of(right_outputs, [own[name] for name in judged], agreement)
    names = network.names
    before = value(())

    def result(left: Collection[str], after: float, *, reached: bool) -> Bisection:
        chosen = [name for name in names if name in left]
        shown = tuple(sound.labels[name] for name in chosen)
        return Bisection(bound, shown, tuple(chosen), before, after, actual, reached, evaluations)

    if bound.reached(before):
        return result((), before, reached=True)
    whole = value(names)
    if not bound.reached(whole):
        return result((), whole, reached=False)
    alone = {name: value((name,)) for name in names}
    best = max(alone, key=alone.__getitem__)
    if bound.reached(alone[best]):
        return result((best,), alone[best], reached=True)
    faults = {row.name: row.fault or 0.0 for row in rows}
    guilty = {name for name in names if faults.get(name, 0.0) >= BLAME}
    order = sorted(
        names, key=lambda n: (n in guilty, faults[n] if n in guilty else alone[n]), reverse=True
    )
    low, high = 1, len(order)  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        if bound.reached(value(order[:middle])):
            high = middle
        else:
            low = middle
    left, after = order[:high], value(order[:high])
    for name in reversed(order[:high]):
        fewer = [other for other in left if other != name]
        value_after = value(fewer)
        if bound.reached(value_after):
            left, after = fewer, value_after
    return result(left, after, reached=True)


class _Emulated:
    """The suspect on the canonical graph, with any of its layers in float instead."""

    def __init__(
        self,
        suspect: Tensors,
        sound: Sound,
        expected: Feed,
        given: Feed,
    ) -> None:
        self.graph = sound.graph
        self._encodings = suspect.encodings
        self._ends = walk.last_readers(self.graph)
        self._expected, self._given = expected, given
        network, numbers = Graph(self.graph.serialize()), suspect.numbers()
        for layer in self.graph.layers:
            layer_numbers = numbers.get(layer.output)
            if layer_numbers is None:
                continue
            if layer_numbers.weights is not None:
                network.set_constant(layer.weights, layer_numbers.weights)
            if layer.bias and layer_numbers.bias is not None:
                network.set_constant(layer.bias, layer_numbers.bias)
            if not layer_numbers.activation:
                network.set_activation(layer.output, "none")
        self._sound = sound.tensors.steps()
        self._own = TfLiteTensors(network, network, threads=sound.threads).steps()
        written = (step.operator.outputs[0] for step in self._sound)
        self.names = [n for n in (*self.graph.inputs, *written) if n in sound.kinds]

    def outputs(self, left: frozenset[str]) -> Values:
        """The network's outputs with the operators that write these tensors in float."""
        values = {
            name: self._expected[name] if name in left else self._stored(name, self._given[name])
            for name in self.graph.inputs
        }
        for position, (sound, own) in enumerate(zip(self._sound, self._own, strict=True)):
            names = sound.operator.outputs
            exact = names[0] in left
            for name, array in zip(names, (sound if exact else own).run(values), strict=True):
                values[name] = array if exact else self._stored(name, array)
            for name in [n for n in values if self._ends.get(n, position + 1) <= position]:
                del values[name]
        return {name: values[name] for name in self.graph.outputs}

    def _stored(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return as_stored(values, self._encodings.get(name))
