"""Widths of grids that are trained with the weights, and how they stop."""

from typing import Any

import keras
import tensorflow as tf

# The narrowest range that is followed: a tensor of zeros still gets a grid.
NARROWEST = 1e-6
# What stands for an activation's width at the start. Adam's steps are as long for each variable:
# so a width moves as fast, against its size, as a weight of 0.1 does. A width of 30 itself would
# not move at all, a step of 0.01 would jump.
START = 0.1


class Stop:
    """The optimizer step from which something no longer moves; never, unless a callback says so."""

    def __init__(self) -> None:
        self.never()

    def never(self) -> None:
        self._iterations, self._step = None, 0

    def at(self, iterations: Any, step: int) -> None:
        """Stops where the variable `iterations`, read in the graph, has come to `step`."""
        self._iterations, self._step = iterations, step

    def reached(self) -> Any:
        if self._iterations is None:
            return tf.constant(False)
        return tf.cast(tf.convert_to_tensor(self._iterations), tf.int64) >= self._step


class Learned(keras.constraints.Constraint):
    """Keeps a learned width above 0, and as it is once its `stop` is reached."""

    def __init__(self, held: keras.Variable, stop: Stop):
        self._held, self._stop = held, stop

    def __call__(self, w: Any) -> Any:
        w = tf.maximum(tf.convert_to_tensor(w), NARROWEST)
        w = tf.where(self._stop.reached(), tf.convert_to_tensor(self._held), w)
        self._held.assign(w)
        return w


def learned_weight(layer: Any, shape: tuple[int, ...], name: str, stop: Stop) -> keras.Variable:
    """Adds a trainable width to `layer`, and beside it as `NAME_held` the value that it keeps."""
    held = layer.add_weight(
        shape=shape, initializer="ones", trainable=False, name=f"{name}_held", aggregation="mean"
    )
    setattr(layer, f"{name}_held", held)
    return layer.add_weight(
        shape=shape, initializer="ones", name=name, constraint=Learned(held, stop)
    )


@tf.custom_gradient
def width_of(share: Any, start: Any) -> Any:
    """Returns the width that a variable stands for, whose value was `START` at the width `start`.

    Its gradient is such that SGD moves the width as if that were the variable.
    """
    return share / START * start, lambda upstream: (upstream * START / start, None)


def divided(width: Any, levels: Any) -> Any:
    """Returns width / levels, rounded to float32 once.

    XLA multiplies by the inverse of a constant: in float32 another step would come out.
    """
    return tf.cast(tf.cast(width, tf.float64) / tf.cast(levels, tf.float64), tf.float32)


@tf.custom_gradient
def learn_step(x: Any, width: Any, lowest: Any, highest: Any, levels: Any) -> Any:
    """LSQ: the step is width / levels, and d y / d step = code - x / step, at the ends the code."""
    step = divided(width, levels)
    position = x / step
    codes = tf.clip_by_value(tf.round(position), lowest, highest)

    def gradient(upstream: Any) -> Any:
        inside = tf.logical_and(position >= lowest, position <= highest)
        slope = tf.where(inside, codes - position, codes)
        values = tf.cast(tf.size(x) / tf.maximum(tf.shape(x)[0], 1), tf.float32)
        scaling = tf.math.rsqrt(values * tf.maximum(levels + lowest, 1.0))
        # The step is width / levels: for it to move by its own gradient, width moves by as many
        # times that.
        gradient_of_width = levels * scaling * tf.reduce_sum(upstream * slope)
        return tf.where(inside, upstream, 0.0), gradient_of_width, None, None, None

    return codes * step, gradient


@tf.custom_gradient
def learn_clipping(x: Any, width: Any, lowest: Any, highest: Any, levels: Any) -> Any:
    """PACT: what is clipped moves the clipping bound."""
    step = divided(width, levels)
    position = x / step
    codes = tf.clip_by_value(tf.round(position), lowest, highest)

    def gradient(upstream: Any) -> Any:
        above, below = position >= highest, position <= lowest
        slope = tf.where(above, highest, tf.where(below, lowest, 0.0)) / levels
        kept = tf.where(tf.logical_or(above, below), 0.0, upstream)
        return kept, tf.reduce_sum(upstream * slope), None, None, None

    return codes * step, gradient


@tf.custom_gradient
def learn_kernel_step(kernel: Any, limit: Any, highest: Any) -> Any:
    """LSQ of a kernel: one step, limit / highest, per entry of `limit`, which broadcasts."""
    step = divided(limit, highest)
    position = kernel / step
    codes = tf.clip_by_value(tf.round(position), -highest, highest)

    def gradient(upstream: Any) -> Any:
        inside = tf.abs(position) <= highest
        slope = upstream * tf.where(inside, codes - position, codes)
        reduced = [axis for axis, size in enumerate(limit.shape) if size == 1]
        values = tf.cast(tf.size(kernel) / tf.size(limit), tf.float32)
        scaling = tf.math.rsqrt(values * highest)
        of_limit = highest * scaling * tf.reduce_sum(slope, reduced, keepdims=True)
        return tf.where(inside, upstream, 0.0), of_limit, None

    return codes * step, gradient
