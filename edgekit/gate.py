"""``python -m edgekit.gate``: judge a report against a baseline; exit status 1 on a regression.

A bound ``top1=0.5`` allows a drop of half a point from the baseline's value. A line fails when the
drop is beyond its bound; it also says whether the drop is more than chance: for top-1 by the exact
McNemar test on the images of both reports, else by whether the intervals overlap. An artifact or
metric of the baseline that the report lacks fails as well. An improvement that is significant or
beyond the bound is shown as STALE: the baseline is behind, run ``--update``.

A report on other data or of another model is refused (exit status 2), and so are times of another
machine class or thread count, and agreement with another reference. NaN never gets as far as a
verdict: the strict reader of reports refuses the file, also with exit status 2, since a report with
NaN is broken rather than worse. Imports no framework.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit import cli, outputs
from edgekit.errors import InvalidOptionError, ReportError
from edgekit.results import ArtifactResult, Measurement, Report
from edgekit.stats import SIGNIFICANT, discordant, mcnemar_exact

HIGHER_IS_BETTER = ("top1", "top5", "agreement", "sqnr")
LOWER_IS_BETTER = (
    "kl",
    "size",
    "peak_memory",
    "load_time",
    "latency_p50",
    "latency_p90",
    "latency_p99",
    "latency_ratio",
)
METRICS = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
#: Figures that depend on the machine and the threads, and compare only where both are the same.
_OF_THE_MACHINE = (
    "peak_memory",
    "load_time",
    "latency_p50",
    "latency_p90",
    "latency_p99",
    "latency_ratio",
)
#: Figures that hold answers against the reference.
_OF_THE_REFERENCE = ("agreement", "kl", "sqnr")
DEFAULT_MAX_DROP = {"top1": 0.5}

Verdict = Literal["PASS", "FAIL", "STALE", "NEW"]


@dataclass(frozen=True)
class Check:
    """One line of the gate.

    Attributes:
        current: The report's value; None where it is missing.
        baseline: The baseline's value; None where it is missing.
        unit: Of the values, the drop and the bound; drops of ``%`` are in points.
        drop: How much worse than the baseline; negative is better.
        bound: The drop that is allowed.
        significant: Whether the change is more than chance; None where that cannot be said.
        p: Exact McNemar p of the paired images; None for metrics without an image by image record.
        reason: What a reader should know: significance, or why it failed.
    """

    artifact: str
    metric: str
    verdict: Verdict
    current: float | None
    baseline: float | None
    unit: str
    drop: float | None
    bound: float
    reason: str
    significant: bool | None = None
    p: float | None = None


def gate(
    report: Report, *, baseline: Report, max_drop: Mapping[str, float] | None = None
) -> tuple[Check, ...]:
    """Judge every artifact of the baseline by every bound.

    Args:
        report: What was measured now.
        baseline: The accepted report.
        max_drop: Allowed drop by metric: points for shares in percent, else the metric's unit.
            Default: half a point of top-1.

    Returns:
        The checks; the gate is passed when none has the verdict FAIL.

    Raises:
        ReportError: If the two are not comparable (other model, data, machine or threads), or
            the baseline has no artifacts.
        InvalidOptionError: If a metric is unknown or a bound is no number >= 0.
    """
    bounds = dict(DEFAULT_MAX_DROP if max_drop is None else max_drop)
    _check_bounds(bounds)
    _check_comparable(report, baseline, bounds)
    current = {result.name: result for result in report.artifacts}
    checks = [
        _judge(current.get(before.name), before, metric, bound, report)
        for before in baseline.artifacts
        for metric, bound in bounds.items()
    ]
    known = {before.name for before in baseline.artifacts}
    for result in report.artifacts:
        if result.name not in known:
            for metric, bound in bounds.items():
                new = result.metrics.get(metric)
                checks.append(
                    Check(
                        artifact=result.name,
                        metric=metric,
                        verdict="NEW",
                        current=_value(new),
                        baseline=None,
                        unit=new.unit if new else "",
                        drop=None,
                        bound=bound,
                        reason="not in the baseline; --update takes it in",
                    )
                )
    return tuple(checks)


def _check_bounds(bounds: Mapping[str, float]) -> None:
    for metric, bound in bounds.items():
        if metric not in METRICS:
            raise InvalidOptionError(
                f"unknown metric {metric!r} in --max-drop; expected one of {', '.join(METRICS)}"
            )
        if not (math.isfinite(bound) and bound >= 0):
            raise InvalidOptionError(f"expected a finite --max-drop {metric} >= 0, got {bound}")


def _check_comparable(report: Report, baseline: Report, bounds: Mapping[str, float]) -> None:
    if report.model_id != baseline.model_id:
        raise ReportError(
            f"the report is of model {report.model_id!r}, the baseline of {baseline.model_id!r}; "
            f"pass the baseline of this model, or write one to a new path with --update"
        )
    if report.data.sha256 != baseline.data.sha256:
        raise ReportError(
            f"the report was made on {report.data.name} (sha256 {report.data.sha256[:12]}…), the "
            f"baseline on {baseline.data.name} ({baseline.data.sha256[:12]}…); use the same data, "
            f"or write a baseline to a new path with --update"
        )
    if not baseline.artifacts:
        raise ReportError(
            "the baseline has no artifacts, so nothing can be judged; compare at least one"
        )
    held = [metric for metric in bounds if metric in _OF_THE_REFERENCE]
    here, there = (
        each.reference_in_words.removesuffix(" (recorded)") for each in (report, baseline)
    )
    if held and here != there:
        raise ReportError(
            f"{held[0]} compares within one reference only: the report holds against {here}, the "
            f"baseline against {there}; drop that bound, or compare with the same --reference"
        )
    ours, theirs = report.environment.machine_class, baseline.environment.machine_class
    timed = [metric for metric in bounds if metric in _OF_THE_MACHINE]
    if timed and ours != theirs:
        raise ReportError(
            f"{timed[0]} compares within one machine class only: the report has {ours!r}, the "
            f"baseline {theirs!r}; drop that bound or measure the baseline here"
        )
    if timed:
        threads = {result.name: result.runtime.threads for result in baseline.artifacts}
        for result in report.artifacts:
            before = threads.get(result.name, result.runtime.threads)
            if before != result.runtime.threads:
                raise ReportError(
                    f"{timed[0]} compares with the same number of threads only: {result.name} "
                    f"ran with {result.runtime.threads}, in the baseline with {before}; "
                    f"compare with --threads {before}"
                )


def _judge(
    now: ArtifactResult | None,
    before: ArtifactResult,
    metric: str,
    bound: float,
    report: Report,
) -> Check:
    old = before.metrics.get(metric)
    new = now.metrics.get(metric) if now else None
    known = new or old
    if now is None or new is None or old is None:
        missing = "artifact" if now is None else "metric"
        where = "baseline" if now is not None and new is not None else "report"
        return Check(
            artifact=before.name,
            metric=metric,
            verdict="FAIL",
            current=_value(new),
            baseline=_value(old),
            unit=known.unit if known else "",
            drop=None,
            bound=bound,
            reason=f"the {missing} is missing from the {where}",
        )
    if new.unit != old.unit:
        raise ReportError(
            f"{metric} of {before.name} is in {new.unit!r} in the report and in {old.unit!r} in "
            f"the baseline; write both with one version"
        )
    drop = _drop(metric, old.value, new.value)
    reason, significant, p = _significance(metric, now, before, new, old, report.data.count)
    verdict: Verdict = "PASS"
    if _exceeds(drop, bound, old.value, new.value):
        verdict = "FAIL"
    elif drop < 0 and (significant or _exceeds(-drop, bound, old.value, new.value)):
        verdict, reason = "STALE", f"better, {reason}; baseline is stale, run --update"
    return Check(
        artifact=before.name,
        metric=metric,
        verdict=verdict,
        current=new.value,
        baseline=old.value,
        unit=new.unit,
        drop=drop,
        bound=bound,
        reason=reason,
        significant=significant,
        p=p,
    )


def _value(measurement: Measurement | None) -> float | None:
    return None if measurement is None else measurement.value


def _drop(metric: str, old: float, new: float) -> float:
    if old == new:  # also when both are infinite
        return 0.0
    return old - new if metric in HIGHER_IS_BETTER else new - old


def _exceeds(change: float, bound: float, old: float, new: float) -> bool:
    """Whether a change is beyond its bound by more than the rounding of the two values.

    50 of 10,000 images are 0.5 points, though the difference of two shares may come out as
    0.5000000000000018.
    """
    rounding = 4 * math.ulp(max(abs(old), abs(new)))
    return change > bound and not math.isclose(change, bound, rel_tol=0, abs_tol=rounding)


def _significance(
    metric: str,
    now: ArtifactResult,
    before: ArtifactResult,
    new: Measurement,
    old: Measurement,
    count: int,
) -> tuple[str, bool | None, float | None]:
    if metric == "top1" and now.correct and before.correct:
        lost, gained = discordant(before.correct_bits(count), now.correct_bits(count))
        p = mcnemar_exact(lost, gained)
        size = "significant" if p < SIGNIFICANT else "not significant"
        return f"{lost} lost, {gained} gained, p = {p:.3g}: {size}", p < SIGNIFICANT, p
    if new.low is None or new.high is None or old.low is None or old.high is None:
        return "no interval, so significance unknown", None, None
    apart = new.low > old.high or new.high < old.low
    return ("intervals apart: significant" if apart else "intervals overlap"), apart, None


def _print(checks: Sequence[Check], model_id: str, reference: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"PASS": "green", "FAIL": "bold red", "STALE": "yellow", "NEW": "cyan"}
    console = cli.console
    if not console.is_terminal:  # a log has no width; 80 columns would break every reason
        console = Console(file=console.file, width=160, highlight=False)
    narrow = console.width < 110
    beside = "" if reference == "the float model" else f", held against {reference}"
    table = Table(title=f"gate of {escape(model_id + beside)}", box=SIMPLE_HEAD)
    columns = ("verdict", "artifact", "metric", "now", "was", "change", "may drop", "because")
    shown = [name for name in columns if not (narrow and name in ("was", "may drop"))]
    for name in shown:
        numeric = name in ("now", "was", "change", "may drop")
        table.add_column(
            name,
            justify="right" if numeric else "left",
            no_wrap=name not in ("artifact", "because"),
        )
    for check in checks:
        change = None
        if check.current is not None and check.baseline is not None:
            change = 0.0 if check.drop == 0 else check.current - check.baseline
        unit = "points" if check.unit == "%" else check.unit
        cells = {
            "verdict": f"[{colours[check.verdict]}]{check.verdict}[/]",
            "artifact": escape(check.artifact.removeprefix(f"{model_id}-")),
            "metric": check.metric,
            "now": _show(check.current, check.unit),
            "was": _show(check.baseline, check.unit),
            "change": _show(change, check.unit, sign="+"),
            "may drop": escape(f"{check.bound:g} {unit}".rstrip()),
            "because": escape(check.reason),
        }
        table.add_row(*(cells[name] for name in shown))
    console.print(table)


def _show(value: float | None, unit: str, *, sign: str = "") -> str:
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.2f}" if unit == "%" else f"{value:{sign}.4g}"


def _max_drop(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        bound = float(value)
    except ValueError:
        equals = ""
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE as top1=0.5, got {text!r}")
    return name, bound


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.gate``."""
    result = cli.Parser(
        "gate",
        description="Judge a report against a baseline. Exit: 0 good, 1 regression, 2 bad input.",
        examples="""
python -m edgekit.gate report.json --baseline exports/baseline.json --max-drop top1=0.5
python -m edgekit.gate report.json --baseline exports/baseline.json --max-drop agreement=1 \\
    --max-drop size=10000
python -m edgekit.gate report.json --baseline exports/baseline.json --update
""",
    )
    add = result.add_argument
    add("report", type=Path, metavar="REPORT", help="report of `edgekit compare`")
    add("--baseline", type=Path, required=True, help="accepted report")
    add(
        "--max-drop",
        type=_max_drop,
        action="append",
        metavar="NAME=VALUE",
        help="how much worse a metric may be (default: top1=0.5 points); repeatable",
    )
    add("--update", action="store_true", help="write the report as the new baseline")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    report = Report.load(options.report)
    bounds = _bounds(options.max_drop)
    if options.update and not options.baseline.exists():
        if not report.artifacts:
            raise ReportError(f"{options.report} has no artifacts; a baseline needs at least one")
        outputs.write_text(options.baseline, report.dumps(), force=False)
        cli.console.print(
            f"{options.baseline}: new baseline of {len(report.artifacts)} artifacts", markup=False
        )
        return 0, {"updated": str(options.baseline), "checks": []}
    baseline = Report.load(options.baseline)
    checks = gate(report, baseline=baseline, max_drop=bounds)
    _print(checks, report.model_id, report.reference_in_words)
    failed = [check for check in checks if check.verdict == "FAIL"]
    stale = [check for check in checks if check.verdict == "STALE"]
    if options.update:
        outputs.write_text(options.baseline, report.dumps(), force=True)
        cli.console.print(
            f"{options.baseline}: updated, {_changes(report, baseline)}; "
            f"it accepts {len(failed)} failed checks; review the change in git",
            markup=False,
        )
        return 0, {"updated": str(options.baseline), "checks": checks}
    counts = f"{len(checks)} checks, {len(failed) or 'none'} failed"
    cli.console.print(
        f"{counts}; {len(stale)} better than the baseline, which is stale" if stale else counts
    )
    return (1 if failed else 0), {"passed": not failed, "checks": checks}


def _bounds(pairs: list[tuple[str, float]] | None) -> dict[str, float] | None:
    """The bounds of the command line, checked before any file is read for them."""
    if pairs is None:
        return None
    bounds = dict(pairs)
    if len(bounds) != len(pairs):
        raise InvalidOptionError("--max-drop names a metric twice; give each one bound")
    _check_bounds(bounds)
    return bounds


def _changes(report: Report, baseline: Report) -> str:
    """What an update does to the artifacts of the baseline, for people."""
    now = {result.name: result for result in report.artifacts}
    before = {result.name: result for result in baseline.artifacts}
    changed = sum(now[name].metrics != before[name].metrics for name in now.keys() & before.keys())
    parts = [f"{changed} artifacts measured anew"]
    for word, names in (("added", now.keys() - before), ("removed", before.keys() - now)):
        if names:
            parts.append(f"{word} {', '.join(sorted(names))}")
    return ", ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
