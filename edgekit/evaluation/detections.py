"""What a detector's outputs mean: boxes, beside the right ones and the float model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.data.boxes import Boxes, Views
from edgekit.evaluation.answers import Answers, Loss, Shown
from edgekit.evaluation.changes import picture
from edgekit.records import stats
from edgekit.records.fidelity import Fidelity
from edgekit.records.predictions import Box, BoxChanges, BoxPicture, Curve
from edgekit.records.results import LabelFit, Measurement
from edgekit.tasks import bootstrap, detection
from edgekit.tasks.bootstrap import Resampled
from edgekit.tasks.detection import Matches

#: Boxes of a picture that are shown, of each kind.
_SHOWN = 50
#: Pictures on which labels are tried, how often with those of other pictures, and mAP50 in % from
#: which on they fit whatever chance would be.
_FITTED, _SHIFTS, _UNFIT = 200, 20, 20.0
#: Longer edge of a picture of the page, at most: boxes of small objects are to be seen in it.
_EDGE = 192


@dataclass(frozen=True)
class Truth:
    """What is known of the pictures that a detector ran on.

    Attributes:
        boxes: The right ones; None where nobody knows.
        views: The part of its picture that each image shows.
        names: Names of the classes, one each.
        loss: The loss that has to be noticed.
    """

    boxes: Boxes | None
    views: Views
    names: tuple[str, ...]
    loss: Loss


@dataclass(frozen=True)
class Detections(Answers):
    """Boxes of each picture.

    Attributes:
        found: Of all pictures, in their pixels.
        truth: What they are compared with.
    """

    found: Boxes
    truth: Truth

    @cached_property
    def _matches(self) -> Matches | None:
        truth = self.truth
        if truth.boxes is None:
            return None
        return detection.match(truth.boxes, self.found, len(truth.names))

    @cached_property
    def _resampled(self) -> Resampled | None:
        return None if self._matches is None else detection.resample(self._matches)

    @property
    def for_functions(self) -> tuple[Any, Any]:
        """Found and right boxes."""
        return self.found, self.truth.boxes

    def label_fit(self) -> LabelFit | None:
        """Whether found boxes are at the right ones of their own picture more often than at those
        of another one; mAP50 in % in place of the accuracy."""
        truth = self.truth.boxes
        if truth is None or len(truth) < 2:
            return None
        few = np.arange(min(len(truth), _FITTED))
        right, found = truth.take(few), self.found.take(few)
        classes = len(self.truth.names)
        if not right.offsets[-1] or (right.crowd is not None and right.crowd.all()):
            return None
        own = _map50(right, found, classes)
        generator = np.random.default_rng(0)
        shifts = generator.permutation(np.arange(1, len(few)))[:_SHIFTS]
        others = [_map50(right.take(np.roll(few, shift)), found, classes) for shift in shifts]
        p = (1 + sum(other >= own for other in others)) / (1 + len(others))
        chance = float(np.mean(others))
        unfit = p > stats.SIGNIFICANT and own < _UNFIT and len(others) == _SHIFTS
        return LabelFit(own, chance, p, "chance" if unfit else "")

    def metrics(self, reference: Detections, judged: Sequence[Fidelity]) -> dict[str, Measurement]:
        """mAP and its change, if the right boxes are known, and the boxes that both have."""
        metrics = {}
        before, own = reference._resampled, self._resampled
        if before is not None and own is not None:
            assert self._matches is not None and reference._matches is not None
            metrics = detection.metrics(self._matches, self.truth.names, own)
            both = reference._matches, self._matches
            metrics |= detection.change(*both, (before, own))
            loss = self.truth.loss
            metrics["images_needed"] = bootstrap.images_needed(
                before, own, "map", drop=loss.bound / 100, power=loss.power
            )
        return metrics | detection.agreement(reference.found, self.found)

    def shown(self, reference: Detections, images: npt.NDArray[Any], pictures: int) -> Shown:
        """Curves of precision, and pictures with boxes that only one of the two found."""
        curves = () if self._matches is None else _curves(self._matches)
        if self is reference:
            return Shown(curves=curves)
        lost = detection.unmatched(reference.found, self.found)
        new = detection.unmatched(self.found, reference.found)
        by_picture = [
            np.bincount(boxes.pictures()[alone], minlength=len(self.found))
            for boxes, alone in ((reference.found, lost), (self.found, new))
        ]
        changed = by_picture[0] + by_picture[1]
        most = np.argsort(-changed, kind="stable")[: min(pictures, int((changed > 0).sum()))]
        changes = BoxChanges(
            images=int((changed > 0).sum()),
            lost=int(lost.sum()),
            new=int(new.sum()),
            score=detection.SURE,
            pictures=tuple(
                BoxPicture(
                    index=int(i),
                    width=max(1, round(float(self.truth.views.regions[i, 2]))),
                    height=max(1, round(float(self.truth.views.regions[i, 3]))),
                    before=self._boxes(reference.found, int(i), lost),
                    now=self._boxes(self.found, int(i), new),
                    right=() if self.truth.boxes is None else self._boxes(self.truth.boxes, int(i)),
                    lost=int(by_picture[0][i]),
                    new=int(by_picture[1][i]),
                    picture=picture(images[i], _EDGE),
                )
                for i in most
            ),
        )
        return Shown(box_changes=changes, curves=curves)

    def _boxes(
        self, boxes: Boxes, index: int, alone: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Box, ...]:
        """Those of one picture, as shares of what the image shows of it.

        The small picture of a report is the image that the model saw.
        """
        left, top, width, height = self.truth.views.regions[index].astype(float)
        rows = [
            row
            for row in range(int(boxes.offsets[index]), int(boxes.offsets[index + 1]))
            if boxes.scores is None or boxes.scores[row] >= detection.SURE
        ]
        return tuple(
            Box(
                left=round((float(boxes.corners[row, 0]) - left) / width, 4),
                top=round((float(boxes.corners[row, 1]) - top) / height, 4),
                right=round((float(boxes.corners[row, 2]) - left) / width, 4),
                bottom=round((float(boxes.corners[row, 3]) - top) / height, 4),
                number=int(boxes.classes[row]),
                score=None if boxes.scores is None else round(float(boxes.scores[row]), 4),
                alone=alone is not None and bool(alone[row]),
            )
            for row in rows[:_SHOWN]
        )


def _map50(truth: Boxes, found: Boxes, classes: int) -> float:
    """mAP50 in %."""
    return 100 * detection.score(detection.match(truth, found, classes)).mean(0.5)


def _curves(matches: Matches) -> tuple[Curve, ...]:
    """Precision over recall of each class that has right boxes."""
    counts = matches.of_class()[0]
    recalls = tuple(round(float(recall), 4) for recall in detection.RECALLS)
    return tuple(
        Curve(
            number=number,
            count=int(counts[number]),
            recall=recalls,
            precision=tuple(round(float(each), 4) for each in precision),
        )
        for number, precision in enumerate(detection.curves(matches))
        if counts[number]
    )
