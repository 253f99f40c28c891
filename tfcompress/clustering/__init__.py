"""Weights that share few values: one file per method.

    >>> import numpy as np
    >>> from tfcompress import clustering
    >>> weights = np.array([[0.1], [0.9], [1.1]], np.float32)
    >>> codebook = clustering.METHODS.create({"kmeans": {"clusters": 2}}).fit(weights)
    >>> codebook.decode().ravel()
    array([0.1, 1. , 1. ], dtype=float32)

A method is a frozen dataclass with `fit(blocks, sample_weight=None) -> Codebook`; blocks are
float32 of shape (n, d). Arrays in, arrays out: the callbacks apply the codebooks to a model.
"""

from tfcompress.registry import Registry

METHODS: Registry = Registry("clustering method", __name__)

# Below the registry, because the methods enter themselves into it.
from tfcompress.clustering.codebook import Codebook  # noqa: E402
from tfcompress.clustering.kmeans import KMeans  # noqa: E402
from tfcompress.clustering.linear import Linear  # noqa: E402

__all__ = ["METHODS", "Codebook", "KMeans", "Linear"]
