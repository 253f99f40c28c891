"""Clusters in the latent space of a small autoencoder."""

import dataclasses
from typing import Any

import numpy as np

from tfcompress.clustering import METHODS, arrays, choose, landmarks
from tfcompress.clustering.codebook import Codebook

# The network sees so many landmarks, 256 at a time: 8 steps of an epoch take some 20 ms.
_LANDMARKS = 2048
_BATCH = 256
_PULL = 0.1  # how much the distance to the own centroid counts beside the reconstruction
_LEARNING_RATE = 0.01


@METHODS.register("autoencoder")
@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Embeds blocks by a small neural network that can restore them, and clusters the embedding.

    A Keras network (d, `hidden`, `latent`, `hidden`, d; tanh) learns to restore the blocks; k-means
    in its latent space finds the clusters. As long as the squared error within them is above
    `max_error`, a share of the kernel's own around its mean, training goes on for another round, in
    which each block's latent code is also pulled to its cluster's centroid: up to `rounds` of
    `epochs` each. The best round counts. Centroids are the means of their blocks. The network is
    not kept, and the random state of Keras is not touched. Kernels with more than 2,048 distinct
    blocks are clustered by their landmarks.

    `clusters`: in [2, 512], or "auto": 2 to 64 by `criterion` ("knee", "silhouette" or "bic") in
    the latent space of the first round. `latent`: at least 1, no more than a block's weights count.
    `hidden`, `rounds`, `epochs`: at least 1. `max_error`: in [0, 1]. `seed`: at least 0.

    Sources: Xie, Girshick and Farhadi 2016, "Unsupervised deep embedding for clustering analysis";
    Yang et al. 2017, "Towards k-means-friendly spaces" (the pull).

    >>> blocks = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    >>> len(Autoencoder(clusters=5, rounds=1, epochs=2).fit(blocks).centroids)
    5
    """

    clusters: int | str = 16
    latent: int = 4
    hidden: int = 16
    max_error: float = 0.1
    rounds: int = 4
    epochs: int = 30
    seed: int = 0
    criterion: str = "knee"

    def __post_init__(self) -> None:
        choose.check(self, landmarks.CLUSTERS)
        for name in ("latent", "hidden", "rounds", "epochs"):
            arrays.check_whole(self, name, 1, 10**5)
        arrays.check_number(self, "max_error", 0, 1)
        arrays.check_whole(self, "seed", 0, 2**32 - 1)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts. The
        clusters of `start`, if there are `clusters` of them, pull from the first round on.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "Autoencoder")
        seen = landmarks.Landmarks.of(blocks, sample_weight, self.seed, _LANDMARKS, _LANDMARKS)
        before = seen.labels_near(start, "Autoencoder")
        if len(seen.points) <= choose.fewest(self):
            return seen.codebook(np.arange(len(seen.points)))
        network = Network(self, seen.points, seen.masses)
        return seen.codebook(self._rounds(network, before))

    def _rounds(self, network: "Network", labels: np.ndarray | None) -> np.ndarray:
        points, masses = network.points, network.masses
        total = choose.sse(points, masses, np.zeros(len(points), np.int64))
        clusters: Any = self.clusters
        if labels is not None and len(np.unique(labels)) != clusters:
            labels = None
        best, lowest = np.zeros(len(points), np.int64), np.inf
        for _ in range(self.rounds):
            codes = network.train(labels)

            def labels_for(count: int, codes: np.ndarray = codes) -> np.ndarray:
                return arrays.kmeans(codes, masses, count, self.seed)

            if clusters == choose.AUTO:
                clusters = choose.best(points, masses, labels_for, self.criterion)
            labels = labels_for(clusters)
            error = choose.sse(points, masses, labels)
            if error < lowest:
                best, lowest = labels, error
            if lowest <= self.max_error * total:
                break
        return best


class Network:
    """The autoencoder of points (m, d) with masses (m,), as it learns."""

    def __init__(self, method: Autoencoder, points: np.ndarray, masses: np.ndarray):
        self.points, self.masses = points, masses
        self._epochs = method.epochs
        # Each batch is a mix of all: landmarks come in an order.
        self._order = np.random.default_rng(method.seed).permutation(len(points))
        center = np.average(points, axis=0, weights=masses)
        deviation = np.sqrt(np.average(((points - center) ** 2).mean(axis=1), weights=masses))
        self._inputs = ((points - center) / (deviation or 1.0)).astype(np.float32)
        self._shares = (masses / masses.mean()).astype(np.float32)
        self._model, self._encoder = _build(method, points.shape[1])

    def train(self, labels: np.ndarray | None) -> np.ndarray:
        """Trains for the epochs of a round and returns the codes, float64 (m, latent).

        With labels (m,), each code is drawn to the mean code of its cluster.
        """
        codes = self._codes()
        goals, pull = np.zeros_like(codes), 0.0
        if labels is not None:
            _, labels = np.unique(labels, return_inverse=True)
            goals, pull = arrays.means(codes, labels, self.masses)[labels], _PULL
        order = self._order
        self._model.fit(
            self._inputs[order],
            [self._inputs[order], goals[order]],
            sample_weight=[self._shares[order], pull * self._shares[order]],
            batch_size=_BATCH,
            epochs=self._epochs,
            shuffle=False,
            verbose=0,
        )
        return self._codes()

    def _codes(self) -> np.ndarray:
        return np.asarray(self._encoder(self._inputs), np.float64)


def _build(method: Autoencoder, size: int) -> tuple[Any, Any]:
    """Returns the model that gives reconstructions and codes, and the one that gives codes."""
    import keras

    def dense(units: int, activation: str | None, number: int) -> keras.layers.Layer:
        return keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=keras.initializers.GlorotUniform(method.seed + number),
            dtype="float32",
            name=f"autoencoder_{number}",  # Keras would count on its own names otherwise
        )

    inputs = keras.Input((size,), dtype="float32", name="autoencoder_blocks")
    codes = dense(min(method.latent, size), None, 2)(dense(method.hidden, "tanh", 1)(inputs))
    outputs = dense(size, None, 4)(dense(method.hidden, "tanh", 3)(codes))
    model = keras.Model(inputs, [outputs, codes], name="autoencoder")
    optimizer = keras.optimizers.Adam(_LEARNING_RATE)
    model.compile(optimizer, loss=["mse", "mse"], steps_per_execution=_LANDMARKS // _BATCH)
    return model, keras.Model(inputs, codes, name="autoencoder_encoder")
