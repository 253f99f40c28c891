"""The block pattern."""

import dataclasses
import numbers
from typing import ClassVar

import numpy as np

from tfcompress.errors import require
from tfcompress.pruning import selection
from tfcompress.pruning.patterns import PATTERNS
from tfcompress.weights import matrix_shape


@PATTERNS.register("block")
@dataclasses.dataclass(frozen=True)
class Block:
    """Zeroes whole blocks of neighbouring weights, those with the lowest mean score.

    The kernel is seen as a matrix, inputs x outputs (`weights.matrix_shape`), and cut into blocks
    of `block` = (inputs, outputs), both at least 1. At ragged edges blocks are smaller.
    The share of the blocks that go is the sparsity: round(sparsity * blocks).

    >>> Block(block=(1, 2)).mask(np.array([[3.0, 1.0], [2.0, 4.0]]), sparsity=0.5)
    array([[False, False],
           [ True,  True]])
    """

    block: tuple[int, int] = (1, 4)

    max_sparsity: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        require(
            isinstance(self.block, tuple | list)
            and len(self.block) == 2
            and all(isinstance(n, numbers.Integral) and n >= 1 for n in self.block),
            "block of Block",
            "must be two whole numbers, at least 1",
            block=self.block,
        )
        object.__setattr__(self, "block", tuple(int(n) for n in self.block))

    def mask(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Returns the mask; a block is True or False as a whole, and at least one is True."""
        selection.check(scores, sparsity, "Block")
        matrix = scores.reshape(matrix_shape(scores.shape))
        means = self._block_means(matrix)
        keep = ~selection.lowest(means, selection.count_of(sparsity, means.size))
        for axis, size in enumerate(self.block):
            keep = np.repeat(keep, size, axis=axis)
        return keep[: matrix.shape[0], : matrix.shape[1]].reshape(scores.shape)

    def _block_means(self, matrix: np.ndarray) -> np.ndarray:
        sums, counts = matrix.astype(np.float64, copy=False), np.ones((1, 1))
        for axis, size in enumerate(self.block):
            length = matrix.shape[axis]
            begins = np.arange(0, length, size)
            sums = np.add.reduceat(sums, begins, axis=axis)
            lengths = np.minimum(size, length - begins)
            counts = counts * (lengths[:, None] if axis == 0 else lengths[None, :])
        return sums / counts
