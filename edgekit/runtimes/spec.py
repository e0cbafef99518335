"""RunnerSpec: a word such as ``ort:cuda:float16`` for a float model on a runtime and a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.base import words
from edgekit.base.errors import ExecutionError, InvalidOptionError
from edgekit.records import environment

Device = Literal["cpu", "cuda", "gpu", "emulated"]


@dataclass(frozen=True)
class RunnerSpec:
    """How the float model is to be run.

    Attributes:
        word: The spec as it is written; also the name in tables.
        runtime: ``keras`` or ``ort``.
        device: ``cpu``, ``cuda`` (onnxruntime's provider), ``gpu`` (TensorFlow's), or
            ``emulated``: on the CPU, rounding as the device would; its time means nothing.
        precision: Precision of the model file for ort; of its layers for Keras.
        data_format: That Keras' layers run in; the images stay NHWC.
    """

    word: str
    runtime: Literal["keras", "ort"]
    device: Device
    precision: Literal["float32", "float16", "mixed_float16", "bfloat16"]
    data_format: Literal["NHWC", "NCHW"] = "NHWC"

    @property
    def format(self) -> str:
        """Format of the model file that the runtime takes."""
        return "onnx" if self.runtime == "ort" else "keras"

    @property
    def on_gpu(self) -> bool:
        """Whether it needs a GPU."""
        return self.device in ("cuda", "gpu")


def _keras(
    device: Literal["cpu", "gpu"],
    precisions: tuple[Literal["float32", "mixed_float16", "bfloat16"], ...],
    data_format: Literal["NHWC", "NCHW"],
) -> Iterator[RunnerSpec]:
    for precision in precisions:
        word = f"keras:{device}:{precision}" + (":NCHW" if data_format == "NCHW" else "")
        yield RunnerSpec(word, "keras", device, precision, data_format)


SPECS: dict[str, RunnerSpec] = {
    spec.word: spec
    for spec in (
        *_keras("cpu", ("float32", "mixed_float16", "bfloat16"), "NHWC"),
        *_keras("cpu", ("float32", "bfloat16"), "NCHW"),  # TensorFlow has no float16 there
        *_keras("gpu", ("float32", "mixed_float16", "bfloat16"), "NHWC"),
        *_keras("gpu", ("float32", "mixed_float16", "bfloat16"), "NCHW"),
        RunnerSpec("ort:cpu:float32", "ort", "cpu", "float32"),
        RunnerSpec("ort:cpu:float16", "ort", "cpu", "float16"),
        RunnerSpec("ort:cuda:float32", "ort", "cuda", "float32"),
        RunnerSpec("ort:cuda:float16", "ort", "cuda", "float16"),
        RunnerSpec("emulated:float16", "ort", "emulated", "float16"),
    )
}


def parse(word: str) -> RunnerSpec:
    """Look a spec up.

    Raises:
        InvalidOptionError: If there is none of that name.
    """
    if word not in SPECS:
        raise InvalidOptionError(
            f"unknown runner {word!r}; expected one of {', '.join(SPECS)}{words.near(word, SPECS)}"
        )
    return SPECS[word]


def is_spec(word: str) -> bool:
    """Whether a ``--reference`` word means a runner, known or not, and no file."""
    return word in SPECS or (":" in word and not Path(word).exists())


def require_device(spec: RunnerSpec) -> None:
    """Refuse a spec that needs a GPU where there is none, before anything is made for it.

    Raises:
        ExecutionError: If no NVIDIA driver or no GPU was found.
    """
    if not spec.on_gpu or environment.gpu() is not None:
        return
    asked = "a GPU of TensorFlow's"
    if spec.runtime == "ort":
        asked = "CUDAExecutionProvider"
    raise ExecutionError(
        f"{spec.word} asks for {asked}, this machine has no NVIDIA driver or GPU{_there(spec)}; "
        f"run it where one is and replay its recording here, or use emulated:float16"
    )


def _there(spec: RunnerSpec) -> str:
    """The providers that could be asked for instead, in words."""
    if spec.runtime != "ort":
        return ""
    try:
        import onnxruntime
    except ImportError:
        return " and no onnxruntime"
    usable = [name for name in onnxruntime.get_available_providers() if name.startswith("CPU")]
    built = ", ".join(onnxruntime.get_available_providers())
    return f" (onnxruntime was built with {built}; usable here: {', '.join(usable)})"
