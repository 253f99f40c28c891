"""The random score, a control."""

import dataclasses
from typing import ClassVar

import numpy as np

from tfcompress.errors import require
from tfcompress.pruning.scores import SCORES


@SCORES.register("random")
@dataclasses.dataclass(frozen=True)
class Random:
    """Prunes weights in an arbitrary order: the control that any other score must beat.

    The order depends on `seed` (at least 0) and on the kernel's shape alone, so that a weight once
    pruned stays pruned when the sparsity rises. Zeros have score 0: they go first.

    >>> Random(seed=1).score(np.ones((2, 2), np.float32)).shape
    (2, 2)
    """

    seed: int = 0

    normalise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            isinstance(self.seed, int) and self.seed >= 0,
            "seed of Random",
            "must be a whole number, at least 0",
            seed=self.seed,
        )

    def score(self, kernel: np.ndarray) -> np.ndarray:
        """Returns numbers in (0, 1], and 0 where the kernel is 0: same shape, float32."""
        generator = np.random.default_rng([self.seed, *kernel.shape])
        return (1 - generator.random(kernel.shape, np.float32)) * (kernel != 0)
