"""int8 files on this CPU and on ARM CPUs, image by image: what differs, in steps of the output.

    python benchmarks/arm_table.py ARTIFACT... [--limit N] [--on PLACE...] [--work DIR]
    python benchmarks/as_avx2.py python benchmarks/arm_table.py ...      the same on AVX2 alone

ARTIFACT is an int8 artifact of the shipped model; give a TFLite one too, whose output has the step.
ARM is qemu:arm64 (python -m edgekit.devices install qemu:arm64). Each row is one file at one place,
compared with the same file on this CPU. With --work a run that was stopped goes on. The last line
of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.evaluation import shards
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.runtimes import places
from edgekit.runtimes.places import HERE, PlaceSpec
from edgekit.runtimes.worker import Job, Worker

ON = ("qemu:arm64#cpu=cortex-a76", "qemu:arm64#cpu=cortex-a72")
HEAD = ("file", "CPU", "top-1 %", "same class %", "0 LSB %", "1 LSB %", "2+ LSB %", "most", "CPU s")


def run(
    artifact: Artifact, place: PlaceSpec, images: data.ImageSet, kept: shards.Work
) -> tuple[npt.NDArray[np.float32], str, float]:
    """Outputs of an artifact at a place; what CPU that is; seconds of CPU time."""
    job = Job.of(artifact, threads=1).at(place)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Worker(job) as worker:
        here = shards.this_place(environment.describe())
        where = worker.loaded.place or here
        record = shards.Run.of(job, data=images.sha256, count=len(images), shard=shards.IMAGES)
        store = kept.open(record, lambda each: shards.alike(each, where))
        values = shards.evaluate(
            store,
            worker,
            images.images,
            processes=shards.processes_for(1),
            place=where,
            advance=lambda count: None,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return np.array(values), where.machine_class, seconds


def main() -> None:
    """Print the table as Markdown."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT")
    options.add_argument("--limit", type=int, help="images (default: all 10,000)")
    options.add_argument("--on", action="append", metavar="PLACE", help=f"default: {' '.join(ON)}")
    options.add_argument("--work", type=Path, metavar="DIR", help="keeps results")
    parsed = options.parse_args()
    images = data.load("fashion_mnist", "test")
    images = images.head(parsed.limit or len(images))
    artifacts = [Artifact.load(path) for path in parsed.artifacts]
    scales = [each.manifest.signature.outputs[0].scale for each in artifacts]
    step = next((scale for scale in scales if scale), None)
    if step is None:
        sys.exit("expected a TFLite int8 artifact among the artifacts")
    rows = []
    print(f"{len(images):,} images\n")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    with tempfile.TemporaryDirectory() as folder:
        with shards.Work(parsed.work or Path(folder)) as kept:
            for artifact in artifacts:
                base: npt.NDArray[np.float32] | None = None
                for place in (HERE, *map(places.parse, parsed.on or ON)):
                    started = time.perf_counter()
                    values, machine, seconds = run(artifact, place, images, kept)
                    base = values if base is None else base
                    steps = np.rint(np.abs(values.astype(np.float64) - base) / step)
                    row = {
                        "file": f"{artifact.manifest.format}, {artifact.manifest.device}",
                        "machine": machine if place == HERE else f"{place.word}: {machine}",
                        "top1": 100 * float((values.argmax(1) == images.labels).mean()),
                        "same": 100 * float((values.argmax(1) == base.argmax(1)).mean()),
                        "lsb": [100 * float((steps == 0).mean()), 100 * float((steps == 1).mean()),
                                100 * float((steps > 1).mean())],
                        "most": int(steps.max()),
                        "cpu_seconds": seconds,
                        "seconds": time.perf_counter() - started,
                    }  # fmt: skip
                    rows.append(row)
                    cells = [row["file"], row["machine"], f"{row['top1']:.2f}"]
                    cells += [f"{row['same']:.2f}", *(f"{each:.3f}" for each in row["lsb"])]
                    cells += [str(row["most"]), f"{seconds:.0f}"]
                    print(f"| {' | '.join(cells)} |", flush=True)
    print(json.dumps({"images": len(images), "rows": rows}))


if __name__ == "__main__":
    main()
