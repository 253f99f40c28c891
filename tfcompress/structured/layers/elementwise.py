"""Layers that treat every value alike, and the ones that merge tensors value by value."""

from typing import Any

import keras
import numpy as np

from tfcompress.structured.trace import PINNED, Axes, Call, Labels, Trace, describe, knows

layers = keras.layers

_FUNCTIONS = """
    celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear
    log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink softplus softsign sparse_plus
    squareplus tanh tanh_shrink threshold
"""
ELEMENTWISE = {getattr(keras.activations, name) for name in _FUNCTIONS.split()}

_LAYERS = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.ELU,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.LeakyReLU,
    layers.ReLU,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
# What augments images moves or erases whole positions, all channels alike.
_AUGMENTATION = (
    layers.RandomCrop,
    layers.RandomElasticTransform,
    layers.RandomErasing,
    layers.RandomFlip,
    layers.RandomPerspective,
    layers.RandomRotation,
    layers.RandomShear,
    layers.RandomTranslation,
    layers.RandomZoom,
)


@knows(*_LAYERS, *_AUGMENTATION)
def elementwise(trace: Trace, call: Call) -> Axes:
    (x,), shape = call.inputs, call.outputs[0]
    for axis, labels in enumerate(x.labels):
        if shape[axis] != x.shape[axis]:
            trace.pin(labels, f"{describe(call)} changes their number")
            x = x.having(axis, None)
    noise = getattr(call.operation, "noise_shape", None) or ()
    for labels, size in zip(x.labels, noise, strict=False):
        if size not in (None, 1):
            trace.pin(labels, f"{describe(call)} has a noise_shape for their number")
    return Axes(shape, x.labels)


@knows(layers.Rescaling, layers.Normalization)
def rescaling(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer = call.operation
    if type(layer) is layers.Rescaling and np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return elementwise(trace, call)
    return trace.pin_all(call, f"{describe(call)} holds a constant for each of them")


@knows(layers.Activation)
def activation(trace: Trace, call: Call) -> Axes | list[Axes]:
    return after_activation(trace, call, call.inputs[0])


@knows(layers.Softmax)
def softmax(trace: Trace, call: Call) -> Axes | list[Axes]:
    axis = call.operation.axis
    return normalized_along(trace, call, axis if isinstance(axis, list | tuple) else [axis])


def normalized_along(trace: Trace, call: Call, axes: Any) -> Axes:
    """The values along these axes share one sum: none of them can go alone."""
    x = call.inputs[0]
    for axis in axes:
        trace.pin(x.labels[axis], f"{describe(call)} shares its sum among them")
        x = x.having(axis, None)
    return x


def after_activation(trace: Trace, call: Call, x: Axes) -> Axes | list[Axes]:
    """Returns what the layer's activation leaves of the labels: all, if it is elementwise."""
    function = call.operation.activation
    if function is None or function in ELEMENTWISE or isinstance(function, _LAYERS):
        return x
    if function is keras.activations.softmax or function is keras.activations.log_softmax:
        trace.pin(x.labels[-1], f"the softmax of {describe(call)} shares its sum among them")
        return x.having(-1, None)
    for labels in x.labels:
        trace.pin(labels, f"the activation of {describe(call)} may mix them")
    return Axes.fixed(x.shape)


@knows(layers.PReLU)
def prelu(trace: Trace, call: Call) -> Axes:
    layer, (x,) = call.operation, call.inputs
    shared = layer.shared_axes or []
    labels = list(x.labels)
    for axis in range(1, x.rank):
        if axis not in shared:
            labels[axis] = trace.use(call, layer.alpha, axis - 1, "each", labels[axis])
    return Axes(x.shape, tuple(labels))


@knows(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
def merge(trace: Trace, call: Call) -> Axes | list[Axes]:
    if len({x.rank for x in call.inputs}) > 1:
        return trace.pin_all(call, f"{describe(call)} merges tensors of different ranks")
    return broadcast(trace, call, call.inputs)


def broadcast(trace: Trace, call: Call, inputs: list[Axes]) -> Axes:
    """Returns the axes of tensors merged value by value, those of size 1 being repeated."""
    shape = call.outputs[0]
    labels: list[Labels] = []
    for axis in range(-len(shape), 0):
        own = [(x.shape[axis], x.labels[axis]) for x in inputs if x.rank >= -axis]
        wide = [label for size, label in own if size != 1]
        merged = wide[0] if wide else None
        for other in wide[1:]:
            merged = trace.tie(merged, other, f"{describe(call)} adds to them what must stay")
        for size, label in own:
            if size == 1:
                trace.pin(label, f"{describe(call)} repeats it")
        labels.append(merged)
    return Axes(shape, tuple(labels))


@knows(layers.Concatenate)
def concatenate(trace: Trace, call: Call) -> Axes:
    return joined(trace, call, call.operation.axis)


def joined(trace: Trace, call: Call, axis: int) -> Axes:
    """Returns the axes of tensors put one after the other: each part keeps its own labels."""
    shape, first = call.outputs[0], call.inputs[0]
    axis %= len(shape)
    labels = list(first.labels)
    for x in call.inputs[1:]:
        for other in set(range(len(shape))) - {axis}:
            reason = f"{describe(call)} puts them beside what must stay"
            labels[other] = trace.tie(labels[other], x.labels[other], reason)
    parts = [x.labels[axis] for x in call.inputs]
    if any(part is not None for part in parts):
        filled = [
            np.full(x.shape[axis] or 0, PINNED) if part is None else part
            for x, part in zip(call.inputs, parts, strict=True)
        ]
        labels[axis] = np.concatenate(filled)
    else:
        labels[axis] = None
    return Axes(shape, tuple(labels))
