"""Additive codebooks: what the first codebook leaves over is clustered too."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.clustering import METHODS, arrays
from tfcompress.clustering.codebook import Codebook
from tfcompress.errors import require


def additive(
    blocks: np.ndarray,
    method: Any = "kmeans",
    levels: int = 2,
    sample_weight: np.ndarray | None = None,
) -> list[Codebook]:
    """Returns one codebook per level; a block is the sum of its centroids of all levels.

    Each level clusters what the ones before have left over, after the bias of their clusters (the
    mean of what is left in each) was added to their centroids. Two levels of 16 blocks make up to
    256 sums from 32 stored ones. A level after which nothing is left is the last.

    Args:
        blocks: float (n, d), finite.
        method: a clustering method: a name, `{name: arguments}` or an object.
        levels: at least 1.
        sample_weight: (n,), how much each block counts, or None.

    Source: Juang and Gray 1982, "Multiple stage vector quantization for speech coding".

    >>> blocks = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)
    >>> books = additive(blocks, {"kmeans": {"clusters": 2}})
    >>> [book.centroids.ravel().tolist() for book in books], decode(books).ravel().tolist()
    ([[0.5, 10.5], [-0.5, 0.5]], [0.0, 1.0, 10.0, 11.0])
    """
    whole = isinstance(levels, int) and not isinstance(levels, bool) and levels >= 1
    require(whole, "levels of additive", "must be a whole number of at least 1", levels=levels)
    method = METHODS.create(method)
    left, weight = arrays.checked(blocks, sample_weight, "additive")
    books: list[Codebook] = []
    for _ in range(levels):
        book = method.fit(left, weight)
        book = Codebook(arrays.means(left, book.indices, weight), book.indices)
        books.append(book)
        left = left - book.decode()
        if not left.any():
            break
    return books


def decode(codebooks: Sequence[Codebook]) -> np.ndarray:
    """Returns the blocks, each the sum of its centroids: float32 (n, d)."""
    total = codebooks[0].decode()
    for book in codebooks[1:]:
        total = total + book.decode()
    return total
