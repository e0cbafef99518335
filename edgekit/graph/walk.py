"""Run a float graph operator by operator on many samples, with a hook after each operator.

Every operator becomes a flatbuffer of its own, so that everything that LiteRT can compute can be
run. Each output can be changed before the next operator reads it, e.g. rounded as a device will
round it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.graph import litert
from edgekit.graph.flatbuffer import Graph, Operator

Values = dict[str, npt.NDArray[np.float32]]
#: Of one run's inputs: what an operator reads and writes stays in the cache, and the interpreter's
#: memory is small enough to be used again by the next one.
_RUN_BYTES = 4 << 20


class Step:
    """One operator, ready to run on any number of images."""

    def __init__(self, graph: Graph, position: int, *, threads: int) -> None:
        self.operator = graph.operators[position]
        self.fed = fed(graph, self.operator)
        self._content, self._threads = graph.single(position), threads
        self._opened = litert.interpreter(self._content, threads=threads)
        self._ends = [detail["index"] for detail in self._opened.get_output_details()]
        places = {detail["name"]: detail["index"] for detail in self._opened.get_input_details()}
        self._entries = [places[name] for name in self.fed]
        self._lengths = [_length(graph, name) for name in self.fed]
        self._shapes = [graph.shape(name) for name in self.fed]
        outputs = self.operator.outputs
        # a first axis that is no batch, as behind a transposition, or would be another's last one,
        # as where one mean is taken from all: sample by sample
        self._whole = len({len(shape) for shape in self._shapes}) == 1 and all(
            len(graph.shape(name)) > 0 and graph.shape(name)[0] == 1
            for name in (*self.fed, *outputs)
        )
        self._size = 1

    def run(self, values: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
        """The operator's outputs ``[N, ...]`` for inputs ``[N, ...]`` by name.

        A tensor whose first axis is no batch is ``[N * size, ...]``, a scalar ``[N]``.
        """
        inputs = [values[name] for name in self.fed]
        count = len(inputs[0]) // self._lengths[0]
        one = sum(array[:1].nbytes for array in inputs) + 1
        batch = max(1, min(count, _RUN_BYTES // one))
        found: list[npt.NDArray[np.float32]] = []
        start = 0
        while start < count:
            size = min(batch, count - start) if self._whole else 1
            if not self._resize(inputs, size):
                self._whole = False
                continue
            for entry, array, length, shape in zip(
                self._entries, inputs, self._lengths, self._shapes, strict=True
            ):
                part = array[start * length : (start + size) * length]
                self._opened.set_tensor(entry, part if shape else part.reshape(()))
            litert.invoke(self._opened)
            ends = [np.atleast_1d(self._opened.get_tensor(end)) for end in self._ends]
            if size > 1 and any(len(end) != size for end in ends):
                self._whole = False  # batch 1 is written into the operator: image by image
                continue
            lengths = [len(end) // size for end in ends]
            if not found:
                found = [
                    np.empty((count * length, *end.shape[1:]), end.dtype)
                    for length, end in zip(lengths, ends, strict=True)
                ]
            for array, length, end in zip(found, lengths, ends, strict=True):
                array[start * length : (start + size) * length] = end
            start += size
        return found

    def _resize(self, inputs: list[npt.NDArray[Any]], size: int) -> bool:
        if size == self._size:
            return True
        try:
            if size > 1:
                for entry, array in zip(self._entries, inputs, strict=True):
                    self._opened.resize_tensor_input(entry, (size, *array.shape[1:]))
                self._opened.allocate_tensors()
        except (RuntimeError, ValueError):
            size = 0  # the inputs are resized, the rest is not
        if size <= 1:  # from another size XNNPACK does not always find its way back
            self._opened = litert.interpreter(self._content, threads=self._threads)
        self._size = max(size, 1)
        return size > 0


def _length(graph: Graph, name: str) -> int:
    """Entries of a sample along the first axis; batch is 1."""
    shape = graph.shape(name)
    return shape[0] if shape else 1


def samples(graph: Graph, feed: Mapping[str, npt.NDArray[Any]]) -> int:
    """How many samples a feed by tensor name holds."""
    name, values = next(iter(feed.items()))
    return len(values) // _length(graph, name)


def picked(graph: Graph, feed: Values, places: npt.NDArray[np.int64]) -> Values:
    """Some of the samples of a feed."""
    found = {}
    for name, values in feed.items():
        each = values.reshape(-1, _length(graph, name), *values.shape[1:])
        found[name] = each[places].reshape(-1, *values.shape[1:])
    return found


def fed(graph: Graph, operator: Operator) -> tuple[str, ...]:
    """What an operator computes on: its inputs that are not constants, each once."""
    names = dict.fromkeys(name for name in operator.inputs if name)
    return tuple(name for name in names if not graph.is_constant(name))


def last_readers(graph: Graph) -> dict[str, int]:
    """Position of the operator after which a tensor is not needed any more; outputs are kept."""
    found: dict[str, int] = {}
    for position, operator in enumerate(graph.operators):
        for name in (*operator.inputs, *operator.outputs):
            found[name] = position
    return {name: end for name, end in found.items() if name not in graph.outputs}


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
    ends = last_readers(graph)
    for position, operator in enumerate(graph.operators):
        found = Step(graph, position, threads=threads).run(values)
        for name, array in zip(operator.outputs, found, strict=True):
            values[name] = change(name, array)
        for name in [name for name in values if ends.get(name, position + 1) <= position]:
            del values[name]
    return {name: values[name] for name in graph.outputs}
