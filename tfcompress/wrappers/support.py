"""How TFLite computes each kind of layer in integers, and which kinds it cannot."""

import enum
import re
from typing import Any

import keras

from tfcompress import graph
from tfcompress.wrappers import operators
from tfcompress.wrappers.kernel_layers import kind
from tfcompress.wrappers.parts import given, masked
from tfcompress.wrappers.quantized_layer import KeptFloat, QuantizedLayer
from tfcompress.wrappers.rewrites import rewrite_of

_LAYERS = keras.layers


class Way(enum.Enum):
    """What becomes of the grid of an operation's inputs."""

    KERNEL = "int8 kernel, int32 bias; the output has a grid of its own"
    OWN = "the output has a grid of its own"
    RELU = "own grid; merges into the layer before it where that is its only reader"
    PRODUCT = "sums of products of two tensors; the output has a grid of its own"
    ROOT = "the inverse root, by the grid of the input; the output has a grid of its own"
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
    "log_softmax": Way.FIXED,
    "tanh": Way.FIXED,
    "linear": Way.IDENTITY,
}
_BOUNDS = {
    "sigmoid": _PROBABILITY,
    "softmax": _PROBABILITY,
    "log_softmax": (-255.0 / 16.0, 0.0),
    "tanh": _TANH,
    "zeros": _TANH,  # any that holds 0
}
_WAYS: dict[type, Way] = {
    _LAYERS.Add: Way.OWN,
    _LAYERS.Subtract: Way.OWN,
    _LAYERS.Multiply: Way.OWN,
    _LAYERS.LeakyReLU: Way.OWN,
    _LAYERS.GlobalAveragePooling1D: Way.OWN,
    _LAYERS.GlobalAveragePooling2D: Way.OWN,
    _LAYERS.GlobalAveragePooling3D: Way.OWN,
    _LAYERS.Embedding: Way.OWN,
    _LAYERS.Concatenate: Way.CONCATENATE,
    _LAYERS.Maximum: Way.CONCATENATE,
    _LAYERS.Minimum: Way.CONCATENATE,
    operators.CausalMask: Way.CONCATENATE,
    operators.Zeros: Way.FIXED,
    _LAYERS.MaxPooling1D: Way.SELECT,
    _LAYERS.MaxPooling2D: Way.SELECT,
    _LAYERS.GlobalMaxPooling1D: Way.MOVE,
    _LAYERS.GlobalMaxPooling2D: Way.MOVE,
    _LAYERS.GlobalMaxPooling3D: Way.MOVE,
    _LAYERS.RepeatVector: Way.MOVE,
    _LAYERS.Flatten: Way.MOVE,
    _LAYERS.Reshape: Way.MOVE,
    _LAYERS.Permute: Way.MOVE,
    _LAYERS.ZeroPadding1D: Way.MOVE,
    _LAYERS.ZeroPadding2D: Way.MOVE,
    _LAYERS.ZeroPadding3D: Way.MOVE,
    _LAYERS.Cropping1D: Way.MOVE,
    _LAYERS.Cropping2D: Way.MOVE,
    _LAYERS.Cropping3D: Way.MOVE,
    _LAYERS.UpSampling1D: Way.MOVE,
    _LAYERS.UpSampling3D: Way.MOVE,
    _LAYERS.AveragePooling1D: Way.AVERAGE,
    _LAYERS.AveragePooling2D: Way.AVERAGE,
}
# Operations that keras.ops and Python's operators record in a functional model, by class name.
_OPERATIONS = {
    "Add": Way.OWN,
    "Subtract": Way.OWN,
    "Multiply": Way.OWN,
    "Matmul": Way.PRODUCT,
    "Mean": Way.OWN,
    "Sum": Way.OWN,
    "Abs": Way.OWN,
    "Absolute": Way.OWN,
    "Exp": Way.OWN,
    "Log": Way.OWN,
    "Rsqrt": Way.ROOT,
    "Gelu": Way.OWN,
    "HardSilu": Way.OWN,
    "LeakyRelu": Way.OWN,
    "Relu": Way.RELU,
    "Relu6": Way.RELU,
    "Sigmoid": Way.FIXED,
    "Tanh": Way.FIXED,
    "Softmax": Way.FIXED,
    "LogSoftmax": Way.FIXED,
    "Concatenate": Way.CONCATENATE,
    "Stack": Way.CONCATENATE,
    "Maximum": Way.CONCATENATE,
    "Minimum": Way.CONCATENATE,
    "Max": Way.MOVE,
    "Swapaxes": Way.MOVE,
    "Moveaxis": Way.MOVE,
    "Flip": Way.MOVE,
    "Pad": Way.MOVE,
    "BroadcastTo": Way.MOVE,
    "Tile": Way.MOVE,
    "Split": Way.MOVE,
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
    if isinstance(operation, operators.Clip):
        return Way.RELU if operation.low == 0.0 else Way.AVERAGE
    if isinstance(operation, _LAYERS.UpSampling2D | _LAYERS.Resizing):
        return Way.MOVE if operation.interpolation == "nearest" else Way.AVERAGE
    name = activation_name(operation)
    return _WAYS[type(operation)] if name is None else _ACTIVATIONS[name]


def fixed_bounds(operation: Any) -> tuple[float, float]:
    """Returns the range that TFLite prescribes for the output of a `Way.FIXED` operation."""
    return _BOUNDS[function_name(operation)]


def function_name(operation: Any) -> str:
    """Returns the name of the function that a layer, or what keras.ops records, applies: its
    activation's, or that of its class, as `hard_silu` of HardSilu."""
    name = type(operation).__name__
    return activation_name(operation) or re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()


def activation_name(operation: Any) -> str | None:
    """Returns the name of the function if the operation is a layer that applies just that."""
    if type(operation) is _LAYERS.Activation:
        return getattr(operation.activation, "__name__", "unnamed")
    if type(operation) is _LAYERS.Softmax:
        return "softmax"
    if type(operation) is _LAYERS.ReLU:
        return "relu" if operation.max_value is None else "relu6"
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
    rewrite = rewrite_of(operation)
    if rewrite is not None:
        arguments = node.arguments
        return rewrite.reason(operation, *arguments.args, **given(arguments.kwargs))
    if kind(operation) is not None:
        return _reason_of_kernel_layer(operation)
    if isinstance(operation, operators.Operator):
        return None
    if type(operation) in _REASONS:
        return _REASONS[type(operation)](operation)
    activation = activation_name(operation)
    if activation is not None:
        known = activation in _ACTIVATIONS
        return None if known else f"the activation {activation} has no int8 kernel here"
    known = type(operation) in _WAYS or type(operation) is _LAYERS.UpSampling2D
    if known and masked(node.arguments.args) and type(operation) is _LAYERS.GlobalAveragePooling1D:
        return "masks that come with the data are not simulated"
    return None if known else f"layers of type {name} have no int8 kernel here"


def _reason_of_operation(node: Any, name: str) -> str | None:
    if name not in _OPERATIONS or not type(node.operation).__module__.startswith("keras."):
        return f"the operation {name} has no int8 kernel here"
    if name in ("Mean", "Sum", "Max") and _over_the_batch(node.operation.axis):
        return f"the operation {name} over the batch is not simulated"
    constants = [
        x
        for x in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        if not isinstance(x, keras.KerasTensor) and getattr(x, "ndim", 0) > 0
    ]
    if _OPERATIONS[name] is Way.OWN and constants:
        return f"the operation {name} with an array as constant is not simulated"
    return None


def _over_the_batch(axis: Any) -> bool:
    return axis is None or 0 in (axis if isinstance(axis, list | tuple) else [axis])


def _reason_of_resizing(layer: Any) -> str | None:
    if layer.interpolation not in ("nearest", "bilinear"):
        return f"resizing by {layer.interpolation} has no int8 kernel"
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or layer.antialias:
        return "resizing with a crop, a pad or antialiasing is not simulated"
    return None


_REASONS = {
    _LAYERS.Resizing: _reason_of_resizing,
    _LAYERS.Conv3D: lambda layer: "CONV_3D computes in float only: use Conv2D for each depth",
    _LAYERS.Conv3DTranspose: lambda layer: "CONV_3D_TRANSPOSE computes in float only",
    _LAYERS.SpectralNormalization: lambda layer: (
        "it changes its kernel as it trains: quantize the layer inside"
    ),
    _LAYERS.Masking: lambda layer: "masks that come with the data are not simulated",
}


def _reason_of_kernel_layer(layer: Any) -> str | None:
    if layer.quantization_mode is not None or getattr(layer, "lora_enabled", False):
        return "the layer is quantized or adapted by Keras already"
    return None
