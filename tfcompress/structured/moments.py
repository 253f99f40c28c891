"""Mean and spread of what flows through a model's graph, over the data."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph
from tfcompress.structured import evaluation


def input_tensors(flat: keras.Model, x: Any) -> list[Any]:
    """Returns a batch as one tensor for each input of the model, in its order and dtype."""
    arrays = evaluation.inputs_in_order(flat, x)
    return [tf.cast(a, tensor.dtype) for a, tensor in zip(arrays, flat.inputs, strict=True)]


def moments(
    flat: keras.Model, tensors: Sequence[Any], read: Sequence[evaluation.Batch]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns for each tensor of the flat model mean and standard deviation along its last axis.

    float64, over the rows of all batches and all positions; the model runs as at inference.
    """
    if not tensors:
        return [], []
    seen = keras.Model(graph.inputs_of(flat), list(tensors))
    sums = [np.zeros((2, tensor.shape[-1])) for tensor in tensors]
    counts = [0] * len(tensors)
    for x, _ in read:
        given = keras.tree.pack_sequence_as(graph.inputs_of(flat), input_tensors(flat, x))
        for number, value in enumerate(keras.tree.flatten(seen(given, training=False))):
            rows = np.asarray(value, np.float64).reshape(-1, value.shape[-1])
            sums[number] += np.stack([rows.sum(axis=0), np.square(rows).sum(axis=0)])
            counts[number] += len(rows)
    means = [total / count for (total, _), count in zip(sums, counts, strict=True)]
    squares = [total / count for (_, total), count in zip(sums, counts, strict=True)]
    pairs = zip(squares, means, strict=True)
    return means, [np.sqrt(np.maximum(square - mean**2, 0)) for square, mean in pairs]
