"""Scenes of Fashion-MNIST: the same bytes everywhere, and boxes and masks that fit the pictures."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edgekit import data
from edgekit.base.errors import InvalidOptionError
from edgekit.data import fashion_mnist, scenes
from edgekit.data.images import ImageSet

#: Of 50 scenes, pixels and boxes, then masks.
SHA256 = {
    "test": "39f524e1cc944fa26fba69d16799994d62d2d86c613383aa8e9c7f83aebd5487",
    "calibration": "0e6cfb6a4490be6325c0c68072ee6cf8cbda9e50062cb1ba96615ed75b51ada3",
}


@pytest.fixture(scope="module")
def pair() -> tuple[ImageSet, ImageSet]:
    """The same scenes with boxes and with masks."""
    return scenes.scenes("calibration", 50), scenes.scenes("calibration", 50, masks=True)


@pytest.mark.parametrize("split", ["test", "calibration"])
def test_the_same_bytes_everywhere(split: data.images.Split) -> None:
    digest = hashlib.sha256()
    with_boxes = scenes.scenes(split, 50)
    with_masks = scenes.scenes(split, 50, masks=True)
    assert with_boxes.boxes is not None and with_masks.masks is not None
    digest.update(with_boxes.images.tobytes())
    digest.update(with_boxes.boxes.corners.tobytes() + with_boxes.boxes.classes.tobytes())
    digest.update(np.stack([with_masks.masks[i] for i in range(50)]).tobytes())
    assert digest.hexdigest() == SHA256[split]


def test_boxes_are_the_extent_of_what_is_visible(pair: tuple[ImageSet, ImageSet]) -> None:
    with_boxes, with_masks = pair
    boxes, masks = with_boxes.boxes, with_masks.masks
    assert boxes is not None and masks is not None and boxes.areas is not None
    assert (with_boxes.images == with_masks.images).all()
    assert with_boxes.class_names == with_masks.class_names[1:] == fashion_mnist.CLASS_NAMES
    for i, own in enumerate(boxes):
        mask = masks[i]
        left, top, right, bottom = own.corners.T.astype(int)
        covered = np.zeros(mask.shape, bool)
        for number, label in enumerate(own.classes):
            part = mask[top[number] : bottom[number], left[number] : right[number]] == label + 1
            assert part[[0, -1]].any(axis=1).all() and part[:, [0, -1]].any(axis=0).all()
            covered[top[number] : bottom[number], left[number] : right[number]] = True
        assert not mask[~covered].any()
        assert own.areas is not None and own.areas.sum() == np.count_nonzero(mask)


def test_scenes_are_crowded_empty_large_and_small() -> None:
    boxes = scenes.scenes("calibration", 300).boxes
    assert boxes is not None
    counts = np.bincount(np.diff(boxes.offsets))
    assert len(counts) == 5 and counts.min() > 0  # none to four
    assert 5 <= counts[0] <= 25
    sides = boxes.corners[:, 2:] - boxes.corners[:, :2]
    assert sides.min() < 15 and sides.max() >= 54
    assert np.bincount(boxes.classes, minlength=10).min() > 40


def test_fewer_scenes_are_the_first_of_more() -> None:
    few, more = scenes.scenes("test", 5), scenes.scenes("test", 9)
    assert few.boxes is not None and more.boxes is not None
    assert (few.images == more.images[:5]).all()
    assert (few.boxes.corners == more.boxes.corners[: len(few.boxes.corners)]).all()


def test_a_silhouette_has_no_holes_and_no_dark_pixels_around() -> None:
    item = np.zeros((6, 6), np.uint8)
    item[1:5, 1:5] = 200
    item[2:4, 2:4] = 0
    item[0, 0] = 3
    expected = np.zeros((6, 6), int)
    expected[1:5, 1:5] = 1
    assert (scenes.silhouette(item) == expected).all()


def test_the_words() -> None:
    boxes = data.load("scenes#count=4", "test")
    assert boxes.boxes is not None and boxes.masks is None and len(boxes) == 4
    masks = data.load("scenes:masks#count=4", "test")
    assert masks.masks is not None and masks.boxes is None
    assert boxes.sha256 != masks.sha256
    assert data.has_test_part("scenes") and data.has_test_part("scenes:masks#count=4")
    drawn = data.load("scenes#count=20,samples=6,seed=1", "calibration")
    assert len(drawn) == 6 and drawn.boxes is not None and len(drawn.boxes) == 6


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("scenes:boxes", "expected scenes .boxes. or scenes:masks"),
        ("scenes#count=0", "count as an integer >= 1"),
        ("scenes#many=1", "unknown option 'many'"),
        ("scenes#size=64", "size is for pictures"),
        ("scene", "did you mean 'scenes'"),
    ],
)
def test_bad_words_are_refused(word: str, said: str) -> None:
    with pytest.raises(InvalidOptionError, match=said):
        data.open_word(word, "calibration")
