"""An accuracy budget: the cheapest mixture of int8 and float tensors that holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import made_once, mostly_right
from exported import answers

from edgekit import export as verb
from edgekit import parity
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.base.progress import SILENT
from edgekit.evaluation.budget import Budget, Mixture
from edgekit.graph.flatbuffer import Graph
from edgekit.pipeline import exporting
from edgekit.pipeline.exporting import Pipeline
from edgekit.quantization import equalize, islands, mixture
from edgekit.records.artifact import Artifact, QuantizationRecord
from edgekit.records.encodings import Encoding
from edgekit.records.results import BudgetRecord
from edgekit.sources import keras

BOTH = [("tflite", "int8"), ("onnx", "int8")]


class Net:
    """``small.keras``, whose scores lie so near each other that int8 changes many predictions, and
    samples for it, sorted by how sure it is of them: the least sure ones first."""

    def __init__(self, small: Path, folder: Path) -> None:
        self.model, self.calibration = small / "small.keras", small / "set.npz"
        self.folder = folder
        with np.load(folder / "sorted.npz") as arrays:
            self.pixels, self.labels, self.scores = arrays["x"], arrays["y"], arrays["scores"]

    def options(self, **more: Any) -> verb.Options:
        return verb.Options(preprocessing="unit", calibration=str(self.calibration), **more)

    def validation(self, name: str, places: np.ndarray, *, labels: bool = True) -> str:
        """A file with these samples."""
        path = self.folder / f"{name}.npz"
        arrays = {"x": self.pixels[places]} | ({"y": self.labels[places]} if labels else {})
        np.savez(path, **arrays)
        return str(path)

    def pipeline(self) -> Pipeline:
        return exporting.opened(self.model, BOTH, self.options(), SILENT)


@pytest.fixture(scope="module")
def net(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Net:
    def make(folder: Path) -> None:
        random = np.random.default_rng(5)
        pixels = random.integers(0, 256, (600, 12, 12, 3), dtype=np.uint8)
        (scores,) = keras.call(keras.load(small / "small.keras"), [pixels / np.float32(255)])
        scores = np.asarray(scores)
        first, second = np.sort(scores, axis=1)[:, :-3:-1].T
        order = np.argsort(first - second)
        labels = mostly_right(scores, random)
        np.savez(folder / "sorted.npz", x=pixels[order], y=labels[order], scores=scores[order])

    return Net(small, made_once(tmp_path_factory, "budget", make))


@pytest.fixture(scope="module")
def held(net: Net, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Both files within 2 % of predictions that may change; plain int8 changes more."""
    written = verb.export_all(
        net.model,
        net.options(),
        targets=["tflite", "onnx"],
        precisions=["int8"],
        out=tmp_path_factory.mktemp("held"),
        mix=Mixture(Budget("max-drop", "agreement", 2.0), net.validation("all", np.arange(600))),
    )
    return {each.manifest.format: each for each in written}


def _records(written: Artifact) -> tuple[QuantizationRecord, BudgetRecord]:
    record = Artifact.load(written.path).manifest.quantization
    assert record is not None and record.budget is not None
    return record, record.budget


def test_the_budget_is_held_with_fewer_float_tensors_than_all(
    net: Net, held: dict[str, Artifact]
) -> None:
    every = len(net.pipeline().quantized.stored.activations)
    for each in held.values():
        record, budget = _records(each)
        assert (budget.metric, budget.least, budget.searched) == ("agreement", 98.0, 300)
        assert budget.candidates[0].floats == 0
        assert budget.candidates[0].value < 98.0 <= budget.taken.value
        assert 98.0 <= budget.taken.expected - budget.taken.error
        assert budget.taken in budget.candidates
        assert 0 < len(record.floats) == budget.taken.floats < every
        assert "chosen to hold --max-drop agreement=2" in record.floats.values()
        values = net.pixels.astype(np.float32) / np.float32(255)
        (name,) = (spec.name for spec in each.manifest.signature.inputs)
        (outputs,) = answers(each, {name: values}).values()
        same = outputs.argmax(axis=1) == net.scores.argmax(axis=1)
        if each.manifest.format == budget.target:
            assert budget.taken.value == pytest.approx(100 * same[::2].mean())
        assert budget.proof.count == 300
        assert budget.proof.value == pytest.approx(100 * same[1::2].mean())
        assert budget.proof.low is not None and budget.proof.low < budget.proof.value
        assert any("98.00 % at least" in note for note in each.manifest.notes)


@pytest.fixture(scope="module")
def small_file(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same budget, by the smallest TFLite file."""
    budget, validation = Budget("max-drop", "agreement", 2.0), net.validation("all", np.arange(600))
    return verb.export(
        net.model,
        net.options(),
        target="tflite",
        precision="int8",
        out=tmp_path_factory.mktemp("small") / "size",
        mix=Mixture(budget, validation, minimize="size"),
    )


def test_the_smallest_file_that_holds_is_taken(
    small_file: Artifact, held: dict[str, Artifact]
) -> None:
    _, budget = _records(small_file)
    holding = [each for each in budget.candidates if each.sure >= budget.least]
    assert budget.minimized == "size" and budget.float32 is not None
    assert budget.taken.bytes == min(each.bytes for each in holding) == small_file.size
    assert budget.candidates[0].bytes < budget.taken.bytes and budget.float32.bytes > 0
    assert all(each.ms > 0 for each in budget.candidates)
    _, by_time = _records(held["tflite"])
    assert by_time.minimized == "time" and by_time.target == "tflite"
    assert by_time.taken.bytes == held["tflite"].size
    assert budget.taken.bytes <= by_time.taken.bytes
    said = next(note for note in small_file.manifest.notes if note.startswith("tensors that stay"))
    assert f"for the least size; {small_file.size:,} bytes in tflite, plain int8" in said


def test_both_files_hold_the_same_integers(held: dict[str, Artifact]) -> None:
    found = parity.numbers(held["tflite"], held["onnx"])
    assert found.differences == () and found.compared > 0
    assert _records(held["tflite"])[0].floats == _records(held["onnx"])[0].floats


def test_what_is_decided_anew_is_what_leave_float_decides(
    net: Net, held: dict[str, Artifact], tmp_path: Path
) -> None:
    record, _ = _records(held["tflite"])
    named = verb.export(
        net.model,
        net.options(leave_float=tuple(record.floats)),
        target="tflite",
        precision="int8",
        out=tmp_path / "named",
    )
    anew = net.pipeline().deciding(record.floats).proved("tflite", "int8").files["model.tflite"]
    assert anew == named.model_path.read_bytes()


@pytest.mark.slow
def test_a_budget_that_the_other_half_misses_is_exit_status_1_and_nothing_is_written(
    net: Net, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The search gets the samples of which the float model is sure, the proof the others."""
    places = np.stack([np.arange(600)[::-1][:60], np.arange(60)], axis=1).reshape(-1)
    command = [
        net.model, "--preprocessing", "unit", "--target", "tflite,onnx", "--precision",
        "float32,int8", "--calibration", net.calibration, "--max-drop", "agreement=5",
        "--validation", net.validation("unlucky", places), "--out", tmp_path / "out",
    ]  # fmt: skip
    assert verb.main([str(each) for each in command]) == 1
    streams = capfd.readouterr()
    assert streams.out == ""
    error = streams.err.strip().splitlines()[-1]
    assert (
        "the budget is not held: --max-drop agreement=5: expected agreement 95.00 % at least"
        in error
    )
    assert "the tflite int8 file has" in error and "the onnx int8 file has" in error
    assert "on 60 validation samples that the search did not see" in error
    assert "give --validation more samples" in error
    assert "plain int8 holds the budget; nothing more stays float" in streams.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_plain_int8_that_holds_stays_as_it_is(net: Net, tmp_path: Path) -> None:
    written = {}
    for name, mix in (
        ("plain", None),
        ("held", Mixture(Budget("min", "sqnr", 20.0), str(net.calibration))),
    ):
        written[name] = verb.export(
            net.model,
            net.options(),
            target="tflite",
            precision="int8",
            out=tmp_path / name,
            mix=mix,
        )
    assert written["plain"].sha256 == written["held"].sha256
    record, budget = _records(written["held"])
    assert record.floats == {} and len(budget.candidates) == 1
    assert budget.proof.unit == "dB" and budget.proof.value >= 20


@pytest.mark.slow
def test_a_budget_in_decibels_needs_no_labels_and_no_classes(net: Net, tmp_path: Path) -> None:
    plain = net.pipeline().quantized
    written = verb.export(
        net.model,
        net.options(),
        target="onnx",
        precision="int8",
        out=tmp_path / "out",
        mix=Mixture(
            Budget("min", "sqnr", 45.0), net.validation("few", np.arange(60), labels=False)
        ),
    )
    record, budget = _records(written)
    assert budget.candidates[0].value < 45 <= budget.proof.value
    assert 0 < len(record.floats) < len(plain.stored.activations)
    assert budget.target == "onnx"


@pytest.mark.slow
def test_lost_points_of_top1_are_held(net: Net, tmp_path: Path) -> None:
    written = verb.export(
        net.model,
        net.options(),
        target="tflite",
        precision="int8",
        out=tmp_path / "out",
        mix=Mixture(Budget("max-drop", "top1", 1.0), net.validation("top1", np.arange(600))),
    )
    _, budget = _records(written)
    assert (budget.metric, budget.least) == ("top1_change", -1.0)
    assert budget.proof.unit == "points" and budget.proof.value >= -1


def test_a_budget_that_float_does_not_hold_is_refused_before_the_search(net: Net) -> None:
    mix = Mixture(Budget("min", "top1", 99.0), net.validation("right", np.arange(60)))
    refusal = "the float32 tflite file has .* on 30 validation samples already; allow more"
    with pytest.raises(InvalidOptionError, match=refusal):
        mix.choose(net.pipeline(), BOTH[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "count", "labels", "refusal"),
    [
        (
            Budget("max-drop", "agreement", 1.0),
            200,
            True,
            "expected 202 validation samples or more",
        ),
        (Budget("max-drop", "top1", 50.0), 39, True, "expected 40 validation samples or more"),
        (Budget("max-drop", "top1", 2.0), 120, False, "expected validation samples with labels"),
    ],
)
def test_samples_that_cannot_prove_are_refused(
    net: Net, budget: Budget, count: int, labels: bool, refusal: str
) -> None:
    name = f"{budget.metric}-{count}"
    mix = Mixture(budget, net.validation(name, np.arange(count), labels=labels))
    with pytest.raises(InvalidDataError, match=refusal):
        mix.choose(net.pipeline(), BOTH[:1])


@pytest.mark.slow
def test_labels_that_are_no_better_than_chance_are_refused(net: Net) -> None:
    path = net.folder / "chance.npz"
    labels = np.random.default_rng(1).integers(0, 5, 120)
    np.savez(path, x=net.pixels[:120], y=labels)
    mix = Mixture(Budget("max-drop", "top1", 2.0), str(path))
    with pytest.raises(InvalidDataError, match="no better than chance"):
        mix.choose(net.pipeline(), BOTH[:1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-drop", "agreemnt=1"], "expected metric top1, agreement, got 'agreemnt'; did you"),
        (["--max-drop", "sqnr=20"], "use --min sqnr=20"),
        (["--max-drop", "top1"], "expected METRIC=VALUE as top1=0.5, got 'top1'"),
        (["--max-drop", "top1=nan"], "expected METRIC=VALUE as top1=0.5, got 'top1=nan'"),
        (["--max-drop", "top1=0"], "expected a number above 0 and below 100, got 0"),
        (
            ["--max-drop", "top1=1", "--min", "sqnr=20"],
            "expected one budget, got --max-drop top1=1",
        ),
        (["--min", "latency=3"], "expected metric top1, agreement, sqnr, got 'latency'"),
        (["--max-drop", "top1=1"], "expected --validation IMAGES for your own model"),
        (["--validation", "set.npz"], "--validation set.npz is for a budget"),
        (["--minimize", "size"], "--minimize size is for a budget; add --max-drop or --min"),
        (["--min", "top1=9", "--minimize", "bytes"], "expected time, size, got 'bytes'"),
    ],
)
def test_what_is_no_budget_is_one_line(
    net: Net, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    command = [
        net.model, "--preprocessing", "unit", "--target", "tflite", "--precision", "int8",
        "--calibration", net.calibration, "--out", tmp_path / "out", *words,
    ]  # fmt: skip
    assert verb.main([str(each) for each in command]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("edgekit export: error: ") and said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "count", "labels", "said"),
    [
        (
            ["--min", "top1=99"],
            60,
            True,
            "--min top1=99: expected top1 99.00 with a standard error to spare, the float32 tflite "
            "file has ",
        ),
        (["--max-drop", "top1=2"], 120, False, "expected validation samples with labels, got "),
        (["--max-drop", "agreement=1"], 200, True, "expected 202 validation samples or more"),
        (["--min", "sqnr=30", "--leave-float", "conv2"], 60, True, "the nearest are conv2d"),
        (["--min", "sqnr=30", "--device", "cuda"], 60, True, "device cuda takes onnx in float32"),
    ],
)
def test_what_a_search_cannot_use_is_one_line(
    net: Net,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    count: int,
    labels: bool,
    said: str,
) -> None:
    path = net.validation(f"cannot-{count}-{labels}", np.arange(count), labels=labels)
    command = [
        net.model, "--preprocessing", "unit", "--target", "tflite", "--precision", "int8",
        "--calibration", net.calibration, "--out", tmp_path / "out", "--validation", path, *words,
    ]  # fmt: skip
    assert verb.main([str(each) for each in command]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("edgekit export: error: ") and said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "precision", "refusal"),
    [
        ({}, "float32", "is for int8, got no --precision int8"),
        ({"strict": True}, "int8", "--strict"),
    ],
)
def test_a_budget_that_nothing_can_be_chosen_for_is_refused(
    net: Net, tmp_path: Path, options: dict[str, Any], precision: str, refusal: str
) -> None:
    asked = net.options(**options)
    if precision == "float32":
        asked = replace(asked, calibration=None)
    with pytest.raises(InvalidOptionError, match=refusal):
        verb.export(
            net.model,
            asked,
            target="tflite",
            precision=precision,
            out=tmp_path / "out",
            mix=Mixture(Budget("max-drop", "top1", 1.0), "set.npz"),
        )


# The parts


def test_what_is_expected_of_others_is_what_they_show() -> None:
    """Scores of four classes with normal errors of a known size."""
    random = np.random.default_rng(0)
    every = random.normal(size=(40_000, 4)).astype(np.float32)
    errors = 0.1 * random.normal(size=every.shape).astype(np.float32)
    labels = np.where(random.random(len(every)) < 0.7, every.argmax(axis=1), 0)
    for budget in (
        Budget("max-drop", "agreement", 1.0),
        Budget("max-drop", "top1", 1.0),
        Budget("min", "top1", 50.0),
    ):
        whole = budget.of(every, every + errors, labels).value
        parts = [slice(start, start + 400) for start in range(0, len(every), 400)]
        counted, expected, said = zip(
            *(
                (budget.of(*part).value, *budget.expected(*part))
                for where in parts
                for part in [(every[where], every[where] + errors[where], labels[where])]
            ),
            strict=True,
        )
        assert abs(np.mean(expected) - whole) < 0.5
        assert np.mean(said) == pytest.approx(np.std(counted), rel=0.25)
        assert np.std(expected) <= np.std(counted)
        exact = budget.expected(every[:400], every[:400], labels[:400])
        assert exact[0] == pytest.approx(budget.of(every[:400], every[:400], labels[:400]).value)


def test_the_error_of_an_sqnr_is_how_much_it_differs_from_set_to_set() -> None:
    """Of samples whose errors differ in size by much, as those of networks do."""
    random = np.random.default_rng(0)
    exact = random.normal(size=(40_000, 10)).astype(np.float32)
    sizes = np.exp(0.5 * random.normal(size=(len(exact), 1)))
    outputs = (exact + 0.01 * sizes * random.normal(size=exact.shape)).astype(np.float32)
    budget = Budget("min", "sqnr", 30.0)
    parts = [slice(start, start + 400) for start in range(0, len(exact), 400)]
    values, errors = zip(
        *(budget.expected(exact[part], outputs[part], None) for part in parts), strict=True
    )
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)
    assert budget.expected(exact, exact, None) == (np.inf, 0.0)


def test_tensors_that_are_left_float_lose_their_integers_and_no_others_do(net: Net) -> None:
    pipeline = net.pipeline()
    plain, exact = pipeline.quantized, Graph(pipeline.canonical)
    layer = exact.layers[2]
    mixed = mixture.leave(plain, pipeline.canonical, {layer.output: "a test"})
    assert mixed.floats[layer.output] == "a test"
    assert layer.output not in mixed.stored.activations
    lost = plain.stored.layers.keys() - mixed.stored.layers.keys()
    assert lost == {
        each.output for each in exact.layers if layer.output in (each.input, each.output)
    }
    changed, equalized = (
        Graph(mixed.graph), equalize.apply(pipeline.canonical, plain.encodings.factors)
    )  # fmt: skip
    for each in exact.layers:
        right = equalized if each.output in lost else Graph(plain.graph)
        np.testing.assert_array_equal(changed.constant(each.weights), right.constant(each.weights))
    every = dict.fromkeys(plain.stored.activations, "all")
    none = mixture.leave(plain, pipeline.canonical, every)
    assert not none.stored.activations and not none.stored.layers and not none.stored.constants
    assert not none.encodings.tensors


def test_a_mixture_of_int8_changes_no_other_precision(net: Net) -> None:
    pipeline = net.pipeline()
    floats = {Graph(pipeline.canonical).layers[1].output: "a test"}
    for mixed in (pipeline.leaving(floats), pipeline.deciding(floats)):
        assert mixed.quantized.floats == floats
        assert mixed.integers("int16x8").floats == pipeline.integers("int16x8").floats == {}
    assert pipeline.quantized.floats == {}


def test_what_is_rounded_most_coarsely_and_costs_least_comes_first(net: Net) -> None:
    pipeline = net.pipeline()
    plain, canonical = pipeline.quantized, pipeline.canonical
    numbers = plain.stored.activations
    samples = pipeline.calibration.images
    search = islands.Search(
        equalize.apply(canonical, plain.encodings.factors), {}, pipeline.profile,
        pipeline.feed(samples, np.arange(32)), threads=1,
    )  # fmt: skip
    encodings = {name: Encoding("int8", (s,), z) for name, (s, z) in numbers.items()}
    noise = search.noise(encodings)
    assert noise.keys() == numbers.keys() and all(each >= 0 for each in noise.values())
    layer = Graph(canonical).layers[1].output
    coarse = {**encodings, layer: replace(encodings[layer], scale=(16 * numbers[layer][0],))}
    louder = search.noise(coarse)
    assert louder[layer] > 30 * noise[layer]

    def place(heard: dict[str, float], costs: dict[str, float]) -> int:
        ranked = mixture.ranking(plain, canonical, heard, mixture.Costs(costs))
        assert sorted(name for unit in ranked for name in unit) == sorted(numbers)
        return next(i for i, unit in enumerate(ranked) if layer in unit)

    same = {each.outputs[0]: 1.0 for each in Graph(canonical).operators}
    usual = place(noise, same)
    assert usual == place(noise, {}) > place(louder, same)
    assert place(noise, same | {layer: 1e3}) > usual


def test_what_has_no_weights_comes_first_where_bytes_cost(net: Net) -> None:
    pipeline = net.pipeline()
    plain, canonical = pipeline.quantized, pipeline.canonical
    noise = dict.fromkeys(plain.stored.activations, 1.0)
    weights = {
        name: float(each.weights.size) for name, each in plain.stored.layers.items()
    }  # of other operators none
    ranked = mixture.ranking(plain, canonical, noise, mixture.Costs(weights, converter=1.0))

    def grows(unit: tuple[str, ...]) -> float:
        touching = [each.outputs[0] for each in Graph(canonical).operators if each.touches(unit)]
        return sum(weights.get(name, 0.0) for name in touching)

    prices = [grows(unit) for unit in ranked]
    assert prices[0] == min(prices) < max(prices)
    numbers = mixture.Costs({}, conversion=2.0, converter=3.0)
    assert numbers.converted(10) == 23.0


def test_an_island_grows_where_only_conversions_cost(net: Net) -> None:
    pipeline = net.pipeline()
    plain, canonical = pipeline.quantized, pipeline.canonical
    noise = dict.fromkeys(plain.stored.activations, 1.0)
    first, second, *_ = mixture.ranking(plain, canonical, noise, mixture.Costs({}, 1e3))
    touching = [each for each in Graph(canonical).operators if each.touches(first)]
    assert any(each.touches(second) for each in touching)
