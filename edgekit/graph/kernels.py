"""Operators of the canonical graph: what they do with values, which of them TFLite computes on
int8, and what that demands.

This is the only list: encodings, both writers, the search for tensors that stay float and
docs/reference/conversion.md follow from it. An operator that is not in :data:`INTEGER` computes in
float, between a DEQUANTIZE and a QUANTIZE, in both formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.graph.flatbuffer import WEIGHTS, Graph, Operator

#: (scale, zero_point)
Number = tuple[float, int]

#: The operator has weights, which are decided layer by layer.
WEIGHTED = frozenset(WEIGHTS)
#: The output has all values of the input as they are, in another shape or order.
MOVED = frozenset("RESHAPE SQUEEZE EXPAND_DIMS TRANSPOSE".split())
#: The output has the values of all inputs as they are, beside each other.
STACKED = frozenset("CONCATENATION PACK".split())
#: The output has values of its inputs as they are: some, several times, or beside others.
PLACED = frozenset(
    "PAD PADV2 MIRROR_PAD SLICE STRIDED_SLICE GATHER GATHER_ND SPLIT SPLIT_V UNPACK TILE "
    "REVERSE_V2 SPACE_TO_DEPTH DEPTH_TO_SPACE SPACE_TO_BATCH_ND BATCH_TO_SPACE_ND "
    "BROADCAST_TO".split()
).union(MOVED, STACKED)
#: Output and first input have one scale: values are handed on, or picked.
SAME = PLACED - STACKED | frozenset(
    "MAX_POOL_2D AVERAGE_POOL_2D RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REDUCE_MAX REDUCE_MIN "
    "TOPK_V2".split()
)
#: Those of which each value of the output is one of the first input, or 0.
PICKING = SAME - {"AVERAGE_POOL_2D", "PADV2", "RESIZE_BILINEAR"}
#: A single input is handed on, value by value: each input has a range of its own, since what lies
#: outside of the output's range is what the operator does not choose.
CHOOSING = frozenset("MAXIMUM MINIMUM SELECT SELECT_V2".split())
#: All inputs have the scale of the output; an input of another scale is brought to it before.
JOINED = STACKED | CHOOSING
#: Outputs whose scale and zero_point TensorFlow's "LiteRT 8-bit quantization specification" fixes.
FIXED: dict[str, Number] = {
    "SOFTMAX": (1 / 256, -128),
    "LOGISTIC": (1 / 256, -128),
    "TANH": (1 / 128, 0),
    "L2_NORMALIZATION": (1 / 128, 0),
    "LOG_SOFTMAX": (16 / 256, 127),
}
#: Scores become shares of 1.
SOFTMAX = frozenset(("SOFTMAX", "LOG_SOFTMAX"))
#: Every tensor has a scale of its own.
OWN = frozenset(
    "ABS ADD BATCH_MATMUL ELU EXP GELU HARD_SWISH LEAKY_RELU LOG MEAN MUL PRELU RELU RELU6 "
    "RELU_N1_TO_1 RSQRT SQRT SQUARED_DIFFERENCE SUB SUM".split()
)
#: Real numbers go in, truth values or places come out.
TELLING = frozenset("ARG_MAX ARG_MIN EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL NOT_EQUAL".split())
_COMPARING = TELLING - {"ARG_MAX", "ARG_MIN"}
#: Numbers below a bound become the bound: the range of the output clips as they do.
RECTIFYING = frozenset("RELU RELU6".split())
#: Each number of the output is computed from the same number of the inputs.
ELEMENTWISE = frozenset(
    "ABS ADD CAST CEIL COS DIV ELU EXP FLOOR FLOOR_DIV FLOOR_MOD GELU HARD_SWISH LEAKY_RELU LOG "
    "LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MUL NEG POW RELU_N1_TO_1 ROUND RSQRT SIGN SIN "
    "SQRT SQUARE SQUARED_DIFFERENCE SUB TANH ZEROS_LIKE".split()
).union(RECTIFYING, CHOOSING, _COMPARING)
#: XNNPACK takes constants without a zero_point only.
SYMMETRIC = frozenset(("BATCH_MATMUL",))
#: Kinds of layers that have a kernel, by target, which rounds float inputs to int8 when it runs and
#: multiplies integers, faster than in float. LiteRT has none of transposed convolutions, and a slow
#: one of depthwise ones; onnxruntime's convolution of int8 weights, ConvInteger, is slow too.
DYNAMIC = {"tflite": frozenset(("conv", "dense")), "onnx": frozenset(("dense",))}
#: Only sizes are read.
SIZES = frozenset(("SHAPE", "RANK"))
INTEGER = WEIGHTED | SAME | JOINED | frozenset(FIXED) | OWN | TELLING
#: The same of int16 activations: outputs whose scale is fixed, and operators that have a kernel.
FIXED_16: dict[str, Number] = {
    "SOFTMAX": (1 / 32768, 0),
    "LOGISTIC": (1 / 32768, 0),
    "TANH": (1 / 32768, 0),
}
#: Some kernels refuse int16 (seen in LiteRT 2.3: ARG_MAX, ELU, L2_NORMALIZATION, LOG_SOFTMAX,
#: SQUARED_DIFFERENCE, those that lay blocks out), some take no notice of the scales (comparisons,
#: PRELU), and some were not tried.
INTEGER_16 = (
    INTEGER
    - TELLING
    - frozenset(
        "DEPTH_TO_SPACE ELU HARD_SWISH L2_NORMALIZATION LOG LOG_SOFTMAX PRELU RELU_N1_TO_1 RSQRT "
        "SPACE_TO_DEPTH SQUARED_DIFFERENCE".split()
    )
)


def fixed(dtype: str) -> Mapping[str, Number]:
    """Outputs of operators whose (scale, zero_point) is fixed, by operator.

    Args:
        dtype: Of activations, ``int8`` or ``int16``.
    """
    return FIXED_16 if dtype == "int16" else FIXED


def integer(dtype: str) -> frozenset[str]:
    """Operators that have a kernel of this dtype, ``int8`` or ``int16``."""
    return INTEGER_16 if dtype == "int16" else INTEGER


def reals(graph: Graph, names: tuple[str, ...]) -> list[str]:
    """The float tensors among them that are computed; a part of a split can be empty."""
    return [
        name
        for name in names
        if name
        and not graph.is_constant(name)
        and graph.dtype(name) == np.float32
        and 0 not in graph.shape(name)
    ]


def constants(graph: Graph, operator: Operator) -> list[str]:
    """The float constants that an operator reads, but for weights and biases of a layer."""
    floats = [n for n in operator.inputs if graph.is_constant(n) and graph.dtype(n) == np.float32]
    return [] if operator.kind in WEIGHTED else floats


def has_kernel(graph: Graph, operator: Operator, dtype: str = "int8") -> bool:
    """Whether TFLite can compute an operator on int8, or int16, whatever its scales."""
    if operator.kind not in integer(dtype):
        return False
    if operator.kind in WEIGHTED:  # a layer: weights and bias are constants
        bias = operator.inputs[WEIGHTS[operator.kind].bias :]
        return all(graph.is_constant(name) for name in (operator.inputs[1], *bias) if name)
    return True


def blocks(strides: Sequence[int], inputs: int) -> bool:
    """Whether onnxruntime computes a transposed convolution on int8: as a convolution that writes
    blocks of stride x stride values. Of an odd number of input channels it would add other pairs of
    products than those that the weights are chosen by (:mod:`edgekit.quantization.saturation`).

    Args:
        strides: Of each spatial axis.
        inputs: Channels of the input.
    """
    return len(strides) == 2 and strides[0] == strides[1] > 1 and inputs % 2 == 0


def on_integers(
    graph: Graph, operator: Operator, encodings: Mapping[str, Number], dtype: str = "int8"
) -> bool:
    """Whether TFLite computes an operator of the canonical graph on int8, or int16, with these
    encodings."""
    tensors = reals(graph, (*operator.inputs, *operator.outputs))
    if not tensors or not all(name in encodings for name in tensors):
        return False
    if operator.kind in _COMPARING:  # its kernel ends the process at a scale that is not below 1
        if any(encodings[name][0] >= 1 for name in tensors):
            return False
        if any(np.ptp([0, *graph.constant(n).flat]) >= 127 for n in constants(graph, operator)):
            return False
    return has_kernel(graph, operator, dtype)
