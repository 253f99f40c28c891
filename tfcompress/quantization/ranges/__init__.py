"""Which range of values a tensor's codes shall cover: one file per method.

A method is a frozen dataclass with two verbs, for weights and for activations alike:

    state = None
    for batch in batches:
        state = method.observe(rows(batch), state)      # what was seen so far
    low, high = method.bounds(state, codes)             # float64 (g,), low <= 0 <= high

`observe(rows, state=None, where=None)` takes values (g, n): g groups that each have their own range
(one for a tensor, one per channel, ...); with `where`, bool (g, n), only the marked values count.
The state is a new value; the one given stays as it was. `bounds` reads it: symmetric codes get
low = -high. A group without values or with zeros alone, a dead channel, has the range (0, 0).
"""

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.grid import WEIGHTS, Codes, finite
from tfcompress.registry import Registry

RANGES: Registry = Registry("range method", __name__)


def rows(array: np.ndarray, channel_axes: tuple[int, ...] = ()) -> np.ndarray:
    """Returns the array's values as (g, n), a row per index of `channel_axes`; one row without.

    >>> rows(np.arange(6).reshape(3, 2), (1,))
    array([[0, 2, 4],
           [1, 3, 5]])
    """
    array = np.asarray(array)
    kept = sorted(axes(array.ndim, channel_axes))
    front = np.moveaxis(array, kept, range(len(kept)))
    return front.reshape(int(np.prod([array.shape[axis] for axis in kept])), -1)


def of(
    array: np.ndarray,
    method: object = "min_max",
    channel_axes: tuple[int, ...] = (),
    codes: Codes = WEIGHTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the range (low, high) of an array, float64, of shapes that broadcast against it.

    >>> low, high = of(np.array([[1.0, -4.0], [2.0, 3.0]]), "min_max", channel_axes=(1,))
    >>> high
    array([[2., 4.]])
    """
    ranges = RANGES.create(method)
    low, high = ranges.bounds(ranges.observe(rows(array, channel_axes)), codes)
    kept = axes(np.ndim(array), channel_axes)
    shape = [size if axis in kept else 1 for axis, size in enumerate(np.shape(array))]
    return low.reshape(shape), high.reshape(shape)


def checked(
    values: np.ndarray, groups: int | None, where: np.ndarray | None, owner: str
) -> np.ndarray:
    """Returns values (g, n) that are finite, not empty, and of as many groups as seen before."""
    values = np.asarray(values)
    shape = values.shape
    require(
        values.ndim == 2 and values.size > 0,
        f"Values for {owner}",
        "must have shape (groups, n), not empty",
        shape=shape,
    )
    rule = f"must have {groups} groups as in the batches before"
    require(groups in (None, shape[0]), f"Values for {owner}", rule, shape=shape)
    if where is not None:
        rule = "must be bool and have the values' shape"
        fits = where.shape == shape and where.dtype == bool
        require(fits, f"where for {owner}", rule, shape=where.shape, values=shape)
    return finite(values, f"Values for {owner}")


def closed(low: np.ndarray, high: np.ndarray, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the range extended to 0, which every grid holds; symmetric for symmetric codes."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if codes.symmetric:
        high = np.maximum(-low, high)
        low = -high
    return low, high


def axes(rank: int, channel_axes: tuple[int, ...]) -> list[int]:
    """Returns the channel axes of an array of `rank`, counted from 0."""
    valid = all(-rank <= axis < rank for axis in channel_axes)
    rule = f"must be axes of an array of rank {rank}"
    require(valid, "channel_axes", rule, channel_axes=channel_axes)
    counted = [axis % rank for axis in channel_axes]
    rule = "must differ"
    require(len(set(counted)) == len(counted), "channel_axes", rule, channel_axes=channel_axes)
    return counted
