"""Keras files and SavedModels on TensorFlow: what runs inside of the clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import made_once

from edgekit.records import environment
from edgekit.sources import keras as keras_format

#: Evaluates 250, 250 and 7 images, then takes latencies at batch 1; prints for each model how
#: often TensorFlow traced while it was loaded, evaluated and timed.
_SCRIPT = """
import json, sys
from pathlib import Path

import numpy as np

from edgekit.sources.keras import tensorflow
from edgekit.runtimes import open_runner
from edgekit.runtimes.worker import Job, latencies, outputs
from edgekit.records.signature import preprocessing

tensorflow()
from tensorflow.python.framework import func_graph

traced, trace = 0, func_graph.func_graph_from_py_func


def counted(*arguments, **options):
    global traced
    traced += 1
    return trace(*arguments, **options)


func_graph.func_graph_from_py_func = counted
images = np.random.default_rng(0).integers(0, 256, (507, 12, 12, 3), dtype=np.uint8)
found = {}
for word in sys.argv[1:]:
    model = Path(word)
    kind = "keras" if model.is_file() else "saved_model"
    counts = [traced]
    runner = open_runner(model, format=kind, threads=1)
    job = Job(model.name, model, kind, preprocessing("unit"), 1, {})
    counts.append(traced)
    outputs(runner, job, images)
    counts.append(traced)
    latencies(runner, job, images[:1], 10)
    counts.append(traced)
    found[model.name] = {
        "loaded": counts[1] - counts[0],
        "evaluated": counts[2] - counts[1],
        "timed": counts[3] - counts[2],
        "options": runner.describe().options,
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def nets(small: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A net with batch normalisation as Keras 2 and 3 files and as a SavedModel."""

    def make(folder: Path) -> None:
        model = keras_format.load(small / "small.keras")
        keras_format.tensorflow().saved_model.save(model, str(folder / "saved"))
        import keras

        image = keras.Input((12, 12, 3), name="image")
        x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(image)
        x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(x))
        x = keras.layers.Dense(5, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
        keras.Model(image, x).save(folder / "three.keras")

    folder = made_once(tmp_path_factory, "nets-of-tensorflow", make)
    return [small / "small.keras", folder / "three.keras", folder / "saved"]


@pytest.fixture(scope="module", params=["this CPU", "AVX2"])
def ran(request: pytest.FixtureRequest, nets: list[Path]) -> tuple[str, dict[str, Any], list[str]]:
    """The CPU, what the script found, and oneDNN's lines about what it executed."""
    env = {**os.environ, "ONEDNN_VERBOSE": "1"}
    if request.param == "AVX2":
        env |= {"ONEDNN_MAX_CPU_ISA": "AVX2", environment.HIDDEN: "avx512f"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *map(str, nets)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    *lines, document = done.stdout.splitlines()
    executed = [line for line in lines if line.startswith("onednn_verbose") and ",exec," in line]
    return request.param, json.loads(document), executed


@pytest.mark.slow
def test_a_model_is_traced_while_it_is_loaded_and_never_again(
    ran: tuple[str, dict[str, Any], list[str]],
) -> None:
    _, found, _ = ran
    assert len(found) == 3
    for name, counts in found.items():
        assert (counts["loaded"] > 0) == name.endswith(".keras"), name  # a SavedModel is a graph
        assert (counts["evaluated"], counts["timed"]) == (0, 0), name


@pytest.mark.skipif("avx2" not in environment.isa(), reason="oneDNN's x86 kernels need AVX2")
def test_batch_normalisation_is_fused_only_where_onednn_has_a_kernel_for_it(
    ran: tuple[str, dict[str, Any], list[str]],
) -> None:
    """Without AVX-512 it would be computed by plain loops behind each convolution."""
    cpu, found, executed = ran
    convolutions = [line for line in executed if ",convolution," in line]
    fused = [line for line in convolutions if "post-ops:binary" in line]
    assert convolutions
    able = cpu == "this CPU" and "avx512f" in environment.isa()
    assert bool(fused) == able
    for counts in found.values():
        assert counts["options"] == ({} if able else {"remapping": "off"})
