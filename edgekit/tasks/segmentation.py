"""How right the classes of pixels are: one confusion matrix, mIoU, its change, agreement.

Logits are brought to the size of the picture, bilinear with half-pixel centres, before a class is
chosen, since labels are not made smaller. One picture is in memory at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.blocks import blocks
from edgekit.base.errors import InvalidDataError
from edgekit.data.boxes import Views
from edgekit.data.masks import VOID, Masks
from edgekit.records.results import Measurement
from edgekit.tasks import bootstrap

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
#: Of a position: the two nearest ones, and the part of the second one.
_Taps = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Layout:
    """How an output holds the classes of pixels.

    Attributes:
        height: Of the output.
        width: Of the output.
        classes: Number of classes.
        first: Whether classes lie before height and width.
        chosen: Whether it holds class numbers in place of logits.
    """

    height: int
    width: int
    classes: int
    first: bool = False
    chosen: bool = False

    def planes(self, sample: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """One sample ``[M]`` as ``[C, h, w]``, or ``[1, h, w]`` of class numbers."""
        count = 1 if self.chosen else self.classes
        if self.first:
            return sample.reshape(count, self.height, self.width)
        laid = sample.reshape(self.height, self.width, count)
        return np.ascontiguousarray(laid.transpose(2, 0, 1))


def layout(size: Sequence[int], classes: int) -> Layout:
    """How one sample of an output holds the classes of pixels.

    Args:
        size: ``[h, w, C]`` or ``[C, h, w]`` of logits; ``[h, w]`` of class numbers, also with an
            axis of 1.
        classes: Number of classes of the data.

    Raises:
        InvalidDataError: If it is none of them.
    """
    shape = tuple(size)
    if len(shape) == 3 and classes > 1:
        if shape[2] == classes:
            return Layout(shape[0], shape[1], classes)
        if shape[0] == classes:
            return Layout(shape[1], shape[2], classes, first=True)
        if shape[2] == 1:
            return Layout(shape[0], shape[1], classes, chosen=True)
        if shape[0] == 1:
            return Layout(shape[1], shape[2], classes, first=True, chosen=True)
    if len(shape) == 2:
        return Layout(shape[0], shape[1], classes, first=True, chosen=True)
    raise InvalidDataError(
        f"expected an output [N, h, w, {classes}] or [N, {classes}, h, w], a score for each of "
        f"{classes} classes of the data, or class numbers [N, h, w], got {['N', *shape]}".replace(
            "'", ""
        )
    )


def classes_of(size: Sequence[int], input_size: tuple[int, int]) -> int:
    """How many classes an output has, where the data does not say it: the axis beside height and
    width, which are those of the input by the same factor; of class numbers 255.

    Args:
        size: Sizes of one sample.
        input_size: Height and width of the input.
    """
    if len(size) != 3 or 1 in (size[0], size[2]):
        return VOID
    high, wide = input_size
    last = abs(math.log(size[0] * wide / (size[1] * high)))
    first = abs(math.log(size[1] * wide / (size[2] * high)))
    return size[0] if first < last else size[2]


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixels by their right class and the predicted one.

    Attributes:
        matrix: int64 ``[C, C]``: pixels of right class i that are predicted as j.
        sums: int64 ``[N, 3, C]``: of each picture, pixels that are right, that have the class, and
            that are predicted to have it.
    """

    matrix: Numbers
    sums: Numbers

    def ious(self) -> Floats:
        """float64 ``[C]``: IoU of each class, of 1; NaN of a class that is neither right nor
        predicted anywhere."""
        return _ious(self.sums.sum(axis=0))

    def miou(self) -> float:
        """Mean IoU of the classes that are there, of 1."""
        return float(np.nanmean(self.ious()))

    def accuracy(self) -> float:
        """Share of pixels that are right, of 1."""
        return float(np.trace(self.matrix) / self.matrix.sum())


def _ious(sums: npt.NDArray[Any]) -> Floats:
    """``[..., C]`` of right, labelled and predicted pixels ``[..., 3, C]``."""
    right, labelled, predicted = (sums[..., i, :].astype(np.float64) for i in range(3))
    union = labelled + predicted - right
    ious: Floats = np.full(union.shape, np.nan)
    np.divide(right, union, out=ious, where=union > 0)
    return ious


def confusion(
    outputs: npt.NDArray[np.float32], layout: Layout, masks: Masks, views: Views | None
) -> Confusion:
    """Compare the predicted class of each pixel with the right one.

    Pixels that are void, or that the model's input did not show, do not count.

    Args:
        outputs: float32 ``[N, M]``.
        layout: How a sample of them is read.
        masks: N right masks, at the sizes of their pictures.
        views: The part of its picture that each input showed; None for all of it.

    Raises:
        InvalidDataError: If a mask has a class that is not below ``layout.classes``, or another
            size than its picture; if an output holds NaN; if no pixel counts.
    """
    if len(outputs) != len(masks):
        raise InvalidDataError(f"expected {len(masks):,} outputs, one a mask, got {len(outputs):,}")
    classes = layout.classes
    matrix = np.zeros((classes, classes), np.int64)
    sums = np.zeros((len(masks), 3, classes), np.int64)
    number = 0
    for (block,) in blocks(outputs):
        for sample in block:
            mask = masks[number]
            region = _region(mask, views, number)
            own = _pixels(sample, layout, mask, region, number)
            matrix += own
            sums[number] = np.diag(own), own.sum(axis=1), own.sum(axis=0)
            number += 1
    if not matrix.sum():
        raise InvalidDataError(f"all pixels of {len(masks):,} masks are void; mIoU needs others")
    return Confusion(matrix, sums)


def _region(
    mask: npt.NDArray[np.uint8], views: Views | None, number: int
) -> tuple[float, float, float, float]:
    """Left, top, width, height of what the input showed."""
    height, width = mask.shape
    if views is None:
        return 0.0, 0.0, float(width), float(height)
    if tuple(views.sizes[number]) != (height, width):
        expected = " x ".join(str(side) for side in views.sizes[number])
        raise InvalidDataError(
            f"mask {number}: expected height x width of its picture, {expected}, got {height} x "
            f"{width}"
        )
    left, top, wide, high = (float(each) for each in views.regions[number])
    return left, top, wide, high


def _pixels(
    sample: npt.NDArray[np.float32],
    layout: Layout,
    mask: npt.NDArray[np.uint8],
    region: tuple[float, float, float, float],
    number: int,
) -> Numbers:
    """Confusion matrix of one picture, ``[C, C]``."""
    classes = layout.classes
    left, top, width, height = region
    rows = _inside(mask.shape[0], top, height)
    columns = _inside(mask.shape[1], left, width)
    seen = mask[rows, columns]
    planes = layout.planes(sample)
    y = _taps(rows.start, rows.stop, top, height, layout.height)
    x = _taps(columns.start, columns.stop, left, width, layout.width)
    if layout.chosen:
        _refuse_nan(planes, number)
        nearest = [np.where(part < 0.5, low, high) for low, high, part in (y, x)]
        numbers = np.rint(planes[0][np.ix_(*nearest)])
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
            raise InvalidDataError(
                f"expected class numbers from 0 to {classes - 1}, got {int(numbers.min())} to "
                f"{int(numbers.max())}; the data and the model have to have the same classes"
            )
        predicted = numbers.astype(np.uint8 if classes <= 256 else np.uint16)
    else:
        predicted = _highest(planes, y, x, number)
    counted = seen != VOID
    if not counted.all():
        seen, predicted = seen[counted], predicted[counted]
    if seen.size and int(seen.max()) >= classes:
        raise InvalidDataError(
            f"mask {number}: expected classes 0 to {classes - 1} or {VOID} for void, got "
            f"{int(seen.max())}; the data and the model have to have the same classes"
        )
    pairs = seen.astype(np.intp).ravel() * classes + predicted.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _inside(size: int, start: float, extent: float) -> slice:
    """The pixels whose centre lies in a region."""
    first = max(0, math.ceil(start - 0.5))
    return slice(first, max(first, min(size, math.ceil(start + extent - 0.5))))


@functools.lru_cache(maxsize=64)
def _taps(first: int, stop: int, start: float, extent: float, size: int) -> _Taps:
    """Where pixels ``first:stop`` of a picture lie in an output of a size."""
    place = (np.arange(first, stop) + 0.5 - start) * (size / extent) - 0.5
    place = np.clip(place, 0, size - 1)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32)


def _highest(
    planes: npt.NDArray[np.float32], y: _Taps, x: _Taps, number: int
) -> npt.NDArray[np.integer[Any]]:
    """The class of the highest logit at each pixel; of equal ones the first."""
    wide = _between(planes, x, 2)
    return _first_highest([_between(plane, y, 0) for plane in wide], number)


def _first_highest(
    planes: Sequence[npt.NDArray[np.float32]], number: int
) -> npt.NDArray[np.integer[Any]]:
    """The class of the highest of the planes at each pixel; of equal ones the first.

    By whole planes: several times faster than ``numpy.argmax`` over the first axis.
    """
    best = planes[0].copy()
    for plane in planes[1:]:
        np.maximum(best, plane, out=best)  # a maximum with NaN is NaN
    _refuse_nan(best, number)
    kind = np.uint8 if len(planes) < 256 else np.uint16
    later = np.zeros(best.shape, kind)
    for place, plane in enumerate(reversed(planes), 1):
        np.maximum(later, (plane == best) * kind(place), out=later)
    return np.asarray(len(planes) - later, kind)


def _between(values: npt.NDArray[np.float32], taps: _Taps, axis: int) -> npt.NDArray[np.float32]:
    """Values between two neighbours along an axis."""
    low, high, part = taps
    if not part.any():  # every place is one of the output's own
        if len(low) == values.shape[axis] and (low == np.arange(len(low))).all():
            return values
        return np.take(values, low, axis)
    shape = [1] * values.ndim
    shape[axis] = len(part)
    lower = np.take(values, low, axis)
    upper = np.take(values, high, axis)
    upper -= lower
    upper *= part.reshape(shape)
    upper += lower
    return upper


def _refuse_nan(values: npt.NDArray[np.float32], number: int) -> None:
    if np.isnan(values).any():
        raise InvalidDataError(f"the output of picture {number} holds NaN; the model is broken")


# --- Metrics -------------------------------------------------------------------------------------


def resample(
    confused: Confusion, *, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> bootstrap.Resampled:
    """mIoU of resamples of the pictures, drawn with replacement; one row, ``miou``."""
    drawn = bootstrap.weights(len(confused.sums), resamples, seed)
    flat = confused.sums.reshape(len(confused.sums), -1).astype(np.float64)
    sums = drawn.T.astype(np.float64) @ flat
    ious = _ious(sums.reshape(resamples, 3, -1))
    known = ~np.isnan(ious)
    means = np.where(known, ious, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return bootstrap.Resampled(len(confused.sums), seed, {"miou": means})


def metrics(
    confused: Confusion,
    names: Sequence[str] = (),
    resampled: bootstrap.Resampled | None = None,
) -> dict[str, Measurement]:
    """mIoU in percent, of all classes and of each.

    Args:
        confused: As :func:`confusion` gives it.
        names: Names of the classes.
        resampled: For the interval of ``miou``.

    Returns:
        ``miou`` of the classes that are there, ``pixel_accuracy``, and ``iou:CLASS`` of each class
        that is right or predicted somewhere.
    """
    count = len(confused.sums)
    result = {
        "miou": Measurement(100 * confused.miou(), "%", count),
        "pixel_accuracy": Measurement(100 * confused.accuracy(), "%", count),
    }
    if resampled is not None:
        result["miou"] = bootstrap.interval(
            100 * confused.miou(), 100 * resampled.values["miou"], "%", count
        )
    for number, iou in enumerate(confused.ious()):
        if not math.isnan(iou):
            name = names[number] if names else str(number)
            result[f"iou:{name}"] = Measurement(100 * float(iou), "%", count)
    return result


def change(
    before: Confusion,
    after: Confusion,
    resampled: tuple[bootstrap.Resampled, bootstrap.Resampled] | None = None,
) -> dict[str, Measurement]:
    """Change of mIoU between two models on the same pictures: ``miou_change`` in points, with the
    95 % percentile interval of the paired resamples.

    Args:
        before: The float model's.
        after: The other model's.
        resampled: Of both, with the same seed; default drawn here.
    """
    old, new = resampled or (resample(before), resample(after))
    value = 100 * (after.miou() - before.miou())
    return {"miou_change": bootstrap.changed(value, old, new, "miou")}


def agreement(
    before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], layout: Layout
) -> tuple[dict[str, Measurement], Numbers, Floats]:
    """How many pixels of the outputs have the float model's class in another model, too.

    Pixels are those of the outputs, so that no labels are needed.

    Args:
        before: Outputs of the float model, float32 ``[N, M]``.
        after: Outputs of the other model.
        layout: How a sample of them is read.

    Returns:
        ``pixel_agreement`` in %, with the interval of a bootstrap over pictures; pixels by the
        float model's class and the other one, int64 ``[C, C]``; the share of each picture, of 1,
        float64 ``[N]``.
    """
    classes, count = layout.classes, len(before)
    matrix = np.zeros((classes, classes), np.int64)
    shares = np.zeros(count)
    number = 0
    for pair in blocks(before, after):
        for samples in zip(*pair, strict=True):
            old, new = (_chosen(sample, layout, number) for sample in samples)
            own = np.bincount(old * classes + new, minlength=classes**2)
            own = own.reshape(classes, classes)
            matrix += own
            shares[number] = np.trace(own) / own.sum()
            number += 1
    drawn = bootstrap.weights(count, bootstrap.RESAMPLES, 0).astype(np.float64)
    value = 100 * float(shares.mean())
    measured = bootstrap.interval(value, 100 * (shares @ drawn) / count, "%", count)
    return {"pixel_agreement": measured}, matrix, shares


def chosen(sample: npt.NDArray[np.float32], layout: Layout, number: int) -> npt.NDArray[np.uint8]:
    """The class of each pixel of an output, uint8 ``[h, w]``.

    Args:
        sample: float32 ``[M]``.
        layout: How it is read.
        number: Number of the picture, for messages.

    Raises:
        InvalidDataError: If it holds NaN, or a class number that is none.
    """
    classes = _chosen(sample, layout, number).astype(np.uint8)
    return classes.reshape(layout.height, layout.width)


def _chosen(sample: npt.NDArray[np.float32], layout: Layout, number: int) -> npt.NDArray[np.intp]:
    """The class of each pixel of an output, ``[h * w]``."""
    planes = layout.planes(sample)
    if not layout.chosen:
        return _first_highest(list(planes), number).astype(np.intp).ravel()
    _refuse_nan(planes, number)
    numbers: npt.NDArray[np.intp] = np.rint(planes).astype(np.intp).ravel()
    if not 0 <= numbers.min() <= numbers.max() < layout.classes:
        raise InvalidDataError(
            f"expected class numbers from 0 to {layout.classes - 1}, got {numbers.min()} to "
            f"{numbers.max()}"
        )
    return numbers
