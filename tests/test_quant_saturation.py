from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.quantization import saturation
from edgekit.quantization.saturation import LIMIT

EVERY = np.arange(-128, 128)
#: Each of the 65,536 pairs of int8 weights, one a row.
PAIRS = np.stack(np.meshgrid(EVERY, EVERY), axis=-1).reshape(-1, 2).astype(np.int8)
SOURCE = """
#include <immintrin.h>
#include <stdint.h>

void maddubs(const uint8_t *activations, const int8_t *weights, int16_t *sums, long blocks) {
    for (long i = 0; i < blocks; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(activations + 32 * i));
        __m256i w = _mm256_loadu_si256((const __m256i *)(weights + 32 * i));
        _mm256_storeu_si256((__m256i *)(sums + 16 * i), _mm256_maddubs_epi16(a, w));
    }
}
"""


def one_by_one(activations: list[int], weights: list[int]) -> list[int]:
    """The instruction, a pair at a time in whole numbers."""
    found = []
    for i in range(0, len(weights), 2):
        total = activations[i] * weights[i] + activations[i + 1] * weights[i + 1]
        found.append(max(-32768, min(32767, total)))
    return found


def can_saturate(first: int, second: int) -> bool:
    """Whether any activation takes a pair of products out of int16; extremes are the worst."""
    sums = [a * first + b * second for a in (0, 255) for b in (0, 255)]
    return min(sums) < -32768 or max(sums) > 32767


def cases(count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int8]]:
    """Random operands ``[count]``, many of them extremes."""
    rng = np.random.default_rng(4)
    activations = rng.integers(0, 256, count, dtype=np.uint8)
    weights = rng.integers(-128, 128, count, dtype=np.int8)
    activations[rng.random(count) < 0.3] = 255
    weights[rng.random(count) < 0.2] = 127
    weights[rng.random(count) < 0.2] = -128
    return activations, weights


@pytest.fixture(scope="module")
def instruction(tmp_path_factory: pytest.TempPathFactory) -> ctypes._NamedFuncPointer:
    """``vpmaddubsw`` of this CPU."""
    compiler, flags = shutil.which("cc"), Path("/proc/cpuinfo")
    if compiler is None:
        pytest.skip("there is no C compiler (cc)")
    if not flags.is_file() or "avx2" not in flags.read_text().split():
        pytest.skip("the CPU has no AVX2")
    folder = tmp_path_factory.mktemp("instruction")
    (folder / "maddubs.c").write_text(SOURCE)
    library = folder / "maddubs.so"
    subprocess.run(
        [compiler, "-mavx2", "-shared", "-fPIC", "-o", library, folder / "maddubs.c"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    found = ctypes.CDLL(str(library)).maddubs
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    found.restype = None
    return found


def run(
    instruction: ctypes._NamedFuncPointer,
    activations: npt.NDArray[np.uint8],
    weights: npt.NDArray[np.int8],
) -> npt.NDArray[np.int16]:
    sums = np.zeros(activations.size // 2, np.int16)
    instruction(
        activations.ctypes.data, weights.ctypes.data, sums.ctypes.data, activations.size // 32
    )
    return sums


def test_the_model_sums_pairs_as_whole_numbers_do() -> None:
    activations, weights = cases(2000)
    found = saturation.vpmaddubsw(activations, weights)
    assert found.dtype == np.int16
    assert found.tolist() == one_by_one(activations.tolist(), weights.tolist())
    assert {-32768, 32767} <= set(found.tolist())


@pytest.mark.parametrize(
    "activations, weights, expected",
    [
        ((255, 255), (127, 127), 32767),
        ((255, 255), (-128, -128), -32768),
        ((255, 255), (127, -128), -255),
        ((255, 255), (64, 64), 32640),
        ((255, 127), (127, 3), 32766),
        ((0, 255), (127, 1), 255),
    ],
)
def test_known_sums(activations: tuple[int, ...], weights: tuple[int, ...], expected: int) -> None:
    found = saturation.vpmaddubsw(np.array(activations, np.uint8), np.array(weights, np.int8))
    assert found.tolist() == [expected]


def test_the_model_is_the_instruction_of_this_cpu(
    instruction: ctypes._NamedFuncPointer,
) -> None:
    activations, weights = cases(1 << 16)
    np.testing.assert_array_equal(
        saturation.vpmaddubsw(activations, weights), run(instruction, activations, weights)
    )
    full = np.full(PAIRS.shape, 255, np.uint8)
    np.testing.assert_array_equal(
        saturation.vpmaddubsw(full, PAIRS).ravel(), run(instruction, full, PAIRS)
    )


def test_a_pair_is_over_the_limit_if_and_only_if_it_can_saturate() -> None:
    over = saturation.pair_sums(PAIRS)[:, 0] > LIMIT
    assert over.tolist() == [can_saturate(a, b) for a, b in PAIRS.tolist()]
    assert 0 < over.sum() < len(over)


@pytest.mark.parametrize("length", [1, 2, 5, 8])
@pytest.mark.parametrize("largest", [60, 66, 127])
def test_predict_counts_what_can_saturate(length: int, largest: int) -> None:
    rng = np.random.default_rng(length * largest)
    for _ in range(20):
        rows = rng.integers(-largest, largest + 1, (4, length)).astype(np.int8)
        even = np.pad(rows, ((0, 0), (0, length % 2))).astype(int)
        bad = [[can_saturate(r[i], r[i + 1]) for i in range(0, len(r), 2)] for r in even]
        found = saturation.predict("layer", rows)
        assert found.pairs == sum(map(sum, bad))
        assert found.channels == sum(map(any, bad))
        assert (found.of_pairs, found.of_channels) == (4 * ((length + 1) // 2), 4)
        assert (found.largest > LIMIT) == (found.pairs > 0)
        assert found.layer == "layer"


@pytest.mark.parametrize("length", [2, 7, 8])
def test_shrink_keeps_pairs_within_the_limit_and_all_others(length: int) -> None:
    values = np.random.default_rng(length).uniform(-127, 127, (300, length))
    steps = np.rint(values)
    before = steps.copy()
    found = saturation.shrink(steps, values)
    assert saturation.predict("layer", found.astype(np.int8)).pairs == 0
    np.testing.assert_array_equal(steps, before)
    over = np.repeat(saturation.pair_sums(steps.astype(np.int8)) > LIMIT, 2, axis=1)[:, :length]
    assert over.any()
    np.testing.assert_array_equal(found[~over], steps[~over])
    pairs = length // 2 * 2
    moved = (found != steps)[:, :pairs].reshape(len(found), -1, 2).any(axis=2)
    np.testing.assert_array_equal(moved, over[:, :pairs:2])


def test_shrink_moves_a_pair_as_little_as_any_pair_within_the_limit() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(40, 127, (200, 2)) * rng.choice([-1, 1], (200, 1))
    steps = np.rint(values)
    found = saturation.shrink(steps, values)
    sizes = np.arange(LIMIT + 1)
    first, second = (each[sizes[:, None] + sizes <= LIMIT] for each in np.meshgrid(sizes, sizes))
    checked = 0
    for value, step, taken in zip(np.abs(values), np.abs(steps), np.abs(found), strict=True):
        if step.sum() <= LIMIT:
            continue
        least = ((first - value[0]) ** 2 + (second - value[1]) ** 2).min()
        assert ((taken - value) ** 2).sum() == pytest.approx(least)
        checked += 1
    assert checked > 50
    assert (np.sign(found) == np.sign(steps)).all()


def test_shrink_leaves_safe_weights_as_they_are() -> None:
    values = np.array([[64.2, 63.8, -127.0, 127.0, 127.0]])
    np.testing.assert_array_equal(saturation.shrink(np.rint(values), values), np.rint(values))


@pytest.mark.parametrize("length", [1, 6, 9])
def test_dot_is_exact_where_nothing_can_saturate(length: int) -> None:
    rng = np.random.default_rng(length)
    weights = rng.integers(-64, 65, (5, length)).astype(np.int8)
    activations = rng.integers(0, 256, (7, length)).astype(np.uint8)
    activations[0] = 255
    assert saturation.predict("layer", weights).pairs == 0
    found = saturation.dot(activations, weights)
    assert found.shape == (7, 5)
    np.testing.assert_array_equal(found, activations.astype(int) @ weights.T.astype(int))


def test_dot_is_cut_off_where_a_pair_saturates() -> None:
    weights = np.array([[127, 127, 1, 0, -5], [64, 64, 1, 0, -5]], np.int8)
    activations = np.full((1, 5), 255, np.uint8)
    assert saturation.predict("layer", weights).pairs == 1
    exact = (activations.astype(int) @ weights.T.astype(int))[0]
    found = saturation.dot(activations, weights)[0]
    assert found[0] == 32767 + 255 - 5 * 255 != exact[0]
    assert found[1] == exact[1]
