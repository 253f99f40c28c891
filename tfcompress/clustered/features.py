"""Which channels of a layer are alike: the feature maps that it puts out, clustered."""

import dataclasses
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tfcompress import clustering
from tfcompress.errors import InputError, require, unknown
from tfcompress.structured import evaluation

_VALUES = 4096  # of each channel that are compared


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureClusters:
    """The channels of a layer in clusters; see `cluster_features`.

    labels: int32 (channels,). silhouette: in [-1, 1], the mean over channels, 1: clusters far
    apart. sse: sum of squared distances to the clusters' means. `plane`: the channels in the plane
    of their two principal components, float (channels, 2).
    """

    layer: str
    labels: np.ndarray
    silhouette: float
    sse: float
    plane: np.ndarray

    def __str__(self) -> str:
        lines = [
            f"{self.layer}: {len(self.labels)} channels in {self.labels.max() + 1} clusters, "
            f"silhouette {self.silhouette:.3f}"
        ]
        for label in range(self.labels.max() + 1):
            members = np.flatnonzero(self.labels == label)
            lines.append(f"{label:4}: {', '.join(map(str, members))}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Returns a figure: the channels in the plane of two principal components, by cluster."""
        figure = Figure(figsize=(5.0, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(self.plane[:, 0], self.plane[:, 1], c=self.labels, cmap="tab20", s=22)
        for number, place in enumerate(self.plane):
            axes.annotate(str(number), place, fontsize=6)
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second")
        name = self.layer.replace("$", r"\$")
        axes.set_title(f"{name}, silhouette {self.silhouette:.2f}", fontsize=9)
        return figure


def cluster_features(
    model: keras.Model,
    layer: str,
    data: Any,
    method: Any = "kmeans",
    *,
    batches: int = 4,
    batch_size: int = 64,
) -> FeatureClusters:
    """Clusters the channels of a layer by what they hold on data; `model` stays as it was.

    Channels of one cluster say nearly the same: `merge_channels` with the same method makes one of
    them.

    Args:
        layer: name of a layer of the functional or Sequential `model` with one output, whose last
            axis counts channels.
        data: x, (x, y) and the other forms of `tfcompress.structured.evaluation.batches`; of its
            outputs up to 4,096 values of each channel are compared.
        method: a clustering method of `tfcompress.clustering.METHODS`.

    Raises:
        InputError: an unknown layer or method, data that does not fit, features not finite.

        print(tfc.cluster_features(model, "conv2d_3", x_train[:256], {"kmeans": {"clusters": 8}}))
    """
    chosen = clustering.METHODS.create(method)
    if not hasattr(model, "_nodes_by_depth") and not isinstance(model, keras.Sequential):
        raise InputError(f"Model '{model.name}' must be functional or Sequential.")
    names = [found.name for found in model.layers]
    if layer not in names:
        raise unknown(f"layer of model '{model.name}'", layer, names)
    output = model.get_layer(layer).output
    require(
        isinstance(output, keras.KerasTensor) and len(output.shape) >= 2,
        f"Layer '{layer}'",
        "must have one output with channels on its last axis",
    )
    part = keras.Model(model.inputs[0] if len(model.inputs) == 1 else model.inputs, output)
    parts = []
    for x, _ in evaluation.batches(data, batch_size, batches):
        inputs = evaluation.inputs_in_order(model, x)
        found = np.asarray(part(inputs[0] if len(inputs) == 1 else inputs, training=False))
        parts.append(found.reshape(-1, found.shape[-1]))
    features = np.concatenate(parts)
    step = -(-len(features) // _VALUES)
    channels = np.ascontiguousarray(features[::step].T, np.float32)
    finite = np.isfinite(channels).all()
    require(finite, f"Outputs of layer '{layer}'", "must be finite")
    channels = clustering.spanned(channels)
    book = chosen.fit(channels)
    figures = clustering.quality(channels, book)
    plane = np.zeros((len(channels), 2))
    plane[:, : channels.shape[1]] = channels[:, :2]
    return FeatureClusters(layer, book.indices, figures.silhouette, figures.sse, plane)
