"""The clipping of least loss, against a search by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress import quantization
from tfcompress.errors import InputError
from tfcompress.quantization import clipped_grid, granularity


def increase(w, importance, grid):
    return np.sum(importance * (grid.dequantize(granularity.quantize(w, grid)) - w) ** 2)


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_no_other_share_of_the_range_is_better(bits, seed):
    random = np.random.default_rng(seed)
    w = random.standard_t(3, (20, 3)).astype(np.float32)
    importance = random.random(w.shape) ** 4
    found = clipped_grid(w, importance, (1,), bits)
    for channel in range(3):
        column, weight = w[:, channel : channel + 1], importance[:, channel : channel + 1]
        best = increase(column, weight, clipped_grid(column, weight, (), bits))
        for share in np.arange(1, 65) / 64:
            scale = np.abs(column).max(keepdims=True) * share / (2 ** (bits - 1) - 1)
            other = quantization.Grid(scale, np.zeros((1, 1), np.int64), quantization.Codes(bits))
            assert best <= increase(column, weight, other) * (1 + 1e-5) + 1e-12
        assert found.scale[0, channel] == clipped_grid(column, weight, (), bits).scale


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_the_grid_is_found_again_in_the_rounded_kernel(bits, seed):
    w = np.random.default_rng(seed).normal(size=(9, 4)).astype(np.float32)
    grid = clipped_grid(w, None, (1,), bits)
    rounded = grid.dequantize(granularity.quantize(w, grid))
    again = quantization.fit(rounded, (1,), codes=quantization.Codes(bits))
    np.testing.assert_array_equal(again.scale, grid.scale)
    np.testing.assert_array_equal(again.dequantize(granularity.quantize(rounded, again)), rounded)


def test_importance_decides_what_is_clipped():
    w = np.array([[0.1, -0.2, 0.3, 10.0]])
    for kept, most in (([1, 1, 1, 0], 0.5), ([0, 0, 0, 1], 10.0)):
        grid = clipped_grid(w, np.array([kept]), bits=4)
        assert (grid.scale * 7 <= most).all() and (grid.scale * 7 > 0.9 * most * (most > 1)).all()


def test_a_channel_of_zeros_stays_and_too_few_candidates_are_refused():
    grid = clipped_grid(np.zeros((3, 2)), None, (1,))
    assert (grid.dequantize(granularity.quantize(np.zeros((3, 2)), grid)) == 0).all()
    with pytest.raises(InputError, match="candidates of clipping must be at least 2"):
        clipped_grid(np.ones((2, 2)), candidates=1)
