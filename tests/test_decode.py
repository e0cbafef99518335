"""Boxes of the outputs of every family of detectors, in pixels of the picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import InvalidDataError
from edgekit.data.boxes import Boxes, Views
from edgekit.records.decoding import AnchorGrid, Anchors, Decoding
from edgekit.tasks.decode import by_name, decode, decode_all, nms

SIZES = ((0.2, 0.2), (0.5, 0.25), (0.25, 0.5))
GRIDS = Anchors((AnchorGrid(4, 6, SIZES), AnchorGrid(2, 3, SIZES)))
#: Height and width of the input.
INPUT = (64, 96)
PLAIN = Decoding(("boxes",), ("scores",), order="xyxy", unit="pixels", iou_threshold=None)


def logit(share: np.ndarray) -> np.ndarray:
    return np.log(share / (1 - share)).astype(np.float32)


def centred(corners: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom to cx, cy, w, h."""
    return np.concatenate(
        [(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], axis=-1
    )


def right_boxes(count: int, seed: int, within: float = 1.0) -> np.ndarray:
    """float64 ``[count, 4]``: left, top, right, bottom as parts of the input's size."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.05, 0.4, (count, 2))
    start = rng.uniform(0, 1, (count, 2)) * (within - size)
    return np.concatenate([start, start + size], axis=1)


def in_pixels(boxes: np.ndarray) -> np.ndarray:
    height, width = INPUT
    return boxes * [width, height, width, height]


def coded(boxes: np.ndarray, anchors: Anchors) -> np.ndarray:
    """ty, tx, th, tw of a box for each anchor, as SSD codes it."""
    cy, cx, h, w = anchors.boxes().astype(np.float64).T
    x, y, wide, high = centred(boxes).T
    codes = np.stack([(y - cy) / h, (x - cx) / w, np.log(high / h), np.log(wide / w)], axis=1)
    return (codes * anchors.scales).astype(np.float32)


def run(outputs: dict[str, np.ndarray], decoding: Decoding, views: Views | None = None) -> Boxes:
    count = len(next(iter(outputs.values())))
    float32 = {name: np.asarray(each, np.float32) for name, each in outputs.items()}
    return decode(float32, decoding, views or Views.whole(count, *INPUT), INPUT)


def check(found: Boxes, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
    """Hold boxes of one picture against the right ones, by falling score."""
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(found.corners, in_pixels(boxes)[order], atol=2e-3)
    np.testing.assert_array_equal(found.classes, classes[order])
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, scores[order], atol=1e-5)


def scored(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores ``[count, classes]``, one above 0.3 each; its class; its score)."""
    rng = np.random.default_rng(seed)
    own = rng.integers(0, classes, count)
    scores = np.full((count, classes), 0.005)
    best = np.linspace(0.3, 0.9, count)
    scores[np.arange(count), own] = best
    return scores, own, best


@pytest.mark.parametrize("separate", (True, False))
def test_ssd_codes_every_box_back(separate: bool) -> None:
    boxes = right_boxes(GRIDS.count, 0)
    scores, classes, best = scored(GRIDS.count, 5, 1)
    how = Decoding(
        ("b",), ("s",), anchors=GRIDS, activation="sigmoid", iou_threshold=None, max_boxes=1000
    )
    outputs = {"b": coded(boxes, GRIDS)[None], "s": logit(scores)[None]}
    if not separate:
        outputs = {"b": np.concatenate([outputs["b"], outputs["s"]], axis=2)}
        how = replace(how, scores=("b",))
    check(run(outputs, how), boxes, best, classes)
    # x first, and listed anchors
    listed = Anchors(listed=tuple(tuple(map(float, each)) for each in GRIDS.boxes()))
    turned = {**outputs, "b": outputs["b"].copy()}
    turned["b"][..., :4] = turned["b"][..., [1, 0, 3, 2]]
    check(run(turned, replace(how, order="cxcywh", anchors=listed)), boxes, best, classes)


def layouts(laid: np.ndarray, grid: AnchorGrid) -> list[np.ndarray]:
    """A feature map ``[rows * columns * sizes, K]`` in every order of axes that is known."""
    rows, columns, sizes = grid.rows, grid.columns, len(grid.sizes)
    apart = laid.reshape(rows, columns, sizes, -1)
    return [
        apart.reshape(rows, columns, -1),
        apart.transpose(2, 3, 0, 1).reshape(-1, rows, columns),
        apart,
        apart.transpose(2, 0, 1, 3),
        apart.transpose(2, 3, 0, 1),
    ]


@pytest.mark.parametrize("layout", range(5))
def test_feature_maps_of_every_layout(layout: int) -> None:
    boxes = right_boxes(GRIDS.count, 2)
    scores, classes, best = scored(GRIDS.count, 4, 3)
    split = [GRIDS.grids[0].count]
    outputs = {}
    for name, values in (("b", coded(boxes, GRIDS)), ("s", logit(scores))):
        for number, part in enumerate(np.split(values, split)):
            outputs[f"{name}{number}"] = layouts(part, GRIDS.grids[number])[layout][None]
    how = Decoding(
        ("b0", "b1"),
        ("s0", "s1"),
        anchors=GRIDS,
        activation="sigmoid",
        iou_threshold=None,
        max_boxes=1000,
    )
    check(run(outputs, how), boxes, best, classes)


def test_yolov5_of_feature_maps_and_of_boxes() -> None:
    cy, cx, h, w = GRIDS.boxes().astype(np.float64).T
    cells = GRIDS.cells().astype(np.float64)
    rng = np.random.default_rng(4)
    shares = rng.uniform(0.3, 0.7, (GRIDS.count, 4))
    x = cx + (2 * shares[:, 0] - 1) * cells[:, 1]
    y = cy + (2 * shares[:, 1] - 1) * cells[:, 0]
    wide, high = (2 * shares[:, 2]) ** 2 * w, (2 * shares[:, 3]) ** 2 * h
    boxes = np.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], axis=1)
    inside = np.clip(boxes, 0, 1)
    scores, classes, best = scored(GRIDS.count, 3, 5)
    objects = rng.uniform(0.5, 0.9, GRIDS.count)
    rows = np.concatenate([logit(shares), logit(objects)[:, None], logit(scores)], axis=1)
    parts = np.split(rows, [GRIDS.grids[0].count])
    how = Decoding(
        ("p3", "p4"),
        ("p3", "p4"),
        order="cxcywh",
        anchors=GRIDS,
        coding="yolov5",
        activation="sigmoid",
        objectness=True,
        score_threshold=0.1,
        iou_threshold=None,
        max_boxes=1000,
    )
    raw = {
        name: layouts(part, grid)[3][None]
        for name, part, grid in zip(("p3", "p4"), parts, GRIDS.grids, strict=True)
    }
    check(run(raw, how), inside, best * objects, classes)
    decoded = np.concatenate([in_pixels(centred(boxes)), objects[:, None], scores], axis=1)
    how = replace(how, boxes=("o",), scores=("o",), anchors=None, activation="none", unit="pixels")
    check(run({"o": decoded[None]}, how), inside, best * objects, classes)


@pytest.mark.parametrize("first", (True, False))
def test_yolov8_of_boxes_with_channels_first_and_last(first: bool) -> None:
    boxes = right_boxes(200, 6)
    scores, classes, best = scored(200, 7, 7)
    rows = np.concatenate([in_pixels(centred(boxes)), scores], axis=1)[None]
    how = replace(PLAIN, boxes=("o",), scores=("o",), order="cxcywh", max_boxes=1000)
    outputs = {"o": rows.transpose(0, 2, 1) if first else rows}
    check(run(outputs, how), boxes, best, classes)
    relative = np.concatenate([centred(boxes), scores], axis=1)[None]
    check(run({"o": relative}, replace(how, unit="relative")), boxes, best, classes)
    both = {"b": in_pixels(centred(boxes))[None], "s": scores[None]}
    both = {name: each.transpose(0, 2, 1) if first else each for name, each in both.items()}
    check(run(both, replace(how, boxes=("b",), scores=("s",))), boxes, best, classes)


@pytest.mark.parametrize("bins", (1, 16))
def test_distances_to_the_sides(bins: int) -> None:
    grids = (AnchorGrid(8, 12, ((1 / 8, 1 / 12),)), AnchorGrid(4, 6, ((1 / 4, 1 / 6),)))
    anchors = Anchors(grids)
    rng = np.random.default_rng(8)
    whole = rng.integers(1, 4, (anchors.count, 4))
    cy, cx, h, w = anchors.boxes().astype(np.float64).T
    left, top, right, bottom = whole.T
    boxes = np.stack([cx - left * w, cy - top * h, cx + right * w, cy + bottom * h], axis=1)
    scores, classes, best = scored(anchors.count, 3, 9)
    sides = whole.astype(np.float32)
    if bins > 1:  # nearly all of the softmax in one bin
        sides = np.full((anchors.count, 4, bins), -30, np.float32)
        np.put_along_axis(sides, whole[..., None], 30, axis=2)
        sides = sides.reshape(anchors.count, -1)
    rows = np.concatenate([sides, logit(scores)], axis=1)
    parts = np.split(rows, [grids[0].count])
    raw = {
        name: layouts(part, grid)[1][None]
        for name, part, grid in zip(("a", "b"), parts, grids, strict=True)
    }
    how = Decoding(
        ("a", "b"),
        ("a", "b"),
        order="xyxy",
        anchors=anchors,
        coding="distances",
        bins=bins,
        activation="sigmoid",
        iou_threshold=None,
        max_boxes=1000,
    )
    inside = np.clip(boxes, 0, 1)
    check(run(raw, how), inside, best, classes)


def test_detr_takes_one_class_a_box() -> None:
    boxes = right_boxes(20, 10)
    rng = np.random.default_rng(11)
    logits = rng.normal(0, 2, (20, 6)).astype(np.float32)
    powers = np.exp(logits.astype(np.float64))
    shares = (powers / powers.sum(axis=1, keepdims=True))[:, :-1]
    how = Decoding(
        ("b",),
        ("s",),
        order="cxcywh",
        activation="softmax",
        background="last",
        score_threshold=0.0,
        iou_threshold=None,
        best_class=True,
    )
    outputs = {"b": centred(boxes)[None], "s": logits[None]}
    check(run(outputs, how), boxes, shares.max(axis=1), shares.argmax(axis=1))
    every = run(outputs, replace(how, best_class=False, score_threshold=0.05))
    assert len(every.classes) == (shares >= 0.05).sum()
    first = {**outputs, "s": np.roll(logits, 1, axis=1)[None]}
    same = run(first, replace(how, background="first", best_class=False, score_threshold=0.05))
    np.testing.assert_array_equal(same.classes, every.classes)
    np.testing.assert_allclose(same.corners, every.corners)


def test_boxes_that_are_decoded_already() -> None:
    """The four outputs of TFLite_Detection_PostProcess, and one output of all."""
    boxes = right_boxes(10, 12)
    scores, classes = np.linspace(0.9, 0.3, 10), np.arange(10) % 3
    how = Decoding(("b",), ("s",), "c", "n", iou_threshold=None)
    outputs = {
        "b": boxes[None][..., [1, 0, 3, 2]],
        "c": classes[None],
        "s": scores[None],
        "n": np.array([7.0]),
    }
    check(run(outputs, how), boxes[:7], scores[:7], classes[:7])
    shifted = run({**outputs, "c": classes[None] + 1}, replace(how, background="first"))
    check(shifted, boxes[:7], scores[:7], classes[:7])
    one = np.concatenate([in_pixels(boxes), scores[:, None], classes[:, None]], axis=1)[None]
    joint = replace(PLAIN, boxes=("o",), scores=("o",), classes="o")
    check(run({"o": one}, joint), boxes, scores, classes)
    with pytest.raises(InvalidDataError, match="class numbers from 0 in c, got -1"):
        run({**outputs, "c": classes[None] - 1}, how)


def test_boxes_lie_in_pixels_of_the_picture_and_within_it() -> None:
    """A letterboxed picture 200 x 100 (w x h), and a part of one 400 x 300."""
    boxes = np.array([[0.25, 0.5, 0.5, 0.75], [-0.2, 0.4, 0.3, 1.4]])
    views = Views(
        np.array([[0, -50, 200, 200], [100, 50, 200, 100]], np.float32),
        np.array([[100, 200], [300, 400]], np.int32),
    )
    outputs = {"boxes": in_pixels(boxes)[None].repeat(2, 0), "scores": np.full((2, 2, 1), 0.5)}
    found = run(outputs, PLAIN, views)
    np.testing.assert_allclose(found[0].corners, [[50, 50, 100, 100], [0, 30, 60, 100]], atol=1e-4)
    np.testing.assert_allclose(found[1].corners, [[150, 100, 200, 125], [60, 90, 160, 190]])
    beyond = {"boxes": in_pixels(boxes + 2)[None], "scores": np.full((1, 2, 1), 0.5)}
    assert len(run(beyond, PLAIN).classes) == 0  # nothing of them is in the picture


def plain_nms(corners: np.ndarray, threshold: float) -> list[int]:
    """A loop over boxes that are sorted by score."""
    kept: list[int] = []
    for i, (left, top, right, bottom) in enumerate(corners):
        for j in kept:
            a = corners[j]
            wide = max(min(right, a[2]) - max(left, a[0]), np.float32(0))
            high = max(min(bottom, a[3]) - max(top, a[1]), np.float32(0))
            shared = wide * high
            union = (a[2] - a[0]) * (a[3] - a[1]) + (right - left) * (bottom - top) - shared
            if shared > np.float32(threshold) * union:
                break
        else:
            kept.append(i)
    return kept


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 60), st.integers(1, 4), st.sampled_from([0.1, 0.45, 0.6, 1.0]), st.integers(0, 9)
)
def test_nms_is_that_of_a_loop(count: int, groups: int, threshold: float, seed: int) -> None:
    rng = np.random.default_rng([seed, count])
    start = rng.integers(0, 8, (count, 2))
    corners = np.concatenate([start, start + rng.integers(1, 8, (count, 2))], axis=1)
    corners = corners.astype(np.float32)
    numbers = np.sort(rng.integers(0, groups, count))
    kept = nms(corners.T, numbers, threshold, count + 1)
    expected = [
        int(first) + i
        for first in np.flatnonzero(np.diff(numbers, prepend=-1))
        for i in plain_nms(corners[numbers == numbers[first]][:], threshold)
    ]
    assert kept.tolist() == sorted(expected)
    assert len(nms(corners.T, numbers, threshold, 1)) == len(np.unique(numbers))


def test_nms_goes_by_score_then_by_number_within_a_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [40, 0, 50, 10]], np.float32)
    scores = np.array([[0.5, 0.1], [0.5, 0.0], [0.6, 0.9], [0.2, 0.0]], np.float32)
    how = replace(PLAIN, iou_threshold=0.5, score_threshold=0.05)
    found = run({"boxes": boxes[None], "scores": scores[None]}, how)
    assert found.classes.tolist() == [1, 0, 0]
    np.testing.assert_allclose(found.scores, [0.9, 0.6, 0.2])  # 0.5 and 0.1 overlap better ones
    equal = run({"boxes": boxes[None, :2], "scores": np.full((1, 2, 1), 0.5)}, how)
    np.testing.assert_array_equal(equal.corners, boxes[:1])  # the first of equal scores
    most = run({"boxes": boxes[None], "scores": scores[None]}, replace(how, max_boxes=2))
    np.testing.assert_allclose(most.scores, [0.9, 0.6])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_boxes_without_a_chance_may_be_dropped_early(seed: int, most: int) -> None:
    """The best of each picture are the same as after an NMS of all boxes."""
    rng = np.random.default_rng(seed)
    count, classes = 150, 3
    start = rng.uniform(0, 40, (2, count, 2))
    corners = np.concatenate([start, start + rng.uniform(2, 20, start.shape)], axis=2)
    scores = rng.integers(0, 40, (2, count, classes)) / 40  # many are equal
    outputs = {"boxes": corners, "scores": scores}
    how = replace(PLAIN, iou_threshold=0.4, score_threshold=0.0)
    every = run(outputs, replace(how, max_boxes=1000))
    few = run(outputs, replace(how, max_boxes=most))
    for own, all_of_it in zip(few, every, strict=True):
        np.testing.assert_array_equal(own.corners, all_of_it.corners[:most])
        np.testing.assert_array_equal(own.classes, all_of_it.classes[:most])


def random_outputs(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "b": rng.normal(0, 1, (count, GRIDS.count, 4)).astype(np.float32),
        "s": rng.normal(-3, 2, (count, GRIDS.count, 5)).astype(np.float32),
    }


def test_pictures_are_decoded_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, and what lies beside a picture in one, change nothing."""
    outputs = random_outputs(9, 13)
    how = Decoding(("b",), ("s",), anchors=GRIDS, activation="sigmoid", candidates=80)
    views = Views.whole(9, 120, 300)
    found = decode(outputs, how, views, INPUT)
    monkeypatch.setattr("edgekit.tasks.decode._BLOCK", 2 * GRIDS.count * 9)
    again = decode(outputs, how, views, INPUT)
    flat = np.concatenate([each.reshape(9, -1) for each in outputs.values()], axis=1)
    sizes = {name: each.shape[1:] for name, each in outputs.items()}
    joint = decode_all(flat, sizes, how, views, INPUT)
    for other in (again, joint):
        np.testing.assert_array_equal(found.offsets, other.offsets)
        np.testing.assert_array_equal(found.corners, other.corners)
        np.testing.assert_array_equal(found.scores, other.scores)
    for i in range(9):
        alone = {name: each[i : i + 1] for name, each in outputs.items()}
        one = decode(alone, how, views.take(np.array([i])), INPUT)
        np.testing.assert_array_equal(found[i].corners, one.corners)
    for name, each in by_name(flat, sizes).items():
        np.testing.assert_array_equal(each, outputs[name])


def test_candidates_are_those_with_the_highest_scores() -> None:
    outputs = random_outputs(3, 14)
    how = Decoding(
        ("b",), ("s",), anchors=GRIDS, activation="sigmoid", iou_threshold=None, max_boxes=40
    )
    all_of_them = run(outputs, how)
    few = run(outputs, replace(how, candidates=40))
    np.testing.assert_array_equal(all_of_them.corners, few.corners)
    np.testing.assert_array_equal(all_of_them.scores, few.scores)


def changed(name: str, where: Any, value: float) -> dict[str, np.ndarray]:
    outputs = random_outputs(4, 15)
    outputs[name][where] = value
    return outputs


ANCHORED = Decoding(("b",), ("s",), anchors=GRIDS, activation="sigmoid")


@pytest.mark.parametrize(
    ("outputs", "how", "said"),
    (
        (changed("s", (2, 5, 1), np.nan), ANCHORED, "scores of picture 2 hold NaN"),
        (changed("b", (3,), np.nan), ANCHORED, "boxes of picture 3 are NaN"),
        (
            random_outputs(2, 0),
            replace(ANCHORED, activation="none"),
            "expected scores from 0 to 1, got .* pass activation=sigmoid",
        ),
        (
            random_outputs(2, 0),
            replace(ANCHORED, activation="none", background="last"),
            "pass activation=softmax",
        ),
        (
            random_outputs(2, 0),
            replace(ANCHORED, boxes=("x",)),
            r"expected an output 'x' to decode, got b \[N, 90, 4\], s \[N, 90, 5\]",
        ),
        (
            random_outputs(2, 0),
            replace(ANCHORED, anchors=Anchors(GRIDS.grids[:1])),
            "expected 72 boxes, as many as anchors, got 90",
        ),
        (
            {"b": np.zeros((1, 90, 4)), "s": np.zeros((1, 80, 5))},
            replace(ANCHORED, anchors=None),
            "expected as many boxes as rows of scores, got 90 and 80",
        ),
        (
            {"b": np.zeros((1, 90, 5)), "s": np.zeros((1, 90, 5))},
            ANCHORED,
            "expected 4 numbers a box, got 5",
        ),
        (
            {"b": np.zeros((1, 90, 4)), "s": np.zeros((1, 90, 1))},
            replace(ANCHORED, background="first"),
            "expected at least 2 columns of scores, got 1",
        ),
        (
            {"b": np.zeros((1, 3, 3, 3, 3, 3)), "s": np.zeros((1, 90, 1))},
            ANCHORED,
            "expected b as .N, boxes, numbers.",
        ),
    ),
)
def test_what_is_no_output_of_a_detector(
    outputs: dict[str, np.ndarray], how: Decoding, said: str
) -> None:
    with pytest.raises(InvalidDataError, match=said):
        run(outputs, how)


def test_boxes_in_the_other_unit_are_refused() -> None:
    boxes = right_boxes(50, 16)
    scores, _, _ = scored(50, 3, 17)
    both = {"boxes": in_pixels(boxes)[None], "scores": scores[None]}
    with pytest.raises(InvalidDataError, match="pass unit=pixels"):
        run(both, replace(PLAIN, unit="relative"))
    with pytest.raises(InvalidDataError, match="pass unit=relative"):
        run({**both, "boxes": boxes[None]}, PLAIN)


def test_pictures_without_boxes() -> None:
    how = Decoding(("b",), ("s",), anchors=GRIDS, activation="sigmoid")
    outputs = random_outputs(3, 18)
    outputs["s"][1] = -20
    found = run(outputs, how)
    assert np.diff(found.offsets)[1] == 0 and len(found) == 3
    none = decode(
        {name: each[:0] for name, each in outputs.items()}, how, Views.whole(0, 1, 1), INPUT
    )
    assert len(none) == 0 and none.corners.shape == (0, 4)
