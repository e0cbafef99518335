"""``python -m edgekit.qat``: from a float model to int8 files that answer as it trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Done
from exported import export

from edgekit.base.errors import FidelityError, InvalidModelError, InvalidOptionError
from edgekit.diagnosis.diff import diff
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.pipeline.qat import QatRecipe, predictor, trainable
from edgekit.quantization import profiles
from edgekit.quantization.quantize import trained as trained_integers
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import (
    FAKE_QUANT_FILE,
    FILE,
    Encodings,
    FakeQuantRecipe,
    differences,
)
from edgekit.sources import convert, float_model
from edgekit.sources import keras as keras_format
from edgekit.writers import onnx_integers, tflite_integers

PLAIN = ("--batch", "32", "--shift", "0", "--erase", "0", "--no-flip", "--towers", "1")
UNIT = ("--preprocessing", "unit")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes, each with a bright corner or middle of its own, in 12x12 pixels."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 5
    x = rng.integers(0, 120, (400, 12, 12, 3), dtype=np.uint8)
    for i, label in enumerate(y):
        top, left = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)][label]
        x[i, top : top + 4, left : left + 4] += np.uint8(130)
    path = tmp_path_factory.mktemp("images") / "set.npz"
    np.savez(path, x=x, y=y.astype(np.int64))
    return path


@pytest.fixture(scope="module")
def trained(
    small: Path,
    images: Path,
    edgekit: Callable[..., Done],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Done]:
    out = tmp_path_factory.mktemp("qat") / "trained"
    command = ("qat", small / "small.keras", *UNIT, "--data", images, "--out", out, *PLAIN)
    done = edgekit(*command, "--epochs", 12, "--every", 5, "--learning-rate", "0.1", "--distill", 0)
    assert done.status == 0, done.stderr
    return out, done


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, Done], edgekit: Callable[..., Done]) -> dict[str, Path]:
    found = {}
    for target in ("tflite", "onnx"):
        out = trained[0].with_name(target)
        done = edgekit(
            "export", trained[0], "--target", target, "--precision", "int8", "--out", out
        )
        assert done.status == 0, done.stderr
        found[target] = out
    return found


def test_both_files_answer_as_it_trained(trained: tuple[Path, Done]) -> None:
    scores = trained[1].document["scores"]
    assert set(scores) == {"float32", "fake-quantized", "tflite int8", "onnx int8"}
    for target in ("tflite int8", "onnx int8"):
        assert scores[target]["agreement"] >= 97.5  # of 40 images: one may differ
    assert scores["fake-quantized"]["top1"] >= 80 > scores["float32"]["top1"]


def test_the_grid_is_the_same_tensor_by_tensor(
    trained: tuple[Path, Done], exported: dict[str, Path]
) -> None:
    """Kernels and ranges of the training against what both files store."""
    file = Artifact.load(exported["tflite"]).model_path.read_bytes()
    stored = tflite_integers.read_file(file)
    source = float_model.load(trained[0])
    canonical = convert.from_keras(source.model)
    model = onnx.load(Artifact.load(exported["onnx"]).model_path)
    assert not differences(stored, onnx_integers.read_stored(model, Graph(canonical)))

    recipe = FakeQuantRecipe.load(trained[0] / FAKE_QUANT_FILE)
    written = sorted(stored.activations.values())
    for key, (scale, zero_point) in recipe.activations.items():
        assert (np.float32(scale), zero_point) in [(np.float32(s), z) for s, z in written], key
    assert len(recipe.activations) >= 10

    assert source.encodings is not None
    for layer in Graph(canonical).layers:
        integers = stored.layers[layer.output]
        encoding = source.encodings.tensors[layer.weights]
        assert len(encoding.scale) == len(integers.weight_scale) > 1
        shape = [1, 1, 1, 1][: integers.weights.ndim]
        shape[layer.axis] = -1
        real = Graph(canonical).constant(layer.weights) / integers.weight_scale.reshape(shape)
        np.testing.assert_allclose(real, integers.weights, atol=2e-3)
        bias = Graph(canonical).constant(layer.bias) if layer.bias else None
        if bias is not None and integers.bias is not None and integers.bias_scale is not None:
            steps = bias / integers.bias_scale.astype(np.float64)
            # the handed-on biases lie on their steps too, as far as float32 can say
            np.testing.assert_allclose(steps, integers.bias, rtol=1e-5, atol=0.6)


def test_layers_are_not_held_against_weights_of_before(
    exported: dict[str, Path], small: Path, images: Path
) -> None:
    """Every retrained layer would be to blame."""
    with pytest.raises(InvalidModelError, match="its weights are not those of .*small.keras"):
        diff(small / "small.keras", exported["tflite"], dataset=str(images))
    with pytest.raises(InvalidOptionError, match="pass --reference with the artifact"):
        diff(exported["onnx"], exported["tflite"], dataset=str(images))


def test_the_log_has_looks_at_the_deployed_file(trained: tuple[Path, Done]) -> None:
    log = [json.loads(line) for line in (trained[0] / "training.jsonl").read_text().splitlines()]
    looks = [entry for entry in log if "epoch" not in entry]
    assert len(log) - len(looks) == 12 and len(looks) >= 20
    assert all({"deployed_agreement", "deployed_top1", "trained_top1"} <= set(e) for e in log)
    assert "deployed int8 predicts as trained" in trained[1].stderr


def test_the_manifest_says_what_was_done(trained: tuple[Path, Done]) -> None:
    manifest = Artifact.load(trained[0]).manifest
    assert (manifest.format, manifest.precision) == ("keras", "int8")
    assert manifest.source is not None and manifest.source.path.endswith("small.keras")
    assert manifest.training is not None
    assert manifest.training["recipe"]["epochs"] == 12
    assert manifest.training["tested_images"] == 40
    assert manifest.training["grid_numbers"] > 500
    assert {"model.keras", FILE, FAKE_QUANT_FILE, "training.jsonl"} == set(manifest.files)
    assert manifest.versions["tensorflow-model-optimization"]
    assert not trained[0].with_name("trained.checkpoints").exists()


def test_the_model_file_is_plain_keras(trained: tuple[Path, Done], small: Path) -> None:
    from edgekit.sources import keras

    ours, given = keras.load(trained[0] / "model.keras"), keras.load(small / "small.keras")
    assert [layer.name for layer in ours.layers] == [layer.name for layer in given.layers]


@pytest.mark.slow
def test_compare_runs_it_fake_quantized_beside_its_files(
    trained: tuple[Path, Done],
    exported: dict[str, Path],
    images: Path,
    small: Path,
    edgekit: Callable[..., Done],
    tmp_path: Path,
) -> None:
    done = edgekit(
        *("compare", trained[0], *exported.values(), "--data", images, "--rounds", "2"),
        *("--reference", small / "small.keras", "--out", tmp_path / "report.json"),
    )
    assert done.status == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    found = {entry["name"]: entry for entry in report["artifacts"]}
    assert "fake-quantized" in json.dumps(found["trained"])
    assert found["trained"]["metrics"]["top1"]["value"] == pytest.approx(
        found["tflite"]["metrics"]["top1"]["value"], abs=1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calibration", "fashion_mnist"), "--calibration is for float models"),
        (("--method", "mse"), "--method is for float models"),
        (("--correction", "none"), "--correction is for float models"),
    ],
)
def test_export_takes_no_ranges_beside_the_trained_ones(
    options: tuple[str, ...],
    message: str,
    trained: tuple[Path, Done],
    edgekit: Callable[..., Done],
    tmp_path: Path,
) -> None:
    command = ("export", trained[0], "--target", "tflite", "--precision", "int8")
    done = edgekit(*command, "--out", tmp_path / "x", *options)
    assert done.status == 2 and message in done.error
    assert not list(tmp_path.iterdir())


def test_export_refuses_a_device_that_wants_other_numbers(trained: tuple[Path, Done]) -> None:
    source = float_model.load(trained[0])
    canonical = convert.from_keras(source.model)
    assert source.encodings is not None
    with pytest.raises(InvalidModelError, match="zero_point 0 only.*--device tensorrt"):
        trained_integers(canonical, source.encodings, profile=profiles.profile("tensorrt"))
    vnni = trained_integers(canonical, source.encodings, profile=profiles.profile("x86-vnni"))
    generic = trained_integers(canonical, source.encodings, profile=profiles.profile("generic"))
    assert not differences(vnni.stored, generic.stored)


def test_export_refuses_weights_that_were_changed(trained: tuple[Path, Done]) -> None:
    source = float_model.load(trained[0])
    assert source.encodings is not None
    other = next(layer for layer in source.model.layers if layer.weights)
    kernel, *rest = other.get_weights()
    other.set_weights([kernel + 0.003, *rest])
    canonical = convert.from_keras(source.model)
    profile = profiles.profile("generic")
    with pytest.raises(InvalidModelError, match="not the one that was trained"):
        trained_integers(canonical, source.encodings, profile=profile)
    import hashlib

    forged = Encodings(hashlib.sha256(canonical).hexdigest(), "generic", source.encodings.tensors)
    with pytest.raises(InvalidModelError, match="not on their int8 grid"):
        trained_integers(canonical, forged, profile=profile)


def test_a_trained_model_is_not_trained_again(
    trained: tuple[Path, Done], images: Path, edgekit: Callable[..., Done], tmp_path: Path
) -> None:
    done = edgekit("qat", trained[0], "--data", images, "--out", tmp_path / "x", *PLAIN)
    assert done.status == 2 and "already" in done.error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_end(
    small: Path, images: Path, edgekit: Callable[..., Done], tmp_path: Path
) -> None:
    command = ["qat", small / "small.keras", *UNIT, "--data", images, *PLAIN, "--every", 3]
    command += ["--epochs", 4]
    whole = edgekit(*command, "--out", tmp_path / "whole")
    assert whole.status == 0, whole.stderr
    words = [*command, "--out", tmp_path / "part"]
    running = subprocess.Popen(
        [sys.executable, "-m", f"edgekit.{words[0]}", *map(str, words[1:])],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "part.checkpoints" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "part").exists()
    assert "--resume" in edgekit(*words).error
    other = edgekit(*words, "--resume", "--learning-rate", "0.5")
    assert other.status == 2 and "learning_rate was 0.01 and is 0.5" in other.error
    done = edgekit(*words, "--resume")
    assert done.status == 0, done.stderr
    assert "resumed at step" in done.stderr
    ends = [
        [json.loads(line) for line in (tmp_path / name / "training.jsonl").open()]
        for name in ("whole", "part")
    ]
    assert [e["step"] for e in ends[0]] == [e["step"] for e in ends[1]]
    assert ends[1][-1]["loss"] == pytest.approx(ends[0][-1]["loss"], rel=0.05)


@pytest.mark.slow
def test_without_labels_the_float_model_is_followed(
    small: Path, edgekit: Callable[..., Done], tmp_path: Path
) -> None:
    command = ("qat", small / "small.keras", *UNIT, "--data", small / "set.npz")
    short = ("--epochs", 1, *PLAIN, "--out", tmp_path / "x")
    refused = edgekit(*command, *short)
    assert refused.status == 2 and "y" in refused.error
    assert not list(tmp_path.iterdir())
    done = edgekit(*command, *short, "--distill", "1")
    assert done.status == 0, done.stderr
    assert done.document["scores"]["tflite int8"]["top1"] is None


@pytest.mark.slow
def test_a_layer_left_float_still_deploys(
    small: Path, images: Path, edgekit: Callable[..., Done], tmp_path: Path
) -> None:
    from edgekit.sources import keras

    name = keras.load(small / "small.keras").layers[-1].name
    done = edgekit(
        *("qat", small / "small.keras", *UNIT, "--data", images, "--epochs", 1, *PLAIN),
        *("--leave-float", name, "--out", tmp_path / "x"),
    )
    assert done.status == 0, done.stderr
    assert "keeps its calibrated range" in done.stderr
    assert done.document["scores"]["onnx int8"]["agreement"] >= 80  # of 40
    assert FakeQuantRecipe.load(tmp_path / "x" / FAKE_QUANT_FILE).left_float == (name,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "none.npz"), "not found"),
        (("--weight-bits", "9"), "weight_bits"),
        (("--distill", "2"), "distill"),
        (("--ranges", "guessed"), "got 'guessed'"),
        (("--device", "cuda"), "takes no int8"),
        (("--leave-float", "nobody"), "--leave-float names no layer"),
        (("--colour", "red"), "unknown option --colour"),
    ],
)
def test_bad_input(
    options: tuple[str, ...],
    message: str,
    small: Path,
    edgekit: Callable[..., Done],
    tmp_path: Path,
) -> None:
    done = edgekit(
        *("qat", small / "small.keras", *UNIT, "--distill", "1", "--data", small / "set.npz"),
        *("--out", tmp_path / "x", *options),
    )
    assert done.status == 2
    assert message in done.error
    assert not list(tmp_path.iterdir())


def test_a_look_sees_the_weights_of_its_step() -> None:
    """The graph of the first look serves all: it has to read what was trained since."""
    keras = keras_format.tf_keras()
    image = keras.Input((2,))
    model = keras.Model(image, keras.layers.Dense(3)(image))
    predicted, values = predictor(model), np.ones((300, 2), np.float32)
    before = predicted(values)
    kernel, bias = model.get_weights()
    model.set_weights([kernel + 1, bias])
    np.testing.assert_allclose(predicted(values), before + 2, rtol=1e-5)


def test_recipes_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="frozen"):
        QatRecipe(frozen=1.5)
    with pytest.raises(InvalidOptionError, match="ranges"):
        QatRecipe(ranges="guessed")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_model_of_free_height_and_width_is_trained_at_the_sizes_given(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(8, 3, 2, "same", activation="relu")(image)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, activation="relu")(x))
    keras.Model(image, keras.layers.Dense(4, activation="softmax")(x)).save(tmp_path / "net.keras")
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=pixels, y=random.integers(0, 4, 200))
    done = edgekit(
        "qat", tmp_path / "net.keras", "--shape", "1,16,16,3", "--preprocessing", "unit", "--data",
        tmp_path / "set.npz", "--epochs", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    written = Artifact.load(tmp_path / "out")
    assert written.manifest.signature.inputs[0].shape == (-1, 16, 16, 3)
    made = export(written.path, target="tflite", precision="int8", out=tmp_path / "lite")
    assert made.manifest.signature.inputs[0].shape == (1, 16, 16, 3)


def _of_pictures(head: Callable[[Any, Any], Any]) -> Any:
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(6)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.DepthwiseConv2D(3)(keras.layers.Conv2D(6, 3, activation="relu")(image))
    return keras.Model(image, head(keras.layers, x))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda layers, x: x, r"expected scores .*, got \[-1, 4, 4, 6\]"),
        (lambda layers, x: layers.Dense(1)(layers.Flatten()(x)), r"scores .*, got \[-1, 1\]"),
        (
            lambda layers, x: layers.Dense(2, activation="sigmoid")(layers.Flatten()(x)),
            "Dense with activation sigmoid",
        ),
        (None, r"expected one input \[H, W, C\] to train on, got \[16\]"),
    ],
)
def test_what_fine_tuning_cannot_train_is_refused_before_it_starts(
    head: Any, message: str, tmp_path: Path
) -> None:
    if head is None:
        keras = keras_format.tf_keras()
        row = keras.Input((16,))
        model = keras.Model(row, keras.layers.Dense(4)(row))
    else:
        model = _of_pictures(head)
    model.save(tmp_path / "net.keras")
    source = float_model.load(tmp_path / "net.keras", preprocessing="none")
    with pytest.raises(InvalidModelError, match=message):
        trainable(source, "net.keras")


def test_a_map_of_numbers_is_no_choice_of_classes_to_fine_tune(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    _of_pictures(lambda layers, x: x).save(tmp_path / "net.keras")
    np.savez(tmp_path / "set.npz", x=np.zeros((100, 8, 8, 3), np.uint8))
    done = edgekit(
        *("qat", tmp_path / "net.keras", *UNIT, "--data", tmp_path / "set.npz", "--distill", "1"),
        *("--batch", "32", "--epochs", "1", "--out", tmp_path / "out"),
    )
    assert done.status == 2
    assert "expected scores of two classes or more" in done.error


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_poor_export_advises_fine_tuning_where_it_can_be_done(
    activation: str, tmp_path: Path
) -> None:
    model = _of_pictures(
        lambda layers, x: layers.Dense(4, activation=activation)(layers.Flatten()(x))
    )
    model.save(tmp_path / "net.keras")
    dark = np.zeros((40, 8, 8, 3), np.uint8)
    dark[::2] += 1  # hardly a step of int8 is used
    np.savez(tmp_path / "set.npz", x=dark)
    with pytest.raises(FidelityError) as caught:
        export(
            tmp_path / "net.keras", target="tflite", precision="int8", preprocessing="unit",
            calibration=str(tmp_path / "set.npz"), correction="none", task="classification",
            out=tmp_path / "out",
        )  # fmt: skip
    advice = "`python -m edgekit.qat MODEL --preprocessing unit --data IMAGES --out FOLDER`"
    assert (advice in str(caught.value)) == (activation == "softmax")
    assert ("edgekit.qat" in str(caught.value)) == (activation == "softmax")
