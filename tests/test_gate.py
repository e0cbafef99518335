from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import Done
from scipy.stats import binomtest

from edgekit.base.errors import InvalidOptionError, ReportError
from edgekit.base.text import visible
from edgekit.gate import gate
from edgekit.gating import review
from edgekit.gating.bounds import Bound, once, parse
from edgekit.records import fidelity
from edgekit.records.results import (
    ArtifactResult,
    Data,
    Environment,
    LabelFit,
    Measurement,
    Report,
    Runtime,
    pack_bits,
)
from edgekit.records.stats import mcnemar_exact

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


def test_energy_and_the_change_of_top1_can_be_bounded() -> None:
    def of(millijoules: float, change: float, machine: str = "cpu") -> Report:
        metrics = {
            "energy": Measurement(millijoules, "mJ", 100),
            "top1_change": Measurement(change, "points", COUNT),
        }
        where = Environment("cpu", (), 2, 1, "Linux", {}, machine)
        return make(artifact("a", 60, **metrics), environment=where)

    before = of(2.0, -0.1)
    assert verdicts(of(2.3, -0.1), before, energy=0.5) == ["PASS"]
    assert verdicts(of(2.6, -0.1), before, energy=0.5) == ["FAIL"]
    assert verdicts(of(2.0, -0.4), before, top1_change=0.2) == ["FAIL"]
    with pytest.raises(ReportError, match="one machine class"):
        verdicts(of(2.0, -0.1, "other"), before, energy=0.5)


def test_a_drop_beyond_the_bound_fails_and_says_its_significance() -> None:
    before = make(artifact("a", 60))
    (check,) = gate(make(artifact("a", 66)), baseline=before)
    assert check.verdict == "FAIL"
    assert check.reason == "worse: 6 lost, 0 gained, 95 % interval -1.11 to -0.08 points"
    assert (check.significant, check.p) == (True, 0.03125)
    (check,) = gate(make(artifact("a", 64)), baseline=before, max_drop={"top1": 0.3})
    assert check.verdict == "FAIL"
    assert check.reason.startswith("unclear: 4 lost") and check.significant is False
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
    assert check.reason.startswith("better: 0 lost, 6 gained")
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


def timed(ratio: float = 1.0, *, threads: int = 1, rounds: Sequence[float] = (1, 1, 1)) -> Report:
    """A report with a latency ratio; ``rounds`` are the medians of the artifact's rounds."""
    base = dataclasses.replace(
        artifact("a", 60, latency_ratio=Measurement(ratio, "x", 6, ratio - 0.01, ratio + 0.01)),
        latency_ms=tuple(ms for ms in rounds for _ in range(2)),
        latency_rounds=len(rounds),
    )
    return make(
        dataclasses.replace(base, runtime=dataclasses.replace(base.runtime, threads=threads))
    )


def test_latency_ratio_is_judged_on_one_machine() -> None:
    assert verdicts(timed(0.65), timed(0.6), latency_ratio=0.1) == ["PASS"]
    assert verdicts(timed(0.75), timed(0.6), latency_ratio=0.1) == ["FAIL"]
    assert verdicts(timed(0.4), timed(0.6), latency_ratio=0.1) == ["STALE"]


def elsewhere(report: Report) -> Report:
    other = dataclasses.replace(report.environment, machine_class="other [avx]")
    return dataclasses.replace(report, environment=other)


def float32(rounds: Sequence[float]) -> ArtifactResult:
    steady = timed(rounds=rounds).artifacts[0]
    return dataclasses.replace(steady, name="a-float32", precision="float32")


SHAKY = timed(rounds=(1, 1.3, 1))
MARKED = make(dataclasses.replace(timed().artifacts[0], unstable=True))
SHAKY_BASE = make(*timed().artifacts, float32((1, 1.5, 1)))


@pytest.mark.parametrize(
    ("now", "before", "message"),
    [
        (elsewhere(timed()), timed(), "one machine class only: the report has 'other"),
        (timed(), elsewhere(timed()), "the baseline 'other"),
        (timed(threads=4), timed(), "--threads 1"),
        (SHAKY, timed(), "in the report the latency of a is unstable.* 30 %"),
        (timed(), SHAKY, "in the baseline the latency of a is unstable"),
        (MARKED, timed(), "in the report the latency of a is marked unstable"),
        (SHAKY_BASE, SHAKY_BASE, "in the report the latency of a-float32 is unstable"),
        (timed(rounds=(0, 0, 0)), timed(), "unstable"),
    ],
)
def test_a_latency_that_does_not_compare_is_refused(
    now: Report, before: Report, message: str
) -> None:
    with pytest.raises(ReportError, match=message):
        verdicts(now, before, latency_ratio=1)
    assert verdicts(now, before) == ["PASS"] * len(before.artifacts)
    limits = [parse("max", "latency_ratio=1.5")]
    checks = gate(make(now.artifacts[0]), baseline=make(before.artifacts[0]), bounds=limits)
    assert [check.verdict for check in checks] == ["PASS", "PASS"]
    shaky = now is SHAKY or now is MARKED or "0, 0" in str(now.artifacts)
    assert ("unstable" in checks[1].reason) == shaky


def test_a_ratio_that_was_not_measured_says_how_to() -> None:
    report = make(artifact("a", 60))
    (check,) = gate(report, bounds=[parse("max", "latency_ratio=1")])
    assert check.verdict == "FAIL"
    assert "compare it with its float32 artifact" in check.reason


def test_times_of_two_runs_do_not_compare() -> None:
    report = make(artifact("a", 60, latency_p50=Measurement(1, "ms", 1)))
    with pytest.raises(InvalidOptionError, match="bound latency_ratio"):
        verdicts(report, report, latency_p50=1)
    (check,) = gate(report, bounds=[parse("max", "latency_p50=0.9")])
    assert (check.verdict, check.reason) == ("FAIL", "0.1 above the limit")


def test_limits_need_no_baseline() -> None:
    report = make(artifact("a", 60), artifact("b", 80))
    checks = gate(report, bounds=[parse("min", "top1=93")])
    assert [(c.artifact, c.verdict) for c in checks] == [("a", "PASS"), ("b", "FAIL")]
    assert checks[1].reason == "1 below the limit, which the interval includes"
    with pytest.raises(InvalidOptionError, match="nothing to judge by"):
        gate(report)
    with pytest.raises(InvalidOptionError, match="needs a baseline"):
        gate(report, max_drop={"top1": 1})
    with pytest.raises(ReportError, match="no artifacts"):
        gate(make(), bounds=[parse("min", "top1=93")])


@pytest.mark.parametrize(("wrong", "limit"), [(w, 100 - w / 10) for w in range(0, 300, 7)])
def test_a_value_of_exactly_the_limit_passes(wrong: int, limit: float) -> None:
    (check,) = gate(make(artifact("a", wrong)), bounds=[Bound("min", "top1", limit)])
    assert check.verdict == "PASS"
    above = Bound("min", "top1", limit + 0.1)
    assert gate(make(artifact("a", wrong)), bounds=[above])[0].verdict == "FAIL"


def sized(size: float) -> Report:
    return make(artifact("a", 60, size=Measurement(size, "bytes", 1)))


def test_relative_bounds_are_of_the_baseline() -> None:
    (check,) = gate(sized(101_000), baseline=sized(100_000), max_drop={"size": "1 %"})
    assert (check.verdict, check.bound, check.rule) == ("PASS", 1000, "max-rise 1 % (1,000 bytes)")
    (check,) = gate(sized(101_001), baseline=sized(100_000), max_drop={"size": "1%"})
    assert check.verdict == "FAIL"
    (check,) = gate(
        make(artifact("a", 69)), baseline=make(artifact("a", 60)), max_drop={"top1": "1 %"}
    )
    assert (check.verdict, check.rule) == ("PASS", "max-drop 1 % (0.94 points)")
    new = make(artifact("a", 60), artifact("n", 60))
    checks = gate(new, baseline=make(artifact("a", 60)), max_drop={"top1": "1 %"})
    assert [(c.verdict, c.rule) for c in checks] == [
        ("PASS", "max-drop 1 % (0.94 points)"),
        ("NEW", "max-drop 1 %"),
    ]


def test_no_part_of_an_infinite_value_may_be_lost() -> None:
    exact, finite = (
        make(artifact("a", 60, sqnr=Measurement(value, "dB", COUNT))) for value in (math.inf, 40)
    )
    assert [c.verdict for c in gate(exact, baseline=exact, max_drop={"sqnr": "9 %"})] == ["PASS"]
    assert [c.verdict for c in gate(finite, baseline=exact, max_drop={"sqnr": "9 %"})] == ["FAIL"]


def test_accuracy_is_judged_unless_a_bound_says_otherwise() -> None:
    before = make(artifact("a", 60), artifact("b", 60))
    now = make(artifact("a", 70), artifact("b", 70))

    def asked(*bounds: Bound) -> list[tuple[str, str, str]]:
        checks = gate(now, baseline=before, bounds=bounds)
        return [(c.artifact, c.rule, c.verdict) for c in checks]

    default = "max-drop 0.5 points"
    assert asked() == [("a", default, "FAIL"), ("b", default, "FAIL")]
    assert asked(parse("max-drop", "b:top1=2")) == [
        ("a", default, "FAIL"),
        ("b", "max-drop 2 points", "PASS"),
    ]
    assert asked(parse("min", "agreement=1"))[0] == ("a", default, "FAIL")
    assert [rule for _, rule, _ in asked(parse("min", "top1=90"))] == ["min 90 %"] * 2


def test_bounds_of_one_artifact() -> None:
    before = make(artifact("m-a", 60), artifact("m-b", 60))
    now = make(artifact("m-a", 70), artifact("m-b", 70))
    bounds = once([parse("max-drop", "m-a:top1=2"), parse("max-drop", "top1=0.1")])
    checks = gate(now, baseline=before, bounds=bounds)
    assert [c.bound for c in checks] == [2, 0.1]
    short = gate(now, baseline=before, bounds=[parse("max-drop", "b:top1=2")])
    assert [c.bound for c in short] == [0.5, 2]
    with pytest.raises(InvalidOptionError, match="unknown artifact 'c'.*expected one of m-a, m-b"):
        gate(now, baseline=before, bounds=[parse("max-drop", "c:top1=2")])


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
    missing = edgekit("gate", report, "--baseline", baseline).error
    assert "not found; expected an accepted report" in missing and "--update" in missing
    assert edgekit("gate", report, "--baseline", baseline, "--update").status == 0
    assert dataclasses.replace(Report.load(baseline), origin=None) == good
    passed = edgekit("gate", report, "--baseline", baseline, "--max-drop", "top1=0.5")
    assert (passed.status, passed.document["passed"]) == (0, True)
    failed = edgekit("gate", write(tmp_path / "bad.json", bad), "--baseline", baseline)
    assert (failed.status, failed.document["passed"]) == (1, False)
    assert "FAIL" in failed.stderr
    assert edgekit("gate", report, "--baseline", baseline, "--max-drop", "top1").status == 2
    twice = ("--max-drop", "top1=0.5", "--max-drop", "top1=50")
    assert "twice" in edgekit("gate", report, "--baseline", baseline, *twice).error


def test_update_says_what_it_changes(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    before = make(artifact("a", 60), artifact("old", 60))
    baseline = write(tmp_path / "base.json", before)
    report = make(artifact("a", 80), artifact("new", 60))
    now = write(tmp_path / "now.json", report)
    refused = edgekit("gate", now, "--baseline", baseline, "--update")
    assert refused.status == 1, refused.stderr
    assert (refused.document["passed"], refused.document["updated"]) == (False, None)
    assert "2 of 3 changes are outside of their bounds" in refused.stderr
    assert "outside max-drop 0.5 points (default): worse: 20" in " ".join(refused.stderr.split())
    assert Report.load(baseline) == before
    reason = "old \x1b[31mis no longer shipped"
    done = edgekit("gate", now, "--baseline", baseline, "--update", "--accept", reason)
    assert done.status == 0, done.stderr
    assert r"accepted: old \x1b[31mis no longer shipped" in done.stderr
    kept = Report.load(baseline)
    assert kept.artifacts == report.artifacts
    (accepted,) = kept.settings["accepted"]
    assert accepted == r"old \x1b[31mis no longer shipped (a top1 94.00 -> 92.00; old removed)"
    # The next update keeps the reason, and a reason that nothing needs is not kept.
    within = write(tmp_path / "within.json", make(artifact("a", 82), artifact("new", 60)))
    done = edgekit("gate", within, "--baseline", baseline, "--update", "--accept", "none")
    assert done.status == 0, done.stderr
    assert "inside max-drop 0.5 points (default)" in done.stderr
    assert done.document["accepted"] is None
    assert Report.load(baseline).settings["accepted"] == [accepted]


def test_update_of_what_is_not_bounded_and_of_what_is_better(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    small, large = (
        artifact("a", wrong, size=Measurement(size, "bytes", 1))
        for wrong, size in ((50, 1000), (60, 2000))
    )
    baseline = write(tmp_path / "base.json", make(small))
    done = edgekit("gate", write(tmp_path / "l.json", make(large)), "--baseline", baseline)
    assert done.status == 1
    better = write(tmp_path / "base.json", make(large))
    now = write(tmp_path / "now.json", make(small))
    done = edgekit("gate", now, "--baseline", better, "--update")
    assert done.status == 0, done.stderr
    changes = {c["metric"]: (c["before"], c["after"], c["why"]) for c in done.document["changes"]}
    assert changes == {
        "top1": (94, 95, "better; inside max-drop 0.5 points (default)"),
        "size": (2000, 1000, "no bound on it"),
    }
    assert dataclasses.replace(Report.load(better), origin=None) == make(small)


def test_update_on_another_machine_takes_a_reason(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    baseline = write(tmp_path / "base.json", timed(0.6))
    now = write(tmp_path / "now.json", elsewhere(timed(0.7)))
    words = (now, "--baseline", baseline, "--max-rise", "latency_ratio=0.2")
    assert "machine class" in edgekit("gate", *words).error
    assert edgekit("gate", *words, "--update").status == 1
    assert edgekit("gate", *words, "--update", "--accept", "new runners").status == 0
    assert "new runners (a latency_ratio" in Report.load(baseline).settings["accepted"][0]
    assert edgekit("gate", *words).status == 0


def test_updates_that_are_refused(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    before = make(artifact("a", 60))
    baseline = write(tmp_path / "base.json", before)
    now = write(tmp_path / "now.json", make(artifact("a", 62)))
    empty = write(tmp_path / "empty.json", make())
    for path in (tmp_path / "x.json", baseline):
        words = ("--baseline", path, "--update", "--accept", "why")
        assert "no artifacts" in edgekit("gate", empty, *words).error
    other = write(tmp_path / "other.json", make(artifact("a", 60), model_id="other"))
    assert "model 'other'" in edgekit("gate", other, "--baseline", baseline, "--update").error
    assert "pass both" in edgekit("gate", now, "--baseline", baseline, "--accept", "why").error
    assert "--baseline FILE" in edgekit("gate", now, "--update").error
    blank = edgekit("gate", now, "--baseline", baseline, "--update", "--accept", " \n")
    assert "a reason that a reviewer can read" in blank.error
    files = ("--junit", tmp_path / "x.xml")
    assert "--junit" in edgekit("gate", now, "--baseline", baseline, "--update", *files).error
    low = edgekit("gate", now, "--baseline", tmp_path / "x.json", "--update", "--min", "top1=99")
    assert low.status == 1
    assert not (tmp_path / "x.json").exists()
    assert Report.load(baseline) == before


def test_bounds_of_pyproject_and_of_the_command_line(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    (tmp_path / "build").mkdir()
    write(tmp_path / "build" / "now.json", make(artifact("a", 66), artifact("b", 66)))
    write(tmp_path / "base.json", make(artifact("a", 60), artifact("b", 60)))
    config = tmp_path / "gate.toml"
    config.write_text(
        "[tool.edgekit.gate]\nreport = 'build/now.json'\nbaseline = 'base.json'\n"
        "max-drop.top1 = 0.5\nmin.top1 = 93\n"
        "[tool.edgekit.gate.artifact.b]\nmax-drop.top1 = '2 %'\n"
    )
    done = edgekit("gate", "--config", config)
    found = [(c["artifact"], c["kind"], c["verdict"]) for c in done.document["checks"]]
    assert done.status == 1, done.stderr
    assert found == [
        ("a", "min", "PASS"),
        ("a", "max-drop", "FAIL"),
        ("b", "min", "PASS"),
        ("b", "max-drop", "PASS"),
    ]
    assert done.document["config"] == str(config)
    text = f"bounds from {config}: min top1=93, max-drop top1=0.5, max-drop b:top1=2 %"
    assert text in done.stderr
    assert f"baseline from {config}: {tmp_path / 'base.json'}" in done.stderr
    wins = edgekit("gate", "--config", config, "--max-drop", "top1=0.7", "--min", "a:top1=95")
    found = [(c["artifact"], c["bound"], c["source"]) for c in wins.document["checks"]]
    assert found == [
        ("a", 95, "command line"),
        ("a", 0.7, "command line"),
        ("b", 93, str(config)),
        ("b", 0.7, "command line"),
    ]
    assert "bounds from command line: max-drop top1=0.7, min a:top1=95" in wins.stderr
    unknown = edgekit("gate", "--config", config, "--max-drop", "c:top1=0.7")
    assert "unknown artifact 'c'" in unknown.error
    assert "expected one of a, b" in unknown.error
    config.write_text("[tool.edgekit.gate]\nmax-drop.speed = 1\n")
    assert "unknown metric 'speed'" in edgekit("gate", "--config", config).error
    config.write_text("[tool.other]\n")
    assert "no table [tool.edgekit.gate]" in edgekit("gate", "--config", config).error


def test_the_table_is_found_from_the_folder_upward(tmp_path: Path) -> None:
    write(tmp_path / "now.json", make(artifact("a", 60)))
    (tmp_path / "pyproject.toml").write_text(
        "[tool.edgekit.gate]\nreport = 'now.json'\nmin.top1 = 94\n"
    )
    below = tmp_path / "one" / "two"
    below.mkdir(parents=True)
    (below / "pyproject.toml").write_text("[tool.other]\n")
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.gate"], cwd=below, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "bounds from ../../pyproject.toml: min top1=94" in done.stderr


def test_usage(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    now = write(tmp_path / "now.json", make(artifact("a", 60)))
    assert "no report to judge" in edgekit("gate").error
    assert "nothing to judge by" in edgekit("gate", now).error
    assert "needs a baseline" in edgekit("gate", now, "--max-drop", "top1=1").error
    assert "use max-drop instead" in edgekit("gate", now, "--max-rise", "top1=1").error
    assert "got '1 x'" in edgekit("gate", now, "--min", "top1=1 x").error


def test_files_for_ci(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    now = write(tmp_path / "now.json", make(artifact("a", 80)))
    baseline = write(tmp_path / "base.json", make(artifact("a", 60)))
    xml, text = tmp_path / "new" / "gate.xml", tmp_path / "gate.md"
    words = (now, "--baseline", baseline, "--junit", xml, "--markdown", text)
    done = edgekit("gate", *words)
    assert done.status == 1, done.stderr
    assert xml.read_text().startswith("<?xml")
    assert "a" in text.read_text()
    assert "exists already" in edgekit("gate", *words).error
    assert edgekit("gate", *words, "--force").status == 1
    held = now.read_bytes()
    for other in (now, baseline, text):
        words = (now, "--baseline", baseline, "--markdown", text, "--junit", other, "--force")
        assert "another file of this command" in edgekit("gate", *words).error
    assert now.read_bytes() == held


def test_github_reads_annotations_and_a_summary(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    now = write(tmp_path / "now.json", make(artifact("a", 80)))
    baseline = write(tmp_path / "base.json", make(artifact("a", 60)))
    summary = tmp_path / "summary.md"
    summary.write_text("earlier step\n")
    words = (now, "--baseline", baseline)
    done = edgekit("gate", *words, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary))
    assert done.status == 1
    first, second, last = done.stdout.splitlines()
    assert first.startswith("::error title=edgekit gate%3A top1 FAIL::a: top1 92.00 (was 94.00)")
    assert second == "::notice title=edgekit gate::m: 1 checks, 1 failed"
    assert json.loads(last)["passed"] is False
    assert summary.read_text().startswith("earlier step\n<!-- edgekit gate -->\n### ")
    assert edgekit("gate", *words, "--github").stdout.startswith("::error")
    assert len(edgekit("gate", *words).stdout.splitlines()) == 1
    lost = edgekit("gate", *words, GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "folder"))
    assert lost.status == 1
    assert "no summary was written" in lost.stderr


@pytest.mark.parametrize("columns", ["60", "90", "200"])
def test_hostile_names_and_narrow_terminals(
    columns: str, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    report = write(tmp_path / "r.json", make(artifact("[/bold][red]x", 60), model_id="[/]m"))
    done = edgekit("gate", report, "--baseline", report, COLUMNS=columns)
    assert done.status == 0, done.stderr
    assert "PASS" in done.stderr
    assert "[red]x" in done.stderr


def test_hostile_names_in_all_that_ci_reads(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    name = "x\n::stop-commands::y\r<b>|@all\x1b[2J ]]>\u202e%0A"
    report = write(tmp_path / "r.json", make(artifact(name, 80), model_id="::warning::m"))
    xml, text = tmp_path / "gate.xml", tmp_path / "gate.md"
    files = ("--junit", xml, "--markdown", text, "--github", "--min", "top1=93")
    done = edgekit("gate", report, *files, COLUMNS="60")
    assert done.status == 1, done.stderr
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    commands = [line for line in lines if line.lstrip().startswith("::")]
    assert [line.partition(" ")[0] for line in commands] == ["::error", "::notice"]
    assert "<b>" not in text.read_text()
    assert "@all" not in text.read_text()
    case = next(ElementTree.parse(xml).iter("testcase"))
    assert case.get("classname") == visible(name)
    for each in (done.stdout, done.stderr, text.read_text(), xml.read_text()):
        assert not set(each) & {"\x1b", "\r"}
    assert "\u202e" not in text.read_text() + xml.read_text() + done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "schema_version"),
        ('{"schema_version": 99}', "schema_version 99"),
        ('{"schema_version": 1}', "schema_version 1, this edgekit reads 2; make it again"),
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


def updated(
    edgekit: Callable[..., Done], now: Path, baseline: Path, *words: object
) -> tuple[int, str]:
    done = edgekit("gate", now, "--baseline", baseline, "--update", *words)
    return done.status, " ".join(done.stderr.split())


def test_updates_cannot_creep(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    """Each loses 0.4 points, which is allowed once; the second is beyond what was accepted."""

    def report(wrong: int, day: int) -> Path:
        made = make(artifact("a", wrong), created=f"2026-01-0{day}T00:00:00+00:00")
        return write(tmp_path / f"{wrong}.json", made)

    baseline = tmp_path / "base.json"
    assert updated(edgekit, report(60, 1), baseline)[0] == 0
    first = Report.load(baseline).origin
    assert first is not None and first["a"]["top1"].value == 94
    assert updated(edgekit, report(64, 2), baseline)[0] == 0
    assert Report.load(baseline).origin == first  # what was accepted first stays
    status, said = updated(edgekit, report(68, 3), baseline)
    assert status == 1
    assert "all updates together lost 0.8 since 94.00 of 2026-01-01" in said
    assert Report.load(baseline).artifacts[0].metrics["top1"].value == pytest.approx(93.6)
    status, said = updated(edgekit, report(68, 3), baseline, "--accept", "half the size")
    assert status == 0, said
    moved = Report.load(baseline).origin
    assert moved is not None
    kept = moved["a"]["top1"]
    assert (kept.created[:10], kept.reason) == ("2026-01-03", "half the size")
    assert kept.value == pytest.approx(93.2)
    assert updated(edgekit, report(72, 4), baseline)[0] == 0  # from the new origin on
    status, said = updated(edgekit, report(76, 5), baseline)
    assert status == 1 and "accepted for 'half the size'" in said
    gated = edgekit("gate", report(76, 5), "--baseline", baseline)
    assert gated.status == 0  # against the baseline itself, half a point is allowed


def test_another_origin_can_be_named(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    best = write(tmp_path / "best.json", make(artifact("a", 50)))
    baseline = write(tmp_path / "base.json", make(artifact("a", 60)))  # of before: no origin
    now = write(tmp_path / "now.json", make(artifact("a", 58)))
    status, said = updated(edgekit, now, baseline, "--origin", best)
    assert status == 1 and "lost 0.8 since 95.00" in said
    assert updated(edgekit, now, baseline)[0] == 0
    other = write(tmp_path / "other.json", make(artifact("a", 50), model_id="other"))
    words = (now, "--baseline", baseline, "--update", "--origin", other)
    assert "of 'other'" in edgekit("gate", *words).error
    assert "pass both" in edgekit("gate", now, "--baseline", baseline, "--origin", best).error


def test_what_one_machine_measures_has_no_origin() -> None:
    report = make(artifact("a", 60, latency_ratio=Measurement(0.6, "x", 9)))
    (values,) = review.values_of(report).values()
    assert set(values) == {"top1"}
    assert review.creep(make(artifact("a", 90)), review.values_of(report), ()) == ()
    (check,) = review.creep(
        make(artifact("a", 66)), review.values_of(report), [parse("max-drop", "top1=0.5")]
    )
    assert (check.verdict, check.drop) == ("FAIL", pytest.approx(0.6))


def test_a_dead_channel_takes_a_reason_to_become_the_baseline(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    exact = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    judged = fidelity.judge(exact, exact * np.array([1, 1, 0], np.float32), {"y": (3,)})
    dead = dataclasses.replace(artifact("a", 60), fidelity=judged)
    now, baseline = write(tmp_path / "now.json", make(dead)), tmp_path / "base.json"
    done = edgekit("gate", now, "--min", "top1=90")
    assert done.status == 1
    assert [(c["kind"], c["verdict"]) for c in done.document["checks"]] == [
        ("dead", "FAIL"),
        ("min", "PASS"),
    ]
    assert "y: channel 2 of axis 1; varies in the float model, not here" in " ".join(
        done.stderr.split()
    )
    assert edgekit("gate", now, "--min", "top1=90", "--allow-dead").status == 0
    status, said = updated(edgekit, now, baseline)
    assert status == 1 and "y: channel 2 of axis 1" in said and not baseline.exists()
    assert updated(edgekit, now, baseline, "--accept", "nobody reads it")[0] == 0
    xml = tmp_path / "gate.xml"
    assert edgekit("gate", now, "--min", "top1=90", "--junit", xml).status == 1
    (case, _) = ElementTree.parse(xml).iter("testcase")
    assert case.get("name") == "fidelity dead" and case[0].tag == "failure"


def test_a_report_of_before_does_not_say_what_is_dead(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    now = write(tmp_path / "now.json", make(artifact("a", 60)))
    done = edgekit("gate", now, "--min", "top1=90")
    assert done.status == 0 and "does not say whether channels are dead in a" in done.stderr


def test_accuracy_by_labels_that_do_not_fit_is_not_judged() -> None:
    sqnr = Measurement(30, "dB", COUNT)
    fit = LabelFit(10, 10, 0.5, "chance")
    report = make(artifact("a", 900, sqnr_centred=sqnr), fit=fit)
    assert [check.metric for check in gate(report, baseline=report)] == ["sqnr_centred"]
    for bound in (parse("max-drop", "top1=1"), parse("min", "top1=5")):
        with pytest.raises(ReportError, match="top1 says nothing.*no better than chance"):
            gate(report, baseline=report, bounds=[bound])
