"""Turn a report into one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgekit.base import schema
from edgekit.base.errors import InvalidDataError, MissingDependencyError
from edgekit.base.text import decimals, visible, visible_lines
from edgekit.base.words import not_found
from edgekit.evaluation import verdicts
from edgekit.evaluation.verdicts import Judged, Verdict
from edgekit.records import fidelity, stats
from edgekit.records.fidelity import Fidelity
from edgekit.records.results import (
    CENTRED_OF_OUTPUT,
    OF_FUNCTION,
    OF_OUTPUT,
    ArtifactResult,
    ChangedImage,
    Conditions,
    Measurement,
    Parity,
    Report,
)
from edgekit.records.schemes import PRECISIONS, USUAL
from edgekit.records.stats import discordant
from edgekit.reporting import charts, columns, mixtures, regions
from edgekit.reporting.regions import signed as _signed

_VERDICTS: dict[Verdict, str] = {
    "dead": "dead outputs",
    "worse": "less accurate",
    "poor": "poor outputs",
    "unknown": "not measured",
    "unclear": "too few images to tell",
    "far": "outputs differ clearly",
    "better": "more accurate",
    "same": "same accuracy",
    "close": "close outputs",
    "exact": "equal outputs",
}
#: Metrics in the table of verdicts: of classes, of labels that are numbers, of outputs.
_IN_VERDICTS = ("mcnemar_p", "agreement", "size", "latency_p50", "latency_ratio")
_IN_VERDICTS_OF_TRUTH = ("truth_mae", "sqnr_centred", "size", "latency_p50", "latency_ratio")
_IN_VERDICTS_OF_BOXES = (
    "map50", "map50_change", "matched50", "matched90", "size", "latency_p50", "latency_ratio"
)  # fmt: skip
_IN_VERDICTS_OF_MASKS = (
    "pixel_accuracy", "pixel_agreement", "size", "latency_p50", "latency_ratio"
)  # fmt: skip
_IN_VERDICTS_OF_NUMBERS = (
    "matched50",
    "matched90",
    "score_error",
    "pixel_agreement",
    "sqnr_centred",
    "sqnr",
    "agreement",
    "max_error",
    "max_error_share",
    "size",
    "latency_p50",
    "latency_ratio",
)
_ONE = {"images": "an image", "samples": "a sample"}
_FORMATS = {"tflite": "TFLite", "onnx": "ONNX", "keras": "Keras", "saved_model": "SavedModel"}
#: Accuracy: how the interval of its change was made.
_INTERVALS = {
    "top1": "adjusted Wald interval of the paired images (Agresti and Min 2005)",
    "r2": "paired t interval over the samples",
    "map": "bootstrap over the images, the same for both models",
    "miou": "bootstrap over the images, the same for both models",
}
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
        name: Name of the layer or its output.
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
    layers: dict[tuple[str, str], Layer] = {}
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
            if not name or (mode, name) in layers:
                wrong = f"the layer {name!r} is there twice" if name else "the layer has no name"
                raise InvalidDataError(f"{path}, row {number}: {wrong}")
            layers[mode, name] = Layer(name, value, mode)
    if not 0 < len(layers) <= _LAYERS_MOST:
        raise InvalidDataError(f"{path}: expected 1 to {_LAYERS_MOST:,} layers, got {len(layers)}")
    return tuple(layers.values())


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
    lines = [_Line.of(result, source) for result in source.artifacts]
    shown = _shown(columns.COLUMNS, results)
    of_outputs = (OF_OUTPUT, CENTRED_OF_OUTPUT)
    shown += sorted({n for r in results for n in r.metrics if n.startswith(of_outputs)})
    shown += sorted({n for r in results for n in r.metrics if n.startswith(OF_FUNCTION)})
    words, accuracy = source.reference_in_words, _accuracy(source)
    meanings = {name: _against(text, words) for name, text in columns.MEANINGS.items()}
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
        reference_accuracy=_cell(accuracy.metric, source.reference.metrics.get(accuracy.metric)),
        accuracy=accuracy,
        changed_by=verdicts.CHANGES.get(accuracy.metric, ""),
        interval=_INTERVALS.get(accuracy.metric, ""),
        regions=regions.sections(
            source, lambda result: _short(result, source), _PICTURES, markupsafe.Markup
        ),
        reference_words=words,
        reference_is_source=source.reference_is_source,
        judged_by=_judged_by(source),
        close=f"{fidelity.CLOSE:g}",
        poor=f"{fidelity.POOR:g}",
        bound=f"{verdicts.bound_of(source):g}",
        in_verdicts=_in_verdicts(source),
        headline=_headline(lines, words),
        summary=_summary(source),
        lines=lines,
        verdicts=sorted(lines, key=lambda line: verdicts.URGENCY.index(line.verdict)),
        plots=[{**plot, "svg": markupsafe.Markup(plot["svg"])} for plot in _plots(source)],
        searches=mixtures.drawn(source, lambda result: _short(result, source), markupsafe.Markup),
        layers=_layers(layers, markupsafe.Markup) if layers else None,
        precisions=[
            each
            for each in PRECISIONS
            if each in USUAL or each in {result.precision for result in source.artifacts}
        ],
        changes=_changes(source),
        shown=shown,
        head=lambda name: columns.head(name, meanings),
        cell=_cell,
        decibels=lambda value, count: _cell("sqnr", Measurement(value, "dB", count)),
        meanings=meanings,
        outputs=_outputs(source),
        channels=fidelity.channels_of,
        infinity=math.inf,
        share=lambda output: _cell(
            "max_error_share", Measurement(output.error_share, "%", output.count)
        ),
        results=results,
        parity=_parity(source.parity),
        timed=next((result for result in results[::-1] if result.latency_ms), source.reference),
        conditions=_conditions(source.conditions),
        raw=_raw(source, markupsafe.escape),
        short=lambda result: _short(result, source),
        class_name=lambda number: regions.class_name(number, source),
    )


def _judged_by(source: Report) -> str:
    """What accuracy is of: ``classes``, ``truth`` (right numbers), ``boxes``, ``masks``, or
    ``numbers``: how near they are to the reference's."""
    if source.fit is not None and source.fit.problem:
        return "numbers"
    results = (source.reference, *source.artifacts)
    known = {metric for result in results for metric in result.metrics}
    for metric, judged_by in (("map", "boxes"), ("miou", "masks")):
        if metric in known:
            return judged_by
    if "top1" in known or not known & {"sqnr", "r2"}:
        return "classes"
    return "truth" if "r2" in known else "numbers"


def _shown(names: Iterable[str], results: Sequence[ArtifactResult]) -> list[str]:
    """Those of the metrics that something has."""
    return [name for name in names if any(name in result.metrics for result in results)]


def _outputs(source: Report) -> list[tuple[str, Fidelity]]:
    """Each output of each deployable, with its name; none where each has one and none is dead."""
    several = any(len(result.fidelity) > 1 for result in source.artifacts)
    if not several and not any(o.dead for r in source.artifacts for o in r.fidelity):
        return []
    return [
        (_short(result, source), output)
        for result in source.artifacts
        for output in result.fidelity
    ]


def _in_verdicts(source: Report) -> list[str]:
    """Figures in the table of verdicts."""
    judged_by = _judged_by(source)
    if judged_by == "classes":
        return list(_IN_VERDICTS)
    names = {
        "truth": _IN_VERDICTS_OF_TRUTH,
        "boxes": _IN_VERDICTS_OF_BOXES,
        "masks": _IN_VERDICTS_OF_MASKS,
        "numbers": _IN_VERDICTS_OF_NUMBERS,
    }[judged_by]
    return _shown(names, source.artifacts)


def _against(text: str, reference: str) -> str:
    """A sentence on the float model, about the reference in its place."""
    return text.replace("the float model", reference)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _parity(parity: Parity | None) -> dict[str, Any] | None:
    """Pairs of runs of the same integers, with the share of output numbers by distance."""
    if parity is None:
        return None
    last = 4
    pairs = []
    for pair in parity.pairs:
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


def _conditions(conditions: Conditions | None) -> list[str]:
    """What could be read of the machine during the latency rounds."""
    if conditions is None:
        return []
    said = []
    if conditions.clock_mhz is not None:
        said.append(f"clock {conditions.clock_mhz[0]:,.0f} to {conditions.clock_mhz[1]:,.0f} MHz")
    if conditions.other_load is not None:
        said.append(f"other programs {conditions.other_load:.2f} cores")
    if conditions.stolen is not None:
        said.append(f"stolen {conditions.stolen:.1f} %")
    if conditions.celsius is not None:
        said.append(f"up to {conditions.celsius:.0f} °C")
    if conditions.throttled is not None:
        said.append(f"throttled {conditions.throttled} times")
    return said


#: What a headline says of deployables with one of these verdicts, those that are most urgent first.
_HEADLINES: tuple[tuple[tuple[Verdict, ...], str], ...] = (
    (("dead",), "{few} {have} outputs that are dead"),
    (("worse",), "{few} {are} less accurate than {reference}"),
    (("poor",), "{few} {are} a poor copy of {reference}"),
    (("unclear", "unknown"), "No proof for {few}"),
    (("far",), "{few} {differ} clearly from {reference}"),
)


def _headline(lines: Sequence[_Line], reference: str) -> str:
    if not lines:
        return "No deployable was measured"
    for of, text in _HEADLINES:
        names = [line.name for line in lines if line.verdict in of]
        if names:
            few = f"{len(names)} of {len(lines)} deployables"
            one = len(names) == 1
            words = text.format(
                few=few,
                have="has" if one else "have",
                are="is" if one else "are",
                differ="differs" if one else "differ",
                reference=reference,
            )
            return f"{words}: {', '.join(names)}"
    alone = len(lines) == 1
    who = lines[0].name if alone else f"All {len(lines)} deployables"
    if any(line.verdict in ("close", "exact") for line in lines):
        return f"{who} {'is' if alone else 'are'} close to {reference}"
    return f"{who} {'predicts' if alone else 'predict'} as well as {reference}"


def _summary(source: Report) -> list[str]:
    """What someone who decides asks next: which is fastest, smallest, farthest off."""
    sentences = []
    for title, metric in (
        ("Fastest", "latency_p50"),
        ("Smallest", "size"),
        ("Fewest equal predictions", "agreement"),
        ("Fewest equal boxes", "matched50"),
        ("Fewest equal pixels", "pixel_agreement"),
        *(
            (("Farthest off", "sqnr_centred"),)
            if _judged_by(source) in ("truth", "numbers")
            else ()
        ),
    ):
        having = [result for result in source.artifacts if metric in result.metrics]
        if having:
            least = min(having, key=lambda result: result.metrics[metric].value)
            unit = columns.COLUMNS[metric][1]
            value = _cell(metric, least.metrics[metric]).value
            value = value if value == "exact" else f"{value} {unit}"
            sentences.append(f"{title}: {value} ({_short(least, source)})")
    return sentences


@dataclass(frozen=True)
class _Line:
    """One deployable among the verdicts.

    Attributes:
        sentence: What became of the float model in it, to be read after its name.
    """

    result: ArtifactResult
    judged: Judged
    name: str
    sentence: str

    @classmethod
    def of(cls, result: ArtifactResult, source: Report) -> _Line:
        judged = verdicts.of(result, source)
        return cls(result, judged, _short(result, source), _sentence(result, source, judged))

    @property
    def verdict(self) -> Verdict:
        return self.judged.verdict

    @property
    def words(self) -> str:
        return _VERDICTS[self.verdict]

    @property
    def change(self) -> _Cell:
        """The change of accuracy, with its interval."""
        change = self.judged.change
        if change is None:
            return _Cell("–")
        return _Cell(_signed(change.value), _interval(change), f"{change.value!r}")


def _interval(change: Measurement) -> str:
    if change.low is None or change.high is None:
        return ""
    return f"{_signed(change.low)} to {_signed(change.high)}"


def _sentence(result: ArtifactResult, source: Report, judged: Judged) -> str:
    """What became of the float model, in words anyone reads; goes on after the artifact's name."""
    parts = [_accuracy_words(result, source, judged)]
    parts += filter(None, (_speed_words(result, source), _size_words(result, source)))
    text = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{text.rstrip(',')}."


def _accuracy_words(result: ArtifactResult, source: Report, judged: Judged) -> str:
    base = source.reference_in_words
    if judged.verdict == "dead":
        dead = "; ".join(fidelity.named(output) for output in result.fidelity if output.dead)
        return f"is no copy of {base}: what varies there is constant here ({dead})"
    if judged.change is None or judged.verdict in ("close", "exact", "far", "poor"):
        if judged.level is None:
            return f"was not compared with {base}'s outputs"
        return _numbers_words(result, base, judged)
    agreement = result.metrics.get("agreement")
    if agreement is not None and agreement.value == 100:
        same = f"predicts what {base} predicts on all {source.data.count:,} {source.data.unit}"
        return f"{same} ({result.metrics['top1'].value:.2f} % right)"
    numbers = f"a change of {_signed(judged.change.value)} points"
    if interval := _interval(judged.change):
        numbers += f", 95 % range {interval}"
    if "top1" in result.metrics:
        numbers = f"{result.metrics['top1'].value:.2f} % right, {numbers}"
    else:
        numbers = next(
            (
                f"{each.short} {result.metrics[each.metric].value:.2f} %, {numbers}"
                for each in (_R2, _MAP, _MIOU)
                if each.metric in result.metrics
            ),
            numbers,
        )
    words = {
        "same": f"is as accurate as {base} within {verdicts.bound_of(source):g} points",
        "better": f"is more accurate than {base}, beyond noise",
        "worse": f"is less accurate than {base}, beyond noise",
        "unclear": f"saw too few {source.data.unit} to tell whether it is as accurate as {base}",
    }
    said = f"{words[judged.accuracy]} ({numbers})"
    if judged.level == "poor":
        said += f", with scores that are far off ({_decibels_of(result)} dB of what varies)"
    return said


def _numbers_words(result: ArtifactResult, base: str, judged: Judged) -> str:
    """How far numbers are from the reference's; the error is a root mean square."""
    if judged.level == "exact":
        return f"gives {base}'s numbers exactly"
    sqnr = result.metrics.get("sqnr_centred") or result.metrics["sqnr"]
    share = 100 * 10 ** (-sqnr.value / 20) if sqnr.value > -60 else math.inf
    error = "more than 1,000 times" if share == math.inf else f"{share:,.2g} % of"
    if 100 <= share < math.inf:
        error = f"{share:,.0f} % of"
    words = {"close": "is close to", "far": "differs clearly from", "poor": "is a poor copy of"}
    text = (
        f"{words[str(judged.level)]} {base}: its error is {error} what varies between "
        f"samples (SQNR {sqnr.value:.1f} dB; close is {fidelity.CLOSE:g} dB or more, poor below "
        f"{fidelity.POOR:g} dB)"
    )
    most = result.metrics.get("max_error_share")
    if most is not None and math.isfinite(most.value):
        largest = f"{most.value:,.0f}" if most.value >= 100 else f"{most.value:.2g}"
        worst = max(result.fidelity, key=lambda each: each.error_share, default=None)
        of = f" of {worst.output}" if worst is not None and len(result.fidelity) > 1 else ""
        text += f", the largest {largest} % of the range{of}"
    return text


def _decibels_of(result: ArtifactResult) -> str:
    sqnr = result.metrics.get("sqnr_centred") or result.metrics.get("sqnr")
    return "–" if sqnr is None else f"{sqnr.value:.1f}"


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
    """The size, against float32: of the same format, of another one, or of the parameters alone.

    A Keras file is no measure: it may hold the state of an optimizer.
    """
    size = result.metrics.get("size")
    if size is None or not math.isfinite(size.value):
        return ""
    words = f"is {decimals(size.value / 1e6, '.2f')} MB"
    other = _float32_size(result, source)
    if other is None or result.precision == "float32":
        return words
    share = 100 * (size.value / other[0] - 1)
    if abs(share) < 0.5:
        return f"{words}, as large as {other[1]}"
    return f"{words}, {abs(share):.0f} % {'smaller' if share < 0 else 'larger'} than {other[1]}"


def _float32_size(result: ArtifactResult, source: Report) -> tuple[float, str] | None:
    """Bytes of the model in float32, and what they are of."""
    in_float32 = [
        other
        for other in (*source.artifacts, source.reference)
        if other.precision == "float32"
        and other.format in ("tflite", "onnx")
        and "size" in other.metrics
        and 0 < other.metrics["size"].value < math.inf
    ]
    same = [other for other in in_float32 if other.format == result.format]
    for other in (*same, *in_float32):
        name = f"float32 {_FORMATS.get(other.format, other.format)}"
        return other.metrics["size"].value, name
    parameters = source.reference.metrics.get("parameters")
    if parameters is None or parameters.value <= 0:
        return None
    return 4 * parameters.value, f"{parameters.value:,.0f} parameters in float32"


def _short(result: ArtifactResult, source: Report) -> str:
    return result.name.removeprefix(f"{source.model_id}-")


class _Cell(NamedTuple):
    """A cell of a table; ``sort`` is what its column is sorted by."""

    value: str
    interval: str = ""
    sort: str = ""

    def __str__(self) -> str:
        return self.value


def _cell(name: str, measured: Measurement | None) -> _Cell:
    if measured is None:
        return _Cell("–")
    _, unit, form, factor = columns.column(name)
    if math.isinf(measured.value):
        exact = unit == "dB" and measured.value > 0
        sort = "Infinity" if measured.value > 0 else "-Infinity"
        return _Cell("exact" if exact else f"{measured.value:+}", sort=sort)
    interval = ""
    if measured.low is not None and measured.high is not None:
        interval = f"{measured.low * factor:{form}} – {measured.high * factor:{form}}"
    value = decimals(measured.value * factor, form)
    if name == "kl" and measured.value == 0:
        value = "0"
    if name == "mcnemar_p" and measured.value < 0.001:
        value = "< 0.001"
    return _Cell(value, interval, f"{measured.value!r}")


@dataclass(frozen=True)
class _Accuracy:
    """What the charts show upward.

    Attributes:
        short: Its name within a sentence.
        form: Format string of a value.
        ends: Smallest and largest value that can be drawn.
    """

    metric: str
    title: str
    short: str
    unit: str
    label: str
    words: str
    form: str
    ends: tuple[float, float]


_TOP1 = _Accuracy(
    "top1", "Top-1", "top-1", "%", "right predictions (top-1), %", "right predictions", ".2f",
    (0, 100),
)  # fmt: skip
_R2 = _Accuracy(
    "r2", "R²", "R²", "%", "variance that is explained (R²), %", "R²", ".2f", (-1000, 100)
)
_MAP = _Accuracy(
    "map", "mAP", "mAP", "%", "mAP at IoU 0.5 to 0.95, %", "mAP", ".2f", (0, 100)
)  # fmt: skip
_MIOU = _Accuracy("miou", "mIoU", "mIoU", "%", "mIoU, %", "mIoU", ".2f", (0, 100))
_SQNR = _Accuracy(
    "sqnr_centred", "SQNR", "SQNR", "dB", "signal to error (SQNR of what varies), dB", "SQNR",
    ".1f", (-1000, 1000),
)  # fmt: skip
#: Of reports that do not know what varies.
_PLAIN_SQNR = replace(_SQNR, metric="sqnr", label="signal to error (SQNR), dB")


def _accuracy(source: Report) -> _Accuracy:
    """What the charts show upward, and the reference has."""
    judged_by = _judged_by(source)
    if judged_by != "numbers":
        return {"classes": _TOP1, "truth": _R2, "boxes": _MAP, "masks": _MIOU}[judged_by]
    known = {metric for result in source.artifacts for metric in result.metrics}
    return _SQNR if "sqnr_centred" in known else _PLAIN_SQNR


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
    accuracy = _accuracy(source)
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
    group = result.precision if result.precision in PRECISIONS else "other"
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
    interval = stats.median_interval(samples)
    if interval is None:
        return median, median
    return min(interval[0], median), max(interval[1], median)


def _layers(layers: Sequence[Layer], markup: Any) -> dict[str, Any]:
    """The chart of the layers and its table, with a column for each mode."""
    modes = list(dict.fromkeys(layer.mode for layer in layers))
    names = list(dict.fromkeys(layer.name for layer in layers))
    by_name = {(layer.mode, layer.name): layer.sqnr for layer in layers}
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
                    for value in (by_name.get((mode, name)) for mode in modes)
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
    """What changed in each artifact; None where no artifact has a record of it."""
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
    changes = result.changes
    assert changes is not None
    count = source.data.count
    lost = gained = None
    if result.correct and source.reference.correct:
        lost, gained = discordant(source.reference.correct_bits(count), result.correct_bits(count))
    images: list[ChangedImage] = []
    for image in changes.images:
        room -= len(image.picture) + 700
        if room < 0:
            break
        images.append(image)
    most = max(number for _, _, number in changes.counts)
    classes = sorted({each for before, now, _ in changes.counts for each in (before, now)})
    counts = {(before, now): number for before, now, number in changes.counts}

    def cell(number: int) -> dict[str, Any]:
        return {"count": number or "", "heat": math.ceil(4 * number / most)}

    matrix = None
    if len(classes) <= _MATRIX:
        matrix = {
            "classes": [regions.class_name(each, source) for each in classes],
            "rows": [
                {
                    "name": regions.class_name(before, source),
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
        "total": changes.total,
        "share": f"{100 * changes.total / count:.2f}" if count else "–",
        "lost": lost,
        "gained": gained,
        "still": None if lost is None or gained is None else changes.total - lost - gained,
        "matrix": matrix,
        "pairs": [
            {
                "before": regions.class_name(before, source),
                "now": regions.class_name(now, source),
                "count": number,
            }
            for before, now, number in changes.counts[:_PAIRS]
        ],
        "more_pairs": max(0, len(changes.counts) - _PAIRS),
        "images": images,
        "left_out": len(changes.images) - len(images),
    }


def _raw(source: Report, escape: Any) -> dict[str, Any]:
    """The report as JSON, without pictures; without samples and records where it is too long."""

    document = schema.to_json(_without_pictures(source))
    results = (document["reference"], *document["artifacts"])
    for result in results:
        for image in result["changes"]["images"] if result["changes"] else ():
            del image["picture"]
        for kind in ("box_changes", "mask_changes"):
            if result[kind]:
                del result[kind]["pictures"]
    left_out = ["pictures"]
    for names in ((), ("curves",), ("correct", "latency_ms"), ("changes", "confusion")):
        left_out += [name for name in names if any(result[name] for result in results)]
        for result in results:
            for name in names:
                del result[name]
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        text = re.sub(r"\[\s+([-\d.,\se+]+?)\s+\]", _one_line, text)
        if len(text) <= _RAW:
            return {"text": escape(visible_lines(text)), "left_out": left_out}
    return {"text": "", "left_out": ["all: too long for a page"]}


def _without_pictures(source: Report) -> Report:
    """The report without the boxes and class maps of single pictures, which are long."""

    def short(result: ArtifactResult) -> ArtifactResult:
        boxes, masks = result.box_changes, result.mask_changes
        return replace(
            result,
            box_changes=None if boxes is None else replace(boxes, pictures=()),
            mask_changes=None if masks is None else replace(masks, pictures=()),
        )

    return replace(
        source,
        reference=short(source.reference),
        artifacts=tuple(map(short, source.artifacts)),
    )


def _one_line(list_of_numbers: re.Match[str]) -> str:
    return f"[{' '.join(list_of_numbers[1].split())}]"


def _ends(measured: Measurement, factor: float) -> tuple[float, float]:
    """The interval around the value, which it may not leave out; the value where there is none."""
    low = measured.value if measured.low is None else min(measured.low, measured.value)
    high = measured.value if measured.high is None else max(measured.high, measured.value)
    if not (math.isfinite(low) and math.isfinite(high)):
        low = high = measured.value
    return low * factor, high * factor
