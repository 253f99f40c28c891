"""Weights that share few values: one file per method.

    >>> import numpy as np
    >>> from tfcompress import clustering
    >>> weights = np.array([[0.1], [0.9], [1.1]], np.float32)
    >>> codebook = clustering.METHODS.create({"kmeans": {"clusters": 2}}).fit(weights)
    >>> codebook.decode().ravel()
    array([0.1, 1. , 1. ], dtype=float32)
    >>> print(clustering.quality(weights, codebook))
    SSE 0.02 (1.000 x best), silhouette 0.926, 2 values, 0.92 bits per weight, codebook 8 bytes

A method is a frozen dataclass with `fit(blocks, sample_weight=None, start=None) -> Codebook`;
blocks are float32 of shape (n, d). `start` is a codebook found before, of the same or like blocks:
methods that come near by steps go on from it, the others find the same without. Arrays in, arrays
out: the callbacks apply the codebooks to a model.
"""

from tfcompress.registry import Registry

METHODS: Registry = Registry("clustering method", __name__)

# Below the registry, because the methods enter themselves into it.
from tfcompress.clustering.additive import additive, decode  # noqa: E402
from tfcompress.clustering.arrays import spanned  # noqa: E402
from tfcompress.clustering.autoencoder import Autoencoder  # noqa: E402
from tfcompress.clustering.bgmm import BayesianMixture  # noqa: E402
from tfcompress.clustering.choose import fewest, most  # noqa: E402
from tfcompress.clustering.codebook import Codebook  # noqa: E402
from tfcompress.clustering.dbscan import DBSCAN  # noqa: E402
from tfcompress.clustering.density_linear import DensityLinear  # noqa: E402
from tfcompress.clustering.entropy_kmeans import EntropyKMeans  # noqa: E402
from tfcompress.clustering.gmm import GaussianMixture  # noqa: E402
from tfcompress.clustering.hashing import Hashing  # noqa: E402
from tfcompress.clustering.hdbscan import HDBSCAN  # noqa: E402
from tfcompress.clustering.hierarchical import Hierarchical  # noqa: E402
from tfcompress.clustering.kde import KernelDensity  # noqa: E402
from tfcompress.clustering.kmeans import KMeans  # noqa: E402
from tfcompress.clustering.linear import Linear  # noqa: E402
from tfcompress.clustering.lle import LLE  # noqa: E402
from tfcompress.clustering.quality import Quality, quality  # noqa: E402
from tfcompress.clustering.random import Random  # noqa: E402
from tfcompress.clustering.som import SOM  # noqa: E402
from tfcompress.clustering.spectral import Spectral  # noqa: E402

__all__ = [
    "DBSCAN",
    "HDBSCAN",
    "LLE",
    "METHODS",
    "SOM",
    "Autoencoder",
    "BayesianMixture",
    "Codebook",
    "DensityLinear",
    "EntropyKMeans",
    "GaussianMixture",
    "Hashing",
    "Hierarchical",
    "KMeans",
    "KernelDensity",
    "Linear",
    "Quality",
    "Random",
    "Spectral",
    "additive",
    "decode",
    "fewest",
    "most",
    "quality",
    "spanned",
]
