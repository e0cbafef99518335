"""Decoding: what turns the outputs of a detector into boxes, as data in the manifest.

It is carried out by one function for all runtimes, outside of the quantized graph
(:mod:`edgekit.tasks.decode`). Framework-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidOptionError
from edgekit.base.words import near

#: Order of the four numbers of a box.
Order = Literal["xyxy", "yxyx", "cxcywh", "cycxhw"]
#: Of a box's numbers: pixels of the model's input, or parts of its width and height.
Unit = Literal["pixels", "relative"]
#: What makes scores of the outputs.
Activation = Literal["none", "sigmoid", "softmax"]
#: Where the class that is no object stands among the scores.
Background = Literal["none", "first", "last"]
#: How the four numbers of a box are coded against its anchor.
Coding = Literal["ssd", "yolov5", "distances"]
#: Where an output has the numbers of one box: in its second axis, or in its last one.
Channels = Literal["", "first", "last"]


@dataclass(frozen=True)
class AnchorGrid:
    """Anchors of one feature map, as many at each of its positions.

    Attributes:
        rows: Height of the feature map.
        columns: Width of the feature map.
        sizes: ``(height, width)`` of each anchor of a position, as parts of the input's.
    """

    rows: int
    columns: int
    sizes: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or not self.sizes:
            raise InvalidOptionError(
                f"expected a grid of anchors with at least one row, column and size, got "
                f"{self.rows} x {self.columns} with {len(self.sizes)} sizes"
            )
        if not all(side > 0 for size in self.sizes for side in size):
            raise InvalidOptionError(f"expected sizes of anchors above 0, got {self.sizes}")

    @property
    def count(self) -> int:
        """Number of anchors."""
        return self.rows * self.columns * len(self.sizes)


@dataclass(frozen=True)
class Anchors:
    """Anchor boxes, and how a box is coded against one.

    Of the coding ``ssd`` (Liu et al. 2016, section 2.2): ``ty = (cy - ay) / ah * scale``,
    ``th = ln(h / ah) * scale``, and so for x and w.

    Attributes:
        grids: Feature maps in the order of the outputs; anchors of a map go row by row, column by
            column, size by size.
        scales: Factors of ty, tx, th, tw: 1 / variance.
        offset: Centre of an anchor in its cell, as a part of the cell.
        listed: Anchors that lie on no grid, in place of ``grids``: cy, cx, h, w of each, as parts
            of the input's size.
    """

    grids: tuple[AnchorGrid, ...] = ()
    scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    offset: float = 0.5
    listed: tuple[tuple[float, float, float, float], ...] = ()

    def __post_init__(self) -> None:
        if bool(self.grids) == bool(self.listed):
            raise InvalidOptionError("expected anchors as grids or listed, one of them")
        if not all(scale > 0 for scale in self.scales):
            raise InvalidOptionError(f"expected scales of anchors above 0, got {self.scales}")
        if not all(box[2] > 0 and box[3] > 0 for box in self.listed):
            raise InvalidOptionError("expected listed anchors with a height and width above 0")

    @property
    def count(self) -> int:
        """Number of anchors, A."""
        return len(self.listed) + sum(grid.count for grid in self.grids)

    def boxes(self) -> npt.NDArray[np.float32]:
        """float32 ``[A, 4]``: cy, cx, h, w of each anchor, as parts of the input's size."""
        if self.listed:
            return np.array(self.listed, np.float32)
        parts = []
        for grid in self.grids:
            y = (np.arange(grid.rows) + self.offset) / grid.rows
            x = (np.arange(grid.columns) + self.offset) / grid.columns
            sizes = np.array(grid.sizes, np.float64).reshape(-1, 2)
            part = np.empty((grid.rows, grid.columns, len(sizes), 4))
            part[..., 0], part[..., 1] = y[:, None, None], x[None, :, None]
            part[..., 2:] = sizes
            parts.append(part.reshape(-1, 4))
        return np.concatenate(parts).astype(np.float32)

    def cells(self) -> npt.NDArray[np.float32]:
        """float32 ``[A, 2]``: height and width of the cell of each anchor, as parts of the input's;
        of listed anchors their own."""
        if self.listed:
            return np.array(self.listed, np.float32)[:, 2:]
        return np.concatenate(
            [
                np.tile(np.array([1 / g.rows, 1 / g.columns], np.float32), (g.count, 1))
                for g in self.grids
            ]
        )


@dataclass(frozen=True)
class Decoding:
    """How outputs of a detector are read.

    Attributes:
        boxes: Names of the outputs with four numbers a box, ``[N, A, 4]``; several follow each
            other along A. The same output may hold scores too: its first four columns are the box.
            Also taken: numbers of a box in the second axis, ``[N, 4, A]``; feature maps, in the
            order of the grids of anchors, ``[N, H, W, S * 4]`` or ``[N, S * 4, H, W]``, or with S
            apart.
        scores: Names of the outputs with a score for each class, ``[N, A, C]``, as many as
            ``boxes``.
        classes: Name of the output with a class number a box, ``[N, A]``, where boxes are decoded
            already; then ``scores`` is one number a box. May be the output that holds all:
            box, score, class.
        count: Name of the output with the number of boxes that count, ``[N]``; empty without.
        order: Order of the four numbers; of boxes that are coded against anchors only whether y or
            x comes first.
        unit: Unit of the four numbers, where they are boxes.
        anchors: What the four numbers are coded against; None where they are boxes.
        activation: What makes scores of the outputs.
        objectness: Whether a column before the scores says that there is any object (YOLOv5): a
            score is the product.
        background: Where the class that is no object stands.
        score_threshold: Least score of a box.
        iou_threshold: Of two boxes of a class that overlap more, the one with the lower score is
            dropped (NMS); None for networks that give each object once (DETR).
        max_boxes: Boxes of a picture, at most.
        coding: Of boxes with anchors. ``ssd``: offsets of centre and logarithms of sizes.
            ``yolov5``: a sigmoid each; the centre within 1.5 cells, sizes up to four times the
            anchor's. ``distances``: from the anchor's centre to left, top, right, bottom, counted
            in its size; each a number, or ``bins`` logits of 0, 1, 2, ... (DFL of YOLOv8).
        best_class: Whether a box has one class only, that with the highest score; otherwise it
            counts once for each class above the threshold.
        candidates: Boxes of a picture that the NMS looks at, at most: those with the highest
            scores.
        channels: Where outputs have the numbers of one box; empty: told by the shapes. The longer
            axis counts boxes where nothing else tells.
        bins: Of ``distances``: logits of each; 1 where they are numbers.
    """

    boxes: tuple[str, ...]
    scores: tuple[str, ...]
    classes: str = ""
    count: str = ""
    order: Order = "yxyx"
    unit: Unit = "relative"
    anchors: Anchors | None = None
    activation: Activation = "none"
    objectness: bool = False
    background: Background = "none"
    score_threshold: float = 0.01
    iou_threshold: float | None = 0.6
    max_boxes: int = 100
    coding: Coding = "ssd"
    best_class: bool = False
    candidates: int = 1000
    channels: Channels = ""
    bins: int = 1

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise InvalidOptionError(
                    f"expected {name} of a decoding as "
                    f"{', '.join(each or 'nothing' for each in known)}, got {value!r}"
                    f"{near(str(value), [each for each in known if each])}"
                )
        if not self.boxes or len(self.boxes) != len(self.scores):
            raise InvalidOptionError(
                f"expected as many outputs with boxes as with scores, at least one, got boxes "
                f"{list(self.boxes)} and scores {list(self.scores)}"
            )
        if not 0 <= self.score_threshold < 1:
            raise InvalidOptionError(
                f"expected score_threshold from 0 to below 1, got {self.score_threshold:g}"
            )
        if self.iou_threshold is not None and not 0 < self.iou_threshold <= 1:
            raise InvalidOptionError(
                f"expected iou_threshold above 0 and up to 1, got {self.iou_threshold:g}"
            )
        for name in ("max_boxes", "candidates", "bins"):
            if getattr(self, name) < 1:
                raise InvalidOptionError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.bins > 1 and (self.anchors is None or self.coding != "distances"):
            raise InvalidOptionError(
                "expected bins of a decoding with coding=distances and anchors"
            )
        if self.classes and (len(self.boxes) != 1 or self.anchors or self.objectness):
            raise InvalidOptionError(
                "expected an output with class numbers for boxes that are decoded already: one "
                "output with boxes, without anchors and objectness"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs that are read, each once."""
        names = (*self.boxes, *self.scores, self.classes, self.count)
        return tuple(dict.fromkeys(name for name in names if name))

    def renamed(self, names: Mapping[str, str]) -> Decoding:
        """The same of a file whose outputs have other names.

        Args:
            names: Name in that file by the name here; what is absent stays.
        """
        return replace(
            self,
            boxes=tuple(names.get(name, name) for name in self.boxes),
            scores=tuple(names.get(name, name) for name in self.scores),
            classes=names.get(self.classes, self.classes),
            count=names.get(self.count, self.count),
        )


_CHOICES: dict[str, tuple[Any, ...]] = {
    "order": get_args(Order),
    "unit": get_args(Unit),
    "activation": get_args(Activation),
    "background": get_args(Background),
    "coding": get_args(Coding),
    "channels": get_args(Channels),
}
FIELDS = tuple(field.name for field in fields(Decoding))
