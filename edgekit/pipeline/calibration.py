"""Run a calibration set through the canonical float graph."""

from __future__ import annotations

import hashlib
import math
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import outputs, words
from edgekit.base.errors import EdgekitError, InvalidDataError, InvalidModelError
from edgekit.base.progress import SILENT, Progress
from edgekit.base.version import sources
from edgekit.data import feeds
from edgekit.data.feeds import Samples
from edgekit.graph import litert, walk
from edgekit.graph.flatbuffer import Graph
from edgekit.graph.probe import Place, Probe, probe
from edgekit.quantization import ranges
from edgekit.quantization.histogram import StreamingHistogram
from edgekit.quantization.table import METHODS, CalibrationTable, TensorStatistics
from edgekit.records import artifact, environment
from edgekit.records.signature import Layout, Preprocessing, Shapes
from edgekit.sources import float_model

DEFAULT_METHOD = "minmax"
#: Values of a tensor that go into its histogram and channels, about, evenly from all images; of a
#: large set 64 an image.
SAMPLE = 1 << 16
#: Share of an image in the moving average of extremes (Jacob et al. 2018: "close to 1" for the
#: rest; 0.01 is what PyTorch's MovingAverageMinMaxObserver has).
SHARE = 0.01
_BATCH_BYTES = 16 << 20  # of all activations in one run, where a model is small enough for several
_PENDING = 1 << 22  # reported values that wait for their statistics: numpy's calls cost less so
Floats = npt.NDArray[np.float32]


def calibrate(
    model: Path | None = None,
    *,
    dataset: str | None = None,
    preprocessing: str | None = None,
    limit: int | None = None,
    method: str = DEFAULT_METHOD,
    shapes: Shapes | None = None,
    layout: Layout = "",
    trust: bool = False,
    progress: Progress = SILENT,
) -> CalibrationTable:
    """Find the range of every activation of a float model.

    Args:
        model: As :func:`edgekit.sources.float_model.load` takes it; default the shipped model.
        dataset: What :func:`edgekit.data.feeds.open_word` takes; labels are only for an even
            sample. Default for the shipped model: ``fashion_mnist``.
        preprocessing: For a file: name or JSON file.
        shapes: Sizes of a file's inputs with free axes, by name; under ``""`` of the only one.
        layout: Layout of the TFLite files of an ONNX source, where inputs and outputs have their
            channels.
        trust: Let code inside of the model's file run.
        limit: Use the first images only.
        method: ``minmax``, ``moving-average``, ``percentile``, ``entropy`` or ``mse``.
        progress: Hears how far it is, and what loading the images says.

    Raises:
        InvalidModelError: If the model cannot be read or converted.
        InvalidDataError: If the images do not fit the model.
        InvalidOptionError: If the method is unknown.
    """
    words.one_of("method", method, METHODS)
    dataset = float_model.data_word(dataset, model)
    opened = feeds.open_word(dataset, "calibration", progress=progress)
    source = float_model.load(
        model, preprocessing=preprocessing, trust=trust, shapes=shapes, layout=layout
    )
    source.refuse_integers("calibrate")
    return cached(
        source.canonical(),
        source.samples(opened, limit),
        prepare=source.preprocessing,
        method=method,
        word=dataset,
        progress=progress,
    )


def cached(
    canonical: bytes,
    images: Samples,
    *,
    prepare: Preprocessing,
    method: str,
    word: str,
    progress: Progress = SILENT,
) -> CalibrationTable:
    """:func:`observe`, but images that went through this graph before are not run again."""
    table, _ = cached_parts(
        canonical, images, prepare=prepare, method=method, word=word, progress=progress
    )
    return table


def cached_parts(
    canonical: bytes,
    images: Samples,
    *parts: npt.NDArray[np.int64],
    prepare: Preprocessing,
    method: str,
    word: str,
    progress: Progress = SILENT,
) -> tuple[CalibrationTable, tuple[CalibrationTable, ...]]:
    """The same, with tables of some of the images each, which cost no pass of their own.

    Args:
        canonical: As :func:`observe` takes it, like all that is not named here.
        parts: Places of images.

    Returns:
        The table of all images, and those of the parts; without them where the first was known.
    """
    path = _path(canonical, images, prepare)
    if path.is_file():
        try:
            stored_table = CalibrationTable.load(path)
        except EdgekitError as exc:
            progress.say(f"warning: {exc}; calibrating again")
        else:
            progress.say(f"calibration statistics of {stored_table.count} samples: {path}")
            return choose(replace(stored_table, data=word), method), ()
    sets = [images, *(feeds.take(images, places) for places in parts)]
    tables = _observe(
        canonical, images, parts, sets, prepare=prepare, method=method, word=word, progress=progress
    )
    try:
        for part, table in zip(sets, tables, strict=True):
            content = choose(table, DEFAULT_METHOD).dumps()
            outputs.write_text(_path(canonical, part, prepare), content, force=True)
    except OSError as exc:
        progress.say(f"warning: the calibration statistics were not cached: {exc}")
    return tables[0], tuple(tables[1:])


def _path(canonical: bytes, images: Samples, prepare: Preprocessing) -> Path:
    """Where the statistics of images are kept."""
    key = hashlib.sha256()
    versions = f"{sources()} {sorted(artifact.package_versions().items())}"
    for part in (canonical, images.sha256, str(prepare), versions):
        key.update(hashlib.sha256(part if isinstance(part, bytes) else part.encode()).digest())
    return cache_folder() / f"{key.hexdigest()}.json"


def choose(table: CalibrationTable, method: str) -> CalibrationTable:
    """The same statistics with the ranges of another method."""
    of_method = {
        name: ranges.find(tensor_statistics, method)
        for name, tensor_statistics in table.statistics.items()
    }
    return replace(table, method=method, ranges=of_method)


def cache_folder() -> Path:
    """Where statistics are kept: ``$XDG_CACHE_HOME/edgekit/calibration``."""
    return outputs.cache("calibration")


def observe(
    canonical: bytes,
    images: Samples,
    *,
    prepare: Preprocessing,
    method: str = DEFAULT_METHOD,
    word: str | None = None,
    progress: Progress = SILENT,
) -> CalibrationTable:
    """Run images through a canonical float graph and keep statistics of each tensor.

    Extremes and a sample are taken inside the runtime (edgekit.graph.probe): memory beyond the
    images themselves does not depend on their number.

    Args:
        canonical: Float flatbuffer.
        images: The calibration set, with an array for each input.
        prepare: From pixels to model input.
        method: One of :data:`edgekit.quantization.table.METHODS`.
        word: What to record as the data; default the set's name.
        progress: Hears how far it is.

    Raises:
        InvalidDataError: If the images do not fit the input, there is only one, or a tensor becomes
            NaN or infinite.
        InvalidModelError: If the graph has a loop.
    """
    (table,) = _observe(
        canonical, images, (), [images], prepare=prepare, method=method, word=word,
        progress=progress,
    )  # fmt: skip
    return table


def _observe(
    canonical: bytes,
    images: Samples,
    parts: Sequence[npt.NDArray[np.int64]],
    sets: Sequence[Samples],
    *,
    prepare: Preprocessing,
    method: str,
    word: str | None,
    progress: Progress,
) -> list[CalibrationTable]:
    """Tables of several sets by one pass: of all images, and of each part of them."""
    for samples_of_set in sets:
        _expect_several(samples_of_set)
    if loops := Graph(canonical).loops:
        raise InvalidModelError(
            f"{loops[0]} is a loop, whose inner values are not calibrated; unroll it, "
            f"e.g. with unroll=True of a recurrent layer, or export it in float32"
        )
    probed = probe(
        canonical, samples=[max(64, SAMPLE // len(samples_of_set)) for samples_of_set in sets]
    )
    specs = litert.signature(canonical).inputs
    feeds.check(images, specs)
    member = [np.isin(np.arange(len(images)), places) for places in parts]
    observers = [
        _Observer(probed.places, samples_of_set.name, len(samples_of_set), number)
        for number, samples_of_set in enumerate(sets)
    ]
    runs = _Runs(canonical, probed, images, prepare)
    with progress.task("calibrating", len(images)) as task:
        for start, (low, high, *samples) in runs:
            observers[0].add(low, high, samples[0])
            for observer, inside, sample in zip(observers[1:], member, samples[1:], strict=True):
                own = inside[start : start + len(low)]
                if own.any():
                    observer.add(low[own], high[own], sample[own])
            task.advance(len(low))
    return [
        _table(canonical, observer.result(), own, prepare=prepare, method=method, word=word)
        for observer, own in zip(observers, sets, strict=True)
    ]


class _Runs:
    """What a probe reports, in the order of the images.

    Several interpreters run at the same time: an operator that is divided among threads waits for
    the slowest of them.

    Args:
        canonical: Float flatbuffer.
        probed: Of it.
        images: The calibration set.
        prepare: From pixels to model input.
    """

    def __init__(
        self, canonical: bytes, probed: Probe, images: Samples, prepare: Preprocessing
    ) -> None:
        self._images, self._prepare = images, prepare
        self._specs = litert.signature(canonical).inputs
        self._whole = all(spec.batched for spec in self._specs)
        count, threads = walk.divided(environment.cores(), len(images))
        opened = [litert.interpreter(probed.content, threads=threads) for _ in range(count)]
        self._batch = 1
        if self._whole:
            self._batch = min(_batch(interpreter, probed, len(images)) for interpreter in opened)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for interpreter in opened:
            self._free.put(interpreter)
        self._count = count
        tensors = {detail["name"]: detail["index"] for detail in opened[0].get_input_details()}
        self._input_indices = {
            name: tensors[t] for name, t in Graph(canonical).named_inputs.items()
        }

    def __iter__(self) -> Iterator[tuple[int, list[Floats]]]:
        """(number of the first image, the probe's outputs) of one batch after the other."""
        starts = range(0, len(self._images), self._batch)
        waiting: deque[tuple[int, Future[list[Floats]]]] = deque()
        with ThreadPoolExecutor(self._count) as pool:
            try:
                for start in starts:
                    waiting.append((start, pool.submit(self._run, start)))
                    if len(waiting) > self._count:
                        first, done = waiting.popleft()
                        yield first, done.result()
                while waiting:
                    first, done = waiting.popleft()
                    yield first, done.result()
            finally:
                for _, left in waiting:
                    left.cancel()

    def _run(self, start: int) -> list[Floats]:
        size = min(self._batch, len(self._images) - start)
        feed = feeds.feed(self._images, self._specs, self._prepare, slice(start, start + size))
        if not self._whole:
            feed = next(feeds.one_by_one(feed, self._specs))
        opened = self._free.get()
        if size != self._batch:
            _resize(opened, size)
        for name, values in feed.items():
            opened.set_tensor(self._input_indices[name], values)
        litert.invoke(opened)
        arrays = [opened.get_tensor(detail["index"]) for detail in opened.get_output_details()]
        self._free.put(opened)
        return arrays


def _expect_several(images: Samples) -> None:
    if len(images) < 2:
        raise InvalidDataError(
            f"{images.name}: expected at least 2 images to calibrate with, got {len(images)}; "
            f"the ranges of one image do not hold for others"
        )


def _table(
    content: bytes,
    statistics: dict[str, TensorStatistics],
    images: Samples,
    *,
    prepare: Preprocessing,
    method: str,
    word: str | None,
) -> CalibrationTable:
    table = CalibrationTable(
        graph_sha256=hashlib.sha256(content).hexdigest(),
        data=word or images.name,
        data_sha256=images.sha256,
        count=len(images),
        preprocessing=prepare,
        method=DEFAULT_METHOD,
        ranges={
            name: ranges.find(tensor_statistics, DEFAULT_METHOD)
            for name, tensor_statistics in statistics.items()
        },
        statistics=statistics,
    )
    return table if method == DEFAULT_METHOD else choose(table, method)


def _batch(opened: Any, probed: Probe, count: int) -> int:
    """Images a run: several where a model is small, one where its graph does not let them be more.

    The interpreter is left resized.
    """
    details = opened.get_tensor_details()
    sample_bytes = sum(4 * int(np.prod(detail["shape"])) for detail in details)
    batch = max(1, min(count, _BATCH_BYTES // max(sample_bytes, 1)))
    if batch == 1 or not probed.batches:
        return 1
    try:
        _resize(opened, batch)
        if all(detail["shape"][0] == batch for detail in opened.get_output_details()):
            return batch
    except (RuntimeError, ValueError):
        pass  # a graph with its batch written into it, e.g. in a Reshape: image by image then
    _resize(opened, 1)
    return 1


def _resize(opened: Any, batch: int) -> None:
    for detail in opened.get_input_details():
        opened.resize_tensor_input(detail["index"], (batch, *detail["shape"][1:]))
    opened.allocate_tensors()


class _Observer:
    """Statistics of all tensors from what a probe reports.

    Args:
        places: Of the probe.
        name: Of the images.
        images: How many there are.
        number: Of the size of sample that is theirs.
    """

    def __init__(self, places: Sequence[Place], name: str, images: int, number: int) -> None:
        self._places = places
        self._columns = [place.samples[number] for place in places]
        self._name = name
        self._counted = 0
        self._low: Floats = np.zeros(0, np.float32)
        self._high: Floats = np.zeros(0, np.float32)
        self._average: npt.NDArray[np.float64] | None = None
        self._pending: list[tuple[Floats, Floats, Floats]] = []
        self._histograms = [StreamingHistogram() for _ in places]
        self._totals = [np.zeros(place.channels) for place in places]
        self._rows = [0] * len(places)
        # of a tensor with many channels a grid is more than its share: not of every image then
        self._every = [max(1, (own.stop - own.start) * images // SAMPLE) for own in self._columns]
        self._low_starts = [place.low.start for place in places if place.low is not None]
        self._high_starts = [place.high.start for place in places]

    def add(self, low: Floats, high: Floats, sample: Floats) -> None:
        """Take a run in.

        Raises:
            InvalidDataError: At a NaN or Inf, or some runs later.
        """
        self._pending.append((low, high, sample))
        if len(self._pending) * (low.size + high.size + sample.size) > _PENDING:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        low, high, sample = map(np.concatenate, zip(*self._pending, strict=True))
        self._pending = []
        highs, lows = ([getattr(place, side) for place in self._places] for side in ("high", "low"))
        for values, columns in ((high, highs), (low, lows), (sample, self._columns)):
            if not math.isfinite(float(values.sum(dtype=np.float64))):
                self._refuse_bad(values, columns)
        lowest, highest = low.min(axis=0), high.max(axis=0)
        if self._counted:
            lowest, highest = np.minimum(lowest, self._low), np.maximum(highest, self._high)
        self._low, self._high = lowest, highest
        smallest = np.minimum.reduceat(low, self._low_starts, axis=1)
        largest = np.maximum.reduceat(high, self._high_starts, axis=1)
        for extremes in np.concatenate([smallest, largest], axis=1).astype(np.float64):
            if self._average is None:
                self._average = extremes.copy()
            self._average += SHARE * (extremes - self._average)
        first = self._counted
        self._counted += len(sample)
        for i, (place, every) in enumerate(zip(self._places, self._every, strict=True)):
            values = np.ascontiguousarray(sample[-first % every :: every, self._columns[i]])
            if not values.size:
                continue
            self._histograms[i].add(values)
            by_channel = values.reshape(-1, place.channels)
            self._totals[i] += by_channel.sum(axis=0, dtype=np.float64)
            self._rows[i] += len(by_channel)

    def _refuse_bad(self, values: Floats, columns: Sequence[slice | None]) -> None:
        for number, row in enumerate(values):
            for place, own in zip(self._places, columns, strict=True):
                if own is not None and not np.isfinite(row[own]).all():
                    raise InvalidDataError(
                        f"{self._name}: image {self._counted + number} makes {place.name} NaN or "
                        f"infinite, which has no int8 range; check the preprocessing, or export "
                        f"in float32 or float16 if the model itself discards such values"
                    )

    def result(self) -> dict[str, TensorStatistics]:
        """By tensor name."""
        self._flush()
        assert self._average is not None
        averages = self._average.tolist()
        average_lows = iter(averages[: len(self._low_starts)])
        average_highs = averages[len(self._low_starts) :]
        statistics = {}
        for i, place in enumerate(self._places):
            high = self._high[place.high]
            if place.low is None:
                low = np.full_like(high, place.bounds[0])
                average_low = place.bounds[0]
            else:
                low, average_low = self._low[place.low], next(average_lows)
            least, most = float(low.min()), float(high.max())
            statistics[place.name] = TensorStatistics(
                min=least,
                max=most,
                average_min=min(max(average_low, least), most),
                average_max=min(max(average_highs[i], least), most),
                histogram=self._histograms[i].result(),
                channel_min=_short(low),
                channel_max=_short(high),
                channel_mean=_short(self._totals[i] / self._rows[i]),
            )
        return statistics


def _short(values: npt.NDArray[Any]) -> tuple[float, ...]:
    """Six digits keep the table small, and say more than a sample knows."""
    exact = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        digits = 5 - np.floor(np.log10(np.abs(exact)))
    unit = 10.0 ** np.where(np.isfinite(digits), np.clip(digits, -300, 300), 0)
    return tuple((np.rint(exact * unit) / unit).tolist())
