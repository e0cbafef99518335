"""Fixtures shared by all tests: one small trained-enough model, made once a session."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

#: A slow machine is no failure.
settings.register_profile("edgekit", deadline=None)
settings.load_profile("edgekit")

ROOT = Path(__file__).resolve().parents[1]

#: The files that take longest, which start first, so that no process waits for the other at the
#: end. The second one needs no ``artifacts``, which the first one makes meanwhile.
LONGEST = (
    "test_compare.py",
    "test_train.py",
    "test_layers.py",
    "test_qat.py",
    "test_export.py",
    "test_quant_layers.py",
    "test_written_integers.py",
    "test_own_models.py",
    "test_readme.py",
    "test_mistakes.py",
    "test_stream.py",
    "test_recording.py",
    "test_half.py",
    "test_calibrate.py",
    "test_gpu_suite.py",
    "test_finetune.py",
    "test_models_slim.py",
    "test_corpus.py",
    "test_train_replicas.py",
    "test_shards.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first; pytest-xdist keeps this order with ``--no-loadscope-reorder``."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


class Done:
    """A finished command: exit status, both streams, the closing JSON document."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    @property
    def document(self) -> Any:
        return json.loads(self.stdout.strip().splitlines()[-1])

    @property
    def error(self) -> str:
        """The one line of a failed command."""
        lines = [line for line in self.stderr.splitlines() if "edgekit" in line and "error" in line]
        assert len(lines) == 1, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        return lines[0]


def same_figures(found: Any, expected: Any) -> None:
    """Two reports say the same of the answers, image by image."""
    pairs = zip(
        (found.reference, *found.artifacts), (expected.reference, *expected.artifacts), strict=True
    )
    for ours, theirs in pairs:
        assert ours.correct == theirs.correct
        for name in ("top1", "top5", "agreement", "mcnemar_p", "kl", "sqnr"):
            assert ours.metrics[name] == theirs.metrics[name]


@functools.cache
def lacking(data_format: str, precision: str, *, training: bool) -> str:
    """Why this CPU computes no convolutional net in this form, as edgekit says it; empty if it
    does. A test asks it first, and expects that refusal or the net's predictions."""
    from edgekit.base.errors import ExecutionError
    from edgekit.sources import arrange

    try:
        arrange.require(data_format, precision, device="/CPU:0", training=training)
    except ExecutionError as refusal:
        return str(refusal)
    return ""


def _of_all(factory: pytest.TempPathFactory) -> Path:
    """The folder of all processes which run the tests."""
    root = factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of the processes which run the tests makes, and all of them read."""
    root = _of_all(factory)
    folder = root / f"{name}-of-all"
    with (root / f"{name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if not folder.is_dir():
            part = root / f"{name}-part"
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tests' own cache and no GitHub: what they find there is what they put there.

    One for all processes: to decide the integers of the shipped model takes a minute.
    """
    folder = _of_all(tmp_path_factory) / "cache"
    folder.mkdir(exist_ok=True)
    if "PYTEST_XDIST_WORKER" in os.environ:  # which ignores Ctrl-C, and so would what it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            patch.delenv(name, raising=False)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_lines_of_progress() -> Iterator[None]:
    """A slow machine is no failure: tests that count lines see no progress among them."""
    from edgekit.base import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "LOG_SECONDS", 3600.0)
        yield


@pytest.fixture(scope="session")
def frameworks(cache: Path) -> Iterator[subprocess.Popen[str] | None]:
    """``tests/forked.py``; None where a GPU is, whose driver no process may take over by a fork."""
    from edgekit.records import environment

    if environment.gpu() is not None:
        yield None
        return
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "forked.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, _paths()))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _paths() -> tuple[str, ...]:
    return (str(ROOT), os.environ.get("PYTHONPATH", ""))


@pytest.fixture(scope="session")
def edgekit(
    frameworks: subprocess.Popen[str] | None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Done]:
    """Run ``python -m edgekit.VERB ARGUMENTS`` in a process of its own, from the repository."""
    streams = tmp_path_factory.mktemp("streams")

    def call(verb: str, *arguments: object, timeout: int = 300, **env: str) -> Done:
        module, words = f"edgekit.{verb}", [str(word) for word in arguments]
        if frameworks is None:
            done = subprocess.run(
                [sys.executable, "-m", module, *words],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=timeout,
                env={**os.environ, **env},
            )
            return Done(done.returncode, done.stdout, done.stderr)
        asked = {
            "module": module,
            "arguments": words,
            "env": {**os.environ, **env},
            "folder": str(ROOT),
            "seconds": timeout,
            "stdout": str(streams / "stdout"),
            "stderr": str(streams / "stderr"),
        }
        assert frameworks.stdin is not None and frameworks.stdout is not None
        print(json.dumps(asked), file=frameworks.stdin, flush=True)
        status = int(frameworks.stdout.readline())
        stdout, stderr = ((streams / name).read_text() for name in ("stdout", "stderr"))
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired([module, *words], timeout, stdout, stderr)
        return Done(status, stdout, stderr)

    return call


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped model as TFLite and ONNX in float32 and int8, by ``TARGET-PRECISION``."""
    names = [(t, p) for t in ("tflite", "onnx") for p in ("float32", "int8")]

    def make(folder: Path) -> None:
        from exported import export_all

        whole = export_all(
            targets=["tflite", "onnx"], precisions=["float32", "int8"], out=folder / "whole"
        )
        for (target, precision), written in zip(names, whole, strict=True):
            written.path.rename(folder / f"{target}-{precision}")

    folder = made_once(tmp_path_factory, "artifacts", make)
    return {
        f"{target}-{precision}": folder / f"{target}-{precision}" for target, precision in names
    }


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small.keras, a net with every kind of layer, and set.npz with 40 images for it."""
    return made_once(tmp_path_factory, "small", _make_small)


def _make_small(folder: Path) -> None:
    import numpy as np

    from edgekit.sources.keras import tf_keras

    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(3)
    keras.backend.reset_uids()  # names of layers do not depend on what ran before
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    left = layers.Conv2D(8, 1, activation="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same")(left)
    y = layers.Conv2D(8, 1)(layers.ReLU(6.0)(y))
    x = layers.Concatenate()([layers.Add()([x, y]), layers.Conv2D(4, 1)(y)])
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(x))
    model = keras.Model(image, layers.Dense(5, activation="softmax")(x))
    model.save(folder / "small.keras")
    pixels = np.random.default_rng(2).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    np.savez(folder / "set.npz", x=pixels)


@pytest.fixture(scope="session")
def tiny(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """small.keras as a float32 TFLite artifact, and an .npz of 240 images with labels for it."""

    def make(folder: Path) -> None:
        import numpy as np
        from exported import export

        export(
            small / "small.keras",
            target="tflite",
            precision="float32",
            preprocessing="unit",
            out=folder / "tiny",
        )
        from edgekit.sources import keras

        random = np.random.default_rng(5)
        pixels = random.integers(0, 256, (240, 12, 12, 3), dtype=np.uint8)
        model = keras.load(small / "small.keras")
        scores = np.asarray(keras.call(model, [pixels / np.float32(255)])[0])
        np.savez(folder / "set.npz", x=pixels, y=mostly_right(scores, random))

    folder = made_once(tmp_path_factory, "tiny", make)
    return folder / "tiny", folder / "set.npz"


def mostly_right(scores: Any, random: Any) -> Any:
    """Labels by which a model that was not trained is right on four of five samples."""
    import numpy as np

    labels = scores.argmax(axis=1).astype(np.int64)
    return np.where(random.random(len(labels)) < 0.8, labels, (labels + 1) % scores.shape[1])


@pytest.fixture(scope="session")
def whole(tiny: tuple[Path, Path]) -> Any:
    """The report of ``tiny``, made in one go by one process."""
    from edgekit.compare import Options, compare

    return compare([tiny[0]], Options(dataset=str(tiny[1]), rounds=1, shard=2, processes=1))
