"""Are these deployables still the float model, and how fast are they?

These are the steps of a comparison. Open the artifacts and the samples. Find the reference. Run all
models on all samples, the reference first, since its outputs settle which labels fit. Measure the
latency of all models in turn. Record the reference and compare the integers of int8 files, if that
was asked for. Compare everything with the reference (:mod:`edgekit.evaluation.metrics`).
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.base.errors import InvalidOptionError
from edgekit.base.progress import SILENT, Progress
from edgekit.evaluation import fleet, functions, metrics, reading, shards, timing
from edgekit.evaluation import parity as parity_of
from edgekit.evaluation.answers import Loss
from edgekit.evaluation.evaluator import Evaluator
from edgekit.evaluation.options import DEFAULTS, Options
from edgekit.evaluation.recording import is_recording
from edgekit.evaluation.replay import check_recordable, recording_of
from edgekit.evaluation.samples import Samples
from edgekit.evaluation.subjects import (
    Subject,
    cannot_saturate,
    check_one_source,
    in_one_order,
    open_all,
    recorded_in,
    reference_of,
    run_by,
    subject_of,
)
from edgekit.records import environment, stats
from edgekit.records.artifact import Artifact
from edgekit.records.results import Report
from edgekit.records.signature import TensorSpec
from edgekit.runtimes import model_file, places
from edgekit.runtimes import spec as runners
from edgekit.runtimes.model_file import ModelFile


def compare(
    artifacts: Sequence[Path],
    options: Options = DEFAULTS,
    *,
    progress: Progress = SILENT,
) -> Report:
    """Measure deployables, and compare them with their float model.

    Args:
        artifacts: Artifact folders of one float model, or files of any maker.
        options: See :class:`edgekit.evaluation.options.Options`.
        progress: Is told how far it is, and what loading the samples says.

    Raises:
        EdgekitError: If models, data or options do not fit together, or a runtime fails.
    """
    if not artifacts:
        raise InvalidOptionError("expected at least one artifact to compare")
    stats.images_needed(discordance=0, drop=options.bound / 100, power=options.power)  # refuses
    reference = _Reference.of(options.reference)
    candidates = open_all(artifacts, reference.model, options.prepared())
    check_one_source(candidates)
    pair = parity_of.pair_of(candidates) if options.parity else None
    spots = places.assigned(options.on, [each.name for each in candidates])
    candidates = [each for each in candidates for _ in spots[each.name]]
    where = [place for name in spots for place in spots[name]]
    first = _representative(candidates)
    own = functions.load(options.metric)
    samples = Samples.open(first, options, progress)
    machine = environment.describe()
    with shards.Work(options.work, progress) as kept, contextlib.ExitStack() as stack:
        base = reference.subject(candidates, samples, options, stack)
        outputs = _outputs(base, first, trust=options.trust)
        samples = replace(samples, right=samples.right.beside(outputs))
        if options.record is not None:
            check_recordable(base, first, outputs)
        compared = [
            subject_of(each, options.threads, place)
            for each, place in zip(candidates, where, strict=True)
        ]
        subjects, assumed = in_one_order([base, *compared], candidates, outputs)
        devices = _devices(subjects, candidates, options, runner=reference.runner is not None)
        evaluator = Evaluator(samples.images, kept, stack, machine, options)
        with progress.task("evaluating", len(subjects) * len(samples)) as task:
            evaluated = evaluator.each(subjects, devices, task)
            right = next(evaluated)
            samples = samples.settled(right.outputs, right.worker, options)
            sizes = _sizes(outputs, right.outputs.shape[1])
            read = reading.reader(samples.right, Loss(options.bound, options.power))
            answers = read(right.outputs)
            samples = samples.judged(answers, options)
            measured = [right, *evaluated]
        watched = timing.take_latency(measured, samples.first, options.rounds, progress)
        timing.take_energy(measured, samples.first)
        if options.record is not None:
            recording = recording_of(
                base, right, first, samples.images, machine, sizes, options.command
            )
            recording.write(options.record, force=options.force)
        parity = None
        if pair is not None:
            known = {
                subject.name: each.outputs for subject, each in zip(subjects, measured, strict=True)
            }
            parity = parity_of.outputs(
                pair, known, len(samples), evaluator.outputs, machine, options.threads, progress,
                on=spots,
            )  # fmt: skip
        return metrics.report(
            subjects,
            measured,
            samples,
            machine,
            options,
            sizes=sizes,
            read=read,
            reference=answers,
            functions=own,
            model_id=base.path.stem if isinstance(first, ModelFile) else first.manifest.model_id,
            safe=[artifact.name for artifact in candidates if cannot_saturate(artifact)],
            assumed=assumed,
            parity=parity,
            watched=watched,
            resumed=kept.resumed,
        )


def _representative(candidates: Sequence[Artifact]) -> Artifact:
    """The artifact whose manifest is used for all: the first artifact, else the first file."""
    return next((each for each in candidates if not isinstance(each, ModelFile)), candidates[0])


@dataclass(frozen=True)
class _Reference:
    """The object that ``--reference`` names: one of the three, or none without the option.

    Attributes:
        runner: A runner of the float model, whose device is there.
        recording: A file that ``--record`` wrote.
        model: The float model itself.
    """

    runner: runners.RunnerSpec | None = None
    recording: Path | None = None
    model: Path | None = None

    @classmethod
    def of(cls, word: Path | str | None) -> _Reference:
        """Tell the three apart.

        Raises:
            InvalidOptionError: If it is a runner that nobody knows.
            ExecutionError: If it is a runner whose device is not there.
        """
        if word is None:
            return cls()
        if runners.is_spec(str(word)):
            runner = runners.parse(str(word))
            runners.require_device(runner)
            return cls(runner=runner)
        path = Path(word)
        return cls(recording=path) if is_recording(path) else cls(model=path)

    def subject(
        self,
        candidates: list[Artifact],
        samples: Samples,
        options: Options,
        stack: contextlib.ExitStack,
    ) -> Subject:
        """The model that everything is compared with; a converted form of it is in a folder
        that is removed with the stack."""
        threads, trust = options.threads, options.trust
        if self.runner is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            return run_by(self.runner, candidates, samples.dataset, threads, folder, trust)
        if self.recording is not None:
            return recorded_in(self.recording, _representative(candidates), samples.images)
        return reference_of(candidates, self.model, threads, trust=trust)


def _outputs(base: Subject, first: Artifact, *, trust: bool) -> tuple[TensorSpec, ...]:
    """The outputs that are compared: those of the artifacts; for files, those of the reference."""
    if not isinstance(first, ModelFile):
        return first.manifest.signature.outputs
    job = base.runnable  # of files, a recording is refused
    return model_file.signature_of(job.model, job.format, job.preprocessing, trust=trust).outputs


def _devices(
    subjects: Sequence[Subject], candidates: Sequence[Artifact], options: Options, *, runner: bool
) -> dict[str, str]:
    """Worker resource of a cluster, by name of what runs there.

    Raises:
        InvalidOptionError: If a name is unknown, or it is a reference that no worker can run.
    """
    base = subjects[0]
    devices = fleet.devices(
        [subject.name for subject in subjects],
        {artifact.name: artifact.manifest.device for artifact in candidates},
        options.resources,
        cluster=options.cluster,
    )
    if base.name not in devices:
        return devices
    if runner or options.record is not None or base.job is None:
        raise InvalidOptionError(
            f"{base.name} is evaluated or replayed here, as --reference and --record ask; leave "
            f"it out of --resources"
        )
    if base.format == "saved_model":
        raise InvalidOptionError(
            f"{base.name} is a SavedModel folder, which is evaluated here; leave it out of "
            f"--resources"
        )
    return devices


def _sizes(outputs: Sequence[TensorSpec], numbers: int) -> dict[str, tuple[int, ...]]:
    """Sizes of one sample of each output; one axis if only a run tells the size."""
    sizes = {spec.name: spec.shape[1:] for spec in outputs}
    free = [spec.name for spec in outputs if not spec.shape or -1 in spec.shape[1:]]
    rest = numbers - sum(math.prod(size) for name, size in sizes.items() if name not in free)
    if len(free) == 1 and rest > 0:
        return {**sizes, free[0]: (rest,)}
    if not free and not rest:
        return sizes
    return {"outputs": (numbers,)}
