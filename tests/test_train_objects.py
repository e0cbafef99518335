"""Training of detectors and segmenters: targets, losses, augmentation, the verb."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Done
from PIL import Image

from edgekit.base.errors import EdgekitError, InvalidDataError, InvalidOptionError
from edgekit.data import images as image_sets
from edgekit.data import scenes
from edgekit.data.boxes import Boxes, Views
from edgekit.data.images import ImageSet
from edgekit.data.masks import VOID
from edgekit.models.mobilenet_v2 import mobilenet_v2
from edgekit.records.artifact import Artifact
from edgekit.records.decoding import AnchorGrid, Anchors
from edgekit.records.signature import preprocessing
from edgekit.sources import keras as keras_format
from edgekit.training import detection, networks, recipes, segmentation
from edgekit.training.geometry import moved
from edgekit.training.recipes import Recipe
from edgekit.training.trainer import Trainer

#: Two maps, an anchor of a square and one that is wide.
ANCHORS = Anchors(
    (
        AnchorGrid(4, 4, ((0.25, 0.25), (0.25, 0.5))),
        AnchorGrid(2, 2, ((0.5, 0.5), (0.5, 1.0))),
    )
)
STILL = Recipe(batch=8, shift=0, flip=False, erase=0, label_smoothing=0)


def rows(*boxes: tuple[float, ...]) -> np.ndarray:
    """Boxes of one image, float32 ``[1, M, 4]``."""
    return np.array([boxes], np.float32)


def aimed(boxes: np.ndarray, *classes: int) -> tuple[np.ndarray, ...]:
    """Targets of one image with three classes."""
    parts = detection.targets(ANCHORS, boxes, np.array([classes], np.int32), 3)
    return tuple(np.asarray(part)[0] for part in parts)


def decoded(codes: np.ndarray) -> np.ndarray:
    """Boxes of codes by the formula of :class:`Anchors`."""
    y, x, high, wide = ANCHORS.boxes().T
    ty, tx, th, tw = (codes / np.array(ANCHORS.scales)).T
    centre_y, centre_x, tall, across = (
        y + ty * high,
        x + tx * wide,
        high * np.exp(th),
        wide * np.exp(tw),
    )
    edges = (centre_y - tall / 2, centre_x - across / 2, centre_y + tall / 2, centre_x + across / 2)
    return np.stack(edges, axis=1)


def test_codes_lead_back_to_the_boxes() -> None:
    boxes = rows((0.1, 0.2, 0.4, 0.45), (0.5, 0.1, 1.0, 0.9), (0.0, 0.0, 0.0, 0.0))
    codes, scores, positive, counted = aimed(boxes, 2, 0, detection.NONE)
    assert positive.any() and (counted | ~positive).all()
    back = decoded(codes)[positive]
    owners = np.where(scores[positive].argmax(axis=1) == 2, 0, 1)
    assert back == pytest.approx(boxes[0, owners], abs=1e-5)
    assert set(owners) == {0, 1}
    assert (scores.sum(axis=1) == positive).all() and not codes[~positive].any()


def test_each_object_has_the_anchor_that_overlaps_it_most() -> None:
    tiny = (0.30, 0.30, 0.33, 0.33)  # of no anchor with an IoU of 0.5
    _, scores, positive, _ = aimed(rows(tiny), 1)
    assert np.flatnonzero(positive).tolist() == [10]  # row 1, column 1, the square
    assert scores[10].tolist() == [0, 1, 0]


def test_between_the_bounds_an_anchor_does_not_count() -> None:
    _, _, positive, counted = aimed(rows((0.0, 0.10, 0.25, 0.35)), 0)
    overlap = 0.15 / 0.35
    assert detection.UNMATCHED < overlap < detection.MATCHED
    assert not positive[0] and not counted[0]


def test_anchors_in_a_crowd_do_not_count() -> None:
    boxes = rows((0.0, 0.0, 0.5, 1.0), (0.7, 0.7, 0.95, 0.95))
    _, _, positive, counted = aimed(boxes, detection.CROWD, 1)
    corners = decoded(np.zeros((len(positive), 4)))
    inside = corners[:, 2] <= 0.5
    assert not counted[inside & ~positive].any()
    assert counted[corners[:, 0] >= 0.5].any() and positive.any()
    assert not positive[inside].any()


def test_smooth_l1_is_that_of_the_paper() -> None:
    errors = np.array([-2.0, -0.5, 0.0, 1.0], np.float32)
    assert np.asarray(detection.smooth_l1(errors)).tolist() == [1.5, 0.125, 0.0, 0.5]


def test_three_negatives_count_for_an_object_those_with_the_largest_loss() -> None:
    losses = np.arange(40, dtype=np.float32)[None] + np.zeros((2, 1), np.float32)
    positive, counted = np.zeros((2, 40), bool), np.ones((2, 40), bool)
    positive[0, :5], counted[0, 39] = True, False
    chosen = np.asarray(detection.hardest(losses, positive, counted))
    assert np.flatnonzero(chosen[0]).tolist() == [*range(5), *range(24, 39)]
    assert np.flatnonzero(chosen[1]).tolist() == list(range(30, 40))


def square(top: int, left: int, bottom: int, right: int) -> tuple[Any, Any, Any]:
    """Sixteen pictures of 64 pixels with one bright box, its box and its mask."""
    x = np.zeros((16, 64, 64, 1), np.float32)
    x[:, top:bottom, left:right] = 1
    boxes = np.tile(np.array([top, left, bottom, right], np.float32) / 64, (16, 1, 1))
    return x, boxes, x[..., 0].astype(np.uint8)


@pytest.mark.parametrize(
    "change", [{"flip": True}, {"crop": 0.5}, {"shift": 6}, {"crop": 0.6, "shift": 4, "flip": True}]
)
def test_boxes_and_masks_move_with_the_picture(change: dict[str, Any]) -> None:
    import tensorflow as tf

    x, boxes, masks = square(20, 12, 40, 44)
    recipe = replace(STILL, **change)
    moves = moved(tf.constant(x), recipe, tf.constant(3, tf.int64), boxes=boxes, masks=masks)
    x, boxes, masks = map(np.asarray, moves)
    assert len({each.tobytes() for each in x}) > 1
    for picture, ((top, left, bottom, right),), mask in zip(
        x[..., 0], boxes * 64, masks, strict=True
    ):
        assert (mask[picture > 0.75] == 1).all()
        assert not mask[(picture < 0.25) & (mask != VOID)].any()
        bright = picture > 0.5
        down, across = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        seen = down[0], across[0], down[-1] + 1, across[-1] + 1
        assert seen == pytest.approx((top, left, bottom, right), abs=1.01)


def test_a_box_whose_centre_is_cropped_away_is_no_object_any_more() -> None:
    import tensorflow as tf

    x, boxes, _ = square(0, 0, 8, 8)
    recipe = replace(STILL, crop=0.3)
    _, boxes, _ = moved(tf.constant(x), recipe, tf.constant(1, tf.int64), boxes=boxes)
    sides = np.asarray(boxes)[..., 2:] - np.asarray(boxes)[..., :2]
    empty = (sides == 0).all(axis=-1)
    assert empty.any() and not empty.all()
    assert (sides[~empty] > 0).all()


def test_nothing_changes_without_augmentation() -> None:
    import tensorflow as tf

    x, boxes, masks = square(3, 4, 30, 50)
    same = moved(tf.constant(x), STILL, tf.constant(0, tf.int64), boxes=boxes, masks=masks)
    for before, after in zip((x, boxes, masks), same, strict=True):
        assert (before == np.asarray(after)).all()


def two() -> ImageSet:
    """Two images of 8 x 16 that show parts of pictures of 40 x 40; the second has no object."""
    boxes = Boxes(
        np.array([0, 2, 2]),
        np.array([[10, 5, 30, 25], [0, 0, 5, 5]], np.float32),
        np.array([1, 0], np.int32),
        crowd=np.array([False, True]),
    )
    views = Views(np.array([[10, 0, 20, 20], [-20, 0, 80, 40]], np.float32), np.full((2, 2), 40))
    masks = scenes.Stack(np.tile(np.arange(40, dtype=np.uint8)[:, None] // 10, (2, 1, 40)))
    pixels = np.zeros((2, 8, 16, 1), np.uint8)
    return replace(
        image_sets.make("two", pixels, None, ("a", "b", "c", "d")),
        boxes=boxes,
        masks=masks,
        views=views,
    )


def test_boxes_become_parts_of_what_an_image_shows() -> None:
    corners, classes = detection.truth(two(), 2)
    assert corners[0, 0].tolist() == [0.25, 0.0, 1.25, 1.0]
    assert classes.tolist() == [[1, detection.CROWD], [detection.NONE, detection.NONE]]


def test_masks_become_what_an_image_shows_and_void_beside_it() -> None:
    masks = segmentation.truth(two(), 4)
    assert masks[0, :, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (masks[1, :, :4] == VOID).all() and (masks[1, :, 12:] == VOID).all()
    assert masks[1, :, 4].tolist() == masks[1, :, 11].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_right_boxes_and_masks_that_do_not_fit_are_refused() -> None:
    images = two()
    with pytest.raises(InvalidDataError, match="two: expected boxes of class 0 to 0, got class 1"):
        detection.truth(images, 1)
    with pytest.raises(InvalidDataError, match="expected masks of class 0 to 2, got class 3"):
        segmentation.truth(images, 3)
    assert images.boxes is not None
    with pytest.raises(InvalidDataError, match="expected boxes to train a detector, got none"):
        detection.truth(replace(images, boxes=images.boxes.take(np.array([1, 1]))), 2)
    other = scenes.Stack(np.zeros((2, 40, 30), np.uint8))
    with pytest.raises(InvalidDataError, match=r"mask 0 has the size \[40, 30\], its picture"):
        segmentation.truth(replace(images, masks=other), 4)
    void = scenes.Stack(np.full((2, 40, 40), VOID, np.uint8))
    with pytest.raises(InvalidDataError, match="all pixels are void"):
        segmentation.truth(replace(images, masks=void), 4)


def preset(task: recipes.Task, **recipe: Any) -> recipes.Preset:
    """The recipe of a task for a short run."""
    small = {"batch": 8, "epochs": 8, "warmup_epochs": 1.0, "ema": 0.9} | recipe
    return recipes.changed(recipes.load(recipes.DEFAULTS[task]), recipe=small, network={})


def trainer(task: recipes.Task, images: ImageSet, **recipe: Any) -> Trainer:
    """A trainer with its first weights."""
    chosen = preset(task, **recipe)
    shape = tuple(images.images.shape[1:])
    network = networks.build(chosen, shape, len(images.class_names))  # type: ignore[arg-type]
    settings: dict[str, Any] = {
        "images": images,
        "prepare": preprocessing("unit"),
        "towers": 1,
    }
    if network.decoding is not None:
        settings["anchors"] = network.decoding.anchors
        return detection.DetectionTrainer(network.model, chosen.recipe, **settings)
    return segmentation.SegmentationTrainer(network.model, chosen.recipe, **settings)


def epochs(stepped: Trainer, count: int) -> list[tuple[float, float]]:
    """Loss and share of right predictions of some epochs."""
    result = []
    per_epoch = stepped.steps_per_epoch
    for epoch in range(count):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        rates = [stepped.recipe.rate(step, per_epoch) for step in steps]
        result.append(stepped.run_epoch_part(stepped.order(epoch), np.array(rates, np.float32)))
    return result


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_network_learns_and_the_seed_decides_how(task: recipes.Task) -> None:
    images = scenes.scenes("calibration", 24, masks=task == "segmentation")
    first = epochs(trainer(task, images), 8)
    again = epochs(trainer(task, images), 1)
    other = epochs(trainer(task, images, seed=1), 1)
    assert first[0] == again[0] != other[0]
    assert first[-1][0] < 0.9 * first[0][0]


def test_void_pixels_do_not_count() -> None:
    images = scenes.scenes("calibration", 8, masks=True)
    assert isinstance(images.masks, scenes.Stack)
    classes = images.masks.classes.copy()
    classes[:, :48] = VOID
    stepped = trainer("segmentation", replace(images, masks=scenes.Stack(classes)), flip=False)
    x, y = stepped._batch(np.arange(8), 0, 8)
    loss, logits = stepped._loss(x, y)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    right = np.take_along_axis(log_p.numpy(), classes[..., None].clip(0, 10).astype(int), -1)
    assert float(loss) == pytest.approx(-right[:, 48:].mean(), rel=1e-4)


def test_a_backbone_is_taken_over() -> None:
    from edgekit.sources.float_model import SHIPPED

    beginning = networks.backbone(SHIPPED, None)
    assert beginning.width == 0.35
    model = networks.build(preset("detection"), (64, 64, 3), 4).model
    beginning.give(model)
    original = beginning.original.model
    for name in ("block0_project", "block9_depthwise_bn", "block16_project"):
        pairs = zip(
            original.get_layer(name).get_weights(),
            model.get_layer(name).get_weights(),
            strict=True,
        )
        assert all((mine == theirs).all() for mine, theirs in pairs)
    grey = original.get_layer("stem").get_weights()[0]
    assert model.get_layer("stem").get_weights()[0].sum(axis=2) == pytest.approx(grey[:, :, 0])


def test_a_model_that_is_no_mobilenet_gives_no_backbone(tmp_path: Path) -> None:
    keras = keras_format.tf_keras()
    path = tmp_path / "m.keras"
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.save(path)
    with pytest.raises(EdgekitError, match="expected a MobileNetV2, 51 convolutions"):
        networks.backbone(path, "unit")
    wide = mobilenet_v2(width=0.35, input_shape=(32, 32, 3), classes=2)
    wide.save(path)
    beginning = networks.backbone(path, "unit")
    grey = networks.build(preset("segmentation"), (64, 64, 1), 4).model
    with pytest.raises(EdgekitError, match="takes images of 3 channels, expected those of the"):
        beginning.give(grey)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[detector]\n[segmenter]", "got both"),
        ("[detector]\n[network]\nlowered_strides = 2", "lowered_strides is not for detection"),
        ("[segmenter]\n[recipe]\nlabel_smoothing = 0.1", "label_smoothing is not for segment"),
        ("[detector]\nstrides = [2, 2]", "expected 5 strides"),
        ("[segmenter]\noutput_stride = 3", "expected output_stride"),
        ('[expected]\nof = "a"\nsource = "b"', "expected one of top1, top5, map50, map, miou"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(tmp_path: Path, text: str, said: str) -> None:
    zeros = "label_smoothing = 0.0\n"
    recipe = tmp_path / "mine.toml"
    if "[recipe]" not in text:
        text += f"\n[recipe]\n{zeros}"
    if "[network]" not in text:
        text += "\n[network]\nlowered_strides = 0\ndropout = 0.0"
    recipe.write_text(f'about = "mine"\n{text}\n')
    with pytest.raises(InvalidOptionError, match=said):
        recipes.load(str(recipe))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty scenes as COCO, and as pictures with masks."""
    root = tmp_path_factory.mktemp("scenes")
    with_boxes = scenes.scenes("test", 40)
    masks = scenes.scenes("test", 40, masks=True).masks
    boxes = with_boxes.boxes
    assert boxes is not None and masks is not None
    (root / "images").mkdir()
    (root / "masks").mkdir()
    pictures, notes = [], []
    for i, own in enumerate(boxes):
        name = f"{i:03}.png"
        Image.fromarray(with_boxes.images[i, ..., 0]).save(root / "images" / name)
        Image.fromarray(masks[i]).save(root / "masks" / name)
        pictures.append({"id": i, "file_name": name, "width": 96, "height": 96})
        for (left, top, right, bottom), label in zip(
            own.corners.tolist(), own.classes.tolist(), strict=True
        ):
            notes.append(
                {
                    "id": len(notes) + 1,
                    "image_id": i,
                    "category_id": label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": n} for i, n in enumerate(with_boxes.class_names)]
    (root / "notes.json").write_text(
        json.dumps({"images": pictures, "annotations": notes, "categories": categories})
    )
    (root / "classes.txt").write_text("\n".join(("background", *with_boxes.class_names)))
    return root


@pytest.mark.slow
def test_a_detector_of_coco_pictures_is_trained_and_resumed(
    folder: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    command = ("train", "--task", "detection", "--size", "64", "--batch", "8", "--towers", "1")
    command += ("--data", f"coco:{folder / 'notes.json'}#images={folder / 'images'}")
    command += ("--from", "--validation", "0.2", "--crop", "0.7", "--out", tmp_path / "m")
    command += ("--epochs", "3")
    running = subprocess.Popen(
        [sys.executable, "-m", f"edgekit.{command[0]}", *map(str, command[1:])],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "m.checkpoints" / "log.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.kill()
    running.wait()
    done = edgekit(*command, "--resume")
    assert done.status == 0, done.stderr
    assert "resumed at step" in done.stderr
    written = Artifact.load(tmp_path / "m").manifest
    assert written.task == "detection" and written.class_names == scenes.fashion_mnist.CLASS_NAMES
    assert written.decoding is not None and written.decoding.anchors is not None
    outputs = {spec.name: spec.shape for spec in written.signature.outputs}
    assert outputs == {
        "boxes": (-1, len(written.decoding.anchors.boxes()), 4),
        "scores": (-1, len(written.decoding.anchors.boxes()), 10),
    }
    assert written.training is not None
    assert written.training["from"] == "fashion_mnist_mobilenet_v2_035"
    assert written.training["images"] == 32
    assert 0 <= written.training["validation_map50"] <= 100
    rows = [json.loads(line) for line in (tmp_path / "m" / "training.jsonl").open()]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert {"loss", "augmented_anchors"} <= set(rows[0])


@pytest.mark.slow
def test_a_segmenter_of_pictures_with_masks_is_trained(
    folder: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    done = edgekit(
        "train", "--task", "segmentation", "--data", f"masks:{folder}", "--size", "64",
        "--batch", "8", "--towers", "1", "--epochs", "1", "--out", tmp_path / "m",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    written = Artifact.load(tmp_path / "m").manifest
    assert written.task == "segmentation" and written.decoding is None
    assert written.class_names[0] == "background" and len(written.class_names) == 11
    assert [spec.shape for spec in written.signature.outputs] == [(-1, 8, 8, 11)]
    assert written.training is not None and 0 <= written.training["train_miou"] <= 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "detection", "--data", "STRIPES"), "expected images with boxes for --task"),
        (("--task", "segmentation", "--data", "STRIPES"), "expected images with masks"),
        (("--task", "detection", "--recipe", "small"), "expected a recipe for it, as ssdlite"),
        (("--task", "detection", "--recipe", "deeplab"), "which is for segmentation"),
        (("--task", "detection", "--input", "stream"), "leave out --input stream"),
        (("--task", "detection", "--data-format", "NCHW"), "expected --data-format NHWC, got NCHW"),
        (("--task", "detection", "--channels", "3"), "channels is for fine-tuning a classifier"),
        (("--task", "detection", "--head-epochs", "2"), "head_epochs is not for detection"),
        (("--task", "detection", "--augmentation", "inception"), "expected augmentation small"),
    ],
)
def test_what_does_not_fit_a_task_is_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    stripes = tmp_path / "stripes.npz"
    np.savez(stripes, x=np.zeros((4, 16, 16, 1), np.uint8), y=np.zeros(4, np.int64))
    words = [str(stripes) if word == "STRIPES" else word for word in arguments]
    done = edgekit("train", *words, "--out", tmp_path / "m")
    assert done.status == 2 and said in done.error, done.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("name", "task", "metric", "least"),
    [
        ("scenes_ssdlite_035", "detection", "test_map50", 80.0),
        ("scenes_deeplab_035", "segmentation", "test_miou", 55.0),
    ],
)
def test_the_shipped_networks(name: str, task: str, metric: str, least: float) -> None:
    shipped = Artifact.load(ROOT / "exports" / name)
    manifest = shipped.manifest
    assert manifest.task == task and shipped.size <= 2 * 1024**2
    assert manifest.training is not None and manifest.training[metric] >= least
    assert (manifest.decoding is not None) == (task == "detection")
    rows = (shipped.path / "training.jsonl").read_text().splitlines()
    assert len(rows) == manifest.training["recipe"]["epochs"]


def test_classes_that_no_anchor_has_the_size_of_are_named() -> None:
    images = scenes.scenes("test", 40)
    fitting = Anchors((AnchorGrid(6, 6, ((0.4, 0.4), (0.5, 0.3), (0.5, 0.2), (0.25, 0.5))),))
    assert detection.misfits(fitting, images) == []
    tiny = Anchors((AnchorGrid(6, 6, ((0.05, 0.05),)),))
    said = detection.misfits(tiny, images)
    assert len(said) == len(images.class_names)
    assert "Bag: 100 % of its boxes have the size of no anchor" in " ".join(said)
