"""Rounding for the layer's outputs, and the inputs' moments that it reads."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress.errors import InputError
from tfcompress.quantization import Codes, LayerInputs, fit
from tfcompress.quantization.granularity import quantize
from tfcompress.quantization.grid import Grid
from tfcompress.quantization.rounding.adaround import AdaRound


def problem(seed, size=8, outputs=4, samples=50, bits=4):
    """Weights, correlated inputs that are not negative, and a grid per output channel."""
    generator = np.random.default_rng(seed)
    causes = generator.normal(size=(samples, max(2, size // 4)))
    mixed = causes @ generator.normal(size=(causes.shape[1], size))
    inputs = np.maximum(mixed + 0.3 * generator.normal(size=mixed.shape), 0)
    weights = generator.normal(size=(size, outputs))
    return weights, inputs, fit(weights, (1,), codes=Codes(bits))


def output_errors(weights, codes, made, inputs):
    return ((inputs @ (codes * made.scale - weights)) ** 2).sum(axis=0)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    size=st.integers(1, 12),
    samples=st.integers(1, 40),
    bits=st.integers(2, 8),
    ranges=st.sampled_from(["min_max", "mse", "sigma"]),
)
def test_no_channel_is_worse_than_nearest(seed, size, samples, bits, ranges):
    weights, inputs, _ = problem(seed, size, samples=samples)
    made = fit(weights, (1,), ranges=ranges, codes=Codes(bits))
    rounded = AdaRound(iterations=20).round(weights, made, LayerInputs.of(inputs))
    nearest = quantize(weights, made)
    assert (np.abs(rounded - weights / made.scale) < 1)[np.abs(nearest) < made.codes.highest].all()
    errors = [output_errors(weights, codes, made, inputs) for codes in (rounded, nearest)]
    assert (errors[0] <= errors[1] * (1 + 1e-9) + 1e-12).all()


def test_it_comes_near_the_best_of_all_choices():
    gaps = np.zeros(2)
    for seed in range(12):
        weights, inputs, made = problem(seed)
        rounded = AdaRound().round(weights, made, LayerInputs.of(inputs))
        down = np.floor(weights / made.scale)
        every = [down + np.array(up)[:, None] for up in itertools.product((0, 1), repeat=8)]
        inside = [np.clip(codes, made.codes.lowest, made.codes.highest) for codes in every]
        best = np.min([output_errors(weights, codes, made, inputs) for codes in inside], axis=0)
        found = output_errors(weights, rounded, made, inputs)
        nearest = output_errors(weights, quantize(weights, made), made, inputs)
        assert (found >= best * (1 - 1e-9)).all()
        gaps += (found - best).sum(), (nearest - best).sum()
    assert gaps[0] < 0.1 * gaps[1]


def lossy_problem(seed, lossy):
    """A larger problem; if `lossy`, its inputs are those of layers that were quantized before."""
    weights, exact, made = problem(seed, size=60, outputs=20, samples=400)
    inputs = np.floor(exact * 2) / 2 if lossy else exact
    return weights, inputs, exact @ weights, made


@pytest.mark.parametrize("lossy", [False, True])
def test_no_single_choice_can_be_bettered(lossy):
    weights, inputs, targets, made = lossy_problem(1, lossy)
    moments = LayerInputs.of(inputs, targets - inputs @ weights)
    rounded = AdaRound().round(weights, made, moments)

    def errors(codes):
        return ((inputs @ (codes * made.scale) - targets) ** 2).sum(axis=0)

    found, down = errors(rounded), np.floor(weights / made.scale)
    for row in range(len(weights)):
        other = rounded.copy()
        other[row] = np.where(rounded[row] == down[row], down[row] + 1, down[row])
        other = np.clip(other, made.codes.lowest, made.codes.highest)
        assert (errors(other) >= found * (1 - 1e-6)).all()


@pytest.mark.parametrize("lossy", [False, True])
def test_the_relaxation_finds_more_than_single_changes_do(lossy):
    totals = np.zeros(2)
    for seed in range(6):
        weights, inputs, targets, made = lossy_problem(seed, lossy)
        moments = LayerInputs.of(inputs, targets - inputs @ weights)
        for index, iterations in enumerate((1, 300)):
            rounded = AdaRound(iterations=iterations).round(weights, made, moments)
            totals[index] += ((inputs @ (rounded * made.scale) - targets) ** 2).sum()
    assert totals[1] < 0.92 * totals[0]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_outputs_of_samples_not_seen_are_better_too(bits):
    weights, inputs, made = problem(bits, size=64, outputs=16, samples=2000, bits=bits)
    rounded = AdaRound().round(weights, made, LayerInputs.of(inputs[:1000]))
    errors = [
        output_errors(weights, codes, made, inputs[1000:]).sum()
        for codes in (rounded, quantize(weights, made))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_inputs_that_do_not_correlate_want_nearest():
    weights, _, made = problem(0)
    rounded = AdaRound().round(weights, made, LayerInputs.of(3 * np.eye(8)))
    np.testing.assert_array_equal(rounded, quantize(weights, made))


def test_groups_are_rounded_on_their_own():
    parts = [problem(seed) for seed in range(3)]
    weights, inputs = (np.stack(arrays) for arrays in zip(*(p[:2] for p in parts), strict=True))
    scale = np.stack([made.scale for *_, made in parts])
    made = Grid(scale, np.zeros_like(scale, np.int64), Codes(4))
    rounded = AdaRound().round(weights, made, LayerInputs.of(inputs))
    for index, (kernel, x, alone) in enumerate(parts):
        expected = AdaRound().round(kernel, alone, LayerInputs.of(x))
        assert np.mean(rounded[index] == expected) > 0.95  # up to float32 sums in other orders
        found, wanted = (
            output_errors(kernel, codes, alone, x).sum() for codes in (rounded[index], expected)
        )
        assert found <= wanted * 1.05


def test_it_makes_up_for_what_the_inputs_lost():
    weights, inputs, made = problem(5, size=16, samples=400)
    lossy = np.floor(inputs * 2) / 2  # as if the layers before were quantized
    targets = inputs @ weights
    moments = LayerInputs.of(lossy, targets - lossy @ weights)
    errors = [
        ((lossy @ (AdaRound().round(weights, made, given) * made.scale) - targets) ** 2).sum()
        for given in (moments, LayerInputs.of(lossy))
    ]
    assert errors[0] < errors[1]


def test_moments_add_up_and_give_the_error():
    weights, inputs, _ = problem(2)
    targets = np.maximum(inputs, 0.1) @ weights
    lacking = targets - inputs @ weights
    whole = LayerInputs.of(inputs, lacking)
    halves = [LayerInputs.of(inputs[s], lacking[s]) for s in (slice(20), slice(20, None))]
    summed = halves[0] + halves[1]
    assert summed.count == whole.count == 50
    np.testing.assert_allclose(summed.gram, whole.gram)
    np.testing.assert_allclose(summed.shortfall, whole.shortfall, atol=1e-9)
    change = np.random.default_rng(0).normal(size=weights.shape)
    grown = ((inputs @ (weights + change) - targets) ** 2).sum(axis=0)
    grown -= ((inputs @ weights - targets) ** 2).sum(axis=0)
    np.testing.assert_allclose(whole.error(change), grown, rtol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), samples=st.integers(3, 40))
def test_a_bias_makes_up_for_the_mean(seed, samples):
    """Moments about the means give the error that is left with the best bias of all."""
    weights, inputs, _ = problem(seed, samples=samples)
    lossy = np.floor(2 * inputs) / 2
    moments = LayerInputs.of(lossy, (inputs - lossy) @ weights)
    change = np.random.default_rng(seed).normal(size=weights.shape)

    def errors(bias, change):
        return ((lossy @ (weights + change) + bias - inputs @ weights) ** 2).sum(axis=0)

    bias = moments.bias_change(change)
    np.testing.assert_allclose(bias, (inputs @ weights - lossy @ (weights + change)).mean(axis=0))
    grown = errors(bias, change) - errors(moments.bias_change(np.zeros_like(change)), 0)
    found = moments.about_means().error(change)
    np.testing.assert_allclose(found, grown, rtol=1e-6, atol=1e-8 * moments.gram.max())


def test_wrong_inputs():
    weights, inputs, made = problem(0)
    with pytest.raises(InputError, match="AdaRound needs the layer's inputs"):
        AdaRound().round(weights, made)
    with pytest.raises(InputError, match=r"gram matrix of shape \(8, 8\).*gram=\(7, 7\)"):
        AdaRound().round(weights, made, LayerInputs.of(inputs[:, :7]))
    with pytest.raises(InputError, match="Inputs of LayerInputs must be finite"):
        LayerInputs.of(np.full((2, 2), np.nan))
    with pytest.raises(InputError, match=r"must have shape \(..., samples, in\), not empty"):
        LayerInputs.of(np.zeros((0, 8)))
    with pytest.raises(InputError, match="Outputs of LayerInputs must fit"):
        LayerInputs.of(inputs, weights)
    with pytest.raises(InputError, match="Moments of LayerInputs must fit"):
        LayerInputs.of(inputs) + LayerInputs.of(inputs[:, :7])
