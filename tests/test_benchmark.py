from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Done
from exported import export_all

from edgekit.benchmark import benchmark
from edgekit.evaluation.operators import Island, islands
from edgekit.graph.timed import TimedOperator
from edgekit.sources.keras import tf_keras


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
    assert found["float_islands"] == []
    assert sum(operator["share"] for operator in found["operators"]) == pytest.approx(100)
    metrics = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert metrics["cold_start"] > metrics["load_time"] > metrics["latency_p50"] > 0
    assert metrics["throughput"] > 0


def test_litert(artifacts: dict[str, Path], edgekit: Callable[..., Done]) -> None:
    done = edgekit("benchmark", artifacts["tflite-int8"], "--seconds", "0.3", "--batch", "3")
    assert done.status == 0, done.stderr
    assert done.document["runtime"]["provider"] == "XNNPACK"
    found = done.document
    operators = {operator["name"]: operator["count"] for operator in found["operators"]}
    assert operators["CONV_2D"] == 35
    assert operators["DEPTHWISE_CONV_2D"] == 17
    assert sum(operator["share"] for operator in found["operators"]) == pytest.approx(100)
    assert found["float_islands"] == []
    assert "operators were run one by one" in done.stderr


@pytest.fixture(scope="module")
def softened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int8 files of two convolutions with a SELU, which no runtime has in int8, between them."""
    folder = tmp_path_factory.mktemp("softened")
    keras = tf_keras()
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="before")(image)
    x = keras.layers.Activation("selu", name="softened")(x)
    model = keras.Model(image, keras.layers.Conv2D(4, 3, name="behind")(x))
    model.save(folder / "net.keras")
    images = np.random.default_rng(0).uniform(-1, 1, (40, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "images.npz", x=images)
    export_all(
        folder / "net.keras", targets=("tflite", "onnx"), precisions=("int8", "float32"),
        preprocessing="none", calibration=str(folder / "images.npz"), out=folder,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_float_island_is_listed_once_with_its_share_of_the_time(
    target: str, softened: Path, edgekit: Callable[..., Done]
) -> None:
    done = edgekit("benchmark", softened / f"net-{target}-int8", "--seconds", "0.3", COLUMNS="80")
    assert done.status == 0, done.stderr
    (island,) = done.document["float_islands"]
    assert "softened" in island["name"]
    kinds = {kind.upper() for kind in island["operators"]}
    assert kinds & {"SELU", "ELU", "SELECT", "SELECT_V2", "MUL", "WHERE"}
    assert not kinds & {"QUANTIZE", "DEQUANTIZE", "QUANTIZELINEAR", "DEQUANTIZELINEAR"}
    assert 0 < island["share"] < 100
    listed = done.stderr.split("computed in float in this int8 model")[1]
    assert "softened" in listed
    assert f"{island['share']:.1f}" in listed
    assert f"float takes {island['share']:.1f} % of the time" in listed
    floats = edgekit("benchmark", softened / f"net-{target}-float32", "--seconds", "0.1")
    assert floats.document["float_islands"] is None
    assert floats.document["operators"]


def _ran(
    kind: str, ms: float, inputs: str, outputs: str, *, floats: bool, converts: bool
) -> TimedOperator:
    moves = kind == "Reshape"
    return TimedOperator(
        kind, f"the_{outputs}", ms, floats and not converts and not moves, floats, converts,
        tuple(inputs.split()), tuple(outputs.split()),
    )  # fmt: skip


def test_an_island_ends_where_numbers_become_integers() -> None:
    whole, real = {"floats": False, "converts": False}, {"floats": True, "converts": False}
    out, back = {"floats": True, "converts": True}, {"floats": False, "converts": True}
    found = islands(
        [
            _ran("QuantizeLinear", 64.0, "x", "q", **back),
            _ran("QLinearConv", 32.0, "q", "a", **whole),
            _ran("DequantizeLinear", 1.0, "a", "b", **out),
            _ran("Erf", 2.0, "b", "c", **real),
            _ran("Exp", 4.0, "b", "d", **real),
            _ran("Mul", 8.0, "c d", "e", **real),
            _ran("QuantizeLinear", 16.0, "e", "f", **back),
            _ran("DequantizeLinear", 0.25, "f", "g", **out),
            _ran("Reshape", 0.5, "g", "h", **real),
            _ran("Sin", 0.125, "h", "i", **real),
            _ran("DequantizeLinear", 128.0, "f", "y", **out),
        ]
    )
    assert found == (
        Island("the_e", ("Erf", "Exp", "Mul"), 31.0),
        Island("the_i", ("Sin",), 0.875),
    )


def test_an_operator_that_does_not_run_alone_is_named(
    softened: Path,
) -> None:
    """A loop needs the graphs that it runs."""
    model = tf_keras().Sequential(
        [tf_keras().layers.Input((6, 3)), tf_keras().layers.GRU(4, unroll=False)]
    )
    model.save(softened / "loop.keras")
    written = export_all(
        softened / "loop.keras", targets=("tflite",), precisions=("float32",),
        preprocessing="none", out=softened / "loop",
    )  # fmt: skip
    found = benchmark(written[0], seconds=0.1)
    assert found.operators == ()
    (note,) = [each for each in found.notes if each.startswith("no operator times: WHILE")]
    assert note.endswith("does not run without the operators around it")


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


@pytest.mark.slow
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
