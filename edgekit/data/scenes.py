"""Scenes: several items of Fashion-MNIST on one grey canvas, with boxes, classes and masks.

What detection and segmentation are shown, tested and trained with where there are no pictures of
the user's own. An item is scaled to 28 to 56 pixels and may hide up to a third of another one; a
few scenes are empty. The three parts have no item in common.

The same bytes everywhere: all numbers are integers, drawn from the raw output of PCG64, which numpy
keeps the same in all versions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import InvalidOptionError
from edgekit.data import fashion_mnist, images
from edgekit.data.boxes import Boxes
from edgekit.data.images import ImageSet, Split

Pixels = npt.NDArray[np.uint8]

#: Height and width of a scene.
SIZE = 96
#: Heights and widths that an item is scaled to, at least and at most.
LEAST, MOST = 28, 56
#: Items of a scene, at most; one scene of so many is empty.
ITEMS, ONE_EMPTY_OF = 4, 25
#: Scenes of each part where nothing else is asked for.
COUNTS: Mapping[Split, int] = {"train": 40_000, "test": 1_000, "calibration": 500}
_SEEDS: Mapping[Split, int] = {"train": 2018, "test": 2019, "calibration": 2020}
#: Below this the pixel of an item is its background.
_LIT = 16
#: Places that are tried for an item.
_TRIES = 12
#: Distances in pixels between the points that the shades of a background are drawn at.
_GRAINS = (12, 24, 48)


@dataclass(frozen=True, eq=False)
class Stack:
    """Masks of one size, in memory: a :class:`edgekit.data.masks.Masks`.

    Attributes:
        classes: uint8 ``[N, H, W]``.
    """

    classes: Pixels

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, picture: int) -> Pixels:
        pixels: Pixels = self.classes[picture]
        return pixels

    def take(self, pictures: npt.NDArray[np.int64]) -> Stack:
        """Those of some pictures, as a copy."""
        return Stack(self.classes[pictures])


class Scenes:
    """The word ``scenes``, whose images have boxes, and ``scenes:masks``, whose images have masks.

    The option ``count`` says how many scenes are drawn.
    """

    options: tuple[str, ...] = ("count",)

    def open(
        self, place: str, split: Split, options: Mapping[str, str], *, labels: bool
    ) -> ImageSet:
        """Draw the scenes of a part.

        Raises:
            InvalidOptionError: If the word or its option is unknown.
            InvalidDataError: If Fashion-MNIST cannot be found.
        """
        word = f"scenes:{place}" if place else "scenes"
        if place not in ("", "masks"):
            raise InvalidOptionError(f"{word}: expected scenes (boxes) or scenes:masks")
        count = words.integer(word, dict(options), "count", least=1) or COUNTS[split]
        return scenes(split, count, masks=place == "masks")


def scenes(split: Split, count: int | None = None, *, masks: bool = False) -> ImageSet:
    """Scenes of one part of Fashion-MNIST.

    ``calibration`` has the 1,000 training images that ship, ``train`` all others.

    Args:
        split: Which part.
        count: How many; default that of :data:`COUNTS`. Fewer are the first of more.
        masks: Give masks, class 0 the background, instead of boxes.

    Returns:
        uint8 images ``[N, 96, 96, 1]`` with boxes and 10 classes, or masks and 11.

    Raises:
        InvalidDataError: If Fashion-MNIST cannot be found.
    """
    source = fashion_mnist.load(split)
    assert source.labels is not None
    items, labels = source.images[..., 0], source.labels
    if split == "train":
        others = np.setdiff1d(np.arange(len(items)), fashion_mnist.calibration_indices(labels))
        items, labels = items[others], labels[others]
    count = COUNTS[split] if count is None else count
    drawn = _Canvases(items, labels.astype(np.int32), _SEEDS[split])
    pixels, classes, boxes = drawn.draw(count)
    name, names = f"scenes/{split}", fashion_mnist.CLASS_NAMES
    if masks:
        names_of_pixels = ("background", *names)
        return images.make(f"{name}:masks", pixels, None, names_of_pixels, masks=Stack(classes))
    return images.make(name, pixels, None, names, boxes=boxes)


class _Random:
    """Integers from the raw output of a bit generator, whose values numpy does not change."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, limit: int) -> int:
        """One integer from 0 to ``limit - 1``."""
        return int(self._bits.random_raw()) % limit

    def many(self, limit: int, count: int) -> npt.NDArray[np.int64]:
        """``count`` integers from 0 to ``limit - 1``."""
        raw = np.atleast_1d(self._bits.random_raw(count))
        return (raw % np.uint64(limit)).astype(np.int64)

    def order(self, count: int) -> npt.NDArray[np.int64]:
        """A permutation of ``count`` numbers."""
        raw = np.atleast_1d(self._bits.random_raw(count))
        return np.argsort(raw, kind="stable")


class _Canvases:
    """Draws scenes one after the other.

    Args:
        items: uint8 ``[M, 28, 28]``.
        labels: int32 ``[M]``.
        seed: Of all that is drawn.
    """

    def __init__(self, items: Pixels, labels: npt.NDArray[np.int32], seed: int) -> None:
        self._items, self._labels = items, labels
        self._random = _Random(seed)
        self._order: list[int] = []

    def draw(self, count: int) -> tuple[Pixels, Pixels, Boxes]:
        """Pixels ``[N, H, W, 1]``, masks ``[N, H, W]`` and boxes of the next scenes."""
        pixels = np.empty((count, SIZE, SIZE, 1), np.uint8)
        masks = np.empty((count, SIZE, SIZE), np.uint8)
        counts, corners, classes, areas = [], [], [], []
        for i in range(count):
            pixels[i, ..., 0], owners, labels = self._scene()
            masks[i] = np.array([0, *(label + 1 for label in labels)], np.uint8)[owners]
            counts.append(len(labels))
            for number, label in enumerate(labels, 1):
                shown = owners == number
                rows = np.flatnonzero(shown.any(axis=1))
                columns = np.flatnonzero(shown.any(axis=0))
                corners.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
                classes.append(label)
                areas.append(np.count_nonzero(shown))
        boxes = Boxes(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array(corners, np.float32).reshape(-1, 4),
            np.array(classes, np.int32),
            areas=np.array(areas, np.float32),
        )
        return pixels, masks, boxes

    def _scene(self) -> tuple[Pixels, Pixels, list[int]]:
        """Pixels, the item that each of them shows (0: none), the class of each item."""
        random = self._random
        canvas = self._background()
        owners = np.zeros((SIZE, SIZE), np.uint8)
        labels: list[int] = []
        whole = [0]
        empty = random.below(ONE_EMPTY_OF) == 0
        for _ in range(0 if empty else 1 + random.below(ITEMS)):
            if not self._order:
                self._order = random.order(len(self._items)).tolist()
            number = self._order.pop()
            size = LEAST + random.below(MOST - LEAST + 1)
            item, opacity = _scaled(self._items[number], size)
            inside = opacity >= 128
            for y, x in random.many(SIZE - size + 1, 2 * _TRIES).reshape(-1, 2):
                where = (slice(y, y + size), slice(x, x + size))
                below = np.bincount(owners.ravel(), minlength=len(whole))
                below -= np.bincount(owners[where][inside], minlength=len(whole))
                if all(
                    3 * rest >= 2 * all_ for rest, all_ in zip(below[1:], whole[1:], strict=True)
                ):
                    break
            else:
                continue
            labels.append(int(self._labels[number]))
            whole.append(int(np.count_nonzero(inside)))
            owners[where][inside] = len(labels)
            there = canvas[where]
            canvas[where] = (item * opacity + there * (255 - opacity) + 127) // 255
        return canvas.astype(np.uint8), owners, labels

    def _background(self) -> npt.NDArray[np.int64]:
        """A grey with shades and noise, int64 ``[H, W]`` from 0 to 255."""
        random = self._random
        grain = _GRAINS[random.below(len(_GRAINS))]
        points = SIZE // grain + 1
        base, depth, noise = random.below(160), 1 + random.below(72), 1 + random.below(24)
        shades = base + random.many(depth, points * points).reshape(points, points)
        weights = _between(points, grain)
        smooth = (weights @ shades @ weights.T + grain * grain // 2) // (grain * grain)
        rough = random.many(noise, SIZE * SIZE).reshape(SIZE, SIZE)
        return smooth + rough


@functools.cache
def _between(points: int, grain: int) -> npt.NDArray[np.int64]:
    """Weights ``[H, points]`` of points ``grain`` pixels apart, which add up to ``grain``."""
    pixels = np.arange(SIZE)
    near, part = pixels // grain, pixels % grain
    weights = np.zeros((SIZE, points), np.int64)
    weights[pixels, near] = grain - part
    weights[pixels, near + 1] += part
    return weights


def _scaled(item: Pixels, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pixels and opacity ``[size, size]`` of an item, from 0 to 255."""
    weights = _resampling(item.shape[0], size)

    def resized(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # float64 holds these integers exactly, and multiplies faster than int64
        scaled = weights @ pixels.astype(np.float64) @ weights.T
        return (scaled.astype(np.int64) + (1 << 15)) >> 16

    opaque = resized(255 * silhouette(item))
    # dark pixels around an item are no part of it
    whole = resized(np.where(silhouette(item) == 1, item, 0).astype(np.int64))
    return np.minimum(255, whole * 255 // np.maximum(opaque, 1)), opaque


def silhouette(item: Pixels) -> npt.NDArray[np.int64]:
    """1 where an item is, else 0: between lit pixels both of the row and of the column."""
    lit = item >= _LIT
    result = np.ones(item.shape, np.int64)
    for axis in (0, 1):
        before = np.logical_or.accumulate(lit, axis=axis)
        behind = np.flip(np.logical_or.accumulate(np.flip(lit, axis), axis=axis), axis)
        result &= before & behind
    return result


@functools.cache
def _resampling(old: int, new: int) -> npt.NDArray[np.float64]:
    """Weights ``[new, old]`` of a triangle filter, whole numbers that add up to 256 in each row."""
    # all lengths in units of 1 / (2 new) of an old pixel
    centres = (2 * np.arange(new) + 1) * old
    distances = np.abs(centres[:, None] - (2 * np.arange(old) + 1) * new)
    reach = 2 * max(old, new)
    raw = np.maximum(reach - distances, 0)
    weights = raw * 256 // raw.sum(axis=1, keepdims=True)
    weights[np.arange(new), raw.argmax(axis=1)] += 256 - weights.sum(axis=1)
    result: npt.NDArray[np.float64] = weights.astype(np.float64)
    return result
