"""``python -m edgekit.compare``: are deployables still the float model, and how fast are they?

A deployable is an artifact folder, or a ``.tflite`` or ``.onnx`` file of any maker. The reference
is the float model, in the format that it was saved in. ``--reference`` names another one: the float
model of files that do not name theirs, a runner of the float model such as ``ort:cuda:float16``, or
a recording. Every model runs in a process of its own. Evaluation is divided between the cores, or
between the workers of a cluster, in shards that are kept when a run is killed. Latency is measured
at batch 1, in rounds that run all models in turn, so that a change of the machine's speed affects
all of them. The verb writes a Report.

Every output is compared with the same output of the reference, channel by channel
(:mod:`edgekit.records.fidelity`). Where the data has labels (classes, or the numbers of a
regression), accuracy is compared too, and decides the verdict: each deployable gets one verdict
from :mod:`edgekit.evaluation.verdicts`. Exit status 1 means that a deployable is broken: it has a
dead channel (``--allow-dead``), or its outputs are poor and no labels prove that it does not matter
(``--allow-poor``). The report is written in any case. A loss of accuracy has exit status 0, since
it may be intended: ``edgekit.gate`` judges it. If the float model is no better than chance on the
labels, no comparison of accuracy means anything: the exit status is 2 and no report is written,
unless ``--allow-chance`` asks for a comparison of the outputs only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edgekit import data
from edgekit.base import cli, outputs, words
from edgekit.base.errors import InvalidOptionError
from edgekit.diagnosis import options as layer_options
from edgekit.evaluation import fleet, functions, shards, verdicts
from edgekit.evaluation.comparison import compare
from edgekit.evaluation.options import DEFAULT_POWER, PICTURES, SAMPLES, Options
from edgekit.reporting import layer_table, tables
from edgekit.runtimes import places
from edgekit.runtimes import spec as runners
from edgekit.sources import float_model
from edgekit.tasks import kind as tasks
from edgekit.tasks import presets

__all__ = ["Options", "compare", "main", "parser"]

_DATA_HELP = (
    f"{data.WORDS}; or FILE.npz with an array named like each input, and y: integer classes, or "
    f"numbers as labels (default: fashion_mnist of the shipped model)"
)


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.compare``."""
    result = cli.Parser(
        "compare",
        description="Measure accuracy, fidelity and latency of deployables against the float "
        "model. Exit: 0 good, 1 a deployable is dead or poor, 2 bad input.",
        examples="""
python -m edgekit.compare exports/*-tflite-int8 exports/*-onnx-int8 \\
    --out report.json
python -m edgekit.compare build/mine --data test.npz --reference mine.keras \\
    --limit 1000
python -m edgekit.compare build/mine --data test.npz --power 0.9 \\
    --bound 0.2
# files of any maker:
python -m edgekit.compare vendor_int8.tflite --reference vendor_float.tflite \\
    --preprocessing unit --data folder:photos
# with a GPU:
python -m edgekit.compare build/mine --reference ort:cuda:float16 \\
    --record gpu.rec
python -m edgekit.compare build/mine --reference gpu.rec  # anywhere
# no GPU at all:
python -m edgekit.compare build/mine --reference emulated:float16
python -m edgekit.compare mine.keras exports/mine-onnx-int8 --layers \\
    --bisect 30dB
python -m edgekit.compare build/mine --on here --on qemu:arm64
python -m edgekit.compare build/mine --cluster tcp://10.0.0.2:8786 \\
    --resources mine=device:pi5
""",
    )
    add = result.add_argument
    add(
        "artifacts",
        nargs="+",
        type=Path,
        metavar="ARTIFACT",
        help="artifact folders, .tflite or .onnx files",
    )
    add("--data", metavar="IMAGES", help=_DATA_HELP)
    add("--limit", type=words.positive_int, help="use the first N images only")
    add(
        "--threads", type=words.positive_int, default=1, help="threads of each runtime (default: 1)"
    )
    add(
        "--rounds",
        type=words.positive_int,
        default=10,
        help=f"measure latency in N rounds of {SAMPLES} samples (default: %(default)s)",
    )
    add(
        "--no-latency",
        action="store_const",
        dest="rounds",
        const=0,
        help="measure no latency and no energy, which takes less time",
    )
    add(
        "--reference",
        metavar="MODEL|RUNNER|RECORDING",
        help=f"the float model (default: where the manifests say; needed for files), a runner of "
        f"it ({', '.join(runners.SPECS)}), or a file that --record wrote",
    )
    add(
        "--record",
        type=Path,
        metavar="FILE",
        help="write the outputs and the latency of the reference to FILE, which --reference takes "
        "later",
    )
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="keep results in DIR, so that a run that was stopped can continue",
    )
    add(
        "--shard",
        type=words.positive_int,
        default=shards.IMAGES,
        help="images that are evaluated and kept together (default: %(default)s)",
    )
    add(
        "--processes",
        type=words.positive_int,
        help="processes that evaluate at the same time (default: as many as fit the cores)",
    )
    add("--cluster", metavar="ADDRESS", help="evaluate on the workers of this Dask scheduler")
    add(
        "--resources",
        type=fleet.assignment,
        action="append",
        metavar="ARTIFACT=RESOURCE",
        help="with --cluster: the worker resource that an artifact needs, as device:pi5; any for "
        "any worker, local for this machine; repeatable",
    )
    add(
        "--on",
        action="append",
        default=[],
        metavar="[ARTIFACT=]PLACE",
        help=f"where artifacts run: {', '.join(places.KINDS)} (default: here); repeatable, each "
        f"place gets rows of its own; edgekit.devices list says what each needs",
    )
    add(
        "--parity",
        action="store_true",
        help="also compare an int8 TFLite and an int8 ONNX artifact, number by number",
    )
    add(
        "--power",
        type=float,
        help=f"probability that a loss of --bound is noticed, from 0 to 1 (default: "
        f"{DEFAULT_POWER}); the table says how many images that takes",
    )
    add(
        "--bound",
        metavar="POINTS|DB",
        help=f"loss of top-1 or R^2 that matters, in points (default: {verdicts.BOUND}); with "
        f"--layers in dB: exit status 1 if a layer is below",
    )
    add(
        "--preprocessing",
        help="preprocessing of files, as `edgekit export` takes it; an artifact has its own",
    )
    add("--task", choices=tasks.TASKS, help=tasks.HELP)
    functions.add_metric(result)
    add(
        "--decoding",
        metavar="NAME|FILE",
        help=f"{presets.HELP}; an artifact of a detector has its own",
    )
    for name, meaning in (
        ("dead", "outputs or channels vary in the float model and not in the deployable"),
        ("poor", "outputs are poor and no labels prove that it does not matter"),
    ):
        add(f"--allow-{name}", action="store_true", help=f"exit status 0 although {meaning}")
    add(
        "--allow-chance",
        action="store_true",
        help="compare outputs although the float model is no better than chance on these labels",
    )
    add(
        "--pictures",
        type=_count,
        default=PICTURES,
        metavar="N",
        help=f"put up to N images whose prediction changed into the report, for each artifact "
        f"(default: {PICTURES})",
    )
    add("--out", type=Path, metavar="FILE", help="report to write (default: report.json)")
    add("--force", action="store_true", help="replace files that exist")
    float_model.add_trust(result)
    layer_options.add_arguments(result)
    return result


def _points(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidOptionError(
            f"expected --bound in points of accuracy, e.g. 0.5, got {text!r}; dB go with --layers"
        ) from None


def _count(text: str) -> int:
    return 0 if text == "0" else words.positive_int(text)


def _act(options: argparse.Namespace) -> cli.Outcome:
    if layer_options.requested(options):
        layers = layer_options.run(options, cli.reporter)
        layer_table.show(layers, None if options.all else layer_options.SHOWN)
        below = any(name is not None for name in layers.first_below.values())
        missed = layers.bisection is not None and not layers.bisection.reached
        return int(below or missed), layers
    options.out = options.out or Path("report.json")
    outputs.check_free(options.out, force=options.force)
    if options.record is not None:
        outputs.check_free(options.record, force=options.force)
        if options.record.absolute() == options.out.absolute():
            raise InvalidOptionError(f"--record and --out are one file, {options.out}; name two")
    asked = cli.gathered(
        Options,
        options,
        dataset=options.data,
        power=DEFAULT_POWER if options.power is None else options.power,
        bound=verdicts.BOUND if options.bound is None else _points(options.bound),
        resources=fleet.assigned(options.resources),
        command=cli.command_line(),
    )
    report = compare(options.artifacts, asked, progress=cli.reporter)
    outputs.write_text(options.out, report.dumps(), force=options.force)
    tables.show(report)
    judged = {result.name: verdicts.of(result, report) for result in report.artifacts}
    failed = [
        name
        for name, each in judged.items()
        if each.broken and not getattr(options, f"allow_{each.broken}")
    ]
    return (1 if failed else 0), {
        "report": str(options.out),
        "recording": None if options.record is None else str(options.record),
        "reference": {
            "name": report.reference.name,
            "device": report.reference.runtime.device,
            "emulated": report.reference.runtime.emulated,
        },
        "verdicts": {name: each.verdict for name, each in judged.items()},
        "failed": failed,
        "artifacts": {
            result.name: {name: metric.value for name, metric in result.metrics.items()}
            for result in report.artifacts
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
