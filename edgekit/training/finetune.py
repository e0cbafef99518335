"""Fine-tuning: a trained model gets a classifier of new classes, which is trained first, alone.

For the recipe's ``head_epochs`` the layers below stay as they are and compute as in deployment;
then all layers are trained together, from a lower rate (Yosinski et al. 2014, "How transferable are
features in deep neural networks?", section 4; that a random classifier would spoil them: Kumar et
al. 2022, "Fine-Tuning can Distort Pretrained Features").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError, InvalidOptionError, reason
from edgekit.base.progress import SILENT, Progress
from edgekit.records.signature import Preprocessing
from edgekit.sources import float_model
from edgekit.sources import keras as keras_format
from edgekit.training.stream import StreamTrainer
from edgekit.training.trainer import Trainer

DROPOUT, LOGITS, PROBABILITIES = "head_dropout", "logits", "probabilities"


@dataclass(frozen=True)
class Start:
    """A trained model to begin with.

    Attributes:
        original: The model, and where it came from.
        shape: ``(H, W, C)`` of the input that the new model gets. Where it has three channels and
            the given model has one, the weights that read these are shared out as grey is made of
            red, green and blue: to begin with, it predicts what the given model does of the grey
            picture.
        prepare: The model's own preprocessing; a background class is left behind.
    """

    original: float_model.FloatModel
    shape: tuple[int, int, int]
    prepare: Preprocessing

    def build(self, classes: int, *, dropout: float, seed: int) -> Any:
        """The model's layers up to its classifier, and a new classifier.

        Returns:
            A functional model with the layers ``logits`` and ``probabilities`` at its end; all
            variables are new ones.

        Raises:
            InvalidModelError: If the model has another form or does not work at this size.
        """
        keras = keras_format.tf_keras()
        body = resized(self.original.model, self.shape)
        x = _features(body)
        x = keras.layers.Dropout(dropout, seed=seed, name=DROPOUT)(x)
        x = keras.layers.Dense(
            classes,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01, seed=seed),
            name=LOGITS,
        )(x)
        probabilities = keras.layers.Softmax(name=PROBABILITIES)(x)
        try:
            return keras.Model(body.input, probabilities, name=body.name)
        except ValueError as exc:  # two layers of one name
            raise InvalidModelError(
                f"{self.original.model_id} cannot get a new classifier: {reason(exc)}"
            ) from None


def start(
    model: Path,
    *,
    size: int | None,
    preprocessing: str | None,
    channels: int | None = None,
    colours: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> Start:
    """Load the model to begin with.

    Args:
        model: A float Keras artifact, or a ``.keras`` file with ``preprocessing``.
        size: Height and width of the new model's input; None for the model's own.
        preprocessing: For a ``.keras`` file.
        channels: Channels of the new model's input; default the model's own, or 3 if it takes grey
            pictures and gets others, which is said.
        colours: Whether the pictures that it gets are in colour.
        progress: Hears it.

    Raises:
        EdgekitError: If it cannot be read, is no float classifier, or does not say its size.
    """
    original = float_model.load(model, preprocessing=preprocessing, free=True)
    if original.encodings is not None:
        raise InvalidModelError(f"{model} was trained with fake quantization; pass the float model")
    shapes = [tuple(each.shape[1:]) for each in original.model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] is None:
        raise InvalidModelError(f"{model}: expected one input [H, W, C], got {shapes}")
    height, width, own = shapes[0]
    if size is None and (height is None or width is None):
        raise InvalidOptionError(f"{model} does not say how large its images are; pass --size N")
    prepare = original.preprocessing
    if prepare.class_offset:
        prepare = replace(prepare, name=prepare.name.split("#")[0], class_offset=0)
    if channels not in (None, own) and (own, channels) != (1, 3):
        raise InvalidOptionError(
            f"{model} takes {own} channels: expected --channels "
            f"{'1 or 3' if own == 1 else own}, got {channels}"
        )
    beginning = Start(original, (size or height, size or width, own), prepare)
    beginning.build(2, dropout=0.0, seed=0)  # refuse before data are read
    if channels is None and own == 1 and colours():
        progress.say(
            f"{original.model_id} takes grey pictures, these are in colour: the new model takes "
            f"colours; --channels 1 leaves them out"
        )
        channels = 3
    if channels in (None, own):
        return beginning
    beginning = replace(beginning, shape=(*beginning.shape[:2], 3))
    beginning.build(2, dropout=0.0, seed=0)
    return beginning


def resized(model: Any, shape: tuple[int, int, int]) -> Any:
    """A copy of a model, with its weights, for images of another size or in colours."""
    keras = keras_format.tf_keras()
    own = model.inputs[0].shape[-1]
    try:
        name = keras_format.tensor_name(model.inputs[0])
        copy = keras.models.clone_model(model, input_tensors=keras.Input(shape, name=name))
        weights = model.get_weights()
        if shape[2] != own:
            sizes = [tuple(each.shape) for each in copy.weights]
            weights = [shared(*pair) for pair in zip(weights, sizes, strict=True)]
        copy.set_weights(weights)
    except Exception as exc:  # whatever a layer raises
        if shape[2] != own:
            raise InvalidModelError(
                f"the model takes grey pictures and cannot be made to take colours, expected a "
                f"convolution to read them ({reason(exc)}); pass --channels 1, or take a model of "
                f"colours"
            ) from None
        raise InvalidModelError(
            f"the model's layers do not fit images of {shape[0]} x {shape[1]} ({reason(exc)}); "
            f"leave out --size, or take a model with global pooling"
        ) from None
    return copy


#: Red, green and blue in grey, as pictures become grey (ITU-R 601 luma, as Pillow computes it).
_LUMA = (0.299, 0.587, 0.114)


def shared(weights: npt.NDArray[Any], size: tuple[int, ...]) -> npt.NDArray[Any]:
    """Weights of a layer that may read three channels instead of one.

    Raises:
        ValueError: If other weights than the kernel of a convolution would change.
    """
    if weights.shape == size:
        return weights
    if weights.ndim != 4 or weights.shape[2] != 1 or size != (*weights.shape[:2], 3, size[3]):
        raise ValueError(f"weights {list(weights.shape)} would become {list(size)}")
    return np.asarray(weights * np.array(_LUMA, weights.dtype)[:, None])


def _features(model: Any) -> Any:
    """What the last dense layer classifies, ``[N, features]``."""
    layers = keras_format.tf_keras().layers
    tensor = model.outputs[0] if len(model.outputs) == 1 else None
    passed = layers.Softmax | layers.Activation | layers.Dropout
    while tensor is not None:
        layer = tensor._keras_history.layer
        if isinstance(layer, layers.Dense):
            break
        tensor = layer.input if isinstance(layer, passed) else None
    if tensor is None:
        raise InvalidModelError(
            f"{model.name}: expected a classifier that ends in a Dense layer and at most a "
            f"softmax, got {type(model.layers[-1]).__name__} at its end"
        )
    features = layer.input
    while isinstance(features._keras_history.layer, layers.Dropout):
        features = features._keras_history.layer.input
    if len(features.shape) != 2:
        raise InvalidModelError(
            f"{model.name}: expected [N, features] before its last Dense layer, got "
            f"{list(features.shape)}"
        )
    return features


class FineTuner(Trainer):
    """A model of :meth:`Start.build`: the classifier is trained first, then all layers.

    Args:
        settings: Settings of :class:`edgekit.training.trainer.Trainer`.
    """

    PHASES: ClassVar[int] = 2

    def _set_up(self, model: Any) -> None:
        super()._set_up(model)
        self._dropout, self._classifier = model.get_layer(DROPOUT), model.get_layer(LOGITS)
        self._body = keras_format.tf_keras().Model(model.input, self._dropout.input)

    def _phase_of(self, step: int) -> int:
        """The classifier alone, 0, or all layers, 1."""
        return int(step >= self.recipe.head_epochs * self.steps_per_epoch)

    def _loss(self, x: Any, y: Any) -> tuple[Any, Any]:
        tf = keras_format.tensorflow()
        head_only = self._phase == 0
        features = self._body(x, training=not head_only)
        if head_only:
            features = tf.stop_gradient(features)
        logits = tf.cast(self._classifier(self._dropout(features, training=True)), tf.float32)
        return tf.reduce_mean(self.cross_entropy(logits, y)), logits


class StreamFineTuner(FineTuner, StreamTrainer):
    """The same over a stream."""
