"""``python -m edgekit.benchmark``: measure one artifact, or a file of any maker, on one runtime.

The verb measures cold start, percentiles of latency, throughput and memory, the operators by time,
and what an int8 model computed in float, each float island with its name and its share of the time.
The times of onnxruntime are those of its own profile. LiteRT has none: there each operator is run
alone. With ``--suite gpu`` it measures the float model on a GPU in float32 and float16 instead
(:mod:`edgekit.evaluation.gpu_suite`).

``--runtime tflm`` tells of a ``.tflite`` file what it takes on a microcontroller: the arena, the
flash, the operators, and which of them compute other numbers in TensorFlow Lite Micro than in
TFLite (:mod:`edgekit.evaluation.micro`). ``--npu`` adds what Vela estimates for an Ethos-U. Nothing
is timed there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from edgekit.base import cli, outputs, words
from edgekit.base.errors import InvalidOptionError
from edgekit.evaluation import gpu_suite, micro
from edgekit.evaluation.benchmark import Benchmark, FloatIsland, benchmark
from edgekit.records import signature as signatures
from edgekit.runtimes import RUNTIMES, model_file, places, tflm, vela

__all__ = ["benchmark", "main", "parser"]

#: Float islands that are shown.
_SHOWN = 15


def _print(measured: Benchmark) -> None:
    console = cli.console
    cli.say(
        f"{measured.name} on {measured.runtime.name} ({measured.runtime.provider}), "
        f"batch {measured.batch}, {measured.runtime.threads} thread(s), "
        f"{measured.environment.machine_class}"
    )
    table = Table()
    for column in ("metric", "value", "samples"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in measured.metrics.items():
        scaled = metric.unit == "bytes"
        value = f"{metric.value / 1e6:.1f} MB" if scaled else f"{metric.value:.3f} {metric.unit}"
        table.add_row(name, value, str(metric.count))
    console.print(table)
    if measured.operators:
        table = Table(title="operators by time")
        for column in ("operator", "nodes", "ms per run", "%"):
            table.add_column(column, justify="left" if column == "operator" else "right")
        for operator in measured.operators[:10]:
            table.add_row(
                cli.plain(operator.name),
                str(operator.count),
                f"{operator.ms_per_run:.4f}",
                f"{operator.share:.1f}",
            )
        console.print(table)
    if measured.float_islands:
        _print_islands(measured.float_islands)
    elif measured.float_islands is not None:
        console.print("every computing operator ran as an integer kernel")
    for note in measured.notes:
        cli.say(f"note: {note}")


def _print_islands(islands: Sequence[FloatIsland]) -> None:
    """What computes in float in an int8 model, with its share of the time."""
    table = Table(title="computed in float in this int8 model")
    for column in ("name", "operators", "ms a run", "%"):
        right = column in ("ms a run", "%")
        table.add_column(column, justify="right" if right else "left", no_wrap=right)
    for each in islands[:_SHOWN]:
        table.add_row(
            cli.plain(each.name),
            cli.plain(" ".join(each.operators)),
            f"{each.ms_per_run:.4f}",
            f"{each.share:.1f}",
        )
    cli.console.print(table)
    share = sum(each.share for each in islands)
    more = f"; the other {len(islands) - _SHOWN} are in --json" if len(islands) > _SHOWN else ""
    cli.say(f"float takes {share:.1f} % of the time, conversions included{more}")


def _print_micro(measured: micro.MicroBenchmark) -> None:
    """What a file takes on a microcontroller, and its operators."""
    cli.say(f"{measured.name} on {measured.runtime.name} ({measured.runtime.provider})")
    table = Table()
    for column in ("metric", "value"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in measured.metrics.items():
        digits = 1 if metric.unit == "%" else 0
        table.add_row(name, f"{metric.value:,.{digits}f} {metric.unit}")
    cli.console.print(table)
    by_kind = {each.kind: each for each in measured.differences}
    title = "operators"
    if by_kind:
        title = f"operators, on {measured.samples} random samples; other numbers than TFLite's"
    table = Table(title=title)
    for column in ("operator", "nodes", "numbers", *(("reference", "xnnpack") if by_kind else ())):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for kind, count in measured.operators.items():
        each = by_kind.get(kind)
        cells = [cli.plain(kind), str(count), "" if each is None else f"{each.numbers:,}"]
        if each is not None:
            for kernels in ("reference", "xnnpack"):
                few, most = each.differing[kernels], each.largest[kernels]
                cells.append(f"{few:,} by up to {most:.3g}" if few else "none")
        table.add_row(*cells)
    cli.console.print(table)
    for note in measured.notes:
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
# a microcontroller:
python -m edgekit.benchmark build/mine --runtime tflm
python -m edgekit.benchmark vendor_int8.tflite --runtime tflm \\
    --npu ethos-u55-128
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
        help="artifact folder, .tflite or .onnx file; with --suite gpu a float model (default: "
        "the shipped one)",
    )
    add(
        "--runtime",
        choices=sorted((*RUNTIMES.values(), tflm.NAME)),
        help="runtime to measure (default: that of the artifact's format); tflm: TensorFlow Lite "
        "Micro, of which nothing is timed",
    )
    add(
        "--npu",
        choices=vela.ACCELERATORS,
        metavar="NAME",
        help="with --runtime tflm: what Vela estimates for this NPU, as ethos-u55-128",
    )
    add("--on", metavar="PLACE", help=f"where it runs: {', '.join(places.KINDS)} (default: here)")
    add("--threads", type=words.positive_int, help="threads of the runtime (default: 1)")
    add("--batch", type=words.positive_int, help="images per run (default: 1)")
    add("--seconds", type=float, help="how long to measure (default: 5)")
    add(
        "--suite",
        choices=("gpu",),
        help="compare float32 with float16, and NCHW with NHWC, at batch 1, 8 and 32",
    )
    add("--device", choices=gpu_suite.DEVICES, help="device that the suite runs on (default: cuda)")
    add(
        "--rounds",
        type=words.positive_int,
        help=f"rounds of the suite; each round runs all cases (default: {gpu_suite.ROUNDS})",
    )
    add(
        "--preprocessing",
        metavar="NAME|FILE.json",
        help="how random pixels become the input of a file",
    )
    add("--record", type=Path, metavar="FILE", help="write the raw samples and ratios of the suite")
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
            f"{options.artifact} has its own preprocessing; give --preprocessing only with a file"
        )
    if options.npu is not None and options.runtime != tflm.NAME:
        raise InvalidOptionError(f"--npu {options.npu} is for --runtime {tflm.NAME}")
    place = places.HERE if options.on is None else places.parse(options.on)
    place.check_times()
    named = options.preprocessing
    prepare = None if named is None else signatures.preprocessing(named)
    if options.runtime == tflm.NAME:
        for name in ("threads", "batch", "seconds"):
            if getattr(options, name) is not None:
                raise InvalidOptionError(
                    f"--{name} is for what is timed, and --runtime {tflm.NAME} times nothing; "
                    f"leave it out"
                )
        taken = micro.benchmark(model_file.load(options.artifact, prepare), npu=options.npu)
        _print_micro(taken)
        return 0, taken
    measured = benchmark(
        model_file.load(options.artifact, prepare),
        runtime=options.runtime,
        threads=options.threads or 1,
        batch=options.batch or 1,
        seconds=5.0 if options.seconds is None else options.seconds,
        place=place,
    )
    _print(measured)
    return 0, measured


def _act_suite(options: argparse.Namespace) -> cli.Outcome:
    for name in ("runtime", "npu", "batch", "seconds", "on"):
        if getattr(options, name) is not None:
            raise InvalidOptionError(f"--suite gpu takes no --{name}; its cases are fixed")
    if options.record is not None:
        outputs.check_free(options.record, force=options.force)
    record = gpu_suite.suite(
        options.artifact,
        preprocessing=options.preprocessing,
        device=options.device or "cuda",
        threads=options.threads or 1,
        rounds=options.rounds or gpu_suite.ROUNDS,
        command=cli.command_line(),
        progress=cli.reporter,
    )
    _print_suite(record)
    if options.record is not None:
        outputs.write_text(options.record, record.dumps(), force=options.force)
    return 0, record


def _print_suite(record: gpu_suite.Record) -> None:
    """Two tables for people: times and ratios; what ran is in the titles."""
    where = f"{record.device.kind.upper()} {record.device.name}"
    if record.device.driver:
        where += f", driver {record.device.driver}"
    title = f"{record.model_id} on {where}"
    if record.device.kind == "cpu":
        title += ": a trial run, no GPU was measured"
    table = Table(title=escape(title))
    for column in ("batch", "precision", "layout", "ms", "images/s"):
        table.add_column(column, justify="left" if column in ("precision", "layout") else "right")
    for case in record.cases:
        table.add_row(
            str(case.batch),
            case.precision,
            case.layout,
            f"{case.latency_p50.value:.3f}",
            f"{case.throughput.value:,.0f}",
        )
    cli.console.print(table)
    table = Table(title=escape(f"ratios of time on {where}"))
    for column in ("ratio", "batch", "at", "x", "95 %"):
        table.add_column(column, justify="left" if column in ("ratio", "at") else "right")
    for ratio in record.ratios:
        value = ratio.value
        interval = f"{value.low:.2f} to {value.high:.2f}"
        table.add_row(ratio.of, str(ratio.batch), ratio.at, f"{value.value:.2f}", interval)
    cli.console.print(table)
    cli.console.print(f"[dim]ms: median of {record.measured}[/]")
    for sentence in record.left_out:
        cli.console.print(f"left out: {sentence}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
