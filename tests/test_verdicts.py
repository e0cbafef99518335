"""One verdict for each deployable: what decides it, and what is broken."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_gate import artifact, make

from edgekit.evaluation import verdicts
from edgekit.records import fidelity, stats
from edgekit.records.fidelity import Fidelity
from edgekit.records.results import LabelFit, Measurement, Report


def change(low: float, value: float, high: float) -> Measurement:
    return Measurement(value, "points", 100, low, high)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (change(-0.4, -0.1, 0.2), "same"),
        (change(-0.5, -0.2, -0.1), "same"),  # a real loss, but none that matters
        (change(-0.6, -0.1, 0.3), "unclear"),
        (change(-0.9, -0.4, -0.1), "unclear"),  # lost for sure, but perhaps not what matters
        (change(-0.9, -0.7, 0.1), "unclear"),
        (change(-0.9, -0.6, -0.1), "worse"),
        (change(0.1, 0.3, 0.5), "better"),
        (Measurement(-9, "points", 1), "unclear"),
        (None, "unknown"),
    ],
)
def test_accuracy_by_one_interval_and_one_bound(found: Measurement | None, expected: str) -> None:
    assert verdicts.accuracy(found, 0.5) == expected


def test_a_larger_bound_forgives_more() -> None:
    assert verdicts.accuracy(change(-0.9, -0.6, -0.1), 1.0) == "same"


def judged(sqnr: float, dead: bool = False) -> tuple[Fidelity, ...]:
    channel = (fidelity.Channel(1, 0, 1.0),) if dead else ()
    return (Fidelity("y", 100, sqnr, sqnr, dead=channel, dead_count=len(channel)),)


def of(wrong: int, sqnr: float, *, dead: bool = False, **changes: object) -> verdicts.Judged:
    """The verdict on a deployable with so many of 1,000 wrong, beside 50 of the reference."""
    result = dataclasses.replace(artifact("a", wrong), fidelity=judged(sqnr, dead))
    report: Report = make(result, **changes)
    return verdicts.of(report.artifacts[0], report)


@pytest.mark.parametrize(
    ("wrong", "sqnr", "dead", "expected", "broken"),
    [
        (50, 30, False, "same", ""),
        (50, 5, False, "same", ""),  # its scores are far off, its choices are not
        (50, 30, True, "dead", "dead"),
        (90, 30, False, "worse", ""),
        (90, 5, False, "worse", "poor"),
        (90, 30, True, "dead", "dead"),
        (40, 30, False, "better", ""),
        (54, 30, False, "unclear", ""),
        (54, 5, False, "poor", "poor"),
    ],
)
def test_what_decides(wrong: int, sqnr: float, dead: bool, expected: str, broken: str) -> None:
    found = of(wrong, sqnr, dead=dead)
    assert (found.verdict, found.broken) == (expected, broken)


@pytest.mark.parametrize(
    ("sqnr", "level"), [(np.inf, "exact"), (20, "close"), (15, "far"), (9, "poor")]
)
def test_outputs_decide_where_labels_say_nothing(sqnr: float, level: str) -> None:
    fit = LabelFit(10, 10, 0.5, "chance")
    found = of(90, sqnr, fit=fit)
    assert (found.verdict, found.accuracy, found.change) == (level, "unknown", None)
    result = dataclasses.replace(artifact("a", 50), correct="", fidelity=judged(sqnr))
    assert verdicts.of(result, make(result)).verdict == level


def test_few_samples_of_equal_outputs_are_enough() -> None:
    """Of 1,000 images 0.05 points cannot be excluded, but nothing changed at all."""
    asked = {"settings": {"bound": 0.05}}
    assert of(50, 30, **asked).verdict == "unclear"
    assert of(50, 61, **asked).verdict == "close"
    assert of(50, np.inf, **asked).verdict == "exact"
    assert of(51, 61, **asked).verdict == "unclear"


def test_the_bound_is_the_comparisons() -> None:
    assert of(56, 30).verdict == "worse"
    assert of(56, 30, settings={"bound": 2.0}).verdict == "same"
    assert verdicts.bound_of(make()) == verdicts.BOUND


def test_reports_of_before_have_a_level_too() -> None:
    result = dataclasses.replace(artifact("a", 50), correct="", metrics={})
    assert verdicts.of(result, make(result)).verdict == "unknown"
    metrics = {"sqnr": Measurement(15, "dB", 100)}
    result = dataclasses.replace(result, metrics=metrics)
    assert verdicts.of(result, make(result)).verdict == "far"


def test_screen_page_and_gate_say_the_same() -> None:
    """100 reports: what the gate passes as the same, the page and the screen call so."""
    from edgekit.gate import gate
    from edgekit.report import report as page

    for wrong in range(40, 70, 3):
        before, now = make(artifact("a", 50)), make(artifact("a", wrong))
        verdict = verdicts.of(now.artifacts[0], now).verdict
        (check,) = gate(now, baseline=before)
        assert check.reason.startswith(f"{verdict}: ")
        assert f'<li class="{verdict}">' in page(now)
        found = stats.paired_change(
            before.artifacts[0].correct_bits(1000), now.artifacts[0].correct_bits(1000)
        )
        assert verdicts.accuracy(found, verdicts.BOUND) == verdict
