"""What boxes and masks of a set show: counts by class and size, and a sheet that draws them."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.text import shortened, visible
from edgekit.data import decode
from edgekit.data.boxes import Boxes
from edgekit.data.masks import VOID

#: Pixels from which on an object is medium, and large (COCO).
MEDIUM, LARGE = 32 * 32, 96 * 96
#: Pictures on a sheet, in a row, pixels of one, and between two.
PICTURES, COLUMNS, THUMB, MARGIN = 20, 4, 256, 6
#: Lines of the legend, and its width in pixels.
LEGEND, TEXT = 40, 190


@dataclass(frozen=True)
class Objects:
    """What the boxes or the masks of a set show.

    Attributes:
        boxes: Boxes by class; empty for masks.
        pixels: Pixels by class in % of those that are not void; empty for boxes.
        pictures: Pictures that show a class.
        sizes: Boxes that are ``small``, ``medium`` and ``large``: of less than 32 x 32 pixels of
            the picture, less than 96 x 96, and more (COCO); empty for masks.
        crowds: Boxes that count neither as found nor as missed.
        void: Pixels of masks that do not count, in %; None for boxes.
        empty: Pictures without a box; for masks, with no class but the first.
    """

    boxes: dict[str, int]
    pixels: dict[str, float]
    pictures: dict[str, int]
    sizes: dict[str, int]
    crowds: int
    void: float | None
    empty: int


def of_boxes(boxes: Boxes, names: Sequence[str]) -> Objects:
    """Count boxes.

    Args:
        boxes: In pixels of upright pictures.
        names: Of classes; a class beyond them is called by its number.
    """
    classes = max(len(names), int(boxes.classes.max(initial=-1)) + 1)
    counts = np.bincount(boxes.classes, minlength=classes)
    pairs = np.unique(np.stack([boxes.pictures(), boxes.classes], axis=1), axis=0)
    pictures = np.bincount(pairs[:, 1], minlength=classes)
    areas = boxes.areas
    if areas is None:
        width, height = (boxes.corners[:, 2:] - boxes.corners[:, :2]).T
        areas = width * height
    crowds = np.zeros(len(areas), np.bool_) if boxes.crowd is None else boxes.crowd
    return Objects(
        {_name(names, i): int(count) for i, count in enumerate(counts)},
        {},
        {_name(names, i): int(count) for i, count in enumerate(pictures)},
        {
            "small": int((areas < MEDIUM).sum()),
            "medium": int(((areas >= MEDIUM) & (areas < LARGE)).sum()),
            "large": int((areas >= LARGE).sum()),
        },
        int(crowds.sum()),
        None,
        int((np.diff(boxes.offsets) == 0).sum()),
    )


def of_masks(counts: npt.NDArray[np.int64], names: Sequence[str]) -> Objects:
    """Count pixels.

    Args:
        counts: int64 ``[N, 256]``: pixels of each number in each mask.
        names: Of classes; a class beyond them is called by its number.
    """
    totals = counts.sum(axis=0)
    real = totals[:VOID]
    classes = max(len(names), int(np.flatnonzero(real).max(initial=-1)) + 1)
    shown = (counts[:, :VOID] > 0).sum(axis=0)
    return Objects(
        {},
        {
            _name(names, i): round(100 * float(real[i]) / max(1, int(real.sum())), 3)
            for i in range(classes)
        },
        {_name(names, i): int(shown[i]) for i in range(classes)},
        {},
        0,
        round(100 * float(totals[VOID]) / max(1, int(totals.sum())), 3),
        int((counts[:, 1:VOID].sum(axis=1) == 0).sum()),
    )


@dataclass(frozen=True)
class Drawn:
    """A picture on the sheet.

    Attributes:
        picture: A Pillow image, upright and small.
        size: Width and height before it was made small.
        mask: Its mask, uint8 ``[h, w]`` of the small picture; None without.
    """

    picture: Any
    size: tuple[int, int]
    mask: npt.NDArray[np.uint8] | None


def sheet(
    pictures: Sequence[Drawn], boxes: Boxes | None, about: Objects, names: Sequence[str]
) -> bytes:
    """A PNG with pictures, their boxes or masks, and a legend of the classes.

    Args:
        pictures: :data:`PICTURES` at most.
        boxes: Those of these pictures.
        about: What the whole set shows, for the legend.
        names: Of classes.
    """
    image = decode.pillow()
    from PIL import ImageDraw

    step = THUMB + MARGIN
    lines = list(about.pictures)[:LEGEND]
    height = max(-(-len(pictures) // COLUMNS) * step + MARGIN, len(lines) * 16 + 2 * MARGIN)
    width = TEXT + min(COLUMNS, max(1, len(pictures))) * step + MARGIN
    canvas = image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, name in enumerate(lines):
        top = MARGIN + 16 * i
        if about.void is None or i:
            draw.rectangle((MARGIN, top + 1, MARGIN + 10, top + 11), fill=colour(i))
        amount = f"{about.boxes[name]:,}" if about.boxes else f"{about.pixels[name]:.1f} %"
        draw.text((MARGIN + 16, top), _latin(f"{shortened(visible(name), 18)}  {amount}"), "black")
    for i, each in enumerate(pictures):
        left, top = TEXT + i % COLUMNS * step, MARGIN + i // COLUMNS * step
        draw.rectangle((left, top, left + THUMB - 1, top + THUMB - 1), fill="gainsboro")
        left += (THUMB - each.picture.size[0]) // 2
        top += (THUMB - each.picture.size[1]) // 2
        picture = each.picture if each.mask is None else _tinted(each.picture, each.mask)
        if boxes is not None:
            picture = _boxed(picture, each.size, boxes[i], names)
        canvas.paste(picture, (left, top))
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def colour(number: int) -> tuple[int, int, int]:
    """A colour for a class; those of neighbours differ much."""
    hue = (0.6 + number * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 1.0, (0.95, 0.65)[number // 8 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _latin(text: str) -> bytes:
    """Text that Pillow's own font can show."""
    return text.replace("…", "..").encode("latin-1", "replace")


def _boxed(picture: Any, size: tuple[int, int], boxes: Boxes, names: Sequence[str]) -> Any:
    from PIL import ImageDraw

    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    scale = np.array([picture.size[0] / size[0], picture.size[1] / size[1]] * 2)
    corners = np.rint(boxes.corners * scale).astype(int)
    labels = []
    for k, (left, top, right, bottom) in enumerate(corners.tolist()):
        number = int(boxes.classes[k])
        right, bottom = max(left, right - 1), max(top, bottom - 1)
        draw.rectangle((left, top, right, bottom), outline=colour(number), width=2)
        if boxes.crowd is not None and boxes.crowd[k]:
            draw.line((left, top, right, bottom), fill=colour(number))
        labels.append((left, top - 12 if top >= 12 else top + 1, number))
    for left, top, number in labels[:30]:  # above all boxes
        text = _latin(shortened(visible(_name(names, number)), 10))
        draw.rectangle(draw.textbbox((left, top), text), fill=colour(number))
        red, green, blue = colour(number)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        draw.text((left, top), text, "white" if dark else "black")
    return picture


def _tinted(picture: Any, mask: npt.NDArray[np.uint8]) -> Any:
    """Classes from 1 on in their colours, void in white, over a picture that is grey there."""
    table = np.array([colour(i) for i in range(256)], np.float32)
    table[VOID] = 255
    pixels = np.asarray(picture, np.float32)
    grey = pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)
    blended = np.where((mask == 0)[..., None], pixels, 0.4 * grey + 0.6 * table[mask])
    return decode.pillow().fromarray(np.rint(blended).astype(np.uint8))
