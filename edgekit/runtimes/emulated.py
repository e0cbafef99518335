"""float16 imitated on the CPU, for outputs without a GPU; its time means nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgekit.base.errors import ExecutionError, InvalidOptionError
from edgekit.graph import onnx
from edgekit.records.results import Runtime
from edgekit.runtimes import emulation
from edgekit.runtimes.ort import OrtRunner, zeros

NOTE = (
    "float16 emulated on the CPU: weights and the output of every operator are rounded to "
    "float16, sums are float32; accuracy only, no times"
)


class EmulatedRunner(OrtRunner):
    """A float16 ``.onnx`` file that rounds after every operator, as :func:`emulation.emulate` says.

    Raises:
        ExecutionError: If onnxruntime optimized one of the roundings away.
    """

    def __init__(
        self, model: Path, *, threads: int, options: Mapping[str, str], batch: int | None = None
    ) -> None:
        if options:
            raise InvalidOptionError(f"the emulation takes no options, got {dict(options)}")
        half = onnx.load(model)
        rounding, casts = emulation.emulate(half)
        if casts == 0:
            raise InvalidOptionError(f"{model} holds no float16; nothing is there to emulate")
        content = rounding.SerializeToString()
        super().__init__(content, threads=threads, options={}, batch=batch)
        nodes = onnx.executed(content, zeros(self.signature.inputs), threads=threads)
        added = {node.name for node in rounding.graph.node}
        added -= {node.name for node in half.graph.node}
        got = sum(node.name in added for node in nodes if node.kind == "Cast")
        if got < casts:
            raise ExecutionError(
                f"expected {casts} casts for the rounding, this onnxruntime ran {got} and left "
                f"the others out; install another version of it, or take a reference that is no "
                f"emulation, e.g. keras:cpu:float32"
            )

    def describe(self) -> Runtime:
        """The CPU provider, marked as an emulation."""
        return replace(super().describe(), emulated=True, notes=(NOTE,))
