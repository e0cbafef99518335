"""mAP of boxes beside pycocotools and faster-coco-eval; its bootstrap; agreement of two models."""

from __future__ import annotations

import contextlib
import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.data.boxes import Boxes
from edgekit.tasks import bootstrap, detection

CLASSES = 5
#: 364 photographs of blood cells, where they are.
BCCD = ROOT.parent / "shared" / "data" / "bccd" / "BCCD" / "Annotations"


def boxes_of(
    counts: list[int] | np.ndarray, corners: np.ndarray, classes: np.ndarray, **more: Any
) -> Boxes:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Boxes(
        offsets,
        np.asarray(corners, np.float32).reshape(-1, 4),
        np.asarray(classes, np.int32),
        *(more.get(name) for name in ("scores", "crowd", "areas")),
    )


def detected(truth: Boxes, seed: int, per: int, classes: int, error: float = 0.08) -> Boxes:
    """Boxes near the right ones, and others, with scores that are often equal."""
    rng = np.random.default_rng(seed)
    counts, corners, numbers, scores = [], [], [], []
    for own in truth:
        count = min(per, 2 * len(own.classes))
        which = rng.integers(0, max(1, len(own.classes)), count)
        sides = own.corners[which][:, 2:] - own.corners[which][:, :2]
        near = own.corners[which] + rng.normal(0, error, (count, 4)) * np.tile(sides, 2)
        start = rng.uniform(0, 400, (per - count, 2))
        far = np.concatenate([start, start + rng.uniform(5, 200, start.shape)], axis=1)
        both = np.concatenate([near, far]).round(1)
        both[:, 2:] = np.maximum(both[:, 2:], both[:, :2] + 1)
        same = np.where(
            rng.random(count) < 0.8, own.classes[which], rng.integers(0, classes, count)
        )
        number = np.concatenate([same, rng.integers(0, classes, per - count)])
        score = np.concatenate([rng.random(count), 0.7 * rng.random(per - count)]).round(2)
        order = np.argsort(-score, kind="stable")
        counts.append(per)
        corners.append(both[order])
        numbers.append(number[order])
        scores.append(score[order])
    return boxes_of(
        counts,
        np.concatenate(corners),
        np.concatenate(numbers),
        scores=np.concatenate(scores).astype(np.float32),
    )


def random_truth(count: int, seed: int, classes: int = CLASSES) -> Boxes:
    """Right boxes of all areas, of some pictures none, and some crowds."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(6, count) * (rng.random(count) > 0.1)
    total = int(counts.sum())
    start = rng.uniform(0, 400, (total, 2))
    sides = np.exp(rng.uniform(np.log(8), np.log(250), (total, 2)))
    corners = np.concatenate([start, start + sides], axis=1).round(1).astype(np.float32)
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1) * rng.uniform(0.5, 1, total)
    return boxes_of(
        counts,
        corners,
        rng.integers(0, classes, total),
        crowd=rng.random(total) < 0.05,
        areas=areas.astype(np.float32),
    )


def bccd() -> tuple[Boxes, tuple[str, ...]]:
    """The annotations of the photographs, as their files have them."""
    names = ("RBC", "WBC", "Platelets")
    counts, corners, numbers = [], [], []
    for file in sorted(BCCD.glob("*.xml")):
        objects = ElementTree.parse(file).getroot().findall("object")
        counts.append(len(objects))
        for each in objects:
            numbers.append(names.index(each.findtext("name") or ""))
            box = each.find("bndbox")
            assert box is not None
            corners.append(
                [float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax")]
            )
    return boxes_of(counts, np.array(corners), np.array(numbers)), names


def as_coco(
    truth: Boxes, found: Boxes, classes: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same as the dictionaries of COCO."""

    def sides(boxes: Boxes) -> list[list[float]]:
        corners = boxes.corners.astype(np.float64)
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()

    count = len(truth.classes)
    crowd = np.zeros(count, bool) if truth.crowd is None else truth.crowd
    areas = [w * h for _, _, w, h in sides(truth)] if truth.areas is None else truth.areas
    annotations = [
        {
            "id": number + 1,
            "image_id": int(picture),
            "category_id": int(category),
            "bbox": box,
            "area": float(area),
            "iscrowd": int(many),
        }
        for number, (picture, category, box, area, many) in enumerate(
            zip(truth.pictures(), truth.classes, sides(truth), areas, crowd, strict=True)
        )
    ]
    assert found.scores is not None
    results = [
        {"image_id": int(picture), "category_id": int(category), "bbox": box, "score": float(score)}
        for picture, category, box, score in zip(
            found.pictures(), found.classes, sides(found), found.scores, strict=True
        )
    ]
    images = [{"id": i, "width": 1000, "height": 1000} for i in range(len(truth))]
    categories = [{"id": i, "name": str(i)} for i in range(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def by_pycocotools(truth: Boxes, found: Boxes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(the twelve numbers, precision ``[4, 10, C, 101]``)."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    right, results = as_coco(truth, found, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        base = coco.COCO()
        base.dataset = right
        base.createIndex()
        judge = cocoeval.COCOeval(base, base.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats, judge.eval["precision"][..., -1].transpose(3, 0, 2, 1)


def by_faster_coco_eval(truth: Boxes, found: Boxes, classes: int) -> np.ndarray:
    faster = pytest.importorskip("faster_coco_eval")
    right, results = as_coco(truth, found, classes)
    base = faster.COCO(right)
    judge = faster.COCOeval_faster(base, base.loadRes(results), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        judge.run()
    return np.array(judge.stats)[:12]


def twelve(matches: detection.Matches) -> np.ndarray:
    """The numbers that COCO prints; -1 where there is none."""
    score = detection.score(matches)
    areas = ("small", "medium", "large")
    numbers = [
        score.mean(),
        score.mean(0.5),
        score.mean(0.75),
        *(score.mean(area=area) for area in areas),
        *(score.mean_recall(most) for most in detection.MOST),
        *(score.mean_recall(100, area) for area in areas),
    ]
    return np.nan_to_num(np.array(numbers), nan=-1)


@pytest.mark.parametrize(("count", "per", "seed"), ((60, 40, 0), (25, 130, 1), (3, 3, 2)))
def test_numbers_are_those_of_pycocotools(count: int, per: int, seed: int) -> None:
    """With crowds, areas, empty pictures, equal scores and more boxes than count."""
    truth = random_truth(count, seed)
    found = detected(truth, seed + 10, per, CLASSES)
    if per < 10:  # few boxes of few classes: some have no right box
        truth = replace(truth, classes=np.minimum(truth.classes, 1))
    matches = detection.match(truth, found, CLASSES)
    numbers, precision = by_pycocotools(truth, found, CLASSES)
    np.testing.assert_allclose(twelve(matches), numbers, atol=1e-6)
    np.testing.assert_allclose(by_faster_coco_eval(truth, found, CLASSES), numbers, atol=1e-6)
    means = np.where(precision[..., 0] < 0, np.nan, precision.mean(axis=3))
    np.testing.assert_allclose(detection.score(matches).precision, means, atol=1e-6)
    at_half = np.where(precision[0, 0] < 0, np.nan, precision[0, 0])
    np.testing.assert_allclose(detection.curves(matches), at_half, atol=1e-6)


@pytest.mark.skipif(not BCCD.is_dir(), reason="the photographs of blood cells are not here")
def test_numbers_on_real_annotations() -> None:
    truth, names = bccd()
    assert len(truth) == 364 and len(truth.classes) == 4888
    found = detected(truth, 3, 40, len(names))
    matches = detection.match(truth, found, len(names))
    numbers, _ = by_pycocotools(truth, found, len(names))
    np.testing.assert_allclose(twelve(matches), numbers, atol=1e-6)
    metrics = detection.metrics(matches, names)
    assert metrics["map"].value == pytest.approx(100 * numbers[0])
    assert {"map50:RBC", "map50:WBC", "map50:Platelets"} <= metrics.keys()


def test_known_answers() -> None:
    """Two pictures: one box found exactly, one at IoU 0.6, one missed, one false."""
    truth = boxes_of(
        [2, 1], np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]]), np.array([0, 0, 1])
    )
    found = boxes_of(
        [2, 1],
        np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 6]]),
        np.array([0, 0, 1]),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
    )
    matches = detection.match(truth, found, 3)
    score = detection.score(matches)
    half = 51 / 101  # the recalls 0, 0.01, ... 0.5
    np.testing.assert_allclose(score.of_classes(0.5), [half, 1, np.nan])
    np.testing.assert_allclose(score.of_classes(0.75), [half, 0, np.nan])
    np.testing.assert_allclose(score.of_classes(), [half, 0.3, np.nan])  # 0.5, 0.55 and 0.6
    assert score.mean(0.5) == pytest.approx((half + 1) / 2)
    metrics = detection.metrics(matches, ("a", "b", "c"))
    assert "map_large" not in metrics and "map50:c" not in metrics  # no right box of either
    assert metrics["map50:b"].value == pytest.approx(100) and metrics["map50"].count == 2
    curves = detection.curves(matches)
    np.testing.assert_array_equal(curves[0], np.arange(101) <= 50)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_pictures_does_not_matter(seed: int) -> None:
    truth = random_truth(8, seed)
    if not (truth.crowd is not None and (~truth.crowd).any()):
        return
    found = detected(truth, seed, 15, CLASSES)
    rng = np.random.default_rng(seed)
    assert found.scores is not None
    # Equal scores of two pictures have the order of the pictures: none here.
    scores = (found.scores + rng.permutation(len(found.scores)) * 1e-6).astype(np.float32)
    found = replace(found, scores=scores)
    order = rng.permutation(8)
    before = detection.score(detection.match(truth, found, CLASSES))
    after = detection.score(detection.match(truth.take(order), found.take(order), CLASSES))
    np.testing.assert_allclose(before.precision, after.precision)
    np.testing.assert_allclose(before.recall, after.recall)


def test_a_resample_is_what_its_pictures_give() -> None:
    truth = random_truth(30, 4)
    found = detected(truth, 5, 20, CLASSES)
    rng = np.random.default_rng(6)
    scores = rng.permutation(len(found.scores)).astype(np.float32) / len(found.scores)  # type: ignore[arg-type]
    matches = detection.match(truth, replace(found, scores=scores), CLASSES)
    resampled = detection.resample(matches, resamples=200, seed=7)
    drawn = bootstrap.weights(30, 200, 7)
    assert (drawn.sum(axis=0) == 30).all()
    for number in (0, 133, 199):
        pictures = np.repeat(np.arange(30), drawn[:, number].astype(int))
        own = replace(found, scores=scores).take(pictures)
        score = detection.score(detection.match(truth.take(pictures), own, CLASSES))
        # A recall of 0.07 is not reached by 7 of 100 in COCO, which compares rounded numbers.
        assert resampled.values["map"][number] == pytest.approx(score.mean(), abs=2e-3)
        assert resampled.values["map50"][number] == pytest.approx(score.mean(0.5), abs=2e-3)


def test_changes_have_the_interval_of_the_same_resamples() -> None:
    truth = random_truth(200, 8)
    good = detection.match(truth, detected(truth, 9, 20, CLASSES, 0.03), CLASSES)
    worse = detection.match(truth, detected(truth, 9, 20, CLASSES, 0.2), CLASSES)
    both = detection.resample(good), detection.resample(worse)
    changes = detection.change(good, worse, both)
    for name in ("map_change", "map50_change"):
        change = changes[name]
        assert change.unit == "points" and change.interval == "bootstrap 95 %"
        assert change.low is not None and change.high is not None
        assert change.low < change.value < change.high < 0
    apart = detection.change(good, worse)
    assert apart == changes  # from the same seed
    same = detection.change(good, good, (both[0], both[0]))["map_change"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    few = bootstrap.images_needed(*both, "map", drop=0.05, power=0.8)
    many = bootstrap.images_needed(*both, "map", drop=0.005, power=0.8)
    assert 1 <= few.value < many.value and few.count == 200
    assert many.value == pytest.approx(100 * few.value, rel=0.5)
    other = detection.resample(worse, seed=1)
    with pytest.raises(InvalidOptionError, match="same pictures, with the same seed"):
        detection.change(good, worse, (both[0], other))
    for drop, power in ((0, 0.8), (2, 0.8), (0.1, 1), (0.1, 0.2)):
        with pytest.raises(InvalidOptionError):
            bootstrap.images_needed(*both, "map", drop=drop, power=power)


def test_an_interval_holds_the_change_of_other_pictures() -> None:
    """A 95 % interval of 60 pictures beside the change on 2,000 of their kind, forty times."""
    truth = random_truth(2000, 20)
    pair = [detected(truth, 21, 12, CLASSES, error) for error in (0.05, 0.07)]
    scores = [detection.score(detection.match(truth, each, CLASSES)).mean(0.5) for each in pair]
    exact = 100 * (scores[1] - scores[0])
    rng = np.random.default_rng(22)
    inside = 0
    for _ in range(40):
        some = rng.choice(2000, 60, replace=False)
        before, after = (
            detection.match(truth.take(some), each.take(some), CLASSES) for each in pair
        )
        resampled = tuple(detection.resample(each, resamples=300) for each in (before, after))
        change = detection.change(before, after, resampled)["map50_change"]  # type: ignore[arg-type]
        assert change.low is not None and change.high is not None
        inside += change.low <= exact <= change.high
    assert inside >= 33  # below that with a chance of 1 in 400, if it is 95 %


def test_agreement_of_two_models() -> None:
    before = boxes_of(
        [3, 1, 0],
        np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 0, 10, 10]]),
        np.array([0, 0, 1, 1]),
        scores=np.array([0.9, 0.8, 0.2, 0.6], np.float32),
    )
    after = boxes_of(
        [2, 1, 1],
        np.array([[0, 0, 10, 10], [20, 0, 30, 7], [0, 0, 10, 10], [5, 5, 9, 9]]),
        np.array([0, 0, 0, 0]),
        scores=np.array([0.8, 0.7, 0.6, 0.9], np.float32),
    )
    metrics = detection.agreement(before, after)
    assert metrics["matched50"].value == pytest.approx(100 * 2 / 3)
    assert metrics["matched90"].value == pytest.approx(100 / 3)
    assert metrics["score_error"].value == pytest.approx(10, abs=1e-4)
    assert metrics["matched50"].count == 3 and metrics["matched50"].unit == "%"
    low, high = metrics["matched50"].low, metrics["matched50"].high
    assert low is not None and high is not None and 0 <= low < high <= 100
    alike = detection.agreement(before, before)
    assert [alike[name].value for name in ("matched50", "matched90", "score_error")] == [
        100,
        100,
        0,
    ]
    quiet = replace(before, scores=np.full(4, 0.1, np.float32))
    none = detection.agreement(quiet, before)  # no box to be sure of in the float model
    assert none["matched50"].value == 100 and none["matched50"].count == 0
    assert detection.agreement(before, quiet)["matched50"].value == 0
    partners = detection.partners(before, after)
    assert partners.tolist() == [0, 1, -1, -1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.5, 0.75]))
def test_matches_are_those_of_a_loop(seed: int, iou: float) -> None:
    """Pairs of two models, one to one, beside a loop over boxes."""
    rng = np.random.default_rng(seed)
    truth = random_truth(3, seed, classes=2)
    a, b = (detected(truth, each, 8, 2, 0.1) for each in (seed, seed + 1))
    assert a.scores is not None
    a = replace(a, scores=rng.permutation(len(a.scores)).astype(np.float32))
    expected = np.full(len(a.classes), -1)
    taken = set()
    for i in np.argsort(-a.scores, kind="stable"):  # type: ignore[operator]
        best, own = iou, -1
        for j in range(len(b.classes)):
            if j in taken or a.pictures()[i] != b.pictures()[j] or a.classes[i] != b.classes[j]:
                continue
            one, other = a.corners[i].astype(float), b.corners[j].astype(float)
            sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
            shared = np.maximum(sides, 0).prod()
            union = (one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared
            if shared / union >= best:
                best, own = shared / union, j
        expected[i] = own
        taken |= {own} - {-1}
    np.testing.assert_array_equal(detection.partners(a, b, iou), expected)


def test_bad_input() -> None:
    truth = random_truth(5, 0)
    found = detected(truth, 1, 4, CLASSES)
    with pytest.raises(InvalidDataError, match="expected boxes of 5 pictures, got those of 4"):
        detection.match(truth, found.take(np.arange(4)), CLASSES)
    with pytest.raises(InvalidDataError, match="expected right boxes of 2 classes, 0 to 1, got"):
        detection.match(truth, found, 2)
    with pytest.raises(InvalidDataError, match="expected found boxes of 5 classes, .* class 9"):
        detection.match(truth, replace(found, classes=found.classes * 0 + 9), CLASSES)
    with pytest.raises(InvalidDataError, match="with scores"):
        detection.match(truth, replace(found, scores=None), CLASSES)
    with pytest.raises(InvalidDataError, match="NaN"):
        detection.match(truth, replace(found, scores=found.scores * np.nan), CLASSES)  # type: ignore[operator]
    with pytest.raises(InvalidDataError, match="expected right boxes, got none in 5 pictures"):
        detection.match(replace(truth, crowd=np.ones(len(truth.classes), bool)), found, CLASSES)
    empty = boxes_of([0] * 5, np.zeros((0, 4)), np.zeros(0), scores=np.zeros(0, np.float32))
    matches = detection.match(truth, empty, CLASSES)
    assert detection.score(matches).mean() == 0
    assert detection.resample(matches, resamples=10).values["map"].tolist() == [0] * 10
