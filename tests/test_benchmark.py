from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done


def test_onnx_operators_and_float_kernels(
    artifacts: dict[str, Path], edgekit: Callable[..., Done]
) -> None:
    done = edgekit("benchmark", artifacts["onnx-int8"], "--seconds", "0.3", "--batch", "2")
    assert done.status == 0, done.stderr
    found = done.document
    operators = {operator["name"]: operator["count"] for operator in found["operators"]}
    assert operators["QLinearConv"] == 52
    assert operators["QGemm"] == 1
    assert "Conv" not in operators
    assert all("Conv" not in name for name in found["float_operators"])
    assert sum(operator["share"] for operator in found["operators"]) == pytest.approx(100)
    metrics = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert metrics["cold_start"] > metrics["load_time"] > metrics["latency_p50"] > 0
    assert metrics["throughput"] > 0


def test_litert(artifacts: dict[str, Path], edgekit: Callable[..., Done]) -> None:
    done = edgekit("benchmark", artifacts["tflite-int8"], "--seconds", "0.3", "--batch", "3")
    assert done.status == 0, done.stderr
    assert done.document["runtime"]["provider"] == "XNNPACK"
    assert done.document["float_operators"] is None
    assert "no operator times" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "litert"], "pass --runtime ort"),
        (["--runtime", "tensorrt"], "got 'tensorrt'"),
        (["--seconds", "0"], "--seconds > 0"),
        (["--threads", "0"], "integer >= 1"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, artifacts: dict[str, Path], edgekit: Callable[..., Done]
) -> None:
    done = edgekit("benchmark", artifacts["onnx-int8"], *arguments)
    assert done.status == 2
    assert message in done.error


def test_a_file_of_any_maker(
    artifacts: dict[str, Path], tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    file = tmp_path / "theirs.tflite"
    file.write_bytes((artifacts["tflite-int8"] / "model.tflite").read_bytes())
    words = ("--seconds", "0.2", "--preprocessing", "unit")
    done = edgekit("benchmark", file, *words)
    assert (done.status, done.document["name"]) == (0, "theirs.tflite"), done.stderr
    assert done.document["precision"] == "int8"
    assert "does not say how its input is made" in edgekit("benchmark", file).error
    assert (
        "has its own preprocessing" in edgekit("benchmark", artifacts["tflite-int8"], *words).error
    )
