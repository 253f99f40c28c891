import numpy as np
import pytest
from scipy import stats

from tfcompress.clustering import Codebook, codebook


def example():
    return Codebook(
        np.array([[0, 1], [2, 3], [4, 5]], np.float32), np.array([0, 2, 2, 1], np.int32)
    )


def test_decode():
    np.testing.assert_array_equal(example().decode(), [[0, 1], [4, 5], [4, 5], [2, 3]])


def test_sse_in_chunks(monkeypatch):
    blocks = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    squares = ((blocks.astype(np.float64) - example().decode()) ** 2).sum(axis=1)
    monkeypatch.setattr(codebook, "_CHUNK", 3)
    assert example().sse(blocks) == pytest.approx(squares.sum(), rel=1e-12)
    weight = np.array([1, 0, 2, 3])
    assert example().sse(blocks, weight) == pytest.approx(squares @ weight, rel=1e-12)


def test_entropy():
    assert example().entropy_bits == pytest.approx(stats.entropy([1, 1, 2], base=2))
    assert Codebook(np.ones((1, 1), np.float32), np.zeros(5, np.int32)).entropy_bits == 0


def test_size():
    assert example().size_bytes == 6 * 4 + 1  # four indices of two bits
    assert Codebook(np.ones((1, 1), np.float32), np.zeros(5, np.int32)).size_bytes == 4
