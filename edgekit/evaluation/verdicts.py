"""Verdicts on deployables, the same on the screen, on the page and in the gate. Framework-free.

Two things are judged. *Accuracy* is judged if there are labels: the change of top-1, of R^2, of a
detector's mAP or of the mIoU of a segmentation network, with its 95 % interval from the paired
samples, is compared with the loss that matters (``--bound``, half a point). The verdict is *same*
if the interval excludes such a loss, *worse* if the loss is beyond the bound and beyond chance,
*better* if there is a gain beyond chance, and *unclear* otherwise: more samples would tell.
*Fidelity* is always judged: how near the outputs are to those of the float model
(:mod:`edgekit.records.fidelity`).

A dead channel gives the verdict *dead*, whatever else was measured. Then accuracy gives the
verdict. If it is not known, or too few samples leave it unclear, fidelity gives the verdict: few
samples cannot show that less than half a point was lost, but they can show that outputs are equal
to a thousandth.

A deployable can be less accurate without being broken. A loss of accuracy may be intended; the gate
judges it by its bounds. A file is *broken*, and ``compare`` has exit status 1, if channels are
dead, or if outputs are poor and no labels prove that it does not matter.
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
#: The loss that matters, in points of the accuracy, where nobody says another.
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
CHANGES = {"top1": "top1_change", "r2": "r2_change", "map": "map_change", "miou": "miou_change"}


@dataclass(frozen=True)
class Judged:
    """The verdict on one deployable.

    Attributes:
        accuracy: Verdict on the accuracy; ``unknown`` without labels.
        change: Change of the accuracy, in points, with its interval; None if it is unknown.
        level: Level of the worst output; None if the report does not measure it.
    """

    verdict: Verdict
    accuracy: Accuracy
    change: Measurement | None
    level: Level | None

    @property
    def broken(self) -> Literal["", "dead", "poor"]:
        """The reason why it is no copy of the float model; empty if it is one."""
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
    """Change of the accuracy against the reference, with its interval, if it is known."""
    if report.fit is not None and report.fit.problem:
        return None
    count = report.data.count
    if result.correct and report.reference.correct:
        return stats.paired_change(report.reference.correct_bits(count), result.correct_bits(count))
    measured = (result.metrics.get(name) for name in CHANGES.values() if name != "top1_change")
    return next((change for change in measured if change is not None), None)


def bound_of(report: Report) -> float:
    """The loss that matters, in points, of this comparison."""
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
    """Whether outputs differ from the reference by rounding only, and as many are right."""
    least = min((output.sqnr_centred for output in result.fidelity), default=-math.inf)
    return least >= EQUAL and change is not None and change.value == 0


def level_of(result: ArtifactResult) -> Level | None:
    """Level of the outputs; in older reports by the SQNR of all values."""
    if result.fidelity:
        return fidelity.worst(result.fidelity)
    sqnr = result.metrics.get("sqnr")
    return None if sqnr is None else fidelity.level(sqnr.value, sqnr.value)
