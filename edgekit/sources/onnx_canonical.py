"""Convert a float ONNX file to the canonical graph, a float TFLite flatbuffer, and prove that both
compute the same.

A picture with channels first in the file gets channels last, as TFLite's layers have them. Every
other input, and all outputs, keep the axes that they have in the file, so that code around the
model can use TFLite's outputs like those of ONNX. ``--layout`` keeps the axes of inputs too, or
gives outputs with four axes channels last as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.base.errors import ExecutionError, InvalidModelError, NoTfliteFormError
from edgekit.graph import flatbuffer, litert, onnx, plain_tflite
from edgekit.records import signature
from edgekit.records.signature import Layout, Signature
from edgekit.sources import onnx_graph, onnx_source, onnx_trace, tflite_same

#: Difference that rounding explains whatever the size, as of a sigmoid that is nearly 0.
_ROUNDING = 1e-6
#: Share of whole numbers that may differ: places of the largest of nearly equal values.
_OTHERS = 1e-2


@dataclass(frozen=True)
class Converted:
    """A canonical graph and how it lays out the values of the file.

    Attributes:
        content: Flatbuffer with batch 1 and one signature, which has the file's names; states and
            scalars among the inputs are without a batch, as in the file.
        orders: The axes of a value of the file in the order in which the tensor of its name has
            them; a value that the graph has no tensor for is left out.
        tensors: All tensors that hold a value of the file, whatever their axes.
    """

    content: bytes
    orders: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, tuple[str, ...]]


def from_onnx(
    model: Any, name: str, *, layout: Layout = "", kept: Mapping[str, Any] | None = None
) -> Converted:
    """The canonical graph of a model that :func:`edgekit.sources.onnx_source.read` has read.

    Args:
        model: ``onnx.ModelProto``; stays as it is.
        name: Name of the file, for messages.
        layout: Where the channels of inputs and outputs lie.
        kept: Encodings of values that no operator may be merged over.

    Raises:
        NoTfliteFormError: If an operator has no TFLite form, which is named with its node; if the
            graph computes something else.
    """
    if len(model.functions):
        model = onnx.package().inliner.inline_local_functions(model)
    model_signature = onnx.signature(model)
    try:
        traced = onnx_trace.trace(model, onnx_source.random_feed(model_signature, seed=0))
        graph, orders, tensors = onnx_graph.convert(
            traced, channels_last=turned(model_signature, layout), kept=kept
        )
        content = plain_tflite.write(graph)
        content = flatbuffer.canonical(content, name, key=litert.SIGNATURE_KEY, states=True)
        litert.interpreter(content)
    except InvalidModelError as exc:
        raise NoTfliteFormError(name, str(exc)) from None
    _check(model, content, model_signature, name, signature.turned(model_signature.outputs, layout))
    return Converted(content, orders, tensors)


def turned(model_signature: Signature, layout: Layout = "") -> tuple[str, ...]:
    """Names of the inputs and outputs whose channels TFLite has last: pictures that have them first
    in the file."""
    inputs = () if layout == "keep" else model_signature.inputs
    names = [spec.name for spec in inputs if spec.picture != spec.sample]
    return (*names, *signature.turned(model_signature.outputs, layout))


def _check(
    model: Any, content: bytes, model_signature: Signature, name: str, last: Collection[str]
) -> None:
    """Refuse a graph that computes something else than the file, on random numbers."""
    feed = onnx_source.random_feed(model_signature, seed=1)
    names = [spec.name for spec in model_signature.outputs]
    opened = onnx.session(model.SerializeToString())
    own = {spec.name: spec for spec in litert.signature(content).inputs}
    try:
        right = dict(zip(names, onnx.run(opened, names, feed), strict=True))
        runner = litert.interpreter(content).get_signature_runner(litert.SIGNATURE_KEY)
        arrays = {key: own[key].quantize(own[key].arrange(each)) for key, each in feed.items()}
        wrong = litert.invoke(runner, **arrays)
    except ExecutionError as exc:
        raise NoTfliteFormError(name, str(exc)) from None
    for spec in model_signature.outputs:
        other = wrong[spec.name]
        if spec.name in last:
            other = np.moveaxis(other, -1, 1)
        said = tflite_same.difference_of(
            spec.name, right[spec.name], other, rounding=_ROUNDING, others=_OTHERS
        )
        if said:
            raise NoTfliteFormError(name, said)
