"""How much the loss minds a change of each weight: the diagonal of the Fisher information."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import call, require
from tfcompress.structured import evaluation


def fisher(
    model: keras.Model,
    variables: Sequence[keras.Variable],
    data: Any,
    loss: Any = None,
    *,
    batches: int = 32,
    batch_size: int = 16,
) -> list[np.ndarray]:
    """Returns the mean over batches of each weight's squared gradient; `model` stays as it is.

    Where the model has converged, a change d of the weights raises the loss by about the sum of
    F d^2 / 2, up to a factor that all weights share. The model runs as at inference.

    Args:
        variables: of the model; one float64 array of its shape is returned for each.
        data, batches, batch_size: (x, y) and the other forms of `evaluation.batches`. Small batches
            tell weights apart better.
        loss: as `compile` takes it; None: the one that the model is compiled with.

    Raises:
        InputError: data that does not fit the model, without labels, or a loss that is not finite.
    """
    judged = evaluation.loss_of(model, loss)

    def step(x: Any, y: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            weights = [tf.convert_to_tensor(variable.value) for variable in variables]
            tape.watch(weights)
            now = {id(v): w for v, w in zip(variables, weights, strict=True)}
            values = evaluation.values(model, now)
            total = judged(y, model.stateless_call(*values, x, training=False)[0])
        gradients = tape.gradient(total, weights, unconnected_gradients="zero")
        return total, [tf.square(tf.cast(tf.convert_to_tensor(g), tf.float32)) for g in gradients]

    compiled = tf.function(step, reduce_retracing=True)
    sums = [np.zeros(tuple(variable.shape)) for variable in variables]
    count = 0
    for x, y in evaluation.batches(data, batch_size, batches):
        evaluation.inputs_in_order(model, x)
        require(y is not None, "data", "must be (x, y): gradients need labels")
        total, squares = call(partial(evaluation.run, compiled, x, y), "The loss")
        evaluation.finite(total)
        for place, square in zip(sums, squares, strict=True):
            place += np.asarray(square)
        count += 1
    return [place / count for place in sums]
