"""Density-based clustering: levels of equal mass."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks, scalar
from tfcompress.clustering.codebook import Codebook


@METHODS.register("density_linear")
@dataclasses.dataclass(frozen=True)
class DensityLinear:
    """Cuts a kernel's weights into `clusters` levels that hold equally many of them.

    The borders cut the cumulative distribution into equal steps, so that the indices have all the
    entropy that `clusters` allow; each level's centroid is the mean of its weights. Equal values
    stay in one level: many zeros take one level, however many there are. `iterations` of Lloyd's
    rule then move the centroids towards the error of `kmeans`; 0 keeps the levels. Blocks (d > 1)
    are levelled along their axis of largest variance.

    `clusters`: in [2, 65536], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").
    `iterations`: at least 0.

    Source: Han, Mao and Dally 2016, "Deep Compression", section 3.2 (density-based initialisation).

    >>> values = np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)
    >>> DensityLinear(clusters=2).fit(values).centroids.tolist()
    [[0.5], [6.0]]
    """

    clusters: int | str = 16
    iterations: int = 0
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, 65536)
        arrays.check_whole(self, "iterations", 0, 10**6)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts. The
        levels do not depend on a `start`.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "DensityLinear")
        clusters = landmarks.number_of_clusters(self, blocks, sample_weight)
        kept = arrays.exact(blocks, clusters)
        if kept is not None:
            return kept
        levels = arrays.codebook(blocks, _levels(blocks, sample_weight, clusters), sample_weight)
        if self.iterations == 0:
            return levels
        return arrays.lloyd(blocks, sample_weight, levels.centroids, self.iterations)


def _levels(blocks: np.ndarray, weight: np.ndarray | None, clusters: int) -> np.ndarray:
    """Returns each block's level: the step of the cumulative mass in which its middle lies."""
    if blocks.shape[1] == 1:
        position = blocks[:, 0]
    else:
        seen = landmarks.Landmarks.of(blocks, weight)
        position = (blocks @ arrays.principal(seen.points, seen.masses)).astype(np.float32)
    points = scalar.points_of(position, weight)
    middles = np.cumsum(points.masses) - points.masses / 2
    steps = middles[-1] + points.masses[-1] / 2
    level = np.minimum((middles / steps * clusters).astype(np.int32), clusters - 1)
    begins = points.positions[np.flatnonzero(np.diff(level)) + 1]
    before = points.positions[np.flatnonzero(np.diff(level))]
    return np.searchsorted((begins + before) / 2, position, side="left")
