"""An operator that ran, and its time: what is known of it, whatever the format of its file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimedOperator:
    """An operator and its time.

    Attributes:
        kind: As the format calls it; of ONNX after onnxruntime has merged nodes.
        name: Of an ONNX node, or of what a TFLite operator writes.
        ms: Of a run.
        computes_in_float: Whether it computes and writes real numbers; one that only moves or
            converts them does not.
        in_float: Whether it writes real numbers.
        converts: Whether it makes real numbers of integers, or integers of real numbers.
        inputs: Names of tensors; empty inside of the body of an ONNX node, and where nobody asked
            for them.
        outputs: The same.
    """

    kind: str
    name: str
    ms: float
    computes_in_float: bool
    in_float: bool
    converts: bool
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
