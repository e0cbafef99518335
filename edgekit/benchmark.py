"""``python -m edgekit.benchmark``: one artifact, or a file of any maker, on one runtime, in detail.

Cold start, latency percentiles, throughput, memory, and for onnxruntime its own profile: the
operators by time, and whether an int8 model computed in float anywhere. ``--suite gpu`` instead
times the float model on a GPU in float32 and float16 (:mod:`edgekit.evaluation.gpu_suite`).
"""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from edgekit.base import cli, outputs
from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.data import feeds
from edgekit.evaluation import conditions, gpu_suite
from edgekit.graph import onnx
from edgekit.records import environment
from edgekit.records import signature as signatures
from edgekit.records.artifact import Artifact
from edgekit.records.results import Conditions, Environment, Measurement, Runtime
from edgekit.runtimes import RUNTIMES, model_file
from edgekit.runtimes.worker import Job, Worker

WARM_UP = 10
PROFILED_RUNS = 30


@dataclass(frozen=True)
class Operator:
    """Time of one kind of operator in the runtime's profile.

    Attributes:
        share: Of all operator time, in percent.
        count: Nodes of that kind.
    """

    name: str
    ms_per_run: float
    share: float
    count: int


@dataclass(frozen=True)
class Benchmark:
    """What was measured of one artifact.

    Attributes:
        metrics: ``cold_start load_time latency_p50 latency_p90 latency_p99 throughput
            peak_memory baseline_memory``, the last being the process before the model is loaded;
            ``energy`` of an image where the CPU's counters can be read.
        latency_ms: Raw samples.
        operators: By time, most first; empty where the runtime has no profile.
        float_operators: Names of nodes of an int8 model that computed in float; None where the
            runtime has no profile.
    """

    name: str
    format: str
    precision: str
    batch: int
    runtime: Runtime
    environment: Environment
    metrics: dict[str, Measurement]
    latency_ms: tuple[float, ...]
    operators: tuple[Operator, ...]
    float_operators: tuple[str, ...] | None
    conditions: Conditions
    notes: tuple[str, ...] = ()


def benchmark(
    artifact: Artifact,
    *,
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 5.0,
) -> Benchmark:
    """Measure one artifact.

    Args:
        artifact: What to measure.
        runtime: ``ort``, ``litert`` or ``keras``; has to fit the format.
        threads: Threads inside an operator.
        batch: Images a run.
        seconds: How long to sample latency.

    Raises:
        InvalidOptionError: If the runtime does not run this format.
        EdgekitError: If the model cannot be loaded or run.
    """
    manifest = artifact.manifest
    fitting = RUNTIMES[manifest.format]
    if runtime not in (None, fitting):
        raise InvalidOptionError(
            f"runtime {runtime} does not run {manifest.format} models; pass --runtime {fitting}"
        )
    if not 0 < seconds < 1e6:
        raise InvalidOptionError(f"expected --seconds > 0, got {seconds}")
    started = time.perf_counter()
    specs = manifest.signature.inputs
    for spec in specs:
        if -1 in spec.shape[1:]:
            raise InvalidModelError(
                f"{artifact.name}: expected fixed sizes of input {spec.name} behind the batch, got "
                f"{list(spec.shape)}; export it with the sizes that it will run at"
            )
    feed = feeds.random(specs, manifest.preprocessing, batch, seed=0)
    images = feeds.records(feed)
    with Worker(Job.of(artifact, threads=threads, batch=batch)) as worker:
        worker.outputs(images)
        cold_start = 1e3 * (time.perf_counter() - started)
        worker.latencies(images, WARM_UP)
        samples: list[float] = []
        readings = [conditions.look([worker.process])]
        counters = conditions.Energy()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            samples += worker.latencies(images, 20)
            readings.append(conditions.look([worker.process]))
        joules = counters.since()
        loaded, memory = worker.loaded, worker.peak_memory()
    operators, in_float, notes = _profile(artifact, threads, feed)
    times = np.array(samples)
    watched = conditions.summarize(readings)
    disturbed = conditions.reasons(watched)
    if disturbed:
        notes = (*notes, f"latency may be unstable: {', and '.join(disturbed)}")
    metrics = {
        "cold_start": Measurement(cold_start, "ms", 1),
        "load_time": Measurement(loaded.load_ms, "ms", 1),
        **{
            f"latency_p{percent}": Measurement(
                float(np.percentile(times, percent)), "ms", len(times)
            )
            for percent in (50, 90, 99)
        },
        "throughput": Measurement(
            1e3 * batch * len(times) / float(times.sum()), "images/s", len(times)
        ),
        **(
            {"energy": Measurement(1e3 * joules / (batch * len(times)), "mJ", len(times))}
            if joules is not None
            else {}
        ),
        "peak_memory": Measurement(memory, "bytes", 1),
        "baseline_memory": Measurement(loaded.baseline_memory, "bytes", 1),
    }
    return Benchmark(
        name=artifact.name,
        format=manifest.format,
        precision=manifest.precision,
        batch=batch,
        runtime=loaded.runtime,
        environment=environment.describe(),
        metrics=metrics,
        latency_ms=tuple(round(value, 6) for value in samples),
        operators=operators,
        float_operators=in_float,
        conditions=watched,
        notes=notes,
    )


def _profile(
    artifact: Artifact, threads: int, feed: feeds.Feed
) -> tuple[tuple[Operator, ...], tuple[str, ...] | None, tuple[str, ...]]:
    """onnxruntime's profile of some runs; other runtimes offer none to Python."""
    manifest = artifact.manifest
    if manifest.format != "onnx":
        note = f"{RUNTIMES[manifest.format]} offers no operator times to Python"
        return (), None, (note,)
    stored = feeds.quantized(feed, manifest.signature.inputs)
    if manifest.signature.batch == 1:
        stored = next(feeds.one_by_one(stored, manifest.signature.inputs))
    ran = onnx.executed(
        artifact.model_path,
        stored,
        threads=threads,
        options=manifest.runtime_options,
        runs=PROFILED_RUNS,
    )
    total: dict[str, float] = collections.defaultdict(float)
    for node in ran:
        total[node.kind] += node.ms
    counts = collections.Counter(node.kind for node in ran)
    everything = sum(total.values())
    operators = tuple(
        Operator(kind, ms / PROFILED_RUNS, 100 * ms / everything, counts[kind])
        for kind, ms in sorted(total.items(), key=lambda item: -item[1])
    )
    in_float = None
    if manifest.precision == "int8":
        in_float = tuple(sorted(f"{n.kind}: {n.name}" for n in ran if n.computes_in_float))
    return operators, in_float, ()


def _print(found: Benchmark) -> None:
    console = cli.console
    cli.say(
        f"{found.name} on {found.runtime.name} ({found.runtime.provider}), "
        f"batch {found.batch}, {found.runtime.threads} thread(s), "
        f"{found.environment.machine_class}"
    )
    table = Table()
    for column in ("metric", "value", "samples"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in found.metrics.items():
        scaled = metric.unit == "bytes"
        value = f"{metric.value / 1e6:.1f} MB" if scaled else f"{metric.value:.3f} {metric.unit}"
        table.add_row(name, value, str(metric.count))
    console.print(table)
    if found.operators:
        table = Table(title="operators by time")
        for column in ("operator", "nodes", "ms a run", "%"):
            table.add_column(column, justify="left" if column == "operator" else "right")
        for operator in found.operators[:10]:
            table.add_row(
                cli.plain(operator.name),
                str(operator.count),
                f"{operator.ms_per_run:.4f}",
                f"{operator.share:.1f}",
            )
        console.print(table)
    if found.float_operators:
        console.print(f"computed in float in this int8 model: {len(found.float_operators)} nodes")
        for name in found.float_operators:
            cli.say(f"  {name}")
    elif found.float_operators is not None:
        console.print("every computing operator ran as an integer kernel")
    for note in found.notes:
        cli.say(f"note: {note}")


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.benchmark``."""
    result = cli.Parser(
        "benchmark",
        description="Measure one artifact on its runtime: cold start, latency, memory, operators.",
        examples="""
python -m edgekit.benchmark \\
    exports/fashion_mnist_mobilenet_v2_035-onnx-int8
python -m edgekit.benchmark build/mine --runtime litert --threads 2 \\
    --batch 8
python -m edgekit.benchmark vendor_int8.tflite --preprocessing unit
# the shipped model:
python -m edgekit.benchmark --suite gpu --record gpu.json
python -m edgekit.benchmark --suite gpu mine.keras --preprocessing unit
python -m edgekit.benchmark --suite gpu --device cpu  # a trial without a GPU
""",
    )
    add = result.add_argument
    add(
        "artifact",
        nargs="?",
        type=Path,
        metavar="ARTIFACT",
        help="artifact folder, .tflite or .onnx file; of --suite gpu the float model (default: "
        "the shipped one)",
    )
    add(
        "--runtime",
        choices=sorted(RUNTIMES.values()),
        help="default: that of the artifact's format",
    )
    add("--threads", type=cli.positive_int, default=1, help="threads of the runtime (default: 1)")
    add("--batch", type=cli.positive_int, help="images in a run (default: 1)")
    add("--seconds", type=float, help="how long to measure (default: 5)")
    add(
        "--suite",
        choices=("gpu",),
        help="instead: hold float32 against float16, and NCHW against NHWC, at batch 1, 8, 32",
    )
    add("--device", choices=gpu_suite.DEVICES, help="that the suite runs on (default: cuda)")
    add(
        "--rounds",
        type=cli.positive_int,
        help=f"of the suite, each with all cases (default: {gpu_suite.ROUNDS})",
    )
    add(
        "--preprocessing",
        metavar="NAME|FILE.json",
        help="of a file: how random pixels become its input",
    )
    add("--record", type=Path, metavar="FILE", help="of the suite: write raw samples and ratios")
    add("--force", action="store_true", help="replace FILE if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    if options.suite is not None:
        return _act_suite(options)
    for name in ("device", "rounds", "record"):
        if getattr(options, name) is not None:
            raise InvalidOptionError(f"--{name} is for --suite gpu")
    if options.artifact is None:
        raise InvalidOptionError("expected an ARTIFACT to measure, or --suite gpu")
    if options.preprocessing is not None and not model_file.is_file(options.artifact):
        raise InvalidOptionError(
            f"{options.artifact} brings its preprocessing; give --preprocessing only with a file"
        )
    named = options.preprocessing
    prepare = None if named is None else signatures.preprocessing(named)
    found = benchmark(
        model_file.load(options.artifact, prepare),
        runtime=options.runtime,
        threads=options.threads,
        batch=options.batch or 1,
        seconds=5.0 if options.seconds is None else options.seconds,
    )
    _print(found)
    return 0, found


def _act_suite(options: argparse.Namespace) -> cli.Outcome:
    for name in ("runtime", "batch", "seconds"):
        if getattr(options, name) is not None:
            raise InvalidOptionError(f"--suite gpu takes no --{name}; its cases are fixed")
    if options.record is not None:
        outputs.check_free(options.record, force=options.force)
    found = gpu_suite.suite(
        options.artifact,
        preprocessing=options.preprocessing,
        device=options.device or "cuda",
        threads=options.threads,
        rounds=options.rounds or gpu_suite.ROUNDS,
        command=cli.command_line(),
    )
    gpu_suite.print_record(found)
    if options.record is not None:
        outputs.write_text(options.record, found.dumps(), force=options.force)
    return 0, found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
