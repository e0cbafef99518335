"""Augmentation of pictures together with their boxes or masks: crop, shift and flip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgekit.data.masks import VOID
from edgekit.sources import keras as keras_format
from edgekit.training.augment import augment, draws, rectangle
from edgekit.training.recipes import Recipe


def moved(
    x: Any,
    recipe: Recipe,
    step: Any,
    *,
    boxes: Any = None,
    masks: Any = None,
    first: Any = 0,
    of: int | None = None,
) -> tuple[Any, Any, Any]:
    """Crop, shift, flip and erase a batch, and move what is right about it in the same way.

    Args:
        x: float32 ``[N, H, W, C]``.
        recipe: Gives ``crop``, ``shift``, ``flip``, ``erase`` and ``seed``.
        step: Scalar int64 tensor.
        boxes: float32 ``[N, M, 4]``: top, left, bottom, right as parts of the image; or None. A box
            whose centre is outside afterwards has no area any more (Liu et al. 2016, section 2.2).
        masks: uint8 ``[N, H, W]``, or None. Pixels from outside of the image become VOID.
        first: Place of ``x`` in the whole batch.
        of: Images of the whole batch; default those of ``x``.

    Returns:
        Images, boxes and masks.
    """
    tf = keras_format.tensorflow()
    count, height, width = tf.shape(x)[0], x.shape[1], x.shape[2]
    uniform = draws(recipe, step, count, first=first, of=of)
    if recipe.crop < 1 or recipe.shift:
        region = _region(recipe, uniform, count, height, width)
        x, masks = _shown(x, masks, region)
        boxes = boxes if boxes is None else _inside(boxes, region)
    if recipe.flip:
        mirrored = uniform(2, 0, 2) == 1
        x = tf.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
        if masks is not None:
            masks = tf.where(mirrored[:, None, None], masks[:, :, ::-1], masks)
        if boxes is not None:
            top, left, bottom, right = tf.unstack(boxes, axis=-1)
            turned = tf.stack([top, 1 - right, bottom, 1 - left], axis=-1)
            boxes = tf.where(mirrored[:, None, None], turned, boxes)
    if recipe.erase:
        erasing = replace(recipe, crop=1.0, shift=0, flip=False)
        x = augment(x, erasing, step, first=first, of=of)
    return x, boxes, masks


def _region(
    recipe: Recipe, uniform: Callable[..., Any], count: Any, height: int, width: int
) -> tuple[Any, Any, Any, Any]:
    """Top, left, height and width of what each image shows, as parts of it."""
    tf = keras_format.tensorflow()
    zero = tf.zeros([count])
    region = (zero, zero, zero + 1, zero + 1)
    if recipe.crop < 1:
        region = rectangle(recipe, uniform)
    top, left, high, wide = region
    if recipe.shift:
        s = recipe.shift
        top += tf.cast(uniform(0, -s, s + 1), tf.float32) / height * high
        left += tf.cast(uniform(1, -s, s + 1), tf.float32) / width * wide
    return top, left, high, wide


def _shown(x: Any, masks: Any, region: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
    """Images and masks of a region, in the size of the whole."""
    tf = keras_format.tensorflow()
    height, width = x.shape[1], x.shape[2]
    top, left, high, wide = region

    def edges(start: Any, length: Any, pixels: int) -> tuple[Any, Any]:
        """Places of the first and the last pixel's centre, as ``crop_and_resize`` counts."""
        places = []
        for centre in (0.5, pixels - 0.5):
            place = start * pixels + length * centre - 0.5
            inside = tf.clip_by_value(place, 0.0, pixels - 1.0)
            place = tf.where(tf.abs(place - inside) <= 0.5, inside, place)
            places.append(place / (pixels - 1))
        return places[0], places[1]

    (y1, y2), (x1, x2) = edges(top, high, height), edges(left, wide, width)
    boxes = tf.stack([y1, x1, y2, x2], axis=1)
    numbers, size = tf.range(tf.shape(x)[0]), (height, width)
    x = tf.image.crop_and_resize(x, boxes, numbers, size)
    if masks is not None:
        classes = tf.image.crop_and_resize(
            masks[..., None], boxes, numbers, size, method="nearest", extrapolation_value=VOID
        )
        masks = tf.cast(classes[..., 0], tf.uint8)
    return x, masks


def _inside(boxes: Any, region: tuple[Any, Any, Any, Any]) -> Any:
    """Boxes as parts of a region, cut at its edges."""
    tf = keras_format.tensorflow()
    top, left, high, wide = (each[:, None] for each in region)
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    y1, y2 = (y1 - top) / high, (y2 - top) / high
    x1, x2 = (x1 - left) / wide, (x2 - left) / wide
    kept = tf.ones_like(y1, tf.bool)
    for low, end in ((y1, y2), (x1, x2)):
        centre = (low + end) / 2
        kept &= (centre > 0) & (centre < 1)
    cut = tf.clip_by_value(tf.stack([y1, x1, y2, x2], axis=-1), 0.0, 1.0)
    return tf.where(kept[..., None], cut, 0.0)
