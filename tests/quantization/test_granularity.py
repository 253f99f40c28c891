"""Which weights share a scale."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfcompress.errors import InputError
from tfcompress.quantization import GRANULARITIES, RANGES, Codes, fit, kernel_scale
from tfcompress.quantization.granularity import Blocks, Tiers, quantize

KERNELS = st.lists(st.integers(1, 5), min_size=2, max_size=4).flatmap(
    lambda shape: arrays(np.float32, tuple(shape), elements=st.floats(-8, 8, width=16))
)
EACH = pytest.mark.parametrize("name", GRANULARITIES.names())


def test_names():
    assert GRANULARITIES.names() == ("blocks", "per_channel", "per_tensor", "tiers")


@EACH
@settings(max_examples=30)
@given(kernel=KERNELS, bits=st.integers(2, 16), data=st.data())
def test_the_contract_of_granularities(name, kernel, bits, data):
    axes = data.draw(st.sampled_from([(), (-1,), (0,), (-2, -1)]))
    method, before = GRANULARITIES.create(name), kernel.copy()
    parts = method.partition(kernel, axes)
    assert parts.group.dtype == np.int32 and parts.group.ndim == kernel.ndim
    group = np.broadcast_to(parts.group, kernel.shape)
    assert group.min() >= 0 and group.max() < parts.groups
    rows, where = parts.rows(kernel)
    counted = rows.ravel() if where is None else rows[where]
    np.testing.assert_array_equal(np.sort(counted), np.sort(kernel.ravel()))
    # With the range of all of a group's values no weight is clipped: half a step of its own scale.
    made = fit(kernel, axes, name, codes=Codes(bits))
    error = np.abs(made.dequantize(quantize(kernel, made)) - kernel)
    assert (error <= made.scale / 2 + 1e-6 * np.abs(kernel)).all()
    assert (made.scale <= kernel_scale(kernel, bits=bits)).all()
    np.testing.assert_array_equal(kernel, before)
    assert GRANULARITIES.create(GRANULARITIES.describe(method)) == method


@pytest.mark.parametrize("axes", [(), (3,), (2, 3)])
def test_scales_are_those_of_kernel_scale(axes):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(fit(kernel, axes).scale, kernel_scale(kernel, axes))
    np.testing.assert_array_equal(fit(kernel, axes, "per_tensor").scale, kernel_scale(kernel))


def test_blocks_by_hand():
    kernel = np.arange(1.0, 11.0).reshape(5, 2) * 7
    made = fit(kernel, (1,), {"blocks": {"size": 2}}, codes=Codes(4))
    # Inputs 0-1, 2-3 and 4 of each output; the largest is the last.
    expected = [[3, 4], [3, 4], [7, 8], [7, 8], [9, 10]]
    np.testing.assert_allclose(made.scale, expected)
    parts = Blocks(2).partition(kernel, (1,))
    np.testing.assert_array_equal(parts.group, [[0, 3], [0, 3], [1, 4], [1, 4], [2, 5]])
    assert parts.groups == 6 and parts.size_bits(10, 4, 16) == 10 * 4 + 6 * 16


def test_blocks_run_through_a_convolution_kernel_in_its_order():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 2))
    made = fit(kernel, (3,), {"blocks": {"size": 24}})
    in_order = np.abs(kernel.reshape(3, 24, 2)).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(made.scale.reshape(3, 24, 2), np.repeat(in_order, 24, axis=1))


def test_finer_groups_err_less():
    kernel = np.random.default_rng(0).laplace(size=(256, 16)) * np.geomspace(0.1, 1, 16)
    errors = []
    for granularity in ("per_tensor", "per_channel", "blocks", {"tiers": {"count": 4}}):
        made = fit(kernel, (1,), granularity, codes=Codes(4))
        errors.append(((made.dequantize(quantize(kernel, made)) - kernel) ** 2).mean())
    assert errors[0] > 2 * errors[1] and errors[1] > 2 * errors[2] and errors[2] > 2 * errors[3]


@settings(max_examples=40)
@given(
    values=arrays(np.float64, st.integers(3, 12), elements=st.floats(-8, 8, width=16)),
    count=st.integers(2, 3),
)
def test_tiers_have_the_least_expected_error(values, count):
    parts = Tiers(count).partition(values)

    def expected_error(groups):
        members = (np.abs(values[groups == tier]) for tier in np.unique(groups))
        return sum((group > 0).sum() * group.max() ** 2 for group in members)

    ascending = np.sort(np.abs(values))
    tried = []
    for borders in itertools.combinations_with_replacement(ascending, count - 1):
        tried.append(expected_error(sum(np.abs(values) > border for border in borders)))
    np.testing.assert_allclose(expected_error(parts.group), min(tried), rtol=1e-9)
    # The larger the weight, the higher its tier.
    assert (np.diff(parts.group[np.argsort(np.abs(values), kind="stable")]) >= 0).all()
    assert parts.index_bits == (1 if count == 2 else 2) and parts.groups == count


def test_tiers_of_each_channel():
    kernel = np.array([[0.1, 10.0], [0.2, 80.0], [1.0, 20.0], [0.9, 90.0]])
    parts = Tiers().partition(kernel, (1,))
    np.testing.assert_array_equal(parts.group, [[0, 2], [0, 3], [1, 2], [1, 3]])
    assert parts.size_bits(8, 4) == 8 * 5 + 4 * 32
    made = fit(kernel, (1,), "tiers")
    np.testing.assert_allclose(made.scale * 127, [[0.2, 20], [0.2, 90], [1, 20], [1, 90]])


@pytest.mark.parametrize("ranges", RANGES.names())
@EACH
def test_every_range_serves_every_granularity(ranges, name):
    kernel = np.random.default_rng(0).laplace(size=(70, 3))
    codes = Codes(8, symmetric=False, narrow=False)
    made = fit(kernel, (1,), name, ranges, codes)
    error = made.dequantize(quantize(kernel, made)) - kernel
    assert (error**2).mean() < 0.02 * kernel.var()


def test_wrong_arguments():
    for granularity, message in [
        ({"blocks": {"size": 0}}, "size of Blocks must be a whole number, at least 1"),
        ({"tiers": {"count": 17}}, r"count of Tiers must be a whole number in \[2, 16\]"),
        ("per_chanel", "Did you mean 'per_channel'"),
    ]:
        with pytest.raises(InputError, match=message):
            fit(np.ones((2, 2)), granularity=granularity)
    with pytest.raises(InputError, match="channel_axes must be axes of an array of rank 2"):
        fit(np.ones((2, 2)), (2,))
    with pytest.raises(InputError, match=r"Weights to quantize must not be empty.*shape=\(0, 2\)"):
        fit(np.ones((0, 2)))
    with pytest.raises(InputError, match="Weights to quantize must be finite"):
        fit(np.array([[np.inf]]))
