"""Do a TFLite and an ONNX int8 file hold the same numbers?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.blocks import blocks
from edgekit.base.errors import InvalidModelError, InvalidOptionError, reason
from edgekit.base.progress import SILENT, Progress
from edgekit.evaluation import subjects
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.records import encodings, environment, stats
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import Difference, Encodings, Stored
from edgekit.records.results import Environment, Measurement, Parity, ParityPair
from edgekit.records.schemes import SCHEMES
from edgekit.runtimes.model_file import ModelFile
from edgekit.runtimes.places import HERE, PlaceSpec, named
from edgekit.runtimes.worker import Job, Worker
from edgekit.writers import onnx_integers, tflite_integers
from edgekit.writers.onnx_dynamic import joined

#: Differences of two outputs are counted up to this many steps.
_LSB_BINS = 16


@dataclass(frozen=True)
class Numbers:
    """What two files hold.

    Attributes:
        compared: Scales, zero points, weights and biases.
        differences: Where they differ, a tensor and a kind of number each.
        expected: Differences that the device profiles ask for, a sentence each.
    """

    compared: int
    differences: tuple[Difference, ...]
    expected: tuple[str, ...] = ()


def numbers(left: Artifact, right: Artifact) -> Numbers:
    """Compare the integers that a TFLite and an ONNX artifact of one precision store.

    Raises:
        InvalidModelError: If they are not one of each, have other precisions or no integers, come
            from different float models, or have no tensor of one name.
    """
    formats = {left.manifest.format: left, right.manifest.format: right}
    if set(formats) != {"tflite", "onnx"}:
        raise InvalidModelError(
            f"expected a TFLite and an ONNX artifact, got {left.manifest.format} and "
            f"{right.manifest.format}"
        )
    for artifact in (left, right):
        if not SCHEMES[artifact.manifest.precision].integers:
            raise InvalidModelError(
                f"{artifact.path} is {artifact.manifest.precision}; expected artifacts with int8 "
                f"weights"
            )
    if left.manifest.precision != right.manifest.precision:
        raise InvalidModelError(
            f"{left.path} is {left.manifest.precision} and {right.path} is "
            f"{right.manifest.precision}; expected artifacts of one precision"
        )
    files = [artifact for artifact in (left, right) if isinstance(artifact, ModelFile)]
    graphs = {
        Encodings.load(artifact.path / encodings.FILE).graph_sha256
        for artifact in (left, right)
        if artifact not in files
    }
    sources = [artifact.manifest.source for artifact in (left, right) if artifact not in files]
    layouts = {source.layout for source in sources if source is not None}
    if len(layouts) > 1:
        raise InvalidModelError(
            f"{left.path} and {right.path} were exported with different --layout; export them by "
            f"one command, with --target tflite,onnx"
        )
    if len(graphs) > 1:
        raise InvalidModelError(
            f"{left.path} and {right.path} have different float models as their source"
        )
    ours, theirs, missing = _stored(formats["tflite"], formats["onnx"], checked=not files)
    expected = [*missing]
    if files:
        expected.append(
            f"the source of {' and '.join(file.name for file in files)} is not known; tensors are "
            f"matched by name"
        )
    if not any(layer.bias is not None for layer in theirs.layers.values()):
        if any(layer.bias is not None for layer in ours.layers.values()):
            expected.append(f"{formats['onnx'].name} keeps its biases in float")
        ours = ours.without_biases()
    devices = {kind: artifact.manifest.device for kind, artifact in formats.items()}
    if not files and devices["tflite"] != devices["onnx"]:
        expected.append(
            f"TFLite was made for {devices['tflite']}, ONNX for {devices['onnx']}: their profiles "
            f"may ask for other numbers"
        )
    compared = max(ours.numbers(), theirs.numbers())
    return Numbers(compared, encodings.differences(ours, theirs), tuple(expected))


def _stored(
    ours: Artifact, theirs: Artifact, *, checked: bool
) -> tuple[Stored, Stored, tuple[str, ...]]:
    """What a TFLite and an ONNX file store, in one graph's words, and what ONNX has no place for.

    Args:
        ours: TFLite.
        theirs: ONNX.
        checked: Whether the two are known to come from one graph.

    Raises:
        InvalidModelError: If they are not, and cannot be read as if they were.
    """
    content = ours.model_path.read_bytes()
    model = onnx.load(theirs.model_path)
    if checked:
        source = theirs.manifest.source
        own = source is not None and source.path.endswith(".onnx")
        return _read(content, model, own=own)
    fix = "give two files that were made from one graph, or compare them by their outputs"
    try:
        read = _read(content, model)
    except Exception as exc:  # a file of others breaks any of the assumptions
        raise InvalidModelError(
            f"{ours.name} and {theirs.name} cannot be read as two forms of one int8 graph: "
            f"{type(exc).__name__}: {reason(exc)}; {fix}"
        ) from None
    if not read[0].layers.keys() & read[1].layers.keys():
        raise InvalidModelError(
            f"no layer has one name in {ours.name} and {theirs.name}, so that nothing can be "
            f"compared; {fix}"
        )
    return read


def _read(
    content: bytes, model: Any, *, own: bool = False
) -> tuple[Stored, Stored, tuple[str, ...]]:
    """Both, and what is not in ONNX; with ``own``, the ONNX file has the graph of its source, in
    which some layers are none: gates of an LSTM, those in the branches of an If."""
    ours, graph, model = tflite_integers.read_file(content), Graph(content), joined(model)
    theirs = onnx_integers.read_stored(model, graph)
    ours, missing = onnx_integers.without_missing(ours, theirs, model, graph)
    absent = set(onnx_integers.absent(model, graph)) & (ours.layers.keys() if own else set())
    if absent:
        missing += (
            f"{len(absent)} layers of the float graph are no layers of the ONNX file, and stay "
            f"float there: {', '.join(map(short_name, sorted(absent)[:3]))}",
        )
    return ours.without((), layers=absent), theirs, missing


def pair_of(artifacts: list[Artifact]) -> tuple[Artifact, Artifact]:
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


def outputs(
    pair: tuple[Artifact, Artifact],
    known: Mapping[str, npt.NDArray[np.float32]],
    count: int,
    evaluate: Callable[[Worker, Callable[[int], None]], npt.NDArray[np.float32]],
    machine: Environment,
    threads: int,
    progress: Progress = SILENT,
    *,
    on: Mapping[str, Sequence[PlaceSpec]] | None = None,
) -> Parity:
    """Outputs of the same integers on three kernels that do not saturate, two at a time; those of
    another place beside the same runtime's here, and beside each other.

    Args:
        pair: Pair of :func:`pair_of`.
        known: float32 outputs ``[N, C]`` by artifact, as measured already.
        count: Samples, N.
        evaluate: Runs a worker on all of them.
        machine: Whose kernels.
        threads: Inside an operator.
        progress: Hears how far it is.
        on: Where the artifacts ran, by name; default this machine.
    """
    stored = numbers(*pair)
    ours, theirs = pair
    on = on or {each.name: (HERE,) for each in pair}

    def run(job: Job) -> npt.NDArray[np.float32]:
        with Worker(job) as worker, progress.task("parity", count, note=job.name) as task:
            return evaluate(worker, task.advance)

    plain = replace(Job.of(ours, threads=threads), options={"kernels": "reference"})
    kernels = {"XNNPACK": known[ours.name]} if HERE in on[ours.name] else {}
    kernels["reference"] = run(replace(plain, name=f"{ours.name}, reference kernels"))
    if HERE in on[theirs.name]:
        if environment.saturates(machine) and not subjects.cannot_saturate(theirs):
            job = Job.of(theirs, threads=threads)
            options = {**job.options, environment.PRECISE: "1"}
            kernels["onnxruntime, precise"] = run(replace(job, options=options))
        else:
            kernels["onnxruntime"] = known[theirs.name]
    here, there = list(kernels), []
    for artifact, runtime in ((ours, "XNNPACK"), (theirs, "onnxruntime")):
        at_home = next((each for each in here if each.startswith(runtime)), "reference")
        for place in on[artifact.name]:
            if place != HERE:
                label = place.word if place.device else named(runtime, place)
                kernels[label] = known[named(artifact.name, place)]
                there.append(("reference" if place.device else at_home, label))
    both = [place for place in on[ours.name] if place in on[theirs.name] and place != HERE]
    there += [(named("XNNPACK", place), named("onnxruntime", place)) for place in both]
    scale = ours.manifest.signature.outputs[0].scale or 1.0
    return Parity(
        stored.compared,
        sum(each.count for each in stored.differences),
        tuple(
            _hold(one, kernels[one], other, kernels[other], scale)
            for one, other in [*itertools.combinations(here, 2), *there]
        ),
    )


def _hold(
    left: str,
    ours: npt.NDArray[np.float32],
    right: str,
    theirs: npt.NDArray[np.float32],
    scale: float,
) -> ParityPair:
    same, total = 0, 0.0
    counts = np.zeros(_LSB_BINS, np.int64)
    for one, other in blocks(ours, theirs):
        same += int((stats.ranking(one)[:, 0] == stats.ranking(other)[:, 0]).sum())
        steps = np.abs(one.astype(np.float64) - other) / scale
        total += float(steps.sum())
        bins = np.minimum(np.rint(steps).astype(int).ravel(), _LSB_BINS - 1)
        counts += np.bincount(bins, minlength=_LSB_BINS)
    return ParityPair(
        left,
        right,
        stats.proportion(same, len(ours)),
        Measurement(total / ours.size, "LSB", ours.size),
        tuple(int(count) for count in counts),
    )
