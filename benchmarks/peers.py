"""edgekit beside other int8 quantizers: one float model, one calibration set, one run.

    python benchmarks/peers.py [MODEL] [--data FILE.npz] [--hard-case] [--out FILE.json]

Every way gets the same float Keras model and the same calibration images in the same order
(benchmarks/peer_ways.py). Then each runtime gets one process that holds all its candidates; answers
and latency are taken at batch 1 on one thread, latency in rounds that go through all candidates in
turn. A way that fails is listed with its reason. The last line of stdout is the document that is
written to --out, without the raw samples.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peer_ways import NO_TELEMETRY, arranged, make
from rich.markup import escape
from rich.table import Table

from edgekit import data
from edgekit.base import cli, outputs, schema, words
from edgekit.base.errors import InvalidDataError, InvalidModelError, reason
from edgekit.records import environment, signature, stats
from edgekit.records.artifact import Artifact
from edgekit.sources import float_model

CALIBRATION_IMAGES = 1000
SHARD = 250
SAMPLES = 20
WARM_UP = 5  # runs of each turn that are thrown away: another process had the caches
REFERENCE = "float32 TFLite"


@dataclass
class Candidate:
    """One row: how it is made, what runs it, what was measured.

    Attributes:
        way: Of peer_ways, which makes its file; two candidates may share one.
        error: Why it could not be made or run; None while all goes well.
    """

    name: str
    way: str
    runtime: str
    options: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    export_seconds: float | None = None
    answers: npt.NDArray[np.float32] | None = None
    samples: list[list[float]] = field(default_factory=list)
    error: str | None = None


def candidates(saturates: bool) -> list[Candidate]:
    """All rows; the first is the reference.

    Args:
        saturates: Whether the CPU has AVX2 without VNNI, for which onnxruntime's documentation
            recommends weights of 7 bits.
    """
    precise = {"session.x64quantprecision": "1"}
    seven = [Candidate("onnxruntime 7-bit", "onnxruntime-7-bit", "onnx")] if saturates else []
    return [
        Candidate(REFERENCE, "edgekit-tflite-float32", "tflite"),
        Candidate("float32 ONNX", "edgekit-onnx-float32", "onnx"),
        Candidate("TFLiteConverter", "tflite-converter", "tflite"),
        Candidate("ai-edge-quantizer", "ai-edge-quantizer", "tflite"),
        Candidate("onnxruntime", "onnxruntime", "onnx"),
        Candidate("onnxruntime precise", "onnxruntime", "onnx", precise),
        *seven,
        Candidate("OpenVINO/NNCF", "openvino", "openvino"),
        Candidate("edgekit TFLite int8", "edgekit-tflite-int8", "tflite"),
        Candidate("edgekit ONNX int8", "edgekit-onnx-int8", "onnx"),
    ]


@dataclass(frozen=True)
class Loaded:
    """A model on its runtime; only ``run`` is timed, from a feed in memory to an answer in memory.

    Attributes:
        feed: From one real-valued image to what the model takes.
        real: From what the model gives to real values.
    """

    feed: Callable[[npt.NDArray[np.float32]], Any]
    run: Callable[[Any], Any]
    real: Callable[[Any], npt.NDArray[np.float32]]


def load(candidate: Candidate) -> Loaded:
    """Open a candidate's file on one thread."""
    assert candidate.file is not None
    if candidate.runtime == "openvino":
        os.environ.update(NO_TELEMETRY)
        import openvino as ov

        settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        request = ov.Core().compile_model(candidate.file, "CPU", settings).create_infer_request()
        entry, end = request.get_input_tensor(), request.get_output_tensor()

        def infer(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            entry.data[:] = arranged(image, list(entry.shape))
            request.infer()
            return np.array(end.data)

        return Loaded(lambda image: image, infer, lambda answer: answer)
    from edgekit.runtimes import open_runner

    runner = open_runner(
        candidate.file, format=candidate.runtime, threads=1, options=candidate.options, batch=1
    )
    first, last = runner.signature.inputs[0], runner.signature.outputs[0]
    return Loaded(
        lambda image: {first.name: first.quantize(first.arrange(image))},
        runner.run,
        lambda answer: last.dequantize(answer[last.name]),
    )


def serve(pipe: Any, members: dict[str, Candidate]) -> None:
    """Answer (name, images, count): real answers if count is 0, else milliseconds of the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    models: dict[str, Loaded] = {}
    with contextlib.suppress(EOFError):
        while True:
            name, images, count = pipe.recv()
            try:
                if name not in models:
                    models[name] = load(members[name])
                pipe.send(("done", _answer(models[name], images, count)))
            except Exception as exc:  # whatever a runtime raises is its reason
                pipe.send(("error", f"{type(exc).__name__}: {reason(exc)}"))


def _answer(model: Loaded, images: npt.NDArray[np.float32], count: int) -> Any:
    if count == 0:
        each = (images[i : i + 1] for i in range(len(images)))
        return np.concatenate([model.real(model.run(model.feed(image))) for image in each])
    feed, samples = model.feed(images[:1]), []
    for _ in range(WARM_UP + count):
        started = time.perf_counter_ns()
        model.run(feed)
        samples.append((time.perf_counter_ns() - started) / 1e6)
    return samples[WARM_UP:]


@contextlib.contextmanager
def runtimes(rows: list[Candidate]) -> Iterator[Callable[..., Any]]:
    """Start one process a runtime; gives ``ask(candidate, images, count)``, None on a failure."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for runtime in dict.fromkeys(row.runtime for row in rows):
        pipes[runtime], theirs = context.Pipe()
        members = {row.name: row for row in rows if row.runtime == runtime}
        processes.append(context.Process(target=serve, args=(theirs, members), daemon=True))
        processes[-1].start()
        theirs.close()

    def ask(row: Candidate, images: npt.NDArray[np.float32], count: int) -> Any:
        if row.error is not None:
            return None
        try:
            pipes[row.runtime].send((row.name, images, count))
            kind, value = pipes[row.runtime].recv()
        except (EOFError, OSError):
            kind, value = "error", f"the process of runtime {row.runtime} ended"
        if kind == "done":
            return value
        row.error = value
        return None

    try:
        yield ask
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(5)
            process.kill()


def measure(rows: list[Candidate], folder: Path, test: data.ImageSet, rounds: int) -> None:
    """Make all candidates, then take their answers and their latency."""
    made: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.way not in made:
            cli.console.print(f"[dim]making {row.way}[/]")
            made[row.way] = make(row.way, folder)
        found = made[row.way]
        row.error, row.export_seconds = found.get("error"), found.get("seconds")
        if row.error is None:
            row.file = Path(found["file"])
            if row.way.startswith("edgekit-"):
                row.options = dict(Artifact.load(row.file.parent).manifest.runtime_options)
    prepare = signature.preprocessing(str(folder / "preprocessing.json"))
    with runtimes(rows) as ask:
        for row in rows:
            cli.console.print(f"[dim]answers of {row.name}[/]")
            shards = [
                ask(row, prepare.apply(test.images[start : start + SHARD]), 0)
                for start in range(0, len(test), SHARD)
            ]
            row.answers = None if row.error is not None else np.concatenate(shards)
        cli.console.print("[dim]latency[/]")
        image = prepare.apply(test.images[:1])
        for _ in range(rounds):
            for row in rows:
                samples = ask(row, image, SAMPLES)
                if samples is not None:
                    row.samples.append(samples)


def figures(rows: list[Candidate], labels: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """What was measured of each row; rows that failed have their reason instead."""
    base = rows[0]
    if base.error is not None or base.answers is None:
        raise InvalidModelError(f"the float model cannot be run as TFLite: {base.error}")
    found: list[dict[str, Any]] = []
    for row in rows:
        about = {"name": row.name, "runtime": row.runtime, "options": row.options}
        if row.error is not None or row.answers is None or row.file is None:
            found.append({**about, "error": row.error})
            continue
        choice = row.answers.argmax(axis=1)
        same = int((choice == base.answers.argmax(axis=1)).sum())
        samples = np.array(row.samples)
        files = {row.file, row.file.with_suffix(".bin")}  # OpenVINO's weights lie beside its .xml
        found.append(
            {
                **about,
                "top1": stats.proportion(int((choice == labels).sum()), len(labels)),
                "same": stats.proportion(same, len(labels)),
                "p50_ms": float(np.median(samples)),
                "ratio": stats.latency_ratio(samples, np.array(base.samples)),
                "export_seconds": row.export_seconds,
                "bytes": sum(file.stat().st_size for file in files if file.is_file()),
                "samples_ms": row.samples,
            }
        )
    return found


def show(found: dict[str, Any]) -> None:
    """The table, the failures and the caption."""
    test, calibration = found["images"]["test"], found["images"]["calibration"]
    table = Table(title=f"{found['model']}: {test:,} test, {calibration:,} calibration images")
    table.add_column("way", no_wrap=True)
    for column in ("top-1 %", "same %", "ms", "x", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found["rows"]:
        if "error" in row:
            table.add_row(row["name"], "failed", "-", "-", "-", "-")
            continue
        top1, ratio = row["top1"], row["ratio"]
        table.add_row(
            row["name"],
            f"{top1.value:.2f} ±{(top1.high - top1.low) / 2:.2f}",
            f"{row['same'].value:.2f}",
            f"{row['p50_ms']:.3f}",
            f"{ratio.value:.2f} {ratio.low:.2f}-{ratio.high:.2f}",
            f"{row['export_seconds']:.1f}",
        )
    cli.console.print(table)
    for row in found["rows"]:
        if "error" in row:
            cli.console.print(f"{row['name']} failed: {escape(row['error'])}", soft_wrap=True)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    cli.console.print(
        f"[dim]top-1 with Wilson 95 %; same: % answers of {REFERENCE}; ms: p50 at batch 1; x: ms "
        f"against {REFERENCE}, bootstrap 95 %; s: from .keras to model file, imports done.[/]\n"
        f"{escape(found['machine'])}, 1 thread, {found['rounds']} rounds of {SAMPLES} runs\n"
        f"[dim]{versions}[/]"
    )


def images(options: argparse.Namespace) -> tuple[npt.NDArray[Any], data.ImageSet]:
    """Calibration images, and a test set that does not hold them."""
    word = options.data
    if options.calibration is not None:
        source = float_model.load(options.model, preprocessing=options.preprocessing)
        calibration, test = (
            source.images(data.open_word(each, split))
            for each, split in ((options.calibration, "calibration"), (word, "test"))
        )
        if test.labels is None:
            raise InvalidDataError(f"{word}: expected images with labels, got none")
        labels = test.labels + source.preprocessing.class_offset
        return calibration.images, data.images.make(test.name, test.images, labels)
    test = data.load(word, "test")
    if word == "fashion_mnist":
        return data.load(word, "calibration").images, test
    count = min(CALIBRATION_IMAGES, len(test) // 2)
    if count == 0 or test.labels is None:
        raise InvalidDataError(f"{word}: expected two images or more, with labels y")
    rest = data.images.make(f"{test.name}[{count}:]", test.images[count:], test.labels[count:])
    return test.images[:count], rest


def act(options: argparse.Namespace) -> cli.Outcome:
    """Prepare, measure, print, write."""
    machine = environment.describe()
    calibration, test = images(options)
    test = test.head(options.limit)
    name = (options.model or float_model.SHIPPED).name.removesuffix(".keras")
    name += "-hard" if options.hard_case else ""
    rows = candidates(environment.saturates(machine))
    words = ("preprocessing", "hard_case", "device")
    settings = {word: getattr(options, word) for word in words}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        model = str(options.model) if options.model else None
        (folder / "settings.json").write_text(json.dumps({"model": model, **settings}))
        np.savez(folder / "calibration.npz", x=calibration)
        prepared = make("prepare", folder)
        if "error" in prepared:
            raise InvalidModelError(prepared["error"])
        measure(rows, folder, test, options.rounds)
        assert test.labels is not None  # images() has seen to it
        found = figures(rows, test.labels)
    versions = dict(machine.versions)
    for package in ("openvino", "nncf"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    document = {
        "model": name,
        "data": test.name,
        "data_sha256": test.sha256,
        "images": {"test": len(test), "calibration": len(calibration)},
        "settings": settings,
        "machine": machine.machine_class,
        "threads": 1,
        "rounds": options.rounds,
        "versions": versions,
        "rows": found,
    }
    out = options.out or Path("build") / f"peers-{name}.json"
    outputs.write_text(out, schema.dumps(document), force=True)
    show(document)
    short = [{key: row[key] for key in row if key != "samples_ms"} for row in found]
    return 0, {"out": str(out), "rows": short}


def parser() -> cli.Parser:
    """Options."""
    result = cli.Parser(
        "peers",
        description="Measure edgekit's int8 files beside those of other quantizers.",
        examples="""
python benchmarks/peers.py                  # the shipped model
python benchmarks/peers.py --hard-case
python benchmarks/peers.py mine.keras --preprocessing symmetric --data images.npz
python benchmarks/peers.py mine.onnx --preprocessing lite.json \\
    --calibration csv:some.csv --data csv:others.csv
""",
    )
    result.prog = "benchmarks/peers.py"
    float_model.add_arguments(result)
    add = result.add_argument
    add(
        "--data",
        default="fashion_mnist",
        help="fashion_mnist, or FILE.npz with x and y: the first 1,000 images (half, if fewer "
        "than 2,000) calibrate, the others are tested; with --calibration what compare takes",
    )
    add("--calibration", help="images to calibrate with, as export takes them")
    add("--hard-case", action="store_true", help="make a hard case of the model first")
    add("--device", help="device profile of edgekit's int8 exports")
    add("--limit", type=words.positive_int, help="test the first N images only")
    add("--rounds", type=words.positive_int, default=50, help=f"latency rounds of {SAMPLES} runs")
    add("--out", type=Path, help="JSON file, replaced (default: build/peers-MODEL.json)")
    return result


if __name__ == "__main__":
    raise SystemExit(cli.run(parser(), act, sys.argv[1:]))
