"""K-means in one dimension, where the optimum can be computed.

Clusters of scalars are intervals, so dynamic programming over the sorted distinct values finds the
best borders: best(k, j) = min over i of best(k - 1, i) + cost of one cluster on values i..j. The
minimising i grows with j, so that half of the search falls away at each halving: O(k m log m) for
m distinct values. Large kernels are first counted in bins of the float's bit pattern, whose means
take the place of the distinct values; Lloyd's rule then moves the borders bin by bin, and a last
pass over the weights themselves sets indices and means.
"""

import dataclasses

import numpy as np

from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.compiled import compiled

EXACT_VALUES = 1 << 16  # as many distinct values enter the dynamic program one by one
PROGRAM_VALUES = 1 << 14  # as many bins, where there are more
PROGRAM_CELLS = 1 << 26  # clusters x values: above, the program would take minutes
MAX_BITS = 20  # the histogram of a large kernel has up to 2^20 bins


def fit(
    values: np.ndarray, weight: np.ndarray | None, clusters: int, max_iterations: int
) -> Codebook:
    """Returns the codebook of finite float32 `values` (n,), centroids ascending."""
    values = np.ascontiguousarray(values)
    weight = np.empty(0) if weight is None else weight
    points = _distinct(values, weight)
    if points is not None and len(points.positions) <= clusters:
        return _assign(values, np.empty(0), points.positions)
    bins = Bins.of(values)
    if points is None:
        points = _counted(values, weight, bins)
    centroids = minimise(points, clusters, max_iterations)
    return _assign(values, weight, centroids, bins)


@dataclasses.dataclass(frozen=True)
class Points:
    """Ascending float64 `positions` (m,) with positive `masses` (m,): values and their counts."""

    positions: np.ndarray
    masses: np.ndarray

    def merged(self, size: int) -> "Points":
        """Returns at most `size` points: neighbours are replaced by their mean."""
        run = -(-len(self.positions) // size)
        begins = np.arange(0, len(self.positions), run)
        masses = np.add.reduceat(self.masses, begins)
        return Points(np.add.reduceat(self.positions * self.masses, begins) / masses, masses)


def minimise(points: Points, clusters: int, max_iterations: int) -> np.ndarray:
    """Returns the ascending float64 centroids with the lowest sum of squared errors.

    The optimum where clusters x points is at most `PROGRAM_CELLS` and there are no more than
    `EXACT_VALUES` points; otherwise Lloyd's rule from the optimum of merged points, or, for
    thousands of clusters, from the asymptotically optimal density.
    """
    few = points
    if len(points.positions) > EXACT_VALUES:
        few = points.merged(max(PROGRAM_VALUES, 4 * clusters))
    if clusters * len(few.positions) <= PROGRAM_CELLS:
        # Around their mean: squares of far-off values would swallow the differences.
        center = np.average(few.positions, weights=few.masses)
        begins = _optimal_begins(few.positions - center, few.masses, clusters)
    else:
        few = points
        begins = _companded_begins(points, clusters)
    masses = np.add.reduceat(few.masses, begins)
    centroids = np.add.reduceat(few.positions * few.masses, begins) / masses
    return _lloyd(points, centroids, max_iterations)


@compiled
def _optimal_begins(positions, masses, clusters):
    """Returns the index of each cluster's first point in the optimal partition."""
    size = positions.size
    mass, first, second = np.zeros(size + 1), np.zeros(size + 1), np.zeros(size + 1)
    for i in range(size):
        mass[i + 1] = mass[i] + masses[i]
        first[i + 1] = first[i] + masses[i] * positions[i]
        second[i + 1] = second[i] + masses[i] * positions[i] ** 2
    before = second[1:] - first[1:] ** 2 / mass[1:]  # one cluster on the points 0..j
    after = np.empty(size)
    begin = np.zeros((clusters, size), np.int32)  # of the last cluster, given their number
    for last in range(1, clusters):
        step = 1
        while step < size - last:
            step *= 2
        while step >= 1:  # the middle first, then the middles of the halves, ...
            for j in range(last + step - 1, size, 2 * step):
                low = begin[last, j - step] if j - step >= last else last
                high = begin[last, j + step] if j + step < size else j
                best, best_i = np.inf, low
                for i in range(low, min(high, j) + 1):
                    moment = first[j + 1] - first[i]
                    error = second[j + 1] - second[i] - moment * moment / (mass[j + 1] - mass[i])
                    if before[i - 1] + error < best:
                        best, best_i = before[i - 1] + error, i
                after[j], begin[last, j] = best, best_i
            step //= 2
        before, after = after, before
    begins = np.zeros(clusters, np.int64)
    end = size - 1
    for last in range(clusters - 1, 0, -1):
        begins[last] = begin[last, end]
        end = begins[last] - 1
    return begins


def _companded_begins(points: Points, clusters: int) -> np.ndarray:
    """Cuts so that clusters lie as densely as density^(1/3): optimal for many (Panter, Dite 1951).

    Each point's share is (mass / gap)^(1/3) * gap, with the gap to its neighbours.
    """
    size = len(points.positions)
    shares = np.cumsum(np.cbrt(points.masses * np.gradient(points.positions) ** 2))
    wanted = shares[-1] * np.arange(clusters) / clusters
    number = np.arange(clusters)
    begins = np.searchsorted(shares, wanted, side="right")
    begins[0] = 0
    begins = np.maximum.accumulate(begins - number) + number  # each at least one point
    return np.minimum(begins, size - clusters + number)


def _lloyd(points: Points, centroids: np.ndarray, max_iterations: int) -> np.ndarray:
    """Moves each centroid to the mean of its points until no point changes sides."""
    center = np.average(points.positions, weights=points.masses)
    positions, centroids = points.positions - center, centroids - center
    mass = np.append(0.0, np.cumsum(points.masses))
    moment = np.append(0.0, np.cumsum(points.masses * positions))
    begins = np.empty(0)
    for _ in range(max_iterations):
        borders = np.searchsorted(positions, _midpoints(centroids), side="right")
        if np.array_equal(begins, borders):
            break
        begins = borders
        cuts = np.concatenate([[0], borders, [len(positions)]])
        masses, moments = np.diff(mass[cuts]), np.diff(moment[cuts])
        centroids = np.divide(moments, masses, out=centroids.copy(), where=masses > 0)
    return centroids + center


def _midpoints(centroids: np.ndarray) -> np.ndarray:
    return (centroids[1:] + centroids[:-1]) / 2


def _distinct(values: np.ndarray, weight: np.ndarray) -> Points | None:
    """Returns the distinct values and their weights; None if there are too many."""
    if len(values) > EXACT_VALUES:
        sample = values[:: len(values) // EXACT_VALUES]
        if len(np.unique(sample)) > len(sample) // 2:
            return None  # sorting everything would be in vain
    if weight.size:
        positions, which = np.unique(values, return_inverse=True)
        masses = np.bincount(which.reshape(-1), weight)
    else:
        positions, masses = np.unique(values, return_counts=True)
    if len(positions) > EXACT_VALUES:
        return None
    present = masses > 0
    return Points(positions[present].astype(np.float64), masses[present].astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Bins:
    """Bins of float bit patterns: fine near zero, relative to the values everywhere.

    As whole numbers, bit patterns of floats can be put in the order of the floats. A bin holds the
    2^`shift` patterns from `low` + bin * 2^`shift` on.
    """

    low: int
    shift: int
    size: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Bins":
        """Returns bins that cover the values, about as many as values, at most 2^`MAX_BITS`."""
        low, high = (int(_ordered(np.array([v]))[0]) for v in (values.min(), values.max()))
        bits = min(MAX_BITS, max(8, len(values).bit_length()))
        shift = max(0, (high - low).bit_length() - bits)
        return cls(low, shift, ((high - low) >> shift) + 1)

    def lowest_values(self) -> np.ndarray:
        """Returns the smallest float32 of each bin."""
        ordered = self.low + (np.arange(self.size, dtype=np.int64) << self.shift)
        pattern = np.where(ordered >= 1 << 31, ordered - (1 << 31), (1 << 32) - ordered)
        return pattern.astype(np.uint32).view(np.float32)


def _ordered(values: np.ndarray) -> np.ndarray:
    """Returns whole numbers in the order of the float32 values; -0.0 counts as 0.0."""
    pattern = values.view(np.uint32).astype(np.int64)
    return np.where(pattern < 1 << 31, pattern + (1 << 31), (1 << 32) - pattern)


def _counted(values: np.ndarray, weight: np.ndarray, bins: Bins) -> Points:
    """Returns the bins' means and weights in place of the distinct values."""
    patterns = values.view(np.uint32)
    masses, sums = _histogram(values, patterns, weight, bins.low, bins.shift, bins.size)
    present = np.flatnonzero(masses > 0)
    return Points(sums[present] / masses[present], masses[present])


@compiled
def _histogram(values, patterns, weight, low, shift, size):
    masses, sums = np.zeros(size), np.zeros(size)
    for i in range(values.size):
        pattern = np.int64(patterns[i])
        pattern = pattern + (1 << 31) if pattern < 1 << 31 else (1 << 32) - pattern
        which = (pattern - low) >> shift
        mass = weight[i] if weight.size else 1.0
        masses[which] += mass
        sums[which] += mass * values[i]
    return masses, sums


def _assign(
    values: np.ndarray, weight: np.ndarray, centroids: np.ndarray, bins: Bins | None = None
) -> Codebook:
    """Returns the codebook: each value to the nearest centroid, each centroid to its mean."""
    bins = Bins.of(values) if bins is None else bins
    borders = _midpoints(centroids)
    lowest = np.searchsorted(borders, bins.lowest_values()).astype(np.int32)
    patterns = values.view(np.uint32)
    indices, masses, sums = _nearest(
        values, patterns, weight, borders, lowest, bins.low, bins.shift
    )
    centroids = np.divide(sums, masses, out=centroids.copy(), where=masses > 0)
    return Codebook(centroids.astype(np.float32).reshape(-1, 1), indices)


@compiled
def _nearest(values, patterns, weight, borders, lowest, low, shift):
    """Counts the borders below each value, from the bin's lowest value up."""
    indices = np.empty(values.size, np.int32)
    masses, sums = np.zeros(borders.size + 1), np.zeros(borders.size + 1)
    for i in range(values.size):
        pattern = np.int64(patterns[i])
        pattern = pattern + (1 << 31) if pattern < 1 << 31 else (1 << 32) - pattern
        index = lowest[(pattern - low) >> shift]
        while index < borders.size and values[i] > borders[index]:
            index += 1
        mass = weight[i] if weight.size else 1.0
        indices[i] = index
        masses[index] += mass
        sums[index] += mass * values[i]
    return indices, masses, sums
