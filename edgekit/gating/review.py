"""Review of a baseline: what an update changes, and why each change is allowed. Framework-free.

If every update of a baseline could lose half a point, many updates could lose any amount. So a
baseline keeps its *origin*, the values that were accepted first, and all updates together may lose
no more than one may. A larger loss needs a reason. The value that is accepted with it becomes the
origin, with its date and the reason. Values of one machine (time, memory, energy) have no origin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.gating import bounds as grammar
from edgekit.gating import checks as judged
from edgekit.gating.bounds import Bound
from edgekit.gating.checks import Check
from edgekit.records.results import Accepted, ArtifactResult, Report

Origin = Mapping[str, Mapping[str, Accepted]]

#: Key in a report's settings under which a baseline keeps the reasons that were given.
ACCEPTED = "accepted"


@dataclass(frozen=True)
class Change:
    """One metric that an update replaces, or an artifact that comes or goes.

    Attributes:
        metric: Empty for an artifact that comes or goes.
        before: The baseline's value; None where it has none.
        after: The report's value; None where it has none.
        outside: Whether it is outside of a bound, so that a reason has to be given.
        why: The bound it is inside of or outside of, in words.
        artifact_is: Whether the artifact itself comes or goes; empty of a metric.
    """

    artifact: str
    metric: str
    before: float | None
    after: float | None
    unit: str
    outside: bool
    why: str
    artifact_is: Literal["", "added", "removed"] = ""

    def __str__(self) -> str:
        if self.artifact_is:
            return f"{self.artifact} {self.artifact_is}"
        before, after = (judged.show(value, self.unit) for value in (self.before, self.after))
        return f"{self.artifact} {self.metric} {before} -> {after}"


def changes(report: Report, baseline: Report | None, checks: Sequence[Check]) -> tuple[Change, ...]:
    """What becomes of the baseline when the report takes its place, metric by metric.

    Args:
        report: The baseline to be.
        baseline: The one it replaces; None where there is none yet.
        checks: Checks of :func:`edgekit.gating.checks.judge` on the two.
    """
    now = {result.name: result for result in report.artifacts}
    before = {result.name: result for result in baseline.artifacts} if baseline else {}
    rows = []
    for name in dict.fromkeys([*before, *now]):
        of_it = [check for check in checks if check.artifact == name]
        rows += _of_artifact(name, before.get(name), now.get(name), of_it)
    return tuple(rows)


def values_of(report: Report, reason: str = "") -> dict[str, dict[str, Accepted]]:
    """The values of a report as an origin, by artifact and metric."""
    left_out = (*grammar.TIMES, *grammar.OF_THE_MACHINE)
    return {
        result.name: {
            metric: Accepted(
                measurement.value,
                measurement.unit,
                report.created,
                reason,
                report.reference_in_words,
            )
            for metric, measurement in result.metrics.items()
            if grammar.known(metric) and metric not in left_out
        }
        for result in report.artifacts
    }


def origin_of(baseline: Report) -> dict[str, dict[str, Accepted]]:
    """What was accepted first; of a baseline of before, its own values."""
    return values_of(baseline) if baseline.origin is None else baseline.origin


def creep(report: Report, origin: Origin, bounds: Sequence[Bound]) -> tuple[Check, ...]:
    """Bounds that the report breaks against the origin, whatever became of single updates.

    Args:
        report: The baseline to be.
        origin: As :func:`origin_of` has it.
        bounds: As :func:`edgekit.gating.checks.judge` takes them.
    """
    names = list(dict.fromkeys([*origin, *(result.name for result in report.artifacts)]))
    known = grammar.named(bounds, names, report.model_id)
    checks = []
    for result in report.artifacts:
        for bound in grammar.effective(known, result.name):
            first = origin.get(result.name, {}).get(bound.metric)
            now = result.metrics.get(bound.metric)
            if not bound.of_baseline or first is None or now is None or first.unit != now.unit:
                continue
            other = first.reference != report.reference_in_words
            if other and grammar.family(bound.metric) in grammar.OF_THE_REFERENCE:
                continue
            allowed = bound.value
            if bound.percent:
                allowed *= abs(first.value) / 100 if math.isfinite(first.value) else 0.0
            was, value = first.value, now.value
            if bound in grammar.OF_NUMBERS:
                was, value = min(was, grammar.ROUNDING), min(value, grammar.ROUNDING)
            lost = judged.drop(bound, was, value)
            if judged.exceeds(lost, allowed, was, value):
                why = f", accepted for {first.reason!r}" if first.reason else ""
                reason = (
                    f"all updates together lost {judged.number(lost, now.unit)} since "
                    f"{judged.show(first.value, first.unit)} of {first.created[:10]}{why}"
                )
                checks.append(
                    Check(
                        artifact=result.name,
                        metric=bound.metric,
                        kind=bound.kind,
                        verdict="FAIL",
                        current=now.value,
                        baseline=first.value,
                        unit=now.unit,
                        drop=lost,
                        bound=allowed,
                        reason=reason,
                        percent=bound.value if bound.percent else None,
                        source=bound.source,
                    )
                )
    return tuple(checks)


def accept(
    report: Report,
    baseline: Report | None,
    outside: Sequence[Change],
    reason: str | None,
    origin: Origin | None = None,
) -> Report:
    """The report as a baseline: with the reasons of earlier ones and, for what is outside, its own.

    They are kept in ``settings["accepted"]``; the origin is kept too, and moves where a value
    outside was accepted.

    Args:
        report: The baseline to be.
        baseline: The one it replaces; None where there is none yet.
        outside: Changes that need the reason.
        reason: Reason of the user.
        origin: The values that all updates together are compared with; None without an origin.
    """
    new = values_of(report, reason or "")
    if origin is not None:
        moved = {(change.artifact, change.metric) for change in outside}
        new = {
            name: {
                metric: origin[name][metric]
                if metric in origin.get(name, {}) and (name, metric) not in moved
                else replace(value, reason=value.reason if (name, metric) in moved else "")
                for metric, value in of_it.items()
            }
            for name, of_it in new.items()
        }
    report = replace(report, origin=new)
    earlier = baseline.settings.get(ACCEPTED) if baseline else None
    reasons = [str(text) for text in earlier] if isinstance(earlier, list) else []
    if outside and reason:
        reasons.append(f"{reason} ({'; '.join(map(str, outside))})")
    if not reasons:
        return report
    return replace(report, settings={**report.settings, ACCEPTED: reasons})


def _of_artifact(
    name: str, before: ArtifactResult | None, now: ArtifactResult | None, checks: Sequence[Check]
) -> list[Change]:
    bad = {check.metric for check in checks if check.verdict in ("FAIL", "REFUSED")}
    if now is None:
        why = "removed; its bounds have nothing to judge" if bad else "removed; no bound on it"
        return [Change(name, "", None, None, "", bool(bad), why, "removed")]
    rows = []
    if before is None:
        why = "added; new in the baseline"
        rows.append(Change(name, "", None, None, "", False, why, "added"))
    old = before.metrics if before else {}
    for metric in dict.fromkeys([*old, *now.metrics, *bad]):
        one, other = old.get(metric), now.metrics.get(metric)
        same = one is not None and other is not None and one.value == other.value
        if metric not in bad and (same or before is None):
            continue
        known = other or one
        of_metric = [check for check in checks if check.metric == metric]
        after = None if other is None else other.value
        unit = known.unit if known else ""
        if metric == "fidelity":  # a check, no metric
            after, unit = of_metric[0].current, of_metric[0].unit
        rows.append(
            Change(
                name,
                metric,
                None if one is None else one.value,
                after,
                unit,
                metric in bad,
                "; ".join(map(_why, of_metric)) or "no bound on it",
            )
        )
    return rows


def _why(check: Check) -> str:
    rule = f"{check.rule} ({check.source})"
    if check.verdict == "REFUSED":
        return check.reason
    if check.verdict == "FAIL":
        return f"outside {rule}: {check.reason}"
    return f"{'better; ' if check.verdict == 'STALE' else ''}inside {rule}"
