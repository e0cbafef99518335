"""``voc:DIR``: boxes of Pascal VOC, an XML file a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from xml.parsers import expat

import numpy as np

from edgekit.base import words
from edgekit.base.errors import InvalidDataError
from edgekit.base.text import visible
from edgekit.data import objects
from edgekit.data.annotated import Annotated, built
from edgekit.data.images import Split
from edgekit.data.source import Source, some

#: Objects of a picture, and levels of an XML file, at most.
MAX_OBJECTS, MAX_DEPTH = 10_000, 32


class Voc:
    """``DIR/JPEGImages`` and ``DIR/Annotations``, or one folder with both.

    ``#split=train`` takes the pictures that ``ImageSets/Main/train.txt`` lists. Corners are of
    pixels that count from 1, the last one belongs to the box; ``#first_pixel=0`` for tools that
    count from 0. ``difficult`` objects are crowds. Pictures come in the order of the sha256 of
    their names, so that the first N are a fair draw, and the same ones on every machine.
    """

    options: tuple[str, ...] = (*objects.OPTIONS, "split", "first_pixel")

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """List pictures and read their annotations.

        Raises:
            InvalidDataError: If it is no such folder, or no picture has an annotation.
        """
        root = objects.folder(place, "a folder with JPEGImages and Annotations")
        frame, drop = objects.frame_of(place, options), objects.drops_unknown(place, options)
        first = words.integer(place, dict(options), "first_pixel", least=0)
        part = objects.split_of(place, options)
        pictures_in, notes_in = root / "JPEGImages", root / "Annotations"
        if not notes_in.is_dir():
            pictures_in = notes_in = root
        elif not pictures_in.is_dir():
            raise InvalidDataError(f"{words.not_found(pictures_in)}; expected its pictures there")
        pictures = objects.pictures(pictures_in, objects.files(pictures_in))
        notes = {name[:-4] for name in objects.files(notes_in) if name.lower().endswith(".xml")}
        if not notes:
            raise InvalidDataError(
                f"{place}: expected Annotations/NAME.xml and JPEGImages/NAME.jpg, got no .xml in "
                f"{notes_in}"
            )
        lists = root / "ImageSets" / "Main"
        warnings: list[str] = []
        if part is None:
            stems = sorted({*pictures, *notes})
            if lists.is_dir() and objects.files(lists):
                known = sorted(n[:-4] for n in objects.files(lists) if n.endswith(".txt"))
                warnings.append(
                    f"all {len(stems)} pictures are taken; #split={'|'.join(known[:6])} takes "
                    f"those of a list"
                )
        else:
            if not (lists / f"{part}.txt").is_file():
                raise InvalidDataError(f"{words.not_found(lists / f'{part}.txt')}; see #split")
            stems = objects.listed(lists / f"{part}.txt")
        stems = objects.shuffled(stems)
        warnings += objects.counted(
            [stem for stem in stems if stem in notes and stem not in pictures],
            "annotations have no picture and are left out",
        )
        warnings += objects.counted(
            [stem for stem in stems if stem in pictures and stem not in notes],
            "pictures have no annotation and are left out",
        )
        warnings += objects.counted(
            [stem for stem in stems if stem not in pictures and stem not in notes],
            "listed names have neither picture nor annotation and are left out",
        )
        kept, read, broken = [], [], []
        for stem in stems:
            if stem not in pictures or stem not in notes:
                continue
            try:
                read.append(_read(objects.read(notes_in / f"{stem}.xml"), first))
                kept.append(pictures[stem])
            except _Broken as exc:
                broken.append(f"{visible(stem)}.xml ({exc})")
            except InvalidDataError as exc:
                broken.append(str(exc))
        if broken:
            warnings.append(
                f"{len(broken)} annotations cannot be read; their pictures are left out: "
                f"{some(broken)}"
            )
        name = root.resolve().name + (f"/{part}" if part else "")
        if not kept:
            raise InvalidDataError(
                f"{place}: no picture has an annotation that can be read"
                + "".join(f"; {warning}" for warning in warnings[-1:])
            )
        names = tuple(sorted({label for each in read for label in each.names}))
        if labels and not names:
            raise InvalidDataError(f"{place}: none of {len(kept)} annotations has an object")
        places = {label: i for i, label in enumerate(names)}
        boxes = built(
            np.array([len(each.names) for each in read], np.int64),
            np.array([c for each in read for c in each.corners], np.float32).reshape(-1, 4),
            np.array([places[n] for each in read for n in each.names], np.int32),
            np.array([d for each in read for d in each.difficult], np.bool_),
        )
        sizes = np.array([(each.height, each.width) for each in read], np.int32)
        annotated = Annotated(boxes, sizes, frame=frame)
        return Source(
            name,
            partial(objects.entries_of, pictures_in, kept, annotated, None),
            None,
            names,
            len(kept),
            tuple(warnings),
            objects=annotated,
            drop_unknown=drop,
        )


class _Broken(Exception):
    """An annotation that cannot be used, in words."""


@dataclass
class _Annotation:
    """What one XML file says."""

    width: int = 0
    height: int = 0
    names: list[str] = field(default_factory=list)
    corners: list[tuple[float, float, float, float]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)


_SIDES = ("xmin", "ymin", "xmax", "ymax")
_WANTED = {
    "annotation/size/width",
    "annotation/size/height",
    "annotation/object/name",
    "annotation/object/difficult",
    *(f"annotation/object/bndbox/{side}" for side in _SIDES),
}


def _read(content: bytes, first_pixel: int | None) -> _Annotation:
    """Parse an annotation; definitions of documents and entities are refused."""
    result = _Annotation()
    path: list[str] = []
    texts: dict[str, str] = {}
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*_: object) -> None:
        raise _Broken(f"line {parser.CurrentLineNumber}: a document type or entity; remove it")

    def start(tag: str, _: object) -> None:
        path.append(tag)
        if len(path) > MAX_DEPTH:
            raise _Broken(f"line {parser.CurrentLineNumber}: more than {MAX_DEPTH} levels")
        if len(path) == 1 and tag != "annotation":
            raise _Broken(f"expected <annotation>, got <{visible(tag[:40])}>")
        if path == ["annotation", "object"]:
            for key in [each for each in texts if each.startswith("annotation/object/")]:
                del texts[key]
        if "/".join(path) in _WANTED:
            texts["/".join(path)] = ""

    def data(chars: str) -> None:
        key = "/".join(path)
        if key in _WANTED:
            texts[key] += chars

    def end(_: str) -> None:
        if path == ["annotation", "object"]:
            _add_object(result, texts, 1 if first_pixel is None else first_pixel)
        elif path == ["annotation", "size"]:
            result.width = _size(texts.get("annotation/size/width", "0"))
            result.height = _size(texts.get("annotation/size/height", "0"))
        path.pop()

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.CharacterDataHandler = data
    parser.EndElementHandler = end
    try:
        parser.Parse(content, True)
    except expat.ExpatError as exc:
        raise _Broken(f"broken XML: {exc}") from None
    except (ValueError, LookupError) as exc:  # an encoding that is none
        raise _Broken(f"broken XML: {exc}") from None
    return result


def _add_object(result: _Annotation, texts: dict[str, str], first_pixel: int) -> None:
    name = texts.get("annotation/object/name", "").strip()
    if not name:
        raise _Broken("an object without <name>")
    sides = [_number(side, texts.get(f"annotation/object/bndbox/{side}", "")) for side in _SIDES]
    left, top, right, bottom = sides
    if right > left and bottom > top:  # a box from a pixel to itself is none, it is a slip
        left, top = left - first_pixel, top - first_pixel
    result.names.append(name)
    result.corners.append((left, top, right, bottom))
    result.difficult.append(texts.get("annotation/object/difficult", "0").strip() == "1")
    if len(result.names) > MAX_OBJECTS:
        raise _Broken(f"more than {MAX_OBJECTS:,} objects")


def _number(side: str, content: str) -> float:
    try:
        value = float(content)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e7:
        raise _Broken(f"expected <{side}> as a number of pixels, got {visible(content[:40])!r}")
    return value


def _size(content: str) -> int:
    """Width or height; 0 where an annotation has none."""
    try:
        value = float(content.strip() or 0)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e7 or value != int(value):
        raise _Broken(f"expected width and height as integers, got {visible(content[:40])!r}")
    return int(value)
