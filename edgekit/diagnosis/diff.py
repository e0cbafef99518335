"""Compare two forms of one float model, layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.base.progress import SILENT, Progress
from edgekit.data import feeds
from edgekit.data.boxes import Views
from edgekit.data.feeds import Samples
from edgekit.data.images import Split
from edgekit.diagnosis.bisection import (
    Agreement,
    Bisection,
    Bound,
    Outputs,
    bisect,
    same_classes,
)
from edgekit.diagnosis.measure import (
    ISOLATED,
    MODES,
    Factors,
    LayerRow,
    Sound,
    Verdict,
    blame,
    first_below,
    measure,
)
from edgekit.diagnosis.tensors import KerasTensors, OnnxTensors, Tensors, TfLiteTensors
from edgekit.graph import litert, onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.quantization.profiles import DEFAULT, PROFILES
from edgekit.records import encodings, signature
from edgekit.records.artifact import Artifact, Manifest
from edgekit.records.encodings import Encodings
from edgekit.records.schemes import SCHEMES
from edgekit.records.signature import Preprocessing, TensorSpec
from edgekit.runtimes import model_file
from edgekit.runtimes.model_file import ModelFile
from edgekit.sources import float_model, keras, saved_model
from edgekit.tasks import decode, detection, presets, segmentation

IMAGES = 32
#: Images by whose values Keras tensors are found.
_MATCHED = 8


@dataclass(frozen=True)
class LayerDiff:
    """Two models, layer by layer.

    Attributes:
        reference: Path as given.
        suspect: Path as given.
        images: How many samples.
        rows: In order of execution.
        tensors: How many tensors of real numbers the canonical graph has.
        computed: Layers whose tensor the reference lacks, so that it was computed from others.
        unjudged: Layers that the suspect has without all of their inputs, or not at all; empty if
            the isolated view was not asked for.
        verdict: The layer to blame; None if all are sound or the isolated view was not asked for.
        first_below: First layer below ``bound``, by mode; None where there is none.
        bound: In dB; None if not given.
        bisection: None if not asked for.
        graph_id: Identifier of the suspect's file, for Model Explorer.
        through_lite: Whether the reference, a SavedModel, a ``.tflite`` file or a model of Keras 3,
            ran as the float TFLite graph that it becomes.
    """

    reference: str
    suspect: str
    images: int
    rows: tuple[LayerRow, ...]
    tensors: int
    verdict: Verdict | None
    first_below: dict[str, str | None]
    bound: float | None
    graph_id: str
    computed: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    bisection: Bisection | None = None
    through_lite: bool = False

    @classmethod
    def of(
        cls,
        one: _Side,
        other: _Side,
        rows: tuple[LayerRow, ...],
        modes: Collection[str],
        bound: float | None,
        **more: Any,
    ) -> LayerDiff:
        """What the rows say of two models: which layer is to blame, and the first below a bound."""
        below = {} if bound is None else {mode: first_below(rows, mode, bound) for mode in modes}
        return cls(
            reference=str(one.path),
            suspect=str(other.path),
            rows=rows,
            verdict=blame(rows),
            first_below=below,
            bound=bound,
            **more,
        )


@dataclass(frozen=True)
class _Side:
    """One of the two models, as the command line names it."""

    path: Path
    artifact: Artifact | None
    source: str
    format: str
    precision: str

    @property
    def trained(self) -> bool:
        """Whether its weights were trained on, with fake quantization, from the float model."""
        if self.artifact is None or self.precision != "int8":
            return False
        record = self.artifact.manifest.quantization
        return self.format == "keras" or (record is not None and record.weights == "trained")

    @property
    def fitted(self) -> bool:
        """Whether its layers may make up for errors before them."""
        record = None if self.artifact is None else self.artifact.manifest.quantization
        return record is not None and record.weights in ("corrected", "fitted", "trained")


def diff(
    reference: Path,
    suspect: Path,
    *,
    dataset: str | None = None,
    images: int = IMAGES,
    modes: Collection[str] = MODES,
    bound: float | None = None,
    bisect_bound: Bound | None = None,
    source: Path | None = None,
    threads: int = 1,
    trust: bool = False,
    preprocessing: str | None = None,
    progress: Progress = SILENT,
) -> LayerDiff:
    """Compare two models of one float model, layer by layer.

    Args:
        reference: What is right: an artifact, or the Keras file, SavedModel or ``.tflite`` file
            that the suspect was made from.
        suspect: An artifact, or a ``.tflite`` or ``.onnx`` file of any maker.
        dataset: What :func:`edgekit.data.feeds.open_word` takes; labels are not used. Default
            ``fashion_mnist`` for the shipped model, needed for others.
        images: Use the first so many samples.
        modes: Some of :data:`MODES`.
        bound: In dB, to find the first layer below it.
        bisect_bound: If given, the layers that have to stay in float are looked for.
        source: The float model of both, if it is not where the manifests say; needed where the
            reference is neither it nor its float32 TFLite artifact.
        threads: Inside an operator.
        trust: Let code inside of the float model run.
        preprocessing: How the inputs of a file are made; needed for a suspect that is one.
        progress: Hears how far it is, and what loading the samples says.

    Raises:
        EdgekitError: If models, data or options do not fit together.
    """
    one, other = _side(reference), _suspect(suspect, preprocessing)
    assert other.artifact is not None
    for side in (one, other):
        if not SCHEMES[side.precision].layered:
            known = ", ".join(name for name, each in SCHEMES.items() if each.layered)
            raise InvalidOptionError(
                f"--layers takes {known}, got {side.path} in {side.precision}, whose rounding it "
                f"has no measure for; leave --layers out"
            )
    unknown = isinstance(other.artifact, ModelFile)
    if one.source != other.source and not unknown:
        raise InvalidModelError(
            f"{reference} and {suspect} have different float models as their source (sha256 "
            f"{one.source[:12]}…, {other.source[:12]}…); expected two of one model"
        )
    if one.trained != other.trained:
        first, second = (one, other) if one.trained else (other, one)
        raise InvalidModelError(
            f"{first.path} was trained with fake quantization: its weights are not those of "
            f"{second.path}; give the artifact that `python -m edgekit.qat` wrote as the reference"
        )
    if other.format == "keras" and (ISOLATED in modes or bisect_bound is not None):
        raise InvalidOptionError(
            f"{suspect} is a Keras model, which cannot be run operator by operator; give it "
            f"first, or pass --mode accumulated"
        )
    manifest = other.artifact.manifest
    dataset = dataset or model_file.default_data(other.artifact)
    canonical, orders = _canonical(one, other, source, trust=trust)
    graph = Graph(canonical)
    specs = litert.signature(canonical).inputs
    samples = _samples(dataset, specs, manifest, images, progress)

    def fed(prepare: Preprocessing) -> feeds.Feed:
        values = feeds.feed(samples, specs, prepare, slice(None))
        return {graph.named_inputs[name]: array for name, array in values.items()}

    suspect_feed = fed(manifest.preprocessing)
    expected = suspect_feed if one.artifact is None else fed(one.artifact.manifest.preprocessing)
    right = _open(one, graph, expected, threads, orders, trust=trust)
    wrong = _open(other, graph, suspect_feed, threads, orders)
    sound = Sound(
        canonical,
        factors=_factors(other),
        profile=PROFILES.get(manifest.device, PROFILES[DEFAULT]),
        floats=manifest.quantization.floats if manifest.quantization else (),
        threads=threads,
    )
    with progress.task("layers", len(samples)) as task:
        rows = measure(
            right,
            wrong,
            sound,
            expected,
            suspect_feed,
            modes=modes,
            reference_factors=_factors(one),
            half=other.precision == "float16",
            fitted=other.fitted,
            advance=task.advance,
        )
    bisection = None
    if bisect_bound is not None:
        with progress.task("bisecting", len(graph.operators) + 3, unit="runs") as task:
            bisection = bisect(
                right,
                wrong,
                sound,
                expected,
                suspect_feed,
                bisect_bound,
                rows=rows,
                agreement=_agreement(manifest),
                advance=task.advance,
            )
    return LayerDiff.of(
        one,
        other,
        rows,
        modes,
        bound,
        images=len(samples),
        tensors=len(sound.kinds),
        computed=tuple(row.layer for row in rows if row.name not in right.names),
        unjudged=_unjudged(rows, sound) if ISOLATED in modes else (),
        bisection=bisection,
        graph_id=wrong.graph_id,
        through_lite=one.artifact is None and isinstance(right, TfLiteTensors),
    )


def _agreement(manifest: Manifest) -> Agreement:
    """What ``--bisect 99%`` is of: boxes of a detector (IoU 0.5), pixels, or classes of samples."""
    specs = manifest.signature
    sizes = {spec.name: tuple(spec.sample) for spec in specs.outputs}
    decoding = manifest.decoding
    if decoding is not None:
        height, width = presets.input_size(specs.inputs)

        def same_boxes(reference: Outputs, outputs: Outputs) -> float:
            views = Views.whole(len(reference[0]), height, width)
            before, after = (
                decode.decode(
                    dict(zip(sizes, values, strict=True)), decoding, views, (height, width)
                )
                for values in (reference, outputs)
            )
            return detection.agreement(before, after)["matched50"].value

        return same_boxes
    if manifest.task != "segmentation":
        return same_classes
    (size,) = sizes.values()
    count = len(manifest.class_names)
    layout = segmentation.layout(
        size, count or segmentation.classes_of(size, presets.input_size(specs.inputs))
    )

    def same_pixels(reference: Outputs, outputs: Outputs) -> float:
        before, after = (values.reshape(len(values), -1) for (values,) in (reference, outputs))
        return segmentation.agreement(before, after, layout)[0]["pixel_agreement"].value

    return same_pixels


def _unjudged(rows: Sequence[LayerRow], sound: Sound) -> tuple[str, ...]:
    judged = {row.name for row in rows if row.excess is not None}
    return tuple(label for name, label in sound.labels.items() if name not in judged)


def _samples(
    dataset: str,
    specs: Sequence[TensorSpec],
    manifest: Manifest,
    limit: int,
    progress: Progress,
) -> Samples:
    """What a ``--data`` word names, without labels."""
    split: Split = "test" if dataset == "fashion_mnist" else "calibration"
    opened = feeds.open_word(dataset, split, progress=progress)
    if isinstance(opened, feeds.Inputs):
        samples: Samples = feeds.labelled(opened, specs)[0].head(limit)
    else:
        samples = feeds.images(opened, specs, manifest.preprocessing, manifest.class_names, limit)
    feeds.check(samples, specs)
    return samples


def _suspect(path: Path, preprocessing: str | None) -> _Side:
    """The second model; a file is taken for one that was made from the first."""
    prepare = None if preprocessing is None else signature.preprocessing(preprocessing)
    if not model_file.is_file(path) or path.suffix not in model_file.FORMATS:
        if prepare is not None:
            raise InvalidOptionError(
                f"{path} has its own preprocessing; give --preprocessing only with a file"
            )
        side = _side(path)
        if side.artifact is None:
            raise InvalidOptionError(
                f"{path} is no artifact; give the float model first, it is the reference"
            )
        return side
    artifact = model_file.load(path, prepare)
    manifest = artifact.manifest
    return _Side(path, artifact, artifact.sha256, manifest.format, manifest.precision)


def _side(path: Path) -> _Side:
    if path.is_file() or saved_model.is_saved_model(path):
        kind = float_model.kind_of(path)
        return _Side(path, None, saved_model.sha256_of(path), kind, "float32")
    artifact = Artifact.load(path)
    manifest = artifact.manifest
    source = artifact.sha256 if manifest.source is None else manifest.source.sha256
    return _Side(path, artifact, source, manifest.format, manifest.precision)


def _canonical(
    one: _Side, other: _Side, source: Path | None, *, trust: bool
) -> tuple[bytes, Mapping[str, tuple[int, ...]] | None]:
    """The float flatbuffer that both come from, and of an ONNX source the layout of its values."""
    assert other.artifact is not None
    if one.artifact is None or one.format == "keras":
        place = one.path
    elif other.trained:
        place = _trained_model(source, other.path)
    elif isinstance(other.artifact, ModelFile):
        raise InvalidOptionError(
            f"{other.path} does not name its float model; give the float model first"
        )
    elif one.format == "tflite" and one.precision == "float32" and not _of_onnx(other):
        return one.artifact.model_path.read_bytes(), None
    else:
        place, _, _ = float_model.find(other.artifact, source)
    origin = other.artifact.manifest.source
    if origin is None or other.trained:
        canonical, orders = float_model.graph_of(place, trust=trust)
    else:
        _check_layouts(one, other)
        canonical, orders = float_model.graph_of(
            place, trust=trust, shapes=origin.shapes, layout=origin.layout
        )
    if other.trained:
        expected = Encodings.load(other.artifact.path / encodings.FILE).graph_sha256
        if expected != hashlib.sha256(canonical).hexdigest():
            raise InvalidModelError(f"{other.path} was not exported from {place}")
    return canonical, orders


def _check_layouts(one: _Side, other: _Side) -> None:
    """Refuse two artifacts of one ONNX file whose tensors have other axes."""
    layouts = [
        side.artifact.manifest.source.layout
        for side in (one, other)
        if side.artifact is not None and side.artifact.manifest.source is not None
    ]
    if len(set(layouts)) > 1:
        raise InvalidOptionError(
            f"{one.path} and {other.path} were exported with different --layout, "
            f"{' and '.join(each or 'the default' for each in layouts)}; export one of them again"
        )


def _of_onnx(side: _Side) -> bool:
    """Whether an artifact was made from an ONNX file."""
    source = None if side.artifact is None else side.artifact.manifest.source
    return source is not None and Path(source.path).suffix == ".onnx"


def _trained_model(source: Path | None, path: Path) -> Path:
    """The artifact that quantization-aware training left."""
    if source is None or not source.is_dir():
        raise InvalidOptionError(
            f"{path} was trained with fake quantization; pass --reference with the artifact that "
            f"`python -m edgekit.qat` wrote"
        )
    return source


def _open(
    side: _Side,
    graph: Graph,
    feed: feeds.Feed,
    threads: int,
    orders: Mapping[str, tuple[int, ...]] | None,
    *,
    trust: bool = False,
) -> Tensors:
    path = side.path if side.artifact is None else side.artifact.model_path
    if side.format == "keras":
        model = keras.load(path, trust=trust)
        if keras.is_keras_2(model):
            return KerasTensors(model, graph, feeds.part(feed, slice(_MATCHED)))
    if side.artifact is None:
        return TfLiteTensors(graph.serialize(), graph, threads=threads)
    if side.format == "tflite":
        return TfLiteTensors(path.read_bytes(), graph, threads=threads)
    options = side.artifact.manifest.runtime_options
    return OnnxTensors(onnx.load(path), graph, threads=threads, options=options, orders=orders)


def _factors(side: _Side) -> Factors:
    if side.artifact is None or side.precision != "int8" or side.format == "keras":
        return {}
    if isinstance(side.artifact, ModelFile):
        return {}
    return Encodings.load(side.artifact.path / encodings.FILE).factors
