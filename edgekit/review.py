"""Review of a baseline: what an update changes, and why each change is allowed. Framework-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit import checks as judged
from edgekit.checks import Check
from edgekit.results import ArtifactResult, Report

#: Key in a report's settings under which a baseline keeps the reasons that were given.
ACCEPTED = "accepted"


@dataclass(frozen=True)
class Change:
    """One figure that an update replaces, or an artifact that comes or goes.

    Attributes:
        metric: Empty for an artifact that comes or goes.
        before: The baseline's value; None where it has none.
        after: The report's value; None where it has none.
        outside: Whether it is outside of a bound, so that a reason has to be given.
        why: The bound it is inside of or outside of, in words.
    """

    artifact: str
    metric: str
    before: float | None
    after: float | None
    unit: str
    outside: bool
    why: str

    def __str__(self) -> str:
        if not self.metric:
            return f"{self.artifact} {self.why.partition(';')[0]}"
        before, after = (judged.show(value, self.unit) for value in (self.before, self.after))
        return f"{self.artifact} {self.metric} {before} -> {after}"


def changes(report: Report, baseline: Report | None, checks: Sequence[Check]) -> tuple[Change, ...]:
    """What becomes of the baseline when the report takes its place, metric by metric.

    Args:
        report: The baseline to be.
        baseline: The one it replaces; None where there is none yet.
        checks: Of :func:`edgekit.checks.judge` on the two.
    """
    now = {result.name: result for result in report.artifacts}
    before = {result.name: result for result in baseline.artifacts} if baseline else {}
    found = []
    for name in dict.fromkeys([*before, *now]):
        of_it = [check for check in checks if check.artifact == name]
        found += _of_artifact(name, before.get(name), now.get(name), of_it)
    return tuple(found)


def accept(
    report: Report, baseline: Report | None, outside: Sequence[Change], reason: str | None
) -> Report:
    """The report as a baseline: with the reasons of earlier ones and, for what is outside, its own.

    They are kept in ``settings["accepted"]``.
    """
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
        return [Change(name, "", None, None, "", bool(bad), why)]
    found = []
    if before is None:
        found.append(Change(name, "", None, None, "", False, "added; new in the baseline"))
    old = before.metrics if before else {}
    for metric in dict.fromkeys([*old, *now.metrics, *bad]):
        one, other = old.get(metric), now.metrics.get(metric)
        same = one is not None and other is not None and one.value == other.value
        if metric not in bad and (same or before is None):
            continue
        known = other or one
        of_metric = [check for check in checks if check.metric == metric]
        found.append(
            Change(
                name,
                metric,
                None if one is None else one.value,
                None if other is None else other.value,
                known.unit if known else "",
                metric in bad,
                "; ".join(map(_why, of_metric)) or "no bound on it",
            )
        )
    return found


def _why(check: Check) -> str:
    rule = f"{check.rule} ({check.source})"
    if check.verdict == "REFUSED":
        return check.reason
    if check.verdict == "FAIL":
        return f"outside {rule}: {check.reason}"
    return f"{'better; ' if check.verdict == 'STALE' else ''}inside {rule}"
