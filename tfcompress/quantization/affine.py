"""Affine quantization of arrays as TFLite defines it: real = scale * (code - zero_point)."""

import numpy as np


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
