"""The random score, a control."""

import dataclasses
import zlib
from typing import Any, ClassVar

import numpy as np

from tfcompress.errors import require
from tfcompress.structured.scores import SCORES


@SCORES.register("random")
@dataclasses.dataclass(frozen=True)
class Random:
    """Channels go in an arbitrary order: the control that any other score must beat.

    No member counts: the order depends on `seed` (at least 0), the group's name and its size.
    """

    seed: int = 0

    needs: ClassVar[str] = "weights"
    normalise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            isinstance(self.seed, int) and self.seed >= 0,
            "seed of Random",
            "must be a whole number, at least 0",
            seed=self.seed,
        )

    def score(self, group: Any, evidence: Any = None) -> np.ndarray:
        """Returns numbers in [0, 1): float64 (group.size,)."""
        key = zlib.crc32(group.name.encode())
        return np.random.default_rng([self.seed, key]).random(group.size)
