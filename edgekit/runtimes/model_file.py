"""ModelFile: a ``.tflite`` or ``.onnx`` file of any maker, measured like an artifact.

A file says less than an artifact: it names neither its float model nor its preprocessing. Those
come from options. Sizes, types and scales come from the file, as its runtime reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgekit.base.errors import ArtifactError, InvalidModelError, reason
from edgekit.graph.flatbuffer import WEIGHTS
from edgekit.records import signature
from edgekit.records.artifact import (
    MANIFEST,
    Artifact,
    Format,
    Manifest,
)
from edgekit.records.schemes import SCHEMES, Precision
from edgekit.records.signature import Preprocessing, Signature
from edgekit.runtimes.worker import Job, Worker
from edgekit.sources import float_model, saved_model

FORMATS: dict[str, Format] = {".tflite": "tflite", ".onnx": "onnx"}
_INTEGERS = ("int4", "int8", "uint8")


@dataclass(frozen=True)
class ModelFile(Artifact):
    """A file in place of an artifact; its manifest is made from it and lies nowhere."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.manifest.model_file

    @property
    def manifest_sha256(self) -> str:
        """Empty: there is no manifest."""
        return ""

    @property
    def size(self) -> int:
        """Bytes of the file, with those in which it keeps weights."""
        return saved_model.size_of(self.model_path)


def load(path: Path, prepare: Preprocessing | None = None) -> Artifact:
    """An artifact folder, the folder of a file that is an artifact's, or a file.

    Args:
        path: Folder or file.
        prepare: How the inputs of a file are made; an artifact brings its own. Default ``none``
            where no input is a picture, which the manifest's notes say.

    Raises:
        EdgekitError: If it is neither, cannot be loaded, or the preprocessing is missing.
    """
    if path.is_dir() or not path.exists():
        return Artifact.load(path)
    if is_artifacts(path):
        return Artifact.load(path.parent)
    if path.suffix not in FORMATS:
        raise ArtifactError(
            f"expected an artifact folder or a file {', '.join(FORMATS)}, got {path}"
        )
    described = _described(path, prepare or signature.preprocessing("none"))
    if prepare is not None:
        return described
    said = signature.unprepared(path, described.manifest.signature.inputs)
    return replace(described, manifest=replace(described.manifest, notes=(said,)))


def is_file(path: Path) -> bool:
    """Whether this is a file that says nothing of its inputs."""
    return path.is_file() and not is_artifacts(path)


def is_artifacts(path: Path) -> bool:
    """Whether a file is that of an artifact, whose folder it lies in."""
    manifest = path.parent / MANIFEST
    if not (path.is_file() and manifest.is_file()):
        return False
    try:
        return Manifest.load(manifest).model_file == path.name
    except ArtifactError:  # the manifest of something else
        return False


def _described(path: Path, prepare: Preprocessing) -> ModelFile:
    kind = FORMATS[path.suffix]
    manifest = Manifest(
        model_id=path.stem,
        format=kind,
        precision=precision_of(path),
        model_file=path.name,
        files={path.name: saved_model.sha256_of(path)},
        signature=signature_of(path, kind, prepare),
        preprocessing=prepare,
        class_names=(),
    )
    return ModelFile(path.parent, manifest)


def signature_of(
    path: Path, kind: str, prepare: Preprocessing, *, trust: bool = False
) -> Signature:
    """Inputs and outputs, as the runtime of its format reads a model."""
    with Worker(Job(path.name, path, kind, prepare, 1, {}, trust=trust)) as worker:
        return worker.loaded.signature


def precision_of(path: Path) -> Precision:
    """What most of the bytes of a file's constants are. Integers are those of int8, or int16x8, if
    the file rounds activations, of int8-dynamic if a layer rounds what it reads when it runs, else
    of int4-weights if some have 4 bits, else of int8-weights.

    Raises:
        InvalidModelError: If the file cannot be read.
    """
    read = _tflite_bytes if FORMATS[path.suffix] == "tflite" else _onnx_bytes
    try:
        counts = read(path)
    except Exception as exc:  # both parsers raise many types for a broken file
        raise InvalidModelError(
            f"{path} cannot be read (cut short?): {reason(exc)}; write it again"
        ) from None
    for kind in ("int4-weights", "int8-dynamic"):  # not all layers of it have 4 bits, or a kernel
        if kind in counts:
            counts[kind] += counts.pop("int8-weights", 0)
    most = max(counts, key=lambda kind: counts[kind], default="float32")
    return cast(Precision, most) if most in SCHEMES else "float32"


def _tflite_bytes(path: Path) -> dict[str, int]:
    """Bytes of constants, of numbers by dtype and of 8-bit integers by their precision."""
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise ValueError("it has no flatbuffer id TFL3")
    model: Any = schema.ModelT.InitFromPackedBuf(content, 0)
    kinds = {value: name for name, value in vars(schema.TensorType).items() if name.isupper()}
    numbers = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    codes = [
        numbers.get(max(code.builtinCode, code.deprecatedBuiltinCode), "")
        for code in model.operatorCodes
    ]
    sizes: dict[str, int] = {}
    for graph in model.subgraphs:
        uses: dict[int, str] = {}
        for each in graph.operators or ():
            kind = codes[each.opcodeIndex]
            if kind == "DEQUANTIZE":
                bits = 4 if kinds[graph.tensors[each.inputs[0]].type] == "INT4" else 8
                uses[int(each.inputs[0])] = f"int{bits}-weights"
            elif kind in WEIGHTS:
                weights = graph.tensors[each.inputs[WEIGHTS[kind].input]]
                if kinds[weights.type] == "FLOAT32":
                    uses[int(each.inputs[1])] = "int8-dynamic"
        wide = any(
            kinds[tensor.type] == "INT16"
            and tensor.quantization is not None
            and tensor.quantization.scale is not None
            for tensor in graph.tensors
        )
        for index, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is not None:
                dtype = kinds[tensor.type].lower()
                if dtype in _INTEGERS:
                    dtype = uses.get(index, "int16x8" if wide else "int8")
                sizes[dtype] = sizes.get(dtype, 0) + len(data)
    return sizes


def _onnx_bytes(path: Path) -> dict[str, int]:
    """Bytes of constants, of numbers by dtype and of 8-bit integers by their precision."""
    from edgekit.graph import onnx

    package = onnx.package()
    model = onnx.without_constant_nodes(package.load(str(path), load_external_data=False))
    helper = package.helper
    rounded = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    four = package.TensorProto.INT4
    integers = (package.TensorProto.INT8, package.TensorProto.UINT8, four)
    if rounded and any(
        len(tensor.dims) > 1 and (tensor.data_type in integers or tensor.name in rounded)
        for tensor in model.graph.initializer
    ):
        return {"int8": 1}
    dynamic = any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node)
    real = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    conversions = ("QuantizeLinear", "DequantizeLinear")
    scales = {node.input[1] for node in model.graph.node if node.op_type in conversions}
    sizes: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.name in scales:  # which a TFLite file does not keep as constants either
            continue
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        kind = dtype.name
        size = dtype.itemsize * int(np.prod(tensor.dims))
        if kind in _INTEGERS:
            if tensor.name in real:
                kind = f"{'int4' if tensor.data_type == four else 'int8'}-weights"
            else:
                kind = "int8-dynamic" if dynamic else "int8"
        if tensor.data_type == four:  # two in a byte
            size = -(-size // 2)
        sizes[kind] = sizes.get(kind, 0) + size
    return sizes


def default_data(artifact: Artifact) -> str:
    """The images of the shipped model, which stand in where none are named; others have none.

    Raises:
        InvalidOptionError: If the artifact comes from another model.
    """
    place = artifact.model_path if isinstance(artifact, ModelFile) else artifact.path
    return float_model.data_word(None, place)
