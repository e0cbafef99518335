"""Judge a report by bounds; exit status 1 on a regression."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from edgekit.base.errors import InvalidOptionError, ReportError
from edgekit.gating import bounds as grammar
from edgekit.gating import checks as judged
from edgekit.gating.bounds import Bound
from edgekit.gating.checks import Check
from edgekit.records.results import Report


def gate(
    report: Report,
    *,
    baseline: Report | None = None,
    max_drop: Mapping[str, float | str] | None = None,
    bounds: Sequence[Bound] = (),
    allow_dead: Collection[str | None] = (),
) -> tuple[Check, ...]:
    """Judge every artifact of report and baseline by every bound.

    Args:
        report: What was measured now.
        baseline: The accepted report; bounds that look at the report alone need none.
        max_drop: How much worse a metric may be: a number in its unit (points for shares), or text
            as ``1 %`` of the baseline's value. Default: half a point of top-1, where there is a
            baseline and ``bounds`` asks nothing of top-1; of a baseline without top-1, half a point
            of R^2, of mAP or of mIoU, else 3 dB of SQNR.
        bounds: More, of any kind; later ones win over earlier ones of the same kind and metric.
        allow_dead: Artifacts whose dead channels are let pass; None among them stands for all.

    Returns:
        The checks; the gate is passed when none has the verdict FAIL.

    Raises:
        ReportError: If the two are not comparable (other model, data, reference, machine or
            threads, or an unstable latency), or there are no artifacts.
        InvalidOptionError: If a metric or artifact is unknown, a bound has no meaning, or one
            needs a baseline and there is none.
    """
    asked = list(bounds)
    if max_drop is not None:
        asked = [grammar.read("max-drop", *pair, source="max_drop") for pair in max_drop.items()]
        asked += bounds
    elif baseline is not None:
        asked = [*default_of(baseline, bounds), *asked]
    check_answerable(asked, baseline is not None)
    checks = judged.judge(report, baseline=baseline, bounds=asked, allow_dead=allow_dead)
    for check in checks:
        if check.verdict == "REFUSED":
            raise ReportError(check.reason)
    return checks


def default_of(accepted: Report, bounds: Sequence[Bound]) -> tuple[Bound, ...]:
    """What is asked of accuracy where nobody says it: of top-1, R^2, mAP or mIoU, else of SQNR.

    Raises:
        InvalidOptionError: If there is neither and ``bounds`` asks nothing either.
    """
    known = {metric for result in accepted.artifacts for metric in result.metrics}
    if not accepted.artifacts:  # nothing can be judged
        return (grammar.DEFAULT,)
    judged_by_labels = accepted.fit is None or not accepted.fit.problem
    for default in grammar.DEFAULTS:
        if default.metric in known and (
            judged_by_labels or default.metric not in grammar.OF_THE_LABELS
        ):
            return (default,)
    if not bounds:
        raise InvalidOptionError(
            "the baseline has neither top1, r2, map, miou nor sqnr, which the default bounds are "
            "on; pass a bound, e.g. --max-rise 'mse=10 %'"
        )
    return ()


def check_answerable(bounds: Sequence[Bound], has_baseline: bool) -> None:
    """Refuse bounds that cannot be judged by.

    Raises:
        InvalidOptionError: If there is none, or one needs a baseline and there is none.
    """
    if not bounds:
        raise InvalidOptionError(
            "nothing to judge by; pass --baseline FILE, or a limit as --min top1=93"
        )
    for bound in bounds:
        if bound.of_baseline and not has_baseline:
            raise InvalidOptionError(f"{bound} ({bound.source}) needs a baseline; pass --baseline")
