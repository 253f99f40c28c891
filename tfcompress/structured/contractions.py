"""Layers that add up channels: their kernels as matrices from channels in to channels out."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfcompress.structured.layers.dense import plain_weights

layers = keras.layers
_MOST_VALUES = 2**22  # of a kernel that are worked on at a time
_PLAIN = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)


@dataclasses.dataclass(frozen=True, eq=False)
class Contraction:
    """A layer's kernel: `taps` (positions, inputs, outputs), float32; `bias` (outputs,), float64.

    `spatial`: it slides over positions. `padded`: at the border some taps meet zeros, or overlap
    as they do not elsewhere, so that a constant does not come out as one.
    """

    taps: np.ndarray
    bias: np.ndarray
    spatial: bool
    padded: bool

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields runs of outputs with their taps in float64, few enough to need little memory."""
        positions, inputs, outputs = self.taps.shape
        width = max(1, _MOST_VALUES // max(positions * inputs, 1))
        for start in range(0, outputs, width):
            columns = slice(start, start + width)
            yield columns, self.taps[..., columns].astype(np.float64)


def reads(operation: Any) -> bool:
    """Returns whether `of` knows the layer."""
    kind = type(operation)
    return (
        kind is layers.Dense or kind in _PLAIN or kind in _TRANSPOSED or kind in _SEPARABLE
    ) and plain_weights(operation)


def of(layer: keras.layers.Layer) -> Contraction:
    """Returns the matrices of a Dense or convolution layer."""
    taps, spatial, padded = _taps(layer)
    bias = value(layer.bias) if layer.use_bias else np.zeros(taps.shape[-1])
    return Contraction(taps, bias, spatial, padded)


def value(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable.value).astype(np.float64)


def _taps(layer: Any) -> tuple[np.ndarray, bool, bool]:
    kind = type(layer)
    if kind is layers.Dense:
        return keras.ops.convert_to_numpy(layer.kernel)[None], False, False
    if kind in _SEPARABLE:
        deep = value(layer.depthwise_kernel)  # (..., inputs, multiplier)
        deep = deep.reshape(-1, *deep.shape[-2:])
        wide = value(layer.pointwise_kernel).reshape(*deep.shape[1:], -1)
        taps = np.einsum("pim,imo->pio", deep, wide).astype(np.float32)
        return taps, True, len(taps) > 1 and layer.padding != "valid"
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype(np.float32, copy=False)
    taps = kernel.reshape(-1, *kernel.shape[-2:])
    if kind in _TRANSPOSED:
        return taps.transpose(0, 2, 1), True, True
    padded = len(taps) > 1 and layer.padding != "valid"
    if layer.groups == 1:
        return taps, True, padded
    inputs, outputs = taps.shape[1], taps.shape[2] // layer.groups
    blocks = np.zeros((len(taps), layer.groups, inputs, layer.groups, outputs), np.float32)
    for group in range(layer.groups):
        columns = slice(group * outputs, (group + 1) * outputs)
        blocks[:, group, :, group] = taps[:, :, columns]
    return blocks.reshape(len(taps), layer.groups * inputs, -1), True, padded
