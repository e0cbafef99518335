"""``python -m edgekit.compare``: are these deployables still the float model, and how fast?

The float Keras model is the reference. Every model runs in a process of its own; evaluation is
spread over the cores; latency is taken at batch 1 in rounds that go through all models in turn, so
that a change of the machine's speed meets all of them. Writes a Report.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.table import Table

from edgekit import cli, conditions, data, environment, outputs, stats
from edgekit.artifact import Artifact
from edgekit.errors import InvalidDataError, InvalidModelError, InvalidOptionError
from edgekit.formats.float_model import SHIPPED
from edgekit.parity import numbers
from edgekit.quant.profiles import PROFILES
from edgekit.results import (
    ArtifactResult,
    Conditions,
    Data,
    Environment,
    Measurement,
    Parity,
    ParityPair,
    Report,
    pack_bits,
)
from edgekit.runtimes.worker import Job, Worker

SHARD = 250
SAMPLES = 20
WARM_UP = 10
#: onnxruntime's option for int8 kernels on x86 that do not saturate.
PRECISE = "session.x64quantprecision"
#: The loss that the gate allows, and the power that is customary (Cohen 1988).
DEFAULT_BOUND, DEFAULT_POWER = 0.5, 0.8
#: Differences of two answers are counted up to this many steps.
LSB_BINS = 16


@dataclass(frozen=True)
class _Subject:
    """A model to be measured."""

    job: Job
    path: Path
    precision: str
    sha256: str
    size: int
    manifest_sha256: str = ""


@dataclass
class _Measured:
    """What the workers said of one subject."""

    answers: npt.NDArray[np.float32]
    memory: int
    worker: Worker
    latency: list[list[float]]
    energy: Measurement | None = None


def compare(
    artifacts: Sequence[Path],
    *,
    dataset: str = "fashion_mnist",
    limit: int | None = None,
    threads: int = 1,
    rounds: int = 10,
    reference: Path | None = None,
    parity: bool = False,
    power: float = DEFAULT_POWER,
    bound: float = DEFAULT_BOUND,
    command: str = "",
) -> Report:
    """Measure artifacts against the float model they came from.

    Args:
        artifacts: Folders, all made from one float model.
        dataset: ``fashion_mnist`` (its test images) or an ``.npz`` with ``x`` and ``y``.
        limit: Use the first images only.
        threads: Threads inside an operator; evaluation takes as many processes as then fit on
            the cores.
        rounds: Latency rounds; each takes 20 samples of every model.
        reference: The float model, an artifact or ``.keras`` file; default the shipped one or
            where the manifests say.
        parity: Also hold the int8 TFLite and the int8 ONNX artifact of the first model that has
            one of each against each other, in numbers and in answers, with TFLite's reference
            kernels as a third.
        power: How often a loss of ``bound`` has to be found, of 1; the report says how many images
            that takes, and warns where there are fewer.
        bound: Loss of top-1 that matters, in points.
        command: Recorded in the report.

    Raises:
        EdgekitError: If models, data or options do not fit together, or a runtime fails.
    """
    if not artifacts:
        raise InvalidOptionError("expected at least one artifact to compare")
    stats.images_needed(discordance=0, drop=bound / 100, power=power)  # refuses what is no bound
    loaded = [Artifact.load(path) for path in artifacts]
    _check_one_source(loaded)
    base = _reference(loaded, reference, threads)
    subjects = [base, *(_subject(artifact, threads) for artifact in loaded)]
    pair = _parity_pair(loaded) if parity else None
    images = data.load(dataset, "test").head(limit)
    classes = len(loaded[0].manifest.class_names)
    labels = _labels(images, classes)
    machine = environment.describe()
    with contextlib.ExitStack() as stack, cli.progress() as bar:
        task = bar.add_task("evaluating", total=len(subjects) * len(images), note="")
        measured: list[_Measured] = []
        for subject in subjects:
            bar.update(task, note=subject.job.name)
            worker = stack.enter_context(Worker(subject.job))
            if worker.loaded.input_shape != images.images.shape[1:]:
                raise InvalidDataError(
                    f"{images.name}: expected images {list(worker.loaded.input_shape)} as "
                    f"{subject.job.name} takes, got {list(images.images.shape[1:])}"
                )
            # Evaluation runs in batches that differ between runtimes; memory is taken at batch 1.
            worker.latencies(images.images[:1], WARM_UP)
            memory = worker.peak_memory()
            processes = max(1, machine.cores // threads)
            answers = _evaluate(worker, images.images, processes, lambda n: bar.advance(task, n))
            if answers.ndim != 2 or answers.shape[1] != classes:
                raise InvalidModelError(
                    f"{subject.job.name}: expected answers for {classes} classes, "
                    f"got shape {list(answers.shape[1:])}"
                )
            if not measured:
                _expect_probabilities(subject.job.name, answers)
            measured.append(_Measured(answers, memory, worker, []))
        watched = _time(measured, images.images[:1], rounds)
        _take_energy(measured, images.images[:1])
        found = None
        if pair is not None:
            known = {
                subject.job.name: each.answers
                for subject, each in zip(subjects, measured, strict=True)
            }
            found = _parity(pair, known, images.images, machine, threads)
        return _report(
            subjects,
            measured,
            images,
            labels,
            machine,
            model_id=loaded[0].manifest.model_id,
            parity=found,
            watched=watched,
            safe=[artifact.name for artifact in loaded if _cannot_saturate(artifact)],
            command=command,
            settings={
                "threads": threads,
                "rounds": rounds,
                "samples_per_round": SAMPLES,
                "limit": limit,
                "power": power,
                "bound": bound,
            },
        )


def _check_one_source(artifacts: list[Artifact]) -> None:
    first = artifacts[0]
    for artifact in artifacts:
        if artifact.manifest.source is None:
            raise InvalidModelError(
                f"{artifact.path} is a float model; it is the reference, pass what was exported"
            )
        assert first.manifest.source is not None
        if artifact.manifest.source.sha256 != first.manifest.source.sha256:
            raise InvalidModelError(
                f"{artifact.path} and {first.path} were made from different float models; "
                f"compare them one by one"
            )
    names = [artifact.name for artifact in artifacts]
    if len(set(names)) != len(names):
        raise InvalidOptionError(f"two artifacts share a folder name: {', '.join(sorted(names))}")


def _reference(artifacts: list[Artifact], given: Path | None, threads: int) -> _Subject:
    """The float model whose sha256 the manifests name."""
    manifest = artifacts[0].manifest
    assert manifest.source is not None
    if given and not given.exists():
        raise InvalidModelError(
            f"{given} not found; expected the float model that {artifacts[0].path} was made from"
        )
    places = [given] if given else [Path(manifest.source.path), SHIPPED]
    for place in places:
        if place.is_dir():
            artifact = Artifact.load(place)
            model, sha256 = artifact.model_path, artifact.sha256
            manifest_sha256 = artifact.manifest_sha256
        elif place.is_file():
            model, sha256, manifest_sha256 = place, outputs.sha256_file(place), ""
        else:
            continue
        if sha256 == manifest.source.sha256:
            job = Job("keras-float32", model, "keras", manifest.preprocessing, threads, {})
            size = model.stat().st_size
            return _Subject(job, place, "float32", sha256, size, manifest_sha256)
        if given:
            raise InvalidModelError(
                f"{given} is not the model that {artifacts[0].path} was made from "
                f"(sha256 {sha256[:12]}…, expected {manifest.source.sha256[:12]}…)"
            )
    raise InvalidModelError(
        f"the float model of {artifacts[0].path} ({manifest.source.path}) was not found; "
        f"pass --reference"
    )


def _subject(artifact: Artifact, threads: int) -> _Subject:
    return _Subject(
        Job.of(artifact, threads=threads),
        artifact.path,
        artifact.manifest.precision,
        artifact.sha256,
        artifact.size,
        artifact.manifest_sha256,
    )


def _cannot_saturate(artifact: Artifact) -> bool:
    """Whether its weights keep sums of products within 16 bits."""
    found = PROFILES.get(artifact.manifest.device)
    return found is not None and found.pair_bound


def _labels(images: data.ImageSet, classes: int) -> npt.NDArray[np.int64]:
    if images.labels is None:
        raise InvalidDataError(f"{images.name}: comparing needs labels; add y to the .npz")
    largest = int(images.labels.max())
    if largest >= classes:
        raise InvalidDataError(
            f"{images.name}: label {largest} is outside the model's {classes} classes (0 to "
            f"{classes - 1})"
        )
    return images.labels


def _expect_probabilities(name: str, answers: npt.NDArray[np.float32]) -> None:
    """KL needs them; of logits it would be a number without meaning."""
    sums = answers.sum(axis=1)
    if answers.min() < 0 or np.abs(sums - 1).max() > 0.01:
        raise InvalidModelError(
            f"{name}: expected probabilities that sum to 1, got values from {answers.min():.3g} "
            f"to {answers.max():.3g}; end the model with a softmax and export it again"
        )


def _evaluate(
    worker: Worker, images: npt.NDArray[Any], processes: int, advance: Any
) -> npt.NDArray[np.float32]:
    """Answers to all images; shards go to the processes, as each becomes free."""
    starts = list(range(0, len(images), SHARD))
    answers: dict[int, npt.NDArray[np.float32]] = {}
    failures: list[BaseException] = []
    lock = threading.Lock()

    def work(through: Worker) -> None:
        try:
            while not failures:
                with lock:
                    if not starts:
                        return
                    start = starts.pop(0)
                answers[start] = through.outputs(images[start : start + SHARD])
                with lock:
                    advance(len(answers[start]))
        except BaseException as exc:
            failures.append(exc)

    with contextlib.ExitStack() as stack:
        more = min(processes, len(starts)) - 1
        others = [stack.enter_context(Worker(worker.job)) for _ in range(more)]
        threads = [threading.Thread(target=work, args=(other,), daemon=True) for other in others]
        for thread in threads:
            thread.start()
        work(worker)
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return np.concatenate([answers[start] for start in sorted(answers)])


def _time(measured: list[_Measured], image: npt.NDArray[Any], rounds: int) -> Conditions:
    """Interleaved latency rounds at batch 1, after a warm-up that is thrown away.

    Returns:
        What the machine did meanwhile.
    """
    processes = [each.worker.process for each in measured]
    with cli.progress("rounds") as bar:
        task = bar.add_task("timing", total=rounds, note="")
        for each in measured:
            each.worker.latencies(image, WARM_UP)
        readings = [conditions.look(processes)]
        for _ in range(rounds):
            for each in measured:
                each.latency.append(each.worker.latencies(image, SAMPLES))
            readings.append(conditions.look(processes))
            bar.advance(task)
    return conditions.summarize(readings)


def _take_energy(measured: list[_Measured], image: npt.NDArray[Any]) -> None:
    """Energy of an image at batch 1, where the CPU's counters can be read.

    They move once a millisecond or so; half a second makes that no matter.
    """
    counters = conditions.Energy()
    if not counters.readable:
        return
    for each in measured:
        runs = max(SAMPLES, math.ceil(500 / float(np.median(each.latency))))
        counters.since()
        each.worker.latencies(image, runs)
        joules = counters.since()
        if joules is not None:
            each.energy = Measurement(1e3 * joules / runs, "mJ", runs)


def _report(
    subjects: list[_Subject],
    measured: list[_Measured],
    images: data.ImageSet,
    labels: npt.NDArray[np.int64],
    machine: Environment,
    *,
    model_id: str,
    safe: Collection[str],
    parity: Parity | None,
    watched: Conditions,
    command: str,
    settings: dict[str, Any],
) -> Report:
    base = measured[0].answers
    base_choice = _ranking(base)[:, 0]
    # One number for all, so that the same part of a round is compared.
    slow = max(stats.warm_up(np.array(each.latency)) for each in measured)
    float32 = {
        subject.job.format: np.array(each.latency)[:, slow:]
        for subject, each in zip(subjects, measured, strict=True)
        if subject.precision == "float32"
    }
    results = []
    for subject, each in zip(subjects, measured, strict=True):
        unquantized = float32.get(subject.job.format)
        results.append(
            _result(subject, each, base, base_choice, labels, unquantized, slow, settings)
        )
    return Report(
        model_id=model_id,
        data=Data(images.name, images.sha256, len(images), images.class_names),
        environment=machine,
        reference=results[0],
        artifacts=tuple(results[1:]),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        settings=settings,
        warnings=tuple(
            [*_too_few(results[1:], settings), *_warnings(results[1:], machine, watched, safe)]
        ),
        parity=parity,
        conditions=watched,
    )


def _parity_pair(artifacts: list[Artifact]) -> tuple[Artifact, Artifact]:
    """The int8 TFLite and the int8 ONNX artifact of the first model that has one of each.

    Raises:
        InvalidOptionError: If none has.
    """
    int8 = [a for a in artifacts if a.manifest.precision == "int8" and a.manifest.format != "keras"]
    models = dict.fromkeys(artifact.manifest.model_id for artifact in int8)
    counts: list[tuple[int, int]] = []
    for model in models:
        of_model = [artifact for artifact in int8 if artifact.manifest.model_id == model]
        ours, theirs = (
            [artifact for artifact in of_model if artifact.manifest.format == kind]
            for kind in ("tflite", "onnx")
        )
        if len(ours) == len(theirs) == 1:
            return ours[0], theirs[0]
        counts.append((len(ours), len(theirs)))
    got = ", ".join(f"{one} and {other}" for one, other in counts) or "none"
    raise InvalidOptionError(
        f"--parity needs one int8 tflite artifact and one int8 onnx artifact of a model, got {got}"
    )


def _parity(
    pair: tuple[Artifact, Artifact],
    answers: Mapping[str, npt.NDArray[np.float32]],
    images: npt.NDArray[Any],
    machine: Environment,
    threads: int,
) -> Parity:
    """Three ways to run the same integers, two at a time, on kernels that do not saturate."""
    stored = numbers(*pair)
    ours, theirs = pair
    processes = max(1, machine.cores // threads)

    def run(job: Job) -> npt.NDArray[np.float32]:
        with Worker(job) as worker, cli.progress() as bar:
            task = bar.add_task("parity", total=len(images), note=job.name)
            return _evaluate(worker, images, processes, lambda n: bar.advance(task, n))

    plain = replace(Job.of(ours, threads=threads), options={"kernels": "reference"})
    ways = {
        "XNNPACK": answers[ours.name],
        "reference": run(replace(plain, name=f"{ours.name}, reference kernels")),
    }
    if environment.saturates(machine) and not _cannot_saturate(theirs):
        job = Job.of(theirs, threads=threads)
        options = {**job.options, PRECISE: "1"}
        ways["onnxruntime, precise"] = run(replace(job, options=options))
    else:
        ways["onnxruntime"] = answers[theirs.name]
    scale = ours.manifest.signature.outputs[0].scale or 1.0
    return Parity(
        stored.compared,
        sum(each.count for each in stored.differences),
        tuple(
            _pair(one, ways[one], other, ways[other], scale)
            for one, other in itertools.combinations(ways, 2)
        ),
    )


def _pair(
    left: str,
    ours: npt.NDArray[np.float32],
    right: str,
    theirs: npt.NDArray[np.float32],
    scale: float,
) -> ParityPair:
    same = int((_ranking(ours)[:, 0] == _ranking(theirs)[:, 0]).sum())
    steps = np.abs(ours.astype(np.float64) - theirs) / scale
    counts = np.bincount(np.minimum(np.rint(steps).astype(int).ravel(), LSB_BINS - 1))
    return ParityPair(
        left,
        right,
        stats.proportion(same, len(ours)),
        Measurement(float(steps.mean()), "LSB", steps.size),
        tuple(int(count) for count in np.pad(counts, (0, LSB_BINS - len(counts)))),
    )


def _ranking(answers: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Classes by probability; in a stable order, so that equal ones rank the same in all models."""
    return np.argsort(-answers, axis=1, kind="stable")


def _result(
    subject: _Subject,
    each: _Measured,
    base: npt.NDArray[np.float32],
    base_choice: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    float32: npt.NDArray[np.float64] | None,
    slow: int,
    settings: Mapping[str, Any],
) -> ArtifactResult:
    count = len(labels)
    base_right = base_choice == labels
    order = _ranking(each.answers)
    right = order[:, 0] == labels
    top5 = (order[:, :5] == labels[:, None]).any(axis=1)
    latency = np.array(each.latency)
    steady = latency[:, slow:]
    metrics = {
        "top1": stats.proportion(int(right.sum()), count),
        "top5": stats.proportion(int(top5.sum()), count),
        "agreement": stats.proportion(int((order[:, 0] == base_choice).sum()), count),
        "top1_change": stats.paired_change(base_right, right),
        "mcnemar_p": stats.mcnemar(base_right, right),
        "images_needed": Measurement(
            stats.images_needed(
                discordance=sum(stats.discordant(base_right, right)) / count,
                drop=settings["bound"] / 100,
                power=settings["power"],
            ),
            "images",
            count,
        ),
        "kl": stats.divergence(base, each.answers),
        "sqnr": stats.sqnr(base, each.answers),
        "size": Measurement(subject.size, "bytes", 1),
        "peak_memory": Measurement(each.memory, "bytes", 1),
        "load_time": Measurement(each.worker.loaded.load_ms, "ms", 1),
    }
    for percent in (50, 90, 99):
        value = float(np.percentile(steady, percent))
        metrics[f"latency_p{percent}"] = Measurement(value, "ms", steady.size)
    if float32 is not None:
        metrics["latency_ratio"] = stats.latency_ratio(steady, float32)
    if each.energy is not None:
        metrics["energy"] = each.energy
    return ArtifactResult(
        name=subject.job.name,
        path=str(subject.path),
        format=subject.job.format,
        precision=subject.precision,
        sha256=subject.sha256,
        runtime=each.worker.loaded.runtime,
        metrics=metrics,
        manifest_sha256=subject.manifest_sha256,
        correct=pack_bits(right),
        latency_ms=tuple(round(float(value), 6) for value in latency.ravel()),
        latency_rounds=len(latency),
        latency_warm_up=slow,
    )


def _too_few(results: Sequence[ArtifactResult], settings: Mapping[str, Any]) -> list[str]:
    """One sentence, with the largest need, where a loss of the bound could go unseen."""
    needs = [(result.metrics["images_needed"], result.name) for result in results]
    short = [(need.value, name, need.count) for need, name in needs if need.value > need.count]
    if not short:
        return []
    value, name, count = max(short)
    return [
        f"{count:,} images are too few to see a loss of {settings['bound']:g} points of top-1 with "
        f"power {settings['power']:g} in {len(short)} of {len(results)} artifacts; "
        f"{name} needs {value:,.0f}"
    ]


def _warnings(
    results: list[ArtifactResult], machine: Environment, watched: Conditions, safe: Collection[str]
) -> list[str]:
    found = []
    seen = conditions.reasons(watched)
    if seen:
        found.append(
            f"while latency was taken, {', and '.join(seen)}; measure again on a quiet CPU"
        )
    unread = ", ".join(conditions.unread(watched))
    why = (
        "see above" if seen else f"no reason seen{f' ({unread} cannot be read)' if unread else ''}"
    )
    for result in results:
        ratio = result.metrics.get("latency_ratio")
        if result.precision == "int8" and ratio is not None and ratio.value > 1:
            found.append(
                f"{result.name}: int8 takes {ratio.value:.2f}x the time of float32 on this CPU"
            )
        if (
            result.precision == "int8"
            and result.format == "onnx"
            and environment.saturates(machine)
            and result.name not in safe
            and result.runtime.options.get(PRECISE) != "1"
        ):
            found.append(
                f"{result.name}: this CPU has AVX2 without VNNI; onnxruntime's int8 kernels "
                f"can saturate here, and its accuracy is not that of other CPUs"
            )
        samples = np.array(result.latency_ms).reshape(result.latency_rounds, -1)
        rounds = np.median(samples[:, result.latency_warm_up :], axis=1)
        spread = float((rounds.max() - rounds.min()) / np.median(rounds))
        if spread > 0.2:
            found.append(
                f"{result.name}: latency is unstable, round medians spread over "
                f"{100 * spread:.0f} % of their median, {why}; close other programs and measure "
                f"again"
            )
    return found


def _print(report: Report) -> None:
    table = Table(
        title=cli.plain(f"{report.model_id} on {report.data.name}, {report.data.count:,} images"),
        caption=cli.plain(
            f"{report.environment.machine_class}, {report.settings['threads']} thread(s)"
        ),
    )
    for column in ("artifact", "top-1 %", "agrees", "p", "dB", "MB", "ms", "x"):
        justify: Literal["left", "right"] = "left" if column == "artifact" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for result in (report.reference, *report.artifacts):
        m = result.metrics
        top1 = m["top1"]
        table.add_row(
            cli.plain(result.name.removeprefix(f"{report.model_id}-")),
            f"{top1.value:.2f} ±{((top1.high or 0) - (top1.low or 0)) / 2:.2f}",
            f"{m['agreement'].value:.2f}",
            f"{m['mcnemar_p'].value:.3f}",
            "exact" if np.isinf(m["sqnr"].value) else f"{m['sqnr'].value:.1f}",
            f"{m['size'].value / 1e6:.2f}",
            f"{m['latency_p50'].value:.3f}",
            f"{m['latency_ratio'].value:.2f}" if "latency_ratio" in m else "-",
        )
    cli.console.print(table)
    cli.console.print(
        "[dim]agrees: % same answers as the float model; p: McNemar; dB: SQNR of the outputs; "
        "ms: p50 at batch 1; x: ms against float32 of the same runtime[/]"
    )
    left_out = report.reference.latency_warm_up
    if left_out:
        cli.console.print(
            f"[dim]the first {left_out} of {SAMPLES} samples of each round are slower and left "
            f"out[/]"
        )
    need = max(result.metrics["images_needed"].value for result in report.artifacts)
    cli.console.print(
        f"[dim]a loss of {report.settings['bound']:g} points is seen (McNemar, p < "
        f"{stats.SIGNIFICANT:g}, power {report.settings['power']:g}) with {need:,.0f} images; "
        f"these are {report.data.count:,}[/]"
    )
    if report.parity is not None:
        _print_parity(report.parity)
    for warning in report.warnings:
        cli.say(f"warning: {warning}")


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
""",
    )
    add = result.add_argument
    add("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="artifact folders")
    add("--data", default="fashion_mnist", help="fashion_mnist or FILE.npz with x and y")
    add("--limit", type=cli.positive_int, help="use the first N images only")
    add("--threads", type=cli.positive_int, default=1, help="threads inside an operator")
    add("--rounds", type=cli.positive_int, default=10, help=f"latency rounds of {SAMPLES} samples")
    add("--reference", type=Path, help="the float model (default: where the manifests say)")
    add("--parity", action="store_true", help="hold int8 TFLite and int8 ONNX against each other")
    add(
        "--power",
        type=float,
        default=DEFAULT_POWER,
        help="how often a loss of --bound has to be found (default: %(default)s); the table says "
        "how many images that takes",
    )
    add(
        "--bound",
        type=float,
        default=DEFAULT_BOUND,
        help="loss of top-1 that matters, in points (default: %(default)s)",
    )
    add("--out", type=Path, default=Path("report.json"), help="report (default: report.json)")
    add("--force", action="store_true", help="replace OUT if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    outputs.check_free(options.out, force=options.force)
    report = compare(
        options.artifacts,
        dataset=options.data,
        limit=options.limit,
        threads=options.threads,
        rounds=options.rounds,
        reference=options.reference,
        parity=options.parity,
        power=options.power,
        bound=options.bound,
        command=cli.command_line(),
    )
    outputs.write_text(options.out, report.dumps(), force=options.force)
    _print(report)
    return 0, {
        "report": str(options.out),
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
