"""What `make demo` runs: the whole line on the shipped model, with the public commands.

    python examples/demo.py [OUT]      (default build/demo)

Exports TFLite and ONNX in float32, float16 and int8, and int8 once more from the shipped model of
quantization-aware training. Compares all eight with the float model on the 10,000 test images and
two int8 files with each other, writes the report page, and holds the result against the committed
baseline.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = Path("exports/fashion_mnist_mobilenet_v2_035")
TRAINED = Path("exports/fashion_mnist_mobilenet_v2_035-qat")
BASELINE = Path("exports/baseline.json")


def edgekit(verb: str, *arguments: object, good: tuple[int, ...] = (0,)) -> int:
    """Run one verb as a user would, showing the command."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ python -m edgekit.{verb} {' '.join(words)}", flush=True)
    status = subprocess.run([sys.executable, "-m", f"edgekit.{verb}", *words], cwd=ROOT).returncode
    if status not in good:
        raise SystemExit(status)
    return status


def main() -> int:
    """Run the line; the exit status is the gate's."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
    started = time.monotonic()
    shutil.rmtree(ROOT / out, ignore_errors=True)
    artifacts = []
    for target in ("tflite", "onnx"):
        kinds = [(MODEL, "float32"), (MODEL, "float16"), (MODEL, "int8"), (TRAINED, "int8")]
        for model, precision in kinds:
            path = out / f"{model.name}-{target}-{precision}"
            edgekit("export", model, "--target", target, "--precision", precision, "--out", path)
            artifacts.append(path)
    edgekit("compare", *artifacts, "--parity", "--out", out / "report.json")
    edgekit("report", out / "report.json", "--out", out / "report.html")
    status = edgekit("gate", out / "report.json", "--baseline", BASELINE, good=(0, 1))
    print(f"\n{time.monotonic() - started:.0f} s. Where each thing lies:")
    for path in (*artifacts, out / "report.json", out / "report.html"):
        print(f"  {path}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
