"""DBSCAN: what is densely connected is a cluster."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook
from tfcompress.errors import require

# The distances between all pairs are held: 32 MB of them for 2,048 landmarks, scalars or blocks.
_LANDMARKS = landmarks.BLOCKS
_UNITS = 1_000_000  # scikit-learn counts in whole samples: shares are counted in millionths


@METHODS.register("dbscan")
@dataclasses.dataclass(frozen=True)
class DBSCAN:
    """Joins blocks that lie within `radius` of a dense one; the rest goes to the nearest cluster.

    A block is dense if at least the share `min_share` of the kernel lies within `radius` of it.
    `radius` is in units of the blocks; "auto" takes the knee of the sorted distances within which
    that share lies. The number of clusters comes of the data: a kernel of one dense heap, as most
    trained kernels are, becomes one value. Of more than `clusters` the likest are joined.

    `clusters`: the most there may be, in [2, 512]. `min_share`: in [0, 1]; one block is always
    enough where it is 0.

    Source: Ester et al. 1996, "A density-based algorithm for discovering clusters".

    >>> values = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [9.0]], np.float32)
    >>> DBSCAN(clusters=4, radius=0.15, min_share=0.3).fit(values).centroids.tolist()
    [[0.10000000149011612], [6.366666793823242]]
    """

    clusters: int = 16
    radius: float | str = choose.AUTO
    min_share: float = 0.01

    def __post_init__(self) -> None:
        arrays.check_whole(self, "clusters", 2, landmarks.CLUSTERS)
        arrays.check_number(self, "min_share", 0, 1)
        if self.radius != choose.AUTO:
            real = isinstance(self.radius, int | float) and 0 < self.radius < np.inf
            rule = "must be 'auto' or a number above 0"
            require(real, "radius of DBSCAN", rule, radius=self.radius)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts. The
        clusters do not depend on a `start`.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "DBSCAN")
        seen = landmarks.Landmarks.of(blocks, sample_weight, 0, _LANDMARKS, _LANDMARKS)
        points, shares = seen.points, seen.masses / seen.masses.sum()
        if len(points) <= self.clusters:
            return seen.codebook(np.arange(len(points)))
        from sklearn import cluster

        radius = _radius(points, shares, self.min_share) if self.radius == "auto" else self.radius
        found = cluster.DBSCAN(eps=radius, min_samples=max(1, int(self.min_share * _UNITS))).fit(
            points, sample_weight=shares * (1 + 1e-9) * _UNITS
        )
        return landmarks.merged(seen, with_noise(points, found.labels_), self.clusters)


def with_noise(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the labels with those of noise (-1) taken from the nearest point of a cluster."""
    kept = labels >= 0
    if not kept.any():
        return np.zeros(len(points), np.int64)
    return labels[kept][arrays.assign(points, points[kept])]


def _radius(points: np.ndarray, shares: np.ndarray, min_share: float) -> float:
    """Returns the knee of the sorted distances within which `min_share` of the mass lies."""
    from scipy.spatial import distance

    apart = distance.cdist(points, points)
    order = np.argsort(apart, axis=1, kind="stable")
    within = np.cumsum(shares[order], axis=1) >= min_share - 1e-12
    nth = np.maximum(within.argmax(axis=1), 1)  # the nearest other one at least
    reach = np.sort(np.take_along_axis(apart, order, 1)[np.arange(len(points)), nth])
    if reach[0] == reach[-1]:
        return float(reach[0]) or 1.0
    knee = choose.knee(np.arange(len(reach)), reach, "increasing")
    return float(reach[-1] if knee is None else reach[int(knee)]) or float(reach[reach > 0][0])
