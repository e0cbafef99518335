"""Fine-tuning a trained model on a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import Done

from edgekit import data
from edgekit.artifact import Artifact
from edgekit.errors import (
    EdgekitError,
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
)
from edgekit.export import export
from edgekit.formats import keras as keras_format
from edgekit.qat import answers_of
from edgekit.recipes import Recipe
from edgekit.train import _trainer
from edgekit.training.finetune import FineTuner, start
from edgekit.training.inputs import Mode, Wanted, inputs
from edgekit.training.loop import fit
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


def test_it_exports_to_int8_and_answers(tuned: Path, photos: Path, tmp_path: Path) -> None:
    made = export(
        tuned, target="tflite", precision="int8", calibration=f"folder:{photos}",
        out=tmp_path / "int8",
    )  # fmt: skip
    held = data.load(f"csv:{tuned / 'validation.csv'}", "test", shape=(16, 16, 3))
    values = made.manifest.preprocessing.apply(held.images)
    answers = answers_of(made.model_path, "tflite", values)
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
    given = begun.given.model
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


@pytest.mark.parametrize("input", ["memory", "stream"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    input: Mode, small: Path, photos: Path, tmp_path: Path
) -> None:
    """Stopped in the second phase, an epoch after its last checkpoint."""
    recipe = Recipe(batch=4, head_epochs=1, epochs=2, shift=0, erase=0, crop=0.5)
    begun = start(small / "small.keras", size=None, preprocessing="unit")
    wanted = Wanted(recipe, begun.prepare, begun.shape, mode=input)

    def run(name: str, *, resume: bool = False, stop: bool = False) -> list[np.ndarray]:
        found = inputs(f"folder:{photos}", wanted)
        model = begun.build(2, dropout=0.0, seed=0)
        made = _trainer(found, model, recipe, fine_tuned=True, prepare=begun.prepare, towers=1)
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
    wanted = Wanted(Recipe(), begun.prepare, begun.shape, default=0.2)
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
        from edgekit import recipes, train

        preset = recipes.load("finetune")
        train._begun(preset, None, 16, None)
    with pytest.raises(EdgekitError, match="not found"):
        start(tmp_path / "none.keras", size=None, preprocessing="unit")
