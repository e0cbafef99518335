from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT

from edgekit import data
from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.records.artifact import Artifact
from edgekit.runtimes import Runner, open_runner
from edgekit.runtimes.worker import Job, Worker

NAMES = ("tflite-float32", "tflite-int8", "onnx-float32", "onnx-int8")


def opened(path: Path, **options: str) -> Runner:
    artifact = Artifact.load(path)
    return open_runner(
        artifact.model_path, format=artifact.manifest.format, threads=1, options=options
    )


def answers(runner: Runner, path: Path, count: int) -> npt.NDArray[np.float32]:
    """Real-valued answers to the first test images, one image a run."""
    images = data.load("fashion_mnist", "test").images[:count]
    entry, end = runner.signature.inputs[0], runner.signature.outputs[0]
    feed = entry.quantize(Artifact.load(path).manifest.preprocessing.apply(images))
    found = [runner.run({entry.name: feed[i : i + 1]})[end.name] for i in range(count)]
    return end.dequantize(np.concatenate(found))


def job(path: Path, **changes: object) -> Job:
    artifact = Artifact.load(path)
    manifest = artifact.manifest
    fields: dict[str, object] = {
        "name": path.name,
        "model": artifact.model_path,
        "format": manifest.format,
        "preprocessing": manifest.preprocessing,
        "threads": 1,
        "options": {},
        **changes,
    }
    return Job(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_worker_answers_as_its_runner(name: str, artifacts: dict[str, Path]) -> None:
    with opened(artifacts[name]) as runner:
        expected = answers(runner, artifacts[name], 8)
    images = data.load("fashion_mnist", "test").images[:8]
    with Worker(job(artifacts[name])) as worker:
        found = worker.outputs(images)
        assert 0 < worker.loaded.baseline_memory < worker.peak_memory()
        assert 0 < worker.loaded.load_ms
    assert found.dtype == np.float32
    # onnxruntime sums a batch of float32 in another order
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_signatures_are_those_of_the_manifest(artifacts: dict[str, Path]) -> None:
    for name in ("tflite-float32", "tflite-int8"):
        with opened(artifacts[name]) as runner:
            assert runner.signature == Artifact.load(artifacts[name]).manifest.signature


def test_reference_kernels_of_litert(artifacts: dict[str, Path]) -> None:
    path = artifacts["tflite-float32"]
    with opened(path) as fast, opened(path, kernels="reference") as plain:
        assert fast.describe().provider == "XNNPACK"
        assert plain.describe().provider == "reference kernels"
        assert plain.describe().options == {"kernels": "reference"}
        np.testing.assert_allclose(answers(plain, path, 2), answers(fast, path, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kernels": "fast"}, "xnnpack or reference"), ({"delegate": "gpu"}, "'delegate'")],
)
def test_unknown_options(options: dict[str, str], message: str, artifacts: dict[str, Path]) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        opened(artifacts["tflite-int8"], **options)
    with pytest.raises(InvalidOptionError, match=message):
        Worker(job(artifacts["tflite-int8"], options=options))


def test_options_reach_onnxruntime(artifacts: dict[str, Path]) -> None:
    with opened(artifacts["onnx-int8"], **{"session.x64quantprecision": "1"}) as runner:
        assert runner.describe().options == {"session.x64quantprecision": "1"}
        assert answers(runner, artifacts["onnx-int8"], 1).sum() == pytest.approx(1, abs=0.02)


def test_a_shard_that_no_batch_divides(artifacts: dict[str, Path]) -> None:
    images = data.load("fashion_mnist", "test").images[:7]
    path = artifacts["tflite-int8"]
    with Worker(job(path)) as one, Worker(job(path, batch=3)) as three:
        np.testing.assert_array_equal(three.outputs(images), one.outputs(images))


@pytest.mark.parametrize("format", ["tflite", "onnx", "keras"])
def test_garbage_is_one_line(format: str, tmp_path: Path, artifacts: dict[str, Path]) -> None:
    model = tmp_path / f"model.{format}"
    model.write_bytes(b"\x1c\0\0\0TFL3" + bytes(range(256)) * 4)
    with pytest.raises(InvalidModelError) as caught:
        Worker(job(artifacts["tflite-int8"], model=model, format=format, name="garbage"))
    assert str(caught.value).startswith("garbage: ")
    assert "\n" not in str(caught.value)


def test_ctrl_c_while_a_worker_boots(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """The whole terminal group gets the signal as soon as there is a child."""
    verb = ["-m", "edgekit.benchmark", str(artifacts["onnx-int8"])]
    running = subprocess.Popen(
        [sys.executable, *verb],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    until = time.monotonic() + 30
    # the resource tracker is the first child, the worker the second
    while len(children.read_text().split()) < 2 and time.monotonic() < until:
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert stderr.splitlines() == ["edgekit benchmark: error: interrupted; nothing was written"]
