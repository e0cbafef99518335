"""The gate and the verdicts on detectors, segmentation networks and metrics of the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
import reports
from reports import close, measured, of_detector, of_segmentation, report, result

from edgekit.base import cli
from edgekit.base.errors import ReportError
from edgekit.evaluation import verdicts
from edgekit.gate import gate
from edgekit.gating import ci, review
from edgekit.gating.bounds import Bound, parse
from edgekit.gating.checks import Check
from edgekit.records.results import LabelFit, Measurement, Report
from edgekit.reporting import gate_table


def detector(
    value: float = 61.9, change: float = -0.1, spread: float = 0.2, **more: Measurement
) -> Report:
    float_model = result("m", of_detector(62.0))
    return report(float_model, result("a", of_detector(value, change, spread, **more)))


def judged(now: Report, before: Report | None, *bounds: Bound) -> Sequence[Check]:
    return gate(now, baseline=before, max_drop={}, bounds=bounds)


@pytest.mark.parametrize(
    ("change", "spread", "expected"),
    [(-0.1, 0.2, "same"), (-0.1, 2.0, "unclear"), (-3.0, 0.8, "worse"), (0.9, 0.4, "better")],
)
@pytest.mark.parametrize("of", [of_detector, of_segmentation])
def test_accuracy_is_the_change_of_map_or_miou(
    of: object, change: float, spread: float, expected: str
) -> None:
    assert callable(of)
    one = result("a", of(80, change, spread), fidelity=close("y"))
    found = verdicts.of(one, report(result("m", of(80)), one))
    assert (found.verdict, found.accuracy, found.broken) == (expected, expected, "")
    assert found.change is not None and found.change.value == change


def test_a_detector_whose_scores_are_all_zero_is_dead() -> None:
    one = result("a", of_detector(0.0, -62.0, 1.5), fidelity=close("scores", dead=True))
    found = verdicts.of(one, report(result("m", of_detector(62)), one))
    assert (found.verdict, found.accuracy, found.broken) == ("dead", "worse", "dead")
    # without labels its outputs still say it
    bare = dataclasses.replace(one, metrics={"sqnr": measured(20, "dB")})
    found = verdicts.of(bare, report(result("m", {}), bare))
    assert (found.verdict, found.accuracy, found.broken) == ("dead", "unknown", "dead")


def test_half_a_point_of_map_or_of_miou_is_asked_where_nothing_is() -> None:
    (check,) = gate(detector(61.3), baseline=detector())
    assert (check.metric, check.verdict, check.bound) == ("map", "FAIL", 0.5)
    assert [c.verdict for c in gate(detector(61.5), baseline=detector())] == ["PASS"]
    assert [c.verdict for c in gate(detector(61.3), baseline=detector(), bounds=[parse(
        "max-drop", "map=1")])] == ["PASS"]  # fmt: skip
    now, before = (
        report(result("m", of_segmentation(88)), result("a", of_segmentation(value, 0)))
        for value in (87.0, 87.9)
    )
    (check,) = gate(now, baseline=before)
    assert (check.metric, check.verdict) == ("miou", "FAIL")


def test_chance_is_said_by_the_changes_against_the_same_float_model() -> None:
    """mAP of 62 has an interval of 3 points, of which most is that of the images."""
    before, bound = detector(61.9, -0.1, 0.2), parse("max-drop", "map=0.5")
    (check,) = judged(detector(60.9, -1.1, 0.3), before, bound)
    assert (check.verdict, check.significant) == ("FAIL", True)
    assert check.reason == (
        "95 % intervals of the changes against the float model apart: significant "
        "(-1.40 to -0.80, before -0.30 to +0.10 points)"
    )
    (check,) = judged(detector(61.3, -0.7, 0.9), before, bound)
    assert (check.verdict, check.significant) == ("FAIL", False)
    (check,) = judged(detector(63.1, 1.1, 0.3), before, bound)
    assert (check.verdict, check.significant) == ("STALE", True)
    other = dataclasses.replace(before.reference, sha256="another")
    (check,) = judged(
        detector(60.9, -1.1, 0.3), dataclasses.replace(before, reference=other), bound
    )
    assert (check.reason, check.significant) == ("intervals overlap", False)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("map50=85", "PASS"),
        ("map50=88", "FAIL"),
        ("matched50=97", "PASS"),
        ("matched90=90", "FAIL"),
        ("map50:bag & <b>=82", "PASS"),
        ("a:map50:red car=90", "FAIL"),
        ("map_small=45", "FAIL"),
    ],
)
def test_least_values_of_a_detector(text: str, verdict: str) -> None:
    (check,) = judged(detector(), None, parse("min", text))
    assert check.verdict == verdict


def test_least_values_of_a_segmentation_network() -> None:
    now = reports.segmentation()
    bounds = [parse("min", text) for text in ("miou=86", "iou:red car=79", "pixel_agreement=98")]
    checks = [c for c in judged(now, None, *bounds) if c.kind == "min"]
    found = [(c.artifact, c.metric, c.verdict) for c in checks]
    assert found == [
        ("m-tflite-int8", "miou", "PASS"),
        ("m-tflite-int8", "pixel_agreement", "PASS"),
        ("m-tflite-int8", "iou:red car", "FAIL"),
        ("m-onnx-int8", "miou", "FAIL"),
        ("m-onnx-int8", "pixel_agreement", "PASS"),
        ("m-onnx-int8", "iou:red car", "FAIL"),
    ]


def test_a_class_may_lose_so_much() -> None:
    bounds = [parse("max-drop", "map50:red car=2"), parse("max-drop", "map50:ankle boot=2")]
    worse = {"map50:red car": measured(81.0)}
    lost, kept = judged(detector(**worse), detector(), *sorted(bounds, key=str, reverse=True))
    assert (lost.metric, kept.metric) == ("map50:ankle boot", "map50:red car")
    assert (lost.verdict, kept.verdict) == ("PASS", "FAIL")
    assert kept.drop == pytest.approx(2.9)


def test_a_class_that_is_not_there_names_the_nearest() -> None:
    (check,) = judged(detector(), None, parse("min", "map50:red cart=1"))
    assert check.verdict == "FAIL"
    assert check.reason.startswith(
        "the metric is missing from the report; it has map50:t-shirt/top, map50:bag & <b>, "
    )
    assert check.reason.endswith("; did you mean 'red car'?")
    many = {f"map50:class {i}": measured(50) for i in range(80)}
    (check,) = judged(detector(**many), None, parse("min", "map50:x=1"))
    assert check.reason.endswith("map50:class 3 and 76 more")
    (check,) = judged(detector(), None, parse("min", "iou:bag=1"))
    assert check.reason.endswith("it knows no class: compare with labels")
    (check,) = judged(detector(), None, parse("min", "metric:recall=1"))
    assert check.reason.endswith("compare --metric MODULE:FUNCTION")


def test_a_metric_of_the_user_falls_or_rises() -> None:
    def of(value: float) -> Report:
        return detector(**{"metric:m": Measurement(value, "own", 500)})

    kinds = ("max-drop", "max-rise")
    low, high = of(10), of(12)
    found = [judged(high, low, parse(kind, "metric:m=1"))[0].verdict for kind in kinds]
    assert found == ["STALE", "FAIL"]
    found = [judged(low, high, parse(kind, "metric:m=1"))[0].verdict for kind in kinds]
    assert found == ["FAIL", "STALE"]
    both = [parse("min", "metric:m=9"), parse("max", "metric:m=11")]
    checks = judged(high, None, *both)
    assert [c.verdict for c in checks] == ["PASS", "FAIL"]
    assert [c.rule for c in checks] == ["min 9", "max 11"]


def test_labels_that_do_not_fit_say_nothing_of_a_class() -> None:
    now = dataclasses.replace(detector(), fit=LabelFit(1, 5, 0.9, "chance"))
    for text in ("map=1", "map50:red car=1"):
        with pytest.raises(ReportError, match=f"{text[:-2]} says nothing in this report"):
            judged(now, None, parse("min", text))


def test_what_is_against_the_reference_compares_within_one() -> None:
    runner = dataclasses.replace(detector().reference, name="ort:cuda:float16")
    other = dataclasses.replace(detector(), reference=runner)
    for metric in ("matched50", "score_error", "map_change"):
        with pytest.raises(ReportError, match="within one reference only"):
            judged(detector(), other, parse("max-drop", f"{metric}=1"))


def test_a_baseline_keeps_and_bounds_them() -> None:
    bounds = [parse("max-drop", "map50:red car=2"), parse("max-drop", "map=0.5")]
    origin = review.values_of(detector(**{"metric:m": Measurement(1, "", 1)}))["a"]
    assert {"map", "map50:red car", "matched50", "metric:m"} <= set(origin)
    creep = review.creep(detector(61.0), {"a": origin}, bounds)
    assert [check.metric for check in creep] == ["map"]
    fallen = {"map50:red car": measured(70.0)}
    creep = review.creep(detector(**fallen), {"a": origin}, bounds)
    assert [check.metric for check in creep] == ["map50:red car"]


def test_junit_markdown_and_annotations_escape_the_name_of_a_class() -> None:
    name = "map50:a|b\x1b[31m <i> ::error::\n@all"
    checks = judged(detector(**{name: measured(1)}), None, Bound("min", name, 50))
    suite = ElementTree.fromstring(ci.junit(checks, model_id="m"))
    (case,) = suite.iter("testcase")
    assert "<i>" in str(case.get("name")) and "\x1b" not in str(case.get("name"))
    (row,) = ci.markdown(checks, model_id="m").splitlines()[7:]
    assert row.count(" | ") == 8 and "<i>" not in row and "@all" not in row
    for line in ci.commands(checks, model_id="m"):
        assert "\n" not in line and "\x1b" not in line


def test_the_table_of_the_gate_keeps_names_of_classes_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "map50:[red]a class with a very long name of many words\n and lines"
    checks = judged(
        detector(**{name: measured(90)}),
        detector(**{name: measured(95)}),
        Bound("max-drop", name, 2),
        Bound("min", "matched50", 99),
    )
    screen = cli.Screen(width=80, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(cli, "console", screen)
    gate_table.show(checks, (), detector())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "[red]a" in out and "matched50 " in out
