"""Encodings: the scale and zero_point of every quantized tensor, one table for all formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit import schema
from edgekit.formats import tflite

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Encoding:
    """How real values become integers: ``q = round(x / scale) + zero_point``.

    Attributes:
        dtype: ``int8`` or ``int32``.
        scale: One value, or one a channel.
        zero_point: As many as ``scale``.
        axis: The channel axis, or None when per tensor.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


@dataclass(frozen=True)
class Encodings:
    """Encodings by tensor name of the canonical graph."""

    graph_sha256: str
    tensors: dict[str, Encoding]
    schema_version: int = SCHEMA_VERSION

    def dumps(self) -> str:
        """The encodings as JSON text."""
        return schema.dumps(self) + "\n"


def read_tflite(quantized: bytes, graph_sha256: str) -> Encodings:
    """Read the encodings back from an int8 flatbuffer."""
    found: dict[str, Encoding] = {}
    for detail in tflite.interpreter(quantized).get_tensor_details():
        parameters: dict[str, Any] = detail["quantization_parameters"]
        scales = np.asarray(parameters["scales"])
        if not len(scales):
            continue
        found[detail["name"]] = Encoding(
            dtype=np.dtype(detail["dtype"]).name,
            scale=tuple(float(scale) for scale in scales),
            zero_point=tuple(int(zero) for zero in parameters["zero_points"]),
            axis=int(parameters["quantized_dimension"]) if len(scales) > 1 else None,
        )
    return Encodings(graph_sha256, found)
