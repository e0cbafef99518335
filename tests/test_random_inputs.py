"""Random numbers that two graphs of one model are compared on."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.sources import random_inputs

INPUTS = [((2, 3), np.float32), ((4,), np.int64), ((), np.float16), ((64,), np.bool_)]


@pytest.mark.parametrize("least", [-1, 0])
def test_each_input_gets_numbers_of_its_sizes_and_dtype(least: float) -> None:
    arrays = random_inputs.draw(INPUTS, seed=0, least=least)
    assert [(values.shape, values.dtype) for values in arrays] == INPUTS
    wide = random_inputs.draw([((1000,), "float32"), ((1000,), "int32")], seed=0, least=least)
    assert least <= wide[0].min() < least + 0.1 and 0.9 < wide[0].max() <= 1
    assert set(wide[1]) == {0, 1}


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, again, other = (random_inputs.draw(INPUTS, seed=s, least=-1) for s in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    # one stream for all inputs, in their order
    generator = np.random.default_rng(0)
    assert np.array_equal(first[0], generator.uniform(-1, 1, (2, 3)).astype(np.float32))
    assert np.array_equal(first[1], generator.integers(0, 2, 4))
