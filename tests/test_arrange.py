"""One model with its channels last or first, in float32 or half precision: the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worker
from conftest import ROOT, lacking

from edgekit.base.errors import ExecutionError, InvalidModelError, InvalidOptionError
from edgekit.records.signature import preprocessing
from edgekit.sources import arrange
from edgekit.sources import keras as keras_format
from edgekit.training.recipes import Recipe
from edgekit.training.trainer import LossScale, Trainer

#: What some CPUs can do, with the largest difference of logits allowed; the last one needs
#: bfloat16 instructions (AVX-512 BF16, AMX).
FORMS = [
    ("NHWC", "mixed_float16", 0.02),
    ("NHWC", "bfloat16", 0.2),
    ("NCHW", "float32", 1e-4),
    ("NCHW", "bfloat16", 0.2),
]


@pytest.fixture(scope="module")
def model() -> Any:
    """A net whose logits spread, and whose statistics are not those of its start."""
    made = worker.net()
    random = np.random.default_rng(3)
    for variable in made.variables:
        variable.assign(variable + random.uniform(0, 1, variable.shape))
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training run in NHWC and float32."""
    return worker.train(tmp_path_factory.mktemp("plain") / "run", {"epochs": 2})


def logits(model: Any, x: Any) -> Any:
    keras, tf = keras_format.tf_keras(), keras_format.tensorflow()
    inner = keras.Model(model.input, model.get_layer("logits").output)
    return tf.function(lambda x: inner(x, training=False))(x)


@pytest.mark.parametrize(("data_format", "precision", "tolerance"), FORMS)
def test_every_form_answers_the_same(
    data_format: str, precision: str, tolerance: float, model: Any
) -> None:
    made = arrange.arrange(model, data_format=data_format, precision=precision)
    x = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
    x_first = x if data_format == "NHWC" else x.transpose(0, 3, 1, 2)
    if lacking(data_format, precision, training=False):
        with pytest.raises(keras_format.tensorflow().errors.OpError):  # so it is refused rightly
            logits(made, x_first)
        return
    found = logits(made, x_first)
    expected = logits(model, x).numpy()
    assert found.dtype.name == "float32"
    spread = np.ptp(expected)
    assert spread > 0.1 and np.abs(found.numpy() - expected).max() < tolerance * spread
    if precision != "float32":
        assert np.abs(found.numpy() - expected).max() > 0  # something was rounded
    assert [v.shape for v in made.variables] == [v.shape for v in model.variables]
    assert {v.dtype.name for v in made.variables} == {"float32"}
    for ours, theirs in zip(made.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_products_of_matrices_are_the_same_convolutions() -> None:
    keras, tf = keras_format.tf_keras(), keras_format.tensorflow()
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 5, 3))
    x = keras.layers.Conv2D(8, 1, activation="relu", bias_initializer="normal")(image)
    x = keras.layers.Conv2D(4, 1, strides=2)(x)
    plain = keras.Model(image, keras.layers.Conv2D(4, 3)(x))
    made = arrange.arrange(plain, matmul=True)
    own = [type(layer).__name__ for layer in made.layers[1:]]
    assert own == ["Pointwise", "Conv2D", "Conv2D"]  # only a stride of 1 is one product
    values = tf.random.stateless_normal([7, 6, 5, 3], [1, 2])
    found = []
    for model in (plain, made):
        with tf.GradientTape() as tape:
            answers = model(values)
            loss = tf.reduce_sum(answers**2)
        found.append([answers, *tape.gradient(loss, model.trainable_variables)])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_layers_compute_in_what_was_asked_for_but_those_that_answer(model: Any) -> None:
    made = arrange.arrange(model, precision="mixed_float16")
    found = {layer.name: layer.compute_dtype for layer in made.layers}
    assert found.pop("logits") == found.pop("probabilities") == "float32"
    found.pop("image")
    assert set(found.values()) == {"float16"}


@pytest.mark.parametrize(("data_format", "precision"), [form[:2] for form in FORMS])
def test_every_form_trains_alike(
    data_format: str, precision: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    form = {"data_format": data_format, "precision": precision}
    if lacking(data_format, precision, training=True):
        with pytest.raises(keras_format.tensorflow().errors.OpError):
            worker.train(tmp_path / "form", {"epochs": 2, **form})
        return
    found = worker.train(tmp_path / "form", {"epochs": 2, **form})
    assert found["dtypes"] == ["float32"]
    assert found["losses"] == pytest.approx(
        plain["losses"], rel=1e-4 if precision == "float32" else 0.03
    )
    assert found["weights"] != plain["weights"]


def test_a_step_whose_gradients_overflow_is_left_out() -> None:
    images, labels = worker.pixels()
    trainer = Trainer(
        arrange.arrange(worker.net(), precision="mixed_float16"),
        Recipe(batch=32, erase=0),
        images=images,
        labels=labels,
        prepare=preprocessing("unit"),
        towers=1,
        scaled=True,
    )
    before = [v.numpy() for v in trainer.trainable]
    scale, good = trainer._scale.variables  # type: ignore[union-attr]
    scale.assign(1e38)
    order, rates = np.arange(32).reshape(1, 32), np.ones(1, np.float32)
    trainer.run_epoch_part(order, rates)
    after = [v.numpy() for v in trainer.trainable]
    assert all(map(np.array_equal, before, after))
    assert float(scale.numpy()) == pytest.approx(5e37) and int(good.numpy()) == 0
    scale.assign(2.0**15)
    good.assign(LossScale.EVERY - 1)
    trainer.run_epoch_part(order, rates)
    assert not all(map(np.array_equal, before, [v.numpy() for v in trainer.trainable]))
    assert float(scale.numpy()) == 2.0**16 and int(good.numpy()) == 0


def test_what_this_device_cannot_do_is_refused_in_one_line() -> None:
    tf = keras_format.tensorflow()
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("a GPU has all kernels")
    arrange.require("NHWC", "mixed_float16", device="/CPU:0", training=True)
    with pytest.raises(ExecutionError, match="no NCHW mixed_float16 kernels.*use data format NHWC"):
        arrange.require("NCHW", "mixed_float16", device="/CPU:0", training=True)


@pytest.mark.parametrize("precision", arrange.PRECISIONS)
@pytest.mark.parametrize("data_format", arrange.DATA_FORMATS)
@pytest.mark.parametrize("training", [True, False])
def test_a_cpu_that_lacks_kernels_is_told_so_whoever_finds_out(
    data_format: str, precision: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow that has no kernel, oneDNN that has none where TensorFlow believes in one."""
    tf = keras_format.tensorflow()
    said = "Status: 3, message: could not create a primitive descriptor"
    for error in (tf.errors.AbortedError, tf.errors.InvalidArgumentError):

        def fails(*_: Any, error: Any = error, **__: Any) -> None:
            raise error(None, None, f"Graph execution error:\n\n{said}\nand more")

        monkeypatch.setattr(tf.nn, "conv2d", fails)
        with pytest.raises(ExecutionError, match="could not create.*use data format NHWC") as told:
            arrange.require(data_format, precision, device="/CPU:0", training=training)
        assert "\n" not in str(told.value)


def test_a_layer_without_such_a_form_is_refused() -> None:
    keras = keras_format.tf_keras()
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Dense(4)(image))
    with pytest.raises(InvalidModelError, match="Dense.*no NCHW form"):
        arrange.arrange(keras.Model(image, x), data_format="NCHW")
    with pytest.raises(InvalidModelError, match="NCHW is for models"):
        arrange.arrange(keras.Model(image, keras.layers.Conv2D(2, 1)(image)), data_format="NCHW")
    with pytest.raises(InvalidOptionError, match="NHWC or NCHW, got 'CHWN'"):
        arrange.arrange(keras.Model(image, x), data_format="CHWN")


@pytest.mark.slow
def test_the_grid_times_what_a_cpu_can_do_and_names_what_not() -> None:
    wanted = ("NCHW float32", "NCHW mixed_float16")
    command = [sys.executable, str(ROOT / "benchmarks" / "train_speed.py"), "--grid", *wanted]
    done = subprocess.run(
        [*command, "--device", "cpu", "--steps", "2", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    sides = json.loads(done.stdout.splitlines()[-1])["sides"]
    assert list(sides) == ["NHWC float32", *wanted]
    for name in ("NHWC float32", "NCHW float32"):
        assert sides[name]["images_per_second"] > 0
        assert sides[name]["inference_images_per_second"] > 0
    assert "use data format NHWC" in sides["NCHW mixed_float16"]["left_out"]
