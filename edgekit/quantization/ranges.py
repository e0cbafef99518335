"""Calibration methods: choose the range of a tensor that its eight bits cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidOptionError
from edgekit.quantization.histogram import Histogram
from edgekit.quantization.table import METHODS, Range, TensorStatistics

#: How a range follows the batches of fine-tuning (edgekit.quantization.fake).
RangeMode = Literal["moving-average", "learned"]
RANGE_MODES: tuple[str, ...] = get_args(RangeMode)
#: Percent of the values that ``percentile`` keeps, one that Wu et al. 2020, section 4.2, try.
PERCENTILE = 99.99
#: Steps of an int8 tensor.
_LEVELS = 256
#: How finely ``mse`` shrinks each end of the range.
_FRACTIONS = np.linspace(0.2, 1.0, 41)


def find(statistics: TensorStatistics, method: str) -> Range:
    """The range of a tensor by one of :data:`METHODS`.

    Raises:
        InvalidOptionError: If there is no such method.
    """
    if method not in METHODS:
        raise InvalidOptionError(f"expected method {', '.join(METHODS)}, got {method!r}")
    low, high = _FINDERS[method](statistics)
    return Range(
        float(np.clip(low, statistics.min, statistics.max)),
        float(np.clip(high, statistics.min, statistics.max)),
    )


def _minmax(statistics: TensorStatistics) -> tuple[float, float]:
    """Extremes over all images (Krishnamoorthi 2018, section 2)."""
    return statistics.min, statistics.max


def _moving_average(statistics: TensorStatistics) -> tuple[float, float]:
    """Moving average of each image's extremes (Jacob et al. 2018, section 3.1)."""
    return statistics.average_min, statistics.average_max


def _percentile(statistics: TensorStatistics) -> tuple[float, float]:
    """Cut away what is rarest, half of it at each end (Wu et al. 2020, section 3.4)."""
    return percentile(statistics.histogram, PERCENTILE)


def _entropy(statistics: TensorStatistics) -> tuple[float, float]:
    """Clip magnitudes where the KL divergence is least (Migacz 2017; Wu et al. 2020, 3.4)."""
    limit = entropy(*magnitudes(statistics.histogram))
    return max(statistics.min, -limit), min(statistics.max, limit)


def _mse(statistics: TensorStatistics) -> tuple[float, float]:
    """Least mean squared error of rounding and clipping together (Nagel et al. 2021, 3.1)."""
    low, high = min(statistics.min, 0.0), max(statistics.max, 0.0)
    return mse(statistics.histogram.centers(), statistics.histogram.array(), low, high)


def percentile(histogram: Histogram, percent: float) -> tuple[float, float]:
    """Edges of the bins in which the lower and upper ``(100 - percent) / 2`` percent end."""
    counts = histogram.array()
    share = np.cumsum(counts) / counts.sum()
    tail = (100 - percent) / 200
    first = int(np.searchsorted(share, tail, side="right"))
    last = int(np.searchsorted(share, 1 - tail, side="left"))
    return (
        (histogram.start + first) * histogram.width,
        (histogram.start + last + 1) * histogram.width,
    )


def magnitudes(histogram: Histogram) -> tuple[npt.NDArray[np.float64], float]:
    """Counts of |x|, and the width of a bin."""
    counts, start = histogram.array(), histogram.start
    places = start + np.arange(len(counts))
    places = np.where(places < 0, -1 - places, places)
    return np.asarray(np.bincount(places, counts), np.float64), histogram.width


def entropy(counts: npt.NDArray[np.float64], width: float, *, levels: int = 128) -> float:
    """Threshold T whose clipped, ``levels``-step distribution of |x| is nearest the whole one.

    For each T the reference P is the counts below T, with all above added to its last bin; Q is P's
    counts without that addition, merged to ``levels`` steps and spread evenly over the bins of a
    step that are not empty. The T of least KL(P || Q) wins. Empty bins of Q where P has values
    count as half a value.

    Args:
        counts: Counts of |x|, float64 ``[bins]``; the first bin starts at 0.
        width: Real width of a bin.
        levels: Steps of the quantized magnitude.
    """
    bins = len(counts)
    if bins <= levels:
        return bins * width
    above = counts.sum() - np.cumsum(counts)
    best, best_end = np.inf, bins
    for end in range(levels, bins + 1):
        below = counts[:end]
        reference = below.copy()
        reference[-1] += above[end - 1]
        edges = np.arange(levels + 1) * end // levels
        step = np.repeat(np.arange(levels), np.diff(edges))
        filled = below > 0
        mass = np.bincount(step, below, levels)
        places = np.bincount(step, filled, levels)
        merged = np.where(filled, (mass / np.maximum(places, 1))[step], 0.0)
        occurring = reference > 0
        merged = np.where(occurring & (merged == 0), 0.5, merged)
        reference_sum, merged_sum = reference.sum(), merged.sum()
        distance = float(
            (
                reference[occurring]
                / reference_sum
                * np.log(reference[occurring] * merged_sum / (merged[occurring] * reference_sum))
            ).sum()
        )
        if distance < best:
            best, best_end = distance, end
    return best_end * width


def mse(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], low: float, high: float
) -> tuple[float, float]:
    """The range within ``[low, high]`` whose 256 steps reproduce the values best.

    Both ends are shrunk towards 0 on a grid of 41 fractions from 0.2 to 1.

    Args:
        values: float64 ``[N]``.
        counts: How often each occurs, float64 ``[N]``.
        low: Smallest value, 0 at the most.
        high: Largest value, 0 at the least.
    """
    best, best_range = np.inf, (low, high)
    lows = low * _FRACTIONS if low < 0 else np.zeros(1)
    highs = high * _FRACTIONS if high > 0 else np.zeros(1)
    for lower in lows:
        for upper in highs:
            error = float((counts * (values - quantized(values, lower, upper)) ** 2).sum())
            if error < best:
                best, best_range = error, (float(lower), float(upper))
    return best_range


def quantized(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Values as 256 steps over ``[low, high]``, with 0.0 on a step, give them back."""
    scale = (high - low) / (_LEVELS - 1)
    if scale == 0:
        return np.zeros_like(values)
    zero_point = np.rint(-low / scale)
    steps = np.clip(np.rint(values / scale) + zero_point, 0, _LEVELS - 1)
    return np.asarray((steps - zero_point) * scale)


_FINDERS: dict[str, Callable[[TensorStatistics], tuple[float, float]]] = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
