"""Intervals and tests that reports, pages and gates quote.

scipy is imported only where it is used: the gate needs none of it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.blocks import blocks
from edgekit.base.errors import InvalidOptionError, MissingDependencyError
from edgekit.records.fidelity import decibels
from edgekit.records.results import Measurement

#: A p below this is more than chance.
SIGNIFICANT = 0.05
#: Latency is unstable when the medians of its rounds spread over more than this part of theirs.
UNSTABLE = 0.2
#: Rows of probabilities in half precision sum to 1 within this.
_HALF_SUM = 0.01
#: Values that an integer output of 16 bits has, and the largest step that probabilities have.
_LEVELS, _COARSEST = 1 << 16, 1 / 64
_T = "paired t 95 %"
#: Standard deviations on each side of 95 %.
_TWO_SIDED = NormalDist().inv_cdf(0.975)
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


def paired_change(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Measurement:
    """Change of the share of right predictions, in points, with a 95 % interval of paired images.

    Adjusted Wald interval for a difference of paired proportions: half an image is added to each
    of the four cells right/wrong x right/wrong (Agresti and Min 2005). It has a width where no
    pair differs too, since that says little of images that were not seen.

    Args:
        before: Right or wrong, image by image, bool ``[N]``.
        after: The same of the other model.
    """
    lost, gained = discordant(before, after)
    count = len(before)
    total = count + 2
    middle = (gained - lost) / total
    spread = _TWO_SIDED * math.sqrt((gained + lost + 1) / total - middle**2) / math.sqrt(total)
    return Measurement(
        value=100 * (gained - lost) / count,
        unit="points",
        count=count,
        low=100 * (middle - spread),
        high=100 * (middle + spread),
        interval="adjusted wald 95 %",
    )


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
    power = binom.cdf(most, pairs, (discordance - drop) / (2 * discordance))
    return float((binom.pmf(pairs, count, discordance) * power).sum())


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

    Both are probabilities ``[N, classes]``. int8 outputs have steps of 1/256 and give 0 for
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
    for clean, noisy in blocks(reference, other):
        exact = clean.astype(np.float64)
        signal += float((exact**2).sum())
        noise += float(((exact - noisy) ** 2).sum())
    return Measurement(decibels(signal, noise), "dB", len(reference))


def mse(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Measurement:
    """Mean squared error of the outputs of a regression, in the square of their unit."""
    total = 0.0
    for exact, predicted in blocks(reference, other):
        total += float(((exact.astype(np.float64) - predicted) ** 2).sum())
    return Measurement(total / reference.size, "unit^2", len(reference))


def truth(
    right: npt.NDArray[np.float32],
    before: npt.NDArray[np.float32],
    after: npt.NDArray[np.float32],
) -> dict[str, Measurement]:
    """How far numbers are from the true ones, and whether that changed; of regressions.

    R^2 is the mean over the numbers of a sample, each against its own variance, so that their
    units do not matter; a number that never varies has none. Its change is a mean over the samples,
    with the interval of a paired t test.

    Args:
        right: ``[N, M]``.
        before: The float model's.
        after: The other model's.

    Returns:
        ``truth_mse`` and ``truth_mae`` in the numbers' own unit, ``r2`` in % and ``r2_change`` in
        points; the last two only where something varies.
    """
    count = len(right)
    means = sum(block.astype(np.float64).sum(axis=0) for (block,) in blocks(right)) / count
    power = sum(((block - means) ** 2).sum(axis=0) for (block,) in blocks(right)) / count
    varies = power > 1e-12 * (means**2 + power)
    squared = absolute = 0.0
    losses = np.empty((2, count))
    start = 0
    for exact, old, new in blocks(right, before, after):
        errors = [values.astype(np.float64) - exact for values in (old, new)]
        squared += float((errors[1] ** 2).sum())
        absolute += float(np.abs(errors[1]).sum())
        if varies.any():
            stop = start + len(exact)
            for losses_of_model, error in zip(losses, errors, strict=True):
                losses_of_model[start:stop] = (error[:, varies] ** 2 / power[varies]).mean(axis=1)
            start = stop
    metrics = {
        "truth_mse": Measurement(squared / right.size, "unit^2", count),
        "truth_mae": Measurement(absolute / right.size, "unit", count),
    }
    if not varies.any():
        return metrics
    gained = 100 * (losses[0] - losses[1])
    change = float(gained.mean())
    low = high = None
    if count > 1:
        spread = float(gained.std(ddof=1)) / math.sqrt(count)
        spread *= float(_stats().t.ppf(0.975, count - 1))
        low, high = change - spread, change + spread
    return {
        **metrics,
        "r2": Measurement(100 * (1 - float(losses[1].mean())), "%", count),
        "r2_change": Measurement(change, "points", count, low, high, "" if low is None else _T),
    }


def by_chance(
    choices: npt.NDArray[np.integer[Any]], labels: npt.NDArray[np.integer[Any]]
) -> tuple[float, float]:
    """(share that is right by chance, p of as many right as there are), of 1.

    Chance has the classes of the choices and of the labels, and no link between them. The p is
    one-sided and binomial.

    Args:
        choices: The class that a model chose, ``[N]``.
        labels: The right class, ``[N]``.
    """
    classes = int(max(choices.max(), labels.max())) + 1
    shares = [
        np.bincount(classes_of_samples, minlength=classes) / len(labels)
        for classes_of_samples in (choices, labels)
    ]
    chance = min(1.0, float((shares[0] * shares[1]).sum()))
    right = int((choices == labels).sum())
    tested = _stats().binomtest(right, len(labels), chance, alternative="greater")
    return chance, float(tested.pvalue)


def is_probability(outputs: npt.NDArray[np.float32], *, step: float | None = None) -> bool:
    """Whether rows are probabilities that sum to 1, of which a KL divergence has a meaning.

    Of integers, a number may be off by a step (half of it is rounding, the rest the kernel's), and
    what is below half a step is 0; so sums are wrong by what follows from that, and no more. Sums
    of float16 and bfloat16 are wrong by less than 0.01.

    Args:
        outputs: ``[N, C]``.
        step: Scale of a quantized output; default: found from the numbers themselves.
    """
    if outputs.ndim != 2 or not len(outputs):
        return False
    if step is None:
        (first,) = next(iter(blocks(outputs)))
        step = _step(first)
    for (block,) in blocks(outputs):
        some = np.count_nonzero(block, axis=1)
        above = _HALF_SUM + some * step
        below = above + (block.shape[1] - some) * step / 2
        off = block.sum(axis=1, dtype=np.float64) - 1
        if block.min() < 0 or (off > above).any() or (off < -below).any():
            return False
    return True


def _step(values: npt.NDArray[np.float32]) -> float:
    """The step of which all numbers are multiples, as those of an integer output are; else 0."""
    different = np.unique(values).astype(np.float64)
    if not 2 < len(different) <= _LEVELS:
        return 0.0
    step = float(np.diff(different).min())
    multiples = different / step
    off = float(np.abs(multiples - np.rint(multiples)).max())
    return step if step <= _COARSEST and off < 0.01 else 0.0


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
        seed: Seed of the 2,000 resamples (Efron 1979).
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
        seed: Seed of the 2,000 resamples.
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


def ranking(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Classes ``[N, C]`` by probability; a stable order, so that equal ones rank alike anywhere."""
    return np.argsort(-outputs, axis=1, kind="stable")
