"""Run an ONNX model once, to know the size of every value, and the values that never change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.base.errors import InvalidModelError, MissingDependencyError, reason
from edgekit.graph import onnx
from edgekit.graph.plain import Array
from edgekit.sources.onnx_graph import Node, Traced

#: Branches within branches.
_MOST_BRANCHES = 8


def trace(model: Any, feed: Mapping[str, Array]) -> Traced:
    """Run a model with every value as an output.

    Args:
        model: ``onnx.ModelProto`` whose weights are in it; stays as it is.
        feed: One sample by input name.

    Raises:
        InvalidModelError: If onnxruntime cannot run it, it holds control flow, or operators of
            other domains than ONNX's own.
    """
    for _ in range(_MOST_BRANCHES):  # a branch can hold another
        inlined = _without_branches(model, feed) or _both_branches(model, feed)
        if inlined is None:
            break
        model = inlined
    opset = max(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    constants: dict[str, Array] = dict(onnx.stored_constants(model))
    nodes: list[Node] = []
    seen: set[str] = set()
    for raw in model.graph.node:
        name = raw.name or raw.output[0]
        if name in seen:
            name = f"{name}__{len(nodes)}"
        seen.add(name)
        if raw.domain not in ("", "ai.onnx"):
            raise InvalidModelError(
                f"{raw.op_type} {name} is an operator of {raw.domain}, not of ONNX itself, and has "
                f"no TFLite form"
            )
        attributes = {each.name: _plain(each) for each in raw.attribute}
        inputs, outputs = tuple(raw.input), tuple(raw.output)
        around = onnx.captured(raw)
        nodes.append(Node(raw.op_type, name, inputs, outputs, attributes, int(opset), around))
    names = [name for node in nodes for name in node.outputs if name]
    values = dict(zip(names, _run(model, names, feed), strict=True))
    input_names = [value.name for value in model.graph.input if value.name not in constants]
    values.update({name: np.asarray(feed[name]) for name in input_names})
    for node in nodes:
        if node.kind == "Constant":
            constants[node.outputs[0]] = values[node.outputs[0]]
    return Traced(
        tuple(node for node in nodes if node.kind != "Constant"),
        constants,
        values,
        tuple(input_names),
        tuple(value.name for value in model.graph.output),
    )


def _without_branches(model: Any, feed: Mapping[str, Array]) -> Any:
    """The model with the branch that is always taken in place of each If whose condition never
    changes; None where there is none."""
    stored: dict[str, Array] = dict(onnx.stored_constants(model))
    static, branching = set(stored), []
    for place, node in enumerate(model.graph.node):
        if node.op_type == "If":
            if node.input[0] in static:
                branching.append(place)
        elif node.op_type in ("Shape", "Size", "Constant") or (
            node.input and static.issuperset(filter(None, (*node.input, *onnx.captured(node))))
        ):
            static.update(node.output)
    if not branching:
        return None
    conditions = {model.graph.node[place].input[0] for place in branching} - set(stored)
    asked = sorted(conditions)
    known = {**stored, **dict(zip(asked, _run(model, asked, feed) if asked else [], strict=True))}
    inlined = onnx.copied(model)
    nodes = []
    for place, node in enumerate(model.graph.node):
        if place not in branching:
            nodes.append(node)
            continue
        condition = bool(np.ravel(known[node.input[0]])[0])
        branch = _branch(node, "then_branch" if condition else "else_branch", f"__branch_{place}")
        nodes += branch.node
        inlined.graph.initializer.extend(branch.initializer)
        for result, output in zip(branch.output, node.output, strict=True):
            nodes.append(onnx.package().helper.make_node("Identity", [result.name], [output]))
    del inlined.graph.node[:]
    inlined.graph.node.extend(nodes)
    return inlined


def _both_branches(model: Any, feed: Mapping[str, Array]) -> Any:
    """The model with both branches of each If, of whose outputs the condition picks one; None where
    there is no If, or a branch does not take what the other is for."""
    merged = onnx.copied(model)
    make, nodes, pairs = onnx.package().helper.make_node, [], []
    for place, node in enumerate(model.graph.node):
        if node.op_type != "If":
            nodes.append(node)
            continue
        branches = [_branch(node, f"{side}_branch", f"__{side}_{place}") for side in _SIDES]
        for branch in branches:
            nodes += branch.node
            merged.graph.initializer.extend(branch.initializer)
        for output, *results in zip(node.output, *(b.output for b in branches), strict=True):
            pairs.append(tuple(result.name for result in results))
            nodes.append(make("Where", [node.input[0], *pairs[-1]], [output], f"{output}__choice"))
    if not pairs:
        return None
    del merged.graph.node[:]
    merged.graph.node.extend(nodes)
    names = sorted({name for pair in pairs for name in pair})
    try:
        values = dict(zip(names, _run(merged, names, feed), strict=True))
    except InvalidModelError:
        return None
    same = all(values[one].shape == values[other].shape for one, other in pairs)
    return merged if same else None


_SIDES = ("then", "else")


def _branch(node: Any, which: str, suffix: str) -> Any:
    """A copy of a branch whose own values have names of their own."""
    branch = onnx.package().GraphProto()
    branch.CopyFrom(onnx.attribute(node, which, None))
    own = [tensor.name for tensor in branch.initializer]
    own += [name for inner in branch.node for name in inner.output if name]
    _rename(branch, {name: f"{name}{suffix}" for name in own})
    return branch


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give values other names, also where bodies inside read them, in place."""
    for value in (*graph.initializer, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
        for body in onnx.bodies(node):
            _rename(body, names)


def _plain(attribute: Any) -> Any:
    """An attribute's value; of text a ``str``."""
    value = onnx.package().helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if type(value).__name__ == "TensorProto":
        return onnx.package().numpy_helper.to_array(value)
    if isinstance(value, list):
        return tuple(v.decode(errors="replace") if isinstance(v, bytes) else v for v in value)
    return value


def _run(model: Any, names: list[str], feed: Mapping[str, Array]) -> list[Array]:
    """Values by name, as the nodes of the file compute them: onnxruntime merges none."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None
    watched = onnx.copied(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.add().name = name
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), settings, providers=[onnx.CPU]
        )
        return list(session.run(names, dict(feed)))
    except Exception as exc:  # onnxruntime raises its own types
        raise InvalidModelError(f"onnxruntime cannot run the model: {reason(exc)}") from None
