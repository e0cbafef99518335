from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import Done

from edgekit.base.errors import InvalidOptionError
from edgekit.sources import keras as keras_format
from edgekit.training import optimizers, recipes
from edgekit.training.recipes import Network, Recipe


def test_the_default_is_what_the_classes_say() -> None:
    preset = recipes.load(recipes.DEFAULT)
    assert (preset.recipe, preset.network, preset.preprocessing) == (Recipe(), Network(), "unit")


def test_named_recipes_are_what_was_published() -> None:
    assert recipes.names() == (
        *("small", "deeplab", "finetune", "paper"),
        *("seed", "slim", "ssdlite"),
    )
    seed, paper, slim = (recipes.load(name) for name in ("seed", "paper", "slim"))
    assert (seed.recipe.optimizer, seed.recipe.steps) == ("sgd", 1_000_000)
    assert seed.expected is not None
    assert (seed.expected.top1, seed.expected.top5) == (69.7, 89.2)
    for preset in (paper, slim):
        found = preset.recipe
        assert (found.optimizer, found.momentum, found.rms_decay) == ("rmsprop", 0.9, 0.9)
        assert (found.decay, found.weight_decay) == (0.98, 4e-5)
        assert preset.network.width == 1.0 and preset.network.lowered_strides == 0
    assert (paper.recipe.batch, paper.recipe.learning_rate) == (96, 0.045)
    assert (slim.recipe.batch, slim.recipe.learning_rate) == (8 * 96, 8 * 0.045)
    assert (slim.recipe.label_smoothing, slim.recipe.ema) == (0.1, 0.9999)


def test_rates_of_the_paper_and_of_slim() -> None:
    paper, slim = recipes.load("paper").recipe, recipes.load("slim").recipe
    assert [paper.rate(step, 10) for step in (0, 9, 10)] == [0.045, 0.045, 0.045 * 0.98]
    assert [slim.rate(step, 10) for step in (24, 25, 50)] == pytest.approx(
        [0.36, 0.36 * 0.98, 0.36 * 0.98**2]
    )


def test_rmsprop_is_that_of_tensorflow() -> None:
    tf = keras_format.tensorflow()
    recipe = Recipe(optimizer="rmsprop", rms_epsilon=1.0, momentum=0.9, rms_decay=0.9)
    random = np.random.default_rng(0)
    start = random.normal(size=7).astype(np.float32)
    gradients = random.normal(size=(5, 7)).astype(np.float32)
    theirs, ours = tf.Variable(start), tf.Variable(start)
    optimizer = tf.compat.v1.train.RMSPropOptimizer(0.045, decay=0.9, momentum=0.9, epsilon=1.0)
    state = optimizers.slots(recipe, ours)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient), theirs)])
        for target, new in optimizers.changes(recipe, ours, state, gradient, 0.045):
            target.assign(new)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)
    assert np.abs(ours.numpy() - start).max() > 0.05


def test_a_file_gives_what_it_names_and_defaults_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('about = "mine"\n[recipe]\nbatch = 64\n[network]\nwidth = 0.5\n')
    preset = recipes.load(str(path))
    assert preset.recipe == Recipe(batch=64) and preset.network == Network(width=0.5)
    assert preset.expected is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[recipe]\ncolour = 1", "unknown key 'colour'"),
        ("[colour]\nred = 1", "unknown key 'colour'"),
        ('name = "other"', "unknown key 'name'"),
        ("[recipe]\nbatch = 'many'", "integer"),
        ("[recipe]\nlearning_rate = nan", "finite"),
        ("[recipe]\nmomentum = 1.5", "momentum"),
        ('[recipe]\noptimizer = "adam"', "sgd"),
        ("[recipe", "not valid TOML"),
        ("", "missing key 'about'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text if "about" in message or not text else f'about = "x"\n{text}')
    with pytest.raises(InvalidOptionError, match=message):
        recipes.load(str(path))


def test_unknown_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="expected one of small, deeplab, finetune, paper"):
        recipes.load("papr")
    with pytest.raises(InvalidOptionError, match="not found"):
        recipes.load(str(tmp_path / "none.toml"))


def test_epochs_take_the_place_of_steps() -> None:
    slim = recipes.load("slim")
    assert recipes.changed(slim, recipe={"epochs": 3}, network={}).recipe.total_steps(10) == 30
    assert recipes.changed(slim, recipe={"steps": 7}, network={}).recipe.total_steps(10) == 7
    with pytest.raises(InvalidOptionError, match="got both"):
        recipes.changed(slim, recipe={"epochs": 3, "steps": 7}, network={})


def test_the_list_says_what_to_expect_and_from_whom(edgekit: Callable[..., Done]) -> None:
    done = edgekit("train", "--recipes")
    assert done.status == 0, done.stderr
    found = {entry["name"]: entry for entry in done.document["recipes"]}
    assert found["seed"]["expected"]["top5"] == 89.2
    assert found["seed"]["recipe"] == json.loads(json.dumps(asdict(recipes.load("seed").recipe)))
    assert "not published" in done.stderr and "69.7" in done.stderr
