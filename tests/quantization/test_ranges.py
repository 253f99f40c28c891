"""What holds for every range method, and the formula of each that needs no search."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfcompress.errors import InputError
from tfcompress.quantization import ACTIVATIONS, RANGES, WEIGHTS, Codes, ranges
from tfcompress.quantization.ranges.ema import Ema
from tfcompress.quantization.ranges.percentile import Percentile
from tfcompress.quantization.ranges.sigma import Sigma

ROWS = st.tuples(st.integers(1, 3), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-8, 8, width=16))
)
CODES = st.builds(Codes, st.integers(2, 16), st.booleans(), st.booleans())
# A few candidates do for what must hold of any.
ARGUMENTS = {"mse": {"candidates": 6}}
METHODS = [RANGES.create({name: ARGUMENTS.get(name, {})}) for name in RANGES.names()]
EACH = pytest.mark.parametrize("method", METHODS, ids=RANGES.names())


def test_names():
    assert RANGES.names() == ("ema", "entropy", "min_max", "mse", "percentile", "sigma")


@EACH
@settings(max_examples=25)
@given(rows=ROWS, more=st.booleans(), codes=CODES)
def test_the_contract_of_ranges(method, rows, more, codes):
    before = rows.copy()
    state = method.observe(rows)
    if more:
        kept = copy.deepcopy(state)
        state_2 = method.observe(rows / 2, state)
        np.testing.assert_array_equal(method.bounds(state, codes), method.bounds(kept, codes))
        state = state_2
    low, high = method.bounds(state, codes)
    assert low.shape == high.shape == (len(rows),) and low.dtype == high.dtype == np.float64
    assert (low <= 0).all() and (high >= 0).all()
    smallest, largest = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
    if codes.symmetric:
        np.testing.assert_array_equal(low, -high)
        largest = np.maximum(-smallest, largest)
        smallest = -largest
    assert (low >= smallest).all() and (high <= largest).all()
    assert (high[largest == 0] == 0).all()
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_array_equal((low, high), method.bounds(state, codes))
    assert RANGES.create(RANGES.describe(method)) == method


@EACH
@settings(max_examples=20)
@given(rows=ROWS, codes=CODES, data=st.data())
def test_groups_are_on_their_own_and_only_marked_values_count(method, rows, codes, data):
    where = data.draw(arrays(bool, rows.shape))
    together = method.bounds(method.observe(rows, where=where), codes)
    for group, (row, mask) in enumerate(zip(rows, where, strict=True)):
        values = row[mask] if mask.any() else np.zeros(1)
        alone = method.bounds(method.observe(values[None]), codes)
        np.testing.assert_allclose(np.array(together)[:, group], np.array(alone)[:, 0], rtol=1e-9)


@EACH
@pytest.mark.parametrize("codes", [WEIGHTS, ACTIVATIONS, Codes(4)])
def test_ranges_scale_with_the_values(method, codes):
    rows = np.random.default_rng(0).laplace(size=(2, 500))
    low, high = method.bounds(method.observe(rows), codes)
    np.testing.assert_allclose(method.bounds(method.observe(rows * 8), codes), (low * 8, high * 8))


@EACH
def test_a_dead_layer_has_the_range_zero(method):
    for codes in (WEIGHTS, ACTIVATIONS):
        bounds = method.bounds(method.observe(np.zeros((2, 5))), codes)
        np.testing.assert_array_equal(bounds, np.zeros((2, 2)))


@EACH
def test_wrong_values(method):
    name = type(method).__name__
    with pytest.raises(InputError, match=f"Values for {name} must be finite.*not_finite=1, of=2"):
        method.observe(np.array([[1.0, np.nan]]))
    for values in (np.zeros((1, 0)), np.zeros(3)):
        with pytest.raises(InputError, match=rf"Values for {name} must have shape \(groups, n\)"):
            method.observe(values)
    with pytest.raises(InputError, match=f"Values for {name} must have 2 groups"):
        method.observe(np.ones((1, 5)), method.observe(np.ones((2, 5))))
    with pytest.raises(InputError, match=f"where for {name} must be bool"):
        method.observe(np.ones((1, 5)), where=np.ones((1, 4), bool))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"ema": {"decay": 1.0}}, r"decay of Ema must be in \[0, 1\).*decay=1.0"),
        ({"percentile": {"percent": 50}}, r"percent of Percentile must be in \(50, 100\]"),
        ({"sigma": {"z": 0}}, "z of Sigma must be finite and above 0"),
        ({"mse": {"candidates": 1}}, r"candidates of Mse must be a whole number in \[2, 1024\]"),
        ({"mse": {"bins": 1}}, "Unknown argument of range method 'mse' 'bins'"),
        ("mes", "Did you mean 'mse'"),
    ],
)
def test_wrong_arguments(method, message):
    with pytest.raises(InputError, match=message):
        RANGES.create(method)


def test_rows_and_ranges_of_arrays():
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    assert ranges.rows(array).shape == (1, 120)
    rows = ranges.rows(array, (3, 1))
    np.testing.assert_array_equal(rows[5 + 2], array[:, 1, :, 2].ravel())
    low, high = ranges.of(array, "min_max", (-1, 1), ACTIVATIONS)
    np.testing.assert_array_equal(low, array.min(axis=(0, 2), keepdims=True))
    np.testing.assert_array_equal(high, array.max(axis=(0, 2), keepdims=True))
    for axes in ((4,), (1, -3)):
        with pytest.raises(InputError, match="channel_axes must"):
            ranges.rows(array, axes)


def test_min_max_is_the_extent_of_all_batches():
    method = RANGES.create("min_max")
    state = method.observe(np.array([[1.0, 2.0], [-3.0, 5.0]]))
    state = method.observe(np.array([[-1.0], [4.0]]), state)
    np.testing.assert_array_equal(method.bounds(state, ACTIVATIONS), [[-1, -3], [2, 5]])


def test_ema_by_hand():
    method, state = Ema(decay=0.9), None
    for batch in ([-1.0, 2.0], [-3.0, 1.0], [0.5, 4.0]):
        state = method.observe(np.array([batch]), state)
    low, high = method.bounds(state, ACTIVATIONS)
    # low: -1 -> -1.2 -> -1.08 (a batch's range holds 0); high: 2 -> 1.9 -> 2.11
    np.testing.assert_allclose((low, high), [[-1.08], [2.11]], rtol=1e-12)
    np.testing.assert_allclose(method.bounds(state, WEIGHTS)[1], [2.11])


@given(rows=ROWS, percent=st.floats(50.5, 100))
def test_percentile_is_that_of_numpy(rows, percent):
    method, state = Percentile(percent), None
    for batch in np.array_split(rows.astype(np.float64), min(3, rows.shape[1]), axis=1):
        state = method.observe(batch, state)
    high = np.percentile(np.abs(rows.astype(np.float64)), percent, axis=1)
    np.testing.assert_allclose(method.bounds(state, WEIGHTS)[1], high, rtol=1e-6, atol=1e-12)
    ends = np.percentile(rows.astype(np.float64), [100 - percent, percent], axis=1)
    expected = np.minimum(ends[0], 0), np.maximum(ends[1], 0)
    np.testing.assert_allclose(method.bounds(state, ACTIVATIONS), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("codes", [WEIGHTS, ACTIVATIONS])
def test_percentile_of_more_values_than_are_kept(monkeypatch, codes):
    monkeypatch.setattr("tfcompress.quantization.ranges.percentile._EXACT_VALUES", 15_000)
    values = np.random.default_rng(0).laplace(size=(2, 10_000))
    values[:, ::2] = np.maximum(values[:, ::2], 0)  # a quarter is exactly 0
    for percent in (60.0, 90.0, 99.9):
        exact = Percentile(percent).observe(values[:, :7_000])
        state = Percentile(percent).observe(values[:, 7_000:], exact)
        assert exact.values is not None and state.values is None
        numbers = np.abs(values) if codes.symmetric else values
        low, high = np.percentile(numbers, [100 - percent, percent], axis=1)
        low = -high if codes.symmetric else np.minimum(low, 0)
        bin_ = np.ptp(values, axis=1).max() / 4096
        np.testing.assert_allclose(Percentile(percent).bounds(state, codes), (low, high), atol=bin_)


@given(rows=ROWS, z=st.floats(0.1, 5))
def test_sigma_is_mean_and_standard_deviation(rows, z):
    values = rows.astype(np.float64)
    method, state = Sigma(z), None
    for batch in np.array_split(values, min(3, values.shape[1]), axis=1):
        state = method.observe(batch, state)
    mean, reach = values.mean(axis=1), z * values.std(axis=1)
    low = np.minimum(np.maximum(mean - reach, values.min(axis=1)), 0)
    high = np.maximum(np.minimum(mean + reach, values.max(axis=1)), 0)
    np.testing.assert_allclose(method.bounds(state, ACTIVATIONS), (low, high), atol=1e-9)
    np.testing.assert_allclose(method.bounds(state, WEIGHTS)[1], np.maximum(-low, high), atol=1e-9)
