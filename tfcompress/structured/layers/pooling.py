"""Layers that pool, pad, crop or resize positions: channels pass, positions do not."""

import keras

from tfcompress.structured.layers.convolution import channel_axis
from tfcompress.structured.trace import Axes, Call, Trace, describe, knows

layers = keras.layers


@knows(
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    layers.AdaptiveAveragePooling3D,
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    layers.AdaptiveMaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.CenterCrop,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.Resizing,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)
def over_positions(trace: Trace, call: Call) -> Axes:
    layer, x, shape = call.operation, call.inputs[0], call.outputs[0]
    first = getattr(layer, "data_format", None) == "channels_first"
    source = channel_axis(layer, x.rank) if first else x.rank - 1
    # A global pooling without keepdims leaves the batch and the channels.
    target = 1 if len(shape) < x.rank else source
    for axis, labels in enumerate(x.labels):
        if axis != source:
            trace.pin(labels, f"{describe(call)} moves over them")
    return Axes.on(shape, target, x.labels[source])
