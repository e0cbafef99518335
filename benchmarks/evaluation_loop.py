"""What edgekit's evaluation costs over a bare interpreter loop, on the same images.

    python benchmarks/evaluation_loop.py [ARTIFACT] [--images 2000] [--rounds 9]

The bare loop sets the tensor, invokes and reads the answer, on input that was quantized beforehand.
edgekit's side is all that `compare` does for one process: preprocessing, quantization, the pipe to
the worker, dequantization, the check for NaN. Rounds alternate; the median ratio is quoted. Without
ARTIFACT, a float32 TFLite of the shipped model is made. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from edgekit import data
from edgekit.evaluation.shards import IMAGES
from edgekit.export import export
from edgekit.graph import litert
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.runtimes.worker import Job, Worker


def bare(opened: object, feed: np.ndarray) -> np.ndarray:
    """The shortest loop that gives all answers."""
    entry = opened.get_input_details()[0]["index"]
    end = opened.get_output_details()[0]["index"]
    answers = []
    for i in range(len(feed)):
        opened.set_tensor(entry, feed[i : i + 1])
        opened.invoke()
        answers.append(opened.get_tensor(end))
    return np.concatenate(answers)


def main() -> None:
    """Alternate the two loops and print the ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("artifact", nargs="?", type=Path)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=9)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact = (
            Artifact.load(chosen.artifact)
            if chosen.artifact
            else export(target="tflite", precision="float32", out=Path(folder) / "model")
        )
        manifest = artifact.manifest
        images = data.load("fashion_mnist", "test").images[: chosen.images]
        entry, end = manifest.signature.inputs[0], manifest.signature.outputs[0]
        feed = entry.quantize(manifest.preprocessing.apply(images))
        opened = litert.interpreter(artifact.model_path)
        job = Job("worker", artifact.model_path, manifest.format, manifest.preprocessing, 1, {})
        ratios = []
        with Worker(job) as worker:
            shards = range(0, len(images), IMAGES)
            for _ in range(chosen.rounds + 1):
                started = time.perf_counter()
                expected = bare(opened, feed)
                between = time.perf_counter()
                found = np.concatenate([worker.outputs(images[s : s + IMAGES]) for s in shards])
                ended = time.perf_counter()
                ratios.append((ended - between) / (between - started))
            if not np.array_equal(found, end.dequantize(expected)):
                raise SystemExit("the two loops gave different answers")
    ratios = ratios[1:]  # the first round warms up
    print(f"{len(images)} images, {chosen.rounds} rounds: {', '.join(f'{r:.3f}' for r in ratios)}")
    document = {
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
        "images": len(images),
        "precision": manifest.precision,
        "machine": environment.describe().machine_class,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
