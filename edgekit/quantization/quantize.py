"""Quantize a canonical float graph: encodings and integers, the same for all formats.

What activations lose is decided first, with exact weights: whether channels are equalized
(edgekit.quantization.equalize), and whether ranges are narrowed (edgekit.quantization.clipping).
Where they keep more than 8 bits, weights with corrected biases say whether channels are equalized.
Then weights are rounded to nearest, with corrected biases, and by fitted layers. All are compared
on calibration samples that none of them used. The method whose outputs are nearest to the float
model's is chosen, and the results of the others are said. Tensors whose values 8 bits cannot hold
stay float (edgekit.quantization.islands). If the outputs are poor nevertheless, more stay float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.base import native
from edgekit.base.errors import InvalidModelError
from edgekit.graph import walk
from edgekit.graph.flatbuffer import Graph, Layer, short_name
from edgekit.quantization import (
    clipping,
    encode,
    equalize,
    islands,
    reconstruct,
    saturation,
)
from edgekit.quantization.judge import Judge, Score
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.reconstruct import Layers
from edgekit.quantization.table import CalibrationTable, Range
from edgekit.records import environment, fidelity
from edgekit.records.artifact import WeightMethod
from edgekit.records.encodings import Encoding, Encodings, LayerIntegers, Stored

Correction = Literal["auto", "none"]
CORRECTIONS: tuple[str, ...] = ("auto", "none")
#: Every fifth image judges what the others were used for.
HELD_OUT = 5
FEWEST_IMAGES = 20
#: A method has to be better by this much, in dB, than the simpler one before it.
MARGIN = 0.25
#: Tensors that stay float have to gain this much, in dB: they cost time and size.
GAIN = 1.0
_LARGEST_HELD_OUT = 256
#: A net of no more layers may become a float one where that is what rounding asks for.
_FEW = 4

NEAREST = "nearest rounding"
EXACT = "exact weights"
EQUALIZED = "equalized channels"
NARROWED = "narrowed ranges"
CORRECTED = "corrected biases"
FITTED = "fitted layers"
TRAINED = "trained with fake quantization"
#: How far a trained weight may lie from a whole step: what folding in float32 can move it.
_OFF_GRID = 0.05


@dataclass(frozen=True)
class Trial:
    """One method that was tried.

    Attributes:
        way: What was done.
        sqnr: SQNR of the worst output, before a softmax, mean removed, on held-out calibration
            images, in dB; minus infinity where a value became NaN.
        exact: Whether only activations were rounded, to see what becomes of them.
    """

    way: str
    sqnr: float
    exact: bool = False


@dataclass(frozen=True)
class Quantized:
    """What both writers take.

    Attributes:
        graph: Float flatbuffer whose layers hold the real numbers that the integers stand for.
        encodings: Encodings of all tensors but those that stay float.
        stored: Integers and scales.
        way: What was done to the weights, in words.
        weights: How the weights were rounded.
        trials: What was tried; empty when there were no images to judge by.
        saturating: Layers that nearest rounding would let saturate on x86 without VNNI.
        notes: What a reader should know, a sentence each.
        floats: Why a tensor stays float, by its name in the canonical graph.
    """

    graph: bytes
    encodings: Encodings
    stored: Stored
    way: str
    weights: WeightMethod
    trials: tuple[Trial, ...]
    saturating: tuple[saturation.Prediction, ...]
    notes: tuple[str, ...]
    floats: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationSamples:
    """Calibration samples that are at hand.

    Attributes:
        fit: Preprocessed, ``[N, ...]`` by input name, as many as can be walked at once
            (edgekit.quantization.reconstruct.images_that_fit).
        held: Those that judge, as many as :func:`held_out` says; without any nothing is judged.
        observe: The calibration table of a graph. If its second argument is true, it is taken from
            the samples that nothing is judged by, else from all.
    """

    fit: walk.Values
    held: walk.Values
    observe: Callable[[bytes, bool], CalibrationTable]

    @classmethod
    def of(
        cls, feed: walk.Values, observe: Callable[[bytes, bool], CalibrationTable]
    ) -> CalibrationSamples:
        """All samples of a feed, divided by :func:`held_out`."""
        fit, held = (
            {name: values[places] for name, values in feed.items()}
            for places in held_out(len(next(iter(feed.values()))))
        )
        return cls(fit, held, observe)

    @property
    def judged(self) -> bool:
        """Whether there are samples to judge by."""
        return all(len(values) for values in self.held.values())


@dataclass(frozen=True)
class _Method:
    """How integers are found.

    Attributes:
        weights: How they are rounded.
        equalized: Whether channels are.
        narrowed: Whether ranges of activations are.
    """

    weights: WeightMethod = "nearest"
    equalized: bool = False
    narrowed: bool = False

    def named(self, floats: Collection[str], *, exact: bool = False) -> str:
        """What it is called where some tensors stay float, and where only activations are
        rounded."""
        names = [EQUALIZED] if self.equalized else []
        names += [NARROWED] if self.narrowed else []
        names += {"corrected": [CORRECTED], "fitted": [FITTED]}.get(self.weights, [])
        names = [EXACT, *names] if exact else names or [NEAREST]
        count = f"{len(floats)} tensor{'s' if len(floats) > 1 else ''} in float"
        return ", ".join([*names, count] if floats else names)


@dataclass(frozen=True)
class _Integers:
    """Integers by one method."""

    graph: Graph
    encodings: Mapping[str, Encoding]
    layers: Layers
    factors: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class _Choice:
    """What was judged best.

    Attributes:
        method: How integers are found.
        floats: Tensors that stay float.
        score: On the samples that judge.
        integers: The integers that were judged; None where there are none, as a value became NaN.
    """

    method: _Method
    floats: islands.Floats
    score: Score
    integers: _Integers | None


class _StoppedError(Exception):
    """What was begun is not needed any more."""


class _Maker:
    """Integers by any method from the samples that do not judge.

    Args:
        canonical: Float flatbuffer.
        table: Its calibration table, from these samples.
        samples: Preprocessed ones to fit layers to, and their tables; None when only the table is
            at hand.
        profile: The device.
        threads: Of a fit.
        advance: Called with the name of each operator that is walked.
        unequalized: Layers, by what they write, whose channels are not equalized.
    """

    def __init__(
        self,
        canonical: bytes,
        table: CalibrationTable,
        samples: CalibrationSamples | None,
        *,
        profile: DeviceProfile,
        threads: int,
        advance: Callable[[str], None],
        unequalized: Collection[str] = (),
    ) -> None:
        self._canonical, self._graph = canonical, Graph(canonical)
        four = profile.weights == "int4"
        self._four = reconstruct.of_four_bits(self._graph) if four else frozenset[str]()
        self._table, self._samples = table, samples
        self._profile, self._advance = profile, advance
        self._threads = threads
        self._unequalized = unequalized
        self._parts: dict[tuple[bool, frozenset[str]], clipping.Parts] = {}
        self._equalized: tuple[Graph, dict[str, tuple[float, ...]]] | None = None
        self._observed: CalibrationTable | None = None
        self._searches: dict[bool, islands.Search] = {}
        self._steps: dict[bool, dict[str, reconstruct.Steps]] = {False: {}, True: {}}
        self._pool, self._stopped = ThreadPoolExecutor(1), Event()
        self._begun: dict[tuple[_Method, frozenset[str]], Future[_Integers]] = {}

    def __enter__(self) -> _Maker:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded."""
        return self._profile.activations != "float32"

    @property
    def eight(self) -> bool:
        """Whether activations are rounded to 8 bits; others hold what those do not."""
        return self._profile.activations == "int8"

    def equalizes(self) -> bool:
        """Whether equalization changes anything."""
        return bool(self._even()[1])

    def begin(self, method: _Method, floats: Collection[str]) -> None:
        """Let another thread find the numbers that :meth:`make` will be asked for."""

        def advance(name: str) -> None:
            if self._stopped.is_set():
                raise _StoppedError
            self._advance(name)

        self.activations(method, floats)  # what other methods need too is found by one thread
        self._begun[method, frozenset(floats)] = self._pool.submit(
            self._make, method, floats, advance
        )

    def make(self, method: _Method, floats: Collection[str]) -> _Integers:
        """Find all numbers, but those of the tensors that stay float and of their layers."""
        begun = self._begun.pop((method, frozenset(floats)), None)
        return self._make(method, floats, self._advance) if begun is None else begun.result()

    def settled(self, choice: _Choice, whole: CalibrationTable) -> _Integers:
        """The numbers of a choice with the ranges of all samples.

        What was fitted to samples stays as it was judged: factors of channels, what is left of
        ranges, and layers. Biases that are corrected are so for the means of all samples.

        Args:
            choice: What was judged.
            whole: The calibration table of all samples.
        """
        method, floats, integers = choice.method, choice.floats, choice.integers
        assert integers is not None  # what has no integers is judged worse than nearest rounding
        graph = integers.graph
        if integers.factors:
            assert self._samples is not None
            whole = self._samples.observe(graph.serialize(), False)
        encodings = self._encodings(graph, whole, method, floats)
        if method.weights != "fitted":
            layers = self._nearest(graph, encodings, whole, method)
        elif self.rounds:
            layers = reconstruct.between(graph, integers.layers, integers.encodings, encodings)
        else:
            layers = integers.layers
        return replace(integers, encodings=encodings, layers=layers)

    def activations(
        self, method: _Method, floats: Collection[str], *, about: bool = False
    ) -> tuple[Graph, dict[str, Encoding]]:
        """The graph of a method, and the encodings of its activations; ``about`` where the last
        digit of a scale does not count, so that no samples have to run."""
        if about and method.equalized and not method.narrowed and self._table.method == "minmax":
            graph, factors = self._even()
            ranges = equalize.ranges(graph, self._table, factors)
            return graph, encode.activations(graph, ranges, self._profile, floats)
        graph, _, table = self._of(method)
        return graph, self._encodings(graph, table, method, floats)

    def _encodings(
        self, graph: Graph, table: CalibrationTable, method: _Method, floats: Collection[str]
    ) -> dict[str, Encoding]:
        ranges: Mapping[str, Range] = table.ranges
        if method.narrowed:
            ranges = clipping.narrowed(ranges, self._narrow(method.equalized, frozenset(floats)))
        return encode.activations(graph, ranges, self._profile, floats)

    def _narrow(self, equalized: bool, floats: frozenset[str]) -> clipping.Parts:
        """How far ranges are narrowed."""
        if (equalized, floats) not in self._parts:
            assert self._samples is not None
            graph, _, table = self._of(_Method(equalized=equalized))
            self._parts[equalized, floats] = clipping.find(
                graph,
                table.ranges,
                self._profile,
                self._samples.fit,
                floats,
                threads=self._threads,
                advance=self._advance,
            )
        return self._parts[equalized, floats]

    def _of(self, method: _Method) -> tuple[Graph, dict[str, tuple[float, ...]], CalibrationTable]:
        """The graph of a method, its factors and its calibration table."""
        if not method.equalized:
            return self._graph, {}, self._table
        graph, factors = self._even()
        if self._observed is None:
            assert self._samples is not None
            self._observed = self._samples.observe(graph.serialize(), True)
        return graph, factors, self._observed

    def _make(
        self, method: _Method, floats: Collection[str], advance: Callable[[str], None]
    ) -> _Integers:
        _, factors, table = self._of(method)
        graph, encodings = self.activations(method, floats)
        if method.weights == "fitted":
            assert self._samples is not None
            layers = reconstruct.fitted(
                graph,
                encodings if self.rounds else None,
                self._samples.fit,
                pair_bound=self._profile.pair_bound,
                threads=self._threads,
                four=self._four,
                advance=advance,
            )
        else:
            layers = self._nearest(graph, encodings, table, method)
        return _Integers(graph, encodings, layers, factors)

    def _nearest(
        self,
        graph: Graph,
        encodings: Mapping[str, Encoding],
        table: CalibrationTable,
        method: _Method,
    ) -> Layers:
        return reconstruct.nearest(
            graph,
            encodings if self.rounds else None,
            pair_bound=self._profile.pair_bound,
            statistics=table.statistics if method.weights == "corrected" else None,
            four=self._four,
            steps_by_layer=self._steps[method.equalized],
        )

    def leave(
        self, floats: islands.Floats, least_sqnr: float, *, equalized: bool = False
    ) -> tuple[islands.Floats, float]:
        """All that stays float if rounded inputs have to leave ``least_sqnr`` dB of every operator,
        and the least that is left of one then.

        No more than before where that would be most of the layers: a file that computes in float is
        no int8 file, whatever it is called.
        """
        assert self._samples is not None
        graph, _, table = self._of(_Method(equalized=equalized))
        left = dict.fromkeys(encode.left_float(graph), "")
        if equalized not in self._searches:
            self._searches[equalized] = islands.Search(
                graph,
                table.ranges,
                self._profile,
                self._samples.fit,
                threads=environment.cores(),
                advance=self._advance,
            )
        floating, least = self._searches[equalized].find({**left, **floats}, least_sqnr=least_sqnr)
        whole = [
            layer for layer in graph.layers if not {layer.input, layer.output} & floating.keys()
        ]
        if len(graph.layers) > _FEW and 2 * len(whole) < len(graph.layers):
            return dict(floats), least
        return {name: why for name, why in floating.items() if name not in left}, least

    def _even(self) -> tuple[Graph, dict[str, tuple[float, ...]]]:
        """The equalized graph and its factors."""
        if self._equalized is None:
            equalized, factors = equalize.equalize(
                self._canonical,
                self._table.statistics,
                self._unequalized,
                evened=self._profile.evened,
                clipped=self.eight,
            )
            self._equalized = Graph(equalized), factors
        return self._equalized


@native.steady()
def quantize(
    canonical: bytes,
    table: CalibrationTable,
    *,
    profile: DeviceProfile,
    samples: CalibrationSamples | None,
    correction: Correction = "auto",
    narrow: bool = True,
    integers_only: bool = False,
    left: Mapping[str, str] | None = None,
    unequalized: Collection[str] = (),
    advance: Callable[[str], None] = lambda name: None,
) -> Quantized:
    """Decide every number of the int8 model.

    While methods are judged, all numbers come from samples that none is judged by. What is taken
    then gets the ranges of all samples.

    Args:
        canonical: Float flatbuffer.
        table: Its calibration table, from all samples.
        profile: The device.
        samples: Calibration samples; None when only their table is at hand, then biases are
            corrected from its channel means, unjudged.
        correction: ``auto``, or ``none`` for nearest rounding.
        narrow: Whether ranges may become narrower than the table's.
        integers_only: Let no tensor stay float.
        left: Tensors that stay float whatever it costs, and why.
        unequalized: Layers, by what they write, that a file has with their own weights: channels
            between them and others are not equalized.
        advance: Called with the name of each operator that is walked.

    Raises:
        InvalidDataError: If a tensor has no usable range.
        InvalidModelError: If a weight or bias cannot be stored.
    """
    graph = Graph(canonical)
    cores = environment.cores()
    floats: islands.Floats = {}
    eight = profile.activations == "int8"  # other dtypes hold what 8 bits do not
    if not integers_only and profile.activations != "float32":
        joins = islands.joins(graph, table.ranges) if eight else {}
        floats = {**joins, **islands.relative(graph)}
    if left:
        floats = islands.closed(graph, {**floats, **left})
    judged = samples is not None and samples.judged
    trials: list[Trial] = []
    notes: list[str] = []
    method, description = _Method(), NEAREST
    with _Maker(
        canonical,
        samples.observe(canonical, True) if samples is not None and judged else table,
        samples,
        profile=profile,
        threads=cores,
        advance=advance,
        unequalized=unequalized,
    ) as maker:
        if samples is not None and judged:
            judge = Judge(canonical, floats, samples.held, profile, threads=cores)
            search = _Search(maker, judge, narrows=narrow and eight, beside=cores > 1)
            choice = search.run(floats, correction, integers_only=integers_only or not eight)
            method, floats = choice.method, choice.floats
            description, trials, notes = method.named(floats), search.trials, search.notes
            integers = maker.settled(choice, table)
        else:
            if correction == "auto":
                method = _Method("corrected")
                description = f"{CORRECTED} (from channel means, without images to judge by)"
                if samples is not None and not integers_only and eight:
                    floats, _ = maker.leave(floats, fidelity.CLOSE)
            integers = maker.make(method, floats)
    plain = integers.layers
    if profile.pair_bound or method != _Method():
        encodings = encode.activations(graph, table.ranges, profile, floats)
        rounded = None if profile.activations == "float32" else encodings
        plain = reconstruct.nearest(graph, rounded, pair_bound=False)
    saturating = tuple(p for p in predictions(graph, plain, profile.paired) if p.pairs)
    notes += islands.swallowed(graph, table.ranges, floats) if eight else []
    return _result(
        canonical, integers, profile, description, method.weights, trials=trials,
        saturating=saturating, notes=notes, floats=floats,
    )  # fmt: skip


class _Search:
    """The method that is best on held-out samples, and what stays float.

    Args:
        maker: Finds integers from the samples that do not judge.
        judge: Holds the others.
        narrows: Whether ranges may be narrowed.
        beside: Fit layers, which takes longest, while other methods are tried.
    """

    def __init__(self, maker: _Maker, judge: Judge, *, narrows: bool, beside: bool) -> None:
        self._maker, self._judge = maker, judge
        self._narrows, self._beside = narrows, beside
        self.trials: list[Trial] = []
        self._broken: dict[Trial, str] = {}
        self._scores: dict[tuple[_Method, frozenset[str]], Score] = {}
        self._choices: dict[tuple[_Method, frozenset[str]], _Choice] = {}

    @property
    def notes(self) -> list[str]:
        """A sentence for each tensor that became NaN in a trial."""
        lost: dict[str, list[str]] = {}
        for trial in self.trials:
            if trial in self._broken:
                lost.setdefault(self._broken[trial], []).append(trial.way)
        return [
            f"{short_name(tensor)} became NaN, by which these lost: {'; '.join(names)}"
            for tensor, names in lost.items()
        ]

    def run(
        self, floats: islands.Floats, correction: Correction, *, integers_only: bool
    ) -> _Choice:
        """Try what ``correction`` allows.

        Args:
            floats: Tensors that stay float whatever the scores are.
            correction: As :func:`quantize` takes it.
            integers_only: Let no other stay float.
        """
        best = self._methods(floats, correction, meanwhile=not integers_only)
        least = -np.inf
        for least_sqnr, enough in () if integers_only else islands.LIMITS:
            if best.score.level not in ("poor", "dead") and best.score.sqnr >= enough:
                break
            if least >= least_sqnr:
                continue
            floating, least = self._maker.leave(
                best.floats, least_sqnr, equalized=best.method.equalized
            )
            if floating == best.floats:
                continue
            other = self._methods(floating, correction)
            alive = best.score.level == "dead" and other.score.level != "dead"
            if other.score.sqnr > best.score.sqnr + GAIN or alive:
                best = other
        return best

    def _methods(
        self, floats: islands.Floats, correction: Correction, *, meanwhile: bool = False
    ) -> _Choice:
        """The best method where these tensors stay float.

        ``meanwhile`` looks for what else may stay float while layers are fitted, as it will be
        asked for where no method is good enough.
        """
        if correction == "none":
            return self._choice(_Method(), floats)
        first = len(self.trials)
        activations = self._activations(floats)
        fitted = replace(activations, weights="fitted")
        if self._beside:
            self._maker.begin(fitted, floats)
        best = self._choice(_Method(), floats)
        self.trials.insert(first, self.trials.pop())  # what is simplest is said first
        corrected = self._choice(replace(activations, weights="corrected"), floats)
        least_sqnr, enough = islands.LIMITS[0]
        if self._beside and meanwhile and corrected.score.sqnr < enough:
            self._maker.leave(floats, least_sqnr, equalized=activations.equalized)
        for other in (corrected, self._choice(fitted, floats)):
            if other.score.sqnr > best.score.sqnr + MARGIN:
                best = other
        return best

    def _activations(self, floats: islands.Floats) -> _Method:
        """What is done to activations, by the scores of exact weights: a fit makes up for what
        weights lose, and for nothing else. Where 8 bits hold weights only, by the scores of those:
        activations lose next to nothing."""
        method = _Method()
        if self._maker.equalizes():
            if self._maker.eight:
                method = self._better(method, replace(method, equalized=True), floats)
            else:
                plain = _Method("corrected")
                even = replace(plain, equalized=True)
                better = self._better(plain, even, floats, exact=False, surely=True)
                method = replace(method, equalized=better.equalized)
        if self._narrows:
            method = self._better(method, replace(method, narrowed=True), floats, surely=True)
        return method

    def _better(
        self,
        simple: _Method,
        other: _Method,
        floats: islands.Floats,
        *,
        exact: bool = True,
        surely: bool = False,
    ) -> _Method:
        """The method that loses less, by ``exact`` of its activations alone; ``surely`` asks for
        samples that agree, as one sample with values that are cut off can lose or win more than all
        others."""
        before, after = (
            self._exact(method, floats) if exact else self._choice(method, floats).score
            for method in (simple, other)
        )
        better = after.sqnr > before.sqnr + MARGIN
        return other if better and (not surely or after.surely_beats(before)) else simple

    def _exact(self, method: _Method, floats: islands.Floats) -> Score:
        """Score the activations of a method alone."""
        key = method, frozenset(floats)
        if key not in self._scores:
            graph, encodings = self._maker.activations(method, floats, about=True)
            score = self._judge.score(graph, {}, encodings)
            self._scores[key] = self._noted(method.named(floats, exact=True), score, exact=True)
        return self._scores[key]

    def _choice(self, method: _Method, floats: islands.Floats) -> _Choice:
        """Score a method; one that gives no numbers loses."""
        key = method, frozenset(floats)
        if key not in self._choices:
            self._choices[key] = self._tried(method, floats)
        return self._choices[key]

    def _tried(self, method: _Method, floats: islands.Floats) -> _Choice:
        integers = None
        try:
            integers = self._maker.make(method, floats)
            score = self._judge.score(integers.graph, integers.layers, integers.encodings)
        except reconstruct.NotFiniteError as exc:
            score = Score(-np.inf, "dead", exc.tensor)
        return _Choice(method, floats, self._noted(method.named(floats), score), integers)

    def _noted(self, name: str, score: Score, *, exact: bool = False) -> Score:
        """The score, which is a trial now."""
        trial = Trial(name, score.sqnr, exact)
        self.trials.append(trial)
        if score.broken:
            self._broken[trial] = score.broken
        return score


def predictions(
    graph: Graph, layers: Layers, kinds: Collection[str] | None = None
) -> list[saturation.Prediction]:
    """What can saturate, layer by layer, of some kinds; depthwise kernels of onnxruntime cannot."""
    return [
        predict(layer, layers[layer.output].integers)
        for layer in graph.layers
        if layer.output in layers
        and (kinds is None or layer.kind in kinds)
        and saturation.pairs_products(graph, layer)
    ]


def predict(layer: Layer, integers: LayerIntegers) -> saturation.Prediction:
    """What can saturate in a layer whose products are added in pairs."""
    weights = integers.weights
    rows = weights.reshape(-1, weights.shape[3]).T if layer.kind == "depthwise" else weights
    return saturation.predict(layer.output, rows.reshape(len(rows), -1))


def trained(canonical: bytes, encodings: Encodings, *, profile: DeviceProfile) -> Quantized:
    """The int8 model whose encodings were found in training; nothing is decided anew.

    Args:
        canonical: Float flatbuffer of the trained model.
        encodings: Encodings of its activations and weights.
        profile: The device; what it asks of the numbers must hold already.

    Raises:
        InvalidModelError: If the graph is another than the encodings', a weight is not on its
            grid, or the device asks for other numbers.
    """
    graph = Graph(canonical)
    sha256 = hashlib.sha256(canonical).hexdigest()
    if sha256 != encodings.graph_sha256:
        raise InvalidModelError(
            f"the converted graph (sha256 {sha256[:12]}…) is not the one that was trained "
            f"({encodings.graph_sha256[:12]}…); export with the package versions that the "
            f"manifest names, or train again"
        )
    computed = {name: e for name, e in encodings.tensors.items() if e.axis is None}
    if profile.symmetric and any(e.zero_point for e in computed.values()):
        raise InvalidModelError(
            f"device {profile.name} takes zero_point 0 only, the model was trained for "
            f"{encodings.device}; train it with --device {profile.name}"
        )
    layers: Layers = {}
    for layer in graph.layers:
        rows, bias = reconstruct.rows_of(graph, layer)
        scale = np.asarray(encodings.tensors[layer.weights].scale, np.float64)
        real = rows / scale[:, None]
        steps = np.rint(real)
        off = float(np.abs(real - steps).max(initial=0))
        if off > _OFF_GRID or np.abs(steps).max(initial=0) > 127:
            raise InvalidModelError(
                f"the weights of {layer.short} are not on their int8 grid (off by {off:.2g} of a "
                f"step); they were changed after training"
            )
        layers[layer.output] = reconstruct.finish(graph, layer, steps, scale, bias, computed)
    saturating = tuple(p for p in predictions(graph, layers) if p.pairs)
    if profile.pair_bound and saturating:
        raise InvalidModelError(
            f"{len(saturating)} layers would saturate on {profile.name}, the model was trained for "
            f"{encodings.device}; train it with --device {profile.name}"
        )
    return _result(canonical, _Integers(graph, computed, layers, {}), profile, TRAINED, "trained")


def _result(
    canonical: bytes,
    integers: _Integers,
    profile: DeviceProfile,
    description: str,
    weights: WeightMethod,
    *,
    trials: Collection[Trial] = (),
    saturating: tuple[saturation.Prediction, ...] = (),
    notes: Collection[str] = (),
    floats: Mapping[str, str] | None = None,
) -> Quantized:
    tensors = dict(integers.encodings)
    graph = Graph(integers.graph.serialize())
    sentences, larger = list(notes), []
    for layer in integers.graph.layers:
        if layer.output not in integers.layers:
            continue
        rounded = integers.layers[layer.output]
        reconstruct.put(graph, layer, rounded)
        tensors |= encode.of_layer(layer, rounded.integers)
        if rounded.raised:
            larger.append(layer.short)
    if larger:
        more = f" and {len(larger) - 3} more" if len(larger) > 3 else ""
        sentences.append(
            f"{', '.join(larger[:3])}{more}: weight scales were raised so that the bias has 31 "
            f"bits at most"
        )
    of_constants = encode.constants(integers.graph, integers.encodings, profile)
    constants = reconstruct.constants(integers.graph, of_constants)
    reconstruct.put_constants(graph, constants)
    sha256 = hashlib.sha256(canonical).hexdigest()
    return Quantized(
        graph.serialize(),
        Encodings(sha256, profile.name, tensors, integers.factors, of_constants),
        reconstruct.stored(integers.encodings, integers.layers, constants),
        description,
        weights,
        tuple(trials),
        saturating,
        tuple(sentences),
        dict(floats or {}),
    )


def held_out(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places of (images to fit to, images to judge by), spread evenly over the set."""
    places = np.arange(count, dtype=np.int64)
    judging = places[HELD_OUT - 1 :: HELD_OUT][:_LARGEST_HELD_OUT]
    return np.setdiff1d(places, judging), judging
