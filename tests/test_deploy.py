"""All deployables of a model in one command, from one load, conversion and quantization."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import mostly_right
from exported import export, export_all

from edgekit import deploy
from edgekit.base.errors import FidelityError, InvalidDataError, InvalidOptionError
from edgekit.export import main as export_main
from edgekit.records.artifact import Artifact
from edgekit.records.results import Report
from edgekit.sources import convert
from edgekit.sources import keras as keras_format

TARGETS, PRECISIONS = ("tflite", "onnx"), ("float32", "float16", "int8")
UNIT = {"preprocessing": "unit"}
#: What calibration images are looked at for.
SAMPLED = ("tflite-int8", "onnx-int8", "onnx-float16")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.keras, a classifier, and set.npz with labels that it mostly has right."""
    folder = tmp_path_factory.mktemp("deploy")
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(6)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(6, 3, activation="relu", name="first")(image)
    x = keras.layers.Flatten()(keras.layers.DepthwiseConv2D(3)(x))
    model = keras.Model(image, keras.layers.Dense(4, activation="softmax", name="classes")(x))
    model.save(folder / "net.keras")
    random = np.random.default_rng(6)
    pixels = random.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    scores = keras_format.call(model, [pixels / np.float32(255)])[0]
    np.savez(folder / "set.npz", x=pixels, y=mostly_right(np.asarray(scores), random))
    return folder


@pytest.fixture(scope="module")
def written(place: Path) -> dict[str, Artifact]:
    """All six, by ``TARGET-PRECISION``; made with one conversion."""
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        own = convert.from_keras
        patch.setattr(convert, "from_keras", lambda *a, **k: counted.append(1) or own(*a, **k))
        found = export_all(
            place / "net.keras", targets=TARGETS, precisions=PRECISIONS, **UNIT,
            calibration=str(place / "set.npz"), out=place / "all",
        )  # fmt: skip
    assert len(counted) == 1
    return {f"{each.manifest.format}-{each.manifest.precision}": each for each in found}


def test_each_is_what_a_single_export_writes(place: Path, written: dict[str, Artifact]) -> None:
    assert set(written) == {f"{t}-{p}" for t in TARGETS for p in PRECISIONS}
    for name, each in written.items():
        assert each.path == place / "all" / f"net-{name}"
        target, precision = name.split("-")
        single = export(
            place / "net.keras", target=target, precision=precision, **UNIT,
            calibration=str(place / "set.npz") if name in SAMPLED else None,
            out=place / "single" / name,
        )  # fmt: skip
        assert single.manifest.notes == each.manifest.notes
        assert single.sha256 == each.sha256, name


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Black pictures, on which hardly a step of int8 is used."""
    flat = np.zeros((40, 8, 8, 3), np.uint8)
    flat[::2] += 1
    path = tmp_path_factory.mktemp("dark") / "dark.npz"
    np.savez(path, x=flat)
    return path


def test_what_is_good_is_written_where_an_int8_file_is_not(
    place: Path, dark: Path, tmp_path: Path
) -> None:
    whole = {
        "targets": TARGETS, "precisions": ("float32", "int8"), "calibration": str(dark),
        "correction": "none", "out": tmp_path / "out", **UNIT,
    }  # fmt: skip
    with pytest.raises(FidelityError) as caught:
        export_all(place / "net.keras", **whole)
    good = [tmp_path / "out" / f"net-{target}-float32" for target in TARGETS]
    assert sorted((tmp_path / "out").iterdir()) == sorted(good)
    assert caught.value.written == tuple(good)
    for path in good:
        assert Artifact.load(path).manifest.precision == "float32"
    said = str(caught.value)
    assert "int8 tflite file" in said and "int8 onnx file" in said
    assert said.endswith(f"the good ones were written: {good[0]}, {good[1]}")
    assert said.count("leave out --correction none") == 1
    (tmp_path / "out" / "net-onnx-int8").mkdir()
    with pytest.raises(
        FidelityError, match=f"net-onnx-int8 holds is of an earlier run; .*{good[0]}"
    ):
        export_all(place / "net.keras", **whole, force=True)


def test_the_command_says_what_was_written(
    place: Path, dark: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    words = [
        str(place / "net.keras"), "--preprocessing", "unit", "--calibration", str(dark),
        "--correction", "none", "--target", "tflite", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert export_main([*words, "--precision", "int8,float16"]) == 1
    stdout, said = capfd.readouterr()
    path = tmp_path / "out" / "net-tflite-float16"
    assert not stdout and Artifact.load(path)
    assert f"{path}/model.tflite  " in said
    assert said.splitlines()[-1].endswith(f"; the good ones were written: {path}")


def test_another_error_leaves_none_of_several(place: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x=np.zeros((4, 8, 8, 1), np.uint8))
    with pytest.raises(InvalidDataError):
        export_all(
            place / "net.keras", targets=TARGETS, precisions=("float32", "int8"), **UNIT,
            calibration=str(tmp_path / "few.npz"), out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_command_of_several(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    words = ["--preprocessing", "unit", "--target", "tflite,onnx", "--precision", "float32"]
    call = [str(place / "net.keras"), *words, "--out", str(tmp_path / "two")]
    assert export_main(call) == 0
    document = json.loads(capfd.readouterr().out)
    assert [Path(each["artifact"]).name for each in document["artifacts"]] == [
        "net-tflite-float32",
        "net-onnx-float32",
    ]
    assert export_main(call) == 2  # they are there
    assert "two" in capfd.readouterr().err
    for wrong, said in (
        ("tflite,tvm", "expected tflite, onnx, tflite-micro, got 'tvm'"),
        ("tflite,tflite", "expected each target and precision once"),
    ):
        call[call.index("--target") + 1] = wrong
        assert export_main([*call[:-1], str(tmp_path / "no")]) == 2
        assert said in capfd.readouterr().err


def _deploy(place: Path, out: Path, *more: str) -> list[str]:
    data = str(place / "set.npz")
    return [
        str(place / "net.keras"), "--preprocessing", "unit", "--data", data, "--calibration", data,
        "--precision", "float32,int8", "--rounds", "1", "--out", str(out), *more,
    ]  # fmt: skip


def test_one_command_from_the_model_to_the_verdict(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert deploy.main(_deploy(place, out, "--min", "top1=50")) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["passed"] and len(document["artifacts"]) == 4
    report = Report.load(out / "report.json")
    assert [result.name for result in report.artifacts] == [
        "net-tflite-float32", "net-tflite-int8", "net-onnx-float32", "net-onnx-int8",
    ]  # fmt: skip
    assert "net-onnx-int8" in (out / "report.html").read_text()
    assert deploy.main(_deploy(place, out)) == 2  # it is there
    again = _deploy(place, out, "--force", "--min", "top1=99.9", "--target", "tflite")
    capfd.readouterr()
    assert deploy.main(again) == 1
    document = json.loads(capfd.readouterr().out)
    assert not document["passed"] and not document["failed"]


@pytest.mark.slow
def test_the_good_files_are_compared_where_an_int8_file_is_not_written(
    place: Path, dark: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    words = _deploy(place, out, "--target", "tflite", "--parity", "--min", "top1=1")
    words[words.index("--calibration") + 1] = str(dark)
    assert deploy.main([*words, "--min", "tflite-int8:agreement=99"]) == 1
    stdout, said = capfd.readouterr()
    document = json.loads(stdout)
    assert not document["passed"] and not document["failed"]
    assert document["refused"]["artifacts"] == ["net-tflite-int8"]
    assert "int8 tflite file" in document["refused"]["why"]
    assert all(check["verdict"] == "PASS" for check in document["checks"])
    assert "not written: " in said and "--parity is left out" in said
    report = Report.load(out / "report.json")
    assert [result.name for result in report.artifacts] == ["net-tflite-float32"]
    assert "net-tflite-float32" in (out / "report.html").read_text()
    words = _deploy(place, tmp_path / "none", "--precision", "int8", "--target", "tflite")
    words[words.index("--calibration") + 1] = str(dark)
    assert deploy.main(words) == 1  # no file is good: there is nothing to compare
    assert "int8 tflite file" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_what_is_always_the_same_stands_in_a_table(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    table = f"""
[tool.edgekit.deploy]
model = "{place / "net.keras"}"
preprocessing = "unit"
calibration = "{place / "set.npz"}"
data = "{place / "set.npz"}"
target = "tflite"
precision = ["int8"]
recipe = "own.toml"
out = "made"

[tool.edgekit.gate]
min.top1 = 50
"""
    (tmp_path / "pyproject.toml").write_text(table)
    (tmp_path / "own.toml").write_text('schema_version = 1\n[layers]\nfirst = "float32"\n')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert deploy.main(["--rounds", "1"]) == 0
    manifest = Artifact.load(tmp_path / "made" / "net-tflite-int8").manifest
    assert manifest.recipe is not None and manifest.recipe.path.endswith("own.toml")
    assert manifest.quantization is not None
    assert manifest.quantization.layers == {"first": "float32"}
    for line, said in (
        ("mdel = 1", "unknown key 'mdel'.*did you mean 'model'"),
        ("target = 3", "expected target to be a list of words, got 3"),
        ("out = 3", "expected out to be text, got 3"),
    ):
        (tmp_path / "pyproject.toml").write_text(f"[tool.edgekit.deploy]\n{line}\n")
        with pytest.raises(InvalidOptionError, match=said):
            deploy.settings()
    (tmp_path / "pyproject.toml").write_text("[tool.edgekit.deploy]\n")
    capfd.readouterr()
    assert deploy.main([]) == 2
    assert "expected --out FOLDER" in capfd.readouterr().err


def test_a_recipe_with_a_budget_is_for_export(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('schema_version = 1\n[budget]\nkind = "min"\nmetric = "sqnr"\nvalue = 30\n')
    assert deploy.main(_deploy(place, tmp_path / "out", "--recipe", str(recipe))) == 2
    assert "has a budget, and deploy searches for no mixture" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
