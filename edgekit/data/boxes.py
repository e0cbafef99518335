"""Boxes of objects in pictures, right ones or found ones, and which part of a picture was seen.

Boxes are in pixels of the picture, upright, before it was resized or cropped: there sizes of
objects mean the same for every model. :class:`Views` leads from a model's input to the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of N pictures, those of one picture behind those of the picture before.

    Attributes:
        offsets: int64 ``[N + 1]``: boxes of picture i are ``offsets[i]:offsets[i + 1]``.
        corners: float32 ``[K, 4]``: left, top, right, bottom in pixels; right and bottom are
            where the box ends, so that width is right - left.
        classes: int32 ``[K]``: class numbers from 0.
        scores: float32 ``[K]`` from 0 to 1; None for right boxes. Those of a picture descend.
        crowd: bool ``[K]``: a group that counts neither as found nor as missed (COCO ``iscrowd``,
            VOC ``difficult``); None where there is none.
        areas: float32 ``[K]``: pixels of the object itself, as COCO counts them; None for the
            areas of the boxes.
    """

    offsets: npt.NDArray[np.int64]
    corners: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32] | None = None
    crowd: npt.NDArray[np.bool_] | None = None
    areas: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.offsets) - 1

    def __getitem__(self, picture: int) -> Boxes:
        """Those of one picture."""
        return self.take(np.array([picture], np.int64))

    def __iter__(self) -> Iterator[Boxes]:
        return (self[picture] for picture in range(len(self)))

    def take(self, pictures: npt.NDArray[np.int64]) -> Boxes:
        """Those of some pictures, in that order.

        Args:
            pictures: int64 ``[n]``, numbers of pictures.
        """
        counts = np.diff(self.offsets)[pictures]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(self.offsets[pictures] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Boxes(
            offsets,
            self.corners[rows],
            self.classes[rows],
            *(None if each is None else each[rows] for each in self._optional()),
        )

    def pictures(self) -> npt.NDArray[np.int64]:
        """int64 ``[K]``: the picture of each box."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def _optional(
        self,
    ) -> tuple[
        npt.NDArray[np.float32] | None,
        npt.NDArray[np.bool_] | None,
        npt.NDArray[np.float32] | None,
    ]:
        return self.scores, self.crowd, self.areas


def joined(parts: Sequence[Boxes]) -> Boxes:
    """Boxes of many pictures, part behind part; all parts have the same optional attributes."""
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    first = parts[0]
    return Boxes(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([part.corners for part in parts]),
        np.concatenate([part.classes for part in parts]),
        *(
            None
            if getattr(first, name) is None
            else np.concatenate([getattr(part, name) for part in parts])
            for name in ("scores", "crowd", "areas")
        ),
    )


@dataclass(frozen=True, eq=False)
class Views:
    """Which part of each of N pictures the model's input shows.

    A model's input of W x H pixels, position x, is ``left + x * width / W`` in the picture. A part
    may be larger than the picture, where it was letterboxed.

    Attributes:
        regions: float32 ``[N, 4]``: left, top, width, height in pixels of the picture.
        sizes: int32 ``[N, 2]``: height and width of the picture.
    """

    regions: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.regions)

    def take(self, pictures: npt.NDArray[np.int64]) -> Views:
        """Those of some pictures, in that order."""
        return Views(self.regions[pictures], self.sizes[pictures])

    @classmethod
    def whole(cls, count: int, height: int, width: int) -> Views:
        """Each of ``count`` pictures of one size, as a whole."""
        regions = np.tile(np.array([0, 0, width, height], np.float32), (count, 1))
        return cls(regions, np.tile(np.array([height, width], np.int32), (count, 1)))
