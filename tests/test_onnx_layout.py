"""``--layout``: where the channels of TFLite made of an ONNX file lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exported import answers, export, export_all
from test_torch_files import CALIBRATION, FILES

from edgekit.base.errors import InvalidDataError, InvalidModelError, InvalidOptionError
from edgekit.calibrate import calibrate
from edgekit.compare import Options, compare
from edgekit.deploy import main as deploy_main
from edgekit.deploy import settings
from edgekit.diagnosis.diff import diff
from edgekit.evaluation import parity
from edgekit.graph import flatbuffer, onnx
from edgekit.records.artifact import Artifact
from edgekit.records.signature import Layout, preprocessing

_FIRST, _LAST = (1, 3, 16, 16), (1, 16, 16, 3)
_MODEL = FILES / "segments.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of each layout, and samples as ``set.npz``."""
    found = tmp_path_factory.mktemp("layout")
    with np.load(FILES / "answers.npz") as arrays:
        np.savez(found / "set.npz", image=arrays["image"][:CALIBRATION])
    for layout in ("", "keep", "channels-last"):
        export_all(
            _MODEL,
            targets=["tflite", "onnx"] if layout else ["tflite"],
            precisions=["float32", "int8"],
            preprocessing="symmetric",
            calibration=str(found / "set.npz"),
            layout=layout,  # type: ignore[arg-type]
            out=found / (layout or "default"),
        )
    return found


def _artifact(folder: Path, layout: str, kind: str) -> Artifact:
    return Artifact.load(folder / (layout or "default") / f"segments-{kind}")


@pytest.mark.parametrize(
    ("layout", "image", "answer"),
    [
        ("", _LAST, (1, 2, 16, 16)),
        ("keep", _FIRST, (1, 2, 16, 16)),
        ("channels-last", _LAST, (1, 16, 16, 2)),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_inputs_and_outputs_lie_as_asked(
    layout: Layout, image: tuple[int, ...], answer: tuple[int, ...], precision: str, folder: Path
) -> None:
    written = _artifact(folder, layout, f"tflite-{precision}")
    manifest = written.manifest
    (given,), (end,) = manifest.signature.inputs, manifest.signature.outputs
    assert (given.shape, end.shape) == (image, answer)
    assert manifest.source is not None
    assert manifest.source.layout == layout
    said = "\n".join(manifest.notes)
    assert ("image takes pictures with their channels last" in said) == (layout != "keep")
    assert ("inputs and outputs have the axes of the ONNX file" in said) == (layout == "keep")
    assert ("map has its channels last, [1, 16, 16, 2]" in said) == (layout == "channels-last")
    assert ("map keeps its channels where" in said) == (layout == "")
    with np.load(folder / "set.npz") as arrays:
        pixels = arrays["image"][:4]
    values = preprocessing("symmetric").apply(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    opened = onnx.session(_MODEL.read_bytes())
    exact = np.concatenate([opened.run(None, {"image": each[None]})[0] for each in values])
    (found,) = answers(written, {"image": values}).values()
    if layout == "channels-last":
        found = np.moveaxis(found, -1, 1)
    assert found.shape == exact.shape
    allowed = 1e-5 if precision == "float32" else 0.1
    assert np.abs(found - exact).max() <= allowed * np.abs(exact).max()


@pytest.mark.parametrize("layout", ["keep", "channels-last"])
def test_a_transpose_stands_at_the_ends_at_most(layout: str, folder: Path) -> None:
    written = _artifact(folder, layout, "tflite-int8")
    kinds = [each.kind for each in flatbuffer.Graph(written.model_path.read_bytes()).operators]
    first, last = (1, 1) if layout == "keep" else (0, 0)
    assert kinds.count("TRANSPOSE") == first + last
    assert "TRANSPOSE" not in kinds[first : len(kinds) - last]


@pytest.mark.parametrize("layout", ["", "keep", "channels-last"])
def test_compare_and_layers_rebuild_the_graph(layout: str, folder: Path) -> None:
    paths = [_artifact(folder, layout, f"tflite-{each}").path for each in ("float32", "int8")]
    options = Options(dataset=str(folder / "set.npz"), rounds=1, task="regression")
    report = compare(paths, options)
    found = {each.name: each.fidelity[0] for each in report.artifacts if each.fidelity}
    assert found["segments-tflite-float32"].sqnr > 100
    assert found["segments-tflite-int8"].sqnr > 20
    worst = found["segments-tflite-int8"].worst
    assert worst is None or worst.axis == 1
    layers = diff(_MODEL, paths[1], dataset=str(folder / "set.npz"), images=4)
    assert layers.unjudged == ()
    assert all(row.accumulated is not None for row in layers.rows)


@pytest.mark.parametrize("layout", ["keep", "channels-last"])
def test_both_int8_files_hold_the_same_integers(layout: str, folder: Path) -> None:
    pair = [_artifact(folder, layout, f"{each}-int8") for each in ("tflite", "onnx")]
    assert parity.numbers(*pair).differences == ()
    found = diff(pair[0].path, pair[1].path, dataset=str(folder / "set.npz"), images=4)
    assert len(found.rows) > 3


def test_other_layouts_are_not_taken_for_one(folder: Path) -> None:
    ours, theirs = _artifact(folder, "", "tflite-int8"), _artifact(folder, "keep", "onnx-int8")
    with pytest.raises(
        InvalidModelError, match="exported with different --layout; export them by one"
    ):
        parity.numbers(ours, theirs)
    with pytest.raises(InvalidOptionError, match="different --layout, the default and keep"):
        diff(ours.path, theirs.path, dataset=str(folder / "set.npz"))


def test_a_table_is_of_one_layout(folder: Path, tmp_path: Path) -> None:
    word = str(folder / "set.npz")
    table = calibrate(_MODEL, dataset=word, preprocessing="symmetric", layout="keep")
    (tmp_path / "table.json").write_text(table.dumps())
    given = {"target": "tflite", "precision": "int8", "preprocessing": "symmetric"}
    with pytest.raises(InvalidDataError, match="was made from another graph"):
        export(_MODEL, **given, calibration=str(tmp_path / "table.json"), out=tmp_path / "other")
    written = export(
        _MODEL,
        **given,
        calibration=str(tmp_path / "table.json"),
        layout="keep",
        out=tmp_path / "out",
    )
    assert written.manifest.signature.inputs[0].shape == _FIRST


def test_it_is_refused_where_it_says_nothing(tmp_path: Path) -> None:
    given = {"precision": "float32", "preprocessing": "none", "layout": "keep"}
    with pytest.raises(InvalidOptionError, match="got --target onnx, which keeps the axes"):
        export(_MODEL, target="onnx", **given)
    with pytest.raises(InvalidOptionError, match="for TFLite made of an .onnx file, got"):
        export(target="tflite", precision="float32", layout="keep")
    with pytest.raises(InvalidOptionError, match="for TFLite made of an .onnx file, got mine.kera"):
        export(Path("mine.keras"), target="tflite", **given)
    with pytest.raises(
        InvalidOptionError, match="expected layout keep or channels-last, got 'nchw'"
    ):
        export(_MODEL, target="tflite", **{**given, "layout": "nchw"})


def test_deploy_takes_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.edgekit.deploy]\nlayout = "keep"\n')
    assert settings(tmp_path).layout == "keep"
    monkeypatch.chdir(tmp_path)
    word = str(folder / "set.npz")
    arguments = ["--preprocessing", "symmetric", "--data", word, "--target", "tflite"]
    arguments += ["--precision", "float32", "--rounds", "1", "--layout", "channels-last"]
    assert deploy_main([str(_MODEL), *arguments, "--out", "out"]) == 0
    manifest = Artifact.load(tmp_path / "out" / "segments-tflite-float32").manifest
    assert manifest.source is not None
    assert manifest.source.layout == "channels-last"
