"""Subjects of a comparison: the float model, its runner or recording, and the artifacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit import data
from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.evaluation.recording import Recording
from edgekit.evaluation.reference import onnx_artifact, profile_of
from edgekit.quantization.profiles import PROFILES
from edgekit.records.artifact import Artifact, Manifest, MicroRecord
from edgekit.records.results import BudgetRecord, Measurement
from edgekit.records.signature import Preprocessing, TensorSpec
from edgekit.runtimes import model_file
from edgekit.runtimes import spec as runners
from edgekit.runtimes.model_file import ModelFile
from edgekit.runtimes.places import HERE, PlaceSpec
from edgekit.runtimes.worker import Job
from edgekit.sources import float_model, saved_model


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Attributes:
        job: The job that a worker loads; None for a recording, which is not run.
        budget: How its mixture of int8 and float tensors was found, if it has one.
        known: Metrics that its manifest tells, of a file for a microcontroller.
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
    budget: BudgetRecord | None = None
    known: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def runnable(self) -> Job:
        """The job that a worker loads, of a subject that is no recording."""
        assert self.job is not None
        return self.job

    def with_outputs(self, outputs: tuple[str, ...]) -> Subject:
        """The same subject with its outputs in this order; empty for their own order."""
        if self.recording is not None:
            return replace(self, recording=self.recording.with_outputs(outputs))
        return self if self.job is None else replace(self, job=replace(self.job, outputs=outputs))


def open_all(
    paths: Sequence[Path], reference: Path | None, prepare: Preprocessing | None
) -> list[Artifact]:
    """Open artifacts, and files of any maker, which get the preprocessing of the artifacts.

    Args:
        paths: Folders and files.
        reference: The float model, as the user named it; None for another reference.
        prepare: Preprocessing of files; default that of the artifacts, else of the reference. What
            outputs of files alone are is taken from the reference, too, where it has boxes or
            pixels.

    Raises:
        EdgekitError: If one cannot be loaded, or the preprocessing is missing or given twice.
    """
    folders = {path: model_file.load(path) for path in paths if not model_file.is_file(path)}
    files = [path for path in paths if path not in folders]
    if prepare is not None and not files:
        raise InvalidOptionError(
            f"{paths[0]} has its own preprocessing; give --preprocessing only with a file"
        )
    if prepare is None and folders:
        prepare = next(iter(folders.values())).manifest.preprocessing
    known = Artifact.load(reference) if reference is not None and _is_artifact(reference) else None
    if prepare is None and known is not None:
        prepare = known.manifest.preprocessing
    opened = [model_file.load(path, prepare) if path in files else folders[path] for path in paths]
    if known is None or folders or known.manifest.task not in ("detection", "segmentation"):
        return opened
    return [_read_as(each, known.manifest) for each in opened]


def _read_as(artifact: Artifact, reference: Manifest) -> Artifact:
    """A file whose outputs are boxes or pixels as those of its reference are."""
    own = artifact.manifest
    outputs = reference.signature.outputs
    names, _ = paired(outputs, own.signature.outputs, artifact.name)
    by_name = dict(zip((spec.name for spec in outputs), names, strict=True))
    decoding = None if reference.decoding is None else reference.decoding.renamed(by_name)
    read = replace(own, task=reference.task, class_names=reference.class_names, decoding=decoding)
    return replace(artifact, manifest=read)


def _is_artifact(path: Path) -> bool:
    return path.is_dir() and not saved_model.is_saved_model(path)


def check_one_source(artifacts: list[Artifact]) -> None:
    """Refuse artifacts of several float models, float models, and two artifacts of one name."""
    known = [artifact for artifact in artifacts if not isinstance(artifact, ModelFile)]
    first = known[0] if known else None
    for artifact in known:
        assert first is not None
        if artifact.manifest.source is None:
            raise InvalidModelError(
                f"{artifact.path} is a float model; it is the reference; pass its deployables"
            )
        assert first.manifest.source is not None
        if artifact.manifest.source.sha256 != first.manifest.source.sha256:
            raise InvalidModelError(
                f"{artifact.path} and {first.path} have different float models as their source; "
                f"compare them one by one"
            )
        if artifact.manifest.source.shapes != first.manifest.source.shapes:
            raise InvalidModelError(
                f"{artifact.path} and {first.path} were exported for different input sizes "
                f"(--shape); compare them one by one"
            )
    counts = Counter(artifact.name for artifact in artifacts)
    if max(counts.values()) > 1:
        name = counts.most_common(1)[0][0]
        raise InvalidOptionError(f"two artifacts share the name {name}; rename one of them")


def recorded_in(path: Path, artifact: Artifact, images: data.ImageSet) -> Subject:
    """The reference that a recording replaces."""
    manifest = artifact.manifest
    if manifest.source is None:
        raise InvalidOptionError(
            f"{path} is a recording of one float model, and {artifact.name} does not name its "
            f"float model; compare an artifact folder, or pass the model as --reference"
        )
    recording = Recording.load(path)
    recording.check(
        path,
        source_sha256=manifest.source.sha256,
        images=images,
        preprocessing=manifest.preprocessing,
        inputs=manifest.signature.inputs,
        outputs={spec.name: spec.numbers for spec in manifest.signature.outputs},
    )
    facts = recording.facts
    return Subject(
        name=f"{facts.name} (recorded)",
        format=facts.format,
        job=None,
        path=path,
        precision=facts.precision,
        sha256=facts.model_sha256,
        size=facts.model_bytes,
        recording=recording,
    )


def run_by(
    runner: runners.RunnerSpec,
    artifacts: list[Artifact],
    dataset: str,
    threads: int,
    folder: Path,
    trust: bool = False,
) -> Subject:
    """The float model on another runner; a converted model is written into ``folder``."""
    known = [artifact for artifact in artifacts if not isinstance(artifact, ModelFile)]
    if not known:
        raise InvalidOptionError(
            f"{runner.word} runs the float model that an artifact names, and {artifacts[0].name} "
            f"is a file that names none; pass the model as --reference"
        )
    model = reference_of(known, None, threads, trust=trust)
    if runner.format == "keras" and model.format != "keras":
        raise InvalidOptionError(
            f"{runner.word} runs Keras models, {model.path} is none; take an ort runner, or leave "
            f"--reference out to run it as it is"
        )
    job = replace(model.runnable, name=runner.word, device=runner.device)
    if runner.format == "keras":
        options = {"data_format": "NCHW"} if runner.data_format == "NCHW" else {}
        job = replace(job, precision=runner.precision, options=options)
        return replace(model, name=runner.word, job=job, precision=runner.precision)
    converted = onnx_artifact(
        model.path,
        precision=runner.precision,
        preprocessing=known[0].manifest.preprocessing,
        images=dataset,
        folder=folder,
        device=profile_of(runner),
        trust=trust,
        shapes=job.shapes,
    )
    # float32 is float32: the CUDA provider would take TF32 without being asked
    exact = runner.device == "cuda" and runner.precision == "float32"
    return Subject(
        name=runner.word,
        format="onnx",
        job=replace(
            job,
            model=converted.model_path,
            format="onnx",
            trust=False,
            shapes=None,
            options={"use_tf32": "0"} if exact else {},
        ),
        path=model.path,
        precision=runner.precision,
        sha256=converted.sha256,
        size=converted.size,
    )


def reference_of(
    artifacts: list[Artifact], model: Path | None, threads: int, *, trust: bool = False
) -> Subject:
    """The float model whose sha256 the manifests name, in the format that it was saved in.

    Args:
        artifacts: Its artifacts. The source of plain files is not known; the user names it.
        model: Path of the model; default the path in the first manifest, or the shipped model.
        threads: Threads inside an operator.
        trust: Let code inside of it run.
    """
    known = [artifact for artifact in artifacts if not isinstance(artifact, ModelFile)]
    if not known:
        return _named(artifacts[0], model, threads, trust=trust)
    place, file, sha256 = float_model.find(known[0], model)
    kind = float_model.kind_of(place)
    name = "keras-float32" if kind == "keras" else f"{kind}-source"
    preprocessing, source = known[0].manifest.preprocessing, known[0].manifest.source
    assert source is not None
    return Subject(
        name,
        kind,
        Job(name, file, kind, preprocessing, threads, {}, trust=trust, shapes=source.shapes),
        place,
        "float32",
        sha256,
        saved_model.size_of(file),
        Artifact.load(place).manifest_sha256 if place.is_dir() and file != place else "",
    )


def _named(artifact: Artifact, model: Path | None, threads: int, *, trust: bool = False) -> Subject:
    """The model that the user names as the reference of files without a manifest."""
    if model is None:
        raise InvalidOptionError(
            f"{artifact.name} does not name its float model; pass --reference MODEL, the model to "
            f"compare it with"
        )
    if not model.exists():
        raise InvalidModelError(f"{model} not found; expected the model to compare the files with")
    prepare = artifact.manifest.preprocessing
    if _is_artifact(model):
        reference = Artifact.load(model)
        manifest = reference.manifest
        job = Job.of(reference, threads=threads)
        return Subject(
            reference.name,
            manifest.format,
            job,
            model,
            manifest.precision,
            reference.sha256,
            reference.size,
            reference.manifest_sha256,
        )
    kind = float_model.kind_of(model)
    precision = model_file.precision_of(model) if model.suffix in model_file.FORMATS else "float32"
    name = f"{model.name} (reference)"
    return Subject(
        name,
        kind,
        Job(name, model, kind, prepare, threads, {}, trust=trust),
        model,
        precision,
        saved_model.sha256_of(model),
        saved_model.size_of(model),
    )


def in_one_order(
    subjects: Sequence[Subject], candidates: Sequence[Artifact], outputs: Sequence[TensorSpec]
) -> tuple[list[Subject], list[str]]:
    """Bring the outputs of all subjects into one order; tell what was assumed about files.

    Args:
        subjects: The reference, and one subject for each candidate.
        candidates: The artifacts and files that are compared with it.
        outputs: Outputs of the reference.

    Raises:
        InvalidModelError: If the outputs of a file differ from them in number or sizes.
    """
    several = len(outputs) > 1
    names = tuple(spec.name for spec in outputs) if several else ()
    base, *others = subjects
    ordered, assumed = [base.with_outputs(names)], []
    for subject, artifact in zip(others, candidates, strict=True):
        own = names
        if isinstance(artifact, ModelFile):
            own, sentence = paired(outputs, artifact.manifest.signature.outputs, artifact.name)
            own = own if several else ()
            notes = [f"{artifact.name}: {note}" for note in artifact.manifest.notes]
            assumed += [*([sentence] if sentence else []), *notes]
        ordered.append(subject.with_outputs(own))
    return ordered, assumed


def paired(
    expected: Sequence[TensorSpec], own: Sequence[TensorSpec], name: str
) -> tuple[tuple[str, ...], str]:
    """Names of a file's outputs, in the order of the reference's, and what was assumed.

    Equal names are paired; of one output each, or where names differ, those of equal sizes, in
    their order.

    Args:
        expected: Outputs of the reference.
        own: Outputs of the file.
        name: Name of the file.

    Raises:
        InvalidModelError: If they differ in number or sizes.
    """
    if {spec.name for spec in expected} == {spec.name for spec in own}:
        return tuple(spec.name for spec in expected), ""
    left = list(own)
    names = []
    for spec in expected:
        fits = [each for each in left if each.shape[1:] == spec.shape[1:]]
        if not fits and len(expected) == len(own) == 1:
            fits = list(left)
        if not fits:
            break
        left.remove(fits[0])
        names.append(fits[0].name)
    if left or len(names) != len(expected):
        sides = (", ".join(f"{s.name} {list(s.shape)}" for s in side) for side in (expected, own))
        raise InvalidModelError(
            f"{name}: expected the outputs of the reference, {next(sides)}, got {next(sides)}"
        )
    if len(expected) == 1:
        return tuple(names), ""
    pairs = ", ".join(f"{own} as {spec.name}" for own, spec in zip(names, expected, strict=True))
    return tuple(names), f"{name}: outputs are paired by size and order: {pairs}"


def subject_of(artifact: Artifact, threads: int, place: PlaceSpec = HERE) -> Subject:
    """The subject of an artifact at a place, run as its manifest says.

    Raises:
        InvalidOptionError: If the place does not run its format.
    """
    quantization = artifact.manifest.quantization
    job = Job.of(artifact, threads=threads).at(place)
    return Subject(
        job.name,
        artifact.manifest.format,
        job,
        artifact.model_path if isinstance(artifact, ModelFile) else artifact.path,
        artifact.manifest.precision,
        artifact.sha256,
        artifact.size,
        artifact.manifest_sha256,
        budget=None if quantization is None else quantization.budget,
        known=_known(artifact.manifest.micro),
    )


def _known(micro: MicroRecord | None) -> dict[str, Measurement]:
    """What the manifest of a file for a microcontroller tells of it."""
    if micro is None:
        return {}
    sizes = {
        "arena": micro.arena,
        "arena_persistent": micro.arena_persistent,
        "flash": micro.flash,
    }
    return {name: Measurement(size, "bytes", 1) for name, size in sizes.items() if size is not None}


def cannot_saturate(artifact: Artifact) -> bool:
    """Whether an artifact was made for a device whose numbers are exact on every CPU."""
    profile = PROFILES.get(artifact.manifest.device)
    return profile is not None and profile.cannot_saturate(artifact.manifest.precision)
