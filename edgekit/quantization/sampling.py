"""What the dot products of layers read at a sample of places.

The float model is walked in parts: within one, a sample runs from the first operator to the last
while its values are in the cache, and only what layers read at their places is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.graph import litert, walk
from edgekit.graph.flatbuffer import Graph, Layer

_ROWS = 4096
_MOST_ROWS = 16384
#: Places of a depthwise layer by the number of weights of a channel, which each see all of them:
#: more take time and give the same decibels.
_OF_WEIGHT = 256
#: Of what is kept of one part, if it has several layers.
_PART_BYTES = 1 << 27
#: Of the tensors of so many samples that are looked at together.
_BLOCK_BYTES = 16 << 20

Tap = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Places:
    """Where a layer is looked at.

    Attributes:
        layer: The layer.
        length: Of a dot product; of a depthwise layer, of each channel's.
        channels: Of the input.
        image: Along the first axis of the input, in ascending order ``[N]``; of a dense layer its
            rows are all taken, and this is empty.
        taps: Row, column and whether they are inside, ``[N]`` each, of each weight in turn.
    """

    layer: Layer
    length: int
    channels: int
    image: npt.NDArray[np.int64]
    taps: tuple[Tap, ...] = ()

    def shape(self, graph: Graph, samples: int) -> tuple[int, ...]:
        """Of all that is read of so many samples: ``[N, K]``, or ``[N, K, C]`` of a depthwise
        layer."""
        if self.layer.kind == "dense":
            return samples * int(np.prod(graph.shape(self.layer.input))) // self.length, self.length
        if self.layer.kind == "depthwise":
            return len(self.image), len(self.taps), self.channels
        return len(self.image), len(self.taps) * self.channels

    def read(
        self, values: npt.NDArray[Any], *, into: npt.NDArray[Any], start: int = 0, fill: int = 0
    ) -> None:
        """Read what lies in some images.

        Args:
            values: The layer's input from image ``start`` on.
            into: All that is read, as :meth:`shape` says.
            start: First image.
            fill: What stands for 0.0 beyond the borders.
        """
        if self.layer.kind == "dense":
            rows = values.reshape(-1, self.length)
            first = start * (len(rows) // len(values))
            into[first : first + len(rows)] = rows
            return
        first, last = np.searchsorted(self.image, (start, start + len(values)))
        image = self.image[first:last] - start
        by_tap = into.reshape(len(into), len(self.taps), self.channels)[first:last]
        for number, tap in enumerate(self.taps):
            down, across, inside = (indices[first:last] for indices in tap)
            if inside.all():
                by_tap[:, number] = values[image, down, across]
            else:
                by_tap[:, number] = fill
                by_tap[inside, number] = values[image[inside], down[inside], across[inside]]


def draw(
    graph: Graph,
    layer: Layer,
    samples: int,
    rng: np.random.Generator,
    *,
    most: int = _MOST_ROWS,
) -> Places:
    """Choose places of a layer.

    Args:
        graph: Float.
        layer: Of the graph.
        samples: How many there are.
        rng: Chooses.
        most: Places at the most, of any but a dense layer.
    """
    shape, weights = graph.shape(layer.input), graph.shape(layer.weights)
    none = np.zeros(0, np.int64)
    if layer.kind == "dense":
        return Places(layer, weights[-1], shape[-1], none)
    height, width = weights[1:3]
    length = height * width * (1 if layer.kind == "depthwise" else weights[3])
    count = min(_MOST_ROWS, max(_ROWS, 8 * length))
    if layer.kind == "depthwise":
        count = min(_ROWS, _OF_WEIGHT * length)
    count = min(count, most)
    images, (rows, columns, channels) = samples * shape[0], shape[1:]
    transposed = layer.kind == "transposed"
    # of a transposed convolution, the convolution that it is the gradient of reads its output
    sizes = graph.shape(layer.output)[1:3] if transposed else (rows, columns)
    (high, top), (wide, left) = (
        _grid(size, kernel, stride, dilation, same=layer.same)
        for size, kernel, stride, dilation in zip(
            sizes, (height, width), layer.strides, layer.dilation, strict=True
        )
    )
    if transposed:
        high, wide = sizes
    total = images * high * wide
    picked = np.arange(total) if total <= count else np.sort(rng.choice(total, count, False))
    image, place = np.divmod(picked, high * wide)
    row, column = np.divmod(place, wide)
    if transposed:
        row, column = row + top, column + left
    else:
        row, column = row * layer.strides[0] - top, column * layer.strides[1] - left
    taps: list[Tap] = []
    for i in range(height):
        for j in range(width):
            if transposed:
                (down, off), (across, beside) = (
                    np.divmod(place - tap, stride)
                    for place, tap, stride in zip((row, column), (i, j), layer.strides, strict=True)
                )
                inside = (off == 0) & (beside == 0)
            else:
                down, across = row + i * layer.dilation[0], column + j * layer.dilation[1]
                inside = np.ones(len(row), bool)
            inside &= (down >= 0) & (down < rows) & (across >= 0) & (across < columns)
            taps.append((down, across, inside))
    return Places(layer, length, channels, image, tuple(taps))


def _grid(size: int, kernel: int, stride: int, dilation: int, *, same: bool) -> tuple[int, int]:
    """(number of places, zeros in front) along one axis, as TensorFlow pads."""
    reach = (kernel - 1) * dilation + 1
    if not same:
        return (size - reach) // stride + 1, 0
    places = -(-size // stride)
    return places, max(0, (places - 1) * stride + reach - size) // 2


def parts(
    graph: Graph, feed: walk.Values, places: Sequence[Places], *, threads: int
) -> Iterator[tuple[range, dict[str, npt.NDArray[np.float32]]]]:
    """Walk the float model part by part; the next part is walked while one is looked at.

    Args:
        graph: Float.
        feed: Samples ``[N, ...]`` by input name.
        places: Of its layers.
        threads: Samples at the same time.

    Yields:
        Positions of the operators of a part, and what its layers read, by their output.
    """
    positions = {operator.outputs[0]: i for i, operator in enumerate(graph.operators)}
    by_position = {positions[layer_places.layer.output]: layer_places for layer_places in places}
    model = _FloatModel(graph, feed, threads)

    def walked(part: range) -> tuple[range, dict[str, npt.NDArray[np.float32]]]:
        return part, model.run(part, [by_position[i] for i in part if i in by_position])

    with ThreadPoolExecutor(1) as pool:
        pending = None
        for part in _divided(graph, by_position, model.samples):
            following = pool.submit(walked, part)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _last_reads(graph: Graph) -> dict[str, int]:
    """Position of the last operator that reads a tensor."""
    return {name: i for i, o in enumerate(graph.operators) for name in walk.fed(graph, o)}


def _divided(graph: Graph, places: Mapping[int, Places], samples: int) -> Iterator[range]:
    """Parts of the graph between which little has to be kept of all samples."""
    operators = graph.operators
    last = _last_reads(graph)
    first_reader = dict.fromkeys(graph.inputs, 0)
    first_reader |= {
        name: i + 1 for i, operator in enumerate(operators) for name in operator.outputs
    }
    width = np.zeros(len(operators) + 1, np.int64)  # bytes that are kept in front of an operator
    for name, first in first_reader.items():
        width[first : last.get(name, -1) + 1] += 4 * int(np.prod(graph.shape(name)))
    start = 0
    while start < len(operators):
        size, stop = 0, start
        while stop < len(operators):
            if stop in places:
                size += 4 * int(np.prod(places[stop].shape(graph, samples)))
                if size > _PART_BYTES and stop > start:
                    break
            stop += 1
        if stop < len(operators):
            earliest = start + (stop - start + 1) // 2
            stop = min(range(earliest, stop + 1), key=lambda position: (width[position], -position))
        yield range(start, stop)
        start = stop


class _FloatModel:
    """A float graph, and the tensors of all samples that later parts of it read.

    Args:
        graph: Float.
        feed: Samples ``[N, ...]`` by input name.
        threads: Samples at the same time.
    """

    def __init__(self, graph: Graph, feed: walk.Values, threads: int) -> None:
        self.samples = walk.samples(graph, feed)
        self._graph = graph
        self._threads, self._threads_each = walk.divided(threads, self.samples)
        self._operators, self._last = graph.operators, _last_reads(graph)
        self._values: dict[str, npt.NDArray[Any]] = dict(feed)

    def run(self, part: range, places: Sequence[Places]) -> dict[str, npt.NDArray[np.float32]]:
        """What layers of a part read, by their output."""
        graph, values_by_name = self._graph, self._values
        read_by_layers = {
            layer_places.layer.output: np.empty(layer_places.shape(graph, self.samples), np.float32)
            for layer_places in places
        }
        computed = [name for position in part for name in self._operators[position].outputs]
        later = [name for name in computed if self._last.get(name, -1) >= part.stop]
        read = dict.fromkeys(
            layer_places.layer.input
            for layer_places in places
            if layer_places.layer.input in computed
        )
        computed_outputs = list(dict.fromkeys((*later, *read)))
        widest = sum(4 * int(np.prod(graph.shape(name))) for name in computed_outputs)
        block = min(self.samples, max(self._threads, _BLOCK_BYTES // max(1, widest)))
        run = self._computed(part, computed_outputs, later, block) if computed_outputs else None
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, self.samples, block):
                stop = min(self.samples, start + block)
                if run is not None:
                    shares = np.array_split(np.arange(start, stop), self._threads)
                    for _ in pool.map(partial(run, start), range(self._threads), shares):
                        pass
                for layer_places in places:
                    name = layer_places.layer.input
                    size = walk.length(graph, name)
                    first = 0 if name in read and name not in later else start
                    values = values_by_name[name][first * size : (first + stop - start) * size]
                    layer_places.read(
                        values, into=read_by_layers[layer_places.layer.output], start=start * size
                    )
        for name in [name for name in values_by_name if self._last.get(name, -1) < part.stop]:
            del values_by_name[name]
        return read_by_layers

    def _computed(
        self, part: range, outputs_of_part: Sequence[str], later: Sequence[str], block: int
    ) -> Callable[[int, int, npt.NDArray[np.int64]], None]:
        """A function that puts tensors of some samples into ``_values``: of those that later parts
        read all samples, of others a block."""
        graph, values_by_name = self._graph, self._values
        makers = [
            i for i in part if not set(outputs_of_part).isdisjoint(self._operators[i].outputs)
        ]
        content = graph.part(range(part.start, makers[-1] + 1), outputs_of_part)
        every = [
            litert.interpreter(content, threads=self._threads_each) for _ in range(self._threads)
        ]
        inputs = {d["name"]: (d["index"], d["shape"]) for d in every[0].get_input_details()}
        details = every[0].get_output_details()
        for name, detail in zip(outputs_of_part, details, strict=True):
            size, *per_sample = graph.shape(name) or (1,)
            count = self.samples if name in later else block
            values_by_name[name] = np.empty((count * size, *per_sample), detail["dtype"])
        outputs = [detail["index"] for detail in details]
        lengths = {name: walk.length(graph, name) for name in (*inputs, *outputs_of_part)}

        def compute(start: int, number: int, share: npt.NDArray[np.int64]) -> None:
            opened = every[number]
            for sample in share.tolist():
                for name, (index, shape) in inputs.items():
                    own = slice(sample * lengths[name], (sample + 1) * lengths[name])
                    opened.set_tensor(index, values_by_name[name][own].reshape(shape))
                litert.invoke(opened)
                for name, index in zip(outputs_of_part, outputs, strict=True):
                    place = sample if name in later else sample - start
                    own = slice(place * lengths[name], (place + 1) * lengths[name])
                    # a view: of the interpreter's memory there must be none when it runs again
                    values_by_name[name][own] = np.atleast_1d(opened.tensor(index)())

        return compute
