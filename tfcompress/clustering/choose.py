"""How many clusters: `clusters="auto"` tries several numbers and takes one by a criterion.

`knee`: where the curve of squared errors over the number of clusters bends most (Satopaa et al.
2011, "Finding a 'kneedle' in a haystack"). `silhouette`: where the blocks lie much nearer to their
own centroid than to the next one (simplified silhouette, Hruschka et al. 2006). `bic`: where round
Gaussian clusters describe the blocks in the fewest bits (Pelleg and Moore 2000).
"""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfcompress.clustering import arrays
from tfcompress.errors import require

AUTO = "auto"
CRITERIA = ("knee", "silhouette", "bic")


def tried(low: int, high: int) -> tuple[int, ...]:
    """Returns the numbers of clusters that are tried from `low` to `high`, both among them.

    All small ones, because one cluster more matters there, then steps of a quarter or so.

    >>> tried(14, 50)
    (14, 15, 16, 20, 24, 32, 40, 48, 50)
    """
    steps = {base << power for power in range(high.bit_length()) for base in (16, 20, 24)}
    between = {clusters for clusters in {*range(2, 16), *steps} if low < clusters < high}
    return tuple(sorted(between | {low, high}))


CANDIDATES = tried(2, 64)


def check(method: Any, most: int) -> None:
    """Raises `InputError` unless `clusters` is in [2, `most`] or "auto", and `criterion` known."""
    clusters = method.clusters
    whole = isinstance(clusters, numbers.Integral) and not isinstance(clusters, bool)
    owner = f"clusters of {type(method).__name__}"
    rule = f"must be a whole number in [2, {most}] or '{AUTO}'"
    valid = clusters == AUTO or (whole and 2 <= clusters <= most)
    require(valid, owner, rule, clusters=clusters)
    arrays.check_word(method, "criterion", CRITERIA)


def most(method: Any) -> int:
    """Returns the largest number of clusters that a clustering method may give."""
    return max(CANDIDATES) if method.clusters == AUTO else method.clusters


def fewest(method: Any) -> int:
    """Returns the number of distinct blocks up to which each is a cluster of its own."""
    return min(CANDIDATES) if method.clusters == AUTO else method.clusters


def candidates(count: int) -> list[int]:
    """Returns the numbers of clusters that are tried for `count` distinct points."""
    return [clusters for clusters in CANDIDATES if clusters < count]


def best(
    points: np.ndarray,
    masses: np.ndarray,
    labels_for: Callable[[int], np.ndarray],
    criterion: str = "knee",
) -> int:
    """Returns the best number of clusters for points (m, d) with masses (m,), more than two.

    `labels_for` is a function from a number of clusters to labels (m,). Where the curve of errors
    has no knee, the largest number tried is taken. The masses add up to the number of blocks. No
    more points than clusters may be, each there twice or more on average, are clusters already.
    """
    if len(points) <= max(CANDIDATES) and masses.sum() >= 2 * len(points):
        return len(points)
    found = {clusters: labels_for(clusters) for clusters in candidates(len(points))}
    if criterion == "knee":
        return _knee(points, masses, found)
    score = simplified_silhouette if criterion == "silhouette" else _negative_bic
    return max(found, key=lambda clusters: score(points, masses, found[clusters]))


def sse(points: np.ndarray, masses: np.ndarray, labels: np.ndarray) -> float:
    """Returns the sum of squared errors of clusters given by labels, centroids their means."""
    _, labels = np.unique(labels, return_inverse=True)
    errors = points - arrays.means(points, labels, masses)[labels]
    return float(masses @ np.einsum("md,md->m", errors, errors))


def variance(points: np.ndarray, masses: np.ndarray) -> float:
    """Returns the mean squared distance to the mean."""
    return sse(points, masses, np.zeros(len(points), np.int64)) / float(masses.sum())


def _knee(points: np.ndarray, masses: np.ndarray, found: dict[int, np.ndarray]) -> int:
    curve = {1: sse(points, masses, np.zeros(len(points), np.int64))}
    curve |= {clusters: sse(points, masses, labels) for clusters, labels in found.items()}
    return knee_of_errors(curve)


def knee_of_errors(curve: Mapping[int, float]) -> int:
    """Returns the number of clusters, more than one, where a curve of errors bends most.

    `curve` goes from ascending numbers of clusters, 1 and more, to errors. Where it bends nowhere,
    the largest number is taken.
    """
    bend = knee(np.array(list(curve)), np.array(list(curve.values())), "decreasing")
    return max(curve) if bend is None else max(int(bend), min(set(curve) - {1}))


def knee(x: np.ndarray, y: np.ndarray, direction: str) -> float | None:
    """Returns the x where a convex curve bends most, None if it does nowhere."""
    import warnings

    import kneed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "no knee": None says so
        return kneed.KneeLocator(x, y, curve="convex", direction=direction).knee


def simplified_silhouette(
    points: np.ndarray,
    masses: np.ndarray,
    labels: np.ndarray,
    centroids: np.ndarray | None = None,
) -> float:
    """Returns the mean of the points' `silhouettes`, in [-1, 1].

    The distances are those to `centroids` (k, d), or to the clusters' means.
    """
    if centroids is None:
        _, labels = np.unique(labels, return_inverse=True)
        centroids = arrays.means(points, labels, masses)
    return float(silhouettes(points, labels, centroids) @ masses) / float(masses.sum())


def silhouettes(points: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns (b - a) / max(a, b) of each point (m, d): float64 (m,), in [-1, 1].

    a is the distance to the own one of `centroids` (k, d), b that to the nearest other one. 0 where
    there is no other.
    """
    found = np.zeros(len(points))
    if len(centroids) == 1:
        return found
    step = max(1, (1 << 22) // len(centroids))
    for begin in range(0, len(points), step):
        rows, own = points[begin : begin + step], labels[begin : begin + step, None]
        distances = _distances(rows, centroids)
        a = np.take_along_axis(distances, own, 1)[:, 0]
        np.put_along_axis(distances, own, np.inf, 1)
        b = distances.min(axis=1)
        widest = np.maximum(a, b)
        np.divide(b - a, widest, out=found[begin : begin + step], where=widest > 0)
    return found


def _distances(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    from scipy.spatial import distance

    return distance.cdist(rows.astype(np.float64), centroids.astype(np.float64))


def _negative_bic(points: np.ndarray, masses: np.ndarray, labels: np.ndarray) -> float:
    """Returns twice the log-likelihood of round clusters of one variance, less their penalty.

    The masses add up to the number of blocks.
    """
    size, count = points.shape[1], float(masses.sum())
    shares = np.bincount(np.unique(labels, return_inverse=True)[1], masses) / count
    within = sse(points, masses, labels) / (count * size)
    if within <= 0:
        return math.inf
    parameters = len(shares) * (size + 1)
    likelihood = float(shares @ np.log(shares)) - 0.5 * size * (math.log(2 * math.pi * within) + 1)
    return 2 * count * likelihood - parameters * math.log(count)
