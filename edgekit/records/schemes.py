"""Precisions: the dtypes that a model file stores and computes with.

This is the only list. What a verb asks of a file (ranges, calibration samples, a judgement) is a
property of its scheme, not of its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Precision = Literal[
    "float32", "float16", "int8", "int8-weights", "int4-weights", "int8-dynamic", "int16x8"
]
PRECISIONS: tuple[str, ...] = get_args(Precision)
#: What is written where nobody names a precision, and what every runtime is known to take.
USUAL: tuple[str, ...] = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Scheme:
    """What a precision stands for.

    Attributes:
        about: Weights and activations, in words.
        weights: dtype of the weights of layers; integers have a scale for each output channel.
        activations: dtype of the values between layers, as the file has them.
        dynamic: Whether layers round what they read when they run, and multiply integers.
        runtime_options: Options that the runtime needs for it, by target.
        refused: Why there is no such file, by target.
    """

    about: str
    weights: Literal["float32", "float16", "int8", "int4"]
    activations: Literal["float32", "float16", "int8", "int16"]
    dynamic: bool = False
    runtime_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def integers(self) -> bool:
        """Whether weights are integers that edgekit chooses: such a file has encodings, and is
        judged by its outputs."""
        return self.weights in ("int8", "int4")

    @property
    def ranges(self) -> bool:
        """Whether activations are integers in the file, so that their ranges have to be known."""
        return self.activations in ("int8", "int16")

    @property
    def layered(self) -> bool:
        """Whether it is known how much a sound layer errs, by which `compare --layers` judges."""
        return self.weights == self.activations

    @property
    def multiplies_integers(self) -> bool:
        """Whether layers multiply integers, so that sums of products can saturate."""
        return self.ranges or self.dynamic


#: Lets onnxruntime make the weights real once, when it loads the file. By default it does so at
#: each run, and leaves out its fastest convolutions.
REAL_ONCE = {"onnx": {"session.disable_quant_qdq": "1"}}

SCHEMES: Mapping[str, Scheme] = {
    "float32": Scheme("all in float32", "float32", "float32"),
    "float16": Scheme("all in float16", "float16", "float16"),
    "int8": Scheme("weights and activations in int8", "int8", "int8"),
    "int8-weights": Scheme(
        "weights in int8, activations in float32", "int8", "float32", runtime_options=REAL_ONCE
    ),
    "int4-weights": Scheme(
        "weights in int4, activations in float32", "int4", "float32", runtime_options=REAL_ONCE
    ),
    "int8-dynamic": Scheme(
        "weights in int8, activations in float32 that layers round to int8 when they run",
        "int8",
        "float32",
        dynamic=True,
        runtime_options=REAL_ONCE,
    ),
    "int16x8": Scheme(
        "weights in int8, activations in int16; TFLite only",
        "int8",
        "int16",
        refused={"onnx": "onnxruntime has no integer kernels of 16-bit activations"},
    ),
}
