from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import stats
from edgekit.errors import InvalidOptionError


def pairs(lost: int, gained: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(before, after) in which so many images are right in one only."""
    before, after = np.ones(count, bool), np.ones(count, bool)
    before[lost : lost + gained] = False
    after[:lost] = False
    return before, after


def test_the_bootstrap_of_counts_is_that_of_images() -> None:
    """Resampling N pairs one by one gives the same interval as drawing the counts."""
    before, after = pairs(30, 10, 1000)
    found = stats.paired_change(before, after)
    change = after.astype(float) - before
    random = np.random.default_rng(1)
    plain = [100 * change[random.integers(0, 1000, 1000)].mean() for _ in range(4000)]
    assert found.value == pytest.approx(-2)
    assert (found.low, found.high) == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.1)
    assert found == stats.paired_change(before, after)


def test_the_interval_covers_the_change() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        draw = random.choice(3, 1000, p=(0.03, 0.01, 0.96))
        found = stats.paired_change(draw != 1, draw != 0)
        assert found.low is not None and found.high is not None
        hits += found.low <= -2.0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_ten_thousand_images_take_no_time() -> None:
    before, after = pairs(40, 34, 10_000)
    stats.paired_change(before, after)
    started = time.perf_counter()
    stats.paired_change(before, after)
    assert time.perf_counter() - started < 0.1


def test_where_no_pair_differs_there_is_no_interval() -> None:
    found = stats.paired_change(*pairs(0, 0, 50))
    assert (found.value, found.low, found.high) == (0, None, None)


@pytest.mark.parametrize(
    ("discordance", "drop", "power"),
    [(0.005, 0.005, 0.8), (0.02, 0.005, 0.8), (0.1, 0.02, 0.9), (0.004, 0.001, 0.8)],
)
def test_the_images_that_are_needed_find_the_drop(
    discordance: float, drop: float, power: float
) -> None:
    """The exact test on 4,000 simulated sets of that size is significant so often."""
    count = stats.images_needed(discordance=discordance, drop=drop, power=power)
    shares = ((discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance)
    drawn = np.random.default_rng(0).multinomial(count, shares, 4000).tolist()
    hits = [lost > gained and stats.mcnemar_exact(lost, gained) < 0.05 for lost, gained, _ in drawn]
    assert power - 0.02 < float(np.mean(hits)) < power + 0.05
    exact = stats.mcnemar_power(count, discordance=discordance, drop=drop)
    assert float(np.mean(hits)) == pytest.approx(exact, abs=0.025)


def test_a_known_sample_size() -> None:
    """Connor's formula alone gives 1,568 for d = 0.02, D = 0.01, power 0.8; exact needs more."""
    assert 1568 <= stats.images_needed(discordance=0.02, drop=0.01, power=0.8) < 1.15 * 1568


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1), st.floats(0.001, 1), st.floats(0.5, 0.99))
def test_more_power_or_a_smaller_drop_need_more(d: float, drop: float, power: float) -> None:
    needed = stats.images_needed(discordance=d, drop=drop, power=power)
    assert stats.mcnemar_power(needed, discordance=max(d, drop), drop=drop) >= power - 0.01


@pytest.mark.parametrize(("drop", "power"), [(0, 0.8), (1.1, 0.8), (0.01, 0.4), (0.01, 1)])
def test_bounds_and_powers_that_mean_nothing(drop: float, power: float) -> None:
    with pytest.raises(InvalidOptionError, match="expected a"):
        stats.images_needed(discordance=0.1, drop=drop, power=power)


def test_a_warm_up_is_found_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    calm = random.lognormal(0, 0.1, (10, 20))
    assert stats.warm_up(calm) == 0
    slow = calm.copy()
    slow[:, :3] *= 1.8
    assert stats.warm_up(slow) == 3
    once = calm.copy()
    once[0, :5] *= 3  # one round that was disturbed is none
    assert stats.warm_up(once) == 0
    assert stats.warm_up(np.ones((3, 1))) == 0
    false = [stats.warm_up(random.lognormal(0, 0.3, (10, 20))) > 0 for _ in range(200)]
    assert np.mean(false) < 0.05


def test_mse_is_of_every_number_of_every_answer() -> None:
    exact = np.array([[1, 2], [3, 4]], np.float32)
    assert stats.mse(exact, exact).value == 0
    assert stats.mse(exact, exact + np.array([[0, 2]], np.float32)).value == 2
    assert stats.mse(exact[:, 0], exact[:, 1]).value == 1


def test_logits_are_no_probabilities() -> None:
    assert stats.is_probability(np.array([[0.5, 0.5], [0.2, 0.8]], np.float32))
    assert not stats.is_probability(np.array([[0.5, 0.5], [0.2, 0.9]], np.float32))
    assert not stats.is_probability(np.array([[1.5, -0.5]], np.float32))
