"""Layers that only move values: flatten, reshape, permute, repeat."""

import itertools
import math
from collections.abc import Sequence

import keras
import numpy as np

from tfcompress.structured.trace import Axes, Call, Labels, Trace, describe, knows

layers = keras.layers


@knows(layers.Flatten)
def flatten(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x,) = call.operation, call.inputs
    if layer.data_format == "channels_first" and x.rank > 2:
        x = transposed(x, (0, *range(2, x.rank), 1))
    return reshaped(trace, call, x)


@knows(layers.Reshape)
def reshape(trace: Trace, call: Call) -> Axes | list[Axes]:
    result = reshaped(trace, call, call.inputs[0])
    follow(trace, call, "target_shape", result.labels[1:])
    return result


def follow(trace: Trace, call: Call, key: str, wanted: Sequence[Labels]) -> None:
    """Lets a shape in the configuration follow the labels of its axes; -1 stays -1."""

    def edit(config, size):
        pairs = zip(config[key], wanted, strict=True)
        return {key: [n if own is None or n in (-1, None) else size(own) for n, own in pairs]}

    trace.edit(call, edit, *wanted)


@knows(layers.Permute)
def permute(trace: Trace, call: Call) -> Axes:
    return transposed(call.inputs[0], (0, *call.operation.dims))


def transposed(x: Axes, order: Sequence[int]) -> Axes:
    return Axes(tuple(x.shape[i] for i in order), tuple(x.labels[i] for i in order))


@knows(layers.RepeatVector)
def repeat_vector(trace: Trace, call: Call) -> Axes:
    (x,) = call.inputs
    return Axes.on(call.outputs[0], 2, x.labels[1])


def reshaped(trace: Trace, call: Call, x: Axes) -> Axes:
    """Returns the axes after a reshape: those of one product are merged and split again."""
    shape = call.outputs[0]
    labels: list[Labels] = [None] * len(shape)
    for source, target in _same_products(x.shape, shape):
        merged = _merged(trace, call, x, source)
        if merged is None:
            continue
        sizes = [size for axis in target if (size := shape[axis]) is not None]
        if len(sizes) < len(target):
            trace.pin(merged, f"{describe(call)} has sizes that are known at run time only")
        elif sizes:
            axis, rest = _split(trace, call, merged, sizes)
            labels[target[axis]] = rest
    return Axes(shape, tuple(labels))


def _same_products(source: Sequence, target: Sequence) -> list[tuple[list[int], list[int]]]:
    """Returns the shortest runs of axes of both shapes that hold equally many values.

    >>> _same_products((None, 8, 8, 6), (None, 64, 2, 3))
    [([0], [0]), ([1, 2], [1]), ([3], [2, 3])]
    """
    if source and target and source[0] is None and target[0] is None:
        rest = _same_products(source[1:], target[1:])
        return [([0], [0])] + [([i + 1 for i in a], [j + 1 for j in b]) for a, b in rest]
    if None in source or None in target:
        # All but the axes that agree at the end make one run.
        same = itertools.takewhile(
            lambda pair: pair[0] == pair[1] and pair[0] is not None,
            zip(reversed(source), reversed(target), strict=False),
        )
        n = len(list(same))
        head = list(range(len(source) - n)), list(range(len(target) - n))
        tail = [([len(source) - k], [len(target) - k]) for k in range(n, 0, -1)]
        return [head, *tail]
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        a, b = ([i], [j]) if i < len(source) and j < len(target) else ([], [])
        i, j = i + len(a), j + len(b)
        while _product(source, a) != _product(target, b) or not (a and b):
            if i < len(source) and (j >= len(target) or _product(source, a) <= _product(target, b)):
                a.append(i)
                i += 1
            elif j < len(target):
                b.append(j)
                j += 1
            else:
                break
        runs.append((a, b))
    return runs


def _product(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _merged(trace: Trace, call: Call, x: Axes, axes: list[int]) -> Labels:
    """Returns the labels of the values of several axes in a row; only one of them can be free."""
    free = {axis: own for axis in axes if (own := x.labels[axis]) is not None}
    if not free:
        return None
    kept, labels = max(free.items(), key=lambda item: np.unique(item[1]).size)
    for axis, other in free.items():
        if axis != kept:
            trace.pin(other, f"{describe(call)} merges them with other channels")
    shape = [size for axis in axes if (size := x.shape[axis]) is not None]
    if len(shape) < len(axes):
        trace.pin(labels, f"{describe(call)} has sizes that are known at run time only")
        return None
    sizes = [size if axis == kept else 1 for axis, size in zip(axes, shape, strict=True)]
    return np.broadcast_to(labels.reshape(sizes), shape).reshape(-1)


def _split(
    trace: Trace, call: Call, merged: np.ndarray, shape: list[int]
) -> tuple[int, np.ndarray]:
    """Returns which of the new axes is free, and its labels.

    The one that already holds one channel at each of its indices, as when a flattened map becomes
    a map again. If there is none, as when units become heads, the longest: the values at one of its
    indices are tied together.
    """
    values = merged.reshape(shape)
    rows = [np.moveaxis(values, axis, 0).reshape(shape[axis], -1) for axis in range(len(shape))]
    for axis, row in enumerate(rows):
        if shape[axis] > 1 and (row == row[:, :1]).all():
            return axis, row[:, 0]
    axis = max(range(len(shape)), key=lambda axis: shape[axis])
    row = rows[axis]
    first = np.broadcast_to(row[:, :1], row.shape)
    reason = f"{describe(call)} folds them into the axes of {tuple(shape)}"
    trace.tie(first.reshape(-1), row.reshape(-1), reason)
    return axis, row[:, 0]
