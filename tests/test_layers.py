"""The layer diff names the layer in which a fault was planted."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from conftest import Done
from exported import export

from edgekit import compare, data
from edgekit.base import outputs, text
from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.data.feeds import Feed
from edgekit.diagnosis import measure
from edgekit.diagnosis.bisection import Bound, bisect
from edgekit.diagnosis.diff import diff
from edgekit.diagnosis.measure import ACCUMULATED, BLAME, ISOLATED, LayerRow
from edgekit.diagnosis.tensors import (
    KerasTensors,
    OnnxTensors,
    Tensors,
    TfLiteTensors,
    Values,
    activations,
)
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.pipeline.calibration import observe
from edgekit.quantization import equalize
from edgekit.records import encodings
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import Encodings
from edgekit.sources import keras
from edgekit.sources.float_model import SHIPPED


class Models:
    """The shipped model's files, its first test images, and the float reference."""

    def __init__(self, artifacts: dict[str, Path], count: int = 8) -> None:
        self.paths = artifacts
        self.float_tflite = (artifacts["tflite-float32"] / "model.tflite").read_bytes()
        self.int8_tflite = (artifacts["tflite-int8"] / "model.tflite").read_bytes()
        self.float_onnx = onnx.load(artifacts["onnx-float32"] / "model.onnx")
        self.int8_onnx = onnx.load(artifacts["onnx-int8"] / "model.onnx")
        self.factors = Encodings.load(artifacts["tflite-int8"] / encodings.FILE).factors
        self.graph = Graph(self.float_tflite)
        manifest = Artifact.load(artifacts["tflite-int8"]).manifest
        images = data.load("fashion_mnist", "test").head(count).images
        self.images = {self.graph.inputs[0]: manifest.preprocessing.apply(images)}
        self.reference = TfLiteTensors(self.float_tflite, self.graph, threads=1)
        self.equalized = equalize.apply(self.float_tflite, self.factors)
        self.sound = {
            True: measure.Sound(self.float_tflite, factors=self.factors),
            False: measure.Sound(self.float_tflite),
        }

    def values(self) -> Values:
        """The reference's values in the int8 files' units."""
        found = self.reference.run(self.images)
        return {
            name: values * np.float32(self.factors.get(name, 1)) for name, values in found.items()
        }

    def planted(self, kind: str, name: str, fault: str) -> Tensors:
        wide = None
        if fault == "relu6 dropped" and "int8" in kind:
            wide = faults.without_activation(self.equalized, name, self.values())
        if "tflite" in kind:
            content = self.int8_tflite if "int8" in kind else self.float_tflite
            changed = faults.in_tflite(content, name, fault, wide)
            return TfLiteTensors(changed, self.graph, threads=1)
        model = self.int8_onnx if "int8" in kind else self.float_onnx
        changed = faults.in_onnx(model, self.graph, name, fault, wide)
        return OnnxTensors(changed, self.graph, threads=1)

    def measure(
        self,
        suspect: Tensors,
        *,
        modes: tuple[str, ...] = (ISOLATED,),
        given: Feed | None = None,
    ) -> tuple[LayerRow, ...]:
        return measure.measure(
            self.reference,
            suspect,
            self.sound[bool(suspect.encodings)],
            self.images,
            self.images if given is None else given,
            modes=modes,
        )

    def ten(self, fault: str) -> list[str]:
        """Layers from the first to the last; with a ReLU6 where that is what goes wrong."""
        found = [
            layer.output
            for layer in self.graph.layers
            if fault != "relu6 dropped" or layer.activation == "relu6"
        ]
        return [found[i] for i in np.linspace(0, len(found) - 1, 10).astype(int)]


@pytest.fixture(scope="module")
def models(artifacts: dict[str, Path]) -> Models:
    return Models(artifacts)


def test_errors_by_hand() -> None:
    sums = measure.Sums(2)
    expected = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    sums.add(expected[:1], np.array([[3.0, 3.0]], np.float32))
    sums.add(expected[1:], np.array([[0.0, 2.0]], np.float32))
    found = sums.errors(0.5)
    assert found.sqnr == pytest.approx(10 * math.log10(25 / 5))
    assert found.cosine == pytest.approx((9 + 12) / math.sqrt(25 * (9 + 9 + 4)))
    assert found.largest == 2.0
    assert found.lsb == 4.0
    assert sums.errors(None).lsb is None
    np.testing.assert_array_equal(sums.noise, [0.0, 5.0])


def test_equal_tensors_have_no_error() -> None:
    sums = measure.Sums(1)
    sums.add(np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32))
    found = sums.errors(1.0)
    assert (found.sqnr, found.cosine, found.largest) == (math.inf, 1.0, 0.0)


def test_range_use_by_hand() -> None:
    seen = measure.Seen(1)
    # steps of 0.5 from -64 to 63.5; 70 is beyond, 63.7 is rounded to the last step
    seen.add(np.array([[0.0], [31.5], [70.0], [63.7]], np.float32), (0.5, 0))
    assert seen.clipped == 1
    assert seen.use((0.5, 0)) == pytest.approx(100 * 128 / 256)
    assert seen.use((1.0, 0)) == pytest.approx(100 * 71 / 256)


def test_tensors_are_aligned_by_name(models: Models) -> None:
    names = activations(models.graph)
    assert len(names) == 67
    model = keras.load(SHIPPED / "model.keras")
    sides: dict[str, Tensors] = {
        "tflite": TfLiteTensors(models.int8_tflite, models.graph, threads=1),
        "onnx": OnnxTensors(models.int8_onnx, models.graph, threads=1),
        "float onnx": OnnxTensors(models.float_onnx, models.graph, threads=1),
        "keras": KerasTensors(model, models.graph, models.images),
    }
    expected = models.reference.run(models.images)
    for kind, side in sides.items():
        assert side.names == names, kind
        found = side.run(models.images)
        for name in names:
            assert found[name].shape == expected[name].shape
            if kind in ("float onnx", "keras"):
                size = np.abs(expected[name]).max()
                np.testing.assert_allclose(found[name], expected[name], atol=1e-4 * size)
    own = sides["keras"].own
    layer = next(name for name in names if short_name(name).startswith("block3_project"))
    assert own[layer] == "block3_project_bn"
    # both int8 files hold the same encodings, and read them alike
    assert sides["tflite"].encodings == sides["onnx"].encodings
    np.testing.assert_array_equal(
        sides["tflite"].run(models.images)[names[1]], sides["onnx"].run(models.images)[names[1]]
    )


@pytest.mark.slow
def test_a_float16_file_has_the_names_of_the_float_graph(models: Models, tmp_path: Path) -> None:
    half = export(target="tflite", precision="float16", out=tmp_path / "half")
    found = diff(models.paths["tflite-float32"], half.path, images=4)
    assert len(found.rows) == 67
    assert all(row.name == row.own for row in found.rows)
    assert found.verdict is None
    assert min(row.isolated.sqnr for row in found.rows if row.isolated) > 50
    # another converter's names are told apart by the order of operators and by sizes
    graph = Graph(half.model_path.read_bytes())
    ends = {*graph.inputs, *graph.outputs}
    graph.rename({name: f"other/{name}" for name in graph.tensors if name not in ends})
    aligned = TfLiteTensors(graph.serialize(), Graph(models.float_tflite), threads=1)
    assert set(aligned.names) == {row.name for row in found.rows}
    assert aligned.own[found.rows[1].name] == f"other/{found.rows[1].name}"


@pytest.mark.parametrize("kind", ["tflite-int8", "onnx-int8", "onnx-float32"])
def test_no_layer_of_a_sound_file_is_to_blame(models: Models, kind: str) -> None:
    found = diff(models.paths["tflite-float32"], models.paths[kind], images=8)
    assert found.verdict is None
    assert max(row.excess for row in found.rows if row.excess is not None) < BLAME - 3
    assert len(found.rows) == found.tensors == 67


def test_equalized_again_is_the_same_graph(models: Models) -> None:
    images = data.load("fashion_mnist", "calibration").head(16)
    prepare = Artifact.load(SHIPPED).manifest.preprocessing
    table = observe(models.float_tflite, images, prepare=prepare)
    changed, found_factors = equalize.equalize(models.float_tflite, table.statistics)
    assert len(found_factors) > 10
    again = equalize.apply(models.float_tflite, found_factors)
    assert again.serialize() == changed
    name, factors = next(iter(found_factors.items()))
    expected = models.reference.run(models.images)[name] * np.float32(factors)
    (values,) = (
        found
        for tensor, found in TfLiteTensors(again, models.graph, threads=1)
        .run(models.images)
        .items()
        if tensor == name
    )
    inside = expected < 6
    np.testing.assert_allclose(values[inside], expected[inside], rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidModelError, match="no tensor between two layers"):
        equalize.apply(models.float_tflite, {models.graph.outputs[0]: (2.0,)})


@pytest.mark.parametrize("fault", faults.INT8)
@pytest.mark.parametrize("kind", ["tflite-int8", "onnx-int8"])
def test_a_planted_fault_is_named_in_each_of_ten_layers(
    models: Models, kind: str, fault: str
) -> None:
    _expect_named(models, kind, fault, models.ten(fault))


@pytest.mark.parametrize("fault", faults.FLOAT)
@pytest.mark.parametrize("kind", ["tflite-float32", "onnx-float32"])
def test_a_fault_in_a_float_file_is_named(models: Models, kind: str, fault: str) -> None:
    _expect_named(models, kind, fault, models.ten(fault)[::4])


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("tflite-int8", "output scale doubled"),
        ("onnx-int8", "output scale doubled"),
        ("onnx-int8", "written scale doubled"),
        ("onnx-int8", "read scale doubled"),
    ],
)
def test_a_wrong_output_scale_is_named(models: Models, kind: str, fault: str) -> None:
    _expect_named(models, kind, fault, models.ten(fault)[1::4])


def _expect_named(models: Models, kind: str, fault: str, names: list[str]) -> None:
    found = []
    for name in names:
        verdict = measure.blame(models.measure(models.planted(kind, name, fault)))
        found.append(None if verdict is None else verdict.tensor)
    assert found == names


def test_wrong_preprocessing_is_the_inputs_fault(models: Models) -> None:
    suspect = TfLiteTensors(models.int8_tflite, models.graph, threads=1)
    ((name, images),) = models.images.items()

    def given(changed: Any) -> Feed:
        return {name: changed}

    verdict = measure.blame(models.measure(suspect, given=given(images * 2 - 1)))
    assert verdict is not None
    assert verdict.layer == "input"
    # a channel order, a mean or a scale that is off by a little is found too
    verdict = measure.blame(models.measure(suspect, given=given(images * np.float32(255 / 256))))
    assert verdict is None  # less than a step
    verdict = measure.blame(models.measure(suspect, given=given(images * np.float32(0.9))))
    assert verdict is not None and verdict.layer == "input"


def test_alone_and_whole_differ_behind_the_fault(models: Models) -> None:
    names = [layer.output for layer in models.graph.layers]
    suspect = models.planted("tflite-int8", names[10], "weight scale doubled")
    rows = {row.name: row for row in models.measure(suspect, modes=(ACCUMULATED, ISOLATED))}
    before, guilty, behind = rows[names[9]], rows[names[10]], rows[names[11]]
    assert before.accumulated and before.accumulated.sqnr > 20
    assert guilty.isolated and guilty.isolated.sqnr < 6
    assert behind.accumulated and behind.accumulated.sqnr < 10
    assert behind.isolated and behind.isolated.sqnr > 30


def test_bisect_finds_a_planted_pair(models: Models) -> None:
    names = [layer.output for layer in models.graph.layers]
    content = models.int8_tflite
    for place in (5, 30):
        content = faults.in_tflite(content, names[place], "weight scale doubled")
    suspect = TfLiteTensors(content, models.graph, threads=1)
    found = bisect(
        models.reference,
        suspect,
        models.sound[True],
        models.images,
        models.images,
        Bound(25.0, "dB"),
        rows=models.measure(suspect),
    )
    assert found.tensors == (names[5], names[30])
    assert found.before < 15 and found.after >= 25
    assert found.actual == pytest.approx(found.before, abs=3)
    assert 67 < found.evaluations < 100


@pytest.mark.parametrize("kind", ["tflite-int8", "onnx-int8"])
def test_bisect_finds_one_layer_without_being_told(models: Models, kind: str) -> None:
    name = models.ten("relu6 dropped")[2]
    found = bisect(
        models.reference,
        models.planted(kind, name, "relu6 dropped"),
        models.sound[True],
        models.images,
        models.images,
        Bound(25.0, "dB"),
    )
    assert found.tensors == (name,)
    assert found.before < 25


def test_bisect_says_what_is_out_of_reach(models: Models) -> None:
    suspect = TfLiteTensors(models.int8_tflite, models.graph, threads=1)
    arguments: tuple[Any, ...] = (
        models.reference,
        suspect,
        models.sound[True],
        models.images,
        models.images,
    )
    far = bisect(*arguments, Bound(100.5, "%"))
    assert not far.reached and far.layers == ()
    near = bisect(*arguments, Bound(10.0, "dB"))
    assert near.reached and near.layers == () and near.evaluations == 1


def _with_manifest(artifact: Path, out: Path, change: Callable[[Any], None]) -> Path:
    shutil.copytree(artifact, out)
    manifest = json.loads((out / "manifest.json").read_text())
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def _planted(models: Models, out: Path) -> tuple[Path, str]:
    """An int8 TFLite artifact with a fault, and the name of its layer."""
    layer = models.graph.layers[20]
    content = faults.in_tflite(models.int8_tflite, layer.output, "channels swapped")
    path = _with_manifest(models.paths["tflite-int8"], out, lambda manifest: None)
    (path / "model.tflite").write_bytes(content)

    def change(manifest: Any) -> None:
        manifest["files"]["model.tflite"] = outputs.sha256_file(path / "model.tflite")

    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path, layer.short.split("/")[0]


@pytest.mark.slow
def test_the_command_names_the_layer_and_writes_its_files(
    models: Models, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    path, layer = _planted(models, tmp_path / "planted")
    files = {name: tmp_path / f"layers.{name}" for name in ("csv", "json", "png")}
    arguments = [SHIPPED, path, "--layers", "--images", 8, "--bound", 10, "--bisect", "25dB"]
    written = ["--csv", files["csv"], "--overlay", files["json"], "--plot", files["png"]]
    done = edgekit("compare", *arguments, *written)
    assert done.status == 1, done.stderr  # a layer is below the bound
    assert done.document["verdict"]["layer"] == layer
    assert f"to blame: {layer}: channel" in done.stderr
    assert f"first layer below 10 dB, isolated: {done.document['first_below']['isolated']}" in (
        done.stderr
    )
    assert done.document["bisection"]["layers"] == [layer]
    assert len(done.document["rows"]) == 67
    assert "the worst 12, --all shows the rest" in done.stderr
    rows = list(csv.DictReader(files["csv"].open(encoding="utf-8")))
    assert len(rows) == 67
    worst = max(rows, key=lambda row: float(row["excess_db"]))
    assert worst["layer"] == layer
    assert float(worst["isolated_max_error_lsb"]) > 10
    overlay = json.loads(files["json"].read_text())
    ((graph, body),) = overlay.items()
    assert graph == "main"
    graph_of_file = Graph((path / "model.tflite").read_bytes())
    assert set(body["results"]) == {
        name for operator in graph_of_file.operators for name in operator.outputs
    }
    assert body["results"][worst["own_tensor"]]["value"] == pytest.approx(
        float(worst["isolated_sqnr_db"]), abs=0.01
    )
    assert body["thresholds"][0]["value"] == 10
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    again = edgekit("compare", *arguments, *written)
    assert again.status == 2
    assert "exists already" in again.error


@pytest.mark.slow
def test_wrong_preprocessing_in_a_manifest_is_named(
    models: Models, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    def change(manifest: Any) -> None:
        manifest["preprocessing"] = {"name": "symmetric", "scale": [1 / 127.5], "offset": [-1.0]}

    path = _with_manifest(models.paths["onnx-int8"], tmp_path / "wrong", change)
    done = edgekit("compare", SHIPPED, path, "--layers", "--images", 4, "--all")
    assert done.status == 0
    assert done.document["verdict"]["layer"] == "input"
    assert "--all shows" not in done.stderr


@pytest.mark.slow
def test_a_net_with_branches_and_a_softmax_inside_a_layer(
    small: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    made = export(
        small / "small.keras",
        preprocessing="unit",
        target="onnx",
        precision="int8",
        calibration=str(small / "set.npz"),
        out=tmp_path / "small",
    ).path
    found = diff(small / "small.keras", made, dataset=str(small / "set.npz"), images=12, bound=20.0)
    assert [row.layer for row in found.rows][-2:] == ["dense", "output"]
    assert found.computed == ("dense",)
    assert found.verdict is None
    assert found.first_below == {ACCUMULATED: None, ISOLATED: None}
    assert all(row.excess is not None for row in found.rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tflite-float32", "tflite-int8", "onnx-int8", "--layers"], "takes two models"),
        (["tflite-float32", "--layers"], "takes two models"),
        (["tflite-float32", "tflite-int8", "--layers", "--mode", "alone"], "got 'alone'"),
        (["tflite-float32", "tflite-int8", "--bisect", "20dB"], "--bisect needs --layers"),
        (["tflite-float32", "tflite-int8", "--layers", "--bisect", "120%"], "expected SQNR"),
        (["tflite-float32", "tflite-int8", "--layers", "--bound", "nan"], "expected dB"),
        (["tflite-float32", "tflite-int8", "--layers", "--out", "x.json"], "does not go with"),
        (["tflite-float32", "tflite-int8", "--layers", "--parity"], "does not go with"),
        (["tflite-int8", "shipped", "--layers"], "cannot be run operator by operator"),
        (["small", "tflite-int8", "--layers"], "different float models"),
        (["tflite-int8", "small", "--layers"], "is no artifact"),
        (["tflite-float32", "nowhere", "--layers"], "not found"),
    ],
)
def test_bad_input_is_one_line(
    models: Models,
    small: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {**models.paths, "shipped": SHIPPED, "small": small / "small.keras"}
    status = compare.main([str(places.get(word, word)) for word in arguments])
    done = Done(status, *capsys.readouterr())
    assert done.status == 2
    assert message in done.error
    assert done.stdout == ""


@pytest.mark.slow
def test_a_model_trained_with_fake_quantization_is_held_against_its_own_weights(
    tmp_path: Path,
) -> None:
    trained = SHIPPED.with_name(f"{SHIPPED.name}-qat")
    made = export(trained, target="tflite", precision="int8", out=tmp_path / "made").path
    found = diff(trained, made, images=8)
    assert found.verdict is None and len(found.rows) == 67
    with pytest.raises(InvalidModelError, match="was not exported from"):
        diff(made, made, images=1, source=SHIPPED)
    same = diff(made, made, images=1, source=trained, modes=["accumulated"]).rows
    assert {row.accumulated.sqnr for row in same if row.accumulated} == {math.inf}


@pytest.mark.slow
def test_a_file_of_any_maker_is_a_suspect(small: Path, tmp_path: Path) -> None:
    written = export(
        small / "small.keras", target="tflite", precision="int8", preprocessing="unit",
        calibration=str(small / "set.npz"), correction="none", out=tmp_path / "int8",
    )  # fmt: skip
    file = tmp_path / "theirs.tflite"
    file.write_bytes(written.model_path.read_bytes())
    data = str(small / "set.npz")
    theirs = diff(small / "small.keras", file, dataset=data, preprocessing="unit")
    ours = diff(small / "small.keras", written.path, dataset=data)
    assert [row.name for row in theirs.rows] == [row.name for row in ours.rows]
    assert theirs.verdict is None
    with pytest.raises(InvalidOptionError, match="does not say how its input is made"):
        diff(small / "small.keras", file, dataset=data)
    with pytest.raises(InvalidOptionError, match="has its own preprocessing"):
        diff(small / "small.keras", written.path, dataset=data, preprocessing="unit")
    with pytest.raises(InvalidOptionError, match="expected --data IMAGES for your own model"):
        diff(small / "small.keras", written.path)


def test_long_names_lose_their_middle() -> None:
    assert text.shortened("block/expand/Conv2D", 40) == "block/expand/Conv2D"
    short = text.shortened("model/block_with_a_long_name/expand/Conv2D", 20)
    assert len(short) == 20 and short.startswith("model/blo") and short.endswith("d/Conv2D")
