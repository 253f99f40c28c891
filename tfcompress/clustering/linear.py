"""Linear clustering: levels of equal width."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays
from tfcompress.clustering.codebook import Codebook


@METHODS.register("linear")
@dataclasses.dataclass(frozen=True)
class Linear:
    """Cuts the range of a kernel's weights into `clusters` levels of equal width.

    Each level's centroid is the mean of its weights; a level without weights has none, so that
    there may be fewer centroids than `clusters`. The squared error is larger than that of `kmeans`
    with as many clusters, but the middle levels hold most weights, so that the indices have less
    entropy: at equal accuracy the deflated file is often smaller. Blocks (d > 1) are levelled by
    their mean position in the ranges of their entries.

    `clusters`: in [2, 65536].

    Source: Han, Mao and Dally 2016, "Deep Compression", section 3.2 (linear initialisation).

    >>> Linear(clusters=3).fit(np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)).centroids
    array([[ 1.],
           [10.]], dtype=float32)
    """

    clusters: int = 16

    def __post_init__(self) -> None:
        arrays.check_whole(self, "clusters", 2, 65536)

    def fit(self, blocks: np.ndarray, sample_weight: np.ndarray | None = None) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts in its
        level's mean.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "Linear")
        few = blocks[: 2 * self.clusters]
        if len(np.unique(few, axis=0)) <= self.clusters:
            distinct, indices = np.unique(blocks, axis=0, return_inverse=True)
            if len(distinct) <= self.clusters:
                return Codebook(distinct, indices.reshape(-1).astype(np.int32))
        levels = self._levels(blocks)
        _, indices = np.unique(levels, return_inverse=True)
        indices = indices.reshape(-1).astype(np.int32)
        return Codebook(arrays.means(blocks, indices, sample_weight), indices)

    def _levels(self, blocks: np.ndarray) -> np.ndarray:
        """Returns each block's level in [0, clusters)."""
        low = blocks.min(axis=0)
        width = blocks.max(axis=0) - low
        position = ((blocks - low) / np.where(width > 0, width, 1)).mean(axis=1)
        return np.minimum((position * self.clusters).astype(np.int32), self.clusters - 1)
