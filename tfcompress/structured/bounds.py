"""What values the channels of a model can take on any input: intervals that flow through its graph.

Interval arithmetic in float64: each tensor has for each of its channels the least and the greatest
value that it can have, and a typical size. It is by these bounds that a ReLU never opens, that a
channel is constant, or that its effect drowns in float32's rounding.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import graph
from tfcompress.structured import contractions
from tfcompress.structured.fold import scale_and_offset
from tfcompress.structured.layers.convolution import channel_axis
from tfcompress.structured.layers.recurrent import GATES

layers = keras.layers
UNBOUNDED = 1e300  # not infinity: 0 times it is 0
# Behind a BatchNorm, in standard deviations: of the n values whose statistics it holds none lies
# further off than sqrt(n), and n is below 10**10 for the largest feature maps and batches.
DEVIATIONS = 1e5


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """Least, greatest and typical values: float64 arrays that broadcast to the tensor's shape
    without its batch; axes along which they are the same have size 1."""

    low: np.ndarray
    high: np.ndarray
    typical: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Bounds":
        return Bounds(*(function(array) for array in (self.low, self.high, self.typical)))

    def per_channel(self, axis: int = -1) -> "Bounds":
        """Returns the hull over all axes but one, as vectors."""
        arrays = [np.moveaxis(array, axis, -1) for array in (self.low, self.high, self.typical)]
        flat = [array.reshape(-1, array.shape[-1]) for array in arrays]
        return Bounds(flat[0].min(0), flat[1].max(0), flat[2].max(0))

    @property
    def middle(self) -> np.ndarray:
        return (self.low + self.high) / 2

    @property
    def half_width(self) -> np.ndarray:
        return (self.high - self.low) / 2


def unbounded(shape: Sequence[int | None]) -> Bounds:
    """Returns what is known of a tensor of which nothing is known; its typical size is 0, so that
    nothing drowns in it."""
    ones = np.ones([1] * (len(shape) - 1))
    return Bounds(-UNBOUNDED * ones, UNBOUNDED * ones, 0 * ones)


def _within(low: Any, high: Any, typical: Any) -> Bounds:
    low, high = (np.clip(array, -UNBOUNDED, UNBOUNDED) for array in (low, high))
    largest = np.maximum(np.abs(low), np.abs(high))
    return Bounds(low, high, np.minimum(np.broadcast_to(typical, largest.shape), largest))


Reader = Callable[[Any, str, Bounds], None]  # (layer, path, what enters it)


def flow(model: keras.Model, largest_input: float, read: Reader) -> None:
    """Calls `read` with what enters each layer that has weights to read channels with.

    Inputs are taken to lie in [-largest_input, largest_input], integers to be non-negative indices.
    """

    def call(node, path, args, kwargs):
        operation = node.operation
        given = keras.tree.flatten((args, kwargs))
        inputs = [x for x in given if isinstance(x, Bounds)]
        shapes = [tuple(x.shape) for x in node.input_tensors]
        here = f"{path}/{operation.name}".lstrip("/")
        if contractions.reads(operation) and inputs:
            read(operation, here, inputs[0])
        outputs = [_after(operation, inputs, given, shapes, tuple(x.shape)) for x in node.outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    def start(x):
        ones = np.ones([1] * (len(x.shape) - 2) + [x.shape[-1] or 1])
        return Bounds(-largest_input * ones, largest_input * ones, ones)

    graph.interpret(model, keras.tree.map_structure(start, graph.inputs_of(model)), call)


def _after(
    operation: Any,
    inputs: list[Bounds],
    given: list[Any],
    shapes: list[tuple[int | None, ...]],
    target: tuple[int | None, ...],
) -> Bounds:
    if contractions.reads(operation):
        return _activated(operation.activation, _contracted(operation, inputs[0], target))
    kind = type(operation)
    name = kind.__name__
    constants = [x for x in given if isinstance(x, int | float)]
    if graph.is_identity(operation):
        return inputs[0]
    if kind in _SAME and getattr(operation, "interpolation", "nearest") in _BETWEEN:
        return _everywhere(inputs[0])
    if kind in (layers.Activation, layers.ReLU) or name in _OPERATIONS:
        function = operation if kind is layers.ReLU else _function(operation)
        return _activated(function, inputs[0])
    if kind is layers.BatchNormalization:
        return _batch_normalized(operation, inputs[0], len(shapes[0]))
    if kind in (layers.DepthwiseConv1D, layers.DepthwiseConv2D):
        return _activated(operation.activation, _depthwise(operation, inputs[0]))
    if kind is layers.PReLU:
        return _prelu(operation, inputs[0])
    if name in _MERGING and len(inputs) + len(constants) == len(given):
        every = [_constant(x) if isinstance(x, int | float) else x for x in given]
        return _MERGING[name](every)
    if kind is layers.Concatenate or name == "Concatenate":
        return _concatenated(inputs, shapes, operation.axis)
    if kind in _POOLED and len(target) == len(shapes[0]):
        return _everywhere(inputs[0])
    if kind in _POOLED and operation.data_format == "channels_last":
        return inputs[0].per_channel(-1)
    if kind in _PADDED:
        x = _everywhere(inputs[0])
        return Bounds(np.minimum(x.low, 0), np.maximum(x.high, 0), x.typical)
    if kind in (layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector):
        return _moved(operation, inputs[0], shapes[0], target)
    if kind in GATES and _within_one(operation) and len(inputs) == 1:
        ones = np.ones([1] * (len(target) - 1))
        return Bounds(-ones, ones, ones)
    return unbounded(target)


def _everywhere(x: Bounds) -> Bounds:
    """Returns what holds at every position, for what moves or mixes positions."""
    shape = [1] * (x.low.ndim - 1) + [-1]
    return x.per_channel(-1).map(lambda a: a.reshape(shape))


def _within_one(layer: Any) -> bool:
    """Returns whether a recurrent layer's outputs are in [-1, 1]; an LSTM's inner state is not."""
    gate = getattr(layer, "recurrent_activation", keras.activations.sigmoid)
    return (
        layer.activation is keras.activations.tanh
        and gate in (keras.activations.sigmoid, keras.activations.hard_sigmoid)
        and not layer.return_state
    )


_SAME = (
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
)
_BETWEEN = ("nearest", "bilinear")  # the others overshoot: they weigh neighbours negatively
_PADDED = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
_POOLED = (
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
)


# Activations: those that never fall, and the steepest slope of those that do.
_RISING = """
    elu exponential hard_sigmoid hard_tanh leaky_relu linear log_sigmoid relu relu6 selu sigmoid
    softplus softsign tanh
"""
_RISES = {getattr(keras.activations, name) for name in _RISING.split()}
_STEEPEST = {"silu": 1.1, "gelu": 1.13, "mish": 1.09, "hard_silu": 1.5}
_OPERATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "silu",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
}


def _function(operation: Any) -> Any:
    name = _OPERATIONS.get(type(operation).__name__)
    return getattr(keras.activations, name) if name else operation.activation


def _activated(function: Any, x: Bounds) -> Bounds:
    if function is None or function is keras.activations.linear:
        return x

    def value(array):
        # Beyond that every activation has reached its end or is a straight line in float64, too.
        near = np.clip(array, -1e30, 1e30)
        y = np.asarray(keras.ops.convert_to_numpy(function(near.astype("float64"))), np.float64)
        return np.where(np.abs(y) >= 1e29, np.sign(y) * np.abs(array), y)

    name = getattr(function, "__name__", "")
    rising = function in _RISES or (type(function) is layers.ReLU and not function.negative_slope)
    if rising:
        return _within(value(x.low), value(x.high), x.typical)
    if name in _STEEPEST:
        # Near the middle by the slope, far from it by the ends and the lowest point of all four.
        reach = _STEEPEST[name] * x.half_width
        middle = value(x.middle)
        ends = value(x.low), value(x.high)
        low = np.maximum(middle - reach, np.minimum(np.minimum(*ends), -0.4))
        high = np.minimum(middle + reach, np.maximum(np.maximum(*ends), 0.0))
        return _within(low, high, x.typical)
    return Bounds(x.low * 0 - UNBOUNDED, x.high * 0 + UNBOUNDED, x.typical * 0)


def _prelu(layer: Any, x: Bounds) -> Bounds:
    slope = keras.ops.convert_to_numpy(layer.alpha).astype(np.float64)
    ends = [np.where(end > 0, end, slope * end) for end in (x.low, x.high)]
    turn = np.where((x.low < 0) & (x.high > 0), 0.0, ends[0])
    low = np.minimum(np.minimum(*ends), turn)
    return _within(low, np.maximum(np.maximum(*ends), turn), x.typical)


def _batch_normalized(norm: Any, x: Bounds, rank: int) -> Bounds:
    scale, offset = scale_and_offset(norm)
    variance = keras.ops.convert_to_numpy(norm.moving_variance).astype(np.float64)
    mean = keras.ops.convert_to_numpy(norm.moving_mean).astype(np.float64)
    deviation = np.abs(scale) * np.sqrt(variance)
    center = mean * scale + offset
    shape = np.ones(rank - 1, int)
    shape[norm.axis % rank - 1] = -1
    scale, offset, deviation, center = (
        array.reshape(shape) for array in (scale, offset, deviation, center)
    )
    ends = x.low * scale + offset, x.high * scale + offset
    # A variance of zero says that the channel was constant in training, not that it must be.
    reach = np.where(deviation > 0, DEVIATIONS * deviation, UNBOUNDED)
    low = np.maximum(np.minimum(*ends), center - reach)
    high = np.minimum(np.maximum(*ends), center + reach)
    # Statistics that contradict the weights bound nothing.
    wrong = low > high
    low, high = np.where(wrong, np.minimum(*ends), low), np.where(wrong, np.maximum(*ends), high)
    return _within(low, high, np.sqrt(deviation**2 + center**2))


def _contracted(layer: Any, x: Bounds, target: Sequence[int | None]) -> Bounds:
    """What a layer that adds up channels makes of them, before its activation."""
    found = contractions.of(layer)
    channels = x.per_channel(channel_axis(layer, len(target)) - 1 if found.spatial else -1)
    channels = channels.map(lambda a: np.broadcast_to(a, found.taps.shape[1]))
    low, high, square = np.zeros((3, found.taps.shape[2]))
    for columns, taps in found.blocks():
        for tap in taps:  # (inputs, outputs), one for each position of the kernel
            rising, falling = np.maximum(tap, 0), np.minimum(tap, 0)
            least = channels.low @ rising + channels.high @ falling
            most = channels.high @ rising + channels.low @ falling
            if found.padded:  # at the border this tap may meet zeros
                least, most = np.minimum(least, 0), np.maximum(most, 0)
            low[columns] += least
            high[columns] += most
            square[columns] += channels.typical**2 @ tap**2
    typical = np.sqrt(square + found.bias**2)
    shape = [1] * (len(target) - 1)
    shape[channel_axis(layer, len(target)) - 1 if found.spatial else -1] = -1
    return _within(low + found.bias, high + found.bias, typical).map(lambda a: a.reshape(shape))


def _depthwise(layer: Any, x: Bounds) -> Bounds:
    if layer.data_format != "channels_last":
        ones = np.ones([1] * (layer.rank + 1))
        return Bounds(-UNBOUNDED * ones, UNBOUNDED * ones, 0 * ones)
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype(np.float64)
    taps = kernel.reshape(-1, kernel.shape[-2], kernel.shape[-1])
    channels = x.per_channel()
    low, high = channels.low[:, None], channels.high[:, None]
    least, most = np.minimum(taps * low, taps * high), np.maximum(taps * low, taps * high)
    if layer.padding != "valid" and len(taps) > 1:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
    typical = np.sqrt((taps**2).sum(0)) * channels.typical[:, None]
    bias = contractions.value(layer.bias) if layer.use_bias else 0.0
    shape = [1] * layer.rank + [-1]
    ends = least.sum(0).reshape(-1) + bias, most.sum(0).reshape(-1) + bias
    return _within(*ends, np.hypot(typical.reshape(-1), bias)).map(lambda a: a.reshape(shape))


def _constant(value: float) -> Bounds:
    return Bounds(*(np.full((), end, float) for end in (value, value, abs(value))))


def _sum(parts: Sequence[Bounds]) -> Bounds:
    typical = np.sqrt(sum(x.typical**2 for x in parts))
    return _within(sum(x.low for x in parts), sum(x.high for x in parts), typical)


def _negated(x: Bounds) -> Bounds:
    return Bounds(-x.high, -x.low, x.typical)


def _difference(parts: Sequence[Bounds]) -> Bounds:
    return _sum([parts[0], _negated(parts[1])])


def _product(parts: Sequence[Bounds]) -> Bounds:
    found = parts[0]
    for x in parts[1:]:
        with np.errstate(over="ignore"):
            ends = [a * b for a in (found.low, found.high) for b in (x.low, x.high)]
        typical = found.typical * x.typical
        found = _within(np.minimum.reduce(ends), np.maximum.reduce(ends), typical)
    return found


def _mean(parts: Sequence[Bounds]) -> Bounds:
    return _sum(parts).map(lambda a: a / len(parts))


def _greatest(parts: Sequence[Bounds]) -> Bounds:
    low, high = (np.maximum.reduce([*ends]) for ends in _ends(parts))
    return _within(low, high, np.maximum.reduce([*_typical(parts)]))


def _least(parts: Sequence[Bounds]) -> Bounds:
    low, high = (np.minimum.reduce([*ends]) for ends in _ends(parts))
    return _within(low, high, np.maximum.reduce([*_typical(parts)]))


def _ends(parts: Sequence[Bounds]) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    lows = np.broadcast_arrays(*(x.low for x in parts))
    return iter(lows), iter(np.broadcast_arrays(*(x.high for x in parts)))


def _typical(parts: Sequence[Bounds]) -> Iterator[np.ndarray]:
    return iter(np.broadcast_arrays(*(x.typical for x in parts)))


_MERGING = {
    "Add": _sum,
    "Subtract": _difference,
    "Multiply": _product,
    "Average": _mean,
    "Maximum": _greatest,
    "Minimum": _least,
}


def _concatenated(
    parts: Sequence[Bounds], shapes: Sequence[tuple[int | None, ...]], axis: int
) -> Bounds:
    rank = len(shapes[0])
    axis = axis % rank - 1

    def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
        widened = []
        for array, shape in zip(arrays, shapes, strict=True):
            full = list(np.broadcast_shapes(*(np.delete(a.shape, axis).tolist() for a in arrays)))
            full.insert(axis, shape[axis + 1] or 1)
            widened.append(np.broadcast_to(array, full))
        return np.concatenate(widened, axis)

    return Bounds(
        joined([x.low for x in parts]),
        joined([x.high for x in parts]),
        joined([x.typical for x in parts]),
    )


def _moved(
    layer: Any, x: Bounds, shape: tuple[int | None, ...], target: tuple[int | None, ...]
) -> Bounds:
    if type(layer) is layers.Permute:
        return x.map(lambda a: a.transpose([axis - 1 for axis in layer.dims]))
    if type(layer) is layers.RepeatVector:
        return x.map(lambda a: a[None])
    source = [size for size in shape[1:] if size is not None]
    wanted = [size for size in target[1:] if size is not None]
    if len(source) < len(shape) - 1 or len(wanted) < len(target) - 1:
        return unbounded(target)
    if type(layer) is layers.Flatten and layer.data_format == "channels_first":
        return x.map(lambda a: np.moveaxis(np.broadcast_to(a, source), 0, -1).reshape(-1))
    return x.map(lambda a: np.broadcast_to(a, source).reshape(wanted))
