"""``csv:FILE``: a table of paths and labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import InvalidDataError
from edgekit.data import decode
from edgekit.data.images import Split
from edgekit.data.source import Entry, Source, file_error


class Csv:
    """A header with ``path`` and ``label``, a line a picture; other columns are not read.

    Paths are relative to the file. Labels are numbers from ``first_label`` (0) on, or class names.
    Pictures come in the order of the lines.
    """

    options: tuple[str, ...] = ("background", "first_label")

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """Read the table.

        Raises:
            InvalidDataError: If it is no such table.
        """
        first = words.integer(place, dict(options), "first_label", least=-1000) or 0
        paths, texts = _rows(Path(place), labels=labels)
        known, names = (None, ()) if texts is None else _numbered(place, texts, first)

        def entries(chosen: npt.NDArray[np.int64] | None) -> Iterator[Entry]:
            for i in range(len(paths)) if chosen is None else chosen.tolist():
                label = None if known is None else int(known[i])
                full = Path(place).parent / paths[i]
                yield Entry(paths[i], partial(decode.read, full), label)

        return Source(Path(place).name, entries, known, names, len(paths))


def _rows(path: Path, *, labels: bool) -> tuple[list[str], list[str] | None]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            missing = [
                each for each in ("path", *(["label"] if labels else [])) if each not in columns
            ]
            if missing:
                raise InvalidDataError(
                    f"{path}: expected a header with path and label, got "
                    f"{', '.join(columns) or 'nothing'}"
                )
            paths, texts = [], []
            for row in reader:
                if not row["path"] or ("label" in columns and not row["label"]):
                    raise InvalidDataError(
                        f"{path}: line {reader.line_num} lacks a path or a label"
                    )
                if "\0" in row["path"]:
                    raise InvalidDataError(f"{path}: line {reader.line_num} has a broken path")
                paths.append(row["path"])
                texts.append(row.get("label", ""))
    except OSError as exc:
        raise file_error(path, exc) from None
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidDataError(f"{path} is not a CSV table in UTF-8: {exc}") from None
    if not paths:
        raise InvalidDataError(f"{path}: the table is empty; expected one line for each picture")
    return paths, texts if "label" in columns else None


def _numbered(
    place: str, texts: list[str], first: int
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Numbers, or names and their places in the sorted list of names."""
    try:
        labels = np.array([int(text) for text in texts], np.int64) - first
    except (ValueError, OverflowError):
        if first:
            raise InvalidDataError(
                f"{place}: first_label is for numbers, the labels are names"
            ) from None
        names, numbers = np.unique(np.array(texts), return_inverse=True)
        return numbers.astype(np.int64), tuple(names.tolist())
    return checked(place, labels, first), ()


def checked(place: str, labels: npt.NDArray[np.int64], first: int) -> npt.NDArray[np.int64]:
    """Labels that count from 0, none below.

    Raises:
        InvalidDataError: If one is.
    """
    if len(labels) and int(labels.min()) < 0:
        raise InvalidDataError(
            f"{place}: label {int(labels.min()) + first} is below the first label, {first}; pass "
            f"#first_label={int(labels.min()) + first} if that is the first class"
        )
    return labels
