"""Which integers a kernel of a `.tflite` file is stored in."""

import dataclasses
from typing import Any

import numpy as np

from tfcompress.quantization import GRANULARITIES, ROUNDINGS, Codes, Grid, LayerInputs
from tfcompress.quantization.granularity import fit, quantize
from tfcompress.tflite.operators import KERNELS
from tfcompress.tflite.patches import from_matrices, to_matrices

BLOCKS = (32, 64, 128, 256)  # the block sizes that LiteRT has kernels for
_ROOM = 2.0**30  # a bias takes codes up to here: as much again stays for the products


@dataclasses.dataclass(frozen=True)
class Method:
    """How the integers of a kernel are found: the words of `convert`."""

    granularity: Any = "per_channel"
    ranges: Any = "min_max"
    rounding: Any = "nearest"

    @property
    def needs_inputs(self) -> bool:
        return ROUNDINGS.create(self.rounding).needs_inputs

    @property
    def block(self) -> int:
        """Weights that share a scale within a channel; 0: all."""
        return getattr(GRANULARITIES.create(self.granularity), "size", 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A kernel's codes, int32 of its stored shape, and their scales.

    `scale`: float64, one for all, (channels,), or (channels, blocks) with `block` weights each.
    `bias`: one that goes with the codes, float64 (outputs,); None: the operator's own.
    """

    codes: np.ndarray
    scale: np.ndarray
    bits: int
    block: int = 0
    bias: np.ndarray | None = None

    def per_output(self, outputs: int) -> np.ndarray:
        """Returns the scale of each output channel, float64 (outputs,)."""
        return np.broadcast_to(self.scale, (outputs,))


def store(
    kernel: np.ndarray,
    operator: str,
    bits: int,
    method: Method,
    inputs: LayerInputs | None = None,
    bias: np.ndarray | None = None,
    input_scale: float = 0.0,
) -> Stored:
    """Returns the integers of a kernel by the method.

    Args:
        kernel: float32, as the operator stores it.
        operator: its name; bits: 4 or 8.
        inputs: what adaptive rounding looks at; it gives a bias, too, with which the outputs' means
            over the samples are those wanted.
        bias, input_scale: a bias is stored in steps of input scale x kernel scale, in 32 bits: a
            scale that would make it overflow is raised.
    """
    axis = KERNELS[operator].channels
    given = fit(kernel, (axis,), method.granularity, method.ranges, Codes(bits), method.rounding)
    scale = np.asarray(given.scale)
    if method.block:
        first = scale.reshape(kernel.shape[0], -1)[:, :: method.block]
        stored = first.astype(np.float32).view(np.uint32)
        # The kernels read 7 bits of mantissa: of the two nearest scales, the one that clips nothing
        stored = ((stored + 0xFFFF) & 0xFFFF0000).view(np.float32).astype(np.float64)
        scale = np.repeat(stored, method.block, axis=1)[:, : kernel[0].size].reshape(kernel.shape)
        found = Grid(scale, given.zero_point, given.codes)
        codes, bias = _rounded(kernel, found, operator, method, inputs, bias)
        return Stored(codes, np.where(stored > 0, stored, 1.0), bits, method.block, bias)
    if bias is not None and input_scale:
        least = np.abs(bias.astype(np.float64)) / (input_scale * _ROOM)
        least = (least.max() if scale.size == 1 else least).reshape(scale.shape)
        scale = np.where(scale > 0, np.maximum(scale, least), 0.0)
    found = Grid(scale, given.zero_point, given.codes)
    spare = _spare(scale)
    if bias is not None and input_scale:
        spare = max(spare, float(np.abs(bias).max()) / (input_scale * _ROOM))
    codes, bias = _rounded(kernel, found, operator, method, inputs, bias)
    return Stored(codes, np.where(scale > 0, scale, spare).ravel(), bits, bias=bias)


def _rounded(
    kernel: np.ndarray,
    grid: Grid,
    operator: str,
    method: Method,
    inputs: LayerInputs | None,
    bias: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the codes, and a new bias where the inputs ask for one."""
    if not method.needs_inputs or inputs is None:
        return quantize(kernel, grid, method.rounding), None
    groups = len(inputs.gram)
    scale, zero_point = (
        to_matrices(np.broadcast_to(array, kernel.shape), operator, groups)
        for array in (grid.scale, grid.zero_point)
    )
    matrices = to_matrices(kernel, operator, groups)
    about = inputs if bias is None else inputs.about_means()
    codes = quantize(matrices, Grid(scale, zero_point, grid.codes), method.rounding, about)
    if bias is not None:
        change = inputs.bias_change((codes - zero_point) * scale - matrices)
        bias = bias + change.reshape(bias.shape)
    return from_matrices(codes, operator, kernel.shape), bias


def stored_as_learned(kernel: np.ndarray, operator: str, scale: np.ndarray, bits: int) -> Stored:
    """Returns the integers of a kernel that lies on its grid already.

    `scale`: the simulation's, of the Keras kernel: one number or as many as output channels.
    """
    axis = KERNELS[operator].channels
    scale = np.ravel(np.asarray(scale, np.float64))
    shape = [-1 if place == axis and scale.size > 1 else 1 for place in range(kernel.ndim)]
    grid = Grid(scale.reshape(shape), np.array(0), Codes(bits))
    codes = grid.clip(np.rint(grid.steps(kernel)))
    return Stored(codes, np.where(scale > 0, scale, _spare(scale)), bits)


def _spare(scale: np.ndarray) -> float:
    """Returns a scale for channels of zeros, whose codes are 0 on any: one that biases can use."""
    living = scale[scale > 0]
    return float(living.max()) if living.size else 2.0**-7
