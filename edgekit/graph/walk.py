"""Run a float graph operator by operator on many samples, with a hook after each operator.

Every operator becomes a flatbuffer of its own, so that everything that LiteRT can compute can be
run. Each output can be changed before the next operator reads it, e.g. rounded as a device will
round it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.graph import litert, rounded
from edgekit.graph.flatbuffer import Graph, Operator
from edgekit.graph.rounded import Number
from edgekit.records.encodings import Encoding

Values = dict[str, npt.NDArray[np.float32]]
#: Of one run's inputs: what an operator reads and writes stays in the cache, and the interpreter's
#: memory is small enough to be used again by the next one.
_RUN_BYTES = 1 << 20
#: Interpreters of one graph at the same time, at the most.
_AT_ONCE = 8


class Step:
    """One operator, ready to run on any number of images.

    Args:
        graph: Float.
        position: Of the operator.
        threads: Of the operator.
        numbers: Of tensors that it takes and gives as int8, rounded as a device stores them.

    Attributes:
        doubtful: Whether a value that became int8 may have been NaN, in any run so far.
    """

    def __init__(
        self,
        graph: Graph,
        position: int,
        *,
        threads: int,
        numbers: Mapping[str, Number] | None = None,
    ) -> None:
        self.operator = graph.operators[position]
        self.fed = fed(graph, self.operator)
        self.doubtful = False
        touched = (*self.fed, *self.operator.outputs)
        stored = {name: e for name, e in (numbers or {}).items() if name in touched}
        self._content, self._threads = graph.single(position), threads
        #: Of tensors that are brought from int8 and to int8 outside of the operator.
        self._outside: dict[str, Encoding] = {}
        if any(len(graph.shape(name)) > rounded.AXES for name in touched):
            for name, (scale, zero_point) in stored.items():
                self._outside[name] = Encoding("int8", (scale,), zero_point)
        elif stored:
            self._content = rounded.on_integers(self._content, stored)
        self._opened = litert.interpreter(self._content, threads=threads)
        self._output_indices = [detail["index"] for detail in self._opened.get_output_details()]
        places = {detail["name"]: detail["index"] for detail in self._opened.get_input_details()}
        self._input_indices = [places[name] for name in self.fed]
        self._lengths = [length(graph, name) for name in self.fed]
        self._shapes = [graph.shape(name) for name in self.fed]
        outputs = self.operator.outputs
        self._bytes = sum(4 * int(np.prod(shape)) for shape in self._shapes)
        # a first axis that is no batch, as behind a transposition, or would be another's last one,
        # as where one mean is taken from all: sample by sample
        self._whole = len({len(shape) for shape in self._shapes}) == 1 and all(
            len(graph.shape(name)) > 0 and graph.shape(name)[0] == 1
            for name in (*self.fed, *outputs)
        )
        self._size = 1

    def run(self, values: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The operator's outputs ``[N, ...]`` for inputs ``[N, ...]`` by name.

        A tensor whose first axis is no batch is ``[N * size, ...]``, a scalar ``[N]``.
        """
        outside = self._outside
        inputs = [
            outside[name].real(values[name]) if name in outside else values[name]
            for name in self.fed
        ]
        arrays = self._run(inputs)
        for place, name in enumerate(self.operator.outputs):
            if name in outside:
                self.doubtful |= bool(np.isnan(arrays[place]).any())
                arrays[place] = outside[name].steps(arrays[place])
        return arrays

    def _run(self, inputs: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        count = len(inputs[0]) // self._lengths[0]
        batch = max(1, min(count, _RUN_BYTES // (self._bytes + 1)))
        arrays: list[npt.NDArray[Any]] = []
        start = 0
        while start < count:
            size = min(batch, count - start) if self._whole else 1
            if not self._resize(inputs, size):
                self._whole = False
                continue
            for index, array, length, shape in zip(
                self._input_indices, inputs, self._lengths, self._shapes, strict=True
            ):
                part = array[start * length : (start + size) * length]
                self._opened.set_tensor(index, part if shape else part.reshape(()))
            litert.invoke(self._opened)
            if not self._take(arrays, start, size, count):
                self._whole = False  # batch 1 is written into the operator: image by image
                continue
            start += size
        return arrays

    def _take(self, arrays: list[npt.NDArray[Any]], start: int, size: int, count: int) -> bool:
        """Put what was computed where it belongs, unless it is not of ``size`` samples."""
        # views: of the interpreter's memory there must be none when it runs again
        views = [np.atleast_1d(self._opened.tensor(index)()) for index in self._output_indices]
        if size > 1 and any(len(view) != size for view in views):
            return False
        outputs = len(self.operator.outputs)
        for watched in views[outputs:]:
            self.doubtful |= bool(np.isnan(watched).any())
        lengths = [len(view) // size for view in views[:outputs]]
        if not arrays:
            arrays += [
                np.empty((count * length, *view.shape[1:]), view.dtype)
                for length, view in zip(lengths, views, strict=False)
            ]
        for array, length, view in zip(arrays, lengths, views, strict=False):
            array[start * length : (start + size) * length] = view
        return True

    def _resize(self, inputs: list[npt.NDArray[Any]], size: int) -> bool:
        if size == self._size:
            return True
        try:
            if size > 1:
                for index, array in zip(self._input_indices, inputs, strict=True):
                    self._opened.resize_tensor_input(index, (size, *array.shape[1:]))
                self._opened.allocate_tensors()
        except (RuntimeError, ValueError):
            size = 0  # the inputs are resized, the rest is not
        if size <= 1:  # from another size XNNPACK does not always find its way back
            self._opened = litert.interpreter(self._content, threads=self._threads)
        self._size = max(size, 1)
        return size > 0


def length(graph: Graph, name: str) -> int:
    """Entries of a sample along the first axis; batch is 1."""
    shape = graph.shape(name)
    return shape[0] if shape else 1


def samples(graph: Graph, feed: Mapping[str, npt.NDArray[Any]]) -> int:
    """How many samples a feed by tensor name holds."""
    name, values = next(iter(feed.items()))
    return len(values) // length(graph, name)


def picked(graph: Graph, feed: Values, places: npt.NDArray[np.int64]) -> Values:
    """Some of the samples of a feed."""
    samples_of = {}
    for name, values in feed.items():
        by_sample = values.reshape(-1, length(graph, name), *values.shape[1:])
        samples_of[name] = by_sample[places].reshape(-1, *values.shape[1:])
    return samples_of


def fed(graph: Graph, operator: Operator) -> tuple[str, ...]:
    """What an operator computes on: its inputs that are not constants, each once."""
    names = dict.fromkeys(name for name in operator.inputs if name)
    return tuple(name for name in names if not graph.is_constant(name))


def last_readers(graph: Graph) -> dict[str, int]:
    """Position of the operator after which a tensor is not needed any more; outputs are kept."""
    last: dict[str, int] = {}
    for position, operator in enumerate(graph.operators):
        for name in (*operator.inputs, *operator.outputs):
            last[name] = position
    return {name: position for name, position in last.items() if name not in graph.outputs}


def outputs(
    graph: Graph,
    feed: Values,
    *,
    threads: int,
    change: Callable[[str, npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None,
) -> Values:
    """Walk the whole graph.

    Args:
        graph: Float.
        feed: Inputs ``[N, ...]`` by name.
        threads: Number of threads of each operator.
        change: (name, values) to the values that later operators see; for inputs too.

    Returns:
        The graph's outputs ``[N, ...]`` by name.
    """
    change = change or (lambda _, values: values)
    values = {name: change(name, array) for name, array in feed.items()}
    last_reader = last_readers(graph)
    for position, operator in enumerate(graph.operators):
        arrays = Step(graph, position, threads=threads).run(values)
        for name, array in zip(operator.outputs, arrays, strict=True):
            values[name] = change(name, array)
        for name in [name for name in values if last_reader.get(name, position + 1) <= position]:
            del values[name]
    return {name: values[name] for name in graph.outputs}


def divided(cores: int, samples: int) -> tuple[int, int]:
    """(interpreters that run at the same time, threads of each): each needs memory of its own."""
    several = max(1, min(cores, samples, _AT_ONCE))
    return several, max(1, cores // several)


def run(
    content: bytes,
    graph: Graph,
    feed: Mapping[str, npt.NDArray[Any]],
    *,
    threads: int,
) -> list[npt.NDArray[Any]]:
    """Run a flatbuffer as a whole, sample by sample.

    Args:
        content: With the inputs of ``graph``.
        graph: Says how a sample lies in an input.
        feed: ``[N, ...]`` by name.
        threads: Samples at the same time.

    Returns:
        The flatbuffer's outputs ``[N, ...]``, in its order.
    """
    several, threads_each = divided(threads, samples(graph, feed))
    parts = np.array_split(np.arange(samples(graph, feed)), several)
    lengths = {name: length(graph, name) for name in feed}

    def work(part: npt.NDArray[np.int64]) -> list[list[npt.NDArray[Any]]]:
        opened = litert.interpreter(content, threads=threads_each)
        inputs = {d["name"]: (d["index"], d["shape"]) for d in opened.get_input_details()}
        output_indices = [detail["index"] for detail in opened.get_output_details()]
        results = []
        for sample in part.tolist():
            for name, (index, shape) in inputs.items():
                own = slice(sample * lengths[name], (sample + 1) * lengths[name])
                opened.set_tensor(index, feed[name][own].reshape(shape))
            litert.invoke(opened)
            results.append([np.atleast_1d(opened.get_tensor(index)) for index in output_indices])
        return results

    with ThreadPoolExecutor(several) as pool:
        by_sample = [outputs for results in pool.map(work, parts) for outputs in results]
    return [np.concatenate(arrays) for arrays in zip(*by_sample, strict=True)]
