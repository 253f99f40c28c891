"""Few weighted points that stand for many blocks, so that costly methods take large kernels.

A method whose cost or memory grows with the square of what it is given, or worse, sees landmarks.
Of scalars they are the distinct values, or where there are more of them, runs of neighbours merged
as densely as density^(1/3). Of blocks they are the distinct ones, or the means of a k-means of a
sample. Each block belongs to its nearest landmark and gets that one's cluster; a cluster's centroid
is the mean of all its blocks, not of a sample.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tfcompress.clustering import arrays, choose, scalar
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.ward import Tree

# With 8,192 scalars a border between two of 16 clusters lies at most 1 / 500 of a cluster's width
# from where it would lie between single values: less than 0.001 % of the error. A loop over
# all pairs of them takes a fraction of a second.
SCALARS = 8192
# A dense matrix of all pairs of 2,048 blocks holds 32 MB, its eigenvectors take seconds, and
# finding the nearest of them for six million blocks of four weights takes ten seconds.
BLOCKS = 2048
# A method with landmarks makes at most this many clusters: a few landmarks for each.
CLUSTERS = 512
# The k-means behind the landmarks sees so many blocks for each of them, and takes so many steps:
# its centroids need to be spread like the blocks, not to be optimal.
_SAMPLES_PER_LANDMARK = 16
_STEPS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Landmarks:
    """`points` float64 (m, d) with `masses` float64 (m,), all positive, in place of `blocks`.

    `which` int32 (n,) is the landmark of each block. A mass is the number of its blocks or, where
    they have a `weight` (n,), its share of it: all masses add up to n.
    """

    points: np.ndarray
    masses: np.ndarray
    which: np.ndarray
    blocks: np.ndarray
    weight: np.ndarray | None

    @classmethod
    def of(
        cls,
        blocks: np.ndarray,
        weight: np.ndarray | None,
        seed: int = 0,
        scalars: int = SCALARS,
        most: int = BLOCKS,
    ) -> "Landmarks":
        """Returns at most `scalars` landmarks of scalars, or `most` of blocks."""
        if weight is not None:
            weight = weight * (len(weight) / weight.sum())
        if blocks.shape[1] == 1:
            points = scalar.points_of(blocks[:, 0], weight)
            if len(points.positions) > scalars:
                points = points.merged(scalar.companded_begins(points, scalars))
            return cls._nearest(points.positions[:, None], blocks, weight)
        return cls._nearest(_representatives(blocks, weight, seed, most), blocks, weight)

    @classmethod
    def _nearest(
        cls, points: np.ndarray, blocks: np.ndarray, weight: np.ndarray | None
    ) -> "Landmarks":
        while True:
            which = arrays.assign(blocks, points)
            masses = np.bincount(which, weight, minlength=len(points)).astype(np.float64)
            if (masses > 0).all():
                break
            points = points[masses > 0]
        sums = [np.bincount(which, _times(column, weight)) for column in blocks.T]
        return cls(np.stack(sums, axis=1) / masses[:, None], masses, which, blocks, weight)

    def codebook(self, labels: np.ndarray) -> Codebook:
        """Returns the codebook of the blocks, given the cluster of each landmark.

        Clusters without landmarks are left out; the centroids ascend in their first entry.
        """
        _, labels = np.unique(labels, return_inverse=True)
        centroids = arrays.means(self.points, labels, self.masses)
        order = np.argsort(centroids[:, 0], kind="stable")
        rank = np.argsort(order).astype(np.int32)
        return Codebook(centroids[order], rank[labels][self.which])

    def sample(self, most: int, seed: int) -> np.ndarray:
        """Returns equally heavy points, float64: all blocks, or at most `most` drawn by weight.

        Each block is drawn as often as its share of the weight says, rounded up or down. Scalars
        are drawn at even steps of the cumulative weight, without chance.
        """
        count = len(self.blocks)
        if self.weight is None and count <= most:
            return self.blocks.astype(np.float64)
        if self.points.shape[1] == 1:
            order = np.argsort(self.points[:, 0])
            return self.points[order[_even_steps(self.masses[order], most, 0.5)]]
        return self.blocks[drawn(count, self.weight, most, seed)].astype(np.float64)

    def labels_near(self, start: Codebook | None, owner: str) -> np.ndarray | None:
        """Returns the number of the nearest centroid of `start` for each landmark."""
        if start is None:
            return None
        arrays.check_start(start, self.points.shape[1], owner)
        return arrays.assign(self.points, start.centroids)


def partition(
    method: Any, landmarks: Landmarks, labels_for: Callable[[int], np.ndarray]
) -> Codebook:
    """Returns the codebook by a function from a number of clusters to the landmarks' labels.

    Where there are no more landmarks than clusters, each is one; else `method.clusters` says how
    many, or "auto" by `method.criterion`.
    """
    count = len(landmarks.points)
    if count <= choose.fewest(method):
        return landmarks.codebook(np.arange(count))
    if method.clusters != choose.AUTO:
        return landmarks.codebook(labels_for(method.clusters))
    clusters = choose.best(landmarks.points, landmarks.masses, labels_for, method.criterion)
    return landmarks.codebook(labels_for(clusters))


def merged(landmarks: Landmarks, labels: np.ndarray, clusters: int) -> Codebook:
    """Returns the codebook of at most `clusters`: of more labels, the likest are joined."""
    _, labels = np.unique(labels, return_inverse=True)
    if labels.max() >= clusters:
        means = arrays.means(landmarks.points, labels, landmarks.masses)
        labels = Tree.of(means, np.bincount(labels, landmarks.masses)).labels(clusters)[labels]
    return landmarks.codebook(labels)


def number_of_clusters(method: Any, blocks: np.ndarray, sample_weight: np.ndarray | None) -> int:
    """Returns `clusters` of the method, or in place of "auto" what fits of the landmarks say."""
    if method.clusters != choose.AUTO:
        return method.clusters
    seen = Landmarks.of(blocks, sample_weight)
    points, few = seen.points.astype(np.float32), choose.fewest(method)
    if len(points) <= few:
        return few

    def labels_for(clusters: int) -> np.ndarray:
        return dataclasses.replace(method, clusters=clusters).fit(points, seen.masses).indices

    return choose.best(seen.points, seen.masses, labels_for, method.criterion)


def _representatives(
    blocks: np.ndarray, weight: np.ndarray | None, seed: int, most: int
) -> np.ndarray:
    present = blocks if weight is None else blocks[weight > 0]
    few = _SAMPLES_PER_LANDMARK * most
    sample = present
    if len(present) > few:
        masses = None if weight is None else weight[weight > 0]
        sample = present[drawn(len(present), masses, few, seed)]
    distinct = np.unique(sample, axis=0)
    if len(distinct) <= most and len(sample) < len(present):
        distinct = np.unique(present, axis=0)  # the rare ones too
    if len(distinct) <= most:
        return distinct
    import threadpoolctl
    from sklearn import cluster

    with threadpoolctl.threadpool_limits(limits=1):
        estimator = cluster.KMeans(
            most, init="random", n_init=1, max_iter=_STEPS, random_state=seed, copy_x=False
        )
        return arrays.quiet(estimator.fit, sample).cluster_centers_


def drawn(count: int, weight: np.ndarray | None, most: int, seed: int) -> np.ndarray:
    """Returns `most` numbers of blocks, drawn at even steps of the weight in a random order."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    masses = np.ones(count) if weight is None else weight[order]
    return order[_even_steps(masses, most, generator.random())]


def _even_steps(masses: np.ndarray, steps: int, offset: float) -> np.ndarray:
    ends = np.cumsum(masses)
    at = (np.arange(steps) + offset) * (ends[-1] / steps)
    return np.minimum(np.searchsorted(ends, at, side="right"), len(masses) - 1)


def _times(column: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    return column if weight is None else column * weight
