"""Recording: outputs and latency of a reference, which other machines can use.

``compare --record FILE`` writes it on the machine with the GPU. ``compare --reference FILE`` reads
it on any machine. The file is a zip archive: ``recording.json``, ``answers.npy`` and
``latency_ms.npy``. Its comment is the sha256 of all bytes before it, so that no byte can change
unnoticed. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import outputs, schema, words
from edgekit.base.errors import EdgekitError, RecordingError
from edgekit.data import ImageSet
from edgekit.records.results import (
    Data,
    Device,
    Environment,
    Measurement,
    Runtime,
)
from edgekit.records.signature import Preprocessing, TensorSpec

SCHEMA_VERSION = 2
DOCUMENT = "recording.json"
_ARRAYS = ("answers", "latency_ms")
_DIGEST = 64
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Facts:
    """Everything in a recording but its arrays.

    Attributes:
        name: The runner, as tables call it, e.g. ``ort:cuda:float16``.
        device: What computed; its kind is ``gpu`` only where a GPU did.
        runtime: Provider and options; says whether it was emulated.
        source_sha256: Of the float model that everything comes from.
        format: Format of the model file that ran, e.g. ``onnx``.
        precision: Precision of the model file that ran.
        model_sha256: Of the model file that ran.
        model_bytes: Its size.
        data: The images or samples, as ``--limit`` left them.
        outputs: Numbers of each output, by its name, in the order of their columns.
        inputs_sha256: Of the preprocessed tensors, as they went into the model.
        metrics: ``load_time`` and ``peak_memory``, where they mean something.
        arrays: sha256 of each array's bytes in the file.
    """

    name: str
    model_id: str
    device: Device
    runtime: Runtime
    environment: Environment
    source_sha256: str
    format: str
    precision: str
    model_sha256: str
    model_bytes: int
    data: Data
    preprocessing: Preprocessing
    inputs_sha256: str
    outputs: dict[str, int]
    created: str
    command: str
    metrics: dict[str, Measurement] = field(default_factory=dict)
    arrays: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Recording:
    """A recorded reference.

    Attributes:
        outputs: Real values, float32 ``[N, M]``; several are flattened and follow each
            other.
        latency: Milliseconds at batch 1 ``[rounds, samples]``, raw; None where none were taken.
    """

    facts: Facts
    outputs: npt.NDArray[np.float32]
    latency: npt.NDArray[np.float64] | None

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a recording and verify every byte of it.

        Raises:
            RecordingError: If it is missing, was changed, or has another schema version.
        """
        try:
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            problem = f"{path} is a folder" if path.is_dir() else words.not_found(path)
            raise RecordingError(f"{problem}; expected a recording") from None
        if hashlib.sha256(content[:-_DIGEST]).hexdigest().encode() != content[-_DIGEST:]:
            raise RecordingError(
                f"{path} was changed or cut short: its bytes are not those of its sha256; "
                f"copy it again, or record again"
            )
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.filelist):
                    raise zipfile.BadZipFile("it is compressed")
                text = archive.read(DOCUMENT)
                arrays = {name: archive.read(f"{name}.npy") for name in _present(archive)}
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, OSError) as exc:
            raise RecordingError(f"{path} is no recording: {exc}; record again") from None
        facts = _facts(path, text)
        return cls._checked(path, facts, arrays)

    @classmethod
    def _checked(cls, path: Path, facts: Facts, arrays: dict[str, bytes]) -> Recording:
        for name, content in arrays.items():
            if hashlib.sha256(content).hexdigest() != facts.arrays.get(name):
                raise RecordingError(f"{path}: {name} are not those of its sha256; record again")
        if set(arrays) != set(facts.arrays) or "answers" not in arrays:
            raise RecordingError(
                f"{path}: expected the arrays {', '.join(facts.arrays)} with outputs among them, "
                f"got {', '.join(arrays) or 'none'}; record again"
            )
        values = _array(path, arrays["answers"], np.dtype(np.float32))
        if len(values) != facts.data.count or not np.isfinite(values).all():
            raise RecordingError(
                f"{path}: expected finite outputs for {facts.data.count} {facts.data.unit}, got "
                f"{values.shape}"
            )
        sizes = facts.outputs.values()
        if min(sizes, default=0) < 1 or sum(sizes) != values.shape[1]:
            raise RecordingError(
                f"{path}: expected values of the outputs {_sizes(facts.outputs)}, got "
                f"{values.shape[1]} numbers; record again"
            )
        latency = None
        if "latency_ms" in arrays:
            latency = _array(path, arrays["latency_ms"], np.dtype(np.float64))
            if facts.runtime.emulated or not (np.isfinite(latency) & (latency > 0)).all():
                raise RecordingError(f"{path}: these latencies cannot have been measured")
        return cls(facts, values, latency)

    def dumps(self) -> bytes:
        """The file's bytes; the same recording gives the same bytes."""
        arrays = {"answers": _npy(self.outputs)}
        if self.latency is not None:
            arrays["latency_ms"] = _npy(self.latency)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in arrays.items()}
        document = schema.to_json(self.facts) | {"arrays": hashes}
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in (
                (DOCUMENT, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()),
                *((f"{name}.npy", content) for name, content in arrays.items()),
            ):
                member = zipfile.ZipInfo(name, _DATE)
                archive.writestr(member, content, zipfile.ZIP_STORED)
            archive.comment = b"0" * _DIGEST
        packed = stream.getvalue()[:-_DIGEST]
        return packed + hashlib.sha256(packed).hexdigest().encode()

    def write(self, path: Path, *, force: bool) -> None:
        """Write the file.

        Raises:
            OutputExistsError: If ``path`` exists and ``force`` is false.
        """
        outputs.write_bytes(path, self.dumps(), force=force)

    def check(
        self,
        path: Path,
        *,
        source_sha256: str,
        images: ImageSet,
        preprocessing: Preprocessing,
        inputs: Sequence[TensorSpec] = (),
        outputs: Mapping[str, int] | None = None,
    ) -> None:
        """Refuse to stand in for a reference that would have been asked something else.

        Args:
            path: Path of the recording.
            source_sha256: Of the float model.
            images: What it would run on, or records with a field for each input.
            preprocessing: Preprocessing of float inputs.
            inputs: Inputs of the model, where there are records.
            outputs: Numbers of each that it has to have, in any order; negative where free, None
                where nobody knows.

        Raises:
            RecordingError: If float model, data, preprocessing or outputs differ; names all that
                do.
        """
        facts = self.facts
        unlike = []
        for what, recorded, here in (
            ("float model", facts.source_sha256, source_sha256),
            ("data set", facts.data.sha256, images.sha256),
        ):
            if recorded != here:
                unlike.append(f"{what} (sha256 {recorded[:12]}…, here {here[:12]}…)")
        if facts.data.count != len(images):
            unlike.append(f"number of {facts.data.unit} ({facts.data.count}, here {len(images)})")
        if facts.preprocessing != preprocessing:
            unlike.append(
                f"preprocessing ({_in_words(facts.preprocessing)}, here {_in_words(preprocessing)})"
            )
        if outputs is not None and not _same(facts.outputs, outputs):
            unlike.append(f"set of outputs ({_sizes(facts.outputs)}, here {_sizes(outputs)})")
        if not unlike:
            here = inputs_sha256(images.images, preprocessing, inputs)
            if facts.inputs_sha256 != here:
                unlike.append(
                    f"preprocessed tensors (sha256 {facts.inputs_sha256[:12]}…, here {here[:12]}…)"
                )
        if unlike:
            raise RecordingError(
                f"{path} was recorded with another {', another '.join(unlike)}; record the same "
                f"here, or pass the recording of this one"
            )

    def with_outputs(self, outputs: Sequence[str]) -> Recording:
        """The same with its outputs in this order; none for as they are."""
        if not outputs or tuple(self.facts.outputs) == tuple(outputs):
            return self
        stops = np.cumsum(list(self.facts.outputs.values()))
        columns = dict(zip(self.facts.outputs, np.split(self.outputs, stops[:-1], 1), strict=True))
        facts = replace(self.facts, outputs={name: self.facts.outputs[name] for name in outputs})
        values = np.concatenate([columns[name] for name in outputs], axis=1)
        return replace(self, facts=facts, outputs=values)


def is_recording(path: Path) -> bool:
    """Whether a file is a recording, whole or not; a ``.keras`` file is a zip archive as well."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(30 + len(DOCUMENT))[30:] == DOCUMENT.encode()


def inputs_sha256(
    images: npt.NDArray[Any], preprocessing: Preprocessing, inputs: Sequence[TensorSpec] = ()
) -> str:
    """Of the tensors that go into the model: shape and bytes, of records also name and dtype.

    Args:
        images: ``[N, ...]``, or records ``[N]`` with a field for each input.
        preprocessing: What makes float32 of images and of the inputs that are real.
        inputs: Inputs of the model, where there are records; those that hold integers take them as
            they are.
    """
    if images.dtype.names is None:
        digest = hashlib.sha256(f"<f4{images.shape}".encode())
        _digest(digest, images, preprocessing.apply, "<f4")
        return digest.hexdigest()
    digest = hashlib.sha256()
    for spec in sorted(inputs, key=lambda spec: spec.name):
        dtype = "<f4" if spec.is_real else np.dtype(spec.dtype).newbyteorder("<").str
        values = images[spec.name]
        digest.update(f"{spec.name} {dtype}{values.shape}".encode())
        _digest(digest, values, preprocessing.apply if spec.is_real else None, dtype)
    return digest.hexdigest()


def _digest(
    digest: Any,
    values: npt.NDArray[Any],
    change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None,
    dtype: str,
) -> None:
    for start in range(0, len(values), 1024):
        part = values[start : start + 1024]
        part = part if change is None else change(part)
        digest.update(np.ascontiguousarray(part, dtype).tobytes())


def _same(recorded: Mapping[str, int], here: Mapping[str, int]) -> bool:
    return recorded.keys() == here.keys() and all(
        size < 0 or size == recorded[name] for name, size in here.items()
    )


def _sizes(outputs: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} of {size if size >= 0 else 'any number'}" for name, size in outputs.items()
    )


def _facts(path: Path, text: bytes) -> Facts:
    try:
        document = schema.parse(text.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise RecordingError(f"{path}: {DOCUMENT} is not valid JSON ({exc})") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise RecordingError(
            f"{path} has schema_version {version!r}, this edgekit reads {SCHEMA_VERSION}; record "
            f"it again with this version or install the one that wrote it"
        )
    try:
        return schema.from_json(Facts, document)
    except (schema.SchemaError, EdgekitError) as exc:
        raise RecordingError(f"{path} is no recording: {exc}") from None


def _present(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in _ARRAYS if f"{name}.npy" in archive.namelist()]


def _npy(values: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(values), (1, 0), allow_pickle=False)
    return stream.getvalue()


def _array(path: Path, content: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A matrix from the bytes of an ``.npy``; memory is never more than those bytes."""
    stream = io.BytesIO(content)
    try:
        np.lib.format.read_magic(stream)
        shape, fortran, stored = np.lib.format.read_array_header_1_0(stream)
        if (fortran, stored, len(shape)) != (False, dtype, 2):
            raise ValueError(f"expected {dtype} [N, M], got {stored} {shape}")
        return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
    except ValueError as exc:
        raise RecordingError(f"{path} holds a broken array: {exc}; record again") from None


def _in_words(preprocessing: Preprocessing) -> str:
    scale = " ".join(f"{value:.9g}" for value in preprocessing.scale)
    offset = " ".join(f"{value:.9g}" for value in preprocessing.offset)
    crop = "" if preprocessing.crop is None else f", crop {preprocessing.crop:.9g}"
    if preprocessing.letterbox is not None:
        crop = f", letterbox {preprocessing.letterbox} {preprocessing.align}"
    return (
        f"{preprocessing.name}: scale {scale}, offset {offset}, {preprocessing.channels}, "
        f"{preprocessing.resize}{crop}, classes {preprocessing.class_offset:+d}"
    )
