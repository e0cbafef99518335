"""Read outputs as answers to the task of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgekit.base.errors import InvalidOptionError
from edgekit.data.boxes import Views
from edgekit.evaluation import detections, segments
from edgekit.evaluation.answers import Answers, Classes, Loss, Numbers, Outputs
from edgekit.evaluation.detections import Detections
from edgekit.evaluation.options import Options
from edgekit.evaluation.samples import Samples
from edgekit.evaluation.segments import Segments
from edgekit.tasks import decode, segmentation
from edgekit.tasks.kind import numbered


def reader(
    samples: Samples, sizes: Mapping[str, tuple[int, ...]], options: Options
) -> Callable[[Outputs], Answers]:
    """What makes answers of a model's outputs ``[N, M]``.

    Args:
        samples: The samples, with their task settled.
        sizes: Sizes of one sample of each output, in order, by name.
        options: Options of the comparison.

    Raises:
        InvalidOptionError: If nothing says how a detector's outputs become boxes.
        InvalidDataError: If outputs cannot be read as the task asks.
    """
    right, images = samples.right, samples.images
    loss = Loss(options.bound, options.power)
    if right.task == "classification":
        return lambda outputs: Classes.of(outputs, right.labels, loss)
    if right.task == "segmentation":
        classes = len(samples.names) or _most(sizes)
        layout = segmentation.layout(next(iter(sizes.values())), classes)
        names = samples.names or numbered(classes)
        masks = segments.Truth(layout, images.masks, images.views, names, loss)
        return lambda outputs: Segments(outputs, masks)
    if right.task == "detection":
        decoding = samples.decoding
        if decoding is None:
            raise InvalidOptionError(
                "nothing says how the outputs of this detector become boxes; pass --decoding"
            )
        height, width = samples.picture
        views = images.views or Views.whole(len(images), height, width)
        boxes = detections.Truth(images.boxes, views, samples.names, loss)
        return lambda outputs: Detections(
            decode.decode(decode.by_name(outputs, sizes), decoding, views, (height, width)), boxes
        )
    return lambda outputs: Numbers(outputs, right.truth)


def _most(sizes: Mapping[str, tuple[int, ...]]) -> int:
    """Classes of an output ``[h, w, C]`` or ``[C, h, w]`` of a model that does not name them."""
    size = next(iter(sizes.values()))
    return min(size[0], size[-1]) if len(size) == 3 else 0
