"""Normalization by the moments of each sample, in integer operators.

    y = (x - mean) * rsqrt(mean((x - mean)**2) + epsilon), then * gamma + beta per channel

Every intermediate result has a grid of its own: the factor of a sample has at most 256 values.
"""

from typing import Any

import keras
import numpy as np

from tfcompress.wrappers.parts import Parts, positive, product, resized, values

_OPS = keras.ops


def layer_norm(parts: Parts, owner: Any, x: Any) -> Any:
    axes = positive(owner.axis, len(x.shape))
    rms = getattr(owner, "rms_scaling", False)
    y = normalized(x, axes, owner.epsilon, center=not rms)
    gamma, beta = values(owner.gamma), None if rms else values(owner.beta)
    return _scaled(parts, owner, y, gamma, beta, axes)


def rms_norm(parts: Parts, owner: Any, x: Any) -> Any:
    axes = positive(owner.axis, len(x.shape))
    y = normalized(x, axes, owner.epsilon, center=False)
    return _scaled(parts, owner, y, values(owner.scale), None, axes)


def group_norm(parts: Parts, owner: Any, x: Any) -> Any:
    sizes, channels = x.shape[1:], x.shape[-1]
    groups = channels if owner.groups == -1 else owner.groups
    # Space becomes one axis: (batch, space, groups, channels of a group).
    y = resized(x, (product(sizes[:-1]), groups, channels // groups))
    y = resized(normalized(y, [1, 3], owner.epsilon), sizes)
    gamma, beta = values(owner.gamma), values(owner.beta)
    return _scaled(parts, owner, y, gamma, beta, [len(x.shape) - 1])


def unit_norm(parts: Parts, owner: Any, x: Any) -> Any:
    axes = positive(owner.axis, len(x.shape))
    squares = _OPS.sum(x * x, axis=axes, keepdims=True)
    return keras.layers.Multiply(name=owner.name, dtype=owner.dtype_policy)(
        [x, _OPS.rsqrt(squares)]
    )


def statistics(parts: Parts, owner: Any, x: Any) -> Any:
    """`keras.layers.Normalization`: a scale and an offset per channel, which do not train."""
    mean, deviation = values(owner.mean).ravel(), np.sqrt(values(owner.variance)).ravel()
    deviation = np.maximum(deviation, keras.backend.epsilon())
    scale, offset = (deviation, mean) if owner.invert else (1.0 / deviation, -mean / deviation)
    return parts.affine(owner, owner.name, x, scale, offset, trains=False)


def layer_scale(parts: Parts, owner: Any, x: Any) -> Any:
    """ConvNeXt's factor per channel."""
    return parts.affine(owner, owner.name, x, values(owner.gamma), None, trains=True)


def normalized(x: Any, axes: list[int], epsilon: float, center: bool = True) -> Any:
    """Returns x with mean 0 (if `center`) and mean square 1 over the axes."""
    y = x - _OPS.mean(x, axis=axes, keepdims=True) if center else x
    square = _OPS.mean(y * y, axis=axes, keepdims=True)
    return y * _OPS.rsqrt(square + epsilon)


def _scaled(parts: Parts, owner: Any, y: Any, gamma: Any, beta: Any, axes: list[int]) -> Any:
    if gamma is None and beta is None:
        return y
    shape = gamma.shape if gamma is not None else beta.shape
    gamma = np.ones(shape, np.float32) if gamma is None else gamma
    if len(axes) == 1:
        beta = None if beta is None else beta.ravel()
        return parts.affine(owner, owner.name, y, gamma.ravel(), beta, trains=True)
    kept = [size for axis, size in enumerate(y.shape) if 0 < axis < axes[0]]
    flat = resized(y, (*kept, product(shape)))
    beta = None if beta is None else beta.ravel()
    flat = parts.affine(owner, owner.name, flat, gamma.ravel(), beta, trains=True)
    return resized(flat, y.shape[1:])


def reason_of_layer_norm(owner: Any, x: Any) -> str | None:
    axes = positive(owner.axis, len(x.shape))
    if axes[0] == 0 or axes != list(range(axes[0], len(x.shape))):
        return "normalization over axes other than the last ones is not simulated"
    return None


def reason_of_group_norm(owner: Any, x: Any) -> str | None:
    if owner.axis not in (-1, len(x.shape) - 1):
        return "group normalization over another axis than the last is not simulated"
    return "the sizes of its inputs must be fixed" if None in x.shape[1:] else None


def reason_of_statistics(owner: Any, x: Any) -> str | None:
    # Given to the layer as numbers, they have no axis.
    if owner.axis not in (-1, (-1,), [-1], None, (), (len(x.shape) - 1,)):
        return "normalization with statistics over other axes than the last is not simulated"
    return None
