"""What the search for a budget tried, as charts and a table: cost against what the budget bounds.

One search serves all int8 files of a command, so that each search is drawn once, with the
deployables that came of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgekit.base.text import decimals
from edgekit.records.results import (
    ArtifactResult,
    BudgetRecord,
    Candidate,
    Cost,
    Measurement,
    Report,
)
from edgekit.reporting import charts

#: Part of what the candidates span, by which the float32 file is drawn above them at the most: its
#: SQNR is that of float arithmetic, and would leave no room for them.
_ABOVE = 0.25
#: Metric of ``compare``: axis, format.
_METRICS = {
    "top1": ("right predictions (top-1), %", ".2f"),
    "top1_change": ("change of top-1, points", "+.2f"),
    "agreement": ("same predictions as the float model, %", ".2f"),
    "sqnr": ("signal to error (SQNR), dB", ".1f"),
}
#: Cost: axis, unit, format.
_COSTS: dict[Cost, tuple[str, str, str]] = {
    "time": ("time of the fastest run, ms (log scale)", "ms", ".3g"),
    "size": ("size of the file, kB (log scale)", "kB", ",.1f"),
}
_SAID: dict[Cost, str] = {"time": "the shortest run", "size": "the smallest file"}


@dataclass(frozen=True)
class _File:
    """A file that was tried.

    Attributes:
        name: What it is called in the chart; empty of most.
        said: The same in words, for the table and the tooltip.
        shape: As :class:`edgekit.reporting.charts.Mark` has its format.
        holds: Whether the budget is held, with a standard error to spare.
    """

    candidate: Candidate
    name: str
    said: str
    shape: str
    holds: bool

    def cost(self, of: Cost) -> float:
        """In ms or kB."""
        return self.candidate.ms if of == "time" else self.candidate.bytes / 1e3


def drawn(
    source: Report, short: Callable[[ArtifactResult], str], markup: Any
) -> list[dict[str, Any]]:
    """Each search with its charts, its table and what was proved.

    Args:
        source: The report.
        short: The name of a deployable on the page.
        markup: Makes text that is HTML already.
    """
    searches: list[tuple[BudgetRecord, list[tuple[str, Measurement]]]] = []
    for result in source.artifacts:
        record = result.budget
        if record is None:
            continue
        proof = short(result), record.proof
        same = [
            proofs for other, proofs in searches if replace(other, proof=record.proof) == record
        ]
        if same:
            same[0].append(proof)
        else:
            searches.append((record, [proof]))
    return [
        _search(record, proofs, f"mixtures{number}", markup)
        for number, (record, proofs) in enumerate(searches)
    ]


def _search(
    record: BudgetRecord, proofs: Sequence[tuple[str, Measurement]], ident: str, markup: Any
) -> dict[str, Any]:
    files, unit = _files(record), record.proof.unit
    label, form = _METRICS.get(record.metric, (f"{record.metric}, {unit}", ".2f"))
    fronts, plots = {}, []
    order: tuple[Cost, ...] = ("size", "time") if record.minimized == "size" else ("time", "size")
    for cost in order:
        if any(file.cost(cost) <= 0 for file in files):
            continue  # of an earlier version
        marks = _marks(files, record, cost, form)
        fronts[cost] = charts.front(marks)
        title = f"{_title(label)} against {cost} of the mixtures that were tried"
        plots.append(
            markup(
                charts.scatter(
                    _told(marks, fronts[cost]),
                    ident=f"{ident}-{cost}",
                    title=title,
                    description=f"{title}: "
                    + "; ".join(mark.words for mark in marks if mark.name)
                    + f"; the budget is {record.least:{form}} {unit}",
                    x_label=_COSTS[cost][0],
                    y_label=label,
                    level=record.least,
                    level_name="budget",
                )
            )
        )
    return {
        "asked": record.asked,
        "minimized": _SAID[record.minimized],
        "target": record.target,
        "count": len(record.candidates),
        "samples": f"{record.searched:,}",
        "least": f"{record.least:{form}} {unit}",
        "metric": _title(label),
        "unit": unit,
        "floats": record.taken.floats,
        "proofs": [{"name": name, "proof": _proved(proof, form)} for name, proof in proofs],
        "plots": plots,
        "rows": [
            {
                "name": file.said,
                "numbers": [
                    {"text": text, "sort": _sorted(value)} for text, value in _numbers(file, form)
                ],
                "holds": "yes" if file.holds else "no",
                "front": " and ".join(each for each in fronts if i in fronts[each]) or "–",
            }
            for i, file in enumerate(files)
        ],
    }


def _files(record: BudgetRecord) -> list[_File]:
    files = []
    chosen = record.candidates.index(record.taken)
    for number, candidate in enumerate(record.candidates):
        name, said, shape = "", f"file {number + 1}", "tried"
        if number == 0:
            name, said, shape = "plain int8", "plain int8", record.target
        if number == chosen:
            name = "plain int8, chosen" if number == 0 else "chosen"
            said, shape = (name if number == 0 else f"{said}, chosen"), "chosen"
        files.append(_File(candidate, name, said, shape, candidate.sure >= record.least))
    if record.float32 is not None:
        sure = record.float32.sure >= record.least
        files.append(_File(record.float32, "float32", "float32", record.target, sure))
    return files


def _marks(
    files: Sequence[_File], record: BudgetRecord, cost: Cost, form: str
) -> list[charts.Mark]:
    """Points, each with a bar down to what is sure, cut to what can be drawn."""
    unit, (_, cost_unit, cost_form) = record.proof.unit, _COSTS[cost]
    known = [
        value
        for each in record.candidates
        for value in (each.value, each.sure)
        if math.isfinite(value)
    ]
    low, high = min([record.least, *known]), max([record.least, *known])
    high += _ABOVE * (high - low) or 1.0
    marks = []
    for file in files:
        candidate, x = file.candidate, file.cost(cost)
        y, sure = (min(max(v, low), high) for v in (candidate.value, candidate.sure))
        value = _number(candidate.value, form)
        name = file.name
        if candidate.value > high:
            name = f"{file.name}: {value}" + (f" {unit}" if math.isfinite(candidate.value) else "")
        words = (
            f"{file.said}: {value} {unit}, {_number(candidate.sure, form)} {unit} sure, "
            f"{x:{cost_form}} {cost_unit}, tensors in float: {candidate.floats or 'no more'}"
            if file.shape != record.target or file.name != "float32"
            else f"{file.said}: {value} {unit}, {x:{cost_form}} {cost_unit}"
        )
        group = "float32" if file.name == "float32" else "int8" if file.holds else "other"
        marks.append(charts.Mark(name, words, x, y, (x, x), (sure, y), group, file.shape))
    return marks


def _told(marks: Sequence[charts.Mark], front: Sequence[int]) -> list[charts.Mark]:
    return [
        replace(mark, words=f"{mark.words}; no other beats it in both") if i in front else mark
        for i, mark in enumerate(marks)
    ]


def _title(label: str) -> str:
    """An axis without its unit, as the start of a sentence."""
    words = label.rpartition(",")[0]
    return f"{words[0].upper()}{words[1:]}"


def _numbers(file: _File, form: str) -> list[tuple[str, float]]:
    """What the table says of a file, in words and as what it is sorted by."""
    candidate = file.candidate
    all_of_it = file.name == "float32"
    return [
        ("all", math.inf) if all_of_it else (f"{candidate.floats}", candidate.floats),
        (_number(candidate.value, form), candidate.value),
        (_number(candidate.sure, form), candidate.sure),
        (f"{candidate.ms:.3f}", candidate.ms),
        (f"{candidate.bytes:,}" if candidate.bytes else "–", candidate.bytes),
    ]


def _sorted(value: float) -> str:
    """What the page's script sorts by."""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


def _number(value: float, form: str) -> str:
    return decimals(value, form) if math.isfinite(value) else "exact" if value > 0 else "nothing"


def _proved(proof: Measurement, form: str) -> str:
    said = f"{_number(proof.value, form)} {proof.unit}"
    if proof.low is not None and proof.high is not None:
        said += f" (95 % interval {proof.low:{form}} to {proof.high:{form}})"
    return f"{said} on {proof.count:,} samples"
