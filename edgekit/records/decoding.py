"""Decoding: what turns the outputs of a detector into boxes, as data in the manifest.

It is carried out by one function for all runtimes, outside of the quantized graph
(:mod:`edgekit.tasks.decode`). Framework-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

#: Order of the four numbers of a box.
Order = Literal["xyxy", "yxyx", "cxcywh", "cycxhw"]
#: Of a box's numbers: pixels of the model's input, or parts of its width and height.
Unit = Literal["pixels", "relative"]
#: What makes scores of the outputs.
Activation = Literal["none", "sigmoid", "softmax"]
#: Where the class that is no object stands among the scores.
Background = Literal["none", "first", "last"]


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


@dataclass(frozen=True)
class Anchors:
    """Anchor boxes, and how a box is coded against one (Liu et al. 2016, SSD, section 2.2).

    ``ty = (cy - ay) / ah * scale``, ``th = ln(h / ah) * scale``, and so for x and w.

    Attributes:
        grids: Feature maps in the order of the outputs; anchors of a map go row by row, column by
            column, size by size.
        scales: Factors of ty, tx, th, tw: 1 / variance.
    """

    grids: tuple[AnchorGrid, ...]
    scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)

    def boxes(self) -> npt.NDArray[np.float32]:
        """float32 ``[A, 4]``: cy, cx, h, w of each anchor, as parts of the input's size."""
        parts = []
        for grid in self.grids:
            y = (np.arange(grid.rows) + 0.5) / grid.rows
            x = (np.arange(grid.columns) + 0.5) / grid.columns
            sizes = np.array(grid.sizes, np.float64).reshape(-1, 2)
            part = np.empty((grid.rows, grid.columns, len(sizes), 4))
            part[..., 0], part[..., 1] = y[:, None, None], x[None, :, None]
            part[..., 2:] = sizes
            parts.append(part.reshape(-1, 4))
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True)
class Decoding:
    """How outputs of a detector are read.

    Attributes:
        boxes: Names of the outputs with four numbers a box, ``[N, A, 4]``; several follow each
            other along A. The same output may hold scores too: its first four columns are the box.
        scores: Names of the outputs with a score for each class, ``[N, A, C]``.
        classes: Name of the output with a class number a box, ``[N, A]``, where boxes are decoded
            already; empty otherwise.
        count: Name of the output with the number of boxes that count, ``[N]``; empty without.
        order: Order of the four numbers.
        unit: Unit of the four numbers.
        anchors: What the four numbers are coded against; None where they are boxes.
        activation: What makes scores of the outputs.
        objectness: Whether a column before the scores says that there is any object (YOLOv5): a
            score is the product.
        background: Where the class that is no object stands.
        score_threshold: Least score of a box.
        iou_threshold: Of two boxes of a class that overlap more, the one with the lower score is
            dropped (NMS); None for networks that give each object once (DETR).
        max_boxes: Boxes of a picture, at most.
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
