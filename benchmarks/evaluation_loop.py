"""What edgekit's evaluation costs over a bare interpreter loop, on the same images.

    python benchmarks/evaluation_loop.py [ARTIFACT] [--data WORD] [--images 2000] [--rounds 9]

The bare loop sets the tensor, invokes and reads the answer, on input that was quantized beforehand.
edgekit's side is all that `compare` does for one process: preprocessing, quantization, the pipe to
the worker, dequantization, the check for NaN; of a detector also its boxes, with the NMS. Rounds
alternate; the median ratio is quoted. Without ARTIFACT, a float32 TFLite of the shipped model is
made. The last line is one JSON document.
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
from edgekit.tasks import kind


def bare(opened: object, feed: np.ndarray) -> list[np.ndarray]:
    """The shortest loop that gives all outputs ``[N, M]``, as the file lists them."""
    entry = opened.get_input_details()[0]["index"]
    ends = [each["index"] for each in opened.get_output_details()]
    outputs = [[] for _ in ends]
    for i in range(len(feed)):
        opened.set_tensor(entry, feed[i : i + 1])
        opened.invoke()
        for values, end in zip(outputs, ends, strict=True):
            values.append(opened.get_tensor(end))
    return [np.concatenate(values) for values in outputs]


def main() -> None:
    """Alternate the two loops and print the ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("artifact", nargs="?", type=Path)
    options.add_argument("--data", default="fashion_mnist")
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
        entry, ends = manifest.signature.inputs[0], manifest.signature.outputs
        samples = data.load(chosen.data, "test", shape=entry.picture, limit=chosen.images)
        images = samples.images
        right = kind.right(samples, manifest, None, as_array=False)
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
                if right.task == "detection":
                    boxes = right.pictures.boxes(found)
                    assert len(boxes) == len(images)
                ended = time.perf_counter()
                ratios.append((ended - between) / (between - started))
            laid = [
                end.dequantize(values).reshape(len(images), -1)
                for end, values in zip(ends, expected, strict=True)
            ]
            if not np.array_equal(np.sort(found), np.sort(np.concatenate(laid, axis=1))):
                raise SystemExit("the two loops gave different outputs")
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
