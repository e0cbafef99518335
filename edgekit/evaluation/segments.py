"""What the outputs of a segmentation network mean: a class for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.data.boxes import Views
from edgekit.data.masks import VOID, Masks
from edgekit.evaluation.answers import Answers, Loss, Outputs, Shown
from edgekit.evaluation.changes import picture
from edgekit.records import stats
from edgekit.records.fidelity import Fidelity
from edgekit.records.predictions import Confusion, MaskChanges, MaskPicture, pack_classes
from edgekit.records.results import LabelFit, Measurement
from edgekit.tasks import bootstrap, segmentation
from edgekit.tasks.bootstrap import Resampled
from edgekit.tasks.segmentation import Layout

#: Longer edge of a class map and of a picture of the page, at most.
_EDGE = 96


@dataclass(frozen=True)
class Truth:
    """What is known of the pictures that a segmentation network ran on.

    Attributes:
        layout: How a sample of the outputs is read.
        masks: The right classes; None where nobody knows.
        views: The part of its picture that each image shows; None for all of it.
        names: Names of the classes, one each.
        loss: The loss that has to be noticed.
    """

    layout: Layout
    masks: Masks | None
    views: Views | None
    names: tuple[str, ...]
    loss: Loss


@dataclass(frozen=True)
class Segments(Answers):
    """A class for each pixel of each picture.

    Attributes:
        outputs: float32 ``[N, M]``.
        truth: What they are compared with.
    """

    outputs: Outputs
    truth: Truth

    @cached_property
    def _confused(self) -> segmentation.Confusion | None:
        truth = self.truth
        if truth.masks is None:
            return None
        return segmentation.confusion(self.outputs, truth.layout, truth.masks, truth.views)

    @cached_property
    def _resampled(self) -> Resampled | None:
        return None if self._confused is None else segmentation.resample(self._confused)

    @property
    def for_functions(self) -> tuple[Any, Any]:
        """Class maps, predicted and right, of the output's size."""
        maps = _Maps(self.outputs, self.truth)
        return maps, None if self.truth.masks is None else _Right(maps)

    def label_fit(self) -> LabelFit | None:
        """Whether more pixels are right than if classes lay anywhere, as often as they do; mIoU in
        % in place of the accuracy."""
        confused, resampled = self._confused, self._resampled
        if confused is None or resampled is None or confused.matrix.shape[0] < 2:
            return None
        if len(confused.sums) < 2:
            return None
        shares = confused.matrix / confused.matrix.sum()
        right, predicted = shares.sum(axis=1), shares.sum(axis=0)
        both = right * predicted
        there = right + predicted > 0
        chance = float((both[there] / (right + predicted - both)[there]).mean())
        p = float((1 + (resampled.values["miou"] <= chance).sum()) / (1 + bootstrap.RESAMPLES))
        unfit = p > stats.SIGNIFICANT
        return LabelFit(100 * confused.miou(), 100 * chance, p, "chance" if unfit else "")

    def metrics(self, reference: Segments, judged: Sequence[Fidelity]) -> dict[str, Measurement]:
        """mIoU and its change, if the right classes are known, and pixels with the same class."""
        metrics = {}
        before, own = reference._resampled, self._resampled
        if before is not None and own is not None:
            assert self._confused is not None and reference._confused is not None
            metrics = segmentation.metrics(self._confused, self.truth.names, own)
            both = reference._confused, self._confused
            metrics |= segmentation.change(*both, (before, own))
            loss = self.truth.loss
            metrics["images_needed"] = bootstrap.images_needed(
                before, own, "miou", drop=loss.bound / 100, power=loss.power
            )
        return metrics | self._agreement(reference)[0]

    def _agreement(
        self, reference: Segments
    ) -> tuple[dict[str, Measurement], npt.NDArray[np.float64]]:
        """``pixel_agreement``, and the share of each picture, of 1."""
        same = segmentation.agreement(reference.outputs, self.outputs, self.truth.layout)
        return same[0], same[2]

    def shown(self, reference: Segments, images: npt.NDArray[Any], pictures: int) -> Shown:
        """The confusion of pixels, and pictures in which most of them changed."""
        confusion = None
        if self._confused is not None:
            rows = self._confused.matrix.tolist()
            confusion = Confusion(tuple(tuple(row) for row in rows))
        if self is reference:
            return Shown(confusion=confusion)
        shares = self._agreement(reference)[1]
        changed = int((shares < 1).sum())
        most = np.argsort(shares, kind="stable")[: min(pictures, changed)]
        changes = MaskChanges(
            images=changed,
            pictures=tuple(
                self._picture(reference, int(i), float(shares[i]), images[i]) for i in most
            ),
        )
        return Shown(mask_changes=changes, confusion=confusion)

    def _picture(
        self, reference: Segments, index: int, share: float, image: npt.NDArray[Any]
    ) -> MaskPicture:
        """Class maps of one picture, of what the image shows of it."""
        layout = self.truth.layout
        step = max(1, -(-max(layout.height, layout.width) // _EDGE))
        maps = [
            segmentation.chosen(each.outputs[index], layout, index)[::step, ::step]
            for each in (reference, self)
        ]
        height, width = maps[0].shape
        right = ""
        if self.truth.masks is not None:
            right = pack_classes(_seen(self.truth.masks[index], self.truth.views, index, maps[0]))
        return MaskPicture(
            index=index,
            width=width,
            height=height,
            before=pack_classes(np.ascontiguousarray(maps[0])),
            now=pack_classes(np.ascontiguousarray(maps[1])),
            right=right,
            agreement=round(100 * share, 4),
            picture=picture(image, _EDGE),
        )


@dataclass(frozen=True)
class _Maps:
    """Predicted class maps, made one by one."""

    outputs: Outputs
    truth: Truth

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        return segmentation.chosen(self.outputs[index], self.truth.layout, index)


@dataclass(frozen=True)
class _Right:
    """The right class maps of the same size."""

    like: _Maps

    def __len__(self) -> int:
        return len(self.like)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        truth = self.like.truth
        assert truth.masks is not None
        return _seen(truth.masks[index], truth.views, index, self.like[index])


def _seen(
    mask: npt.NDArray[np.uint8], views: Views | None, index: int, like: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """What the image shows of a mask, in the size of a class map; void beyond the picture."""
    left, top, width, height = 0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])
    if views is not None:
        left, top, width, height = (float(each) for each in views.regions[index])
    y = np.floor(top + (np.arange(like.shape[0]) + 0.5) * height / like.shape[0]).astype(int)
    x = np.floor(left + (np.arange(like.shape[1]) + 0.5) * width / like.shape[1]).astype(int)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))
    small = mask[np.clip(y, 0, mask.shape[0] - 1)][:, np.clip(x, 0, mask.shape[1] - 1)]
    return np.where(inside, small, np.uint8(VOID))
