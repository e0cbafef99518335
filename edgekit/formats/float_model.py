"""FloatModel: the one float Keras model that everything is made from, shipped or the user's."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import data, outputs, signature
from edgekit.artifact import Artifact, Source
from edgekit.encodings import FILE, Encodings
from edgekit.errors import InvalidModelError, InvalidOptionError
from edgekit.formats import keras

#: The model that ships with the repository.
SHIPPED = Path(__file__).resolve().parents[2] / "exports" / "fashion_mnist_mobilenet_v2_035"


@dataclass(frozen=True)
class FloatModel:
    """A loaded float model and what belongs to it.

    Attributes:
        model: The tf_keras model.
        model_id: Name that its deployables share.
        source: The float model that everything comes from; of a trained int8 model the one it was
            trained from.
        encodings: Of a model of ``python -m edgekit.qat``, which deployables take over.
    """

    model: Any
    model_id: str
    source: Source
    preprocessing: signature.Preprocessing
    class_names: tuple[str, ...]
    encodings: Encodings | None = None

    def images(self, opened: data.Opened, limit: int | None = None) -> data.ImageSet:
        """The images of a ``--data`` word, for this model.

        Raises:
            InvalidDataError: If they cannot be decoded or their classes are not the model's.
        """
        return opened.load(
            shape=tuple(-1 if size is None else size for size in self.model.inputs[0].shape[1:]),
            prepare=self.preprocessing,
            class_names=self.class_names,
            limit=limit,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The MODEL and ``--preprocessing`` arguments of the makers."""
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="a Keras artifact folder or a .keras file of tf_keras (default: the shipped model)",
    )
    parser.add_argument(
        "--preprocessing",
        help=f"for a .keras file: {', '.join(signature.PREPROCESSING_NAMES)} or FILE.json; "
        f"with #resize=bicubic,crop=0.875,channels=bgr,class_offset=1 behind it where they differ",
    )


def load(path: Path | None, *, preprocessing: str | None = None) -> FloatModel:
    """Load a Keras artifact, or a ``.keras`` file with the name of its preprocessing.

    Raises:
        EdgekitError: If it cannot be read, or the preprocessing is missing or given twice.
    """
    path = path or SHIPPED
    if path.is_dir():
        found = Artifact.load(path)
        manifest = found.manifest
        if manifest.format != "keras":
            raise InvalidModelError(
                f"{path} is a {manifest.format} artifact; expected the Keras model it came from"
            )
        if preprocessing is not None:
            raise InvalidOptionError(
                f"{path} brings its preprocessing; give --preprocessing only with a .keras file"
            )
        return FloatModel(
            model=keras.load(found.model_path),
            model_id=manifest.model_id,
            source=manifest.source or Source(_from_here(path), found.sha256),
            preprocessing=manifest.preprocessing,
            class_names=manifest.class_names,
            encodings=Encodings.load(path / FILE) if manifest.precision == "int8" else None,
        )
    if path.exists() and preprocessing is None:
        raise InvalidOptionError(
            f"{path} does not say how its input is made; "
            f"pass --preprocessing {'|'.join(signature.PREPROCESSING_NAMES)}|FILE.json"
        )
    prepared = signature.preprocessing(preprocessing) if preprocessing else None
    model = keras.load(path)
    assert prepared is not None  # keras.load has refused a path that does not exist
    classes = int(model.outputs[0].shape[-1])
    return FloatModel(
        model=model,
        model_id=path.stem,
        source=Source(_from_here(path), outputs.sha256_file(path)),
        preprocessing=prepared,
        class_names=tuple(str(i) for i in range(classes)),
    )


def find(artifact: Artifact, given: Path | None = None) -> tuple[Path, Path, str]:
    """The float model that an artifact was made from.

    Args:
        artifact: With a source in its manifest.
        given: Where it is; default where the manifest says, or the shipped model.

    Returns:
        Artifact folder or file, model file, its sha256.

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
        if place.is_dir():
            found = Artifact.load(place)
            model, sha256 = found.model_path, found.sha256
        elif place.is_file():
            model, sha256 = place, outputs.sha256_file(place)
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
