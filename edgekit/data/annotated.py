"""Boxes as annotation files say them, and the same boxes in pixels of the upright picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.data.boxes import Boxes

#: Pixels by which a box may leave its picture without being counted: files round.
ROUNDED = 1.0


@dataclass(frozen=True, eq=False)
class Annotated:
    """Boxes of N pictures that were not opened yet.

    Attributes:
        boxes: Class numbers as the source counts; corners as the files have them.
        sizes: int32 ``[N, 2]``: height and width of the picture that an annotation says; 0 where it
            does not.
        relative: Whether corners are parts of width and height, not pixels.
        frame: Of pictures that EXIF turns and whose annotated size fits both ways, or is missing:
            whether boxes lie in the ``upright`` or in the ``stored`` picture.
    """

    boxes: Boxes
    sizes: npt.NDArray[np.int32]
    relative: bool = False
    frame: Literal["upright", "stored"] = "upright"

    def size(self, number: int) -> tuple[int, int] | None:
        """Width and height of one picture, None where its annotation does not say them."""
        height, width = self.sizes[number].tolist()
        return (width, height) if height > 0 and width > 0 else None


@dataclass(frozen=True)
class Settled:
    """What became of annotated boxes.

    Attributes:
        boxes: In pixels of the upright pictures; classes are the model's.
        warnings: What was left out or changed, a sentence each.
    """

    boxes: Boxes
    warnings: tuple[str, ...]


def settle(
    annotated: Annotated,
    pictures: npt.NDArray[np.int64],
    stored: npt.NDArray[np.int32],
    turns: npt.NDArray[np.uint8],
    *,
    number: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
    name: Callable[[npt.NDArray[np.int64]], str],
) -> Settled:
    """Turn boxes with their pictures, clip them, leave out what is empty or of no class.

    Args:
        annotated: Boxes of all pictures.
        pictures: int64 ``[n]``: numbers of the pictures that there are.
        stored: int32 ``[n, 2]``: height and width of each in its file.
        turns: uint8 ``[n]``: EXIF orientation of each, 1 to 8.
        number: From the source's class numbers to the model's; negative for a class to leave out.
        name: Names some of the ``n`` pictures, by rows from 0.
    """
    boxes = annotated.boxes.take(pictures)
    sizes = annotated.sizes[pictures]
    upright = upright_sizes(stored, turns)
    in_stored, unclear = _frames(sizes, stored, upright, turns, annotated.frame)
    rows = boxes.pictures()
    corners = boxes.corners.astype(np.float64)
    if annotated.relative:
        frames = np.where(in_stored[:, None], stored, upright)
        corners *= frames[rows][:, [1, 0, 1, 0]]
    corners = _turned(corners, stored[rows], np.where(in_stored, turns, 1)[rows])
    said = []

    def tell(wrong: npt.NDArray[np.bool_], what: str) -> None:
        count = int(wrong.sum())
        if count:
            said.append(f"{count} boxes {what}: {name(np.unique(rows[wrong]))}")

    if in_stored.any():
        said.append(
            f"{int(in_stored.sum())} pictures are turned by EXIF and annotated as they are stored; "
            f"their boxes are turned too: {name(np.flatnonzero(in_stored))}"
        )
    if unclear.any():
        said.append(
            f"{int(unclear.sum())} pictures are turned by EXIF, and no annotated size says whether "
            f"their boxes are; taken as those of the {annotated.frame} picture "
            f"(#exif=upright|stored): {name(np.flatnonzero(unclear))}"
        )
    empty = (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1])
    tell(empty, "have no width or no height and are left out")
    ends = upright[rows][:, [1, 0, 1, 0]].astype(np.float64)
    clipped = np.clip(corners, 0, ends)
    beyond = np.abs(clipped - corners).max(axis=1, initial=0) > ROUNDED
    gone = (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
    tell(gone & ~empty, "lie outside of their picture and are left out")
    tell(beyond & ~gone & ~empty, "reach out of their picture and are clipped")
    classes = number(boxes.classes.astype(np.int64))
    unknown = classes < 0
    tell(unknown & ~empty & ~gone, "are of classes that the model does not know and are left out")
    kept = ~(empty | gone | unknown)
    counts = np.bincount(rows[kept], minlength=len(pictures))
    final = Boxes(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        clipped[kept].astype(np.float32),
        classes[kept].astype(np.int32),
        None,
        None if boxes.crowd is None else boxes.crowd[kept],
        None if boxes.areas is None else boxes.areas[kept],
    )
    return Settled(final, tuple(said))


def upright_sizes(
    stored: npt.NDArray[np.int32], turns: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int32]:
    """int32 ``[n, 2]``: height and width of pictures when EXIF has turned them."""
    return np.where((turns >= 5)[:, None], stored[:, ::-1], stored).astype(np.int32)


def _frames(
    sizes: npt.NDArray[np.int32],
    stored: npt.NDArray[np.int32],
    upright: npt.NDArray[np.int32],
    turns: npt.NDArray[np.uint8],
    frame: str,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which pictures are annotated as they are stored, and of which that is not known."""
    turned = turns != 1
    unknown = (sizes <= 0).any(axis=1)
    as_stored = (sizes == stored).all(axis=1)
    as_upright = (sizes == upright).all(axis=1)
    unclear = turned & (unknown | (as_stored & as_upright))
    in_stored = turned & ~unclear & as_stored
    return in_stored | (unclear & (frame == "stored")), unclear


def _turned(
    corners: npt.NDArray[np.float64], stored: npt.NDArray[np.int32], turns: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """Corners ``[K, 4]`` in stored pictures to those in pictures turned by EXIF."""
    left, top, right, bottom = corners.T
    height, width = stored.T.astype(np.float64)
    by_turn = {
        2: (width - right, top, width - left, bottom),
        3: (width - right, height - bottom, width - left, height - top),
        4: (left, height - bottom, right, height - top),
        5: (top, left, bottom, right),
        6: (height - bottom, left, height - top, right),
        7: (height - bottom, width - right, height - top, width - left),
        8: (top, width - right, bottom, width - left),
    }
    for turn, sides in by_turn.items():
        at = turns == turn
        if at.any():
            corners = np.where(at[:, None], np.stack(sides, axis=1), corners)
    return corners


def built(
    counts: npt.NDArray[np.int64],
    corners: npt.NDArray[np.float32],
    classes: npt.NDArray[np.int32],
    crowd: npt.NDArray[np.bool_],
    areas: npt.NDArray[np.float32] | None = None,
) -> Boxes:
    """Boxes of pictures one behind the other; ``counts`` of each; no crowd where there is none."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Boxes(offsets, corners, classes, None, crowd if crowd.any() else None, areas)
