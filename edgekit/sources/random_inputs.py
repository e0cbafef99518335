"""Random numbers to compare two graphs of one model on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def draw(
    inputs: Iterable[tuple[Sequence[int], npt.DTypeLike]], *, seed: int, least: float
) -> list[npt.NDArray[Any]]:
    """An array for each input: real numbers from ``least`` to 1, and 0 or 1 of integers.

    Args:
        inputs: (sizes, dtype) of each.
        seed: The same seed gives the same numbers.
        least: Of real numbers: -1, or 0 where what reads them may refuse negative ones.
    """
    generator = np.random.default_rng(seed)
    arrays = []
    for sizes, dtype in inputs:
        real = np.issubdtype(dtype, np.floating)
        values = generator.uniform(least, 1, sizes) if real else generator.integers(0, 2, sizes)
        arrays.append(np.asarray(values).astype(dtype))
    return arrays
