"""How TFLite computes each kind of layer in integers, and which kinds it cannot."""

import enum
from typing import Any

import keras

from tfcompress import graph
from tfcompress.wrappers.quantized_layer import KeptFloat, QuantizedLayer, kind

_LAYERS = keras.layers


class Way(enum.Enum):
    """What becomes of the grid of an operation's inputs."""

    KERNEL = "int8 kernel, int32 bias; the output has a grid of its own"
    OWN = "the output has a grid of its own"
    RELU = "own grid; merges into the layer before it where that is its only reader"
    CONCATENATE = "one grid for the inputs and the output"
    SELECT = "the output takes values of the input, on its grid, largest values stay largest"
    MOVE = "the output takes values of the input, on its grid"
    AVERAGE = "computed between grid points, rounded back to the input's grid"
    FIXED = "the output has a grid that TFLite prescribes"
    IDENTITY = "nothing happens at inference"
    FLOAT = "computed in float"


_PROBABILITY = (0.0, 255.0 / 256.0)
_TANH = (-1.0, 127.0 / 128.0)
_ACTIVATIONS = {
    "relu": Way.RELU,
    "relu6": Way.RELU,
    "leaky_relu": Way.OWN,
    "gelu": Way.OWN,
    "hard_silu": Way.OWN,
    "sigmoid": Way.FIXED,
    "softmax": Way.FIXED,
    "tanh": Way.FIXED,
    "linear": Way.IDENTITY,
}
_BOUNDS = {"sigmoid": _PROBABILITY, "softmax": _PROBABILITY, "tanh": _TANH}
_WAYS: dict[type, Way] = {
    _LAYERS.Add: Way.OWN,
    _LAYERS.Subtract: Way.OWN,
    _LAYERS.Multiply: Way.OWN,
    _LAYERS.LeakyReLU: Way.OWN,
    _LAYERS.GlobalAveragePooling1D: Way.OWN,
    _LAYERS.GlobalAveragePooling2D: Way.OWN,
    _LAYERS.Concatenate: Way.CONCATENATE,
    _LAYERS.MaxPooling1D: Way.SELECT,
    _LAYERS.MaxPooling2D: Way.SELECT,
    _LAYERS.GlobalMaxPooling1D: Way.MOVE,
    _LAYERS.GlobalMaxPooling2D: Way.MOVE,
    _LAYERS.Flatten: Way.MOVE,
    _LAYERS.Reshape: Way.MOVE,
    _LAYERS.Permute: Way.MOVE,
    _LAYERS.ZeroPadding1D: Way.MOVE,
    _LAYERS.ZeroPadding2D: Way.MOVE,
    _LAYERS.Cropping1D: Way.MOVE,
    _LAYERS.Cropping2D: Way.MOVE,
    _LAYERS.UpSampling1D: Way.MOVE,
    _LAYERS.AveragePooling1D: Way.AVERAGE,
    _LAYERS.AveragePooling2D: Way.AVERAGE,
}
# Operations that keras.ops and Python's operators record in a functional model, by class name.
_OPERATIONS = {
    "Add": Way.OWN,
    "Subtract": Way.OWN,
    "Multiply": Way.OWN,
    "Relu": Way.RELU,
    "Relu6": Way.RELU,
    "Sigmoid": Way.FIXED,
    "Tanh": Way.FIXED,
    "Softmax": Way.FIXED,
    "Concatenate": Way.CONCATENATE,
    "Reshape": Way.MOVE,
    "Transpose": Way.MOVE,
    "Squeeze": Way.MOVE,
    "ExpandDims": Way.MOVE,
    "GetItem": Way.MOVE,
}


def way(node: Any) -> Way:
    """Returns how the integer file computes this call."""
    operation = node.operation
    if reason_for_float(node):
        return Way.FLOAT
    if graph.is_identity(operation):
        return Way.IDENTITY
    if isinstance(operation, QuantizedLayer) or kind(operation) is not None:
        return Way.KERNEL
    if not isinstance(operation, _LAYERS.Layer):
        return _OPERATIONS[type(operation).__name__]
    if isinstance(operation, _LAYERS.UpSampling2D):
        return Way.MOVE if operation.interpolation == "nearest" else Way.AVERAGE
    name = activation_name(operation)
    return _WAYS[type(operation)] if name is None else _ACTIVATIONS[name]


def fixed_bounds(operation: Any) -> tuple[float, float]:
    """Returns the range that TFLite prescribes for the output of a `Way.FIXED` operation."""
    return _BOUNDS[activation_name(operation) or type(operation).__name__.lower()]


def activation_name(operation: Any) -> str | None:
    """Returns the name of the function if the operation is a layer that applies just that."""
    if type(operation) is _LAYERS.Activation:
        return getattr(operation.activation, "__name__", "unnamed")
    if type(operation) is _LAYERS.Softmax:
        return "softmax" if operation.axis in (-1, [-1]) else "softmax over another axis"
    if type(operation) is _LAYERS.ReLU:
        if operation.negative_slope or operation.threshold:
            return "ReLU with slope or threshold"
        limits = {None: "relu", 6.0: "relu6"}
        return limits.get(operation.max_value, f"ReLU up to {operation.max_value}")
    return None


def reason_for_float(node: Any) -> str | None:
    """Returns why this call stays in float, or None if it is computed in integers."""
    operation = node.operation
    if isinstance(operation, KeptFloat):
        return operation.reason
    name = type(operation).__name__
    if isinstance(operation, QuantizedLayer) or graph.is_identity(operation):
        return None
    if getattr(operation, "data_format", None) == "channels_first":
        return "channels_first has no TFLite kernel"
    if not isinstance(operation, _LAYERS.Layer):
        return _reason_of_operation(node, name)
    if kind(operation) is not None:
        return _reason_of_kernel_layer(operation)
    activation = activation_name(operation)
    if activation is not None:
        known = activation in _ACTIVATIONS
        return None if known else f"the activation {activation} has no int8 kernel here"
    known = type(operation) in _WAYS or type(operation) is _LAYERS.UpSampling2D
    return None if known else f"layers of type {name} have no int8 kernel here"


def _reason_of_operation(node: Any, name: str) -> str | None:
    if name not in _OPERATIONS or not type(node.operation).__module__.startswith("keras."):
        return f"the operation {name} has no int8 kernel here"
    constants = [
        x
        for x in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        if not isinstance(x, keras.KerasTensor) and getattr(x, "ndim", 0) > 0
    ]
    if _OPERATIONS[name] is Way.OWN and constants:
        return f"the operation {name} with an array as constant is not simulated"
    return None


def _reason_of_kernel_layer(layer: Any) -> str | None:
    if layer.quantization_mode is not None or getattr(layer, "lora_enabled", False):
        return "the layer is quantized or adapted by Keras already"
    return None
