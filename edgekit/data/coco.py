"""``coco:FILE.json``: boxes of many pictures in one JSON file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import InvalidDataError, reason
from edgekit.base.text import visible
from edgekit.data import objects
from edgekit.data.annotated import Annotated, built
from edgekit.data.images import Split
from edgekit.data.source import Source, some

#: Bytes of a file, at most.
MAX_FILE = 4 << 30
#: Category ids, at most, where they are class numbers.
MAX_CLASSES = 100_000
#: 2^63, beyond which an id fits no array.
_LARGEST = 1 << 63


class Coco:
    """``images``, ``annotations`` and ``categories``; pictures lie beside the file.

    ``#images=DIR`` says where pictures are. Classes are numbered in the order of their ids; with
    ``#first_label=N`` a class number is the id less N, for models that count so. Polygons are not
    read. Pictures come in the order of the file.
    """

    options: tuple[str, ...] = (*objects.OPTIONS, "images", "first_label")

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """Read the file, and see which of its pictures are there.

        Raises:
            InvalidDataError: If it is no such file, or none of its pictures is there.
        """
        path = Path(place)
        frame, drop = objects.frame_of(place, options), objects.drops_unknown(place, options)
        first = words.integer(place, dict(options), "first_label", least=0)
        folder = Path(options["images"]) if "images" in options else path.parent
        if not folder.is_dir():
            raise InvalidDataError(f"{place}: {words.not_found(folder)}; see #images=DIR")
        data = _parsed(path)
        warnings: list[str] = []
        pictures = _Pictures.of(place, data["images"])
        there = _there(folder, pictures.names)
        if not there.any():
            raise InvalidDataError(
                f"{place}: none of its {len(there)} pictures is in {folder}, as "
                f"{visible(pictures.names[0])}; pass #images=DIR{_guess(path, pictures.names[0])}"
            )
        missing = [pictures.names[i] for i in np.flatnonzero(~there).tolist()]
        warnings += objects.counted(missing, f"pictures are not in {folder} and are left out")
        table, names = _categories(place, data["categories"], first)
        annotated = _boxes(place, data["annotations"], pictures, table, drop, warnings)
        if labels and not len(annotated.boxes.classes):
            raise InvalidDataError(f"{place}: has no box; expected annotations with bbox")
        kept = np.flatnonzero(there)
        annotated = Annotated(annotated.boxes.take(kept), annotated.sizes[kept], frame=frame)
        paths = [pictures.names[i] for i in kept.tolist()]
        return Source(
            path.name,
            partial(objects.entries_of, folder, paths, annotated, None),
            None,
            names,
            len(paths),
            tuple(warnings),
            objects=annotated,
            drop_unknown=drop,
        )


def _parsed(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists."""
    if not path.is_file():
        problem = f"{path} is a folder" if path.is_dir() else words.not_found(path)
        raise InvalidDataError(f"{problem}; expected a JSON file of COCO")
    try:
        data = json.loads(objects.read(path, MAX_FILE), object_hook=_lean, parse_constant=_refused)
    except (ValueError, RecursionError, MemoryError) as exc:
        raise InvalidDataError(f"{path} is not valid JSON: {reason(exc)}") from None
    if isinstance(data, list):
        what = "a list of results" if _has(data, "score") else "a list"
        raise InvalidDataError(
            f"{path}: expected an object with images, annotations and categories, got {what}"
        )
    if not isinstance(data, dict):
        raise InvalidDataError(f"{path}: expected an object with images, annotations, categories")
    notes = data.get("annotations")
    if isinstance(notes, list) and _has(notes, "caption") and not _has(notes, "bbox"):
        raise InvalidDataError(f"{path}: holds captions; expected boxes, as instances_*.json has")
    if isinstance(notes, list) and _has(notes, "segments_info"):
        raise InvalidDataError(
            f"{path}: holds panoptic segments; expected boxes, as instances_*.json has"
        )
    for key in ("images", "annotations", "categories"):
        items = data.get(key)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            there = ", ".join(map(visible, list(data)[:6])) or "nothing"
            raise InvalidDataError(
                f"{path}: expected images, annotations and categories as lists of objects, got "
                f"{there}, of which {key} is none"
            )
    if not data["images"]:
        raise InvalidDataError(f"{path}: the set is empty; expected at least one image")
    return data


def _lean(members: dict[str, Any]) -> dict[str, Any]:
    """Without polygons and key points, most of a file, which are never read."""
    for key in ("segmentation", "keypoints"):
        if key in members:
            del members[key]
    return members


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


def _has(items: Sequence[Any], key: str) -> bool:
    return bool(items) and isinstance(items[0], dict) and key in items[0]


class _Pictures:
    """The list of pictures.

    Attributes:
        names: Paths below the folder.
        ids: int64 ``[N]``.
        sizes: int32 ``[N, 2]``: height and width, 0 where they are not said.
    """

    def __init__(
        self, names: list[str], ids: npt.NDArray[np.int64], sizes: npt.NDArray[np.int32]
    ) -> None:
        self.names, self.ids, self.sizes = names, ids, sizes

    @classmethod
    def of(cls, place: str, items: list[dict[str, Any]]) -> _Pictures:
        """Check the list ``images``."""
        ids = _integers(place, "images", items, "id")
        doubled = _doubled(ids)
        if len(doubled):
            raise InvalidDataError(
                f"{place}: {len(doubled)} ids of images are there twice, {doubled[0]} the first; "
                f"expected an id for each"
            )
        names = [item.get("file_name") for item in items]
        for i, name in enumerate(names):
            if not isinstance(name, str) or not objects.inside(name):
                raise InvalidDataError(
                    f"{place}: image {ids[i]}: expected file_name as a path below the folder of "
                    f"pictures, got {visible(str(name)[:80])!r}"
                )
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise InvalidDataError(
                f"{place}: picture {visible(str(name))} is there {count} times; expected one image "
                f"for each"
            )
        sizes = np.zeros((len(items), 2), np.int32)
        for i, item in enumerate(items):
            size = item.get("height", 0), item.get("width", 0)
            if not all(type(each) is int and 0 <= each < 10_000_000 for each in size):
                raise InvalidDataError(
                    f"{place}: image {ids[i]}: expected height and width as integers, got {size}"
                )
            sizes[i] = size
        return cls([str(name) for name in names], ids, sizes)


def _integers(
    place: str, what: str, items: list[dict[str, Any]], key: str
) -> npt.NDArray[np.int64]:
    values = [item.get(key) for item in items]
    for i, value in enumerate(values):
        if type(value) is not int or not -_LARGEST <= value < _LARGEST:
            raise InvalidDataError(
                f"{place}: {what}[{i}]: expected {key} as an integer, got "
                f"{visible(str(value)[:40])}"
            )
    return np.array(values, np.int64)


def _doubled(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    values, counts = np.unique(ids, return_counts=True)
    return values[counts > 1]


def _there(folder: Path, names: list[str]) -> npt.NDArray[np.bool_]:
    """Which pictures are files; each folder is listed once."""
    listed: dict[Path, set[str]] = {}
    there = np.zeros(len(names), np.bool_)
    for i, name in enumerate(names):
        path = folder / name
        if path.parent not in listed:
            listed[path.parent] = set(objects.files(path.parent)) if path.parent.is_dir() else set()
        there[i] = path.name in listed[path.parent]
    return there


def _guess(path: Path, name: str) -> str:
    """A folder near the file that has its first picture."""
    for base in (path.parent, path.parent.parent):
        if not base.is_dir():
            continue
        for folder in sorted(each for each in base.iterdir() if each.is_dir()):
            if (folder / name).is_file():
                return f"; did you mean #images={folder}?"
    return ""


def _categories(
    place: str, items: list[dict[str, Any]], first: int | None
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Class number by id, and the name of each number."""
    ids = _integers(place, "categories", items, "id")
    if not len(ids):
        raise InvalidDataError(f"{place}: has no categories; expected at least one")
    doubled = _doubled(ids)
    if len(doubled):
        raise InvalidDataError(f"{place}: the category id {doubled[0]} is there twice")
    names = {}
    for i, item in zip(ids.tolist(), items, strict=True):
        name = item.get("name")
        if not isinstance(name, str) or not name.strip():
            raise InvalidDataError(f"{place}: category {i}: expected a name, got {name!r}")
        names[i] = name.strip()
    ordered = sorted(names)
    if first is None:
        table = {i: number for number, i in enumerate(ordered)}
        return table, objects.checked_names(Path(place), tuple(names[i] for i in ordered))
    if ordered[0] < first or ordered[-1] - first >= MAX_CLASSES:
        raise InvalidDataError(
            f"{place}: expected category ids from {first} to {first + MAX_CLASSES - 1}, got "
            f"{ordered[0]} to {ordered[-1]}; leave first_label out to number them in order"
        )
    every = range(first, ordered[-1] + 1)
    return {i: i - first for i in ordered}, tuple(names.get(i, f"({i})") for i in every)


def _boxes(
    place: str,
    items: list[dict[str, Any]],
    pictures: _Pictures,
    table: dict[int, int],
    drop: bool,
    warnings: list[str],
) -> Annotated:
    images = _integers(place, "annotations", items, "image_id")
    kinds = _integers(place, "annotations", items, "category_id")
    corners = _corners(place, items)
    crowd = np.array([bool(item.get("iscrowd", 0)) for item in items], np.bool_)
    areas = _areas(place, items, corners)
    keep = np.ones(len(items), np.bool_)

    def leave(wrong: npt.NDArray[np.bool_], what: str, values: npt.NDArray[np.int64]) -> None:
        wrong = wrong & keep
        if wrong.any():
            shown = some([str(each) for each in dict.fromkeys(values[wrong].tolist())])
            warnings.append(f"{int(wrong.sum())} annotations {what} and are left out: {shown}")
            keep[wrong] = False

    order = np.argsort(pictures.ids, kind="stable")
    at = np.searchsorted(pictures.ids[order], images).clip(0, len(order) - 1)
    rows = order[at]
    leave(pictures.ids[rows] != images, "are of image ids that are not there", images)
    known = np.array(sorted(table), np.int64)
    at = np.searchsorted(known, kinds).clip(0, len(known) - 1)
    strange = (known[at] != kinds) & keep
    if strange.any() and not drop:
        raise InvalidDataError(
            f"{place}: {int(strange.sum())} annotations have category ids that are not among its "
            f"categories, {kinds[strange][0]} the first; add them, or pass #unknown=drop to leave "
            f"such objects out"
        )
    leave(strange, "have category ids that are not there", kinds)
    if all(type(item.get("id")) is int and abs(item["id"]) < _LARGEST for item in items):
        ids = np.array([item["id"] for item in items], np.int64)
        repeated = np.ones(len(ids), np.bool_)
        repeated[np.unique(ids, return_index=True)[1]] = False
        leave(repeated, "have an id that an earlier one has", ids)
    classes = np.array([table[i] for i in known.tolist()], np.int32)[at]
    order = np.argsort(rows, kind="stable")
    order = order[keep[order]]
    boxes = built(
        np.bincount(rows[order], minlength=len(pictures.ids)),
        corners[order],
        classes[order],
        crowd[order],
        None if areas is None else areas[order],
    )
    return Annotated(boxes, pictures.sizes)


def _corners(place: str, items: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """left, top, right, bottom of ``bbox``, which is left, top, width, height."""
    boxes = [item.get("bbox") for item in items]
    for i, box in enumerate(boxes):
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(type(each) in (int, float) and abs(each) < 1e7 for each in box)
        ):
            raise InvalidDataError(
                f"{place}: annotations[{i}]: expected bbox as [left, top, width, height] in "
                f"pixels, got {visible(str(box)[:60])}"
            )
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners.astype(np.float32)


def _areas(
    place: str, items: list[dict[str, Any]], corners: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32] | None:
    """``area``; that of the box where there is none; None where there is none at all."""
    values = [item.get("area") for item in items]
    if all(value is None for value in values):
        return None
    for i, value in enumerate(values):
        if value is not None and not (type(value) in (int, float) and 0 <= value < 1e14):
            raise InvalidDataError(
                f"{place}: annotations[{i}]: expected area in pixels, got "
                f"{visible(str(value)[:40])}"
            )
    own = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    missing = np.array([value is None for value in values], np.bool_)
    given = np.array([0 if value is None else value for value in values], np.float32)
    return np.where(missing, own, given).astype(np.float32)
