"""Checks: judge a report by bounds, alone and against a baseline. Framework-free.

Each check is one bound on one artifact. Its verdict is PASS, FAIL, STALE (better than the baseline
by more than chance or more than the bound), NEW (not in the baseline) or REFUSED (the two metrics
cannot be compared; the reason says why). One more check is always made: no channel of an artifact
may be dead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit.base import words
from edgekit.base.errors import ReportError
from edgekit.evaluation import verdicts
from edgekit.gating import bounds as grammar
from edgekit.gating.bounds import Bound
from edgekit.records import fidelity, stats
from edgekit.records.results import ArtifactResult, Measurement, Report

Verdict = Literal["PASS", "FAIL", "STALE", "NEW", "REFUSED"]


@dataclass(frozen=True)
class Check:
    """One line of the gate.

    Attributes:
        kind: Kind of the bound: ``min``, ``max``, ``max-drop`` or ``max-rise``; ``dead`` of the
            check that asks for no dead channel, whose metric is ``fidelity``.
        current: The report's value; None where it is missing.
        baseline: The baseline's value; None where it is missing or there is no baseline.
        unit: Unit of the values, the drop and the bound; drops of ``%`` are in points.
        drop: How much worse than the baseline; negative is better. None for ``min`` and ``max``.
        bound: The drop that is allowed, or the limit; None where it is a part of a value that is
            missing.
        percent: The bound as it was written in % of the baseline's value, or None.
        source: Where the bound was written.
        significant: Whether the change is more than chance; None where that cannot be said.
        p: Exact McNemar p of the paired images; None for metrics without an image by image record.
        reason: What a reader should know: significance, or why it failed.
    """

    artifact: str
    metric: str
    kind: grammar.Kind | Literal["dead"]
    verdict: Verdict
    current: float | None
    baseline: float | None
    unit: str
    drop: float | None
    bound: float | None
    reason: str
    percent: float | None = None
    source: str = ""
    significant: bool | None = None
    p: float | None = None

    @property
    def rule(self) -> str:
        """The bound in words, as ``max-drop 0.5 points`` or ``max-rise 1 % (6,279 bytes)``."""
        if self.kind == "dead":
            return "no dead channel"
        drop = self.kind in ("max-drop", "max-rise")
        unit = "points" if drop and self.unit == "%" else self.unit
        if grammar.of_user(self.metric):
            unit = ""  # nobody knows it
        amount = "" if self.bound is None else f"{number(self.bound, self.unit)} {unit}".rstrip()
        if self.percent is not None:
            amount = f"{self.percent:g} %"
            if self.bound is not None:
                amount += f" ({show(self.bound, '' if unit == 'points' else unit)} {unit})"
        return f"{self.kind} {amount}".rstrip()


#: Metrics of parts that a sentence names, at most.
_FEW = 8
_PROBLEMS = {
    "chance": "by its labels the float model is no better than chance",
    "one class": "all of its labels are one class",
}


def number(value: float, unit: str) -> str:
    """A value or bound as people read it: whole bytes with commas, else what tells it apart."""
    if unit == "bytes" and math.isfinite(value):
        return f"{value:,.0f}" if value.is_integer() else f"{value:,.1f}"
    return f"{value:g}"


def show(value: float | None, unit: str, *, sign: str = "") -> str:
    """A measured value for a cell of a table; ``sign`` as in a format, for changes."""
    if value is None:
        return "-"
    if unit == "bytes" and math.isfinite(value):
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.2f}" if unit == "%" else f"{value:{sign}.4g}"


def change(check: Check) -> float | None:
    """The report's value minus the baseline's; None without either."""
    if check.current is None or check.baseline is None:
        return None
    return 0.0 if check.current == check.baseline else check.current - check.baseline


def headline(checks: Sequence[Check]) -> str:
    """The verdict in one line, as ``6 checks, none failed``."""
    failed, stale, new = (
        sum(check.verdict == verdict for check in checks) for verdict in ("FAIL", "STALE", "NEW")
    )
    text = f"{len(checks)} checks, {failed or 'none'} failed"
    if new:
        text += f"; {new} new"
    if stale:
        text += f"; {stale} better than the baseline, which is stale"
    return text


def judge(
    report: Report,
    *,
    baseline: Report | None,
    bounds: Sequence[Bound],
    allow_dead: Collection[str | None] = (),
) -> tuple[Check, ...]:
    """Judge every artifact of report and baseline by every bound on it.

    Args:
        report: What was measured now.
        baseline: The accepted report, if there is one.
        bounds: What is asked.
        allow_dead: Artifacts whose dead channels are let pass; None among them stands for all.

    Raises:
        ReportError: If report and baseline are not of the same model and data, one that is needed
            has no artifacts, or two units differ.
        InvalidOptionError: If a bound is for an artifact that neither has.
    """
    if baseline is not None:
        _check_comparable(report, baseline)
    now = {result.name: result for result in report.artifacts}
    before = {result.name: result for result in baseline.artifacts} if baseline else {}
    names = list(dict.fromkeys([*before, *now]))
    if not names:
        raise ReportError("the report has no artifacts, so nothing can be judged")
    known = grammar.named(bounds, names, report.model_id)
    allowed = {grammar.full_name(name, names, report.model_id, "allow-dead") for name in allow_dead}
    checks = []
    for name in names:
        if name in now and now[name].fidelity:
            checks.append(_alive(now[name], allowed=bool(allowed & {None, name})))
        checks += [
            _judge(bound, name, report, baseline, now.get(name), before.get(name))
            for bound in grammar.effective(known, name)
        ]
    return tuple(checks)


def _alive(result: ArtifactResult, *, allowed: bool) -> Check:
    """Whether every channel that varies in the reference varies in an artifact."""
    dead = [output for output in result.fidelity if output.dead]
    reason = "every channel that varies in the float model varies here"
    if dead:
        reason = f"{'; '.join(map(fidelity.named, dead))}; varies in the float model, not here"
    return Check(
        artifact=result.name,
        metric="fidelity",
        kind="dead",
        verdict="FAIL" if dead and not allowed else "PASS",
        current=float(sum(output.dead_count for output in dead)),
        baseline=None,
        unit="channels",
        drop=None,
        bound=0.0,
        reason=f"allowed: {reason}" if dead and allowed else reason,
        source="always",
    )


def _check_comparable(report: Report, baseline: Report) -> None:
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


def _judge(
    bound: Bound,
    name: str,
    report: Report,
    baseline: Report | None,
    now: ArtifactResult | None,
    before: ArtifactResult | None,
) -> Check:
    metric = bound.metric
    new = now.metrics.get(metric) if now else None
    old = before.metrics.get(metric) if before else None
    known = new or old
    allowed = None if bound.percent else bound.value
    if bound.percent and old is not None:
        # Of an infinite value every finite one is an infinite drop: no part of it is allowed.
        allowed = bound.value / 100 * abs(old.value) if math.isfinite(old.value) else 0.0

    def check(
        verdict: Verdict,
        reason: str,
        *,
        drop: float | None = None,
        significant: bool | None = None,
        p: float | None = None,
    ) -> Check:
        return Check(
            artifact=name,
            metric=metric,
            kind=bound.kind,
            verdict=verdict,
            current=None if new is None else new.value,
            baseline=None if old is None else old.value,
            unit=known.unit if known else "",
            drop=drop,
            bound=allowed,
            percent=bound.value if bound.percent else None,
            source=bound.source,
            reason=reason,
            significant=significant,
            p=p,
        )

    if now is None or new is None:
        if now is None:
            return check("FAIL", "the artifact is missing from the report")
        if metric in (*grammar.TIMES, *grammar.OF_THE_MACHINE) and now.runtime.emulated:
            where = ", ".join(place.host for place in now.places) or "an imitation of a device"
            return check(
                "REFUSED",
                f"{name} ran on {where}, where {metric} means nothing and is not measured; measure "
                f"it on the device, or drop that bound",
            )
        hint = "; compare it with its float32 artifact" if metric == "latency_ratio" else ""
        start, _ = grammar.part(metric)
        if start:
            hint = _parts_in(start, metric, now)
        return check("FAIL", f"the metric is missing from the report{hint}")
    if (
        grammar.family(metric) in grammar.OF_THE_LABELS
        and report.fit is not None
        and report.fit.problem
    ):
        return check(
            "REFUSED",
            f"{metric} says nothing in this report: {_PROBLEMS[report.fit.problem]}; compare with "
            f"labels that fit, or drop that bound",
        )
    if not bound.of_baseline:
        return check(*_limit(bound, new, report, now))
    if before is None:
        return check("NEW", "not in the baseline; --update takes it in")
    if old is None:
        return check("FAIL", "the metric is missing from the baseline")
    if new.unit != old.unit:
        raise ReportError(
            f"{metric} of {name} is in {new.unit!r} in the report and in {old.unit!r} in "
            f"the baseline; write both with one version"
        )
    assert baseline is not None and allowed is not None
    refusal = _refusal(metric, report, baseline, now, before)
    if refusal:
        return check("REFUSED", refusal)
    was, value = old.value, new.value
    if bound in grammar.OF_NUMBERS:  # beyond is float32's rounding, other on each CPU
        was, value = min(was, grammar.ROUNDING), min(value, grammar.ROUNDING)
    lost = drop(bound, was, value)
    reason, significant, p = _significance(metric, now, before, report, baseline, allowed)
    verdict: Verdict = "PASS"
    if exceeds(lost, allowed, was, value):
        verdict = "FAIL"
    elif lost < 0 and (significant or exceeds(-lost, allowed, was, value)):
        verdict, reason = "STALE", f"{reason}; better than the baseline, run --update"
    return check(verdict, reason, drop=lost, significant=significant, p=p)


def _limit(
    bound: Bound, new: Measurement, report: Report, now: ArtifactResult
) -> tuple[Verdict, str]:
    """Whether a value keeps ``min`` or ``max``."""
    beyond = bound.value - new.value if bound.kind == "min" else new.value - bound.value
    unsure = ""
    if bound.metric == "latency_ratio" or bound.metric in grammar.TIMES:
        shaky = unstable(report, now)
        unsure = f"; {shaky}" if shaky else ""
    if not exceeds(beyond, 0.0, bound.value, new.value):
        return "PASS", f"within the limit{unsure}"
    side = "below" if bound.kind == "min" else "above"
    reason = f"{number(beyond, new.unit)} {side} the limit"
    if new.low is not None and new.high is not None:
        within = new.low <= bound.value <= new.high
        reason += f", which the interval {'includes' if within else 'excludes'}"
    return "FAIL", reason + unsure


def _refusal(
    metric: str, report: Report, baseline: Report, now: ArtifactResult, before: ArtifactResult
) -> str | None:
    """Why two metrics of the machine or of two references do not compare, or None."""
    if grammar.family(metric) in grammar.OF_THE_REFERENCE:
        here, there = report.compared_with, baseline.compared_with
        if here != there:
            return (
                f"{metric} compares within one reference only: the report compares with {here}, "
                f"the baseline with {there}; drop that bound, or compare with the same --reference"
            )
    if metric not in grammar.OF_THE_MACHINE:
        return None
    ours, theirs = report.environment.machine_class, baseline.environment.machine_class
    if ours != theirs:
        return (
            f"{metric} compares within one machine class only: the report has {ours!r}, the "
            f"baseline {theirs!r}; drop that bound or measure the baseline here"
        )
    if now.runtime.threads != before.runtime.threads:
        return (
            f"{metric} compares with the same number of threads only: {now.name} ran with "
            f"{now.runtime.threads}, in the baseline with {before.runtime.threads}; "
            f"compare with --threads {before.runtime.threads}"
        )
    if metric == "latency_ratio":
        for word, source, result in (("report", report, now), ("baseline", baseline, before)):
            shaky = unstable(source, result)
            if shaky:
                return (
                    f"latency_ratio of {now.name} compares between stable runs only: in the "
                    f"{word} {shaky}; close other programs and measure again"
                )
    return None


def unstable(report: Report, result: ArtifactResult) -> str | None:
    """Why the latency of an artifact, or of the float32 it is divided by, is not to be trusted.

    Returns:
        A clause for people, or None: nothing speaks against it.
    """
    bases = (
        other
        for other in (report.reference, *report.artifacts)
        if other.format == result.format
        and other.precision == "float32"
        and other.name != result.name
        and other.timed_here
    )
    for each in (result, *bases):
        samples = each.steady()
        if samples is not None:
            spread = stats.latency_spread(samples)
            if spread > stats.UNSTABLE:
                return (
                    f"the latency of {each.name} is unstable, round medians spread over "
                    f"{100 * spread:.0f} %"
                )
        if each.unstable:
            return f"the latency of {each.name} is marked unstable"
    return None


def drop(bound: Bound, old: float, new: float) -> float:
    """How much worse a value is than another; negative is better.

    Of a user's own metric the bound says what is worse: to fall of ``max-drop``, to rise of
    ``max-rise``. Any other bound of either kind is on the metrics whose direction it names.
    """
    if old == new:  # also when both are infinite
        return 0.0
    return old - new if bound.kind == "max-drop" else new - old


def _parts_in(start: str, metric: str, result: ArtifactResult) -> str:
    """What a report has in place of a metric of an output, a class or a function."""
    those = [each for each in result.metrics if each.startswith(start)]
    if those:
        few = ", ".join(those[:_FEW]) + (f" and {len(those) - _FEW} more" if those[_FEW:] else "")
        near = words.near(grammar.part(metric)[1], [grammar.part(each)[1] for each in those])
        return f"; it has {few}{near}"
    if grammar.PARTS[start] == "OUTPUT":
        return f"; it has one output, whose metric is {start[:-1]}"
    if grammar.of_user(metric):
        return "; pass its function as compare --metric MODULE:FUNCTION"
    return "; it knows no class: compare with labels"


def exceeds(change: float, bound: float, old: float, new: float) -> bool:
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
    report: Report,
    baseline: Report,
    allowed: float,
) -> tuple[str, bool | None, float | None]:
    """(reason, whether the change is more than chance, McNemar p) of a metric of both."""
    if metric == "top1" and now.correct and before.correct:
        count = report.data.count
        bits = before.correct_bits(count), now.correct_bits(count)
        paired = stats.paired_change(*bits)
        lost, gained = stats.discordant(*bits)
        word = verdicts.accuracy(paired, allowed)
        assert paired.low is not None and paired.high is not None
        reason = (
            f"{word}: {lost} lost, {gained} gained, 95 % interval {paired.low:+.2f} to "
            f"{paired.high:+.2f} points"
        )
        beyond = paired.low > 0 or paired.high < 0
        return reason, beyond, stats.mcnemar_exact(lost, gained)
    of, against = metric, ""
    change = grammar.CHANGES.get(metric)
    if change and report.reference.sha256 == baseline.reference.sha256:
        # Both are of the same float model on the same images: what they lose to it says more than
        # their own intervals, most of whose width is that of the images.
        if change in now.metrics and change in before.metrics:
            of, against = change, " of the changes against the float model"
    new, old = now.metrics[of], before.metrics[of]
    if new.low is None or new.high is None or old.low is None or old.high is None:
        return "no interval, so significance unknown", None, None
    apart = new.low > old.high or new.high < old.low
    said = "apart: significant" if apart else "overlap"
    if not against:
        return f"intervals {said}", apart, None
    ends = f"{new.low:+.2f} to {new.high:+.2f}, before {old.low:+.2f} to {old.high:+.2f} points"
    return f"95 % intervals{against} {said} ({ends})", apart, None
