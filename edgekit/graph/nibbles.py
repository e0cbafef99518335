"""Integers of 4 bits, two in a byte, the first in its lower half: as TFLite and ONNX both store
them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def packed(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Bytes of integers from -8 to 7, in order of the memory; an odd number ends with a 0.

    Args:
        values: Of any shape.

    Raises:
        ValueError: If one is beyond 4 bits.
    """
    flat = np.asarray(values, np.int8).reshape(-1)
    if flat.size and (flat.min() < -8 or flat.max() > 7):
        raise ValueError(f"expected integers from -8 to 7, got {flat.min()} to {flat.max()}")
    whole = np.zeros(flat.size + flat.size % 2, np.uint8)
    whole[: flat.size] = flat.view(np.uint8) & 15
    return np.asarray(whole[::2] | whole[1::2] << 4, np.uint8)


def unpacked(content: npt.NDArray[np.uint8], shape: Sequence[int]) -> npt.NDArray[np.int8]:
    """The integers in these bytes.

    Args:
        content: As :func:`packed` gives them.
        shape: Of the result.

    Raises:
        ValueError: If there are more or fewer bytes than that many integers take.
    """
    count = int(np.prod(shape))
    if len(content) != -(-count // 2):
        raise ValueError(f"expected {-(-count // 2)} bytes of {count} int4, got {len(content)}")
    whole = np.empty(2 * len(content), np.int8)
    # a shift to the left and back spreads the sign
    whole[::2] = (content << 4).view(np.int8) >> 4
    whole[1::2] = content.view(np.int8) >> 4
    return whole[:count].reshape(tuple(shape))
