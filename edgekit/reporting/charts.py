"""Charts of the report page, as SVG text, without a library.

Colours are those of the page: a mark has the class of its group and takes its ``--c``. Every mark
has a text for screen readers and for the tooltip of the page. A chart is one stop of the tab key;
the script of the page moves between its marks by arrow keys.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.base.text import visible

#: Left, top, right, bottom; y may point either way.
Box = tuple[float, float, float, float]

_FONT = 13.0
#: Of the widest usual interface font, so that no label is wider than it was thought.
_LETTER = 0.57 * _FONT
_SHAPES = {
    "tflite": "circle",
    "onnx": "square",
    "keras": "diamond",
    "chosen": "diamond",
    "tried": "dot",
}


@dataclass(frozen=True)
class Mark:
    """A point of a chart.

    Attributes:
        name: Its label; empty where it has none.
        words: What the tooltip and a screen reader say.
        x: Position, in the axis's unit.
        y: Position, in the axis's unit.
        x_ends: Ends of the interval of ``x``; twice ``x`` where there is none.
        y_ends: The same of ``y``.
        group: CSS class that gives the colour.
        format: ``tflite``, ``onnx`` or ``keras``, or ``tried`` or ``chosen`` of a search, which
            decide the shape; else a triangle.
    """

    name: str
    words: str
    x: float
    y: float
    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    group: str
    format: str


@dataclass(frozen=True)
class Series:
    """Values in the order of a model's layers.

    Attributes:
        name: Name of the series; empty where there is one only.
        layers: A name each.
        values: One a layer; may be infinite.
    """

    name: str
    layers: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A line from left to right.

    Attributes:
        group: CSS classes that give its colour and dashes.
        x: From 0 to 1, rising.
        y: From 0 to 1, one for each ``x``.
    """

    group: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def front(marks: Sequence[Mark]) -> list[int]:
    """Places of the marks that no other beats: none is as far left and higher, or the reverse.

    From left to right; equal marks are all in.
    """

    def beats(one: Mark, other: Mark) -> bool:
        return one.x <= other.x and one.y >= other.y and (one.x, one.y) != (other.x, other.y)

    best = [i for i, mark in enumerate(marks) if not any(beats(each, mark) for each in marks)]
    return sorted(best, key=lambda i: (marks[i].x, marks[i].y))


def scatter(
    marks: Sequence[Mark],
    *,
    ident: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    level: float | None,
    level_name: str = "float model",
) -> str:
    """Points with intervals over a log axis, their Pareto front, and a level line.

    Args:
        marks: At least one; ``x`` above 0.
        ident: Prefix of element ids; no two charts of a page may share one.
        title: What the chart is.
        description: What it shows, for those who do not see it.
        x_label: Label of the axis.
        y_label: Label of the axis.
        level: Height of the reference's line, or None.
        level_name: What is written on it.
    """
    width, height = 640.0, 420.0
    left, top, right, bottom = 62.0, 14.0, width - 12, height - 52
    low_x, high_x = min(m.x_ends[0] for m in marks), max(m.x_ends[1] for m in marks)
    margin = (high_x / low_x) ** 0.3 if high_x > low_x else 2.0
    low_x, high_x = low_x / margin, high_x * margin
    levels = [] if level is None else [level]
    low_y = min([m.y_ends[0] for m in marks] + levels)
    high_y = max([m.y_ends[1] for m in marks] + levels)
    pad = (high_y - low_y) * 0.15 or 0.5
    low_y, high_y = low_y - pad, high_y + pad

    def at_x(value: float) -> float:
        return left + (right - left) * math.log(value / low_x) / math.log(high_x / low_x)

    def at_y(value: float) -> float:
        return bottom - (bottom - top) * (value - low_y) / (high_y - low_y)

    parts = _frame(
        (left, top, right, bottom),
        [(at_x(tick), f"{tick:g}") for tick in log_ticks(low_x, high_x)],
        [(at_y(tick), text) for tick, text in even_ticks(low_y, high_y)],
        x_label,
        y_label,
    )
    obstacles: list[Box] = []
    if level is not None:
        y = at_y(level)
        parts.append(f'<path class="level" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(_text(right - 4, y - 5, level_name, "end", "soft"))
        obstacles += [
            (left, y - 1, right, y + 1),
            (right - 4 - len(level_name) * _LETTER, y - _FONT - 5, right, y),
        ]
    best = front(marks)
    corners = []
    for before, after in zip([None, *best], best, strict=False):
        if before is not None:
            corners.append((at_x(marks[after].x), at_y(marks[before].y)))
        corners.append((at_x(marks[after].x), at_y(marks[after].y)))
    if len(best) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        parts.append(f'<path class="front" d="M{path}"/>')
        for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False):
            obstacles.append((min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    points = [(at_x(mark.x), at_y(mark.y)) for mark in marks]
    for mark, (x, y) in zip(marks, points, strict=True):
        x0, x1, y0, y1 = (
            *(at_x(end) for end in mark.x_ends),
            *(at_y(end) for end in mark.y_ends),
        )
        obstacles += [(x0, y - 2, x1, y + 2), (x - 2, y1, x + 2, y0), (x - 7, y - 7, x + 7, y + 7)]
        ends = f"M{x:.1f} {y0:.1f}V{y1:.1f}M{x - 4:.1f} {y0:.1f}h8M{x - 4:.1f} {y1:.1f}h8"
        if x1 > x0:
            ends += f"M{x0:.1f} {y:.1f}H{x1:.1f}M{x0:.1f} {y - 4:.1f}v8M{x1:.1f} {y - 4:.1f}v8"
        parts.append(f'<path class="interval {mark.group}" d="{ends}"/>')
    named = [(mark, point) for mark, point in zip(marks, points, strict=True) if mark.name]
    parts += _labels(
        [mark.name if len(mark.name) <= 28 else f"{mark.name[:27]}…" for mark, _ in named],
        [mark.group for mark, _ in named],
        [point for _, point in named],
        obstacles,
        (left, top, right, bottom),
    )
    for i, (mark, (x, y)) in enumerate(zip(marks, points, strict=True)):
        parts.append(_mark(mark.words, mark.group, _SHAPES.get(mark.format, ""), x, y, i == 0, 12))
    return _svg(parts, width, height, ident, title, description)


def layers(
    series: Sequence[Series], *, ident: str, title: str, description: str, y_label: str
) -> str:
    """Values along the layers of a model, a line a series; the five lowest are named.

    Args:
        series: At least one, with the layers of the model in its order.
        ident: Prefix of element ids.
        title: What the chart is.
        description: What it shows, for those who do not see it.
        y_label: Label of the axis.
    """
    width, height = 1240.0, 420.0
    left, top, right, bottom = 62.0, 14.0, width - 14, height - 52
    order = list(dict.fromkeys(layer for each in series for layer in each.layers))
    finite = [value for each in series for value in each.values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    pad = (high - low) * 0.12 or 1.0
    low, high = low - pad, high + pad

    def at(layer: str, value: float) -> tuple[float, float]:
        x = left + (right - left) * (order.index(layer) + 0.5) / len(order)
        within = min(max(value, low), high)
        return x, bottom - (bottom - top) * (within - low) / (high - low)

    step = max(1, math.ceil(len(order) / 20))
    parts = _frame(
        (left, top, right, bottom),
        [(at(order[i], low)[0], str(i + 1)) for i in range(0, len(order), step)],
        [(at(order[0], tick)[1], text) for tick, text in even_ticks(low, high)],
        "layer, in the order of the model",
        y_label,
    )
    drawn = []
    obstacles: list[Box] = []
    for i, each in enumerate(series):
        group = f"series{i % 4}"
        points = [at(layer, value) for layer, value in zip(each.layers, each.values, strict=True)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path class="line {group}" d="M{path}"/>')
        obstacles += [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
        for layer, value, point in zip(each.layers, each.values, points, strict=True):
            shown = "exact" if value == math.inf else f"{value:.1f} dB"
            words = f"{layer}: {shown}" + (f" ({each.name})" if each.name else "")
            drawn.append((value, layer, words, group, point))
    lowest = sorted(drawn, key=lambda each: each[0])[:5]
    parts += _labels(
        [layer if len(layer) <= 40 else f"…{layer[-39:]}" for _, layer, *_ in lowest],
        [group for *_, group, _ in lowest],
        [point for *_, point in lowest],
        obstacles,
        (left, top, right, bottom),
    )
    for i, (_, _, words, group, (x, y)) in enumerate(drawn):
        parts.append(_mark(words, group, "dot", x, y, i == 0, 7))
    return _svg(parts, width, height, ident, title, description)


def curves(
    drawn: Sequence[Curve],
    *,
    ident: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
) -> str:
    """Lines over a square from 0 to 1, with the title above them.

    Args:
        drawn: The lines; later ones are drawn over earlier ones.
        ident: Prefix of element ids.
        title: What the chart is.
        description: What it shows, for those who do not see it.
        x_label: Label of the axis.
        y_label: Label of the axis.
    """
    width, height = 320.0, 270.0
    left, top, right, bottom = 52.0, 30.0, width - 12, height - 50
    ticks = [i / 4 for i in range(5)]
    at = [left + (right - left) * tick for tick in ticks]
    up = [bottom - (bottom - top) * tick for tick in ticks]
    names = [f"{tick:g}" for tick in ticks]
    parts = _frame(
        (left, top, right, bottom),
        list(zip(at, names, strict=True)),
        list(zip(up, names, strict=True)),
        x_label,
        y_label,
    )
    parts.append(_text(left, top - 12, title, "start", "title"))
    for each in drawn:
        points = [
            f"{left + (right - left) * x:.1f} {bottom - (bottom - top) * y:.1f}"
            for x, y in _corners(list(zip(each.x, each.y, strict=True)))
        ]
        parts.append(f'<path class="line {each.group}" d="M{"L".join(points)}"/>' if points else "")
    return _svg(parts, width, height, ident, title, description)


def _corners(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of a line without those in the middle of a level part."""
    last = len(points) - 1
    return [
        point
        for i, point in enumerate(points)
        if i in (0, last) or not points[i - 1][1] == point[1] == points[i + 1][1]
    ]


def _svg(
    parts: Sequence[str], width: float, height: float, ident: str, title: str, description: str
) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="group" '
        f'aria-labelledby="{ident}-title" aria-describedby="{ident}-desc">'
        f'<title id="{ident}-title">{_escape(title)}</title>'
        f'<desc id="{ident}-desc">{_escape(description)}</desc>{"".join(parts)}</svg>'
    )


def _frame(
    box: Box,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> list[str]:
    """Grid, axes and their labels, which a screen reader passes over."""
    left, top, right, bottom = box
    grid = "".join(f"M{x:.1f} {top:g}V{bottom:g}" for x, _ in x_ticks)
    grid += "".join(f"M{left:g} {y:.1f}H{right:g}" for y, _ in y_ticks)
    parts = [
        '<g aria-hidden="true">',
        f'<path class="grid" d="{grid}"/>',
        f'<path class="axis" d="M{left:g} {top:g}V{bottom:g}H{right:g}"/>',
    ]
    parts += [_text(x, bottom + 19, text, "middle") for x, text in x_ticks]
    parts += [_text(left - 7, y + 4.5, text, "end") for y, text in y_ticks]
    parts.append(_text((left + right) / 2, bottom + 43, x_label, "middle", "soft"))
    x, y = 15.0, (top + bottom) / 2
    parts.append(
        f'<text class="soft" x="{x:g}" y="{y:g}" text-anchor="middle" '
        f'transform="rotate(-90 {x:g} {y:g})">{_escape(y_label)}</text></g>'
    )
    return parts


def _labels(
    names: Sequence[str],
    groups: Sequence[str],
    points: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    frame: Box,
) -> list[str]:
    """Names where they cover nothing, with a line to the point where that is far."""
    sizes = [(len(name) * _LETTER, _FONT + 3) for name in names]
    places = place_labels(points, sizes, obstacles=obstacles, frame=frame)
    parts = []
    for name, group, (x, y), (width, height), (left, top) in zip(
        names, groups, points, sizes, places, strict=True
    ):
        # The width is a guess on the wide side: a label starts or ends towards its point.
        at, anchor = (left + width, "end") if left + width / 2 < x else (left, "start")
        end = min(max(x, left), left + width), min(max(y, top), top + height)
        if math.dist((x, y), end) > 14:
            path = f"M{x:.1f} {y:.1f}L{end[0]:.1f} {end[1]:.1f}"
            parts.append(f'<path class="leader {group}" d="{path}"/>')
        parts.append(_text(at, top + _FONT, name, anchor, f"label {group}"))
    return parts


def _escape(text: str) -> str:
    """For text and attributes of SVG, without control characters."""
    return html.escape(visible(text))


def _text(x: float, y: float, text: str, anchor: str, group: str = "") -> str:
    named = f' class="{group}"' if group else ""
    return (
        f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" aria-hidden="true">'
        f"{_escape(text)}</text>"
    )


def _mark(words: str, group: str, shape: str, x: float, y: float, first: bool, reach: float) -> str:
    """A point with a larger invisible one around it for the pointer."""
    drawn = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>',
        "dot": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>',
        "square": f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>',
        "diamond": f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7-7z"/>',
    }.get(shape, f'<path d="M{x:.1f} {y - 6:.1f}l6 11h-12z"/>')
    said = _escape(words)
    return (
        f'<g class="mark {group}" tabindex="{0 if first else -1}" role="img" '
        f'aria-label="{said}" data-tip="{said}">'
        f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="{reach:g}"/>{drawn}</g>'
    )


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a log axis from ``low`` to ``high``, few enough to be read."""
    steps: tuple[float, ...] = (1.0, 2.0, 5.0)
    if high / low < 15:
        steps = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)
    if high / low > 1000:
        steps = (1.0,)
    if high / low < 2:
        steps = tuple(1 + i / 10 for i in range(90))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside[:: math.ceil(len(inside) / 9) or 1]


def even_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Four to eight round numbers from ``low`` to ``high``, with as many places as they need."""
    rough = (high - low) / 5
    power = math.floor(math.log10(rough))
    step = min((1, 2, 5, 10), key=lambda each: abs(each - rough / 10.0**power)) * 10.0**power
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(i * step, f"{i * step:.{places}f}") for i in range(first, last + 1)]


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    obstacles: Sequence[Box],
    frame: Box,
) -> list[tuple[float, float]]:
    """Where labels go so that they cover neither each other nor what is drawn.

    Greedy: each label in turn takes the free place nearest to its point.

    Args:
        points: What is labelled, x and y.
        sizes: Width and height of the labels.
        obstacles: Boxes to keep clear of.
        frame: The box to stay in.

    Returns:
        Left and least y of each label. Where no place is free, the one that covers least.
    """
    taken = list(obstacles)
    places = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        candidates = []
        for row in range(-24, 25):
            bottom = y - height / 2 + row * height / 2
            for left in (x + 10, x - 10 - width, x - width / 2, x + 30, x - 30 - width):
                box = (left, bottom, left + width, bottom + height)
                inside = box[0] >= frame[0] and box[2] <= frame[2]
                if inside and box[1] >= frame[1] and box[3] <= frame[3]:
                    away = math.hypot(max(box[0] - x, x - box[2], 0), bottom + height / 2 - y)
                    covered = sum(overlap(box, other) for other in taken)
                    candidates.append((covered, away, box))
        if candidates:
            _, _, best = min(candidates)
        else:  # a label larger than the frame
            best = (frame[0], y, frame[0] + width, y + height)
        taken.append(best)
        places.append(best[:2])
    return places


def overlap(first: Box, second: Box) -> float:
    """Area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)
