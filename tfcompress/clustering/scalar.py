"""K-means in one dimension, where the optimum can be computed.

Clusters of scalars are intervals, so dynamic programming over the sorted distinct values finds the
best borders: best(k, j) = min over i of best(k - 1, i) + cost of one cluster on values i..j. The
minimising i grows with j, so that half of the search falls away at each halving: O(k m log m) for
m distinct values. Where there are too many of them, neighbours are merged first, most densely where
that costs most, and the borders then move together, by ever shorter distances. Kernels that are too
large to be sorted are counted in bins of the float's bit pattern, whose means take the place of the
distinct values. A last pass over the weights themselves sets indices and means.
"""

import dataclasses

import numpy as np

from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.compiled import compiled

EXACT_VALUES = 1 << 16  # as many distinct values enter the dynamic program one by one
PROGRAM_VALUES = 1 << 13  # as many merged ones, where there are more, ...
VALUES_PER_CLUSTER = 64  # ... but so many for each cluster
PROGRAM_CELLS = 1 << 26  # clusters x values: above, the program would take minutes
SORTED_VALUES = 1 << 21  # larger kernels are counted in bins, not sorted
BIN_BITS = 22
REACH = 6  # places on each side of where a cluster begins that are tried together
SEARCH_BITS = 16  # bins from which a value's centroid is looked for: they stay in the cache


def fit(
    values: np.ndarray, weight: np.ndarray | None, clusters: int, max_iterations: int
) -> Codebook:
    """Returns the codebook of finite float32 `values` (n,), centroids ascending."""
    values, points = np.ascontiguousarray(values), points_of(values, weight)
    if len(points.positions) <= clusters:
        return assign(values, None, points.positions)
    return assign(values, weight, minimise(points, clusters, max_iterations))


def points_of(values: np.ndarray, weight: np.ndarray | None) -> "Points":
    """Returns the distinct values with their counts or weights; of very many, means of bins."""
    values = np.ascontiguousarray(values)
    weight = np.empty(0) if weight is None else weight
    points = _distinct(values, weight)
    return _counted(values, weight, Bins.of(values)) if points is None else points


@dataclasses.dataclass(frozen=True)
class Points:
    """Ascending float64 `positions` (m,) with positive `masses` (m,): values and their counts."""

    positions: np.ndarray
    masses: np.ndarray

    def merged(self, begins: np.ndarray) -> "Points":
        """Returns the means of runs of neighbours, given where each run begins."""
        masses = np.add.reduceat(self.masses, begins)
        return Points(np.add.reduceat(self.positions * self.masses, begins) / masses, masses)


def minimise(points: Points, clusters: int, max_iterations: int) -> np.ndarray:
    """Returns the ascending float64 centroids with the lowest sum of squared errors.

    The optimum where clusters x points is at most `PROGRAM_CELLS` and there are no more than
    `EXACT_VALUES` points. Otherwise the borders of the optimum of merged points, or, for thousands
    of clusters, of the asymptotically optimal density, which then move from point to point, at most
    `max_iterations` times.
    """
    if len(points.positions) <= EXACT_VALUES and clusters * len(points.positions) <= PROGRAM_CELLS:
        return points.merged(optimal_begins(*moments(points)[1:], clusters)).positions
    size = min(max(PROGRAM_VALUES, VALUES_PER_CLUSTER * clusters), EXACT_VALUES)
    if clusters * size <= PROGRAM_CELLS:
        runs = companded_begins(points, size)
        begins = runs[optimal_begins(*moments(points.merged(runs))[1:], clusters)]
    else:
        begins = companded_begins(points, clusters)
    return points.merged(_moved(points, begins, max_iterations)).positions


def moments(points: Points) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the median and the running sums (m + 1,) of mass * (position - median)^0, 1, 2.

    They run from the median outwards, negative to the left: where they began at a far-off value,
    its square would swallow the differences between all others.
    """
    center, middle = _median(points)
    offsets = points.positions - center
    first = points.masses * offsets
    terms = points.masses, first, first * offsets
    mass, first, second = (_running(term, middle) for term in terms)
    return center, mass, first, second


def _median(points: Points) -> tuple[float, int]:
    """Returns the median of the points and its place among them."""
    total = np.cumsum(points.masses)
    middle = int(np.searchsorted(total, total[-1] / 2))
    return points.positions[middle], middle


def _running(terms: np.ndarray, middle: int) -> np.ndarray:
    """Returns the sums (m + 1,) of the terms between a place and the middle, negative before it."""
    sums = np.zeros(len(terms) + 1)
    np.cumsum(terms[middle:], out=sums[middle + 1 :])
    left = sums[:middle][::-1]
    np.cumsum(terms[:middle][::-1], out=left)
    np.negative(left, out=left)
    return sums


@compiled
def optimal_begins(mass, first, second, clusters):
    """Returns the index of each cluster's first point in the optimal partition.

    Takes running sums of mass, mass * position and mass * position^2, each (m + 1,).
    """
    size = mass.size - 1
    before = np.empty(size)  # the lowest error of so many clusters on the points 0..j
    for j in range(size):
        moment = first[j + 1] - first[0]
        before[j] = second[j + 1] - second[0] - moment * moment / (mass[j + 1] - mass[0])
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


def companded_begins(points: Points, count: int) -> np.ndarray:
    """Cuts into runs as dense as density^(1/3), optimal for many runs (Panter and Dite 1951).

    Returns where each of `count` runs begins. A point's share of them is (mass * gap^2)^(1/3), with
    the gap to its neighbours, but never more than one: a point far off the others needs no more.
    """
    shares = np.cbrt(points.masses * np.gradient(points.positions) ** 2)
    total, before = shares.sum(), np.inf
    while total < 0.99 * before:
        before = total
        total = np.minimum(shares, total / count, out=shares).sum()
    ends = np.cumsum(shares)
    number = np.arange(count)
    begins = np.searchsorted(ends, ends[-1] * number / count, side="right")
    begins[0] = 0
    begins = np.maximum.accumulate(begins - number) + number  # each at least one point
    return np.minimum(begins, len(ends) - count + number)


def _moved(points: Points, begins: np.ndarray, most: int) -> np.ndarray:
    """Moves where clusters begin, all at once and at most `most` times, until no distance helps.

    From a share of a cluster's points down to one point: Lloyd's rule, which looks at one border
    at a time, would stop at the first of the many partitions that it cannot better.
    """
    sums = moments(points)[1:]
    distance = 1 << (len(points.positions) // (len(begins) * 4 * REACH)).bit_length()
    least = np.inf
    for _ in range(most):
        moved, error = _best_near(*sums, begins, distance)
        if error < least:
            begins, least = moved, error
        elif distance > 1:
            distance //= 2
        else:
            break
    return begins


@compiled
def _best_near(mass, first, second, begins, distance):
    """Returns where clusters begin in the best of all partitions in which each begins at most
    `REACH` times `distance` points from where it does in `begins`; and its error.

    best(b, j) = min over i of best(b - 1, i) + cost of one cluster from place i of the one before.
    """
    clusters, size = begins.size, mass.size - 1
    places = 2 * REACH + 1
    before, after = np.full(places, np.inf), np.empty(places)
    before[REACH] = 0.0
    chosen = np.zeros((clusters + 1, places), np.int64)
    for b in range(1, clusters + 1):
        for j in range(places):
            end = begins[b] + (j - REACH) * distance if b < clusters else size
            best, best_i = np.inf, REACH
            for i in range(places):
                begin = begins[b - 1] + (i - REACH) * distance if b > 1 else 0
                if 0 <= begin < end <= size and before[i] < best:
                    moment, weight = first[end] - first[begin], mass[end] - mass[begin]
                    error = second[end] - second[begin] - moment * moment / weight
                    if before[i] + error < best:
                        best, best_i = before[i] + error, i
            after[j], chosen[b, j] = best, best_i
        before, after = after, before
    moved, place = begins.copy(), REACH
    for b in range(clusters - 1, 0, -1):
        place = chosen[b + 1, place]
        moved[b] += (place - REACH) * distance
    return moved, before[REACH]


def _midpoints(centroids: np.ndarray) -> np.ndarray:
    return (centroids[1:] + centroids[:-1]) / 2


def _distinct(values: np.ndarray, weight: np.ndarray) -> Points | None:
    """Returns the distinct values and their weights; None if there are too many to sort."""
    if len(values) > SORTED_VALUES:
        sample = values[:: -(-len(values) // EXACT_VALUES)]
        if len(np.unique(sample)) > len(sample) // 2:
            return None  # sorting everything would be in vain
    if weight.size:
        positions, which = np.unique(values, return_inverse=True)
        masses = np.bincount(which.reshape(-1), weight)
    else:
        positions, masses = np.unique(values, return_counts=True)
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
    def of(cls, values: np.ndarray, most_bits: int = BIN_BITS) -> "Bins":
        """Returns bins that cover the values, about as many as values, at most 2^`most_bits`."""
        low, high = (int(_ordered(np.array([v]))[0]) for v in (values.min(), values.max()))
        bits = min(most_bits, max(8, len(values).bit_length()))
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


def assign(
    values: np.ndarray,
    weight: np.ndarray | None,
    centroids: np.ndarray,
    borders: np.ndarray | None = None,
) -> Codebook:
    """Returns the codebook: each value to the nearest of ascending centroids, these to means.

    `borders` (k - 1,) take the place of the points halfway between them.
    """
    weight = np.empty(0) if weight is None else weight
    bins = Bins.of(values, SEARCH_BITS)
    borders = _midpoints(centroids) if borders is None else borders
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
