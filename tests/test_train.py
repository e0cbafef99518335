from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Done, lacking

from edgekit.base.errors import InvalidOptionError
from edgekit.models.mobilenet_v2 import mobilenet_v2
from edgekit.records.artifact import Artifact
from edgekit.sources import keras as keras_format
from edgekit.training.augment import augment
from edgekit.training.recipes import Recipe
from edgekit.training.trainer import decayed_variables

#: Of two towers, the graph of a net is built twice.
ONE = ("--towers", "1")
SMALL = ("--width", "0.35", "--lowered-strides", "0", "--batch", "32", "--erase", "0")


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that a net tells apart in seconds: horizontal and vertical stripes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 256)
    x = rng.integers(0, 40, (256, 16, 16, 1))
    x[y == 0, ::4] += 200
    x[y == 1, :, ::4] += 200
    path = tmp_path_factory.mktemp("stripes") / "stripes.npz"
    np.savez(path, x=x.astype(np.uint8), y=y)
    return path


@pytest.mark.slow
def test_a_run_learns_and_writes_an_artifact(
    stripes: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    logs = tmp_path / "tb"
    done = edgekit(
        "train", "--data", stripes, "--out", tmp_path / "m", "--epochs", "20", *SMALL,
        "--learning-rate", "0.02", "--shift", "0", "--ema", "0.9", "--tensorboard", logs,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    written = Artifact.load(tmp_path / "m")
    assert written.manifest.training is not None
    assert written.manifest.training["train_top1"] > 90
    log = [json.loads(line) for line in (written.path / "training.jsonl").open()]
    assert len(log) == 20 and log[-1]["augmented_top1"] > 85 > log[0]["augmented_top1"]
    assert list(logs.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "tb"]


@pytest.mark.slow
def test_a_recipe_of_ones_own_in_another_form_writes_a_plain_model(
    stripes: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'about = "mine"\n[recipe]\nsteps = 9\nbatch = 32\noptimizer = "rmsprop"\ncrop = 0.5\n'
        '[network]\nwidth = 0.35\nlowered_strides = 0\n[expected]\ntop1 = 50\nof = "stripes"\n'
        'source = "chance"\n'
    )
    command = ("train", "--data", stripes, "--recipe", recipe, "--out", tmp_path / "m")
    command += ("--learning-rate", "0.01", *ONE)
    for form in (("NCHW", "bfloat16"), ("NCHW", "float32"), ("NHWC", "bfloat16")):
        done = edgekit(*command, "--data-format", form[0], "--precision", form[1])
        if not (refusal := lacking(*form, training=True)):
            break
        assert (done.status, refusal in done.error) == (2, True), done.stderr
        assert not (tmp_path / "m").exists()
    assert done.status == 0, done.stderr
    assert "expected top-1 50 % of stripes (chance)" in done.stderr
    written = Artifact.load(tmp_path / "m")
    training = written.manifest.training
    assert training is not None
    assert (training["preset"], training["expected"]["top1"]) == (str(recipe), 50)
    assert (training["recipe"]["optimizer"], training["recipe"]["learning_rate"]) == (
        "rmsprop",
        0.01,
    )
    assert (training["data_format"], training["precision"]) == form
    log = [json.loads(line) for line in (written.path / "training.jsonl").open()]
    assert [entry["step"] for entry in log] == [8, 9]
    model = keras_format.load(written.model_path)
    assert model.input_shape == (None, 16, 16, 1)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_end(
    stripes: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    command = ["train", "--data", stripes, "--out", tmp_path / "m", "--epochs", "6", *SMALL]
    command += ONE
    running = subprocess.Popen(
        [sys.executable, "-m", f"edgekit.{command[0]}", *map(str, command[1:])],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "m.checkpoints" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "m").exists()
    assert "--resume" in edgekit(*command).error
    done = edgekit(*command, "--resume")
    assert done.status == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert (tmp_path / "m" / "training.jsonl").read_text().count("\n") == 6


@pytest.mark.slow
def test_ctrl_c_says_130_and_writes_no_artifact(stripes: Path, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "edgekit.train", "--data", str(stripes)]
        + ["--out", str(tmp_path / "m"), "--epochs", "10000", *SMALL, *ONE],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "m.checkpoints" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "m").exists()


def test_weight_decay_is_for_convolution_and_dense_kernels_only() -> None:
    model = mobilenet_v2(width=0.35, input_shape=(32, 32, 1), classes=3)
    decayed = {v.name.split("/")[0] for v in decayed_variables(model)}
    assert {"stem", "block1_expand", "block1_project", "head", "logits"} <= decayed
    assert not [name for name in decayed if "depthwise" in name or "bn" in name]
    assert len(decayed_variables(model)) == len(decayed)


def test_augmentation_repeats_for_the_same_step_and_only_then() -> None:
    tf = keras_format.tensorflow()
    x = tf.constant(np.random.default_rng(0).random((8, 28, 28, 1)), tf.float32)
    recipe = Recipe()
    first, again, later = (
        augment(x, recipe, tf.constant(step, tf.int64)).numpy() for step in (3, 3, 4)
    )
    assert (first == again).all()
    assert (first != later).any()
    still = Recipe(shift=0, flip=False, erase=0)
    assert np.array_equal(augment(x, still, tf.constant(3, tf.int64)).numpy(), x.numpy())


def test_schedules() -> None:
    cosine = Recipe(epochs=10, learning_rate=1.0, warmup_epochs=1)
    assert cosine.rate(0, 100) == pytest.approx(0.01)
    assert cosine.rate(99, 100) == pytest.approx(1.0)
    assert cosine.rate(999, 100) == pytest.approx(0, abs=1e-4)
    steps = Recipe(learning_rate=1.0, warmup_epochs=0, schedule="exponential", decay=0.5)
    assert [steps.rate(s, 10) for s in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"momentum": 1.0}, {"label_smoothing": -1}, {"schedule": "step"}]
)
def test_recipes_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOptionError, match="expected"):
        Recipe(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.npz"], "not found"),
        (["--epochs", "0"], "integer >= 1"),
        (["--learning-rate", "nan"], "learning_rate"),
        (["--colour", "red"], "unknown option --colour"),
        (["--recipe", "papr"], "unknown recipe 'papr'"),
        (["--epochs", "1", "--steps", "1"], "got both"),
        (["--replicas", "2"], "for --strategy mirrored"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    done = edgekit("train", "--out", tmp_path / "m", *arguments)
    assert done.status == 2
    assert message in done.error
    assert not list(tmp_path.iterdir())
