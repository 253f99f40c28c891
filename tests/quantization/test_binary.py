"""Weights of one bit and of three values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfcompress.errors import InputError
from tfcompress.quantization import binary, ternary

KERNELS = st.tuples(st.integers(1, 8), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-8, 8, width=16))
)


@given(kernel=KERNELS, per_channel=st.booleans())
def test_binary_is_xnor_nets(kernel, per_channel):
    codes, grid = binary(kernel, (1,) if per_channel else ())
    assert codes.dtype == np.int32 and set(codes.ravel()) <= {-1, 1}
    assert (codes[kernel > 0] == 1).all() and (codes[kernel < 0] == -1).all()
    alpha = np.abs(kernel.astype(np.float64)).mean(axis=0 if per_channel else None, keepdims=True)
    np.testing.assert_allclose(grid.scale, alpha)
    np.testing.assert_allclose(grid.dequantize(codes), codes * alpha, rtol=1e-6)


@given(kernel=KERNELS, per_channel=st.booleans())
def test_ternary_is_twns(kernel, per_channel):
    codes, grid = ternary(kernel, (1,) if per_channel else ())
    parts = kernel.T if per_channel else kernel.reshape(1, -1)
    expected_codes = codes.T if per_channel else codes.reshape(1, -1)
    for part, found, alpha in zip(parts, expected_codes, grid.scale.ravel(), strict=True):
        magnitudes = np.abs(part.astype(np.float64))
        kept = magnitudes > 0.7 * magnitudes.mean()
        np.testing.assert_array_equal(found, np.sign(part) * kept)
        np.testing.assert_allclose(alpha, magnitudes[kept].mean() if kept.any() else 0)


@pytest.mark.parametrize("method", [binary, ternary])
def test_no_other_scale_errs_less(method):
    kernel = np.random.default_rng(0).normal(size=(50, 3))
    codes, grid = method(kernel, (1,))
    error = ((codes * grid.scale - kernel) ** 2).sum(axis=0)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (((codes * factor * grid.scale - kernel) ** 2).sum(axis=0) > error).all()


@pytest.mark.parametrize("method", [binary, ternary])
def test_dead_channels_stay_so_and_wrong_weights_are_named(method):
    codes, grid = method(np.zeros((3, 2)), (1,))
    assert not grid.dequantize(codes).any()
    with pytest.raises(InputError, match="Weights to quantize must be finite"):
        method(np.array([np.nan]))
    with pytest.raises(InputError, match="Weights to quantize must not be empty"):
        method(np.zeros((0, 2)))
