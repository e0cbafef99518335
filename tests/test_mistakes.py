"""Classic mistakes, planted in models that were trained; and none found where none is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Done

from edgekit import data
from edgekit.base.errors import InvalidDataError
from edgekit.evaluation import mistakes, verdicts
from edgekit.records.signature import preprocessing

TRAINED_WITH = "symmetric#class_offset=1"


@dataclass(frozen=True)
class Coloured:
    """A model of 11 classes, 0 of them the background, and images that it was not trained on."""

    model: Any
    images: np.ndarray
    labels: np.ndarray

    def find(self, word: str, *, shift: int = 0, answer: Any = None) -> list[mistakes.Finding]:
        """What is said of the model under a preprocessing, with labels shifted."""
        return mistakes.find(
            answer or self.answer, self.images, self.labels + shift, preprocessing(word)
        )

    def answer(self, values: np.ndarray) -> np.ndarray:
        """Probabilities."""
        return np.asarray(self.model(values, training=False))


@pytest.fixture(scope="module")
def coloured() -> Coloured:
    """Fashion-MNIST with the image in red and its negative in blue."""
    from edgekit.sources.keras import tf_keras

    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(1)
    image = keras.Input((28, 28, 3))
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(image)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.Conv2D(24, 3, strides=2, activation="relu")(x)
    model = keras.Model(image, layers.Dense(11, activation="softmax")(layers.Flatten()(x)))
    model.compile("adam", "sparse_categorical_crossentropy")

    def seen(split: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        found = data.load(f"fashion_mnist#samples={count}", split).offset(1)
        grey = found.images[..., 0]
        return np.stack([grey, grey // 2, 255 - grey], axis=-1), found.labels

    x, y = seen("calibration", 1000)
    model.fit(preprocessing(TRAINED_WITH).apply(x), y, batch_size=50, epochs=6, verbose=0)
    made = Coloured(model, *seen("test", 600))
    right = made.answer(preprocessing(TRAINED_WITH).apply(made.images)).argmax(axis=1)
    assert (right == made.labels).mean() > 0.6
    return made


def test_a_sound_model_gives_no_finding(coloured: Coloured) -> None:
    assert coloured.find(TRAINED_WITH) == []


@pytest.mark.parametrize(
    ("word", "shift", "kinds", "fix"),
    [
        ("unit", 0, ["scaling"], "[-1, 1] (symmetric) instead of [0, 1]"),
        ("none", 0, ["scaling"], "[-1, 1] (symmetric) instead of [0, 255]"),
        ("symmetric#channels=bgr", 0, ["channels"], "set channels=rgb"),
        ("symmetric#class_offset=0", -1, ["classes"], "set class_offset=1"),
        ("symmetric#class_offset=2", 1, ["classes"], "set class_offset=1"),
        ("unit#channels=bgr,class_offset=0", -1, ["scaling", "channels", "classes"], "+1"),
    ],
)
def test_planted(coloured: Coloured, word: str, shift: int, kinds: list[str], fix: str) -> None:
    found = coloured.find(word, shift=shift)
    assert [finding.kind for finding in found] == kinds
    assert fix in found[-1].said
    assert "\n" not in found[-1].said


def test_a_missing_softmax(coloured: Coloured) -> None:
    def logits(values: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(coloured.answer(values), 1e-9))

    (found,) = coloured.find(TRAINED_WITH, answer=logits)
    assert found.kind == "softmax" and found.hint
    both = coloured.find("unit", answer=logits)
    assert [finding.kind for finding in both] == ["softmax", "scaling"]


@pytest.mark.parametrize(
    ("made_with", "declared", "sound"),
    [("unit", "unit", True), ("none", "unit", False), ("unit", "symmetric", False)]
    + [("symmetric", "unit", False), ("unit", "none", False), ("imagenet-rgb",) * 2 + (True,)],
)
def test_floats_of_another_range(
    coloured: Coloured, made_with: str, declared: str, sound: bool
) -> None:
    floats = preprocessing(made_with).apply(coloured.images)
    prepare = preprocessing(declared)
    found = mistakes.find(coloured.answer, floats, coloured.labels, prepare)
    scaling = [finding for finding in found if finding.kind == "scaling"]
    assert (not scaling) == sound


def test_labels_that_count_from_one() -> None:
    mistakes.check_range("x", np.array([0, 9]), 10)
    with pytest.raises(InvalidDataError, match="label 10 .*count from 1: set class_offset=-1"):
        mistakes.check_range("x", np.array([1, 10]), 10)
    with pytest.raises(InvalidDataError, match=r"label 12 is outside .*\(0 to 9\)$"):
        mistakes.check_range("x", np.array([0, 12]), 10)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 test images, every label one too high."""
    test = data.load("fashion_mnist#samples=400", "test")
    kept = np.flatnonzero(test.labels < 9)[:300]
    path = tmp_path_factory.mktemp("shifted") / "shifted.npz"
    np.savez(path, x=test.images[kept], y=test.labels[kept] + 1)
    return path


@pytest.mark.slow
def test_the_verb(shifted: Path, edgekit: Callable[..., Done]) -> None:
    from edgekit.sources.float_model import SHIPPED

    found = edgekit("data", "check", SHIPPED, "--data", shifted)
    assert found.status == 1
    (finding,) = found.document["findings"]
    assert finding["kind"] == "classes"
    assert finding["said"] in found.stderr.replace("\n", " ")


@pytest.mark.slow
def test_compare_warns(shifted: Path, artifacts: dict[str, Path]) -> None:
    from edgekit.compare import Options, compare

    asked = {"dataset": str(shifted), "rounds": 1}
    with pytest.raises(InvalidDataError, match="classes: .*set class_offset=-1.*--allow-chance"):
        compare([artifacts["tflite-float32"]], Options(**asked))
    report = compare([artifacts["tflite-float32"]], Options(**asked, allow_chance=True))
    (warning,) = [each for each in report.warnings if each.startswith("classes: ")]
    assert "set class_offset=-1" in warning
    assert report.fit is not None and report.fit.problem == "chance"
    assert verdicts.of(report.artifacts[0], report).verdict == "close"  # of outputs, not of labels


@pytest.mark.parametrize("name", ["tflite-int8", "onnx-int8", "onnx-float32"])
def test_a_softmax_in_integers_is_no_mistake(
    name: str, artifacts: dict[str, Path], edgekit: Callable[..., Done]
) -> None:
    found = edgekit("data", "check", artifacts[name], "--data", "fashion_mnist")
    assert found.status == 0, found.stderr
    assert found.document["findings"] == []
    assert found.document["fit"]["accuracy"] > 90 and "would be by chance" in found.stderr


def test_the_verb_names_labels_that_do_not_fit(
    artifacts: dict[str, Path], tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    test = data.load("fashion_mnist#samples=600", "test")
    other = {
        "shuffled": np.random.default_rng(0).permutation(test.labels),
        # as folders with the classes' names are numbered
        "alphabet": np.argsort(np.argsort(test.class_names))[test.labels],
    }
    for name, labels in other.items():
        np.savez(tmp_path / f"{name}.npz", x=test.images, y=labels)
    model = artifacts["tflite-float32"]
    shuffled = edgekit("data", "check", model, "--data", tmp_path / "shuffled.npz")
    (finding,) = shuffled.document["findings"]
    assert shuffled.status == 1 and finding["kind"] == "labels"
    assert "do not fit the samples" in finding["said"] and "by chance (p = " in finding["said"]
    alphabet = edgekit("data", "check", model, "--data", tmp_path / "alphabet.npz")
    (finding,) = alphabet.document["findings"]
    assert alphabet.status == 1 and finding["kind"] == "labels"
    assert "they count the classes by alphabet, the model does not" in finding["said"]
    assert "where label 0 is the model's 9 (Ankle boot), 1 is" in finding["said"]
