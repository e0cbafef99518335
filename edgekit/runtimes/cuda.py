"""onnxruntime on a GPU: tensors bound to the device, every node there, no clock before the end."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidOptionError
from edgekit.graph import onnx
from edgekit.records.results import Runtime
from edgekit.runtimes import Feed, Runner
from edgekit.runtimes.ort import signature, zeros

#: Images a run when none are asked for.
BATCH = 250


class BoundRunner(Runner):
    """An ``.onnx`` file in a session on one provider, fed and read through IO binding.

    Options that begin with ``session.`` are the session's, all others the provider's, e.g.
    ``prefer_nhwc`` or ``use_tf32`` of CUDA. One profiled run shows that every node ran on the
    provider; onnxruntime leaves arithmetic of shapes to the CPU, which is let pass.

    Raises:
        ExecutionError: If the session fell back to another provider, or a node did.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        options: Mapping[str, str],
        batch: int | None = None,
        provider: str = onnx.CUDA,
    ) -> None:
        of_session = {key: value for key, value in options.items() if key.startswith("session.")}
        of_provider = {key: value for key, value in options.items() if key not in of_session}
        self._session = onnx.session(
            model,
            threads=threads,
            options=of_session,
            provider=provider,
            provider_options=of_provider,
        )
        self._provider, self._threads, self._of_session = provider, threads, of_session
        self._memory = "cuda" if provider == onnx.CUDA else "cpu"
        self.signature = signature(self._session)
        fixed = self.signature.batch
        if batch is not None and fixed not in (-1, batch):
            raise InvalidOptionError(f"{model} has a fixed batch of {fixed}, cannot run {batch}")
        self.batch = batch or (BATCH if fixed == -1 else fixed)
        nodes = onnx.executed(
            model,
            zeros(self.signature.inputs),
            threads=threads,
            options=of_session,
            provider=provider,
            provider_options=of_provider,
        )
        self._kinds = collections.Counter(node.kind for node in nodes)

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run one feed of any batch size; inputs and outputs are copied."""
        binding = self._bind(feed)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        names = [spec.name for spec in self.signature.outputs]
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    def prepared(self, feed: Feed) -> Callable[[], None]:
        """A run on tensors that lie on the device, over when the device has finished it."""
        binding = self._bind(feed)

        def once() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return once

    def describe(self) -> Runtime:
        """The provider with all its options as it reports them, and what ran in the profile."""
        options = self._session.get_provider_options().get(self._provider, {})
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._kinds.items())
        return Runtime(
            "ort",
            self._session.get_providers()[0],
            self._threads,
            {**self._of_session, **{key: str(value) for key, value in options.items()}},
            (f"a profiled run had every node on {self._provider}: {kinds}",),
            device="gpu" if self._memory == "cuda" else "cpu",
        )

    def close(self) -> None:
        """Let go of the model."""
        del self._session

    def _bind(self, feed: Feed) -> Any:
        import onnxruntime

        binding = self._session.io_binding()
        for name, values in feed.items():
            placed = onnxruntime.OrtValue.ortvalue_from_numpy(
                np.ascontiguousarray(values), self._memory, 0
            )
            binding.bind_ortvalue_input(name, placed)
        for spec in self.signature.outputs:
            binding.bind_output(spec.name, self._memory, 0)
        binding.synchronize_inputs()
        return binding
