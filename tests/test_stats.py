from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import InvalidOptionError
from edgekit.records import stats


def pairs(lost: int, gained: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(before, after) in which so many images are right in one only."""
    before, after = np.ones(count, bool), np.ones(count, bool)
    before[lost : lost + gained] = False
    after[:lost] = False
    return before, after


def test_the_interval_covers_the_change() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        draw = random.choice(3, 1000, p=(0.03, 0.01, 0.96))
        found = stats.paired_change(draw != 1, draw != 0)
        assert found.low is not None and found.high is not None
        hits += found.low <= -2.0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_where_no_pair_differs_few_images_still_leave_doubt() -> None:
    few, many = (stats.paired_change(*pairs(0, 0, count)) for count in (50, 10_000))
    assert few.value == many.value == 0
    assert few.low == pytest.approx(-3.77, abs=0.01) and few.high == pytest.approx(3.77, abs=0.01)
    assert many.low == pytest.approx(-0.02, abs=0.001)


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


def _rows(classes: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(classes).normal(0, sharpness, (400, classes))
    return stats.softmax(logits.astype(np.float32))


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("sharpness", [0.5, 4])
@pytest.mark.parametrize("known", [True, False])
def test_a_softmax_of_integers_is_probabilities(
    classes: int, sharpness: float, known: bool
) -> None:
    """Sums are off by steps: of 1,000 even classes each number is rounded to 0."""
    step = 1 / 256
    rounded = (np.clip(np.rint(_rows(classes, sharpness) / step), 0, 255) * step).astype(np.float32)
    kernel = rounded + step * (np.random.default_rng(0).random(rounded.shape) < 0.01)
    for found in (rounded, kernel.astype(np.float32)):
        if known or len(np.unique(found)) > 2:
            assert stats.is_probability(found, step=step if known else None)


@pytest.mark.parametrize("step", [1 / 256, None])
def test_scores_of_a_sigmoid_in_integers_are_no_probabilities(step: float | None) -> None:
    random = np.random.default_rng(0)
    scores = np.rint(random.beta(0.5, 2, (200, 20)) * 255) / 256
    assert not stats.is_probability(scores.astype(np.float32), step=step)
    logits = np.rint(random.normal(0, 40, (200, 20))) / 16
    assert not stats.is_probability(logits.astype(np.float32), step=step)


def test_right_by_chance_has_the_classes_of_both() -> None:
    labels = np.repeat([0, 1], [900, 100])
    chance, p = stats.by_chance(np.zeros(1000, int), labels)
    assert chance == pytest.approx(0.9) and p > 0.5  # always the larger class
    random = np.random.default_rng(0)
    chance, p = stats.by_chance(random.permutation(labels), labels)
    assert chance == pytest.approx(0.82) and p > 0.05
    chance, p = stats.by_chance(labels, labels)
    assert chance == pytest.approx(0.82) and p < 1e-9


def test_right_numbers_are_explained_whatever_their_units() -> None:
    random = np.random.default_rng(0)
    right = np.stack([random.normal(0, 1, 4000), random.normal(500, 1e4, 4000)], axis=1)
    before = right + random.normal(0, [0.1, 1e3], right.shape)
    after = right + random.normal(0, [0.2, 1e3], right.shape)
    arrays = [array.astype(np.float32) for array in (right, before, after)]
    found = stats.truth(*arrays)
    assert found["r2"].value == pytest.approx(100 * (1 - (0.04 + 0.01) / 2), abs=0.2)
    change = found["r2_change"]
    assert change.low is not None and change.high is not None
    assert change.low < -1.5 < change.high < 0
    assert found["truth_mae"].value == pytest.approx(np.abs(after - right).mean(), rel=1e-3)
    same = stats.truth(arrays[0], arrays[1], arrays[1])["r2_change"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert set(stats.truth(*(np.ones((3, 2), np.float32),) * 3)) == {"truth_mse", "truth_mae"}
