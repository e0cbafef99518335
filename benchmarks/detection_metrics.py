"""Time of mAP over many boxes beside pycocotools and faster-coco-eval, on the same boxes.

    python benchmarks/detection_metrics.py [--images 5000] [--boxes 100] [--classes 80] [--rounds 3]

Right and found boxes are drawn from a seed: crowds, all areas, empty pictures, equal scores. Each
side starts from boxes in its own form in memory and gives the twelve numbers that COCO prints;
making the dictionaries of the others is not counted. Rounds alternate in one process; quoted is
the ratio of CPU time, the median of rounds. What edgekit also does is named as well: 500
resamples of the pictures, which the others do not have. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_detection_metrics import as_coco, detected, random_truth, twelve  # noqa: E402

from edgekit.records import environment  # noqa: E402
from edgekit.tasks import detection  # noqa: E402


def quiet(work: Callable[[], Any]) -> Any:
    """What a function gives, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


def by_pycocotools(right: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    base = COCO()
    base.dataset = right
    base.createIndex()
    judge = COCOeval(base, base.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return np.asarray(judge.stats)


def by_faster(right: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    from faster_coco_eval import COCO, COCOeval_faster

    base = COCO(right)
    judge = COCOeval_faster(base, base.loadRes(results), "bbox")
    judge.run()
    return np.asarray(judge.stats)[:12]


def main() -> None:
    """Alternate the three and print ratios."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 5000), ("boxes", 100), ("classes", 80), ("rounds", 3)):
        options.add_argument(f"--{name}", type=int, default=default)
    chosen = options.parse_args()
    truth = random_truth(chosen.images, 0, chosen.classes)
    found = detected(truth, 1, chosen.boxes, chosen.classes)
    right, results = as_coco(truth, found, chosen.classes)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "edgekit": lambda: twelve(detection.match(truth, found, chosen.classes)),
        "faster-coco-eval": lambda: by_faster(right, [dict(each) for each in results]),
        "pycocotools": lambda: by_pycocotools(right, [dict(each) for each in results]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    numbers: dict[str, np.ndarray] = {}
    for _ in range(chosen.rounds):
        for name, way in ways.items():
            started = time.process_time()
            numbers[name] = quiet(way)
            seconds[name].append(time.process_time() - started)
    matches = detection.match(truth, found, chosen.classes)
    started = time.process_time()
    detection.resample(matches)
    resampling = time.process_time() - started
    for name in ways:
        off = float(np.abs(numbers[name] - numbers["pycocotools"]).max())
        ratios = [
            own / base for own, base in zip(seconds[name], seconds["pycocotools"], strict=True)
        ]
        print(
            f"{name}: {statistics.median(seconds[name]):.2f} s of CPU, "
            f"{statistics.median(ratios):.3f} of pycocotools, differs by {off:.1e} at most"
        )
    print(f"edgekit, 500 resamples of the pictures: {resampling:.2f} s of CPU")
    own = [a / b for a, b in zip(seconds["edgekit"], seconds["pycocotools"], strict=True)]
    print(
        json.dumps(
            {
                "images": chosen.images,
                "boxes": chosen.boxes,
                "classes": chosen.classes,
                "seconds": {name: statistics.median(each) for name, each in seconds.items()},
                "ratio": statistics.median(own),
                "largest_difference": float(
                    np.abs(numbers["edgekit"] - numbers["pycocotools"]).max()
                ),
                "resampling_seconds": resampling,
                "machine": environment.describe().machine_class,
            }
        )
    )


if __name__ == "__main__":
    main()
