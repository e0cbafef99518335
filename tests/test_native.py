"""C libraries while numpy computes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy._core import _multiarray_umath  # type: ignore[attr-defined]

from edgekit.base import native
from edgekit.records.encodings import Encoding

THREADS = "scipy_openblas_get_num_threads64_"


def test_one_thread_of_blas_and_all_of_them_afterwards() -> None:
    blas = ctypes.CDLL(_multiarray_umath.__file__)
    if not hasattr(blas, THREADS):
        pytest.skip("this numpy brings no OpenBLAS")
    before = blas[THREADS]()
    with pytest.raises(KeyError), native.steady():
        assert blas[THREADS]() == 1
        raise KeyError
    assert blas[THREADS]() == before


def test_the_same_numbers() -> None:
    given = np.random.default_rng(0).normal(0, 1, (4, 300, 300)).astype(np.float32)
    expected = np.linalg.inv(given) @ given
    with native.steady():
        found = np.linalg.inv(given) @ given
    assert np.allclose(found, expected, atol=1e-2)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 1000, 50)])
def test_rounding_in_place_and_in_blocks(shape: tuple[int, ...]) -> None:
    given = np.asarray(np.random.default_rng(0).normal(0, 1, shape), np.float32)
    steps = np.clip(np.rint(given / np.float32(0.01)) + 3, -128, 127) - 3
    encoding, kept = Encoding("int8", (0.01,), 3), given.copy()
    found = encoding.fake_quantize(given)
    assert np.array_equal(found, np.asarray(steps * np.float32(0.01), np.float32))
    assert np.array_equal(given, kept)
    assert np.shares_memory(encoding.fake_quantize(given, inplace=True), given) or not given.size
    assert np.array_equal(given, found)
