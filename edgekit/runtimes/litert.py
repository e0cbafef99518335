"""LiteRT (the TFLite interpreter) on the CPU, with XNNPACK or its reference kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgekit.base.errors import InvalidOptionError
from edgekit.graph import flatbuffer, litert
from edgekit.records.results import Runtime
from edgekit.records.signature import Shapes
from edgekit.runtimes import Feed, Runner
from edgekit.sources import one_sample, tflite_sizes

KERNELS = ("xnnpack", "reference")


class LiteRtRunner(Runner):
    """A ``.tflite`` file in an interpreter.

    The option ``kernels`` is ``xnnpack`` (default) or ``reference``, which are slow and plain.

    Raises:
        InvalidOptionError: If an option or its value is unknown.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        batch: int = 1,
        options: Mapping[str, str] | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        self.batch = batch
        self._threads = threads
        self._options = dict(options or {})
        asked = interpreter_options(self._options)
        opened: Path | bytes = model
        if shapes:
            opened = tflite_sizes.sized(model.read_bytes(), str(model), shapes)
        self._interpreter = litert.interpreter(opened, threads=threads, **asked)
        signed = not shapes and litert.SIGNATURE_KEY in self._interpreter.get_signature_list()
        several = any(d["shape"][:1] > 1 for d in self._interpreter.get_input_details())
        if not signed or several:  # of others: tensors get the names and sizes that export gives
            content = opened if isinstance(opened, bytes) else opened.read_bytes()
            content = one_sample.single(content, str(model))
            content = flatbuffer.signed(content, str(model), key=litert.SIGNATURE_KEY)
            self._interpreter = litert.interpreter(content, threads=threads, **asked)
        self.signature = litert.signature_of(self._interpreter)
        if batch != 1:
            for detail in self._interpreter.get_input_details():
                shape = [batch, *detail["shape"][1:]]
                self._interpreter.resize_tensor_input(detail["index"], shape)
            self._interpreter.allocate_tensors()
        runner = self._interpreter.get_signature_runner(litert.SIGNATURE_KEY)
        self._inputs = {n: d["index"] for n, d in runner.get_input_details().items()}
        self._outputs = {n: d["index"] for n, d in runner.get_output_details().items()}

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run one feed of exactly ``batch`` images."""
        for name, values in feed.items():
            self._interpreter.set_tensor(self._inputs[name], values)
        self._interpreter.invoke()
        return {n: self._interpreter.get_tensor(i) for n, i in self._outputs.items()}

    def describe(self) -> Runtime:
        """XNNPACK takes what it can when the interpreter is made; LiteRT names the rest its own."""
        delegated = litert.delegated(self._interpreter)
        plain = "reference" if self._options.get("kernels") == "reference" else "builtin"
        provider = "XNNPACK" if delegated else f"{plain} kernels"
        return Runtime("litert", provider, self._threads, self._options)

    def close(self) -> None:
        """Let go of the model."""
        del self._interpreter


def interpreter_options(options: Mapping[str, str]) -> dict[str, Any]:
    """The runtime's options as the interpreter takes them.

    Raises:
        InvalidOptionError: If one or its value is unknown.
    """
    unknown = sorted(set(options) - {"kernels"})
    if unknown:
        raise InvalidOptionError(f"litert knows the option kernels, got {unknown[0]!r}")
    kernels = options.get("kernels", "xnnpack")
    if kernels not in KERNELS:
        raise InvalidOptionError(f"expected kernels as {' or '.join(KERNELS)}, got {kernels!r}")
    if kernels == "xnnpack":
        return {}
    from ai_edge_litert.interpreter import OpResolverType

    return {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF}
