"""Layer by layer: where do two models of one float model part, and which layer is to blame?

Two views. *Accumulated*: both networks run on their own, and each tensor carries all errors made
before it. *Isolated*: each operator of the suspect gets the reference's values, as the suspect
stores them, and is held against the float operator on the same values; so an error shows in the
layer that makes it, and nowhere else.

A layer is to blame by its *excess*: the error of one of its channels over the error that a sound
int8 layer would make there, which is ``step_out^2 / 12 + step_w^2 / 12 * sum of E[x^2]`` (rounding
noise: Widrow 1956; weights per channel, outputs by the range that the reference's values have).
The error of one channel, not of all: two swapped channels out of 1,280 are 0.2 % of the noise.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from edgekit import cli, data, encodings, outputs, schema, stats
from edgekit.artifact import Artifact
from edgekit.encodings import Encoding, Encodings
from edgekit.errors import (
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
    MissingDependencyError,
)
from edgekit.formats import float_model, keras, onnx, tflite
from edgekit.formats.flatbuffer import Graph, Layer, short_name
from edgekit.quant import encode, equalize, reconstruct, rounding, walk
from edgekit.quant.profiles import DEFAULT, PROFILES, DeviceProfile
from edgekit.quant.table import Range
from edgekit.tensors import KerasTensors, OnnxTensors, Tensors, TfLiteTensors, Values

ACCUMULATED, ISOLATED = "accumulated", "isolated"
MODES = (ACCUMULATED, ISOLATED)
INPUT = "INPUT"
#: A layer with more excess than this, in dB, is to blame.
BLAME = 12.0
#: Without such a layer, one whose step is this many times what its values need.
COARSE = 1.7
#: Relative error that float arithmetic may make: of float16 files, and of float32.
_HALF, _SINGLE = 2.0**-10, 2.0**-18
_CHUNK_BYTES = 256 << 20
_STEPS = 256
#: Layers that the table shows without ``--all``.
SHOWN = 12
IMAGES = 32
#: What an overlay says of a tensor without any error, in dB; JSON has no infinity.
_EXACT = 200.0
#: Images by whose values Keras tensors are found.
_MATCHED = 8

Factors = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Bound:
    """What the suspect's answers have to reach.

    Attributes:
        value: The least.
        unit: ``dB``, SQNR of the answers, or ``%``, the same class as the reference's.
    """

    value: float
    unit: Literal["dB", "%"]

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"

    def reached(self, found: float) -> bool:
        """Whether a value of this unit is enough."""
        return found >= self.value

    def of(self, reference: npt.NDArray[np.float32], answers: npt.NDArray[np.float32]) -> float:
        """The answers' value in this unit."""
        if self.unit == "dB":
            return stats.sqnr(reference, answers).value
        first, second = (
            values.reshape(len(values), -1).argmax(axis=1) for values in (reference, answers)
        )
        return 100 * float((first == second).mean())


@dataclass(frozen=True)
class Verdict:
    """The layer to blame.

    Attributes:
        layer: Name for people.
        tensor: In the canonical graph.
        reason: In words.
    """

    layer: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class Bisection:
    """The layers that have to stay in float.

    Attributes:
        bound: What was asked for.
        layers: Their names for people, in order of execution; none of them can be left out.
        tensors: Their canonical names.
        before: Value of the emulated suspect with no layer in float.
        after: With these in float.
        actual: Value of the suspect's own answers; apart from ``before``, its kernels or its
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


@dataclass(frozen=True)
class LayerDiff:
    """Two models, layer by layer.

    Attributes:
        reference: Path as given.
        suspect: Path as given.
        images: How many.
        rows: In order of execution.
        tensors: How many tensors the canonical graph has.
        computed: Layers whose tensor the reference lacks, so that it was computed from others.
        verdict: The layer to blame; None if all are sound or the isolated view was not asked for.
        first_below: First layer below ``bound``, by mode; None where there is none.
        bound: In dB; None if not given.
        bisection: None if not asked for.
        graph_id: Of the suspect's file, for Model Explorer.
    """

    reference: str
    suspect: str
    images: int
    rows: tuple[LayerRow, ...]
    tensors: int
    computed: tuple[str, ...]
    verdict: Verdict | None
    first_below: dict[str, str | None]
    bound: float | None
    bisection: Bisection | None
    graph_id: str


@dataclass(frozen=True)
class Errors:
    """How far the suspect's values of one tensor are from the reference's.

    Attributes:
        sqnr: ``10 log10(sum r^2 / sum (r - s)^2)`` in dB.
        cosine: Of both tensors as vectors.
        largest: Largest difference, in real units.
        lsb: The same in steps of the suspect; None where it stores no integers.
    """

    sqnr: float
    cosine: float
    largest: float
    lsb: float | None


@dataclass(frozen=True)
class LayerRow:
    """One tensor of the suspect, and the operator that writes it.

    Attributes:
        layer: What a reader needs of the name; ``input`` of what is fed.
        name: In the canonical graph.
        own: In the suspect's file.
        kind: TFLite's name of the operator; ``INPUT`` of what is fed.
        accumulated: With both networks on their own; None if not asked for.
        isolated: With the reference's values as inputs; None if not asked for.
        excess: Worst channel's own error over a sound layer's, in dB; None without ``isolated``.
        channel: That channel.
        use: % of the suspect's 256 steps that the reference's values span; None in float.
        clipped: % of the reference's values beyond the suspect's range; None in float.
        step: The suspect's step over the one that the reference's values need; None in float.
    """

    layer: str
    name: str
    own: str
    kind: str
    accumulated: Errors | None
    isolated: Errors | None
    excess: float | None
    channel: int | None
    use: float | None
    clipped: float | None
    step: float | None


class _Sums:
    """Sums over images of one tensor in one mode."""

    def __init__(self, channels: int) -> None:
        self.signal = self.other = self.dot = self.largest = 0.0
        self.noise = np.zeros(channels)
        self.count = 0

    def add(self, expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> None:
        rows = expected.reshape(-1, len(self.noise)).astype(np.float64)
        others = found.reshape(-1, len(self.noise)).astype(np.float64)
        error = others - rows
        if not np.isfinite(error).all():
            raise InvalidModelError("a tensor holds NaN or infinity; compare the outputs first")
        self.signal += float((rows**2).sum())
        self.other += float((others**2).sum())
        self.dot += float((rows * others).sum())
        self.noise += (error**2).sum(axis=0)
        self.largest = max(self.largest, float(np.abs(error).max(initial=0)))
        self.count += len(rows)

    def errors(self, step: float | None) -> Errors:
        noise, size = float(self.noise.sum()), math.sqrt(self.signal * self.other)
        return Errors(
            sqnr=decibels(self.signal, noise),
            cosine=self.dot / size if size else float(self.signal == self.other),
            largest=self.largest,
            lsb=None if step is None else self.largest / step,
        )


class _Seen:
    """What the reference's values of one tensor are like, in the suspect's units."""

    def __init__(self, channels: int) -> None:
        self.low, self.high = math.inf, -math.inf
        self.power = np.zeros(channels)
        self.rows = self.clipped = self.count = 0

    def add(self, values: npt.NDArray[np.float32], encoding: tuple[float, int] | None) -> None:
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        rows = values.reshape(-1, len(self.power)).astype(np.float64)
        self.power += (rows**2).sum(axis=0)
        self.rows += len(rows)
        self.count += values.size
        if encoding is not None:
            scale, zero_point = encoding
            low, high = (-128.5 - zero_point) * scale, (127.5 - zero_point) * scale
            self.clipped += int(((values < low) | (values > high)).sum())

    def use(self, encoding: tuple[float, int]) -> float:
        """% of the steps between the smallest and the largest value, both as stored."""
        scale, zero_point = encoding
        ends = np.rint(np.array([self.low, self.high]) / scale) + zero_point
        low, high = np.clip(ends, -128, 127)
        return 100 * float(high - low + 1) / _STEPS


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``; infinite without noise, -infinite without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


class Sound:
    """The canonical float model in a suspect's units: what a sound layer answers, and how well.

    Args:
        canonical: Float flatbuffer that both models come from.
        factors: What the suspect's channels are multiplied with (edgekit.quant.equalize).
        profile: Of the device that the suspect was made for.
        threads: Inside an operator.
    """

    def __init__(
        self,
        canonical: bytes,
        *,
        factors: Factors | None = None,
        profile: DeviceProfile = PROFILES[DEFAULT],
        threads: int = 1,
    ) -> None:
        self.graph, self.factors = equalize.apply(canonical, factors or {}), factors or {}
        self.profile, self.threads = profile, threads
        self.tensors = TfLiteTensors(self.graph, self.graph, threads=threads)
        self.kinds = {name: INPUT for name in self.graph.inputs}
        for found in self.graph.operators:
            self.kinds.update(dict.fromkeys(found.outputs, found.kind))
        self.labels = _labels(self.kinds)
        self._scales: dict[str, npt.NDArray[np.float64]] = {}

    def scales(self, layer: Layer) -> npt.NDArray[np.float64]:
        """Step of each output channel's weights ``[O]``, rounded to nearest."""
        if layer.output not in self._scales:
            rows, _ = reconstruct.rows_of(self.graph, layer)
            scale = rounding.scales(rows)
            if self.profile.pair_bound and layer.kind != "depthwise":
                scale = rounding.pair_scales(rows, scale)
            self._scales[layer.output] = scale
        return self._scales[layer.output]


def measure(
    reference: Tensors,
    suspect: Tensors,
    sound: Sound,
    expected: npt.NDArray[np.float32],
    given: npt.NDArray[np.float32],
    *,
    modes: Collection[str] = MODES,
    reference_factors: Factors | None = None,
    half: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[LayerRow, ...]:
    """Compare every tensor that the suspect has.

    One that the reference lacks, e.g. what goes into a softmax inside a Keras layer, is computed
    from the reference's values by the canonical operator.

    Args:
        reference: What is right.
        suspect: What may not be.
        sound: Made from the float model of both, in the suspect's units.
        expected: Images as the reference's preprocessing makes them, ``[N, ...]``.
        given: The same images as the suspect's does.
        modes: Of :data:`MODES`.
        reference_factors: What the reference's channels are multiplied with; none in float.
        half: Whether the suspect stores float16.
        advance: Called with the number of images done.

    Raises:
        InvalidModelError: If fewer than half of the tensors are found in both.
    """
    graph, kinds = sound.graph, sound.kinds
    both = [name for name in kinds if name in reference.names and name in suspect.names]
    if 2 * len(both) < len(kinds):
        raise InvalidModelError(
            f"only {len(both)} of {len(kinds)} tensors are found in both models; expected two "
            f"models made from one float model"
        )
    names = [name for name in kinds if name in suspect.names]
    channels = {name: graph.shape(name)[-1] for name in kinds}
    whole = {name: _Sums(channels[name]) for name in names}
    alone = {name: _Sums(channels[name]) for name in names}
    seen = {name: _Seen(channels[name]) for name in kinds}
    entry = graph.inputs[0]
    one = sum(4 * int(np.prod(graph.shape(name))) for name in kinds)
    chunk = max(1, _CHUNK_BYTES // (6 * one))
    for start in range(0, len(expected), chunk):
        part = slice(start, start + chunk)
        right = _scaled(reference.run(expected[part]), sound.factors, reference_factors or {})
        right = sound.tensors.complete(right)
        for name, values in seen.items():
            values.add(right[name], suspect.encodings.get(name))
        if ACCUMULATED in modes:
            found = suspect.run(given[part])
            for name in names:
                whole[name].add(right[name], found[name])
        if ISOLATED in modes:
            stored = {
                name: _fake(values, suspect.encodings.get(name)) for name, values in right.items()
            }
            answers, floats = suspect.alone(right), sound.tensors.alone(stored)
            for name in names:
                if name == entry:
                    own = _fake(given[part], suspect.encodings.get(name))
                    alone[name].add(right[name], own)
                elif name in answers and name in floats:
                    alone[name].add(floats[name], answers[name])
        advance(len(right[entry]))
    steps = _steps(graph, seen, sound.profile) if suspect.encodings else {}
    limits = _sound_noise(sound, seen, suspect, steps, half=half)
    rows = []
    for name in names:
        encoding = suspect.encodings.get(name)
        step = None if encoding is None else encoding[0]
        excess = channel = None
        if alone[name].count:
            ratio = alone[name].noise / alone[name].count / limits[name]
            channel = int(ratio.argmax())
            excess = decibels(float(ratio[channel]), 1.0)
        rows.append(
            LayerRow(
                layer=sound.labels[name],
                name=name,
                own=suspect.own[name],
                kind=kinds[name],
                accumulated=whole[name].errors(step) if whole[name].count else None,
                isolated=alone[name].errors(step) if alone[name].count else None,
                excess=excess,
                channel=channel,
                use=None if encoding is None else seen[name].use(encoding),
                clipped=None if encoding is None else 100 * seen[name].clipped / seen[name].count,
                step=None if step is None else step / steps[name],
            )
        )
    return tuple(rows)


def _sound_noise(
    sound: Sound,
    seen: Mapping[str, _Seen],
    suspect: Tensors,
    steps: Mapping[str, float],
    *,
    half: bool,
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean square error of each channel that a sound layer makes, by tensor."""
    layers = {layer.output: layer for layer in sound.graph.layers}
    found = {}
    for name, values in seen.items():
        mean = values.power / values.rows
        if name not in suspect.encodings:
            relative = _HALF if half else _SINGLE
            found[name] = np.full(len(mean), relative**2 * (float(mean.mean()) + 1e-12))
            continue
        noise = np.full(len(mean), steps[name] ** 2 / 12)
        layer = layers.get(name)
        if layer is not None and layer.input in seen:
            noise += _weight_noise(sound, layer, seen[layer.input])
        found[name] = noise
    return found


def _steps(graph: Graph, seen: Mapping[str, _Seen], profile: DeviceProfile) -> dict[str, float]:
    """Step of each tensor if its range were what was seen, with the scales that are shared."""
    ranges, bounds = {}, graph.bounds()
    for name in encode.sharing(graph).roots:
        low, high = (seen[name].low, seen[name].high) if name in seen else (0.0, 0.0)
        # what equalization raises over the end of a ReLU6 is cut off by it
        least, most = bounds.get(name, (-math.inf, math.inf))
        low, high = (min(max(end, least), most) for end in (low, high))
        ranges[name] = Range(low, max(high, low + 1e-9, 1e-9))
    found = encode.activations(graph, ranges, profile)
    return {name: encoding.scale[0] for name, encoding in found.items()}


def _weight_noise(sound: Sound, layer: Layer, entry: _Seen) -> npt.NDArray[np.float64]:
    scale = sound.scales(layer)
    shape = sound.graph.shape(layer.weights)
    length = int(np.prod(shape)) // len(scale)
    power = entry.power / entry.rows
    if layer.kind == "depthwise":
        taps = length * np.repeat(power, len(scale) // len(power))
    else:
        taps = np.full(len(scale), length * float(power.mean()))
    return np.asarray(scale**2 / 12 * taps)


def _labels(kinds: Mapping[str, str]) -> dict[str, str]:
    """Names for people: the Keras layer's where it is of one tensor only, else a longer one."""
    for make in (lambda name: short_name(name).split("/")[0], short_name):
        found = {name: "input" if kind == INPUT else make(name) for name, kind in kinds.items()}
        # the converter's name of what the model's function answers
        found.update({name: "output" for name in found if "PartitionedCall" in found[name]})
        if len(set(found.values())) == len(found):
            return found
    return {name: name for name in kinds}


def _scaled(values: Values, factors: Factors, own: Factors) -> Values:
    """The reference's values in the suspect's units."""
    found = dict(values)
    for name in found:
        if name in factors or name in own:
            ratio = np.asarray(factors.get(name, 1.0)) / np.asarray(own.get(name, 1.0))
            found[name] = found[name] * ratio.astype(np.float32)
    return found


def _fake(
    values: npt.NDArray[np.float32], encoding: tuple[float, int] | None
) -> npt.NDArray[np.float32]:
    if encoding is None:
        return values
    return Encoding("int8", (encoding[0],), encoding[1]).fake_quantize(values)


def blame(rows: Sequence[LayerRow]) -> Verdict | None:
    """The layer to blame, or None if every layer is as good as a sound one.

    That is the one with the most excess; without any over :data:`BLAME`, the one whose step is
    largest beside what its values need, from :data:`COARSE` on.
    """
    judged = [row for row in rows if row.excess is not None]
    worst = max(judged, key=lambda row: row.excess or 0.0, default=None)
    if worst is not None and worst.excess is not None and worst.excess >= BLAME:
        return Verdict(
            worst.layer,
            worst.name,
            f"channel {worst.channel} errs {worst.excess:.1f} dB more than a sound layer's",
        )
    coarse = max(judged, key=lambda row: row.step or 0.0, default=None)
    if coarse is not None and coarse.step is not None and coarse.step >= COARSE:
        return Verdict(
            coarse.layer,
            coarse.name,
            f"its step is {coarse.step:.1f} times what its values need",
        )
    return None


def bisect(
    reference: Tensors,
    suspect: Tensors,
    sound: Sound,
    expected: npt.NDArray[np.float32],
    given: npt.NDArray[np.float32],
    bound: Bound,
    *,
    rows: Sequence[LayerRow] = (),
    advance: Callable[[int], None] = lambda count: None,
) -> Bisection:
    """Find the smallest set of layers which, left in float, brings the answers within a bound.

    The suspect is emulated on the canonical graph: its weights and biases as real numbers, its
    activations rounded to what it stores. First every layer alone is left in float. If none is
    enough, the best of them are put together, as few as suffice, and each of those that can be
    left out again is; so no layer of the set can be spared, and one layer is never missed, but
    another set of two or more that is smaller is not ruled out.

    Args:
        reference: What is right.
        suspect: TFLite or ONNX.
        sound: Made from the float model of both, in the suspect's units.
        expected: Images as the reference's preprocessing makes them.
        given: The same images as the suspect's does.
        bound: What the answers have to reach.
        rows: Of :func:`measure`; layers to blame are tried first.
        advance: Called after each evaluation.
    """
    network = _Emulated(suspect, sound, expected, given)
    end = sound.graph.outputs[0]
    wanted = reference.run(expected)[end]
    evaluations = 0

    def value(left: Collection[str]) -> float:
        nonlocal evaluations
        evaluations += 1
        found = bound.of(wanted, network.answers(frozenset(left)))
        advance(1)
        return found

    actual = bound.of(wanted, suspect.run(given)[end])
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
    excess = {row.name: row.excess or 0.0 for row in rows}
    guilty = {name for name in names if excess.get(name, 0.0) >= BLAME}
    order = sorted(
        names, key=lambda n: (n in guilty, excess[n] if n in guilty else alone[n]), reverse=True
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
        found = value(fewer)
        if bound.reached(found):
            left, after = fewer, found
    return result(left, after, reached=True)


class _Emulated:
    """The suspect on the canonical graph, with any of its layers in float instead."""

    def __init__(
        self,
        suspect: Tensors,
        sound: Sound,
        expected: npt.NDArray[np.float32],
        given: npt.NDArray[np.float32],
    ) -> None:
        self.graph = sound.graph
        self._encodings = suspect.encodings
        self._ends = walk.last_readers(self.graph)
        self._expected, self._given = expected, given
        changed, numbers = Graph(self.graph.serialize()), suspect.numbers()
        for layer in self.graph.layers:
            found = numbers.get(layer.output)
            if found is None:
                continue
            changed.set_constant(layer.weights, found.weights)
            if layer.bias and found.bias is not None:
                changed.set_constant(layer.bias, found.bias)
            if not found.activation:
                changed.set_activation(layer.output, "none")
        self._sound = sound.tensors.steps()
        self._own = TfLiteTensors(changed, changed, threads=sound.threads).steps()
        self.names = [
            *self.graph.inputs,
            *(step.operator.outputs[0] for step in self._sound),
        ]

    def answers(self, left: frozenset[str]) -> npt.NDArray[np.float32]:
        """The network's answers with the operators that write these tensors in float."""
        entry = self.graph.inputs[0]
        values = {entry: self._expected if entry in left else self._stored(entry, self._given)}
        for position, (sound, own) in enumerate(zip(self._sound, self._own, strict=True)):
            names = sound.operator.outputs
            exact = names[0] in left
            for name, array in zip(names, (sound if exact else own).run(values), strict=True):
                values[name] = array if exact else self._stored(name, array)
            for name in [n for n in values if self._ends.get(n, position + 1) <= position]:
                del values[name]
        return values[self.graph.outputs[0]]

    def _stored(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return _fake(values, self._encodings.get(name))


@dataclass(frozen=True)
class _Side:
    """One of the two models, as the command line names it."""

    path: Path
    artifact: Artifact | None
    source: str
    format: str
    precision: str


def diff(
    reference: Path,
    suspect: Path,
    *,
    dataset: str = "fashion_mnist",
    images: int = IMAGES,
    modes: Collection[str] = MODES,
    bound: float | None = None,
    bisect_bound: Bound | None = None,
    source: Path | None = None,
    threads: int = 1,
) -> LayerDiff:
    """Compare two models of one float model, layer by layer.

    Args:
        reference: What is right: an artifact, or the ``.keras`` file that the suspect was made
            from.
        suspect: An artifact.
        dataset: What :func:`edgekit.data.open_word` takes; labels are not used.
        images: Use the first so many.
        modes: Of :data:`MODES`.
        bound: In dB, to find the first layer below it.
        bisect_bound: If given, the layers that have to stay in float are looked for.
        source: The float model of both, if it is not where the manifests say; needed where the
            reference is neither it nor its float32 TFLite artifact.
        threads: Inside an operator.

    Raises:
        EdgekitError: If models, data or options do not fit together.
    """
    one, other = _side(reference), _side(suspect)
    if other.artifact is None:
        raise InvalidOptionError(
            f"{suspect} is no artifact; give the .keras file first, it is the reference"
        )
    if one.source != other.source:
        raise InvalidModelError(
            f"{reference} and {suspect} were made from different float models "
            f"(sha256 {one.source[:12]}…, {other.source[:12]}…); expected two of one model"
        )
    if other.format == "keras" and (ISOLATED in modes or bisect_bound is not None):
        raise InvalidOptionError(
            f"{suspect} is a Keras model, which cannot be run operator by operator; give it "
            f"first, or pass --mode accumulated"
        )
    manifest = other.artifact.manifest
    found = data.load(
        dataset,
        "test" if dataset == "fashion_mnist" else "calibration",
        shape=manifest.signature.single_input().shape[1:],
        prepare=manifest.preprocessing,
        class_names=manifest.class_names,
        limit=images,
    )
    given = manifest.preprocessing.apply(found.images)
    expected = given
    if one.artifact is not None:
        expected = one.artifact.manifest.preprocessing.apply(found.images)
    canonical = _canonical(one, other.artifact, source)
    graph = Graph(canonical)
    if graph.shape(graph.inputs[0])[1:] != found.images.shape[1:]:
        raise InvalidDataError(
            f"{found.name}: expected images {list(graph.shape(graph.inputs[0])[1:])} as "
            f"{reference} takes, got {list(found.images.shape[1:])}"
        )
    right = _open(one, graph, expected, threads)
    wrong = _open(other, graph, given, threads)
    sound = Sound(
        canonical,
        factors=_factors(other),
        profile=PROFILES.get(manifest.device, PROFILES[DEFAULT]),
        threads=threads,
    )
    with cli.progress() as bar:
        task = bar.add_task("layers", total=len(found), note="")
        rows = measure(
            right,
            wrong,
            sound,
            expected,
            given,
            modes=modes,
            reference_factors=_factors(one),
            half=other.precision == "float16",
            advance=lambda count: bar.advance(task, count),
        )
    bisection = None
    if bisect_bound is not None:
        with cli.progress("runs") as bar:
            task = bar.add_task("bisecting", total=len(graph.operators) + 3, note="")
            bisection = bisect(
                right,
                wrong,
                sound,
                expected,
                given,
                bisect_bound,
                rows=rows,
                advance=lambda count: bar.advance(task, count),
            )
    return LayerDiff(
        reference=str(reference),
        suspect=str(suspect),
        images=len(found),
        rows=rows,
        tensors=len(graph.operators) + len(graph.inputs),
        computed=tuple(row.layer for row in rows if row.name not in right.names),
        verdict=blame(rows),
        first_below={mode: _first_below(rows, mode, bound) for mode in modes}
        if bound is not None
        else {},
        bound=bound,
        bisection=bisection,
        graph_id=wrong.graph_id,
    )


def _side(path: Path) -> _Side:
    if path.is_file() and path.suffix == ".keras":
        return _Side(path, None, outputs.sha256_file(path), "keras", "float32")
    artifact = Artifact.load(path)
    manifest = artifact.manifest
    source = artifact.sha256 if manifest.source is None else manifest.source.sha256
    return _Side(path, artifact, source, manifest.format, manifest.precision)


def _canonical(one: _Side, other: Artifact, source: Path | None) -> bytes:
    """The float flatbuffer that both come from."""
    if one.format == "tflite" and one.precision == "float32" and one.artifact is not None:
        return one.artifact.model_path.read_bytes()
    if one.format == "keras":
        model = one.path if one.artifact is None else one.artifact.model_path
    else:
        _, model, _ = float_model.find(other, source)
    return tflite.from_keras(keras.load(model))


def _open(side: _Side, graph: Graph, images: npt.NDArray[np.float32], threads: int) -> Tensors:
    path = side.path if side.artifact is None else side.artifact.model_path
    if side.format == "keras":
        return KerasTensors(keras.load(path), graph, images[:_MATCHED])
    if side.format == "tflite":
        return TfLiteTensors(path.read_bytes(), graph, threads=threads)
    assert side.artifact is not None
    options = side.artifact.manifest.runtime_options
    return OnnxTensors(onnx.load(path), graph, threads=threads, options=options)


def _factors(side: _Side) -> Factors:
    if side.artifact is None or side.precision != "int8" or side.format == "keras":
        return {}
    return Encodings.load(side.artifact.path / encodings.FILE).factors


def _first_below(rows: Sequence[LayerRow], mode: str, bound: float) -> str | None:
    for row in rows:
        errors = _of(row, mode)
        if errors is not None and errors.sqnr < bound:
            return row.layer
    return None


def _of(row: LayerRow, mode: str) -> Errors | None:
    return row.accumulated if mode == ACCUMULATED else row.isolated


def to_csv(rows: Sequence[LayerRow]) -> str:
    """One line a tensor, with a header; an empty cell where a figure does not apply."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    figures = ("sqnr_db", "cosine", "max_error", "max_error_lsb")
    writer.writerow(
        ["place", "layer", "operator", "tensor", "own_tensor"]
        + [f"{mode}_{figure}" for mode in MODES for figure in figures]
        + ["excess_db", "channel", "range_use_percent", "clipped_percent", "step_ratio"]
    )
    for place, row in enumerate(rows):
        cells: list[object] = [place, row.layer, row.kind, row.name, row.own]
        for mode in MODES:
            found = _of(row, mode)
            cells += (
                [""] * 4
                if found is None
                else [found.sqnr, found.cosine, found.largest, _cell(found.lsb)]
            )
        cells += map(_cell, (row.excess, row.channel, row.use, row.clipped, row.step))
        writer.writerow(cells)
    return file.getvalue()


def _cell(value: float | int | None) -> float | int | str:
    return "" if value is None else value


def to_overlay(found: LayerDiff) -> str:
    """Custom node data for Model Explorer: ``{graph: {"results": {tensor: {"value": dB}}, …}}``.

    A node is found by the name of a tensor that it writes, as the suspect's file calls it; the
    values are isolated SQNR, or accumulated where that is all there is. 200 stands for a tensor
    without error. What is fed has no operator, so the input is left out. With a bound, nodes
    below it are red; else the colours go from the smallest value to the largest.
    """
    results = {}
    for row in found.rows:
        errors = row.isolated or row.accumulated
        if errors is not None and row.kind != INPUT:
            value = max(-_EXACT, min(_EXACT, errors.sqnr))
            results[row.own] = {"value": round(value, 2)}
    body: dict[str, Any] = {"results": results}
    if found.bound is not None:
        body["thresholds"] = [
            {"value": found.bound, "bgColor": "#e06666"},
            {"value": _EXACT, "bgColor": "#b6d7a8"},
        ]
    else:
        body["gradient"] = [
            {"stop": 0, "bgColor": "#e06666"},
            {"stop": 0.5, "bgColor": "#ffe599"},
            {"stop": 1, "bgColor": "#b6d7a8"},
        ]
    return schema.dumps({found.graph_id: body}) + "\n"


def plot(found: LayerDiff) -> bytes:
    """A PNG: SQNR of every layer in both views above, excess below.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "report") from None
    rows = found.rows
    judged = any(row.excess is not None for row in rows)
    figure = Figure(figsize=(max(7.0, 0.17 * len(rows) + 1.5), 6.0 if judged else 4.5))
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        2 if judged else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + judged]
    )[:, 0]
    places = np.arange(len(rows))
    for mode, style in ((ACCUMULATED, "-"), (ISOLATED, "o")):
        errors = [_of(row, mode) for row in rows]
        if any(each is not None for each in errors):
            values = [math.nan if e is None or math.isinf(e.sqnr) else e.sqnr for e in errors]
            axes[0].plot(places, values, style, label=mode, markersize=4)
    axes[0].set_ylabel("SQNR, dB")
    if found.bound is not None:
        axes[0].axhline(found.bound, color="0.5", linestyle="--", label=f"{found.bound:g} dB")
    if judged:
        excess = [0.0 if row.excess is None else max(row.excess, 0.0) for row in rows]
        axes[1].bar(places, excess, color="0.6")
        axes[1].axhline(BLAME, color="0.5", linestyle="--")
        axes[1].set_ylabel("excess, dB")
    if found.verdict is not None:
        place = next(i for i, row in enumerate(rows) if row.name == found.verdict.tensor)
        for axis in axes:
            axis.axvline(place, color="tab:red", alpha=0.3, linewidth=6)
        axes[0].plot([], [], color="tab:red", alpha=0.3, linewidth=6, label="to blame")
    axes[0].legend(fontsize=8)
    axes[-1].set_xticks(places, [row.layer for row in rows], rotation=90, fontsize=6)
    axes[-1].set_xlim(-1, len(rows))
    axes[0].set_title(f"{found.suspect} against {found.reference}", fontsize=9)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m edgekit.compare A B --layers``."""
    group = parser.add_argument_group(
        "layer by layer", "with exactly two models: the reference (a .keras file too), the suspect"
    )
    add = group.add_argument
    add("--layers", action="store_true", help="compare tensor by tensor instead of accuracy")
    add("--mode", choices=(*MODES, "both"), help="whole networks, layers on their own, or both")
    add(
        "--bisect",
        type=_bound,
        metavar="BOUND",
        help="layers to leave in float so that the answers reach e.g. 30dB or 99.5%% agreement",
    )
    add("--images", type=cli.positive_int, help=f"use the first N (default: {IMAGES})")
    add("--all", action="store_true", help=f"show every layer, not the worst {SHOWN}")
    add("--csv", type=Path, metavar="FILE", help="write every layer's figures")
    add("--overlay", type=Path, metavar="FILE", help="write node data for Model Explorer")
    add("--plot", type=Path, metavar="FILE.png", help="write a plot")


_OPTIONS = ("mode", "bisect", "images", "all", "csv", "overlay", "plot")


def _decibel(text: str) -> float:
    """The ``--bound`` of a layer; ``compare`` has the option, which means points there."""
    try:
        value = float(text.removesuffix("dB"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidOptionError(f"--bound with --layers: expected dB, e.g. 20, got {text!r}")
    return value


def _bound(text: str) -> Bound:
    unit: Literal["dB", "%"] = "%" if text.endswith("%") else "dB"
    try:
        value = float(text.removesuffix(unit))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (unit == "%" and not 0 < value <= 100):
        raise argparse.ArgumentTypeError(
            f"expected SQNR as 30dB or agreement as 99.5%, got {text!r}"
        )
    return Bound(value, unit)


def wanted(options: argparse.Namespace) -> bool:
    """Whether the command line asks for the layer diff.

    Raises:
        InvalidOptionError: If it has options of it without ``--layers``.
    """
    if options.layers:
        return True
    for name in _OPTIONS:
        if getattr(options, name):
            raise InvalidOptionError(f"--{name} needs --layers")
    return False


def act(options: argparse.Namespace) -> cli.Outcome:
    """Compare two models layer by layer as the command line says."""
    if len(options.artifacts) != 2:
        raise InvalidOptionError(
            f"--layers takes two models, the reference and the suspect, got "
            f"{len(options.artifacts)}"
        )
    for name, instead in (
        ("parity", "compare without --layers"),
        ("out", "pass --csv, --overlay or --plot"),
        ("limit", "pass --images"),
        ("record", "compare without --layers"),
        ("power", "compare without --layers"),
    ):
        if getattr(options, name):
            raise InvalidOptionError(f"--{name} does not go with --layers; {instead}")
    files = [path for path in (options.csv, options.overlay, options.plot) if path is not None]
    if len({path.absolute() for path in files}) != len(files):
        raise InvalidOptionError("two of --csv, --overlay and --plot are the same file")
    for path in files:
        outputs.check_free(path, force=options.force)
    found = diff(
        *options.artifacts,
        dataset=options.data,
        images=options.images or IMAGES,
        modes=MODES if options.mode in (None, "both") else (options.mode,),
        bound=None if options.bound is None else _decibel(options.bound),
        bisect_bound=options.bisect,
        source=None if options.reference is None else Path(options.reference),
        threads=options.threads,
    )
    if options.csv is not None:
        outputs.write_text(options.csv, to_csv(found.rows), force=options.force)
    if options.overlay is not None:
        outputs.write_text(options.overlay, to_overlay(found), force=options.force)
    if options.plot is not None:
        outputs.write_bytes(options.plot, plot(found), force=options.force)
    _print(found, None if options.all else SHOWN)
    failed = any(name is not None for name in found.first_below.values())
    failed |= found.bisection is not None and not found.bisection.reached
    return int(failed), found


def _print(found: LayerDiff, shown: int | None) -> None:
    def badness(row: LayerRow) -> float:
        if row.excess is not None:
            return -row.excess
        return row.accumulated.sqnr if row.accumulated is not None else math.inf

    rows = found.rows
    if shown is not None and len(rows) > shown:
        worst = sorted(rows, key=badness)[:shown]
        rows = tuple(row for row in rows if row in worst)
    title = f"{len(found.rows)} of {found.tensors} tensors, {found.images} images"
    if len(rows) < len(found.rows):
        title += f"; the worst {len(rows)}, --all shows the rest"
    table = Table(title=title)
    table.add_column("layer", no_wrap=True)
    # names give way to figures
    width = max(16, cli.console.width - 62)
    for column in ("excess", "alone", "LSB", "whole", "cosine", "use", "clip"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        one, other = row.isolated, row.accumulated
        guilty = found.verdict is not None and row.name == found.verdict.tensor
        table.add_row(
            escape(row.layer if len(row.layer) <= width else row.layer[: width - 1] + "…"),
            _figure(row.excess, 1),
            _figure(None if one is None else one.sqnr, 1),
            _figure(None if one is None else one.lsb, 1),
            _figure(None if other is None else other.sqnr, 1),
            _figure(None if other is None else other.cosine, 5),
            _figure(row.use, 0),
            _figure(row.clipped, 2),
            style="bold red" if guilty else None,
        )
    cli.console.print(table)
    cli.console.print(
        "[dim]alone, LSB: the layer fed with the reference's values, SQNR in dB and largest error "
        "in steps; excess: its worst channel's error over a sound layer's, in dB; whole, cosine: "
        "both networks on their own; use, clip: % of the steps that the reference's values span, "
        "% of values beyond them[/]"
    )
    if found.computed:
        cli.console.print(
            f"note: the reference has no tensor for {escape(', '.join(found.computed))}; computed "
            f"from its other values",
            soft_wrap=True,
        )
    for mode, name in found.first_below.items():
        said = "none" if name is None else escape(name)
        cli.console.print(f"first layer below {found.bound:g} dB, {mode}: {said}")
    if any(row.excess is not None for row in found.rows):
        if found.verdict is None:
            cli.console.print("to blame: none; every layer is as good as a sound one")
        else:
            cli.console.print(
                f"to blame: {escape(found.verdict.layer)}: {found.verdict.reason}",
                soft_wrap=True,
            )
    if found.bisection is not None:
        _print_bisection(found.bisection)


def _print_bisection(found: Bisection) -> None:
    unit = found.bound.unit
    if not found.reached:
        said = f"not reached, not even with every layer in float: {found.after:.2f} {unit}"
    elif not found.layers:
        said = f"reached with no layer in float: {found.before:.2f} {unit}"
    else:
        said = (
            f"{len(found.layers)} left in float: {escape(', '.join(found.layers))}; "
            f"from {found.before:.2f} to {found.after:.2f} {unit}"
        )
    cli.console.print(
        f"bisect to {found.bound}: {said} ({found.evaluations} runs of the emulated network; "
        f"the file itself answers at {found.actual:.2f} {unit})",
        soft_wrap=True,
    )


def _figure(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "exact" if digits == 1 and value > 0 else "none"
    return f"{value:.{digits}f}"
