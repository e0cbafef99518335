"""Images a second while training: edgekit's towers against a plain ``model.fit`` of the same net.

    python benchmarks/train_speed.py [--rounds 3] [--steps 40]

Each side runs in its own process, because threads are set once a process; the rounds of the two
alternate. Prints a line a round and the median ratio; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np

BATCH = 128
SHAPE = (28, 28, 1)


def plain(steps: int) -> float:
    """Keras' own loop, as a user would write it: defaults everywhere."""
    from edgekit.formats.keras import tf_keras
    from edgekit.models.mobilenet_v2 import mobilenet_v2

    model = mobilenet_v2(width=0.35, input_shape=SHAPE, classes=10, lowered_strides=2)
    model.compile(tf_keras().optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    x, y = images(steps)
    model.fit(x[: 4 * BATCH] / 255, y[: 4 * BATCH], batch_size=BATCH, verbose=0)
    x = (x / 255).astype(np.float32)
    started = time.perf_counter()
    model.fit(x, y, batch_size=BATCH, verbose=0)
    return len(x) / (time.perf_counter() - started)


def towers(steps: int) -> float:
    """edgekit's step, with all that it does: augmentation, weight decay, moving average."""
    import os

    from edgekit.models.mobilenet_v2 import mobilenet_v2
    from edgekit.recipes import Recipe
    from edgekit.signature import preprocessing
    from edgekit.training.trainer import Trainer, configure_threads

    count = os.cpu_count() or 1
    configure_threads(count)
    x, y = images(steps)
    trainer = Trainer(
        mobilenet_v2(width=0.35, input_shape=SHAPE, classes=10, lowered_strides=2),
        Recipe(batch=BATCH, learning_rate=0.01),
        images=x,
        labels=y,
        prepare=preprocessing("unit"),
        towers=count,
    )
    order = np.arange(len(x)).reshape(steps, BATCH)
    rates = np.full(steps, 0.01, np.float32)
    trainer.run_epoch_part(order[:4], rates[:4])
    started = time.perf_counter()
    for first in range(0, steps, 20):
        trainer.run_epoch_part(order[first : first + 20], rates[first : first + 20])
    return len(x) / (time.perf_counter() - started)


def images(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels: speed does not depend on them."""
    rng = np.random.default_rng(0)
    count = steps * BATCH
    return rng.integers(0, 256, (count, *SHAPE), np.uint8), rng.integers(0, 10, count)


def main() -> None:
    """Alternate the two and print the ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--side", choices=("plain", "towers"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.side:
        print({"plain": plain, "towers": towers}[chosen.side](chosen.steps))
        return
    speeds: dict[str, list[float]] = {"plain": [], "towers": []}
    for round_number in range(chosen.rounds):
        for side, samples in speeds.items():
            command = [sys.executable, __file__, "--side", side, "--steps", str(chosen.steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            samples.append(float(done.stdout.split()[-1]))
        print(
            f"round {round_number + 1}: model.fit {speeds['plain'][-1]:.0f} images/s, "
            f"edgekit {speeds['towers'][-1]:.0f} images/s",
            flush=True,
        )
    ratios = [t / p for t, p in zip(speeds["towers"], speeds["plain"], strict=True)]
    document = {"images_per_second": speeds, "ratio_median": statistics.median(ratios)}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
