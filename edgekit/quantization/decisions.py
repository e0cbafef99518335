"""Results of the quantizer, cached on disk, so that TFLite and ONNX get the same integers.

The key is the sha256 of all inputs of the quantizer, of the source code and of the versions of
packages. On another machine a float sum may have another last digit, which may give other integers.
The encodings of the artifacts and ``python -m edgekit.parity`` show it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base import outputs, schema
from edgekit.base.errors import EdgekitError
from edgekit.base.version import sources
from edgekit.graph.flatbuffer import Graph
from edgekit.quantization import reconstruct
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.quantize import Quantized, Trial
from edgekit.quantization.saturation import Prediction
from edgekit.quantization.table import CalibrationTable
from edgekit.records.artifact import WeightMethod
from edgekit.records.encodings import Encodings, LayerIntegers, Stored


@dataclass(frozen=True)
class _Document:
    encodings: Encodings
    layers: tuple[str, ...]
    bits: tuple[int, ...]
    way: str
    weights: WeightMethod
    trials: tuple[Trial, ...]
    saturating: tuple[Prediction, ...]
    notes: tuple[str, ...]
    floats: dict[str, str]


def key(
    canonical: bytes,
    table: CalibrationTable,
    profile: DeviceProfile,
    *,
    images: bool,
    correction: str,
    narrow: bool,
    integers_only: bool,
    left: Mapping[str, str],
    unequalized: Collection[str],
    versions: dict[str, str],
) -> str:
    """Hex sha256 of everything that a decision depends on."""
    numbers = (
        profile.symmetric,
        profile.activations,
        profile.weights,
        profile.pair_bound,
        profile.evened,
        profile.name,
    )
    options = (images, correction, narrow, integers_only, sorted(left.items()), sorted(unequalized))
    parts = (sources(), numbers, options, table.dumps(), sorted(versions.items()))
    return hashlib.sha256(hashlib.sha256(canonical).digest() + repr(parts).encode()).hexdigest()


def load(path: Path) -> Quantized | None:
    """A decision, or None if there is none that can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()
            }
        document = schema.from_json(_Document, schema.parse(arrays["document"].tobytes().decode()))
        layers, bits = {}, dict(zip(document.layers, document.bits, strict=True))
        for i, name in enumerate(document.layers):
            layers[name] = LayerIntegers(
                arrays[f"weights-{i}"],
                arrays[f"weight_scale-{i}"],
                arrays.get(f"bias-{i}"),
                arrays.get(f"bias_scale-{i}"),
                bits[name],
            )
        graph = arrays["graph"].tobytes()
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,  # also RecursionError and NotImplementedError, of a foreign zip archive
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        EdgekitError,
    ):
        return None
    computed = {
        name: (encoding.scale[0], encoding.zero_point)
        for name, encoding in document.encodings.tensors.items()
        if encoding.axis is None
    }
    constants = reconstruct.constants(Graph(graph), document.encodings.constants)
    return Quantized(
        graph,
        document.encodings,
        Stored(
            computed,
            layers,
            constants,
            dtype=reconstruct.dtype_of(
                encoding
                for encoding in document.encodings.tensors.values()
                if encoding.axis is None
            ),
        ),
        document.way,
        document.weights,
        document.trials,
        document.saturating,
        document.notes,
        document.floats,
    )


def save(path: Path, quantized: Quantized) -> None:
    """Write a decision."""
    document = _Document(
        quantized.encodings,
        tuple(quantized.stored.layers),
        tuple(layer.bits for layer in quantized.stored.layers.values()),
        quantized.way,
        quantized.weights,
        quantized.trials,
        quantized.saturating,
        quantized.notes,
        dict(quantized.floats),
    )
    arrays: dict[str, Any] = {
        "graph": np.frombuffer(quantized.graph, np.uint8),
        "document": np.frombuffer(schema.dumps(document).encode(), np.uint8),
    }
    for i, layer in enumerate(quantized.stored.layers.values()):
        for field in ("weights", "weight_scale", "bias", "bias_scale"):
            if getattr(layer, field) is not None:
                arrays[f"{field}-{i}"] = getattr(layer, field)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    outputs.write_bytes(path, stream.getvalue(), force=True)


def _array(content: bytes) -> Any:
    return np.load(io.BytesIO(content), allow_pickle=False)
