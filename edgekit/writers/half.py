"""ONNX in float16: no activation may overflow; those that would stay float32.

The largest number of float16 is 65,504. Weights beyond it are refused, since onnxruntime's
converter would cut them off without a word; masks that only a softmax reads are smaller instead.
Activations are measured on images. Operators that read or write one beyond half of the limit keep
float32 on both sides. The converter leaves operators without a float16 form as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError, MissingDependencyError, reason
from edgekit.base.quiet import quiet
from edgekit.data import feeds
from edgekit.graph import masks, onnx, onnx_forms
from edgekit.graph.flatbuffer import Operator, short_name
from edgekit.runtimes.emulation import target_of, types_of

LARGEST = masks.LARGEST
#: An activation is let into float16 up to this part of it: other images may go further.
ROOM = 0.5
_FLOAT, _FLOAT16 = 1, 10
#: float, float16, float64, bfloat16, and truth values, which are 0 or 1.
_REALS = (_FLOAT, _FLOAT16, 11, 16, 9)
_ROUNDING = onnx.MOVED | frozenset("Ceil Clip Concat Floor Gather Round Slice Split".split())


@dataclass(frozen=True)
class Half:
    """A float16 model.

    Attributes:
        model: ``onnx.ModelProto``, float32 in and out.
        float32_operators: Names of the operators that stay float32 because of what they would have
            to hold.
        largest: Largest magnitude of an activation of the float32 model.
        where: The tensor that has it.
    """

    model: Any
    float32_operators: tuple[str, ...]
    largest: float
    where: str

    def note(self, count: int) -> str:
        """What a reader should know, measured on ``count`` images."""
        description = (
            f"{len(self.float32_operators)} operators stay float32"
            if self.float32_operators
            else "all in float16"
        )
        return (
            f"float16 holds 65504; the largest activation of {count} images is {self.largest:.4g} "
            f"({short_name(self.where)}): {description}"
        )


def to_float16(
    model: Any, feed: Mapping[str, npt.NDArray[np.float32]], *, keep: Collection[str] = ()
) -> Half:
    """Convert a float32 model so that nothing in it overflows on the images given.

    Args:
        model: Float ``onnx.ModelProto``.
        feed: Preprocessed images ``[N, ...]`` by input name.
        keep: Names of nodes that stay float32 in any case.

    Raises:
        InvalidModelError: If a weight is beyond float16, or an activation is not finite.
    """
    model, masked = _with_masks(model)
    for tensor in onnx.tensors(model.graph):
        if tensor.data_type != _FLOAT:
            continue
        name, values = tensor.name, onnx.package().numpy_helper.to_array(tensor)
        largest = np.abs(values[~np.isinf(values)]).max(initial=0)  # float16 has infinities
        if not largest <= LARGEST:
            raise InvalidModelError(
                f"expected weights that float16 can hold, up to 65504, got "
                f"{largest:.3g} in {short_name(name)}; export it in float32"
            )
    magnitude_of = magnitudes(model, feed)
    counted = [name for name in magnitude_of if name not in masked]
    where = max(counted, key=lambda name: magnitude_of[name], default="")
    largest = magnitude_of.get(where, 0.0)
    if not np.isfinite(largest):
        raise InvalidModelError(
            f"expected finite activations, got NaN or infinity in {short_name(where)}, in float32 "
            f"already; pass --calibration with real inputs if random ones are to blame"
        )
    keep = {*keep, *_whole_numbers(model)}
    float32_operators = tuple(
        node.name
        for node in model.graph.node
        if node.name in keep
        or any(
            magnitude_of.get(name, 0.0) > ROOM * LARGEST
            for name in (*node.input, *node.output)
            if name not in masked
        )
    )
    half = converted(model, keep=float32_operators)
    if float32_operators:
        _join(half, {name for node in model.graph.node for name in node.output})
    onnx.store_once(half)
    return Half(half, float32_operators, largest, where)


def _with_masks(model: Any) -> tuple[Any, frozenset[str]]:
    """The model with masks that float16 holds, and the tensors that have them; itself where it has
    no mask beyond float16."""
    package, nodes = onnx.package(), model.graph.node
    graph = [Operator(node.op_type, tuple(node.input), tuple(node.output)) for node in nodes]
    outputs = {value.name for value in model.graph.output}
    outputs.update(name for node in nodes for name in onnx.captured(node))
    read = masks.read_by_softmax(graph, outputs)
    large = {
        tensor.name: masks.in_float16(values)
        for tensor in model.graph.initializer
        if tensor.name in read and tensor.data_type == _FLOAT
        if masks.beyond(values := package.numpy_helper.to_array(tensor))
    }
    if not large:
        return model, frozenset()
    masked_model = onnx.copied(model)
    for tensor in masked_model.graph.initializer:
        if tensor.name in large:
            tensor.CopyFrom(package.numpy_helper.from_array(large[tensor.name], tensor.name))
    return masked_model, masks.masked(graph, large)


def _whole_numbers(model: Any) -> frozenset[str]:
    """Names of the nodes that make integers of real numbers, such as indices, and that only hand
    these numbers on or round them: float16 does not hold each whole number beyond 2048."""
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in onnx.read_by(node):
            readers.setdefault(name, []).append(node.name)
    outputs = {value.name for value in model.graph.output}
    reals = {name for name, kind in types_of(model).items() if kind == _FLOAT}
    names: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "Cast":
            if node.input[0] in reals and target_of(node) not in _REALS:
                names.add(node.name)
        elif node.op_type in _ROUNDING and outputs.isdisjoint(node.output):
            read = [name for output in node.output for name in readers.get(output, [])]
            if read and names.issuperset(read):
                names.add(node.name)
    return frozenset(names)


def check(model: Any, half: Half) -> None:
    """Refuse a file in which no number is float16, whatever it is called.

    Args:
        model: The float32 model that ``half`` was made from.
        half: What :func:`to_float16` made.

    Raises:
        InvalidModelError: Names an operator that stays float32.
    """
    before, halved = (
        sum(
            tensor.data_type == kind and bool(tensor.dims)
            for tensor in converted_model.graph.initializer
        )
        for converted_model, kind in ((model, _FLOAT), (half.model, _FLOAT16))
    )
    if halved or (not before and _FLOAT16 in types_of(half.model).values()):
        return
    names = {tensor.name for tensor in model.graph.initializer if tensor.data_type == _FLOAT}
    nodes = [node for node in model.graph.node if not names.isdisjoint(onnx.read_by(node))]
    node = next(iter([*nodes, *model.graph.node]), None)
    why = "has no form in float16"
    if half.float32_operators:
        why = "would overflow, or makes a spectrum or variance"
    at = f"{node.op_type} {node.name}" if node is not None else "it"
    raise InvalidModelError(
        f"nothing of the model becomes float16: {at} {why}; export it in float32"
    )


def magnitudes(model: Any, feed: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, float]:
    """Largest magnitude of every float tensor of a float32 model, float inputs among them.

    Args:
        model: Float ``onnx.ModelProto``; stays as it is.
        feed: Preprocessed images by input name; run one at a time, so memory is that of one.
    """
    watched = onnx.copied(model)
    shapes = {value.name: value for value in watched.graph.value_info}
    there = {value.name for value in watched.graph.output}
    for node in watched.graph.node:
        for name in node.output:
            value = shapes.get(name)
            if name not in there and value is not None:
                if value.type.tensor_type.elem_type == _FLOAT:
                    watched.graph.output.append(value)
    session = onnx.session(watched.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    constants = onnx.stored_constants(model)
    endless = {  # infinite constants, and what hands them on
        name
        for name, values in constants.items()
        if values.dtype.kind == "f" and np.isinf(values).any()
    }
    for node in model.graph.node:
        if not endless.isdisjoint(node.input):
            endless.update(node.output)
    magnitude_of = {
        name: float(np.abs(values).max(initial=0))
        for name, values in feed.items()
        if values.dtype.kind == "f"  # indices stay integers
    }
    for sample in feeds.one_by_one(dict(feed), onnx.signature(model).inputs):
        for name, values in zip(names, onnx.run(session, names, sample), strict=True):
            if values.dtype == np.float32:
                # max of NaN is NaN in numpy, and stays so here; an infinite border of a pool, say,
                # is infinite in float16 too
                sizes = np.abs(values[~np.isinf(values)]) if name in endless else np.abs(values)
                magnitude_of[name] = float(
                    np.maximum(magnitude_of.get(name, 0.0), sizes.max(initial=0))
                )
    return {name: np.inf if np.isnan(value) else value for name, value in magnitude_of.items()}


def _join(half: Any, own: Collection[str]) -> None:
    """Where a float32 operator feeds another, let no float16 come in between, in place.

    The converter puts a cast to float16 behind the one and a cast back before the other. A cast of
    the model's own, of truth values or integers, it only turns into one to float16.

    Args:
        half: What the converter made.
        own: Tensors that nodes of the float32 model write.
    """
    makers = {name: node for node in half.graph.node for name in node.output}
    renamed: dict[str, str] = {}
    for node in half.graph.node:
        before = makers.get(node.input[0]) if node.op_type == "Cast" else None
        if before is None or before.op_type != "Cast":
            continue
        if (target_of(before), target_of(node)) != (_FLOAT16, _FLOAT):
            continue
        if before.output[0] in own:
            node.input[0] = before.input[0]
        else:
            renamed[node.output[0]] = before.input[0]
    outputs = {value.name for value in half.graph.output}
    for node in list(half.graph.node):
        if node.op_type == "Cast" and node.output[0] in renamed:
            if node.output[0] not in outputs:
                half.graph.node.remove(node)
                continue
            node.op_type, node.input[0] = "Identity", renamed[node.output[0]]
            del node.attribute[:]
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    used = {*onnx.read(half.graph), *outputs}
    for node in [n for n in half.graph.node if n.op_type == "Cast" and n.output[0] not in used]:
        half.graph.node.remove(node)
    onnx.package().checker.check_model(half)


def converted(model: Any, *, keep: Collection[str] = ()) -> Any:
    """Weights and computation in float16, float32 in and out.

    Weights have to lie in the range of float16, up to 65,504; :mod:`edgekit.writers.half` sees to
    it, and to what lies between the operators.

    Args:
        model: Float ``onnx.ModelProto``; stays as it is.
        keep: Names of nodes that stay float32, beside the operators that have no float16 form.
    """
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None
    prepared = onnx.copied(model)
    onnx_forms.transpose_behind_products(prepared)
    with quiet():
        half = convert_float_to_float16(prepared, keep_io_types=True, node_block_list=list(keep))
    casts: set[str] = set()
    for node in list(half.graph.node):  # one for each reader of a tensor, all under one name
        if node.op_type == "Cast" and node.output[0] in casts:
            half.graph.node.remove(node)
        elif node.op_type == "Cast":
            casts.add(node.output[0])
    onnx.sort(half)
    del half.graph.value_info[:]  # of constants that stay float32, it calls them float16
    try:
        onnx.package().checker.check_model(half, full_check=True)
    except Exception as exc:  # the checker's own types
        raise InvalidModelError(f"the graph becomes no valid float16: {reason(exc)}") from None
    return half
