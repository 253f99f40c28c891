"""HDBSCAN: clusters that stay together over a range of densities."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, landmarks
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.dbscan import with_noise

# Minimum spanning trees compare all pairs of blocks: of 8,192 in about a second, more where d is
# large. They are drawn by weight, because scikit-learn's HDBSCAN knows no weights.
_SAMPLES = 8192


@METHODS.register("hdbscan")
@dataclasses.dataclass(frozen=True)
class HDBSCAN:
    """Finds the dense clusters that last longest while the density falls.

    Unlike `dbscan` it needs no radius, and clusters may be of unlike density. A cluster holds at
    least the share `min_share` of the kernel; blocks that belong to none (noise) go to that of the
    nearest block which does. The number of clusters comes of the data: a kernel of one dense heap,
    as most trained kernels are, becomes one value, or few. Of more than `clusters` the likest are
    joined. Of kernels with more than 8,192 blocks, or with weights, 8,192 are drawn.

    `clusters`: the most there may be, in [2, 512]. `min_share`: in [0, 0.5]; a cluster has at least
    two blocks. `seed`: at least 0.

    Source: Campello, Moulavi and Sander 2013, "Density-based clustering based on hierarchical
    density estimates".

    >>> values = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]], np.float32)
    >>> HDBSCAN(clusters=3, min_share=0.3).fit(values).centroids.tolist()
    [[0.10000000149011612], [5.099999904632568]]
    """

    clusters: int = 16
    min_share: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        arrays.check_whole(self, "clusters", 2, landmarks.CLUSTERS)
        arrays.check_number(self, "min_share", 0, 0.5)
        arrays.check_whole(self, "seed", 0, 2**32 - 1)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how often each block is drawn. The
        clusters do not depend on a `start`.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "HDBSCAN")
        seen = landmarks.Landmarks.of(blocks, sample_weight, self.seed)
        if len(seen.points) <= self.clusters:
            return seen.codebook(np.arange(len(seen.points)))
        from sklearn import cluster

        sample = seen.sample(_SAMPLES, self.seed)
        fewest = min(max(2, round(self.min_share * len(sample))), len(sample))
        labels = cluster.HDBSCAN(min_cluster_size=fewest, copy=True).fit(sample).labels_
        labels = with_noise(sample, labels)[arrays.assign(seen.points, sample)]
        return landmarks.merged(seen, labels, self.clusters)
