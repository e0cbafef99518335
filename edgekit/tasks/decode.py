"""From the outputs of a detector to boxes in pixels of the picture, as its Decoding says.

One implementation for every runtime, in numpy. A score is compared before its activation where
that can be, and boxes are made of what remains only; the NMS goes in rounds that are shared by all
classes of all pictures of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgekit.base.blocks import blocks
from edgekit.base.errors import InvalidDataError
from edgekit.data.boxes import Boxes, Views, joined
from edgekit.records.decoding import AnchorGrid, Anchors, Decoding

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
#: Numbers of all outputs of a block of pictures, at the most.
_BLOCK = 1 << 20
#: Scores may leave 0..1 by this much: float16, and steps of integers.
_TOLERANCE = 0.01
#: Boxes in pixels are larger than this, boxes in parts of the input smaller, most of them.
_PIXELS = 4.0


def decode(
    outputs: Mapping[str, Floats],
    decoding: Decoding,
    views: Views,
    input_size: tuple[int, int],
    *,
    first: int = 0,
) -> Boxes:
    """Boxes of the pictures that a detector saw.

    Args:
        outputs: float32 ``[n, ...]`` by name.
        decoding: How they are read.
        views: The part of its picture that each input showed, n of them.
        input_size: Height and width of the model's input.
        first: Number of the first picture, for messages.

    Returns:
        Boxes of n pictures, in pixels of the picture and within it; scores descend in each.

    Raises:
        InvalidDataError: If an output is missing, has a shape that the decoding cannot read, holds
            NaN, or if scores are not from 0 to 1.
    """
    missing = [name for name in decoding.outputs if name not in outputs]
    if missing:
        raise InvalidDataError(
            f"expected an output {missing[0]!r} to decode, got {in_words(outputs)}; name it in "
            f"--decoding"
        )
    count = len(views)
    size = sum(outputs[name][:1].size for name in decoding.outputs)
    step = max(1, _BLOCK // max(1, size))
    parts = [_none()] if not count else []
    for start in range(0, count, step):
        rows = slice(start, min(count, start + step))
        block = {name: outputs[name][rows] for name in decoding.outputs}
        part = Views(views.regions[rows], views.sizes[rows])
        parts.append(_block(block, decoding, part, input_size, first + start))
    return parts[0] if len(parts) == 1 else joined(parts)


def decode_all(
    outputs: npt.NDArray[np.float32],
    sizes: Mapping[str, tuple[int, ...]],
    decoding: Decoding,
    views: Views,
    input_size: tuple[int, int],
) -> Boxes:
    """As :func:`decode`, of outputs one behind the other, also of more than memory holds.

    Args:
        outputs: float32 ``[n, M]``.
        sizes: Sizes of one sample of each output, in order, by name.
        decoding: How they are read.
        views: n of them.
        input_size: Height and width of the model's input.
    """
    parts = []
    start = 0
    for (block,) in blocks(outputs):
        rows = slice(start, start + len(block))
        part = Views(views.regions[rows], views.sizes[rows])
        named = by_name(block, sizes)
        parts.append(decode(named, decoding, part, input_size, first=start))
        start += len(block)
    return joined(parts) if parts else _none()


def in_words(outputs: Mapping[str, Floats]) -> str:
    """Names and shapes of outputs, without the number of pictures."""
    return ", ".join(
        f"{name} {['N', *array.shape[1:]]}" for name, array in outputs.items()
    ).replace("'", "")


def by_name(
    outputs: npt.NDArray[np.float32], sizes: Mapping[str, tuple[int, ...]]
) -> dict[str, Floats]:
    """The outputs of a model, each with its shape, of outputs that lie one behind the other.

    Args:
        outputs: float32 ``[n, M]``.
        sizes: Sizes of one sample of each output, in order, by name.

    Returns:
        float32 ``[n, ...]`` by name, without a copy where one output is all.
    """
    ends = np.cumsum([math.prod(size) for size in sizes.values()])
    starts = [0, *ends[:-1]]
    return {
        name: outputs[:, start:end].reshape(len(outputs), *size)
        for (name, size), start, end in zip(sizes.items(), starts, ends, strict=True)
    }


def classes_of(outputs: Mapping[str, Floats], decoding: Decoding) -> int | None:
    """How many classes outputs ``[n, ...]`` have scores for; None where they are class numbers.

    Raises:
        InvalidDataError: As :func:`decode`, of their shapes.
    """
    levels = _levels(outputs, decoding)
    counts = {scores.shape[2] for _, scores in levels}
    if len(counts) > 1:
        raise InvalidDataError(
            f"expected as many classes in each output with scores, got {in_words(outputs)}"
        )
    if decoding.classes:
        return None
    return int(counts.pop()) - decoding.objectness - (decoding.background != "none")


@dataclass(frozen=True)
class _Candidates:
    """Boxes above the threshold, those of a level in the order of picture, anchor, class.

    Attributes:
        pictures: int64 ``[K]``.
        rows: int64 ``[K]``: number of the anchor; of a level alone, in it.
        classes: int64 ``[K]``.
        scores: float32 ``[K]``.
    """

    pictures: Numbers
    rows: Numbers
    classes: Numbers
    scores: Floats

    def take(self, which: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> _Candidates:
        """Some of them."""
        return _Candidates(
            self.pictures[which], self.rows[which], self.classes[which], self.scores[which]
        )


def _none() -> Boxes:
    """Boxes of no pictures."""
    return Boxes(
        np.zeros(1, np.int64),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
    )


def _block(
    outputs: Mapping[str, Floats],
    decoding: Decoding,
    views: Views,
    input_size: tuple[int, int],
    first: int,
) -> Boxes:
    """Boxes of a few pictures; ``first`` is the number of the first of them, for messages."""
    levels = _levels(outputs, decoding)
    parts, start = [], 0
    for boxes, scores in levels:
        part = (
            _of_numbers(outputs, decoding, scores, first)
            if decoding.classes
            else _above(scores, decoding, first)
        )
        parts.append(replace(part, rows=part.rows + start) if start else part)
        start += boxes.shape[1]
    found = parts[0] if len(parts) == 1 else _joined(parts)
    found = _best(found, decoding.candidates, len(views))
    corners = _corners(_raw(levels, found), decoding, found.rows, input_size)
    if np.isnan(corners).any():
        bad = int(found.pictures[np.isnan(corners).any(axis=0)].min())
        raise InvalidDataError(f"boxes of picture {first + bad} are NaN; the model is broken")
    _check_unit(corners, decoding)
    corners = _in_picture(corners, found.pictures, views)
    real = (corners[2] > corners[0]) & (corners[3] > corners[1])
    if not real.all():
        found, corners = found.take(real), corners[:, real]
    if decoding.iou_threshold is not None:
        kept = _suppressed(found, corners, decoding.iou_threshold, decoding.max_boxes)
        found, corners = found.take(kept), corners[:, kept]
    order = _by_score(found.pictures, found)
    order = order[_rank(found.pictures[order], len(views)) < decoding.max_boxes]
    found = found.take(order)
    counts = np.bincount(found.pictures, minlength=len(views))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = np.ascontiguousarray(corners[:, order].T)
    return Boxes(offsets, rows, found.classes.astype(np.int32), found.scores)


def _joined(parts: Sequence[_Candidates]) -> _Candidates:
    """Candidates of several levels, in the order of picture, anchor, class."""
    every = _Candidates(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("pictures", "rows", "classes", "scores")
        )
    )
    return every.take(np.argsort(every.pictures, kind="stable"))


def _raw(levels: Sequence[tuple[Floats, Floats]], found: _Candidates) -> Floats:
    """The numbers of the candidates' boxes, as outputs have them, ``[K, 4 or 4 * bins]``."""
    if len(levels) == 1:
        return levels[0][0][found.pictures, found.rows]
    raw = np.empty((len(found.rows), levels[0][0].shape[2]), np.float32)
    start = 0
    for boxes, _ in levels:
        own = np.flatnonzero((found.rows >= start) & (found.rows < start + boxes.shape[1]))
        raw[own] = boxes[found.pictures[own], found.rows[own] - start]
        start += boxes.shape[1]
    return raw


def _rank(groups: Numbers, count: int) -> Numbers:
    """Place of each in its group, from 0; those of a group lie together.

    Args:
        groups: int64 ``[K]``, from 0, ascending.
        count: Number of groups.
    """
    counts = np.bincount(groups, minlength=count)
    return np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)


def _by_score(groups: Numbers, found: _Candidates) -> Numbers:
    """Their order by group, falling score, and number."""
    # Bits of floats from 0 to 1 are in the order of the floats.
    return np.argsort((groups << 32) - found.scores.view(np.int32), kind="stable")


def _best(found: _Candidates, most: int, count: int) -> _Candidates:
    """The highest scores of each picture; of equal ones the first."""
    counts = np.bincount(found.pictures, minlength=count)
    if counts.max(initial=0) <= most:
        return found
    ends = np.cumsum(counts)
    kept = np.ones(len(found.pictures), bool)
    for picture in np.flatnonzero(counts > most):
        part = slice(ends[picture] - counts[picture], ends[picture])
        scores = found.scores[part]
        least = np.partition(scores, len(scores) - most)[len(scores) - most]
        kept[part] = scores > least
        equal = np.flatnonzero(scores == least)[: most - np.count_nonzero(kept[part])]
        kept[part.start + equal] = True
    return found.take(kept)


# --- What the outputs hold -----------------------------------------------------------------------


def _levels(outputs: Mapping[str, Floats], decoding: Decoding) -> list[tuple[Floats, Floats]]:
    """(boxes ``[n, A, 4 or 4 * bins]``, scores ``[n, A, C]``) of each level, as they are."""
    anchors = decoding.anchors
    grids: Sequence[AnchorGrid | None] = [None] * len(decoding.boxes)
    if anchors is not None and len(anchors.grids) == len(decoding.boxes):
        grids = anchors.grids
    elif anchors is not None and len(decoding.boxes) > 1:
        raise InvalidDataError(
            f"expected a grid of anchors for each of {len(decoding.boxes)} outputs, got "
            f"{len(anchors.grids)} for {in_words(outputs)}"
        )
    total = anchors.count if anchors is not None and len(decoding.boxes) == 1 else None
    levels = []
    for name, of_scores, grid in zip(decoding.boxes, decoding.scores, grids, strict=True):
        rows = total if grid is None else grid.count
        if name == of_scores:
            both = arranged(outputs, name, grid, rows, decoding, None)
            columns = 4 * decoding.bins
            levels.append((both[..., :columns], both[..., columns:]))
            continue
        boxes = arranged(outputs, name, grid, rows, decoding, 4 * decoding.bins)
        levels.append((boxes, arranged(outputs, of_scores, grid, boxes.shape[1], decoding, None)))
    for boxes, scores in levels:
        if boxes.shape[1] != scores.shape[1]:
            raise InvalidDataError(
                f"expected as many boxes as rows of scores, got {boxes.shape[1]:,} and "
                f"{scores.shape[1]:,} in {in_words(outputs)}"
            )
        least = 1 + decoding.objectness + (decoding.background != "none" and not decoding.classes)
        if scores.shape[2] < least:
            raise InvalidDataError(
                f"expected at least {least} columns of scores, got {scores.shape[2]} in "
                f"{in_words(outputs)}"
            )
    count = sum(boxes.shape[1] for boxes, _ in levels)
    if anchors is not None and count != anchors.count:
        raise InvalidDataError(
            f"expected {anchors.count:,} boxes, as many as anchors, got {count:,} in "
            f"{in_words(outputs)}; correct the anchors of --decoding"
        )
    return levels


def arranged(
    outputs: Mapping[str, Floats],
    name: str,
    grid: AnchorGrid | None,
    rows: int | None,
    decoding: Decoding,
    columns: int | None,
) -> Floats:
    """An output as ``[n, A, K]``, a row a box.

    Args:
        outputs: All outputs, for messages.
        name: Name of the output.
        grid: The feature map that it is.
        rows: A, where it is known.
        decoding: How outputs are read.
        columns: K, or what it is a multiple of, where it is known.

    Raises:
        InvalidDataError: If its shape is none that is known.
    """
    array = outputs[name]
    first = decoding.channels == "first"
    if grid is not None and array.ndim in (4, 5):
        laid = _of_grid(array, grid, first)
        if laid is not None:
            return laid
    if array.ndim == 4 and 1 in array.shape[2:]:  # [N, A, 1, 4], [N, 1, A, C]
        array = array.reshape(len(array), array.shape[1], -1)
    elif array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3:
        if decoding.channels:
            return array.transpose(0, 2, 1) if first else array
        a, b = array.shape[1:]
        if rows is not None and rows in (a, b):
            turn = rows == b and (a != b)
        elif columns is not None and (a % columns == 0) != (b % columns == 0):
            turn = a % columns == 0
        elif columns is not None and columns in (a, b):
            turn = a == columns and b != columns
        else:
            turn = b > a
        return array.transpose(0, 2, 1) if turn else array
    place = "" if grid is None else f" of a feature map {grid.rows} x {grid.columns}"
    raise InvalidDataError(
        f"expected {name}{place} as [N, boxes, numbers] or with the axes the other way round, got "
        f"{in_words({name: array})}"
    )


def _of_grid(array: Floats, grid: AnchorGrid, first: bool) -> Floats | None:
    """A feature map as ``[n, rows * columns * sizes, K]``; None if it is none of this grid."""
    size, (rows, columns), sizes = len(array), (grid.rows, grid.columns), len(grid.sizes)
    shape = array.shape[1:]
    if array.ndim == 4:
        if shape[:2] == (rows, columns) and not (first and shape[1:] == (rows, columns)):
            if shape[2] % sizes == 0:
                return array.reshape(size, grid.count, -1)
        if shape[1:] == (rows, columns) and shape[0] % sizes == 0:
            laid = array.reshape(size, sizes, -1, rows, columns).transpose(0, 3, 4, 1, 2)
            return laid.reshape(size, grid.count, -1)
        return None
    if shape[:3] == (rows, columns, sizes):
        return array.reshape(size, grid.count, -1)
    if shape[:3] == (sizes, rows, columns):
        return array.transpose(0, 2, 3, 1, 4).reshape(size, grid.count, -1)
    if shape[0] == sizes and shape[2:] == (rows, columns):
        return array.transpose(0, 3, 4, 1, 2).reshape(size, grid.count, -1)
    return None


# --- Scores --------------------------------------------------------------------------------------


def _above(scores: Floats, decoding: Decoding, first: int) -> _Candidates:
    """What is above the score threshold, of scores ``[n, A, C]`` before their activation."""
    _refuse_nan(scores, first)
    threshold = decoding.score_threshold
    if decoding.activation == "none":
        _check_range(scores, decoding)
    if decoding.objectness:
        objects = scores[..., 0]
        pictures, rows = np.nonzero(objects >= _before(threshold, decoding))
        object_scores = _activated(objects[pictures, rows][:, None], decoding)
        own = _activated(scores[pictures, rows, 1:], decoding) * object_scores
    elif decoding.activation == "softmax":
        pictures, rows = _some_object(scores, decoding)
        own = _activated(scores[pictures, rows], decoding)
    else:
        return _of_all(scores, decoding)
    if decoding.background != "none":
        own = own[:, 1:] if decoding.background == "first" else own[:, :-1]
    if decoding.best_class:
        classes = own.argmax(axis=1)
        best = own[np.arange(len(own)), classes]
        which = np.flatnonzero(best >= threshold)
        return _Candidates(pictures[which], rows[which], classes[which], best[which])
    which, classes = np.nonzero(own >= threshold)
    return _Candidates(pictures[which], rows[which], classes, own[which, classes])


def _of_all(scores: Floats, decoding: Decoding) -> _Candidates:
    """As :func:`_above`, where every score has an activation of its own, or none."""
    if decoding.background != "none":
        scores = scores[..., 1:] if decoding.background == "first" else scores[..., :-1]
    least = _before(decoding.score_threshold, decoding)
    if decoding.best_class:
        best = scores.max(axis=2)
        pictures, rows = np.nonzero(best >= least)
        classes = scores[pictures, rows].argmax(axis=1)
        return _Candidates(pictures, rows, classes, _activated(best[pictures, rows], decoding))
    above = scores >= least
    if above.flags.c_contiguous:
        flat = np.flatnonzero(above)
        places, classes = np.divmod(flat, scores.shape[2])
        pictures, rows = np.divmod(places, scores.shape[1])
    else:
        pictures, rows, classes = np.nonzero(above)
    own = _activated(scores[pictures, rows, classes], decoding)
    return _Candidates(pictures, rows, classes, own)


def _some_object(scores: Floats, decoding: Decoding) -> tuple[Numbers, Numbers]:
    """(pictures, rows) where a softmax may be above the threshold.

    A class cannot have more than ``exp(its logit - the background's)``.
    """
    if decoding.background == "none" or decoding.score_threshold <= 0:
        pictures, rows = np.indices(scores.shape[:2]).reshape(2, -1)
        return pictures, rows
    last = decoding.background == "last"
    nothing = scores[..., -1] if last else scores[..., 0]
    others = scores[..., :-1] if last else scores[..., 1:]
    least = math.log(decoding.score_threshold) - 1e-3
    with np.errstate(invalid="ignore"):
        possible = others.max(axis=2) - nothing >= least
    pictures, rows = np.nonzero(possible)
    return pictures, rows


def _before(threshold: float, decoding: Decoding) -> np.float32:
    """What the activation makes the threshold of."""
    if decoding.activation == "none" or threshold <= 0:
        return np.float32(threshold if decoding.activation == "none" else -np.inf)
    # Not above what the sigmoid makes this of: what is a little below stays out by float32's steps.
    return np.float32(math.log(threshold / (1 - threshold)))


def _activated(values: Floats, decoding: Decoding) -> Floats:
    """Scores ``[K, C]`` or ``[K]`` from 0 to 1."""
    if decoding.activation == "sigmoid":
        return _sigmoid(values)
    if decoding.activation == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True, initial=-np.inf))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
    return np.clip(values, 0, 1)


def _sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)); of what is far below 0 it is 0, without a warning."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def _of_numbers(
    outputs: Mapping[str, Floats], decoding: Decoding, scores: Floats, first: int
) -> _Candidates:
    """What is above the threshold, where boxes have one score and a class number each."""
    _refuse_nan(scores, first)
    joint = decoding.classes == decoding.scores[0]
    if joint and scores.shape[2] != 2:
        raise InvalidDataError(
            f"expected a score and a class number behind each box, got {scores.shape[2]} numbers "
            f"in {in_words(outputs)}"
        )
    own = scores[..., 0]
    numbers = scores[..., 1] if joint else outputs[decoding.classes].reshape(len(own), -1)
    if numbers.shape != own.shape or (not joint and scores.shape[2] != 1):
        raise InvalidDataError(
            f"expected a score and a class number for each box, got {in_words(outputs)}"
        )
    _check_range(own, decoding)
    own = _activated(own, decoding)
    kept = own >= decoding.score_threshold
    if decoding.count:
        counts = outputs[decoding.count].reshape(len(own), -1)[:, :1]
        kept &= np.arange(own.shape[1]) < np.rint(counts)
    pictures, rows = np.nonzero(kept)
    classes = np.rint(numbers[pictures, rows]).astype(np.int64) - (decoding.background == "first")
    if decoding.background == "first":
        objects = classes >= 0
        pictures, rows, classes = pictures[objects], rows[objects], classes[objects]
    if classes.min(initial=0) < 0:
        raise InvalidDataError(
            f"expected class numbers from 0 in {decoding.classes}, got {int(classes.min())}"
        )
    return _Candidates(pictures, rows, classes, own[pictures, rows])


def _refuse_nan(scores: Floats, first: int) -> None:
    bad = np.isnan(scores.max(axis=(1, 2), initial=-np.inf))  # a maximum with NaN is NaN
    if bad.any():
        raise InvalidDataError(
            f"scores of picture {first + int(bad.argmax())} hold NaN; the model is broken"
        )


def _check_range(scores: Floats, decoding: Decoding) -> None:
    """Refuse scores that need an activation."""
    if decoding.activation == "softmax" or not scores.size:
        return
    low, high = float(scores.min()), float(scores.max())
    if decoding.activation == "none" and (low < -_TOLERANCE or high > 1 + _TOLERANCE):
        right = "softmax" if decoding.background != "none" else "sigmoid"
        raise InvalidDataError(
            f"expected scores from 0 to 1, got {low:.3g} to {high:.3g} with activation none; pass "
            f"activation={right} in --decoding"
        )


# --- Boxes ---------------------------------------------------------------------------------------


def _corners(
    raw: Floats, decoding: Decoding, numbers: Numbers, input_size: tuple[int, int]
) -> Floats:
    """Left, top, right, bottom ``[4, K]`` as parts of the input's size.

    Args:
        raw: Numbers of the boxes, as outputs have them, ``[K, 4 or 4 * bins]``.
        decoding: How they are read.
        numbers: The anchor of each, ``[K]``.
        input_size: Height and width of the model's input.
    """
    bins = decoding.bins if decoding.anchors is not None else 1
    if raw.shape[1] != 4 * bins:
        raise InvalidDataError(f"expected {4 * bins} numbers a box, got {raw.shape[1]}")
    if bins > 1:
        raw = _expected(raw.reshape(len(raw), 4, bins))
    columns = np.ascontiguousarray(raw.T)
    if decoding.order in ("yxyx", "cycxhw"):
        columns = columns[[1, 0, 3, 2]]
    if decoding.anchors is not None:
        return _against_anchors(columns, decoding, decoding.anchors, numbers)
    if decoding.unit == "pixels":
        height, width = input_size
        sides = np.array([[width], [height], [width], [height]], np.float32)
        columns = np.divide(columns, sides, dtype=np.float32)
    if decoding.order in ("cxcywh", "cycxhw"):
        return _around(columns[:2], columns[2:])
    return columns


def _expected(logits: Floats) -> Floats:
    """The mean of 0, 1, 2, ... ``[K, 4]`` by the softmax of logits ``[K, 4, bins]``."""
    powers = np.exp(logits - logits.max(axis=2, keepdims=True, initial=-np.inf))
    return np.asarray(
        powers @ np.arange(logits.shape[2], dtype=np.float32) / powers.sum(axis=2), np.float32
    )


def _around(centre: Floats, size: Floats) -> Floats:
    """Corners ``[4, K]`` of boxes with a centre x, y ``[2, K]`` and a width, height ``[2, K]``."""
    half = size / 2
    with np.errstate(invalid="ignore"):
        return np.concatenate([centre - half, centre + half])


def _against_anchors(
    columns: Floats, decoding: Decoding, anchors: Anchors, numbers: Numbers
) -> Floats:
    """As :func:`_corners`, of boxes ``[4, K]`` that are coded against anchors, x first."""
    own = np.ascontiguousarray(anchors.boxes()[:, [1, 0, 3, 2]].T)[:, numbers]
    centre, size = own[:2], own[2:]  # cx, cy and w, h
    if decoding.coding == "distances":
        return np.concatenate([centre - columns[:2] * size, centre + columns[2:] * size])
    if decoding.coding == "yolov5":
        shares = _sigmoid(columns)
        cells = np.ascontiguousarray(anchors.cells()[:, ::-1].T)[:, numbers]
        return _around(centre + (2 * shares[:2] - 1) * cells, (2 * shares[2:]) ** 2 * size)
    ty, tx, th, tw = anchors.scales
    scaled = np.divide(columns, np.array([[tx], [ty], [tw], [th]]), dtype=np.float32)
    with np.errstate(over="ignore"):
        return _around(centre + scaled[:2] * size, np.exp(scaled[2:]) * size)


def _check_unit(corners: Floats, decoding: Decoding) -> None:
    """Refuse boxes ``[4, K]`` whose unit is obviously the other one."""
    if decoding.anchors is not None or corners.shape[1] < 10:
        return
    middle = float(np.median(np.abs(corners[2:])))
    if decoding.unit == "relative" and middle > _PIXELS:
        raise InvalidDataError(
            f"expected boxes in parts of the input's size, half of them end beyond {middle:.3g} "
            f"times of it; pass unit=pixels in --decoding"
        )
    largest = float(np.abs(corners).max())
    if decoding.unit == "pixels" and 0 < largest <= 1 / 64:
        raise InvalidDataError(
            f"expected boxes in pixels, all of them lie in {largest:.2%} of the input; pass "
            f"unit=relative in --decoding"
        )


def _in_picture(corners: Floats, pictures: Numbers, views: Views) -> Floats:
    """From parts of the input's size to pixels of the picture, cut off at its edges; ``[4, K]``."""
    left, top, width, height = views.regions.T[:, pictures]
    high, wide = views.sizes.T.astype(np.float32)[:, pictures]
    result = np.empty_like(corners)
    for side, start, extent, edge in (
        (0, left, width, wide),
        (1, top, height, high),
        (2, left, width, wide),
        (3, top, height, high),
    ):
        np.clip(corners[side] * extent + start, 0, edge, out=result[side])
    return result


# --- NMS -----------------------------------------------------------------------------------------


def _suppressed(found: _Candidates, corners: Floats, threshold: float, most: int) -> Numbers:
    """Numbers of the boxes that stay, by picture and class."""
    classes = int(found.classes.max(initial=0)) + 1
    groups = found.pictures * classes + found.classes
    order = _by_score(groups, found)
    scores, pictures = found.scores[order], found.pictures[order]
    return np.sort(
        order[nms(corners[:, order], groups[order], threshold, most, (scores, pictures))]
    )


def nms(
    corners: Floats,
    groups: Numbers,
    threshold: float,
    most: int,
    scored: tuple[Floats, Numbers] | None = None,
) -> Numbers:
    """Greedy non-maximum suppression, of all groups at once.

    In each round every group keeps its first box that is left, and drops those that overlap it.

    Args:
        corners: float32 ``[4, K]``, those of a group together, in the order of preference.
        groups: int64 ``[K]``, ascending.
        threshold: IoU above which a box is dropped.
        most: Boxes of a group, at most.
        scored: Score and picture of each box, where only the ``most`` highest scores of a picture
            are of use.

    Returns:
        Numbers of the boxes that stay, ascending.
    """
    sizes = (corners[2] - corners[0]) * (corners[3] - corners[1])
    own = np.concatenate([corners, sizes[None]])
    number = np.arange(len(groups))
    kept = []
    for turn in range(most):
        if not len(number):
            break
        new = np.ones(len(number), bool)
        np.not_equal(groups[1:], groups[:-1], out=new[1:])
        heads = np.flatnonzero(new)
        kept.append(number[heads])
        counts = np.diff(heads, append=len(number)) - 1
        of_heads = own[:, heads].repeat(counts, axis=1)
        rest = np.flatnonzero(~new)
        own = own[:, rest]
        width = np.minimum(own[2], of_heads[2]) - np.maximum(own[0], of_heads[0])
        height = np.minimum(own[3], of_heads[3]) - np.maximum(own[1], of_heads[1])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        left = shared <= threshold * (own[4] + of_heads[4] - shared)
        rest = rest[left]
        number, groups, own = number[rest], groups[rest], own[:, left]
        if scored is not None and turn % _PRUNE == _PRUNE - 1 and len(number):
            useful = _useful(np.concatenate(kept), number, scored, most)
            number, groups, own = number[useful], groups[useful], own[:, useful]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)


#: Rounds of the NMS after which boxes are dropped that have no chance.
_PRUNE = 4


def _useful(
    kept: Numbers, number: Numbers, scored: tuple[Floats, Numbers], most: int
) -> npt.NDArray[np.bool_]:
    """Which boxes can be among the ``most`` of their picture, beside those that are kept."""
    scores, pictures = scored
    counts = np.bincount(pictures[kept])
    least = np.zeros(int(pictures.max()) + 1, np.float32)
    full = np.flatnonzero(counts >= most)
    if not len(full):
        return np.ones(len(number), bool)
    order = np.lexsort((-scores[kept], pictures[kept]))
    starts = np.cumsum(counts) - counts
    least[full] = scores[kept[order[starts[full] + most - 1]]]
    return scores[number] >= least[pictures[number]]
