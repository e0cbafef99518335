"""ImageSet: images, labels and their identity; from arrays and from ``.npz`` files."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.blocks import blocks
from edgekit.base.errors import InvalidDataError, reason
from edgekit.data.boxes import Boxes, Views
from edgekit.data.masks import VOID, Masks, Shifted, mask_digest

Split = Literal["train", "test", "calibration"]


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, in memory or memory-mapped.

    Attributes:
        name: As tables call it.
        images: uint8 ``[N, H, W, C]`` pixels, or float ``[N, ...]`` that is preprocessed already.
        labels: int64 ``[N]`` class indices, or None for a set without labels.
        class_names: One a class; empty when unknown.
        sha256: Of dtype, shape and bytes of images and labels.
        warnings: What is wrong with the set, a sentence each.
        truth: float32 ``[N, M]``, the right numbers of a regression, or None; never beside labels.
        boxes: The right boxes of each image, in pixels of its picture, or None; never beside
            labels.
        masks: The right class of each pixel, a mask a picture, or None; never beside labels.
        views: Which part of its picture each image shows; None where the images are the pictures.
    """

    name: str
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    sha256: str
    warnings: tuple[str, ...] = ()
    truth: npt.NDArray[np.float32] | None = None
    boxes: Boxes | None = None
    masks: Masks | None = None
    views: Views | None = None

    def __len__(self) -> int:
        return len(self.images)

    def head(self, limit: int | None) -> ImageSet:
        """The first ``limit`` images; the identity changes with the content."""
        if limit is None or limit >= len(self):
            return self
        return self._part(f"{self.name}[:{limit}]", slice(limit))

    def take(self, indices: npt.NDArray[np.int64]) -> ImageSet:
        """The images of these numbers, as a copy."""
        return self._part(f"{self.name}[{len(indices)} of {len(self)}]", indices)

    def _part(self, name: str, where: slice | npt.NDArray[np.int64]) -> ImageSet:
        right = self.labels if self.truth is None else self.truth
        right = None if right is None else right[where]
        numbers = self.truth is not None
        rows = np.arange(len(self))[where]
        return make(
            name,
            self.images[where],
            right,
            self.class_names,
            self.warnings,
            numbers=numbers,
            boxes=None if self.boxes is None else self.boxes.take(rows),
            masks=None if self.masks is None else self.masks.take(rows),
            views=None if self.views is None else self.views.take(rows),
        )

    def sample(self, count: int, seed: int) -> ImageSet:
        """Images drawn evenly over the classes, as a copy.

        See :func:`stratified`, and :func:`spread` where an image shows several classes.
        """
        if self.boxes is None and self.masks is None:
            drawn = stratified(self.name, self.labels, len(self), count, seed)
        else:
            drawn = spread(self.name, self.shown(), count, seed)
        return replace(self.take(drawn), name=sample_name(self.name, count, len(self), seed))

    def shown(self) -> npt.NDArray[np.bool_]:
        """bool ``[N, C]``: which classes each image shows, by its boxes or its mask."""
        if self.boxes is not None:
            return presence(self.boxes)
        assert self.masks is not None
        rows = np.zeros((len(self), VOID), np.bool_)
        for i in range(len(self)):
            values = np.unique(self.masks[i])
            rows[i, values[values != VOID]] = True
        return rows

    def offset(self, classes: int) -> ImageSet:
        """The same images with other classes: each number ``+ classes``; VOID stays."""
        if not classes or (self.labels is None and self.boxes is None and self.masks is None):
            return self
        names = self.class_names
        if names:
            names = ("background",) * max(classes, 0) + names[max(-classes, 0) :]
        boxes, masks = self.boxes, self.masks
        if boxes is not None:
            boxes = replace(boxes, classes=(boxes.classes + classes).astype(np.int32))
        if masks is not None:
            masks = Shifted(masks, classes)
        labels = None if self.labels is None else self.labels + classes
        return make(
            self.name,
            self.images,
            labels,
            names,
            self.warnings,
            boxes=boxes,
            masks=masks,
            views=self.views,
        )

    def named(self, class_names: tuple[str, ...]) -> ImageSet:
        """The same images with class names."""
        return replace(self, class_names=class_names)


def make(
    name: str,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
    class_names: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    *,
    numbers: bool = False,
    boxes: Boxes | None = None,
    masks: Masks | None = None,
    views: Views | None = None,
) -> ImageSet:
    """Check arrays and give them an identity.

    Args:
        name: As tables call it.
        images: As :attr:`ImageSet.images`.
        labels: Class indices ``[N]``; with ``numbers`` also the right numbers of a regression,
            ``[N, ...]``, floats or several a sample.
        class_names: One a class.
        warnings: What is wrong with the set, a sentence each.
        numbers: Take labels that are no classes as :attr:`ImageSet.truth`.
        boxes: As :attr:`ImageSet.boxes`.
        masks: As :attr:`ImageSet.masks`.
        views: As :attr:`ImageSet.views`; part of the identity where there are boxes or masks.

    Raises:
        InvalidDataError: If the arrays are empty, of a wrong dtype or rank, hold NaN or Inf, or
            images and labels, boxes, masks or views differ in number.
    """
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InvalidDataError(f"{name}: expected images as uint8 or float, got {images.dtype}")
    if images.ndim < 2:
        raise InvalidDataError(f"{name}: expected images [N, H, W, C], got shape {images.shape}")
    if len(images) == 0:
        raise InvalidDataError(f"{name}: the set is empty; expected at least one image")
    if np.issubdtype(images.dtype, np.floating):
        start = 0
        for (block,) in blocks(images):
            bad = ~np.isfinite(block)
            if bad.any():
                first = start + int(np.argwhere(bad)[0][0])
                raise InvalidDataError(
                    f"{name}: image {first} holds NaN or Inf; clean the data first"
                )
            start += len(block)
    classes = truth = None
    if labels is not None and numbers and is_truth(labels):
        truth = checked_truth(name, labels, len(images))
    elif labels is not None:
        classes = checked_labels(name, labels, len(images))
    for what, items in (("lists of boxes", boxes), ("masks", masks), ("views", views)):
        if items is not None and len(items) != len(images):
            raise InvalidDataError(f"{name}: {len(images)} images but {len(items)} {what}")
    if boxes is not None:
        _check_boxes(name, boxes)
    sha256 = _sha256(images, classes if truth is None else truth)
    if boxes is not None or masks is not None:
        sha256 = _with_objects(sha256, boxes, masks, views)
    return ImageSet(
        name, images, classes, class_names, sha256, warnings, truth, boxes, masks, views
    )


def _check_boxes(name: str, boxes: Boxes) -> None:
    bad = ~np.isfinite(boxes.corners).all(axis=1)
    if bad.any():
        image = int(boxes.pictures()[bad.argmax()])
        raise InvalidDataError(f"{name}: a box of image {image} holds NaN or Inf")
    if len(boxes.classes) and int(boxes.classes.min()) < 0:
        raise InvalidDataError(f"{name}: class {int(boxes.classes.min())} of a box is below 0")


def _with_objects(
    sha256: str, boxes: Boxes | None, masks: Masks | None, views: Views | None
) -> str:
    """The identity of images together with what is right about them."""
    digest = hashlib.sha256(sha256.encode())
    arrays: list[npt.NDArray[Any] | None] = []
    if boxes is not None:
        arrays += [boxes.offsets, boxes.corners, boxes.classes, boxes.crowd, boxes.areas]
    if views is not None:
        arrays += [views.regions, views.sizes]
    for array in arrays:
        digest.update(b"none" if array is None else f"{array.dtype.str}{array.shape}".encode())
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    if masks is not None:
        for i in range(len(masks)):
            digest.update(mask_digest(masks, i))
    return digest.hexdigest()


def sample_name(name: str, count: int, total: int, seed: int) -> str:
    """How tables call a sample."""
    return f"{name}[{count} of {total}, seed {seed}]"


def stratified(
    name: str, labels: npt.NDArray[np.int64] | None, total: int, count: int, seed: int
) -> npt.NDArray[np.int64]:
    """Numbers of images drawn without replacement, as many of each class as there are, in order.

    A class that has fewer than its share gives all it has, and the others share the rest. Without
    labels all images are one class.

    Raises:
        InvalidDataError: If there are fewer images than are asked for.
    """
    if count > total:
        raise InvalidDataError(f"{name}: expected at least {count} images to draw, got {total}")
    if labels is None:
        labels = np.zeros(total, np.int64)
    rng = np.random.default_rng(seed)
    _, counts = np.unique(labels, return_counts=True)
    quota = np.zeros(len(counts), np.int64)
    while (missing := count - int(quota.sum())) > 0:
        room = rng.permutation(np.flatnonzero(quota < counts))
        share = max(1, missing // len(room))
        room = room[: min(len(room), missing)]
        quota[room] = np.minimum(counts[room], quota[room] + share)
    grouped = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    drawn = [
        rng.choice(group, size, replace=False) for group, size in zip(grouped, quota, strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def presence(boxes: Boxes) -> npt.NDArray[np.bool_]:
    """bool ``[N, C]``: which classes each picture shows."""
    classes = int(boxes.classes.max()) + 1 if len(boxes.classes) else 0
    rows = np.zeros((len(boxes), classes), np.bool_)
    rows[boxes.pictures(), boxes.classes] = True
    return rows


def spread(name: str, shown: npt.NDArray[np.bool_], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of images drawn without replacement, evenly over classes of which each shows several.

    Images without any object count as a class of their own. Each time one of the class is drawn
    that has been drawn least so far, the rarest of them first; it counts for all classes that it
    shows. A class that has no image left is passed over.

    Args:
        name: Of the set.
        shown: bool ``[N, C]``, which classes each image shows.
        count: How many to draw.
        seed: Of the order in which the images of a class are drawn.

    Raises:
        InvalidDataError: If there are fewer images than are asked for.
    """
    total = len(shown)
    if count > total:
        raise InvalidDataError(f"{name}: expected at least {count} images to draw, got {total}")
    shown = np.concatenate([shown, ~shown.any(axis=1, keepdims=True)], axis=1)
    shown = shown[:, shown.any(axis=0)]
    shown = shown[:, np.argsort(shown.sum(axis=0), kind="stable")]
    order = np.random.default_rng(seed).permutation(total)
    waiting = [order[shown[order, c]].tolist()[::-1] for c in range(shown.shape[1])]
    drawn = np.zeros(total, np.bool_)
    times = np.zeros(shown.shape[1], np.float64)
    for _ in range(count):
        while True:
            least = int(times.argmin())
            while waiting[least] and drawn[waiting[least][-1]]:
                waiting[least].pop()
            if waiting[least]:
                break
            times[least] = np.inf
        image = waiting[least].pop()
        drawn[image] = True
        times += shown[image]
    return np.flatnonzero(drawn).astype(np.int64)


def load_npz(path: Path, *, labels: bool) -> ImageSet:
    """Read ``x`` (uint8 NHWC, or float that is preprocessed already) and ``y`` from an ``.npz``.

    Args:
        path: The file. Pickled arrays are refused.
        labels: Whether ``y`` is required, as classes.

    Raises:
        InvalidDataError: If the file is missing or is not such an archive.
    """
    if not path.is_file():
        raise InvalidDataError(
            f"{words.not_found(path)}; expected an .npz with x (images) and y (labels)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = [name.removesuffix(".npy") for name in archive.namelist()]
            missing = [key for key in ("x", *(["y"] if labels else [])) if key not in arrays]
            if missing:
                raise InvalidDataError(
                    f"{path} has {', '.join(arrays) or 'nothing'}, no array {missing[0]!r}; "
                    f"expected x (images) and y (labels)"
                )
            images = mapped(archive, "x.npy")
            classes = np.array(mapped(archive, "y.npy")) if "y" in arrays else None
    except BROKEN as exc:
        raise InvalidDataError(
            f"{path} is not a usable .npz: {reason(exc)}; save it with numpy.savez"
        ) from None
    return make(path.name, images, classes, numbers=not labels)


#: What reading a hostile archive of arrays raises.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RuntimeError,
    OSError,
    tokenize.TokenError,  # numpy's parser of array headers lets it through
)


def mapped(archive: zipfile.ZipFile, member: str) -> npt.NDArray[Any]:
    """Map one array of an archive, so that memory does not grow with the number of images.

    The member is unpacked to a temporary file, which lives as long as the array; on the way its
    CRC is checked. What is larger than its header says is not unpacked at all.

    Raises:
        ValueError: If it is no array, or one of pickled objects.
    """
    with archive.open(member) as packed, tempfile.TemporaryFile() as file:
        version = np.lib.format.read_magic(packed)
        if version not in _HEADERS:
            raise ValueError(f"{member} has the unknown array format {version}")
        shape, fortran_order, dtype = _HEADERS[version](packed)
        if dtype.hasobject:
            raise ValueError(f"{member} holds pickled objects, which are refused")
        if any(size < 0 for size in shape):
            raise ValueError(f"{member} has the shape {shape}")
        stored = archive.getinfo(member).file_size - packed.tell()
        expected = math.prod(map(int, shape)) * dtype.itemsize
        if stored != expected:
            raise ValueError(f"{member} has {stored:,} bytes of numbers, expected {expected:,}")
        if expected == 0:
            return np.empty(shape, dtype)
        shutil.copyfileobj(packed, file, 1 << 20)
        file.flush()
        order: Literal["F", "C"] = "F" if fortran_order else "C"
        return np.memmap(file, dtype, "r", shape=shape, order=order)


_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def is_truth(right: npt.NDArray[Any]) -> bool:
    """Whether labels are numbers, not classes: floats, or several per sample."""
    return right.dtype.kind == "f" or right.ndim > 1


def checked_labels(name: str, labels: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """Class indices ``[N]``, from 0.

    Raises:
        InvalidDataError: If they are none, or not as many as images.
    """
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise InvalidDataError(
            f"{name}: expected labels as integers [N], got {labels.dtype} {labels.shape}"
        )
    if len(labels) != count:
        raise InvalidDataError(f"{name}: {count} images but {len(labels)} labels")
    if int(labels.min()) < 0:
        raise InvalidDataError(f"{name}: label {int(labels.min())} is below 0")
    return labels.astype(np.int64, copy=False)


def checked_truth(name: str, truth: npt.NDArray[Any], count: int) -> npt.NDArray[np.float32]:
    """Right numbers ``[N, M]``, flattened.

    Raises:
        InvalidDataError: If they are no numbers, not finite, or not as many as images.
    """
    if truth.dtype.kind not in "fiub":
        raise InvalidDataError(f"{name}: expected y as numbers, got {truth.dtype}")
    if len(truth) != count:
        raise InvalidDataError(f"{name}: {count} images but {len(truth)} samples in y")
    numbers = truth.reshape(count, -1).astype(np.float32)
    bad = ~np.isfinite(numbers).all(axis=1)
    if bad.any():
        raise InvalidDataError(f"{name}: y of image {int(bad.argmax())} holds NaN or Inf")
    return numbers


def _sha256(images: npt.NDArray[Any], labels: npt.NDArray[Any] | None) -> str:
    digest = hashlib.sha256()
    for array in (images, labels):
        if array is None:
            digest.update(b"none")
            continue
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for (block,) in blocks(array):
            digest.update(np.ascontiguousarray(block).tobytes())
    return digest.hexdigest()
