"""Compare methods of quantization on samples that none of them used.

The int8 model is emulated: the float graph is run with the weights that the integers stand for, and
each tensor is rounded as its encoding stores it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError
from edgekit.graph import rounded, walk
from edgekit.graph.flatbuffer import Graph
from edgekit.quantization import encode, islands, reconstruct
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.reconstruct import Layers
from edgekit.records import fidelity
from edgekit.records.encodings import Encoding, limits
from edgekit.records.fidelity import Fidelity

#: Standard errors by which samples have to agree.
SURE = 2.0
#: Noise of a sample that nothing was lost of.
_LEAST = 1e-30


@dataclass(frozen=True)
class Score:
    """What an emulated int8 model is worth.

    Attributes:
        sqnr: SQNR of the worst output, before a softmax and of each part of a joined float output,
            mean removed, in dB; minus infinity where a value is not finite.
        level: The verdict on the outputs as they are, ``dead`` where a value is not finite.
        broken: The first tensor that became NaN or infinite where the float model's is finite.
        noise: Mean square error of each sample in that worst output; empty where it has whole
            numbers, or a value is not finite.
    """

    sqnr: float
    level: fidelity.Level
    broken: str = ""
    noise: tuple[float, ...] = ()

    def surely_beats(self, other: Score) -> bool:
        """Whether samples agree that they lose less: by the dB that each gains, which on average
        have to be :data:`SURE` standard errors above 0.

        A sum over few samples says what one of them does. Without the noise of each of at least
        two samples, the sums decide.
        """
        if min(len(self.noise), len(other.noise)) < 2:
            return self.sqnr > other.sqnr
        before, after = (np.maximum(score.noise, _LEAST) for score in (other, self))
        gains = np.log(before / after)
        error = float(gains.std(ddof=1)) / np.sqrt(len(gains))
        return bool(gains.mean() > SURE * error)


class Judge:
    """The float model's outputs for the samples that judge.

    Args:
        canonical: Float flatbuffer.
        floats: Tensors that may stay float; of a joined output its parts are judged.
        held: Preprocessed samples ``[N, ...]`` by input name.
        profile: The device.
        threads: Number of threads of the float operators.
    """

    def __init__(
        self,
        canonical: bytes,
        floats: Collection[str],
        held: walk.Values,
        profile: DeviceProfile,
        *,
        threads: int,
    ) -> None:
        graph = Graph(canonical)
        self._outputs = graph.outputs
        self._before = islands.judged(graph, floats)
        self._names = tuple(dict.fromkeys((*self._before, *self._outputs)))
        self._held, self._profile, self._threads = held, profile, threads
        self._count = walk.samples(graph, held)
        content = graph.with_outputs(self._names)
        expected = walk.run(content, graph, held, threads=threads)
        self._expected = dict(zip(self._names, expected, strict=True))

    def score(self, graph: Graph, layers: Layers, encodings: Mapping[str, Encoding]) -> Score:
        """Emulate a model.

        Args:
            graph: Float, of which ``layers`` were rounded.
            layers: Rounded; others compute in float.
            encodings: Encodings of activations; others stay float.
        """
        numbers = {
            name: (encoding.scale[0], encoding.zero_point) for name, encoding in encodings.items()
        }
        content = rounded.emulated(
            self._rounded(graph, layers, encodings),
            numbers,
            self._names,
            limits=limits(reconstruct.dtype_of(encodings.values())),
        )
        watched_outputs = walk.run(content, graph, self._held, threads=self._threads)
        if not any(np.isnan(values).any() for values in watched_outputs[len(self._names) :]):
            try:
                return self._score(dict(zip(self._names, watched_outputs, strict=False)))
            except InvalidDataError:
                pass  # the tensor that is at fault is looked for below
        broken: list[str] = []

        def stored(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            encoding = encodings.get(name)
            if not broken and values.dtype == np.float32 and np.isnan(values).any():
                broken.append(name)
            if encoding is None:
                return values
            return encoding.fake_quantize(values, inplace=name not in self._held)

        graph_of_integers = self._rounded(graph, layers, encodings)
        tensors = walk.outputs(graph_of_integers, self._held, threads=self._threads, change=stored)
        try:
            return self._score(tensors)
        except InvalidDataError:
            return Score(-np.inf, "dead", broken[0] if broken else "")

    def _rounded(self, graph: Graph, layers: Layers, encodings: Mapping[str, Encoding]) -> Graph:
        """A copy of the graph with the constants that integers stand for."""
        rounded_graph = Graph(graph.with_outputs(self._names))
        for layer in rounded_graph.layers:
            if layer.output in layers:
                reconstruct.put(rounded_graph, layer, layers[layer.output])
        constants = encode.constants(graph, encodings, self._profile)
        reconstruct.put_constants(rounded_graph, reconstruct.constants(graph, constants))
        return rounded_graph

    def _score(self, tensors: walk.Values) -> Score:
        """What outputs are worth.

        Raises:
            InvalidDataError: If a value is not finite.
        """
        before = self._judge(tensors, self._before)
        outputs = self._judge(tensors, self._outputs)
        worst = min(before, key=lambda fidelity_before: fidelity_before.sqnr_centred)
        return Score(
            worst.sqnr_centred, fidelity.worst(outputs), noise=self._noise(tensors, worst.output)
        )

    def _noise(self, tensors: walk.Values, name: str) -> tuple[float, ...]:
        exact = self._expected[name]
        if exact.dtype.kind != "f":
            return ()
        errors = (exact - tensors[name]).reshape(self._count, -1).astype(np.float64)
        return tuple(float(error) for error in np.mean(errors**2, axis=1))

    def _judge(self, tensors: walk.Values, names: Sequence[str]) -> tuple[Fidelity, ...]:
        return of(
            {name: self._expected[name] for name in names},
            {name: tensors[name] for name in names},
            self._count,
        )


def of(
    expected: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]], count: int
) -> tuple[Fidelity, ...]:
    """Judge outputs of any dtype.

    Args:
        expected: The float model's, by name, ``count`` samples one behind the other.
        outputs: The deployable's, real numbers dequantized.
        count: Samples.

    Raises:
        InvalidDataError: If there is NaN or infinity.
    """
    judged = []
    for name, exact in expected.items():
        if exact.dtype.kind != "f":
            judged.append(_of_whole_numbers(name, exact, outputs[name], count))
            continue
        sizes = exact.shape[1:] if len(exact) == count else (exact.size // count,)
        right, rounded = (part.reshape(count, -1) for part in (exact, outputs[name]))
        judged += fidelity.judge(right, rounded, {name: sizes})
    return tuple(judged)


def _of_whole_numbers(
    name: str, exact: npt.NDArray[Any], outputs: npt.NDArray[Any], count: int
) -> Fidelity:
    """Each number that differs counts as an error of its own size: 10 dB where one of ten does."""
    differs = float(np.mean(exact != outputs))
    sqnr = -10 * float(np.log10(differs)) if differs else float("inf")
    return Fidelity(name, count, sqnr, sqnr)
