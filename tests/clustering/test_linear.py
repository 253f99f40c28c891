import numpy as np
import pytest

from tfcompress.clustering import KMeans, Linear
from tfcompress.errors import InputError


def weights():
    return np.random.default_rng(0).laplace(size=(20_000, 1)).astype(np.float32)


def test_levels_have_equal_width_and_their_means():
    blocks = weights()
    codebook = Linear(clusters=8).fit(blocks)
    edges = np.linspace(blocks.min(), blocks.max(), 9)
    expected = np.digitize(blocks[:, 0], edges[1:-1])
    used = np.unique(expected)
    np.testing.assert_array_equal(used[codebook.indices], expected)
    means = [blocks[expected == level].mean(dtype=np.float64) for level in used]
    np.testing.assert_allclose(codebook.centroids[:, 0], means, rtol=1e-5)


def test_it_trades_error_for_entropy():
    blocks = weights()
    linear, kmeans = Linear(16).fit(blocks), KMeans(16).fit(blocks)
    assert linear.entropy_bits < kmeans.entropy_bits - 0.5
    assert linear.sse(blocks) > kmeans.sse(blocks)


def test_a_level_that_weighs_nothing_takes_its_plain_mean():
    blocks = np.array([[0.0], [0.1], [1.0], [0.9], [0.95]], np.float32)
    weight = np.array([3.0, 1.0, 0.0, 0.0, 0.0])
    centroids = Linear(2).fit(blocks, weight).centroids
    np.testing.assert_allclose(centroids, [[0.025], [0.95]], rtol=1e-6)


def test_one_cluster_is_refused():
    with pytest.raises(InputError, match=r"clusters of Linear .*\[2, 65536\].*clusters=1"):
        Linear(clusters=1)
