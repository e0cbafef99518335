"""Masks: the right class of each pixel, a mask a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

#: The class of pixels that count neither as right nor as wrong (Pascal VOC).
VOID = 255


class Masks(Protocol):
    """Masks of N pictures, of any sizes; read one by one, so that memory does not grow."""

    def __len__(self) -> int:
        """Number of pictures."""

    def __getitem__(self, picture: int) -> npt.NDArray[np.uint8]:
        """uint8 ``[height, width]`` of the picture, upright: class numbers from 0, or VOID."""

    def take(self, pictures: npt.NDArray[np.int64]) -> Masks:
        """Those of some pictures, in that order."""


@dataclass(frozen=True)
class Shifted:
    """Masks with other class numbers: each ``+ by``; VOID stays.

    A number that leaves 0 to 254 becomes VOID.
    """

    masks: Masks
    by: int

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, picture: int) -> npt.NDArray[np.uint8]:
        values = self.masks[picture].astype(np.int64)
        moved = np.where(values == VOID, VOID, values + self.by)
        return np.where((moved < 0) | (moved > VOID), VOID, moved).astype(np.uint8)

    def take(self, pictures: npt.NDArray[np.int64]) -> Shifted:
        """Those of some pictures, in that order."""
        return Shifted(self.masks.take(pictures), self.by)


def digest_of(mask: npt.NDArray[np.uint8]) -> bytes:
    """SHA-256 of the size and the pixels of a mask."""
    digest = hashlib.sha256(f"{mask.shape}".encode())
    digest.update(np.ascontiguousarray(mask).tobytes())
    return digest.digest()


def mask_digest(masks: Masks, picture: int) -> bytes:
    """:func:`digest_of` a mask; not read again where its set kept it, as ``digests[picture]``."""
    digests: Sequence[bytes] | None = getattr(masks, "digests", None)
    return digest_of(masks[picture]) if digests is None else digests[picture]
