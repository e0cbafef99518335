"""Ranges of activations by what rounding and clipping them does to the operators that read them.

A narrower range has finer steps and clips what lies outside. The tensor's own histogram does not
say what that costs: a weight may be small where the values are large, and a rectifier takes away
the errors below its bound. So each candidate is what the readers compute with it: of a few samples
the noise that it adds to their outputs, as a part of what varies in them, is summed over the
readers, and the range with the least noise is taken (Nagel et al. 2021, section 3.1, choose ranges
by the error of the tensor; here the error is that of the next outputs).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.graph import kernels, walk
from edgekit.graph.flatbuffer import Graph, Layer
from edgekit.quantization import encode, islands, reconstruct, sampling
from edgekit.quantization.encode import Group
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.table import Range
from edgekit.records.encodings import Encoding

#: Samples that are looked at, evenly from all.
SAMPLES = 32
#: Parts of each end of a range that are tried.
_PARTS = (1.0, 0.93, 0.86, 0.79, 0.72, 0.65)
#: A narrower range has to save this part of the noise.
_SAVES = 0.05
#: Dot products of a layer that are looked at.
_ROWS = 1024
_DEPTHWISE_ROWS = 512
#: Numbers of a sample that are looked at together, so that they stay in the cache.
_COLUMNS = 1 << 13
#: Values of a tensor that are looked at, about, where another operator reads it.
_VALUES = 1 << 21

Values = npt.NDArray[np.float32]
#: What is left of the lower and of the upper end of a range, by tensor name.
Parts = dict[str, tuple[float, float]]


def find(
    graph: Graph,
    ranges: Mapping[str, Range],
    profile: DeviceProfile,
    feed: walk.Values,
    floats: Collection[str] = (),
    *,
    threads: int,
    advance: Callable[[str], None] = lambda name: None,
    seed: int = 0,
) -> Parts:
    """Choose how far the range of each activation is narrowed.

    Args:
        graph: Float.
        ranges: Those to choose within, by tensor name.
        profile: Says whether zero_point has to be 0.
        feed: Preprocessed samples ``[N, ...]`` by input name.
        floats: Tensors that stay float.
        threads: Number of threads of the float operators, and of operators that are looked at.
        advance: Called with the name of each operator that is walked.
        seed: Of the places that are looked at.

    Returns:
        Of the activations whose range becomes narrower.
    """
    count = walk.samples(graph, feed)
    places = np.unique(np.linspace(0, count - 1, SAMPLES).astype(np.int64))
    exact: walk.Values = dict(walk.picked(graph, feed, places))
    layers = {layer.output: layer for layer in graph.layers}
    last_reader = walk.last_readers(graph)
    with ThreadPoolExecutor(threads) as pool:
        jobs = _Jobs(pool, most=threads)
        search = _Search(graph, ranges, profile, floats, np.random.default_rng(seed), jobs)
        for name, values in exact.items():
            search.write(name, values)
        for position, operator in enumerate(graph.operators):
            step = walk.Step(graph, position, threads=threads)
            outputs = step.run(exact)
            search.read(step, layers.get(operator.outputs[0]), exact, outputs)
            for name, values in zip(operator.outputs, outputs, strict=True):
                exact[name] = values
                search.write(name, values)
            for name in [name for name in exact if last_reader.get(name, position + 1) <= position]:
                del exact[name]
            advance(operator.outputs[0])
        jobs.end()
    return search.parts()


def narrowed(ranges: Mapping[str, Range], parts: Parts) -> dict[str, Range]:
    """Ranges by tensor name, where only parts of some are left."""
    narrowed_ranges = dict(ranges)
    for name, (low, high) in parts.items():
        narrowed_ranges[name] = Range(
            narrowed_ranges[name].min * low, narrowed_ranges[name].max * high
        )
    return narrowed_ranges


class _Jobs:
    """What several threads compute, taken in the order in which it began.

    Args:
        pool: The threads.
        most: So many wait at the most; each holds arrays.
    """

    def __init__(self, pool: ThreadPoolExecutor, *, most: int) -> None:
        self._pool, self._most = pool, most
        self._begun: deque[Future[Callable[[], None]]] = deque()

    def begin(self, job: Callable[[], Callable[[], None]]) -> None:
        """Compute something; what it returns is called when all before it were."""
        self._begun.append(self._pool.submit(job))
        while len(self._begun) > self._most:
            self._begun.popleft().result()()

    def end(self) -> None:
        """Take all that is left."""
        while self._begun:
            self._begun.popleft().result()()


@dataclass(frozen=True)
class _Reader:
    """What an operator computes of one of its inputs.

    Attributes:
        group: Of the input.
        values: Those of the input, as they are.
        compute: Gives the outputs, arrays of their own or the input itself.
    """

    group: Group
    values: Values
    compute: Callable[[Values], list[Values]]

    def noise(self, encodings: Sequence[Encoding]) -> npt.NDArray[np.float64]:
        """Mean square error of the outputs for each encoding of the input."""
        right = self.compute(self.values)
        errors = []
        for encoding in encodings:
            wrong = self.compute(encoding.fake_quantize(self.values))
            pairs = zip(right, wrong, strict=True)
            errors.append(sum(_power(a - b) for a, b in pairs if a.dtype == np.float32 and a.size))
        return np.array(errors, np.float64)


class _Search:
    """The noise of each candidate, summed over the readers seen so far."""

    def __init__(
        self,
        graph: Graph,
        ranges: Mapping[str, Range],
        profile: DeviceProfile,
        floats: Collection[str],
        rng: np.random.Generator,
        jobs: _Jobs,
    ) -> None:
        self._graph, self._rng, self._jobs = graph, rng, jobs
        #: What methods are judged by is read as it is, and by no softmax behind it.
        self._judged = frozenset((*graph.outputs, *islands.judged(graph, floats)))
        self._of = encode.groups(graph, ranges, floats)
        self._candidates: dict[Group, list[tuple[float, float]]] = {}
        self._encodings: dict[Group, list[Encoding]] = {}
        self._noise: dict[Group, npt.NDArray[np.float64]] = {}
        for group in dict.fromkeys(self._of.values()):
            if group.fixed is not None and not profile.symmetric:
                continue
            low, high = min(group.range.min, 0.0), max(group.range.max, 0.0)
            if not np.float32((high - low) / 255) > 0:
                continue  # it has no width
            candidates = _candidates(both=not profile.symmetric and low < 0 < high)
            self._candidates[group] = candidates
            self._encodings[group] = [
                Encoding("int8", (encode.stored(scale),), zero_point)
                for scale, zero_point in (
                    encode.place(group.names[0], Range(low * lower, high * upper), profile)
                    for lower, upper in candidates
                )
            ]
            self._noise[group] = np.zeros(len(candidates))

    def write(self, name: str, values: npt.NDArray[Any]) -> None:
        """A tensor is computed."""
        if name in self._judged and self._of.get(name) in self._noise:
            same = _Reader(self._of[name], values, lambda rounded: [rounded])
            self._jobs.begin(partial(self._add, [same], _varies([values])))

    def read(
        self, step: walk.Step, layer: Layer | None, exact: walk.Values, outputs: list[Values]
    ) -> None:
        """An operator reads tensors."""
        graph, readers = self._graph, []
        softmax = step.operator.kind in kernels.SOFTMAX
        for name in step.fed:
            group = self._of.get(name)
            if softmax and name in self._judged:
                continue
            if group not in self._noise or not set(group.names).isdisjoint(step.operator.outputs):
                continue  # what is handed on is for its readers to say
            products = None
            if layer is not None and name == layer.input:
                products = _products(graph, layer, exact[name], self._rng)
            if products is not None:
                readers.append(_Reader(group, *products))
                continue
            size = sum(exact[input_name].size for input_name in step.fed)
            count = walk.samples(graph, {name: exact[name]})
            some = np.arange(max(1, min(count, count * _VALUES // max(size, 1))))
            fed = walk.picked(
                graph, {input_name: exact[input_name] for input_name in step.fed}, some
            )

            def run(values: Values, name: str = name, fed: walk.Values = fed) -> list[Values]:
                return step.run({**fed, name: values})

            readers.append(_Reader(group, fed[name], run))
        if readers:
            self._jobs.begin(partial(self._add, readers, _varies(outputs)))

    def _add(self, readers: Sequence[_Reader], varies: float) -> Callable[[], None]:
        """Find the noise in what is computed of rounded values, as a part of what varies; returns
        what adds it, which is called in the order of the operators."""
        noises = []
        for reader in readers:
            if varies and reader.values.size:
                noises.append((reader.group, reader.noise(self._encodings[reader.group]) / varies))

        def add() -> None:
            for group, noise in noises:
                self._noise[group] += noise

        return add

    def parts(self) -> Parts:
        """What is left of the ranges, with the least noise."""
        chosen: Parts = {}
        for group, noise in self._noise.items():
            best = int(np.argmin(noise))
            if noise[best] < (1 - _SAVES) * noise[0]:
                chosen.update(dict.fromkeys(group.names, self._candidates[group][best]))
        return chosen


def _candidates(*, both: bool) -> list[tuple[float, float]]:
    """What may be left of the two ends; first all of it."""
    if both:
        one_sided = [(part, 1.0) for part in _PARTS[1:]] + [(1.0, part) for part in _PARTS[1:]]
    else:
        one_sided = []
    return [*((part, part) for part in _PARTS), *one_sided]


def _power(values: npt.NDArray[Any]) -> float:
    """Mean of the squares."""
    flat = np.ravel(values).astype(np.float32, copy=False)
    return float(np.dot(flat, flat)) / flat.size


def _varies(outputs: list[npt.NDArray[Any]]) -> float:
    """Mean of the squares without the mean over samples."""
    variance = 0.0
    for values in outputs:
        if values.dtype != np.float32 or not values.size:
            continue
        flat = values.reshape(len(values), -1)
        for start in range(0, flat.shape[1], _COLUMNS):
            part = flat[:, start : start + _COLUMNS]
            variance += _power(part - part.mean(axis=0)) * (part.size / flat.size)
    return variance


def _products(
    graph: Graph, layer: Layer, values: Values, rng: np.random.Generator
) -> tuple[Values, Callable[[Values], list[Values]]] | None:
    """What some of the dot products of a layer read, and a function that computes its outputs from
    that; None of a layer that is several."""
    shape = graph.shape(layer.weights)
    own = values.shape[-1] if layer.kind != "depthwise" else 1
    if layer.kind == "transposed" or (layer.kind == "conv" and shape[-1] != own):
        return None
    count = walk.samples(graph, {layer.input: values})
    depthwise = layer.kind == "depthwise"
    most = _DEPTHWISE_ROWS if depthwise else _ROWS
    places = sampling.draw(graph, layer, count, rng, most=most)
    rows = np.empty(places.shape(graph, count), np.float32)
    places.read(values, into=rows)
    weights, bias = (array.astype(np.float32) for array in reconstruct.rows_of(graph, layer))
    low, high = graph.bounds().get(layer.output, (-np.inf, np.inf))
    if depthwise:
        multiplier = len(weights) // values.shape[-1]
        kernel = weights.T.reshape(weights.shape[1], values.shape[-1], multiplier)

    def compute(read: Values) -> list[Values]:
        if depthwise:
            products = np.einsum("nkc,kcm->ncm", read, kernel).reshape(len(read), -1)
        else:
            products = read @ weights.T
        products += bias
        return [np.clip(products, low, high, out=products)]

    return rows, compute
