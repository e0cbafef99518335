"""Images a second while training: edgekit's step against a plain ``model.fit`` of the same net.

    python benchmarks/train_speed.py [--rounds 3] [--steps 40]
    python benchmarks/train_speed.py --parts                 # what each part of the step brings
    python benchmarks/train_speed.py --grid                  # layouts, precisions, XLA on a GPU
    python benchmarks/train_speed.py --grid --device cpu     # those of them that a CPU can do
    python benchmarks/train_speed.py --grid "NCHW float32" --device cpu --steps 4 --rounds 1

Each side runs in its own process, because threads are set once a process; rounds go through all
sides in turn. ``plain`` is Keras' own loop without augmentation, weight decay and moving average;
edgekit's step does all three. CPU seconds a thousand images are less disturbed by other programs
than images a second. Prints each sample on stderr and a line a side; the last line of stdout is one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

BATCH = 128
FUSED = 20
#: What is changed of the step as it is, by name.
PARTS: dict[str, dict[str, Any]] = {
    "model.fit": {"plain": True},
    "model.fit, oneDNN off": {"plain": True, "onednn": "0"},
    "edgekit": {},
    "edgekit, oneDNN off": {"onednn": "0"},
    "edgekit, 1x1 convolutions by oneDNN": {"matmul": False},
    "edgekit, one tower, two threads an operator": {"towers": 1},
    "edgekit, 4 towers": {"towers": 4},
    "edgekit, one step a call": {"fused": 1},
    "edgekit, no augmentation": {"recipe": {"shift": 0, "flip": False, "erase": 0.0}},
    "edgekit, no moving average": {"recipe": {"ema": 0.0}},
    "edgekit, NCHW": {"data_format": "NCHW"},
    "edgekit, bfloat16": {"precision": "bfloat16"},
    "edgekit, XLA": {"jit": True},
}
CPU_NET = {"width": 0.35, "size": 28, "channels": 1, "classes": 10, "lowered": 2, "batch": BATCH}
GPU_NET = {"width": 1.0, "size": 224, "channels": 3, "classes": 1000, "lowered": 0, "batch": 96}


def network(net: dict[str, Any]) -> Any:
    """MobileNetV2 for the images of :func:`images`."""
    from edgekit.models.mobilenet_v2 import mobilenet_v2

    return mobilenet_v2(
        width=net["width"],
        input_shape=(net["size"], net["size"], net["channels"]),
        classes=net["classes"],
        lowered_strides=net["lowered"],
    )


def plain(side: dict[str, Any]) -> dict[str, float]:
    """Keras' own loop, as a user would write it: defaults everywhere."""
    from edgekit.sources.keras import tf_keras

    model = network(side["net"])
    model.compile(tf_keras().optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    batch = side["net"]["batch"]
    x, y = images(side["net"], side["steps"] * batch)
    model.fit(x[: 4 * batch] / 255, y[: 4 * batch], batch_size=batch, verbose=0)
    x = (x / 255).astype(np.float32)
    clock = Clock()
    model.fit(x, y, batch_size=batch, verbose=0)
    return clock.speed(len(x))


def edgekit(side: dict[str, Any]) -> dict[str, float]:
    """edgekit's step with all that it does, or with one thing changed."""
    from edgekit.records import environment
    from edgekit.records.signature import preprocessing
    from edgekit.sources import arrange
    from edgekit.sources.keras import tensorflow
    from edgekit.training.recipes import Recipe
    from edgekit.training.trainer import Trainer, configure_threads

    tf = tensorflow()
    gpu = side["device"] == "gpu"
    cores = environment.cores()
    towers = side.get("towers", 1 if gpu else cores)
    if towers == 1 and not gpu:
        tf.config.threading.set_intra_op_parallelism_threads(cores)
    else:
        configure_threads(min(towers, cores))
    data_format, precision = side.get("data_format", "NHWC"), side.get("precision", "float32")
    device = "/GPU:0" if gpu else "/CPU:0"
    arrange.require(data_format, precision, device=device, training=True)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    batch = side["net"]["batch"]
    x, y = images(side["net"], side["steps"] * batch)
    model = arrange.arrange(
        network(side["net"]),
        data_format=data_format,
        precision=precision,
        matmul=side.get("matmul", not gpu),
    )
    trainer = Trainer(
        model,
        Recipe(batch=batch, learning_rate=0.01, **side.get("recipe", {})),
        images=x,
        labels=y,
        prepare=preprocessing("unit"),
        towers=towers,
        data_format=data_format,
        scaled=precision == "mixed_float16",
        jit=side.get("jit", False),
    )
    order = np.arange(len(x)).reshape(-1, batch)
    rates = np.full(len(order), 0.01, np.float32)
    fused = side.get("fused", FUSED)
    started = time.perf_counter()
    trainer.run_epoch_part(order[:fused], rates[:fused])
    first = time.perf_counter() - started
    clock = Clock()
    for begin in range(0, len(order), fused):
        trainer.run_epoch_part(order[begin : begin + fused], rates[begin : begin + fused])
    found = clock.speed(len(x)) | {"first_call_s": first}
    if side.get("infer"):
        found["inference_images_per_second"] = inference(model, x[:batch], side)
    return found


def inference(model: Any, x: np.ndarray, side: dict[str, Any]) -> float:
    """Images a second of the forward pass on a batch that lies on the device."""
    from edgekit.sources.keras import tensorflow

    tf = tensorflow()
    values = tf.constant(x / 255, tf.float32)
    if side.get("data_format") == "NCHW":
        values = tf.transpose(values, [0, 3, 1, 2])
    forward = tf.function(lambda v: model(v, training=False), jit_compile=side.get("jit", False))
    forward(values).numpy()
    clock = Clock()
    for _ in range(side["steps"]):
        forward(values).numpy()
    return clock.speed(len(x) * side["steps"])["images_per_second"]


class Clock:
    """Wall and CPU time from its making on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def speed(self, count: int) -> dict[str, float]:
        """Of so many images."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"images_per_second": count / wall, "cpu_s_per_1000": 1000 * cpu / count}


def images(net: dict[str, Any], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels: speed does not depend on them."""
    rng = np.random.default_rng(0)
    shape = (count, net["size"], net["size"], net["channels"])
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, net["classes"], count)


def in_process(side: dict[str, Any]) -> dict[str, Any]:
    """Run one side in a process of its own; what a device cannot do comes back as ``left_out``."""
    environment = dict(os.environ)
    if "onednn" in side:
        environment["TF_ENABLE_ONEDNN_OPTS"] = side["onednn"]
    command = [sys.executable, __file__, "--side", json.dumps(side)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def one_side(side: dict[str, Any]) -> None:
    """The child's part."""
    from edgekit.base.errors import ExecutionError

    try:
        found: dict[str, Any] = plain(side) if side.get("plain") else edgekit(side)
    except ExecutionError as exc:
        found = {"left_out": str(exc)}
    print(json.dumps(found))


def grid() -> dict[str, dict[str, Any]]:
    """Layout x precision x XLA."""
    return {
        f"{layout} {precision}{' XLA' if jit else ''}": {
            "data_format": layout,
            "precision": precision,
            "jit": jit,
            "infer": True,
        }
        for jit in (False, True)
        for layout in ("NHWC", "NCHW")
        for precision in ("float32", "mixed_float16", "bfloat16")
    }


def measure(sides: dict[str, dict[str, Any]], rounds: int, base: str) -> dict[str, Any]:
    """All sides in turn, ``rounds`` times; medians of each, and of its ratio to ``base``."""
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            if not (samples[name] and "left_out" in samples[name][0]):
                samples[name].append(in_process(side))
                print(f"{name}: {samples[name][-1]}", file=sys.stderr, flush=True)
    found: dict[str, Any] = {}
    for name, taken in samples.items():
        if "left_out" in taken[0]:
            found[name] = taken[0]
            print(f"{name}: left out: {taken[0]['left_out']}")
            continue
        found[name] = {key: statistics.median(each[key] for each in taken) for key in taken[0]}
        ratios = [
            ours["images_per_second"] / theirs["images_per_second"]
            for ours, theirs in zip(taken, samples[base], strict=True)
        ]
        found[name]["ratio"] = statistics.median(ratios)
        found[name]["ratios"] = ratios
        numbers = ", ".join(f"{k} {v:.4g}" for k, v in found[name].items() if k != "ratios")
        print(f"{name}: {numbers}", flush=True)
    return found


def main() -> int:
    """Alternate the sides and print medians and ratios."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--parts", nargs="*", metavar="NAME", help="of: " + "; ".join(PARTS))
    options.add_argument("--grid", nargs="*", metavar="NAME", help="of: " + "; ".join(grid()))
    options.add_argument("--device", choices=("gpu", "cpu"), help="of --grid (default: gpu)")
    options.add_argument("--side", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.side:
        one_side(json.loads(chosen.side))
        return 0
    device = chosen.device or ("cpu" if chosen.grid is None else "gpu")
    if device == "gpu":
        from edgekit.records import environment

        if environment.gpu() is None:
            print(
                "train_speed: error: the grid needs a GPU, this machine has no NVIDIA driver or "
                "GPU; try it with --device cpu",
                file=sys.stderr,
            )
            return 2
    sides, wanted, base = PARTS, ["edgekit"], "model.fit"
    if chosen.grid is not None:
        sides, wanted, base = grid(), chosen.grid or list(grid()), "NHWC float32"
    elif chosen.parts is not None:
        wanted = chosen.parts or list(PARTS)
    unknown = [name for name in wanted if name not in sides]
    if unknown:
        options.error(f"unknown part {unknown[0]!r}; expected some of {', '.join(sides)}")
    sides = {name: sides[name] for name in dict.fromkeys((base, *wanted))}
    common = {
        "net": GPU_NET if device == "gpu" else CPU_NET,
        "steps": chosen.steps,
        "device": device,
    }
    sides = {name: common | side for name, side in sides.items()}
    print(json.dumps({"device": device, "sides": measure(sides, chosen.rounds, base)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
