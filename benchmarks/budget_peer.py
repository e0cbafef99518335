"""An accuracy budget held by edgekit and by NNCF: one float model, the same samples, one run.

    python benchmarks/budget_peer.py MODEL --preprocessing NAME --calibration WORD \
        --validation WORD [--max-drop 3]

Both may predict another class than the float model for so many percent of the samples. edgekit
searches a mixture (``export --max-drop agreement=3``); NNCF's ``quantize_with_accuracy_control``
reverts operators of the same float ONNX file. Each sees every other validation sample, and both
files are judged on those between, by onnxruntime on one thread; latency is taken in rounds in which
the files take turns. NNCF is of requirements-peers.lock. Last line of stdout: the document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peer_ways import NO_TELEMETRY
from rich.table import Table

from edgekit.base import cli, outputs, schema
from edgekit.data import feeds
from edgekit.graph import onnx as onnx_file
from edgekit.records import environment, stats
from edgekit.records.artifact import Artifact
from edgekit.sources import float_model

ROOT = Path(__file__).resolve().parents[1]
WARM_UP, RUNS, ROUNDS = 5, 20, 15

Images = npt.NDArray[np.float32]


def session(path: Path, options: dict[str, str]) -> Any:
    """The file in onnxruntime, on one thread of the CPU."""
    return onnx_file.session(path, threads=1, options=options)


def run(opened: Any, images: Images) -> Images:
    """Outputs ``[N, M]``."""
    name = opened.get_inputs()[0].name
    each = [opened.run(None, {name: images[i : i + 1]})[0] for i in range(len(images))]
    return np.concatenate(each).reshape(len(images), -1)


def nncf(folder: Path, drop: float) -> None:
    """The guide "Quantizing with accuracy control"; all calibration samples count."""
    import nncf
    import onnx

    started, cpu = time.perf_counter(), time.process_time()
    with np.load(folder / "samples.npz") as file:
        calibration, searched, exact = (file[key] for key in ("calibration", "searched", "exact"))
    model = onnx.load(folder / "float.onnx")
    name = model.graph.input[0].name
    validated = 0

    def validate(
        changed: onnx.ModelProto, items: Iterable[tuple[Images, int]]
    ) -> tuple[float, list[float]]:
        nonlocal validated
        validated += 1
        opened = onnx_file.session(changed.SerializeToString(), threads=2)
        same = [float(opened.run(None, feed(item))[0].argmax() == item[1]) for item in items]
        return float(np.mean(same)), same

    def feed(item: tuple[Images, int]) -> dict[str, Images]:
        return {name: item[0][None]}

    written = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset([(image, -1) for image in calibration], feed),
        nncf.Dataset(list(zip(searched, exact, strict=True)), feed),
        validate,
        max_drop=drop / 100,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(calibration),
    )
    onnx.save(written, folder / "nncf.onnx")
    about = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "files": validated,
    }
    (folder / "nncf.json").write_text(json.dumps(about))


def edgekit(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What ``python -m edgekit.export`` does within the budget."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [
            sys.executable, "-m", "edgekit.export", options.model,
            "--preprocessing", options.preprocessing, "--calibration", options.calibration,
            "--validation", options.validation, "--max-drop", f"agreement={options.max_drop:g}",
            "--target", "onnx", "--precision", "int8", "--device", options.device,
            "--out", folder / "edgekit",
        ],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = Artifact.load(folder / "edgekit").manifest.quantization
    assert record is not None and record.budget is not None
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": sum(
            getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime")
        ),
        "files": len(record.budget.candidates),
    }


def samples(options: argparse.Namespace, folder: Path) -> tuple[Images, Images]:
    """Write the float ONNX file and what NNCF sees; gives the samples that judge, and what the
    float model gives for them."""
    from edgekit.export import Options, export

    plain = Options(preprocessing=options.preprocessing)
    written = export(
        Path(options.model), plain, target="onnx", precision="float32", out=folder / "float"
    )
    (folder / "float.onnx").write_bytes(written.model_path.read_bytes())
    source = float_model.load(Path(options.model), preprocessing=options.preprocessing)
    arrays = {}
    for name in ("calibration", "validation"):
        opened = source.samples(feeds.open_word(getattr(options, name), name))
        (arrays[name],) = feeds.feed(
            opened, source.inputs, source.preprocessing, slice(None)
        ).values()
    searched, judged = arrays["validation"][::2], arrays["validation"][1::2]
    float32 = session(folder / "float.onnx", {})
    np.savez(
        folder / "samples.npz",
        calibration=arrays["calibration"],
        searched=searched,
        exact=run(float32, searched).argmax(axis=1),
    )
    return judged, run(float32, judged)


def measured(files: dict[str, Any], judged: Images, exact: Images) -> list[dict[str, Any]]:
    """Agreement, SQNR and latency of each opened file."""
    spent: dict[str, list[list[float]]] = {name: [] for name in files}
    feed = {name: {each.get_inputs()[0].name: judged[:1]} for name, each in files.items()}
    for _ in range(ROUNDS):
        for name, opened in files.items():
            turn = []
            for _ in range(WARM_UP + RUNS):
                started = time.perf_counter_ns()
                opened.run(None, feed[name])
                turn.append((time.perf_counter_ns() - started) / 1e6)
            spent[name].append(turn[WARM_UP:])
    rows = []
    for name, opened in files.items():
        values = run(opened, judged)
        same = int((values.argmax(axis=1) == exact.argmax(axis=1)).sum())
        rows.append(
            {
                "name": name,
                "agreement": stats.proportion(same, len(judged)),
                "sqnr_db": stats.sqnr(exact, values).value,
                "ms": float(np.median(spent[name])),
                "ratio": stats.latency_ratio(np.array(spent[name]), np.array(spent["float32"])),
            }
        )
    return rows


def act(options: argparse.Namespace) -> cli.Outcome:
    """Search by both, judge, print."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        cli.console.print("[dim]float32[/]")
        judged, exact = samples(options, folder)
        cli.console.print("[dim]NNCF[/]")
        subprocess.run(
            [sys.executable, __file__, "--nncf", folder, f"{options.max_drop:g}"],
            env={**os.environ, **NO_TELEMETRY},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        about = {"NNCF": json.loads((folder / "nncf.json").read_text())}
        cli.console.print("[dim]edgekit[/]")
        about["edgekit"] = edgekit(folder, options)
        held = Artifact.load(folder / "edgekit")
        paths = {
            "float32": folder / "float.onnx",
            "NNCF": folder / "nncf.onnx",
            "edgekit": held.model_path,
        }
        settings = {"edgekit": dict(held.manifest.runtime_options)}
        files = {name: session(path, settings.get(name, {})) for name, path in paths.items()}
        rows = measured(files, judged, exact)
        for row in rows:
            row.update(about.get(row["name"], {}), bytes=paths[row["name"]].stat().st_size)
    document = {
        "model": options.model,
        "max_drop": options.max_drop,
        "samples": len(judged),
        "machine": environment.describe().machine_class,
        "rounds": ROUNDS,
        "rows": rows,
    }
    if options.out is not None:
        outputs.write_text(options.out, schema.dumps(document), force=True)
    show(document)
    return 0, document


def show(document: dict[str, Any]) -> None:
    """The table."""
    table = Table(
        title=f"{Path(document['model']).name}: {document['max_drop']:g} % may change, "
        f"{document['samples']} samples judge"
    )
    table.add_column("file", no_wrap=True)
    for column in ("same %", "dB", "ms", "x float32", "MB", "files", "s", "CPU s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in document["rows"]:
        same, ratio = row["agreement"], row["ratio"]
        table.add_row(
            row["name"],
            f"{same.value:.2f} {same.low:.1f}-{same.high:.1f}",
            f"{row['sqnr_db']:.1f}",
            f"{row['ms']:.2f}",
            f"{ratio.value:.2f}",
            f"{row['bytes'] / 1e6:.2f}",
            *(
                f"{row[key]:.0f}" if key in row else "-"
                for key in ("files", "seconds", "cpu_seconds")
            ),
        )
    cli.console.print(table)


def parser() -> cli.Parser:
    """Options."""
    result = cli.Parser(
        "budget_peer",
        description="Hold an accuracy budget by edgekit and by NNCF.",
        examples="""
python benchmarks/budget_peer.py net.keras --preprocessing symmetric#crop=0.875 \\
    --calibration csv:some.csv --validation csv:others.csv --max-drop 3
""",
    )
    result.prog = "benchmarks/budget_peer.py"
    add = result.add_argument
    add("model", help="float Keras model or ONNX file of one input and one output")
    add("--preprocessing", required=True)
    add("--calibration", required=True, help="what export takes")
    add("--validation", required=True, help="other samples; every other one searches")
    add("--max-drop", type=float, default=3.0, metavar="PERCENT", help="predictions that change")
    add("--device", default="generic", help="device profile of edgekit's file")
    add("--out", type=Path, help="JSON file, replaced")
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--nncf"]:  # a process of its own
        nncf(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        raise SystemExit(cli.run(parser(), act, sys.argv[1:]))
