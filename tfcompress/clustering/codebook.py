"""What every clustering method returns: few values, and which block has which."""

import dataclasses
import math

import numpy as np

_CHUNK = 1 << 20  # blocks at a time: sums in float64 without a second copy of the kernel


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """`centroids` float32 (k, d) and `indices` int32 (n,): block i is centroids[indices[i]]."""

    centroids: np.ndarray
    indices: np.ndarray

    def decode(self) -> np.ndarray:
        """Returns the blocks, each replaced by its centroid: float32 (n, d)."""
        return self.centroids[self.indices]

    def sse(self, blocks: np.ndarray, weight: np.ndarray | None = None) -> float:
        """Returns the sum of squared errors against `blocks` (n, d), added up in float64."""
        total = 0.0
        for begin in range(0, len(blocks), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            errors = blocks[part].astype(np.float64) - self.centroids[self.indices[part]]
            squares = np.einsum("nd,nd->n", errors, errors)
            total += float(squares.sum() if weight is None else squares @ weight[part])
        return total

    @property
    def entropy_bits(self) -> float:
        """Bits per block that an ideal entropy coder needs for the indices, at most log2(k)."""
        counts = np.bincount(self.indices)
        shares = counts[counts > 0] / len(self.indices)
        return float(-(shares * np.log2(shares)).sum()) + 0.0

    @property
    def size_bytes(self) -> int:
        """Bytes of float32 centroids and of indices packed into ceil(log2(k)) bits each."""
        index_bits = math.ceil(math.log2(len(self.centroids)))
        return 4 * self.centroids.size + math.ceil(index_bits * len(self.indices) / 8)
