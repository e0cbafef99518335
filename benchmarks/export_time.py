"""Time from a Keras MobileNetV2 1.0/224 to an int8 TFLite file, beside TFLiteConverter's own way.

Both quantize the same model with the same 125 random images, one after the other, each in a fresh
process; imports and building the model are outside the clock. Last line: JSON.

    python benchmarks/export_time.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

IMAGES = 125


def images() -> npt.NDArray[np.uint8]:
    """The calibration set: uint8 ``[125, 224, 224, 3]``."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 224, 224, 3), dtype=np.uint8)


def edgekit() -> tuple[float, int]:
    """(seconds, bytes of the file) of what ``python -m edgekit.export`` does after loading."""
    from edgekit.data import images as image_sets
    from edgekit.models.mobilenet_v2 import mobilenet_v2
    from edgekit.pipeline.calibration import observe
    from edgekit.quantization import profiles
    from edgekit.quantization.quantize import quantize
    from edgekit.records.signature import preprocessing
    from edgekit.sources import convert
    from edgekit.sources.keras import tf_keras
    from edgekit.writers import tflite_integers

    tf_keras()
    model, pixels = mobilenet_v2(), images()
    start = time.perf_counter()
    canonical = convert.from_keras(model)
    calibration = image_sets.make("random", pixels, None)
    table = observe(canonical, calibration, prepare=preprocessing("symmetric"))
    decided = quantize(
        canonical,
        table,
        profile=profiles.profile(profiles.DEFAULT),
        feed=None,
        observe=None,
        correction="none",
    )
    content = tflite_integers.write(decided.graph, decided.stored)
    return time.perf_counter() - start, len(content)


def converter() -> tuple[float, int]:
    """(seconds, bytes of the file) of TFLiteConverter.from_keras_model with full-integer PTQ."""
    from edgekit.models.mobilenet_v2 import mobilenet_v2
    from edgekit.sources.keras import tensorflow, tf_keras

    tf = tensorflow()
    tf_keras()
    model, pixels = mobilenet_v2(), images()

    def samples():  # type: ignore[no-untyped-def]
        for image in pixels:
            yield [image[None].astype(np.float32) / 127.5 - 1]

    start = time.perf_counter()
    writer = tf.lite.TFLiteConverter.from_keras_model(model)
    writer.optimizations = [tf.lite.Optimize.DEFAULT]
    writer.representative_dataset = samples
    writer.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    writer.inference_input_type = writer.inference_output_type = tf.int8
    content = writer.convert()
    return time.perf_counter() - start, len(content)


def main() -> int:
    """Run both, print both times and their ratio."""
    seconds = {}
    for way in ("edgekit", "converter"):
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            command = [sys.executable, __file__, way, str(result)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
            found = json.loads(result.read_text())
        seconds[way] = found["seconds"]
        print(f"{way:10} {found['seconds']:6.2f} s  {found['bytes']:,} bytes")
    ratio = seconds["edgekit"] / seconds["converter"]
    print(f"ratio      {ratio:6.3f}  (bound 0.2)")
    print(json.dumps({**{f"{k}_seconds": v for k, v in seconds.items()}, "ratio": ratio}))
    return 0 if ratio <= 0.2 else 1


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measured, size = {"edgekit": edgekit, "converter": converter}[sys.argv[1]]()
        Path(sys.argv[2]).write_text(json.dumps({"seconds": measured, "bytes": size}))
        raise SystemExit(0)
    raise SystemExit(main())
