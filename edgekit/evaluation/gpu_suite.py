"""GPU suite: compare float32 with float16, and NCHW with NHWC, at three batch sizes, on
onnxruntime.

``python -m edgekit.benchmark --suite gpu`` runs it. A sample is one run on tensors that are on the
device, from the call until the device has finished; copies to and from the device are left out.
ONNX convolutions are NCHW. For NHWC, the provider's option ``prefer_nhwc`` makes onnxruntime
convert the graph. float32 means float32: TF32, the default of the CUDA provider, is turned off. All
cases of one batch size are measured in rounds, in turn.

Without a GPU the suite refuses to run, unless it is told to run on the CPU. Its record says so
then; it is only useful to try the command and the format.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from edgekit.base import outputs, schema, words
from edgekit.base.errors import (
    EdgekitError,
    ExecutionError,
    InvalidModelError,
    InvalidOptionError,
    ReportError,
)
from edgekit.base.progress import SILENT, Progress, Task
from edgekit.evaluation.reference import onnx_artifact
from edgekit.records import environment, stats
from edgekit.records.artifact import Artifact
from edgekit.records.results import Device, Environment, Measurement, Runtime
from edgekit.records.signature import Preprocessing
from edgekit.records.signature import preprocessing as named_preprocessing
from edgekit.runtimes import spec as runners
from edgekit.runtimes.worker import Job, Worker
from edgekit.sources.float_model import SHIPPED

SCHEMA_VERSION = 1
BATCHES = (1, 8, 32)
PRECISIONS = ("float32", "float16")
LAYOUTS = ("NCHW", "NHWC")
DEVICES = ("cuda", "cpu")
ROUNDS, SAMPLES, WARM_UP = 20, 20, 20
MEASURED = (
    "one run on tensors that lie on the device, from the call until the device has finished; "
    "copies left out; cases of a batch size interleaved in rounds"
)

Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        precision: Precision of the model file.
        layout: That the convolutions were asked to run in.
        asked: Provider options that were set for it; ``runtime`` has what the provider reports.
        latency_p50: Milliseconds a run of ``batch`` images.
        latency_ms: Raw samples, in the order taken.
        rounds: Rounds they were taken in.
    """

    batch: int
    precision: Literal["float32", "float16"]
    layout: Layout
    asked: dict[str, str]
    runtime: Runtime
    latency_p50: Measurement
    throughput: Measurement
    latency_ms: tuple[float, ...]
    rounds: int


@dataclass(frozen=True)
class Ratio:
    """Time of one case over that of another, same batch.

    Attributes:
        of: What was varied: ``float16 / float32`` or ``NHWC / NCHW``.
        at: What was the same in both.
    """

    of: str
    batch: int
    at: str
    value: Measurement


@dataclass(frozen=True)
class Record(schema.Document):
    """What the suite measured.

    Attributes:
        device: What computed; its kind is ``gpu`` only where a GPU did.
        source_sha256: Of the float model.
        models: sha256 of the ONNX files that ran, by precision.
        measured: What a sample is.
        left_out: Cases that did not run and why, a sentence each.
    """

    VERSION: ClassVar[int] = SCHEMA_VERSION
    ERROR: ClassVar[type[EdgekitError]] = ReportError
    WHAT: ClassVar[str] = "a record of the GPU suite"

    model_id: str
    source_sha256: str
    models: dict[str, str]
    device: Device
    environment: Environment
    measured: str
    cases: tuple[Case, ...]
    ratios: tuple[Ratio, ...]
    created: str
    command: str
    left_out: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    suite: Literal["gpu"] = "gpu"
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        kinds = {case.runtime.device for case in self.cases}
        if kinds - {self.device.kind}:
            raise ReportError(
                f"the record is of a {self.device.kind}, its cases ran on {', '.join(kinds)}"
            )


def suite(
    model: Path | None = None,
    *,
    preprocessing: str | None = None,
    device: str = "cuda",
    threads: int = 1,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    command: str = "",
    progress: Progress = SILENT,
) -> Record:
    """Run all cases.

    Args:
        model: The float model, a Keras artifact or ``.keras`` file; default the shipped one.
        preprocessing: For a ``.keras`` file: name or JSON file.
        device: ``cuda``, or ``cpu`` to try the suite without a GPU.
        threads: Threads inside an operator, on the CPU.
        batches: Images a run.
        rounds: Each takes 20 samples of every case.
        command: Recorded.
        progress: Hears how far it is.

    Raises:
        ExecutionError: If there is no GPU, or a node would not run on it.
        EdgekitError: If the model cannot be used.
    """
    if device not in DEVICES:
        raise InvalidOptionError(f"expected device {' or '.join(DEVICES)}, got {device!r}")
    gpu = environment.gpu()
    if device == "cuda" and gpu is None:
        raise ExecutionError(
            "the suite needs a GPU, this machine has no NVIDIA driver or GPU; run it on a CUDA "
            "machine, or try it with --device cpu"
        )
    path, model_id, sha256, prepared = _model(model or SHIPPED, preprocessing)
    machine = environment.describe()
    cases: list[Case] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        profile = "cuda" if device == "cuda" else "generic"
        files = {
            precision: onnx_artifact(
                path, precision=precision, preprocessing=prepared, folder=folder, device=profile
            )
            for precision in PRECISIONS
        }
        task = stack.enter_context(progress.task("timing", rounds * len(batches), unit="rounds"))
        for batch in batches:
            task.note(f"batch {batch}")
            cases += _cases(files, prepared, device, threads, batch, rounds, task)
    return Record(
        model_id=model_id,
        source_sha256=sha256,
        models={precision: file.sha256 for precision, file in files.items()},
        device=gpu if device == "cuda" and gpu is not None else Device("cpu", machine.cpu),
        environment=machine,
        measured=MEASURED,
        cases=tuple(cases),
        ratios=tuple(_ratios(cases)),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        left_out=_left_out(device),
        settings={"threads": threads, "rounds": rounds, "samples": SAMPLES, "warm_up": WARM_UP},
    )


def _model(path: Path, preprocessing: str | None) -> tuple[Path, str, str, Preprocessing]:
    """(path, name, sha256, preprocessing) of a float model, which is not loaded here."""
    if path.is_dir():
        source = Artifact.load(path)
        if source.manifest.format != "keras":
            raise InvalidModelError(
                f"{path} is a {source.manifest.format} artifact; the suite exports by itself, pass "
                f"its Keras source"
            )
        if preprocessing is not None:
            raise InvalidOptionError(
                f"{path} has its own preprocessing; give --preprocessing only with a .keras file"
            )
        return path, source.manifest.model_id, source.sha256, source.manifest.preprocessing
    if not path.is_file():
        raise InvalidModelError(
            f"{words.not_found(path)}; expected a Keras artifact or a .keras file"
        )
    if preprocessing is None:
        raise InvalidOptionError(f"{path} does not say how its input is made; --preprocessing does")
    return path, path.stem, outputs.sha256_file(path), named_preprocessing(preprocessing)


def _left_out(device: str) -> tuple[str, ...]:
    if device == "cuda":
        return ()
    return (
        "NHWC: the CPU provider has no such choice; prefer_nhwc is an option of the CUDA provider",
    )


def _asked(device: str, precision: str, layout: str) -> dict[str, str]:
    """Provider options of a case."""
    if device != "cuda":
        return {}
    return {
        "prefer_nhwc": "1" if layout == "NHWC" else "0",
        **({"use_tf32": "0"} if precision == "float32" else {}),
    }


def _cases(
    files: Mapping[str, Artifact],
    preprocessing: Preprocessing,
    device: str,
    threads: int,
    batch: int,
    rounds: int,
    task: Task,
) -> list[Case]:
    """All cases of one batch size, each in a process of its own, interleaved."""
    plan = [
        (precision, layout, _asked(device, precision, layout))
        for precision in PRECISIONS
        for layout in LAYOUTS
        if device == "cuda" or layout == "NCHW"
    ]
    with contextlib.ExitStack() as stack:
        workers = []
        for precision, layout, asked in plan:
            name = f"{runners.SPECS[f'ort:{device}:{precision}'].word}, {layout}, batch {batch}"
            job = Job(
                name,
                files[precision].model_path,
                "onnx",
                preprocessing,
                threads,
                asked,
                batch,
                device=device,
            )
            workers.append(stack.enter_context(Worker(job)))
        shape = (batch, *workers[0].loaded.input_shape)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        samples: list[list[float]] = [[] for _ in workers]
        for worker in workers:
            worker.latencies(images, WARM_UP)
        for _ in range(rounds):
            for worker, times in zip(workers, samples, strict=True):
                times += worker.latencies(images, SAMPLES)
            task.advance()
        return [
            _case(batch, precision, layout, asked, worker.loaded.runtime, times, rounds)
            for (precision, layout, asked), worker, times in zip(
                plan, workers, samples, strict=True
            )
        ]


def _case(
    batch: int,
    precision: Any,
    layout: Any,
    asked: dict[str, str],
    runtime: Runtime,
    latencies: list[float],
    rounds: int,
) -> Case:
    times = np.array(latencies)
    images = 1e3 * batch * len(times) / float(times.sum())
    return Case(
        batch,
        precision,
        layout,
        asked,
        runtime,
        Measurement(float(np.median(times)), "ms", len(times)),
        Measurement(images, "images/s", len(times)),
        tuple(round(value, 6) for value in latencies),
        rounds,
    )


def _ratios(cases: Sequence[Case]) -> list[Ratio]:
    """Every pair of cases of one batch size that differs in one thing."""
    by_settings = {(case.batch, case.precision, case.layout): case for case in cases}
    ratios = []
    for batch, precision, layout in by_settings:
        case = by_settings[batch, precision, layout]
        whole = by_settings.get((batch, "float32", layout))
        if precision == "float16" and whole is not None:
            ratios.append(Ratio("float16 / float32", batch, layout, _ratio(case, whole)))
        native = by_settings.get((batch, precision, "NCHW"))
        if layout == "NHWC" and native is not None:
            ratios.append(Ratio("NHWC / NCHW", batch, precision, _ratio(case, native)))
    return ratios


def _ratio(case: Case, base: Case) -> Measurement:
    samples, others = (np.array(c.latency_ms).reshape(c.rounds, -1) for c in (case, base))
    return stats.latency_ratio(samples, others)
