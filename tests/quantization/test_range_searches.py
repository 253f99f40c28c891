"""The ranges that are searched for, against brute force on their histograms."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfcompress.quantization import ACTIVATIONS, WEIGHTS, Codes, dequantize, quantize
from tfcompress.quantization.grid import grid
from tfcompress.quantization.ranges.entropy import Entropy, best_threshold, magnitudes
from tfcompress.quantization.ranges.min_max import MinMax
from tfcompress.quantization.ranges.mse import Error, Mse

VALUES = arrays(np.float64, st.integers(1, 20), elements=st.floats(-4, 4, width=16))
CODES = st.builds(Codes, st.integers(2, 5), st.booleans(), st.booleans())


def error_of_bins(histogram, low, high, codes):
    """The integral of the squared error over each bin, piece by piece between cell borders."""
    made = grid(low, high, codes)
    if made.scale == 0:
        return 0.0
    points = (np.arange(codes.lowest, codes.highest + 1) - made.zero_point) * made.scale
    middles = (points[1:] + points[:-1]) / 2
    total, edges = 0.0, histogram.edges()[0]
    for index in np.flatnonzero(histogram.counts[0]):
        begin, end = edges[index], edges[index + 1]
        inside = middles[(begin < middles) & (middles < end)]
        borders = [begin, *inside, end]
        for left, right in zip(borders[:-1], borders[1:], strict=True):
            point = points[np.abs(points - (left + right) / 2).argmin()]
            piece = ((right - point) ** 3 - (left - point) ** 3) / 3
            total += histogram.counts[0, index] * piece / (end - begin)
    return total


@settings(max_examples=60)
@given(values=VALUES, codes=CODES)
def test_mse_is_the_best_of_all_candidates(values, codes):
    method = Mse(candidates=5)
    state = method.observe(values[None])
    low, high = (float(end[0]) for end in method.bounds(state, codes))
    (widest_low,), (widest_high,) = MinMax().bounds(MinMax().observe(values[None]), codes)
    shares = np.arange(1, 6) / 5
    pairs = zip(shares, shares, strict=True) if codes.symmetric else np.ndindex(5, 5)
    tried = {
        (a * widest_low, b * widest_high)
        for a, b in (pair if codes.symmetric else shares[list(pair)] for pair in pairs)
    }
    assert any(np.allclose((low, high), pair, rtol=1e-12, atol=0) for pair in tried)
    errors = [error_of_bins(state, *pair, codes) for pair in tried]
    found = error_of_bins(state, low, high, codes)
    np.testing.assert_allclose(found, min(errors), rtol=1e-7, atol=1e-12)
    computed = Error.of(state)(grid(np.array([low]), np.array([high]), codes))
    np.testing.assert_allclose(computed, found, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mse_has_nearly_the_least_error_of_the_values_themselves(bits):
    values = np.random.default_rng(bits).laplace(size=50_000)
    method, codes = Mse(), Codes(bits)
    (high,) = method.bounds(method.observe(values[None]), codes)[1]

    def error(end):
        scale = end / codes.highest
        return ((dequantize(quantize(values, scale, bits=bits), scale) - values) ** 2).mean()

    largest = np.abs(values).max()
    assert error(high) <= 1.01 * min(error(share * largest) for share in np.arange(1, 65) / 64)
    if bits < 8:
        assert error(high) < 0.6 * error(largest)


@pytest.mark.parametrize("side", [1, -1])
def test_mse_clips_the_side_that_has_an_outlier(side):
    values = side * np.append(np.random.default_rng(0).uniform(-1, 1, 100_000), 9.0)[None]
    (low,), (high,) = Mse().bounds(Mse().observe(values), Codes(4, symmetric=False, narrow=False))
    short, long = (-low, high) if side > 0 else (high, -low)
    assert 0.85 < short < 1.1 and 0.9 < long < 1.5


def test_mse_does_not_count_zeros():
    values = np.random.default_rng(0).laplace(size=(1, 3000))
    sparse = np.concatenate([values, np.zeros((1, 9000))], axis=1)
    for codes in (Codes(4), ACTIVATIONS):
        bounds = [Mse().bounds(Mse().observe(rows), codes) for rows in (values, sparse)]
        np.testing.assert_array_equal(*bounds)


def divergence(counts, kept, levels):
    """Migacz's algorithm, bin by bin."""
    reference = counts[:kept].astype(float)
    reference[-1] += counts[kept:].sum()
    spread = np.zeros(kept)
    level = [bin_ * levels // kept for bin_ in range(kept)]
    for index in range(levels):
        bins = [bin_ for bin_ in range(kept) if level[bin_] == index and counts[bin_] > 0]
        for bin_ in bins:
            spread[bin_] = counts[bins].sum() / len(bins)
    if reference[-1] > 0 and spread[-1] == 0:
        return np.inf
    return scipy.stats.entropy(reference, spread)  # normalises both


@settings(max_examples=60)
@given(
    counts=arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 50)),
    levels=st.sampled_from([2, 4, 8]),
)
def test_entropy_has_the_least_divergence(counts, levels):
    counts = np.trim_zeros(counts, "b")
    found = best_threshold(counts, levels)
    if len(counts) <= levels:
        assert found == len(counts)
        return
    divergences = [divergence(counts, kept, levels) for kept in range(levels, len(counts) + 1)]
    assert levels <= found <= len(counts)
    np.testing.assert_allclose(divergences[found - levels], min(divergences), atol=1e-9)


def test_entropy_finds_the_same_threshold():
    counts = np.random.default_rng(1).poisson(3e4 * np.exp(-np.arange(300) / 15))
    counts = np.trim_zeros(counts, "b")
    divergences = [divergence(counts, kept, 32) for kept in range(32, len(counts) + 1)]
    found = best_threshold(counts, 32)
    assert found == 32 + np.argmin(divergences) and found < len(counts)


def test_entropy_counts_magnitudes_and_takes_the_middle_of_the_next_bin():
    values = np.random.default_rng(0).laplace(size=(1, 30_000))
    state = Entropy().observe(values)
    counts, width = magnitudes(state)
    assert width == 2.0 ** state.exponent[0]
    expected, _ = np.histogram(np.abs(values), np.arange(len(counts) + 1) * width)
    np.testing.assert_array_equal(counts, expected)
    (low,), (high,) = Entropy().bounds(state, WEIGHTS)
    assert -low == high == (best_threshold(counts, 128) + 0.5) * width < np.abs(values).max()


def test_entropy_of_one_sided_values_has_twice_the_levels():
    values = np.abs(np.random.default_rng(0).laplace(size=(1, 30_000)))
    for side in (1, -1):
        state = Entropy().observe(side * values)
        counts, width = magnitudes(state)
        threshold = (best_threshold(counts, 256) + 0.5) * width
        low, high = Entropy().bounds(state, ACTIVATIONS)
        assert (high if side > 0 else -low) == threshold and (low if side > 0 else high) == 0


def test_entropy_has_no_more_bins_than_values():
    values = np.random.default_rng(0).laplace(size=(1, 300))
    state = Entropy().observe(values)
    counts, width = magnitudes(state)
    assert 128 < len(counts) <= 300 == counts.sum()
    expected, _ = np.histogram(np.abs(values), np.arange(len(counts) + 1) * width)
    np.testing.assert_array_equal(counts, expected)
    # Too few to tell where 8 bits should end.
    assert (
        Entropy().bounds(Entropy().observe(values[:, :100]), WEIGHTS)[1]
        == abs(values[0, :100]).max()
    )


def test_entropy_covers_all_where_codes_are_finer_than_bins():
    values = np.append(np.random.default_rng(0).normal(size=999), 50.0)[None]
    state = Entropy().observe(values)
    assert Entropy().bounds(state, Codes(16))[1] == 50
    assert Entropy().bounds(state, Codes(4))[1] < 10
