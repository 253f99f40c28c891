"""Affine quantization of arrays as TFLite defines it: real = scale * (code - zero_point)."""

from typing import NamedTuple

import numpy as np

from tfcompress.errors import require


class Grid(NamedTuple):
    """The real numbers that the codes of an activation tensor stand for."""

    scale: float  # > 0, the distance of neighbouring numbers
    zero_point: int  # the code of 0.0

    def bounds(self, bits: int = 8) -> tuple[float, float]:
        """Returns the smallest and the largest number that has a code."""
        lowest = -(2 ** (bits - 1))
        return (
            self.scale * (lowest - self.zero_point),
            self.scale * (lowest + 2**bits - 1 - self.zero_point),
        )


def activation_grid(low: float, high: float, bits: int = 8) -> Grid:
    """Returns the asymmetric grid of `2**bits` codes for activations in [low, high].

    The range is widened to contain zero, and zero gets a code of its own (a padded pixel is then
    exact): scale = (high - low) / (2**bits - 1), zero point = the nearest code to where 0 falls.

    Args:
        low, high: finite, low <= high; the range must not be the single point 0.
        bits: width of a code, in [2, 16].

    >>> activation_grid(0.0, 255.0)
    Grid(scale=1.0, zero_point=-128)
    """
    require(2 <= bits <= 16, "bits of activation_grid", "must be in [2, 16]", bits=bits)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    require(
        np.isfinite(low) and np.isfinite(high) and low < high,
        "[low, high] of activation_grid",
        "must be finite and more than the point 0",
        low=low,
        high=high,
    )
    lowest = -(2 ** (bits - 1))
    scale = (high - low) / (2**bits - 1)
    return Grid(scale, int(np.clip(np.rint(lowest - low / scale), lowest, -lowest - 1)))


def kernel_scale(
    kernel: np.ndarray, channel_axes: tuple[int, ...] = (), bits: int = 8
) -> np.ndarray:
    """Returns the symmetric scale(s) of a kernel: max|w| / (2**(bits-1) - 1), zero point 0.

    One scale for each index of `channel_axes`, as an array that broadcasts against `kernel`; one
    for all without axes. A channel of zeros has scale 0: all its codes are 0.

    >>> float(kernel_scale(np.array([[-1.27, 0.5]]))[0, 0])
    0.01
    """
    kept = {axis % kernel.ndim for axis in channel_axes}
    reduced = tuple(axis for axis in range(kernel.ndim) if axis not in kept)
    largest = np.abs(kernel.astype(np.float64)).max(axis=reduced, keepdims=True, initial=0.0)
    return largest / (2 ** (bits - 1) - 1)


def quantize(array: np.ndarray, scale: np.ndarray | float, zero_point: int = 0, bits: int = 8):
    """Returns the codes, int32: clip(round(array / scale) + zero_point), ties to even.

    A scale of 0 stands for a channel of zeros and gives the zero point.
    """
    array, scale = np.broadcast_arrays(np.asarray(array, np.float64), scale)
    codes = np.divide(array, scale, out=np.zeros(array.shape), where=scale > 0)
    lowest = -(2 ** (bits - 1))
    return np.clip(np.rint(codes) + zero_point, lowest, -lowest - 1).astype(np.int32)


def dequantize(codes: np.ndarray, scale: np.ndarray | float, zero_point: int = 0) -> np.ndarray:
    """Returns the numbers that `codes` stand for, float32."""
    return ((codes - zero_point) * np.asarray(scale, np.float64)).astype(np.float32)


def snap(kernel: np.ndarray, channel_axes: tuple[int, ...] = (), bits: int = 8) -> np.ndarray:
    """Returns the kernel with each weight moved to the nearest point of its symmetric grid."""
    scale = kernel_scale(kernel, channel_axes, bits)
    return dequantize(quantize(kernel, scale, bits=bits), scale)
