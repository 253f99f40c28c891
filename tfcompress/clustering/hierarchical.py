"""Agglomerative clustering by Ward's rule."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.ward import Tree


@METHODS.register("hierarchical")
@dataclasses.dataclass(frozen=True)
class Hierarchical:
    """Joins the two clusters whose union adds the least squared error, until `clusters` are left.

    With `max_error`, as many clusters are left as keep the squared error within that share of the
    kernel's own (around its mean), but no more than `clusters`. There is no chance in it. A kernel
    with more than 8,192 distinct weights, or 2,048 distinct blocks, is joined from its landmarks.

    `clusters`: in [2, 512], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").
    `max_error`: in [0, 1], or None.

    Source: Ward 1963, "Hierarchical grouping to optimize an objective function".

    >>> values = np.array([[0.0], [1.0], [7.0], [9.0]], np.float32)
    >>> Hierarchical(clusters=3).fit(values).centroids.tolist()
    [[0.5], [7.0], [9.0]]
    >>> Hierarchical(clusters=3, max_error=0.1).fit(values).centroids.tolist()
    [[0.5], [8.0]]
    """

    clusters: int | str = 16
    max_error: float | None = None
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, landmarks.CLUSTERS)
        if self.max_error is not None:
            arrays.check_number(self, "max_error", 0, 1)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts. The
        tree does not depend on a `start`.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "Hierarchical")
        seen = landmarks.Landmarks.of(blocks, sample_weight)
        if len(seen.points) == 1:
            return seen.codebook(np.zeros(1, int))
        tree = Tree.of(seen.points, seen.masses)
        if self.max_error is None:
            return landmarks.partition(self, seen, tree.labels)
        within = tree.clusters_within(self.max_error * tree.costs.sum())
        return seen.codebook(tree.labels(min(within, choose.most(self))))
