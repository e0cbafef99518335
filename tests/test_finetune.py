"""Fine-tuning a trained model on a folder of pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import Done
from exported import export
from PIL import Image

from edgekit import data
from edgekit.base.errors import (
    EdgekitError,
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
)
from edgekit.pipeline.qat import outputs_of
from edgekit.records.artifact import Artifact
from edgekit.sources import keras as keras_format
from edgekit.train import train
from edgekit.training import recipes
from edgekit.training.finetune import FineTuner, start
from edgekit.training.inputs import InputOptions, Mode, in_colour, inputs
from edgekit.training.loop import fit
from edgekit.training.recipes import Preset, Recipe
from edgekit.training.run import _begun, _trainer
from edgekit.training.stream import StreamTrainer

SHORT = ("--batch", 4, "--epochs", 4, "--head-epochs", 2, "--size", 16)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("own") / "set", {"red": 15, "green": 10})


@pytest.fixture(scope="module")
def tuned(
    small: Path,
    photos: Path,
    tmp_path_factory: pytest.TempPathFactory,
    edgekit: Callable[..., Done],
) -> Path:
    """The small net of five classes on two classes of pictures, at another size."""
    out = tmp_path_factory.mktemp("tuned") / "mine"
    done = edgekit(
        "train", "--from", small / "small.keras", "--preprocessing", "unit",
        "--data", f"folder:{photos}", "--out", out, *SHORT,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    return out


def test_the_artifact_has_the_folders_classes_and_says_what_was_held_out(
    tuned: Path, photos: Path
) -> None:
    found = Artifact.load(tuned)
    record = found.manifest.training
    assert record is not None
    assert found.manifest.class_names == ("green", "red")
    assert found.manifest.signature.single_input().shape == (-1, 16, 16, 3)
    assert (record["from"], record["images"], record["validation_top1"]) == ("small", 20, 100.0)
    assert record["validation"]["images"] == 5
    held = data.load(f"csv:{tuned / 'validation.csv'}", "test", shape=(16, 16, 3))
    assert held.labels is not None
    assert np.bincount(held.labels).tolist() == [2, 3]
    log = [json.loads(line) for line in (tuned / "training.jsonl").read_text().splitlines()]
    assert len(log) == 6


def test_every_picture_is_in_one_of_two_lists(tuned: Path, photos: Path) -> None:
    """What it was trained on, to calibrate on, and what was held out, to compare on."""
    lists = {}
    for part in ("training", "validation"):
        with (tuned / f"{part}.csv").open(encoding="utf-8") as stream:
            lists[part] = {row["path"]: row["label"] for row in csv.DictReader(stream)}
    assert (len(lists["training"]), len(lists["validation"])) == (20, 5)
    assert not set(lists["training"]) & set(lists["validation"])
    everything = lists["training"] | lists["validation"]
    assert everything == {str(p.resolve()): p.parent.name for p in photos.rglob("*.jpg")}


def test_it_exports_to_int8_and_answers(tuned: Path, tmp_path: Path) -> None:
    made = export(
        tuned, target="tflite", precision="int8",
        calibration=f"csv:{tuned / 'training.csv'}", out=tmp_path / "int8",
    )  # fmt: skip
    assert made.manifest.calibration is not None and made.manifest.calibration.count == 20
    held = data.load(f"csv:{tuned / 'validation.csv'}", "test", shape=(16, 16, 3))
    values = made.manifest.preprocessing.apply(held.images)
    answers = outputs_of(made.model_path, "tflite", values)
    assert held.labels is not None
    assert answers.argmax(1).tolist() == held.labels.tolist()


def test_the_classifier_is_trained_first_alone(small: Path) -> None:
    keras_format.tf_keras().utils.set_random_seed(0)
    begun = start(small / "small.keras", size=None, preprocessing="unit")
    recipe = Recipe(batch=4, head_epochs=1, epochs=1, shift=0, erase=0, ema=0.0)
    random = np.random.default_rng(0)
    run = FineTuner(
        begun.build(3, dropout=0.2, seed=0), recipe, prepare=begun.prepare, towers=1,
        images=random.integers(0, 256, (8, 12, 12, 3), dtype=np.uint8),
        labels=random.integers(0, 3, 8),
    )  # fmt: skip
    head = {variable.ref() for variable in run.model.get_layer("logits").variables}
    rates = np.full(2, 0.1, np.float32)
    for phase in ("head", "all"):
        before = {variable.ref(): variable.numpy() for variable in run.variables}
        run.run_epoch_part(run.order(0), rates)
        changed = {ref for ref, value in before.items() if (ref.deref().numpy() != value).any()}
        if phase == "head":
            assert changed == head
        else:
            assert changed > head
            assert changed >= {v.ref() for v in run.trainable}


def test_a_model_keeps_its_answers_below_the_new_classifier(small: Path) -> None:
    begun = start(small / "small.keras", size=None, preprocessing="unit")
    made = begun.build(2, dropout=0.0, seed=0)
    x = np.random.default_rng(1).random((2, 12, 12, 3), np.float32)
    keras = keras_format.tf_keras()
    ours = keras.Model(made.input, made.get_layer("head_dropout").input)(x).numpy()
    given = begun.original.model
    assert np.allclose(ours, keras.Model(given.input, given.layers[-1].input)(x), atol=1e-6)


def test_rates_of_both_phases() -> None:
    recipe = Recipe(
        head_epochs=2, epochs=4, head_learning_rate=0.5, learning_rate=0.1, warmup_epochs=1
    )
    assert recipe.total_steps(10) == 60
    assert recipe.rate(0, 10) == 0.5
    assert recipe.rate(10, 10) == pytest.approx(0.25)
    assert recipe.rate(20, 10) == pytest.approx(0.01)
    assert recipe.rate(29, 10) == pytest.approx(0.1)
    assert recipe.rate(59, 10) < 0.002


@pytest.mark.slow
@pytest.mark.parametrize("input", ["memory", "stream"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    input: Mode, small: Path, photos: Path, tmp_path: Path
) -> None:
    """Stopped in the second phase, an epoch after its last checkpoint."""
    recipe = Recipe(batch=4, head_epochs=1, epochs=2, shift=0, erase=0, crop=0.5)
    begun = start(small / "small.keras", size=None, preprocessing="unit")
    wanted = InputOptions(recipe, begun.prepare, begun.shape, mode=input)

    def run(name: str, *, resume: bool = False, stop: bool = False) -> list[np.ndarray]:
        found = inputs(f"folder:{photos}", wanted)
        model = begun.build(2, dropout=0.0, seed=0)
        preset = Preset("fine", "", recipe=recipe)
        made = _trainer(
            found, model, preset, None, fine_tuned=True, prepare=begun.prepare, towers=1
        )
        assert isinstance(made, StreamTrainer) == (input == "stream")

        def watch() -> dict[str, float]:
            if stop and int(made.step.numpy()) == 3 * made.steps_per_epoch:
                raise KeyboardInterrupt
            return {}

        fit(made, tmp_path / name, None, resume, {}, watch)
        return made.averaged_weights()

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop=True)
    resumed = run("stopped", resume=True)
    assert all((a == b).all() for a, b in zip(whole, resumed, strict=True))


def test_bad_input(small: Path, photos: Path, tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    one = pictures.folder(tmp_path / "one", {"only": 3})
    done = edgekit(
        "train", "--from", small / "small.keras", "--preprocessing", "unit",
        "--data", f"folder:{one}", "--out", tmp_path / "m",
    )  # fmt: skip
    assert done.status == 2
    assert "expected at least 2 class folders with pictures, got only 'only'" in done.error
    assert not (tmp_path / "m").exists()
    begun = start(small / "small.keras", size=None, preprocessing="unit")
    wanted = InputOptions(Recipe(), begun.prepare, begun.shape, default=0.2)
    grey = tmp_path / "grey.npz"
    np.savez(grey, x=np.zeros((9, 12, 12, 1), np.uint8), y=np.arange(9) % 2)
    with pytest.raises(InvalidDataError, match=r"as the model's input, got \[12, 12, 1\]"):
        inputs(str(grey), wanted)
    with pytest.raises(InvalidOptionError, match="the model's input is 12 x 12; leave size out"):
        inputs(f"folder:{photos}#size=16", wanted)
    with pytest.raises(InvalidOptionError, match="0 <= validation < 1"):
        replace(wanted, validation=1.5)


def test_models_that_cannot_begin(small: Path, tmp_path: Path) -> None:
    keras = keras_format.tf_keras()
    image = keras.Input((8, 8, 3))
    flat = keras.layers.Dense(2)(keras.layers.Flatten()(image))
    keras.Model(image, flat).save(tmp_path / "flat.keras")
    with pytest.raises(InvalidModelError, match="do not fit images of 16 x 16"):
        start(tmp_path / "flat.keras", size=16, preprocessing="unit")
    assert start(tmp_path / "flat.keras", size=None, preprocessing="unit").shape == (8, 8, 3)
    keras.Model(image, keras.layers.Conv2D(2, 1)(image)).save(tmp_path / "map.keras")
    with pytest.raises(InvalidModelError, match="ends in a Dense layer"):
        start(tmp_path / "map.keras", size=None, preprocessing="unit")
    with pytest.raises(InvalidOptionError, match="head_epochs is for fine-tuning"):
        preset = recipes.load("finetune")
        _begun(preset, None, 16, None, None, bool)
    with pytest.raises(EdgekitError, match="not found"):
        start(tmp_path / "none.keras", size=None, preprocessing="unit")


@pytest.fixture(scope="module")
def hues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that have the same greys: where one is red, the other is green."""
    folder = tmp_path_factory.mktemp("hues")
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 0, 0)), ("green", (0, 102, 0))):
        (folder / name).mkdir()
        for i in range(20):
            pixels = random.integers(0, 30, (12, 12, 1)) + np.array(colour)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of grey pictures."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(0)
    keras.backend.reset_uids()
    layers = keras.layers
    image = keras.Input((12, 12, 1), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    path = tmp_path_factory.mktemp("grey") / "grey.keras"
    keras.Model(image, layers.Dense(3, activation="softmax")(x)).save(path)
    return path


@pytest.mark.slow
def test_a_grey_model_learns_colours_from_pictures_in_colour(
    grey: Path, hues: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    command = (
        "train", "--from", grey, "--preprocessing", "unit", "--data", f"folder:{hues}",
        "--batch", 8, "--epochs", 6, "--head-epochs", 1, "--learning-rate", 0.1,
    )  # fmt: skip
    done = edgekit(*command, "--out", tmp_path / "m")
    assert done.status == 0, done.stderr
    assert "takes grey pictures, these are in colour: the new model takes colours" in done.stderr
    assert "colours are left out" not in done.stderr
    written = Artifact.load(tmp_path / "m").manifest
    assert written.signature.single_input().shape == (-1, 12, 12, 3)
    assert written.training is not None and written.training["channels"] == 3
    assert written.training["validation_top1"] > 80
    kept = edgekit(*command, "--channels", 1, "--out", tmp_path / "g")
    assert kept.status == 0, kept.stderr
    assert "pictures are in colour; the model takes grey ones, their colours are left out" in (
        kept.stderr
    )
    found = Artifact.load(tmp_path / "g").manifest
    assert found.signature.single_input().shape == (-1, 12, 12, 1)


def test_it_begins_with_what_the_grey_model_makes_of_the_grey_picture(
    grey: Path, hues: Path
) -> None:
    begun = start(grey, size=None, preprocessing="unit", channels=3)
    assert begun.shape == (12, 12, 3)
    keras = keras_format.tf_keras()
    made = begun.build(2, dropout=0.0, seed=0)
    head = keras.Model(made.input, made.get_layer("head_dropout").input)
    given = begun.original.model
    own = keras.Model(given.input, given.layers[-1].input)
    colours = data.load(f"folder:{hues}", "test", shape=(12, 12, 3)).images
    greys = data.load(f"folder:{hues}", "test", shape=(12, 12, 1)).images
    expected = own(begun.prepare.apply(greys)).numpy()
    assert np.allclose(head(begun.prepare.apply(colours)), expected, atol=0.01 * np.ptp(expected))


def test_colours_that_a_model_cannot_take(small: Path, tmp_path: Path) -> None:
    keras = keras_format.tf_keras()
    image = keras.Input((12, 12, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.DepthwiseConv2D(3)(image))
    keras.Model(image, keras.layers.Dense(2)(x)).save(tmp_path / "apart.keras")
    with pytest.raises(InvalidModelError, match="cannot be made to take colours.*--channels 1"):
        start(tmp_path / "apart.keras", size=None, preprocessing="unit", channels=3)
    with pytest.raises(InvalidOptionError, match="takes 3 channels: expected --channels 3, got 1"):
        start(small / "small.keras", size=None, preprocessing="unit", channels=1)
    with pytest.raises(InvalidOptionError, match="channels is for fine-tuning"):
        train(out=tmp_path / "m", channels=3)


def test_greys_in_an_rgb_file_are_no_colours(tmp_path: Path, photos: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
    for name, count in (("a", 3), ("b", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            picture = Image.fromarray(np.roll(pixels, i)).convert("RGB" if i else "L")
            picture.save(tmp_path / name / f"{i}.jpg")
    assert not in_colour(f"folder:{tmp_path}")
    assert in_colour(f"folder:{photos}")
