"""TensorFlow SavedModel folders: a graph with variables, and no Python.

Loading one runs a part of it: it restores variables, fills tables and makes resources. What is run,
and what is served, holds operators of :mod:`edgekit.graph.safe` only, whatever its functions are
called; what could write the variables again may stand there, but must not be reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from edgekit.base import outputs
from edgekit.base.errors import InvalidModelError, reason
from edgekit.base.quiet import quiet
from edgekit.graph import onnx, safe
from edgekit.records.signature import TensorSpec
from edgekit.sources.keras import tensorflow

FILE = "saved_model.pb"
_SERVING = "serving_default"


class SavedModel:
    """A loaded folder, seen through one signature.

    Attributes:
        inputs: ``tf.TensorSpec`` by name, in order of name.
        specs: The same in edgekit's words.
        outputs: Names, in order.
        output_specs: What is known of them.
    """

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        """Load a folder.

        Raises:
            InvalidModelError: If it is none, has no signature to call, or holds an operator that is
                not known to compute only.
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
        signatures = dict(self._loaded.signatures)
        name = _SERVING if _SERVING in signatures else next(iter(signatures), None)
        if name is None or (name != _SERVING and len(signatures) > 1):
            raise InvalidModelError(
                f"{path}: expected the signature {_SERVING}, got "
                f"{', '.join(signatures) or 'none'}; save it with "
                f"tf.saved_model.save(model, path, signatures=function)"
            )
        self._function = signatures[name]
        input_specs = self._function.structured_input_signature[1]
        self._names = sorted(input_specs)
        self.inputs = [
            tf.TensorSpec(input_specs[n].shape, input_specs[n].dtype, name=n) for n in self._names
        ]
        output_specs = self._function.structured_outputs
        self.outputs = tuple(sorted(output_specs))
        self.specs = tuple(_spec(name, input_specs[name]) for name in self._names)
        self.output_specs = tuple(_spec(name, output_specs[name]) for name in self.outputs)

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        """One tensor for each output, in order of :attr:`outputs`, from one for each input."""
        tensors = self._function(**dict(zip(self._names, inputs, strict=True)))
        return [tensors[name] for name in self.outputs]


def _spec(name: str, tensor: Any) -> TensorSpec:
    shape = tuple(-1 if size is None else size for size in tensor.shape or ())
    return TensorSpec(name, shape, tensor.dtype.name)


def is_saved_model(path: Path) -> bool:
    """Whether a folder holds a SavedModel."""
    return (path / FILE).is_file()


def sha256_of(path: Path) -> str:
    """SHA-256 of a model's file; of an ONNX file with weights beside it, and of a SavedModel, of
    all files' names and contents, but not of the ONNX file's own name."""
    if path.is_dir():
        files = sorted(path.rglob("*"))
        names = {f: f.relative_to(path).as_posix() for f in files if f.name != "fingerprint.pb"}
    elif path.suffix == ".onnx" and (beside := onnx.beside(path)):
        names = {path: "", **{file: file.name for file in beside}}
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
    if not trust:
        for graph in proto.meta_graphs:
            _check_operators(path, graph)


def _check_operators(path: Path, graph: Any) -> None:
    """Refuse the first operator that is not in the list for what becomes of it.

    Raises:
        InvalidModelError: If there is one; names the node, its function and the operator.
    """
    functions = {each.signature.name: each for each in graph.graph_def.library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    restoring = _before(nodes, [graph.saver_def.restore_op_name])
    run = _before(nodes, _fetched(graph))
    restored = _called(functions, (nodes[name] for name in restoring))
    called = _called(functions, (nodes[name] for name in run)) | _called(
        functions, (), _of_objects(graph.object_graph_def)
    )
    for name, node in nodes.items():
        extra = _extra(name in run, name in restoring)
        _refuse(path, node, "", functions, extra)
    for name, function in functions.items():
        extra = _extra(name in called, name in restored)
        for node in function.node_def:
            _refuse(path, node, name, functions, extra)


def _extra(run: bool, restoring: bool) -> Set[str]:
    """Operators that may stand somewhere beside those that compute."""
    if run:
        return frozenset()
    return safe.TENSORFLOW_RESTORING if restoring else safe.TENSORFLOW_SAVING


def _fetched(graph: Any) -> Iterator[str]:
    """Nodes that may be asked for: outputs of signatures, and what stands in a collection, as what
    initializes tables and variables does."""
    from tensorflow.core.framework.variable_pb2 import VariableDef

    for signature in graph.signature_def.values():
        for output in signature.outputs.values():
            yield output.name
            yield from (each.name for each in output.composite_tensor.components)
            sparse = output.coo_sparse
            yield from (
                sparse.values_tensor_name,
                sparse.indices_tensor_name,
                sparse.dense_shape_tensor_name,
            )
    for collection in graph.collection_def.values():
        yield from collection.node_list.value
        for content in collection.bytes_list.value:
            try:
                variable = VariableDef.FromString(content)
            except Exception:  # another message, which names no node; protobuf's own type
                continue
            yield from (variable.initializer_name, variable.initial_value_name)


def _before(nodes: Mapping[str, Any], fetched: Iterable[str]) -> set[str]:
    """Names of the nodes that compute these tensors, or have to run before them."""
    waiting, names = list(fetched), set()
    while waiting:
        name = waiting.pop().removeprefix("^").partition(":")[0]
        if name in nodes and name not in names:
            names.add(name)
            waiting += nodes[name].input
    return names


def _called(
    functions: Mapping[str, Any], nodes: Iterable[Any], names: Iterable[str] = ()
) -> set[str]:
    """Functions that these nodes call, and these functions, and so on."""
    waiting, called = [*names, *(name for node in nodes for name in _calls(node))], set()
    while waiting:
        name = waiting.pop()
        if name in functions and name not in called:
            called.add(name)
            waiting += (each for node in functions[name].node_def for each in _calls(node))
    return called


def _calls(node: Any) -> Iterator[str]:
    """What a node may call: a function may stand for an operator, or be an attribute of one."""
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (each.name for each in value.list.func)


def _of_objects(graph: Any) -> Iterator[str]:
    """Functions of the objects in a SavedModel: those that are served, make and fill resources,
    restore variables."""
    for node in graph.nodes:
        yield from node.function.concrete_functions
        yield node.bare_concrete_function.concrete_function_name


def _refuse(
    path: Path, node: Any, function: str, functions: Mapping[str, Any], extra: Set[str]
) -> None:
    operator = node.op
    if operator in safe.TENSORFLOW_OPERATORS or operator in functions or operator in extra:
        return
    where = f"{node.name} in the function {function}" if function else node.name
    why = "which is not known to compute only"
    if operator in safe.TENSORFLOW_SAVING:
        why = "which would run when the folder is loaded or served"
    raise InvalidModelError(
        f"{path}: {where} is the operator {operator}, {why}; pass --trust to run it here if you "
        f"know who made the folder"
    )
