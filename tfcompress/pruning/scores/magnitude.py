"""The magnitude score."""

import dataclasses
from typing import ClassVar

import numpy as np

from tfcompress.pruning.scores import SCORES


@SCORES.register("magnitude")
@dataclasses.dataclass(frozen=True)
class Magnitude:
    """Prunes the smallest weights first: the score is |w|.

    Source: Han et al. 2015, "Learning both weights and connections for efficient neural networks".

    >>> Magnitude().score(np.array([[-2.0, 1.0]], np.float32))
    array([[2., 1.]], dtype=float32)
    """

    # Layers differ in scale: without it, global pruning would empty those with small weights.
    normalise: ClassVar[bool] = True

    def score(self, kernel: np.ndarray) -> np.ndarray:
        """Returns |kernel|: same shape, the kernel's floating type."""
        return np.abs(kernel)
