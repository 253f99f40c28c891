"""What holds for every rounding, and the error formula of each."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfcompress.errors import InputError
from tfcompress.quantization import ROUNDINGS, Codes, LayerInputs, affine, fit
from tfcompress.quantization.granularity import quantize
from tfcompress.quantization.grid import Grid, grid
from tfcompress.quantization.rounding.kmeans import KMeans
from tfcompress.quantization.rounding.stochastic import Stochastic

KERNELS = st.tuples(st.integers(1, 8), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-8, 8, width=16))
)
CODES = st.builds(Codes, st.integers(2, 9), st.booleans(), st.booleans())
METHODS = [ROUNDINGS.create(name) for name in ROUNDINGS.names()]
EACH = pytest.mark.parametrize("method", METHODS, ids=ROUNDINGS.names())
COUNT = 200_000


def identity(kernel):
    return LayerInputs.of(np.eye(kernel.shape[0]))


def even_errors(name, **arguments):
    """The errors, in steps, of weights spread evenly over the grid."""
    codes = Codes()
    ends = np.array([codes.lowest, codes.highest]) * 0.02
    weights = np.random.default_rng(7).uniform(*ends, COUNT)
    made = Grid(np.float64(0.02), np.int64(0), codes)
    rounded = ROUNDINGS.create({name: arguments}).round(weights, made)
    return weights / 0.02, rounded - weights / 0.02


def close_to(values, mean):
    """Whether the mean of `values` is `mean`, up to five standard errors of it."""
    return abs(values.mean() - mean) <= 5 * values.std() / np.sqrt(values.size)


def test_names():
    assert ROUNDINGS.names() == (
        "adaround",
        "kmeans",
        "max_plus_one",
        "nearest",
        "stochastic",
        "truncate",
    )


@EACH
@settings(max_examples=25)
@given(kernel=KERNELS, codes=CODES)
def test_the_contract_of_roundings(method, kernel, codes):
    before = kernel.copy()
    if method.overshoot and not codes.symmetric:
        with pytest.raises(InputError, match="overshoot needs symmetric codes"):
            fit(kernel, (1,), codes=codes, rounding=method)
        return
    made = fit(kernel, (1,), codes=codes, rounding=method)
    inputs = identity(kernel) if method.needs_inputs else None
    rounded = method.round(kernel, made, inputs)
    assert rounded.dtype == np.int32 and rounded.shape == kernel.shape
    assert codes.lowest <= rounded.min() and rounded.max() <= codes.highest
    np.testing.assert_array_equal(rounded, quantize(kernel, made, method, inputs))
    np.testing.assert_array_equal(kernel, before)
    # 0 is a point of every grid, and a weight that is one stays: to 1e-6 a float32 is.
    assert (made.dequantize(rounded)[kernel == 0] == 0).all()
    if not isinstance(method, KMeans):
        again = method.round(made.dequantize(rounded), made, inputs)
        np.testing.assert_array_equal(again, rounded)
        slack = made.scale * (1 if codes.symmetric else 1.5) + 1e-6
        assert (np.abs(made.dequantize(rounded) - kernel) <= slack).all()
    assert ROUNDINGS.create(ROUNDINGS.describe(method)) == method


@EACH
def test_wrong_weights(method):
    made = grid(-1.0, 1.0)
    with pytest.raises(InputError, match="Values to quantize must be finite"):
        method.round(np.array([[np.nan]]), made, identity(np.ones((1, 1))))


@given(kernel=KERNELS)
def test_nearest_is_what_tflite_rounds(kernel):
    made = fit(kernel, (1,))
    expected = np.clip(affine.quantize(kernel, made.scale), -127, 127)
    np.testing.assert_array_equal(quantize(kernel, made), expected)


def test_nearest_errs_by_a_twelfth():
    steps, errors = even_errors("nearest")
    assert np.abs(errors).max() <= 0.5 + 1e-9
    assert close_to(errors, 0) and close_to(errors**2, 1 / 12)
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert quantize(ties, grid(-127.0, 127.0)).tolist() == [-2, -2, 0, 0, 2, 2]


def test_truncate_errs_by_a_third_towards_zero():
    steps, errors = even_errors("truncate")
    towards_zero = -errors * np.sign(steps)
    assert towards_zero.min() >= -1e-4 and towards_zero.max() < 1
    assert close_to(towards_zero, 1 / 2) and close_to(errors**2, 1 / 3)


def test_max_plus_one_errs_by_a_twelfth_and_rounds_half_up():
    steps, errors = even_errors("max_plus_one")
    assert close_to(errors, 0) and close_to(errors**2, 1 / 12)
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    method = ROUNDINGS.create("max_plus_one")
    assert method.round(ties, grid(-128.0, 128.0, overshoot=1)).tolist() == [-2, -1, 0, 1, 2, 3]


def test_max_plus_one_clips_the_largest_weight():
    kernel = np.array([[2.0, -0.3], [0.7, 0.1]])
    method = ROUNDINGS.create("max_plus_one")
    made = fit(kernel, codes=Codes(narrow=False), rounding=method)
    assert made.scale == 2.0 / 128  # a power of two
    rounded = method.round(kernel, made)
    assert rounded[0, 0] == 127 and made.dequantize(rounded)[0, 0] == 2 - 2 / 128
    inside = np.abs(made.dequantize(rounded) - kernel).ravel()[1:]
    assert (inside <= made.scale / 2).all()
    # The lowest code is there for the other sign, unless it is left out.
    assert method.round(-kernel, made)[0, 0] == -128
    assert method.round(-kernel, fit(kernel, rounding=method))[0, 0] == -127


def test_stochastic_is_unbiased_and_errs_by_a_sixth():
    steps, errors = even_errors("stochastic", seed=3)
    assert np.abs(errors).max() < 1
    assert close_to(errors, 0) and close_to(errors**2, 1 / 6)
    # Not only over all weights, but at each place between two points.
    for place in np.linspace(0.05, 0.95, 10):
        near = np.abs(steps - np.floor(steps) - place) < 0.05
        assert close_to(errors[near], 0)


@pytest.mark.parametrize("weight", [-0.013, 0.001, 0.0199])
def test_stochastic_has_the_weight_as_its_mean(weight):
    made = grid(-1.27, 1.27)
    values = made.dequantize(Stochastic().round(np.full(COUNT, weight), made)).astype(np.float64)
    assert close_to(values, weight) and len(np.unique(values)) == 2


def test_stochastic_depends_on_its_seed():
    kernel, made = np.random.default_rng(0).uniform(-1, 1, (20, 20)), grid(-1.0, 1.0)
    first, again, other = (Stochastic(seed).round(kernel, made) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@settings(max_examples=40)
@given(kernel=KERNELS, clusters=st.integers(2, 5), keep_zeros=st.booleans())
def test_kmeans_is_the_best_codebook_of_all(kernel, clusters, keep_zeros):
    codes = Codes(3)
    made = fit(kernel, (1,), codes=codes)
    method = KMeans(clusters=clusters, keep_zeros=keep_zeros)
    rounded = method.round(kernel, made)
    zeros = keep_zeros and (kernel == 0).any()
    books = [
        np.array(book)
        for book in itertools.combinations(range(codes.lowest, codes.highest + 1), clusters)
        if 0 in book or not zeros
    ]

    def error(book):
        points = book[:, None, None] * made.scale
        return ((points - kernel) ** 2).min(axis=0).sum()

    assert len(np.unique(rounded)) <= clusters
    found = ((rounded * made.scale - kernel) ** 2).sum()
    np.testing.assert_allclose(found, min(map(error, books)), rtol=1e-6, atol=1e-9)
    if zeros:
        assert (rounded[kernel == 0] == 0).all()


def test_kmeans_counts_the_scales_of_channels():
    for seed in range(10):
        kernel = np.random.default_rng(seed).normal(size=(12, 3)) * [1.0, 2.0, 3.0]
        made = fit(kernel, (1,), codes=Codes(4))
        rounded = KMeans(clusters=3).round(kernel, made)
        books = np.array(list(itertools.combinations(range(-7, 8), 3)))
        points = books[:, :, None, None] * made.scale
        errors = ((points - kernel) ** 2).min(axis=1).sum(axis=(1, 2))
        found = ((rounded * made.scale - kernel) ** 2).sum()
        np.testing.assert_allclose(found, errors.min(), rtol=1e-9)


def test_kmeans_with_a_zero_point_per_channel():
    kernel = np.random.default_rng(0).exponential(size=(200, 2)) * [1, -1]
    kernel[::2] = 0
    made = fit(kernel, (1,), codes=Codes(8, symmetric=False, narrow=False))
    rounded = KMeans(clusters=6).round(kernel, made)
    assert len(np.unique(rounded)) == 6
    assert (made.dequantize(rounded)[::2] == 0).all()
    with pytest.raises(InputError, match="clusters of KMeans must exceed the 2 zero points"):
        KMeans(clusters=2).round(kernel, made)


def test_kmeans_of_many_bits():
    kernel = np.random.default_rng(0).normal(size=5000)
    errors = []
    for bits in (10, 16):
        made = fit(kernel, codes=Codes(bits))
        rounded = KMeans(clusters=16).round(kernel, made)
        assert len(np.unique(rounded)) == 16
        errors.append(((made.dequantize(rounded) - kernel) ** 2).mean())
    # Finer points leave room for the better centroids: each code is the mean of its weights.
    assert errors[1] <= errors[0] <= 1.01 * errors[1]
    for code in np.unique(rounded):
        assert abs(code - (kernel / made.scale)[rounded == code].mean()) <= 0.5


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"kmeans": {"clusters": 1}}, r"clusters of KMeans must be a whole number in \[2, 256\]"),
        ({"stochastic": {"seed": -1}}, "seed of Stochastic must be a whole number, at least 0"),
        ({"adaround": {"iterations": 0}}, "iterations of AdaRound must be a whole number"),
        ({"adaround": {"learning_rate": 0}}, "learning_rate of AdaRound must be finite and above"),
        ("nearst", "Did you mean 'nearest'"),
    ],
)
def test_wrong_arguments(method, message):
    with pytest.raises(InputError, match=message):
        ROUNDINGS.create(method)
