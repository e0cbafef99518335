"""From the outputs of a detector to boxes in pixels of the picture, as its Decoding says.

One implementation for every runtime, in numpy. A score is compared before its activation where
that can be, and boxes are made of what remains only; the NMS goes in rounds that are shared by all
classes of all pictures of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.base.blocks import blocks
from edgekit.base.errors import InvalidDataError
from edgekit.data.boxes import Boxes, Views, joined
from edgekit.records.decoding import AnchorGrid, Decoding

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
#: Numbers of all outputs of a block of pictures, at the most.
_BLOCK = 1 << 23
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
        rows: int64 ``[K]``: number of the anchor in its level.
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
    candidates, coded = [], []
    start = 0
    for boxes, scores in _levels(outputs, decoding):
        part = (
            _of_numbers(outputs, decoding, scores, first)
            if decoding.classes
            else _above(scores, decoding, first)
        )
        candidates.append(part)
        raw = boxes[part.pictures, part.rows]
        coded.append(_corners(raw, decoding, part.rows + start, input_size))
        start += boxes.shape[1]
    corners = coded[0] if len(coded) == 1 else np.concatenate(coded)
    found = candidates[0] if len(candidates) == 1 else _joined(candidates)
    if np.isnan(corners).any():
        bad = int(found.pictures[np.isnan(corners).any(axis=1)][0])
        raise InvalidDataError(f"boxes of picture {first + bad} are NaN; the model is broken")
    _check_unit(corners, decoding)
    corners = _in_picture(corners, found.pictures, views)
    real = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    if not real.all():
        found, corners = found.take(real), corners[real]
    found, corners = _best(found, corners, decoding.candidates, len(views))
    if decoding.iou_threshold is not None:
        kept = _suppressed(found, corners, decoding.iou_threshold, decoding.max_boxes)
        found, corners = found.take(kept), corners[kept]
    order = np.lexsort((-found.scores, found.pictures))
    found, corners = found.take(order), corners[order]
    rank = _rank(found.pictures, len(views))
    if (rank >= decoding.max_boxes).any():
        most = rank < decoding.max_boxes
        found, corners = found.take(most), corners[most]
    counts = np.bincount(found.pictures, minlength=len(views))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Boxes(offsets, corners, found.classes.astype(np.int32), found.scores)


def _joined(parts: Sequence[_Candidates]) -> _Candidates:
    """Candidates of several levels; rows are numbers of the level no more."""
    return _Candidates(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("pictures", "rows", "classes", "scores")
        )
    )


def _rank(pictures: Numbers, count: int) -> Numbers:
    """Place of each box in its picture, from 0; those of a picture lie together."""
    counts = np.bincount(pictures, minlength=count)
    return np.arange(len(pictures)) - np.repeat(np.cumsum(counts) - counts, counts)


def _best(found: _Candidates, corners: Floats, most: int, count: int) -> tuple[_Candidates, Floats]:
    """The highest scores of each picture; of equal ones the first."""
    counts = np.bincount(found.pictures, minlength=count)
    if counts.max(initial=0) <= most:
        return found, corners
    order = np.lexsort((-found.scores, found.pictures))
    order = np.sort(order[_rank(found.pictures[order], count) < most])
    return found.take(order), corners[order]


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
            columns = _columns_of_box(both.shape[2], decoding)
            levels.append((both[..., :columns], both[..., columns:]))
            continue
        boxes = arranged(outputs, name, grid, rows, decoding, 4)
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


def _columns_of_box(columns: int, decoding: Decoding) -> int:
    """Columns of the box in an output that holds scores too.

    Logits of distances (DFL) come in 16 bins a side, as YOLOv8 has them.
    """
    return 64 if decoding.coding == "distances" and decoding.anchors and columns > 64 else 4


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
    raw: Floats, decoding: Decoding, anchors: Numbers, input_size: tuple[int, int]
) -> Floats:
    """Left, top, right, bottom ``[K, 4]`` as parts of the input's size, of rows of outputs."""
    y_first = decoding.order in ("yxyx", "cycxhw")
    if decoding.anchors is not None:
        return _against_anchors(raw, decoding, anchors, y_first)
    if raw.shape[1] != 4:
        raise InvalidDataError(f"expected 4 numbers a box, got {raw.shape[1]}")
    boxes = raw[:, [1, 0, 3, 2]] if y_first else raw
    if decoding.unit == "pixels":
        height, width = input_size
        boxes = np.divide(boxes, np.array([width, height, width, height]), dtype=np.float32)
    if decoding.order in ("cxcywh", "cycxhw"):
        return _around(boxes[:, :2], boxes[:, 2:])
    return np.ascontiguousarray(boxes)


def _around(centre: Floats, size: Floats) -> Floats:
    """Corners of boxes with a centre x, y and a width, height."""
    half = size / 2
    with np.errstate(invalid="ignore"):
        return np.concatenate([centre - half, centre + half], axis=1)


def _against_anchors(raw: Floats, decoding: Decoding, numbers: Numbers, y_first: bool) -> Floats:
    """As :func:`_corners`, of boxes that are coded against anchors."""
    assert decoding.anchors is not None
    own = decoding.anchors.boxes()[numbers][:, [1, 0, 3, 2]]  # cx, cy, w, h
    centre, size = own[:, :2], own[:, 2:]
    if decoding.coding == "distances":
        bins = raw.shape[1] // 4
        sides = raw.reshape(len(raw), 4, bins)
        if bins > 1:
            powers = np.exp(sides - sides.max(axis=2, keepdims=True, initial=-np.inf))
            shares = powers / powers.sum(axis=2, keepdims=True)
            distances = shares @ np.arange(bins, dtype=np.float32)
        else:
            distances = sides[..., 0]
        if y_first:
            distances = distances[:, [1, 0, 3, 2]]
        near, far = distances[:, :2] * size, distances[:, 2:] * size
        return np.concatenate([centre - near, centre + far], axis=1)
    if raw.shape[1] != 4:
        raise InvalidDataError(f"expected 4 numbers a box, got {raw.shape[1]}")
    if y_first:
        raw = raw[:, [1, 0, 3, 2]]
    if decoding.coding == "yolov5":
        shares = _sigmoid(raw)
        cells = decoding.anchors.cells()[numbers][:, ::-1]
        return _around(centre + (2 * shares[:, :2] - 1) * cells, (2 * shares[:, 2:]) ** 2 * size)
    ty, tx, th, tw = decoding.anchors.scales
    raw = np.divide(raw, np.array([tx, ty, tw, th]), dtype=np.float32)
    with np.errstate(over="ignore"):
        return _around(centre + raw[:, :2] * size, np.exp(raw[:, 2:]) * size)


def _check_unit(corners: Floats, decoding: Decoding) -> None:
    """Refuse boxes whose unit is obviously the other one."""
    if decoding.anchors is not None or len(corners) < 10:
        return
    middle = float(np.median(np.abs(corners[:, 2:])))
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
    """From parts of the input's size to pixels of the picture, cut off at its edges."""
    origin, extent = views.regions[:, :2], views.regions[:, 2:]
    edges = views.sizes[:, ::-1].astype(np.float32)[pictures]
    scaled = corners.reshape(-1, 2, 2) * extent[pictures][:, None] + origin[pictures][:, None]
    clipped: Floats = np.clip(scaled, 0, edges[:, None], dtype=np.float32)
    return clipped.reshape(-1, 4)


# --- NMS -----------------------------------------------------------------------------------------


def _suppressed(found: _Candidates, corners: Floats, threshold: float, most: int) -> Numbers:
    """Numbers of the boxes that stay, by picture and class."""
    groups = found.pictures * (int(found.classes.max(initial=0)) + 1) + found.classes
    order = np.lexsort((-found.scores, groups))
    kept = nms(corners[order], groups[order], threshold, most)
    return np.sort(order[kept])


def nms(corners: Floats, groups: Numbers, threshold: float, most: int) -> Numbers:
    """Greedy non-maximum suppression, of all groups at once.

    In each round every group keeps its first box that is left, and drops those that overlap it.

    Args:
        corners: float32 ``[K, 4]``, those of a group together, in the order of preference.
        groups: int64 ``[K]``, ascending.
        threshold: IoU above which a box is dropped.
        most: Boxes of a group, at most.

    Returns:
        Numbers of the boxes that stay, ascending.
    """
    left, top, right, bottom = np.ascontiguousarray(corners.T)
    areas = (right - left) * (bottom - top)
    alive = np.arange(len(corners))
    kept = []
    for _ in range(most):
        if not len(alive):
            break
        own = groups[alive]
        new = np.ones(len(own), bool)
        np.not_equal(own[1:], own[:-1], out=new[1:])
        heads = np.flatnonzero(new)
        kept.append(alive[heads])
        others = alive[~new]
        if not len(others):
            break
        sizes = np.diff(heads, append=len(own)) - 1
        head = np.repeat(alive[heads], sizes)
        width = np.minimum(right[head], right[others]) - np.maximum(left[head], left[others])
        height = np.minimum(bottom[head], bottom[others]) - np.maximum(top[head], top[others])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        alive = others[shared <= threshold * (areas[head] + areas[others] - shared)]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
