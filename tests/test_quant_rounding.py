from __future__ import annotations

import numpy as np
import pytest

from edgekit.quantization import rounding, saturation
from edgekit.quantization.rounding import DAMPING, LARGEST, Floats


def correlated(count: int, length: int, seed: int = 0) -> Floats:
    """Inputs ``[N, K + 1]`` that move together, of uneven strength; the last is 1."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, 3)) @ rng.normal(size=(3, length))
    inputs = (common + 0.3 * rng.normal(size=(count, length))) * rng.uniform(0.2, 2, length)
    return np.concatenate([np.abs(inputs), np.ones((count, 1))], axis=1)


def second_moments(inputs: Floats) -> Floats:
    return inputs.T @ inputs / len(inputs)


def layer(rows: int, length: int, seed: int = 1) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, length)), rng.normal(size=rows)


def answers(inputs: Floats, rows: Floats, bias: Floats) -> Floats:
    return inputs[:, :-1] @ rows.T + bias


def damped(moments: Floats) -> Floats:
    found = moments.copy()
    length = len(moments) - 1
    found[range(length), range(length)] += DAMPING * np.diag(moments)[:length].mean()
    return found


def pairs_over(steps: Floats) -> int:
    return saturation.predict("layer", steps.astype(np.int8)).pairs


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("length", [12, 130])
def test_rounding_by_answers_beats_nearest(length: int, seed: int) -> None:
    inputs = correlated(2000, length, seed)
    rows, bias = layer(6, length, seed + 10)
    scale = rounding.scales(rows) * 8  # coarse, as 4 bits are
    expected = answers(inputs, rows, bias)
    plain = rounding.nearest(rows, scale, pair_bound=False) * scale[:, None]
    steps, given = rounding.round_rows(rows, bias, second_moments(inputs), scale, pair_bound=False)
    nearest_error = (expected - answers(inputs, plain, bias)) ** 2
    error = (expected - answers(inputs, steps * scale[:, None], given)) ** 2
    assert error.sum() < 0.5 * nearest_error.sum()
    assert (error.sum(axis=0) < nearest_error.sum(axis=0)).all()


@pytest.mark.parametrize("length", [7, 100])
def test_each_rounding_is_made_up_for_by_the_best_of_what_is_free(length: int) -> None:
    moments = second_moments(correlated(500, length))
    rows, bias = layer(3, length)
    scale = rounding.scales(rows) * 4
    steps, given = rounding.round_rows(rows, bias, moments, scale, pair_bound=False)
    hessian = damped(moments)
    order = np.argsort(-np.diag(moments)[:length], kind="stable")
    for row in range(3):
        wanted = np.append(rows[row], bias[row])
        free = wanted.copy()
        fixed: list[int] = []
        for place in order:
            step = np.clip(np.rint(free[place] / scale[row]), -LARGEST, LARGEST)
            assert step == steps[row, place]
            free[place] = step * scale[row]
            fixed.append(place)
            others = np.setdiff1d(np.arange(length + 1), fixed)
            moved = hessian[np.ix_(others, fixed)] @ (wanted - free)[fixed]
            free[others] = wanted[others] + np.linalg.solve(hessian[np.ix_(others, others)], moved)
        assert given[row] == pytest.approx(free[length], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("pair_bound", [False, True])
def test_independent_inputs_make_it_nearest(pair_bound: bool) -> None:
    rng = np.random.default_rng(3)
    whole = rng.integers(-60, 61, (5, 11)) + rng.uniform(-0.4, 0.4, (5, 11))
    scale = rng.uniform(0.01, 1, 5)
    bias = rng.normal(size=5)
    steps, given = rounding.round_rows(
        whole * scale[:, None], bias, np.eye(12), scale, pair_bound=pair_bound
    )
    np.testing.assert_array_equal(steps, np.rint(whole))
    np.testing.assert_allclose(given, bias, atol=1e-12)


def test_steps_stay_within_narrow_int8() -> None:
    rows, bias = layer(6, 40)
    scale = rounding.scales(rows) / 2  # half of what reaches the largest weight
    moments = second_moments(correlated(500, 40))
    for pair_bound in (False, True):
        steps, _ = rounding.round_rows(rows, bias, moments, scale, pair_bound=pair_bound)
        assert (steps == np.rint(steps)).all()
        assert np.abs(steps).max() == LARGEST
        assert np.abs(rounding.nearest(rows, scale, pair_bound=pair_bound)).max() == LARGEST


@pytest.mark.parametrize("length", [7, 8, 195, 200])
def test_pairs_stay_within_their_limit(length: int) -> None:
    rng = np.random.default_rng(length)
    rows = rng.uniform(0.5, 1, (8, length)) * rng.choice([-1, 1], (8, 1))
    bias = rng.normal(size=8)
    scale = rounding.scales(rows)
    moments = second_moments(correlated(1000, length))
    free, _ = rounding.round_rows(rows, bias, moments, scale, pair_bound=False)
    bound, _ = rounding.round_rows(rows, bias, moments, scale, pair_bound=True)
    assert pairs_over(free) > 0
    assert pairs_over(bound) == 0
    assert np.abs(bound).max() <= LARGEST
    if length % 2:
        assert np.abs(bound[:, -1]).max() > saturation.LIMIT // 2  # a last one has no partner
    plain = rounding.nearest(rows, scale, pair_bound=False)
    assert pairs_over(plain) > 0
    assert pairs_over(rounding.nearest(rows, scale, pair_bound=True)) == 0


def test_pairs_of_opposite_signs_keep_all_their_steps() -> None:
    rng = np.random.default_rng(2)
    rows = rng.uniform(0.5, 1, (6, 20)) * np.tile([1, -1], 10)
    bias, scale = rng.normal(size=6), rounding.scales(rows)
    moments = second_moments(np.abs(rng.normal(size=(500, 21))))
    steps = [
        rounding.round_rows(rows, bias, moments, scale, pair_bound=pair_bound)[0]
        for pair_bound in (False, True)
    ]
    assert np.abs(steps[0]).max() > 120
    np.testing.assert_array_equal(*steps)


@pytest.mark.parametrize("length", [9, 120])
@pytest.mark.parametrize("pair_bound", [False, True])
def test_moments_of_each_row_give_what_each_row_alone_gives(length: int, pair_bound: bool) -> None:
    stacked = []
    for seed in range(4):
        inputs = correlated(400, length, seed)
        strongest_first = np.argsort(-(inputs[:, :-1] ** 2).sum(axis=0))
        stacked.append(second_moments(inputs[:, [*strongest_first, length]]))
    moments = np.stack(stacked)
    rows, bias = layer(4, length)
    scale = rounding.scales(rows)
    steps, given = rounding.round_rows(rows, bias, moments, scale, pair_bound=pair_bound)
    for i in range(4):
        one = slice(i, i + 1)
        alone, alone_bias = rounding.round_rows(
            rows[one], bias[one], moments[i], scale[one], pair_bound=pair_bound
        )
        np.testing.assert_array_equal(steps[one], alone)
        np.testing.assert_allclose(given[one], alone_bias, rtol=1e-6, atol=1e-9)
    others = np.roll(moments, 1, axis=0)
    changed, _ = rounding.round_rows(rows, bias, others, scale, pair_bound=pair_bound)
    assert (changed != steps).any()


@pytest.mark.parametrize("stacked", [False, True])
def test_the_bias_takes_up_the_mean_error(stacked: bool) -> None:
    inputs = correlated(800, 20)
    rows, bias = layer(5, 20)
    scale = rounding.scales(rows) * 6
    moments = second_moments(inputs)
    given_moments = np.stack([moments] * 5) if stacked else moments
    steps, given = rounding.round_rows(rows, bias, given_moments, scale, pair_bound=True)
    expected = answers(inputs, rows, bias)
    error = expected - answers(inputs, steps * scale[:, None], given)
    uncorrected = expected - answers(inputs, steps * scale[:, None], bias)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-6)
    assert np.abs(uncorrected.mean(axis=0)).max() > 1e-3


def halves(inputs: Floats, error: Floats, *, stacked: bool = False) -> list[rounding.Part]:
    """What two halves of the samples say of a layer with that error."""
    found = []
    for x, e in zip(np.array_split(inputs, 2), np.array_split(error, 2), strict=True):
        moments = second_moments(x)
        given = np.stack([moments] * e.shape[1]) if stacked else moments
        found.append(rounding.Part(len(x), given, e.T @ x / len(x)))
    return found


@pytest.mark.parametrize("stacked", [False, True])
def test_fit_finds_a_linear_error_that_was_planted(stacked: bool) -> None:
    rng = np.random.default_rng(8)
    inputs = np.concatenate([rng.normal(0.3, 1, (4000, 6)), np.ones((4000, 1))], axis=1)
    rows, bias = layer(3, 6)
    planted = rng.normal(size=(3, 7))
    error = inputs @ planted.T
    changed, changed_bias = rounding.fit(rows, bias, halves(inputs, error, stacked=stacked))
    np.testing.assert_allclose(changed, rows + planted[:, :-1], atol=0.05)
    np.testing.assert_allclose(changed_bias, bias + planted[:, -1], atol=0.05)
    left = answers(inputs, rows, bias) + error - answers(inputs, changed, changed_bias)
    assert (left**2).sum() < 0.001 * (error**2).sum()
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("stacked", [False, True])
def test_fit_leaves_the_weights_where_the_inputs_do_not_explain_the_error(stacked: bool) -> None:
    """Few samples, many inputs, an error that is noise: the other half shows that it is."""
    rng = np.random.default_rng(9)
    inputs, unseen = np.split(correlated(2060, 40), [60])
    rows, bias = layer(3, 40)
    error = 0.5 + rng.normal(0, 1, (60, 3))
    changed, changed_bias = rounding.fit(rows, bias, halves(inputs, error, stacked=stacked))
    moved = answers(unseen, changed, changed_bias) - answers(unseen, rows, bias)
    assert ((moved - 0.5) ** 2).mean() < 0.2  # the mean is taken up, the noise is not learned


def test_fit_leaves_a_layer_without_error_alone() -> None:
    rows, bias = layer(3, 6)
    inputs = correlated(100, 6)
    changed, changed_bias = rounding.fit(rows, bias, halves(inputs, np.zeros((100, 3))))
    np.testing.assert_array_equal(changed, rows)
    np.testing.assert_array_equal(changed_bias, bias)


def test_scales_reach_the_largest_weight_with_the_last_step() -> None:
    rows = np.array([[0.5, -2.54], [0.0, 0.0], [1.27, 1.0]])
    np.testing.assert_allclose(rounding.scales(rows), [0.02, 1.0, 0.01])


@pytest.mark.parametrize("weighted", [False, True])
def test_raised_scales_never_cost_more(weighted: bool) -> None:
    rng = np.random.default_rng(6)
    importance = rng.uniform(0, 4, 10) if weighted else None
    one_sign = rng.uniform(0.7, 1, (40, 10))
    rows = np.concatenate([one_sign, rng.normal(size=(40, 10)), rng.normal(size=(40, 10)) ** 3])
    scale = rounding.scales(rows)
    found = rounding.pair_scales(rows, scale, importance)

    def error(of: Floats) -> Floats:
        rounded = rounding.nearest(rows, of, pair_bound=True) * of[:, None]
        weights = np.ones(10) if importance is None else importance
        return ((rows - rounded) ** 2 * weights).sum(axis=1)

    assert (found >= scale).all()
    assert (error(found) <= error(scale) * (1 + 1e-9)).all()
    assert (found[:40] > 1.2 * scale[:40]).all()
    assert (error(found)[:40] < 0.9 * error(scale)[:40]).all()
    assert (found == scale).any()


@pytest.mark.parametrize("size", [0.05, 1.0, 30.0])
def test_few_samples_choose_the_damping_that_their_moments_do(size: float) -> None:
    inputs = correlated(30, 120).astype(np.float32)
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.1, (30, 4))
    errors = (inputs @ rng.normal(0, size, (121, 4)) + noise).astype(np.float32)
    parts = []
    for x, error in zip(np.array_split(inputs, 2), np.array_split(errors, 2), strict=True):
        exact, wide = x.astype(np.float64), error.astype(np.float64)
        cross = wide.T @ exact / len(x)
        parts.append(rounding.Part(len(x), second_moments(exact), cross, x, error))
    found = rounding._left_by_samples(parts)
    expected = [
        sum(
            rounding._left(own, rounding._ridge(other, damping))
            for own, other in (parts, parts[::-1])
        )
        for damping in rounding.DAMPINGS
    ]
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("best", [0.01, 0.08, 1.0, 3.0, 20.0, 100.0])
def test_the_damping_is_the_least_of_a_parabola(best: float) -> None:
    left = 5 * (np.log(rounding.DAMPINGS) - np.log(best)) ** 2 - 7
    assert rounding._least(left) == pytest.approx(best)


@pytest.mark.parametrize(
    "left, damping",
    [
        ((0.0, 10.0, 20.0), 0.01),  # the least of the parabola lies in front of it
        ((20.0, 10.0, 5.0), 100.0),
        ((3.0, 4.0, 1.0), 100.0),  # it has none
        ((0.0, 0.0, 0.0), 0.01),
        ((-1.0, -2.0, -3.0), 100.0),
    ],
)
def test_no_damping_is_chosen_that_was_not_seen(left: tuple[float, ...], damping: float) -> None:
    assert rounding._least(np.array(left)) == pytest.approx(damping)
