"""Arrays that may be larger than memory, read a block of rows at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

#: Rows of a block, and its numbers, at the most.
ROWS = 1024
NUMBERS = 1 << 22


def blocks(
    *arrays: npt.NDArray[Any], rows: int | None = None
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """The same rows of all arrays, in order; pages of mapped files are let go after each block.

    A view of a block is good until the next one is asked for, and after that read from disk again.

    Args:
        arrays: ``[N, ...]``, all with the same N.
        rows: Rows of a block; default as many as keep it small in memory.
    """
    if rows is None:
        widest = max(array[:1].size for array in arrays)
        rows = max(1, min(ROWS, NUMBERS // max(1, widest)))
    for start in range(0, len(arrays[0]), rows):
        yield tuple(array[start : start + rows] for array in arrays)
        for array in arrays:
            let_go(array)


def let_go(array: npt.NDArray[Any]) -> None:
    """Take the pages of a read-only mapped file out of this process; other arrays are left alone.

    They are read again when touched. Without this, resident memory grows to the size of the file.
    """
    if array.flags.writeable:  # what was changed in a private mapping would be lost
        return
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
