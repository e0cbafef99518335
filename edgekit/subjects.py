"""What a comparison measures: the float model, a runner or a recording of it, the artifacts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import data
from edgekit.artifact import Artifact
from edgekit.errors import InvalidModelError, InvalidOptionError
from edgekit.formats import float_model, saved_model
from edgekit.quant.profiles import PROFILES
from edgekit.recording import Recording
from edgekit.reference import onnx_artifact, profile_of
from edgekit.runtimes import spec as runners
from edgekit.runtimes.worker import Job


@dataclass(frozen=True)
class Subject:
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

    def answering(self, outputs: tuple[str, ...]) -> Subject:
        """The same with its outputs in this order; empty for as they are."""
        if self.recording is not None:
            return replace(self, recording=self.recording.answering(outputs))
        return self if self.job is None else replace(self, job=replace(self.job, outputs=outputs))


def check_one_source(artifacts: list[Artifact]) -> None:
    """Refuse artifacts of several float models, a float model, and two of one folder name."""
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
        if artifact.manifest.source.shapes != first.manifest.source.shapes:
            raise InvalidModelError(
                f"{artifact.path} and {first.path} were made for other sizes of their inputs "
                f"(--shape); compare them one by one"
            )
    names = [artifact.name for artifact in artifacts]
    if len(set(names)) != len(names):
        raise InvalidOptionError(f"two artifacts share a folder name: {', '.join(sorted(names))}")


def recorded_in(path: Path, artifact: Artifact, images: data.ImageSet) -> Subject:
    """The reference that a recording stands in for."""
    manifest = artifact.manifest
    assert manifest.source is not None
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
    """The float model on another runner; what has to be converted is put into ``folder``."""
    found = reference_of(artifacts, None, threads, trust=trust)
    assert found.job is not None
    if runner.format == "keras" and found.format != "keras":
        raise InvalidOptionError(
            f"{runner.word} runs Keras models, {found.path} is none; take an ort runner, or leave "
            f"--reference out to run it as it is"
        )
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
        trust=trust,
        shapes=found.job.shapes,
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
        path=found.path,
        precision=runner.precision,
        sha256=converted.sha256,
        size=converted.size,
    )


def reference_of(
    artifacts: list[Artifact], given: Path | None, threads: int, *, trust: bool = False
) -> Subject:
    """The float model whose sha256 the manifests name, in the format that it was saved in.

    Args:
        artifacts: Made from it.
        given: Where it is; default where the first manifest says, or the shipped one.
        threads: Threads inside an operator.
        trust: Let code inside of it run.
    """
    place, model, sha256 = float_model.find(artifacts[0], given)
    kind = float_model.kind_of(place)
    name = "keras-float32" if kind == "keras" else f"{kind}-source"
    preprocessing = artifacts[0].manifest.preprocessing
    source = artifacts[0].manifest.source
    assert source is not None
    return Subject(
        name,
        kind,
        Job(name, model, kind, preprocessing, threads, {}, trust=trust, shapes=source.shapes),
        place,
        "float32",
        sha256,
        saved_model.size_of(model),
        Artifact.load(place).manifest_sha256 if place.is_dir() and model != place else "",
    )


def subject_of(artifact: Artifact, threads: int) -> Subject:
    """An artifact, as its manifest says to run it."""
    return Subject(
        artifact.name,
        artifact.manifest.format,
        Job.of(artifact, threads=threads),
        artifact.path,
        artifact.manifest.precision,
        artifact.sha256,
        artifact.size,
        artifact.manifest_sha256,
    )


def cannot_saturate(artifact: Artifact) -> bool:
    """Whether its weights keep sums of products within 16 bits."""
    found = PROFILES.get(artifact.manifest.device)
    return found is not None and found.pair_bound
