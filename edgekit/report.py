"""``python -m edgekit.report``: turn a report into one self-contained HTML page.

Verdict first, then accuracy against latency and size, every figure, what ran, the environment and
the command. No script, no network; light and dark; printable.
"""

from __future__ import annotations

import argparse
import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import cli, outputs
from edgekit.errors import MissingDependencyError
from edgekit.results import ArtifactResult, Conditions, Measurement, Parity, Report
from edgekit.stats import SIGNIFICANT, discordant
from edgekit.text import visible

#: Metric: column title, unit, format, factor.
_COLUMNS: dict[str, tuple[str, str, str, float]] = {
    "top1": ("top-1", "%", ".2f", 1),
    "top5": ("top-5", "%", ".2f", 1),
    "agreement": ("agrees", "%", ".2f", 1),
    "top1_change": ("change", "points", "+.2f", 1),
    "mcnemar_p": ("p", "McNemar", ".3f", 1),
    "images_needed": ("needs", "images", ",.0f", 1),
    "kl": ("KL", "nats", ".1e", 1),
    "sqnr": ("SQNR", "dB", ".1f", 1),
    "size": ("size", "MB", ".2f", 1e-6),
    "peak_memory": ("peak memory", "MB", ".0f", 1e-6),
    "load_time": ("load", "ms", ".1f", 1),
    "latency_p50": ("p50", "ms", ".3f", 1),
    "latency_p90": ("p90", "ms", ".3f", 1),
    "latency_p99": ("p99", "ms", ".3f", 1),
    "latency_ratio": ("ratio", "x float32", ".2f", 1),
    "energy": ("energy", "mJ an image", ".3f", 1),
}
#: Points of top-1. A wider doubt than this is no proof that nothing was lost.
RESOLUTION = 1.0

_VERDICTS = {
    "same": "same accuracy",
    "better": "more accurate",
    "worse": "less accurate",
    "unclear": "too few images to tell",
    "unknown": "not measured",
}
#: Drawn in these colours, which the page then replaces by its own, light or dark.
_INK, _LINE = "#010203", "#040506"
_COLOURS = {"float32": "#0a0b01", "float16": "#0a0b02", "int8": "#0a0b03"}
_OTHER_COLOUR = "#0a0b04"
_MARKERS = {"tflite": "o", "onnx": "s", "keras": "D"}
_PAGE_COLOURS = {
    _INK: "var(--ink)",
    _LINE: "var(--line)",
    **{colour: f"var(--{precision})" for precision, colour in _COLOURS.items()},
    _OTHER_COLOUR: "var(--soft)",
}

#: Left, bottom, right, top in points.
Box = tuple[float, float, float, float]


def report(source: Report) -> str:
    """The page as text; the same report gives the same text.

    Raises:
        MissingDependencyError: If jinja2 or matplotlib are not installed.
        ReportError: If an image by image record in the report does not fit its data.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError:
        raise MissingDependencyError("jinja2", "report") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # what is markup already is the plots, whose text was made visible before
        finalize=lambda value: (
            visible(value)
            if isinstance(value, str) and not isinstance(value, markupsafe.Markup)
            else value
        ),
    )
    lines = [_line(result, source) for result in source.artifacts]
    results = (source.reference, *source.artifacts)
    shown = [name for name in _COLUMNS if any(name in result.metrics for result in results)]
    plots = []
    for metric, axis, unit, factor, title in (
        ("latency_p50", "latency p50 at batch 1, ms (log scale)", "ms", 1.0, "latency"),
        ("size", "size, MB (log scale)", "MB", 1e-6, "size"),
    ):
        drawn = [result for result in source.artifacts if _drawable(result, metric)]
        if drawn:
            svg = _plot(source, drawn, metric, axis, factor)
            plots.append(
                {
                    "label": _alt(drawn, source, metric, unit, factor, title),
                    "svg": markupsafe.Markup(svg),
                    "missing": [_short(r, source) for r in source.artifacts if r not in drawn],
                }
            )
    return environment.get_template("report.html.j2").render(
        report=source,
        reference=source.reference,
        reference_top1=_cell("top1", source.reference.metrics.get("top1")),
        headline=_headline(lines),
        summary=_summary(lines, source),
        lines=lines,
        plots=plots,
        columns=[{"title": _COLUMNS[name][0], "unit": _COLUMNS[name][1]} for name in shown],
        rows=[_row(result, source, shown) for result in results],
        results=results,
        parity=_parity(source.parity),
        samples=len(source.reference.latency_ms),
        conditions=_conditions(source.conditions),
    )


def _parity(found: Parity | None) -> dict[str, Any] | None:
    """Pairs of ways to run the same integers, with the share of output numbers by distance."""
    if found is None:
        return None
    last = 4
    pairs = []
    for pair in found.pairs:
        total = max(1, sum(pair.histogram))
        counts = [*pair.histogram[:last], sum(pair.histogram[last:])]
        shares = [100 * count / total for count in counts]
        pairs.append(
            {
                "left": pair.left,
                "right": pair.right,
                "agreement": _cell("agreement", pair.agreement),
                "mean": f"{pair.mean_lsb.value:.4f}",
                "shares": [{"text": f"{share:.2f}", "width": f"{share:.1f}"} for share in shares],
            }
        )
    return {"labels": [*map(str, range(last)), f"{last} or more"], "pairs": pairs}


def _conditions(found: Conditions | None) -> list[str]:
    """What could be read of the machine during the latency rounds."""
    if found is None:
        return []
    said = []
    if found.clock_mhz is not None:
        said.append(f"clock {found.clock_mhz[0]:,.0f} to {found.clock_mhz[1]:,.0f} MHz")
    if found.other_load is not None:
        said.append(f"other programs {found.other_load:.2f} cores")
    if found.stolen is not None:
        said.append(f"stolen {found.stolen:.1f} %")
    if found.celsius is not None:
        said.append(f"up to {found.celsius:.0f} °C")
    if found.throttled is not None:
        said.append(f"throttled {found.throttled} times")
    return said


def _headline(lines: list[dict[str, Any]]) -> str:
    def named(*verdicts: str) -> list[str]:
        return [line["name"] for line in lines if line["verdict"] in verdicts]

    if not lines:
        return "No deployable was measured"
    worse, open_ = named("worse"), named("unclear", "unknown")
    if worse:
        return (
            f"{len(worse)} of {len(lines)} deployables {'is' if len(worse) == 1 else 'are'} "
            f"less accurate than the float model: {', '.join(worse)}"
        )
    if open_:
        return f"No proof for {len(open_)} of {len(lines)} deployables: {', '.join(open_)}"
    if len(lines) == 1:
        return f"{lines[0]['name']} answers as well as the float model"
    return f"All {len(lines)} deployables answer as well as the float model"


def _summary(lines: list[dict[str, Any]], source: Report) -> list[str]:
    """What someone who decides asks next: how far off at most, which is fastest, smallest."""
    found = []
    changes = [(line["change"], line["name"]) for line in lines if line["change"] is not None]
    if changes:
        change, name = min(changes)
        found.append(f"Lowest top-1: {_signed(change)} points ({name})")
    for title, metric in (
        ("Fewest same answers", "agreement"),
        ("Fastest", "latency_p50"),
        ("Smallest", "size"),
    ):
        having = [result for result in source.artifacts if metric in result.metrics]
        if having:
            least = min(having, key=lambda result: result.metrics[metric].value)
            unit = _COLUMNS[metric][1]
            value = _cell(metric, least.metrics[metric])["value"]
            found.append(f"{title}: {value} {unit} ({_short(least, source)})")
    return found


def _line(result: ArtifactResult, source: Report) -> dict[str, Any]:
    top1, base = result.metrics.get("top1"), source.reference.metrics.get("top1")
    change = None if top1 is None or base is None else top1.value - base.value
    interval = _change_interval(result, source)
    p = result.metrics.get("mcnemar_p")
    verdict = "same"
    if change is None or p is None:
        verdict = "unknown"
    elif p.value < SIGNIFICANT:
        verdict = "worse" if change < 0 else "better"
    elif interval is None or interval[0] < -RESOLUTION:
        verdict = "unclear"
    return {
        "name": _short(result, source),
        "verdict": verdict,
        "words": _VERDICTS[verdict],
        "change": change,
        "shown": "–" if change is None else _signed(change),
        "interval": "" if interval is None else " to ".join(map(_signed, interval)),
        "cells": [
            _cell(name, result.metrics.get(name))["value"]
            for name in ("mcnemar_p", "agreement", "size", "latency_p50", "latency_ratio")
        ],
    }


def _change_interval(result: ArtifactResult, source: Report) -> tuple[float, float] | None:
    """95 % interval of the change of top-1 in points, from the images of both.

    Adjusted Wald interval for a difference of paired proportions (Agresti and Min 2005): half an
    image is added to each of the four cells right/wrong x right/wrong.
    """
    if not (result.correct and source.reference.correct):
        return None
    count = source.data.count
    lost, gained = discordant(source.reference.correct_bits(count), result.correct_bits(count))
    total = count + 2
    change = (gained - lost) / total
    deviation = math.sqrt((gained + lost + 1) / total - change**2) / math.sqrt(total)
    return 100 * (change - 1.96 * deviation), 100 * (change + 1.96 * deviation)


def _signed(points: float) -> str:
    """Two places and a sign; nought has none."""
    shown = f"{points:+.2f}"
    return "0.00" if float(shown) == 0 else shown.replace("-", "−")


def _short(result: ArtifactResult, source: Report) -> str:
    return result.name.removeprefix(f"{source.model_id}-")


def _row(result: ArtifactResult, source: Report, shown: Sequence[str]) -> dict[str, Any]:
    return {
        "name": _short(result, source),
        "reference": result is source.reference,
        "cells": [_cell(name, result.metrics.get(name)) for name in shown],
    }


def _cell(name: str, found: Measurement | None) -> dict[str, str]:
    if found is None:
        return {"value": "–", "interval": ""}
    _, _, form, factor = _COLUMNS[name]
    if math.isinf(found.value):
        exact = name == "sqnr" and found.value > 0
        return {"value": "exact" if exact else f"{found.value:+}", "interval": ""}
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"{found.low * factor:{form}} – {found.high * factor:{form}}"
    value = f"{found.value * factor:{form}}"
    if name == "kl" and found.value == 0:
        value = "0"
    if name == "mcnemar_p" and found.value < 0.001:
        value = "< 0.001"
    return {"value": value, "interval": interval}


def _alt(
    drawn: Sequence[ArtifactResult],
    source: Report,
    metric: str,
    unit: str,
    factor: float,
    title: str,
) -> str:
    points = "; ".join(
        f"{_short(result, source)} {result.metrics['top1'].value:.2f} % "
        f"at {result.metrics[metric].value * factor:.3g} {unit}"
        for result in drawn
    )
    return f"Top-1 against {title}: {points}"


def _drawable(result: ArtifactResult, metric: str) -> bool:
    top1, other = result.metrics.get("top1"), result.metrics.get(metric)
    return (
        top1 is not None
        and other is not None
        and 0 <= top1.value <= 100
        and 1e-9 < other.value < 1e18
    )


def _plot(
    source: Report, drawn: Sequence[ArtifactResult], metric: str, axis: str, factor: float
) -> str:
    """One scatter as SVG text: a point an artifact, bars for the intervals."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter
    except ImportError:
        raise MissingDependencyError("matplotlib", "report") from None

    style = {
        "svg.fonttype": "none",  # text stays text: smaller, selectable, escaped by the writer
        "svg.hashsalt": "edgekit",
        "text.parse_math": False,
        "font.size": 9,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "text.color": _INK,
        "grid.color": _LINE,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # measured a little off then; the reader's browser has the glyph
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure = Figure(figsize=(6, 4), dpi=72, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.grid(True)
        axes.set_axisbelow(True)
        bars: list[tuple[float, float, float, float]] = []
        for result in drawn:
            top1, other = result.metrics["top1"], result.metrics[metric]
            x, (left, right) = other.value * factor, _ends(other, factor)
            left, right = max(left, x / 1e3), min(right, x * 1e3)  # a log axis has no 0
            low, high = (min(max(end, 0), 100) for end in _ends(top1, 1))
            axes.errorbar(
                x,
                top1.value,
                xerr=[[x - left], [right - x]],
                yerr=[[top1.value - low], [high - top1.value]],
                color=_colour(result),
                fmt=_MARKERS.get(result.format, "^"),
                markersize=7,
                markeredgewidth=0,
                elinewidth=1,
                alpha=0.85,
            )
            bars.append((left, low, right, high))
        base = source.reference.metrics.get("top1")
        if base is not None and not 0 <= base.value <= 100:
            base = None
        if base is not None:
            axes.axhline(base.value, color=_INK, linewidth=0.8, linestyle="--")
        low_x, high_x = min(bar[0] for bar in bars), max(bar[2] for bar in bars)
        margin = (high_x / low_x) ** 0.3 if high_x > low_x else 2
        axes.set_xlim(low_x / margin, high_x * margin)
        axes.margins(y=0.2)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(*axes.get_xlim())))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(axis)
        axes.set_ylabel("top-1, %")
        canvas.draw()

        points: list[tuple[float, float]] = []
        obstacles: list[Box] = []
        for result, bar in zip(drawn, bars, strict=True):
            at = (result.metrics[metric].value * factor, result.metrics["top1"].value)
            x, y = (float(value) for value in axes.transData.transform(at))
            left, bottom = (float(v) for v in axes.transData.transform(bar[:2]))
            right, top = (float(v) for v in axes.transData.transform(bar[2:]))
            points.append((x, y))
            obstacles.append((x - 3, bottom - 1, x + 3, top + 1))
            obstacles.append((left - 1, y - 4, right + 1, y + 4))
            obstacles.append((x - 5, y - 5, x + 5, y + 5))
        texts = [axes.text(0, 0, _label(result, source), color=_colour(result)) for result in drawn]
        area = axes.get_window_extent()
        frame = (area.x0 + 2, area.y0 + 2, area.x1 - 2, area.y1 - 2)
        if base is not None:
            y = float(axes.transData.transform((low_x, base.value))[1])
            obstacles.append((frame[0], y - 1, frame[2], y + 1))
            texts.append(axes.text(0, 0, "float model", color=_INK, style="italic"))
            points.append((frame[0] - 4, y))
        renderer = canvas.get_renderer()
        # Browsers may draw with a font that is a little wider than the one measured here.
        sizes = [
            (1.08 * extent.width, extent.height)
            for extent in (text.get_window_extent(renderer) for text in texts)
        ]
        places = place_labels(points, sizes, obstacles=obstacles, frame=frame)
        for text, point, size, (x, y) in zip(texts, points, sizes, places, strict=True):
            text.set_in_layout(False)
            text.set_position(axes.transData.inverted().transform((x, y)))
            text.set_verticalalignment("bottom")
            end = (min(max(point[0], x), x + size[0]), min(max(point[1], y), y + size[1]))
            if math.dist(point, end) > 14 and text.get_text() != "float model":
                ends = axes.transData.inverted().transform((point, end))
                axes.plot(*ends.T, color=text.get_color(), linewidth=0.6, in_layout=False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    # Two figures on one page must not share element ids.
    svg = re.sub(
        r'(id="|url\(#|href="#)', rf"\g<1>{html.escape(metric)}-", svg[svg.index("<svg") :]
    )
    for drawn_in, shown_in in _PAGE_COLOURS.items():
        svg = svg.replace(drawn_in, shown_in)
    return svg


def _label(result: ArtifactResult, source: Report) -> str:
    name = visible(_short(result, source))
    return name if len(name) <= 28 else f"{name[:27]}…"


def _colour(result: ArtifactResult) -> str:
    return _COLOURS.get(result.precision, _OTHER_COLOUR)


def _ends(found: Measurement, factor: float) -> tuple[float, float]:
    """The interval around the value, which it may not leave out; the value where there is none."""
    low = found.value if found.low is None else min(found.low, found.value)
    high = found.value if found.high is None else max(found.high, found.value)
    if not (math.isfinite(low) and math.isfinite(high)):
        low = high = found.value
    return low * factor, high * factor


def _ticks(low: float, high: float) -> list[float]:
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
        points: What is labelled, x and y in points.
        sizes: Width and height of the labels, in points.
        obstacles: Boxes to keep clear of.
        frame: The box to stay in.

    Returns:
        Left and bottom of each label. Where no place is free, the one that covers least.
    """
    taken = list(obstacles)
    places = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        candidates = []
        for row in range(-24, 25):
            bottom = y - height / 2 + row * height / 2
            for left in (x + 7, x - 7 - width, x - width / 2, x + 30, x - 30 - width):
                box = (left, bottom, left + width, bottom + height)
                inside = box[0] >= frame[0] and box[2] <= frame[2]
                if inside and box[1] >= frame[1] and box[3] <= frame[3]:
                    away = math.hypot(max(box[0] - x, x - box[2], 0), bottom + height / 2 - y)
                    covered = sum(_overlap(box, other) for other in taken)
                    candidates.append((covered, away, box))
        if candidates:
            _, _, best = min(candidates)
        else:  # a label larger than the frame
            best = (frame[0], y, frame[0] + width, y + height)
        taken.append(best)
        places.append(best[:2])
    return places


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.report``."""
    result = cli.Parser(
        "report",
        description="Turn a report of `edgekit compare` into one self-contained HTML page.",
        examples="""
python -m edgekit.report report.json --out report.html
""",
    )
    result.add_argument("report", type=Path, metavar="REPORT", help="report of `edgekit compare`")
    result.add_argument("--out", type=Path, required=True, help="HTML file to write")
    result.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    outputs.check_free(options.out, force=options.force)
    page = report(Report.load(options.report))
    outputs.write_text(options.out, page, force=options.force)
    cli.say(f"{options.out}  {len(page.encode()):,} bytes")
    return 0, {"page": str(options.out), "bytes": len(page.encode())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
