"""Which weights scale with which channels, wherever what lies between is positively homogeneous.

A function f is positively homogeneous if f(s x) = s f(x) for every s > 0: then the weights that
make a channel can be divided by s and those that read it multiplied by s. Labels flow through the
graph as in `tfcompress.structured.trace`; here they stand for channels that must scale by one
factor. A depthwise convolution ends them and begins others: its kernel reads and makes channels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress import graph
from tfcompress.structured.layers.convolution import channel_axis
from tfcompress.structured.layers.dense import letters, plain_weights
from tfcompress.structured.trace import PINNED, Axes, Call, Trace, describe, pass_on

layers = keras.layers


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A weight that scales with channels: `labels` broadcast to its last one or two axes.

    `power` is 1 where its entries read the channel (they are multiplied by s), -1 where they make
    it (divided by s). `is_kernel`: it multiplies, so that its range counts; a bias only follows.
    """

    layer: keras.layers.Layer
    variable: keras.Variable
    labels: np.ndarray
    power: int
    is_kernel: bool


class Scaling(Trace):
    """What the walk has found: the parts, by variable and power, and why channels cannot scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled: dict[tuple[int, int], Part] = {}

    def add(self, call: Call, variable: Any, labels: np.ndarray, power: int) -> np.ndarray:
        """Records a weight; one that is shared ties the channels of all its places."""
        key = id(variable), power
        if key in self.scaled:
            first = self.scaled[key].labels
            self.tie(
                first.ravel(), labels.ravel(), f"{describe(call)} is shared with a fixed place"
            )
            return first
        is_kernel = len(variable.shape) > 1
        self.scaled[key] = Part(call.operation, variable, labels, power, is_kernel)
        return labels


def scaling(flat: keras.Model) -> Scaling:
    """Returns which weights of a flat functional model scale with which channels."""
    found = Scaling()

    def step(node, path, args, kwargs):
        operation = node.operation
        inputs = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Axes)]
        shapes = [tuple(x.shape) for x in node.outputs]
        call = Call(operation, operation.name, inputs, args, kwargs, shapes, node)
        outputs = _through(found, call)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    inputs = keras.tree.map_structure(lambda x: Axes.fixed(x.shape), graph.inputs_of(flat))
    for axes in keras.tree.flatten(graph.interpret(flat, inputs, step)):
        for labels in axes.labels:
            found.pin(labels, "it is an output of the model")
    return found


def _through(found: Scaling, call: Call) -> Axes | list[Axes]:
    kind = type(call.operation)
    if kind in _LINEAR:
        if not plain_weights(call.operation):
            return found.pin_all(call, f"{describe(call)} has quantized weights or LoRA factors")
        return _LINEAR[kind](found, call)
    if graph.is_identity(call.operation) or kind in _HOMOGENEOUS:
        return pass_on(found, call)
    if kind is layers.Multiply or kind.__name__ == "Multiply":
        return _product(found, call)
    reason = _bend(call.operation) if kind in (layers.Activation, layers.ReLU) else None
    if kind in (layers.Activation, layers.ReLU) and not reason:
        return call.inputs[0]
    if kind.__module__.startswith("keras.src.ops.") and _homogeneous_operation(call):
        return pass_on(found, call)
    if kind is layers.BatchNormalization:
        reason = "no neighbour can absorb it"
    reason = reason or "it is not positively homogeneous"
    return found.pin_all(call, f"{describe(call)}: {reason}")


def _bend(function: Any) -> str:
    """Returns why an activation is not positively homogeneous, "" if it is."""
    if type(function) is layers.Activation:
        function = function.activation
    if type(function) is layers.ReLU:
        if function.max_value is not None:
            return f"it clips at {float(function.max_value):g} (a plain ReLU would scale)"
        return "its threshold is not 0" if function.threshold else ""
    if function in _SCALES or type(function) is layers.LeakyReLU:
        return ""
    if function is keras.activations.relu6:
        return "relu6 clips at 6 (a plain ReLU would scale)"
    return f"{getattr(function, '__name__', type(function).__name__)} is not positively homogeneous"


_SCALES = {
    None,
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.leaky_relu,
}
_HOMOGENEOUS = {
    *(layers.LeakyReLU, layers.PReLU, layers.Flatten, layers.Reshape, layers.Permute),
    *(layers.RepeatVector, layers.Concatenate),
    *(layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalAveragePooling3D,),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
}
_MOVING = """
    Absolute Amax Amin Concatenate Copy ExpandDims Flip GetItem LeakyRelu Max Mean Min Moveaxis
    Negative Ravel Relu Repeat Reshape Split Squeeze Stack StopGradient Sum Swapaxes Tile Transpose
"""
_MERGING = {"Add", "Subtract", "Maximum", "Minimum"}
_DIVIDING = {"Divide", "TrueDivide"}


def _homogeneous_operation(call: Call) -> bool:
    name = type(call.operation).__name__
    constants = [
        np.asarray(x)
        for x in keras.tree.flatten((call.args, call.kwargs))
        if not isinstance(x, Axes | str | slice | type(None))
    ]
    zeros = all(not np.any(x) for x in constants)
    if name in _DIVIDING:
        dividend = call.args[0] if call.args else None
        return len(call.inputs) == 1 and isinstance(dividend, Axes)
    if name == "Pad":
        return call.operation.mode != "constant" or zeros
    return name in _MOVING.split() or (name in _MERGING and zeros)


def _product(found: Scaling, call: Call) -> Axes | list[Axes]:
    """A gate, or a constant, times what scales: the product scales with that."""
    moving = [x for x in call.inputs if any(labels is not None for labels in x.labels)]
    if len(moving) > 1:
        return found.pin_all(call, f"{describe(call)} multiplies channels that both scale")
    if not moving or moving[0].shape[1:] != call.outputs[0][1:]:
        return found.pin_all(call, f"{describe(call)} repeats them")
    return moving[0]


# Layers with kernels: they read channels and make new ones.


def _made(found: Scaling, call: Call, axis: int, labels: np.ndarray) -> Axes:
    """Returns the output of a layer with kernel, its bias following; other axes are fixed."""
    layer = call.operation
    if getattr(layer, "use_bias", False) or getattr(layer, "bias", None) is not None:
        found.add(call, layer.bias, labels, -1)
    reason = _bend(layer.activation) if hasattr(layer, "activation") else ""
    if reason:
        found.pin(labels, f"{describe(call)}: {reason}")
        return Axes.fixed(call.outputs[0])
    return Axes.on(call.outputs[0], axis, labels)


def _read(found: Scaling, call: Call, axis: int) -> np.ndarray:
    """Returns the labels that enter a layer along the axis that it adds up, PINNED if fixed."""
    (x,) = call.inputs
    for other, labels in enumerate(x.labels):
        if other != axis % x.rank:
            found.pin(labels, f"{describe(call)} has one bias for all of them")
    labels = x.labels[axis]
    return np.full(x.shape[axis] or 0, PINNED) if labels is None else labels


def _dense(found: Scaling, call: Call) -> Axes:
    kernel = call.operation.kernel
    found.add(call, kernel, _read(found, call, -1)[:, None], 1)
    made = found.add(call, kernel, found.new(kernel.shape[1])[None, :], -1)
    return _made(found, call, len(call.outputs[0]) - 1, made[0])


def _einsum_dense(found: Scaling, call: Call) -> Axes | list[Axes]:
    source, kernel, target = letters(call.operation.equation, call.inputs[0].rank)
    as_dense = len(kernel) == 2 and source[-1] == kernel[0] and target == source[:-1] + kernel[1]
    if not as_dense or len(call.operation.bias_axes or "") > 1:
        return found.pin_all(call, f"{describe(call)} is not a Dense layer's equation")
    return _dense(found, call)


def _embedding(found: Scaling, call: Call) -> Axes:
    table = call.operation.embeddings
    made = found.add(call, table, found.new(table.shape[1])[None, :], -1)
    return Axes.on(call.outputs[0], len(call.outputs[0]) - 1, made[0])


def _convolution(found: Scaling, call: Call) -> Axes:
    layer, x = call.operation, call.inputs[0]
    axis = channel_axis(layer, x.rank)
    read = _read(found, call, axis).reshape(layer.groups, -1)
    # Output channel f reads the inputs of its own group only.
    of_filter = np.arange(layer.filters) // (layer.filters // layer.groups)
    columns = read.T if layer.groups == 1 else read[of_filter].T
    found.add(call, layer.kernel, columns, 1)
    made = found.add(call, layer.kernel, found.new(layer.filters)[None, :], -1)
    return _made(found, call, axis, made[0])


def _transposed(found: Scaling, call: Call) -> Axes:
    layer, x = call.operation, call.inputs[0]
    axis = channel_axis(layer, x.rank)
    found.add(call, layer.kernel, _read(found, call, axis)[None, :], 1)
    made = found.add(call, layer.kernel, found.new(layer.filters)[:, None], -1)
    return _made(found, call, axis, made[:, 0])


def _depthwise(found: Scaling, call: Call) -> Axes:
    layer, x = call.operation, call.inputs[0]
    axis = channel_axis(layer, x.rank)
    made = _each(found, call, layer.kernel, _read(found, call, axis))
    return _made(found, call, axis, made)


def _separable(found: Scaling, call: Call) -> Axes:
    layer, x = call.operation, call.inputs[0]
    axis = channel_axis(layer, x.rank)
    inner = _each(found, call, layer.depthwise_kernel, _read(found, call, axis))
    found.add(call, layer.pointwise_kernel, inner[:, None], 1)
    made = found.add(call, layer.pointwise_kernel, found.new(layer.filters)[None, :], -1)
    return _made(found, call, axis, made[0])


def _each(found: Scaling, call: Call, kernel: Any, read: np.ndarray) -> np.ndarray:
    """A depthwise kernel (..., inputs, multiplier) reads each channel and makes some of it."""
    found.add(call, kernel, read[:, None], 1)
    inputs, multiplier = kernel.shape[-2:]
    made = found.new(inputs * multiplier).reshape(inputs, multiplier)
    return found.add(call, kernel, made, -1).reshape(-1)


_LINEAR: dict[type, Callable[[Scaling, Call], Axes | list[Axes]]] = {
    layers.Dense: _dense,
    layers.EinsumDense: _einsum_dense,
    layers.Embedding: _embedding,
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _convolution),
    **dict.fromkeys(
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _transposed
    ),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
}
