"""``tfrecord:DIR`` or ``tfrecord:GLOB``: files of tf.train.Example with encoded pictures.

Read without TensorFlow. Framing and checksums: TensorFlow's ``record_writer``; the message: its
``example.proto`` and ``feature.proto``.
"""

from __future__ import annotations

import functools
import glob
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import words
from edgekit.data.decode import PictureError
from edgekit.data.images import Split
from edgekit.data.source import Entry, Source, file_error
from edgekit.data.table import checked
from edgekit.errors import InvalidDataError

#: Names of picture and label, and the number of the first class: as the TensorFlow research
#: scripts write ImageNet, and as tensorflow_datasets writes.
FORMS = (("image/encoded", "image/class/label", 1), ("image", "label", 0))
#: Bytes of a record, at most.
MOST = 1 << 30


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

    def open(self, place: str, split: Split, options: Mapping[str, str]) -> Source:
        """Read all records once, for their labels and checksums.

        Raises:
            InvalidDataError: If there is no such file, or one is not made of such records.
        """
        given = words.integer(place, dict(options), "first_label", least=-1000)
        records: list[_Record] = []
        labels: list[int] = []
        form: tuple[str, str, int] | None = None
        for path in _files(place):
            for record, content in _records(path):
                features = _features(record, content)
                form = form or _form(record, features, labelled=split != "calibration")
                records.append(record)
                if form[1] in features:
                    labels.append(_label(record, features[form[1]]))
        if form is None:
            raise InvalidDataError(f"{place}: the files hold no record")
        if labels and len(labels) != len(records):
            raise InvalidDataError(f"{place}: {len(records)} records, {len(labels)} with a label")
        first = form[2] if given is None else given
        numbers = checked(place, np.array(labels, np.int64) - first, first) if labels else None
        encoded = form[0]

        def entries(chosen: npt.NDArray[np.int64] | None) -> Iterator[Entry]:
            for i in range(len(records)) if chosen is None else chosen.tolist():
                record = records[i]
                label = None if numbers is None else int(numbers[i])
                yield Entry(_where(record), partial(_picture, record, encoded), label)

        return Source(Path(place).name, entries, numbers, (), len(records))


def _where(record: _Record) -> str:
    return f"{Path(record.path).name} at byte {record.start}"


def _files(place: str) -> list[str]:
    if Path(place).is_dir():
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
    wanted = " or ".join(f"{picture} and {label}" for picture, label, _ in FORMS)
    raise _broken(
        record, f"expected features {wanted}, got {', '.join(sorted(features)) or 'none'}"
    )


def _label(record: _Record, values: list[Any]) -> int:
    if len(values) != 1 or not isinstance(values[0], int):
        raise _broken(record, f"expected one integer label, got {len(values)} values")
    return values[0]


def _features(record: _Record, content: bytes) -> dict[str, list[Any]]:
    """Feature lists of an Example by name: bytes and integers; floats are not read."""
    found: dict[str, list[Any]] = {}
    try:
        for features in _fields(content, 1):
            for entry in _fields(features, 1):
                (name,) = _fields(entry, 1)
                (feature,) = _fields(entry, 2)
                values: list[Any] = []
                for each in _fields(feature, 1):
                    values += [bytes(value) for value in _fields(each, 1)]
                for each in _fields(feature, 3):
                    for value in _fields(each, 1):
                        values += [value] if isinstance(value, int) else _packed(value)
                found[bytes(name).decode()] = values
    except (ValueError, IndexError, TypeError) as exc:
        raise _broken(record, f"not a tf.train.Example ({exc})") from None
    return found


def _fields(message: Any, wanted: int) -> list[Any]:
    """Values of one field of a protobuf message: integers, or bytes not decoded further."""
    view = memoryview(message)
    found: list[Any] = []
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
        if key >> 3 == wanted:
            found.append(value if kind != 0 or value < 1 << 63 else value - (1 << 64))
    return found


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
    found, at = [], 0
    while at < len(view):
        value, at = _varint(view, at)
        found.append(value if value < 1 << 63 else value - (1 << 64))
    return found


def masked_crc(content: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and shifted as TFRecord files store it."""
    crc = _crc32c(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c(content: bytes) -> int:
    """In lanes: the register is linear in message and state, and zeros in front change nothing."""
    size = max(4, len(content))
    steps = 1 << (size.bit_length() // 2)
    lanes = 1 << (-(-size // steps) - 1).bit_length()
    padded = np.zeros(lanes * steps, np.uint8)
    padded[len(padded) - len(content) :] = np.frombuffer(content, np.uint8)
    first = padded[len(padded) - len(content) :][:4]
    first ^= 0xFF  # a register of ones to begin with
    table = _table()
    state = np.zeros(lanes, np.uint32)
    for column in padded.reshape(lanes, steps).T:
        state = table[(state ^ column) & 0xFF] ^ (state >> 8)
    power = steps.bit_length() - 1
    while len(state) > 1:
        state = _after_zeros(state[0::2], power) ^ state[1::2]
        power += 1
    ones = 0xFFFFFFFF >> (8 * len(first))  # what no byte was there to take
    return int(state[0]) ^ ones ^ 0xFFFFFFFF


@functools.cache
def _table() -> npt.NDArray[np.uint32]:
    found = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        found = np.where(found & 1, (found >> 1) ^ np.uint32(0x82F63B78), found >> 1)
    return found.astype(np.uint32)


@functools.cache
def _zeros(power: int) -> npt.NDArray[np.uint32]:
    """What each bit of the register is after ``2 ** power`` zero bytes."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if power == 0:
        return np.asarray(_table()[bits & 0xFF] ^ (bits >> 8), np.uint32)
    return _after_zeros(_zeros(power - 1), power - 1)


def _after_zeros(state: npt.NDArray[np.uint32], power: int) -> npt.NDArray[np.uint32]:
    bits = (state[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    return np.asarray(np.bitwise_xor.reduce(bits * _zeros(power), axis=1), np.uint32)
