"""Measure one artifact, or a file of any maker, on one runtime, in detail."""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass

import numpy as np

from edgekit.base.errors import ExecutionError, InvalidModelError, InvalidOptionError
from edgekit.data import feeds
from edgekit.evaluation import conditions, operators
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.records.results import Conditions, Environment, Measurement, Runtime
from edgekit.records.schemes import SCHEMES
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.places import HERE, PlaceSpec
from edgekit.runtimes.worker import Job, Worker

WARM_UP = 10


@dataclass(frozen=True)
class Operator:
    """Time of one kind of operator.

    Attributes:
        share: Share of all operator time, in percent.
        count: Nodes of that kind.
    """

    name: str
    ms_per_run: float
    share: float
    count: int


@dataclass(frozen=True)
class FloatIsland:
    """Operators of an int8 model that compute in float and hand real numbers to each other.

    Attributes:
        name: Of the last of them: of an ONNX node, or of what a TFLite operator writes.
        operators: Their kinds, in order of execution.
        ms_per_run: With what makes real numbers of integers before, and integers of them behind.
        share: Of all operator time, in percent.
    """

    name: str
    operators: tuple[str, ...]
    ms_per_run: float
    share: float


@dataclass(frozen=True)
class Benchmark:
    """What was measured of one artifact.

    Attributes:
        metrics: ``cold_start load_time latency_p50 latency_p90 latency_p99 throughput
            peak_memory baseline_memory``, the last being the process before the model is loaded;
            ``energy`` of an image where the CPU's counters can be read.
        latency_ms: Raw samples.
        operators: By time, most first; of TFLite each was run alone, at batch 1. Empty where a
            runtime has no such times.
        float_islands: Of an int8 model: what computes in float, most time first; None of another
            precision, and where a runtime has no times.
    """

    name: str
    format: str
    precision: str
    batch: int
    runtime: Runtime
    environment: Environment
    metrics: dict[str, Measurement]
    latency_ms: tuple[float, ...]
    operators: tuple[Operator, ...]
    float_islands: tuple[FloatIsland, ...] | None
    conditions: Conditions
    notes: tuple[str, ...] = ()


def benchmark(
    artifact: Artifact,
    *,
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 5.0,
    place: PlaceSpec = HERE,
) -> Benchmark:
    """Measure one artifact.

    Args:
        artifact: What to measure.
        runtime: ``ort``, ``litert`` or ``keras``; has to fit the format.
        threads: Threads inside an operator.
        batch: Images a run.
        seconds: How long to sample latency.
        place: Where it runs.

    Raises:
        InvalidOptionError: If the runtime does not run this format, or times at the place mean
            nothing.
        EdgekitError: If the model cannot be loaded or run.
    """
    place.check_times()
    manifest = artifact.manifest
    fitting = RUNTIMES[manifest.format]
    if runtime not in (None, fitting):
        raise InvalidOptionError(
            f"runtime {runtime} does not run {manifest.format} models; pass --runtime {fitting}"
        )
    if not 0 < seconds < 1e6:
        raise InvalidOptionError(f"expected --seconds > 0, got {seconds}")
    started = time.perf_counter()
    specs = manifest.signature.inputs
    for spec in specs:
        if -1 in spec.shape[1:]:
            raise InvalidModelError(
                f"{artifact.name}: expected fixed sizes of input {spec.name} behind the batch, got "
                f"{list(spec.shape)}; export it with the sizes that it will run at"
            )
    feed = feeds.random(specs, manifest.preprocessing, batch, seed=0)
    images = feeds.records(feed)
    with Worker(Job.of(artifact, threads=threads, batch=batch)) as worker:
        worker.outputs(images)
        cold_start = 1e3 * (time.perf_counter() - started)
        worker.latencies(images, WARM_UP)
        samples: list[float] = []
        readings = [conditions.look([worker.process])]
        counters = conditions.Energy()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            samples += worker.latencies(images, 20)
            readings.append(conditions.look([worker.process]))
        joules = counters.since()
        loaded, memory = worker.loaded, worker.peak_memory()
    kinds, in_float, notes = _operators(artifact, threads, feed, seconds)
    times = np.array(samples)
    watched = conditions.summarize(readings)
    disturbed = conditions.reasons(watched)
    if disturbed:
        notes = (*notes, f"latency may be unstable: {', and '.join(disturbed)}")
    metrics = {
        "cold_start": Measurement(cold_start, "ms", 1),
        "load_time": Measurement(loaded.load_ms, "ms", 1),
        **{
            f"latency_p{percent}": Measurement(
                float(np.percentile(times, percent)), "ms", len(times)
            )
            for percent in (50, 90, 99)
        },
        "throughput": Measurement(
            1e3 * batch * len(times) / float(times.sum()), "images/s", len(times)
        ),
        **(
            {"energy": Measurement(1e3 * joules / (batch * len(times)), "mJ", len(times))}
            if joules is not None
            else {}
        ),
        "peak_memory": Measurement(memory, "bytes", 1),
        "baseline_memory": Measurement(loaded.baseline_memory, "bytes", 1),
    }
    return Benchmark(
        name=artifact.name,
        format=manifest.format,
        precision=manifest.precision,
        batch=batch,
        runtime=loaded.runtime,
        environment=environment.describe(),
        metrics=metrics,
        latency_ms=tuple(round(value, 6) for value in samples),
        operators=kinds,
        float_islands=in_float,
        conditions=watched,
        notes=notes,
    )


def _operators(
    artifact: Artifact, threads: int, feed: feeds.Feed, seconds: float
) -> tuple[tuple[Operator, ...], tuple[FloatIsland, ...] | None, tuple[str, ...]]:
    """Times by kind, what computes in float, and what to say."""
    manifest = artifact.manifest
    specs = manifest.signature.inputs
    stored = feeds.quantized(feed, specs)
    notes: tuple[str, ...] = ()
    if manifest.format == "onnx":
        if manifest.signature.batch == 1:
            stored = next(feeds.one_by_one(stored, specs))
        ran = operators.of_onnx(
            artifact.model_path, stored, threads=threads, options=manifest.runtime_options
        )
    elif manifest.format == "tflite":
        try:
            ran, whole = operators.of_tflite(
                artifact.model_path, stored, specs,
                threads=threads, options=manifest.runtime_options, seconds=seconds,
            )  # fmt: skip
        except (ExecutionError, InvalidModelError) as exc:
            return (), None, (f"no operator times: {exc}",)
        together = 100 * sum(each.ms for each in ran) / whole
        notes = (
            f"operators were run one by one, at batch 1: together they take {together:.0f} % of a "
            f"run of the model",
        )
    else:
        note = f"{RUNTIMES[manifest.format]} offers no operator times to Python"
        return (), None, (note,)
    total: dict[str, float] = collections.defaultdict(float)
    for each in ran:
        total[each.kind] += each.ms
    counts = collections.Counter(each.kind for each in ran)
    everything = sum(total.values())
    kinds = tuple(
        Operator(kind, ms, 100 * ms / everything, counts[kind])
        for kind, ms in sorted(total.items(), key=lambda item: -item[1])
    )
    if not SCHEMES[manifest.precision].ranges:
        return kinds, None, notes
    in_float = tuple(
        FloatIsland(each.name, each.kinds, each.ms, 100 * each.ms / everything)
        for each in operators.islands(ran)
    )
    return kinds, in_float, notes
