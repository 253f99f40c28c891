"""Gaussian mixtures by expectation and maximisation."""

import dataclasses
import functools
from typing import Any

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook
from tfcompress.errors import require

# So many blocks are drawn, by weight, because scikit-learn's mixtures know no weights: a share or a
# mean of one in 16 components has a standard error of 3 % of the component's own.
SAMPLES = 16_384
COVARIANCES = ("full", "tied", "diag", "spherical")
_MOST_BYTES = 1 << 30  # of all components' covariances, which are held three times


@METHODS.register("gmm")
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Takes a kernel's weights for draws from `clusters` Gaussians and gives each to the likeliest.

    Unlike those of `kmeans`, the clusters may be of unlike width and, for blocks, of unlike shape
    (`covariance`: "full", "tied", "diag" or "spherical"); a wide one may lie on both sides of a
    narrow one. Centroids are the means of the blocks given to them, components to which none is
    given have no centroid. Of kernels with more than 16,384 blocks, or with weights, as
    many are drawn.

    `clusters`: in [2, 512], or "auto": 2 to 64 by `criterion`, "bic" being that of the mixture
    itself, "knee" and "silhouette" as everywhere. `seed`: at least 0. `max_iterations`: at least 1.

    Sources: Dempster, Laird and Rubin 1977 (EM); Schwarz 1978 (BIC).

    >>> values = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]], np.float32)
    >>> GaussianMixture(clusters=2).fit(values).centroids.tolist()
    [[0.10000000149011612], [5.099999904632568]]
    """

    clusters: int | str = 16
    covariance: str = "full"
    seed: int = 0
    max_iterations: int = 100
    criterion: str = "bic"

    def __post_init__(self) -> None:
        choose.check(self, landmarks.CLUSTERS)
        check_mixture(self)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how often each block is drawn.
        From the clusters of `start`, if there are `clusters` of them, EM goes on.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "GaussianMixture")
        check_memory(self, blocks.shape[1])
        seen = landmarks.Landmarks.of(blocks, sample_weight, self.seed)
        before = arrays.centroids_of(start, choose.most(self), blocks.shape[1], "GaussianMixture")
        sample, points, scaled = standardised(seen, self.seed)

        @functools.cache
        def model(clusters: int) -> Any:
            labels = None if before is None else arrays.assign(sample, scaled(before))
            return self._model(sample, clusters, labels)

        def labels_for(clusters: int) -> np.ndarray:
            return model(clusters).predict(points)

        few = len(points) <= choose.fewest(self)
        if self.clusters == choose.AUTO and self.criterion == "bic" and not few:
            tried = choose.candidates(len(points))
            return seen.codebook(labels_for(min(tried, key=lambda k: model(k).bic(sample))))
        return landmarks.partition(self, seen, labels_for)

    def _model(self, sample: np.ndarray, clusters: int, labels: np.ndarray | None) -> Any:
        """Returns the mixture fitted from the labels, or from those of k-means."""
        import threadpoolctl
        from sklearn import mixture

        if labels is None or len(np.unique(labels)) < clusters:
            labels = arrays.kmeans(sample, None, clusters, self.seed)
        shares, means, variances = _moments(sample, labels)
        estimator = mixture.GaussianMixture(
            len(shares),
            covariance_type=self.covariance,
            max_iter=self.max_iterations,
            random_state=self.seed,
            weights_init=shares,
            means_init=means,
            precisions_init=_precisions(self.covariance, shares, variances, sample.shape[1]),
        )
        with threadpoolctl.threadpool_limits(limits=1):
            return arrays.quiet(estimator.fit, sample)


def check_mixture(method: Any) -> None:
    """Raises `InputError` for fields that no mixture can use."""
    arrays.check_word(method, "covariance", COVARIANCES)
    arrays.check_whole(method, "seed", 0, 2**32 - 1)
    arrays.check_whole(method, "max_iterations", 1, 10**6)


def check_memory(method: Any, size: int) -> None:
    """Raises `InputError` if the covariances of blocks of `size` weights need too much memory."""
    counts = {"full": choose.most(method) * size**2, "tied": size**2}
    needed = 8 * counts.get(method.covariance, 0)
    require(
        needed <= _MOST_BYTES,
        f"covariance of {type(method).__name__}",
        f"needs {needed / 2**30:.1f} GB for {size} values each: must be 'diag'",
        covariance=method.covariance,
    )


def standardised(seen: landmarks.Landmarks, seed: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Returns a sample of equally heavy blocks and the landmarks, both with mean 0 and variance 1.

    The variance is that of all entries together, so that shapes stay; the third result is the
    function that did it.
    """
    sample = seen.sample(SAMPLES, seed)
    center = sample.mean(axis=0)
    deviation = float(np.sqrt(((sample - center) ** 2).mean())) or 1.0

    def scaled(points: np.ndarray) -> np.ndarray:
        return (points - center) / deviation

    return scaled(sample), scaled(seen.points), scaled


def _moments(sample: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, labels = np.unique(labels, return_inverse=True)
    counts = np.bincount(labels)
    means = arrays.means(sample, labels, None).astype(np.float64)
    squares = ((sample - means[labels]) ** 2).mean(axis=1)
    return counts / len(sample), means, np.bincount(labels, squares) / counts + 1e-6


def _precisions(covariance: str, shares: np.ndarray, variances: np.ndarray, size: int) -> Any:
    """Returns round clusters' inverse covariances in the shape that scikit-learn wants."""
    if covariance == "full":
        return np.eye(size) / variances[:, None, None]
    if covariance == "tied":
        return np.eye(size) / (shares @ variances)
    if covariance == "diag":
        return np.repeat(1 / variances[:, None], size, axis=1)
    return 1 / variances
