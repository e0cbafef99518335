"""Tables that ``compare`` prints of a report. Framework-free; 80 columns are enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from edgekit.base import cli
from edgekit.base.text import decimals, percent, shortened
from edgekit.evaluation import verdicts
from edgekit.evaluation.verdicts import Judged
from edgekit.records import fidelity, stats
from edgekit.records.results import (
    IOU_OF_CLASS,
    MAP_OF_CLASS,
    OF_FUNCTION,
    ArtifactResult,
    Measurement,
    Parity,
    Report,
)


@dataclass(frozen=True)
class _Column:
    """A column of the printed table.

    Attributes:
        metric: Shown where one of the models has it.
        form: Format of a result that has the metric, as text.
        meaning: Said below the table; ``{against}`` is the reference.
        always: Shown where nothing was measured, too.
        without: Not shown where one of the models has one of these: there is something better.
    """

    title: str
    metric: str
    form: Callable[[ArtifactResult], str]
    meaning: str = ""
    always: bool = False
    without: tuple[str, ...] = ()


def _number(metric: str, form: str, factor: float = 1.0) -> Callable[[ArtifactResult], str]:
    return lambda result: decimals(result.metrics[metric].value * factor, form)


def _share(result: ArtifactResult) -> str:
    top1 = result.metrics["top1"]
    return f"{top1.value:.2f} ±{((top1.high or 0) - (top1.low or 0)) / 2:.2f}"


def _decibels(result: ArtifactResult) -> str:
    if result.metrics["sqnr"].value == math.inf:
        return "exact"
    return f"{result.metrics['sqnr_centred'].value:.1f}"


def _points(metric: str) -> Callable[[ArtifactResult], str]:
    """A change with its sign; nought has none."""

    def form(result: ArtifactResult) -> str:
        shown = f"{result.metrics[metric].value:+.2f}"
        return "0.00" if float(shown) == 0 else shown

    return form


#: Width of an output's name in the table.
_OUTPUT = 14


def _error(result: ArtifactResult) -> str:
    """Of one output: that with the largest error in % of its range; its name, if there are more."""
    error, share = (result.metrics[name].value for name in ("max_error", "max_error_share"))
    if len(result.fidelity) < 2:
        return f"{error:.2g} ({percent(share)} %)"
    worst = max(result.fidelity, key=lambda each: each.error_share)
    name = cli.plain(shortened(worst.output, _OUTPUT))
    return f"{worst.max_error:.2g} ({percent(worst.error_share)} % of {name})"


#: Accuracy of boxes and of masks, beside which errors of numbers say little.
_OF_REGIONS = ("map", "miou")
#: Columns of boxes and masks that a narrow terminal does without, the last one first.
_SPARE = ("latency_ratio", "pixel_accuracy")
_COLUMNS = (
    _Column("top-1 %", "top1", _share),
    _Column(
        "agrees",
        "agreement",
        _number("agreement", ".2f"),
        "% of samples with the same class as {against}",
    ),
    _Column("R² %", "r2", _number("r2", ".2f"), "variance of the right numbers that is explained"),
    _Column("mAP %", "map", _number("map", ".2f"), "mean of IoU 0.5 to 0.95"),
    _Column("mAP50", "map50", _number("map50", ".2f"), "at IoU 0.5, %"),
    _Column("change", "map_change", _points("map_change"), "points of mAP against {against}"),
    _Column("same", "matched50", _number("matched50", ".2f"), "% of {against}'s boxes found too"),
    _Column("mIoU %", "miou", _number("miou", ".2f")),
    _Column("pixels", "pixel_accuracy", _number("pixel_accuracy", ".2f"), "% that are right"),
    _Column("change", "miou_change", _points("miou_change"), "points of mIoU against {against}"),
    _Column(
        "same",
        "pixel_agreement",
        _number("pixel_agreement", ".2f"),
        "% of pixels with the same class as {against}",
    ),
    _Column(
        "dB",
        "sqnr_centred",
        _decibels,
        "SQNR of the outputs, of what varies between the samples",
        without=_OF_REGIONS,
    ),
    _Column(
        "largest error",
        "max_error",
        _error,
        "of a number, and in % of its output's range",
        without=_OF_REGIONS,
    ),
    _Column("MB", "size", _number("size", ".2f", 1e-6)),
    _Column("ms", "latency_p50", _number("latency_p50", ".3f"), "p50 at batch 1", always=True),
    _Column(
        "x",
        "latency_ratio",
        _number("latency_ratio", ".2f"),
        "ms against float32 of the same runtime",
        always=True,
    ),
)


def show(report: Report) -> None:
    """Print a report: a row for each model, what failed, what to know, and the warnings."""
    results = (report.reference, *report.artifacts)
    judged = {result.name: verdicts.of(result, report) for result in report.artifacts}
    title = f"{report.model_id} on {report.data.name}, {report.data.count:,} {report.data.unit}"
    shown = [
        column
        for column in _COLUMNS
        if column.always
        or any(column.metric in result.metrics for result in results)
        and not any(name in result.metrics for name in column.without for result in results)
    ]
    spare = [column for name in _SPARE for column in shown if column.metric == name]
    of_regions = any(name in result.metrics for name in _OF_REGIONS for result in results)
    table = _table(title, report, shown, judged)
    wide = cli.console.options.update(width=1000)
    while (
        of_regions
        and spare
        and cli.console.measure(table, options=wide).maximum > (cli.console.width)
    ):
        shown.remove(spare.pop())
        table = _table(title, report, shown, judged)
    cli.console.print(table)
    _print_meanings(report, shown)
    _print_own(report, results)
    for result in report.artifacts:
        for sentence in failures(result, report, judged[result.name]):
            cli.console.print(f"[bold red]{cli.plain(sentence)}[/]", soft_wrap=True)
    for result in results:
        for place in result.places:
            where = f"{place.host} {place.device}".rstrip()
            cli.say(
                f"{result.name}: {place.shards} shards on {where}, {place.machine_class}; "
                f"no latency"
            )
    if report.parity is not None:
        _print_parity(report.parity)
    for warning in report.warnings:
        cli.say(f"warning: {warning}")


def _table(
    title: str, report: Report, shown: Sequence[_Column], judged: Mapping[str, Judged]
) -> Table:
    """A row for each model."""
    table = Table(
        title=cli.plain(title),
        caption=cli.plain(
            f"{report.environment.machine_class}, {report.settings['threads']} thread(s)"
        ),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("artifact", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for column in shown:
        table.add_column(column.title, justify="right", no_wrap=True, overflow="fold")
    for result in (report.reference, *report.artifacts):
        name = _in_column(cli.plain(result.name.removeprefix(f"{report.model_id}-")))
        verdict = "" if result is report.reference else _verdict(judged[result.name])
        cells = [c.form(result) if c.metric in result.metrics else "-" for c in shown]
        table.add_row(name, verdict, *cells)
    return table


def failures(result: ArtifactResult, report: Report, judged: Judged) -> list[str]:
    """What is bad about a deployable, a sentence each; none of one that is good."""
    against = report.reference_in_words
    sentences = []
    if judged.broken == "dead":
        sentences += [
            f"dead: {result.name}: {fidelity.named(output)}; varies in {against}, not here"
            for output in result.fidelity
            if output.dead
        ]
    if judged.accuracy == "worse":
        what = next((_SHORT[name] for name in _SHORT if name in result.metrics), "accuracy")
        sentences.append(
            f"worse: {result.name}: {what} changed by {in_points(judged.change)}, the loss that "
            f"matters is {verdicts.bound_of(report):g}{_most_lost(result, report.reference)}"
        )
    if judged.broken == "poor":
        sentences += [
            f"poor: {result.name}: {output.output} is at {output.sqnr_centred:.1f} dB, "
            f"{fidelity.POOR:g} dB is the least that can do; compare --layers names the layer"
            for output in result.fidelity
            if output.level == "poor"
        ]
    return sentences


#: Accuracy that a sentence names.
_SHORT = {"map": "mAP", "miou": "mIoU"}


def _most_lost(result: ArtifactResult, reference: ArtifactResult) -> str:
    """The class that lost most, where classes were measured."""
    losses = [
        (before.value - result.metrics[name].value, name)
        for name, before in reference.metrics.items()
        if name.startswith((MAP_OF_CLASS, IOU_OF_CLASS)) and name in result.metrics
    ]
    lost, name = max(losses, default=(0.0, ""))
    if lost <= 0:
        return ""
    before, now = (each.metrics[name].value for each in (reference, result))
    return f"; most lost {name}, from {before:.2f} to {now:.2f} %"


def in_points(change: Measurement | None) -> str:
    """A change of accuracy with its interval, as ``-1.20 points (-1.90 to -0.50)``."""
    if change is None:
        return "an unknown number of points"
    text = f"{change.value:+.2f} points"
    if change.low is None or change.high is None:
        return text
    return f"{text} ({change.low:+.2f} to {change.high:+.2f})"


def _verdict(judged: Judged) -> str:
    if judged.verdict in verdicts.BAD:
        return f"[bold red]{judged.verdict}[/]"
    colour = "yellow" if judged.verdict in ("unknown", "unclear", "far") else "green"
    return f"[{colour}]{judged.verdict}[/]"


def _in_column(name: str) -> str:
    """A runner's name in two lines, since the numbers fill the width of a terminal."""
    head, colon, tail = name.rpartition(":")
    return f"{head}{colon}\n{tail}" if colon else name


def _print_meanings(report: Report, shown: Sequence[_Column]) -> None:
    meanings = "; ".join(
        f"{column.title}: {column.meaning}" for column in shown if column.meaning
    ).format(against=cli.plain(report.reference_in_words))
    cli.console.print(f"[dim]{meanings}[/]")
    left_out = report.artifacts[0].latency_warm_up
    if left_out:
        cli.console.print(
            f"[dim]the first {left_out} of {report.settings['samples_per_round']} samples of each "
            f"round are slower and left out[/]"
        )
    needs = [result.metrics.get("images_needed") for result in report.artifacts]
    need = max((each.value for each in needs if each is not None), default=None)
    if need is not None:
        of_classes = any("mcnemar_p" in result.metrics for result in report.artifacts)
        test = f"McNemar, p < {stats.SIGNIFICANT:g}" if of_classes else "95 % interval"
        cli.console.print(
            f"[dim]a loss of {report.settings['bound']:g} points is seen ({test}, "
            f"power {report.settings['power']:g}) with {need:,.0f} "
            f"{report.data.unit}; these are {report.data.count:,}[/]"
        )


def _print_own(report: Report, results: Sequence[ArtifactResult]) -> None:
    """A line for each metric that a function of the user computes."""
    names = dict.fromkeys(
        name for result in results for name in result.metrics if name.startswith(OF_FUNCTION)
    )
    for name in names:
        values = (
            f"{result.name.removeprefix(f'{report.model_id}-')} {result.metrics[name].value:.4g}"
            for result in results
            if name in result.metrics
        )
        cli.say(f"{name}: {', '.join(values)}")


def _print_parity(parity: Parity) -> None:
    sets = len({name for pair in parity.pairs for name in (pair.left, pair.right)})
    table = Table(
        title=f"the same integers, run with {'three' if sets == 3 else sets} sets of kernels",
        caption=f"{parity.differing:,} of {parity.numbers:,} stored numbers differ",
    )
    table.add_column("pair", overflow="fold", min_width=28)
    for column in ("agree %", "mean LSB", "0", "1", "2", "3+"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in parity.pairs:
        total = sum(pair.histogram)
        shares = [*pair.histogram[:3], sum(pair.histogram[3:])]
        table.add_row(
            cli.plain(f"{pair.left} : {pair.right}"),
            f"{pair.agreement.value:.2f}",
            f"{pair.mean_lsb.value:.4f}",
            *(f"{100 * share / total:.2f}" for share in shares),
        )
    cli.console.print(table)
    cli.console.print(
        "[dim]reference: TFLite's own plain kernels; 0, 1, 2, 3+: % of output numbers that "
        "differ by so many steps[/]"
    )
