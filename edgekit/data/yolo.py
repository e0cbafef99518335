"""``yolo:DIR``: boxes in text files, one a picture, as YOLO's tools write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from edgekit.base import words
from edgekit.base.errors import InvalidDataError
from edgekit.base.text import visible
from edgekit.data import objects
from edgekit.data.annotated import Annotated, built
from edgekit.data.images import Split
from edgekit.data.source import Source, some

_CLASSES = ("data.yaml", "classes.txt", "labels/classes.txt")
_LINE = "class, centre x, centre y, width, height as parts of the picture"
#: Class numbers, at most.
MAX_CLASSES = 100_000


class Yolo:
    """``DIR/images`` and ``DIR/labels``, or one folder with both.

    A line of a text file is a box: class number from 0, centre x, centre y, width and height as
    parts of the upright picture's. A picture without a text file shows no object. ``#split=train``
    takes ``images/train`` with ``labels/train``, or ``train/images`` with ``train/labels``. Names
    of classes are in ``data.yaml`` or ``classes.txt``; ``#classes=FILE`` names another file.
    Pictures come in the order of the sha256 of their names.
    """

    options: tuple[str, ...] = (*objects.OPTIONS, "split", "classes")

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """List pictures and read their labels.

        Raises:
            InvalidDataError: If it is no such folder, or no picture has a label.
        """
        root = objects.folder(place, "a folder with images and labels")
        frame, drop = objects.frame_of(place, options), objects.drops_unknown(place, options)
        part = objects.split_of(place, options)
        pictures_in, labels_in = _folders(root, part)
        names = class_names(root, options.get("classes"), _CLASSES)
        listed = objects.below(pictures_in)
        pictures = objects.pictures(pictures_in, listed)
        texts = {
            each[:-4]
            for each in (listed if labels_in == pictures_in else objects.below(labels_in))
            if each.endswith(".txt") and each.rpartition("/")[2] != "classes.txt"
        }
        warnings: list[str] = []
        parts = sorted({path.partition("/")[0] for path in pictures if "/" in path})
        if parts and part is None:
            warnings.append(
                f"all {len(pictures)} pictures are taken; #split={'|'.join(parts[:6])} takes those "
                f"of a folder"
            )
        warnings += objects.counted(
            sorted(texts - set(pictures)), "label files have no picture and are left out"
        )
        warnings += objects.counted(
            [each for each in objects.shuffled(list(pictures)) if each not in texts],
            "pictures have no label file and count as pictures without objects",
        )
        kept, rows, broken = [], [], []
        for stem in objects.shuffled(list(pictures)):
            try:
                read = _read(labels_in / f"{stem}.txt") if stem in texts else []
            except InvalidDataError as exc:
                broken.append(str(exc))
                continue
            kept.append(pictures[stem])
            rows.append(read)
        if broken:
            warnings.append(
                f"{len(broken)} label files cannot be read; their pictures are left out: "
                f"{some(broken)}"
            )
        if not kept:
            first = f"; {broken[0]}" if broken else ""
            raise InvalidDataError(f"{place}: expected pictures in {pictures_in}, got none{first}")
        values = np.array([row for each in rows for row in each], np.float64).reshape(-1, 5)
        if labels and not len(values):
            raise InvalidDataError(
                f"{place}: none of {len(kept)} pictures has a box; expected lines of {_LINE} in "
                f"{labels_in}/NAME.txt"
            )
        counts = np.array([len(each) for each in rows], np.int64)
        beyond = values[:, 0] >= len(names or range(MAX_CLASSES))
        if beyond.any():
            if not drop:
                raise InvalidDataError(
                    f"{place}: {int(beyond.sum())} boxes have a class number of "
                    f"{int(values[beyond][0, 0])} or so, the names end at {len(names) - 1}; add "
                    f"names, or pass #unknown=drop to leave such objects out"
                )
            warnings.append(f"{int(beyond.sum())} boxes have no class name and are left out")
            pictures_of = np.repeat(np.arange(len(counts)), counts)[~beyond]
            counts, values = np.bincount(pictures_of, minlength=len(counts)), values[~beyond]
        corners = np.concatenate(
            [values[:, 1:3] - values[:, 3:5] / 2, values[:, 1:3] + values[:, 3:5] / 2], axis=1
        )
        boxes = built(
            counts,
            corners.astype(np.float32),
            values[:, 0].astype(np.int32),
            np.zeros(len(values), np.bool_),
        )
        sizes = np.zeros((len(kept), 2), np.int32)
        annotated = Annotated(boxes, sizes, relative=True, frame=frame)
        return Source(
            root.resolve().name + (f"/{part}" if part else ""),
            partial(objects.entries_of, pictures_in, kept, annotated, None),
            None,
            names,
            len(kept),
            tuple(warnings),
            objects=annotated,
            drop_unknown=drop,
        )


def _folders(root: Path, part: str | None) -> tuple[Path, Path]:
    """Where pictures and where labels are."""
    if part is None:
        pairs = [(root / "images", root / "labels")]
    else:
        pairs = [
            (root / "images" / part, root / "labels" / part),
            (root / part / "images", root / part / "labels"),
        ]
    for pictures_in, labels_in in pairs:
        if pictures_in.is_dir():
            return pictures_in, objects.folder(str(labels_in), "its labels there")
    parts = sorted(each.parent.name for each in root.glob("*/images") if each.is_dir())
    if part is None and parts:
        raise InvalidDataError(f"{root}: has parts; pass #split={'|'.join(parts[:6])}")
    if part is not None:
        raise InvalidDataError(
            f"{root}: expected images/{part} with labels/{part}, or {part}/images with "
            f"{part}/labels, got neither"
        )
    return root, root


def _read(path: Path) -> list[tuple[float, ...]]:
    boxes = []
    for number, line in enumerate(objects.text(path).splitlines(), 1):
        numbers = line.split()
        if not numbers:
            continue
        try:
            values = tuple(float(each) for each in numbers)
        except ValueError:
            values = ()
        fits = len(values) == 5 and re.fullmatch(r"[0-9]{1,9}", numbers[0])
        if not fits or not all(abs(each) <= 2 for each in values[1:]):
            more = ""
            if len(values) > 5:
                more = " (polygons are not read; write their boxes)"
            raise InvalidDataError(
                f"{visible(str(path))}: line {number}: expected {_LINE}, got "
                f"{visible(line[:60])!r}{more}"
            )
        boxes.append(values)
    return boxes


def class_names(root: Path, named: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes, from a file that an option names or that lies in its usual place.

    Raises:
        InvalidDataError: If the file is missing or holds no names.
    """
    if named is not None and not Path(named).is_file():
        raise InvalidDataError(f"{words.not_found(Path(named))}; see #classes=FILE")
    places = [root / each for each in usual] if named is None else [Path(named)]
    for path in places:
        if path.is_file():
            yaml = path.suffix.lower() in (".yaml", ".yml")
            return yaml_names(path) if yaml else objects.class_lines(path)
    return ()


def yaml_names(path: Path) -> tuple[str, ...]:
    """The list ``names`` of a YAML file, as YOLO's tools write it; nothing else is read.

    A list, ``[a, b]`` or ``- a`` a line, or numbers from 0 with a name each, ``0: a``.

    Raises:
        InvalidDataError: If it is written in another way.
    """
    lines = objects.text(path).splitlines()
    start = [i for i, line in enumerate(lines) if re.match(r"names\s*:", line)]
    problem = InvalidDataError(
        f"{visible(str(path))}: expected names as a list, [a, b] or '- a' a line, or as '0: a' a "
        f"line; or write classes.txt with a name a line"
    )
    if len(start) != 1:
        raise problem
    rest = lines[start[0]].partition(":")[2].strip()
    if rest.startswith(("[", "{")):
        content = "\n".join([rest, *lines[start[0] + 1 :]])
        items = _flow(content)
    elif not rest or rest.startswith("#"):
        items = []
        for line in lines[start[0] + 1 :]:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not re.match(r"\s+\S|-\s", line):
                break
            items.append(line.strip().removeprefix("- ") if "- " in line[:20] else line.strip())
    else:
        raise problem
    if items is None or not items:
        raise problem
    keyed = [re.fullmatch(r"([0-9]{1,6})\s*:\s+(.*)", item, re.S) for item in items]
    if any(keyed):
        numbers = [int(each.group(1)) if each else -1 for each in keyed]
        if numbers != list(range(len(items))):
            raise problem
        items = [each.group(2) for each in keyed if each]
    names = [_scalar(item) for item in items]
    if any(name is None for name in names):
        raise problem
    return objects.checked_names(path, tuple(name or "" for name in names))


_ITEM = re.compile(
    r"""\s*((?:[0-9]{1,6}\s*:\s+)?(?:'(?:[^']|'')*'|"[^"\\]*"|[^\s,\[\]{}'"#&*!|>%@`][^,\[\]{}]*?))\s*([,\]}])"""
)


def _flow(content: str) -> list[str] | None:
    """Items of ``[a, 'b']`` or ``{0: a}``; None if it is anything else."""
    close = {"[": "]", "{": "}"}[content[0]]
    items: list[str] = []
    at = 1
    while True:
        if re.match(r"\s*" + re.escape(close), content[at:]):  # after a last comma
            return items
        match = _ITEM.match(content, at)
        if match is None:
            return None
        items.append(match.group(1))
        at = match.end()
        if match.group(2) == close:
            return items
        if match.group(2) != ",":
            return None


def _scalar(item: str) -> str | None:
    """A plain or quoted name; None for what YAML would read as anything else."""
    item = item.strip()
    if re.fullmatch(r"'(?:[^']|'')*'", item):
        return item[1:-1].replace("''", "'")
    if re.fullmatch(r'"[^"\\]*"', item):
        return item[1:-1]
    item = re.split(r"\s#", item)[0].strip()
    plain = re.fullmatch(r"""[^\s\[\]{},'"#&*!|>%@`?:-][^\[\]{}\n]*""", item)
    return None if not plain or ": " in item else item
