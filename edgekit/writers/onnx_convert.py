"""Write ONNX from the canonical float graph, with its tensor names."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base.errors import InvalidModelError, MissingDependencyError, reason
from edgekit.base.quiet import quiet
from edgekit.graph import onnx as onnx_file
from edgekit.graph import onnx_forms
from edgekit.graph.flatbuffer import Graph
from edgekit.writers import onnx_repairs

OPSET = 18
#: Numbers in a name that tf2onnx made, and that of an output at its end.
_MADE, _PORT = re.compile(r"__[0-9]+(?![0-9A-Za-z])"), re.compile(r":[0-9]+$")


def from_tflite(canonical: bytes) -> Any:
    """Convert the canonical float flatbuffer; tensor names carry over.

    The global mean becomes GlobalAveragePool and a dense layer becomes Gemm, the forms that
    onnxruntime has integer kernels for. The batch axis becomes free where the graph allows.

    Args:
        canonical: Float flatbuffer.

    Returns:
        A checked ``onnx.ModelProto``.

    Raises:
        InvalidModelError: If an operator has no ONNX form.
    """
    model = _by_tf2onnx(canonical)
    onnx_repairs.repair(model, Graph(canonical))
    _number(model, Graph(canonical))
    free = onnx_file.copied(model)
    _free_batch(free)
    model = free if _batches(free, model) else model
    onnx = onnx_file.package()
    try:
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as exc:  # the checker's own types
        raise InvalidModelError(f"the graph becomes no valid ONNX: {reason(exc)}") from None
    return model


def _number(model: Any, graph: Graph) -> None:
    """Number what tf2onnx named in the order in which it is read, so that the same model always
    gives the same file: its own numbers go on from one conversion to the next, and it goes through
    sets."""
    nodes = model.graph.node
    if any(attribute.HasField("g") for node in nodes for attribute in node.attribute):
        return  # names inside of branches are those outside
    own = {*graph.tensors, *(value.name for value in (*model.graph.input, *model.graph.output))}
    stored = {tensor.name for tensor in model.graph.initializer}
    numbered: dict[str, str] = {}
    counts: dict[tuple[str, str], Iterator[int]] = defaultdict(lambda: itertools.count(1))
    for group in _alike(graph):
        left = [name for name in group if name in stored]
        if len(left) == 1:
            numbered[left[0]] = group[0]

    def renamed(name: str) -> str:
        if name in numbered:
            return numbered[name]
        if name not in own and _MADE.search(name):
            stem, port = _MADE.sub("", _PORT.sub("", name)), _PORT.search(name)
            end = port[0] if port else ""
            while (numbered_name := f"{stem}__{next(counts[stem, end])}{end}") in own:
                pass
            numbered[name] = numbered_name
        return numbered.get(name, name)

    for node in nodes:
        node.name = renamed(node.name)
        for names in (node.input, node.output):
            names[:] = [renamed(name) for name in names]
    places: dict[str, int] = {}
    for name in (name for node in nodes for name in node.input):
        places.setdefault(name, len(places))
    for tensor in (*model.graph.initializer, *model.graph.value_info):
        tensor.name = renamed(tensor.name)
    model.graph.initializer.sort(
        key=lambda tensor: (places.get(tensor.name, len(places)), tensor.name)
    )


def _alike(graph: Graph) -> list[list[str]]:
    """Names of constants that hold the same numbers, of which tf2onnx keeps any one."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in graph.tensors:
        if graph.is_constant(name):
            values = graph.constant(name)
            digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()
            groups[values.dtype.str, values.shape, digest].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _by_tf2onnx(canonical: bytes) -> Any:
    """What tf2onnx writes."""
    try:
        import tf2onnx
    except ImportError:
        raise MissingDependencyError("tf2onnx", "convert") from None
    # tf2onnx loses the bias of a layer that flattens by itself, and knows no clip to [-1, 1]
    spelled = Graph(canonical)
    spellings = [spelled.flatten_dense(), spelled.spell_hard_tanh()]
    content = spelled.serialize() if any(spellings) else canonical
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "float.tflite"
        path.write_bytes(content)
        try:
            try:
                with _without_copies():
                    model, _ = tf2onnx.convert.from_tflite(str(path), opset=OPSET)
            except Exception:  # e.g. an optimizer that fails: it is left out then
                model, _ = tf2onnx.convert.from_tflite(str(path), opset=OPSET)
        except Exception as exc:  # tf2onnx raises many types
            raise InvalidModelError(
                f"the graph cannot be converted to ONNX: {reason(exc)}"
            ) from None
    del model.opset_import[1:]
    return model


@contextlib.contextmanager
def _without_copies() -> Iterator[None]:
    """Let tf2onnx's optimizers change the graph itself; an error in one ends the conversion then.

    By default it copies the graph before each of them, to go back where one fails. The copies take
    longer than the optimizers.
    """
    name = "TF2ONNX_CATCH_ERRORS"
    if name in os.environ:
        yield
        return
    os.environ[name] = "FALSE"
    try:
        yield
    finally:
        del os.environ[name]


def _free_batch(model: Any) -> None:
    """Make the batch axis free; Reshape copies it from its input instead of fixing it at 1, and
    Resize gets factors in place of sizes."""
    onnx = onnx_file.package()
    constants, shapes = onnx_file.stored_constants(model), onnx_forms.sizes(model)
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = constants[node.input[1]].copy()
            if len(shape) and shape[0] == 1:
                shape[0] = 0
                name = f"{node.output[0]}__shape"
                model.graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
                node.input[1] = name
        elif node.op_type == "Resize" and len(node.input) > 3:
            scales = onnx_repairs.scales_of(shapes.get(node.input[0]), constants.get(node.input[3]))
            if scales is not None:
                name = f"{node.output[0]}__scales"
                model.graph.initializer.append(onnx.numpy_helper.from_array(scales, name))
                node.input[2] = name
                del node.input[3]
    onnx_file.drop_unused(model)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _batches(free: Any, fixed: Any) -> bool:
    """Whether two samples at once compute as one at a time; a batch inside of the graph forbids it.

    A recurrent layer, say, has time before batch, and sizes that hold for one sample only; a layer
    normalization takes its mean over the batch axis where that was 1.
    """
    random = np.random.default_rng(0)
    feed = {}
    values: Any
    for spec in onnx_file.signature(fixed).inputs:
        if not spec.shape or spec.shape[0] != 1:
            return False
        shape = (2, *spec.shape[1:])
        if spec.dtype.startswith("float"):  # of another size and mean each
            values = random.uniform(0.1, 1, shape)
            values[1] *= 3
        else:
            values = random.integers(0, 2, shape)
        feed[spec.name] = values.astype(spec.dtype)
    alone = onnx_file.session(fixed.SerializeToString())
    try:
        whole = onnx_file.session(free.SerializeToString()).run(None, feed)
    except Exception:  # onnxruntime raises its own types where sizes do not fit
        return False
    for i in range(2):
        expected_outputs = alone.run(
            None, {name: values[i : i + 1] for name, values in feed.items()}
        )
        for outputs, expected in zip(whole, expected_outputs, strict=True):
            if outputs.shape != (2, *expected.shape[1:]):
                return False
            near = 1e-3 * float(np.abs(expected).max(initial=0))
            if not np.allclose(outputs[i : i + 1], expected, 1e-2, near, equal_nan=True):
                return False
    return True


def use_signature_names(model: Any, graph: Graph) -> None:
    """Give inputs and outputs the names that the canonical graph's signature has, in place."""
    renamed = {}
    for values, tensors, signed in (
        (model.graph.input, graph.inputs, graph.named_inputs),
        (model.graph.output, graph.outputs, graph.named_outputs),
    ):
        names: dict[str, list[str]] = {}
        for name, tensor in signed.items():
            names.setdefault(tensor, []).append(name)
        for value, tensor in zip(values, tensors, strict=True):
            renamed[value.name] = names[tensor].pop(0) if names.get(tensor) else tensor
            value.name = renamed[value.name]
    for node in model.graph.node:
        for tensor_names in (node.input, node.output):
            for i, name in enumerate(tensor_names):
                tensor_names[i] = renamed.get(name, name)
