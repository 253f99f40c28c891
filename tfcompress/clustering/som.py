"""Self-organising maps: centroids as the nodes of a lattice."""

import dataclasses
import math

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook

_LAST_WIDTH = 0.25  # of the neighbourhood, in nodes: the next one counts exp(-8) = 0.03 %
_STEPS_ON = 5  # of a map that goes on from clusters found before


@METHODS.register("som")
@dataclasses.dataclass(frozen=True)
class SOM:
    """Moves the nodes of a lattice to the blocks, each pulling its neighbours along.

    In every step each node becomes the mean of all blocks, weighed by exp(-r^2 / 2s^2), r the
    distance on the lattice to the node nearest to the block, while the width s shrinks from half
    the lattice to 0.25 nodes. Nodes that are neighbours end up alike, so that close indices mean
    close blocks. Nodes start in a row ("line") along the axis of largest variance, or in the plane
    of the two largest ("grid": as square as `clusters` allows). There is no chance in it. A node
    nearest to no block is left out. Centroids are the means of their blocks.

    `clusters`: in [2, 512], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").
    `lattice`: "line" or "grid". `steps`: at least 1.

    Source: Kohonen 1982; the batch map of Kohonen 1993, "Things you haven't heard about the
    self-organizing map".

    >>> values = np.array([[0.0], [0.2], [5.0], [5.2], [9.0], [9.2]], np.float32)
    >>> SOM(clusters=3).fit(values).centroids
    array([[0.1],
           [5.1],
           [9.1]], dtype=float32)
    """

    clusters: int | str = 16
    lattice: str = "line"
    steps: int = 40
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, landmarks.CLUSTERS)
        arrays.check_word(self, "lattice", ("line", "grid"))
        arrays.check_whole(self, "steps", 1, 10**6)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts. From
        the centroids of `start`, if it has `clusters` of them, a narrow map goes on.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "SOM")
        seen = landmarks.Landmarks.of(blocks, sample_weight)
        before = arrays.centroids_of(start, choose.most(self), blocks.shape[1], "SOM")

        def labels_for(clusters: int) -> np.ndarray:
            places = _places(clusters, self.lattice)
            if before is not None and len(before) == clusters:
                nodes, widths = before.astype(np.float64), np.full(_STEPS_ON, _LAST_WIDTH)
            else:
                nodes = _spread(places, seen.points, seen.masses)
                first = max(1.0, float(places.max()) / 2)
                widths = np.geomspace(first, _LAST_WIDTH, self.steps)
            for width in widths:
                nodes = step(nodes, places, seen.points, seen.masses, width)
            return arrays.assign(seen.points, nodes)

        return landmarks.partition(self, seen, labels_for)


def step(
    nodes: np.ndarray, places: np.ndarray, points: np.ndarray, masses: np.ndarray, width: float
) -> np.ndarray:
    """Returns the nodes (k, d) after one batch step; `places` (k, 2) are theirs on the lattice."""
    from scipy.spatial import distance

    labels = arrays.assign(points, nodes)
    count = len(nodes)
    mass = np.bincount(labels, masses, count)
    sums = [np.bincount(labels, masses * column, count) for column in points.T]
    near = np.exp(-distance.cdist(places, places, "sqeuclidean") / (2 * width**2))
    mass, total = near @ mass, near @ np.stack(sums, axis=1)
    return np.divide(total, mass[:, None], out=nodes.copy(), where=mass[:, None] > 0)


def _places(clusters: int, lattice: str) -> np.ndarray:
    """Returns the rows and columns of nodes, float64 (k, 2); a line has one column."""
    columns = 1
    if lattice == "grid":
        columns = next(c for c in range(math.isqrt(clusters), 0, -1) if clusters % c == 0)
    rows = np.arange(clusters) // columns
    return np.stack([rows, np.arange(clusters) % columns], axis=1).astype(np.float64)


def _spread(places: np.ndarray, points: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Returns nodes that reach two standard deviations along the axes of largest variance."""
    center = np.average(points, axis=0, weights=masses)
    nodes, rest = np.tile(center, (len(places), 1)), points - center
    for side in places.T:
        axis = arrays.principal(rest, masses)
        along = rest @ axis
        reach = 2 * math.sqrt(np.average(along**2, weights=masses))
        if side.max() > 0:
            nodes += np.outer((2 * side / side.max() - 1) * reach, axis)
        rest = rest - np.outer(along, axis)
    return nodes
