"""A ``.tflite`` file with free axes, at the sizes that it will run at."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.base.errors import EdgekitError, InvalidModelError, reason
from edgekit.graph import flatbuffer, litert
from edgekit.records import signature
from edgekit.records.signature import Shapes, TensorSpec


def sized(content: bytes, name: str, shapes: Shapes) -> bytes:
    """Give inputs their sizes, and every tensor behind them those that follow.

    What the graph computes from sizes alone becomes a constant.

    Args:
        content: A file of any converter.
        name: Name of the file, for messages.
        shapes: By the input's name; may be empty.

    Returns:
        The file as it is where no axis of a tensor behind the batch is free and ``shapes`` says
        nothing new.

    Raises:
        InvalidOptionError: If an axis stays free, or a size is not the file's.
        InvalidModelError: If it cannot run at these sizes.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        specs = _specs(model)
    except Exception:  # flatbuffers raises many types: canonical() says what is wrong
        return content
    new_specs = signature.sized(specs, shapes, name)
    signature.refuse_free(new_specs, name)
    subgraph = model.subgraphs[0]
    if new_specs == specs and not any(map(_free_behind_batch, subgraph.tensors)):
        return content
    for buffer in model.buffers:
        if buffer.offset > 1:  # what is too large for a flatbuffer lies behind it
            data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.data, buffer.offset, buffer.size = data, 0, 0
    kinds = {value: key for key, value in vars(schema.BuiltinOperator).items()}
    try:
        sizes = {
            int(index): [abs(size) for size in spec.shape]  # a free batch is 1
            for index, spec in zip(subgraph.inputs, new_specs, strict=True)
        }
        opened = litert.interpreter(content, exact=True, sizes=sizes)
        for detail in opened.get_input_details():
            opened.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
        opened.invoke()
    except (EdgekitError, RuntimeError, ValueError) as exc:
        raise InvalidModelError(
            f"{name} cannot run at {', '.join(map(_in_words, new_specs))}: {reason(exc)}; pass "
            f"other sizes with --shape"
        ) from None
    details = {detail["index"]: detail for detail in opened.get_tensor_details()}
    for index, tensor in enumerate(subgraph.tensors):
        if index in details:
            tensor.shape = np.asarray(details[index]["shape"], np.int32)
            tensor.shapeSignature = None
    fixed = {i for i, each in enumerate(subgraph.tensors) if _is_stored(model, each)}
    kept = []
    for operator in subgraph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode), "")
        of_sizes = kind in ("SHAPE", "RANK")
        if not of_sizes and not {int(i) for i in operator.inputs if i >= 0} <= fixed:
            kept.append(operator)
            continue
        if any(int(i) in map(int, subgraph.outputs) for i in operator.outputs):
            kept.append(operator)
            continue
        for index in map(int, operator.outputs):
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(opened.get_tensor(index).tobytes(), np.uint8)
            model.buffers.append(buffer)
            subgraph.tensors[index].buffer = len(model.buffers) - 1
            fixed.add(index)
    subgraph.operators = kept
    return flatbuffer.pack(model)


def _specs(model: Any) -> tuple[TensorSpec, ...]:
    """Inputs of the first subgraph, as :func:`edgekit.graph.flatbuffer.canonical` names them."""
    subgraph = model.subgraphs[0]
    names = {
        each.tensorIndex: each.name.decode(errors="replace")
        for signed in (model.signatureDefs or [])[:1]
        for each in signed.inputs
    }
    inputs = [subgraph.tensors[int(index)] for index in subgraph.inputs]
    own_names = flatbuffer.unsigned([each.name.decode(errors="replace") for each in inputs])
    specs = []
    for index, tensor, own_name in zip(map(int, subgraph.inputs), inputs, own_names, strict=True):
        shape = [int(size) for size in ([] if tensor.shape is None else tensor.shape)]
        free = tensor.shapeSignature
        if free is not None and len(free) == len(shape):
            shape = [-1 if int(f) < 0 else own for f, own in zip(free, shape, strict=True)]
        specs.append(TensorSpec(names.get(index, own_name), tuple(shape), "float32"))
    return tuple(specs)


def _free_behind_batch(tensor: Any) -> bool:
    """Whether the sizes of a tensor are known only when the model runs, as where an operator reads
    them from another tensor."""
    sizes = tensor.shapeSignature
    return sizes is not None and any(size < 0 for size in sizes[1:])


def _is_stored(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _in_words(spec: TensorSpec) -> str:
    return f"{spec.name} {list(spec.shape)}"
