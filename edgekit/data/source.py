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
from edgekit.data import decode, images, mask_files
from edgekit.data.annotated import Annotated, settle, upright_sizes
from edgekit.data.boxes import Boxes, Views
from edgekit.data.decode import Content, PictureError, Pixels
from edgekit.data.masks import VOID, digest_of
from edgekit.records import environment
from edgekit.records.signature import Preprocessing

BACKGROUNDS = ("white", "black", "grey")
#: What is named of a long list.
NAMED = 3
_BATCH = 64
_DIGEST = 16
_BINARY = "if it stands for an object, write the number of its class"
#: Reads a mask.
Mask = Callable[[], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Entry:
    """One picture that was not read yet.

    Attributes:
        where: To name it: a path, or a place in a file.
        content: Reads it; may raise PictureError.
        label: Class number as the source counts; None without labels.
        size: Width and height that its annotation says, as stored or upright; None if nothing does.
        mask: Reads its mask, uint8 ``[height, width]`` of the source's numbers; may raise
            PictureError. None without.
    """

    where: str
    content: Callable[[], Content]
    label: int | None
    size: tuple[int, int] | None = None
    mask: Mask | None = None

    def misfit(self, stored: tuple[int, int], turn: int) -> str:
        """Both sizes, where the picture has another one than its annotation says; else nothing."""
        upright = stored if turn < 5 else stored[::-1]
        if self.size is None or self.size in (stored, upright):
            return ""
        return f"{upright[0]} x {upright[1]}, annotated as {self.size[0]} x {self.size[1]}"


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
        objects: Boxes of the entries, as their files say them; None without.
        masks: Whether the entries have masks.
        drop_unknown: Leave objects out whose class the model does not know.
    """

    name: str
    entries: Callable[[npt.NDArray[np.int64] | None], Iterator[Entry]]
    labels: npt.NDArray[np.int64] | None
    names: tuple[str, ...]
    count: int | None
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    objects: Annotated | None = None
    masks: bool = False
    drop_unknown: bool = False

    @property
    def shows_objects(self) -> bool:
        """Whether a picture has boxes or a mask, in place of a class."""
        return self.objects is not None or self.masks

    def draw(self, samples: int, seed: int) -> npt.NDArray[np.int64]:
        """Numbers of entries drawn evenly over the classes; of a source that knows its count.

        Raises:
            InvalidDataError: If there are fewer than are asked for.
        """
        assert self.count is not None
        if not self.shows_objects:
            return images.stratified(self.name, self.labels, self.count, samples, seed)
        return images.spread(self.name, self.shown(), samples, seed)

    def shown(self) -> npt.NDArray[np.bool_]:
        """bool ``[N, C]``: which classes each entry shows; masks are read for it, on all cores."""
        if self.objects is not None:
            return images.presence(self.objects.boxes)
        rows = [classes for _, classes in parallel(_classes_of, self.entries(None))]
        shown = np.zeros((len(rows), VOID), np.bool_)
        for row, classes in zip(shown, rows, strict=True):
            row[classes] = True
        return shown

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
        stored, turn = opened.size, decode.orientation(opened)
        picture = decode.upright(opened, channels=channels, background=self.background)
        pixels = decode.fit(picture, height=height, width=width, prepare=self.prepare)
        place = decode.placed(picture.size, height=height, width=width, prepare=self.prepare)
        return Fitted(pixels, transparent, greyed, stored, turn, place.region)


@dataclass(frozen=True)
class Fitted:
    """A picture as a model takes it.

    Attributes:
        pixels: uint8 ``[H, W, C]``.
        transparent: Whether there was transparency.
        greyed: Whether colours were left out.
        stored: Width and height in the file.
        turn: How EXIF turns it, from 1 to 8.
        region: Left, top, width and height of what the pixels show, in pixels of the upright
            picture.
    """

    pixels: Pixels
    transparent: bool
    greyed: bool
    stored: tuple[int, int]
    turn: int
    region: tuple[float, float, float, float]

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return self.stored if self.turn < 5 else (self.stored[1], self.stored[0])


@dataclass
class _Spooled:
    """What was written to the temporary file, and what was not."""

    file: IO[bytes]
    kept: list[int] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)
    frames: list[tuple[int, int, int]] = field(default_factory=list)
    regions: list[tuple[float, float, float, float]] = field(default_factory=list)
    masks: list[tuple[Mask, int, bytes]] = field(default_factory=list)
    shown: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(256, np.bool_))
    broken: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    bad_masks: list[str] = field(default_factory=list)
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
        number: From the source's class numbers to the model's; None to leave labels, boxes and
            masks out. Negative numbers are classes that the model does not know.
        class_names: Class names of the model's numbers.
        most: Stop at so many images.
        progress: Hears how far it is, and what became of transparency and colours.

    Raises:
        InvalidDataError: If none can be decoded, there is no room for them, or masks do not fit
            their pictures.
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
    table = None
    if source.masks and number is not None:
        table = mask_files.lookup(number, len(source.names), len(class_names))
    with tempfile.TemporaryFile() as file:
        spooled = _Spooled(file)
        with progress.task("decoding", total) as task:
            _spool(
                spooled,
                source.entries(chosen),
                _Reader(fit, table, source, number is not None),
                task,
                most,
            )
        if spooled.bad_masks:
            raise InvalidDataError(
                f"{source.name}: {len(spooled.bad_masks)} masks cannot be used: "
                f"{some(spooled.bad_masks)}"
            )
        if not spooled.kept:
            raise InvalidDataError(_of_none(source.name, spooled))
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
    if number is not None and not source.shows_objects and None not in spooled.labels:
        labels = number(np.array(spooled.labels, np.int64))

    def numbers() -> npt.NDArray[np.int64]:
        kept = np.array(spooled.kept, np.int64)
        return kept if chosen is None else chosen[kept]

    def where(row: int) -> str:
        return source.where(int(numbers()[row]))

    warnings = [*source.warnings, *_of_broken(spooled.broken, spooled.seen)]
    warnings += _of_misfits(spooled.misfits, spooled.seen)
    warnings += _of_twins(np.frombuffer(spooled.digests, f"S{_DIGEST}"), labels, where)
    frames = np.array(spooled.frames, np.int32)
    stored, turns = frames[:, 1::-1], frames[:, 2].astype(np.uint8)
    boxes: Boxes | None = None
    if number is not None and source.objects is not None:
        settled = settle(
            source.objects,
            numbers(),
            stored,
            turns,
            number=_checked(source, number, class_names),
            name=lambda rows: named(where, rows),
        )
        boxes = settled.boxes
        warnings += settled.warnings
        if not len(boxes.classes):
            raise InvalidDataError(
                f"{source.name}: none of {len(boxes)} pictures has a box that counts"
                + "".join(f"; {warning}" for warning in settled.warnings[:1])
            )
    masks = None
    if table is not None:
        warnings += _of_one_class(source.name, spooled.shown, class_names)
        masks = mask_files.FileMasks(
            [(mask, turn) for mask, turn, _ in spooled.masks],
            np.where(table < 0, VOID, table).astype(np.uint8),
            [digest for _, _, digest in spooled.masks],
        )
    return images.make(
        source.name,
        pixels,
        labels,
        class_names,
        tuple(warnings),
        boxes=boxes,
        masks=masks,
        views=Views(np.array(spooled.regions, np.float32), upright_sizes(stored, turns)),
    )


def named(where: Callable[[int], str], rows: npt.NDArray[np.int64]) -> str:
    """Names of the first of some pictures, and how many more there are."""
    return some([visible(where(row)) for row in rows[:NAMED].tolist()], len(rows))


def _checked(
    source: Source,
    number: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
    class_names: tuple[str, ...],
) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """The same numbers; those beyond the model's classes are an error, or -1 where dropped.

    Raises:
        InvalidDataError: If boxes have such a class.
    """
    assert source.objects is not None
    if not class_names:
        return number
    own = np.unique(source.objects.boxes.classes).astype(np.int64)
    beyond = own[number(own) >= len(class_names)]
    if len(beyond) and not source.drop_unknown:
        count = int(np.isin(source.objects.boxes.classes, beyond).sum())
        first = int(beyond[0])
        what = source.names[first] if first < len(source.names) else str(first)
        raise InvalidDataError(
            f"{source.name}: {count} boxes have classes that the model does not know, {what} the "
            f"first; expected numbers below {len(class_names)}; correct them, or pass "
            f"#unknown=drop to leave such objects out"
        )

    def known(classes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        numbers = number(classes)
        return np.where(numbers < len(class_names), numbers, -1)

    return known


@dataclass(frozen=True)
class _Reader:
    """Reads an entry: its picture, and its mask by a table of class numbers."""

    fit: Fit
    table: npt.NDArray[np.int16] | None
    source: Source
    labelled: bool

    def __call__(self, entry: Entry) -> _Read:
        try:
            fitted = self.fit.apply(entry.content())
        except PictureError as exc:
            return _Read(broken=str(exc))
        misfit = entry.misfit(fitted.stored, fitted.turn) if self.labelled else ""
        if misfit:
            return _Read(misfit=misfit)
        if self.table is None:
            return _Read(fitted)
        try:
            if entry.mask is None:
                raise PictureError("missing")
            return self._with_mask(entry.mask, fitted)
        except PictureError as exc:
            return _Read(fitted, bad_mask=str(exc))

    def _with_mask(self, mask: Mask, fitted: Fitted) -> _Read:
        assert self.table is not None
        values = mask()
        size = values.shape[1], values.shape[0]
        if size not in (fitted.stored, fitted.upright):
            across, down = fitted.upright
            raise PictureError(f"{size[0]} x {size[1]}, its picture {across} x {down}")
        turn = 1 if size == fitted.upright else fitted.turn
        classes = self.table[values]
        if not self.source.drop_unknown and classes.min(initial=0) < 0:
            number = int(values[classes < 0][0])
            names = self.source.names
            what = names[number] if number < len(names) else str(number)
            raise PictureError(
                f"shows class {what}, which is not among those that are known; #unknown=drop makes "
                f"such pixels void"
            )
        final = np.where(classes < 0, VOID, classes).astype(np.uint8)
        digest = digest_of(mask_files.turned(final, turn))
        return _Read(fitted, (mask, turn, digest), shown=np.bincount(final.ravel(), None, 256) > 0)


@dataclass(frozen=True)
class _Read:
    """What became of an entry; what is wrong is said in words."""

    fitted: Fitted | None = None
    mask: tuple[Mask, int, bytes] | None = None
    broken: str = ""
    misfit: str = ""
    bad_mask: str = ""
    shown: npt.NDArray[np.bool_] | None = None


def _classes_of(entry: Entry) -> npt.NDArray[np.int64]:
    """Classes in the mask of an entry; none where it cannot be read, which decoding says."""
    try:
        values = np.zeros(0, np.uint8) if entry.mask is None else entry.mask()
    except PictureError:
        return np.zeros(0, np.int64)
    return np.array([each for each in np.unique(values).tolist() if each != VOID], np.int64)


def _spool(
    spooled: _Spooled, entries: Iterator[Entry], read: _Reader, task: Task, most: int | None
) -> None:
    decode.pillow()
    for entry, each in parallel(read, entries):
        if each.fitted is None:
            wrong = spooled.broken if each.broken else spooled.misfits
            wrong.append(f"{visible(entry.where)} ({each.broken or each.misfit})")
        elif each.bad_mask:
            spooled.bad_masks.append(f"{visible(entry.where)} ({each.bad_mask})")
        else:
            fitted = each.fitted
            content = fitted.pixels.tobytes()
            spooled.file.write(content)
            spooled.transparent += fitted.transparent
            spooled.greyed += fitted.greyed
            spooled.kept.append(spooled.seen)
            spooled.labels.append(entry.label)
            spooled.frames.append((*fitted.stored, fitted.turn))
            spooled.regions.append(fitted.region)
            if each.mask is not None:
                spooled.masks.append(each.mask)
                spooled.shown |= each.shown
            spooled.digests += hashlib.sha256(content).digest()[:_DIGEST]
            task.advance()
        spooled.seen += 1
        if len(spooled.kept) == most:
            return


def _of_none(name: str, spooled: _Spooled) -> str:
    if not spooled.seen:
        return f"{name}: the set is empty; expected at least one image"
    if spooled.broken or not spooled.misfits:
        first = f": {spooled.broken[0]}" if spooled.broken else ""
        return f"{name}: none of {spooled.seen} pictures can be decoded{first}"
    return (
        f"{name}: none of {spooled.seen} pictures has the size that its annotation says: "
        f"{spooled.misfits[0]}; annotate these pictures, or set width and height to 0 if the boxes "
        f"are right"
    )


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


def _of_misfits(misfits: Sequence[str], seen: int) -> list[str]:
    if not misfits:
        return []
    return [
        f"{len(misfits)} of {seen} pictures have another size than their annotation says and are "
        f"left out: {some(misfits)}"
    ]


def _of_one_class(
    name: str, shown: npt.NDArray[np.bool_], class_names: tuple[str, ...]
) -> list[str]:
    """A sentence where masks show one class only.

    Raises:
        InvalidDataError: If they show none.
    """
    classes = np.flatnonzero(shown[:VOID]).tolist()
    if not classes:
        raise InvalidDataError(f"{name}: all pixels of all masks are void, {VOID}; {_BINARY}")
    if len(classes) > 1:
        return []
    what = class_names[classes[0]] if classes[0] < len(class_names) else str(classes[0])
    beside = f" and void, {VOID}; {_BINARY}" if shown[VOID] else ""
    return [f"masks show one class only, {visible(what)}{beside}"]


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
