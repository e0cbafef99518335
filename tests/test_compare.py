from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Done

from edgekit import data
from edgekit.base.errors import ExecutionError, InvalidModelError, InvalidOptionError
from edgekit.compare import Options, compare
from edgekit.evaluation import conditions
from edgekit.records import stats
from edgekit.records.artifact import Artifact
from edgekit.records.results import Report
from edgekit.runtimes.worker import Job, Worker

LIMIT = 600


@pytest.fixture(scope="module")
def report(artifacts: dict[str, Path]) -> Report:
    return compare(list(artifacts.values()), Options(limit=LIMIT, rounds=3))


def npz(path: Path, **changes: np.ndarray) -> Path:
    test = data.load("fashion_mnist", "test").head(40)
    np.savez(path, **{"x": test.images, "y": test.labels, **changes})
    return path


def test_float32_deployables_are_the_float_model(report: Report) -> None:
    for name in ("tflite-float32", "onnx-float32"):
        (result,) = [r for r in report.artifacts if r.name == name]
        assert result.metrics["agreement"].value == 100
        assert result.metrics["mcnemar_p"].value == 1
        assert result.metrics["sqnr"].value > 80
        assert result.correct == report.reference.correct


def test_int8_deployables_stay_near(report: Report) -> None:
    for name in ("tflite-int8", "onnx-int8"):
        (result,) = [r for r in report.artifacts if r.name == name]
        assert result.metrics["agreement"].value > 97
        assert 10 < result.metrics["sqnr"].value < 60
        assert result.metrics["size"].value < 0.5 * 1.6e6
    # made for any CPU: its weights cannot saturate, with or without VNNI
    assert not any("saturate" in warning for warning in report.warnings)


def test_accuracy_is_counted_from_the_same_bits(report: Report) -> None:
    for result in (report.reference, *report.artifacts):
        bits = result.correct_bits(LIMIT)
        assert result.metrics["top1"].value == pytest.approx(100 * bits.mean())
        assert result.metrics["top1"].low < result.metrics["top1"].value  # type: ignore[operator]


def test_latencies_are_kept_raw_and_in_rounds(report: Report) -> None:
    for result in (report.reference, *report.artifacts):
        assert result.latency_rounds == 3
        assert len(result.latency_ms) == 60
        assert min(result.latency_ms) > 0
        p50, p90 = (result.metrics[f"latency_p{p}"].value for p in (50, 90))
        assert p50 <= p90
    ratios = {r.name: r.metrics["latency_ratio"].value for r in report.artifacts}
    assert ratios["tflite-float32"] == ratios["onnx-float32"] == 1


def test_changed_answers_are_counted_and_pictured(report: Report) -> None:
    assert report.reference.changes is None
    for result in report.artifacts:
        assert result.changes is not None
        agreed = round(LIMIT * result.metrics["agreement"].value / 100)
        assert result.changes.total == LIMIT - agreed
        assert len(result.changes.images) == min(24, result.changes.total)
        before, now = report.reference.correct_bits(LIMIT), result.correct_bits(LIMIT)
        for image in result.changes.images:
            assert (image.before == image.label) == before[image.index]
            assert (image.now == image.label) == now[image.index]
            assert image.picture


def test_what_ran_is_said(report: Report) -> None:
    ran = {r.name: (r.runtime.name, r.runtime.provider) for r in report.artifacts}
    assert ran["onnx-int8"] == ("ort", "CPUExecutionProvider")
    assert ran["tflite-int8"] == ("litert", "XNNPACK")
    assert report.environment.versions["numpy"] == np.__version__


def test_a_report_is_read_back_equal(report: Report, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(report.dumps())
    assert Report.load(tmp_path / "r.json") == report


def test_the_command(
    artifacts: dict[str, Path], tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    out = tmp_path / "r.json"
    arguments = (artifacts["onnx-int8"], "--data", npz(tmp_path / "d.npz"), "--rounds", "1")
    assert "integer >= 1" in edgekit("compare", *arguments, "--pictures", "-1").error
    done = edgekit("compare", *arguments, "--pictures", "0", "--out", out)
    assert done.status == 0, done.stderr
    assert done.document["artifacts"]["onnx-int8"]["agreement"] > 90
    assert Report.load(out).data.count == 40
    assert not any(result.changes.images for result in Report.load(out).artifacts if result.changes)
    before = out.read_bytes()
    assert "exists already" in edgekit("compare", *arguments, "--out", out).error
    assert out.read_bytes() == before


@pytest.mark.slow
def test_without_latency(
    artifacts: dict[str, Path], tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    out, html = tmp_path / "r.json", tmp_path / "r.html"
    both = [artifacts["onnx-float32"], artifacts["onnx-int8"]]
    done = edgekit(
        "compare", *both, "--data", npz(tmp_path / "d.npz"), "--no-latency", "--out", out
    )
    assert done.status == 0, done.stderr
    found = Report.load(out)
    assert found.conditions is None
    for result in (found.reference, *found.artifacts):
        assert not result.latency_ms and not {"latency_p50", "latency_ratio"} & set(result.metrics)
    assert found.artifacts[1].metrics["agreement"].value > 90
    assert edgekit("report", out, "--out", html).status == 0
    assert "no latency was measured" in html.read_text()
    judged = edgekit("gate", out, "--max", "onnx-int8:latency_ratio=1")
    assert judged.status == 1 and "latency_ratio" in judged.stdout + judged.stderr
    with pytest.raises(InvalidOptionError, match="rounds >= 0, got -1"):
        Options(rounds=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.full(40, 10)}, "label 10 is outside the model's 10 classes"),
        ({"x": np.zeros((40, 14, 14, 1), np.uint8)}, r"expected images [28, 28, 1]"),
        ({"x": np.full((40, 28, 28, 1), np.inf, np.float32)}, "NaN or Inf"),
    ],
)
def test_bad_data(
    changes: dict[str, np.ndarray],
    message: str,
    artifacts: dict[str, Path],
    tmp_path: Path,
    edgekit: Callable[..., Done],
) -> None:
    path = npz(tmp_path / "d.npz", **changes)
    out = tmp_path / "r.json"
    done = edgekit("compare", artifacts["onnx-int8"], "--data", path, "--out", out)
    assert done.status == 2
    assert message in done.error
    assert not out.exists()


def broken(source: Path, folder: Path, keep: int, *, rehash: bool) -> Path:
    """A copy of an artifact with a model file cut after ``keep`` bytes."""
    copy = folder / "broken"
    shutil.copytree(source, copy)
    artifact = Artifact.load(copy)
    artifact.model_path.write_bytes(artifact.model_path.read_bytes()[:keep])
    if rehash:
        from edgekit.base.outputs import sha256_file

        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"][artifact.manifest.model_file] = sha256_file(artifact.model_path)
        (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize("name", ["tflite-int8", "onnx-int8"])
@pytest.mark.parametrize("keep", [0, 100, 100_000])
def test_truncated_models(
    name: str, keep: int, artifacts: dict[str, Path], tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    out = tmp_path / "r.json"
    changed = broken(artifacts[name], tmp_path, keep, rehash=False)
    assert "was changed" in edgekit("compare", changed, "--out", out).error
    assert not out.exists()


@pytest.mark.parametrize("name", ["tflite-int8", "onnx-int8"])
def test_a_model_that_cannot_be_loaded_is_one_line(
    name: str, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = broken(artifacts[name], tmp_path, 100_000, rehash=True)
    manifest = Artifact.load(path).manifest
    model = path / manifest.model_file
    job = Job(name, model, manifest.format, manifest.preprocessing, 1, {})
    with pytest.raises(InvalidModelError, match=name):
        Worker(job).__enter__()


def test_a_worker_that_dies_is_said(artifacts: dict[str, Path]) -> None:
    artifact = Artifact.load(artifacts["onnx-int8"])
    manifest = artifact.manifest
    job = Job("victim", artifact.model_path, "onnx", manifest.preprocessing, 1, {})
    with Worker(job) as worker:
        os.kill(worker.process, signal.SIGKILL)
        with pytest.raises(ExecutionError, match="victim.*was ended by SIGKILL; out of memory"):
            worker.outputs(np.zeros((1, 28, 28, 1), np.uint8))


def test_ctrl_c_is_130_and_leaves_nothing(artifacts: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    running = subprocess.Popen(
        [sys.executable, "-m", "edgekit.compare", str(artifacts["onnx-int8"]), "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(3)
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert not out.exists()


def test_the_reference_has_to_be_the_source(
    artifacts: dict[str, Path], tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    other = tmp_path / "other.keras"
    other.write_bytes(b"another model")
    done = edgekit("compare", artifacts["onnx-int8"], "--reference", other, "--out", tmp_path / "r")
    assert "is not the model" in done.error


def test_statistics_against_known_values() -> None:
    share = stats.proportion(94, 100)
    assert (share.low, share.high) == (
        pytest.approx(87.52, abs=0.01),
        pytest.approx(97.22, abs=0.01),
    )
    first, second = np.array([1, 1, 1, 1, 1, 0], bool), np.array([0, 0, 0, 0, 0, 1], bool)
    assert stats.mcnemar(first, second).value == pytest.approx(0.21875)
    ones = np.ones((1, 4), np.float32)
    assert stats.sqnr(ones, ones * np.float32(0.9)).value == pytest.approx(20, abs=1e-4)
    assert stats.sqnr(ones, ones).value == float("inf")
    p, q = np.array([[0.5, 0.5]], np.float32), np.array([[0.25, 0.75]], np.float32)
    assert stats.divergence(p, q).value == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    ratio = stats.latency_ratio(np.full((5, 4), 2.0), np.full((5, 4), 4.0))
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert stats.median_interval(np.full((5, 4), 2.0)) == (2.0, 2.0)
    assert stats.median_interval(np.full((1, 4), 2.0)) is None


def test_the_change_has_an_interval_and_few_images_are_said(report: Report) -> None:
    for result in report.artifacts:
        lost, gained = stats.discordant(
            report.reference.correct_bits(LIMIT), result.correct_bits(LIMIT)
        )
        change = result.metrics["top1_change"]
        assert change.value == pytest.approx(100 * (gained - lost) / LIMIT)
        assert change.low is not None and change.high is not None
        assert change.low < change.value < change.high
        # even where no image differs, a loss of 0.5 points takes 1,583 images to be seen
        assert result.metrics["images_needed"].value >= 1583
    (sentence,) = [warning for warning in report.warnings if "too few" in warning]
    assert sentence.startswith("600 images are too few to see a loss of 0.5 points of top-1")


def test_reports_name_the_manifests(report: Report, artifacts: dict[str, Path]) -> None:
    from edgekit.base.outputs import sha256_file

    for result in report.artifacts:
        manifest = artifacts[result.name] / "manifest.json"
        assert result.manifest_sha256 == sha256_file(manifest)
    assert len(report.reference.manifest_sha256) == 64


def test_warm_up_and_conditions_are_said(report: Report) -> None:
    left_out = {r.latency_warm_up for r in (report.reference, *report.artifacts)}
    assert len(left_out) == 1 and left_out <= set(range(11))
    for result in report.artifacts:
        assert result.metrics["latency_p50"].count == 60 - 3 * result.latency_warm_up
    assert report.conditions is not None
    energy = {"energy" in result.metrics for result in report.artifacts}
    assert energy == {conditions.Energy().readable}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--power", "1"), "expected a power from 0.5 to below 1, got 1"),
        (("--bound", "0"), "expected a bound above 0"),
        (("--bound", "nan"), "expected a bound above 0"),
        (("--power", "high"), "invalid float value"),
    ],
)
def test_powers_and_bounds_that_mean_nothing(
    option: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekit.compare import main

    assert main(["artifact", *option, "--out", str(tmp_path / "r.json")]) == 2
    assert message in capsys.readouterr().err
