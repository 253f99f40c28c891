"""Which layers become several in an integer file, how, and what cannot be rewritten so."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from tfcompress.wrappers import (
    attention,
    contraction,
    functions,
    normalization,
    pooling3d,
    recurrent,
)
from tfcompress.wrappers.parts import Parts

_LAYERS = keras.layers


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """How a layer's call becomes several.

    apply: `(parts, layer, *args, **kwargs)` -> outputs in the new graph.
    reason: `(layer, *args, **kwargs)` -> why this call stays as it is, or None.
    wanted: `layer` -> whether this layer has to be rewritten at all.
    """

    apply: Callable[..., Any]
    reason: Callable[..., str | None] = lambda layer, *args, **kwargs: None
    wanted: Callable[[Any], bool] = lambda layer: True


def _einsum_dense(parts: Parts, owner: Any, x: Any) -> Any:
    y = contraction.einsum_dense(parts, owner, x, owner.name)
    return activate(parts, owner.activation, y, f"{owner.name}_activation", owner)


def _recurrent(parts: Parts, owner: Any, x: Any, *rest: Any, **kwargs: Any) -> Any:
    return recurrent.recurrent(parts, owner, activate, x)


def _bidirectional(parts: Parts, owner: Any, x: Any, *rest: Any, **kwargs: Any) -> Any:
    return recurrent.bidirectional(parts, owner, activate, x)


def _elu(parts: Parts, owner: Any, x: Any) -> Any:
    return functions.elu(x, float(owner.alpha))


def _center_crop(parts: Parts, owner: Any, x: Any) -> Any:
    top, left = (x.shape[1] - owner.height) // 2, (x.shape[2] - owner.width) // 2
    rest = (x.shape[1] - owner.height - top, x.shape[2] - owner.width - left)
    return _LAYERS.Cropping2D(((top, rest[0]), (left, rest[1])), name=owner.name)(x)


def _reason_of_center_crop(owner: Any, x: Any) -> str | None:
    larger = None in x.shape[1:] or x.shape[1] < owner.height or x.shape[2] < owner.width
    return "a crop that may have to enlarge its inputs is not simulated" if larger else None


def _scaled_sum(parts: Parts, owner: Any, tensors: Any) -> Any:
    # The converter would take out a factor of 1, and be left with two grids for one tensor.
    second = tensors[1] if owner.scale == 1 else tensors[1] * owner.scale
    return _LAYERS.Add(name=owner.name)([tensors[0], second])


def _relu_is_rewritten(owner: Any) -> bool:
    return bool(owner.negative_slope or owner.threshold) or owner.max_value not in (None, 6.0)


def _softmax_is_rewritten(owner: Any) -> bool:
    return owner.axis not in (-1, [-1], (-1,))


def _reason_of_softmax(owner: Any, *args: Any, **kwargs: Any) -> str | None:
    if isinstance(owner.axis, list | tuple) and len(owner.axis) > 1:
        return "softmax over several axes is not simulated"
    return "masks that come with the data are not simulated" if args[1:] or kwargs else None


_NORM = Rewrite(normalization.layer_norm, normalization.reason_of_layer_norm)
_RECURRENT = Rewrite(_recurrent, recurrent.reason_of_recurrent)
_POOLING = Rewrite(pooling3d.pooling, pooling3d.reason_of_pooling)
_REWRITES: dict[type, Rewrite] = {
    _LAYERS.EinsumDense: Rewrite(_einsum_dense, contraction.reason_of_einsum_dense),
    _LAYERS.Dot: Rewrite(contraction.dot, contraction.reason_of_dot),
    _LAYERS.LayerNormalization: _NORM,
    _LAYERS.RMSNormalization: dataclasses.replace(_NORM, apply=normalization.rms_norm),
    _LAYERS.UnitNormalization: Rewrite(normalization.unit_norm),
    _LAYERS.GroupNormalization: Rewrite(
        normalization.group_norm, normalization.reason_of_group_norm
    ),
    _LAYERS.Normalization: Rewrite(normalization.statistics, normalization.reason_of_statistics),
    _LAYERS.MultiHeadAttention: Rewrite(attention.multi_head, attention.reason_of_multi_head),
    _LAYERS.GroupQueryAttention: Rewrite(attention.multi_head, attention.reason_of_multi_head),
    _LAYERS.Attention: Rewrite(attention.attention, attention.reason_of_attention),
    _LAYERS.AdditiveAttention: Rewrite(attention.attention, attention.reason_of_attention),
    _LAYERS.RNN: _RECURRENT,
    _LAYERS.SimpleRNN: _RECURRENT,
    _LAYERS.LSTM: _RECURRENT,
    _LAYERS.GRU: _RECURRENT,
    _LAYERS.Bidirectional: Rewrite(_bidirectional, recurrent.reason_of_bidirectional),
    _LAYERS.MaxPooling3D: _POOLING,
    _LAYERS.AveragePooling3D: _POOLING,
    _LAYERS.CenterCrop: Rewrite(_center_crop, _reason_of_center_crop),
    _LAYERS.ELU: Rewrite(_elu),
    CustomScaleLayer: Rewrite(_scaled_sum),  # of Inception-ResNet; Keras does not export it
    _LAYERS.ReLU: Rewrite(
        lambda parts, owner, x: functions.relu(owner, x),
        lambda owner, x: functions.reason_of_relu(owner),
        _relu_is_rewritten,
    ),
    _LAYERS.Softmax: Rewrite(
        lambda parts, owner, x: functions.softmax(owner, x),
        _reason_of_softmax,
        _softmax_is_rewritten,
    ),
}


def rewrite_of(layer: Any) -> Rewrite | None:
    """Returns how the layer becomes several, None if it stays one."""
    if type(layer).__name__ == "LayerScale" and type(layer).__module__.startswith("keras."):
        return Rewrite(normalization.layer_scale)  # of ConvNeXt; Keras does not export it
    rewrite = _REWRITES.get(type(layer))
    return rewrite if rewrite is not None and rewrite.wanted(layer) else None


def activate(parts: Parts, function: Any, x: Any, name: str, owner: Any) -> Any:
    """Returns what the activation `function` of a layer makes of x."""
    if function is None or function is keras.activations.linear:
        return x
    steps = functions.decomposed(function)
    if steps is not None:
        return steps(x)
    policy = owner.dtype_policy
    layer = parts.once(name, lambda: _LAYERS.Activation(function, name=name, dtype=policy))
    return layer(x)
