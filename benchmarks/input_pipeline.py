"""Streamed input beside the step that it feeds: ImageNet's shape of files, on this machine's cores.

    python benchmarks/input_pipeline.py [--images 2000] [--steps 12] [--folder DIR]

Makes TFRecord shards of JPEGs (500 x 375, noise on smooth colours, about 110 KB each, ImageNet's
mean), then prints

- resident memory after a quarter of the images, and after all, with a small shuffle buffer;
- images a second, and CPU time an image (which others on the machine change less), of reading,
  decoding and distorting alone, for each augmentation, on one thread and on all cores, with whole
  pictures decoded before they are cropped (what decoding where the crop is saves), and with every
  crop antialiased;
- of training MobileNetV2 1.0 at 224 pixels: the share of the time in which a step waits for its
  batch, with what is read ahead and with each batch begun when it is asked for; and the step's time
  over that of the same step on arrays in memory, because decoding and training share the cores.

The last line is one JSON document. Ratios are of runs that alternate; others may use the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import pictures
from PIL import Image

from edgekit.data import tfrecord
from edgekit.records import environment
from edgekit.records.signature import preprocessing
from edgekit.sources import keras as keras_format
from edgekit.training import distort, recipes, stream
from edgekit.training.recipes import Recipe
from edgekit.training.trainer import configure_threads

SHAPE = (224, 224, 3)
SHARDS = 16


def photo(random: np.random.Generator) -> bytes:
    """A JPEG of 500 x 375 and about 110 KB."""
    coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
    noisy = smooth + random.normal(0, 16, smooth.shape)
    return pictures.jpeg(np.clip(noisy, 0, 255).astype(np.uint8), quality=92)


def write(root: Path, count: int) -> None:
    """``train-000??-of-00016``; a few hundred different photos, again and again."""
    random = np.random.default_rng(0)
    photos = [photo(random) for _ in range(min(count, 250))]
    rows = [(photos[i % len(photos)], i % 1000 + 1) for i in range(count)]
    pictures.shards(root, "train", rows, SHARDS)
    print(f"{count} JPEGs of {np.mean([len(p) for p in photos]) / 1024:.0f} KiB", flush=True)


def whole_first(content: Any, window: Any, channels: int, background: str) -> Any:
    """All of a JPEG decoded, then cropped: what decoding where the crop is saves."""
    tf = keras_format.tensorflow()
    pixels = tf.image.decode_jpeg(content, channels=channels, dct_method="INTEGER_ACCURATE")
    top, left, high, wide = tf.unstack(window(tf.shape(pixels)[:2]))
    return pixels[top : top + high, left : left + wide]


def speed(made: stream.Stream, batches: int, *, parallel: bool = True) -> tuple[float, float]:
    """(images a second, CPU ms an image) of the input alone, after what was read ahead."""
    found = made.batches(0, batches + 4)
    waiting = iter(found if parallel else in_turn(found))
    for _ in range(4):
        next(waiting)
    started, used = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(waiting)
    count = batches * made.recipe.batch
    spent, used = time.perf_counter() - started, time.process_time() - used
    return count / spent, 1000 * used / count


def alone(made: stream.Stream, batches: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Every way, in turn."""

    def recipe(augmentation: str) -> Recipe:
        crop = 0.08 if augmentation == "inception" else 1.0
        return replace(made.recipe, augmentation=augmentation, crop=crop)

    ways: dict[str, tuple[stream.Stream, dict[str, Any]]] = {
        "inception": (made, {}),
        "plain": (replace(made, recipe=recipe("plain")), {}),
        "small (Pillow)": (replace(made, recipe=recipe("small")), {}),
        "inception, whole pictures": (made, {"whole": True}),
        "inception, all antialiased": (made, {"shrunk": 0.0}),
        "inception, one thread": (made, {"cores": 1}),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (each, how) in ways.items():
            cropped = whole_first if how.get("whole") else distort._cropped
            cores = how.get("cores", environment.cores())
            with (
                mock.patch.object(distort, "_cropped", cropped),
                mock.patch.object(distort, "SHRUNK", how.get("shrunk", distort.SHRUNK)),
                mock.patch.object(environment, "cores", lambda cores=cores: cores),
            ):
                found[name].append(speed(each, batches, parallel=cores > 1))
    return found


class Watched:
    """An iterator of batches that counts the seconds in which it was waited for."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __next__(self) -> Any:
        started = time.perf_counter()
        found = next(self._batches)
        self.seconds += time.perf_counter() - started
        return found


class OneStep(stream.StreamTrainer):
    """Steps of a batch that was taken from the stream outside of the graph."""

    def _function(self, steps: Any) -> Any:
        return keras_format.tensorflow().function(self._one_step)


def training(made: stream.Stream, steps: int, towers: int) -> dict[str, float]:
    """Medians: seconds a step on arrays, streamed over that, shares of waiting."""
    from edgekit.models.mobilenet_v2 import mobilenet_v2

    tf = keras_format.tensorflow()
    model = mobilenet_v2(width=1.0, input_shape=SHAPE, classes=1000)
    trainer = OneStep(model, made.recipe, stream=made, prepare=made.prepare, towers=towers)
    ready = next(iter(made.batches(0, 1)))
    rate = tf.constant(0.01)
    trainer._run(ready[:2], rate)  # traces
    found: dict[str, list[float]] = {
        name: [] for name in ("memory", "ratio", "waits", "waits_bare")
    }
    for prefetch in (True, False):
        batches = made.batches(0, steps + 4) if prefetch else bare(made, steps + 4)
        waiting = Watched(iter(batches))
        next(waiting)
        for _ in range(steps):
            started = time.perf_counter()
            before = waiting.seconds
            x, y, _position = next(waiting)
            waited = waiting.seconds - before
            trainer._run((x, y), rate)[0].numpy()
            spent = time.perf_counter() - started
            found["waits" if prefetch else "waits_bare"].append(waited / spent)
            if not prefetch:
                continue
            started = time.perf_counter()
            trainer._run(ready[:2], rate)[0].numpy()
            found["memory"].append(time.perf_counter() - started)
            found["ratio"].append(spent / found["memory"][-1])
        del waiting
    return {name: statistics.median(each) for name, each in found.items()}


def bare(made: stream.Stream, steps: int) -> Any:
    """Batches that are begun only when they are asked for, on one thread."""
    tf = keras_format.tensorflow()
    with (
        mock.patch.object(tf.data.Dataset, "prefetch", lambda self, count: self),
        mock.patch.object(environment, "cores", lambda: 1),
    ):
        found = made.batches(0, steps)
    return in_turn(found)


def in_turn(batches: Any) -> Any:
    """Without what tf.data makes parallel, or reads ahead, of its own accord."""
    options = keras_format.tensorflow().data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return batches.with_options(options)


def resident() -> float:
    """MB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Make the files, measure the input alone, then beside a step."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--batches", type=int, default=4, help="of 96 images, a way and round")
    options.add_argument("--steps", type=int, default=12, help="of 32 images, of training")
    options.add_argument("--folder", type=Path, help="keep the files here")
    chosen = options.parse_args()
    towers = environment.cores()
    configure_threads(towers)
    document: dict[str, Any] = {"cores": environment.cores()}
    with tempfile.TemporaryDirectory() as temporary:
        root = chosen.folder or Path(temporary)
        if not list(root.glob("train-*")):
            write(root, chosen.images)
        started = time.perf_counter()
        shards = tfrecord.shards(str(root), "train", {})
        document["scan_ms_per_1000"] = round(1e6 * (time.perf_counter() - started) / len(shards), 1)
        preset = recipes.load("paper")
        prepare = preprocessing(preset.preprocessing)
        made = stream.Stream(
            stream.ShardFeed(shards, offset=0, classes=1000), SHAPE, prepare, preset.recipe
        )
        memory = []
        for share in (0.25, 0.25, 1.0):  # the first of them warms up
            with mock.patch.object(stream, "BUFFER", 16 << 20):  # full after 150 images
                feed = stream.ShardFeed(shards.head(int(len(shards) * share)), offset=0)
            part = replace(made, feed=feed)
            speed(part, int(len(shards) * share / 96))
            memory.append(resident())
        print(f"resident after a quarter {memory[1]:.0f} MB, after all {memory[2]:.0f} MB")
        document["resident_mb"] = memory
        speeds = alone(made, chosen.batches, chosen.rounds)
        base = statistics.median(rate for rate, _ in speeds["inception"])
        for name, each in speeds.items():
            rate, used = (statistics.median(values) for values in zip(*each, strict=True))
            print(
                f"{name}: {rate:.0f} images/s, {rate / base:.2f} of inception; "
                f"{used:.2f} ms of CPU",
                flush=True,
            )
        document["images_per_second_and_cpu_ms"] = speeds
        small = replace(made, recipe=replace(made.recipe, batch=32))
        steps = training(small, chosen.steps, towers)
        print(
            f"step {steps['memory']:.2f} s on arrays, {steps['ratio']:.2f} times that "
            f"streamed; waits {100 * steps['waits']:.1f} % of the time, "
            f"{100 * steps['waits_bare']:.1f} % with nothing read ahead"
        )
        document["training"] = steps
    print(json.dumps(document))


if __name__ == "__main__":
    main()
