"""The grid on which a kernel's rounding and clipping raise the loss least."""

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.granularity import GRANULARITIES
from tfcompress.quantization.grid import Codes, Grid


def clipped_grid(
    weights: np.ndarray,
    importance: np.ndarray | None = None,
    channel_axes: tuple[int, ...] = (),
    bits: int = 8,
    granularity: str = "per_channel",
    candidates: int = 64,
) -> Grid:
    """Returns the symmetric grid with the least estimated loss increase, group by group.

    Every share 1/candidates, 2/candidates, ..., 1 of a group's largest magnitude is tried as the
    range; what lies outside of it is clipped to its end. A group's estimate is the sum of

        importance * (rounded and clipped weight - weight)^2 / 2

    Of equal estimates the widest range. The largest weight of a group takes the last code on every
    grid, so that `largest magnitude / last code` of the rounded kernel is the scale again, exactly:
    a converter that looks for it there finds it.

    Args:
        weights: float array of any shape, finite.
        importance: of the weights' shape, at least 0: the loss' second derivative or what stands
            for it; None: all alike.
        channel_axes: the axes that count output channels; without, all weights are one group.
        bits: in [2, 16]. granularity: "per_channel" or "per_tensor".
        candidates: at least 2.

    >>> clipped_grid(np.array([[1.0, -1.0, 0.9, 30.0]]), np.array([[1, 1, 1, 0]]), bits=2).scale
    array([[0.9375]])
    """
    codes = Codes(bits)
    require(candidates >= 2, "candidates of clipping", "must be at least 2", candidates=candidates)
    parts = GRANULARITIES.create(granularity).partition(weights, channel_axes)
    rows, _ = parts.rows(weights.astype(np.float64))
    given = np.ones_like(weights) if importance is None else importance
    heavy, _ = parts.rows(given.astype(np.float64))
    largest = np.abs(rows).max(axis=1)
    best, scale = np.full(len(rows), np.inf), np.zeros(len(rows))
    for step in range(candidates, 0, -1):
        # In float32, as the rounded kernel will hold it.
        end = (largest * (step / candidates)).astype(np.float32).astype(np.float64)
        tried = end / codes.highest
        steps = np.divide(rows, tried[:, None], out=np.zeros_like(rows), where=tried[:, None] > 0)
        rounded = np.clip(np.rint(steps), codes.lowest, codes.highest) * tried[:, None]
        error = np.einsum("gn,gn->g", heavy, (rounded - rows) ** 2)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, tried, scale)
    return Grid(parts.spread(scale), parts.spread(np.zeros(len(rows), np.int64)), codes)


def rounded(weights: np.ndarray, grid: Grid) -> np.ndarray:
    """Returns the weights' nearest points on the grid, float32."""
    return grid.dequantize(grid.clip(np.rint(grid.steps(weights))))
