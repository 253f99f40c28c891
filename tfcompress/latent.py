"""Weights that change their cluster while they train."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import lookup
from tfcompress.sharing import Sums, decoded, state


class Latent(Sums):
    """Each block of weights is the entry of a codebook that is nearest to its latent values.

    A step moves the latent values by the weights' own steps, as if they were the weights (the
    gradient passes straight through), and the entries as in `Sums`; then each block takes the
    entry that is nearest. Weights in place 0 stay zero. An entry that loses all of its blocks keeps
    its value and may win others; one that had none from the start is out of use.

    Args:
        shape: of the kernel.
        layout: which weights make up each block, int32 (codebooks, blocks, weights of a block):
            positions in the flat kernel, -1 where there is none.
        columns: entries of each codebook.
        gradients: "mean", "sum" or "root", see `Sums`.

    Sources: Bengio, Leonard and Courville 2013, "Estimating or propagating gradients through
    stochastic neurons"; van den Oord et al. 2017, "Neural discrete representation learning".
    """

    def __init__(self, shape: Sequence[int], layout: np.ndarray, columns: int, gradients: str):
        books, _, width = layout.shape
        super().__init__(shape, books * width, columns, levels=1, gradients=gradients)
        self._size = books, width, columns
        self._layout = layout.astype(np.int32)
        order = np.argsort(layout, axis=None, kind="stable")
        self._back = order[np.count_nonzero(layout < 0) :].astype(np.int32).reshape(shape)
        self._in_order = np.array_equal(layout.ravel(), np.arange(self._back.size))
        if self._codebook is None:
            self._codebook = state(np.zeros(self.entries + 1, np.float64), "codebook")
        # How far each latent value is above its weight.
        self._above = state(np.zeros(shape, np.float32), "above")
        self._moving = state(np.ones((), bool), "moving")

    def move(self, moving: bool) -> None:
        """Says whether from the next step on blocks take the nearest entry, or keep theirs."""
        self._moving.assign(moving)

    @property
    def latent(self) -> np.ndarray:
        """The latent values, float32 of the kernel's shape."""
        weights = decoded(self.places, self.kept[0].numpy())
        return weights + keras.ops.convert_to_numpy(self._above.value)

    @property
    def centroids(self) -> list[np.ndarray]:
        """Of each codebook the entries in use, float32 (k, weights of a block)."""
        books, width, columns = self._size
        entries = self.kept[0].numpy()[1:].astype(np.float32).reshape(books, width, columns)
        # In some places of a block an entry may have no weights; it is as good as 0 there.
        used = np.isfinite(entries)
        filled = np.where(used, entries, 0.0)
        return [book.T[places.any(axis=0)] for book, places in zip(filled, used, strict=True)]

    def set(self, places: np.ndarray, w: np.ndarray) -> None:
        """Puts each weight in its place, int32 (1, *shape); `w` are the latent values."""
        super().set(places, w)
        # Nothing is near to infinity.
        unused = keras.ops.convert_to_numpy(self._solver.value) == 0
        unused[0] = False
        codebook = np.where(unused, np.inf, keras.ops.convert_to_numpy(self._codebook.value))
        self._codebook.assign(codebook)
        self._above.assign(np.where(places[0] > 0, w - decoded(places, codebook), 0.0))

    @property
    def variables(self) -> list[keras.Variable]:
        return [self._places, self._codebook, self._above]

    def holds(self, w: np.ndarray) -> bool:
        return bool(self.places.any()) and self._is_kept(w)

    def masked(self, mask: np.ndarray, w: np.ndarray) -> None:
        self._places.assign(np.where(mask, self.places, 0))
        self._above.assign(np.where(mask, keras.ops.convert_to_numpy(self._above.value), 0.0))

    def find(self, w: np.ndarray) -> np.ndarray | None:
        """Returns the places that the values of a kernel of this form tell, or None: it is not of
        this form, or zeros or ragged edges within blocks hide it."""
        books, width, columns = self._size
        blocks = np.where(self._layout >= 0, w.ravel()[self._layout], 0.0)
        found = np.zeros(self._layout.shape, np.int32)
        for book, rows in enumerate(blocks):
            used = rows.any(axis=1)
            values = rows[used, 0] if width == 1 else rows[used]
            distinct, numbers = np.unique(values, axis=0, return_inverse=True)
            if len(distinct) > columns:
                return None
            cells = (book * width + np.arange(width)) * columns
            found[book, used] = 1 + cells + numbers.reshape(-1, 1)
        places = found.reshape(-1)[self._back]
        return np.where(w == 0, 0, places)[np.newaxis]

    def nearest(self, w: Any) -> tuple[Any, Any]:
        """Returns the nearest kernel whose weights are in the clusters that they have in `w` (those
        of an earlier epoch may be other ones), or else in those of the last step; and what is kept.

        Not to be traced into a graph.
        """
        value = keras.ops.convert_to_numpy(w)
        if not self.holds(value):
            places = self.find(value)
            self.set(self.places if places is None else places, value)
        return self._decode(self.kept[0], w.dtype), self.kept

    def step(self, w: Any) -> tuple[Any, Any]:
        before, above, places = self.kept
        codebook = before + self._moved(w)
        latent = above + tf.cast(w, tf.float32)
        return tf.cond(
            self._moving.value,
            lambda: self._to_nearest(latent, places, self._sorted(codebook), w.dtype),
            lambda: self._in_place(latent, places, codebook, w.dtype),
        )

    def remember(self, kept: Any) -> None:
        """Keeps what `step` has returned beside the kernel; the next step starts there."""
        for variable, value in zip((self._codebook, self._above, self._places), kept, strict=True):
            variable.assign(value)

    @property
    def kept(self) -> Any:
        """The entries, how far latent values are above them, and the places, as they are now."""
        return tuple(
            tf.convert_to_tensor(v.value) for v in (self._codebook, self._above, self._places)
        )

    def _in_place(self, latent: Any, places: Any, codebook: Any, dtype: Any) -> tuple[Any, Any]:
        """Returns the kernel whose blocks keep their entries, and what is kept."""
        w = self._decode(codebook, dtype)
        above = tf.where(places[0] > 0, latent - tf.cast(w, tf.float32), 0.0)
        return w, (codebook, above, places)

    def _to_nearest(self, latent: Any, places: Any, codebook: Any, dtype: Any) -> tuple[Any, Any]:
        """Returns the kernel whose blocks take the nearest entries, and what is kept."""
        books, width, columns = self._size
        entries = tf.reshape(tf.cast(codebook[1:], dtype), [books, width, columns])
        near = tf.cast(entries, tf.float32)
        values = self._in_blocks(latent, 0.0)
        if width == 1:
            column = lookup.nearest(values[..., 0], near[:, 0])
            w = lookup.looked_up(column, entries[:, 0])[..., tf.newaxis]
        else:
            column = _nearest_blocks(values, self._in_blocks(places[0], 0) > 0, near)
            w = tf.gather(tf.transpose(entries, [0, 2, 1]), column, batch_dims=1)
        first = tf.reshape(1 + tf.range(books * width) * columns, [books, 1, width])
        found = self._in_kernel(first + column[..., tf.newaxis])
        w, above, found = _settled(latent, places[0], found, self._in_kernel(w))
        return w, (codebook, above, found[tf.newaxis])

    def _sizes(self) -> Any:
        return self._counted(tf.zeros([0], tf.float64))  # weights change their places

    def _sorted(self, codebook: Any) -> Any:
        """Returns single weights' entries in order, those out of use at the end."""
        books, width, columns = self._size
        if width > 1:
            return codebook
        ordered = tf.sort(tf.reshape(codebook[1:], [books, columns]), axis=-1)
        return tf.concat([codebook[:1], tf.reshape(ordered, [-1])], axis=0)

    def _in_blocks(self, x: Any, filling: Any) -> Any:
        """Returns an array of the kernel's shape as (codebooks, blocks, weights of a block)."""
        if self._in_order:
            return tf.reshape(x, self._layout.shape)
        blocks = tf.gather(tf.reshape(x, [-1]), np.maximum(self._layout, 0))
        return blocks if (self._layout >= 0).all() else tf.where(self._layout >= 0, blocks, filling)

    def _in_kernel(self, blocks: Any) -> Any:
        """Returns (codebooks, blocks, weights of a block) as an array of the kernel's shape."""
        flat = tf.reshape(blocks, [-1])
        return tf.reshape(flat, self._back.shape) if self._in_order else tf.gather(flat, self._back)


@lookup.compiled
def _settled(latent: Any, before: Any, places: Any, w: Any) -> tuple[Any, Any, Any]:
    """Returns weights, how far latent values are above them, and places, where there are any."""
    zero = before == 0
    above = tf.where(zero, 0.0, latent - tf.cast(w, tf.float32))
    return tf.where(zero, tf.zeros_like(w), w), above, tf.where(zero, 0, places)


@lookup.compiled
def _nearest_blocks(values: Any, used: Any, entries: Any) -> Any:
    """Returns which entry (b, d, k) is nearest to each block (b, n, d), by the used weights.

    One entry after another: there is never an array of n x k.
    """

    def compare(column: Any, nearest: Any, least: Any) -> Any:
        entry = tf.gather(entries, column, axis=2)[:, tf.newaxis]
        distance = tf.reduce_sum(tf.where(used, tf.square(values - entry), 0.0), axis=-1)
        closer = distance < least
        return column + 1, tf.where(closer, column, nearest), tf.where(closer, distance, least)

    shape = tf.shape(values)[:2]
    start = (tf.constant(0), tf.zeros(shape, tf.int32), tf.fill(shape, np.float32(np.inf)))
    return tf.while_loop(lambda column, *_: column < entries.shape[2], compare, start)[1]
