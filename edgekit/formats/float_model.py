"""FloatModel: the one float model that everything is made from, shipped or the user's.

It comes as a Keras artifact, a ``.keras`` or HDF5 file of Keras 2 or 3, a TensorFlow SavedModel, a
float ``.tflite`` or a float ``.onnx`` file. All but the last become the canonical float graph; from
ONNX there is no way to it, so that ONNX makes ONNX only (edgekit.quant.onnx_file).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit import data, feeds, signature
from edgekit.artifact import Artifact, Source
from edgekit.encodings import FILE, Encodings
from edgekit.errors import InvalidModelError, InvalidOptionError
from edgekit.feeds import Inputs, Samples
from edgekit.formats import flatbuffer, keras, one_sample, onnx, onnx_convert, saved_model, tflite
from edgekit.formats.flatbuffer import Graph
from edgekit.signature import Signature, TensorSpec

Kind = Literal["keras", "saved_model", "tflite", "onnx"]

#: The model that ships with the repository.
SHIPPED = Path(__file__).resolve().parents[2] / "exports" / "fashion_mnist_mobilenet_v2_035"
_SUFFIXES: dict[str, Kind] = {
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".tflite": "tflite",
    ".onnx": "onnx",
}
_MODEL_HELP = (
    "a Keras artifact folder, a .keras or .h5 file (Keras 2 or 3), a SavedModel folder, a float "
    ".tflite or .onnx file (default: the shipped model)"
)


@dataclass(frozen=True)
class FloatModel:
    """A loaded float model and what belongs to it.

    Attributes:
        model: Of Keras the model, of a SavedModel the loaded
            :class:`edgekit.formats.saved_model.SavedModel`, of TFLite the canonical flatbuffer, of
            ONNX the ``ModelProto``.
        model_id: Name that its deployables share.
        source: The float model that everything comes from; of a trained int8 model the one it was
            trained from.
        class_names: One a class; empty when the answer is not one score a class.
        encodings: Of a model of ``python -m edgekit.qat``, which deployables take over.
        kind: What it was read from.
        notes: What is other than in the file, a sentence each.
    """

    model: Any
    model_id: str
    source: Source
    preprocessing: signature.Preprocessing
    class_names: tuple[str, ...]
    encodings: Encodings | None = None
    kind: Kind = "keras"
    notes: tuple[str, ...] = ()

    def canonical(self, *, float16: bool = False) -> bytes:
        """The canonical float graph, or its twin with weights in float16.

        Raises:
            InvalidModelError: If the model cannot be converted to TFLite.
        """
        if self.kind == "onnx":
            raise InvalidModelError(
                f"{self.source.path}: TFLite is not made from ONNX; convert the file with onnx2tf, "
                f"or export the model's SavedModel or Keras file"
            )
        if self.kind in ("keras", "saved_model"):
            return one_sample.single(self._converted(float16=float16), self.source.path)
        if not float16:
            return bytes(self.model)
        graph = Graph(self.model)
        graph.halve()
        return graph.serialize()

    def _converted(self, *, float16: bool) -> bytes:
        """What TFLite's converter makes of a Keras model or SavedModel, at its own batch."""
        if self.kind == "keras":
            return tflite.from_keras(self.model, float16=float16)
        return tflite.from_function(
            self.model, self.model.inputs, self.model.outputs, float16=float16
        )

    def graph(self) -> bytes:
        """What is calibrated: the canonical graph, or the ONNX file made ready for int8."""
        if self.kind != "onnx":
            return self.canonical()
        return bytes(self.prepared(integers=True).SerializeToString(deterministic=True))

    def prepared(self, *, integers: bool = False) -> Any:
        """The ONNX model with batch normalisation folded, as
        :func:`edgekit.formats.onnx_convert.prepare` has it."""
        return onnx_convert.prepare(self.model, integers=integers)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, batch axis -1 or 1."""
        if self.kind == "keras":
            return keras.signature(self.model).inputs
        if self.kind == "saved_model":
            return tuple(self.model.specs)
        if self.kind == "tflite":
            return tflite.signature(self.model).inputs
        return onnx.signature(self.model).inputs

    def images(self, opened: data.Opened, limit: int | None = None) -> data.ImageSet:
        """The images of a ``--data`` word, for this model.

        Raises:
            InvalidDataError: If they cannot be decoded or their classes are not the model's.
        """
        return feeds.images(opened, self.inputs, self.preprocessing, self.class_names, limit)

    def samples(self, opened: data.Opened | Inputs, limit: int | None = None) -> Samples:
        """Images, or samples with an array for each input.

        Raises:
            InvalidDataError: As :meth:`images`.
        """
        return opened.head(limit) if isinstance(opened, Inputs) else self.images(opened, limit)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The MODEL and ``--preprocessing`` arguments of the makers."""
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument(
        "--preprocessing",
        help=f"for a file: {', '.join(signature.PREPROCESSING_NAMES)} or FILE.json; with "
        f"#resize=bicubic,crop=0.875,channels=bgr,class_offset=1 behind it where they differ",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The ``--trust`` argument."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run code inside of the model's file: Lambda layers, functions, layers of others",
    )


def load(path: Path | None, *, preprocessing: str | None = None, trust: bool = False) -> FloatModel:
    """Load a Keras artifact, or another file or folder with the name of its preprocessing.

    Raises:
        EdgekitError: If it cannot be read, holds code that is not trusted, or the preprocessing is
            missing or given twice.
    """
    path = path or SHIPPED
    if path.is_dir() and not saved_model.is_saved_model(path):
        return _load_artifact(path, preprocessing)
    kind = kind_of(path)
    if path.exists() and preprocessing is None:
        raise InvalidOptionError(
            f"{path} does not say how its input is made; "
            f"pass --preprocessing {'|'.join(signature.PREPROCESSING_NAMES)}|FILE.json"
        )
    prepared = signature.preprocessing(preprocessing) if preprocessing else None
    model, ends, batch = _open(path, kind, trust=trust)
    assert prepared is not None  # _open has refused a path that does not exist
    return FloatModel(
        model=model,
        model_id=path.stem,
        source=Source(_from_here(path), saved_model.sha256_of(path)),
        preprocessing=prepared,
        class_names=_classes(ends),
        kind=kind,
        notes=(f"the model takes batches of {batch}; what is made of it takes one sample",)
        if batch > 1
        else (),
    )


def graph_of(place: Path, *, trust: bool = False) -> bytes:
    """The canonical float graph of a model, whatever its input is made from.

    Args:
        place: Artifact folder, file or SavedModel folder.
        trust: Let code inside of it run.

    Raises:
        InvalidModelError: If it cannot be loaded, or has no such graph.
    """
    if place.is_dir() and not saved_model.is_saved_model(place):
        return _load_artifact(place, None).canonical()
    return load(place, preprocessing="none", trust=trust).canonical()


def kind_of(path: Path) -> Kind:
    """What kind of float model a file or folder is, by its name.

    Raises:
        InvalidModelError: If it is none.
    """
    if saved_model.is_saved_model(path):
        return "saved_model"
    if path.is_dir():
        return "keras"
    if path.suffix not in _SUFFIXES:
        raise InvalidModelError(
            f"expected a Keras artifact, a SavedModel folder or a file {', '.join(_SUFFIXES)}, "
            f"got {path}"
        )
    return _SUFFIXES[path.suffix]


def _load_artifact(path: Path, preprocessing: str | None) -> FloatModel:
    found = Artifact.load(path)
    manifest = found.manifest
    if manifest.format != "keras":
        raise InvalidModelError(
            f"{path} is a {manifest.format} artifact; expected the Keras model it came from"
        )
    if preprocessing is not None:
        raise InvalidOptionError(
            f"{path} brings its preprocessing; give --preprocessing only with a file"
        )
    return FloatModel(
        model=keras.load(found.model_path),
        model_id=manifest.model_id,
        source=manifest.source or Source(_from_here(path), found.sha256),
        preprocessing=manifest.preprocessing,
        class_names=manifest.class_names,
        encodings=Encodings.load(path / FILE) if manifest.precision == "int8" else None,
    )


def _open(path: Path, kind: Kind, *, trust: bool) -> tuple[Any, tuple[TensorSpec, ...], int]:
    """The model, its outputs, and the size of its batch; -1 of any."""
    if kind == "keras":
        model = keras.load(path, trust=trust)
        own = keras.signature(model)
        return model, own.outputs, _batch(own.inputs)
    if kind == "saved_model":
        found = saved_model.SavedModel(path, trust=trust)
        return found, found.answers, _batch(found.specs)
    if kind == "tflite":
        if not path.is_file():
            raise InvalidModelError(f"{path} not found; expected a .tflite file")
        given = path.read_bytes()
        content = one_sample.single(given, str(path))
        batch = one_sample.batch_of(given) if content != given else 1
        content = flatbuffer.canonical(content, str(path), key=tflite.SIGNATURE_KEY)
        return content, tflite.signature(content).outputs, batch
    proto = onnx.load(path)
    other = onnx.not_float32(proto)
    if other is not None:
        raise InvalidModelError(
            f"{path}: expected a float32 model, got {other}; export the one it was made from, of "
            f"PyTorch after model.float()"
        )
    _check_sizes(path, onnx.signature(proto))
    trained = onnx.in_training(proto)
    if trained is not None:
        raise InvalidModelError(
            f"{path}: {trained} computes as in training, so that answers depend on the batch or on "
            f"chance; export it after model.eval(), with training=TrainingMode.EVAL"
        )
    return proto, onnx.signature(proto).outputs, 1


def _batch(specs: Sequence[TensorSpec]) -> int:
    return max((spec.shape[0] for spec in specs if spec.shape), default=-1)


def _check_sizes(path: Path, found: Signature) -> None:
    """Refuse sizes that are free behind the batch, and a batch of several."""
    for spec in found.inputs:
        if spec.shape[:1] not in ((-1,), (1,)) or -1 in spec.shape[1:]:
            raise InvalidModelError(
                f"{path}: expected a fixed size of input {spec.name} behind a batch of 1 or any, "
                f"got {list(spec.shape)}; export it with one sample of that size, or fix it with "
                f"python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name {spec.name} "
                f"--input_shape 1,SIZES {path} FIXED.onnx"
            )


def _classes(ends: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """Numbers of the classes, where the answer is one score for each of two or more."""
    if len(ends) != 1 or len(ends[0].shape) != 2 or ends[0].shape[1] < 2:
        return ()
    return tuple(str(i) for i in range(ends[0].shape[1]))


def find(artifact: Artifact, given: Path | None = None) -> tuple[Path, Path, str]:
    """The float model that an artifact was made from.

    Args:
        artifact: With a source in its manifest.
        given: Where it is; default where the manifest says, or the shipped model.

    Returns:
        Artifact folder, file or SavedModel folder; the model in it; its sha256.

    Raises:
        InvalidModelError: If it is not there or another one.
    """
    source = artifact.manifest.source
    assert source is not None
    if given and not given.exists():
        raise InvalidModelError(
            f"{given} not found; expected the float model that {artifact.path} was made from, "
            f"a recording of it, or a runner such as ort:cuda:float16"
        )
    for place in [given] if given else [Path(source.path), SHIPPED]:
        if place.is_dir() and not saved_model.is_saved_model(place):
            found = Artifact.load(place)
            model, sha256 = found.model_path, found.sha256
        elif place.exists():
            model, sha256 = place, saved_model.sha256_of(place)
        else:
            continue
        if sha256 == source.sha256:
            return place, model, sha256
        if given:
            raise InvalidModelError(
                f"{given} is not the model that {artifact.path} was made from "
                f"(sha256 {sha256[:12]}…, expected {source.sha256[:12]}…)"
            )
    raise InvalidModelError(
        f"the float model of {artifact.path} ({source.path}) was not found; "
        f"pass --reference MODEL, or put it there"
    )


def _from_here(path: Path) -> str:
    """Relative to the current folder where it lies below it, so that other clones find it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
