from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Done
from scipy.stats import binomtest

from edgekit.errors import InvalidOptionError, ReportError
from edgekit.gate import gate
from edgekit.results import (
    ArtifactResult,
    Data,
    Environment,
    Measurement,
    Report,
    Runtime,
    pack_bits,
)
from edgekit.stats import mcnemar_exact

COUNT = 1000


def artifact(name: str, wrong: int, **metrics: Measurement) -> ArtifactResult:
    """A result in which the first ``wrong`` images are wrong."""
    right = np.arange(COUNT) >= wrong
    top1 = 100 * float(right.mean())
    return ArtifactResult(
        name=name,
        path=name,
        format="onnx",
        precision="int8",
        sha256="00",
        runtime=Runtime("ort", "CPUExecutionProvider", 1),
        metrics={"top1": Measurement(top1, "%", COUNT, top1 - 1, top1 + 1, "wilson"), **metrics},
        correct=pack_bits(right),
    )


def make(*artifacts: ArtifactResult, **changes: Any) -> Report:
    report = Report(
        model_id="m",
        data=Data("d", "da7a", COUNT),
        environment=Environment("cpu", ("avx2",), 2, 1, "Linux", {}, "cpu [avx2]"),
        reference=artifact("m", 50),
        artifacts=artifacts,
        created="2026-01-01T00:00:00+00:00",
        command="python -m edgekit.compare",
    )
    return dataclasses.replace(report, **changes)


def verdicts(now: Report, before: Report, **bounds: float) -> list[str]:
    return [c.verdict for c in gate(now, baseline=before, max_drop=bounds or None)]


def test_the_same_report_passes() -> None:
    report = make(artifact("a", 60))
    assert verdicts(report, report) == ["PASS"]


def test_a_drop_beyond_the_bound_fails_and_says_its_significance() -> None:
    before = make(artifact("a", 60))
    (check,) = gate(make(artifact("a", 66)), baseline=before)
    assert check.verdict == "FAIL"
    assert "6 lost, 0 gained, p = 0.0312: significant" in check.reason
    (check,) = gate(make(artifact("a", 64)), baseline=before, max_drop={"top1": 0.3})
    assert check.verdict == "FAIL"
    assert "not significant" in check.reason
    assert verdicts(make(artifact("a", 65)), before) == ["PASS"]


def test_a_drop_of_exactly_the_bound_passes() -> None:
    """Differences of shares are not exact: of 1,000 images, 5 may come out above 0.5 points."""
    inexact = [w for w in range(500) if (1000 - w) / 10 - (995 - w) / 10 > 0.5]
    assert inexact
    for wrong in inexact[:20]:
        before = make(artifact("a", wrong))
        assert verdicts(make(artifact("a", wrong + 5)), before) == ["PASS"]
        assert verdicts(make(artifact("a", wrong + 6)), before) == ["FAIL"]


def test_no_slack_for_small_figures() -> None:
    """Rounding is of the size of the figures: KL of 1e-13 against 2e-13 is a real change."""
    small, large = (make(artifact("a", 60, kl=Measurement(k, "nats", 1))) for k in (1e-13, 2e-13))
    assert verdicts(large, small, kl=0) == ["FAIL"]
    assert verdicts(small, large, kl=0) == ["STALE"]


def test_an_improvement_is_a_stale_baseline() -> None:
    (check,) = gate(make(artifact("a", 40)), baseline=make(artifact("a", 60)))
    assert check.verdict == "STALE"
    assert "--update" in check.reason
    # Within the bound, but six images better and none worse is more than chance.
    (check,) = gate(make(artifact("a", 54)), baseline=make(artifact("a", 60)), max_drop={"top1": 9})
    assert (check.verdict, check.significant, check.p) == ("STALE", True, 0.03125)
    assert verdicts(make(artifact("a", 58)), make(artifact("a", 60))) == ["PASS"]


def test_significance_by_intervals_where_there_is_no_record() -> None:
    def without(wrong: int) -> Report:
        return make(dataclasses.replace(artifact("a", wrong), correct=""))

    (check,) = gate(without(100), baseline=without(60))
    assert (check.verdict, check.significant, check.p) == ("FAIL", True, None)
    (check,) = gate(without(70), baseline=without(60))
    assert (check.verdict, check.significant, check.reason) == ("FAIL", False, "intervals overlap")


def test_what_is_missing_fails_and_what_is_new_is_named() -> None:
    before = make(artifact("a", 60))
    assert verdicts(make(artifact("b", 60)), before) == ["FAIL", "NEW"]
    assert verdicts(make(artifact("a", 60)), before, sqnr=1) == ["FAIL"]


def test_lower_is_better_for_size() -> None:
    small, large = (
        make(artifact("a", 60, size=Measurement(size, "bytes", 1))) for size in (1e6, 2e6)
    )
    assert verdicts(large, small, size=1000) == ["FAIL"]
    assert verdicts(small, large, size=1000) == ["STALE"]


def test_infinite_sqnr_equals_itself_and_losing_it_is_a_drop() -> None:
    report, finite = (
        make(artifact("a", 60, sqnr=Measurement(value, "dB", COUNT))) for value in (math.inf, 40)
    )
    assert verdicts(report, report, sqnr=1) == ["PASS"]
    assert verdicts(finite, report, sqnr=1) == ["FAIL"]
    assert verdicts(report, finite, sqnr=1) == ["STALE"]


def test_a_baseline_without_artifacts_passes_nothing() -> None:
    with pytest.raises(ReportError, match="no artifacts"):
        gate(make(artifact("a", 60)), baseline=make())


def test_a_record_that_does_not_fit_the_data_is_refused() -> None:
    short = dataclasses.replace(artifact("a", 60), correct=pack_bits(np.ones(8, bool)))
    with pytest.raises(ReportError, match="1000 bits"):
        gate(make(short), baseline=make(artifact("a", 60)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_id": "other"}, "model 'other'"),
        ({"data": Data("d2", "0dd", COUNT)}, "use the same data"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        gate(make(artifact("a", 60), **changes), baseline=make(artifact("a", 60)))


def test_latency_is_refused_on_another_machine() -> None:
    report = make(artifact("a", 60, latency_p50=Measurement(1, "ms", 1)))
    other = dataclasses.replace(report.environment, machine_class="other [avx]")
    with pytest.raises(ReportError, match="machine class"):
        verdicts(dataclasses.replace(report, environment=other), report, latency_p50=1)
    assert verdicts(dataclasses.replace(report, environment=other), report) == ["PASS"]
    assert verdicts(report, report, latency_p50=1) == ["PASS"]


def test_latency_is_refused_with_other_threads() -> None:
    one = artifact("a", 60, latency_p50=Measurement(1, "ms", 1))
    four = dataclasses.replace(one, runtime=dataclasses.replace(one.runtime, threads=4))
    with pytest.raises(ReportError, match="--threads 1"):
        verdicts(make(four), make(one), latency_p50=1)
    assert verdicts(make(four), make(one)) == ["PASS"]


def test_units_have_to_be_the_same() -> None:
    kib, size = (make(artifact("a", 60, size=Measurement(9, unit, 1))) for unit in ("KiB", "bytes"))
    with pytest.raises(ReportError, match="'KiB'"):
        verdicts(kib, size, size=1)


@pytest.mark.parametrize("bounds", [{"speed": 1.0}, {"top1": -1.0}, {"top1": float("nan")}])
def test_bad_bounds_are_refused(bounds: dict[str, float]) -> None:
    report = make(artifact("a", 60))
    with pytest.raises(InvalidOptionError):
        gate(report, baseline=report, max_drop=bounds)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 9), (40, 40), (700, 650)])
def test_the_exact_test_is_scipys(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(expected)


def write(path: Path, report: Report) -> Path:
    path.write_text(report.dumps())
    return path


def test_the_command(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    good, bad = make(artifact("a", 60)), make(artifact("a", 80))
    report, baseline = write(tmp_path / "now.json", good), tmp_path / "base.json"
    assert "not found" in edgekit("gate", report, "--baseline", baseline).error
    assert edgekit("gate", report, "--baseline", baseline, "--update").status == 0
    assert Report.load(baseline) == good
    passed = edgekit("gate", report, "--baseline", baseline, "--max-drop", "top1=0.5")
    assert (passed.status, passed.document["passed"]) == (0, True)
    failed = edgekit("gate", write(tmp_path / "bad.json", bad), "--baseline", baseline)
    assert (failed.status, failed.document["passed"]) == (1, False)
    assert "FAIL" in failed.stderr
    assert edgekit("gate", report, "--baseline", baseline, "--max-drop", "top1").status == 2
    twice = ("--max-drop", "top1=0.5", "--max-drop", "top1=50")
    assert "twice" in edgekit("gate", report, "--baseline", baseline, *twice).error


def test_update_says_what_it_changes(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    baseline = write(tmp_path / "base.json", make(artifact("a", 60), artifact("old", 60)))
    report = make(artifact("a", 80), artifact("new", 60))
    now = write(tmp_path / "now.json", report)
    done = edgekit("gate", now, "--baseline", baseline, "--update")
    assert done.status == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "1 artifacts measured anew, added new, removed old; it accepts 2 failed checks" in said
    assert Report.load(baseline) == report
    empty = write(tmp_path / "empty.json", make())
    refused = edgekit("gate", empty, "--baseline", tmp_path / "x.json", "--update")
    assert "no artifacts" in refused.error
    assert not (tmp_path / "x.json").exists()
    other = write(tmp_path / "other.json", make(artifact("a", 60), model_id="other"))
    assert "model 'other'" in edgekit("gate", other, "--baseline", baseline, "--update").error
    assert Report.load(baseline) == report


@pytest.mark.parametrize("columns", ["60", "90", "200"])
def test_hostile_names_and_narrow_terminals(
    columns: str, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    report = write(tmp_path / "r.json", make(artifact("[/bold][red]x", 60), model_id="[/]m"))
    done = edgekit("gate", report, "--baseline", report, COLUMNS=columns)
    assert done.status == 0, done.stderr
    assert "PASS" in done.stderr
    assert "[red]x" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "schema_version"),
        ('{"schema_version": 99}', "schema_version 99"),
        ('{"schema_version": 2}', "missing key"),
        ("NaN", "finite number"),
    ],
)
def test_broken_reports_are_refused(
    text: str, message: str, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    good = write(tmp_path / "good.json", make(artifact("a", 60)))
    broken = tmp_path / "broken.json"
    broken.write_text(text)
    for arguments in ((broken, "--baseline", good), (good, "--baseline", broken)):
        done = edgekit("gate", *arguments)
        assert done.status == 2
        assert message in done.error


def test_nan_is_refused(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    report = json.loads(make(artifact("a", 60)).dumps())
    report["artifacts"][0]["metrics"]["top1"]["value"] = float("nan")
    broken = tmp_path / "nan.json"
    broken.write_text(json.dumps(report))
    good = write(tmp_path / "good.json", make(artifact("a", 60)))
    done = edgekit("gate", broken, "--baseline", good)
    assert done.status == 2
    assert "finite" in done.error
