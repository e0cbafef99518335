"""Six deployables of one model: six commands beside one.

    python benchmarks/deployables.py [MODEL --preprocessing NAME --calibration IMAGES]

The shipped model by default. Each way starts from an empty cache, so that statistics and integers
are found anew; of the six commands the second int8 takes them from the cache of the first. Prints
seconds of both and their ratio; a command is a process, its imports included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS, PRECISIONS = ("tflite", "onnx"), ("float32", "float16", "int8")


def run(cache: Path, *words: str) -> float:
    """Seconds of one ``edgekit export``."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "edgekit.export", *words],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


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
    print(f"six commands {sum(single):.1f} s ({', '.join(f'{each:.1f}' for each in single)})")
    print(f"one command  {together:.1f} s, {together / sum(single):.2f} of it")


if __name__ == "__main__":
    main()
