"""What a gradient does to a variable: SGD with momentum, RMSProp with momentum.

Both keep float32 state beside each variable, its *slots*, and say the new values; who assigns
them decides when.
"""

from __future__ import annotations

from typing import Any

from edgekit.sources import keras as keras_format
from edgekit.training.recipes import Recipe


def slots(recipe: Recipe, variable: Any) -> list[Any]:
    """State of one variable before the first step.

    RMSProp's mean square starts at 1, as TensorFlow's does: with 0 the first steps would be
    1 / sqrt(1 - decay) times as long.
    """
    tf = keras_format.tensorflow()
    moments = [tf.Variable(tf.zeros_like(variable), trainable=False)]
    if recipe.optimizer == "rmsprop":
        moments.append(tf.Variable(tf.ones_like(variable), trainable=False))
    return moments


def changes(
    recipe: Recipe, variable: Any, state: list[Any], gradient: Any, rate: Any
) -> list[tuple[Any, Any]]:
    """(variable or slot, new value) of one step.

    ``sgd``: ``m = momentum m + g``, ``w -= rate m``.

    ``rmsprop``, as ``tf.compat.v1.train.RMSPropOptimizer`` (uncentred) computes it, which the paper
    names and TF-slim's ``train_image_classifier`` runs with an epsilon of 1:
    ``s = decay s + (1 - decay) g²``, ``m = momentum m + rate g / sqrt(s + epsilon)``, ``w -= m``.
    The rate is inside of the momentum there and outside of it in ``sgd``.
    """
    tf = keras_format.tensorflow()
    if recipe.optimizer == "rmsprop":
        momentum, square = state
        new_square = square + (1 - recipe.rms_decay) * (tf.square(gradient) - square)
        step = rate * gradient * tf.math.rsqrt(new_square + recipe.rms_epsilon)
        new_momentum = recipe.momentum * momentum + step
        new = variable - new_momentum
        return [(square, new_square), (momentum, new_momentum), (variable, new)]
    (momentum,) = state
    new_momentum = recipe.momentum * momentum + gradient
    return [(momentum, new_momentum), (variable, variable - rate * new_momentum)]
