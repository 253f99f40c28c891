"""Grids as TFLite defines them."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tfcompress import InputError
from tfcompress.quantization import activation_grid, dequantize, kernel_scale, quantize, snap

finite = st.floats(-1e6, 1e6, width=32)


@hypothesis.given(finite, finite)
def test_a_grid_has_a_code_for_zero_and_covers_the_range(a, b):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    hypothesis.assume(high - low > 1e-6)
    scale, zero_point = grid = activation_grid(low, high)
    assert -128 <= zero_point <= 127
    assert quantize(0.0, scale, zero_point) == zero_point
    lowest, highest = grid.bounds()
    assert lowest - scale <= low and high <= highest + scale


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_value_in_range_moves_by_half_a_step_at_most(bits):
    values = np.linspace(-1.5, 2.5, 1001)
    scale, zero_point = activation_grid(-1.5, 2.5, bits)
    back = dequantize(quantize(values, scale, zero_point, bits), scale, zero_point)
    # Moving the zero onto a code may cut half a step off one end.
    assert np.abs(back - values).max() <= scale * 1.0001


def test_ties_go_to_even():
    values = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    np.testing.assert_array_equal(quantize(values, 1.0), [-2, -2, 0, 0, 2, 2])


def test_values_out_of_range_saturate():
    np.testing.assert_array_equal(quantize(np.array([-1e9, 1e9]), 1.0), [-128, 127])


@pytest.mark.parametrize(("axes", "scales"), [((), 1), ((3,), 5), ((2, 3), 20)])
def test_a_kernel_is_snapped_per_channel(axes, scales):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    kernel[..., 0] = 0.0
    scale = kernel_scale(kernel, axes)
    assert scale.size == scales
    snapped = snap(kernel, axes)
    assert np.all(np.abs(snapped - kernel) <= 0.5001 * scale)
    assert not snapped[..., 0].any()
    # The largest weight of a channel is a point of its grid: the converter finds the same scale.
    np.testing.assert_array_equal(snap(snapped, axes), snapped)
    np.testing.assert_array_equal(np.abs(snapped).max(), np.abs(kernel).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.0), "more than the point 0"),
        ((0.0, np.inf), "must be finite"),
        ((0.0, np.nan), "must be finite"),
        ((0.0, 1.0, 1), r"bits of activation_grid must be in \[2, 16\]. Received: bits=1"),
    ],
)
def test_bad_ranges_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        activation_grid(*arguments)
