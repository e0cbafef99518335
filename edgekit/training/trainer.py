"""Trainer: one model, stepped over arrays of images.

A step splits its batch over replicas (edgekit.training.replicas), and each replica's part over
*towers*, one a core, inside one graph: each tower computes on one thread, which uses small cores
better than many threads a layer. Weights, optimiser state, statistics of batch normalisation,
logits and loss are float32, whatever layers compute in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.records.signature import Preprocessing
from edgekit.sources import keras as keras_format
from edgekit.training import optimizers
from edgekit.training.augment import augment
from edgekit.training.recipes import Recipe
from edgekit.training.replicas import Replicas


def configure_threads(towers: int) -> None:
    """One thread an operation, ``towers`` operations at once; before TensorFlow's first use.

    Raises:
        InvalidOptionError: If TensorFlow runs already with other threads.
    """
    threading = keras_format.tensorflow().config.threading
    try:
        threading.set_intra_op_parallelism_threads(1)
        threading.set_inter_op_parallelism_threads(max(towers, 1))
    except RuntimeError:
        if (
            threading.get_intra_op_parallelism_threads(),
            threading.get_inter_op_parallelism_threads(),
        ) != (1, max(towers, 1)):
            raise InvalidOptionError(
                "TensorFlow was used in this process before; train in a fresh process"
            ) from None


class Trainer:
    """One model, its optimiser state and moving average, stepped over arrays of images.

    Args:
        model: Functional tf_keras model with a layer ``logits`` before its softmax; made in the
            scope of ``replicas``. Its input is ``[N, H, W, C]``, or ``[N, C, H, W]`` if
            ``data_format`` says so.
        recipe: Hyper-parameters.
        images: uint8 or float ``[N, H, W, C]``, kept in memory.
        labels: int64 ``[N]``.
        prepare: From pixels to model input.
        towers: Parts that a replica splits its images into.
        replicas: Devices that share a batch; default one.
        data_format: ``NHWC`` or ``NCHW``, of the model.
        scaled: Whether the loss is scaled, as layers that compute in float16 need it.
        jit: Whether XLA compiles the step.
    """

    #: Steps of different kinds that a run is made of, each traced once; ``_phase`` says which one
    #: is being traced.
    PHASES: ClassVar[int] = 1
    #: What is counted as right on augmented images: as the log calls it, and in words.
    MEASURED: ClassVar[tuple[str, str]] = ("top1", "top-1")

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        *,
        images: Any,
        labels: npt.NDArray[np.int64] | None,
        prepare: Preprocessing,
        towers: int,
        replicas: Replicas | None = None,
        data_format: str = "NHWC",
        scaled: bool = False,
        jit: bool = False,
    ) -> None:
        tf = keras_format.tensorflow()
        self.replicas = replicas or Replicas()
        _check_batch(recipe.batch, towers, self.replicas.count, len(images))
        self.model = model
        self.recipe = recipe
        self.towers = towers
        self.images = len(images)
        self.steps_per_epoch = len(images) // recipe.batch
        self.classes = int(model.outputs[-1].shape[-1])
        self._prepare = prepare
        self._data_format = data_format
        self._augmentation = recipe
        self._jit = jit
        self._hold(images, labels)
        self._set_up(model)
        self._decayed = {id(v) for v in self.decayed}
        trained = {id(v) for v in self.trainable}
        self._statistics = [
            v for v in self.variables if id(v) not in trained and v.dtype.is_floating
        ]
        with self.replicas.scope():
            self._slots = [optimizers.slots(recipe, v) for v in self.trainable]
            averaged = self.variables if recipe.ema else []
            self._averages = [tf.Variable(v, trainable=False) for v in averaged]
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
            self._scale = LossScale() if scaled else None
        self.checkpoint = tf.train.Checkpoint(
            variables=self.variables,
            slots=self._slots,
            averages=self._averages,
            step=self.step,
            **({"scale": self._scale.variables} if self._scale else {}),
        )
        self._phase = 0
        self._runs = [self._function(self._in_phase(number)) for number in range(self.PHASES)]

    @property
    def _run(self) -> Any:
        """The function of the step that comes next."""
        return self._runs[self._phase_of(int(self.step.numpy()))]

    def _phase_of(self, step: int) -> int:
        """Which of :attr:`PHASES` a step is in; of those in one call the first decides."""
        return 0

    def _in_phase(self, number: int) -> Callable[[Any, Any], tuple[Any, Any]]:
        def steps(batches: Any, rates: Any) -> tuple[Any, Any]:
            self._phase = number  # while this is traced
            return self._steps(batches, rates)

        return steps

    def _hold(self, images: Any, labels: Any) -> None:
        """Keep what batches are made of."""
        tf = keras_format.tensorflow()
        with tf.device("/CPU:0"):
            self._images = tf.constant(images)
            self._labels = tf.constant(labels)

    def _set_up(self, model: Any) -> None:
        """Say what is trained, what is kept, and what the loss is of."""
        self.variables: list[Any] = model.variables
        self.trainable: list[Any] = model.trainable_variables
        self.decayed: list[Any] = decayed_variables(model)
        self._logits = self._learning(model)

    def _learning(self, model: Any) -> Any:
        """The part of the model whose outputs the loss is of."""
        return keras_format.tf_keras().Model(model.input, model.get_layer("logits").output)

    def _function(self, steps: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
        """One trace for any number of fused steps."""
        tf = keras_format.tensorflow()
        return tf.function(
            steps,
            jit_compile=self._jit or None,
            input_signature=[
                tf.TensorSpec([None, self.recipe.batch], tf.int64),
                tf.TensorSpec([None], tf.float32),
            ],
        )

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Image numbers ``[steps, batch]`` of an epoch, the same in every process."""
        per_epoch, batch = self.steps_per_epoch, self.recipe.batch
        random = np.random.default_rng([self.recipe.seed, epoch])
        return random.permutation(self.images)[: per_epoch * batch].reshape(per_epoch, batch)

    def run_epoch_part(
        self, indices: npt.NDArray[np.int64], rates: npt.NDArray[np.float32]
    ) -> tuple[float, float]:
        """Run some steps in one graph call.

        Args:
            indices: int64 ``[steps, batch]`` image numbers, the same in every process.
            rates: float32 ``[steps]`` learning rates.

        Returns:
            Mean loss and the share of right predictions on the augmented images, of all replicas.
        """
        tf = keras_format.tensorflow()
        loss, right = self.replicas.call(self._run, tf.constant(indices), tf.constant(rates))
        return float(loss), float(right)

    def averaged_weights(self) -> list[npt.NDArray[Any]]:
        """The moving averages, in the order of :attr:`variables`."""
        averages = self._averages or self.variables
        values: list[npt.NDArray[Any]] = self.replicas.call(lambda: [v.numpy() for v in averages])
        return values

    def _steps(self, batches: Any, rates: Any) -> tuple[Any, Any]:
        tf = keras_format.tensorflow()
        loss = tf.constant(0.0)
        right = tf.constant(0.0)
        count = tf.shape(rates)[0]
        for i in tf.range(count):
            batch = self._taken(batches, i)
            step_loss, step_right = self.replicas.run(self._one_step, batch, rates[i])
            loss += step_loss
            right += step_right
        steps = tf.cast(count, tf.float32)
        return loss / steps, right / steps

    def _taken(self, batches: Any, i: Any) -> Any:
        """What step ``i`` of some fused ones is given: image numbers ``[batch]``."""
        return batches[i]

    def _one_step(self, indices: Any, rate: Any) -> tuple[Any, Any]:
        """The part of a step that one replica computes, then its end with all others."""
        tf = keras_format.tensorflow()
        size = self.recipe.batch // self.replicas.count
        first = self.replicas.number() * size
        x, y = self._batch(indices, first, size)
        part = size // self.towers
        losses, rights, gradients = [], [], []
        for tower in range(self.towers):
            own = slice(tower * part, (tower + 1) * part)
            tower_x, tower_y = tf.nest.map_structure(operator.itemgetter(own), (x, y))
            with tf.GradientTape() as tape:
                loss, logits = self._loss(tower_x, tower_y)
                scaled = loss if self._scale is None else self._scale.up(loss)
            gradients.append(tape.gradient(scaled, self.trainable))
            losses.append(loss)
            rights.append(self._right(logits, tower_y))
        summed = [
            None if each[0] is None else tf.add_n(list(each)) / self.towers
            for each in zip(*gradients, strict=True)
        ]
        there = [gradient is not None for gradient in summed]  # the rest is frozen at this stage
        means = [tf.add_n(losses) / self.towers, tf.add_n(rights) / self.towers]

        def finish(totals: Sequence[Any], rate: Any) -> Any:
            rest = iter(totals[2:])
            self._apply([next(rest) if each else None for each in there], rate)
            return totals[0], totals[1]

        means += [gradient for gradient in summed if gradient is not None]
        loss, right = self.replicas.merge(finish, means, self._statistics, rate)
        return loss, right

    def _loss(self, x: Any, y: Any) -> tuple[Any, Any]:
        """(mean loss, logits) of a part of a batch."""
        tf = keras_format.tensorflow()
        logits = tf.cast(self._logits(x, training=True), tf.float32)
        return tf.reduce_mean(self.cross_entropy(logits, y)), logits

    def _right(self, logits: Any, y: Any) -> Any:
        """The share of right predictions in a part of a batch; see :attr:`MEASURED`."""
        tf = keras_format.tensorflow()
        return tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, -1), y), tf.float32))

    def cross_entropy(self, logits: Any, y: Any) -> Any:
        """Of each image, with smoothed labels."""
        tf = keras_format.tensorflow()
        targets = tf.one_hot(
            y,
            self.classes,
            on_value=1 - self.recipe.label_smoothing * (1 - 1 / self.classes),
            off_value=self.recipe.label_smoothing / self.classes,
        )
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    def _apply(self, gradients: list[Any], rate: Any) -> None:
        """One step of the optimizer, then the moving average (Polyak and Juditsky 1992)."""
        tf = keras_format.tensorflow()
        recipe = self.recipe
        finite = None
        if self._scale is not None:
            gradients, finite = self._scale.down(gradients)

        def change(variable: Any, gradient: Any, rate: Any, *state: Any) -> None:
            if decayed:
                gradient = gradient + recipe.weight_decay * variable
            for target, new in optimizers.changes(recipe, variable, list(state), gradient, rate):
                target.assign(new if finite is None else tf.where(finite, new, target))

        for variable, state, gradient in zip(self.trainable, self._slots, gradients, strict=True):
            if gradient is None:
                continue
            decayed = id(variable) in self._decayed
            self.replicas.update(variable, change, gradient, rate, *state)
        self.step.assign_add(1)
        step = tf.cast(self.step, tf.float32)
        decay = tf.minimum(recipe.ema, (1.0 + step) / (10.0 + step))

        def follow(average: Any, variable: Any) -> None:
            average.assign_sub((1 - decay) * (average - variable))

        for average, variable in zip(self._averages, self.variables, strict=bool(self._averages)):
            self.replicas.update(average, follow, variable)

    def _batch(self, indices: Any, first: Any, size: int) -> tuple[Any, Any]:
        """Model inputs and labels of ``size`` images of a batch, from ``first`` on."""
        tf = keras_format.tensorflow()
        pixels, y = self._gathered(indices, first, size)
        x = tf.cast(pixels, tf.float32)
        if pixels.dtype == tf.uint8:
            if self._prepare.channels == "bgr":
                x = tf.reverse(x, [-1])
            x = x * tf.constant(self._prepare.scale) + tf.constant(self._prepare.offset)
        x, y = self._augmented(x, y, first)
        return tf.transpose(x, [0, 3, 1, 2]) if self._data_format == "NCHW" else x, y

    def _augmented(self, x: Any, y: Any, first: Any) -> tuple[Any, Any]:
        """Images that are changed, and labels, which change with them."""
        of = None if self.replicas.count == 1 else self.recipe.batch
        return augment(x, self._augmentation, self.step, first=first, of=of), y

    def _gathered(self, indices: Any, first: Any, size: int) -> tuple[Any, Any]:
        """Images as they are kept, and labels."""
        tf = keras_format.tensorflow()
        if self.replicas.count > 1:
            indices = tf.slice(indices, [first], [size])
        y = tf.nest.map_structure(lambda each: tf.gather(each, indices), self._labels)
        return tf.gather(self._images, indices), y


class LossScale:
    """Dynamic scale of the loss, so that small gradients do not vanish in float16.

    Halved when a gradient is not finite, and that step is left out; doubled after ``EVERY`` finite
    steps (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).
    """

    START, EVERY, MOST = 2.0**15, 2000, 2.0**24

    def __init__(self) -> None:
        tf = keras_format.tensorflow()
        self._scale = tf.Variable(self.START, trainable=False)
        self._good = tf.Variable(0, trainable=False)
        self.variables = [self._scale, self._good]

    def up(self, loss: Any) -> Any:
        """The loss to take gradients of."""
        return loss * self._scale

    def down(self, gradients: list[Any]) -> tuple[list[Any], Any]:
        """(gradients of the loss itself, whether all are finite); sets the next scale."""
        tf = keras_format.tensorflow()
        there = [gradient for gradient in gradients if gradient is not None]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in there])
        scale = tf.identity(self._scale)
        good = tf.where(finite, self._good + 1, 0)
        grown = tf.where(good >= self.EVERY, tf.minimum(2 * scale, self.MOST), scale)
        self._scale.assign(tf.where(finite, grown, tf.maximum(scale / 2, 1.0)))
        self._good.assign(tf.where(good >= self.EVERY, 0, good))
        return [None if each is None else each / scale for each in gradients], finite


def decayed_variables(model: Any) -> list[Any]:
    """Kernels of convolutions and dense layers; not depthwise, biases, batch normalisation."""
    layers = keras_format.tf_keras().layers
    return [
        layer.kernel
        for layer in model.layers
        if isinstance(layer, layers.Conv2D | layers.Dense)
        and not isinstance(layer, layers.DepthwiseConv2D)
    ]


def _check_batch(batch: int, towers: int, replicas: int, images: int) -> None:
    if batch % (towers * replicas):
        whose = f"the {towers} towers" + (f" of {replicas} replicas" if replicas > 1 else "")
        raise InvalidOptionError(f"expected --batch to be a multiple of {whose}, got {batch}")
    if images < batch:
        raise InvalidDataError(
            f"expected at least one batch of {batch} training images, got {images}"
        )
