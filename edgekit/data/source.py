"""Source: pictures that are not decoded yet, with labels; it becomes an ImageSet of a model's size.

Pictures are decoded in batches, on all cores, into a temporary file that is mapped into memory, so
that memory does not grow with their number. A picture that cannot be decoded is left out, counted
and named.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.base.progress import SILENT, Progress, Task
from edgekit.base.text import visible
from edgekit.data import decode, images
from edgekit.data.decode import Content, PictureError, Pixels
from edgekit.records import environment
from edgekit.records.signature import Preprocessing

BACKGROUNDS = ("white", "black", "grey")
#: What is named of a long list.
NAMED = 3
_BATCH = 64
_DIGEST = 16


@dataclass(frozen=True)
class Entry:
    """One picture that was not read yet.

    Attributes:
        where: To name it: a path, or a place in a file.
        content: Reads it; may raise PictureError.
        label: Class number as the source counts; None without labels.
    """

    where: str
    content: Callable[[], Content]
    label: int | None


@dataclass(frozen=True)
class Source:
    """Pictures of any size.

    Attributes:
        name: As tables call it.
        entries: Those of these numbers, in their order; all for None.
        labels: int64 ``[N]`` of :attr:`Entry.label`; None if there are none, or if they are known
            only as the entries come.
        names: Names of the class numbers; empty where the numbers are all there is.
        count: How many; None if that is known at the end only.
        warnings: What is wrong with the set, a sentence each.
        skipped: Files that are not pictures by their names.
    """

    name: str
    entries: Callable[[npt.NDArray[np.int64] | None], Iterator[Entry]]
    labels: npt.NDArray[np.int64] | None
    names: tuple[str, ...]
    count: int | None
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def where(self, number: int) -> str:
        """Name of one entry."""
        if self.count is None:
            return f"image {number}"
        return next(self.entries(np.array([number]))).where


@dataclass(frozen=True)
class Fit:
    """How pictures become images.

    Attributes:
        shape: ``(H, W, C)`` of the model's input; C is 1 or 3.
        prepare: Says how to resize and crop.
        background: One of :data:`BACKGROUNDS`, below what is transparent.
    """

    shape: tuple[int, int, int]
    prepare: Preprocessing
    background: str

    def apply(self, content: Content) -> Fitted:
        """Decode, turn, flatten, resize, crop.

        Raises:
            PictureError: If it cannot be decoded.
        """
        height, width, channels = self.shape
        opened = decode.opened(content)
        transparent = decode.has_alpha(opened)
        greyed = channels == 1 and decode.in_colour(opened)
        picture = decode.upright(opened, channels=channels, background=self.background)
        pixels = decode.fit(picture, height=height, width=width, prepare=self.prepare)
        return Fitted(pixels, transparent, greyed)


@dataclass(frozen=True)
class Fitted:
    """A picture as a model takes it.

    Attributes:
        pixels: uint8 ``[H, W, C]``.
        transparent: Whether there was transparency.
        greyed: Whether colours were left out.
    """

    pixels: Pixels
    transparent: bool
    greyed: bool


@dataclass
class _Spooled:
    """What was written to the temporary file, and what was not."""

    file: IO[bytes]
    kept: list[int] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)
    broken: list[str] = field(default_factory=list)
    seen: int = 0
    transparent: int = 0
    greyed: int = 0


def parallel(work: Callable[[Entry], Any], entries: Iterable[Entry]) -> Iterator[tuple[Entry, Any]]:
    """Each entry with what ``work`` made of it, in order, on all cores; few at a time."""
    waiting = iter(entries)
    with ThreadPoolExecutor(environment.cores()) as pool:
        while batch := list(itertools.islice(waiting, _BATCH)):
            yield from zip(batch, pool.map(work, batch), strict=True)


def images_of(
    source: Source,
    fit: Fit,
    *,
    chosen: npt.NDArray[np.int64] | None,
    number: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]] | None,
    class_names: tuple[str, ...],
    most: int | None = None,
    progress: Progress = SILENT,
) -> images.ImageSet:
    """Decode pictures of a source.

    Args:
        source: Where they are.
        fit: What they become.
        chosen: Numbers of those to take; None for all.
        number: From the source's class numbers to the model's; None to leave labels out.
        class_names: Class names of the model's numbers.
        most: Stop at so many images.
        progress: Hears how far it is, and what became of transparency and colours.

    Raises:
        InvalidDataError: If none can be decoded, or there is no room for them.
    """
    total = source.count if chosen is None else len(chosen)
    if most is not None:
        total = most if total is None else min(total, most)
    if fit.shape[2] not in (1, 3):
        raise InvalidDataError(
            f"{source.name}: expected a model of 1 or 3 channels to decode pictures for, got "
            f"{fit.shape[2]}; pass an .npz"
        )
    if total is not None:
        _check_room(source.name, total * int(np.prod(fit.shape)))
    with tempfile.TemporaryFile() as file:
        spooled = _Spooled(file)
        with progress.task("decoding", total) as task:
            _spool(spooled, source.entries(chosen), fit, task, most)
        if not spooled.kept:
            first = f": {spooled.broken[0]}" if spooled.broken else ""
            raise InvalidDataError(
                f"{source.name}: none of {spooled.seen} pictures can be decoded{first}"
                if spooled.seen
                else f"{source.name}: the set is empty; expected at least one image"
            )
        file.flush()
        pixels = np.memmap(file, np.uint8, "r", shape=(len(spooled.kept), *fit.shape))
    if spooled.transparent:
        progress.say(
            f"{source.name}: {spooled.transparent} pictures have transparency; they lie on "
            f"{fit.background} (#background={'|'.join(BACKGROUNDS)})"
        )
    if spooled.greyed:
        progress.say(
            f"{source.name}: {spooled.greyed} pictures are in colour; the model takes grey ones, "
            f"their colours are left out"
        )
    labels = None
    if number is not None and None not in spooled.labels:
        labels = number(np.array(spooled.labels, np.int64))

    def where(row: int) -> str:
        place = spooled.kept[row]
        return source.where(place if chosen is None else int(chosen[place]))

    warnings = [*source.warnings, *_of_broken(spooled.broken, spooled.seen)]
    warnings += _of_twins(np.frombuffer(spooled.digests, f"S{_DIGEST}"), labels, where)
    return images.make(source.name, pixels, labels, class_names, tuple(warnings))


def _spool(
    spooled: _Spooled, entries: Iterator[Entry], fit: Fit, task: Task, most: int | None
) -> None:
    def work(entry: Entry) -> Fitted | PictureError:
        try:
            return fit.apply(entry.content())
        except PictureError as exc:
            return exc

    decode.pillow()
    for entry, fitted in parallel(work, entries):
        if isinstance(fitted, PictureError):
            spooled.broken.append(f"{visible(entry.where)} ({fitted})")
        else:
            content = fitted.pixels.tobytes()
            spooled.file.write(content)
            spooled.transparent += fitted.transparent
            spooled.greyed += fitted.greyed
            spooled.kept.append(spooled.seen)
            spooled.labels.append(entry.label)
            spooled.digests += hashlib.sha256(content).digest()[:_DIGEST]
            task.advance()
        spooled.seen += 1
        if len(spooled.kept) == most:
            return


def _check_room(name: str, size: int) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InvalidDataError(
            f"{name}: the decoded images take {size / 1e9:.1f} GB, {folder} has "
            f"{free / 1e9:.1f} GB free; set TMPDIR to a larger disk, or take fewer with #samples=N"
        )


def _of_broken(broken: Sequence[str], seen: int) -> list[str]:
    if not broken:
        return []
    return [f"{len(broken)} of {seen} pictures cannot be decoded and are left out: {some(broken)}"]


def _of_twins(
    digests: npt.NDArray[Any],
    labels: npt.NDArray[np.int64] | None,
    where: Callable[[int], str],
) -> list[str]:
    """A sentence where the same pixels have different labels."""
    if labels is None:
        return []
    order = np.argsort(digests, kind="stable")
    same = digests[order][1:] == digests[order][:-1]
    other = labels[order][1:] != labels[order][:-1]
    pairs_at = np.flatnonzero(same & other)
    if not len(pairs_at):
        return []
    pairs = [
        f"{visible(where(int(order[i])))} and {visible(where(int(order[i + 1])))}"
        for i in pairs_at[:NAMED]
    ]
    return [f"{len(pairs_at)} exact duplicates have another label: {some(pairs, len(pairs_at))}"]


def some(names: Sequence[str], total: int | None = None) -> str:
    """The first few of many, and how many more there are."""
    more = (len(names) if total is None else total) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def background_of(word: str, options: dict[str, str]) -> str:
    """The ``background`` option.

    Raises:
        InvalidOptionError: If it is none of :data:`BACKGROUNDS`.
    """
    background = options.get("background", BACKGROUNDS[0])
    if background not in BACKGROUNDS:
        raise InvalidOptionError(
            f"{word}: expected background {', '.join(BACKGROUNDS)}, got {background!r}"
            f"{words.near(background, BACKGROUNDS)}"
        )
    return background


def file_error(path: object, exc: OSError) -> InvalidDataError:
    """A file or folder that cannot be read, in one line."""
    if exc.errno == errno.ENOENT:
        return InvalidDataError(words.not_found(Path(str(path))))
    return InvalidDataError(f"{path}: {exc.strerror or os.strerror(exc.errno or 0)}")
