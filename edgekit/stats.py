"""Intervals and tests that reports, pages and gates quote.

scipy is imported only where it is used: the gate needs none of it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.blocks import blocks
from edgekit.errors import InvalidOptionError, MissingDependencyError
from edgekit.results import Measurement

#: A p below this is more than chance.
SIGNIFICANT = 0.05
#: Latency is unstable when the medians of its rounds spread over more than this part of theirs.
UNSTABLE = 0.2
#: Resamples of a bootstrap of counts, which costs no more than its random numbers.
RESAMPLES = 10_000
#: Discordant pairs above which the exact McNemar test is as strong as the normal approximation.
_LARGE = 10_000
#: A slower start of a round than this is a warm-up, if it is beyond noise too.
_WARM_UP = 1.05


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


def paired_change(
    before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], *, seed: int = 0
) -> Measurement:
    """Change of a share of right answers, in points, with a bootstrap 95 % interval.

    Images are resampled in pairs, percentile interval (Efron and Tibshirani 1993, chapter 13). A
    pair is lost, gained or alike, so that a resample is one draw from the multinomial of the three
    counts: the same as picking N pairs, without touching N images.

    Args:
        before: Right or wrong, image by image, bool ``[N]``.
        after: The same of the other model.
        seed: Of the resamples.

    Returns:
        The change; without an interval where no pair differs, since every resample is then alike
        and says nothing of images not seen.
    """
    lost, gained = discordant(before, after)
    count = len(before)
    change = 100 * (gained - lost) / count
    if lost + gained == 0:
        return Measurement(change, "points", count)
    shares = np.array([lost, gained, count - lost - gained]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, RESAMPLES)
    low, high = np.percentile(100 * (drawn[:, 1] - drawn[:, 0]) / count, [2.5, 97.5])
    return Measurement(change, "points", count, float(low), float(high), "bootstrap 95 %")


def mcnemar_power(count: int, *, discordance: float, drop: float) -> float:
    """How often the exact McNemar test finds a drop, p < 0.05 and in its direction.

    Exact over the number of discordant pairs (Duffy 1984): their number is binomial, and so is the
    number lost among them.

    Args:
        count: Images.
        discordance: Share of images right in one model only, of 1.
        drop: Share lost minus share gained, of 1.
    """
    binom = _stats().binom
    spread = 8 * math.sqrt(count * discordance) + 8
    first = max(0, math.floor(count * discordance - spread))
    pairs = np.arange(first, min(count, math.ceil(count * discordance + spread)) + 1)
    # The largest number gained that is significant; -1 where none is, of up to five pairs.
    most = binom.ppf(SIGNIFICANT / 2, pairs, 0.5).astype(np.int64)
    most -= 2 * binom.cdf(most, pairs, 0.5) >= SIGNIFICANT
    found = binom.cdf(most, pairs, (discordance - drop) / (2 * discordance))
    return float((binom.pmf(pairs, count, discordance) * found).sum())


def images_needed(*, discordance: float, drop: float, power: float) -> int:
    """Images with which the exact McNemar test finds a drop with the given power, at p < 0.05.

    Connor (1987), ``n = (z_a sqrt(d) + z_b sqrt(d - D^2))^2 / D^2`` with discordance d and drop D,
    is for the test on large counts; below 10,000 discordant pairs the count is raised from there
    until the exact test has the power, to within 1 %.

    Args:
        discordance: Share of images right in one model only, of 1. What is below the drop counts
            as the drop, which is the least that it can be.
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
    rate = max(drop, discordance)
    wide, narrow = NormalDist().inv_cdf(1 - SIGNIFICANT / 2), NormalDist().inv_cdf(power)
    root = wide * math.sqrt(rate) + narrow * math.sqrt(max(0.0, rate - drop**2))
    needed = max(1, math.ceil((root / drop) ** 2))
    while needed * rate < _LARGE and mcnemar_power(needed, discordance=rate, drop=drop) < power:
        needed += max(1, needed // 100)
    return needed


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


def mse(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Measurement:
    """Mean squared error of the answers, in the answer's own unit squared, of regressions."""
    total = 0.0
    for exact, found in blocks(reference, other):
        total += float(((exact.astype(np.float64) - found) ** 2).sum())
    return Measurement(total / reference.size, "unit^2", len(reference))


def max_error(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Measurement:
    """Largest absolute error of a number of the answers, in the answer's own unit."""
    largest = max(
        float(np.abs(exact.astype(np.float64) - found).max())
        for exact, found in blocks(reference, other)
    )
    return Measurement(largest, "unit", len(reference))


def is_probability(answers: npt.NDArray[np.float32]) -> bool:
    """Whether rows are probabilities that sum to 1, of which a KL divergence has a meaning."""
    return answers.ndim == 2 and all(
        block.min() >= 0 and np.abs(block.sum(axis=1) - 1).max() <= 0.01
        for (block,) in blocks(answers)
    )


def softmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities ``[N, C]`` of logits ``[N, C]``."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


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


def warm_up(samples: npt.NDArray[np.float64]) -> int:
    """How many samples at the start of each round are slower than the rest beyond noise.

    Each sample is divided by the median of the second half of its round. A position is slow when
    its median over the rounds exceeds 1 by 5 % and by three standard errors of a median, the
    spread being taken from the second halves (1.4826 MAD and 1.2533 / sqrt(n), Rousseeuw and Croux
    1993). Counted are slow positions from the first on, up to half a round.

    Args:
        samples: Milliseconds ``[rounds, samples]``.
    """
    rounds, count = samples.shape
    half = count // 2
    if half == 0:
        return 0
    relative = samples / np.median(samples[:, half:], axis=1, keepdims=True)
    spread = 1.4826 * float(np.median(np.abs(relative[:, half:] - 1)))
    limit = max(_WARM_UP, 1 + 3 * 1.2533 * spread / math.sqrt(rounds))
    slow = np.median(relative[:, :half], axis=0) > limit
    return half if slow.all() else int(np.argmin(slow))


def _stats() -> Any:
    try:
        import scipy.stats
    except ImportError:
        raise MissingDependencyError("scipy", "report") from None
    return scipy.stats


def ranking(answers: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Classes ``[N, C]`` by probability; a stable order, so that equal ones rank alike anywhere."""
    return np.argsort(-answers, axis=1, kind="stable")
