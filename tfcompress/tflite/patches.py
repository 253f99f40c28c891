"""A kernel of a `.tflite` file as matrices, and the inputs that these are multiplied with.

Every kernel is (groups, in, out) for the methods that choose its codes: a convolution's inputs are
cut into patches, so that outputs = patches @ matrix.
"""

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb

_ALL = slice(None)


def to_matrices(kernel: np.ndarray, operator: str, groups: int = 1) -> np.ndarray:
    """Returns the stored kernel as (groups, in, out)."""
    if operator == "DEPTHWISE_CONV_2D":  # (1, height, width, channels * multiplier)
        height, width, outputs = kernel.shape[1:]
        split = kernel.reshape(height * width, groups, outputs // groups)
        return np.moveaxis(split, 1, 0)
    rows = kernel.reshape(groups, kernel.shape[0] // groups, -1)  # (outputs, ..., inputs)
    return np.swapaxes(rows, 1, 2)


def from_matrices(matrices: np.ndarray, operator: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the kernel of the stored shape; the inverse of `to_matrices`."""
    if operator == "DEPTHWISE_CONV_2D":
        return np.moveaxis(matrices, 0, 1).reshape(shape)
    return np.swapaxes(matrices, 1, 2).reshape(shape)


def groups_of(model: schema.ModelT, operator: schema.OperatorT, inputs: int) -> int:
    """Returns into how many groups the operator's input channels fall; `inputs` is their number."""
    name = fb.operator_name(model, operator)
    tensors = model.subgraphs[0].tensors
    if name == "DEPTHWISE_CONV_2D":
        return inputs
    if name == "CONV_2D":
        return inputs // fb.shape(tensors[int(operator.inputs[1])])[3]
    return 1


def patches(
    values: np.ndarray,
    name: str,
    operator: schema.OperatorT,
    kernel: tuple[int, ...],
    groups: int,
    rows: np.ndarray | slice = _ALL,
) -> np.ndarray:
    """Returns what the kernel's matrices are multiplied with: (groups, samples, in).

    `values` are the operator's inputs, (1, height, width, channels) or (..., in) for
    FULLY_CONNECTED; `kernel` is the stored kernel's shape. `rows`: which samples, all those of an
    output channel being numbered in order; others are not cut out at all.
    """
    if name == "FULLY_CONNECTED":
        return values.reshape(1, -1, kernel[1])[:, rows]
    options = operator.builtinOptions
    high, wide = kernel[1], kernel[2]
    steps = (options.strideH, options.strideW)
    if name == "TRANSPOSE_CONV":
        cut = _transposed(values, (high, wide), steps, options.padding == schema.Padding.SAME)
    else:
        dilation = (options.dilationHFactor, options.dilationWFactor)
        same = options.padding == schema.Padding.SAME
        cut = _windows(_padded(values, (high, wide), steps, dilation, same), (high, wide), dilation)
        cut = cut[:, :: steps[0], :: steps[1]]
    # (1, rows, columns, high, wide, channels) -> (groups, samples, high * wide * channels)
    channels = cut.shape[-1] // groups
    chosen = np.unravel_index(np.arange(math.prod(cut.shape[:3]))[rows], cut.shape[:3])
    split = cut[chosen].reshape(-1, high * wide, groups, channels)
    return split.transpose(2, 0, 1, 3).reshape(groups, len(split), -1)


def _windows(values: np.ndarray, size: tuple[int, int], dilation: tuple[int, int]) -> np.ndarray:
    """Returns all windows: (batch, rows, columns, high, wide, channels)."""
    spans = [(length - 1) * gap + 1 for length, gap in zip(size, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(values, spans, axis=(1, 2))
    view = view[..., :: dilation[0], :: dilation[1]]
    return np.moveaxis(view, 3, -1)


def _padded(
    values: np.ndarray,
    size: tuple[int, int],
    steps: tuple[int, int],
    dilation: tuple[int, int],
    same: bool,
) -> np.ndarray:
    if not same:
        return values
    pads = [(0, 0)]
    for length, window, step, gap in zip(values.shape[1:3], size, steps, dilation, strict=True):
        span = (window - 1) * gap + 1
        total = max((math.ceil(length / step) - 1) * step + span - length, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(values, [*pads, (0, 0)])


def _transposed(
    values: np.ndarray, size: tuple[int, int], steps: tuple[int, int], same: bool
) -> np.ndarray:
    """Returns the windows of a transposed convolution: over the inputs with zeros in between."""
    shape = [1, *((n - 1) * s + 1 for n, s in zip(values.shape[1:3], steps, strict=True))]
    spread = np.zeros((*shape, values.shape[3]), values.dtype)
    spread[:, :: steps[0], :: steps[1]] = values
    pads = []
    for length, window, step in zip(values.shape[1:3], size, steps, strict=True):
        whole = (length - 1) * step + window  # of the outputs, before SAME crops them
        cropped = max(whole - length * step, 0) if same else 0
        missing = max(length * step - whole, 0) if same else 0
        first = cropped // 2
        pads.append((window - 1 - first, window - 1 - (cropped - first) + missing))
    padded = np.pad(spread, [(0, 0), *((max(a, 0), max(b, 0)) for a, b in pads), (0, 0)])
    # The kernel is stored as it scatters; as it gathers, it is turned by 180 degrees.
    return _windows(padded, size, (1, 1))[:, :, :, ::-1, ::-1]
