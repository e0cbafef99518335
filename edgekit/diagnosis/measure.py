"""Compare every tensor of two models, and name the layer to blame.

There are two views. *Accumulated*: both networks run on their own, and each tensor has all errors
of the layers before it. *Isolated*: each operator of the suspect runs on the values of the
reference, stored as the suspect stores them, and is compared with the float operator on the same
values. So an error shows in the layer that causes it, and nowhere else.

A layer is to blame by its *excess*: the error of one of its channels over the error that a sound
int8 layer has there, which is ``step_out^2 / 12 + step_w^2 / 12 * sum of E[x^2]`` (rounding noise:
Widrow 1956; weights per channel, outputs by the layer's own step). It is the error of one channel
and not of all: two swapped channels out of 1,280 are 0.2 % of the noise.

Values that the range of an int8 tensor cuts off are no excess. The range was chosen for all
channels together, to make steps smaller, or no calibration sample had larger values. That choice is
judged for all channels together, as *cut*: the error of the values beyond the range over the
rounding noise of a range that holds all of them. A range that is too wide is judged by its *step*
in the same way.

The weights or biases of a layer may have been fitted so that they compensate the errors before the
layer. Then the layer has errors on exact values, on purpose. In that case its error on the
suspect's own values counts, over the sound error and over what the float layer gives for the same
values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError
from edgekit.data import feeds
from edgekit.data.feeds import Feed
from edgekit.diagnosis.names import labels
from edgekit.diagnosis.tensors import Tensors, TfLiteTensors, Values, activations
from edgekit.graph import kernels
from edgekit.graph.flatbuffer import Graph, Layer
from edgekit.quantization import encode, equalize, reconstruct, rounding
from edgekit.quantization.profiles import DEFAULT, PROFILES, DeviceProfile
from edgekit.quantization.table import Range
from edgekit.records.encodings import Encoding

ACCUMULATED, ISOLATED = "accumulated", "isolated"
MODES = (ACCUMULATED, ISOLATED)
INPUT = "INPUT"
#: A layer with more excess or cut than this, in dB, is to blame.
BLAME = 12.0
#: Without such a layer, one whose step is this many times what its values need.
COARSE = 1.7
#: Relative error that float arithmetic may make: of float16 files, and of float32.
HALF, SINGLE = 2.0**-10, 2.0**-18
_CHUNK_BYTES = 256 << 20
_STEPS = 256

Factors = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Errors:
    """How far the suspect's values of one tensor are from the reference's.

    Attributes:
        sqnr: ``10 log10(sum r^2 / sum (r - s)^2)`` in dB.
        cosine: Cosine of both tensors as vectors.
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
        layer: What a reader needs of the name; ``input`` for an input of the model.
        name: In the canonical graph.
        own: In the suspect's file.
        kind: TFLite's name of the operator; ``INPUT`` for an input of the model.
        accumulated: With both networks on their own; None if not asked for.
        isolated: With the reference's values as inputs; None if not asked for, or if the suspect
            does not have all of these.
        excess: Worst channel's own error over a sound layer's, in dB; None without ``isolated``.
        channel: That channel.
        use: % of the suspect's 256 steps that the reference's values span; None in float.
        clipped: % of the reference's values beyond the suspect's range; None in float.
        cut: Error of those, of all channels together, over the rounding noise of a range that
            holds them, in dB; None in float, and where there are none.
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
    cut: float | None
    step: float | None

    @property
    def fault(self) -> float | None:
        """Excess or cut, whichever is more, in dB; None without ``isolated``."""
        return (
            self.excess if self.excess is None or self.cut is None else max(self.excess, self.cut)
        )

    def of(self, mode: str) -> Errors | None:
        """The errors in one of :data:`MODES`."""
        return self.accumulated if mode == ACCUMULATED else self.isolated


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


class NotFiniteError(InvalidModelError):
    """A tensor holds NaN or infinity; the message names it, and the model."""


class Sums:
    """Sums over samples of one tensor in one mode."""

    def __init__(self, channels: int, label: str = "a tensor") -> None:
        self.label = label
        self.signal = self.other = self.dot = self.largest = 0.0
        self.noise = np.zeros(channels)
        self.count = 0

    def add(self, expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> None:
        rows = expected.reshape(-1, len(self.noise)).astype(np.float64)
        others = found.reshape(-1, len(self.noise)).astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = others - rows
        if not np.isfinite(error).all():
            raise NotFiniteError(
                f"{self.label} is to blame, it gives NaN or infinity where the reference does not"
            )
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


def check_finite(label: str, values: npt.NDArray[np.float32]) -> None:
    """Refuse a tensor of the reference from which no suspect has a distance.

    Raises:
        NotFiniteError: If it holds NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise NotFiniteError(
            f"{label} holds NaN or infinity in the reference already; pass other samples"
        )


class Seen:
    """What the reference's values of one tensor are like, in the suspect's units."""

    def __init__(self, channels: int) -> None:
        self.low, self.high = math.inf, -math.inf
        self.power = np.zeros(channels)
        self.rows = self.clipped = self.count = 0
        self.cut = 0.0

    def add(self, values: npt.NDArray[np.float32], encoding: tuple[float, int] | None) -> None:
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        rows = values.reshape(-1, len(self.power)).astype(np.float64)
        self.power += (rows**2).sum(axis=0)
        self.rows += len(rows)
        self.count += values.size
        if encoding is not None:
            beyond = np.abs(rows - within(rows, encoding))
            beyond = beyond[beyond > encoding[0] / 2]
            self.clipped += beyond.size
            self.cut += float((beyond**2).sum())

    def use(self, encoding: tuple[float, int]) -> float:
        """% of the steps between the smallest and the largest value, both as stored."""
        scale, zero_point = encoding
        extremes = np.rint(np.array([self.low, self.high]) / scale) + zero_point
        low, high = np.clip(extremes, -128, 127)
        return 100 * float(high - low + 1) / _STEPS


def within(values: npt.NDArray[Any], encoding: tuple[float, int] | None) -> npt.NDArray[Any]:
    """Real values, those beyond the ends of an int8 (scale, zero_point) at its ends."""
    if encoding is None:
        return values
    scale, zero_point = encoding
    limits = (-128 - zero_point) * scale, (127 - zero_point) * scale
    return np.asarray(np.clip(values, *limits))


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``; infinite without noise, -infinite where that is infinite, or
    without signal."""
    if noise == 0:
        return math.inf
    if math.isinf(noise):
        return -math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


class Sound:
    """The canonical float model in a suspect's units: what a sound layer gives, and how exactly.

    Args:
        canonical: Float flatbuffer that both models come from.
        factors: What the suspect's channels are multiplied with (edgekit.quantization.equalize).
        profile: Profile of the device that the suspect was made for.
        floats: Tensors that stay float in the suspect by decision.
        threads: Inside an operator.
    """

    def __init__(
        self,
        canonical: bytes,
        *,
        factors: Factors | None = None,
        profile: DeviceProfile = PROFILES[DEFAULT],
        floats: Collection[str] = (),
        threads: int = 1,
    ) -> None:
        self.graph, self.factors = equalize.apply(canonical, factors or {}), factors or {}
        self.profile, self.floats, self.threads = profile, floats, threads
        self.tensors = TfLiteTensors(self.graph, self.graph, threads=threads)
        kinds = dict.fromkeys(self.graph.inputs, INPUT)
        for operator in self.graph.operators:
            kinds.update(dict.fromkeys(operator.outputs, operator.kind))
        self.kinds = {name: kinds[name] for name in activations(self.graph)}
        self.labels = labels(self.graph, self.kinds)
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
    expected: Feed,
    suspect_feed: Feed,
    *,
    modes: Collection[str] = MODES,
    reference_factors: Factors | None = None,
    half: bool = False,
    fitted: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[LayerRow, ...]:
    """Compare every tensor that the suspect has.

    One that the reference lacks, e.g. what goes into a softmax inside a Keras layer, is computed
    from the reference's values by the canonical operator. An operator of which the suspect lacks an
    input has no errors of its own: those of what computes that input would be counted as its.

    Args:
        reference: What is right.
        suspect: What may not be.
        sound: Made from the float model of both, in the suspect's units.
        expected: Samples ``[N, ...]`` by canonical input name, as the reference's preprocessing
            makes them; integers as they are.
        suspect_feed: The same samples as the suspect's does.
        modes: Some of :data:`MODES`.
        reference_factors: What the reference's channels are multiplied with; none in float.
        half: Whether the suspect stores float16; each layer alone then gets values that it holds.
        fitted: Whether the suspect's layers may make up for errors before them.
        advance: Called with the number of samples done.

    Raises:
        InvalidModelError: If fewer than half of the tensors are found in the suspect, or in the
            reference, unless that has all outputs: a layer of Keras may be many operators.
        NotFiniteError: If a tensor holds NaN or infinity.
    """
    graph, kinds = sound.graph, sound.kinds
    names = [name for name in kinds if name in suspect.names]
    known = [name for name in kinds if name in reference.names]
    complete = all(name in known for name in graph.outputs if name in kinds)
    for which, found_in, enough in (("suspect", names, False), ("reference", known, complete)):
        if 2 * len(found_in) < len(kinds) and not enough:
            raise InvalidModelError(
                f"only {len(found_in)} of {len(kinds)} tensors are found in the {which}; expected "
                f"two models made from one float model"
            )
    channels = {name: (graph.shape(name) or (1,))[-1] for name in kinds}
    fed = _fed(graph, names)
    whole = {name: Sums(channels[name], sound.labels[name]) for name in names}
    alone = {name: Sums(channels[name], sound.labels[name]) for name in names}
    layers = {layer.output for layer in graph.layers} & set(names)
    before = {name: Sums(channels[name], sound.labels[name]) for name in layers}
    behind = {name: Sums(channels[name], sound.labels[name]) for name in layers}
    seen = {name: Seen(channels[name]) for name in kinds}
    one = sum(4 * int(np.prod(graph.shape(name))) for name in kinds)
    ends = _ends(graph)

    def read(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.clip(values, *ends[name]) if name in ends else values

    chunk = max(1, _CHUNK_BYTES // (6 * one))
    for start in range(0, feeds.count(expected), chunk):
        part = feeds.part(expected, slice(start, start + chunk))
        own = feeds.part(suspect_feed, slice(start, start + chunk))
        right = _scaled(reference.run(part), sound.factors, reference_factors or {})
        right = sound.tensors.complete({**part, **right})
        for name, values in seen.items():
            values.add(read(name, right[name]), suspect.encodings.get(name))
        for name in names:
            check_finite(sound.labels[name], read(name, right[name]))
        actual = suspect.run(own) if ACCUMULATED in modes or fitted else {}
        if ACCUMULATED in modes:
            for name in names:
                whole[name].add(read(name, right[name]), read(name, actual[name]))
        if ISOLATED in modes:
            right = halved(right) if half else right
            stored = {
                name: as_stored(values, suspect.encodings.get(name))
                for name, values in right.items()
            }
            outputs, floats = suspect.alone(right), sound.tensors.alone(stored)
            for name in names:
                encoding = suspect.encodings.get(name)
                if name in own:
                    sure = within(right[name], encoding)
                    alone[name].add(sure, as_stored(own[name], encoding))
                elif name in outputs and name in floats and name in fed:
                    sure = within(read(name, floats[name]), encoding)
                    alone[name].add(sure, read(name, outputs[name]))
            again = sound.tensors.alone({**part, **actual}) if fitted else {}
            for name in layers & set(again) & set(actual):
                encoding = suspect.encodings.get(name)
                exact = within(read(name, right[name]), encoding)
                before[name].add(exact, within(read(name, again[name]), encoding))
                behind[name].add(exact, read(name, actual[name]))
        advance(feeds.count(part))
    steps = _steps(graph, seen, sound) if suspect.encodings else {}
    limits = _sound_noise(sound, seen, suspect, half=half)

    def excess(name: str) -> npt.NDArray[np.float64]:
        ratio = alone[name].noise / alone[name].count / limits[name]
        if name not in layers or not behind[name].count:
            return ratio
        sound_noise = before[name].noise + behind[name].count * limits[name]
        return np.minimum(ratio, behind[name].noise / sound_noise)

    return tuple(
        row_of(
            name,
            label=sound.labels[name],
            own=suspect.own[name],
            kind=kinds[name],
            encoding=suspect.encodings.get(name),
            seen=seen[name],
            needed=steps.get(name, 0.0),
            accumulated=whole[name],
            isolated=alone[name],
            excess=excess(name) if alone[name].count else None,
        )
        for name in names
    )


def row_of(
    name: str,
    *,
    label: str,
    own: str,
    kind: str,
    encoding: tuple[float, int] | None,
    seen: Seen,
    needed: float,
    accumulated: Sums | None,
    isolated: Sums | None,
    excess: npt.NDArray[np.float64] | None,
) -> LayerRow:
    """The row of one tensor, from what was summed up of it.

    Args:
        name: In the canonical graph.
        label: Name for people.
        own: Name in the suspect's file.
        kind: Kind of the operator that writes it.
        encoding: The suspect's scale and zero point; None in float.
        seen: The reference's values.
        needed: Step that these need; of no meaning in float.
        accumulated: Errors with both networks on their own; None or empty if not asked for.
        isolated: Errors with the reference's values as inputs; likewise.
        excess: Error of each channel over a sound layer's, as a ratio of powers; None without
            ``isolated``.
    """
    step = None if encoding is None else encoding[0]
    channel = None if excess is None else int(excess.argmax())
    return LayerRow(
        layer=label,
        name=name,
        own=own,
        kind=kind,
        accumulated=accumulated.errors(step) if accumulated and accumulated.count else None,
        isolated=isolated.errors(step) if isolated and isolated.count else None,
        excess=None if excess is None else decibels(float(excess[channel]), 1.0),
        channel=channel,
        use=None if encoding is None else seen.use(encoding),
        clipped=None if encoding is None else 100 * seen.clipped / seen.count,
        cut=decibels(seen.cut / seen.count, needed**2 / 12) if seen.clipped else None,
        step=None if step is None else step / needed,
    )


def _fed(graph: Graph, names: Collection[str]) -> set[str]:
    """What operators write that read only constants, integers and tensors of these names."""
    lacking = set(activations(graph)) - set(names)
    return {
        name
        for operator in graph.operators
        if lacking.isdisjoint(operator.inputs)
        for name in operator.outputs
    }


def _ends(graph: Graph) -> dict[str, tuple[float, float]]:
    """What is seen of tensors that only a ReLU reads: int8 may clip them as that does."""
    readers = Counter(name for operator in graph.operators for name in operator.inputs)
    bounds = graph.bounds()
    return {
        operator.inputs[0]: bounds[operator.outputs[0]]
        for operator in graph.operators
        if operator.kind in kernels.RECTIFYING
        and readers[operator.inputs[0]] == 1
        and operator.inputs[0] not in graph.outputs
        and operator.outputs[0] in bounds
    }


def _sound_noise(
    sound: Sound,
    seen: Mapping[str, Seen],
    suspect: Tensors,
    *,
    half: bool,
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean square error of each channel that a sound layer makes, by tensor."""
    layers = {layer.output: layer for layer in sound.graph.layers}
    noises = {}
    for name, values in seen.items():
        mean = values.power / values.rows
        if name not in suspect.encodings:
            relative = HALF if half else SINGLE
            noises[name] = np.full(len(mean), relative**2 * (float(mean.mean()) + 1e-12))
            continue
        noise = np.full(len(mean), suspect.encodings[name][0] ** 2 / 12)
        layer = layers.get(name)
        if layer is not None and layer.input in seen:
            noise += _weight_noise(sound, layer, seen[layer.input])
        noises[name] = noise
    return noises


def _steps(graph: Graph, seen: Mapping[str, Seen], sound: Sound) -> dict[str, float]:
    """Step of each tensor if its range were what was seen, with the scales that are shared."""
    ranges, bounds = {}, graph.bounds()
    for name in encode.sharing(graph, sound.floats).roots:
        low, high = (seen[name].low, seen[name].high) if name in seen else (0.0, 0.0)
        # what equalization raises over the end of a ReLU6 is cut off by it
        least, most = bounds.get(name, (-math.inf, math.inf))
        low, high = (min(max(end, least), most) for end in (low, high))
        ranges[name] = Range(low, max(high, low + 1e-9, 1e-9))
    encodings = encode.activations(graph, ranges, sound.profile, sound.floats)
    return {name: encoding.scale[0] for name, encoding in encodings.items()}


def _weight_noise(sound: Sound, layer: Layer, seen: Seen) -> npt.NDArray[np.float64]:
    scale = sound.scales(layer)
    shape = sound.graph.shape(layer.weights)
    length = int(np.prod(shape)) // len(scale)
    power = seen.power / seen.rows
    if layer.kind == "depthwise":
        taps = length * np.repeat(power, len(scale) // len(power))
    else:
        taps = np.full(len(scale), length * float(power.mean()))
    return np.asarray(scale**2 / 12 * taps)


def _scaled(values: Values, factors: Factors, own: Factors) -> Values:
    """The reference's values in the suspect's units."""
    scaled = dict(values)
    for name in scaled:
        if name in factors or name in own:
            ratio = np.asarray(factors.get(name, 1.0)) / np.asarray(own.get(name, 1.0))
            scaled[name] = scaled[name] * ratio.astype(np.float32)
    return scaled


def halved(values: Values) -> Values:
    """What float16 holds of the values; tensors beyond it stay float32, as their operators do."""
    return {
        name: array.astype(np.float16).astype(np.float32)
        if array.dtype == np.float32 and np.abs(array).max(initial=0) <= np.finfo(np.float16).max
        else array
        for name, array in values.items()
    }


def as_stored(
    values: npt.NDArray[np.float32], encoding: tuple[float, int] | None
) -> npt.NDArray[np.float32]:
    """Real values ``[N, ...]`` rounded to an int8 (scale, zero_point); as they are in float."""
    if encoding is None:
        return values
    return Encoding("int8", (encoding[0],), encoding[1]).fake_quantize(values)


def blame(rows: Sequence[LayerRow]) -> Verdict | None:
    """The layer to blame, or None if every layer is as good as a sound one.

    That is the one with the most excess or cut; without any over :data:`BLAME`, the one whose step
    is largest beside what its values need, from :data:`COARSE` on.
    """
    judged = [(row.fault, row) for row in rows if row.fault is not None]
    fault, worst = max(judged, key=lambda each: each[0], default=(-math.inf, None))
    if worst is not None and fault >= BLAME:
        reason = f"channel {worst.channel} errs {fault:.1f} dB more than a sound layer's"
        if fault == worst.cut:
            reason = (
                f"its range cuts off {worst.clipped:.2g} % of the values, which errs "
                f"{fault:.1f} dB more than rounding; calibrate on more samples like these"
            )
        return Verdict(worst.layer, worst.name, reason)
    step, coarse = max(
        ((row.step or 0.0, row) for _, row in judged), key=lambda each: each[0], default=(0.0, None)
    )
    if coarse is not None and step >= COARSE:
        return Verdict(
            coarse.layer, coarse.name, f"its step is {step:.1f} times what its values need"
        )
    return None


def first_below(rows: Sequence[LayerRow], mode: str, bound: float) -> str | None:
    """The first layer with less SQNR than ``bound`` dB in one of :data:`MODES`."""
    for row in rows:
        errors = row.of(mode)
        if errors is not None and errors.sqnr < bound:
            return row.layer
    return None
