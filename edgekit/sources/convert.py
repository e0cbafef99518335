"""Keras models and TensorFlow functions as float TFLite flatbuffers, by TensorFlow's converter."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from edgekit.base.errors import InvalidModelError, reason
from edgekit.base.quiet import quiet
from edgekit.graph import litert
from edgekit.graph.flatbuffer import Graph
from edgekit.records.signature import Shapes
from edgekit.sources import keras
from edgekit.sources.keras import tensorflow


def from_keras(model: Any, shapes: Shapes | None = None) -> bytes:
    """Convert a functional model of Keras 2 or 3 to a float flatbuffer with batch size 1.

    Args:
        model: One or more inputs, one or more outputs.
        shapes: Sizes of inputs with free axes, by name.

    Returns:
        The flatbuffer.

    Raises:
        InvalidModelError: If an input has no fixed size, or the converter refuses the model.
    """
    tf = tensorflow()
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in zip(keras.input_names(model), model.inputs, strict=True)
    ]
    content = from_function(
        lambda *inputs: keras.call(model, inputs),
        specs,
        keras.output_names(model),
        shapes,
    )
    graph = Graph(content)
    renamed = keras.own_names(model, graph.tensors)
    graph.rename(renamed)
    return graph.serialize() if renamed else content


def from_function(
    forward: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[str],
    shapes: Shapes | None = None,
) -> bytes:
    """Convert a TensorFlow function to a float flatbuffer with batch size 1.

    Freezes the forward pass first and converts a SavedModel of constants, which gives the same
    flatbuffer as ``TFLiteConverter.from_keras_model`` in a fraction of its time.

    Args:
        forward: Takes one tensor for each input, gives one for each output.
        inputs: ``tf.TensorSpec`` with a name; a free first axis is the batch and becomes 1.
        outputs: A name for each output.
        shapes: Sizes of inputs with free axes, by name.

    Raises:
        InvalidModelError: If an input has no fixed size, or the converter refuses the model.
    """
    tf = tensorflow()
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    sizes = shapes or {}
    specs = [
        _fixed(tf.TensorSpec(sizes.get(spec.name, spec.shape), spec.dtype, name=spec.name))
        for spec in inputs
    ]

    def run(*tensors: Any) -> list[Any]:
        return list(forward(*tensors))

    frozen = convert_variables_to_constants_v2(tf.function(run).get_concrete_function(*specs))
    module = tf.Module()

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def serve(*tensors: Any) -> dict[str, Any]:
        return dict(zip(outputs, frozen(*tensors), strict=True))

    module.serve = serve
    with tempfile.TemporaryDirectory() as folder, quiet():
        try:
            # swish and others carry gradients that refer to the variables frozen away
            settings = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
            tf.saved_model.save(module, folder, {litert.SIGNATURE_KEY: serve}, settings)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            content = bytes(converter.convert())
        except Exception as exc:  # the converter raises its own, private types
            raise InvalidModelError(
                f"the model cannot be converted to TFLite: {_refusal(str(exc)) or reason(exc)}"
            ) from None
    graph = Graph(content)
    rewritten = [graph.spell_products(), graph.spell_hard_swishes(), graph.settle_names()]
    return graph.serialize() if any(rewritten) else content


def _fixed(spec: Any) -> Any:
    """An input with batch 1.

    Raises:
        InvalidModelError: If another axis is free.
    """
    tf = tensorflow()
    sizes = None if spec.shape.rank is None else spec.shape.as_list()
    if sizes:
        sizes[0] = sizes[0] or 1
    if sizes is None or None in sizes:
        raise InvalidModelError(
            f"expected a fixed size of input {spec.name}, got {spec.shape}; "
            f"build the model with the size that it will run at"
        )
    return tf.TensorSpec(sizes, spec.dtype, name=spec.name)


def _refusal(said: str) -> str | None:
    """Operators, and the layer of the first, in what the converter says of those it lacks."""
    match = re.search(r"ops: (.*)", said)
    if match is None:
        return None
    operators = match.group(1).split("\n")[0].strip()
    place = re.search(r'callsite\(.*?"([^"@]+)@|loc\("([^"@]+)"', said)
    where = next((name for name in place.groups() if name), None) if place else None
    at = f", first in {where}" if where else ""
    return f"TFLite has no operator {operators}{at}; replace the layer"
