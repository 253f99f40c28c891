"""Channel merging: channels with like feature maps become one."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.clustering import METHODS, fewest, spanned
from tfcompress.structured import evaluation
from tfcompress.structured.groups import ChannelGroups, Group, channel_groups
from tfcompress.structured.prune import require_free
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.selection import limits
from tfcompress.structured.sites import Sites

_POSITIONS = 64  # of a feature map that are looked at, for each batch and site
_SAMPLES = 16  # of a batch


def merge_channels(
    model: keras.Model,
    data: Any,
    method: Any = "kmeans",
    *,
    rules: Sequence[Mapping[str, Any]] = (),
    batches: int = 16,
    batch_size: int = 64,
    optimizer: bool = False,
) -> keras.Model:
    """Returns a smaller model in which channels with like feature maps are one; `model` stays.

    In each group the channels are clustered by what they hold where layers read them. Of each
    cluster the channel nearest to its centre stays; the weights that read the others are added to
    the ones that read it, each times the factor that makes the one most like the other. Where two
    channels are equal, or one a multiple of the other, the function stays the same. A group with no
    more channels than clusters stays whole, and so does one that a layer reads as more than a sum,
    or some of its channels more often than others.

    Args:
        data: x, (x, y), a `tf.data.Dataset` or `tfcompress.data.Data`; of up to `batches` batches
            up to 16 samples at 64 positions of each feature map are compared.
        method: a clustering method of `tfcompress.clustering.METHODS`: how many channels stay of
            each group is its number of clusters.
        rules: `{"layers": REGEX, "skip": REASON}` for layers whose channels stay apart.
        batch_size: rows of a batch where `data` is arrays.
        optimizer: see `keep_channels`.

    Raises:
        InputError: see `channel_groups`; data that does not fit the model.

    Source: Son et al. 2018, "Clustering convolutional kernels to compress deep neural networks";
    the factors are least squares.

    Example:

        small = tfc.merge_channels(model, x_train, tfc.clustering.KMeans(clusters=24))
        small.compile(...)
        small.fit(x_train, y_train)
    """
    clustering = METHODS.create(method)
    groups = channel_groups(model)
    require_free(groups)
    limited = limits(groups, rules)
    targets = [
        group
        for group in groups
        if not group.inexact
        and group.size > fewest(clustering)
        and limited[group.name].least < group.size
        and _like_reads(group)
    ]
    features = _features(model, groups, data, batches, batch_size)
    kept, mixtures = {}, []
    for group in targets:
        if group.name not in features:
            continue
        points = spanned(features[group.name])
        codebook = clustering.fit(points)
        distance = np.square(points - codebook.decode()).sum(axis=1)
        kept[group.name], mixture = _merged(features[group.name], codebook.indices, distance)
        mixtures.append((group, mixture))
    # The weights are added up in a copy; cutting out the rest is removal as usual.
    copy = keep_channels(groups, {}, optimizer)
    copied = {id(a): b for a, b in zip(model.variables, copy.variables, strict=True)}
    for group, mixture in mixtures:
        _add_up(group, mixture, copied)
    return keep_channels(channel_groups(copy), kept, optimizer)


def _like_reads(group: Group) -> bool:
    """Returns whether there are readers, each of which reads all channels equally often."""
    counts = [
        np.bincount(member.channels, minlength=group.size)
        for member in group.members
        if member.role == "in"
    ]
    return bool(counts) and all((count == count[0]).all() for count in counts)


def _features(
    model: keras.Model, groups: ChannelGroups, data: Any, batches: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Returns by group what its channels hold where they are read: float32 (channels, values)."""
    parts: dict[str, list[np.ndarray]] = {}
    for _, seen in Sites(model, groups, _sampled).batches(
        evaluation.batches(data, batch_size, batches)
    ):
        for site, values in seen:
            rows = values[site.indices]
            # A channel with several indices (after Flatten) holds the values of them all.
            order = np.argsort(site.channels, kind="stable")
            counts = np.bincount(site.channels, minlength=site.group.size)
            if (counts == counts[0]).all():
                rows = rows[order].reshape(site.group.size, -1)
                parts.setdefault(site.group.name, []).append(rows)
    return {name: np.concatenate(found, axis=1) for name, found in parts.items()}


def _sampled(x: Any, axis: int) -> Any:
    """Returns some of the values of each channel: (channels, values)."""
    x = tf.cast(x[:_SAMPLES], tf.float32)
    order = [axis, *(other for other in range(x.shape.rank) if other != axis)]
    flat = tf.reshape(tf.transpose(x, order), [tf.shape(x)[axis], -1])
    step = tf.maximum(tf.shape(flat)[1] // (_SAMPLES * _POSITIONS), 1)
    return flat[:, ::step]


def _merged(
    features: np.ndarray, labels: np.ndarray, distance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which channels stay, and the matrix (channels, channels) from channels to channels:
    row i holds the factor by which the one that stays stands in for channel i."""
    size = len(features)
    order = np.lexsort((np.arange(size), distance, labels))
    first = np.unique(labels[order], return_index=True)[1]
    representatives = order[first]
    stands_in = representatives[np.unique(labels, return_inverse=True)[1]]
    own = features.astype(np.float64)
    power = (own**2).sum(axis=1)[stands_in]
    factor = (own * own[stands_in]).sum(axis=1) / np.where(power > 0, power, 1.0)
    mixture = np.zeros((size, size))
    mixture[np.arange(size), stands_in] = np.where(power > 0, factor, 0.0)
    return np.sort(representatives), mixture


def _add_up(group: Group, mixture: np.ndarray, variables: Mapping[int, keras.Variable]) -> None:
    """Adds the weights that read merged channels to those that read the ones that stay."""
    for member in group.members:
        if member.role != "in":
            continue
        variable = variables[id(member.variable)]
        value = np.moveaxis(keras.ops.convert_to_numpy(variable), member.axis, 0)
        order = np.argsort(member.channels, kind="stable")
        indices = member.indices[order].reshape(group.size, -1)
        slices = value[indices].astype(np.float64).reshape(group.size, -1)
        value = value.copy()
        value[indices.reshape(-1)] = (mixture.T @ slices).reshape(-1, *value.shape[1:])
        variable.assign(np.moveaxis(value, 0, member.axis))
