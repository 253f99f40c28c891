"""A model rewritten into steps that TFLite computes in integers; exact in float."""

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from tfcompress import graph, pooling
from tfcompress.structured import fold_batch_norm
from tfcompress.structured.fold import normalizes_last_axis, scale_and_offset
from tfcompress.wrappers.functions import FUNCTIONS, decomposed, elu
from tfcompress.wrappers.kernel_layers import kind
from tfcompress.wrappers.parts import Parts, common, given
from tfcompress.wrappers.quantized_layer import built_copy
from tfcompress.wrappers.rewrites import activate, rewrite_of

_LAYERS, _OPS = keras.layers, keras.ops
_FUSED = ("linear", "relu")
_CHAINED = (_LAYERS.Add, _LAYERS.Multiply, _LAYERS.Average, _LAYERS.Maximum, _LAYERS.Minimum)
# What keras.ops records under these class names; all but the first have no arguments.
_OPERATIONS = {
    "Elu": lambda operation, x: elu(x, float(operation.alpha)),
    "HardSigmoid": lambda operation, x: FUNCTIONS["hard_sigmoid"](x),
    "LogSigmoid": lambda operation, x: FUNCTIONS["log_sigmoid"](x),
    "Selu": lambda operation, x: FUNCTIONS["selu"](x),
    "Silu": lambda operation, x: FUNCTIONS["silu"](x),
    "Softplus": lambda operation, x: FUNCTIONS["softplus"](x),
    "Softsign": lambda operation, x: FUNCTIONS["softsign"](x),
    "Negative": lambda operation, x: x * -1.0,
    "Square": lambda operation, x: x * x,
}


def canonical(flat: keras.Model, skipped: Collection[str] = ()) -> tuple[keras.Model, set[str]]:
    """Returns the flat model in the steps of an integer file; the layers in `skipped` stay whole.

    The second result names the layers whose outputs have one range over all their calls: the parts
    of unrolled recurrent layers.

    BatchNorm is folded; one that no layer absorbs, and Rescaling, become a 1x1 depthwise
    convolution; a separable convolution becomes a depthwise and a pointwise one; an activation
    other than ReLU becomes a layer of its own; sums, products and maxima of many become
    chains of two; a mean of layers a sum and a factor; average pooling over a whole map a mean.
    Normalization, attention, recurrent layers and activations without an operator of their own
    become what `rewrites` says.
    """
    rewriting = _Rewriting(skipped)
    new = graph.rebuild(fold_batch_norm(flat), rewriting.call)
    for layer, weights in rewriting.parts.weights:
        layer.set_weights(weights)
    return new, rewriting.parts.one_range


class _Rewriting:
    """Rewrites call by call."""

    def __init__(self, skipped: Collection[str]):
        self.parts = Parts()
        self._skipped = skipped

    def call(self, node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        operation = node.operation
        if operation.name in self._skipped:
            return copy(*args, **kwargs)
        mean = pooling.as_mean(node)
        if mean is not None:
            return mean(*args, **kwargs)
        if not isinstance(operation, _LAYERS.Layer):
            return _operation(operation, copy, *args, **kwargs)
        return self._layer(operation, copy, *args, **kwargs)

    def _layer(self, operation: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        rewrite = rewrite_of(operation)
        if rewrite is not None:
            arguments = given(kwargs)
            if rewrite.reason(operation, *args, **arguments) is not None:
                return copy(*args, **kwargs)
            return rewrite.apply(self.parts, operation, *args, **arguments)
        x = args[0] if args else None
        if isinstance(operation, _LAYERS.BatchNormalization) and normalizes_last_axis(operation):
            scale, offset = scale_and_offset(operation)
            return self.parts.affine(operation, operation.name, x, scale, offset, trains=True)
        if type(operation) is _LAYERS.Rescaling:
            scale, offset = np.asarray(operation.scale), np.asarray(operation.offset)
            return self.parts.affine(operation, operation.name, x, scale, offset, trains=False)
        if type(operation) in (_LAYERS.SeparableConv1D, _LAYERS.SeparableConv2D):
            return self._separable(operation, x)
        if type(operation) is _LAYERS.TimeDistributed:
            return self._time_distributed(operation, copy, x, kwargs)
        if kind(operation) is not None and hasattr(operation, "activation"):
            return self._kernel_layer(operation, copy, x)
        if type(operation) is _LAYERS.Activation:
            return _activation(operation, copy, x)
        if type(operation) in _CHAINED:
            return _chain(operation, x)
        return copy(*args, **kwargs)

    def _separable(self, operation: Any, x: Any) -> Any:
        one = type(operation) is _LAYERS.SeparableConv1D
        config, name = operation.get_config(), operation.name
        kernels = operation.get_weights()
        same = common(operation) | {"data_format": config["data_format"]}
        depthwise = self.parts.once(
            f"{name}_depthwise",
            lambda: (_LAYERS.DepthwiseConv1D if one else _LAYERS.DepthwiseConv2D)(
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
            ),
            kernels[:1],
        )
        pointwise = self.parts.once(
            name,
            lambda: (_LAYERS.Conv1D if one else _LAYERS.Conv2D)(
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
            ),
            kernels[1:],
        )
        return self._after(operation, pointwise(depthwise(x)))

    def _time_distributed(self, operation: Any, copy: Any, x: Any, kwargs: Any) -> Any:
        """Has the layer inside compute all steps of all samples as one batch."""
        inner = operation.layer
        if isinstance(inner, keras.Model) or None in x.shape[1:]:
            return copy(x, **kwargs)
        name = f"{operation.name}_{inner.name}"
        layer = self.parts.once(name, lambda: built_copy(inner, name=name))
        y = self._layer(layer, layer, _OPS.reshape(x, (-1, *x.shape[2:])))
        return _OPS.reshape(y, (-1, x.shape[1], *y.shape[1:]))

    def _kernel_layer(self, operation: Any, copy: Any, x: Any) -> Any:
        if _fused(operation) != "linear":
            return copy(x)
        layer = self.parts.once(
            f"{operation.name}_linear",
            lambda: graph.copy_operation(operation, activation="linear"),
            operation.get_weights(),
        )
        return self._after(operation, layer(x))

    def _after(self, operation: Any, x: Any) -> Any:
        """Applies the activation that does not stay in the layer."""
        if _fused(operation) != "linear":
            return x
        name = f"{operation.name}_activation"
        return activate(self.parts, operation.activation, x, name, operation)


def _activation(operation: Any, copy: Any, x: Any) -> Any:
    steps = decomposed(operation.activation)
    return copy(x) if steps is None else steps(x)


def _operation(operation: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
    name = type(operation).__name__
    if not type(operation).__module__.startswith("keras."):
        return copy(*args, **kwargs)
    if name in _OPERATIONS:
        return _OPERATIONS[name](operation, args[0])
    if name in ("Divide", "TrueDivide") and not isinstance(args[1], keras.KerasTensor):
        return args[0] * (1.0 / args[1])
    return copy(*args, **kwargs)


def _fused(operation: Any) -> str:
    """Returns the activation that stays in the layer."""
    name = getattr(operation.activation, "__name__", "")
    return name if name in _FUSED else "linear"


def _chain(operation: Any, tensors: Any) -> Any:
    policy = operation.dtype_policy
    average = type(operation) is _LAYERS.Average
    pair = _LAYERS.Add if average else type(operation)
    result = tensors[0]
    for tensor in tensors[1:-1]:
        result = pair(dtype=policy)([result, tensor])
    # The last one bears the name, so that the model's outputs keep theirs.
    result = pair(dtype=policy, name=None if average else operation.name)([result, tensors[-1]])
    return result * (1.0 / len(tensors)) if average else result
