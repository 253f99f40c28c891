"""The layer-adaptive magnitude score."""

import dataclasses
from typing import ClassVar

import numpy as np

from tfcompress.pruning.scores import SCORES


@SCORES.register("lamp")
@dataclasses.dataclass(frozen=True)
class Lamp:
    """Prunes the weights first that matter least to their own layer, over all layers at once.

    score(w) = w^2 / sum of the squares in the kernel that are not smaller than w^2, in [0, 1].
    The largest weight of each kernel has score 1, so that with global scope no layer is emptied.
    Within one kernel the order is that of |w|.

    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning".

    >>> Lamp().score(np.array([[1.0, -2.0]], np.float32))
    array([[0.2, 1. ]])
    """

    normalise: ClassVar[bool] = False

    def score(self, kernel: np.ndarray) -> np.ndarray:
        """Returns the scores: same shape, float64."""
        magnitudes = np.abs(kernel).astype(np.float32, copy=False).ravel()
        # Bit patterns of floats that are not negative are in their order, and faster to sort.
        order = np.argsort(magnitudes.view(np.uint32))
        ascending = magnitudes[order].astype(np.float64)
        squares = ascending**2
        not_smaller = np.cumsum(squares[::-1])[::-1]
        # Equal weights share the sum that begins at the first of them.
        begins = np.append(True, ascending[1:] != ascending[:-1])
        sums = not_smaller[begins][np.cumsum(begins) - 1]
        scores = np.empty_like(squares)
        scores[order] = np.divide(squares, sums, out=np.zeros_like(sums), where=sums > 0)
        return scores.reshape(kernel.shape)
