"""Convolutions: plain, grouped, transposed, depthwise and separable, in one to three dimensions."""

from collections.abc import Sequence

import keras
import numpy as np

from tfcompress.structured.layers.dense import plain_weights
from tfcompress.structured.layers.elementwise import after_activation
from tfcompress.structured.trace import Axes, Call, Labels, Trace, describe, knows

layers = keras.layers


def channel_axis(layer: keras.layers.Layer, rank: int) -> int:
    """Returns the axis of a tensor's channels, in the layer's data format."""
    return 1 if layer.data_format == "channels_first" else rank - 1


def positions(layer: keras.layers.Layer, shape: Sequence[int | None]) -> list[int | None]:
    """Returns the sizes of a tensor's positions: its shape without batch and channels."""
    channels = channel_axis(layer, len(shape))
    return [size for axis, size in enumerate(shape) if axis not in (0, channels)]


def _result(trace: Trace, call: Call, labels: Labels) -> Axes | list[Axes]:
    (x,), shape = call.inputs, call.outputs[0]
    axis = channel_axis(call.operation, x.rank)
    for other, mixed in enumerate(x.labels):
        if other != axis:
            trace.pin(mixed, f"{describe(call)} slides along them")
    return after_activation(trace, call, Axes.on(shape, axis, labels))


@knows(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x,) = call.operation, call.inputs
    if not plain_weights(layer):
        return trace.pin_all(call, f"{describe(call)} has quantized weights or LoRA factors")
    labels = x.labels[channel_axis(layer, x.rank)]
    filters, groups = trace.new(layer.filters), layer.groups
    if groups > 1 and layer.kernel.shape[-2] == 1:
        return _one_input_per_group(trace, call, labels)
    if groups > 1:
        # One column of the kernel serves the same input of every group, and all groups are
        # equally wide: the i-th channels of all groups stand and fall together.
        reason = f"the groups of {describe(call)} must stay equally wide"
        for other in range(1, groups):
            if labels is not None:
                first, later = labels.reshape(groups, -1)[[0, other]]
                trace.tie(first, later, reason)
            first, later = filters.reshape(groups, -1)[[0, other]]
            trace.tie(first, later, reason)
        labels = None if labels is None else labels.reshape(groups, -1)[0]
    trace.use(call, layer.kernel, -2, "in", labels)
    filters = trace.use(call, layer.kernel, -1, "out", filters)
    if layer.use_bias:
        trace.use(call, layer.bias, 0, "out", filters)
    trace.edit(call, lambda config, size: {"filters": size(filters)}, filters)
    trace.multiply(layer.kernel, positions(layer, call.outputs[0]))
    return _result(trace, call, filters)


def _one_input_per_group(trace: Trace, call: Call, labels: Labels) -> Axes | list[Axes]:
    """A grouped convolution that is a depthwise one: whole groups can go."""
    layer = call.operation
    if labels is None:
        labels = np.zeros(layer.groups, int)
    filters = np.repeat(labels, layer.filters // layer.groups)
    filters = trace.use(call, layer.kernel, -1, "each", filters)
    if layer.use_bias:
        trace.use(call, layer.bias, 0, "each", filters)

    def edit(config, size):
        return {"filters": size(filters), "groups": size(labels)}

    trace.edit(call, edit, filters, labels)
    trace.multiply(layer.kernel, positions(layer, call.outputs[0]))
    return _result(trace, call, filters)


@knows(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x,) = call.operation, call.inputs
    if not plain_weights(layer):
        return trace.pin_all(call, f"{describe(call)} has quantized weights or LoRA factors")
    trace.use(call, layer.kernel, -1, "in", x.labels[channel_axis(layer, x.rank)])
    filters = trace.use(call, layer.kernel, -2, "out", trace.new(layer.filters))
    if layer.use_bias:
        trace.use(call, layer.bias, 0, "out", filters)
    trace.edit(call, lambda config, size: {"filters": size(filters)}, filters)
    trace.multiply(layer.kernel, positions(layer, x.shape))
    return _result(trace, call, filters)


@knows(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x,) = call.operation, call.inputs
    labels = x.labels[channel_axis(layer, x.rank)]
    labels = trace.use(call, layer.kernel, -2, "each", labels)
    if labels is not None:
        labels = np.repeat(labels, layer.depth_multiplier)
    if layer.use_bias:
        trace.use(call, layer.bias, 0, "each", labels)
    trace.multiply(layer.kernel, positions(layer, call.outputs[0]))
    return _result(trace, call, labels)


@knows(layers.SeparableConv1D, layers.SeparableConv2D)
def separable(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x,) = call.operation, call.inputs
    labels = x.labels[channel_axis(layer, x.rank)]
    trace.use(call, layer.depthwise_kernel, -2, "each", labels)
    if labels is not None:
        labels = np.repeat(labels, layer.depth_multiplier)
    trace.use(call, layer.pointwise_kernel, -2, "in", labels)
    filters = trace.use(call, layer.pointwise_kernel, -1, "out", trace.new(layer.filters))
    if layer.use_bias:
        trace.use(call, layer.bias, 0, "out", filters)
    trace.edit(call, lambda config, size: {"filters": size(filters)}, filters)
    for kernel in (layer.depthwise_kernel, layer.pointwise_kernel):
        trace.multiply(kernel, positions(layer, call.outputs[0]))
    return _result(trace, call, filters)
