"""Are these deployables still the float model, and how fast?"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base import words
from edgekit.base.blocks import blocks
from edgekit.base.errors import (
    ClassesError,
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
)
from edgekit.base.progress import SILENT, Progress
from edgekit.data import feeds
from edgekit.data import task as tasks
from edgekit.data.images import checked_labels, checked_truth, is_truth
from edgekit.data.task import Right, Task
from edgekit.evaluation import conditions, figures, fleet, mistakes, shards, verdicts
from edgekit.evaluation import parity as parity_of
from edgekit.evaluation.figures import Measured
from edgekit.evaluation.recording import Facts, Recording, inputs_sha256, is_recording
from edgekit.evaluation.subjects import (
    Subject,
    cannot_saturate,
    check_one_source,
    open_all,
    paired,
    recorded_in,
    reference_of,
    run_by,
    subject_of,
)
from edgekit.records import environment, signature, stats
from edgekit.records.artifact import Artifact, Manifest
from edgekit.records.results import (
    Conditions,
    Device,
    Environment,
    LabelFit,
    Measurement,
    Report,
)
from edgekit.records.signature import Preprocessing, TensorSpec
from edgekit.runtimes import model_file
from edgekit.runtimes import spec as runners
from edgekit.runtimes.model_file import ModelFile
from edgekit.runtimes.worker import Job, Worker

SAMPLES = 20
WARM_UP = 10
#: The power that is customary (Cohen 1988).
DEFAULT_POWER = 0.8
_DEFAULTS = (DEFAULT_POWER, verdicts.BOUND)
#: Images on which classic mistakes are looked for; ``edgekit.data check`` takes more.
SUSPECTED = 128
_NO_CLASSES = "if the outputs are no classes, pass --task regression"
#: Images that changed their answer, pictured in the report, of each artifact.
PICTURES = 24


def compare(
    artifacts: Sequence[Path],
    *,
    dataset: str | None = None,
    limit: int | None = None,
    threads: int = 1,
    rounds: int = 10,
    reference: Path | str | None = None,
    record: Path | None = None,
    force: bool = False,
    parity: bool = False,
    power: float = DEFAULT_POWER,
    bound: float = verdicts.BOUND,
    pictures: int = PICTURES,
    work: Path | None = None,
    shard: int = shards.IMAGES,
    processes: int | None = None,
    cluster: str | None = None,
    resources: Mapping[str, str] | None = None,
    trust: bool = False,
    preprocessing: str | None = None,
    task: Task | None = None,
    allow_chance: bool = False,
    command: str = "",
    progress: Progress = SILENT,
) -> Report:
    """Measure deployables against the float model they came from.

    Args:
        artifacts: Folders, all made from one float model, or files of any maker.
        dataset: What :func:`edgekit.data.feeds.open_word` takes; default ``fashion_mnist`` for the
            shipped model, needed for others. Right answers are compared where they are there:
            integers as classes, floats ``[N, M]`` as the numbers of a regression.
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
        bound: Loss of top-1 or R^2 that matters, in points.
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
        preprocessing: How the inputs of files are made, name or JSON file; default as those of the
            artifacts beside them, or of the reference.
        task: What the outputs are; default what manifests, labels or outputs say.
        allow_chance: Go on where the float model is no better than chance, without a verdict on
            accuracy.
        command: Recorded in the report.
        progress: Hears how far it is, and what loading the images says.

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
    runner = _runner(reference)
    recorded = runner is None and reference is not None and is_recording(Path(reference))
    model = None if reference is None or runner is not None or recorded else Path(reference)
    prepare = None if preprocessing is None else signature.preprocessing(preprocessing)
    loaded = open_all(artifacts, model, prepare)
    check_one_source(loaded)
    pair = parity_of.pair_of(loaded) if parity else None
    first = _representative(loaded)
    manifest = first.manifest
    tasks.check(task, manifest.signature.outputs)
    dataset = dataset or model_file.default_data(first)
    images, given = _images(dataset, manifest, task, limit, progress)
    by_input = images.images.dtype.names is not None
    right = tasks.right(images, manifest, task, given=given)
    if parity and (right.task == "regression" or tasks.scores(manifest.signature.outputs) < 2):
        raise InvalidOptionError("--parity compares classes, these models give none; leave it out")
    if right.labels is None and right.truth is None and (power, bound) != _DEFAULTS:
        raise InvalidOptionError(
            f"--power and --bound are of accuracy, and {images.name} has no right answers for "
            f"these models; leave them out"
        )
    machine = environment.describe()
    here = shards.this_place(machine)
    processes = processes or shards.processes_for(threads)
    with (
        shards.Work(work, progress) as kept,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if runner is not None:
            base = run_by(runner, loaded, dataset, threads, folder, trust)
        elif recorded:
            base = recorded_in(Path(str(reference)), first, images)
        else:
            base = reference_of(loaded, model, threads, trust=trust)
        if isinstance(first, ModelFile):
            assert base.job is not None  # of files, a recording is refused
            wanted = model_file.signature_of(
                base.job.model, base.job.format, base.job.preprocessing, trust=trust
            ).outputs
        else:
            wanted = manifest.signature.outputs
        if record is not None:
            _check_recordable(base, first, wanted)
        subjects, assumed = _in_order([base, *(subject_of(a, threads) for a in loaded)],
                                      loaded, wanted)  # fmt: skip
        devices = fleet.devices(
            [subject.name for subject in subjects],
            {artifact.name: artifact.manifest.device for artifact in loaded},
            resources or {},
            cluster=cluster,
        )
        if base.name in devices:
            _check_sendable(base, here=runner is not None or record is not None)
        working = stack.enter_context(progress.task("evaluating", len(subjects) * len(images)))

        def run(job: Job, device: str = "") -> shards.Run:
            return shards.Run.of(
                job, data=images.sha256, count=len(images), shard=shard, device=device
            )

        def evaluate(
            worker: Worker, advance: Callable[[int], None] = working.advance
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
                workers.evaluate(stores, sent, images.images, advance=working.advance)
            far = {store.run.name: _far(store) for store in stores}
        measured: list[Measured] = []
        said = [*assumed, *([right.unused] if right.unused else [])]
        fit: LabelFit | None = None
        for subject in subjects:
            working.note(subject.name)
            if subject.job is None:
                each = _replayed(subject)
                working.advance(len(images))
            elif subject.name in far:
                each = far[subject.name]
            else:
                each = _run(subject.job, images, stack, evaluate)
            _check_size(subject.name, each.answers, measured)
            if not measured:
                right = _settled(right, each.answers, images, manifest.preprocessing)
                fit, findings = _fit(each, images, right, manifest.preprocessing, by_input)
                unsure = tasks.declared(manifest, task) is None
                _check_chance(fit, findings, allow_chance, unsure=unsure)
                said += [f"{finding.kind}: {finding.said}" for finding in findings]
                if parity and right.task != "classification":
                    raise InvalidOptionError(
                        "--parity compares classes, and nothing says that these outputs are "
                        "scores of classes; pass --task classification, or leave it out"
                    )
            measured.append(each)
        watched = _time(measured, images.images[:1], rounds, progress)
        _take_energy(measured, images.images[:1])
        if record is not None:
            recording = _recording(base, measured[0], first, images, machine, command)
            recording.write(record, force=force)
        found = None
        if pair is not None:
            known = {
                subject.name: each.answers for subject, each in zip(subjects, measured, strict=True)
            }
            found = parity_of.answers(
                pair, known, len(images), evaluate, machine, threads, progress
            )
        return figures.report(
            subjects,
            measured,
            images,
            right,
            machine,
            sizes=_sizes(wanted, measured[0].answers.shape[1]),
            model_id=base.path.stem if isinstance(first, ModelFile) else manifest.model_id,
            parity=found,
            watched=watched,
            pictures=pictures,
            safe=[artifact.name for artifact in loaded if cannot_saturate(artifact)],
            command=command,
            said=said,
            fit=fit,
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
                "task": right.task,
                **({"cluster": cluster} if cluster else {}),
            },
        )


def _representative(loaded: Sequence[Artifact]) -> Artifact:
    """Whose manifest stands for all: the first artifact, else the first file."""
    return next((each for each in loaded if not isinstance(each, ModelFile)), loaded[0])


def _in_order(
    subjects: Sequence[Subject], loaded: Sequence[Artifact], wanted: Sequence[TensorSpec]
) -> tuple[list[Subject], list[str]]:
    """The subjects with their outputs in one order, and what was assumed of files."""
    names = tuple(spec.name for spec in wanted) if len(wanted) > 1 else ()
    base, *others = subjects
    found, assumed = [base.answering(names)], []
    for subject, artifact in zip(others, loaded, strict=True):
        own = names
        if isinstance(artifact, ModelFile):
            own, said = paired(wanted, artifact.manifest.signature.outputs, artifact.name)
            own = own if len(wanted) > 1 else ()
            assumed += [said] if said else []
        found.append(subject.answering(own))
    return found, assumed


def _settled(
    right: Right, reference: npt.NDArray[np.float32], images: data.ImageSet, prepare: Preprocessing
) -> Right:
    """What is right, decided by the reference's outputs; labels are of its classes."""
    found = tasks.settle(right, reference)
    if found.labels is not None:
        try:
            mistakes.check_range(images.name, found.labels, max(2, reference.shape[1]))
        except InvalidDataError as exc:
            if found.asked or right.task == "classification":
                raise
            raise InvalidDataError(f"{exc}; {_NO_CLASSES}") from None
    return found


def _fit(
    each: Measured, images: data.ImageSet, right: Right, prepare: Preprocessing, by_input: bool
) -> tuple[LabelFit | None, list[mistakes.Finding]]:
    """Whether right answers fit the reference, and classic mistakes."""
    if right.truth is not None:
        r2 = stats.truth(right.truth, each.answers, each.answers).get("r2")
        if r2 is None or r2.value > 0:
            return None, []
        fit = LabelFit(r2.value, 0.0, 1.0, "chance")
        said = (
            f"y does not fit the samples: R^2 of the float model is {r2.value / 100:.2f}, its "
            f"numbers are no nearer to y than the mean of y is; check y's order and unit, and the "
            f"preprocessing"
        )
        return fit, [mistakes.Finding("labels", said)]
    if right.labels is None:
        return None, []
    scores = tasks.by_class(each.answers)
    choices = np.concatenate([block.argmax(axis=1) for (block,) in blocks(scores)])
    fit = mistakes.label_fit(choices, right.labels)
    found: list[mistakes.Finding] = []
    if each.worker is not None and not by_input:
        worker = each.worker
        found = mistakes.find(
            lambda values: tasks.by_class(worker.outputs(values)),
            images.images,
            right.labels,
            prepare,
            count=SUSPECTED,
            step=_step(worker),
        )
    if all(finding.hint for finding in found):
        found += mistakes.renumbered(choices, right.labels, right.names)
    if all(finding.hint for finding in found) or fit.problem == "chance":
        found += mistakes.of_fit(fit, len(images), whose="the float model")
    return fit, found


def _step(worker: Worker) -> float | None:
    outputs = worker.loaded.signature.outputs
    return outputs[0].scale if len(outputs) == 1 else None


def _check_chance(
    fit: LabelFit | None, findings: Sequence[mistakes.Finding], allowed: bool, *, unsure: bool
) -> None:
    """Refuse labels by which the reference is no better than chance, unless that is allowed.

    Args:
        fit: Of the labels.
        findings: What explains it.
        allowed: Whether the user wants to go on.
        unsure: Whether labels alone say that outputs are classes.
    """
    if fit is None or fit.problem != "chance" or allowed:
        return
    why = "; ".join(f"{each.kind}: {each.said}" for each in findings if not each.hint)
    fix = f"; {_NO_CLASSES}" if unsure else ""
    raise InvalidDataError(
        f"{why}; mend it, leave the labels out, or pass --allow-chance to compare outputs only{fix}"
    )


def _sizes(wanted: Sequence[TensorSpec], numbers: int) -> dict[str, tuple[int, ...]]:
    """Sizes of a sample of each output; those that only a run tells are one axis."""
    sizes = {spec.name: spec.shape[1:] for spec in wanted}
    free = [spec.name for spec in wanted if not spec.shape or -1 in spec.shape[1:]]
    rest = numbers - sum(math.prod(size) for name, size in sizes.items() if name not in free)
    if len(free) == 1 and rest > 0:
        return {**sizes, free[0]: (rest,)}
    if not free and not rest:
        return sizes
    return {"outputs": (numbers,)}


def _runner(reference: Path | str | None) -> runners.RunnerSpec | None:
    """The runner that a reference names, if it names one; its device is there."""
    if reference is None or not runners.is_spec(str(reference)):
        return None
    found = runners.parse(str(reference))
    runners.require_device(found)
    return found


def _check_recordable(base: Subject, first: Artifact, wanted: Sequence[TensorSpec]) -> None:
    if base.recording is not None:
        raise InvalidOptionError(f"{base.path} is a recording; --record needs a runner to run")
    if first.manifest.source is None:
        raise InvalidOptionError(
            f"--record keeps which float model it is of, and {first.name} does not say which it "
            f"was made from; leave it out"
        )
    free = [spec.name for spec in wanted if spec.numbers < 0]
    if free and len(wanted) > 1:
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


def _images(
    dataset: str, manifest: Manifest, asked: Task | None, limit: int | None, progress: Progress
) -> tuple[data.ImageSet, bool]:
    """What a ``--data`` word names, images or records with a field an input; and whether right
    answers, if there are any, were given as an array."""
    specs = manifest.signature.inputs
    opened = feeds.open_word(dataset, "test", labels=False, progress=progress)
    if not isinstance(opened, feeds.Inputs):
        declared = tasks.declared(manifest, asked)
        try:
            found = feeds.images(
                opened,
                specs,
                manifest.preprocessing,
                tasks.names(manifest, declared),
                limit,
                quiet=True,  # warnings go into the report, which is printed
            )
        except ClassesError as exc:
            if declared is not None:
                raise
            raise ClassesError(f"{exc}; {_NO_CLASSES}") from None
        shipped = words.split(opened.word)[0] == "fashion_mnist"
        return found, isinstance(opened.source, data.ImageSet) and not shipped
    samples, y = feeds.labelled(opened.head(limit), specs)
    labels = truth = None
    if y is not None and is_truth(y):
        truth = checked_truth(samples.name, y, len(samples))
    elif y is not None:
        labels = checked_labels(samples.name, y, len(samples))
        labels = labels + manifest.preprocessing.class_offset
    real = [
        replace(spec, dtype="float32", scale=None, zero_point=None) if spec.is_real else spec
        for spec in specs
    ]
    feeds.check(samples, real)
    records = feeds.records(samples.arrays)
    return data.ImageSet(samples.name, records, labels, (), samples.sha256, truth=truth), True


def _check_size(name: str, answers: npt.NDArray[np.float32], before: list[Measured]) -> None:
    """Refuse outputs of another size than the reference's."""
    size = before[0].answers.shape[1] if before else answers.shape[-1]
    if answers.ndim == 2 and answers.shape[1] == size:
        return
    raise InvalidModelError(
        f"{name}: expected {size} numbers a sample, as the float model gives, got shape "
        f"{list(answers.shape[1:])}"
    )


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
    if worker.loaded.parameters:
        metrics["parameters"] = Measurement(worker.loaded.parameters, "parameters", 1)
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
        outputs={
            name: math.prod(size)
            for name, size in _sizes(manifest.signature.outputs, each.answers.shape[1]).items()
        },
        created=figures.created(),
        command=command,
        metrics=each.metrics,
    )
    return Recording(facts, each.answers, np.array(each.latency) if each.latency else None)


def _time(
    measured: list[Measured], image: npt.NDArray[Any], rounds: int, progress: Progress
) -> Conditions | None:
    """Interleaved latency rounds at batch 1, after a warm-up that is thrown away.

    Returns:
        What the machine did meanwhile; None if there was nothing to be timed.
    """
    timed = [(each.worker, each.latency) for each in measured if each.worker is not None]
    if not timed:
        return None
    processes = [worker.process for worker, _ in timed]
    with progress.task("timing", rounds, unit="rounds") as task:
        for worker, _ in timed:
            worker.latencies(image, WARM_UP)
        readings = [conditions.look(processes)]
        for _ in range(rounds):
            for worker, latency in timed:
                latency.append(worker.latencies(image, SAMPLES))
            readings.append(conditions.look(processes))
            task.advance()
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
