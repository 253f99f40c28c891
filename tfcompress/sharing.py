"""How the weights of a kernel share few numbers, and the nearest kernel that does.

Each form of sharing holds which weight has which number, and replaces a kernel by the nearest one
of that form: `Sums` of codebooks' entries, `Scales` times fixed integers.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import lookup

GRADIENTS = ("mean", "sum", "root")


class Sums:
    """Each weight is the sum of one entry of each codebook, or zero.

    Entries are numbered from 1; place 0 is zero. With one codebook an entry becomes the mean of
    its weights, which is descent with the mean of their gradients. With several, all entries are
    found together: least squares. The weights fall apart into `cells` that have no entry in common
    (positions in a block, channels), each with `columns` entries, numbered one cell after another.

    Args:
        shape: of the kernel.
        levels: codebooks that are added up, at least 1.
        cells, columns: as above; with one level, only their product counts.
        gradients: how `step` moves an entry: by the "mean" of its weights' steps, by their "sum",
            or by their sum over the "root" of their number, at most as far as they (root mean
            square) would have gone themselves.
    """

    def __init__(
        self,
        shape: Sequence[int],
        cells: int,
        columns: int = 1,
        levels: int = 1,
        gradients: str = "mean",
    ):
        self.levels, self.cells, self.columns = levels, cells, columns
        self.gradients = gradients
        self.entries = cells * columns
        self._places = state(np.zeros((levels, *shape), np.int32), "places")
        # What turns the sums over each entry's weights into the entries.
        solver = (self.entries + 1,) if levels == 1 else (cells, columns, columns)
        self._solver = state(np.zeros(solver, np.float64), "solver")
        self._codebook: Any = None
        if gradients != "mean":
            self._codebook = state(np.zeros(self.entries + 1, np.float64), "codebook")

    @property
    def variables(self) -> list[keras.Variable]:
        """What the kernel's values do not tell a training that goes on after an interruption."""
        if self._codebook is not None:
            return [self._places, self._solver, self._codebook]
        if self._codebook is not None:
            return [self._places, self._solver, self._codebook]
        return [self._places, self._solver] if self.levels > 1 else []

    def holds(self, w: np.ndarray) -> bool:
        """Returns whether `w` is a kernel of this form in the places that there are."""
        return bool(self.places.any()) and fits(self.places, w, self.cells, self.columns)

    @property
    def places(self) -> np.ndarray:
        """Which entries each weight is the sum of, int32 (levels, *shape)."""
        return keras.ops.convert_to_numpy(self._places.value)

    @property
    def groups(self) -> np.ndarray:
        """Which weights have one value, int32 of the kernel's shape; 0: zero."""
        places = self.places
        return places[0] if self.levels == 1 else _numbered(places)

    def set(self, places: np.ndarray, w: np.ndarray) -> None:
        """Puts each weight in its place, int32 (levels, *shape); `w` is the kernel as it is."""
        self._places.assign(places)
        self._solver.assign(_solver(places, self.cells, self.columns))
        if self._codebook is not None:
            self._codebook.assign(entries(places, w, self.cells, self.columns))

    def masked(self, mask: np.ndarray, w: np.ndarray) -> None:
        """Has the weights where `mask` is False be zero from now on."""
        self.set(np.where(mask, self.places, 0), w)

    def nearest(self, w: Any) -> tuple[Any, Any]:
        """Returns the nearest kernel of this form, which may be `w` itself, and its codebook.

        Not to be traced into a graph.
        """
        if self._is_kept(keras.ops.convert_to_numpy(w)):
            return w, self.kept
        codebook = self._solve(tf.cast(w, tf.float64))
        return self._decode(codebook, w.dtype), codebook

    def step(self, w: Any) -> tuple[Any, Any]:
        """Returns the kernel after an optimizer's step has made `w` of it, and its codebook."""
        if self._codebook is None:
            codebook = self._solve(tf.cast(w, tf.float64))
        else:
            codebook = self._codebook.value + self._moved(w)
        return self._decode(codebook, w.dtype), codebook

    def remember(self, kept: Any) -> None:
        """Keeps the codebook from which the next step starts."""
        if self._codebook is not None:
            self._codebook.assign(kept)

    @property
    def kept(self) -> Any:
        """The codebook from which the next step starts; zeros where it does not matter."""
        if self._codebook is None:
            return tf.zeros([self.entries + 1], tf.float64)
        return self._codebook.value

    def _is_kept(self, w: np.ndarray) -> bool:
        """Returns whether `w` is what the last step left, which must not be rounded once more.

        Means of equal values are those values: with one level there is nothing to round.
        """
        if self._codebook is not None:
            codebook = keras.ops.convert_to_numpy(self._codebook.value)
            return np.array_equal(w, decoded(self.places, codebook).astype(w.dtype))
        return self.levels > 1 and self.holds(w)

    def _moved(self, w: Any) -> Any:
        """Returns how far each entry goes, by its weights' steps from the codebook's values to
        `w`."""
        before = tf.cast(self._codebook.value, w.dtype)
        if self.levels == 1:
            # By moments, since to gather where each weight was takes longer. The sum of equal
            # float32 values is exact in float64: no step gives exactly 0, and nothing drifts.
            x = tf.cast(w, tf.float64)
            was = tf.where(tf.math.is_finite(before), tf.cast(before, tf.float64), 0.0)
        else:
            x = tf.cast(w - self._decode(before, w.dtype), tf.float64)
            was = tf.zeros_like(before, tf.float64)
        count, sums = self._sizes(), self._added(x)
        total = sums - count * was
        if self.gradients == "sum":
            return total
        if self.gradients == "mean":
            return tf.math.divide_no_nan(total, count)
        squares = self._added(x * x) - was * (sums + total)
        reach = tf.sqrt(tf.math.divide_no_nan(tf.maximum(squares, 0.0), count))
        return tf.clip_by_value(tf.math.divide_no_nan(total, tf.sqrt(count)), -reach, reach)

    def _sizes(self) -> Any:
        """Returns how many weights each entry has."""
        if self.levels == 1:
            return self._solver.value  # which `set` has counted
        return self._counted(tf.zeros([0], tf.float64))

    def _added(self, w: Any) -> Any:
        """Returns the sum over each entry's weights, and 0 for the entry that is zero."""
        return self._counted(tf.tile(tf.reshape(w, [-1]), [self.levels]))

    def _counted(self, weights: Any) -> Any:
        """Returns how often each place is taken, each time counted as `weights` say, if any."""
        # The raw operator is the one whose size XLA sees; it is 4 times as fast as a segment sum.
        places = tf.reshape(self._places.value, [-1])
        counts = tf.raw_ops.DenseBincount(input=places, size=self.entries + 1, weights=weights)
        return tf.concat([tf.zeros([1], tf.float64), counts[1:]], axis=0)

    def _solve(self, w: Any) -> Any:
        sums = self._added(w)
        if self.levels == 1:
            # In float64 the mean of equal float32 values is that value, so nothing drifts.
            return tf.math.divide_no_nan(sums, self._solver.value)
        sums = tf.reshape(sums[1:], [self.cells, self.columns, 1])
        found = tf.reshape(tf.matmul(self._solver.value, sums), [-1])
        return tf.concat([tf.zeros([1], tf.float64), found], axis=0)

    def _decode(self, codebook: Any, dtype: Any) -> Any:
        if self.levels == 1:  # nothing to add up: the kernel never exists in float64
            places = tf.reshape(self._places.value, [1, -1])
            w = lookup.looked_up(places, tf.cast(codebook, dtype)[tf.newaxis])
            return tf.reshape(w, self._places.shape[1:])
        return tf.cast(tf.reduce_sum(tf.gather(codebook, self._places.value), axis=0), dtype)


class Scales:
    """Each weight is its code, a fixed integer in [-127, 127], times the scale of its channel.

    The scales train: each takes the value that brings its channel nearest to what the step has
    made of it. A channel's largest code is 127 or -127, so that max|w| / 127 is its scale, from
    which a converter finds the same codes again.
    """

    gradients = "mean"
    kept = property(lambda self: tf.zeros([], tf.float64))

    def __init__(self, shape: Sequence[int], axes: Sequence[int]):
        self.axes = tuple(axis % len(shape) for axis in axes)
        self._reduced = [axis for axis in range(len(shape)) if axis not in self.axes]
        self.codes = np.zeros(tuple(shape), np.int8)
        self._codes = state(self.codes, "codes")

    @property
    def variables(self) -> list[keras.Variable]:
        """Nothing: the kernel's values tell the codes."""
        return []

    def holds(self, w: np.ndarray) -> bool:
        """Returns False: whether `w` is of this form is for `codes_of` to tell."""
        return False

    @property
    def groups(self) -> np.ndarray:
        """Which weights have one value, int32 of the kernel's shape; 0: zero."""
        sizes = [size if axis in self.axes else 1 for axis, size in enumerate(self.codes.shape)]
        channels = np.arange(1, 1 + np.prod(sizes, dtype=int)).reshape(sizes)
        return _numbered(np.stack([self.codes, np.where(self.codes != 0, channels, 0)]))

    def set(self, codes: np.ndarray, w: np.ndarray) -> None:
        """Gives each weight its code."""
        self.codes = codes.astype(np.int8)
        self._codes.assign(self.codes)

    def masked(self, mask: np.ndarray, w: np.ndarray) -> None:
        """Has the weights where `mask` is False be zero from now on."""
        self.set(np.where(mask, self.codes, 0), w)

    def nearest(self, w: Any) -> tuple[Any, Any]:
        """Returns the nearest kernel of this form, and no codebook."""
        codes = tf.cast(self._codes.value, tf.float64)
        wide = tf.cast(w, tf.float64)
        power = tf.reduce_sum(codes * codes, self._reduced, keepdims=True)
        scale = tf.reduce_sum(wide * codes, self._reduced, keepdims=True)
        # A scale that a step has made negative would turn the codes over: the channel fades out.
        scale = tf.maximum(tf.math.divide_no_nan(scale, power), 1e-12)
        # In the kernel's own type, so that a channel's largest weight is 127 scales to the bit.
        return tf.cast(scale, w.dtype) * tf.cast(codes, w.dtype), self.kept

    step = nearest

    def remember(self, kept: Any) -> None:
        pass


def entries(
    places: np.ndarray,
    w: np.ndarray,
    cells: int,
    columns: int,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the entries that bring the sums nearest to `w`: float64 (cells * columns + 1,).

    `places` int32 (levels, *shape) as in `Sums`; `weight`, of the kernel's shape, says how much
    each weight's squared error counts. An entry without weights is 0.

    >>> entries(np.array([[1, 1, 2, 0]]), np.array([1.0, 3.0, 5.0, 0.0]), 1, 2).tolist()
    [0.0, 2.0, 5.0]
    """
    counted = np.ones(w.shape) if weight is None else weight.astype(np.float64)
    sums = np.zeros(cells * columns + 1)
    for level in places:
        sums += np.bincount(level.ravel(), (counted * w).ravel(), len(sums))
    sums[0] = 0.0
    solver = _solver(places, cells, columns, counted)
    if len(places) == 1:
        return np.divide(sums, solver, out=np.zeros_like(sums), where=solver > 0)
    found = np.matmul(solver, sums[1:].reshape(cells, columns, 1))
    return np.concatenate([[0.0], found.ravel()])


def decoded(places: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Returns the kernel, float32: each weight the sum of its entries of `codebook`."""
    return codebook[places].sum(axis=0).astype(np.float32)


def fits(places: np.ndarray, w: np.ndarray, cells: int, columns: int) -> bool:
    """Returns whether `w` is a sum of entries in these places, up to float rounding."""
    nearest = decoded(places, entries(places, w, cells, columns))
    return bool(np.abs(nearest - w).max() <= 1e-5 * np.abs(w).max())


def _numbered(parts: np.ndarray) -> np.ndarray:
    """Returns a number from 1 for each different column of `parts` (n, *shape), 0 for zeros."""
    flat = parts.reshape(len(parts), -1)
    _, numbers = np.unique(flat, axis=1, return_inverse=True)
    numbers = np.where(flat.any(axis=0), numbers.reshape(-1) + 1, 0)
    return numbers.reshape(parts.shape[1:]).astype(np.int32)


def _solver(
    places: np.ndarray, cells: int, columns: int, weight: np.ndarray | None = None
) -> np.ndarray:
    """Returns the weights of each entry, or for several levels each cell's pseudo-inverse of how
    often two entries meet."""
    counted = np.ones(places.shape[1:]) if weight is None else weight
    if len(places) == 1:
        return np.bincount(places.ravel(), counted.ravel(), cells * columns + 1)
    meetings = np.zeros(cells * columns * columns)
    used = places[0] > 0
    for first in places:
        for second in places:
            pair = (first[used] - 1).astype(np.int64) * columns + (second[used] - 1) % columns
            meetings += np.bincount(pair, counted[used], meetings.size)
    return np.linalg.pinv(meetings.reshape(cells, columns, columns), hermitian=True)


def codes_of(w: np.ndarray, axes: Sequence[int]) -> np.ndarray | None:
    """Returns the codes of a kernel that lies on 4 or more codes of its int8 grid, else None.

    `axes`: of the channels that have a scale each; (): one scale. int8 of the kernel's shape.
    """
    reduced = tuple(axis for axis in range(w.ndim) if axis not in {a % w.ndim for a in axes})
    largest = np.abs(w.astype(np.float64)).max(axis=reduced, keepdims=True)
    if w.size < largest.size + 8 or not np.isfinite(w).all():
        return None
    steps = np.divide(127 * w.astype(np.float64), largest, out=np.zeros(w.shape), where=largest > 0)
    codes = np.rint(steps)
    if np.abs(steps - codes).max() >= 1e-4:
        return None
    return codes.astype(np.int8) if len(np.unique(codes)) >= 4 else None


def state(value: np.ndarray, name: str) -> keras.Variable:
    """Returns a variable that belongs to no layer, so that it is never saved with the model."""
    return keras.Variable(
        value,
        dtype=value.dtype.name,
        trainable=False,
        name=name.replace("/", "_"),
        autocast=False,
        # All replicas compute the same.
        aggregation="only_first_replica",
    )
