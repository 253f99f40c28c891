"""K-means: exact for scalars, k-means++ and Lloyd for blocks."""

import dataclasses
from typing import Any

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks, scalar
from tfcompress.clustering.codebook import Codebook

# Of more blocks k-means++ and Lloyd see so many, or so many for each cluster; then one of Lloyd's
# steps goes through all. A sample of n misses the optimum by a share of k d / n of the error.
_SAMPLE = 1 << 18
_SAMPLES_PER_CLUSTER = 32


@METHODS.register("kmeans")
@dataclasses.dataclass(frozen=True)
class KMeans:
    """Replaces each block of a kernel by the nearest of `clusters` means.

    The means minimise the sum of squared errors (SSE). For scalars (d = 1) this is the optimum:
    exactly up to 65,536 distinct values and 1,024 clusters, of more values to about a millionth,
    of more than 2 million, which are counted in bins, to less than a thousandth; the centroids
    ascend, and `seed` plays no part. For blocks (d > 1) it is a local optimum: k-means++ and Lloyd,
    which see a sample where there are more than 262,144. With fewer distinct blocks than
    `clusters`, each is a centroid and nothing is lost.

    `clusters`: in [2, 65536], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic", see
    `choose`). `seed`: at least 0. `max_iterations` of Lloyd's rule, or of moving the borders of
    scalars' clusters: at least 1.

    Sources: Lloyd 1982; Arthur and Vassilvitskii 2007 (k-means++); Wang and Song 2011 and
    Gronlund et al. 2017 (one dimension).

    >>> KMeans(clusters=2).fit(np.array([[0.0], [1.0], [9.0]], np.float32)).centroids.tolist()
    [[0.5], [9.0]]
    """

    clusters: int | str = 16
    seed: int = 0
    max_iterations: int = 300
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, 65536)
        arrays.check_whole(self, "seed", 0, 2**32 - 1)
        arrays.check_whole(self, "max_iterations", 1, 10**6)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts. From
        the centroids of `start`, if it has `clusters` of them, Lloyd's rule goes on for blocks.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "KMeans")
        clusters = landmarks.number_of_clusters(self, blocks, sample_weight)
        if blocks.shape[1] == 1:
            return scalar.fit(blocks[:, 0], sample_weight, clusters, self.max_iterations)
        kept = arrays.exact(blocks, clusters)
        if kept is not None:
            return kept
        before = arrays.centroids_of(start, clusters, blocks.shape[1], "KMeans")
        few = max(_SAMPLE, _SAMPLES_PER_CLUSTER * clusters)
        if len(blocks) <= few:
            labels = self._fitted(blocks, sample_weight, clusters, before).labels_
            return arrays.codebook(blocks, labels, sample_weight)
        drawn = landmarks.drawn(len(blocks), sample_weight, few, self.seed)
        found = self._fitted(blocks[drawn], None, clusters, before).cluster_centers_
        return arrays.lloyd(blocks, sample_weight, found, 1)

    def _fitted(
        self,
        blocks: np.ndarray,
        weight: np.ndarray | None,
        clusters: int,
        before: np.ndarray | None,
    ) -> Any:
        import threadpoolctl
        from sklearn import cluster

        estimator = cluster.KMeans(
            clusters,
            init="k-means++" if before is None else before,
            n_init=1,
            max_iter=self.max_iterations,
            random_state=self.seed,
        )
        # One thread: with more, the order in which partial sums are added changes from run to run.
        with threadpoolctl.threadpool_limits(limits=1):
            return arrays.quiet(estimator.fit, blocks, None, weight)
