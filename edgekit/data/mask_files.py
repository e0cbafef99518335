"""Masks in files: an index or a palette a pixel, read one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, reason
from edgekit.data import decode
from edgekit.data.decode import PictureError
from edgekit.data.masks import VOID

_TURNS: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.T,
    6: lambda values: values[::-1].T,
    7: lambda values: values[::-1, ::-1].T,
    8: lambda values: values.T[::-1],
}


def read(path: Path) -> npt.NDArray[np.uint8]:
    """The numbers in a mask file, ``[height, width]``, as they are stored.

    Raises:
        PictureError: If it cannot be decoded or does not hold a class number of 8 bits a pixel.
    """
    picture = decode.opened(decode.read(path))
    if picture.format == "JPEG":
        raise PictureError("a JPEG, which changes class numbers; save masks as PNG")
    if picture.mode.startswith("I"):
        raise PictureError(
            "more than 8 bits a pixel; expected class numbers up to 254; save it as 8-bit PNG"
        )
    if picture.mode not in ("P", "L", "1"):
        raise PictureError(
            f"colours without a palette ({picture.mode}); expected class numbers; save it as PNG "
            f"with a palette, or grey with the numbers as values"
        )
    try:
        return np.asarray(picture).astype(np.uint8)
    except Exception as exc:  # decoders raise what they like on hostile bytes
        raise PictureError(reason(exc)) from None


def turned(values: npt.NDArray[np.uint8], turn: int) -> npt.NDArray[np.uint8]:
    """A mask turned as EXIF turns its picture, ``turn`` from 1 to 8."""
    return values if turn == 1 else np.ascontiguousarray(_TURNS[turn](values))


def lookup(
    number: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
    names: int,
    known: int,
) -> npt.NDArray[np.int16]:
    """The model's class of each number in a mask: int16 ``[256]``; negative where there is none.

    Args:
        number: From the source's class numbers to the model's; negative for what it does not know.
        names: How many names the source has; 0 where numbers are all there is.
        known: How many classes the model has; 0 where it is not known.
    """
    table = np.full(256, -1, np.int16)
    table[VOID] = VOID
    own = np.arange(names or VOID)
    classes = number(own)
    fits = (classes >= 0) & (classes < (known or VOID))
    table[own[fits]] = classes[fits]
    return table


@dataclass(frozen=True)
class FileMasks:
    """Masks that are read when they are asked for.

    Attributes:
        readers: Reads the numbers of each, and how EXIF turns its picture where the mask is as it
            is stored.
        table: uint8 ``[256]``: the model's class of each number in a file.
        digests: :func:`edgekit.data.masks.digest_of` each.
    """

    readers: Sequence[tuple[Callable[[], npt.NDArray[np.uint8]], int]]
    table: npt.NDArray[np.uint8]
    digests: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.readers)

    def __getitem__(self, picture: int) -> npt.NDArray[np.uint8]:
        """uint8 ``[height, width]``, upright.

        Raises:
            InvalidDataError: If the file cannot be read any more.
        """
        read_one, turn = self.readers[picture]
        try:
            return self.table[turned(read_one(), turn)]
        except PictureError as exc:
            raise InvalidDataError(
                f"mask {picture} cannot be read any more: {exc}; leave files as they are"
            ) from None

    def take(self, pictures: npt.NDArray[np.int64]) -> FileMasks:
        """Those of some pictures, in that order."""
        rows = pictures.tolist()
        return FileMasks(
            [self.readers[row] for row in rows], self.table, [self.digests[row] for row in rows]
        )
