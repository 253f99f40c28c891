"""What the rewriting of a layer into several is made of: parts that bear weights, and shapes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

_LAYERS = keras.layers


class Parts:
    """The layers that others were split into: one for each name, so that what was shared stays so.

    weights: the new layers, and the values that they get once they are built.
    one_range: names of layers whose outputs have one range over all their calls.
    """

    def __init__(self) -> None:
        self.weights: list[tuple[Any, list[np.ndarray]]] = []
        self.one_range: set[str] = set()
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any], values: Sequence[Any] | None = None) -> Any:
        """Returns the part of that name; `make` and `values` give it when it is new."""
        if name not in self._made:
            self._made[name] = make()
            if values is not None:
                self.weights.append((self._made[name], [np.asarray(value) for value in values]))
        return self._made[name]

    def dense(self, name: str, owner: Any, kernel: Any, bias: Any = None, like: Any = None) -> Any:
        """Returns a Dense layer with the given kernel (inputs, units) and bias (units,) or None."""
        names = ("kernel_regularizer", "bias_regularizer")
        options = {key: getattr(like or owner, key, None) for key in names}
        values = [kernel] if bias is None else [kernel, bias]

        def make() -> Any:
            units = kernel.shape[-1]
            return _LAYERS.Dense(
                units, use_bias=bias is not None, name=name, **options, **common(owner)
            )

        return self.once(name, make, values)

    def affine(self, owner: Any, name: str, x: Any, scale: Any, offset: Any, trains: bool) -> Any:
        """x * scale + offset per channel, as depthwise convolution over images of width 1."""
        channels = x.shape[-1]

        def make() -> Any:
            return _LAYERS.DepthwiseConv2D(
                1,
                use_bias=offset is not None,
                name=name,
                dtype=owner.dtype_policy,
                trainable=trains and owner.trainable,
            )

        values = [np.broadcast_to(scale, channels).reshape(1, 1, channels, 1)]
        if offset is not None:
            values.append(np.broadcast_to(offset, channels))
        layer = self.once(name, make, values)
        if len(x.shape) == 4:
            return layer(x)
        inner = tuple(-1 if size is None else size for size in x.shape[1:])
        wide = (1,) * (3 - len(inner)) + inner if len(inner) < 4 else (-1, 1, channels)
        return _LAYERS.Reshape(inner)(layer(_LAYERS.Reshape(wide)(x)))


def common(owner: Any) -> dict[str, Any]:
    """Returns what a part takes over from the layer that it belongs to."""
    return {"dtype": owner.dtype_policy, "trainable": owner.trainable}


def values(variable: Any) -> Any:
    """Returns a variable's values, None for None."""
    return None if variable is None else keras.ops.convert_to_numpy(variable)


def resized(x: Any, sizes: Sequence[int | None]) -> Any:
    """Returns x with the given sizes behind the batch; one of them may be open."""
    if tuple(x.shape[1:]) == tuple(sizes):
        return x
    return _LAYERS.Reshape([-1 if size is None else size for size in sizes])(x)


def permuted(x: Any, axes: Sequence[int]) -> Any:
    """Returns x with its axes, the batch's among them, in the given order."""
    return x if list(axes) == list(range(len(axes))) else keras.ops.transpose(x, axes)


def product(sizes: Sequence[int]) -> int:
    return math.prod(sizes)


def positive(axis: Any, rank: int) -> list[int]:
    """Returns one axis or several as a sorted list, counted from the front."""
    axes = axis if isinstance(axis, list | tuple) else [axis]
    return sorted(a % rank for a in axes)


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of a call that say something about its inference."""
    return {
        name: value for name, value in arguments.items() if value is not None and name != "training"
    }


def masked(tensors: Any) -> bool:
    """Returns whether a tensor among these brings a mask along."""
    return any(
        getattr(x, "_keras_mask", None) is not None
        for x in keras.tree.flatten(tensors)
        if isinstance(x, keras.KerasTensor)
    )


def unknown_sizes(tensors: Any) -> bool:
    """Returns whether a tensor among these leaves a size other than the batch's open."""
    return any(
        None in x.shape[1:] for x in keras.tree.flatten(tensors) if isinstance(x, keras.KerasTensor)
    )
