"""Task: what the outputs of a model are, classes, numbers, boxes or pixels, and what is right.

A shape ``[N, k]`` does not tell: scores of k classes look like a vector of k numbers. These tell,
in this order: ``--task`` of the export or the comparison; class names; a softmax or sigmoid as the
last layer; labels of the data (integers are classes, floats are numbers); rows of outputs that are
probabilities. If nothing tells, the outputs are numbers.

Outputs are boxes where a decoding says how they are read (:mod:`edgekit.tasks.presets`), and
classes of pixels where the data has masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.data import ImageSet
from edgekit.data.boxes import Boxes, Views
from edgekit.data.masks import Masks
from edgekit.records import stats
from edgekit.records.artifact import Manifest
from edgekit.records.decoding import Decoding
from edgekit.records.signature import TensorSpec
from edgekit.tasks import decode, presets, segmentation
from edgekit.tasks.segmentation import Layout

Task = Literal["classification", "regression", "detection", "segmentation"]
TASKS: tuple[Task, ...] = get_args(Task)
HELP = "what the outputs are, where neither the model nor the labels say it"


def numbered(classes: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(str(i) for i in range(classes))


def scores(outputs: Sequence[TensorSpec]) -> int:
    """Numbers of a sample of the one output, if they could be a score for each class; else 0.

    One number could be that of the second of two classes.
    """
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        return 0
    return max(0, outputs[0].shape[1])


def check(task: str | None, outputs: Sequence[TensorSpec]) -> None:
    """Refuse a task that is unknown, or that outputs cannot be for.

    Raises:
        InvalidOptionError: If it is one of them.
    """
    if task is None:
        return
    if task not in TASKS:
        raise InvalidOptionError(f"expected task {' or '.join(TASKS)}, got {task!r}")
    if task == "classification" and not scores(outputs):
        raise InvalidOptionError(
            f"--task classification: expected one output [N, classes], got {in_words(outputs)}"
        )
    if task == "segmentation" and (len(outputs) != 1 or len(outputs[0].sample) not in (2, 3)):
        raise InvalidOptionError(
            f"--task segmentation: expected one output [N, h, w, classes], [N, classes, h, w] or "
            f"[N, h, w], got {in_words(outputs)}"
        )


def of_decoding(task: Task | None, decoding: str | None) -> Task | None:
    """The task that the user asks for: one who says how boxes are read has a detector.

    Raises:
        InvalidOptionError: If there is a decoding of another task, or it is none.
    """
    if decoding is None:
        return task
    if task not in (None, "detection"):
        raise InvalidOptionError(
            f"--decoding is of detectors; leave it out or leave out --task {task}"
        )
    presets.known(decoding)
    return "detection"


def in_words(outputs: Sequence[TensorSpec]) -> str:
    """Names and sizes of outputs."""
    return ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)


@dataclass(frozen=True)
class Right:
    """What a comparison knows of labels.

    Attributes:
        task: None where nothing says it before a model has run.
        asked: Whether the user said it.
        labels: int64 ``[N]``: the right class of each sample; None where nobody knows.
        truth: float32 ``[N, M]``: the right numbers; None where nobody knows.
        names: Names of the classes; empty where outputs are none for sure.
        unused: What became of labels that have no use; empty where there are none.
        boxes: The right boxes of each picture; None where nobody knows.
        masks: The right classes of pixels, a mask a picture; None where nobody knows.
        pictures: How outputs and pictures belong together, of detection and segmentation.
    """

    task: Task | None
    asked: bool = False
    labels: npt.NDArray[np.int64] | None = None
    truth: npt.NDArray[np.float32] | None = None
    names: tuple[str, ...] = ()
    unused: str = ""
    boxes: Boxes | None = None
    masks: Masks | None = None
    pictures: Pictures | None = None

    def beside(self, outputs: Sequence[TensorSpec]) -> Right:
        """The same for outputs as the reference gives them, in its order and layout.

        Args:
            outputs: Those of the reference, each with a partner of the same name or sizes.
        """
        if self.pictures is None:
            return self
        return replace(self, pictures=self.pictures.beside(outputs))


@dataclass(frozen=True)
class Pictures:
    """How the outputs of a detector or a segmentation network belong to pictures.

    Attributes:
        views: The part of its picture that each input shows.
        input_size: Height and width of the input.
        sizes: Sizes of one sample of each output, by name, in order.
        decoding: How outputs become boxes; None of segmentation.
        layout: How the output holds classes of pixels; None of detection.
    """

    views: Views
    input_size: tuple[int, int]
    sizes: dict[str, tuple[int, ...]]
    decoding: Decoding | None = None
    layout: Layout | None = None

    def beside(self, outputs: Sequence[TensorSpec]) -> Pictures:
        """As :meth:`Right.beside`."""
        sizes = {spec.name: tuple(spec.sample) for spec in outputs}
        if sizes == self.sizes and list(sizes) == list(self.sizes):
            return self
        layout, decoding = self.layout, self.decoding
        if layout is not None:
            layout = segmentation.layout(next(iter(sizes.values())), layout.classes)
        if decoding is not None and set(sizes) != set(self.sizes):
            left = dict(self.sizes)
            names = {}
            for name, size in sizes.items():
                own = next((each for each in left if left[each] == size), None)
                if own is not None:
                    names[own] = name
                    del left[own]
            decoding = decoding.renamed(names)
        return replace(self, sizes=sizes, layout=layout, decoding=decoding)

    def boxes(self, outputs: npt.NDArray[np.float32]) -> Boxes:
        """Boxes of all pictures, of outputs ``[N, M]``.

        Raises:
            InvalidDataError: As :func:`edgekit.tasks.decode.decode`.
        """
        assert self.decoding is not None
        return decode.decode_all(outputs, self.sizes, self.decoding, self.views, self.input_size)


def declared(manifest: Manifest, asked: Task | None) -> Task | None:
    """What the user or the manifest says; None where neither does.

    Names that are numbers say nothing: manifests of before had them for any output ``[N, k]``.
    """
    if asked is not None:
        return asked
    names = manifest.class_names
    if manifest.task:
        return manifest.task
    if manifest.decoding is not None:
        return "detection"
    return "classification" if names and names != numbered(len(names)) else None


def names(manifest: Manifest, task: Task | None) -> tuple[str, ...]:
    """Names of the classes that outputs may be of; empty where they are none for sure."""
    if task in ("detection", "segmentation"):
        return manifest.class_names
    classes = scores(manifest.signature.outputs)
    if task == "regression" or classes < 2:
        return ()
    return manifest.class_names or numbered(classes)


def right(
    images: ImageSet,
    manifest: Manifest,
    asked: Task | None,
    *,
    as_array: bool,
    decoding: str | None = None,
) -> Right:
    """Match what the data knows with what the model's outputs can be.

    Args:
        images: The data, with its labels if it has any.
        manifest: Manifest of a deployable.
        asked: ``--task``.
        as_array: Whether labels were given as an array, rather than implied by, say, the
            folders that pictures lie in.
        decoding: ``--decoding``; default the manifest's.

    Raises:
        InvalidDataError: If labels were given that do not fit the outputs; of a detector, if
            nothing says how outputs become boxes, or if it has not the classes of the data.
    """
    outputs = manifest.signature.outputs
    task = declared(manifest, asked)
    if images.boxes is not None or images.masks is not None or task in _OF_PICTURES:
        return _of_pictures(images, manifest, task, decoding, asked=asked is not None)
    known = names(manifest, task)
    count = scores(outputs)
    undecided = Right(task, asked is not None, names=known)
    if images.truth is not None:
        if task == "classification":
            raise InvalidDataError(
                f"{images.name}: expected y as integer classes [N] of {in_words(outputs)}, got "
                f"numbers [N, {images.truth.shape[1]}]; if the outputs are numbers, pass --task "
                f"regression"
            )
        numbers = outputs[0].numbers
        if len(outputs) != 1 or numbers not in (-1, images.truth.shape[1]):
            raise InvalidDataError(
                f"{images.name}: expected y of one output with as many numbers per sample, got "
                f"{images.truth.shape[1]} for {in_words(outputs)}; leave y out to compare with the "
                f"float model only"
            )
        return Right("regression", asked is not None, truth=images.truth)
    if images.labels is None:
        return undecided
    if count and task != "regression":
        return Right(
            task if count == 1 else "classification", undecided.asked, images.labels, None, known
        )
    if count == 1 and as_array:
        return Right("regression", undecided.asked, truth=images.labels[:, None].astype(np.float32))
    said = f"labels of classes do not fit {in_words(outputs)}"
    fix = "; pass --task classification if it has a score for each class" if count else ""
    if as_array:
        raise InvalidDataError(f"{images.name}: {said}; leave y out{fix}")
    return Right(task, undecided.asked, unused=f"{images.name}: {said} and are not used{fix}")


_OF_PICTURES: dict[str, str] = {"detection": "boxes", "segmentation": "masks"}


def _of_pictures(
    images: ImageSet, manifest: Manifest, task: Task | None, decoding: str | None, *, asked: bool
) -> Right:
    """As :func:`right`, of detection and segmentation."""
    specs = manifest.signature
    has = "boxes" if images.boxes is not None else "masks" if images.masks is not None else ""
    if task is None:
        task = "detection" if has == "boxes" else "segmentation"
        check(task, specs.outputs)
    if has and _OF_PICTURES.get(task) != has:
        raise InvalidDataError(
            f"{images.name}: has {has}, which are not labels of {task} with "
            f"{in_words(specs.outputs)}; pass data for {task}, or another --task"
        )
    unused = ""
    if images.labels is not None or images.truth is not None:
        unused = f"{images.name}: labels of whole images are of no use for {task}"
    names = images.class_names if has and images.class_names else manifest.class_names
    classes = len(names) or None
    input_size = presets.input_size(specs.inputs)
    sizes = {spec.name: tuple(spec.sample) for spec in specs.outputs}
    views = images.views or Views.whole(len(images), *input_size)
    how, layout = None, None
    if task == "detection":
        how = presets.chosen(decoding, manifest.decoding, specs.outputs, specs.inputs, classes)
        classes = classes or presets.classes_of(how, specs.outputs)
    else:
        (spec,) = specs.outputs
        classes = classes or segmentation.classes_of(spec.sample, input_size)
        layout = segmentation.layout(spec.sample, classes)
    if not names and classes is not None and has:
        names = numbered(classes)
    pictures = Pictures(views, input_size, sizes, how, layout)
    return Right(
        task,
        asked,
        names=names,
        unused=unused,
        boxes=images.boxes,
        masks=images.masks,
        pictures=pictures,
    )


def settle(known: Right, outputs: npt.NDArray[np.float32]) -> Right:
    """Decide by the reference's outputs what was open.

    Args:
        known: As :func:`right` left it.
        outputs: ``[N, M]``.

    Raises:
        InvalidDataError: If there are right numbers, and not one for each output.
    """
    if known.pictures is not None:
        return known
    size = outputs.shape[1]
    if known.truth is not None and known.truth.shape[1] != size:
        raise InvalidDataError(
            f"expected y with {size} numbers per sample, as the float model gives, got "
            f"{known.truth.shape[1]}"
        )
    if known.task == "regression" or (size != 1 and not known.names):
        return Right("regression", known.asked, None, known.truth, unused=known.unused)
    labels = known.labels
    if size == 1 and (known.asked or labels is not None):
        return _one_score(known, outputs)
    if known.task == "classification" or (size > 1 and stats.is_probability(outputs)):
        return Right("classification", known.asked, labels, None, known.names, known.unused)
    return Right("regression", known.asked, unused=known.unused)


def _one_score(known: Right, outputs: npt.NDArray[np.float32]) -> Right:
    """One number per sample: the score of the second of two classes, or the label itself."""
    labels = known.labels
    two = labels is None or (int(labels.min()) >= 0 and int(labels.max()) <= 1)
    share = bool((outputs >= 0).all() and (outputs <= 1).all())
    if two and (share or known.task == "classification"):
        return Right("classification", known.asked, labels, None, ("0", "1"), known.unused)
    assert labels is not None
    return Right("regression", known.asked, truth=labels[:, None].astype(np.float32))


def by_class(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A score for each class ``[N, C]``; one number becomes those of two classes.

    A share p becomes 1 - p and p; any other number x, 0 and x, whose softmax is its sigmoid.
    """
    if outputs.shape[1] != 1:
        return outputs
    share = bool((outputs >= 0).all() and (outputs <= 1).all())
    return np.concatenate([1 - outputs if share else np.zeros_like(outputs), outputs], axis=1)
