"""Spectral clustering: k-means in the eigenvectors of the normalised Laplacian."""

import dataclasses
import functools

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook

# The eigenvectors of a dense matrix of so many landmarks take half a second, of twice as many 4 s.
_LANDMARKS = 1024


@METHODS.register("spectral")
@dataclasses.dataclass(frozen=True)
class Spectral:
    """Finds clusters that hang together, whatever their shape: rings, moons, chains.

    Blocks are alike by exp(-|x - y|^2 / (s_x s_y)), s the distance to the `neighbors`-th nearest
    one. The eigenvectors of the normalised Laplacian of that graph, of the `clusters` smallest
    eigenvalues, are the coordinates, each block's scaled to length 1, in which k-means finds the
    clusters. Their centroids are the means of their blocks: where a cluster is long and bent its
    mean may lie far from its blocks, so that the squared error is above that of `kmeans`. Kernels
    with more than 1,024 distinct blocks are clustered by as many landmarks.

    `clusters`: in [2, 512], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic").
    `neighbors`: at least 1. `seed`: at least 0.

    Sources: Ng, Jordan and Weiss 2001, "On spectral clustering"; Zelnik-Manor and Perona 2004,
    "Self-tuning spectral clustering" (the scales s).

    >>> values = np.array([[0.0], [1.0], [2.0], [50.0], [51.0], [52.0]], np.float32)
    >>> Spectral(clusters=2, neighbors=2).fit(values).centroids.tolist()
    [[1.0], [51.0]]
    """

    clusters: int | str = 16
    neighbors: int = 7
    seed: int = 0
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, landmarks.CLUSTERS)
        arrays.check_whole(self, "neighbors", 1, _LANDMARKS - 1)
        arrays.check_whole(self, "seed", 0, 2**32 - 1)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts where
        landmarks are laid and in its cluster's mean. From the clusters of `start`, if there are
        `clusters` of them, k-means in the eigenvectors goes on.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "Spectral")
        seen = landmarks.Landmarks.of(blocks, sample_weight, self.seed, _LANDMARKS, _LANDMARKS)
        before = seen.labels_near(start, "Spectral")

        @functools.cache
        def vectors() -> np.ndarray:
            most = min(choose.most(self), len(seen.points))
            return eigenvectors(seen.points, most, self.neighbors)

        def labels_for(clusters: int) -> np.ndarray:
            return arrays.kmeans(
                unit_rows(vectors()[:, :clusters]), None, clusters, self.seed, before
            )

        return landmarks.partition(self, seen, labels_for)


def eigenvectors(points: np.ndarray, count: int, neighbors: int) -> np.ndarray:
    """Returns float64 (m, count): of the `count` smallest eigenvalues of the Laplacian, ascending.

    The masses of landmarks play no part, here and in the k-means that follows: the density of the
    landmarks is that of the weights already, and a graph weighed by masses is cut in the tails.
    """
    from scipy import linalg
    from scipy.spatial import distance

    squares = distance.cdist(points, points, "sqeuclidean")
    nth = min(neighbors, len(points) - 1)
    scales = np.sqrt(np.partition(squares, nth, axis=1)[:, nth])
    affinities = np.exp(-squares / np.outer(scales, scales))
    degrees = np.sqrt(affinities.sum(axis=1))
    affinities /= np.outer(degrees, degrees)
    size = len(points)
    found = linalg.eigh(
        affinities, subset_by_index=(size - count, size - 1), overwrite_a=True, driver="evr"
    )[1][:, ::-1]
    return found * np.sign(found[abs(found).argmax(axis=0), np.arange(count)])


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Returns the rows scaled to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
