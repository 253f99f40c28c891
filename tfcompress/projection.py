"""What keeps a kernel sparse and clustered while it is trained.

Keras optimizers apply a variable's constraint right after they have updated it, inside the compiled
training step. A `Projection` is such a constraint. So the kernel is sparse and clustered after
every single step, whatever the loop around it looks like (`steps_per_execution`, gradient
accumulation, XLA, replicas, a loop of the user's own), and so are its checkpoints.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.weights import Kernel, kernels


class Projection(keras.constraints.Constraint):
    """Projects a kernel onto its mask, then onto its groups of equal values, then onto what is
    rounded.

    Args:
        kernel: the kernel to project. A constraint that it has already is applied first.

    Attributes:
        mask: bool array of the kernel's shape; False stays zero.
        groups: int32 array of the kernel's shape or None; weights of one group share one value,
            their mean, which descends their mean gradient (Han et al. 2016 sum the gradients).
            Group 0 is zero and stays so.
        rounded: bool array of the kernel's shape; True keeps the value that it was rounded to.
    """

    def __init__(self, kernel: Kernel):
        shape = tuple(kernel.variable.shape)
        self._users = kernel.variable.constraint
        self.mask = np.ones(shape, bool)
        self.groups: np.ndarray | None = None
        self._mask = _state(np.ones(shape, bool), f"{kernel.path}_mask")
        # Variables, once there is room for groups: group and size of groups, and whether in use.
        self._groups: Any = None
        self._counts: Any = None
        self._shared: Any = None
        self._shape = shape
        self.rounded = np.zeros(shape, bool)
        # Variables, once there is room for rounding: where, the values there, the others' limit.
        self._rounded: Any = None
        self._values: Any = None
        self._limit: Any = None

    def allow_groups(self, most: int) -> None:
        """Makes room for `most` groups; needed before the training step is traced."""
        if self._counts is None or self._counts.shape[0] < most + 1:
            self._groups = _state(np.zeros(self._shape, np.int32), "groups")
            self._counts = _state(np.ones(most + 1, np.float64), "counts")
            self._shared = _state(np.zeros((), bool), "shared")

    def set_mask(self, mask: np.ndarray) -> None:
        """Zeroes the weights where `mask` is False, from the next step on."""
        self.mask = mask
        self._mask.assign(mask)
        if self.groups is not None:
            self.set_groups(np.where(mask, self.groups, 0))

    def set_groups(self, groups: np.ndarray) -> None:
        """Lets the weights of one group share one value, from the next step on."""
        if self._counts is None:
            raise RuntimeError("allow_groups(...) comes before set_groups(...)")
        self.groups = groups.astype(np.int32)
        counts = np.bincount(self.groups.ravel(), minlength=self._counts.shape[0])
        self._groups.assign(self.groups)
        self._counts.assign(np.maximum(counts, 1).astype(np.float64))
        self._shared.assign(True)

    def allow_rounding(self) -> None:
        """Makes room for `set_rounded`; needed before the training step is traced."""
        if self._rounded is None:
            self._rounded = _state(self.rounded, "rounded")
            self._values = _state(np.zeros(self._shape, np.float32), "values")
            self._limit = _state(np.full(self._shape, np.inf, np.float32), "limit")

    def set_rounded(self, rounded: np.ndarray, values: np.ndarray, limit: np.ndarray) -> None:
        """Keeps weights where `rounded` at `values`, and the others within -limit .. limit."""
        if self._rounded is None:
            raise RuntimeError("allow_rounding() comes before set_rounded(...)")
        self.rounded = rounded
        self._rounded.assign(rounded)
        self._values.assign(values)
        self._limit.assign(np.broadcast_to(limit, self._shape))

    def __call__(self, w):
        if self._users is not None:
            w = self._users(w)
        w = tf.convert_to_tensor(w)
        # `where` and not a product: a negative weight times zero is -0.0, whose bits are not zero.
        w = tf.where(self._mask.value, w, tf.zeros_like(w))
        if self._counts is not None:
            w = tf.cond(self._shared.value, lambda: self._share(w), lambda: w)
        if self._rounded is None:
            return w
        limit = tf.cast(self._limit.value, w.dtype)
        free = tf.clip_by_value(w, -limit, limit)
        return tf.where(self._rounded.value, tf.cast(self._values.value, w.dtype), free)

    def _share(self, w):
        groups, counts = self._groups.value, self._counts.value
        # In float64 the mean of equal float32 values is that value, so nothing drifts. The raw
        # operator is the one whose size XLA sees; it is 4 times as fast as a segment sum.
        sums = tf.raw_ops.DenseBincount(
            input=tf.reshape(groups, [-1]),
            size=self._counts.shape[0],
            weights=tf.cast(tf.reshape(w, [-1]), tf.float64),
        )
        means = tf.cast(sums / counts, w.dtype)
        means = tf.concat([tf.zeros([1], w.dtype), means[1:]], axis=0)
        return tf.gather(means, groups)


def install(model: keras.Model, targets: Iterable[Kernel]) -> dict[str, Projection]:
    """Gives each kernel its `Projection`, or finds the one that it has; returns them by path.

    The compiled training step of `model` is forgotten, since it does not know the projections.
    """
    found = {}
    with model.distribute_strategy.scope():
        for kernel in targets:
            if not isinstance(kernel.variable.constraint, Projection):
                kernel.variable.constraint = Projection(kernel)
            found[kernel.path] = kernel.variable.constraint
    forget_compiled_step(model)
    return found


def remove(model: keras.Model, targets: Iterable[Kernel]) -> None:
    """Takes the projections away and gives each kernel the constraint that it had before."""
    for kernel in targets:
        if isinstance(kernel.variable.constraint, Projection):
            kernel.variable.constraint = kernel.variable.constraint._users
    forget_compiled_step(model)


def forget_compiled_step(model: keras.Model) -> None:
    """Has Keras trace the training step again, at its next use."""
    if model.train_function is not None:
        model.train_function = None
        model.make_train_function()


def preserve(model: keras.Model) -> None:
    """From now on, each kernel of `model` keeps its zeros and its shared values in any `fit`.

    What is kept is read from the weights. Zeros: each weight that is exactly zero, unless all are.
    Shared values: where at least half of a kernel's weights (a tenth, up to 70,000) repeat
    another's value; or, after
    BatchNorm folding has scaled the output channels, where they do so within a channel.

        sparse = keras.models.load_model("sparse.keras")
        tfc.preserve(sparse)
        sparse.fit(...)                 # as sparse afterwards as before
    """
    targets = kernels(model)
    projections = install(model, targets)
    with model.distribute_strategy.scope():
        for kernel in targets:
            keep(projections[kernel.path], kernel.value(), kernel.output_axes)


def keep(projection: Projection, w: np.ndarray, output_axes: tuple[int, ...]) -> None:
    """Has the projection keep the zeros and the shared values of `w`."""
    if w.any():
        projection.set_mask(w != 0)
    groups = shared_groups(w, output_axes)
    if groups is not None:
        projection.allow_groups(int(groups.max()))
        projection.set_groups(groups)


def shared_groups(w: np.ndarray, output_axes: tuple[int, ...]) -> np.ndarray | None:
    """Returns which weights share a value, numbered from 1 (0: zero), or None if too few do.

    >>> shared_groups(np.array([[0.0, 2.0], [2.0, 3.0], [3.0, 2.0]]), (1,))
    array([[0, 1],
           [1, 2],
           [2, 1]], dtype=int32)
    """
    nonzeros = np.count_nonzero(w)
    groups = value_groups(w)
    # Up to some size the values of an ordinary trained kernel hardly ever repeat.
    if 0 < groups.max() <= max(nonzeros / 2, min(0.9 * nonzeros, 65536)):
        return groups
    outputs = [axis % w.ndim for axis in output_axes]
    channels = np.ravel_multi_index(
        np.ix_(*[np.arange(w.shape[axis]) for axis in outputs]), [w.shape[axis] for axis in outputs]
    )
    spread = [w.shape[axis] if axis in outputs else 1 for axis in range(w.ndim)]
    # Values and channels are paired in one integer: its distinct values are the groups.
    pairs = groups.astype(np.int64) * channels.size + channels.reshape(spread)
    groups = value_groups(np.where(groups > 0, pairs + 1, 0))
    # Shared values repeat within a channel; those of an ordinary trained kernel hardly ever do.
    return groups if 0 < groups.max() <= 0.9 * nonzeros else None


def value_groups(w: np.ndarray) -> np.ndarray:
    """Returns, for each weight, the rank of its value among the non-zero ones, and 0 for zero."""
    values, inverse = np.unique(w, return_inverse=True)
    numbers = np.cumsum(values != 0)
    numbers[values == 0] = 0
    return numbers[inverse].reshape(w.shape).astype(np.int32)


def _state(value: np.ndarray, name: str) -> keras.Variable:
    """A variable that belongs to no layer, so that it is never saved with the model."""
    return keras.Variable(
        value, dtype=value.dtype.name, trainable=False, name=name.replace("/", "_"), autocast=False
    )
