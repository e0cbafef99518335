"""Recipes of export: precisions of layers and options as a file, which export writes too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import mostly_right

from edgekit import export as verb
from edgekit.base.errors import InvalidOptionError
from edgekit.pipeline import layers, recipe
from edgekit.pipeline.exporting import File, Pipeline, Proved
from edgekit.pipeline.recipe import Recipe, RecipeBudget
from edgekit.records.artifact import Artifact, QuantizationRecord
from edgekit.sources import keras

FIRST, LAST = "conv2d", "conv2d_3"


class Chosen:
    """Some tensors in float, as a search finds them."""

    def __init__(self, pick: Callable[[Pipeline], Pipeline]) -> None:
        self._pick = pick

    def choose(self, pipeline: Pipeline, files: Sequence[File]) -> Pipeline:
        return self._pick(pipeline)

    def prove(self, files: Mapping[File, Proved]) -> dict[File, Proved]:
        return dict(files)


def _options(small: Path, **more: object) -> verb.Options:
    return verb.Options(preprocessing="unit", calibration=str(small / "set.npz"), **more)


def _command(small: Path, out: Path, *more: object, target: str = "tflite") -> list[str]:
    words = [
        small / "small.keras", "--preprocessing", "unit", "--target", target, "--precision",
        "int8", "--calibration", small / "set.npz", "--out", out, *more,
    ]  # fmt: skip
    return [str(each) for each in words]


def _file(folder: Path, text: str, name: str = "own.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _record(written: Artifact) -> QuantizationRecord:
    record = written.manifest.quantization
    assert record is not None
    return record


def _tensors(pipeline: Pipeline, *words: str) -> dict[str, str]:
    """Tensors of layers, with the reason that a search gives."""
    lines = [layers.Line(word, "float32", "") for word in words]
    return dict.fromkeys(layers.resolve(pipeline.canonical, lines).decided, "chosen by a test")


# What a recipe says


def test_precisions_of_layers_are_what_leave_float_writes(small: Path, tmp_path: Path) -> None:
    text = 'schema_version = 1\n[layers]\n"conv2d*" = "float32"\nconv2d_1 = "int8"\n'
    path = _file(tmp_path, text)
    written = {
        "recipe": verb.export(
            small / "small.keras",
            recipe.load(path).applied(_options(small)),
            target="tflite",
            precision="int8",
            out=tmp_path / "recipe",
        ),
        "typed": verb.export(
            small / "small.keras",
            _options(small, leave_float=("conv2d*",), precision_of=(("conv2d_1", "int8"),)),
            target="tflite",
            precision="int8",
            out=tmp_path / "typed",
        ),
    }
    assert written["recipe"].sha256 == written["typed"].sha256
    record = _record(written["recipe"])
    assert "conv2d_1" not in record.layers and {FIRST, "conv2d_2", LAST} <= record.layers.keys()
    assert set(record.layers.values()) == {"float32"}
    assert f"asked for by --recipe {path}" in record.floats.values()
    of_recipe = written["recipe"].manifest.recipe
    assert of_recipe is not None and written["typed"].manifest.recipe is None
    assert of_recipe.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (of_recipe.path, of_recipe.overruled) == (str(path), ())


def test_what_is_typed_wins_and_is_said(small: Path, tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        'schema_version = 1\ndevice = "x86-vnni"\ncorrection = "none"\n[layers]\n'
        f'"{FIRST}" = "float32"\n"{LAST}" = "float32"\n',
    )
    out = tmp_path / "out"
    more = ["--recipe", path, "--device", "generic", "--precision-of", f"{FIRST}=int8"]
    assert verb.main(_command(small, out, *more)) == 0
    manifest = Artifact.load(out).manifest
    assert manifest.device == "generic"
    assert manifest.quantization is not None and manifest.recipe is not None
    assert manifest.quantization.layers == {LAST: "float32"}
    assert "nearest rounding" in manifest.quantization.way  # correction none is of the recipe
    said = (
        "--device generic takes the place of the recipe's x86-vnni",
        f"--precision-of {FIRST}=int8 takes the place of the recipe's float32 for {FIRST}",
    )
    assert set(said) <= set(manifest.notes)
    assert manifest.recipe.overruled == said


def test_a_recipe_of_what_is_typed_too_is_no_contradiction(small: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, 'schema_version = 1\ndevice = "generic"\nmethod = "minmax"\n')
    options = recipe.load(path).applied(_options(small), typed=("device",))
    assert (options.device, options.method, options.overruled) == ("generic", "minmax", ())


# What gives it back


@pytest.mark.parametrize(
    ("pick", "precision"),
    [
        (lambda pipeline: pipeline.deciding(_tensors(pipeline, FIRST)), "float32"),
        (lambda pipeline: pipeline.leaving(_tensors(pipeline, FIRST)), "float32-after"),
    ],
)
def test_what_a_search_found_is_exported_again_with_the_same_bytes(
    small: Path, tmp_path: Path, pick: Callable[[Pipeline], Pipeline], precision: str
) -> None:
    """Also beside a layer that was asked for, and with integers that were not decided anew."""
    options = _options(small, leave_float=(LAST,), method="minmax")
    found = verb.export_all(
        small / "small.keras",
        options,
        targets=["tflite", "onnx"],
        precisions=["int8"],
        out=tmp_path / "found",
        mix=Chosen(pick),
    )
    assert _record(found[0]).layers == {FIRST: precision, LAST: "float32"}
    path = _file(tmp_path, recipe.written(found[0], options))
    again = verb.export_all(
        small / "small.keras",
        recipe.load(path).applied(_options(small)),
        targets=["tflite", "onnx"],
        precisions=["int8"],
        out=tmp_path / "again",
    )
    assert [each.sha256 for each in again] == [each.sha256 for each in found]
    assert _record(again[0]).layers == _record(found[0]).layers
    assert _record(again[0]).floats.keys() == _record(found[0]).floats.keys()


@pytest.mark.slow
def test_the_recipe_of_a_budget_needs_no_search(small: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    pixels = random.integers(0, 256, (600, 12, 12, 3), dtype=np.uint8)
    (scores,) = keras.call(keras.load(small / "small.keras"), [pixels / np.float32(255)])
    np.savez(tmp_path / "valid.npz", x=pixels, y=mostly_right(np.asarray(scores), random))
    asked = _file(
        tmp_path,
        'schema_version = 1\n[budget]\nkind = "min"\nmetric = "sqnr"\nvalue = 45\n'
        'minimize = "size"\n',
        "asked.toml",
    )
    found, kept = tmp_path / "found", tmp_path / "kept.toml"
    more = ["--recipe", asked, "--validation", tmp_path / "valid.npz", "--write-recipe", kept]
    assert verb.main(_command(small, found, *more)) == 0
    record = _record(Artifact.load(found))
    assert record.budget is not None and record.budget.minimized == "size"
    assert record.budget.asked == "--min sqnr=45" and record.layers
    text = kept.read_text(encoding="utf-8")
    assert "# budget: --min sqnr=45 on valid.npz, least size" in text
    assert "# calibration: " in text and "[budget]" not in text
    again = tmp_path / "again"
    assert verb.main(_command(small, again, "--recipe", kept)) == 0
    assert Artifact.load(again).sha256 == Artifact.load(found).sha256
    assert _record(Artifact.load(again)).budget is None


def test_a_recipe_reads_what_it_writes(tmp_path: Path) -> None:
    whole = Recipe(
        about='quotes " and \\ and \x7f',
        device="arm64",
        method="mse",
        correction="none",
        strict=False,
        budget=RecipeBudget("max-drop", "top1", 0.5, "size"),
        layers={"a.b/c;d": "float32", "x*": "int8", "ü\t": "float32-after"},
    )
    assert recipe.load(_file(tmp_path, whole.dumps())).recipe == whole
    assert recipe.load(_file(tmp_path, Recipe().dumps())).recipe == Recipe()


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected schema_version = 1, the file has none; write that line at its top"),
        ("schema_version = 2\n", "expected schema_version = 1, the file has 2"),
        ("schema_version = true\n", "expected schema_version = 1, the file has True"),
        ("schema_version = 1\ndevise = 'cpu'\n", "unknown key 'devise'; did you mean 'device'?"),
        ("schema_version = 1\ndevice = 'arm46'\n", "got 'arm46'; did you mean 'arm64'?"),
        ("schema_version = 1\nmethod = 'mean'\n", "expected method "),
        ("schema_version = 1\ncorrection = 'some'\n", "expected one of ['auto', 'none']"),
        ("schema_version = 1\nstrict = 1\n", "strict: expected a bool, got 1"),
        ("schema_version = 1\ncalibration = 'python:own'\n", "unknown key 'calibration'"),
        ("schema_version = 1\n[layer]\n", "unknown key 'layer'; did you mean 'layers'?"),
        ("schema_version = 1\nlayers = 3\n", "layers: expected an object, got 3"),
        (
            "schema_version = 1\n[layers]\nconv2d = 'float'\n",
            "layer 'conv2d': expected float32, float32-after, int8, got 'float'; did you mean "
            "'float32'?",
        ),
        ("schema_version = 1\n[layers]\nconv2d = 16\n", "layer 'conv2d': expected float32"),
        (
            "schema_version = 1\n[layers]\nconv2d = 'int16'\n",
            "LiteRT's int16 kernels take tens of times as long",
        ),
        ("schema_version = 1\n[layers]\na.b = 'int8'\n", "put names with dots in quotes"),
        (
            "schema_version = 1\n[layers]\n'conv2d_33' = 'float32'\n",
            "expected a layer of the model, got 'conv2d_33'; the nearest are conv2d_3",
        ),
        ("schema_version = 1\n[layers]\n'block*' = 'float32'\n", "got 'block*'"),
        ("schema_version = 1\n[layers]\n'a' = 'int8'\n'a' = 'int8'\n", "is not valid TOML"),
        ("schema_version = 1\n[budget]\nkind = 'min'\n", "budget: missing key 'metric'"),
        (
            "schema_version = 1\n[budget]\nkind = 'min'\nmetric = 'sqmr'\nvalue = 3\n",
            "budget: --min: expected metric top1, agreement, sqnr, got 'sqmr'; did you mean",
        ),
        (
            "schema_version = 1\n[budget]\nkind = 'min'\nmetric = 'sqnr'\nvalue = nan\n",
            "expected a finite number, got nan",
        ),
        (
            "schema_version = 1\n[budget]\nkind = 'min'\nmetric = 'sqnr'\nvalue = 30\n",
            "expected --validation IMAGES for your own model",
        ),
        (
            "schema_version = 1\nstrict = true\n[layers]\nconv2d = 'float32'\n",
            "--strict lets no operator compute in float, and --recipe",
        ),
    ],
)
def test_what_is_no_recipe_is_one_line(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    out = tmp_path / "out"
    assert verb.main(_command(small, out, "--recipe", _file(tmp_path, text))) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("edgekit export: error: ") and said in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "own.tom"], "own.tom not found (did you mean "),
        (["--recipe", "."], "is a folder; expected a recipe of export"),
        (["--precision-of", "conv2d"], "expected LAYER=PRECISION as block1_project=float32"),
        (["--precision-of", "=int8"], "expected LAYER=PRECISION as block1_project=float32"),
        (["--precision-of", "conv2d=int4"], "expected float32, float32-after, int8, got 'int4'"),
        (["--precision-of", "conv2d=int16"], "take float32, or --precision int16x8"),
        (["--precision-of", "conv2d=float16"], "has a CPU kernel of float16"),
        (["--precision-of", "conv2=int8"], "--precision-of: expected a layer of the model"),
        (["--precision", "float32", "--write-recipe", "a.toml"], "--write-recipe is for int8"),
        (["--write-recipe", "own.toml"], "own.toml exists"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    _file(tmp_path, "schema_version = 1\n")
    command = _command(small, tmp_path / "out", *words)
    assert verb.main(command) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("edgekit export: error: ") and said in error
    assert not (tmp_path / "out").exists()


def test_int16x8_has_no_integers_to_keep(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="float32-after is for int8, got .* int16x8"):
        verb.export(
            small / "small.keras",
            _options(small, precision_of=((FIRST, "float32-after"),)),
            target="tflite",
            precision="int16x8",
            out=tmp_path / "out",
        )


def test_float_files_take_no_layers(small: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, f'schema_version = 1\n[layers]\n{FIRST} = "float32"\n')
    options = recipe.load(path).applied(verb.Options(preprocessing="unit"))
    with pytest.raises(InvalidOptionError, match=f"--recipe {path} is for int8; float32 has no"):
        verb.export(
            small / "small.keras",
            options,
            target="tflite",
            precision="float32",
            out=tmp_path / "out",
        )


@pytest.mark.slow
def test_a_typed_budget_wins_over_the_recipes(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _file(
        tmp_path,
        'schema_version = 1\n[budget]\nkind = "max-drop"\nmetric = "agreement"\nvalue = 2\n',
    )
    random = np.random.default_rng(5)
    np.savez(tmp_path / "x.npz", x=random.integers(0, 256, (60, 12, 12, 3), dtype=np.uint8))
    more = ["--recipe", path, "--min", "sqnr=20", "--minimize", "size"]
    out = tmp_path / "out"
    assert verb.main(_command(small, out, *more, "--validation", tmp_path / "x.npz")) == 0
    manifest = Artifact.load(out).manifest
    record = _record(Artifact.load(out)).budget
    assert record is not None and (record.asked, record.minimized) == ("--min sqnr=20", "size")
    assert manifest.recipe is not None
    assert manifest.recipe.overruled == (
        "--min sqnr=20 takes the place of the recipe's --max-drop agreement=2",
        "--minimize size takes the place of the recipe's time",
    )
    assert set(manifest.recipe.overruled) <= set(manifest.notes)
