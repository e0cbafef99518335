"""Masks: the right class of each pixel, a mask a picture."""

from __future__ import annotations

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
