"""Fidelity: dead channels, constants that hide an error, and what must not be called dead."""

import numpy as np
import pytest

from edgekit.base.errors import InvalidDataError
from edgekit.records import fidelity

Array = np.ndarray


def _steps(values: Array, scale: float, zero: int = -128) -> Array:
    """What an int8 tensor of this scale holds of values."""
    found = np.clip(np.rint(values / scale) + zero, -128, 127)
    return ((found - zero) * scale).astype(np.float32)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def _judge(exact: Array, found: Array, *sizes: int) -> fidelity.Fidelity:
    flat = exact.reshape(len(exact), -1), found.reshape(len(found), -1)
    (result,) = fidelity.judge(*flat, {"output": sizes})
    return result


@pytest.fixture
def detector() -> Array:
    """Boxes of 0 to 320 and scores of 0 to 1 in one tensor ``[N, 50, 4 + 3]``."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 320, (40, 50, 4))
    scores = rng.beta(0.2, 2, (40, 50, 3))
    return np.concatenate([boxes, scores], axis=-1).astype(np.float32)


@pytest.mark.parametrize("channels_first", [False, True])
def test_scores_that_one_step_for_boxes_rounds_to_zero_are_dead(
    detector: Array, channels_first: bool
) -> None:
    int8 = _steps(detector, 320 / 255)
    int8[..., 4:] = 0
    if channels_first:
        detector, int8 = (np.moveaxis(part, -1, 1) for part in (detector, int8))
    found = _judge(detector, int8, *detector.shape[1:])
    assert found.sqnr > 30  # the whole output hides it
    assert found.level == "dead"
    axis = 1 if channels_first else 2
    assert [(c.axis, c.index) for c in found.dead] == [(axis, 4), (axis, 5), (axis, 6)]


def test_scores_with_a_step_of_their_own_are_close(detector: Array) -> None:
    int8 = np.concatenate(
        [_steps(detector[..., :4], 320 / 255), _steps(detector[..., 4:], 1 / 256)], axis=-1
    )
    found = _judge(detector, int8, 50, 7)
    assert (found.level, found.dead) == ("close", ())
    assert found.worst is not None and found.worst_sqnr > 30


def test_a_constant_in_place_of_a_regression_is_dead() -> None:
    exact = np.random.default_rng(0).normal(8, 1, (100, 1)).astype(np.float32)
    found = _judge(exact, np.full_like(exact, 8), 1)
    assert found.sqnr > 17
    assert found.level == "dead"
    assert found.sqnr_centred == pytest.approx(0, abs=0.2)


def test_a_reference_that_hardly_varies_is_judged_by_what_varies() -> None:
    rng = np.random.default_rng(0)
    exact = (1000 + rng.normal(0, 1, (50, 3))).astype(np.float32)
    found = _judge(exact, exact + rng.normal(0, 1, exact.shape).astype(np.float32), 3)
    assert found.hardly_varies and found.sqnr > 55
    assert found.sqnr_centred == pytest.approx(0, abs=1.5)
    assert found.level == "poor"


def test_rare_classes_of_a_softmax_are_not_dead() -> None:
    logits = np.random.default_rng(0).normal(0, 4, (200, 1000))
    logits[:, 500:] -= 20  # classes of which the samples hold none
    exact = _softmax(logits)
    found = _judge(exact, _steps(exact, 1 / 256), 1000)
    assert found.dead == ()
    assert found.level == "close"


def test_features_that_are_nearly_switched_off_are_faint_not_dead() -> None:
    rng = np.random.default_rng(0)
    exact = np.maximum(0, rng.normal(0, 2, (100, 64))).astype(np.float32)
    exact[:, 5] *= 1e-3
    found = _judge(exact, _steps(exact, float(exact.max()) / 255), 64)
    assert found.dead == ()
    assert [c.index for c in found.faint] == [5]
    assert found.level == "close"


def test_one_of_two_numbers_of_a_regression_that_its_step_swallows_is_dead() -> None:
    rng = np.random.default_rng(0)
    exact = np.stack([rng.uniform(1e5, 9e5, 100), rng.uniform(1, 9, 100)], axis=1)
    exact = exact.astype(np.float32)
    found = _judge(exact, _steps(exact, 9e5 / 255), 2)
    assert [c.index for c in found.dead] == [1]


def test_small_numbers_whose_whole_output_is_constant_are_dead() -> None:
    exact = np.random.default_rng(0).uniform(0, 0.01, (100, 3)).astype(np.float32)
    assert _judge(exact, np.zeros_like(exact), 3).level == "dead"


def test_equal_outputs_are_exact_and_levels_are_in_order() -> None:
    exact = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    found = _judge(exact, exact.copy(), 5)
    assert found.level == "exact" and found.sqnr == np.inf
    noisy = _judge(exact, exact + 0.2, 5)
    assert fidelity.worst([found, noisy]) == noisy.level


def test_one_sample_is_judged_by_its_numbers() -> None:
    exact = np.array([[1.0, 2.0, 3.0]], np.float32)
    found = _judge(exact, exact + np.float32(0.01), 3)
    assert found.sqnr == found.sqnr_centred
    assert not found.hardly_varies and found.level == "close"


def test_outputs_are_judged_one_by_one_and_a_scalar_is_one() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(30, 5)).astype(np.float32)
    other = exact.copy()
    other[:, 4] = 0
    first, second = fidelity.judge(exact, other, {"grid": (2, 2), "size": ()})
    assert (first.level, second.output) == ("exact", "size")
    assert second.level == "dead"


def test_blocks_of_samples_sum_to_the_same(
    detector: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = _steps(detector, 320 / 255)
    whole = _judge(detector, int8, 50, 7)
    monkeypatch.setattr(fidelity, "blocks", _by_seven)
    parts = _judge(detector, int8, 50, 7)
    assert parts.sqnr_centred == pytest.approx(whole.sqnr_centred)
    assert parts.dead == whole.dead


def test_a_table_that_is_the_same_for_all_samples_is_judged_by_its_size() -> None:
    anchors = np.broadcast_to(np.linspace(0, 1, 12, dtype=np.float32), (30, 12)).copy()
    found = _judge(anchors, _steps(anchors, 1 / 255), 12)
    assert (found.level, found.dead) == ("close", ())
    assert found.hardly_varies and found.sqnr_centred == found.sqnr > 40


def test_many_dead_channels_are_counted_and_some_are_listed() -> None:
    exact = np.random.default_rng(0).normal(size=(20, 100)).astype(np.float32)
    found = _judge(exact, np.where(np.arange(100) < 70, 0, exact).astype(np.float32), 100)
    assert (len(found.dead), found.dead_count) == (fidelity.LISTED, 70)
    assert fidelity.named(found) == "output: channels 0 to 31 of axis 1 and 38 more"


def test_channels_are_named_along_their_axis(detector: Array) -> None:
    int8 = detector.copy()
    int8[..., [0, 1, 4]] = 0
    assert fidelity.named(_judge(detector, int8, 50, 7)) == "output: channels 0, 1, 4 of axis 2"


def test_the_largest_error_is_held_against_the_range() -> None:
    exact = np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32)
    exact[0, 0], exact[1, 1] = -1, 1
    found = _judge(exact, exact + np.float32(0.5), 4)
    assert (found.low, found.high) == (-1, 1)
    assert found.max_error == pytest.approx(0.5) and found.error_share == pytest.approx(25)
    assert _judge(exact, exact, 4).error_share == 0


def _by_seven(*arrays: Array):
    for start in range(0, len(arrays[0]), 7):
        yield tuple(array[start : start + 7] for array in arrays)


@pytest.mark.parametrize("bad", ["shape", "nan", "empty"])
def test_what_cannot_be_judged_is_refused(bad: str) -> None:
    exact = np.ones((4, 2), np.float32)
    other = {"shape": np.ones((4, 3)), "nan": np.full((4, 2), np.nan), "empty": exact[:0]}[bad]
    with pytest.raises(InvalidDataError, match="expected|NaN"):
        fidelity.judge(exact[: len(other)], other.astype(np.float32), {"output": (2,)})
