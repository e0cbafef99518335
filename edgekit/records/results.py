"""Report: ``compare`` writes it, ``gate`` and ``report`` read it. Framework-free.

A report holds measurements of one or more artifacts against one reference, on one data set, on
one machine. A baseline is an accepted report.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgekit.base import schema
from edgekit.base.errors import EdgekitError, ReportError
from edgekit.records.fidelity import Fidelity
from edgekit.records.predictions import PNG_SIGNATURE as PNG_SIGNATURE
from edgekit.records.predictions import BoxChanges, Confusion, Curve, MaskChanges, check_png

SCHEMA_VERSION = 2
#: Pictures, or any other inputs.
Unit = Literal["images", "samples"]
#: What a search for a mixture makes small: the time of a run, or the bytes of the file.
Cost = Literal["time", "size"]
#: Start of the name of the SQNR of one of several outputs: of all values, and of what varies.
OF_OUTPUT, CENTRED_OF_OUTPUT = "sqnr:", "sqnr_centred:"
#: Start of the name of the mAP at IoU 0.5, and of the IoU, of one class.
MAP_OF_CLASS, IOU_OF_CLASS = "map50:", "iou:"
#: Start of the name of a metric that a function of the user computes.
OF_FUNCTION = "metric:"


@dataclass(frozen=True)
class Measurement:
    """One number with what is needed to trust it.

    Attributes:
        value: The number. It may be infinite (SQNR of identical outputs), never NaN.
        unit: ``%``, ``points``, ``ms``, ``mJ``, ``bytes``, ``dB``, ``nats``, ``LSB``, ``images``,
            ``x`` (ratio), ``p``, ``parameters``, or ``unit`` and ``unit^2``, the outputs' own.
        count: Number of samples that it was measured on.
        low: Lower bound of the interval; None without an interval.
        high: Upper bound of the interval.
        interval: Kind of the interval, e.g. ``wilson 95 %``.
    """

    value: float
    unit: str
    count: int
    low: float | None = None
    high: float | None = None
    interval: str = ""

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ReportError("a measurement is NaN; measure again")
        if self.count < 0:
            raise ReportError(f"expected a sample count >= 0, got {self.count}")


@dataclass(frozen=True)
class Data:
    """The evaluation set.

    Attributes:
        name: Name of the data set and its part.
        sha256: SHA-256 of images and labels, after ``--limit``.
        count: Number of images or samples.
        class_names: One name for each class; empty if there are no classes.
        unit: ``images`` if they are pictures, else ``samples``.
    """

    name: str
    sha256: str
    count: int
    class_names: tuple[str, ...] = ()
    unit: Unit = "images"

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ReportError(f"expected an image count >= 0, got {self.count}")


@dataclass(frozen=True)
class Environment:
    """The machine that a report was made on.

    Attributes:
        cpu: Model of the CPU.
        cores: Number of cores that may be used.
        memory_bytes: Memory of the machine.
        system: Operating system, its release, and the architecture.
        versions: Versions of edgekit, Python and the packages that can change a result.
        machine_class: CPU model and ISA in one string; latencies are only compared within one
            class.
        isa: Instruction sets that matter for inference, e.g. ``avx2``, ``avx512_vnni``.
    """

    cpu: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    system: str
    versions: dict[str, str]
    machine_class: str


@dataclass(frozen=True)
class Place:
    """A machine that evaluated a part of the images.

    Attributes:
        host: Name of the machine.
        device: Resource that it offers as a worker of a cluster, e.g. ``device:pi5``; empty if it
            offers none.
        machine_class: CPU model and ISA in one string.
        isa: Instruction sets that matter for inference.
        versions: Versions of edgekit, Python and the packages that can change a result.
        shards: Number of shards that it evaluated.
    """

    host: str
    device: str
    machine_class: str
    isa: tuple[str, ...]
    versions: dict[str, str]
    shards: int = 0


@dataclass(frozen=True)
class Device:
    """The device that computed the outputs.

    Attributes:
        kind: ``gpu`` only where a GPU ran the model.
        name: Name of the GPU or the CPU.
        driver: Version of the GPU's driver; None on a CPU, or if it is not known.
        memory_bytes: Memory of the GPU; None on a CPU, or if it is not known.
    """

    kind: Literal["cpu", "gpu"]
    name: str
    driver: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Conditions:
    """State of the machine while latency was measured; None for a value that cannot be read.

    Attributes:
        clock_mhz: Lowest and highest mean clock of the cores.
        other_load: Number of cores that other programs used, on average.
        stolen: CPU time that a hypervisor gave to other machines, in percent.
        celsius: Temperature of the hottest zone.
        throttled: How often a core was slowed down because it was too hot.
    """

    clock_mhz: tuple[float, float] | None = None
    other_load: float | None = None
    stolen: float | None = None
    celsius: float | None = None
    throttled: int | None = None


@dataclass(frozen=True)
class Runtime:
    """The runtime that executed a model.

    Attributes:
        name: ``litert``, ``ort``, ``keras`` or ``tensorflow`` (a SavedModel).
        provider: The execution provider or delegate that ran, as the runtime reports it.
        threads: Number of threads that it was given.
        options: Runtime options that were set; for a GPU's provider, all that it reports.
        notes: What a reader should know, one sentence each.
        device: ``cpu`` or ``gpu``: the device that computed.
        emulated: Whether the arithmetic of another device was imitated; such outputs have no
            times.
    """

    name: str
    provider: str
    threads: int
    options: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    device: Literal["cpu", "gpu"] = "cpu"
    emulated: bool = False


@dataclass(frozen=True)
class ChangedImage:
    """An image for which the float model and an artifact predict other classes.

    Attributes:
        index: Index in the evaluation set, from 0.
        label: The right class.
        before: The class that the float model predicts.
        before_probability: The probability that the float model gives to it.
        now: The class that the artifact predicts.
        now_probability: The probability that the artifact gives to it.
        picture: Base64 of a small PNG; empty if the image cannot be shown.
    """

    index: int
    label: int
    before: int
    before_probability: float
    now: int
    now_probability: float
    picture: str = ""

    def __post_init__(self) -> None:
        if min(self.index, self.label, self.before, self.now) < 0:
            raise ReportError("a changed image has a negative index or class")
        if not (0 <= self.before_probability <= 1 and 0 <= self.now_probability <= 1):
            raise ReportError(f"changed image {self.index}: expected probabilities from 0 to 1")
        check_png(self.picture, f"changed image {self.index}")

    @property
    def change(self) -> Literal["lost", "gained", "still"]:
        """Whether the float model was right, the artifact is, or neither."""
        if self.before == self.label:
            return "lost"
        return "gained" if self.now == self.label else "still"


@dataclass(frozen=True)
class Changes:
    """Where an artifact predicts otherwise than the float model.

    Attributes:
        counts: (class of the float model, class of the artifact, number of images), for all
            changes, most images first.
        images: Some of the images, greatest loss of probability first.
    """

    counts: tuple[tuple[int, int, int], ...]
    images: tuple[ChangedImage, ...] = ()

    def __post_init__(self) -> None:
        for before, now, count in self.counts:
            if before < 0 or now < 0 or before == now or count < 1:
                raise ReportError(
                    f"expected counts of changes from one class to another, "
                    f"got {count} from {before} to {now}"
                )

    @property
    def total(self) -> int:
        """Images with another prediction."""
        return sum(count for _, _, count in self.counts)


@dataclass(frozen=True)
class Candidate:
    """A mixture of int8 and float tensors that was written as a file and run.

    Attributes:
        floats: Number of tensors that stay float.
        ms: Of the fastest of its runs, at batch 1 with one thread.
        value: What the budget bounds, on the samples of the search.
        expected: The same, expected of other samples like these, from how near predictions are to
            another class, beside how much scores moved; of ``sqnr`` the same number as ``value``.
        error: Standard error of that on as many other samples. The search asks for so much more
            than the budget.
        bytes: Of the model file; 0 in manifests of earlier versions.
        decided: Whether all integers were decided for these float tensors; else they are those of
            plain int8.
    """

    floats: int
    ms: float
    value: float
    expected: float
    error: float
    bytes: int = 0
    decided: bool = False

    @property
    def sure(self) -> float:
        """What the budget asks about: the worse of what was measured, and of what is expected of
        other samples less a standard error."""
        return min(self.value, self.expected - self.error)


@dataclass(frozen=True)
class BudgetRecord:
    """What an int8 artifact may lose, and how its mixture of int8 and float tensors was found.

    Attributes:
        asked: The option, such as ``--max-drop top1=0.5``.
        metric: The metric of ``compare`` that it bounds.
        least: The least value of the metric.
        data: Name of the validation set.
        sha256: SHA-256 of its samples, before preprocessing.
        searched: Number of its samples that candidates were measured on.
        target: The format in which candidates were written.
        candidates: All that were written, in that order; the first one has no more tensors in float
            than int8 needs.
        taken: The one that was taken.
        latency_ms: Median time of a run at batch 1 with one thread, in rounds that ran all files in
            turn: of ``float32``, of ``int8``, which is the first candidate, and of ``taken``.
        proof: The metric of this file, on the samples that the search did not see.
        minimized: What the search made small: ``time`` of a run, or ``size`` of the file.
        float32: The float32 file, measured as candidates are; None in manifests of earlier
            versions.
    """

    asked: str
    metric: str
    least: float
    data: str
    sha256: str
    searched: int
    target: str
    candidates: tuple[Candidate, ...]
    taken: Candidate
    latency_ms: dict[str, float]
    proof: Measurement
    minimized: Cost = "time"
    float32: Candidate | None = None


@dataclass(frozen=True)
class ArtifactResult:
    """All measurements of one artifact.

    Attributes:
        name: Folder name of the artifact; the gate finds the artifact by it.
        path: Path of the artifact, as it was given.
        format: Format of the model file: ``keras``, ``tflite`` or ``onnx``.
        precision: Precision of the numbers in it.
        sha256: SHA-256 of the model file.
        runtime: The runtime that ran it.
        metrics: Measurements by name: ``top1 top5 agreement top1_change mcnemar_p images_needed kl
            r2 r2_change truth_mse truth_mae sqnr sqnr_centred mse max_error max_error_share
            sqnr:OUTPUT sqnr_centred:OUTPUT size arena arena_persistent flash sram npu_share
            npu_cycles parameters peak_memory load_time latency_p50 latency_p90 latency_p99
            latency_ratio energy``; of a detector ``map map50 map75 map_small map_medium map_large
            map50:CLASS map_change map50_change matched50 matched90 score_error``; of a segmentation
            network ``miou pixel_accuracy iou:CLASS miou_change pixel_agreement``; ``metric:NAME``
            of a function of the user. A metric that was not measured is left out.
        correct: Base64 of the packed bits "top-1 right", image by image; empty without labels or
            classes.
        latency_ms: Raw samples at batch 1, in the order in which they were measured.
        latency_rounds: Number of rounds; each round ran all artifacts in turn.
        latency_warm_up: Samples at the start of each round that are left out of the metrics.
        manifest_sha256: SHA-256 of the artifact's ``manifest.json``, which names the SHA-256 of
            every file; empty for a model file without a manifest.
        changes: Predictions that differ from the float model's; None for the float model itself.
        places: The workers that evaluated, if not the machine of the report's environment.
        fidelity: Each output, compared with the output of the reference; empty in older reports.
        unstable: Whether the medians of the latency rounds are too far apart to be trusted.
        recorded: Name of the runner that a recording was made with; empty if nothing was recorded.
        budget: How its mixture of int8 and float tensors was found; None where no budget was given.
        box_changes: Boxes that differ from the float model's; None for the float model itself, and
            for what is no detector.
        mask_changes: Pixels that differ from the float model's; None for the float model itself,
            and for what is no segmentation network.
        curves: Precision over recall of a detector, class by class; empty without right boxes.
        confusion: Pixels by right and predicted class; None without right masks.
    """

    name: str
    path: str
    format: str
    precision: str
    sha256: str
    runtime: Runtime
    metrics: dict[str, Measurement]
    correct: str = ""
    latency_ms: tuple[float, ...] = ()
    latency_rounds: int = 0
    changes: Changes | None = None
    places: tuple[Place, ...] = ()
    latency_warm_up: int = 0
    manifest_sha256: str = ""
    fidelity: tuple[Fidelity, ...] = ()
    unstable: bool = False
    recorded: str = ""
    budget: BudgetRecord | None = None
    box_changes: BoxChanges | None = None
    mask_changes: MaskChanges | None = None
    curves: tuple[Curve, ...] = ()
    confusion: Confusion | None = None

    @property
    def timed_here(self) -> bool:
        """Whether its times, if any, are of this machine's CPU as those of artifacts are."""
        return self.runtime.device == "cpu" and not self.recorded

    def steady(self) -> npt.NDArray[np.float64] | None:
        """Latency in ms ``[rounds, samples]`` without the warm-up; None where there is none."""
        rounds, count = self.latency_rounds, len(self.latency_ms)
        if rounds < 1 or not count or count % rounds:
            return None
        if not 0 <= self.latency_warm_up < count // rounds:
            return None
        return np.array(self.latency_ms).reshape(rounds, -1)[:, self.latency_warm_up :]

    def correct_bits(self, count: int) -> npt.NDArray[np.bool_]:
        """Unpack ``correct`` to bool ``[count]``.

        Raises:
            ReportError: If it does not hold ``count`` bits.
        """
        try:
            packed = np.frombuffer(base64.b64decode(self.correct, validate=True), np.uint8)
        except ValueError as exc:
            raise ReportError(f"{self.name}: the per-image record is not base64 ({exc})") from None
        if len(packed) != (count + 7) // 8:
            raise ReportError(
                f"{self.name}: expected a per-image record of {count} bits, got {8 * len(packed)}"
            )
        return np.unpackbits(packed, count=count).astype(np.bool_)


def pack_bits(correct: npt.NDArray[np.bool_]) -> str:
    """Bool ``[N]`` to the text form of :attr:`ArtifactResult.correct`."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


@dataclass(frozen=True)
class ParityPair:
    """Outputs of the same integers on two sets of kernels.

    Attributes:
        left: Artifact and kernels.
        right: Artifact and kernels.
        agreement: Share of samples with the same top-1 class, in %.
        mean_lsb: Mean difference of an output number, in steps of the TFLite output.
        histogram: How many output numbers differ by 0, 1, 2, … steps; the last count is for that
            many steps or more.
    """

    left: str
    right: str
    agreement: Measurement
    mean_lsb: Measurement
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Parity:
    """Whether int8 TFLite and int8 ONNX are the same model, in numbers and in outputs.

    Attributes:
        numbers: Number of scales, zero points, weights and biases that were compared.
        differing: Number of those that differ.
        pairs: XNNPACK with TFLite's reference kernels, and each with onnxruntime.
    """

    numbers: int
    differing: int
    pairs: tuple[ParityPair, ...]


@dataclass(frozen=True)
class LabelFit:
    """Whether the labels belong to the samples and the reference.

    Attributes:
        accuracy: Accuracy of the reference, in %.
        chance: Share of predictions that are right by chance, in %.
        p: Probability that chance alone gives as many right predictions (binomial, one-sided).
        problem: ``chance`` where the reference is no better than chance, ``one class`` where all
            labels are one class; accuracy then says nothing about a deployable.
    """

    accuracy: float
    chance: float
    p: float
    problem: Literal["", "chance", "one class"] = ""


@dataclass(frozen=True)
class Accepted:
    """A value of a metric that people accepted, as a floor for all later baselines.

    Attributes:
        value: Value of the metric.
        unit: Unit of the metric.
        created: Date and time of the report that holds it, UTC, ISO 8601.
        reason: Why it was accepted; empty for the first baseline.
        reference: What the artifact was compared with.
    """

    value: float
    unit: str
    created: str
    reason: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Report(schema.Document):
    """A comparison, ready to be judged or drawn.

    Attributes:
        model_id: Name of the float model of all artifacts.
        data: The evaluation set.
        environment: The machine that it was measured on.
        artifacts: The artifacts that were compared, in the order of the command.
        reference: The model that outputs were compared with: the float Keras model, or what
            ``--reference`` named.
        created: Date and time, UTC, ISO 8601.
        command: The command line that wrote the report.
        settings: Options of the run, e.g. threads and rounds.
        warnings: What makes a metric less sure, one sentence each.
        parity: Comparison of the numbers of two int8 files, if it was asked for.
        conditions: State of the machine during the latency rounds, if it could be read.
        fit: Whether labels and reference fit; None without labels, and in older reports.
        origin: In a baseline: the values that were accepted first, by artifact and metric.
    """

    VERSION: ClassVar[int] = SCHEMA_VERSION
    ERROR: ClassVar[type[EdgekitError]] = ReportError
    WHAT: ClassVar[str] = "an edgekit report"

    model_id: str
    data: Data
    environment: Environment
    reference: ArtifactResult
    artifacts: tuple[ArtifactResult, ...]
    created: str
    command: str
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    parity: Parity | None = None
    conditions: Conditions | None = None
    fit: LabelFit | None = None
    origin: dict[str, dict[str, Accepted]] | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = [result.name for result in self.artifacts]
        if len(set(names)) != len(names):
            raise ReportError(f"two artifacts in the report share a name: {sorted(names)}")

    @property
    def reference_is_source(self) -> bool:
        """Whether the outputs were compared with the float model itself, on no other runner."""
        return not _a_runner(self.reference.name)

    @property
    def reference_in_words(self) -> str:
        """The model that the outputs were compared with, in words."""
        return _in_words(self.reference.name)

    @property
    def compared_with(self) -> str:
        """The same, whether it ran for this report or was recorded before."""
        return _in_words(self.reference.recorded or self.reference.name)


def _in_words(reference: str) -> str:
    return reference if _a_runner(reference) else "the float model"


def _a_runner(reference: str) -> bool:
    return ":" in reference  # as in ort:cuda:float16
