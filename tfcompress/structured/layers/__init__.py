"""How each kind of layer passes channels on: which of its weights make, read or carry them."""

from tfcompress.structured.layers import (
    attention,
    convolution,
    dense,
    elementwise,
    normalization,
    operations,
    pooling,
    recurrent,
    reshaping,
    wrappers,
)

__all__ = [
    "attention",
    "convolution",
    "dense",
    "elementwise",
    "normalization",
    "operations",
    "pooling",
    "recurrent",
    "reshaping",
    "wrappers",
]
