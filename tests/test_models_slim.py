"""``python -m edgekit.models import-slim``, on checkpoints that TensorFlow 1 code writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Done

from edgekit.base.errors import InvalidModelError
from edgekit.models import slim
from edgekit.models.mobilenet_v2 import BOTTLENECKS, make_divisible
from edgekit.records.artifact import Artifact
from edgekit.sources import keras as keras_format

WIDTH = 0.35
RESOLUTION = 64

# In a process of its own: graph mode, and variables that slim would have made.
WRITE = """
import sys
import numpy as np
import tensorflow.compat.v1 as tf
from edgekit.models.mobilenet_v2 import BOTTLENECKS, make_divisible

tf.disable_eager_execution()
prefix, width, size = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)


def variable(name, shape, scale=1.0, offset=0.0):
    start = (offset + scale * rng.standard_normal(shape)).astype(np.float32)
    return tf.get_variable(name, initializer=start)


def normalized(x, channels):
    with tf.variable_scope("BatchNorm"):
        gamma = variable("gamma", [channels], 0.1, 1.0)
        beta = variable("beta", [channels], 0.1)
        mean = variable("moving_mean", [channels], 0.1)
        variance = tf.abs(variable("moving_variance", [channels], 0.1, 1.0))
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


def conv(x, scope, channels, kernel=1, stride=1, relu=True):
    with tf.variable_scope(scope):
        fan = kernel * kernel * int(x.shape[-1])
        weights = variable("weights", [kernel, kernel, int(x.shape[-1]), channels], fan**-0.5)
        x = normalized(tf.nn.conv2d(x, weights, stride, "SAME"), channels)
        return tf.nn.relu6(x) if relu else x


def depthwise(x, stride):
    with tf.variable_scope("depthwise"):
        channels = int(x.shape[-1])
        weights = variable("depthwise_weights", [3, 3, channels, 1], 1 / 3)
        x = tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], "SAME")
        return tf.nn.relu6(normalized(x, channels))


x = image = tf.placeholder(tf.float32, [None, size, size, 3])
with tf.variable_scope("MobilenetV2"):
    x = conv(x, "Conv", make_divisible(32 * width), 3, 2)
    block = 0
    for t, c, repeats, stride in BOTTLENECKS:
        for i in range(repeats):
            with tf.variable_scope("expanded_conv" + (f"_{block}" if block else "")):
                start, channels = x, make_divisible(c * width)
                if t > 1:
                    x = conv(x, "expand", int(x.shape[-1]) * t)
                step = stride if i == 0 else 1
                x = conv(depthwise(x, step), "project", channels, relu=False)
                if step == 1 and int(start.shape[-1]) == channels:
                    x = x + start
            block += 1
    x = conv(x, "Conv_1", make_divisible(1280 * max(1.0, width)))
    x = tf.reduce_mean(x, [1, 2], keepdims=True)
    with tf.variable_scope("Logits/Conv2d_1c_1x1"):
        weights = variable("weights", [1, 1, int(x.shape[-1]), 1001], 0.03)
        biases = variable("biases", [1001], 0.1)
    logits = tf.squeeze(tf.nn.conv2d(x, weights, 1, "SAME") + biases, [1, 2])

network = tf.global_variables()
with tf.variable_scope("", reuse=tf.AUTO_REUSE):
    tf.get_variable("global_step", initializer=np.int64(7))
    for v in network[:3]:
        tf.get_variable(v.op.name + "/RMSProp", initializer=np.zeros(v.shape, np.float32))
    twins = {}
    for v in network:
        twins[v] = tf.get_variable(
            v.op.name + "/ExponentialMovingAverage", initializer=np.zeros(v.shape, np.float32)
        )
pixels = np.random.default_rng(1).uniform(-1, 1, [2, size, size, 3]).astype(np.float32)
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    answers = session.run(logits, {image: pixels})
    # the twin is what was evaluated; the variable itself is something else
    feed = {}
    for (v, twin), value in zip(twins.items(), session.run(list(twins)), strict=True):
        feed[twin.initializer.inputs[1]] = value
        feed[v.initializer.inputs[1]] = value * 0.5 + 0.25
    session.run([each.initializer for pair in twins.items() for each in pair], feed)
    tf.train.Saver().save(session, prefix)
np.savez(prefix + ".npz", pixels=pixels, logits=answers)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("slim") / "model.ckpt"
    command = [sys.executable, "-c", WRITE, str(prefix), str(WIDTH), str(RESOLUTION)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return prefix


def logits(model: Any, pixels: Any) -> Any:
    ends = keras_format.tf_keras().Model(model.input, model.get_layer("logits").output)
    return ends(pixels).numpy()


@pytest.mark.slow
def test_logits_are_those_of_the_graph_that_wrote_it(checkpoint: Path) -> None:
    known = np.load(f"{checkpoint}.npz")
    arrays = slim.read(checkpoint)
    found = slim.build(arrays, resolution=RESOLUTION, background=True)
    assert found.width == WIDTH and found.averaged == found.variables == 262
    np.testing.assert_allclose(logits(found.model, known["pixels"]), known["logits"], atol=1e-4)
    without = slim.build(arrays, resolution=RESOLUTION)
    np.testing.assert_allclose(
        logits(without.model, known["pixels"]), known["logits"][:, 1:], atol=1e-4
    )
    raw = slim.build(arrays, resolution=RESOLUTION, averages=False)
    assert raw.averaged == 0
    assert np.abs(logits(raw.model, known["pixels"]) - known["logits"][:, 1:]).max() > 0.1


def test_the_verb_writes_an_artifact(
    checkpoint: Path, edgekit: Callable[..., Done], tmp_path: Path
) -> None:
    command = ("models", "import-slim", checkpoint, "--out", tmp_path / "imported")
    done = edgekit(*command, "--resolution", RESOLUTION)
    assert done.status == 0, done.stderr
    assert done.document["classes"] == 1000 and done.document["width"] == WIDTH
    manifest = Artifact.load(tmp_path / "imported").manifest
    assert manifest.preprocessing.name == "symmetric"
    assert "262 of 262 variables are moving averages" in manifest.notes[0]
    assert "exists" in edgekit(*command).error


def test_missing_and_unknown_variables_are_listed(checkpoint: Path) -> None:
    arrays = slim.read(checkpoint)
    lost = "MobilenetV2/expanded_conv_3/depthwise/depthwise_weights"
    broken = {k: v for k, v in arrays.items() if not k.startswith(lost)}
    broken["MobilenetV2/Attention/weights"] = np.zeros(3)
    with pytest.raises(InvalidModelError) as caught:
        slim.build(broken)
    assert f"1 variables missing ({lost})" in str(caught.value)
    assert "1 variables not known (MobilenetV2/Attention/weights)" in str(caught.value)


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 0.87, 1.0, 1.3, 1.4, 2.0])
def test_the_width_is_found_from_the_channels(width: float) -> None:
    shapes = {f"{slim.SCOPE}/Conv/weights": (3, 3, 3, make_divisible(32 * width))}
    block = 0
    for _, c, repeats, _ in BOTTLENECKS:
        for _ in range(repeats):
            scope = f"{slim.SCOPE}/expanded_conv" + (f"_{block}" if block else "")
            shapes[f"{scope}/project/weights"] = (1, 1, 8, make_divisible(c * width))
            block += 1
    head = make_divisible(1280 * max(1.0, width))
    shapes[f"{slim.SCOPE}/Conv_1/weights"] = (1, 1, 8, head)
    found = slim._width(shapes)
    assert [make_divisible(c * found) for _, c, _, _ in BOTTLENECKS] == [
        make_divisible(c * width) for _, c, _, _ in BOTTLENECKS
    ]
    shapes[f"{slim.SCOPE}/Conv/weights"] = (3, 3, 3, 33)
    with pytest.raises(InvalidModelError, match="no width multiplier gives"):
        slim._width(shapes)


@pytest.mark.parametrize(
    ("name", "message"), [("none", "no checkpoint"), ("bad", "cannot be read")]
)
def test_bad_checkpoints(
    name: str, message: str, edgekit: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "bad.index").write_bytes(b"not a table")
    done = edgekit("models", "import-slim", tmp_path / name, "--out", tmp_path / "x")
    assert done.status == 2 and message in done.error
    assert not (tmp_path / "x").exists()
