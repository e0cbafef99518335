from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import InvalidOptionError
from edgekit.data import images as image_sets
from edgekit.graph import litert
from edgekit.pipeline.calibration import SHARE, observe
from edgekit.quantization import ranges
from edgekit.quantization.histogram import BINS, Histogram, StreamingHistogram
from edgekit.quantization.table import METHODS, TensorStatistics
from edgekit.records.signature import preprocessing
from edgekit.sources import convert
from edgekit.sources.keras import tf_keras

Floats = npt.NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
VALUES = st.one_of(
    st.floats(-8, 8, width=32),
    st.floats(-LARGEST, LARGEST, width=32),
    st.floats(-(2.0**-100), 2.0**-100, width=32),
    st.sampled_from([0.0, -0.0, 1.9, 2.1, -1.0, LARGEST, -LARGEST, 2.0**-149, -(2.0**-149)]),
)
CHUNKS = st.lists(st.lists(VALUES, min_size=1, max_size=8), min_size=1, max_size=6)


def spread(*chunks: npt.ArrayLike) -> Histogram:
    found = StreamingHistogram()
    for chunk in chunks:
        found.add(np.asarray(chunk, np.float32))
    return found.result()


def seen(values: Floats) -> TensorStatistics:
    """What calibration would keep of one tensor that held these values in one image."""
    low, high = float(values.min()), float(values.max())
    return TensorStatistics(
        min=low,
        max=high,
        average_min=low,
        average_max=high,
        histogram=spread(values),
        channel_min=(low,),
        channel_max=(high,),
        channel_mean=(float(values.mean(dtype=np.float64)),),
    )


def normal(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0.5, 1.0, count).astype(np.float32)


@given(CHUNKS)
@settings(max_examples=150, deadline=None)
def test_a_histogram_in_pieces_is_that_of_one_look(chunks: list[list[float]]) -> None:
    assert spread(*chunks) == spread(sum(chunks, []))


@given(CHUNKS, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_a_histogram_does_not_depend_on_the_order(
    chunks: list[list[float]], random: object
) -> None:
    other = [list(chunk) for chunk in chunks]
    random.shuffle(other)  # type: ignore[attr-defined]
    assert spread(*other) == spread(*chunks)


@pytest.mark.parametrize("chunks", [([1.9], [2.1]), ([-2.1], [-1.9]), ([3.0], [5.0], [3.5])])
def test_values_on_one_side_of_zero_come_in_any_order(chunks: tuple[list[float], ...]) -> None:
    assert spread(*chunks) == spread(*reversed(chunks)) == spread(sum(chunks, []))


@given(CHUNKS)
@settings(max_examples=150, deadline=None)
def test_every_value_is_counted_in_its_own_bin(chunks: list[list[float]]) -> None:
    found = spread(*chunks)
    values = np.concatenate([np.asarray(chunk, np.float32) for chunk in chunks])
    expected = Counter(math.floor(float(value) / found.width) for value in values)
    counted = {found.start + i: n for i, n in enumerate(found.counts) if n}
    assert counted == dict(expected)
    assert sum(found.counts) == len(values)


@pytest.mark.parametrize("top", [1.0, 1.5, 1e-20, 3e38])
@pytest.mark.parametrize("bottom", [0.0, -0.3, -1.0])
def test_narrower_bins_would_not_reach(bottom: float, top: float) -> None:
    low, high = np.float32(bottom * top), np.float32(top)
    found = spread([low, 0.0, high])
    half = found.width / 2
    assert math.floor(float(high) / half) - math.floor(float(low) / half) >= BINS
    assert len(found.counts) <= BINS


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, LARGEST, -LARGEST, 2.0**-149])
def test_one_value_again_and_again_fills_one_bin(value: float) -> None:
    found = spread([value] * 3, [value] * 4)
    assert found.counts == (7,)
    assert found.start * found.width <= value < (found.start + 1) * found.width


@pytest.mark.parametrize("percent", [99.99, 99.0, 90.0, 50.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_percentile_cuts_where_sorted_values_are_cut(percent: float, seed: int) -> None:
    values = normal(4999, seed)
    found = spread(values)
    low, high = ranges.percentile(found, percent)
    ordered = np.sort(values)
    cut = math.floor(len(values) * (100 - percent) / 200)
    assert low <= ordered[cut] < low + found.width
    assert high - found.width <= ordered[-1 - cut] < high


def divergences(counts: list[int], levels: int) -> dict[int, float]:
    """KL(P || Q) of every number of bins kept, a bin at a time."""
    found = {}
    for end in range(levels, len(counts) + 1):
        p = [float(count) for count in counts[:end]]
        p[-1] += sum(counts[end:])
        q = [0.0] * end
        for level in range(levels):
            step = range(level * end // levels, (level + 1) * end // levels)
            filled = [i for i in step if counts[i] > 0]
            for i in filled:
                q[i] = sum(counts[j] for j in step) / len(filled)
        q = [0.5 if p[i] > 0 and q[i] == 0 else q[i] for i in range(end)]
        found[end] = sum(
            p[i] / sum(p) * math.log((p[i] / sum(p)) / (q[i] / sum(q)))
            for i in range(end)
            if p[i] > 0
        )
    return found


@pytest.mark.parametrize("levels, bins", [(2, 9), (4, 24), (8, 30)])
def test_entropy_takes_the_least_divergence(levels: int, bins: int) -> None:
    rng = np.random.default_rng(levels)
    ends = set()
    for _ in range(20):
        rates = 40 * np.exp(-np.arange(bins) / rng.uniform(1, bins))
        counts = rng.poisson(rates)
        counts[rng.random(bins) < 0.2] = 0
        counts[0] += 1
        threshold = ranges.entropy(counts.astype(np.float64), 0.25, levels=levels)
        by_end = divergences(counts.tolist(), levels)
        end = round(threshold / 0.25)
        assert threshold == end * 0.25
        assert by_end[end] == pytest.approx(min(by_end.values()), abs=1e-12)
        ends.add(end)
    assert len(ends) > 1


def test_entropy_keeps_all_where_bins_are_fewer_than_steps() -> None:
    assert ranges.entropy(np.ones(5), 0.5, levels=8) == 2.5


def test_magnitudes_fold_both_signs_onto_one_axis() -> None:
    found = Histogram(0.5, -3, (1, 2, 4, 8, 16))
    counts, width = ranges.magnitudes(found)
    assert (counts.tolist(), width) == ([4 + 8, 2 + 16, 1], 0.5)


def steps_back(value: float, low: float, high: float) -> float:
    """One value through 256 steps of which one is 0."""
    scale = (high - low) / 255
    if scale == 0:
        return 0.0
    zero_point = round(-low / scale)
    return (min(max(round(value / scale) + zero_point, 0), 255) - zero_point) * scale


@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.0, 2.0), (-5.0, 0.0), (-0.7, 0.1), (0, 0)])
def test_256_steps_give_values_back(low: float, high: float) -> None:
    values = np.random.default_rng(9).uniform(low - 1, high + 1, 200)
    np.testing.assert_allclose(
        ranges.quantized(values, low, high), [steps_back(value, low, high) for value in values]
    )


@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.0, 2.0), (-5.0, 0.0)])
def test_mse_takes_the_least_error_of_all_on_its_grid(low: float, high: float) -> None:
    rng = np.random.default_rng(5)
    values = rng.uniform(low, high, 40) ** 3 / max(high, -low) ** 2
    counts = rng.integers(1, 5, 40)
    fractions = [0.2 + 0.02 * i for i in range(41)]
    errors = {}
    for a in fractions if low else [0.0]:
        for b in fractions if high else [0.0]:
            pair = (low * a, high * b)
            errors[pair] = sum(
                n * (v - steps_back(v, *pair)) ** 2 for v, n in zip(values, counts, strict=True)
            )
    found = ranges.mse(values, counts.astype(np.float64), low, high)
    taken = min(errors, key=lambda pair: abs(pair[0] - found[0]) + abs(pair[1] - found[1]))
    assert taken == pytest.approx(found, abs=1e-9)
    assert errors[taken] == pytest.approx(min(errors.values()), rel=1e-9)
    assert min(errors.values()) < 0.99 * max(errors.values())


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_a_rare_outlier_is_cut_off_and_minmax_keeps_it(method: str) -> None:
    values = np.append(normal(100_000), np.float32(60.0))
    found = seen(values)
    assert ranges.find(found, "minmax").max == 60.0
    assert ranges.find(found, method).max < 54.0


@given(st.lists(VALUES, min_size=1, max_size=30), st.sampled_from([0.0, -1.0, 1.0]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_method_stays_within_the_extremes(
    values: list[float], side: float, many: bool
) -> None:
    array = np.asarray(values, np.float32)
    if side:
        array = np.float32(side) * np.abs(array)
    if many:
        array = np.concatenate([array, np.float32(side or 1.0) * np.abs(normal(500))])
    found = seen(array)
    for method in METHODS:
        taken = ranges.find(found, method)
        assert float(array.min()) <= taken.min <= taken.max <= float(array.max()), method


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="expected method minmax.*got 'median'"):
        ranges.find(seen(normal(10)), "median")


def test_moving_average_follows_image_after_image() -> None:
    keras = tf_keras()
    keras.utils.set_random_seed(3)
    image = keras.Input((6, 6, 1), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    canonical = convert.from_keras(keras.Model(image, x))
    rng = np.random.default_rng(2)
    growing = np.linspace(0.1, 3, 150, dtype=np.float32)[:, None, None, None]
    pixels = rng.normal(size=(150, 6, 6, 1)).astype(np.float32) * growing
    table = observe(
        canonical,
        image_sets.make("set", pixels, None),
        prepare=preprocessing("unit"),
        method="moving-average",
    )
    opened = litert.interpreter(canonical, experimental_preserve_all_tensors=True)
    tensors = litert.activations(opened)
    averages: dict[str, list[float]] = {}
    for pixel in preprocessing("unit").apply(pixels):
        opened.set_tensor(opened.get_input_details()[0]["index"], pixel[None])
        opened.invoke()
        for tensor in tensors:
            values = opened.get_tensor(tensor.index)
            ends = [float(values.min()), float(values.max())]
            before = averages.get(tensor.name, ends)
            averages[tensor.name] = [
                (1 - SHARE) * old + SHARE * new for old, new in zip(before, ends, strict=True)
            ]
    assert len(averages) == len(table.ranges) == 3
    for name, (low, high) in averages.items():
        assert table.ranges[name].min == pytest.approx(low, rel=1e-5)
        assert table.ranges[name].max == pytest.approx(high, rel=1e-5)
        assert table.ranges[name].max < 0.9 * table.statistics[name].max
