"""Paired bootstrap over pictures, for scores that are no mean over pictures: mAP and mIoU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidOptionError
from edgekit.records.results import Measurement

#: Resamples, unless others are asked for.
RESAMPLES = 500
INTERVAL = "bootstrap 95 %"


@dataclass(frozen=True, eq=False)
class Resampled:
    """Scores of resamples of the pictures; the same ones for each model of the same pictures.

    Attributes:
        count: Number of pictures.
        seed: Seed of the resamples.
        values: float64 ``[R]`` of 1, by the score's name.
    """

    count: int
    seed: int
    values: dict[str, npt.NDArray[np.float64]]


def weights(count: int, resamples: int, seed: int) -> npt.NDArray[np.float32]:
    """float32 ``[count, resamples]``: how often a resample has each picture (Efron 1979)."""
    drawn = np.empty((count, resamples), np.float32)
    rng = np.random.default_rng(seed)
    for number in range(resamples):
        drawn[:, number] = np.bincount(rng.integers(0, count, count), minlength=count)
    return drawn


def interval(
    value: float, resampled: npt.NDArray[np.float64], unit: str, count: int
) -> Measurement:
    """A measurement with the 95 % percentile interval of its resamples."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Measurement(value, unit, count, float(low), float(high), INTERVAL)


def changed(value: float, before: Resampled, after: Resampled, name: str) -> Measurement:
    """The change of a score in points, with the interval of the paired resamples.

    Raises:
        InvalidOptionError: If they are not resamples of the same pictures.
    """
    difference = _difference(before, after, name)
    return interval(value, 100 * difference, "points", before.count)


def _difference(before: Resampled, after: Resampled, name: str) -> npt.NDArray[np.float64]:
    old, new = before.values[name], after.values[name]
    if (before.count, before.seed, len(old)) != (after.count, after.seed, len(new)):
        raise InvalidOptionError("expected resamples of the same pictures, with the same seed")
    return new - old


def images_needed(
    before: Resampled, after: Resampled, name: str, *, drop: float, power: float
) -> Measurement:
    """Pictures with which the change of a score shows a drop with the given power, at p < 0.05.

    From the standard error of the paired resamples, which falls with the root of the number of
    pictures: ``n * ((z_0.975 + z_power) * error / drop)^2``.

    Args:
        before: The float model's.
        after: The other model's.
        name: Name of the score.
        drop: The drop to be found, of 1.
        power: How often it has to be found, of 1.

    Raises:
        InvalidOptionError: If the drop is not above 0 and at most 1, or the power is not from 0.5
            to below 1.
    """
    if not 0 < drop <= 1:
        raise InvalidOptionError(f"expected a bound above 0, up to 100 points, got {100 * drop:g}")
    if not 0.5 <= power < 1:
        raise InvalidOptionError(f"expected a power from 0.5 to below 1, got {power:g}")
    error = float(_difference(before, after, name).std(ddof=1))
    wide = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(power)
    needed = math.ceil(before.count * (wide * error / drop) ** 2)
    return Measurement(max(1, needed), "images", before.count)
