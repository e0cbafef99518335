"""LiteRT (the TFLite interpreter) on the CPU, with XNNPACK."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from edgekit.formats import tflite
from edgekit.results import Runtime
from edgekit.runtimes import Feed


class LiteRtRunner:
    """A ``.tflite`` file in an interpreter."""

    def __init__(self, model: Path, *, threads: int, batch: int = 1) -> None:
        self.signature = tflite.signature(model)
        self.batch = batch
        self._threads = threads
        self._interpreter = tflite.interpreter(model, threads=threads)
        if batch != 1:
            for detail in self._interpreter.get_input_details():
                shape = [batch, *detail["shape"][1:]]
                self._interpreter.resize_tensor_input(detail["index"], shape)
            self._interpreter.allocate_tensors()
        runner = self._interpreter.get_signature_list()[tflite.SIGNATURE_KEY]
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self._inputs = dict(zip(runner["inputs"], (d["index"] for d in inputs), strict=True))
        self._outputs = dict(zip(runner["outputs"], (d["index"] for d in outputs), strict=True))

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Answer one feed of exactly ``batch`` images."""
        for name, values in feed.items():
            self._interpreter.set_tensor(self._inputs[name], values)
        self._interpreter.invoke()
        return {n: self._interpreter.get_tensor(i) for n, i in self._outputs.items()}

    def describe(self) -> Runtime:
        """XNNPACK takes what it can when the interpreter is made; LiteRT names the rest its own."""
        delegated = any(op["op_name"] == "DELEGATE" for op in self._interpreter._get_ops_details())
        provider = "XNNPACK" if delegated else "builtin kernels"
        return Runtime("litert", provider, self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._interpreter
