"""``python -m edgekit.report``: turn a report into one self-contained HTML page.

Verdict first, then accuracy against latency and size, the layers (``--layers FILE.csv``: what
``compare --layers --csv`` writes, or columns ``layer``, ``sqnr`` in dB and, where there are several
series, ``mode``), the images that changed their answer, every figure, what ran, the environment and
how to reproduce it. At most 2 MB, no network: its policy forbids any request. Light and dark;
printable; all but sorting and tooltips works without scripts.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import charts, cli, outputs, schema, stats
from edgekit.errors import InvalidDataError, MissingDependencyError
from edgekit.results import (
    OF_OUTPUT,
    ArtifactResult,
    ChangedImage,
    Conditions,
    Measurement,
    Parity,
    Report,
)
from edgekit.stats import SIGNIFICANT, discordant
from edgekit.text import decimals, visible, visible_lines
from edgekit.words import not_found

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
    "mse": ("MSE", "unit²", ".3g", 1),
    "max_error": ("largest error", "unit", ".3g", 1),
    "size": ("size", "MB", ".2f", 1e-6),
    "peak_memory": ("peak memory", "MB", ".0f", 1e-6),
    "load_time": ("load", "ms", ".1f", 1),
    "latency_p50": ("p50", "ms", ".3f", 1),
    "latency_p90": ("p90", "ms", ".3f", 1),
    "latency_p99": ("p99", "ms", ".3f", 1),
    "latency_ratio": ("ratio", "x float32", ".2f", 1),
    "energy": ("energy", "mJ an answer", ".3f", 1),
}
#: Metric: what it says, for those who do not know it.
_MEANINGS = {
    "top1": "Share of images whose most probable class is the right one; below it the 95 % "
    "interval (Wilson)",
    "top5": "Share of images with the right class among the five most probable",
    "agreement": "Share of images with the same answer as the float model, right or wrong",
    "top1_change": "Share of right answers less that of the float model; below it the bootstrap "
    "95 % interval on the paired images",
    "images_needed": "Images with which the McNemar test finds a loss of the size that matters",
    "energy": "Energy of the device for one answer",
    "mcnemar_p": "How often chance alone makes a difference as large as this one (exact McNemar "
    "test on the same images); below 0.05 it is taken for real",
    "kl": "Distance of the probabilities from the float model's; 0 is none",
    "sqnr": "Strength of the outputs against their error; 10 dB more is a tenth of the error power",
    "mse": "Mean squared difference from the float model's numbers, in their own unit",
    "max_error": "Largest difference of a number from the float model's, in its own unit",
    "size": "Bytes of the model file",
    "peak_memory": "Memory of the process that ran it, at its highest",
    "load_time": "From the file to ready for the first image",
    "latency_p50": "Time for one answer: half of the samples were faster",
    "latency_p90": "Time for one answer: nine of ten samples were faster",
    "latency_p99": "Time for one answer: 99 of 100 samples were faster",
    "latency_ratio": "Time against float32 of the same runtime; below 1 is faster",
}
#: SQNR in dB from which on numbers count as close: the error is a tenth of the answers' strength.
CLOSE = 20.0
#: Points of top-1. A wider doubt than this is no proof that nothing was lost.
RESOLUTION = 1.0

_VERDICTS = {
    "same": "same accuracy",
    "better": "more accurate",
    "worse": "less accurate",
    "unclear": "too few images to tell",
    "unknown": "not measured",
    "close": "close answers",
    "far": "answers far off",
}
#: What has to be seen first.
_URGENCY = ("worse", "far", "unknown", "unclear", "better", "same", "close")
#: Figures in the table of verdicts, of classes and of numbers.
_IN_VERDICTS = ("mcnemar_p", "agreement", "size", "latency_p50", "latency_ratio")
_IN_VERDICTS_OF_NUMBERS = (
    "sqnr",
    "agreement",
    "mse",
    "max_error",
    "size",
    "latency_p50",
    "latency_ratio",
)
_ONE = {"images": "an image", "samples": "a sample"}
_FORMATS = {"tflite": "TFLite", "onnx": "ONNX", "keras": "Keras", "saved_model": "SavedModel"}
_PRECISIONS = ("float32", "float16", "int8")
#: Characters that pictures and raw data may take, so that the page stays below 2 MB.
_PICTURES, _RAW = 900_000, 400_000
#: A matrix of changes has at most so many classes; beyond it, the most frequent changes are listed.
_MATRIX, _PAIRS = 16, 24
_TEMPLATES = Path(__file__).parent / "templates"
_LAYERS_MOST = 2000


@dataclass(frozen=True)
class Layer:
    """How exactly a layer computes.

    Attributes:
        name: Of the layer or its output.
        sqnr: In dB, against the float model; infinite where they are equal.
        mode: How it was measured; layers of one mode are one line of the chart.
    """

    name: str
    sqnr: float
    mode: str = ""


def read_layers(path: Path) -> tuple[Layer, ...]:
    """Layers of a CSV file with the columns ``layer`` and ``sqnr`` (or ``sqnr_db``).

    Several modes are told apart by a column ``mode``, or have a column ``MODE_sqnr_db`` each, as
    ``compare --layers --csv`` writes them, whose cells may be empty. Other columns are passed over.

    Raises:
        InvalidDataError: If the file cannot be read, lacks a column, has a row of another length,
            a value that is no number, a layer twice in one mode, or none or too many.
    """
    expected = "expected a CSV file with the columns layer and sqnr, or layer and MODE_sqnr_db"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [row for row in csv.reader(stream, strict=True) if row]
    except FileNotFoundError:
        raise InvalidDataError(f"{not_found(path)}; {expected}") from None
    except IsADirectoryError:
        raise InvalidDataError(f"{path} is a folder; {expected}") from None
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidDataError(f"{path} is no CSV text ({exc}); {expected}") from None
    header = [name.strip() for name in rows[0]] if rows else []
    plain = [name for name in header if name in ("sqnr", "sqnr_db")]
    of_modes = [name for name in header if name.endswith(("_sqnr", "_sqnr_db"))]
    fits = len(plain) == 1 if plain else bool(of_modes) and "mode" not in header
    if "layer" not in header or not fits or len(set(header)) != len(header):
        raise InvalidDataError(f"{path}: {expected}, each once, got {', '.join(header) or 'none'}")
    found: dict[tuple[str, str], Layer] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InvalidDataError(
                f"{path}, row {number}: expected {len(header)} values, got {len(row)}"
            )
        cells = dict(zip(header, map(str.strip, row), strict=True))
        name = cells["layer"]
        for column in plain or of_modes:
            if not cells[column] and not plain:
                continue
            mode = cells.get("mode", "") if plain else column.rpartition("_sqnr")[0]
            try:
                value = float(cells[column])
            except ValueError:
                value = math.nan
            if math.isnan(value) or value == -math.inf:
                raise InvalidDataError(
                    f"{path}, row {number}: expected {column} in dB, a number or inf, "
                    f"got {cells[column]!r}"
                )
            if not name or (mode, name) in found:
                wrong = f"the layer {name!r} is there twice" if name else "the layer has no name"
                raise InvalidDataError(f"{path}, row {number}: {wrong}")
            found[mode, name] = Layer(name, value, mode)
    if not 0 < len(found) <= _LAYERS_MOST:
        raise InvalidDataError(f"{path}: expected 1 to {_LAYERS_MOST:,} layers, got {len(found)}")
    return tuple(found.values())


def report(source: Report, *, layers: Sequence[Layer] = ()) -> str:
    """The page as text; the same report gives the same text.

    Args:
        source: What was measured.
        layers: Drawn as a chart where there are any.

    Raises:
        MissingDependencyError: If jinja2 is not installed.
        ReportError: If an image by image record in the report does not fit its data.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError:
        raise MissingDependencyError("jinja2", "report") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # what is markup already are the charts and the raw data, made visible before
        finalize=lambda value: (
            visible(value)
            if isinstance(value, str) and not isinstance(value, markupsafe.Markup)
            else value
        ),
    )
    results = (source.reference, *source.artifacts)
    lines = [_line(result, source) for result in source.artifacts]
    shown = _shown(_COLUMNS, results)
    shown += sorted({n for r in results for n in r.metrics if n.startswith(OF_OUTPUT)})
    words = source.reference_in_words
    meanings = {name: _against(text, words) for name, text in _MEANINGS.items()}
    style, script = (
        (_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    return environment.get_template("report.html.j2").render(
        report=source,
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        style_sha256=_sha256(style),
        script_sha256=_sha256(script),
        reference=source.reference,
        reference_top1=_cell("top1", source.reference.metrics.get("top1")),
        reference_words=words,
        of_classes=_of_classes(source),
        close=f"{CLOSE:g}",
        in_verdicts=[_header(name, meanings) for name in _in_verdicts(source)],
        headline=_headline(lines, words),
        summary=_summary(source),
        lines=lines,
        verdicts=sorted(lines, key=lambda line: _URGENCY.index(line["verdict"])),
        plots=[{**plot, "svg": markupsafe.Markup(plot["svg"])} for plot in _plots(source)],
        layers=_layers(layers, markupsafe.Markup) if layers else None,
        changes=_changes(source),
        columns=[_header(name, meanings) for name in shown],
        meanings=meanings,
        rows=[_row(result, source, shown) for result in results],
        results=results,
        parity=_parity(source.parity),
        timed=next((result for result in results[::-1] if result.latency_ms), source.reference),
        conditions=_conditions(source.conditions),
        raw=_raw(source, markupsafe.escape),
        short=lambda result: _short(result, source),
    )


def _of_classes(source: Report) -> bool:
    """Whether right answers were counted; else accuracy is how near the numbers are."""
    results = (source.reference, *source.artifacts)
    return any("top1" in r.metrics for r in results) or not any(
        "sqnr" in r.metrics for r in results
    )


def _shown(names: Iterable[str], results: Sequence[ArtifactResult]) -> list[str]:
    """Those of the figures that something has."""
    return [name for name in names if any(name in result.metrics for result in results)]


def _in_verdicts(source: Report) -> list[str]:
    """Figures in the table of verdicts."""
    if _of_classes(source):
        return list(_IN_VERDICTS)
    return _shown(_IN_VERDICTS_OF_NUMBERS, source.artifacts)


def _column(name: str) -> tuple[str, str, str, float]:
    """Title, unit, format and factor of a metric; ``sqnr:NAME`` is the SQNR of an output."""
    if name.startswith(OF_OUTPUT):
        return (f"SQNR {name.removeprefix(OF_OUTPUT)}", *_COLUMNS["sqnr"][1:])
    return _COLUMNS[name]


def _header(name: str, meanings: Mapping[str, str]) -> dict[str, str]:
    """Head of a metric's column."""
    title, unit, _, _ = _column(name)
    return {"title": title, "unit": unit, "meaning": meanings[name.partition(":")[0]]}


def _against(text: str, reference: str) -> str:
    """A sentence on the float model, about the reference in its place."""
    return text.replace("the float model", reference)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


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
                "shares": [
                    {
                        "text": f"{share:.2f}",
                        "start": f"{100 - share:.1f}",
                        "width": f"{share:.1f}",
                    }
                    for share in shares
                ],
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


def _headline(lines: list[dict[str, Any]], reference: str) -> str:
    def named(*verdicts: str) -> list[str]:
        return [line["name"] for line in lines if line["verdict"] in verdicts]

    if not lines:
        return "No deployable was measured"
    worse, open_, far = named("worse"), named("unclear", "unknown"), named("far")
    if worse:
        return (
            f"{len(worse)} of {len(lines)} deployables {'is' if len(worse) == 1 else 'are'} "
            f"less accurate than {reference}: {', '.join(worse)}"
        )
    if far:
        return (
            f"{len(far)} of {len(lines)} deployables {'answers' if len(far) == 1 else 'answer'} "
            f"far off {reference}: {', '.join(far)}"
        )
    if open_:
        return f"No proof for {len(open_)} of {len(lines)} deployables: {', '.join(open_)}"
    if named("close"):
        one = len(lines) == 1
        who = lines[0]["name"] if one else f"All {len(lines)} deployables"
        return f"{who} {'answers' if one else 'answer'} close to {reference}"
    if len(lines) == 1:
        return f"{lines[0]['name']} answers as well as {reference}"
    return f"All {len(lines)} deployables answer as well as {reference}"


def _summary(source: Report) -> list[str]:
    """What someone who decides asks next: which is fastest, smallest, farthest off."""
    found = []
    for title, metric in (
        ("Fastest", "latency_p50"),
        ("Smallest", "size"),
        ("Fewest same answers", "agreement"),
        *(() if _of_classes(source) else (("Farthest off", "sqnr"),)),
    ):
        having = [result for result in source.artifacts if metric in result.metrics]
        if having:
            least = min(having, key=lambda result: result.metrics[metric].value)
            unit = _COLUMNS[metric][1]
            value = _cell(metric, least.metrics[metric])["value"]
            value = value if value == "exact" else f"{value} {unit}"
            found.append(f"{title}: {value} ({_short(least, source)})")
    return found


def _line(result: ArtifactResult, source: Report) -> dict[str, Any]:
    top1, base = result.metrics.get("top1"), source.reference.metrics.get("top1")
    change = None if top1 is None or base is None else top1.value - base.value
    interval = _change_interval(result, source)
    p = result.metrics.get("mcnemar_p")
    verdict = "same"
    if not _of_classes(source):
        sqnr = result.metrics.get("sqnr")
        verdict = "unknown" if sqnr is None else "close" if sqnr.value >= CLOSE else "far"
    elif change is None or p is None:
        verdict = "unknown"
    elif p.value < SIGNIFICANT:
        verdict = "worse" if change < 0 else "better"
    elif interval is None or interval[0] < -RESOLUTION:
        verdict = "unclear"
    return {
        "name": _short(result, source),
        "verdict": verdict,
        "words": _VERDICTS[verdict],
        "sentence": _sentence(result, source, verdict, change, interval),
        "change": change,
        "shown": "–" if change is None else _signed(change),
        "low": "" if interval is None else interval[0],
        "interval": "" if interval is None else " to ".join(map(_signed, interval)),
        "cells": [_cell(name, result.metrics.get(name)) for name in _in_verdicts(source)],
    }


def _sentence(
    result: ArtifactResult,
    source: Report,
    verdict: str,
    change: float | None,
    interval: tuple[float, float] | None,
) -> str:
    """What became of the float model, in words anyone reads; goes on after the artifact's name."""
    parts = [_accuracy_words(result, source, verdict, change, interval)]
    parts += filter(None, (_speed_words(result, source), _size_words(result, source)))
    text = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{text.rstrip(',')}."


def _accuracy_words(
    result: ArtifactResult,
    source: Report,
    verdict: str,
    change: float | None,
    interval: tuple[float, float] | None,
) -> str:
    base = source.reference_in_words
    if verdict in ("close", "far"):
        return _numbers_words(result, base, verdict)
    if verdict == "unknown" or change is None:
        return f"was not held against {base}'s accuracy"
    top1, agreement = result.metrics["top1"].value, result.metrics.get("agreement")
    if agreement is not None and agreement.value == 100:
        same = f"gives {base}'s answer on all {source.data.count:,} images"
        return f"{same} ({top1:.2f} % right)"
    figures = f"{top1:.2f} % right, a change of {_signed(change)} points"
    if interval is not None:
        figures += f", 95 % range {_signed(interval[0])} to {_signed(interval[1])}"
    words = {
        "same": f"is as accurate as {base} within noise",
        "better": f"is more accurate than {base}, beyond noise",
        "worse": f"is less accurate than {base}, beyond noise",
        "unclear": f"saw too few images to tell whether it is as accurate as {base}",
    }
    return f"{words[verdict]} ({figures})"


def _numbers_words(result: ArtifactResult, base: str, verdict: str) -> str:
    """How far numbers are from the reference's; the error is a root mean square."""
    sqnr = result.metrics["sqnr"].value
    if sqnr == math.inf:
        return f"gives {base}'s numbers exactly"
    share = 100 * 10 ** (-sqnr / 20) if sqnr > -300 else math.inf
    words = "close to" if verdict == "close" else "far off"
    return (
        f"answers {words} {base}: its error is {share:.2g} % of the answers' strength "
        f"(SQNR {sqnr:.1f} dB; close is {CLOSE:g} dB or more, an error of 10 % at most)"
    )


def _speed_words(result: ArtifactResult, source: Report) -> str:
    time, ratio = result.metrics.get("latency_p50"), result.metrics.get("latency_ratio")
    if time is None or not math.isfinite(time.value):
        return ""
    words = f"takes {time.value:.3g} ms {_ONE[source.data.unit]}"
    if ratio is None or result.precision == "float32" or not math.isfinite(ratio.value):
        return words
    base = f"float32 {_FORMATS.get(result.format, result.format)}"
    low, high = _ends(ratio, 1)
    if low <= 1 <= high:
        return f"{words}, as fast as {base} within noise,"
    word = "less (faster)" if ratio.value < 1 else "more (slower)"
    return f"{words}, {100 * abs(ratio.value - 1):.0f} % {word} than {base},"


def _size_words(result: ArtifactResult, source: Report) -> str:
    size = result.metrics.get("size")
    if size is None or not math.isfinite(size.value):
        return ""
    words = f"is {decimals(size.value / 1e6, '.2f')} MB"
    same = [
        other
        for other in source.artifacts
        if (other.format, other.precision) == (result.format, "float32") and other is not result
    ]
    base = same[0] if same and result.precision != "float32" else source.reference
    other = base.metrics.get("size")
    if other is None or not 0 < other.value < math.inf:
        return words
    name = f"{source.reference_in_words}'s file"
    if base is not source.reference:
        name = f"float32 {_FORMATS.get(base.format, base.format)}"
    share = 100 * (size.value / other.value - 1)
    if abs(share) < 0.5:
        return f"{words}, as large as {name}"
    return f"{words}, {abs(share):.0f} % {'smaller' if share < 0 else 'larger'} than {name}"


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
        return {"value": "–", "interval": "", "sort": ""}
    _, _, form, factor = _column(name)
    if math.isinf(found.value):
        exact = name.partition(":")[0] == "sqnr" and found.value > 0
        sort = "Infinity" if found.value > 0 else "-Infinity"
        return {"value": "exact" if exact else f"{found.value:+}", "interval": "", "sort": sort}
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"{found.low * factor:{form}} – {found.high * factor:{form}}"
    value = decimals(found.value * factor, form)
    if name == "kl" and found.value == 0:
        value = "0"
    if name == "mcnemar_p" and found.value < 0.001:
        value = "< 0.001"
    return {"value": value, "interval": interval, "sort": f"{found.value!r}"}


@dataclass(frozen=True)
class _Accuracy:
    """What the charts show upward.

    Attributes:
        form: Of a value, as a format.
        ends: Least and greatest value that can be drawn.
    """

    metric: str
    title: str
    unit: str
    label: str
    words: str
    form: str
    ends: tuple[float, float]


_TOP1 = _Accuracy(
    "top1", "Top-1", "%", "right answers (top-1), %", "right answers", ".2f", (0, 100)
)
_SQNR = _Accuracy("sqnr", "SQNR", "dB", "signal to error (SQNR), dB", "SQNR", ".1f", (-1000, 1000))


def _drawable(result: ArtifactResult, metric: str, accuracy: _Accuracy) -> bool:
    height, other = result.metrics.get(accuracy.metric), result.metrics.get(metric)
    return (
        height is not None
        and other is not None
        and accuracy.ends[0] <= height.value <= accuracy.ends[1]
        and 1e-9 < other.value < 1e18
    )


def _plots(source: Report) -> list[dict[str, Any]]:
    """The two scatters, each with what it shows as words and as a table."""
    plots = []
    accuracy = _TOP1 if _of_classes(source) else _SQNR
    level = source.reference.metrics.get(accuracy.metric)
    if level is not None and not accuracy.ends[0] <= level.value <= accuracy.ends[1]:
        level = None
    for metric, axis, unit, form, factor, title in (
        (
            "latency_p50",
            f"time for {_ONE[source.data.unit]}, ms (p50, log scale)",
            "ms",
            ".3f",
            1.0,
            "latency",
        ),
        ("size", "size of the file, MB (log scale)", "MB", ".2f", 1e-6, "size"),
    ):
        drawn = [result for result in source.artifacts if _drawable(result, metric, accuracy)]
        if not drawn:
            continue
        marks = [_marked(result, source, metric, accuracy, unit, form, factor) for result in drawn]
        best = charts.front(marks)
        marks = [
            _on_front(mark) if i in best and len(best) > 1 else mark for i, mark in enumerate(marks)
        ]
        points = "; ".join(
            f"{mark.name} {mark.y:{accuracy.form}} {accuracy.unit} at {mark.x:.3g} {unit}"
            for mark in marks
        )
        name = f"{accuracy.title} against {title}"
        plots.append(
            {
                "title": name,
                "unit": unit,
                "accuracy": accuracy,
                "heading": "time" if unit == "ms" else "size",
                "svg": charts.scatter(
                    marks,
                    ident=f"by-{title}",
                    title=name,
                    description=f"{name}: {points}",
                    x_label=axis,
                    y_label=accuracy.label,
                    level=None if level is None else level.value,
                    level_name=source.reference_in_words.removeprefix("the "),
                ),
                "rows": [
                    {
                        "name": mark.name,
                        "y": f"{mark.y:{accuracy.form}}",
                        "y_ends": _range_words(mark.y, mark.y_ends, accuracy.form),
                        "y_sort": repr(mark.y),
                        "x": decimals(mark.x, form),
                        "x_ends": _range_words(mark.x, mark.x_ends, form),
                        "x_sort": repr(mark.x),
                        "best": i in best,
                    }
                    for i, mark in enumerate(marks)
                ],
                "missing": [_short(r, source) for r in source.artifacts if r not in drawn],
            }
        )
    return plots


def _marked(
    result: ArtifactResult,
    source: Report,
    metric: str,
    accuracy: _Accuracy,
    unit: str,
    form: str,
    factor: float,
) -> charts.Mark:
    height, other = result.metrics[accuracy.metric], result.metrics[metric]
    x, x_ends, y_ends = other.value * factor, _ends(other, factor), _ends(height, 1)
    y_ends = max(y_ends[0], accuracy.ends[0]), min(y_ends[1], accuracy.ends[1])
    if x_ends[0] <= 0:  # which a log axis cannot show
        x_ends = x, x
    x_ends = max(x_ends[0], x / 1e3), min(x_ends[1], x * 1e3)
    if metric == "latency_p50" and x_ends == (x, x):
        x_ends = _latency_ends(result, x)
    name = _short(result, source)
    words = f"{name}: {height.value:{accuracy.form}} {accuracy.unit}"
    words += " right" if accuracy is _TOP1 else f" {accuracy.title}"
    if y_range := _range_words(height.value, y_ends, accuracy.form):
        words += f" ({y_range})"
    words += f", {decimals(x, form)} {unit}"
    if x_range := _range_words(x, x_ends, form):
        words += f" ({x_range})"
    group = result.precision if result.precision in _PRECISIONS else "other"
    return charts.Mark(name, words, x, height.value, x_ends, y_ends, group, result.format)


def _on_front(mark: charts.Mark) -> charts.Mark:
    return replace(mark, words=f"{mark.words}; no other beats it in both")


def _range_words(value: float, ends: tuple[float, float], form: str) -> str:
    return "" if ends == (value, value) else f"{ends[0]:{form}} to {ends[1]:{form}}"


def _latency_ends(result: ArtifactResult, median: float) -> tuple[float, float]:
    """Interval of p50 from the raw samples, where they are there and in rounds."""
    samples = result.steady()
    if samples is None or not ((samples > 0) & np.isfinite(samples)).all():
        return median, median
    found = stats.median_interval(samples)
    if found is None:
        return median, median
    return min(found[0], median), max(found[1], median)


def _layers(layers: Sequence[Layer], markup: Any) -> dict[str, Any]:
    """The chart of the layers and its table, a column a mode."""
    modes = list(dict.fromkeys(layer.mode for layer in layers))
    names = list(dict.fromkeys(layer.name for layer in layers))
    found = {(layer.mode, layer.name): layer.sqnr for layer in layers}
    lowest = sorted(layers, key=lambda layer: layer.sqnr)[:5]
    words = "; ".join(
        f"{layer.name}{f' ({layer.mode})' if layer.mode else ''} {_decibels(layer.sqnr)} dB"
        for layer in lowest
    )
    svg = charts.layers(
        [
            charts.Series(
                mode,
                tuple(layer.name for layer in layers if layer.mode == mode),
                tuple(layer.sqnr for layer in layers if layer.mode == mode),
            )
            for mode in modes
        ],
        ident="layers",
        title="Accuracy of each layer",
        description=f"Signal to error in dB, layer by layer. Lowest: {words}",
        y_label="signal to error (SQNR), dB",
    )
    return {
        "svg": markup(svg),
        "count": len(names),
        "lowest": words,
        "modes": modes,
        "rows": [
            {
                "number": i,
                "name": name,
                "cells": [
                    {"value": _decibels(value), "sort": "" if value is None else repr(value)}
                    for value in (found.get((mode, name)) for mode in modes)
                ],
            }
            for i, name in enumerate(names, 1)
        ],
    }


def _decibels(value: float | None) -> str:
    if value is None:
        return "–"
    return "exact" if math.isinf(value) else f"{value:.1f}"


def _changes(source: Report) -> dict[str, Any] | None:
    """What changed, an entry an artifact; None where no artifact has a record of it."""
    recorded = [result for result in source.artifacts if result.changes is not None]
    if not recorded:
        return None
    changed = [result for result in recorded if result.changes and result.changes.total]
    room = _PICTURES // max(1, len(changed))
    return {
        "unchanged": [_short(result, source) for result in recorded if result not in changed],
        "unrecorded": [_short(r, source) for r in source.artifacts if r.changes is None],
        "artifacts": [_changed(result, source, room) for result in changed],
    }


def _changed(result: ArtifactResult, source: Report, room: int) -> dict[str, Any]:
    found = result.changes
    assert found is not None
    count = source.data.count
    lost = gained = None
    if result.correct and source.reference.correct:
        lost, gained = discordant(source.reference.correct_bits(count), result.correct_bits(count))
    images = []
    for image in found.images:
        room -= len(image.picture) + 700
        if room < 0:
            break
        images.append(_pictured(image, source))
    most = max(number for _, _, number in found.counts)
    classes = sorted({each for before, now, _ in found.counts for each in (before, now)})
    counts = {(before, now): number for before, now, number in found.counts}

    def cell(number: int) -> dict[str, Any]:
        return {"count": number or "", "heat": math.ceil(4 * number / most)}

    matrix = None
    if len(classes) <= _MATRIX:
        matrix = {
            "classes": [_class(each, source) for each in classes],
            "rows": [
                {
                    "name": _class(before, source),
                    "cells": [
                        {"count": "·", "heat": 0}
                        if before == now
                        else cell(counts.get((before, now), 0))
                        for now in classes
                    ],
                }
                for before in classes
            ],
        }
    return {
        "name": _short(result, source),
        "total": found.total,
        "share": f"{100 * found.total / count:.2f}" if count else "–",
        "lost": lost,
        "gained": gained,
        "still": None if lost is None or gained is None else found.total - lost - gained,
        "matrix": matrix,
        "pairs": [
            {"before": _class(before, source), "now": _class(now, source), "count": number}
            for before, now, number in found.counts[:_PAIRS]
        ],
        "more_pairs": max(0, len(found.counts) - _PAIRS),
        "images": images,
        "left_out": len(found.images) - len(images),
    }


def _pictured(image: ChangedImage, source: Report) -> dict[str, Any]:
    label, before, now = (_class(each, source) for each in (image.label, image.before, image.now))
    kind = "still"
    if image.before == image.label:
        kind = "lost"
    elif image.now == image.label:
        kind = "gained"
    words = {"lost": "was right", "gained": "is right now", "still": "wrong both times"}[kind]
    return {
        "index": image.index,
        "label": label,
        "before": before,
        "now": now,
        "before_share": f"{100 * image.before_probability:.0f}\u00a0%",
        "now_share": f"{100 * image.now_probability:.0f}\u00a0%",
        "kind": kind,
        "words": words,
        "picture": image.picture,
    }


def _class(number: int, source: Report) -> str:
    names = source.data.class_names
    return names[number] if number < len(names) else f"class {number}"


def _raw(source: Report, escape: Any) -> dict[str, Any]:
    """The report as JSON, without pictures; without samples and records where it is too long."""

    def shown(leave_out: Sequence[str]) -> str:
        document = schema.to_json(source)
        for result in (document["reference"], *document["artifacts"]):
            if result["changes"]:
                for image in result["changes"]["images"]:
                    del image["picture"]
            for name in leave_out:
                del result[name]
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        return re.sub(r"\[\s+([-\d.,\se+]+?)\s+\]", _one_line, text)

    left_out: list[str] = []
    text = shown(left_out)
    if len(text) > _RAW:
        left_out = ["correct", "latency_ms"]
        text = shown(left_out)
    if len(text) > _RAW:
        left_out, text = [*left_out, "changes"], shown([*left_out, "changes"])
    if len(text) > _RAW:
        return {"text": "", "left_out": ["all: too long for a page"]}
    return {"text": escape(visible_lines(text)), "left_out": ["pictures", *left_out]}


def _one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"


def _ends(found: Measurement, factor: float) -> tuple[float, float]:
    """The interval around the value, which it may not leave out; the value where there is none."""
    low = found.value if found.low is None else min(found.low, found.value)
    high = found.value if found.high is None else max(found.high, found.value)
    if not (math.isfinite(low) and math.isfinite(high)):
        low = high = found.value
    return low * factor, high * factor


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.report``."""
    result = cli.Parser(
        "report",
        description="Turn a report of `edgekit compare` into one self-contained HTML page.",
        examples="""
python -m edgekit.report report.json --out report.html
python -m edgekit.report report.json --layers layers.csv --out report.html
""",
    )
    result.add_argument(
        "report", type=Path, metavar="REPORT", help="file that `edgekit compare --out` wrote"
    )
    result.add_argument(
        "--out", type=Path, required=True, metavar="FILE.html", help="page to write"
    )
    result.add_argument(
        "--layers",
        type=Path,
        metavar="FILE.csv",
        help="add a chart of the layers: what `edgekit compare --layers --csv` wrote, or a table "
        "with the columns layer and sqnr (dB)",
    )
    result.add_argument("--force", action="store_true", help="replace FILE.html if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    outputs.check_free(options.out, force=options.force)
    layers = read_layers(options.layers) if options.layers else ()
    page = report(Report.load(options.report), layers=layers)
    outputs.write_text(options.out, page, force=options.force)
    cli.say(f"{options.out}  {len(page.encode()):,} bytes")
    return 0, {"page": str(options.out), "bytes": len(page.encode())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
