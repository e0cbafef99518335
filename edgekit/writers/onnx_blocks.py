"""Transposed convolutions on integers in onnxruntime, which has an integer kernel of none.

A transposed convolution with stride s writes blocks of s x s values, each of which is a sum of
products with values around one place of the input. So a convolution whose output channels are the
values of a block, and DepthToSpace, which lays the blocks out, give the same integers: the weights
are the same, and zeros where the kernel does not reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.graph import kernels
from edgekit.graph import onnx as onnx_file

_BLOCKS = "DepthToSpace"
#: Ends the name of a tensor behind its rounding.
_REAL = "__real"


def of_transposed(weights: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    """Weights of the convolution that writes blocks.

    Args:
        weights: ``[I, O, K, K]``, as ConvTranspose has them.

    Returns:
        ``[stride * stride * O, I, J, J]``, J taps of each value of a block, those of the block's
        first row and column first.
    """
    inputs, outputs, *kernel = weights.shape
    taps = [-(-size // stride) for size in kernel]
    borders = [(0, n * stride - size) for n, size in zip(taps, kernel, strict=True)]
    whole = np.pad(weights, [(0, 0), (0, 0), *borders])
    parts = whole.reshape(inputs, outputs, taps[0], stride, taps[1], stride)[:, :, ::-1, :, ::-1]
    blocks = parts.transpose(3, 5, 1, 0, 2, 4)
    return np.ascontiguousarray(blocks.reshape(stride * stride * outputs, inputs, *taps))


def to_transposed(
    weights: npt.NDArray[Any], stride: int, kernel: tuple[int, int]
) -> npt.NDArray[Any]:
    """The inverse: ``[I, O, *kernel]``."""
    _, inputs, *taps = weights.shape
    parts = weights.reshape(stride, stride, -1, inputs, *taps).transpose(3, 2, 4, 0, 5, 1)
    whole = parts[:, :, ::-1, :, ::-1].reshape(inputs, -1, taps[0] * stride, taps[1] * stride)
    return np.ascontiguousarray(whole[:, :, : kernel[0], : kernel[1]])


def write(model: Any) -> None:
    """Put the convolution and DepthToSpace in place of each transposed convolution between
    DequantizeLinear and QuantizeLinear that has such a form (:func:`edgekit.graph.kernels.blocks`),
    in place.

    Args:
        model: QDQ ``onnx.ModelProto``, sorted or not.
    """
    graph, onnx = model.graph, onnx_file.package()
    constants = onnx_file.stored_constants(model)
    makers = {name: node for node in graph.node for name in node.output}
    readers = onnx_file.readers(graph.node)
    outputs = {value.name for value in graph.output}

    def store(name: str, values: npt.NDArray[Any]) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    def dequantized(name: str) -> Any:
        maker = makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def of_block(name: str, channels: int, count: int) -> npt.NDArray[Any]:
        """Numbers of output channels, or one of all, for the values of a block."""
        return np.tile(np.broadcast_to(constants[name].reshape(-1), channels), count)

    for node in [node for node in graph.node if node.op_type == "ConvTranspose"]:
        before, stored, name = (
            dequantized(node.input[0]),
            dequantized(node.input[1]),
            node.output[0],
        )
        behind = readers.get(name, [])
        if before is None or stored is None or len(behind) != 1 or name in outputs:
            continue
        (rounds,) = behind
        weights = constants.get(stored.input[0])
        if rounds.op_type != "QuantizeLinear" or weights is None or weights.ndim != 4:
            continue
        cut = _cut(node, weights.shape)
        if cut is None or weights.dtype != np.int8:
            continue
        stride = onnx_file.attribute(node, "strides", [1, 1])[0]
        label, count, channels = f"{name}__blocks", stride * stride, weights.shape[1]
        inputs = [node.input[0], f"{label}__weights{_REAL}"]
        steps = [
            store(f"{label}__weights", of_transposed(weights, stride)),
            store(f"{label}__scale", of_block(stored.input[1], channels, count)),
            store(f"{label}__zero", np.zeros(count * channels, np.int8)),
        ]
        make = onnx.helper.make_node
        added = [make("DequantizeLinear", steps, inputs[1:], inputs[1], axis=0)]
        if len(node.input) > 2 and node.input[2]:
            bias = dequantized(node.input[2])
            inputs.append(f"{label}__bias{_REAL}")
            if bias is None:
                store(inputs[2], of_block(node.input[2], channels, count))
            else:
                own = [of_block(name, channels, count) for name in bias.input]
                names = [
                    store(f"{label}__bias{key}", values)
                    for key, values in zip(("", "_scale", "_zero"), own, strict=False)
                ]
                added.append(make("DequantizeLinear", names, inputs[2:], inputs[2], axis=0))
        border = [size - 1 for size in of_transposed(weights, stride).shape[2:]]
        added.append(make("Conv", inputs, [label], node.name, pads=[*border, *border]))
        spread = f"{label}__spread" if any(cut) else name
        numbers = list(rounds.input[1:])
        added += _rounding(label, numbers)
        laid_out = f"{label}__lay_out"
        added.append(make(_BLOCKS, [label + _REAL], [spread], laid_out, blocksize=stride))
        if any(cut):
            far = np.iinfo(np.int64).max
            limits = [
                store(f"{label}__{key}", np.array(values, np.int64))
                for key, values in (
                    ("from", cut[:2]), ("to", [-n if n else far for n in cut[2:]]), ("axes", [2, 3])
                )
            ]  # fmt: skip
            added += _rounding(spread, numbers)
            added.append(make("Slice", [spread + _REAL, *limits], [name], f"{label}__cut"))
        graph.node.remove(node)
        graph.node.extend(added)


def _rounding(name: str, numbers: list[str]) -> list[Any]:
    """QuantizeLinear and DequantizeLinear of a tensor; what they write ends with :data:`_REAL`."""
    make, integers, real = onnx_file.package().helper.make_node, f"{name}__integers", name + _REAL
    return [
        make("QuantizeLinear", [name, *numbers], [integers], integers),
        make("DequantizeLinear", [integers, *numbers], [real], real),
    ]


def _cut(node: Any, shape: tuple[int, ...]) -> list[int] | None:
    """What is cut off of the blocks, above, left, below and right; None where a transposed
    convolution is none of blocks."""
    strides = onnx_file.attribute(node, "strides", [1, 1])
    pads = onnx_file.attribute(node, "pads", [0] * 4)
    more = onnx_file.attribute(node, "output_padding", [0] * 2)
    plain = (
        onnx_file.attribute(node, "group", 1) == 1
        and set(onnx_file.attribute(node, "dilations", [1])) == {1}
        and onnx_file.attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
        and not onnx_file.attribute(node, "output_shape", [])
    )
    if not plain or not kernels.blocks(strides, shape[0]):
        return None
    below = [
        -size % stride + pad - extra
        for size, stride, pad, extra in zip(shape[2:], strides, pads[2:], more, strict=True)
    ]
    return None if min(below) < 0 else [*pads[:2], *below]


def convolutions(model: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """(convolution whose output channels are laid out as blocks, tensors that hold the blocks), in
    whatever file; the second tensor, if there is one, has borders cut off."""
    readers = onnx_file.readers(model.graph.node)

    def behind(name: str, *kinds: str) -> str:
        """What the one reader of a tensor writes; empty where it is of another kind."""
        reading = readers.get(name, [])
        alone = len(reading) == 1 and reading[0].op_type in kinds
        return reading[0].output[0] if alone else ""

    def rounded(name: str) -> str:
        return behind(behind(name, "QuantizeLinear"), "DequantizeLinear")

    for node in model.graph.node:
        values = rounded(node.output[0]) if node.op_type == "Conv" else ""
        spread = rounded(behind(values, _BLOCKS))
        if spread:
            yield node, tuple(filter(None, (spread, behind(spread, "Slice"))))
