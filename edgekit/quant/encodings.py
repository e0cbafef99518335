"""Encodings: the scale and zero_point of every quantized tensor, one table for all formats.

Activations: int8 asymmetric, one scale a tensor, with 0.0 on a step. Weights: int8 symmetric in
[-127, 127], one scale an output channel. Biases are int32 at input scale times weight scale, so
they need no entry.
"""

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
        dtype: ``int8``.
        scale: One value, or one a channel.
        zero_point: One for the tensor; 0 where there is a channel axis.
        axis: The channel axis in the canonical graph, or None when per tensor.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: int
    axis: int | None = None


@dataclass(frozen=True)
class Encodings:
    """Encodings by tensor name of the canonical graph.

    Attributes:
        graph_sha256: Of the canonical float flatbuffer.
        tensors: Activations and weights.
    """

    graph_sha256: str
    tensors: dict[str, Encoding]
    schema_version: int = SCHEMA_VERSION

    def activations(self) -> dict[str, tuple[float, int]]:
        """(scale, int8 zero_point) of each tensor that has one scale."""
        return {
            name: (encoding.scale[0], encoding.zero_point)
            for name, encoding in self.tensors.items()
            if encoding.axis is None
        }

    def dumps(self) -> str:
        """The encodings as JSON text."""
        return schema.dumps(self, indent=None) + "\n"


def read_tflite(quantized: bytes, graph_sha256: str) -> Encodings:
    """Read the encodings back from an int8 flatbuffer, so that they are what the file has."""
    found: dict[str, Encoding] = {}
    for detail in tflite.interpreter(quantized).get_tensor_details():
        parameters: dict[str, Any] = detail["quantization_parameters"]
        scales = np.asarray(parameters["scales"], np.float32)
        if not len(scales) or detail["dtype"] is not np.int8:
            continue
        found[detail["name"]] = Encoding(
            dtype="int8",
            scale=tuple(float(str(scale)) for scale in scales),  # the shortest exact decimal
            zero_point=int(parameters["zero_points"][0]),
            axis=int(parameters["quantized_dimension"]) if len(scales) > 1 else None,
        )
    return Encodings(graph_sha256, found)
