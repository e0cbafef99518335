"""Read outputs as answers to the task of a comparison."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.evaluation import detections, segments
from edgekit.evaluation.answers import Answers, Classes, Loss, Numbers, Outputs
from edgekit.evaluation.detections import Detections
from edgekit.evaluation.segments import Segments
from edgekit.tasks.kind import Right, numbered


def reader(right: Right, loss: Loss) -> Callable[[Outputs], Answers]:
    """What makes answers of a model's outputs ``[N, M]``.

    Args:
        right: The task, settled, and what is right.
        loss: The loss that has to be noticed.
    """
    if right.task == "classification":
        return lambda outputs: Classes.of(outputs, right.labels, loss)
    pictures = right.pictures
    if pictures is None:
        return lambda outputs: Numbers(outputs, right.truth)
    if pictures.layout is not None:
        layout = pictures.layout
        names = right.names or numbered(layout.classes)
        masks = segments.Truth(layout, right.masks, pictures.views, names, loss)
        return lambda outputs: Segments(outputs, masks)
    boxes = detections.Truth(right.boxes, pictures.views, right.names, loss)
    return lambda outputs: Detections(pictures.boxes(outputs), boxes)
