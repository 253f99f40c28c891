import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tfcompress.errors import InputError
from tfcompress.pruning import PATTERNS, Block, NOfM, Unstructured
from tfcompress.weights import real_entries, to_blocks

# Few distinct values: ties are the rule.
SCORES = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=4, max_side=6),
    elements=st.integers(0, 5).map(float),
)


def test_names():
    assert PATTERNS.names() == ("block", "n_of_m", "unstructured")


@pytest.mark.parametrize("name", PATTERNS.names())
@given(scores=SCORES, share=st.floats(0, 0.999), less=st.floats(0, 1))
def test_the_contract_of_patterns(name, scores, share, less):
    pattern, before = PATTERNS.create(name), scores.copy()
    sparsity = share * pattern.max_sparsity
    mask = pattern.mask(scores, sparsity)
    assert mask.shape == scores.shape and mask.dtype == bool and mask.any()
    np.testing.assert_array_equal(mask, pattern.mask(scores, sparsity))
    np.testing.assert_array_equal(scores, before)
    assert pattern.mask(scores, 0.0).all()
    # What a lower sparsity removes, a higher one removes too.
    assert pattern.mask(scores, less * sparsity)[mask].all()
    # Once pruned, the scores are 0, and the same weights go again.
    if (scores > 0).all():
        np.testing.assert_array_equal(pattern.mask(scores * mask, sparsity), mask)
    assert PATTERNS.create(PATTERNS.describe(pattern)) == pattern


@given(scores=SCORES, sparsity=st.floats(0, 0.999))
def test_unstructured_removes_the_lowest_and_just_so_many(scores, sparsity):
    mask = Unstructured().mask(scores, sparsity)
    assert np.count_nonzero(~mask) == min(round(sparsity * scores.size), scores.size - 1)
    if not mask.all():
        assert scores[~mask].max() <= scores[mask].min()
        limit = scores[~mask].max()
        ties = mask.ravel()[scores.ravel() == limit]
        assert (np.diff(ties.astype(int)) >= 0).all()  # of equal ones, the first go


@given(
    scores=SCORES,
    sparsity=st.floats(0, 0.999),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_blocks_go_as_a_whole_lowest_mean_first(scores, sparsity, block):
    mask = Block(block).mask(scores, sparsity)
    real = real_entries(scores.shape, block)
    kept = to_blocks(mask.astype(np.float32), block).astype(bool)
    assert (kept.all(axis=1) | ~kept.any(axis=1)).all()
    gone = ~kept.any(axis=1)
    assert gone.sum() == min(round(sparsity * len(gone)), len(gone) - 1)
    means = (to_blocks(scores, block) * real).sum(axis=1) / real.sum(axis=1)
    if gone.any():
        assert means[gone].max() <= means[~gone].min() + 1e-6


@given(scores=SCORES, n=st.integers(1, 3), more=st.integers(1, 3))
def test_n_of_m_keeps_the_n_largest_of_each_m(scores, n, more):
    m = n + more
    mask = NOfM(n, m).mask(scores, 1 - n / m)
    lines, kept = _lines(scores), _lines(mask)
    for line, stays in zip(lines, kept, strict=True):
        for begin in range(0, len(line), m):
            group, left = line[begin : begin + m], stays[begin : begin + m]
            assert left.sum() == min(n, len(group))
            best = max(sum(c) for c in itertools.combinations(group, min(n, len(group))))
            assert group[left].sum() == best


def _lines(array):
    """The kernel's lines along the input axis, or along the positions of depthwise kernels."""
    if array.ndim == 1:
        return array[None]
    if array.ndim > 2 and array.shape[-1] == 1:
        return array.reshape(-1, array.shape[-2]).T
    return np.moveaxis(array, -2, -1).reshape(-1, array.shape[-2])


def test_n_of_m_takes_the_groups_first_that_lose_least():
    scores = np.array([[9, 1, 5, 5, 2, 7, 3, 3]], np.float32).T
    mask = NOfM(1, 2).mask(scores, 0.25).ravel()
    np.testing.assert_array_equal(mask, [True, False, True, True, False, True, True, True])


@pytest.mark.parametrize(
    ("pattern", "sparsity", "message"),
    [
        (Unstructured(), 1.0, r"sparsity of Unstructured must be in \[0, 1\)"),
        (Block(), -0.1, "sparsity of Block"),
        (NOfM(2, 4), 0.8, r"sparsity of NOfM must be in \[0, 0.5\]"),
        (Unstructured(), float("nan"), "sparsity of Unstructured"),
    ],
)
def test_sparsity_out_of_range(pattern, sparsity, message):
    with pytest.raises(InputError, match=message):
        pattern.mask(np.ones((4, 4), np.float32), sparsity)


@pytest.mark.parametrize("pattern", [Unstructured(), Block(), NOfM()])
def test_scores_that_cannot_be_ordered(pattern):
    with pytest.raises(InputError, match="must not be NaN"):
        pattern.mask(np.array([[1.0, np.nan]]), 0.5)
    with pytest.raises(InputError, match="must not be empty"):
        pattern.mask(np.empty((0, 3)), 0.5)


@pytest.mark.parametrize("arguments", [{"block": 4}, {"block": [0, 4]}, {"block": [1, 2, 3]}])
def test_wrong_block(arguments):
    with pytest.raises(InputError, match="block of Block must be two whole numbers"):
        PATTERNS.create({"block": arguments})


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (1.5, 4)])
def test_wrong_n_of_m(n, m):
    with pytest.raises(InputError, match="n and m of NOfM"):
        NOfM(n, m)


def test_a_recipes_list_is_a_block():
    assert PATTERNS.create({"block": {"block": [2, 4]}}) == Block((2, 4))
