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
    uniform = draws(recipe, step, n, first=first, of=of)
    if recipe.crop < 1:
        x = _crop(x, recipe, uniform)

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


def draws(
    recipe: Recipe, step: Any, count: Any, *, first: Any = 0, of: int | None = None
) -> Callable[..., Any]:
    """Random numbers of a step: a function of stream, least value and limit, ``[count]`` each.

    Integers below the limit if that is an integer, else floats. Args as :func:`augment` has them.
    """
    tf = keras_format.tensorflow()

    def uniform(stream: int, low: Any, high: Any) -> Any:
        seed = tf.stack([tf.constant(recipe.seed * 16 + stream, tf.int64), step])
        dtype = tf.float32 if isinstance(high, float) else tf.int32
        drawn = tf.random.stateless_uniform([of or count], seed, low, high, dtype)
        return drawn if of is None else tf.slice(drawn, [first], [count])

    return uniform


def _crop(x: Any, recipe: Recipe, uniform: Callable[..., Any]) -> Any:
    """A rectangle of ``crop`` to 1 of the area, resized."""
    tf = keras_format.tensorflow()
    top, left, high, wide = rectangle(recipe, uniform)
    boxes = tf.stack([top, left, top + high, left + wide], axis=1)
    return tf.image.crop_and_resize(x, boxes, tf.range(tf.shape(x)[0]), x.shape[1:3])


def rectangle(recipe: Recipe, uniform: Callable[..., Any]) -> tuple[Any, Any, Any, Any]:
    """Top, left, height, width as parts of an image: ``crop`` to 1 of its area and a width of 3/4
    to 4/3 of the height.
    """
    tf = keras_format.tensorflow()
    area = uniform(8, recipe.crop, 1.0)
    ratio = tf.exp(uniform(9, -math.log(4 / 3), math.log(4 / 3)))
    high = tf.minimum(tf.sqrt(area / ratio), 1.0)
    wide = tf.minimum(tf.sqrt(area * ratio), 1.0)
    top = uniform(10, 0.0, 1.0) * (1 - high)
    left = uniform(11, 0.0, 1.0) * (1 - wide)
    return top, left, high, wide
