"""Write a measured reference as a recording, and read a recording as a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgekit import data
from edgekit.base.errors import InvalidOptionError
from edgekit.evaluation import metrics
from edgekit.evaluation.metrics import Measured
from edgekit.evaluation.recording import Facts, Recording, inputs_sha256
from edgekit.evaluation.subjects import Subject
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.records.results import Device, Environment
from edgekit.records.signature import TensorSpec


def check_recordable(base: Subject, first: Artifact, outputs: Sequence[TensorSpec]) -> None:
    """Refuse to record what cannot be replayed.

    Raises:
        InvalidOptionError: If the reference is a recording, its source is not known, or the sizes
            of its outputs are not.
    """
    if base.recording is not None:
        raise InvalidOptionError(f"{base.path} is a recording; --record needs a runner to run")
    if first.manifest.source is None:
        raise InvalidOptionError(
            f"--record keeps which float model it is of, and {first.name} does not name it; leave "
            f"--record out"
        )
    free = [spec.name for spec in outputs if spec.numbers < 0]
    if free and len(outputs) > 1:
        raise InvalidOptionError(
            f"--record: expected outputs of fixed sizes, {', '.join(free)} has none; leave it out"
        )


def replayed(recording: Recording) -> Measured:
    """What a recording says, as if it had been measured now."""
    facts, latency = recording.facts, recording.latency
    return Measured(
        recording.outputs,
        replace(facts.runtime, notes=(*facts.runtime.notes, metrics.recorded(facts))),
        facts.metrics,
        None,
        [] if latency is None else latency.tolist(),
    )


def recording_of(
    base: Subject,
    measured: Measured,
    first: Artifact,
    images: data.ImageSet,
    machine: Environment,
    sizes: Mapping[str, tuple[int, ...]],
    command: str,
) -> Recording:
    """The reference as measured, with all that has to be the same when it is replayed.

    Args:
        base: The reference.
        measured: What was measured of it.
        first: The artifact that stands for all.
        images: What it ran on.
        machine: Where.
        sizes: Sizes of a sample of each output, in order.
        command: As the user could type it again.
    """
    manifest = first.manifest
    assert manifest.source is not None  # check_recordable() has seen to it
    device = Device("cpu", machine.cpu)
    if measured.runtime.device == "gpu":
        device = environment.gpu() or Device("gpu", "unknown GPU")
    inputs = inputs_sha256(images.images, manifest.preprocessing, manifest.signature.inputs)
    facts = Facts(
        name=base.name,
        model_id=manifest.model_id,
        device=device,
        runtime=measured.runtime,
        environment=machine,
        source_sha256=manifest.source.sha256,
        format=base.format,
        precision=base.precision,
        model_sha256=base.sha256,
        model_bytes=base.size,
        data=metrics.data_of(images),
        preprocessing=manifest.preprocessing,
        inputs_sha256=inputs,
        outputs={name: math.prod(size) for name, size in sizes.items()},
        created=metrics.created(),
        command=command,
        metrics=measured.metrics,
    )
    latency = np.array(measured.latency) if measured.latency else None
    return Recording(facts, measured.outputs, latency)
