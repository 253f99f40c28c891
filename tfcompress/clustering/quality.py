"""What a clustering costs and how well it fits: the figures that a report shows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.clustering import arrays, choose
from tfcompress.clustering.additive import decode
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.kmeans import KMeans
from tfcompress.errors import require

# All pairs of so many blocks are compared for the silhouette; of scalars only centroids are.
_SAMPLES = 2048
_SCALARS = 65_536


@dataclasses.dataclass(frozen=True)
class Quality:
    """The figures of one clustered kernel.

    `sse`: the sum of squared errors. `sse_over_optimum`: over that of the best clustering with as
    many values, at least 1 up to rounding; None for blocks and several levels, whose optimum is not
    known. `silhouette`: in [-1, 1], of a sample; for scalars the simplified one, by distances to
    centroids. `distinct_values`: among the decoded weights. `entropy_bits`: bits per weight that an
    ideal entropy coder needs for the indices. `index_bytes`: all indices at that rate.
    `codebook_bytes`: of the float32 centroids.
    """

    sse: float
    sse_over_optimum: float | None
    silhouette: float
    distinct_values: int
    entropy_bits: float
    index_bytes: int
    codebook_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures by name."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        optimum = "" if self.sse_over_optimum is None else f" ({self.sse_over_optimum:.3f} x best)"
        return (
            f"SSE {self.sse:.4g}{optimum}, silhouette {self.silhouette:.3f}, "
            f"{self.distinct_values} values, {self.entropy_bits:.2f} bits per weight, "
            f"codebook {self.codebook_bytes} bytes"
        )


def quality(
    blocks: np.ndarray,
    codebook: Codebook | Sequence[Codebook],
    sample_weight: np.ndarray | None = None,
    seed: int = 0,
) -> Quality:
    """Returns the figures of `blocks` (n, d) clustered by a codebook, or by several added up.

    >>> values = np.array([[0.0], [1.0], [9.0]], np.float32)
    >>> print(quality(values, KMeans(clusters=2).fit(values)))
    SSE 0.5 (1.000 x best), silhouette 0.961, 2 values, 0.92 bits per weight, codebook 8 bytes
    """
    blocks, sample_weight = arrays.checked(blocks, sample_weight, "quality")
    books = [codebook] if isinstance(codebook, Codebook) else list(codebook)
    shapes = [(len(book.indices), book.centroids.shape[1]) for book in books]
    fits = bool(books) and all(shape == blocks.shape for shape in shapes)
    rule = f"must be of blocks of shape {blocks.shape}"
    require(fits, "codebook of quality", rule, shapes=shapes)
    whole = books[0] if len(books) == 1 else _added(books)
    sse = whole.sse(blocks, sample_weight)
    bits = sum(book.entropy_bits for book in books)
    return Quality(
        sse=sse,
        sse_over_optimum=_over_optimum(blocks, books, sse, sample_weight),
        silhouette=_silhouette(blocks, whole, seed),
        distinct_values=len(np.unique(whole.centroids)),
        entropy_bits=bits / blocks.shape[1],
        index_bytes=round(bits * len(blocks) / 8),
        codebook_bytes=sum(4 * book.centroids.size for book in books),
    )


def _added(books: list[Codebook]) -> Codebook:
    """Returns one codebook of all the sums of centroids that occur."""
    key = np.zeros(len(books[0].indices), np.int64)
    for book in books:
        key = key * len(book.centroids) + book.indices
    _, first, indices = np.unique(key, return_index=True, return_inverse=True)
    some = [Codebook(book.centroids, book.indices[first]) for book in books]
    return Codebook(decode(some), indices.astype(np.int32))


def _over_optimum(
    blocks: np.ndarray, books: list[Codebook], sse: float, weight: np.ndarray | None
) -> float | None:
    if blocks.shape[1] > 1 or len(books) > 1:
        return None
    clusters = len(books[0].centroids)
    if clusters == 1:
        labels = np.zeros(len(blocks), np.int64)
        best = arrays.codebook(blocks, labels, weight).sse(blocks, weight)
    else:
        best = KMeans(clusters).fit(blocks, weight).sse(blocks, weight)
    if best == 0:
        return 1.0 if sse == 0 else float("inf")
    return sse / best


def _silhouette(blocks: np.ndarray, codebook: Codebook, seed: int) -> float:
    scalars = blocks.shape[1] == 1
    size = min(len(blocks), _SCALARS if scalars else _SAMPLES)
    chosen = np.sort(np.random.default_rng(seed).choice(len(blocks), size, replace=False))
    rows, labels = blocks[chosen].astype(np.float64), codebook.indices[chosen]
    if scalars:
        return choose.simplified_silhouette(rows, np.ones(size), labels, codebook.centroids)
    if not 2 <= len(np.unique(labels)) < size:
        return 0.0
    from sklearn import metrics

    return float(metrics.silhouette_score(rows, labels))
