"""The integer program against brute force over all choices."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress.errors import InputError
from tfcompress.quantization.allocation import allocate, front, total


def best(loss, costs, limits):
    """The least loss of all choices that keep the limits, None if none does."""
    values = []
    for choice in itertools.product(range(loss.shape[1]), repeat=len(loss)):
        choice = np.array(choice)
        if all(total(cost, choice) <= limit for cost, limit in zip(costs, limits, strict=True)):
            values.append(total(loss, choice))
    return min(values, default=None)


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 5),
    schemes=st.integers(1, 4),
    limits=st.integers(1, 2),
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
)
def test_it_is_the_optimum(layers, schemes, limits, seed, share):
    random = np.random.default_rng(seed)
    loss = random.normal(size=(layers, schemes))
    costs = random.integers(0, 10**7, (limits, layers, schemes)).astype(float)
    low, high = costs.min(axis=2).sum(axis=1), costs.max(axis=2).sum(axis=1)
    bounds = np.floor(low + share * (high - low))
    expected = best(loss, costs, bounds)
    if expected is None:
        with pytest.raises(InputError, match="limits of allocation cannot be kept at once"):
            allocate(loss, costs, bounds)
        return
    choice = allocate(loss, costs, bounds)
    assert (total(costs, choice) <= bounds).all()
    assert total(loss, choice) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_front_is_undominated(seed):
    random = np.random.default_rng(seed)
    loss, cost = random.random((5, 3)), random.integers(1, 100, (5, 3))
    choices = front(loss, cost, points=6)
    pairs = [(total(cost, choice), total(loss, choice)) for choice in choices]
    assert pairs[0][0] == cost.min(axis=1).sum()
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(pairs))
    for spent, lost in pairs:
        assert lost == pytest.approx(best(loss, [cost], [spent]))


def test_a_scheme_that_is_not_allowed_is_not_chosen():
    loss = np.array([[np.inf, 5.0], [0.0, 1.0]])
    cost = np.array([[1.0, 2.0], [np.inf, 1.0]])
    assert allocate(loss, cost, 10).tolist() == [1, 1]
    with pytest.raises(InputError, match=r"needs a scheme for every layer. Received: layers=\[0\]"):
        allocate([[np.inf], [1.0]], [[1.0], [1.0]], 10)


def test_a_hundred_layers_are_solved():
    random = np.random.default_rng(0)
    bits = np.array([16, 8, 4])
    weights = random.integers(100, 10**6, (100, 1))
    cost = weights * bits // 8
    loss = random.random((100, 1)) * np.array([0.0, 0.01, 1.0])
    limit = cost[:, 1].sum() * 0.7
    choice = allocate(loss, cost, limit)
    assert 0.999 * limit < total(cost, choice) <= limit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.0, 1.0]], [[8, 4]], 3), "must be at least 4. Received: limit=3"),
        (([[0.0, np.nan]], [[8, 4]], 9), "must be an array .layers, schemes. without NaN"),
        (([0.0], [[8]], 9), "must be an array"),
        (([[0.0, 1.0]], [[8, 4, 2]], 9), r"of shape \(1, 2\)"),
        (([[0.0, 1.0]], [[8, -4]], 9), "numbers of at least 0"),
        (([[0.0, 1.0]], [[8, 4]], [9, 9]), "must be 1 number"),
    ],
)
def test_what_cannot_be_used(arguments, message):
    with pytest.raises(InputError, match=message):
        allocate(*arguments)
