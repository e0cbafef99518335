"""``folder:DIR``: a folder of class folders with pictures, or of pictures without labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import InvalidDataError
from edgekit.base.text import visible
from edgekit.data import decode
from edgekit.data.images import Split
from edgekit.data.source import Entry, Source, file_error, some


class Folder:
    """``DIR/CLASS/**/PICTURE``.

    Classes are the folders right below ``DIR``. Names that start with a dot are passed over; links
    are followed. Pictures come in the order of the sha256 of their paths below ``DIR``, so that the
    first N are a fair draw from all classes, and the same ones on every machine.
    """

    options: tuple[str, ...] = ("background",)

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """List the files.

        Raises:
            InvalidDataError: If it is not a folder of pictures; where labels are needed, if there
                are not two classes at least; if a link leads back up.
        """
        root = Path(place)
        if not root.is_dir():
            problem = f"{place} is a file" if root.exists() else words.not_found(root)
            raise InvalidDataError(f"{problem}; expected a folder of class folders")
        _refuse_objects(root, labels=labels)
        below, beside, skipped = _scan(root)
        loose = [path for path in beside if _is_picture(path)]
        skipped += [path for path in beside if not _is_picture(path)]
        unlabelled = bool(loose) and not below and not labels
        names = tuple(sorted(below))
        if unlabelled:
            below, names = {"": loose}, ("",)
        elif loose:
            skipped += loose
        if not below:
            what = f", {len(skipped)} files but no class folder" if skipped else ""
            raise InvalidDataError(
                f"{place}: expected class folders with pictures ({', '.join(decode.SUFFIXES[:6])}, "
                f"…), got none{what}"
            )
        if len(names) < 2 and labels:
            raise InvalidDataError(
                f"{place}: expected at least 2 class folders with pictures, got only {names[0]!r}"
            )
        rows = [(path, label) for label, name in enumerate(names) for path in below[name]]
        rows.sort(key=lambda row: hashlib.sha256(os.fsencode(row[0])).digest())
        paths = [path for path, _ in rows]
        known = None if unlabelled else np.array([label for _, label in rows], np.int64)

        def entries(chosen: npt.NDArray[np.int64] | None) -> Iterator[Entry]:
            for i in range(len(paths)) if chosen is None else chosen.tolist():
                label = None if known is None else int(known[i])
                yield Entry(paths[i], partial(decode.read, root / paths[i]), label)

        warnings = []
        if skipped:
            shown = some([visible(path) for path in sorted(skipped)])
            warnings.append(
                f"{len(skipped)} files are not pictures in a class folder and are left out: {shown}"
            )
        return Source(
            root.resolve().name or str(root),
            entries,
            known,
            () if unlabelled else names,
            len(paths),
            tuple(warnings),
            tuple(sorted(skipped)),
        )


#: Folders of sets with boxes or masks, and the word that reads them.
_OBJECTS = (
    ("voc", ("JPEGImages", "Annotations")),
    ("masks", ("JPEGImages", "SegmentationClass")),
    ("masks", ("images", "masks")),
    ("yolo", ("images", "labels")),
)


def _refuse_objects(root: Path, *, labels: bool) -> None:
    """Refuse a folder whose folders are no classes.

    Pictures beside annotations that are none can be taken without labels.

    Raises:
        InvalidDataError: If it is one.
    """
    for word, names in _OBJECTS:
        if all((root / name).is_dir() for name in names) and (labels or word == "masks"):
            raise InvalidDataError(
                f"{root}: expected a folder for each class, got {' and '.join(names)}; pass it as "
                f"{word}:{root}"
            )


def _is_picture(path: str) -> bool:
    return path.lower().endswith(decode.SUFFIXES)


def _scan(root: Path) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Pictures by class folder, files right below, other files; paths are relative to ``root``."""
    pictures: dict[str, list[str]] = {}
    beside: list[str] = []
    others: list[str] = []
    for path, readable in _walk(root, "", ()):
        name, slash, _ = path.partition("/")
        if not slash and readable:
            beside.append(path)
        elif slash and readable and _is_picture(path):
            pictures.setdefault(name, []).append(path)
        else:
            others.append(path)
    for name in pictures:
        if not _is_unicode(name):
            raise InvalidDataError(
                f"{root}: the name of class folder {visible(name)} is not UTF-8; rename it"
            )
    return pictures, beside, others


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(root: Path, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, bool]]:
    """What lies below a folder, and whether it is a file, if only a link that leads nowhere."""
    folder = root / below
    try:
        about = folder.stat()
        here = (about.st_dev, about.st_ino)
        if here in above:
            raise InvalidDataError(f"{visible(str(folder))} leads back to a folder above it")
        with os.scandir(folder) as children:
            listed = sorted(children, key=lambda each: each.name)
    except OSError as exc:
        raise file_error(visible(str(folder)), exc) from None
    for each in listed:
        if each.name.startswith("."):
            continue
        path = f"{below}/{each.name}" if below else each.name
        try:
            if each.is_dir():
                yield from _walk(root, path, (*above, here))
            else:
                dangling = each.is_symlink() and not os.path.exists(each.path)
                yield path, each.is_file() or dangling
        except OSError as exc:  # a link to itself
            raise file_error(visible(each.path), exc) from None
