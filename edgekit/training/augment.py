"""Augmentation of a batch inside the graph: crop, shift, flip, erase."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgekit.sources import keras as keras_format
from edgekit.training.recipes import Recipe


def augment(x: Any, recipe: Recipe, step: Any, *, first: Any = 0, of: int | None = None) -> Any:
    """Crop, shift, flip and erase a batch; the same for the same seed and step.

    Args:
        x: float32 ``[N, H, W, C]``.
        recipe: Gives ``crop``, ``shift``, ``flip``, ``erase`` and ``seed``.
        step: Scalar int64 tensor.
        first: Place of ``x`` in the whole batch, whose parts are augmented as the whole would be;
            only the value that erases, the mean, is of the part.
        of: Images of the whole batch; default those of ``x``.
    """
    tf = keras_format.tensorflow()
    if recipe.crop == 1 and not (recipe.shift or recipe.flip or recipe.erase):
        return x
    n, height, width = tf.shape(x)[0], x.shape[1], x.shape[2]

    def uniform(stream: int, low: Any, high: Any, dtype: Any = tf.int32) -> Any:
        seed = tf.stack([tf.constant(recipe.seed * 16 + stream, tf.int64), step])
        drawn = tf.random.stateless_uniform([of or n], seed, low, high, dtype)
        return drawn if of is None else tf.slice(drawn, [first], [n])

    if recipe.crop < 1:
        x = _crop(x, recipe, lambda stream, low, high: uniform(stream, low, high, tf.float32))

    rows = tf.range(height)[None, :]
    columns = tf.range(width)[None, :]
    s = recipe.shift
    if s:
        x = tf.pad(x, [[0, 0], [s, s], [s, s], [0, 0]])
        x = tf.gather(x, rows + uniform(0, 0, 2 * s + 1)[:, None], batch_dims=1)
        columns = columns + uniform(1, 0, 2 * s + 1)[:, None]
    else:
        columns = tf.tile(columns, [n, 1])
    if recipe.flip:
        mirrored = uniform(2, 0, 2)[:, None] == 1
        columns = tf.where(mirrored, columns[:, ::-1], columns)
    x = tf.transpose(tf.gather(tf.transpose(x, [0, 2, 1, 3]), columns, batch_dims=1), [0, 2, 1, 3])
    if recipe.erase:
        high = uniform(3, height // 8, height // 2)[:, None]
        wide = uniform(4, width // 8, width // 2)[:, None]
        top = uniform(5, 0, height)[:, None]
        left = uniform(6, 0, width)[:, None]
        chosen = uniform(7, 0, 1_000_000)[:, None] < int(recipe.erase * 1_000_000)
        in_rows = (rows >= top - high // 2) & (rows < top + high // 2) & chosen
        in_columns = (tf.range(width)[None, :] >= left - wide // 2) & (
            tf.range(width)[None, :] < left + wide // 2
        )
        erased = in_rows[:, :, None] & in_columns[:, None, :]
        x = tf.where(erased[..., None], tf.reduce_mean(x), x)
    return x


def _crop(x: Any, recipe: Recipe, uniform: Callable[[int, float, float], Any]) -> Any:
    """A rectangle of ``crop`` to 1 of the area and a width of 3/4 to 4/3 of the height, resized."""
    tf = keras_format.tensorflow()
    n, height, width = tf.shape(x)[0], x.shape[1], x.shape[2]
    area = uniform(8, recipe.crop, 1.0)
    ratio = tf.exp(uniform(9, -math.log(4 / 3), math.log(4 / 3)))
    high = tf.minimum(tf.sqrt(area / ratio), 1.0)
    wide = tf.minimum(tf.sqrt(area * ratio), 1.0)
    top = uniform(10, 0.0, 1.0) * (1 - high)
    left = uniform(11, 0.0, 1.0) * (1 - wide)
    boxes = tf.stack([top, left, top + high, left + wide], axis=1)
    return tf.image.crop_and_resize(x, boxes, tf.range(n), [height, width])
