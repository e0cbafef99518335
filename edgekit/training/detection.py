"""Training of a detector: which anchor stands for which object, and the losses.

An anchor stands for the object that it overlaps most, if their IoU is at least 0.5; each object
gets the anchor that overlaps it most, whatever the IoU (Liu et al. 2016, "SSD", section 2.2). The
loss of scores is the sigmoid cross entropy of these anchors and of the negatives with the largest
loss, three for each of them (section 2.2, "hard negative mining"; the authors of MobileNetV2 take
sigmoid for softmax); that of boxes is smooth L1. Both are summed and divided by the number of
anchors that stand for an object. An anchor with an IoU from 0.4 to 0.5 is no negative.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError
from edgekit.data import ImageSet
from edgekit.data.boxes import Boxes, Views
from edgekit.records.decoding import Anchors
from edgekit.sources import keras as keras_format
from edgekit.training.geometry import moved
from edgekit.training.recipes import Recipe
from edgekit.training.trainer import Trainer

#: IoU from which on an anchor stands for an object, and below which for the background.
MATCHED, UNMATCHED = 0.5, 0.4
#: Negatives that count for each anchor that stands for an object; and in any image, at least.
NEGATIVES, LEAST = 3, 10
#: Classes of rows that hold no object, and of groups that do not count.
NONE, CROWD = -1, -2


def truth(images: ImageSet, classes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Right boxes in rows, as many for each image.

    Args:
        images: With boxes.
        classes: How many there are.

    Returns:
        float32 ``[N, M, 4]``: top, left, bottom, right as parts of the image, which may reach out
        of it; and int32 ``[N, M]``: classes, :data:`NONE` or :data:`CROWD`.

    Raises:
        InvalidDataError: If there is no box at all, or a class is not one of them.
    """
    boxes = images.boxes
    assert boxes is not None
    if not len(boxes.classes):
        raise InvalidDataError(f"{images.name}: expected boxes to train a detector, got none")
    low, high = int(boxes.classes.min()), int(boxes.classes.max())
    if low < 0 or high >= classes:
        raise InvalidDataError(
            f"{images.name}: expected boxes of class 0 to {classes - 1}, got class "
            f"{low if low < 0 else high}"
        )
    parts = relative(boxes, images)
    labels = boxes.classes.astype(np.int32)
    if boxes.crowd is not None:
        labels = np.where(boxes.crowd, CROWD, labels).astype(np.int32)
    counts = np.diff(boxes.offsets)
    most = int(counts.max())
    corners = np.zeros((len(images), most, 4), np.float32)
    rows = np.full((len(images), most), NONE, np.int32)
    picture = boxes.pictures()
    place = np.arange(len(picture)) - boxes.offsets[picture]
    corners[picture, place], rows[picture, place] = parts, labels
    return corners, rows


def relative(boxes: Boxes, images: ImageSet) -> npt.NDArray[np.float32]:
    """float32 ``[K, 4]``: top, left, bottom, right as parts of the image that shows the picture."""
    height, width = images.images.shape[1:3]
    views = images.views or Views.whole(len(images), height, width)
    left, top, wide, high = views.regions[boxes.pictures()].T
    x1, y1, x2, y2 = boxes.corners.T
    parts = [(y1 - top) / high, (x1 - left) / wide, (y2 - top) / high, (x2 - left) / wide]
    return np.stack(parts, axis=1).astype(np.float32)


def misfits(anchors: Anchors, images: ImageSet) -> list[str]:
    """A sentence for each class most of whose boxes no anchor has the size of.

    Such a class is learned badly, since no anchor overlaps its boxes by :data:`MATCHED` even where
    it lies best.

    Args:
        anchors: Those of the detector.
        images: With boxes.
    """
    assert images.boxes is not None
    boxes = relative(images.boxes, images)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    sizes = np.unique(anchors.boxes()[:, 2:], axis=0)
    shared = np.minimum(sides[:, None], sizes[None]).prod(axis=2)
    union = sides.prod(axis=1)[:, None] + sizes.prod(axis=1)[None] - shared
    reached = (shared / union).max(axis=1) >= MATCHED
    sentences = []
    for number in np.unique(images.boxes.classes):
        own = images.boxes.classes == number
        if reached[own].mean() >= 0.5:
            continue
        name = images.class_names[number] if images.class_names else str(number)
        side = np.median(np.sqrt(sides[own].prod(axis=1)))
        least, most = (float(f(np.sqrt(sizes.prod(axis=1)))) for f in (np.min, np.max))
        sentences.append(
            f"{name}: {100 * (1 - reached[own].mean()):.0f} % of its boxes have the size of no "
            f"anchor; their side is {side:.2g} of the image, anchors have {least:.2g} to "
            f"{most:.2g}; pass a recipe with other scales or ratios in [detector]"
        )
    return sentences


def targets(anchors: Anchors, boxes: Any, classes: Any, count: int) -> tuple[Any, Any, Any, Any]:
    """What a detector should say of some images.

    Args:
        anchors: Its anchors, A of them.
        boxes: float32 ``[N, M, 4]`` as :func:`truth` has them.
        classes: int32 ``[N, M]``.
        count: Number of classes C.

    Returns:
        Codes float32 ``[N, A, 4]``; scores float32 ``[N, A, C]``, 0 or 1; which anchors stand for
        an object, bool ``[N, A]``; and which count, bool ``[N, A]``.
    """
    tf = keras_format.tensorflow()
    at = tf.constant(anchors.boxes())
    objects = _area(boxes) > 0
    crowd = objects & (classes == CROWD)
    objects &= classes >= 0
    overlaps, covered = _overlaps(at, boxes)  # [N, A, M]
    matched = tf.where(objects[:, None], overlaps, 0.0)
    best = tf.reduce_max(matched, axis=2)
    owner = tf.argmax(matched, axis=2)
    own = tf.one_hot(tf.argmax(matched, axis=1), at.shape[0], axis=1)  # [N, A, M]
    own *= tf.cast(objects & (tf.reduce_max(matched, axis=1) > 0), tf.float32)[:, None]
    forced = tf.reduce_max(own, axis=2) > 0
    owner = tf.where(forced, tf.argmax(own, axis=2), owner)
    positive = forced | (best >= MATCHED)
    ignored = tf.reduce_max(tf.where(crowd[:, None], covered, 0.0), axis=2) >= MATCHED
    counted = positive | ((best < UNMATCHED) & ~ignored)
    codes = _coded(anchors, at, tf.gather(boxes, owner, batch_dims=1))
    codes = tf.where(positive[..., None], codes, 0.0)
    labels = tf.where(positive, tf.gather(classes, owner, batch_dims=1), -1)
    return codes, tf.one_hot(labels, count), positive, counted


def _area(boxes: Any) -> Any:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlaps(anchors: Any, boxes: Any) -> tuple[Any, Any]:
    """IoU of each anchor with each box, and which part of the anchor the box covers."""
    tf = keras_format.tensorflow()
    y, x, high, wide = tf.unstack(anchors, axis=1)
    corners = tf.stack([y - high / 2, x - wide / 2, y + high / 2, x + wide / 2], axis=1)
    low = tf.maximum(corners[:, None, :2], boxes[:, None, :, :2])
    end = tf.minimum(corners[:, None, 2:], boxes[:, None, :, 2:])
    shared = tf.reduce_prod(tf.maximum(end - low, 0.0), axis=-1)
    own, others = (high * wide)[:, None], tf.maximum(_area(boxes), 0.0)[:, None]
    return shared / tf.maximum(own + others - shared, 1e-12), shared / own


def _coded(anchors: Anchors, at: Any, boxes: Any) -> Any:
    """Boxes as codes; see :class:`edgekit.records.decoding.Anchors`."""
    tf = keras_format.tensorflow()
    y, x, high, wide = tf.unstack(at, axis=1)
    top, left, bottom, right = tf.unstack(boxes, axis=-1)
    # a box without area stands for no anchor, its logarithm does not matter
    tall, across = tf.maximum(bottom - top, 1e-6), tf.maximum(right - left, 1e-6)
    codes = [
        ((top + bottom) / 2 - y) / high,
        ((left + right) / 2 - x) / wide,
        tf.math.log(tall / high),
        tf.math.log(across / wide),
    ]
    return tf.stack(codes, axis=-1) * tf.constant(anchors.scales)


def hardest(losses: Any, positive: Any, counted: Any) -> Any:
    """Which anchors count in the loss of scores, bool ``[N, A]``.

    Args:
        losses: float32 ``[N, A]``, of the scores of each anchor.
        positive: bool ``[N, A]``: stand for an object.
        counted: bool ``[N, A]``: stand for an object, or may count as negatives.
    """
    tf = keras_format.tensorflow()
    negative = counted & ~positive
    order = tf.argsort(tf.where(negative, losses, -1.0), axis=1, direction="DESCENDING")
    ranks = tf.argsort(order, axis=1)
    objects = tf.reduce_sum(tf.cast(positive, tf.int32), axis=1, keepdims=True)
    return positive | (negative & (ranks < tf.maximum(NEGATIVES * objects, LEAST)))


def smooth_l1(errors: Any) -> Any:
    """Smooth L1 of each number (Girshick 2015, "Fast R-CNN", equation 3)."""
    tf = keras_format.tensorflow()
    size = tf.abs(errors)
    return tf.where(size < 1, 0.5 * size * size, size - 0.5)


class DetectionTrainer(Trainer):
    """A detector, stepped over arrays of images.

    Args:
        model: With the outputs boxes and scores, in this order.
        recipe: Hyper-parameters.
        images: With boxes.
        anchors: What the boxes are coded against.
        settings: Settings of :class:`edgekit.training.trainer.Trainer`.
    """

    MEASURED: ClassVar[tuple[str, str]] = ("anchors", "classes of objects")

    def __init__(
        self, model: Any, recipe: Recipe, *, images: ImageSet, anchors: Anchors, **settings: Any
    ) -> None:
        self._anchors, self._truth = anchors, images
        super().__init__(model, recipe, images=images.images, labels=None, **settings)

    def _hold(self, images: Any, labels: Any) -> None:
        tf = keras_format.tensorflow()
        corners, classes = truth(self._truth, self.classes)
        with tf.device("/CPU:0"):
            self._images = tf.constant(images)
            self._labels = (tf.constant(corners), tf.constant(classes))

    def _learning(self, model: Any) -> Any:
        return model

    def _augmented(self, x: Any, y: Any, first: Any) -> tuple[Any, Any]:
        of = None if self.replicas.count == 1 else self.recipe.batch
        boxes, classes = y
        x, boxes, _ = moved(x, self._augmentation, self.step, boxes=boxes, first=first, of=of)
        return x, targets(self._anchors, boxes, classes, self.classes)

    def _loss(self, x: Any, y: Any) -> tuple[Any, Any]:
        tf = keras_format.tensorflow()
        codes, scores, positive, counted = y
        boxes, logits = (tf.cast(each, tf.float32) for each in self._logits(x, training=True))
        objects = tf.maximum(tf.reduce_sum(tf.cast(positive, tf.float32)), 1.0)
        of_scores = tf.nn.sigmoid_cross_entropy_with_logits(scores, logits)
        of_scores = tf.reduce_sum(of_scores, axis=-1)
        chosen = hardest(tf.stop_gradient(of_scores), positive, counted)
        of_scores = tf.where(chosen, of_scores, 0.0)
        of_boxes = tf.where(positive[..., None], smooth_l1(boxes - codes), 0.0)
        return (tf.reduce_sum(of_scores) + tf.reduce_sum(of_boxes)) / objects, logits

    def _right(self, logits: Any, y: Any) -> Any:
        """The share of anchors that stand for an object and score its class highest."""
        tf = keras_format.tensorflow()
        _, scores, positive, _ = y
        hits = positive & tf.equal(tf.argmax(logits, -1), tf.argmax(scores, -1))
        total = tf.reduce_sum(tf.cast(positive, tf.float32))
        return tf.reduce_sum(tf.cast(hits, tf.float32)) / tf.maximum(total, 1.0)
