"""``tfrecord:DIR`` or ``tfrecord:GLOB``: files of tf.train.Example with encoded pictures.

Read without TensorFlow. Framing and checksums: TensorFlow's ``record_writer``; the message: its
``example.proto`` and ``feature.proto``. A folder that holds ``train-*-of-*`` and
``validation-*-of-*``, as the TensorFlow research scripts write ImageNet, has these two parts.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import InvalidDataError, MissingDependencyError
from edgekit.data.decode import PictureError
from edgekit.data.images import Split
from edgekit.data.source import Entry, Source, file_error
from edgekit.data.table import checked

#: Names of picture and label, and the number of the first class: as the TensorFlow research
#: scripts write ImageNet, and as tensorflow_datasets writes.
FORMS = (("image/encoded", "image/class/label", 1), ("image", "label", 0))
#: Bytes of a record, at most.
MOST = 1 << 30
IMAGENET_CLASSES = 1000
#: First word of a shard's name, by part.
_PARTS: dict[Split, str] = {"train": "train", "test": "validation", "calibration": "train"}


@dataclass(frozen=True)
class _Record:
    """Where an Example lies."""

    path: str
    start: int
    length: int


class TfRecord:
    """Examples with the features of :data:`FORMS`; files in the order of their names.

    ``first_label`` is the label that stands for class 0.
    """

    options: tuple[str, ...] = ("background", "first_label")

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """Read all records once, for their labels and checksums.

        Raises:
            InvalidDataError: If there is no such file, or one is not made of such records.
        """
        first_label = words.integer(place, dict(options), "first_label", least=-1000)
        records: list[_Record] = []
        stored: list[int] = []
        form: tuple[str, str, int] | None = None
        for path in _files(place, split):
            for record, content in _records(path):
                features = _features(record, content)
                form = form or _form(record, features, labelled=labels)
                records.append(record)
                if form[1] in features:
                    stored.append(_label(record, features[form[1]]))
        if form is None:
            raise InvalidDataError(f"{place}: the files hold no record")
        if stored and len(stored) != len(records):
            raise InvalidDataError(f"{place}: {len(records)} records, {len(stored)} with a label")
        first = form[2] if first_label is None else first_label
        numbers = checked(place, np.array(stored, np.int64) - first, first) if stored else None
        encoded = form[0]

        def entries(chosen: npt.NDArray[np.int64] | None) -> Iterator[Entry]:
            for i in range(len(records)) if chosen is None else chosen.tolist():
                record = records[i]
                label = None if numbers is None else int(numbers[i])
                yield Entry(_where(record), partial(_picture, record, encoded), label)

        return Source(Path(place).name, entries, numbers, (), len(records))


class ImageNet:
    """``imagenet-tfrecord:DIR``: the shards that the TensorFlow research scripts write.

    Labels are 1 to 1000 there; class 0 here is label 1, less what the preprocessing's
    ``class_offset`` adds.
    """

    options: tuple[str, ...] = ("background",)

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """As :meth:`TfRecord.open`.

        Raises:
            InvalidDataError: Also if the folder has no such shards, or a label is above 1000.
        """
        self.check(place, split)
        source = TfRecord().open(place, split, {**options, "first_label": "1"}, labels=labels)
        if source.labels is not None and len(source.labels):
            _check_imagenet(place, int(source.labels.max()))
        return source

    @staticmethod
    def check(place: str, split: Split) -> None:
        """Refuse a folder without the shards of a part."""
        if not _part(place, split):
            raise InvalidDataError(
                f"imagenet-tfrecord:{place}: expected a folder with {_PARTS[split]}-*-of-*, as the "
                f"TensorFlow research scripts write ImageNet; other names: tfrecord:GLOB"
            )


def _check_imagenet(place: str, highest: int) -> None:
    if highest >= IMAGENET_CLASSES:
        raise InvalidDataError(
            f"imagenet-tfrecord:{place}: expected labels 1 to {IMAGENET_CLASSES}, got "
            f"{highest + 1}; use tfrecord:DIR for another set"
        )


@dataclass(frozen=True)
class Shards:
    """Files of records that are read in their order, a pass after the other.

    Attributes:
        name: As tables call it.
        paths: The files.
        counts: Records of each.
        bytes: Bytes of all records.
        encoded: Feature that holds the picture.
        label: Feature that holds the label.
        first: Label of class 0.
        images: int64 ``[classes]``: records of each class.
        sha256: Of names, lengths and labels of the records; not of pixels.
    """

    name: str
    paths: tuple[str, ...]
    counts: tuple[int, ...]
    bytes: int
    encoded: str
    label: str
    first: int
    images: npt.NDArray[np.int64]
    sha256: str

    def __len__(self) -> int:
        return sum(self.counts)

    def head(self, limit: int | None) -> Shards:
        """The first records only; ``images`` still counts all."""
        if limit is None or limit >= len(self):
            return self
        before = np.cumsum((0, *self.counts[:-1]))
        counts = tuple(int(c) for c in np.clip(limit - before, 0, np.array(self.counts)))
        return replace(
            self,
            name=f"{self.name}[:{limit}]",
            counts=counts,
            sha256=hashlib.sha256(f"{self.sha256}[:{limit}]".encode()).hexdigest(),
        )


def shards(
    place: str,
    split: Split,
    options: Mapping[str, str],
    *,
    imagenet: bool = False,
    advance: Callable[[int], object] = lambda count: None,
) -> Shards:
    """Count records and labels; pictures are skipped over, their checksums are not looked at.

    Args:
        place: Folder or glob.
        split: Which part of it.
        options: ``first_label``.
        imagenet: Whether labels have to be 1 to 1000.
        advance: Called with 1 after each file.

    Raises:
        InvalidDataError: If a file is not made of such records, or a label does not fit; names
            file and record.
    """
    first_label = words.integer(place, dict(options), "first_label", least=-1000)
    if imagenet:
        ImageNet.check(place, split)
        first_label = 1
    paths = _files(place, split)
    digest = hashlib.sha256()
    form: tuple[str, str, int] | None = None
    counts, total = [], 0
    images = np.zeros(0, np.int64)
    for path in paths:
        labels: list[int] = []
        digest.update(Path(path).name.encode())
        for record, content in _skimmed(path):
            form = form or _form(record, _features(record, content), labelled=True)
            features = _features(record, content, {form[1]})
            if form[1] not in features:
                raise _broken(record, f"record {len(labels)} has no {form[1]}")
            label = _label(record, features[form[1]]) - (
                form[2] if first_label is None else first_label
            )
            if not 0 <= label < _MOST_CLASSES:
                checked(f"{path}, record {len(labels)}", np.array([label]), first_label or form[2])
                raise _broken(record, f"record {len(labels)} has the label {label:,}")
            labels.append(label)
            total += record.length
            digest.update(struct.pack("<QQ", record.length, label))
        counts.append(len(labels))
        counted = np.bincount(np.array(labels, np.int64), minlength=len(images))
        images = counted + np.pad(images, (0, len(counted) - len(images)))
        advance(1)
    if form is None:
        raise InvalidDataError(f"{place}: the files hold no record")
    if imagenet:
        _check_imagenet(place, len(images) - 1)
    return Shards(
        Path(place).name,
        tuple(paths),
        tuple(counts),
        total,
        form[0],
        form[1],
        form[2] if first_label is None else first_label,
        images,
        digest.hexdigest(),
    )


#: A label beyond is a broken one: a head of so many classes has more weights than any backbone.
_MOST_CLASSES = 1 << 20


def _skimmed(path: str) -> Iterator[tuple[_Record, memoryview]]:
    """All records of a file, mapped; only what is looked at is read."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                return
            whole = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as exc:
        raise file_error(path, exc) from None
    at = 0
    while at < size:
        record = _Record(path, at, 0)
        if size - at < 12:
            raise _broken(record, "it is cut off")
        (length,) = struct.unpack("<Q", whole[at : at + 8])
        if length > MOST or at + length + 16 > size:
            raise _broken(record, "it is cut off, or its header is broken")
        yield _Record(path, at + 12, length), whole[at + 12 : at + 12 + length]
        at += length + 16


def broken_at(paths: Sequence[str], start: int) -> tuple[str, int] | None:
    """(file, record number) of a record with a wrong checksum.

    Args:
        paths: Files that may hold it.
        start: Byte at which it begins, or its content, which TensorFlow names either way.
    """
    for path in paths:
        for number, (record, content) in enumerate(_skimmed(path)):
            if start in (record.start, record.start - 12):
                (stored,) = struct.unpack("<I", _after(path, record))
                if masked_crc(bytes(content)) != stored:
                    return path, number
            if record.start > start:
                break
    return None


def _after(path: str, record: _Record) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(record.start + record.length)
        return stream.read(4)


def _where(record: _Record) -> str:
    return f"{Path(record.path).name} at byte {record.start}"


def _part(place: str, split: Split) -> list[str]:
    """Shards of one part of a folder."""
    return glob.glob(f"{glob.escape(place)}/{_PARTS[split]}-*-of-*")


def has_parts(place: str) -> bool:
    """Whether a folder holds shards to train with and shards to test with."""
    return bool(_part(place, "train") and _part(place, "test"))


def _files(place: str, split: Split) -> list[str]:
    if has_parts(place):
        listed = _part(place, split)
    elif Path(place).is_dir():
        listed = [str(path) for path in Path(place).iterdir() if _may_hold(path)]
    else:
        listed = [path for path in glob.glob(place) if Path(path).is_file()]
    if not listed:
        raise InvalidDataError(f"{place}: no TFRecord file found; expected a folder, file or glob")
    return sorted(listed)


def _may_hold(path: Path) -> bool:
    plain = path.is_file() and not path.name.startswith(".")
    return plain and (".tfrecord" in path.name or path.suffix == "" or "-of-" in path.name)


def _records(path: str) -> Iterator[tuple[_Record, bytes]]:
    """All records of a file, each checked."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            while header := stream.read(12):
                start = stream.tell()
                record = _Record(path, start - len(header), 0)
                if len(header) < 12 or masked_crc(header[:8]) != struct.unpack("<I", header[8:])[0]:
                    raise _broken(record, "its header fails the checksum; is it a TFRecord file?")
                (length,) = struct.unpack("<Q", header[:8])
                if length > min(MOST, size):
                    raise _broken(record, f"a record of {length:,} bytes")
                content, footer = stream.read(length), stream.read(4)
                if len(content) < length or len(footer) < 4:
                    raise _broken(record, "it is cut off")
                if masked_crc(content) != struct.unpack("<I", footer)[0]:
                    raise _broken(record, "a record fails the checksum")
                yield _Record(path, start, length), content
    except OSError as exc:
        raise file_error(path, exc) from None


def _broken(record: _Record, why: str) -> InvalidDataError:
    return InvalidDataError(f"{record.path}, byte {record.start}: {why}")


def _picture(record: _Record, name: str) -> bytes:
    try:
        with open(record.path, "rb") as stream:
            stream.seek(record.start)
            features = _features(record, stream.read(record.length))
    except (OSError, InvalidDataError) as exc:
        raise PictureError(str(exc)) from None
    values = features.get(name)
    if not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], bytes):
        raise PictureError(f"expected one picture in {name}")
    return values[0]


def _form(
    record: _Record, features: Mapping[str, list[Any]], *, labelled: bool
) -> tuple[str, str, int]:
    for form in FORMS:
        if form[0] in features and (form[1] in features or not labelled):
            return form
    pairs = " or ".join(f"{picture} and {label}" for picture, label, _ in FORMS)
    raise _broken(record, f"expected features {pairs}, got {', '.join(sorted(features)) or 'none'}")


def _label(record: _Record, values: list[Any]) -> int:
    if len(values) != 1 or not isinstance(values[0], int):
        raise _broken(record, f"expected one integer label, got {len(values)} values")
    return values[0]


def _features(
    record: _Record, content: Any, names: Container[str] | None = None
) -> dict[str, list[Any]]:
    """Feature lists of an Example by name: bytes and integers; floats are not read.

    Args:
        record: To name it.
        content: Bytes, or a view of them.
        wanted: Names; None for all.
    """
    features_by_name: dict[str, list[Any]] = {}
    try:
        for features in _fields(content, 1):
            for pair in _fields(features, 1):
                (name,) = _fields(pair, 1)
                text = bytes(name).decode()
                if names is not None and text not in names:
                    continue
                (feature,) = _fields(pair, 2)
                values: list[Any] = []
                for each in _fields(feature, 1):
                    values += [bytes(value) for value in _fields(each, 1)]
                for each in _fields(feature, 3):
                    for value in _fields(each, 1):
                        values += [value] if isinstance(value, int) else _packed(value)
                features_by_name[text] = values
    except (ValueError, IndexError, TypeError) as exc:
        raise _broken(record, f"not a tf.train.Example ({exc})") from None
    return features_by_name


def _fields(message: Any, field: int) -> list[Any]:
    """Values of one field of a protobuf message: integers, or bytes not decoded further."""
    view = memoryview(message)
    values: list[Any] = []
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        kind = key & 7
        value: Any
        if kind == 0:
            value, at = _varint(view, at)
        elif kind in (1, 2, 5):
            size, at = _varint(view, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = view[at : at + size], at + size
            if at > len(view):
                raise ValueError("a field is cut off")
        else:
            raise ValueError(f"wire type {kind}")
        if key >> 3 == field:
            values.append(value if kind != 0 or value < 1 << 63 else value - (1 << 64))
    return values


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & ((1 << 64) - 1), at
    raise ValueError("a number of more than 64 bits")


def _packed(view: memoryview) -> list[int]:
    integers, at = [], 0
    while at < len(view):
        value, at = _varint(view, at)
        integers.append(value if value < 1 << 63 else value - (1 << 64))
    return integers


def masked_crc(content: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and shifted as TFRecord files store it.

    Raises:
        MissingDependencyError: If google-crc32c is not installed.
    """
    crc = _crc32c()(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc32c() -> Callable[[bytes], int]:
    try:
        import google_crc32c
    except ImportError:
        raise MissingDependencyError("google-crc32c", "data") from None
    value: Callable[[bytes], int] = google_crc32c.value
    return value
