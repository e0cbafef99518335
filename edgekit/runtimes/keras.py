"""tf_keras: the float reference on the CPU, and a GPU in float32 or mixed_float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from edgekit.base.errors import ExecutionError, InvalidOptionError
from edgekit.records import encodings, environment
from edgekit.records.results import Runtime
from edgekit.records.signature import Shapes, sized
from edgekit.runtimes import Feed, Runner
from edgekit.sources import arrange
from edgekit.sources import keras as keras_format

_PLAIN = ("NHWC", "float32")


class KerasRunner(Runner):
    """A ``.keras`` file as a function, traced once, for every batch, while it is loaded.

    With a recipe of fake quantization beside it, as ``python -m edgekit.qat`` writes it, the model
    computes as it was trained.

    On a GPU every operator has to have a kernel there; float32 is float32 then, not TF32. In half
    precision and with channels first (edgekit.sources.arrange) images and outputs stay float32
    and NHWC.

    Raises:
        ExecutionError: If the device is not there, or the output came from another.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        batch: int | None = None,
        device: str = "cpu",
        precision: str = "float32",
        data_format: str = "NHWC",
        trust: bool = False,
        shapes: Shapes | None = None,
    ) -> None:
        tf = keras_format.tensorflow()
        arrange.check(data_format, precision)
        self._device = device
        self._form = (data_format, precision)
        self._options = set_up(tf, device=device, threads=threads)
        self._fake = model.with_name(encodings.FAKE_QUANT_FILE).is_file()
        if self._fake:
            from edgekit.quantization import fake

            if self._form != _PLAIN:
                raise InvalidOptionError(
                    f"{model} is fake-quantized, it computes in float32; got {precision} "
                    f"{data_format}"
                )
            loaded = fake.load(model)
        else:
            loaded = keras_format.load(model, trust=trust)
        own = keras_format.signature(loaded)
        self.signature = replace(own, inputs=sized(own.inputs, shapes or {}, model))
        self.parameters = int(loaded.count_params())
        where = "/GPU:0" if device == "gpu" else "/CPU:0"
        if self._form != _PLAIN:
            arrange.require(data_format, precision, device=where, training=False)
        arranged = arrange.arrange(loaded, data_format=data_format, precision=precision)
        fixed = self.signature.inputs[0].shape[0]
        if batch is not None and fixed not in (-1, batch):
            raise InvalidOptionError(f"{model} has a fixed batch of {fixed}, cannot run {batch}")
        self.batch = batch or (250 if fixed == -1 else fixed)
        self._threads = threads
        self._constant = tf.constant
        self._place = tf.device(where)

        def forward(*inputs: Any) -> Any:
            if data_format == "NCHW":
                inputs = tuple(tf.transpose(x, [0, 3, 1, 2]) for x in inputs)
            return keras_format.call(arranged, inputs)

        specs = [
            tf.TensorSpec([None if size == -1 else size for size in spec.shape], spec.dtype)
            for spec in self.signature.inputs
        ]
        with self._place:
            self._forward = tf.function(forward).get_concrete_function(*specs)

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run one feed of any batch size."""
        return self._outputs(self._constants(feed))

    def prepared(self, feed: Feed) -> Callable[[], None]:
        """A run on tensors that lie on the device; fetching the output waits for its end."""
        values = self._constants(feed)

        def once() -> None:
            self._outputs(values)

        return once

    def describe(self) -> Runtime:
        """TensorFlow and its device."""
        kind = f"TensorFlow {self._device.upper()}"
        if self._fake:
            kind += ", fake-quantized"
        kind += "".join(f", {w}" for w, p in zip(self._form, _PLAIN, strict=True) if w != p)
        device: Literal["cpu", "gpu"] = "gpu" if self._device == "gpu" else "cpu"
        return Runtime("keras", kind, self._threads, self._options, device=device)

    def close(self) -> None:
        """Let go of the model."""
        del self._forward

    def _constants(self, feed: Feed) -> list[Any]:
        with self._place:
            return [self._constant(feed[spec.name]) for spec in self.signature.inputs]

    def _outputs(self, values: list[Any]) -> dict[str, npt.NDArray[Any]]:
        with self._place:
            outputs = self._forward(*values)
        if self._device == "gpu" and not all("GPU" in value.device for value in outputs):
            raise ExecutionError(f"expected the output from a GPU, got it from {outputs[0].device}")
        return {s.name: v.numpy() for s, v in zip(self.signature.outputs, outputs, strict=True)}


def set_up(tf: Any, *, device: str, threads: int) -> dict[str, str]:
    """Give TensorFlow its threads, and show it no GPU or one that has to run everything.

    On x86 without AVX-512, convolutions are not fused with the batch normalisation behind them:
    oneDNN computes what is fused there by plain loops, at batch 1, and an image takes 10 times as
    long (MobileNetV2, oneDNN of TensorFlow 2.21).

    Returns:
        Options that were set, for :class:`edgekit.records.results.Runtime`.

    Raises:
        ExecutionError: If there is none.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    gpus = tf.config.list_physical_devices("GPU")
    if device != "gpu":
        if gpus:  # TensorFlow would take it without being asked
            tf.config.set_visible_devices([], "GPU")
        isa = environment.isa()
        fused = "avx2" not in isa or "avx512f" in isa
        # the setting is the process's, and outlives a runner
        tf.config.optimizer.set_experimental_options({"remapping": fused})
        return {} if fused else {"remapping": "off"}
    if not gpus:
        raise ExecutionError(
            "expected a GPU, TensorFlow sees none; on a CUDA machine install its libraries with "
            "pip install 'tensorflow[and-cuda]'"
        )
    tf.config.set_visible_devices(gpus[:1], "GPU")
    tf.config.experimental.set_memory_growth(gpus[0], True)
    tf.config.set_soft_device_placement(False)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return {}
