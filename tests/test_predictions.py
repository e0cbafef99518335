"""What a report keeps of the predictions of detectors and segmentation networks."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from test_gate import artifact, make

from edgekit.base.errors import ReportError
from edgekit.records.predictions import (
    Box,
    BoxChanges,
    BoxPicture,
    Confusion,
    Curve,
    MaskChanges,
    MaskPicture,
    pack_classes,
)
from edgekit.records.results import Report

CLASSES = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
BOX = Box(0.1, 0.2, 0.5, 0.9, 3, 0.75, alone=True)
BOXES = BoxChanges(2, 1, 1, 0.3, (BoxPicture(7, 320, 240, (BOX,), (), (BOX,), lost=1),))
MASKS = MaskChanges(
    1, (MaskPicture(4, 3, 2, pack_classes(CLASSES), pack_classes(CLASSES), agreement=97.5),)
)


def test_a_report_with_them_is_read_back_equal(tmp_path: Path) -> None:
    result = dataclasses.replace(
        artifact("a", 50),
        box_changes=BOXES,
        mask_changes=MASKS,
        curves=(Curve(3, 12, (0.0, 0.5, 1.0), (1.0, 0.9, 0.2)),),
        confusion=Confusion(((5, 1), (0, 7))),
    )
    report = make(result)
    path = tmp_path / "report.json"
    path.write_text(report.dumps(), encoding="utf-8")
    assert Report.load(path) == report


def test_a_report_of_before_has_none() -> None:
    before = json.loads((ROOT / "exports" / "baseline.json").read_text(encoding="utf-8"))
    assert "box_changes" not in before["reference"]
    for result in Report.load(ROOT / "exports" / "baseline.json").artifacts:
        kept = result.box_changes, result.mask_changes, result.curves, result.confusion
        assert kept == (None, None, (), None)


def test_classes_are_packed_and_unpacked() -> None:
    (picture,) = MASKS.pictures
    assert (picture.classes(picture.now) == CLASSES).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<", "not packed"),
        (base64.b64encode(b"none").decode(), "not packed"),
        (pack_classes(CLASSES[:1]), "expected 3 x 2 classes, got 3"),
        # a small text that would fill the memory is not unpacked
        (base64.b64encode(zlib.compress(bytes(1 << 24))).decode(), "3 x 2 classes, got more"),
    ],
)
def test_broken_class_maps_are_refused(text: str, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        MaskPicture(0, 3, 2, pack_classes(CLASSES), text)


@pytest.mark.parametrize(
    ("kept", "changes", "message"),
    [
        (BOX, {"left": float("nan")}, "left, top, right, bottom"),
        (BOX, {"left": 0.6}, "left, top, right, bottom"),
        (BOX, {"score": 1.5}, "from 0 to 1"),
        (BOX, {"number": -1}, "from 0"),
        (BOXES.pictures[0], {"width": 0}, "picture 7 .*a size"),
        (BOXES.pictures[0], {"picture": "AAAA"}, "picture 7 .*not a PNG"),
        (BOXES, {"images": 0}, "at most 0 pictures"),
        (MASKS, {"images": 0}, "at most 0 pictures"),
        (MASKS.pictures[0], {"agreement": 101.0}, "picture 4 .*agreement"),
        (MASKS.pictures[0], {"width": 1 << 20}, "class maps of up to 1,048,576 pixels"),
        (MASKS.pictures[0], {"picture": "<"}, "not base64"),
        (Curve(0, 1, (0.5,), (1.0,)), {"precision": ()}, "got 1 and 0"),
        (Curve(0, 1, (0.5,), (1.0,)), {"precision": (-1.0,)}, "precisions from 0 to 1"),
        (Curve(0, 1, (0.5, 0.7), (1.0, 1.0)), {"recall": (0.7, 0.5)}, "rise"),
        (Confusion(((1,),)), {"counts": ((1, 2),)}, "1 x 1"),
        (Confusion(((1,),)), {"counts": ((-1,),)}, ">= 0"),
    ],
)
def test_what_cannot_be_is_refused(kept: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        dataclasses.replace(kept, **changes)
