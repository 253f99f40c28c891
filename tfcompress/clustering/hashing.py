"""Subspace clustering by hashing: blocks to buckets, bucket means to clusters."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.spectral import eigenvectors, unit_rows

# The dense matrix of the buckets' affinities takes 8 MB, its eigenvectors a second.
_BUCKETS = 1024
_FINER = 1.5  # cells per hash function grow by this factor while the buckets are few enough
_FINEST = 1e12  # cells: projections closer than that are equal
_NEIGHBORS = 7


@METHODS.register("hashing")
@dataclasses.dataclass(frozen=True)
class Hashing:
    """Hashes blocks into buckets and clusters the buckets' means by their spectrum.

    Each of `functions` hash functions projects the blocks on a direction and cuts the projection
    into cells of equal width from a random offset on; blocks in one cell of all functions share a
    bucket. The cells are as fine as 1,024 buckets allow. The buckets' means are clustered by the
    eigenvectors of their graph (see `spectral`). The first directions are drawn at random, later
    ones between the centroids found last, along which clusters differ: up to `rounds` rounds, as
    long as the squared error falls by a thousandth; the best one counts. Centroids are the means of
    their blocks. Kernels with many distinct blocks are hashed by their landmarks.

    `clusters`: in [2, 512], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").
    `functions`: in [1, 10]. `rounds`: at least 1. `seed`: at least 0.

    Sources: Datar et al. 2004, "Locality-sensitive hashing scheme based on p-stable distributions"
    (the functions); Ng, Jordan and Weiss 2001 (the spectrum).

    >>> values = np.array([[0.0], [1.0], [2.0], [50.0], [51.0], [52.0]], np.float32)
    >>> Hashing(clusters=2).fit(values).centroids.tolist()
    [[1.0], [51.0]]
    """

    clusters: int | str = 16
    functions: int = 8
    rounds: int = 5
    seed: int = 0
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, landmarks.CLUSTERS)
        arrays.check_whole(self, "functions", 1, 10)
        arrays.check_whole(self, "rounds", 1, 1000)
        arrays.check_whole(self, "seed", 0, 2**32 - 1)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts in its
        cluster's mean. The first directions lie between the centroids of `start`, if there is one.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "Hashing")
        seen = landmarks.Landmarks.of(blocks, sample_weight, self.seed)
        before = seen.labels_near(start, "Hashing")

        def labels_for(clusters: int) -> np.ndarray:
            return self._rounds(seen.points, seen.masses, clusters, before)

        return landmarks.partition(self, seen, labels_for)

    def _rounds(
        self, points: np.ndarray, masses: np.ndarray, clusters: int, labels: np.ndarray | None
    ) -> np.ndarray:
        generator = np.random.default_rng(self.seed)
        best, lowest = np.zeros(len(points), np.int64), np.inf
        for _ in range(self.rounds):
            directions = _directions(points, masses, labels, self.functions, generator)
            which = buckets(points @ directions.T, generator.random(self.functions))
            labels = self._clusters_of(which, points, masses, clusters)
            error = choose.sse(points, masses, labels)
            enough = error > 0.999 * lowest
            if error < lowest:
                best, lowest = labels, error
            if enough:
                break
        return best

    def _clusters_of(
        self, which: np.ndarray, points: np.ndarray, masses: np.ndarray, clusters: int
    ) -> np.ndarray:
        """Returns the cluster of each point, given its bucket."""
        if which.max() < clusters:
            return which
        centers = arrays.means(points, which, masses).astype(np.float64)
        vectors = unit_rows(eigenvectors(centers, clusters, _NEIGHBORS))
        return arrays.kmeans(vectors, None, clusters, self.seed)[which]


def _directions(
    points: np.ndarray,
    masses: np.ndarray,
    labels: np.ndarray | None,
    count: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Returns float64 (count, d) of length 1: random, or between pairs of clusters' centroids."""
    directions = generator.normal(size=(count, points.shape[1]))
    if labels is not None and len(np.unique(labels)) > 1:
        _, labels = np.unique(labels, return_inverse=True)
        centroids = arrays.means(points, labels, masses).astype(np.float64)
        one = generator.integers(len(centroids), size=count)
        other = (one + generator.integers(1, len(centroids), size=count)) % len(centroids)
        between = centroids[one] - centroids[other]
        apart = np.linalg.norm(between, axis=1) > 0
        directions[apart] = between[apart]
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def buckets(projections: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns the bucket of each row of projections (m, functions), as many as are allowed.

    `offsets` in [0, 1) are where the cells of each function begin, in cells.
    """
    low = projections.min(axis=0)
    width = projections.max(axis=0) - low
    position = (projections - low) / np.where(width > 0, width, 1)
    cells, found = 1.0, np.zeros(len(projections), np.int64)
    distinct = len(np.unique(projections, axis=0))
    while cells < _FINEST:
        keys = np.floor(position * cells + offsets).astype(np.int64)
        _, which = np.unique(keys, axis=0, return_inverse=True)
        if which.max() >= _BUCKETS:
            break
        found = which.reshape(-1)
        if found.max() + 1 == distinct:
            break
        cells *= _FINER
    return found
