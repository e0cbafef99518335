"""Where an ONNX model holds the tensors of the canonical graph, and how to read and feed them.

ONNX keeps images channels first, an int8 file keeps a tensor as integers behind a QuantizeLinear,
and what goes in and out has Keras' names; here all of it is in the canonical graph's words again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.formats import onnx
from edgekit.formats.flatbuffer import Graph

#: ONNX operators whose answer has its channels first, by specification.
_FIRST = frozenset(
    "Conv ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool BatchNormalization "
    "DepthToSpace SpaceToDepth".split()
)
#: Operators behind which the order of axes is that of the canonical graph.
_OWN = frozenset("Reshape Flatten Squeeze Gemm MatMul ReduceMean".split())
_GIVEN = "__given"
_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 10: np.float16}


@dataclass(frozen=True)
class Place:
    """Where a canonical tensor is.

    Attributes:
        tensor: Name in the ONNX model of what holds its values, real or integer.
        named: Name of the real values, as a viewer shows them.
        dtype: Of the values.
        sizes: Of the axes behind the batch.
        first: Whether channels come before height and width.
        encoding: (scale, zero_point as stored), or None of real values. It is what the first
            reader takes: if the writer used other numbers, the writer's layer is wrong.
    """

    tensor: str
    named: str
    dtype: Any
    sizes: tuple[int, ...]
    first: bool
    encoding: tuple[float, int] | None

    def real(self, values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Real values ``[N, ...]`` in the canonical layout ``shape``, of which N is ignored."""
        if self.encoding is not None:
            scale, zero_point = self.encoding
            values = (values.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)
        values = values.astype(np.float32, copy=False)
        if self.first and values.ndim == 4:
            values = values.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(values).reshape(len(values), *shape[1:])

    def own(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """What this tensor holds for real values ``[N, ...]`` in the canonical layout."""
        if self.first and values.ndim == 4:
            values = values.transpose(0, 3, 1, 2)
        if self.encoding is not None:
            scale, zero_point = self.encoding
            ends = np.iinfo(self.dtype)
            values = np.clip(np.rint(values / np.float32(scale)) + zero_point, ends.min, ends.max)
        whole = np.ascontiguousarray(values).astype(self.dtype)
        return whole.reshape(len(values), *self.sizes)


def places(model: Any, graph: Graph) -> dict[str, Place]:
    """Find the canonical tensors of a model.

    Args:
        model: ``onnx.ModelProto``, float or with QuantizeLinear and DequantizeLinear.
        graph: Canonical.

    Returns:
        By canonical name; a tensor that the model does not have, or has in another size, is left
        out.
    """
    constants = onnx.stored_constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    ends = dict(zip((value.name for value in model.graph.input), graph.inputs, strict=False))
    ends.update(zip((value.name for value in model.graph.output), graph.outputs, strict=False))
    known, first, shapes = set(graph.tensors), channels_first(model), _shapes(model)

    def canonical(name: str) -> str:
        plain = name.removesuffix("_QuantizeLinear_Input")
        return str(ends.get(plain, plain))

    readers = {
        node.input[0]: node
        for node in reversed(model.graph.node)
        if node.op_type == "DequantizeLinear"
    }
    chosen: dict[str, tuple[str, str, tuple[float, int] | None]] = {}
    moved: dict[str, tuple[str, str, tuple[float, int] | None]] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        source, maker = node.input[0], makers.get(node.input[0])
        by = readers.get(node.output[0], node)
        encoding = (float(constants[by.input[1]]), int(constants[by.input[2]]))
        behind = by.output[0]
        if canonical(source) in known:
            chosen.setdefault(canonical(source), (node.output[0], source, encoding))
        elif canonical(behind) in known:
            chosen.setdefault(canonical(behind), (node.output[0], behind, encoding))
        elif maker is not None and maker.op_type in ("Reshape", "Transpose"):
            moved.setdefault(canonical(maker.input[0]), (node.output[0], source, encoding))
    for node in model.graph.node:  # what pads integers, say
        maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if maker is not None and maker.op_type != "QuantizeLinear":
            encoding = (float(constants[node.input[1]]), int(constants[node.input[2]]))
            name = node.output[0]
            chosen.setdefault(canonical(name), (node.input[0], name, encoding))
    given = [value.name for value in model.graph.input]
    for name in [*given, *(output for node in model.graph.node for output in node.output)]:
        maker = makers.get(name)
        if maker is None or maker.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            chosen.setdefault(canonical(name), moved.get(canonical(name), (name, name, None)))
    found = {}
    for name, (tensor, named, stored) in chosen.items():
        if name not in known or tensor not in shapes:
            continue
        (kind, sizes), shape = shapes[tensor], graph.shape(name)
        if int(np.prod(sizes)) == int(np.prod(shape[1:])):
            # what the canonical graph has channels first as well is not turned
            turned = tensor in first and (len(shape) != 4 or sizes == (*shape[3:], *shape[1:3]))
            found[name] = Place(tensor, named, kind, sizes, turned, stored)
    return found


def own_places(model: Any) -> dict[str, Place]:
    """Every float tensor that a model computes, by its own name, as it is laid out there."""
    shapes = _shapes(model)
    return {
        name: Place(name, name, shapes[name][0], shapes[name][1], False, None)
        for name in (output for node in model.graph.node for output in node.output)
        if name in shapes and shapes[name][0] in (np.float32, np.float16)
    }


def watched(model: Any, found: Mapping[str, Place]) -> bytes:
    """The model with every place as an output."""
    changed = copy.deepcopy(model)
    _answer(changed, found)
    return bytes(changed.SerializeToString())


def cut(model: Any, found: Mapping[str, Place]) -> bytes:
    """The model cut at every place: what reads a tensor is fed, what writes it is an output.

    One run then computes every layer from inputs of its own. What is fed has the name that
    :func:`fed` says.
    """
    helper = onnx.package().helper
    changed = copy.deepcopy(model)
    given = {value.name for value in changed.graph.input}
    inner = {place.tensor: place for place in found.values() if place.tensor not in given}
    for node in changed.graph.node:
        for i, name in enumerate(node.input):
            if name in inner:
                node.input[i] = name + _GIVEN
    kinds = {dtype: number for number, dtype in _DTYPES.items()}
    read = {name for node in changed.graph.node for name in node.input}
    for name, place in inner.items():
        if name + _GIVEN in read:
            changed.graph.input.append(
                helper.make_tensor_value_info(
                    name + _GIVEN, kinds[place.dtype], ["batch", *place.sizes]
                )
            )
    _answer(changed, found)
    return bytes(changed.SerializeToString())


def fed(place: Place) -> str:
    """Name under which a cut model takes what this place holds."""
    return place.tensor + _GIVEN


def _answer(model: Any, found: Mapping[str, Place]) -> None:
    given = {value.name for value in model.graph.input}
    del model.graph.output[:], model.graph.value_info[:]
    for name in dict.fromkeys(place.tensor for place in found.values()):
        if name not in given:
            model.graph.output.add().name = name


def channels_first(model: Any) -> set[str]:
    """Tensors whose channels come before height and width."""
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type in _FIRST:
            first = True
        elif node.op_type == "Transpose":
            first = any(list(given.ints) == [0, 3, 1, 2] for given in node.attribute)
        elif node.op_type in _OWN:
            first = False
        else:
            first = any(name in found for name in node.input)
        if first:
            found.update(node.output)
    return found


def _shapes(model: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """(dtype, sizes behind the batch) of every tensor whose sizes are known."""
    inferred = onnx.package().shape_inference.infer_shapes(model)
    found = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.elem_type in _DTYPES and sizes and -1 not in sizes[1:]:
            found[value.name] = (_DTYPES[kind.elem_type], tuple(sizes[1:]))
    return found
