"""ONNX files that PyTorch quantized (tests/data/pt2e): TFLite with exactly their integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exported import answers, export

from edgekit.base.errors import InvalidModelError
from edgekit.evaluation import parity
from edgekit.records.signature import preprocessing
from edgekit.runtimes import model_file

FILES = Path(__file__).parent / "data" / "pt2e"
#: By file: the least number of integers, and the kinds of operators that compute in float.
CASES: dict[str, tuple[int, set[str]]] = {
    "xnnpack": (5_500, set()),
    "fx": (5_700, set()),
    "gates": (330, {"HARD_SWISH", "LOGISTIC", "MEAN", "RESHAPE"}),
    "rows": (3_700, {"ADD", "GELU", "MEAN", "MUL", "RSQRT", "SQUARED_DIFFERENCE", "SUB"}),
}


@pytest.mark.parametrize("name", CASES)
def test_tflite_has_the_integers_of_pytorch_and_computes_as_it_does(
    name: str, tmp_path: Path
) -> None:
    least, floats = CASES[name]
    path = FILES / f"{name}.onnx"
    written = export(
        path, target="tflite", precision="int8", preprocessing="unit", out=tmp_path / "out"
    )
    found = parity.numbers(written, model_file.load(path, preprocessing("unit")))
    assert found.differences == ()
    assert found.compared >= least
    execution = written.manifest.execution
    assert execution is not None
    assert {each.split()[0] for each in execution.floats} == floats
    with np.load(FILES / "outputs.npz") as file:
        pictures, right = file["image"].transpose(0, 2, 3, 1), file[name]
    (spec,) = written.manifest.signature.outputs
    off = np.abs(answers(written, {"image": pictures / np.float32(255)})["scores"] - right)
    assert np.mean(off < 0.5 * spec.scale) > 0.6  # PyTorch computes in float between roundings
    assert off.max() < 1.5 * spec.scale


def test_weights_of_minus_128_are_refused_with_what_pytorch_has_for_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="Conv node_conv2d from -127 .* XNNPACKQuantizer"):
        export(
            FILES / "inductor.onnx",
            target="tflite",
            precision="int8",
            preprocessing="unit",
            out=tmp_path / "out",
        )
