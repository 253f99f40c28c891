"""Normalization: per channel, over channels, and over groups of them; scales beside it."""

import keras
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from tfcompress.structured.layers.elementwise import broadcast
from tfcompress.structured.trace import Axes, Call, Labels, Trace, describe, knows

layers = keras.layers


@knows(layers.BatchNormalization)
def batch_normalization(trace: Trace, call: Call) -> Axes:
    layer, x = call.operation, call.inputs[0]
    for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        if variable is not None:
            trace.use(call, variable, 0, "each", x.labels[layer.axis])
    return x


@knows(layers.LayerNormalization, layers.RMSNormalization)
def layer_normalization(trace: Trace, call: Call) -> Axes:
    layer, x = call.operation, call.inputs[0]
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    scale = getattr(layer, "gamma", None)
    weights = [scale if scale is not None else getattr(layer, "scale", None)]
    weights.append(getattr(layer, "beta", None))
    for position, axis in enumerate(axes):
        for variable in weights:
            if isinstance(variable, keras.Variable):
                trace.use(call, variable, position, "each", x.labels[axis])
        trace.remark(
            x.labels[axis], f"{describe(call)} takes its statistics over those that remain"
        )
    return x


@knows(layers.GroupNormalization)
def group_normalization(trace: Trace, call: Call) -> Axes:
    """The channels of a group share their statistics: whole groups go, which is exact."""
    layer, (x,) = call.operation, call.inputs
    labels: Labels = x.labels[layer.axis]
    for variable in (layer.gamma, layer.beta):
        if variable is not None:
            trace.use(call, variable, 0, "each", labels)
    if labels is not None:
        groups = labels.reshape(layer.groups, -1)
        for column in range(1, groups.shape[1]):
            reason = f"a group of {describe(call)} shares its statistics with them"
            trace.tie(groups[:, 0], groups[:, column], reason)
        first = groups[:, 0]
        trace.edit(call, lambda config, size: {"groups": size(first)}, first)
    return x


@knows(LayerScale)
def layer_scale(trace: Trace, call: Call) -> Axes:
    """ConvNeXt's: one factor for each channel."""
    layer, (x,) = call.operation, call.inputs
    labels = trace.use(call, layer.gamma, 0, "each", x.labels[-1])
    if labels is not None:
        trace.edit(call, lambda config, size: {"projection_dim": size(labels)}, labels)
    return x


@knows(StochasticDepth)
def stochastic_depth(trace: Trace, call: Call) -> Axes:
    """ConvNeXt's: in training it drops whole branches, all channels alike."""
    return call.inputs[0]


@knows(CustomScaleLayer)
def scaled_sum(trace: Trace, call: Call) -> Axes | list[Axes]:
    """Inception-ResNet's: the sum of two tensors, one of them times a number."""
    return broadcast(trace, call, call.inputs)
