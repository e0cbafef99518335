"""Training of a segmenter: softmax cross entropy of each pixel that has a class.

Logits of a lower resolution are brought to that of the masks, not the masks to theirs (Chen et al.
2017, "Rethinking Atrous Convolution", section 4.1).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError
from edgekit.data import ImageSet
from edgekit.data.boxes import Views
from edgekit.data.masks import VOID
from edgekit.sources import keras as keras_format
from edgekit.training.geometry import moved
from edgekit.training.recipes import Recipe
from edgekit.training.trainer import Trainer


def truth(images: ImageSet, classes: int) -> npt.NDArray[np.uint8]:
    """The class of each pixel of each image, uint8 ``[N, H, W]``; VOID beside the picture.

    Raises:
        InvalidDataError: If a class is not one of them, or a mask has another size than its
            picture.
    """
    masks = images.masks
    assert masks is not None
    height, width = images.images.shape[1:3]
    views = images.views or Views.whole(len(images), height, width)
    result = np.empty((len(images), height, width), np.uint8)
    for i, (region, size) in enumerate(zip(views.regions, views.sizes, strict=True)):
        mask = masks[i]
        if mask.shape != tuple(size):
            raise InvalidDataError(
                f"{images.name}: mask {i} has the size {list(mask.shape)}, its picture "
                f"{list(map(int, size))}"
            )
        result[i] = _seen(mask, region, height, width)
    known = result[result != VOID]
    if not len(known):
        raise InvalidDataError(f"{images.name}: expected masks with classes, all pixels are void")
    if int(known.max()) >= classes:
        raise InvalidDataError(
            f"{images.name}: expected masks of class 0 to {classes - 1}, got class "
            f"{int(known.max())}"
        )
    return result


def _seen(
    mask: npt.NDArray[np.uint8], region: npt.NDArray[np.float32], height: int, width: int
) -> npt.NDArray[np.uint8]:
    """The pixels of a mask that are nearest to those of a view."""
    left, top, wide, high = map(float, region)
    rows = np.floor(top + (np.arange(height) + 0.5) * high / height).astype(np.int64)
    columns = np.floor(left + (np.arange(width) + 0.5) * wide / width).astype(np.int64)
    inside = np.logical_and.outer(
        (rows >= 0) & (rows < mask.shape[0]), (columns >= 0) & (columns < mask.shape[1])
    )
    rows, columns = rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1)
    return np.where(inside, mask[np.ix_(rows, columns)], VOID).astype(np.uint8)


class SegmentationTrainer(Trainer):
    """A segmenter, stepped over arrays of images.

    Args:
        model: With one output ``[N, h, w, C]``.
        recipe: Hyper-parameters.
        images: With masks.
        settings: Settings of :class:`edgekit.training.trainer.Trainer`.
    """

    MEASURED: ClassVar[tuple[str, str]] = ("pixels", "pixels")

    def __init__(self, model: Any, recipe: Recipe, *, images: ImageSet, **settings: Any) -> None:
        self._truth = images
        super().__init__(model, recipe, images=images.images, labels=None, **settings)

    def _hold(self, images: Any, labels: Any) -> None:
        tf = keras_format.tensorflow()
        with tf.device("/CPU:0"):
            self._images = tf.constant(images)
            self._labels = tf.constant(truth(self._truth, self.classes))

    def _learning(self, model: Any) -> Any:
        return model

    def _augmented(self, x: Any, y: Any, first: Any) -> tuple[Any, Any]:
        of = None if self.replicas.count == 1 else self.recipe.batch
        x, _, masks = moved(x, self._augmentation, self.step, masks=y, first=first, of=of)
        return x, masks

    def _loss(self, x: Any, y: Any) -> tuple[Any, Any]:
        tf = keras_format.tensorflow()
        logits = tf.cast(self._logits(x, training=True), tf.float32)
        if logits.shape[1:3] != y.shape[1:3]:
            logits = tf.image.resize(logits, y.shape[1:3])
        known, right = _known(y)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(right, logits)
        weights = tf.cast(known, tf.float32)
        return tf.reduce_sum(loss * weights) / tf.maximum(tf.reduce_sum(weights), 1.0), logits

    def _right(self, logits: Any, y: Any) -> Any:
        """The share of pixels with a class that are given it."""
        tf = keras_format.tensorflow()
        known, right = _known(y)
        hits = known & (tf.argmax(logits, -1, tf.int32) == right)
        total = tf.reduce_sum(tf.cast(known, tf.float32))
        return tf.reduce_sum(tf.cast(hits, tf.float32)) / tf.maximum(total, 1.0)


def _known(masks: Any) -> tuple[Any, Any]:
    """Which pixels have a class, and int32 classes, 0 where there is none."""
    tf = keras_format.tensorflow()
    known = masks != VOID
    return known, tf.where(known, tf.cast(masks, tf.int32), 0)
