"""Intervals and tests that reports, pages and gates quote.

scipy is imported only where it is used: the gate needs none of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.blocks import blocks
from edgekit.errors import MissingDependencyError
from edgekit.results import Measurement

#: A p below this is more than chance.
SIGNIFICANT = 0.05
#: Latency is unstable when the medians of its rounds spread over more than this part of theirs.
UNSTABLE = 0.2


def proportion(right: int, count: int) -> Measurement:
    """A share in percent with its Wilson 95 % interval (Wilson 1927)."""
    interval = _stats().binomtest(right, count).proportion_ci(0.95, method="wilson")
    return Measurement(
        value=100 * right / count,
        unit="%",
        count=count,
        low=100 * float(interval.low),
        high=100 * float(interval.high),
        interval="wilson 95 %",
    )


def discordant(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """(lost, gained): images right only before, and right only after; both are bool ``[N]``."""
    return int((before & ~after).sum()), int((after & ~before).sum())


def mcnemar(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Measurement:
    """Exact p of "both are right equally often", from the images where they differ."""
    return Measurement(mcnemar_exact(*discordant(before, after)), unit="p", count=len(before))


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact p of ``lost`` against ``gained`` discordant pairs (McNemar 1947).

    Twice the smaller tail of the binomial with probability 1/2, in integers.
    """
    n, k = lost + gained, min(lost, gained)
    term, tail = 1, 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n)) if n else 1.0


def divergence(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Measurement:
    """Mean Kullback-Leibler divergence KL(reference || other) in nats.

    Both are probabilities ``[N, classes]``. int8 outputs have steps of 1/256 and answer 0 for
    what is small: values are raised to half a step, 1/512, and rows are scaled to sum 1 again.
    """
    floor = 1 / 512
    total = 0.0
    for pair in blocks(reference, other):
        p, q = (np.maximum(values.astype(np.float64), floor) for values in pair)
        p /= p.sum(axis=1, keepdims=True)
        q /= q.sum(axis=1, keepdims=True)
        total += float((p * np.log(p / q)).sum())
    return Measurement(total / len(reference), "nats", len(reference))


def sqnr(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Measurement:
    """Signal to quantization noise ratio: 10 log10(sum r^2 / sum (r - o)^2), in dB."""
    signal = noise = 0.0
    for clean, found in blocks(reference, other):
        exact = clean.astype(np.float64)
        signal += float((exact**2).sum())
        noise += float(((exact - found) ** 2).sum())
    value = float("inf") if noise == 0 else float(10 * np.log10(signal / noise))
    return Measurement(value, "dB", len(reference))


def latency_spread(samples: npt.NDArray[np.float64]) -> float:
    """Range of the medians of rounds, ``[rounds, samples]`` in ms, as a part of their median."""
    rounds = np.median(samples, axis=1)
    middle = float(np.median(rounds))
    return float(rounds.max() - rounds.min()) / middle if middle > 0 else float("inf")


def latency_ratio(
    samples: npt.NDArray[np.float64], base: npt.NDArray[np.float64], *, seed: int = 0
) -> Measurement:
    """Ratio of medians with a percentile bootstrap 95 % interval over rounds.

    Args:
        samples: Milliseconds ``[rounds, samples]``.
        base: The same of what it is divided by, from the same rounds.
        seed: Of the 2,000 resamples (Efron 1979).
    """
    ratio = float(np.median(samples) / np.median(base))
    rounds = len(samples)
    picks = np.random.default_rng(seed).integers(0, rounds, (2000, rounds))
    resampled = [np.median(samples[pick]) / np.median(base[pick]) for pick in picks]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Measurement(ratio, "x", samples.size, float(low), float(high), "bootstrap 95 %")


def median_interval(
    samples: npt.NDArray[np.float64], *, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap 95 % interval of the median, over rounds; None of a single round.

    Args:
        samples: Milliseconds ``[rounds, samples]``.
        seed: Of the 2,000 resamples.
    """
    rounds = len(samples)
    if rounds < 2:
        return None
    picks = np.random.default_rng(seed).integers(0, rounds, (2000, rounds))
    parts = np.array_split(picks, max(1, 2000 * samples.size // 1_000_000))  # 8 MB each
    medians = [np.median(samples[part].reshape(len(part), -1), axis=1) for part in parts]
    low, high = np.percentile(np.concatenate(medians), [2.5, 97.5])
    return float(low), float(high)


def _stats() -> Any:
    try:
        import scipy.stats
    except ImportError:
        raise MissingDependencyError("scipy", "report") from None
    return scipy.stats
