"""Kernels cut into blocks, clustered and put together again: all of `cluster` and of
`ClusterOnSchedule` that knows how."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress import clustering, sharing
from tfcompress.clustered.plan import Plan
from tfcompress.clustering import arrays, choose
from tfcompress.weights import (
    block_numbers,
    by_channel,
    channels_first,
    from_blocks,
    real_entries,
    to_blocks,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Clustered:
    """A kernel whose blocks share the entries of codebooks.

    `values`: the kernel, float32. `places`: which entries each weight is the sum of, int32 (levels,
    *shape), as `sharing.Sums` wants them. `error`: the sum of squared errors, weighted where the
    weights have an importance. `index_bits`: what an ideal entropy coder needs for all indices and
    zeros. `books`: the codebooks of each channel or of the kernel, one per level; several kernels
    may share them.
    """

    values: np.ndarray
    places: np.ndarray
    error: float
    index_bits: float
    books: tuple[tuple[clustering.Codebook, ...], ...]

    @property
    def codebook_bytes(self) -> int:
        """Bytes of the float32 centroids."""
        return sum(4 * book.centroids.size for books in self.books for book in books)

    def remark(self, path: str, plan: Plan) -> str:
        """Returns what `remark` says of the kernel: one of which nothing is lost, though a cluster
        is left over, has no more values. Or that the method has found one cluster only."""
        counts = [len(books[0].centroids) for books in self.books if books]
        if self.error > 0:
            if max(counts, default=0) != 1 or plan.levels > 1:
                return ""
            what = "one value" if plan.block == (1, 1) else "one block"
            where = " in each of its channels" if len(counts) > 1 else ""
            method = type(plan.method).__name__
            return f"{path} is {what} now{where}: {method} has found a single cluster"
        if len(counts) > 1 and max(counts) == 1:
            return f"{path} is constant in each of its channels, each of which has one cluster"
        zeros = plan.keep_zeros and not self.places.all()
        return remark(path, plan, max(counts, default=0), zeros)


def remark(path: str, plan: Plan, count: int, zeros: bool) -> str:
    """Returns what the user should know of a kernel with fewer distinct blocks than clusters.

    "" for as many as clusters, and for no number of clusters given. `zeros`: whether there are
    zeros that stay, beside the `count` blocks.
    """
    if count == 0:
        return f"{path} is all zeros, which stay: it has no clusters"
    if count == 1:
        return f"{path} is constant{' but for its zeros' if zeros else ''}: it has one cluster"
    clusters = plan.method.clusters
    if clusters == choose.AUTO or count >= clusters:
        return ""
    what = "values" if plan.block == (1, 1) else "blocks"
    return (
        f"clusters for {path} are more than its {count} distinct {what}, each of which is a "
        f"cluster of its own. Received: clusters={clusters}"
    )


def shape_of(plan: Plan, channels: int) -> dict[str, int]:
    """Returns the arguments of `sharing.Sums` for kernels with so many codebooks of their own."""
    return {
        "cells": channels * plan.block[0] * plan.block[1],
        "columns": plan.levels * choose.most(plan.method),
        "levels": plan.levels,
    }


def cluster_together(
    arrays: Sequence[np.ndarray],
    plan: Plan,
    importance: Sequence[np.ndarray] | None = None,
    start: np.ndarray | None = None,
) -> list[Clustered]:
    """Returns the kernels, each clustered, with one codebook (per level) for all of them.

    `importance`: of each weight, arrays of the kernels' shapes, at least 0; None: all count alike.
    `start`: centroids (k, d) that were found before, from which methods that go by steps go on.
    """
    weights = [None] * len(arrays) if importance is None else importance
    pieces = [_Piece(w, weight, plan) for w, weight in zip(arrays, weights, strict=True)]
    blocks = np.concatenate([piece.blocks[piece.used] for piece in pieces])
    if not len(blocks):
        return [_zeros(w, plan) for w in arrays]
    counted = np.concatenate([piece.counts[piece.used] for piece in pieces])
    even = bool((counted == counted[0]).all())
    given = None if even else counted
    if plan.levels == 1:
        books = [plan.method.fit(blocks, given, _nearest(start, blocks))]
    else:
        books = clustering.additive(blocks, plan.method, plan.levels, given)
    most = choose.most(plan.method)
    ends = np.cumsum([np.count_nonzero(piece.used) for piece in pieces])[:-1]
    split = [np.split(book.indices, ends) for book in books]
    places = [
        piece.places([indices[number] for indices in split], most)
        for number, piece in enumerate(pieces)
    ]
    size = shape_of(plan, 1)
    flat = np.concatenate([found.reshape(plan.levels, -1) for found in places], axis=1)
    values = np.concatenate([np.ravel(w) for w in arrays])
    weight = None if importance is None else np.concatenate([np.ravel(w) for w in importance])
    entries = sharing.entries(flat, values, size["cells"], size["columns"], weight)
    return [
        piece.clustered(sharing.decoded(where, entries), where, books)
        for piece, where in zip(pieces, places, strict=True)
    ]


def cluster_kernel(
    w: np.ndarray,
    plan: Plan,
    output_axes: Sequence[int] = (-1,),
    importance: np.ndarray | None = None,
    start: Sequence[np.ndarray] | None = None,
) -> Clustered:
    """Returns one kernel, clustered with a codebook of its own, or one per output channel.

    `start`: of each codebook the centroids that it had when the kernel had other values.

    >>> plan = Plan("example", {"kmeans": {"clusters": 2}})
    >>> cluster_kernel(np.array([[0.0, 1.0], [2.0, 4.0]]), plan).values.tolist()
    [[0.0, 1.5], [1.5, 4.0]]
    """
    if plan.per != "channel":
        weights = None if importance is None else [importance]
        return cluster_together([w], plan, weights, start[0] if start else None)[0]
    order = channels_first(w.ndim, output_axes)
    turned = tuple(w.shape[axis] for axis in order)
    counted = None if importance is None else by_channel(importance, output_axes)
    found = []
    for number, row in enumerate(by_channel(w, output_axes)):
        weights = None if counted is None else [counted[number, :, np.newaxis]]
        before = start[number] if start else None
        found.append(cluster_together([row[:, np.newaxis]], plan, weights, before)[0])
    entries = shape_of(plan, 1)["cells"] * shape_of(plan, 1)["columns"]
    places = np.stack(
        [np.where(c.places > 0, c.places + n * entries, 0) for n, c in enumerate(found)], axis=1
    )
    back = np.argsort(order)
    return Clustered(
        np.stack([c.values for c in found]).reshape(turned).transpose(back),
        places.reshape(-1, *turned).transpose(0, *(1 + back)),
        sum(c.error for c in found),
        sum(c.index_bits for c in found),
        tuple(books for c in found for books in c.books),
    )


def layout(shape: Sequence[int], plan: Plan, output_axes: Sequence[int]) -> np.ndarray:
    """Returns which weights make up each block of each codebook, as `latent.Latent` wants it.

    >>> layout((2, 2), Plan("example", block=(2, 1), per="channel"), (1,)).tolist()
    [[[0, 2]], [[1, 3]]]
    """
    block = plan.block[0], plan.block[1]
    if plan.per != "channel":
        return block_numbers(tuple(shape), block)[np.newaxis]
    numbers = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    rows = by_channel(numbers, output_axes)
    places = block_numbers((rows.shape[1], 1), block)
    return np.where(places >= 0, rows[:, places], -1)


class _Piece:
    """One kernel as blocks: `used` are those that are clustered, `counts` how much each counts."""

    def __init__(self, w: np.ndarray, importance: np.ndarray | None, plan: Plan):
        self._w = np.asarray(w, np.float32)
        self._importance = importance
        self._plan = plan
        self._block = (plan.block[0], plan.block[1])
        self.blocks = to_blocks(self._w, self._block)
        # With zeros kept, blocks of them alone take no part.
        self.used = (self.blocks != 0).max(axis=1) | (not plan.keep_zeros)
        # What fills up ragged edges is no weight.
        real = real_entries(self._w.shape, self._block)
        weight = real if importance is None else real * to_blocks(importance, self._block)
        self.counts = weight.mean(axis=1).astype(np.float64)

    def places(self, indices: Sequence[np.ndarray], most: int) -> np.ndarray:
        """Returns the places of the weights, given the indices of the used blocks per level."""
        width, levels = self.blocks.shape[1], self._plan.levels
        found = np.zeros((levels, *self._w.shape), np.int32)
        for level in range(levels):
            # After a level that leaves nothing over, further ones have one entry, which is zero.
            index = indices[level] if level < len(indices) else np.zeros_like(indices[0])
            columns = levels * most
            where = np.zeros(self.blocks.shape, np.int32)
            where[self.used] = 1 + np.arange(width) * columns + (level * most + index)[:, None]
            found[level] = from_blocks(where, self._w.shape, self._block)
        if self._plan.keep_zeros:
            found[:, self._w == 0] = 0
        return found

    def clustered(self, values: np.ndarray, places: np.ndarray, books: Sequence[Any]) -> Clustered:
        errors = (self._w.astype(np.float64) - values) ** 2
        if self._importance is not None:
            errors = errors * self._importance
        width = self.blocks.shape[1]
        bits = _entropy(places[0] > 0) if self._plan.keep_zeros else 0.0
        for level in places:
            used = level[level > 0]
            # A block's index counts once, not once for each of its weights.
            bits += _entropy((used - 1) % (len(places) * choose.most(self._plan.method))) / width
        return Clustered(values, places, float(errors.sum()), bits, (tuple(books),))


def _nearest(start: np.ndarray | None, blocks: np.ndarray) -> clustering.Codebook | None:
    """Returns the codebook of the blocks that are nearest to each of the centroids; where a
    centroid has none, the block that is farthest from its own begins a cluster."""
    if start is None or not len(start):
        return None
    labels = arrays.assign(blocks, start)
    distances = np.square(blocks - start[labels]).sum(axis=1)
    for empty in np.setdiff1d(np.arange(len(start)), labels):
        farthest = distances.argmax()
        if distances[farthest] == 0:
            break
        labels[farthest] = empty
        distances = np.minimum(distances, np.square(blocks - blocks[farthest]).sum(axis=1))
    return arrays.codebook(blocks, labels, None)


def _zeros(w: np.ndarray, plan: Plan) -> Clustered:
    places = np.zeros((plan.levels, *w.shape), np.int32)
    return Clustered(np.zeros(w.shape, np.float32), places, 0.0, 0.0, ((),))


def _entropy(symbols: np.ndarray) -> float:
    """Returns the bits of all symbols for an ideal entropy coder."""
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / max(symbols.size, 1)
    return float(-(counts * np.log2(shares)).sum()) + 0.0
