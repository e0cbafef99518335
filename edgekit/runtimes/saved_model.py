"""TensorFlow SavedModels: the float reference as its maker saved it, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgekit.base.errors import InvalidOptionError
from edgekit.records.results import Runtime
from edgekit.records.signature import Shapes, Signature, sized
from edgekit.runtimes import Feed, Runner
from edgekit.runtimes.keras import set_up
from edgekit.sources import keras as keras_format
from edgekit.sources.saved_model import SavedModel


class SavedModelRunner(Runner):
    """A SavedModel folder, through the signature that it is exported by.

    Raises:
        InvalidModelError: If it cannot be loaded, or reaches beyond itself and is not trusted.
        InvalidOptionError: If its batch is fixed and another one is asked for.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        batch: int | None = None,
        trust: bool = False,
        shapes: Shapes | None = None,
    ) -> None:
        tf = keras_format.tensorflow()
        self._options = set_up(tf, device="cpu", threads=threads)
        self._model = SavedModel(model, trust=trust)
        self._constant = tf.constant
        inputs = sized(self._model.specs, shapes or {}, model)
        self.signature = Signature(inputs=inputs, outputs=self._model.output_specs)
        fixed = self.signature.inputs[0].shape[0]
        if batch is not None and fixed not in (-1, batch):
            raise InvalidOptionError(f"{model} has a fixed batch of {fixed}, cannot run {batch}")
        self.batch = batch or (250 if fixed == -1 else fixed)
        self._threads = threads

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run one feed of up to ``batch`` samples."""
        values = [self._constant(feed[spec.name]) for spec in self.signature.inputs]
        outputs = self._model(*values)
        return {s.name: v.numpy() for s, v in zip(self.signature.outputs, outputs, strict=True)}

    def describe(self) -> Runtime:
        """TensorFlow and its device."""
        return Runtime("tensorflow", "TensorFlow CPU", self._threads, self._options)

    def close(self) -> None:
        """Let go of the model."""
        del self._model
