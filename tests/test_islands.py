"""What 8 bits cannot hold stays float, and an int8 file that is dead or poor is not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from exported import answers, decibels, export

from edgekit import export as verb
from edgekit import parity
from edgekit.base.errors import FidelityError
from edgekit.data.feeds import Inputs, make, take
from edgekit.graph.flatbuffer import Graph, Operator
from edgekit.pipeline.calibration import observe
from edgekit.quantization import islands, judge, quantize
from edgekit.quantization.profiles import PROFILES
from edgekit.quantization.table import CalibrationTable
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import Encoding
from edgekit.records.signature import preprocessing
from edgekit.sources import convert, float_model
from edgekit.sources.keras import tensorflow, tf_keras

NONE = preprocessing("none")
GENERIC = PROFILES["generic"]
COUNT = 60


class Case:
    """A float model that is saved, and samples for it."""

    def __init__(self, folder: Path, name: str, model: Any, arrays: dict[str, np.ndarray]) -> None:
        self.path, self.data = folder / f"{name}.keras", folder / f"{name}.npz"
        self.folder, self.name, self.arrays = folder, name, arrays
        model.save(self.path)
        np.savez(self.data, **arrays)
        whole = model(list(arrays.values()) if len(arrays) > 1 else next(iter(arrays.values())))
        self.exact = [np.asarray(each) for each in (whole if isinstance(whole, list) else [whole])]

    def options(self, out: str, **more: Any) -> dict[str, Any]:
        return {
            "precision": "int8",
            "preprocessing": "none",
            "calibration": str(self.data),
            "out": self.folder / f"{self.name}-{out}",
            **more,
        }

    def both(self) -> dict[str, Artifact]:
        """TFLite and ONNX, by target."""
        return {
            target: export(self.path, target=target, **self.options(target))
            for target in ("tflite", "onnx")
        }

    def outputs(self, written: Artifact) -> list[np.ndarray]:
        """In the model's order."""
        names = {spec.name: spec for spec in written.manifest.signature.inputs}
        given = (
            dict(zip(names, self.arrays.values(), strict=True)) if len(names) == 1 else self.arrays
        )
        return list(answers(written, given).values())

    def quantize(self, **options: Any) -> quantize.Quantized:
        """Decide, without writing."""
        canonical = convert.from_keras(tf_keras().models.load_model(self.path))
        samples = make("set", self.arrays)
        return decided(canonical, samples, **options)


def decided(canonical: bytes, samples: Inputs, **options: Any) -> quantize.Quantized:
    entries = Graph(canonical).named_inputs
    fitting = quantize.held_out(len(samples))[0]

    def table(content: bytes, fitting_only: bool) -> Any:
        some = take(samples, fitting) if fitting_only else samples
        return observe(content, some, prepare=NONE)

    feed = {entries[name]: values for name, values in samples.arrays.items()}
    given = quantize.CalibrationSamples.of(feed, table)
    return quantize.quantize(
        canonical,
        table(canonical, False),
        **{"profile": GENERIC, "samples": given, **options},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("islands")


@pytest.fixture(scope="module")
def detector(place: Path) -> Case:
    """Boxes of 0 to 640 and scores of 0 to 1 in one last concatenation."""
    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    head = {
        name: layers.Conv2D(
            size, 1, activation="sigmoid",
            kernel_initializer=keras.initializers.RandomNormal(0, 2.0, seed=size),
        )(x)
        for name, size in (("boxes", 4), ("scores", 3))
    }  # fmt: skip
    boxes, scores = layers.Rescaling(640.0)(head["boxes"]), head["scores"]
    flat = [layers.Reshape((64, size))(part) for part, size in ((boxes, 4), (scores, 3))]
    model = keras.Model(image, layers.Concatenate(name="found")(flat))
    images = np.random.default_rng(0).uniform(-1, 1, (COUNT, 8, 8, 3)).astype(np.float32)
    return Case(place, "detector", model, {"x": images})


@pytest.fixture(scope="module")
def tabular(place: Path) -> Case:
    """Columns of very different size, normalised inside of the model."""
    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    columns = [
        rng.normal(101325, 800, COUNT),
        rng.uniform(0, 1, COUNT),
        rng.normal(20, 8, COUNT),
        rng.exponential(1e-3, COUNT),
    ]
    rows = np.stack(columns, axis=1).astype(np.float32)
    normal = layers.Normalization()
    normal.adapt(rows)
    sensors = keras.Input((4,), name="sensors")
    x = layers.Dense(16, activation="relu")(normal(sensors))
    model = keras.Model(sensors, layers.Rescaling(900.0, 4000.0)(layers.Dense(1)(x)))
    return Case(place, "tabular", model, {"sensors": rows})


@pytest.fixture(scope="module")
def patches(place: Path) -> Case:
    """A layer normalization of patches, some of which hardly vary."""
    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6, 12), name="tokens")
    x = layers.Dense(16)(tokens)
    x = layers.Dense(16)(layers.LayerNormalization(epsilon=1e-6)(x))
    model = keras.Model(tokens, layers.Dense(5, name="logits")(layers.Flatten()(x)))
    rng = np.random.default_rng(0)
    sizes = 10 ** rng.uniform(-1.3, 0, (COUNT, 6, 1))
    values = (rng.normal(0, 1, (COUNT, 6, 12)) * sizes).astype(np.float32)
    return Case(place, "patches", model, {"tokens": values})


@pytest.fixture(scope="module")
def coarse(place: Path) -> Case:
    """A dense layer that only reads what its input's step nearly swallows."""
    keras = tf_keras()
    keras.utils.set_random_seed(0)
    rows = keras.Input((6,), name="rows")
    dense = keras.layers.Dense(2, name="small")
    model = keras.Model(rows, dense(rows))
    weights = np.zeros((6, 2), np.float32)
    weights[3:] = np.random.default_rng(1).normal(0, 1, (3, 2))
    dense.set_weights([weights, np.zeros(2, np.float32)])
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.uniform(-100, 100, (COUNT, 3)), rng.uniform(-1, 1, (COUNT, 3))], axis=1
    )
    return Case(place, "coarse", model, {"rows": values.astype(np.float32)})


def test_scores_beside_boxes_keep_a_scale_of_their_own(detector: Case) -> None:
    written = detector.both()
    for each in written.values():
        record = each.manifest.quantization
        assert record is not None
        assert [judged.level for judged in record.judged] == ["close"]
        (why,) = record.floats.values()
        assert "differ in size" in why
        assert any(note.startswith("stays float: ") for note in each.manifest.notes)
        (output,) = each.manifest.signature.outputs
        assert output.dtype == "float32"
        (found,) = detector.outputs(each)
        (exact,) = detector.exact
        for part in (np.s_[..., :4], np.s_[..., 4:]):
            varies = exact[part] - exact[part].mean(axis=0)
            assert decibels(varies, varies + found[part] - exact[part]) > 20
    same = parity.numbers(written["tflite"], written["onnx"])
    assert same.compared > 100 and same.differences == ()
    kinds = written["tflite"].manifest.execution
    assert kinds is not None
    assert kinds.kernels["CONCATENATION float32"] == 1
    assert kinds.floats == ("CONCATENATION PartitionedCall:0",)
    assert kinds.kernels["CONV_2D int8"] == 3


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_dead_scores_are_exit_status_1_and_nothing_is_written(
    detector: Case, target: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = detector.folder / f"dead-{target}"
    command = [
        detector.path, "--preprocessing", "none", "--target", target, "--precision", "int8",
        "--calibration", detector.data, "--strict", "--out", out,
    ]  # fmt: skip
    assert verb.main([str(each) for each in command]) == 1
    streams = capfd.readouterr()
    assert streams.out == ""
    error = streams.err.strip().splitlines()[-1]
    assert error.startswith("edgekit export: error: dead in the int8")
    assert "channels 4 to 6 of axis 2" in error
    assert "--allow-dead" in error
    assert not out.exists()


def test_dead_scores_are_written_where_that_is_allowed(detector: Case) -> None:
    written = export(
        detector.path, target="tflite", **detector.options("allowed", strict=True, allow_dead=True)
    )
    assert any("channels 4 to 6 of axis 2" in note for note in written.manifest.notes)
    record = written.manifest.quantization
    assert record is not None and record.judged[0].level == "dead"
    assert Artifact.load(written.path).manifest == written.manifest


def test_columns_of_different_size_stay_float_up_to_their_normalization(tabular: Case) -> None:
    written = tabular.both()
    for each in written.values():
        (spec,) = each.manifest.signature.inputs
        assert spec.dtype == "float32"
        record = each.manifest.quantization
        assert record is not None
        assert record.judged[0].level == "close"
        assert len(record.floats) == 2
        (found,) = tabular.outputs(each)
        varies = tabular.exact[0] - tabular.exact[0].mean()
        assert decibels(varies, varies + found - tabular.exact[0]) > 25
    assert parity.numbers(written["tflite"], written["onnx"]).differences == ()
    kernels = written["tflite"].manifest.execution
    assert kernels is not None and kernels.kernels["FULLY_CONNECTED int8"] == 2


def test_a_variance_stays_float(patches: Case) -> None:
    found = patches.quantize()
    trials = {trial.way: trial.sqnr for trial in found.trials}
    assert min(trials.values()) > 20
    graph = Graph(found.graph)
    inside = [each.kind for each in graph.operators if each.touches(found.floats)]
    assert "RSQRT" in inside and "FULLY_CONNECTED" not in inside
    assert len(inside) < len(graph.operators) / 2  # as small as can be
    written = patches.both()
    for each in written.values():
        assert each.manifest.quantization is not None
        assert each.manifest.quantization.judged[0].level == "close"
    assert parity.numbers(written["tflite"], written["onnx"]).differences == ()


def test_a_trial_that_becomes_nan_loses_and_is_named() -> None:
    """1 / sqrt of numbers so small beside others that they are rounded to 0."""
    keras, tf = tf_keras(), tensorflow()
    keras.utils.set_random_seed(0)
    image = keras.Input((16,), name="image")
    wide = keras.layers.Dense(8, kernel_initializer="ones")
    inverse = tf.math.rsqrt(wide(image))
    wide.set_weights([wide.get_weights()[0] * 10.0 ** -np.arange(8), np.zeros(8)])
    model = keras.Model(image, keras.layers.Dense(3)(inverse))
    values = np.random.default_rng(0).uniform(0.2, 1, (COUNT, 16)).astype(np.float32)
    found = decided(convert.from_keras(model), make("set", {"image": values}))
    trials = {trial.way: trial.sqnr for trial in found.trials}
    assert trials[quantize.NEAREST] == -np.inf
    assert any("became NaN, by which these lost: nearest rounding" in note for note in found.notes)
    assert np.isfinite(trials[found.way])


def test_a_layer_that_reads_less_than_a_step_stays_float(coarse: Case) -> None:
    written = coarse.both()
    for each in written.values():
        assert each.manifest.quantization is not None
        assert each.manifest.quantization.judged[0].level in ("exact", "close")
        assert each.manifest.quantization.floats


def test_a_poor_file_is_exit_status_1_unless_it_is_allowed(coarse: Case) -> None:
    whole = {"strict": True, "method": "minmax"}  # narrower ranges would help here
    with pytest.raises(FidelityError, match="is poor: .* left small .*--allow-poor") as caught:
        export(coarse.path, target="tflite", **coarse.options("poor", **whole))
    assert caught.value.status == 1
    assert "leave out --strict" in str(caught.value)
    assert not (coarse.folder / "coarse-poor").exists()
    written = export(coarse.path, target="onnx", **coarse.options("poor", allow_poor=True, **whole))
    assert any("is poor" in note for note in written.manifest.notes)
    document = json.loads((written.path / "manifest.json").read_text())
    assert 0 < document["quantization"]["judged"][0]["sqnr_centred"] < 10


def test_few_samples_judge_what_they_made_and_that_is_said(coarse: Case) -> None:
    np.savez(coarse.folder / "few.npz", rows=coarse.arrays["rows"][:8])
    few = {"calibration": str(coarse.folder / "few.npz")}
    written = export(coarse.path, target="tflite", **coarse.options("few", **few))
    notes = written.manifest.notes
    assert any("on 8 calibration samples" in note for note in notes)
    assert any("judged on the samples that the ranges come from" in note for note in notes)
    record = written.manifest.quantization
    assert record is not None and len(record.judged) == 1 and record.tried == {}
    assert record.floats  # the walk needs no judge
    with pytest.raises(FidelityError, match="poor: .* 8 calibration .* with 20 samples or more"):
        export(coarse.path, target="tflite", **coarse.options("poor-few", strict=True, **few))
    assert not (coarse.folder / "coarse-poor-few").exists()


@pytest.fixture(scope="module")
def joined(place: Path) -> Callable[[float], Case]:
    """Inputs of 1000 and of 1 that are concatenated before a dense layer."""

    def build(weight: float) -> Case:
        keras = tf_keras()
        layers = keras.layers
        keras.utils.set_random_seed(0)
        metres, share = keras.Input((12,), name="metres"), keras.Input((12,), name="share")
        both = layers.Concatenate(name="both")([metres, share])
        dense = layers.Dense(3, name="sums")
        model = keras.Model([metres, share], dense(both))
        weights = np.random.default_rng(2).normal(0, 1, (24, 3)).astype(np.float32)
        weights[12:] *= weight
        dense.set_weights([weights, np.zeros(3, np.float32)])
        rng = np.random.default_rng(0)
        arrays = {
            "metres": rng.uniform(-1000, 1000, (COUNT, 12)).astype(np.float32),
            "share": rng.uniform(0, 1, (COUNT, 12)).astype(np.float32),
        }
        return Case(place, f"joined{weight:.0f}", model, arrays)

    return build


def test_a_part_that_its_step_swallows_is_said(joined: Callable[[float], Case]) -> None:
    found = joined(1).quantize()
    assert not found.floats
    (note,) = [note for note in found.notes if "share a step" in note]
    assert "share" in note and "nearly nothing of it is left" in note


def test_a_part_that_its_step_swallows_stays_float_where_it_matters(
    joined: Callable[[float], Case],
) -> None:
    found = joined(1000).quantize()
    trials = {trial.way: trial.sqnr for trial in found.trials}
    assert found.floats and not [note for note in found.notes if "share a step" in note]
    assert trials[quantize.NEAREST] < 20 < trials[found.way]


def test_methods_are_judged_on_samples_that_no_number_came_from(coarse: Case) -> None:
    """A held-out sample that is out of all bounds widens the last range, and not the trials'."""
    canonical = convert.from_keras(tf_keras().models.load_model(coarse.path))
    rows = coarse.arrays["rows"].copy()
    rows[:, :3] = rows[:, 3:]  # all of one size
    plain = decided(canonical, make("set", {"rows": rows}))
    held = quantize.held_out(COUNT)[1]
    rows[held[0]] *= 50
    wide = decided(canonical, make("set", {"rows": rows}))
    entry = Graph(canonical).inputs[0]
    steps = [found.stored.activations[entry][0] for found in (plain, wide)]
    assert steps[1] > 20 * steps[0]  # ranges are from all samples in the end
    assert plain.trials[0].sqnr > 30
    assert wide.trials[0].sqnr < 5  # the sample was cut off while it judged


def test_joins_keep_scales_by_their_parts_sizes(detector: Case) -> None:
    canonical = convert.from_keras(tf_keras().models.load_model(detector.path))
    graph = Graph(canonical)
    samples = make("set", {graph.inputs[0]: detector.arrays["x"]})
    entries = {name: tensor for tensor, name in graph.named_inputs.items()}
    renamed = replace(samples, arrays={entries[n]: v for n, v in samples.arrays.items()})
    ranges = observe(canonical, renamed, prepare=NONE).ranges
    (name,) = islands.joins(graph, ranges)
    assert name == graph.outputs[0]
    (operator,) = [each for each in graph.operators if each.kind == "CONCATENATION"]
    small = {part: replace(ranges[part], min=0.0, max=1.0) for part in operator.inputs}
    assert islands.joins(graph, {**ranges, **small}) == {}


def test_an_island_of_many_branches_is_left_in_no_time() -> None:
    """Each block has two ways through it: 2 to the 60th of them."""
    makers = {}
    for i in range(60):
        for name, inputs in ((f"a{i + 1}", (f"a{i}",)), (f"b{i + 1}", (f"b{i}", f"a{i + 1}"))):
            makers[name] = Operator("ADD", (*inputs, f"b{i}"), (name,))
    floats = {name for name in makers if name not in ("a1", "b1")}
    assert set(islands._rounded_before("b60", floats, makers)) == {"a1", "b1"}


@pytest.mark.parametrize(("layers", "floats"), [(2, True), (6, False)])
def test_most_of_a_net_does_not_become_float(layers: int, floats: bool) -> None:
    """Whatever rounding costs: a file that computes in float is no int8 file."""
    keras = tf_keras()
    keras.utils.set_random_seed(2)
    given = keras.Input((16,), name="given")
    x = given
    for _ in range(layers):
        x = keras.layers.Dense(16, "relu")(x)
    canonical = convert.from_keras(keras.Model(given, x))
    values = np.random.default_rng(0).normal(0, 1, (60, 16)).astype(np.float32)
    samples = make("set", {"given": values})

    def observed(content: bytes, fitting: bool) -> CalibrationTable:
        return observe(content, samples, prepare=NONE)

    feed = {Graph(canonical).named_inputs["given"]: values}
    maker = quantize._Maker(
        canonical,
        observed(canonical, True),
        quantize.CalibrationSamples.of(feed, observed),
        profile=GENERIC,
        threads=1,
        advance=lambda name: None,
    )
    found, _ = maker.leave({}, 1e9)  # more than any operator keeps
    assert bool(found) == floats


def test_large_numbers_whose_sum_overflows_are_not_what_broke_a_model(tmp_path: Path) -> None:
    path = nets.write(
        tmp_path / "net.onnx",
        [
            ("Mul", ["x", "large"], "big"),
            ("Tanh", ["big"], "sign"),
            ("Abs", ["x"], "size"),
            ("Div", ["size", "size"], "share"),
            ("Add", ["sign", "share"], "y_float"),
        ],
        {"large": np.float32(3e38)},
        {"y": [16]},
        inputs=16,
    )
    source = float_model.load(path, preprocessing="none")
    content = source.converted().content
    x = np.resize(np.float32([1, -1]), (2, 16)) * np.float32([[1], [0.9]])
    found = judge.Judge(content, (), {"x": x}, GENERIC, threads=1).score(
        Graph(content), {}, {"size": Encoding("int8", (1.0,), 127)}
    )
    assert found.level == "dead" and found.broken == "share"  # 0 / 0, since 1 is cut off to 0
