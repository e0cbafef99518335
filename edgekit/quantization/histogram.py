"""Histogram: how the values of a tensor are spread, taken in one streaming pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError

BINS = 2048


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width that lie on a grid through 0.

    Attributes:
        width: Real width of a bin, a power of two.
        start: The first bin covers ``[start * width, (start + 1) * width)``.
        counts: Values a bin.
    """

    width: float
    start: int
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.width) and self.width > 0):
            raise InvalidDataError(f"expected a histogram width > 0, got {self.width}")
        if not 0 < len(self.counts) <= BINS or min(self.counts) < 0 or not any(self.counts):
            raise InvalidDataError(
                f"expected 1 to {BINS} histogram counts >= 0, got {len(self.counts)}"
            )

    def centers(self) -> npt.NDArray[np.float64]:
        """The middle of each bin, float64 ``[bins]``."""
        return np.asarray((self.start + np.arange(len(self.counts)) + 0.5) * self.width)

    def array(self) -> npt.NDArray[np.float64]:
        """Counts as float64 ``[bins]``."""
        return np.asarray(self.counts, np.float64)


class StreamingHistogram:
    """Grows with what it is fed; needs no range beforehand.

    Bins are as wide as the smallest power of two with which 2,048 of them cover all values. When a
    value lies outside, pairs of bins are merged, so the result is that of one look at all values,
    in whatever order they came.
    """

    def __init__(self) -> None:
        self._exponent = -120
        self._start = 0
        self._counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Take values in, any shape; they have to be finite."""
        low, high = float(values.min()), float(values.max())
        # the least width that 2,048 bins from 0 on can have, whatever comes first
        largest = max(abs(low), abs(high), 2.0**-100)
        while self._exponent < math.frexp(largest)[1] - 11:
            self._widen()
        while not self._fits(low, high):
            self._widen()
        width = 2.0**self._exponent
        first, last = math.floor(low / width), math.floor(high / width)
        if len(self._counts):
            end = self._start + len(self._counts)
            before, after = max(0, self._start - first), max(0, last + 1 - end)
            self._counts = np.pad(self._counts, (before, after))
            self._start -= before
        else:
            self._start = first
            self._counts = np.zeros(last + 1 - first, np.int64)
        # exact: in float64 a power of two changes the exponent only
        bins = np.floor(values.ravel() * np.float64(1 / width)).astype(np.int64) - self._start
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def result(self) -> Histogram:
        """The histogram of all that was added."""
        return Histogram(2.0**self._exponent, self._start, tuple(self._counts.tolist()))

    def _fits(self, low: float, high: float) -> bool:
        width = 2.0**self._exponent
        first, last = math.floor(low / width), math.floor(high / width)
        if len(self._counts):
            first = min(first, self._start)
            last = max(last, self._start + len(self._counts) - 1)
        return last - first < BINS

    def _widen(self) -> None:
        self._exponent += 1
        if not len(self._counts):
            return
        if self._start % 2:
            self._counts = np.pad(self._counts, (1, 0))
            self._start -= 1
        if len(self._counts) % 2:
            self._counts = np.pad(self._counts, (0, 1))
        self._counts = self._counts.reshape(-1, 2).sum(axis=1)
        self._start //= 2
