"""Convert the float model into the form that a runner spec asks for, in a process of its own.

The conversion needs TensorFlow, which would occupy a GPU and which needs another CUDA than
onnxruntime. So it runs in a process that sees no GPU, and that ends before the runner starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgekit.base import schema
from edgekit.base.errors import EdgekitError, ExecutionError, InvalidModelError, last_words
from edgekit.records.artifact import MANIFEST, Artifact
from edgekit.records.signature import Preprocessing, Shapes
from edgekit.runtimes.spec import RunnerSpec


def onnx_artifact(
    model: Path,
    *,
    precision: str,
    preprocessing: Preprocessing,
    folder: Path,
    images: str | None = None,
    device: str = "generic",
    trust: bool = False,
    shapes: Shapes | None = None,
) -> Artifact:
    """Export a float model to ONNX as ``python -m edgekit.export`` does.

    Args:
        model: Keras artifact, or another file or folder that export takes.
        precision: ``float32`` or ``float16``.
        preprocessing: For what is no artifact.
        folder: Where the artifact is put, as ``onnx-PRECISION``.
        images: A ``--calibration`` word: on these nothing may overflow in float16; default random
            ones.
        device: Device profile.
        trust: Let code inside of the model run.
        shapes: Sizes of inputs with free axes.

    Raises:
        InvalidModelError: If the model cannot be exported; says what export said.
    """
    out = folder / f"onnx-{precision}"
    arguments = ["--target", "onnx", "--precision", precision, "--out", str(out)]
    arguments += ["--device", device, *(["--trust"] if trust else [])]
    if not (model / MANIFEST).is_file():
        prepared = folder / "preprocessing.json"
        prepared.write_text(schema.dumps(preprocessing), encoding="utf-8")
        arguments += ["--preprocessing", str(prepared)]
    for name, sizes in (shapes or {}).items():
        arguments += ["--shape", f"{name}={','.join(map(str, sizes))}"]
    if precision == "float16" and images is not None:
        arguments += ["--calibration", images]
    _export([*arguments, "--", str(model)])  # whatever it is called
    return Artifact.load(out)


def profile_of(spec: RunnerSpec) -> str:
    """The device profile that a spec's file is made for."""
    return "cuda" if spec.device == "cuda" else "generic"


def _export(arguments: Sequence[str]) -> None:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.export", *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "CUDA_VISIBLE_DEVICES": "-1",
        },
    )
    if done.returncode == 0:
        return
    error: EdgekitError
    if done.returncode == 2:  # its last line says what is wrong with the model or the options
        error = InvalidModelError(
            f"the reference: {last_words(done.stderr, 1).removeprefix('edgekit export: error: ')}"
        )
    else:
        error = ExecutionError(
            f"the reference: the export ended with code {done.returncode}; its last words: "
            f"{last_words(done.stderr) or 'none'}"
        )
    error.detail = f"stderr of the export:\n{done.stderr}\n"
    raise error
