"""Write a canonical graph that is plain data as a TFLite flatbuffer."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from edgekit.base.errors import MissingDependencyError
from edgekit.graph import flatbuffer, litert
from edgekit.graph.plain import Array, Graph, Operator

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
    model.buffers, model.operatorCodes = [tables.BufferT()], []
    codes: dict[tuple[str, int], int] = {}
    model.subgraphs = [_subgraph(graph, model, codes)]
    if signature:
        places = {name: place for place, name in enumerate(graph.tensors)}
        definition = tables.SignatureDefT()
        definition.signatureKey, definition.subgraphIndex = litert.SIGNATURE_KEY.encode(), 0
        for side in ("inputs", "outputs"):
            tensor_maps = []
            for key, name in getattr(graph, side).items():
                tensor_map = tables.TensorMapT()
                tensor_map.name, tensor_map.tensorIndex = key.encode(), places[name]
                tensor_maps.append(tensor_map)
            setattr(definition, side, tensor_maps)
        model.signatureDefs = [definition]
    return flatbuffer.pack(model)


def _subgraph(graph: Graph, model: Any, codes: dict[tuple[str, int], int]) -> Any:
    tables = schema()
    kinds = {np.dtype(kind): getattr(tables.TensorType, name) for name, kind in DTYPES.items()}
    places = {name: place for place, name in enumerate(graph.tensors)}
    subgraph = tables.SubGraphT()
    subgraph.name = b"main"
    subgraph.tensors, subgraph.operators = [], []
    for tensor in graph.tensors.values():
        raw_tensor = tables.TensorT()
        raw_tensor.name, raw_tensor.buffer = tensor.name.encode(), 0
        raw_tensor.type = kinds[tensor.dtype]
        raw_tensor.shape = np.asarray(tensor.shape, np.int32)
        if tensor.value is not None:
            raw_tensor.buffer = len(model.buffers)
            model.buffers.append(_buffer(tensor.value))
        subgraph.tensors.append(raw_tensor)
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


def _code(operator: Operator, model: Any, codes: dict[tuple[str, int], int]) -> int:
    """Number of an operator's code in the file; it is added if it is not there."""
    tables = schema()
    key = (operator.kind, operator.version)
    if key not in codes:
        code = tables.OperatorCodeT()
        number = getattr(tables.BuiltinOperator, operator.kind)
        code.builtinCode, code.version = number, operator.version
        code.deprecatedBuiltinCode = min(number, 127)
        codes[key] = len(model.operatorCodes)
        model.operatorCodes.append(code)
    return codes[key]


def _buffer(value: Array) -> Any:
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(value.tobytes(), np.uint8)
    return buffer


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
