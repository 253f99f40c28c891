"""K-means under an entropy constraint: squared error traded against bits."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks, scalar
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.compiled import compiled

# The dynamic program looks at all pairs of borders: 2,048 points make two million, each of which is
# tried for each number of clusters.
_PROGRAM_VALUES = 2048
_STEPS = 100


@METHODS.register("entropy_kmeans")
@dataclasses.dataclass(frozen=True)
class EntropyKMeans:
    """Minimises squared error + entropy_weight * variance * bits, where `kmeans` knows no bits.

    Bits are those of an ideal entropy coder: a weight of a cluster that holds the share p of the
    kernel takes log2(1 / p). The clusters of `kmeans` are nearly equal in size, so that a deflated
    file of their indices is hardly smaller than the indices; here many weights share few values,
    and at equal bits the error is lower than that of `kmeans` with fewer clusters. There may be
    fewer clusters than `clusters`. For scalars (d = 1) the optimum of 2,048 merged values is found
    by dynamic programming, and Lloyd's rule with bits goes on from there with all of them; for
    blocks it goes on from k-means of their landmarks. Where there are no more distinct blocks than
    `clusters`, each stays as it is.

    `clusters`: in [2, 512], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").
    `entropy_weight`: in [0, 1e6]; a bit saved may cost this share of the variance of the blocks. 0
    is `kmeans`. `seed`: at least 0, of the k-means of blocks.

    Source: Chou, Lookabaugh and Gray 1989, "Entropy-constrained vector quantization".

    >>> values = np.random.default_rng(0).normal(size=(10000, 1)).astype(np.float32)
    >>> books = [EntropyKMeans(entropy_weight=w).fit(values) for w in (0, 0.05)]
    >>> [round(book.entropy_bits, 1) for book in books]
    [3.8, 2.7]
    """

    clusters: int | str = 16
    entropy_weight: float = 0.01
    seed: int = 0
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, landmarks.CLUSTERS)
        arrays.check_number(self, "entropy_weight", 0, 1e6)
        arrays.check_whole(self, "seed", 0, 2**32 - 1)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts, in
        error and bits. From the centroids of `start`, if it has `clusters` of them, the rule goes
        on for blocks.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "EntropyKMeans")
        if blocks.shape[1] == 1:
            clusters = landmarks.number_of_clusters(self, blocks, sample_weight)
            return self._fit_scalars(blocks[:, 0], sample_weight, clusters)
        seen = landmarks.Landmarks.of(blocks, sample_weight, self.seed)
        before = seen.labels_near(start, "EntropyKMeans")

        def labels_for(clusters: int) -> np.ndarray:
            labels = arrays.kmeans(seen.points, seen.masses, clusters, self.seed, before)
            bit = self.entropy_weight * choose.variance(seen.points, seen.masses)
            return _lloyd_blocks(seen.points, seen.masses, labels, bit)

        return landmarks.partition(self, seen, labels_for)

    def _fit_scalars(
        self, values: np.ndarray, weight: np.ndarray | None, clusters: int
    ) -> Codebook:
        values = np.ascontiguousarray(values)
        points = scalar.points_of(values, weight)
        if len(points.positions) <= clusters:
            return scalar.assign(values, None, points.positions)
        bit = self.entropy_weight * choose.variance(points.positions[:, None], points.masses)
        few = points
        if len(points.positions) > _PROGRAM_VALUES:
            few = points.merged(scalar.companded_begins(points, _PROGRAM_VALUES))
        begins = optimal_begins(few, clusters, bit)
        merged = few.merged(begins)
        centroids, borders = _lloyd_scalars(points, merged, bit)
        found = scalar.assign(values, weight, centroids, borders)
        used = np.bincount(found.indices, minlength=len(centroids)) > 0
        rank = (np.cumsum(used) - 1).astype(np.int32)
        return Codebook(found.centroids[used], rank[found.indices])


def optimal_begins(points: scalar.Points, clusters: int, bit: float) -> np.ndarray:
    """Returns the first point of each of at most `clusters` clusters at the lowest cost.

    A cluster's cost depends on its borders alone: squared error + bit * mass * log2(total / mass).
    Unlike the squared error by itself it does not let the search be halved: all pairs are tried.
    """
    _, mass, first, second = scalar.moments(points)
    return _program(mass, first, second, clusters, bit)


@compiled
def _program(mass, first, second, clusters, bit):
    size = mass.size - 1
    total = mass[size] - mass[0]
    costs = np.empty((size, size))  # of one cluster on the points i..j, at [j, i]
    for j in range(size):
        for i in range(j + 1):
            own, moment = mass[j + 1] - mass[i], first[j + 1] - first[i]
            error = second[j + 1] - second[i] - moment * moment / own
            costs[j, i] = max(error, 0.0) + bit * own * np.log2(total / own)
    begin = np.zeros((clusters, size), np.int32)
    before, after = costs[:, 0].copy(), np.empty(size)
    fewest, lowest = 0, before[size - 1]
    for last in range(1, clusters):
        after[:last] = np.inf
        for j in range(last, size):
            best, best_i = np.inf, last
            for i in range(last, j + 1):
                cost = before[i - 1] + costs[j, i]
                if cost < best:
                    best, best_i = cost, i
            after[j], begin[last, j] = best, best_i
        if after[size - 1] < lowest:
            fewest, lowest = last, after[size - 1]
        before, after = after, before
    begins = np.zeros(fewest + 1, np.int64)
    end = size - 1
    for last in range(fewest, 0, -1):
        begins[last] = begin[last, end]
        end = begins[last] - 1
    return begins


def _lloyd_scalars(
    points: scalar.Points, merged: scalar.Points, bit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending centroids (k,) and the borders (k - 1,) where the cheaper one changes."""
    center, mass, moment, _ = scalar.moments(points)
    positions = points.positions - center
    centroids, masses = merged.positions - center, merged.masses
    begins: np.ndarray = np.empty(0)
    for _ in range(_STEPS):
        bits = np.log2(masses.sum() / masses)
        kept, borders = cheapest(centroids, bit * bits)
        cuts = np.searchsorted(positions, borders, side="right")
        if np.array_equal(begins, cuts):
            break
        begins = cuts
        cuts = np.concatenate([[0], cuts, [len(positions)]])
        masses, moments = np.diff(mass[cuts]), np.diff(moment[cuts])
        some = masses > 0
        centroids, masses = moments[some] / masses[some], masses[some]
    kept, borders = cheapest(centroids, bit * np.log2(masses.sum() / masses))
    return centroids[kept] + center, borders + center


def cheapest(centroids: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which centroids are the cheapest somewhere, and the borders between them.

    At x a centroid c costs (x - c)^2 + its price: less x^2, which all share, a line of slope -2c.
    The cheapest ones are the lower envelope of these lines.
    """
    kept: list[int] = []
    borders: list[float] = []
    for new in range(len(centroids)):
        while kept:
            old = kept[-1]
            gap = centroids[new] - centroids[old]
            border = (centroids[new] + centroids[old]) / 2
            border += (prices[new] - prices[old]) / (2 * gap)
            if not borders or border > borders[-1]:
                borders.append(border)
                break
            kept.pop()  # dear wherever it would come
            borders.pop()
        kept.append(new)
    return np.array(kept), np.array(borders)


def _lloyd_blocks(
    points: np.ndarray, masses: np.ndarray, labels: np.ndarray, bit: float
) -> np.ndarray:
    """Returns the labels after Lloyd's rule with bits; clusters may run empty."""
    from scipy.spatial import distance

    for _ in range(_STEPS):
        _, labels = np.unique(labels, return_inverse=True)
        centroids = arrays.means(points, labels, masses).astype(np.float64)
        bits = np.log2(masses.sum() / np.bincount(labels, masses))
        costs = distance.cdist(points, centroids, "sqeuclidean") + bit * bits
        moved = costs.argmin(axis=1)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return labels
