"""Artifact: a folder with a model file and ``manifest.json``, which is written last.

A folder without a manifest is no artifact. A folder whose bytes differ from its manifest does not
load.
"""

from __future__ import annotations

import functools
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgekit.base import outputs, schema, words
from edgekit.base.errors import ArtifactError, EdgekitError
from edgekit.base.version import __version__
from edgekit.records.decoding import Decoding
from edgekit.records.fidelity import Fidelity
from edgekit.records.results import BudgetRecord
from edgekit.records.schemes import Precision
from edgekit.records.signature import Layout, Preprocessing, Signature, turned

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

Format = Literal["keras", "tflite", "onnx"]
#: How int8 weights were rounded: to the nearest step; the same with biases corrected
#: for the shift that rounding causes; each layer fitted to its float outputs; trained with fake
#: quantization; or as a source that is int8 already has them.
WeightMethod = Literal["nearest", "corrected", "fitted", "trained", "source"]
#: Of a layer of an int8 file (edgekit.pipeline.layers).
LayerPrecision = Literal["float32", "float32-after", "int8"]
FORMATS: tuple[str, ...] = ("keras", "tflite", "onnx")

#: Packages whose version can change a result; those installed are recorded.
_RECORDED_PACKAGES = (
    "numpy",
    "tensorflow",
    "tf-keras",
    "tensorflow-model-optimization",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "ai-edge-litert",
    "tflite-micro",
    "ethos-u-vela",
)


@dataclass(frozen=True)
class Source:
    """The float model that an artifact was exported from.

    Attributes:
        path: Path of the model, as it was given.
        sha256: SHA-256 of the model file.
        shapes: Sizes that ``--shape`` gave to inputs with free axes.
        layout: Value of ``--layout``, ``keep`` or ``channels-last``; empty for the default.
    """

    path: str
    sha256: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layout: Layout = ""

    def turned(self, signature: Signature, format: str) -> tuple[str, ...]:
        """Names of a file's outputs that have their channels last, and first in the source.

        Args:
            signature: Signature of the file, or of the source.
            format: Format of the file.
        """
        return turned(signature.outputs, self.layout) if format == "tflite" else ()


@dataclass(frozen=True)
class CalibrationRecord:
    """The samples by which the integers of an artifact with int8 weights were decided.

    Attributes:
        data: Name of the calibration set.
        sha256: SHA-256 of the images, before preprocessing.
        count: Number of images.
        method: Method by which a range was taken from the values.
    """

    data: str
    sha256: str
    count: int
    method: str


@dataclass(frozen=True)
class RecipeRecord:
    """The recipe of ``export --recipe``.

    Attributes:
        path: As it was given.
        sha256: SHA-256 of the file.
        overruled: What the command line took the place of, a sentence each.
    """

    path: str
    sha256: str
    overruled: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizationRecord:
    """How the integers of an artifact with int8 weights were chosen.

    Attributes:
        way: The method by which the weights were rounded, in words.
        tried: SQNR in dB of the worst output, before a softmax and with the mean removed, on
            held-out calibration images, by method; empty if unjudged.
        saturating: Number of pairs of weights that could saturate on x86 without VNNI if they were
            rounded to nearest, by the full name of the tensor that their layer writes.
        floats: The reason why a tensor stays float, by its name in the float TFLite graph.
        judged: The outputs of the file itself on held-out calibration images; empty if unjudged.
        weights: The method by which the weights were rounded. Manifests of earlier versions lack
            it; it is read from ``way`` then.
        budget: How the tensors that stay float were chosen; None where no budget was given.
        layers: Layers that were given another precision, by the user or by a budget's search: what
            ``--precision-of`` and a recipe take.
    """

    way: str
    tried: dict[str, float]
    saturating: dict[str, int] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    judged: tuple[Fidelity, ...] = ()
    weights: WeightMethod | None = None
    budget: BudgetRecord | None = None
    layers: dict[str, LayerPrecision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, "weights", _weights_of_before(self.way))


def _weights_of_before(way: str) -> WeightMethod:
    """What the words of a manifest without ``weights`` stand for."""
    said: dict[str, WeightMethod] = {
        "trained with fake quantization": "trained",
        "fitted layers": "fitted",
        "corrected biases": "corrected",
        "taken over from the file": "source",
    }
    return next((method for words, method in said.items() if words in way), "nearest")


@dataclass(frozen=True)
class Execution:
    """What ran when the file was loaded after it was written.

    Attributes:
        provider: Execution provider or delegate.
        isa: Instruction sets of the CPU it ran on.
        kernels: Number of operators that ran, by kind and dtype.
        floats: Operators of an int8 model that computed in float, as ``KIND NAME``; of int8-dynamic
            the layers that did.
        eight_bits: Layers of int4-weights whose weights stay int8.
        numbers: Number of scales, zero points, weights and biases that were read back from the
            file; all are equal to the encodings. 0 for float models.
        note: The reason why the file could not run on this machine, if it could not.
        own_kernels: Those of ``kernels`` that the delegate did not take, so that kernels of the
            runtime's own ran.
    """

    provider: str
    isa: tuple[str, ...]
    kernels: dict[str, int]
    floats: tuple[str, ...] = ()
    numbers: int = 0
    note: str = ""
    own_kernels: dict[str, int] = field(default_factory=dict)
    eight_bits: tuple[str, ...] = ()


@dataclass(frozen=True)
class MicroRecord:
    """What a file for TensorFlow Lite Micro takes.

    Attributes:
        operators: How many operators of each kind it has; ``resolver.h`` links their kernels.
        flash: Bytes of the model as an aligned constant, without the code of kernels.
        golden: What computed the outputs of the test vectors in ``golden.h``.
        arena: Bytes of the arena, with 64-bit pointers; None if tflite-micro was not installed.
        arena_persistent: Those of them that are not shared by activations; None as above.
    """

    operators: dict[str, int]
    flash: int
    golden: str
    arena: int | None = None
    arena_persistent: int | None = None


@dataclass(frozen=True)
class Manifest(schema.Document):
    """Everything that is needed to run an artifact and to know its origin.

    Attributes:
        model_id: Name of the model, the same for all formats and precisions.
        format: Format of the model file.
        precision: Precision of the numbers in it.
        model_file: Name of the model file in the folder.
        files: SHA-256 of every other file in the folder; ``model_file`` is one of them.
        signature: Inputs and outputs of the model file.
        preprocessing: How a picture becomes the float input.
        source: The float model; None for a model that edgekit trained.
        calibration: The samples by which integers were decided; None without any.
        device: Device profile that the file was exported for.
        quantization: How the integers of an int8 file were chosen.
        execution: What ran when the file was loaded after it was written.
        runtime_options: Options that the runtime needs for the promised accuracy.
        versions: Versions of the packages that were used.
        command: The command line that wrote the artifact.
        training: Free-form record of a training run: recipe, data, final metrics.
        class_names: One name for each class; empty if the outputs are no classes, or nothing says
            that they are.
        task: What the outputs are, if the model or the user says it.
        notes: What a reader should know about the export, one sentence each.
        recipe: The recipe that it was exported by; None without one.
        decoding: How the outputs of a detector become boxes; None for any other model.
        micro: What it takes on a microcontroller; None if it was not exported for one.
    """

    VERSION: ClassVar[int] = SCHEMA_VERSION
    ERROR: ClassVar[type[EdgekitError]] = ArtifactError
    WHAT: ClassVar[str] = "an artifact manifest"

    model_id: str
    format: Format
    precision: Precision
    model_file: str
    files: dict[str, str]
    signature: Signature
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    source: Source | None = None
    calibration: CalibrationRecord | None = None
    device: str = ""
    quantization: QuantizationRecord | None = None
    execution: Execution | None = None
    runtime_options: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    training: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    task: Literal["", "classification", "regression", "detection", "segmentation"] = ""
    recipe: RecipeRecord | None = None
    decoding: Decoding | None = None
    micro: MicroRecord | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.model_file not in self.files:
            raise ArtifactError(
                f"the manifest's model_file {self.model_file!r} is not among its files"
            )
        for name in self.files:
            if name != Path(name).name or name in ("", ".", "..", MANIFEST):
                raise ArtifactError(f"the manifest names a file outside its folder: {name!r}")


@dataclass(frozen=True)
class Artifact:
    """A folder that was checked against its manifest."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The folder's name, as tables and gates call it."""
        return self.path.resolve().name

    @property
    def model_path(self) -> Path:
        """Path of the model file."""
        return self.path / self.manifest.model_file

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file."""
        return self.manifest.files[self.manifest.model_file]

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest, and so of everything in the folder."""
        return outputs.sha256_file(self.path / MANIFEST)

    @property
    def size(self) -> int:
        """Bytes of the model file."""
        return self.model_path.stat().st_size

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Read the manifest and verify the SHA-256 of every file it names.

        Raises:
            ArtifactError: If the folder, the manifest or a file is missing, changed or unknown.
        """
        folder = Path(path)
        if not folder.is_dir():
            problem = f"{folder} is a file" if folder.exists() else words.not_found(folder)
            raise ArtifactError(
                f"{problem}; expected an artifact folder, as `python -m edgekit.export` writes it"
            )
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(
                f"{folder} has no {MANIFEST}; it is not an artifact or was not finished"
            )
        manifest = Manifest.load(folder / MANIFEST)
        for name, expected in manifest.files.items():
            file = folder / name
            if not file.is_file():
                raise ArtifactError(f"{file} is missing; export the artifact again")
            sha256 = outputs.sha256_file(file)
            if sha256 != expected:
                raise ArtifactError(
                    f"{file} was changed: expected sha256 {expected[:12]}…, got {sha256[:12]}…; "
                    f"export the artifact again"
                )
        return cls(folder, manifest)


def write(
    path: Path, files: Mapping[str, bytes | Path], manifest: dict[str, Any], *, force: bool
) -> Artifact:
    """Write an artifact folder: the files, then the manifest, then the rename.

    Args:
        path: The folder to make.
        files: Content, or a file to copy, by name.
        manifest: Arguments of :class:`Manifest` except ``files``; ``versions`` is filled in when
            absent.
        force: Replace a folder that is there.

    Raises:
        OutputExistsError: If ``path`` exists and ``force`` is false.
    """
    (written,) = write_all({path: (files, manifest)}, force=force)
    return written


def write_all(
    contents: Mapping[Path, tuple[Mapping[str, bytes | Path], dict[str, Any]]], *, force: bool
) -> tuple[Artifact, ...]:
    """Write several artifact folders, all or none.

    Args:
        contents: ``files`` and ``manifest`` of each, as :func:`write` takes them, by its folder.
        force: Replace folders that are there.

    Raises:
        OutputExistsError: If one of the folders exists and ``force`` is false.
    """
    written = []
    with outputs.new_folders(list(contents), force=force) as folders:
        for folder, (path, (files, manifest)) in zip(folders, contents.items(), strict=True):
            for name, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, folder / name)
                else:
                    (folder / name).write_bytes(content)
            hashes = {name: outputs.sha256_file(folder / name) for name in files}
            record = Manifest(**{"versions": package_versions(), **manifest, "files": hashes})
            (folder / MANIFEST).write_text(schema.dumps(record) + "\n", encoding="utf-8")
            written.append(Artifact(path, record))
    return tuple(written)


def package_versions() -> dict[str, str]:
    """Versions of edgekit, Python and the installed packages that can change a result."""
    return dict(_versions())


@functools.cache  # what is imported stays as it is
def _versions() -> dict[str, str]:
    versions = {"edgekit": __version__, "python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
