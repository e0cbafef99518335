"""The one interface of all runtimes: a Runner runs feeds and says what really ran. It measures no
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy.typing as npt

from edgekit.base.errors import InvalidOptionError
from edgekit.records.results import Measurement, Runtime
from edgekit.records.signature import Shapes, Signature

Feed = Mapping[str, npt.NDArray[Any]]

#: Runtime by format of an artifact.
RUNTIMES = {"tflite": "litert", "onnx": "ort", "keras": "keras"}


class Runner(Protocol):
    """One loaded model on one runtime; a context manager.

    Attributes:
        signature: Inputs and outputs as the model file has them.
        batch: Images that one run may hold at the most.
        parameters: Numbers that the model has learned; None where the file does not tell them from
            other constants.
    """

    signature: Signature
    batch: int
    parameters: int | None = None
    metrics: Mapping[str, Measurement] = MappingProxyType({})

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run one feed; arrays by name, in the model's own dtypes."""

    def prepared(self, feed: Feed) -> Callable[[], None]:
        """One run on this feed, to be timed: what it needs is in place before, and it returns when
        the device has finished."""

        def once() -> None:
            self.run(feed)

        return once

    def describe(self) -> Runtime:
        """What really ran: provider, threads, options."""

    def close(self) -> None:
        """Let go of the model; the runner does not run any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_runner(
    model: Path,
    *,
    format: str,
    threads: int,
    options: Mapping[str, str] | None = None,
    batch: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    trust: bool = False,
    shapes: Shapes | None = None,
) -> Runner:
    """Load a model on the runtime of its format.

    Args:
        model: The model file, or the folder of a SavedModel.
        format: ``tflite``, ``onnx``, ``keras`` or ``saved_model``.
        threads: Threads inside an operator.
        options: Runtime options of the manifest: session config entries of onnxruntime,
            ``kernels`` of LiteRT, or ``data_format`` of Keras.
        batch: Images a run; default what the runtime does best.
        device: ``cpu``; for ``onnx`` also ``cuda`` or ``emulated``, for ``keras`` also ``gpu``, for
            ``tflite`` also ``tflm``, the kernels of TensorFlow Lite Micro.
        precision: Precision of a Keras model's layers: ``float32``, ``mixed_float16`` or
            ``bfloat16``.
        trust: Run code inside of a Keras file, and operators of a SavedModel that reach beyond it.
        shapes: Of a float model of others, sizes of inputs with free axes, by name; an ONNX file is
            then read as export reads it. None of an artifact.

    Raises:
        InvalidModelError: If the file cannot be loaded.
        InvalidOptionError: If the format is unknown, or the runtime knows no options or not this
            device.
        ExecutionError: If something else than the device would run the model.
    """
    devices = {
        "onnx": ("cpu", "cuda", "emulated"),
        "keras": ("cpu", "gpu"),
        "tflite": ("cpu", "tflm"),
    }
    known = devices.get(format, ("cpu",))
    if device not in known:
        raise InvalidOptionError(f"{format} runs on {', '.join(known)}, got {device!r}")
    if format == "keras" and set(options or {}) - {"data_format"}:
        raise InvalidOptionError(f"runtime keras takes data_format, got {dict(options or {})}")
    if device == "tflm":
        from edgekit.runtimes.tflm import TflmRunner

        return TflmRunner(model, options=options)
    if format == "tflite":
        from edgekit.runtimes.litert import LiteRtRunner

        return LiteRtRunner(
            model, threads=threads, batch=batch or 1, options=options, shapes=shapes
        )
    if format == "onnx" and device == "cuda":
        from edgekit.runtimes.cuda import BoundRunner

        return BoundRunner(model, threads=threads, options=options or {}, batch=batch)
    if format == "onnx" and device == "emulated":
        from edgekit.runtimes.emulated import EmulatedRunner

        return EmulatedRunner(model, threads=threads, options=options or {}, batch=batch)
    if format == "onnx":
        from edgekit.runtimes.ort import OrtRunner

        return OrtRunner(model, threads=threads, options=options or {}, batch=batch, shapes=shapes)
    if format == "keras":
        from edgekit.runtimes.keras import KerasRunner

        return KerasRunner(
            model,
            threads=threads,
            batch=batch,
            device=device,
            precision=precision,
            data_format=(options or {}).get("data_format", "NHWC"),
            trust=trust,
            shapes=shapes,
        )
    if format == "saved_model":
        from edgekit.runtimes.saved_model import SavedModelRunner

        return SavedModelRunner(model, threads=threads, batch=batch, trust=trust, shapes=shapes)
    raise InvalidOptionError(f"expected format {', '.join(RUNTIMES)}, saved_model, got {format!r}")
