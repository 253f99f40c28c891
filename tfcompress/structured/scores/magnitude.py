"""The magnitude of a channel's weights."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.errors import require
from tfcompress.structured import slices
from tfcompress.structured.scores import SCORES


@SCORES.register("magnitude")
@dataclasses.dataclass(frozen=True)
class Magnitude:
    """Channels with the smallest weights go first: the norm of a channel's slice of each weight.

    `norm`: 2, the root of the sum of squares, or 1, the sum of magnitudes.

    What makes the channel (out), what scales it (each: gamma, a depthwise kernel) and what reads
    it (in) count alike: the channel's effect is their product, so that a small one of them is
    enough to make it small. Biases and betas do not count: a constant is no information.

    Sources: Li et al. 2017, "Pruning filters for efficient ConvNets" (norm 1, filters alone);
    Fang et al. 2023, "DepGraph" (norm 2 over the group).
    """

    norm: int = 2

    needs: ClassVar[str] = "weights"
    normalise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.norm in (1, 2), "norm of Magnitude", "must be 1 or 2", norm=self.norm)

    def score(self, group: Any, evidence: Any = None) -> np.ndarray:
        """Returns one number per channel, of mean 1: float64 (group.size,)."""
        members = filter(slices.multiplies, group.members)
        return slices.average(
            group, (self._norms(m, group.size) for m in members), "weights that multiply"
        )

    def _norms(self, member: Any, size: int) -> np.ndarray:
        w = slices.value(member)
        entries = np.abs(w) if self.norm == 1 else np.square(w, dtype=np.float64)
        sums = slices.per_channel(member, size, slices.per_index(member, entries))
        return sums if self.norm == 1 else np.sqrt(sums)
