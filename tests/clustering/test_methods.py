"""What holds for every clustering method."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfcompress.clustering import METHODS

BLOCKS = st.tuples(st.integers(1, 30), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-10, 10, width=16))
)


def test_names():
    assert METHODS.names() == ("kmeans", "linear")


@pytest.mark.parametrize("name", METHODS.names())
@settings(max_examples=40)
@given(blocks=BLOCKS, clusters=st.integers(2, 6))
def test_the_contract_of_methods(name, blocks, clusters):
    method, before = METHODS.create({name: {"clusters": clusters}}), blocks.copy()
    codebook = method.fit(blocks)
    count, size = blocks.shape
    assert codebook.centroids.dtype == np.float32 and codebook.indices.dtype == np.int32
    assert codebook.centroids.shape[1:] == (size,) and codebook.indices.shape == (count,)
    assert 1 <= len(codebook.centroids) <= clusters
    assert set(codebook.indices) == set(range(len(codebook.centroids)))
    assert codebook.decode().shape == blocks.shape
    distinct = len(np.unique(blocks, axis=0))
    if distinct <= clusters:
        assert codebook.sse(blocks) == 0 and len(codebook.centroids) == distinct
    assert codebook.sse(blocks) <= ((blocks - blocks.mean(axis=0)) ** 2).sum() * 1.01 + 1e-6
    np.testing.assert_array_equal(codebook.centroids, method.fit(blocks).centroids)
    np.testing.assert_array_equal(blocks, before)
    assert METHODS.create(METHODS.describe(method)) == method
