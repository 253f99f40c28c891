import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tfcompress.errors import InputError
from tfcompress.pruning import SCORES, Lamp, Magnitude, Random

KERNELS = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.floats(-8, 8, width=32),
)


def test_names():
    assert SCORES.names() == ("lamp", "magnitude", "random")


@pytest.mark.parametrize("name", SCORES.names())
@given(kernel=KERNELS)
def test_the_contract_of_scores(name, kernel):
    score, before = SCORES.create(name), kernel.copy()
    scores = score.score(kernel)
    assert scores.shape == kernel.shape and scores.dtype.kind == "f"
    assert np.isfinite(scores).all() and (scores >= 0).all()
    assert (scores[kernel == 0] == 0).all()
    np.testing.assert_array_equal(scores, score.score(kernel))
    np.testing.assert_array_equal(kernel, before)
    assert isinstance(score.normalise, bool)
    assert SCORES.create(SCORES.describe(score)) == score


@given(kernel=KERNELS)
def test_magnitude_is_the_absolute_value(kernel):
    np.testing.assert_array_equal(Magnitude().score(kernel), abs(kernel))


@given(kernel=KERNELS)
def test_lamp_is_the_papers_formula(kernel):
    squares = kernel.astype(np.float64) ** 2
    expected = [
        w / squares[squares >= w].sum() if w else 0.0  # the sum over what is not smaller
        for w in squares.ravel()
    ]
    np.testing.assert_allclose(Lamp().score(kernel).ravel(), expected, rtol=1e-12)


def test_lamp_keeps_the_order_and_gives_the_largest_1():
    kernel = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    scores = Lamp().score(kernel)
    np.testing.assert_array_equal(np.argsort(scores), np.argsort(abs(kernel)))
    assert scores.max() == 1


def test_random_stays_the_same_while_weights_change_and_zeros_go_first():
    first = Random(seed=3).score(np.full((4, 5), 0.1, np.float32))
    later = Random(seed=3).score(np.eye(4, 5, dtype=np.float32))
    np.testing.assert_array_equal(later, first * np.eye(4, 5))
    assert (first > 0).all() and (first != Random(seed=4).score(np.ones((4, 5)))).any()


def test_random_is_uniform():
    scores = Random().score(np.ones((100, 1000), np.float32))
    assert abs(np.sort(scores.ravel()) - np.linspace(0, 1, scores.size)).max() < 0.01


def test_wrong_seed():
    with pytest.raises(InputError, match="seed of Random"):
        Random(seed=-1)
