"""What a model costs with some of its channels gone, counted without building it."""

import math

import numpy as np

from tfcompress.structured.groups import ChannelGroups
from tfcompress.structured.trace import Labels, count_kept


def macs(groups: ChannelGroups, kept: np.ndarray) -> int:
    """Returns the multiply-accumulates for one sample; `kept` is bool, by label of the trace.

    Counted as in `.tflite` files: each weight of a kernel once for each position of the output,
    padding included, zeros too. Sizes that are known at run time only count as 1.
    """
    found, size = groups.trace, count_kept(kept)
    weights = sum(kernel_macs(groups, kept))
    products = sum(
        math.prod(n if labels is None else size(labels) for n, labels in axes)
        for axes in found.products
    )
    return weights + products


def kernel_macs(groups: ChannelGroups, kept: np.ndarray) -> list[int]:
    """Returns the multiply-accumulates of each use of a kernel, in the order of the model."""
    return [
        positions * _entries(groups, variable, kept) for variable, positions in groups.trace.kernels
    ]


def parameters(groups: ChannelGroups, kept: np.ndarray) -> int:
    """Returns the number of weights, the ones that are not trained included."""
    return sum(_entries(groups, variable, kept) for variable in groups.model.weights)


def _entries(groups: ChannelGroups, variable, kept: np.ndarray) -> int:
    uses = groups.trace.uses
    labels: list[Labels] = [
        uses[key].labels if (key := (id(variable), axis)) in uses else None
        for axis in range(len(variable.shape))
    ]
    return math.prod(
        n if own is None else int(np.count_nonzero(kept[own]))
        for n, own in zip(variable.shape, labels, strict=True)
    )
