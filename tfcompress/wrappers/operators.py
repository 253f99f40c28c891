"""Layers that compute in Keras what an integer operator of TFLite does, where the two differ."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import require
from tfcompress.wrappers.rounding import straight_through

# How far below all others a score lies that is masked: e**-8 is a twelfth of a step of softmax.
_MASKED = 8.0


class Operator(keras.layers.Layer):
    """A layer that keeps the dtype of what it gets, and that `exported` knows in another form."""

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **(kwargs | {"dtype": "float32"}))
        self._convert_input_args = False

    def build(self, *shapes: Any) -> None:
        pass


@keras.saving.register_keras_serializable("tfcompress")
class Clip(Operator):
    """min(x, high), and max(., 0) if `low` is 0.

    With it, the file holds a ReLU alone: the range of what follows ends at the upper bound, where
    codes saturate. Without it, the bound is the code of the input's grid next to `high`.
    """

    def __init__(self, low: float | None, high: float, **kwargs: Any):
        super().__init__(**kwargs)
        require(low in (None, 0.0), "low of Clip", "must be 0 or None", low=low)
        self.low, self.high = low, high

    def call(self, x: Any) -> Any:
        x = x if self.low is None else keras.ops.relu(x)
        return keras.ops.minimum(x, self.high)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def exported(self) -> keras.layers.Layer:
        high = self.high
        bounded = tf.nn.relu if self.low == 0.0 else lambda x: tf.minimum(x, high)
        return _Function(bounded, name=self.name)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"low": self.low, "high": self.high}


@keras.saving.register_keras_serializable("tfcompress")
class InverseRoot(Operator):
    """1 / sqrt(x) as TFLite's RSQRT has it: `call(x, grid)` with the grid of x; without, of floats.

    The code of 0 stands for all values below half a step: it gives the largest output there is.
    In training that is the inverse root of one step. The kernel's own roots of the codes are off by
    up to 7e-6; that decides where ties go, which are frequent: a grid that ends at the root of code
    n has the root of code 4 n half a step from its centre.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.observing = False

    def call(self, x: Any, grid: Any = None, training: bool | None = None) -> Any:
        if grid is None:
            return tf.math.rsqrt(x)
        least = tf.cast(grid[0], x.dtype)
        y = tf.math.rsqrt(tf.maximum(x, least))
        if training or self.observing:
            return y
        codes = tf.cast(tf.round(tf.math.divide_no_nan(x, least)), tf.int32)
        roots = tf.constant(_roots_of_codes(), x.dtype)
        rooted = tf.gather(roots, tf.clip_by_value(codes, 0, 255)) * tf.math.rsqrt(least)
        known = tf.where(tf.logical_and(codes < 256, least > 0.0), rooted, y)
        return straight_through(y, tf.where(tf.logical_or(codes > 0, least <= 0.0), known, 1e9))

    def compute_output_spec(self, x: Any, grid: Any = None, training: Any = None) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def exported(self) -> keras.layers.Layer:
        return _Function(tf.math.rsqrt, name=self.name)


@functools.cache
def _roots_of_codes() -> np.ndarray:
    """Returns 1 / sqrt(code) of the codes 0 to 255 as TFLite's kernel finds it; 0 for code 0.

    Five steps of Newton's iteration x (3 - a x^2) / 2 from x = 1, in fixed point: `a`, the code
    times a power of 4, and x have 28 bits after the point. The result has 20.
    """
    one, root_half = 1 << 28, 1518500250  # sqrt(1/2) with 31 bits
    roots = [0, 1 << 20]
    for code in range(2, 256):
        pairs = (31 - code.bit_length()) // 2 - 1
        half = _shifted(code << 2 * pairs, 2)
        x = one
        for _ in range(5):
            cube = _product(_product(x, x), x) << 6
            x = (_product(one + one // 2, x) - _product(half, cube)) << 3
        roots.append(_shifted(_product(x, root_half), 31 - 20 + 11 - pairs))
    return np.array(roots) / 2.0**20


def _product(a: int, b: int) -> int:
    """Returns the upper half of the product of two numbers of 32 bits, rounded."""
    return (a * b + (1 << 30)) >> 31


def _shifted(x: int, bits: int) -> int:
    """Returns x / 2**bits, rounded."""
    return (x + (1 << bits - 1)) >> bits


@keras.saving.register_keras_serializable("tfcompress")
class CausalMask(Operator):
    """Scores in which no step sees a later one: those get the lowest code.

    Args:
        length: steps of the queries; scores (..., a multiple of length, steps of the keys).
    """

    def __init__(self, length: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.length = length
        self.observing = False

    def call(self, x: Any, training: bool | None = None) -> Any:
        if training or self.observing:
            lowest = tf.stop_gradient(tf.reduce_min(x)) - tf.cast(_MASKED, x.dtype)
        else:
            lowest = tf.cast(-1e4, x.dtype)
        return tf.where(self._seen(x), x, lowest)

    def compute_output_spec(self, x: Any, training: Any = None) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def exported(self) -> keras.layers.Layer:
        return _Function(lambda x: tf.where(self._seen(x), x, -1e4), name=self.name)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"length": self.length}

    def _seen(self, x: Any) -> Any:
        rows, columns = x.shape[-2:]
        steps = [row % self.length for row in range(rows)]
        return tf.constant([[column <= row for column in range(columns)] for row in steps])


@keras.saving.register_keras_serializable("tfcompress")
class Zeros(Operator):
    """A state before the first step: zeros (batch, units), `call(x)` with x (batch, more)."""

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units

    def call(self, x: Any) -> Any:
        return tf.zeros_like(x[:, : self.units])

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor((*x.shape[:-1], self.units), x.dtype)

    def exported(self) -> keras.layers.Layer:
        # A constant would be no tensor with a batch.
        units = self.units
        return _Function(lambda x: x[:, :units] * 0.0, name=self.name)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.units}


class _Function(keras.layers.Layer):
    """A TensorFlow function as a layer of the graph that the converter gets."""

    def __init__(self, function: Any, **kwargs: Any):
        super().__init__(**(kwargs | {"dtype": "float32"}))
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)
