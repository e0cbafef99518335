"""What is in a set of pictures: classes, sizes, colours, duplicates, what cannot be read."""

from __future__ import annotations

import functools
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.base.text import visible
from edgekit.data import Opened, decode, images, mask_files
from edgekit.data.annotated import Annotated, settle
from edgekit.data.boxes import Boxes
from edgekit.data.decode import PictureError
from edgekit.data.images import ImageSet
from edgekit.data.masks import VOID
from edgekit.data.shown import PICTURES, Drawn, Objects, of_boxes, of_masks
from edgekit.data.shown import THUMB as shown_thumb
from edgekit.data.shown import sheet as object_sheet
from edgekit.data.source import Entry, Source, named, parallel, some

#: Entries of a list in the document, at most; its length is always told.
LISTED = 100
#: Warned of: the largest class has so many times the images of the smallest.
UNEVEN = 10
_DIGEST = 16
#: Rows, columns and pixels of a contact sheet.
ROWS, COLUMNS, THUMB, MARGIN, TEXT = 12, 10, 80, 4, 160


@dataclass(frozen=True)
class Count:
    """A list that may be long.

    Attributes:
        count: Its length.
        first: The first :data:`LISTED` of it.
    """

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """A set of pictures as it is, before it is resized.

    Attributes:
        images: That can be decoded.
        classes: Images by class; by number where there are no names. Empty without labels.
        sizes: Pictures by ``WIDTHxHEIGHT``, turned upright, the most frequent first.
        formats: Pictures by file format; ``array`` of pixels that are no file.
        modes: Pictures by Pillow's mode, as stored: ``RGB``, ``L``, ``CMYK``, ``I;16``, ...
        turned: Pictures that EXIF turns.
        transparent: Pictures with transparency.
        animated: Pictures with more than one frame; the first one counts.
        mean: Mean of R, G and B from 0 to 255; each picture counts the same.
        std: The square root of the mean squared deviation from ``mean``; likewise.
        unreadable: What cannot be decoded, and why.
        skipped: Files that are not pictures in a class folder.
        duplicates: Groups of the same pixels.
        across_classes: Those of them that lie in more than one class.
        balance: Entropy of the classes over that of even ones: 1 is even; None without labels.
        leaked: Images whose pixels are in the other set as well; None without one.
        objects: What boxes or masks show; None where a picture has a class, or nothing.
        warnings: What should be looked at, a sentence each.
    """

    data: str
    images: int
    classes: dict[str, int]
    sizes: dict[str, int]
    formats: dict[str, int]
    modes: dict[str, int]
    turned: int
    transparent: int
    animated: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unreadable: Count
    skipped: Count
    duplicates: Count
    across_classes: Count
    balance: float | None
    leaked: Count | None
    objects: Objects | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Look:
    """What one picture is."""

    size: tuple[int, int]
    format: str
    mode: str
    turned: bool
    transparent: bool
    animated: bool
    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    digest: bytes
    thumb: Any
    stored: tuple[int, int]
    turn: int
    mask: npt.NDArray[np.int64] | None
    small_mask: npt.NDArray[np.uint8] | None


@dataclass
class Survey:
    """All pictures, looked at once.

    Attributes:
        numbers: Entry of each picture that could be decoded.
        labels: Its class number, or -1.
        digests: SHA-256 of size and upright RGB pixels, the first 16 bytes, of each.
        frames: Width, height and EXIF orientation of each, as stored.
        masks: Pixels of each number in the mask of each, int64 ``[256]``.
        drawn: Pictures of the sheet of objects, by the place of the picture.
    """

    source: Source
    numbers: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)
    broken: list[str] = field(default_factory=list)
    counters: dict[str, Counter[str]] = field(
        default_factory=lambda: {key: Counter() for key in ("sizes", "formats", "modes", "flags")}
    )
    mean: Any = 0.0
    square: Any = 0.0
    thumbs: dict[int, list[Any]] = field(default_factory=dict)
    frames: list[tuple[int, int, int]] = field(default_factory=list)
    masks: list[npt.NDArray[np.int64]] = field(default_factory=list)
    drawn: dict[int, Drawn] = field(default_factory=dict)

    @property
    def prints(self) -> npt.NDArray[Any]:
        """The digests as an array."""
        return np.frombuffer(bytes(self.digests), f"V{_DIGEST}")

    def take(self, number: int, entry: Entry, look: _Look, *, picture: bool) -> None:
        """Count one picture in."""
        self.numbers.append(number)
        self.labels.append(-1 if entry.label is None else entry.label)
        self.digests += look.digest
        self.counters["sizes"][f"{look.size[0]}x{look.size[1]}"] += 1
        self.counters["formats"][look.format] += 1
        self.counters["modes"][look.mode] += 1
        for flag in ("turned", "transparent", "animated"):
            self.counters["flags"][flag] += bool(getattr(look, flag))
        self.mean, self.square = self.mean + look.mean, self.square + look.square
        self.frames.append((*look.stored, look.turn))
        if look.mask is not None:
            self.masks.append(look.mask)
        if self.source.shows_objects:
            if picture:
                place = len(self.numbers) - 1
                self.drawn[place] = Drawn(look.thumb, look.size, look.small_mask)
            return
        row = self.thumbs.get(self.labels[-1])
        if picture and row is None and len(self.thumbs) < ROWS:
            row = self.thumbs.setdefault(self.labels[-1], [])
        if picture and row is not None and len(row) < COLUMNS:
            row.append(look.thumb)

    def name(self, label: int) -> str:
        """Of a class."""
        if label < 0:
            return "(no class)"
        return self.source.names[label] if label < len(self.source.names) else str(label)


def survey(opened: Opened, *, limit: int | None = None, pictures: bool = False) -> Survey:
    """Decode every picture once, in full size.

    Args:
        opened: A ``--data`` word.
        limit: The first pictures only.
        pictures: Keep thumbnails for :func:`sheet`.

    Raises:
        InvalidDataError: If the images are floats, or none can be decoded.
    """
    if opened.samples is not None or opened.size is not None:
        raise InvalidOptionError(
            f"{opened.word}: the whole set is described, in its own sizes; leave samples and size "
            f"out"
        )
    source = opened.source
    if isinstance(source, ImageSet):
        source = _of_arrays(source)
    totals = Survey(source)
    decode.pillow()
    drawn: set[int] | None = None
    if pictures and source.shows_objects:
        count = source.count if limit is None else min(limit, source.count or limit)
        assert count is not None
        shown = source.shown()[:count]
        drawn = set(images.spread(source.name, shown, min(PICTURES, count), 0).tolist())
    with opened.progress.task("looking", source.count) as task:
        look = functools.partial(
            _look, background=opened.background, thumb=shown_thumb if drawn is not None else THUMB
        )
        for number, (entry, each) in enumerate(parallel(look, source.entries(None))):
            if isinstance(each, PictureError):
                totals.broken.append(f"{visible(entry.where)} ({each})")
            else:
                draw = pictures and (drawn is None or number in drawn)
                totals.take(number, entry, each, picture=draw)
            task.advance()
            if number + 1 == limit:
                break
    if not totals.numbers:
        first = f": {totals.broken[0]}" if totals.broken else ""
        raise InvalidDataError(f"{source.name}: no picture can be decoded{first}")
    return totals


def _of_arrays(image_set: ImageSet) -> Source:
    if image_set.images.dtype != np.uint8:
        raise InvalidDataError(
            f"{image_set.name}: expected uint8 pixels, got {image_set.images.dtype}"
        )
    masks = image_set.masks

    def entries(chosen: npt.NDArray[np.int64] | None) -> Iterator[Entry]:
        for i in range(len(image_set)) if chosen is None else chosen.tolist():
            label = None if image_set.labels is None else int(image_set.labels[i])
            mask = None if masks is None else functools.partial(masks.__getitem__, i)
            pixels = functools.partial(np.array, image_set.images[i])
            yield Entry(f"image {i}", pixels, label, mask=mask)

    return Source(
        image_set.name,
        entries,
        image_set.labels,
        image_set.class_names,
        len(image_set),
        objects=None if image_set.boxes is None else _in_images(image_set, image_set.boxes),
        masks=masks is not None and image_set.boxes is None,
    )


def _in_images(image_set: ImageSet, boxes: Boxes) -> Annotated:
    """Boxes as parts of the images, which may show a part of their pictures only."""
    height, width = image_set.images.shape[1:3]
    regions = np.tile(np.array([0, 0, width, height], np.float32), (len(image_set), 1))
    if image_set.views is not None:
        regions = image_set.views.regions
    regions = regions[boxes.pictures()]
    corners = (boxes.corners - regions[:, [0, 1, 0, 1]]) / regions[:, [2, 3, 2, 3]]
    return Annotated(
        replace(boxes, corners=corners.astype(np.float32)),
        np.zeros((len(image_set), 2), np.int32),
        relative=True,
    )


def _look(entry: Entry, *, background: str, thumb: int) -> _Look | PictureError:
    try:
        picture = decode.opened(entry.content())
        stored, turn = picture.size, decode.orientation(picture)
        misfit = entry.misfit(stored, turn)
        if misfit:
            raise PictureError(misfit)
        format, mode, frames = picture.format or "array", picture.mode, _frames(picture)
        turned, transparent = decode.is_turned(picture), decode.has_alpha(picture)
        plain = decode.upright(picture, channels=3, background=background)
        mask = _mask_of(entry, stored, turn)
    except PictureError as exc:
        return exc
    pixels = np.asarray(plain)
    digest = hashlib.sha256(f"{plain.size}".encode() + pixels.tobytes()).digest()[:_DIGEST]
    counts = np.array([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256.0)
    times = thumb // max(plain.size)  # small ones are enlarged by a whole factor
    if times > 1:
        plain = plain.resize((plain.size[0] * times, plain.size[1] * times), 0)
    plain.thumbnail((thumb, thumb))
    return _Look(
        size=(pixels.shape[1], pixels.shape[0]),
        format=format,
        mode=mode,
        turned=turned,
        transparent=transparent,
        animated=frames > 1,
        mean=shares @ values,
        square=shares @ values**2,
        digest=digest,
        thumb=plain,
        stored=stored,
        turn=turn,
        mask=None if mask is None else np.bincount(mask.ravel(), minlength=256),
        small_mask=None if mask is None else _small(mask, plain.size),
    )


def _mask_of(entry: Entry, stored: tuple[int, int], turn: int) -> npt.NDArray[np.uint8] | None:
    """The upright mask of an entry."""
    if entry.mask is None:
        return None
    try:
        values = entry.mask()
    except PictureError as exc:
        raise PictureError(f"mask: {exc}") from None
    size = values.shape[1], values.shape[0]
    upright = stored if turn < 5 else stored[::-1]
    if size not in (stored, upright):
        raise PictureError(f"mask: {size[0]} x {size[1]}, its picture {upright[0]} x {upright[1]}")
    return mask_files.turned(values, 1 if size == upright else turn)


def _small(mask: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(decode.pillow().fromarray(mask).resize(size, 0))


def objects_of(pictures: Survey) -> tuple[Boxes | None, Objects | None, tuple[str, ...]]:
    """Boxes in upright pictures, what boxes or masks show, and what is wrong with boxes."""
    source = pictures.source
    if source.objects is None:
        if not source.masks:
            return None, None, ()
        return None, of_masks(np.array(pictures.masks), source.names), ()
    frames = np.array(pictures.frames, np.int32)

    settled = settle(
        source.objects,
        np.array(pictures.numbers, np.int64),
        frames[:, 1::-1],
        frames[:, 2].astype(np.uint8),
        number=lambda classes: classes,
        name=lambda rows: named(lambda row: source.where(pictures.numbers[row]), rows),
    )
    return settled.boxes, of_boxes(settled.boxes, source.names), settled.warnings


def _frames(picture: Any) -> int:
    try:
        return int(getattr(picture, "n_frames", 1))
    except Exception as exc:  # a file may end within its list of frames
        raise PictureError(f"frames: {exc}") from None


def describe(pictures: Survey, other: Survey | None = None) -> Description:
    """Sum a survey up.

    Args:
        pictures: Description of the set.
        other: Description of a set that must share no picture with it, as test images must share
            none with training images.
    """
    count = len(pictures.numbers)
    labels = np.array(pictures.labels)
    classes = {
        pictures.name(int(label)): int(number)
        for label, number in zip(*np.unique(labels, return_counts=True), strict=True)
        if label >= 0
    }
    classes = {name: 0 for name in pictures.source.names if classes} | classes
    mean = pictures.mean / count
    duplicates, across = _duplicates(pictures, labels)
    leaked = None if other is None else _leaked(pictures, other)
    _, objects, said = objects_of(pictures)
    warnings = [*pictures.source.warnings, *said, *_warnings(pictures, classes, across)]
    if objects is not None:
        warnings += _unseen(objects)
    if leaked is not None and other is not None and leaked.count:
        warnings.append(
            f"{leaked.count} pictures are in {other.source.name} as well: {some(leaked.first)}"
        )
    flags = pictures.counters["flags"]
    return Description(
        data=pictures.source.name,
        images=count,
        classes=classes,
        sizes=dict(pictures.counters["sizes"].most_common(LISTED)),
        formats=dict(pictures.counters["formats"].most_common()),
        modes=dict(pictures.counters["modes"].most_common()),
        turned=flags["turned"],
        transparent=flags["transparent"],
        animated=flags["animated"],
        mean=_rounded(mean),
        std=_rounded(np.sqrt(np.maximum(pictures.square / count - mean**2, 0))),
        unreadable=_count(pictures.broken),
        skipped=_count([visible(path) for path in pictures.source.skipped]),
        duplicates=_count(duplicates),
        across_classes=_count(across),
        balance=_balance(list(classes.values())),
        leaked=leaked,
        objects=objects,
        warnings=tuple(warnings),
    )


def _rounded(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)


def _count(names: Sequence[str]) -> Count:
    return Count(len(names), tuple(names[:LISTED]))


def _warnings(pictures: Survey, classes: dict[str, int], across: Sequence[str]) -> list[str]:
    said = []
    if pictures.broken:
        said.append(f"{len(pictures.broken)} pictures cannot be decoded: {some(pictures.broken)}")
    if across:
        said.append(f"{len(across)} pictures lie in more than one class: {some(across)}")
    if len(classes) == 1:
        said.append("there is one class only")
    counts = list(classes.values())
    if counts and max(counts) > UNEVEN * min(counts):
        said.append(f"classes are uneven: from {min(counts)} to {max(counts)} images")
    return said


def _unseen(objects: Objects) -> list[str]:
    """Sentences about classes that no picture shows, and about masks of one class only."""
    unseen = [visible(name) for name, count in objects.pictures.items() if not count]
    said = [f"{len(unseen)} classes are in no picture: {some(unseen)}"] if unseen else []
    if objects.void is not None and sum(count > 0 for count in objects.pictures.values()) < 2:
        said.append(
            f"masks show one class only, and {objects.void:.1f} % void; if {VOID} stands for an "
            f"object, write the number of its class"
        )
    return said


def _balance(counts: Sequence[int]) -> float | None:
    if len(counts) < 2:
        return None
    shares = np.array([count for count in counts if count]) / sum(counts)
    return round(float(-(shares * np.log(shares)).sum() / np.log(len(counts))), 4)


def _duplicates(pictures: Survey, labels: npt.NDArray[np.int64]) -> tuple[list[str], list[str]]:
    """Groups of the same pixels, as ``a = b = c``; and those of them in several classes."""
    prints = pictures.prints
    _, places, counts = np.unique(prints, return_inverse=True, return_counts=True)
    order = np.argsort(places, kind="stable")
    groups, across = [], []
    for group in np.split(order, np.cumsum(counts)[:-1]):
        if len(group) < 2:
            continue
        same = " = ".join(visible(pictures.source.where(pictures.numbers[i])) for i in group[:5])
        same += " = …" if len(group) > 5 else ""
        groups.append(same)
        if len(set(labels[group].tolist())) > 1:
            across.append(same)
    return groups, across


def _leaked(pictures: Survey, other: Survey) -> Count:
    shared = np.flatnonzero(np.isin(pictures.prints, other.prints))
    first = [visible(pictures.source.where(pictures.numbers[i])) for i in shared[:LISTED]]
    return Count(len(shared), tuple(first))


def sheet(pictures: Survey) -> bytes:
    """A PNG with the first pictures of the first classes, a class a row.

    Of a set with boxes or masks, some pictures with these, drawn evenly over the classes.
    """
    if pictures.source.shows_objects:
        boxes, about, _ = objects_of(pictures)
        assert about is not None
        places = sorted(pictures.drawn)
        return object_sheet(
            [pictures.drawn[place] for place in places],
            None if boxes is None else boxes.take(np.array(places, np.int64)),
            about,
            pictures.source.names,
        )
    image = decode.pillow()
    from PIL import ImageDraw

    rows = sorted(pictures.thumbs.items())
    step = THUMB + MARGIN
    canvas = image.new("RGB", (TEXT + COLUMNS * step + MARGIN, len(rows) * step + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    total = Counter(pictures.labels)
    for row, (label, thumbs) in enumerate(rows):
        top = MARGIN + row * step
        name = visible(pictures.name(label))
        name = name if len(name) <= 24 else f"{name[:21]}..."
        text = f"{name}\n{total[label]:,} images"
        draw.text((MARGIN, top + THUMB // 3), text.encode("latin-1", "replace"), fill="black")
        for column, thumb in enumerate(thumbs):
            left = TEXT + column * step
            draw.rectangle((left, top, left + THUMB - 1, top + THUMB - 1), fill="gainsboro")
            across, down = (THUMB - thumb.size[0]) // 2, (THUMB - thumb.size[1]) // 2
            canvas.paste(thumb, (left + across, top + down))
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()
