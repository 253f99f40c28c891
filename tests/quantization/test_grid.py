"""Grids: codes, scales, zero points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcompress.errors import InputError
from tfcompress.quantization import ACTIVATIONS, WEIGHTS, Codes, Grid, kernel_scale
from tfcompress.quantization.grid import grid

CODES = st.builds(Codes, st.integers(2, 16), st.booleans(), st.booleans())
ENDS = st.floats(0, 1e6, allow_subnormal=False)


def test_codes_are_those_of_tflite():
    assert (WEIGHTS.lowest, WEIGHTS.highest) == (-127, 127)
    assert (ACTIVATIONS.lowest, ACTIVATIONS.highest) == (-128, 127)
    assert (Codes(4).lowest, Codes(4).highest) == (-7, 7)
    assert (Codes(16, narrow=False).lowest, Codes(16).highest) == (-32768, 32767)
    assert (Codes(2).lowest, Codes(2).highest) == (-1, 1)


@given(codes=CODES, below=ENDS, above=ENDS)
def test_the_grid_covers_the_range_and_holds_zero(codes, below, above):
    made = grid(-below, above, codes)
    zero = np.clip(made.zero_point, codes.lowest, codes.highest)
    assert zero == made.zero_point and made.dequantize(zero) == 0
    ends = (np.array([codes.lowest, codes.highest]) - made.zero_point) * made.scale
    # A zero point that is a whole number moves a range by half a step at most.
    slack = made.scale * (0.5 if not codes.symmetric else 1e-9) + 1e-9 * (above + below)
    assert ends[1] >= above - slack
    # The full range of symmetric codes has one more code below than is needed.
    assert ends[0] <= -below + slack
    if not codes.symmetric:
        np.testing.assert_allclose(ends[1] - ends[0], above + below)


def test_asymmetric_grids_by_hand():
    made = grid(np.array([-1.0, 0.0, -2.55, 1.0]), np.array([3.0, 2.55, 0.0, 2.55]), ACTIVATIONS)
    np.testing.assert_allclose(made.scale, [4 / 255, 0.01, 0.01, 0.01])
    np.testing.assert_array_equal(made.zero_point, [-64, -128, 127, -128])


def test_symmetric_grids_are_those_of_kernel_scale():
    kernel = np.random.default_rng(0).normal(size=(5, 3))
    made = grid(kernel.min(axis=0, keepdims=True), kernel.max(axis=0, keepdims=True))
    np.testing.assert_array_equal(made.scale, kernel_scale(kernel, (1,)))


@pytest.mark.parametrize("codes", [WEIGHTS, ACTIVATIONS])
def test_a_dead_group_stays_zero(codes):
    made = grid(np.zeros(2), np.array([0.0, 1.0]), codes)
    values = np.array([[0.0, 1.0], [0.0, 0.0]])
    taken = made.clip(np.rint(made.steps(values)))
    assert taken[0, 0] == made.zero_point[0] == 0
    np.testing.assert_allclose(made.dequantize(taken), values, atol=1e-7)


@pytest.mark.parametrize("bits", [1, 17, 8.0, True, "8"])
def test_wrong_bits(bits):
    with pytest.raises(InputError, match=r"bits of Codes must be a whole number in \[2, 16\]"):
        Codes(bits)


def test_wrong_ranges():
    with pytest.raises(InputError, match="low <= high"):
        grid(1.0, 0.5)
    with pytest.raises(InputError, match="high of a range must be finite"):
        grid(0.0, np.inf)
    with pytest.raises(InputError, match="overshoot needs symmetric codes"):
        grid(0.0, 1.0, ACTIVATIONS, overshoot=1)


def test_wrong_arrays():
    made = Grid(np.ones((1, 3)), np.zeros((1, 3), np.int64))
    with pytest.raises(InputError, match="Values to quantize must be finite.*not_finite=2, of=3"):
        made.steps(np.array([[1.0, np.nan, np.inf]]))
    with pytest.raises(InputError, match=r"must broadcast .*scale=\(1, 3\), array=\(2, 2\)"):
        made.steps(np.ones((2, 2)))
    with pytest.raises(InputError, match=r"Codes to dequantize must be in \[-127, 127\]"):
        made.dequantize(np.array([[0, 0, 128]]))
