"""A float TFLite file with a batch of several, rewritten to one sample at a time.

Shapes of all tensors follow from those of the inputs; what else holds the size of the batch, such
as the new shape of a RESHAPE, is written anew. That the samples of a batch are computed each on its
own is tried, not assumed.
"""

from __future__ import annotations

import numpy as np

from edgekit.base.errors import ExecutionError, InvalidModelError, reason
from edgekit.graph import litert
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.sources import tflite_same

#: Input that holds the sizes of an output, by operator.
_SIZES = {
    "BROADCAST_TO": 1,
    "FILL": 0,
    "RESHAPE": 1,
    "SLICE": 2,
    "TRANSPOSE_CONV": 0,
}


def single(content: bytes, name: str) -> bytes:
    """The same model with a batch of 1; a file whose batch is 1 or free stays as it is.

    Args:
        content: A float file of any converter.
        name: Name of the file, for messages.

    Raises:
        InvalidModelError: If the batch cannot be 1: an operator needs its size, or computes with
            several samples at once.
    """
    try:
        graph = Graph(content, distinct=True)
    except InvalidModelError:
        return content  # canonical() says what is wrong
    batch = _batch(graph)
    if batch <= 1:
        return content
    said = f"{name} takes batches of {batch} only"
    fix = "save or convert it with a batch of 1, or a free one (None)"
    _write_sizes(graph, batch, said, fix)
    try:
        resized = _resized(graph)
    except (InvalidModelError, ExecutionError, RuntimeError, ValueError) as exc:
        raise InvalidModelError(f"{said}, and does not run with 1: {reason(exc)}; {fix}") from None
    if not _same_outputs(content, resized, batch):
        raise InvalidModelError(
            f"{said}, and computes other outputs with 1: the outputs of a sample depend on the "
            f"others of its batch; {fix}"
        )
    return resized


def batch_of(content: bytes) -> int:
    """First size of all inputs of a file; 0 where they differ.

    Raises:
        InvalidModelError: If it cannot be read.
    """
    return _batch(Graph(content, distinct=True))


def _batch(graph: Graph) -> int:
    sizes = {graph.shape(tensor)[0] for tensor in graph.inputs if graph.shape(tensor)}
    return sizes.pop() if len(sizes) == 1 else 0


def _write_sizes(graph: Graph, batch: int, said: str, fix: str) -> None:
    """Let constants hold 1 where they hold the size of the batch, in place."""
    for operator in graph.operators:
        place = _SIZES.get(operator.kind)
        for i, name in enumerate(operator.inputs):
            if not graph.is_constant(name):
                continue
            values = graph.constant(name)
            if i == place and values.ndim == 1 and values.size and values[0] == batch:
                values[0] = 1
                graph.set_constant(name, values)
            elif (
                values.dtype == np.float32
                and values.ndim > 1
                and len(values) == batch
                and operator.kind not in ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "GATHER")
                and graph.shape(operator.outputs[0])[:1] == (batch,)
            ):  # e.g. the state that a recurrent layer starts with
                if not (values == values[:1]).all():
                    raise InvalidModelError(
                        f"{said}: a constant of {short_name(operator.outputs[0])} differs from "
                        f"sample to sample; {fix}"
                    )
                graph.store(name, values[:1])


def _resized(graph: Graph) -> bytes:
    """The graph whose inputs have a batch of 1, with the sizes that follow.

    Raises:
        RuntimeError, ValueError: As LiteRT raises where they do not fit.
    """
    places = {name: index for index, name in enumerate(graph.tensors)}
    sizes = {places[name]: (1, *graph.shape(name)[1:]) for name in graph.inputs}
    opened = litert.interpreter(graph.serialize(), exact=True, sizes=sizes)
    for detail in opened.get_input_details():
        opened.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    litert.invoke(opened)
    shapes = {detail["index"]: detail["shape"] for detail in opened.get_tensor_details()}
    for index, tensor in enumerate(graph.tensors):
        graph.set_shape(tensor, tuple(map(int, shapes[index])))
    return graph.serialize()


def _same_outputs(several: bytes, one: bytes, batch: int) -> bool:
    """Whether a batch of random samples gives the outputs that they give one by one."""
    whole, alone = litert.interpreter(several), litert.interpreter(one)
    feed = tflite_same.random_feed(whole)
    expected = tflite_same.outputs(whole, feed)
    if any(len(np.atleast_1d(values)) != batch for values in expected):
        return False
    for i in range(min(batch, 3)):
        own = tflite_same.outputs(alone, [values[i : i + 1] for values in feed])
        if tflite_same.difference(own, [values[i : i + 1] for values in expected]):
            return False
    return True
