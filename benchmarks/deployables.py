"""Six deployables of one model: six commands beside one.

    python benchmarks/deployables.py [MODEL --preprocessing NAME --calibration IMAGES]

The shipped model by default. Each way starts from an empty cache, so that statistics and integers
are found anew; of the six commands the second int8 takes them from the cache of the first. Prints
seconds of both and their ratio; a command is a process, its imports included. CPU seconds tell more
where other programs share the cores.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS, PRECISIONS = ("tflite", "onnx"), ("float32", "float16", "int8")


def run(cache: Path, *words: str) -> tuple[float, float]:
    """Seconds of one ``edgekit export``, and of its CPU."""
    started, before = time.perf_counter(), cpu()
    subprocess.run(
        [sys.executable, "-m", "edgekit.export", *words],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started, cpu() - before


def cpu() -> float:
    """CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run both ways and print what they took."""
    given = sys.argv[1:]
    place = given.index("--calibration") if "--calibration" in given else len(given)
    floats, images = [*given[:place], *given[place + 2 :]], given[place : place + 2]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        single = [
            run(
                root / "six", *floats, *(images if precision == "int8" else []),
                "--target", target, "--precision", precision,
                "--out", str(root / f"{target}-{precision}"),
            )
            for target in TARGETS
            for precision in PRECISIONS
        ]  # fmt: skip
        together = run(
            root / "one", *floats, *images, "--target", ",".join(TARGETS),
            "--precision", ",".join(PRECISIONS), "--out", str(root / "all"),
        )  # fmt: skip
    for what, six, one in zip(("s", "s of CPU"), zip(*single, strict=True), together, strict=True):
        print(f"six commands {sum(six):.1f} {what} ({', '.join(f'{each:.1f}' for each in six)})")
        print(f"one command  {one:.1f} {what}, {one / sum(six):.2f} of it")


if __name__ == "__main__":
    main()
