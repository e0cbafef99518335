"""``python -m edgekit.compare``: are these deployables still the float model, and how fast?

The float model is the reference, in the format it was saved in, or what ``--reference`` names:
another runner of it such as ``ort:cuda:float16``, or a recording of one. Every model runs in a
process of its own; evaluation is spread over the cores, in shards that outlive a kill, or over the
workers of a cluster. Latency is taken at batch 1 in rounds that go through all models in turn, so
that a change of the machine's speed meets all of them. Writes a Report.

Answers that are one score a class are held against labels; other answers, of one output or several,
against the reference's numbers only: SQNR, mean squared and largest error.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from edgekit import (
    cli,
    conditions,
    data,
    environment,
    feeds,
    figures,
    fleet,
    mistakes,
    outputs,
    shards,
    stats,
    words,
)
from edgekit import parity as parity_of
from edgekit.artifact import Artifact, Manifest
from edgekit.errors import InvalidDataError, InvalidModelError, InvalidOptionError
from edgekit.figures import Measured
from edgekit.formats import float_model
from edgekit.layers import options as layer_options
from edgekit.recording import Facts, Recording, inputs_sha256, is_recording
from edgekit.results import (
    Conditions,
    Device,
    Environment,
    Measurement,
    Parity,
    Report,
)
from edgekit.runtimes import spec as runners
from edgekit.runtimes.worker import Job, Worker
from edgekit.signature import Preprocessing, TensorSpec
from edgekit.subjects import (
    Subject,
    cannot_saturate,
    check_one_source,
    recorded_in,
    reference_of,
    run_by,
    subject_of,
)
from edgekit.text import decimals

SAMPLES = 20
WARM_UP = 10
#: The loss that the gate allows, and the power that is customary (Cohen 1988).
DEFAULT_BOUND, DEFAULT_POWER = 0.5, 0.8
#: Images on which classic mistakes are looked for; ``edgekit.data check`` takes more.
SUSPECTED = 128
_DATA_HELP = f"{data.WORDS}; or FILE.npz with an array named like each input"
#: Images that changed their answer, pictured in the report, of each artifact.
PICTURES = 24


def compare(
    artifacts: Sequence[Path],
    *,
    dataset: str = "fashion_mnist",
    limit: int | None = None,
    threads: int = 1,
    rounds: int = 10,
    reference: Path | str | None = None,
    record: Path | None = None,
    force: bool = False,
    parity: bool = False,
    power: float = DEFAULT_POWER,
    bound: float = DEFAULT_BOUND,
    pictures: int = PICTURES,
    work: Path | None = None,
    shard: int = shards.IMAGES,
    processes: int | None = None,
    cluster: str | None = None,
    resources: Mapping[str, str] | None = None,
    trust: bool = False,
    command: str = "",
) -> Report:
    """Measure artifacts against the float model they came from.

    Args:
        artifacts: Folders, all made from one float model.
        dataset: What :func:`edgekit.feeds.open_word` takes. Labels are needed where images have
            classes; without them records of several inputs are compared with the reference only.
        limit: Use the first images only.
        threads: Threads inside an operator.
        rounds: Latency rounds; each takes 20 samples of every model.
        reference: The float model, an artifact or a file or folder that ``export`` takes; default
            where the manifests say or the shipped one. Or a runner of it, e.g.
            ``ort:cuda:float16``; or a recording.
        record: Write what the reference answered and how long it took to this file, which stands
            in for it as a ``reference`` on machines without its device.
        force: Replace ``record`` if it exists.
        parity: Also hold the int8 TFLite and the int8 ONNX artifact of the first model that has
            one of each against each other, in numbers and in answers, with TFLite's reference
            kernels as a third.
        power: How often a loss of ``bound`` has to be found, of 1; the report says how many images
            that takes, and warns where there are fewer.
        bound: Loss of top-1 that matters, in points.
        pictures: Of each artifact, how many of the images that changed their answer go into the
            report as small pictures; what changed is counted for all.
        work: Folder that keeps the answers shard by shard, so that a run that was killed goes on
            where it was; default the user's cache, until the comparison is whole.
        shard: Images a shard.
        processes: That evaluate at once on this machine; default as many as fit on the cores.
        cluster: Address of a Dask scheduler, whose workers evaluate the artifacts. The reference
            is evaluated here, and what a worker evaluated has no latency, load time and memory.
        resources: Worker resource, ``any`` or ``local``, by artifact; see :func:`fleet.devices`.
        trust: Let code inside of the float model run, as ``export --trust`` does.
        command: Recorded in the report.

    Raises:
        EdgekitError: If models, data or options do not fit together, or a runtime fails.
    """
    if not artifacts:
        raise InvalidOptionError("expected at least one artifact to compare")
    stats.images_needed(discordance=0, drop=bound / 100, power=power)  # refuses what is no bound
    if pictures < 0:
        raise InvalidOptionError(f"expected a number of pictures >= 0, got {pictures}")
    if cluster and parity:
        raise InvalidOptionError(
            "--parity is about one machine's kernels; leave it out or leave out --cluster"
        )
    loaded = [Artifact.load(path) for path in artifacts]
    check_one_source(loaded)
    runner = _runner(reference)
    pair = parity_of.pair_of(loaded) if parity else None
    manifest = loaded[0].manifest
    classes = len(manifest.class_names)
    if parity and not classes:
        raise InvalidOptionError(
            "--parity compares classes, these models answer no class; leave it out"
        )
    images = _images(dataset, manifest, limit)
    by_input = images.images.dtype.names is not None
    labels = _labels(images, classes, needed=not by_input)
    if labels is None and (power, bound) != (DEFAULT_POWER, DEFAULT_BOUND):
        raise InvalidOptionError(
            f"--power and --bound are of top-1, and {images.name} has no right classes for these "
            f"models; leave them out"
        )
    machine = environment.describe()
    here = shards.this_place(machine)
    processes = processes or shards.processes_for(threads)
    with (
        shards.Work(work) as kept,
        contextlib.ExitStack() as stack,
        cli.progress() as bar,
    ):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if runner is not None:
            base = run_by(runner, loaded, dataset, threads, folder, trust)
        elif reference is not None and is_recording(Path(reference)):
            base = recorded_in(Path(reference), loaded[0], images)
        else:
            given = None if reference is None else Path(reference)
            base = reference_of(loaded, given, threads, trust=trust)
        parts = _parts(manifest.signature.outputs)
        if record is not None:
            _check_recordable(base, parts)
        subjects = [
            subject.answering(tuple(parts))
            for subject in (base, *(subject_of(artifact, threads) for artifact in loaded))
        ]
        devices = fleet.devices(
            [subject.name for subject in subjects],
            {artifact.name: artifact.manifest.device for artifact in loaded},
            resources or {},
            cluster=cluster,
        )
        if base.name in devices:
            _check_sendable(base, here=runner is not None or record is not None)
        task = bar.add_task("evaluating", total=len(subjects) * len(images), note="")

        def advance(count: int) -> None:
            bar.advance(task, count)

        def run(job: Job, device: str = "") -> shards.Run:
            return shards.Run.of(
                job, data=images.sha256, count=len(images), shard=shard, device=device
            )

        def evaluate(
            worker: Worker, advance: Callable[[int], None] = advance
        ) -> npt.NDArray[np.float32]:
            return shards.evaluate(
                kept.open(run(worker.job), shards.local(machine)),
                worker,
                images.images,
                processes=1 if worker.loaded.runtime.device == "gpu" else processes,
                place=here,
                advance=advance,
            )

        far: dict[str, Measured] = {}
        if cluster:
            jobs = {each.name: each.job for each in subjects if each.job is not None}
            with fleet.Fleet(cluster) as workers:
                workers.expect(devices.values())
                stores = [
                    kept.open(run(jobs[name], device), workers.accepts(device))
                    for name, device in devices.items()
                ]
                sent = [jobs[name] for name in devices]
                workers.evaluate(stores, sent, images.images, advance=advance)
            far = {store.run.name: _far(store) for store in stores}
        measured: list[Measured] = []
        suspected: list[str] = []
        for subject in subjects:
            bar.update(task, note=subject.name)
            if subject.job is None:
                each = _replayed(subject)
                advance(len(images))
            elif subject.name in far:
                each = far[subject.name]
            else:
                each = _run(subject.job, images, stack, evaluate)
            _check_answers(subject.name, each.answers, measured, classes)
            if not measured and labels is not None and not by_input:
                suspected = _suspected(each, images, labels, manifest.preprocessing)
            measured.append(each)
        watched = _time(measured, images.images[:1], rounds)
        _take_energy(measured, images.images[:1])
        if record is not None:
            recording = _recording(base, measured[0], loaded[0], images, machine, command)
            recording.write(record, force=force)
        found = None
        if pair is not None:
            known = {
                subject.name: each.answers for subject, each in zip(subjects, measured, strict=True)
            }
            found = parity_of.answers(pair, known, len(images), evaluate, machine, threads)
        return figures.report(
            subjects,
            measured,
            images,
            labels,
            machine,
            classes=classes > 0,
            parts=parts if sum(parts.values()) == measured[0].answers.shape[1] else {},
            model_id=loaded[0].manifest.model_id,
            parity=found,
            watched=watched,
            pictures=pictures,
            safe=[artifact.name for artifact in loaded if cannot_saturate(artifact)],
            command=command,
            suspected=suspected,
            settings={
                "threads": threads,
                "rounds": rounds,
                "samples_per_round": SAMPLES,
                "limit": limit,
                "power": power,
                "bound": bound,
                "processes": processes,
                "shard": shard,
                "shards_resumed": kept.resumed,
                **({"cluster": cluster} if cluster else {}),
            },
        )


def _runner(reference: Path | str | None) -> runners.RunnerSpec | None:
    """The runner that a reference names, if it names one; its device is there."""
    if reference is None or not runners.is_spec(str(reference)):
        return None
    found = runners.parse(str(reference))
    runners.require_device(found)
    return found


def _check_recordable(base: Subject, parts: Mapping[str, int]) -> None:
    if base.recording is not None:
        raise InvalidOptionError(f"{base.path} is a recording; --record needs a runner to run")
    free = [name for name, size in parts.items() if size < 0]
    if free:
        raise InvalidOptionError(
            f"--record: expected outputs of fixed sizes, {', '.join(free)} has none; leave it out"
        )


def _check_sendable(base: Subject, *, here: bool) -> None:
    """Refuse a reference that no worker of a cluster can evaluate."""
    if here or base.job is None:
        raise InvalidOptionError(
            f"{base.name} is evaluated or replayed here, as --reference and --record ask; leave "
            f"it out of --resources"
        )
    if base.format == "saved_model":
        raise InvalidOptionError(
            f"{base.name} is a SavedModel folder, which is evaluated here; leave it out of "
            f"--resources"
        )


def _far(store: shards.Shards) -> Measured:
    """What a cluster's workers answered."""
    assert store.runtime is not None
    return Measured(store.answers(), fleet.noted(store.runtime, store), places=store.places())


def _images(dataset: str, manifest: Manifest, limit: int | None) -> data.ImageSet:
    """What a ``--data`` word names: images, or records with a field an input."""
    specs = manifest.signature.inputs
    plain = not manifest.class_names and words.split(dataset)[0].endswith(".npz")
    opened = feeds.open_word(dataset, "calibration" if plain else "test")  # one has no labels
    if not isinstance(opened, feeds.Inputs):
        return feeds.images(
            opened,
            specs,
            manifest.preprocessing,
            manifest.class_names,
            limit,
            quiet=True,  # warnings go into the report, which is printed
        )
    samples = opened.head(limit)
    labels = None
    if manifest.class_names:
        samples, labels = feeds.labelled(samples, specs)
    if labels is not None:
        labels = labels + manifest.preprocessing.class_offset
    real = [
        replace(spec, dtype="float32", scale=None, zero_point=None) if spec.is_real else spec
        for spec in specs
    ]
    feeds.check(samples, real)
    return data.ImageSet(samples.name, feeds.records(samples.arrays), labels, (), samples.sha256)


def _labels(images: data.ImageSet, classes: int, *, needed: bool) -> npt.NDArray[np.int64] | None:
    """The right classes; None where answers are no classes, or nobody knows and need not."""
    if not classes or (images.labels is None and not needed):
        return None
    if images.labels is None:
        raise InvalidDataError(f"{images.name}: comparing needs labels; add y to the .npz")
    mistakes.check_range(images.name, images.labels, classes)
    return images.labels


def _parts(outputs: Sequence[TensorSpec]) -> dict[str, int]:
    """Numbers of each of several outputs, in the order of the answers; empty for one output."""
    if len(outputs) == 1:
        return {}
    return {spec.name: spec.numbers for spec in outputs}


def _check_answers(
    name: str, answers: npt.NDArray[np.float32], before: list[Measured], classes: int
) -> None:
    """Refuse answers of another size than the classes, or than those of the reference."""
    size = before[0].answers.shape[1] if before and not classes else classes
    if answers.ndim == 2 and answers.shape[1] == (size or answers.shape[1]):
        return
    expected = f"answers for {classes} classes" if classes else f"{size} numbers a sample"
    raise InvalidModelError(f"{name}: expected {expected}, got shape {list(answers.shape[1:])}")


def _suspected(
    each: Measured, images: data.ImageSet, labels: npt.NDArray[np.int64], prepare: Preprocessing
) -> list[str]:
    """Classic mistakes in what the reference was asked; needs its runner."""
    if each.worker is None:
        return []
    found = mistakes.find(each.worker.outputs, images.images, labels, prepare, count=SUSPECTED)
    return [f"{finding.kind}: {finding.said}" for finding in found]


def _run(
    job: Job,
    images: data.ImageSet,
    stack: contextlib.ExitStack,
    evaluate: Callable[[Worker], npt.NDArray[np.float32]],
) -> Measured:
    """Start a worker, which stays for the timing, and let it and its like answer all images."""
    worker = stack.enter_context(Worker(job))
    if misfit := worker.loaded.misfit(job.name, images.images):
        raise InvalidDataError(f"{images.name}: {misfit}")
    runtime = worker.loaded.runtime
    if runtime.emulated:
        return Measured(evaluate(worker), runtime)
    # Evaluation's batches differ between runtimes; memory is taken at batch 1.
    worker.latencies(images.images[:1], WARM_UP)
    metrics = {
        "peak_memory": Measurement(worker.peak_memory(), "bytes", 1),
        "load_time": Measurement(worker.loaded.load_ms, "ms", 1),
    }
    return Measured(evaluate(worker), runtime, metrics, worker)


def _replayed(subject: Subject) -> Measured:
    """What a recording says, as if it had been measured now."""
    assert subject.recording is not None
    facts, latency = subject.recording.facts, subject.recording.latency
    return Measured(
        subject.recording.answers,
        replace(facts.runtime, notes=(*facts.runtime.notes, figures.recorded(facts))),
        facts.metrics,
        None,
        [] if latency is None else latency.tolist(),
    )


def _recording(
    base: Subject,
    each: Measured,
    artifact: Artifact,
    images: data.ImageSet,
    machine: Environment,
    command: str,
) -> Recording:
    """The reference as measured, with all that has to be the same when it is replayed."""
    manifest = artifact.manifest
    assert manifest.source is not None
    device = Device("cpu", machine.cpu)
    if each.runtime.device == "gpu":
        device = environment.gpu() or Device("gpu", "unknown GPU")
    facts = Facts(
        name=base.name,
        model_id=manifest.model_id,
        device=device,
        runtime=each.runtime,
        environment=machine,
        source_sha256=manifest.source.sha256,
        format=base.format,
        precision=base.precision,
        model_sha256=base.sha256,
        model_bytes=base.size,
        data=figures.data_of(images),
        preprocessing=manifest.preprocessing,
        inputs_sha256=inputs_sha256(
            images.images, manifest.preprocessing, manifest.signature.inputs
        ),
        outputs=_parts(manifest.signature.outputs)
        or {manifest.signature.outputs[0].name: each.answers.shape[1]},
        created=figures.created(),
        command=command,
        metrics=each.metrics,
    )
    return Recording(facts, each.answers, np.array(each.latency) if each.latency else None)


def _time(measured: list[Measured], image: npt.NDArray[Any], rounds: int) -> Conditions | None:
    """Interleaved latency rounds at batch 1, after a warm-up that is thrown away.

    Returns:
        What the machine did meanwhile; None if there was nothing to be timed.
    """
    timed = [(each.worker, each.latency) for each in measured if each.worker is not None]
    if not timed:
        return None
    processes = [worker.process for worker, _ in timed]
    with cli.progress("rounds") as bar:
        task = bar.add_task("timing", total=rounds, note="")
        for worker, _ in timed:
            worker.latencies(image, WARM_UP)
        readings = [conditions.look(processes)]
        for _ in range(rounds):
            for worker, latency in timed:
                latency.append(worker.latencies(image, SAMPLES))
            readings.append(conditions.look(processes))
            bar.advance(task)
    return conditions.summarize(readings)


def _take_energy(measured: list[Measured], image: npt.NDArray[Any]) -> None:
    """Energy of an image at batch 1, where the counters of the device that ran it can be read.

    They move once in some milliseconds; half a second makes that no matter.
    """
    meters: dict[str, conditions.Meter] = {"cpu": conditions.Energy()}
    for each in measured:
        if each.worker is None or not each.latency:
            continue
        device = each.runtime.device
        if device not in meters:  # the driver is asked where a GPU ran
            meters[device] = conditions.GpuEnergy(environment.gpu_bus())
        meter = meters[device]
        if not meter.readable:
            continue
        runs = max(SAMPLES, math.ceil(500 / float(np.median(each.latency))))
        meter.since()
        each.worker.latencies(image, runs)
        joules = meter.since()
        if joules is not None:
            each.metrics["energy"] = Measurement(1e3 * joules / runs, "mJ", runs)


@dataclass(frozen=True)
class _Column:
    """A column of the printed table.

    Attributes:
        form: The figure as text.
        meaning: Said below the table; ``{against}`` is the reference.
        always: Shown where nothing was measured, too.
    """

    title: str
    metric: str
    form: Callable[[Measurement], str]
    meaning: str = ""
    always: bool = False


def _share(found: Measurement) -> str:
    return f"{found.value:.2f} ±{((found.high or 0) - (found.low or 0)) / 2:.2f}"


_COLUMNS = (
    _Column("top-1 %", "top1", _share),
    _Column("agrees", "agreement", lambda m: f"{m.value:.2f}", "% same answers as {against}"),
    _Column("p", "mcnemar_p", lambda m: f"{m.value:.3f}", "McNemar"),
    _Column(
        "dB",
        "sqnr",
        lambda m: "exact" if math.isinf(m.value) else f"{m.value:.1f}",
        "SQNR of the outputs",
    ),
    _Column("MSE", "mse", lambda m: f"{m.value:.3g}", "mean squared error against {against}"),
    _Column("max", "max_error", lambda m: f"{m.value:.3g}", "largest error"),
    _Column("MB", "size", lambda m: decimals(m.value / 1e6, ".2f")),
    _Column("ms", "latency_p50", lambda m: f"{m.value:.3f}", "p50 at batch 1", always=True),
    _Column(
        "x",
        "latency_ratio",
        lambda m: f"{m.value:.2f}",
        "ms against float32 of the same runtime",
        always=True,
    ),
)


def _print(report: Report) -> None:
    results = (report.reference, *report.artifacts)
    title = f"{report.model_id} on {report.data.name}, {report.data.count:,} {report.data.unit}"
    table = Table(
        title=cli.plain(title),
        caption=cli.plain(
            f"{report.environment.machine_class}, {report.settings['threads']} thread(s)"
        ),
    )
    shown = [
        column
        for column in _COLUMNS
        if column.always or any(column.metric in result.metrics for result in results)
    ]
    table.add_column("artifact", overflow="fold")
    for column in shown:
        table.add_column(column.title, justify="right", no_wrap=True, overflow="fold")
    for result in results:
        name = _in_column(cli.plain(result.name.removeprefix(f"{report.model_id}-")))
        found = [(column, result.metrics.get(column.metric)) for column in shown]
        table.add_row(name, *("-" if each is None else c.form(each) for c, each in found))
    cli.console.print(table)
    meanings = "; ".join(
        f"{column.title}: {column.meaning}" for column in shown if column.meaning
    ).format(against=cli.plain(report.reference_in_words))
    cli.console.print(f"[dim]{meanings}[/]")
    for result in results:
        for place in result.places:
            where = f"{place.host} {place.device}".rstrip()
            cli.say(
                f"{result.name}: {place.shards} shards on {where}, {place.machine_class}; "
                f"no latency"
            )
    left_out = report.artifacts[0].latency_warm_up
    if left_out:
        cli.console.print(
            f"[dim]the first {left_out} of {SAMPLES} samples of each round are slower and left "
            f"out[/]"
        )
    needs = [result.metrics.get("images_needed") for result in report.artifacts]
    need = max((each.value for each in needs if each is not None), default=None)
    if need is not None:
        cli.console.print(
            f"[dim]a loss of {report.settings['bound']:g} points is seen (McNemar, p < "
            f"{stats.SIGNIFICANT:g}, power {report.settings['power']:g}) with {need:,.0f} "
            f"{report.data.unit}; these are {report.data.count:,}[/]"
        )
    if report.parity is not None:
        _print_parity(report.parity)
    for warning in report.warnings:
        cli.say(f"warning: {warning}")


def _in_column(name: str) -> str:
    """A runner's name in two lines, since the figures fill the width of a terminal."""
    head, colon, tail = name.rpartition(":")
    return f"{head}{colon}\n{tail}" if colon else name


def _print_parity(parity: Parity) -> None:
    table = Table(
        title="the same integers, run in three ways",
        caption=f"{parity.differing:,} of {parity.numbers:,} stored numbers differ",
    )
    table.add_column("pair", no_wrap=True)
    for column in ("agree %", "mean LSB", "0", "1", "2", "3+"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in parity.pairs:
        total = sum(pair.histogram)
        shares = [*pair.histogram[:3], sum(pair.histogram[3:])]
        table.add_row(
            cli.plain(f"{pair.left} : {pair.right}"),
            f"{pair.agreement.value:.2f}",
            f"{pair.mean_lsb.value:.4f}",
            *(f"{100 * share / total:.2f}" for share in shares),
        )
    cli.console.print(table)
    cli.console.print(
        "[dim]reference: TFLite's own plain kernels; 0, 1, 2, 3+: % of output numbers that "
        "differ by so many steps[/]"
    )


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.compare``."""
    result = cli.Parser(
        "compare",
        description="Measure accuracy, agreement and latency of artifacts against the float model.",
        examples="""
python -m edgekit.compare exports/*-tflite-int8 exports/*-onnx-int8 --out report.json
python -m edgekit.compare build/mine --data test.npz --reference mine.keras --limit 1000
python -m edgekit.compare build/mine --data test.npz --power 0.9 --bound 0.2
python -m edgekit.compare build/mine --reference ort:cuda:float16 --record gpu.rec   # with a GPU
python -m edgekit.compare build/mine --reference gpu.rec                             # anywhere
python -m edgekit.compare build/mine --reference emulated:float16                    # no GPU at all
python -m edgekit.compare mine.keras exports/mine-onnx-int8 --layers --bisect 30dB
python -m edgekit.compare build/mine --cluster tcp://10.0.0.2:8786 --resources mine=device:pi5
""",
    )
    add = result.add_argument
    add("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="artifact folders")
    add("--data", default="fashion_mnist", metavar="IMAGES", help=_DATA_HELP)
    add("--limit", type=cli.positive_int, help="use the first N images only")
    add("--threads", type=cli.positive_int, default=1, help="threads inside an operator")
    add("--rounds", type=cli.positive_int, default=10, help=f"latency rounds of {SAMPLES} samples")
    add(
        "--reference",
        metavar="MODEL|RUNNER|RECORDING",
        help=f"the float model (default: where the manifests say), a runner of it "
        f"({', '.join(runners.SPECS)}), or a file of --record",
    )
    add("--record", type=Path, metavar="FILE", help="write the reference to FILE, to be replayed")
    add(
        "--work", type=Path, metavar="DIR", help="keep the answers here; a second run goes on there"
    )
    add("--shard", type=cli.positive_int, default=shards.IMAGES, help="images a shard")
    add("--processes", type=cli.positive_int, help="that evaluate at once (default: by the cores)")
    add("--cluster", metavar="ADDRESS", help="evaluate on the workers of this Dask scheduler")
    add(
        "--resources",
        type=fleet.assignment,
        action="append",
        metavar="ARTIFACT=RESOURCE",
        help="worker resource that an artifact needs, as device:pi5; any; or local; repeatable",
    )
    add("--parity", action="store_true", help="hold int8 TFLite and int8 ONNX against each other")
    add(
        "--power",
        type=float,
        help=f"how often a loss of --bound has to be found (default: {DEFAULT_POWER}); the table "
        f"says how many images that takes",
    )
    add(
        "--bound",
        metavar="POINTS|DB",
        help=f"loss of top-1 that matters, in points (default: {DEFAULT_BOUND}); with --layers in "
        f"dB: exit status 1 if a layer is below",
    )
    add(
        "--pictures",
        type=_count,
        default=PICTURES,
        metavar="N",
        help=f"show up to N images an artifact that changed their answer (default: {PICTURES})",
    )
    add("--out", type=Path, help="report (default: report.json)")
    add("--force", action="store_true", help="replace outputs that exist")
    float_model.add_trust(result)
    layer_options.add_arguments(result)
    return result


def _points(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidOptionError(
            f"expected --bound in points of top-1, e.g. 0.5, got {text!r}; dB go with --layers"
        ) from None


def _count(text: str) -> int:
    return 0 if text == "0" else cli.positive_int(text)


def _act(options: argparse.Namespace) -> cli.Outcome:
    if layer_options.wanted(options):
        return layer_options.act(options)
    options.out = options.out or Path("report.json")
    outputs.check_free(options.out, force=options.force)
    if options.record is not None:
        outputs.check_free(options.record, force=options.force)
        if options.record.absolute() == options.out.absolute():
            raise InvalidOptionError(f"--record and --out are one file, {options.out}; name two")
    report = compare(
        options.artifacts,
        dataset=options.data,
        limit=options.limit,
        threads=options.threads,
        rounds=options.rounds,
        reference=options.reference,
        record=options.record,
        force=options.force,
        parity=options.parity,
        power=DEFAULT_POWER if options.power is None else options.power,
        bound=DEFAULT_BOUND if options.bound is None else _points(options.bound),
        pictures=options.pictures,
        work=options.work,
        shard=options.shard,
        processes=options.processes,
        cluster=options.cluster,
        resources=fleet.assigned(options.resources),
        trust=options.trust,
        command=cli.command_line(),
    )
    outputs.write_text(options.out, report.dumps(), force=options.force)
    _print(report)
    return 0, {
        "report": str(options.out),
        "recording": None if options.record is None else str(options.record),
        "reference": {
            "name": report.reference.name,
            "device": report.reference.runtime.device,
            "emulated": report.reference.runtime.emulated,
        },
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
