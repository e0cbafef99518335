"""The parts of the page that are of detectors and segmentation networks, ready for the template.

Numbers of each class, curves of precision over recall, the confusion of pixels, and pictures with
the boxes or the classes of pixels that the float model and a deployable find, side by side.
"""

from __future__ import annotations

import base64
import colorsys
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.base.text import shortened
from edgekit.data.masks import VOID
from edgekit.evaluation.changes import png
from edgekit.records.predictions import Box, BoxPicture, Curve, MaskPicture
from edgekit.records.results import (
    IOU_OF_CLASS,
    MAP_OF_CLASS,
    ArtifactResult,
    Report,
)
from edgekit.reporting import charts

Name = Callable[[ArtifactResult], str]

#: Charts of precision over recall, at most; those of the classes whose precision changed most.
_CHARTS = 12
#: A matrix of pixels has at most so many classes; beyond it, the most frequent ones are listed.
_MATRIX, _PAIRS = 16, 24
#: Longer edge of a picture with boxes, in the unit of its drawing, in which letters are 11 high.
_EDGE = 220.0
#: Width of a letter beside a box, on the wide side, and height of a line.
_LETTER, _HIGH = 6.3, 12.0
#: Characters of a class's name beside a box.
_LABEL = 16
#: Boxes and classes that the text of a picture names.
_SAID = 12
#: Characters of the page that a drawn box takes, about.
_BOX = 330
#: Part of the circle of hues from a class to the next: the golden section, which repeats none.
_GOLDEN = 0.618034


def sections(source: Report, short: Name, room: int, markup: Any) -> dict[str, Any]:
    """What there is to show; each is None where there is nothing.

    Args:
        source: The report.
        short: Name of a result, as the page has it.
        room: Characters that pictures may take.
        markup: What tells the template that text is markup already.
    """
    changed = [
        result
        for result in source.artifacts
        if (result.box_changes and result.box_changes.pictures)
        or (result.mask_changes and result.mask_changes.pictures)
    ]
    room //= max(1, len(changed))
    return {
        "classes": _classes(source, short),
        "curves": _curves(source, short, markup),
        "confusion": _confusion(source, short),
        "boxes": _boxes(source, short, room),
        "masks": _masks(source, short, room),
    }


def class_name(number: int, source: Report) -> str:
    """Name of a class, as the data has it."""
    names = source.data.class_names
    return names[number] if number < len(names) else f"class {number}"


def _classes(source: Report, short: Name) -> dict[str, Any] | None:
    """The mAP at IoU 0.5, or the IoU, of each class and model, with its change."""
    results = (source.reference, *source.artifacts)
    for start, title in ((MAP_OF_CLASS, "mAP50"), (IOU_OF_CLASS, "IoU")):
        names = dict.fromkeys(
            name for result in results for name in result.metrics if name.startswith(start)
        )
        if names:
            counts = {class_name(c.number, source): c.count for c in source.reference.curves}
            return {
                "title": title,
                "counts": bool(counts),
                "models": [short(result) for result in results],
                "rows": [
                    {
                        "name": name[len(start) :],
                        "count": counts.get(name[len(start) :], ""),
                        "cells": [_of_class(name, result, source.reference) for result in results],
                    }
                    for name in names
                ],
            }
    return None


def _of_class(name: str, result: ArtifactResult, reference: ArtifactResult) -> dict[str, str]:
    now, before = result.metrics.get(name), reference.metrics.get(name)
    if now is None:
        return {"value": "–", "change": "", "sort": ""}
    change = ""
    if before is not None and result is not reference:
        change = signed(now.value - before.value)
    return {"value": f"{now.value:.2f}", "change": change, "sort": repr(now.value)}


def signed(points: float) -> str:
    """Two places and a sign; nought has none."""
    shown = f"{points:+.2f}"
    return "0.00" if float(shown) == 0 else shown.replace("-", "−")


def _curves(source: Report, short: Name, markup: Any) -> dict[str, Any] | None:
    """A chart for each class with a line for each model, and what they show as a table."""
    drawn = [result for result in (source.reference, *source.artifacts) if result.curves]
    if not drawn:
        return None
    by_class = {
        number: [(r, curve) for r in drawn for curve in r.curves if curve.number == number]
        for number in dict.fromkeys(curve.number for r in drawn for curve in r.curves)
    }
    most = sorted(by_class, key=lambda number: -_apart([curve for _, curve in by_class[number]]))
    shown = sorted(most[:_CHARTS])
    return {
        "charts": [
            markup(_chart(number, by_class[number], source, short, ident=f"curve-{i}"))
            for i, number in enumerate(shown)
        ],
        "left_out": len(by_class) - len(shown),
        "key": [
            {"name": short(result), "group": _group(result, source), "dash": _dash(result, source)}
            for result in drawn
        ],
        "rows": [
            {
                "name": class_name(number, source),
                "model": short(result),
                "count": curve.count,
                "area": _area(curve),
                "at": [f"{_at(curve, recall):.3f}" for recall in (0.5, 0.75, 0.9)],
            }
            for number, of_class in by_class.items()
            for result, curve in of_class
        ],
    }


def _apart(curves: Sequence[Curve]) -> float:
    """How far the precisions of a class lie apart, on average over the recall."""
    means = [sum(curve.precision) / max(1, len(curve.precision)) for curve in curves]
    return max(means) - min(means)


def _area(curve: Curve) -> str:
    mean = sum(curve.precision) / max(1, len(curve.precision))
    return f"{mean:.3f}"


def _at(curve: Curve, recall: float) -> float:
    """Precision at a recall: that of the first point which has it; 0 where none has."""
    pairs = zip(curve.recall, curve.precision, strict=True)
    return next((precision for each, precision in pairs if each >= recall - 1e-9), 0.0)


def _group(result: ArtifactResult, source: Report) -> str:
    return "other" if result is source.reference else result.precision


def _dash(result: ArtifactResult, source: Report) -> str:
    if result is source.reference:
        return "dotted"
    return "dashed" if result.format == "onnx" else ""


def _chart(
    number: int,
    of_class: Sequence[tuple[ArtifactResult, Curve]],
    source: Report,
    short: Name,
    ident: str,
) -> str:
    name, count = class_name(number, source), of_class[0][1].count
    title = f"{shortened(name, 28)}, {count:,} box{'' if count == 1 else 'es'}"
    said = "; ".join(
        f"{short(result)} has precision {_at(curve, 0.5):.2f} at recall 0.5 and "
        f"{_at(curve, 0.9):.2f} at 0.9"
        for result, curve in of_class
    )
    return charts.curves(
        [
            charts.Curve(
                f"{_group(result, source)} {_dash(result, source)}".strip(),
                curve.recall,
                curve.precision,
            )
            # the reference over the others, since it is dotted
            for result, curve in sorted(of_class, key=lambda pair: pair[0] is source.reference)
        ],
        ident=ident,
        title=title,
        description=f"Precision over recall of {name} at IoU 0.5: {said}",
        x_label="recall",
        y_label="precision",
    )


def _confusion(source: Report, short: Name) -> list[dict[str, Any]] | None:
    """Of each model with a record: a matrix in % of the pixels of the right class, or pairs."""
    recorded = [r for r in source.artifacts if r.confusion is not None and r.confusion.counts]
    if not recorded:
        return None
    before = _shares(source.reference)
    return [_confused(result, before, source, short) for result in recorded]


def _shares(result: ArtifactResult) -> npt.NDArray[np.float64] | None:
    """Float64 ``[C, C]``: % of the pixels of each right class; NaN of a class without pixels."""
    if result.confusion is None:
        return None
    counts = np.array(result.confusion.counts, np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.full_like(counts, math.nan)
    np.divide(100 * counts, totals, out=shares, where=totals > 0)
    return shares


def _confused(
    result: ArtifactResult,
    before: npt.NDArray[np.float64] | None,
    source: Report,
    short: Name,
) -> dict[str, Any]:
    shares = _shares(result)
    assert shares is not None
    classes = len(shares)
    changes = np.full_like(shares, math.nan)
    if before is not None and before.shape == shares.shape:
        changes = shares - before
    names = [class_name(number, source) for number in range(classes)]
    wrong = shares.copy()
    np.fill_diagonal(wrong, math.nan)
    most = float(np.nanmax(wrong, initial=0.0))

    def cell(right: int, found: int) -> dict[str, Any]:
        share, change = float(shares[right, found]), float(changes[right, found])
        heat = 0
        if right != found and most > 0 and share > 0:
            heat = math.ceil(4 * share / most)
        return {
            "share": "–" if math.isnan(share) else f"{share:.1f}",
            "change": signed(change) if abs(change) >= 0.005 else "",
            "heat": heat,
        }

    order = (divmod(int(place), classes) for place in np.argsort(-wrong, axis=None))
    pairs = [pair for pair in order if wrong[pair] > 0]
    return {
        "name": short(result),
        "classes": names,
        "matrix": [
            {"name": names[right], "cells": [cell(right, found) for found in range(classes)]}
            for right in range(classes)
        ]
        if classes <= _MATRIX
        else None,
        "pairs": [
            {"right": names[right], "found": names[found], **cell(right, found)}
            for right, found in pairs[:_PAIRS]
        ],
        "more": max(0, len(pairs) - _PAIRS),
    }


def _boxes(source: Report, short: Name, room: int) -> dict[str, Any] | None:
    """Pictures with other boxes, of each deployable."""
    recorded = [result for result in source.artifacts if result.box_changes is not None]
    if not recorded:
        return None
    artifacts = []
    for number, result in enumerate(recorded):
        changes = result.box_changes
        assert changes is not None
        if not changes.images:
            continue
        left, pictures = room, []
        for place, each in enumerate(changes.pictures):
            boxes = len(each.before) + len(each.now) + len(each.right)
            left -= len(each.picture) + _BOX * boxes + 1500
            if left < 0:
                break
            pictures.append(_box_picture(each, source, f"seen-{number}-{place}"))
        artifacts.append(
            {
                "name": short(result),
                "images": changes.images,
                "lost": changes.lost,
                "new": changes.new,
                "score": f"{changes.score:g}",
                "pictures": pictures,
                "left_out": len(changes.pictures) - len(pictures),
            }
        )
    return {
        "unchanged": [
            short(result) for result in recorded if result.box_changes and not _changed(result)
        ],
        "artifacts": artifacts,
    }


def _changed(result: ArtifactResult) -> bool:
    return bool(result.box_changes and result.box_changes.images)


Panel = Literal["before", "now", "right"]


def _box_picture(each: BoxPicture, source: Report, ident: str) -> dict[str, Any]:
    scale = _EDGE / max(each.width, each.height)
    width, height = scale * each.width, scale * each.height
    panels: list[tuple[Panel, tuple[Box, ...]]] = [("before", each.before), ("now", each.now)]
    if each.right:
        panels.append(("right", each.right))
    return {
        "ident": ident,
        "index": each.index,
        "lost": each.lost,
        "new": each.new,
        "picture": each.picture,
        "width": f"{width:.1f}",
        "height": f"{height:.1f}",
        "panels": [
            {
                "kind": kind,
                "said": _boxes_said(boxes, kind, source),
                "boxes": _drawn(boxes, kind, width, height, source),
            }
            for kind, boxes in panels
        ],
    }


def _became(box: Box, kind: Panel) -> str:
    if kind == "right":
        return "right"
    return {"before": "lost", "now": "new"}[kind] if box.alone else "kept"


def _drawn(
    boxes: Sequence[Box], kind: Panel, width: float, height: float, source: Report
) -> list[dict[str, Any]]:
    """Boxes in the unit of a drawing, with labels that cover each other as little as can be.

    What is alone is drawn over what is not, and a high score over a low one.
    """
    taken: list[charts.Box] = []
    drawn = []
    for box in sorted(boxes, key=lambda box: (not box.alone, -(box.score or 0.0))):
        # A hair beyond the picture, so that edges which lie outside are not seen
        left, right = (min(max(each, -0.02), 1.02) * width for each in (box.left, box.right))
        top, bottom = (min(max(each, -0.02), 1.02) * height for each in (box.top, box.bottom))
        label = shortened(class_name(box.number, source), _LABEL)
        if box.score is not None:
            label += f" {100 * box.score:.0f}"
        wide = len(label) * _LETTER
        x = min(max(left, 2.0), max(2.0, width - wide))
        places = [  # feet of the letters: above the box, inside at its top and bottom, below it
            (x, y, x + wide, y + _HIGH)
            for y in (top - _HIGH - 1, top + 1, bottom - _HIGH - 1, bottom + 1)
            if 0 <= y <= height - _HIGH
        ]
        covered = [sum(charts.overlap(place, other) for other in taken) for place in places]
        best = places[covered.index(min(covered))] if places else (x, 0.0, x + wide, _HIGH)
        taken.append(best)
        drawn.append(
            {
                "became": _became(box, kind),
                "path": f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z",
                "label": label,
                "x": f"{best[0]:.1f}",
                "y": f"{best[3] - 2:.1f}",
            }
        )
    return drawn[::-1]


def _boxes_said(boxes: Sequence[Box], kind: Panel, source: Report) -> str:
    """The boxes in words, as ``2 boxes: bag 91 %, red car 40 % (lost)``."""
    words = []
    for box in boxes[:_SAID]:
        score = "" if box.score is None else f" {100 * box.score:.0f} %"
        became = f" ({_became(box, kind)})" if box.alone and kind != "right" else ""
        words.append(f"{class_name(box.number, source)}{score}{became}")
    more = f" and {len(boxes) - _SAID} more" if len(boxes) > _SAID else ""
    count = f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'}"
    return f"{count}: {', '.join(words)}{more}" if boxes else "no box"


def palette() -> npt.NDArray[np.uint8]:
    """uint8 ``[256, 3]``: a colour for each class, far from those of the classes beside it and
    bright, so that all are seen on black, which class 0 has; VOID is pale."""
    colours = np.zeros((256, 3), np.uint8)
    for number in range(1, 256):
        saturation, value = ((0.85, 1.0), (0.45, 1.0), (0.75, 0.7))[number % 3]
        red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, saturation, value)
        colours[number] = round(255 * red), round(255 * green), round(255 * blue)
    colours[VOID] = 230
    return colours


def _masks(source: Report, short: Name, room: int) -> dict[str, Any] | None:
    """Pictures with other pixels, of each deployable."""
    recorded = [result for result in source.artifacts if result.mask_changes is not None]
    if not recorded:
        return None
    artifacts, seen = [], set()
    for result in recorded:
        changes = result.mask_changes
        assert changes is not None
        if not changes.images:
            continue
        left, pictures = room, []
        for each in changes.pictures:
            drawn, classes = _mask_picture(each, source)
            left -= len(each.picture) + sum(len(panel["png"]) + 300 for panel in drawn["panels"])
            if left < 0:
                break
            pictures.append(drawn)
            seen |= classes
        artifacts.append(
            {
                "name": short(result),
                "images": changes.images,
                "pictures": pictures,
                "left_out": len(changes.pictures) - len(pictures),
            }
        )
    return {
        "unchanged": [
            short(result)
            for result in recorded
            if result.mask_changes and not result.mask_changes.images
        ],
        "artifacts": artifacts,
        "key": [
            {
                "name": "no class" if number == VOID else class_name(number, source),
                "colour": "#{:02x}{:02x}{:02x}".format(*palette()[number]),
            }
            for number in sorted(seen)
        ],
    }


def _mask_picture(each: MaskPicture, source: Report) -> tuple[dict[str, Any], set[int]]:
    before, now = each.classes(each.before), each.classes(each.now)
    panels = [("before", before), ("now", now)]
    if each.right:
        panels.append(("right", each.classes(each.right)))
    colours = palette()
    apart = np.where(before != now, 255, 40).astype(np.uint8)[:, :, None]
    drawn = [
        {"kind": kind, "said": _classes_said(classes, source), "png": _text(colours[classes])}
        for kind, classes in panels
    ]
    share = float(100 * (before != now).mean())
    drawn.insert(
        2, {"kind": "apart", "said": f"{share:.1f} % of this small one", "png": _text(apart)}
    )
    seen = {int(number) for _, classes in panels for number in np.unique(classes)}
    picture = {
        "index": each.index,
        "agreement": f"{each.agreement:.1f}",
        "picture": each.picture,
        "width": each.width,
        "height": each.height,
        "panels": drawn,
    }
    return picture, seen


def _text(pixels: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(png(pixels)).decode("ascii")


def _classes_said(classes: npt.NDArray[np.uint8], source: Report) -> str:
    """The classes of a map in words, as ``background 70 %, bag 30 %``."""
    numbers, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    words = [
        f"{'no class' if numbers[i] == VOID else class_name(int(numbers[i]), source)} "
        f"{100 * counts[i] / classes.size:.0f} %"
        for i in order[:_SAID]
    ]
    more = f" and {len(order) - _SAID} more" if len(order) > _SAID else ""
    return ", ".join(words) + more
