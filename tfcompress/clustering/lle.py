"""Locally linear embedding, then k-means."""

import dataclasses
import functools

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook

# The eigenvectors of a dense matrix of so many landmarks take a second.
_LANDMARKS = 1024


@METHODS.register("lle")
@dataclasses.dataclass(frozen=True)
class LLE:
    """Unrolls the surface on which the blocks lie, and clusters the blocks on it by k-means.

    Each block is written as a mix of its `neighbors` nearest ones; `components` coordinates are
    found of which the same mixes hold. Blocks that are close along the surface share a cluster,
    which they may not by distance alone. Centroids are the means of their blocks. Scalars lie on a
    line already: their embedding only evens out how dense they are. Kernels with more than 1,024
    distinct blocks are embedded by as many landmarks.

    `clusters`: in [2, 512], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").
    `components`: at least 1, no more than a block's weights count. `neighbors`: at least 1, of a
    kernel with fewer blocks all others. `seed`: at least 0.

    Source: Roweis and Saul 2000, "Nonlinear dimensionality reduction by locally linear embedding".

    >>> blocks = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    >>> len(LLE(clusters=5).fit(blocks).centroids)
    5
    """

    clusters: int | str = 16
    components: int = 2
    neighbors: int = 12
    seed: int = 0
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, landmarks.CLUSTERS)
        arrays.check_whole(self, "components", 1, _LANDMARKS)
        arrays.check_whole(self, "neighbors", 1, _LANDMARKS - 1)
        arrays.check_whole(self, "seed", 0, 2**32 - 1)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts where
        landmarks are laid and in its cluster's mean. From the clusters of `start`, if there are
        `clusters` of them, k-means in the embedding goes on.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "LLE")
        seen = landmarks.Landmarks.of(blocks, sample_weight, self.seed, _LANDMARKS, _LANDMARKS)
        before = seen.labels_near(start, "LLE")

        @functools.cache
        def embedded() -> np.ndarray:
            return self._embed(seen.points)

        def labels_for(clusters: int) -> np.ndarray:
            return arrays.kmeans(embedded(), None, clusters, self.seed, before)

        return landmarks.partition(self, seen, labels_for)

    def _embed(self, points: np.ndarray) -> np.ndarray:
        """Returns the coordinates, float64 (m, components)."""
        import threadpoolctl
        from sklearn import manifold

        with threadpoolctl.threadpool_limits(limits=1):
            coordinates, _ = manifold.locally_linear_embedding(
                points / (points.std() or 1.0),
                n_neighbors=min(self.neighbors, len(points) - 1),
                n_components=min(self.components, points.shape[1], len(points) - 1),
                eigen_solver="dense",
            )
        return coordinates
