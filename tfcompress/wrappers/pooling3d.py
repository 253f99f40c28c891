"""Pooling of volumes: over height and width first, then over depth, each in two dimensions."""

from typing import Any

import keras

from tfcompress.wrappers.parts import Parts

_LAYERS, _OPS = keras.layers, keras.ops


def pooling(parts: Parts, owner: Any, x: Any) -> Any:
    """MaxPooling3D and AveragePooling3D."""
    kind = _LAYERS.MaxPooling2D
    if type(owner) is _LAYERS.AveragePooling3D:
        kind = _LAYERS.AveragePooling2D
    depth, channels = x.shape[1], x.shape[-1]
    pool, strides = owner.pool_size, owner.strides
    options = {"padding": owner.padding, "dtype": owner.dtype_policy}
    y = kind(pool[1:], strides[1:], **options)(_OPS.reshape(x, (-1, *x.shape[2:])))
    height, width = y.shape[1:3]
    y = _OPS.reshape(y, (-1, depth, height * width, channels))
    y = kind((pool[0], 1), (strides[0], 1), name=owner.name, **options)(y)
    return _OPS.reshape(y, (-1, y.shape[1], height, width, channels))


def reason_of_pooling(owner: Any, x: Any) -> str | None:
    if owner.data_format == "channels_first":
        return "channels_first has no TFLite kernel"
    return "the sizes of its inputs must be fixed" if None in x.shape[1:] else None
