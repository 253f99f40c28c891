"""Sparsity-induced trimming: channels that unstructured pruning has left almost empty go whole."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import keras
import numpy as np

from tfcompress.errors import require
from tfcompress.structured import slices
from tfcompress.structured.groups import Group, channel_groups
from tfcompress.structured.prune import require_free
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.selection import limits
from tfcompress.weights import kernels


def trim(
    model: keras.Model,
    max_zeros: float = 0.9,
    *,
    rules: Sequence[Mapping[str, Any]] = (),
    optimizer: bool = False,
) -> keras.Model:
    """Returns the model without the channels whose kernels are mostly zero; `model` stays as it is.

    After unstructured pruning some channels have hardly a weight left: they cost as much time as
    the others and say little. A channel goes if the share of zeros among all the kernel weights
    that make, carry and read it is more than `max_zeros`; the fullest ones stay where a rule or the
    group asks for more. What is left keeps its zeros. Fine-tune it, with `tfc.preserve(model)`.

    Args:
        max_zeros: share in [0, 1) of zeros that a channel may have.
        rules: `{"layers": REGEX, "skip": REASON}` or `{"layers": REGEX, "keep_at_least": SHARE}`.
        optimizer: see `keep_channels`.

    Raises:
        InputError: see `channel_groups`; values out of range.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"),
    ...                           keras.layers.Dense(2)])
    >>> kernel = np.ones((4, 3)); kernel[:, 1] = 0
    >>> model.layers[0].set_weights([kernel, np.zeros(3)])
    >>> trim(model, max_zeros=0.6).get_layer("hidden").units
    2
    """
    inside = isinstance(max_zeros, Real) and 0 <= max_zeros < 1
    require(inside, "max_zeros of trim", "must be in [0, 1)", max_zeros=max_zeros)
    groups = channel_groups(model)
    require_free(groups)
    limited = limits(groups, rules)
    held = {id(kernel.variable) for kernel in kernels(model)}
    kept = {}
    for group in groups:
        zeros = zero_shares(group, held)
        count = limited[group.name].allowed(int(np.sum(zeros <= max_zeros)), group.size)
        kept[group.name] = np.sort(np.argsort(zeros, kind="stable")[:count])
    return keep_channels(groups, kept, optimizer)


def zero_shares(group: Group, held: set[int]) -> np.ndarray:
    """Returns each channel's share of zeros over its kernels' weights: float64 (group.size,).

    `held` are the `id`s of the variables that are kernels.
    """
    zeros = np.zeros(group.size)
    weights = np.zeros(group.size)
    for member in group.members:
        if id(member.variable) in held:
            value = keras.ops.convert_to_numpy(member.variable.value)
            for total, counted in ((zeros, value == 0), (weights, np.ones_like(value))):
                total += slices.per_channel(member, group.size, slices.per_index(member, counted))
    return zeros / np.maximum(weights, 1)
