"""A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) trained for a minute on real
images: what its int8 files predict, from Keras and from ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from exported import answers, export, export_all

from edgekit.data import fashion_mnist
from edgekit.evaluation import parity
from edgekit.records.artifact import Artifact

sys.path.insert(0, str(ROOT / "benchmarks"))

import trained  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.keras, and set.npz with calibration images."""
    folder = tmp_path_factory.mktemp("transformer")
    trained.transformer().save(folder / "net.keras")
    np.savez(folder / "set.npz", x=fashion_mnist.load("calibration").images[:200])
    export(
        folder / "net.keras", target="onnx", precision="float32", preprocessing="unit",
        out=folder / "float",
    )  # fmt: skip
    (folder / "net.onnx").write_bytes((folder / "float" / "model.onnx").read_bytes())
    return folder


def _classes(written: Artifact) -> np.ndarray:
    pixels = fashion_mnist.load("test").images[trained.TRAINED :]
    (name,) = (spec.name for spec in written.manifest.signature.inputs)
    (values,) = answers(written, {name: written.manifest.preprocessing.apply(pixels)}).values()
    return np.asarray(values.argmax(axis=1))


@pytest.mark.parametrize("kind", ["keras", "onnx"])
def test_int8_predicts_as_the_float_model_does(kind: str, place: Path, tmp_path: Path) -> None:
    labels = fashion_mnist.load("test").labels[trained.TRAINED :]
    written = export_all(
        place / f"net.{kind}",
        targets=["tflite", "onnx"],
        precisions=["float32", "int8"],
        preprocessing="unit",
        calibration=str(place / "set.npz"),
        out=tmp_path,
    )
    by_name = {(each.manifest.format, each.manifest.precision): each for each in written}
    exact = _classes(by_name["tflite", "float32"])
    assert np.mean(exact == labels) > 0.75  # trained: the accuracy means something
    for target in ("tflite", "onnx"):
        found = _classes(by_name[target, "int8"])
        assert np.mean(found == exact) > 0.95
        assert np.mean(found == labels) > np.mean(exact == labels) - 0.02
    same = parity.numbers(by_name["tflite", "int8"], by_name["onnx", "int8"])
    assert not same.differences
