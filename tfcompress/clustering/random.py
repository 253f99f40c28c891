"""Random (Forgy) clustering: the centroids are weights drawn from the kernel."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook


@METHODS.register("random")
@dataclasses.dataclass(frozen=True)
class Random:
    """Draws `clusters` distinct blocks of a kernel; each block goes to the nearest of them.

    The centroid of a cluster is the mean of its blocks. `iterations` of Lloyd's rule then move the
    centroids towards the error of `kmeans`; 0 keeps the clusters as drawn: a control, and Han's
    first initialisation. Of a kernel with many equal blocks fewer may be drawn.

    `clusters`: in [2, 65536], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").
    `seed`, `iterations`: at least 0.

    Sources: Forgy 1965; Han, Mao and Dally 2016, "Deep Compression", section 3.2.

    >>> values = np.array([[0.0], [0.0], [5.0], [5.0], [9.0]], np.float32)
    >>> len(Random(clusters=2).fit(values).centroids)
    2
    """

    clusters: int | str = 16
    seed: int = 0
    iterations: int = 0
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, 65536)
        arrays.check_whole(self, "seed", 0, 2**32 - 1)
        arrays.check_whole(self, "iterations", 0, 10**6)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how likely each block is drawn and
        how much it counts. What is drawn does not depend on a `start`.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "Random")
        clusters = landmarks.number_of_clusters(self, blocks, sample_weight)
        kept = arrays.exact(blocks, clusters)
        if kept is not None:
            return kept
        centroids = _draw(blocks, sample_weight, clusters, self.seed)
        return arrays.lloyd(blocks, sample_weight, centroids, self.iterations)


def _draw(blocks: np.ndarray, weight: np.ndarray | None, clusters: int, seed: int) -> np.ndarray:
    """Returns up to `clusters` distinct blocks: the first ones of a random order."""
    count, generator = len(blocks), np.random.default_rng(seed)
    chances = None if weight is None else weight / weight.sum()
    size = count if chances is None else int(np.count_nonzero(chances))
    size = min(size, 8 * clusters)  # enough for `clusters` distinct ones, unless most are equal
    drawn = blocks[generator.choice(count, size, replace=False, p=chances, shuffle=True)]
    first = np.sort(np.unique(drawn, axis=0, return_index=True)[1])
    return drawn[first[:clusters]]
