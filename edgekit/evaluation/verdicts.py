"""Verdicts: what became of a deployable. One place for the screen, the page and the gate.

Two things are judged. *Accuracy*, where labels are known: the change of top-1, or of R^2,
with its 95 % interval from the paired samples, against the loss that matters (``--bound``, half a
point). It is the *same* where the interval excludes such a loss, *worse* where the loss is beyond
the bound and beyond chance, *better* where it is a gain beyond chance, else *unclear*: more samples
would tell. *Fidelity*, always: how near the outputs are to the float model's
(:mod:`edgekit.records.fidelity`).

A dead channel is the verdict before anything else. Then accuracy decides, since it is what counts;
where it is not known, or too few samples leave it unclear, fidelity does: of few samples nobody can
say that half a point was not lost, but outputs that are equal to a thousandth are.

Less accurate and broken are two things. A loss of accuracy is a trade, which the gate judges by its
bounds. A file is *broken*, and ``compare`` ends with exit status 1, where channels are dead, or
where outputs are poor and no labels prove that it does not matter. Framework-free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edgekit.records import fidelity, stats
from edgekit.records.fidelity import Level
from edgekit.records.results import ArtifactResult, Measurement, Report

Accuracy = Literal["better", "same", "worse", "unclear", "unknown"]
Verdict = Literal[
    "dead", "worse", "poor", "unknown", "unclear", "far", "better", "same", "close", "exact"
]
#: The loss that matters, in points of top-1 or R^2, where nobody says another.
BOUND = 0.5
#: SQNR of what varies, in dB, from which on outputs are equal but for rounding: a thousandth.
EQUAL = 60.0
#: What has to be seen first.
URGENCY: tuple[Verdict, ...] = (
    "dead",
    "worse",
    "poor",
    "unknown",
    "unclear",
    "far",
    "better",
    "same",
    "close",
    "exact",
)
#: Verdicts that are red on the screen and the page.
BAD: tuple[Verdict, ...] = ("dead", "worse", "poor")
#: Accuracy, and its change against the float model.
CHANGES = {"top1": "top1_change", "r2": "r2_change"}


@dataclass(frozen=True)
class Judged:
    """What became of one deployable.

    Attributes:
        accuracy: By labels; ``unknown`` without them.
        change: Of accuracy, in points, with its interval; None where it is unknown.
        level: Of the outputs, the worst; None in a report that has no measure of it.
    """

    verdict: Verdict
    accuracy: Accuracy
    change: Measurement | None
    level: Level | None

    @property
    def broken(self) -> Literal["", "dead", "poor"]:
        """Why it is no copy of the float model; empty where it is one."""
        if self.level == "dead":
            return "dead"
        proved = self.accuracy in ("same", "better")
        return "poor" if self.level == "poor" and not proved else ""


def accuracy(change: Measurement | None, bound: float) -> Accuracy:
    """A verdict on a change of accuracy.

    Args:
        change: In points, with its interval.
        bound: Loss that matters, in points.
    """
    if change is None:
        return "unknown"
    if change.low is None or change.high is None:
        return "unclear"
    if change.low > 0:
        return "better"
    if change.low >= -bound:
        return "same"
    return "worse" if change.high < 0 and change.value < -bound else "unclear"


def change_of(result: ArtifactResult, report: Report) -> Measurement | None:
    """The change of accuracy against the reference, with its interval, where one is known."""
    if report.fit is not None and report.fit.problem:
        return None
    count = report.data.count
    if result.correct and report.reference.correct:
        return stats.paired_change(report.reference.correct_bits(count), result.correct_bits(count))
    return result.metrics.get("r2_change")


def bound_of(report: Report) -> float:
    """The loss that matters, in points, as the comparison was asked."""
    bound = report.settings.get("bound")
    return float(bound) if isinstance(bound, int | float) else BOUND


def of(result: ArtifactResult, report: Report) -> Judged:
    """Judge one deployable of a report."""
    change = change_of(result, report)
    known = accuracy(change, bound_of(report))
    level = level_of(result)
    verdict: Verdict
    if level == "dead":
        verdict = "dead"
    elif known not in ("unclear", "unknown") or level is None:
        verdict = known
    elif known == "unclear" and level != "poor" and not _equal(result, change):
        verdict = "unclear"
    else:
        verdict = level
    return Judged(verdict, known, change, level)


def _equal(result: ArtifactResult, change: Measurement | None) -> bool:
    """Whether outputs are the reference's but for rounding, and as many of them are right."""
    least = min((output.sqnr_centred for output in result.fidelity), default=-math.inf)
    return least >= EQUAL and change is not None and change.value == 0


def level_of(result: ArtifactResult) -> Level | None:
    """How near the outputs are; of older reports by the SQNR of the whole."""
    if result.fidelity:
        return fidelity.worst(result.fidelity)
    sqnr = result.metrics.get("sqnr")
    return None if sqnr is None else fidelity.level(sqnr.value, sqnr.value)
