"""mIoU of pixels at the size of the label; its bootstrap; agreement of two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import InvalidDataError
from edgekit.data.boxes import Views
from edgekit.data.masks import VOID
from edgekit.tasks import bootstrap, segmentation
from edgekit.tasks.segmentation import Layout

CLASSES = 4


@dataclass(frozen=True)
class Kept:
    """Masks in memory."""

    masks: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, picture: int) -> np.ndarray:
        return self.masks[picture]

    def take(self, pictures: np.ndarray) -> Kept:
        return Kept([self.masks[i] for i in pictures])


def masks_of(count: int, height: int, width: int, seed: int = 0, void: float = 0.1) -> Kept:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, CLASSES, (count, height, width)).astype(np.uint8)
    masks[rng.random(masks.shape) < void] = VOID
    return Kept(list(masks))


def logits_of(classes: np.ndarray) -> np.ndarray:
    """float32 ``[N, h * w * C]`` whose highest logit is the class."""
    return np.eye(CLASSES, dtype=np.float32)[classes].reshape(len(classes), -1)


def test_known_answers() -> None:
    """Of eight pixels one is void; classes 2 and 3 are nowhere right, 3 nowhere predicted."""
    mask = np.array([[0, 0, 0, 1], [1, 1, 1, VOID]], np.uint8)
    predicted = np.array([[[0, 0, 1, 1], [1, 1, 2, 3]]])
    layout = segmentation.layout((2, 4, CLASSES), CLASSES)
    confused = segmentation.confusion(logits_of(predicted), layout, Kept([mask]), None)
    expected = np.zeros((CLASSES, CLASSES), int)
    expected[0, :2], expected[1, 1:3] = (2, 1), (3, 1)
    np.testing.assert_array_equal(confused.matrix, expected)
    np.testing.assert_allclose(confused.ious(), [2 / 3, 3 / 5, 0, np.nan])
    assert confused.miou() == pytest.approx((2 / 3 + 3 / 5 + 0) / 3)
    metrics = segmentation.metrics(confused, ("background", "cat", "dog", "cow"))
    assert metrics["pixel_accuracy"].value == pytest.approx(500 / 7)
    assert metrics["iou:cat"].value == pytest.approx(60) and "iou:cow" not in metrics
    assert metrics["miou"].unit == "%" and metrics["miou"].count == 1


@pytest.mark.parametrize("first", (True, False))
@pytest.mark.parametrize("size", ((7, 9), (20, 31), (33, 50), (66, 25)))
def test_logits_are_brought_to_the_size_of_the_label(first: bool, size: tuple[int, int]) -> None:
    """As TensorFlow resizes: bilinear, half-pixel centres, not antialiased."""
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (3, *size, CLASSES)).astype(np.float32)
    masks = masks_of(3, 50, 33, seed=2)
    large = tf.image.resize(logits, (50, 33)).numpy().argmax(axis=-1)
    expected = np.zeros((CLASSES, CLASSES), int)
    for mask, classes in zip(masks.masks, large, strict=True):
        np.add.at(expected, (mask[mask != VOID], classes[mask != VOID]), 1)
    outputs = logits.transpose(0, 3, 1, 2) if first else logits
    layout = segmentation.layout(outputs.shape[1:], CLASSES)
    assert layout == Layout(*size, CLASSES, first)
    confused = segmentation.confusion(outputs.reshape(3, -1), layout, masks, None)
    assert np.abs(confused.matrix - expected).sum() <= 4  # two pixels whose logits are equal


def test_only_what_the_input_showed_counts() -> None:
    """The middle of a picture; and a picture that is letterboxed in the input."""
    mask = np.zeros((8, 12), np.uint8)
    mask[2:6, 3:9] = 1
    mask[2:6, 6:9] = 2
    layout = segmentation.layout((4, 6, CLASSES), CLASSES)
    middle = Views(np.array([[3, 2, 6, 4]], np.float32), np.array([[8, 12]], np.int32))
    predicted = np.array([[[1, 1, 1, 2, 2, 2]] * 4])
    confused = segmentation.confusion(logits_of(predicted), layout, Kept([mask]), middle)
    assert confused.matrix.sum() == 24 and confused.miou() == 1
    wide = Views(np.array([[0, -2, 12, 12]], np.float32), np.array([[8, 12]], np.int32))
    whole = segmentation.layout((12, 12, CLASSES), CLASSES)
    boxed = np.full((1, 12, 12), 3)
    boxed[0, 2:10] = mask
    confused = segmentation.confusion(logits_of(boxed), whole, Kept([mask]), wide)
    assert confused.matrix.sum() == 96 and confused.miou() == 1
    nothing = Views(np.array([[20, 20, 4, 4]], np.float32), np.array([[8, 12]], np.int32))
    with pytest.raises(InvalidDataError, match="all pixels of 1 masks are void"):
        segmentation.confusion(logits_of(predicted), layout, Kept([mask]), nothing)


def test_class_numbers_in_place_of_logits() -> None:
    masks = masks_of(3, 8, 10, seed=3)
    numbers = np.stack(masks.masks).astype(np.float32)
    numbers[numbers == VOID] = 0
    for size in ((8, 10), (8, 10, 1), (1, 8, 10)):
        layout = segmentation.layout(size, CLASSES)
        assert layout.chosen
        confused = segmentation.confusion(numbers.reshape(3, -1), layout, masks, None)
        assert confused.miou() == 1
    small = segmentation.layout((4, 5), CLASSES)
    halves = numbers[:, ::2, ::2]
    large = Kept(list(halves.repeat(2, 1).repeat(2, 2).astype(np.uint8)))
    assert segmentation.confusion(halves.reshape(3, -1), small, large, None).miou() == 1
    with pytest.raises(InvalidDataError, match="expected class numbers from 0 to 3, got 0 to 9"):
        segmentation.confusion(numbers.reshape(3, -1) * 3, layout, masks, None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_sums_of_pictures_are_the_matrix(seed: int, count: int) -> None:
    masks = masks_of(count, 9, 7, seed)
    logits = np.random.default_rng(seed).normal(0, 1, (count, 5 * 4 * CLASSES)).astype(np.float32)
    layout = segmentation.layout((5, 4, CLASSES), CLASSES)
    confused = segmentation.confusion(logits, layout, masks, None)
    right, labelled, predicted = confused.sums.sum(axis=0)
    np.testing.assert_array_equal(right, np.diag(confused.matrix))
    np.testing.assert_array_equal(labelled, confused.matrix.sum(axis=1))
    np.testing.assert_array_equal(predicted, confused.matrix.sum(axis=0))
    order = np.random.default_rng(seed).permutation(count)
    again = segmentation.confusion(logits[order], layout, masks.take(order), None)
    np.testing.assert_array_equal(again.matrix, confused.matrix)
    resampled = segmentation.resample(confused, resamples=20, seed=5)
    drawn = bootstrap.weights(count, 20, 5)
    pictures = np.repeat(np.arange(count), drawn[:, 7].astype(int))
    own = segmentation.confusion(logits[pictures], layout, masks.take(pictures), None)
    assert resampled.values["miou"][7] == pytest.approx(own.miou())


def test_change_and_agreement() -> None:
    rng = np.random.default_rng(6)
    masks = masks_of(40, 12, 12, seed=7, void=0)
    right = np.stack(masks.masks)
    layout = segmentation.layout((12, 12, CLASSES), CLASSES)

    def wrong(share: float) -> np.ndarray:
        other = np.where(rng.random(right.shape) < share, (right + 1) % CLASSES, right)
        return logits_of(other)

    outputs = wrong(0.1), wrong(0.2)
    before, after = (segmentation.confusion(each, layout, masks, None) for each in outputs)
    both = segmentation.resample(before), segmentation.resample(after)
    change = segmentation.change(before, after, both)["miou_change"]
    assert change.low is not None and change.high is not None and change.unit == "points"
    assert change.low < change.value < change.high < 0
    assert change == segmentation.change(before, after)["miou_change"]
    needed = bootstrap.images_needed(*both, "miou", drop=0.005, power=0.8)
    assert needed.value > 0 and needed.unit == "images"
    metrics = segmentation.metrics(after, (), both[1])
    assert metrics["miou"].low is not None and metrics["miou"].low < metrics["miou"].value
    agreed, pixels, shares = segmentation.agreement(*outputs, layout)
    same = (outputs[0].reshape(-1, CLASSES) == outputs[1].reshape(-1, CLASSES)).all(axis=1)
    assert agreed["pixel_agreement"].value == pytest.approx(100 * same.mean())
    assert pixels.sum() == right.size and np.trace(pixels) == same.sum()
    assert shares.shape == (40,) and shares.mean() == pytest.approx(same.mean())


def test_bad_input() -> None:
    masks = masks_of(2, 6, 6)
    layout = segmentation.layout((6, 6, CLASSES), CLASSES)
    logits = np.zeros((2, 6 * 6 * CLASSES), np.float32)
    for size in ((6, 6, 7), (7, 6, 6), (6,), (2, 6, 6, CLASSES)):
        with pytest.raises(InvalidDataError, match=r"expected an output \[N, h, w, 4\]"):
            segmentation.layout(size, CLASSES)
    with pytest.raises(InvalidDataError, match="a score for each of 4 classes of the data"):
        segmentation.layout((6, 6, 7), CLASSES)
    broken = logits.copy()
    broken[1, 5] = np.nan
    with pytest.raises(InvalidDataError, match="the output of picture 1 holds NaN"):
        segmentation.confusion(broken, layout, masks, None)
    with pytest.raises(InvalidDataError, match="the output of picture 1 holds NaN"):
        segmentation.agreement(logits, broken, layout)
    other = masks_of(2, 6, 6)
    other.masks[1][0, 0] = 9
    with pytest.raises(InvalidDataError, match="mask 1: expected classes 0 to 3 or 255 .* got 9"):
        segmentation.confusion(logits, layout, other, None)
    with pytest.raises(InvalidDataError, match="expected height x width of its picture, 6 x 8"):
        segmentation.confusion(logits, layout, masks, Views.whole(2, 6, 8))
    with pytest.raises(InvalidDataError, match="expected 2 outputs, one a mask, got 1"):
        segmentation.confusion(logits[:1], layout, masks, None)
    void = Kept([np.full((6, 6), VOID, np.uint8)] * 2)
    with pytest.raises(InvalidDataError, match="all pixels of 2 masks are void"):
        segmentation.confusion(logits, layout, void, None)


def test_classes_of_an_output_that_the_data_does_not_name() -> None:
    for size, expected in (
        ((65, 65, 21), 21),
        ((21, 65, 65), 21),
        ((64, 64), 255),
        ((64, 64, 1), 255),
    ):
        assert segmentation.classes_of(size, (513, 513)) == expected
    assert segmentation.classes_of((32, 64, 19), (512, 1024)) == 19
