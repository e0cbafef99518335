"""What models take on a microcontroller: ``benchmarks/micro_table.py MODEL [MODEL ...]``.

Loads each ``.tflite`` file or artifact in TensorFlow Lite Micro, and lets Vela compile it for one
NPU (``--npu``). Holds its outputs against those of TFLite's reference kernels and of XNNPACK on
random samples, and each operator alone on the values that it gets there. Prints a Markdown table;
``--out PAGE`` puts it in the place of the section of that name. The last line of stdout is a JSON
document. It needs the extra ``micro``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base import outputs
from edgekit.data import feeds
from edgekit.evaluation import micro
from edgekit.records import signature as signatures
from edgekit.records.artifact import Artifact
from edgekit.runtimes import model_file, open_runner

SECTION = "## The micro table"
SAMPLES = 64
COLUMNS = (
    "model", "flash", "arena", "persistent", "beside reference", "beside XNNPACK",
    "operators that differ from reference", "from XNNPACK", "SRAM", "cycles", "on the NPU",
)  # fmt: skip


def beside(artifact: Artifact, kernels: str) -> dict[str, float]:
    """Outputs of random samples, beside those of TFLite's kernels: same first class in percent,
    largest difference in steps of the output."""
    same, most = 0, 0.0
    job: dict[str, Any] = {"format": "tflite", "threads": 1}
    with (
        open_runner(artifact.model_path, device="tflm", **job) as ours,
        open_runner(artifact.model_path, options={"kernels": kernels}, **job) as theirs,
    ):
        specs, end = ours.signature.inputs, ours.signature.outputs[0]
        feed = feeds.random(specs, artifact.manifest.preprocessing, SAMPLES, seed=0)
        for one in feeds.one_by_one(feeds.quantized(feed, specs), specs):
            found, other = ours.run(one)[end.name], theirs.run(one)[end.name]
            same += int(found.argmax() == other.argmax())
            off = np.abs(found.astype(np.float64) - other)
            most = max(most, float(off.max()))
    return {"same": 100 * same / SAMPLES, "largest": most}


def row(artifact: Artifact, npu: str) -> dict[str, Any]:
    """Everything about one model."""
    measured = micro.benchmark(artifact, npu=npu, samples=SAMPLES)
    return {
        "model": artifact.name.removesuffix(".tflite"),
        **{name: each.value for name, each in measured.metrics.items()},
        "reference": beside(artifact, "reference"),
        "xnnpack": beside(artifact, "xnnpack"),
        "operators": {
            kernels: {
                each.kind: [each.differing[kernels], each.numbers]
                for each in measured.differences
                if each.differing[kernels]
            }
            for kernels in ("reference", "xnnpack")
        },
        "on_cpu": measured.notes[-1].rpartition("; ")[2],
        "versions": [measured.runtime.provider, measured.notes[-1].partition(", ")[0]],
    }


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    """The row of the table."""

    def near(side: dict[str, float]) -> str:
        return f"{side['same']:.0f} %, {side['largest']:.3g} LSB"

    def differing(kernels: str) -> str:
        return (
            ", ".join(
                f"{kind} {100 * few / numbers:.2g} %"
                for kind, (few, numbers) in found["operators"][kernels].items()
            )
            or "none"
        )

    return (
        f"`{found['model']}`",
        f"{found['flash']:,.0f}",
        f"{found['arena']:,.0f}",
        f"{found['arena_persistent']:,.0f}",
        near(found["reference"]),
        near(found["xnnpack"]),
        differing("reference"),
        differing("xnnpack"),
        f"{found['sram']:,.0f}",
        f"{found['npu_cycles']:,.0f}",
        f"{found['npu_share']:.0f} %",
    )


def section(rows: list[dict[str, Any]], npu: str) -> str:
    """The table and what its columns are."""
    lines = [
        SECTION,
        "",
        f"Bytes; beside: random samples of which the first class is the same, and the largest "
        f"difference of an output. Operators: numbers that differ, each operator on the values "
        f"that it gets in TensorFlow Lite Micro; all by one step. SRAM, cycles and share are "
        f"those of Vela for `{npu}`, an estimate.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * 3}---|---|---|---|---:|---:|---:|",
        *(f"| {' | '.join(cells(each))} |" for each in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--preprocessing", default="none", help="of files (default: none)")
    parser.add_argument("--npu", default="ethos-u55-128")
    parser.add_argument("--out", type=Path, help="Markdown page")
    options = parser.parse_args()
    prepare = signatures.preprocessing(options.preprocessing)
    rows = []
    for path in options.models:
        of_file = prepare if model_file.is_file(path) else None
        rows.append(row(model_file.load(path, of_file), options.npu))
    text = section(rows, options.npu)
    print(text)
    if options.out:
        page = options.out.read_text(encoding="utf-8")
        before, _, rest = page.partition(SECTION)
        after = rest.partition("\n## ")[2]
        outputs.write_text(
            options.out, before + text + (f"\n## {after}" if after else ""), force=True
        )
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
