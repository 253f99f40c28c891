"""Activations that TFLite has no integer operator for, in operators that it has."""

from collections.abc import Callable
from typing import Any

import keras

from tfcompress.wrappers.operators import Clip

_LAYERS, _OPS = keras.layers, keras.ops


def _softplus(x: Any) -> Any:
    # Of exp(-|x|), in (0, 1], 256 codes suffice; of exp(x) they would not.
    return _OPS.relu(x) + _OPS.log(_OPS.exp(_OPS.abs(x) * -1.0) + 1.0)


def _log_sigmoid(x: Any) -> Any:
    return Clip(None, 0.0)(x) - _OPS.log(_OPS.exp(_OPS.abs(x) * -1.0) + 1.0)


def elu(x: Any, alpha: float = 1.0, factor: float = 1.0) -> Any:
    below = _OPS.exp(Clip(None, 0.0)(x)) - 1.0
    below = below if alpha * factor == 1.0 else below * (alpha * factor)
    return (_OPS.relu(x) if factor == 1.0 else _OPS.relu(x) * factor) + below


def _softsign(x: Any) -> Any:
    root = _OPS.rsqrt(_OPS.abs(x) + 1.0)
    return x * root * root


def _squareplus(x: Any) -> Any:
    square = x * x + 4.0
    return (x + square * _OPS.rsqrt(square)) * 0.5


def _glu(x: Any) -> Any:
    half = x.shape[-1] // 2
    return x[..., :half] * _OPS.sigmoid(x[..., half:])


def _sparse_plus(x: Any) -> Any:
    inner = Clip(0.0, 2.0)(x + 1.0)
    return inner * inner * 0.25 + _OPS.relu(x - 1.0)


def _silu(x: Any) -> Any:
    return x * _OPS.sigmoid(x)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "silu": _silu,
    "hard_sigmoid": lambda x: _LAYERS.ReLU(6.0, dtype=x.dtype)(x + 3.0) * (1.0 / 6.0),
    "elu": elu,
    "celu": elu,
    "selu": lambda x: elu(x, 1.6732632423543772, 1.0507009873554805),
    "exponential": _OPS.exp,
    "softplus": _softplus,
    "softsign": _softsign,
    "mish": lambda x: x * _OPS.tanh(_softplus(x)),
    "log_sigmoid": _log_sigmoid,
    "glu": _glu,
    "hard_tanh": lambda x: Clip(0.0, 2.0)(x + 1.0) - 1.0,
    "tanh_shrink": lambda x: x - _OPS.tanh(x),
    "soft_shrink": lambda x: _OPS.relu(x - 0.5) - _OPS.relu(x * -1.0 - 0.5),
    "squareplus": _squareplus,
    "sparse_plus": _sparse_plus,
}


def decomposed(function: Any) -> Callable[[Any], Any] | None:
    """Returns how Keras' activation is computed in integers, None if it is none of these."""
    name = getattr(function, "__name__", "")
    known = getattr(keras.activations, name, None) is function
    return FUNCTIONS.get(name) if known else None


def relu(operation: Any, x: Any) -> Any:
    """A ReLU layer with an upper bound other than 6, or with a slope."""
    if operation.negative_slope:
        slope = float(operation.negative_slope)
        return _LAYERS.LeakyReLU(slope, name=operation.name, dtype=operation.dtype_policy)(x)
    return Clip(0.0, float(operation.max_value), name=operation.name)(x)


def reason_of_relu(operation: Any) -> str | None:
    if operation.threshold:
        return "a ReLU with a threshold jumps there, which is not simulated"
    if operation.negative_slope and operation.max_value is not None:
        return "a ReLU with a slope and an upper bound is not simulated"
    return None


def softmax(operation: Any, x: Any) -> Any:
    """Softmax over one axis that is not the last."""
    (axis,) = operation.axis if isinstance(operation.axis, list | tuple) else [operation.axis]
    turned = _OPS.swapaxes(x, axis, -1)
    turned = _LAYERS.Softmax(name=operation.name, dtype=operation.dtype_policy)(turned)
    return _OPS.swapaxes(turned, axis, -1)
