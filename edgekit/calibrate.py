"""``python -m edgekit.calibrate``: run a calibration set through the canonical float graph.

One streaming pass takes what all methods need: each tensor's extremes, their moving average, a
histogram, and the mean and extremes of each channel. An activation that has reached an end of its
own, 0 of a ReLU or 6 of a ReLU6, is not searched for that end again, and later images are taken to
reach it too. Memory does not grow with the number of images. The statistics are cached under the sha256 of graph, data and preprocessing, so that another
method, or ``python -m edgekit.export``, does not run the images again. Writes a CalibrationTable
for ``python -m edgekit.export --calibration``.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import cli, data, environment, outputs
from edgekit.errors import EdgekitError, InvalidDataError, InvalidOptionError
from edgekit.formats import float_model, tflite
from edgekit.formats.flatbuffer import Graph
from edgekit.quant import ranges
from edgekit.quant.histogram import StreamingHistogram
from edgekit.quant.table import METHODS, SCHEMA_VERSION, CalibrationTable, TensorStatistics
from edgekit.signature import Preprocessing

DEFAULT_METHOD = "minmax"
#: Values of a tensor that go into its histogram and channels, about, evenly from all images; of a
#: large set 64 an image.
SAMPLE = 1 << 17
#: Share of an image in the moving average of extremes (Jacob et al. 2018: "close to 1" for the
#: rest; 0.01 is what PyTorch's MovingAverageMinMaxObserver has).
SHARE = 0.01
_BATCH_BYTES = 64 << 20  # of all activations in one run, where a model is small enough for several
_ANY = (-math.inf, math.inf)
_CHUNK = 1 << 16  # values that stay in a core's cache between minimum and maximum
_PENDING = 1 << 16


def calibrate(
    model: Path | None = None,
    *,
    dataset: str = "fashion_mnist",
    preprocessing: str | None = None,
    limit: int | None = None,
    method: str = DEFAULT_METHOD,
) -> CalibrationTable:
    """Find the range of every activation of a float model.

    Args:
        model: A Keras artifact or ``.keras`` file; default the shipped model.
        dataset: ``fashion_mnist`` or an ``.npz`` with ``x``; labels are not used.
        preprocessing: For a ``.keras`` file: name or JSON file.
        limit: Use the first images only.
        method: ``minmax``, ``moving-average``, ``percentile``, ``entropy`` or ``mse``.

    Raises:
        InvalidModelError: If the model cannot be read or converted.
        InvalidDataError: If the images do not fit the model.
        InvalidOptionError: If the method is unknown.
    """
    if method not in METHODS:
        raise InvalidOptionError(f"expected method {', '.join(METHODS)}, got {method!r}")
    images = data.load(dataset, "calibration").head(limit)
    source = float_model.load(model, preprocessing=preprocessing)
    return cached(
        tflite.from_keras(source.model),
        images,
        prepare=source.preprocessing,
        method=method,
        word=dataset,
    )


def cached(
    canonical: bytes, images: data.ImageSet, *, prepare: Preprocessing, method: str, word: str
) -> CalibrationTable:
    """:func:`observe`, but images that went through this graph before are not run again."""
    key = hashlib.sha256()
    for part in (canonical, images.sha256, str(prepare), str(SCHEMA_VERSION), str(SAMPLE)):
        key.update(hashlib.sha256(part if isinstance(part, bytes) else part.encode()).digest())
    path = cache_folder() / f"{key.hexdigest()}.json"
    if path.is_file():
        try:
            found = CalibrationTable.load(path)
        except EdgekitError as exc:
            cli.console.print(f"warning: {exc}; calibrating again", soft_wrap=True)
        else:
            cli.console.print(f"[dim]calibration statistics of {found.count} images: {path}[/]")
            return choose(replace(found, data=word), method)
    table = observe(canonical, images, prepare=prepare, method=method, word=word)
    try:
        outputs.write_text(path, choose(table, DEFAULT_METHOD).dumps(), force=True)
    except OSError as exc:
        cli.console.print(f"warning: the calibration statistics were not cached: {exc}")
    return table


def choose(table: CalibrationTable, method: str) -> CalibrationTable:
    """The same statistics with the ranges of another method."""
    found = {name: ranges.find(each, method) for name, each in table.statistics.items()}
    return replace(table, method=method, ranges=found)


def cache_folder() -> Path:
    """Where statistics are kept: ``$XDG_CACHE_HOME/edgekit/calibration``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgekit" / "calibration"


def observe(
    canonical: bytes,
    images: data.ImageSet,
    *,
    prepare: Preprocessing,
    method: str = DEFAULT_METHOD,
    word: str | None = None,
) -> CalibrationTable:
    """Run images through a canonical float graph and keep statistics of each tensor.

    No value is copied out of the runtime but a sample of fixed size: memory beyond the images
    themselves does not depend on their number.

    Args:
        canonical: Float flatbuffer with one input.
        images: The calibration set.
        prepare: From pixels to model input.
        method: Of :data:`edgekit.quant.table.METHODS`.
        word: What to record as the data; default the set's name.

    Raises:
        InvalidDataError: If the images do not fit the input, there is only one, or a tensor becomes
            NaN or infinite.
    """
    if len(images) < 2:
        raise InvalidDataError(
            f"{images.name}: expected at least 2 images to calibrate with, got {len(images)}; "
            f"the ranges of one image do not hold for others"
        )
    opened = tflite.interpreter(
        canonical, threads=environment.cores(), experimental_preserve_all_tensors=True
    )
    spec = tflite.signature_of(opened).single_input()
    if images.images.shape[1:] != spec.shape[1:]:
        raise InvalidDataError(
            f"{images.name}: expected images {list(spec.shape[1:])} as the model's input, "
            f"got {list(images.images.shape[1:])}"
        )
    tensors = tflite.activations(opened)
    batch = _batch(opened, tensors, len(images))
    bounds = Graph(canonical).bounds()
    sample = max(64, SAMPLE // len(images))
    observers = [_Observer(sample, bounds.get(tensor.name, _ANY)) for tensor in tensors]
    with cli.progress() as bar:
        task = bar.add_task("calibrating", total=len(images), note="")
        for start in range(0, len(images), batch):
            size = min(batch, len(images) - start)
            entry = opened.get_input_details()[0]
            if entry["shape"][0] != size:
                _resize(opened, size)
            opened.set_tensor(entry["index"], prepare.apply(images.images[start : start + size]))
            opened.invoke()
            for tensor, observer in zip(tensors, observers, strict=True):
                bad = observer.add(opened.tensor(tensor.index)(), start, size)
                if bad is not None:
                    raise InvalidDataError(
                        f"{images.name}: image {start + bad} makes {tensor.name} NaN or infinite; "
                        f"check the model and the preprocessing"
                    )
            bar.advance(task, size)
    statistics = {
        tensor.name: observer.result() for tensor, observer in zip(tensors, observers, strict=True)
    }
    table = CalibrationTable(
        graph_sha256=hashlib.sha256(canonical).hexdigest(),
        data=word or images.name,
        data_sha256=images.sha256,
        count=len(images),
        preprocessing=prepare,
        method=DEFAULT_METHOD,
        ranges={name: ranges.find(each, DEFAULT_METHOD) for name, each in statistics.items()},
        statistics=statistics,
    )
    return table if method == DEFAULT_METHOD else choose(table, method)


def _batch(opened: Any, tensors: Sequence[tflite.Activation], count: int) -> int:
    """Images a run: several where a model is small, one where its graph does not let them be more.

    The interpreter is left resized.
    """
    details = {detail["index"]: detail for detail in opened.get_tensor_details()}
    one = sum(4 * int(np.prod(details[tensor.index]["shape"])) for tensor in tensors)
    batch = max(1, min(count, _BATCH_BYTES // max(one, 1)))
    if batch == 1:
        return 1
    try:
        _resize(opened, batch)
        details = {detail["index"]: detail for detail in opened.get_tensor_details()}
        if all(_leading(details[tensor.index]) == batch for tensor in tensors):
            return batch
    except (RuntimeError, ValueError):
        pass  # a graph with its batch written into it, e.g. in a Reshape: image by image then
    _resize(opened, 1)
    return 1


def _resize(opened: Any, batch: int) -> None:
    entry = opened.get_input_details()[0]
    opened.resize_tensor_input(entry["index"], (batch, *entry["shape"][1:]))
    opened.allocate_tensors()


def _leading(detail: dict[str, Any]) -> int:
    shape = detail["shape"]
    return int(shape[0]) if len(shape) else 0


class _Observer:
    """Statistics of one tensor."""

    def __init__(self, sample: int, bounds: tuple[float, float]) -> None:
        self._sample = sample
        self._bounds = bounds
        self._low, self._high = math.inf, -math.inf
        self._average: list[float] | None = None
        self._histogram = StreamingHistogram()
        self._pending: list[npt.NDArray[np.float32]] = []
        self._size = 0
        self._rows = 0
        self._least: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self._most: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self._total: npt.NDArray[np.float64] = np.zeros(0, np.float64)

    def add(self, values: npt.NDArray[np.float32], first: int, count: int) -> int | None:
        """Take a run of ``count`` images in; the first of them that holds NaN or Inf, or None."""
        lows, highs = self._extremes(values, count)
        for number, (low, high) in enumerate(zip(lows, highs, strict=True)):
            if not (math.isfinite(low) and math.isfinite(high)):
                return number
            self._low, self._high = min(self._low, low), max(self._high, high)
            if self._average is None:
                self._average = [low, high]
            self._average[0] += SHARE * (low - self._average[0])
            self._average[1] += SHARE * (high - self._average[1])
        rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
        step = max(1, rows.size // (self._sample * count))
        step += step > 1 and step % 2 == 0  # odd: no column of the image is left out
        taken = rows[first * 7919 % step :: step].copy()
        self._pending.append(taken)
        self._size += taken.size
        if self._size >= _PENDING:
            self._flush()
        return None

    def _extremes(
        self, values: npt.NDArray[np.float32], count: int
    ) -> tuple[list[float], list[float]]:
        """Each image's smallest and largest value; an end that was reached is not looked for."""
        lows = [self._bounds[0]] * count if self._low <= self._bounds[0] else None
        highs = [self._bounds[1]] * count if self._high >= self._bounds[1] else None
        if lows is not None and highs is not None:
            return lows, highs
        if count > 1:
            images = values.reshape(count, -1)
            return lows or images.min(axis=1).tolist(), highs or images.max(axis=1).tolist()
        flat = values.reshape(-1)
        parts = [flat[i : i + _CHUNK] for i in range(0, len(flat), _CHUNK)]
        # numpy's own, not Python's: a NaN stays NaN
        if lows is not None:
            return lows, [float(np.max([part.max() for part in parts]))]
        if highs is not None:
            return [float(np.min([part.min() for part in parts]))], highs
        ends = np.array([(part.min(), part.max()) for part in parts])
        return [float(ends[:, 0].min())], [float(ends[:, 1].max())]

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = np.concatenate(self._pending)
        self._pending, self._size = [], 0
        self._histogram.add(rows)
        low, high, total = rows.min(axis=0), rows.max(axis=0), rows.sum(axis=0, dtype=np.float64)
        if self._rows:
            low, high = np.minimum(low, self._least), np.maximum(high, self._most)
            total += self._total
        self._least, self._most, self._total = low, high, total
        self._rows += len(rows)

    def result(self) -> TensorStatistics:
        self._flush()
        assert self._average is not None
        low, high = self._low, self._high
        return TensorStatistics(
            min=low,
            max=high,
            average_min=min(max(self._average[0], low), high),
            average_max=min(max(self._average[1], low), high),
            histogram=self._histogram.result(),
            channel_min=_short(self._least),
            channel_max=_short(self._most),
            channel_mean=_short(self._total / self._rows),
        )


def _short(values: npt.NDArray[Any]) -> tuple[float, ...]:
    """Six digits are enough of what is sampled, and keep the table small."""
    return tuple(float(f"{value:.6g}") for value in values)


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.calibrate``."""
    result = cli.Parser(
        "calibrate",
        description="Run a calibration set through the float model; write each tensor's range.",
        examples="""
python -m edgekit.calibrate                                  # the shipped model and images
python -m edgekit.calibrate mine.keras --preprocessing unit --data images.npz \\
    --method mse --out table.json
python -m edgekit.export mine.keras --preprocessing unit --target tflite --precision int8 \\
    --calibration table.json
""",
    )
    float_model.add_arguments(result)
    add = result.add_argument
    add("--data", default="fashion_mnist", help="fashion_mnist or FILE.npz with x")
    add("--limit", type=cli.positive_int, help="use the first N images only")
    add(
        "--method",
        choices=METHODS,
        default=DEFAULT_METHOD,
        help=f"how a range is taken from the values (default: {DEFAULT_METHOD})",
    )
    add("--out", type=Path, help="JSON file (default: calibration/MODEL_ID-DATA.json)")
    add("--force", action="store_true", help="replace OUT if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    out: Path | None = options.out
    if out is not None:
        outputs.check_free(out, force=options.force)
    images = data.load(options.data, "calibration").head(options.limit)
    source = float_model.load(options.model, preprocessing=options.preprocessing)
    out = out or Path("calibration") / f"{source.model_id}-{Path(options.data).stem}.json"
    outputs.check_free(out, force=options.force)
    table = cached(
        tflite.from_keras(source.model),
        images,
        prepare=source.preprocessing,
        method=options.method,
        word=options.data,
    )
    outputs.write_text(out, table.dumps(), force=options.force)
    cli.console.print(f"{len(table.ranges)} tensors from {table.count} images: {out}")
    return 0, {
        "table": str(out),
        "graph_sha256": table.graph_sha256,
        "data_sha256": table.data_sha256,
        "count": table.count,
        "method": table.method,
        "tensors": len(table.ranges),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
