"""TensorFlow Lite Micro: the operators that it has kernels for, and what a file asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.base.errors import InvalidModelError, MissingDependencyError, reason

#: Bytes that the model and the arena are aligned to.
ALIGNMENT = 16
#: Operators that have a kernel, and the method of MicroMutableOpResolver that links it. Tested
#: against what the package tflite-micro finds.
RESOLVER: dict[str, str] = {
    "ABS": "AddAbs",
    "ADD": "AddAdd",
    "ADD_N": "AddAddN",
    "ARG_MAX": "AddArgMax",
    "ARG_MIN": "AddArgMin",
    "ASSIGN_VARIABLE": "AddAssignVariable",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "BATCH_MATMUL": "AddBatchMatMul",
    "BATCH_TO_SPACE_ND": "AddBatchToSpaceNd",
    "BROADCAST_ARGS": "AddBroadcastArgs",
    "BROADCAST_TO": "AddBroadcastTo",
    "CALL_ONCE": "AddCallOnce",
    "CAST": "AddCast",
    "CEIL": "AddCeil",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "COS": "AddCos",
    "CUMSUM": "AddCumSum",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEPTH_TO_SPACE": "AddDepthToSpace",
    "DEQUANTIZE": "AddDequantize",
    "DIV": "AddDiv",
    "DYNAMIC_UPDATE_SLICE": "AddDynamicUpdateSlice",
    "ELU": "AddElu",
    "EMBEDDING_LOOKUP": "AddEmbeddingLookup",
    "EQUAL": "AddEqual",
    "EXP": "AddExp",
    "EXPAND_DIMS": "AddExpandDims",
    "FILL": "AddFill",
    "FLOOR": "AddFloor",
    "FLOOR_DIV": "AddFloorDiv",
    "FLOOR_MOD": "AddFloorMod",
    "FULLY_CONNECTED": "AddFullyConnected",
    "GATHER": "AddGather",
    "GATHER_ND": "AddGatherNd",
    "GREATER": "AddGreater",
    "GREATER_EQUAL": "AddGreaterEqual",
    "HARD_SWISH": "AddHardSwish",
    "IF": "AddIf",
    "L2_NORMALIZATION": "AddL2Normalization",
    "L2_POOL_2D": "AddL2Pool2D",
    "LEAKY_RELU": "AddLeakyRelu",
    "LESS": "AddLess",
    "LESS_EQUAL": "AddLessEqual",
    "LOG": "AddLog",
    "LOGICAL_AND": "AddLogicalAnd",
    "LOGICAL_NOT": "AddLogicalNot",
    "LOGICAL_OR": "AddLogicalOr",
    "LOGISTIC": "AddLogistic",
    "LOG_SOFTMAX": "AddLogSoftmax",
    "MAXIMUM": "AddMaximum",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MEAN": "AddMean",
    "MINIMUM": "AddMinimum",
    "MIRROR_PAD": "AddMirrorPad",
    "MUL": "AddMul",
    "NEG": "AddNeg",
    "NOT_EQUAL": "AddNotEqual",
    "PACK": "AddPack",
    "PAD": "AddPad",
    "PADV2": "AddPadV2",
    "PRELU": "AddPrelu",
    "QUANTIZE": "AddQuantize",
    "READ_VARIABLE": "AddReadVariable",
    "REDUCE_ALL": "AddReduceAll",
    "REDUCE_MAX": "AddReduceMax",
    "REDUCE_MIN": "AddReduceMin",
    "RELU": "AddRelu",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "RESIZE_BILINEAR": "AddResizeBilinear",
    "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor",
    "REVERSE_V2": "AddReverseV2",
    "ROUND": "AddRound",
    "RSQRT": "AddRsqrt",
    "SELECT_V2": "AddSelectV2",
    "SHAPE": "AddShape",
    "SIN": "AddSin",
    "SLICE": "AddSlice",
    "SOFTMAX": "AddSoftmax",
    "SPACE_TO_BATCH_ND": "AddSpaceToBatchNd",
    "SPACE_TO_DEPTH": "AddSpaceToDepth",
    "SPLIT": "AddSplit",
    "SPLIT_V": "AddSplitV",
    "SQRT": "AddSqrt",
    "SQUARE": "AddSquare",
    "SQUARED_DIFFERENCE": "AddSquaredDifference",
    "SQUEEZE": "AddSqueeze",
    "STRIDED_SLICE": "AddStridedSlice",
    "SUB": "AddSub",
    "SUM": "AddSum",
    "SVDF": "AddSvdf",
    "TANH": "AddTanh",
    "TRANSPOSE": "AddTranspose",
    "TRANSPOSE_CONV": "AddTransposeConv",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
    "UNPACK": "AddUnpack",
    "VAR_HANDLE": "AddVarHandle",
    "WHILE": "AddWhile",
    "ZEROS_LIKE": "AddZerosLike",
}
#: The same of custom operators, by their name in a file.
CUSTOM: dict[str, str] = {
    "CIRCULAR_BUFFER": "AddCircularBuffer",
    "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
    "ethos-u": "AddEthosU",
}


@dataclass(frozen=True)
class Operators:
    """The operators of a file, those of its loops and branches too.

    Attributes:
        counts: How many operators of each kind it has, in order of the file; custom ones by their
            own name.
    """

    counts: dict[str, int]

    @property
    def missing(self) -> tuple[str, ...]:
        """Kinds that TensorFlow Lite Micro has no kernel for."""
        return tuple(kind for kind in self.counts if kind not in RESOLVER and kind not in CUSTOM)

    @property
    def calls(self) -> tuple[str, ...]:
        """Methods of MicroMutableOpResolver that link their kernels, in order of the alphabet."""
        known = RESOLVER | CUSTOM
        return tuple(sorted(known[kind] for kind in self.counts if kind in known))


def operators(content: bytes, name: str = "the model") -> Operators:
    """What a TFLite file asks of TensorFlow Lite Micro.

    Args:
        content: The file.
        name: Its name, for messages.

    Raises:
        InvalidModelError: If it cannot be read.
        MissingDependencyError: If ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise MissingDependencyError("ai-edge-litert", "runtime") from None
    if content[4:8] != b"TFL3":
        raise InvalidModelError(f"{name} is not a TFLite model; expected the flatbuffer id TFL3")
    kinds = {number: kind for kind, number in vars(schema.BuiltinOperator).items()}
    counts: dict[str, int] = {}
    try:
        model: Any = schema.ModelT.InitFromPackedBuf(content, 0)
        for graph in model.subgraphs:
            for operator in [] if graph.operators is None else graph.operators:
                code = model.operatorCodes[operator.opcodeIndex]
                # old files keep small numbers in a field of their own
                number = max(code.builtinCode, code.deprecatedBuiltinCode)
                kind = kinds.get(number, f"operator {number}")
                if kind == "CUSTOM" and code.customCode:
                    kind = code.customCode.decode(errors="replace")
                counts[kind] = counts.get(kind, 0) + 1
    except Exception as exc:  # flatbuffers raises struct.error, IndexError, TypeError, ...
        raise InvalidModelError(f"{name} cannot be read (cut short?): {reason(exc)}") from None
    return Operators(counts)


def flash(content: bytes) -> int:
    """Bytes of read-only memory that a file takes as an aligned constant. The code of the kernels
    is not in it: its size depends on compiler and CPU, and the linker tells it."""
    return -(-len(content) // ALIGNMENT) * ALIGNMENT
