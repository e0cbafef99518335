"""Turn a float model into a TFLite or ONNX artifact."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base import outputs, words
from edgekit.base.errors import (
    EdgekitError,
    ExecutionError,
    FidelityError,
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
    MissingDependencyError,
    NoTfliteFormError,
)
from edgekit.base.progress import SILENT, Progress
from edgekit.base.text import percent
from edgekit.data import feeds
from edgekit.data.feeds import Feed, Inputs, Samples
from edgekit.graph import litert, masks, onnx, onnx_forms
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.pipeline import layers, microcontroller, proof
from edgekit.pipeline.calibration import (
    DEFAULT_METHOD,
    cache_folder,
    cached,
    cached_parts,
    choose,
    observe,
)
from edgekit.pipeline.options import Options
from edgekit.quantization import decisions, existing, mixture, profiles, weights
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.quantize import (
    CORRECTIONS,
    FEWEST_IMAGES,
    HELD_OUT,
    CalibrationSamples,
    Correction,
    Quantized,
    held_out,
    quantize,
    trained,
)
from edgekit.quantization.reconstruct import images_that_fit
from edgekit.quantization.table import METHODS, CalibrationTable
from edgekit.records import artifact, encodings, fidelity
from edgekit.records.artifact import (
    Artifact,
    CalibrationRecord,
    LayerPrecision,
    QuantizationRecord,
    RecipeRecord,
    Source,
)
from edgekit.records.fidelity import Fidelity
from edgekit.records.schemes import PRECISIONS, SCHEMES, USUAL, Scheme
from edgekit.records.signature import Signature, TensorSpec
from edgekit.sources import float_model
from edgekit.sources.float_model import FloatModel
from edgekit.sources.onnx_canonical import Converted
from edgekit.tasks.kind import check as check_task
from edgekit.writers import half, onnx_convert, onnx_dynamic, onnx_integers, tflite_integers

#: What is written; a target for a microcontroller is a TFLite file and C around it.
TARGETS = ("tflite", "onnx", "tflite-micro")
MICRO = "tflite-micro"
#: Target and precision.
File = tuple[str, str]
#: What is exported when no model is named.
DEFAULT_MODEL = float_model.SHIPPED
#: Held-out images that a written file is judged on, at the most.
_HELD = 64
_FAILED = ("poor", "dead")
_UNJUDGED = (
    "nothing could be judged, since no calibration samples are at hand; "
    "`python -m edgekit.compare` judges the file"
)
#: Why layers of int8-dynamic compute in float.
_SLOW = {
    "tflite": "LiteRT has no kernel, or no fast one, that rounds what they read",
    "onnx": "onnxruntime's ConvInteger of int8 weights is slower than its convolution in float",
}
#: Tensors that stay float that are named in a note.
_NAMED = 6
#: Images on which activations are measured before they become float16.
_WATCHED_IMAGES = 64
#: Calibration images that layers are fitted to, at the most.
MOST_IMAGES = 1024


@dataclass(frozen=True)
class _Written:
    """Content and signature of a model file, and the notes about it."""

    content: bytes
    signature: Signature
    canonical: bytes
    quantized: Quantized | None = None
    table: CalibrationTable | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Calibration:
    """The calibration samples, or the table that was made of them.

    Attributes:
        opened: The samples that ``word`` names; None if only a table is at hand.
        table: The table that ``--calibration`` names; None if it names samples.
        word: The name of the samples, as ``--calibration`` takes it.
        images: The samples in the form that the model takes.
        progress: Is told how far the calibration is.
    """

    opened: data.Opened | Inputs | None
    table: CalibrationTable | None
    word: str
    method: str
    images: Samples | None = None
    progress: Progress = SILENT

    def fitted(self, source: FloatModel) -> _Calibration:
        """The same, with the samples in the form that the model takes.

        Raises:
            InvalidDataError: If the table was made of other samples.
        """
        if self.opened is None:
            return self
        table = self.table
        images = source.samples(self.opened, None if table is None else table.count)
        if table is not None and images.sha256 != table.data_sha256:
            raise InvalidDataError(
                f"the calibration table was made from other images than {self.word} (sha256 "
                f"{table.data_sha256[:12]}…, these have {images.sha256[:12]}…); calibrate again, "
                f"or name its images with --data"
            )
        return replace(self, images=images)


def export(
    model: Path | None = None,
    options: Options | None = None,
    *,
    target: str,
    precision: str,
    out: Path | None = None,
    force: bool = False,
    mix: Mixing | None = None,
    progress: Progress = SILENT,
) -> Artifact:
    """Write one deployable of a float model.

    Args:
        model: As :func:`edgekit.sources.float_model.load` takes it; default the shipped model.
        options: How it is written; default :class:`Options` as it is.
        target: ``tflite``, ``onnx`` or ``tflite-micro``.
        precision: One of :data:`edgekit.records.schemes.PRECISIONS`.
        out: Folder; default ``exports/MODEL_ID-TARGET-PRECISION``.
        force: Replace ``out`` if it exists.
        mix: For int8: chooses which tensors stay float, and proves the file.
        progress: Hears how far it is.

    Raises:
        FidelityError: If a file with int8 weights is dead or poor, or ``mix`` refuses it; nothing
            is written then.
        EdgekitError: On a bad option, model or calibration set; nothing is written then.
    """
    if out is not None:
        outputs.check_free(out, force=force)
    pipeline = opened(model, [(target, precision)], options or Options(), progress)
    place = out or Path("exports") / f"{pipeline.source.model_id}-{target}-{precision}"
    outputs.check_free(place, force=force)
    file = target, precision
    if mix is not None:
        pipeline = mix.choose(pipeline, [file])
    proved = {file: pipeline.proved(target, precision)}
    if mix is not None:
        proved = mix.prove(proved)
    return proved[file].write(place, force=force)


def export_all(
    model: Path | None = None,
    options: Options | None = None,
    *,
    targets: Sequence[str],
    precisions: Sequence[str],
    out: Path | None = None,
    force: bool = False,
    mix: Mixing | None = None,
    progress: Progress = SILENT,
) -> tuple[Artifact, ...]:
    """Write several deployables of a float model, which is loaded, converted and quantized once.

    Args:
        model: As :func:`export` takes it.
        options: How they are written; what is for int8 only is used for the int8 files.
        targets: One or more of ``tflite``, ``onnx`` and ``tflite-micro``.
        precisions: One or more of :data:`edgekit.records.schemes.PRECISIONS`.
        out: A folder for the artifacts, in which each is called ``MODEL_ID-TARGET-PRECISION``;
            default ``exports``.
        force: Replace the artifacts that are there.
        mix: For int8: chooses which tensors stay float, the same for all files, and proves them.
        progress: Hears how far it is.

    Raises:
        FidelityError: If files with int8 weights are dead or poor; the other files are good, and
            are written. ``written`` of the error names their folders. If ``mix`` refuses a file,
            none is.
        EdgekitError: As :func:`export`; nothing is written then. A full disk leaves nothing too.
    """
    files = [(target, precision) for target in targets for precision in precisions]
    if not files or len(set(files)) < len(files):
        raise InvalidOptionError(
            f"expected each target and precision once, got {', '.join(targets) or 'no target'} in "
            f"{', '.join(precisions) or 'no precision'}"
        )
    pipeline = opened(model, files, options or Options(), progress)
    folder, name = out or Path("exports"), pipeline.source.model_id
    places = {file: folder / "-".join((name, *file)) for file in files}
    for place in places.values():
        outputs.check_free(place, force=force)
    if mix is not None:
        pipeline = mix.choose(pipeline, files)
    proved, refused = dict[File, Proved](), []
    for file in files:
        try:
            proved[file] = pipeline.proved(*file)
        except FidelityError as exc:
            refused.append(exc)
    if mix is not None:
        proved = mix.prove(proved)
    written = artifact.write_all(
        {places[file]: (result.files, dict(result.manifest)) for file, result in proved.items()},
        force=force,
    )
    if refused:
        older = [
            str(place) for file, place in places.items() if file not in proved and place.exists()
        ]
        raise FidelityError(
            "; ".join(error.what for error in refused)
            + (f"; what {', '.join(older)} holds is of an earlier run" if older else ""),
            "; ".join(dict.fromkeys(error.fix for error in refused)),
            [deployable.path for deployable in written],
        )
    return written


def format_of(target: str) -> str:
    """Format of the model file of a target."""
    return "tflite" if target == MICRO else target


def usual_targets(profile: DeviceProfile) -> list[str]:
    """What is written for a device where no target is named."""
    known = [target for target in TARGETS if target in profile.precisions]
    return [target for target in known if (target == MICRO) == (profile.name == MICRO)]


def opened(
    model: Path | None,
    files: Sequence[tuple[str, str]],
    options: Options,
    progress: Progress,
) -> Pipeline:
    """Check the options, then open the model and its calibration samples."""
    profile = _checked(files, options)
    samples = None
    if options.calibration is not None:
        samples = _read_calibration(options.calibration, options, progress)
    source = float_model.load(
        model,
        preprocessing=options.preprocessing,
        trust=options.trust,
        shapes=options.shapes,
        layout=options.layout,
    )
    if source.integers is not None:
        _check_existing(model, files, options)
    check_task(options.task, source.outputs)
    if (options.task or source.task) == "detection":
        source.decoded(options.decoding)
    ranges = any(SCHEMES[precision].ranges for _, precision in files)
    if ranges and samples is None and source.encodings is None and source.integers is None:
        word = float_model.data_word(None, model, option="--calibration")
        samples = _read_calibration(word, options, progress)
    if samples is not None:
        samples = samples.fitted(source)
    for _, precision in files if source.encodings is not None else ():
        if SCHEMES[precision].integers and SCHEMES[precision].activations != "int8":
            raise InvalidOptionError(
                f"{model} was trained for int8; expected --precision int8 of it, or a float one, "
                f"got {precision}"
            )
    if source.encodings is not None and ranges:
        for option, value in options.for_int8():
            if value is not None and _decides(option):
                raise InvalidOptionError(
                    f"{option} is for float models; {model} was trained with encodings of its own"
                )
    return Pipeline(source, profile, samples, options, tuple(files))


def _check_existing(model: Path | None, files: Sequence[tuple[str, str]], options: Options) -> None:
    """Refuse options and files that an int8 ONNX source cannot have."""
    for option, value in options.for_int8():
        if value is not None and _decides(option):
            raise InvalidOptionError(
                f"{option} is for float models; {model} is int8 already, and its integers are "
                f"taken over; leave it out"
            )
    for target, precision in files:
        if (format_of(target), precision) == ("tflite", "int8"):
            continue
        why = (
            "its activations are ranges and no operators any more, so that it has no float form; "
            "export the float model that it comes from"
            if precision != "int8"
            else "it is int8 ONNX already; pass the file itself to compare, parity and benchmark"
        )
        raise InvalidOptionError(
            f"{model}: expected --target tflite --precision int8 of a file that is int8 already, "
            f"got {target} in {precision}: {why}"
        )


#: Options of int8 that say how integers are found.
_DECIDED = (
    "--calibration",
    "--data",
    "--method",
    "--leave-float",
    "--precision-of",
    "--recipe",
    "--correction",
)
#: Those that a file with int8 weights has a use for even if it has no ranges.
_JUDGING = ("--calibration", "--allow-dead", "--allow-poor")


def _decides(option: str) -> bool:
    return option.split()[0] in _DECIDED


def _checked(files: Sequence[tuple[str, str]], options: Options) -> DeviceProfile:
    """Check that all options are known and fit the files; return the device's profile."""
    for target, precision in files:
        words.one_of("target", target, TARGETS)
        words.one_of("precision", precision, PRECISIONS)
        why = SCHEMES[precision].refused.get(format_of(target))
        if why is not None:
            raise InvalidOptionError(
                f"expected another --target for {precision}, got {target}: {why}"
            )
    words.one_of("correction", options.correction, CORRECTIONS)
    if options.method is not None:
        words.one_of("method", options.method, METHODS)
    floats = [line for line in options.lines() if line.precision != "int8"]
    if options.strict and floats:
        raise InvalidOptionError(
            f"--strict lets no operator compute in float, and {floats[0].option} "
            f"{floats[0].pattern} asks for some; leave one of them out"
        )
    if options.layout and all(format_of(target) != "tflite" for target, _ in files):
        raise InvalidOptionError(
            f"--layout {options.layout} is for TFLite made of an .onnx file, got --target "
            f"{files[0][0]}, which keeps the axes of its source; leave it out"
        )
    profile = profiles.profile(options.device)
    for target, precision in files:
        if precision not in profile.precisions.get(target, ()):
            can = "; ".join(f"{key} in {', '.join(n)}" for key, n in profile.precisions.items())
            why = profile.about
            if precision not in USUAL and target in profile.precisions:
                why += f"; {precision} was not tried there"
            raise InvalidOptionError(
                f"device {profile.name} takes {can}, got {target} in {precision} ({why})"
            )
    ranges = any(SCHEMES[precision].ranges for _, precision in files)
    judged = any(SCHEMES[precision].integers for _, precision in files)
    watched = ("onnx", "float16") in files
    for option, value in options.for_int8():
        if value is None or ranges or (option in _JUDGING and judged):
            continue
        if option == "--correction" and judged and options.calibration is not None:
            continue
        if option == "--calibration" and watched:
            continue
        if option == "--correction" and judged:
            raise InvalidOptionError(
                "--correction is for int8, or together with --calibration; without samples weights "
                "are rounded to the nearest"
            )
        raise InvalidOptionError(f"{option} is for int8; {files[0][1]} has no ranges")
    calibration = options.calibration
    if calibration is not None and calibration.endswith(".json") and not ranges:
        use = "float16 needs images to see what overflows"
        if judged:
            use = "without ranges, layers are fitted to images"
        raise InvalidOptionError(
            f"{use}, got the table {calibration}; pass fashion_mnist or FILE.npz"
        )
    return profile


@dataclass(frozen=True)
class Proved:
    """A file that was read back, run and judged, with its manifest."""

    files: Mapping[str, bytes | Path]
    manifest: Mapping[str, Any]

    def write(self, out: Path, *, force: bool) -> Artifact:
        """Write it as an artifact."""
        return artifact.write(out, dict(self.files), dict(self.manifest), force=force)


class Mixing(Protocol):
    """Chooses which tensors of int8 files stay float, and proves that it chose well."""

    def choose(self, pipeline: Pipeline, files: Sequence[File]) -> Pipeline:
        """The pipeline with its choice in it (:meth:`Pipeline.leaving`).

        Args:
            pipeline: Ready to quantize.
            files: What will be written.

        Raises:
            FidelityError: If no choice is good enough.
        """

    def prove(self, files: Mapping[File, Proved]) -> dict[File, Proved]:
        """The files that were made of the choice, with what their manifests say of it.

        Raises:
            FidelityError: If one of them is not good enough.
        """


@dataclass
class Pipeline:
    """All steps from a float model to its deployables.

    Each step that several files share runs once: the float graph, the calibration table, the
    integers and the float ONNX model.

    Attributes:
        source: The float model.
        profile: The device.
        calibration: The calibration samples, or their table.
        options: How files are written.
        files: What will be written, as far as it is known.
    """

    source: FloatModel
    profile: DeviceProfile
    calibration: _Calibration | None
    options: Options
    files: tuple[File, ...] = ()
    _decided: dict[str, Quantized] = field(default_factory=dict)
    _mixed: Mapping[str, LayerPrecision] = field(default_factory=dict)

    @property
    def _with_images(self) -> _Calibration | None:
        """What has samples to run, which a table without its images has not."""
        calibration = self.calibration
        return None if calibration is None or calibration.images is None else calibration

    @functools.cached_property
    def converted(self) -> Converted:
        """The float graph of an ONNX source, and the layout of its tensors."""
        return self.source.converted()

    @functools.cached_property
    def canonical(self) -> bytes:
        """The float graph as a flatbuffer."""
        of_onnx = self.source.kind == "onnx"
        content = self.converted.content if of_onnx else self.source.canonical()
        _check_outputs(litert.signature(content))
        return content

    @functools.cached_property
    def merged(self) -> bytes:
        """The same as float files have it: what is spelled out for int8 kernels is one operator."""
        return _merged(self.canonical)

    @functools.cached_property
    def tables(self) -> tuple[CalibrationTable, CalibrationTable | None]:
        """Statistics and ranges of :attr:`canonical`: of all calibration samples, and of those
        that do not judge where the same pass found them."""
        assert self.calibration is not None  # opened() has seen to it
        return _tables(self.calibration, self.canonical, self.source)

    @property
    def table(self) -> CalibrationTable:
        """Statistics and ranges of :attr:`canonical`."""
        return self.tables[0]

    @functools.cached_property
    def asked(self) -> layers.Choice:
        """The tensors that the user lets stay float, and why.

        Raises:
            InvalidOptionError: If a name is of no layer, or of several.
        """
        recipe = self.options.recipe
        return layers.resolve(
            self.canonical, self.options.lines(), "" if recipe is None else recipe.option
        )

    def _quantized(self, precision: str, floats: Mapping[str, str]) -> Quantized:
        """Encodings and integers of a precision with ranges, with more tensors in float than the
        user asked for."""
        asked = self.asked
        if asked.after and SCHEMES[precision].activations != "int8":
            option = next(iter(asked.after.values())).removeprefix(layers.ASKED_BY)
            raise InvalidOptionError(
                f"{option}: float32-after is for int8, got --precision {precision}; take float32"
            )
        profile = self.profile.deciding(precision)
        quantized = self._by_integers(profile, {**floats, **asked.decided})
        return mixture.leave(quantized, self.canonical, asked.after) if asked.after else quantized

    def _by_integers(self, profile: DeviceProfile, left: Mapping[str, str]) -> Quantized:
        """Encodings and integers by calibration samples, or those that the source has."""
        if self.source.integers is not None:
            return _existing(self.source, self.converted, profile)
        if self.source.encodings is not None:
            return trained(self.canonical, self.source.encodings, profile=profile)
        assert self.calibration is not None  # opened() has seen to it
        return _decide(
            self.canonical,
            *self.tables,
            self.calibration,
            self.source,
            profile,
            self.options.correction,
            narrow=self.options.method is None and self.table.method == DEFAULT_METHOD,
            strict=self.options.strict,
            left=left,
        )

    def integers(self, precision: str) -> Quantized:
        """Encodings and integers of a precision, the same for every format."""
        if precision not in self._decided:
            profile = self.profile.deciding(precision)
            ranges = SCHEMES[precision].ranges
            if ranges:
                _ = self.asked  # what is wrong with it is said before anything runs
            if ("onnx", precision) in self.files and ranges:
                _ = self.layers_onnx  # meanwhile
            if ranges:
                self._decided[precision] = self._quantized(precision, {})
            elif self._by_samples(precision):
                self._decided[precision] = self._by_integers(profile, {})
            else:
                self._decided[precision] = weights.decide(self.canonical, profile=profile)
        return self._decided[precision]

    def _by_samples(self, precision: str) -> bool:
        """Whether integers are decided with calibration samples: those that have no ranges are
        rounded to the nearest without any."""
        return SCHEMES[precision].ranges or self._with_images is not None

    @property
    def quantized(self) -> Quantized:
        """Encodings and integers of int8."""
        return self.integers("int8")

    def leaving(self, floats: Mapping[str, str], *, trial: bool = False) -> Pipeline:
        """The same with more tensors of int8 in float; the integers of others stay as they are.

        Args:
            floats: Tensors of :attr:`canonical`, and why each stays float.
            trial: Let a file be dead or poor.
        """
        pipeline = copy.copy(self)
        mixed = mixture.leave(self.quantized, self.canonical, floats)
        pipeline._decided = {**self._decided, "int8": mixed}
        after: dict[str, LayerPrecision] = dict.fromkeys(floats, "float32-after")
        pipeline._mixed = {**self._mixed, **after}
        if self.calibration is not None and self.calibration.images is not None:
            pipeline.held = self.held  # of all mixtures, so that the float model runs once
        if trial:
            pipeline.options = replace(self.options, allow_dead=True, allow_poor=True)
        return pipeline

    def deciding(self, floats: Mapping[str, str]) -> Pipeline:
        """The same with more tensors of int8 in float, and its integers decided anew for that, as
        ``--leave-float`` does.

        Args:
            floats: As :meth:`leaving` takes it.
        """
        pipeline = copy.copy(self)
        pipeline._decided = {**self._decided, "int8": self._quantized("int8", floats)}
        pipeline._mixed = dict.fromkeys(floats, "float32")
        return pipeline

    def _layers(self, precision: str) -> dict[str, LayerPrecision]:
        """The precision of layers that the user or a mixture chose, by name."""
        if not SCHEMES[precision].ranges:
            return {}
        mixed = self._mixed if precision == "int8" else {}
        return layers.named(self.canonical, {**mixed, **self.asked.precisions()})

    def feed(self, samples: Samples, chosen: npt.NDArray[np.int64]) -> Feed:
        """Some samples, preprocessed, by tensor of :attr:`canonical`."""
        specs = litert.signature(self.canonical).inputs
        return _by_tensor(self.source, Graph(self.canonical), specs, samples, chosen)

    @functools.cached_property
    def held(self) -> tuple[Feed, Mapping[str, npt.NDArray[Any]]]:
        """Calibration samples that judge files with int8 weights, and the outputs of the float
        model."""
        assert self.calibration is not None and self.calibration.images is not None  # _judged()
        images = self.calibration.images
        judging = np.arange(len(images))
        if len(images) >= FEWEST_IMAGES:
            judging = held_out(len(images))[1]
        samples = _some(self.source, self.canonical, images, _spread(judging, _HELD))
        return samples, proof.of_source(self.source, self.canonical, samples)

    @functools.cached_property
    def layers_onnx(self) -> Future[Any] | None:
        """:attr:`canonical` as an ``onnx.ModelProto``, converted by another thread while integers
        are decided; None where it has other constants than those of layers, which become other
        numbers in the end."""
        graph = Graph(self.canonical)
        if self.source.kind == "onnx" or not _has_layers_only(graph):
            return None
        pool = ThreadPoolExecutor(1)
        converted = pool.submit(onnx_convert.from_tflite, graph.serialize())
        pool.shutdown(wait=False)
        return converted

    @functools.cached_property
    def float_onnx(self) -> Any:
        """The float graph as an ``onnx.ModelProto``."""
        model = onnx_convert.from_tflite(self.merged)
        onnx_convert.use_signature_names(model, Graph(self.canonical))
        return model

    def proved(self, target: str, precision: str) -> Proved:
        """One file, read back, run and judged.

        Raises:
            FidelityError: If a file with int8 weights is dead or poor.
            ExecutionError: If the file does not hold or do what it should.
            InvalidModelError: If the model has no form in the target; names what can be exported.
        """
        source, profile, options = self.source, self.profile, self.options
        whole, target = target, format_of(target)
        try:
            written = self._written(target, precision)
        except NoTfliteFormError as exc:
            raise self._refused(exc, target) from None
        quantized, table = written.quantized, written.table
        numbers = 0 if quantized is None else quantized.stored.numbers()
        execution = proof.execution(
            written.content, written.signature, source, target, precision, profile, numbers
        )
        if quantized is not None and SCHEMES[precision].weights == "int4":
            execution = replace(execution, eight_bits=_eight_bits(quantized))
        if options.strict and SCHEMES[precision].ranges and execution.floats:
            raise ExecutionError(
                f"--strict: {len(execution.floats)} operators of the {target} {precision} model "
                f"compute in float: {', '.join(execution.floats)}; replace them in the model, or "
                f"export without --strict"
            )
        judged, sentences = self._judged(written, target, precision)
        overruled = options.overruled
        if SCHEMES[precision].ranges:
            overruled += self.asked.overruled
        computed = f"operators that compute in float: {', '.join(execution.floats)}"
        if SCHEMES[precision].dynamic:
            computed = (
                f"layers that compute in float with int8 weights, as in int8-weights, since "
                f"{_SLOW[target]}: {', '.join(execution.floats)}"
            )
        files: dict[str, bytes | Path] = {f"model.{target}": written.content}
        if quantized is not None:
            files[encodings.FILE] = quantized.encodings.dumps().encode()
        micro = None
        if whole == MICRO:
            samples = None if self._with_images is None else self.held[0]
            beside, micro, said = microcontroller.files(
                written.content,
                written.signature,
                source.preprocessing,
                samples,
                name=f"{source.model_id} {precision}",
            )
            files |= beside
            sentences += said
        return Proved(
            files,
            {
                "model_id": source.model_id,
                "format": target,
                "precision": precision,
                "model_file": f"model.{target}",
                "signature": written.signature,
                "preprocessing": source.preprocessing,
                **source.judged(written.canonical, options.task, options.decoding),
                "source": source.source,
                "device": profile.name,
                "calibration": None
                if table is None
                else CalibrationRecord(table.data, table.data_sha256, table.count, table.method),
                "quantization": None
                if quantized is None
                else QuantizationRecord(
                    quantized.way,
                    {trial.way: trial.sqnr for trial in quantized.trials},
                    {layer.layer: layer.pairs for layer in quantized.saturating},
                    dict(quantized.floats),
                    judged,
                    quantized.weights,
                    layers=self._layers(precision),
                ),
                "recipe": None
                if options.recipe is None
                else RecipeRecord(options.recipe.path, options.recipe.sha256, overruled),
                "execution": execution,
                "micro": micro,
                "runtime_options": profile.options(target, precision),
                "command": options.command,
                "notes": (
                    *source.notes,
                    *overruled,
                    *written.notes,
                    *([computed] if execution.floats else []),
                    *sentences,
                ),
            },
        )

    def _refused(self, error: NoTfliteFormError, target: str) -> InvalidModelError:
        """What to say of an ONNX file that TFLite has no form for, and what can be had: what was
        exported for trial."""
        whole = []
        for precision in ("float32", "float16") if self.source.integers is None else ():
            try:
                self.proved("onnx", precision)
            except EdgekitError:
                continue
            whole.append(precision)
        sentence = str(error)
        if target == "onnx":
            sentence = (
                f"{error.path} cannot become int8 ONNX, whose integers are decided in TFLite's "
                f"operators: {error.why}; replace it in the model"
            )
        if whole:
            sentence += f", or export with --target onnx --precision {','.join(whole)}"
        return InvalidModelError(sentence)

    def _judged(
        self, written: _Written, target: str, precision: str
    ) -> tuple[tuple[Fidelity, ...], list[str]]:
        """Judge the outputs of a file: fidelity of one with int8 weights, and notes."""
        source, options, scheme = self.source, self.options, SCHEMES[precision]
        images = None if self.calibration is None else self.calibration.images
        if scheme.integers and images is not None:
            apart = len(images) >= FEWEST_IMAGES
            judged = proof.judge(
                written.content,
                written.signature,
                source,
                target,
                precision,
                self.profile,
                *self.held,
            )
            return judged, _verdict(
                judged,
                f"{precision} {target}",
                layered=scheme.layered,
                rescues=lambda: _rescues(source, options, written.canonical, scheme, apart=apart),
                apart=apart,
                dead=options.allow_dead,
                poor=options.allow_poor,
            )
        few = None
        if images is not None and (target, precision) == ("onnx", "float16"):
            chosen = _spread(np.arange(len(images)), proof.SAMPLES)
            few = _some(source, written.canonical, images, chosen)
        notes = [
            proof.check_outputs(
                written.content,
                written.signature,
                written.canonical,
                source,
                target,
                precision,
                few,
            )
        ]
        return (), [*notes, *([_UNJUDGED] if scheme.integers else [])]

    def _written(self, target: str, precision: str) -> _Written:
        same_format = self.source.kind == "onnx" and target == "onnx"
        if same_format and not SCHEMES[precision].integers:
            return _of_onnx_source(self.source, precision, self._with_images)
        written = self._of_canonical(target, precision)
        if self.source.kind == "onnx" and not same_format:
            differences = _other_than_in_onnx(
                onnx.signature(self.source.model), written.signature, self.source.source
            )
            written = replace(written, notes=(*differences, *written.notes))
        return written

    def _of_canonical(self, target: str, precision: str) -> _Written:
        """Write a file of :attr:`canonical`."""
        if SCHEMES[precision].integers:
            has_encodings = self.source.encodings is not None or self.source.integers is not None
            without_table = has_encodings or not self._by_samples(precision)
            table = None if without_table else self.table
            return _make_int8(
                self.source,
                target,
                precision,
                self.canonical,
                table,
                self.integers(precision),
                self.profile,
                self.layers_onnx if SCHEMES[precision].ranges and target == "onnx" else None,
            )
        if precision == "float16":
            name, size = litert.largest_weight(self.canonical)
            if size > float(np.finfo(np.float16).max):
                raise InvalidModelError(
                    f"expected weights that float16 can hold, up to 65504, got {size:.3g} in "
                    f"{name}; export it in float32"
                )
        if target == "tflite":
            content = self.merged
            if precision == "float16":
                graph = Graph(content)
                graph.halve(masks.of_tflite(graph))
                content = graph.serialize()
            return _Written(content, litert.signature(content), self.canonical)
        model, signature = self.float_onnx, onnx.signature(self.float_onnx)
        notes: tuple[str, ...] = ()
        if precision == "float16":
            model, note = _halved(model, self._with_images, self.source, signature.inputs)
            notes = (note,)
        return _Written(model.SerializeToString(), signature, self.canonical, notes=notes)


def _merged(content: bytes) -> bytes:
    """A float graph in which what is spelled out for int8 kernels is one operator."""
    graph = Graph(content)
    return graph.serialize() if graph.merge_hard_swishes() else content


def _read_calibration(word: str, options: Options, progress: Progress) -> _Calibration:
    """Open calibration samples, or a table that ``python -m edgekit.calibrate`` wrote."""
    dataset, method = options.dataset, options.method
    if not word.endswith(".json"):
        if dataset is not None:
            raise InvalidOptionError(
                f"--data names the images of a calibration table; --calibration {word} is images "
                f"already"
            )
        opened = feeds.open_word(word, "calibration", progress=progress)
        return _Calibration(opened, None, word, method or DEFAULT_METHOD, progress=progress)
    table = CalibrationTable.load(Path(word))
    name = dataset or table.data
    path = data.path_of(name)
    if dataset is None and path is not None and not path.exists():
        return _Calibration(None, table, name, method or table.method, progress=progress)
    typed = dataset is not None  # what stands in the table was typed by nobody
    origin = None if typed else Path(word)
    opened = feeds.open_word(name, "calibration", read_from=origin, progress=progress)
    return _Calibration(opened, table, name, method or table.method, progress=progress)


def _of_onnx_source(
    source: FloatModel, precision: str, calibration: _Calibration | None
) -> _Written:
    """Write float ONNX of an ONNX source; the file keeps the source's graph."""
    original = bytes(source.model.SerializeToString())
    signature = onnx.signature(source.model)
    _check_outputs(signature)
    if precision == "float32":
        return _Written(original, signature, original)
    model, note = _halved(source.prepared(), calibration, source, signature.inputs)
    return _Written(model.SerializeToString(), signature, original, notes=(note,))


def _other_than_in_onnx(source: Signature, tflite: Signature, record: Source) -> list[str]:
    """One sentence for each input and output that TFLite has in another form than ONNX."""
    notes = []
    turned = False
    inputs = {spec.name: spec for spec in tflite.inputs}
    for spec in source.inputs:
        written = inputs[spec.name]
        if written.sample != spec.sample:
            turned = True
            notes.append(
                f"{spec.name} takes pictures with their channels last, {list(written.shape)}; in "
                f"the ONNX file it is {list(spec.shape)}"
            )
    outputs = {spec.name: spec for spec in tflite.outputs}
    last = record.turned(source, "tflite")
    for spec in source.outputs:
        if spec.name in last:
            notes.append(
                f"{spec.name} has its channels last, {list(outputs[spec.name].shape)}; in the ONNX "
                f"file it is {list(spec.shape)}"
            )
    channels_first = [
        spec.name for spec in source.outputs if len(spec.shape) == 4 and spec.name not in last
    ]
    if turned and channels_first:
        notes.append(f"{', '.join(channels_first)} keeps its channels where the ONNX file has them")
    if record.layout == "keep":
        notes.append("inputs and outputs have the axes of the ONNX file (--layout keep)")
    for spec, written in [
        *((spec, inputs[spec.name]) for spec in source.inputs),
        *((spec, outputs[spec.name]) for spec in source.outputs),
    ]:
        if not spec.is_real and spec.dtype != written.dtype:
            notes.append(f"{spec.name} is {written.dtype}, in the ONNX file {spec.dtype}")
    return notes


def _check_outputs(signature: Signature) -> None:
    """Refuse an output that has no value for each sample."""
    several = any(spec.shape[:1] == (-1,) for spec in signature.inputs)
    for output in signature.outputs:
        if not output.shape and several:
            raise InvalidModelError(
                f"expected one value of {output.name} for each sample, got one number for all; "
                f"give the output a batch axis"
            )


def _halved(
    model: Any,
    calibration: _Calibration | None,
    source: FloatModel,
    specs: Sequence[TensorSpec],
) -> tuple[Any, str]:
    """An ONNX model in float16, and what to say about it.

    What would overflow is found by calibration samples; without them by random ones, as large as
    bytes are where the model runs on such numbers, which is not so if they become indices.
    """
    keep, remark = onnx_forms.relative(model), ""
    if calibration is not None:
        assert calibration.images is not None  # export() has refused a table
        feeds.check(calibration.images, specs)
        chosen = np.unique(np.linspace(0, len(calibration.images) - 1, _WATCHED_IMAGES).astype(int))
        feed = feeds.feed(calibration.images, specs, source.preprocessing, chosen)
        converted = half.to_float16(model, feed, keep=keep)
    else:
        random = functools.partial(
            feeds.random, specs, source.preprocessing, _WATCHED_IMAGES, seed=0, extremes=True
        )
        try:
            feed = random(largest=255.0)
            converted = half.to_float16(model, feed, keep=keep)
        except ExecutionError:
            remark = "; random inputs are numbers from 0 to 1, since it does not run on larger ones"
            feed = random()
            converted = half.to_float16(model, feed, keep=keep)
    half.check(model, converted)
    return converted.model, converted.note(feeds.count(feed)) + remark


def _tables(
    calibration: _Calibration, canonical: bytes, source: FloatModel
) -> tuple[CalibrationTable, CalibrationTable | None]:
    """The table of all samples, and that of those that do not judge or None."""
    if calibration.table is None:
        assert calibration.images is not None
        count = len(calibration.images)
        whole, parts = cached_parts(
            canonical,
            calibration.images,
            *([held_out(count)[0]] if count >= FEWEST_IMAGES else []),
            prepare=source.preprocessing,
            method=calibration.method,
            word=calibration.word,
            progress=calibration.progress,
        )
        return whole, parts[0] if parts else None
    table, graph = calibration.table, hashlib.sha256(canonical).hexdigest()
    if table.graph_sha256 != graph:
        raise InvalidDataError(
            f"the calibration table was made from another graph (sha256 "
            f"{table.graph_sha256[:12]}…, this model has {graph[:12]}…); calibrate this model"
        )
    if table.preprocessing != source.preprocessing:
        raise InvalidDataError(
            f"the calibration table was made with preprocessing {table.preprocessing.name!r}, "
            f"the model has {source.preprocessing.name!r}; calibrate this model"
        )
    if calibration.method != table.method:
        table = choose(table, calibration.method)
    return table, None


def _decide(
    canonical: bytes,
    table: CalibrationTable,
    fitting: CalibrationTable | None,
    calibration: _Calibration,
    source: FloatModel,
    profile: DeviceProfile,
    correction: Correction,
    *,
    narrow: bool,
    strict: bool,
    left: Mapping[str, str],
) -> Quantized:
    """Quantize the model; integers that were cached by an earlier run are used again."""
    images = calibration.images
    unequalized = _unequalized(source, canonical)
    key = decisions.key(
        canonical,
        table,
        profile,
        images=images is not None,
        correction=correction,
        narrow=narrow,
        integers_only=strict,
        left=left,
        unequalized=unequalized,
        versions=artifact.package_versions(),
    )
    path = cache_folder() / f"{key}.npz"
    quantized = decisions.load(path) if path.is_file() else None
    if quantized is not None:
        calibration.progress.say(f"encodings and integers: {path}")
        return quantized
    if path.is_file():
        calibration.progress.say(f"warning: {path} cannot be read; quantizing again")
    samples, graph = None, Graph(canonical)
    if images is not None:
        samples = _samples(graph, canonical, images, source, table, fitting, calibration)
    with calibration.progress.task("fitting", unit="operators") as task:
        quantized = quantize(
            canonical,
            table,
            profile=profile,
            samples=samples,
            correction=correction,
            narrow=narrow,
            integers_only=strict,
            left=left,
            unequalized=unequalized,
            advance=lambda _: task.advance(),
        )
    try:
        decisions.save(path, quantized)
    except OSError as exc:
        calibration.progress.say(f"warning: encodings and integers were not cached: {exc}")
    return quantized


def _unequalized(source: FloatModel, canonical: bytes) -> frozenset[str]:
    """Layers that the ONNX file of an ONNX source has with their own weights, whatever is decided
    for them: a factor that one of its neighbours is multiplied with would stay in the outputs."""
    if source.kind != "onnx":
        return frozenset()
    model, graph = source.prepared(integers=True), Graph(canonical)
    onnx_integers.name_outputs(model, graph)
    return onnx_integers.put_floats(model, graph, graph)


def _samples(
    graph: Graph,
    canonical: bytes,
    images: Samples,
    source: FloatModel,
    table: CalibrationTable,
    fitting_table: CalibrationTable | None,
    calibration: _Calibration,
) -> CalibrationSamples:
    """Divide the calibration samples into those to quantize with and those to judge with."""
    specs = litert.signature(canonical).inputs
    most = min(MOST_IMAGES, images_that_fit(graph, len(images)))
    fitting, judging = np.arange(len(images)), np.arange(0)
    if len(images) >= FEWEST_IMAGES:
        fitting, judging = held_out(len(images))
        judging = _spread(judging, most // HELD_OUT)
    apart = feeds.take(images, fitting)

    def feed(chosen: npt.NDArray[np.int64]) -> Feed:
        return _by_tensor(source, graph, specs, images, chosen)

    def observed(content: bytes, fitting_only: bool) -> CalibrationTable:
        if fitting_only and content == canonical and fitting_table is not None:
            return fitting_table
        run = cached if content == canonical else observe
        return run(
            content,
            apart if fitting_only else images,
            prepare=source.preprocessing,
            method=table.method,
            word=calibration.word,
            progress=calibration.progress,
        )

    return CalibrationSamples(feed(_spread(fitting, most - len(judging))), feed(judging), observed)


def _by_tensor(
    source: FloatModel,
    graph: Graph,
    specs: Sequence[TensorSpec],
    samples: Samples,
    chosen: npt.NDArray[np.int64],
) -> Feed:
    """Some samples, preprocessed, by tensor of the canonical graph."""
    values = feeds.feed(samples, specs, source.preprocessing, chosen)
    return {
        graph.named_inputs[spec.name]: values[spec.name].reshape(
            values[spec.name].shape if spec.batched else (-1, *spec.shape[1:])
        )
        for spec in specs
    }


def _spread(places: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Choose at most so many of the indices, evenly spread."""
    chosen = np.linspace(0, len(places) - 1, min(most, len(places))).astype(np.int64)
    return np.asarray(places[np.unique(chosen)], np.int64)


def _some(
    source: FloatModel, canonical: bytes, images: Samples, chosen: npt.NDArray[np.int64]
) -> Feed:
    """Some samples, preprocessed, by input name of the float model."""
    of_onnx = source.kind == "onnx"
    signature = onnx.signature(source.model) if of_onnx else litert.signature(canonical)
    return feeds.feed(images, signature.inputs, source.preprocessing, chosen)


def _rescues(
    source: FloatModel, options: Options, canonical: bytes, scheme: Scheme, *, apart: bool
) -> str:
    """Advice for a better file of a precision, or for another one."""
    advice = []
    if not apart:
        advice.append(f"calibrate with {FEWEST_IMAGES} samples or more, which also corrects layers")
    if options.correction == "none":
        advice.append("leave out --correction none")
    if scheme.ranges and _can_be_trained(source, options, canonical):
        how = f" --preprocessing {options.preprocessing}" if options.preprocessing else ""
        advice.append(
            f"fine-tune with `python -m edgekit.qat MODEL{how} --data IMAGES --out FOLDER`"
        )
    if options.strict:
        advice.append("leave out --strict, then tensors may stay float")
    other = "export in float16"
    if scheme.weights == "int4":
        other = "export in int8-weights"
    return ", ".join([*advice, f"or {other}" if advice else other])


def _can_be_trained(source: FloatModel, options: Options, canonical: bytes) -> bool:
    """Whether `qat` takes a model, whose outputs are known to be classes."""
    if (
        source.kind != "keras"
        or source.judged(canonical, options.task, options.decoding)["task"] != "classification"
    ):
        return False
    from edgekit.pipeline import qat  # with TensorFlow, which has read the model

    try:
        qat.trainable(source, source.source.path)
    except (InvalidModelError, MissingDependencyError):
        return False
    return True


def _verdict(
    judged: Sequence[Fidelity],
    file: str,
    *,
    layered: bool,
    rescues: Callable[[], str],
    apart: bool,
    dead: bool,
    poor: bool,
) -> list[str]:
    """Say in words how near the outputs are.

    Raises:
        FidelityError: If an output is dead or poor, and that is not allowed.
    """
    samples = f"{judged[0].count} {'held-out ' if apart else ''}calibration samples"
    notes = [
        f"{output.output} on {samples}: {output.level}, "
        f"{output.sqnr_centred:.1f} dB of what varies, off by {output.max_error:.2g} at most"
        + (f", {percent(output.error_share)} % of its range" if output.error_share else "")
        + _weakest(output)
        for output in judged
    ]
    notes += [
        f"the float model's {output.output} hardly varies over the samples; take others if it "
        f"should"
        for output in judged
        if output.hardly_varies
    ]
    if not apart:
        notes.append(
            f"that is judged on the samples that the ranges come from, since {FEWEST_IMAGES} are "
            f"needed to hold some out; `python -m edgekit.compare` judges it on others"
        )
    killed = [output for output in judged if output.level == "dead"]
    if killed:
        where = "; ".join(fidelity.named(output) for output in killed)
        sentence = f"dead in the {file} file, constant where the float model varies: {where}"
        if not dead:
            raise FidelityError(
                sentence,
                f"give them outputs of their own, {rescues()}; `python -m edgekit.export "
                f"--allow-dead` writes it as it is",
            )
        notes.append(sentence)
    low = [output for output in judged if output.level == "poor"]
    if low:
        where = ", ".join(f"{output.output} {output.sqnr_centred:.1f} dB" for output in low)
        sentence = (
            f"the {file} file is poor: of what varies over {samples} there is left {where}, "
            f"expected {fidelity.POOR:.0f} dB at least"
        )
        if not poor:
            use = "as it is"
            if layered:
                use = (
                    "for `python -m edgekit.compare MODEL OUT --layers`, which names the layer "
                    "that needs another form"
                )
            raise FidelityError(
                sentence, f"{rescues()}; `python -m edgekit.export --allow-poor` writes it {use}"
            )
        notes.append(sentence)
    return notes


def _weakest(judged: Fidelity) -> str:
    """The worst channel, if it is poor and the whole output is not."""
    if judged.worst is None or judged.worst_sqnr >= fidelity.POOR or judged.level in _FAILED:
        return ""
    return (
        f"; channel {judged.worst.index} of axis {judged.worst.axis} keeps "
        f"{judged.worst_sqnr:.1f} dB only"
    )


def _make_int8(
    source: FloatModel,
    target: str,
    precision: str,
    canonical: bytes,
    table: CalibrationTable | None,
    quantized: Quantized,
    profile: DeviceProfile,
    converted: Future[Any] | None = None,
) -> _Written:
    """Write a file with the integers that were decided, and read it back.

    Args:
        converted: The float graph in ONNX, of which all constants belong to layers; None where the
            graph of the quantizer has to be converted.
    """
    scheme = SCHEMES[precision]
    notes = [*_methods_tried(quantized)]
    int8_source = source.integers is not None
    if int8_source and quantized.saturating:
        notes.append(
            f"{len(quantized.saturating)} layers of the ONNX file can saturate in onnxruntime on "
            f"x86 without VNNI; TFLite's kernels cannot"
        )
    elif profile.pair_bound and quantized.saturating:
        notes.append(
            f"{len(quantized.saturating)} layers would saturate in onnxruntime on x86 without VNNI "
            f"with weights rounded to nearest; theirs were chosen so that no pair of products can"
        )
    notes += [*_floats(quantized.floats, Graph(canonical)), *quantized.notes]
    if scheme.weights == "int4":
        if eight := _eight_bits(quantized):
            notes.append(
                f"weights of {len(eight)} depthwise and small layers stay int8, since that is few "
                f"bytes and 4 bits would lose most there: {', '.join(eight)}"
            )
        if target == "tflite":
            notes.append(
                "XNNPACK takes no int4 weights: LiteRT's own kernels compute the layers that have "
                "them, in float and slower; int8-weights is the faster file"
            )
    if target == "tflite":
        content = tflite_integers.write(quantized.graph, quantized.stored, dynamic=scheme.dynamic)
        proof.check_stored(
            f"{target} {precision}", tflite_integers.read_file(content), quantized.stored
        )
        if int8_source:
            notes += _same_as_source(content, source)
        return _Written(
            content, litert.signature(content), canonical, quantized, table, tuple(notes)
        )
    graph, stored = Graph(quantized.graph), quantized.stored
    constants = graph
    if source.kind == "onnx":
        model, constants = source.prepared(integers=True), Graph(canonical)
        onnx_integers.name_outputs(model, constants)
        absent = onnx_integers.put_floats(model, graph, constants)
        stored = stored.without((), layers=absent)
        if unsized := onnx_forms.without_sizes(model):
            notes.append(
                f"{len(unsized)} products of the ONNX file may compute in float: the sizes of what "
                f"they read are unknown, and the model does not run on one and on two samples of "
                f"random numbers, which would tell them: {', '.join(unsized[:3])}"
            )
        if absent:
            notes.append(
                f"{len(absent)} layers of the float graph are no layers of the ONNX file, and stay "
                f"float there: {', '.join(map(short_name, sorted(absent)[:3]))}"
            )
    elif converted is not None and profile.onnx_bias and len(stored.layers) == len(graph.layers):
        model = converted.result()
    else:
        model = onnx_convert.from_tflite(
            quantized.graph if scheme.ranges else _merged(quantized.graph)
        )
    model = onnx_integers.quantize(
        model,
        stored,
        constants,
        activation_dtype=profile.onnx_activations,
        quantize_bias=profile.onnx_bias,
        blocks=profile.provider == onnx.CPU and scheme.ranges,
        dynamic=scheme.dynamic,
    )
    if source.kind != "onnx":
        onnx_convert.use_signature_names(model, Graph(canonical))
    layers = onnx_dynamic.joined(model)
    read = onnx_integers.read_stored(layers, graph)
    decided, missing = onnx_integers.without_missing(stored, read, layers, graph)
    notes += missing
    proof.check_stored(f"{target} {precision}", read, decided, biases=profile.onnx_bias)
    if scheme.multiplies_integers:
        proof.check_products(model, profile)
    for option, value in SCHEMES[precision].runtime_options.get(target, {}).items():
        notes.append(
            f"set {option}={value} in the session, as compare and benchmark do: by default "
            f"onnxruntime makes the weights real at each run, which takes long"
        )
    saturates = not profile.pair_bound and profile.onnx_activations == "uint8"
    if saturates and scheme.multiplies_integers:
        notes.append(
            f"made for {profile.name}: on x86 without VNNI onnxruntime's kernels saturate with "
            f"these weights; export --device generic, or set session.x64quantprecision=1 there"
        )
    return _Written(
        model.SerializeToString(), onnx.signature(model), canonical, quantized, table, tuple(notes)
    )


def _eight_bits(quantized: Quantized) -> tuple[str, ...]:
    """Layers whose weights are int8."""
    layers = quantized.stored.layers.items()
    return tuple(short_name(name) for name, layer in layers if layer.bits == 8)


def _has_layers_only(graph: Graph) -> bool:
    """Whether all float constants of a graph are weights and biases of layers."""
    own = {name for layer in graph.layers for name in (layer.weights, layer.bias)}
    read = {name for operator in graph.operators for name in operator.inputs}
    return own >= {n for n in read if graph.is_constant(n) and graph.dtype(n) == np.float32}


def _existing(source: FloatModel, converted: Converted, profile: DeviceProfile) -> Quantized:
    """Take the integers of an ONNX source that is int8 already."""
    assert source.integers is not None
    graph, name = Graph(converted.content), source.source.path
    layers = source.integers.layers
    for absent in onnx_integers.unknown(source.model, graph, list(layers)):
        raise InvalidModelError(
            f"{name}: expected {layers[absent]} as one layer in TFLite, where it is several or "
            f"merged; leave it out of quantization, with onnxruntime by nodes_to_exclude"
        )
    read = onnx_integers.read_stored(source.model, graph)
    numbers = source.encodings_of(converted)
    # the file does not round what lies inside of one
    graph.merge_hard_swishes(kept={*numbers, *read.constants})
    return existing.take_over(graph.serialize(), numbers, read, profile=profile, name=name)


def _same_as_source(content: bytes, source: FloatModel) -> list[str]:
    """Compare a TFLite file with its int8 ONNX source, as `parity` does."""
    graph = Graph(content)
    theirs = onnx_integers.read_stored(source.model, graph)
    ours, missing = onnx_integers.without_missing(
        tflite_integers.read(graph), theirs, source.model, graph
    )
    proof.check_stored("tflite int8", ours, theirs)
    return list(missing)


def _methods_tried(quantized: Quantized) -> tuple[str, ...]:
    """The method by which the weights were rounded, and the methods that were tried."""
    if not quantized.trials:
        return (f"weights: {quantized.way}",)
    tried = ", ".join(f"{trial.way} {trial.sqnr:.1f} dB" for trial in quantized.trials)
    return (f"weights: {quantized.way}; on held-out calibration samples: {tried}",)


def _floats(reasons: Mapping[str, str], graph: Graph) -> list[str]:
    """The tensors that stay float, with the reasons."""
    if not reasons:
        return []
    signed = {tensor: name for name, tensor in (graph.named_inputs | graph.named_outputs).items()}
    named = [f"{signed.get(name) or short_name(name)} ({why})" for name, why in reasons.items()]
    more = len(named) - _NAMED
    return [
        f"stays float: {', '.join(named[:_NAMED])}"
        + (f" and {more} more, which the manifest names" if more > 0 else "")
    ]
