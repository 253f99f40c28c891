"""Linear clustering: levels of equal width."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
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

    `clusters`: in [2, 65536], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").

    Source: Han, Mao and Dally 2016, "Deep Compression", section 3.2 (linear initialisation).

    >>> Linear(clusters=3).fit(np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)).centroids
    array([[ 1.],
           [10.]], dtype=float32)
    """

    clusters: int | str = 16
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, 65536)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts in its
        level's mean. The levels do not depend on a `start`.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "Linear")
        clusters = landmarks.number_of_clusters(self, blocks, sample_weight)
        kept = arrays.exact(blocks, clusters)
        if kept is not None:
            return kept
        return arrays.codebook(blocks, _levels(blocks, clusters), sample_weight)


def _levels(blocks: np.ndarray, clusters: int) -> np.ndarray:
    """Returns each block's level in [0, clusters)."""
    low = blocks.min(axis=0)
    width = blocks.max(axis=0) - low
    position = ((blocks - low) / np.where(width > 0, width, 1)).mean(axis=1)
    return np.minimum((position * clusters).astype(np.int32), clusters - 1)
