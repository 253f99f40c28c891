"""What the methods share: checks of what they are given, nearest centroids, means, k-means."""

import concurrent.futures
import numbers
import os
from typing import Any

import numpy as np

from tfcompress.clustering import scalar
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.compiled import compiled
from tfcompress.errors import require

_CHUNK = 1 << 16  # blocks of one thread at a time


def check_whole(method: Any, name: str, low: int, high: int) -> None:
    """Raises `InputError` unless the method's field `name` is a whole number in [low, high]."""
    value = getattr(method, name)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    rule = f"must be a whole number in [{low}, {high}]"
    owner = f"{name} of {type(method).__name__}"
    require(whole and low <= value <= high, owner, rule, **{name: value})


def check_number(method: Any, name: str, low: float, high: float) -> None:
    """Raises `InputError` unless the method's field `name` is a number in [low, high]."""
    value = getattr(method, name)
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    owner = f"{name} of {type(method).__name__}"
    rule = f"must be a number in [{low}, {high}]"
    require(real and low <= value <= high, owner, rule, **{name: value})


def check_word(method: Any, name: str, words: tuple[str, ...]) -> None:
    """Raises `InputError` unless the method's field `name` is one of `words`."""
    value = getattr(method, name)
    owner = f"{name} of {type(method).__name__}"
    require(value in words, owner, f"must be one of {', '.join(words)}", **{name: value})


def checked(
    blocks: np.ndarray, sample_weight: np.ndarray | None, owner: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns blocks as float32 (n, d) and their weights as float64 (n,), finite and not empty."""
    blocks = np.asarray(blocks)
    require(
        blocks.ndim == 2 and blocks.size > 0,
        f"blocks of {owner}",
        "must have shape (n, d), not empty",
        shape=blocks.shape,
    )
    blocks = blocks.astype(np.float32, copy=False)
    require(np.isfinite(blocks).all(), f"blocks of {owner}", "must be finite")
    if sample_weight is not None:
        sample_weight = _checked_weight(sample_weight, len(blocks), owner)
    return blocks, sample_weight


def _checked_weight(sample_weight: np.ndarray, count: int, owner: str) -> np.ndarray:
    weight = np.asarray(sample_weight, np.float64)
    require(
        weight.shape == (count,),
        f"sample_weight of {owner}",
        f"must have shape ({count},)",
        shape=weight.shape,
    )
    valid = np.isfinite(weight).all() and weight.min() >= 0 and weight.sum() > 0
    require(valid, f"sample_weight of {owner}", "must be finite, not negative and not all zero")
    return weight


def check_start(start: Codebook, size: int, owner: str) -> None:
    """Raises `InputError` unless the centroids of `start` are blocks of `size` weights."""
    rule, shape = f"must have centroids of shape (k, {size})", np.shape(start.centroids)
    require(len(shape) == 2 and shape[1] == size, f"start of {owner}", rule, shape=shape)


def centroids_of(start: Codebook | None, clusters: int, size: int, owner: str) -> np.ndarray | None:
    """Returns the centroids of `start` if it has `clusters` of them, to go on from."""
    if start is None:
        return None
    check_start(start, size, owner)
    return start.centroids if len(start.centroids) == clusters else None


def exact(blocks: np.ndarray, clusters: int) -> Codebook | None:
    """Returns the codebook that loses nothing, if no more than `clusters` blocks are distinct."""
    if len(np.unique(blocks[: 2 * clusters], axis=0)) > clusters:
        return None
    distinct, indices = np.unique(blocks, axis=0, return_inverse=True)
    if len(distinct) > clusters:
        return None
    return Codebook(distinct, indices.reshape(-1).astype(np.int32))


def codebook(blocks: np.ndarray, labels: np.ndarray, sample_weight: np.ndarray | None) -> Codebook:
    """Returns the codebook of the labels that occur, each cluster's mean its centroid."""
    _, indices = np.unique(labels, return_inverse=True)
    indices = indices.reshape(-1).astype(np.int32)
    return Codebook(means(blocks, indices, sample_weight), indices)


def means(blocks: np.ndarray, indices: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
    """Returns each cluster's mean, float32 (k, d); where all weights are 0, the plain mean."""
    weight = np.ones(len(blocks)) if sample_weight is None else sample_weight
    totals = np.bincount(indices, weight)
    if (totals == 0).any():
        weight = np.where(totals[indices] == 0, 1.0, weight)
        totals = np.bincount(indices, weight)
    columns = [np.bincount(indices, weight * column) / totals for column in blocks.T]
    return np.stack(columns, axis=1).astype(np.float32)


def assign(blocks: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the number of each block's nearest centroid, int32 (n,); of equals, the first.

    Scalars find theirs among the sorted centroids, blocks by comparison with each, a few at a time
    on all cores: no array of n x k numbers is ever held.
    """
    blocks = np.ascontiguousarray(blocks, np.float32)
    if blocks.shape[1] == 1:
        positions, order = np.unique(centroids[:, 0].astype(np.float64), return_index=True)
        return order.astype(np.int32)[scalar.assign(blocks[:, 0], None, positions).indices]
    columns = np.ascontiguousarray(centroids.T, np.float32)
    indices = np.empty(len(blocks), np.int32)

    def work(begin: int) -> None:
        _nearest(blocks[begin : begin + _CHUNK], columns, indices[begin : begin + _CHUNK])

    work(0)  # compiles, in one thread
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(_CHUNK, len(blocks), _CHUNK)))
    return indices


@compiled
def _nearest(blocks, columns, indices):
    """Writes each block's nearest centroid; all distances of a block are added up side by side."""
    size, count = columns.shape
    distances = np.empty(count, np.float32)
    for i in range(len(blocks)):
        for c in range(count):
            difference = blocks[i, 0] - columns[0, c]
            distances[c] = difference * difference
        for j in range(1, size):
            for c in range(count):
                difference = blocks[i, j] - columns[j, c]
                distances[c] += difference * difference
        best = 0
        for c in range(1, count):
            if distances[c] < distances[best]:
                best = c
        indices[i] = best


def lloyd(
    blocks: np.ndarray, sample_weight: np.ndarray | None, centroids: np.ndarray, iterations: int
) -> Codebook:
    """Returns the codebook after so many of Lloyd's steps; it stops where no block changes sides.

    Each step assigns the blocks to the nearest centroid, whose mean is the next centroid.
    """
    found = codebook(blocks, assign(blocks, centroids), sample_weight)
    for _ in range(iterations):
        moved = codebook(blocks, assign(blocks, found.centroids), sample_weight)
        if np.array_equal(moved.indices, found.indices):
            break
        found = moved
    return found


def kmeans(
    points: np.ndarray,
    masses: np.ndarray | None,
    clusters: int,
    seed: int,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the labels (m,) of k-means of few points, e.g. in an embedding.

    In one dimension they are the optimum. `start` (m,) are labels to go on from; they count where
    they are of `clusters` clusters.
    """
    if points.shape[1] == 1:
        return scalar.fit(points[:, 0].astype(np.float32), masses, clusters, 300).indices
    import threadpoolctl
    from sklearn import cluster

    init: Any = "k-means++"
    runs = 4
    if start is not None and len(np.unique(start)) == clusters:
        init, runs = codebook(points, start, masses).centroids.astype(points.dtype), 1
    # One thread: with more, the order in which partial sums are added changes from run to run.
    with threadpoolctl.threadpool_limits(limits=1):
        estimator = cluster.KMeans(clusters, init=init, n_init=runs, random_state=seed)
        return quiet(estimator.fit, points, sample_weight=masses).labels_


def quiet(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Calls a function of scikit-learn without its remarks on convergence and duplicates."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return function(*arguments, **keywords)


def spanned(points: np.ndarray) -> np.ndarray:
    """Returns few points (n, d) by their principal components, float32 (n, at most min(n, d)):
    centred and turned, so that all distances stay, and equal ones equal.

    >>> spanned(np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]]))[:, 0].round(3).tolist()
    [-2.5, 2.5]
    """
    distinct, numbers = np.unique(points, axis=0, return_inverse=True)
    centred = distinct - points.mean(axis=0, dtype=np.float64)
    powers, axes = np.linalg.eigh(centred @ centred.T)
    taken = np.argsort(-powers)[: points.shape[1]]
    found = axes[:, taken] * np.sqrt(np.maximum(powers[taken], 0.0))
    return (found * np.sign(found[-1:] + 1e-30)).astype(np.float32)[numbers.reshape(-1)]


def principal(points: np.ndarray, masses: np.ndarray | None = None) -> np.ndarray:
    """Returns the axis of largest variance, float64 (d,); its largest entry is positive."""
    weight = np.ones(len(points)) if masses is None else masses
    centered = points - np.average(points, axis=0, weights=weight)
    if points.shape[1] > len(points):
        axis = np.linalg.svd(centered * np.sqrt(weight)[:, None], full_matrices=False)[2][0]
    else:
        axis = np.linalg.eigh((centered * weight[:, None]).T @ centered)[1][:, -1]
    return axis * np.sign(axis[np.argmax(abs(axis))])
