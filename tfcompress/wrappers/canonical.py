"""A model rewritten into steps that TFLite computes in integers; exact in float."""

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from tfcompress import graph
from tfcompress.structured import fold_batch_norm
from tfcompress.structured.fold import normalizes_last_axis, scale_and_offset
from tfcompress.wrappers.quantized_layer import kind

_LAYERS = keras.layers
_FUSED = ("linear", "relu", "relu6")


def canonical(flat: keras.Model, skipped: Collection[str] = ()) -> keras.Model:
    """Returns the flat model in the steps of an integer file; the layers in `skipped` stay whole.

    BatchNorm is folded; one that no layer absorbs, and Rescaling, become a 1x1 depthwise
    convolution; a separable convolution becomes a depthwise and a pointwise one; an activation
    other than ReLU and ReLU6 becomes a layer of its own; silu becomes x * sigmoid(x), hard_sigmoid
    relu6(x + 3) / 6; sums and products of many become chains of two; a mean of layers a sum and a
    factor.
    """
    rewriting = _Rewriting(skipped)
    new = graph.rebuild(fold_batch_norm(flat), rewriting.call)
    for layer, weights in rewriting.weights:
        layer.set_weights(weights)
    return new


class _Rewriting:
    """Rewrites call by call; remembers the parts that shared layers were split into."""

    def __init__(self, skipped: Collection[str]):
        self.weights: list[tuple[Any, list[np.ndarray]]] = []
        self._skipped = skipped
        self._parts: dict[str, list[Any]] = {}

    def call(self, node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        operation = node.operation
        if operation.name in self._skipped or not isinstance(operation, _LAYERS.Layer):
            return copy(*args, **kwargs)
        x = args[0] if args else None
        if isinstance(operation, _LAYERS.BatchNormalization) and normalizes_last_axis(operation):
            return self._affine(operation, x, *scale_and_offset(operation))
        if type(operation) is _LAYERS.Rescaling:
            scale, offset = np.asarray(operation.scale), np.asarray(operation.offset)
            return self._affine(operation, x, scale, offset)
        if type(operation) in (_LAYERS.SeparableConv1D, _LAYERS.SeparableConv2D):
            return self._separable(operation, x)
        if kind(operation) is not None and hasattr(operation, "activation"):
            return self._kernel_layer(operation, copy, x)
        if type(operation) is _LAYERS.Activation:
            return self._activation(operation, copy, x)
        if type(operation) in (_LAYERS.Add, _LAYERS.Multiply, _LAYERS.Average):
            return _chain(operation, x)
        return copy(*args, **kwargs)

    def _once(self, name: str, make: Any) -> list[Any]:
        if name not in self._parts:
            self._parts[name] = make()
        return self._parts[name]

    def _affine(self, operation: Any, x: Any, scale: np.ndarray, offset: np.ndarray) -> Any:
        """x * scale + offset per channel, as depthwise convolution over images of width 1."""
        channels = x.shape[-1]
        name, trainable = operation.name, isinstance(operation, _LAYERS.BatchNormalization)

        def make() -> list[Any]:
            layer = _LAYERS.DepthwiseConv2D(
                1, name=name, trainable=trainable, dtype=operation.dtype_policy
            )
            kernel = np.broadcast_to(scale, channels).reshape(1, 1, channels, 1)
            self.weights.append((layer, [kernel, np.broadcast_to(offset, channels)]))
            return [layer]

        (layer,) = self._once(operation.name, make)
        if len(x.shape) == 4:
            return layer(x)
        inner = tuple(-1 if size is None else size for size in x.shape[1:])
        wide = (1,) * (3 - len(inner)) + inner if len(inner) < 4 else (-1, 1, channels)
        return _LAYERS.Reshape(inner)(layer(_LAYERS.Reshape(wide)(x)))

    def _separable(self, operation: Any, x: Any) -> Any:
        one = type(operation) is _LAYERS.SeparableConv1D
        config, name = operation.get_config(), operation.name

        def make() -> list[Any]:
            kernels = operation.get_weights()
            same = {key: config[key] for key in ("trainable", "dtype", "data_format")}
            depthwise = (_LAYERS.DepthwiseConv1D if one else _LAYERS.DepthwiseConv2D)(
                config["kernel_size"],
                strides=config["strides"],
                padding=config["padding"],
                depth_multiplier=config["depth_multiplier"],
                dilation_rate=config["dilation_rate"],
                depthwise_regularizer=config["depthwise_regularizer"],
                depthwise_constraint=config["depthwise_constraint"],
                use_bias=False,
                name=f"{name}_depthwise",
                **same,
            )
            pointwise = (_LAYERS.Conv1D if one else _LAYERS.Conv2D)(
                config["filters"],
                1,
                use_bias=config["use_bias"],
                activation=_fused(operation),
                kernel_regularizer=config["pointwise_regularizer"],
                kernel_constraint=config["pointwise_constraint"],
                bias_regularizer=config["bias_regularizer"],
                bias_constraint=config["bias_constraint"],
                name=name,
                **same,
            )
            self.weights += [(depthwise, kernels[:1]), (pointwise, kernels[1:])]
            return [depthwise, pointwise]

        depthwise, pointwise = self._once(operation.name, make)
        return self._after(operation, pointwise(depthwise(x)))

    def _kernel_layer(self, operation: Any, copy: Any, x: Any) -> Any:
        if _fused(operation) != "linear":
            return copy(x)

        def make() -> list[Any]:
            layer = graph.copy_operation(operation, activation="linear")
            self.weights.append((layer, operation.get_weights()))
            return [layer]

        (layer,) = self._once(operation.name, make)
        return self._after(operation, layer(x))

    def _after(self, operation: Any, x: Any) -> Any:
        """Applies the activation that does not stay in the layer."""
        if _fused(operation) != "linear" or operation.activation is keras.activations.linear:
            return x
        name = f"{operation.name}_activation"
        policy = operation.dtype_policy
        (layer,) = self._once(
            name, lambda: [_LAYERS.Activation(operation.activation, name=name, dtype=policy)]
        )
        return self._activation(layer, layer, x)

    def _activation(self, operation: Any, copy: Any, x: Any) -> Any:
        function, policy = operation.activation, operation.dtype_policy
        if function is keras.activations.silu:
            return _LAYERS.Multiply(dtype=policy)(
                [x, _LAYERS.Activation("sigmoid", dtype=policy)(x)]
            )
        if function is keras.activations.hard_sigmoid:
            return _LAYERS.ReLU(6.0, dtype=policy)(x + 3.0) * (1.0 / 6.0)
        return copy(x)


def _fused(operation: Any) -> str:
    """Returns the activation that stays in the layer."""
    name = getattr(operation.activation, "__name__", "")
    return name if name in _FUSED else "linear"


def _chain(operation: Any, tensors: Any) -> Any:
    policy = operation.dtype_policy
    pair = _LAYERS.Multiply if type(operation) is _LAYERS.Multiply else _LAYERS.Add
    result = tensors[0]
    for tensor in tensors[1:-1]:
        result = pair(dtype=policy)([result, tensor])
    # The last one bears the name, so that the model's outputs keep theirs.
    average = type(operation) is _LAYERS.Average
    result = pair(dtype=policy, name=None if average else operation.name)([result, tensors[-1]])
    return result * (1.0 / len(tensors)) if average else result
