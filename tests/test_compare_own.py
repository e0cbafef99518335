"""Comparisons of float models of other makers: any format, logits, numbers, any inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from conftest import mostly_right
from exported import export
from onnx import helper
from onnx import save as save_onnx

from edgekit.base.errors import (
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
    RecordingError,
)
from edgekit.benchmark import benchmark
from edgekit.compare import Options, compare
from edgekit.compare import main as compare_main
from edgekit.data import ImageSet, feeds
from edgekit.diagnosis.bisection import Bound, bisect
from edgekit.diagnosis.diff import diff
from edgekit.diagnosis.measure import Sound, blame, measure
from edgekit.diagnosis.tensors import OnnxTensors, Tensors, TfLiteTensors
from edgekit.evaluation import changes
from edgekit.evaluation.recording import Recording
from edgekit.evaluation.subjects import reference_of
from edgekit.gate import gate
from edgekit.gating.bounds import parse
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import FILE, Encodings
from edgekit.records.results import Report
from edgekit.records.signature import preprocessing
from edgekit.report import report as page
from edgekit.reporting.tables import show as print_report
from edgekit.runtimes.worker import Job, Worker
from edgekit.sources import float_model
from edgekit.sources import keras as keras_format

COUNT = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that ends in logits, as a SavedModel, .tflite and .onnx, and set.npz."""
    folder = tmp_path_factory.mktemp("logits")
    tf, keras = keras_format.tensorflow(), keras_format.tf_keras()
    keras.utils.set_random_seed(4)
    image = keras.Input((6, 6, 3), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu")(image)
    model = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    model.export(str(folder / "saved"))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "plain.tflite").write_bytes(converter.convert())
    written = export(
        folder / "saved", target="onnx", precision="float32", preprocessing="unit",
        out=folder / "made",
    )  # fmt: skip
    (folder / "plain.onnx").write_bytes(written.model_path.read_bytes())
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
    scores = np.asarray(keras_format.call(model, [pixels / np.float32(255)])[0])
    np.savez(folder / "set.npz", x=pixels, y=mostly_right(scores, random))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "runtime"),
    [("saved", "tflite", "tensorflow"), ("plain.tflite", "tflite", "litert"),
     ("plain.onnx", "onnx", "ort")],
)  # fmt: skip
def test_the_reference_runs_in_the_format_it_was_saved_in(
    place: Path, name: str, target: str, runtime: str, tmp_path: Path
) -> None:
    written = export(
        place / name, target=target, precision="int8", preprocessing="unit",
        calibration=str(place / "set.npz"), out=tmp_path / "int8",
    )  # fmt: skip
    data = str(place / "set.npz")
    found = compare([written.path], Options(dataset=data, rounds=1, processes=1))
    assert found.reference.runtime.name == runtime
    assert np.isinf(found.reference.metrics["sqnr"].value)
    (result,) = found.artifacts
    assert result.metrics["sqnr"].value > 20
    assert {"top1", "agreement", "mcnemar_p", "latency_p50"} <= set(result.metrics)
    assert "kl" not in result.metrics  # logits
    assert any("softmax: outputs are scores, no prob" in said for said in found.warnings)
    layers = diff(place / name, written.path, dataset=data, bisect_bound=Bound(90.0, "%"))
    assert layers.through_lite and layers.verdict is None and layers.bisection is not None
    shown = [row.layer for row in layers.rows]
    assert shown[0] == "input" and len(shown) > 3
    if name != "plain.onnx":
        assert shown[-1] == "output"
    asked = {"saved_model-source": "any"}
    if name == "saved":
        with pytest.raises(InvalidOptionError, match="is a SavedModel folder, .* evaluated here"):
            compare(
                [written.path], Options(dataset=data, cluster="tcp://127.0.0.1:1", resources=asked)
            )


def _several(keras: Any) -> Any:
    """Picture and words in, a map and a number out; none of it a class."""
    layers = keras.layers
    keras.utils.set_random_seed(4)
    picture = keras.Input((6, 6, 3), name="picture")
    words = keras.Input((4,), name="words", dtype="int32")
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(picture)
    image = layers.Conv2D(2, 3, name="map", padding="same")(x)
    meant = layers.GlobalAveragePooling1D()(layers.Embedding(9, 3)(words))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), meant])
    price = layers.Dense(1, name="price")(layers.Lambda(lambda v: v * 2, name="twice")(x))
    return keras.Model({"words": words, "picture": picture}, [price, image])


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The net, set.npz with an array an input, int8 artifacts of it, and their report."""
    folder = tmp_path_factory.mktemp("several")
    _several(keras_format.tf_keras()).save(folder / "net.keras")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
    np.savez(folder / "set.npz", picture=pixels, words=random.integers(0, 9, (COUNT, 4), np.int32))
    for target in ("tflite", "onnx"):
        export(
            folder / "net.keras", target=target, precision="int8", preprocessing="unit",
            calibration=str(folder / "set.npz"), trust=True, out=folder / target,
        )  # fmt: skip
    data = str(folder / "set.npz")
    unasked = reference_of([Artifact.load(folder / "onnx")], None, 1)
    assert unasked.job is not None and not unasked.job.trust
    made = compare(
        [folder / "tflite", folder / "onnx"],
        Options(
            dataset=data,
            rounds=1,
            shard=10,
            processes=1,
            trust=True,
            record=folder / "base.rec",
        ),
    )
    return folder, made


def test_numbers_of_several_outputs_are_held_against_the_reference(
    several: tuple[Path, Report],
) -> None:
    folder, report = several
    model = keras_format.load(folder / "net.keras", trust=True)
    with np.load(folder / "set.npz") as data:
        values = [data["picture"] / np.float32(255), data["words"]]
    price, image = (np.asarray(v) for v in keras_format.call(model, values))
    assert report.data.count == COUNT
    assert not {"top1", "agreement", "mcnemar_p", "images_needed", "kl"} & set(
        report.artifacts[0].metrics
    )
    assert not report.reference.correct
    for result in report.artifacts:
        metrics = {name: metric.value for name, metric in result.metrics.items()}
        assert metrics["sqnr"] > 25 and metrics["sqnr:map"] > 25 and metrics["sqnr:price"] > 20
        assert np.isinf(report.reference.metrics["sqnr:map"].value)
        power = (price**2).sum() + (image**2).sum()
        noise = metrics["mse"] * COUNT * (1 + image[0].size)
        assert metrics["sqnr"] == pytest.approx(10 * np.log10(power / noise), abs=0.01)
        assert metrics["max_error"] ** 2 >= metrics["mse"]
        assert "latency_p50" in metrics


def test_one_output_can_be_bounded(several: tuple[Path, Report]) -> None:
    report = several[1]
    price = report.artifacts[0].metrics["sqnr:price"].value
    asked = [parse("min", "sqnr:map=25"), parse("min", f"tflite:sqnr:price={price + 1}")]
    checks = [check for check in gate(report, bounds=asked) if check.kind != "dead"]
    verdicts = {(c.artifact, c.metric): c.verdict for c in checks}
    assert verdicts == {
        ("tflite", "sqnr:map"): "PASS",
        ("onnx", "sqnr:map"): "PASS",
        ("tflite", "sqnr:price"): "FAIL",
    }
    alive, missing, *_ = gate(report, bounds=[parse("min", "sqnr:colour=25")])
    assert (alive.metric, alive.verdict, missing.verdict) == ("fidelity", "PASS", "FAIL")
    assert "missing from the report; it has sqnr:" in missing.reason


def test_the_page_of_numbers(several: tuple[Path, Report]) -> None:
    report = at(several[1], 25.0, 25.0)
    text = page(report)
    assert "All 2 deployables are close to the float model" in text
    assert text.count("close outputs") >= 4  # a badge and a cell of each
    assert "SQNR against latency" in text and "signal to error (SQNR of what varies), dB" in text
    assert "ms a sample" in text and "an image" not in text
    assert "SQNR price" in text and "Farthest off" in text
    assert "% top-1" not in text and "top-1 change" not in text
    assert "Output by output" in text
    far, poor = (at(report, value) for value in (19.5, 9.5))
    assert "1 of 2 deployables differs clearly from the float model: tflite" in page(far)
    assert "1 of 2 deployables is a poor copy of the float model: tflite" in page(poor)
    unknown = replace(
        report,
        artifacts=tuple(replace(each, metrics={}, fidelity=()) for each in report.artifacts),
    )
    assert "No proof for 2 of 2 deployables" in page(unknown)


def at(report: Report, *values: float) -> Report:
    """The report with another SQNR of what varies of its first artifacts, in dB."""
    changed = []
    for result, value in zip(report.artifacts, values, strict=False):
        found = replace(result.metrics["sqnr_centred"], value=value)
        metrics = {**result.metrics, "sqnr_centred": found}
        judged = tuple(replace(each, sqnr_centred=value) for each in result.fidelity)
        changed.append(replace(result, metrics=metrics, fidelity=judged))
    return replace(report, artifacts=(*changed, *report.artifacts[len(changed) :]))


def test_the_gate_of_numbers(several: tuple[Path, Report]) -> None:
    report = several[1]
    checks = gate(report, baseline=report)
    assert [(c.metric, c.rule, c.verdict) for c in checks] == 2 * [
        ("fidelity", "no dead channel", "PASS"),
        ("sqnr_centred", "max-drop 3 dB", "PASS"),
    ]
    was = report.artifacts[0].metrics["sqnr_centred"].value
    assert gate(at(report, was - 2.9), baseline=report)[1].verdict == "PASS"
    assert gate(at(report, was - 3.1), baseline=report)[1].verdict == "FAIL"
    exact = at(report, np.inf)
    assert gate(at(report, 130.0), baseline=exact)[1].verdict == "PASS"
    assert gate(at(report, 90.0), baseline=exact)[1].verdict == "FAIL"
    own = gate(report, baseline=report, bounds=[parse("max-rise", "mse=1 %")])
    assert {c.metric for c in own} == {"fidelity", "sqnr_centred", "mse"}

    def only(*names: str) -> Report:
        return replace(
            report,
            artifacts=tuple(
                replace(r, metrics={name: r.metrics[name] for name in names}, fidelity=())
                for r in report.artifacts
            ),
        )

    old = only("sqnr")  # a report of before
    assert [c.rule for c in gate(old, baseline=old)] == 2 * ["max-drop 3 dB"]
    with pytest.raises(
        InvalidOptionError, match="neither top1, r2, map, miou nor sqnr.*pass a bound"
    ):
        gate(report, baseline=only())
    assert gate(only(), baseline=report)[0].verdict == "FAIL"


def test_what_does_not_go_with_an_array_an_input(
    several: tuple[Path, Report], tmp_path: Path
) -> None:
    folder, _ = several
    data = str(folder / "set.npz")
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 6, 6, 3), np.uint8))
    with pytest.raises(InvalidDataError, match="array for each input, .*; got images only"):
        compare([folder / "onnx"], Options(dataset=str(tmp_path / "x.npz")))
    with pytest.raises(InvalidOptionError, match="--power and --bound are of accuracy"):
        compare([folder / "onnx"], Options(dataset=data, bound=1.0))
    with pytest.raises(InvalidOptionError, match="--parity compares classes"):
        compare([folder / "onnx", folder / "tflite"], Options(dataset=data, parity=True))


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_layer_of_a_net_of_several_inputs_is_to_blame(
    several: tuple[Path, Report], target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = several[0]
    call = [str(folder / "net.keras"), str(folder / target), "--data", str(folder / "set.npz")]
    assert compare_main([*call, "--layers", "--all", "--trust", "--bisect", "20dB"]) == 0
    stdout, said = capsys.readouterr()
    found = json.loads(stdout)
    assert [row["layer"] for row in found["rows"]].count("picture") == 1
    names = {row["layer"] for row in found["rows"]}
    assert {"price", "map"} < names and any(name.startswith("embedding") for name in names)
    assert "words" not in {row["layer"] for row in found["rows"]}  # tokens have no error
    assert found["verdict"] is None and "to blame: none" in said
    assert found["bisection"]["reached"] and found["bisection"]["actual"] > 20
    assert compare_main([*call, "--layers", "--trust", "--bisect", "99%"]) == 2
    assert "expected one output of real numbers, got 2 of 2" in capsys.readouterr().err

    canonical = float_model.graph_of(folder / "net.keras", trust=True)[0]
    graph = Graph(canonical)
    with np.load(folder / "set.npz") as arrays:
        values = {"picture": arrays["picture"] / np.float32(255), "words": arrays["words"]}
    fed = {graph.named_inputs[name]: array[:8] for name, array in values.items()}
    content = (folder / "tflite" / "model.tflite").read_bytes()
    sound = Sound(canonical, factors=Encodings.load(folder / "tflite" / FILE).factors)
    for layer in [layer for layer in graph.layers if layer.bias]:
        changed = faults.in_tflite(content, layer.output, "weight scale doubled")
        suspect: Tensors = TfLiteTensors(changed, graph, threads=1)
        if target == "onnx":
            file = onnx.load(folder / "onnx" / "model.onnx")
            changed = faults.in_onnx(file, graph, layer.output, "weight scale doubled")
            suspect = OnnxTensors(changed, graph, threads=1)
        right = TfLiteTensors(canonical, graph, threads=1)
        rows = measure(right, suspect, sound, fed, fed, modes=("isolated",))
        verdict = blame(rows)
        assert verdict is not None and verdict.tensor == layer.output
        best = bisect(right, suspect, sound, fed, fed, Bound(25.0, "dB"), rows=rows)
        assert layer.output in best.tensors or best.before >= 25


def test_tokens_go_through_a_net_of_many_operators_a_layer(tmp_path: Path) -> None:
    """A GRU: one Keras layer, and time before the batch. A norm: means over all of a sample."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(2)
    words = keras.Input((3,), name="words", dtype="int32")
    x = keras.layers.GRU(4, unroll=True, reset_after=False)(keras.layers.Embedding(9, 4)(words))
    x = keras.layers.Dense(2)(keras.layers.LayerNormalization()(x))
    keras.Model(words, x).save(tmp_path / "net.keras")
    data = str(tmp_path / "set.npz")
    np.savez(data, words=np.random.default_rng(0).integers(0, 9, (6, 3), np.int32))
    written = export(
        tmp_path / "net.keras", target="onnx", precision="float32", preprocessing="none",
        out=tmp_path / "onnx",
    )  # fmt: skip
    found = diff(tmp_path / "net.keras", written.path, dataset=data)
    assert len(found.rows) > 40 and len(found.computed) > 30 and found.verdict is None
    assert {row.kind for row in found.rows if row.isolated is None} == set()


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_what_a_relu_cuts_off_is_no_error(target: str, tmp_path: Path) -> None:
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(2)
    image = keras.Input((6, 6, 3), name="image")
    x = keras.layers.Conv2DTranspose(8, 3, strides=2, name="up")(image)
    x = keras.layers.Conv2D(4, 3, name="down")(keras.layers.ReLU()(x))
    keras.Model(image, x).save(tmp_path / "net.keras")
    data = str(tmp_path / "set.npz")
    np.savez(data, x=np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), np.uint8))
    written = export(
        tmp_path / "net.keras", target=target, precision="int8", preprocessing="unit",
        calibration=data, correction="none", out=tmp_path / target,
    )  # fmt: skip
    found = diff(tmp_path / "net.keras", written.path, dataset=data)
    assert {"CONV_2D", "TRANSPOSE_CONV"} <= {row.kind for row in found.rows}
    assert found.verdict is None


def test_a_recording_of_several_inputs_and_outputs(several: tuple[Path, Report]) -> None:
    folder, before = several
    path, data = folder / "base.rec", str(folder / "set.npz")
    after = compare([folder / "onnx"], Options(dataset=data, rounds=1, processes=1, reference=path))
    assert after.reference.name == "keras-float32 (recorded)"
    assert after.data == before.data and after.data.unit == "samples"
    assert after.reference.latency_ms == before.reference.latency_ms
    for name, metric in before.artifacts[1].metrics.items():
        if "latency" not in name and name not in ("load_time", "peak_memory", "energy"):
            assert after.artifacts[0].metrics[name] == metric, name

    found = Recording.load(path)
    assert found.facts.outputs == {"map": 72, "price": 1}
    turned = found.with_outputs(["price", "map"])
    np.testing.assert_array_equal(turned.outputs[:, :1], found.outputs[:, 72:])
    np.testing.assert_array_equal(turned.with_outputs(["map", "price"]).outputs, found.outputs)

    manifest = Artifact.load(folder / "onnx").manifest
    with np.load(data) as file:
        arrays = dict(file)
    records = feeds.records(arrays)
    images = ImageSet("set.npz", records, None, (), found.facts.data.sha256)
    fits: dict[str, Any] = {
        "source_sha256": found.facts.source_sha256,
        "images": images,
        "preprocessing": manifest.preprocessing,
        "inputs": manifest.signature.inputs,
        "outputs": {"price": 1, "map": -1},
    }
    found.check(path, **fits)
    wider = feeds.records({name: array.astype(np.int64) for name, array in arrays.items()
                           if name == "words"} | {"picture": arrays["picture"]})  # fmt: skip
    found.check(path, **{**fits, "images": replace(images, images=wider)})  # the same tensors
    arrays["words"][1, 2] ^= 1
    other = replace(images, images=feeds.records(arrays))
    few = replace(images, images=records[:5], sha256="0" * 64)
    for change, message in (
        ({"outputs": {"price": 1}}, r"another set of outputs \(map of 72, price of 1, here price"),
        ({"outputs": {"price": 2, "map": 72}}, "here price of 2, map of 72"),
        ({"images": other}, "another preprocessed tensors"),
        (
            {"images": few},
            r"another data set .*, another number of samples \(24, here 5",
        ),
        ({"preprocessing": preprocessing("none")}, "another preprocessing"),
    ):
        with pytest.raises(RecordingError, match=message):
            found.check(path, **{**fits, **change})


def test_benchmark_feeds_every_input(several: tuple[Path, Report]) -> None:
    found = benchmark(Artifact.load(several[0] / "onnx"), seconds=0.05)
    assert found.metrics["latency_p50"].value > 0
    assert sum(operator.count for operator in found.operators) > 0


def test_the_printed_table_shows_what_is_there(
    several: tuple[Path, Report], capfd: pytest.CaptureFixture[str]
) -> None:
    print_report(several[1])
    said = capfd.readouterr().err
    assert "largest error" in said and "top-1" not in said and "images_needed" not in said
    assert max(map(len, said.splitlines()[:6])) <= 80
    assert "a loss of" not in said


def test_scores_become_probabilities_beside_pictures() -> None:
    base, answers = np.array([[2, 0], [0, 1]], np.float32), np.array([[0, 1], [0, 1]], np.float32)
    choices = base.argmax(axis=1), answers.argmax(axis=1)
    (image,) = changes.find(
        base, answers, choices, np.array([0, 1]), np.zeros((2, 1, 1, 1), np.uint8), 5
    ).images
    assert image.index == 0
    assert image.before_probability == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)
    assert image.now_probability == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-4)


def test_an_answer_is_asked_of_every_output_and_sample(tmp_path: Path) -> None:
    node = helper.make_node("ReduceMax", ["x"], ["all"], keepdims=0)
    ends = [
        [helper.make_tensor_value_info(name, 1, shape)]
        for name, shape in (("x", [4, 2]), ("all", []))
    ]
    graph = helper.make_graph([node], "net", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save_onnx(model, tmp_path / "net.onnx")
    job = Job("net", tmp_path / "net.onnx", "onnx", preprocessing("none"), 1, {})
    images = np.zeros((4, 2), np.float32)
    with Worker(job) as worker, pytest.raises(InvalidModelError, match="give the output a batch"):
        worker.outputs(images)
    named = replace(job, outputs=("all", "other"))
    with Worker(named) as worker, pytest.raises(InvalidModelError, match="outputs all, other, got"):
        worker.outputs(images)
