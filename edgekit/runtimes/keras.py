"""tf_keras on the CPU: the float reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgekit import encodings
from edgekit.errors import InvalidOptionError
from edgekit.formats import keras as keras_format
from edgekit.results import Runtime
from edgekit.runtimes import Feed, Runner


class KerasRunner(Runner):
    """A ``.keras`` file as a traced function.

    With a recipe of fake quantization beside it, as ``python -m edgekit.qat`` writes it, the model
    computes as it was trained.
    """

    def __init__(self, model: Path, *, threads: int, batch: int | None = None) -> None:
        tf = keras_format.tensorflow()
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self._fake = model.with_name(encodings.FAKE_QUANT_FILE).is_file()
        if self._fake:
            from edgekit.quant import fake

            loaded = fake.load(model)
        else:
            loaded = keras_format.load(model)
        self.signature = keras_format.signature(loaded)
        fixed = self.signature.inputs[0].shape[0]
        if batch is not None and fixed not in (-1, batch):
            raise InvalidOptionError(f"{model} has a fixed batch of {fixed}, cannot run {batch}")
        self.batch = batch or (250 if fixed == -1 else fixed)
        self._threads = threads
        self._constant = tf.constant
        self._forward = tf.function(lambda x: loaded(x, training=False), reduce_retracing=True)

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Answer one feed of any batch size."""
        values = [self._constant(feed[spec.name]) for spec in self.signature.inputs]
        found = self._forward(values if len(values) > 1 else values[0])
        found = found if isinstance(found, list | tuple) else [found]
        return {s.name: v.numpy() for s, v in zip(self.signature.outputs, found, strict=True)}

    def describe(self) -> Runtime:
        """TensorFlow on the CPU."""
        kind = "TensorFlow CPU, fake-quantized" if self._fake else "TensorFlow CPU"
        return Runtime("keras", kind, self._threads)

    def close(self) -> None:
        """Let go of the model."""
        del self._forward
