"""``python -m edgekit.compare``: are these deployables still the float model, and how fast?

The float Keras model is the reference, or what ``--reference`` names: another runner of the float
model such as ``ort:cuda:float16``, or a recording of one. Every model runs in a process of its own;
evaluation is spread over the cores, in shards that outlive a kill, or over the workers of a
cluster. Latency is taken at batch 1 in rounds that go through all models in turn, so that a change
of the machine's speed meets all of them. Writes a Report.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.table import Table

from edgekit import (
    changes,
    cli,
    conditions,
    data,
    environment,
    fleet,
    layers,
    outputs,
    shards,
    stats,
)
from edgekit.artifact import Artifact
from edgekit.blocks import blocks
from edgekit.errors import InvalidDataError, InvalidModelError, InvalidOptionError
from edgekit.formats import float_model
from edgekit.parity import numbers
from edgekit.quant.profiles import PROFILES
from edgekit.recording import Facts, Recording, inputs_sha256, is_recording
from edgekit.reference import onnx_artifact, profile_of
from edgekit.results import (
    ArtifactResult,
    Conditions,
    Data,
    Device,
    Environment,
    Measurement,
    Parity,
    ParityPair,
    Place,
    Report,
    Runtime,
    pack_bits,
)
from edgekit.runtimes import spec as runners
from edgekit.runtimes.worker import Job, Worker

SAMPLES = 20
WARM_UP = 10
#: onnxruntime's option for int8 kernels on x86 that do not saturate.
PRECISE = "session.x64quantprecision"
#: The loss that the gate allows, and the power that is customary (Cohen 1988).
DEFAULT_BOUND, DEFAULT_POWER = 0.5, 0.8
#: Differences of two answers are counted up to this many steps.
LSB_BINS = 16
#: Images that changed their answer, pictured in the report, of each artifact.
PICTURES = 24


@dataclass(frozen=True)
class _Subject:
    """A model to be measured.

    Attributes:
        job: What a worker loads; None for a recording, which nothing runs.
    """

    name: str
    format: str
    job: Job | None
    path: Path
    precision: str
    sha256: str
    size: int
    manifest_sha256: str = ""
    recording: Recording | None = None


@dataclass
class _Measured:
    """What the workers, or a recording, said of one subject.

    Attributes:
        metrics: ``peak_memory``, ``load_time`` and ``energy``, where they mean something; a cluster
            says none.
        worker: What is to be timed; None where times mean nothing, are recorded ones, or would be
            those of a cluster.
        latency: Milliseconds, a list a round.
        places: Machines of a cluster that answered.
    """

    answers: npt.NDArray[np.float32]
    runtime: Runtime
    metrics: dict[str, Measurement] = field(default_factory=dict)
    worker: Worker | None = None
    latency: list[list[float]] = field(default_factory=list)
    places: tuple[Place, ...] = ()


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
    command: str = "",
) -> Report:
    """Measure artifacts against the float model they came from.

    Args:
        artifacts: Folders, all made from one float model.
        dataset: ``fashion_mnist`` (its test images) or an ``.npz`` with ``x`` and ``y``.
        limit: Use the first images only.
        threads: Threads inside an operator.
        rounds: Latency rounds; each takes 20 samples of every model.
        reference: The float model, an artifact or ``.keras`` file; default the shipped one or
            where the manifests say. Or a runner of it, e.g. ``ort:cuda:float16``; or a recording.
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
    _check_one_source(loaded)
    runner = None
    if reference is not None and runners.is_spec(str(reference)):
        runner = runners.parse(str(reference))
        runners.require_device(runner)
    pair = _parity_pair(loaded) if parity else None
    images = data.load(dataset, "test").head(limit)
    classes = len(loaded[0].manifest.class_names)
    labels = _labels(images, classes)
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
            base = _run_by(runner, loaded, dataset, threads, folder)
        elif reference is not None and is_recording(Path(reference)):
            base = _recorded_in(Path(reference), loaded[0], images)
        else:
            base = _reference(loaded, None if reference is None else Path(reference), threads)
        if record is not None and base.recording is not None:
            raise InvalidOptionError(f"{base.path} is a recording; --record needs a runner to run")
        subjects = [base, *(_subject(artifact, threads) for artifact in loaded)]
        devices = fleet.devices(
            [subject.name for subject in subjects],
            {artifact.name: artifact.manifest.device for artifact in loaded},
            resources or {},
            cluster=cluster,
        )
        if base.name in devices and (runner is not None or base.job is None or record is not None):
            raise InvalidOptionError(
                f"{base.name} is evaluated or replayed here, as --reference and --record ask; "
                f"leave it out of --resources"
            )
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

        far: dict[str, _Measured] = {}
        if cluster:
            jobs = {each.name: each.job for each in subjects if each.job is not None}
            with fleet.Fleet(cluster) as workers:
                workers.expect(devices.values())
                stores = [
                    kept.open(run(jobs[name], device), workers.accepts(device))
                    for name, device in devices.items()
                ]
                workers.evaluate(
                    stores,
                    [jobs[name] for name in devices],
                    images.images,
                    advance=advance,
                )
            for store in stores:
                assert store.runtime is not None
                far[store.run.name] = _Measured(
                    store.answers(), fleet.noted(store.runtime, store), places=store.places()
                )
        measured: list[_Measured] = []
        for subject in subjects:
            bar.update(task, note=subject.name)
            if subject.job is None:
                each = _replayed(subject)
                advance(len(images))
            elif subject.name in far:
                each = far[subject.name]
            else:
                each = _run(subject.job, images, stack, evaluate)
            if each.answers.ndim != 2 or each.answers.shape[1] != classes:
                raise InvalidModelError(
                    f"{subject.name}: expected answers for {classes} classes, "
                    f"got shape {list(each.answers.shape[1:])}"
                )
            if not measured:
                _expect_probabilities(subject.name, each.answers)
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
            found = _parity(pair, known, len(images), evaluate, machine, threads)
        return _report(
            subjects,
            measured,
            images,
            labels,
            machine,
            model_id=loaded[0].manifest.model_id,
            parity=found,
            watched=watched,
            pictures=pictures,
            safe=[artifact.name for artifact in loaded if _cannot_saturate(artifact)],
            command=command,
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


def _recorded_in(path: Path, artifact: Artifact, images: data.ImageSet) -> _Subject:
    """The reference that a recording stands in for."""
    manifest = artifact.manifest
    assert manifest.source is not None
    recording = Recording.load(path)
    recording.check(
        path,
        source_sha256=manifest.source.sha256,
        images=images,
        preprocessing=manifest.preprocessing,
    )
    facts = recording.facts
    return _Subject(
        name=f"{facts.name} (recorded)",
        format=facts.format,
        job=None,
        path=path,
        precision=facts.precision,
        sha256=facts.model_sha256,
        size=facts.model_bytes,
        recording=recording,
    )


def _run_by(
    runner: runners.RunnerSpec,
    artifacts: list[Artifact],
    dataset: str,
    threads: int,
    folder: Path,
) -> _Subject:
    """The float model on another runner; what has to be converted is put into ``folder``."""
    found = _reference(artifacts, None, threads)
    assert found.job is not None
    job = replace(found.job, name=runner.word, device=runner.device)
    if runner.format == "keras":
        options = {"data_format": "NCHW"} if runner.data_format == "NCHW" else {}
        job = replace(job, precision=runner.precision, options=options)
        return replace(found, name=runner.word, job=job, precision=runner.precision)
    converted = onnx_artifact(
        found.path,
        precision=runner.precision,
        preprocessing=artifacts[0].manifest.preprocessing,
        images=dataset,
        folder=folder,
        device=profile_of(runner),
    )
    # float32 is float32: the CUDA provider would take TF32 without being asked
    exact = runner.device == "cuda" and runner.precision == "float32"
    return _Subject(
        name=runner.word,
        format="onnx",
        job=replace(
            job,
            model=converted.model_path,
            format="onnx",
            options={"use_tf32": "0"} if exact else {},
        ),
        path=found.path,
        precision=runner.precision,
        sha256=converted.sha256,
        size=converted.size,
    )


def _reference(artifacts: list[Artifact], given: Path | None, threads: int) -> _Subject:
    """The float model whose sha256 the manifests name."""
    place, model, sha256 = float_model.find(artifacts[0], given)
    preprocessing = artifacts[0].manifest.preprocessing
    return _Subject(
        "keras-float32",
        "keras",
        Job("keras-float32", model, "keras", preprocessing, threads, {}),
        place,
        "float32",
        sha256,
        model.stat().st_size,
        Artifact.load(place).manifest_sha256 if place.is_dir() else "",
    )


def _subject(artifact: Artifact, threads: int) -> _Subject:
    return _Subject(
        artifact.name,
        artifact.manifest.format,
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
    for (block,) in blocks(answers):
        if block.min() < 0 or np.abs(block.sum(axis=1) - 1).max() > 0.01:
            raise InvalidModelError(
                f"{name}: expected probabilities that sum to 1, got values from {block.min():.3g} "
                f"to {block.max():.3g}; end the model with a softmax and export it again"
            )


def _run(
    job: Job,
    images: data.ImageSet,
    stack: contextlib.ExitStack,
    evaluate: Callable[[Worker], npt.NDArray[np.float32]],
) -> _Measured:
    """Start a worker, which stays for the timing, and let it and its like answer all images."""
    worker = stack.enter_context(Worker(job))
    if worker.loaded.input_shape != images.images.shape[1:]:
        raise InvalidDataError(
            f"{images.name}: expected images {list(worker.loaded.input_shape)} as "
            f"{job.name} takes, got {list(images.images.shape[1:])}"
        )
    runtime = worker.loaded.runtime
    if runtime.emulated:
        return _Measured(evaluate(worker), runtime)
    # Evaluation's batches differ between runtimes; memory is taken at batch 1.
    worker.latencies(images.images[:1], WARM_UP)
    metrics = {
        "peak_memory": Measurement(worker.peak_memory(), "bytes", 1),
        "load_time": Measurement(worker.loaded.load_ms, "ms", 1),
    }
    return _Measured(evaluate(worker), runtime, metrics, worker)


def _replayed(subject: _Subject) -> _Measured:
    """What a recording says, as if it had been measured now."""
    assert subject.recording is not None
    facts, latency = subject.recording.facts, subject.recording.latency
    return _Measured(
        subject.recording.answers,
        replace(facts.runtime, notes=(*facts.runtime.notes, _recorded(facts))),
        facts.metrics,
        None,
        [] if latency is None else latency.tolist(),
    )


def _recorded(facts: Facts) -> str:
    """Where and when, in words."""
    driver = f", driver {facts.device.driver}" if facts.device.driver else ""
    return (
        f"recorded {facts.created} on {facts.device.kind.upper()} {facts.device.name}{driver}; "
        f"all figures of this row are that machine's"
    )


def _recording(
    base: _Subject,
    each: _Measured,
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
        data=Data(images.name, images.sha256, len(images), images.class_names),
        preprocessing=manifest.preprocessing,
        inputs_sha256=inputs_sha256(images.images, manifest.preprocessing),
        created=_now(),
        command=command,
        metrics=each.metrics,
    )
    return Recording(facts, each.answers, np.array(each.latency) if each.latency else None)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _time(measured: list[_Measured], image: npt.NDArray[Any], rounds: int) -> Conditions | None:
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


def _take_energy(measured: list[_Measured], image: npt.NDArray[Any]) -> None:
    """Energy of an image at batch 1, where the CPU ran it and its counters can be read.

    They move once a millisecond or so; half a second makes that no matter.
    """
    counters = conditions.Energy()
    if not counters.readable:
        return
    for each in measured:
        if each.worker is None or not _timed_here(each):
            continue
        runs = max(SAMPLES, math.ceil(500 / float(np.median(each.latency))))
        counters.since()
        each.worker.latencies(image, runs)
        joules = counters.since()
        if joules is not None:
            each.metrics["energy"] = Measurement(1e3 * joules / runs, "mJ", runs)


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
    watched: Conditions | None,
    pictures: int,
    command: str,
    settings: dict[str, Any],
) -> Report:
    base = measured[0].answers
    base_choice, _ = _choices(base, labels)
    # One number for all that are compared, so that it is the same part of a round.
    common = max((_slow(each) for each in measured if _timed_here(each)), default=0)
    float32 = {
        subject.format: np.array(each.latency)[:, common:]
        for subject, each in zip(subjects, measured, strict=True)
        if subject.precision == "float32" and _timed_here(each)
    }
    results: list[ArtifactResult] = []
    for subject, each in zip(subjects, measured, strict=True):
        unquantized = float32.get(subject.format) if _timed_here(each) else None
        slow = common if _timed_here(each) else _slow(each)
        result = _result(
            subject, each, base, base_choice, labels, unquantized, slow=slow, settings=settings
        )
        if results:  # the first is the reference
            choices = (base_choice, _choices(each.answers, labels)[0])
            found = changes.find(base, each.answers, choices, labels, images.images, pictures)
            result = replace(result, changes=found)
        results.append(result)
    return Report(
        model_id=model_id,
        data=Data(images.name, images.sha256, len(images), images.class_names),
        environment=machine,
        reference=results[0],
        artifacts=tuple(results[1:]),
        created=_now(),
        command=command,
        settings=settings,
        warnings=(
            *_of_reference(subjects[0], results[0]),
            *_too_few(results[1:], settings),
            *_warnings(results[1:], machine, watched, safe),
        ),
        parity=parity,
        conditions=watched,
    )


def _timed_here(each: _Measured) -> bool:
    """Whether its times compare with those of other models on this CPU."""
    return each.worker is not None and each.runtime.device == "cpu"


def _slow(each: _Measured) -> int:
    """Samples at the start of its rounds that are a warm-up."""
    return stats.warm_up(np.array(each.latency)) if each.latency else 0


def _of_reference(subject: _Subject, result: ArtifactResult) -> list[str]:
    """What makes the reference another one than the float model on this machine."""
    found = []
    if result.runtime.emulated:
        found.append(
            f"{result.name}: the reference is float16 emulated on the CPU, for accuracy only; it "
            f"has no latency, and no GPU ran"
        )
    if subject.recording is not None:
        found.append(f"{result.name}: {_recorded(subject.recording.facts)}")
    return found


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
    count: int,
    evaluate: Callable[[Worker, Callable[[int], None]], npt.NDArray[np.float32]],
    machine: Environment,
    threads: int,
) -> Parity:
    """Three ways to run the same integers, two at a time, on kernels that do not saturate."""
    stored = numbers(*pair)
    ours, theirs = pair

    def run(job: Job) -> npt.NDArray[np.float32]:
        with Worker(job) as worker, cli.progress() as bar:
            task = bar.add_task("parity", total=count, note=job.name)
            return evaluate(worker, lambda n: bar.advance(task, n))

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
    same, total = 0, 0.0
    counts = np.zeros(LSB_BINS, np.int64)
    for one, other in blocks(ours, theirs):
        same += int((_ranking(one)[:, 0] == _ranking(other)[:, 0]).sum())
        steps = np.abs(one.astype(np.float64) - other) / scale
        total += float(steps.sum())
        bins = np.minimum(np.rint(steps).astype(int).ravel(), LSB_BINS - 1)
        counts += np.bincount(bins, minlength=LSB_BINS)
    return ParityPair(
        left,
        right,
        stats.proportion(same, len(ours)),
        Measurement(total / ours.size, "LSB", ours.size),
        tuple(int(count) for count in counts),
    )


def _ranking(answers: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Classes by probability; in a stable order, so that equal ones rank the same in all models."""
    return np.argsort(-answers, axis=1, kind="stable")


def _choices(
    answers: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], int]:
    """The first class of each image, and how often the label is among the first five."""
    choice = np.empty(len(answers), np.int32)
    found, start = 0, 0
    for block, right in blocks(answers, labels):
        order = _ranking(block)
        choice[start : start + len(block)] = order[:, 0]
        found += int((order[:, :5] == right[:, None]).any(axis=1).sum())
        start += len(block)
    return choice, found


def _result(
    subject: _Subject,
    each: _Measured,
    base: npt.NDArray[np.float32],
    base_choice: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int64],
    float32: npt.NDArray[np.float64] | None,
    *,
    slow: int,
    settings: Mapping[str, Any],
) -> ArtifactResult:
    count = len(labels)
    base_right = base_choice == labels
    choice, top5 = _choices(each.answers, labels)
    right = choice == labels
    latency = np.array(each.latency, np.float64)
    steady = latency[:, slow:] if latency.size else latency
    metrics = {
        "top1": stats.proportion(int(right.sum()), count),
        "top5": stats.proportion(top5, count),
        "agreement": stats.proportion(int((choice == base_choice).sum()), count),
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
        **each.metrics,
    }
    for percent in (50, 90, 99) if latency.size else ():
        value = float(np.percentile(steady, percent))
        metrics[f"latency_p{percent}"] = Measurement(value, "ms", steady.size)
    if float32 is not None and latency.size:
        metrics["latency_ratio"] = stats.latency_ratio(steady, float32)
    return ArtifactResult(
        name=subject.name,
        path=str(subject.path),
        format=subject.format,
        precision=subject.precision,
        sha256=subject.sha256,
        runtime=each.runtime,
        metrics=metrics,
        manifest_sha256=subject.manifest_sha256,
        correct=pack_bits(right),
        latency_ms=tuple(round(float(value), 6) for value in latency.ravel()),
        latency_rounds=len(latency),
        latency_warm_up=slow,
        places=each.places,
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
    results: list[ArtifactResult],
    machine: Environment,
    watched: Conditions | None,
    safe: Collection[str],
) -> list[str]:
    found = []
    seen = [] if watched is None else conditions.reasons(watched)
    if seen:
        found.append(
            f"while latency was taken, {', and '.join(seen)}; measure again on a quiet CPU"
        )
    unread = "" if watched is None else ", ".join(conditions.unread(watched))
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
            and any(environment.saturates(place) for place in result.places or (machine,))
            and result.name not in safe
            and result.runtime.options.get(PRECISE) != "1"
        ):
            found.append(
                f"{result.name}: this CPU has AVX2 without VNNI; onnxruntime's int8 kernels "
                f"can saturate here, and its accuracy is not that of other CPUs"
            )
        if len({(place.machine_class, *place.versions.items()) for place in result.places}) > 1:
            found.append(
                f"{result.name}: its answers come from workers of different CPUs or versions, "
                f"which may round differently; give them different resources"
            )
        samples = result.steady()
        if samples is None:
            continue
        spread = stats.latency_spread(samples)
        if spread > stats.UNSTABLE:
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
        table.add_column(column, justify=justify, no_wrap=column != "artifact", overflow="fold")
    for result in (report.reference, *report.artifacts):
        m = result.metrics
        top1 = m["top1"]
        table.add_row(
            _in_column(cli.plain(result.name.removeprefix(f"{report.model_id}-"))),
            f"{top1.value:.2f} ±{((top1.high or 0) - (top1.low or 0)) / 2:.2f}",
            f"{m['agreement'].value:.2f}",
            f"{m['mcnemar_p'].value:.3f}",
            "exact" if np.isinf(m["sqnr"].value) else f"{m['sqnr'].value:.1f}",
            f"{m['size'].value / 1e6:.2f}",
            f"{m['latency_p50'].value:.3f}" if "latency_p50" in m else "-",
            f"{m['latency_ratio'].value:.2f}" if "latency_ratio" in m else "-",
        )
    cli.console.print(table)
    against = cli.plain(report.reference_in_words)
    cli.console.print(
        f"[dim]agrees: % same answers as {against}; p: McNemar; dB: SQNR of the outputs; "
        f"ms: p50 at batch 1; x: ms against float32 of the same runtime[/]"
    )
    for result in (report.reference, *report.artifacts):
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
    add("--data", default="fashion_mnist", help="fashion_mnist or FILE.npz with x and y")
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
    layers.add_arguments(result)
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
    if layers.wanted(options):
        return layers.act(options)
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
