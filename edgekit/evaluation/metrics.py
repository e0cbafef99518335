"""Compute the metrics and the warnings of a report from outputs and times."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.data import feeds
from edgekit.evaluation import conditions, verdicts
from edgekit.evaluation.answers import Answers
from edgekit.evaluation.functions import Function
from edgekit.evaluation.options import SAMPLES, Options
from edgekit.evaluation.recording import Facts
from edgekit.evaluation.samples import Samples
from edgekit.evaluation.subjects import Subject
from edgekit.records import environment, fidelity, stats
from edgekit.records.fidelity import Fidelity
from edgekit.records.results import (
    CENTRED_OF_OUTPUT,
    OF_OUTPUT,
    ArtifactResult,
    Conditions,
    Data,
    Environment,
    Measurement,
    Parity,
    Place,
    Report,
    Runtime,
    Unit,
)
from edgekit.records.schemes import SCHEMES
from edgekit.runtimes.worker import Worker

#: Percent of predictions that are those of the float model, below which close outputs are warned
#: of. A round number.
FEW_AGREE = 95.0


@dataclass
class Measured:
    """Outputs and measurements of one subject, from workers or from a recording.

    Attributes:
        metrics: ``peak_memory``, ``load_time`` and ``energy``, if they mean something; none from a
            cluster.
        worker: The worker whose latency is to be measured; None if its times mean nothing, were
            recorded, or would be those of a cluster.
        latency: Milliseconds, one list per round.
        places: Machines of a cluster that ran it.
    """

    outputs: npt.NDArray[np.float32]
    runtime: Runtime
    metrics: dict[str, Measurement] = field(default_factory=dict)
    worker: Worker | None = None
    latency: list[list[float]] = field(default_factory=list)
    places: tuple[Place, ...] = ()


def report(
    subjects: list[Subject],
    measured: list[Measured],
    samples: Samples,
    machine: Environment,
    options: Options,
    *,
    sizes: Mapping[str, tuple[int, ...]],
    read: Callable[[npt.NDArray[np.float32]], Answers],
    reference: Answers,
    functions: Sequence[Function],
    model_id: str,
    safe: Collection[str],
    assumed: Sequence[str],
    parity: Parity | None,
    watched: Conditions | None,
    resumed: int,
) -> Report:
    """Compare all measurements with those of the first subject, the reference.

    Args:
        subjects: The reference and the artifacts.
        measured: Measurements of each subject.
        samples: The samples that they ran on, with their labels.
        machine: The machine of the comparison.
        options: Options of the comparison.
        sizes: Sizes of one sample of each output, in order.
        read: What makes answers of outputs ``[N, M]``.
        reference: Answers of the reference.
        functions: Metrics of the user.
        model_id: Name of the model of the first artifact.
        safe: Names of artifacts whose int8 sums cannot saturate.
        assumed: Assumptions about files, one sentence each.
        parity: Comparison of the same integers on three sets of kernels, if it was asked for.
        watched: State of the machine while latency was measured.
        resumed: Number of shards that an earlier run left.
    """
    images = samples.images
    # One number for all that are compared, so that it is the same part of a round.
    common = max((_slow(each) for each in measured if timed_here(each)), default=0)
    float32 = {
        subject.format: np.array(each.latency)[:, common:]
        for subject, each in zip(subjects, measured, strict=True)
        if subject.precision == "float32" and timed_here(each)
    }
    results: list[ArtifactResult] = []
    for subject, each in zip(subjects, measured, strict=True):
        unquantized = float32.get(subject.format) if timed_here(each) else None
        slow = common if timed_here(each) else _slow(each)
        judged = fidelity.judge(measured[0].outputs, each.outputs, sizes)
        own = read(each.outputs) if results else reference  # which is the first result
        metrics = own.metrics(reference, judged)
        for function in functions:
            metrics[function.name] = function.measure(*own.for_functions, len(each.outputs))
        metrics["sqnr"] = stats.sqnr(measured[0].outputs, each.outputs)
        metrics |= _of_outputs(judged)
        metrics["size"] = Measurement(subject.size, "bytes", 1)
        metrics |= {**subject.known, **each.metrics, **_times(each, slow, unquantized)}
        result = _result(subject, each, metrics, own.correct, slow)
        result = replace(result, fidelity=judged, unstable=_unstable(result))
        shown = own.shown(reference, images.images, options.pictures)
        results.append(replace(result, **shown.fields()))
    few = _too_few(results[1:], options, feeds.unit(images.images))
    compared = Report(
        model_id=model_id,
        data=data_of(images),
        environment=machine,
        reference=results[0],
        artifacts=tuple(results[1:]),
        created=created(),
        command=options.command,
        settings=_settings(options, samples.right.task, resumed),
        warnings=(
            *images.warnings,
            *assumed,
            *samples.warnings,
            *_hardly(results[0], feeds.unit(images.images)),
            *_of_reference(subjects[0], results[0]),
            *([] if samples.fit is not None and samples.fit.problem else few),
            *_warnings(results[1:], machine, watched, safe),
        ),
        parity=parity,
        conditions=watched,
        fit=samples.fit,
    )
    other = _other_classes(compared)
    return replace(compared, warnings=(*compared.warnings, *other)) if other else compared


def _other_classes(report: Report) -> list[str]:
    """A sentence for each deployable whose numbers are close, and whose classes often differ."""
    return [
        f"{result.name}: its outputs are close in dB, but its class is that of the float model for "
        f"{agreement.value:.1f} % of {report.data.unit} only: scores lie near each other; "
        f"`python -m edgekit.gate REPORT --min agreement={FEW_AGREE:.0f}` fails such a file"
        for result in report.artifacts
        if (agreement := result.metrics.get("agreement")) is not None
        and agreement.value < FEW_AGREE
        and verdicts.of(result, report).verdict == "close"
    ]


def _settings(options: Options, of: str | None, resumed: int) -> dict[str, Any]:
    """The settings that a report keeps."""
    return {
        "threads": options.threads,
        "rounds": options.rounds,
        "samples_per_round": SAMPLES,
        "limit": options.limit,
        "power": options.power,
        "bound": options.bound,
        "processes": options.at_once,
        "shard": options.shard,
        "shards_resumed": resumed,
        "task": of,
        **({"cluster": options.cluster} if options.cluster else {}),
    }


def timed_here(each: Measured) -> bool:
    """Whether it has times that can be compared with those of other models on this CPU."""
    return each.worker is not None and each.runtime.device == "cpu" and bool(each.latency)


def _slow(each: Measured) -> int:
    """Number of samples at the start of each round that belong to the warm-up."""
    return stats.warm_up(np.array(each.latency)) if each.latency else 0


def _of_reference(subject: Subject, result: ArtifactResult) -> list[str]:
    """A sentence if the reference is not the float model on this machine."""
    sentences = []
    if result.runtime.emulated:
        sentences.append(
            f"{result.name}: the reference is float16 emulated on the CPU, for accuracy only; it "
            f"has no latency, and no GPU ran"
        )
    if subject.recording is not None:
        sentences.append(f"{result.name}: {recorded(subject.recording.facts)}")
    return sentences


def _of_outputs(judged: Sequence[Fidelity]) -> dict[str, Measurement]:
    """SQNR of what varies, of the worst output; with several outputs, SQNR of each."""
    count = judged[0].count
    least = min(each.sqnr_centred for each in judged)
    metrics = {"sqnr_centred": Measurement(least, "dB", count)}
    if len(judged) == 1:
        return metrics
    for each in judged:
        metrics[f"{OF_OUTPUT}{each.output}"] = Measurement(each.sqnr, "dB", count)
        metrics[f"{CENTRED_OF_OUTPUT}{each.output}"] = Measurement(each.sqnr_centred, "dB", count)
    return metrics


def _times(
    each: Measured, slow: int, float32: npt.NDArray[np.float64] | None
) -> dict[str, Measurement]:
    """Percentiles of the latency after the warm-up, and its ratio to that of float32."""
    if not each.latency:
        return {}
    steady = np.array(each.latency, np.float64)[:, slow:]
    metrics = {
        f"latency_p{percent}": Measurement(float(np.percentile(steady, percent)), "ms", steady.size)
        for percent in (50, 90, 99)
    }
    if float32 is not None:
        metrics["latency_ratio"] = stats.latency_ratio(steady, float32)
    return metrics


def _result(
    subject: Subject,
    each: Measured,
    metrics: dict[str, Measurement],
    correct: str,
    slow: int,
) -> ArtifactResult:
    latency = np.array(each.latency, np.float64)
    return ArtifactResult(
        name=subject.name,
        path=str(subject.path),
        format=subject.format,
        precision=subject.precision,
        sha256=subject.sha256,
        runtime=each.runtime,
        metrics=metrics,
        manifest_sha256=subject.manifest_sha256,
        correct=correct,
        latency_ms=tuple(round(float(value), 6) for value in latency.ravel()),
        latency_rounds=len(latency),
        latency_warm_up=slow,
        places=each.places,
        recorded="" if subject.recording is None else subject.recording.facts.name,
        budget=subject.budget,
    )


def _unstable(result: ArtifactResult) -> bool:
    samples = result.steady()
    return samples is not None and stats.latency_spread(samples) > stats.UNSTABLE


def _hardly(reference: ArtifactResult, unit: Unit) -> list[str]:
    """Outputs of the reference that hardly vary, so that SQNR says little."""
    return [
        f"{each.output} of {reference.name} is nearly the same for all {each.count:,} {unit}, so "
        f"that SQNR says little of it; judged is what varies"
        for each in reference.fidelity
        if each.hardly_varies
    ]


def _too_few(results: Sequence[ArtifactResult], options: Options, unit: Unit) -> list[str]:
    """A sentence if there are too few images to notice a loss of the bound."""
    needs = [
        (result.metrics["images_needed"], result.name)
        for result in results
        if "images_needed" in result.metrics
    ]
    short = [(need.value, name, need.count) for need, name in needs if need.value > need.count]
    if not short:
        return []
    value, name, count = max(short)
    known = {metric for result in results for metric in result.metrics}
    of = "mAP" if "map" in known else "mIoU" if "miou" in known else "top-1"
    return [
        f"{count:,} {unit} are too few to see a loss of {options.bound:g} points of {of} with "
        f"power {options.power:g} in {len(short)} of {len(results)} artifacts; "
        f"{name} needs {value:,.0f}"
    ]


def _warnings(
    results: list[ArtifactResult],
    machine: Environment,
    watched: Conditions | None,
    safe: Collection[str],
) -> list[str]:
    sentences = []
    seen = [] if watched is None else conditions.reasons(watched)
    if seen:
        sentences.append(
            f"while latency was taken, {', and '.join(seen)}; measure again on a quiet CPU"
        )
    unread = "" if watched is None else ", ".join(conditions.unread(watched))
    why = (
        "see above" if seen else f"no reason seen{f' ({unread} cannot be read)' if unread else ''}"
    )
    for result in results:
        ratio = result.metrics.get("latency_ratio")
        scheme = SCHEMES.get(result.precision, SCHEMES["float32"])
        if scheme.integers and ratio is not None and ratio.value > 1:
            sentences.append(
                f"{result.name}: {result.precision} takes {ratio.value:.2f}x the time of float32 "
                f"on this CPU"
            )
        if (
            scheme.multiplies_integers
            and result.format == "onnx"
            and any(environment.saturates(place) for place in result.places or (machine,))
            and result.name not in safe
            and result.runtime.options.get(environment.PRECISE) != "1"
        ):
            sentences.append(
                f"{result.name}: this CPU has AVX2 without VNNI; onnxruntime's int8 kernels "
                f"can saturate here, and its accuracy is not that of other CPUs"
            )
        if len({(place.machine_class, *place.versions.items()) for place in result.places}) > 1:
            sentences.append(
                f"{result.name}: its outputs come from workers of different CPUs or versions, "
                f"which may round differently; give them different resources"
            )
        samples = result.steady()
        if result.unstable and samples is not None:
            spread = stats.latency_spread(samples)
            sentences.append(
                f"{result.name}: latency is unstable, round medians spread over "
                f"{100 * spread:.0f} % of their median, {why}; close other programs and measure "
                f"again"
            )
    return sentences


def recorded(facts: Facts) -> str:
    """The place and time of a recording, in words."""
    driver = f", driver {facts.device.driver}" if facts.device.driver else ""
    return (
        f"recorded {facts.created} on {facts.device.kind.upper()} {facts.device.name}{driver}; all "
        f"metrics of this row are from that machine"
    )


def data_of(images: data.ImageSet) -> Data:
    """The evaluation set, as a report describes it."""
    unit = feeds.unit(images.images)
    return Data(images.name, images.sha256, len(images), images.class_names, unit)


def created() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
