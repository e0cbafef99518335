"""How evaluation scales: time with 1 and 2 processes, memory with 10,000 and 40,000 images.

    python benchmarks/evaluation_scale.py [--images 1500] [--rounds 5] [--size 224]
    python benchmarks/evaluation_scale.py --memory [--counts 10000 40000]

Time is of MobileNetV2 1.0 in float32 TFLite, with random weights and images, from the start of the
processes to the mapped answers, shards on disk included; rounds alternate between 1 and 2
processes, and the median ratio is quoted. Beside it the same interpreter in bare loops, started and
loaded before the clock: what two processes can gain on this machine at all. Both mean little while
other programs run: `busy` is the share of the cores that they took. `cpu` is the seconds of CPU
time of this process and of the workers; the first of the two is what evaluation adds to the models'
own work.

Memory is the largest resident size of a whole `compare` of the shipped model in float32 TFLite, of
its own process and of the largest of its workers, each time in a fresh process. The test images are
repeated to make the larger sets. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import data
from edgekit.compare import Options, compare
from edgekit.evaluation import shards
from edgekit.export import export
from edgekit.graph import litert
from edgekit.records import environment, signature
from edgekit.runtimes.worker import Job, Worker, _largest_resident

#: Images a shard of the time measurement: enough shards that the last one does not decide.
SHARD = 25


def speed(count: int, size: int, rounds: int) -> dict[str, Any]:
    """Seconds by number of processes, in rounds that alternate."""
    from edgekit.models.mobilenet_v2 import mobilenet_v2
    from edgekit.sources import convert

    machine = environment.describe()
    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    used: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    busy: dict[int, list[float]] = {1: [], 2: []}
    bares: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.tflite"
        model.write_bytes(convert.from_keras(mobilenet_v2(input_shape=(size, size, 3))))
        path = Path(folder) / "images.npy"
        np.save(path, coarse.repeat(size // 7, axis=1).repeat(size // 7, axis=2))
        images = np.load(path, mmap_mode="r")
        job = Job("model", model, "tflite", signature.preprocessing("symmetric"), 1, {})
        run = shards.Run.of(job, data="0", count=count, shard=SHARD)
        for number in range(rounds):
            for processes in seconds:
                bares[processes].append(bare(model, path, count, processes))
                before, own, workers = cpu()
                started = time.perf_counter()
                work = Path(folder) / f"{number}-{processes}"
                with shards.Work(work) as kept, Worker(job) as worker:
                    shards.evaluate(
                        kept.open(run, shards.local(machine)),
                        worker,
                        images,
                        processes=processes,
                        place=shards.this_place(machine),
                        advance=lambda n: None,
                    )
                    taken = time.perf_counter() - started
                # the workers' time counts once they have ended
                ended = time.perf_counter() - started
                total, own_after, workers_after = cpu()
                ours = own_after - own, workers_after - workers
                seconds[processes].append(taken)
                used[processes].append(ours)
                busy[processes].append((total - before - sum(ours)) / ended / machine.cores)
                print(
                    f"round {number + 1}, {processes} processes: {taken:.2f} s, "
                    f"bare {bares[processes][-1]:.2f} s, "
                    f"cpu {ours[0]:.2f} s here, {ours[1]:.2f} s in workers; "
                    f"others took {100 * busy[processes][-1]:.0f} % of the cores",
                    file=sys.stderr,
                )
    ratios, ceiling = (
        [one / two for one, two in zip(times[1], times[2], strict=True)]
        for times in (seconds, bares)
    )
    return {
        "images": count,
        "seconds": seconds,
        "ratios": ratios,
        "ratio_median": statistics.median(ratios),
        "bare_seconds": bares,
        "bare_ratio_median": statistics.median(ceiling),
        "cpu": used,
        "busy": busy,
        "machine": machine.machine_class,
    }


def _bare(model: Path, images: Path, part: slice, start: Any, done: Any) -> None:
    """The shortest loop over a part of the images, from one barrier to the other."""

    opened = litert.interpreter(model, threads=1)
    entry = opened.get_input_details()[0]["index"]
    end = opened.get_output_details()[0]["index"]
    pixels = np.load(images, mmap_mode="r")[part]
    prepare = signature.preprocessing("symmetric")
    start.wait()
    for i in range(len(pixels)):
        opened.set_tensor(entry, prepare.apply(pixels[i : i + 1]))
        opened.invoke()
        opened.get_tensor(end)
    done.wait()


def bare(model: Path, images: Path, count: int, processes: int) -> float:
    """Seconds of bare loops side by side."""
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(processes + 1), context.Barrier(processes + 1)
    ends = [count * i // processes for i in range(processes + 1)]
    loops = [
        context.Process(target=_bare, args=(model, images, slice(*part), start, done))
        for part in itertools.pairwise(ends)
    ]
    for loop in loops:
        loop.start()
    start.wait()
    started = time.perf_counter()
    done.wait()
    taken = time.perf_counter() - started
    for loop in loops:
        loop.join()
    return taken


def cpu() -> tuple[float, float, float]:
    """Seconds of CPU time of the machine, of this process, and of the workers that ended."""
    machine = sum(map(int, Path("/proc/stat").read_text().split()[1:4])) / os.sysconf("SC_CLK_TCK")
    ours = resource.getrusage(resource.RUSAGE_SELF)
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return machine, ours.ru_utime + ours.ru_stime, theirs.ru_utime + theirs.ru_stime


def memory(counts: list[int]) -> dict[str, Any]:
    """Bytes by number of images."""
    found: dict[str, Any] = {}
    test = data.load("fashion_mnist", "test")
    with tempfile.TemporaryDirectory() as folder:
        made = export(target="tflite", precision="float32", out=Path(folder) / "model")
        for count in counts:
            path = Path(folder) / f"{count}.npz"
            chosen = np.arange(count) % len(test)
            assert test.labels is not None
            np.savez(path, x=test.images[chosen], y=test.labels[chosen])
            command = [sys.executable, __file__, "--one", str(made.path), str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[str(count)] = json.loads(done.stdout.splitlines()[-1])
            print(f"{count} images: {found[str(count)]}", file=sys.stderr)
    return found


def one(artifact: str, images: str) -> dict[str, Any]:
    """One whole comparison, in this process."""
    started = time.perf_counter()
    report = compare([Path(artifact)], Options(dataset=images, rounds=1))
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "own": _largest_resident(),
        "largest_worker": largest,
        "seconds": round(time.perf_counter() - started, 1),
        "top1": report.artifacts[0].metrics["top1"].value,
    }


def main() -> None:
    """Measure one of the two."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=1500)
    options.add_argument("--size", type=int, default=224, help="a multiple of 7")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--memory", action="store_true")
    options.add_argument("--counts", type=int, nargs="+", default=[10_000, 40_000])
    options.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        document = one(*chosen.one)
    elif chosen.memory:
        document = memory(chosen.counts)
    else:
        document = speed(chosen.images, chosen.size, chosen.rounds)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
