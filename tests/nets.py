"""Small ONNX nets that are made node by node, and what a coarse step makes of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save


def write(
    path: Path,
    nodes: Sequence[tuple[str, Sequence[str], str]],
    constants: dict[str, np.ndarray],
    outputs: dict[str, list[int]],
    *,
    inputs: int | Sequence[int],
    steps: dict[str, float] | None = None,
    frozen: Sequence[str] = (),
) -> Path:
    """Write a net with the input ``x`` ``[N, inputs]``, or of several sizes.

    Args:
        path: File to write.
        nodes: (operator, inputs, output), in order.
        constants: By name.
        outputs: Sizes of a sample by name; their tensors are called ``NAME_float``.
        inputs: Numbers of a sample, or its sizes.
        steps: Step that an output is rounded to, symmetric around 0, in int8.
        frozen: Outputs that are multiplied by 0.
    """
    sizes = [inputs] if isinstance(inputs, int) else list(inputs)
    made = [helper.make_node(kind, list(read), [to]) for kind, read, to in nodes]
    held = dict(constants)
    for name in outputs:
        last = f"{name}_float"
        if name in frozen:
            held["zero"] = np.zeros((), np.float32)
            made.append(helper.make_node("Mul", [last, "zero"], [f"{name}_frozen"]))
            last = f"{name}_frozen"
        step = (steps or {}).get(name)
        if step is None:
            made.append(helper.make_node("Identity", [last], [name]))
            continue
        held |= {f"{name}_step": np.float32(step), f"{name}_zero": np.int8(0)}
        grid = [f"{name}_step", f"{name}_zero"]
        made.append(helper.make_node("QuantizeLinear", [last, *grid], [f"{name}_int8"]))
        made.append(helper.make_node("DequantizeLinear", [f"{name}_int8", *grid], [name]))
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *sizes])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *of_one])
            for name, of_one in outputs.items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, path)
    return path


def detector(path: Path, step: float | None = None) -> Path:
    """Four numbers of 0 to 320 and two scores of 0 to 1 in one output ``[N, 1, 6]``.

    A step for all of them rounds the scores to 0.
    """
    nodes = [
        ("Sigmoid", ["x"], "shares"),
        ("Mul", ["shares", "size"], "sized"),
        ("Unsqueeze", ["sized", "axis"], "found_float"),
    ]
    constants = {
        "size": np.array([320] * 4 + [1] * 2, np.float32),
        "axis": np.array([1], np.int64),
    }
    steps = None if step is None else {"found": step}
    return write(path, nodes, constants, {"found": [1, 6]}, inputs=6, steps=steps)


def linear(
    path: Path,
    weights: np.ndarray,
    offset: Sequence[float] | float = 0.0,
    *,
    softmax: bool = False,
    step: float | None = None,
    frozen: bool = False,
) -> Path:
    """``x @ weights + offset``, one output ``[N, M]``."""
    last = "sums" if softmax else "y_float"
    nodes = [("MatMul", ["x", "weights"], "products"), ("Add", ["products", "offset"], last)]
    nodes += [("Softmax", ["sums"], "y_float")] if softmax else []
    constants = {"weights": weights.astype(np.float32), "offset": np.float32(offset)}
    steps = None if step is None else {"y": step}
    return write(
        path, nodes, constants, {"y": [weights.shape[1]]}, inputs=weights.shape[0], steps=steps,
        frozen=["y"] if frozen else (),
    )  # fmt: skip
