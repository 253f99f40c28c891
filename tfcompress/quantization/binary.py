"""Weights of one bit and of three values."""

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization import ranges
from tfcompress.quantization.grid import Codes, Grid, finite

# 2 bits, narrow: -1, 0, 1.
TERNARY = Codes(bits=2)


def binary(weights: np.ndarray, channel_axes: tuple[int, ...] = ()) -> tuple[np.ndarray, Grid]:
    """Returns (codes, grid): each weight becomes +alpha or -alpha, alpha = mean |w| of its channel.

    Codes are int32, 1 where w >= 0 and -1 elsewhere; `grid.dequantize(codes)` gives the floats. Of
    all scales this one has the least squared error. A channel of zeros has alpha 0 and stays so.

    (Rastegari et al. 2016, "XNOR-Net: ImageNet classification using binary convolutional neural
    networks")

    >>> codes, grid = binary(np.array([0.5, -1.5]))
    >>> grid.dequantize(codes)
    array([ 1., -1.], dtype=float32)
    """
    weights = _checked(weights)
    alpha = _mean(np.abs(weights), np.ones(weights.shape, bool), channel_axes)
    return np.where(weights >= 0, 1, -1).astype(np.int32), _grid(alpha)


def ternary(weights: np.ndarray, channel_axes: tuple[int, ...] = ()) -> tuple[np.ndarray, Grid]:
    """Returns (codes, grid): every weight becomes -alpha, 0 or +alpha.

    Weights up to 0.7 mean |w| of their channel become 0; alpha = mean |w| of the others, the best
    scale for them. Codes are int32 in {-1, 0, 1}; `grid.dequantize(codes)` gives the floats.

    (Li et al. 2016, "Ternary weight networks")

    >>> codes, grid = ternary(np.array([0.1, -1.0, 2.0]))
    >>> grid.dequantize(codes)
    array([ 0. , -1.5,  1.5], dtype=float32)
    """
    weights = _checked(weights)
    magnitudes = np.abs(weights)
    threshold = 0.7 * _mean(magnitudes, np.ones(weights.shape, bool), channel_axes)
    kept = magnitudes > threshold
    alpha = _mean(magnitudes, kept, channel_axes)
    return (np.sign(weights) * kept).astype(np.int32), _grid(alpha)


def _checked(weights: np.ndarray) -> np.ndarray:
    weights = finite(weights, "Weights to quantize")
    require(weights.size > 0, "Weights to quantize", "must not be empty", shape=weights.shape)
    return weights


def _grid(alpha: np.ndarray) -> Grid:
    return Grid(alpha, np.zeros(alpha.shape, np.int64), TERNARY)


def _mean(array: np.ndarray, where: np.ndarray, channel_axes: tuple[int, ...]) -> np.ndarray:
    """Returns each channel's mean of the marked entries, 0 of none: broadcasts against `array`."""
    kept = ranges.axes(array.ndim, channel_axes)
    reduced = tuple(axis for axis in range(array.ndim) if axis not in kept)
    total = array.sum(axis=reduced, keepdims=True, where=where, dtype=np.float64)
    return total / np.maximum(where.sum(axis=reduced, keepdims=True), 1)
