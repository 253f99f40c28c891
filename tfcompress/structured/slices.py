"""What of a weight belongs to one channel: its slices, added up or laid side by side.

Vectorised over all channels at once; memory is linear in the weight. A member is anything with
`variable`, `axis`, `channels` and `indices`, see `tfcompress.structured.groups.Member`.
"""

import re
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InputError, require

# Weights are told apart by their last word, which Keras gives to all of its layers.
_OFFSET = re.compile(r"(.*_)?(bias|beta|alpha)")
_STATISTIC = re.compile(r"(.*_)?(mean|variance|count)")


def is_statistic(member: Any) -> bool:
    """Returns whether the weight is measured, not learnt: a moving mean or variance."""
    return _STATISTIC.fullmatch(member.variable.name) is not None


def multiplies(member: Any) -> bool:
    """Returns whether the weight multiplies the channel: a kernel, an embedding, a gamma.

    A bias or beta shifts it, and PReLU's alpha bends it: they do not say how much it carries.
    """
    return not is_statistic(member) and _OFFSET.fullmatch(member.variable.name) is None


def value(member: Any) -> np.ndarray:
    """Returns the whole weight, float32; `InputError` names the layer if it is not finite."""
    array = keras.ops.convert_to_numpy(member.variable.value).astype(np.float32, copy=False)
    require(
        np.isfinite(array).all(),
        f"Weights of '{member.layer_path}'",
        f"must be finite ({member.variable.name} holds NaN or infinity)",
    )
    return array


def per_index(member: Any, array: np.ndarray) -> np.ndarray:
    """Returns an array like the weight, added up over all axes but the member's, float64."""
    others = tuple(axis for axis in range(array.ndim) if axis != member.axis % array.ndim)
    return array.sum(axis=others, dtype=np.float64)


def per_channel(member: Any, size: int, indexed: np.ndarray) -> np.ndarray:
    """Returns numbers along the member's axis, added up per channel: float64 (size,)."""
    return np.bincount(member.channels, indexed[member.indices], minlength=size)


def not_zero(member: Any, size: int) -> np.ndarray:
    """Returns for each channel whether any weight of its slices is not zero: bool (size,)."""
    array = keras.ops.convert_to_numpy(member.variable.value)
    return per_channel(member, size, per_index(member, array != 0)) > 0


def side_by_side(member: Any, size: int) -> np.ndarray:
    """Returns each channel's slice as one row: float32 (size, entries of a slice).

    A channel with several indices has them one after the other; where channels differ in how
    many they have, shorter rows end in zeros.
    """
    rows = np.moveaxis(value(member), member.axis, 0)
    rows = rows.reshape(len(rows), -1)
    order = np.argsort(member.channels, kind="stable")
    channels, indices = member.channels[order], member.indices[order]
    counts = np.bincount(channels, minlength=size)
    place = np.arange(len(channels)) - (np.cumsum(counts) - counts)[channels]
    matrix = np.zeros((size, counts.max(initial=0), rows.shape[1]), np.float32)
    matrix[channels, place] = rows[indices]
    return matrix.reshape(size, -1)


def average(
    group: Any, vectors: Iterable[np.ndarray], what: str, *, divide: bool = True
) -> np.ndarray:
    """Returns the mean of the members' vectors, each divided by its own mean: float64 (size,).

    So a wide kernel counts as much as a narrow one; without `divide` all count as they are. Vectors
    are not negative; one of zeros stays. `what` says which members count, for the `InputError` of a
    group that has none.
    """
    shares = [vector / ((vector.mean() if divide else 1.0) or 1.0) for vector in vectors]
    if not shares:
        raise InputError(f"Group '{group.name}' must have {what}. Received: none")
    return np.mean(shares, axis=0)
