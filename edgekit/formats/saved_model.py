"""TensorFlow SavedModel folders: a graph with variables, and no Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgekit import outputs
from edgekit.errors import InvalidModelError, reason
from edgekit.formats import onnx
from edgekit.formats.keras import tensorflow
from edgekit.formats.quiet import quiet
from edgekit.signature import TensorSpec

FILE = "saved_model.pb"
#: Operators that reach beyond the graph: files, processes, Python.
_REACHING = frozenset(
    "PyFunc PyFuncStateless EagerPyFunc ReadFile WriteFile MergeV2Checkpoints Save SaveV2 "
    "SaveSlices MatchingFiles PrintV2 Print ReaderReadV2 DataServiceDataset Rpc TryRpc".split()
)
_SERVING = "serving_default"


class SavedModel:
    """A loaded folder, seen through one signature.

    Attributes:
        inputs: ``tf.TensorSpec`` by name, in order of name.
        specs: The same in edgekit's words.
        outputs: Names, in order.
        answers: What is known of them.
    """

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        """Load a folder.

        Raises:
            InvalidModelError: If it is none, has no signature to call, or holds an operator that
                reaches beyond the graph.
        """
        tf = tensorflow()
        _check(path, trust=trust)
        try:
            with quiet():
                self._loaded = tf.saved_model.load(str(path))
        except Exception as exc:  # TensorFlow raises many types for a broken folder
            raise InvalidModelError(
                f"{path} cannot be read as a SavedModel: {reason(exc)}; save it again"
            ) from None
        found = dict(self._loaded.signatures)
        name = _SERVING if _SERVING in found else next(iter(found), None)
        if name is None or (name != _SERVING and len(found) > 1):
            raise InvalidModelError(
                f"{path}: expected the signature {_SERVING}, got {', '.join(found) or 'none'}; "
                f"save it with tf.saved_model.save(model, path, signatures=function)"
            )
        self._function = found[name]
        given = self._function.structured_input_signature[1]
        self._names = sorted(given)
        self.inputs = [tf.TensorSpec(given[n].shape, given[n].dtype, name=n) for n in self._names]
        ends = self._function.structured_outputs
        self.outputs = tuple(sorted(ends))
        self.specs = tuple(_spec(name, given[name]) for name in self._names)
        self.answers = tuple(_spec(name, ends[name]) for name in self.outputs)

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        """A tensor an output, in order of :attr:`outputs`, for a tensor an input."""
        found = self._function(**dict(zip(self._names, inputs, strict=True)))
        return [found[name] for name in self.outputs]


def _spec(name: str, found: Any) -> TensorSpec:
    shape = tuple(-1 if size is None else size for size in found.shape or ())
    return TensorSpec(name, shape, found.dtype.name)


def is_saved_model(path: Path) -> bool:
    """Whether a folder holds a SavedModel."""
    return (path / FILE).is_file()


def sha256_of(path: Path) -> str:
    """SHA-256 of a model's file; of an ONNX file with weights beside it, and of a SavedModel, of
    all files' names and contents, but not of the ONNX file's own name."""
    if path.is_dir():
        files = sorted(path.rglob("*"))
        names = {f: f.relative_to(path).as_posix() for f in files if f.name != "fingerprint.pb"}
    elif path.suffix == ".onnx" and (found := onnx.beside(path)):
        names = {path: "", **{file: file.name for file in found}}
    else:
        return outputs.sha256_file(path)
    digest = hashlib.sha256()
    for file, name in names.items():
        if file.is_file():
            digest.update(f"{name} {outputs.sha256_file(file)}\n".encode())
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a model's file with those in which it keeps weights, or of a SavedModel's files."""
    files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
    if path.suffix == ".onnx":
        files = [path, *onnx.beside(path)]
    return sum(file.stat().st_size for file in files if file.is_file())


def _check(path: Path, *, trust: bool) -> None:
    """Look at the operators before anything is loaded."""
    tensorflow()
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as Proto

    try:
        proto = Proto.FromString((path / FILE).read_bytes())
    except Exception as exc:  # protobuf's own types
        raise InvalidModelError(
            f"{path / FILE} cannot be read (cut short?): {reason(exc)}; save the model again"
        ) from None
    if trust:
        return
    for graph in proto.meta_graphs:
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                _refuse(path, node, function.signature.name)
        for node in graph.graph_def.node:
            _refuse(path, node, "")


def _refuse(path: Path, node: Any, function: str) -> None:
    if node.op not in _REACHING or "traced_save" in function or node.name.startswith("save/"):
        return
    raise InvalidModelError(
        f"{path}: {node.name} is the operator {node.op}, which reaches beyond the model; "
        f"pass --trust if you know who made the folder"
    )
