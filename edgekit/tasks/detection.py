"""How right a detector's boxes are: COCO's mean average precision, its change, agreement.

Found boxes are matched with right ones as COCO does it (Lin et al. 2014, pycocotools): in each
picture and class, by falling score, each takes the free right box that it overlaps most. All
pictures and classes go at once, a rank of the scores after the other. The matches are kept, since
mAP is not a mean over pictures: a resample of pictures weighs the matches anew.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, MissingDependencyError
from edgekit.data.boxes import Boxes
from edgekit.records.results import Measurement
from edgekit.tasks import bootstrap
from edgekit.tasks.bootstrap import RESAMPLES, Resampled, weights

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: IoU from which a found box is right, and recalls at which precision is read, as in COCO.
IOUS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
#: Areas of right boxes in pixels, least and most of each.
AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
#: Boxes of a picture and class that count, at most: the last one for precision.
MOST = (1, 10, 100)
#: Resamples that are worked on at once.
_AT_ONCE = 128
#: Score of the float model's boxes that a deployable should have, and least score of its own.
SURE, HALF_SURE = 0.3, 0.15


@dataclass(frozen=True, eq=False)
class Matches:
    """Which found boxes are right; D found boxes by class, then by falling score.

    Attributes:
        count: Number of pictures.
        classes: Number of classes, C.
        pictures: int64 ``[D]``.
        numbers: int64 ``[D]``: class of each.
        scores: float32 ``[D]``.
        ranks: int64 ``[D]``: place among those of the same picture and class, from 0.
        right: bool ``[4, 10, D]``: whether it is matched, for each of :data:`AREAS` and
            :data:`IOUS`.
        ignored: bool ``[4, 10, D]``: whether it counts neither as right nor as wrong.
        of_truth: int64 ``[2, G]``: picture and class of each right box.
        truth_ignored: bool ``[4, G]``: whether a right box counts neither as found nor as missed.
    """

    count: int
    classes: int
    pictures: Numbers
    numbers: Numbers
    scores: npt.NDArray[np.float32]
    ranks: Numbers
    right: Flags
    ignored: Flags
    of_truth: Numbers
    truth_ignored: Flags

    def starts(self) -> Numbers:
        """int64 ``[C + 1]``: the found boxes of class c are ``starts[c]:starts[c + 1]``."""
        return np.searchsorted(self.numbers, np.arange(self.classes + 1))

    @functools.cached_property
    def scored(self) -> Score:
        """As :func:`score`, computed once."""
        return score(self)

    def of_class(self) -> Numbers:
        """int64 ``[4, C]``: right boxes that count."""
        return np.stack(
            [
                np.bincount(self.of_truth[1][~ignored], minlength=self.classes)
                for ignored in self.truth_ignored
            ]
        )


def match(truth: Boxes, found: Boxes, classes: int) -> Matches:
    """Match the found boxes of each picture with its right ones.

    Args:
        truth: Right boxes of N pictures.
        found: Found boxes of the same pictures.
        classes: Number of classes.

    Raises:
        InvalidDataError: If the pictures are not as many, a class number is not below ``classes``,
            there is no right box at all, or scores are missing or NaN.
    """
    if len(truth) != len(found):
        raise InvalidDataError(
            f"expected boxes of {len(truth):,} pictures, got those of {len(found):,}"
        )
    for what, boxes in (("right boxes", truth), ("found boxes", found)):
        if len(boxes.classes) and not 0 <= boxes.classes.min() <= boxes.classes.max() < classes:
            bad = boxes.classes[(boxes.classes < 0) | (boxes.classes >= classes)][0]
            raise InvalidDataError(
                f"expected {what} of {classes} classes, 0 to {classes - 1}, got class {bad}; the "
                f"data and the model have to have the same classes"
            )
    if found.scores is None:
        raise InvalidDataError("expected found boxes with scores, got boxes without")
    if np.isnan(found.scores).any() or np.isnan(found.corners).any():
        raise InvalidDataError("found boxes hold NaN; the model is broken")
    crowd = np.zeros(len(truth.classes), bool) if truth.crowd is None else truth.crowd
    if not (~crowd).any():
        raise InvalidDataError(
            f"expected right boxes, got none in {len(truth):,} pictures; mAP needs some"
        )
    areas = _areas(truth.corners) if truth.areas is None else truth.areas.astype(np.float64)
    limits = np.array(list(AREAS.values()))
    outside = (areas < limits[:, :1]) | (areas > limits[:, 1:])
    truth_ignored = crowd | outside
    greedy = _greedy(truth, found, crowd, truth_ignored, IOUS, MOST[-1])
    own = _areas(found.corners[greedy.order])
    own_outside = (own < limits[:, :1]) | (own > limits[:, 1:])
    right = greedy.partner >= 0
    ignored = np.empty_like(right)
    for area in range(len(AREAS)):
        partner = greedy.partner[area]
        of_partner = truth_ignored[area][partner] if len(crowd) else np.zeros_like(right[area])
        ignored[area] = np.where(right[area], of_partner, own_outside[area])
    # By class, then score; equal scores by picture, as pycocotools sorts them.
    numbers = found.classes[greedy.order].astype(np.int64)
    pictures = found.pictures()[greedy.order]
    scores = found.scores[greedy.order]
    order = np.lexsort((greedy.order, -scores, numbers))
    return Matches(
        len(truth),
        classes,
        pictures[order],
        numbers[order],
        scores[order],
        greedy.ranks[order],
        right[..., order],
        ignored[..., order],
        np.stack([truth.pictures(), truth.classes.astype(np.int64)]),
        truth_ignored,
    )


@dataclass(frozen=True, eq=False)
class _Greedy:
    """Matches of found boxes.

    Attributes:
        order: int64 ``[D]``: numbers of the found boxes that count, by picture, class, score.
        ranks: int64 ``[D]``: place in its picture and class.
        partner: int64 ``[A, T, D]``: number of the right box, -1 without.
    """

    order: Numbers
    ranks: Numbers
    partner: Numbers


def _areas(corners: npt.NDArray[np.float32]) -> Floats:
    """float64 ``[K]``."""
    left, top, right, bottom = corners.astype(np.float64).T
    areas: Floats = (right - left) * (bottom - top)
    return areas


def _greedy(
    truth: Boxes, found: Boxes, crowd: Flags, ignored: Flags, ious: Floats, most: int
) -> _Greedy:
    """Match by falling score, one to one but for crowds.

    Args:
        truth: Right boxes; G in all.
        found: Found boxes.
        crowd: bool ``[G]``: takes any number of boxes.
        ignored: bool ``[A, G]``: taken only if no other fits, for each of A areas.
        ious: ``[T]``, ascending.
        most: Boxes of a picture and class that count.
    """
    classes = 1 + int(max(truth.classes.max(initial=0), found.classes.max(initial=0)))
    groups = found.pictures() * classes + found.classes
    assert found.scores is not None
    order = np.lexsort((-found.scores, groups))
    groups = groups[order]
    ranks = _within(groups)
    if (ranks >= most).any():
        order, groups = order[ranks < most], groups[ranks < most]
        ranks = ranks[ranks < most]
    of_truth = truth.pictures() * classes + truth.classes
    truth_order = np.argsort(of_truth, kind="stable")
    sorted_truth = of_truth[truth_order]
    first = np.searchsorted(sorted_truth, groups, "left")
    counts = np.searchsorted(sorted_truth, groups, "right") - first
    box = np.repeat(np.arange(len(order)), counts)
    place = np.arange(len(box)) - np.repeat(np.cumsum(counts) - counts, counts)
    partner = truth_order[np.repeat(first, counts) + place]
    overlap = _iou(found.corners[order[box]], truth.corners[partner], crowd[partner])
    # As pycocotools: an IoU of 1 is above any threshold.
    ious = np.minimum(ious, 1 - 1e-10)
    near = overlap >= ious[0]
    box, partner, overlap = box[near], partner[near], overlap[near]
    result = np.full((len(ignored), len(ious), len(order)), -1, np.int64)
    # Round by round; in one, all pairs of a box together, the best pair last.
    pairs = np.lexsort((partner, overlap, box, ranks[box]))
    box, partner, overlap = box[pairs], partner[pairs], overlap[pairs]
    enough = overlap >= ious[:, None]  # [T, P]
    rounds = ranks[box]
    ends = np.append(np.flatnonzero(np.diff(rounds)) + 1, len(rounds))
    free = np.ones((len(ignored), len(ious), len(crowd)), bool)
    start = 0
    for end in ends[: 0 if not len(rounds) else None]:
        own, others = box[start:end], partner[start:end]
        heads = np.flatnonzero(np.diff(own, prepend=-1))
        places = np.arange(1, len(own) + 1)
        fits = enough[None, :, start:end] & (free[:, :, others] | crowd[others])
        # A box that counts comes before one that is ignored.
        value = np.where(ignored[:, others], places, places + len(own))[:, None] * fits
        best = np.maximum.reduceat(value, heads, axis=2)
        area, threshold, which = np.nonzero(best)
        chosen = (best[area, threshold, which] - 1) % len(own)
        result[area, threshold, own[chosen]] = others[chosen]
        free[area, threshold, others[chosen]] = False
        start = end
    return _Greedy(order, ranks, result)


def _within(groups: Numbers) -> Numbers:
    """Place of each in its group, from 0; those of a group lie together."""
    heads = np.flatnonzero(np.diff(groups, prepend=-1))
    sizes = np.diff(heads, append=len(groups))
    return np.arange(len(groups)) - np.repeat(heads, sizes)


def _iou(boxes: npt.NDArray[np.float32], others: npt.NDArray[np.float32], crowd: Flags) -> Floats:
    """IoU of pairs ``[P]``; with a crowd the share of the box that lies in it."""
    a, b = boxes.astype(np.float64), others.astype(np.float64)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    size = (a[:, 2:] - a[:, :2]).prod(axis=1)
    whole = np.where(crowd, size, size + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared)
    result: Floats = np.zeros(len(shared))
    np.divide(shared, whole, out=result, where=whole > 0)
    return result


# --- Average precision ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Score:
    """Average precision and recall, of 1; NaN where a class has no right box.

    Attributes:
        precision: float64 ``[4, 10, C]``, for each of :data:`AREAS`, :data:`IOUS` and class: mean
            over :data:`RECALLS`.
        recall: float64 ``[4, 10, C, 3]``, with each of :data:`MOST` boxes.
    """

    precision: Floats
    recall: Floats

    def mean(self, iou: float | None = None, area: str = "all") -> float:
        """mAP, of 1; NaN where no class has a right box.

        Args:
            iou: One of :data:`IOUS`; default their mean.
            area: One of :data:`AREAS`.
        """
        of = self.precision[list(AREAS).index(area)]
        return _mean(of if iou is None else of[_of_iou(iou)])

    def of_classes(self, iou: float | None = None) -> Floats:
        """float64 ``[C]``: average precision of each class, NaN without right boxes."""
        of: Floats = self.precision[0]
        return np.asarray(of.mean(axis=0) if iou is None else of[_of_iou(iou)])

    def mean_recall(self, most: int = MOST[-1], area: str = "all") -> float:
        """Average recall over IoUs and classes, of 1."""
        return _mean(self.recall[list(AREAS).index(area), :, :, MOST.index(most)])


def _of_iou(iou: float) -> int:
    return int(np.argmin(np.abs(IOUS - iou)))


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def score(matches: Matches) -> Score:
    """Average precision and recall of each area, IoU and class."""
    counts = matches.of_class()
    starts = matches.starts()
    precision = np.full((len(AREAS), len(IOUS), matches.classes), np.nan)
    recall = np.full((*precision.shape, len(MOST)), np.nan)
    for number in range(matches.classes):
        part = slice(starts[number], starts[number + 1])
        ranks = matches.ranks[part]
        for area in range(len(AREAS)):
            total = counts[area, number]
            if not total:
                continue
            counted = ~matches.ignored[area, :, part]
            right = matches.right[area, :, part] & counted
            for most, limit in enumerate(MOST):
                recall[area, :, number, most] = right[:, ranks < limit].sum(axis=1) / total
            everything = np.cumsum(counted, axis=1)
            for iou in range(len(IOUS)):
                at = np.flatnonzero(right[iou])
                ones = np.arange(1, len(at) + 1)
                steps = np.searchsorted(RECALLS, ones / total, "right")
                best = _envelope(ones / everything[iou, at])
                precision[area, iou, number] = best @ np.diff(steps, prepend=0) / len(RECALLS)
    return Score(precision, recall)


def _envelope(precision: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The greatest precision from each place on, ``[K, ...]``."""
    return np.maximum.accumulate(precision[::-1], axis=0)[::-1]


def curves(matches: Matches, iou: float = 0.5) -> Floats:
    """Precision at each of :data:`RECALLS`, ``[C, 101]``; 0 beyond the recall that is reached, NaN
    of a class without right boxes."""
    starts, counts, of_iou = matches.starts(), matches.of_class()[0], _of_iou(iou)
    result = np.full((matches.classes, len(RECALLS)), np.nan)
    for number in np.flatnonzero(counts):
        part = slice(starts[number], starts[number + 1])
        counted = ~matches.ignored[0, of_iou, part]
        at = np.flatnonzero(matches.right[0, of_iou, part] & counted)
        ones = np.arange(1, len(at) + 1)
        best = np.append(_envelope(ones / np.cumsum(counted)[at]), 0.0)
        result[number] = best[np.searchsorted(ones / counts[number], RECALLS, "left")]
    return result


# --- Bootstrap -----------------------------------------------------------------------------------


def resample(matches: Matches, *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """``map`` and ``map50`` of resamples of the pictures, drawn with replacement.

    A picture that was drawn twice counts as two equal ones.
    """
    drawn = weights(matches.count, resamples, seed)
    classes = [
        _OfClass.of(matches, int(number)) for number in np.flatnonzero(matches.of_class()[0])
    ]
    totals = np.zeros((2, resamples))
    known = np.zeros(resamples)
    for start in range(0, resamples, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        block = np.ascontiguousarray(drawn[:, part])
        for each in classes:
            truths = block[each.truths].sum(axis=0)
            precision = each.precision(block, np.maximum(truths, 1))
            totals[:, part] += np.stack([precision.mean(axis=0), precision[0]]) * (truths > 0)
            known[part] += truths > 0
    totals /= np.maximum(known, 1)
    return Resampled(matches.count, seed, {"map": totals[0], "map50": totals[1]})


@dataclass(frozen=True, eq=False)
class _OfClass:
    """What a resample of pictures weighs, of one class.

    Attributes:
        truths: int64 ``[G]``: picture of each right box.
        right: int64 ``[U]``: picture of each found box that is right at any IoU.
        at: Which of them are right, for each IoU.
        boxes: scipy CSR ``[U, N]``: boxes of each picture from one of them to the next, counting
            the last of the two.
        ignored: The same of those that are ignored, for each IoU; None where none is.
    """

    truths: Numbers
    right: Numbers
    at: tuple[Numbers, ...]
    boxes: Any
    ignored: tuple[Any, ...]

    @classmethod
    def of(cls, matches: Matches, number: int) -> _OfClass:
        """The class of this number."""
        of_class = (matches.of_truth[1] == number) & ~matches.truth_ignored[0]
        starts = matches.starts()
        part = slice(starts[number], starts[number + 1])
        pictures, ignored = matches.pictures[part], matches.ignored[0, :, part]
        right = matches.right[0, :, part] & ~ignored
        some = np.flatnonzero(right.any(axis=0))

        def boxes(which: Numbers) -> Any:
            rows = np.searchsorted(some, which)
            which, rows = which[rows < len(some)], rows[rows < len(some)]
            ones = np.ones(len(which), np.float32)
            shape = (len(some), matches.count)
            return _sparse().csr_array((ones, (rows, pictures[which])), shape)

        return cls(
            matches.of_truth[0][of_class],
            pictures[some],
            tuple(np.flatnonzero(each[some]) for each in right),
            boxes(np.arange(len(pictures))),
            tuple(boxes(np.flatnonzero(each)) if each.any() else None for each in ignored),
        )

    def precision(self, drawn: npt.NDArray[np.float32], truths: npt.NDArray[np.float32]) -> Floats:
        """Average precision ``[10, B]`` with pictures' weights ``[N, B]``; ``truths`` is ``[B]``,
        the number of right boxes."""
        result = np.zeros((len(IOUS), drawn.shape[1]))
        if not len(self.right):
            return result
        weight = drawn[self.right]
        everything = _cumulated(self.boxes @ drawn)
        for iou, (at, ignored) in enumerate(zip(self.at, self.ignored, strict=True)):
            if not len(at):
                continue
            counted = everything if ignored is None else everything - _cumulated(ignored @ drawn)
            ones = _cumulated(weight[at])
            best = _greatest(np.asarray(ones / np.maximum(counted[at], 1), np.float32))
            # Recalls up to this one: 0, 0.01, ..., of which 0 counts from the first box on. The
            # fraction is what rounding may take of a whole number.
            steps = np.floor(ones * (100 / truths) + np.float32(1.0001))
            steps[1:] -= steps[:-1].copy()
            result[iou] = np.einsum("kb,kb->b", best, steps) / len(RECALLS)
        return result


def _cumulated(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sums along the first axis up to each row, of small whole numbers ``[K, B]``, which float32
    sums exactly.

    As products with triangular matrices: several times faster than ``numpy.cumsum``.
    """
    count, width = values.shape
    if count <= _ROWS:
        return np.asarray(_TRIANGLE[:count, :count] @ values)
    filled = np.zeros((-count % _ROWS, width), values.dtype)
    sums = _TRIANGLE @ np.concatenate([values, filled]).reshape(-1, _ROWS, width)
    sums[1:] += _cumulated(sums[:-1, -1])[:, None]
    return np.asarray(sums.reshape(-1, width)[:count])


def _greatest(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """As :func:`_envelope`, of ``[K, B]``, which is changed: in log K steps, each of which numpy
    does many times faster than an accumulation."""
    step = 1
    while step < len(values):
        np.maximum(values[:-step], values[step:], out=values[:-step])
        step *= 2
    return values


_ROWS = 64
_TRIANGLE = np.tril(np.ones((_ROWS, _ROWS), np.float32))


def _sparse() -> Any:
    try:
        import scipy.sparse
    except ImportError:
        raise MissingDependencyError("scipy", "report") from None
    return scipy.sparse


def change(
    before: Matches, after: Matches, resampled: tuple[Resampled, Resampled] | None = None
) -> dict[str, Measurement]:
    """Change of mAP between two models on the same pictures, in points.

    Args:
        before: The float model's.
        after: The other model's.
        resampled: Of both, with the same seed; default drawn here.

    Returns:
        ``map_change`` and ``map50_change`` with the 95 % percentile interval of the paired
        resamples.
    """
    old, new = resampled or (resample(before), resample(after))
    scores = before.scored, after.scored
    return {
        f"{name}_change": bootstrap.changed(
            100 * (scores[1].mean(iou) - scores[0].mean(iou)), old, new, name
        )
        for name, iou in (("map", None), ("map50", 0.5))
    }


def metrics(
    matches: Matches, names: Sequence[str] = (), resampled: Resampled | None = None
) -> dict[str, Measurement]:
    """mAP in percent, of all classes, by area and of each class.

    Args:
        matches: As :func:`match` gives them.
        names: Names of the classes.
        resampled: For the intervals of ``map`` and ``map50``.

    Returns:
        ``map``, ``map50``, ``map75``; ``map_small``, ``map_medium`` and ``map_large`` where there
        are right boxes of that area; ``map50:CLASS`` of each class that has right boxes.
    """
    scores = matches.scored
    values = {
        "map": scores.mean(),
        "map50": scores.mean(0.5),
        "map75": scores.mean(0.75),
        **{f"map_{area}": scores.mean(area=area) for area in AREAS if area != "all"},
        **{
            f"map50:{names[number] if names else number}": float(value)
            for number, value in enumerate(scores.of_classes(0.5))
        },
    }
    result = {
        name: Measurement(100 * value, "%", matches.count)
        for name, value in values.items()
        if not math.isnan(value)
    }
    if resampled is not None:
        for name, each in resampled.values.items():
            result[name] = bootstrap.interval(100 * values[name], 100 * each, "%", matches.count)
    return result


# --- Agreement with the float model, without labels ----------------------------------------------


def agreement(
    before: Boxes, after: Boxes, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Measurement]:
    """How many of the float model's boxes another model has too.

    Of the float model count boxes with a score of at least 0.3, of the other one those of at least
    0.15. They are matched within picture and class, one to one, those with the highest score first.

    Args:
        before: Boxes of the float model.
        after: Boxes of the other model, of the same pictures.
        resamples: Resamples of the pictures, for the intervals.
        seed: Their seed.

    Returns:
        ``matched50`` and ``matched90`` in % of the boxes, with an IoU of at least 0.5 and 0.9;
        ``score_error``, the mean difference of the scores of boxes matched at 0.5, in points.
        Without such boxes in either model all agree.
    """
    if before.scores is None or after.scores is None:
        raise InvalidDataError("expected found boxes with scores, got boxes without")
    sure, other = _at_least(before, SURE), _at_least(after, HALF_SURE)
    none = np.zeros(len(other.classes), bool)
    most = max(1, len(sure.classes))
    greedy = _greedy(other, sure, none, none[None], np.array([0.5, 0.9]), most)
    pictures = sure.pictures()[greedy.order]
    count = len(sure)
    partner = greedy.partner[0]
    totals = _sums(pictures, count)
    drawn = weights(count, resamples, seed).astype(np.float64)
    values = {}
    for name, matched in (("matched50", partner[0] >= 0), ("matched90", partner[1] >= 0)):
        values[name] = _ratio(_sums(pictures[matched], count), totals, drawn, 1.0, "%")
    both = partner[0] >= 0
    assert sure.scores is not None and other.scores is not None
    errors = np.abs(sure.scores[greedy.order[both]] - other.scores[partner[0][both]])
    values["score_error"] = _ratio(
        _sums(pictures[both], count, errors),
        _sums(pictures[both], count),
        drawn,
        0.0,
        "points",
    )
    return values


def unmatched(of: Boxes, among: Boxes) -> Flags:
    """Which boxes of one model, with a score of at least 0.3, another model does not have.

    Args:
        of: Found boxes, K in all.
        among: Found boxes of the same pictures; those with a score of at least 0.15 count.

    Returns:
        bool ``[K]``: nothing of the same class is at the same place, at an IoU of 0.5.
    """
    assert of.scores is not None
    alone = np.zeros(len(of.classes), bool)
    alone[of.scores >= SURE] = partners(_at_least(of, SURE), _at_least(among, HALF_SURE)) < 0
    return alone


def partners(before: Boxes, after: Boxes, iou: float = 0.5) -> Numbers:
    """int64 ``[K]``: for each box of one model the number of the other's box that is the same
    object, -1 without.

    They are matched within picture and class, one to one, those with the highest score first.

    Args:
        before: Boxes of one model, with scores; K in all.
        after: Boxes of the other model, of the same pictures.
        iou: Least IoU.
    """
    none = np.zeros(len(after.classes), bool)
    most = max(1, len(before.classes))
    greedy = _greedy(after, before, none, none[None], np.array([iou]), most)
    result = np.full(len(before.classes), -1, np.int64)
    result[greedy.order] = greedy.partner[0, 0]
    return result


def _sums(pictures: Numbers, count: int, values: npt.NDArray[np.float32] | None = None) -> Floats:
    """Sums of values, or numbers of boxes, of each picture, ``[count]``."""
    return np.bincount(pictures, values, minlength=count).astype(np.float64)


def _ratio(parts: Floats, wholes: Floats, drawn: Floats, empty: float, unit: str) -> Measurement:
    """Sum of parts by sum of wholes, both ``[N]``, in percent; ``empty`` is 0 / 0."""
    if not wholes.sum():
        return Measurement(100 * empty, unit, 0)
    sums = wholes @ drawn
    some = sums > 0
    resampled = 100 * (parts @ drawn)[some] / sums[some]
    return bootstrap.interval(100 * parts.sum() / wholes.sum(), resampled, unit, int(wholes.sum()))


def _at_least(boxes: Boxes, least: float) -> Boxes:
    """The boxes with such a score."""
    assert boxes.scores is not None
    rows = boxes.scores >= least
    counts = np.bincount(boxes.pictures()[rows], minlength=len(boxes))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Boxes(offsets, boxes.corners[rows], boxes.classes[rows], boxes.scores[rows])
