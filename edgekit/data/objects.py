"""What the adapters of boxes and masks have in common: options, folders, names of classes."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.base.text import visible
from edgekit.data import decode, mask_files
from edgekit.data.annotated import Annotated
from edgekit.data.source import Entry, file_error, some

#: Options of every kind of boxes.
OPTIONS = ("background", "exif", "unknown")
#: Bytes of an annotation of one picture, at most.
MAX_TEXT = 16 << 20
_SPLIT = re.compile(r"[\w.-]+", re.ASCII)


def frame_of(place: str, options: Mapping[str, str]) -> Literal["upright", "stored"]:
    """The ``exif`` option: which picture boxes lie in where nothing else says it.

    Raises:
        InvalidOptionError: If it is unknown.
    """
    frame = options.get("exif", "upright")
    words.one_of(f"{place}: exif as", frame, ("upright", "stored"))
    return cast(Literal["upright", "stored"], frame)


def drops_unknown(place: str, options: Mapping[str, str]) -> bool:
    """The ``unknown`` option: whether classes that a model does not know are left out.

    Raises:
        InvalidOptionError: If it is unknown.
    """
    choice = options.get("unknown", "refuse")
    words.one_of(f"{place}: unknown as", choice, ("refuse", "drop"))
    return choice == "drop"


def split_of(place: str, options: Mapping[str, str]) -> str | None:
    """The ``split`` option, the name of a list or folder.

    Raises:
        InvalidOptionError: If it is no plain name.
    """
    split = options.get("split")
    if split is not None and (not _SPLIT.fullmatch(split) or set(split) == {"."}):
        raise InvalidOptionError(f"{place}: expected split as a name, e.g. train, got {split!r}")
    return split


def folder(place: str, what: str) -> Path:
    """A folder that has to be there.

    Raises:
        InvalidDataError: If it is not.
    """
    root = Path(place)
    if not root.is_dir():
        problem = f"{place} is a file" if root.exists() else words.not_found(root)
        raise InvalidDataError(f"{problem}; expected {what}")
    return root


def inside(name: str) -> bool:
    """Whether a path in a file stays in the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(
        name
        and len(name) <= 1000
        and all(len(part.encode("utf-8", "replace")) <= 255 for part in path.parts)
        and "\0" not in name
        and "\\" not in name
        and not path.is_absolute()
        and ".." not in path.parts
    )


def files(root: Path) -> list[str]:
    """Names of the files right in a folder, without those that start with a dot; unsorted.

    Raises:
        InvalidDataError: If it cannot be listed.
    """
    try:
        with os.scandir(root) as children:
            return [each.name for each in children if each.name[0] != "." and not each.is_dir()]
    except OSError as exc:
        raise file_error(visible(str(root)), exc) from None


def pictures(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Pictures among the files of a folder, by their names without suffix.

    Raises:
        InvalidDataError: If two differ in their suffix only.
    """
    by_stem: dict[str, str] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in decode.SUFFIXES:
            continue
        if stem in by_stem:
            raise InvalidDataError(
                f"{root}: {visible(by_stem[stem])} and {visible(name)} have one annotation; "
                f"rename or remove one"
            )
        by_stem[stem] = name
    return by_stem


def shuffled(names: Sequence[str]) -> list[str]:
    """In the order of their sha256: the first N are a fair draw, the same on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())


def text(path: Path, most: int = MAX_TEXT) -> str:
    """A text file in UTF-8.

    Raises:
        InvalidDataError: If it cannot be read, is no such text, or is too large.
    """
    return decoded_text(path, read(path, most))


def read(path: Path, most: int = MAX_TEXT) -> bytes:
    """Bytes of a file.

    Raises:
        InvalidDataError: If it cannot be read or has more bytes than ``most``.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(most + 1)
    except OSError as exc:
        raise file_error(visible(str(path)), exc) from None
    if len(content) > most:
        raise InvalidDataError(f"{visible(str(path))}: more than {most >> 20} MiB")
    return content


def decoded_text(path: Path, content: bytes) -> str:
    """Text in UTF-8, with or without a byte order mark.

    Raises:
        InvalidDataError: If it is none.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidDataError(f"{visible(str(path))} is not UTF-8: {exc.reason}") from None


def listed(path: Path) -> list[str]:
    """The first word of each line of a list of pictures, without doubles.

    Raises:
        InvalidDataError: If one is no name of a file in a folder.
    """
    names = [line.split()[0] for line in text(path, 1 << 28).splitlines() if line.strip()]
    for name in names:
        if not inside(name):
            raise InvalidDataError(
                f"{visible(str(path))}: {visible(name)} leads out of the folder; expected names"
            )
    return list(dict.fromkeys(names))


def class_lines(path: Path) -> tuple[str, ...]:
    """Names of classes, a line each.

    Raises:
        InvalidDataError: If there is none, or one is there twice.
    """
    names = tuple(line.strip() for line in text(path).splitlines())
    while names and not names[-1]:
        names = names[:-1]
    return checked_names(path, names)


def checked_names(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes as they are.

    Raises:
        InvalidDataError: If there is none, one is empty, or one is there twice.
    """
    if not names or not all(names):
        raise InvalidDataError(f"{visible(str(path))}: expected a name for each class")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InvalidDataError(
            f"{visible(str(path))}: class {visible(name)} is there {count} times"
        )
    return names


def counted(names: Sequence[str], sentence: str) -> list[str]:
    """A warning that starts with a count and ends with the first names; none for none."""
    if not names:
        return []
    return [f"{len(names)} {sentence}: {some([visible(name) for name in names])}"]


def entries_of(
    root: Path,
    paths: Sequence[str],
    annotated: Annotated | None,
    masks: Sequence[Path] | None,
    chosen: npt.NDArray[np.int64] | None,
) -> Iterator[Entry]:
    """Pictures below a folder with what annotations say about them."""
    for i in range(len(paths)) if chosen is None else chosen.tolist():
        yield Entry(
            paths[i],
            partial(decode.read, root / paths[i]),
            None,
            None if annotated is None else annotated.size(i),
            None if masks is None else partial(mask_files.read, masks[i]),
        )


def below(root: Path) -> list[str]:
    """Files in a folder and in the folders right in it, as paths below it.

    Raises:
        InvalidDataError: If a folder cannot be listed.
    """
    try:
        with os.scandir(root) as children:
            folders = sorted(
                each.name for each in children if each.is_dir() and each.name[0] != "."
            )
    except OSError as exc:
        raise file_error(visible(str(root)), exc) from None
    paths = files(root)
    for name in folders:
        paths += [f"{name}/{each}" for each in files(root / name)]
    return paths
