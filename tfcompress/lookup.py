"""Values by their numbers, and the nearest of few values, in the training step of large kernels.

A gather takes some 4 ns a weight. A chain of comparisons with few values, compiled to one pass of
vector instructions, takes a quarter of it with 8 values and half with 32.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

_FEW = 64  # values
_LARGE = 10_000  # weights; to compile takes half a second, which fewer do not win back


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has XLA make one pass over large arrays of the function, in a graph."""
    jitted = tf.function(function, jit_compile=True)

    @functools.wraps(function)
    def run(x: Any, *rest: Any) -> Any:
        return jitted(x, *rest) if _pays(x) else function(x, *rest)

    return run


def _pays(x: Any) -> bool:
    return not tf.executing_eagerly() and np.prod(x.shape) >= _LARGE


def looked_up(numbers: Any, values: Any) -> Any:
    """Returns the values (b, k) that the numbers say, int32 (b, n)."""
    if values.shape[1] > _FEW or not _pays(numbers):
        return tf.gather(values, numbers, batch_dims=1)
    return _chosen(numbers, values)


@tf.function(jit_compile=True)
def _chosen(numbers: Any, values: Any) -> Any:
    found = tf.zeros(numbers.shape, values.dtype) + values[:, :1]
    for number in range(1, values.shape[1]):
        found = tf.where(numbers == number, values[:, number, tf.newaxis], found)
    return found


def nearest(x: Any, entries: Any) -> Any:
    """Returns which of the ordered `entries` (b, k) is nearest to each of x (b, n)."""
    # Not in the compiled pass, which would find them for each weight anew.
    between = (entries[:, 1:] + entries[:, :-1]) / 2.0
    return (_counted if entries.shape[1] <= _FEW else _searched)(x, between)


@compiled
def _counted(x: Any, between: Any) -> Any:
    column = tf.zeros_like(x, tf.int32)
    for number in range(between.shape[1]):
        column += tf.cast(x > between[:, number, tf.newaxis], tf.int32)
    return column


@compiled
def _searched(x: Any, between: Any) -> Any:
    """Finds one bit of the answer after another."""
    bits = int(between.shape[1]).bit_length()
    missing = 2**bits - between.shape[1]
    between = tf.pad(between, [[0, 0], [0, missing]], constant_values=np.inf)
    column = tf.zeros_like(x, tf.int32)
    for bit in reversed(range(bits)):
        middle = tf.gather(between, column + (2**bit - 1), batch_dims=1)
        column = tf.where(x > middle, column + 2**bit, column)
    return column
