"""Time of edgekit's int8 TFLite and ONNX beside int8 TFLite of TensorFlow's own converter.

    python benchmarks/against_converter.py [MODEL --preprocessing NAME --calibration IMAGES]

The shipped model by default. edgekit writes both files by one command, with the default correction,
its proofs included; TFLiteConverter.from_keras_model writes the one, with the same images as
representative dataset. Each is a process of its own with an empty cache, its imports, reading the
model and the images included; of the converter, convert() alone is named as well. Rounds are
interleaved. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("edgekit", "converter")


def run(way: str, folder: Path, words: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of one way in a process of its own, and what it says of itself."""
    command = {
        "edgekit": [
            "-m", "edgekit.export", *words, "--target", "tflite,onnx", "--precision", "int8",
            "--out", str(folder / "out"),
        ],
        "converter": [__file__, *words, "--converter", str(folder)],
    }[way]  # fmt: skip
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = folder / "said.json"
    return {"wall": wall, "cpu": cpu, **(json.loads(said.read_text()) if said.is_file() else {})}


def convert(folder: Path, options: argparse.Namespace) -> None:
    """TensorFlow's guide "Post-training integer quantization", integer only."""
    from edgekit.data import feeds
    from edgekit.sources import float_model
    from edgekit.sources.keras import tensorflow

    tf = tensorflow()
    source = float_model.load(options.model, preprocessing=options.preprocessing)
    samples = source.samples(feeds.open_word(options.calibration, "calibration"))
    names = [spec.name for spec in source.inputs]

    def representative() -> Any:
        for i in range(len(samples)):
            one = feeds.feed(samples, source.inputs, source.preprocessing, slice(i, i + 1))
            yield [one[name] for name in names]

    started = time.perf_counter()
    writer = tf.lite.TFLiteConverter.from_keras_model(source.model)
    writer.optimizations = [tf.lite.Optimize.DEFAULT]
    writer.representative_dataset = representative
    writer.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    writer.inference_input_type = writer.inference_output_type = tf.int8
    content = writer.convert()
    seconds = time.perf_counter() - started
    (folder / "converter.tflite").write_bytes(content)
    (folder / "said.json").write_text(json.dumps({"convert": seconds, "samples": len(samples)}))


def main() -> None:
    """Run both ways and print what they took."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", nargs="?", type=Path)
    options.add_argument("--preprocessing")
    options.add_argument("--calibration", default="fashion_mnist")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--converter", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.converter is not None:
        convert(given.converter, given)
        return
    from edgekit.records import environment

    words = [str(given.model.resolve())] if given.model else []
    words += ["--preprocessing", given.preprocessing] if given.preprocessing else []
    words += ["--calibration", given.calibration]
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                taken[way].append(run(way, Path(folder), words))
    here = environment.describe()
    samples = int(taken["converter"][0]["samples"])
    print(f"{here.machine_class}, {here.cores} cores; {samples} samples; {here.versions}")
    seconds = {way: median(each["wall"] for each in taken[way]) for way in WAYS}
    cpu = {way: median(each["cpu"] for each in taken[way]) for way in WAYS}
    alone = median(each["convert"] for each in taken["converter"])
    for way, what in zip(WAYS, ("TFLite and ONNX", "TFLite"), strict=True):
        print(f"{way:10} {seconds[way]:6.1f} s, {cpu[way]:6.1f} s of CPU: int8 {what}")
    print(f"{'':10} {alone:6.1f} s of it in convert()")
    ratio = seconds["edgekit"] / seconds["converter"]
    of_cpu = cpu["edgekit"] / cpu["converter"]
    print(f"ratio {ratio:.2f}, of CPU seconds {of_cpu:.2f}, to convert() alone "
          f"{seconds['edgekit'] / alone:.2f}")  # fmt: skip
    print(json.dumps({"rounds": taken, "ratio": ratio, "samples": samples}))


if __name__ == "__main__":
    main()
