"""Bayesian Gaussian mixtures: components that are not needed vanish."""

import dataclasses

import numpy as np

from tfcompress.clustering import METHODS, arrays, landmarks
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.gmm import check_memory, check_mixture, standardised


@METHODS.register("bgmm")
@dataclasses.dataclass(frozen=True)
class BayesianMixture:
    """A Gaussian mixture that finds out how many components it needs, up to `clusters`.

    Shares follow a Dirichlet process prior, fitted by variational inference: the smaller its
    `concentration`, the fewer components keep a share (None: 1 / clusters). Otherwise as `gmm`. It
    describes the density, not the weights one by one: kernels of one Gaussian heap keep few
    clusters, and the squared error is far above that of `kmeans`.

    `clusters`: the most there may be, in [2, 512]. `concentration`: in [1e-9, 1e9], or None.
    `seed`: at least 0. `max_iterations`: at least 1.

    Sources: Blei and Jordan 2006, "Variational inference for Dirichlet process mixtures".

    >>> values = np.random.default_rng(0).normal([[0.0, 5.0]], 0.1, (200, 2)).reshape(-1, 1)
    >>> len(BayesianMixture(clusters=8, concentration=1e-3).fit(values).centroids)
    2
    """

    clusters: int = 16
    covariance: str = "full"
    concentration: float | None = None
    seed: int = 0
    max_iterations: int = 200

    def __post_init__(self) -> None:
        arrays.check_whole(self, "clusters", 2, landmarks.CLUSTERS)
        check_mixture(self)
        if self.concentration is not None:
            arrays.check_number(self, "concentration", 1e-9, 1e9)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how often each block is drawn. The
        components are found from k-means, whatever the `start`: the prior decides anew which of
        them are needed.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "BayesianMixture")
        check_memory(self, blocks.shape[1])
        seen = landmarks.Landmarks.of(blocks, sample_weight, self.seed)
        if len(seen.points) <= self.clusters:
            return seen.codebook(np.arange(len(seen.points)))
        import threadpoolctl
        from sklearn import mixture

        sample, points, _ = standardised(seen, self.seed)
        estimator = mixture.BayesianGaussianMixture(
            n_components=self.clusters,
            covariance_type=self.covariance,
            weight_concentration_prior_type="dirichlet_process",
            weight_concentration_prior=self.concentration,
            max_iter=self.max_iterations,
            random_state=self.seed,
        )
        with threadpoolctl.threadpool_limits(limits=1):
            labels = arrays.quiet(estimator.fit, sample).predict(points)
        return seen.codebook(labels)
