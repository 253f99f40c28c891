"""Which weights share a scale: one per tensor, per channel, per block, or per tier of magnitude."""

import dataclasses
import math
import numbers
from typing import Any

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization import ranges as ranges_
from tfcompress.quantization.grid import WEIGHTS, Codes, Grid, finite, grid
from tfcompress.quantization.ranges import RANGES
from tfcompress.quantization.rounding import ROUNDINGS
from tfcompress.registry import Registry

GRANULARITIES: Registry = Registry("granularity", __name__)

_THRESHOLDS = 64  # magnitudes at which a channel's tiers may be cut


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """The group of each weight: `group` int32, broadcasts against the weights, in [0, groups).

    `index_bits`: bits that a file stores per weight to tell its group; 0 where the place tells it.
    """

    group: np.ndarray
    groups: int
    index_bits: int = 0

    def rows(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the weights as (groups, n) and, if groups differ in size, which of them count."""
        group = np.broadcast_to(self.group, weights.shape).ravel()
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group, minlength=self.groups)
        if (sizes == sizes[0]).all():
            return weights.ravel()[order].reshape(self.groups, -1), None
        where = np.arange(sizes.max()) < sizes[:, None]
        rows = np.zeros(where.shape, weights.dtype)
        rows[where] = weights.ravel()[order]
        return rows, where

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Returns each group's value (groups,) at its weights: broadcasts against the weights."""
        return values[self.group]

    def size_bits(self, weights: int, bits: int, scale_bits: int = 32) -> int:
        """Returns the bits of so many weights' codes, of their groups and of the scales."""
        return weights * (bits + self.index_bits) + self.groups * scale_bits


@GRANULARITIES.register("per_tensor")
@dataclasses.dataclass(frozen=True)
class PerTensor:
    """Gives all weights of a kernel one scale."""

    def partition(self, weights: np.ndarray, channel_axes: tuple[int, ...] = ()) -> Partition:
        """Returns one group, of shape (1, ..., 1)."""
        return Partition(np.zeros((1,) * weights.ndim, np.int32), 1)


@GRANULARITIES.register("per_channel")
@dataclasses.dataclass(frozen=True)
class PerChannel:
    """Gives each output channel its scale: TFLite's way for convolutions."""

    def partition(self, weights: np.ndarray, channel_axes: tuple[int, ...] = ()) -> Partition:
        """Returns one group per index of `channel_axes`, of size 1 along all other axes."""
        channel = _channels(weights.shape, channel_axes)
        return Partition(channel, channel.size)


@GRANULARITIES.register("blocks")
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Gives every `size` consecutive inputs of a channel their scale.

    A channel's weights are taken in their order (rows, columns, inputs); its last block may be
    shorter. With 4 bits and blocks of 32, a float16 scale costs half a bit per weight.

    `size`: at least 1.
    """

    size: int = 32

    def __post_init__(self) -> None:
        valid = isinstance(self.size, numbers.Integral) and self.size >= 1
        require(valid, "size of Blocks", "must be a whole number, at least 1", size=self.size)

    def partition(self, weights: np.ndarray, channel_axes: tuple[int, ...] = ()) -> Partition:
        """Returns a group per block, of the weights' shape; a channel's blocks follow another."""
        channel = _channels(weights.shape, channel_axes)
        inside = [
            1 if kept > 1 else size for kept, size in zip(channel.shape, weights.shape, strict=True)
        ]
        place = np.arange(math.prod(inside), dtype=np.int32).reshape(inside)
        blocks = -(-place.size // self.size)
        return Partition(channel * blocks + place // self.size, channel.size * blocks)


@GRANULARITIES.register("tiers")
@dataclasses.dataclass(frozen=True)
class Tiers:
    """Gives the small and the large weights of a channel different scales.

    A channel's weights are sorted into `count` tiers by |w|. The borders make the sum over the
    tiers of (weights that are not 0) * (largest |w|)^2 least, and with it the expected rounding
    error, n s^2 / 12 each; they are looked for at 64 quantiles, so that with up to 64 weights per
    channel it is the least there is. The tier, group % count, is stored with each weight in
    log2(count) bits. The lowest tier comes first.

    `count`: in [2, 16].
    """

    count: int = 2

    def __post_init__(self) -> None:
        valid = isinstance(self.count, numbers.Integral) and 2 <= self.count <= 16
        require(valid, "count of Tiers", "must be a whole number in [2, 16]", count=self.count)

    def partition(self, weights: np.ndarray, channel_axes: tuple[int, ...] = ()) -> Partition:
        """Returns a group per tier, of the weights' shape."""
        channel = _channels(weights.shape, channel_axes)
        rows, _ = Partition(channel, channel.size).rows(np.abs(weights).astype(np.float64))
        borders = tier_borders(np.sort(rows, axis=1), self.count)
        # A weight is in the lowest tier whose largest magnitude it does not exceed.
        above = sum(np.abs(weights) > border[channel] for border in borders.T)
        group = channel * self.count + above
        bits = math.ceil(math.log2(self.count))
        return Partition(group.astype(np.int32), channel.size * self.count, bits)


def tier_borders(ascending: np.ndarray, count: int) -> np.ndarray:
    """Returns the largest magnitude of each tier but the last: float64 (channels, count - 1).

    `ascending`: each channel's sorted magnitudes, float64 (channels, n).
    """
    size = ascending.shape[1]
    places = np.unique(np.linspace(0, size - 1, min(size, _THRESHOLDS)).round().astype(int))
    ends = ascending[:, places]
    # Equal magnitudes are in one tier: count up to the last of them, without the zeros.
    numbers_ = (ascending[:, None, :] <= ends[:, :, None]).sum(axis=2) - (ascending == 0).sum(
        axis=1, keepdims=True
    )
    # error[i, j]: of a tier from above places[i] up to places[j].
    error = (numbers_[:, None, :] - numbers_[:, :, None]).clip(0) * ends[:, None, :] ** 2
    error += np.where(np.tri(len(places), dtype=bool).T, 0.0, np.inf)
    best = numbers_ * ends**2
    came_from = []
    for _ in range(count - 1):
        total = best[:, :, None] + error
        came_from.append(total.argmin(axis=1))
        best = total.min(axis=1)
    chosen = np.full(len(ends), len(places) - 1)
    borders = []
    for before in reversed(came_from):
        chosen = before[np.arange(len(ends)), chosen]
        borders.append(ends[np.arange(len(ends)), chosen])
    return np.stack(borders[::-1], axis=1)


def fit(
    weights: np.ndarray,
    channel_axes: tuple[int, ...] = (),
    granularity: Any = "per_channel",
    ranges: Any = "min_max",
    codes: Codes = WEIGHTS,
    rounding: Any = "nearest",
) -> Grid:
    """Returns the grid of a kernel: for each group of weights the range that `ranges` finds in it.

    Args:
        weights: float array of any shape, finite, not empty.
        channel_axes: the axes that count output channels; without, all weights are one channel.
        granularity: "per_tensor", "per_channel", "blocks", "tiers", or one with arguments.
        ranges: a name or method of `RANGES`.
        codes: the integers to use.
        rounding: the method that will round; it may want the largest weight past the last code.

    >>> kernel = np.array([[1.27, 0.5], [0.1, -2.54]])
    >>> fit(kernel, (1,)).scale
    array([[0.01, 0.02]])
    """
    weights = finite(weights, "Weights to quantize")
    require(weights.size > 0, "Weights to quantize", "must not be empty", shape=weights.shape)
    method = RANGES.create(ranges)
    parts = GRANULARITIES.create(granularity).partition(weights, channel_axes)
    rows, where = parts.rows(weights)
    low, high = method.bounds(method.observe(rows, where=where), codes)
    fitted = grid(low, high, codes, ROUNDINGS.create(rounding).overshoot)
    return Grid(parts.spread(fitted.scale), parts.spread(fitted.zero_point), codes)


def quantize(
    weights: np.ndarray, grid: Grid, rounding: Any = "nearest", inputs: Any = None
) -> np.ndarray:
    """Returns the codes of the weights on their grid: int32 of their shape.

    `rounding`: a name or method of `ROUNDINGS`; `inputs`: a `LayerInputs`, if it needs one. The
    inverse is `grid.dequantize(codes)`.

    >>> kernel = np.array([[1.27, 0.5], [0.1, -2.54]])
    >>> quantize(kernel, fit(kernel, (1,)))
    array([[ 127,   25],
           [  10, -127]], dtype=int32)
    """
    return ROUNDINGS.create(rounding).round(finite(weights, "Weights to quantize"), grid, inputs)


def _channels(shape: tuple[int, ...], channel_axes: tuple[int, ...]) -> np.ndarray:
    """Returns the number of each channel, int32, of size 1 along the axes that count none."""
    kept = ranges_.axes(len(shape), channel_axes)
    sizes = [size if axis in kept else 1 for axis, size in enumerate(shape)]
    return np.arange(math.prod(sizes), dtype=np.int32).reshape(sizes)
