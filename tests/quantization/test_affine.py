"""Grids as TFLite defines them."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tfcompress.quantization import dequantize, kernel_scale, quantize


@hypothesis.given(st.floats(-1.27, 1.27), st.integers(-20, 20))
def test_a_value_in_range_moves_by_half_a_step_at_most(value, zero_point):
    hypothesis.assume(abs(value / 0.01 + zero_point) <= 127)
    back = dequantize(quantize(value, 0.01, zero_point), 0.01, zero_point)
    assert abs(back - value) <= 0.0050001


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
    snapped = dequantize(quantize(kernel, scale), scale)
    assert np.all(np.abs(snapped - kernel) <= 0.5001 * scale)
    assert not snapped[..., 0].any()
    # The largest weight of a channel is a point of its grid: the converter finds the same scale.
    again = kernel_scale(snapped, axes)
    np.testing.assert_array_equal(dequantize(quantize(snapped, again), again), snapped)
    np.testing.assert_array_equal(np.abs(snapped).max(), np.abs(kernel).max())
