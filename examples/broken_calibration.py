"""A broken calibration, and the gate that stops it.

    python examples/broken_calibration.py [OUT]      (default build/broken_calibration)

Exports the shipped model as int8 TFLite twice. The first time with its own calibration images,
which gives the baseline. The second time with the same images divided by 255 once more than they
should be, as a script does that scales what was scaled already: every range comes out 255 times
too small, and the file loads and runs all the same. Both are compared with the float model on
1,000 test images; the gate passes the first and fails the second. Exit status: 0 when it does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = Path("exports/fashion_mnist_mobilenet_v2_035")
IMAGES = Path("calibration/fashion_mnist/calibration-1000.npz")
ARTIFACT = f"{MODEL.name}-tflite-int8"


def edgekit(verb: str, *arguments: object, good: int = 0) -> None:
    """Run one verb as a user would, showing the command; stop when its status is another."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ python -m edgekit.{verb} {' '.join(words)}", flush=True)
    status = subprocess.run([sys.executable, "-m", f"edgekit.{verb}", *words], cwd=ROOT).returncode
    if status != good:
        raise SystemExit(f"edgekit {verb}: expected exit status {good}, got {status}")


def scale_twice(out: Path) -> Path:
    """Write the calibration images as [0, 1/255] where the model takes [0, 1]."""
    with np.load(ROOT / IMAGES) as stored:
        pixels = stored["x"]
    (ROOT / out).parent.mkdir(parents=True, exist_ok=True)
    np.savez(ROOT / out, x=(pixels / 255 / 255).astype(np.float32))
    return out


def measure(folder: Path, *calibration: object) -> Path:
    """Export, then compare with the float model; the artifact has the same name in every folder."""
    artifact, report = folder / ARTIFACT, folder / "report.json"
    edgekit("export", MODEL, "--target", "tflite", "--precision", "int8", *calibration,
            "--out", artifact)  # fmt: skip
    # a broken file is exit status 1 here already; the gate is to see it
    anyway = ("--allow-dead", "--allow-poor")
    edgekit("compare", artifact, "--limit", 1000, "--rounds", 3, *anyway, "--out", report)
    return report


def judge(good: Path, broken: Path, out: Path) -> None:
    """Take the good report as the baseline, and hold both against it."""
    baseline = out / "baseline.json"
    bounds = ("--max-drop", "top1=0.5", "--min", "agreement=99")
    edgekit("gate", good, "--baseline", baseline, "--update", *bounds)
    edgekit("gate", good, "--baseline", baseline, *bounds)
    files = ("--junit", out / "gate.xml", "--markdown", out / "gate.md")
    edgekit("gate", broken, "--baseline", baseline, *bounds, *files, good=1)


def main() -> int:
    """Run the example from the start."""
    out = Path("build/broken_calibration")
    if len(sys.argv) > 1:
        out = Path(sys.argv[1]).resolve()
        if out.exists():
            raise SystemExit(f"{out} exists already; choose another path")
    shutil.rmtree(ROOT / out, ignore_errors=True)
    good = measure(out / "good")
    broken = measure(out / "broken", "--calibration", scale_twice(out / "scaled-twice.npz"))
    judge(good, broken, out)
    print(f"\nThe gate stopped it. What CI would show: {out / 'gate.md'}, {out / 'gate.xml'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
