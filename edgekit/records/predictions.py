"""What a report keeps of the predictions of detectors and segmentation networks. Framework-free.

Some pictures where the predictions of a deployable differ from those of the float model, the curves
of precision over recall, and the confusion of pixels: what the page draws.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import ReportError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Points of a curve, at most: the recalls 0, 0.01, ... 1, at which COCO takes precision.
CURVE = 101
#: Pixels of a small class map, at most.
_PIXELS = 1 << 20


def check_png(text: str, where: str) -> None:
    """Refuse text that is neither empty nor base64 of a PNG file.

    Raises:
        ReportError: Says ``where``.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise ReportError(f"{where}: its picture is not base64 ({exc})") from None
    if content and not content.startswith(PNG_SIGNATURE):
        raise ReportError(f"{where}: its picture is not a PNG file")


@dataclass(frozen=True)
class Box:
    """A box of an object in a picture.

    Attributes:
        left: Left edge, as a share of the shown picture's width: 0 is its left edge, 1 its right
            one. A box may reach beyond the picture.
        top: Upper edge, as a share of the shown picture's height.
        right: Right edge.
        bottom: Lower edge.
        number: Class, from 0.
        score: From 0 to 1; None of a right box.
        alone: Whether the other model has no box of the same class at the same place (IoU 0.5): a
            box of the float model is then lost, a box of the artifact is new.
    """

    left: float
    top: float
    right: float
    bottom: float
    number: int
    score: float | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        edges = (self.left, self.top, self.right, self.bottom)
        if not all(map(math.isfinite, edges)) or self.left > self.right or self.top > self.bottom:
            raise ReportError(f"expected a box as left, top, right, bottom, got {edges}")
        if self.number < 0:
            raise ReportError(f"expected the class of a box from 0, got {self.number}")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ReportError(f"expected the score of a box from 0 to 1, got {self.score}")


@dataclass(frozen=True)
class BoxPicture:
    """A picture in which an artifact finds other boxes than the float model.

    Attributes:
        index: Index in the evaluation set, from 0.
        width: Width of what is shown of the picture, in pixels before it was made small.
        height: Its height.
        before: Boxes of the float model, highest score first.
        now: Boxes of the artifact, highest score first.
        right: The right boxes; empty without labels.
        lost: Boxes of the float model that the artifact does not find.
        new: Boxes of the artifact that the float model does not find.
        picture: Base64 of a small PNG of what the model saw; empty if it cannot be shown.
    """

    index: int
    width: int
    height: int
    before: tuple[Box, ...]
    now: tuple[Box, ...]
    right: tuple[Box, ...] = ()
    lost: int = 0
    new: int = 0
    picture: str = ""

    def __post_init__(self) -> None:
        where = f"picture {self.index} with changed boxes"
        if self.index < 0 or min(self.width, self.height) < 1 or min(self.lost, self.new) < 0:
            raise ReportError(f"{where}: expected an index, a size and counts that are possible")
        check_png(self.picture, where)


@dataclass(frozen=True)
class BoxChanges:
    """Where an artifact finds other boxes than the float model.

    Attributes:
        images: Pictures with a lost or a new box.
        lost: Boxes of the float model that the artifact does not find, in all pictures.
        new: Boxes of the artifact that the float model does not find, in all pictures.
        score: Least score of the boxes that were compared.
        pictures: Some of the pictures, those with most changes first.
    """

    images: int
    lost: int
    new: int
    score: float
    pictures: tuple[BoxPicture, ...] = ()

    def __post_init__(self) -> None:
        if min(self.images, self.lost, self.new) < 0 or len(self.pictures) > self.images:
            raise ReportError(
                f"expected counts of changed boxes >= 0 and at most {self.images} pictures, got "
                f"{self.lost} lost, {self.new} new and {len(self.pictures)} pictures"
            )


@dataclass(frozen=True)
class MaskPicture:
    """A picture whose pixels an artifact and the float model give other classes.

    Attributes:
        index: Index in the evaluation set, from 0.
        width: Width of the small class maps, in pixels.
        height: Their height.
        before: Classes that the float model predicts, as :func:`pack_classes` writes them.
        now: Classes that the artifact predicts.
        right: The right classes, 255 where none is; empty without labels.
        agreement: Pixels of the picture, at its own size, with the same class in both, in %.
        picture: Base64 of a small PNG of what the model saw; empty if it cannot be shown.
    """

    index: int
    width: int
    height: int
    before: str
    now: str
    right: str = ""
    agreement: float = 100.0
    picture: str = ""

    def __post_init__(self) -> None:
        where = f"picture {self.index} with changed pixels"
        if self.index < 0 or not 0 <= self.agreement <= 100:
            raise ReportError(f"{where}: expected an index and an agreement that are possible")
        if min(self.width, self.height) < 1 or self.width * self.height > _PIXELS:
            raise ReportError(
                f"{where}: expected class maps of up to {_PIXELS:,} pixels, got {self.width} x "
                f"{self.height}"
            )
        check_png(self.picture, where)
        for text in (self.before, self.now, *([self.right] if self.right else [])):
            self.classes(text)

    def classes(self, text: str) -> npt.NDArray[np.uint8]:
        """One of the three as uint8 ``[height, width]``.

        Raises:
            ReportError: If it is not as many numbers, packed.
        """
        count = self.width * self.height
        try:
            inflate = zlib.decompressobj()
            content = inflate.decompress(base64.b64decode(text, validate=True), count + 1)
        except (ValueError, zlib.error) as exc:
            raise ReportError(f"picture {self.index}: its classes are not packed ({exc})") from None
        if len(content) != count:
            raise ReportError(
                f"picture {self.index}: expected {self.width} x {self.height} classes, got "
                f"{'more' if len(content) > count else len(content)}"
            )
        return np.frombuffer(content, np.uint8).reshape(self.height, self.width)


def pack_classes(classes: npt.NDArray[np.uint8]) -> str:
    """uint8 ``[height, width]`` to the text form of :class:`MaskPicture`: base64 of deflated."""
    return base64.b64encode(zlib.compress(classes.tobytes(), 9)).decode("ascii")


@dataclass(frozen=True)
class MaskChanges:
    """Where an artifact gives pixels another class than the float model.

    Attributes:
        images: Pictures with such a pixel.
        pictures: Some of them, those with the lowest agreement first.
    """

    images: int
    pictures: tuple[MaskPicture, ...] = ()

    def __post_init__(self) -> None:
        if self.images < len(self.pictures):
            raise ReportError(
                f"expected at most {self.images} pictures with changed pixels, got "
                f"{len(self.pictures)}"
            )


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class, at IoU 0.5.

    Attributes:
        number: The class, from 0.
        count: Number of its right boxes.
        recall: Up to 101 recalls from 0 to 1, rising.
        precision: The greatest precision at that recall or a higher one, from 0 to 1.
    """

    number: int
    count: int
    recall: tuple[float, ...]
    precision: tuple[float, ...]

    def __post_init__(self) -> None:
        where = f"curve of class {self.number}"
        if self.number < 0 or self.count < 0:
            raise ReportError(f"{where}: expected a class and a count >= 0, got {self.count}")
        if len(self.recall) != len(self.precision) or len(self.recall) > CURVE:
            raise ReportError(
                f"{where}: expected up to {CURVE} recalls and as many precisions, got "
                f"{len(self.recall)} and {len(self.precision)}"
            )
        if not all(0 <= each <= 1 for each in (*self.recall, *self.precision)):
            raise ReportError(f"{where}: expected recalls and precisions from 0 to 1")
        if any(one > other for one, other in zip(self.recall, self.recall[1:], strict=False)):
            raise ReportError(f"{where}: expected recalls that rise")


@dataclass(frozen=True)
class Confusion:
    """How many pixels of one class were given which class.

    Attributes:
        counts: A row for each right class, a column for each predicted class, from class 0.
    """

    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        size = len(self.counts)
        if any(len(row) != size or min(row, default=0) < 0 for row in self.counts):
            raise ReportError(f"expected {size} x {size} counts of pixels >= 0")
