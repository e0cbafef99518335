"""TFLite's flatbuffer of a canonical graph that is plain data."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from edgekit.base.errors import MissingDependencyError
from edgekit.graph import litert
from edgekit.graph.plain import Array, Graph, Operator

_IDENTIFIER = b"TFL3"
DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
    "COMPLEX64": np.complex64,
}


@functools.cache
def schema() -> Any:
    """LiteRT's generated code of the schema.

    Raises:
        MissingDependencyError: If ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise MissingDependencyError("ai-edge-litert", "convert") from None
    return schema_py_generated


def write(graph: Graph, *, signature: bool = True) -> bytes:
    """A flatbuffer of a graph; constants of the same content are kept once.

    Args:
        graph: Canonical.
        signature: Give it a signature; parts that are run at once need none.
    """
    tables = schema()
    model = tables.ModelT()
    model.version = 3
    model.buffers, model.operatorCodes = [_buffer(None)], []
    known: dict[tuple[Any, ...], int] = {}
    codes: dict[tuple[str, int], int] = {}
    model.subgraphs = [_subgraph(graph, model, known, codes)]
    if signature:
        places = {name: place for place, name in enumerate(graph.tensors)}
        found = tables.SignatureDefT()
        found.signatureKey, found.subgraphIndex = litert.SIGNATURE_KEY.encode(), 0
        for side in ("inputs", "outputs"):
            entries = []
            for key, name in getattr(graph, side).items():
                entry = tables.TensorMapT()
                entry.name, entry.tensorIndex = key.encode(), places[name]
                entries.append(entry)
            setattr(found, side, entries)
        model.signatureDefs = [found]
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _subgraph(
    graph: Graph,
    model: Any,
    known: dict[tuple[Any, ...], int],
    codes: dict[tuple[str, int], int],
) -> Any:
    tables = schema()
    kinds = {np.dtype(kind): getattr(tables.TensorType, name) for name, kind in DTYPES.items()}
    places = {name: place for place, name in enumerate(graph.tensors)}
    subgraph = tables.SubGraphT()
    subgraph.name = b"main"
    subgraph.tensors, subgraph.operators = [], []
    for tensor in graph.tensors.values():
        made = tables.TensorT()
        made.name, made.buffer = tensor.name.encode(), 0
        made.type = kinds[tensor.dtype]
        made.shape = np.asarray(tensor.shape, np.int32)
        if tensor.value is not None:
            made.buffer = _kept(tensor.value, model, known)
        subgraph.tensors.append(made)
    for operator in graph.operators:
        raw = tables.OperatorT()
        raw.opcodeIndex = _code(operator, model, codes)
        raw.inputs = [places[name] if name else -1 for name in operator.inputs]
        raw.outputs = [places[name] for name in operator.outputs]
        if operator.form:
            options = getattr(tables, operator.form + "T")()
            for key, value in operator.options.items():
                setattr(options, key, value)
            if hasattr(tables.BuiltinOptions, operator.form):
                raw.builtinOptionsType = getattr(tables.BuiltinOptions, operator.form)
                raw.builtinOptions = options
            else:
                raw.builtinOptions2Type = getattr(tables.BuiltinOptions2, operator.form)
                raw.builtinOptions2 = options
        subgraph.operators.append(raw)
    subgraph.inputs = [places[name] for name in dict.fromkeys(graph.inputs.values())]
    subgraph.outputs = [places[name] for name in graph.outputs.values()]
    return subgraph


def _kept(value: Array, model: Any, known: dict[tuple[Any, ...], int]) -> int:
    """Number of the buffer that holds values, added if there is none."""
    whole = np.asarray(value, order="C")
    key = (whole.nbytes, hash(whole.tobytes()), whole.dtype.str)
    place = known.get(key)
    if place is not None and model.buffers[place].content == whole.tobytes():
        return place
    model.buffers.append(_buffer(whole))
    known[key] = len(model.buffers) - 1
    return known[key]


def _code(operator: Operator, model: Any, codes: dict[tuple[str, int], int]) -> int:
    """Number of an operator's code in the file; it is added if it is not there."""
    tables = schema()
    key = (operator.kind, operator.version)
    if key not in codes:
        made = tables.OperatorCodeT()
        number = getattr(tables.BuiltinOperator, operator.kind)
        made.builtinCode, made.version = number, operator.version
        made.deprecatedBuiltinCode = min(number, 127)
        codes[key] = len(model.operatorCodes)
        model.operatorCodes.append(made)
    return codes[key]


class _Buffer:
    """Constants, aligned to 16 bytes as the format's schema asks for."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def Pack(self, builder: Any) -> int:  # noqa: N802 -- the generated code calls it
        tables, vector = schema(), 0
        if self.content:
            builder.StartVector(1, len(self.content), 16)
            builder.head -= len(self.content)
            builder.Bytes[builder.head : builder.head + len(self.content)] = self.content
            vector = builder.EndVector()
        tables.BufferStart(builder)
        if vector:
            tables.BufferAddData(builder, vector)
        return int(tables.BufferEnd(builder))


def _buffer(value: Array | None) -> _Buffer:
    return _Buffer(b"" if value is None else value.tobytes())


def fold(graph: Graph) -> None:
    """Store what is computed from constants alone, in place."""
    kept = []
    for operator in graph.operators:
        names = [name for name in operator.inputs if name]
        if not names or not all(map(graph.is_constant, names)):
            kept.append(operator)
            continue
        opened = litert.interpreter(write(graph.part(operator), signature=False))
        litert.invoke(opened)
        for name, detail in zip(operator.outputs, opened.get_output_details(), strict=True):
            value = opened.get_tensor(detail["index"])
            graph.put(replace(graph[name], value=value, shape=value.shape))
    graph.operators = kept
    graph.drop_unused()
