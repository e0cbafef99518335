"""What a comparison says of detectors and of segmentation networks: metrics, labels, the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from PIL import Image

from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.compare import Options, compare, main
from edgekit.deploy import main as deploy_main
from edgekit.evaluation import verdicts
from edgekit.evaluation.functions import load
from edgekit.gate import gate
from edgekit.gating import bounds
from edgekit.records.results import Report
from edgekit.report import report as page

#: Pictures, their side, and that of the cells that objects fill.
COUNT, SIDE, CELL = 80, 32, 8
GREYS = (115, 230)  # of the two classes
NAMES = ("grey", "white")
QUICK: dict[str, Any] = {"rounds": 0, "processes": 1, "preprocessing": "unit"}


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Pictures ``[N, 32, 32]``, and the class of each cell ``[N, 4, 4]``, 0 where none is."""
    rng = np.random.default_rng(7)
    cells = rng.choice(3, (COUNT, SIDE // CELL, SIDE // CELL), p=(0.5, 0.25, 0.25))
    cells[0] = 0  # nothing at all
    greys = np.array([5, *GREYS])[cells]
    large = greys.repeat(CELL, axis=1).repeat(CELL, axis=2)
    noise = rng.integers(-4, 5, large.shape)
    return (large + noise).astype(np.uint8), cells


def corners() -> np.ndarray:
    """Left, top, right, bottom of each cell, of 1."""
    y, x = np.divmod(np.arange(16), 4)
    return np.stack([x, y, x + 1, y + 1], axis=1) / 4


def detector(path: Path, **rounded: Any) -> Path:
    """A box for each cell, and scores by how near its mean is to the grey of a class."""
    mean = np.zeros((SIDE, SIDE, 16), np.float32)
    for i, (left, top, right, bottom) in enumerate((corners() * SIDE).astype(int)):
        mean[top:bottom, left:right, i] = 1 / CELL**2
    nodes = [
        ("Reshape", ["x", "flat"], "rows"),
        ("MatMul", ["rows", "mean"], "means"),
        ("Unsqueeze", ["means", "last"], "each"),
        ("Sub", ["each", "greys"], "away"),
        ("Abs", ["away"], "far"),
        ("Mul", ["far", "steep"], "scaled"),
        ("Add", ["scaled", "top"], "scores_float"),
        ("Mul", ["each", "grow"], "more"),
        ("Add", ["more", "cells"], "boxes_float"),
    ]
    constants = {
        "flat": np.array([-1, SIDE * SIDE], np.int64),
        "last": np.array([2], np.int64),
        "mean": mean.reshape(-1, 16),
        "greys": (np.array(GREYS) / 255).astype(np.float32),
        "steep": np.float32(-40),
        "top": np.float32(4),
        "grow": np.float32(0.02) * np.array([-1, -1, 1, 1], np.float32),
        "cells": corners().astype(np.float32),
    }
    outputs = {"boxes": [16, 4], "scores": [16, 2]}
    return nets.write(path, nodes, constants, outputs, inputs=[SIDE, SIDE, 1], **rounded)


def segmenter(path: Path, **rounded: Any) -> Path:
    """A score of each pixel for background and two classes."""
    nodes = [
        ("Sub", ["x", "greys"], "away"),
        ("Abs", ["away"], "far"),
        ("Mul", ["far", "steep"], "logits_float"),
    ]
    constants = {
        "greys": (np.array([5, *GREYS]) / 255).astype(np.float32),
        "steep": np.float32(-40),
    }
    outputs = {"logits": [SIDE, SIDE, 3]}
    return nets.write(path, nodes, constants, outputs, inputs=[SIDE, SIDE, 1], **rounded)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    images, cells = pictures()
    annotations: list[dict[str, Any]] = []
    for i, (image, classes) in enumerate(zip(images, cells, strict=True)):
        Image.fromarray(image).save(folder / "images" / f"{i:02}.png")
        mask = classes.repeat(CELL, axis=0).repeat(CELL, axis=1).astype(np.uint8)
        mask[:1] = 255  # void
        Image.fromarray(mask).save(folder / "masks" / f"{i:02}.png")
        for j, number in enumerate(classes.ravel()):
            if number:
                left, top, right, bottom = (corners()[j] * SIDE).tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": int(number),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": float(CELL * CELL),
                        "iscrowd": 0,
                    }
                )
    document = {
        "images": [
            {"id": i, "file_name": f"{i:02}.png", "width": SIDE, "height": SIDE}
            for i in range(COUNT)
        ],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
    }
    (folder / "boxes.json").write_text(json.dumps(document))
    for each in annotations:  # of the next picture
        each["image_id"] = (each["image_id"] + 1) % COUNT
    (folder / "others.json").write_text(json.dumps(document))
    (folder / "classes.txt").write_text("\n".join(("background", *NAMES)) + "\n")
    decoding = {
        "boxes": ["boxes"],
        "scores": ["scores"],
        "order": "xyxy",
        "unit": "relative",
        "activation": "sigmoid",
    }
    (folder / "decoding.json").write_text(json.dumps(decoding))
    detector(folder / "detector.onnx")
    detector(folder / "rounded.onnx", steps={"scores": 0.3, "boxes": 0.008})
    detector(folder / "coarse.onnx", steps={"scores": 7.0, "boxes": 0.008})
    detector(folder / "dead.onnx", frozen=["scores"])
    segmenter(folder / "segmenter.onnx")
    segmenter(folder / "segmenter_rounded.onnx", steps={"logits": 0.35})
    segmenter(folder / "segmenter_coarse.onnx", steps={"logits": 40.0})
    return folder


def boxes_word(place: Path, name: str = "boxes") -> str:
    return f"coco:{place / name}.json#images={place / 'images'}"


def masks_word(place: Path) -> str:
    return f"masks:{place}#classes={place / 'classes.txt'}"


def detected(place: Path, *names: str, data: str | None = None, **asked: Any) -> Report:
    options = {"decoding": str(place / "decoding.json"), **QUICK, **asked}
    word = data or boxes_word(place)
    reference = place / "detector.onnx"
    files = [place / f"{name}.onnx" for name in names]
    return compare(files, Options(reference=reference, dataset=word, **options))


def segmented(place: Path, *names: str, **asked: Any) -> Report:
    files = [place / f"segmenter_{name}.onnx" for name in names]
    options = QUICK | asked
    return compare(
        files,
        Options(reference=place / "segmenter.onnx", dataset=masks_word(place), **options),
    )


@pytest.fixture(scope="module")
def boxes(place: Path) -> Report:
    return detected(place, "rounded", "coarse", "dead")


@pytest.fixture(scope="module")
def pixels(place: Path) -> Report:
    return segmented(place, "rounded", "coarse")


def test_a_detector_is_judged_by_its_boxes(boxes: Report) -> None:
    right = boxes.reference.metrics
    assert right["map50"].value == pytest.approx(100)
    assert right["map"].value > 70
    assert right["map50:grey"].value == pytest.approx(100)
    assert boxes.data.class_names == NAMES
    assert boxes.settings["task"] == "detection"
    rounded, coarse, dead = boxes.artifacts
    for metric in ("matched50", "matched90"):
        assert rounded.metrics[metric].value > 95
    change = rounded.metrics["map_change"]
    assert change.unit == "points"
    assert change.low is not None
    assert change.low <= change.value <= change.high
    assert coarse.metrics["map"].value < right["map"].value - 1
    assert coarse.metrics["map_change"].value == pytest.approx(
        coarse.metrics["map"].value - right["map"].value
    )
    assert dead.metrics["map50"].value < 60
    judged = [verdicts.of(result, boxes) for result in boxes.artifacts]
    assert judged[1].verdict == "worse"
    assert judged[2].broken == "dead"


def test_what_changed_is_kept_for_the_page(boxes: Report) -> None:
    dead = boxes.artifacts[2]
    assert dead.box_changes is not None
    assert dead.box_changes.new > 100  # a box of each class in each cell
    first = dead.box_changes.pictures[0]
    assert any(box.alone for box in first.now)
    assert (first.width, first.height) == (SIDE, SIDE)
    assert first.picture
    assert all(0 <= box.left < box.right <= 1 for box in first.right)
    (curve, _) = boxes.reference.curves
    assert curve.count == int((pictures()[1] == 1).sum())
    assert curve.precision[50] == 1
    assert Report.load is not None
    assert "precision" in page(boxes)


def test_the_gate_bounds_boxes(boxes: Report) -> None:
    asked = [
        bounds.parse(side, text)
        for side, text in (("min", "map50=90"), ("min", "map_change=-20"), ("min", "map50:grey=90"))
    ]
    checks = gate(boxes, bounds=asked)
    failed = {(check.artifact, check.metric) for check in checks if check.verdict == "FAIL"}
    assert ("dead.onnx", "map50") in failed
    assert ("dead.onnx", "map50:grey") in failed
    assert not any(artifact == "rounded.onnx" for artifact, _ in failed)


def test_without_labels_boxes_of_the_float_model_are_looked_for(place: Path) -> None:
    report = detected(place, "rounded", data=f"folder:{place / 'images'}")
    (rounded,) = report.artifacts
    assert rounded.metrics["matched50"].value > 95
    assert not any(name.startswith("map") for name in rounded.metrics)
    assert verdicts.of(rounded, report).accuracy == "unknown"


def test_boxes_of_other_pictures_are_named(place: Path) -> None:
    with pytest.raises(InvalidDataError, match="labels do not fit.*mAP50.*--allow-chance"):
        detected(place, "rounded", data=boxes_word(place, "others"))
    report = detected(place, "rounded", data=boxes_word(place, "others"), allow_chance=True)
    assert report.fit is not None
    assert report.fit.problem == "chance"
    assert verdicts.of(report.artifacts[0], report).accuracy == "unknown"


def test_pixels_are_judged_by_their_class(pixels: Report) -> None:
    right = pixels.reference.metrics
    assert right["miou"].value > 99
    assert right["iou:background"].value > 99
    rounded, coarse = pixels.artifacts
    assert rounded.metrics["pixel_agreement"].value > 99
    assert coarse.metrics["miou"].value < 99
    assert verdicts.of(coarse, pixels).verdict == "dead"
    assert coarse.confusion is not None
    counts = np.array(coarse.confusion.counts)
    assert counts.sum() == COUNT * (SIDE - 1) * SIDE  # the first row is void
    assert coarse.mask_changes is not None
    shown = coarse.mask_changes.pictures[0]
    assert shown.agreement < 100
    right_classes = shown.classes(shown.right)
    assert set(np.unique(right_classes)) <= {0, 1, 2, 255}
    assert "IoU" in page(pixels)


def test_a_function_of_the_user(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_of_boxes.py").write_text(
        "import numpy as np\n"
        "def each(found, right):\n    return np.diff(found.offsets) - np.diff(right.offsets)\n"
        "def total(found, right):\n    return len(right.classes)\n"
        "def bad(found, right):\n    return np.zeros(3)\n"
        "def nan(found, right):\n    return float('nan')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("mine_of_boxes:each", "mine_of_boxes:total")
    report = detected(place, "rounded", metric=words)
    total = report.reference.metrics["metric:total"]
    assert total.value == int((pictures()[1] > 0).sum())
    assert total.low is None
    assert report.reference.metrics["metric:each"].low is not None
    for word, said in (("bad", "expected a number, or one for each of 80"), ("nan", "NaN")):
        (function,) = load([f"mine_of_boxes:{word}"])
        with pytest.raises(InvalidDataError, match=said):
            function.measure(None, None, COUNT)
    for wrong in ("mine_of_boxes", "no_such_module:f", "mine_of_boxes:absent"):
        with pytest.raises(InvalidOptionError):
            load([wrong])
    with pytest.raises(InvalidOptionError, match="two functions"):
        load(["mine_of_boxes:each", "mine_of_boxes:each"])


def test_bisection_asks_for_boxes_and_pixels(place: Path, tmp_path: Path) -> None:
    words = [str(place / "detector.onnx"), "--out", str(tmp_path / "all")]
    words += ["--preprocessing", "unit", "--decoding", str(place / "decoding.json")]
    words += ["--precision", "int8", "--target", "onnx", "--data", boxes_word(place)]
    words += ["--calibration", f"folder:{place / 'images'}", "--no-latency"]
    assert deploy_main(words) == 0
    written = next((tmp_path / "all").glob("*-onnx-int8"))
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["task"] == "detection"
    assert manifest["decoding"]["boxes"] == ["boxes"]
    layers = [str(place / "detector.onnx"), str(written), "--layers", "--bisect", "90%"]
    layers += ["--data", f"folder:{place / 'images'}", "--reference", str(place / "detector.onnx")]
    assert main([*layers, "--preprocessing", "unit"]) in (0, 2)
