"""Time and memory of calibration against bare forward passes of the same interpreter.

    python benchmarks/calibration_time.py [--rounds N]

For the shipped model with 1,000 images and for MobileNetV2 1.0/224 (random weights) with 125 and
1,000: `observe`, the pass of `python -m edgekit.calibrate`, against the same passes without looking
at a value, once with all tensors kept and once with them fused away as deployment does it. Rounds
are interleaved.
Then peak memory with 125 and with 1,000 images at 224 px, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from edgekit import data
from edgekit.graph import litert
from edgekit.pipeline.calibration import observe
from edgekit.records import environment, signature
from edgekit.sources import convert, float_model

MEMORY = """
import resource, sys
import numpy as np
from edgekit import data
from edgekit.records import signature
from edgekit.pipeline.calibration import observe
one = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
images = np.broadcast_to(one, (int(sys.argv[2]), 224, 224, 3))  # takes no memory itself
found = data.images.ImageSet("one image, often", images, None, (), "")
observe(open(sys.argv[1], "rb").read(), found, prepare=signature.preprocessing("symmetric"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def bare(canonical: bytes, images: Any, prepare: Any, *, keep: bool) -> float:
    """Seconds of the passes, with preprocessing and opening the interpreter."""
    started = time.perf_counter()
    options = {"experimental_preserve_all_tensors": True} if keep else {}
    opened = litert.interpreter(canonical, threads=environment.cores(), **options)
    entry = opened.get_input_details()[0]["index"]
    for i in range(len(images)):
        opened.set_tensor(entry, prepare.apply(images[i : i + 1]))
        opened.invoke()
    return time.perf_counter() - started


def main() -> None:
    """Print both models' times, ratios and the memory."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args().rounds
    from edgekit.models.mobilenet_v2 import mobilenet_v2

    shipped = float_model.load(None)
    calibration = data.load("fashion_mnist", "calibration")
    pixels = np.random.default_rng(0).integers(0, 256, (125, 224, 224, 3), dtype=np.uint8)
    random = data.images.make("random", pixels, None)
    many = data.images.make("random", np.tile(pixels, (8, 1, 1, 1)), None)
    symmetric = signature.preprocessing("symmetric")
    large = convert.from_keras(mobilenet_v2())
    document = {}
    for name, canonical, images, prepare in (
        (
            "shipped, 1,000 images",
            convert.from_keras(shipped.model),
            calibration,
            shipped.preprocessing,
        ),
        ("1.0/224, 125 images", large, random, symmetric),
        ("1.0/224, 1,000 images", large, many, symmetric),
    ):
        times: dict[str, list[float]] = {"observe": [], "kept": [], "fused": []}
        for _ in range(rounds):
            started = time.perf_counter()
            observe(canonical, images, prepare=prepare)
            times["observe"].append(time.perf_counter() - started)
            times["kept"].append(bare(canonical, images.images, prepare, keep=True))
            times["fused"].append(bare(canonical, images.images, prepare, keep=False))
        median = {key: float(np.median(taken)) for key, taken in times.items()}
        print(
            f"{name}: calibration {median['observe']:.3f} s, bare passes {median['kept']:.3f} s "
            f"(tensors kept, ratio {median['observe'] / median['kept']:.2f}), "
            f"{median['fused']:.3f} s (fused, ratio {median['observe'] / median['fused']:.2f})"
        )
        document[name] = {"seconds": times, "median": median}
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(large)
        file.flush()
        for count in (125, 1000):
            command = [sys.executable, "-c", MEMORY, file.name, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            mib = int(done.stdout.split()[-1])
            print(f"peak memory with {count} images at 224 px: {mib} MiB")
            document[f"peak MiB, {count} images"] = mib
    print(json.dumps(document))


if __name__ == "__main__":
    main()
