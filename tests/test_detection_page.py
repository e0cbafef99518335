"""The commands of docs/how-to/detection.md: from annotated pictures to a gated int8 detector."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from PIL import Image

from edgekit import data
from edgekit.base import shipped

PAGE = ROOT / "docs" / "how-to" / "detection.md"
#: Pictures that are written as a COCO set.
COUNT = 48


def commands() -> list[list[str]]:
    """The first block of commands of the page."""
    block = PAGE.read_text(encoding="utf-8").split("```")[1]
    lines = block.replace("\\\n", " ").strip().splitlines()
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Scenes as pictures and a COCO file."""
    folder = tmp_path_factory.mktemp("coco")
    scenes = data.load(f"scenes#count={COUNT}", "test")
    assert scenes.boxes is not None
    images, annotations = [], []
    for i, boxes in enumerate(scenes.boxes):
        Image.fromarray(scenes.images[i, ..., 0]).save(folder / f"{i:03}.png")
        height, width = scenes.images.shape[1:3]
        images.append({"id": i, "file_name": f"{i:03}.png", "width": width, "height": height})
        for corners, number in zip(boxes.corners.tolist(), boxes.classes.tolist(), strict=True):
            left, top, right, bottom = corners
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": number + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(scenes.class_names)]
    document: dict[str, Any] = {
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "boxes.json").write_text(json.dumps(document))
    return f"coco:{folder / 'boxes.json'}"


def go_on_with_the_shipped_detector(trained: Path) -> None:
    """Put it in the place of a detector of one epoch, which finds nothing."""
    task = json.loads((trained / "manifest.json").read_text())["task"]
    assert task == "detection"
    shutil.rmtree(trained)
    shutil.copytree(shipped.folder("exports", "scenes_ssdlite_035"), trained)
    manifest = json.loads((trained / "manifest.json").read_text())
    (trained / "manifest.json").write_text(json.dumps(manifest | {"model_id": trained.name}))


@pytest.mark.slow
def test_the_commands_of_the_page(coco: str, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    own = {"--size": "96", "--epochs": "1"}
    seen = []
    for words in commands():
        assert words[:2] == ["python", "-m"]
        arguments = [
            word.replace("voc:BCCD#split=train,samples=100", f"{coco}#samples=24")
            .replace("voc:BCCD#split=train", coco)
            .replace("voc:BCCD#split=test", coco)
            for word in words[3:]
        ]
        for option, value in own.items():
            if option in arguments:
                arguments[arguments.index(option) + 1] = value
        module = words[2]
        if module == "edgekit.compare":
            arguments.append("--no-latency")
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        # of 48 pictures, half a point of mAP can be chance
        assert done.returncode in ((0, 1) if module == "edgekit.gate" else (0,)), done.stderr
        if module == "edgekit.train":
            go_on_with_the_shipped_detector(tmp_path / "exports" / "cells")
        seen.append(module.partition(".")[2])
    assert seen == ["data", "train", "export", "parity", "compare", "report", "gate"]
    report = json.loads((tmp_path / "build" / "cells.json").read_text())
    assert report["settings"]["task"] == "detection"
    metrics = report["artifacts"][0]["metrics"]
    assert metrics["map50"]["value"] > 60
    assert metrics["matched50"]["value"] > 90
    assert abs(metrics["map_change"]["value"]) < 5
