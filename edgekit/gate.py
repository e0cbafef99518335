"""``python -m edgekit.gate``: judge a report against a baseline; exit status 1 on a regression.

A bound ``top1=0.5`` allows a drop of half a point from the baseline's value. A line fails when the
drop is beyond its bound; it also says whether the drop is more than chance: for top-1 by the exact
McNemar test on the images of both reports, else by whether the intervals overlap. A report on
other data or of another model is refused (exit status 2), and so is one that holds NaN, since no
reader of reports takes it. An improvement beyond the bound is shown as STALE: the baseline is
behind. Imports no framework.
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
_OF_THE_MACHINE = ("peak_memory", "load_time", "latency_p50", "latency_p90", "latency_p99") + (
    "latency_ratio",
)
DEFAULT_MAX_DROP = {"top1": 0.5}

Verdict = Literal["PASS", "FAIL", "STALE", "NEW"]


@dataclass(frozen=True)
class Check:
    """One line of the gate.

    Attributes:
        drop: How much worse than the baseline, in the metric's unit; negative is better.
        bound: The drop that is allowed.
        reason: What a reader should know: significance, or why it failed.
    """

    artifact: str
    metric: str
    verdict: Verdict
    current: float | None
    baseline: float | None
    drop: float | None
    bound: float
    reason: str


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
        ReportError: If the two are not comparable: other model, data, or machine.
        InvalidOptionError: If a metric is unknown or a bound is no number >= 0.
    """
    bounds = dict(DEFAULT_MAX_DROP if max_drop is None else max_drop)
    _check_bounds(bounds)
    _check_comparable(report, baseline, bounds)
    current = {result.name: result for result in report.artifacts}
    checks = [
        _judge(current.get(before.name), before, metric, bound, report, baseline)
        for before in baseline.artifacts
        for metric, bound in bounds.items()
    ]
    known = {before.name for before in baseline.artifacts}
    for result in report.artifacts:
        if result.name not in known:
            for metric, bound in bounds.items():
                value = result.metrics.get(metric)
                reason = "not in the baseline; --update takes it in"
                checks.append(
                    Check(result.name, metric, "NEW", _value(value), None, None, bound, reason)
                )
    return tuple(checks)


def _check_bounds(bounds: Mapping[str, float]) -> None:
    for metric, bound in bounds.items():
        if metric not in METRICS:
            raise InvalidOptionError(
                f"unknown metric {metric!r} in --max-drop; expected one of {', '.join(METRICS)}"
            )
        if not (math.isfinite(bound) and bound >= 0):
            raise InvalidOptionError(f"expected --max-drop {metric} >= 0, got {bound}")


def _check_comparable(report: Report, baseline: Report, bounds: Mapping[str, float]) -> None:
    if report.model_id != baseline.model_id:
        raise ReportError(
            f"the report is of model {report.model_id!r}, the baseline of {baseline.model_id!r}; "
            f"pass the baseline of this model"
        )
    if report.data.sha256 != baseline.data.sha256:
        raise ReportError(
            f"the report was made on {report.data.name} (sha256 {report.data.sha256[:12]}…), the "
            f"baseline on {baseline.data.name} ({baseline.data.sha256[:12]}…); use the same data"
        )
    ours, theirs = report.environment.machine_class, baseline.environment.machine_class
    timed = [metric for metric in bounds if metric in _OF_THE_MACHINE]
    if timed and ours != theirs:
        raise ReportError(
            f"{timed[0]} compares within one machine class only: the report has {ours!r}, the "
            f"baseline {theirs!r}; drop that bound or measure the baseline here"
        )


def _judge(
    now: ArtifactResult | None,
    before: ArtifactResult,
    metric: str,
    bound: float,
    report: Report,
    baseline: Report,
) -> Check:
    old = before.metrics.get(metric)
    new = now.metrics.get(metric) if now else None
    if now is None or new is None or old is None:
        missing = "artifact" if now is None else "metric"
        where = "baseline" if now is not None and new is not None else "report"
        return Check(
            before.name,
            metric,
            "FAIL",
            _value(new),
            _value(old),
            None,
            bound,
            f"the {missing} is missing from the {where}",
        )
    drop = _drop(metric, old.value, new.value)
    reason, significant = _significance(metric, now, before, new, old, report, baseline)
    if drop > bound:
        verdict: Verdict = "FAIL"
    elif drop < 0 and (-drop > bound or significant):
        verdict, reason = "STALE", f"better than the baseline ({reason}); run --update"
    else:
        verdict = "PASS"
    return Check(before.name, metric, verdict, new.value, old.value, drop, bound, reason)


def _value(measurement: Measurement | None) -> float | None:
    return None if measurement is None else measurement.value


def _drop(metric: str, old: float, new: float) -> float:
    if old == new:  # also when both are infinite
        return 0.0
    return old - new if metric in HIGHER_IS_BETTER else new - old


def _significance(
    metric: str,
    now: ArtifactResult,
    before: ArtifactResult,
    new: Measurement,
    old: Measurement,
    report: Report,
    baseline: Report,
) -> tuple[str, bool]:
    if metric == "top1" and now.correct and before.correct:
        count = report.data.count
        is_right, was_right = now.correct_bits(count), before.correct_bits(baseline.data.count)
        lost, gained = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
        p = mcnemar_exact(lost, gained)
        size = "significant" if p < 0.05 else "not significant"
        return f"{lost} lost, {gained} gained, p = {p:.3g}: {size}", p < 0.05
    if new.low is None or new.high is None or old.low is None or old.high is None:
        return "no interval", False
    apart = new.low > old.high or new.high < old.low
    return ("intervals apart: significant" if apart else "intervals overlap"), apart


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact p of ``lost`` against ``gained`` discordant pairs (McNemar 1947).

    Twice the smaller tail of the binomial with probability 1/2, in integers.
    """
    n, k = lost + gained, min(lost, gained)
    term, tail = 1, 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n)) if n else 1.0


def _print(checks: Sequence[Check], model_id: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    colours = {"PASS": "green", "FAIL": "bold red", "STALE": "yellow", "NEW": "cyan"}
    table = Table(title=f"gate of {escape(model_id)}")
    for column in ("verdict", "artifact", "metric", "now", "was", "may drop", "because"):
        table.add_column(column, no_wrap=column in ("verdict", "artifact", "metric"))
    for check in checks:
        table.add_row(
            f"[{colours[check.verdict]}]{check.verdict}[/]",
            escape(check.artifact.removeprefix(f"{model_id}-")),
            check.metric,
            *(
                "-" if value is None else f"{value:.4g}"
                for value in (check.current, check.baseline)
            ),
            f"{check.bound:g}",
            escape(check.reason),
        )
    cli.console.print(table)


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
    bounds = dict(options.max_drop) if options.max_drop else None
    if options.update and not options.baseline.exists():
        outputs.write_text(options.baseline, report.dumps(), force=False)
        cli.console.print(f"{options.baseline}: new baseline of {len(report.artifacts)} artifacts")
        return 0, {"updated": str(options.baseline), "checks": []}
    baseline = Report.load(options.baseline)
    checks = gate(report, baseline=baseline, max_drop=bounds)
    _print(checks, report.model_id)
    failed = [check for check in checks if check.verdict == "FAIL"]
    if options.update:
        outputs.write_text(options.baseline, report.dumps(), force=True)
        cli.console.print(f"{options.baseline}: updated; review the change in git")
        return 0, {"updated": str(options.baseline), "checks": checks}
    cli.console.print(
        f"{len(failed)} of {len(checks)} checks failed"
        if failed
        else f"{len(checks)} checks, none failed"
    )
    return (1 if failed else 0), {"passed": not failed, "checks": checks}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
