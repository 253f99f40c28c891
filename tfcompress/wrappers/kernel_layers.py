"""Layers whose kernel TFLite holds in int8, and where the kernel is."""

from typing import Any

import keras

# Layers whose kernel TFLite holds in int8: its variable, and the axes of its output channels.
_LAYERS = keras.layers
KERNELS: dict[type, tuple[str, tuple[int, ...]]] = {
    _LAYERS.Dense: ("kernel", (1,)),
    _LAYERS.Conv1D: ("kernel", (2,)),
    _LAYERS.Conv2D: ("kernel", (3,)),
    _LAYERS.DepthwiseConv1D: ("kernel", (1, 2)),
    _LAYERS.DepthwiseConv2D: ("kernel", (2, 3)),
    _LAYERS.Conv1DTranspose: ("kernel", (1,)),
    _LAYERS.Conv2DTranspose: ("kernel", (2,)),
    _LAYERS.PReLU: ("alpha", ()),
}


def kind(layer: Any) -> type | None:
    """Returns the key of `KERNELS` that the layer computes as, or None.

    A subclass counts as its base unless it has a `call` of its own.
    """
    for base in type(layer).__mro__:
        if base in KERNELS:
            same = getattr(type(layer), "call", None) is getattr(base, "call", None)
            return base if same else None
    return None


def kernel_place(layer: keras.layers.Layer) -> tuple[str, tuple[int, ...]]:
    """Returns the name of the kernel's attribute and the axes of its output channels."""
    base = kind(layer)
    if base is None:
        raise TypeError(f"QuantizedLayer knows no kernel of {layer!r}")
    return KERNELS[base]
