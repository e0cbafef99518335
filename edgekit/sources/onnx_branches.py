"""An If of an ONNX file whose condition the file itself decides: the branch that it takes.

onnxruntime infers sizes of both branches, and refuses a model of which the other branch does not
take the sizes of its inputs, or ends the process (seen in 1.31).
"""

from __future__ import annotations

from typing import Any

from edgekit.graph import onnx

#: Operators whose outputs differ from run to run.
_RANDOM = (
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
)  # fmt: skip


def take(model: Any) -> tuple[str, ...]:
    """Put the nodes of its branch in place of each If that is decided, in place.

    Args:
        model: ``onnx.ModelProto`` whose constants are not among its inputs.

    Returns:
        A sentence for each.
    """
    said = []
    while (decided := _decided(model)) is not None:
        node, chosen = decided
        side = "then" if chosen else "else"
        said.append(
            f"{node.name or node.output[0]} is decided by the file's own numbers: it became its "
            f"{side} branch"
        )
        _inline(model.graph, node, side)
    return tuple(said)


def deciding(model: Any) -> tuple[str, tuple[str, ...]] | None:
    """(name of the first If, inputs of the model that its condition depends on), or None."""
    node = next((each for each in model.graph.node if each.op_type == "If"), None)
    if node is None:
        return None
    makers = {name: each for each in model.graph.node for name in each.output}
    inputs = [value.name for value in model.graph.input]
    waiting, seen = [node.input[0]], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in makers:
            waiting += makers[name].input
    return node.name or node.output[0], tuple(name for name in inputs if name in seen)


def _decided(model: Any) -> tuple[Any, bool] | None:
    """The first If whose condition depends on no input, and that condition."""
    known = {tensor.name for tensor in model.graph.initializer}
    makers = []
    for node in model.graph.node:
        plain = not any(True for _ in onnx.bodies(node)) and node.op_type not in _RANDOM
        if plain and all(name in known for name in node.input if name):
            makers.append(node)
            known.update(node.output)
    for node in model.graph.node:
        if node.op_type == "If" and node.input[0] in known:
            return node, _value(model, makers, node.input[0])
    return None


def _value(model: Any, nodes: list[Any], name: str) -> bool:
    """What nodes that read constants alone make of a condition."""
    package = onnx.package()
    part = package.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.graph.value_info[:]
    part.graph.node.extend(nodes)
    kind = package.TensorProto.BOOL
    part.graph.output.append(package.helper.make_tensor_value_info(name, kind, None))
    (condition,) = onnx.run(onnx.session(part.SerializeToString()), [name], {})
    return bool(condition.reshape(-1)[0])


def _inline(graph: Any, node: Any, side: str) -> None:
    """Put a branch in place of its If."""
    place, package = list(graph.node).index(node), onnx.package()
    branch, make = package.GraphProto(), package.helper.make_node
    branch.CopyFrom(onnx.attribute(node, f"{side}_branch", None))
    outputs = [
        make("Identity", [own.name], [name], name=name)
        for own, name in zip(branch.output, node.output, strict=True)
        if name
    ]
    graph.node.remove(node)
    for each in reversed([*branch.node, *outputs]):
        graph.node.insert(place, each)
    graph.initializer.extend(branch.initializer)
