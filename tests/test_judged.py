"""What a comparison says of outputs that died, hardly vary, or are no classes; and of labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.base.errors import InvalidDataError, InvalidModelError, InvalidOptionError
from edgekit.compare import Options, compare, main
from edgekit.data.__main__ import check
from edgekit.evaluation import verdicts
from edgekit.gate import gate
from edgekit.records.results import Report
from edgekit.report import report as page
from edgekit.reporting import tables

COUNT = 60
#: Of every comparison here.
QUICK: dict[str, Any] = {"rounds": 1, "processes": 1, "preprocessing": "none"}
#: The same on the command line.
WORDS = ("--rounds", "1", "--processes", "1", "--preprocessing", "none")


def run(reference: Path, deployable: Path, data: Path, **asked: Any) -> Report:
    return compare([deployable], Options(reference=reference, dataset=str(data), **QUICK | asked))


def samples(path: Path, inputs: int, count: int = COUNT, **arrays: np.ndarray) -> Path:
    x = np.random.default_rng(0).normal(size=(count, inputs)).astype(np.float32)
    np.savez(path, x=x, **arrays)
    return path


def verdict(report: Report) -> str:
    return verdicts.of(report.artifacts[0], report).verdict


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float.onnx, dead.onnx whose scores are all 0, fine.onnx, and set.npz without labels."""
    folder = tmp_path_factory.mktemp("detector")
    nets.detector(folder / "float.onnx")
    nets.detector(folder / "dead.onnx", step=320 / 127)
    nets.detector(folder / "fine.onnx", step=1 / 127)  # scores live, boxes are cut off at 1
    samples(folder / "set.npz", 6)
    return folder


@pytest.fixture(scope="module")
def dead(detector: Path) -> Report:
    return run(detector / "float.onnx", detector / "dead.onnx", detector / "set.npz")


def test_scores_that_are_all_0_are_dead_though_boxes_are_close(dead: Report) -> None:
    (result,) = dead.artifacts
    assert result.metrics["sqnr"].value > 30
    assert verdict(dead) == "dead"
    (output,) = result.fidelity
    assert [(channel.axis, channel.index) for channel in output.dead] == [(2, 4), (2, 5)]


def test_a_report_keeps_what_is_dead(dead: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(dead.dumps())
    assert Report.load(path) == dead
    document = json.loads(dead.dumps())
    for result in (document["reference"], *document["artifacts"]):
        del result["fidelity"]
    del document["fit"], document["origin"]
    path.write_text(json.dumps(document))  # as an edgekit of before wrote it
    assert Report.load(path).artifacts[0].fidelity == ()


def test_the_gate_fails_what_is_dead_whatever_the_bounds_are(dead: Report) -> None:
    check, _ = gate(dead, baseline=dead)
    assert (check.kind, check.verdict, check.current) == ("dead", "FAIL", 2)
    assert "found: channels 4, 5 of axis 2" in check.reason
    check, _ = gate(dead, baseline=dead, allow_dead=[None])
    assert check.verdict == "PASS" and check.reason.startswith("allowed: found")
    assert gate(dead, baseline=dead, allow_dead=["dead.onnx"])[0].verdict == "PASS"
    with pytest.raises(InvalidOptionError, match="unknown artifact 'other'"):
        gate(dead, baseline=dead, allow_dead=["other"])


def test_the_page_names_what_is_dead(dead: Report) -> None:
    text = page(dead)
    assert "1 of 1 deployables has outputs that are dead: dead.onnx" in text
    assert '<li class="dead"><span class="badge">dead outputs</span>' in text
    assert "found: channels 4, 5 of axis 2" in text
    assert '<td class="dead">channels 4, 5 of axis 2</td>' in text


def test_a_dead_deployable_is_status_1_unless_it_is_allowed(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        str(detector / "dead.onnx"), "--reference", str(detector / "float.onnx"), *WORDS,
        "--data", str(detector / "set.npz"), "--out", str(tmp_path / "r.json"),
    ]  # fmt: skip
    assert main(words) == 1
    stdout, said = capsys.readouterr()
    found = json.loads(stdout)
    assert (found["verdicts"], found["failed"]) == ({"dead.onnx": "dead"}, ["dead.onnx"])
    (line,) = [line for line in said.splitlines() if line.startswith("dead: ")]
    assert line.startswith("dead: dead.onnx: found: channels 4, 5 of axis 2")
    assert max(map(len, said.partition("dead: ")[0].splitlines())) <= 80
    assert main([*words, "--allow-dead", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == []
    assert main([*words, "--allow-poor", "--force"]) == 1


def test_a_reference_that_hardly_varies_is_said_and_judged_by_what_varies(tmp_path: Path) -> None:
    weights = 0.1 * np.random.default_rng(1).normal(size=(4, 3))
    exact = nets.linear(tmp_path / "float.onnx", weights, offset=100)
    coarse = nets.linear(tmp_path / "int8.onnx", weights, offset=100, step=1.0)
    report = run(exact, coarse, samples(tmp_path / "set.npz", 4))
    (result,) = report.artifacts
    assert result.metrics["sqnr"].value > 45
    assert result.metrics["sqnr_centred"].value < 3
    assert verdict(report) in ("poor", "dead")
    (warning,) = [each for each in report.warnings if "nearly the same for all 60" in each]
    assert warning.startswith("y of float.onnx (reference)")


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Distance and angle: float.onnx, fine.onnx, coarse.onnx, frozen.onnx; data without y."""
    folder = tmp_path_factory.mktemp("regressor")
    weights = np.array([[20, 0.1], [-10, 0.5], [5, -0.3]])
    nets.linear(folder / "float.onnx", weights, [40, 1.5])
    nets.linear(folder / "fine.onnx", weights * 1.002, [40, 1.5])
    nets.linear(folder / "worse.onnx", weights * 1.2, [40, 1.5])
    nets.linear(folder / "frozen.onnx", weights, [40, 1.5], frozen=True)
    samples(folder / "set.npz", 3)
    with np.load(folder / "set.npz") as file:
        x = file["x"]
    y = x @ weights + np.array([40, 1.5]) + np.random.default_rng(2).normal(0, [3, 0.1], (COUNT, 2))
    np.savez(folder / "right.npz", x=x, y=y)
    np.savez(folder / "wrong.npz", x=x, y=y[::-1])
    np.savez(folder / "classes.npz", x=x, y=np.arange(COUNT) % 2)
    return folder


def test_a_vector_of_numbers_is_no_choice_of_classes(regressor: Path) -> None:
    report = run(regressor / "float.onnx", regressor / "fine.onnx", regressor / "set.npz")
    metrics = report.artifacts[0].metrics
    assert not {"top1", "agreement", "kl"} & set(metrics) and "mse" in metrics
    assert not any("softmax" in warning for warning in report.warnings)
    assert verdict(report) == "close" and report.settings["task"] == "regression"
    text = page(report)
    assert "no labels are known" in text and "top-1" not in text


@pytest.mark.slow
def test_right_numbers_are_compared_in_pairs(regressor: Path) -> None:
    report = run(regressor / "float.onnx", regressor / "fine.onnx", regressor / "right.npz")
    before, now = report.reference.metrics, report.artifacts[0].metrics
    assert before["r2"].value > 90 and abs(now["r2_change"].value) < 0.5
    assert {"truth_mse", "truth_mae"} <= set(now)
    assert verdict(report) == "same"
    assert gate(report, baseline=report)[1].metric == "r2"
    text = page(report)
    assert "R² change" in text and "% R²" in text and "same accuracy" in text
    worse = run(regressor / "float.onnx", regressor / "worse.onnx", regressor / "right.npz")
    assert worse.artifacts[0].metrics["r2_change"].value < -1
    assert verdict(worse) == "worse"


def test_a_constant_in_place_of_numbers_is_dead(regressor: Path) -> None:
    report = run(regressor / "float.onnx", regressor / "frozen.onnx", regressor / "set.npz")
    assert verdict(report) == "dead"


def test_right_answers_that_do_not_fit_are_refused(regressor: Path, tmp_path: Path) -> None:
    pair = regressor / "float.onnx", regressor / "fine.onnx"
    with pytest.raises(InvalidDataError, match="y does not fit.*R.2 of the float model is -"):
        run(*pair, regressor / "wrong.npz")
    with pytest.raises(InvalidDataError, match="by chance.*--allow-chance"):
        run(*pair, regressor / "classes.npz")
    with pytest.raises(InvalidDataError, match="expected y as integer classes.*--task regression"):
        run(*pair, regressor / "right.npz", task="classification")
    with pytest.raises(InvalidDataError, match="labels of classes do not fit y .*leave y out"):
        run(*pair, regressor / "classes.npz", task="regression")
    three = samples(tmp_path / "three.npz", 3, y=np.zeros((COUNT, 3)))
    with pytest.raises(InvalidDataError, match="expected y of one output with as many numbers"):
        run(*pair, three)
    with pytest.raises(InvalidOptionError, match="expected task classification"):
        run(*pair, regressor / "set.npz", task="counting")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes: float.onnx, int8.onnx, logits.onnx; set.npz, and arrays of labels."""
    folder = tmp_path_factory.mktemp("classifier")
    weights = 3 * np.random.default_rng(3).normal(size=(8, 5))
    nets.linear(folder / "float.onnx", weights, softmax=True)
    nets.linear(folder / "int8.onnx", weights, softmax=True, step=1 / 128)
    nets.linear(folder / "logits.onnx", weights)
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    y = (x @ weights).argmax(axis=1)
    np.savez(folder / "set.npz", x=x)
    np.savez(folder / "right.npz", x=x, y=y)
    np.savez(folder / "shuffled.npz", x=x, y=np.random.default_rng(1).permutation(y))
    np.savez(folder / "swapped.npz", x=x, y=np.array([0, 2, 1, 3, 4])[y])
    np.savez(folder / "one.npz", x=x[y == 3], y=y[y == 3])
    return folder


def test_classes_without_labels_get_agreement_and_sqnr(classifier: Path) -> None:
    report = run(classifier / "float.onnx", classifier / "int8.onnx", classifier / "set.npz")
    metrics = report.artifacts[0].metrics
    assert metrics["agreement"].value > 95 and "kl" in metrics and "top1" not in metrics
    assert verdict(report) == "close"


@pytest.mark.parametrize("reference", ["float.onnx", "logits.onnx"])
def test_integer_labels_make_classes_of_scores(classifier: Path, reference: str) -> None:
    report = run(classifier / reference, classifier / reference, classifier / "right.npz")
    assert report.reference.metrics["top1"].value == 100
    hints = [each for each in report.warnings if each.startswith("softmax: ")]
    assert bool(hints) == (reference == "logits.onnx")


@pytest.mark.slow
def test_labels_in_another_order_are_an_error_unless_allowed(classifier: Path) -> None:
    pair = classifier / "float.onnx", classifier / "int8.onnx"
    with pytest.raises(InvalidDataError, match=r"right on \d.* by chance \(p = .*--allow-chance"):
        run(*pair, classifier / "shuffled.npz")
    report = run(*pair, classifier / "shuffled.npz", allow_chance=True)
    assert report.fit is not None and report.fit.problem == "chance"
    assert abs(report.fit.accuracy - report.fit.chance) < 10 and report.fit.p > 0.05
    assert verdict(report) == "close"  # of outputs: accuracy says nothing
    assert "its accuracy says nothing on these labels" in page(report)


def test_classes_in_another_order_are_named(classifier: Path) -> None:
    pair = classifier / "float.onnx", classifier / "int8.onnx"
    report = run(*pair, classifier / "swapped.npz")
    (warning,) = [each for each in report.warnings if each.startswith("labels: ")]
    assert "1 is the model's 2, 2 is the model's 1" in warning and "100.0 % of 400" in warning
    assert report.fit is not None and not report.fit.problem


def test_labels_of_one_class_judge_nothing(classifier: Path) -> None:
    pair = classifier / "float.onnx", classifier / "int8.onnx"
    report = run(*pair, classifier / "one.npz")
    assert any("labels are one class" in warning for warning in report.warnings)
    assert verdict(report) == "close"


def test_one_score_is_a_choice_of_two(tmp_path: Path) -> None:
    weights = np.random.default_rng(4).normal(size=(4, 1))
    nodes = [("MatMul", ["x", "weights"], "sums"), ("Sigmoid", ["sums"], "y_float")]
    constants = {"weights": weights.astype(np.float32)}
    exact, other = (
        nets.write(tmp_path / name, nodes, constants, {"y": [1]}, inputs=4, steps=steps)
        for name, steps in (("float.onnx", None), ("int8.onnx", {"y": 1 / 128}))
    )
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    y = (x @ weights > 0)[:, 0].astype(np.int64)
    np.savez(tmp_path / "set.npz", x=x, y=y)
    report = run(exact, other, tmp_path / "set.npz")
    assert report.reference.metrics["top1"].value == 100 and "kl" in report.artifacts[0].metrics
    np.savez(tmp_path / "ages.npz", x=x, y=np.rint(200 + 20 * (x @ weights)[:, 0]).astype(int))
    with pytest.raises(InvalidDataError, match="y does not fit the samples"):
        run(exact, other, tmp_path / "ages.npz")  # integers that are no classes are numbers


@pytest.mark.slow
def test_files_say_what_they_need(classifier: Path, tmp_path: Path) -> None:
    file, data = classifier / "int8.onnx", str(classifier / "set.npz")
    with pytest.raises(InvalidOptionError, match="pass --reference MODEL"):
        compare([file], Options(dataset=data, **QUICK))
    report = compare(
        [file], Options(reference=classifier / "float.onnx", dataset=data, rounds=1, processes=1)
    )
    said = "int8.onnx: no input is a picture: samples go in as they are (preprocessing none)"
    assert said in report.warnings
    with pytest.raises(InvalidOptionError, match="expected --data IMAGES for your own model"):
        compare([file], Options(reference=classifier / "float.onnx", **QUICK))
    other = nets.linear(tmp_path / "other.onnx", np.ones((8, 4)))
    with pytest.raises(Exception, match=r"expected the outputs of the reference|expected 5 num"):
        run(classifier / "float.onnx", other, classifier / "set.npz")


def test_outputs_of_other_names_are_paired_by_size_and_order(tmp_path: Path) -> None:
    def two(path: Path, names: tuple[str, str], steps: dict[str, float] | None) -> Path:
        nodes = [
            ("MatMul", ["x", "one"], f"{names[0]}_float"),
            ("MatMul", ["x", "two"], f"{names[1]}_float"),
        ]
        random = np.random.default_rng(5)
        constants = {
            "one": random.normal(size=(4, 2)).astype(np.float32),
            "two": random.normal(size=(4, 3)).astype(np.float32),
        }
        sizes = {names[0]: [2], names[1]: [3]}
        return nets.write(path, nodes, constants, sizes, inputs=4, steps=steps)

    exact = two(tmp_path / "float.onnx", ("box", "score"), None)
    other = two(tmp_path / "int8.onnx", ("a", "b"), {"a": 0.05, "b": 2.0})
    report = run(exact, other, samples(tmp_path / "set.npz", 4))
    (result,) = report.artifacts
    assert [output.output for output in result.fidelity] == ["box", "score"]
    assert result.metrics["sqnr:box"].value > 25 > result.metrics["sqnr:score"].value
    assert result.metrics["sqnr_centred"] == result.metrics["sqnr_centred:score"]
    assert any("paired by size and order: a as box, b as score" in w for w in report.warnings)
    assert "Output by output" in page(report)


@pytest.mark.slow
def test_folders_of_classes_for_a_model_of_numbers(tmp_path: Path) -> None:
    """Pictures that lie in folders, and a model of no known task: what to pass is said."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("cat", "dog", "fox"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    for size in (3, 2):
        nodes = [("Flatten", ["x"], "flat"), ("MatMul", ["flat", "weights"], "y_float")]
        weights = random.normal(size=(48, size)).astype(np.float32)
        path = nets.write(
            tmp_path / f"{size}.onnx", nodes, {"weights": weights}, {"y": [size]}, inputs=[4, 4, 3]
        )
        message = "by chance.*" if size == 3 else "has 3 classes .*"
        with pytest.raises(InvalidDataError, match=f"{message}pass --task regression"):
            run(path, path, tmp_path / "photos")
        report = run(path, path, tmp_path / "photos", task="regression")
        (warning,) = [each for each in report.warnings if "are not used" in each]
        assert warning.startswith("photos: labels of classes do not fit y")
        assert verdict(report) == "exact"


def test_outputs_of_other_sizes_are_no_twins(tmp_path: Path) -> None:
    """Names differ too, as of two exporters: one output each is paired, whatever its sizes."""
    weights = np.random.default_rng(5).normal(size=(4, 6))
    wanted = nets.linear(tmp_path / "float.onnx", weights)
    product = [("MatMul", ["x", "weights"], "z_float")]
    held = {"weights": weights[:, :3].astype(np.float32)}
    other = nets.write(tmp_path / "other.onnx", product, held, {"z": [3]}, inputs=4)
    with pytest.raises(InvalidModelError, match=r"expected 6 numbers per sample.*got shape \[3\]"):
        run(wanted, other, samples(tmp_path / "x.npz", 4))


@pytest.mark.slow
def test_a_file_of_pictures_says_which_preprocessings_there_are(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 72])]
    nodes = [helper.make_node("Flatten", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    opset = [helper.make_opsetid("", 17)]
    file = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), file)
    last, first = np.zeros((20, 4, 6, 3), "f4"), np.zeros((20, 3, 4, 6), "f4")
    last[:] = np.random.default_rng(0).uniform(size=last.shape)
    first[:] = last.transpose(0, 3, 1, 2)
    for name, x in (("last", last), ("first", first), ("other", first[:, :, :2])):
        np.savez(tmp_path / f"{name}.npz", x=x)
    data = str(tmp_path / "last.npz")
    with pytest.raises(InvalidOptionError, match="of the pixels of a picture; pass --prepro.*unit"):
        compare([file], Options(reference=file, dataset=data))
    for name in ("last", "first"):
        report = run(file, file, tmp_path / f"{name}.npz")
        assert verdict(report) == "exact"
        assert not any("no input is a picture" in each for each in report.warnings)
    sizes = r"expected images \[4, 6, 3\] or \[3, 4, 6\] .*, got \[3, 2, 6\]"
    with pytest.raises(InvalidDataError, match=sizes):
        run(file, file, tmp_path / "other.npz")


@pytest.mark.slow
def test_close_numbers_of_other_classes_are_warned_of(tmp_path: Path) -> None:
    """Two scores that nearly tie: what tells them apart is 26 dB below what varies."""
    random = np.random.default_rng(5)
    common, own = random.normal(size=(8, 1)), 0.05 * random.normal(size=(2, 8, 2))
    exact = nets.linear(tmp_path / "float.onnx", common + own[0])
    other = nets.linear(tmp_path / "other.onnx", common + own[0] + own[1])
    data = samples(tmp_path / "set.npz", 8, 200)
    report = run(exact, other, data, task="classification")
    agreement = report.artifacts[0].metrics["agreement"].value
    assert verdict(report) == "close" and agreement < 95
    (warning,) = [each for each in report.warnings if "--min agreement=95" in each]
    assert warning.startswith("other.onnx: ") and f"{agreement:.1f} % of samples" in warning
    same = run(exact, exact, data, task="classification")
    assert not any("--min agreement" in each for each in same.warnings)


def test_the_largest_error_is_that_of_one_output(
    regressor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(regressor / "float.onnx", regressor / "fine.onnx", regressor / "set.npz")
    (result,) = report.artifacts
    (output,) = result.fidelity
    large = replace(output, output="far", low=0, high=1000, max_error=9)
    small = replace(output, output="a_name_that_is_long", low=0, high=2, max_error=0.5)
    shares = {
        "max_error": replace(result.metrics["max_error"], value=9.0),
        "max_error_share": replace(result.metrics["max_error_share"], value=25.0),
    }
    result = replace(result, fidelity=(large, small), metrics=result.metrics | shares)
    tables.show(replace(report, artifacts=(result,)))
    shown = capsys.readouterr().err
    assert "0.5 (25 % of a_name…is_long)" in shown and "9 (" not in shown
    assert "the largest 25 % of the range of a_name_that_is_long" in page(
        replace(report, artifacts=(result,))
    )


def test_data_check_takes_rows_as_they_are(classifier: Path) -> None:
    for prepare in ("none", None):
        found = check(
            classifier / "float.onnx", dataset=str(classifier / "right.npz"), prepare=prepare
        )
        assert found.fit.accuracy == 100
