"""Repairs of what tf2onnx writes otherwise than onnxruntime's kernels, or the names of the
canonical graph, ask for. Each changes the model in place and says what it is for;
:data:`REPAIRS` is their order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.base.errors import ExecutionError, InvalidModelError
from edgekit.graph import kernels, litert, onnx_forms
from edgekit.graph import onnx as onnx_file
from edgekit.graph.flatbuffer import Graph, short_name

#: The last of the ONNX operators that tf2onnx writes for one of TFLite's.
_LAST = {"SQUARED_DIFFERENCE": "Mul", "RSQRT": "Reciprocal"}


def _forget_sizes_of_states(model: Any, _: Graph) -> None:
    """tf2onnx calls the state of a loop a scalar where it does not know its sizes, as those of what
    another loop wrote; onnxruntime finds them by itself."""
    waiting = [model.graph]
    while waiting:
        for node in waiting.pop().node:
            for body in onnx_file.bodies(node):
                if node.op_type == "Loop":  # a count of rounds and a condition come first
                    for value in (*body.input[2:], *body.output[1:]):
                        if not value.type.tensor_type.shape.dim:
                            value.type.tensor_type.ClearField("shape")
                waiting.append(body)


def _spell_gelu(model: Any, _: Graph) -> None:
    """GELU, for which tf2onnx has no form, in operators of ONNX (Hendrycks and Gimpel 2016)."""
    onnx = onnx_file.package()
    make = onnx.helper.make_node
    for node in [node for node in model.graph.node if node.op_type == "TFL_GELU"]:
        source, result = node.input[0], node.output[0]
        exact = not onnx_file.attribute(node, "approximate", 0)
        numbers = {"half": 0.5, "one": 1.0, "root": 0.5**0.5 if exact else (2 / np.pi) ** 0.5}
        if not exact:
            numbers["cubic"] = 0.044715
        for name, value in numbers.items():
            array = np.array(value, np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{result}__{name}"))
        steps: list[tuple[str, list[str], str]] = []
        inner = source
        if not exact:
            steps += [
                ("Mul", [source, source], "square"),
                ("Mul", [f"{result}__square", source], "cube"),
                ("Mul", [f"{result}__cube", f"{result}__cubic"], "term"),
                ("Add", [f"{result}__term", source], "inner"),
            ]
            inner = f"{result}__inner"
        steps += [
            ("Mul", [inner, f"{result}__root"], "scaled"),
            ("Erf" if exact else "Tanh", [f"{result}__scaled"], "curve"),
            ("Add", [f"{result}__curve", f"{result}__one"], "raised"),
            ("Mul", [source, f"{result}__half"], "halved"),
            ("Mul", [f"{result}__halved", f"{result}__raised"], ""),
        ]
        place = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        for kind, inputs, name in reversed(steps):
            output = f"{result}__{name}" if name else result
            model.graph.node.insert(place, make(kind, inputs, [output], name=output))


def _where_instead_of_products(model: Any, _: Graph) -> None:
    """tf2onnx writes a choice between a and b as c a + (not c) b, in which an infinite number that
    is not chosen becomes NaN: Where."""
    makers = {name: node for node in model.graph.node for name in node.output}

    def parts(name: str) -> tuple[str, str] | None:
        """(condition or its opposite, what is chosen by it) of one product."""
        node = makers.get(name)
        if node is None or node.op_type != "Mul":
            return None
        for i in (0, 1):
            cast = makers.get(node.input[i])
            if cast is not None and cast.op_type == "Cast" and cast.input[0] in conditions:
                return cast.input[0], node.input[1 - i]
        return None

    conditions = {
        name
        for node in model.graph.node
        if node.op_type == "Not"
        for name in (node.input[0], node.output[0])
    }
    for node in list(model.graph.node):
        if node.op_type != "Add":
            continue
        first, second = parts(node.input[0]), parts(node.input[1])
        if first is None or second is None:
            continue
        opposite = makers.get(second[0])
        if opposite is None or opposite.op_type != "Not" or opposite.input[0] != first[0]:
            continue
        del node.attribute[:], node.input[:]
        node.op_type = "Where"
        node.input.extend([first[0], first[1], second[1]])
    _drop_unread(model)


def _drop_unread(model: Any) -> None:
    """Leave out nodes that nothing reads."""
    outputs = {value.name for value in model.graph.output}
    while True:
        read = {*onnx_file.read(model.graph), *outputs}
        unread = [node for node in model.graph.node if read.isdisjoint(node.output)]
        if not unread:
            return
        for node in unread:
            model.graph.node.remove(node)


def _round_factors(model: Any, _: Graph) -> None:
    """Raise factors of a Resize until its sizes, which are rounded down, are whole."""
    onnx = onnx_file.package()
    for node in model.graph.node:
        factors = onnx_file.stored_constants(model).get(node.input[2]) if _scaled(node) else None
        shape = None if factors is None else onnx_forms.sizes(model).get(node.input[0])
        if factors is None or shape is None:
            continue
        raised = scales_of(shape, np.rint(np.asarray(shape) * factors))
        if raised is not None and not np.array_equal(raised, factors):
            name = f"{node.output[0]}__scales"
            model.graph.initializer.append(onnx.numpy_helper.from_array(raised, name))
            node.input[2] = name


def _scaled(node: Any) -> bool:
    return node.op_type == "Resize" and len(node.input) == 3


def scales_of(shape: tuple[int, ...] | None, sizes: Any) -> Any:
    """Factors that give the same sizes, or None where rounding gives others."""
    if shape is None or sizes is None or len(shape) != len(sizes) or sizes[0] != shape[0]:
        return None
    before = np.asarray(shape, np.float32)
    scales = np.asarray(sizes, np.float32) / before
    for _ in range(4):  # sizes are rounded down
        low = np.floor(before * scales) < sizes
        low |= np.floor(before.astype(np.float64) * scales) < sizes
        if not low.any():
            break
        scales = np.where(low, np.nextafter(scales, np.float32(np.inf)), scales)
    return scales if np.array_equal(np.floor(before * scales), sizes) else None


def _pool_instead_of_mean(model: Any, graph: Graph) -> None:
    """The mean over height and width: a global average pool, then Flatten or Transpose.

    What the converter has channels last is brought to channels first for it.
    """
    helper = onnx_file.package().helper
    constants = onnx_file.stored_constants(model)
    makers = {node.output[0]: node for node in model.graph.node}
    canonical_tensors, outputs = set(graph.tensors), {value.name for value in model.graph.output}
    for node in list(model.graph.node):
        if node.op_type != "ReduceMean":
            continue
        axes = constants.get(node.input[1]) if len(node.input) > 1 else None
        over = [] if axes is None else sorted(axes.ravel().tolist())
        keeps_axes = bool(onnx_file.attribute(node, "keepdims", 1))
        if over == [2, 3] and keeps_axes and node.output[0] in canonical_tensors:
            if len(graph.shape(node.output[0])) == 4:  # channels first already
                del node.input[1:], node.attribute[:]
                node.op_type = "GlobalAveragePool"
            continue
        if over != [1, 2]:
            continue
        position = list(model.graph.node).index(node)
        before = makers.get(node.input[0])
        added = []
        if before is not None and _is_transpose(before, [0, 2, 3, 1]):
            first = before.input[0]
        else:
            first = f"{node.output[0]}__first"
            added.append(
                helper.make_node("Transpose", [node.input[0]], [first], first, perm=[0, 3, 1, 2])
            )
        pooled = node.output[0] + onnx_forms.POOLED
        added.append(helper.make_node("GlobalAveragePool", [first], [pooled], pooled))
        kind, form = "Flatten", dict[str, Any](axis=1)
        if keeps_axes:
            kind, form = "Transpose", {"perm": [0, 2, 3, 1]}
        added.append(helper.make_node(kind, [pooled], [node.output[0]], node.name, **form))
        model.graph.node.remove(node)
        for new_node in reversed(added):
            model.graph.node.insert(position, new_node)
        if before is None or before.output[0] in outputs:
            continue
        if not any(before.output[0] in reader.input for reader in model.graph.node):
            model.graph.node.remove(before)


def _is_transpose(node: Any, order: list[int]) -> bool:
    return node.op_type == "Transpose" and list(onnx_file.attribute(node, "perm", [])) == order


def _restore_gemm_names(model: Any, graph: Graph) -> None:
    """tf2onnx gives a dense layer it fuses a name of its own; give back the canonical tensor's.

    A sum that it fuses too, with something computed or of a layer without a bias of its own,
    becomes an operator of its own again.
    """
    sums = {name: o for o in graph.operators if o.kind == "ADD" for name in o.inputs}
    biased = {layer.output for layer in graph.layers if layer.bias is not None}
    constants = {tensor.name for tensor in model.graph.initializer}
    tensors = set(graph.tensors)
    for node in list(model.graph.node):
        canonical = node.output[0].rpartition("_Gemm__")[0]
        if node.op_type != "Gemm" or canonical not in tensors:
            continue
        makers = {output: other for other in model.graph.node for output in other.output}
        own = canonical in biased and len(node.input) > 2 and node.input[2] in constants
        summed = len(node.input) > 2 and canonical in sums and not own
        fused, name = node.output[0], canonical
        if summed:
            name = sums[canonical].outputs[0]
        if name in makers:  # the output of an activation behind it
            name = f"{name}__linear"
        if summed:
            add = onnx_file.package().helper.make_node(
                "Add", [canonical, node.input[2]], [name], name=name
            )
            model.graph.node.insert(list(model.graph.node).index(node) + 1, add)
            del node.input[2]
            node.output[0] = canonical
            if canonical in makers:  # computed for another reader already
                model.graph.node.remove(node)
        else:
            node.output[0] = name
        for other in model.graph.node:
            for i, source in enumerate(other.input):
                if source == fused:
                    other.input[i] = name


def _name_activations(model: Any, graph: Graph) -> None:
    """Give the canonical name to the last of the operators that one became, not to the first.

    tf2onnx calls the convolution's output as TFLite calls that of convolution and ReLU together.
    """
    lasts = {o.outputs[0]: _LAST[o.kind] for o in graph.operators if o.kind in _LAST}
    fused = graph.fused()
    makers = {output: node for node in model.graph.node for output in node.output}
    done: set[str] = set()
    outputs = {value.name for value in model.graph.output}
    for node in list(model.graph.node):
        activation = node.op_type in ("Clip", "Relu") and node.input[0] in fused
        if not node.input or not (activation or lasts.get(node.input[0]) == node.op_type):
            continue
        canonical, before = node.input[0], f"{node.input[0]}__linear"
        users = [other for other in model.graph.node if canonical in other.input]
        if len(users) != 1 or canonical not in makers or canonical in done:
            continue
        done.add(canonical)
        end = node.output[0]
        renamed = {canonical: before, end: canonical}
        for other in model.graph.node:
            for names in (other.input, other.output):
                for i, name in enumerate(names):
                    names[i] = renamed.get(name, name)
        if end in outputs:
            make = onnx_file.package().helper.make_node
            model.graph.node.append(make("Identity", [canonical], [end], name=end))


def _separate_outputs(model: Any, _: Graph) -> None:
    """Give an output that is an input, or another output again, a tensor of its own."""
    used = {value.name for value in model.graph.input}
    for i, value in enumerate(model.graph.output):
        if value.name in used:
            name = f"{value.name}__output_{i}"
            copied = onnx_file.package().helper.make_node(
                "Identity", [value.name], [name], name=name
            )
            model.graph.node.append(copied)
            value.name = name
        used.add(value.name)


def _part_from_turned_outputs(model: Any, graph: Graph) -> None:
    """Give a layer's output its name again where tf2onnx took out the Transpose behind it.

    The model's output is the layer's then, as it is: the model has its channels first as well.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    make = onnx_file.package().helper.make_node
    for operator in graph.operators:
        end, inner = operator.outputs[0], operator.inputs[0]
        if operator.kind != "TRANSPOSE" or end not in outputs or inner in makers:
            continue
        maker = makers[end]
        if maker.op_type not in ("Conv", "ConvTranspose"):
            continue
        for node in model.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = inner if name == end else name
        model.graph.node.append(make("Identity", [inner], [end], name=end))


def name_by_values(model: Any, graph: Graph) -> None:
    """Take a canonical name from a tensor that holds other values, and give lost ones.

    tf2onnx moves a Transpose from before an operator to behind it and keeps the names: what it is
    called by then is the operator's output. Others it calls anew where it turns them around.

    Raises:
        InvalidModelError: If tensors of several branches have the values of one whose name is lost.
    """
    try:
        feed, computed = _computed(graph.serialize(), [value.name for value in model.graph.input])
    except ExecutionError:
        return  # e.g. indices in an input of real numbers: left for the check of the outputs
    makers = {name: operator for operator in graph.operators for name in operator.outputs}
    nodes = {name: node for node in model.graph.node for name in node.output if name}
    expected = {name: _sums(computed[name]) for name in makers if name in computed}
    outer = {value.name for value in (*model.graph.input, *model.graph.output)}
    names = [name for name in nodes if name not in outer]
    watched = onnx_file.copied(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.add().name = name
    outputs = onnx_file.session(watched.SerializeToString()).run(names, feed) if names else []
    held = {
        name: _sums(values)
        for name, values in zip(names, outputs, strict=True)
        if values.dtype == np.float32
    }
    wrong = [name for name in held if name in expected and not _same(held[name], expected[name])]
    lost = [name for name in expected if name not in outer and (name not in held or name in wrong)]
    others = [name for name in held if name not in expected or name in wrong]
    operators = {
        name: (operator.kind, operator.inputs[0])
        for name, operator in makers.items()
        if operator.inputs
    }
    written = {name: (node.op_type, node.input[0]) for name, node in nodes.items() if node.input}
    origins = {name: _origin(name, written, onnx_file.MOVED) for name in others}
    renamed = {name: f"{name}__moved" for name in wrong}
    for name in lost:
        alike = [other for other in others if _same(held[other], expected[name])]
        source = _origin(name, operators, kernels.MOVED)
        alike = [other for other in alike if origins[other] == source] or alike
        for other in alike[1:]:
            if not _computed_from(other, alike[0], nodes):
                raise InvalidModelError(
                    f"{short_name(name)}: expected one tensor of the converted ONNX graph with its "
                    f"values, got {alike[0]} and {other} of another branch; take out what computes "
                    f"the same twice, or export --target tflite"
                )
        if alike:
            renamed[alike[0]] = name
            others.remove(alike[0])
    for node in model.graph.node if renamed else ():
        for tensor_names in (node.input, node.output):
            for i, name in enumerate(tensor_names):
                tensor_names[i] = renamed.get(name, name)


def _origin(name: str, makers: Mapping[str, tuple[str, str]], moved: Collection[str]) -> str:
    """The tensor whose values another has as they are, in another shape or order.

    Args:
        name: Name of the other tensor.
        makers: Kind of the operator that writes a tensor and what it reads, by name.
        moved: Kinds that only move values.
    """
    while name in makers and makers[name][0] in moved:
        name = makers[name][1]
    return name


def _computed_from(name: str, other: str, nodes: Mapping[str, Any]) -> bool:
    """Whether a tensor is written by the node of another, or by one that reads what that gives.

    Args:
        name: Name of the tensor.
        other: Name of the other one.
        nodes: That write the tensors, by name.
    """
    waiting, reached = [name], {name}
    while waiting:
        node = nodes.get(waiting.pop())
        if node is None:
            continue
        if other in node.output:
            return True
        waiting += [source for source in node.input if source not in reached]
        reached.update(node.input)
    return False


def _computed(canonical: bytes, inputs: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random numbers by the name in ``inputs``, and the float tensors that they make, by name.

    Raises:
        ExecutionError: If the graph does not run on random numbers.
    """
    opened = litert.interpreter(canonical, exact=True)
    random = np.random.default_rng(1)
    feed = {}
    for detail, name in zip(opened.get_input_details(), inputs, strict=True):
        real = detail["dtype"] is np.float32
        size = detail["shape"]
        drawn = random.normal(0, 1, size) if real else random.integers(0, 2, size)
        feed[name] = np.asarray(drawn).astype(detail["dtype"])
        opened.set_tensor(detail["index"], feed[name])
    litert.invoke(opened)
    tensors = {}
    for detail in opened.get_tensor_details():
        if detail["dtype"] is np.float32 and detail["name"]:
            try:
                tensors[detail["name"]] = opened.get_tensor(detail["index"])
            except ValueError:  # what a loop holds is not kept
                continue
    return feed, tensors


def _sums(values: Any) -> tuple[int, Any]:
    """Size of a tensor, and numbers of it that do not depend on the order of its values."""
    every = values.astype(np.float64).ravel()
    exact = every[np.isfinite(every)]
    if not exact.size:
        return every.size, np.zeros(5)
    sums = exact.min(), exact.max(), exact.mean(), np.abs(exact).mean(), every.size - exact.size
    return every.size, np.array(sums)


def _same(values: tuple[int, Any], others: tuple[int, Any]) -> bool:
    near = 1e-3 * float(np.abs(others[1][:4]).max()) + 1e-9
    return values[0] == others[0] and bool(np.allclose(values[1], others[1], 0, near))


def _refuse_others(model: Any, _: Graph) -> None:
    """What ONNX does not have is refused by its name.

    Raises:
        InvalidModelError: If an operator has no ONNX form.
    """
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx_file.package().defs.has(node.op_type):
            raise InvalidModelError(
                f"{short_name(node.output[0])}: {node.op_type.removeprefix('TFL_')} has no ONNX "
                f"form in tf2onnx; replace the layer, or export --target tflite"
            )


def _gemm_instead_of_matmul(model: Any, _: Graph) -> None:
    """A dense layer is a Gemm with a bias, which onnxruntime has an integer kernel for."""
    onnx_forms.gemm_instead_of_matmul(model)


def _sort(model: Any, _: Graph) -> None:
    """Nodes stand behind those that they read."""
    onnx_file.sort(model)


def _forget_sizes(model: Any, _: Graph) -> None:
    """Sizes of what lies inside are of batch 1, and of names that are no more."""
    del model.graph.value_info[:]


#: All repairs in their order. Forms come first: what is computed by then gets its names.
REPAIRS: tuple[Callable[[Any, Graph], None], ...] = (
    _forget_sizes_of_states,
    _spell_gelu,
    _refuse_others,
    _where_instead_of_products,
    _round_factors,
    _pool_instead_of_mean,
    _gemm_instead_of_matmul,
    _restore_gemm_names,
    _sort,
    _name_activations,
    _separate_outputs,
    _part_from_turned_outputs,
    _forget_sizes,
    name_by_values,
)


def repair(model: Any, graph: Graph) -> None:
    """Make all repairs, in place.

    Args:
        model: What tf2onnx wrote.
        graph: The canonical graph that it is of.

    Raises:
        InvalidModelError: If an operator has no ONNX form, or a tensor cannot be told.
    """
    for repair_model in REPAIRS:
        repair_model(model, graph)
