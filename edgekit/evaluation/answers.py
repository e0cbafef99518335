"""What the outputs of a model mean for its task, and how right they are.

For each task there is one kind of answers: the predictions of one model, read from its outputs
once. It compares itself with those of the float model. The rest of a report is the same for all
tasks (:mod:`edgekit.evaluation.metrics`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgekit.base.blocks import blocks
from edgekit.evaluation import changes
from edgekit.records import stats
from edgekit.records.fidelity import Fidelity
from edgekit.records.predictions import BoxChanges, Confusion, Curve, MaskChanges
from edgekit.records.results import Changes, LabelFit, Measurement, pack_bits
from edgekit.tasks import kind

Outputs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Loss:
    """The loss of accuracy that has to be noticed.

    Attributes:
        bound: In points.
        power: How often it has to be noticed, of 1.
    """

    bound: float
    power: float


@dataclass(frozen=True)
class Shown:
    """What a report keeps of predictions, as fields of :class:`ArtifactResult`."""

    changes: Changes | None = None
    box_changes: BoxChanges | None = None
    mask_changes: MaskChanges | None = None
    curves: tuple[Curve, ...] = ()
    confusion: Confusion | None = None

    def fields(self) -> dict[str, Any]:
        """By name, as they are."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Answers(ABC):
    """The predictions of one model for all samples."""

    @abstractmethod
    def metrics(self, reference: Self, judged: Sequence[Fidelity]) -> dict[str, Measurement]:
        """How right they are, and how they differ from the reference's.

        Args:
            reference: The float model's; this one itself for the float model.
            judged: Its outputs beside those of the float model.
        """

    @property
    def correct(self) -> str:
        """As :attr:`ArtifactResult.correct`."""
        return ""

    @property
    @abstractmethod
    def for_functions(self) -> tuple[Any, Any]:
        """Predictions and labels, as :mod:`edgekit.evaluation.functions` describes them."""

    def label_fit(self) -> LabelFit | None:
        """Whether the labels are those of the samples, if this is the float model; None where it
        was found out otherwise, or nobody knows."""
        return None

    def shown(self, reference: Self, images: npt.NDArray[Any], pictures: int) -> Shown:
        """Where it predicts otherwise than the reference, as the page shows it.

        Args:
            reference: The float model's.
            images: ``[N, ...]``, what they are predictions for.
            pictures: How many are shown, at most.
        """
        return Shown()


@dataclass(frozen=True)
class Classes(Answers):
    """A class for each sample.

    Attributes:
        scores: ``[N, C]``.
        first: The most probable class of each image, ``[N]``.
        labels: The right class, ``[N]``; None where nobody knows.
        top5: How often the label is among the first five.
    """

    scores: Outputs
    first: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int64] | None
    top5: int
    loss: Loss

    @classmethod
    def of(cls, outputs: Outputs, labels: npt.NDArray[np.int64] | None, loss: Loss) -> Classes:
        """Rank the classes, once."""
        scores = kind.by_class(outputs)
        first = np.empty(len(scores), np.int32)
        top5, start = 0, 0
        for (block,) in blocks(scores):
            order = stats.ranking(block)
            stop = start + len(block)
            first[start:stop] = order[:, 0]
            if labels is not None:
                top5 += int((order[:, :5] == labels[start:stop, None]).any(axis=1).sum())
            start = stop
        return cls(scores, first, labels, top5, loss)

    @property
    def right(self) -> npt.NDArray[np.bool_] | None:
        """Whether each is the label, ``[N]``; None without labels."""
        return None if self.labels is None else self.first == self.labels

    @property
    def correct(self) -> str:
        """As :attr:`ArtifactResult.correct`."""
        return "" if self.right is None else pack_bits(self.right)

    @property
    def for_functions(self) -> tuple[Any, Any]:
        """Scores ``[N, C]`` and labels ``[N]``."""
        return self.scores, self.labels

    def metrics(self, reference: Classes, judged: Sequence[Fidelity]) -> dict[str, Measurement]:
        """Share of equal predictions, and share of right ones if there are labels."""
        count = len(self.first)
        agreement = stats.proportion(int((self.first == reference.first).sum()), count)
        metrics = {"agreement": agreement}
        if self.right is not None and reference.right is not None:
            metrics = {
                "top1": stats.proportion(int(self.right.sum()), count),
                "top5": stats.proportion(self.top5, count),
                "agreement": agreement,
                **_paired(reference.right, self.right, self.loss),
            }
        if stats.is_probability(reference.scores):
            metrics["kl"] = stats.divergence(reference.scores, self.scores)
        return metrics

    def shown(self, reference: Classes, images: npt.NDArray[Any], pictures: int) -> Shown:
        """Images of another class than the reference's; none without labels."""
        if self.labels is None or self is reference:
            return Shown()
        both = (reference.first, self.first)
        return Shown(
            changes.find(reference.scores, self.scores, both, self.labels, images, pictures)
        )


@dataclass(frozen=True)
class Numbers(Answers):
    """Numbers that are no classes.

    Attributes:
        outputs: ``[N, M]``.
        truth: The right numbers, ``[N, M]``; None where nobody knows.
    """

    outputs: Outputs
    truth: npt.NDArray[np.float32] | None

    @property
    def for_functions(self) -> tuple[Any, Any]:
        """Outputs ``[N, M]`` and the right numbers ``[N, M]``."""
        return self.outputs, self.truth

    def metrics(self, reference: Numbers, judged: Sequence[Fidelity]) -> dict[str, Measurement]:
        """Differences from the right numbers, if they are known, and from the reference's."""
        count = len(self.outputs)
        metrics = {}
        if self.truth is not None:
            metrics = stats.truth(self.truth, reference.outputs, self.outputs)
        largest = max(each.max_error for each in judged)
        share = max(each.error_share for each in judged)
        return metrics | {
            "mse": stats.mse(reference.outputs, self.outputs),
            "max_error": Measurement(largest, "unit", count),
            "max_error_share": Measurement(share, "%", count),
        }


def _paired(
    base_right: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_], loss: Loss
) -> dict[str, Measurement]:
    """Change of the accuracy between two sets of predictions for the same samples."""
    count = len(right)
    needed = stats.images_needed(
        discordance=sum(stats.discordant(base_right, right)) / count,
        drop=loss.bound / 100,
        power=loss.power,
    )
    return {
        "top1_change": stats.paired_change(base_right, right),
        "mcnemar_p": stats.mcnemar(base_right, right),
        "images_needed": Measurement(needed, "images", count),
    }
