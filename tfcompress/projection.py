"""What keeps a kernel sparse and clustered while it is trained.

Keras optimizers apply a variable's constraint right after they have updated it, inside the compiled
training step. A `Projection` is such a constraint. So the kernel is sparse and clustered after
every single step, whatever the loop around it looks like (`steps_per_execution`, gradient
accumulation, XLA, replicas, a loop of the user's own), and so are its checkpoints.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.latent import Latent
from tfcompress.sharing import Scales, Sums, codes_of, state
from tfcompress.weights import Kernel, by_channel, kernels


class Projection(keras.constraints.Constraint):
    """Projects a kernel onto its mask, then onto its form of sharing (`tfcompress.sharing`), then
    onto what is rounded.

    Args:
        kernel: the kernel to project. A constraint that it has already is applied first.

    Attributes:
        mask: bool array of the kernel's shape; False stays zero.
        sharing: the form of sharing in use, or None.
        rounded: bool array of the kernel's shape; True keeps the value that it was rounded to.
    """

    def __init__(self, kernel: Kernel):
        shape = tuple(kernel.variable.shape)
        self._users = kernel.variable.constraint
        self._kernel = kernel
        self.mask = np.ones(shape, bool)
        self.sharing: Any = None
        self._mask = state(np.ones(shape, bool), f"{kernel.path}_mask")
        # What there is room for, and which of it is in use (0: none).
        self._forms: list[Any] = []
        self._in_use: Any = None
        self._shape = shape
        self.rounded = np.zeros(shape, bool)
        # Variables, once there is room for rounding: where, the values there, the others' limit.
        self._rounded: Any = None
        self._values: Any = None
        self._limit: Any = None

    @property
    def groups(self) -> np.ndarray | None:
        """Which weights have one value, int32 of the kernel's shape, 0: zero; None: not shared."""
        return None if self.sharing is None else self.sharing.groups

    def allow_sums(
        self, cells: int, columns: int = 1, levels: int = 1, gradients: str = "mean"
    ) -> Sums:
        """Makes room for codebooks, see `Sums`; needed before the training step is traced."""
        for form in self._forms:
            if type(form) is not Sums or (form.levels, form.gradients) != (levels, gradients):
                continue
            if (form.cells, form.columns) == (cells, columns) or (
                levels == 1 and form.entries >= cells * columns
            ):
                return form
        return self._allow(Sums(self._shape, cells, columns, levels, gradients))

    def allow_latent(self, layout: np.ndarray, columns: int, gradients: str = "mean") -> Latent:
        """Makes room for codebooks whose weights change places while they train, see `Latent`."""
        return self._allow(Latent(self._shape, layout, columns, gradients))

    def allow_scales(self, axes: Sequence[int]) -> Scales:
        """Makes room for codes and the scales of the channels along `axes`, see `Scales`."""
        wanted = tuple(axis % len(self._shape) for axis in axes)
        for form in self._forms:
            if isinstance(form, Scales) and form.axes == wanted:
                return form
        return self._allow(Scales(self._shape, wanted))

    def set_mask(self, mask: np.ndarray) -> None:
        """Zeroes the weights where `mask` is False, from the next step on."""
        self.mask = mask
        self._mask.assign(mask)
        if self.sharing is not None:
            self.sharing.masked(mask, self._kernel.value())

    def share(self, form: Any, where: np.ndarray, w: np.ndarray) -> None:
        """Has the kernel, whose value is `w`, keep an allowed form from the next step on.

        `where` says which weight has which number, as the form's `set` wants it.
        """
        form.set(where, w)
        self.use(form)

    def use(self, form: Any) -> None:
        """Has the kernel keep an allowed form, which knows the kernel, from the next step on."""
        self.sharing = form
        self._in_use.assign(1 + self._forms.index(form))

    @property
    def variables(self) -> list[keras.Variable]:
        """What the forms of sharing know that the kernel itself does not tell."""
        return [variable for form in self._forms for variable in form.variables]

    def allow_rounding(self) -> None:
        """Makes room for `set_rounded`; needed before the training step is traced."""
        if self._rounded is None:
            self._rounded = state(self.rounded, "rounded")
            self._values = state(np.zeros(self._shape, np.float32), "values")
            self._limit = state(np.full(self._shape, np.inf, np.float32), "limit")

    def set_rounded(self, rounded: np.ndarray, values: np.ndarray, limit: np.ndarray) -> None:
        """Keeps weights where `rounded` at `values`, and the others within -limit .. limit."""
        if self._rounded is None:
            raise RuntimeError("allow_rounding() comes before set_rounded(...)")
        self.rounded = rounded
        self._rounded.assign(rounded)
        self._values.assign(values)
        self._limit.assign(np.broadcast_to(limit, self._shape))

    def nearest(self, w: Any) -> Any:
        """Returns the nearest kernel to `w` with this mask and sharing; the next step starts so."""
        return self._projected(w, "nearest")

    def __call__(self, w: Any) -> Any:
        """Returns what the optimizer's step, that has made `w` of the kernel, makes of it."""
        return self._projected(w, "step")

    def _allow(self, form: Any) -> Any:
        if self._in_use is None:
            self._in_use = state(np.zeros((), np.int32), "in_use")
        self._forms.append(form)
        return form

    def _projected(self, w: Any, verb: str) -> Any:
        if self._users is not None:
            w = self._users(w)
        w = tf.convert_to_tensor(w)
        # `where` and not a product: a negative weight times zero is -0.0, whose bits are not zero.
        w = tf.where(self._mask.value, w, tf.zeros_like(w))
        for number, form in enumerate(self._forms, 1):
            w, kept = tf.cond(
                tf.equal(self._in_use.value, number),
                lambda form=form, w=w: getattr(form, verb)(w),
                lambda form=form, w=w: (w, form.kept),
            )
            form.remember(kept)
        if self._rounded is None:
            return w
        limit = tf.cast(self._limit.value, w.dtype)
        free = tf.clip_by_value(w, -limit, limit)
        return tf.where(self._rounded.value, tf.cast(self._values.value, w.dtype), free)


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


def variables(model: keras.Model) -> list[keras.Variable]:
    """Returns what the projections in use know that the model's weights do not tell."""
    constraints = [kernel.variable.constraint for kernel in kernels(model)]
    return [v for one in constraints if isinstance(one, Projection) for v in one.variables]


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
    another's value; or, after BatchNorm folding has scaled the output channels, where they do so
    within a channel. A kernel that lies on codes of an int8 grid (`tfc.cluster(model,
    grid="int8")`) stays on them. Of a kernel whose blocks are sums of two levels, equal weights
    stay equal; their values are sums no longer (those of `ClusterOnSchedule(levels=2)` are).

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
    for axes in ((), output_axes):
        codes = codes_of(w, axes)
        if codes is not None:
            projection.share(projection.allow_scales(axes), codes, w)
            return
    groups = shared_groups(w, output_axes)
    if groups is not None:
        projection.share(projection.allow_sums(int(groups.max())), groups[np.newaxis], w)


def shared_groups(w: np.ndarray, output_axes: tuple[int, ...]) -> np.ndarray | None:
    """Returns which weights share a value, numbered from 1 (0: zero), or None if too few do.

    >>> shared_groups(np.array([[0.0, 2.0], [2.0, 3.0], [3.0, 2.0]]), (1,))
    array([[0, 1],
           [1, 2],
           [2, 1]], dtype=int32)
    """
    nonzeros = np.count_nonzero(w)
    # Counted before they are numbered: that takes a tenth of the time.
    # Up to some size the values of an ordinary trained kernel hardly ever repeat.
    if 0 < _distinct(w.reshape(1, -1)) <= max(nonzeros / 2, min(0.9 * nonzeros, 65536)):
        return value_groups(w)
    # Shared values repeat within a channel; those of an ordinary trained kernel hardly ever do.
    few = 0 < _distinct(by_channel(w, output_axes)) <= 0.9 * nonzeros
    return channel_value_groups(w, output_axes) if few else None


def _distinct(rows: np.ndarray) -> int:
    """Returns how many distinct values each row has besides zero, in all."""
    ordered = np.sort(rows, axis=1)
    changes = np.count_nonzero(ordered[:, 1:] != ordered[:, :-1])
    return int(len(rows) + changes - np.count_nonzero((ordered == 0).any(axis=1)))


def value_groups(w: np.ndarray) -> np.ndarray:
    """Returns, for each weight, the rank of its value among the non-zero ones, and 0 for zero."""
    values, inverse = np.unique(w, return_inverse=True)
    numbers = np.cumsum(values != 0)
    numbers[values == 0] = 0
    return numbers[inverse].reshape(w.shape).astype(np.int32)


def channel_value_groups(w: np.ndarray, output_axes: tuple[int, ...]) -> np.ndarray:
    """Returns which weights have both channel and value in common, numbered from 1; 0 for zero."""
    groups = value_groups(w)
    outputs = [axis % w.ndim for axis in output_axes]
    channels = np.ravel_multi_index(
        np.ix_(*[np.arange(w.shape[axis]) for axis in outputs]), [w.shape[axis] for axis in outputs]
    )
    spread = [w.shape[axis] if axis in outputs else 1 for axis in range(w.ndim)]
    # Values and channels are paired in one integer: its distinct values are the groups.
    pairs = groups.astype(np.int64) * channels.size + channels.reshape(spread)
    return value_groups(np.where(groups > 0, pairs + 1, 0))
