"""The unstructured pattern."""

import dataclasses
from typing import ClassVar

import numpy as np

from tfcompress.pruning import selection
from tfcompress.pruning.patterns import PATTERNS


@PATTERNS.register("unstructured")
@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Zeroes single weights, wherever they are.

    >>> Unstructured().mask(np.array([[3.0, 1.0], [2.0, 4.0]]), sparsity=0.5)
    array([[ True, False],
           [False,  True]])
    """

    max_sparsity: ClassVar[float] = 1.0

    def mask(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Returns the mask with exactly round(sparsity * size) False, and at least one True."""
        selection.check(scores, sparsity, "Unstructured")
        return ~selection.lowest(scores, selection.count_of(sparsity, scores.size))
