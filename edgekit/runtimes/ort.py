"""onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.graph import onnx
from edgekit.records.results import Runtime
from edgekit.records.signature import Shapes, Signature, TensorSpec, batched
from edgekit.runtimes import Feed, Runner
from edgekit.sources import onnx_source

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
    "tensor(int64)": "int64",
}


class OrtRunner(Runner):
    """An ``.onnx`` file in a session on the CPU provider."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int,
        options: Mapping[str, str],
        batch: int | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        content = model
        if shapes is not None and isinstance(model, Path):  # a file of another exporter
            content = onnx_source.read(model, shapes).model.SerializeToString()
        self._session = onnx.session(content, threads=threads, options=options)
        self._threads = threads
        self._options = dict(options)
        self.signature = signature(self._session)
        fixed = self.signature.batch
        if batch is not None and fixed not in (-1, batch):
            name = model if isinstance(model, Path) else "the model"
            raise InvalidOptionError(f"{name} has a fixed batch of {fixed}, cannot run {batch}")
        self.batch = batch or (50 if fixed == -1 else fixed)

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run one feed of up to ``batch`` images."""
        names = [spec.name for spec in self.signature.outputs]
        return dict(zip(names, self._session.run(names, dict(feed)), strict=True))

    def describe(self) -> Runtime:
        """The provider that the session says it uses."""
        return Runtime("ort", self._session.get_providers()[0], self._threads, self._options)

    def close(self) -> None:
        """Let go of the model."""
        del self._session


def zeros(inputs: Sequence[TensorSpec]) -> dict[str, npt.NDArray[Any]]:
    """The least that a model can be asked: 0 for each input, one sample where the batch is free."""
    return {
        spec.name: np.zeros([1 if size == -1 else size for size in spec.shape], spec.dtype)
        for spec in inputs
    }


def signature(session: Any) -> Signature:
    """Inputs and outputs of a session's model."""
    return batched(_specs(session.get_inputs()), _specs(session.get_outputs()))


def _dtype(end: Any) -> str:
    if end.type not in _DTYPES:
        raise InvalidModelError(
            f"expected inputs and outputs of {', '.join(_DTYPES)}, got {end.type} in {end.name}"
        )
    return _DTYPES[end.type]


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            tuple(size if isinstance(size, int) else -1 for size in value.shape),
            _dtype(value),
        )
        for value in values
    )
